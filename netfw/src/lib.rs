//! Public addresses on the host's interfaces: links watched, addresses added and removed, their
//! announcement on the wire, and the firewall of the time around a failover.
//!
//! Everything here is an effect; who hosts what is decided elsewhere. No external program is run.
//! Sockets are opened in the network namespace of the calling thread and stay in it. Calls block
//! for the kernel's answer (measured: 1,000 addresses well under 200 ms); an asynchronous caller
//! uses [`takeover::Executor`], which owns a thread for them.
#![deny(unsafe_code)]

pub mod address;
pub mod announce;
mod error;
pub mod firewall;
pub mod frame;
pub mod link;
mod netlink;
pub mod schedule;
pub mod takeover;
mod watch;

pub use error::Error;

/// Interface number as the kernel assigns it; never used twice within one boot of a namespace.
pub type IfIndex = u32;
