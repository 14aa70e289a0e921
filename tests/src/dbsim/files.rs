//! A node's files and lives: locks, jobs, deaths and starts.

use ctdb_db::cluster::memory::MemoryStore;
use ctdb_db::cluster::rights::Views;
use ctdb_db::cluster::{
    Input, JobId, JobResult, Kind, Lineage, SEQNUM_KEY, StoreFault, Ticket, Work, verify,
};
use rand::Rng as _;

use super::world::{Event, US, World};

impl World {
    // ---- Locks of the file

    /// The lock on all records is had when the last holder of a chain is gone.
    pub fn maybe_frozen(&mut self, node: usize, side: usize) {
        let place = &mut self.nodes[node].sides[side];
        if !place.freezing || !place.holders.is_empty() {
            return;
        }
        place.store.frozen = true;
        if place.asked && !self.nodes[node].frozen {
            self.nodes[node].sides[side].asked = false;
            self.input(node, side, Input::Frozen);
        }
    }

    /// The guard of a daemon that is stopped in its tracks takes the locks in its place.
    pub fn guard_freezes(&mut self, node: usize) {
        if self.options.bug == Some(ctdb_db::cluster::planted::Bug::StaleOwnerWrites) {
            return;
        }
        for side in 0..self.kinds.len() {
            if !self.nodes[node].sides[side].freezing {
                self.nodes[node].sides[side].freezing = true;
                self.trace(|| format!("the guard of node {node} freezes db {side}"));
            }
        }
        self.end_holders(node);
        for side in 0..self.kinds.len() {
            self.maybe_frozen(node, side);
        }
    }

    /// A chain is free: the daemon's first wait for it, or for all of them after a thaw.
    pub fn wake_waits(&mut self, node: usize, side: usize, key: Option<&[u8]>) {
        let life = self.nodes[node].life;
        let tickets: Vec<Ticket> = self.nodes[node].sides[side]
            .waits
            .iter()
            .filter(|(_, waited)| key.is_none_or(|key| waited == key))
            .map(|(ticket, _)| *ticket)
            .collect();
        for ticket in tickets {
            let delay = self.rng.random_range(2..40) * US;
            self.after(
                delay,
                Event::Granted {
                    node,
                    life,
                    side,
                    ticket,
                },
            );
        }
    }

    pub fn grant(&mut self, node: usize, side: usize, ticket: Ticket) {
        let place = &mut self.nodes[node].sides[side];
        let Some(index) = place.waits.iter().position(|(other, _)| *other == ticket) else {
            return;
        };
        // Somebody was faster, or all is frozen: the wait goes on.
        let busy = place.holders.contains_key(&place.waits[index].1);
        if busy || place.freezing {
            return;
        }
        place.waits.remove(index);
        self.input(node, side, Input::Granted(ticket));
    }

    // ---- Jobs

    pub fn finish_job(&mut self, node: usize, side: usize, job: JobId) {
        let place = &mut self.nodes[node].sides[side];
        let Some((_, work)) = place.job.take_if(|(running, _)| *running == job) else {
            return;
        };
        let fails = self.now < self.nodes[node].disk_fails_until && self.rng.random_bool(0.3);
        let result = if fails && !matches!(work, Work::Sync) {
            JobResult::Failed(StoreFault("no space left on device".to_owned()))
        } else {
            self.do_job(node, side, work)
        };
        self.input(node, side, Input::Done { job, result });
    }

    /// What a job does to the file, all at once.
    pub fn do_job(&mut self, node: usize, side: usize, work: Work) -> JobResult {
        let place = &mut self.nodes[node].sides[side];
        match work {
            Work::Sync => JobResult::Ok,
            Work::Inspect => {
                place.replacing = None;
                let seq = place.store.records.get(SEQNUM_KEY);
                JobResult::Inspected {
                    lineage: place.lineage,
                    seq: seq.map_or(0, |(_, data)| ctdb_db::cluster::sequence_of(data)),
                    digest: place.store.digest(),
                }
            }
            Work::Apply { tx, base, changes } => {
                let records = &place.store.records;
                if let Err(conflict) = verify(base, &changes, |key| records.get(key).cloned()) {
                    self.trace(|| format!("node {node} db {side}: {tx:?}: {conflict}"));
                    return JobResult::Conflict(conflict);
                }
                for change in &changes {
                    place.store.put(change);
                }
                JobResult::Ok
            }
            Work::ReplaceBegin { .. } => {
                place.replacing = Some(Vec::new());
                JobResult::Ok
            }
            Work::ReplacePiece { records } => match &mut place.replacing {
                Some(all) => {
                    all.extend(records);
                    JobResult::Ok
                }
                None => JobResult::Failed(StoreFault("no replacement has begun".to_owned())),
            },
            Work::ReplaceCommit => match place.replacing.take() {
                Some(all) => {
                    place.store.records.clear();
                    for record in &all {
                        place.store.put(record);
                    }
                    JobResult::Ok
                }
                None => JobResult::Failed(StoreFault("no replacement has begun".to_owned())),
            },
            Work::Seal { lineage } => {
                place.lineage = lineage;
                JobResult::Ok
            }
        }
    }

    // ---- Lives

    /// The daemon dies, and its clients with it.
    pub fn crash(&mut self, node: usize) {
        if !self.nodes[node].up {
            return;
        }
        self.trace(|| format!("node {node} dies"));
        self.nodes[node].up = false;
        for side in 0..self.kinds.len() {
            // What the disk did at that moment is anybody's guess.
            if let Some((_, work)) = self.nodes[node].sides[side].job.take()
                && self.kinds[side] == Kind::Persistent
                && self.rng.random_bool(0.5)
            {
                self.do_job(node, side, work);
            }
            self.close_clients(node, side);
        }
        let host = &mut self.nodes[node];
        host.frozen = false;
        host.stalled.clear();
        host.right_until = host.right_until.min(self.now);
        for other in 0..self.nodes.len() {
            if other != node {
                self.break_link(node, other);
            }
        }
    }

    /// A daemon starts: volatile files are empty, persistent ones as they were.
    pub fn start(&mut self, node: usize) {
        if self.nodes[node].up {
            return;
        }
        let life = self.nodes[node].life + 1;
        self.trace(|| format!("node {node} starts its life {life}"));
        for side in 0..self.kinds.len() {
            let (database, leader) = self.machines(node, side);
            let kind = self.kinds[side];
            let place = &mut self.nodes[node].sides[side];
            place.database = database;
            place.leader = leader;
            if kind != Kind::Persistent {
                place.store = MemoryStore::default();
                place.lineage = Lineage::NONE;
            }
            place.store.frozen = false;
            place.replacing = None;
            place.freezing = false;
            place.asked = false;
            place.holders.clear();
            place.store.locked.clear();
            place.waits.clear();
            place.job = None;
            place.wake = None;
        }
        let rights = self.rights();
        let host = &mut self.nodes[node];
        host.views = Views::default();
        host.rights = rights;
        host.up = true;
        host.life = life;
        host.told_right = true;
        host.evicted = false;
        host.right_until = 0;
        for side in 0..self.kinds.len() {
            self.set_up(node, side);
        }
        for other in 0..self.nodes.len() {
            if other != node {
                self.break_link(node, other);
            }
        }
        self.revive_clients(node);
    }

    /// A daemon that was stopped in its tracks goes on.
    pub fn resume(&mut self, node: usize) {
        if !self.nodes[node].frozen {
            return;
        }
        self.trace(|| format!("node {node} goes on"));
        self.nodes[node].frozen = false;
        // The first thing that a daemon does is to look at its right.
        let ended = self.now >= self.nodes[node].right_until;
        if ended && self.nodes[node].told_right {
            self.nodes[node].told_right = false;
            self.all_sides(node, || Input::RightLost);
        }
        for event in std::mem::take(&mut self.nodes[node].stalled) {
            self.event(event);
        }
        for side in 0..self.kinds.len() {
            self.maybe_frozen(node, side);
        }
    }
}
