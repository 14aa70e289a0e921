//! The messages of the kernel's socket monitoring (`sock_diag(7)`, `linux/inet_diag.h`): requests
//! built, answers read. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// `AF_INET`.
pub(crate) const IPV4: u8 = libc::AF_INET as u8;
/// `AF_INET6`.
pub(crate) const IPV6: u8 = libc::AF_INET6 as u8;
/// `TCP_ESTABLISHED`.
pub(crate) const ESTABLISHED: u8 = 1;
/// `TCP_SYN_SENT`.
pub(crate) const SYN_SENT: u8 = 2;
/// `TCP_SYN_RECV`.
pub(crate) const SYN_RECV: u8 = 3;
/// `TCP_TIME_WAIT`.
pub(crate) const TIME_WAIT: u8 = 6;
/// `TCP_CLOSE`: of UDP sockets those that are bound and not connected.
pub(crate) const CLOSE: u8 = 7;
/// `TCP_LISTEN`.
pub(crate) const LISTEN: u8 = 10;
/// `TCP_NEW_SYN_RECV`, the highest of those that can be asked for.
pub(crate) const NEW_SYN_RECV: u8 = 12;
const LAST_STATE: u8 = NEW_SYN_RECV;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;

const HEADER_BYTES: usize = 16;
/// `struct inet_diag_sockid`: ports, addresses, interface, cookie.
pub(crate) const ID_BYTES: usize = 48;
/// `struct inet_diag_msg`.
const MESSAGE_BYTES: usize = 72;
const ID_AT: usize = 4;

const INODE_AT: usize = 68;

const INET_DIAG_REQ_BYTECODE: u16 = 1;
const INET_DIAG_INFO: u16 = 2;
/// Asks for [`INET_DIAG_INFO`].
const WITH_INFO: u8 = 1 << (INET_DIAG_INFO - 1);
const INET_DIAG_SKV6ONLY: u16 = 11;
const BYTECODE_JUMP: u8 = 1;
const BYTECODE_SOURCE: u8 = 7;
const OPERATION_BYTES: u16 = 4;

/// States by number, as the kernel's bit mask.
pub(crate) fn states(wanted: impl Fn(u8) -> bool) -> u32 {
    (ESTABLISHED..=LAST_STATE)
        .filter(|state| wanted(*state))
        .fold(0, |mask, at| mask | 1 << at)
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    /// `IPPROTO_*`.
    pub(crate) protocol: i32,
    /// See [`states`].
    pub(crate) states: u32,
    /// See [`source_filter`]; empty: none.
    pub(crate) filter: &'a [u8],
    /// `struct tcp_info` of each as well.
    pub(crate) info: bool,
}

/// A request for all sockets of a family of some kind.
pub(crate) fn dump_request(family: u8, wanted: &Wanted<'_>, seq: u32) -> Vec<u8> {
    let Wanted {
        protocol,
        states,
        filter,
        info,
    } = *wanted;
    let with = if info { WITH_INFO } else { 0 };
    let mut body = vec![family, protocol as u8, with, 0];
    body.extend(states.to_ne_bytes());
    body.extend([0; ID_BYTES]);
    if !filter.is_empty() {
        body.extend((4 + filter.len() as u16).to_ne_bytes());
        body.extend(INET_DIAG_REQ_BYTECODE.to_ne_bytes());
        body.extend(filter);
    }
    message(SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, seq, &body)
}

/// A request to destroy one socket. Not acknowledged; only a refusal is answered.
pub(crate) fn destroy_request(family: u8, id: &[u8; ID_BYTES], seq: u32) -> Vec<u8> {
    let mut body = vec![family, libc::IPPROTO_TCP as u8, 0, 0];
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(id);
    message(SOCK_DESTROY, NLM_F_REQUEST, seq, &body)
}

fn message(kind: u16, flags: u16, seq: u32, body: &[u8]) -> Vec<u8> {
    let mut message = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(seq.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    message
}

/// A program for the kernel that lets sockets pass whose local address is one of `addresses`. An
/// IPv4 address lets its v4-mapped form pass as well. The caller bounds the number (jumps are 16
/// bits, and the kernel's check of the program is quadratic).
pub(crate) fn source_filter(addresses: &[IpAddr]) -> Vec<u8> {
    let condition = |address: &IpAddr| {
        let (family, octets) = match address {
            IpAddr::V4(address) => (IPV4, address.octets().to_vec()),
            IpAddr::V6(address) => (IPV6, address.octets().to_vec()),
        };
        let mut condition = vec![family, octets.len() as u8 * 8, 0, 0];
        // Any port.
        condition.extend((-1i32).to_ne_bytes());
        condition.extend(octets);
        condition
    };
    let conditions: Vec<Vec<u8>> = addresses.iter().map(condition).collect();
    let size = |condition: &Vec<u8>| OPERATION_BYTES + condition.len() as u16;
    let jumps = (conditions.len().saturating_sub(1)) as u16;
    let total = conditions.iter().map(size).sum::<u16>() + jumps * OPERATION_BYTES;
    let mut program: Vec<u8> = Vec::with_capacity(total.into());
    let operation = |program: &mut Vec<u8>, code: u8, yes: u16, no: u16| {
        program.extend([code, yes as u8]);
        program.extend(no.to_ne_bytes());
    };
    for (at, condition) in conditions.iter().enumerate() {
        let size = size(condition);
        // No match: past the jump that follows, to the next condition; after the last one past
        // the end, which refuses. Match: on to the jump to the end, which accepts.
        operation(&mut program, BYTECODE_SOURCE, size, size + OPERATION_BYTES);
        program.extend(condition);
        if at + 1 < conditions.len() {
            let rest = total - program.len() as u16;
            operation(&mut program, BYTECODE_JUMP, OPERATION_BYTES, rest);
        }
    }
    program
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw<'a> {
    pub(crate) kind: u16,
    pub(crate) seq: u32,
    pub(crate) body: &'a [u8],
}

impl Raw<'_> {
    /// The error number in an error message or at the end of a dump; 0 for none.
    pub(crate) fn errno(&self) -> i32 {
        let code = self
            .body
            .first_chunk()
            .map_or(0, |code| i32::from_ne_bytes(*code));
        code.saturating_neg()
    }
}

/// The messages of a datagram; ends at the first one whose length makes no sense.
pub(crate) fn split(mut datagram: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER_BYTES] = datagram.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let body = datagram.get(HEADER_BYTES..length)?;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(Raw {
            kind: u16::from_ne_bytes([k0, k1]),
            seq: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    })
}

/// A socket as the kernel describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) family: u8,
    pub(crate) state: u8,
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) id: [u8; ID_BYTES],
    /// Number of its file in the kernel; 0: nobody has it open.
    pub(crate) inode: u64,
    /// Known for IPv6 listeners.
    pub(crate) v6only: Option<bool>,
    /// If it was asked for.
    pub(crate) info: Option<TcpInfo>,
}

/// What the kernel tells of a connection's traffic (`struct tcp_info`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// Bytes that came from the client.
    pub bytes_received: u64,
    /// Bytes that were sent and acknowledged by the client.
    pub bytes_acked: u64,
    /// Smoothed round-trip time, in microseconds.
    pub rtt_us: u32,
    /// Segments that were sent again, in all.
    pub retransmissions: u32,
    /// Segments that wait for an acknowledgement.
    pub unacknowledged: u32,
    /// Milliseconds since the client last sent data.
    pub idle_ms: u32,
}

fn tcp_info(value: &[u8]) -> Option<TcpInfo> {
    let word = |at: usize| Some(u32::from_ne_bytes(*value.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_ne_bytes(*value.get(at..)?.first_chunk()?));
    Some(TcpInfo {
        unacknowledged: word(24)?,
        idle_ms: word(52)?,
        rtt_us: word(68)?,
        retransmissions: word(100)?,
        bytes_acked: long(120)?,
        bytes_received: long(128)?,
    })
}

/// Reads one answer of a dump.
pub(crate) fn describe(body: &[u8]) -> Option<Described> {
    let (fixed, mut rest) = body.split_at_checked(MESSAGE_BYTES)?;
    let family = fixed[0];
    let id: [u8; ID_BYTES] = *fixed.get(ID_AT..)?.first_chunk()?;
    let interface = u32::from_ne_bytes(*id.get(36..)?.first_chunk()?);
    let end = |address_at: usize, port_at: usize| -> Option<SocketAddr> {
        let octets: [u8; 16] = *id.get(address_at..)?.first_chunk()?;
        let port = u16::from_be_bytes([id[port_at], id[port_at + 1]]);
        let address = match family {
            IPV4 => IpAddr::V4(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3])),
            IPV6 => IpAddr::V6(Ipv6Addr::from(octets)).to_canonical(),
            _ => return None,
        };
        let mut end = SocketAddr::new(address, port);
        if let SocketAddr::V6(end) = &mut end
            && end.ip().is_unicast_link_local()
        {
            end.set_scope_id(interface);
        }
        Some(end)
    };
    let (local, remote) = (end(4, 0)?, end(20, 2)?);
    let inode = u32::from_ne_bytes(*fixed.get(INODE_AT..)?.first_chunk()?);
    let (mut v6only, mut info) = (None, None);
    while let Some([l0, l1, k0, k1]) = rest.first_chunk() {
        let length = u16::from_ne_bytes([*l0, *l1]) as usize;
        let Some(value) = rest.get(4..length) else {
            break;
        };
        match u16::from_ne_bytes([*k0, *k1]) {
            INET_DIAG_SKV6ONLY => v6only = value.first().map(|flag| *flag != 0),
            INET_DIAG_INFO => info = tcp_info(value),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(Described {
        family,
        state: fixed[1],
        local,
        remote,
        id,
        inode: inode.into(),
        v6only,
        info,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel does (`inet_diag_bc_run`), on a local address.
    fn passes(mut program: &[u8], local: IpAddr) -> bool {
        let mut left = i64::try_from(program.len()).unwrap();
        while left > 0 {
            let no = i64::from(u16::from_ne_bytes([program[2], program[3]]));
            let step = match program[0] {
                BYTECODE_JUMP => no,
                BYTECODE_SOURCE => {
                    let length = usize::from(program[5]) / 8;
                    let address = &program[12..12 + length];
                    let matches = match local {
                        IpAddr::V4(local) => address == local.octets(),
                        IpAddr::V6(local) => address == local.octets(),
                    };
                    if matches { i64::from(program[1]) } else { no }
                }
                code => panic!("unknown operation {code}"),
            };
            left -= step;
            program = program
                .get(usize::try_from(step).unwrap()..)
                .unwrap_or_default();
        }
        left == 0
    }

    #[test]
    fn the_filter_lets_its_addresses_pass_and_no_others() {
        let addresses: Vec<IpAddr> = ["10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        for count in 1..=addresses.len() {
            let program = source_filter(&addresses[..count]);
            assert_eq!(program.len() % 4, 0);
            for (at, address) in addresses.iter().enumerate() {
                assert_eq!(
                    passes(&program, *address),
                    at < count,
                    "{address} of {count}"
                );
            }
        }
        assert!(source_filter(&[]).is_empty());
    }

    fn described(family: u8, state: u8, local: [u8; 16], remote: [u8; 16]) -> Vec<u8> {
        let mut body = vec![family, state, 0, 0];
        body.extend([0x01, 0xbd, 0xc0, 0x00]);
        body.extend(local);
        body.extend(remote);
        body.extend(7u32.to_ne_bytes());
        body.extend([1; 8]);
        body.resize(MESSAGE_BYTES, 0);
        body
    }

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        let local = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
        let remote = "::ffff:10.0.0.9".parse::<Ipv6Addr>().unwrap().octets();
        let socket = describe(&described(10, 1, local, remote)).unwrap();
        assert_eq!(socket.local, "10.0.0.1:445".parse().unwrap());
        assert_eq!(socket.remote, "10.0.0.9:49152".parse().unwrap());
        assert_eq!(socket.family, 10, "as the kernel knows it");
    }

    #[test]
    fn link_local_ends_name_their_interface() {
        let local = "fe80::1".parse::<Ipv6Addr>().unwrap().octets();
        let remote = "fe80::2".parse::<Ipv6Addr>().unwrap().octets();
        let socket = describe(&described(10, 1, local, remote)).unwrap();
        assert_eq!(socket.remote, "[fe80::2%7]:49152".parse().unwrap());
    }

    #[test]
    fn attributes_are_read_and_damaged_ones_are_not() {
        let mut body = described(10, LISTEN, [0; 16], [0; 16]);
        assert_eq!(describe(&body).unwrap().v6only, None);
        body.extend([5, 0, 8, 0, 1, 0, 0, 0]);
        body.extend([5, 0, 11, 0, 1, 0, 0, 0]);
        assert_eq!(describe(&body).unwrap().v6only, Some(true));
        body.extend([0, 0, 11, 0]);
        assert_eq!(describe(&body).unwrap().v6only, Some(true));
        assert_eq!(describe(&body[..MESSAGE_BYTES - 1]), None);
        body[0] = 1;
        assert_eq!(describe(&body), None);
    }

    #[test]
    fn traffic_is_read_where_it_is_told() {
        let mut body = described(2, ESTABLISHED, [10; 16], [11; 16]);
        let mut value = vec![0; 136];
        value[120..128].copy_from_slice(&7_u64.to_ne_bytes());
        value[128..136].copy_from_slice(&9_u64.to_ne_bytes());
        value[68..72].copy_from_slice(&1500_u32.to_ne_bytes());
        body.extend(140_u16.to_ne_bytes());
        body.extend(INET_DIAG_INFO.to_ne_bytes());
        body.extend(&value);
        let info = describe(&body).unwrap().info.unwrap();
        let known = (info.bytes_acked, info.bytes_received, info.rtt_us);
        assert_eq!(known, (7, 9, 1500));
        // Of an old kernel.
        body[MESSAGE_BYTES] = 132;
        assert_eq!(describe(&body).unwrap().info, None);
    }

    #[test]
    fn states_are_a_mask() {
        assert_eq!(states(|state| state == LISTEN), 1 << 10);
        assert_eq!(
            states(|state| ![LISTEN, TIME_WAIT].contains(&state)),
            0b1_1011_1011_1110,
        );
    }
}
