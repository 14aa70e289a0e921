//! The pin directory: a bpffs of the host, in which maps and links outlive the daemon.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::DirBuilderExt as _,
    },
    path::Path,
};

use crate::{
    Error,
    sys::{self, MapInfo},
};

/// What `/proc/self/mountinfo` shows as source of a bpffs that is ours to unmount.
const SOURCE: &str = "ctdb-lease";

/// One map, as the kernel object declares it.
#[derive(Debug)]
pub(crate) struct MapSpec {
    /// In the object.
    pub(crate) name: &'static str,
    /// In the pin directory.
    pub(crate) pin: &'static str,
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

pub(crate) const HASH: u32 = 1;
pub(crate) const ARRAY: u32 = 2;
pub(crate) const PER_CPU_ARRAY: u32 = 6;
pub(crate) const MMAPABLE: u32 = 1 << 10;

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
pub(crate) fn open(dir: &Path, spec: &MapSpec) -> Result<OwnedFd, Error> {
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
pub(crate) fn prepare(dir: &Path) -> Result<(), Error> {
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
            "mounting the bpffs of lease and tracker in a private mount namespace: if that ends with the \
             daemon, nothing guards the addresses any longer; mount a bpffs there on the host, or \
             run without PrivateMounts"
        );
    }
    sys::mount_bpffs(SOURCE, dir)
        .map_err(|error| Error::system("mounting a bpffs on", shown(), error))
}

/// Removes a pin; none is fine.
pub(crate) fn unpin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::system(
            "removing pin",
            path.display().to_string(),
            error,
        )),
        _ => Ok(()),
    }
}

/// Unmounts what [`prepare`] of this daemon or a predecessor mounted, and removes the directory.
pub(crate) fn release(dir: &Path) -> Result<(), Error> {
    if mounted_by_us(dir) {
        sys::unmount(dir)
            .map_err(|error| Error::system("unmounting", dir.display().to_string(), error))?;
    }
    // Not empty: not ours alone.
    let _ = fs::remove_dir(dir);
    Ok(())
}

/// Whether nothing is pinned, but for the kernel's own files in every bpffs.
pub(crate) fn is_empty(dir: &Path) -> bool {
    let kernels = ["maps.debug", "progs.debug"];
    fs::read_dir(dir).is_ok_and(|entries| {
        entries
            .flatten()
            .all(|entry| kernels.iter().any(|name| entry.file_name() == *name))
    })
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
