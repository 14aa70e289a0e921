//! Which node hosts which public address: `spec/cluster.md` 3.6.
//!
//! [`allocate`] is a function of its input alone. The three algorithms are those of CTDB, so
//! that a cluster that changes over finds its addresses where they were.

mod counting;
mod low_cost;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ctdb_wire::ids::{MAX_NODES, NodeSet, Pnn};
use serde::{Deserialize, Serialize};

pub use crate::leader::credits::Bans;

/// The tunables that concern allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Policy {
    /// Which algorithm.
    pub algorithm: Algorithm,
    /// `NoIPFailback`: an address that is hosted stays where it is.
    pub no_failback: bool,
    /// `NoIPTakeover`: an address that is not hosted is given to nobody.
    pub no_takeover: bool,
    /// Whether nodes are banned that fail at it again and again.
    pub bans: Bans,
}

/// `IPAllocAlgorithm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum Algorithm {
    /// 0.
    Deterministic,
    /// 1.
    NonDeterministic,
    /// 2, the default.
    #[default]
    LowCost,
}

/// One public address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddressState {
    /// The address.
    pub address: IpAddr,
    /// Who hosts it now.
    pub current: Option<Pnn>,
    /// Who could.
    pub available: NodeSet,
}

/// What is to be decided.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// Entries of the nodes list, deleted ones included.
    pub nodes: usize,
    /// All public addresses, each once; in any order.
    pub addresses: &'a [AddressState],
    /// Tunables.
    pub policy: Policy,
    /// `home_nodes` file.
    pub home_nodes: &'a BTreeMap<IpAddr, Pnn>,
    /// Forced rebalance targets.
    pub rebalance: NodeSet,
}

/// Why an address goes where it goes; its text is for `ctdb ip why` and `ctdb ip plan`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// It is hosted there already, and nothing speaks for a move.
    Stays,
    /// Deterministic: its place in the sorted list.
    Place {
        /// Position in the list, from 0.
        index: usize,
        /// Number of entries of the nodes list.
        nodes: usize,
    },
    /// Deterministic: `home_nodes` says so.
    Home,
    /// The node with the fewest addresses of those that can host it.
    FewestAddresses {
        /// How many it had.
        load: usize,
    },
    /// LCP2: the node whose addresses have least in common with it.
    LowestCost {
        /// Sum of the squares of the lengths of common prefixes.
        cost: u64,
    },
    /// Moved to even out.
    Rebalanced {
        /// Where it was.
        from: Pnn,
    },
    /// No node can host it.
    Nobody,
    /// Somebody could host it, but `NoIPTakeover` forbids to place it.
    NoTakeover,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stays => f.write_str("it is hosted there and nothing speaks for a move"),
            Self::Place { index, nodes } => {
                write!(
                    f,
                    "its place in the sorted list of addresses is {index}, modulo {nodes} nodes"
                )
            }
            Self::Home => f.write_str("it is the home node of the address (home_nodes)"),
            Self::FewestAddresses { load } => write!(
                f,
                "of the nodes that can host it this one had the fewest addresses ({load})"
            ),
            Self::LowestCost { cost } => write!(
                f,
                "of the nodes that can host it this one has the addresses least like it (cost \
                 {cost})"
            ),
            Self::Rebalanced { from } => write!(f, "moved from node {from} to even out"),
            Self::Nobody => f.write_str(
                "no node can host it (healthy, enabled, running, with an interface whose link is \
                 up)",
            ),
            Self::NoTakeover => f.write_str("NoIPTakeover forbids to place it"),
        }
    }
}

/// Where one address goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// The address.
    pub address: IpAddr,
    /// Its node; `None` if nobody can host it.
    pub to: Option<Pnn>,
    /// Why.
    pub reason: Reason,
}

/// The decision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// One for each address, in the order of the problem.
    pub assignments: Vec<Assignment>,
}

/// Decides.
pub fn allocate(problem: &Problem<'_>) -> Plan {
    let mut work = Work::new(problem);
    if !problem.policy.no_takeover {
        match problem.policy.algorithm {
            Algorithm::Deterministic => counting::deterministic(&mut work, problem),
            Algorithm::NonDeterministic => {
                counting::non_deterministic(&mut work, problem.policy.no_failback);
            }
            Algorithm::LowCost => {
                low_cost::low_cost(&mut work, problem.policy.no_failback, problem.rebalance);
            }
        }
    }
    work.plan(problem)
}

/// The addresses in the order of the algorithms: descending by [`value`].
struct Work {
    /// Position in the problem of each address.
    index: Vec<usize>,
    /// 128-bit value of each address.
    value: Vec<u128>,
    /// Who can host each address.
    can: Vec<NodeSet>,
    /// Who hosts it so far.
    owner: Vec<Option<Pnn>>,
    /// Why.
    reason: Vec<Reason>,
}

/// An address as 128 bits: an IPv4 address occupies the low 32 (`spec/cluster.md` 3.1).
fn value(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

impl Work {
    /// Sorts, and unassigns what is assigned where it is not available.
    fn new(problem: &Problem<'_>) -> Self {
        let addresses = problem.addresses;
        let mut index: Vec<usize> = (0..addresses.len()).collect();
        // The family only matters for `::a.b.c.d` beside `a.b.c.d`, so that the order of the
        // problem never does.
        index.sort_by_key(|at| {
            let address = addresses[*at].address;
            std::cmp::Reverse((value(address), address.is_ipv6()))
        });
        let ordered = || index.iter().map(|at| &addresses[*at]);
        Self {
            value: ordered().map(|state| value(state.address)).collect(),
            can: ordered().map(|state| state.available).collect(),
            owner: ordered()
                .map(|state| state.current.filter(|pnn| state.available.contains(*pnn)))
                .collect(),
            reason: vec![Reason::Stays; index.len()],
            index,
        }
    }

    fn len(&self) -> usize {
        self.index.len()
    }

    fn assign(&mut self, at: usize, pnn: Pnn, reason: Reason) {
        self.owner[at] = Some(pnn);
        self.reason[at] = reason;
    }

    /// Addresses assigned to each node.
    fn loads(&self) -> [usize; MAX_NODES] {
        let mut loads = [0; MAX_NODES];
        for pnn in self.owner.iter().flatten() {
            loads[pnn.index()] += 1;
        }
        loads
    }

    fn plan(self, problem: &Problem<'_>) -> Plan {
        let mut assignments: Vec<Option<Assignment>> = vec![None; self.len()];
        for (at, position) in self.index.iter().enumerate() {
            let state = &problem.addresses[*position];
            let to = self.owner[at];
            let reason = match (to, self.reason[at]) {
                (None, _) if state.available.is_empty() => Reason::Nobody,
                (None, _) => Reason::NoTakeover,
                // Moved away and back again.
                (Some(pnn), Reason::Rebalanced { .. }) if state.current == Some(pnn) => {
                    Reason::Stays
                }
                (Some(_), reason) => reason,
            };
            assignments[*position] = Some(Assignment {
                address: state.address,
                to,
                reason,
            });
        }
        Plan {
            assignments: assignments.into_iter().flatten().collect(),
        }
    }
}
