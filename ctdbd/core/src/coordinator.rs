//! The main loop's half of a node: what it says of itself, what it knows of the others, its
//! holder, and while it acts as leader the books of the term.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ctdb_wire::ids::{
    BootTime, Epoch, Incarnation, MAX_NODES, NodeFlags, NodeSet, Pnn, RunState, Term,
};
use ctdb_wire::peer::{HolderState, NodeInfo, PeerFrame, Placement};
use serde::{Deserialize, Serialize};

use crate::allocation::Policy;
use crate::authority::{Books, List, Status};
use crate::holder::{Fate, Holder, Work};
use crate::leader::{Leader, Situation};
use crate::members::{self, Members};
use crate::planted::{Bug, Planted};

/// What does not change while the daemon runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// This node.
    pub me: Pnn,
    /// Configured nodes, deleted ones left out.
    pub voters: NodeSet,
    /// So many nodes must obey, or the leader leaves it to another; 1 where the lock decides.
    pub quorum: usize,
    /// Place holders in the nodes list.
    pub deleted: NodeSet,
    /// Lines of the nodes list that take a number.
    pub list_length: usize,
    /// A node without right for longer than this takes its addresses off.
    pub give_up: Duration,
    /// `home_nodes` file.
    pub home_nodes: BTreeMap<IpAddr, Pnn>,
    /// `[failover] disabled`.
    pub failover_disabled: bool,
    /// Planted bugs of the simulator.
    #[serde(skip)]
    pub planted: Planted,
}

/// What happens to the main loop.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Input {
    /// The detector's state changed.
    Status(Box<Status>),
    /// A link came up: a handshake fixed the incarnation.
    LinkUp(Pnn, Incarnation),
    /// A link ended. This proves nothing about the peer (R19).
    LinkDown(Pnn),
    /// A frame of the peer's current incarnation.
    Frame(Pnn, PeerFrame),
    /// What this node says of itself changed (version is set here).
    Info(NodeInfo),
    /// A [`Work::Take`] ended.
    Taken {
        /// The epoch of the work.
        epoch: Epoch,
        /// Result for each address.
        results: Vec<(IpAddr, Result<(), String>)>,
    },
    /// A [`Work::Release`] reached silence.
    Released(Vec<IpAddr>),
    /// What the databases say of addresses that wait for it ([`Holder::asking`]).
    Fates {
        /// The epoch that they were asked for.
        epoch: Epoch,
        /// Those of which it is known.
        fates: Vec<(IpAddr, Fate)>,
    },
    /// Time passes; at least every 100 ms.
    Tick,
    /// Leader only: compute allocation anew, with forced targets, and tell of the run.
    Reallocate(NodeSet),
    /// Leader only: the operator's move.
    Move(IpAddr, Pnn),
    /// The leader's tunables.
    Policy(Policy),
    /// Another nodes list; the detector is told afterwards (R24).
    List {
        /// Voters and quorum.
        list: List,
        /// Place holders in the list.
        deleted: NodeSet,
        /// Lines that take a number.
        list_length: usize,
    },
    /// Whether databases are attached, so that their members matter.
    Databases(bool),
    /// Leader only: scripts have heard of a recovery's end, so a takeover run is due, whether or not
    /// anything moves (`spec/cluster.md` 3.2).
    Run,
}

/// What the main loop wants done, in order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Effect {
    /// Send over the link; lost if it is down, and said again when it comes up.
    Send(Pnn, PeerFrame),
    /// Work on addresses.
    Work(Work),
    /// Something that history keeps (OPS-1).
    Note(Note),
    /// Ban this node, which may be this one, for so many seconds and for that reason.
    Ban {
        /// Whom.
        pnn: Pnn,
        /// For how long.
        seconds: u32,
        /// Why.
        why: String,
    },
}

/// An entry of the history.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Note {
    /// `leader`, `node`, `takeover`, `release`, `right`.
    pub kind: Cow<'static, str>,
    /// The node concerned.
    pub node: Option<Pnn>,
    /// What happened and why, in one line.
    pub text: String,
    /// Addresses concerned.
    pub addresses: Vec<IpAddr>,
}

/// What is known of a peer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct PeerView {
    /// Its link is up.
    pub linked: bool,
    /// Incarnation of the link.
    pub incarnation: Incarnation,
    /// What it says of itself, in this incarnation.
    pub info: Option<NodeInfo>,
    /// Its last STATE that reached this node.
    pub state: Option<HolderState>,
}

/// The main loop's state machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Coordinator {
    config: Config,
    info: NodeInfo,
    status: Option<Box<Status>>,
    #[serde(deserialize_with = "crate::recording::per_node")]
    peers: Vec<PeerView>,
    holder: Holder,
    leader: Option<Leader>,
    /// The newest term that was given up by the main loop; it is not acted in again (R9).
    renounced: Option<Term>,
    /// The newest term in any STATE.
    newest: Option<Term>,
    policy: Policy,
    placement: Option<Placement>,
    databases: bool,
    /// While this node acts as leader.
    members: Option<Members>,
    /// Whom that, with databases, waits for.
    awaited: NodeSet,
    /// Those of them that other members do not reach.
    apart: NodeSet,
    /// Flags as shown last, to notice changes.
    #[serde(deserialize_with = "crate::recording::per_node")]
    shown_flags: Vec<NodeFlags>,
    shown_leader: Option<Pnn>,
}

impl Coordinator {
    /// A daemon that starts.
    pub fn new(config: Config, info: NodeInfo) -> Self {
        let holder = Holder::new(config.planted);
        Self {
            holder,
            info,
            status: None,
            peers: vec![PeerView::default(); MAX_NODES],
            leader: None,
            renounced: None,
            newest: None,
            policy: Policy::default(),
            placement: None,
            databases: false,
            members: None,
            awaited: NodeSet::EMPTY,
            apart: NodeSet::EMPTY,
            shown_flags: vec![NodeFlags::DISCONNECTED; MAX_NODES],
            shown_leader: None,
            config,
        }
    }

    /// One step at `now`.
    pub fn handle(&mut self, now: BootTime, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Status(status) => {
                let before = self.status.as_ref().and_then(|old| old.right_until);
                if before.is_some() != status.right_until.is_some() {
                    let text = match status.right_until {
                        Some(_) => format!("right to serve gained, epoch {:?}", status.epoch),
                        None => "right to serve lost: too few nodes answer".to_owned(),
                    };
                    let node = Some(self.config.me);
                    out.push(Effect::Note(Note {
                        kind: "right".into(),
                        node,
                        text,
                        addresses: Vec::new(),
                    }));
                }
                let tell = self.holder.status(&status);
                self.status = Some(status);
                self.follow_role(now, &mut out);
                if tell {
                    self.send_state(now, &mut out);
                }
            }
            Input::LinkUp(pnn, incarnation) => {
                let peer = &mut self.peers[pnn.index()];
                if peer.incarnation != incarnation {
                    *peer = PeerView::default();
                }
                peer.linked = true;
                peer.incarnation = incarnation;
                out.push(Effect::Send(pnn, PeerFrame::Info(self.info.clone())));
                // To the leader, over this link or another one: who is reached (`members`).
                self.send_state(now, &mut out);
                if let Some(leader) = &self.leader {
                    out.push(Effect::Send(
                        pnn,
                        PeerFrame::Placement(leader.last_placement()),
                    ));
                }
            }
            Input::LinkDown(pnn) => {
                self.peers[pnn.index()].linked = false;
                self.send_state(now, &mut out);
            }
            Input::Frame(pnn, frame) => self.frame(now, pnn, frame, &mut out),
            Input::Info(info) => self.set_info(now, info, &mut out),
            Input::Taken { epoch, results } => {
                let mut work = Vec::new();
                self.holder.taken(now, epoch, &results, &mut work);
                out.extend(work.into_iter().map(Effect::Work));
                self.send_state(now, &mut out);
            }
            Input::Released(addresses) => {
                let mut work = Vec::new();
                self.holder.released(now, &addresses, &mut work);
                out.extend(work.into_iter().map(Effect::Work));
                self.send_state(now, &mut out);
            }
            Input::Fates { epoch, fates } => {
                let mut work = Vec::new();
                self.holder.fates(epoch, &fates, &mut work);
                out.extend(work.into_iter().map(Effect::Work));
            }
            Input::Tick => {
                let mut work = self.holder.tick(now, self.config.give_up);
                // It may not host, and there is nobody who could lead and say so.
                if self.info.flags.is_inactive() && self.linked().is_empty() {
                    work.extend(self.holder.let_go(now));
                }
                out.extend(work.into_iter().map(Effect::Work));
            }
            Input::Reallocate(nodes) => {
                if let Some(leader) = &mut self.leader {
                    leader.reallocate(nodes);
                    leader.run();
                }
            }
            Input::Run => {
                if let Some(leader) = &mut self.leader {
                    leader.run();
                }
            }
            Input::Move(address, to) => {
                if let Some(leader) = &mut self.leader {
                    leader.move_address(address, to);
                }
            }
            Input::List {
                list,
                deleted,
                list_length,
            } => {
                self.config.voters = list.voters;
                self.config.quorum = list.quorum;
                self.config.deleted = deleted;
                self.config.list_length = list_length;
                if let Some(leader) = &mut self.leader {
                    leader.reload(list);
                }
            }
            Input::Databases(attached) => self.databases = attached,
            Input::Policy(policy) => {
                self.policy = policy;
                if let Some(leader) = &mut self.leader {
                    leader.reallocate(NodeSet::EMPTY);
                }
            }
        }
        self.drive(now, &mut out);
        self.follow_members(now, &mut out);
        self.note_changes(now, &mut out);
        out
    }

    /// Enters or leaves the leader's role as the detector says.
    fn follow_role(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let Some(status) = &self.status else { return };
        // R9: a node that shall not lead any more stops acting before its detector resigns.
        let acting = status.acting.map(|(term, _)| term);
        if !self.may_lead() || status.outdated || status.claimed {
            self.renounced = self.renounced.max(acting);
        }
        if acting.is_none() {
            self.renounced = self.renounced.max(status.led);
        }
        let acting = acting.filter(|term| self.renounced.is_none_or(|old| old < *term));
        match (acting, &self.leader) {
            (Some(term), Some(leader)) if leader.term() == term => {}
            (Some(term), _) => {
                let hosts = self.config.voters;
                let mut leader = Leader::new(term, hosts, self.config.quorum, self.config.planted);
                // Some heard of the term before this main loop did.
                for pnn in hosts.iter() {
                    if let Some(state) = &self.peers[pnn.index()].state {
                        leader.state(now, pnn, state);
                    }
                }
                self.leader = Some(leader);
                // Let all know where to send STATE without waiting for a heartbeat.
                for pnn in self.linked().iter() {
                    out.push(Effect::Send(pnn, PeerFrame::Ping));
                }
            }
            (None, Some(_)) => self.leader = None,
            (None, None) => {}
        }
    }

    /// Whether this node may act as leader: active, and with the capability. The shell tells the
    /// detector so after the coordinator has been told, never before (R9).
    pub fn may_lead(&self) -> bool {
        self.info.capabilities.leader
            && !self.info.flags.is_inactive()
            && self.config.voters.contains(self.config.me)
    }

    fn frame(&mut self, now: BootTime, from: Pnn, frame: PeerFrame, out: &mut Vec<Effect>) {
        match frame {
            PeerFrame::Info(info) => {
                let peer = &mut self.peers[from.index()];
                if peer
                    .info
                    .as_ref()
                    .is_none_or(|known| known.version < info.version)
                {
                    peer.info = Some(info);
                }
            }
            PeerFrame::State(state) => self.take_state(now, from, state),
            PeerFrame::Assign(order) => {
                // Only the term's own leader gives its orders.
                if order.term.leader == from
                    && order.term.session == self.peers[from.index()].incarnation
                {
                    self.obey(now, &order, out);
                }
            }
            PeerFrame::Placement(placement) => {
                let newer = self.placement.as_ref().is_none_or(|known| {
                    (known.term, known.version) < (placement.term, placement.version)
                });
                if newer && placement.term.leader == from {
                    self.placement = Some(placement);
                }
            }
            PeerFrame::Ping
            | PeerFrame::Goodbye
            | PeerFrame::Connections(_)
            | PeerFrame::Request { .. }
            | PeerFrame::Reply { .. } => {}
        }
    }

    fn obey(&mut self, now: BootTime, order: &ctdb_wire::peer::Assign, out: &mut Vec<Effect>) {
        let mut work = Vec::new();
        let answer = self.holder.order(now, order, &mut work);
        out.extend(work.into_iter().map(Effect::Work));
        if answer {
            self.send_state(now, out);
        }
    }

    fn take_state(&mut self, now: BootTime, from: Pnn, state: HolderState) {
        self.newest = self.newest.max(state.term);
        if let Some(leader) = &mut self.leader {
            leader.state(now, from, &state);
            if state.term.is_some_and(|term| leader.term() < term) {
                self.renounce(); // It would refuse every order of this term (R15).
            }
        }
        self.peers[from.index()].state = Some(state);
    }

    /// STATE goes to the leader of the newest term; to oneself without a wire.
    fn send_state(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let Some(term) = self.holder.term().filter(|_| self.holder.speaks()) else {
            return;
        };
        let mut state = self.holder.state();
        state.lacks = self.lacks();
        if term.leader == self.config.me {
            self.take_state(now, self.config.me, state);
        } else if self.peers[term.leader.index()].linked {
            out.push(Effect::Send(term.leader, PeerFrame::State(state)));
        }
    }

    fn set_info(&mut self, now: BootTime, mut info: NodeInfo, out: &mut Vec<Effect>) {
        info.version = self.info.version;
        if info == self.info {
            return;
        }
        info.version += 1;
        self.info = info;
        self.follow_role(now, out);
        for pnn in self.linked().iter() {
            out.push(Effect::Send(pnn, PeerFrame::Info(self.info.clone())));
        }
    }

    /// The term that the main loop may act in at `now` (R7).
    pub fn acting(&self, now: BootTime) -> Option<Term> {
        let (term, until) = self.status.as_ref()?.acting?;
        if self.config.planted.has(Bug::OutgoingLeader) {
            return Some(term);
        }
        let given_up = self.renounced.is_some_and(|old| term <= old);
        (now < until && !given_up).then_some(term)
    }

    /// What the detector is to be told, whenever it has changed after a step.
    pub fn books(&self, now: BootTime) -> Books {
        let unaccounted = match &self.leader {
            Some(leader) if self.acting(now).is_some() => leader.unaccounted(now),
            _ => NodeSet::EMPTY,
        };
        let newest = self.newest.max(self.holder.term());
        Books {
            unaccounted,
            newest,
            renounced: self.renounced,
        }
    }

    /// Stops acting before the detector is told (R9).
    fn renounce(&mut self) {
        if let Some(leader) = self.leader.take() {
            self.renounced = self.renounced.max(Some(leader.term()));
        }
    }

    /// The leader's step, only while it acts by this clock (R7).
    fn drive(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let Some(term) = self.acting(now) else { return };
        // Orders to oneself are obeyed on the spot and can change what is to be sent; two rounds
        // reach a fixed point (order, STATE that echoes it), the bound guards against a bug.
        for _ in 0..4 {
            let situation = self.situation();
            let Some(leader) = self.leader.as_mut().filter(|leader| leader.term() == term) else {
                return;
            };
            if let Some(status) = &self.status {
                leader.evidence(now, status);
            }
            let orders = leader.drive(now, &situation);
            if leader.lonely(now) {
                self.renounce();
                return;
            }
            if let Some((pnn, credit)) = leader.convict(now, &situation) {
                let count = credit.count;
                let why = format!("{count} credits: {}", credit.why);
                let seconds = situation.policy.bans.period_s;
                out.push(Effect::Ban { pnn, seconds, why });
            }
            if let Some(placement) = leader.placement(&situation) {
                self.placement = Some(placement.clone());
                for pnn in self.linked().iter() {
                    out.push(Effect::Send(pnn, PeerFrame::Placement(placement.clone())));
                }
            }
            let mut own = None;
            for (pnn, order) in orders {
                if pnn == self.config.me {
                    own = Some(order);
                } else {
                    out.push(Effect::Send(pnn, PeerFrame::Assign(order)));
                }
            }
            let Some(order) = own else { return };
            self.obey(now, &order, out);
        }
    }

    /// What allocation needs of the cluster.
    pub fn situation(&self) -> Situation {
        let mut situation = Situation {
            list_length: self.config.list_length,
            policy: self.policy,
            home_nodes: self.config.home_nodes.clone(),
            disabled: self.config.failover_disabled,
            linked: self.linked(),
            awaited: self.awaited,
            ..Situation::default()
        };
        situation.linked.insert(self.config.me);
        for pnn in self.config.voters.iter() {
            let info = if pnn == self.config.me {
                Some(&self.info)
            } else {
                self.peers[pnn.index()].info.as_ref()
            };
            let Some(info) = info else { continue };
            let willing = info.run_state == RunState::Running
                && !info.flags.intersects(NodeFlags::NO_ADDRESSES)
                && !info.capabilities.voter_only;
            if willing {
                situation.fit.insert(pnn);
            }
            for address in &info.addresses {
                let able = situation.able.entry(address.net.addr()).or_default();
                if willing && address.available {
                    able.insert(pnn);
                }
            }
        }
        situation
    }

    /// The members that the books show after this step.
    fn follow_members(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let old = self.members.take();
        let apart = std::mem::take(&mut self.apart);
        self.awaited = NodeSet::EMPTY;
        let acting = self.acting(now);
        let leader = self.leader.as_ref();
        let Some(leader) = leader.filter(|leader| acting == Some(leader.term())) else {
            return;
        };
        let host = |(pnn, know, epoch, has_right)| {
            let me = pnn == self.config.me;
            let peer = self.peer(pnn);
            let info = if me {
                Some(&self.info)
            } else {
                peer.info.as_ref()
            };
            members::Host {
                pnn,
                know,
                epoch,
                has_right,
                linked: me || peer.linked && peer.incarnation == epoch.incarnation,
                described: info.is_some(),
                voter_only: info.is_some_and(|info| info.capabilities.voter_only),
                inactive: info.is_some_and(|info| info.flags.is_inactive()),
                lmaster: info.is_some_and(|info| info.capabilities.lmaster),
                lacks: peer
                    .state
                    .as_ref()
                    .map_or(NodeSet::EMPTY, |state| state.lacks),
            }
        };
        let hosts: Vec<_> = leader.standing().map(host).collect();
        let (quorum, planted) = (self.config.quorum, self.config.planted);
        let new = members::follow(leader.term(), &hosts, quorum, old.as_ref(), planted);
        self.members = new.members;
        if !self.databases {
            return;
        }
        self.awaited = new.awaited;
        self.apart = new.apart;
        for pnn in new.apart.iter().filter(|pnn| !apart.contains(*pnn)) {
            out.push(Effect::Note(Note {
                kind: "node".into(),
                node: Some(pnn),
                text: format!(
                    "node {pnn} and other nodes do not reach each other: the databases do without it \
                     unless that is over soon"
                ),
                addresses: Vec::new(),
            }));
        }
    }

    /// Who is a member of the databases, if this node may say so at `now` and can.
    pub fn members(&self, now: BootTime) -> Option<&Members> {
        let acting = self.acting(now);
        let members = self.members.as_ref();
        members.filter(|members| acting == Some(members.term))
    }

    /// Whether databases are attached, as it was told.
    pub fn has_databases(&self) -> bool {
        self.databases
    }

    /// Nodes that this one has no link to.
    fn lacks(&self) -> NodeSet {
        let mut lacks = NodeSet(self.config.voters.0 & !self.linked().0);
        lacks.remove(self.config.me);
        lacks
    }

    fn linked(&self) -> NodeSet {
        self.config
            .voters
            .iter()
            .filter(|pnn| self.peers[pnn.index()].linked)
            .collect()
    }

    /// Flags of a node as seen from here (`spec/cluster.md` 2.1).
    pub fn flags(&self, now: BootTime, pnn: Pnn) -> NodeFlags {
        if self.config.deleted.contains(pnn) {
            return NodeFlags::DELETED | NodeFlags::DISCONNECTED;
        }
        if pnn == self.config.me {
            return self.info.flags;
        }
        let peer = &self.peers[pnn.index()];
        if !peer.linked || self.silent(now, pnn) {
            return NodeFlags::DISCONNECTED | NodeFlags::UNHEALTHY;
        }
        match &peer.info {
            Some(info) => info.flags,
            None => NodeFlags::UNKNOWN,
        }
    }

    /// The detector has not heard the node for long, although its link may stand.
    fn silent(&self, now: BootTime, pnn: Pnn) -> bool {
        self.status.as_ref().is_some_and(|status| {
            let peer = &status.peers[pnn.index()];
            peer.evicted
                || peer.heard_at != BootTime::ZERO
                    && now.since(peer.heard_at) > self.config.give_up / 2
        })
    }

    fn note_changes(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let leader = self
            .status
            .as_ref()
            .and_then(|status| status.leader)
            .map(|term| term.leader);
        if leader != self.shown_leader {
            let text = match leader {
                Some(pnn) => format!("leader={pnn}"),
                None => "no leader".to_owned(),
            };
            self.shown_leader = leader;
            out.push(Effect::Note(Note {
                kind: "leader".into(),
                node: leader,
                text,
                addresses: Vec::new(),
            }));
        }
        for pnn in self.config.voters.iter() {
            let flags = self.flags(now, pnn);
            let shown = &mut self.shown_flags[pnn.index()];
            if *shown != flags {
                let text = format!(
                    "Node {pnn} has changed flags - 0x{:x} -> 0x{:x}",
                    shown.bits(),
                    flags.bits()
                );
                *shown = flags;
                out.push(Effect::Note(Note {
                    kind: "node".into(),
                    node: Some(pnn),
                    text,
                    addresses: Vec::new(),
                }));
            }
        }
    }

    /// Own description.
    pub fn info(&self) -> &NodeInfo {
        &self.info
    }

    /// What is known of a peer.
    pub fn peer(&self, pnn: Pnn) -> &PeerView {
        &self.peers[pnn.index()]
    }

    /// The detector's last status.
    pub fn status(&self) -> Option<&Status> {
        self.status.as_deref()
    }

    /// The holder.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// The books, while this node leads.
    pub fn leader(&self) -> Option<&Leader> {
        self.leader.as_ref()
    }

    /// Who hosts what, as the leader last said.
    pub fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// The configuration that it runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
