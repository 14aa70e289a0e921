//! A full disk: what cannot be written is an error that says so, and the file stays sound.
//!
//! Each test runs itself again in a mount namespace of its own, with a small tmpfs to fill; nothing is
//! left when it ends, however it ends.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "common/files.rs"]
mod files;

use ctdb_db::{Error, OpenFlags, OpenOptions, StoreMode, Tdb};
use files::{all as content, open};

/// Where the small file system is, for the process inside.
const FOLDER: &str = "CTDB_TEST_SMALL_DISK";

/// The folder of a file system of 16 MiB. `None`: outside; the test was run inside, and held.
fn small_disk(test: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(folder.into());
    }
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let out = command
        .args(["--mount", "sh", "-ec"])
        .arg("mount -t tmpfs -o size=16m none \"$1\"; exec \"$2\" --exact \"$3\" --nocapture")
        .arg("sh")
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .arg(test)
        .env(FOLDER, dir.path())
        .output()
        .expect("this test needs unshare (util-linux)");
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success() && text.contains("1 passed"),
        "{}: {text}",
        out.status
    );
    None
}

const KINDS: [OpenFlags; 4] = [
    OpenFlags::empty(),
    OpenFlags::VOLATILE,
    OpenFlags::NOMMAP,
    OpenFlags::MUTEX_LOCKING,
];

type Content = BTreeMap<Vec<u8>, Vec<u8>>;

/// The disk without any room, until it is dropped.
struct Full(PathBuf);

impl Full {
    fn fill(folder: &Path) -> Self {
        let path = folder.join("filler");
        let mut file = File::create(&path).unwrap();
        let piece = vec![1; 1 << 16];
        let full = loop {
            // What fits of a piece is written first.
            if let Err(error) = file.write_all(&piece) {
                break error;
            }
        };
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        Self(path)
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A copy in which every page of zeros is a hole, as a backup makes it.
fn sparse(from: &Path, to: &Path) {
    let bytes = std::fs::read(from).unwrap();
    let file = File::create(to).unwrap();
    for (i, page) in bytes.chunks(4096).enumerate() {
        if page.iter().any(|b| *b != 0) {
            file.write_all_at(page, i as u64 * 4096).unwrap();
        }
    }
    file.set_len(bytes.len() as u64).unwrap();
    let metadata = file.metadata().unwrap();
    assert!(metadata.blocks() * 512 < metadata.size(), "no hole");
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::NoSpace { .. })
}

/// A file with 3 MiB of free space that is a hole, and a record whose data is one.
fn with_holes(folder: &Path, flags: OpenFlags) -> (PathBuf, Content) {
    let made = folder.join("made.tdb");
    let path = folder.join("sparse.tdb");
    {
        let mut tdb = open(&made, flags);
        for i in 0..40u8 {
            let data = vec![i; 50 * usize::from(i)];
            tdb.store(format!("key{i}").as_bytes(), &data, StoreMode::Insert)
                .unwrap();
        }
        tdb.store(b"zeros", &vec![0; 30_000], StoreMode::Insert)
            .unwrap();
    }
    sparse(&made, &path);
    std::fs::remove_file(&made).unwrap();
    let content = content(&mut open(&path, flags));
    assert_eq!(content.len(), 41);
    (path, content)
}

/// Every operation that hits a hole on a full disk: an error that says so, the content as it was, no
/// space lost; reading goes on. With room again all of it works.
#[test]
fn holes_that_cannot_be_filled() {
    let Some(folder) = small_disk("holes_that_cannot_be_filled") else {
        return;
    };
    for flags in KINDS {
        let (path, old) = with_holes(&folder, flags);
        let mut tdb = open(&path, flags);
        let full = Full::fill(&folder);
        let mut refused = 0;
        let mut now = old.clone();
        let mut tried = |tdb: &mut Tdb, key: &str, data: &[u8], mode| {
            let key = key.as_bytes();
            match tdb.store(key, data, mode) {
                Ok(()) => {
                    now.insert(key.to_vec(), data.to_vec());
                }
                Err(error) => {
                    assert!(is_full(&error), "{flags:?} {error}");
                    refused += 1;
                }
            }
            assert_eq!(content(tdb), now, "{flags:?}");
            assert_eq!(tdb.check().unwrap().lost_bytes, 0, "{flags:?}");
        };
        for len in [5_000, 20_000, 70_000, 400_000] {
            tried(&mut tdb, "new", &vec![1; len], StoreMode::Replace);
            tried(&mut tdb, "key3", &vec![2; len], StoreMode::Modify);
            tried(&mut tdb, "key39", &vec![3; len], StoreMode::Replace);
            tried(
                &mut tdb,
                &format!("newer{len}"),
                &vec![3; len],
                StoreMode::Insert,
            );
        }
        // In its place: nothing of it may be changed.
        tried(&mut tdb, "zeros", &vec![7; 30_000], StoreMode::Replace);
        // It needs another place, and is a hole itself.
        tried(&mut tdb, "zeros", &vec![7; 70_000], StoreMode::Replace);
        tried(&mut tdb, "zeros", &vec![0; 70_000], StoreMode::Modify);
        assert!(refused >= 12, "{flags:?}: {refused}");
        let error = tdb.append(b"key5", &vec![5; 30_000]).unwrap_err();
        assert!(is_full(&error), "{flags:?} {error}");
        assert_eq!(content(&mut tdb), now);

        // A commit over holes brings the old content back, and nobody has to recover it.
        for key in ["zeros", "key7", "other"] {
            let mut transaction = tdb.transaction().unwrap();
            transaction
                .store(key.as_bytes(), &vec![9; 30_000], StoreMode::Replace)
                .unwrap();
            let error = transaction.commit().unwrap_err();
            assert!(is_full(&error), "{flags:?} {error}");
            let mut other = open(&path, flags);
            assert_eq!(content(&mut other), now, "{flags:?}");
            other.check().unwrap();
        }
        drop(full);
        for key in ["zeros", "key7", "other"] {
            let mut transaction = tdb.transaction().unwrap();
            transaction
                .store(key.as_bytes(), &vec![9; 30_000], StoreMode::Replace)
                .unwrap();
            transaction.commit().unwrap();
            now.insert(key.as_bytes().to_vec(), vec![9; 30_000]);
        }
        assert_eq!(content(&mut tdb), now, "{flags:?}");
        assert_eq!(tdb.check().unwrap().lost_bytes, 0, "{flags:?}");
        drop(tdb);
        std::fs::remove_file(&path).unwrap();
    }
}

/// A file as large as offsets reach: what still fits is stored, then there is no room, and nothing that
/// was there is lost; a longer file is refused.
#[test]
fn the_largest_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.tdb");
    let hash = {
        let tdb = open(&path, OpenFlags::INCOMPATIBLE_HASH);
        assert_eq!(tdb.chain_of(b"huge"), tdb.hash_kind().hash(b"huge") % 7);
        tdb.hash_kind().hash(b"huge")
    };
    // One record of nearly 4 GiB, a hole but for its ends.
    let start = 172 + 4 * 7u32;
    let end = u32::MAX - 8191;
    let rec_len = end - start - 24;
    let words = [0, rec_len, 4, rec_len - 8, hash, 0x2601_1999];
    let file = File::options().write(true).open(&path).unwrap();
    let put = |at: u32, word: u32| file.write_all_at(&word.to_ne_bytes(), at.into()).unwrap();
    for (i, word) in words.into_iter().enumerate() {
        put(start + 4 * i as u32, word);
    }
    file.write_all_at(b"huge", (start + 24).into()).unwrap();
    put(end - 4, 24 + rec_len);
    put(172 + 4 * (hash % 7), start);
    file.set_len(end.into()).unwrap();

    for flags in [OpenFlags::empty(), OpenFlags::NOMMAP] {
        let mut tdb = open(&path, flags);
        assert_eq!(tdb.check().unwrap().lost_bytes, 0);
        let mut stored: Vec<u32> = (0..200u32)
            .filter(|i| tdb.exists(&i.to_ne_bytes()).unwrap())
            .collect();
        let full = loop {
            let i = stored.len() as u32;
            match tdb.store(&i.to_ne_bytes(), &[i as u8; 100], StoreMode::Insert) {
                Ok(()) => stored.push(i),
                Err(error) => break error,
            }
        };
        assert!(is_full(&full), "{full}");
        assert!((40..60).contains(&stored.len()), "{}", stored.len());
        assert_eq!(tdb.map_size(), u32::MAX - 3);
        let error = tdb
            .store(&7u32.to_ne_bytes(), &[0; 3000], StoreMode::Replace)
            .unwrap_err();
        assert!(is_full(&error), "{error}");
        let mut transaction = tdb.transaction().unwrap();
        transaction
            .store(&7u32.to_ne_bytes(), &[0; 10], StoreMode::Replace)
            .unwrap();
        // There is no room for a recovery area.
        let error = transaction.commit().unwrap_err();
        assert!(is_full(&error), "{error}");
        for i in &stored {
            let found = tdb.fetch(&i.to_ne_bytes()).unwrap();
            assert_eq!(found.as_deref(), Some(&[*i as u8; 100][..]), "{i}");
        }
        let error = tdb.fetch(b"huge").unwrap_err();
        assert!(matches!(error, Error::TooLarge(_)), "{error}");
        let error = tdb.repack().unwrap_err();
        assert!(matches!(error, Error::TooLarge(_)), "{error}");
        assert_eq!(tdb.check().unwrap().used, stored.len() as u64 + 1);
    }
    // What others made of it: an end where no record can be, then beyond all offsets.
    for (len, sound) in [(u32::MAX.into(), true), (1 << 32, false), (5 << 30, false)] {
        file.set_len(len).unwrap();
        let options = OpenOptions::default();
        match Tdb::open(&path, &options) {
            Ok(mut tdb) => {
                assert!(sound, "{len}");
                assert!(is_full(
                    &tdb.store(b"x", &[0; 3000], StoreMode::Insert).unwrap_err()
                ));
                assert_eq!(tdb.check().unwrap().lost_bytes, 3);
            }
            Err(error) => {
                let too_large = matches!(error, Error::FileTooLarge { size, .. } if size == len);
                assert!(!sound && too_large, "{error}");
            }
        }
    }
}
