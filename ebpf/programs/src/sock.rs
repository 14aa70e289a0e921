//! Fields of the kernel's sockets. Where they stand is told by the loader, which reads it from the
//! running kernel's BTF; the verifier takes the frozen numbers as constants.
#![allow(dead_code, reason = "no object needs all of it")]

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_skc_to_tcp_sock;

/// An IPv6 address, or an IPv4 address in its v4-mapped form.
pub type Address = [u8; 16];

pub const ESTABLISHED: i32 = 1;
pub const SYN_SENT: i32 = 2;
pub const SYN_RECV: i32 = 3;
pub const FIN_WAIT1: i32 = 4;
pub const TIME_WAIT: i32 = 6;
pub const CLOSE: i32 = 7;
pub const LISTEN: i32 = 10;
pub const NEW_SYN_RECV: i32 = 12;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Bytes from the start of `struct sock`, but for the last three, which are from the start of
/// `struct net`, `struct cgroup` and `struct kernfs_node`.
pub const FAMILY: usize = 0;
pub const STATE: usize = 1;
pub const LOCAL_PORT: usize = 2;
pub const REMOTE_PORT: usize = 3;
pub const BOUND_TO: usize = 4;
const LOCAL_V4: usize = 5;
const REMOTE_V4: usize = 6;
const LOCAL_V6: usize = 7;
const REMOTE_V6: usize = 8;
const NET: usize = 9;
pub const PROTOCOL: usize = 10;
/// The local port of a socket that is off the tables already, in `struct inet_sock`.
pub const SOURCE_PORT: usize = 11;
/// 0: this kernel has none.
const CGROUP: usize = 12;
const NET_COOKIE: usize = 13;
const CGROUP_NODE: usize = 14;
const NODE_ID: usize = 15;

#[unsafe(no_mangle)]
static OFFSETS: [u32; 16] = [0; 16];
/// Cookie of the daemon's network namespace.
#[unsafe(no_mangle)]
static NETNS: u64 = 0;

#[inline(always)]
pub fn offset(field: usize) -> usize {
    // SAFETY: an element; volatile, since the loader changes it.
    unsafe { (&raw const OFFSETS[field]).read_volatile() as usize }
}

/// # Safety
/// `base` is a pointer that the verifier knows as one to a kernel struct with this field.
#[inline(always)]
pub unsafe fn field<T>(base: *const u8, field: usize) -> T {
    // SAFETY: the caller's promise; the verifier checks the access.
    unsafe { base.add(offset(field)).cast::<T>().read_volatile() }
}

/// Whether a socket is in the daemon's network namespace.
///
/// # Safety
/// `sk` is a `struct sock` or `struct sock_common`.
#[inline(always)]
pub unsafe fn is_ours(sk: *const u8) -> bool {
    // SAFETY: the caller's promise; every socket has a namespace.
    unsafe {
        let net: *const u8 = field(sk, NET);
        field::<u64>(net, NET_COOKIE) == (&raw const NETNS).read_volatile()
    }
}

/// # Safety
/// As [`is_ours`].
#[inline(always)]
unsafe fn address(sk: *const u8, v4: usize, v6: usize) -> Option<Address> {
    // SAFETY: the caller's promise; the family tells which member is filled.
    unsafe {
        let words: [u64; 2] = match field::<u16>(sk, FAMILY) {
            AF_INET => {
                let address: u32 = field(sk, v4);
                // ::ffff:a.b.c.d
                [0, 0xffff_0000 | (address as u64) << 32]
            }
            AF_INET6 => {
                let at = sk.add(offset(v6)).cast::<u64>();
                [at.read_volatile(), at.add(1).read_volatile()]
            }
            _ => return None,
        };
        Some(core::mem::transmute::<[u64; 2], Address>(words))
    }
}

/// # Safety
/// As [`is_ours`].
#[inline(always)]
pub unsafe fn local(sk: *const u8) -> Option<Address> {
    // SAFETY: the caller's promise.
    unsafe { address(sk, LOCAL_V4, LOCAL_V6) }
}

/// # Safety
/// As [`is_ours`].
#[inline(always)]
pub unsafe fn remote(sk: *const u8) -> Option<Address> {
    // SAFETY: the caller's promise.
    unsafe { address(sk, REMOTE_V4, REMOTE_V6) }
}

/// The control group of a socket: that of the process that made the listener.
///
/// # Safety
/// `sk` is a whole `struct sock`.
#[inline(always)]
pub unsafe fn cgroup(sk: *const u8) -> u64 {
    if offset(CGROUP) == 0 {
        return 0;
    }
    // SAFETY: the caller's promise; a load through a null pointer gives 0 here.
    unsafe {
        let group: *const u8 = field(sk, CGROUP);
        if group.is_null() {
            return 0;
        }
        let node: *const u8 = field(group, CGROUP_NODE);
        if node.is_null() {
            return 0;
        }
        field(node, NODE_ID)
    }
}

/// The context of a TCP iterator's program: `struct bpf_iter__tcp`.
#[repr(C)]
pub struct IterTcp {
    meta: *const c_void,
    pub socket: *mut c_void,
}

/// The whole socket behind what an iterator shows; none for requests and TIME_WAIT.
#[inline(always)]
pub fn whole(socket: *mut c_void) -> Option<*const u8> {
    // SAFETY: the iterator's own pointer, checked for null by the caller.
    let whole = unsafe { bpf_skc_to_tcp_sock(socket) };
    (!whole.is_null()).then_some(whole.cast::<u8>().cast_const())
}
