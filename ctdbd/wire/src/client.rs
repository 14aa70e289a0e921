//! The wire protocol of the client socket (`spec/client-protocol.md` 1 to 7): what unmodified
//! Samba processes and CTDB's tool speak, both directions.
//!
//! * [`codec`]: reading and writing fields; every length is checked before anything is allocated.
//! * [`packet`]: framing, the common header, every packet type.
//! * [`types`]: the composite encodings of section 4.
//! * [`control`]: the controls of section 5, requests and replies as typed values.
//! * [`srvid`]: well-known message addresses.
//!
//! Integers are in the byte order of the host, as both ends are on one machine (1.3); ports and
//! addresses in network order. What is decoded borrows from the packet.

pub mod codec;
pub mod control;
pub mod packet;
pub mod srvid;
pub mod types;

/// Protocol names of node numbers on the client socket (2.1).
pub mod node {
    /// This node.
    pub const CURRENT: u32 = 0xF000_0001;
    /// Every node of the list that is not deleted.
    pub const BROADCAST_ALL: u32 = 0xF000_0002;
    /// Every active node.
    pub const BROADCAST_ACTIVE: u32 = 0xF000_0003;
    /// Every connected node.
    pub const BROADCAST_CONNECTED: u32 = 0xF000_0004;
    /// Defined, never implemented.
    pub const MULTICAST: u32 = 0xF000_0005;
    /// No node.
    pub const UNKNOWN: u32 = 0xFFFF_FFFF;
}
