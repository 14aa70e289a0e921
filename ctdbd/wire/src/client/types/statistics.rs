//! Statistics of the daemon and of a database (4.6, 4.7).

use super::Timeval;
use crate::client::codec::{Decode, DecodeError, Encode, Reader, wire_struct};

/// Bytes of [`Statistics`].
pub const STATISTICS: usize = 488;
/// Bytes of [`DbStatistics`] without its keys.
pub const DB_STATISTICS: usize = 464;
/// Hot keys of a database, always as many.
pub const HOT_KEYS: usize = 10;

wire_struct! {
    /// A latency counter, in seconds.
    #[derive(Clone, Copy, PartialEq, Debug, Default)]
    pub struct Latency {
        /// How many.
        pub count: i32 => pad 4,
        /// Shortest.
        pub min: f64,
        /// Longest.
        pub max: f64,
        /// Together.
        pub total: f64,
    }
}

impl Latency {
    /// Counts one.
    pub fn add(&mut self, seconds: f64) {
        self.min = if self.count == 0 {
            seconds
        } else {
            self.min.min(seconds)
        };
        self.max = self.max.max(seconds);
        self.total += seconds;
        self.count = self.count.wrapping_add(1);
    }
}

wire_struct! {
    /// Packets from and to other nodes by type.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct NodeCounters {
        /// REQ_CALL.
        pub req_call: u32,
        /// REPLY_CALL.
        pub reply_call: u32,
        /// REQ_DMASTER.
        pub req_dmaster: u32,
        /// REPLY_DMASTER.
        pub reply_dmaster: u32,
        /// REPLY_ERROR.
        pub reply_error: u32,
        /// REQ_MESSAGE.
        pub req_message: u32,
        /// REQ_CONTROL.
        pub req_control: u32,
        /// REPLY_CONTROL.
        pub reply_control: u32,
        /// REQ_TUNNEL.
        pub req_tunnel: u32,
    }
}

wire_struct! {
    /// Packets from clients by type.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct CallCounters {
        /// REQ_CALL.
        pub req_call: u32,
        /// REQ_MESSAGE.
        pub req_message: u32,
        /// REQ_CONTROL.
        pub req_control: u32,
        /// REQ_TUNNEL.
        pub req_tunnel: u32,
    }
}

wire_struct! {
    /// What took too long.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct Timeouts {
        /// Calls.
        pub call: u32,
        /// Controls.
        pub control: u32,
        /// Traverses.
        pub traverse: u32 => pad 4,
    }
}

wire_struct! {
    /// Locks of records and databases.
    #[derive(Clone, Copy, PartialEq, Debug, Default)]
    pub struct LockStatistics {
        /// All.
        pub calls: u32,
        /// Held now.
        pub current: u32,
        /// Waiting now.
        pub pending: u32,
        /// Not got.
        pub failed: u32,
        /// Time until they were held.
        pub latency: Latency,
        /// How many took how long.
        pub buckets: [u32; 16],
    }
}

wire_struct! {
    /// The daemon's counters.
    #[derive(Clone, Copy, PartialEq, Debug, Default)]
    pub struct Statistics {
        /// Connected clients.
        pub clients: u32,
        /// 0 or 1.
        pub frozen: u32,
        /// 0 or 1.
        pub recovering: u32,
        /// Packets to clients.
        pub client_packets_sent: u32,
        /// Packets from clients.
        pub client_packets_recv: u32,
        /// Packets to nodes.
        pub node_packets_sent: u32,
        /// Packets from nodes.
        pub node_packets_recv: u32,
        /// Keepalives sent.
        pub keepalive_packets_sent: u32,
        /// Keepalives received.
        pub keepalive_packets_recv: u32,
        /// By type, from nodes.
        pub node: NodeCounters,
        /// By type, from clients.
        pub client: CallCounters,
        /// Too long.
        pub timeouts: Timeouts,
        /// Looks at the cluster lock by the daemon.
        pub reclock_ctdbd: Latency,
        /// And by the recovery daemon.
        pub reclock_recd: Latency,
        /// Locks.
        pub locks: LockStatistics,
        /// Calls.
        pub total_calls: u32,
        /// Under way.
        pub pending_calls: u32,
        /// Writes by children.
        pub childwrite_calls: u32,
        /// Under way.
        pub pending_childwrite_calls: u32,
        /// Bytes.
        pub memory_used: u32,
        /// Internal.
        pub last_counter: u32,
        /// Most hops of a call.
        pub max_hop_count: u32,
        /// Calls by significant bits of their hops.
        pub hop_count_bucket: [u32; 16] => pad 4,
        /// Time of calls.
        pub call_latency: Latency,
        /// Time of writes by children.
        pub childwrite_latency: Latency,
        /// Recoveries.
        pub recoveries: u32 => pad 4,
        /// Since when.
        pub start_time: Timeval,
        /// Until when.
        pub current_time: Timeval,
        /// Read-only copies given.
        pub ro_delegations: u32,
        /// And taken back.
        pub ro_revokes: u32,
    }
}

/// STAT_HISTORY: signed count, hole, newest first.
impl Encode for Vec<Statistics> {
    fn encode(&self, out: &mut Vec<u8>) {
        [self.len() as u32, 0].encode(out);
        for statistics in self {
            statistics.encode(out);
        }
    }
}

impl Decode<'_> for Vec<Statistics> {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let [count, _] = reader.value()?;
        reader.list(count, STATISTICS)
    }
}

/// A key that was asked for often.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HotKey {
    /// How often.
    pub count: u32,
    /// The key.
    pub key: Vec<u8>,
}

/// A database's counters.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct DbStatistics {
    /// Locks.
    pub locks: LockStatistics,
    /// Vacuum runs.
    pub vacuum: Latency,
    /// Read-only copies given.
    pub ro_delegations: u32,
    /// And taken back.
    pub ro_revokes: u32,
    /// Calls by significant bits of their hops.
    pub hop_count_bucket: [u32; 16],
    /// Unused ones are empty.
    pub hot_keys: [HotKey; HOT_KEYS],
}

impl Encode for DbStatistics {
    fn encode(&self, out: &mut Vec<u8>) {
        self.locks.encode(out);
        self.vacuum.encode(out);
        self.ro_delegations.encode(out);
        self.ro_revokes.encode(out);
        self.hop_count_bucket.encode(out);
        [HOT_KEYS as u32, 0].encode(out);
        for hot in &self.hot_keys {
            [hot.count, 0].encode(out);
            // Where C has a pointer.
            0_u64.encode(out);
            (hot.key.len() as u64).encode(out);
        }
        for hot in &self.hot_keys {
            out.extend_from_slice(&hot.key);
        }
    }
}

impl Decode<'_> for DbStatistics {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut statistics = Self {
            locks: reader.value()?,
            vacuum: reader.value()?,
            ro_delegations: reader.value()?,
            ro_revokes: reader.value()?,
            hop_count_bucket: reader.value()?,
            hot_keys: Default::default(),
        };
        let [count, _] = reader.value::<[u32; 2]>()?;
        if count as usize > HOT_KEYS {
            return Err(DecodeError::Unknown(count));
        }
        let mut lengths = [0_u64; HOT_KEYS];
        for (hot, length) in statistics.hot_keys.iter_mut().zip(&mut lengths) {
            let [number, _] = reader.value::<[u32; 2]>()?;
            reader.take(8)?;
            hot.count = number;
            *length = reader.value()?;
        }
        for (hot, length) in statistics.hot_keys.iter_mut().zip(lengths) {
            let length = usize::try_from(length).map_err(|_| DecodeError::Length)?;
            hot.key = reader.take(length)?.to_vec();
        }
        Ok(statistics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::codec::{decode_all, encode_to_vec};

    #[test]
    fn offsets_are_those_of_the_structure() {
        let marks = Statistics {
            reclock_recd: Latency {
                total: f64::from_bits(1),
                ..Latency::default()
            },
            total_calls: 2,
            hop_count_bucket: [3; 16],
            recoveries: 4,
            ro_revokes: 5,
            ..Statistics::default()
        };
        let bytes = encode_to_vec(&marks);
        assert_eq!(bytes.len(), STATISTICS);
        let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(word(136 + 24), 1);
        assert_eq!(word(280), 2);
        assert_eq!((word(308), word(368), word(372)), (3, 3, 0));
        assert_eq!(word(440), 4);
        assert_eq!(word(484), 5);
        assert_eq!(decode_all::<Statistics>(&bytes), Ok(marks));
        let history = vec![marks; 100];
        let bytes = encode_to_vec(&history);
        assert_eq!(bytes.len(), 48_808);
        assert_eq!(decode_all::<Vec<Statistics>>(&bytes), Ok(history));
    }

    #[test]
    fn hot_keys_stand_behind_the_fixed_part() {
        let mut statistics = DbStatistics::default();
        statistics.hot_keys[1] = HotKey {
            count: 9,
            key: b"key".to_vec(),
        };
        let bytes = encode_to_vec(&statistics);
        assert_eq!(bytes.len(), DB_STATISTICS + 3);
        assert_eq!(bytes[216], 10);
        assert_eq!(decode_all::<DbStatistics>(&bytes), Ok(statistics));
        let mut endless = bytes;
        endless[224 + 16..224 + 24].fill(0xFF);
        assert!(decode_all::<DbStatistics>(&endless).is_err());
    }

    #[test]
    fn a_latency_keeps_its_extremes() {
        let mut latency = Latency::default();
        for seconds in [2.0, 0.5, 1.0] {
            latency.add(seconds);
        }
        assert_eq!(
            (latency.count, latency.min, latency.max, latency.total),
            (3, 0.5, 2.0, 3.5)
        );
    }
}
