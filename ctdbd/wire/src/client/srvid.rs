//! Well-known message addresses (`spec/client-protocol.md` 6.3).

/// Registered only: every message of the node.
pub const ALL: u64 = u64::MAX;
/// Leader's number, u32, every second; u32::MAX while there is none.
pub const LEADER: u64 = 0xF101_0000_0000_0000;
/// After each recovery; empty.
pub const RECONFIGURE: u64 = 0xF200_0000_0000_0000;
/// To local clients when an address was released: its text with NUL (6.4).
pub const RELEASE_IP: u64 = 0xF300_0000_0000_0000;
/// To local clients when an address was taken over: its text with NUL.
pub const TAKE_IP: u64 = 0xF301_0000_0000_0000;
/// To local clients when addresses have been distributed; empty.
pub const IPREALLOCATED: u64 = 0xF302_0000_0000_0000;
/// To local clients when addresses are about to be distributed; empty.
pub const START_IPREALLOCATE: u64 = 0xF303_0000_0000_0000;
/// Asks a node for its memory report: [`SrvidMessage`](super::types::SrvidMessage).
pub const MEM_DUMP: u64 = 0xF800_0000_0000_0000;
/// Asks the leader to distribute addresses: [`SrvidMessage`](super::types::SrvidMessage).
pub const TAKEOVER_RUN: u64 = 0xFB00_0000_0000_0000;
/// Tells the leader that a node may be given addresses again: u32 node number.
pub const REBALANCE_NODE: u64 = 0xFB01_0000_0000_0000;
/// Holds distribution back: [`DisableMessage`](super::types::DisableMessage).
pub const DISABLE_TAKEOVER_RUNS: u64 = 0xFB03_0000_0000_0000;
/// Holds recoveries back: [`DisableMessage`](super::types::DisableMessage).
pub const DISABLE_RECOVERIES: u64 = 0xFB04_0000_0000_0000;
/// Every Samba process.
pub const SAMBA_PROCESS: u64 = 0xFE00_0000_0000_0002;
