//! The leader's evidence that a node has no right: R11 to R14.

use std::time::Duration;

use ctdb_wire::heartbeat::AGE_INFINITE;
use ctdb_wire::ids::{BootTime, Epoch, Incarnation, NodeSet, Pnn};

use super::{Authority, Report, Role, stretch};
use crate::planted::Bug;

/// What a wake-up, a round trip and the millisecond of the ages may cost beyond the computed
/// moment at which evidence is complete.
const EVIDENCE_SLACK: Duration = Duration::from_millis(3);

impl Authority {
    /// Whom the leader's heartbeats name.
    pub(super) fn evict_set(&self) -> NodeSet {
        self.config
            .voters
            .iter()
            .filter(|pnn| self.peers[pnn.index()].evicted_since.is_some())
            .chain(self.strangers().iter())
            .collect()
    }

    pub(super) fn begin_eviction(&mut self, now: BootTime, pnn: Pnn) {
        let peer = &mut self.peers[pnn.index()];
        if peer.evicted_since.is_none() {
            peer.evicted_since = Some(now);
            peer.evidence = None;
        }
    }

    /// Forgets all evictions and evidence: they belong to one term (R13).
    pub(super) fn clear_evidence(&mut self) {
        for peer in &mut self.peers {
            peer.evicted_since = None;
            peer.evidence = None;
            peer.report = None;
        }
        self.strangers = NodeSet::EMPTY;
    }

    /// Starts evictions of nodes that have not answered for L (who is heard but does not hear
    /// is of no more use than who is silent), and ends them when the node answers again: it
    /// goes on as if nothing had been if there is no evidence yet, and holds nothing otherwise.
    pub(super) fn check_evictions(&mut self, now: BootTime) {
        let Role::Leader { elected_at, .. } = self.role else {
            return;
        };
        self.note_own_strangers(now);
        if self.acting(now).is_none() || now < self.grace_until {
            return;
        }
        let timing = self.config.timing;
        for pnn in self.config.voters.iter() {
            if pnn == self.config.me {
                continue;
            }
            let peer = &self.peers[pnn.index()];
            let current = Epoch {
                incarnation: peer.incarnation,
                number: peer.epoch,
            };
            let unaccounted = self.books.unaccounted.contains(pnn)
                && !(peer.evidence.is_some() && peer.evidence_epoch == current)
                && now.since(elected_at) >= timing.lease;
            if let Some(since) = peer.evicted_since {
                let speaks = peer.replied_at > since
                    && now.since(peer.replied_at) < timing.interval * 2
                    && peer.incarnation != peer.gone;
                // By evidence that right is over. Who still claims it has a clock that stood
                // still (a paused machine): unanswered until the right has ended there as well.
                let claims = peer.has_right
                    && peer.evidence.is_some()
                    && peer.evidence_epoch.incarnation == current.incarnation
                    && current.number <= peer.evidence_epoch.number;
                if speaks && !unaccounted && !claims {
                    self.peers[pnn.index()].evicted_since = None;
                    self.next_heartbeat = now;
                }
            } else if now.since(peer.replied_at.max(self.started_at)) >= timing.lease
                || unaccounted
                || peer.gone != Incarnation::NONE
                    && peer.incarnation == peer.gone
                    && peer.evidence.is_none_or(|s| s < elected_at)
            {
                self.begin_eviction(now, pnn);
                self.next_heartbeat = now;
            }
        }
        if self.config.mode.lock_alone() {
            self.holder_evidence(now);
        }
    }

    /// R23: the holder is the only witness, so its own record is the evidence.
    fn holder_evidence(&mut self, now: BootTime) {
        for x in self.evict_set().iter() {
            if self.peers[x.index()].evidence.is_some() {
                continue;
            }
            let age = self.holder_age_nanos(now, x);
            let needed = self.config.timing.promise();
            let missing = needed.saturating_sub(Duration::from_nanos(age));
            if missing == Duration::ZERO || self.config.planted.has(Bug::SilenceIsExpiry) {
                let peer = &mut self.peers[x.index()];
                peer.evidence = Some(now);
                peer.evidence_epoch = Epoch {
                    incarnation: peer.incarnation,
                    number: peer.epoch,
                };
            } else {
                self.next_heartbeat = self.next_heartbeat.min(now + missing);
            }
        }
    }

    /// R12: the answers to one heartbeat, from at least Q voters other than X.
    pub(super) fn report(&mut self, now: BootTime, from: Pnn, report: Report) {
        let Role::Leader { elected_at, .. } = self.role else {
            return;
        };
        self.peers[from.index()].report = Some(report);
        if self.config.mode.lock_alone() {
            return;
        }
        self.note_strangers(|_, pnn| match report.ages[pnn.index()] {
            AGE_INFINITE => None,
            ms => Some(u64::from(ms)),
        });
        let sent_at = report.sent_at;
        // R13: ages that came before the election are not evidence.
        if sent_at < elected_at {
            return;
        }
        for x in self.evict_set().iter() {
            let peer = &self.peers[x.index()];
            if peer.evidence.is_some_and(|s| s >= sent_at) {
                continue;
            }
            if peer.epoch_learned_at >= sent_at {
                continue; // R13.
            }
            if let Some(missing) = self.missing_age(now, x, sent_at) {
                if missing == Duration::ZERO {
                    let peer = &mut self.peers[x.index()];
                    peer.evidence = Some(sent_at);
                    peer.evidence_epoch = Epoch {
                        incarnation: peer.incarnation,
                        number: peer.epoch,
                    };
                } else {
                    // Ask again when the answer will be yes, not at the next interval. Who has
                    // not heard of the death yet (R19) soon has.
                    let gone = peer.gone != Incarnation::NONE && peer.gone == peer.incarnation;
                    let wait = if gone {
                        missing.min(self.config.timing.interval / 16)
                    } else {
                        missing
                    };
                    let at = now + wait + EVIDENCE_SLACK;
                    self.next_heartbeat = self.next_heartbeat.min(at);
                }
            }
        }
    }

    /// How much older the answers to the heartbeat of `sent_at` should be for them to be
    /// evidence against `x`: zero if they are; `None` if fewer than Q voters have answered it.
    fn missing_age(&self, now: BootTime, x: Pnn, sent_at: BootTime) -> Option<Duration> {
        let needed = self.config.timing.promise();
        if self.config.planted.has(Bug::SilenceIsExpiry) {
            return Some(Duration::ZERO);
        }
        let mut missing = [Duration::ZERO; ctdb_wire::ids::MAX_NODES];
        let mut count = 0;
        for pnn in self.config.voters.iter() {
            if pnn == x {
                continue;
            }
            let (age_nanos, round_trip) = if pnn == self.config.me {
                (self.age_nanos(now, x), now.since(sent_at))
            } else {
                let Some(report) = &self.peers[pnn.index()].report else {
                    continue;
                };
                if report.sent_at != sent_at || !report.stopped.contains(x) {
                    continue;
                }
                if !report.promised && !self.config.voters.contains(x) {
                    continue; // An earlier life of it may have answered (L5).
                }
                let age = match report.ages[x.index()] {
                    AGE_INFINITE => u64::MAX,
                    ms => u64::from(ms) * 1_000_000,
                };
                (age, report.received_at.since(sent_at))
            };
            missing[count] = if age_nanos == u64::MAX {
                Duration::ZERO
            } else {
                (needed + stretch(round_trip)).saturating_sub(Duration::from_nanos(age_nanos))
            };
            count += 1;
        }
        if count < self.config.quorum {
            return None;
        }
        missing[..count].sort_unstable();
        Some(missing[self.config.quorum - 1])
    }
}
