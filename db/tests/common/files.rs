//! Files that several tests open alike.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use ctdb_db::{OpenFlags, OpenOptions, Tdb, TraverseKind};

/// Opens a file of seven chains, made if it is not there.
pub fn open(path: &Path, flags: OpenFlags) -> Tdb {
    let options = OpenOptions {
        flags,
        hash_size: 7,
        create: true,
        ..OpenOptions::default()
    };
    Tdb::open(path, &options).unwrap()
}

/// All records.
pub fn all(tdb: &mut Tdb) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut all = BTreeMap::new();
    tdb.traverse(TraverseKind::Read, |_, key, data| {
        all.insert(key.to_vec(), data.to_vec());
        Ok(ControlFlow::Continue(()))
    })
    .unwrap();
    all
}
