//! What works for one database: its machine, the leader's side of it, the file.

mod freeze;
mod questions;

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use ctdb_db::Tdb;
use ctdb_db::cluster::message::Record;
use ctdb_db::cluster::{
    Body, ClientId as MachineClient, Config, Database, Effect, Generation, Input, Kind, Leader,
    Message, Note, Progress, State, Ticket, Tunables,
};
use ctdb_db::record::DbId;
use ctdb_db::waiter::{Granted, Target, WaiterOptions, Waiters};
use ctdb_ebpf::deadman::Deadman;
use ctdb_wire::client::codec::encode_to_vec;
use ctdb_wire::client::types::RecData;
use ctdb_wire::ids::Pnn;
use ctdb_wire::relay::Relay;

use self::freeze::All;
use super::file::{FileOptions, FileStore};
use super::jobs::{JobThread, Jobs, aside};
use super::lineage::LineageFile;
use super::mailbox::{Item, Mailbox};
use super::seat::Seat;
use super::{Outlet, Output};
use crate::clients::hub::Origin;
use crate::clock::boot_now;
use crate::messaging::registry::ClientId;

/// Least pause before a wake-up that the machine wants at once.
const PAUSE: Duration = Duration::from_micros(20);

/// Arrivals within a second that are worth a line in the log.
const HOT: u32 = 64;
/// Pause before a busy record is tried again that could not be waited for.
const RETRY: Duration = Duration::from_millis(1);

/// What others see of a database without asking its thread.
#[derive(Debug, Default)]
pub struct Shown {
    /// It is being recovered, after it was served.
    pub recovering: AtomicBool,
    /// It is served.
    pub serving: AtomicBool,
    /// Number of its generation in the leader's term; 0 before the first.
    pub seq: AtomicU32,
    /// Number of that term.
    pub term: AtomicU64,
}

/// What a worker is made of.
pub(super) struct Birth {
    pub(super) me: Pnn,
    pub(super) name: String,
    pub(super) file: FileOptions,
    pub(super) tunables: Tunables,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) seat: Arc<Seat>,
    pub(super) outlet: Arc<dyn Outlet>,
    pub(super) shown: Arc<Shown>,
    /// What the guard is told.
    pub(super) deadman: Option<Arc<Deadman>>,
    /// The slot of the right to serve that the node has.
    pub(super) right: Option<u32>,
}

struct Traverse {
    client: ClientId,
    srvid: u64,
    reqid: u32,
}

/// What works for a database, on one thread at a time.
pub(super) struct Worker {
    id: DbId,
    kind: Kind,
    database: Database,
    leader: Leader,
    store: FileStore,
    waiters: Waiters,
    jobs: JobThread,
    mailbox: Arc<Mailbox>,
    outlet: Arc<dyn Outlet>,
    shown: Arc<Shown>,
    me: Pnn,
    /// The slot of the right that the node has, by the main loop.
    right: Option<u32>,
    /// What the machine was told last.
    machine_right: bool,
    /// The slot of the right in which the newest recovery began, or the database was attached. Only
    /// that right is told to the machine: after another one records may have been given away (DATA-5).
    joined: Option<u32>,
    /// An operator's freeze; the machine sees it as a right that is away.
    held: bool,
    freezers: Vec<Origin>,
    /// In a transaction of an operator's restore; and how many records came.
    restoring: bool,
    pushed: u32,
    newest: Generation,
    was_serving: Option<Generation>,
    progress: Progress,
    all: All,
    /// Waits for which there was no room: tried again with the next turn.
    refused: Vec<Ticket>,
    /// Messages of this node to itself.
    own: VecDeque<Message>,
    commits: BTreeMap<(ClientId, u32), Origin>,
    next_commit: u32,
    traverses: BTreeMap<u32, Traverse>,
    next_traverse: u32,
    out: Vec<Output>,
}

/// Runs the database until it is stopped. The file is opened here: that can take time.
pub(super) fn run(birth: Birth) {
    let db = DbId::of(&birth.name).0;
    let outlet = Arc::clone(&birth.outlet);
    let mailbox = Arc::clone(&birth.mailbox);
    let seat = Arc::clone(&birth.seat);
    match Worker::open(birth) {
        Ok((mut worker, health)) => {
            let result = Ok(health);
            worker.out.push(Output::Opened { db, result });
            worker.follow_right();
            seat.serve(worker);
        }
        Err(error) => {
            let result = Err(error);
            outlet.deliver(vec![Output::Opened { db, result }]);
        }
    }
    mailbox.close();
}

fn open_file(options: &FileOptions) -> Result<(Tdb, Option<LineageFile>, Option<String>), String> {
    if options.kind != Kind::Persistent {
        return match options.open() {
            Ok(tdb) => Ok((tdb, None, None)),
            Err(error) => Err(error.to_string()),
        };
    }
    let mut lineage = LineageFile::open(&options.path).map_err(|error| error.to_string())?;
    let opened = options.open().and_then(|mut tdb| {
        tdb.check()?;
        Ok(tdb)
    });
    let tdb = match opened {
        Ok(tdb) => tdb,
        Err(
            error @ (ctdb_db::Error::Corrupt { .. }
            | ctdb_db::Error::Header { .. }
            | ctdb_db::Error::FileTooLarge { .. }),
        ) => {
            // Kept aside, and to be replaced by another node's copy; never served as it is.
            let aside = aside(&options.path, "corrupted");
            let text = format!("ERROR - Backup of corrupted TDB in '{}'", aside.display());
            tracing::error!(%error, kept = %aside.display(), "a database file is damaged");
            lineage
                .set_damaged(Some(text))
                .map_err(|error| error.to_string())?;
            std::fs::rename(&options.path, &aside).map_err(|error| error.to_string())?;
            options.open().map_err(|error| error.to_string())?
        }
        Err(error) => return Err(error.to_string()),
    };
    let health = lineage.damaged().map(str::to_owned);
    Ok((tdb, Some(lineage), health))
}

impl Worker {
    fn open(birth: Birth) -> Result<(Self, Option<String>), String> {
        let (tdb, lineage, health) = open_file(&birth.file)?;
        let wake = {
            let seat = Arc::clone(&birth.seat);
            move || seat.bring(Item::Granted)
        };
        let waiters = Waiters::new(&tdb, WaiterOptions::default(), wake);
        let kind = birth.file.kind;
        let jobs = Jobs::new(birth.file, lineage);
        let jobs =
            JobThread::start(jobs, &birth.name, birth.seat).map_err(|error| error.to_string())?;
        let all = All::new(kind, &tdb, birth.deadman);
        let id = DbId::of(&birth.name);
        let planted = ctdb_db::cluster::planted::Planted::default();
        let config = Config {
            id,
            name: birth.name.clone(),
            kind,
            me: birth.me,
            tunables: birth.tunables,
            planted,
        };
        let worker = Self {
            id,
            kind,
            database: Database::new(config),
            leader: Leader::new(id, birth.name, kind, planted),
            store: FileStore::new(tdb),
            waiters,
            jobs,
            mailbox: birth.mailbox,
            outlet: birth.outlet,
            shown: birth.shown,
            me: birth.me,
            right: birth.right,
            machine_right: true,
            joined: birth.right,
            held: false,
            freezers: Vec::new(),
            restoring: false,
            pushed: 0,
            newest: Generation::NONE,
            was_serving: None,
            progress: Progress::Idle,
            all,
            refused: Vec::new(),
            own: VecDeque::new(),
            commits: BTreeMap::new(),
            next_commit: 0,
            traverses: BTreeMap::new(),
            next_traverse: 0,
            out: Vec::new(),
        };
        Ok((worker, health))
    }

    /// Takes in all that has come. `all`: also what is due by time.
    pub(super) fn turn(&mut self, all: bool) -> ControlFlow<()> {
        let (items, lost) = self.mailbox.take();
        self.take_over();
        for item in items {
            self.follow_right();
            self.item(item)?;
            self.settle();
        }
        for peer in lost.iter() {
            tracing::warn!(db = %self.id, node = %peer, "too much waits; a node's messages are lost");
            self.input(Input::LinkReset(peer));
            self.settle();
        }
        self.granted();
        if all {
            for ticket in std::mem::take(&mut self.refused) {
                self.input(Input::Granted(ticket));
            }
            self.tick();
            self.settle();
        }
        self.show();
        ControlFlow::Continue(())
    }

    /// What there is to say, since the last time.
    pub(super) fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.out)
    }

    /// Whether calls and messages of records are served.
    pub(super) fn is_serving(&self) -> bool {
        self.database.state() == State::Serving
    }

    /// Takes in what a client wants, on the thread that read it: nothing is waited for.
    pub(super) fn at_once(&mut self, item: Item) -> Vec<Output> {
        self.store.set_hasty(true);
        self.follow_right();
        // What ends a database does not come this way.
        let _ = self.item(item);
        self.after_haste()
    }

    /// Takes in another node's message on the thread that read it, if it is of a kind that takes no
    /// time; nothing is waited for. `None`: it is not, or is none.
    pub(super) fn message_at_once(&mut self, from: Pnn, bytes: &[u8]) -> Option<Vec<Output>> {
        let message = Message::decode(bytes).ok()?;
        if message.db != self.id || !message.body.of_record() {
            return None;
        }
        self.store.set_hasty(true);
        self.follow_right();
        self.message(from, message);
        Some(self.after_haste())
    }

    fn after_haste(&mut self) -> Vec<Output> {
        if !self.own.is_empty() || !self.is_serving() {
            self.settle();
            self.show();
        }
        self.store.set_hasty(false);
        self.set_alarm();
        self.take_outputs()
    }

    /// When something is due. What is due soon and done quickly is the outlet's, if it takes that.
    pub(super) fn set_alarm(&self) {
        let hold = self.database.next_hold();
        let hold = hold.filter(|at| !self.outlet.alarm(self.id.0, *at));
        let wakes = [
            hold,
            self.database.next_slow_wake(),
            self.leader.next_wake(),
        ];
        let next = wakes.into_iter().flatten().min();
        let look = self.all.look().map(|pause| boot_now() + pause);
        let next = look.into_iter().chain(next).min();
        let alarm = if self.refused.is_empty() {
            next.map(|at| at.max(boot_now() + PAUSE))
        } else {
            Some(boot_now() + RETRY)
        };
        self.mailbox.set_alarm(alarm);
    }

    /// Holds that may be over, on the thread that was told.
    pub(super) fn holds_at_once(&mut self) -> Vec<Output> {
        self.store.set_hasty(true);
        self.follow_right();
        if self.database.next_hold().is_some_and(|at| at <= boot_now()) {
            self.input(Input::Holds);
        }
        self.after_haste()
    }

    fn tick(&mut self) {
        let now = boot_now();
        if self.leader.next_wake().is_some_and(|at| at <= now) {
            let mut out = Vec::new();
            self.leader.tick(now, &mut out);
            self.effects(out);
        }
        if self.database.next_wake().is_some_and(|at| at <= now) {
            self.input(Input::Tick);
        }
    }

    // ---- What happens

    fn item(&mut self, item: Item) -> ControlFlow<()> {
        match item {
            Item::Call {
                client,
                reqid,
                key,
                call,
                flags,
            } => {
                let client = machine(client);
                let key = &key;
                self.input(Input::Call {
                    client,
                    reqid,
                    key,
                    call,
                    flags,
                });
            }
            Item::Commit {
                origin,
                client,
                changes,
            } => {
                self.next_commit = self.next_commit.wrapping_add(1);
                let reqid = self.next_commit;
                self.commits.insert((client, reqid), origin);
                let client = machine(client);
                self.input(Input::Commit {
                    client,
                    reqid,
                    changes,
                });
            }
            Item::Delete { key, header } => self.input(Input::Delete { key: &key, header }),
            Item::Push { key, header, data } => self.input(Input::Push {
                key: &key,
                header,
                data: &data,
            }),
            Item::Traverse {
                client,
                srvid,
                reqid,
                empty,
            } => {
                self.next_traverse = self.next_traverse.wrapping_add(1);
                let number = self.next_traverse;
                let traverse = Traverse {
                    client,
                    srvid,
                    reqid,
                };
                self.traverses.insert(number, traverse);
                self.input(Input::Traverse {
                    client: machine(client),
                    reqid: number,
                    // Of a database that all nodes have, clients get all (5.8).
                    empty: empty || self.kind != Kind::Volatile,
                });
            }
            Item::Ask(origin, question) => self.answer(origin, question),
            Item::Records(records) => self.restore(&records),
            Item::Gone(client) => {
                self.traverses
                    .retain(|_, traverse| traverse.client != client);
                self.commits.retain(|(other, _), _| *other != client);
                self.input(Input::ClientGone(machine(client)));
            }
            Item::Peer(from, bytes) => match Message::decode(&bytes) {
                Ok(message) if message.db == self.id => self.message(from, message),
                Ok(_) => {}
                Err(error) => {
                    tracing::error!(db = %self.id, node = %from, %error, "a node's message is malformed");
                }
            },
            Item::LinkReset(peer) => self.input(Input::LinkReset(peer)),
            Item::Right(right) => self.right = right,
            Item::View(view) => {
                let mut out = Vec::new();
                let view = view.map(|view| view.as_ref().clone());
                self.leader.view(boot_now(), view, &mut out);
                self.effects(out);
            }
            Item::Companion(key, to) => self.input(Input::Companion { key: &key, to }),
            Item::Readonly => self.input(Input::Readonly),
            Item::Sticky => self.input(Input::Sticky),
            Item::EnableSeqnum => {
                self.store.count_changes();
                self.input(Input::EnableSeqnum);
            }
            Item::Recover => self.input(Input::Recover),
            Item::Vacuum { full } => self.input(Input::Vacuum { full }),
            Item::Done(job, result) => self.input(Input::Done { job, result }),
            Item::Granted => {}
            Item::Stop => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }

    fn input(&mut self, input: Input<'_>) {
        let mut out = Vec::new();
        self.database
            .handle(boot_now(), input, &mut self.store, &mut out);
        self.effects(out);
    }

    fn message(&mut self, from: Pnn, message: Message) {
        if message.body.for_leader() {
            let mut out = Vec::new();
            self.leader.peer(boot_now(), from, message, &mut out);
            self.effects(out);
            return;
        }
        if matches!(message.body, Body::Freeze { .. }) && message.generation > self.newest {
            self.newest = message.generation;
            self.joined = self.all.running(self.right);
            self.end_hold();
        }
        self.input(Input::Peer { from, message });
    }

    /// What follows from the last input: messages to oneself, the right, locks that came.
    fn settle(&mut self) {
        while let Some(message) = self.own.pop_front() {
            self.message(self.me, message);
        }
        self.follow_right();
        while let Some(message) = self.own.pop_front() {
            self.message(self.me, message);
        }
    }

    /// Locks that were waited for. The waiting thread holds each while it is marked here.
    fn granted(&mut self) {
        while let Some(Granted {
            target,
            tickets,
            waited,
            grant,
        }) = self.waiters.granted()
        {
            let grant = match grant {
                Ok(grant) => grant,
                Err(error) => {
                    tracing::error!(db = %self.id, ?target, ?waited, %error, "a lock cannot be had");
                    self.lock_failed(target, &tickets);
                    continue;
                }
            };
            match target {
                Target::AllRecords => self.all_granted(grant),
                Target::Chain(chain) => {
                    if self.all.is_held() {
                        // Frozen meanwhile: the machine has forgotten what waited for it.
                        drop(grant);
                    } else if let Err(error) = grant.mark(self.store.tdb()) {
                        tracing::error!(db = %self.id, %error, "a chain cannot be marked");
                        self.lock_failed(target, &tickets);
                        continue;
                    } else {
                        self.store.set_marked(Some(chain));
                        for ticket in &tickets {
                            self.input(Input::Granted(Ticket(*ticket)));
                        }
                        self.store.set_marked(None);
                        if let Err(error) = grant.unmark(self.store.tdb()) {
                            tracing::error!(db = %self.id, %error, "a chain stays marked");
                        }
                        drop(grant);
                        self.settle();
                        continue;
                    }
                    for ticket in &tickets {
                        self.input(Input::Granted(Ticket(*ticket)));
                    }
                }
            }
            self.settle();
        }
    }

    /// What waited for a lock tries again, without it.
    fn lock_failed(&mut self, target: Target, tickets: &[u64]) {
        if target == Target::AllRecords {
            if self.all.is_wanted() {
                self.wait_for_all();
            }
            return;
        }
        for ticket in tickets {
            self.input(Input::Granted(Ticket(*ticket)));
        }
    }

    // ---- What the machines ask for

    fn effects(&mut self, out: Vec<Effect>) {
        for effect in out {
            match effect {
                Effect::Reply {
                    client,
                    reqid,
                    status,
                    data,
                } => self.out.push(Output::Reply {
                    client: hub_client(client),
                    reqid,
                    status,
                    data,
                }),
                Effect::Committed {
                    client,
                    reqid,
                    status,
                } => self.committed(hub_client(client), reqid, status),
                Effect::Send { to, message } if to == self.me => self.own.push_back(message),
                Effect::Send { to, message } => self.send(to, &message),
                Effect::WaitChain { ticket, key } => {
                    let chain = self.store.tdb().chain_of(&key);
                    if let Err(error) = self.waiters.wait(Target::Chain(chain), ticket.0) {
                        tracing::warn!(db = %self.id, %error, "a busy record is tried again instead of waited for");
                        self.refused.push(ticket);
                    }
                }
                Effect::Freeze => self.wait_for_all(),
                Effect::Thaw => self.thaw(false),
                Effect::Job { job, work } => self.jobs.run(job, work),
                Effect::CloseClients => self.out.push(Output::CloseClients),
                Effect::Went { key, to } => {
                    let db = self.id.0;
                    self.out.push(Output::Went { db, key, to });
                }
                Effect::Rights { view, may } => self.out.push(Output::Rights { view, may }),
                Effect::Traversed {
                    reqid,
                    records,
                    end,
                    ..
                } => self.traversed(reqid, &records, end),
                Effect::Note(note) => self.note(note),
            }
        }
    }

    fn send(&mut self, to: Pnn, message: &Message) {
        let mut payload = self.id.0.to_le_bytes().to_vec();
        match message.encode(&mut payload) {
            Ok(()) => {
                let bytes = Relay::Database(&payload).to_vec();
                self.out.push(Output::Frame { to, bytes });
            }
            Err(error) => {
                tracing::error!(db = %self.id, node = %to, %error, "a message cannot be sent");
            }
        }
    }

    fn control(&mut self, origin: Origin, status: i32, data: Vec<u8>) {
        self.out.push(Output::Control {
            origin,
            status,
            data,
            error: "",
        });
    }

    fn committed(&mut self, client: ClientId, reqid: u32, status: i32) {
        if let Some(origin) = self.commits.remove(&(client, reqid)) {
            let error = match status {
                2 => "trans3 commit ended by recovery",
                _ => "",
            };
            self.out.push(Output::Control {
                origin,
                status,
                data: Vec::new(),
                error,
            });
        }
    }

    fn traversed(&mut self, number: u32, records: &[Record], end: bool) {
        let Some(traverse) = self.traverses.get(&number) else {
            return;
        };
        let (srvid, reqid) = (traverse.srvid, traverse.reqid);
        for record in records {
            let value = record.header().join(&record.data);
            let data = encode_to_vec(&RecData {
                reqid,
                key: &record.key,
                data: &value,
            });
            self.out.push(Output::Record { srvid, data });
        }
        if end {
            self.traverses.remove(&number);
            let data = encode_to_vec(&RecData {
                reqid,
                key: b"",
                data: b"",
            });
            self.out.push(Output::Record { srvid, data });
        }
    }

    fn note(&self, note: Note) {
        let db = self.id;
        match note {
            Note::WantRecovery(why) => {
                tracing::warn!(%db, why, "a recovery of a database is wanted");
            }
            Note::Fault(fault) => tracing::error!(%db, %fault, "a database file fails"),
            Note::Bound(what) => tracing::warn!(%db, what, "refused: too many"),
            Note::FreezeDelayed(since) => tracing::warn!(
                %db, ?since, file = %self.store.path().display(),
                "a process keeps a record locked and holds up a freeze; `ctdb db file users` names it"
            ),
            Note::Hot { key, count } if count >= HOT => {
                tracing::info!(%db, ?key, count, "a record goes round often");
            }
            Note::Hot { .. } => {}
            Note::Hops(hops) => tracing::info!(%db, hops, "a call went round for long"),
            Note::Slow(took) => tracing::warn!(%db, ?took, "a call took long (LogLatencyMs)"),
            Note::Vacuumed { removed, took } => {
                tracing::debug!(%db, removed, ?took, "vacuumed");
            }
        }
    }

    /// What is seen from outside.
    fn show(&mut self) {
        let state = self.database.state();
        let generation = self.database.generation();
        let serving = state == State::Serving;
        self.shown.serving.store(serving, Ordering::Relaxed);
        let recovering = state == State::Recovering && self.was_serving.is_some();
        self.shown.recovering.store(recovering, Ordering::Relaxed);
        self.shown.seq.store(generation.seq, Ordering::Relaxed);
        self.shown
            .term
            .store(generation.term.number, Ordering::Relaxed);
        if serving && self.was_serving != Some(generation) {
            let first = self.was_serving.is_none();
            self.was_serving = Some(generation);
            tracing::info!(
                db = %self.id, name = self.database.config().name, ?generation,
                members = self.database.members().len(), "database is served"
            );
            let db = self.id.0;
            let right = self.joined;
            self.out.push(Output::Served { db, first, right });
        }
        let progress = self.leader.progress();
        if progress != self.progress {
            match &progress {
                Progress::NoHealthyCopy => tracing::error!(
                    db = %self.id, name = self.database.config().name,
                    "no node has a readable copy of this database; bring such a node back"
                ),
                Progress::Done { writable: false } => tracing::error!(
                    db = %self.id, name = self.database.config().name,
                    "nodes that had the last transactions are absent: no transaction is taken until \
                     one of them is back"
                ),
                _ => {}
            }
            self.progress = progress;
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end_restore(false);
        self.thaw(true);
    }
}

fn machine(client: ClientId) -> MachineClient {
    MachineClient(u64::from(client.0))
}

fn hub_client(client: MachineClient) -> ClientId {
    // Made of one above.
    ClientId(client.0 as u32)
}
