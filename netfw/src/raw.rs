//! The two things that no safe interface offers: a link-layer socket address (`sockaddr_ll`, with
//! hardware addresses longer than the eight bytes of the C declaration), and an nftables payload
//! expression into a register of one's choice, which concatenated set keys need.
#![expect(
    unsafe_code,
    reason = "sockaddr_ll and a raw libnftnl expression have no safe wrapper"
)]

use std::ptr::NonNull;

use nftnl::expr::Expression;
use nftnl::nftnl_sys as sys;
use nftnl::{Rule, nftnl_sys::libc as nft};
use socket2::{SockAddr, SockAddrStorage, socklen_t};

use crate::IfIndex;
use crate::frame::MAX_HARDWARE_ADDRESS_BYTES;

/// `struct sockaddr_ll` with room for any hardware address of the kernel.
#[repr(C)]
struct LinkAddress {
    family: u16,
    protocol: u16,
    ifindex: i32,
    hardware_type: u16,
    packet_type: u8,
    length: u8,
    address: [u8; MAX_HARDWARE_ADDRESS_BYTES],
}

/// Where a packet of type `ethertype` is sent: to `hardware_address` on the link `ifindex`.
/// `None` if the hardware address is longer than the kernel has any.
pub(crate) fn link_address(
    ifindex: IfIndex,
    ethertype: u16,
    hardware_address: &[u8],
) -> Option<SockAddr> {
    let mut address = [0; MAX_HARDWARE_ADDRESS_BYTES];
    address
        .get_mut(..hardware_address.len())?
        .copy_from_slice(hardware_address);
    let value = LinkAddress {
        family: libc::AF_PACKET as u16,
        protocol: ethertype.to_be(),
        ifindex: ifindex.cast_signed(),
        hardware_type: 0,
        packet_type: 0,
        length: hardware_address.len() as u8,
        address,
    };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `LinkAddress` is `repr(C)`, consists of integers only, is no larger than
    // `sockaddr_storage` (checked by `view_as`) and less aligned.
    *unsafe { storage.view_as::<LinkAddress>() } = value;
    // SAFETY: the storage holds a `sockaddr_ll` of the family it names, all of whose first
    // `size_of::<LinkAddress>()` bytes are initialised.
    Some(unsafe { SockAddr::new(storage, size_of::<LinkAddress>() as socklen_t) })
}

/// Part of a packet's header that an nftables expression loads, offset and length in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Header {
    /// `NFT_PAYLOAD_NETWORK_HEADER`.
    Network(u32, u32),
    /// `NFT_PAYLOAD_TRANSPORT_HEADER`.
    Transport(u32, u32),
}

/// Loads part of a header into the 32-bit register with number `word` (0–15) and those after it.
/// Word 0 is where every other expression of `nftnl` reads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) header: Header,
    pub(crate) word: u32,
}

impl Expression for Load {
    fn to_expr(&self, _rule: &Rule) -> NonNull<sys::nftnl_expr> {
        let (base, offset, length) = match self.header {
            Header::Network(offset, length) => (nft::NFT_PAYLOAD_NETWORK_HEADER, offset, length),
            Header::Transport(offset, length) => {
                (nft::NFT_PAYLOAD_TRANSPORT_HEADER, offset, length)
            }
        };
        // SAFETY: the argument is a C string; the result is checked.
        let expr = NonNull::new(unsafe { sys::nftnl_expr_alloc(c"payload".as_ptr()) });
        let Some(expr) = expr else {
            // Out of memory for some hundred bytes: what the crate, and std, do then.
            std::process::abort()
        };
        let values = [
            (sys::NFTNL_EXPR_PAYLOAD_BASE, base.cast_unsigned()),
            (sys::NFTNL_EXPR_PAYLOAD_OFFSET, offset),
            (sys::NFTNL_EXPR_PAYLOAD_LEN, length),
            (
                sys::NFTNL_EXPR_PAYLOAD_DREG,
                nft::NFT_REG32_00.cast_unsigned() + self.word,
            ),
        ];
        for (attribute, value) in values {
            // SAFETY: `expr` was just allocated as a payload expression, all of whose attributes
            // named here are 32 bits wide; the caller frees it with its rule.
            unsafe { sys::nftnl_expr_set_u32(expr.as_ptr(), attribute as u16, value) };
        }
        expr
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_hardware_addresses_fit() {
        let address = link_address(7, 0x0806, &[9; 20]).unwrap();
        assert_eq!(address.family(), libc::AF_PACKET as u16);
        assert_eq!(address.len() as usize, 12 + MAX_HARDWARE_ADDRESS_BYTES);
        assert!(link_address(7, 0x0806, &[9; 33]).is_none());
    }
}
