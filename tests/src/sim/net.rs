//! The network between the hosts: datagrams that get lost, late, doubled and mixed up, and
//! links that keep frames in order until they break.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ctdb_wire::peer::PeerFrame;
use rand::Rng as _;
use rand_chacha::ChaCha8Rng;

use super::clock::Real;

/// How bad the network is.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Share of datagrams that are lost.
    pub loss: f64,
    /// Share that comes twice.
    pub double: f64,
    /// Share of datagrams and frames that is late.
    pub late: f64,
    /// By up to this.
    pub late_by: Duration,
}

impl Quality {
    /// A local network.
    pub const GOOD: Self = Self {
        loss: 0.0,
        double: 0.0,
        late: 0.0,
        late_by: Duration::ZERO,
    };

    /// Time on the way.
    pub fn delay(&self, rng: &mut ChaCha8Rng) -> Duration {
        let usual = Duration::from_nanos(rng.random_range(30_000..250_000));
        if self.late > 0.0 && rng.random_bool(self.late) {
            usual + self.late_by.mul_f64(rng.random::<f64>())
        } else {
            usual
        }
    }
}

/// A stream between two daemons, as both ends see it.
#[derive(Clone, Debug)]
pub struct Link {
    /// Node indices.
    pub nodes: [usize; 2],
    /// Lives of the daemons.
    pub lives: [u64; 2],
    /// Whether each end still believes in it.
    pub open: [bool; 2],
    /// Arrival of the last frame in each direction (index: the sender), so that order is kept.
    pub last: [Real; 2],
    /// Frames that wait for the way to be open again.
    pub stalled: [VecDeque<PeerFrame>; 2],
    /// Since when each end can have heard nothing.
    pub quiet: [Option<Real>; 2],
}

impl Link {
    /// Which end `node` is.
    pub fn end(&self, node: usize) -> usize {
        usize::from(self.nodes[0] != node)
    }
}

/// The network.
#[derive(Clone, Debug)]
pub struct Net {
    /// `datagrams[from][to]`: nothing passes.
    pub datagrams: Vec<Vec<bool>>,
    /// The same for links.
    pub streams: Vec<Vec<bool>>,
    /// Datagrams to this node take that much longer until then.
    pub choked: Option<(usize, Duration, Real)>,
    /// Quality of all ways.
    pub quality: Quality,
    /// Links by number; a pair has at most one whose ends are both open.
    pub links: BTreeMap<u64, Link>,
    next_link: u64,
}

impl Net {
    /// A whole network.
    pub fn new(nodes: usize) -> Self {
        Self {
            datagrams: vec![vec![false; nodes]; nodes],
            streams: vec![vec![false; nodes]; nodes],
            choked: None,
            quality: Quality::GOOD,
            links: BTreeMap::new(),
            next_link: 1,
        }
    }

    /// Blocks or frees one direction.
    pub fn block(&mut self, from: usize, to: usize, blocked: bool) {
        self.datagrams[from][to] = blocked;
        self.streams[from][to] = blocked;
    }

    /// Frees everything.
    pub fn heal(&mut self) {
        for rows in [&mut self.datagrams, &mut self.streams] {
            for row in rows {
                row.fill(false);
            }
        }
    }

    /// Both directions of a link's way are open.
    pub fn way(&self, a: usize, b: usize) -> bool {
        !self.streams[a][b] && !self.streams[b][a]
    }

    /// Makes a link.
    pub fn link(&mut self, now: Real, nodes: [usize; 2], lives: [u64; 2]) -> u64 {
        let id = self.next_link;
        self.next_link += 1;
        self.links.insert(
            id,
            Link {
                nodes,
                lives,
                open: [true; 2],
                last: [now; 2],
                stalled: [VecDeque::new(), VecDeque::new()],
                quiet: [None; 2],
            },
        );
        id
    }
}
