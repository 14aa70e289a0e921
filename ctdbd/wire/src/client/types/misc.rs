//! Times, texts, requests of traverse, transactions, tunables, notification (4.1, 4.4, 4.5).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::client::codec::{Decode, DecodeError, Encode, Reader, put_blob, wire_struct};

wire_struct! {
    /// Seconds and microseconds.
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
    pub struct Timeval {
        /// Since 1970.
        pub seconds: i64,
        /// Below a million.
        pub micros: i64,
    }
}

impl From<SystemTime> for Timeval {
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self {
            seconds: since.as_secs() as i64,
            micros: i64::from(since.subsec_micros()),
        }
    }
}

impl From<f64> for Timeval {
    /// Seconds since 1970.
    fn from(seconds: f64) -> Self {
        let micros = (seconds.max(0.0) * 1e6) as i64;
        Self {
            seconds: micros / 1_000_000,
            micros: micros % 1_000_000,
        }
    }
}

/// A payload that is one text; its NUL is counted, but not part of the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Text<'a>(pub &'a [u8]);

impl Encode for Text<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.0);
        out.push(0);
    }
}

impl<'a> Decode<'a> for Text<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let all = reader.take(reader.rest().len())?;
        let length = all
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(DecodeError::NoTerminator)?;
        Ok(Self(&all[..length]))
    }
}

wire_struct! {
    /// WIPE_DATABASE, DB_TRANSACTION_START and COMMIT.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct TransDb {
        /// Database.
        pub db_id: u32,
        /// Transaction, the generation.
        pub tid: u32,
    }
}

wire_struct! {
    /// DB_PULL, DB_PUSH_START.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PullDb {
        /// Database.
        pub db_id: u32,
        /// Records of this location master; `u32::MAX` is any.
        pub lmaster: u32,
        /// Where the records go, or come from.
        pub srvid: u64,
    }
}

wire_struct! {
    /// DB_VACUUM: five bytes, without a hole at the end.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct DbVacuum {
        /// Database.
        pub db_id: u32,
        /// 0 or 1: look at the whole database.
        pub full: u8,
    }
}

wire_struct! {
    /// TRAVERSE_START, TRAVERSE_KILL.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct TraverseStart {
        /// Database.
        pub db_id: u32,
        /// Repeated in each record.
        pub reqid: u32,
        /// Where the records go.
        pub srvid: u64,
    }
}

wire_struct! {
    /// TRAVERSE_START_EXT.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct TraverseStartExt {
        /// As without the rest.
        pub start: TraverseStart,
        /// 0 or 1: empty records too.
        pub with_empty: u8 => pad 7,
    }
}

wire_struct! {
    /// TRAVERSE_ALL, between daemons.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct TraverseAll {
        /// Database.
        pub db_id: u32,
        /// Of the asking daemon.
        pub reqid: u32,
        /// The asking node.
        pub pnn: u32,
        /// Of the client.
        pub client_reqid: u32,
        /// Of the client.
        pub srvid: u64,
    }
}

wire_struct! {
    /// TRAVERSE_ALL_EXT, between daemons.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct TraverseAllExt {
        /// As without the rest.
        pub all: TraverseAll,
        /// 0 or 1: empty records too.
        pub with_empty: u8 => pad 7,
    }
}

wire_struct! {
    /// A Samba process.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct ServerId {
        /// Process.
        pub pid: u64,
        /// Task in it.
        pub task_id: u32,
        /// Its node.
        pub vnn: u32,
        /// Drawn at its start.
        pub unique_id: u64,
    }
}

wire_struct! {
    /// One holder in a lock record of the tool's client library.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct GLockEntry {
        /// 0 read, 1 write.
        pub kind: u32 => pad 4,
        /// The holder.
        pub server: ServerId,
    }
}

wire_struct! {
    /// MODIFY_FLAGS.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct FlagChange {
        /// Node.
        pub pnn: u32,
        /// Flags now.
        pub new: u32,
        /// Flags before.
        pub old: u32,
    }
}

wire_struct! {
    /// SET_BAN_STATE, GET_BAN_STATE.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct BanState {
        /// Node.
        pub pnn: u32,
        /// How long; 0 is not banned.
        pub seconds: u32,
    }
}

wire_struct! {
    /// CHECK_PID_SRVID; packed.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PidSrvid {
        /// Process.
        pub pid: i32,
        /// Address that it may have registered.
        pub srvid: u64,
    }
}

wire_struct! {
    /// UPTIME: 64 bytes.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Uptime {
        /// Now.
        pub now: Timeval,
        /// Start of the daemon.
        pub started: Timeval,
        /// Start of the last recovery; 0 before the first.
        pub recovery_started: Timeval,
        /// Its end.
        pub recovery_finished: Timeval,
    }
}

wire_struct! {
    /// Messages of the election between CTDB's recovery daemons.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ElectionMessage {
        /// Nodes that the sender sees.
        pub connected: u32 => pad 4,
        /// When it started.
        pub priority: Timeval,
        /// Its number.
        pub pnn: u32,
        /// Its flags.
        pub flags: u32,
    }
}

wire_struct! {
    /// Asks for a result as a message.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct SrvidMessage {
        /// Node that wants it.
        pub pnn: u32 => pad 4,
        /// Address there; 0 wants none.
        pub srvid: u64,
    }
}

wire_struct! {
    /// DISABLE_TAKEOVER_RUNS, DISABLE_RECOVERIES.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct DisableMessage {
        /// Node that wants the result.
        pub pnn: u32 => pad 4,
        /// Address there.
        pub srvid: u64,
        /// How long; 0 ends it.
        pub timeout_s: u32 => pad 4,
    }
}

/// REGISTER_NOTIFY; packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotifyData<'a> {
    /// Where the message goes when the client has gone.
    pub srvid: u64,
    /// The message.
    pub data: &'a [u8],
}

impl Encode for NotifyData<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.srvid.encode(out);
        put_blob(self.data, out);
    }
}

impl<'a> Decode<'a> for NotifyData<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            srvid: reader.value()?,
            data: reader.blob()?,
        })
    }
}

/// ECHO_DATA, both ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EchoData<'a> {
    /// Milliseconds; CTDB does not wait.
    pub timeout: u32,
    /// Opaque.
    pub data: &'a [u8],
}

impl Encode for EchoData<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.timeout.encode(out);
        put_blob(self.data, out);
    }
}

impl<'a> Decode<'a> for EchoData<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            timeout: reader.value()?,
            data: reader.blob()?,
        })
    }
}

/// GET_TUNABLE: a name whose length may count a NUL or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunableName<'a>(pub &'a [u8]);

impl Encode for TunableName<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        (self.0.len() as u32 + 1).encode(out);
        out.extend_from_slice(self.0);
        out.push(0);
    }
}

impl<'a> Decode<'a> for TunableName<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let name = reader.blob()?;
        Ok(Self(
            name.split(|byte| *byte == 0).next().unwrap_or_default(),
        ))
    }
}

/// SET_TUNABLE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetTunable<'a> {
    /// Value.
    pub value: u32,
    /// Name.
    pub name: TunableName<'a>,
}

impl Encode for SetTunable<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.value.encode(out);
        self.name.encode(out);
    }
}

impl<'a> Decode<'a> for SetTunable<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            value: reader.value()?,
            name: reader.value()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::codec::{decode_all, encode_to_vec};

    /// Sizes of the C structures (4.4, 4.5).
    #[test]
    fn sizes_are_those_of_the_structures() {
        let start = TraverseStart {
            db_id: 1,
            reqid: 2,
            srvid: 3,
        };
        let all = TraverseAll {
            db_id: 1,
            reqid: 2,
            pnn: 3,
            client_reqid: 4,
            srvid: 5,
        };
        let sizes = [
            (encode_to_vec(&start).len(), 16),
            (
                encode_to_vec(&TraverseStartExt {
                    start,
                    with_empty: 1,
                })
                .len(),
                24,
            ),
            (encode_to_vec(&all).len(), 24),
            (
                encode_to_vec(&TraverseAllExt { all, with_empty: 1 }).len(),
                32,
            ),
            (encode_to_vec(&DbVacuum { db_id: 1, full: 1 }).len(), 5),
            (encode_to_vec(&PidSrvid { pid: 1, srvid: 2 }).len(), 12),
            (encode_to_vec(&Uptime::default()).len(), 64),
            (encode_to_vec(&ServerId::default()).len(), 24),
            (
                encode_to_vec(&GLockEntry {
                    kind: 1,
                    server: ServerId::default(),
                })
                .len(),
                32,
            ),
            (
                encode_to_vec(&ElectionMessage {
                    connected: 1,
                    priority: Timeval::default(),
                    pnn: 0,
                    flags: 0,
                })
                .len(),
                32,
            ),
            (encode_to_vec(&SrvidMessage { pnn: 1, srvid: 2 }).len(), 16),
            (
                encode_to_vec(&DisableMessage {
                    pnn: 1,
                    srvid: 2,
                    timeout_s: 3,
                })
                .len(),
                24,
            ),
        ];
        for (is, should) in sizes {
            assert_eq!(is, should);
        }
    }

    #[test]
    fn tunable_names_come_with_and_without_nul() {
        for bytes in [&b"\x04\0\0\0abc\0"[..], b"\x03\0\0\0abc"] {
            assert_eq!(decode_all(bytes), Ok(TunableName(b"abc")));
        }
        assert_eq!(encode_to_vec(&TunableName(b"abc")), b"\x04\0\0\0abc\0");
    }

    #[test]
    fn a_text_ends_at_its_nul() {
        assert_eq!(decode_all(b"a.tdb\0"), Ok(Text(b"a.tdb")));
        assert_eq!(decode_all(b"a\0b\0"), Ok(Text(b"a")));
        assert_eq!(
            decode_all::<Text<'_>>(b"a.tdb"),
            Err(DecodeError::NoTerminator)
        );
        assert_eq!(decode_all::<Text<'_>>(b""), Err(DecodeError::NoTerminator));
    }

    #[test]
    fn times_keep_their_microseconds() {
        let time = UNIX_EPOCH + Duration::from_micros(1_234_567_000_042);
        let expected = Timeval {
            seconds: 1_234_567,
            micros: 42,
        };
        assert_eq!(Timeval::from(time), expected);
        assert_eq!(
            Timeval::from(12.5),
            Timeval {
                seconds: 12,
                micros: 500_000
            }
        );
    }
}
