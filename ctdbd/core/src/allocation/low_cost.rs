//! LCP2, the default: `spec/cluster.md` 3.6.3. Addresses of one subnet are spread over all
//! nodes, since what is near in number is used together.
//!
//! The cost of each address on each node is kept and only its column changes when an address
//! comes or goes: A addresses on n nodes take about A² + A·n per decision instead of A²·n.

use std::cmp::Reverse;

use ctdb_wire::ids::{MAX_NODES, NodeSet, Pnn};

use super::counting::moved;
use super::{Reason, Work};

/// The cost where an address cannot be. Real ones are below 2^14 · 2^13.
const NEVER: u32 = u32::MAX;

/// Square of the length of the common prefix.
fn nearness(a: u128, b: u128) -> u32 {
    let bits = (a ^ b).leading_zeros();
    bits * bits
}

struct Costs {
    /// Number of columns: the highest node that can host anything, plus one.
    nodes: usize,
    /// cost(ip, n) for each address and node, or [`NEVER`].
    rows: Vec<u32>,
    /// imbalance(n).
    imbalance: [u64; MAX_NODES],
}

impl Costs {
    fn new(work: &Work) -> Self {
        let all = work.can.iter().fold(0, |all, can| all | can.0);
        let nodes = (u64::BITS - all.leading_zeros()) as usize;
        let mut rows = vec![NEVER; nodes * work.len()];
        for (row, can) in rows.chunks_exact_mut(nodes.max(1)).zip(&work.can) {
            for pnn in can.iter() {
                row[pnn.index()] = 0;
            }
        }
        let mut costs = Self {
            nodes,
            rows,
            imbalance: [0; MAX_NODES],
        };
        let owned = work.owner.iter().enumerate();
        for (at, pnn) in owned.filter_map(|(at, owner)| Some((at, (*owner)?))) {
            // Counts each pair once: the later one's cost with the earlier ones.
            costs.imbalance[pnn.index()] += u64::from(costs.get(at, pnn));
            costs.add(&work.value, at, pnn);
        }
        costs
    }

    fn get(&self, at: usize, pnn: Pnn) -> u32 {
        self.rows[at * self.nodes + pnn.index()]
    }

    fn row(&self, at: usize) -> &[u32] {
        &self.rows[at * self.nodes..][..self.nodes]
    }

    /// The cheapest node for an address; the lowest number wins a tie.
    fn cheapest(&self, at: usize) -> (u32, usize) {
        let mut best = (NEVER, 0);
        for (node, cost) in self.rows[at * self.nodes..][..self.nodes]
            .iter()
            .enumerate()
        {
            if *cost < best.0 {
                best = (*cost, node);
                if *cost == 0 {
                    break;
                }
            }
        }
        best
    }

    /// An address comes to a node: all others cost more there.
    fn add(&mut self, values: &[u128], at: usize, pnn: Pnn) {
        self.column(values, at, pnn, |cost, nearness| *cost += nearness);
    }

    /// An address leaves a node.
    fn remove(&mut self, values: &[u128], at: usize, pnn: Pnn) {
        self.column(values, at, pnn, |cost, nearness| *cost -= nearness);
    }

    fn column(&mut self, values: &[u128], at: usize, pnn: Pnn, change: impl Fn(&mut u32, u32)) {
        let value = values[at];
        let costs = self.rows.iter_mut().skip(pnn.index()).step_by(self.nodes);
        for (other, (cost, other_value)) in costs.zip(values).enumerate() {
            if other != at && *cost != NEVER {
                change(cost, nearness(value, *other_value));
            }
        }
    }
}

/// Algorithm 2.
pub(super) fn low_cost(work: &mut Work, no_failback: bool, forced: NodeSet) {
    let mut costs = Costs::new(work);
    if costs.nodes == 0 {
        return; // Nobody can host anything.
    }
    let mut targets = forced;
    let loads = work.loads();
    for pnn in (0..costs.nodes as u32).filter_map(|number| Pnn::new(number).ok()) {
        if loads[pnn.index()] == 0 {
            targets.insert(pnn);
        }
    }
    place(work, &mut costs);
    if !no_failback && !targets.is_empty() {
        rebalance(work, &mut costs, targets);
    }
}

/// Step 2: while something is unassigned, the cheapest pair of address and node.
fn place(work: &mut Work, costs: &mut Costs) {
    // (address, its cheapest node), in the order of the list.
    let mut open: Vec<(usize, (u32, usize))> = (0..work.len())
        .filter(|at| work.owner[*at].is_none() && !work.can[*at].is_empty())
        .map(|at| (at, costs.cheapest(at)))
        .collect();
    while !open.is_empty() {
        // The first of the cheapest.
        let mut first = 0;
        for (slot, (_, (cost, _))) in open.iter().enumerate() {
            if *cost < open[first].1.0 {
                first = slot;
            }
        }
        let (at, (cost, node)) = open.remove(first);
        // A column's number is a node's.
        let Ok(pnn) = Pnn::new(node as u32) else {
            continue;
        };
        work.assign(at, pnn, Reason::LowestCost { cost: cost.into() });
        costs.imbalance[node] += u64::from(cost);
        costs.add(&work.value, at, pnn);
        // Costs only grow here, so that others keep their cheapest node.
        for (other, best) in &mut open {
            if best.1 == node {
                *best = costs.cheapest(*other);
            }
        }
    }
}

/// Step 4: moves towards the targets, from the least balanced nodes, as long as they help.
fn rebalance(work: &mut Work, costs: &mut Costs, targets: NodeSet) {
    let mut on: Vec<Vec<usize>> = vec![Vec::new(); costs.nodes];
    for (at, owner) in work.owner.iter().enumerate() {
        if let Some(pnn) = owner {
            on[pnn.index()].push(at);
        }
    }
    // Each move makes the sum of all imbalances smaller, so that there is an end anyway; this
    // bounds the work.
    for _ in 0..work.len() * costs.nodes {
        let Some(Move { at, from, to }) = best_move(costs, targets, &on) else {
            return;
        };
        costs.imbalance[from.index()] -= u64::from(costs.get(at, from));
        costs.imbalance[to.index()] += u64::from(costs.get(at, to));
        costs.remove(&work.value, at, from);
        costs.add(&work.value, at, to);
        on[from.index()].retain(|other| *other != at);
        let place = on[to.index()].partition_point(|other| *other < at);
        on[to.index()].insert(place, at);
        work.assign(at, to, moved(work.reason[at], from));
    }
}

struct Move {
    at: usize,
    from: Pnn,
    to: Pnn,
}

fn best_move(costs: &Costs, targets: NodeSet, on: &[Vec<usize>]) -> Option<Move> {
    let mut sources: Vec<Pnn> = (0..costs.nodes as u32)
        .filter_map(|number| Pnn::new(number).ok())
        .collect();
    sources.sort_by_key(|pnn| Reverse(costs.imbalance[pnn.index()]));
    for from in sources {
        let before = costs.imbalance[from.index()];
        if before == 0 {
            return None;
        }
        // Imbalance of each target; where even an address without cost would not help, and on
        // what is no target, more than any.
        let mut useful = [u64::MAX; MAX_NODES];
        for to in targets.iter().filter(|to| *to != from) {
            let imbalance = costs.imbalance[to.index()];
            if imbalance < before {
                useful[to.index()] = imbalance;
            }
        }
        if useful.iter().all(|imbalance| *imbalance == u64::MAX) {
            continue;
        }
        let mut best: Option<(u64, Move)> = None;
        for &at in &on[from.index()] {
            let row = costs.row(at);
            let gain = row[from.index()];
            // The best target of this address: what it would be like there afterwards.
            let mut least = (before, from.index());
            for (node, cost) in row.iter().enumerate() {
                let after = useful[node].saturating_add(u64::from(*cost));
                if *cost < gain && after < least.0 {
                    least = (after, node);
                }
            }
            let (after, node) = least;
            let sum = before - u64::from(gain) + after;
            if node != from.index()
                && best.as_ref().is_none_or(|(least, _)| sum < *least)
                && let Ok(to) = Pnn::new(node as u32)
            {
                best = Some((sum, Move { at, from, to }));
            }
        }
        if let Some((_, found)) = best {
            return Some(found);
        }
    }
    None
}
