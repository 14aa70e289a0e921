//! What a frame says about who answers for an address. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

/// How a node showed itself as the owner of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// ARP reply to somebody.
    ArpReply,
    /// Gratuitous ARP, request or reply form.
    ArpGratuitous,
    /// ARP request for somebody else, sent from the address.
    ArpRequest,
    /// Neighbour advertisement for the address, asked for.
    NdAdvert,
    /// Neighbour advertisement that nobody asked for.
    NdAnnounce,
    /// First answer to a connection request.
    SynAck,
    /// TCP reset.
    Reset,
    /// Other TCP.
    Tcp,
    /// ICMP or ICMPv6, neighbour solicitations included.
    Icmp,
    /// UDP.
    Udp,
    /// Any other IP packet.
    Other,
}

impl Sign {
    /// Whether a takeover begins with it.
    pub fn announces(self) -> bool {
        matches!(self, Self::ArpGratuitous | Self::NdAnnounce)
    }
}

/// The address that an Ethernet frame claims or speaks for, if it is an ARP, IPv4 or IPv6 frame
/// that names one. The frame may be cut after its first 100 bytes.
pub fn sign_of(frame: &[u8]) -> Option<(IpAddr, Sign)> {
    let body = frame.get(14..)?;
    match be16(frame, 12)? {
        0x0806 => arp(body),
        0x0800 => ipv4(body),
        0x86dd => ipv6(body),
        _ => None,
    }
}

fn arp(body: &[u8]) -> Option<(IpAddr, Sign)> {
    // IPv4 over Ethernet only.
    if body.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let operation = be16(body, 6)?;
    let sender = v4(body, 14)?;
    let sign = match operation {
        // A probe (sender 0.0.0.0) claims nothing.
        _ if sender.is_unspecified() => return None,
        1 | 2 if sender == v4(body, 24)? => Sign::ArpGratuitous,
        2 => Sign::ArpReply,
        _ => Sign::ArpRequest,
    };
    Some((sender.into(), sign))
}

fn ipv4(body: &[u8]) -> Option<(IpAddr, Sign)> {
    let header = usize::from(body.first()? & 15) * 4;
    let source = v4(body, 12)?;
    // Only the first fragment has the ports and flags.
    let offset = be16(body, 6)? & 0x1fff;
    let first = offset == 0;
    Some((
        source.into(),
        payload(*body.get(9)?, first.then(|| body.get(header..)).flatten()),
    ))
}

fn ipv6(body: &[u8]) -> Option<(IpAddr, Sign)> {
    let source = v6(body, 8)?;
    let next = *body.get(6)?;
    let rest = body.get(40..);
    if next == 58
        && let Some(message) = rest
        && message.first() == Some(&136)
    {
        // RFC 4861 4.4: the second bit of the flags says that it was asked for.
        let solicited = message.get(4)? & 0x40 != 0;
        let sign = if solicited {
            Sign::NdAdvert
        } else {
            Sign::NdAnnounce
        };
        return Some((v6(message, 8)?.into(), sign));
    }
    if source.is_unspecified() {
        return None;
    }
    Some((source.into(), payload(next, rest)))
}

fn payload(protocol: u8, rest: Option<&[u8]>) -> Sign {
    match protocol {
        6 => match rest.and_then(|r| r.get(13)) {
            Some(flags) if flags & 0x04 != 0 => Sign::Reset,
            Some(flags) if flags & 0x12 == 0x12 => Sign::SynAck,
            _ => Sign::Tcp,
        },
        17 => Sign::Udp,
        1 | 58 => Sign::Icmp,
        _ => Sign::Other,
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(
        <[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?,
    ))
}

fn v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    Some(Ipv6Addr::from(
        <[u8; 16]>::try_from(bytes.get(at..at + 16)?).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::{Sign, sign_of};

    fn frame(kind: u16, body: &[u8]) -> Vec<u8> {
        let mut f = vec![0; 12];
        f.extend(kind.to_be_bytes());
        f.extend(body);
        f
    }

    fn arp(operation: u8, sender: u8, target: u8) -> Vec<u8> {
        let mut b = vec![0, 1, 8, 0, 6, 4, 0, operation];
        b.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, sender]);
        b.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, target]);
        frame(0x0806, &b)
    }

    #[test]
    fn arp_signs() {
        let ip = "10.0.0.1".parse().unwrap();
        assert_eq!(sign_of(&arp(2, 1, 9)), Some((ip, Sign::ArpReply)));
        assert_eq!(sign_of(&arp(2, 1, 1)), Some((ip, Sign::ArpGratuitous)));
        assert_eq!(sign_of(&arp(1, 1, 1)), Some((ip, Sign::ArpGratuitous)));
        assert_eq!(sign_of(&arp(1, 1, 2)), Some((ip, Sign::ArpRequest)));
        let mut probe = arp(1, 0, 2);
        probe[28..32].fill(0);
        assert_eq!(sign_of(&probe), None);
    }

    #[test]
    fn tcp_signs() {
        let mut body = vec![0; 40];
        body[0] = 0x45;
        body[9] = 6;
        body[12..16].copy_from_slice(&[10, 0, 0, 1]);
        for (flags, sign) in [(0x12, Sign::SynAck), (0x14, Sign::Reset), (0x10, Sign::Tcp)] {
            body[33] = flags;
            assert_eq!(sign_of(&frame(0x0800, &body)).unwrap().1, sign);
        }
        body[7] = 1;
        assert_eq!(sign_of(&frame(0x0800, &body)).unwrap().1, Sign::Tcp);
    }

    #[test]
    fn an_advertisement_speaks_for_its_target() {
        let mut body = vec![0; 64];
        body[6] = 58;
        body[8] = 0xfe;
        body[40] = 136;
        body[48] = 0xfd;
        body[63] = 9;
        for (flags, expected) in [(0x20, Sign::NdAnnounce), (0x60, Sign::NdAdvert)] {
            body[44] = flags;
            let (ip, sign) = sign_of(&frame(0x86dd, &body)).unwrap();
            assert_eq!((ip.to_string().as_str(), sign), ("fd00::9", expected));
        }
    }

    #[test]
    fn cut_frames_are_no_harm() {
        let whole = arp(2, 1, 9);
        for n in 0..whole.len() {
            assert!(sign_of(&whole[..n]).is_none() || n >= 28);
        }
        for kind in [0x0800, 0x86dd] {
            for n in 0..60 {
                let _ = sign_of(&frame(kind, &vec![0xff; n]));
            }
        }
    }
}
