//! The lock on all records of a file as a watchman takes it who must not wait (DATA-5): in passes, each of
//! which takes what is free, closes the file to newcomers, and names who is still inside.
//!
//! With mutexes the file is closed by its state (spec/database.md B.6.3), which every process looks at
//! after it has taken a chain; so one store keeps out whoever is not inside yet, and a look at each
//! chain's mutex finds who is. That holds too while the daemon, stopped, has the mutex of all: the
//! state is stored without it then. Without mutexes all bytes are taken that are free.
//!
//! A [`Freezer`] is no user of the database: it leaves the active lock alone, so whoever opens a
//! `CLEAR_IF_FIRST` file next may be the first. A pass allocates nothing. What it took belongs to the
//! thread that made the pass.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Fault, Result};
use crate::format::{ByteOrder, Geometry, HEADER_LEN, Header, HeaderFault};
use crate::lock::{LockKind, LockName, Range, Wait, acquire, chains_range, records_range, release};
use crate::mutex::{self, MutexArea, MutexError};
use crate::robust::{self, Which};

/// Chains that threads of the daemon hold while it is stopped and that are passed over; beyond it
/// counts as somebody in the way.
const DAEMONS: usize = 256;

/// A thread that has the mutex of all in more passes than that does not have it in passing.
const PASSING: u32 = 10;

/// Who has a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A thread or process with this number.
    Thread(u32),
    /// A thread that has the mutex of all, perhaps only as one who waits for a chain does in passing.
    Passing(u32),
    /// Somebody with a lock of an open file, which has no number: the daemon, or a tool of ours.
    OpenFile,
}

/// What a pass found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// All records are held: another handle may work under a mark ([`Tdb::mark_all`](crate::Tdb::mark_all)).
    Held,
    /// No process but the daemon can change a record, or come to; the daemon has something locked.
    Closed,
    /// Somebody can still change a record.
    Open(Holder),
}

/// The lock on all records of one file.
#[derive(Debug)]
pub struct Freezer {
    file: File,
    path: PathBuf,
    geometry: Geometry,
    mutexes: Option<MutexArea>,
    /// The mutex of all is held.
    all: bool,
    /// The state says so.
    closed: bool,
    /// Chains below it were found free, or the daemon's, since the file was closed.
    scanned: u32,
    /// A chain was not: then all of them are looked at once more, since who holds two may give back
    /// the first one first.
    again: bool,
    daemons: Daemons,
    /// Who had the mutex of all, and in how many passes.
    owner: (u32, u32),
    /// All bytes of chains and records.
    bytes: bool,
}

/// A list that does not grow.
#[derive(Debug)]
struct Daemons {
    chains: Box<[u32; DAEMONS]>,
    len: usize,
}

impl Daemons {
    fn push(&mut self, chain: u32) -> bool {
        let Some(place) = self.chains.get_mut(self.len) else {
            return false;
        };
        *place = chain;
        self.len += 1;
        true
    }

    /// Only those that are still held.
    fn retain(&mut self, mut held: impl FnMut(u32) -> bool) {
        let mut kept = 0;
        for at in 0..self.len {
            let chain = self.chains[at];
            if held(chain) {
                self.chains[kept] = chain;
                kept += 1;
            }
        }
        self.len = kept;
    }
}

impl Freezer {
    /// Opens the file, which must be the one with these numbers.
    ///
    /// * Locks: none.
    /// * Errors: [`Error::Io`], [`Error::Replaced`], [`Error::Header`], [`Error::MutexFile`].
    /// * Cost: some five system calls.
    pub fn open(path: &Path, device: u64, inode: u64) -> Result<Self> {
        let io = |doing| {
            move |source| Error::Io {
                doing,
                path: path.to_path_buf(),
                source,
            }
        };
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(io("open"))?;
        let metadata = file.metadata().map_err(io("ask the size of"))?;
        if (metadata.dev(), metadata.ino()) != (device, inode) {
            return Err(Error::Replaced {
                path: path.to_path_buf(),
            });
        }
        let bad = |fault| Error::Header {
            path: path.to_path_buf(),
            fault,
        };
        let mut bytes = [0; HEADER_LEN as usize];
        file.read_exact_at(&mut bytes, 0).map_err(io("read"))?;
        let header = Header::decode(&bytes).map_err(bad)?;
        let geometry =
            Geometry::new(header.hash_size).ok_or(bad(HeaderFault::HashSize(header.hash_size)))?;
        let mutexes = if header.has_mutexes() {
            let ours = header.order == ByteOrder::NATIVE
                && mutex::area_size(header.hash_size) == Some(header.mutex_size)
                && metadata.len() >= u64::from(header.mutex_size);
            if !ours {
                return Err(Error::MutexFile {
                    path: path.to_path_buf(),
                });
            }
            Some(MutexArea::map(&file, header.hash_size).map_err(io("map the mutexes of"))?)
        } else {
            None
        };
        Ok(Self {
            file,
            path: path.to_path_buf(),
            geometry,
            mutexes,
            all: false,
            closed: false,
            scanned: 0,
            again: false,
            daemons: Daemons {
                chains: Box::new([0; DAEMONS]),
                len: 0,
            },
            owner: (0, 0),
            bytes: false,
        })
    }

    /// Whether the file has mutexes.
    pub fn has_mutexes(&self) -> bool {
        self.mutexes.is_some()
    }

    /// Whether anything is held, or closed.
    pub fn is_engaged(&self) -> bool {
        self.all || self.closed || self.bytes
    }

    /// One pass. `is_daemon` says of the number of a thread whether it is one of the daemon's;
    /// `thawing`: the daemon is giving back what it has of all records, so that does not count.
    ///
    /// * Locks: all records, as far as they are free now; held until [`Self::thaw`].
    /// * Errors: [`Error::Io`], [`Error::Corrupt`] of the mutex area.
    /// * Cost: it never waits; two system calls, with mutexes a look at those of all chains.
    pub fn pass(&mut self, is_daemon: &mut dyn FnMut(u32) -> bool, thawing: bool) -> Result<Pass> {
        if self.mutexes.is_none() {
            return self.pass_bytes();
        }
        match self.pass_mutexes(is_daemon, thawing) {
            Ok(Pass::Held) => {}
            Ok(other) => return Ok(other),
            Err(error) => return Err(self.mutex_error(error)),
        }
        // Traverses stand on records by these bytes, and change nothing by it.
        if !self.bytes {
            let range = records_range(self.geometry);
            self.bytes = self.try_bytes(range)?;
        }
        Ok(if self.bytes { Pass::Held } else { Pass::Closed })
    }

    fn mutex_error(&self, error: MutexError) -> Error {
        let corrupt = |fault| Error::Corrupt {
            path: self.path.clone(),
            offset: 0,
            fault,
        };
        let lock = LockName::AllRecords;
        match error {
            MutexError::Busy => Error::Busy {
                path: self.path.clone(),
                lock,
            },
            MutexError::NotOwner => Error::WrongThread { lock },
            MutexError::Damaged => corrupt(Fault::BadMutex),
            MutexError::Faulted => corrupt(Fault::Truncated),
            MutexError::System(source) => self.io_error("use a mutex of", source),
        }
    }

    fn io_error(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Io {
            doing,
            path: self.path.clone(),
            source,
        }
    }

    fn pass_mutexes(
        &mut self,
        is_daemon: &mut dyn FnMut(u32) -> bool,
        thawing: bool,
    ) -> std::result::Result<Pass, MutexError> {
        let Some(area) = &self.mutexes else {
            return Ok(Pass::Held);
        };
        let mut in_the_way = None;
        if !self.all {
            match robust::close(area, &mut Wait::Try.patience()) {
                Ok(()) => {
                    self.all = true;
                    self.closed = true;
                }
                Err(MutexError::Busy) => {
                    let owner = area.owner(Which::All)?;
                    let daemon = owner != 0 && is_daemon(owner);
                    // Whoever waits for a holder of all has the mutex for a moment, and touches
                    // no state. One that has it for good has set the state itself, so this changes
                    // nothing then, but for a daemon that was stopped between the two.
                    robust::bar(area);
                    self.closed = true;
                    if owner != 0 && (!daemon || thawing) {
                        if self.owner.0 == owner {
                            self.owner.1 = self.owner.1.saturating_add(1);
                        } else {
                            self.owner = (owner, 1);
                        }
                        in_the_way = Some(if daemon || self.owner.1 > PASSING {
                            Holder::Thread(owner)
                        } else {
                            Holder::Passing(owner)
                        });
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let chains = self.geometry.hash_size();
        while self.scanned < chains {
            let chain = self.scanned;
            let owner = area.owner(Which::Nth(chain + 1))?;
            if owner != 0 && !(is_daemon(owner) && self.daemons.push(chain)) {
                self.again = true;
                return Ok(Pass::Open(Holder::Thread(owner)));
            }
            self.scanned += 1;
        }
        if std::mem::take(&mut self.again) {
            self.scanned = 0;
            self.daemons.len = 0;
            return self.pass_mutexes(is_daemon, thawing);
        }
        let mut held = |chain| {
            area.owner(Which::Nth(chain + 1))
                .is_ok_and(|owner| owner != 0)
        };
        self.daemons.retain(&mut held);
        Ok(match in_the_way {
            Some(holder) => Pass::Open(holder),
            None if self.all && self.daemons.len == 0 => Pass::Held,
            None => Pass::Closed,
        })
    }

    fn pass_bytes(&mut self) -> Result<Pass> {
        if self.bytes {
            return Ok(Pass::Held);
        }
        let chains = self.grab(chains_range(self.geometry))?;
        if let Some(holder) = chains {
            return Ok(Pass::Open(holder));
        }
        self.bytes = self.try_bytes(records_range(self.geometry))?;
        Ok(if self.bytes { Pass::Held } else { Pass::Closed })
    }

    fn try_bytes(&self, range: Range) -> Result<bool> {
        acquire(
            &self.file,
            range,
            LockKind::Exclusive,
            &mut Wait::Try.patience(),
        )
        .map_err(|error| self.io_error("lock", error))
    }

    /// Takes all of a range that is free; who has some of the rest.
    fn grab(&mut self, range: Range) -> Result<Option<Holder>> {
        // Some of it is held from now on, whatever becomes of the rest.
        self.closed = true;
        if self.try_bytes(range)? {
            return Ok(None);
        }
        if range.len <= 4 {
            return self.holder_of(range);
        }
        let half = range.len / 2;
        let low = Range {
            start: range.start,
            len: half,
        };
        let high = Range {
            start: range.start + half,
            len: range.len - half,
        };
        let first = self.grab(low)?;
        Ok(self.grab(high)?.or(first))
    }

    /// Who has a lock that was refused; a moment later nobody may have it any more, and that is to be
    /// tried again.
    fn holder_of(&self, range: Range) -> Result<Option<Holder>> {
        let lock = self.conflict(range)?;
        Ok(Some(match u32::try_from(lock.l_pid) {
            Ok(pid) if pid != 0 => Holder::Thread(pid),
            _ => Holder::OpenFile,
        }))
    }

    /// A client that has a chain of a file without mutexes locked.
    ///
    /// * Locks: none.
    /// * Errors: [`Error::Io`].
    /// * Cost: one system call per lock of the daemon's that stands before it.
    pub fn client_in_the_way(&self) -> Result<Option<u32>> {
        let chains = chains_range(self.geometry);
        let (mut start, end) = (chains.start, chains.start + chains.len);
        while start < end {
            let range = Range {
                start,
                len: end - start,
            };
            let lock = self.conflict(range)?;
            match u32::try_from(lock.l_pid) {
                _ if lock.l_type == libc::F_UNLCK as libc::c_short => return Ok(None),
                Ok(pid) if pid != 0 => return Ok(Some(pid)),
                // The daemon's: behind it.
                _ if lock.l_len == 0 => return Ok(None),
                _ => {
                    let behind = u32::try_from(lock.l_start + lock.l_len).unwrap_or(u32::MAX);
                    start = behind.max(start + 1);
                }
            }
        }
        Ok(None)
    }

    fn conflict(&self, range: Range) -> Result<libc::flock> {
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: i64::from(range.start),
            l_len: i64::from(range.len),
            l_pid: 0,
        };
        fcntl(&self.file, FcntlArg::F_OFD_GETLK(&mut lock))
            .map_err(|error| self.io_error("ask for the lock of", error.into()))?;
        Ok(lock)
    }

    /// As [`Self::thaw`], when another handle holds all records of its own: the state stays as it is.
    ///
    /// * Locks: as [`Self::thaw`].
    /// * Errors: as [`Self::thaw`].
    /// * Cost: as [`Self::thaw`].
    pub fn thaw_beside(&mut self) -> Result<bool> {
        if self.all {
            return Ok(true);
        }
        if self.mutexes.is_some() {
            self.closed = false;
        }
        self.thaw()
    }

    /// Makes the database look empty: every process finds no record and asks its daemon. To be called
    /// when a pass found [`Pass::Held`] or [`Pass::Closed`], of a daemon that will not come back. The
    /// space of the records is lost; whoever opens a `CLEAR_IF_FIRST` file first makes it new.
    ///
    /// * Locks: none is taken: all records are held, or closed.
    /// * Errors: [`Error::Io`]; it can be done again.
    /// * Cost: all heads are written.
    pub fn empty(&mut self) -> Result<()> {
        const ZEROS: [u8; 8192] = [0; 8192];
        let base = match &self.mutexes {
            Some(_) => mutex::area_size(self.geometry.hash_size()).unwrap_or(0),
            None => 0,
        };
        // The head of the free list is the word before those of the chains.
        let start = u64::from(base) + u64::from(self.geometry.head(0)) - 4;
        let end = u64::from(base) + u64::from(self.geometry.data_start());
        let mut at = start;
        while at < end {
            let piece = (end - at).min(ZEROS.len() as u64) as usize;
            self.file
                .write_all_at(&ZEROS[..piece], at)
                .map_err(|error| self.io_error("empty", error))?;
            at += piece as u64;
        }
        Ok(())
    }

    /// Gives everything back. `false`: not yet, since the daemon has the mutex of all; to be called
    /// again.
    ///
    /// * Locks: all are given back.
    /// * Errors: [`Error::Io`], [`Error::Corrupt`] of the mutex area, [`Error::WrongThread`].
    /// * Cost: it never waits; one system call.
    pub fn thaw(&mut self) -> Result<bool> {
        if let Some(area) = &self.mutexes {
            if self.closed && !self.all {
                match robust::close(area, &mut Wait::Try.patience()) {
                    Ok(()) => self.all = true,
                    Err(MutexError::Busy) => return Ok(false),
                    Err(error) => return Err(self.mutex_error(error)),
                }
            }
            if self.all {
                robust::unlock_all(area).map_err(|error| self.mutex_error(error))?;
                self.all = false;
            }
        }
        if self.bytes || self.closed {
            release(&self.file, LockName::AllRecords.range())
                .map_err(|error| self.io_error("unlock", error))?;
        }
        self.bytes = false;
        self.closed = false;
        self.scanned = 0;
        self.again = false;
        self.daemons.len = 0;
        Ok(true)
    }
}
