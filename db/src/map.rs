//! A shared map of a file, read and written by copies.
//!
//! Other processes change these bytes while we look. So no reference into the map ever exists:
//! words are loaded and stored atomically, longer pieces are copied by the C library's `memcpy`
//! through a pointer that the compiler cannot see through, as opaque to it as a system call. What
//! a copy holds while others write is anybody's guess, which is why the record locks are taken
//! first, and why nothing read is believed before it is checked.
//!
//! Every access is checked against the length of the map. A file that is shorter than its map
//! gives zeros and a mark ([`Map::has_faulted`]), see [`crate::sigbus`].
#![allow(unsafe_code)]

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, Ordering};

use libc::c_void;

use crate::sigbus::Window;

/// `memcpy`, `memcmp`: called so that the compiler does not know what they are.
type Copy = unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> *mut c_void;
type Compare = unsafe extern "C" fn(*const c_void, *const c_void, usize) -> libc::c_int;

/// Up to here a comparison is made in place.
const SHORT: usize = 64;

/// A shared map of part of a file.
#[derive(Debug)]
pub(crate) struct Map {
    start: NonNull<u8>,
    /// Bytes of address space.
    reserved: usize,
    /// Bytes that may be accessed.
    len: usize,
    window: &'static Window,
}

// SAFETY: the map is plain shared memory; nothing about it belongs to a thread. Accesses of several
// threads to the same bytes are atomic or opaque copies.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Map {
    /// Maps `len` bytes of `file` from `physical` on, which is a multiple of the page size, with
    /// address space in reserve for the file's growth.
    pub(crate) fn new(
        file: &File,
        physical: u64,
        len: usize,
        reserve: usize,
        writable: bool,
    ) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let reserved = len
            .checked_add(reserve)
            .and_then(|sum| sum.max(1).checked_next_multiple_of(page))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let offset = i64::try_from(physical).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let protection = if writable {
            libc::PROT_READ | libc::PROT_WRITE
        } else {
            libc::PROT_READ
        };
        // SAFETY: a new map at an address of the kernel's choice touches nothing that exists.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                reserved,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        match Window::open(start.as_ptr() as usize, reserved) {
            Ok(window) => Ok(Self {
                start,
                reserved,
                len,
                window,
            }),
            Err(error) => {
                // SAFETY: the map was made above and nobody knows of it.
                unsafe { libc::munmap(start.as_ptr().cast(), reserved) };
                Err(error)
            }
        }
    }

    /// Follows the file's size. `false`: the address space does not reach that far.
    pub(crate) fn set_len(&mut self, len: usize) -> bool {
        let fits = len <= self.reserved;
        if fits {
            self.len = len;
        }
        fits
    }

    /// Bytes that may be accessed.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether an access faulted since the map was made: make a new one.
    #[inline]
    pub(crate) fn has_faulted(&self) -> bool {
        self.window.has_faulted()
    }

    /// Where `len` bytes at `at` are, if they are inside.
    #[inline]
    fn place(&self, at: usize, len: usize) -> Option<NonNull<u8>> {
        let inside = at.checked_add(len).is_some_and(|end| end <= self.len);
        // SAFETY: inside the map, so the result stays in the same allocation.
        inside.then(|| unsafe { self.start.add(at) })
    }

    /// Copies bytes out. `false`: not inside.
    #[inline]
    #[must_use]
    pub(crate) fn read(&self, at: usize, buf: &mut [u8]) -> bool {
        let Some(from) = self.place(at, buf.len()) else {
            return false;
        };
        // SAFETY: source inside the map, target a slice of that length; a new slice and a shared
        // file map do not overlap.
        unsafe { copy(buf.as_mut_ptr(), from.as_ptr(), buf.len()) };
        true
    }

    /// Appends bytes to a vector that has room for them, without zeroing it first. `false`: not
    /// inside, or no room.
    #[must_use]
    pub(crate) fn append_to(&self, at: usize, len: usize, buf: &mut Vec<u8>) -> bool {
        let Some(from) = self.place(at, len) else {
            return false;
        };
        let spare = buf.spare_capacity_mut();
        if spare.len() < len {
            return false;
        }
        // SAFETY: the spare capacity was checked, and is initialised by the copy before the length
        // says so.
        unsafe {
            copy(spare.as_mut_ptr().cast(), from.as_ptr(), len);
            buf.set_len(buf.len() + len);
        }
        true
    }

    /// Copies bytes in. `false`: not inside. The map must be writable.
    #[must_use]
    pub(crate) fn write(&self, at: usize, data: &[u8]) -> bool {
        let Some(to) = self.place(at, data.len()) else {
            return false;
        };
        // SAFETY: target inside the map, source a slice of that length.
        unsafe { copy(to.as_ptr(), data.as_ptr(), data.len()) };
        true
    }

    /// Whether the bytes at `at` are `expected`. `None`: not inside.
    #[inline]
    #[must_use]
    pub(crate) fn equals(&self, at: usize, expected: &[u8]) -> Option<bool> {
        let place = self.place(at, expected.len())?;
        if expected.len() <= SHORT && place.cast::<AtomicU32>().is_aligned() {
            // A call costs more than this.
            let (words, rest) = expected.as_chunks::<4>();
            let mut place = place;
            for word in words {
                // SAFETY: inside the map and aligned, see `word_at`.
                let found = unsafe { place.cast::<AtomicU32>().as_ref() }.load(Ordering::Relaxed);
                if found != u32::from_ne_bytes(*word) {
                    return Some(false);
                }
                // SAFETY: still inside: the whole length was checked.
                place = unsafe { place.add(4) };
            }
            for (i, byte) in rest.iter().enumerate() {
                // SAFETY: as above; a byte is always aligned.
                let found = unsafe { place.add(i).cast::<AtomicU8>().as_ref() };
                if found.load(Ordering::Relaxed) != *byte {
                    return Some(false);
                }
            }
            return Some(true);
        }
        let compare: Compare = black_box(libc::memcmp);
        // SAFETY: both sides have that many bytes.
        let order = unsafe {
            compare(
                place.as_ptr().cast(),
                expected.as_ptr().cast(),
                expected.len(),
            )
        };
        Some(order == 0)
    }

    #[inline]
    fn word_at(&self, at: usize) -> Option<&AtomicU32> {
        let place = self.place(at, 4)?.cast::<AtomicU32>();
        if !place.is_aligned() {
            return None;
        }
        // SAFETY: inside the map, aligned, and every bit pattern is a value. The reference does not
        // outlive the borrow of the map, and others' changes are what an atomic is for.
        Some(unsafe { place.as_ref() })
    }

    /// The word at `at` as the machine reads it. `None`: not inside or not aligned.
    #[inline]
    pub(crate) fn load(&self, at: usize) -> Option<u32> {
        Some(self.word_at(at)?.load(Ordering::Relaxed))
    }

    /// As [`Self::load`], as a change that changes nothing: ordered with all changes of the word.
    pub(crate) fn touch(&self, at: usize) -> Option<u32> {
        Some(self.word_at(at)?.fetch_or(0, Ordering::SeqCst))
    }

    /// `N` words from `at` on.
    #[inline]
    pub(crate) fn load_words<const N: usize>(&self, at: usize) -> Option<[u32; N]> {
        let place = self.place(at, 4 * N)?.cast::<AtomicU32>();
        if !place.is_aligned() {
            return None;
        }
        let mut words = [0; N];
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: inside the map and aligned, see `word_at`.
            *word = unsafe { place.add(i).as_ref() }.load(Ordering::Relaxed);
        }
        Some(words)
    }

    /// Stores a word in one piece. `false`: not inside or not aligned.
    #[must_use]
    pub(crate) fn store(&self, at: usize, word: u32) -> bool {
        // Release: what was written before is seen by who follows the word (a record's link).
        self.word_at(at)
            .map(|place| place.store(word, Ordering::Release))
            .is_some()
    }

    /// Changes a word in one piece. `false`: not inside or not aligned.
    #[must_use]
    pub(crate) fn update(&self, at: usize, change: impl Fn(u32) -> u32) -> bool {
        self.word_at(at).is_some_and(|place| {
            let changed =
                place.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |w| Some(change(w)));
            changed.is_ok()
        })
    }

    /// The 16-bit word at `at`, for the state of the mutex area.
    pub(crate) fn half(&self, at: usize) -> Option<&AtomicU16> {
        let place = self.place(at, 2)?.cast::<AtomicU16>();
        if !place.is_aligned() {
            return None;
        }
        // SAFETY: as in `word_at`.
        Some(unsafe { place.as_ref() })
    }

    /// The address of `len` bytes, for the C library.
    pub(crate) fn address(&self, at: usize, len: usize) -> Option<NonNull<u8>> {
        self.place(at, len)
    }

    /// Keeps the address space for ever: something outside still points there.
    pub(crate) fn leak(self) {
        std::mem::forget(self);
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        self.window.close();
        // SAFETY: the map is ours, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.reserved) };
    }
}

/// An opaque copy.
///
/// # Safety
/// Both pointers must be good for `len` bytes, which do not overlap.
#[inline]
unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    let copy: Copy = black_box(libc::memcpy);
    // SAFETY: the caller's promise.
    unsafe { copy(to.cast(), from.cast(), len) };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, bytes).unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        (dir, file)
    }

    #[test]
    fn accesses_are_bounded_by_the_length() {
        let (_dir, file) = file(&[7; 100]);
        let mut map = Map::new(&file, 0, 100, 1 << 20, true).unwrap();
        let mut buf = [0; 8];
        assert!(map.read(92, &mut buf) && buf == [7; 8]);
        assert!(!map.read(93, &mut buf));
        assert!(!map.read(usize::MAX, &mut buf));
        assert!(!map.write(97, &[1; 4]));
        assert_eq!(map.load(97), None);
        assert_eq!(map.load(2), None, "not aligned");
        assert_eq!(map.equals(96, &[7; 4]), Some(true));
        assert_eq!(map.equals(96, &[7; 5]), None);
        let mut room = Vec::with_capacity(4);
        assert!(!map.append_to(0, 100, &mut room));
        assert!(map.append_to(0, 4, &mut room) && room == [7; 4]);
        assert!(!map.set_len(8 << 20));
        assert!(!map.has_faulted());
    }

    #[test]
    fn a_file_truncated_under_the_map_marks_it() {
        let (_dir, file) = file(&vec![7; 64 << 10]);
        let map = Map::new(&file, 0, 64 << 10, 0, true).unwrap();
        let other = Map::new(&file, 0, 4096, 0, true).unwrap();
        file.set_len(4096).unwrap();
        let mut buf = [1; 4096];
        assert!(map.read(0, &mut buf) && buf == [7; 4096] && !map.has_faulted());
        assert!(map.read(32 << 10, &mut buf));
        assert!(map.has_faulted());
        assert_eq!(buf, [0; 4096]);
        assert!(map.write(60 << 10, &[1]), "lost, but no crash");
        assert!(!other.has_faulted());
        drop(map);
        // Its window is used again, without the mark.
        let map = Map::new(&file, 0, 4096, 0, true).unwrap();
        assert!(map.read(0, &mut buf) && buf == [7; 4096] && !map.has_faulted());
    }

    /// A fault outside our maps still ends the process, as it did before us.
    #[test]
    fn a_foreign_fault_is_passed_on() {
        use std::os::unix::process::ExitStatusExt as _;
        const NAME: &str = "CTDB_TEST_FOREIGN_FAULT";
        let (dir, file) = file(&[7; 8192]);
        if std::env::var_os(NAME).is_some() {
            let ours = Map::new(&file, 0, 8192, 0, true).unwrap();
            // SAFETY: a new private view of the file, leaked; the read below is meant to fault.
            unsafe {
                let foreign = libc::mmap(
                    ptr::null_mut(),
                    8192,
                    libc::PROT_READ,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    0,
                );
                assert_ne!(foreign, libc::MAP_FAILED);
                file.set_len(0).unwrap();
                ptr::read_volatile(foreign.cast::<u8>());
            }
            drop((ours, dir));
            std::process::exit(0);
        }
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "map::tests::a_foreign_fault_is_passed_on"])
            .env(NAME, "1")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(libc::SIGBUS), "{status}");
    }
}
