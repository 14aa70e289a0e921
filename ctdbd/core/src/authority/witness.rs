//! The witness: answers, what it records of them, and whom it has stopped answering.
//! R4, R8, R11, R14, R19.

use ctdb_wire::heartbeat::{AGE_INFINITE, Ages, Message};
use ctdb_wire::ids::{BootTime, Incarnation, MAX_NODES, NodeSet, Pnn, Term};

use super::{Authority, Sink};
use crate::planted::Bug;

impl Authority {
    /// A heartbeat of `from`: promise if it leads, then record, then answer.
    pub(super) fn witness(
        &mut self,
        now: BootTime,
        from: Pnn,
        sent_at: u64,
        leader: Option<Term>,
        evict: NodeSet,
        sink: &mut impl Sink,
    ) {
        let incarnation = self.peers[from.index()].incarnation;
        let in_order = sent_at >= self.peers[from.index()].last_sent_at;
        if in_order {
            self.peers[from.index()].last_sent_at = sent_at;
        }
        let leader =
            leader.filter(|term| in_order && term.leader == from && term.session == incarnation);
        let promise = leader.and_then(|term| self.leader_heard(now, term, evict, sink));
        if self.stopped(now, from) {
            return;
        }
        let message = Message::Answer {
            echo: sent_at,
            epoch: self.epoch,
            virgin: self.virgin,
            holder: self.config.mode.lock().is_some() && self.acting(now).is_some(),
            promise,
            stopped: self.stopped_set(now),
            ages: leader.map(|_| self.ages(now)),
        };
        // R4: recorded before it is sent.
        if !self.config.planted.has(Bug::AnswerNotRecorded) {
            let peer = &mut self.peers[from.index()];
            peer.answered_at = now;
            peer.answered_incarnation = incarnation;
        }
        sink.send(from, &message);
    }

    /// R14: evictions stand in the heartbeats of the newest leader, and end with the first
    /// heartbeat of that or a newer term that does not name the node, or L + m after the last
    /// that did.
    pub(super) fn obey_evictions(&mut self, now: BootTime, term: Term, evict: NodeSet) {
        let until = now + self.config.timing.promise();
        for pnn in self.config.voters.iter() {
            if pnn == self.config.me {
                continue;
            }
            let peer = &mut self.peers[pnn.index()];
            if evict.contains(pnn) {
                peer.stopped = Some((until, term));
            } else if peer.stopped.is_some_and(|(_, by)| by <= term) {
                peer.stopped = None;
            }
        }
    }

    /// Whether `pnn` is not to be answered.
    pub(super) fn stopped(&self, now: BootTime, pnn: Pnn) -> bool {
        let peer = &self.peers[pnn.index()];
        peer.evicted_since.is_some() || peer.stopped.is_some_and(|(until, _)| now < until)
    }

    fn stopped_set(&self, now: BootTime) -> NodeSet {
        let stopped: NodeSet = self
            .config
            .voters
            .iter()
            .filter(|pnn| self.stopped(now, *pnn))
            .collect();
        // Nobody outside of the list is answered (R25).
        NodeSet(stopped.0 | !self.config.voters.0)
    }

    /// R11: time since the last answer, at most this life's length; infinite if that answer
    /// went to an incarnation known dead.
    pub(super) fn age_nanos(&self, now: BootTime, pnn: Pnn) -> u64 {
        let peer = &self.peers[pnn.index()];
        if peer.answered_at != BootTime::ZERO
            && peer.gone != Incarnation::NONE
            && peer.gone == peer.answered_incarnation
        {
            return u64::MAX;
        }
        if !self.config.voters.contains(pnn) && peer.answered_at == BootTime::ZERO {
            // R25: what an earlier life of this witness answered is over when it promises again.
            return u64::MAX;
        }
        let since = peer.answered_at.max(self.started_at);
        now.0.saturating_sub(since.0)
    }

    fn ages(&self, now: BootTime) -> Ages {
        let mut ages = [0; MAX_NODES];
        for pnn in NodeSet(u64::MAX).iter() {
            ages[pnn.index()] = match self.age_nanos(now, pnn) {
                u64::MAX => AGE_INFINITE,
                nanos => (nanos / 1_000_000).min(u64::from(AGE_INFINITE - 1)) as u16,
            };
        }
        ages
    }

    /// R19: the guard of a dead daemon speaks, after its deadline has ended, or the leader
    /// forwards it. It ends promises to, and ages for, that incarnation only.
    pub(super) fn gone(&mut self, now: BootTime, incarnation: Incarnation) {
        let replayed = self.config.planted.has(Bug::GoodbyeReplayed);
        let dead = NodeSet(u64::MAX).iter().find(|pnn| {
            let peer = &self.peers[pnn.index()];
            incarnation != Incarnation::NONE
                && *pnn != self.config.me
                && (peer.incarnation == incarnation
                    || replayed && peer.answered_incarnation == incarnation)
        });
        let Some(dead) = dead else { return };
        let peer = &mut self.peers[dead.index()];
        let incarnation = peer.incarnation;
        if peer.gone == incarnation {
            return;
        }
        peer.gone = incarnation;
        peer.has_right = false;
        if self
            .promise
            .is_some_and(|promise| promise.term.session == incarnation)
        {
            self.promise = None;
            self.leader_heard_at = BootTime::ZERO;
            self.schedule_stand(now);
        }
        if self.is_leader() && self.config.voters.contains(dead) {
            self.begin_eviction(now, dead);
            self.next_heartbeat = now;
        }
    }
}
