//! The TCP sockets of this node: who listens, which clients are connected to which address;
//! server ends destroyed, client ends tickled.
//!
//! [`table`] knows the connections of the whole cluster and is pure, as is [`tickle::packet`];
//! everything else is an effect. Sockets are opened in the network namespace of
//! the calling thread and stay in it. Calls block for the kernel's answer.
#![forbid(unsafe_code)]

mod diag;
mod error;
mod sockets;
pub mod table;
pub mod tickle;

pub use error::Error;
pub use sockets::{Connection, Sockets};
