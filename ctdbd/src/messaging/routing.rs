//! Where a packet goes (`spec/client-protocol.md` 2.1, 6.2).

use ctdb_wire::client::node;
use ctdb_wire::ids::{NodeSet, Pnn};

/// What this node knows of the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nodes {
    /// This node.
    pub me: Pnn,
    /// Nodes of the list that are not deleted.
    pub listed: NodeSet,
    /// Of them, those whose link is up; this node always.
    pub connected: NodeSet,
    /// Of those, the ones that are neither banned nor stopped.
    pub active: NodeSet,
}

/// Where a packet with some destination goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// To this node alone.
    Here,
    /// To one other node, whose link is up.
    Node(Pnn),
    /// A broadcast: to these nodes that can be reached, this one among them or not.
    Nodes(NodeSet),
    /// Nowhere: the number is no node, or its link is down.
    Nowhere,
}

impl Nodes {
    /// The route for a destination of the client socket.
    pub fn route(&self, destination: u32) -> Route {
        match destination {
            node::CURRENT => Route::Here,
            node::BROADCAST_ALL | node::BROADCAST_CONNECTED => Route::Nodes(self.connected),
            node::BROADCAST_ACTIVE => Route::Nodes(self.active),
            number => match Pnn::new(number) {
                Ok(pnn) if pnn == self.me => Route::Here,
                Ok(pnn) if self.connected.contains(pnn) => Route::Node(pnn),
                _ => Route::Nowhere,
            },
        }
    }

    /// Whether the destination is a broadcast address.
    pub fn is_broadcast(destination: u32) -> bool {
        (node::BROADCAST_ALL..=node::BROADCAST_CONNECTED).contains(&destination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[u32]) -> NodeSet {
        numbers.iter().map(|n| Pnn::new(*n).unwrap()).collect()
    }

    #[test]
    fn destinations() {
        let nodes = Nodes {
            me: Pnn::new(1).unwrap(),
            listed: set(&[0, 1, 2, 3]),
            connected: set(&[0, 1, 2]),
            active: set(&[0, 2]),
        };
        let node = |n| Route::Node(Pnn::new(n).unwrap());
        for (destination, route) in [
            (node::CURRENT, Route::Here),
            (1, Route::Here),
            (0, node(0)),
            (3, Route::Nowhere),
            (77, Route::Nowhere),
            (node::BROADCAST_ALL, Route::Nodes(nodes.connected)),
            (node::BROADCAST_CONNECTED, Route::Nodes(nodes.connected)),
            (node::BROADCAST_ACTIVE, Route::Nodes(nodes.active)),
            (node::MULTICAST, Route::Nowhere),
            (node::UNKNOWN, Route::Nowhere),
        ] {
            assert_eq!(nodes.route(destination), route, "{destination:#x}");
        }
        assert!(Nodes::is_broadcast(node::BROADCAST_ACTIVE));
        assert!(!Nodes::is_broadcast(node::CURRENT) && !Nodes::is_broadcast(node::MULTICAST));
    }
}
