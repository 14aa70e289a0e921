//! Programs on tracepoints and iterators, whole maps, the network namespace's cookie.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    ptr,
};

use super::{BatchAttr, LINK_CREATE, MapRef, Plain, bpf, bpf_fd, raw};

const RAW_TRACEPOINT_OPEN: libc::c_long = 17;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const ITER_CREATE: libc::c_long = 33;
/// `BPF_TRACE_ITER`.
const TRACE_ITER: u32 = 28;
/// Elements in one call. No bucket of a map that is at most full has so many.
const BATCH: usize = 4096;

#[repr(C)]
struct TracepointAttr {
    name: u64,
    program: u32,
    padding: u32,
}

/// Attaches a program to the tracepoint that it was loaded for.
pub(crate) fn attach_tracepoint(program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut attr = TracepointAttr {
        name: 0,
        program: raw(program),
        padding: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf_fd(RAW_TRACEPOINT_OPEN, &mut attr) }
}

#[repr(C)]
struct IterAttr {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
    info: u64,
    info_len: u32,
    padding: u32,
}

/// Runs an iterator's program over all there is, in the calling thread's network namespace.
pub(crate) fn run_iterator(program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = IterAttr {
        program: raw(program),
        target: 0,
        attach: TRACE_ITER,
        flags: 0,
        info: 0,
        info_len: 0,
        padding: 0,
    };
    // SAFETY: no pointers.
    let link = unsafe { bpf_fd(LINK_CREATE, &mut attr)? };
    let mut attr: [u32; 2] = [raw(link.as_fd()), 0];
    // SAFETY: no pointers.
    let mut file = File::from(unsafe { bpf_fd(ITER_CREATE, &mut attr)? });
    // The program writes nothing; a read may end early all the same.
    let mut buffer = [0; 64];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The cookie of the calling thread's network namespace, unique within one boot.
pub(crate) fn netns_cookie() -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

impl<K: Plain, V: Plain> MapRef<'_, K, V> {
    /// All elements of a hash map. What is there all the time is given once; what comes or goes
    /// meanwhile may be given or not.
    pub(crate) fn dump(self) -> io::Result<Vec<(K, V)>> {
        let mut found = Vec::new();
        let (mut keys, mut values) = (vec![K::default(); BATCH], vec![V::default(); BATCH]);
        // A position, as large as a key but at least four bytes.
        let (mut from, mut to) = ([0_u64; 8], [0_u64; 8]);
        let mut first = true;
        loop {
            let mut attr = BatchAttr {
                in_batch: if first {
                    0
                } else {
                    from.as_ptr().expose_provenance() as u64
                },
                out_batch: to.as_mut_ptr().expose_provenance() as u64,
                keys: keys.as_mut_ptr().expose_provenance() as u64,
                values: values.as_mut_ptr().expose_provenance() as u64,
                count: BATCH as u32,
                map: raw(self.fd),
                elem_flags: 0,
                flags: 0,
            };
            // SAFETY: room for `count` keys and values of the map's sizes, and for a position.
            let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) };
            let end = match result {
                Ok(_) => false,
                // The end; what came before it is there.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                Err(error) => return Err(error),
            };
            let count = (attr.count as usize).min(BATCH);
            found.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
            if end {
                return Ok(found);
            }
            from = to;
            first = false;
        }
    }
}

/// Gives memory that was freed back to the system. The kernel's types are read for a moment, and
/// are larger than all else that the daemon keeps. Locked memory stays.
pub fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no pointers.
    unsafe {
        libc::malloc_trim(0);
    }
}
