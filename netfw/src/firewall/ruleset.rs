//! What stands in the table, and the batches that bring it there. Nothing here talks to the
//! kernel.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nftnl::expr::{Bitwise, Cmp, CmpOp, Counter, Expression, Lookup, Meta, Verdict};
use nftnl::set::{Set, SetKey};
use nftnl::{Chain, ChainType, Hook, MsgType, Policy, ProtoFamily, Rule, Table};

use crate::raw::{Header, Load};

/// The table's name.
pub(super) const TABLE: &str = "ctdb";
/// The chain that drops connection requests.
pub(super) const OPENING: &str = "opening";
/// The chain that drops what comes in to blocked addresses.
pub(super) const BLOCKED_IN: &str = "blocked_in";
/// The chain that drops what goes out from blocked addresses.
pub(super) const BLOCKED_OUT: &str = "blocked_out";
/// Most elements of a set.
pub(super) const MAX_ELEMENTS: usize = 65_536;

/// Before connection tracking (raw, -300), which need not see what is dropped.
const PRIORITY: i32 = -310;
const TCP: u8 = 6;
/// Position of the flags in a TCP header, and the two that make a connection request.
const TCP_FLAGS: Header = Header::Transport(13, 1);
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const DESTINATION_PORT: Header = Header::Transport(2, 2);

/// The elements of the table's sets. No v4-mapped addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) closed: BTreeSet<IpAddr>,
    /// Of the closed ones: listeners do not count either.
    pub(super) held: BTreeSet<IpAddr>,
    pub(super) blocked: BTreeSet<IpAddr>,
    pub(super) wildcard_v4: BTreeSet<u16>,
    pub(super) wildcard_v6: BTreeSet<u16>,
    pub(super) specific: BTreeSet<(IpAddr, u16)>,
}

impl Contents {
    /// Size of the largest set (both families taken together).
    pub(super) fn largest(&self) -> usize {
        self.closed
            .len()
            .max(self.held.len())
            .max(self.blocked.len())
            .max(self.specific.len())
    }

    /// What is in `self` and not in `other`.
    fn without(&self, other: &Self) -> Self {
        Self {
            closed: &self.closed - &other.closed,
            held: &self.held - &other.held,
            blocked: &self.blocked - &other.blocked,
            wildcard_v4: &self.wildcard_v4 - &other.wildcard_v4,
            wildcard_v6: &self.wildcard_v6 - &other.wildcard_v6,
            specific: &self.specific - &other.specific,
        }
    }
}

/// Bytes to send as one datagram.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// How many acknowledgements the kernel sends if it took the batch.
    pub(super) acknowledgements: usize,
}

impl From<nftnl::Batch> for Batch {
    fn from(batch: nftnl::Batch) -> Self {
        let batch = batch.finalize();
        // A batch must be one datagram; libnftnl only cuts it to pages for writev.
        let bytes = batch.iter().collect::<Vec<_>>().concat();
        Self {
            bytes,
            acknowledgements: batch.sequence_numbers().len(),
        }
    }
}

/// The table with `contents`, in place of any that there is.
pub(super) fn install(name: &str, contents: &Contents) -> Batch {
    let table = table(name);
    let mut batch = nftnl::Batch::new();
    // To delete what may not be there is an error, to add what is there is none.
    batch.add(&table, MsgType::Add);
    batch.add(&table, MsgType::Del);
    add_all(&mut batch, &table, contents);
    batch.into()
}

/// As [`install`], but gone again at the end.
pub(super) fn probe(name: &str) -> Batch {
    let table = table(name);
    let mut batch = nftnl::Batch::new();
    add_all(&mut batch, &table, &Contents::default());
    batch.add(&table, MsgType::Del);
    batch.into()
}

pub(super) fn remove(name: &str) -> Batch {
    let table = table(name);
    let mut batch = nftnl::Batch::new();
    batch.add(&table, MsgType::Del);
    batch.into()
}

/// From `old` to `new`.
pub(super) fn change(name: &str, old: &Contents, new: &Contents) -> Batch {
    let table = table(name);
    let mut batch = nftnl::Batch::new();
    Sets::new(&table).elements(&mut batch, &old.without(new), MsgType::Del);
    Sets::new(&table).elements(&mut batch, &new.without(old), MsgType::Add);
    batch.into()
}

fn table(name: &str) -> Table {
    // The names are ours, without a zero byte.
    Table::new(CString::new(name).unwrap_or_default(), ProtoFamily::Inet)
}

fn add_all(batch: &mut nftnl::Batch, table: &Table, contents: &Contents) {
    batch.add(table, MsgType::Add);
    let sets = Sets::new(table);
    sets.declare(batch);
    chains(batch, table, &sets);
    sets.elements(batch, contents, MsgType::Add);
}

/// A port as an nftables key.
struct Port(u16);

impl SetKey for Port {
    /// `inet_service`.
    const TYPE: u32 = 13;
    const LEN: u32 = 2;

    fn data(&self) -> Box<[u8]> {
        self.0.to_be_bytes().into()
    }
}

/// IPv4 address and port, concatenated: each part fills whole 32-bit words.
struct PortOf4(Ipv4Addr, u16);

impl SetKey for PortOf4 {
    /// `ipv4_addr . inet_service`: six bits a part.
    const TYPE: u32 = (Ipv4Addr::TYPE << 6) | Port::TYPE;
    const LEN: u32 = 8;

    fn data(&self) -> Box<[u8]> {
        [&self.0.octets()[..], &self.1.to_be_bytes(), &[0, 0]]
            .concat()
            .into()
    }
}

/// IPv6 address and port, concatenated.
struct PortOf6(Ipv6Addr, u16);

impl SetKey for PortOf6 {
    /// `ipv6_addr . inet_service`.
    const TYPE: u32 = (Ipv6Addr::TYPE << 6) | Port::TYPE;
    const LEN: u32 = 20;

    fn data(&self) -> Box<[u8]> {
        [&self.0.octets()[..], &self.1.to_be_bytes(), &[0, 0]]
            .concat()
            .into()
    }
}

struct Sets<'a> {
    closed4: Set<'a, Ipv4Addr>,
    closed6: Set<'a, Ipv6Addr>,
    held4: Set<'a, Ipv4Addr>,
    held6: Set<'a, Ipv6Addr>,
    blocked4: Set<'a, Ipv4Addr>,
    blocked6: Set<'a, Ipv6Addr>,
    wild4: Set<'a, Port>,
    wild6: Set<'a, Port>,
    ports4: Set<'a, PortOf4>,
    ports6: Set<'a, PortOf6>,
}

impl<'a> Sets<'a> {
    fn new(table: &'a Table) -> Self {
        fn set<'a, K: SetKey>(name: &CStr, id: u32, table: &'a Table) -> Set<'a, K> {
            Set::new_named(name, id, table, ProtoFamily::Inet)
        }
        Self {
            closed4: set(c"closed4", 1, table),
            closed6: set(c"closed6", 2, table),
            blocked4: set(c"blocked4", 3, table),
            blocked6: set(c"blocked6", 4, table),
            wild4: set(c"wild4", 5, table),
            wild6: set(c"wild6", 6, table),
            ports4: set(c"ports4", 7, table),
            ports6: set(c"ports6", 8, table),
            held4: set(c"held4", 9, table),
            held6: set(c"held6", 10, table),
        }
    }

    fn declare(&self, batch: &mut nftnl::Batch) {
        batch.add(&self.closed4, MsgType::Add);
        batch.add(&self.closed6, MsgType::Add);
        batch.add(&self.held4, MsgType::Add);
        batch.add(&self.held6, MsgType::Add);
        batch.add(&self.blocked4, MsgType::Add);
        batch.add(&self.blocked6, MsgType::Add);
        batch.add(&self.wild4, MsgType::Add);
        batch.add(&self.wild6, MsgType::Add);
        batch.add(&self.ports4, MsgType::Add);
        batch.add(&self.ports6, MsgType::Add);
    }

    /// Adds or deletes the elements in `contents`.
    fn elements(mut self, batch: &mut nftnl::Batch, contents: &Contents, what: MsgType) {
        for address in &contents.closed {
            match address {
                IpAddr::V4(address) => self.closed4.add(address),
                IpAddr::V6(address) => self.closed6.add(address),
            }
        }
        for address in &contents.held {
            match address {
                IpAddr::V4(address) => self.held4.add(address),
                IpAddr::V6(address) => self.held6.add(address),
            }
        }
        for address in &contents.blocked {
            match address {
                IpAddr::V4(address) => self.blocked4.add(address),
                IpAddr::V6(address) => self.blocked6.add(address),
            }
        }
        contents
            .wildcard_v4
            .iter()
            .for_each(|port| self.wild4.add(&Port(*port)));
        contents
            .wildcard_v6
            .iter()
            .for_each(|port| self.wild6.add(&Port(*port)));
        for (address, port) in &contents.specific {
            match address {
                IpAddr::V4(address) => self.ports4.add(&PortOf4(*address, *port)),
                IpAddr::V6(address) => self.ports6.add(&PortOf6(*address, *port)),
            }
        }
        batch.add_iter(self.closed4.elems_iter(), what);
        batch.add_iter(self.closed6.elems_iter(), what);
        batch.add_iter(self.held4.elems_iter(), what);
        batch.add_iter(self.held6.elems_iter(), what);
        batch.add_iter(self.blocked4.elems_iter(), what);
        batch.add_iter(self.blocked6.elems_iter(), what);
        batch.add_iter(self.wild4.elems_iter(), what);
        batch.add_iter(self.wild6.elems_iter(), what);
        batch.add_iter(self.ports4.elems_iter(), what);
        batch.add_iter(self.ports6.elems_iter(), what);
    }
}

/// What differs between the families.
struct Family {
    /// `NFPROTO_*`.
    number: u8,
    source: Header,
    destination: Header,
    /// 32-bit words of an address.
    words: u32,
}

const IPV4: Family = Family {
    number: libc::NFPROTO_IPV4 as u8,
    source: Header::Network(12, 4),
    destination: Header::Network(16, 4),
    words: 1,
};
const IPV6: Family = Family {
    number: libc::NFPROTO_IPV6 as u8,
    source: Header::Network(8, 16),
    destination: Header::Network(24, 16),
    words: 4,
};

fn chains(batch: &mut nftnl::Batch, table: &Table, sets: &Sets<'_>) {
    let opening = chain(table, OPENING, Hook::In);
    batch.add(&opening, MsgType::Add);
    open_rules(
        batch,
        &opening,
        &IPV4,
        &sets.wild4,
        &sets.ports4,
        [&sets.held4, &sets.closed4],
    );
    open_rules(
        batch,
        &opening,
        &IPV6,
        &sets.wild6,
        &sets.ports6,
        [&sets.held6, &sets.closed6],
    );

    let incoming = chain(table, BLOCKED_IN, Hook::In);
    batch.add(&incoming, MsgType::Add);
    drop_rule(batch, &incoming, &IPV4, IPV4.destination, &sets.blocked4);
    drop_rule(batch, &incoming, &IPV6, IPV6.destination, &sets.blocked6);
    let outgoing = chain(table, BLOCKED_OUT, Hook::Out);
    batch.add(&outgoing, MsgType::Add);
    drop_rule(batch, &outgoing, &IPV4, IPV4.source, &sets.blocked4);
    drop_rule(batch, &outgoing, &IPV6, IPV6.source, &sets.blocked6);
}

fn chain<'a>(table: &'a Table, name: &str, hook: Hook) -> Chain<'a> {
    // The names are ours, without a zero byte.
    let mut chain = Chain::new(CString::new(name).unwrap_or_default(), table);
    chain.set_hook(hook, PRIORITY);
    chain.set_type(ChainType::Filter);
    chain.set_policy(Policy::Accept);
    chain
}

/// Connection requests: to a held address are dropped; to a port with a listener pass (this chain
/// only), else to a closed address are dropped. `tcp flags & (syn|ack) == syn` comes first, so that no other packet costs
/// more than three comparisons.
fn open_rules<A: SetKey, P: SetKey>(
    batch: &mut nftnl::Batch,
    chain: &Chain<'_>,
    family: &Family,
    wild: &Set<'_, Port>,
    ports: &Set<'_, P>,
    [held, closed]: [&Set<'_, A>; 2],
) {
    let requests = |chain| {
        let mut rule = Rule::new(chain);
        of_family(&mut rule, family);
        rule.add_expr(&Meta::L4Proto);
        rule.add_expr(&Cmp::new(CmpOp::Eq, TCP));
        rule.add_expr(&Load {
            header: TCP_FLAGS,
            word: 0,
        });
        rule.add_expr(&Bitwise::new(SYN | ACK, 0u8));
        rule.add_expr(&Cmp::new(CmpOp::Eq, SYN));
        rule
    };
    let destination = Load {
        header: family.destination,
        word: 0,
    };
    let mut rule = requests(chain);
    counted_drop(&mut rule, &destination, held);
    batch.add(&rule, MsgType::Add);

    let mut rule = requests(chain);
    rule.add_expr(&Load {
        header: DESTINATION_PORT,
        word: 0,
    });
    rule.add_expr(&Lookup::new(wild));
    rule.add_expr(&Verdict::Accept);
    batch.add(&rule, MsgType::Add);

    let mut rule = requests(chain);
    rule.add_expr(&Load {
        header: family.destination,
        word: 0,
    });
    rule.add_expr(&Load {
        header: DESTINATION_PORT,
        word: family.words,
    });
    rule.add_expr(&Lookup::new(ports));
    rule.add_expr(&Verdict::Accept);
    batch.add(&rule, MsgType::Add);

    let mut rule = requests(chain);
    counted_drop(&mut rule, &destination, closed);
    batch.add(&rule, MsgType::Add);
}

fn drop_rule<A: SetKey>(
    batch: &mut nftnl::Batch,
    chain: &Chain<'_>,
    family: &Family,
    address: Header,
    set: &Set<'_, A>,
) {
    let mut rule = Rule::new(chain);
    of_family(&mut rule, family);
    counted_drop(
        &mut rule,
        &Load {
            header: address,
            word: 0,
        },
        set,
    );
    batch.add(&rule, MsgType::Add);
}

fn of_family(rule: &mut Rule<'_>, family: &Family) {
    rule.add_expr(&Meta::NfProto);
    rule.add_expr(&Cmp::new(CmpOp::Eq, family.number));
}

fn counted_drop<A: SetKey>(rule: &mut Rule<'_>, load: &impl Expression, set: &Set<'_, A>) {
    rule.add_expr(load);
    rule.add_expr(&Lookup::new(set));
    rule.add_expr(&Counter);
    rule.add_expr(&Verdict::Drop);
}
