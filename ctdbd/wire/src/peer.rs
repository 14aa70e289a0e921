//! Frames of the encrypted stream between two nodes, encoded with postcard.
//!
//! Every list is bounded by [`MAX_ADDRESSES`] or [`MAX_NODES`](crate::ids::MAX_NODES) entries and
//! the whole frame by [`MAX_FRAME`]; [`decode`] refuses anything beyond, so a peer cannot make us
//! allocate without bound (DATA-4).

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::connections::{self, ConnectionFrame};
use crate::ids::{Epoch, MAX_ADDRESSES, NodeFlags, NodeSet, OrderSeq, Pnn, RunState, Term};

/// Longest encoded frame, in bytes: the largest is a full list of [`MAX_ADDRESSES`] addresses
/// with their interfaces.
pub const MAX_FRAME: usize = 1 << 20;

/// Most interfaces per address and per node that travel.
pub const MAX_INTERFACES: usize = 64;

/// Most heartbeat addresses of a node.
pub const MAX_PATHS: usize = 4;

/// Longest free text (reasons, errors, JSON of one operation) in a frame, in bytes.
pub const MAX_TEXT: usize = 256 * 1024;

/// Longest answer to a request, in bytes.
pub const MAX_REPLY: usize = MAX_TEXT * 3;

/// What one node tells another over the link.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum PeerFrame {
    /// Keeps the stream alive and shows that the main loop runs.
    Ping,
    /// The sender's view of itself; the receiver replaces what it knew.
    Info(NodeInfo),
    /// What the sender holds (`authority.md` rule 16).
    State(HolderState),
    /// The leader's order (`authority.md` rule 15).
    Assign(Assign),
    /// Who hosts what, for display on nodes that do not lead.
    Placement(Placement),
    /// An operation that the receiver is asked to do.
    Request {
        /// Chosen by the requester, unique per link.
        id: u64,
        /// What to do.
        operation: Operation,
    },
    /// The answer to a [`PeerFrame::Request`].
    Reply {
        /// The request's id.
        id: u64,
        /// JSON of the result, or why not.
        result: Result<String, OperationError>,
    },
    /// The sender leaves in order: its addresses are handed over and its daemon is about to end.
    Goodbye,
    /// Connections to public addresses.
    Connections(ConnectionFrame),
}

/// A node's own view of itself (`spec/cluster.md` 2.1: each node is authoritative for its flags).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Rises with every change, so that an older frame never overwrites a newer one.
    pub version: u64,
    /// Own flags; DISCONNECTED and UNKNOWN are never set here.
    pub flags: NodeFlags,
    /// Run state.
    pub run_state: RunState,
    /// May lead, may be lmaster, hosts addresses.
    pub capabilities: Capabilities,
    /// Public addresses of this node's file.
    pub addresses: Vec<AddressInfo>,
    /// Interfaces that public addresses name.
    pub interfaces: Vec<InterfaceInfo>,
    /// Why the node is banned, unhealthy or stopped; empty if it is not.
    pub reason: String,
    /// Wall-clock start of the daemon, seconds since 1970.
    pub started_at: i64,
    /// Release, as `ctdb version` prints it.
    pub release: String,
    /// Where heartbeats reach it, the private address first; at most [`MAX_PATHS`].
    pub paths: Vec<SocketAddr>,
}

/// Capabilities of a node (`spec/cluster.md` 2.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Capabilities {
    /// May become leader.
    pub leader: bool,
    /// May be location master.
    pub lmaster: bool,
    /// Votes and witnesses only: no addresses, no databases.
    pub voter_only: bool,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            leader: true,
            lmaster: true,
            voter_only: false,
        }
    }
}

/// A public address as one node knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AddressInfo {
    /// Address with its prefix length.
    pub net: IpNet,
    /// Interfaces of the file, in file order.
    pub interfaces: Vec<String>,
    /// The interface that carries it, if this node hosts it.
    pub active: Option<String>,
    /// This node could host it now.
    pub available: bool,
}

/// An interface of a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InterfaceInfo {
    /// Name.
    pub name: String,
    /// Link state: carrier, and not set down by `setifacelink`.
    pub up: bool,
    /// Hosted addresses on it.
    pub references: u32,
}

/// STATE of `authority.md` rule 16.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HolderState {
    /// The newest term the holder accepts; it refuses older ones from now on.
    pub term: Option<Term>,
    /// The holder's current epoch.
    pub epoch: Epoch,
    /// Whether that epoch's right is held now.
    pub has_right: bool,
    /// The last order that was accepted.
    pub last_order: Option<(Term, OrderSeq)>,
    /// Addresses whose grant is, or may still be, in the kernel.
    pub holds: Vec<IpAddr>,
    /// Those of `holds` whose takeover is not complete.
    pub taking: Vec<IpAddr>,
    /// Addresses of the last order whose takeover failed and was undone, with the reason.
    pub failed: Vec<(IpAddr, String)>,
    /// Configured nodes to which the sender has no link: the leader knows of its own links only.
    pub lacks: NodeSet,
}

/// ASSIGN of `authority.md` rule 15: the whole set that the node shall host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Assign {
    /// The leader's term.
    pub term: Term,
    /// Number of the order within the term; a repeat has the same.
    pub seq: OrderSeq,
    /// The epoch that the order is for.
    pub epoch: Epoch,
    /// All addresses to host.
    pub addresses: Vec<IpAddr>,
}

/// The leader's view of who hosts what.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Placement {
    /// The leader's term.
    pub term: Term,
    /// Rises with every change in the term.
    pub version: u64,
    /// Owner of each address; `None` while unhosted or on its way.
    pub owners: Vec<(IpAddr, Option<Pnn>)>,
}

/// What a node can ask another to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Operation {
    /// An HTTP API call that the receiver answers about itself: method, path with query, body.
    Api {
        /// `GET`, `POST` ...
        method: String,
        /// Path and query, as on the local socket.
        path: String,
        /// JSON body, or empty.
        body: String,
    },
}

/// Why an operation was not done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct OperationError {
    /// HTTP status that the caller shows.
    pub status: u16,
    /// Stable word, such as `not_leader`.
    pub code: String,
    /// What to tell the operator.
    pub message: String,
}

/// Why bytes are no frame.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than [`MAX_FRAME`].
    #[error("frame of {0} bytes is longer than {MAX_FRAME}")]
    TooLong(usize),
    /// Not a frame of this version.
    #[error("frame cannot be decoded: {0}")]
    Malformed(String),
    /// A list or text is longer than its bound.
    #[error("{what} has {count} entries, more than {bound}")]
    Bound {
        /// The list.
        what: &'static str,
        /// Its length.
        count: usize,
        /// The bound.
        bound: usize,
    },
}

/// Encodes a frame. Fails only if it breaks a bound, which is a bug of the sender.
pub fn encode(frame: &PeerFrame) -> Result<Vec<u8>, FrameError> {
    check(frame)?;
    let bytes =
        postcard::to_allocvec(frame).map_err(|error| FrameError::Malformed(error.to_string()))?;
    if bytes.len() > MAX_FRAME {
        return Err(FrameError::TooLong(bytes.len()));
    }
    Ok(bytes)
}

/// Decodes and checks a frame.
pub fn decode(bytes: &[u8]) -> Result<PeerFrame, FrameError> {
    if bytes.len() > MAX_FRAME {
        return Err(FrameError::TooLong(bytes.len()));
    }
    let (frame, rest) = postcard::take_from_bytes::<PeerFrame>(bytes)
        .map_err(|error| FrameError::Malformed(error.to_string()))?;
    if !rest.is_empty() {
        return Err(FrameError::Malformed(format!(
            "{} bytes behind the frame",
            rest.len()
        )));
    }
    check(&frame)?;
    Ok(frame)
}

pub(crate) fn bound(what: &'static str, count: usize, bound: usize) -> Result<(), FrameError> {
    if count > bound {
        Err(FrameError::Bound { what, count, bound })
    } else {
        Ok(())
    }
}

fn check(frame: &PeerFrame) -> Result<(), FrameError> {
    match frame {
        PeerFrame::Ping | PeerFrame::Goodbye => Ok(()),
        PeerFrame::Info(info) => {
            bound("addresses", info.addresses.len(), MAX_ADDRESSES)?;
            bound("interfaces", info.interfaces.len(), MAX_INTERFACES)?;
            bound("reason", info.reason.len(), MAX_TEXT)?;
            bound("release", info.release.len(), 256)?;
            bound("paths", info.paths.len(), MAX_PATHS)?;
            for address in &info.addresses {
                bound(
                    "interfaces of an address",
                    address.interfaces.len(),
                    MAX_INTERFACES,
                )?;
            }
            Ok(())
        }
        PeerFrame::State(state) => {
            bound("held addresses", state.holds.len(), MAX_ADDRESSES)?;
            bound("addresses being taken", state.taking.len(), MAX_ADDRESSES)?;
            bound("failed addresses", state.failed.len(), MAX_ADDRESSES)
        }
        PeerFrame::Assign(assign) => {
            bound("assigned addresses", assign.addresses.len(), MAX_ADDRESSES)
        }
        PeerFrame::Placement(placement) => {
            bound("placed addresses", placement.owners.len(), MAX_ADDRESSES)
        }
        PeerFrame::Request {
            operation: Operation::Api { method, path, body },
            ..
        } => {
            bound("method", method.len(), 16)?;
            bound("path", path.len(), 4096)?;
            bound("body", body.len(), MAX_TEXT)
        }
        PeerFrame::Reply { result, .. } => match result {
            Ok(text) => bound("reply", text.len(), MAX_REPLY),
            Err(error) => bound("error", error.message.len() + error.code.len(), MAX_TEXT),
        },
        PeerFrame::Connections(frame) => connections::check(frame),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_survives_the_journey() {
        let frame = PeerFrame::State(HolderState {
            holds: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            ..HolderState::default()
        });
        let bytes = encode(&frame).unwrap();
        assert_eq!(decode(&bytes).unwrap(), frame);
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(decode(&longer).is_err());
        assert!(decode(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn a_list_beyond_its_bound_is_refused() {
        let frame = PeerFrame::State(HolderState {
            holds: vec!["10.0.0.1".parse().unwrap(); MAX_ADDRESSES + 1],
            ..HolderState::default()
        });
        assert!(matches!(encode(&frame), Err(FrameError::Bound { .. })));
        let raw = postcard::to_allocvec(&frame).unwrap();
        assert!(matches!(decode(&raw), Err(FrameError::Bound { .. })));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode(&bytes);
        }
    }
}
