//! Which events run beside each other and which wait (`spec/cluster.md` 4.3).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ctdb_wire::ids::BootTime;
use serde::{Deserialize, Serialize};

use super::{Asker, Effect, Event, recoveries};

/// Address events that run at a time.
pub const PARALLEL: usize = 8;
/// Events that wait; more are refused. A node can be given every address at once.
pub const MAX_WAITING: usize = 2 * ctdb_wire::ids::MAX_ADDRESSES;
/// An event that has waited this many of its limits is given up.
pub const PATIENCE: u32 = 10;

/// Begin and end of a takeover run.
pub(super) const BEGIN: &str = "startipreallocate";
pub(super) const END: &str = "ipreallocated";

/// Number of a run of scripts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct RunId(pub u64);

/// An event that is to run.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) asker: Asker,
    pub(super) event: Event,
    pub(super) limit: Option<Duration>,
    pub(super) all: bool,
}

impl Order {
    /// Of a recovery: nothing that moves addresses waits for it.
    fn is_of_recovery(&self) -> bool {
        [recoveries::BEGIN, recoveries::END].contains(&self.event.name.as_str())
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Queue {
    last: u64,
    running: BTreeMap<RunId, Order>,
    waiting: VecDeque<(BootTime, Order)>,
}

impl Queue {
    /// Puts it at the end; gives it back at the bound.
    pub(super) fn push(&mut self, now: BootTime, order: Order) -> Result<(), Order> {
        if self.waiting.len() >= MAX_WAITING {
            return Err(order);
        }
        self.waiting.push_back((now, order));
        Ok(())
    }

    /// Whether a takeover run of which no script has heard yet goes on with the placement that has
    /// come: its `startipreallocate` waits; where none is needed (not `moves`), its `ipreallocated`. The
    /// latter is taken back, to come behind what follows.
    pub(super) fn reopen(&mut self, moves: bool) -> bool {
        let last = |name: &str| {
            let own = |(_, order): &(BootTime, Order)| {
                order.asker == Asker::Own && order.event.name == name
            };
            self.waiting.iter().rposition(own)
        };
        let (begin, end) = (last(BEGIN), last(END));
        let joined = begin.is_some() || (end.is_some() && !moves);
        if let Some(end) = end.filter(|end| joined && begin.is_none_or(|begin| begin < *end)) {
            self.waiting.remove(end);
        }
        joined
    }

    /// Nothing runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Nothing runs but what belongs to moves of addresses.
    pub(super) fn only_addresses_move(&self) -> bool {
        self.running.values().all(|order| {
            order.event.of_address().is_some() || [BEGIN, END].contains(&order.event.name.as_str())
        })
    }

    /// Starts one without waiting.
    pub(super) fn begin(&mut self, _now: BootTime, order: Order, out: &mut Vec<Effect>) -> RunId {
        self.last += 1;
        let run = RunId(self.last);
        out.push(Effect::Run {
            run,
            event: order.event.clone(),
            limit: order.limit,
            all: order.all,
        });
        self.running.insert(run, order);
        run
    }

    /// Its end is not waited for.
    pub(super) fn forget(&mut self, run: RunId) {
        self.running.remove(&run);
    }

    pub(super) fn ended(&mut self, run: RunId) -> Option<Order> {
        self.running.remove(&run)
    }

    /// Those that waited too long.
    pub(super) fn expire(&mut self, now: BootTime) -> Vec<Order> {
        let late = |(since, order): &(BootTime, Order)| {
            order
                .limit
                .is_some_and(|limit| now.since(*since) >= limit * PATIENCE)
        };
        if !self.waiting.iter().any(late) {
            return Vec::new();
        }
        let (late, stay) = self.waiting.drain(..).partition(late);
        self.waiting = stay;
        late.into_iter()
            .map(|(_, order): (BootTime, Order)| order)
            .collect()
    }

    pub(super) fn drop_running(&mut self) -> Vec<(RunId, Order)> {
        std::mem::take(&mut self.running).into_iter().collect()
    }

    pub(super) fn drop_waiting(&mut self) -> Vec<Order> {
        self.waiting.drain(..).map(|(_, order)| order).collect()
    }

    /// Starts what may start. The first that may not holds up everything behind it, with three
    /// exceptions, so that no address waits for the scripts of another one: address events of other
    /// addresses pass; so does `startipreallocate`, which runs beside address events of earlier
    /// moves; and an `ipreallocated` that waits for address events is passed by both. None of these
    /// waits for the events of a recovery, which run beside them.
    pub(super) fn start(&mut self, now: BootTime, recovering: bool, out: &mut Vec<Effect>) {
        let mut held: Vec<String> = Vec::new();
        let mut at = 0;
        while let Some((_, order)) = self.waiting.get(at) {
            let address = order.event.of_address().map(str::to_owned);
            let moves = || {
                self.running
                    .values()
                    .filter(|other| !other.is_of_recovery())
            };
            let mut running = moves().map(|other| other.event.of_address());
            let may = match (&address, order.event.name.as_str()) {
                (None, BEGIN) => running.all(|other| other.is_some()),
                (None, END) => running.next().is_none() && at == 0,
                (None, _) => self.running.is_empty() && at == 0,
                (Some(address), _) => {
                    running.all(|other| other.is_some_and(|one| one != address))
                        && moves().count() < PARALLEL
                        && !held.contains(address)
                }
            };
            let passed = order.event.name == END;
            let moving = moves().count();
            if may && (!recovering || order.event.during_recovery()) {
                if let Some((_, order)) = self.waiting.remove(at) {
                    self.begin(now, order, out);
                }
                continue;
            }
            match address {
                // Those of other addresses may pass it, within what is looked at in one step.
                Some(address) if held.len() < PARALLEL && moving < PARALLEL => {
                    held.push(address);
                }
                None if passed => {}
                _ => return,
            }
            at += 1;
        }
    }
}
