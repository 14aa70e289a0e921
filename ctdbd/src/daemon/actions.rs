//! What operators ask for: actions of the API, from here or passed on by another node, and the
//! wait until their effect is there (`spec/cli.md` 6.4: whoever reads the answer may rely on it).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ctdb_core::coordinator::Input;
use ctdb_core::events::Event;
use ctdb_core::local::LocalError;
use ctdb_wire::api::databases::DatabaseClientsView;
use ctdb_wire::api::{Action, ApiError, Done, HistoryView, NodeEntry, NodeVerb, Scope};
use ctdb_wire::ids::{BootTime, NodeSet, Pnn};
use ctdb_wire::peer::{Operation, OperationError, PeerFrame};
use serde_json::Value;
use tokio::sync::oneshot;

use super::node::Node;
use super::nodes::{Applying, RELOAD, Reload};
use super::replies::to_peer;
use crate::api::{self, Command, Wanted};
use crate::clients::{Ask, AskKind};
use crate::clock::boot_now;
use crate::config::Tunable;
use crate::log::LogLevel;

/// Longest wait for an effect; then the answer says what is still missing.
const EFFECT: Duration = Duration::from_secs(15);
/// Longest wait for another node's answer: its own wait and the way.
const ANSWER: Duration = Duration::from_secs(20);
/// Actions and forwarded requests that may be under way at a time; more are refused.
const MAX_PENDING: usize = 256;

pub(super) type Answer = Result<Value, ApiError>;

/// Who gets an answer.
pub(super) enum Reply {
    /// A client of the API.
    Client(oneshot::Sender<Answer>),
    /// A client of the client socket: what only this node does is answered when it is done here;
    /// CTDB's tool waits for the rest itself.
    Control(oneshot::Sender<Answer>),
    /// Another node, which asked with this number.
    Peer(Pnn, u64),
    /// A step of another action of this node.
    Step(oneshot::Sender<Answer>),
}

pub(super) enum Wait {
    /// The nodes list is read.
    Source(oneshot::Receiver<Result<Vec<NodeEntry>, String>>),
    /// The record of the old list is removed, then this one is taken on.
    Apply(Applying),
    /// A new nodes list is taken on by all nodes.
    Reload(Box<Reload>),
    /// This node holds no address any more.
    Emptied,
    /// A leader is known, to be asked to settle.
    Leader,
    /// It was asked.
    LeaderAnswers(oneshot::Receiver<Answer>),
    /// As leader: every order is carried out.
    Settled,
    /// As leader: the address is served there.
    Moved(IpAddr, Pnn),
}

/// What a look at a wait finds.
pub(super) enum Step {
    /// There is an answer.
    Answered(Answer),
    /// Not yet.
    Stay(Wait),
    /// The next thing to wait for.
    Next(Wait),
    /// The effect is there.
    Finished,
    /// It cannot come.
    Failed(ApiError),
}

struct Pending {
    wait: Wait,
    until: BootTime,
    done: Done,
    reply: Reply,
}

struct Forward {
    to: Pnn,
    until: BootTime,
    reply: Reply,
}

/// Actions that are under way.
#[derive(Default)]
pub(super) struct Actions {
    pending: Vec<Pending>,
    forwards: BTreeMap<u64, Forward>,
    next_id: u64,
    /// Answers that are to be given.
    ready: Vec<(Reply, Answer)>,
}

impl Actions {
    /// An answer that came later.
    pub(super) fn answer(&mut self, reply: Reply, answer: Answer) {
        self.ready.push((reply, answer));
    }

    /// The link with a peer is gone: what it was asked stays unanswered.
    pub(super) fn lost(&mut self, pnn: Pnn) {
        let lost: Vec<u64> = self
            .forwards
            .iter()
            .filter(|(_, forward)| forward.to == pnn)
            .map(|(id, _)| *id)
            .collect();
        for id in lost {
            if let Some(forward) = self.forwards.remove(&id) {
                let error = ApiError::new(
                    502,
                    "node_lost",
                    format!(
                        "the link with node {pnn} ended before it answered; look at `ctdb status`"
                    ),
                );
                self.ready.push((forward.reply, Err(error)));
            }
        }
    }

    /// A peer answers.
    pub(super) fn answered(&mut self, from: Pnn, id: u64, result: Result<String, OperationError>) {
        let Some(forward) = self.forwards.remove(&id) else {
            return;
        };
        if forward.to != from {
            self.forwards.insert(id, forward);
            return;
        }
        let answer = match result {
            Ok(text) => serde_json::from_str(&text).map_err(|error| {
                let text = format!("node {from} gave an answer that is no JSON: {error}");
                ApiError::new(502, "bad_answer", text)
            }),
            Err(error) => Err(ApiError::new(error.status, &error.code, error.message)),
        };
        self.ready.push((forward.reply, answer));
    }

    fn has_room(&self) -> bool {
        self.pending.len() + self.forwards.len() < MAX_PENDING
    }
}

pub(super) fn json(value: &impl serde::Serialize) -> Answer {
    serde_json::to_value(value)
        .map_err(|error| ApiError::new(500, "internal", format!("cannot be put in JSON: {error}")))
}

pub(super) fn no_leader() -> ApiError {
    ApiError::new(
        503,
        "no_leader",
        "the cluster has no leader; `ctdb cluster status` shows which nodes answer",
    )
}

impl Node {
    /// A client's command.
    pub(super) fn command(&mut self, command: Command) {
        self.changed();
        let Command {
            action,
            node,
            reply,
        } = command;
        self.action(action, node, Reply::Client(reply));
    }

    /// What a client of the client socket asks for.
    pub(super) fn ask(&mut self, ask: Ask) {
        self.changed();
        let reply = Reply::Control(ask.reply);
        match ask.kind {
            AskKind::Act(action) => self.action(action, None, reply),
            AskKind::SetTunable(tunable, value) => {
                self.parts.values.set(tunable, value);
                if let Some(view) = self
                    .parts
                    .tunables
                    .iter_mut()
                    .find(|view| view.name == tunable.name())
                {
                    view.value = value;
                }
                tracing::info!("tunable {} is {value}", tunable.name());
                let policy = self.parts.values.policy();
                self.input(Input::Policy(policy));
                self.actions.ready.push((reply, Ok(Value::Null)));
            }
            AskKind::BanSeconds => {
                let now = boot_now();
                let left = self
                    .parts
                    .local
                    .banned_until()
                    .map_or(0, |until| until.since(now).as_secs().max(1));
                self.actions.ready.push((reply, Ok(Value::from(left))));
            }
        }
    }

    pub(super) fn action(&mut self, action: Action, node: Option<Pnn>, reply: Reply) {
        if !self.actions.has_room() {
            let error = ApiError::new(503, "busy", "too many commands are under way; try again");
            self.actions.ready.push((reply, Err(error)));
            return;
        }
        let me = self.parts.me;
        match (node, action.scope()) {
            (Some(other), Scope::Node) if other != me => self.forward(other, &action, reply),
            (_, Scope::Leader) => match self.leader() {
                Some(leader) if leader == me => self.carry_out(action, reply),
                Some(leader) => self.forward(leader, &action, reply),
                // Without a leader a question can still be answered from what is known here.
                None if matches!(action, Action::Leader) => self.carry_out(action, reply),
                None => self.actions.ready.push((reply, Err(no_leader()))),
            },
            _ => self.carry_out(action, reply),
        }
    }

    pub(super) fn leader(&self) -> Option<Pnn> {
        self.parts
            .coordinator
            .status()
            .and_then(|status| status.leader)
            .map(|term| term.leader)
    }

    fn forward(&mut self, to: Pnn, action: &Action, reply: Reply) {
        let call = api::http_of(action, to);
        self.actions.next_id += 1;
        let id = self.actions.next_id;
        let operation = Operation::Api {
            method: call.method.to_owned(),
            path: call.path,
            body: call.body,
        };
        if self
            .parts
            .transport
            .send(to, &PeerFrame::Request { id, operation })
        {
            let until = boot_now() + ANSWER;
            self.actions
                .forwards
                .insert(id, Forward { to, until, reply });
        } else {
            let error = ApiError::new(
                502,
                "node_unreachable",
                format!("no link with node {to}; `ctdb status` shows why"),
            );
            self.actions.ready.push((reply, Err(error)));
        }
    }

    /// The leader bans a node that failed too often. It is asked once; if that is lost, it fails on.
    pub(super) fn ban(&mut self, pnn: Pnn, seconds: u32, why: String) {
        let text = format!("node {pnn} is to be banned for {seconds} seconds: {why}");
        tracing::error!("{text}");
        self.parts
            .history
            .add("ban", Some(pnn.get()), text, &[], &[]);
        let action = Action::Node {
            verb: NodeVerb::Ban,
            seconds: Some(seconds),
            reason: Some(why),
        };
        // Nobody waits for the answer.
        let (reply, _) = oneshot::channel();
        if pnn == self.parts.me {
            self.carry_out(action, Reply::Step(reply));
        } else {
            self.forward(pnn, &action, Reply::Step(reply));
        }
    }

    /// Another node passes an action on; it must be for this one.
    pub(super) fn remote_request(&mut self, from: Pnn, id: u64, operation: Operation) {
        let Operation::Api { method, path, body } = operation;
        let reply = Reply::Peer(from, id);
        match api::action_of_target(&method, &path, body.as_bytes()).map(|parsed| parsed.wanted) {
            // Never passed on twice: a leader that is none any more says so.
            Ok(Wanted::Action(action))
                if action.scope() == Scope::Leader && self.leader() != Some(self.parts.me) =>
            {
                self.actions.ready.push((reply, Err(no_leader())));
            }
            Ok(Wanted::Action(action)) => self.action(action, None, reply),
            Ok(Wanted::Read(read)) => {
                let answer = api::render(&self.snapshot(), &read);
                self.actions.ready.push((reply, answer));
            }
            Ok(Wanted::Database(_)) => {
                let text = "databases are asked on the node itself";
                let error = ApiError::new(400, "bad_request", text);
                self.actions.ready.push((reply, Err(error)));
            }
            Err(error) => self.actions.ready.push((reply, Err(error))),
        }
    }

    fn carry_out(&mut self, action: Action, reply: Reply) {
        let answer = match action {
            Action::Node {
                verb,
                seconds,
                reason,
            } => {
                return self.verb(verb, seconds, reason, reply);
            }
            Action::Move { address, to } => return self.move_address(address, to, reply),
            Action::Reallocate => {
                self.input(Input::Reallocate(NodeSet::EMPTY));
                let message = "addresses are where they shall be".to_owned();
                return self.wait(
                    Wait::Settled,
                    Done {
                        changed: true,
                        message,
                    },
                    reply,
                );
            }
            Action::ReloadAddresses => match (self.parts.reload)() {
                Ok(addresses) => {
                    let message = format!("{} public addresses", addresses.len());
                    return self.take_addresses(Ok(addresses), message, reply);
                }
                Err(text) => Err(ApiError::new(422, "bad_configuration", text)),
            },
            Action::AddAddress {
                address,
                prefix,
                interfaces,
            } => return self.add_address(address, prefix, &interfaces, reply),
            Action::RemoveAddress { address } => return self.remove_address(address, reply),
            Action::Announce { address, interface } => self.announce(address, interface),
            Action::InterfaceLink { name, up } => match self.parts.local.hold_link(&name, up) {
                Ok(changed) => {
                    self.links_changed();
                    let message = format!("{name} is taken for {}", if up { "up" } else { "down" });
                    let done = Done { changed, message };
                    if changed {
                        return self.wait(Wait::Leader, done, reply);
                    }
                    // 10.interface says so at each `monitor`, which a takeover run would give up.
                    json(&done)
                }
                Err(error) => Err(ApiError::new(404, "no_such_interface", error.to_string())),
            },
            Action::LogLevel { level } => match LogLevel::parse(&level) {
                Some(level) => {
                    self.parts.log.set_level(level);
                    let changed = level != self.parts.log_level;
                    self.parts.log_level = level;
                    json(&Done {
                        changed,
                        message: format!("log level is {}", level.name()),
                    })
                }
                None => Err(ApiError::new(
                    400,
                    "bad_level",
                    format!("'{level}' is no log level; use ERROR, WARNING, NOTICE, INFO or DEBUG"),
                )),
            },
            Action::Capabilities { leader, lmaster } => {
                let changed = self.parts.local.set_roles(leader, lmaster);
                self.local_changed();
                json(&Done {
                    changed,
                    message: "roles are set until the daemon's next start".to_owned(),
                })
            }
            Action::Leader => json(&self.leader_view()),
            Action::History => json(&HistoryView {
                records: self.parts.history.records().cloned().collect(),
            }),
            Action::Read { path } => api::render_path(&self.snapshot(), &path),
            Action::NodesSource => {
                let wait = self.nodes_source();
                return self.wait(wait, Done::default(), reply);
            }
            Action::ReloadNodes { dry_run } => {
                let wait = self.reload_nodes(dry_run);
                return self.wait_for(RELOAD, wait, Done::default(), reply);
            }
            Action::ApplyNodes { nodes, part } => match self.apply_nodes(nodes, part) {
                Ok(wait) => return self.wait(wait, Done::default(), reply),
                Err(answer) => answer,
            },
            Action::Lock => match &self.parts.lock {
                Some(lock) => json(&lock.view()),
                None => Err(ApiError::new(
                    404,
                    "no_lock",
                    "there is no cluster lock; `[cluster] cluster lock` names one",
                )),
            },
            Action::DatabaseClients => json(&DatabaseClientsView {
                node: self.parts.me.get(),
                clients: self.parts.clients.list(),
            }),
            Action::Processes => json(&self.parts.children.list()),
            Action::Process { id } => match self.parts.children.show(id) {
                Some(view) => json(&view),
                None => Err(ApiError::new(
                    404,
                    "no_such_process",
                    format!("there is no process {id} in the list; `ctdb process list` shows it"),
                )),
            },
            Action::Events { history } => json(&self.parts.events.store.list(history)),
            Action::EventStatus { component, event } => self.event_status(&component, &event),
            Action::EventScripts { component } => self.event_scripts(&component),
            Action::EventScript {
                component,
                script,
                enable,
            } => self.event_script(&component, &script, enable),
            Action::EventRun {
                component,
                event,
                args,
                seconds,
                all,
            } => {
                let event = Event { name: event, args };
                let limit = seconds.map(|seconds| Duration::from_secs(seconds.into()));
                return self.event_run(&component, event, limit, all, reply);
            }
            Action::Connections(action) => return self.connections(action, reply),
            Action::Plan => self.plan(),
            Action::Why { address } => self.why(address),
        };
        self.actions.ready.push((reply, answer));
    }

    fn verb(&mut self, verb: NodeVerb, seconds: Option<u32>, reason: Option<String>, reply: Reply) {
        let now = boot_now();
        let me = self.parts.me;
        if verb == NodeVerb::Ban && !self.parts.values.on(Tunable::EnableBans) {
            let text = "no node is banned while the tunable EnableBans is 0; `ctdb node stop` takes \
                        one out of the cluster";
            let error = ApiError::new(409, "bans_disabled", text);
            self.actions.ready.push((reply, Err(error)));
            return;
        }
        let changed = match self.parts.local.verb(now, verb, seconds, reason.clone()) {
            Ok(changed) => changed,
            Err(error @ (LocalError::NoBanTime | LocalError::BanTooLong(_))) => {
                let error = ApiError::new(400, "bad_ban_time", error.to_string());
                self.actions.ready.push((reply, Err(error)));
                return;
            }
            Err(error) => {
                let error = ApiError::new(409, "leaving", error.to_string());
                self.actions.ready.push((reply, Err(error)));
                return;
            }
        };
        let word = match verb {
            NodeVerb::Disable => "disabled",
            NodeVerb::Enable => "enabled",
            NodeVerb::Stop => "stopped",
            NodeVerb::Start => "started",
            NodeVerb::Ban => "banned",
            NodeVerb::Unban => "unbanned",
            NodeVerb::Shutdown => "shutting down",
        };
        if changed {
            let why = reason
                .map(|reason| format!(": {reason}"))
                .unwrap_or_default();
            let length = seconds
                .map(|s| format!(" for {s} seconds"))
                .unwrap_or_default();
            let text = format!("node {me} {word}{length}{why}");
            tracing::warn!("{text}");
            if verb == NodeVerb::Ban {
                // CTDB's words, which monitoring looks for.
                tracing::warn!("Banning node {me}{length}");
            }
            let kind = if verb == NodeVerb::Ban { "ban" } else { "node" };
            self.parts.history.add(kind, Some(me.get()), text, &[], &[]);
        }
        self.local_changed();
        let done = Done {
            changed,
            message: format!("node {me} is {word}"),
        };
        match verb {
            NodeVerb::Shutdown => {
                let answer = json(&done);
                self.actions.ready.push((reply, answer));
            }
            NodeVerb::Disable | NodeVerb::Stop | NodeVerb::Ban => {
                self.wait(Wait::Emptied, done, reply);
            }
            NodeVerb::Enable | NodeVerb::Start | NodeVerb::Unban => {
                self.wait(Wait::Leader, done, reply);
            }
        }
    }

    fn move_address(&mut self, address: IpAddr, to: u32, reply: Reply) {
        let situation = self.parts.coordinator.situation();
        let refuse = |status, code, text: String| Err(ApiError::new(status, code, text));
        let target = Pnn::new(to)
            .ok()
            .filter(|pnn| self.parts.coordinator.config().voters.contains(*pnn));
        let refused = match (target, situation.able.get(&address)) {
            (None, _) => refuse(404, "no_such_node", format!("Node {to} does not exist")),
            (_, None) => refuse(
                404,
                "no_such_address",
                format!("no node names the public address {address}; see `ctdb ip list`"),
            ),
            (Some(pnn), Some(able)) if !able.contains(pnn) => refuse(
                409,
                "cannot_host",
                format!(
                    "Node {to} CANNOT host IP address {address}; `ctdb ip why {address}` says why"
                ),
            ),
            (Some(pnn), Some(_)) => {
                self.input(Input::Move(address, pnn));
                let message = format!("{address} is served by node {to}");
                return self.wait(
                    Wait::Moved(address, pnn),
                    Done {
                        changed: true,
                        message,
                    },
                    reply,
                );
            }
        };
        self.actions.ready.push((reply, refused));
    }

    pub(super) fn wait(&mut self, wait: Wait, done: Done, reply: Reply) {
        self.wait_for(EFFECT, wait, done, reply);
    }

    fn wait_for(&mut self, limit: Duration, wait: Wait, done: Done, reply: Reply) {
        if matches!(reply, Reply::Control(_)) && matches!(wait, Wait::Emptied | Wait::Leader) {
            let answer = json(&done);
            self.actions.ready.push((reply, answer));
            return;
        }
        let until = boot_now() + limit;
        self.actions.pending.push(Pending {
            wait,
            until,
            done,
            reply,
        });
    }

    /// Looks at everything that waits; true if something moved on, so that it is worth another look.
    pub(super) fn actions_due(&mut self, now: BootTime) -> bool {
        let mut moved = false;
        for pending in std::mem::take(&mut self.actions.pending) {
            let Pending {
                wait,
                until,
                done,
                reply,
            } = pending;
            match self.look_at(wait) {
                Step::Finished => {
                    let answer = json(&done);
                    self.actions.ready.push((reply, answer));
                    moved = true;
                }
                Step::Answered(answer) => {
                    self.actions.ready.push((reply, answer));
                    moved = true;
                }
                Step::Failed(error) => self.actions.ready.push((reply, Err(error))),
                // It was done here; what others have to do for it is not seen yet.
                Step::Stay(_) | Step::Next(_) if until <= now => {
                    let text = format!(
                        "{}, but the cluster has not settled within {} s; look at `ctdb status` \
                         and `ctdb ip list`",
                        done.message,
                        EFFECT.as_secs()
                    );
                    self.actions
                        .ready
                        .push((reply, Err(ApiError::new(504, "not_settled", text))));
                }
                Step::Stay(wait) => {
                    self.actions.pending.push(Pending {
                        wait,
                        until,
                        done,
                        reply,
                    });
                }
                Step::Next(wait) => {
                    self.actions.pending.push(Pending {
                        wait,
                        until,
                        done,
                        reply,
                    });
                    moved = true;
                }
            }
        }
        self.overdue(now);
        for (reply, answer) in std::mem::take(&mut self.actions.ready) {
            moved |= matches!(reply, Reply::Step(_));
            self.answer(reply, answer);
        }
        moved
    }

    /// Other nodes that do not answer.
    fn overdue(&mut self, now: BootTime) {
        let overdue: Vec<u64> = self
            .actions
            .forwards
            .iter()
            .filter(|(_, forward)| forward.until <= now)
            .map(|(id, _)| *id)
            .collect();
        for id in overdue {
            if let Some(forward) = self.actions.forwards.remove(&id) {
                let text = format!("node {} does not answer; look at `ctdb status`", forward.to);
                self.actions
                    .ready
                    .push((forward.reply, Err(ApiError::new(504, "timeout", text))));
            }
        }
    }

    fn look_at(&mut self, wait: Wait) -> Step {
        let wait = match wait {
            Wait::Source(receiver) => return self.look_at_source(receiver),
            Wait::Apply(applying) => return self.look_at_apply(applying),
            Wait::Reload(reload) => return self.look_at_reload(*reload),
            wait => wait,
        };
        let coordinator = &self.parts.coordinator;
        match wait {
            Wait::Source(_) | Wait::Apply(_) | Wait::Reload(_) => Step::Finished,
            Wait::Emptied => {
                let has_right = coordinator
                    .status()
                    .is_some_and(|status| status.right_until.is_some());
                if coordinator.holder().holds().is_empty() || !has_right {
                    Step::Next(Wait::Leader)
                } else {
                    Step::Stay(Wait::Emptied)
                }
            }
            Wait::Leader if self.leader().is_some() => {
                let (sender, receiver) = oneshot::channel();
                self.action(Action::Reallocate, None, Reply::Step(sender));
                Step::Next(Wait::LeaderAnswers(receiver))
            }
            // Nobody is there who could lead or take anything: it is as done as it can be.
            Wait::Leader
                if coordinator.situation().linked.len() == 1 && !self.parts.local.may_lead() =>
            {
                Step::Finished
            }
            Wait::Leader => Step::Stay(Wait::Leader),
            Wait::LeaderAnswers(mut receiver) => match receiver.try_recv() {
                Ok(Ok(_)) => Step::Finished,
                // The leader changed meanwhile; the next one is asked at the next turn.
                Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => Step::Stay(Wait::Leader),
                Err(oneshot::error::TryRecvError::Empty) => {
                    Step::Stay(Wait::LeaderAnswers(receiver))
                }
            },
            Wait::Settled => match coordinator.leader() {
                Some(leader) if leader.settled() => Step::Finished,
                Some(_) => Step::Stay(Wait::Settled),
                None => Step::Failed(no_leader()),
            },
            Wait::Moved(address, to) => match coordinator.leader() {
                Some(leader) if leader.serves(address) == Some(to) => Step::Finished,
                Some(leader) if leader.whereabouts(address).0 != Some(to) => {
                    let text = format!(
                        "Failed to move IP {address} to node {to}; `ctdb ip why {address}` says why"
                    );
                    Step::Failed(ApiError::new(409, "move_failed", text))
                }
                Some(_) => Step::Stay(Wait::Moved(address, to)),
                None => Step::Failed(no_leader()),
            },
        }
    }

    fn answer(&mut self, reply: Reply, answer: Answer) {
        match reply {
            // Whoever asked may have gone; the action stands.
            Reply::Client(sender) | Reply::Control(sender) | Reply::Step(sender) => {
                drop(sender.send(answer));
            }
            Reply::Peer(pnn, id) => {
                let result = to_peer(answer);
                self.parts
                    .transport
                    .send(pnn, &PeerFrame::Reply { id, result });
            }
        }
    }
}
