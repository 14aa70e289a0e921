//! The firewall of the time around a failover: one nftables table, `inet ctdb`, of our own.
//!
//! * *Closed* addresses: a connection request (TCP with SYN and without ACK) to a port that has no
//!   listener yet is dropped, so that the client tries again after a second instead of being
//!   refused (`ADDR-4`, `spec/kernel.md` 5). All other segments pass, so that the kernel can reset
//!   what tickles provoke.
//! * *Blocked* addresses: nothing comes in to them and nothing goes out from them. ARP is not
//!   nftables' to stop (`spec/kernel.md` 4).
//!
//! Every change is one atomic batch. The kernel rolls a batch back whole for an element that is
//! there already, or is not there; so what is installed is remembered and only the difference
//! sent, and if the kernel disagrees (somebody changed or flushed the ruleset), the table is
//! replaced by what should be there, again in one batch. A takeover asks the kernel first whether
//! anybody changed the ruleset since ([`Firewall::prepare`]). A daemon that dies leaves the table
//! behind, working, until the next one installs its own.

mod ruleset;

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};

use crate::Error;
use crate::netlink::{Netlink, attributes};
use ruleset::{Contents, MAX_ELEMENTS, TABLE};

/// Message types of the kernel's nftables interface, with its subsystem in the upper byte.
const GET_RULE: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | libc::NFT_MSG_GETRULE as u16;
const GET_GENERATION: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8 | libc::NFT_MSG_GETGEN as u16;
const NFTA_GEN_ID: u16 = 1;
const NFNL_HEADER_BYTES: usize = 4;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

/// What the table has dropped since [`Firewall::install`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connection requests to closed addresses, in packets.
    pub opening_packets: u64,
    /// The same in bytes.
    pub opening_bytes: u64,
    /// Packets to and from blocked addresses.
    pub blocked_packets: u64,
    /// The same in bytes.
    pub blocked_bytes: u64,
}

impl Counters {
    fn plus(self, other: Self) -> Self {
        Self {
            opening_packets: self.opening_packets.saturating_add(other.opening_packets),
            opening_bytes: self.opening_bytes.saturating_add(other.opening_bytes),
            blocked_packets: self.blocked_packets.saturating_add(other.blocked_packets),
            blocked_bytes: self.blocked_bytes.saturating_add(other.blocked_bytes),
        }
    }
}

/// The installed table, and what is in it.
#[derive(Debug)]
pub struct Firewall {
    netlink: Netlink,
    contents: Contents,
    /// What tables that had to be replaced had counted.
    earlier: Counters,
    /// The ruleset's generation after our last change; `None` if somebody else's change came in
    /// between, so that nothing is known about the table.
    generation: Option<u32>,
}

impl Firewall {
    /// Whether the kernel takes all that is needed. Tried in a table of another name, made and
    /// removed in one batch.
    pub fn supported() -> Result<(), Error> {
        let doing = "check for nftables";
        let mut netlink = open(doing)?;
        let name = format!("{TABLE}-probe-{}", std::process::id());
        let result = send(&mut netlink, doing, &ruleset::probe(&name));
        result.map_err(|error| match error {
            Error::Kernel { doing, source, .. } => Error::NotSupported {
                doing,
                source,
                remedy: "load or build in nf_tables with nft_counter and the inet family, or set \
                         `[firewall] enabled = no`",
            },
            other => other,
        })
    }

    /// Installs the table, empty. One that an earlier run left goes in the same batch, so there
    /// is no moment without the one or the other.
    pub fn install() -> Result<Self, Error> {
        let doing = "install the firewall table";
        let mut netlink = open(doing)?;
        let contents = Contents::default();
        send(&mut netlink, doing, &ruleset::install(TABLE, &contents))?;
        let generation = generation(&mut netlink).ok();
        Ok(Self {
            netlink,
            contents,
            earlier: Counters::default(),
            generation,
        })
    }

    /// Before a takeover: these addresses are closed and not blocked, in a table that is whole.
    /// Costs one question to the kernel unless something must change; if somebody changed the
    /// ruleset since our last change, the table is made anew. An error means that connection
    /// requests could be refused (`ADDR-4`). `held`: listeners do not count until
    /// [`Self::let_in`].
    pub fn prepare(&mut self, addresses: &[IpAddr], held: bool) -> Result<(), Error> {
        let doing = "prepare the firewall for a takeover";
        let mut next = self.contents.clone();
        for address in canonical(addresses) {
            next.blocked.remove(&address);
            next.closed.insert(address);
            if held {
                next.held.insert(address);
            } else {
                next.held.remove(&address);
            }
        }
        let now = generation(&mut self.netlink).map_err(|source| Error::kernel(doing, source))?;
        if self.generation == Some(now) {
            return self.change(doing, next);
        }
        if next.largest() > MAX_ELEMENTS {
            return Err(Error::TooMany {
                doing: doing.to_owned(),
                limit: MAX_ELEMENTS,
            });
        }
        self.replace(doing, next)
    }

    /// From now on connection requests to these addresses are dropped unless their port is ready
    /// ([`Self::set_ready`]). Addresses that are closed already stay so.
    pub fn close(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut next = self.contents.clone();
        next.closed.extend(canonical(addresses));
        for address in canonical(addresses) {
            next.held.remove(&address);
        }
        self.change("close addresses to new connections", next)
    }

    /// Opening is over: all ports of these addresses pass.
    pub fn open(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut next = self.contents.clone();
        for address in canonical(addresses) {
            next.closed.remove(&address);
            next.held.remove(&address);
        }
        self.change("open addresses to new connections", next)
    }

    /// From now on ports with a listener of these addresses pass, if they did not yet.
    pub fn let_in(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut next = self.contents.clone();
        for address in canonical(addresses) {
            next.held.remove(&address);
        }
        self.change("let connections to listeners in", next)
    }

    /// The listeners that there are: ports on the wildcard address of either family, and specific
    /// addresses. Replaces what was set before; the kernel is told the difference, if there is
    /// one. Scope and flow of IPv6 addresses are ignored.
    pub fn set_ready(
        &mut self,
        wildcard_v4: &BTreeSet<u16>,
        wildcard_v6: &BTreeSet<u16>,
        specific: &BTreeSet<SocketAddr>,
    ) -> Result<(), Error> {
        let specific: BTreeSet<(IpAddr, u16)> = specific
            .iter()
            .map(|at| (at.ip().to_canonical(), at.port()))
            .collect();
        let now = &self.contents;
        if now.wildcard_v4 == *wildcard_v4
            && now.wildcard_v6 == *wildcard_v6
            && now.specific == specific
        {
            return Ok(());
        }
        let mut next = now.clone();
        next.wildcard_v4.clone_from(wildcard_v4);
        next.wildcard_v6.clone_from(wildcard_v6);
        next.specific = specific;
        self.change("let connections to ready ports pass", next)
    }

    /// Drops everything to and from these addresses.
    pub fn block(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut next = self.contents.clone();
        next.blocked.extend(canonical(addresses));
        self.change("block addresses", next)
    }

    /// Ends what [`Self::block`] began.
    pub fn unblock(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let mut next = self.contents.clone();
        for address in canonical(addresses) {
            next.blocked.remove(&address);
        }
        self.change("unblock addresses", next)
    }

    /// Reads what was dropped. (The `nftnl` crate cannot read; this is a dump of our own.)
    pub fn counters(&mut self) -> Result<Counters, Error> {
        let installed = self
            .read_counters()
            .map_err(|source| Error::kernel("read the firewall's counters", source))?;
        Ok(self.earlier.plus(installed))
    }

    /// Removes the table. That somebody has removed it already is no error.
    pub fn remove(mut self) -> Result<(), Error> {
        let sent = send(
            &mut self.netlink,
            "remove the firewall table",
            &ruleset::remove(TABLE),
        );
        match sent {
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Goes from what is installed to `next`; on an error nothing has changed.
    fn change(&mut self, doing: &str, next: Contents) -> Result<(), Error> {
        if next == self.contents {
            return Ok(());
        }
        if next.largest() > MAX_ELEMENTS {
            return Err(Error::TooMany {
                doing: doing.to_owned(),
                limit: MAX_ELEMENTS,
            });
        }
        let before = generation(&mut self.netlink).ok();
        let batch = ruleset::change(TABLE, &self.contents, &next);
        match send(&mut self.netlink, doing, &batch) {
            Ok(()) => {
                self.note_generation(before);
                self.contents = next;
                Ok(())
            }
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EEXIST)) => {
                tracing::warn!(%error, "firewall table was changed by somebody else, replacing it");
                self.replace(doing, next)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the table anew, whatever stands there.
    fn replace(&mut self, doing: &str, next: Contents) -> Result<(), Error> {
        // Gone with its table, or to be counted once more: nothing is lost but precision.
        let counted = self.read_counters().unwrap_or_default();
        let before = generation(&mut self.netlink).ok();
        // The table is whole whatever came before.
        self.generation = before;
        send(&mut self.netlink, doing, &ruleset::install(TABLE, &next)).inspect_err(|_| {
            self.generation = None;
        })?;
        self.note_generation(before);
        self.earlier = self.earlier.plus(counted);
        self.contents = next;
        Ok(())
    }

    /// After a change of ours, before which the generation was `before`: exactly one step means
    /// that nobody else changed anything.
    fn note_generation(&mut self, before: Option<u32>) {
        let after = generation(&mut self.netlink).ok();
        let ours = before.is_some()
            && self.generation == before
            && after == before.map(|number| number.checked_add(1).unwrap_or(1));
        self.generation = after.filter(|_| ours);
    }

    fn read_counters(&mut self) -> io::Result<Counters> {
        let (opening_packets, opening_bytes) = self.read_chain(ruleset::OPENING)?;
        let (packets_in, bytes_in) = self.read_chain(ruleset::BLOCKED_IN)?;
        let (packets_out, bytes_out) = self.read_chain(ruleset::BLOCKED_OUT)?;
        Ok(Counters {
            opening_packets,
            opening_bytes,
            blocked_packets: packets_in.saturating_add(packets_out),
            blocked_bytes: bytes_in.saturating_add(bytes_out),
        })
    }

    /// Packets and bytes that the counters in a chain's rules have seen together.
    fn read_chain(&mut self, chain: &str) -> io::Result<(u64, u64)> {
        let mut body = vec![libc::NFPROTO_INET as u8, 0, 0, 0];
        for (kind, name) in [(NFTA_RULE_TABLE, TABLE), (NFTA_RULE_CHAIN, chain)] {
            body.extend(((4 + name.len() + 1) as u16).to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(name.as_bytes());
            body.push(0);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let seq = self.netlink.send_dump(GET_RULE, &body)?;
        let mut total = (0u64, 0u64);
        self.netlink.read_dump(seq, |raw| {
            let rule = raw.body.get(NFNL_HEADER_BYTES..).unwrap_or_default();
            for (packets, bytes) in counters_of(rule) {
                total = (
                    total.0.saturating_add(packets),
                    total.1.saturating_add(bytes),
                );
            }
        })?;
        Ok(total)
    }
}

/// Packets and bytes of every counter among a rule's expressions.
fn counters_of(rule: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let find = |of: &'_ [u8], wanted: u16| -> Option<Vec<u8>> {
        attributes(of)
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, value)| value.to_vec())
    };
    let number = move |of: &[u8], wanted: u16| -> Option<u64> {
        find(of, wanted)?
            .first_chunk()
            .map(|bytes| u64::from_be_bytes(*bytes))
    };
    attributes(rule)
        .filter(|(kind, _)| *kind == NFTA_RULE_EXPRESSIONS)
        .flat_map(|(_, list)| attributes(list))
        .filter_map(move |(_, expression)| {
            let name = find(expression, NFTA_EXPR_NAME)?;
            if name.strip_suffix(b"\0").unwrap_or(&name) != b"counter" {
                return None;
            }
            let data = find(expression, NFTA_EXPR_DATA)?;
            Some((
                number(&data, NFTA_COUNTER_PACKETS)?,
                number(&data, NFTA_COUNTER_BYTES)?,
            ))
        })
}

fn canonical(addresses: &[IpAddr]) -> impl Iterator<Item = IpAddr> {
    addresses.iter().map(IpAddr::to_canonical)
}

/// The kernel's count of changes to this namespace's ruleset, one up with every batch.
fn generation(netlink: &mut Netlink) -> io::Result<u32> {
    let body = [libc::AF_UNSPEC as u8, 0, 0, 0];
    let seq = netlink.send_request(GET_GENERATION, &body)?;
    let mut found = Err(io::ErrorKind::UnexpectedEof.into());
    netlink.drain(|raw| {
        if raw.seq != seq {
            return;
        }
        if let Some(verdict) = raw.verdict() {
            if let Err(refusal) = verdict {
                found = Err(refusal.io());
            }
            return;
        }
        let attributes = attributes(raw.body.get(NFNL_HEADER_BYTES..).unwrap_or_default());
        let number = attributes
            .filter(|(kind, _)| *kind == NFTA_GEN_ID)
            .find_map(|(_, value)| value.first_chunk().copied());
        if let Some(number) = number {
            found = Ok(u32::from_be_bytes(number));
        }
    })?;
    found
}

fn open(doing: &str) -> Result<Netlink, Error> {
    Netlink::open(netlink_sys::protocols::NETLINK_NETFILTER)
        .map_err(|source| Error::kernel(doing, source))
}

/// Sends a batch and reads what the kernel says. It works within the call that sends, so all its
/// answers wait already; of several errors the first names the cause.
fn send(netlink: &mut Netlink, doing: &str, batch: &ruleset::Batch) -> Result<(), Error> {
    let failed = |source| Error::kernel(doing, source);
    netlink.send(&batch.bytes).map_err(failed)?;
    let mut refusal = None;
    let mut acknowledged = 0;
    let drained = netlink.drain(|raw| match raw.verdict() {
        Some(Ok(())) => acknowledged += 1,
        Some(Err(error)) => {
            refusal.get_or_insert(error);
        }
        None => {}
    });
    if let Some(refusal) = refusal {
        return Err(Error::kernel_detail(doing, refusal.io(), refusal.detail));
    }
    drained.map_err(failed)?;
    if acknowledged < batch.acknowledgements {
        let missing = batch.acknowledgements - acknowledged;
        let source = io::Error::other(format!("{missing} messages were not acknowledged"));
        return Err(failed(source));
    }
    Ok(())
}
