//! The right to serve, the leader, and the evidence that a node has lapsed.
//!
//! This is the detector's half of the node: fixed size, no allocation, fed by datagrams and
//! ticks. The rules cited as `R4`, `R12` ... are those of `authority.md`. The main loop's half
//! (orders, addresses) reads [`Status`] and lives in [`crate::coordinator`].

mod election;
mod evidence;
mod list;
mod lock;
mod right;
mod status;
mod timing;
mod witness;

use std::time::Duration;

use ctdb_wire::heartbeat::{Ages, Message};
use ctdb_wire::ids::{BootTime, Epoch, Incarnation, MAX_NODES, NodeSet, Pnn, Term};
use serde::{Deserialize, Serialize};

use crate::planted::{Bug, Planted};
pub use election::Role;
pub use list::{List, ListStatus};
pub use lock::{LockNews, LockStatus, LockTimes, Mode};
pub use right::Right;
pub use status::{PeerStatus, Status};
pub use timing::Timing;
pub(crate) use timing::stretch;

/// How long the main loop may stand still before the right is no more renewed (MEM-4).
pub const PROGRESS_LIMIT: Duration = Duration::from_secs(5);

/// Slots of the lease map; slot 0 is "known, not ours" (R2, `spec/kernel.md` 8.3).
pub const SLOTS: u32 = 4096;

/// What does not change while the daemon runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// This node.
    pub me: Pnn,
    /// This life.
    pub incarnation: Incarnation,
    /// All configured nodes, this one included.
    pub voters: NodeSet,
    /// What decides.
    pub mode: Mode,
    /// Q: how many must answer; ⌊n/2⌋ + 1 unless split brain is allowed by configuration.
    /// Without meaning where the lock alone decides.
    pub quorum: usize,
    /// The list that this node last acted under, by its own record; the cold-start exception is
    /// only for that one (R10).
    pub acted_under: Option<NodeSet>,
    /// Profile.
    pub timing: Timing,
    /// Bugs planted by the simulator; none in a daemon.
    #[serde(skip)]
    pub planted: Planted,
}

impl Config {
    /// Q = ⌊n/2⌋ + 1.
    pub fn majority(me: Pnn, incarnation: Incarnation, voters: NodeSet, timing: Timing) -> Self {
        let quorum = voters.len() / 2 + 1;
        Self {
            me,
            incarnation,
            voters,
            mode: Mode::Majority,
            quorum,
            acted_under: Some(voters),
            timing,
            planted: Planted::default(),
        }
    }
}

/// What happens to the detector.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Time has come to [`Authority::next_wakeup`], or any other moment.
    Tick,
    /// An authentic datagram of a peer's current incarnation.
    Datagram {
        /// The sender, known from the key.
        from: Pnn,
        /// What it says.
        message: &'a Message,
    },
    /// A link handshake fixed the peer's incarnation; older ones are over (R1).
    Session {
        /// The peer.
        pnn: Pnn,
        /// Its life.
        incarnation: Incarnation,
    },
    /// The main loop is alive (MEM-4).
    Progress,
    /// What the main loop knows and the detector does not; to be told whenever it has changed.
    Books(Books),
    /// Whether this node may lead; the main loop has stopped acting before it says no (R9).
    Eligible(bool),
    /// What the lock client found out (R20 to R23).
    Lock(LockNews),
    /// Another nodes list; the coordinator was told before (R24).
    List(List),
    /// The node leaves: its right ends now and is not renewed, it neither stands nor leads.
    Leave,
}

/// What only frames tell, so what the main loop knows first.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Books {
    /// As leader: nodes that cannot be accounted for although they are heard, since they do not
    /// talk over their link. They are evicted as if they were silent (R14, R18).
    pub unaccounted: NodeSet,
    /// The newest term in any frame: whoever leads must be above it, or its orders are refused
    /// (R15). Detectors forget terms when they start; holders elsewhere do not.
    pub newest: Option<Term>,
    /// The main loop has stopped acting in this term and all before (R9).
    pub renounced: Option<Term>,
}

/// What the detector wants done. Methods are called in order, from within [`Authority::handle`].
pub trait Sink {
    /// Seal and send to one peer, on every path, or for an answer on the path that asked.
    fn send(&mut self, to: Pnn, message: &Message);
    /// Store the deadline of a slot of the lease map.
    fn deadline(&mut self, slot: u32, until: BootTime);
}

/// What a witness knows of a peer, and the peer of it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// Incarnation of the link's session; `NONE` before the first handshake.
    pub incarnation: Incarnation,
    /// When it became known here.
    pub known_at: BootTime,
    /// Newest epoch that the peer has shown in this incarnation, and whether with a right.
    pub epoch: u32,
    pub has_right: bool,
    /// When that epoch became known here (R13).
    pub epoch_learned_at: BootTime,
    /// Last authentic datagram; zero if none in this life.
    pub heard_at: BootTime,
    /// Last answer to a heartbeat or vote request of mine: it hears me, and I hear it.
    pub replied_at: BootTime,
    /// Newest heartbeat of the peer that was processed; older ones come late.
    pub last_sent_at: u64,
    /// When this witness last answered the peer, and which incarnation (R4).
    pub answered_at: BootTime,
    pub answered_incarnation: Incarnation,
    /// The newest incarnation of the peer that is known dead and silent (R19).
    pub gone: Incarnation,
    /// Eviction: do not answer until then, by order of that term (R14).
    pub stopped: Option<(BootTime, Term)>,
    /// Newest own heartbeat that this witness answered (R5).
    pub answered_s: BootTime,
    /// Newest own heartbeat that it answered as the acting holder of the lock.
    pub holder_s: BootTime,
    /// The list that it uses, by its newest heartbeat, and whether it is settled on it.
    pub list: NodeSet,
    pub settled: bool,
    /// Its newest question whether this node acts (R21), by its clock.
    pub asked_at: u64,
    /// It is not answered yet.
    pub asks: Option<Term>,
    /// Newest own heartbeat or vote request that it answered with a promise to me (R7).
    pub promised_s: BootTime,
    /// It has said, to this life of mine, that it neither stood, voted nor promised (R10).
    pub virgin: bool,
    /// Its latest report to me as leader.
    pub report: Option<Report>,
    /// The leader wants it answered no more.
    pub evicted_since: Option<BootTime>,
    /// Sending time of the heartbeat whose answers prove that it has lapsed (R12).
    pub evidence: Option<BootTime>,
    /// The epoch that was known then; it and all before it are over.
    pub evidence_epoch: Epoch,
}

/// The answer of a witness to one leader heartbeat (R11, R12).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    pub sent_at: BootTime,
    pub received_at: BootTime,
    /// The answer carries a promise, so this life is older than L + m (R10, R25).
    pub promised: bool,
    pub stopped: NodeSet,
    #[serde(with = "ctdb_wire::heartbeat::ages")]
    pub ages: Ages,
}

impl Peer {
    const NEW: Self = Self {
        incarnation: Incarnation::NONE,
        known_at: BootTime::ZERO,
        epoch: 0,
        has_right: false,
        epoch_learned_at: BootTime::ZERO,
        heard_at: BootTime::ZERO,
        replied_at: BootTime::ZERO,
        last_sent_at: 0,
        answered_at: BootTime::ZERO,
        answered_incarnation: Incarnation::NONE,
        gone: Incarnation::NONE,
        stopped: None,
        answered_s: BootTime::ZERO,
        holder_s: BootTime::ZERO,
        list: NodeSet::EMPTY,
        settled: false,
        asked_at: 0,
        asks: None,
        promised_s: BootTime::ZERO,
        virgin: false,
        report: None,
        evicted_since: None,
        evidence: None,
        evidence_epoch: Epoch {
            incarnation: Incarnation::NONE,
            number: 0,
        },
    };
}

/// A vote, or an answer to a leader's heartbeat (R7).
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Promise {
    pub term: Term,
    pub until: BootTime,
}

/// The detector's state machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Authority {
    pub(crate) config: Config,
    pub(crate) started_at: BootTime,
    #[serde(deserialize_with = "crate::recording::per_node")]
    pub(crate) peers: Box<[Peer]>,
    pub(crate) right: Right,
    pub(crate) epoch: u32,
    /// Newest term heard from its leader; older ones are refused.
    pub(crate) newest: Option<Term>,
    /// Newest term voted for or promised to, so that terms that are acted in only rise; and
    /// what it was before the last vote, in case nobody acted in that one.
    pub(crate) voted: Option<Term>,
    pub(crate) voted_before: Option<Term>,
    /// Highest term number seen anywhere, so that the next candidacy is above it.
    pub(crate) highest_number: u64,
    pub(crate) promise: Option<Promise>,
    /// No promise is given before (R10), unless the cluster is seen to be fresh.
    pub(crate) abstain_until: BootTime,
    /// This life has neither stood, voted nor promised.
    pub(crate) virgin: bool,
    pub(crate) role: Role,
    pub(crate) lock: lock::Lock,
    pub(crate) lists: list::Lists,
    /// As leader: nodes outside of the list that were answered lately (R25).
    pub(crate) strangers: NodeSet,
    /// The newest term that this node led.
    pub(crate) led: Option<Term>,
    /// The latest end of it that the main loop may have read.
    pub(crate) shown_until: BootTime,
    /// It ended before that without being given up: its promises are still to be freed.
    pub(crate) lapsed: Option<Term>,
    pub(crate) eligible: bool,
    pub(crate) leaving: bool,
    /// What the main loop said last.
    pub(crate) books: Books,
    /// When the leader of `newest` was last heard.
    pub(crate) leader_heard_at: BootTime,
    pub(crate) stand_at: BootTime,
    pub(crate) next_heartbeat: BootTime,
    /// Sending time of the newest own heartbeat.
    pub(crate) last_heartbeat: BootTime,
    pub(crate) last_tick: BootTime,
    /// After a late tick nobody is accused until then.
    pub(crate) grace_until: BootTime,
    pub(crate) progress_at: BootTime,
    pub(crate) late_ticks: u64,
    random: u64,
}

impl Authority {
    /// A daemon that starts at `now`. It is silent for 1.2·q (R3) and gives no promise for
    /// L + m (R10).
    pub fn new(config: Config, now: BootTime) -> Self {
        let timing = config.timing;
        let random = config.incarnation.0 | 1;
        let abstain_until = if config.planted.has(Bug::NoAbstention) {
            now
        } else {
            now + timing.promise()
        };
        let speaks_at = if config.planted.has(Bug::SpeaksAtOnce) {
            now
        } else {
            now + timing.settle()
        };
        Self {
            started_at: now,
            // Allocated once, at start; the detector allocates nothing later.
            peers: vec![Peer::NEW; MAX_NODES].into_boxed_slice(),
            // R3: until then this life has no epoch, and says nothing.
            right: Right::Lapsed {
                resume_at: speaks_at,
            },
            epoch: 0,
            newest: None,
            voted: None,
            voted_before: None,
            highest_number: 0,
            promise: None,
            abstain_until,
            virgin: true,
            role: Role::Follower,
            lock: lock::Lock::default(),
            lists: list::Lists::new(now),
            strangers: NodeSet::EMPTY,
            led: None,
            shown_until: BootTime::ZERO,
            lapsed: None,
            eligible: false,
            leaving: false,
            books: Books::default(),
            leader_heard_at: BootTime::ZERO,
            stand_at: now,
            next_heartbeat: speaks_at,
            last_heartbeat: BootTime::ZERO,
            last_tick: now,
            grace_until: now,
            progress_at: now,
            late_ticks: 0,
            random,
            config,
        }
    }

    /// One step. `now` was read after the input was received (R6) and never goes back.
    pub fn handle(&mut self, now: BootTime, input: Input<'_>, sink: &mut impl Sink) {
        match input {
            Input::Tick => {}
            Input::Datagram { from, message } => self.datagram(now, from, message, sink),
            Input::Session { pnn, incarnation } => self.session(now, pnn, incarnation),
            Input::Progress => self.progress_at = now,
            Input::Books(books) => self.books(now, books, sink),
            Input::Eligible(eligible) => {
                if self.eligible && !eligible {
                    self.resign(now, sink);
                }
                if eligible && !self.eligible {
                    self.schedule_stand(now);
                }
                self.eligible = eligible;
            }
            Input::Lock(news) => self.lock_news(now, news, sink),
            Input::List(list) => self.reload(now, list, sink),
            Input::Leave => self.leave(now, sink),
        }
        // Whose answer may still wait in a socket is not accused: the shell ticks when it has
        // emptied them.
        let accuse = matches!(input, Input::Tick) || self.config.planted.has(Bug::LateTickAccuses);
        self.tick(now, accuse, sink);
    }

    /// When [`Input::Tick`] is due next.
    pub fn next_wakeup(&self) -> BootTime {
        let mut next = self.next_heartbeat;
        if let Some(until) = self.right.next_change()
            && !self.leaving
        {
            next = next.min(until);
        }
        next = next.min(self.election_wakeup());
        next.max(BootTime(self.last_tick.0 + 1))
    }

    fn tick(&mut self, now: BootTime, accuse: bool, sink: &mut impl Sink) {
        let timing = self.config.timing;
        if now.since(self.last_tick) > timing.interval * 3 {
            // Late ourselves: what others sent may still wait in our sockets.
            self.late_ticks += 1;
            if !self.config.planted.has(Bug::LateTickAccuses) {
                self.grace_until = now + timing.interval * 2;
            }
        }
        self.last_tick = now;
        self.check_right(now);
        self.check_election(now, sink);
        self.check_lock(now, sink);
        self.check_list(now);
        if accuse {
            self.check_evictions(now);
        }
        if now >= self.next_heartbeat {
            self.send_heartbeats(now, sink);
        }
        self.renew(now, sink);
        self.note_shown(now);
    }

    fn datagram(&mut self, now: BootTime, from: Pnn, message: &Message, sink: &mut impl Sink) {
        if from == self.config.me || self.leaving {
            return;
        }
        if !self.config.voters.contains(from) {
            // Who was removed can still say that it is silent (R25).
            if let Message::Gone { incarnation } = *message {
                self.gone(now, incarnation);
            }
            return;
        }
        if now < self.started_at + self.config.timing.settle()
            && !self.config.planted.has(Bug::SpeaksAtOnce)
        {
            // R3: nothing is sent, so nothing that wants an answer is taken.
            return;
        }
        if !matches!(message, Message::Gone { .. }) {
            self.peers[from.index()].heard_at = now;
        }
        match *message {
            Message::Heartbeat {
                sent_at,
                epoch,
                has_right,
                leader,
                evict,
                list,
                settled,
            } => {
                let peer = &mut self.peers[from.index()];
                if sent_at >= peer.last_sent_at {
                    (peer.list, peer.settled) = (list, settled);
                    self.learn_epoch(now, from, epoch, has_right);
                }
                if !self.accepts(now, list, leader.is_some()) {
                    return; // R26.
                }
                self.witness(now, from, sent_at, leader, evict, sink);
            }
            Message::Answer {
                echo,
                epoch,
                virgin,
                holder,
                promise,
                stopped,
                ages,
            } => {
                let peer = &self.peers[from.index()];
                let has_right = peer.has_right && peer.epoch == epoch;
                self.learn_epoch(now, from, epoch, has_right);
                self.answer(
                    now,
                    from,
                    BootTime(echo),
                    virgin,
                    holder,
                    promise,
                    stopped,
                    ages.as_ref(),
                );
            }
            Message::VoteRequest {
                term,
                pre,
                sent_at,
                list,
            } => {
                if !self.accepts(now, list, false) {
                    return; // R26.
                }

                self.vote_request(now, from, term, pre, sent_at, sink);
            }
            Message::Vote {
                term,
                pre,
                echo,
                granted,
                newest_number,
            } => {
                self.vote(
                    now,
                    from,
                    term,
                    pre,
                    BootTime(echo),
                    granted,
                    newest_number,
                    sink,
                );
            }
            Message::Withdraw { term, acted } => self.withdrawn(now, from, term, acted),
            Message::Gone { incarnation } => self.gone(now, incarnation),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    fn answer(
        &mut self,
        now: BootTime,
        from: Pnn,
        echo: BootTime,
        virgin: bool,
        holder: bool,
        promise: Option<Term>,
        stopped: NodeSet,
        ages: Option<&Ages>,
    ) {
        if echo > self.last_heartbeat || echo < self.started_at {
            return; // Never sent by this life.
        }
        let peer = &mut self.peers[from.index()];
        peer.replied_at = now;
        peer.virgin |= virgin;
        if now.since(self.progress_at) > PROGRESS_LIMIT {
            return; // MEM-4: a hung main loop renews nothing, neither right nor leadership.
        }
        self.count_answer(now, from, echo, holder);
        self.count_promise(now, from, echo, promise);
        if let Some(ages) = ages {
            let report = Report {
                sent_at: echo,
                received_at: now,
                promised: promise.is_some(),
                stopped,
                ages: *ages,
            };
            self.report(now, from, report);
        }
    }

    fn session(&mut self, now: BootTime, pnn: Pnn, incarnation: Incarnation) {
        if pnn == self.config.me {
            return;
        }
        let peer = &mut self.peers[pnn.index()];
        if peer.incarnation != incarnation {
            peer.incarnation = incarnation;
            peer.known_at = now;
            peer.epoch = 0;
            peer.has_right = false;
            peer.epoch_learned_at = now;
            peer.last_sent_at = 0;
            peer.asked_at = 0;
            peer.asks = None;
            peer.promised_s = BootTime::ZERO;
            peer.virgin = false;
            peer.report = None;
        }
        // Greet at once, so that a cluster starts in round trips and not in intervals.
        if now >= self.started_at + self.config.timing.settle() && self.config.voters.contains(pnn)
        {
            self.next_heartbeat = now;
        }
    }

    fn learn_epoch(&mut self, now: BootTime, from: Pnn, epoch: u32, has_right: bool) {
        let peer = &mut self.peers[from.index()];
        if epoch < peer.epoch {
            return; // Came late.
        }
        if epoch > peer.epoch {
            peer.epoch = epoch;
            peer.epoch_learned_at = now;
        }
        peer.has_right = has_right;
    }

    fn send_heartbeats(&mut self, now: BootTime, sink: &mut impl Sink) {
        let interval = self.config.timing.interval;
        self.next_heartbeat = now + interval;
        if self.leaving {
            return;
        }
        self.last_heartbeat = now;
        let leader = self.heartbeat_term(now);
        let evict = if leader.is_some() {
            self.evict_set()
        } else {
            NodeSet::EMPTY
        };
        for x in evict.iter() {
            let peer = &self.peers[x.index()];
            if peer.evidence.is_none() && peer.gone != Incarnation::NONE {
                // R19: forwarded until it is of no more use.
                let incarnation = peer.gone;
                self.broadcast(&Message::Gone { incarnation }, sink);
            }
        }
        let message = Message::Heartbeat {
            sent_at: now.0,
            epoch: self.epoch,
            has_right: self.right.held_at(now),
            leader,
            evict,
            list: self.config.voters,
            settled: self.list_settled(now),
        };
        self.broadcast(&message, sink);
    }

    fn broadcast(&self, message: &Message, sink: &mut impl Sink) {
        for pnn in self.config.voters.iter() {
            if pnn != self.config.me && self.peers[pnn.index()].incarnation != Incarnation::NONE {
                sink.send(pnn, message);
            }
        }
    }

    pub(crate) fn leave(&mut self, now: BootTime, sink: &mut impl Sink) {
        self.resign(now, sink);
        self.leaving = true;
        self.eligible = false;
        self.end_right(now, sink);
    }

    /// Q-th newest of a per-peer moment, with `own` for this node; `None` if there are not as many.
    pub(crate) fn quorum_newest(
        &self,
        own: BootTime,
        of: impl Fn(&Peer) -> BootTime,
    ) -> Option<BootTime> {
        let mut moments = [BootTime::ZERO; MAX_NODES];
        let mut count = 0;
        for pnn in self.config.voters.iter() {
            let moment = if pnn == self.config.me {
                own
            } else {
                of(&self.peers[pnn.index()])
            };
            if moment != BootTime::ZERO {
                moments[count] = moment;
                count += 1;
            }
        }
        if count < self.config.quorum {
            return None;
        }
        let moments = &mut moments[..count];
        moments.sort_unstable_by(|a, b| b.cmp(a));
        Some(moments[self.config.quorum - 1])
    }

    /// A pseudo-random duration below `below`; seeded by the incarnation, so the core stays pure.
    pub(crate) fn jitter(&mut self, below: Duration) -> Duration {
        // xorshift64*: quality does not matter, only that nodes differ.
        let mut x = self.random;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random = x;
        let scaled = (x.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32;
        Duration::from_nanos((below.as_nanos() as u64 >> 16) * u64::from(scaled >> 16))
    }

    /// Whom this leader evicts.
    pub fn evicts(&self) -> NodeSet {
        if matches!(self.role, Role::Leader { .. }) {
            self.evict_set()
        } else {
            NodeSet::EMPTY
        }
    }

    /// What it is in an election, and whether it may serve; for those who count transitions.
    pub fn states(&self) -> (Role, Right) {
        (self.role, self.right)
    }

    /// The configuration that it runs with.
    pub fn config(&self) -> &Config {
        &self.config
    }
}

/// Slot of an epoch; reused only after 4,095 further rights of one life, each of which lasted
/// at least L, so a thread would have to be stalled for more than an hour to hit it (R2).
pub fn slot_of(epoch: u32) -> u32 {
    if epoch == 0 {
        0
    } else {
        1 + (epoch - 1) % (SLOTS - 1)
    }
}

#[cfg(test)]
mod tests;
