//! The two algorithms that count addresses: `spec/cluster.md` 3.6.1 and 3.6.2.

use ctdb_wire::ids::{MAX_NODES, NodeSet, Pnn};

use super::{Problem, Reason, Work};

/// The node of `can` with the smallest load; the lowest number wins a tie.
fn find(can: NodeSet, loads: &[usize; MAX_NODES]) -> Option<Pnn> {
    can.iter().min_by_key(|pnn| loads[pnn.index()])
}

fn place_the_rest(work: &mut Work, loads: &mut [usize; MAX_NODES]) {
    for at in 0..work.len() {
        if work.owner[at].is_some() {
            continue;
        }
        if let Some(pnn) = find(work.can[at], loads) {
            let load = &mut loads[pnn.index()];
            work.assign(at, pnn, Reason::FewestAddresses { load: *load });
            *load += 1;
        }
    }
}

/// Algorithm 0: the place in the list decides, or the home node; what cannot be there goes where
/// the fewest are. Keeps no memory.
pub(super) fn deterministic(work: &mut Work, problem: &Problem<'_>) {
    let nodes = problem.nodes;
    for at in 0..work.len() {
        let address = problem.addresses[work.index[at]].address;
        let home = problem
            .home_nodes
            .get(&address)
            .filter(|pnn| pnn.index() < nodes);
        let (pnn, reason) = if let Some(home) = home {
            (Some(*home), Reason::Home)
        } else {
            let place = at
                .checked_rem(nodes)
                .and_then(|place| Pnn::new(place as u32).ok());
            (place, Reason::Place { index: at, nodes })
        };
        work.owner[at] = None;
        if let Some(pnn) = pnn.filter(|pnn| work.can[at].contains(*pnn)) {
            work.assign(at, pnn, reason);
        }
    }
    let mut loads = work.loads();
    place_the_rest(work, &mut loads);
}

/// Algorithm 1: what is hosted stays, the rest goes where the fewest are; then numbers are
/// evened out.
pub(super) fn non_deterministic(work: &mut Work, no_failback: bool) {
    let mut loads = work.loads();
    place_the_rest(work, &mut loads);
    if no_failback {
        return;
    }
    // Each move makes the sum of the squares of the loads smaller, so that there is an end
    // anyway.
    for _ in 0..work.len() + 5 {
        if !even_out(work, &mut loads) {
            return;
        }
    }
}

/// One move from a node with too many addresses to one with fewer.
///
/// CTDB takes the first address of the fuller node, wherever that one can go, and may so move
/// nothing. Here addresses that cannot leave it are passed over.
fn even_out(work: &mut Work, loads: &mut [usize; MAX_NODES]) -> bool {
    let mut stuck = NodeSet::EMPTY;
    for at in 0..work.len() {
        let can = work.can[at];
        if work.owner[at].is_none() {
            continue;
        }
        // Of several fullest nodes the first.
        let fullest = can
            .iter()
            .max_by_key(|pnn| (loads[pnn.index()], std::cmp::Reverse(*pnn)));
        let (Some(fullest), Some(emptiest)) = (fullest, find(can, loads)) else {
            continue;
        };
        if loads[fullest.index()] <= loads[emptiest.index()] + 1 || stuck.contains(fullest) {
            continue;
        }
        for other in 0..work.len() {
            if work.owner[other] != Some(fullest) {
                continue;
            }
            if let Some(to) = find(work.can[other], loads)
                && loads[to.index()] + 1 < loads[fullest.index()]
            {
                loads[fullest.index()] -= 1;
                loads[to.index()] += 1;
                let reason = moved(work.reason[other], fullest);
                work.assign(other, to, reason);
                return true;
            }
        }
        stuck.insert(fullest);
    }
    false
}

/// The reason of an address that is moved: an address that came from nowhere in this run keeps
/// what placed it, one that moves twice its first node.
pub(super) fn moved(before: Reason, from: Pnn) -> Reason {
    match before {
        Reason::Stays => Reason::Rebalanced { from },
        other => other,
    }
}
