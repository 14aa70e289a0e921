//! A process that uses databases: finding, attaching, records under their chain locks, traverses.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ctdb_db::record::{LtdbHeader, RecordFlags};
use ctdb_db::{LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind, Wait};
use ctdb_wire::client::codec::decode_all;
use ctdb_wire::client::control::{Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::packet::{CallFlags, CallId};
use ctdb_wire::client::types::{
    DbFlags, KeyData, LtdbHeader as WireHeader, PushRecord, RecData, RecordFlags as WireFlags,
    Text, TraverseStart, TraverseStartExt,
};
use ctdb_wire::ids::NodeFlags;

use super::{Connection, Error};

/// Between two tries of a record that went away again before its chain was locked.
const RETRY: Duration = Duration::from_millis(1);

/// What a database is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Its records migrate.
    Volatile,
    /// All nodes have all records, on disk.
    Persistent,
    /// All nodes have all records, as long as one lives.
    Replicated,
}

impl Kind {
    /// Of a database with these flags.
    pub fn of(flags: DbFlags) -> Self {
        if flags.contains(DbFlags::PERSISTENT) {
            Self::Persistent
        } else if flags.contains(DbFlags::REPLICATED) {
            Self::Replicated
        } else {
            Self::Volatile
        }
    }

    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Volatile => "volatile",
            Self::Persistent => "persistent",
            Self::Replicated => "replicated",
        }
    }

    /// Of that word.
    pub fn named(word: &str) -> Option<Self> {
        [Self::Volatile, Self::Persistent, Self::Replicated]
            .into_iter()
            .find(|kind| kind.name() == word)
    }

    pub(super) fn with_article(self) -> String {
        format!("a {}", self.name())
    }
}

/// A database of the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its flags.
    pub flags: DbFlags,
}

/// A node of the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeEntry {
    /// Its number.
    pub pnn: u32,
    /// Its flags.
    pub flags: NodeFlags,
}

/// A database, opened.
#[derive(Debug)]
pub struct Database {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Its file on this node.
    pub path: PathBuf,
    /// The open file.
    pub tdb: Tdb,
}

impl Database {
    /// Header and data of the record as this node's file has it.
    pub fn local(&mut self, key: &[u8]) -> Result<Option<(LtdbHeader, Vec<u8>)>, Error> {
        let value = self.tdb.fetch(key)?;
        let split = value.as_deref().and_then(LtdbHeader::split);
        Ok(split.map(|(header, data)| (header, data.to_vec())))
    }

    /// Calls `each` with every record of this node's file, until it fails; how many there were.
    pub fn each<E: From<Error>>(
        &mut self,
        mut each: impl FnMut(&[u8], &LtdbHeader, &[u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut failed = None;
        let mut count = 0;
        self.tdb
            .traverse(TraverseKind::Read, |_, key, value| {
                let Some((header, data)) = LtdbHeader::split(value) else {
                    return Ok(ControlFlow::Continue(()));
                };
                count += 1;
                Ok(match each(key, &header, data) {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                })
            })
            .map_err(|error| E::from(error.into()))?;
        failed.map_or(Ok(count), Err)
    }
}

/// A process's connection.
#[derive(Debug)]
pub struct Session {
    /// The connection itself.
    pub connection: Connection,
    pnn: u32,
    unique: u64,
    until: Instant,
}

impl Session {
    /// Connects, asks for the node's number, registers an address. No answer may take longer than
    /// `limit`, and nothing is waited for after `until`.
    pub fn open(socket: &Path, limit: Duration, until: Instant) -> Result<Self, Error> {
        Self::on(Connection::open(socket, limit)?, until)
    }

    /// The same on a connection that is there.
    pub fn on(mut connection: Connection, until: Instant) -> Result<Self, Error> {
        let pnn = connection
            .control("GET_PNN", node::CURRENT, 0, &Request::GetPnn)?
            .status;
        let pnn = u32::try_from(pnn).map_err(|_| Error::Refused {
            control: "GET_PNN",
            status: pnn,
            text: String::new(),
        })?;
        let unique = rand::random();
        connection.register(unique)?;
        Ok(Self {
            connection,
            pnn,
            unique,
            until,
        })
    }

    /// Number of its node.
    pub fn pnn(&self) -> u32 {
        self.pnn
    }

    /// The address by which CHECK_PID_SRVID knows it.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// When waiting ends.
    pub fn until(&self) -> Instant {
        self.until
    }

    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// A control to the own node with a status of 0.
    pub fn own(&mut self, name: &'static str, request: &Request<'_>) -> Result<Vec<u8>, Error> {
        self.connection.good(name, node::CURRENT, request)
    }

    /// All nodes of the list, with their flags.
    pub fn nodes(&mut self) -> Result<Vec<NodeEntry>, Error> {
        let request = Request::GetNodeMap;
        self.connection
            .read("GET_NODEMAP", node::CURRENT, &request, |reply| {
                let Reply::NodeMap(map) = reply else {
                    return None;
                };
                let entry = |one: &ctdb_wire::client::types::NodeMapEntry| NodeEntry {
                    pnn: one.pnn,
                    flags: NodeFlags::from_bits_retain(one.flags),
                };
                Some(map.iter().map(entry).collect())
            })
    }

    /// Numbers of the nodes that are linked and of use.
    pub fn active(&mut self) -> Result<Vec<u32>, Error> {
        let nodes = self.nodes()?;
        let active = nodes.iter().filter(|node| !node.flags.is_inactive());
        Ok(active.map(|node| node.pnn).collect())
    }

    /// A text that the daemon has about a database.
    pub fn text(
        &mut self,
        name: &'static str,
        request: &Request<'_>,
    ) -> Result<Option<String>, Error> {
        let said = |text: Text<'_>| String::from_utf8_lossy(text.0).into_owned();
        self.connection
            .read(name, node::CURRENT, request, |reply| match reply {
                Reply::Text(text) => Some(Some(said(text))),
                Reply::OptionalText(text) => Some(text.map(said)),
                _ => None,
            })
    }

    /// All databases.
    pub fn databases(&mut self) -> Result<Vec<Found>, Error> {
        let request = Request::GetDbMap;
        let map =
            self.connection
                .read("GET_DBMAP", node::CURRENT, &request, |reply| match reply {
                    Reply::DbMap(map) => Some(map),
                    _ => None,
                })?;
        let mut found = Vec::with_capacity(map.len());
        for entry in map {
            // One that is detached meanwhile is none.
            let name = match self.text("GET_DBNAME", &Request::GetDbName(entry.db_id)) {
                Ok(name) => name.unwrap_or_default(),
                Err(Error::Refused { .. }) => continue,
                Err(error) => return Err(error),
            };
            found.push(Found {
                id: entry.db_id,
                name,
                flags: entry.flags,
            });
        }
        Ok(found)
    }

    /// The database of that name or number (`0x...`).
    pub fn find(&mut self, word: &str) -> Result<Found, Error> {
        let number = word
            .strip_prefix("0x")
            .and_then(|digits| u32::from_str_radix(digits, 16).ok());
        self.databases()?
            .into_iter()
            .find(|one| number == Some(one.id) || one.name == word)
            .ok_or_else(|| Error::NoDatabase(word.to_owned()))
    }

    /// Attaches a database of that name, which makes it if there is none; its number.
    pub fn attach(&mut self, name: &str, kind: Kind) -> Result<u32, Error> {
        let text = Text(name.as_bytes());
        let (control, request) = match kind {
            Kind::Volatile => ("DB_ATTACH", Request::DbAttach(text)),
            Kind::Persistent => ("DB_ATTACH_PERSISTENT", Request::DbAttachPersistent(text)),
            Kind::Replicated => ("DB_ATTACH_REPLICATED", Request::DbAttachReplicated(text)),
        };
        let answer = self
            .connection
            .control(control, node::CURRENT, 0, &request)?;
        if answer.status != 0 {
            return Err(Error::NotAttached {
                name: name.to_owned(),
                status: answer.status,
            });
        }
        match Reply::decode(request.opcode(), &answer.data) {
            Ok(Reply::U32(id)) => Ok(id),
            _ => Err(Error::Broken(format!(
                "the answer to {control} is malformed"
            ))),
        }
    }

    /// Attaches a database and opens its file as the daemon says (8.3).
    pub fn open_database(&mut self, name: &str, kind: Kind) -> Result<Database, Error> {
        let id = self.attach(name, kind)?;
        let path = self
            .text("GETDBPATH", &Request::GetDbPath(id))?
            .unwrap_or_default();
        if let Some(health) = self.text("DB_GET_HEALTH", &Request::DbGetHealth(id))? {
            return Err(Error::Unhealthy {
                name: name.to_owned(),
                health,
            });
        }
        let flags = self.connection.read(
            "DB_OPEN_FLAGS",
            node::CURRENT,
            &Request::DbOpenFlags(id),
            |reply| match reply {
                Reply::I32(flags) => Some(flags.cast_unsigned()),
                _ => None,
            },
        )?;
        let path = PathBuf::from(path);
        let options = OpenOptions {
            flags: OpenFlags::from_bits_retain(flags),
            wait: Wait::UpTo(self.left()),
            ..OpenOptions::default()
        };
        let tdb = Tdb::open(&path, &options)?;
        Ok(Database {
            id,
            name: name.to_owned(),
            kind,
            path,
            tdb,
        })
    }

    /// A database that there is, opened.
    pub fn open_found(&mut self, found: &Found) -> Result<Database, Error> {
        self.open_database(&found.name, Kind::of(found.flags))
    }

    /// The database of that name or number, opened.
    pub fn open_named(&mut self, word: &str) -> Result<Database, Error> {
        let found = self.find(word)?;
        self.open_found(&found)
    }

    /// Writes a record; empty data deletes it. Where all nodes have all records it is a transaction.
    pub fn put(&mut self, db: &mut Database, key: &[u8], data: &[u8]) -> Result<(), Error> {
        match (db.kind, data.is_empty()) {
            (Kind::Volatile, true) => self.delete(db, key),
            (Kind::Volatile, false) => self.store(db, key, data),
            _ => self.transaction(db, |changes| changes.put(key, data)),
        }
    }

    /// Locks a record on this node, and makes it this node's if it is not (9.2). A reader may do with a
    /// copy that is only to be read.
    pub fn lock<'a>(
        &mut self,
        db: &'a mut Database,
        key: &'a [u8],
        read_only: bool,
    ) -> Result<Locked<'a>, Error> {
        if key.is_empty() {
            return Err(Error::Refused {
                control: "CALL",
                status: EINVAL,
                text: "a record of a volatile database has a key".into(),
            });
        }
        let flags = if read_only {
            CallFlags::IMMEDIATE_MIGRATION | CallFlags::WANT_READONLY
        } else {
            CallFlags::IMMEDIATE_MIGRATION
        };
        let mut asked = false;
        loop {
            db.tdb
                .chain_lock(key, LockKind::Exclusive, Wait::UpTo(self.left()))?;
            match db.local(key) {
                Err(error) => {
                    let _ = db.tdb.chain_unlock(key);
                    return Err(error);
                }
                Ok(Some((header, data))) if usable(&header, self.pnn, read_only) => {
                    return Ok(Locked {
                        header,
                        data,
                        held: true,
                        key,
                        db,
                    });
                }
                Ok(_) => db.tdb.chain_unlock(key)?,
            }
            if self.left().is_zero() {
                return Err(Error::Busy(format!(
                    "the record does not stay on this node: {}",
                    ctdb_db::dump::escaped(key)
                )));
            }
            if asked {
                // It came and went on before its chain was locked.
                thread::sleep(RETRY);
            }
            asked = true;
            self.connection.call(db.id, CallId::Null, flags, key)?;
        }
    }

    /// The data of a record; `None` if there is none, or it is empty. A volatile record stays where it
    /// is: its owner is asked.
    pub fn fetch(&mut self, db: &mut Database, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let some = |data: Vec<u8>| (!data.is_empty()).then_some(data);
        let local = db.local(key)?;
        if db.kind != Kind::Volatile {
            return Ok(local.and_then(|(_, data)| some(data)));
        }
        if let Some((header, data)) = local
            && header.dmaster == self.pnn
        {
            return Ok(some(data));
        }
        let flags = CallFlags::WANT_READONLY;
        Ok(some(self.connection.call(
            db.id,
            CallId::Fetch,
            flags,
            key,
        )?))
    }

    /// Stores a record of a volatile database, whether or not it is there.
    pub fn store(&mut self, db: &mut Database, key: &[u8], data: &[u8]) -> Result<(), Error> {
        let mut record = self.lock(db, key, false)?;
        record.store(data)?;
        record.unlock()
    }

    /// Deletes a record of a volatile database: it is empty, and the daemon is told.
    pub fn delete(&mut self, db: &mut Database, key: &[u8]) -> Result<(), Error> {
        let mut record = self.lock(db, key, false)?;
        record.store(b"")?;
        let header = record.header;
        record.unlock()?;
        self.forget(db, key, &header)
    }

    /// Tells the daemon that a record is empty and may go.
    pub fn forget(&mut self, db: &Database, key: &[u8], header: &LtdbHeader) -> Result<(), Error> {
        let data = KeyData {
            db_id: db.id,
            header: wire_header(header),
            key,
        };
        self.own("SCHEDULE_FOR_DELETION", &Request::ScheduleForDeletion(data))
            .map(drop)
    }

    /// Stores a record of a volatile database and has a copy of it sent to all nodes (D.16).
    pub fn push(&mut self, db: &mut Database, key: &[u8], data: &[u8]) -> Result<(), Error> {
        if db.kind != Kind::Volatile {
            return Err(Error::WrongKind {
                name: db.name.clone(),
                kind: db.kind,
                wanted: "every node has its records already",
            });
        }
        let generation = self.generation()?;
        let id = db.id;
        let mut record = self.lock(db, key, false)?;
        // Above all older copies, which are told apart by it (D.16).
        record.header.rsn.0 += 1;
        record.store(data)?;
        let header = wire_header(&record.header);
        record.unlock()?;
        let push = PushRecord {
            generation,
            db_id: id,
            header,
            key,
            value: data,
        };
        self.own("PUSH_RECORD", &Request::PushRecord(push))
            .map(drop)
    }

    /// Calls `each` with every record of the database on all nodes, empty ones too if asked for (5.8).
    pub fn traverse<E: From<Error>>(
        &mut self,
        db_id: u32,
        empty: bool,
        mut each: impl FnMut(&[u8], &LtdbHeader, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let srvid = self.unique;
        let start = TraverseStartExt {
            start: TraverseStart {
                db_id,
                reqid: 1,
                srvid,
            },
            with_empty: u8::from(empty),
        };
        self.own("TRAVERSE_START_EXT", &Request::TraverseStartExt(start))?;
        loop {
            let data = self.connection.mail("TRAVERSE_START_EXT", srvid)?;
            let record: RecData<'_> = decode_all(&data)
                .map_err(|error| Error::Broken(format!("a record of a traverse: {error}")))?;
            if record.key.is_empty() && record.data.is_empty() {
                return Ok(());
            }
            let Some((header, data)) = LtdbHeader::split(record.data) else {
                continue;
            };
            if !data.is_empty() || empty {
                each(record.key, &header, data)?;
            }
        }
    }
}

fn wire_header(header: &LtdbHeader) -> WireHeader {
    WireHeader {
        rsn: header.rsn.0,
        dmaster: header.dmaster,
        reserved: 0,
        flags: WireFlags::from_bits_retain(header.flags.bits()),
    }
}

/// EINVAL, which libctdb says of a key without bytes.
const EINVAL: i32 = 22;

/// Whether the record may be used as it lies in this node's file.
fn usable(header: &LtdbHeader, pnn: u32, read_only: bool) -> bool {
    if read_only && header.flags.contains(RecordFlags::RO_HAVE_READONLY) {
        return true;
    }
    header.dmaster == pnn && (read_only || !header.flags.contains(RecordFlags::RO_HAVE_DELEGATIONS))
}

/// A record, its chain locked. Dropping it unlocks.
#[derive(Debug)]
pub struct Locked<'a> {
    /// Its header, which a client does not change, except to push the record.
    pub header: LtdbHeader,
    /// Its data as it was found.
    pub data: Vec<u8>,
    held: bool,
    key: &'a [u8],
    db: &'a mut Database,
}

impl Locked<'_> {
    /// Stores new data.
    pub fn store(&mut self, data: &[u8]) -> Result<(), Error> {
        let value = self.header.join(data);
        self.db.tdb.store(self.key, &value, StoreMode::Replace)?;
        Ok(())
    }

    /// Unlocks, and says whether that went well.
    pub fn unlock(mut self) -> Result<(), Error> {
        self.held = false;
        self.db.tdb.chain_unlock(self.key)?;
        Ok(())
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.held {
            let _ = self.db.tdb.chain_unlock(self.key);
        }
    }
}
