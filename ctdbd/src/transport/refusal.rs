//! Why a connection is refused: typed, counted, and logged once per peer and reason.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::handshake::VersionRange;

/// Why a connection did not become a link. The text is for the log: what was found and what the
/// operator can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Not from the address of a node.
    #[error(
        "connection from an address that is not in the nodes list; if it is a node, make the \
         nodes lists of all nodes the same"
    )]
    UnknownSource,
    /// More connections per second than a peer ever makes.
    #[error("too many connections; something on that host dials without end")]
    RateLimited,
    /// Pushed out by newer connections before its handshake was complete.
    #[error("too many connections that are not authenticated; this one was the oldest")]
    Crowded,
    /// Neither our protocol nor CTDB's.
    #[error("does not speak the cluster protocol")]
    Garbage,
    /// CTDB's own daemon.
    #[error(
        "a CTDB daemon runs there; its nodes and ours cannot form one cluster: stop it, and \
         change all nodes over together"
    )]
    CtdbDaemon,
    /// No protocol version in common.
    #[error("speaks protocol versions {theirs}, this node {ours}; upgrade one release at a time")]
    OtherVersion {
        /// The peer's versions.
        theirs: VersionRange,
        /// Ours.
        ours: VersionRange,
    },
    /// Another `[cluster] name`.
    #[error("belongs to a cluster with another name; compare [cluster] name on both nodes")]
    OtherCluster,
    /// One side encrypts, the other does not.
    #[error("uses another [security] transport; it must be the same on all nodes")]
    OtherMode,
    /// Claims a node number that does not fit its address, or means another node than us.
    #[error(
        "node numbers do not match; the nodes lists differ between the nodes (see `ctdb config \
         check`)"
    )]
    WrongNode,
    /// Does not know the cluster key.
    #[error(
        "has another cluster key; copy the key with `ctdb config keygen --distribute` from a \
         node that has the right one"
    )]
    WrongKey,
    /// A handshake message longer than any of ours.
    #[error("sent a handshake message longer than any of ours")]
    TooLong,
    /// Not done within the time-out.
    #[error("did not complete the handshake in time")]
    TimedOut,
    /// Authenticated, yet what it says of itself makes no sense.
    #[error("sent a malformed hello")]
    Malformed,
    /// Closed before the handshake was complete.
    #[error("closed the connection during the handshake")]
    Closed,
    /// The listener said no; what it said is not authenticated.
    #[error("refused this node: {0}")]
    ByPeer(Verdict),
}

impl Refusal {
    /// Number of kinds; [`Refusal::kind`] is below it.
    pub const KINDS: usize = 15;

    /// Stable number of the kind, which indexes [`Refusals::counts`].
    pub const fn kind(self) -> usize {
        match self {
            Self::UnknownSource => 0,
            Self::RateLimited => 1,
            Self::Crowded => 2,
            Self::Garbage => 3,
            Self::CtdbDaemon => 4,
            Self::OtherVersion { .. } => 5,
            Self::OtherCluster => 6,
            Self::OtherMode => 7,
            Self::WrongNode => 8,
            Self::WrongKey => 9,
            Self::TooLong => 10,
            Self::TimedOut => 11,
            Self::Malformed => 12,
            Self::Closed => 13,
            Self::ByPeer(_) => 14,
        }
    }

    /// Stable words of the kinds, by [`Refusal::kind`], for metrics and JSON.
    pub const NAMES: [&'static str; Self::KINDS] = [
        "unknown_source",
        "rate_limited",
        "crowded",
        "garbage",
        "ctdb_daemon",
        "other_version",
        "other_cluster",
        "other_mode",
        "wrong_node",
        "wrong_key",
        "too_long",
        "timed_out",
        "malformed",
        "closed",
        "by_peer",
    ];

    /// What the listener tells the dialer about it.
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::OtherVersion { .. } => Verdict::OtherVersion,
            Self::OtherCluster => Verdict::OtherCluster,
            Self::OtherMode => Verdict::OtherMode,
            Self::WrongNode | Self::UnknownSource => Verdict::WrongNode,
            Self::WrongKey => Verdict::WrongKey,
            _ => Verdict::Malformed,
        }
    }
}

/// The listener's answer as one byte on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Verdict {
    /// Go on.
    Welcome = 0,
    /// No version in common.
    OtherVersion = 1,
    /// Another cluster name.
    OtherCluster = 2,
    /// Encrypted here and plain there.
    OtherMode = 3,
    /// Node numbers or addresses do not match.
    WrongNode = 4,
    /// Another key.
    WrongKey = 5,
    /// Anything else.
    Malformed = 6,
}

impl Verdict {
    /// Of its byte; `None` for one that this release does not know.
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Welcome,
            1 => Self::OtherVersion,
            2 => Self::OtherCluster,
            3 => Self::OtherMode,
            4 => Self::WrongNode,
            5 => Self::WrongKey,
            6 => Self::Malformed,
            _ => return None,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Welcome => "welcome",
            Self::OtherVersion => "no protocol version in common",
            Self::OtherCluster => "[cluster] name differs",
            Self::OtherMode => "[security] transport differs",
            Self::WrongNode => "the nodes lists differ",
            Self::WrongKey => "the cluster key differs",
            Self::Malformed => "it did not understand what was sent",
        })
    }
}

/// Most sources outside the nodes list that are remembered for logging; the rest share one entry.
const MAX_STRANGERS: usize = 256;

/// Counters, and which (source, kind) pairs were logged since the source last had a link.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: [AtomicU64; Refusal::KINDS],
    logged: Mutex<HashMap<Option<IpAddr>, u32>>,
}

impl Refusals {
    /// Counts a refusal and logs it if this source was not refused for this kind of reason since
    /// [`Refusals::clear`]. Returns whether it was logged.
    pub fn note(&self, source: IpAddr, refusal: Refusal, outgoing: bool) -> bool {
        self.counts[refusal.kind()].fetch_add(1, Ordering::Relaxed);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let key = if logged.len() < MAX_STRANGERS || logged.contains_key(&Some(source)) {
            Some(source)
        } else {
            None
        };
        let kinds = logged.entry(key).or_default();
        let bit = 1 << refusal.kind();
        let new = *kinds & bit == 0;
        *kinds |= bit;
        drop(logged);
        if new {
            let reason = Refusal::NAMES[refusal.kind()];
            tracing::warn!(peer = %source, outgoing, reason, "link refused: {refusal}");
        }
        new
    }

    /// Forgets what was logged of `source`: it has a link now.
    pub fn clear(&self, source: IpAddr) {
        self.logged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&Some(source));
    }

    /// How often each kind occurred since the start, by [`Refusal::kind`].
    pub fn counts(&self) -> [u64; Refusal::KINDS] {
        std::array::from_fn(|kind| self.counts[kind].load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_logged_once_per_source_until_it_has_a_link() {
        let refusals = Refusals::default();
        let a: IpAddr = "10.0.0.1".parse().unwrap();
        let b: IpAddr = "10.0.0.2".parse().unwrap();
        assert!(refusals.note(a, Refusal::WrongKey, false));
        assert!(!refusals.note(a, Refusal::WrongKey, false));
        assert!(refusals.note(a, Refusal::Garbage, false));
        assert!(
            !refusals.note(a, Refusal::WrongKey, false),
            "alternating reasons do not flood"
        );
        assert!(refusals.note(b, Refusal::WrongKey, true));
        refusals.clear(a);
        assert!(refusals.note(a, Refusal::WrongKey, false));
        assert_eq!(refusals.counts()[Refusal::WrongKey.kind()], 5);
    }

    #[test]
    fn many_strangers_take_bounded_memory() {
        let refusals = Refusals::default();
        let mut logged = 0;
        for number in 0..10_000_u32 {
            let source = IpAddr::from(number.to_be_bytes());
            logged += u32::from(refusals.note(source, Refusal::UnknownSource, false));
        }
        assert_eq!(logged as usize, MAX_STRANGERS + 1);
        assert!(refusals.logged.lock().unwrap().len() <= MAX_STRANGERS + 1);
    }

    #[test]
    fn verdicts_survive_their_byte() {
        for byte in 0..=6 {
            assert_eq!(Verdict::from_byte(byte).unwrap() as u8, byte);
        }
        assert!(Verdict::from_byte(7).is_none());
    }
}
