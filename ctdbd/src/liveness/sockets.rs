//! Heartbeat sockets: one per local address; a peer is reached on every path there is.

use std::net::{SocketAddr, UdpSocket};

use super::LivenessError;

/// Most paths per peer: the private network and the static addresses of three public networks.
pub const MAX_PATHS: usize = 4;

/// Largest datagram that is read: a sealed message is far below; longer ones are cut by the
/// kernel and then refused.
pub(super) const DATAGRAM: usize = 1024;

/// Paths to a peer: index of the local socket, and the peer's address.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PathSet {
    paths: [Option<(u8, SocketAddr)>; MAX_PATHS],
}

impl PathSet {
    /// Adds a path; further ones than [`MAX_PATHS`] are left out.
    pub fn push(&mut self, socket: u8, address: SocketAddr) {
        if let Some(free) = self.paths.iter_mut().find(|path| path.is_none()) {
            *free = Some((socket, address));
        }
    }

    /// All paths.
    pub fn iter(&self) -> impl Iterator<Item = (u8, SocketAddr)> + '_ {
        self.paths.iter().flatten().copied()
    }
}

/// The open sockets, in the order of the local addresses.
pub(super) struct Sockets {
    pub sockets: Vec<UdpSocket>,
}

impl Sockets {
    pub fn open(local: &[SocketAddr]) -> Result<Self, LivenessError> {
        let mut sockets = Vec::new();
        for address in local.iter().take(MAX_PATHS) {
            let socket = UdpSocket::bind(address)
                .and_then(|socket| socket.set_nonblocking(true).map(|()| socket))
                .map_err(|source| LivenessError::Socket {
                    address: *address,
                    source,
                })?;
            sockets.push(socket);
        }
        Ok(Self { sockets })
    }
}
