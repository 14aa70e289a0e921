//! Links and the addresses on them: one reading of all, and a watch that says when to read again.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_channel::mpsc::UnboundedReceiver;
use ipnet::IpNet;
use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::LinkMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::proto::Connection;
use rtnetlink::sys::{AsyncSocket as _, SocketAddr};

use crate::netlink::{Netlink, Raw, attributes, enlarge_buffers};
use crate::{Error, IfIndex};

const IFINFOMSG_BYTES: usize = 16;
const IFADDRMSG_BYTES: usize = 8;
const ARPHRD_LOOPBACK: u16 = 772;

/// Times that a storm is read on before its watcher is told.
const DRAIN_ROUNDS: usize = 64;

/// Inside `IFLA_LINKINFO`: what the interface is, and what it is a port of (`linux/if_link.h`).
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_SLAVE_KIND: u16 = 4;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: IfIndex,
    /// Its name now.
    pub name: String,
    /// Usable: switched on by the administrator, with carrier, and operational.
    pub up: bool,
    /// Switched on by the administrator.
    pub admin_up: bool,
    /// The loopback interface.
    pub loopback: bool,
    /// The bridge, bond or VRF that this is a port of.
    pub master: Option<IfIndex>,
    /// A port of a bridge, bond or team: its master carries the addresses. A port of a VRF
    /// carries its own.
    pub port: bool,
    /// Hardware address: 6 bytes on Ethernet, 20 on InfiniBand, none on some tunnels.
    pub mac: Vec<u8>,
    /// Hardware broadcast address, as long as `mac`.
    pub broadcast: Vec<u8>,
    /// `ARPHRD_*`: 1 Ethernet, 32 InfiniBand, 772 loopback.
    pub hardware_type: u16,
    /// Name of the root queueing discipline (`noqueue`, `fq_codel` ...).
    pub qdisc: String,
    /// What the kernel calls its kind (`veth`, `bridge`, `vlan` ...); empty for a network card.
    pub kind: String,
    /// Largest packet, in bytes.
    pub mtu: u32,
}

/// All links and addresses of the network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dump {
    /// In the kernel's order.
    pub links: Vec<Link>,
    /// Interface and local address with its prefix length.
    pub addresses: Vec<(IfIndex, IpNet)>,
}

/// Reads all links and addresses.
pub fn dump() -> Result<Dump, Error> {
    let doing = "list the network interfaces";
    let mut netlink = Netlink::route().map_err(|source| Error::kernel(doing, source))?;
    let links = links(&mut netlink).map_err(|source| Error::kernel(doing, source))?;
    let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let addresses = netlink
        .dump(&request, |found, raw| found.extend(parse_address(raw)))
        .map_err(|source| Error::kernel("list the network addresses", source))?;
    Ok(Dump { links, addresses })
}

/// Reads all links.
pub(crate) fn links(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
    netlink.dump(&request, |found, raw| found.extend(parse_link(raw)))
}

fn parse_link(raw: Raw<'_>) -> Option<Link> {
    if raw.kind != libc::RTM_NEWLINK {
        return None;
    }
    let (header, rest) = raw.body.split_at_checked(IFINFOMSG_BYTES)?;
    let hardware_type = u16::from_ne_bytes([header[2], header[3]]);
    let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    let flags = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]);
    let has = |flag: libc::c_int| flags & flag.cast_unsigned() != 0;
    let mut link = Link {
        index,
        name: String::new(),
        // Running is the operational state "up" or "unknown" (drivers that never say).
        up: has(libc::IFF_UP) && has(libc::IFF_RUNNING) && has(libc::IFF_LOWER_UP),
        admin_up: has(libc::IFF_UP),
        loopback: has(libc::IFF_LOOPBACK) || hardware_type == ARPHRD_LOOPBACK,
        master: None,
        port: false,
        mac: Vec::new(),
        broadcast: Vec::new(),
        hardware_type,
        qdisc: String::new(),
        kind: String::new(),
        mtu: 0,
    };
    let mut vrf = false;
    for (kind, value) in attributes(rest) {
        match kind {
            libc::IFLA_IFNAME => link.name = text(value),
            libc::IFLA_QDISC => link.qdisc = text(value),
            libc::IFLA_ADDRESS => link.mac = value.to_vec(),
            libc::IFLA_BROADCAST => link.broadcast = value.to_vec(),
            libc::IFLA_MTU => link.mtu = number(value)?,
            libc::IFLA_MASTER => link.master = number(value),
            libc::IFLA_LINKINFO => {
                for (kind, name) in attributes(value) {
                    match kind {
                        IFLA_INFO_KIND => link.kind = text(name),
                        IFLA_INFO_SLAVE_KIND => vrf = text(name) == "vrf",
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    link.port = link.master.is_some() && !vrf;
    Some(link)
}

pub(crate) fn parse_address(raw: Raw<'_>) -> Option<(IfIndex, IpNet)> {
    if raw.kind != libc::RTM_NEWADDR {
        return None;
    }
    let (header, rest) = raw.body.split_at_checked(IFADDRMSG_BYTES)?;
    let index = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
    let mut local = None;
    let mut address = None;
    for (kind, value) in attributes(rest) {
        match kind {
            libc::IFA_LOCAL => local = ip(value),
            libc::IFA_ADDRESS => address = ip(value),
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other end.
    let net = IpNet::new(local.or(address)?, header[1]).ok()?;
    Some((index, net))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches('\0')
        .to_owned()
}

/// Notices every change of a link or an address.
pub struct Watch {
    /// Polled by [`Watch::changed`] alone, so that nothing is queued while nobody waits.
    connection: Connection<RouteNetlinkMessage>,
    notes: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    /// Something came that no caller was told of yet.
    news: bool,
    /// The connection broke.
    ended: bool,
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    /// Starts to watch. Whatever changes after this returns is noticed, so open the watch before
    /// the first [`dump`]. Panics outside a tokio runtime with I/O enabled.
    pub fn open() -> Result<Self, Error> {
        let (mut connection, _, notes) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .map_err(|source| Error::kernel("watch the network interfaces", source))?;
        enlarge_buffers(connection.socket_mut().socket_ref());
        Ok(Self {
            connection,
            notes,
            news: false,
            ended: false,
        })
    }

    /// Waits for a change and forgets those that came with it: what the next [`dump`] shows is
    /// newer than all of them. Notifications lost to a full buffer count as a change, and so
    /// does a connection that broke and was made anew. May be dropped and called again without
    /// missing any.
    pub async fn changed(&mut self) -> Result<(), Error> {
        if !self.news {
            poll_fn(|context| {
                if self.take_in(context) {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
        }
        // One poll takes in what tokio's budget allows; a storm is one change all the same.
        for _ in 0..DRAIN_ROUNDS {
            tokio::task::yield_now().await;
            let more = poll_fn(|context| Poll::Ready(self.take_in(context))).await;
            if !more {
                break;
            }
        }
        self.news = false;
        if self.ended {
            *self = Self::open()?;
        }
        Ok(())
    }

    /// Reads what is there; whether there was anything.
    fn take_in(&mut self, context: &mut Context<'_>) -> bool {
        if self.ended {
            return false;
        }
        self.ended = Pin::new(&mut self.connection).poll(context).is_ready();
        let mut more = self.ended;
        while self.notes.try_recv().is_ok() {
            more = true;
        }
        self.news |= more;
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_messages_are_skipped() {
        let mut body = vec![0; IFINFOMSG_BYTES];
        body.extend([3, 0, 1, 0]);
        for kind in [libc::RTM_NEWLINK, libc::RTM_NEWADDR] {
            for length in 0..body.len() {
                let raw = Raw {
                    kind,
                    flags: 0,
                    seq: 0,
                    body: &body[..length],
                };
                assert_eq!(
                    parse_link(raw).is_some(),
                    kind == libc::RTM_NEWLINK && length >= 16
                );
                assert_eq!(parse_address(raw), None);
            }
        }
    }
}
