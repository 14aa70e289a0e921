//! What a frame says about addresses, read with `bpf_skb_load_bytes` only: the linear part of a
//! frame may end anywhere.

use core::ptr::addr_of;

use aya_ebpf::programs::TcContext;

/// An IPv6 address, or an IPv4 address in its v4-mapped form.
pub(crate) type Address = [u8; 16];

/// Frames start with an Ethernet header.
pub(crate) const ETHERNET: u8 = 0;
/// Frames start with the network header (tunnels).
pub(crate) const RAW: u8 = 1;
/// Frames start with IPoIB's pseudo header (20 bytes of address) and its own 4 bytes.
pub(crate) const INFINIBAND: u8 = 2;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021AD: u16 = 0x88a8;

const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// The addresses that decide about a frame.
pub(crate) struct Subject {
    /// Incoming: where to. Outgoing: where from.
    pub(crate) address: Address,
    /// Neighbour discovery asks or tells about this one.
    pub(crate) target: Option<Address>,
    /// Carries a VLAN tag with a number: it belongs to the VLAN's own interface, above or below
    /// which it is seen here too.
    pub(crate) tagged: bool,
    /// Where the byte stands that names the protocol above IP. 0: not IP.
    pub(crate) protocol_at: usize,
}

#[inline(always)]
fn be16(ctx: &TcContext, offset: usize) -> Option<u16> {
    ctx.load::<u16>(offset).ok().map(u16::from_be)
}

#[inline(always)]
fn v4(ctx: &TcContext, offset: usize) -> Option<Address> {
    let four = ctx.load::<[u8; 4]>(offset).ok()?;
    let mut address = [0; 16];
    address[10] = 0xff;
    address[11] = 0xff;
    address[12] = four[0];
    address[13] = four[1];
    address[14] = four[2];
    address[15] = four[3];
    Some(address)
}

#[inline(always)]
fn v6(ctx: &TcContext, offset: usize) -> Option<Address> {
    ctx.load::<Address>(offset).ok()
}

/// None: nothing that a public address could answer or send.
#[inline(always)]
pub(crate) fn subject<const LINK: u8, const EGRESS: bool>(ctx: &TcContext) -> Option<Subject> {
    let skb = ctx.skb.skb;
    // SAFETY: the context of a running program; each field is read once and whole, as the
    // verifier wants it.
    let (protocol, vlan_present, vlan_tci) = unsafe {
        (
            addr_of!((*skb).protocol).read_volatile(),
            addr_of!((*skb).vlan_present).read_volatile(),
            addr_of!((*skb).vlan_tci).read_volatile(),
        )
    };
    // The outermost tag may have been taken out of the frame (VLAN offload).
    let mut tagged = vlan_present != 0 && vlan_tci & 0x0fff != 0;
    let (mut ethertype, mut offset) = match LINK {
        RAW => (u16::from_be(protocol as u16), 0),
        INFINIBAND => (be16(ctx, 20)?, 24),
        _ => (be16(ctx, 12)?, 14),
    };
    if LINK == ETHERNET {
        if ethertype == ETH_P_8021Q || ethertype == ETH_P_8021AD {
            tagged |= be16(ctx, offset)? & 0x0fff != 0;
            ethertype = be16(ctx, offset + 2)?;
            offset += 4;
        }
        if ethertype == ETH_P_8021Q || ethertype == ETH_P_8021AD {
            tagged |= be16(ctx, offset)? & 0x0fff != 0;
            ethertype = be16(ctx, offset + 2)?;
            offset += 4;
        }
    }
    match ethertype {
        ETH_P_IP => {
            let address = v4(ctx, offset + if EGRESS { 12 } else { 16 })?;
            Some(Subject {
                address,
                target: None,
                tagged,
                protocol_at: offset + 9,
            })
        }
        ETH_P_IPV6 => {
            let address = v6(ctx, offset + if EGRESS { 8 } else { 24 })?;
            // No walk through extension headers: the answer's source is the public address.
            let target = if ctx.load::<u8>(offset + 6).ok()? == ICMPV6 {
                nd_target::<EGRESS>(ctx, offset, &address)
            } else {
                None
            };
            Some(Subject {
                address,
                target,
                tagged,
                protocol_at: offset + 6,
            })
        }
        ETH_P_ARP => {
            let address = arp::<EGRESS>(ctx, offset)?;
            Some(Subject {
                address,
                target: None,
                tagged,
                protocol_at: 0,
            })
        }
        _ => None,
    }
}

/// Outgoing: who speaks. Incoming: who is asked, unless the sender announces itself.
#[inline(always)]
fn arp<const EGRESS: bool>(ctx: &TcContext, offset: usize) -> Option<Address> {
    // Protocol type, hardware and protocol length.
    let [_, _, high, low, hardware, protocol] = ctx.load::<[u8; 6]>(offset).ok()?;
    if u16::from_be_bytes([high, low]) != ETH_P_IP || protocol != 4 {
        return None;
    }
    let hardware = hardware as usize;
    let sender = v4(ctx, offset + 8 + hardware)?;
    if EGRESS {
        return Some(sender);
    }
    let target = v4(ctx, offset + 12 + 2 * hardware)?;
    if target == sender { None } else { Some(target) }
}

/// Incoming solicitations; outgoing advertisements, and solicitations without a source (duplicate
/// address detection).
#[inline(always)]
fn nd_target<const EGRESS: bool>(
    ctx: &TcContext,
    offset: usize,
    address: &Address,
) -> Option<Address> {
    let kind = ctx.load::<u8>(offset + 40).ok()?;
    let relevant = if EGRESS {
        kind == NEIGHBOUR_ADVERTISEMENT || (kind == NEIGHBOUR_SOLICITATION && *address == [0; 16])
    } else {
        kind == NEIGHBOUR_SOLICITATION
    };
    if relevant { v6(ctx, offset + 48) } else { None }
}
