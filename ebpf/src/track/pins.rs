//! What the tracker pins, beside the lease's pins. The names carry the version of the layout.

use std::{
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
};

use super::{
    ADDRESSES,
    table::{Config, Entry},
};
use crate::{
    Error,
    pins::{self, ARRAY, HASH, MapSpec, PER_CPU_ARRAY, unpin},
    sys::{self, MapRef},
};

/// All our pins start so, those of other versions too.
const PREFIX: &str = "track";
/// To be raised with every change of what the maps hold; also in the names below.
const VERSION: &str = "track1-";
/// The tracepoint's link.
pub(super) const LINK: &str = "track1-link";
/// The same, until the predecessor's is gone.
pub(super) const NEW_LINK: &str = "track1-link-new";
const NO_PREALLOC: u32 = 1;

pub(super) const ADDRESS: &str = "TRACK_ADDRESS";
pub(super) const TABLE: &str = "TRACK_TABLE";
pub(super) const CONFIG: &str = "TRACK_CONFIG";
pub(super) const COUNTS: &str = "TRACK_COUNTS";
pub(super) const CHANGES: &str = "TRACK_CHANGES";

/// The maps that outlive the daemon.
pub(super) fn maps(max_connections: u32) -> [MapSpec; 4] {
    let spec = |name, pin, kind, key_size, value_size: usize, max_entries, flags| MapSpec {
        name,
        pin,
        kind,
        key_size,
        value_size: value_size as u32,
        max_entries,
        flags,
    };
    [
        spec(ADDRESS, "track1-address", HASH, 16, 4, ADDRESSES as u32, 0),
        spec(
            TABLE,
            "track1-table",
            HASH,
            8,
            size_of::<Entry>(),
            max_connections,
            NO_PREALLOC,
        ),
        spec(CONFIG, "track1-config", ARRAY, 4, size_of::<Config>(), 1, 0),
        spec(COUNTS, "track1-counts", PER_CPU_ARRAY, 4, 8, 8, 0),
    ]
}

/// All of our pins that are there.
fn ours(dir: &Path) -> Result<Vec<String>, Error> {
    let error = |error| Error::system("listing pins in", dir.display().to_string(), error);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(error)? {
        let name = entry.map_err(error)?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(PREFIX) {
            found.push(name.into_owned());
        }
    }
    Ok(found)
}

/// Removes the maps' pins if they are of another layout, another network namespace, or not all
/// there. Programs that use them keep them.
pub(super) fn drop_unfit(dir: &Path, specs: &[MapSpec; 4], netns: u64) -> Result<(), Error> {
    let mut fit = true;
    for spec in specs {
        match pins::open(dir, spec) {
            Ok(fd) if spec.name == CONFIG => fit &= config(&fd)?.netns == netns,
            Ok(_) => {}
            Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                fit = false;
            }
            Err(error @ Error::Layout(_)) => {
                tracing::info!(%error, "the table of connections is made anew");
                fit = false;
            }
            Err(error) => return Err(error),
        }
    }
    for name in ours(dir)? {
        let map = specs.iter().any(|spec| spec.pin == name);
        let other_version = !name.starts_with(VERSION) && !name.contains("link");
        if (map && !fit) || other_version {
            unpin(&dir.join(name))?;
        }
    }
    Ok(())
}

/// Removes all links but the new one, which gets the name of the old: a predecessor's program
/// ends.
pub(super) fn replace_link(dir: &Path) -> Result<(), Error> {
    for name in ours(dir)? {
        if name.contains("link") && name != NEW_LINK {
            unpin(&dir.join(name))?;
        }
    }
    fs::rename(dir.join(NEW_LINK), dir.join(LINK))
        .map_err(|error| Error::system("renaming pin", NEW_LINK, error))
}

/// Removes everything of ours, and the bpffs if nothing else is in it.
pub(super) fn drop_all(dir: &Path) -> Result<(), Error> {
    let names = match ours(dir) {
        // Unmounted by the lease's end.
        Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(());
        }
        names => names?,
    };
    for name in names {
        unpin(&dir.join(name))?;
    }
    if pins::is_empty(dir) {
        pins::release(dir)?;
    }
    Ok(())
}

pub(super) fn config(fd: &OwnedFd) -> Result<Config, Error> {
    let error = |error| Error::system("reading", CONFIG, error);
    let map: MapRef<'_, u32, Config> = MapRef::new(fd.as_fd())
        .map_err(error)?
        .ok_or_else(|| Error::Layout(CONFIG.into()))?;
    Ok(map.get(&0).map_err(error)?.unwrap_or_default())
}

/// Pins again what is not pinned any more; how many were gone.
pub(super) fn repin(
    dir: &Path,
    held: &[(&'static str, std::os::fd::BorrowedFd<'_>)],
) -> Result<u32, Error> {
    let mut missing = 0;
    for (name, fd) in held {
        let path = dir.join(name);
        if path.exists() {
            continue;
        }
        sys::obj_pin(*fd, &path).map_err(|error| Error::system("pinning", *name, error))?;
        missing += 1;
    }
    Ok(missing)
}
