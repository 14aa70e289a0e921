//! The list of voters that this node last acted under, on disk (`authority.md` R10, R26).
//!
//! A cold cluster may skip the abstention after a start only if the list has not changed since.
//! The record is removed before a daemon speaks and before another list counts, and written when
//! a list is settled: what stands there was true. Without it the cluster starts L + m later.
//!
//! Beside it a marker in the run-time directory, which a boot empties, tells whether a daemon has been
//! started since. What follows from both is [`ctdb_core::cold`]'s.
//!
//! The disk is touched by threads of their own, one at a time; what cannot be removed holds up
//! the reload, what cannot be written only costs that start.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ctdb_core::cold;
use ctdb_wire::ids::{BootTime, NodeSet};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// Nothing is written for this long after a removal was asked for; longer than a reload waits
/// for it.
const HOLD: Duration = Duration::from_secs(30);
/// A failed writing is tried again after this.
const AGAIN: Duration = Duration::from_mins(1);

type Done = oneshot::Receiver<Result<(), String>>;

/// What is known of the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Known {
    /// It is not there.
    Absent,
    /// It names this list.
    Names(NodeSet),
    /// Something failed half-way.
    Unsure,
}

enum Work {
    Write(NodeSet, Done),
    Remove(Done),
}

/// The record of a running daemon.
pub(super) struct Record {
    path: PathBuf,
    known: Known,
    work: Option<Work>,
    /// Not to be written before.
    hold_until: BootTime,
}

/// How far a removal is.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Removal {
    /// The file is not there, and nothing is under way that would write it.
    Done,
    /// A thread is at it.
    UnderWay,
    /// It cannot be removed.
    Failed(String),
}

impl Record {
    /// A daemon that has [taken](take) the record.
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            known: Known::Absent,
            work: None,
            hold_until: BootTime::ZERO,
        }
    }

    fn start(&self, work: impl FnOnce(&Path) -> io::Result<()> + Send + 'static) -> Done {
        let (sender, receiver) = oneshot::channel();
        let path = self.path.clone();
        // If there is no thread the sender is dropped, which counts as a failure.
        let thread = std::thread::Builder::new().name("voters".to_owned());
        let _ = thread.spawn(move || {
            let _ = sender.send(work(&path).map_err(|error| error.to_string()));
        });
        receiver
    }

    /// Takes in what a thread has done; an error if it failed.
    fn look(&mut self) -> Result<(), String> {
        let Some(mut work) = self.work.take() else {
            return Ok(());
        };
        let (Work::Write(_, done) | Work::Remove(done)) = &mut work;
        let result = match done.try_recv() {
            Err(TryRecvError::Empty) => {
                self.work = Some(work);
                return Ok(());
            }
            Ok(result) => result,
            Err(TryRecvError::Closed) => Err("no thread can be started".to_owned()),
        };
        self.known = match (&result, &work) {
            (Ok(()), Work::Write(voters, _)) => Known::Names(*voters),
            (Ok(()), Work::Remove(_)) => Known::Absent,
            (Err(_), _) => Known::Unsure,
        };
        result
    }

    /// Another list is about to count: the record goes first. To be asked again until it is done.
    pub(super) fn remove(&mut self, now: BootTime) -> Removal {
        self.hold_until = now + HOLD;
        let writing = matches!(self.work, Some(Work::Write(..)));
        match self.look() {
            // What a failed writing has left is removed like anything else.
            Err(text) if !writing => return Removal::Failed(text),
            _ => {}
        }
        if self.work.is_some() {
            return Removal::UnderWay;
        }
        if self.known == Known::Absent {
            return Removal::Done;
        }
        self.work = Some(Work::Remove(self.start(remove)));
        Removal::UnderWay
    }

    /// The list is settled and somebody leads under it: written down if it is not yet.
    pub(super) fn keep(&mut self, now: BootTime, voters: NodeSet) {
        if let Err(error) = self.look() {
            tracing::warn!(
                error,
                "the list of voters is not recorded; the next cold start takes longer"
            );
            self.hold_until = self.hold_until.max(now + AGAIN);
        }
        if self.work.is_some() || self.known == Known::Names(voters) || now < self.hold_until {
            return;
        }
        let done = self.start(move |path| write(path, voters));
        self.work = Some(Work::Write(voters, done));
    }

    /// The list that the record was removed for is in force.
    pub(super) fn release(&mut self) {
        self.hold_until = BootTime::ZERO;
    }
}

/// Reads the record and removes it.
pub(super) fn take(path: &Path) -> cold::Record {
    let text = fs::read_to_string(path);
    let absent = matches!(&text, Err(error) if error.kind() == io::ErrorKind::NotFound);
    if let Err(error) = remove(path) {
        tracing::warn!(%error, path = %path.display(), "the record of voters cannot be removed");
        return cold::Record::Useless;
    }
    let list = text.ok();
    match list.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()) {
        Some(list) => cold::Record::Taken(NodeSet(list)),
        None if absent => cold::Record::Absent,
        None => {
            tracing::warn!(path = %path.display(), "the record of voters could not be read");
            cold::Record::Useless
        }
    }
}

/// Whether a daemon has been started since the host has booted; marks that one has. An error means
/// that a later life could not know of this one.
pub(super) fn ran_since_boot(marker: &Path) -> io::Result<bool> {
    match File::options().write(true).create_new(true).open(marker) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(true),
        Err(error) => Err(error),
    }
}

/// Removes it for good; that it was not there is well.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes it, whole or not at all.
fn write(path: &Path, voters: NodeSet) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    writeln!(file, "{:x}", voters.0)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("voters");
        assert_eq!(take(&path), cold::Record::Absent);
        write(&path, NodeSet(0b1011)).unwrap();
        assert_eq!(take(&path), cold::Record::Taken(NodeSet(0b1011)));
        assert_eq!(take(&path), cold::Record::Absent);
        fs::write(&path, "nonsense").unwrap();
        assert_eq!(take(&path), cold::Record::Useless);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // What is no file can be neither read nor removed.
        fs::create_dir(&path).unwrap();
        assert_eq!(take(&path), cold::Record::Useless);
    }

    #[test]
    fn the_marker_stays_until_the_next_boot() {
        let dir = tempfile::tempdir().unwrap();
        let marker = dir.path().join("started");
        assert!(!ran_since_boot(&marker).unwrap());
        assert!(ran_since_boot(&marker).unwrap());
        fs::remove_file(&marker).unwrap();
        assert!(!ran_since_boot(&marker).unwrap());
        assert!(ran_since_boot(&dir.path().join("no/such")).is_err());
    }

    fn finish(record: &mut Record) {
        while record.work.is_some() {
            let _ = record.look();
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_removal_comes_after_a_writing_and_holds_it_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state").join("voters");
        let mut record = Record::new(path.clone());
        let now = BootTime(1_000_000_000);
        record.keep(now, NodeSet(0b11));
        while record.remove(now) == Removal::UnderWay {
            // The old list is still settled as far as the main loop knows.
            record.keep(now, NodeSet(0b11));
            std::thread::yield_now();
        }
        assert_eq!(record.remove(now), Removal::Done);
        record.keep(now, NodeSet(0b11));
        assert!(record.work.is_none() && !path.exists());
        record.release();
        record.keep(now, NodeSet(0b111));
        finish(&mut record);
        assert_eq!(take(&path), cold::Record::Taken(NodeSet(0b111)));
    }

    #[test]
    fn what_cannot_be_removed_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("voters");
        let mut record = Record::new(path.clone());
        let now = BootTime(1_000_000_000);
        record.keep(now, NodeSet(0b11));
        finish(&mut record);
        // A directory in its place is no file to be removed.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let answer = loop {
            match record.remove(now) {
                Removal::UnderWay => std::thread::yield_now(),
                answer => break answer,
            }
        };
        assert!(matches!(answer, Removal::Failed(_)), "{answer:?}");
    }
}
