//! Entries of the map of public addresses.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use super::{ADDRESSES, INTERFACES};
use crate::{Error, sys};

/// An IPv6 address, or an IPv4 address in its v4-mapped form: the kernel programs' `Address`.
pub(super) type Key = [u8; 16];

/// The kernel programs' `Public`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// 0: known, not granted here.
    pub(super) slot: u32,
    /// Where it belongs; 0: none.
    pub(super) ifindex: [u32; INTERFACES],
}

// SAFETY: numbers of one size.
unsafe impl sys::Plain for Entry {}

pub(super) type Table = BTreeMap<Key, Entry>;

pub(super) fn key(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub(super) fn address(key: Key) -> IpAddr {
    Ipv6Addr::from(key).to_canonical()
}

/// What to write and what to remove.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) forget: Vec<Key>,
    pub(super) write: Vec<(Key, Entry)>,
}

/// From what is known to what shall be: slots stay, new ones have none. What is as it was is not
/// written again: an element that the kernel puts in another's place is used anew at once, and a
/// program that still looks at it would judge by what it is now.
pub(super) fn plan(known: &Table, wanted: &[(IpAddr, Vec<u32>)]) -> Result<Change, Error> {
    let mut interfaces: BTreeMap<Key, Vec<u32>> = BTreeMap::new();
    for (address, ifindices) in wanted {
        let list = interfaces.entry(key(*address)).or_default();
        for ifindex in ifindices {
            if *ifindex != 0 && !list.contains(ifindex) {
                list.push(*ifindex);
            }
        }
    }
    if interfaces.len() > ADDRESSES {
        return Err(Error::TooManyAddresses {
            count: interfaces.len(),
            limit: ADDRESSES,
        });
    }
    let mut change = Change::default();
    for (key, list) in &interfaces {
        let old = known.get(key);
        let mut entry = Entry {
            slot: old.map_or(0, |old| old.slot),
            ..Entry::default()
        };
        let Some(places) = entry.ifindex.get_mut(..list.len()) else {
            return Err(Error::TooManyInterfaces {
                address: address(*key),
                count: list.len(),
                limit: INTERFACES,
            });
        };
        places.copy_from_slice(list);
        if old != Some(&entry) {
            change.write.push((*key, entry));
        }
    }
    change.forget = known
        .keys()
        .filter(|key| !interfaces.contains_key(*key))
        .copied()
        .collect();
    Ok(change)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn keys_are_one_for_both_forms_of_an_ipv4_address() {
        assert_eq!(key(ip("192.0.2.1")), key(ip("::ffff:192.0.2.1")));
        assert_eq!(address(key(ip("::ffff:192.0.2.1"))), ip("192.0.2.1"));
        assert_eq!(address(key(ip("2001:db8::1"))), ip("2001:db8::1"));
    }

    #[test]
    fn only_what_differs_is_written_and_grants_stay() {
        let entry = |slot, first| Entry {
            slot,
            ifindex: [first, 0, 0, 0, 0, 0, 0, 0],
        };
        let known = Table::from([
            (key(ip("192.0.2.1")), entry(7, 3)),
            (key(ip("192.0.2.2")), entry(7, 3)),
            (key(ip("192.0.2.3")), entry(7, 3)),
        ]);
        let wanted = [
            (ip("192.0.2.1"), vec![3]),
            (ip("192.0.2.2"), vec![0, 4]),
            (ip("192.0.2.4"), vec![3]),
            (ip("192.0.2.4"), vec![3, 5]),
        ];
        let change = plan(&known, &wanted).unwrap();
        assert_eq!(change.forget, [key(ip("192.0.2.3"))]);
        let both = Entry {
            slot: 0,
            ifindex: [3, 5, 0, 0, 0, 0, 0, 0],
        };
        assert_eq!(
            change.write,
            [
                (key(ip("192.0.2.2")), entry(7, 4)),
                (key(ip("192.0.2.4")), both)
            ]
        );
    }

    #[test]
    fn bounds() {
        let many: Vec<u32> = (1..=9).collect();
        assert!(matches!(
            plan(&Table::new(), &[(ip("192.0.2.1"), many)]),
            Err(Error::TooManyInterfaces {
                count: 9,
                limit: 8,
                ..
            })
        ));
        let all: Vec<_> = (0..8193_u32)
            .map(|n| (IpAddr::V4((0x0a00_0000 + n).into()), vec![1]))
            .collect();
        assert!(plan(&Table::new(), &all[..8192]).is_ok());
        assert!(matches!(
            plan(&Table::new(), &all),
            Err(Error::TooManyAddresses {
                count: 8193,
                limit: 8192
            })
        ));
    }
}
