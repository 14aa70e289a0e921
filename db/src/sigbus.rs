//! SIGBUS on a mapped file becomes a flag.
//!
//! A file that somebody truncates, or whose medium fails, answers an access to its map with SIGBUS.
//! Every map of this crate stands in a list of windows. The handler finds the window of the faulting
//! address, puts zeros in place of the rest of the map, marks the window as faulted and returns: the
//! access goes on with zeros (or writes to where nobody reads), and whoever made it looks at the
//! mark afterwards and drops what it read. A fault anywhere else goes to the handler that was there
//! before.
//!
//! Unsafe is needed to install a handler, to call the former one, and to map from within it. What
//! the handler does is safe in a signal: atomics, `mmap`, nothing that allocates or locks. Windows are
//! never freed, only used again, so the handler may walk the list at any time.
#![allow(unsafe_code)]

use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};

use libc::{c_int, c_void, siginfo_t};

/// An address range whose faults are ours.
#[derive(Debug)]
pub(crate) struct Window {
    taken: AtomicBool,
    /// Odd while `start` and `end` change.
    version: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    faulted: AtomicBool,
    next: *const Window,
}

// SAFETY: `next` is set before the window is published and points to one that is never freed; the
// rest is atomic.
unsafe impl Sync for Window {}
// SAFETY: as above.
unsafe impl Send for Window {}

static WINDOWS: AtomicPtr<Window> = AtomicPtr::new(ptr::null_mut());
static FORMER: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

fn windows() -> impl Iterator<Item = &'static Window> {
    let mut at: *const Window = WINDOWS.load(Ordering::Acquire);
    std::iter::from_fn(move || {
        // SAFETY: published windows are initialised and never freed.
        let window = unsafe { at.as_ref()? };
        at = window.next;
        Some(window)
    })
}

impl Window {
    /// A window for `len` bytes at `start`. Installs the handler before the first one.
    pub(crate) fn open(start: usize, len: usize) -> io::Result<&'static Self> {
        (*INSTALLED.get_or_init(install)).map_err(io::Error::from_raw_os_error)?;
        let free = windows().find(|window| {
            let taken = &window.taken;
            taken
                .compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        let window = free.unwrap_or_else(|| {
            let window = Box::leak(Box::new(Self {
                taken: AtomicBool::new(true),
                version: AtomicUsize::new(0),
                start: AtomicUsize::new(0),
                end: AtomicUsize::new(0),
                faulted: AtomicBool::new(false),
                next: ptr::null(),
            }));
            let mut head = WINDOWS.load(Ordering::Acquire);
            loop {
                window.next = head;
                let new: *mut Self = window;
                match WINDOWS.compare_exchange(head, new, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => break,
                    Err(other) => head = other,
                }
            }
            window
        });
        window.set(start, len);
        Ok(window)
    }

    fn set(&self, start: usize, len: usize) {
        self.version.fetch_add(1, Ordering::AcqRel);
        fence(Ordering::SeqCst);
        self.start.store(start, Ordering::Relaxed);
        self.end.store(start.saturating_add(len), Ordering::Relaxed);
        self.faulted.store(false, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// The map is about to go.
    pub(crate) fn close(&self) {
        self.set(0, 0);
        self.taken.store(false, Ordering::Release);
    }

    /// Whether an access faulted: what was read since may be zeros that are not in the file, what
    /// was written may be lost.
    #[inline]
    pub(crate) fn has_faulted(&self) -> bool {
        // The handler runs on the thread that made the access, so program order is enough; the
        // fence keeps the compiler from asking before the access.
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
        self.faulted.load(Ordering::Relaxed)
    }

    /// The end of the window, if `address` lies in it.
    fn end_if_inside(&self, address: usize) -> Option<usize> {
        // Its owner changes a window only while no access to it can be under way, so a window that
        // is changing is not the one that faulted.
        let version = self.version.load(Ordering::Acquire);
        let (start, end) = (
            self.start.load(Ordering::Relaxed),
            self.end.load(Ordering::Relaxed),
        );
        fence(Ordering::SeqCst);
        let quiet = version.is_multiple_of(2) && version == self.version.load(Ordering::Acquire);
        (quiet && (start..end).contains(&address)).then_some(end)
    }
}

fn install() -> Result<(), i32> {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(0);
    // SAFETY: an all-zero sigaction is valid; both calls get pointers to live values.
    unsafe {
        let mut former: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut former) != 0 {
            return Err(errno());
        }
        // Known before our handler can run.
        let _ = FORMER.set(former);
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = handler as extern "C" fn(c_int, *mut siginfo_t, *mut c_void) as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut ours.sa_mask);
        if libc::sigaction(libc::SIGBUS, &raw const ours, ptr::null_mut()) != 0 {
            return Err(errno());
        }
    }
    Ok(())
}

extern "C" fn handler(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler; errno is this thread's.
    let (address, errno_at) = unsafe { ((*info).si_addr() as usize, libc::__errno_location()) };
    // SAFETY: as above.
    let errno = unsafe { *errno_at };
    let found = windows().find_map(|window| Some((window, window.end_if_inside(address)?)));
    if let Some((window, end)) = found {
        let page = rustix::param::page_size();
        let start = address - address % page;
        let len = end.next_multiple_of(page) - start;
        // SAFETY: the range lies in a map that this crate owns, whose content is lost from here on:
        // what stood beyond a file's end is beyond it for all that follows too.
        let mapped = unsafe {
            libc::mmap(
                start as *mut c_void,
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        if mapped != libc::MAP_FAILED {
            window.faulted.store(true, Ordering::Relaxed);
            // SAFETY: as above.
            unsafe { *errno_at = errno };
            return;
        }
    }
    pass_on(signal, info, context);
}

/// A fault that is not ours: what was there before decides.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if let Some(former) = FORMER.get() {
        let action = former.sa_sigaction;
        if action != libc::SIG_DFL && action != libc::SIG_IGN {
            // SAFETY: the kernel told us that this is the process's handler, of the kind that its
            // flags say.
            unsafe {
                if former.sa_flags & libc::SA_SIGINFO != 0 {
                    let call: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                        std::mem::transmute(action);
                    call(signal, info, context);
                } else {
                    let call: extern "C" fn(c_int) = std::mem::transmute(action);
                    call(signal);
                }
            }
            return;
        }
    }
    // SAFETY: an all-zero sigaction is SIG_DFL. The access is made again, and ends the process.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGBUS, &raw const default, ptr::null_mut());
    }
}
