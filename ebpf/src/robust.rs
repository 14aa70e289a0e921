//! A robust mutex in shared memory: the kernel marks it when the thread that holds it dies,
//! however it dies, before it closes the process's files.
#![allow(unsafe_code)]

use std::{
    cell::UnsafeCell,
    io,
    marker::PhantomData,
    mem::{ManuallyDrop, MaybeUninit},
    sync::Arc,
};

use crate::sys::Mapping;

/// Room for a `pthread_mutex_t` (40 bytes on x86-64, 48 at most elsewhere).
#[repr(C, align(8))]
#[derive(Debug)]
pub(crate) struct Room(UnsafeCell<[u8; 64]>);

const _: () = assert!(size_of::<libc::pthread_mutex_t>() <= size_of::<Room>());

/// What an attempt to take it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It was free.
    Free,
    /// Its holder died with it.
    OwnerDied,
}

/// The mutex, and the mapping that it is in.
#[derive(Debug, Clone)]
pub(crate) struct RobustMutex {
    mapping: Arc<Mapping>,
}

/// Held by this thread until it releases it or dies; dropping does nothing.
#[derive(Debug)]
pub(crate) struct Holding {
    // Never unmapped while held: the kernel walks to it when the thread dies.
    mutex: ManuallyDrop<RobustMutex>,
    not_send: PhantomData<*const ()>,
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(result))
    }
}

impl RobustMutex {
    /// The mutex at the start of a mapping, to which [`RobustMutex::initialize`] was or will be
    /// applied by the one that makes it.
    pub(crate) fn at(mapping: Arc<Mapping>) -> Self {
        Self { mapping }
    }

    fn pointer(&self) -> *mut libc::pthread_mutex_t {
        // SAFETY: a room is an `UnsafeCell`, valid for all bytes.
        unsafe { self.mapping.cast::<Room>() }.0.get().cast()
    }

    /// Makes it new; nobody may be using it.
    pub(crate) fn initialize(&self) -> io::Result<()> {
        let mut attributes = MaybeUninit::<libc::pthread_mutexattr_t>::uninit();
        // SAFETY: the room is large and aligned enough; the attributes are initialized first.
        unsafe {
            check(libc::pthread_mutexattr_init(attributes.as_mut_ptr()))?;
            let attributes = attributes.assume_init_mut();
            check(libc::pthread_mutexattr_setpshared(
                attributes,
                libc::PTHREAD_PROCESS_SHARED,
            ))?;
            check(libc::pthread_mutexattr_setrobust(
                attributes,
                libc::PTHREAD_MUTEX_ROBUST,
            ))?;
            let result = check(libc::pthread_mutex_init(self.pointer(), attributes));
            libc::pthread_mutexattr_destroy(attributes);
            result
        }
    }

    /// Takes it for this thread. A predecessor's death is no obstacle: there is no state to
    /// repair.
    pub(crate) fn hold(&self) -> io::Result<Holding> {
        // SAFETY: an initialized mutex.
        let result = unsafe { libc::pthread_mutex_trylock(self.pointer()) };
        match result {
            0 => {}
            libc::EOWNERDEAD => {
                // SAFETY: held by this thread.
                check(unsafe { libc::pthread_mutex_consistent(self.pointer()) })?;
            }
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        Ok(Holding {
            mutex: ManuallyDrop::new(self.clone()),
            not_send: PhantomData,
        })
    }

    /// Waits until its holder is gone, and lets it go at once. After a death it stays unusable.
    pub(crate) fn outlast(&self) -> io::Result<Taken> {
        // SAFETY: an initialized mutex.
        let result = unsafe { libc::pthread_mutex_lock(self.pointer()) };
        let taken = match result {
            0 => Taken::Free,
            libc::EOWNERDEAD => Taken::OwnerDied,
            // Somebody else saw the death before.
            libc::ENOTRECOVERABLE => return Ok(Taken::OwnerDied),
            error => return Err(io::Error::from_raw_os_error(error)),
        };
        // SAFETY: held by this thread.
        unsafe { libc::pthread_mutex_unlock(self.pointer()) };
        Ok(taken)
    }
}

impl Holding {
    /// Lets it go, in the thread that took it.
    pub(crate) fn release(self) {
        // SAFETY: held by this thread, since `Holding` cannot leave it.
        unsafe { libc::pthread_mutex_unlock(self.mutex.pointer()) };
        let Self { mutex, .. } = self;
        drop(ManuallyDrop::into_inner(mutex));
    }
}
