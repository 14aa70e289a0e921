//! Persistent and replicated databases in a recovery: each copy is described, the best one is given
//! to those that differ, the lineage is written down (E.7, DATA-2). And the jobs that wait for disks.

use std::collections::VecDeque;

use ctdb_wire::ids::{NodeSet, Pnn};

use super::commit::TxId;
use super::database::{Cx, Database, Outcome};
use super::exchange::Recovery;
use super::message::{Body, Copy, Lineage, PIECE, Record, Report};
use super::store::{Cursor, Store, StoreFault};
use super::types::{Effect, Generation, JobId, JobResult, Note, Work};

/// Records that one look into the file shows.
const BUDGET: usize = 256;

/// Transactions of a copy, and from when on they are complete.
pub(super) type History = (Vec<TxId>, Option<Generation>);

/// What a job was for.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    /// Nobody waits for it.
    Sync,
    /// The report for this recovery.
    Inspect(Generation),
    /// A transaction, for the node that coordinates it, and the one that must be before it.
    Apply(Pnn, TxId, Option<TxId>),
    /// Part of a piece of content; the answer comes with its last part.
    Part,
    /// The last part of a piece of content from a node, in a recovery.
    Piece(Generation, Pnn, u32),
    /// The last part of the last piece; with it comes its history.
    Last(Generation, Pnn, u32, History),
    /// The lineage of a recovery, for its leader.
    Seal(Generation, Pnn, Lineage),
}

/// Jobs of one database, one at a time.
#[derive(Debug, Default)]
pub(super) struct Jobs {
    queue: VecDeque<(Purpose, Work)>,
    running: Option<(JobId, Purpose)>,
    /// A part of the content could not be stored.
    failed: bool,
}

impl Jobs {
    /// Drops what has not begun; a transaction that runs is awaited.
    pub(super) fn drop_queued(&mut self) {
        self.queue.clear();
    }
}

/// Content on its way from this node.
#[derive(Debug)]
pub(super) struct Provide {
    targets: Vec<(Pnn, bool)>,
    cursor: Cursor,
    piece: u32,
    waiting: NodeSet,
    ended: bool,
    failed: bool,
}

impl Database {
    /// Begins a job, or puts it behind those that run.
    pub(super) fn job<S>(&mut self, cx: &mut Cx<'_, S>, purpose: Purpose, work: Work) {
        self.commits.jobs.queue.push_back((purpose, work));
        self.next_job(cx);
    }

    /// A job that nobody waits for. One of its kind in the queue is enough.
    pub(super) fn run_job<S>(&mut self, cx: &mut Cx<'_, S>, work: Work) {
        let queued = self
            .commits
            .jobs
            .queue
            .iter()
            .any(|(_, other)| *other == work);
        if !queued {
            self.job(cx, Purpose::Sync, work);
        }
    }

    fn next_job<S>(&mut self, cx: &mut Cx<'_, S>) {
        while self.commits.jobs.running.is_none()
            && let Some((purpose, work)) = self.commits.jobs.queue.pop_front()
        {
            if let Purpose::Apply(coordinator, tx, after) = purpose
                && self.commits.history.back().copied() != after
            {
                self.stored(cx, coordinator, tx, false);
                continue;
            }
            let begins = matches!(work, Work::ReplaceBegin { .. });
            if self.commits.jobs.failed && !begins {
                // Content with a hole is not put in place.
                match purpose {
                    Purpose::Part => continue,
                    Purpose::Piece(generation, from, piece)
                    | Purpose::Last(generation, from, piece, _) => {
                        self.piece_stored(cx, generation, from, piece, false);
                        continue;
                    }
                    _ => {}
                }
            }
            let job = JobId(self.number());
            self.commits.jobs.running = Some((job, purpose));
            cx.out.push(Effect::Job { job, work });
        }
    }

    /// A job is done.
    pub(super) fn job_done<S>(&mut self, cx: &mut Cx<'_, S>, job: JobId, result: &JobResult) {
        let Some((_, purpose)) = self
            .commits
            .jobs
            .running
            .take_if(|(running, _)| *running == job)
        else {
            return;
        };
        if let JobResult::Failed(fault) = result {
            cx.out.push(Effect::Note(Note::Fault(fault.clone())));
        }
        let ok = matches!(result, JobResult::Ok);
        match purpose {
            Purpose::Sync => {}
            Purpose::Inspect(generation) => self.inspected(cx, generation, result),
            Purpose::Apply(coordinator, tx, _) => self.stored(cx, coordinator, tx, ok),
            Purpose::Part => self.commits.jobs.failed |= !ok,
            Purpose::Piece(generation, from, piece) => {
                self.piece_stored(cx, generation, from, piece, ok);
            }
            Purpose::Last(generation, from, piece, (history, since)) => {
                if ok {
                    // The content is the other's now, and so is what led to it.
                    self.commits.history = history.into();
                    self.commits.since = since;
                }
                self.piece_stored(cx, generation, from, piece, ok);
            }
            Purpose::Seal(generation, leader, lineage) => {
                if ok {
                    self.commits.lineage = lineage;
                }
                self.send_in(cx, generation, leader, Body::Sealed { ok });
            }
        }
        self.next_job(cx);
    }

    fn piece_stored<S>(
        &mut self,
        cx: &mut Cx<'_, S>,
        generation: Generation,
        from: Pnn,
        piece: u32,
        ok: bool,
    ) {
        let ok = ok && !std::mem::take(&mut self.commits.jobs.failed);
        if generation == self.promised {
            let body = Body::Taken { piece, ok };
            self.send_in(cx, self.promised, from, body);
        }
    }

    /// Looks at the copy, behind the transaction that may still run.
    pub(super) fn inspect<S>(&mut self, cx: &mut Cx<'_, S>) {
        self.commits.jobs.failed = false;
        let generation = self.promised;
        self.job(cx, Purpose::Inspect(generation), Work::Inspect);
    }

    fn inspected<S>(&mut self, cx: &mut Cx<'_, S>, generation: Generation, result: &JobResult) {
        let (lineage, seq, digest, healthy) = match result {
            JobResult::Inspected {
                lineage,
                seq,
                digest,
            } => {
                self.commits.lineage = *lineage;
                (*lineage, *seq, *digest, true)
            }
            JobResult::Damaged { lineage } => {
                self.commits.lineage = *lineage;
                (*lineage, 0, 0, false)
            }
            _ => (self.commits.lineage, 0, 0, false),
        };
        let report = Report {
            committed: self.generation,
            settled: self.settled,
            valid: true,
            records: 0,
            copy: Some(Copy {
                lineage,
                seq,
                digest,
                healthy,
                history: self.commits.history.iter().copied().collect(),
                since: self.commits.since,
            }),
        };
        let Some(recovery) = &mut self.recovery else {
            return;
        };
        if recovery.generation == generation {
            recovery.report = Some(report.clone());
            self.tell_leader(cx, Body::Stopped(report));
        }
    }

    /// This node's copy is the one to keep: it goes to `targets`, piece by piece.
    pub(super) fn provide<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        recovery: &mut Recovery,
        targets: Vec<(Pnn, bool)>,
    ) -> Outcome {
        match &recovery.provide {
            Some(provide) if provide.ended && provide.waiting.is_empty() => {
                let ok = !provide.failed;
                self.tell_leader(cx, Body::Provided { ok });
                return Ok(());
            }
            Some(_) => return Ok(()),
            None => {}
        }
        let mut provide = Provide {
            targets,
            cursor: Cursor::default(),
            piece: 0,
            waiting: NodeSet::EMPTY,
            ended: false,
            failed: false,
        };
        let outcome = self.provide_piece(cx, &mut provide);
        recovery.provide = Some(provide);
        outcome
    }

    fn provide_piece<S: Store>(&mut self, cx: &mut Cx<'_, S>, provide: &mut Provide) -> Outcome {
        let mut records = Vec::new();
        let mut size = 0;
        while !provide.ended && size < PIECE {
            provide.ended =
                cx.store
                    .scan(&mut provide.cursor, BUDGET, &mut |key, header, data| {
                        // Deleted records end here.
                        if !data.is_empty() {
                            let record = Record::new(key, header, data);
                            size += record.size();
                            records.push(record);
                        }
                    })?;
        }
        let history = (
            self.commits.history.iter().copied().collect(),
            self.commits.since,
        );
        for (to, backup) in &provide.targets {
            provide.waiting.insert(*to);
            let body = Body::Content {
                piece: provide.piece,
                backup: *backup,
                records: records.clone(),
                end: provide.ended.then(|| history.clone()),
            };
            self.send_in(cx, self.promised, *to, body);
        }
        Ok(())
    }

    /// A node has stored a piece.
    pub(super) fn taken<S: Store>(
        &mut self,
        cx: &mut Cx<'_, S>,
        recovery: &mut Recovery,
        from: Pnn,
        piece: u32,
        ok: bool,
    ) -> Outcome {
        let Some(provide) = &mut recovery.provide else {
            return Ok(());
        };
        if piece != provide.piece || !provide.waiting.remove(from) {
            return Ok(());
        }
        provide.failed |= !ok;
        if !provide.waiting.is_empty() {
            return Ok(());
        }
        if provide.ended || provide.failed {
            provide.ended = true;
            let ok = !provide.failed;
            self.tell_leader(cx, Body::Provided { ok });
            return Ok(());
        }
        provide.piece += 1;
        self.provide_piece(cx, provide)
    }

    /// Content for this node, whose copy is replaced.
    pub(super) fn content<S>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        piece: u32,
        backup: bool,
        records: Vec<Record>,
        end: Option<History>,
    ) {
        if piece == 0 {
            self.commits.jobs.failed = false;
            self.job(cx, Purpose::Part, Work::ReplaceBegin { backup });
        }
        if let Some(history) = end {
            let purpose = Purpose::Last(self.promised, from, piece, history);
            self.job(cx, Purpose::Part, Work::ReplacePiece { records });
            self.job(cx, purpose, Work::ReplaceCommit);
        } else {
            let purpose = Purpose::Piece(self.promised, from, piece);
            self.job(cx, purpose, Work::ReplacePiece { records });
        }
    }

    /// The lineage of a new generation: also on nodes that only witness it.
    pub(super) fn seal<S>(
        &mut self,
        cx: &mut Cx<'_, S>,
        from: Pnn,
        generation: Generation,
        lineage: Lineage,
    ) {
        if generation < self.promised {
            self.send_in(cx, generation, from, Body::Newer(self.promised));
        } else {
            let purpose = Purpose::Seal(generation, from, lineage);
            self.job(cx, purpose, Work::Seal { lineage });
        }
    }
}

/// A fault as the result of a job.
impl From<StoreFault> for JobResult {
    fn from(fault: StoreFault) -> Self {
        Self::Failed(fault)
    }
}
