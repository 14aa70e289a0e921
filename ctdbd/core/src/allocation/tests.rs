use proptest::prelude::*;

use super::*;

fn pnn(number: u32) -> Pnn {
    Pnn::new(number).unwrap()
}

fn set(numbers: &[u32]) -> NodeSet {
    numbers.iter().copied().map(pnn).collect()
}

/// The cluster of `spec/cluster.md` 3.6.4.
struct Example {
    states: Vec<AddressState>,
    policy: Policy,
    homes: BTreeMap<IpAddr, Pnn>,
    rebalance: NodeSet,
    nodes: usize,
}

impl Example {
    fn new(algorithm: Algorithm) -> Self {
        let states = ["0.1", "0.2", "0.3", "1.1", "1.2", "1.3"]
            .map(|tail| AddressState {
                address: format!("10.0.{tail}").parse().unwrap(),
                current: None,
                available: set(&[0, 1, 2]),
            })
            .to_vec();
        let policy = Policy {
            algorithm,
            ..Policy::default()
        };
        Self {
            states,
            policy,
            homes: BTreeMap::new(),
            rebalance: NodeSet::EMPTY,
            nodes: 3,
        }
    }

    fn run(&mut self) -> Plan {
        let plan = allocate(&Problem {
            nodes: self.nodes,
            addresses: &self.states,
            policy: self.policy,
            home_nodes: &self.homes,
            rebalance: self.rebalance,
        });
        for (state, assignment) in self.states.iter_mut().zip(&plan.assignments) {
            assert_eq!(state.address, assignment.address);
            state.current = assignment.to;
        }
        plan
    }

    /// Nodes of 0.1, 0.2, 0.3, 1.1, 1.2, 1.3, as the table of the specification counts them.
    fn nodes_of(&mut self) -> Vec<i32> {
        let plan = self.run();
        plan.assignments
            .iter()
            .map(|a| a.to.map_or(-1, |pnn| pnn.get().cast_signed()))
            .collect()
    }

    fn available(&mut self, nodes: &[u32]) {
        for state in &mut self.states {
            state.available = set(nodes);
        }
    }
}

#[test]
fn example_of_lcp2() {
    let mut cluster = Example::new(Algorithm::LowCost);
    let plan = cluster.run();
    let costs: Vec<Reason> = plan.assignments.iter().map(|a| a.reason).collect();
    let cost = |cost| Reason::LowestCost { cost };
    assert_eq!(
        costs,
        [
            cost(14161),
            cost(14161),
            cost(14161),
            cost(0),
            cost(0),
            cost(0)
        ]
    );
    assert_eq!(cluster.nodes_of(), [2, 1, 0, 2, 1, 0]);
    // Node 1 is lost.
    cluster.available(&[0, 2]);
    let plan = cluster.run();
    assert_eq!(plan.assignments[4].to, Some(pnn(2)));
    assert_eq!(plan.assignments[4].reason, cost(30037));
    assert_eq!(plan.assignments[1].to, Some(pnn(0)));
    assert_eq!(plan.assignments[1].reason, cost(30290));
    assert_eq!(plan.assignments[0].reason, Reason::Stays);
    assert_eq!(cluster.nodes_of(), [2, 0, 0, 2, 2, 0]);
    // Node 1 is back.
    cluster.available(&[0, 1, 2]);
    cluster.policy.no_failback = true;
    assert_eq!(cluster.nodes_of(), [2, 0, 0, 2, 2, 0]);
    cluster.policy.no_failback = false;
    let plan = cluster.run();
    assert_eq!(
        plan.assignments[2].reason,
        Reason::Rebalanced { from: pnn(0) }
    );
    assert_eq!(
        plan.assignments[4].reason,
        Reason::Rebalanced { from: pnn(2) }
    );
    assert_eq!(cluster.nodes_of(), [2, 0, 1, 2, 1, 0]);
}

#[test]
fn example_of_deterministic() {
    let mut cluster = Example::new(Algorithm::Deterministic);
    assert_eq!(cluster.nodes_of(), [2, 1, 0, 2, 1, 0]);
    cluster.available(&[0, 2]);
    assert_eq!(cluster.nodes_of(), [2, 2, 0, 2, 0, 0]);
    cluster.available(&[0, 1, 2]);
    cluster.policy.no_failback = true;
    let plan = cluster.run();
    assert_eq!(
        plan.assignments[1].reason,
        Reason::Place { index: 4, nodes: 3 }
    );
    assert_eq!(cluster.nodes_of(), [2, 1, 0, 2, 1, 0]);
}

#[test]
fn example_of_non_deterministic() {
    let mut cluster = Example::new(Algorithm::NonDeterministic);
    assert_eq!(cluster.nodes_of(), [2, 1, 0, 2, 1, 0]);
    cluster.available(&[0, 2]);
    assert_eq!(cluster.nodes_of(), [2, 2, 0, 2, 0, 0]);
    cluster.available(&[0, 1, 2]);
    cluster.policy.no_failback = true;
    assert_eq!(cluster.nodes_of(), [2, 2, 0, 2, 0, 0]);
    cluster.policy.no_failback = false;
    assert_eq!(cluster.nodes_of(), [2, 2, 0, 1, 0, 1]);
}

#[test]
fn a_home_node_overrides_the_place_if_it_can_host() {
    let mut cluster = Example::new(Algorithm::Deterministic);
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    cluster.homes.insert(address, pnn(0));
    let plan = cluster.run();
    assert_eq!(
        (plan.assignments[0].to, plan.assignments[0].reason),
        (Some(pnn(0)), Reason::Home)
    );
    // A number beyond the list does not count.
    cluster.homes.insert(address, pnn(3));
    assert_eq!(cluster.nodes_of()[0], 2);
    cluster.homes.insert(address, pnn(1));
    cluster.available(&[0, 2]);
    // Loads are 2 and 1: 1.2 goes to node 2, 0.2 to node 0, and 0.1 to node 2.
    let plan = cluster.run();
    assert_eq!(plan.assignments[0].to, Some(pnn(2)));
    assert_eq!(
        plan.assignments[0].reason,
        Reason::FewestAddresses { load: 2 }
    );
}

#[test]
fn deleted_nodes_count_in_the_deterministic_places() {
    let mut cluster = Example::new(Algorithm::Deterministic);
    cluster.nodes = 4;
    cluster.available(&[0, 2, 3]);
    // Places 0 to 3, 0, 1; that of number 1 is deleted.
    assert_eq!(cluster.nodes_of(), [3, 0, 3, 2, 2, 0]);
}

#[test]
fn without_takeover_what_is_placed_stays_and_nothing_else_is_placed() {
    for algorithm in [
        Algorithm::Deterministic,
        Algorithm::NonDeterministic,
        Algorithm::LowCost,
    ] {
        let mut cluster = Example::new(algorithm);
        cluster.policy.no_takeover = true;
        cluster.states[0].current = Some(pnn(1));
        cluster.states[1].current = Some(pnn(1));
        cluster.states[1].available = set(&[0]);
        cluster.states[2].available = NodeSet::EMPTY;
        let plan = cluster.run();
        assert_eq!(plan.assignments[0].to, Some(pnn(1)));
        assert_eq!(
            (plan.assignments[1].to, plan.assignments[1].reason),
            (None, Reason::NoTakeover)
        );
        assert_eq!(
            (plan.assignments[2].to, plan.assignments[2].reason),
            (None, Reason::Nobody)
        );
        assert_eq!(
            (plan.assignments[3].to, plan.assignments[3].reason),
            (None, Reason::NoTakeover)
        );
    }
}

#[test]
fn a_forced_target_is_rebalanced_to_though_it_is_not_empty() {
    let mut cluster = Example::new(Algorithm::LowCost);
    for (state, node) in cluster.states.iter_mut().zip([0, 0, 0, 0, 1, 1]) {
        state.current = Some(pnn(node));
    }
    cluster.available(&[0, 1]);
    assert_eq!(cluster.nodes_of(), [0, 0, 0, 0, 1, 1]);
    cluster.rebalance = set(&[1]);
    let after = cluster.nodes_of();
    assert_eq!(
        after.iter().filter(|node| **node == 1).count(),
        3,
        "{after:?}"
    );
}

#[test]
fn numbers_are_evened_out_past_addresses_that_cannot_leave() {
    let mut cluster = Example::new(Algorithm::NonDeterministic);
    // 1.3 and 1.2, the first of the list, can only be on node 0.
    for (state, nodes) in
        cluster
            .states
            .iter_mut()
            .zip([&[0, 1][..], &[0, 1], &[0, 1], &[0, 1], &[0], &[0]])
    {
        state.current = Some(pnn(0));
        state.available = set(nodes);
    }
    let after = cluster.nodes_of();
    assert_eq!(
        after.iter().filter(|node| **node == 1).count(),
        3,
        "{after:?}"
    );
}

#[test]
fn nothing_to_decide() {
    for algorithm in [
        Algorithm::Deterministic,
        Algorithm::NonDeterministic,
        Algorithm::LowCost,
    ] {
        let mut cluster = Example::new(algorithm);
        cluster.nodes = 0;
        cluster.available(&[]);
        assert_eq!(cluster.nodes_of(), [-1; 6]);
        cluster.states.clear();
        assert_eq!(cluster.run(), Plan::default());
    }
}

/// LCP2 word by word as the specification has it, slow.
fn lcp2_by_the_book(states: &[AddressState], policy: Policy, forced: NodeSet) -> Vec<Option<Pnn>> {
    let mut order: Vec<usize> = (0..states.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(value(states[*i].address)));
    let mut at: Vec<Option<Pnn>> = states
        .iter()
        .map(|state| state.current.filter(|pnn| state.available.contains(*pnn)))
        .collect();
    let near = |a: usize, b: usize| {
        let bits = (value(states[a].address) ^ value(states[b].address)).leading_zeros();
        u64::from(bits * bits)
    };
    let cost = |at: &[Option<Pnn>], ip: usize, n: Pnn| -> u64 {
        (0..at.len())
            .filter(|x| *x != ip && at[*x] == Some(n))
            .map(|x| near(ip, x))
            .sum()
    };
    let imbalance = |at: &[Option<Pnn>], n: Pnn| -> u64 {
        (0..at.len())
            .filter(|x| at[*x] == Some(n))
            .map(|x| cost(at, x, n))
            .sum::<u64>()
            / 2
    };
    let nodes: Vec<Pnn> = (0..8).map(pnn).collect();
    let targets: Vec<Pnn> = nodes
        .iter()
        .copied()
        .filter(|n| forced.contains(*n) || !at.contains(&Some(*n)))
        .collect();
    loop {
        let mut best: Option<(u64, usize, Pnn)> = None;
        for &ip in order.iter().filter(|ip| at[**ip].is_none()) {
            for n in states[ip].available.iter() {
                let c = cost(&at, ip, n);
                if best.is_none_or(|(least, ..)| c < least) {
                    best = Some((c, ip, n));
                }
            }
        }
        let Some((_, ip, n)) = best else { break };
        at[ip] = Some(n);
    }
    if policy.no_failback {
        return at;
    }
    'again: loop {
        let mut sources = nodes.clone();
        sources.sort_by_key(|n| std::cmp::Reverse(imbalance(&at, *n)));
        for s in sources {
            let is = imbalance(&at, s);
            if is == 0 {
                break 'again;
            }
            let mut best: Option<(u64, usize, Pnn)> = None;
            for &ip in order.iter().filter(|ip| at[**ip] == Some(s)) {
                for &t in targets
                    .iter()
                    .filter(|t| **t != s && states[ip].available.contains(**t))
                {
                    let (r, c, it) = (cost(&at, ip, s), cost(&at, ip, t), imbalance(&at, t));
                    let sum = is - r + it + c;
                    if it + c < is && c < r && best.is_none_or(|(least, ..)| sum < least) {
                        best = Some((sum, ip, t));
                    }
                }
            }
            if let Some((_, ip, t)) = best {
                at[ip] = Some(t);
                continue 'again;
            }
        }
        break;
    }
    at
}

fn addresses() -> impl Strategy<Value = Vec<AddressState>> {
    let one = (
        0_u8..3,
        1_u8..30,
        any::<bool>(),
        proptest::option::of(0_u32..8),
        0_u64..256,
    );
    proptest::collection::vec(one, 0..24).prop_map(|list| {
        let mut states = BTreeMap::new();
        for (net, host, v6, current, available) in list {
            let text = if v6 {
                format!("fd00:{net}::{host}")
            } else {
                format!("10.0.{net}.{host}")
            };
            let address: IpAddr = text.parse().unwrap();
            // Half of the addresses can be anywhere, as usual.
            let available = NodeSet(if host % 2 == 0 { 255 } else { available });
            states.insert(
                address,
                AddressState {
                    address,
                    current: current.map(pnn),
                    available,
                },
            );
        }
        states.into_values().collect()
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    (0..3, any::<bool>(), any::<bool>()).prop_map(|(algorithm, no_failback, no_takeover)| Policy {
        algorithm: match algorithm {
            0 => Algorithm::Deterministic,
            1 => Algorithm::NonDeterministic,
            _ => Algorithm::LowCost,
        },
        no_failback,
        no_takeover,
        ..Policy::default()
    })
}

proptest! {
    #[test]
    fn what_can_be_hosted_is_and_only_where_it_can_be(
        states in addresses(),
        policy in policies(),
        forced in 0_u64..256,
        homes in proptest::collection::vec(0_u32..64, 0..8),
    ) {
        let home_nodes: BTreeMap<IpAddr, Pnn> =
            states.iter().zip(homes).map(|(state, n)| (state.address, pnn(n))).collect();
        let problem = Problem {
            nodes: 8,
            addresses: &states,
            policy,
            home_nodes: &home_nodes,
            rebalance: NodeSet(forced),
        };
        let plan = allocate(&problem);
        prop_assert_eq!(plan.assignments.len(), states.len());
        for (state, assignment) in states.iter().zip(&plan.assignments) {
            prop_assert_eq!(state.address, assignment.address);
            let kept = state.current.filter(|pnn| state.available.contains(*pnn));
            if policy.no_takeover {
                prop_assert_eq!(assignment.to, kept);
            } else {
                prop_assert_eq!(assignment.to.is_none(), state.available.is_empty());
            }
            if let Some(to) = assignment.to {
                prop_assert!(state.available.contains(to));
                if policy.no_failback && policy.algorithm != Algorithm::Deterministic {
                    prop_assert!(kept.is_none() || kept == Some(to));
                }
            }
            let moved = matches!(assignment.reason, Reason::Rebalanced { .. });
            prop_assert!(!moved || assignment.to != state.current);
        }
        // The same again, and in whatever order the addresses come.
        prop_assert_eq!(&allocate(&problem), &plan);
        let mut reversed: Vec<AddressState> = states.clone();
        reversed.reverse();
        let mut other = allocate(&Problem { addresses: &reversed, ..problem });
        other.assignments.reverse();
        prop_assert_eq!(other, plan);
    }

    #[test]
    fn a_second_run_moves_nothing(states in addresses(), policy in policies()) {
        let home_nodes = BTreeMap::new();
        let run = |states: &[AddressState]| allocate(&Problem {
            nodes: 8,
            addresses: states,
            policy,
            home_nodes: &home_nodes,
            rebalance: NodeSet::EMPTY,
        });
        let to = |plan: &Plan| plan.assignments.iter().map(|a| a.to).collect::<Vec<_>>();
        let first = run(&states);
        let mut settled = states;
        for (state, assignment) in settled.iter_mut().zip(&first.assignments) {
            state.current = assignment.to;
        }
        prop_assert_eq!(to(&run(&settled)), to(&first));
    }

    #[test]
    fn lcp2_is_that_of_the_specification(
        states in addresses(),
        no_failback in any::<bool>(),
        forced in 0_u64..256,
    ) {
        let policy = Policy { algorithm: Algorithm::LowCost, no_failback, ..Policy::default() };
        let plan = allocate(&Problem {
            nodes: 8,
            addresses: &states,
            policy,
            home_nodes: &BTreeMap::new(),
            rebalance: NodeSet(forced),
        });
        let to: Vec<Option<Pnn>> = plan.assignments.iter().map(|a| a.to).collect();
        prop_assert_eq!(to, lcp2_by_the_book(&states, policy, NodeSet(forced)));
    }
}

/// A thousand addresses on 64 nodes: from nothing, after the loss of a node, and its return, and
/// from all on one node. Each takes some tens of milliseconds where the compiler optimises a
/// little; the limit leaves room for a build without and for slow machines.
#[test]
#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "it measures"
)]
fn a_thousand_addresses_are_quick() {
    let states = |current: Option<Pnn>| -> Vec<AddressState> {
        (0..1000_u32)
            .map(|i| AddressState {
                address: IpAddr::V4((0x0a00_0000 + ((i / 250) << 8) + i % 250 + 1).into()),
                current,
                available: NodeSet(u64::MAX),
            })
            .collect()
    };
    for algorithm in [
        Algorithm::Deterministic,
        Algorithm::NonDeterministic,
        Algorithm::LowCost,
    ] {
        let mut cluster = Example::new(algorithm);
        cluster.nodes = 64;
        cluster.states = states(None);
        let mut took = Vec::new();
        let mut run = |cluster: &mut Example| {
            let begin = std::time::Instant::now();
            let plan = cluster.run();
            took.push(begin.elapsed());
            let mut loads = [0; MAX_NODES];
            for assignment in &plan.assignments {
                loads[assignment.to.unwrap().index()] += 1;
            }
            loads
        };
        let loads = run(&mut cluster);
        assert!(
            loads.iter().all(|load| (15..=16).contains(load)),
            "{loads:?}"
        );
        for state in &mut cluster.states {
            state.available.remove(pnn(5));
        }
        let loads = run(&mut cluster);
        assert_eq!(loads[5], 0);
        for state in &mut cluster.states {
            state.available.insert(pnn(5));
        }
        let loads = run(&mut cluster);
        assert!(loads[5] >= 14, "{loads:?}");
        cluster.states = states(Some(pnn(0)));
        let loads = run(&mut cluster);
        assert!(
            loads.iter().all(|load| (12..=20).contains(load)),
            "{loads:?}"
        );
        println!("{algorithm:?}: {took:?}");
        assert!(
            took.iter().all(|time| time.as_secs() < 5),
            "{algorithm:?}: {took:?}"
        );
    }
}
