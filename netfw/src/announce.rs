//! Announces addresses on the wire, so that hosts and switches learn where they are now.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use socket2::{Domain, Socket, Type};

use crate::frame::{self, ArpForm, ETHERTYPE_ARP, ETHERTYPE_IPV6};
use crate::link::{self, Link};
use crate::netlink::Netlink;
use crate::raw::link_address;
use crate::{Error, IfIndex};

/// Sends announcements in one network namespace.
#[derive(Debug)]
pub struct Announcer {
    netlink: Netlink,
    socket: Socket,
}

impl Announcer {
    /// Opens the sockets.
    pub fn open() -> Result<Self, Error> {
        let doing = "open a socket for announcements";
        let netlink = Netlink::route().map_err(|source| Error::kernel(doing, source))?;
        // Datagrams: the kernel writes the link-layer header, of whatever kind the link has.
        // Protocol 0: nothing is received.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)
            .map_err(|source| Error::kernel(doing, source))?;
        Ok(Self { netlink, socket })
    }

    /// Announces each address on its interface once, with the hardware address that the interface
    /// has now: IPv4 by a gratuitous ARP request and reply (some switches ignore the one, some
    /// the other), IPv6 by an unsolicited neighbour advertisement. Results in the order of
    /// `items`; one that fails does not stop the others. A frame that the lease program dropped
    /// fails with ENOBUFS (`spec/kernel.md` 8). On the loopback interface and on links without
    /// hardware addresses nobody learns any: nothing is sent there, without error.
    pub fn announce(&mut self, items: &[(IfIndex, IpAddr)]) -> Vec<Result<(), Error>> {
        // Read anew each time: a bond or bridge changes its address without any error here.
        let links: BTreeMap<IfIndex, Link> = match link::links(&mut self.netlink) {
            Ok(links) => links.into_iter().map(|link| (link.index, link)).collect(),
            Err(error) => {
                let failed = |(ifindex, address): &(IfIndex, IpAddr)| {
                    let doing = format!("look up interface {ifindex} to announce {address}");
                    Err(Error::kernel(
                        doing,
                        io::Error::new(error.kind(), error.to_string()),
                    ))
                };
                return items.iter().map(failed).collect();
            }
        };
        items
            .iter()
            .map(|(ifindex, address)| {
                let doing = || format!("announce {address} on interface {ifindex}");
                let Some(link) = links.get(ifindex) else {
                    return Err(Error::NoDevice {
                        doing: doing(),
                        ifindex: *ifindex,
                    });
                };
                if link.loopback || link.mac.is_empty() {
                    return Ok(());
                }
                self.announce_on(link, *address)
                    .map_err(|source| match source.raw_os_error() {
                        Some(libc::ENXIO | libc::ENODEV) => Error::NoDevice {
                            doing: doing(),
                            ifindex: *ifindex,
                        },
                        _ => Error::kernel(doing(), source),
                    })
            })
            .collect()
    }

    /// Announces one address once on the interface of that name, whether it is there or not.
    pub fn announce_by_name(&mut self, interface: &str, address: IpAddr) -> Result<(), Error> {
        let doing = || format!("announce {address} on interface {interface}");
        let links = link::links(&mut self.netlink).map_err(|error| {
            Error::kernel(doing(), io::Error::new(error.kind(), error.to_string()))
        })?;
        match links.iter().find(|link| link.name == interface) {
            Some(link) => self
                .announce(&[(link.index, address)])
                .pop()
                .unwrap_or(Ok(())),
            None => Err(Error::kernel(
                doing(),
                io::Error::from_raw_os_error(libc::ENODEV),
            )),
        }
    }

    fn announce_on(&self, link: &Link, address: IpAddr) -> io::Result<()> {
        match address {
            IpAddr::V4(address) => {
                // Both are tried even if the first fails.
                let sent = [ArpForm::Request, ArpForm::Reply].map(|form| {
                    let packet = frame::arp(form, link.hardware_type, &link.mac, address);
                    self.send(link, ETHERTYPE_ARP, &link.broadcast, &packet)
                });
                sent.into_iter().collect()
            }
            IpAddr::V6(address) => {
                let packet = frame::neighbour_advertisement(link.hardware_type, &link.mac, address);
                let destination =
                    frame::all_nodes_hardware_address(link.hardware_type, &link.broadcast);
                self.send(link, ETHERTYPE_IPV6, &destination, &packet)
            }
        }
    }

    fn send(
        &self,
        link: &Link,
        ethertype: u16,
        destination: &[u8],
        packet: &[u8],
    ) -> io::Result<()> {
        let destination =
            link_address(link.index, ethertype, destination).ok_or(io::ErrorKind::InvalidInput)?;
        loop {
            match self.socket.send_to(packet, &destination) {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}
