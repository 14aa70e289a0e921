//! Who has a file open.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::super::failure::{Exit, Failure};

/// A process that has the file open.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct User {
    /// Its number.
    pub(super) pid: u32,
    /// Its name.
    pub(super) name: String,
}

/// The other processes that have `path` open, as far as we may see them: root sees all. A process
/// that knows the file by another name is not found.
pub(super) fn of(path: &Path) -> Vec<User> {
    let (Ok(file), Some(name)) = (fs::metadata(path), path.file_name()) else {
        return Vec::new();
    };
    let own = std::process::id();
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut users: Vec<User> = processes
        .flatten()
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            if pid == own {
                return None;
            }
            let has_it = fs::read_dir(entry.path().join("fd"))
                .ok()?
                .flatten()
                .any(|fd| {
                    // The name first: asking for the number of a file on a file server that hangs hangs.
                    let same_name = fs::read_link(fd.path())
                        .is_ok_and(|target| target.file_name() == Some(name));
                    same_name
                        && fs::metadata(fd.path())
                            .is_ok_and(|it| (it.dev(), it.ino()) == (file.dev(), file.ino()))
                });
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            has_it.then(|| User {
                pid,
                name: name.trim_end().to_owned(),
            })
        })
        .collect();
    users.sort_by_key(|user| user.pid);
    users
}

/// Whether somebody holds the active lock (spec/database.md B.1) of a `CLEAR_IF_FIRST` file.
pub(super) fn is_active(path: &Path) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 4,
        l_len: 1,
        l_pid: 0,
    };
    let asked = fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock));
    asked.is_ok() && lock.l_type != libc::F_UNLCK as libc::c_short
}

/// Refuses to change a file that the daemon has open.
pub(super) fn refuse_daemon(path: &Path, force: bool) -> Result<(), Failure> {
    if force {
        return Ok(());
    }
    match of(path).into_iter().find(|user| user.name == "ctdbd") {
        None => Ok(()),
        Some(User { pid, .. }) => {
            let text = format!(
                "the daemon (ctdbd, process {pid}) has {} open and does not know of what is \
                 changed here: it would be lost or spread; stop the daemon first, or say --force",
                path.display()
            );
            Err(Failure::new(Exit::NotNow, "in_use", text))
        }
    }
}

/// Refuses to replace a file that anybody has open.
pub(super) fn refuse_users(path: &Path) -> Result<(), Failure> {
    let users = of(path);
    if users.is_empty() && !is_active(path) {
        return Ok(());
    }
    let who: Vec<String> = users
        .iter()
        .map(|user| format!("{} (process {})", user.name, user.pid))
        .collect();
    let who = if who.is_empty() {
        "another program".to_owned()
    } else {
        who.join(", ")
    };
    let text = format!(
        "{} is in use by {who}, which would go on with the old file; end that first",
        path.display()
    );
    Err(Failure::new(Exit::NotNow, "in_use", text))
}
