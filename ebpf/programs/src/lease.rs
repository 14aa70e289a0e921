//! The address lease: drops what comes in to, and goes out from, a public address that this node
//! is not granted, whose deadline has passed, or that does not belong to the interface.
//!
//! The other direction (in from, out to) passes, so that a node without the right can be a client
//! of the owner and hears its announcements.

use core::ptr::addr_of;

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, TC_ACT_SHOT, TC_ACT_UNSPEC},
    btf_maps::{Array, HashMap, PerCpuArray},
    helpers::bpf_ktime_get_boot_ns,
    macros::{btf_map, classifier},
    programs::TcContext,
};

use crate::frame::{Address, ETHERNET, INFINIBAND, RAW, Subject, subject};

/// Public addresses of the cluster.
const ADDRESSES: usize = 8192;
/// Epochs of one daemon life, and slot 0, which never moves: known, not ours.
const SLOTS: usize = 4096;
/// Interfaces that one address may be served on.
const INTERFACES: usize = 8;
/// What the kernel sets in a robust futex's word when the thread that holds it dies.
const FUTEX_OWNER_DIED: u32 = 0x4000_0000;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Public {
    pub slot: u32,
    /// 0: none.
    pub ifindex: [u32; INTERFACES],
}

/// Bytes of a robust mutex held by the thread that renews the lease; the first four are its futex.
#[repr(C)]
pub struct Holder {
    pub futex: u32,
    pub rest: [u32; 15],
}

#[btf_map]
static PUBLIC: HashMap<Address, Public, ADDRESSES> = HashMap::new();
/// Boot-time nanoseconds. Mapped by the daemon.
#[btf_map]
static DEADLINE: Array<u64, SLOTS, { BPF_F_MMAPABLE as usize }> = Array::new();
/// Mapped by the daemon.
#[btf_map]
static HOLDER: Array<Holder, 1, { BPF_F_MMAPABLE as usize }> = Array::new();
/// Dropped frames: four reasons in, four reasons out; then by what they carried: three kinds in,
/// three kinds out.
#[btf_map]
static COUNTERS: PerCpuArray<u64, 14> = PerCpuArray::new();

const NOT_GRANTED: u32 = 0;
const EXPIRED: u32 = 1;
const WRONG_INTERFACE: u32 = 2;
const HOLDER_DIED: u32 = 3;

/// The first of the kinds.
const BY_KIND: u32 = 8;
const TCP: u32 = 0;
const UDP: u32 = 1;
/// Everything else: ARP, ICMP, neighbour discovery ...
const OTHER: u32 = 2;

/// The reason to drop, if there is one.
#[inline(always)]
fn refusal(address: &Address, ifindex: u32, tagged: bool) -> Option<u32> {
    // SAFETY: read at once; an entry replaced meanwhile is either the old one or the new one.
    let public = unsafe { PUBLIC.get(address) }?;
    let slot = public.slot;
    if slot == 0 {
        return Some(NOT_GRANTED);
    }
    let mut here = tagged;
    for index in 0..INTERFACES {
        here |= public.ifindex[index] == ifindex;
    }
    if !here {
        return Some(WRONG_INTERFACE);
    }
    let Some(deadline) = DEADLINE.get_ptr(slot) else {
        return Some(NOT_GRANTED);
    };
    // The clock after the deadline: a delay between them only shortens the right.
    // SAFETY: an element of the array; the daemon stores whole words.
    let deadline = unsafe { deadline.read_volatile() };
    // SAFETY: a helper without arguments.
    if unsafe { bpf_ktime_get_boot_ns() } >= deadline {
        return Some(EXPIRED);
    }
    let Some(holder) = HOLDER.get_ptr(0) else {
        return Some(HOLDER_DIED);
    };
    // SAFETY: as above.
    let futex = unsafe { addr_of!((*holder).futex).read_volatile() };
    if futex & FUTEX_OWNER_DIED == 0 {
        None
    } else {
        Some(HOLDER_DIED)
    }
}

#[inline(always)]
fn judge<const LINK: u8, const EGRESS: bool>(ctx: &TcContext) -> i32 {
    let Some(Subject {
        address,
        target,
        tagged,
        protocol_at,
    }) = subject::<LINK, EGRESS>(ctx)
    else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: the context of a running program.
    let ifindex = unsafe { addr_of!((*ctx.skb.skb).ifindex).read_volatile() };
    let mut reason = refusal(&address, ifindex, tagged);
    if let (None, Some(target)) = (reason, target) {
        reason = refusal(&target, ifindex, tagged);
    }
    let Some(reason) = reason else {
        return TC_ACT_UNSPEC;
    };
    count(reason + if EGRESS { 4 } else { 0 });
    let kind = match protocol_at {
        0 => OTHER,
        at => match ctx.load::<u8>(at) {
            Ok(IPPROTO_TCP) => TCP,
            Ok(IPPROTO_UDP) => UDP,
            _ => OTHER,
        },
    };
    count(BY_KIND + kind + if EGRESS { 3 } else { 0 });
    TC_ACT_SHOT
}

#[inline(always)]
fn count(what: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(what) {
        // SAFETY: this CPU's own copy.
        unsafe { *counter += 1 };
    }
}

#[classifier]
pub fn lease_ingress(ctx: TcContext) -> i32 {
    judge::<ETHERNET, false>(&ctx)
}

#[classifier]
pub fn lease_egress(ctx: TcContext) -> i32 {
    judge::<ETHERNET, true>(&ctx)
}

#[classifier]
pub fn lease_raw_in(ctx: TcContext) -> i32 {
    judge::<RAW, false>(&ctx)
}

#[classifier]
pub fn lease_raw_out(ctx: TcContext) -> i32 {
    judge::<RAW, true>(&ctx)
}

#[classifier]
pub fn lease_ib_in(ctx: TcContext) -> i32 {
    judge::<INFINIBAND, false>(&ctx)
}

#[classifier]
pub fn lease_ib_out(ctx: TcContext) -> i32 {
    judge::<INFINIBAND, true>(&ctx)
}
