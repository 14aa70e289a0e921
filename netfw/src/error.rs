//! What can go wrong with addresses, announcements and firewall.

use std::io;
use std::net::IpAddr;

use crate::IfIndex;

/// One error of this crate: what was being done, to what, and what the operator can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The interface does not exist (any more).
    #[error(
        "{doing}: no interface with number {ifindex}; it was removed or renamed away, check `ip link`"
    )]
    NoDevice {
        /// What was being done.
        doing: String,
        /// The number of the interface.
        ifindex: IfIndex,
    },
    /// The interface exists but does not carry this address family.
    #[error(
        "{doing}: interface {ifindex} has no {} ({source}); enable it there \
         (sysctl net.ipv6.conf.IFACE.disable_ipv6, MTU at least 1280) or list the address on \
         another interface",
        if address.is_ipv6() { "IPv6" } else { "IPv4" }
    )]
    FamilyUnavailable {
        /// What was being done.
        doing: String,
        /// The address.
        address: IpAddr,
        /// The interface.
        ifindex: IfIndex,
        /// The kernel's answer.
        source: io::Error,
    },
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
    /// Any other refusal by the kernel.
    #[error("{doing}: {source}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Kernel {
        /// What was being done.
        doing: String,
        /// The kernel's answer.
        source: io::Error,
        /// The kernel's own words, where it gave any.
        detail: Option<String>,
    },
    /// A limit of this crate was reached; nothing was changed.
    #[error("{doing}: more than {limit}; nothing was changed")]
    TooMany {
        /// What was being done.
        doing: String,
        /// The limit.
        limit: usize,
    },
    /// The firewall's table was not installed, or was removed.
    #[error("{doing}: the firewall table is not installed; restart the daemon")]
    NotInstalled {
        /// What was being done.
        doing: String,
    },
}

impl Error {
    /// The error for `source` of the kernel while doing `doing`.
    pub(crate) fn kernel(doing: impl Into<String>, source: io::Error) -> Self {
        Self::kernel_detail(doing, source, None)
    }

    /// As [`Self::kernel`], with the kernel's own words.
    pub(crate) fn kernel_detail(
        doing: impl Into<String>,
        source: io::Error,
        detail: Option<String>,
    ) -> Self {
        let doing = doing.into();
        match source.raw_os_error() {
            Some(libc::EPERM) => Self::Permission { doing },
            _ => Self::Kernel {
                doing,
                source,
                detail,
            },
        }
    }

    /// The error number of the kernel behind this error, if there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::NoDevice { .. } => Some(libc::ENODEV),
            Self::Permission { .. } => Some(libc::EPERM),
            Self::FamilyUnavailable { source, .. }
            | Self::NotSupported { source, .. }
            | Self::Kernel { source, .. } => source.raw_os_error(),
            Self::TooMany { .. } | Self::NotInstalled { .. } => None,
        }
    }
}
