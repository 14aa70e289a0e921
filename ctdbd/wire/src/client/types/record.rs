//! Records: header, traverse element, buffer of records, key for deletion, pushed record (4.4).

use crate::client::codec::{
    Decode, DecodeError, Encode, Reader, decode_all, encode_to_vec, put_blob, wire_struct,
};

/// Bytes of the header in front of every record's value.
pub const LTDB_HEADER: usize = 24;

bitflags::bitflags! {
    /// Flags of a record. Unknown ones are kept.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct RecordFlags: u32 {
        /// Samba 4.25: has a copy in the companion database.
        const PERSISTENT = 0x0000_0001;
        /// Samba 4.25: being stored; a server id stands before the data.
        const PERSISTENT_IN_PROGRESS = 0x0000_0002;
        /// Has been migrated with data.
        const MIGRATED_WITH_DATA = 0x0001_0000;
        /// In memory only.
        const VACUUM_MIGRATED = 0x0002_0000;
        /// In memory only.
        const AUTOMATIC = 0x0004_0000;
        /// On the data master: read-only copies exist.
        const RO_HAVE_DELEGATIONS = 0x0100_0000;
        /// Elsewhere: this is a read-only copy.
        const RO_HAVE_READONLY = 0x0200_0000;
        /// Copies are being revoked.
        const RO_REVOKING_READONLY = 0x0400_0000;
        /// They are revoked.
        const RO_REVOKE_COMPLETE = 0x0800_0000;
        const _ = !0;
    }
}

impl Encode for RecordFlags {
    fn encode(&self, out: &mut Vec<u8>) {
        self.bits().encode(out);
    }
}

impl Decode<'_> for RecordFlags {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        reader.value().map(Self::from_bits_retain)
    }
}

wire_struct! {
    /// Header of a record.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct LtdbHeader {
        /// Sequence number.
        pub rsn: u64,
        /// Node that owns the record.
        pub dmaster: u32,
        /// 0.
        pub reserved: u32,
        /// Flags.
        pub flags: RecordFlags => pad 4,
    }
}

/// One record in a traverse or a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecData<'a> {
    /// Of the traverse; 0 where unused.
    pub reqid: u32,
    /// Key; empty with empty data ends a traverse.
    pub key: &'a [u8],
    /// Header and value.
    pub data: &'a [u8],
}

impl<'a> RecData<'a> {
    /// Bytes of the shortest.
    pub const LEAST: usize = 16;

    /// Header and value, if there is a whole header.
    pub fn record(&self) -> Option<(LtdbHeader, &'a [u8])> {
        let (header, value) = self.data.split_at_checked(LTDB_HEADER)?;
        Some((decode_all(header).ok()?, value))
    }
}

impl Encode for RecData<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        let length = Self::LEAST + self.key.len() + self.data.len();
        (length as u32).encode(out);
        self.reqid.encode(out);
        (self.key.len() as u32).encode(out);
        (self.data.len() as u32).encode(out);
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.data);
    }
}

impl<'a> Decode<'a> for RecData<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let length: u32 = reader.value()?;
        let reqid = reader.value()?;
        let (key_length, data_length): (u32, u32) = (reader.value()?, reader.value()?);
        let needed = Self::LEAST as u64 + u64::from(key_length) + u64::from(data_length);
        if needed != u64::from(length) {
            return Err(DecodeError::Length);
        }
        Ok(Self {
            reqid,
            key: reader.take(key_length as usize)?,
            data: reader.take(data_length as usize)?,
        })
    }
}

/// A buffer of records, checked when it was decoded and read in place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecBuffer<'a> {
    /// Database.
    pub db_id: u32,
    count: u32,
    bytes: &'a [u8],
}

impl<'a> RecBuffer<'a> {
    /// How many records it has.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// The records.
    pub fn records(&self) -> Records<'a> {
        Records {
            left: self.count,
            reader: Reader::new(self.bytes),
        }
    }
}

impl Encode for RecBuffer<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.db_id.encode(out);
        self.count.encode(out);
        out.extend_from_slice(self.bytes);
    }
}

impl<'a> Decode<'a> for RecBuffer<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let (db_id, count) = (reader.value()?, reader.value()?);
        let all = reader.rest();
        for _ in 0..count {
            reader.value::<RecData<'_>>()?;
        }
        let bytes = &all[..all.len() - reader.rest().len()];
        Ok(Self {
            db_id,
            count,
            bytes,
        })
    }
}

/// Iterates a [`RecBuffer`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    left: u32,
    reader: Reader<'a>,
}

impl<'a> Iterator for Records<'a> {
    type Item = RecData<'a>;

    fn next(&mut self) -> Option<RecData<'a>> {
        self.left = self.left.checked_sub(1)?;
        self.reader.value().ok()
    }
}

/// Makes a [`RecBuffer`].
#[derive(Clone, Debug)]
pub struct RecBufferBuilder {
    count: u32,
    bytes: Vec<u8>,
}

impl RecBufferBuilder {
    /// An empty buffer.
    pub fn new(db_id: u32) -> Self {
        Self {
            count: 0,
            bytes: encode_to_vec(&[db_id, 0]),
        }
    }

    /// Appends a record.
    pub fn push(&mut self, record: &RecData<'_>) {
        record.encode(&mut self.bytes);
        self.count += 1;
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether it has no record.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The encoded buffer.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes[4..8].copy_from_slice(&self.count.to_ne_bytes());
        self.bytes
    }
}

/// SCHEDULE_FOR_DELETION.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyData<'a> {
    /// Database.
    pub db_id: u32,
    /// Header of the record as it was deleted.
    pub header: LtdbHeader,
    /// Key.
    pub key: &'a [u8],
}

impl Encode for KeyData<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        [self.db_id, 0].encode(out);
        self.header.encode(out);
        put_blob(self.key, out);
    }
}

impl<'a> Decode<'a> for KeyData<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [db_id, _] = reader.value::<[u32; 2]>()?;
        Ok(Self {
            db_id,
            header: reader.value()?,
            key: reader.blob()?,
        })
    }
}

/// PUSH_RECORD.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PushRecord<'a> {
    /// Ignored by the receiver if it is not the current one.
    pub generation: u32,
    /// Database.
    pub db_id: u32,
    /// Header.
    pub header: LtdbHeader,
    /// Key.
    pub key: &'a [u8],
    /// Value.
    pub value: &'a [u8],
}

impl Encode for PushRecord<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        [self.generation, self.db_id].encode(out);
        self.header.encode(out);
        put_blob(self.key, out);
        put_blob(self.value, out);
    }
}

impl<'a> Decode<'a> for PushRecord<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let [generation, db_id] = reader.value()?;
        Ok(Self {
            generation,
            db_id,
            header: reader.value()?,
            key: reader.blob()?,
            value: reader.blob()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_checked_whole_before_it_is_read() {
        let mut builder = RecBufferBuilder::new(7);
        assert!(builder.is_empty());
        let records = [("a", "xyz"), ("", ""), ("key", "")].map(|(key, data)| RecData {
            reqid: 0,
            key: key.as_bytes(),
            data: data.as_bytes(),
        });
        for record in &records {
            builder.push(record);
        }
        assert_eq!(builder.len(), 8 + 3 * RecData::LEAST + 7);
        let bytes = builder.finish();
        let buffer: RecBuffer<'_> = decode_all(&bytes).unwrap();
        assert_eq!((buffer.db_id, buffer.count()), (7, 3));
        assert!(buffer.records().eq(records));
        assert_eq!(encode_to_vec(&buffer), bytes);

        let mut more = bytes.clone();
        more[4] += 1;
        assert!(matches!(
            decode_all::<RecBuffer<'_>>(&more),
            Err(DecodeError::Short { .. })
        ));
        let mut crooked = bytes;
        crooked[8] += 1;
        assert_eq!(
            decode_all::<RecBuffer<'_>>(&crooked),
            Err(DecodeError::Length)
        );
    }

    #[test]
    fn a_record_has_a_whole_header_or_none() {
        let header = LtdbHeader {
            rsn: 3,
            flags: RecordFlags::from_bits_retain(0x8001_0001),
            ..LtdbHeader::default()
        };
        let mut data = encode_to_vec(&header);
        assert_eq!(data.len(), LTDB_HEADER);
        data.extend_from_slice(b"value");
        let record = |data| {
            RecData {
                reqid: 0,
                key: b"k",
                data,
            }
            .record()
        };
        assert_eq!(record(&data), Some((header, &b"value"[..])));
        assert_eq!(record(&data[..23]), None);
    }

    #[test]
    fn a_pushed_record_stands_unaligned() {
        let push = PushRecord {
            generation: 5,
            db_id: 6,
            header: LtdbHeader::default(),
            key: b"key",
            value: b"v",
        };
        let bytes = encode_to_vec(&push);
        assert_eq!(bytes.len(), 32 + 4 + 3 + 4 + 1);
        assert_eq!(decode_all::<PushRecord<'_>>(&bytes), Ok(push));
    }
}
