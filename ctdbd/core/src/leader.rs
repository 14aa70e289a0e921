//! The leader's books: who may hold what, and the orders that follow from it. R15, R17, R18.

pub mod credits;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ctdb_wire::ids::{BootTime, Epoch, NodeSet, OrderSeq, Pnn, Term};
use ctdb_wire::peer::{Assign, HolderState, Placement};
use serde::{Deserialize, Serialize};

use crate::allocation::{self, AddressState, Policy, Problem};
use crate::authority::{List, Status};
use crate::planted::{Bug, Planted};
use credits::{Credit, Credits};

/// An order that was not echoed is repeated after this.
const REPEAT: Duration = Duration::from_millis(200);
/// A node that could not take an address is not asked again for this long.
const RETRY_FAILED: Duration = Duration::from_secs(5);
/// Nor for this long if nobody else can take it either.
const RETRY_ALONE: Duration = Duration::from_millis(500);
/// A node whose right has ended keeps its addresses allotted for this long: if it has one again
/// by then nothing moves (MEM-3).
const RIGHT_RETURNS: Duration = Duration::from_millis(250);
/// A host that does not talk over its link for this long is evicted, if that holds up others.
const TALKS: Duration = Duration::from_secs(2);

/// A host that is heard, but cannot be a member of the databases for this long (no link, or no right),
/// is evicted, if they wait for it. The link had time for one whole attempt at its longest by then:
/// a pause of 1 s, 1 s to connect, 2 s for the handshake (`transport`), and 1 s for the first frames.
const SERVES: Duration = Duration::from_secs(5);

/// What the leader knows of a host (R18).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Know {
    /// Has not answered in this term and is not proved dead.
    Unknown,
    /// Holds nothing and has no right, by evidence.
    Dead,
    /// Has answered in this term.
    Known,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Order {
    seq: OrderSeq,
    set: BTreeSet<IpAddr>,
    sent_at: BootTime,
    echoed: bool,
}

/// A takeover that a node could not do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Failure {
    at: BootTime,
    /// The order that it was part of.
    order: Option<(Term, OrderSeq)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Host {
    know: Know,
    epoch: Epoch,
    /// When this epoch became known here; older evidence says nothing about it (R13).
    learned_at: BootTime,
    has_right: bool,
    /// When it was seen to have none any more.
    right_ended_at: Option<BootTime>,
    /// Since when its silence on the link holds up others.
    missed_since: Option<BootTime>,
    /// Since when databases wait for it.
    awaited_since: Option<BootTime>,
    /// It did not answer an order for long, and has answered none since: it is given nothing.
    deaf: bool,
    /// may(X) of R17.
    may: BTreeSet<IpAddr>,
    /// What the last STATE reported as completely taken.
    active: BTreeSet<IpAddr>,
    order: Option<Order>,
}

impl Host {
    /// The epoch that it held anything in is over (R17): by a newer one, or by evidence.
    fn lapse(&mut self) {
        self.may.clear();
        self.active.clear();
        self.order = None;
    }

    fn set_right(&mut self, now: BootTime, has_right: bool) {
        if self.has_right && !has_right {
            self.right_ended_at = Some(now);
        }
        self.has_right = has_right;
    }

    fn unknown() -> Self {
        Self {
            know: Know::Unknown,
            epoch: Epoch::default(),
            learned_at: BootTime::ZERO,
            has_right: false,
            right_ended_at: None,
            missed_since: None,
            awaited_since: None,
            deaf: false,
            may: BTreeSet::new(),
            active: BTreeSet::new(),
            order: None,
        }
    }
}

/// What allocation needs of the cluster, made by the coordinator from what nodes say of
/// themselves.
#[derive(Clone, Debug, Default)]
pub struct Situation {
    /// For each address: who could host it, right aside.
    pub able: BTreeMap<IpAddr, NodeSet>,
    /// Nodes whose link is up.
    pub linked: NodeSet,
    /// Nodes that are fit to host addresses, whatever these are.
    pub fit: NodeSet,
    /// Members of the databases that cannot be served now, so that these wait.
    pub awaited: NodeSet,
    /// Number of entries of the nodes list, deleted ones included.
    pub list_length: usize,
    /// Tunables of the leader's node.
    pub policy: Policy,
    /// `home_nodes` file.
    pub home_nodes: BTreeMap<IpAddr, Pnn>,
    /// `[failover] disabled`.
    pub disabled: bool,
}

/// The books of one term.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Leader {
    term: Term,
    hosts: BTreeMap<Pnn, Host>,
    next_seq: u64,
    /// Where each address shall be.
    target: BTreeMap<IpAddr, Pnn>,
    /// Allocation has to be computed anew.
    dirty: bool,
    /// Forced rebalance targets of the next run.
    rebalance: NodeSet,
    /// Wishes of the operator, until the next step.
    moves: BTreeMap<IpAddr, Pnn>,
    /// Since when fewer nodes obey than a quorum.
    lonely_since: Option<BootTime>,
    failed: BTreeMap<(Pnn, IpAddr), Failure>,
    credits: Credits,
    shown: BTreeMap<IpAddr, Option<Pnn>>,
    shown_version: u64,
    /// A takeover run is to be told of even if nothing moves (`spec/cluster.md` 3.2).
    run_due: bool,
    /// [`Situation::fit`] of the step before.
    fit: Option<NodeSet>,
    last_inputs: Option<BTreeMap<IpAddr, NodeSet>>,
    /// Of the step before.
    now: BootTime,
    voters: NodeSet,
    /// A quorum has said whom it answered lately, nodes outside of the list included (R25).
    surveyed: bool,
    /// So many hosts must obey.
    quorum: usize,
    #[serde(skip)]
    planted: Planted,
}

impl Leader {
    /// A new term: every host is unknown (R18).
    pub fn new(term: Term, hosts: NodeSet, quorum: usize, planted: Planted) -> Self {
        Self {
            term,
            hosts: hosts.iter().map(|pnn| (pnn, Host::unknown())).collect(),
            next_seq: 1,
            target: BTreeMap::new(),
            dirty: true,
            rebalance: NodeSet::EMPTY,
            moves: BTreeMap::new(),
            lonely_since: None,
            failed: BTreeMap::new(),
            credits: Credits::default(),
            shown: BTreeMap::new(),
            shown_version: 0,
            run_due: false,
            fit: None,
            last_inputs: None,
            now: BootTime::ZERO,
            voters: hosts,
            surveyed: false,
            quorum,
            planted,
        }
    }

    /// The term.
    pub fn term(&self) -> Term {
        self.term
    }

    /// R16, R17: a host's STATE.
    pub fn state(&mut self, now: BootTime, from: Pnn, state: &HolderState) {
        if state.term != Some(self.term) {
            return; // Of another term: it will say so again when it has heard of this one.
        }
        let term = self.term;
        let Some(host) = self.hosts.get_mut(&from) else {
            return;
        };
        let holds: BTreeSet<IpAddr> = state.holds.iter().copied().collect();
        let first = host.know != Know::Known;
        let learned = host.epoch != state.epoch || first;
        if learned {
            let late = match host.know {
                Know::Unknown => false,
                // What evidence has ended does not come back (R2).
                Know::Dead => state.epoch.number <= host.epoch.number,
                Know::Known => state.epoch.number < host.epoch.number,
            };
            if late && host.epoch.incarnation == state.epoch.incarnation {
                return;
            }
            host.know = Know::Known;
            host.epoch = state.epoch;
            host.learned_at = now;
            host.may.clone_from(&holds);
            host.order = None;
            self.dirty = true;
        } else {
            let echo = host
                .order
                .as_mut()
                .filter(|order| state.last_order == Some((term, order.seq)));
            if let Some(order) = echo {
                order.echoed = true;
                host.missed_since = None;
                host.deaf = false;
                host.may.clone_from(&holds);
            } else {
                host.may.extend(&holds);
            }
        }
        if host.has_right != state.has_right {
            host.set_right(now, state.has_right);
            self.dirty = true;
        }
        let taking: BTreeSet<IpAddr> = state.taking.iter().copied().collect();
        host.active = holds.difference(&taking).copied().collect();
        for address in &holds {
            if self.planted.has(Bug::HoldsNotAccounted) {
                host.may.clear();
                break;
            }
            // What a host brings along stays where it is unless allocation says otherwise; what
            // it still holds while it lets go does not become its target again.
            if learned {
                self.target.entry(*address).or_insert(from);
            }
        }
        let mut failed = None;
        for (address, why) in &state.failed {
            // Every STATE until the next order repeats it.
            let known = self
                .failed
                .get(&(from, *address))
                .is_some_and(|failure| failure.order == state.last_order);
            if !known {
                let failure = Failure {
                    at: now,
                    order: state.last_order,
                };
                self.failed.insert((from, *address), failure);
                failed.get_or_insert_with(|| format!("takeover of {address} failed: {why}"));
                if self.target.get(address) == Some(&from) {
                    self.target.remove(address);
                }
                self.dirty = true;
            }
        }
        // One for each order that it could not carry out.
        if let Some(why) = failed {
            self.credits.blame(now, from, why);
        }
    }

    /// What stands against the nodes.
    pub fn credits(&self) -> &Credits {
        &self.credits
    }

    /// A node that has failed too often and whose work others can do: to be banned, and why.
    pub fn convict(&mut self, now: BootTime, situation: &Situation) -> Option<(Pnn, Credit)> {
        let bans = situation.policy.bans;
        self.credits.forgive(now, bans.grace);
        let pnn = self.credits.reached(credits::limit(self.voters.len()))?;
        let others = |able: &NodeSet| {
            able.iter().any(|other| {
                other != pnn
                    && situation.linked.contains(other)
                    && self.credits.of(other).is_none()
                    && self
                        .hosts
                        .get(&other)
                        .is_some_and(|host| host.know == Know::Known && host.has_right)
            })
        };
        // A node that alone could serve an address is not taken out of the cluster.
        if !bans.enabled || !situation.able.values().all(others) {
            return None;
        }
        self.credits.settle(pnn).map(|credit| (pnn, credit))
    }

    /// R24, R25: a new node is unknown; one that is removed stays until it is known to have no
    /// right.
    pub fn reload(&mut self, list: List) {
        let voters = list.voters;
        self.voters = voters;
        self.quorum = list.quorum;
        self.surveyed = false;
        for pnn in voters.iter() {
            self.hosts.entry(pnn).or_insert_with(Host::unknown);
        }
        self.dirty = true;
    }

    fn follow_list(&mut self, status: &Status) {
        let (voters, strangers) = (self.voters, status.list.strangers);
        self.surveyed = status.list.voters == voters && status.list.surveyed;
        for pnn in strangers.iter() {
            self.hosts.entry(pnn).or_insert_with(Host::unknown);
        }
        if self.surveyed {
            // Nobody of a quorum has answered the others for L + m.
            let before = self.hosts.len();
            self.hosts
                .retain(|pnn, _| voters.contains(*pnn) || strangers.contains(*pnn));
            self.dirty |= self.hosts.len() != before;
        }
    }

    /// R12: hosts that the detector proved to have no right; R17: those that have shown a newer
    /// epoch than the one that their STATE spoke of.
    pub fn evidence(&mut self, now: BootTime, status: &Status) {
        self.follow_list(status);
        for (pnn, host) in &mut self.hosts {
            let peer = &status.peers[pnn.index()];
            if host.know == Know::Known
                && host.epoch.incarnation == peer.incarnation
                && host.epoch.number < peer.epoch
            {
                // It refuses older terms since its STATE, so nobody else gave it anything.
                host.lapse();
                host.epoch.number = peer.epoch;
                host.learned_at = now;
                host.set_right(now, false);
                self.dirty = true;
            }
            let Some(sent_at) = peer.evidence else {
                continue;
            };
            let over = peer.evidence_epoch;
            let covered = match host.know {
                Know::Dead => false,
                Know::Unknown => true,
                // R13: the epoch was known when the heartbeat was sent, to the detector or here.
                Know::Known => {
                    host.epoch.incarnation == over.incarnation && host.epoch.number <= over.number
                        || host.learned_at < sent_at
                }
            };
            if covered {
                host.lapse();
                host.know = Know::Dead;
                if host.epoch.incarnation != over.incarnation || host.epoch.number < over.number {
                    host.epoch = over;
                }
                host.has_right = false;
                host.right_ended_at = None;
                self.dirty = true;
            }
        }
    }

    /// Hosts that hold up others and do not talk over their link, or do not serve, although the
    /// detector may well hear them: to be evicted, so that evidence decides (R14, R18).
    pub fn unaccounted(&self, now: BootTime) -> NodeSet {
        let over = |since: Option<BootTime>, limit| since.is_some_and(|at| now.since(at) > limit);
        self.hosts
            .iter()
            .filter(|(_, host)| over(host.missed_since, TALKS) || over(host.awaited_since, SERVES))
            .map(|(pnn, _)| *pnn)
            .collect()
    }

    /// Whether too few nodes have obeyed for long: what is heard by datagrams
    /// keeps the promises running, but nobody gets the orders. Another one may do better.
    pub fn lonely(&self, now: BootTime) -> bool {
        self.lonely_since
            .is_some_and(|since| now.since(since) > TALKS)
    }

    fn watch_silence(&mut self, now: BootTime, situation: &Situation) {
        let usable = |(pnn, host): &(&Pnn, &Host)| {
            host.has_right && !host.deaf && situation.linked.contains(**pnn)
        };
        if self.hosts.iter().filter(usable).count() >= self.quorum {
            self.lonely_since = None;
        } else {
            self.lonely_since.get_or_insert(now);
        }
        let target = &self.target;
        for (pnn, host) in &mut self.hosts {
            let holds_up = match host.know {
                Know::Dead => false,
                Know::Unknown => true,
                Know::Known => {
                    host.order.as_ref().is_some_and(|order| !order.echoed)
                        || !situation.linked.contains(*pnn)
                            && host
                                .may
                                .iter()
                                .any(|address| target.get(address) != Some(pnn))
                }
            };
            if holds_up {
                let since = *host.missed_since.get_or_insert(now);
                if now.since(since) > TALKS && !host.deaf {
                    host.deaf = true;
                    self.dirty = true;
                }
            } else {
                host.missed_since = None;
            }
            if host.know == Know::Known && situation.awaited.contains(*pnn) {
                host.awaited_since.get_or_insert(now);
            } else {
                host.awaited_since = None;
            }
        }
    }

    /// Allocation is to be computed at the next step, with forced targets.
    pub fn reallocate(&mut self, rebalance: NodeSet) {
        self.rebalance.0 |= rebalance.0;
        self.dirty = true;
    }

    /// The next placement is told of even if it is that of before, once all orders are carried out.
    pub fn run(&mut self) {
        self.run_due = true;
    }

    /// The operator's wish; not sticky (`spec/cluster.md` 3.7). Without effect if `to` cannot
    /// host it at the next step.
    pub fn move_address(&mut self, address: IpAddr, to: Pnn) {
        self.failed.remove(&(to, address));
        self.moves.insert(address, to);
    }

    /// Whether no host is unknown, so that addresses that nobody holds may be assigned.
    pub fn complete(&self) -> bool {
        self.planted.has(Bug::SilenceIsExpiry)
            || self.surveyed && self.hosts.values().all(|host| host.know != Know::Unknown)
    }

    fn allocate(&mut self, situation: &Situation) {
        let states = self.address_states(situation);
        let problem = Problem {
            nodes: situation.list_length,
            addresses: &states,
            policy: situation.policy,
            home_nodes: &situation.home_nodes,
            rebalance: self.rebalance,
        };
        let plan = allocation::allocate(&problem);
        self.target = plan
            .assignments
            .iter()
            .filter_map(|assignment| assignment.to.map(|to| (assignment.address, to)))
            .collect();
        self.rebalance = NodeSet::EMPTY;
        self.dirty = false;
    }

    /// The addresses as allocation wants them, also for `ctdb ip plan`.
    pub fn address_states(&self, situation: &Situation) -> Vec<AddressState> {
        let available = self.available(situation);
        available
            .iter()
            .map(|(address, nodes)| AddressState {
                address: *address,
                current: self.target.get(address).copied(),
                available: *nodes,
            })
            .collect()
    }

    /// Who could host each address now, with a right.
    fn available(&self, situation: &Situation) -> BTreeMap<IpAddr, NodeSet> {
        let mut available = BTreeMap::new();
        for (address, able) in &situation.able {
            let nodes: NodeSet = able
                .iter()
                .filter(|pnn| {
                    self.hosts.get(pnn).is_some_and(|host| {
                        let returns = host
                            .right_ended_at
                            .is_some_and(|since| self.now.since(since) < RIGHT_RETURNS);
                        host.know == Know::Known
                            && !host.deaf
                            && (host.has_right || returns)
                            && (situation.linked.contains(*pnn) || host.may.contains(address))
                    })
                })
                .collect();
            let failed = |pnn: &Pnn| self.failed.get(&(*pnn, *address));
            let fit: NodeSet = nodes.iter().filter(|pnn| failed(pnn).is_none()).collect();
            let again = |pnn: &Pnn| {
                failed(pnn).is_some_and(|failure| self.now.since(failure.at) >= RETRY_ALONE)
            };
            let fit = if fit.is_empty() {
                nodes.iter().filter(again).collect()
            } else {
                fit
            };
            available.insert(*address, fit);
        }
        available
    }

    /// One step: what to send now. Call only while this node acts (R7).
    pub fn drive(&mut self, now: BootTime, situation: &Situation) -> Vec<(Pnn, Assign)> {
        self.now = now;
        // A node can host addresses again, or no more.
        self.run_due |= self
            .fit
            .replace(situation.fit)
            .is_some_and(|before| before != situation.fit);
        let before = self.failed.len();
        self.failed
            .retain(|_, failure| now.since(failure.at) < RETRY_FAILED);
        if self.failed.len() != before {
            self.dirty = true;
        }
        if self.complete() && !situation.disabled {
            let inputs = self.available(situation);
            if self.last_inputs.as_ref() != Some(&inputs) {
                self.last_inputs = Some(inputs);
                self.dirty = true;
            }
            if self.dirty {
                self.allocate(situation);
            }
            for (address, to) in std::mem::take(&mut self.moves) {
                let able = self
                    .last_inputs
                    .as_ref()
                    .and_then(|inputs| inputs.get(&address));
                if able.is_some_and(|able| able.contains(to)) {
                    self.target.insert(address, to);
                }
            }
        }
        self.watch_silence(now, situation);
        let wanted: Vec<(Pnn, BTreeSet<IpAddr>)> = self
            .hosts
            .iter()
            .filter(|(pnn, host)| {
                host.know == Know::Known && host.has_right && situation.linked.contains(**pnn)
            })
            .map(|(pnn, _)| (*pnn, self.wanted(*pnn)))
            .collect();
        let mut orders = Vec::new();
        for (pnn, set) in wanted {
            let seq = OrderSeq(self.next_seq);
            let Some(host) = self.hosts.get_mut(&pnn) else {
                continue;
            };
            match &mut host.order {
                Some(order) if order.set == set => {
                    if order.echoed || now.since(order.sent_at) < REPEAT {
                        continue;
                    }
                    order.sent_at = now; // R15: a repeat has the same number.
                }
                _ => {
                    self.next_seq += 1;
                    host.may.extend(&set); // R17: from the moment it is ordered.
                    host.order = Some(Order {
                        seq,
                        set,
                        sent_at: now,
                        echoed: false,
                    });
                }
            }
            if let Some(order) = &host.order {
                orders.push((
                    pnn,
                    Assign {
                        term: self.term,
                        seq: order.seq,
                        epoch: host.epoch,
                        addresses: order.set.iter().copied().collect(),
                    },
                ));
            }
        }
        orders
    }

    /// What `pnn` shall host: its targets that nobody else may hold (R17), and while a host is
    /// unknown nothing that it does not hold already (R18).
    fn wanted(&self, pnn: Pnn) -> BTreeSet<IpAddr> {
        let Some(host) = self.hosts.get(&pnn) else {
            return BTreeSet::new();
        };
        if !self.complete() {
            // What two may hold is no rule's doing (a clock stood still): neither keeps it.
            let twice = |address: &&IpAddr| {
                let mut others = self.hosts.iter().filter(|(other, _)| **other != pnn);
                others.any(|(_, other)| other.may.contains(*address))
            };
            let kept = host.may.iter().filter(|address| !twice(address));
            return kept.copied().collect();
        }
        self.target
            .iter()
            .filter(|(address, to)| {
                **to == pnn
                    && (self.planted.has(Bug::GrantBeforeDone)
                        || !self
                            .hosts
                            .iter()
                            .any(|(other, host)| *other != pnn && host.may.contains(*address)))
            })
            .map(|(address, _)| *address)
            .collect()
    }

    /// Whether every order was carried out.
    pub fn settled(&self) -> bool {
        self.complete()
            && !self.dirty
            && self
                .hosts
                .values()
                .filter(|host| host.know == Know::Known)
                .all(|host| {
                    host.order.as_ref().is_none_or(|order| {
                        order.echoed && order.set == host.active && order.set == host.may
                    })
                })
            && self.target.iter().all(|(address, to)| {
                self.hosts
                    .get(to)
                    .is_some_and(|host| host.active.contains(address))
            })
    }

    /// The placement to show, if it has changed or a run that moved nothing is to be told of.
    pub fn placement(&mut self, situation: &Situation) -> Option<Placement> {
        let owners: BTreeMap<IpAddr, Option<Pnn>> = situation
            .able
            .keys()
            .map(|address| {
                let mut owners = self
                    .hosts
                    .iter()
                    .filter(|(_, host)| host.may.contains(address));
                let owner = match (owners.next(), owners.next()) {
                    (Some((pnn, host)), None) if host.active.contains(address) => Some(*pnn),
                    _ => None,
                };
                (*address, owner)
            })
            .collect();
        let run = self.run_due && (situation.disabled || self.settled());
        if self.shown == owners && self.shown_version > 0 && !run {
            return None;
        }
        self.run_due = false;
        self.shown = owners;
        self.shown_version += 1;
        Some(self.last_placement())
    }

    /// The placement that was shown last.
    pub fn last_placement(&self) -> Placement {
        Placement {
            term: self.term,
            version: self.shown_version,
            owners: self
                .shown
                .iter()
                .map(|(address, owner)| (*address, *owner))
                .collect(),
        }
    }

    /// What is known of each host, for `ctdb cluster leader` and `ctdb ip why`.
    pub fn hosts(&self) -> impl Iterator<Item = (Pnn, Know, usize)> {
        self.hosts
            .iter()
            .map(|(pnn, host)| (*pnn, host.know, host.may.len()))
    }

    /// What is known of each host's right: how, the newest epoch, and whether it says that it has one.
    pub fn standing(&self) -> impl Iterator<Item = (Pnn, Know, Epoch, bool)> {
        self.hosts
            .iter()
            .map(|(pnn, host)| (*pnn, host.know, host.epoch, host.has_right))
    }

    /// Who serves an address: the one node that may hold it and has it completely.
    pub fn serves(&self, address: IpAddr) -> Option<Pnn> {
        let mut may = self
            .hosts
            .iter()
            .filter(|(_, host)| host.may.contains(&address));
        match (may.next(), may.next()) {
            (Some((pnn, host)), None) if host.active.contains(&address) => Some(*pnn),
            _ => None,
        }
    }

    /// Why a node is not asked to take an address just now, although it could.
    pub fn refusal(&self, pnn: Pnn, address: IpAddr) -> Option<&'static str> {
        let host = self.hosts.get(&pnn)?;
        match host.know {
            Know::Unknown => Some("it has not answered this leader"),
            Know::Dead => Some("its right has ended"),
            Know::Known if !host.has_right => Some("it has no right to serve"),
            Know::Known if self.failed.contains_key(&(pnn, address)) => {
                Some("its last takeover failed; it is asked again in some seconds")
            }
            Know::Known => None,
        }
    }

    /// Whether no other host has answered this term.
    pub fn is_alone(&self) -> bool {
        let known =
            |(pnn, host): (&Pnn, &Host)| *pnn != self.term.leader && host.know == Know::Known;
        !self.hosts.iter().any(known)
    }

    /// Where an address shall be, and who may still hold it.
    pub fn whereabouts(&self, address: IpAddr) -> (Option<Pnn>, NodeSet) {
        let may = self
            .hosts
            .iter()
            .filter(|(_, host)| host.may.contains(&address))
            .map(|(pnn, _)| *pnn)
            .collect();
        (self.target.get(&address).copied(), may)
    }

    /// Why a node is not asked to take an address for now.
    pub fn failure(&self, pnn: Pnn, address: IpAddr) -> bool {
        self.failed.contains_key(&(pnn, address))
    }
}

#[cfg(test)]
mod tests;
