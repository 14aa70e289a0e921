//! The system calls that no safe crate offers: `bpf(2)` on links and map batches, the bpffs mount,
//! mappings, an interface's type.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    io, mem,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

mod tracing;

pub use self::tracing::give_back_memory;
pub(crate) use self::tracing::{attach_tracepoint, netns_cookie, run_iterator};

const MAP_GET_NEXT_KEY: libc::c_long = 4;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const MAP_DELETE_BATCH: libc::c_long = 27;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`.
pub(crate) const TCX_INGRESS: u32 = 46;
pub(crate) const TCX_EGRESS: u32 = 47;
/// Ahead of all others: a program before ours could end the chain.
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_FS_MAGIC: libc::__fsword_t = 0xcafe_4a11;
/// More programs on one hook than the kernel allows (64).
const MAX_PROGRAMS: usize = 64;

/// One call of `bpf(2)`. `A` is the part of `union bpf_attr` that the command reads.
///
/// # Safety
/// Pointers in `attr` are valid for what the command does with them.
unsafe fn bpf<A>(command: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is as large as said; the rest is the caller's promise.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<A>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// # Safety
/// As [`bpf`], for a command that returns a new descriptor.
unsafe fn bpf_fd<A>(command: libc::c_long, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let fd = unsafe { bpf(command, attr)? };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a new descriptor that nobody else has (the kernel sets close-on-exec).
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    // Descriptors are never negative.
    fd.as_raw_fd().cast_unsigned()
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[repr(C)]
struct ObjAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

pub(crate) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        path: path.as_ptr().addr() as u64,
        fd: raw(fd),
        flags: 0,
    };
    // SAFETY: the path is a C string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr {
        path: path.as_ptr().addr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: as above.
    unsafe { bpf_fd(OBJ_GET, &mut attr) }
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// The head of `struct bpf_map_info`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
}

/// The head of `struct bpf_link_info`, with the part of a TCX link.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    padding: u32,
    /// 0 once the interface is gone.
    pub(crate) ifindex: u32,
    pub(crate) attach: u32,
}

/// # Safety
/// `T` is plain numbers, laid out as the head of the kernel's struct.
unsafe fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attr = InfoAttr {
        fd: raw(fd),
        len: u32::try_from(size_of::<T>()).map_err(io::Error::other)?,
        info: ptr::from_mut(&mut info).expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes, which `info` has.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info)
}

pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    // SAFETY: laid out so.
    unsafe { info(fd) }
}

pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // SAFETY: laid out so.
    unsafe { info(fd) }
}

/// The number of a program.
pub(crate) fn program_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: `struct bpf_prog_info` starts with type and number.
    let [_, id] = unsafe { info::<[u32; 2]>(fd)? };
    Ok(id)
}

#[repr(C)]
struct LinkCreateAttr {
    program: u32,
    ifindex: u32,
    attach: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    revision: u64,
}

pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    ifindex: u32,
    attach: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program: raw(program),
        ifindex,
        attach,
        flags: BPF_F_BEFORE,
        relative: 0,
        padding: 0,
        revision: 0,
    };
    // SAFETY: no pointers.
    unsafe { bpf_fd(LINK_CREATE, &mut attr) }
}

/// Puts another program in the link's place; no packet sees neither. ENOLINK: the interface is
/// gone.
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr: [u32; 4] = [raw(link), raw(program), 0, 0];
    // SAFETY: no pointers.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr: [u32; 1] = [raw(link)];
    // SAFETY: no pointers.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

#[repr(C)]
struct QueryAttr {
    ifindex: u32,
    attach: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// Ids of the links on an interface of this network namespace. EINVAL: a kernel before TCX.
pub(crate) fn tcx_links(ifindex: u32, attach: u32) -> io::Result<Vec<u32>> {
    let mut programs = [0_u32; MAX_PROGRAMS];
    let mut links = [0_u32; MAX_PROGRAMS];
    let mut attr = QueryAttr {
        ifindex,
        attach,
        query_flags: 0,
        attach_flags: 0,
        programs: programs.as_mut_ptr().expose_provenance() as u64,
        count: MAX_PROGRAMS as u32,
        padding: 0,
        program_flags: 0,
        links: links.as_mut_ptr().expose_provenance() as u64,
        link_flags: 0,
        revision: 0,
    };
    // SAFETY: both arrays have `count` elements.
    match unsafe { bpf(PROG_QUERY, &mut attr) } {
        Ok(_) => {
            let count = (attr.count as usize).min(MAX_PROGRAMS);
            Ok(links.into_iter().take(count).collect())
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[repr(C)]
struct ElemAttr {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Numbers in C layout without padding: what maps hold.
///
/// # Safety
/// Every byte pattern is a value, and there is no padding.
pub(crate) unsafe trait Plain: Copy + Default {}
// SAFETY: bytes.
unsafe impl Plain for [u8; 16] {}
// SAFETY: numbers.
unsafe impl Plain for u32 {}
// SAFETY: numbers.
unsafe impl Plain for u64 {}

fn address<T>(value: &T) -> u64 {
    ptr::from_ref(value).expose_provenance() as u64
}

/// A map of which the sizes were checked once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MapRef<'a, K, V> {
    fd: BorrowedFd<'a>,
    types: std::marker::PhantomData<(K, V)>,
}

impl<'a, K: Plain, V: Plain> MapRef<'a, K, V> {
    /// None if keys or values have other sizes, or it is a map with a value per CPU.
    pub(crate) fn new(fd: BorrowedFd<'a>) -> io::Result<Option<Self>> {
        let info = map_info(fd)?;
        let plain = info.kind == 1 || info.kind == 2;
        let fits =
            info.key_size as usize == size_of::<K>() && info.value_size as usize == size_of::<V>();
        Ok((plain && fits).then_some(Self {
            fd,
            types: std::marker::PhantomData,
        }))
    }

    fn elem(self, key: u64, value: u64) -> ElemAttr {
        ElemAttr {
            map: raw(self.fd),
            padding: 0,
            key,
            value,
            flags: 0,
        }
    }

    pub(crate) fn get(self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::default();
        let mut attr = self.elem(
            address(key),
            ptr::from_mut(&mut value).expose_provenance() as u64,
        );
        // SAFETY: key and value have the map's sizes.
        match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn set(self, key: &K, value: &V) -> io::Result<()> {
        let mut attr = self.elem(address(key), address(value));
        // SAFETY: as above.
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    fn remove(self, key: &K) -> io::Result<()> {
        let mut attr = self.elem(address(key), 0);
        // SAFETY: as above.
        match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result.map(drop),
        }
    }

    /// All keys. Nobody else may write meanwhile.
    pub(crate) fn keys(self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = K::default();
            let after = keys.last().map_or(0, address);
            let mut attr = self.elem(after, ptr::from_mut(&mut next).expose_provenance() as u64);
            // SAFETY: both keys have the map's size; 0 asks for the first.
            match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) } {
                Ok(_) => keys.push(next),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes all pairs, in one call where the kernel can.
    pub(crate) fn set_all(self, keys: &[K], values: &[V]) -> io::Result<()> {
        let count = keys.len().min(values.len());
        if count > 1 {
            match self.batch(MAP_UPDATE_BATCH, keys, address(&values[0]), count) {
                Err(error) if no_batch(&error) => {}
                result => return result,
            }
        }
        keys.iter()
            .zip(values)
            .try_for_each(|(key, value)| self.set(key, value))
    }

    /// Removes all keys; those that are not there are none.
    pub(crate) fn remove_all(self, keys: &[K]) -> io::Result<()> {
        // The batch stops at a missing key; one by one does not.
        if keys.len() > 1 && self.batch(MAP_DELETE_BATCH, keys, 0, keys.len()).is_ok() {
            return Ok(());
        }
        keys.iter().try_for_each(|key| self.remove(key))
    }

    fn batch(self, command: libc::c_long, keys: &[K], values: u64, count: usize) -> io::Result<()> {
        let mut attr = BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys: keys.as_ptr().expose_provenance() as u64,
            values,
            count: u32::try_from(count).map_err(io::Error::other)?,
            map: raw(self.fd),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: keys (and values, for updates) have at least `count` elements of the map's
        // sizes.
        unsafe { bpf(command, &mut attr) }.map(drop)
    }
}

fn no_batch(error: &io::Error) -> bool {
    // ENOTSUPP of the kernel's own numbering, and what kernels before 5.6 say.
    matches!(
        error.raw_os_error(),
        Some(524 | libc::EOPNOTSUPP | libc::EINVAL)
    )
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    elem_flags: u64,
    flags: u64,
}

/// A shared, writable mapping.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: ptr::NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is only reached through atomics and the robust mutex.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes, with all pages present.
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping where the kernel chooses.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = ptr::NonNull::new(start.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(Self { start, len })
    }

    /// The memory as a `T`.
    ///
    /// # Safety
    /// `T` is made of atomics and `UnsafeCell`s only, is valid for every byte pattern, and is
    /// aligned to at most a page. Panics if it is larger than the mapping.
    pub(crate) unsafe fn cast<T>(&self) -> &T {
        assert!(
            size_of::<T>() <= self.len,
            "the mapping was made for this type"
        );
        // SAFETY: within the mapping, page aligned; others only write through atomics.
        unsafe { self.start.cast::<T>().as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this mapping, to which no reference is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

pub(crate) fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = c_path(path)?;
    // SAFETY: plain numbers.
    let mut stat: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: a C string and a struct of the right type.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.f_type == BPF_FS_MAGIC)
}

/// Mounts a bpffs that only root may enter; `source` is what `mountinfo` will show.
pub(crate) fn mount_bpffs(source: &str, path: &Path) -> io::Result<()> {
    let source = CString::new(source).map_err(io::Error::other)?;
    let path = c_path(path)?;
    // SAFETY: C strings.
    let result = unsafe {
        libc::mount(
            source.as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: a C string.
    let result = unsafe { libc::umount2(path.as_ptr(), libc::UMOUNT_NOFOLLOW) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The name of an interface of this network namespace.
pub(crate) fn interface_name(ifindex: u32) -> io::Result<String> {
    let mut name: [libc::c_char; libc::IF_NAMESIZE] = [0; libc::IF_NAMESIZE];
    // SAFETY: as much room as this call wants; it ends the name with a zero.
    unsafe {
        if libc::if_indextoname(ifindex, name.as_mut_ptr()).is_null() {
            return Err(io::Error::last_os_error());
        }
        Ok(CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned())
    }
}

/// `ARPHRD_*` of an interface of this network namespace.
pub(crate) fn hardware_type(name: &str) -> io::Result<u16> {
    // SAFETY: plain numbers.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a request of the type that this ioctl takes.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: this ioctl fills this member.
    Ok(unsafe { request.ifr_ifru.ifru_hwaddr.sa_family })
}

/// Kernels before 5.11 count maps against this limit; raising it may be refused, and then the
/// load tells.
pub(crate) fn raise_memlock() {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a struct of the right type.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// Nanoseconds of the boot-time clock: what deadlines are compared with.
pub fn boot_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a struct of the right type. It cannot fail for a clock that every kernel has.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// A file in memory that can neither grow nor shrink.
pub(crate) fn sealed_memory(len: usize) -> io::Result<OwnedFd> {
    // SAFETY: a C string.
    let fd = unsafe {
        libc::memfd_create(
            c"ctdbd-deadman".as_ptr(),
            libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = libc::off_t::try_from(len).map_err(io::Error::other)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no pointers.
    let result = unsafe {
        libc::ftruncate(fd.as_raw_fd(), len) == 0
            && libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) == 0
    };
    if result {
        Ok(fd)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The seals of a memory file; an error for any other file.
pub(crate) fn is_sealed(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // SAFETY: no pointers.
    let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
    if seals < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(seals & libc::F_SEAL_SHRINK != 0)
}

/// The size of a file.
pub(crate) fn file_len(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: plain numbers.
    let mut stat: libc::stat = unsafe { mem::zeroed() };
    // SAFETY: a struct of the right type.
    if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(stat.st_size.cast_unsigned())
}

/// A descriptor that becomes readable when the process dies.
pub(crate) fn pidfd(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether it is readable within the time.
pub(crate) fn readable(fd: BorrowedFd<'_>, timeout_ms: i32) -> io::Result<bool> {
    let mut poll = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one element.
    match unsafe { libc::poll(&raw mut poll, 1, timeout_ms) } {
        result if result < 0 => {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                Ok(false)
            } else {
                Err(error)
            }
        }
        result => Ok(result > 0),
    }
}
