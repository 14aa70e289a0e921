//! Votes, promises, rights and reassignment of three nodes and one address, every order of
//! events up to a depth (`ctdbd/core/DESIGN.md`, section 7). Time is in steps: L = 2, m = 1.
//!
//! This is not the code but its rules, small enough to be looked at as a whole: what the
//! simulator draws at random, this does in all ways. The rules that it takes away one by one
//! show that it would notice.

use stateright::{Checker as _, HasDiscoveries, Model, Property};

const NODES: usize = 3;
/// Lease, in steps.
const LEASE: u8 = 2;
/// Terms are counted up to this.
const TERMS: u8 = 2;
/// Restarts, of all nodes together.
const RESTARTS: u8 = 1;

/// What a leader knows of a host (R18).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Know {
    Unknown,
    Known,
    Dead,
}

/// An order on its way (R15).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Order {
    term: u8,
    epoch: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Node {
    /// Newest term heard.
    term: u8,
    /// Promise: to whom, and for how many steps.
    promised: Option<u8>,
    promise: u8,
    abstains: u8,
    /// Steps that the right goes on, and its epoch.
    right: u8,
    epoch: u8,
    /// The address is granted in this epoch.
    granted: bool,
    /// Steps since it answered each node, at most L + m.
    ages: [u8; NODES],
    /// Nodes that it has stopped answering.
    stopped: [bool; NODES],
    /// As leader: steps that it may act.
    acts: u8,
    /// As leader: its term and books.
    leads: u8,
    know: [Know; NODES],
    may: [bool; NODES],
    order: Option<Order>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    nodes: [Node; NODES],
    restarts: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    /// Time passes.
    Step,
    /// `node` is answered by `witness`; the heartbeat was sent `ago` steps before.
    Answer {
        node: usize,
        witness: usize,
        ago: u8,
    },
    /// `node` stands and `voter` votes, after a way of `ago` steps.
    Elect { node: usize, voter: usize, ago: u8 },
    /// The leader is promised again.
    Promise {
        leader: usize,
        voter: usize,
        ago: u8,
    },
    /// STATE of `host` reaches the leader.
    Tell { leader: usize, host: usize },
    /// The leader and `witness` stop answering `host`.
    Evict {
        leader: usize,
        witness: usize,
        host: usize,
    },
    /// The ages prove that `host` has lapsed.
    Evidence {
        leader: usize,
        witness: usize,
        host: usize,
    },
    /// The address is ordered to `host`.
    Assign { leader: usize, host: usize },
    /// The order arrives.
    Obey { host: usize },
    /// `node` dies (its guard ends the deadline) and starts anew.
    Restart { node: usize },
}

/// The rules, or the rules without one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Without {
    Nothing,
    Evidence,
    Abstention,
    Accounts,
}

struct Rules(Without);

/// A promise runs for L + m.
const PROMISE: u8 = LEASE + 1;

impl Model for Rules {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let node = Node {
            term: 0,
            promised: None,
            promise: 0,
            abstains: 0,
            right: 0,
            epoch: 0,
            granted: false,
            ages: [PROMISE; NODES],
            stopped: [false; NODES],
            acts: 0,
            leads: 0,
            know: [Know::Unknown; NODES],
            may: [false; NODES],
            order: None,
        };
        let empty = State {
            nodes: [node; NODES],
            restarts: 0,
        };
        // Node 0 leads by the promise of node 1, which serves the address; all have a right.
        let mut led = empty.clone();
        for node in &mut led.nodes {
            node.term = 1;
            node.right = LEASE;
            node.ages = [0; NODES];
        }
        led.nodes[1].granted = true;
        for index in [0, 1] {
            led.nodes[index].promised = Some(0);
            led.nodes[index].promise = PROMISE;
        }
        led.nodes[0].acts = LEASE;
        led.nodes[0].leads = 1;
        led.nodes[0].know = [Know::Known; NODES];
        led.nodes[0].may[1] = true;
        // The same when the leader has not been heard for long.
        let mut left = led.clone();
        for node in &mut left.nodes {
            node.promise = 0;
            node.promised = None;
            node.acts = 0;
        }
        vec![empty, led, left]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        actions.push(Action::Step);
        for node in 0..NODES {
            actions.push(Action::Restart { node });
            actions.push(Action::Obey { host: node });
            for other in 0..NODES {
                actions.push(Action::Tell {
                    leader: node,
                    host: other,
                });
                actions.push(Action::Assign {
                    leader: node,
                    host: other,
                });
                if other == node {
                    continue;
                }
                for ago in 0..2 {
                    actions.push(Action::Answer {
                        node,
                        witness: other,
                        ago,
                    });
                    actions.push(Action::Elect {
                        node,
                        voter: other,
                        ago,
                    });
                    actions.push(Action::Promise {
                        leader: node,
                        voter: other,
                        ago,
                    });
                }
                let host = NODES - node - other;
                actions.push(Action::Evict {
                    leader: node,
                    witness: other,
                    host,
                });
                actions.push(Action::Evidence {
                    leader: node,
                    witness: other,
                    host,
                });
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let promise = PROMISE;
        let needed = if self.0 == Without::Evidence {
            0
        } else {
            promise
        };
        let nodes = &mut state.nodes;
        match action {
            Action::Step => {
                for node in nodes.iter_mut() {
                    node.promise = node.promise.saturating_sub(1);
                    node.abstains = node.abstains.saturating_sub(1);
                    node.acts = node.acts.saturating_sub(1);
                    if node.right > 0 {
                        node.right -= 1;
                        if node.right == 0 {
                            node.epoch += 1; // R6: the next right begins with no grants.
                            node.granted = false;
                        }
                    }
                    for age in &mut node.ages {
                        *age = (*age + 1).min(promise);
                    }
                }
            }
            Action::Answer { node, witness, ago } => {
                if nodes[witness].stopped[node] {
                    return None;
                }
                nodes[witness].ages[node] = 0;
                // A way of `ago` steps: the answer was recorded now, the heartbeat sent before.
                nodes[node].right = nodes[node].right.max(LEASE - ago);
            }
            Action::Elect { node, voter, ago } => {
                let term = nodes[node].term.max(nodes[voter].term) + 1;
                let bound = nodes[voter].promise > 0 && nodes[voter].promised != Some(node as u8);
                let own = nodes[node].promise > 0 && nodes[node].promised != Some(node as u8);
                if term > TERMS
                    || bound
                    || own
                    || nodes[voter].abstains > 0
                    || nodes[node].abstains > 0
                {
                    return None;
                }
                for index in [node, voter] {
                    nodes[index].term = term;
                    nodes[index].promised = Some(node as u8);
                    nodes[index].promise = promise;
                    nodes[index].stopped = [false; NODES];
                }
                let leader = &mut nodes[node];
                leader.acts = LEASE - ago;
                leader.leads = term;
                leader.know = [Know::Unknown; NODES];
                leader.may = [false; NODES];
            }
            Action::Promise { leader, voter, ago } => {
                let (l, v) = (nodes[leader], nodes[voter]);
                let bound = v.promise > 0 && v.promised != Some(leader as u8);
                if l.acts == 0 || v.term > l.leads || bound || v.abstains > 0 {
                    return None;
                }
                nodes[voter].term = l.leads;
                for index in [leader, voter] {
                    nodes[index].promised = Some(leader as u8);
                    nodes[index].promise = promise;
                }
                nodes[leader].acts = l.acts.max(LEASE - ago);
            }
            Action::Tell { leader, host } => {
                let term = nodes[leader].leads;
                if nodes[leader].acts == 0
                    || nodes[host].term > term
                    || nodes[leader].know[host] == Know::Known
                {
                    return None;
                }
                nodes[host].term = term;
                let granted =
                    nodes[host].granted && nodes[host].right > 0 && self.0 != Without::Accounts;
                nodes[leader].know[host] = Know::Known;
                nodes[leader].may[host] = granted;
            }
            Action::Evict {
                leader,
                witness,
                host,
            } => {
                let (l, w) = (nodes[leader], nodes[witness]);
                if l.acts == 0 || w.term > l.leads {
                    return None;
                }
                nodes[witness].term = l.leads;
                nodes[witness].stopped[host] = true;
                nodes[leader].stopped[host] = true;
            }
            Action::Evidence {
                leader,
                witness,
                host,
            } => {
                let (l, w) = (nodes[leader], nodes[witness]);
                let silent = |n: &Node| n.stopped[host] && n.ages[host] >= needed;
                if l.acts == 0 || !silent(&l) || !silent(&w) {
                    return None;
                }
                nodes[leader].know[host] = Know::Dead;
                nodes[leader].may[host] = false;
            }
            Action::Assign { leader, host } => {
                let l = nodes[leader];
                let free = (0..NODES).all(|x| x == host || !l.may[x]);
                let complete = l.know.iter().all(|know| *know != Know::Unknown);
                if l.acts == 0
                    || !complete
                    || !free
                    || l.know[host] != Know::Known
                    || nodes[host].right == 0
                {
                    return None;
                }
                nodes[leader].may[host] = true;
                nodes[host].order = Some(Order {
                    term: l.leads,
                    epoch: nodes[host].epoch,
                });
            }
            Action::Obey { host } => {
                let order = nodes[host].order.take()?;
                let node = &mut nodes[host];
                if order.term < node.term || order.epoch != node.epoch || node.right == 0 {
                    return Some(state);
                }
                node.granted = true;
            }
            Action::Restart { node } => {
                if state.restarts == RESTARTS {
                    return None;
                }
                state.restarts += 1;
                let old = nodes[node];
                nodes[node] = Node {
                    // Nothing is kept, and what was answered before is not known (R10, R11).
                    term: 0,
                    promised: None,
                    promise: 0,
                    abstains: if self.0 == Without::Abstention {
                        0
                    } else {
                        promise
                    },
                    right: 0,
                    epoch: old.epoch + 1,
                    granted: false,
                    ages: [0; NODES],
                    stopped: [false; NODES],
                    acts: 0,
                    leads: 0,
                    know: [Know::Unknown; NODES],
                    may: [false; NODES],
                    order: None,
                };
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("ADDR-1", |_, state: &State| {
                let serves = |node: &&Node| node.granted && node.right > 0;
                state.nodes.iter().filter(serves).count() <= 1
            }),
            Property::always("MEM-1", |_, state: &State| {
                state.nodes.iter().filter(|node| node.acts > 0).count() <= 1
            }),
            Property::sometimes("a second leader acts", |_, state: &State| {
                state
                    .nodes
                    .iter()
                    .any(|node| node.acts > 0 && node.leads == 2)
            }),
            Property::sometimes("the address is served", |_, state: &State| {
                state
                    .nodes
                    .iter()
                    .any(|node| node.granted && node.right > 0)
            }),
        ]
    }
}

fn check(without: Without, depth: usize) -> (usize, Vec<&'static str>) {
    let checker = Rules(without)
        .checker()
        .threads(2)
        .target_max_depth(depth)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let found = checker.discoveries().into_keys().collect();
    (checker.unique_state_count(), found)
}

/// States in a row that are looked at; `MODEL_DEPTH=N` for more.
fn depth() -> usize {
    let text = std::env::var("MODEL_DEPTH").unwrap_or_default();
    text.parse().unwrap_or(7)
}

#[test]
fn the_rules_keep_both_promises() {
    let (states, found) = check(Without::Nothing, depth());
    println!("{states} states to depth {}; {found:?}", depth());
    assert!(states > 1_000, "{states} states");
    assert!(!found.contains(&"ADDR-1"), "{found:?}");
    assert!(!found.contains(&"MEM-1"), "{found:?}");
    assert!(found.contains(&"a second leader acts"), "{found:?}");
}

#[test]
fn without_evidence_an_address_is_served_twice() {
    assert!(check(Without::Evidence, 7).1.contains(&"ADDR-1"));
}

#[test]
fn without_abstention_two_leaders_act() {
    assert!(check(Without::Abstention, 7).1.contains(&"MEM-1"));
}

#[test]
fn without_accounts_an_address_is_served_twice() {
    assert!(check(Without::Accounts, 8).1.contains(&"ADDR-1"));
}
