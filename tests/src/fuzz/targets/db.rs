//! The database engine: files, what a crashed commit leaves, buffers of records, dumps.

use std::fmt::Debug;
use std::fs;
use std::ops::ControlFlow;

use ctdb_db::dump;
use ctdb_db::format::RECOVERY_MAGIC;
use ctdb_db::record::{DbId, LtdbHeader, MarshalledRecord, RecordBuffer, RecordBufferWriter};
use ctdb_db::{Error, OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind};

use crate::fuzz::{Outcome, Target};

/// Words of the file format, little endian.
const WORDS: &[&[u8]] = &[
    b"TDB file\n",
    &0x2601_196Du32.to_le_bytes(),
    &0x2601_1999u32.to_le_bytes(),
    &0xFEE1_DEADu32.to_le_bytes(),
    &0xD9FE_E666u32.to_le_bytes(),
    &0xF53B_C0E7u32.to_le_bytes(),
    &0x4242_4242u32.to_le_bytes(),
    &0x0BAD_1A51u32.to_le_bytes(),
    &0x0BAD_1A52u32.to_le_bytes(),
];

/// Longest file. Small ones are as hostile as large ones, and faster.
const MAX_FILE: usize = 64 << 10;

pub(in crate::fuzz) const FILE: Target = Target {
    name: "tdb_file",
    about: "opens bytes as a database, checks, traverses and changes it",
    run: file,
    seeds: files,
    words: WORDS,
    max_len: MAX_FILE,
};

pub(in crate::fuzz) const RECOVERY: Target = Target {
    name: "tdb_recovery",
    about: "opens bytes as a database file in which a commit has crashed",
    run: recovery,
    seeds: crashed_files,
    words: WORDS,
    max_len: MAX_FILE,
};

pub(in crate::fuzz) const BUFFERS: Target = Target {
    name: "tdb_buffers",
    about: "decodes bytes as marshalled records and as CTDB's record header",
    run: buffers,
    seeds: some_buffers,
    words: &[],
    max_len: 4096,
};

pub(in crate::fuzz) const DUMP: Target = Target {
    name: "tdb_dump",
    about: "reads bytes as a text dump, dumps what came of it, reads that",
    run: dumps,
    seeds: some_dumps,
    words: &[
        b"{\n", b"}\n", b"key(", b"data(", b") = \"", b"\"\n", b"\\00",
    ],
    max_len: 4096,
};

fn options() -> OpenOptions {
    OpenOptions {
        max_record_len: 1 << 20,
        flags: OpenFlags::SEQNUM,
        ..OpenOptions::default()
    }
}

/// Notes how something ended.
fn note<T: Debug>(outcome: &mut Outcome, result: &Result<T, Error>) {
    match result {
        Ok(value) => outcome.note(&format!("{value:?}")),
        Err(error) => refused(outcome, error),
    }
}

/// Notes what is wrong, and that it did not want memory without bound.
fn refused(outcome: &mut Outcome, error: &Error) {
    match error {
        Error::NoMemory(_) => panic!("unbounded allocation: {error}"),
        Error::Corrupt { fault, .. } => outcome.note(&format!("{fault:?}")),
        _ => outcome.note(&error.to_string()),
    }
}

/// Reads everything that there is; the keys.
fn read_all(tdb: &mut Tdb, outcome: &mut Outcome) -> Vec<Vec<u8>> {
    let checked = tdb.check();
    note(outcome, &checked);
    let mut keys = Vec::new();
    let seen = tdb.traverse(TraverseKind::Read, |_, key, data| {
        if keys.len() < 64 {
            keys.push(key.to_vec());
        }
        let _ = LtdbHeader::split(data);
        Ok(ControlFlow::Continue(()))
    });
    match &seen {
        Ok(count) => outcome.count(*count),
        Err(error) => refused(outcome, error),
    }
    if let Ok(report) = checked {
        // What is sound can be read, all of it.
        assert_eq!(seen.ok(), Some(report.used), "checked, but not traversed");
        for key in &keys {
            assert!(
                tdb.fetch(key).unwrap().is_some(),
                "traversed, but not found"
            );
        }
    }
    keys
}

/// Changes what can be changed. A sound file is sound afterwards.
fn change(tdb: &mut Tdb, keys: &[Vec<u8>], outcome: &mut Outcome) {
    // An odd end of 21 to 23 bytes of anything is lost space to a check; grown to 24 it looks like a
    // broken record.
    let sound = tdb.map_size().is_multiple_of(4) && tdb.check().is_ok();
    for key in keys.iter().take(4) {
        let stored = tdb.store(key, &[7; 300], StoreMode::Replace);
        note(outcome, &stored);
        note(outcome, &tdb.append(key, b"more"));
        note(outcome, &tdb.delete(key));
        assert!(!sound || stored.is_ok(), "a sound file refused a store");
    }
    let stored = tdb.store(b"new", &[1; 40], StoreMode::Insert);
    note(outcome, &stored);
    let committed = tdb.transaction().and_then(|mut transaction| {
        transaction.store(b"new", &[2; 90], StoreMode::Replace)?;
        transaction.commit()
    });
    note(outcome, &committed);
    if sound {
        tdb.check().expect("sound before it was changed");
        let found = tdb.fetch(b"new").unwrap();
        assert!(committed.is_err() || found.as_deref() == Some(&[2; 90]));
    }
    note(outcome, &tdb.repack());
    note(outcome, &tdb.wipe_all());
}

fn file(bytes: &[u8], outcome: &mut Outcome) {
    let mut tdb = match Tdb::from_bytes(bytes.to_vec(), &options()) {
        Ok(tdb) => tdb,
        Err(error) => return refused(outcome, &error),
    };
    let keys = read_all(&mut tdb, outcome);
    change(&mut tdb, &keys, outcome);
}

fn recovery(bytes: &[u8], outcome: &mut Outcome) {
    thread_local! {
        static FOLDER: tempfile::TempDir = folder();
    }
    FOLDER.with(|folder| {
        let path = folder.path().join("f.tdb");
        fs::write(&path, bytes).unwrap();
        let options = OpenOptions {
            flags: OpenFlags::NOSYNC,
            ..options()
        };
        let mut tdb = match Tdb::open(&path, &options) {
            Ok(tdb) => tdb,
            Err(error) => return refused(outcome, &error),
        };
        // What recovery gave is what the next opener sees.
        let recovered = fs::read(&path).unwrap();
        assert!(
            recovered.len() <= bytes.len(),
            "recovery made the file longer"
        );
        drop(Tdb::open(&path, &options).expect("a recovered file opens again"));
        assert!(
            fs::read(&path).unwrap() == recovered,
            "it was recovered twice"
        );
        let keys = read_all(&mut tdb, outcome);
        change(&mut tdb, &keys, outcome);
    });
}

/// A folder in memory, if there is one.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a folder to work in")
}

fn buffers(bytes: &[u8], outcome: &mut Outcome) {
    if let Some((header, data)) = LtdbHeader::split(bytes) {
        let again = header.join(data);
        // All but the padding.
        assert_eq!(again[..20], bytes[..20]);
        assert_eq!(again[24..], bytes[24..]);
    }
    if let Err(fault) = MarshalledRecord::take(bytes, 0) {
        outcome.note(&format!("{fault:?}"));
    }
    match RecordBuffer::decode(bytes) {
        Err(fault) => outcome.note(&format!("{fault:?}")),
        Ok(buffer) => {
            let mut writer = RecordBufferWriter::new(buffer.db_id, bytes.len());
            for record in buffer.iter() {
                assert!(writer.push(&record), "what was decoded fits its own length");
                outcome.count(record.data.len() as u64);
            }
            assert_eq!(writer.count(), buffer.count);
            assert_eq!(writer.finish(), bytes, "not what was decoded");
        }
    }
}

fn dumps(bytes: &[u8], outcome: &mut Outcome) {
    let mut tdb = Tdb::internal(&options()).unwrap();
    match dump::restore(&mut tdb, &mut &*bytes) {
        Ok(count) => outcome.count(count),
        Err(error) => {
            outcome.note(&error.to_string());
            let left = dump::dump(&mut tdb, &mut Vec::new());
            assert_eq!(left.unwrap(), 0, "a bad dump stored something");
            return;
        }
    }
    let mut text = Vec::new();
    let count = dump::dump(&mut tdb, &mut text).unwrap();
    let mut again = Tdb::internal(&options()).unwrap();
    assert_eq!(
        dump::restore(&mut again, &mut text.as_slice()).unwrap(),
        count
    );
    let mut lines = Vec::new();
    dump::dump(&mut again, &mut lines).unwrap();
    assert_eq!(lines.len(), text.len(), "a dump of a dump differs");
}

/// Small files of all kinds, from the engine itself.
fn files() -> Vec<Vec<u8>> {
    let folder = folder();
    let mut all = Vec::new();
    let jenkins = OpenFlags::INCOMPATIBLE_HASH;
    for (number, flags) in [
        OpenFlags::empty(),
        jenkins | OpenFlags::VOLATILE,
        OpenFlags::CONVERT,
        jenkins | OpenFlags::CONVERT,
    ]
    .into_iter()
    .enumerate()
    {
        let path = folder.path().join(format!("{number}"));
        let options = OpenOptions {
            flags: flags | OpenFlags::NOSYNC,
            create: true,
            hash_size: 2,
            ..OpenOptions::default()
        };
        let mut tdb = Tdb::open(&path, &options).expect("a new file");
        all.push(fs::read(&path).expect("the file"));
        for i in 0..8u32 {
            tdb.store(
                &i.to_le_bytes(),
                &vec![i as u8; 40 * i as usize],
                StoreMode::Insert,
            )
            .expect("room");
        }
        all.push(fs::read(&path).expect("the file"));
        for i in [1u32, 2, 6] {
            tdb.delete(&i.to_le_bytes()).expect("it is there");
        }
        all.push(fs::read(&path).expect("the file"));
    }
    all
}

/// Files in which the last commit has crashed, after all of its blocks were written.
fn crashed_files() -> Vec<Vec<u8>> {
    let folder = folder();
    let path = folder.path().join("f");
    let mut all = Vec::new();
    for flags in [
        OpenFlags::empty(),
        OpenFlags::INCOMPATIBLE_HASH,
        OpenFlags::CONVERT,
    ] {
        let options = OpenOptions {
            flags: flags | OpenFlags::NOSYNC,
            create: true,
            hash_size: 2,
            ..OpenOptions::default()
        };
        let _ = fs::remove_file(&path);
        let mut tdb = Tdb::open(&path, &options).expect("a new file");
        for i in 0..3u8 {
            let mut transaction = tdb.transaction().expect("nobody else is there");
            for key in [i, 7] {
                transaction
                    .store(&[key], &[i; 50], StoreMode::Replace)
                    .expect("room");
            }
            transaction.commit().expect("nobody else is there");
        }
        let order = tdb.byte_order();
        let mut bytes = fs::read(&path).expect("the file");
        let word = |at: usize| Some(order.word(*bytes.get(at..)?.first_chunk()?));
        let area = word(44).expect("a header") as usize;
        bytes[area + 20..area + 24].copy_from_slice(&order.bytes(RECOVERY_MAGIC));
        all.push(bytes);
    }
    all
}

fn some_buffers() -> Vec<Vec<u8>> {
    let mut writer = RecordBufferWriter::new(DbId::of("locking.tdb"), 4096);
    for (key, len) in [(&b"a"[..], 24), (b"", 0), (b"key", 100)] {
        let data = vec![1; len];
        let record = MarshalledRecord {
            reqid: 1,
            key,
            data: &data,
        };
        assert!(writer.push(&record), "room");
    }
    let empty = RecordBufferWriter::new(DbId(7), 100);
    vec![writer.finish(), empty.finish()]
}

fn some_dumps() -> Vec<Vec<u8>> {
    let one = "{\nkey(1) = \"a\"\ndata(2) = \"\\0ab\"\n}\n";
    vec![
        one.into(),
        format!("{one}{}", one.replace("\"a\"", "\"b\"")).into(),
    ]
}
