//! The cluster lock: who holds it, what that proves, and the claim of a new holder. R20 to R23.
//!
//! With `authority = lock` the holder is the leader and the only witness, so nobody votes. With
//! `both` the rules of the majority hold as they are; who stands and acts must hold the lock as
//! well, and a right needs an answer of the acting holder beside those of the quorum.

use std::time::Duration;

use ctdb_wire::heartbeat::Message;
use ctdb_wire::ids::{BootTime, NodeSet, Pnn, Term};
use serde::{Deserialize, Serialize};

use super::{Authority, PROGRESS_LIMIT, Role, Sink, stretch};
use crate::planted::Bug;

/// What gives a partition the right to serve (`[cluster] authority`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Mode {
    /// More than half of the configured nodes.
    Majority,
    /// A node that holds the cluster lock.
    Lock(LockTimes),
    /// Both.
    Both(LockTimes),
}

/// Times of the cluster lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LockTimes {
    /// V: how long a proof that the lock is held counts, from the start of the recheck.
    pub validity: Duration,
    /// From the grant until the addresses of a node that cannot be reached are free; at least
    /// 1.2·(V + L) + q (R23).
    pub settle: Duration,
}

impl Mode {
    /// Times of the lock, if it decides anything.
    pub fn lock(self) -> Option<LockTimes> {
        match self {
            Self::Majority => None,
            Self::Lock(times) | Self::Both(times) => Some(times),
        }
    }

    /// Whether the holder alone is the witness, and nobody votes.
    pub fn lock_alone(self) -> bool {
        matches!(self, Self::Lock(_))
    }
}

/// What the lock client found out. A *tenure* is one life of a helper that got the lock; a
/// helper never takes it again by itself, so a recheck proves the same tenure (R20).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum LockNews {
    /// The lock was granted.
    Held {
        /// Number of the tenure.
        tenure: u64,
        /// Read before it was asked for: the grant proves no more than a recheck of that start.
        asked_at: BootTime,
        /// Read after the grant was received (R21, R23).
        granted_at: BootTime,
    },
    /// A recheck proved that the tenure goes on.
    Proved {
        /// Number of the tenure.
        tenure: u64,
        /// When the recheck started.
        at: BootTime,
    },
    /// The tenure is over, or not known to go on; its helper is dead.
    Lost {
        /// Number of the tenure.
        tenure: u64,
    },
}

/// The lock as `ctdb cluster` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct LockStatus {
    /// The tenure, if this node holds the lock.
    pub tenure: Option<u64>,
    /// Until when the last proof counts.
    pub valid_until: Option<BootTime>,
    /// It asks all others whether they act, or waits for their validity to end (R21).
    pub claiming: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Tenure {
    number: u64,
    granted_at: BootTime,
    /// Start of the last recheck that proved it.
    proved_at: BootTime,
}

/// What a node knows of its own lock.
#[derive(Clone, Copy, Default, Debug, Serialize, Deserialize)]
pub(crate) struct Lock {
    tenure: Option<Tenure>,
    /// Only a proof that started later counts: this node has told another claimant that it
    /// does not act (R21).
    proof_after: BootTime,
    /// Since when the lock is held without acting (`both`: others may get the votes).
    idle_since: BootTime,
    /// The lock is left to others until then.
    left_until: BootTime,
    /// As holder: no other holder has answered anybody since (R23).
    pub accounted_from: BootTime,
}

impl Authority {
    /// Until when this node's lock counts by its last proof (R22).
    pub(super) fn lock_valid_until(&self) -> Option<BootTime> {
        let times = self.config.mode.lock()?;
        let tenure = self.lock.tenure?;
        if tenure.proved_at <= self.lock.proof_after && !self.config.planted.has(Bug::ClaimKept) {
            return None;
        }
        let validity = if self.config.planted.has(Bug::ActsAfterLostLock) {
            times.validity * 4
        } else {
            times.validity
        };
        Some(tenure.proved_at + validity)
    }

    pub(super) fn lock_held(&self, now: BootTime) -> bool {
        self.lock_valid_until().is_some_and(|until| now < until)
    }

    /// R21: when all others' validity is over, whoever can be reached.
    fn claim_ends_at(&self, times: LockTimes) -> Option<BootTime> {
        let timing = self.config.timing;
        let least = stretch(times.validity) + timing.queue;
        let wait = least.max(times.settle.saturating_sub(timing.promise()));
        self.lock.tenure.map(|tenure| tenure.granted_at + wait)
    }

    /// News of the lock client.
    pub(super) fn lock_news(&mut self, now: BootTime, news: LockNews, sink: &mut impl Sink) {
        match news {
            LockNews::Held {
                tenure,
                asked_at,
                granted_at,
            } => {
                self.lock.tenure = Some(Tenure {
                    number: tenure,
                    granted_at: granted_at.min(now),
                    proved_at: asked_at.min(granted_at).min(now),
                });
                self.lock.idle_since = now;
                self.stand_at = self.stand_at.min(now);
            }
            LockNews::Proved { tenure, at } => {
                if let Some(held) = &mut self.lock.tenure
                    && held.number == tenure
                {
                    held.proved_at = held.proved_at.max(at.min(now));
                }
            }
            LockNews::Lost { tenure } => {
                if self.config.planted.has(Bug::ActsAfterLostLock)
                    || self.lock.tenure.is_none_or(|held| held.number != tenure)
                {
                    return;
                }
                self.lock.tenure = None;
                if self.config.mode.lock().is_some() {
                    self.lapse(now, sink);
                }
            }
        }
    }

    /// Whether the shell is to take the lock, or to go on holding it.
    pub(super) fn lock_wanted(&self, now: BootTime) -> bool {
        if self.config.mode.lock().is_none()
            || !self.eligible
            || self.leaving
            || now < self.started_at + self.config.timing.settle()
        {
            return false;
        }
        if self.lock.tenure.is_some() {
            return now >= self.lock.left_until;
        }
        let silent = self.leader_heard_at == BootTime::ZERO
            || now.since(self.leader_heard_at) >= self.config.timing.lease;
        silent && !self.abstaining(now) && now >= self.lock.left_until
    }

    pub(super) fn lock_status(&self) -> LockStatus {
        LockStatus {
            tenure: self.lock.tenure.map(|tenure| tenure.number),
            valid_until: self.lock_valid_until(),
            claiming: matches!(self.role, Role::Claimant { .. }),
        }
    }

    /// Notes that the holder stopped acting.
    pub(super) fn lock_idle(&mut self, now: BootTime) {
        self.lock.idle_since = now;
    }

    /// The holder's step.
    pub(super) fn check_lock(&mut self, now: BootTime, sink: &mut impl Sink) {
        let Some(times) = self.config.mode.lock() else {
            return;
        };
        let timing = self.config.timing;
        if !self.config.mode.lock_alone() {
            // Whoever gets no votes leaves the lock to those who may.
            let idle = self.lock.tenure.is_some()
                && !self.is_leader()
                && now >= self.lock.left_until
                && now.since(self.lock.idle_since) >= timing.promise() * 2;
            if idle {
                let more = self.jitter(timing.promise());
                self.lock.left_until = now + timing.promise() + more;
                self.lock.idle_since = self.lock.left_until;
            }
            return;
        }
        let may = self.eligible
            && !self.leaving
            && self.lock_held(now)
            && now.since(self.progress_at) <= PROGRESS_LIMIT;
        match self.role {
            Role::Follower => {
                if may && now >= self.stand_at && now >= self.started_at + timing.settle() {
                    let term = Term {
                        number: self.highest_number + 1,
                        leader: self.config.me,
                        session: self.config.incarnation,
                    };
                    self.role = Role::Claimant {
                        term,
                        answered: NodeSet::from_iter([self.config.me]),
                        since: now,
                        asked_at: now,
                    };
                    self.ask_holders(now, sink);
                    self.lead_if_claimed(now, times);
                }
            }
            Role::Claimant { asked_at, .. } => {
                if !may {
                    self.withdraw(now, sink);
                    return;
                }
                if now.since(asked_at) >= timing.interval {
                    self.ask_holders(now, sink);
                }
                self.lead_if_claimed(now, times);
            }
            Role::PreCandidate { .. } | Role::Candidate { .. } | Role::Leader { .. } => {}
        }
    }

    /// R21: "do you act?"
    fn ask_holders(&mut self, now: BootTime, sink: &mut impl Sink) {
        let list = self.config.voters;
        if let Role::Claimant {
            term,
            answered,
            asked_at,
            ..
        } = &mut self.role
        {
            *asked_at = now;
            let message = Message::VoteRequest {
                term: *term,
                pre: false,
                sent_at: now.0,
                list,
            };
            for pnn in list.iter() {
                let known =
                    self.peers[pnn.index()].incarnation != ctdb_wire::ids::Incarnation::NONE;
                if known && !answered.contains(pnn) {
                    sink.send(pnn, &message);
                }
            }
        }
    }

    /// When the claimant has something to do besides heartbeats.
    pub(super) fn lock_wakeup(&self) -> BootTime {
        let never = BootTime(u64::MAX);
        let Role::Claimant { asked_at, .. } = self.role else {
            return never;
        };
        let again = asked_at + self.config.timing.interval;
        let times = self.config.mode.lock();
        let ends = times.and_then(|times| self.claim_ends_at(times));
        again.min(ends.unwrap_or(never))
    }

    fn lead_if_claimed(&mut self, now: BootTime, times: LockTimes) {
        let Role::Claimant { term, answered, .. } = self.role else {
            return;
        };
        let all = self.config.voters.iter().all(|pnn| answered.contains(pnn));
        let over = self.claim_ends_at(times).is_some_and(|end| now >= end);
        if !all && !over && !self.config.planted.has(Bug::LockActsAtOnce) {
            return;
        }
        let term = Term {
            number: term.number.max(self.highest_number + 1),
            ..term
        };
        self.lock.accounted_from = if self.config.planted.has(Bug::SettleSkipped) {
            self.started_at
        } else {
            now
        };
        self.become_leader(now, term);
    }

    /// Somebody claims the lock: whoever answers acts no more until a later recheck (R21).
    pub(super) fn holder_asked(
        &mut self,
        now: BootTime,
        from: Pnn,
        term: Term,
        sent_at: u64,
        sink: &mut impl Sink,
    ) {
        let peer = &mut self.peers[from.index()];
        if sent_at <= peer.asked_at {
            return; // Came late, or twice.
        }
        peer.asked_at = sent_at;
        peer.asks = Some(term);
        if !self.is_leader() && !self.config.planted.has(Bug::ClaimKept) {
            self.withdraw(now, sink); // A claim of its own.
        }
        self.answer_claims(now, sink);
    }

    /// Whether somebody claims the lock from a holder that acts: its main loop is to stop first,
    /// and to say so by [`super::Books::renounced`] (R9, R21).
    pub(super) fn claimed_by_other(&self) -> bool {
        self.main_may_act() && self.peers.iter().any(|peer| peer.asks.is_some())
    }

    /// The main loop may not have heard yet that the last term is over.
    pub(super) fn main_may_act(&self) -> bool {
        self.led.is_some_and(|led| self.books.renounced < Some(led))
    }

    /// Answers who claims the lock, as soon as nothing here acts any more.
    pub(super) fn answer_claims(&mut self, now: BootTime, sink: &mut impl Sink) {
        if self.main_may_act() && !self.config.planted.has(Bug::ClaimKept) {
            return;
        }
        for pnn in self.config.voters.iter() {
            let peer = &mut self.peers[pnn.index()];
            let Some(term) = peer.asks.take() else {
                continue;
            };
            let vote = Message::Vote {
                term,
                pre: false,
                echo: peer.asked_at,
                granted: true,
                newest_number: self.highest_number,
            };
            self.highest_number = self.highest_number.max(term.number);
            self.lock.proof_after = now;
            sink.send(pnn, &vote);
        }
    }

    /// A node says that it does not act.
    pub(super) fn holder_answered(&mut self, now: BootTime, from: Pnn, term: Term, echo: BootTime) {
        let Some(times) = self.config.mode.lock() else {
            return;
        };
        if let Role::Claimant {
            term: mine,
            answered,
            since,
            ..
        } = &mut self.role
            && *mine == term
            && echo >= *since
        {
            answered.insert(from);
            self.lead_if_claimed(now, times);
        }
    }

    /// R23: how long no holder has answered `x`, as this holder knows it.
    pub(super) fn holder_age_nanos(&self, now: BootTime, x: Pnn) -> u64 {
        let peer = &self.peers[x.index()];
        let accounted = now.since(self.lock.accounted_from);
        let gone = peer.gone == peer.answered_incarnation
            && peer.answered_at > self.lock.accounted_from
            && accounted >= self.config.timing.promise();
        if gone {
            return u64::MAX;
        }
        let since = peer.answered_at.max(self.lock.accounted_from);
        now.0.saturating_sub(since.0)
    }
}
