//! The controls that are not obsolete (`spec/client-protocol.md` 5): numbers, requests, replies.

use std::net::SocketAddr;

use super::codec::{DecodeError, Encode, Reader};
use super::types::{
    AddressInfo, BanState, Connection, DbMapEntry, DbStatistics, DbVacuum, EchoData, FlagChange,
    Interface, KeyData, NodeMapEntry, NotifyData, PidSrvid, PublicIp, PublicIpInfo, PullDb,
    PushRecord, RecBuffer, RecData, SetTunable, Statistics, TUNABLES, Text, TickleList, TransDb,
    TraverseAll, TraverseAllExt, TraverseStart, TraverseStartExt, TunableName, TunableNames,
    Uptime, VnnMap,
};

/// What may stand behind the known payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Size {
    /// Nothing: a wrong size is an error.
    Exact,
    /// It is not looked at.
    Any,
}

/// What decides that a payload has its size: [`Size::Exact`] unless the table says `any`.
macro_rules! size {
    () => {
        Size::Exact
    };
    (any) => {
        Size::Any
    };
}

/// `number Name(payload) [any] -> Reply: meaning`
macro_rules! controls {
    ($($number:literal $name:ident $(($payload:ty))? $([$size:ident])? -> $reply:ident, $doc:literal;)*) => {
        /// Number of a control.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u32)]
        pub enum Opcode {
            $(#[doc = $doc] $name = $number,)*
        }

        impl Opcode {
            /// All that are not obsolete.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// By its number; `None` is obsolete or unknown, and answered with status -1.
            pub const fn of(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }
        }

        /// A control with its payload. What it is about that stands in the packet's srvid field
        /// (registrations) stays there.
        #[derive(Clone, PartialEq, Debug)]
        pub enum Request<'a> {
            $(#[doc = $doc] $name $(($payload))?,)*
        }

        impl<'a> Request<'a> {
            /// Reads the payload of a control; one of the wrong size is refused where CTDB does.
            pub fn decode(opcode: Opcode, payload: &'a [u8]) -> Result<Self, DecodeError> {
                let mut reader = Reader::new(payload);
                let (request, size) = match opcode {
                    $(Opcode::$name => (
                        Self::$name $((reader.value::<$payload>()?))?,
                        size!($($size)?),
                    ),)*
                };
                if size == Size::Exact {
                    reader.end()?;
                }
                Ok(request)
            }

            /// Its number.
            pub const fn opcode(&self) -> Opcode {
                match self {
                    $(controls!(@pattern $name $($payload)?) => Opcode::$name,)*
                }
            }
        }

        impl Encode for Request<'_> {
            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $(controls!(@value $name payload $($payload)?) => {
                        controls!(@encode payload out $($payload)?);
                    })*
                }
            }
        }

        impl<'a> Reply<'a> {
            /// Reads the payload of a control's successful reply.
            pub fn decode(opcode: Opcode, payload: &'a [u8]) -> Result<Self, DecodeError> {
                match opcode {
                    $(Opcode::$name => Self::read(Kind::$reply, payload),)*
                }
            }
        }
    };
    (@pattern $name:ident) => { Self::$name };
    (@pattern $name:ident $payload:ty) => { Self::$name(_) };
    (@value $name:ident $value:ident) => { Self::$name };
    (@value $name:ident $value:ident $payload:ty) => { Self::$name($value) };
    (@encode $value:ident $out:ident) => {};
    (@encode $value:ident $out:ident $payload:ty) => { $value.encode($out) };
}

macro_rules! replies {
    ($($name:ident($payload:ty), $doc:literal;)*) => {
        /// The payload of a successful reply. Where the result is the reply's status, or there is
        /// none, it is [`Reply::None`].
        #[derive(Clone, PartialEq, Debug)]
        pub enum Reply<'a> {
            /// Nothing.
            None,
            /// The whole payload: text without NUL.
            Bytes(&'a [u8]),
            /// A text with NUL, or nothing.
            OptionalText(Option<Text<'a>>),
            $(#[doc = $doc] $name($payload),)*
        }

        #[derive(Clone, Copy)]
        enum Kind { None, Bytes, OptionalText, $($name,)* }

        impl<'a> Reply<'a> {
            fn read(kind: Kind, payload: &'a [u8]) -> Result<Self, DecodeError> {
                let mut reader = Reader::new(payload);
                let reply = match kind {
                    // What a control without result sends along is not looked at.
                    Kind::None => return Ok(Self::None),
                    Kind::Bytes => return Ok(Self::Bytes(payload)),
                    Kind::OptionalText if payload.is_empty() => Self::OptionalText(None),
                    Kind::OptionalText => Self::OptionalText(Some(reader.value()?)),
                    $(Kind::$name => Self::$name(reader.value::<$payload>()?),)*
                };
                reader.end()?;
                Ok(reply)
            }
        }

        impl Encode for Reply<'_> {
            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    Self::None | Self::OptionalText(None) => {}
                    Self::Bytes(bytes) => out.extend_from_slice(bytes),
                    Self::OptionalText(Some(text)) => text.encode(out),
                    $(Self::$name(value) => value.encode(out),)*
                }
            }
        }
    };
}

replies! {
    U32(u32), "A number.";
    I32(i32), "A signed number.";
    U64(u64), "A long number.";
    Text(Text<'a>), "A text with NUL.";
    VnnMap(VnnMap), "Location masters.";
    DbMap(Vec<DbMapEntry>), "Databases, newest first.";
    NodeMap(Vec<NodeMapEntry>), "Nodes.";
    PublicIps(Vec<PublicIp>), "Public addresses.";
    PublicIpInfo(PublicIpInfo), "One public address.";
    Interfaces(Vec<Interface>), "Interfaces.";
    Tickles(TickleList), "Connections of an address.";
    TunableNames(TunableNames), "Names of tunables.";
    Tunables([u32; TUNABLES]), "All tunables.";
    Statistics(Box<Statistics>), "Counters.";
    History(Vec<Statistics>), "Counters of the last intervals.";
    DbStatistics(Box<DbStatistics>), "Counters of a database.";
    Uptime(Uptime), "Times.";
    BanState(BanState), "A ban.";
    Records(RecBuffer<'a>), "Records.";
    Echo(EchoData<'a>), "What was sent.";
}

controls! {
    0 ProcessExists(i32) -> None, "Whether a client with that process number is here; the status.";
    1 Statistics -> Statistics, "Counters of the daemon.";
    3 Ping -> None, "Status is the number of clients.";
    4 GetDbPath(u32) -> Text, "File of a database.";
    5 GetVnnMap -> VnnMap, "Location masters.";
    6 SetVnnMap(VnnMap) [any] -> None, "Between CTDB's daemons.";
    7 GetDebug -> I32, "Log level.";
    8 SetDebug(i32) -> None, "Sets the log level.";
    9 GetDbMap -> DbMap, "Databases.";
    15 GetRecmode [any] -> None, "Status is the recovery mode.";
    16 SetRecmode(u32) -> None, "1 asks for a recovery.";
    17 StatisticsReset -> None, "Zeroes the counters.";
    18 DbAttach(Text<'a>) -> U32, "Attaches a volatile database.";
    20 TraverseStart(TraverseStart) -> None, "Starts a traverse.";
    21 TraverseAll(TraverseAll) -> None, "Between CTDB's daemons.";
    22 TraverseData(RecData<'a>) [any] -> None, "Between CTDB's daemons.";
    23 RegisterSrvid [any] -> None, "Registers an address of messages.";
    24 DeregisterSrvid [any] -> None, "Takes one registration back; status 2 if there is none.";
    25 GetDbName(u32) -> Text, "Name of a database.";
    26 EnableSeqnum(u32) -> None, "Changes of a database shall be seen by its sequence number.";
    27 UpdateSeqnum(u32) -> None, "Between CTDB's daemons.";
    29 DumpMemory -> Bytes, "Report on memory.";
    30 GetPid [any] -> None, "Status is the daemon's process number.";
    33 Freeze -> None, "Freezes all databases.";
    35 GetPnn [any] -> None, "Status is the node's number.";
    36 Shutdown [any] -> None, "Ends the daemon.";
    44 TcpClient(Connection) -> None, "The client has this connection.";
    45 TcpAdd(Connection) -> None, "A connection is there.";
    46 TcpRemove(Connection) -> None, "A connection is over.";
    47 Startup -> None, "Between CTDB's daemons.";
    48 SetTunable(SetTunable<'a>) [any] -> None, "Sets a tunable; status 1 if it is obsolete.";
    49 GetTunable(TunableName<'a>) [any] -> U32, "A tunable; status -22 if it is unknown.";
    50 ListTunables [any] -> TunableNames, "Names of tunables.";
    52 ModifyFlags(FlagChange) -> None, "Between CTDB's daemons.";
    53 GetAllTunables -> Tunables, "All tunables.";
    55 GetTcpTickleList(SocketAddr) -> Tickles, "Connections of an address; status 1 if it is not public.";
    56 SetTcpTickleList(TickleList) [any] -> None, "Between CTDB's daemons.";
    61 DbAttachPersistent(Text<'a>) -> U32, "Attaches a persistent database.";
    63 UpdateRecord(RecBuffer<'a>) [any] -> None, "Between CTDB's daemons.";
    64 SendGratuitousArp(AddressInfo<'a>) -> None, "Announces an address.";
    67 WipeDatabase(TransDb) -> None, "Empties a frozen database.";
    69 Uptime [any] -> Uptime, "Times of the daemon.";
    70 StartRecovery [any] -> None, "Between CTDB's daemons.";
    71 EndRecovery [any] -> None, "Between CTDB's daemons.";
    72 ReloadNodesFile -> None, "Reads the nodes list again.";
    74 TryDeleteRecords(RecBuffer<'a>) [any] -> Records, "Between CTDB's daemons.";
    77 AddPublicIp(AddressInfo<'a>) -> None, "Adds a public address.";
    78 DelPublicIp(AddressInfo<'a>) -> None, "Takes a public address away.";
    80 GetCapabilities [any] -> U32, "Capabilities.";
    81 StartPersistentUpdate [any] -> None, "Counts an update that a crash would leave half done.";
    82 CancelPersistentUpdate [any] -> None, "Counts it back.";
    87 RecdPing -> None, "Between CTDB's daemon and its recovery daemon.";
    88 ReleaseIp(PublicIp) -> None, "Lets go of an address.";
    89 TakeoverIp(PublicIp) -> None, "Takes an address.";
    90 GetPublicIps -> PublicIps, "Public addresses.";
    91 GetNodeMap -> NodeMap, "Nodes.";
    97 TraverseKill(TraverseStart) -> None, "Between CTDB's daemons.";
    98 RecdReclockLatency(f64) -> None, "Between CTDB's daemon and its recovery daemon.";
    99 GetReclockFile -> OptionalText, "Cluster lock.";
    101 StopNode -> None, "Stops the node.";
    102 ContinueNode -> None, "Continues it.";
    104 SetLmasterRole(u32) -> None, "May be location master.";
    105 SetRecmasterRole(u32) -> None, "May lead.";
    109 SetBanState(BanState) -> None, "Bans the node, or ends it.";
    110 GetBanState -> BanState, "The node's ban.";
    114 RegisterNotify(NotifyData<'a>) -> None, "A message when this client goes.";
    115 DeregisterNotify(u64) -> None, "Takes it back.";
    119 Trans3Commit(RecBuffer<'a>) [any] -> None, "Commits a transaction.";
    120 GetDbSeqnum([u32; 2]) -> U64, "Sequence number of a persistent database.";
    121 DbSetHealthy(u32) -> None, "Marks a database healthy.";
    122 DbGetHealth(u32) -> OptionalText, "Why a database is unhealthy; nothing if it is not.";
    123 GetPublicIpInfo(SocketAddr) -> PublicIpInfo, "One public address.";
    124 GetIfaces -> Interfaces, "Interfaces of public addresses.";
    125 SetIfaceLinkState(Interface) -> None, "What a link is to be taken for.";
    126 TcpAddDelayedUpdate(Connection) -> None, "A connection is there.";
    127 GetStatHistory -> History, "Counters of the last intervals.";
    128 ScheduleForDeletion(KeyData<'a>) -> None, "A record is empty and may go.";
    129 SetDbReadonly(u32) -> None, "Read-only copies may be given.";
    131 TraverseStartExt(TraverseStartExt) -> None, "Starts a traverse.";
    132 GetDbStatistics(u32) -> DbStatistics, "Counters of a database.";
    133 SetDbSticky(u32) -> None, "Contended records stay.";
    134 ReloadPublicIps -> None, "Reads the public addresses again.";
    135 TraverseAllExt(TraverseAllExt) -> None, "Between CTDB's daemons.";
    137 IpReallocated -> None, "Addresses have been distributed.";
    138 GetRunstate -> U32, "Run state.";
    139 DbDetach(u32) [any] -> None, "Detaches a database.";
    140 GetNodesFile -> NodeMap, "The nodes list as its file says.";
    141 DbFreeze(u32) -> None, "Freezes a database.";
    142 DbThaw(u32) -> None, "Thaws it.";
    143 DbTransactionStart(TransDb) -> None, "Begins replacing a frozen database.";
    144 DbTransactionCommit(TransDb) -> None, "Ends it.";
    145 DbTransactionCancel(u32) -> None, "Drops it.";
    146 DbPull(PullDb) -> U32, "Sends all records as messages.";
    147 DbPushStart(PullDb) -> None, "Records will come as messages.";
    148 DbPushConfirm(u32) -> U32, "How many came.";
    149 DbOpenFlags(u32) -> I32, "Flags to open its file with.";
    150 DbAttachReplicated(Text<'a>) -> U32, "Attaches a replicated database.";
    151 CheckPidSrvid(PidSrvid) -> None, "Whether a process has registered an address; the status.";
    152 TunnelRegister [any] -> None, "Registers a tunnel.";
    153 TunnelDeregister [any] -> None, "Takes it back.";
    154 VacuumFetch(RecBuffer<'a>) [any] -> None, "Between CTDB's daemons.";
    155 DbVacuum(DbVacuum) -> None, "Vacuums a database.";
    156 EchoData(EchoData<'a>) -> Echo, "Sends it back.";
    157 DisableNode -> None, "Disables the node.";
    158 EnableNode -> None, "Enables it.";
    159 TcpClientDisconnected(Connection) -> None, "The client's connection is over.";
    160 TcpClientPassed(Connection) -> None, "Another process has the client's connection now.";
    161 StartIpReallocate -> None, "Addresses are about to be distributed.";
    162 PushRecord(PushRecord<'a>) -> None, "A copy of a record, for its survival.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::codec::encode_to_vec;

    #[test]
    fn numbers_name_what_they_should() {
        assert_eq!(Opcode::ALL.len(), 109);
        for opcode in Opcode::ALL {
            assert_eq!(Opcode::of(*opcode as u32), Some(*opcode));
        }
        // Obsolete, removed, unused, unknown.
        for number in [
            2,
            10,
            13,
            28,
            31,
            34,
            42,
            54,
            62,
            92,
            106,
            130,
            136,
            163,
            u32::MAX,
        ] {
            assert_eq!(Opcode::of(number), None, "{number}");
        }
    }

    #[test]
    fn a_wrong_size_is_refused_where_ctdb_does() {
        assert_eq!(
            Request::decode(Opcode::GetNodeMap, &[0]),
            Err(DecodeError::Trailing(1))
        );
        assert_eq!(
            Request::decode(Opcode::GetPnn, &[1, 2, 3]),
            Ok(Request::GetPnn)
        );
        assert!(Request::decode(Opcode::GetDbPath, &[0; 3]).is_err());
        assert!(Request::decode(Opcode::GetDbPath, &[0; 5]).is_err());
        assert!(Request::decode(Opcode::DbDetach, &[0; 5]).is_ok());
    }

    #[test]
    fn requests_without_payload_are_empty() {
        let out = encode_to_vec(&Request::GetPnn);
        assert!(out.is_empty());
        assert_eq!(Request::GetPnn.opcode(), Opcode::GetPnn);
        let ban = Request::SetBanState(BanState {
            pnn: 1,
            seconds: 300,
        });
        assert_eq!(ban.opcode() as u32, 109);
        assert_eq!(encode_to_vec(&ban).len(), 8);
    }

    #[test]
    fn optional_texts_may_be_missing() {
        assert_eq!(
            Reply::decode(Opcode::GetReclockFile, b""),
            Ok(Reply::OptionalText(None))
        );
        assert_eq!(
            Reply::decode(Opcode::GetReclockFile, b"/x\0"),
            Ok(Reply::OptionalText(Some(Text(b"/x"))))
        );
        assert!(Reply::decode(Opcode::GetDbPath, b"").is_err());
    }
}
