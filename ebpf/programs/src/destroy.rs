//! Destroys all TCP sockets of the daemon's network namespace whose local address is in a set, in
//! one pass. Listeners and TIME_WAIT are spared.
#![no_std]
#![no_main]

mod rt;
mod sock;

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::{Array, HashMap},
    macros::btf_map,
};
use sock::{Address, IterTcp};

/// Public addresses of the cluster.
const ADDRESSES: usize = 8192;
/// A helper that no kernel has: the loader puts a call of the kernel's `bpf_sock_destroy` in its
/// place.
const DESTROY: usize = 0x6374_6462;

#[btf_map]
static KILL_ADDRESS: HashMap<Address, u32, ADDRESSES> = HashMap::new();
/// Destroyed, refused.
#[btf_map]
static KILL_COUNTS: Array<u64, 2> = Array::new();

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/tcp")]
pub extern "C" fn kill_sockets(ctx: *const IterTcp) -> i32 {
    // SAFETY: the context of a running program.
    let socket = unsafe { (*ctx).socket };
    if !socket.is_null() {
        // SAFETY: the iterator's socket.
        unsafe { kill(socket) };
    }
    0
}

/// # Safety
/// `socket` is the iterator's.
#[inline(always)]
unsafe fn kill(socket: *mut c_void) -> Option<()> {
    let common = socket.cast::<u8>().cast_const();
    // SAFETY: the fields of a socket; the number is a call once it is loaded.
    unsafe {
        let state = sock::field::<u8>(common, sock::STATE) as i32;
        if state == sock::LISTEN || state == sock::TIME_WAIT {
            return None;
        }
        KILL_ADDRESS.get(&sock::local(common)?)?;
        if !sock::is_ours(common) {
            return None;
        }
        let destroy: unsafe extern "C" fn(*mut c_void) -> i32 = core::mem::transmute(DESTROY);
        let result = destroy(socket);
        if let Some(counter) = KILL_COUNTS.get_ptr_mut((result != 0) as u32) {
            // One pass at a time.
            *counter += 1;
        }
        Some(())
    }
}
