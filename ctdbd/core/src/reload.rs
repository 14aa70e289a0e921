//! Whether a new nodes list may be used now: R24.

use ctdb_wire::ids::{NodeSet, Pnn};

use crate::authority::{List, Mode, Status};

/// Why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// More than one voter differs.
    #[error(
        "the list differs by more than one node (added: {added:?}, removed: {removed:?}); change it one node at a time"
    )]
    MoreThanOne {
        /// Not in the present list.
        added: NodeSet,
        /// Not in the new one.
        removed: NodeSet,
    },
    /// The last change is not over.
    #[error("the last change of the nodes list is not settled yet; try again in some seconds")]
    NotSettled,
    /// Nodes that are heard do not use the present list, or are not settled on it.
    #[error("not all running nodes use the present list yet: {0:?}; reload it there first")]
    NotAll(NodeSet),
    /// Nobody leads.
    #[error("there is no leader; the list is changed only while one acts")]
    NoLeader,
    /// Where the lock alone decides, a node that runs would go on with the lock.
    #[error("node {0} still runs; with `authority = lock` stop it before it is removed")]
    StillRuns(Pnn),
}

impl Refused {
    /// Whether waiting alone may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::NotSettled | Self::NotAll(_) | Self::NoLeader)
    }
}

/// Nodes of the list that run and have no link to `me`, which has those to `linked`. A reload is told over
/// links; who runs and is not told would go on with the old list.
#[must_use]
pub fn untold(status: &Status, me: Pnn, linked: NodeSet) -> NodeSet {
    let voters = status.list.voters.iter();
    voters
        .filter(|pnn| *pnn != me && !linked.contains(*pnn))
        .filter(|pnn| status.peers[pnn.index()].is_heard())
        .collect()
}

/// Checks a reload from what the detector knows. On the acting leader's node first.
pub fn check(status: &Status, mode: Mode, new: &List) -> Result<(), Refused> {
    let old = status.list.voters;
    let added = NodeSet(new.voters.0 & !old.0);
    let removed = NodeSet(old.0 & !new.voters.0);
    if added.len() + removed.len() > 1 {
        return Err(Refused::MoreThanOne { added, removed });
    }
    if added.is_empty() && removed.is_empty() {
        return Ok(());
    }
    if status.leader.is_none() {
        return Err(Refused::NoLeader);
    }
    let acts = status.acting.is_some();
    if acts && !status.list.settled {
        return Err(Refused::NotSettled);
    }
    let others = NodeSet(status.list.others.0 & !removed.0);
    if acts && !others.is_empty() {
        return Err(Refused::NotAll(others));
    }
    if let (true, Some(node)) = (mode.lock_alone(), removed.iter().next())
        && !status.peers[node.index()].gone
        && status.peers[node.index()].incarnation != ctdb_wire::ids::Incarnation::NONE
    {
        return Err(Refused::StillRuns(node));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use ctdb_wire::ids::{BootTime, Incarnation};

    use super::*;
    use crate::authority::{Authority, Config, PeerStatus, Timing};

    fn pnn(number: u32) -> Pnn {
        Pnn::new(number).unwrap()
    }

    fn set(nodes: &[u32]) -> NodeSet {
        nodes.iter().map(|node| pnn(*node)).collect()
    }

    /// Of node 0 of four: it hears 1 and 2; nothing is known of 3.
    fn status() -> Status {
        let now = BootTime::from_millis(100_000);
        let voters = set(&[0, 1, 2, 3]);
        let config = Config::majority(pnn(0), Incarnation(1), voters, Timing::standard());
        let mut status = Authority::new(config, now).status(now);
        for node in [1, 2] {
            status.peers[node] = PeerStatus {
                incarnation: Incarnation(7),
                heard_at: now,
                ..PeerStatus::default()
            };
        }
        status
    }

    #[test]
    fn who_runs_and_has_no_link_would_not_be_told() {
        let mut status = status();
        let untold = |status: &Status, linked: &[u32]| untold(status, pnn(0), set(linked));
        assert_eq!(untold(&status, &[1, 2]), set(&[]));
        assert_eq!(untold(&status, &[1]), set(&[2]));
        assert_eq!(untold(&status, &[]), set(&[1, 2]));
        // Who is silent, dead or left out is not waited for.
        let changes: [fn(&mut PeerStatus); 3] = [
            |peer| peer.suspected = true,
            |peer| peer.gone = true,
            |peer| peer.evicted = true,
        ];
        for change in changes {
            let mut other = status.clone();
            change(&mut other.peers[2]);
            assert_eq!(untold(&other, &[]), set(&[1]));
        }
        // Nor who is not in the list.
        status.list.voters = set(&[0, 1]);
        assert_eq!(untold(&status, &[]), set(&[1]));
    }

    #[test]
    fn what_may_come_by_itself_is_waited_for() {
        let mut status = status();
        let new = List {
            voters: set(&[0, 1, 2]),
            quorum: 2,
        };
        let refused = check(&status, Mode::Majority, &new).unwrap_err();
        assert_eq!(refused, Refused::NoLeader);
        assert!(refused.may_pass());
        status.list.voters = set(&[0, 1, 2, 3, 4]);
        let refused = check(&status, Mode::Majority, &new).unwrap_err();
        assert!(matches!(refused, Refused::MoreThanOne { .. }));
        assert!(!refused.may_pass());
    }
}
