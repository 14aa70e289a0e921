//! Promises, votes and the leader's term: R7 to R10.

use ctdb_wire::heartbeat::Message;
use ctdb_wire::ids::{BootTime, Incarnation, NodeSet, Pnn, Term};
use serde::{Deserialize, Serialize};

use super::{Authority, Books, PROGRESS_LIMIT, Promise, Sink};
use crate::planted::Bug;

/// What this node is in an election.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Role {
    /// Follows, or waits.
    Follower,
    /// Asks whether it would be elected; binds nobody.
    PreCandidate {
        /// The term it would stand for.
        term: Term,
        /// Who said yes.
        yes: NodeSet,
        /// Who said no.
        no: NodeSet,
        /// Gives up then.
        until: BootTime,
    },
    /// Stands.
    Candidate {
        /// The term it stands for.
        term: Term,
        /// Sending time of the request: votes count from it (R7).
        sent_at: BootTime,
        /// Who said no.
        no: NodeSet,
        /// Withdraws then.
        until: BootTime,
    },
    /// Holds the lock and asks whether others act (R21).
    Claimant {
        /// The term that it asks in; the one it leads may be higher.
        term: Term,
        /// Who acts not.
        answered: NodeSet,
        /// Sending time of the first question.
        since: BootTime,
        /// Sending time of the last.
        asked_at: BootTime,
    },
    /// Leads, and acts while enough promises run.
    Leader {
        /// Its term.
        term: Term,
        /// When the votes were enough (R13).
        elected_at: BootTime,
    },
}

impl Authority {
    /// Whether this node leads, acting or not.
    pub(super) fn is_leader(&self) -> bool {
        matches!(self.role, Role::Leader { .. })
    }

    /// R10: no promise yet.
    pub(super) fn abstaining(&self, now: BootTime) -> bool {
        !self.config.mode.lock_alone() && now < self.abstain_until && !self.fresh_cluster()
    }

    /// R10's exception: every configured node said, to this life, that it has done nothing.
    fn fresh_cluster(&self) -> bool {
        let same = self.config.acted_under == Some(self.config.voters)
            || self.config.planted.has(Bug::FreshWhateverTheList);
        let mut voters = self.config.voters.iter();
        same && voters.all(|pnn| pnn == self.config.me || self.peers[pnn.index()].virgin)
    }

    /// Whether a promise to `term` is allowed.
    fn can_promise(&self, now: BootTime, term: Term) -> bool {
        if self.abstaining(now) || self.leaving {
            return false;
        }
        if self
            .newest
            .max(self.voted)
            .is_some_and(|newest| term < newest)
            && !self.config.planted.has(Bug::NoTermFence)
        {
            return false;
        }
        if self.config.planted.has(Bug::NestedElection)
            && matches!(self.role, Role::Candidate { .. })
        {
            return true;
        }
        self.promise.is_none_or(|promise| {
            now >= promise.until
                || promise.term.leader == term.leader && promise.term.session == term.session
        })
    }

    fn give_promise(&mut self, now: BootTime, term: Term) {
        self.virgin = false;
        self.highest_number = self.highest_number.max(term.number);
        if self.voted.is_none_or(|voted| voted < term) {
            self.voted_before = self.voted;
            self.voted = Some(term);
        }
        if !self.config.planted.has(Bug::VoteWithoutPromise) {
            self.promise = Some(Promise {
                term,
                until: now + self.config.timing.promise(),
            });
        }
        // If it is not renewed, stand in turn when it ends.
        self.schedule_stand(now + self.config.timing.promise());
    }

    fn raise_newest(&mut self, term: Term) {
        self.highest_number = self.highest_number.max(term.number);
        if self.newest.is_none_or(|newest| newest < term) {
            self.newest = Some(term);
        }
    }

    /// A leader's heartbeat, checked to be of the sender's own term. Returns the promise that
    /// the answer carries.
    pub(super) fn leader_heard(
        &mut self,
        now: BootTime,
        term: Term,
        evict: NodeSet,
        sink: &mut impl Sink,
    ) -> Option<Term> {
        if self.newest.is_some_and(|newest| term < newest) {
            self.highest_number = self.highest_number.max(term.number);
            if !self.config.planted.has(Bug::NoTermFence) {
                return None; // Older than one that was heard.
            }
        }
        self.raise_newest(term);
        self.leader_heard_at = now;
        match self.role {
            // Somebody acts, so these cannot succeed.
            Role::PreCandidate { .. } | Role::Candidate { .. } => self.withdraw(now, sink),
            Role::Leader { term: mine, .. } if mine < term => self.lapse(now, sink),
            // Its question stops whoever acts without the lock.
            Role::Claimant { .. } | Role::Leader { .. } | Role::Follower => {}
        }
        self.obey_evictions(now, term, evict);
        if self.config.mode.lock_alone() {
            return Some(term); // Says that the term is followed; binds nobody.
        }
        if self.can_promise(now, term) {
            self.give_promise(now, term);
            Some(term)
        } else {
            None // R8: answered, without a promise.
        }
    }

    fn role_term(&self) -> Option<Term> {
        match self.role {
            Role::Follower => None,
            Role::PreCandidate { term, .. }
            | Role::Candidate { term, .. }
            | Role::Claimant { term, .. }
            | Role::Leader { term, .. } => Some(term),
        }
    }

    /// The term that heartbeats carry: only while the leader acts, and then it renews its own
    /// promise from the sending time (R7).
    pub(super) fn heartbeat_term(&mut self, now: BootTime) -> Option<Term> {
        let (term, _) = self.acting(now)?;
        self.promise = Some(Promise {
            term,
            until: now + self.config.timing.promise(),
        });
        self.leader_heard_at = now;
        Some(term)
    }

    /// R7: the term that this node leads and the moment until which it may act.
    pub fn acting(&self, now: BootTime) -> Option<(Term, BootTime)> {
        let Role::Leader { term, .. } = self.role else {
            return None;
        };
        let proved = self.lock_valid_until();
        let until = if self.config.mode.lock_alone() {
            proved?
        } else {
            let own = self.promised_own();
            let newest = self.quorum_newest(own, |peer| peer.promised_s)?;
            let until = newest + self.config.timing.lease;
            match self.config.mode.lock() {
                Some(_) => until.min(proved?),
                None => until,
            }
        };
        if self.config.planted.has(Bug::ActsAfterLoss) {
            return Some((term, now + self.config.timing.lease));
        }
        (now < until).then_some((term, until))
    }

    /// Sending time of the newest own message that carries the own promise.
    fn promised_own(&self) -> BootTime {
        match self.role {
            Role::Candidate { sent_at, .. } => sent_at,
            Role::Leader { elected_at, .. } => self.last_heartbeat.max(elected_at),
            _ => BootTime::ZERO,
        }
    }

    /// The leader that is followed, if it was heard lately.
    pub(super) fn known_leader(&self, now: BootTime) -> Option<Term> {
        if let Some((term, _)) = self.acting(now) {
            return Some(term);
        }
        if self.leader_heard_at == BootTime::ZERO
            || now.since(self.leader_heard_at) > self.config.timing.promise()
        {
            return None;
        }
        self.newest.filter(|term| term.leader != self.config.me)
    }

    /// An answer to a leader's heartbeat may carry a promise.
    pub(super) fn count_promise(
        &mut self,
        _now: BootTime,
        from: Pnn,
        echo: BootTime,
        promise: Option<Term>,
    ) {
        let Role::Leader { term, .. } = self.role else {
            return;
        };
        if promise == Some(term) {
            let peer = &mut self.peers[from.index()];
            peer.promised_s = peer.promised_s.max(echo);
        }
    }

    /// Plans the next candidacy: in turn by node number, with some chance, so that two rarely
    /// stand at once.
    pub(super) fn schedule_stand(&mut self, from: BootTime) {
        let interval = self.config.timing.interval;
        let rank = self
            .config
            .voters
            .iter()
            .take_while(|pnn| *pnn != self.config.me)
            .count() as u32;
        let jitter = self.jitter(interval / 8);
        self.stand_at = from + interval / 8 * rank.min(8) + jitter;
    }

    pub(super) fn election_wakeup(&self) -> BootTime {
        match self.role {
            // A main loop that hangs is waited for, not the clock (MEM-4).
            Role::Follower if self.config.mode.lock_alone() => {
                // Heartbeats are often enough, but for the moment that was planned.
                if self.eligible
                    && !self.leaving
                    && self.lock_held(self.last_tick)
                    && self.stand_at > self.last_tick
                {
                    self.stand_at
                } else {
                    BootTime(u64::MAX)
                }
            }
            Role::Follower if !self.may_stand_by_lock(self.last_tick) => BootTime(u64::MAX),
            Role::Follower
                if self.eligible
                    && !self.leaving
                    && self.last_tick.since(self.progress_at) <= PROGRESS_LIMIT =>
            {
                let bound = self.promise.map_or(BootTime::ZERO, |promise| promise.until);
                let abstain = if self.fresh_cluster() {
                    BootTime::ZERO
                } else {
                    self.abstain_until
                };
                let silent = self.started_at + self.config.timing.settle();
                let earliest = self.stand_at.max(silent);
                earliest.max(bound).max(abstain).max(self.grace_until)
            }
            Role::Follower => BootTime(u64::MAX),
            Role::PreCandidate { until, .. } | Role::Candidate { until, .. } => until,
            Role::Claimant { .. } => self.lock_wakeup(),
            Role::Leader { .. } => self
                .acting(self.last_tick)
                .map_or(self.last_tick, |(_, until)| until),
        }
    }

    pub(super) fn check_election(&mut self, now: BootTime, sink: &mut impl Sink) {
        self.free_lapsed(now, sink);
        match self.role {
            Role::Follower => {
                let ready = self.eligible
                    && !self.config.mode.lock_alone()
                    && self.may_stand_by_lock(now)
                    && !self.leaving
                    && !self.abstaining(now)
                    && now >= self.stand_at
                    && now >= self.grace_until
                    && now >= self.started_at + self.config.timing.settle()
                    && now.since(self.progress_at) <= PROGRESS_LIMIT
                    && self.promise.is_none_or(|promise| now >= promise.until);
                if ready {
                    self.pre_vote(now, sink);
                }
            }
            Role::PreCandidate { until, .. } => {
                if now >= until {
                    self.role = Role::Follower;
                    self.retry_later(now);
                }
            }
            Role::Candidate { until, .. } => {
                if now >= until {
                    self.withdraw(now, sink);
                }
            }
            Role::Claimant { .. } => {}
            Role::Leader { .. } => {
                if self.acting(now).is_none() {
                    self.lapse(now, sink);
                }
            }
        }
    }

    /// Whether a voter that answers has not promised for long: it has voted for a newer term
    /// in which nobody acted, and the withdrawal was lost. Only a newer term wins it back.
    /// The main loop renounces first (R9). A voter that has just started promises nobody for L + m
    /// (R10), and is no reason.
    pub(super) fn is_fenced_off(&self, now: BootTime) -> bool {
        let Role::Leader { elected_at, .. } = self.role else {
            return false;
        };
        let timing = self.config.timing;
        let long = timing.promise() * 2;
        now.since(elected_at) > long
            && self.config.voters.iter().any(|pnn| {
                let peer = &self.peers[pnn.index()];
                let promised = peer.promised_s.max(elected_at).max(peer.known_at);
                pnn != self.config.me
                    && peer.answered_s > elected_at
                    && now.since(peer.replied_at) < timing.interval * 2
                    && now.since(promised) > long
            })
    }

    /// `both`: only who holds the lock stands.
    fn may_stand_by_lock(&self, now: BootTime) -> bool {
        self.config.mode.lock().is_none() || self.lock_held(now)
    }

    fn retry_later(&mut self, now: BootTime) {
        let interval = self.config.timing.interval;
        let jitter = self.jitter(interval);
        self.stand_at = now + interval / 2 + jitter;
    }

    fn pre_vote(&mut self, now: BootTime, sink: &mut impl Sink) {
        let number = self.highest_number + 1;
        let term = Term {
            number,
            leader: self.config.me,
            session: self.config.incarnation,
        };
        let yes = NodeSet::from_iter([self.config.me]);
        let until = now + self.config.timing.interval * 2;
        let no = NodeSet::EMPTY;
        self.role = Role::PreCandidate {
            term,
            yes,
            no,
            until,
        };
        self.broadcast(
            &Message::VoteRequest {
                term,
                pre: true,
                sent_at: now.0,
                list: self.config.voters,
            },
            sink,
        );
        self.stand_if_wanted(now, sink);
    }

    fn stand_if_wanted(&mut self, now: BootTime, sink: &mut impl Sink) {
        let Role::PreCandidate { term, yes, .. } = self.role else {
            return;
        };
        if yes.len() < self.config.quorum || !self.can_promise(now, term) {
            return;
        }
        for peer in &mut self.peers {
            peer.promised_s = BootTime::ZERO;
        }
        self.give_promise(now, term);
        // The own promise binds the candidate itself whatever is planted for voters.
        self.promise = Some(Promise {
            term,
            until: now + self.config.timing.promise(),
        });
        let until = now + self.config.timing.interval * 2;
        self.role = Role::Candidate {
            term,
            sent_at: now,
            no: NodeSet::EMPTY,
            until,
        };
        self.broadcast(
            &Message::VoteRequest {
                term,
                pre: false,
                sent_at: now.0,
                list: self.config.voters,
            },
            sink,
        );
        self.lead_if_elected(now);
    }

    fn lead_if_elected(&mut self, now: BootTime) {
        let Role::Candidate { term, sent_at, .. } = self.role else {
            return;
        };
        let Some(newest) = self.quorum_newest(sent_at, |peer| peer.promised_s) else {
            return;
        };
        if now >= newest + self.config.timing.lease {
            return;
        }
        self.become_leader(now, term);
    }

    pub(super) fn become_leader(&mut self, now: BootTime, term: Term) {
        self.clear_evidence();
        for peer in &mut self.peers {
            peer.stopped = None; // Of an older term (R14).
        }
        self.raise_newest(term);
        self.led = Some(term);
        self.lapsed = None;
        self.shown_until = now;
        self.role = Role::Leader {
            term,
            elected_at: now,
        };
        // The first heartbeat of the term gives the evidence in one round trip (R13); it must
        // be later than the election.
        self.next_heartbeat = now;
    }

    /// Somebody stands, or asks whether it should.
    pub(super) fn vote_request(
        &mut self,
        now: BootTime,
        from: Pnn,
        term: Term,
        pre: bool,
        sent_at: u64,
        sink: &mut impl Sink,
    ) {
        let incarnation = self.peers[from.index()].incarnation;
        if term.leader != from || term.session != incarnation {
            return;
        }
        if self.config.mode.lock_alone() {
            self.holder_asked(now, from, term, sent_at, sink);
            return;
        }
        let above = self
            .newest
            .max(self.voted)
            .is_none_or(|newest| term > newest);
        let granted = above && self.can_promise(now, term);
        self.highest_number = self.highest_number.max(term.number);
        if granted && !pre {
            if matches!(self.role, Role::PreCandidate { .. }) {
                self.role = Role::Follower;
            }
            self.give_promise(now, term);
        }
        let newest_number = self.highest_number;
        let vote = Message::Vote {
            term,
            pre,
            echo: sent_at,
            granted,
            newest_number,
        };
        sink.send(from, &vote);
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn vote(
        &mut self,
        now: BootTime,
        from: Pnn,
        term: Term,
        pre: bool,
        echo: BootTime,
        granted: bool,
        newest_number: u64,
        sink: &mut impl Sink,
    ) {
        self.highest_number = self.highest_number.max(newest_number);
        self.peers[from.index()].replied_at = now;
        if self.config.mode.lock_alone() {
            self.holder_answered(now, from, term, echo);
            return;
        }
        // So many noes leave no quorum.
        let enough = self.config.voters.len() + 1 - self.config.quorum;
        match &mut self.role {
            Role::PreCandidate {
                term: mine,
                yes,
                no,
                ..
            } if pre && *mine == term => {
                if granted {
                    yes.insert(from);
                    self.stand_if_wanted(now, sink);
                } else {
                    no.insert(from);
                    if no.len() >= enough {
                        self.withdraw(now, sink);
                    }
                }
            }
            Role::Candidate {
                term: mine,
                sent_at,
                no,
                ..
            } if !pre && *mine == term && echo == *sent_at => {
                if granted {
                    self.peers[from.index()].promised_s = echo;
                    self.lead_if_elected(now);
                } else {
                    no.insert(from);
                    if no.len() >= enough {
                        self.withdraw(now, sink);
                    }
                }
            }
            _ => {} // R9: votes for a candidacy that is over are ignored.
        }
    }

    /// R9: gives up a candidacy or a term: first stop, then say so.
    pub(super) fn withdraw(&mut self, now: BootTime, sink: &mut impl Sink) {
        let Some(term) = self.role_term() else { return };
        let acted = self.is_leader();
        self.lock_idle(now);
        let bound = acted || matches!(self.role, Role::Candidate { .. });
        self.role = Role::Follower;
        self.clear_evidence();
        if bound {
            if self.promise.is_some_and(|promise| promise.term == term) {
                self.promise = None;
            }
            self.forget_vote(term, acted);
            self.broadcast(&Message::Withdraw { term, acted }, sink);
        }
        self.retry_later(now);
    }

    /// R9: a term ends that this node has not given up itself. A main loop that stands still may
    /// have read that it acts until [`Authority::shown_until`], and acts when it goes on: the
    /// promises bind until then, or until it has renounced, as they do when a leader dies. Where
    /// promises run out that moment has come; a lost lock (`both`) and a voter's restart come
    /// before it. DESIGN.md P4.
    pub(super) fn lapse(&mut self, now: BootTime, sink: &mut impl Sink) {
        let frees = self.config.mode.lock_alone() // R21 asks for the renunciation there.
            || self.may_free(now);
        let term = match self.role {
            Role::Leader { term, .. } if !frees => term,
            // A candidacy frees at once: nobody acts in it.
            _ => return self.withdraw(now, sink),
        };
        self.lapsed = Some(term);
        self.lock_idle(now);
        self.role = Role::Follower;
        self.clear_evidence();
        self.retry_later(now);
    }

    /// The main loop's copy of the status carries the end of acting.
    pub(super) fn note_shown(&mut self, now: BootTime) {
        if let Some((_, until)) = self.acting(now) {
            self.shown_until = self.shown_until.max(until);
        }
    }

    /// Nothing in this node acts any more in the last term that it led.
    fn may_free(&self, now: BootTime) -> bool {
        now >= self.shown_until || !self.main_may_act()
    }

    /// The rest of what [`Authority::lapse`] put off.
    fn free_lapsed(&mut self, now: BootTime, sink: &mut impl Sink) {
        let Some(term) = self.lapsed.filter(|_| self.may_free(now)) else {
            return;
        };
        self.lapsed = None;
        if self.promise.is_some_and(|promise| promise.term == term) {
            self.promise = None;
        }
        self.broadcast(&Message::Withdraw { term, acted: true }, sink);
        self.retry_later(now);
    }

    /// A vote for a term in which nobody acted, and nobody will, binds no more.
    fn forget_vote(&mut self, term: Term, acted: bool) {
        if !acted && self.voted == Some(term) && self.newest != Some(term) {
            self.voted = self.voted_before;
        }
    }

    /// What the main loop learned from frames.
    pub(super) fn books(&mut self, now: BootTime, books: Books, sink: &mut impl Sink) {
        self.books = books;
        if let Some(newest) = books.newest {
            self.highest_number = self.highest_number.max(newest.number);
            if self.voted < books.newest {
                self.voted_before = books.newest;
                self.voted = books.newest;
            }
        }
        if let Role::Leader { term, .. } = self.role
            && books.renounced.is_some_and(|renounced| term <= renounced)
        {
            let outdated = books.newest.is_some_and(|newest| term < newest);
            let outdated = outdated || self.is_fenced_off(now) || self.claimed_by_other();
            self.withdraw(now, sink);
            self.stand_at = if outdated {
                now // Only the number is to be higher.
            } else {
                // Others first.
                now + self.config.timing.promise() * 2
            };
        }
        self.answer_claims(now, sink);
    }

    /// The main loop has stopped acting; the leader resigns.
    pub(super) fn resign(&mut self, now: BootTime, sink: &mut impl Sink) {
        self.withdraw(now, sink);
    }

    /// A peer gave up `term`; it frees only promises of that term.
    pub(super) fn withdrawn(&mut self, now: BootTime, from: Pnn, term: Term, acted: bool) {
        if term.leader != from || term.session == Incarnation::NONE {
            return;
        }
        if self.promise.is_some_and(|promise| promise.term == term) {
            self.promise = None;
            self.schedule_stand(now);
        }
        self.forget_vote(term, acted);
        if self.newest == Some(term) {
            self.leader_heard_at = BootTime::ZERO;
        }
    }
}
