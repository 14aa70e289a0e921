//! The kernel programs' object and its host side: the address lease that a tc program enforces
//! ([`lease`]), and the memory through which the guard learns of the daemon's death ([`deadman`]).
#![deny(unsafe_code)]

pub mod deadman;
mod error;
pub mod lease;
mod robust;
mod sys;

pub use error::Error;
pub use sys::boot_ns;
