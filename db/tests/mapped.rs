//! The mapped file: growth by others, truncation under us at any moment, prepared commits.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

#[path = "common/files.rs"]
mod files;

use ctdb_db::{Error, LockKind, OpenFlags, StoreMode, Tdb, TraverseKind};
use files::{all, open};

fn put(tdb: &mut Tdb, key: &str, data: &[u8]) {
    tdb.store(key.as_bytes(), data, StoreMode::Replace).unwrap();
}

/// With and without a map, one handle follows what the other grows, far beyond any reserve.
#[test]
fn growth_by_others_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tdb");
    for (ours, theirs) in [
        (OpenFlags::empty(), OpenFlags::NOMMAP),
        (OpenFlags::NOMMAP, OpenFlags::empty()),
        (OpenFlags::empty(), OpenFlags::empty()),
    ] {
        let (mut a, mut b) = (open(&path, ours), open(&path, theirs));
        for i in 0..200u32 {
            let big = vec![i as u8; 1 + 40_000 * (i % 3) as usize];
            put(&mut a, &format!("a{i}"), &big);
            put(&mut b, &format!("b{i}"), &big);
            assert_eq!(a.fetch(format!("b{i}").as_bytes()).unwrap().unwrap(), big);
            assert_eq!(b.fetch(format!("a{i}").as_bytes()).unwrap().unwrap(), big);
        }
        assert_eq!(all(&mut a), all(&mut b));
        a.check().unwrap();
        b.check().unwrap();
    }
    assert!(std::fs::metadata(&path).unwrap().len() > 8 << 20);
}

/// Handles of several threads count changes without losing one (A.8.1).
#[test]
fn no_count_of_the_sequence_number_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tdb");
    for flags in [
        OpenFlags::SEQNUM,
        OpenFlags::SEQNUM | OpenFlags::CONVERT,
        OpenFlags::SEQNUM | OpenFlags::MUTEX_LOCKING,
    ] {
        let path = path.with_extension(flags.bits().to_string());
        let mut tdb = open(&path, flags);
        thread::scope(|scope| {
            for t in 0..3 {
                let path = &path;
                scope.spawn(move || {
                    let mut tdb = open(path, flags);
                    for i in 0..300 {
                        put(&mut tdb, &format!("key{t}"), &[i as u8]);
                    }
                });
            }
        });
        assert_eq!(tdb.sequence_number().unwrap(), 900, "{flags:?}");
    }
}

type Operation = fn(&mut Tdb) -> Result<(), Error>;

/// Whatever the operation and wherever the cut: an error that names offset and fault.
#[test]
fn a_file_truncated_under_the_map_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let operations: [(&str, Operation); 7] = [
        ("fetch", |tdb| tdb.fetch(b"key7").map(drop)),
        ("store", |tdb| {
            tdb.store(b"key7", &[1; 900], StoreMode::Replace)
        }),
        ("new", |tdb| {
            tdb.store(b"new", &vec![1; 20_000], StoreMode::Insert)
        }),
        ("delete", |tdb| tdb.delete(b"key7")),
        ("traverse", |tdb| {
            tdb.traverse(TraverseKind::Write, |_, _, _| Ok(ControlFlow::Continue(())))
                .map(drop)
        }),
        ("check", |tdb| tdb.check().map(drop)),
        ("transaction", |tdb| {
            tdb.transaction_start()?;
            tdb.store(b"key7", &[1; 900], StoreMode::Replace)?;
            tdb.transaction_commit()
        }),
    ];
    let mut hit = 0;
    for (name, operation) in operations {
        for cut in [0u64, 100, 180, 4096, 8192, 20_000] {
            for in_transaction in [false, true] {
                let path = dir.path().join(format!("{name}.{cut}.{in_transaction}"));
                let mut tdb = open(&path, OpenFlags::empty());
                for i in 0..60 {
                    put(&mut tdb, &format!("key{i}"), &[i; 500]);
                }
                if in_transaction {
                    tdb.transaction_start().unwrap();
                }
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(cut)
                    .unwrap();
                match operation(&mut tdb) {
                    // What it needed was still there, or it found nothing in zeros.
                    Ok(()) => {}
                    Err(Error::Corrupt { .. } | Error::NotFound | Error::NoSpace { .. }) => {
                        hit += 1;
                    }
                    Err(error) => panic!("{name} cut at {cut}: {error}"),
                }
                // A store can have made a sound file of what was left.
                let Err(error) = tdb.check() else { continue };
                let told = matches!(error, Error::Corrupt { .. } | Error::Header { .. });
                assert!(told, "{error}");
            }
        }
    }
    assert!(hit > 60, "{hit}");
}

/// So that a failing test ends too.
struct Stop<'a>(&'a AtomicBool);
impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Somebody cuts and restores the file all the time while we use it.
#[test]
fn a_file_that_comes_and_goes_never_crashes_us() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tdb");
    let mut tdb = open(&path, OpenFlags::NOLOCK);
    for i in 0..200 {
        put(&mut tdb, &format!("key{i}"), &[i; 700]);
    }
    let image = std::fs::read(&path).unwrap();
    let stop = AtomicBool::new(false);
    let (mut good, mut bad) = (0u32, 0u32);
    thread::scope(|scope| {
        scope.spawn(|| {
            let file = File::options().write(true).open(&path).unwrap();
            let mut cut = 0;
            while !stop.load(Ordering::Relaxed) {
                cut = (cut + 7919) % image.len() as u64;
                file.set_len(cut).unwrap();
                file.write_all_at(&image, 0).unwrap();
            }
        });
        let _stop = Stop(&stop);
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(1500) {
            for i in 0..200 {
                match tdb.fetch(format!("key{i}").as_bytes()) {
                    Ok(_) => good += 1,
                    Err(Error::Corrupt { .. }) => bad += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    assert!(good > 0 && bad > 0, "{good} {bad}");
    assert_eq!(tdb.fetch(b"key7").unwrap().unwrap(), [7; 700]);
    tdb.check().unwrap();
}

#[test]
fn a_prepared_commit_is_committed_or_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    for flags in [OpenFlags::empty(), OpenFlags::MUTEX_LOCKING] {
        let path = dir.path().join(format!("{}.tdb", flags.bits()));
        let mut tdb = open(&path, flags);
        put(&mut tdb, "a", b"old");
        let old = all(&mut tdb);
        for round in 0..4 {
            let big = vec![round; 30_000 * round as usize];
            tdb.transaction_start().unwrap();
            put(&mut tdb, "a", b"new");
            put(&mut tdb, "b", &big);
            tdb.transaction_prepare_commit().unwrap();
            let refused = [
                tdb.store(b"c", b"", StoreMode::Replace).unwrap_err(),
                tdb.delete(b"a").unwrap_err(),
                tdb.wipe_all().unwrap_err(),
                tdb.transaction_start().unwrap_err(),
                tdb.transaction_prepare_commit().unwrap_err(),
            ];
            assert!(
                refused.iter().all(|e| matches!(e, Error::Prepared)),
                "{refused:?}"
            );
            assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"new");
            tdb.transaction_cancel().unwrap();
            assert_eq!(all(&mut tdb), old);
            let report = tdb.check().unwrap();
            assert_eq!(report.lost_bytes, 0, "round {round}: {report:?}");
        }
        // One that is dropped is recovered by the next.
        tdb.transaction_start().unwrap();
        put(&mut tdb, "a", b"new");
        tdb.transaction_prepare_commit().unwrap();
        drop(tdb);
        let mut tdb = open(&path, flags);
        assert_eq!(all(&mut tdb), old);
        // Nothing changed, nothing to prepare.
        tdb.transaction_start().unwrap();
        tdb.transaction_prepare_commit().unwrap();
        tdb.transaction_commit().unwrap();
        let before = SystemTime::now() - Duration::from_secs(3600);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(before)
            .unwrap();
        tdb.transaction_start().unwrap();
        put(&mut tdb, "a", b"new");
        tdb.transaction_start().unwrap();
        put(&mut tdb, "b", b"nested");
        tdb.transaction_prepare_commit().unwrap();
        put(&mut tdb, "c", b"the inner one prepares nothing");
        tdb.transaction_commit().unwrap();
        tdb.transaction_prepare_commit().unwrap();
        tdb.transaction_commit().unwrap();
        assert_eq!(all(&mut tdb).len(), 3);
        let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
        assert!(
            modified > before + Duration::from_secs(1800),
            "A.10 step 11"
        );
        tdb.check().unwrap();
        tdb.lock_all(LockKind::Exclusive).unwrap();
    }
}

/// Found by a fuzz target: what is added to a file of odd length begins where records may.
#[test]
fn an_odd_end_of_the_file_is_stepped_over() {
    let dir = tempfile::tempdir().unwrap();
    for odd in 1..4 {
        let path = dir.path().join(format!("{odd}.tdb"));
        drop(open(&path, OpenFlags::empty()));
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(file.metadata().unwrap().len() + odd).unwrap();
        let mut tdb = open(&path, OpenFlags::empty());
        put(&mut tdb, "first", &[1; 100]);
        tdb.check().unwrap();
        file.set_len(file.metadata().unwrap().len() + odd).unwrap();
        tdb.transaction_start().unwrap();
        put(&mut tdb, "a", &[2; 9000]);
        tdb.transaction_commit().unwrap();
        tdb.check().unwrap();
        tdb.transaction_start().unwrap();
        put(&mut tdb, "b", &vec![3; 300_000]);
        tdb.transaction_prepare_commit().unwrap();
        drop(tdb);
        let mut tdb = open(&path, OpenFlags::empty());
        assert_eq!(all(&mut tdb).len(), 2);
        tdb.check().unwrap();
    }
}
