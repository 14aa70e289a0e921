//! What CTDB puts into its databases: the header of every record and buffers of records
//! (spec/database.md C.1, C.8). Pure codecs, native byte order.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Length of [`LtdbHeader`] in front of the data of every record.
pub const LTDB_HEADER_LEN: usize = 24;

/// Length of a marshalled record's fixed part.
const RECORD_FIXED: usize = 16;
/// Length of a buffer's fixed part.
const BUFFER_FIXED: usize = 8;

/// Record sequence number: counts the changes and moves of one record.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Rsn(pub u64);

/// Database id: the Jenkins hash of the name with its NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DbId(pub u32);

impl DbId {
    /// The id of the database called `name`.
    pub fn of(name: &str) -> Self {
        let mut bytes = Vec::with_capacity(name.len() + 1);
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(0);
        Self(crate::hash::jenkins(&bytes))
    }
}

impl fmt::Display for DbId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

bitflags::bitflags! {
    /// Flags of a record. Bits without a name travel with the record.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    #[serde(transparent)]
    pub struct RecordFlags: u32 {
        /// Backed by a companion persistent database (set by smbd).
        const PERSISTENT = 0x0000_0001;
        /// A persistent store is running (set by smbd).
        const PERSISTENT_IN_PROGRESS = 0x0000_0002;
        /// Left a node while it held data: stale copies with data may exist.
        const MIGRATED_WITH_DATA = 0x0001_0000;
        /// Came by a vacuum migration. In memory only.
        const VACUUM_MIGRATED = 0x0002_0000;
        /// Created by a lookup, not by a client.
        const AUTOMATIC = 0x0004_0000;
        /// The data master has handed out read-only copies.
        const RO_HAVE_DELEGATIONS = 0x0100_0000;
        /// This copy is a read-only one.
        const RO_HAVE_READONLY = 0x0200_0000;
        /// The data master is revoking the copies.
        const RO_REVOKING_READONLY = 0x0400_0000;
        /// All copies are revoked.
        const RO_REVOKE_COMPLETE = 0x0800_0000;
        /// All bits of read-only delegation.
        const RO_FLAGS = 0x0F00_0000;
        const _ = !0;
    }
}

/// The header in front of the data of every record (C.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LtdbHeader {
    /// Sequence number of this copy.
    pub rsn: Rsn,
    /// The node that owns the record, as far as this copy knows. As stored: it need not be the
    /// number of a node.
    pub dmaster: u32,
    /// Once `laccessor`; kept as it is.
    pub reserved: u32,
    /// Flags.
    pub flags: RecordFlags,
}

impl LtdbHeader {
    /// Header and user data of a stored value. `None` if it is shorter than a header: readers treat
    /// such a record as absent.
    pub fn split(value: &[u8]) -> Option<(Self, &[u8])> {
        let (bytes, data) = value.split_first_chunk::<LTDB_HEADER_LEN>()?;
        let (rsn, rest) = bytes.split_first_chunk::<8>()?;
        let header = Self {
            rsn: Rsn(u64::from_ne_bytes(*rsn)),
            dmaster: word(rest, 0)?,
            reserved: word(rest, 4)?,
            flags: RecordFlags::from_bits_retain(word(rest, 8)?),
        };
        Some((header, data))
    }

    /// The header's bytes.
    pub fn encode(&self) -> [u8; LTDB_HEADER_LEN] {
        let mut bytes = [0; LTDB_HEADER_LEN];
        bytes[..8].copy_from_slice(&self.rsn.0.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.dmaster.to_ne_bytes());
        bytes[12..16].copy_from_slice(&self.reserved.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.flags.bits().to_ne_bytes());
        bytes
    }

    /// The value to store: header and `data`.
    pub fn join(&self, data: &[u8]) -> Vec<u8> {
        let mut value = Vec::with_capacity(LTDB_HEADER_LEN + data.len());
        value.extend_from_slice(&self.encode());
        value.extend_from_slice(data);
        value
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Why a buffer of records is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BufferFault {
    /// It ends inside a header or a record.
    #[error("the buffer ends inside record {0}")]
    Short(u32),
    /// A record's length is not that of its parts.
    #[error("record {0} has a length that contradicts its key and data")]
    Length(u32),
    /// Bytes follow the last record.
    #[error("{0} bytes follow the last record")]
    Trailing(usize),
}

/// A record of a buffer. Whether `data` begins with an [`LtdbHeader`] depends on the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarshalledRecord<'a> {
    /// Request id, of which most messages make no use.
    pub reqid: u32,
    /// Key.
    pub key: &'a [u8],
    /// Data.
    pub data: &'a [u8],
}

impl<'a> MarshalledRecord<'a> {
    /// Takes the first record off `bytes`. `index` is for the fault.
    pub fn take(bytes: &'a [u8], index: u32) -> Result<(Self, &'a [u8]), BufferFault> {
        let short = BufferFault::Short(index);
        let field = |at| word(bytes, at).ok_or(short);
        let (length, reqid) = (field(0)?, field(4)?);
        let (key_len, data_len) = (field(8)?, field(12)?);
        let parts = RECORD_FIXED as u64 + u64::from(key_len) + u64::from(data_len);
        if u64::from(length) != parts {
            return Err(BufferFault::Length(index));
        }
        let (record, rest) = bytes.split_at_checked(length as usize).ok_or(short)?;
        let (key, data) = record[RECORD_FIXED..].split_at(key_len as usize);
        Ok((Self { reqid, key, data }, rest))
    }
}

/// A buffer of records that was checked as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordBuffer<'a> {
    /// The database.
    pub db_id: DbId,
    /// Number of records.
    pub count: u32,
    bytes: &'a [u8],
}

impl<'a> RecordBuffer<'a> {
    /// Checks `bytes`. No allocation; time in proportion to the records that are there, whatever
    /// the count says.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, BufferFault> {
        let field = |at| word(bytes, at).ok_or(BufferFault::Short(0));
        let (db_id, count) = (DbId(field(0)?), field(4)?);
        let records = &bytes[BUFFER_FIXED..];
        let mut rest = records;
        for index in 0..count {
            (_, rest) = MarshalledRecord::take(rest, index)?;
        }
        if !rest.is_empty() {
            return Err(BufferFault::Trailing(rest.len()));
        }
        Ok(Self {
            db_id,
            count,
            bytes: records,
        })
    }

    /// The records, in order.
    pub fn iter(&self) -> impl Iterator<Item = MarshalledRecord<'a>> + use<'a> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            // Checked by `decode`: fails only at the end.
            let (record, tail) = MarshalledRecord::take(rest, 0).ok()?;
            rest = tail;
            Some(record)
        })
    }
}

/// A buffer of records in the making.
#[derive(Clone, Debug)]
pub struct RecordBufferWriter {
    bytes: Vec<u8>,
    count: u32,
    limit: usize,
}

impl RecordBufferWriter {
    /// A buffer for `db_id` of at most `limit` bytes.
    pub fn new(db_id: DbId, limit: usize) -> Self {
        let mut bytes = db_id.0.to_ne_bytes().to_vec();
        bytes.extend_from_slice(&[0; 4]);
        Self {
            bytes,
            count: 0,
            limit,
        }
    }

    /// Adds a record; `false`, and nothing done, if the buffer would become longer than its limit.
    #[must_use]
    pub fn push(&mut self, record: &MarshalledRecord<'_>) -> bool {
        let length = RECORD_FIXED + record.key.len() + record.data.len();
        let Ok(total) = u32::try_from(length) else {
            return false;
        };
        if self.bytes.len().saturating_add(length) > self.limit {
            return false;
        }
        let lengths = [
            total,
            record.reqid,
            record.key.len() as u32,
            record.data.len() as u32,
        ];
        for field in lengths {
            self.bytes.extend_from_slice(&field.to_ne_bytes());
        }
        self.bytes.extend_from_slice(record.key);
        self.bytes.extend_from_slice(record.data);
        self.count += 1;
        true
    }

    /// Number of records so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The finished buffer.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes[4..BUFFER_FIXED].copy_from_slice(&self.count.to_ne_bytes());
        self.bytes
    }
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_header_of_c_1() {
        let header = LtdbHeader {
            rsn: Rsn(0x0102_0304_0506_0708),
            dmaster: 2,
            reserved: 0,
            flags: RecordFlags::MIGRATED_WITH_DATA | RecordFlags::from_bits_retain(0x4000_0000),
        };
        let value = header.join(b"data");
        assert_eq!(
            value,
            [
                8, 7, 6, 5, 4, 3, 2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0x40, 0, 0, 0, 0, b'd',
                b'a', b't', b'a'
            ]
        );
        assert_eq!(LtdbHeader::split(&value), Some((header, &b"data"[..])));
        assert_eq!(LtdbHeader::split(&value[..24]), Some((header, &b""[..])));
        assert_eq!(LtdbHeader::split(&value[..23]), None);
    }

    #[test]
    fn a_buffer_of_c_8() {
        let mut writer = RecordBufferWriter::new(DbId::of("locking.tdb"), 100);
        let record = MarshalledRecord {
            reqid: 7,
            key: b"key",
            data: b"value",
        };
        assert!(writer.push(&record));
        assert!(!writer.push(&MarshalledRecord {
            reqid: 0,
            key: &[0; 90],
            data: b""
        }));
        assert_eq!(writer.count(), 1);
        let bytes = writer.finish();
        let mut want = vec![0x4d, 0xd8, 0x19, 0x7a, 1, 0, 0, 0];
        want.extend([24, 0, 0, 0, 7, 0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0]);
        want.extend(b"keyvalue");
        assert_eq!(bytes, want);
        let buffer = RecordBuffer::decode(&bytes).unwrap();
        assert_eq!(buffer.db_id, DbId(0x7a19_d84d));
        assert_eq!(buffer.iter().collect::<Vec<_>>(), [record]);
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            RecordBuffer::decode(&bytes).map(|b| b.count)
        };
        assert_eq!(with(4, 0), Err(BufferFault::Trailing(24)));
        assert_eq!(with(4, 2), Err(BufferFault::Short(1)));
        assert_eq!(with(8, 25), Err(BufferFault::Length(0)));
        assert_eq!(
            RecordBuffer::decode(&bytes[..31]),
            Err(BufferFault::Short(0))
        );
        assert_eq!(
            RecordBuffer::decode(&bytes[..7]),
            Err(BufferFault::Short(0))
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = LtdbHeader::split(&bytes);
            if let Ok(buffer) = RecordBuffer::decode(&bytes) {
                prop_assert_eq!(buffer.iter().count(), buffer.count as usize);
            }
        }

        #[test]
        fn buffers_survive_the_round_trip(
            records in proptest::collection::vec((any::<u32>(), any::<Vec<u8>>(), any::<Vec<u8>>()), 0..10),
        ) {
            let mut writer = RecordBufferWriter::new(DbId(1), usize::MAX);
            for (reqid, key, data) in &records {
                let record = MarshalledRecord { reqid: *reqid, key, data };
                prop_assert!(writer.push(&record));
            }
            let bytes = writer.finish();
            let found: Vec<_> = RecordBuffer::decode(&bytes).unwrap().iter()
                .map(|r| (r.reqid, r.key.to_vec(), r.data.to_vec())).collect();
            prop_assert_eq!(found, records);
        }
    }
}
