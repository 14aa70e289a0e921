//! What daemon and guard say to each other about the databases of the node (DATA-5): until when
//! the right to serve holds, which files there are, and who holds all records of each.
//!
//! Nothing here waits. A cell's `version` is odd while it describes a database; the word of the
//! guard contains it, so that what is meant for one database never reaches its successor in the cell.

use std::{
    array,
    sync::{
        Arc, PoisonError,
        atomic::{
            AtomicU32, AtomicU64,
            Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
            fence,
        },
    },
};

use super::{Deadman, READ_ATTEMPTS, Watcher, page};

/// Databases that the memory has room for.
pub const DATABASES: usize = 1024;
/// Bytes of the longest file name.
pub const FILE_NAME: usize = 256;

const WORDS: usize = FILE_NAME / 8;

/// Nobody needs the guard's lock.
const FREE: u32 = 0;
/// The guard holds all records.
const HELD: u32 = 1;
/// As before, and the daemon works under that lock.
const CLAIMED: u32 = 2;
/// The daemon has no need of it any more.
const LET_GO: u32 = 3;

const SERVED: u32 = 0;
const FREEZING: u32 = 1;
const FROZEN: u32 = 2;

#[repr(C)]
pub(super) struct Cell {
    version: AtomicU32,
    /// Of the name, in bytes.
    length: AtomicU32,
    /// What the daemon's own lock on all records is doing.
    own: AtomicU32,
    /// Threads of the daemon that are about to give that lock back.
    thawing: AtomicU32,
    /// Version and state.
    guard: AtomicU32,
    /// A process that stood in the guard's way; and that it ended for that.
    blocked: AtomicU32,
    ended: AtomicU32,
    /// The guard cannot use the file.
    unusable: AtomicU32,
    /// The slot of the right in which the daemon gave all records back last; 0: none.
    served: AtomicU32,
    device: AtomicU64,
    inode: AtomicU64,
    name: [AtomicU64; WORDS],
}

/// The right to serve, as the detector knows it.
#[repr(C)]
pub(super) struct RightCell {
    slot: AtomicU32,
    until: AtomicU64,
}

/// The right to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// The slot of its epoch.
    pub slot: u32,
    /// Until when it holds (boot-time clock, nanoseconds); 0: given up.
    pub until: u64,
}

impl RightCell {
    fn set(&self, right: Right) {
        if self.slot.load(Relaxed) != right.slot {
            // So that no reader sees the old epoch with the new end.
            self.until.store(0, SeqCst);
            self.slot.store(right.slot, SeqCst);
        }
        self.until.store(right.until, SeqCst);
    }

    fn get(&self) -> Right {
        loop {
            let slot = self.slot.load(SeqCst);
            let until = self.until.load(SeqCst);
            if self.slot.load(SeqCst) == slot {
                return Right { slot, until };
            }
        }
    }
}

/// What the daemon's own lock on all records is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// It does not have it.
    Served,
    /// It waits for it.
    Freezing,
    /// It has it.
    Frozen,
}

impl Deadman {
    /// The right moves, or ends (`until` 0). Called by the detector thread only.
    pub fn set_right(&self, right: Right) {
        page(&self.mapping).right.set(right);
    }

    /// The right to serve at this moment, asked of nobody.
    pub fn right(&self) -> Right {
        page(&self.mapping).right.get()
    }

    /// Tells the guard of a database, before clients hear of it. `None`: no room, or the name is too
    /// long.
    pub fn guard_database(
        self: &Arc<Self>,
        name: &str,
        device: u64,
        inode: u64,
    ) -> Option<Guarded> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.len() > FILE_NAME {
            return None;
        }
        let _registering = self
            .registering
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let cells = &page(&self.mapping).databases;
        let index = cells
            .iter()
            .position(|cell| cell.version.load(Relaxed).is_multiple_of(2))?;
        let cell = &cells[index];
        let version = cell.version.load(Relaxed).wrapping_add(1);
        for (word, chunk) in cell.name.iter().zip(bytes.chunks(8)) {
            let mut padded = [0; 8];
            padded[..chunk.len()].copy_from_slice(chunk);
            word.store(u64::from_ne_bytes(padded), Relaxed);
        }
        cell.length.store(bytes.len() as u32, Relaxed);
        cell.device.store(device, Relaxed);
        cell.inode.store(inode, Relaxed);
        cell.own.store(SERVED, Relaxed);
        cell.thawing.store(0, Relaxed);
        cell.blocked.store(0, Relaxed);
        cell.ended.store(0, Relaxed);
        cell.unusable.store(0, Relaxed);
        cell.served.store(0, Relaxed);
        cell.guard.store(word(version, FREE), Relaxed);
        cell.version.store(version, Release);
        Some(Guarded {
            deadman: Arc::clone(self),
            index,
            version,
        })
    }
}

fn word(version: u32, state: u32) -> u32 {
    version << 2 | state
}

/// The daemon's side of one database.
#[derive(Debug)]
pub struct Guarded {
    deadman: Arc<Deadman>,
    index: usize,
    version: u32,
}

impl Guarded {
    fn cell(&self) -> &Cell {
        &page(&self.deadman.mapping).databases[self.index]
    }

    /// What the daemon's own lock on all records is doing.
    pub fn set_own(&self, own: Own) {
        let own = match own {
            Own::Served => SERVED,
            Own::Freezing => FREEZING,
            Own::Frozen => FROZEN,
        };
        self.cell().own.store(own, SeqCst);
    }

    /// The slot of the right in which the database was recovered and is served, `None` when that right
    /// has ended. Said before all records are given back.
    pub fn set_served(&self, slot: Option<u32>) {
        self.cell().served.store(slot.unwrap_or(0), SeqCst);
    }

    /// The own lock is about to be given back. Whoever says so asks for the right after it: either
    /// it sees that the right has ended, or the guard, which looks later, sees this.
    pub fn begin_thaw(&self) {
        self.cell().thawing.fetch_add(1, SeqCst);
        fence(SeqCst);
    }

    /// It was given back, or is kept.
    pub fn end_thaw(&self) {
        self.cell().thawing.fetch_sub(1, SeqCst);
    }

    fn change(&self, from: u32, to: u32) -> bool {
        self.cell()
            .guard
            .compare_exchange(
                word(self.version, from),
                word(self.version, to),
                AcqRel,
                Acquire,
            )
            .is_ok()
    }

    /// The guard holds all records: from now on for the daemon, until [`Self::let_go`]. `false`: it
    /// does not.
    pub fn claim(&self) -> bool {
        self.change(HELD, CLAIMED) || self.change(LET_GO, CLAIMED)
    }

    /// The daemon needs what it claimed no more. The guard gives it back if the right holds then.
    pub fn let_go(&self) {
        self.change(CLAIMED, LET_GO);
    }

    /// Since the last call: the process that kept a record locked when the right had ended, and
    /// whether it was ended for that.
    pub fn blocked(&self) -> Option<(u32, bool)> {
        let cell = self.cell();
        let ended = cell.ended.swap(0, AcqRel);
        let blocked = cell.blocked.swap(0, AcqRel);
        match (ended, blocked) {
            (0, 0) => None,
            (0, pid) => Some((pid, false)),
            (pid, _) => Some((pid, true)),
        }
    }

    /// Since the last call: the guard could not use the file.
    pub fn is_unusable(&self) -> bool {
        self.cell().unusable.swap(0, AcqRel) != 0
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let cell = self.cell();
        cell.version.store(self.version.wrapping_add(1), Release);
    }
}

/// A database, as the guard reads it.
#[derive(Clone, Copy, Debug)]
pub struct Database {
    /// Another one, or another life of it, has another.
    pub version: u32,
    /// Device of the file.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    name: [u8; FILE_NAME],
    length: usize,
}

impl Database {
    /// Name of the file.
    pub fn name(&self) -> Option<&str> {
        std::str::from_utf8(self.name.get(..self.length)?).ok()
    }
}

/// What the daemon wants of the guard's lock on all records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Nothing.
    Nothing,
    /// It is offered to the daemon.
    Offered,
    /// The daemon works under it.
    Claimed,
    /// It may go.
    LetGo,
}

impl Watcher {
    fn cell(&self, index: usize) -> &Cell {
        &page(&self.mapping).databases[index]
    }

    /// The right to serve; `None` before the first.
    pub fn right(&self) -> Option<Right> {
        let right = page(&self.mapping).right.get();
        (right.slot != 0).then_some(right)
    }

    /// The detector thread has died, and what it wrote last counts no more for those that have not.
    pub fn end_right(&self) {
        page(&self.mapping).right.until.store(0, SeqCst);
    }

    /// Number of the daemon's process.
    pub fn daemon(&self) -> u32 {
        page(&self.mapping).creator.load(Relaxed)
    }

    /// The version of the database in a cell below [`DATABASES`]; `None`: there is none.
    pub fn version(&self, index: usize) -> Option<u32> {
        let version = self.cell(index).version.load(Acquire);
        (!version.is_multiple_of(2)).then_some(version)
    }

    /// The database in a cell.
    pub fn database(&self, index: usize) -> Option<Database> {
        let cell = self.cell(index);
        for _ in 0..READ_ATTEMPTS {
            let version = self.version(index)?;
            let mut name = [0; FILE_NAME];
            let words: [u64; WORDS] = array::from_fn(|at| cell.name[at].load(Relaxed));
            for (bytes, word) in name.chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
            let database = Database {
                version,
                device: cell.device.load(Relaxed),
                inode: cell.inode.load(Relaxed),
                name,
                length: cell.length.load(Relaxed) as usize,
            };
            fence(Acquire);
            if cell.version.load(Relaxed) == version {
                return Some(database);
            }
        }
        None
    }

    /// What the daemon's own lock is doing; and whether it is about to give one back.
    pub fn own(&self, index: usize) -> (Own, bool) {
        fence(SeqCst);
        let cell = self.cell(index);
        let thawing = cell.thawing.load(SeqCst) != 0;
        let own = match cell.own.load(SeqCst) {
            FREEZING => Own::Freezing,
            FROZEN => Own::Frozen,
            _ => Own::Served,
        };
        (own, thawing)
    }

    /// Whether the daemon has recovered and serves the database in the right of that slot.
    pub fn is_served(&self, index: usize, slot: u32) -> bool {
        slot != 0 && self.cell(index).served.load(SeqCst) == slot
    }

    /// What the daemon wants of the guard's lock.
    pub fn wish(&self, index: usize, version: u32) -> Wish {
        let found = self.cell(index).guard.load(Acquire);
        match [HELD, CLAIMED, LET_GO].map(|state| word(version, state) == found) {
            [true, _, _] => Wish::Offered,
            [_, true, _] => Wish::Claimed,
            [_, _, true] => Wish::LetGo,
            _ => Wish::Nothing,
        }
    }

    fn change(&self, index: usize, version: u32, from: u32, to: u32) -> bool {
        self.cell(index)
            .guard
            .compare_exchange(word(version, from), word(version, to), AcqRel, Acquire)
            .is_ok()
    }

    /// The guard holds all records, for whom it may concern.
    pub fn offer(&self, index: usize, version: u32) {
        self.change(index, version, FREE, HELD);
    }

    /// The daemon let go, but the right has ended again: it is kept.
    pub fn keep(&self, index: usize, version: u32) {
        self.change(index, version, LET_GO, HELD);
    }

    /// Takes the offer back, unless the daemon has claimed it: then `false`.
    pub fn withdraw(&self, index: usize, version: u32) -> bool {
        self.change(index, version, HELD, FREE) || self.change(index, version, LET_GO, FREE)
    }

    /// A process stands in the way.
    pub fn say_blocked(&self, index: usize, pid: u32) {
        self.cell(index).blocked.store(pid, Release);
    }

    /// It was ended.
    pub fn say_ended(&self, index: usize, pid: u32) {
        self.cell(index).ended.store(pid, Release);
    }

    /// The file cannot be used.
    pub fn say_unusable(&self, index: usize) {
        self.cell(index).unusable.store(1, Release);
    }
}
