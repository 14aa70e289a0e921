//! The connections of this node: who listens, which clients are connected to which address, as
//! they come and go ([`Watch`]); server ends destroyed ([`Killer`]), client ends tickled.
//!
//! [`table`] knows the connections of the whole cluster and is pure, as is [`tickle::packet`];
//! everything else is an effect. Sockets are opened in the network namespace of
//! the calling thread and stay in it. Calls block for the kernel's answer.
#![forbid(unsafe_code)]

mod diag;
mod error;
mod kill;
pub mod owners;
mod sockets;
pub mod table;
pub mod tickle;
mod watch;

pub use ctdb_ebpf::track::{Change, Stats, Tracked};
pub use diag::TcpInfo;
pub use error::Error;
pub use kill::{Killed, Killer, Method};
pub use sockets::{Connection, Sockets, UdpSocket};
pub use watch::{Source, Watch};
