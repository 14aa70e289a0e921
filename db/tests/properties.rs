//! Random operations against a plain map, and damaged files: nothing panics, hangs or lies.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use ctdb_db::{Error, LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind};
use proptest::prelude::*;

type Content = BTreeMap<Vec<u8>, Vec<u8>>;

#[derive(Clone, Debug)]
enum Op {
    Store(u8, u16, StoreMode),
    Append(u8, u8),
    Delete(u8),
    Fetch(u8),
    Wipe,
    Repack,
    Begin,
    End(bool),
    DeleteInTraverse(u8),
}

fn op() -> impl Strategy<Value = Op> {
    let mode = prop_oneof![
        Just(StoreMode::Replace),
        Just(StoreMode::Insert),
        Just(StoreMode::Modify)
    ];
    prop_oneof![
        20 => (any::<u8>(), 0u16..2000, mode).prop_map(|(k, n, m)| Op::Store(k % 24, n, m)),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(k, n)| Op::Append(k % 24, n)),
        12 => any::<u8>().prop_map(|k| Op::Delete(k % 24)),
        4 => any::<u8>().prop_map(|k| Op::Fetch(k % 24)),
        1 => Just(Op::Wipe),
        1 => Just(Op::Repack),
        2 => Just(Op::Begin),
        2 => any::<bool>().prop_map(Op::End),
        1 => any::<u8>().prop_map(Op::DeleteInTraverse),
    ]
}

fn content(tdb: &mut Tdb) -> Content {
    let mut all = Content::new();
    tdb.traverse(TraverseKind::Read, |_, key, data| {
        assert!(all.insert(key.to_vec(), data.to_vec()).is_none());
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    all
}

fn apply(tdb: &mut Tdb, model: &mut Content, saved: &mut Option<Content>, op: &Op) {
    let name = |k: u8| vec![k; 1 + k as usize % 5];
    match *op {
        Op::Store(k, len, mode) => {
            let data = vec![k; len as usize];
            let exists = model.contains_key(&name(k));
            match tdb.store(&name(k), &data, mode) {
                Ok(()) => {
                    assert!(exists || mode != StoreMode::Modify);
                    model.insert(name(k), data);
                }
                Err(Error::Exists) => assert!(exists && mode == StoreMode::Insert),
                Err(Error::NotFound) => assert!(!exists && mode == StoreMode::Modify),
                Err(error) => panic!("{error}"),
            }
        }
        Op::Append(k, len) => {
            tdb.append(&name(k), &vec![1; len as usize]).unwrap();
            model
                .entry(name(k))
                .or_default()
                .extend(vec![1; len as usize]);
        }
        Op::Delete(k) => match tdb.delete(&name(k)) {
            Ok(()) => assert!(model.remove(&name(k)).is_some()),
            Err(Error::NotFound) => assert!(!model.contains_key(&name(k))),
            Err(error) => panic!("{error}"),
        },
        Op::Fetch(k) => {
            assert_eq!(tdb.fetch(&name(k)).unwrap().as_ref(), model.get(&name(k)));
            assert_eq!(tdb.exists(&name(k)).unwrap(), model.contains_key(&name(k)));
        }
        Op::Wipe => {
            tdb.wipe_all().unwrap();
            model.clear();
        }
        Op::Repack => tdb.repack().unwrap(),
        Op::Begin => {
            if saved.is_none() {
                tdb.transaction_start().unwrap();
                *saved = Some(model.clone());
            }
        }
        Op::End(commit) => {
            if let Some(old) = saved.take() {
                if commit {
                    tdb.transaction_commit().unwrap();
                } else {
                    tdb.transaction_cancel().unwrap();
                    *model = old;
                }
            }
        }
        Op::DeleteInTraverse(n) => {
            let mut seen = 0;
            tdb.traverse(TraverseKind::Write, |tdb, key, data| {
                assert_eq!(model.get(key).map(Vec::as_slice), Some(data));
                seen += 1;
                if seen % 3 == n % 3 {
                    tdb.delete(key)?;
                    model.remove(key);
                }
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        }
    }
}

/// A sound file with all kinds of records in it, and a recovery area.
fn sound_file(armed: bool) -> Vec<u8> {
    let options = OpenOptions {
        hash_size: 3,
        ..OpenOptions::default()
    };
    let mut tdb = Tdb::internal(&options).unwrap();
    for i in 0..30u8 {
        tdb.store(&[i; 5], &vec![i; i as usize * 7], StoreMode::Insert)
            .unwrap();
    }
    let mut transaction = tdb.transaction().unwrap();
    transaction
        .store(b"in a transaction", b"1", StoreMode::Insert)
        .unwrap();
    transaction.commit().unwrap();
    tdb.set_max_dead(3);
    for i in (0..30u8).step_by(3) {
        tdb.delete(&[i; 5]).unwrap();
    }
    let mut bytes = tdb.bytes().unwrap().to_vec();
    if armed {
        let at = u32::from_le_bytes(bytes[44..48].try_into().unwrap()) as usize + 20;
        bytes[at..at + 4].copy_from_slice(&0xF53B_C0E7u32.to_le_bytes());
    }
    bytes
}

/// Everything that can be done to a file; what comes out does not matter.
fn use_it(bytes: Vec<u8>) {
    let options = OpenOptions {
        max_record_len: 1 << 20,
        ..OpenOptions::default()
    };
    let Ok(mut tdb) = Tdb::from_bytes(bytes, &options) else {
        return;
    };
    let _ = tdb.check();
    let _ = tdb.fetch(&[4; 5]);
    let mut seen = 0u64;
    let _ = tdb.traverse(TraverseKind::Read, |_, _, _| {
        seen += 1;
        assert!(seen < 200_000, "a traverse without end");
        Ok(ControlFlow::Continue(()))
    });
    let _ = tdb
        .lock_all(LockKind::Shared)
        .and_then(|()| tdb.unlock_all());
    for i in 0..30u8 {
        let _ = tdb.store(&[i; 5], &vec![0; i as usize * 20], StoreMode::Replace);
        let _ = tdb.delete(&[i / 2; 5]);
    }
    if tdb.transaction_start().is_ok() {
        let _ = tdb.store(b"more", &[1; 5000], StoreMode::Replace);
        let _ = tdb.delete(&[7; 5]);
        let _ = tdb.transaction_commit();
    }
    let _ = tdb.repack();
    let _ = tdb.wipe_all();
    let _ = tdb.store(b"after", b"all", StoreMode::Replace);
    let _ = tdb.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_database_is_a_map(
        ops in proptest::collection::vec(op(), 1..120),
        hash_size in 1u32..9,
        max_dead in 0u32..4,
        big_endian in any::<bool>(),
    ) {
        let flags = if big_endian { OpenFlags::CONVERT } else { OpenFlags::empty() };
        let options = OpenOptions { hash_size, flags, ..OpenOptions::default() };
        let mut tdb = Tdb::internal(&options).unwrap();
        tdb.set_max_dead(max_dead);
        let (mut model, mut saved) = (Content::new(), None);
        for (i, op) in ops.iter().enumerate() {
            apply(&mut tdb, &mut model, &mut saved, op);
            if i % 8 == 0 {
                let report = tdb.check().unwrap();
                prop_assert_eq!(report.used, model.len() as u64);
                prop_assert_eq!(report.lost_bytes, 0);
            }
        }
        if saved.is_some() {
            tdb.transaction_commit().unwrap();
        }
        prop_assert_eq!(content(&mut tdb), model.clone());
        prop_assert_eq!(tdb.check().unwrap().lost_bytes, 0);
        let image = tdb.bytes().unwrap().to_vec();
        let mut again = Tdb::from_bytes(image, &OpenOptions::default()).unwrap();
        prop_assert_eq!(content(&mut again), model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_files_give_errors(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u32>(), 0u8..6), 1..6),
        cut in proptest::option::of(any::<prop::sample::Index>()),
        armed in any::<bool>(),
    ) {
        let mut bytes = sound_file(armed);
        for (at, word, how) in changes {
            // Most damage where it matters: heads, and records in the first pages.
            let near = if how < 3 { 200 } else { 9000.min(bytes.len()) };
            let at = at.index(near) & !3;
            let word = match how {
                0 | 3 => (word % bytes.len() as u32) & !3,
                1 | 4 => u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) ^ (1 << (word % 32)),
                _ => word,
            };
            if at + 4 <= bytes.len() && !(32..36).contains(&at) {
                bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        use_it(bytes);
    }

    #[test]
    fn noise_after_a_header_gives_errors(noise in proptest::collection::vec(any::<u8>(), 0..4000)) {
        let mut bytes = sound_file(false);
        bytes.truncate(168);
        bytes.extend(noise);
        use_it(bytes);
    }
}

/// The same on real files, with recovery and truncation under an open handle.
#[test]
fn a_file_truncated_under_us_gives_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.tdb");
    std::fs::write(&path, sound_file(true)).unwrap();
    let mut tdb = Tdb::open(&path, &OpenOptions::default()).unwrap();
    tdb.check().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for len in [8000u64, 5000, 300, 181, 170, 100, 0] {
        file.set_len(len).unwrap();
        for i in 0..30u8 {
            if let Err(error) = tdb.fetch(&[i; 5]) {
                assert!(matches!(error, Error::Corrupt { .. }), "{error}");
            }
        }
        assert!(matches!(tdb.check(), Err(Error::Corrupt { .. })));
    }
    assert!(tdb.store(b"x", b"y", StoreMode::Replace).is_err());
    assert!(matches!(
        Tdb::open(&path, &OpenOptions::default()),
        Err(Error::Header { .. })
    ));
}

/// What check finds it names with offset and fault.
#[test]
fn check_names_the_fault() {
    use ctdb_db::Fault;
    let sound = sound_file(false);
    let check = |at: usize, word: u32| {
        let mut bytes = sound.clone();
        bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        match Tdb::from_bytes(bytes, &OpenOptions::default())
            .unwrap()
            .check()
        {
            Err(Error::Corrupt { offset, fault, .. }) => Some((offset as usize, fault)),
            Err(error) => panic!("{error}"),
            Ok(_) => None,
        }
    };
    assert_eq!(check(0, u32::from_le_bytes(*b"TDB ")), None);
    let head = u32::from_le_bytes(sound[172..176].try_into().unwrap());
    let record = head as usize;
    assert!(matches!(check(172, 0), Some((_, Fault::Unreferenced))));
    assert_eq!(check(record, head), Some((record, Fault::Cycle)));
    assert!(matches!(check(record + 20, 5), Some((at, Fault::BadMagic(5))) if at == record));
    assert!(matches!(check(record + 4, 6), Some((at, Fault::BadLength(6))) if at == record));
    assert!(matches!(check(record + 16, 5), Some((at, Fault::BadHash { .. })) if at == record));
    assert!(
        matches!(check(record + 8, 1 << 20), Some((at, Fault::BadPayload { .. })) if at == record)
    );
    assert!(
        matches!(check(record + 4, 1 << 30), Some((at, Fault::OutOfFile { .. })) if at == record)
    );
    assert!(matches!(check(176, head), Some((_, Fault::LinkedTwice))));
    assert!(matches!(check(44, 4), Some((4, Fault::BadRecovery))));
}

/// A chain longer than a read traverse copies at a time: every record once, also while others change
/// the chain between two copies.
#[test]
fn long_chains_are_traversed_piece_by_piece() {
    use std::ops::ControlFlow;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tdb");
    for flags in [OpenFlags::empty(), OpenFlags::MUTEX_LOCKING] {
        let path = path.with_extension(flags.bits().to_string());
        let options = OpenOptions {
            hash_size: 1,
            create: true,
            flags,
            ..OpenOptions::default()
        };
        let mut tdb = Tdb::open(&path, &options).unwrap();
        let mut other = Tdb::open(&path, &options).unwrap();
        for i in 0..3000u32 {
            tdb.store(&i.to_le_bytes(), &[0; 7], StoreMode::Insert)
                .unwrap();
        }
        tdb.store(b"big", &vec![1; 300 << 10], StoreMode::Insert)
            .unwrap();
        let mut seen = BTreeMap::new();
        let visited = tdb
            .traverse(TraverseKind::Read, |_, key, data| {
                let i = seen.len() as u32;
                assert!(seen.insert(key.to_vec(), data.len()).is_none(), "twice");
                if i.is_multiple_of(50) {
                    // Another handle deletes odd keys, new ones come; even keys stay.
                    let _ = other.delete(&(i / 50 * 2 + 1).to_le_bytes());
                    other.store(&(i + 10_000).to_le_bytes(), b"new", StoreMode::Replace)?;
                }
                Ok(ControlFlow::Continue(()))
            })
            .unwrap();
        assert_eq!(visited as usize, seen.len());
        assert_eq!(seen.get(&b"big"[..]), Some(&(300 << 10)));
        assert!(
            (0..3000u32)
                .step_by(2)
                .all(|i| seen.contains_key(&i.to_le_bytes()[..]))
        );
        let stop = tdb
            .traverse(TraverseKind::Read, |_, _, _| Ok(ControlFlow::Break(())))
            .unwrap();
        assert_eq!(stop, 1);
        // Nothing is left locked.
        other.lock_all(LockKind::Exclusive).unwrap();
        other.unlock_all().unwrap();
        assert_eq!(
            tdb.fetch_with(b"big", <[u8]>::len).unwrap(),
            Some(300 << 10)
        );
        assert_eq!(tdb.fetch_with(b"none", <[u8]>::len).unwrap(), None);
        let mut into = b"before".to_vec();
        assert!(tdb.fetch_into(&2u32.to_le_bytes(), &mut into).unwrap());
        assert_eq!(into, b"before\0\0\0\0\0\0\0");
        tdb.check().unwrap();
    }
}
