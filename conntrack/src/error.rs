//! What can go wrong with the TCP sockets of this node.

use std::io;

/// One error of this crate: what was being done, to what, and what the operator can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused for lack of a capability.
    #[error(
        "{doing}: not permitted; the daemon needs CAP_NET_ADMIN and CAP_NET_RAW, start it as root"
    )]
    Permission {
        /// What was being done.
        doing: String,
    },
    /// The kernel lacks a feature.
    #[error("{doing}: not supported by this kernel ({source}); {remedy}")]
    NotSupported {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
        /// What would help.
        remedy: &'static str,
    },
    /// The two ends of a connection are of different address families.
    #[error("{doing}: one end is IPv4, the other IPv6; no such connection exists")]
    MixedFamilies {
        /// What was being done.
        doing: String,
    },
    /// The kernel's tracker or destroyer.
    #[error(transparent)]
    Program(#[from] ctdb_ebpf::Error),
    /// Any other refusal by the kernel.
    #[error("{doing}: {source}")]
    Kernel {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// The error for `source` of the kernel while doing `doing`.
    pub(crate) fn kernel(doing: impl Into<String>, source: io::Error) -> Self {
        let doing = doing.into();
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::Permission { doing },
            _ => Self::Kernel { doing, source },
        }
    }

    /// The error number of the kernel behind this error, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Permission { .. } => Some(libc::EPERM),
            Self::MixedFamilies { .. } | Self::Program(_) => None,
            Self::NotSupported { source, .. } | Self::Kernel { source, .. } => {
                source.raw_os_error()
            }
        }
    }
}
