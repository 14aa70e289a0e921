//! Ending another thread's wait for a byte-range lock: a signal that does nothing makes the kernel
//! return from it.
//!
//! SIGURG is taken because it is ignored by default, so that a stray one does no harm. A handler
//! that the process has for it stays, and then ends the wait as well if it was installed without
//! `SA_RESTART`. A signal that comes just before the wait begins is lost: who cancels signals again
//! (see `waiter`).
//!
//! Unsafe is needed for installing the handler and for signalling a thread.
#![allow(unsafe_code)]

use std::os::unix::thread::JoinHandleExt as _;
use std::ptr;
use std::sync::Once;
use std::thread::JoinHandle;

extern "C" fn nothing(_signal: libc::c_int) {}

/// Makes [`interrupt`] work in this process.
pub(crate) fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is valid, both calls get pointers to live values, and the
        // handler does nothing.
        unsafe {
            let mut former: libc::sigaction = std::mem::zeroed();
            let asked = libc::sigaction(libc::SIGURG, ptr::null(), &raw mut former);
            if asked == 0 && matches!(former.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN) {
                let mut ours: libc::sigaction = std::mem::zeroed();
                ours.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
                libc::sigemptyset(&raw mut ours.sa_mask);
                libc::sigaction(libc::SIGURG, &raw const ours, ptr::null_mut());
            }
        }
    });
}

/// Makes a thread return from the system call in which it waits.
pub(crate) fn interrupt(thread: &JoinHandle<()>) {
    // SAFETY: the handle was neither joined nor detached, so its thread id is still that thread's,
    // also when it has ended.
    unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGURG) };
}
