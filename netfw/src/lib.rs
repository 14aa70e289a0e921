//! Public addresses on the host's interfaces: links watched, addresses added and removed, their
//! announcement on the wire, and the firewall of the time around a failover.
//!
//! Everything here is an effect, except [`frame`] and [`schedule`]; who hosts what is decided
//! elsewhere. No external program is run. Sockets are opened in the network namespace of the
//! calling thread and stay in it. Calls block for the kernel's answer (1,000 addresses: well under
//! 200 ms) and belong on a thread of their own; only [`link::Watch`] is asynchronous.
#![deny(unsafe_code)]

pub mod address;
pub mod announce;
mod error;
pub mod firewall;
pub mod frame;
pub mod link;
mod netlink;
mod raw;
pub mod schedule;

pub use error::Error;

/// Interface number as the kernel assigns it; never used twice within one boot of a namespace.
pub type IfIndex = u32;
