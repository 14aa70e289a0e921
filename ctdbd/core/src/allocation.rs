//! Which node hosts which public address: `spec/cluster.md` 3.6.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ctdb_wire::ids::{NodeSet, Pnn};

/// The tunables that concern allocation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policy {
    /// Which algorithm.
    pub algorithm: Algorithm,
    /// `NoIPFailback`: an address that is hosted stays where it is.
    pub no_failback: bool,
    /// `NoIPTakeover`: an address that is not hosted is given to nobody.
    pub no_takeover: bool,
}

/// `IPAllocAlgorithm`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
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
    /// All public addresses.
    pub addresses: &'a [AddressState],
    /// Tunables.
    pub policy: Policy,
    /// `home_nodes` file.
    pub home_nodes: &'a BTreeMap<IpAddr, Pnn>,
    /// Forced rebalance targets.
    pub rebalance: NodeSet,
}

/// Where one address goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// The address.
    pub address: IpAddr,
    /// Its node; `None` if nobody can host it.
    pub to: Option<Pnn>,
}

/// The decision.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// One for each address.
    pub assignments: Vec<Assignment>,
}

/// Decides.
pub fn allocate(problem: &Problem<'_>) -> Plan {
    let mut load = BTreeMap::<Pnn, usize>::new();
    let mut assignments = Vec::new();
    for state in problem.addresses {
        let kept = state.current.filter(|pnn| state.available.contains(*pnn));
        let to = kept.or_else(|| {
            state
                .available
                .iter()
                .min_by_key(|pnn| load.get(pnn).copied().unwrap_or_default())
        });
        if let Some(pnn) = to {
            *load.entry(pnn).or_default() += 1;
        }
        assignments.push(Assignment {
            address: state.address,
            to,
        });
    }
    Plan { assignments }
}
