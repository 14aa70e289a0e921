//! Whole databases: the file of `ctdb backupdb`, restoring and wiping
//! (`spec/client-protocol.md` 5.10).
//!
//! The file, as CTDB 4.17 writes it (seen, native byte order): version (u64, 3), time (i64, seconds since
//! 1970), kind (u64: 1 persistent, 8 replicated, 0 volatile), number of buffers (u64), number of records (u64), name
//! (64 bytes, NUL-filled); then per buffer a database number of no meaning (u32), its number of
//! records (u32), its length (u64) and marshalled records (`spec/database.md` C.8).

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::path::Path;

use ctdb_db::LockKind;
use ctdb_db::record::LtdbHeader;
use ctdb_wire::client::codec::{Decode as _, Reader};
use ctdb_wire::client::control::{Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::types::{DbFlags, PullDb, RecBufferBuilder, RecData, TransDb};
use ctdb_wire::ids::NodeFlags;

use super::{Database, Error, Found, Kind, Session};

/// Version of the file.
pub const VERSION: u64 = 3;
/// Longest name, its NUL included.
const NAME: usize = 64;
/// Bytes of the file's head.
const HEAD: usize = 40 + NAME;
/// Bytes in front of each buffer's records.
const BUFFER_HEAD: usize = 16;
/// A buffer is ended when it has that many bytes.
const BUFFER: usize = 256 << 10;
/// So many buffers are under way to the databases of a restore.
const TOGETHER: u32 = 32;
/// Longest buffer that is read: the largest record and what belongs to it. CTDB's tool begins a new one
/// at its tunable RecBufferSizeLimit, 1,000,000 bytes.
const MAX_BUFFER: u64 = 256 << 20;

/// The head of a backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Head {
    /// When it was made, in seconds since 1970.
    pub time: i64,
    /// Flags of the database.
    pub flags: DbFlags,
    /// How many buffers follow.
    pub buffers: u64,
    /// How many records they have.
    pub records: u64,
    /// Name of the database.
    pub name: String,
}

impl Head {
    fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        let words = [
            VERSION,
            self.time.cast_unsigned(),
            u64::from(self.flags.bits()),
            self.buffers,
            self.records,
        ];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        let name = self.name.as_bytes();
        // Attaching a longer name is refused; the last byte stays NUL.
        let length = name.len().min(NAME - 1);
        bytes[40..40 + length].copy_from_slice(&name[..length]);
        bytes
    }

    /// As CTDB's tool reads it: what is missing counts as zeros, the version alone is looked at.
    fn decode(bytes: &[u8; HEAD]) -> Result<Self, u64> {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
            u64::from_ne_bytes(word)
        };
        if word(0) != VERSION {
            return Err(word(0));
        }
        let name = &bytes[40..];
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME - 1);
        Ok(Self {
            time: word(1).cast_signed(),
            flags: DbFlags::from_bits_truncate(word(2) as u8),
            buffers: word(3),
            records: word(4),
            name: String::from_utf8_lossy(&name[..end]).into_owned(),
        })
    }

    /// What the database is.
    pub fn kind(&self) -> Kind {
        Kind::of(self.flags)
    }
}

/// A backup that is being read.
#[derive(Debug)]
pub struct Backup {
    /// Its head.
    pub head: Head,
    file: BufReader<File>,
}

/// Why a backup is not read.
#[derive(Debug)]
pub enum Unreadable {
    /// The file cannot be opened.
    Open(io::Error),
    /// It is of another version, or no backup.
    Version(u64),
    /// It ends too early, or contradicts itself.
    Records(String),
}

impl Unreadable {
    /// As an error about the file at `path`.
    pub fn about(self, path: &Path) -> Error {
        let path = path.to_owned();
        match self {
            Self::Open(source) => Error::Io {
                doing: "opening",
                path,
                source,
            },
            Self::Version(version) => Error::Backup {
                path,
                why: format!("it has version {version}, and only {VERSION} is known"),
            },
            Self::Records(why) => Error::Backup { path, why },
        }
    }
}

impl Backup {
    /// Opens a backup and reads its head.
    pub fn open(path: &Path) -> Result<Self, Unreadable> {
        let mut file = BufReader::new(File::open(path).map_err(Unreadable::Open)?);
        let mut head = [0; HEAD];
        let mut there = 0;
        while there < HEAD {
            match file.read(&mut head[there..]) {
                Ok(0) => break,
                Ok(count) => there += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Unreadable::Open(error)),
            }
        }
        let head = Head::decode(&head).map_err(Unreadable::Version)?;
        Ok(Self { head, file })
    }

    /// Calls `each` with every buffer: how many records it has, and their bytes, which are checked.
    pub fn buffers<E: From<Unreadable>>(
        &mut self,
        mut each: impl FnMut(u32, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut bytes = Vec::new();
        for _ in 0..self.head.buffers {
            let count = self.buffer(&mut bytes)?;
            each(count, &bytes)?;
        }
        Ok(())
    }

    fn buffer(&mut self, bytes: &mut Vec<u8>) -> Result<u32, Unreadable> {
        let mut head = [0; BUFFER_HEAD];
        let short = |error: io::Error| Unreadable::Records(format!("it ends too early ({error})"));
        self.file.read_exact(&mut head).map_err(short)?;
        let mut reader = Reader::new(&head);
        let malformed = |what: &str| Unreadable::Records(what.to_owned());
        let fields = (|| {
            let _: u32 = reader.value().ok()?;
            Some((reader.value::<u32>().ok()?, reader.value::<u64>().ok()?))
        })();
        let (count, length) = fields.ok_or_else(|| malformed("a buffer has no head"))?;
        if length > MAX_BUFFER {
            return Err(malformed("a buffer is too long"));
        }
        bytes.clear();
        let read = (&mut self.file).take(length).read_to_end(bytes);
        if read.map_err(short)? as u64 != length {
            return Err(malformed("it ends inside a buffer"));
        }
        let mut reader = Reader::new(bytes);
        for _ in 0..count {
            let record = RecData::decode(&mut reader);
            if record.ok().is_none_or(|record| record.record().is_none()) {
                return Err(malformed("a record contradicts its length"));
            }
        }
        if !reader.rest().is_empty() {
            return Err(malformed("bytes follow the last record of a buffer"));
        }
        Ok(count)
    }

    /// Calls `each` with every record.
    pub fn records<E: From<Unreadable>>(
        &mut self,
        mut each: impl FnMut(&[u8], &LtdbHeader, &[u8]) -> Result<(), E>,
    ) -> Result<u64, E> {
        let mut records = 0;
        self.buffers::<E>(|count, bytes| {
            let mut reader = Reader::new(bytes);
            for _ in 0..count {
                // Both were checked.
                if let Ok(record) = reader.value::<RecData<'_>>()
                    && let Some((header, data)) = LtdbHeader::split(record.data)
                {
                    records += 1;
                    each(record.key, &header, data)?;
                }
            }
            Ok(())
        })?;
        Ok(records)
    }

    /// Reads all of it, and says whether it is whole; then it can be read again.
    pub fn check(&mut self) -> Result<(), Unreadable> {
        let mut records = 0;
        self.buffers(|count, _| {
            records += u64::from(count);
            Ok::<_, Unreadable>(())
        })?;
        if records != self.head.records {
            let text = format!("it has {records} records instead of {}", self.head.records);
            return Err(Unreadable::Records(text));
        }
        self.file
            .seek(SeekFrom::Start(HEAD as u64))
            .map_err(Unreadable::Open)?;
        Ok(())
    }
}

/// Collects records into buffers of a bounded size.
struct Buffers<F> {
    builder: RecBufferBuilder,
    empty: usize,
    db_id: u32,
    full: F,
}

impl<E, F: FnMut(&[u8]) -> Result<(), E>> Buffers<F> {
    fn new(db_id: u32, full: F) -> Self {
        let builder = RecBufferBuilder::new(db_id);
        Self {
            empty: builder.len(),
            builder,
            db_id,
            full,
        }
    }

    fn push(&mut self, key: &[u8], data: &[u8]) -> Result<(), E> {
        let size = RecData::LEAST + key.len() + data.len();
        if self.builder.len() + size > BUFFER {
            self.flush()?;
        }
        let record = RecData {
            reqid: 0,
            key,
            data,
        };
        self.builder.push(&record);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), E> {
        if self.builder.len() == self.empty {
            return Ok(());
        }
        let next = RecBufferBuilder::new(self.db_id);
        let bytes = std::mem::replace(&mut self.builder, next).finish();
        (self.full)(&bytes)
    }
}

/// Writes a backup of this node's copy: of a volatile database the records that it owns and that are
/// not empty, of others all, none of a transaction that commits meanwhile. How many there were.
pub fn write(db: &mut Database, pnn: u32, time: i64, path: &Path) -> Result<u64, Error> {
    let file = File::create(path).map_err(|source| io_error("creating", path, source))?;
    let mut out = BufWriter::new(file);
    let failed = |source| io_error("writing", path, source);
    let mut head = Head {
        time,
        flags: match db.kind {
            Kind::Volatile => DbFlags::empty(),
            Kind::Persistent => DbFlags::PERSISTENT,
            Kind::Replicated => DbFlags::REPLICATED,
        },
        buffers: 0,
        records: 0,
        name: db.name.clone(),
    };
    out.write_all(&head.encode()).map_err(failed)?;
    let (id, kind) = (db.id, db.kind);
    let mut buffers = Buffers::new(id, |bytes: &[u8]| {
        head.buffers += 1;
        // Number and count stand in front; the length comes between them and the records.
        let (front, records) = bytes.split_at(8);
        let length = records.len() as u64;
        out.write_all(front)
            .and_then(|()| out.write_all(&length.to_ne_bytes()))
            .and_then(|()| out.write_all(records))
            .map_err(failed)
    });
    // No commit comes between: one is under a lock on all records.
    let held = kind != Kind::Volatile;
    if held {
        db.tdb.lock_all(LockKind::Shared)?;
    }
    let mut records = 0;
    let done = db.each(|key, header, data| {
        if kind == Kind::Volatile && (header.dmaster != pnn || data.is_empty()) {
            return Ok(());
        }
        records += 1;
        buffers.push(key, &header.join(data))
    });
    if held {
        db.tdb.unlock_all()?;
    }
    done?;
    buffers.flush()?;
    head.records = records;
    let file = out
        .into_inner()
        .map_err(|error| failed(error.into_error()))?;
    let whole = (|| {
        let mut file = file;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&head.encode())?;
        file.sync_all()
    })();
    whole.map_err(failed)?;
    Ok(records)
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> Error {
    Error::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

impl Session {
    /// Empties a database on all nodes.
    pub fn wipe(&mut self, db: &Found) -> Result<(), Error> {
        self.replace(db.id, None).map_err(|error| match error {
            Failed::Client(error) => error,
            // Nothing is read.
            Failed::Backup(_) => Error::Broken("a wipe read a backup".into()),
        })
    }

    /// Replaces a database's records by those of a backup, on all nodes. The backup is checked before
    /// anything is changed.
    pub fn restore(&mut self, db_id: u32, backup: &mut Backup, path: &Path) -> Result<(), Error> {
        backup.check().map_err(|why| why.about(path))?;
        self.replace(db_id, Some(backup))
            .map_err(|error| match error {
                Failed::Client(error) => error,
                Failed::Backup(why) => why.about(path),
            })
    }

    /// Freezes the database on all nodes and replaces what is in it, as libctdb does (5.10). A failure
    /// half-way is mended by a recovery.
    fn replace(&mut self, db_id: u32, backup: Option<&mut Backup>) -> Result<(), Failed> {
        let nodes: Vec<u32> = self
            .nodes()?
            .iter()
            .filter(|node| {
                !node
                    .flags
                    .intersects(NodeFlags::DISCONNECTED | NodeFlags::DELETED)
            })
            .map(|node| node.pnn)
            .collect();
        let generation = self.generation()?;
        let done = self.replace_on(&nodes, db_id, generation, backup);
        if done.is_err() {
            for node in &nodes {
                for (name, request) in [
                    ("DB_TRANSACTION_CANCEL", Request::DbTransactionCancel(db_id)),
                    ("DB_THAW", Request::DbThaw(db_id)),
                ] {
                    // The recovery that follows does the rest.
                    let _ = self.connection.control(name, *node, 0, &request);
                }
            }
            let request = Request::SetRecmode(1);
            let _ = self
                .connection
                .control("SET_RECMODE", node::CURRENT, 0, &request);
        }
        done
    }

    fn replace_on(
        &mut self,
        nodes: &[u32],
        db_id: u32,
        tid: u32,
        backup: Option<&mut Backup>,
    ) -> Result<(), Failed> {
        let transaction = TransDb { db_id, tid };
        self.on_all(nodes, "DB_FREEZE", &Request::DbFreeze(db_id))?;
        self.on_all(
            nodes,
            "DB_TRANSACTION_START",
            &Request::DbTransactionStart(transaction),
        )?;
        self.on_all(nodes, "WIPE_DATABASE", &Request::WipeDatabase(transaction))?;
        if let Some(backup) = backup {
            self.send_records(nodes, db_id, backup)?;
            self.on_all(nodes, "DB_SET_HEALTHY", &Request::DbSetHealthy(db_id))?;
        }
        self.on_all(
            nodes,
            "DB_TRANSACTION_COMMIT",
            &Request::DbTransactionCommit(transaction),
        )?;
        self.on_all(nodes, "DB_THAW", &Request::DbThaw(db_id))?;
        Ok(())
    }

    fn send_records(
        &mut self,
        nodes: &[u32],
        db_id: u32,
        backup: &mut Backup,
    ) -> Result<(), Failed> {
        let srvid: u64 = rand::random();
        let push = PullDb {
            db_id,
            lmaster: u32::MAX,
            srvid,
        };
        self.on_all(nodes, "DB_PUSH_START", &Request::DbPushStart(push))?;
        let expected = backup.head.records;
        let pnn = self.pnn();
        let connection = &mut self.connection;
        let mut sent = 0_u32;
        let mut buffers = Buffers::new(db_id, |bytes: &[u8]| {
            for node in nodes {
                connection.message(*node, srvid, bytes)?;
            }
            sent += 1;
            if sent.is_multiple_of(TOGETHER) {
                // The answers say that all of it was taken, so that no more is under way.
                for node in nodes {
                    connection.good("DB_PUSH_CONFIRM", *node, &Request::DbPushConfirm(db_id))?;
                }
            }
            Ok::<_, Failed>(())
        });
        backup.records(|key, header, data| {
            let header = LtdbHeader {
                dmaster: pnn,
                ..*header
            };
            buffers.push(key, &header.join(data))
        })?;
        buffers.flush()?;
        let request = Request::DbPushConfirm(db_id);
        for node in nodes {
            let count = self
                .connection
                .read("DB_PUSH_CONFIRM", *node, &request, |reply| match reply {
                    Reply::U32(count) => Some(count),
                    _ => None,
                })?;
            if u64::from(count) != expected {
                return Err(Failed::Client(Error::Broken(format!(
                    "node {node} took {count} records of {expected}"
                ))));
            }
        }
        Ok(())
    }

    fn on_all(
        &mut self,
        nodes: &[u32],
        name: &'static str,
        request: &Request<'_>,
    ) -> Result<(), Error> {
        for node in nodes {
            self.connection.good(name, *node, request)?;
        }
        Ok(())
    }
}

/// Why a database was not replaced.
#[derive(Debug)]
enum Failed {
    Client(Error),
    Backup(Unreadable),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Client(error)
    }
}

impl From<Unreadable> for Failed {
    fn from(why: Unreadable) -> Self {
        Self::Backup(why)
    }
}
