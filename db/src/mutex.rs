//! The mutex area of a file: robust process-shared mutexes of the C library (spec/database.md B.6).
//!
//! libtdb processes lock the same mutexes, so only the C library that they use may touch them: it
//! keeps each thread's list of held mutexes for the kernel. What this module adds is the care that
//! the C library does not take: the word that tells a mutex's kind is compared before every call,
//! since with another kind the library would do whatever that kind says; the area is mapped once,
//! and its address space is never given back while a mutex in it is held or after it faulted.
//!
//! Unsafe is needed for the calls into the C library.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use libc::{c_int, pthread_mutex_t};

use crate::format::HEADER_LEN;
use crate::lock::Patience;
use crate::map::Map;
use crate::robust::{Got, Mutexes, Which};

/// The beginning of the file, laid out by the platform's rules (B.6.1). Only its offsets are used.
#[repr(C)]
struct Layout {
    header: [u8; HEADER_LEN as usize],
    all: pthread_mutex_t,
    state: i16,
    mutexes: [pthread_mutex_t; 1],
}

const MUTEX_LEN: usize = size_of::<pthread_mutex_t>();

/// Size of the mutex area of a file with `hash_size` chains, on this machine.
pub(crate) fn area_size(hash_size: u32) -> Option<u32> {
    let size = (hash_size as usize)
        .checked_mul(MUTEX_LEN)?
        .checked_add(size_of::<Layout>())?
        .checked_next_multiple_of(rustix::param::page_size())?;
    u32::try_from(size).ok()
}

/// What a new mutex of ours looks like: zeros but for one word.
#[derive(Clone, Copy, Debug)]
struct Kind {
    /// Offset of the word in the mutex.
    at: usize,
    word: u32,
}

/// Attributes of every mutex (B.6.1).
struct Attributes(libc::pthread_mutexattr_t);

fn check(result: c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut raw = MaybeUninit::uninit();
        // SAFETY: initialises what it is given.
        check(unsafe { libc::pthread_mutexattr_init(raw.as_mut_ptr()) })?;
        // SAFETY: initialised by the call above.
        let mut this = Self(unsafe { raw.assume_init() });
        let raw = &raw mut this.0;
        // SAFETY: all three get initialised attributes.
        unsafe {
            check(libc::pthread_mutexattr_settype(
                raw,
                libc::PTHREAD_MUTEX_ERRORCHECK,
            ))?;
            check(libc::pthread_mutexattr_setpshared(
                raw,
                libc::PTHREAD_PROCESS_SHARED,
            ))?;
            check(libc::pthread_mutexattr_setrobust(
                raw,
                libc::PTHREAD_MUTEX_ROBUST,
            ))?;
        }
        Ok(this)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised by `new`, not used after.
        unsafe { libc::pthread_mutexattr_destroy(&raw mut self.0) };
    }
}

/// A mutex on the heap, for the probe.
struct Probe(Box<pthread_mutex_t>);

// SAFETY: a process-shared mutex may be used from anywhere.
unsafe impl Send for Probe {}

impl Probe {
    fn at(&self) -> *mut pthread_mutex_t {
        (&raw const *self.0).cast_mut()
    }
}

/// Whether robust mutexes work here, and what they look like. Asked once (B.6.5, last line): a
/// thread locks one and ends; the next must be told, and can make it good.
fn probe() -> Option<Kind> {
    static KIND: OnceLock<Option<Kind>> = OnceLock::new();
    *KIND.get_or_init(|| {
        if !cfg!(all(target_os = "linux", target_env = "gnu")) {
            return None;
        }
        let attributes = Attributes::new().ok()?;
        // SAFETY: zeros are a valid value of this plain C structure, initialised next.
        let mut probe = Probe(Box::new(unsafe { std::mem::zeroed() }));
        let at = &raw mut *probe.0;
        // SAFETY: memory of ours that nobody else knows of.
        check(unsafe { libc::pthread_mutex_init(at, &raw const attributes.0) }).ok()?;
        let mut found = None;
        for i in 0..MUTEX_LEN / 4 {
            // SAFETY: inside the mutex, which is aligned to more than 4 bytes and was zeroed.
            let word = unsafe { at.cast::<u32>().add(i).read() };
            if word != 0 {
                if found.is_some() {
                    return None;
                }
                found = Some(Kind { at: 4 * i, word });
            }
        }
        let kind = found?;
        let locker = std::thread::spawn(move || {
            // SAFETY: an initialised mutex, that outlives this thread.
            let locked = check(unsafe { libc::pthread_mutex_lock(probe.at()) });
            (probe, locked)
        });
        let (probe, locked) = locker.join().ok()?;
        locked.ok()?;
        let at = probe.at();
        // SAFETY: an initialised mutex; its owner has ended.
        unsafe {
            // The kernel marks it before the join returns: it walks the list before it clears the
            // thread's id, for which the join waits.
            let works = libc::pthread_mutex_trylock(at) == libc::EOWNERDEAD
                && libc::pthread_mutex_consistent(at) == 0
                && matches!(libc::pthread_mutex_trylock(at), libc::EBUSY | libc::EDEADLK)
                && libc::pthread_mutex_lock(at) == libc::EDEADLK
                && libc::pthread_mutex_unlock(at) == 0
                && libc::pthread_mutex_unlock(at) == libc::EPERM
                && libc::pthread_mutex_destroy(at) == 0;
            works.then_some(kind)
        }
    })
}

/// Whether this machine has what mutex files need.
pub(crate) fn supported() -> bool {
    probe().is_some()
}

/// The mapped mutex area of one handle.
#[derive(Debug)]
pub(crate) struct MutexArea {
    /// `None` only while dropping.
    map: Option<Map>,
    kind: Kind,
    chains: u32,
    /// Mutexes that threads of this process hold through this map.
    held: AtomicUsize,
}

/// Why a mutex cannot be used.
#[derive(Debug)]
pub(crate) enum MutexError {
    /// Somebody else has it, and the time is over; or this thread has it by another handle.
    Busy,
    /// The thread that unlocks is not the one that locked.
    NotOwner,
    /// The bytes are not a mutex of ours.
    Damaged,
    /// The area was truncated.
    Faulted,
    /// What the C library said.
    System(io::Error),
}

impl MutexArea {
    /// Maps the area of a file with `chains` chains.
    pub(crate) fn map(file: &File, chains: u32) -> io::Result<Self> {
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        let kind = probe().ok_or_else(unsupported)?;
        let len = area_size(chains).ok_or(io::ErrorKind::FileTooLarge)? as usize;
        let map = Map::new(file, 0, len, 0, true)?;
        Ok(Self {
            map: Some(map),
            kind,
            chains,
            held: AtomicUsize::new(0),
        })
    }

    /// Not an atomic addition: one thread at a time uses the handle.
    fn count(&self, change: isize) {
        let held = self.held.load(Ordering::Relaxed);
        self.held
            .store(held.saturating_add_signed(change), Ordering::Relaxed);
    }

    fn area(&self) -> Result<&Map, MutexError> {
        self.map.as_ref().ok_or(MutexError::Faulted)
    }

    /// Makes all mutexes new and the state "nobody". Nobody else may use the file.
    pub(crate) fn initialise(&self) -> io::Result<()> {
        let attributes = Attributes::new()?;
        for which in std::iter::once(Which::All).chain((0..=self.chains).map(Which::Nth)) {
            let mutex = self.place(which).ok_or(io::ErrorKind::InvalidInput)?;
            let zeros = [0; MUTEX_LEN];
            if !self
                .map
                .as_ref()
                .is_some_and(|map| map.write(Self::offset(which), &zeros))
            {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            // SAFETY: memory of a mutex's size and alignment inside the map; the caller vouches
            // that nobody uses it.
            check(unsafe { libc::pthread_mutex_init(mutex, &raw const attributes.0) })?;
        }
        self.set_state(libc::F_UNLCK as u16);
        Ok(())
    }

    fn offset(which: Which) -> usize {
        match which {
            Which::All => offset_of!(Layout, all),
            Which::Nth(n) => offset_of!(Layout, mutexes) + MUTEX_LEN * n as usize,
        }
    }

    #[inline]
    fn place(&self, which: Which) -> Option<*mut pthread_mutex_t> {
        if matches!(which, Which::Nth(n) if n > self.chains) {
            return None;
        }
        let place = self
            .map
            .as_ref()?
            .address(Self::offset(which), MUTEX_LEN)?
            .cast::<pthread_mutex_t>();
        place.is_aligned().then_some(place.as_ptr())
    }

    /// The mutex, if its bytes are those of one of ours.
    #[inline]
    fn checked(&self, which: Which) -> Result<*mut pthread_mutex_t, MutexError> {
        let mutex = self.place(which).ok_or(MutexError::Damaged)?;
        let word = self.area()?.load(Self::offset(which) + self.kind.at);
        self.check_fault()?;
        if word == Some(self.kind.word) {
            Ok(mutex)
        } else {
            Err(MutexError::Damaged)
        }
    }

    /// The thread that has a mutex; 0: nobody. Who took it since the state of all records was set
    /// sees that state: the look is a change of the mutex's word, to what it was.
    pub(crate) fn owner(&self, which: Which) -> Result<u32, MutexError> {
        self.checked(which)?;
        let word = self.area()?.touch(Self::offset(which));
        self.check_fault()?;
        Ok(word.ok_or(MutexError::Damaged)? & THREAD)
    }

    /// Takes a mutex that is free, and nothing else. `false`: not taken.
    #[inline]
    pub(crate) fn try_quickly(&self, index: u32) -> bool {
        let Ok(mutex) = self.checked(Which::Nth(index)) else {
            return false;
        };
        // SAFETY: an initialised mutex of ours in the map, which stays while it is held.
        let result = unsafe { libc::pthread_mutex_trylock(mutex) };
        if !matches!(result, 0 | libc::EOWNERDEAD) {
            return false;
        }
        self.count(1);
        if result == libc::EOWNERDEAD && self.make_consistent(Which::Nth(index)).is_err() {
            self.unlock_quickly(index);
            return false;
        }
        true
    }

    /// Gives back what [`Self::try_quickly`] took. `false`: something is wrong, ask the general way.
    #[inline]
    pub(crate) fn unlock_quickly(&self, index: u32) -> bool {
        self.unlock(Which::Nth(index)).is_ok()
    }

    /// Looks at a busy mutex for a moment, and takes it if it becomes free; what the C library said.
    fn look(&self, which: Which) -> Result<c_int, MutexError> {
        let mutex = self.checked(which)?;
        let mut said = libc::EBUSY;
        for _ in 0..LOOKS {
            std::hint::spin_loop();
            let word = self.area()?.load(Self::offset(which));
            if word.is_some_and(|word| word & THREAD == 0) {
                // SAFETY: an initialised mutex of ours in the map, which stays while it is held.
                said = unsafe { libc::pthread_mutex_trylock(mutex) };
                if said != libc::EBUSY {
                    break;
                }
            }
        }
        Ok(said)
    }

    fn check_fault(&self) -> Result<(), MutexError> {
        if self.area()?.has_faulted() {
            return Err(MutexError::Faulted);
        }
        Ok(())
    }

    fn result(&self, result: c_int) -> Result<Got, MutexError> {
        // A mutex in an area that was truncated meanwhile is taken from nobody. Its memory stays.
        if matches!(result, 0 | libc::EOWNERDEAD) {
            self.count(1);
        }
        self.check_fault()?;
        match result {
            0 => Ok(Got::Clean),
            libc::EOWNERDEAD => Ok(Got::OwnerDied),
            libc::EBUSY | libc::ETIMEDOUT | libc::EDEADLK => Err(MutexError::Busy),
            libc::ENOTRECOVERABLE | libc::EINVAL => Err(MutexError::Damaged),
            error => Err(MutexError::System(io::Error::from_raw_os_error(error))),
        }
    }
}

/// The thread in the C library's word of a robust mutex, which is a robust futex (`FUTEX_TID_MASK`), the
/// first of the mutex.
const THREAD: u32 = 0x3fff_ffff;

/// How often to look at a busy mutex before the thread sleeps. Most are held for less than the
/// microseconds that a sleep costs the one who sleeps and the one who wakes him.
const LOOKS: u32 = 50;

/// The longest that one call waits: then the clock, which may have been set, is looked at again, and
/// whether the wait was cancelled.
const SLICE: Duration = Duration::from_millis(100);

impl Mutexes for MutexArea {
    type Error = MutexError;

    fn lock(&self, which: Which, patience: &mut Patience) -> Result<Got, MutexError> {
        let mutex = self.checked(which)?;
        // SAFETY: an initialised mutex of ours in the map, which stays while it is held.
        let first = unsafe { libc::pthread_mutex_trylock(mutex) };
        if first != libc::EBUSY || !patience.begin() {
            return self.result(first);
        }
        let looked = self.look(which)?;
        if looked != libc::EBUSY {
            return self.result(looked);
        }
        loop {
            let Some(left) = patience.left() else {
                return Err(MutexError::Busy);
            };
            let now = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let until = now + left.min(SLICE);
            let until = libc::timespec {
                tv_sec: libc::time_t::try_from(until.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: libc::c_long::from(until.subsec_nanos() as i32),
            };
            let mutex = self.checked(which)?;
            // SAFETY: as above; the time outlives the call.
            let result = unsafe { libc::pthread_mutex_timedlock(mutex, &raw const until) };
            if result != libc::ETIMEDOUT {
                return self.result(result);
            }
        }
    }

    #[inline]
    fn unlock(&self, which: Which) -> Result<(), MutexError> {
        let mutex = self.checked(which)?;
        // SAFETY: an initialised mutex of ours; who does not hold it is refused.
        match unsafe { libc::pthread_mutex_unlock(mutex) } {
            0 => {
                self.count(-1);
                self.check_fault()
            }
            libc::EPERM => Err(MutexError::NotOwner),
            error => Err(MutexError::System(io::Error::from_raw_os_error(error))),
        }
    }

    fn make_consistent(&self, which: Which) -> Result<(), MutexError> {
        let mutex = self.checked(which)?;
        // SAFETY: an initialised mutex of ours.
        check(unsafe { libc::pthread_mutex_consistent(mutex) }).map_err(MutexError::System)
    }

    fn is_free(&self, which: Which) -> bool {
        // All of the word: of a dead owner something is left in it.
        let word = self.checked(which).and_then(|_| self.area());
        let word = word.map(|map| map.touch(Self::offset(which)));
        matches!(word, Ok(Some(0))) && self.check_fault().is_ok()
    }

    #[inline]
    fn state(&self) -> u16 {
        self.map
            .as_ref()
            .and_then(|map| map.half(offset_of!(Layout, state)))
            .map_or(libc::F_UNLCK as u16, |state| state.load(Ordering::Acquire))
    }

    fn set_state(&self, state: u16) {
        let word = self
            .map
            .as_ref()
            .and_then(|map| map.half(offset_of!(Layout, state)));
        if let Some(word) = word {
            word.store(state, Ordering::Release);
        }
    }

    fn chains(&self) -> u32 {
        self.chains
    }
}

impl Drop for MutexArea {
    fn drop(&mut self) {
        let Some(map) = self.map.take() else { return };
        if self.held.load(Ordering::Relaxed) > 0 || map.has_faulted() {
            // The list of some thread of ours leads there. The kernel gives such mutexes to the
            // next who want them when that thread ends.
            map.leak();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B.6.1, on the machine that the numbers were measured on.
    #[test]
    #[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
    fn layout_is_that_of_libtdb() {
        assert_eq!(offset_of!(Layout, all), 168);
        assert_eq!(offset_of!(Layout, state), 208);
        assert_eq!(offset_of!(Layout, mutexes), 216);
        let sizes = [2, 131, 100_001].map(|n| area_size(n).unwrap());
        assert_eq!(sizes, [4096, 8192, 4_001_792]);
        let kind = probe().unwrap();
        assert_eq!((kind.at, kind.word), (16, 0x92));
    }
}
