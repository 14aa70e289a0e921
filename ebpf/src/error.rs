//! The crate's one error type.

use std::{io, net::IpAddr};

/// What went wrong, with what, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The machine lacks something that the lease needs.
    #[error("the address lease cannot work here: {lacks}")]
    Unsupported {
        /// One line that names it and the remedy.
        lacks: String,
    },
    /// A system call failed.
    #[error("{doing} {object}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// To what.
        object: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object does not load.
    #[error("loading the kernel programs: {0}; `dmesg` may tell more")]
    Load(#[from] aya::EbpfError),
    /// The verifier refused a program.
    #[error("loading kernel program {name}: {source}")]
    Program {
        /// The program's name.
        name: &'static str,
        /// What the verifier or the kernel said.
        source: Box<aya::programs::ProgramError>,
    },
    /// The object in this crate lacks a part; it was not built from these sources.
    #[error("the kernel object has no {0}; rebuild it with `cargo xtask build-ebpf`")]
    Object(&'static str),
    /// A pinned map is not what this version makes.
    #[error("pinned map {0} has another layout; it belongs to another version of ctdbd")]
    Layout(String),
    /// A grant or release of an address that was never made known.
    #[error("address {0} is not in the lease map; make all public addresses known first")]
    UnknownAddress(IpAddr),
    /// The lease map is full.
    #[error("{count} public addresses, but the lease map holds {limit} at most")]
    TooManyAddresses {
        /// How many were asked for.
        count: usize,
        /// How many fit.
        limit: usize,
    },
    /// One address on more interfaces than an entry holds.
    #[error("public address {address} on {count} interfaces, {limit} at most")]
    TooManyInterfaces {
        /// The address.
        address: IpAddr,
        /// How many interfaces.
        count: usize,
        /// How many fit.
        limit: usize,
    },
    /// Slot 0 never moves, and there are [`crate::lease::SLOTS`].
    #[error("lease slot {0} does not exist; slots are 1 to 4095")]
    BadSlot(u32),
    /// The interface is gone, has another number by now, or is the loopback.
    #[error("interface {name} (number {ifindex}): {reason}")]
    Interface {
        /// Its name.
        name: String,
        /// Its number.
        ifindex: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The inherited file is not the page that the daemon made.
    #[error("the guard's inherited file is not a death-watch page of this version: {0}")]
    NotAPage(&'static str),
    /// A robust mutex is in a state from which it cannot be taken.
    #[error("holding the daemon's life mutex: {0}")]
    Mutex(io::Error),
}

impl Error {
    pub(crate) fn system(
        doing: &'static str,
        object: impl Into<String>,
        source: io::Error,
    ) -> Self {
        Self::System {
            doing,
            object: object.into(),
            source,
        }
    }
}
