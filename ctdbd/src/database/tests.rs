//! The pieces around the machines.

use std::sync::Arc;
use std::time::Duration;

use ctdb_db::cluster::{Cursor, Generation, Kind, Lineage, Store as _};
use ctdb_db::record::{LtdbHeader, Rsn};
use ctdb_db::{LockKind, Wait};
use ctdb_wire::ids::{Incarnation, NodeSet, Pnn, Term};

use super::file::{FileOptions, FileStore};
use super::lineage::{LineageError, LineageFile};
use super::mailbox::{Item, MAX_ITEMS, Mailbox};

fn pnn(number: u32) -> Pnn {
    Pnn::new(number).unwrap()
}

fn options(directory: &std::path::Path, kind: Kind) -> FileOptions {
    FileOptions {
        path: directory.join("test.tdb.0"),
        kind,
        flags: FileOptions::flags_of(kind, true),
        hash_size: 7,
        max_dead: 5,
    }
}

fn header(rsn: u64) -> LtdbHeader {
    LtdbHeader {
        rsn: Rsn(rsn),
        ..LtdbHeader::default()
    }
}

#[test]
fn a_full_mailbox_refuses_calls_and_notes_whose_messages_are_lost() {
    let mailbox = Mailbox::default();
    for _ in 0..MAX_ITEMS {
        assert!(mailbox.offer(Item::Readonly));
    }
    assert!(!mailbox.offer(Item::Readonly));
    mailbox.peer(pnn(3), vec![1]);
    // What must not get lost goes in nevertheless.
    mailbox.post(Item::LinkReset(pnn(1)));
    let (items, lost) = mailbox.take(Some(Duration::ZERO));
    assert_eq!(items.len(), MAX_ITEMS + 1);
    assert_eq!(lost, [pnn(3)].into_iter().collect::<NodeSet>());
    assert!(mailbox.offer(Item::Readonly), "there is room again");
    let (_, lost) = mailbox.take(Some(Duration::ZERO));
    assert!(lost.is_empty());
    mailbox.close();
    assert!(!mailbox.offer(Item::Readonly));
}

#[test]
fn who_waits_at_a_mailbox_is_woken() {
    let mailbox = Arc::new(Mailbox::default());
    let other = Arc::clone(&mailbox);
    let waiting = std::thread::spawn(move || other.take(None).0.len());
    mailbox.post(Item::Readonly);
    assert_eq!(waiting.join().unwrap(), 1);
}

#[test]
fn a_lineage_survives_and_says_when_it_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("p.tdb.0");
    let mut file = LineageFile::open(&database).unwrap();
    assert_eq!(file.lineage(), Lineage::NONE);
    let generation = |number| Generation {
        term: Term {
            number,
            leader: pnn(2),
            session: Incarnation(u64::MAX),
        },
        seq: 3,
    };
    let lineage = Lineage {
        epoch: generation(9),
        members: [pnn(0), pnn(63)].into_iter().collect(),
        content: generation(8),
    };
    file.seal(lineage).unwrap();
    file.set_damaged(Some("there".to_owned())).unwrap();
    let mut again = LineageFile::open(&database).unwrap();
    assert_eq!(again.lineage(), lineage);
    assert_eq!(again.damaged(), Some("there"));
    // A recovery that only seals does not make a damaged copy a good one.
    again.seal(lineage).unwrap();
    assert_eq!(
        LineageFile::open(&database).unwrap().damaged(),
        Some("there")
    );
    again.set_damaged(None).unwrap();
    assert_eq!(LineageFile::open(&database).unwrap().damaged(), None);
    std::fs::write(directory.path().join("p.tdb.0.lineage"), b"{}").unwrap();
    let error = LineageFile::open(&database).unwrap_err();
    assert!(matches!(error, LineageError::Content { .. }), "{error}");
}

#[test]
fn a_scan_stops_at_a_busy_chain_and_goes_on_there() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), Kind::Volatile);
    let mut store = FileStore::new(options.open().unwrap());
    let keys: Vec<Vec<u8>> = (0..40_u32).map(|n| n.to_le_bytes().to_vec()).collect();
    for (number, key) in keys.iter().enumerate() {
        assert!(store.try_lock(key).unwrap());
        store.write(key, &header(number as u64), b"data").unwrap();
        store.unlock(key);
    }
    let mut other = options.again().unwrap();
    other
        .chain_lock(&keys[5], LockKind::Exclusive, Wait::Try)
        .unwrap();
    assert!(!store.try_lock(&keys[5]).unwrap(), "somebody has it");
    let mut seen = Vec::new();
    let mut cursor = Cursor::default();
    let all = |store: &mut FileStore, cursor: &mut Cursor, seen: &mut Vec<Vec<u8>>| {
        store
            .scan(cursor, 1000, &mut |key, _, data| {
                assert_eq!(data, b"data");
                seen.push(key.to_vec());
            })
            .unwrap()
    };
    assert!(!all(&mut store, &mut cursor, &mut seen));
    let stuck = cursor;
    assert!(!all(&mut store, &mut cursor, &mut seen));
    assert_eq!(cursor, stuck, "it passes over no chain");
    other.chain_unlock(&keys[5]).unwrap();
    assert!(all(&mut store, &mut cursor, &mut seen));
    seen.sort();
    let mut expected = keys.clone();
    expected.sort();
    assert_eq!(seen, expected, "each once");
    let mut data = Vec::new();
    assert_eq!(store.read(&keys[3], &mut data).unwrap(), Some(header(3)));
    assert_eq!(data, b"data");
    store.remove(&keys[3]).unwrap();
    store.remove(&keys[3]).unwrap();
    assert_eq!(store.read(&keys[3], &mut data).unwrap(), None);
}

#[test]
fn a_volatile_file_that_somebody_still_has_open_is_left_to_him() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), Kind::Volatile);
    let mut old = options.open().unwrap();
    old.store(b"key", b"value", ctdb_db::StoreMode::Replace)
        .unwrap();
    let mut new = options.open().unwrap();
    assert_eq!(
        new.fetch(b"key").unwrap(),
        None,
        "a new daemon begins empty"
    );
    assert_eq!(old.fetch(b"key").unwrap().as_deref(), Some(&b"value"[..]));
    // A persistent one is the same file for all.
    let kept = FileOptions {
        path: directory.path().join("kept.tdb.0"),
        ..super::tests::options(directory.path(), Kind::Persistent)
    };
    let mut first = kept.open().unwrap();
    first
        .store(b"key", b"value", ctdb_db::StoreMode::Replace)
        .unwrap();
    let mut second = kept.open().unwrap();
    assert_eq!(
        second.fetch(b"key").unwrap().as_deref(),
        Some(&b"value"[..])
    );
}
