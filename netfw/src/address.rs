//! Public addresses put on interfaces and taken off them.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::link::{AfSpecUnspec, LinkAttribute, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::link;
use crate::netlink::{Netlink, Refusal};
use crate::{Error, IfIndex};

/// `IFLA_INET_CONF`: the per-interface IPv4 settings, as attributes numbered like the sysctls.
const IFLA_INET_CONF: u16 = 1;
/// `IPV4_DEVCONF_PROMOTE_SECONDARIES`.
const PROMOTE_SECONDARIES: u16 = 20;

/// Between two looks whether addresses are there.
const SETTLE_PAUSE: Duration = Duration::from_micros(100);

/// Adds and removes addresses in one network namespace, many per call. One per thread.
#[derive(Debug)]
pub struct Addresses {
    netlink: Netlink,
}

impl Addresses {
    /// Opens the socket.
    pub fn open() -> Result<Self, Error> {
        let netlink = Netlink::route()
            .map_err(|source| Error::kernel("open a netlink socket for addresses", source))?;
        Ok(Self { netlink })
    }

    /// Puts each address on its interface: without duplicate address detection (the cluster has
    /// decided), with the route to its subnet, and for IPv4 the subnet's broadcast address. An
    /// address that is there already, with this prefix length, is no error. The results are in
    /// the order of `batch`; one that fails does not stop the others.
    pub fn add(&mut self, batch: &[(IfIndex, IpNet)]) -> Vec<Result<(), Error>> {
        let requests = batch
            .iter()
            .map(|(ifindex, net)| {
                let message = RouteNetlinkMessage::NewAddress(message(*ifindex, *net, true));
                (message, NLM_F_CREATE | NLM_F_EXCL)
            })
            .collect();
        let verdicts = self.netlink.requests(requests);
        results("add address", batch, verdicts, |refusal| {
            refusal.errno == libc::EEXIST
        })
    }

    /// Waits until the kernel takes in packets for the addresses that [`Self::add`] has put there,
    /// at most `limit`; true if it does. An IPv6 address gets its local route from a work queue of
    /// the kernel some time after the request was acknowledged, duplicate address detection or
    /// not, milliseconds on a busy machine; what comes before is dropped.
    pub fn settle(&mut self, batch: &[(IfIndex, IpNet)], limit: Duration) -> Result<bool, Error> {
        let end = Instant::now() + limit;
        let mut left: Vec<Ipv6Addr> = batch
            .iter()
            .filter_map(|(_, net)| match net.addr() {
                IpAddr::V6(address) => Some(address),
                IpAddr::V4(_) => None,
            })
            .collect();
        loop {
            // The last one of many is most likely the last to be there.
            while let Some(address) = left.last() {
                if !self.is_local(*address)? {
                    break;
                }
                left.pop();
            }
            if left.is_empty() {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
    }

    /// Whether the route to `address` ends here.
    fn is_local(&mut self, address: Ipv6Addr) -> Result<bool, Error> {
        // `struct rtmsg`: family and prefix length; then RTA_DST.
        let mut body = [0; 12].to_vec();
        body[0] = libc::AF_INET6 as u8;
        body[1] = 128;
        body.extend(20_u16.to_ne_bytes());
        body.extend(libc::RTA_DST.to_ne_bytes());
        body.extend(address.octets());
        let error = |source| Error::kernel(format!("look up the route to {address}"), source);
        let seq = self
            .netlink
            .send_request(libc::RTM_GETROUTE, &body)
            .map_err(error)?;
        let answer = self
            .netlink
            .answer(seq, |route| route.body.get(7) == Some(&libc::RTN_LOCAL));
        match answer {
            // No route at all.
            Err(refusal) if refusal.raw_os_error() == Some(libc::ENETUNREACH) => Ok(false),
            answer => answer.map_err(error),
        }
    }

    /// Takes each address off its interface; one that is not there, or whose interface is gone,
    /// is no error. Other addresses stay: before the first IPv4 address goes, its interface is
    /// told to promote secondary addresses (what `net.ipv4.conf.IFACE.promote_secondaries` is),
    /// since the kernel would else delete a primary's secondaries with it. Primaries go last, as
    /// each promotion costs the kernel time for every secondary. Results as for [`Self::add`].
    pub fn remove(&mut self, batch: &[(IfIndex, IpNet)]) -> Vec<Result<(), Error>> {
        let interfaces: BTreeSet<IfIndex> = batch
            .iter()
            .filter(|(_, net)| net.addr().is_ipv4())
            .map(|(index, _)| *index)
            .collect();
        let promotions = interfaces
            .iter()
            .map(|index| (promote_secondaries(*index), 0))
            .collect();
        let kept = match self.netlink.requests(promotions) {
            Ok(kept) => kept,
            Err(error) => return results("remove address", batch, Err(error), |_| false),
        };
        // Without it neighbours of the address would go as well: such an interface is left alone.
        let unsafe_interfaces: Vec<(IfIndex, Refusal)> = interfaces
            .into_iter()
            .zip(kept)
            .filter_map(|(index, verdict)| Some((index, verdict.err()?)))
            .filter(|(_, refusal)| !gone(refusal.errno))
            .collect();
        let mut order: Vec<usize> = (0..batch.len())
            .filter(|at| refused(&unsafe_interfaces, batch[*at].0, batch[*at].1.addr()).is_none())
            .collect();
        if order.len() > 1 {
            let primaries = self.primaries();
            order.sort_by_key(|at| primaries.contains(&batch[*at]));
        }
        let requests = order
            .iter()
            .map(|at| {
                let (index, net) = batch[*at];
                (
                    RouteNetlinkMessage::DelAddress(message(index, net, false)),
                    0,
                )
            })
            .collect();
        let verdicts = match self.netlink.requests(requests) {
            Ok(verdicts) => verdicts,
            Err(error) => return results("remove address", batch, Err(error), |_| false),
        };
        let mut results: Vec<Result<(), Error>> = batch
            .iter()
            .map(
                |(index, net)| match refused(&unsafe_interfaces, *index, net.addr()) {
                    Some(refusal) => {
                        let doing = format!(
                            "set promote_secondaries on interface {index} before removing {net}"
                        );
                        Err(Error::kernel_detail(
                            doing,
                            refusal.io(),
                            refusal.detail.clone(),
                        ))
                    }
                    None => Ok(()),
                },
            )
            .collect();
        for (at, verdict) in order.into_iter().zip(verdicts) {
            let (index, net) = batch[at];
            if let Err(refusal) = verdict
                && !gone(refusal.errno)
            {
                results[at] = Err(refusal_error("remove address", index, net, &refusal));
            }
        }
        results
    }

    /// The IPv4 addresses that carry secondaries, or would. Empty if they cannot be read: that
    /// costs time only.
    fn primaries(&mut self) -> BTreeSet<(IfIndex, IpNet)> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let request = RouteNetlinkMessage::GetAddress(request);
        let found = self.netlink.dump(&request, |found, raw| {
            // `ifa_flags` of the header; what is wanted is in its eight bits.
            let secondary = raw.body.get(2).is_some_and(|flags| {
                AddressHeaderFlags::from_bits_retain(*flags).contains(AddressHeaderFlags::Secondary)
            });
            if !secondary {
                found.extend(link::parse_address(raw));
            }
        });
        found.unwrap_or_default().into_iter().collect()
    }
}

/// The address or its interface does not exist (any more).
fn gone(errno: i32) -> bool {
    [libc::EADDRNOTAVAIL, libc::ENODEV].contains(&errno)
}

fn refused(
    interfaces: &[(IfIndex, Refusal)],
    ifindex: IfIndex,
    address: IpAddr,
) -> Option<&Refusal> {
    let found = interfaces
        .iter()
        .find(|(index, _)| *index == ifindex && address.is_ipv4());
    found.map(|(_, refusal)| refusal)
}

fn results(
    verb: &str,
    batch: &[(IfIndex, IpNet)],
    verdicts: std::io::Result<Vec<Result<(), Refusal>>>,
    harmless: impl Fn(&Refusal) -> bool,
) -> Vec<Result<(), Error>> {
    let verdicts = match verdicts {
        Ok(verdicts) => verdicts,
        // The socket itself failed: what had been done of the batch is not known.
        Err(error) => {
            return batch
                .iter()
                .map(|(ifindex, net)| {
                    let doing = format!("{verb} {net} on interface {ifindex}");
                    Err(Error::kernel(
                        doing,
                        std::io::Error::new(error.kind(), error.to_string()),
                    ))
                })
                .collect();
        }
    };
    batch
        .iter()
        .zip(verdicts)
        .map(|((ifindex, net), verdict)| match verdict {
            Err(refusal) if !harmless(&refusal) => {
                Err(refusal_error(verb, *ifindex, *net, &refusal))
            }
            _ => Ok(()),
        })
        .collect()
}

fn refusal_error(verb: &str, ifindex: IfIndex, net: IpNet, refusal: &Refusal) -> Error {
    let doing = format!("{verb} {net} on interface {ifindex}");
    match refusal.errno {
        libc::ENODEV => Error::NoDevice { doing, ifindex },
        // The kernel's answers where a link has IPv6 switched off or too small an MTU.
        libc::EACCES | libc::EOPNOTSUPP | libc::ENOBUFS | libc::EINVAL
            if net.addr().is_ipv6() && refusal.detail.as_deref().is_none_or(names_family) =>
        {
            Error::FamilyUnavailable {
                doing,
                address: net.addr(),
                ifindex,
                source: refusal.io(),
            }
        }
        _ => Error::kernel_detail(doing, refusal.io(), refusal.detail.clone()),
    }
}

fn names_family(detail: &str) -> bool {
    detail.contains("IPv6")
}

fn message(ifindex: IfIndex, net: IpNet, adding: bool) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = ifindex;
    message.header.prefix_len = net.prefix_len();
    message.header.scope = match net.addr() {
        IpAddr::V4(address) if address.is_loopback() => AddressScope::Host,
        IpAddr::V4(address) if address.is_link_local() => AddressScope::Link,
        _ => AddressScope::Universe,
    };
    message.header.family = if net.addr().is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    message.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
    ];
    if adding {
        message.header.flags = AddressHeaderFlags::Nodad;
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
        if let IpNet::V4(net) = net
            && net.prefix_len() < 31
        {
            message
                .attributes
                .push(AddressAttribute::Broadcast(net.broadcast()));
        }
    }
    message
}

fn promote_secondaries(ifindex: IfIndex) -> RouteNetlinkMessage {
    let mut settings = 8u16.to_ne_bytes().to_vec();
    settings.extend(PROMOTE_SECONDARIES.to_ne_bytes());
    settings.extend(1u32.to_ne_bytes());
    let mut inet = ((4 + settings.len()) as u16).to_ne_bytes().to_vec();
    inet.extend(IFLA_INET_CONF.to_ne_bytes());
    inet.extend(settings);
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let inet = AfSpecUnspec::Other(DefaultNla::new(libc::AF_INET as u16, inet));
    message
        .attributes
        .push(LinkAttribute::AfSpecUnspec(vec![inet]));
    RouteNetlinkMessage::SetLink(message)
}
