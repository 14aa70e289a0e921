//! What the leading node does for one database: it takes it through its recoveries (E).
//!
//! A recovery begins when the members change, when a member asks for one, and when a node begins to
//! lead. Its steps are repeated until all members have done them; there is no vote and no ban in
//! here. Members refuse the steps of older recoveries, so a leader that was replaced does nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use ctdb_wire::ids::{BootTime, Incarnation, NodeSet, Pnn, Term};

use super::message::{Body, Copy, Lineage, Message, Report};
use super::planted::{Bug, Planted};
use super::types::{Effect, Generation, Kind};
use crate::record::DbId;

/// A step that was not answered is sent again after this.
const RESEND: Duration = Duration::from_secs(1);

/// Without any answer for this long a recovery begins anew (`RecoverTimeout`).
const STALL: Duration = Duration::from_secs(30);

/// A recovery that failed is tried again after this.
const RETRY: Duration = Duration::from_millis(100);

/// Records of all nodes together that one slice of an exchange has, about: bounds the memory of a
/// location master to some 16 MB, whatever the size of the database.
const SLICE_RECORDS: u64 = 128 * 1024;

/// The cluster as the leader sees it. Whoever gives it vouches that a node that is in neither list
/// cannot change its records any more (DATA-5): its right has ended and is not renewed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct View {
    /// The term in which this node leads.
    pub term: Term,
    /// Counts the views of this leader's daemon ([`Views`](super::rights::Views)).
    pub number: u64,
    /// Active nodes, with the lives of their daemons.
    pub members: BTreeMap<Pnn, Incarnation>,
    /// Nodes that leave in order (stopped, banned) and can still give what they have.
    pub donors: NodeSet,
    /// Nodes in neither list that count for the authority now and have databases: they only tell and
    /// write down lineages, so that a later partition knows what it misses.
    pub witnesses: NodeSet,
    /// Location masters: members with that capability, ascending; all members if none has it.
    pub lmasters: Vec<Pnn>,
    /// Every set of nodes that can have served without the members and donors shares with them a
    /// node that wrote its lineage down. With `majority`, and databases on all voters: always. With
    /// voters that have none: if (members and donors) + (quorum - voters without databases) is more
    /// than the nodes with databases. With `lock`: only if the lock was had before its last holder
    /// could have left anybody out. Decides about writes to persistent databases whose lineage names
    /// absent nodes (DATA-2); when in doubt it is false.
    pub complete: bool,
}

/// How far the recovery is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Progress {
    /// This node does not lead.
    Idle,
    /// Waits for these nodes, in the step of that name.
    Step(&'static str, NodeSet),
    /// Nothing can be done until a node with a readable copy is there.
    NoHealthyCopy,
    /// Done. `writable` is false if the newest lineage is missing.
    Done {
        /// Transactions are taken.
        writable: bool,
    },
}

#[derive(Clone, PartialEq, Debug)]
enum Step {
    Idle,
    Retry(BootTime),
    Freeze,
    Exchange { slice: u32 },
    Provide { source: Pnn },
    Seal,
    Thaw,
    Done,
}

/// The leader's side of one database.
#[derive(Debug)]
pub struct Leader {
    db: DbId,
    name: String,
    kind: Kind,
    planted: Planted,
    view: Option<View>,
    generation: Generation,
    step: Step,
    waiting: NodeSet,
    moved_at: BootTime,
    sent_at: BootTime,
    reports: BTreeMap<Pnn, Report>,
    slices: u32,
    valid: NodeSet,
    chosen: Option<Copy>,
    targets: Vec<(Pnn, bool)>,
    writable: bool,
    /// The operator decided to go on without the newest lineage.
    adopt: bool,
    /// The lineage that this leader, in this term, saw into service.
    served: Option<Generation>,
}

impl Leader {
    /// For a database.
    pub fn new(db: DbId, name: String, kind: Kind, planted: Planted) -> Self {
        Self {
            db,
            name,
            kind,
            planted,
            view: None,
            generation: Generation::NONE,
            step: Step::Idle,
            waiting: NodeSet::EMPTY,
            moved_at: BootTime::ZERO,
            sent_at: BootTime::ZERO,
            reports: BTreeMap::new(),
            slices: 1,
            valid: NodeSet::EMPTY,
            chosen: None,
            targets: Vec::new(),
            writable: false,
            adopt: false,
            served: None,
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let name = match self.step {
            Step::Idle => return Progress::Idle,
            Step::Done => {
                return Progress::Done {
                    writable: self.writable,
                };
            }
            Step::Retry(_) if self.no_healthy_copy() => return Progress::NoHealthyCopy,
            Step::Retry(_) => "retry",
            Step::Freeze => "freeze",
            Step::Exchange { .. } => "exchange",
            Step::Provide { .. } => "copy",
            Step::Seal => "lineage",
            Step::Thaw => "thaw",
        };
        Progress::Step(name, self.waiting)
    }

    /// The generation of the recovery at hand, or of the last one.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The cluster has changed, or this node leads now; `None`: it does not lead any more.
    pub fn view(&mut self, now: BootTime, mut view: Option<View>, out: &mut Vec<Effect>) {
        if let Some(view) = &mut view {
            // A member keeps what it has.
            for member in view.members.keys() {
                view.donors.remove(*member);
                view.witnesses.remove(*member);
            }
        }
        if view == self.view {
            return;
        }
        let term = |view: &Option<View>| view.as_ref().map(|view| view.term);
        if term(&view) != term(&self.view) {
            self.served = None;
        }
        let same = match (&view, &self.view) {
            (Some(new), Some(old)) => {
                new.term == old.term && new.members == old.members && new.lmasters == old.lmasters
            }
            _ => false,
        };
        let done = matches!(self.step, Step::Done | Step::Thaw);
        let no_matter = match (&view, &self.view) {
            // Who gave what it had may go; who only watches may come and go when the lineage is
            // written down, and does not matter where there is none.
            (Some(new), Some(old)) if same => {
                let donors =
                    new.donors == old.donors || (self.step == Step::Done && new.donors.is_empty());
                let witnesses =
                    new.witnesses == old.witnesses || done || self.kind == Kind::Volatile;
                donors && witnesses
            }
            _ => false,
        };
        self.view = view;
        if self.view.is_none() {
            self.step = Step::Idle;
        } else if !no_matter {
            self.start(now, out);
        } else if let Some(view) = &self.view
            && self.step == Step::Done
        {
            // Nothing is to be done; but who is waited for may be gone now.
            let body = self.thaw(view);
            self.send_to(self.members(), &body, out);
        }
    }

    /// The operator decides that the copies that are here count as the newest (DATA-2).
    pub fn adopt(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        self.adopt = true;
        if self.view.is_some() {
            self.start(now, out);
        }
    }

    /// When [`Self::tick`] is due.
    pub fn next_wake(&self) -> Option<BootTime> {
        match self.step {
            Step::Idle | Step::Done => None,
            Step::Retry(at) => Some(at),
            _ => Some((self.sent_at + RESEND).min(self.moved_at + STALL)),
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        match self.step {
            Step::Idle | Step::Done => {}
            Step::Retry(at) if now < at => {}
            Step::Retry(_) => self.start(now, out),
            _ if now.since(self.moved_at) >= STALL => self.start(now, out),
            _ if now.since(self.sent_at) >= RESEND => self.send_step(now, out),
            _ => {}
        }
    }

    /// A message for the leader.
    pub fn peer(&mut self, now: BootTime, from: Pnn, message: Message, out: &mut Vec<Effect>) {
        let Some(view) = &self.view else { return };
        if let Body::Newer(newer) = message.body {
            if newer.term == view.term && newer > self.generation {
                self.generation.seq = newer.seq;
                self.start(now, out);
            } else if newer.term > view.term {
                // Somebody else leads. This node will hear of it.
                self.step = Step::Idle;
            }
            return;
        }
        if message.generation != self.generation {
            return;
        }
        let member = view.members.contains_key(&from);
        match (message.body, &self.step) {
            (Body::WantRecovery, Step::Idle | Step::Retry(_)) => {}
            (Body::WantRecovery, _) if member => self.retry(now),
            (Body::Stopped(report), Step::Freeze) => self.stopped(now, from, *report, out),
            (Body::Settled { slice }, Step::Exchange { slice: current }) if slice == *current => {
                let next = slice + 1;
                let step = if next < self.slices {
                    Step::Exchange { slice: next }
                } else {
                    Step::Thaw
                };
                self.step_done(now, from, step, out);
            }
            (Body::Provided { ok: true }, Step::Provide { source }) if from == *source => {
                self.copied(now, out);
            }
            (Body::Sealed { ok: true }, Step::Seal) => {
                self.step_done(now, from, Step::Thaw, out);
            }
            (Body::Provided { ok: false }, Step::Provide { .. })
            | (Body::Sealed { ok: false }, Step::Seal) => self.retry(now),
            (Body::Thawed, Step::Thaw) => {
                self.step_done(now, from, Step::Done, out);
                if self.step == Step::Done && self.writable {
                    self.served = Some(self.generation);
                    self.adopt = false;
                }
            }
            _ => {}
        }
    }

    fn stopped(&mut self, now: BootTime, from: Pnn, report: Report, out: &mut Vec<Effect>) {
        if self.answered(now, from) {
            self.reports.insert(from, report);
            if self.waiting.is_empty() {
                self.all_stopped(now, out);
            }
        }
    }

    /// A node has done the step; the last one begins the next.
    fn step_done(&mut self, now: BootTime, from: Pnn, next: Step, out: &mut Vec<Effect>) {
        if self.answered(now, from) && self.waiting.is_empty() {
            self.go(now, next, out);
        }
    }

    fn answered(&mut self, now: BootTime, from: Pnn) -> bool {
        self.moved_at = now;
        self.waiting.remove(from)
    }

    fn members(&self) -> NodeSet {
        self.view
            .iter()
            .flat_map(|view| view.members.keys().copied())
            .collect()
    }

    fn sources(&self) -> NodeSet {
        let donors = self.view.as_ref().map_or(0, |view| view.donors.0);
        NodeSet(self.members().0 | donors)
    }

    /// All that know something of lineages.
    fn all(&self) -> NodeSet {
        let witnesses = self.view.as_ref().map_or(0, |view| view.witnesses.0);
        NodeSet(self.sources().0 | witnesses)
    }

    fn retry(&mut self, now: BootTime) {
        self.step = Step::Retry(now + RETRY);
        self.waiting = NodeSet::EMPTY;
    }

    fn start(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let Some(view) = &self.view else { return };
        let seq = if self.generation.term == view.term {
            self.generation.seq + 1
        } else {
            1
        };
        self.generation = Generation {
            term: view.term,
            seq,
        };
        self.reports.clear();
        self.chosen = None;
        self.targets.clear();
        self.go(now, Step::Freeze, out);
    }

    /// Begins a step.
    fn go(&mut self, now: BootTime, step: Step, out: &mut Vec<Effect>) {
        self.waiting = match &step {
            Step::Freeze if self.kind != Kind::Volatile => self.all(),
            Step::Freeze | Step::Exchange { .. } => self.sources(),
            Step::Provide { source } => [*source].into_iter().collect(),
            Step::Seal => self.all(),
            Step::Thaw => self.members(),
            Step::Idle | Step::Retry(_) | Step::Done => NodeSet::EMPTY,
        };
        self.step = step;
        self.moved_at = now;
        self.send_step(now, out);
    }

    /// Sends the step's message to all that have not done it.
    fn send_step(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let Some(view) = &self.view else { return };
        self.sent_at = now;
        let members = self.members();
        let body = match &self.step {
            Step::Idle | Step::Retry(_) | Step::Done => return,
            Step::Freeze => Body::Freeze {
                name: self.name.clone(),
                kind: self.kind,
                view: view.number,
                may: self.sources(),
            },
            Step::Exchange { slice } => Body::Exchange {
                slice: *slice,
                slices: self.slices,
                members,
                donors: view.donors,
                valid: self.valid,
                lmasters: view.lmasters.clone(),
            },
            Step::Provide { .. } => Body::Provide {
                targets: self.targets.clone(),
            },
            Step::Seal => Body::Seal {
                lineage: Lineage {
                    epoch: self.generation,
                    members,
                    content: self.generation,
                },
            },
            Step::Thaw => self.thaw(view),
        };
        self.send_to(self.waiting, &body, out);
    }

    fn send_to(&self, nodes: NodeSet, body: &Body, out: &mut Vec<Effect>) {
        for to in nodes.iter() {
            let message = Message {
                db: self.db,
                generation: self.generation,
                body: body.clone(),
            };
            out.push(Effect::Send { to, message });
        }
    }

    fn thaw(&self, view: &View) -> Body {
        let chosen = self.chosen.as_ref();
        Body::Thaw {
            view: view.number,
            may: self.sources(),
            members: self.members(),
            lmasters: view.lmasters.clone(),
            writable: self.writable,
            history: chosen.map_or_else(Vec::new, |copy| copy.history.clone()),
            since: chosen
                .and_then(|copy| copy.since)
                .unwrap_or(self.generation),
        }
    }

    fn all_stopped(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        if self.kind == Kind::Volatile {
            self.choose_valid();
            self.go(now, Step::Exchange { slice: 0 }, out);
        } else {
            self.choose_copy(now, out);
        }
    }

    /// Whose volatile records count: those of the nodes that were in the newest generation. Who was
    /// away while it was served has records that others may have changed since.
    fn choose_valid(&mut self) {
        let usable = || self.reports.iter().filter(|(_, report)| report.valid);
        let newest = usable()
            .map(|(_, report)| report.committed)
            .max()
            .unwrap_or(Generation::NONE);
        let valid = usable()
            .filter(|(_, report)| report.committed == newest || report.settled == newest)
            .map(|(node, _)| *node)
            .collect();
        let records: u64 = self.reports.values().map(|report| report.records).sum();
        self.valid = valid;
        self.slices = records.div_ceil(SLICE_RECORDS).clamp(1, 1 << 16) as u32;
        self.writable = true;
    }

    fn no_healthy_copy(&self) -> bool {
        self.kind != Kind::Volatile && !self.reports.is_empty() && self.chosen.is_none()
    }

    /// The copy to keep: the one that took part in the newest lineage, then with the highest sequence
    /// number; then the one that most have, then that of the lowest node.
    fn choose_copy(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let known: BTreeMap<Pnn, Copy> = self
            .reports
            .iter()
            .filter_map(|(node, report)| Some((*node, report.copy.clone()?)))
            .collect();
        // The newest lineage that anybody knows of, also those that only wrote it down.
        let newest = known
            .values()
            .map(|copy| copy.lineage)
            .max_by_key(|lineage| lineage.epoch)
            .unwrap_or(Lineage::NONE);
        let sources = self.sources();
        let copies: BTreeMap<Pnn, Copy> = known
            .into_iter()
            .filter(|(node, _)| sources.contains(*node))
            .collect();
        let planted = self.planted.has(Bug::LineageIgnored);
        let votes = |digest| copies.values().filter(|copy| copy.digest == digest).count();
        let best = copies
            .iter()
            .filter(|(_, copy)| copy.healthy)
            .max_by_key(|(node, copy)| {
                let content = if planted {
                    Generation::NONE
                } else {
                    copy.lineage.content
                };
                let reverse = std::cmp::Reverse(**node);
                (content, copy.seq, votes(copy.digest), reverse)
            });
        let Some((source, best)) = best else {
            self.retry(now + RESEND);
            return;
        };
        let took_part: NodeSet = copies
            .iter()
            .filter(|(_, copy)| copy.healthy && copy.lineage.content == newest.epoch)
            .map(|(node, _)| *node)
            .collect();
        let absent = newest.members.0 & !took_part.0;
        // A copy that cannot be read may be the newest: it is not replaced by an older one.
        let doubt = copies.values().any(|copy| {
            let unknown = copy.lineage == Lineage::NONE && (absent != 0 || newest == Lineage::NONE);
            !copy.healthy && (copy.lineage.content > best.lineage.content || unknown)
        });
        if doubt && !self.adopt {
            self.retry(now + RESEND);
            return;
        }
        let complete = self.view.as_ref().is_some_and(|view| view.complete);
        let served = self.served == Some(newest.epoch);
        self.writable = absent == 0
            || (best.lineage.content == newest.epoch && (complete || served))
            || self.adopt
            || planted
            || self.kind == Kind::Replicated;
        let members = self.members();
        self.targets = copies
            .iter()
            .filter(|(node, copy)| {
                members.contains(**node) && (!copy.healthy || copy.digest != best.digest)
            })
            .map(|(node, copy)| (*node, copy.healthy && copy.seq >= best.seq))
            .collect();
        let source = *source;
        self.chosen = Some(best.clone());
        if self.targets.is_empty() {
            self.copied(now, out);
        } else {
            self.go(now, Step::Provide { source }, out);
        }
    }

    /// All members have the same content.
    fn copied(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        let step = if self.writable {
            Step::Seal
        } else {
            Step::Thaw
        };
        self.go(now, step, out);
    }
}

#[cfg(test)]
mod tests;
