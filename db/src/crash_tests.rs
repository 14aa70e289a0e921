//! Commits cut off at every write and sync, and power cuts that lose any part of what was not
//! synced (spec/database.md A.10, A.11).

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use proptest::prelude::*;

use crate::backing::{Backing, Change};
use crate::format::{Header, RECOVERY_MAGIC};
use crate::{OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind};

pub(crate) type Content = BTreeMap<Vec<u8>, Vec<u8>>;

pub(crate) fn content(tdb: &mut Tdb) -> Content {
    let mut all = Content::new();
    tdb.traverse(TraverseKind::Read, |_, key, data| {
        assert!(all.insert(key.to_vec(), data.to_vec()).is_none());
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    all
}

pub(crate) fn recorded(image: &[u8]) -> Tdb {
    let header = Header::decode(image).unwrap();
    let backing = Backing::Recorded {
        bytes: image.to_vec(),
        log: Vec::new(),
        limit: u64::MAX,
    };
    let options = OpenOptions::default();
    Tdb::assemble(
        backing,
        Path::new("(test)"),
        &header,
        &options,
        OpenFlags::NOLOCK,
    )
    .unwrap()
}

pub(crate) fn put(tdb: &mut Tdb, key: &str, data: &[u8]) {
    tdb.store(key.as_bytes(), data, StoreMode::Replace).unwrap();
}

/// A commit: image before, its changes, content before and after.
struct Case {
    name: &'static str,
    image: Vec<u8>,
    log: Vec<Change>,
    old: Content,
    new: Content,
}

impl Case {
    /// Whether to look at step `i`: all near a sync, and some of the many blocks between.
    fn is_telling(&self, i: usize) -> bool {
        let near = self.log.iter().skip(i.saturating_sub(3)).take(7);
        i.is_multiple_of(8)
            || near
                .into_iter()
                .any(|change| matches!(change, Change::Sync))
    }

    /// The images that need recovery, by step.
    fn armed_images(&self) -> Vec<(usize, Vec<u8>)> {
        let mut image = self.image.clone();
        let mut armed = Vec::new();
        for (i, change) in self.log.iter().enumerate() {
            apply(&mut image, change);
            let area = recorded(&image).recovery_record().unwrap();
            if self.is_telling(i) && area.is_some_and(|(_, r)| r.magic == RECOVERY_MAGIC) {
                armed.push((i, image.clone()));
            }
        }
        armed
    }
}

fn case(name: &'static str, before: impl Fn(&mut Tdb), change: impl Fn(&mut Tdb)) -> Case {
    let options = OpenOptions {
        hash_size: 2,
        ..OpenOptions::default()
    };
    let mut tdb = Tdb::internal(&options).unwrap();
    before(&mut tdb);
    let image = tdb.bytes().unwrap().to_vec();
    let old = content(&mut tdb);
    let mut tdb = recorded(&image);
    let mut transaction = tdb.transaction().unwrap();
    change(&mut transaction);
    transaction.commit().unwrap();
    let new = content(&mut tdb);
    assert_ne!(old, new);
    Case {
        name,
        image,
        log: tdb.storage.take_log(),
        old,
        new,
    }
}

fn in_transaction(tdb: &mut Tdb, change: impl Fn(&mut Tdb)) {
    let mut transaction = tdb.transaction().unwrap();
    change(&mut transaction);
    transaction.commit().unwrap();
}

fn cases() -> &'static [Case] {
    static CASES: OnceLock<Vec<Case>> = OnceLock::new();
    CASES.get_or_init(build_cases)
}

fn build_cases() -> Vec<Case> {
    let base = |tdb: &mut Tdb| {
        put(tdb, "base", b"old");
        put(tdb, "gone", b"soon");
    };
    let change = |tdb: &mut Tdb| {
        put(tdb, "base", b"newvalue-longer");
        put(tdb, "hello", b"world");
        tdb.delete(b"gone").unwrap();
    };
    let much = |tdb: &mut Tdb| {
        for i in 0..40 {
            put(tdb, &format!("key{i}"), &[i; 3000]);
        }
    };
    vec![
        case("empty file", |_| {}, |tdb| put(tdb, "hello", b"world")),
        case("fresh area", base, change),
        case(
            "reused area",
            |tdb| {
                base(tdb);
                in_transaction(tdb, |tdb| put(tdb, "x", b"committed"));
            },
            change,
        ),
        case(
            "area grown in place",
            |tdb| {
                much(tdb);
                in_transaction(tdb, |tdb| put(tdb, "x", b"committed"));
            },
            |tdb| {
                for i in 0..40 {
                    put(tdb, &format!("key{i}"), &[i + 1; 3000]);
                }
            },
        ),
        case(
            "growing file with an area in its middle",
            |tdb| {
                base(tdb);
                in_transaction(tdb, |tdb| put(tdb, "x", b"committed"));
            },
            |tdb| {
                put(tdb, "big", &[9; 700_000]);
                change(tdb);
            },
        ),
        case(
            "area too small and not last",
            |tdb| {
                base(tdb);
                in_transaction(tdb, |tdb| put(tdb, "x", b"committed"));
                for i in 0..6 {
                    put(tdb, &format!("wide{i}"), &[i; 120_000]);
                }
            },
            |tdb| {
                for i in 0..6 {
                    put(tdb, &format!("wide{i}"), &[i + 1; 120_000]);
                }
                change(tdb);
            },
        ),
        case(
            "wipe",
            |tdb| {
                base(tdb);
                in_transaction(tdb, |tdb| put(tdb, "x", b"committed"));
            },
            |tdb| {
                tdb.wipe_all().unwrap();
                put(tdb, "only", b"one");
            },
        ),
    ]
}

pub(crate) fn apply(image: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write(at, data) => {
            let at = *at as usize;
            image[at..at + data.len()].copy_from_slice(data);
        }
        Change::Grow(size) => image.resize(*size as usize, 0),
        Change::Sync => {}
    }
}

/// What the next opener finds, after its recovery.
fn reopen(image: &[u8], name: &str) -> (Content, Vec<u8>) {
    let mut tdb = recorded(image);
    tdb.recover_if_needed().unwrap();
    assert!(
        !tdb.recover_if_needed().unwrap(),
        "{name}: recovery is over"
    );
    tdb.check()
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let content = content(&mut tdb);
    // And the file goes on living.
    in_transaction(&mut tdb, |tdb| put(tdb, "later", &[3; 9000]));
    tdb.check()
        .unwrap_or_else(|error| panic!("{name} after another commit: {error}"));
    let image = tdb.bytes().unwrap().to_vec();
    (content, image)
}

#[test]
fn a_process_dies_at_every_step_of_a_commit() {
    for case in cases() {
        let mut image = case.image.clone();
        let mut committed = false;
        for (i, change) in case.log.iter().enumerate() {
            let name = format!("{} step {i}", case.name);
            if !case.is_telling(i) {
                apply(&mut image, change);
                continue;
            }
            if let Change::Write(at, data) = change {
                // A write that got half way. An aligned word is written whole or not.
                let mut half = image.clone();
                apply(
                    &mut half,
                    &Change::Write(*at, data[..(data.len() / 2) & !3].to_vec()),
                );
                let found = reopen(&half, &name).0;
                assert!(
                    found == case.old || found == case.new,
                    "{name}, half: a mixture"
                );
            }
            apply(&mut image, change);
            let found = reopen(&image, &name).0;
            if committed {
                assert_eq!(found, case.new, "{name}: forgotten");
            } else {
                committed = found == case.new;
                assert!(committed || found == case.old, "{name}: a mixture");
            }
        }
        assert!(committed, "{}", case.name);
        let syncs = case
            .log
            .iter()
            .filter(|c| matches!(c, Change::Sync))
            .count();
        assert!((4..=5).contains(&syncs), "{}: {syncs} syncs", case.name);
    }
}

/// Recovery dies as well, at every write, or loses any part of what it had not synced.
#[test]
fn recovery_can_be_cut_off_and_done_again() {
    let mut random = 0x9E37_79B9_7F4A_7C15u64;
    for case in cases() {
        let armed = case.armed_images();
        assert!(!armed.is_empty(), "{}", case.name);
        for (i, start) in armed.iter().step_by(3) {
            let mut tdb = recorded(start);
            assert!(tdb.recover_if_needed().unwrap());
            let log = tdb.storage.take_log();
            let (mut image, mut synced) = (start.clone(), start.clone());
            let mut unsynced: Vec<&Change> = Vec::new();
            for (j, change) in log.iter().enumerate() {
                apply(&mut image, change);
                unsynced.push(change);
                if matches!(change, Change::Sync) {
                    synced.clone_from(&image);
                    unsynced.clear();
                }
                if j % 8 != 0 && j + 12 < log.len() {
                    continue;
                }
                let name = format!("{} step {i}, recovery step {j}", case.name);
                assert_eq!(reopen(&image, &name).0, case.old, "{name}");
                let mut cut = synced.clone();
                for change in &unsynced {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    if random & 1 == 0 {
                        apply(&mut cut, change);
                    }
                }
                assert_eq!(reopen(&cut, &name).0, case.old, "{name}, power cut");
            }
        }
    }
}

/// Who finds the crash has seen a shorter file than the one who died had: what is to be put back lies
/// beyond the end that it knows.
#[test]
fn a_handle_that_saw_a_shorter_file_recovers() {
    let options = OpenOptions {
        hash_size: 2,
        ..OpenOptions::default()
    };
    let mut tdb = Tdb::internal(&options).unwrap();
    in_transaction(&mut tdb, |tdb| {
        for i in 0..20 {
            put(tdb, &format!("wide{i}"), &[i; 3000]);
        }
    });
    let short = tdb.bytes().unwrap().to_vec();
    put(&mut tdb, "far", &vec![1; 1_400_000]);
    let long = tdb.bytes().unwrap().to_vec();
    let hash = tdb.hash.hash(b"far");
    let far = tdb.find(b"far", hash).unwrap().unwrap().offset;
    assert!(far as usize > short.len());
    let old = content(&mut tdb);
    let mut tdb = recorded(&long);
    in_transaction(&mut tdb, |tdb| put(tdb, "far", &[2; 200]));
    let case = Case {
        name: "far",
        image: long,
        log: tdb.storage.take_log(),
        old,
        new: content(&mut tdb),
    };
    let armed = case.armed_images();
    assert!(!armed.is_empty());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f.tdb");
    for (i, image) in armed {
        std::fs::write(&path, &short).unwrap();
        let mut tdb = Tdb::open(&path, &OpenOptions::default()).unwrap();
        // The others' work, in the same file.
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &image, 0).unwrap();
        let found = tdb.fetch(b"far");
        let found = found.unwrap_or_else(|error| panic!("step {i}: {error}"));
        assert_eq!(found.as_ref(), case.old.get(b"far".as_slice()), "step {i}");
        tdb.check().unwrap();
        assert!(content(&mut tdb) == case.old, "step {i}");
    }
}

/// After our recovery libtdb's own check is content, also after further commits: no I.1.
#[test]
fn libtdb_finds_our_recoveries_sound() {
    let dir = tempfile::tempdir().unwrap();
    for (n, case) in cases().iter().enumerate() {
        for (i, image) in case.armed_images().iter().step_by(4) {
            let path = dir.path().join(format!("{n}-{i}.tdb"));
            std::fs::write(&path, reopen(image, case.name).1).unwrap();
            let output = Command::new("tdbtool")
                .arg(&path)
                .arg("check")
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                text.contains("integrity is OK"),
                "{} step {i}: {text}",
                case.name
            );
        }
    }
}

/// libtdb recovers our crashes: the same content as ours, at every step.
#[test]
fn libtdb_recovers_our_crashes() {
    const SCRIPT: &str = "
import sys, tdb, os
for path in sys.argv[1:]:
    t = tdb.Tdb(path, 0, 0, os.O_RDWR, 0o600)
    print(' '.join(sorted(k.hex() + '=' + t[k].hex() for k in t)))
    t.close()
";
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(String::new(), |s, b| s + &format!("{b:02x}"))
    };
    for case in cases() {
        let dir = tempfile::tempdir().unwrap();
        let mut image = case.image.clone();
        let (mut paths, mut want) = (Vec::new(), Vec::new());
        for (i, change) in case.log.iter().enumerate() {
            apply(&mut image, change);
            if !case.is_telling(i) {
                continue;
            }
            let path = dir.path().join(format!("{i}.tdb"));
            std::fs::write(&path, &image).unwrap();
            paths.push(path);
            let mut records: Vec<_> = reopen(&image, case.name)
                .0
                .iter()
                .map(|(k, v)| format!("{}={}", hex(k), hex(v)))
                .collect();
            records.sort();
            want.push(records.join(" "));
        }
        let output = Command::new("/usr/bin/python3")
            .args(["-c", SCRIPT])
            .args(&paths)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{} (python3-tdb installed?): {errors}",
            case.name
        );
        let found = String::from_utf8(output.stdout).unwrap();
        for (i, (found, want)) in found.lines().zip(&want).enumerate() {
            assert_eq!(found, want, "{} step {i}", case.name);
        }
        assert_eq!(found.lines().count(), want.len());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// The power fails: of what was written after the last sync any pages are lost.
    #[test]
    fn a_power_cut_leaves_old_or_new(which in 0usize..7, cut in any::<prop::sample::Index>(), seed in any::<u64>(), shorter in any::<bool>()) {
        let case = &cases()[which];
        let end = cut.index(case.log.len() + 1);
        let synced = case.log[..end].iter().rposition(|c| matches!(c, Change::Sync)).unwrap_or(0);
        let mut image = case.image.clone();
        for change in &case.log[..synced] {
            apply(&mut image, change);
        }
        let mut random = seed | 1;
        for change in &case.log[synced..end] {
            match change {
                Change::Write(at, data) => {
                    let mut done = 0;
                    while done < data.len() {
                        let at = at + done as u64;
                        let piece = (4096 - at as usize % 4096).min(data.len() - done);
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        if random & 1 == 0 {
                            apply(&mut image, &Change::Write(at, data[done..done + piece].to_vec()));
                        }
                        done += piece;
                    }
                }
                other => apply(&mut image, other),
            }
        }
        let grew = case.log[synced..end].iter().any(|c| matches!(c, Change::Grow(_)));
        if shorter && grew {
            // The new length is lost too, and with it what was written beyond the old.
            let mut kept = case.image.clone();
            for change in &case.log[..synced] {
                apply(&mut kept, change);
            }
            image.truncate(kept.len());
        }
        let (found, _) = reopen(&image, case.name);
        prop_assert!(found == case.old || found == case.new, "{} cut at {}: a mixture", case.name, end);
    }
}

/// The disk is full: what was there stays, in every mode, and the file is sound.
#[test]
fn a_store_without_room_keeps_the_old_record() {
    for max_dead in [0, 5] {
        let options = OpenOptions {
            hash_size: 2,
            ..OpenOptions::default()
        };
        let mut tdb = Tdb::internal(&options).unwrap();
        put(&mut tdb, "key", &[1; 3000]);
        put(&mut tdb, "other", &[2; 3000]);
        let image = tdb.bytes().unwrap().to_vec();
        let header = Header::decode(&image).unwrap();
        let limit = image.len() as u64;
        let backing = Backing::Recorded {
            bytes: image,
            log: Vec::new(),
            limit,
        };
        let mut tdb = Tdb::assemble(
            backing,
            Path::new("(test)"),
            &header,
            &options,
            OpenFlags::NOLOCK,
        )
        .unwrap();
        tdb.set_max_dead(max_dead);
        let old = content(&mut tdb);
        for len in [1_000_000, 2_000_000] {
            let error = tdb
                .store(b"key", &vec![3; len], StoreMode::Replace)
                .unwrap_err();
            assert!(matches!(error, crate::Error::NoSpace { .. }), "{error}");
            assert_eq!(content(&mut tdb), old);
            tdb.check().unwrap();
        }
        let mut transaction = tdb.transaction().unwrap();
        put(&mut transaction, "key", &vec![4; 1_000_000]);
        let error = transaction.commit().unwrap_err();
        assert!(matches!(error, crate::Error::NoSpace { .. }), "{error}");
        assert_eq!(content(&mut tdb), old);
        assert_eq!(tdb.check().unwrap().lost_bytes, 0);
    }
}
