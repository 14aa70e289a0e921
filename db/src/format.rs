//! The bytes of a TDB file: header, records, tailers, offsets (spec/database.md A.1 - A.3, B.1).
//!
//! Pure codecs. Decoding accepts any bytes and fails with a typed fault; nothing here reads a
//! file, and nothing panics.

use crate::hash::HashKind;

/// First bytes of every file; the rest of the 32 bytes is NUL.
pub const MAGIC_STRING: &[u8; 9] = b"TDB file\n";
/// The only format version.
pub const VERSION: u32 = 0x2601_196D;
/// Length of the header.
pub const HEADER_LEN: u32 = 168;
/// Length of a record's header.
pub const RECORD_LEN: u32 = 24;
/// Length of the tailer at the end of every used, dead and free record.
pub const TAILER_LEN: u32 = 4;
/// Magic of a record in use.
pub const USED_MAGIC: u32 = 0x2601_1999;
/// Magic of a deleted record that is still linked in its chain.
pub const DEAD_MAGIC: u32 = 0xFEE1_DEAD;
/// Magic of a record in the freelist.
pub const FREE_MAGIC: u32 = !USED_MAGIC;
/// Magic of a recovery record whose content must be put back.
pub const RECOVERY_MAGIC: u32 = 0xF53B_C0E7;
/// What an expansion without `fallocate` leaves in new space.
pub const FILL_WORD: u32 = 0x4242_4242;
/// `rwlocks` of a file created with `INCOMPATIBLE_HASH`.
pub const RWLOCKS_INCOMPATIBLE: u32 = 0x0BAD_1A51;
/// `rwlocks` of a file whose feature flags are valid.
pub const RWLOCKS_FEATURES: u32 = 0x0BAD_1A52;
/// Feature flag: a mutex area precedes the data.
pub const FEATURE_MUTEX: u32 = 1;
/// A record is never split so that less than this is left, its header included.
pub const MIN_SPLIT: u32 = 36;
/// Chains of a file created without a size.
pub const DEFAULT_HASH_SIZE: u32 = 131;

/// Offsets of header words.
pub mod field {
    /// Format version.
    pub const VERSION: usize = 32;
    /// Number of chains.
    pub const HASH_SIZE: usize = 36;
    /// Compatibility word.
    pub const RWLOCKS: usize = 40;
    /// Offset of the recovery record.
    pub const RECOVERY_START: usize = 44;
    /// Change counter.
    pub const SEQUENCE_NUMBER: usize = 48;
    /// First hash check word.
    pub const MAGIC1_HASH: usize = 52;
    /// Second hash check word.
    pub const MAGIC2_HASH: usize = 56;
    /// Feature bits.
    pub const FEATURES: usize = 60;
    /// Size of the mutex area.
    pub const MUTEX_SIZE: usize = 64;
}

/// Offset of the freelist's head.
pub const FREELIST_TOP: u32 = 168;

/// Order of the bytes of every 32-bit word of a file, that of the machine that created it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByteOrder {
    /// Least significant byte first.
    Little,
    /// Most significant byte first.
    Big,
}

impl ByteOrder {
    /// This machine's order.
    pub const NATIVE: Self = if cfg!(target_endian = "big") {
        Self::Big
    } else {
        Self::Little
    };

    /// The word that `bytes` hold.
    pub fn word(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    /// The bytes that hold `word`.
    pub fn bytes(self, word: u32) -> [u8; 4] {
        match self {
            Self::Little => word.to_le_bytes(),
            Self::Big => word.to_be_bytes(),
        }
    }

    /// The word at `at`, or `None` if `bytes` end before.
    fn word_at(self, bytes: &[u8], at: usize) -> Option<u32> {
        let end = at.checked_add(4)?;
        Some(self.word(bytes.get(at..end)?.try_into().ok()?))
    }
}

/// Why a header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderFault {
    /// Less than a header's length.
    #[error("it is shorter than a header (168 bytes)")]
    Short,
    /// The magic string does not match.
    #[error("it does not begin with the TDB magic")]
    Magic,
    /// A version of neither byte order.
    #[error("version {0:#010x} is not known (0x2601196d is)")]
    Version(u32),
    /// No chains, or more than the address space holds.
    #[error("a hash size of {0} is impossible")]
    HashSize(u32),
    /// A `rwlocks` word that means a library that we do not know.
    #[error("compatibility word {0:#010x} is not known")]
    Rwlocks(u32),
    /// A feature that we do not know.
    #[error("feature flags {0:#x} are not known")]
    Features(u32),
    /// A mutex area whose size cannot be one.
    #[error("a mutex area of {0} bytes is impossible")]
    MutexSize(u32),
    /// Neither of the two hash functions.
    #[error("check words {0:#010x} and {1:#010x} belong to no known hash function")]
    Hash(u32, u32),
}

/// The header of a file (A.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Byte order of the whole file.
    pub order: ByteOrder,
    /// Number of hash chains, at least 1.
    pub hash_size: u32,
    /// 0, [`RWLOCKS_INCOMPATIBLE`] or [`RWLOCKS_FEATURES`].
    pub rwlocks: u32,
    /// Logical offset of the recovery record; 0: none was ever allocated.
    pub recovery_start: u32,
    /// "Something changed" counter.
    pub sequence_number: u32,
    /// First hash check word.
    pub magic1_hash: u32,
    /// Second hash check word.
    pub magic2_hash: u32,
    /// Feature bits, 0 unless `rwlocks` says that they are valid.
    pub features: u32,
    /// Bytes before the second header, 0 without a mutex area.
    pub mutex_size: u32,
}

impl Header {
    /// The header of a new file.
    pub fn new(order: ByteOrder, hash: HashKind, hash_size: u32) -> Self {
        let (magic1_hash, magic2_hash) = hash.magic_words(order);
        Self {
            order,
            hash_size,
            rwlocks: match hash {
                HashKind::Old => 0,
                HashKind::Jenkins => RWLOCKS_INCOMPATIBLE,
            },
            recovery_start: 0,
            sequence_number: 0,
            magic1_hash,
            magic2_hash,
            features: 0,
            mutex_size: 0,
        }
    }

    /// Reads the first 168 of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderFault> {
        let bytes = bytes.get(..HEADER_LEN as usize).ok_or(HeaderFault::Short)?;
        // "String equal within 32 bytes": the string and its NUL; what follows does not matter.
        if !bytes.starts_with(MAGIC_STRING) || bytes[MAGIC_STRING.len()] != 0 {
            return Err(HeaderFault::Magic);
        }
        let little = ByteOrder::Little
            .word_at(bytes, field::VERSION)
            .unwrap_or(0);
        let order = if little == VERSION {
            ByteOrder::Little
        } else if little.swap_bytes() == VERSION {
            ByteOrder::Big
        } else {
            return Err(HeaderFault::Version(little));
        };
        let word = |at| order.word_at(bytes, at).ok_or(HeaderFault::Short);
        let rwlocks = word(field::RWLOCKS)?;
        let with_features = match rwlocks {
            0 | RWLOCKS_INCOMPATIBLE => false,
            RWLOCKS_FEATURES => true,
            other => return Err(HeaderFault::Rwlocks(other)),
        };
        let features = if with_features {
            word(field::FEATURES)?
        } else {
            0
        };
        if features & !FEATURE_MUTEX != 0 {
            return Err(HeaderFault::Features(features));
        }
        let mutex_size = if features & FEATURE_MUTEX == 0 {
            0
        } else {
            word(field::MUTEX_SIZE)?
        };
        if features & FEATURE_MUTEX != 0
            && (mutex_size < HEADER_LEN || !mutex_size.is_multiple_of(8))
        {
            return Err(HeaderFault::MutexSize(mutex_size));
        }
        let hash_size = word(field::HASH_SIZE)?;
        if Geometry::new(hash_size).is_none() {
            return Err(HeaderFault::HashSize(hash_size));
        }
        let header = Self {
            order,
            hash_size,
            rwlocks,
            recovery_start: word(field::RECOVERY_START)?,
            sequence_number: word(field::SEQUENCE_NUMBER)?,
            magic1_hash: word(field::MAGIC1_HASH)?,
            magic2_hash: word(field::MAGIC2_HASH)?,
            features,
            mutex_size,
        };
        header.hash()?;
        Ok(header)
    }

    /// The header's 168 bytes.
    pub fn encode(&self) -> [u8; HEADER_LEN as usize] {
        let mut bytes = [0; HEADER_LEN as usize];
        bytes[..MAGIC_STRING.len()].copy_from_slice(MAGIC_STRING);
        for (at, word) in [
            (field::VERSION, VERSION),
            (field::HASH_SIZE, self.hash_size),
            (field::RWLOCKS, self.rwlocks),
            (field::RECOVERY_START, self.recovery_start),
            (field::SEQUENCE_NUMBER, self.sequence_number),
            (field::MAGIC1_HASH, self.magic1_hash),
            (field::MAGIC2_HASH, self.magic2_hash),
            (field::FEATURES, self.features),
            (field::MUTEX_SIZE, self.mutex_size),
        ] {
            bytes[at..at + 4].copy_from_slice(&self.order.bytes(word));
        }
        bytes
    }

    /// The file's hash function, told by its check words (A.2.1).
    pub fn hash(&self) -> Result<HashKind, HeaderFault> {
        let found = (self.magic1_hash, self.magic2_hash);
        if found == (0, 0) || found == HashKind::Old.magic_words(self.order) {
            Ok(HashKind::Old)
        } else if found == HashKind::Jenkins.magic_words(self.order) {
            Ok(HashKind::Jenkins)
        } else {
            Err(HeaderFault::Hash(found.0, found.1))
        }
    }

    /// Whether the file has a mutex area.
    pub fn has_mutexes(&self) -> bool {
        self.features & FEATURE_MUTEX != 0
    }
}

/// What a record is, told by its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// Holds a key and data.
    Used,
    /// Deleted, still linked in its chain.
    Dead,
    /// In the freelist.
    Free,
    /// Holds what a commit that did not finish must put back.
    Recovery,
    /// Never written, or a recovery record that holds nothing: magic 0 or the fill word.
    Blank,
    /// None of these.
    Unknown(u32),
}

impl RecordKind {
    /// The kind that `magic` names.
    pub fn of(magic: u32) -> Self {
        match magic {
            USED_MAGIC => Self::Used,
            DEAD_MAGIC => Self::Dead,
            FREE_MAGIC => Self::Free,
            RECOVERY_MAGIC => Self::Recovery,
            0 | FILL_WORD => Self::Blank,
            other => Self::Unknown(other),
        }
    }
}

/// The header of a record (A.3). In a recovery record `key_len` is the end of the file to return
/// to and `data_len` the number of valid bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordHeader {
    /// Next record of the same list, 0 at its end.
    pub next: u32,
    /// Bytes after the header, tailer included.
    pub rec_len: u32,
    /// Length of the key.
    pub key_len: u32,
    /// Length of the data.
    pub data_len: u32,
    /// Hash of the key.
    pub full_hash: u32,
    /// Kind of the record.
    pub magic: u32,
}

impl RecordHeader {
    /// Reads a header.
    pub fn decode(bytes: &[u8; RECORD_LEN as usize], order: ByteOrder) -> Self {
        let word = |i: usize| {
            order.word([
                bytes[4 * i],
                bytes[4 * i + 1],
                bytes[4 * i + 2],
                bytes[4 * i + 3],
            ])
        };
        Self {
            next: word(0),
            rec_len: word(1),
            key_len: word(2),
            data_len: word(3),
            full_hash: word(4),
            magic: word(5),
        }
    }

    /// The header's bytes.
    pub fn encode(&self, order: ByteOrder) -> [u8; RECORD_LEN as usize] {
        let mut bytes = [0; RECORD_LEN as usize];
        let words = [
            self.next,
            self.rec_len,
            self.key_len,
            self.data_len,
            self.full_hash,
            self.magic,
        ];
        for (slot, word) in bytes.chunks_exact_mut(4).zip(words) {
            slot.copy_from_slice(&order.bytes(word));
        }
        bytes
    }

    /// What the record is.
    pub fn kind(&self) -> RecordKind {
        RecordKind::of(self.magic)
    }

    /// The end of a record at `offset`, `None` beyond the address space.
    pub fn end(&self, offset: u32) -> Option<u32> {
        offset.checked_add(RECORD_LEN)?.checked_add(self.rec_len)
    }

    /// The value of the tailer: header and payload together.
    pub fn tailer(&self) -> u32 {
        self.rec_len.wrapping_add(RECORD_LEN)
    }

    /// Whether key and data lie inside the record.
    pub fn payload_fits(&self) -> bool {
        self.key_len
            .checked_add(self.data_len)
            .is_some_and(|sum| sum <= self.rec_len)
    }
}

/// Where the parts of a file with a given number of chains lie (logical offsets).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    hash_size: u32,
}

impl Geometry {
    /// `None` if there are no chains or their heads do not fit the address space.
    pub fn new(hash_size: u32) -> Option<Self> {
        let end = u64::from(hash_size) * 4 + u64::from(FREELIST_TOP) + 4;
        (hash_size != 0 && u32::try_from(end).is_ok()).then_some(Self { hash_size })
    }

    /// Number of chains.
    pub fn hash_size(self) -> u32 {
        self.hash_size
    }

    /// Offset of the head of chain `chain`.
    pub fn head(self, chain: u32) -> u32 {
        FREELIST_TOP + 4 + 4 * chain
    }

    /// Offset of the first record.
    pub fn data_start(self) -> u32 {
        self.head(self.hash_size)
    }

    /// The chain of a key with hash `hash`.
    pub fn chain(self, hash: u32) -> u32 {
        hash % self.hash_size
    }
}

/// Bytes to ask for a record with `payload` bytes of key and data: the new `rec_len` (A.9.1).
/// `None` beyond the address space.
pub fn request_len(payload: u32) -> Option<u32> {
    let with_room = payload.checked_add(payload / 4)?.checked_add(TAILER_LEN)?;
    with_room.checked_next_multiple_of(4)
}

/// By how much a file of `current` bytes grows to make room for `wanted` more (A.9.6).
pub fn expansion(current: u32, wanted: u32, page: u32) -> u32 {
    let most = u32::MAX - current;
    let (current, n) = (u64::from(current), u64::from(wanted));
    if n > u64::from(most) {
        return wanted;
    }
    let top = current + if n > 102_400 { 2 * n } else { 100 * n };
    let grown = if current > 100 << 20 {
        // The same rounding as a multiplication in double precision.
        (current as f64 * 1.10) as u64
    } else {
        current + current / 4
    };
    let new = top.max(grown).next_multiple_of(u64::from(page.max(1)));
    u32::try_from(new - current).map_or(most, |addition| addition.min(most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_empty_file_has_the_bytes_of_h_4_1() {
        let bytes = Header::new(ByteOrder::Little, HashKind::Old, 2).encode();
        let mut want = [0u8; 168];
        want[..9].copy_from_slice(b"TDB file\n");
        want[0x20..0x28].copy_from_slice(&[0x6d, 0x19, 0x01, 0x26, 2, 0, 0, 0]);
        want[0x34..0x3c].copy_from_slice(&[0x0d, 0x9f, 0x7d, 0xf6, 0x20, 0xf9, 0xfe, 0x3a]);
        assert_eq!(bytes, want);
        let jenkins = Header::new(ByteOrder::Little, HashKind::Jenkins, 2).encode();
        assert_eq!(&jenkins[0x28..0x2c], &[0x51, 0x1a, 0xad, 0x0b]);
        assert_eq!(
            &jenkins[0x34..0x3c],
            &[0xe5, 0x94, 0xb6, 0xd7, 0x0e, 0x44, 0xb9, 0x76]
        );
    }

    #[test]
    fn a_mutex_file_says_where_its_data_begins() {
        let mut header = Header::new(ByteOrder::Little, HashKind::Jenkins, 2);
        header.rwlocks = RWLOCKS_FEATURES;
        header.features = FEATURE_MUTEX;
        header.mutex_size = 4096;
        let bytes = header.encode();
        assert_eq!(&bytes[0x28..0x2c], &[0x52, 0x1a, 0xad, 0x0b]);
        assert_eq!(&bytes[0x3c..0x44], &[1, 0, 0, 0, 0, 0x10, 0, 0]);
        assert_eq!(Header::decode(&bytes).unwrap(), header);
        assert!(header.has_mutexes());
    }

    #[test]
    fn every_refusal_has_its_name() {
        let good = Header::new(ByteOrder::Little, HashKind::Old, 131);
        let with = |at: usize, word: u32| {
            let mut bytes = good.encode();
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            Header::decode(&bytes)
        };
        assert_eq!(
            Header::decode(&good.encode()[..167]),
            Err(HeaderFault::Short)
        );
        assert_eq!(with(4, 0), Err(HeaderFault::Magic));
        assert_eq!(with(field::VERSION, 7), Err(HeaderFault::Version(7)));
        assert_eq!(with(field::HASH_SIZE, 0), Err(HeaderFault::HashSize(0)));
        assert_eq!(
            with(field::HASH_SIZE, u32::MAX / 4),
            Err(HeaderFault::HashSize(u32::MAX / 4))
        );
        assert_eq!(with(field::RWLOCKS, 1), Err(HeaderFault::Rwlocks(1)));
        assert_eq!(
            with(field::MAGIC1_HASH, 1),
            Err(HeaderFault::Hash(1, 0x3afe_f920))
        );
        let mut features = good.clone();
        features.rwlocks = RWLOCKS_FEATURES;
        features.features = 2;
        assert_eq!(
            Header::decode(&features.encode()),
            Err(HeaderFault::Features(2))
        );
        features.features = FEATURE_MUTEX;
        features.mutex_size = 100;
        assert_eq!(
            Header::decode(&features.encode()),
            Err(HeaderFault::MutexSize(100))
        );
    }

    #[test]
    fn very_old_files_use_the_old_hash() {
        let mut header = Header::new(ByteOrder::Little, HashKind::Jenkins, 1);
        (header.magic1_hash, header.magic2_hash) = (0, 0);
        assert_eq!(header.hash(), Ok(HashKind::Old));
    }

    #[test]
    fn other_endian_headers_are_recognised() {
        for hash in [HashKind::Old, HashKind::Jenkins] {
            let header = Header::new(ByteOrder::Big, hash, 5);
            let bytes = header.encode();
            assert_eq!(&bytes[32..36], &[0x26, 0x01, 0x19, 0x6d]);
            assert_eq!(Header::decode(&bytes).unwrap(), header);
            assert_eq!(header.hash(), Ok(hash));
        }
    }

    #[test]
    fn a_used_record_of_h_4_2() {
        let bytes: [u8; 24] = [
            0xd8, 0x1f, 0, 0, 0x0c, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 0x66, 0x7a, 0xd0, 0xee, 0x99,
            0x19, 0x01, 0x26,
        ];
        let record = RecordHeader::decode(&bytes, ByteOrder::Little);
        assert_eq!(record.next, 0x1fd8);
        assert_eq!(
            (record.rec_len, record.key_len, record.data_len),
            (12, 4, 2)
        );
        assert_eq!(record.full_hash, crate::hash::old(b"key2"));
        assert_eq!(record.kind(), RecordKind::Used);
        assert_eq!(record.tailer(), 0x24);
        assert_eq!(record.encode(ByteOrder::Little), bytes);
    }

    #[test]
    fn kinds_of_h_4() {
        for (bytes, kind) in [
            ([0x66, 0xe6, 0xfe, 0xd9], RecordKind::Free),
            ([0xad, 0xde, 0xe1, 0xfe], RecordKind::Dead),
            ([0xe7, 0xc0, 0x3b, 0xf5], RecordKind::Recovery),
            ([0, 0, 0, 0], RecordKind::Blank),
            ([0x42; 4], RecordKind::Blank),
            ([1, 0, 0, 0], RecordKind::Unknown(1)),
        ] {
            assert_eq!(RecordKind::of(u32::from_le_bytes(bytes)), kind);
        }
    }

    #[test]
    fn sizes_of_a_9() {
        for (payload, want) in [(10, 16), (13, 20), (6, 12)] {
            assert_eq!(request_len(payload), Some(want));
        }
        assert_eq!(request_len(u32::MAX), None);
        for (hash_size, current, new) in [
            (2, 180, 8192),
            (131, 696, 8192),
            (100_001, 400_176, 503_808),
        ] {
            assert_eq!(Geometry::new(hash_size).unwrap().data_start(), current);
            assert_eq!(current + expansion(current, 16 + 24, 4096), new);
        }
        // H.4.5: the recovery area of the first transaction.
        assert_eq!(expansion(8192, 4108, 4096), 413_696);
        assert_eq!(expansion(u32::MAX - 10, 100, 4096), 100);
        assert_eq!(expansion(u32::MAX - 100, 50, 4096), 100);
    }

    proptest! {
        #[test]
        fn any_header_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Header::decode(&bytes);
        }

        #[test]
        fn damaged_headers_never_decode_to_something_unusable(
            at in 0usize..168, byte in any::<u8>(), big in any::<bool>(),
        ) {
            let order = if big { ByteOrder::Big } else { ByteOrder::Little };
            let mut bytes = Header::new(order, HashKind::Jenkins, 7).encode();
            bytes[at] = byte;
            if let Ok(header) = Header::decode(&bytes) {
                prop_assert!(Geometry::new(header.hash_size).is_some());
                prop_assert!(header.hash().is_ok());
                prop_assert_eq!(Header::decode(&header.encode()), Ok(header));
            }
        }

        #[test]
        fn records_survive_the_round_trip(words in any::<[u32; 6]>(), big in any::<bool>(), at in any::<u32>()) {
            let order = if big { ByteOrder::Big } else { ByteOrder::Little };
            let record = RecordHeader {
                next: words[0], rec_len: words[1], key_len: words[2],
                data_len: words[3], full_hash: words[4], magic: words[5],
            };
            prop_assert_eq!(RecordHeader::decode(&record.encode(order), order), record);
            if let Some(end) = record.end(at) {
                prop_assert!(end >= at);
            }
            let _ = record.payload_fits();
        }

        #[test]
        fn expansion_makes_room_or_says_that_it_cannot(current in any::<u32>(), wanted in 24u32..) {
            let addition = expansion(current, wanted, 4096);
            prop_assert!(addition >= wanted);
        }
    }
}
