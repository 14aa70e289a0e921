//! What the detector shows of itself to the main loop, and what a recording keeps of that.

use ctdb_wire::ids::{BootTime, Epoch, Incarnation, MAX_NODES, Term};
use serde::{Deserialize, Serialize};

use super::{Authority, ListStatus, LockStatus};

/// What the main loop sees of the detector: a copy, read whenever it has changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// When the copy was made.
    pub now: BootTime,
    /// This node's epoch.
    pub epoch: Epoch,
    /// Slot of that epoch in the lease map.
    pub slot: u32,
    /// End of the right; `None` if it is not held.
    pub right_until: Option<BootTime>,
    /// The leader that this node follows or is, if it was heard within a promise's length.
    pub leader: Option<Term>,
    /// The term that this node leads, and until when it may act without further answers.
    pub acting: Option<(Term, BootTime)>,
    /// As leader: a voter has voted for a newer term, so only a newer one wins it back.
    pub outdated: bool,
    /// The nodes list.
    pub list: ListStatus,
    /// The newest term that this life led; what is not acted in any more is to be renounced.
    pub led: Option<Term>,
    /// Another node claims the lock: stop acting, and say so (R21).
    pub claimed: bool,
    /// The shell is to take the cluster lock, or to go on holding it.
    pub lock_wanted: bool,
    /// The lock of this node.
    pub lock: LockStatus,
    /// This node gives no promise yet (R10).
    pub abstaining: bool,
    /// Ticks that came more than two intervals late.
    pub late_ticks: u64,
    /// Per node number.
    #[serde(with = "known")]
    pub peers: [PeerStatus; MAX_NODES],
}

/// One peer in [`Status`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Incarnation of its session.
    pub incarnation: Incarnation,
    /// Last authentic datagram.
    pub heard_at: BootTime,
    /// Silent for longer than three intervals.
    pub suspected: bool,
    /// As leader: it is being answered no more.
    pub evicted: bool,
    /// As leader: it had no right at the time of the answers to the heartbeat sent then.
    pub evidence: Option<BootTime>,
    /// The newest epoch that was known of it then (R13).
    pub evidence_epoch: Epoch,
    /// Newest epoch that it has shown in its incarnation; all before are over and silent (R6).
    pub epoch: u32,
    /// It says that it holds a right.
    pub has_right: bool,
    /// That incarnation is dead and silent (R19).
    pub gone: bool,
}

impl PeerStatus {
    /// Its present life is heard: it runs, whether the main loops have a link or not.
    pub(crate) fn is_heard(&self) -> bool {
        self.heard_at != BootTime::ZERO && !self.suspected && !self.gone && !self.evicted
    }
}

/// Of 64 peers a recording keeps those of which anything is known.
mod known {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::{MAX_NODES, PeerStatus};

    pub(super) fn serialize<S: Serializer>(
        peers: &[PeerStatus; MAX_NODES],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let known = peers.iter().enumerate();
        // The recording's format wants to know how many there are.
        let known: Vec<_> = known
            .filter(|(_, peer)| **peer != PeerStatus::default())
            .collect();
        serializer.collect_seq(known)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<[PeerStatus; MAX_NODES], D::Error> {
        let mut peers = [PeerStatus::default(); MAX_NODES];
        for (index, peer) in Vec::<(usize, PeerStatus)>::deserialize(deserializer)? {
            let place = peers.get_mut(index);
            *place.ok_or_else(|| D::Error::custom("no such node number"))? = peer;
        }
        Ok(peers)
    }
}

impl Authority {
    /// The copy for the main loop.
    pub fn status(&self, now: BootTime) -> Status {
        let mut peers = [PeerStatus::default(); MAX_NODES];
        let known = self.config.voters.iter().chain(self.strangers.iter());
        for pnn in known {
            let peer = &self.peers[pnn.index()];
            peers[pnn.index()] = PeerStatus {
                incarnation: peer.incarnation,
                heard_at: peer.heard_at,
                suspected: pnn != self.config.me
                    && now >= self.grace_until
                    && now.since(peer.heard_at) > self.config.timing.interval * 3,
                evicted: peer.evicted_since.is_some(),
                evidence: peer.evidence,
                evidence_epoch: peer.evidence_epoch,
                epoch: peer.epoch,
                has_right: peer.has_right,
                gone: peer.gone != Incarnation::NONE && peer.gone == peer.incarnation,
            };
        }
        Status {
            now,
            epoch: Epoch {
                incarnation: self.config.incarnation,
                number: self.epoch,
            },
            slot: self.slot(),
            right_until: self.right.until().filter(|until| *until > now),
            leader: self.known_leader(now),
            acting: self.acting(now),
            outdated: self.is_fenced_off(now),
            list: self.list_status(now),
            led: self.led,
            claimed: self.claimed_by_other(),
            lock_wanted: self.lock_wanted(now),
            lock: self.lock_status(),
            abstaining: self.abstaining(now),
            late_ticks: self.late_ticks,
            peers,
        }
    }
}
