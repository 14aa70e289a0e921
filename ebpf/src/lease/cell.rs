//! The deadlines, mapped.
#![allow(unsafe_code)]

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{SLOTS, pins};
use crate::{
    Error,
    robust::{Holding, RobustMutex},
    sys::Mapping,
};

type Deadlines = [AtomicU64; SLOTS as usize];

/// The deadlines that the kernel programs read, one for each slot: nanoseconds of the boot-time
/// clock ([`crate::boot_ns`]). Nothing here makes a system call or allocates.
#[derive(Debug, Clone)]
pub struct DeadlineCell {
    deadlines: Arc<Mapping>,
    holder: Arc<Mapping>,
}

impl DeadlineCell {
    pub(super) fn map(deadline: BorrowedFd<'_>, holder: BorrowedFd<'_>) -> Result<Self, Error> {
        let map = |fd, len, name: &'static str| {
            Mapping::new(fd, len)
                .map(Arc::new)
                .map_err(|error| Error::system("mapping lease map", name, error))
        };
        Ok(Self {
            deadlines: map(deadline, size_of::<Deadlines>(), pins::DEADLINE.pin)?,
            holder: map(holder, pins::HOLDER.value_size as usize, pins::HOLDER.pin)?,
        })
    }

    fn deadlines(&self) -> &Deadlines {
        // SAFETY: atomics, mapped with this size.
        unsafe { self.deadlines.cast() }
    }

    /// Moves the deadline of a slot. Slot 0 and slots beyond [`SLOTS`] do not move.
    pub fn set(&self, slot: u32, boot_ns: u64) {
        if slot == 0 {
            return;
        }
        if let Some(deadline) = self.deadlines().get(slot as usize) {
            deadline.store(boot_ns, Ordering::SeqCst);
        }
    }

    /// The deadline of a slot; 0 if there is none.
    pub fn get(&self, slot: u32) -> u64 {
        self.deadlines()
            .get(slot as usize)
            .map_or(0, |deadline| deadline.load(Ordering::SeqCst))
    }

    /// Ends all deadlines: everything public is silent when this returns.
    pub fn end_all(&self) {
        end(self.deadlines());
    }

    /// Binds all deadlines to the life of the calling thread, which is the one that renews them:
    /// when it dies, however it dies, the kernel marks that before it closes the process's
    /// sockets, and the programs then drop all that is public, guard or not. To be called once.
    pub fn hold(&self) -> Result<Renewing, Error> {
        let holding = RobustMutex::at(Arc::clone(&self.holder))
            .hold()
            .map_err(Error::Mutex)?;
        Ok(Renewing {
            cell: self.clone(),
            holding: Some(holding),
        })
    }

    /// Makes the mutex of [`DeadlineCell::hold`] new. Only when nothing is granted.
    pub(super) fn reset_holder(&self) -> Result<(), Error> {
        RobustMutex::at(Arc::clone(&self.holder))
            .initialize()
            .map_err(Error::Mutex)
    }
}

/// The thread that renews the deadlines lives. Dropping it ends all of them.
#[derive(Debug)]
pub struct Renewing {
    cell: DeadlineCell,
    // Keeps this from leaving its thread.
    holding: Option<Holding>,
}

impl Drop for Renewing {
    fn drop(&mut self) {
        self.cell.end_all();
        if let Some(holding) = self.holding.take() {
            holding.release();
        }
    }
}

/// Ends the deadlines that a predecessor pinned in `dir`, whatever became of its other maps.
pub(super) fn end_pinned(dir: &Path) -> Result<(), Error> {
    let deadline = pins::open(dir, &pins::DEADLINE)?;
    let mapping = Mapping::new(deadline.as_fd(), size_of::<Deadlines>())
        .map_err(|error| Error::system("mapping lease map", pins::DEADLINE.pin, error))?;
    // SAFETY: atomics, mapped with this size.
    let deadlines: &Deadlines = unsafe { mapping.cast() };
    end(deadlines);
    Ok(())
}

fn end(deadlines: &Deadlines) {
    for deadline in deadlines {
        deadline.store(0, Ordering::SeqCst);
    }
}

/// The deadlines that a daemon pinned in `dir`: for its guard, which ends them when it dies.
pub fn open_pinned_deadline(dir: &Path) -> Result<DeadlineCell, Error> {
    let deadline = pins::open(dir, &pins::DEADLINE)?;
    let holder = pins::open(dir, &pins::HOLDER)?;
    DeadlineCell::map(deadline.as_fd(), holder.as_fd())
}
