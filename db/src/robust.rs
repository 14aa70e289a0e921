//! The protocol of the mutexes: who may have a chain while somebody has, or wants, all of them
//! (spec/database.md B.6.3, B.6.4). Over any implementation of the mutexes, so that the tests can
//! put a model in their place.
//!
//! Who wants all records takes the mutex of all, says so in the state, then takes and gives back
//! every chain's mutex once (the sweep): who had a chain before the state was set is waited for, who
//! takes one later sees the state and waits for the mutex of all.

use crate::lock::{LockKind, Patience};

/// A mutex of the area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// That of all records.
    All,
    /// 0: the freelist's; `i + 1`: that of chain `i`.
    Nth(u32),
}

/// What became of a mutex that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    /// Nothing special.
    Clean,
    /// Its owner died with it: to be made consistent.
    OwnerDied,
}

/// Robust mutexes of one file, and the state beside them.
pub(crate) trait Mutexes {
    /// Why one cannot be had.
    type Error;
    /// Takes a mutex.
    fn lock(&self, which: Which, patience: &mut Patience) -> Result<Got, Self::Error>;
    /// Gives it back.
    fn unlock(&self, which: Which) -> Result<(), Self::Error>;
    /// Makes one good whose owner died.
    fn make_consistent(&self, which: Which) -> Result<(), Self::Error>;
    /// Whether nobody has one, as if it were taken and given back: who takes it later sees a state
    /// that was set before. `false`: to be found out by taking it.
    fn is_free(&self, which: Which) -> bool;
    /// How all records are locked: `F_RDLCK`, `F_WRLCK` or `F_UNLCK` of this machine.
    fn state(&self) -> u16;
    /// Changed only by who has the mutex of all.
    fn set_state(&self, state: u16);
    /// Number of chains.
    fn chains(&self) -> u32;
}

const NOBODY: u16 = libc::F_UNLCK as u16;
const SHARED: u16 = libc::F_RDLCK as u16;

fn state_of(kind: LockKind) -> u16 {
    match kind {
        LockKind::Shared => SHARED,
        LockKind::Exclusive => libc::F_WRLCK as u16,
    }
}

/// Takes a mutex; a dead owner's is made good. A chain's records need no repair of their own (a
/// record is linked by its last word), and the state of all records is nobody's now.
fn take<M: Mutexes>(area: &M, which: Which, patience: &mut Patience) -> Result<(), M::Error> {
    match area.lock(which, patience)? {
        Got::Clean => Ok(()),
        Got::OwnerDied => {
            if which == Which::All {
                area.set_state(NOBODY);
            }
            let good = area.make_consistent(which);
            if good.is_err() {
                let _ = area.unlock(which);
            }
            good
        }
    }
}

/// Takes the mutex of the freelist (0) or of a chain (`i + 1`). `nested`: this handle holds another
/// chain, so a sweeper waits for us and we must not wait for it.
pub(crate) fn lock_one<M: Mutexes>(
    area: &M,
    index: u32,
    kind: LockKind,
    nested: bool,
    patience: &mut Patience,
) -> Result<(), M::Error> {
    loop {
        take(area, Which::Nth(index), patience)?;
        if index == 0 || nested {
            return Ok(());
        }
        let state = area.state();
        if state == NOBODY || (kind == LockKind::Shared && lets_readers_in(state)) {
            return Ok(());
        }
        area.unlock(Which::Nth(index))?;
        // The wait for whoever has all records.
        take(area, Which::All, patience)?;
        area.unlock(Which::All)?;
    }
}

/// Whether who takes a chain for reading may have it in that state.
#[inline]
pub(crate) fn lets_readers_in(state: u16) -> bool {
    state == NOBODY || state == SHARED
}

/// Whether who holds a chain for reading may change it: nobody has, or is about to have, all records.
pub(crate) fn may_upgrade<M: Mutexes>(area: &M) -> bool {
    area.state() == NOBODY
}

/// Waits until nobody has a chain that was taken before the state was set.
fn sweep<M: Mutexes>(area: &M, patience: &mut Patience) -> Result<(), M::Error> {
    for chain in 0..area.chains() {
        let which = Which::Nth(chain + 1);
        if area.is_free(which) {
            continue;
        }
        take(area, which, patience)?;
        area.unlock(which)?;
    }
    Ok(())
}

/// Takes all records. `Ok(false)`: the state says that somebody has them, without the mutex.
pub(crate) fn lock_all<M: Mutexes>(
    area: &M,
    kind: LockKind,
    patience: &mut Patience,
) -> Result<bool, M::Error> {
    take(area, Which::All, patience)?;
    if area.state() != NOBODY {
        area.unlock(Which::All)?;
        return Ok(false);
    }
    area.set_state(state_of(kind));
    if let Err(error) = sweep(area, patience) {
        unlock_all(area)?;
        return Err(error);
    }
    Ok(true)
}

/// Makes a shared lock on all records exclusive.
pub(crate) fn upgrade_all<M: Mutexes>(area: &M, patience: &mut Patience) -> Result<(), M::Error> {
    area.set_state(state_of(LockKind::Exclusive));
    let swept = sweep(area, patience);
    if swept.is_err() {
        area.set_state(SHARED);
    }
    swept
}

/// Gives all records back.
pub(crate) fn unlock_all<M: Mutexes>(area: &M) -> Result<(), M::Error> {
    area.set_state(NOBODY);
    area.unlock(Which::All)
}

/// Takes the mutex of all and says so in the state, whatever it was, without a sweep: nobody new
/// comes to a chain, who has one keeps it.
pub(crate) fn close<M: Mutexes>(area: &M, patience: &mut Patience) -> Result<(), M::Error> {
    take(area, Which::All, patience)?;
    area.set_state(state_of(LockKind::Exclusive));
    Ok(())
}

/// Says in the state that all records are held, without the mutex: only for who takes it as soon as
/// it can and then gives it back.
pub(crate) fn bar<M: Mutexes>(area: &M) {
    area.set_state(state_of(LockKind::Exclusive));
}
