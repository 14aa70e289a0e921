//! What clients and other nodes want of the databases (`spec/client-protocol.md` 3.1, 5.6 to 5.8,
//! 5.10), and what the databases say.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use ctdb_core::holder::Fate;
use ctdb_db::cluster::{self, CallKind, Change, Kind, View, message::MAX_MESSAGE};
use ctdb_db::record::{DbId, LtdbHeader, RecordFlags, Rsn};
use ctdb_wire::client::codec::{Encode as _, Reader};
use ctdb_wire::client::control::{Reply, Request};
use ctdb_wire::client::packet::{
    Body, Call, CallId, Control, ControlFlags, Message, ReplyCall, ReplyError,
};
use ctdb_wire::client::srvid;
use ctdb_wire::client::types::{
    self, DbFlags, DbMapEntry, RecBuffer, Text, TraverseStart, TraverseStartExt,
};
use ctdb_wire::ids::{BootTime, NodeSet, Pnn, RunState};
use tokio::sync::Notify;

use super::hub::{Effect, Hub, Origin, Verdict};
use crate::config::Tunable;
use crate::database::Output;
use crate::database::mailbox::{Item, Question};
use crate::database::table::{Entry, Table};
use crate::messaging::registry::ClientId;

/// Attaches that wait for the node to be ready; at the bound they fail.
const MAX_DEFERRED: usize = 4096;
/// Bytes of a transaction: what one message between nodes takes, and its frame.
const MAX_TRANSACTION: usize = MAX_MESSAGE - (64 << 10);

/// The flag that ENABLE_SEQNUM adds to a database's open flags.
const SEQNUM: i32 = 0x80;

/// A client's attach that waits (5.6 2c).
#[derive(Debug)]
pub(super) struct Deferred {
    until: BootTime,
    origin: Origin,
    name: String,
    kind: Kind,
}

/// Of this node's databases, in the hub.
#[derive(Debug, Default)]
pub(super) struct Databases {
    /// `None` where there are none: a node that only votes.
    pub(super) table: Option<Table>,
    deferred: Vec<Deferred>,
    /// Addresses with connections of processes that were disconnected since this node was left out, and
    /// may stand still. One that was taken before the databases said so is named in vain until it is
    /// taken again.
    lost: BTreeSet<IpAddr>,
    /// A takeover waits for what becomes of such connections.
    asked: bool,
    known: Arc<Notify>,
}

fn header(wire: types::LtdbHeader) -> LtdbHeader {
    LtdbHeader {
        rsn: Rsn(wire.rsn),
        dmaster: wire.dmaster,
        reserved: wire.reserved,
        flags: RecordFlags::from_bits_retain(wire.flags.bits()),
    }
}

/// The records of a buffer; `None` if one has no whole header.
fn changes(buffer: &RecBuffer<'_>) -> Option<Vec<Change>> {
    let change = |record: types::RecData<'_>| {
        let (wire, data) = record.record()?;
        Some(Change::new(record.key, &header(wire), data))
    };
    buffer.records().map(change).collect()
}

impl Databases {
    fn get(&self, id: u32) -> Option<&Entry> {
        self.table.as_ref()?.get(id)
    }

    fn opened(&self, id: u32) -> Option<&Entry> {
        self.get(id).filter(|entry| entry.opening.is_none())
    }
}

impl Hub {
    /// From now on this node has databases.
    pub fn open_databases(&mut self, table: Table, names: &[String]) {
        self.databases.table = Some(table);
        for name in names {
            if let Err(text) = self.attach_here(name, Kind::Persistent, None) {
                tracing::error!(name, "a persistent database is not attached: {text}");
            }
        }
    }

    /// All threads end.
    pub fn close_databases(&mut self) {
        if let Some(table) = &mut self.databases.table {
            table.stop();
        }
    }

    /// The slot of the right to serve that this node has, and what it sees of the cluster if it
    /// leads.
    pub fn follow_cluster(&mut self, right: Option<u32>, view: Option<View>) {
        if let Some(table) = &mut self.databases.table {
            table.set_right(right);
            table.set_view(view);
        }
    }

    /// What became of connections from a former right to addresses that this node is given again, of
    /// those of which it is known in the right with this slot: who has one of a client of the databases
    /// waits until these have been through a recovery.
    pub fn fates(&mut self, right: u32, addresses: &[IpAddr]) -> Vec<(IpAddr, Fate)> {
        let table = self.databases.table.as_ref();
        let through = table.is_none_or(|table| table.is_through(right));
        let all = self.clients.values().flat_map(|c| &c.connections);
        let of_clients = all.filter(|_| !through).map(|c| c.server.ip());
        let connected: BTreeSet<IpAddr> = of_clients.collect();
        let lost = &self.databases.lost;
        let fate = |address: &IpAddr| match (lost.contains(address), connected.contains(address)) {
            (true, _) => Some((*address, Fate::Lost)),
            (false, false) => Some((*address, Fate::Kept)),
            (false, true) => None,
        };
        let fates: Vec<_> = addresses.iter().filter_map(fate).collect();
        self.databases.asked = fates.len() < addresses.len();
        fates
    }

    /// Is told when what was not known may be known now.
    pub fn fates_known(&self) -> Arc<Notify> {
        Arc::clone(&self.databases.known)
    }

    /// Nothing that was connected to these addresses in a former right is here any more.
    pub fn ended(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            self.databases.lost.remove(address);
        }
    }

    fn news_of_fates(&mut self) {
        if std::mem::take(&mut self.databases.asked) {
            self.databases.known.notify_one();
        }
    }

    /// Whether a database that was served is being recovered.
    pub(super) fn is_recovering(&self) -> bool {
        self.databases
            .table
            .as_ref()
            .is_some_and(Table::is_recovering)
    }

    /// Whether all databases are served.
    pub fn databases_ready(&self) -> bool {
        self.databases.table.as_ref().is_none_or(Table::is_serving)
    }

    /// Whether there are any.
    pub fn has_databases(&self) -> bool {
        self.databases
            .table
            .as_ref()
            .is_some_and(|table| !table.entries().is_empty())
    }

    /// The newest recovery of the databases, if there are any, and whether one is under way.
    pub fn recoveries_seen(&self) -> (Option<(u64, u32)>, bool) {
        let table = self.databases.table.as_ref();
        (table.and_then(Table::newest_recovery), self.is_recovering())
    }

    /// Recoveries of the databases in this term, beyond the first.
    pub(super) fn recoveries(&self) -> u32 {
        let term = self.snapshot.term.unwrap_or(0);
        let table = self.databases.table.as_ref();
        table
            .map_or(0, |table| table.recoveries(term))
            .saturating_sub(1)
    }

    // ---- Calls

    pub(super) fn call(&mut self, id: ClientId, reqid: u32, call: &Call<'_>) {
        let refused = |text| Body::ReplyError(ReplyError { status: -1, text });
        if self.databases.get(call.db_id).is_none() {
            // CTDB lets the caller wait for ever.
            self.send(id, reqid, refused(b"no such database"));
            return;
        }
        let kind = match CallId::of(call.call_id) {
            Some(CallId::Null) => CallKind::Null,
            Some(CallId::Fetch) => CallKind::Fetch,
            Some(CallId::FetchWithHeader) => CallKind::FetchWithHeader,
            None => {
                let body = Body::ReplyCall(ReplyCall {
                    status: 0,
                    data: b"",
                });
                self.send(id, reqid, body);
                return;
            }
        };
        let Some(table) = &mut self.databases.table else {
            return;
        };
        table.use_by(id, call.db_id);
        let Some(entry) = table.get(call.db_id) else {
            return;
        };
        let followed = entry.seat.call(Item::Call {
            client: id,
            reqid,
            key: call.key.to_vec(),
            call: kind,
            flags: cluster::CallFlags::from_bits_truncate(call.flags.bits())
                - cluster::CallFlags::VACUUM_MIGRATION,
        });
        match followed {
            Some(outputs) => self.database_says(outputs),
            None => self.send(id, reqid, refused(b"too many calls wait for this database")),
        }
    }

    // ---- Attaching

    fn attach(
        &mut self,
        origin: Origin,
        flags: ControlFlags,
        name: Text<'_>,
        kind: Kind,
    ) -> Verdict {
        let Ok(name) = std::str::from_utf8(name.0) else {
            return Verdict::Failed;
        };
        if origin.client().is_some() {
            if self.is_inactive() {
                return Verdict::Failed;
            }
            let recovery = self.snapshot.recovery_mode != 0;
            if flags.contains(ControlFlags::ATTACH_RECOVERY) {
                if !recovery {
                    return Verdict::Failed;
                }
            } else if recovery && self.snapshot.run_state == RunState::Shutdown {
                return self.attach_leaving(name, kind);
            } else if recovery || self.snapshot.run_state < RunState::Startup {
                return self.defer(origin, name, kind);
            }
        }
        self.attach_now(origin, name, kind)
    }

    /// On a node that leaves without a right, as the last ones of a cluster do, no recovery is to be
    /// waited for: what is open here can be read, and the scripts that end Samba read its configuration.
    fn attach_leaving(&mut self, name: &str, kind: Kind) -> Verdict {
        let entry = self.databases.opened(DbId::of(name).0);
        match entry.filter(|entry| entry.name == name && entry.kind == kind) {
            Some(entry) => {
                Reply::U32(entry.id).encode(&mut self.payload);
                Verdict::Status(0)
            }
            None => Verdict::Failed,
        }
    }

    fn attach_now(&mut self, origin: Origin, name: &str, kind: Kind) -> Verdict {
        if self.tunables.get(Tunable::AllowClientDBAttach) == 0 {
            return Verdict::Failed;
        }
        match self.attach_here(name, kind, Some(origin)) {
            Ok(Some(id)) => {
                Reply::U32(id).encode(&mut self.payload);
                Verdict::Status(0)
            }
            Ok(None) => Verdict::Later,
            Err(text) => {
                tracing::warn!(name, "a database is not attached: {text}");
                Verdict::Failed
            }
        }
    }

    /// Attaches a database here; its number, if its file is open already. If not, `origin` waits.
    fn attach_here(
        &mut self,
        name: &str,
        kind: Kind,
        origin: Option<Origin>,
    ) -> Result<Option<u32>, String> {
        let Some(table) = &mut self.databases.table else {
            return Err("this node has no databases".to_owned());
        };
        let known = table.entries().len();
        let entry = table
            .attach(name, kind, &self.tunables)
            .map_err(|error| error.to_string())?;
        let id = entry.id;
        let open = match (&mut entry.opening, origin) {
            (None, _) => Some(id),
            (Some(waiting), Some(origin)) => {
                waiting.push(origin);
                None
            }
            (Some(_), None) => None,
        };
        let new = table.entries().len() > known;
        // Nodes that are told by another one do not tell on.
        if new && origin.is_none_or(|origin| origin.client().is_some()) {
            let mut others = self.connected_nodes();
            others.remove(self.me);
            self.tell_attach(others, name, kind);
        }
        Ok(open)
    }

    fn tell_attach(&mut self, to: NodeSet, name: &str, kind: Kind) {
        let name = Text(name.as_bytes());
        let request = match kind {
            Kind::Volatile => Request::DbAttach(name),
            Kind::Persistent => Request::DbAttachPersistent(name),
            Kind::Replicated => Request::DbAttachReplicated(name),
        };
        self.tell(to, &request);
    }

    /// A node whose link stands is told of all databases, and messages may have been lost.
    pub(super) fn databases_linked(&mut self, pnn: Pnn) {
        let Some(table) = &self.databases.table else {
            return;
        };
        table.link_reset(pnn);
        let list: Vec<(String, Kind)> = table
            .entries()
            .iter()
            .map(|entry| (entry.name.clone(), entry.kind))
            .collect();
        for (name, kind) in list {
            self.tell_attach([pnn].into_iter().collect(), &name, kind);
        }
    }

    /// Until the node is ready.
    fn defer(&mut self, origin: Origin, name: &str, kind: Kind) -> Verdict {
        if self.databases.deferred.len() >= MAX_DEFERRED {
            return Verdict::Failed;
        }
        self.databases.deferred.push(Deferred {
            until: self.now + self.tunables.seconds(Tunable::DeferredAttachTO),
            origin,
            name: name.to_owned(),
            kind,
        });
        Verdict::Later
    }

    /// Attaches that waited are looked at again.
    pub(super) fn deferred_attaches(&mut self) {
        if self.databases.deferred.is_empty() {
            return;
        }
        let ready =
            self.snapshot.recovery_mode == 0 && self.snapshot.run_state >= RunState::Startup;
        let leaves = self.snapshot.run_state == RunState::Shutdown;
        let now = self.now;
        let (due, rest) = std::mem::take(&mut self.databases.deferred)
            .into_iter()
            .partition(|one| ready || leaves || one.until <= now);
        self.databases.deferred = rest;
        let due: Vec<Deferred> = due;
        for one in due {
            self.payload.clear();
            let verdict = if ready && !self.is_inactive() {
                self.attach_now(one.origin, &one.name, one.kind)
            } else if leaves && !self.is_inactive() {
                self.attach_leaving(&one.name, one.kind)
            } else {
                Verdict::Failed
            };
            self.finish(one.origin, verdict);
        }
    }

    // ---- Controls

    /// Controls about databases.
    pub(super) fn of_database(
        &mut self,
        origin: Origin,
        control: &Control<'_>,
        request: &Request<'_>,
    ) -> Verdict {
        match request {
            Request::DbAttach(name) => self.attach(origin, control.flags, *name, Kind::Volatile),
            Request::DbAttachPersistent(name) => {
                self.attach(origin, control.flags, *name, Kind::Persistent)
            }
            Request::DbAttachReplicated(name) => {
                self.attach(origin, control.flags, *name, Kind::Replicated)
            }
            Request::GetDbMap => {
                let entries = self.databases.table.iter().flat_map(Table::entries).rev();
                let map = entries
                    .map(|entry| DbMapEntry {
                        db_id: entry.id,
                        flags: entry.flags,
                    })
                    .collect();
                Reply::DbMap(map).encode(&mut self.payload);
                Verdict::Status(0)
            }
            Request::GetDbPath(id) => {
                self.describe(*id, |entry| Some(entry.path.to_str()?.as_bytes().to_vec()))
            }
            Request::GetDbName(id) => {
                self.describe(*id, |entry| Some(entry.name.as_bytes().to_vec()))
            }
            Request::DbOpenFlags(id) => {
                let Some(entry) = self.databases.opened(*id) else {
                    return Verdict::Failed;
                };
                let flags = entry.open_flags.bits().cast_signed();
                Reply::I32(flags).encode(&mut self.payload);
                Verdict::Status(0)
            }
            Request::DbGetHealth(id) => {
                let Some(entry) = self.databases.get(*id) else {
                    return Verdict::Failed;
                };
                let health = entry.health.as_ref().map(|text| Text(text.as_bytes()));
                Reply::OptionalText(health).encode(&mut self.payload);
                Verdict::Status(0)
            }
            // What makes a copy healthy is a recovery, which replaces it.
            Request::DbSetHealthy(id) if self.databases.get(*id).is_some() => Verdict::Status(0),
            Request::GetDbSeqnum([id, _]) => self.question(origin, *id, Question::Seqnum),
            Request::GetDbStatistics(id) => self.question(origin, *id, Question::Statistics),
            Request::EnableSeqnum(id) => {
                let Some(entry) = self.databases.table.as_mut().and_then(|t| t.get_mut(*id)) else {
                    return Verdict::Failed;
                };
                entry.open_flags |= ctdb_db::OpenFlags::SEQNUM;
                debug_assert_eq!(entry.open_flags.bits().cast_signed() & SEQNUM, SEQNUM);
                entry.mailbox.post(Item::EnableSeqnum);
                Verdict::Status(0)
            }
            Request::SetDbReadonly(id) => self.mode(*id, DbFlags::READONLY, Item::Readonly),
            Request::SetDbSticky(id) => self.mode(*id, DbFlags::STICKY, Item::Sticky),
            Request::DbDetach(id) => self.detach(origin, *id),
            Request::ScheduleForDeletion(deleted) => {
                let Some(entry) = self.databases.get(deleted.db_id) else {
                    return Verdict::Failed;
                };
                // A hint: what there is no room for, the next full run finds.
                let outputs = entry.seat.call(Item::Delete {
                    key: deleted.key.to_vec(),
                    header: header(deleted.header),
                });
                self.database_says(outputs.unwrap_or_default());
                Verdict::Status(0)
            }
            Request::Trans3Commit(buffer) => self.commit(origin, buffer),
            Request::TraverseStart(start) => self.traverse(origin, *start, false),
            Request::TraverseStartExt(TraverseStartExt { start, with_empty }) => {
                self.traverse(origin, *start, *with_empty != 0)
            }
            Request::PushRecord(push) => {
                // To all nodes: the client sends it to this one too, which tells the others.
                let Some(entry) = self.databases.get(push.db_id) else {
                    return Verdict::Failed;
                };
                if origin.client().is_some() && push.generation == self.generation() {
                    entry.mailbox.offer(Item::Push {
                        key: push.key.to_vec(),
                        header: header(push.header),
                        data: push.value.to_vec(),
                    });
                }
                Verdict::Status(0)
            }
            Request::DbVacuum(vacuum) => match self.databases.get(vacuum.db_id) {
                Some(entry) => {
                    let full = vacuum.full != 0;
                    entry.mailbox.post(Item::Vacuum { full });
                    Verdict::Status(0)
                }
                None => Verdict::Failed,
            },
            Request::SetRecmode(mode) => self.set_recmode(*mode),
            Request::DbFreeze(id) => self.question(origin, *id, Question::Freeze),
            Request::DbThaw(id) => self.question(origin, *id, Question::Thaw),
            Request::DbTransactionStart(db) => {
                self.question(origin, db.db_id, Question::TransactionStart)
            }
            Request::DbTransactionCommit(db) => {
                self.question(origin, db.db_id, Question::TransactionCommit)
            }
            Request::DbTransactionCancel(id) => {
                self.question(origin, *id, Question::TransactionCancel)
            }
            Request::WipeDatabase(db) => self.question(origin, db.db_id, Question::Wipe),
            Request::DbPushStart(push) => {
                if let Some(table) = &mut self.databases.table
                    && table.get(push.db_id).is_some()
                {
                    table.set_push(push.srvid, push.db_id);
                }
                self.question(origin, push.db_id, Question::PushStart)
            }
            Request::DbPushConfirm(id) => self.question(origin, *id, Question::PushConfirm),
            _ => Verdict::Failed,
        }
    }

    fn describe(&mut self, id: u32, text: impl FnOnce(&Entry) -> Option<Vec<u8>>) -> Verdict {
        let Some(text) = self.databases.get(id).and_then(text) else {
            return Verdict::Failed;
        };
        Reply::Text(Text(&text)).encode(&mut self.payload);
        Verdict::Status(0)
    }

    fn question(&mut self, origin: Origin, id: u32, question: Question) -> Verdict {
        match self.databases.get(id) {
            Some(entry) if entry.mailbox.offer(Item::Ask(origin, question)) => Verdict::Later,
            _ => Verdict::Failed,
        }
    }

    /// SET_DB_READONLY and SET_DB_STICKY: volatile databases only.
    fn mode(&mut self, id: u32, flag: DbFlags, item: Item) -> Verdict {
        let table = self.databases.table.as_mut();
        let Some(entry) = table.and_then(|table| table.get_mut(id)) else {
            return Verdict::Failed;
        };
        if entry.kind != Kind::Volatile {
            return Verdict::Failed;
        }
        if !entry.flags.contains(flag) {
            entry.flags |= flag;
            entry.mailbox.post(item);
        }
        Verdict::Status(0)
    }

    fn detach(&mut self, origin: Origin, id: u32) -> Verdict {
        let Some(entry) = self.databases.get(id) else {
            return Verdict::Failed;
        };
        let possible = entry.kind == Kind::Volatile
            && self.tunables.get(Tunable::AllowClientDBAttach) == 0
            && !self.is_recovering();
        if !possible {
            return Verdict::Failed;
        }
        if origin.client().is_some() {
            let nodes = self.connected_nodes();
            self.tell(nodes, &Request::DbDetach(id));
        } else if let Some(table) = &mut self.databases.table {
            table.detach(id);
        }
        Verdict::Status(0)
    }

    fn commit(&mut self, origin: Origin, buffer: &RecBuffer<'_>) -> Verdict {
        let Some(client) = origin.client() else {
            return Verdict::Failed;
        };
        let Some(changes) = changes(buffer) else {
            return Verdict::Failed;
        };
        let size: usize = changes.iter().map(Change::size).sum();
        if size > MAX_TRANSACTION {
            tracing::error!(
                size,
                "a transaction is larger than {MAX_TRANSACTION} bytes and is refused"
            );
            return Verdict::Failed;
        }
        let Some(table) = &mut self.databases.table else {
            return Verdict::Failed;
        };
        table.use_by(client, buffer.db_id);
        let followed = table.get(buffer.db_id).and_then(|entry| {
            entry.seat.call(Item::Commit {
                origin,
                client,
                changes,
            })
        });
        match followed {
            Some(outputs) => {
                self.database_says(outputs);
                Verdict::Later
            }
            None => Verdict::Failed,
        }
    }

    /// The reply goes before the records: Samba needs it so (5.8).
    fn traverse(&mut self, origin: Origin, start: TraverseStart, empty: bool) -> Verdict {
        let Some(client) = origin.client() else {
            return Verdict::Failed;
        };
        let Some(table) = &mut self.databases.table else {
            return Verdict::Failed;
        };
        table.use_by(client, start.db_id);
        let Some(entry) = table.get(start.db_id) else {
            return Verdict::Failed;
        };
        if entry.health.is_some() && self.tunables.get(Tunable::AllowUnhealthyDBRead) == 0 {
            return Verdict::Failed;
        }
        // Its thread delivers under this hub's lock, which is held until the reply is queued.
        let taken = entry.mailbox.offer(Item::Traverse {
            client,
            srvid: start.srvid,
            reqid: start.reqid,
            empty,
        });
        if taken {
            Verdict::Status(0)
        } else {
            Verdict::Failed
        }
    }

    /// 1: a recovery of all databases; 0 is what CTDB's recovery daemon says when it is over.
    fn set_recmode(&mut self, mode: u32) -> Verdict {
        match mode {
            0 => Verdict::Status(0),
            1 => {
                for entry in self.databases.table.iter().flat_map(Table::entries) {
                    entry.mailbox.post(Item::Recover);
                }
                Verdict::Status(0)
            }
            _ => Verdict::Failed,
        }
    }

    /// Records of an operator's restore come as messages (5.10).
    pub(super) fn pushed(&mut self, srvid: u64, data: &[u8]) -> bool {
        let Some(entry) = self
            .databases
            .table
            .as_ref()
            .and_then(|table| table.push(srvid))
        else {
            return false;
        };
        // The address says which database it is: the buffer may name that of the backup, or none.
        let records = Reader::new(data).value::<RecBuffer<'_>>().ok();
        if let Some(records) = records.as_ref().and_then(changes) {
            if !entry.mailbox.offer(Item::Records(records)) {
                tracing::error!(name = entry.name, "records of a restore have no room");
            }
        } else {
            tracing::error!(name = entry.name, "a message of a restore is malformed");
        }
        true
    }

    // ---- What databases say

    /// Records whose stay may be over.
    pub(super) fn holds_due(&mut self, databases: &[u32]) {
        for db in databases {
            if let Some(entry) = self.databases.get(*db) {
                let outputs = entry.seat.due();
                self.database_says(outputs);
            }
        }
    }

    /// Takes in what a database's thread said.
    pub fn database_says(&mut self, outputs: Vec<Output>) {
        let mut outputs = VecDeque::from(outputs);
        while let Some(output) = outputs.pop_front() {
            match output {
                Output::Opened { db, result } => self.opened(db, &result),
                Output::Reply {
                    client,
                    reqid,
                    status,
                    data,
                } => {
                    let data = &data;
                    self.send(client, reqid, Body::ReplyCall(ReplyCall { status, data }));
                }
                Output::Control {
                    origin,
                    status,
                    data,
                    error,
                } => self.reply(origin, status, &data, error),
                Output::Frame { to, bytes } => {
                    let to = [to].into_iter().collect();
                    let sent = &mut self.statistics.node_packets_sent;
                    *sent = sent.wrapping_add(1);
                    self.effect(Effect::Frame(to, bytes));
                }
                Output::Record { srvid, data } => {
                    for at in 0..self.registry.handlers(srvid).len() {
                        let client = self.registry.handlers(srvid)[at];
                        let data = &data;
                        self.send(client, 0, Body::Message(Message { srvid, data }));
                    }
                }
                Output::Rights { view, may } => self.rights(view, may),
                Output::Served { db, first, right } => {
                    let table = self.databases.table.as_mut();
                    if table.is_some_and(|table| table.served(db, first, right)) {
                        self.deliver(srvid::RECONFIGURE, &[]);
                    }
                    self.news_of_fates();
                }
                Output::CloseClients => {
                    let clients: Vec<ClientId> = self.clients.keys().copied().collect();
                    let all = self.clients.values().flat_map(|c| &c.connections);
                    let addresses = all.map(|connection| connection.server.ip());
                    self.databases.lost.extend(addresses);
                    self.news_of_fates();
                    for client in clients {
                        self.close(
                            client,
                            "this node was left out; its records are others' now",
                        );
                    }
                }
                Output::Went { db, key, to } => {
                    if let Some(table) = &self.databases.table {
                        outputs.extend(table.went(db, &key, to));
                    }
                }
            }
        }
    }

    fn opened(&mut self, db: u32, result: &Result<Option<String>, String>) {
        if let Err(error) = result {
            tracing::error!(
                db = format!("{db:#010x}"),
                "a database is not attached: {error}"
            );
        }
        let Some(table) = &mut self.databases.table else {
            return;
        };
        for origin in table.opened(db, result) {
            self.payload.clear();
            let verdict = if result.is_ok() {
                Reply::U32(db).encode(&mut self.payload);
                Verdict::Status(0)
            } else {
                Verdict::Failed
            };
            self.finish(origin, verdict);
        }
    }

    /// Another node's message for a database.
    pub(super) fn database_frame(&mut self, from: Pnn, payload: &[u8]) -> bool {
        let Some(table) = &mut self.databases.table else {
            return true;
        };
        let Some(outputs) = table.peer(from, payload, &self.tunables) else {
            return false;
        };
        self.database_says(outputs);
        true
    }
}
