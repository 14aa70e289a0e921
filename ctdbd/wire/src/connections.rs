//! What nodes tell each other about TCP connections to public addresses (`design.md` section 4).
//!
//! A node speaks for its own connections alone. Everything it says in one stream is its table as
//! it is at that moment, so that a frame can be repeated, and a later one always counts.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::ids::{MAX_ADDRESSES, OrderSeq, Term};
use crate::peer::{FrameError, bound};

/// Most connections in one frame: some 30 KB.
pub const MAX_IN_FRAME: usize = 1024;

/// Most digests in one frame.
pub const MAX_DIGESTS: usize = 512;

/// When an address was taken: the order that it was taken by. Orders of all leaders are ordered,
/// and an address has one host at a time, so a later host's tenure is the greater one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Tenure {
    /// Term of the order.
    pub term: Term,
    /// Its number.
    pub seq: OrderSeq,
}

/// Who made a connection known; a set, since several can.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Sources(pub u8);

impl Sources {
    /// Seen in the kernel.
    pub const KERNEL: Self = Self(1);
    /// Registered by a Samba process.
    pub const SAMBA: Self = Self(2);
    /// Registered by an operator or an event script.
    pub const MANUAL: Self = Self(4);

    /// In both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// In this one only.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether all of `other` are in this one.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Nobody.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Words for display.
    pub fn names(self) -> Vec<&'static str> {
        [
            (Self::KERNEL, "kernel"),
            (Self::SAMBA, "samba"),
            (Self::MANUAL, "manual"),
        ]
        .into_iter()
        .filter(|(source, _)| self.has(*source))
        .map(|(_, name)| name)
        .collect()
    }
}

/// A connection to one address, without that address. v4-mapped clients are written as IPv4.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Key {
    /// The client's address.
    pub client: IpAddr,
    /// The client's port.
    pub client_port: u16,
    /// The server's port.
    pub server_port: u16,
}

impl Key {
    /// The client's end.
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.client, self.client_port)
    }

    /// The server's end on `address`.
    pub fn server(&self, address: IpAddr) -> SocketAddr {
        SocketAddr::new(address, self.server_port)
    }
}

/// What is known of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Meta {
    /// Wall-clock second in which it was established or registered; only shown.
    pub since: u32,
    /// Who made it known.
    pub sources: Sources,
}

/// One connection as it is now: there with its description, or not (any more).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// The public address.
    pub address: IpAddr,
    /// Its connection.
    pub key: Key,
    /// `None` if it has ended.
    pub now: Option<Meta>,
}

/// Number and sum of the connections of one address; the sum does not depend on their order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Digest {
    /// The public address.
    pub address: IpAddr,
    /// How many.
    pub count: u32,
    /// Sum of [`hash`] over them, wrapping.
    pub sum: u64,
}

/// What a node says of its connections.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ConnectionFrame {
    /// Addresses that the sender has taken. Whoever had them before has let go; what was
    /// connected to them there has been told by the sender.
    Held(Vec<(IpAddr, Tenure)>),
    /// Connections that changed.
    Changes(Vec<Change>),
    /// A piece of the sender's table: of this address and behind `after` (or from the start) up
    /// to and with `through` (or to the end) it has exactly these.
    Part {
        /// The public address.
        address: IpAddr,
        /// Exclusive lower end.
        after: Option<Key>,
        /// Inclusive upper end.
        through: Option<Key>,
        /// In order.
        entries: Vec<(Key, Meta)>,
    },
    /// Digests of all addresses with a connection, behind `after` up to and with `through`.
    Digests {
        /// Exclusive lower end.
        after: Option<IpAddr>,
        /// Inclusive upper end.
        through: Option<IpAddr>,
        /// In order; an address that is not named has none.
        list: Vec<Digest>,
    },
    /// The receiver shall send its table of these addresses.
    Ask(Vec<IpAddr>),
    /// The receiver shall send all its digests.
    Compare,
    /// Connections that a node had which does not know of them any more (it was started anew),
    /// and whose clients nobody has told yet.
    Orphans {
        /// The public address.
        address: IpAddr,
        /// Its connections.
        keys: Vec<Key>,
    },
}

/// Checks the bounds.
pub(crate) fn check(frame: &ConnectionFrame) -> Result<(), FrameError> {
    match frame {
        ConnectionFrame::Held(list) => bound("taken addresses", list.len(), MAX_ADDRESSES),
        ConnectionFrame::Changes(list) => bound("changed connections", list.len(), MAX_IN_FRAME),
        ConnectionFrame::Part { entries, .. } => {
            bound("connections of a part", entries.len(), MAX_IN_FRAME)
        }
        ConnectionFrame::Digests { list, .. } => bound("digests", list.len(), MAX_DIGESTS),
        ConnectionFrame::Ask(list) => bound("asked addresses", list.len(), MAX_ADDRESSES),
        ConnectionFrame::Orphans { keys, .. } => bound("orphans", keys.len(), MAX_IN_FRAME),
        ConnectionFrame::Compare => Ok(()),
    }
}

/// A number for one connection, the same on all nodes. Not for defence: it finds mistakes, and
/// peers are authenticated.
pub fn hash(key: &Key, meta: Meta) -> u64 {
    let (high, low) = match key.client {
        IpAddr::V4(client) => (4, u64::from(client.to_bits())),
        IpAddr::V6(client) => {
            let bits = client.to_bits();
            ((bits >> 64) as u64 ^ 6 << 32, bits as u64)
        }
    };
    let ports = u64::from(key.client_port) << 16 | u64::from(key.server_port);
    let meta = u64::from(meta.since) << 8 | u64::from(meta.sources.0);
    [high, low, ports, meta]
        .into_iter()
        .fold(0x9e37_79b9_7f4a_7c15, |state, word| mix(state ^ word))
}

/// A permutation of 64 bits in which each input bit reaches all output bits (SplitMix64).
const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{PeerFrame, decode, encode};
    use proptest::prelude::*;

    fn key(client: IpAddr, client_port: u16) -> Key {
        Key {
            client,
            client_port,
            server_port: 445,
        }
    }

    #[test]
    fn a_full_frame_of_either_kind_fits() {
        let address: IpAddr = "ffff::ffff".parse().unwrap();
        let change = Change {
            address,
            key: key(address, u16::MAX),
            now: Some(Meta {
                since: u32::MAX,
                sources: Sources(7),
            }),
        };
        let frame = PeerFrame::Connections(ConnectionFrame::Changes(vec![change; MAX_IN_FRAME]));
        let bytes = encode(&frame).unwrap();
        assert!(bytes.len() < 64 * 1024, "{}", bytes.len());
        assert_eq!(decode(&bytes).unwrap(), frame);
        let longer = ConnectionFrame::Changes(vec![change; MAX_IN_FRAME + 1]);
        let raw = postcard::to_allocvec(&PeerFrame::Connections(longer)).unwrap();
        assert!(matches!(decode(&raw), Err(FrameError::Bound { .. })));
    }

    #[test]
    fn a_list_that_says_a_billion_is_refused_before_room_is_taken() {
        let frame = PeerFrame::Connections(ConnectionFrame::Orphans {
            address: "10.0.0.1".parse().unwrap(),
            keys: Vec::new(),
        });
        let mut bytes = encode(&frame).unwrap();
        // The length is the last byte; a billion as a varint instead.
        assert_eq!(bytes.pop(), Some(0));
        bytes.extend([0x80, 0x94, 0xeb, 0xdc, 0x03]);
        assert!(matches!(decode(&bytes), Err(FrameError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn each_part_of_a_connection_counts(client: u32, port: u16, since: u32, bit in 0..32u32) {
            let one = key(IpAddr::V4(client.into()), port);
            let meta = Meta { since, sources: Sources::KERNEL };
            let there = hash(&one, meta);
            let other = key(IpAddr::V4((client ^ 1 << bit).into()), port);
            prop_assert_ne!(there, hash(&other, meta));
            prop_assert_ne!(there, hash(&key(one.client, port ^ 1 << (bit % 16)), meta));
            prop_assert_ne!(there, hash(&one, Meta { since: since ^ 1 << bit, ..meta }));
            prop_assert_ne!(there, hash(&one, Meta { sources: Sources::SAMBA, ..meta }));
        }
    }
}
