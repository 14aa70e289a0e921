//! The files of spec/database.md H.4, byte for byte.

use std::fmt::Write as _;
use std::path::Path;

use ctdb_db::{Error, OpenFlags, OpenOptions, StoreMode, Tdb};
use sha2::{Digest, Sha256};

fn create(path: &Path, flags: OpenFlags, hash_size: u32) -> Tdb {
    let options = OpenOptions {
        flags,
        hash_size,
        create: true,
        ..OpenOptions::default()
    };
    Tdb::open(path, &options).unwrap()
}

fn put(tdb: &mut Tdb, key: &str, data: &str) {
    tdb.store(key.as_bytes(), data.as_bytes(), StoreMode::Replace)
        .unwrap();
}

fn sha(path: &Path) -> String {
    Sha256::digest(std::fs::read(path).unwrap())
        .iter()
        .fold(String::new(), |mut s, b| {
            write!(s, "{b:02x}").unwrap();
            s
        })
}

fn three(tdb: &mut Tdb) {
    put(tdb, "hello", "world");
    put(tdb, "key1", "value-one");
    put(tdb, "key2", "v2");
}

#[test]
fn files_of_h_4_7() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tdb");
    create(&path, OpenFlags::empty(), 2);
    assert_eq!(
        sha(&path),
        "6e5deada745e37b404c02401c3aa11404cb8562acf6d278362426f6353af7e9e"
    );

    let path = dir.path().join("b.tdb");
    let mut tdb = create(&path, OpenFlags::empty(), 2);
    three(&mut tdb);
    tdb.delete(b"key1").unwrap();
    assert_eq!(
        sha(&path),
        "c204e9bba7d90c289ef4f4ffd293238d2b99eae712e4d9ebeb376aa5b9b986da"
    );
    let report = tdb.check().unwrap();
    assert_eq!(
        (report.used, report.dead, report.free, report.lost_bytes),
        (2, 0, 2, 0)
    );

    let path = dir.path().join("c.tdb");
    three(&mut create(&path, OpenFlags::INCOMPATIBLE_HASH, 2));
    assert_eq!(
        sha(&path),
        "79cffd89784293974dfedea6bb29557628c39c1ba81f9326e76f596d8b457e85"
    );

    let path = dir.path().join("d.tdb");
    let flags = OpenFlags::INCOMPATIBLE_HASH
        | OpenFlags::CLEAR_IF_FIRST
        | OpenFlags::NOSYNC
        | OpenFlags::SEQNUM
        | OpenFlags::VOLATILE;
    let mut tdb = create(&path, flags, 2);
    three(&mut tdb);
    tdb.delete(b"key1").unwrap();
    assert_eq!(
        sha(&path),
        "80f17968d0e291c2af4375c764be64955ffba9d156c1a46c0fd9a107eb287417"
    );
    assert_eq!(tdb.sequence_number().unwrap(), 4);
    assert_eq!(tdb.check().unwrap().dead, 1);

    let path = dir.path().join("e.tdb");
    put(&mut create(&path, OpenFlags::empty(), 0), "hello", "world");
    assert_eq!(
        sha(&path),
        "2c5bb325b1a67010f1cdc639e8b9df35533ae6ded0ee0b78e65be3a07cb514a9"
    );
}

/// H.4.5: header, place and size of the first recovery area.
#[test]
fn a_first_transaction_leaves_the_recovery_area_of_h_4_5() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.tdb");
    let mut tdb = create(&path, OpenFlags::INCOMPATIBLE_HASH, 2);
    let mut transaction = tdb.transaction().unwrap();
    put(&mut transaction, "hello", "world");
    transaction.commit().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 421_888);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(word(0x2c), 0x2000);
    let area: Vec<u32> = (0..6).map(|i| word(0x2000 + 4 * i)).collect();
    assert_eq!(area, [0, 413_672, 180, 4108, 0, 0]);
    assert_eq!(tdb.fetch(b"hello").unwrap().as_deref(), Some(&b"world"[..]));
    assert_eq!(tdb.check().unwrap().recovery_bytes, 413_696);
}

#[test]
fn store_modes_append_and_delete() {
    let mut tdb = Tdb::internal(&OpenOptions::default()).unwrap();
    assert!(matches!(
        tdb.store(b"k", b"v", StoreMode::Modify),
        Err(Error::NotFound)
    ));
    tdb.store(b"k", b"v", StoreMode::Insert).unwrap();
    assert!(matches!(
        tdb.store(b"k", b"w", StoreMode::Insert),
        Err(Error::Exists)
    ));
    tdb.append(b"k", b"1").unwrap();
    tdb.append(b"new", b"2").unwrap();
    assert_eq!(tdb.fetch(b"k").unwrap().unwrap(), b"v1");
    assert_eq!(tdb.fetch(b"new").unwrap().unwrap(), b"2");
    tdb.store(b"k", &[7; 10_000], StoreMode::Modify).unwrap();
    assert_eq!(tdb.fetch(b"k").unwrap().unwrap(), [7; 10_000]);
    tdb.delete(b"k").unwrap();
    assert!(matches!(tdb.delete(b"k"), Err(Error::NotFound)));
    assert!(!tdb.exists(b"k").unwrap());
    tdb.store(b"", b"", StoreMode::Insert).unwrap();
    assert_eq!(tdb.fetch(b"").unwrap().unwrap(), b"");
    tdb.wipe_all().unwrap();
    assert_eq!(tdb.check().unwrap().used, 0);
}
