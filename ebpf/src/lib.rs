//! The kernel programs' objects and their host sides: the address lease that a tc program enforces
//! ([`lease`]), the tracker of connections ([`track`]), the destroyer of sockets ([`destroy`]),
//! and the memory through which the guard learns of the daemon's death ([`deadman`]).
#![deny(unsafe_code)]

mod btf;
pub mod deadman;
pub mod destroy;
mod error;
pub mod lease;
mod pins;
mod robust;
mod sock;
mod sys;
pub mod track;

pub use error::Error;
pub use sys::{boot_ns, give_back_memory};
