//! A process's connection to its node's daemon, and the databases that it has opened.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ctdb_db::record::{LtdbHeader, RecordFlags};
use ctdb_db::{Error, LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind, Wait};
use ctdb_wire::client::codec::decode_all;
use ctdb_wire::client::control::{Opcode, Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::packet::{CallFlags, CallId};
use ctdb_wire::client::types::{
    KeyData, LtdbHeader as WireHeader, RecData, RecordFlags as WireFlags, Text, TraverseStart,
};

use crate::client::Client;
use crate::lab::Node;

/// Flags of a node that may not be used (INACTIVE): disconnected, deleted, banned, stopped.
const INACTIVE: u32 = 0x1 | 0x8 | 0x10 | 0x20;

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

/// A connection as a Samba process makes it.
pub struct Session {
    /// The connection itself.
    pub client: Client,
    /// Number of its node.
    pnn: u32,
    /// The address that tells this process from others.
    unique: u64,
    root: PathBuf,
    /// How long a record's chain is waited for before the connection is looked at again.
    wait: Wait,
    /// How long a record is tried for.
    patience: Duration,
}

/// A database, opened.
pub struct Database {
    /// Its number.
    pub id: u32,
    /// What it is.
    pub kind: Kind,
    /// Its file.
    pub path: PathBuf,
    /// The open file.
    pub tdb: Tdb,
}

impl Session {
    /// Connects, asks who the node is and whether it may be used, registers an address
    /// (spec/client-protocol.md 8.2).
    pub fn connect(node: &Node) -> Result<Self> {
        Self::connect_within(node, Duration::from_secs(20))
    }

    /// As [`Self::connect`]; no answer may take longer than `patience`.
    pub fn connect_within(node: &Node, patience: Duration) -> Result<Self> {
        let mut client = Client::connect(&node.root().join("run/ctdb/ctdbd.socket"))?;
        client.set_patience(patience);
        let pnn = client.control(node::CURRENT, 0, &Request::GetPnn)?.status;
        let pnn = u32::try_from(pnn).context("a node without number")?;
        let data = client.own(&Request::GetNodeMap)?;
        let Reply::NodeMap(map) = Reply::decode(Opcode::GetNodeMap, &data)? else {
            bail!("no map of nodes");
        };
        let own = map
            .iter()
            .find(|entry| entry.pnn == pnn)
            .with_context(|| format!("node {pnn} is not in its own map"))?;
        ensure!(own.flags & INACTIVE == 0, "node {pnn} is inactive");
        let unique = rand::random();
        client.register(unique)?;
        Ok(Self {
            client,
            pnn,
            unique,
            root: node.root().to_path_buf(),
            wait: Wait::UpTo(Duration::from_millis(100)),
            patience,
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

    /// Waits for chains in the kernel, as smbd does: what is measured must not poll.
    pub fn wait_in_kernel(&mut self) {
        self.wait = Wait::Forever;
    }

    /// Attaches a database and opens its file as the daemon says (8.3).
    pub fn attach(&mut self, name: &str, kind: Kind) -> Result<Database> {
        let text = Text(name.as_bytes());
        let request = match kind {
            Kind::Volatile => Request::DbAttach(text),
            Kind::Persistent => Request::DbAttachPersistent(text),
            Kind::Replicated => Request::DbAttachReplicated(text),
        };
        let id: u32 = decode_all(&self.client.own(&request)?)?;
        ensure!(
            id == ctdb_db::record::DbId::of(name).0,
            "{name} has the number {id:#x}"
        );
        let path = self.client.own(&Request::GetDbPath(id))?;
        let path = path.strip_suffix(&[0]).context("a path without NUL")?;
        let path = self.outside(Path::new(std::str::from_utf8(path)?));
        let flags: u32 = decode_all(&self.client.own(&Request::DbOpenFlags(id))?)?;
        let options = OpenOptions {
            flags: OpenFlags::from_bits_retain(flags),
            wait: Wait::UpTo(Duration::from_secs(30)),
            ..OpenOptions::default()
        };
        let tdb = Tdb::open(&path, &options).with_context(|| format!("opening {name}"))?;
        Ok(Database {
            id,
            kind,
            path,
            tdb,
        })
    }

    /// The path as it is outside the mount namespace in which Debian's daemon runs.
    fn outside(&self, path: &Path) -> PathBuf {
        if path.starts_with(&self.root) {
            return path.to_path_buf();
        }
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Locks a record on this node, and makes it this node's if it is not (9.2). `calls` counts the
    /// requests to the daemon.
    pub fn lock<'a>(&mut self, db: &'a mut Database, key: &'a [u8]) -> Result<Locked<'a>> {
        let until = Instant::now() + self.patience;
        let mut calls = 0;
        loop {
            if !self.chain(db, key, until)? {
                bail!("the chain of {key:02x?} stays locked");
            }
            let value = match db.tdb.fetch(key) {
                Ok(value) => value,
                Err(error) => {
                    let _ = db.tdb.chain_unlock(key);
                    return Err(error.into());
                }
            };
            if let Some((header, data)) = value.as_deref().and_then(LtdbHeader::split)
                && header.dmaster == self.pnn
                && !header.flags.contains(RecordFlags::RO_HAVE_DELEGATIONS)
            {
                return Ok(Locked {
                    header,
                    data: data.to_vec(),
                    calls,
                    held: true,
                    key,
                    db,
                });
            }
            db.tdb.chain_unlock(key)?;
            ensure!(
                Instant::now() < until,
                "the record {key:02x?} does not come"
            );
            calls += 1;
            let answer =
                self.client
                    .call(db.id, CallId::Null, CallFlags::IMMEDIATE_MIGRATION, key)?;
            ensure!(answer.status == 0, "{answer:?}");
        }
    }

    /// Locks the chain; a daemon that is gone ends the wait.
    fn chain(&self, db: &mut Database, key: &[u8], until: Instant) -> Result<bool> {
        loop {
            match db.tdb.chain_lock(key, LockKind::Exclusive, self.wait) {
                Ok(()) if self.wait == Wait::Forever => return Ok(true),
                // A process whose daemon is gone ends; it must not go on with what it has.
                Ok(()) if self.client.ended() => {
                    db.tdb.chain_unlock(key)?;
                    bail!("the daemon closed the connection");
                }
                Ok(()) => return Ok(true),
                Err(Error::Busy { .. }) if Instant::now() < until => {
                    ensure!(!self.client.ended(), "the daemon closed the connection");
                }
                Err(Error::Busy { .. }) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Changes a record: `change` makes the new data of the old. Both are given back.
    pub fn change(
        &mut self,
        db: &mut Database,
        key: &[u8],
        change: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Result<(Vec<u8>, Vec<u8>)> {
        let mut record = self.lock(db, key)?;
        let new = change(&record.data);
        record.store(&new)?;
        let old = std::mem::take(&mut record.data);
        record.unlock()?;
        Ok((old, new))
    }

    /// Deletes a record as Samba does: empty, and the daemon is told.
    pub fn delete(&mut self, db: &mut Database, key: &[u8]) -> Result<()> {
        let mut record = self.lock(db, key)?;
        record.store(b"")?;
        let header = record.header;
        record.unlock()?;
        self.forget(db, key, &header)
    }

    /// Tells the daemon that a record is empty and may go; no answer is wanted.
    pub fn forget(&mut self, db: &Database, key: &[u8], header: &LtdbHeader) -> Result<()> {
        let data = KeyData {
            db_id: db.id,
            header: WireHeader {
                rsn: header.rsn.0,
                dmaster: header.dmaster,
                reserved: 0,
                flags: WireFlags::from_bits_retain(header.flags.bits()),
            },
            key,
        };
        self.client
            .tell(node::CURRENT, &Request::ScheduleForDeletion(data))
    }

    /// Reads a record without lock, from the local copy if that may be used, else from the daemon
    /// (9.3). `None` if there is none or it is empty.
    pub fn read(&mut self, db: &mut Database, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let found = |data: &[u8]| (!data.is_empty()).then(|| data.to_vec());
        let value = db.tdb.fetch(key)?;
        let local = value.as_deref().and_then(LtdbHeader::split);
        if db.kind != Kind::Volatile {
            return Ok(local.and_then(|(_, data)| found(data)));
        }
        if let Some((header, data)) = local
            && (header.dmaster == self.pnn || header.flags.contains(RecordFlags::RO_HAVE_READONLY))
        {
            return Ok(found(data));
        }
        let flags = if local.is_some() {
            CallFlags::WANT_READONLY
        } else {
            CallFlags::empty()
        };
        let answer = self.client.call(db.id, CallId::Fetch, flags, key)?;
        ensure!(answer.status == 0, "{answer:?}");
        Ok(found(&answer.data))
    }

    /// All records with data, as every node's daemon sends them (8.5), on the given connection.
    pub fn traverse(&mut self, db: &Database) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let start = TraverseStart {
            db_id: db.id,
            reqid: 7,
            srvid: self.unique,
        };
        self.client.own(&Request::TraverseStart(start))?;
        let mut records = Vec::new();
        loop {
            let mail = self
                .client
                .next_mail(self.patience)?
                .context("the traverse does not end")?;
            if mail.srvid != self.unique {
                continue;
            }
            let record: RecData<'_> = decode_all(&mail.data)?;
            if record.key.is_empty() && record.data.is_empty() {
                return Ok(records);
            }
            let (_, data) = LtdbHeader::split(record.data).context("a record without header")?;
            if !data.is_empty() {
                records.push((record.key.to_vec(), data.to_vec()));
            }
        }
    }

    /// Whether the process that registered `unique` on node `pnn` lives, as far as its daemon knows.
    pub fn lives(&mut self, pnn: u32, pid: i32, unique: u64) -> Result<bool> {
        let who = ctdb_wire::client::types::PidSrvid { pid, srvid: unique };
        let answer = self.client.control(pnn, 0, &Request::CheckPidSrvid(who))?;
        Ok(answer.status == 0)
    }
}

/// A record that is this node's, its chain locked. Dropping it unlocks.
pub struct Locked<'a> {
    /// Its header, which a client does not change.
    pub header: LtdbHeader,
    /// Its data as it was found.
    pub data: Vec<u8>,
    /// How often the daemon had to be asked for it.
    pub calls: u32,
    held: bool,
    key: &'a [u8],
    db: &'a mut Database,
}

impl Locked<'_> {
    /// Stores new data.
    pub fn store(&mut self, data: &[u8]) -> Result<()> {
        let value = self.header.join(data);
        self.db.tdb.store(self.key, &value, StoreMode::Replace)?;
        Ok(())
    }

    /// Unlocks, and says whether that went well.
    pub fn unlock(mut self) -> Result<()> {
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

/// Key, header and data.
pub type LocalRecord = (Vec<u8>, LtdbHeader, Vec<u8>);

impl Database {
    /// All records of this node's file with their headers, the sequence number's included.
    pub fn local(&mut self) -> Result<Vec<LocalRecord>> {
        let mut records = Vec::new();
        self.tdb.traverse(TraverseKind::Read, |_, key, value| {
            if let Some((header, data)) = LtdbHeader::split(value) {
                records.push((key.to_vec(), header, data.to_vec()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        records.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(records)
    }
}
