//! A node's own right: R4 to R6.

use std::time::Duration;

use ctdb_wire::ids::{BootTime, Pnn};
use serde::{Deserialize, Serialize};

use super::{Authority, Sink, slot_of};
use crate::planted::Bug;

/// Whether this node may serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Right {
    /// The old epoch is over and silent; answers count towards a right in the next.
    Waiting,
    /// Held in the current epoch until the deadline.
    Held {
        /// End of the right.
        until: BootTime,
    },
    /// It ended; answers are ignored until packets that passed the old check have left (R6).
    Lapsed {
        /// Old end + 1.2·q.
        resume_at: BootTime,
    },
}

impl Right {
    /// Whether it is held at `now`.
    pub fn held_at(&self, now: BootTime) -> bool {
        matches!(self, Self::Held { until } if now < *until)
    }

    /// End of a held right.
    pub fn until(&self) -> Option<BootTime> {
        match self {
            Self::Held { until } => Some(*until),
            _ => None,
        }
    }

    pub(super) fn next_change(&self) -> Option<BootTime> {
        match self {
            Self::Waiting => None,
            Self::Held { until } => Some(*until),
            Self::Lapsed { resume_at } => Some(*resume_at),
        }
    }
}

impl Authority {
    /// R6, judged by the clock that was read after the input arrived.
    pub(super) fn check_right(&mut self, now: BootTime) {
        if let Right::Held { until } = self.right
            && now >= until
        {
            self.right = Right::Lapsed {
                resume_at: until + self.config.timing.settle(),
            };
        }
        if let Right::Lapsed { resume_at } = self.right
            && now >= resume_at
            && !self.leaving
        {
            // The waiting has an epoch of its own, so that its number tells everybody that the
            // old one is over and silent (R6, R17).
            self.right = Right::Waiting;
            self.epoch += 1;
            for peer in &mut self.peers {
                peer.answered_s = BootTime::ZERO;
                peer.holder_s = BootTime::ZERO;
            }
        }
    }

    /// R5: the witness `from` answered the heartbeat sent at `echo`.
    pub(super) fn count_answer(&mut self, now: BootTime, from: Pnn, echo: BootTime, holder: bool) {
        self.check_right(now);
        if matches!(self.right, Right::Lapsed { .. }) || self.leaving {
            return;
        }
        let counted = if self.config.planted.has(Bug::RightFromReceivingTime) {
            now
        } else {
            echo
        };
        let peer = &mut self.peers[from.index()];
        peer.answered_s = peer.answered_s.max(counted);
        if holder {
            peer.holder_s = peer.holder_s.max(counted);
        }
    }

    /// R5: moves the deadline to the Q-th newest answered s + L, and opens an epoch if there
    /// was none.
    pub(super) fn renew(&mut self, now: BootTime, sink: &mut impl Sink) {
        if self.leaving
            || self.last_heartbeat == BootTime::ZERO
            || now.since(self.progress_at) > super::PROGRESS_LIMIT
        {
            return;
        }
        let Some(newest) = self.newest_witnessed(now) else {
            return;
        };
        let extra = if self.config.planted.has(Bug::NoMargin) {
            // Stands in for a margin of zero: the holder believes what the leader discounts.
            self.config.timing.margin + self.config.timing.queue
        } else {
            Duration::ZERO
        };
        let mut end = newest + self.config.timing.lease + extra;
        // R22: the holder's own deadline is not later than its proof.
        if let Some((_, until)) = self.acting(now)
            && self.config.mode.lock().is_some()
            && !self.config.planted.has(Bug::HolderOutlivesProof)
        {
            end = end.min(until);
        }
        if end <= now {
            return;
        }
        match self.right {
            Right::Lapsed { .. } => {}
            Right::Held { until } if end <= until => {}
            Right::Held { .. } => {
                self.right = Right::Held { until: end };
                sink.deadline(self.slot(), end);
            }
            Right::Waiting => {
                // R6: a new epoch has no grants, so its deadline opens nothing. It is another one
                // than that of the waiting, since evidence may have ended that.
                self.epoch += 1;
                self.right = Right::Held { until: end };
                sink.deadline(self.slot(), end);
                // Peers learn of the epoch with the next heartbeat; do not let it wait.
                self.next_heartbeat = self
                    .next_heartbeat
                    .min(now + self.config.timing.interval / 8);
            }
        }
    }

    /// Sending time of the newest heartbeat that enough witnesses answered: the Q-th newest, the
    /// acting holder's where the lock decides alone, the older of both for `both`.
    fn newest_witnessed(&self, now: BootTime) -> Option<BootTime> {
        let mode = self.config.mode;
        let quorum = if mode.lock_alone() {
            None
        } else {
            Some(self.quorum_newest(self.last_heartbeat, |peer| peer.answered_s)?)
        };
        if mode.lock().is_none() {
            return quorum;
        }
        let mut holder = BootTime::ZERO;
        if self.acting(now).is_some() {
            holder = self.last_heartbeat;
        }
        for pnn in self.config.voters.iter() {
            holder = holder.max(self.peers[pnn.index()].holder_s);
        }
        let holder = Some(holder).filter(|at| *at != BootTime::ZERO)?;
        Some(quorum.map_or(holder, |at| at.min(holder)))
    }

    /// Ends the right at once (goodbye).
    pub(super) fn end_right(&mut self, now: BootTime, sink: &mut impl Sink) {
        if self.epoch > 0 {
            sink.deadline(self.slot(), BootTime::ZERO);
        }
        self.right = Right::Lapsed {
            resume_at: now + self.config.timing.settle(),
        };
    }

    pub(super) fn slot(&self) -> u32 {
        if self.config.planted.has(Bug::OneSlot) {
            1
        } else {
            slot_of(self.epoch)
        }
    }
}
