//! The files of spec/database.md H.4, byte for byte.

use std::fmt::Write as _;
use std::path::Path;

use ctdb_db::hash::jenkins;
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

/// H.2: a database id is the Jenkins hash of the name with its NUL.
#[test]
fn database_ids_of_h_2() {
    for (name, id) in [
        ("locking.tdb", 0x7a19_d84du32),
        ("brlock.tdb", 0x4e66_c2b2u32),
        ("g_lock.tdb", 0x4d2a_432bu32),
        ("ctdb.tdb", 0x6645_c6c4u32),
        ("notify.tdb", 0x21a4_5b41u32),
        ("notify_index.tdb", 0xaf02_9e9du32),
        ("smbXsrv_open_global.tdb", 0x66f7_1b8cu32),
        ("smbXsrv_session_global.tdb", 0x6b06_a26du32),
        ("smbXsrv_tcon_global.tdb", 0x68c1_2c2cu32),
        ("smbXsrv_version_global.tdb", 0x521b_7544u32),
        ("smbXsrv_client_global.tdb", 0x477d_2e20u32),
        ("leases.tdb", 0x0691_6e77u32),
        ("serverid.tdb", 0x9ec2_a880u32),
        ("dbwrap_watchers.tdb", 0x6afb_8c09u32),
        ("secrets.tdb", 0x7132_c184u32),
        ("passdb.tdb", 0x3ef1_9640u32),
        ("registry.tdb", 0x6cf2_837du32),
        ("group_mapping.tdb", 0xa141_3774u32),
        ("account_policy.tdb", 0x2ca2_51cfu32),
        ("share_info.tdb", 0xc307_8fbau32),
        ("printer_list.tdb", 0x5bcf_cbd7u32),
        ("netlogon_creds_cli.tdb", 0x2d60_8c16u32),
        ("idmap2.tdb", 0x866c_598fu32),
        ("autorid.tdb", 0x1313_cc83u32),
        ("xattr.tdb", 0x8eaa_29d6u32),
        ("smbd_cleanupd.tdb", 0x17be_843cu32),
        ("messages.tdb", 0x479b_e635u32),
        ("sessionid.tdb", 0x417c_27f6u32),
        ("connections.tdb", 0x6547_17d0u32),
        ("test.tdb", 0xc445_c6abu32),
        ("ro.tdb", 0x1042_392cu32),
        ("pers.tdb", 0x3880_c3f1u32),
        ("repl.tdb", 0xa870_bacfu32),
        ("ctdb_iscsi", 0xe17d_3bebu32),
    ] {
        let with_nul = [name.as_bytes(), b"\0"].concat();
        assert_eq!(jenkins(&with_nul), id, "{name}");
    }
}

/// H.3: the location master's index is the Jenkins hash of the key modulo the size of the map.
#[test]
fn location_masters_of_h_3() {
    for (key, hash, indices) in [
        ("a", 0x58d6_8708u32, [0, 0, 1, 0]),
        ("b", 0x7ff5_c395u32, [0, 1, 2, 1]),
        ("hello", 0x34cb_bc6eu32, [0, 0, 1, 2]),
        ("key1", 0x1de0_df49u32, [0, 1, 0, 1]),
        ("key2", 0x70b6_c153u32, [0, 1, 0, 3]),
        ("key3", 0x7d24_72efu32, [0, 1, 1, 3]),
        ("record-42", 0x9152_97a9u32, [0, 1, 1, 1]),
    ] {
        assert_eq!(jenkins(key.as_bytes()), hash, "{key}");
        assert_eq!([1, 2, 3, 4].map(|size| hash % size), indices, "{key}");
    }
}

/// H.4.6: a commit that dies after its second sync leaves this recovery area.
#[test]
fn a_crashed_commit_leaves_the_area_of_h_4_6() {
    let dir = tempfile::tempdir().unwrap();
    for fresh in [false, true] {
        let path = dir.path().join(format!("{fresh}.tdb"));
        let mut tdb = create(&path, OpenFlags::INCOMPATIBLE_HASH, 2);
        put(&mut tdb, "base", "old");
        if !fresh {
            tdb.transaction_start().unwrap();
            put(&mut tdb, "x", "committed");
            tdb.transaction_commit().unwrap();
        }
        tdb.transaction_start().unwrap();
        put(&mut tdb, "base", "newvalue-longer");
        put(&mut tdb, "hello", "world");
        tdb.transaction_prepare_commit().unwrap();
        drop(tdb);
        let bytes = std::fs::read(&path).unwrap();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let area = word(0x2c) as usize;
        let words: Vec<u32> = (0..8).map(|i| word(area + 4 * i)).collect();
        if fresh {
            assert_eq!((area, words[2]), (4096, 4096), "old end = recovery offset");
        } else {
            assert_eq!(area, 0x1000);
            let want = [0, 413_672, 417_792, 4108, 0, 0xf53b_c0e7, 0, 4096];
            assert_eq!(words, want);
            assert_eq!(bytes[0x1020..0x1024], *b"TDB ");
            assert_eq!(word(0x2020), 413_696);
        }
        let mut tdb = create(&path, OpenFlags::empty(), 0);
        assert_eq!(tdb.fetch(b"base").unwrap().unwrap(), b"old");
        assert_eq!(tdb.fetch(b"hello").unwrap(), None);
        tdb.check().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        // Kept also when it was fresh, where libtdb forgets it.
        assert_eq!(
            u32::from_le_bytes(bytes[0x2c..0x30].try_into().unwrap()) as usize,
            area
        );
        assert_eq!(bytes[area + 20..area + 24], [0; 4], "not armed any more");
    }
}
