//! The kernel programs' records, and what they say.
#![allow(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::sys;

/// An IPv6 address, or an IPv4 address in its v4-mapped form.
pub(super) type Key = [u8; 16];

/// The kernel programs' `Connection`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) local: Key,
    pub(super) remote: Key,
    pub(super) since_ns: u64,
    pub(super) cgroup: u64,
    pub(super) interface: u32,
    pub(super) round: u32,
    pub(super) local_port: u16,
    pub(super) remote_port: u16,
    pub(super) seeded: u32,
}

// SAFETY: numbers without padding: 2·16 + 2·8 + 2·4 + 2·2 + 4 = 64 bytes.
unsafe impl sys::Plain for Entry {}

/// The kernel programs' `Config`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) round: u32,
    pub(super) padding: u32,
    pub(super) netns: u64,
}

// SAFETY: numbers, 16 bytes.
unsafe impl sys::Plain for Config {}

/// Bytes of the kernel programs' `Change`.
pub(super) const CHANGE_BYTES: usize = size_of::<Entry>() + 16;

/// One TCP connection to a public address, as the kernel saw it. v4-mapped addresses are IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tracked {
    /// Number of the socket, unique within one boot; equal to its `SO_COOKIE`.
    pub cookie: u64,
    /// The public address and port.
    pub server: SocketAddr,
    /// The other end.
    pub client: SocketAddr,
    /// When it was established, in nanoseconds of the boot-time clock ([`crate::boot_ns`]).
    pub since_ns: u64,
    /// It was there before the tracker: `since_ns` is when it was first seen.
    pub seeded: bool,
    /// Number of the control group (version 2) of the service: that of who made the listener.
    /// 0: not known.
    pub cgroup: u64,
    /// The interface that the socket is bound to; 0: none.
    pub interface: u32,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A connection was established.
    Opened(Tracked),
    /// A connection ended. May come for one that was never given, or twice.
    Closed(Tracked),
    /// What was given before is void: this is all there is. Comes first of all, and after what
    /// could have been missed.
    Whole {
        /// All connections, in no order.
        connections: Vec<Tracked>,
        /// Whether none is missing. Otherwise the kernel's table had no room for some.
        complete: bool,
    },
}

pub(super) fn key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn end(key: Key, port: u16, interface: u32) -> SocketAddr {
    match Ipv6Addr::from(key).to_canonical() {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            SocketAddrV6::new(v6, port, 0, interface).into()
        }
        address => SocketAddr::new(address, port),
    }
}

pub(super) fn tracked(cookie: u64, entry: &Entry) -> Tracked {
    Tracked {
        cookie,
        server: end(entry.local, entry.local_port, entry.interface),
        client: end(entry.remote, entry.remote_port, entry.interface),
        since_ns: entry.since_ns,
        seeded: entry.seeded != 0,
        cgroup: entry.cgroup,
        interface: entry.interface,
    }
}

/// Reads one record of the ring. None: not of this version.
pub(super) fn change(record: &[u8]) -> Option<Change> {
    let record: &[u8; CHANGE_BYTES] = record.try_into().ok()?;
    let half = |at: usize| Some(u16::from_ne_bytes(*record.get(at..)?.first_chunk()?));
    let word = |at: usize| Some(u32::from_ne_bytes(*record.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u64::from_ne_bytes(*record.get(at..)?.first_chunk()?));
    let entry = Entry {
        local: *record.first_chunk()?,
        remote: *record.get(16..)?.first_chunk()?,
        since_ns: long(32)?,
        cgroup: long(40)?,
        interface: word(48)?,
        round: word(52)?,
        local_port: half(56)?,
        remote_port: half(58)?,
        seeded: word(60)?,
    };
    let tracked = tracked(long(64)?, &entry);
    Some(if word(72)? == 0 {
        Change::Opened(tracked)
    } else {
        Change::Closed(tracked)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(ended: u32) -> Vec<u8> {
        let mut record = key("192.0.2.1".parse().unwrap()).to_vec();
        record.extend(key("fe80::9".parse().unwrap()));
        record.extend(5_u64.to_ne_bytes());
        record.extend(6_u64.to_ne_bytes());
        record.extend(7_u32.to_ne_bytes());
        record.extend(8_u32.to_ne_bytes());
        record.extend(445_u16.to_ne_bytes());
        record.extend(50_000_u16.to_ne_bytes());
        record.extend(1_u32.to_ne_bytes());
        record.extend(99_u64.to_ne_bytes());
        record.extend(ended.to_ne_bytes());
        record.extend(0_u32.to_ne_bytes());
        record
    }

    #[test]
    fn records_of_the_ring() {
        let tracked = Tracked {
            cookie: 99,
            server: "192.0.2.1:445".parse().unwrap(),
            client: "[fe80::9%7]:50000".parse().unwrap(),
            since_ns: 5,
            seeded: true,
            cgroup: 6,
            interface: 7,
        };
        assert_eq!(change(&record(0)), Some(Change::Opened(tracked)));
        assert_eq!(change(&record(1)), Some(Change::Closed(tracked)));
        assert_eq!(change(&record(0)[1..]), None);
        assert_eq!(change(&[]), None);
    }
}
