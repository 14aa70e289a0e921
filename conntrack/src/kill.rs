//! The server's side of connections, ended: by the kernel's own iterator where it has
//! `bpf_sock_destroy`, else by sock_diag (`spec/kernel.md` 3).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ctdb_ebpf::destroy::{ADDRESSES, Destroyer};

use crate::{Error, Sockets};

/// Passes over all sockets at most. Each finds what began, or was skipped, during the one before;
/// once the address is silent nothing new begins.
const PASSES: u32 = 10;

/// How sockets are destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A program called for every TCP socket; one call of the kernel for all addresses.
    Iterator,
    /// The sockets are listed, filtered by the kernel, and destroyed 64 to a call.
    SockDiag,
}

impl Method {
    /// The name shown to operators.
    pub fn name(self) -> &'static str {
        match self {
            Self::Iterator => "bpf_sock_destroy",
            Self::SockDiag => "sock_diag",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What became of a kill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Killed {
    /// Sockets that were destroyed.
    pub destroyed: usize,
    /// Passes over all sockets, the last one that found nothing included.
    pub passes: u32,
    /// The last pass still found some.
    pub left: bool,
}

/// Destroys TCP sockets of one network namespace.
#[derive(Debug)]
pub struct Killer {
    sockets: Sockets,
    destroyer: Option<Destroyer>,
}

impl Killer {
    /// For the calling thread's network namespace, by the fastest way that the kernel has.
    pub fn open() -> Result<Self, Error> {
        let destroyer = Destroyer::load()
            .inspect_err(|error| tracing::info!(%error, "sockets are destroyed by sock_diag"))
            .ok();
        Ok(Self {
            destroyer,
            ..Self::with_sock_diag()?
        })
    }

    /// By sock_diag, which every kernel since 4.9 has.
    pub fn with_sock_diag() -> Result<Self, Error> {
        Ok(Self {
            sockets: Sockets::open()?,
            destroyer: None,
        })
    }

    /// The way in use.
    pub fn method(&self) -> Method {
        if self.destroyer.is_some() {
            Method::Iterator
        } else {
            Method::SockDiag
        }
    }

    /// Destroys all sockets whose end here is one of `addresses`, in all states but LISTEN and
    /// TIME_WAIT, v4-mapped ones among them, until a pass finds none. In the network namespace of
    /// [`Killer::open`]. What a client hears of it: see [`Sockets::destroy`].
    pub fn kill(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<Killed, Error> {
        let mut killed = Killed::default();
        if addresses.is_empty() {
            return Ok(killed);
        }
        let list: Vec<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        while killed.passes < PASSES {
            killed.passes += 1;
            let (destroyed, refused) = self.pass(addresses, &list)?;
            killed.destroyed += destroyed;
            killed.left = destroyed + refused > 0;
            if destroyed == 0 {
                break;
            }
        }
        Ok(killed)
    }

    /// How many were destroyed, and how many could not be.
    fn pass(
        &mut self,
        addresses: &BTreeSet<IpAddr>,
        list: &[IpAddr],
    ) -> Result<(usize, usize), Error> {
        if let Some(destroyer) = &mut self.destroyer {
            let result = list.chunks(ADDRESSES).try_fold((0, 0), |(all, no), chunk| {
                let pass = destroyer.pass(chunk)?;
                Ok((all + pass.destroyed as usize, no + pass.refused as usize))
            });
            match result {
                Ok(counts) => return Ok(counts),
                Err(error) => {
                    let error: ctdb_ebpf::Error = error;
                    tracing::warn!(%error, "destroying sockets by sock_diag from now on");
                    self.destroyer = None;
                }
            }
        }
        let found = self.sockets.connections(addresses)?;
        let destroyed = self.sockets.destroy(&found)?;
        // What is not there any more is none that is left.
        Ok((destroyed, 0))
    }

    /// Destroys the sockets of these connections, given as (client, server).
    pub fn kill_connections(
        &mut self,
        connections: &[(SocketAddr, SocketAddr)],
    ) -> Result<Killed, Error> {
        let plain = |end: SocketAddr| (end.ip().to_canonical(), end.port());
        let wanted: BTreeSet<_> = connections
            .iter()
            .map(|(client, server)| (plain(*client), plain(*server)))
            .collect();
        let addresses: BTreeSet<IpAddr> = wanted.iter().map(|(_, (address, _))| *address).collect();
        let mut found = self.sockets.connections(&addresses)?;
        found.retain(|at| wanted.contains(&(plain(at.client), plain(at.server))));
        Ok(Killed {
            destroyed: self.sockets.destroy(&found)?,
            passes: 1,
            left: false,
        })
    }
}
