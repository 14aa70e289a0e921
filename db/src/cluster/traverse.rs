//! All records of a database for a client (D.14), and the file's change counter (D.15).

use std::collections::BTreeMap;

use ctdb_wire::ids::{BootTime, NodeSet, Pnn};

use super::database::{Cx, Database, Outcome};
use super::message::{Body, PIECE, Record};
use super::park::Deferred;
use super::planted::Bug;
use super::store::{Cursor, Store};
use super::types::{ClientId, Effect, Kind, Note, earlier};

/// Records that one step looks at.
const BUDGET: usize = 256;

/// Most traverses of this node's clients, and most that this node does for all, at a time.
const MAX_TRAVERSES: usize = 256;

/// Traverses under way.
#[derive(Debug, Default)]
pub(super) struct Traverses {
    mine: BTreeMap<u64, Mine>,
    scans: Vec<Scan>,
}

#[derive(Debug)]
struct Mine {
    client: ClientId,
    reqid: u32,
    empty: bool,
    waiting: NodeSet,
    until: BootTime,
}

#[derive(Debug)]
struct Scan {
    to: Pnn,
    id: u64,
    empty: bool,
    cursor: Cursor,
    /// The last piece was taken: the next one may go. One piece of each scan is under way.
    go: bool,
}

impl Traverses {
    pub(super) fn next_wake(&self) -> Option<BootTime> {
        let scan = self.scans.iter().any(|scan| scan.go);
        earlier(
            scan.then_some(BootTime::ZERO),
            self.mine.values().map(|mine| mine.until).min(),
        )
    }

    pub(super) fn stop(&mut self, from: Pnn, id: u64) {
        self.scans.retain(|scan| scan.to != from || scan.id != id);
    }
}

impl Database {
    /// A client wants all records: of a volatile database from their owners, else from here.
    pub(super) fn traverse<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        client: ClientId,
        reqid: u32,
        empty: bool,
    ) -> Outcome {
        if !self.serving() {
            self.wait(cx, Deferred::Traverse(client, reqid, empty));
            return Ok(());
        }
        if self.traverses.mine.len() >= MAX_TRAVERSES {
            cx.out
                .push(Effect::Note(Note::Bound("traverses of clients")));
            cx.out.push(Effect::Traversed {
                client,
                reqid,
                records: Vec::new(),
                end: true,
            });
            return Ok(());
        }
        let me = self.config.me;
        let id = self.number();
        let here = self.config.planted.has(Bug::TraverseHere);
        let waiting = if self.config.kind == Kind::Volatile && !here {
            self.members
        } else {
            [me].into_iter().collect()
        };
        self.traverses.mine.insert(
            id,
            Mine {
                client,
                reqid,
                empty,
                waiting,
                until: cx.now + self.config.tunables.traverse_timeout,
            },
        );
        for node in waiting.iter().filter(|node| *node != me) {
            self.send(cx, node, Body::Traverse { id, empty });
        }
        self.traverse_for(me, id, empty);
        self.traverse_step(cx)
    }

    /// A node wants this one's records.
    pub(super) fn traverse_for(&mut self, to: Pnn, id: u64, empty: bool) {
        // Beyond the bound the originator's time-out ends it.
        if self.traverses.scans.len() < MAX_TRAVERSES {
            self.traverses.scans.push(Scan {
                to,
                id,
                empty,
                cursor: Cursor::default(),
                go: true,
            });
        }
    }

    /// The next piece of each scan whose last piece was taken.
    pub(super) fn traverse_step<S: Store>(&mut self, cx: &mut Cx<'_, S>) -> Outcome {
        self.traverse_timeouts(cx);
        if !self.serving() {
            return Ok(());
        }
        let volatile = self.config.kind == Kind::Volatile;
        let me = self.config.me;
        let mut scans = std::mem::take(&mut self.traverses.scans);
        let mut outcome = Ok(());
        scans.retain_mut(|scan| {
            if !scan.go || outcome.is_err() {
                return true;
            }
            let mut records = Vec::new();
            let mut size = 0;
            let mut end = false;
            while !end && size < PIECE {
                let before = scan.cursor;
                let piece = cx
                    .store
                    .scan(&mut scan.cursor, BUDGET, &mut |key, header, data| {
                        let owned = !volatile || header.dmaster == me.get();
                        if owned && (scan.empty || !data.is_empty()) {
                            let record = Record::new(key, header, data);
                            size += record.size();
                            records.push(record);
                        }
                    });
                match piece {
                    Ok(last) => end = last,
                    Err(fault) => {
                        outcome = Err(fault);
                        return false;
                    }
                }
                let stuck = scan.cursor == before;
                if !end && (stuck || scan.to == me && records.is_empty()) {
                    // A chain is busy, or there is nothing to pace this by: leave the thread to others.
                    break;
                }
            }
            let id = scan.id;
            scan.go = scan.to == me;
            if scan.to == me {
                self.traversed(cx, me, id, records, end);
            } else {
                self.send(cx, scan.to, Body::Traversed { id, records, end });
            }
            !end
        });
        scans.append(&mut self.traverses.scans);
        self.traverses.scans = scans;
        outcome
    }

    /// Records of a node for a client's traverse.
    pub(super) fn traversed<S>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        id: u64,
        records: Vec<Record>,
        end: bool,
    ) {
        let Some(mine) = self.traverses.mine.get_mut(&id) else {
            if from != self.config.me {
                self.send(cx, from, Body::TraverseStop { id });
            }
            return;
        };
        if end {
            mine.waiting.remove(from);
        }
        let last = mine.waiting.is_empty();
        cx.out.push(Effect::Traversed {
            client: mine.client,
            reqid: mine.reqid,
            records,
            end: last,
        });
        if last {
            self.traverses.mine.remove(&id);
        } else if !end && from != self.config.me {
            self.send(cx, from, Body::TraverseMore { id });
        }
    }

    /// The originator took a piece.
    pub(super) fn traverse_more<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        id: u64,
    ) -> Outcome {
        for scan in &mut self.traverses.scans {
            if scan.to == from && scan.id == id {
                scan.go = true;
            }
        }
        self.traverse_step(cx)
    }

    fn traverse_timeouts<S>(&mut self, cx: &mut Cx<'_, S>) {
        let late: Vec<u64> = self
            .traverses
            .mine
            .iter()
            .filter(|(_, mine)| mine.until <= cx.now)
            .map(|(id, _)| *id)
            .collect();
        for id in late {
            self.end_traverse(cx, id, true);
        }
    }

    fn end_traverse<S>(&mut self, cx: &mut Cx<'_, S>, id: u64, tell: bool) {
        let Some(mine) = self.traverses.mine.remove(&id) else {
            return;
        };
        let me = self.config.me;
        self.traverses.stop(me, id);
        for node in mine.waiting.iter().filter(|node| *node != me) {
            self.send(cx, node, Body::TraverseStop { id });
        }
        if tell {
            cx.out.push(Effect::Traversed {
                client: mine.client,
                reqid: mine.reqid,
                records: Vec::new(),
                end: true,
            });
        }
    }

    /// The client of traverses has gone.
    pub(super) fn traverse_gone<S>(&mut self, cx: &mut Cx<'_, S>, client: ClientId) {
        let gone: Vec<u64> = self
            .traverses
            .mine
            .iter()
            .filter(|(_, mine)| mine.client == client)
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            self.end_traverse(cx, id, false);
        }
    }

    /// A recovery moves owners: traverses begin anew after it, since the records of a node that was
    /// already asked may be another's now. Records can come twice, as D.14 allows.
    pub(super) fn traverses_restart<S>(&mut self, cx: &mut Cx<'_, S>) {
        self.traverses.scans.clear();
        let me = self.config.me;
        let volatile = self.config.kind == Kind::Volatile;
        let members = self.members;
        let ids: Vec<u64> = self.traverses.mine.keys().copied().collect();
        for id in ids {
            let mut empty = false;
            if let Some(mine) = self.traverses.mine.get_mut(&id) {
                empty = mine.empty;
                mine.waiting = if volatile {
                    members
                } else {
                    [me].into_iter().collect()
                };
            }
            self.traverse_for(me, id, empty);
            if volatile {
                for node in self.others().iter() {
                    self.send(cx, node, Body::Traverse { id, empty });
                }
            }
        }
    }

    /// The link to `peer` was made anew: what it was asked for, or sent, may be lost. It is asked again,
    /// from the beginning, and forgets what it was at.
    pub(super) fn traverse_link_reset<S>(&mut self, cx: &mut Cx<'_, S>, peer: Pnn) {
        self.traverses.scans.retain(|scan| scan.to != peer);
        let again: Vec<(u64, bool)> = self
            .traverses
            .mine
            .iter()
            .filter(|(_, mine)| mine.waiting.contains(peer))
            .map(|(id, mine)| (*id, mine.empty))
            .collect();
        for (id, empty) in again {
            self.send(cx, peer, Body::Traverse { id, empty });
        }
    }

    /// Tells the others that records changed here, if clients want that.
    pub(super) fn seqnum_step<S: Store>(&mut self, cx: &mut Cx<'_, S>) {
        let interval = self.config.tunables.seqnum_interval;
        let Some((seen, told)) = &mut self.seqnum else {
            return;
        };
        if cx.now.since(*told) < interval {
            return;
        }
        *told = cx.now;
        let sequence = cx.store.sequence();
        if *seen != sequence {
            *seen = sequence;
            if self.config.planted.has(Bug::SequenceUntold) {
                return;
            }
            for to in self.others().iter() {
                self.send(cx, to, Body::Sequence);
            }
        }
    }

    /// Records changed on another node.
    pub(super) fn raise_sequence<S: Store>(&mut self, cx: &mut Cx<'_, S>) {
        // What changed here meanwhile is still told at the next tick: only the increment itself is
        // not to be told back.
        let before = cx.store.sequence();
        cx.store.raise_sequence();
        if let Some((seen, _)) = &mut self.seqnum
            && *seen == before
        {
            *seen = cx.store.sequence();
        }
    }
}
