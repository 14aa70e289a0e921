//! Identifiers that more than one room speaks of.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// Most nodes that a cluster can have (`design.md` section 1). Node sets are `u64` bit masks.
pub const MAX_NODES: usize = 64;

/// Most public addresses that one cluster can have; bounds every list of addresses in a frame.
pub const MAX_ADDRESSES: usize = 8192;

/// Physical node number: the zero-based position in the nodes list (`spec/cluster.md` 1.3).
/// Always below [`MAX_NODES`] once it has been checked by [`Pnn::new`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Pnn(u8);

/// A node number that no cluster of [`MAX_NODES`] has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("node number {0} is not below {MAX_NODES}")]
pub struct PnnOutOfRange(pub u32);

impl Pnn {
    /// Checks the range once, where a number enters the system.
    pub const fn new(number: u32) -> Result<Self, PnnOutOfRange> {
        if number < MAX_NODES as u32 {
            Ok(Self(number as u8))
        } else {
            Err(PnnOutOfRange(number))
        }
    }

    /// The number as an index into per-node arrays of [`MAX_NODES`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The number as it stands on the wire and in print.
    pub const fn get(self) -> u32 {
        self.0 as u32
    }

    /// This node's bit in a [`NodeSet`].
    pub const fn bit(self) -> u64 {
        1 << self.0
    }
}

impl TryFrom<u32> for Pnn {
    type Error = PnnOutOfRange;
    fn try_from(number: u32) -> Result<Self, PnnOutOfRange> {
        Self::new(number)
    }
}

impl From<Pnn> for u32 {
    fn from(pnn: Pnn) -> u32 {
        pnn.get()
    }
}

impl fmt::Display for Pnn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Pnn {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number: u32 = text
            .parse()
            .map_err(|_| format!("'{text}' is not a node number"))?;
        Self::new(number).map_err(|error| error.to_string())
    }
}

/// A set of node numbers, one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug, Serialize, Deserialize)]
pub struct NodeSet(pub u64);

impl NodeSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Whether `pnn` is a member.
    pub const fn contains(self, pnn: Pnn) -> bool {
        self.0 & pnn.bit() != 0
    }

    /// Adds `pnn`; true if it was new.
    pub fn insert(&mut self, pnn: Pnn) -> bool {
        let new = !self.contains(pnn);
        self.0 |= pnn.bit();
        new
    }

    /// Removes `pnn`; true if it was there.
    pub fn remove(&mut self, pnn: Pnn) -> bool {
        let was = self.contains(pnn);
        self.0 &= !pnn.bit();
        was
    }

    /// Number of members.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether there is no member.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Members in ascending order.
    pub fn iter(self) -> impl Iterator<Item = Pnn> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            if rest == 0 {
                return None;
            }
            let lowest = rest.trailing_zeros() as u8;
            rest &= rest - 1;
            Some(Pnn(lowest))
        })
    }
}

impl FromIterator<Pnn> for NodeSet {
    fn from_iter<I: IntoIterator<Item = Pnn>>(nodes: I) -> Self {
        let mut set = Self::EMPTY;
        for pnn in nodes {
            set.insert(pnn);
        }
        set
    }
}

/// One life of one daemon: drawn at random at start, fixed by the link handshake
/// (`authority.md` rule 1). Zero is "none known".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// No incarnation is known.
    pub const NONE: Self = Self(0);
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inc-{:x}", self.0)
    }
}

/// E of `authority.md` rule 1: an incarnation and an epoch in it. An epoch begins when a right
/// begins and ends with it; grants name their epoch, so one that comes late is dead (rule 2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Epoch {
    /// The daemon's life.
    pub incarnation: Incarnation,
    /// Counts the rights of this life from 1; 0 is "no right yet".
    pub number: u32,
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}/{}", self.incarnation.0, self.number)
    }
}

/// A leader's term: ordered by number, then leader, then session (`design.md` section 4).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Term {
    /// Counts elections.
    pub number: u64,
    /// The leader's node number.
    pub leader: Pnn,
    /// The leader's incarnation, so that a restarted leader never repeats a term.
    pub session: Incarnation,
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}@{}", self.number, self.leader)
    }
}

/// Number of an order within its term (`authority.md` rule 15).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
pub struct OrderSeq(pub u64);

/// A moment on this host's boot-time clock (`CLOCK_BOOTTIME`), in nanoseconds. Never compared
/// between hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct BootTime(pub u64);

impl BootTime {
    /// The earliest moment; "never" for past events.
    pub const ZERO: Self = Self(0);

    /// A moment from milliseconds, for tests and the simulator.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms * 1_000_000)
    }

    /// Time passed since `earlier`; zero if that is in the future.
    pub const fn since(self, earlier: Self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for BootTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}.{:06}s",
            self.0 / 1_000_000_000,
            self.0 % 1_000_000_000 / 1000
        )
    }
}

impl std::ops::Add<std::time::Duration> for BootTime {
    type Output = Self;
    fn add(self, rhs: std::time::Duration) -> Self {
        Self(self.0.saturating_add(rhs.as_nanos() as u64))
    }
}

impl std::ops::AddAssign<std::time::Duration> for BootTime {
    fn add_assign(&mut self, rhs: std::time::Duration) {
        *self = *self + rhs;
    }
}

impl std::ops::Sub<std::time::Duration> for BootTime {
    type Output = Self;
    fn sub(self, rhs: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(rhs.as_nanos() as u64))
    }
}

bitflags::bitflags! {
    /// Flags of a node (`spec/cluster.md` 2.1).
    #[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct NodeFlags: u32 {
        /// Not reachable from here; a local observation, never taken from others.
        const DISCONNECTED = 0x01;
        /// Service checks fail, or never succeeded yet.
        const UNHEALTHY = 0x02;
        /// The operator took the node's addresses away.
        const DISABLED = 0x04;
        /// Out of the cluster for a limited time.
        const BANNED = 0x08;
        /// Place holder for a node number (a commented line in the nodes list).
        const DELETED = 0x10;
        /// Out of the cluster until `continue`.
        const STOPPED = 0x20;
        /// State not yet learnt; only shown, never on the wire.
        const UNKNOWN = 0x40;
    }
}

impl NodeFlags {
    /// Deleted, disconnected, banned or stopped: not part of the cluster.
    pub const INACTIVE: Self = Self::DISCONNECTED
        .union(Self::BANNED)
        .union(Self::DELETED)
        .union(Self::STOPPED);
    /// Flags with which a node hosts no public address.
    pub const NO_ADDRESSES: Self = Self::INACTIVE
        .union(Self::UNHEALTHY)
        .union(Self::DISABLED)
        .union(Self::UNKNOWN);

    /// Whether any inactive bit is set.
    pub const fn is_inactive(self) -> bool {
        self.intersects(Self::INACTIVE)
    }
}

impl fmt::Display for NodeFlags {
    /// The text of `ctdb status`: names in the order of `spec/cluster.md` 2.1, or `OK`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("OK");
        }
        let names = [
            (Self::DISCONNECTED, "DISCONNECTED"),
            (Self::UNKNOWN, "UNKNOWN"),
            (Self::DISABLED, "DISABLED"),
            (Self::BANNED, "BANNED"),
            (Self::UNHEALTHY, "UNHEALTHY"),
            (Self::DELETED, "DELETED"),
            (Self::STOPPED, "STOPPED"),
            (Self::INACTIVE, "INACTIVE"),
        ];
        let mut first = true;
        for (flag, name) in names {
            if self.intersects(flag) {
                if !first {
                    f.write_str("|")?;
                }
                f.write_str(name)?;
                first = false;
            }
        }
        Ok(())
    }
}

/// Run states of a daemon, monotonic (`spec/cluster.md` 2.13).
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunState {
    /// Before anything.
    #[default]
    Unknown,
    /// Configuration read, `init` under way.
    Init,
    /// Clients are accepted, `setup` under way.
    Setup,
    /// Waits for the first recovery.
    FirstRecovery,
    /// `startup` under way.
    Startup,
    /// Serves.
    Running,
    /// Leaves.
    Shutdown,
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "UNKNOWN",
            Self::Init => "INIT",
            Self::Setup => "SETUP",
            Self::FirstRecovery => "FIRST_RECOVERY",
            Self::Startup => "STARTUP",
            Self::Running => "RUNNING",
            Self::Shutdown => "SHUTDOWN",
        })
    }
}

/// The order in which addresses are shown: IPv4 before IPv6, ascending (`spec/cli.md` 6.5).
pub fn address_key(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (false, u128::from(u32::from(v4))),
        IpAddr::V6(v6) => (true, u128::from(v6)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_as_ctdb_does() {
        assert_eq!(NodeFlags::empty().to_string(), "OK");
        assert_eq!(
            (NodeFlags::DISCONNECTED | NodeFlags::UNHEALTHY).to_string(),
            "DISCONNECTED|UNHEALTHY|INACTIVE"
        );
        assert_eq!(NodeFlags::STOPPED.to_string(), "STOPPED|INACTIVE");
        assert_eq!(NodeFlags::UNKNOWN.to_string(), "UNKNOWN");
    }

    #[test]
    fn node_sets_count_and_iterate() {
        let set: NodeSet = [0, 63, 5]
            .into_iter()
            .map(|n| Pnn::new(n).unwrap())
            .collect();
        assert_eq!(set.iter().map(Pnn::get).collect::<Vec<_>>(), [0, 5, 63]);
        assert_eq!(set.len(), 3);
        assert!(Pnn::new(64).is_err());
    }
}
