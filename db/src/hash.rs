//! The two hash functions of TDB files (spec/database.md A.4).

use crate::format::ByteOrder;

/// Which of the two built-in functions places the keys of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashKind {
    /// The gdbm-style function: the default of libtdb, used by persistent databases.
    Old,
    /// Jenkins' `lookup3`, used by files with `INCOMPATIBLE_HASH` or mutexes.
    Jenkins,
}

impl HashKind {
    /// The hash of `key`.
    pub fn hash(self, key: &[u8]) -> u32 {
        match self {
            Self::Old => old(key),
            Self::Jenkins => jenkins(key),
        }
    }

    /// The two words by which a header says which function the file uses (A.2.1).
    pub fn magic_words(self, order: ByteOrder) -> (u32, u32) {
        (
            self.hash(b"TDB file\n\0"),
            self.hash(&order.bytes(crate::format::USED_MAGIC)),
        )
    }
}

/// `lookup3` ("hashlittle") with initial value 0; words are little endian on every machine.
///
/// Also the hash of the distributed layer: database ids and the location master.
pub fn jenkins(key: &[u8]) -> u32 {
    let start = 0xDEAD_BEEFu32.wrapping_add(key.len() as u32);
    let (mut a, mut b, mut c) = (start, start, start);
    let mut rest = key;
    while rest.len() > 12 {
        let (words, tail) = rest.split_at(12);
        let (w0, w1, w2) = three_words(words);
        a = a.wrapping_add(w0);
        b = b.wrapping_add(w1);
        c = c.wrapping_add(w2);
        (a, c) = mix_row(a, c, b, 4);
        (b, a) = mix_row(b, a, c, 6);
        (c, b) = mix_row(c, b, a, 8);
        (a, c) = mix_row(a, c, b, 16);
        (b, a) = mix_row(b, a, c, 19);
        (c, b) = mix_row(c, b, a, 4);
        rest = tail;
    }
    if rest.is_empty() {
        return c;
    }
    let (w0, w1, w2) = three_words(rest);
    a = a.wrapping_add(w0);
    b = b.wrapping_add(w1);
    c = c.wrapping_add(w2);
    c = final_row(c, b, 14);
    a = final_row(a, c, 11);
    b = final_row(b, a, 25);
    c = final_row(c, b, 16);
    a = final_row(a, c, 4);
    b = final_row(b, a, 14);
    final_row(c, b, 24)
}

/// `5 * i mod 24` for the `i`th byte: repeats every 24 bytes.
const SHIFTS: [u32; 24] = {
    let mut shifts = [0; 24];
    let mut i = 0;
    while i < 24 {
        shifts[i] = (5 * i as u32) % 24;
        i += 1;
    }
    shifts
};

/// The gdbm-style default hash (A.4.2).
pub fn old(key: &[u8]) -> u32 {
    let mut value = 0x238F_13AFu32.wrapping_mul(key.len() as u32);
    for part in key.chunks(SHIFTS.len()) {
        for (byte, shift) in part.iter().zip(SHIFTS) {
            value = value.wrapping_add(u32::from(*byte) << shift);
        }
    }
    1_103_515_243u32.wrapping_mul(value).wrapping_add(12345)
}

/// One row of MIX: the new `x` and `z`.
fn mix_row(x: u32, z: u32, y: u32, k: u32) -> (u32, u32) {
    (x.wrapping_sub(z) ^ z.rotate_left(k), z.wrapping_add(y))
}

/// One row of FINAL: the new `x`.
fn final_row(x: u32, z: u32, k: u32) -> u32 {
    (x ^ z).wrapping_sub(z.rotate_left(k))
}

/// Up to 12 bytes, padded with zeros, as three little-endian words.
#[inline]
fn three_words(bytes: &[u8]) -> (u32, u32, u32) {
    let mut words = [0; 3];
    let (whole, rest) = bytes.as_chunks::<4>();
    for (word, bytes) in words.iter_mut().zip(whole) {
        *word = u32::from_le_bytes(*bytes);
    }
    if let Some(word) = words.get_mut(whole.len()) {
        for (i, byte) in rest.iter().enumerate() {
            *word |= u32::from(*byte) << (8 * i);
        }
    }
    (words[0], words[1], words[2])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every row of spec/database.md H.1.
    #[test]
    fn hashes_are_those_of_libtdb() {
        let counting: Vec<u8> = (0x80..=0x97).collect();
        let rows: &[(&[u8], u32, u32)] = &[
            (b"", 0xdead_beef, 0x0000_3039),
            (b"a", 0x58d6_8708, 0x094a_72e9),
            (b"ab", 0xfbb3_a8df, 0xe3b1_9dce),
            (b"abc", 0x0e39_7631, 0xc225_adf3),
            (b"abcd", 0xb5f4_889c, 0x3032_3a18),
            (b"hello", 0x34cb_bc6e, 0xe725_5f4a),
            (b"abcdefgh", 0x2995_c3be, 0x4381_eb30),
            (b"abcdefghijk", 0x5f61_edf8, 0xc623_aa83),
            (b"abcdefghijkl", 0x4012_f87b, 0xb7d4_c8a8),
            (b"abcdefghijklm", 0x9281_28f9, 0xcb34_44cd),
            (
                b"The quick brown fox jumps over the lazy dog",
                0x64a2_cd46,
                0x3918_bdaf,
            ),
            (b"0123456789ab0123456789abX", 0xc229_2159, 0x2119_bd10),
            (b"__db_sequence_number__", 0x40bb_65c1, 0x5db4_098e),
            (&[0; 4], 0x0493_96b8, 0x749a_60cd),
            (&[0xff; 5], 0xdddd_9326, 0x9f59_7027),
            (&counting, 0x7487_8670, 0xc20c_8f5f),
            (b"TDB file\n\0", 0xd7b6_94e5, 0xf67d_9f0d),
            (&[0x99, 0x19, 0x01, 0x26], 0x76b9_440e, 0x3afe_f920),
            (&[0x26, 0x01, 0x19, 0x99], 0x123c_1283, 0x566f_1e0f),
        ];
        for (key, want_jenkins, want_old) in rows {
            assert_eq!(jenkins(key), *want_jenkins, "jenkins of {key:02x?}");
            assert_eq!(old(key), *want_old, "old hash of {key:02x?}");
        }
    }

    /// Some of spec/database.md H.2: a database id is the hash of the name with its NUL.
    #[test]
    fn database_ids() {
        for (name, id) in [
            (&b"locking.tdb\0"[..], 0x7a19_d84d),
            (b"secrets.tdb\0", 0x7132_c184),
            (b"smbXsrv_open_global.tdb\0", 0x66f7_1b8c),
            (b"ctdb_iscsi\0", 0xe17d_3beb),
            (b"__db_sequence_number__\0", 0xd64d_294d),
        ] {
            assert_eq!(jenkins(name), id);
        }
    }

    /// A key of zeros leaves only the length in the sum, however long it is.
    #[test]
    fn long_keys_do_not_overflow_the_shift() {
        for len in [1u32, 25, 100_000] {
            let key = vec![0; len as usize];
            let sum = 0x238F_13AFu32.wrapping_mul(len);
            assert_eq!(
                old(&key),
                1_103_515_243u32.wrapping_mul(sum).wrapping_add(12345)
            );
        }
    }
}
