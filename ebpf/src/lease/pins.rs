//! The pin directory: a bpffs of the host, in which maps and links outlive the daemon.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::{Path, PathBuf},
};

use super::{ADDRESSES, SLOTS, hook::Direction, table::Entry};
use crate::{
    Error,
    sys::{self, MapInfo},
};

/// What `/proc/self/mountinfo` shows as source of a bpffs that is ours to unmount.
const SOURCE: &str = "ctdb-lease";

/// One map, as the kernel object declares it.
#[derive(Debug)]
pub(super) struct MapSpec {
    /// In the object.
    pub(super) name: &'static str,
    /// In the pin directory.
    pub(super) pin: &'static str,
    kind: u32,
    key_size: u32,
    pub(super) value_size: u32,
    max_entries: u32,
    flags: u32,
}

const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PER_CPU_ARRAY: u32 = 6;
const MMAPABLE: u32 = 1 << 10;

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
    max_entries: 8,
    flags: 0,
};
pub(super) const MAPS: [&MapSpec; 4] = [&PUBLIC, &DEADLINE, &HOLDER, &COUNTERS];

impl MapSpec {
    fn fits(&self, info: &MapInfo) -> bool {
        let Self {
            kind,
            key_size,
            value_size,
            max_entries,
            flags,
            ..
        } = *self;
        *info
            == MapInfo {
                kind,
                id: info.id,
                key_size,
                value_size,
                max_entries,
                flags,
            }
    }
}

/// A pinned map of the right layout.
pub(super) fn open(dir: &Path, spec: &MapSpec) -> Result<OwnedFd, Error> {
    let path = dir.join(spec.pin);
    let shown = || path.display().to_string();
    let fd =
        sys::obj_get(&path).map_err(|error| Error::system("opening pinned map", shown(), error))?;
    let info = sys::map_info(fd.as_fd())
        .map_err(|error| Error::system("asking for the layout of", shown(), error))?;
    if spec.fits(&info) {
        Ok(fd)
    } else {
        Err(Error::Layout(shown()))
    }
}

/// Makes the directory a place for pins, if it is none yet.
pub(super) fn prepare(dir: &Path) -> Result<(), Error> {
    let shown = || dir.display().to_string();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|error| Error::system("making pin directory", shown(), error))?;
    let is_bpffs = sys::is_bpffs(dir)
        .map_err(|error| Error::system("asking for the file system of", shown(), error))?;
    if is_bpffs {
        return Ok(());
    }
    if let (Ok(ours), Ok(hosts)) = (
        fs::read_link("/proc/self/ns/mnt"),
        fs::read_link("/proc/1/ns/mnt"),
    ) && ours != hosts
    {
        // spec/kernel.md 8.4: it would go with the namespace, the programs with it.
        tracing::warn!(
            dir = shown(),
            "mounting the lease's bpffs in a private mount namespace: if that ends with the \
             daemon, nothing guards the addresses any longer; mount a bpffs there on the host, or \
             run without PrivateMounts"
        );
    }
    sys::mount_bpffs(SOURCE, dir)
        .map_err(|error| Error::system("mounting a bpffs on", shown(), error))
}

/// Drops the maps' pins; programs that use them keep them.
pub(super) fn drop_maps(dir: &Path) -> Result<(), Error> {
    MAPS.iter().try_for_each(|spec| unpin(&dir.join(spec.pin)))
}

/// Removes a pin; none is fine.
pub(super) fn unpin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::system(
            "removing pin",
            path.display().to_string(),
            error,
        )),
        _ => Ok(()),
    }
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

/// Unmounts what [`prepare`] of this daemon or a predecessor mounted, and removes the directory.
pub(super) fn release(dir: &Path) -> Result<(), Error> {
    if mounted_by_us(dir) {
        sys::unmount(dir)
            .map_err(|error| Error::system("unmounting", dir.display().to_string(), error))?;
    }
    // Not empty: not ours alone.
    let _ = fs::remove_dir(dir);
    Ok(())
}

fn mounted_by_us(dir: &Path) -> bool {
    let Ok(dir) = dir.canonicalize() else {
        return false;
    };
    let Ok(mounts) = fs::read_to_string("/proc/self/mountinfo") else {
        return false;
    };
    mounts.lines().any(|line| is_our_mount(line, &dir))
}

/// `36 35 98:0 /root /mount/point options [fields] - type source super`
fn is_our_mount(line: &str, dir: &Path) -> bool {
    let Some((head, tail)) = line.split_once(" - ") else {
        return false;
    };
    let mut tail = tail.split(' ');
    head.split(' ')
        .nth(4)
        .is_some_and(|point| unescape(point) == dir.as_os_str().as_encoded_bytes())
        && tail.next() == Some("bpf")
        && tail.next() == Some(SOURCE)
}

/// `\040` and the like.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| after.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        if let Some(byte) = octal {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_that_are_ours() {
        let dir = Path::new("/run/a b/bpf");
        let ours = "36 35 0:41 / /run/a\\040b/bpf rw,nosuid shared:9 - bpf ctdb-lease rw,mode=700";
        assert!(is_our_mount(ours, dir));
        assert!(!is_our_mount(ours, Path::new("/run/a b")));
        assert!(!is_our_mount(&ours.replace("ctdb-lease", "bpf"), dir));
        assert!(!is_our_mount(&ours.replace("- bpf", "- tmpfs"), dir));
    }
}
