//! Frames of clients' traffic to other nodes. They keep their order; what a link has no room for
//! waits here, and goes with the link.

use std::collections::VecDeque;
use std::sync::Arc;

use ctdb_wire::ids::{MAX_NODES, NodeSet, Pnn};
use ctdb_wire::relay;

use crate::transport::{Relayed, TransportHandle};

/// Bytes that wait for one node beyond which clients that send to it are read no further. One
/// packet of each client may come on top.
pub(super) const BACKLOG: usize = 4 << 20;

#[derive(Default)]
struct Backlog {
    frames: VecDeque<Arc<[u8]>>,
    bytes: usize,
}

/// The links, and what waits for them.
pub(super) struct Links {
    transport: Option<TransportHandle>,
    backlogs: [Backlog; MAX_NODES],
}

impl Default for Links {
    fn default() -> Self {
        Self {
            transport: None,
            backlogs: std::array::from_fn(|_| Backlog::default()),
        }
    }
}

impl Links {
    pub(super) fn connect(&mut self, transport: TransportHandle) {
        self.transport = Some(transport);
    }

    pub(super) fn disconnect(&mut self) {
        self.transport = None;
        self.backlogs = std::array::from_fn(|_| Backlog::default());
    }

    /// Sends a frame to nodes whose links are up; to the others it does not go.
    pub(super) fn send(&mut self, to: NodeSet, frame: Vec<u8>) {
        if frame.len() <= relay::MAX_PIECE {
            let whole: Arc<[u8]> = frame.into();
            for pnn in to.iter() {
                self.send_one(pnn, &whole);
            }
            return;
        }
        for piece in relay::cut(frame) {
            let piece: Arc<[u8]> = piece.into();
            for pnn in to.iter() {
                self.send_one(pnn, &piece);
            }
        }
    }

    fn send_one(&mut self, pnn: Pnn, piece: &Arc<[u8]>) {
        let Some(transport) = &self.transport else {
            return;
        };
        let backlog = &mut self.backlogs[pnn.index()];
        if backlog.frames.is_empty() && transport.relay(pnn, piece) != Relayed::Full {
            return;
        }
        backlog.bytes += piece.len();
        backlog.frames.push_back(Arc::clone(piece));
    }

    /// The link takes frames again.
    pub(super) fn room(&mut self, pnn: Pnn) {
        let Some(transport) = &self.transport else {
            return;
        };
        let backlog = &mut self.backlogs[pnn.index()];
        while let Some(frame) = backlog.frames.front() {
            if transport.relay(pnn, frame) == Relayed::Full {
                return;
            }
            backlog.bytes -= frame.len();
            backlog.frames.pop_front();
        }
    }

    /// The link is gone.
    pub(super) fn down(&mut self, pnn: Pnn) {
        self.backlogs[pnn.index()] = Backlog::default();
    }

    pub(super) fn is_congested(&self, nodes: NodeSet) -> bool {
        nodes
            .iter()
            .any(|pnn| self.backlogs[pnn.index()].bytes > BACKLOG)
    }
}
