//! Tickles: how the client of an address that moved learns at once that its connection is gone.
//!
//! A tickle is an ACK from the server's address with a sequence number that cannot be right. The
//! client answers with an ACK that carries its true one (RFC 9293 3.10.7.4), and the kernel that
//! has the address now, knowing no such connection, resets it. Linux answers at most once in
//! 500 ms per connection, so repeats must be further apart than that; they are the caller's.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg as _;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Error;

const TCP: u8 = libc::IPPROTO_TCP as u8;
const TCP_BYTES: u16 = 20;
const ACK: u8 = 0x10;
/// Nobody acts on the window of a segment that is out of sequence.
const WINDOW: u16 = 1234;
const HOPS: u8 = 64;
/// A window has at most 2^30 bytes (RFC 7323 2.3), so no client takes both for right.
const SEQUENCES: [u32; 2] = [0, 1 << 31];

/// Packets in one call of the kernel.
const BATCH: usize = 256;

/// Which ends of a service's connections are tickled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// The client's only.
    Client,
    /// The server's kernel too, as if by the client: a socket that the new owner still has from
    /// an earlier time as owner would let a client that comes back from the same port hang, and
    /// a duplicate-reply cache that is kept by connection answer from the wrong one.
    Both,
}

/// By the server's port: both ways for NFS (2049), the client's only for all others.
pub fn ways(server_port: u16) -> Ways {
    const NFS: u16 = 2049;
    if server_port == NFS {
        Ways::Both
    } else {
        Ways::Client
    }
}

/// A tickle, IP header included, all checksums valid. `None` if the ends are not both IPv4 or both
/// IPv6 (v4-mapped ones count as IPv4).
pub fn packet(client: SocketAddr, server: SocketAddr, sequence: u32) -> Option<Vec<u8>> {
    match (canonical(client), canonical(server)) {
        (SocketAddr::V4(client), SocketAddr::V4(server)) => {
            Some(packet_v4(client, server, sequence))
        }
        (SocketAddr::V6(client), SocketAddr::V6(server)) => {
            Some(packet_v6(client, server, sequence))
        }
        _ => None,
    }
}

fn canonical(end: SocketAddr) -> SocketAddr {
    match end {
        SocketAddr::V6(v6) => v6
            .ip()
            .to_ipv4_mapped()
            .map_or(end, |ip| (ip, v6.port()).into()),
        SocketAddr::V4(_) => end,
    }
}

fn packet_v4(client: SocketAddrV4, server: SocketAddrV4, sequence: u32) -> Vec<u8> {
    let (from, to): (&Ipv4Addr, &Ipv4Addr) = (server.ip(), client.ip());
    // Version and length, no service class, total length, no identification, don't fragment.
    let mut packet = vec![0x45, 0];
    packet.extend((20 + TCP_BYTES).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, HOPS, TCP, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let checksum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    let pseudo = [
        &from.octets()[..],
        &to.octets(),
        &[0, TCP],
        &TCP_BYTES.to_be_bytes(),
    ]
    .concat();
    packet.extend(segment(client.port(), server.port(), sequence, &pseudo));
    packet
}

fn packet_v6(client: SocketAddrV6, server: SocketAddrV6, sequence: u32) -> Vec<u8> {
    let (from, to): (&Ipv6Addr, &Ipv6Addr) = (server.ip(), client.ip());
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(TCP_BYTES.to_be_bytes());
    packet.extend([TCP, HOPS]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let length = u32::from(TCP_BYTES).to_be_bytes();
    let pseudo = [&from.octets()[..], &to.octets(), &length, &[0, 0, 0, TCP]].concat();
    packet.extend(segment(client.port(), server.port(), sequence, &pseudo));
    packet
}

fn segment(to: u16, from: u16, sequence: u32, pseudo_header: &[u8]) -> Vec<u8> {
    let mut segment = from.to_be_bytes().to_vec();
    segment.extend(to.to_be_bytes());
    segment.extend(sequence.to_be_bytes());
    // Acknowledges nothing that was sent; five words of header.
    segment.extend([0, 0, 0, 0, 0x50, ACK]);
    segment.extend(WINDOW.to_be_bytes());
    segment.extend([0; 4]);
    let checksum = checksum(&[pseudo_header, &segment]);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// Internet checksum (RFC 1071); each part has an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.as_chunks().0);
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends tickles from one network namespace.
#[derive(Debug)]
pub struct Tickler {
    v4: Socket,
    /// `None` where the kernel has no IPv6.
    v6: Option<Socket>,
    /// Which of [`SEQUENCES`] is next.
    turn: usize,
}

impl Tickler {
    /// Opens the sockets.
    pub fn open() -> Result<Self, Error> {
        Self::try_open().map_err(|source| Error::kernel("open raw sockets for tickles", source))
    }

    fn try_open() -> io::Result<Self> {
        // With this protocol the header is ours, and nothing is received.
        let raw = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        let v4 = raw(Domain::IPV4)?;
        // From an address that is not (yet) here.
        v4.set_freebind_v4(true)?;
        let v6 = match raw(Domain::IPV6) {
            Ok(socket) => {
                socket.set_freebind_v6(true)?;
                Some(socket)
            }
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { v4, v6, turn: 0 })
    }

    /// Sends one tickle to each `(client, server)`, routed by the server's address as the
    /// connection was. The results are in their order; one that fails does not stop the others.
    /// Successive calls alternate between two sequence numbers, one of which is wrong for any
    /// client. That a filter on the way out dropped a packet is not noticed.
    ///
    /// With the ends swapped it is the server's kernel that is asked, as if by the client: for
    /// services that keep what they answered to a connection (see [`ways`]).
    pub fn send(&mut self, connections: &[(SocketAddr, SocketAddr)]) -> Vec<Result<(), Error>> {
        let sequence = SEQUENCES[self.turn % SEQUENCES.len()];
        self.turn = self.turn.wrapping_add(1);
        let mut results: Vec<Result<(), Error>> = Vec::new();
        // What leaves in one call of the kernel has one source address.
        let mut groups: BTreeMap<(IpAddr, u32), Vec<Tickle>> = BTreeMap::new();
        for (index, (client, server)) in connections.iter().enumerate() {
            let Some(packet) = packet(*client, *server, sequence) else {
                results.push(Err(Error::MixedFamilies {
                    doing: doing(*client, *server),
                }));
                continue;
            };
            results.push(Ok(()));
            let to = canonical(*client);
            let scope = match to {
                SocketAddr::V6(to) => to.scope_id(),
                SocketAddr::V4(_) => 0,
            };
            groups
                .entry((canonical(*server).ip(), scope))
                .or_default()
                .push(Tickle { index, to, packet });
        }
        for ((from, scope), tickles) in groups {
            for batch in tickles.chunks(BATCH) {
                let mut failed = |index: usize, source| {
                    let (client, server) = connections[index];
                    results[index] = Err(Error::kernel(doing(client, server), source));
                };
                self.send_from(from, scope, batch, &mut failed);
            }
        }
        results
    }

    fn send_from(
        &self,
        from: IpAddr,
        scope: u32,
        batch: &[Tickle],
        failed: &mut impl FnMut(usize, io::Error),
    ) {
        let (socket, from) = match from {
            IpAddr::V4(from) => (Some(&self.v4), SocketAddr::from((from, 0))),
            IpAddr::V6(from) => {
                let from = SocketAddrV6::new(from, 0, 0, scope);
                (self.v6.as_ref(), from.into())
            }
        };
        let bound = socket
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
            // To the source, so that policy routes by source address apply.
            .and_then(|socket| socket.bind(&from.into()).map(|()| socket));
        match bound {
            Ok(socket) => send_batch(socket, batch, failed),
            Err(error) => {
                let error = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                for tickle in batch {
                    failed(tickle.index, error.into());
                }
            }
        }
    }
}

/// A packet on its way.
struct Tickle {
    /// In the caller's list.
    index: usize,
    to: SocketAddr,
    packet: Vec<u8>,
}

impl Tickle {
    fn address(&self) -> SocketAddrAny {
        match self.to {
            SocketAddr::V4(to) => SocketAddrV4::new(*to.ip(), 0).as_any(),
            // A port would be taken for a protocol.
            SocketAddr::V6(to) => SocketAddrV6::new(*to.ip(), 0, 0, to.scope_id()).as_any(),
        }
    }
}

fn doing(client: SocketAddr, server: SocketAddr) -> String {
    format!("tickle {client} about its connection to {server}")
}

/// Sends all of a batch in as few calls as its failures allow: the kernel stops at the first.
fn send_batch(socket: &Socket, batch: &[Tickle], failed: &mut impl FnMut(usize, io::Error)) {
    let packets: Vec<[IoSlice<'_>; 1]> = batch
        .iter()
        .map(|tickle| [IoSlice::new(&tickle.packet)])
        .collect();
    let addresses: Vec<SocketAddrAny> = batch.iter().map(Tickle::address).collect();
    let mut nothing: Vec<SendAncillaryBuffer<'_, '_, '_>> = Vec::new();
    nothing.resize_with(batch.len(), SendAncillaryBuffer::default);
    let mut headers: Vec<MMsgHdr<'_>> = addresses
        .iter()
        .zip(&packets)
        .zip(&mut nothing)
        .map(|((to, packet), nothing)| MMsgHdr::new_with_addr(to, packet, nothing))
        .collect();
    let mut sent = 0;
    while sent < batch.len() {
        match sendmmsg(socket, &mut headers[sent..], SendFlags::empty()) {
            Ok(count) if count > 0 => sent += count,
            Ok(_) => {
                failed(batch[sent].index, io::ErrorKind::WriteZero.into());
                sent += 1;
            }
            Err(Errno::INTR) => {}
            Err(errno) => {
                failed(batch[sent].index, errno.into());
                sent += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    fn end(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ipv4_as_by_hand() {
        let packet = packet(end("10.0.0.9:50000"), end("10.0.0.1:445"), 0).unwrap();
        // Header words: 4500+0028+4000+4006+0a00+0001+0a00+0009 = d938, complement 26c7.
        let header = [
            0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0x26, 0xc7, 10, 0, 0, 1, 10, 0, 0, 9,
        ];
        assert_eq!(packet[..20], header);
        // Pseudo header 0a00+0001+0a00+0009+0006+0014 = 1424, segment 01bd+c350+5010+04d2 = 119ef,
        // together 12e13, folded 2e14, complement d1eb.
        let segment = [
            1, 0xbd, 0xc3, 0x50, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 0x04, 0xd2, 0xd1, 0xeb, 0, 0,
        ];
        assert_eq!(packet[20..], segment);
    }

    #[test]
    fn another_codec_finds_all_checksums_valid() {
        let cases = [
            ("10.0.0.9:50000", "10.0.0.1:445"),
            ("192.0.2.255:65535", "255.254.253.252:1"),
            ("[::ffff:10.0.0.9]:50000", "10.0.0.1:445"),
            ("[fd00::9]:50000", "[fd00::1]:2049"),
            (
                "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535",
                "[fe80::1]:445",
            ),
        ];
        for (client, server) in cases {
            for sequence in SEQUENCES {
                let packet = packet(end(client), end(server), sequence).unwrap();
                let sliced = SlicedPacket::from_ip(&packet).unwrap();
                let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
                    panic!("not TCP")
                };
                assert_eq!(tcp.sequence_number(), sequence);
                assert_eq!(tcp.source_port(), end(server).port());
                assert_eq!(tcp.destination_port(), end(client).port());
                assert!(tcp.ack() && !tcp.syn() && !tcp.rst() && !tcp.fin());
                let checksum = match sliced.net.unwrap() {
                    NetSlice::Ipv4(ip) => {
                        let header = ip.header().to_header();
                        assert_eq!(header.header_checksum, header.calc_header_checksum());
                        tcp.to_header().calc_checksum_ipv4(&header, &[]).unwrap()
                    }
                    NetSlice::Ipv6(ip) => tcp
                        .to_header()
                        .calc_checksum_ipv6(&ip.header().to_header(), &[])
                        .unwrap(),
                    NetSlice::Arp(_) => panic!("not IP"),
                };
                assert_eq!(tcp.checksum(), checksum, "{client} {server}");
            }
        }
    }

    #[test]
    fn ends_of_two_families_have_no_connection() {
        assert_eq!(packet(end("[fd00::9]:1"), end("10.0.0.1:445"), 0), None);
    }
}
