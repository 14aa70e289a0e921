//! Text dumps, interchangeable with `tdbdump` and `tdbrestore`.
//!
//! ```text
//! {
//! key(5) = "hello"
//! data(6) = "wor\0Ald"
//! }
//! ```
//!
//! Printable ASCII stands for itself, everything else, `"` and `\` as `\` and two hex digits.

use std::io::{self, BufRead, Read as _, Write};
use std::ops::ControlFlow;

use crate::error::Error;
use crate::handle::Tdb;
use crate::read::TraverseKind;
use crate::write::StoreMode;

/// Why a dump could not be written or read back.
#[derive(Debug, thiserror::Error)]
pub enum DumpError {
    /// The dump's own stream.
    #[error("cannot read or write the dump: {0}")]
    Io(#[from] io::Error),
    /// The database.
    #[error(transparent)]
    Db(#[from] Error),
    /// Not what a dump has there.
    #[error("line {line} of the dump: {expected} expected")]
    Syntax {
        /// Counted from 1.
        line: u64,
        /// What should stand there.
        expected: &'static str,
    },
    /// A length that is not that of the text.
    #[error("line {line} of the dump: {stated} bytes announced, {found} found")]
    Length {
        /// Counted from 1.
        line: u64,
        /// As announced.
        stated: u64,
        /// As found.
        found: usize,
    },
    /// A line longer than any that the handle's largest record gives.
    #[error("line {line} of the dump is too long")]
    TooLong {
        /// Counted from 1.
        line: u64,
    },
}

/// Writes all records to `out`, in the order of the traverse; the number of records.
///
/// * Locks: those of a traverse to read.
/// * Errors: those of the stream, and of the traverse.
/// * Cost: that of the traverse, and about three times the bytes written at most.
pub fn dump(tdb: &mut Tdb, out: &mut impl Write) -> Result<u64, DumpError> {
    let mut failed = None;
    let count = tdb.traverse(TraverseKind::Read, |_, key, data| {
        match write_record(out, key, data) {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(error) => {
                failed = Some(error);
                Ok(ControlFlow::Break(()))
            }
        }
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(count),
    }
}

/// Writes one record of a dump.
pub fn write_record(out: &mut impl Write, key: &[u8], data: &[u8]) -> io::Result<()> {
    let mut text = format!("{{\nkey({}) = \"", key.len()).into_bytes();
    escape(&mut text, key);
    text.extend_from_slice(format!("\"\ndata({}) = \"", data.len()).as_bytes());
    escape(&mut text, data);
    text.extend_from_slice(b"\"\n}\n");
    out.write_all(&text)
}

/// Bytes as a dump shows them between its quotes. Pure ASCII, one line.
pub fn escaped(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len());
    escape(&mut text, bytes);
    text.into_iter().map(char::from).collect()
}

/// The bytes that `text` stands for; the inverse of [`escaped`], and lenient: only `\` is special.
/// `None` if one is not followed by two hex digits.
pub fn unescaped(text: &[u8]) -> Option<Vec<u8>> {
    unescape(text)
}

fn escape(text: &mut Vec<u8>, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in bytes {
        match byte {
            b'"' | b'\\' | 0..0x20 | 0x7F.. => {
                text.push(b'\\');
                text.push(HEX[usize::from(byte >> 4)]);
                text.push(HEX[usize::from(byte & 15)]);
            }
            plain => text.push(*plain),
        }
    }
}

/// Stores the records of a dump, in one transaction: all of them or none. A key that exists, or
/// comes twice, is [`Error::Exists`]. The number of records.
///
/// * Locks: those of a transaction.
/// * Errors: [`Error::Exists`], those of the text and its stream, of a store and a commit; the file
///   is then as it was.
/// * Cost: a store per record, and a commit.
pub fn restore(tdb: &mut Tdb, input: &mut impl BufRead) -> Result<u64, DumpError> {
    let mut transaction = tdb.transaction()?;
    let longest = transaction.max_record_len;
    let count = read(input, longest, |key, data| {
        Ok(transaction.store(key, data, StoreMode::Insert)?)
    })?;
    transaction.commit()?;
    Ok(count)
}

/// Hands the records of a dump to `record`, in their order; the number of records. No line may be
/// longer than a record of `max_record_len` bytes can make it.
///
/// * Locks: none.
/// * Errors: those of the text and its stream, and what `record` says.
/// * Cost: the memory of one record.
pub fn read(
    input: &mut impl BufRead,
    max_record_len: u32,
    mut record: impl FnMut(&[u8], &[u8]) -> Result<(), DumpError>,
) -> Result<u64, DumpError> {
    let mut lines = Lines {
        input,
        line: 0,
        longest: u64::from(max_record_len) * 3 + 64,
        text: Vec::new(),
    };
    let mut count = 0;
    while lines.next()? {
        lines.expect(b"{", "`{`")?;
        lines.must()?;
        let key = lines.field(b"key(", "`key(LENGTH) = \"...\"`")?;
        lines.must()?;
        let data = lines.field(b"data(", "`data(LENGTH) = \"...\"`")?;
        lines.must()?;
        lines.expect(b"}", "`}`")?;
        record(&key, &data)?;
        count += 1;
    }
    Ok(count)
}

/// A dump, line by line.
struct Lines<'a, R> {
    input: &'a mut R,
    line: u64,
    longest: u64,
    text: Vec<u8>,
}

impl<R: BufRead> Lines<'_, R> {
    /// Reads the next line; `false` at the end.
    fn next(&mut self) -> Result<bool, DumpError> {
        self.text.clear();
        self.line += 1;
        let got = self
            .input
            .by_ref()
            .take(self.longest)
            .read_until(b'\n', &mut self.text)?;
        if self.text.last() == Some(&b'\n') {
            self.text.pop();
        } else if got as u64 == self.longest {
            return Err(DumpError::TooLong { line: self.line });
        }
        Ok(got > 0)
    }

    /// The next line, which must exist.
    fn must(&mut self) -> Result<(), DumpError> {
        if self.next()? {
            Ok(())
        } else {
            Err(self.syntax("another line"))
        }
    }

    fn syntax(&self, expected: &'static str) -> DumpError {
        DumpError::Syntax {
            line: self.line,
            expected,
        }
    }

    fn expect(&self, text: &[u8], expected: &'static str) -> Result<(), DumpError> {
        if self.text == text {
            Ok(())
        } else {
            Err(self.syntax(expected))
        }
    }

    /// The bytes of a `name(LENGTH) = "..."` line.
    fn field(&self, name: &[u8], expected: &'static str) -> Result<Vec<u8>, DumpError> {
        let wrong = || self.syntax(expected);
        let rest = self.text.strip_prefix(name).ok_or_else(wrong)?;
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let (length, rest) = rest.split_at(digits);
        let stated = std::str::from_utf8(length)
            .ok()
            .and_then(|s| s.parse::<u64>().ok());
        let stated = stated.ok_or_else(wrong)?;
        let body = rest
            .strip_prefix(b") = \"")
            .and_then(|rest| rest.strip_suffix(b"\""))
            .ok_or_else(wrong)?;
        let bytes = unescape(body).ok_or_else(|| self.syntax("two hex digits after each `\\`"))?;
        if bytes.len() as u64 != stated {
            return Err(DumpError::Length {
                line: self.line,
                stated,
                found: bytes.len(),
            });
        }
        Ok(bytes)
    }
}

fn unescape(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16);
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'\\' {
            let (pair, tail) = tail.split_first_chunk::<2>()?;
            bytes.push((digit(pair[0])? * 16 + digit(pair[1])?) as u8);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::OpenOptions;

    fn empty() -> Tdb {
        Tdb::internal(&OpenOptions::default()).unwrap()
    }

    #[test]
    fn what_is_wrong_is_named_and_nothing_is_stored() {
        let good = "{\nkey(1) = \"a\"\ndata(2) = \"\\0ab\"\n}\n";
        let mut tdb = empty();
        assert_eq!(restore(&mut tdb, &mut good.as_bytes()).unwrap(), 1);
        assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"\nb");
        let mut tdb = empty();
        for (more, wanted) in [
            ("{\n", "line 6 of the dump: another line expected"),
            ("x", "line 5 of the dump: `{` expected"),
            (
                "{\nkey(2) = \"a\"\n",
                "line 6 of the dump: 2 bytes announced, 1 found",
            ),
            (
                "{\nkey(1) = \"\\4\"\n",
                "line 6 of the dump: two hex digits after each `\\` expected",
            ),
            (
                "{\nkey(1) : \"a\"\n",
                "line 6 of the dump: `key(LENGTH) = \"...\"` expected",
            ),
            (good, "the key exists"),
        ] {
            let text = format!("{good}{more}");
            let error = restore(&mut tdb, &mut text.as_bytes()).unwrap_err();
            assert_eq!(error.to_string(), wanted);
            assert!(!tdb.exists(b"a").unwrap());
        }
        let options = OpenOptions {
            max_record_len: 10,
            ..OpenOptions::default()
        };
        let mut tdb = Tdb::internal(&options).unwrap();
        let error = restore(&mut tdb, &mut [b'x'; 1000].as_slice()).unwrap_err();
        assert_eq!(error.to_string(), "line 1 of the dump is too long");
    }

    proptest! {
        #[test]
        fn dumps_are_read_back(
            records in proptest::collection::btree_map(any::<Vec<u8>>(), any::<Vec<u8>>(), 0..8),
        ) {
            let mut tdb = empty();
            for (key, data) in &records {
                tdb.store(key, data, StoreMode::Insert).unwrap();
            }
            let mut text = Vec::new();
            prop_assert_eq!(dump(&mut tdb, &mut text).unwrap(), records.len() as u64);
            let mut again = empty();
            restore(&mut again, &mut text.as_slice()).unwrap();
            for (key, data) in &records {
                let found = again.fetch(key).unwrap();
                prop_assert_eq!(found.as_ref(), Some(data));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = restore(&mut empty(), &mut text.as_slice());
        }
    }
}
