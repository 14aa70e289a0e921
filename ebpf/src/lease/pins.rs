//! What the lease pins.

use std::{
    fs,
    path::{Path, PathBuf},
};

pub(super) use crate::pins::{open, prepare, release, unpin};

use super::{ADDRESSES, SLOTS, hook::Direction, table::Entry};
use crate::{
    Error,
    pins::{ARRAY, HASH, MMAPABLE, MapSpec, PER_CPU_ARRAY},
};

pub(super) const PUBLIC: MapSpec = MapSpec {
    name: "PUBLIC",
    pin: "public",
    kind: HASH,
    key_size: 16,
    value_size: size_of::<Entry>() as u32,
    max_entries: ADDRESSES as u32,
    flags: 0,
};
pub(super) const DEADLINE: MapSpec = MapSpec {
    name: "DEADLINE",
    pin: "deadline",
    kind: ARRAY,
    key_size: 4,
    value_size: 8,
    max_entries: SLOTS,
    flags: MMAPABLE,
};
pub(super) const HOLDER: MapSpec = MapSpec {
    name: "HOLDER",
    pin: "holder",
    kind: ARRAY,
    key_size: 4,
    value_size: 64,
    max_entries: 1,
    flags: MMAPABLE,
};
pub(super) const COUNTERS: MapSpec = MapSpec {
    name: "COUNTERS",
    pin: "counters",
    kind: PER_CPU_ARRAY,
    key_size: 4,
    value_size: 8,
    max_entries: 14,
    flags: 0,
};
pub(super) const MAPS: [&MapSpec; 4] = [&PUBLIC, &DEADLINE, &HOLDER, &COUNTERS];

/// Drops the maps' pins; programs that use them keep them.
pub(super) fn drop_maps(dir: &Path) -> Result<(), Error> {
    MAPS.iter().try_for_each(|spec| unpin(&dir.join(spec.pin)))
}

/// Where the link of an interface and direction is pinned.
pub(super) fn link_path(dir: &Path, ifindex: u32, direction: Direction) -> PathBuf {
    let suffix = match direction {
        Direction::Incoming => "in",
        Direction::Outgoing => "out",
    };
    dir.join(format!("link-{ifindex}-{suffix}"))
}

/// All pinned links, ours and our predecessor's.
pub(super) fn links(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let error = |error| Error::system("listing pins in", dir.display().to_string(), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(error)? {
        let entry = entry.map_err(error)?;
        if entry.file_name().to_string_lossy().starts_with("link-") {
            found.push(entry.path());
        }
    }
    Ok(found)
}
