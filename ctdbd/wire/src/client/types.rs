//! The composite encodings of `spec/client-protocol.md` section 4.

mod address;
mod map;
mod misc;
mod record;
mod statistics;

pub use address::{
    AddressInfo, Connection, Interface, InterfaceName, PublicIp, PublicIpInfo, TickleList,
};
pub use map::{DbFlags, DbMapEntry, NodeMapEntry, TunableNames, VnnMap};
pub use misc::{
    BanState, DbVacuum, DisableMessage, EchoData, ElectionMessage, FlagChange, GLockEntry,
    NotifyData, PidSrvid, PullDb, ServerId, SetTunable, SrvidMessage, Text, Timeval, TransDb,
    TraverseAll, TraverseAllExt, TraverseStart, TraverseStartExt, TunableName, Uptime,
};
pub use record::{
    KeyData, LTDB_HEADER, LtdbHeader, PushRecord, RecBuffer, RecBufferBuilder, RecData,
    RecordFlags, Records,
};
pub use statistics::{
    CallCounters, DB_STATISTICS, DbStatistics, HOT_KEYS, HotKey, Latency, LockStatistics,
    NodeCounters, STATISTICS, Statistics, Timeouts,
};

/// Tunables on the wire (4.8).
pub const TUNABLES: usize = 62;
