//! The connection tracker: every TCP connection to a public address of the daemon's network
//! namespace, from its establishment to its end, whatever the port and whoever serves it.
//!
//! The table is keyed by the socket's cookie, so that the late end of a connection never takes
//! away its successor with the same addresses and ports.
#![no_std]
#![no_main]

mod rt;
mod sock;

use core::ffi::c_void;

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST},
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf},
    helpers::{bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_probe_read_kernel},
    macros::{btf_map, btf_tracepoint},
    programs::BtfTracePointContext,
};
use sock::{Address, IterTcp};

/// Public addresses of the cluster.
const ADDRESSES: usize = 8192;
/// Set anew by the loader.
const CONNECTIONS: usize = 262_144;
const RING_BYTES: usize = 4 << 20;
const IPPROTO_TCP: u16 = 6;
const E2BIG: i32 = -7;
const ENOENT: i32 = -2;

/// A connection: the value in the table.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Connection {
    pub local_address: Address,
    pub remote_address: Address,
    pub since_boot_ns: u64,
    pub cgroup: u64,
    pub interface: u32,
    /// Of the last reading of all sockets that saw it, or in which it began.
    pub round: u32,
    pub local_port: u16,
    pub remote_port: u16,
    /// It was there before the tracker.
    pub seeded: u32,
}

/// What the daemon is told.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Change {
    pub connection: Connection,
    pub cookie: u64,
    pub ended: u32,
    /// The table had no room.
    pub outside: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    pub round: u32,
    pub padding: u32,
    /// Of the namespace that the table is about.
    pub netns: u64,
}

#[btf_map]
static TRACK_ADDRESS: HashMap<Address, u32, ADDRESSES> = HashMap::new();
#[btf_map]
static TRACK_TABLE: HashMap<u64, Connection, CONNECTIONS, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
#[btf_map]
static TRACK_CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
static TRACK_COUNTS: PerCpuArray<u64, 8> = PerCpuArray::new();
#[btf_map]
static TRACK_CHANGES: RingBuf<Change, RING_BYTES> = RingBuf::new();

const OPENED: u32 = 0;
const CLOSED: u32 = 1;
const FULL: u32 = 2;
const FAILED: u32 = 3;
const RING_LOST: u32 = 4;
const SEEDED: u32 = 5;

#[inline(always)]
fn count(what: u32) {
    if let Some(counter) = TRACK_COUNTS.get_ptr_mut(what) {
        // SAFETY: this CPU's own copy.
        unsafe { *counter += 1 };
    }
}

#[inline(always)]
fn round() -> u32 {
    match TRACK_CONFIG.get_ptr(0) {
        // SAFETY: an element of the array; the daemon stores whole words.
        Some(config) => unsafe { (&raw const (*config).round).read_volatile() },
        None => 0,
    }
}

/// Puts a connection into the table; whether there was room.
#[inline(always)]
fn keep(cookie: u64, connection: &Connection, flags: u32) -> bool {
    match TRACK_TABLE.insert(cookie, connection, flags as u64) {
        Ok(()) => return true,
        Err(E2BIG) => count(FULL),
        Err(_) => count(FAILED),
    }
    false
}

/// Takes a connection out of the table. One that was not there had no room. The kernel gives up the lock
/// of a bucket whose holder does not run (a paused processor): what is left over then makes the
/// daemon read all sockets.
#[inline(always)]
fn take_away(cookie: u64) {
    if TRACK_TABLE.remove(cookie).is_err_and(|error| error != ENOENT) {
        count(FAILED);
    }
}

#[btf_tracepoint(function = "inet_sock_set_state")]
pub fn track_state(ctx: BtfTracePointContext) -> i32 {
    let sk: *const u8 = ctx.arg(0);
    let old: i32 = ctx.arg(1);
    let new: i32 = ctx.arg(2);
    // What is opened from here goes from SYN_SENT. A server that closes before the last segment of
    // the handshake (fast open) never gets to ESTABLISHED.
    let began = old == sock::SYN_RECV && (new == sock::ESTABLISHED || new == sock::FIN_WAIT1);
    let ended = new == sock::CLOSE
        && old != sock::SYN_SENT
        && old != sock::SYN_RECV
        && old != sock::LISTEN
        && old != sock::CLOSE;
    if began || ended {
        // SAFETY: the tracepoint's socket.
        unsafe { change(sk, ended) };
    }
    0
}

/// # Safety
/// `sk` is the tracepoint's socket.
#[inline(always)]
unsafe fn change(sk: *const u8, ended: bool) -> Option<()> {
    // SAFETY: the fields of a socket, all through this function.
    unsafe {
        if sock::field::<u16>(sk, sock::PROTOCOL) != IPPROTO_TCP {
            return None;
        }
        let local_address = sock::local(sk)?;
        TRACK_ADDRESS.get(&local_address)?;
        if !sock::is_ours(sk) {
            return None;
        }
        let cookie = bpf_get_socket_cookie(sk.cast_mut().cast::<c_void>());
        let remote_port: u16 = sock::field(sk, sock::REMOTE_PORT);
        let mut connection = Connection {
            local_address,
            remote_address: sock::remote(sk)?,
            since_boot_ns: bpf_ktime_get_boot_ns(),
            cgroup: sock::cgroup(sk),
            interface: sock::field(sk, sock::BOUND_TO),
            round: 0,
            local_port: 0,
            remote_port: u16::from_be(remote_port),
            seeded: 0,
        };
        let mut kept = true;
        if ended {
            count(CLOSED);
            // Off the tables already: the port that it had is elsewhere.
            let at = sk.add(sock::offset(sock::SOURCE_PORT)).cast::<u16>();
            connection.local_port = u16::from_be(bpf_probe_read_kernel(at).unwrap_or(0));
            if let Some(entry) = TRACK_TABLE.get_ptr(cookie) {
                connection.since_boot_ns = (*entry).since_boot_ns;
                connection.seeded = (*entry).seeded;
            }
            take_away(cookie);
        } else {
            count(OPENED);
            connection.local_port = sock::field(sk, sock::LOCAL_PORT);
            connection.round = round();
            kept = keep(cookie, &connection, BPF_ANY);
        }
        match TRACK_CHANGES.reserve(0) {
            Some(mut place) => {
                place.write(Change {
                    connection,
                    cookie,
                    ended: ended as u32,
                    outside: !kept as u32,
                });
                place.submit(0);
            }
            None => count(RING_LOST),
        }
        Some(())
    }
}

/// Reads all sockets: puts into the table what is not there, and marks what is.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn track_seed(ctx: *const IterTcp) -> i32 {
    // SAFETY: the context of a running program.
    let socket = unsafe { (*ctx).socket };
    if !socket.is_null() {
        // SAFETY: the iterator's socket.
        unsafe { seed(socket) };
    }
    0
}

/// # Safety
/// `socket` is the iterator's.
#[inline(always)]
unsafe fn seed(socket: *mut c_void) -> Option<()> {
    let common = socket.cast::<u8>().cast_const();
    // SAFETY: the fields of a socket, all through this function.
    unsafe {
        let state = sock::field::<u8>(common, sock::STATE) as i32;
        if state == sock::LISTEN
            || state == sock::TIME_WAIT
            || state == sock::NEW_SYN_RECV
            || state == sock::SYN_SENT
            || state == sock::SYN_RECV
            || state == sock::CLOSE
        {
            return None;
        }
        let local_address = sock::local(common)?;
        TRACK_ADDRESS.get(&local_address)?;
        if !sock::is_ours(common) {
            return None;
        }
        let whole = sock::whole(socket)?;
        let cookie = bpf_get_socket_cookie(socket);
        let round = round();
        if let Some(entry) = TRACK_TABLE.get_ptr_mut(cookie) {
            (&raw mut (*entry).round).write_volatile(round);
            return None;
        }
        let remote_port: u16 = sock::field(common, sock::REMOTE_PORT);
        let connection = Connection {
            local_address,
            remote_address: sock::remote(common)?,
            since_boot_ns: bpf_ktime_get_boot_ns(),
            cgroup: sock::cgroup(whole),
            interface: sock::field(common, sock::BOUND_TO),
            round,
            local_port: sock::field(common, sock::LOCAL_PORT),
            remote_port: u16::from_be(remote_port),
            seeded: 1,
        };
        // Not over what the tracepoint put there meanwhile.
        if keep(cookie, &connection, BPF_NOEXIST) {
            count(SEEDED);
            // Kernels before 6.5 do not hold the socket's lock here.
            if sock::field::<u8>(common, sock::STATE) as i32 == sock::CLOSE {
                take_away(cookie);
            }
        }
        Some(())
    }
}
