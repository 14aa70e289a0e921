//! What the databases are told of the cluster: the right of this node, and, while it leads, who is
//! a member.

use ctdb_core::coordinator::Input;
use ctdb_core::members::Members;
use ctdb_db::cluster::View;
use ctdb_wire::ids::{BootTime, NodeSet};

use super::node::Node;

fn view(members: &Members) -> View {
    View {
        term: members.term,
        number: 0, // The table counts.
        members: members.members.clone(),
        donors: members.donors,
        witnesses: NodeSet::EMPTY,
        lmasters: members.lmasters.clone(),
        complete: members.complete,
    }
}

impl Node {
    /// After each step: the databases hear what is new.
    pub(super) fn follow_databases(&mut self, now: BootTime) {
        let coordinator = &self.parts.coordinator;
        let right = coordinator
            .status()
            .and_then(|status| status.right_until.map(|_| status.slot));
        let view = coordinator.members(now).map(view);
        self.parts.clients.follow_cluster(right, view);
        let attached = self.parts.clients.has_databases();
        if attached != coordinator.has_databases() {
            self.input(Input::Databases(attached));
        }
    }
}
