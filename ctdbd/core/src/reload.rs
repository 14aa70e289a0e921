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
