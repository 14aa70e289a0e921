//! What a node does with the leader's orders: R15, R16, and R6 for what it holds.
//!
//! An address that is on this node's interfaces from a former right has what was connected to it then
//! still connected. If nothing was given away meanwhile, sessions go on as if nothing had been (MEM-3).
//! But if this node was left out of the databases, its clients (Samba's processes) hold nothing any more
//! and may not know it: what they say must not get out with the new grant. Which of the two it was, the
//! databases know when they have been through a recovery in the new right. Until they say so the address
//! waits, [`PATIENCE`] at most; then what was connected ends, since nobody waits for databases that are
//! not served. Addresses of which nothing is here wait for nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ctdb_wire::ids::{BootTime, Epoch, NodeSet, OrderSeq, Term};
use ctdb_wire::peer::{Assign, HolderState};
use serde::{Deserialize, Serialize};

use crate::authority::Status;
use crate::planted::{Bug, Planted};

/// Work on addresses that the shell carries out, in order.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Work {
    /// Add, grant in the slot of this epoch, announce. Answered by [`Holder::taken`].
    Take {
        /// The epoch that was ordered for.
        epoch: Epoch,
        /// Its slot in the lease map.
        slot: u32,
        /// Addresses of the order that are not yet held.
        addresses: Vec<IpAddr>,
        /// They are here from a former right, and what was connected to them ends before the grant.
        end: bool,
    },
    /// Take the grant away, wait until no packet can be queued, answer by [`Holder::released`];
    /// then end connections and remove the address in the background.
    Release {
        /// All addresses that the order no more names.
        addresses: Vec<IpAddr>,
    },
    /// Addresses of an epoch that is over and that nobody asked for again: remove them. They
    /// are silent already.
    Discard {
        /// Those addresses.
        addresses: Vec<IpAddr>,
    },
}

/// An address waits so long for what the databases say of it; 100 ms less than a second, since time is
/// looked at that often.
pub const PATIENCE: Duration = Duration::from_millis(900);

/// What became of connections that are here from a former right.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Fate {
    /// Nothing was given away, or they are of no client of the databases.
    Kept,
    /// The databases were recovered without this node: its clients hold nothing any more.
    Lost,
}

/// State of one address on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Hold {
    /// Takeover under way for the named epoch, or waiting for the databases' word.
    Taking(Epoch),
    /// Granted in the current epoch.
    Held,
    /// Silenced; "done" is not yet sayable.
    Releasing,
}

/// The holder's state machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Holder {
    /// Orders of older terms are refused.
    term: Option<Term>,
    epoch: Epoch,
    slot: u32,
    has_right: bool,
    lapsed_at: Option<BootTime>,
    last_order: Option<(Term, OrderSeq)>,
    desired: BTreeSet<IpAddr>,
    holds: BTreeMap<IpAddr, Hold>,
    /// On an interface, but granted only in a slot that is dead.
    dormant: BTreeSet<IpAddr>,
    /// What was connected to them in a former right nobody has ended: since then they were neither
    /// taken, nor released, nor discarded.
    connected: BTreeSet<IpAddr>,
    /// Ordered, and waiting for the databases' word since then; a part of those being taken.
    asking: BTreeMap<IpAddr, BootTime>,
    failed: BTreeMap<IpAddr, String>,
    /// Releases that were asked for and have not reached silence yet. After a change of epoch
    /// an older one can still be under way when the next begins.
    releasing: BTreeMap<IpAddr, u32>,
    #[serde(skip)]
    planted: Planted,
}

impl Holder {
    /// A holder that holds nothing.
    pub fn new(planted: Planted) -> Self {
        Self {
            planted,
            ..Self::default()
        }
    }

    /// Follows the detector. True if the leader must be told.
    pub fn status(&mut self, status: &Status) -> bool {
        let mut tell = false;
        if let Some(leader) = status.leader
            && self.term.is_none_or(|term| term < leader)
        {
            self.term = Some(leader);
            tell = true;
        }
        let has_right = status.right_until.is_some();
        if status.epoch != self.epoch {
            // R6: a new epoch has no grants. What the old one granted is dead in its slot, and
            // was silent for 1.2·q before this epoch began.
            self.epoch = status.epoch;
            self.slot = status.slot;
            self.last_order = None;
            self.desired.clear();
            self.failed.clear();
            self.asking.clear();
            for (address, hold) in std::mem::take(&mut self.holds) {
                self.dormant.insert(address);
                if hold != Hold::Releasing {
                    self.connected.insert(address);
                }
            }
            tell = true;
        }
        if has_right != self.has_right {
            self.has_right = has_right;
            self.lapsed_at = if has_right { None } else { Some(status.now) };
            tell = true;
        }
        tell
    }

    /// Addresses have waited long enough for the databases. And a node that has been without right for
    /// long takes its addresses off its interfaces, so that local services notice.
    pub fn tick(&mut self, now: BootTime, give_up: Duration) -> Vec<Work> {
        let mut work = Vec::new();
        let patient = |since: &BootTime| now.since(*since) < PATIENCE;
        let late = self.asking.iter().filter(|(_, since)| !patient(since));
        let late: Vec<IpAddr> = late.map(|(address, _)| *address).collect();
        self.asking.retain(|_, since| patient(since));
        self.take(late, true, &mut work);
        let Some(since) = self.lapsed_at else {
            return work;
        };
        if now.since(since) < give_up {
            return work;
        }
        self.desired.clear();
        self.reconcile(now, &mut work);
        self.discard_dormant(&mut work);
        work
    }

    /// R15. Returns whether to answer with STATE.
    pub fn order(&mut self, now: BootTime, order: &Assign, work: &mut Vec<Work>) -> bool {
        if self.epoch.number == 0 {
            return false; // R3: silent, this life has no epoch yet.
        }
        if self.term.is_some_and(|term| order.term < term) && !self.planted.has(Bug::NoTermFence) {
            return false;
        }
        self.term = Some(self.term.map_or(order.term, |term| term.max(order.term)));
        if order.epoch != self.epoch && !self.planted.has(Bug::NoEpoch) || !self.has_right {
            return true; // Tells the leader the epoch that it should have named.
        }
        let number = (order.term, order.seq);
        let fenced = !self.planted.has(Bug::NoTermFence);
        if self
            .last_order
            .is_some_and(|last| number <= last && (fenced || number.1 <= last.1))
        {
            return true; // A repeat is answered without redoing it.
        }
        self.last_order = Some(number);
        self.desired = order.addresses.iter().copied().collect();
        self.failed.clear();
        self.reconcile(now, work);
        self.discard_dormant(work);
        true
    }

    /// Brings every address towards the order.
    fn reconcile(&mut self, now: BootTime, work: &mut Vec<Work>) {
        // What waits for the databases and is not wanted any more is as it was before the order.
        let unwanted = self.asking.keys().filter(|a| !self.desired.contains(*a));
        for address in unwanted.copied().collect::<Vec<_>>() {
            self.asking.remove(&address);
            self.holds.remove(&address);
            self.dormant.insert(address);
        }
        let release: Vec<IpAddr> = self
            .holds
            .iter()
            .filter(|(address, hold)| **hold == Hold::Held && !self.desired.contains(address))
            .map(|(address, _)| *address)
            .collect();
        for address in &release {
            self.holds.insert(*address, Hold::Releasing);
            *self.releasing.entry(*address).or_default() += 1;
        }
        let take: Vec<IpAddr> = self
            .desired
            .iter()
            .filter(|address| {
                !self.holds.contains_key(address) && !self.failed.contains_key(address)
            })
            .copied()
            .collect();
        let mut at_once = Vec::new();
        for address in take {
            self.holds.insert(address, Hold::Taking(self.epoch));
            self.dormant.remove(&address);
            if self.connected.contains(&address) && !self.planted.has(Bug::FormerTakenAtOnce) {
                self.asking.insert(address, now);
            } else {
                at_once.push(address);
            }
        }
        if !release.is_empty() {
            work.push(Work::Release { addresses: release });
        }
        self.take(at_once, false, work);
    }

    fn take(&self, addresses: Vec<IpAddr>, end: bool, work: &mut Vec<Work>) {
        if !addresses.is_empty() {
            work.push(Work::Take {
                epoch: self.epoch,
                slot: self.slot,
                addresses,
                end,
            });
        }
    }

    /// What the databases say of addresses that wait for it ([`Holder::asking`]) in the right of `epoch`.
    pub fn fates(&mut self, epoch: Epoch, fates: &[(IpAddr, Fate)], work: &mut Vec<Work>) {
        if epoch != self.epoch {
            return; // Of a right that is over: in the next it may be otherwise.
        }
        for (fate, end) in [(Fate::Kept, false), (Fate::Lost, true)] {
            let known = fates.iter().filter(|(_, what)| *what == fate);
            let known = known.filter(|(address, _)| self.asking.remove(address).is_some());
            let known = known.map(|(address, _)| *address).collect();
            self.take(known, end, work);
        }
    }

    /// The right, by its epoch and slot, and the addresses that wait for the databases' word. The shell
    /// looks after each step, and answers by [`Holder::fates`] as soon as it is known.
    pub fn asking(&self) -> (Epoch, u32, impl Iterator<Item = IpAddr>) {
        (self.epoch, self.slot, self.asking.keys().copied())
    }

    /// Lets go of everything without an order: a stopped or banned node that nobody can give
    /// orders to.
    pub fn let_go(&mut self, now: BootTime) -> Vec<Work> {
        let mut work = Vec::new();
        self.desired.clear();
        self.reconcile(now, &mut work);
        work
    }

    fn discard_dormant(&mut self, work: &mut Vec<Work>) {
        if !self.dormant.is_empty() {
            let addresses: Vec<IpAddr> = std::mem::take(&mut self.dormant).into_iter().collect();
            for address in &addresses {
                self.connected.remove(address);
            }
            work.push(Work::Discard { addresses });
        }
    }

    /// The shell finished a [`Work::Take`] of `epoch`.
    pub fn taken(
        &mut self,
        now: BootTime,
        epoch: Epoch,
        results: &[(IpAddr, Result<(), String>)],
        work: &mut Vec<Work>,
    ) {
        for (address, result) in results {
            if self.holds.get(address) != Some(&Hold::Taking(epoch)) {
                // Of an epoch that is over: granted in a dead slot.
                if result.is_ok() && !self.holds.contains_key(address) {
                    self.dormant.insert(*address);
                }
                continue;
            }
            match result {
                Ok(()) => {
                    self.holds.insert(*address, Hold::Held);
                    self.connected.remove(address);
                }
                Err(reason) => {
                    // It was undone; the leader takes it elsewhere.
                    self.holds.remove(address);
                    self.failed.insert(*address, reason.clone());
                }
            }
        }
        self.reconcile(now, work);
        if self.last_order.is_some() && self.has_right {
            self.discard_dormant(work);
        }
    }

    /// The shell silenced these and waited as R16 wants.
    pub fn released(&mut self, now: BootTime, addresses: &[IpAddr], work: &mut Vec<Work>) {
        for address in addresses {
            if let Some(count) = self.releasing.get_mut(address) {
                *count -= 1;
                if *count > 0 {
                    continue; // Of an epoch that is over; the newer one still runs.
                }
                self.releasing.remove(address);
            }
            if self.holds.get(address) == Some(&Hold::Releasing) {
                self.holds.remove(address);
            }
        }
        self.reconcile(now, work);
    }

    /// Whether this life may speak already (R3).
    pub fn speaks(&self) -> bool {
        self.epoch.number > 0
    }

    /// STATE (R16) for the leader of the newest term.
    pub fn state(&self) -> HolderState {
        let early = self.planted.has(Bug::DoneSaidEarly);
        HolderState {
            term: self.term,
            epoch: self.epoch,
            has_right: self.has_right,
            last_order: self.last_order,
            holds: self
                .holds
                .iter()
                .filter(|(_, hold)| !(early && **hold == Hold::Releasing))
                .map(|(address, _)| *address)
                .collect(),
            taking: self
                .holds
                .iter()
                .filter(|(_, hold)| matches!(hold, Hold::Taking(_)))
                .map(|(address, _)| *address)
                .collect(),
            failed: self
                .failed
                .iter()
                .map(|(a, reason)| (*a, reason.clone()))
                .collect(),
            lacks: NodeSet::EMPTY, // The coordinator knows.
        }
    }

    /// The last order that was accepted in this epoch.
    pub fn last_order(&self) -> Option<(Term, OrderSeq)> {
        self.last_order
    }

    /// The newest term that is accepted.
    pub fn term(&self) -> Option<Term> {
        self.term
    }

    /// Addresses whose grant is, or may still be, in the kernel.
    pub fn holds(&self) -> &BTreeMap<IpAddr, Hold> {
        &self.holds
    }
}

#[cfg(test)]
mod tests;
