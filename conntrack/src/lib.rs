//! The TCP sockets of this node: who listens, which clients are connected to which address;
//! server ends destroyed, client ends tickled.
//!
//! Everything but [`tickle::packet`] is an effect. Sockets are opened in the network namespace of
//! the calling thread and stay in it. Calls block for the kernel's answer.
#![forbid(unsafe_code)]

mod diag;
mod error;
mod sockets;
pub mod tickle;

pub use error::Error;
pub use sockets::{Connection, Sockets};
