//! Transactions on persistent and replicated databases (spec/database.md F.1): the lock of the whole
//! cluster in `g_lock.tdb`, in the format of the tool's client library, and TRANS3_COMMIT.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use ctdb_db::cluster::{SEQNUM_KEY, sequence_of};
use ctdb_db::record::{LtdbHeader, RecordFlags, Rsn};
use ctdb_wire::client::codec::{decode_all, encode_to_vec};
use ctdb_wire::client::control::Opcode;
use ctdb_wire::client::node;
use ctdb_wire::client::types::{GLockEntry, RecBufferBuilder, RecData, ServerId};

use super::{Database, Session};

/// Bytes of an entry of a lock record.
const ENTRY: usize = 32;
/// Between two looks at a lock that somebody has; the tool's.
const RETRY: Duration = Duration::from_millis(1);

/// How a transaction ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It is there: answered so, or seen by the sequence number after a recovery.
    Committed,
    /// There was nothing to change.
    Empty,
    /// Nobody can tell: the daemon went away, or gave no answer that decides.
    Unknown,
}

/// What a transaction reads and writes.
pub struct Changes<'a> {
    db: &'a mut Database,
    new: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Changes<'_> {
    /// A record's data, its own changes included; nothing of one that there is not.
    pub fn get(&mut self, key: &[u8]) -> Result<Vec<u8>> {
        if let Some(data) = self.new.get(key) {
            return Ok(data.clone());
        }
        let value = self.db.tdb.fetch(key)?;
        let found = value.as_deref().and_then(LtdbHeader::split);
        Ok(found.map_or_else(Vec::new, |(_, data)| data.to_vec()))
    }

    /// Sets a record; nothing deletes it.
    pub fn put(&mut self, key: &[u8], data: Vec<u8>) {
        self.new.insert(key.to_vec(), data);
    }
}

/// The key of a database's lock, its NUL included.
fn lock_key(db: &Database) -> Vec<u8> {
    format!("transaction_db_0x{:08x}\0", db.id).into_bytes()
}

impl Session {
    /// This process as lock records name it.
    fn server(&self) -> ServerId {
        ServerId {
            pid: u64::from(std::process::id()),
            task_id: 0,
            vnn: self.pnn(),
            unique_id: self.unique(),
        }
    }

    /// Takes the write lock `key`, tried again every millisecond until `patience` has passed. A holder
    /// whose node does not know it any more has lost it.
    pub fn g_lock(&mut self, locks: &mut Database, key: &[u8], patience: Duration) -> Result<()> {
        let mine = encode_to_vec(&GLockEntry {
            kind: 1,
            server: self.server(),
        });
        let until = Instant::now() + patience;
        loop {
            let mut record = self.lock(locks, key)?;
            if record.data.is_empty() {
                record.store(&mine)?;
                return record.unlock();
            }
            let held = record.data.clone();
            record.unlock()?;
            ensure!(held.len() == ENTRY, "a lock of {} bytes", held.len());
            let holder: GLockEntry = decode_all(&held)?;
            let who = holder.server;
            if !self.lives(who.vnn, who.pid as i32, who.unique_id)? {
                // Only what was looked at may be taken away.
                let mut record = self.lock(locks, key)?;
                if record.data == held {
                    record.store(b"")?;
                }
                record.unlock()?;
                continue;
            }
            ensure!(
                Instant::now() < until,
                "the lock {who:?} has is not given back"
            );
            thread::sleep(RETRY);
        }
    }

    /// Gives a lock back.
    pub fn g_unlock(&mut self, locks: &mut Database, key: &[u8]) -> Result<()> {
        let mine = self.server();
        let mut record = self.lock(locks, key)?;
        let holder: Option<GLockEntry> = decode_all(&record.data).ok();
        ensure!(
            holder.is_some_and(|holder| holder.server == mine),
            "the lock is not ours: {holder:?}"
        );
        record.store(b"")?;
        record.unlock()
    }

    /// One transaction: `change` reads and writes under the database's lock in `locks`
    /// (`g_lock.tdb`), and what it wrote is committed.
    pub fn transaction(
        &mut self,
        db: &mut Database,
        locks: &mut Database,
        patience: Duration,
        change: impl FnOnce(&mut Changes<'_>) -> Result<()>,
    ) -> Result<Outcome> {
        let key = lock_key(db);
        self.g_lock(locks, &key, patience)?;
        let done = self.commit(db, patience, change);
        self.g_unlock(locks, &key)?;
        done
    }

    /// As [`Self::transaction`] for a caller that has the lock, or knows itself alone.
    pub fn commit(
        &mut self,
        db: &mut Database,
        patience: Duration,
        change: impl FnOnce(&mut Changes<'_>) -> Result<()>,
    ) -> Result<Outcome> {
        let mut changes = Changes {
            db,
            new: BTreeMap::new(),
        };
        change(&mut changes)?;
        if changes.new.is_empty() {
            return Ok(Outcome::Empty);
        }
        let new = std::mem::take(&mut changes.new);
        let before = sequence_of(&changes.get(SEQNUM_KEY)?);
        let mut buffer = RecBufferBuilder::new(db.id);
        let next = (before + 1).to_ne_bytes().to_vec();
        let sequence = (SEQNUM_KEY.to_vec(), next);
        for (key, data) in new.into_iter().chain([sequence]) {
            let value = db.tdb.fetch(&key)?;
            let (rsn, flags) = value
                .as_deref()
                .and_then(LtdbHeader::split)
                .map_or((0, RecordFlags::empty()), |(old, _)| (old.rsn.0, old.flags));
            let header = LtdbHeader {
                rsn: Rsn(rsn + 1),
                dmaster: self.pnn(),
                reserved: 0,
                flags,
            };
            buffer.push(&RecData {
                reqid: 0,
                key: &key,
                data: &header.join(&data),
            });
        }
        self.send_commit(db, &buffer.finish(), before, patience)
    }

    /// Sends the buffer until it is known whether it is there (F.1.5).
    fn send_commit(
        &mut self,
        db: &mut Database,
        buffer: &[u8],
        before: u64,
        patience: Duration,
    ) -> Result<Outcome> {
        let until = Instant::now() + patience;
        let mut pause = Duration::from_millis(10);
        let opcode = Opcode::Trans3Commit as u32;
        loop {
            let Ok(answer) = self.client.raw_control(node::CURRENT, 0, opcode, buffer) else {
                return Ok(Outcome::Unknown);
            };
            if answer.status == 0 {
                return Ok(Outcome::Committed);
            }
            let value = db.tdb.fetch(SEQNUM_KEY)?;
            let now = value
                .as_deref()
                .and_then(LtdbHeader::split)
                .map_or(0, |(_, data)| sequence_of(data));
            if now == before + 1 {
                return Ok(Outcome::Committed);
            }
            if now != before {
                bail!("sequence number {now} after a commit on {before}: {answer:?}");
            }
            if Instant::now() > until {
                return Ok(Outcome::Unknown);
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }
}
