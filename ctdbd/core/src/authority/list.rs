//! Which nodes lists count: R24 to R26, and the nodes that a list no more names (R25).
//!
//! Lists are compared by content. Two lists that differ by one voter have no two disjoint
//! quorums; two that differ by more can. So a witness answers and votes only for who uses its own
//! list, or one *neighbour*: the list before its last reload until nobody who is heard uses it any
//! more, or the list of a leader that acts. A daemon that starts knows no neighbour: what it
//! reads from its file may be old, and is admitted by an acting leader only (DESIGN.md, L1 to L4).

use ctdb_wire::ids::{BootTime, NodeSet, Pnn};
use serde::{Deserialize, Serialize};

use super::{Authority, Role, Sink};
use crate::planted::Bug;

/// A nodes list as the authority sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct List {
    /// Configured nodes, deleted ones left out.
    pub voters: NodeSet,
    /// So many must answer; 1 where the lock decides alone.
    pub quorum: usize,
}

/// The list in [`super::Status`].
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct ListStatus {
    /// In use.
    pub voters: NodeSet,
    /// No other list is accepted, and none was for L + m.
    pub settled: bool,
    /// Voters that were heard within L and do not use this list, or are not settled on it.
    pub others: NodeSet,
    /// The one other list that all of them use, if this node is settled or accepts no other list than that.
    pub others_use: Option<NodeSet>,
    /// As leader: nodes outside of the list that may have a right (R25).
    pub strangers: NodeSet,
    /// As leader: a quorum has said whom else it answered lately.
    pub surveyed: bool,
}

/// What is remembered of other lists.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Lists {
    neighbour: Option<NodeSet>,
    retired: Option<NodeSet>,
    changed_at: BootTime,
    retired_at: BootTime,
}

impl Lists {
    pub(super) fn new(now: BootTime) -> Self {
        Self {
            neighbour: None,
            retired: None,
            changed_at: now,
            retired_at: now,
        }
    }
}

/// By how many voters two lists differ.
pub(crate) fn distance(a: NodeSet, b: NodeSet) -> u32 {
    (a.0 ^ b.0).count_ones()
}

impl Authority {
    /// A reload; checked by [`crate::reload::check`] before. R24.
    pub(super) fn reload(&mut self, now: BootTime, list: List, sink: &mut impl Sink) {
        let old = self.config.voters;
        if old == list.voters {
            self.config.quorum = list.quorum;
            return;
        }
        self.lists.neighbour = Some(old);
        self.lists.changed_at = now;
        self.config.voters = list.voters;
        self.config.quorum = list.quorum;
        for pnn in old.iter().filter(|pnn| !list.voters.contains(*pnn)) {
            self.peers[pnn.index()].evicted_since = None;
            self.peers[pnn.index()].evidence = None;
        }
        if !list.voters.contains(self.config.me) {
            self.leave(now, sink); // R25.
        }
        self.note_own_strangers(now);
        self.next_heartbeat = self.next_heartbeat.min(now);
    }

    /// Strangers by this node's own record.
    pub(super) fn note_own_strangers(&mut self, now: BootTime) {
        self.note_strangers(|me, pnn| {
            let at = me.peers[pnn.index()].answered_at;
            (at != BootTime::ZERO).then(|| now.since(at).as_millis() as u64)
        });
    }

    /// Whether a sender that uses `list` is answered. `acting`: it is a leader that acts.
    pub(super) fn accepts(&mut self, now: BootTime, list: NodeSet, acting: bool) -> bool {
        if list == self.config.voters || self.lists.neighbour == Some(list) {
            return true;
        }
        if self.config.planted.has(Bug::AnyList) {
            return true;
        }
        let admitted =
            acting && distance(list, self.config.voters) <= 1 && self.lists.retired != Some(list);
        if admitted {
            self.lists.neighbour = Some(list);
            self.lists.changed_at = now;
        }
        admitted
    }

    /// The neighbour is over when nobody who is heard uses it, or has to wait for those who do.
    pub(super) fn check_list(&mut self, now: BootTime) {
        let Some(neighbour) = self.lists.neighbour else {
            return;
        };
        let timing = self.config.timing;
        let used = self.config.voters.iter().any(|pnn| {
            let peer = &self.peers[pnn.index()];
            pnn != self.config.me
                && peer.list != self.config.voters
                && now.since(peer.heard_at) < timing.lease
                && peer.heard_at != BootTime::ZERO
        });
        if !used && now.since(self.lists.changed_at) >= timing.promise() * 2 {
            self.lists.neighbour = None;
            self.lists.retired = Some(neighbour);
            self.lists.retired_at = now;
        }
    }

    /// This node accepts no other list, and what it did for another one has run out.
    pub(super) fn list_settled(&self, now: BootTime) -> bool {
        self.lists.neighbour.is_none()
            && now.since(self.lists.retired_at) >= self.config.timing.promise()
    }

    /// R25: nodes outside of the list that some witness answered lately.
    pub(super) fn strangers(&self) -> NodeSet {
        self.strangers
            .iter()
            .filter(|pnn| {
                !self.config.voters.contains(*pnn) && self.peers[pnn.index()].evidence.is_none()
            })
            .collect()
    }

    /// Looks for strangers in this node's own record, and in a witness's.
    pub(super) fn note_strangers(&mut self, age_ms: impl Fn(&Self, Pnn) -> Option<u64>) {
        if !self.is_leader() || self.config.planted.has(Bug::RemovedForgotten) {
            return;
        }
        let needed = self.config.timing.promise().as_millis() as u64 + 1;
        for pnn in NodeSet(!self.config.voters.0).iter() {
            if age_ms(self, pnn).is_some_and(|age| age < needed) && !self.strangers.contains(pnn) {
                self.strangers.insert(pnn);
                self.peers[pnn.index()].evidence = None;
            }
        }
    }

    /// Whether a quorum has reported in this term; only then no stranger is missed.
    fn surveyed(&self) -> bool {
        let Role::Leader { elected_at, .. } = self.role else {
            return false;
        };
        if self.config.mode.lock_alone() {
            return true;
        }
        let since = elected_at.max(self.lists.changed_at);
        let reports = self.config.voters.iter().filter(|pnn| {
            *pnn == self.config.me
                || self.peers[pnn.index()]
                    .report
                    .is_some_and(|report| report.promised && report.sent_at >= since)
        });
        reports.count() >= self.config.quorum
    }

    pub(super) fn list_status(&self, now: BootTime) -> ListStatus {
        let voters = self.config.voters;
        let others: NodeSet = voters
            .iter()
            .filter(|pnn| {
                let peer = &self.peers[pnn.index()];
                *pnn != self.config.me
                    && peer.heard_at != BootTime::ZERO
                    && now.since(peer.heard_at) < self.config.timing.lease
                    && (peer.list != voters || !peer.settled)
            })
            .collect();
        let mut used = others.iter().map(|pnn| self.peers[pnn.index()].list);
        let others_use = used
            .next()
            .filter(|first| *first != voters && used.all(|list| list == *first))
            .filter(|first| self.list_settled(now) || self.lists.neighbour == Some(*first));
        ListStatus {
            voters,
            settled: self.list_settled(now),
            others,
            others_use,
            strangers: self.strangers(),
            surveyed: self.surveyed(),
        }
    }
}
