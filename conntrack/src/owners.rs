//! Who holds a socket, on demand: from `/proc` and the control groups' file system.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Directories of control groups that are looked at.
const MAX_GROUPS: usize = 20_000;

/// A process that has a socket open.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// Its number, in this process's view.
    pub pid: u32,
    /// Its name, as `ps -o comm` shows it.
    pub comm: String,
}

/// The processes that have these sockets open, by the sockets' inode. Of several (a listener and
/// what it forked) the one with the highest number, which is mostly the one that serves. Those that
/// end meanwhile, and those of other process namespaces, are left out.
pub fn owners(inodes: &BTreeSet<u64>) -> BTreeMap<u64, Owner> {
    let mut found: BTreeMap<u64, Owner> = BTreeMap::new();
    if inodes.is_empty() {
        return found;
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let mut comm = None;
        let descriptors = fs::read_dir(process.path().join("fd"));
        for descriptor in descriptors.into_iter().flatten().flatten() {
            let Some(inode) = socket_inode(&descriptor.path()) else {
                continue;
            };
            if !inodes.contains(&inode) || found.get(&inode).is_some_and(|at| at.pid > pid) {
                continue;
            }
            let comm = comm.get_or_insert_with(|| {
                let text = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
                text.trim_end_matches('\n').to_owned()
            });
            found.insert(
                inode,
                Owner {
                    pid,
                    comm: comm.clone(),
                },
            );
        }
    }
    found
}

/// `socket:[123]`
fn socket_inode(link: &Path) -> Option<u64> {
    let target = fs::read_link(link).ok()?;
    let number = target.to_str()?.strip_prefix("socket:[")?;
    number.strip_suffix(']')?.parse().ok()
}

/// The path of a control group (version 2) below its file system's root, such as
/// `/system.slice/smbd.service`. None: it is gone, or the file system is not to be seen here.
pub fn cgroup_path(id: u64) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let root = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let point = words.nth(1)?;
        (words.next() == Some("cgroup2")).then_some(PathBuf::from(point))
    })?;
    let mut waiting = vec![root.clone()];
    let mut seen = 0;
    while let Some(directory) = waiting.pop() {
        seen += 1;
        if seen > MAX_GROUPS {
            return None;
        }
        if fs::metadata(&directory).is_ok_and(|meta| meta.ino() == id) {
            let below = directory.strip_prefix(&root).ok()?;
            return Some(Path::new("/").join(below));
        }
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        waiting.extend(
            entries
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn this_process_is_found_by_its_socket() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let link = PathBuf::from(format!("/proc/self/fd/{}", socket.as_raw_fd()));
        let inode = socket_inode(&link).unwrap();
        let found = owners(&BTreeSet::from([inode, 1]));
        assert_eq!(found.len(), 1);
        let owner = &found[&inode];
        assert_eq!(owner.pid, std::process::id());
        let comm = fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(owner.comm, comm.trim_end());
        assert!(owners(&BTreeSet::new()).is_empty());
    }

    #[test]
    fn groups_that_are_not_there() {
        assert_eq!(cgroup_path(0), None);
        assert_eq!(cgroup_path(u64::MAX), None);
    }
}
