//! Transactions on persistent and replicated databases (`spec/database.md` F.1): the lock of the whole
//! cluster in `g_lock.tdb`, in the format of the tool's client library, and TRANS3_COMMIT.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use ctdb_db::cluster::{SEQNUM_KEY, sequence_of};
use ctdb_db::record::{LtdbHeader, RecordFlags, Rsn};
use ctdb_wire::client::codec::{Reader, decode_all, encode_to_vec};
use ctdb_wire::client::control::{Opcode, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::types::{GLockEntry, PidSrvid, RecBufferBuilder, RecData, ServerId};

use super::{Database, Error, Kind, Session};

/// Name of the database of locks.
const LOCKS: &str = "g_lock.tdb";
/// Bytes of an entry of a lock record of the tool's client library.
const ENTRY: usize = 32;
/// In `task_id` of our entries: such a holder has registered its `unique_id`, so it can be told from
/// another one with its process number. The old tool's have not.
const OURS: u32 = 0x6374_6462;
/// Between two looks at a lock that somebody has; the tool's.
const RETRY: Duration = Duration::from_millis(1);
/// Between two tries of a commit that a recovery stands in the way of: first and longest.
const AGAIN: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// What a transaction reads and writes.
#[derive(Debug)]
pub struct Changes<'a> {
    db: &'a mut Database,
    new: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Changes<'_> {
    /// A record's data, the transaction's own changes included; nothing of one that there is not.
    pub fn get(&mut self, key: &[u8]) -> Result<Vec<u8>, Error> {
        if let Some(data) = self.new.get(key) {
            return Ok(data.clone());
        }
        Ok(self.db.local(key)?.map_or_else(Vec::new, |(_, data)| data))
    }

    /// Sets a record; empty data deletes it. What is so already is no change.
    pub fn put(&mut self, key: &[u8], data: &[u8]) -> Result<(), Error> {
        let same = match self.new.get(key) {
            Some(known) => known == data,
            None => self
                .db
                .local(key)?
                .map_or(data.is_empty(), |(_, known)| known == data),
        };
        if !same {
            self.new.insert(key.to_vec(), data.to_vec());
        }
        Ok(())
    }
}

/// The key of a database's lock, its NUL included.
fn lock_key(db: &Database) -> Vec<u8> {
    format!("transaction_db_0x{:08x}\0", db.id).into_bytes()
}

/// Who has a lock, as far as the record says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Holder {
    /// Nobody.
    Nobody,
    /// An entry of the tool's client library.
    Tool(ServerId),
    /// A Samba process (`spec/client-protocol.md` 8.6).
    Samba(ServerId),
    /// Several, or what cannot be read.
    Others,
}

impl Holder {
    fn of(data: &[u8]) -> Self {
        if data.is_empty() {
            return Self::Nobody;
        }
        if data.len() == ENTRY
            && let Ok(entry) = decode_all::<GLockEntry>(data)
            && entry.kind <= 1
        {
            return Self::Tool(entry.server);
        }
        match samba_holder(data) {
            // Watchers alone: one of them will take it, and give it back.
            Some(server) if server.pid != 0 => Self::Samba(server),
            _ => Self::Others,
        }
    }
}

/// The exclusive holder of Samba's format: after the watchers.
fn samba_holder(data: &[u8]) -> Option<ServerId> {
    let mut reader = Reader::new(data);
    let watchers: u32 = reader.value().ok()?;
    reader.take((watchers as usize).checked_mul(ENTRY)?).ok()?;
    let server: ServerId = reader.value().ok()?;
    // Two epochs and the number of shared holders.
    reader.take(20).ok()?;
    Some(server)
}

impl Session {
    /// This process as lock records name it.
    fn server(&self) -> ServerId {
        ServerId {
            pid: u64::from(std::process::id()),
            task_id: OURS,
            vnn: self.pnn(),
            unique_id: self.unique(),
        }
    }

    /// Whether the holder of a lock may still live. In doubt it does.
    fn may_live(&mut self, holder: Holder) -> Result<bool, Error> {
        let (server, registered) = match holder {
            Holder::Nobody => return Ok(false),
            Holder::Tool(server) => (server, server.task_id == OURS),
            Holder::Samba(server) => (server, true),
            Holder::Others => return Ok(true),
        };
        let Ok(pid) = i32::try_from(server.pid) else {
            return Ok(true);
        };
        let (name, request) = if registered {
            let who = PidSrvid {
                pid,
                srvid: server.unique_id,
            };
            ("CHECK_PID_SRVID", Request::CheckPidSrvid(who))
        } else {
            ("PROCESS_EXISTS", Request::ProcessExists(pid))
        };
        match self.connection.control(name, server.vnn, 0, &request) {
            // Its own node says that it is gone, or the node has none any more.
            Ok(answer) => Ok(answer.status == 0),
            Err(Error::TimedOut { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Takes the write lock `key`, tried again every millisecond.
    fn g_lock(&mut self, locks: &mut Database, key: &[u8]) -> Result<(), Error> {
        let mine = encode_to_vec(&GLockEntry {
            kind: 1,
            server: self.server(),
        });
        loop {
            let mut record = self.lock(locks, key, false)?;
            if record.data.is_empty() {
                record.store(&mine)?;
                return record.unlock();
            }
            let held = std::mem::take(&mut record.data);
            record.unlock()?;
            let holder = Holder::of(&held);
            if !self.may_live(holder)? {
                // Only what was looked at may be taken away.
                let mut record = self.lock(locks, key, false)?;
                if record.data == held {
                    record.store(b"")?;
                }
                record.unlock()?;
                continue;
            }
            if Instant::now() >= self.until() {
                return Err(Error::Busy(format!(
                    "another client has the lock for transactions and does not give it back \
                     ({holder:?})"
                )));
            }
            thread::sleep(RETRY);
        }
    }

    /// Gives a lock back.
    fn g_unlock(&mut self, locks: &mut Database, key: &[u8]) -> Result<(), Error> {
        let mine = self.server();
        let mut record = self.lock(locks, key, false)?;
        if Holder::of(&record.data) != Holder::Tool(mine) {
            return Err(Error::Busy(
                "the lock for transactions was taken away".to_owned(),
            ));
        }
        record.store(b"")?;
        let header = record.header;
        record.unlock()?;
        self.forget(locks, key, &header)
    }

    /// One transaction: `change` reads and writes under the database's lock, and what it wrote is
    /// committed on all nodes when this returns. Nothing is written if `change` fails.
    pub fn transaction<T, E: From<Error>>(
        &mut self,
        db: &mut Database,
        change: impl FnOnce(&mut Changes<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        if db.kind == Kind::Volatile {
            return Err(E::from(Error::WrongKind {
                name: db.name.clone(),
                kind: db.kind,
                wanted: "transactions are for persistent and replicated ones",
            }));
        }
        let mut locks = self.open_database(LOCKS, Kind::Volatile)?;
        let key = lock_key(db);
        self.g_lock(&mut locks, &key)?;
        let done = self.commit(db, change);
        let unlocked = self.g_unlock(&mut locks, &key);
        let done = done?;
        // What is committed stays committed; a lock that is not given back ends with this process.
        if let Err(error) = unlocked {
            tracing::debug!(%error, "the lock for transactions was not given back");
        }
        Ok(done)
    }

    fn commit<T, E: From<Error>>(
        &mut self,
        db: &mut Database,
        change: impl FnOnce(&mut Changes<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut changes = Changes {
            db,
            new: BTreeMap::new(),
        };
        let done = change(&mut changes)?;
        if changes.new.is_empty() {
            return Ok(done);
        }
        let new = std::mem::take(&mut changes.new);
        let before = sequence_of(&changes.get(SEQNUM_KEY)?);
        let next = before.wrapping_add(1).to_ne_bytes().to_vec();
        let mut buffer = RecBufferBuilder::new(db.id);
        for (key, data) in new.into_iter().chain([(SEQNUM_KEY.to_vec(), next)]) {
            let (rsn, flags) = db
                .local(&key)?
                .map_or((0, RecordFlags::empty()), |(old, _)| (old.rsn.0, old.flags));
            let header = LtdbHeader {
                rsn: Rsn(rsn.wrapping_add(1)),
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
        self.send_commit(db, &buffer.finish(), before)?;
        Ok(done)
    }

    /// Sends the buffer until it is known whether it is there (F.1.5).
    fn send_commit(&mut self, db: &mut Database, buffer: &[u8], before: u64) -> Result<(), Error> {
        let (mut pause, longest) = AGAIN;
        // Until the end: an answer that does not come says nothing.
        let limit = self.connection.limit();
        self.connection
            .set_limit(limit.max(self.until().saturating_duration_since(Instant::now())));
        let result = loop {
            let answer = match self.connection.raw_control(
                "TRANS3_COMMIT",
                node::CURRENT,
                0,
                Opcode::Trans3Commit,
                buffer,
            ) {
                Ok(answer) if answer.status == 0 => break Ok(()),
                Ok(answer) => answer,
                Err(error) => break Err(Error::Unknown(error.to_string())),
            };
            let now = match db.local(SEQNUM_KEY) {
                Ok(record) => record.map_or(0, |(_, data)| sequence_of(&data)),
                Err(error) => break Err(error),
            };
            if now == before.wrapping_add(1) {
                break Ok(());
            }
            if now != before {
                break Err(Error::Overtaken);
            }
            if Instant::now() >= self.until() {
                break Err(Error::Refused {
                    control: "TRANS3_COMMIT",
                    status: answer.status,
                    text: answer.text,
                });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(longest);
        };
        self.connection.set_limit(limit);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(pid: u64) -> ServerId {
        ServerId {
            pid,
            task_id: 0,
            vnn: 1,
            unique_id: 0xABCD,
        }
    }

    #[test]
    fn holders_of_both_formats_are_read() {
        assert_eq!(Holder::of(b""), Holder::Nobody);
        let entry = |server| encode_to_vec(&GLockEntry { kind: 1, server });
        assert_eq!(
            Holder::of(&entry(server(7))),
            Holder::Tool(server(7)),
            "the tool's"
        );
        let two = [entry(server(7)), entry(server(8))].concat();
        assert_ne!(Holder::of(&two), Holder::Nobody);
        let samba = |watchers: u32, pid| {
            let mut bytes = watchers.to_ne_bytes().to_vec();
            bytes.extend(std::iter::repeat_n(9_u8, watchers as usize * 32));
            bytes.extend(encode_to_vec(&server(pid)));
            bytes.extend([0; 20]);
            bytes
        };
        for watchers in [0, 1, 3] {
            let record = samba(watchers, 4711);
            assert_eq!(Holder::of(&record), Holder::Samba(server(4711)));
            assert_eq!(Holder::of(&samba(watchers, 0)), Holder::Others);
        }
        assert_eq!(Holder::of(b"something else"), Holder::Others);
    }
}
