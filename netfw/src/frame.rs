//! The packets that announce an address, without their link-layer header (which the kernel
//! writes): gratuitous ARP (RFC 826, RFC 5227 3) and unsolicited neighbour advertisements
//! (RFC 4861 4.4, 7.2.6).

use std::net::{Ipv4Addr, Ipv6Addr};

/// `ETH_P_ARP`.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// `ETH_P_IPV6`.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// `ARPHRD_ETHER`.
pub const HARDWARE_ETHERNET: u16 = 1;
/// `ARPHRD_INFINIBAND`.
pub const HARDWARE_INFINIBAND: u16 = 32;
/// All nodes of the link, whom an unsolicited advertisement tells.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Longest hardware address, in bytes (`MAX_ADDR_LEN` of the kernel; InfiniBand uses 20).
pub const MAX_HARDWARE_ADDRESS_BYTES: usize = 32;

const ICMPV6: u8 = 58;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const TARGET_LINK_LAYER_ADDRESS: u8 = 2;

/// The two forms of a gratuitous ARP. Some switches and hosts ignore one, some the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArpForm {
    /// "Who has mine?": target hardware address zero (RFC 5227 3).
    Request,
    /// "I have mine": target hardware address is the sender's.
    Reply,
}

/// A gratuitous ARP packet: `address` is at the hardware address `mac` of a link of type
/// `hardware_type`. 28 bytes for Ethernet, 56 for InfiniBand (RFC 4391 5).
pub fn arp(form: ArpForm, hardware_type: u16, mac: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let mut packet = Vec::with_capacity(16 + 2 * mac.len());
    packet.extend(hardware_type.to_be_bytes());
    packet.extend([0x08, 0x00]);
    packet.push(mac.len() as u8);
    packet.push(4);
    match form {
        ArpForm::Request => {
            packet.extend([0, 1]);
            packet.extend(mac);
            packet.extend(address.octets());
            packet.resize(packet.len() + mac.len(), 0);
        }
        ArpForm::Reply => {
            packet.extend([0, 2]);
            packet.extend(mac);
            packet.extend(address.octets());
            packet.extend(mac);
        }
    }
    packet.extend(address.octets());
    packet
}

/// An unsolicited neighbour advertisement from `address` to all nodes, IPv6 header included:
/// override flag, target link-layer address option, hop limit 255.
pub fn neighbour_advertisement(hardware_type: u16, mac: &[u8], address: Ipv6Addr) -> Vec<u8> {
    let mut option = vec![TARGET_LINK_LAYER_ADDRESS, 0];
    if hardware_type == HARDWARE_INFINIBAND {
        // RFC 4391 9.3: two reserved bytes stand before the address.
        option.extend([0, 0]);
    }
    option.extend(mac);
    option.resize(option.len().next_multiple_of(8), 0);
    option[1] = (option.len() / 8) as u8;

    let mut message = vec![NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend(address.octets());
    message.extend(option);
    let checksum = icmpv6_checksum(address, ALL_NODES, &message);
    message[2..4].copy_from_slice(&checksum.to_be_bytes());

    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((message.len() as u16).to_be_bytes());
    packet.extend([ICMPV6, 255]);
    packet.extend(address.octets());
    packet.extend(ALL_NODES.octets());
    packet.extend(message);
    packet
}

/// The hardware address that [`ALL_NODES`] has on a link of type `hardware_type` whose broadcast
/// address is `broadcast`.
pub fn all_nodes_hardware_address(hardware_type: u16, broadcast: &[u8]) -> Vec<u8> {
    match (hardware_type, broadcast) {
        (HARDWARE_ETHERNET, _) => vec![0x33, 0x33, 0, 0, 0, 1],
        // RFC 4391 4: partition and scope are those of the broadcast group.
        (HARDWARE_INFINIBAND, [_, _, _, _, _, scope, _, _, p0, p1, ..]) => {
            let mut address = vec![0, 0xff, 0xff, 0xff, 0xff];
            address.extend([0x10 | (scope & 0x0f), 0x60, 0x1b, *p0, *p1]);
            address.extend(&ALL_NODES.octets()[6..]);
            address
        }
        _ => broadcast.to_vec(),
    }
}

/// Internet checksum (RFC 1071) of an ICMPv6 message with its pseudo header.
fn icmpv6_checksum(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> u16 {
    let mut sum = u32::from(ICMPV6) + message.len() as u32;
    for bytes in [&source.octets()[..], &destination.octets()[..], message] {
        for pair in bytes.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u32::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x02, 0xab, 0xcd, 0, 0, 0x07];

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect()
    }

    #[test]
    fn arp_request_form() {
        let packet = arp(
            ArpForm::Request,
            HARDWARE_ETHERNET,
            &MAC,
            Ipv4Addr::new(10, 1, 2, 3),
        );
        let expected = "0001 0800 06 04 0001 02abcd000007 0a010203 000000000000 0a010203";
        assert_eq!(packet, hex(expected));
    }

    #[test]
    fn arp_reply_form() {
        let packet = arp(
            ArpForm::Reply,
            HARDWARE_ETHERNET,
            &MAC,
            Ipv4Addr::new(10, 1, 2, 3),
        );
        let expected = "0001 0800 06 04 0002 02abcd000007 0a010203 02abcd000007 0a010203";
        assert_eq!(packet, hex(expected));
    }

    #[test]
    fn infiniband_addresses_have_twenty_bytes() {
        let mac: Vec<u8> = (1..=20).collect();
        let packet = arp(
            ArpForm::Request,
            HARDWARE_INFINIBAND,
            &mac,
            Ipv4Addr::new(10, 1, 2, 3),
        );
        assert_eq!(packet.len(), 56);
        assert_eq!(packet[..8], [0, 32, 8, 0, 20, 4, 0, 1]);
        assert_eq!(packet[8..28], mac[..]);
        let advertisement =
            neighbour_advertisement(HARDWARE_INFINIBAND, &mac, "2001:db8::7".parse().unwrap());
        let option = &advertisement[40 + 24..];
        assert_eq!(option.len(), 24);
        assert_eq!(option[..4], [2, 3, 0, 0]);
        assert_eq!(option[4..], mac[..]);
    }

    #[test]
    fn neighbour_advertisement_is_as_by_hand() {
        let packet =
            neighbour_advertisement(HARDWARE_ETHERNET, &MAC, "2001:db8::7".parse().unwrap());
        // Sum of the 16-bit words of pseudo header and message: 2d490, folded d492.
        let expected = "60000000 0020 3a ff \
             20010db8000000000000000000000007 ff020000000000000000000000000001 \
             88 00 2b6d 20000000 20010db8000000000000000000000007 02 01 02abcd000007";
        assert_eq!(packet, hex(expected));
    }

    #[test]
    fn another_codec_reads_the_same() {
        use etherparse::{Icmpv6Type, NetSlice, SlicedPacket, TransportSlice};
        let address: Ipv6Addr = "fd00::1:2".parse().unwrap();
        let packet = neighbour_advertisement(HARDWARE_ETHERNET, &MAC, address);
        let sliced = SlicedPacket::from_ip(&packet).unwrap();
        let Some(NetSlice::Ipv6(ip)) = sliced.net else {
            panic!("not IPv6")
        };
        assert_eq!(ip.header().hop_limit(), 255);
        assert_eq!(ip.header().source_addr(), address);
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else {
            panic!("not ICMPv6")
        };
        assert!(icmp.is_checksum_valid(address.octets(), ALL_NODES.octets()));
        assert!(matches!(
            icmp.icmp_type(),
            Icmpv6Type::NeighborAdvertisement(h) if h.r#override && !h.solicited && !h.router
        ));
    }

    #[test]
    fn all_nodes_on_the_link() {
        assert_eq!(
            all_nodes_hardware_address(HARDWARE_ETHERNET, &[0xff; 6]),
            hex("333300000001")
        );
        let broadcast = hex("00ffffff ff12 401b 8001 00000000000000ff ffff ffff");
        assert_eq!(
            all_nodes_hardware_address(HARDWARE_INFINIBAND, &broadcast[..20]),
            hex("00ffffff ff12 601b 8001 00000000000000000001")
        );
    }
}
