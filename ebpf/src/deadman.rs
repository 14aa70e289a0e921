//! Shared memory between the daemon and its guard: who is alive, and what to tell whom if it is
//! not (`spec/kernel.md` 8.7, `authority.md` R19).
//!
//! The thread that renews the lease holds a robust mutex in it. When that thread dies, however it
//! dies, the kernel wakes the guard. SIGSTOP and the freezer do not.
#![allow(unsafe_code)]

mod databases;

use std::{
    array,
    fmt::{self, Debug},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering, fence},
    },
    time::Duration,
};

use crate::{
    Error,
    robust::{Holding, RobustMutex, Room, Taken},
    sys::{self, Mapping},
};

pub use databases::{DATABASES, Database, FILE_NAME, Guarded, Own, Right, Wish};

/// Peers that the memory has room for: the largest cluster.
pub const PEERS: usize = 64;
/// Bytes of the largest datagram that the guard can be given.
pub const DATAGRAM: usize = 160;

const MAGIC: u64 = u64::from_ne_bytes(*b"ctdbdm03");
const NEW: u32 = 0;
const ARMED: u32 = 1;
const LEFT: u32 = 2;
/// How often the guard looks whether the detector thread has started.
const ARMING_POLL_MS: i32 = 10;
/// Looks at a peer's entry that the writer, which is alive, keeps changing.
const READ_ATTEMPTS: u32 = 1000;

/// Address (4), source (4), length and presence (1), datagram.
const WORDS: usize = 9 + DATAGRAM / 8;

/// Two copies; `version & 1` is the valid one. A writer that dies half way leaves it valid.
#[repr(C)]
struct PeerCell {
    version: AtomicU64,
    copies: [[AtomicU64; WORDS]; 2],
}

#[repr(C)]
struct Page {
    room: Room,
    magic: AtomicU64,
    creator: AtomicU32,
    state: AtomicU32,
    /// Process number of the lock helper, 0: none; its start comes before it.
    helper: AtomicU32,
    /// When that process began, in the ticks of `/proc/PID/stat`.
    helper_start: AtomicU64,
    /// Until when the daemon, by its last sign of life, is entitled to a lock helper.
    helper_until: AtomicU64,
    right: databases::RightCell,
    peers: [PeerCell; PEERS],
    databases: [databases::Cell; DATABASES],
}

fn page(mapping: &Mapping) -> &Page {
    // SAFETY: atomics and a room only, valid for every byte pattern; 8-byte aligned.
    unsafe { mapping.cast() }
}

/// What the guard sends to one peer, as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardPeer {
    /// Where to.
    pub address: SocketAddr,
    /// Where from.
    pub local: SocketAddr,
    /// The sealed GONE datagram; the first `length` bytes count.
    pub datagram: [u8; DATAGRAM],
    /// Bytes of the datagram, at most [`DATAGRAM`].
    pub length: u8,
}

impl GuardPeer {
    fn encode(&self) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        words[..4].copy_from_slice(&encode_address(self.address));
        words[4..8].copy_from_slice(&encode_address(self.local));
        words[8] = 0x100 | u64::from(self.length.min(DATAGRAM as u8));
        for (word, bytes) in words[9..].iter_mut().zip(self.datagram.chunks_exact(8)) {
            *word = u64::from_ne_bytes(array::from_fn(|index| bytes[index]));
        }
        words
    }

    fn decode(words: &[u64; WORDS]) -> Option<Self> {
        if words[8] & 0x100 == 0 {
            return None;
        }
        let mut datagram = [0; DATAGRAM];
        for (bytes, word) in datagram.chunks_exact_mut(8).zip(&words[9..]) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Some(Self {
            address: decode_address([words[0], words[1], words[2], words[3]]),
            local: decode_address([words[4], words[5], words[6], words[7]]),
            datagram,
            length: (words[8] as u8).min(DATAGRAM as u8),
        })
    }
}

/// Address as IPv6 in two words; port, family and scope; flow label.
fn encode_address(address: SocketAddr) -> [u64; 4] {
    let (ip, v4, scope, flow) = match address {
        SocketAddr::V4(v4) => (v4.ip().to_ipv6_mapped(), 1, 0, 0),
        SocketAddr::V6(v6) => (*v6.ip(), 0, v6.scope_id(), v6.flowinfo()),
    };
    let bits = ip.to_bits();
    [
        (bits >> 64) as u64,
        bits as u64,
        u64::from(address.port()) | v4 << 16 | u64::from(scope) << 32,
        u64::from(flow),
    ]
}

fn decode_address(words: [u64; 4]) -> SocketAddr {
    let ip = Ipv6Addr::from_bits(u128::from(words[0]) << 64 | u128::from(words[1]));
    let port = words[2] as u16;
    if words[2] >> 16 & 1 == 1
        && let Some(v4) = ip.to_ipv4_mapped()
    {
        return SocketAddr::new(IpAddr::V4(v4), port);
    }
    SocketAddr::V6(SocketAddrV6::new(
        ip,
        port,
        words[3] as u32,
        (words[2] >> 32) as u32,
    ))
}

/// The daemon's side.
pub struct Deadman {
    fd: OwnedFd,
    mapping: Arc<Mapping>,
    /// One writer at a time for each peer; held for a copy of some 200 bytes.
    writers: [Mutex<()>; PEERS],
    /// One thread at a time looks for room for a database.
    registering: Mutex<()>,
}

impl Debug for Deadman {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deadman")
            .field("fd", &self.fd)
            .finish_non_exhaustive()
    }
}

impl Deadman {
    /// Makes the memory. The process that calls this is the one whose death the guard reports.
    pub fn create() -> Result<Self, Error> {
        let fd = sys::sealed_memory(size_of::<Page>())
            .map_err(|error| Error::system("making", "the guard's memory", error))?;
        let mapping = Mapping::new(fd.as_fd(), size_of::<Page>())
            .map_err(|error| Error::system("mapping", "the guard's memory", error))?;
        let mapping = Arc::new(mapping);
        RobustMutex::at(Arc::clone(&mapping))
            .initialize()
            .map_err(Error::Mutex)?;
        let page = page(&mapping);
        page.creator.store(std::process::id(), Ordering::Relaxed);
        page.state.store(NEW, Ordering::Relaxed);
        page.magic.store(MAGIC, Ordering::Release);
        Ok(Self {
            fd,
            mapping,
            writers: [const { Mutex::new(()) }; PEERS],
            registering: Mutex::new(()),
        })
    }

    /// The memory file: the guard's standard input.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Called once, by the detector thread at its start: from now on the death of this thread is
    /// the death that the guard reports. If the mutex cannot be had the guard falls back to the
    /// death of the process, and the log says so.
    pub fn hold(&self) -> Held<'_> {
        let holding = match RobustMutex::at(Arc::clone(&self.mapping)).hold() {
            Ok(holding) => {
                page(&self.mapping).state.store(ARMED, Ordering::Release);
                Some(holding)
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "the guard cannot watch the detector thread, only the process (slower)"
                );
                None
            }
        };
        Held {
            deadman: self,
            holding,
        }
    }

    /// What the guard shall send to one peer (`index` below [`PEERS`], for example its node
    /// number); None: nothing. A reader sees the old or the new entry, never a mixture, even if
    /// this process dies inside. Waits for nobody but another thread inside this call for the same
    /// index.
    pub fn set_peer(&self, index: usize, peer: Option<GuardPeer>) {
        let (Some(cell), Some(writer)) = (
            page(&self.mapping).peers.get(index),
            self.writers.get(index),
        ) else {
            debug_assert!(index < PEERS, "peer {index}");
            tracing::error!(index, "the guard's memory has no such peer");
            return;
        };
        let words = peer.map_or([0; WORDS], |peer| peer.encode());
        let _writing = writer.lock().unwrap_or_else(PoisonError::into_inner);
        let version = cell.version.load(Ordering::Relaxed);
        let next = version.wrapping_add(1);
        for (to, from) in cell.copies[(next & 1) as usize].iter().zip(words) {
            to.store(from, Ordering::Relaxed);
        }
        cell.version.store(next, Ordering::Release);
        // Words of the next change are not stored before this version.
        fence(Ordering::SeqCst);
    }
}

impl Deadman {
    /// The lock helper that the guard ends when the daemon dies, or is silent for too long.
    pub fn set_helper(&self, pid: Option<u32>) {
        let page = page(&self.mapping);
        page.helper.store(0, Ordering::Release);
        if let Some(pid) = pid
            && let Some(start) = started(pid)
        {
            page.helper_start.store(start, Ordering::Relaxed);
            page.helper.store(pid, Ordering::Release);
        }
    }

    /// The daemon works: it may keep its lock helper until then (boot-time clock, nanoseconds).
    pub fn set_helper_until(&self, until: u64) {
        page(&self.mapping)
            .helper_until
            .store(until, Ordering::Release);
    }
}

/// Start of a process, the 22nd field of `/proc/PID/stat` (proc_pid_stat(5)). Allocates nothing.
fn started(pid: u32) -> Option<u64> {
    let mut path = arrayvec::ArrayString::<32>::new();
    fmt::Write::write_fmt(&mut path, format_args!("/proc/{pid}/stat")).ok()?;
    let mut file = std::fs::File::open(path.as_str()).ok()?;
    let mut buffer = [0; 1024];
    let length = io::Read::read(&mut file, &mut buffer).ok()?;
    let text = &buffer[..length];
    // The name, in parentheses, may hold anything; the third field is the first behind it.
    let behind = text.iter().rposition(|byte| *byte == b')')? + 2;
    let field = text.get(behind..)?.split(|byte| *byte == b' ').nth(19)?;
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// The detector thread lives. Dropped in order, the guard goes without a word; dropped while the
/// thread panics, it counts as a death.
#[derive(Debug)]
pub struct Held<'a> {
    deadman: &'a Deadman,
    // Keeps this from leaving its thread.
    holding: Option<Holding>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let state = &page(&self.deadman.mapping).state;
        // One that could not hold speaks only for itself, not for another that does.
        let from = if self.holding.is_some() { ARMED } else { NEW };
        if !std::thread::panicking() {
            let _ = state.compare_exchange(from, LEFT, Ordering::AcqRel, Ordering::Acquire);
        }
        if let Some(holding) = self.holding.take() {
            holding.release();
        }
    }
}

/// What became of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The holder died, or the process before it came to hold.
    Died,
    /// The holder left in order.
    Left,
}

/// The guard's side. Nothing here allocates but [`Watcher::from_fd`].
#[derive(Debug)]
pub struct Watcher {
    mapping: Arc<Mapping>,
    mutex: RobustMutex,
    /// None: the daemon was already dead.
    process: Option<OwnedFd>,
}

impl Watcher {
    /// Maps the memory that the daemon made. To be called early by the guard.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        if !sys::is_sealed(fd.as_fd()).unwrap_or(false) {
            return Err(Error::NotAPage("it is not a sealed memory file"));
        }
        let len = sys::file_len(fd.as_fd())
            .map_err(|error| Error::system("asking the size of", "the guard's memory", error))?;
        if len != size_of::<Page>() as u64 {
            return Err(Error::NotAPage("it has another size"));
        }
        let mapping = Mapping::new(fd.as_fd(), size_of::<Page>())
            .map_err(|error| Error::system("mapping", "the guard's memory", error))?;
        if page(&mapping).magic.load(Ordering::Acquire) != MAGIC {
            return Err(Error::NotAPage("it begins otherwise"));
        }
        let pid = page(&mapping).creator.load(Ordering::Relaxed);
        let process = match sys::pidfd(pid) {
            Ok(process) => Some(process),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => None,
            Err(error) => {
                return Err(Error::system("watching process", pid.to_string(), error));
            }
        };
        let mapping = Arc::new(mapping);
        // The mapping keeps the memory.
        drop(fd);
        Ok(Self {
            mutex: RobustMutex::at(Arc::clone(&mapping)),
            mapping,
            process,
        })
    }

    fn state(&self) -> u32 {
        page(&self.mapping).state.load(Ordering::Acquire)
    }

    /// Blocks until the holder died or left in order. Never says that it died while it lives.
    pub fn wait(&self) -> Verdict {
        while self.state() == NEW {
            if self.process_ended(ARMING_POLL_MS) {
                // It may have armed, and even left, since the look above.
                break;
            }
        }
        if self.state() == ARMED
            && !matches!(self.mutex.outlast(), Ok(Taken::Free | Taken::OwnerDied))
        {
            // A mutex that cannot be waited for tells nothing; the process does.
            while !self.process_ended(-1) {}
        }
        if self.state() == LEFT {
            Verdict::Left
        } else {
            Verdict::Died
        }
    }

    /// The daemon's process; `None` if it was dead already when the guard began.
    pub fn process(&self) -> Option<BorrowedFd<'_>> {
        self.process.as_ref().map(OwnedFd::as_fd)
    }

    fn process_ended(&self, timeout_ms: i32) -> bool {
        let Some(process) = &self.process else {
            return true;
        };
        match sys::readable(process.as_fd(), timeout_ms) {
            Ok(ended) => ended,
            Err(error) => {
                // Out of kernel memory: no reason to say anything, nor to spin.
                debug_assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
                std::thread::sleep(Duration::from_millis(10));
                false
            }
        }
    }

    /// The lock helper, if one is there and still the process that it was; with the time until
    /// when the daemon is entitled to it.
    pub fn helper(&self) -> Option<(u32, u64)> {
        let page = page(&self.mapping);
        let pid = page.helper.load(Ordering::Acquire);
        let start = page.helper_start.load(Ordering::Relaxed);
        let until = page.helper_until.load(Ordering::Acquire);
        (pid != 0 && started(pid) == Some(start)).then_some((pid, until))
    }

    /// What to send, each a consistent copy.
    pub fn peers(&self) -> impl Iterator<Item = GuardPeer> {
        page(&self.mapping).peers.iter().filter_map(read_peer)
    }
}

fn read_peer(cell: &PeerCell) -> Option<GuardPeer> {
    for _ in 0..READ_ATTEMPTS {
        let version = cell.version.load(Ordering::Acquire);
        let copy = &cell.copies[(version & 1) as usize];
        let words: [u64; WORDS] = array::from_fn(|index| copy[index].load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        // Two changes later this copy would be the one being written.
        if cell.version.load(Ordering::Relaxed) == version {
            return GuardPeer::decode(&words);
        }
        std::thread::yield_now();
    }
    None
}
