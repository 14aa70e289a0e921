//! Listeners and connections read from the kernel, and connections destroyed.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use netlink_sys::{Socket, SocketAddr as NetlinkAddress};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;

use crate::Error;
use crate::diag::{
    self, CLOSE, Described, ID_BYTES, LISTEN, NLMSG_DONE, NLMSG_ERROR, Raw, TIME_WAIT, TcpInfo,
    Wanted,
};

/// Addresses up to which the kernel filters; with more, all connections are read and filtered here.
const FILTER_LIMIT: usize = 64;
/// Requests in one send.
const DESTROY_BATCH: usize = 64;
/// Receive buffer asked for, in bytes (a plain one stays if that is refused).
const BUFFER_BYTES: usize = 4 << 20;
/// Longest datagram of the kernel that is accepted, in bytes.
const DATAGRAM_BYTES: usize = 256 << 10;
/// The kernel answers within the call that asks; longer than this means that it never will.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A TCP connection with its end here. v4-mapped addresses are shown as IPv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The end of this node.
    pub server: SocketAddr,
    /// The other end.
    pub client: SocketAddr,
    /// `TCP_*` of the kernel: 1 established, 3 request received, 8 closed by the client ...
    pub state: u8,
    /// Number of the socket's file; 0: no process has it open. For [`crate::owners::owners`].
    pub inode: u64,
    /// If it was asked for and is known: not of requests.
    pub info: Option<TcpInfo>,
    family: u8,
    id: [u8; ID_BYTES],
}

/// A UDP socket that answers whoever sends to it: bound, and not connected to one peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UdpSocket {
    /// Address and port; an unspecified address is the wildcard of its family.
    pub local: SocketAddr,
    /// An IPv6 wildcard that takes IPv4 datagrams too.
    pub dual: bool,
    /// Number of its file; 0: a service of the kernel's own, such as its NFS server.
    pub inode: u64,
}

impl UdpSocket {
    /// Whether datagrams to this address, at the socket's port, come to it.
    pub fn answers_on(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        match self.local.ip() {
            IpAddr::V4(local) if local.is_unspecified() => address.is_ipv4(),
            IpAddr::V6(local) if local.is_unspecified() => address.is_ipv6() || self.dual,
            local => local == address,
        }
    }
}

impl Connection {
    /// Number of the socket, unique within one boot; equal to its `SO_COOKIE`.
    pub fn cookie(&self) -> u64 {
        let word = |at: usize| {
            let bytes = self.id.get(at..).and_then(|bytes| bytes.first_chunk());
            bytes.map_or(0, |bytes| u64::from(u32::from_ne_bytes(*bytes)))
        };
        word(40) | word(44) << 32
    }
}

/// Reads and destroys TCP sockets of one network namespace.
#[derive(Debug)]
pub struct Sockets {
    socket: Socket,
    seq: u32,
    buffer: Vec<u8>,
}

impl Sockets {
    /// Opens the netlink socket.
    pub fn open() -> Result<Self, Error> {
        Self::try_open()
            .map_err(|source| Error::kernel("open a netlink socket for TCP sockets", source))
    }

    fn try_open() -> io::Result<Self> {
        let mut socket = Socket::new(netlink_sys::protocols::NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES);
        // Only makes refusals shorter.
        let _ = socket.set_cap_ack(true);
        SockRef::from(&socket).set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            socket,
            seq: 0,
            buffer: Vec::with_capacity(DATAGRAM_BYTES),
        })
    }

    /// What is listened on, sorted, each once. An unspecified address is the wildcard of its
    /// family; an IPv6 wildcard that takes IPv4 connections too is given in both forms.
    pub fn listeners(&mut self) -> Result<Vec<SocketAddr>, Error> {
        let mut found = BTreeSet::new();
        let states = diag::states(|state| state == LISTEN);
        let wanted = Wanted {
            protocol: libc::IPPROTO_TCP,
            states,
            filter: &[],
            info: false,
        };
        self.dump("list the TCP listeners", &wanted, |socket| {
            let local = socket.local;
            let dual = socket.v6only == Some(false);
            if dual && local.is_ipv6() && local.ip().is_unspecified() {
                found.insert(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), local.port()));
            }
            found.insert(local);
        })?;
        Ok(found.into_iter().collect())
    }

    /// The connections whose end here is one of the addresses `to`, in all states but LISTEN and
    /// TIME_WAIT; requests that are not answered yet are among them.
    pub fn connections(&mut self, to: &BTreeSet<IpAddr>) -> Result<Vec<Connection>, Error> {
        self.find(to, false)
    }

    /// As [`Sockets::connections`], with what is known of each one's traffic.
    pub fn connections_with_info(
        &mut self,
        to: &BTreeSet<IpAddr>,
    ) -> Result<Vec<Connection>, Error> {
        self.find(to, true)
    }

    fn find(&mut self, to: &BTreeSet<IpAddr>, info: bool) -> Result<Vec<Connection>, Error> {
        let to: BTreeSet<IpAddr> = to.iter().map(IpAddr::to_canonical).collect();
        if to.is_empty() {
            return Ok(Vec::new());
        }
        let filter = if to.len() <= FILTER_LIMIT {
            diag::source_filter(&to.iter().copied().collect::<Vec<_>>())
        } else {
            Vec::new()
        };
        let states = diag::states(|state| ![LISTEN, TIME_WAIT].contains(&state));
        let mut found = Vec::new();
        let wanted = Wanted {
            protocol: libc::IPPROTO_TCP,
            states,
            filter: &filter,
            info,
        };
        self.dump("list the TCP connections", &wanted, |socket| {
            if to.contains(&socket.local.ip()) {
                found.push(Connection {
                    server: socket.local,
                    client: socket.remote,
                    state: socket.state,
                    inode: socket.inode,
                    info: socket.info,
                    family: socket.family,
                    id: socket.id,
                });
            }
        })?;
        Ok(found)
    }

    /// The UDP sockets that answer on one of these addresses, bound to it or to the wildcard,
    /// sorted.
    pub fn udp(&mut self, on: &BTreeSet<IpAddr>) -> Result<Vec<UdpSocket>, Error> {
        let wanted = Wanted {
            protocol: libc::IPPROTO_UDP,
            states: diag::states(|state| state == CLOSE),
            filter: &[],
            info: false,
        };
        let mut found = Vec::new();
        self.dump("list the UDP sockets", &wanted, |socket| {
            let local = socket.local;
            let wildcard = local.is_ipv6() && local.ip().is_unspecified();
            let socket = UdpSocket {
                local,
                dual: wildcard && socket.v6only == Some(false),
                inode: socket.inode,
            };
            if local.port() != 0 && on.iter().any(|address| socket.answers_on(*address)) {
                found.push(socket);
            }
        })?;
        found.sort();
        Ok(found)
    }

    /// Destroys the sockets of these connections; how many were there to be destroyed. One that
    /// has ended meanwhile is no error. The client gets a reset, unless what comes from its
    /// server's address is dropped already (by the lease or the firewall). That the address is
    /// gone keeps IPv4 resets in, but not IPv6 ones.
    pub fn destroy(&mut self, connections: &[Connection]) -> Result<usize, Error> {
        let doing = "destroy TCP connections";
        let mut destroyed = 0;
        let mut unsupported = 0;
        let mut first_error = None;
        for batch in connections.chunks(DESTROY_BATCH) {
            let first = self.seq.wrapping_add(1);
            let mut bytes = Vec::new();
            for connection in batch {
                self.seq = self.seq.wrapping_add(1);
                bytes.extend(diag::destroy_request(
                    connection.family,
                    &connection.id,
                    self.seq,
                ));
            }
            self.socket
                .send(&bytes, 0)
                .map_err(|source| Error::kernel(doing, source))?;
            destroyed += batch.len();
            // The kernel has worked through the batch within the call; what it refused waits.
            let drained = self.drain(|raw| {
                if raw.kind != NLMSG_ERROR || raw.seq.wrapping_sub(first) as usize >= batch.len() {
                    return;
                }
                match raw.errno() {
                    0 => return,
                    libc::ENOENT => {}
                    libc::EOPNOTSUPP => unsupported += 1,
                    errno => {
                        first_error.get_or_insert(io::Error::from_raw_os_error(errno));
                    }
                }
                destroyed -= 1;
            });
            drained.map_err(|source| Error::kernel(doing, source))?;
        }
        match first_error {
            Some(source) => Err(Error::kernel(doing, source)),
            // Old kernels answer so for a single socket that is nearly gone; for all of them it is
            // the feature that lacks.
            None if unsupported > 0 && destroyed == 0 => Err(Error::NotSupported {
                doing: doing.to_owned(),
                source: io::Error::from_raw_os_error(libc::EOPNOTSUPP),
                remedy: "use a kernel with CONFIG_INET_DIAG_DESTROY",
            }),
            None => Ok(destroyed),
        }
    }

    fn dump(
        &mut self,
        doing: &'static str,
        wanted: &Wanted<'_>,
        mut each: impl FnMut(Described),
    ) -> Result<(), Error> {
        for family in [diag::IPV4, diag::IPV6] {
            self.seq = self.seq.wrapping_add(1);
            let seq = self.seq;
            let request = diag::dump_request(family, wanted, seq);
            match self.read_dump(&request, seq, &mut each) {
                // No IPv6 in this kernel.
                Err(error)
                    if family == diag::IPV6 && error.raw_os_error() == Some(libc::ENOENT) => {}
                result => result.map_err(|source| Error::kernel(doing, source))?,
            }
        }
        Ok(())
    }

    fn read_dump(
        &mut self,
        request: &[u8],
        seq: u32,
        each: &mut impl FnMut(Described),
    ) -> io::Result<()> {
        self.socket.send(request, 0)?;
        loop {
            self.receive(0)?;
            for raw in diag::split(&self.buffer).filter(|raw| raw.seq == seq) {
                match raw.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match raw.errno() {
                            errno if errno > 0 => Err(io::Error::from_raw_os_error(errno)),
                            _ => Ok(()),
                        };
                    }
                    _ => diag::describe(raw.body).into_iter().for_each(&mut *each),
                }
            }
        }
    }

    /// All answers that wait already; does not block.
    fn drain(&mut self, mut each: impl FnMut(Raw<'_>)) -> io::Result<()> {
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(()) => diag::split(&self.buffer).for_each(&mut each),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self, flags: libc::c_int) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, flags | libc::MSG_TRUNC) {
                Ok(length) if length > self.buffer.len() => {
                    return Err(io::Error::other(
                        "datagram of the kernel longer than the buffer",
                    ));
                }
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && flags == 0 => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
    }
}
