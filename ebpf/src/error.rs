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
    /// The machine lacks something that tracking or destroying connections in the kernel needs.
    #[error("the kernel cannot {what} here: {lacks}")]
    Lacking {
        /// What it cannot do.
        what: &'static str,
        /// One line that names what lacks.
        lacks: String,
    },
    /// The calling thread is in another network namespace than the one that is tracked.
    #[error("connections of network namespace {tracked} are tracked, but this thread is in {here}")]
    WrongNamespace {
        /// Cookie of the namespace that is tracked.
        tracked: u64,
        /// Cookie of the calling thread's.
        here: u64,
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

/// Characters of a verifier's log that say enough.
const EXPLANATION: usize = 400;

/// One line: what failed, and what usually helps.
pub(crate) fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    let mut errno = None;
    while let Some(inner) = source {
        let line = inner.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        if let Some(io) = inner.downcast_ref::<io::Error>() {
            errno = io.raw_os_error();
        }
        source = inner.source();
    }
    // A verifier's log is long and has many lines.
    let words: Vec<&str> = text.split_whitespace().collect();
    let text: String = words.join(" ").chars().take(EXPLANATION).collect();
    match errno {
        Some(libc::EPERM | libc::EACCES) => format!(
            "{text} (needs root with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN, and no kernel \
             lockdown against it)"
        ),
        Some(libc::ENOSYS) => format!("{text} (the kernel is built without CONFIG_BPF_SYSCALL)"),
        _ => text,
    }
}
