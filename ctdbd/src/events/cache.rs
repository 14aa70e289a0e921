//! The list of addresses that this node hosts, as event scripts and the NFS call-outs read it
//! (`spec/cluster.md` 1.8): `VAR/scripts/my-public-ip-addresses`, one address a line.
//!
//! CTDB's `10.interface` keeps it up to date in `takeip` and `releaseip`, which it is not sent when
//! addresses are built in. So the daemon writes it, under the lock that the scripts take, before
//! any script of the event that tells of a change begins.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the scripts wait for the lock; afterwards the list is written all the same, since a
/// stale list hides addresses.
const LOCK_WAIT: Duration = Duration::from_secs(10);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Writes the list. Cheap to clone.
#[derive(Clone)]
pub struct AddressCache {
    file: PathBuf,
    wanted: Arc<Mutex<BTreeSet<IpAddr>>>,
    /// One writer at a time.
    writing: Arc<tokio::sync::Mutex<()>>,
}

impl AddressCache {
    /// The list in `scripts` (`VAR/scripts`); nothing is hosted.
    pub fn new(scripts: &Path) -> Self {
        Self {
            file: scripts.join("my-public-ip-addresses"),
            wanted: Arc::default(),
            writing: Arc::default(),
        }
    }

    fn wanted(&self) -> BTreeSet<IpAddr> {
        self.wanted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What is hosted now. Returns at once; the file follows.
    pub fn set(&self, addresses: BTreeSet<IpAddr>) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        if *wanted == addresses {
            return;
        }
        *wanted = addresses;
        drop(wanted);
        let cache = self.clone();
        tokio::spawn(async move { cache.settle().await });
    }

    /// The file says what is wanted when this returns. Scripts remove it (`00.ctdb` in `init`) and
    /// write it anew, so it is compared, not remembered.
    pub async fn settle(&self) {
        let _one = self.writing.lock().await;
        let (file, wanted) = (self.file.clone(), self.wanted());
        let written = tokio::task::spawn_blocking(move || settle(&file, &wanted, LOCK_WAIT)).await;
        // The outer error is the runtime's end.
        if let Ok(Err(error)) = written {
            tracing::error!(
                file = %self.file.display(), %error,
                "scripts read a stale list of this node's addresses"
            );
        }
    }
}

fn text(addresses: &BTreeSet<IpAddr>) -> String {
    addresses.iter().fold(String::new(), |text, address| {
        text + &address.to_string() + "\n"
    })
}

/// Whether the file has these lines, in whatever order.
fn says(file: &Path, addresses: &BTreeSet<IpAddr>) -> io::Result<bool> {
    match fs::read_to_string(file) {
        Ok(found) => {
            let lines: BTreeSet<&str> = found.lines().collect();
            Ok(lines == text(addresses).lines().collect())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(addresses.is_empty()),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
        Err(error) => Err(error),
    }
}

fn settle(file: &Path, addresses: &BTreeSet<IpAddr>, wait: Duration) -> io::Result<()> {
    if says(file, addresses)? {
        return Ok(());
    }
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir)?;
    }
    let lock = File::options()
        .create(true)
        .append(true)
        .open(file.with_added_extension("lock"))?;
    let until = Instant::now() + wait;
    loop {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(LOCK_POLL);
            }
            Err(TryLockError::WouldBlock) => {
                tracing::warn!(
                    file = %file.display(),
                    "a script holds the lock of the address list for too long; it is written all the same"
                );
                break;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    let new = file.with_added_extension("new");
    fs::write(&new, text(addresses))?;
    fs::rename(&new, file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
        addresses
            .iter()
            .map(|address| address.parse().unwrap())
            .collect()
    }

    #[test]
    fn it_says_what_scripts_expect() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scripts/my-public-ip-addresses");
        settle(&file, &set(&[]), LOCK_WAIT).unwrap();
        assert!(!file.exists(), "nothing is hosted and nothing was said");
        let two = set(&["10.1.1.1", "fd00::1"]);
        settle(&file, &two, LOCK_WAIT).unwrap();
        // Measured of 10.interface of Debian's 4.22.6.
        assert_eq!(fs::read_to_string(&file).unwrap(), "10.1.1.1\nfd00::1\n");
        // Other order, same meaning: left alone.
        fs::write(&file, "fd00::1\n10.1.1.1\n").unwrap();
        settle(&file, &two, LOCK_WAIT).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "fd00::1\n10.1.1.1\n");
        fs::write(&file, "10.1.1.1\n10.9.9.9\n").unwrap();
        settle(&file, &two, LOCK_WAIT).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "10.1.1.1\nfd00::1\n");
        settle(&file, &set(&[]), LOCK_WAIT).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "");
    }

    #[test]
    fn a_script_that_keeps_the_lock_holds_up_nothing_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("list");
        let lock = File::create(dir.path().join("list.lock")).unwrap();
        lock.lock().unwrap();
        settle(&file, &set(&["10.1.1.1"]), Duration::from_millis(50)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "10.1.1.1\n");
    }

    #[tokio::test]
    async fn the_newest_wins() {
        let dir = tempfile::tempdir().unwrap();
        let cache = AddressCache::new(dir.path());
        for number in 0..20 {
            cache.set(set(&[&format!("10.1.1.{number}")]));
        }
        cache.settle().await;
        let said = fs::read_to_string(dir.path().join("my-public-ip-addresses")).unwrap();
        assert_eq!(said, "10.1.1.19\n");
    }
}
