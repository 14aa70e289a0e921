//! The main loop: feeds the pure cores and carries out what they ask for.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ctdb_core::authority::{Books, List, LockNews, Mode};
use ctdb_core::coordinator::{Coordinator, Effect, Input};
use ctdb_core::events;
use ctdb_core::holder::{Fate, Work};
use ctdb_core::local::Local;
use ctdb_core::recording::Step;
use ctdb_ebpf::deadman::{DATAGRAM, Deadman, GuardPeer};
use ctdb_wire::api::{ConfigView, Snapshot, TunableView};
use ctdb_wire::connections::Tenure;
use ctdb_wire::heartbeat::{MAX_MESSAGE, Message};
use ctdb_wire::ids::{BootTime, Incarnation, Pnn, RunState};
use ctdb_wire::peer::PeerFrame;
use ipnet::IpNet;
use tokio::sync::watch;

use super::actions::Actions;
use super::events::NodeEvents;
use super::generation::Generation;
use super::history::History;
use super::paths;
use super::record::Record;
use super::snapshot::{self, View};
use crate::clients::Clients;
use crate::clock::{boot_now, wall_now};
use crate::config::{NodesSource, Tunables};
use crate::failover::connections::Feed;
use crate::failover::{Executor, Job, Outcome, Placed};
use crate::liveness::{self, Detector};
use crate::lock::LockClient;
use crate::log::{Log, LogLevel};
use crate::process::Children;
use crate::recorder::Recorder;
use crate::transport::datagram::{SessionKeys, seal_gone};
use crate::transport::{LinkEvent, TransportHandle};

/// How often the main loop shows that it works (MEM-4), and bans and waits are looked at.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Snapshots hold ages; they are made anew this often even if nothing changed.
const REFRESH: Duration = Duration::from_millis(500);

/// A takeover or release is put down to a change that is not older than this.
const CAUSE: Duration = Duration::from_secs(10);

/// What the main loop is made of.
pub(super) struct Parts {
    pub(super) me: Pnn,
    pub(super) incarnation: Incarnation,
    pub(super) quorum: usize,
    pub(super) port: u16,
    /// (number, address, deleted), the whole list.
    pub(super) nodes: Vec<(u32, IpAddr, bool)>,
    /// Networks of the heartbeat sockets, in their order.
    pub(super) local_nets: Vec<IpNet>,
    pub(super) local: Local,
    pub(super) coordinator: Coordinator,
    pub(super) detector: Detector,
    pub(super) transport: TransportHandle,
    pub(super) clients: Clients,
    pub(super) executor: Executor,
    pub(super) connections: Feed,
    pub(super) children: Children,
    pub(super) deadman: Option<Arc<Deadman>>,
    pub(super) snapshot: watch::Sender<Arc<Snapshot>>,
    pub(super) log: Log,
    pub(super) log_level: LogLevel,
    pub(super) cluster_lock: Option<String>,
    pub(super) lock: Option<LockClient>,
    /// Whether the lock gives the right, or is only shown.
    pub(super) lock_decides: bool,
    pub(super) mode: Mode,
    /// Two nodes serve each for itself.
    pub(super) split_brain: bool,
    /// Where the list of voters is recorded.
    pub(super) voters_record: PathBuf,
    pub(super) recorder: Option<Recorder>,
    pub(super) history: History,
    pub(super) events: NodeEvents,
    pub(super) builtin: bool,
    pub(super) tunables: Vec<TunableView>,
    /// The same, and the obsolete ones.
    pub(super) values: Tunables,
    pub(super) config: Arc<ConfigView>,
    pub(super) reload: super::settings::Reload,
    pub(super) nodes_source: NodesSource,
}

/// The main loop's state.
pub(super) struct Node {
    pub(super) parts: Parts,
    pub(super) actions: Actions,
    generation: Generation,
    started_at: f64,
    /// Inputs that follow from what was just done.
    inputs: VecDeque<Input>,
    /// What the local view changed, to be said to all.
    local_changed: bool,
    told_eligible: Option<bool>,
    told_books: Books,
    /// Commands that the detector had no room for.
    unsaid: VecDeque<liveness::Command>,
    pub(super) dirty: bool,
    published_at: BootTime,
    /// Clients are to be told of a new generation, when they can see it.
    reconfigured: bool,
    /// How recoveries stand, as the machine of events knows it.
    pub(super) told_recovery: Option<events::Recovery>,
    /// Clients are to be told that addresses have been distributed, when they can see where.
    pub(super) reallocated: bool,
    /// Whether the right has been there, for the log.
    warned_alone: bool,
    /// What last changed in the cluster: takeovers and releases that follow are put down to it.
    cause: Option<(BootTime, String)>,
    /// The list that the detector was told of (R24).
    pub(super) told_list: List,
    pub(super) record: Record,
}

impl Node {
    pub(super) fn new(parts: Parts) -> Self {
        let mut node = Self {
            actions: Actions::default(),
            generation: Generation::default(),
            started_at: wall_now(),
            inputs: VecDeque::new(),
            local_changed: true,
            told_eligible: None,
            told_books: Books::default(),
            unsaid: VecDeque::new(),
            dirty: true,
            published_at: BootTime::ZERO,
            reconfigured: false,
            told_recovery: None,
            reallocated: false,
            warned_alone: false,
            cause: None,
            told_list: List {
                voters: parts.coordinator.config().voters,
                quorum: parts.coordinator.config().quorum,
            },
            record: Record::new(parts.voters_record.clone()),
            parts,
        };
        node.parts.local.advance(RunState::Init);
        node
    }

    /// Everything after something has happened: decide, act, show.
    pub(super) fn step(&mut self) {
        let now = boot_now();
        self.parts.detector.progress(now);
        self.follow_detector(now);
        self.settle_inputs(now);
        // An action can take some steps at once; the bound guards against a bug.
        for _ in 0..8 {
            let moved = self.actions_due(now);
            self.settle_inputs(now);
            if !moved {
                break;
            }
        }
        self.follow_events();
        self.settle_inputs(now);
        self.tell_fates(now);
        self.tell_list();
        self.tell_eligible();
        self.record_voters(now);
        self.want_lock(now);
        self.tell_books(now);
        self.tell_addresses();
        self.follow_generation(now);
        self.follow_databases(now);
        self.publish(now);
    }

    /// Time has passed.
    pub(super) fn tick(&mut self) {
        let now = boot_now();
        if self.parts.local.tick(now) {
            tracing::warn!("Banning timed out");
            self.parts.history.add(
                "ban",
                Some(self.parts.me.get()),
                "Banning timed out".to_owned(),
                &[],
                &[],
            );
            self.local_changed = true;
        }
        self.parts.executor.flush();
        self.parts.clients.tick(now);
        self.parts.connections.flush();
        self.flush_unsaid();
        self.event(events::Input::Tick);
        self.inputs.push_back(Input::Tick);
    }

    pub(super) fn changed(&mut self) {
        self.dirty = true;
    }

    pub(super) fn local_changed(&mut self) {
        self.local_changed = true;
        self.dirty = true;
    }

    pub(super) fn input(&mut self, input: Input) {
        self.inputs.push_back(input);
        self.dirty = true;
    }

    /// Level-triggered: whatever has woken the loop, decisions are made on the newest state.
    fn follow_detector(&mut self, now: BootTime) {
        let status = self.parts.detector.status();
        let (right, leader) = (status.right_until.is_some(), status.leader.is_some());
        // Services start when the databases are served; a node that stands aside has none to serve.
        let ready = self.parts.clients.databases_ready() || self.parts.local.flags().is_inactive();
        if self.parts.local.observe(right, leader && ready) {
            tracing::warn!("Recovery complete; services start");
            self.local_changed = true;
            self.event(events::Input::Serve);
        }
        let late = self
            .parts
            .coordinator
            .status()
            .map_or(0, |old| old.late_ticks);
        if status.late_ticks > late {
            tracing::warn!(
                late_ticks = status.late_ticks,
                "the detector ran late; this host is overloaded or was paused"
            );
        }
        if self.local_changed {
            self.local_changed = false;
            self.dirty = true;
            // R9: the coordinator stops acting on this before the detector is told.
            let info = self.parts.local.info();
            self.handle(now, Input::Info(info));
        }
        self.handle(now, Input::Status(Box::new(status)));
    }

    /// What the databases say of connections that are here from a former right, once they know (MEM-3).
    /// Addresses that scripts put up are not silenced, so there it changes nothing.
    fn tell_fates(&mut self, now: BootTime) {
        let (epoch, slot, asking) = self.parts.coordinator.holder().asking();
        let asking: Vec<IpAddr> = asking.collect();
        if asking.is_empty() {
            return;
        }
        let fates = if self.parts.builtin {
            self.parts.clients.fates(slot, &asking)
        } else {
            asking.into_iter().map(|a| (a, Fate::Kept)).collect()
        };
        if !fates.is_empty() {
            self.handle(now, Input::Fates { epoch, fates });
            self.settle_inputs(now);
        }
    }

    fn settle_inputs(&mut self, now: BootTime) {
        loop {
            while let Some(input) = self.inputs.pop_front() {
                self.handle(now, input);
            }
            if !self.local_changed {
                return;
            }
            self.local_changed = false;
            self.dirty = true;
            let info = self.parts.local.info();
            self.handle(now, Input::Info(info));
        }
    }

    /// `[log] record`
    pub(super) fn record(&mut self, step: Step) {
        self.parts.recorder = self.parts.recorder.take().filter(|one| one.step(step));
    }

    pub(super) fn handle(&mut self, now: BootTime, input: Input) {
        let recorded = self.parts.recorder.is_some().then(|| input.clone());
        let effects = self.parts.coordinator.handle(now, input);
        if let Some(input) = recorded {
            self.record(Step::Node {
                at: now,
                input,
                effects: effects.clone(),
            });
        }
        for effect in effects {
            match effect {
                Effect::Send(pnn, frame) => {
                    self.parts.transport.send(pnn, &frame);
                }
                Effect::Work(work) => self.work(work),
                Effect::Ban { pnn, seconds, why } => self.ban(pnn, seconds, why),
                Effect::Note(note) => {
                    self.dirty = true;
                    tracing::warn!(kind = %note.kind, "{}", note.text);
                    self.cause = Some((now, note.text.clone()));
                    let node = note.node.map(Pnn::get);
                    self.parts
                        .history
                        .add(&note.kind, node, note.text, &note.addresses, &[]);
                }
            }
        }
    }

    fn work(&mut self, work: Work) {
        self.dirty = true;
        match work {
            Work::Take {
                epoch,
                slot,
                addresses,
                end,
            } => {
                let mut placed = Vec::new();
                let mut failed = Vec::new();
                for address in addresses {
                    match self.parts.local.place(address) {
                        Ok((net, interface)) => placed.push(Placed { net, interface }),
                        Err(reason) => failed.push((address, Err(reason))),
                    }
                }
                if !failed.is_empty() {
                    self.inputs.push_back(Input::Taken {
                        epoch,
                        results: failed,
                    });
                }
                if !self.parts.builtin {
                    for place in placed {
                        self.script_take(epoch, place.net, &place.interface);
                    }
                } else if !placed.is_empty() {
                    let order = self.parts.coordinator.holder().last_order();
                    let hold = self.holds_for_scripts();
                    self.parts.executor.submit(Job::Take {
                        epoch,
                        slot,
                        tenure: order.map(|(term, seq)| Tenure { term, seq }),
                        addresses: placed,
                        hold,
                        end,
                    });
                }
            }
            Work::Release { addresses } if !self.parts.builtin => {
                for address in addresses {
                    self.script_release(address);
                }
            }
            Work::Release { addresses } => self.parts.executor.submit(Job::Release { addresses }),
            Work::Discard { addresses } => {
                for address in &addresses {
                    self.parts.local.unplace(*address);
                }
                self.note_hosted();
                self.local_changed = true;
                self.parts.clients.ended(&addresses);
                self.parts.executor.submit(Job::Discard { addresses });
            }
        }
    }

    /// The executor says what came of its work.
    pub(super) fn outcome(&mut self, outcome: Outcome) {
        self.dirty = true;
        let me = Some(self.parts.me.get());
        match outcome {
            Outcome::Taken {
                epoch,
                results,
                phases,
            } => {
                let mut taken = Vec::new();
                for (address, result) in &results {
                    match result {
                        Ok(()) => {
                            taken.push(*address);
                            self.parts.clients.taken(*address);
                            let interface = self.parts.local.interface_of(*address).unwrap_or("?");
                            tracing::warn!("Takeover of IP {address} on interface {interface}");
                        }
                        Err(reason) => {
                            tracing::error!(%address, reason, "takeover failed and was undone");
                            self.parts.local.unplace(*address);
                            let text = format!("takeover of {address} failed: {reason}");
                            self.parts
                                .history
                                .add("takeover", me, text, &[*address], &[]);
                        }
                    }
                }
                if !taken.is_empty() {
                    self.parts.clients.ended(&taken);
                    let text = self.with_cause(format!("took over {} addresses", taken.len()));
                    self.parts
                        .history
                        .add("takeover", me, text, &taken, &phases);
                    let carried = self.carried(&taken);
                    self.told_taken(&carried);
                }
                self.local_changed = true;
                self.inputs.push_back(Input::Taken { epoch, results });
            }
            Outcome::Released { addresses, phases } => {
                let carried = self.carried(&addresses);
                for address in &addresses {
                    let interface = self.parts.local.interface_of(*address).unwrap_or("?");
                    tracing::warn!("Release of IP {address} on interface {interface}");
                    self.parts.clients.released(*address);
                    self.parts.local.unplace(*address);
                }
                let text = self.with_cause(format!("released {} addresses", addresses.len()));
                self.parts
                    .history
                    .add("release", me, text, &addresses, &phases);
                self.local_changed = true;
                self.inputs.push_back(Input::Released(addresses));
                self.told_released(&carried);
            }
            Outcome::Removed {
                addresses,
                connections,
                udp,
            } => {
                if connections + udp > 0 {
                    let text = match udp {
                        0 => format!("ended {connections} connections"),
                        _ => {
                            format!("ended {connections} connections, silenced {udp} UDP services")
                        }
                    };
                    tracing::info!(
                        connections,
                        count = addresses.len(),
                        "connections to released addresses ended"
                    );
                    self.parts
                        .history
                        .add("connections", me, text, &addresses, &[]);
                }
            }
            Outcome::Links(links) => {
                let links = links.iter().map(|(name, up)| (name.as_str(), *up));
                if self.parts.local.set_links(links) {
                    tracing::warn!("links of this host changed");
                    self.links_changed();
                }
            }
            Outcome::Closed => {}
        }
    }

    /// Network and interface of addresses that this node carries.
    fn carried(&self, addresses: &[IpAddr]) -> Vec<(IpNet, String)> {
        let local = &self.parts.local;
        let net = |address: &IpAddr| {
            let public = local
                .addresses()
                .iter()
                .find(|one| one.net.addr() == *address)?;
            Some((public.net, local.interface_of(*address)?.to_owned()))
        };
        addresses.iter().filter_map(net).collect()
    }

    /// With what changed shortly before, if anything did.
    fn with_cause(&self, text: String) -> String {
        match &self.cause {
            Some((at, cause)) if boot_now().since(*at) < CAUSE => format!("{text}, after: {cause}"),
            _ => text,
        }
    }

    /// Addresses follow to interfaces whose link is up; the rest is the leader's decision.
    pub(super) fn links_changed(&mut self) {
        let moves = self.parts.local.relocate();
        if !moves.is_empty() {
            self.told_moved(&moves);
            self.parts.executor.submit(Job::Relocate(moves));
        }
        self.local_changed();
    }

    /// A link's events.
    pub(super) fn link(&mut self, event: LinkEvent) {
        self.dirty = true;
        match event {
            LinkEvent::Up {
                pnn,
                incarnation,
                session,
                ..
            } => {
                self.prepare_guard(pnn, &session);
                let address = self
                    .parts
                    .nodes
                    .iter()
                    .find(|(number, ..)| *number == pnn.get())
                    .map(|(_, address, _)| (*address, self.parts.port).into());
                let paths = paths::pair(&self.parts.local_nets, address.as_slice());
                self.tell_detector(liveness::Command::Session {
                    pnn,
                    incarnation,
                    keys: Box::new(session),
                    paths,
                });
                self.parts.connections.link_up(pnn, incarnation);
                self.inputs.push_back(Input::LinkUp(pnn, incarnation));
            }
            LinkEvent::Down { pnn, .. } => {
                self.actions.lost(pnn);
                self.parts.connections.link_down(pnn);
                self.inputs.push_back(Input::LinkDown(pnn));
            }
            // In order behind its `Up`, so it is of that life.
            LinkEvent::Frame { pnn, frame, .. } => self.frame(pnn, frame),
        }
    }

    fn frame(&mut self, pnn: Pnn, frame: PeerFrame) {
        match frame {
            PeerFrame::Request { id, operation } => self.remote_request(pnn, id, operation),
            PeerFrame::Reply { id, result } => self.actions.answered(pnn, id, result),
            PeerFrame::Connections(frame) => self.parts.connections.frame(pnn, frame),
            PeerFrame::Info(info) => {
                let known = self.parts.coordinator.peer(pnn).info.as_ref();
                if known.is_none_or(|known| known.paths != info.paths) {
                    let paths = paths::pair(&self.parts.local_nets, &info.paths);
                    self.tell_detector(liveness::Command::Paths(pnn, paths));
                }
                self.inputs
                    .push_back(Input::Frame(pnn, PeerFrame::Info(info)));
            }
            frame => self.inputs.push_back(Input::Frame(pnn, frame)),
        }
    }

    /// What the guard will say to this peer if the daemon dies (R19).
    fn prepare_guard(&self, pnn: Pnn, session: &SessionKeys) {
        let Some(deadman) = &self.parts.deadman else {
            return;
        };
        let Some((_, address, _)) = self
            .parts
            .nodes
            .iter()
            .find(|(number, ..)| *number == pnn.get())
        else {
            return;
        };
        let mut plain = [0; MAX_MESSAGE];
        let gone = Message::Gone {
            incarnation: self.parts.incarnation,
        };
        let length = gone.encode(&mut plain);
        let mut datagram = [0; DATAGRAM];
        let sealed = seal_gone(
            &session.send_key,
            session.session_id,
            self.parts.me,
            &plain[..length],
            &mut datagram,
        );
        let local = self.parts.local_nets.first().map_or(*address, IpNet::addr);
        let peer = GuardPeer {
            address: (*address, self.parts.port).into(),
            local: (local, 0).into(),
            datagram,
            length: sealed as u8,
        };
        deadman.set_peer(pnn.index(), Some(peer));
    }

    /// With `authority = majority` the leader holds a configured lock, as with CTDB, and it
    /// decides nothing (`design.md` section 4).
    fn want_lock(&self, now: BootTime) {
        let Some(lock) = &self.parts.lock else { return };
        let coordinator = &self.parts.coordinator;
        lock.want(if self.parts.lock_decides {
            coordinator
                .status()
                .is_some_and(|status| status.lock_wanted)
        } else {
            coordinator.acting(now).is_some()
        });
    }

    /// The cluster lock was taken, proved or lost.
    pub(super) fn lock_event(&mut self, event: LockNews) {
        if self.parts.lock_decides {
            self.tell_detector(liveness::Command::Lock(event));
        }
        let text = match event {
            LockNews::Held {
                asked_at,
                granted_at,
                ..
            } => {
                let took = granted_at.since(asked_at);
                self.note_lock("cluster lock taken", &[("helper", took)]);
                return;
            }
            LockNews::Proved { .. } => return,
            LockNews::Lost { .. } => "cluster lock lost or let go",
        };
        self.note_lock(text, &[]);
    }

    fn note_lock(&mut self, text: &str, phases: &[(&str, Duration)]) {
        self.dirty = true;
        let me = Some(self.parts.me.get());
        self.parts
            .history
            .add("lock", me, text.to_owned(), &[], phases);
    }

    fn tell_eligible(&mut self) {
        let eligible = self.parts.local.may_lead();
        if self.told_eligible != Some(eligible) {
            self.told_eligible = Some(eligible);
            self.tell_detector(liveness::Command::Eligible(eligible));
        }
    }

    /// What only frames tell, and that the coordinator has stopped acting (R9, R14, R15).
    fn tell_books(&mut self, now: BootTime) {
        let books = self.parts.coordinator.books(now);
        if books != self.told_books {
            self.told_books = books;
            self.tell_detector(liveness::Command::Books(books));
        }
    }

    /// Whose connections are to be tracked: to any public address that any node names.
    fn tell_addresses(&mut self) {
        if !self.dirty {
            return;
        }
        let coordinator = &self.parts.coordinator;
        let own = coordinator.info();
        let nodes = coordinator.config().voters.iter();
        let peers = nodes.filter_map(|pnn| coordinator.peer(pnn).info.as_ref());
        let addresses = peers
            .chain([own])
            .flat_map(|info| &info.addresses)
            .map(|public| public.net.addr())
            .collect();
        self.parts.connections.public(addresses);
    }

    pub(super) fn tell_detector(&mut self, command: liveness::Command) {
        self.unsaid.push_back(command);
        self.flush_unsaid();
    }

    pub(super) fn flush_unsaid(&mut self) {
        while let Some(command) = self.unsaid.pop_front() {
            if let Err(refused) = self.parts.detector.command(command) {
                tracing::warn!("the detector does not take commands; trying again");
                self.unsaid.push_front(*refused);
                return;
            }
        }
    }

    fn follow_generation(&mut self, now: BootTime) {
        let status = self.parts.coordinator.status();
        let serving = status.filter(|status| status.right_until.is_some());
        let term = serving.and_then(|status| status.leader);
        let members = if term.is_some() {
            snapshot::active_lmasters(&self.parts.coordinator, now)
        } else {
            Vec::new()
        };
        if self.generation.follow(term, members, wall_now()) {
            self.dirty = true;
            self.reconfigured = true;
        }
        if serving.is_none()
            && !self.warned_alone
            && self.parts.local.run_state() < RunState::Running
            && now.since(self.started()) > Duration::from_secs(10)
        {
            self.warned_alone = true;
            tracing::error!(
                quorum = self.parts.quorum,
                "no right to serve since the start: fewer than the quorum of the configured nodes \
                 answer; see `ctdb cluster status`"
            );
        }
    }

    pub(super) fn shown_generation(&self) -> Option<u32> {
        self.generation.current()
    }

    fn started(&self) -> BootTime {
        let age = wall_now() - self.started_at;
        boot_now() - Duration::from_secs_f64(age.max(0.0))
    }

    fn publish(&mut self, now: BootTime) {
        if !self.dirty && now.since(self.published_at) < REFRESH {
            return;
        }
        self.dirty = false;
        self.published_at = now;
        let snapshot = self.snapshot();
        self.parts.snapshot.send_replace(Arc::new(snapshot));
        self.tell_clients();
    }

    /// What clients are told of changes, once they can see them.
    fn tell_clients(&mut self) {
        if std::mem::take(&mut self.reconfigured) && self.generation.current().is_some() {
            self.parts.clients.reconfigured();
        }
        if std::mem::take(&mut self.reallocated) {
            self.parts.clients.reallocated();
        }
    }

    /// The state as it is now.
    pub(super) fn snapshot(&self) -> Snapshot {
        snapshot::make(&View {
            now: boot_now(),
            coordinator: &self.parts.coordinator,
            local: &self.parts.local,
            nodes: &self.parts.nodes,
            quorum: self.parts.quorum,
            generation: &self.generation,
            cluster_lock: self.parts.cluster_lock.as_deref(),
            log_level: self.parts.log_level.name(),
            builtin: self.parts.builtin,
            started_at: self.started_at,
            clients: self.parts.clients.count(),
            tunables: &self.parts.tunables,
            config: &self.parts.config,
            connections: self.parts.connections.stats(),
        })
    }
}
