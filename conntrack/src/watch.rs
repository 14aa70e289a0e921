//! All connections to public addresses, as they come and go: from the kernel's tracker, completed
//! by sock_diag where the tracker's table was full, or by sock_diag alone where the kernel takes no
//! tracker.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use ctdb_ebpf::boot_ns;
use ctdb_ebpf::track::{Change, Stats, Tracked, Tracker};

use crate::diag::{NEW_SYN_RECV, SYN_RECV, SYN_SENT};
use crate::{Connection, Error, Sockets};

/// Where the table comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The kernel's tracker.
    Kernel,
    /// All sockets, listed again and again: connections shorter than the time between are missed.
    Dumps {
        /// Why there is no tracker.
        because: String,
    },
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel => f.write_str("kernel"),
            Self::Dumps { .. } => f.write_str("sock_diag"),
        }
    }
}

/// The connections of one network namespace. Dropping it leaves the kernel's tracker at work.
#[derive(Debug)]
pub struct Watch {
    tracker: Option<Tracker>,
    because: String,
    sockets: Sockets,
    addresses: BTreeSet<IpAddr>,
    /// Without tracker: what was given.
    given: BTreeMap<u64, Tracked>,
    /// Without tracker: the next poll gives everything.
    whole: bool,
    filled: u64,
}

impl Watch {
    /// In the calling thread's network namespace, with pins in `dir` as [`Tracker::open`]. Where
    /// the kernel cannot track, sockets are listed instead, and a warning says so.
    pub fn open(dir: &Path, max_connections: u32) -> Result<Self, Error> {
        match Tracker::open(dir, max_connections) {
            Ok(tracker) => Ok(Self {
                tracker: Some(tracker),
                ..Self::without_tracker("")?
            }),
            Err(error) => {
                // In one line, if it is the kernel that cannot.
                let error = Tracker::supported().err().unwrap_or(error);
                tracing::warn!(
                    %error,
                    "connections are listed from time to time: short ones, and the last ones \
                     before a crash, may be missed"
                );
                Self::without_tracker(&error.to_string())
            }
        }
    }

    /// By lists of all sockets.
    pub fn without_tracker(because: &str) -> Result<Self, Error> {
        Ok(Self {
            tracker: None,
            because: because.to_owned(),
            sockets: Sockets::open()?,
            addresses: BTreeSet::new(),
            given: BTreeMap::new(),
            whole: true,
            filled: 0,
        })
    }

    /// Where the connections come from.
    pub fn source(&self) -> Source {
        match self.tracker {
            Some(_) => Source::Kernel,
            None => Source::Dumps {
                because: self.because.clone(),
            },
        }
    }

    /// Says which addresses are public; the next poll gives everything. In the network namespace
    /// of [`Watch::open`].
    pub fn set_addresses(&mut self, addresses: &BTreeSet<IpAddr>) -> Result<(), Error> {
        self.addresses = addresses.iter().map(IpAddr::to_canonical).collect();
        self.whole = true;
        if let Some(tracker) = &mut self.tracker {
            let list: Vec<IpAddr> = self.addresses.iter().copied().collect();
            tracker.set_addresses(&list)?;
        }
        Ok(())
    }

    /// Readable when there are changes. `None`: [`Watch::poll`] is to be called every 50 ms or so.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.tracker.as_ref().map(|tracker| tracker.as_fd())
    }

    /// Gives what happened since the last call; how many changes. Does not wait for any. At
    /// [`ctdb_ebpf::track::DRAIN_LIMIT`] there may be more. To have few wake-ups, wait some
    /// milliseconds after the descriptor became readable.
    pub fn poll(&mut self, mut each: impl FnMut(Change)) -> Result<usize, Error> {
        let Some(tracker) = &mut self.tracker else {
            return self.list(each);
        };
        let mut partial = None;
        let count = tracker.drain(|change| match change {
            Change::Whole {
                connections,
                complete: false,
            } => partial = Some(connections),
            change => each(change),
        })?;
        if let Some(mut connections) = partial {
            let there: BTreeSet<u64> = connections.iter().map(|at| at.cookie).collect();
            let before = connections.len();
            let sockets = self.sockets.connections(&self.addresses)?;
            connections.extend(
                sockets
                    .iter()
                    .filter_map(established)
                    .filter(|at| !there.contains(&at.cookie)),
            );
            let filled = connections.len() - before;
            self.filled += filled as u64;
            tracing::warn!(
                filled,
                "the kernel's table of connections was full; the rest is read from its sockets. \
                 Raise `[conntrack] max connections`"
            );
            each(Change::Whole {
                connections,
                complete: true,
            });
        }
        Ok(count)
    }

    fn list(&mut self, mut each: impl FnMut(Change)) -> Result<usize, Error> {
        let sockets = self.sockets.connections(&self.addresses)?;
        let there: BTreeMap<u64, Tracked> = sockets
            .iter()
            .filter_map(established)
            .map(|at| match self.given.get(&at.cookie) {
                Some(known) => (at.cookie, *known),
                None => (at.cookie, at),
            })
            .collect();
        let before = std::mem::replace(&mut self.given, there);
        if std::mem::take(&mut self.whole) {
            each(Change::Whole {
                connections: self.given.values().copied().collect(),
                complete: true,
            });
            return Ok(self.given.len());
        }
        let mut count = 0;
        for (cookie, ended) in &before {
            if !self.given.contains_key(cookie) {
                each(Change::Closed(*ended));
                count += 1;
            }
        }
        for (cookie, begun) in &self.given {
            if !before.contains_key(cookie) {
                each(Change::Opened(*begun));
                count += 1;
            }
        }
        Ok(count)
    }

    /// Has the tracker put right what was changed under it ([`Tracker::check`]); whether a poll is
    /// due. To be called every second.
    pub fn check(&mut self) -> Result<bool, Error> {
        match &mut self.tracker {
            Some(tracker) => Ok(tracker.check()?),
            None => Ok(false),
        }
    }

    /// What the kernel's tracker counted; all 0 without one.
    pub fn stats(&self) -> Result<Stats, Error> {
        match &self.tracker {
            Some(tracker) => Ok(tracker.stats()?),
            None => Ok(Stats::default()),
        }
    }

    /// Connections that were read from sockets, since the tracker's table was full.
    pub fn filled(&self) -> u64 {
        self.filled
    }

    /// Ends the kernel's tracking and removes its pins.
    pub fn close_clean(self) -> Result<(), Error> {
        match self.tracker {
            Some(tracker) => Ok(tracker.close_clean()?),
            None => Ok(()),
        }
    }
}

/// A socket's connection as the tracker would give it, if it is established or on its way down.
fn established(socket: &Connection) -> Option<Tracked> {
    if [SYN_SENT, SYN_RECV, NEW_SYN_RECV].contains(&socket.state) {
        return None;
    }
    Some(Tracked {
        cookie: socket.cookie(),
        server: socket.server,
        client: socket.client,
        since_ns: boot_ns(),
        seeded: true,
        cgroup: 0,
        interface: 0,
    })
}
