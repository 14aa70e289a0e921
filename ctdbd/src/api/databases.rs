//! What `/v1/databases` does: the daemon is a client of its own client socket ([`crate::dbclient`]), on
//! the pool for blocking work, so that a record that does not come holds up nobody else.

use std::path::Path;
use std::time::{Duration, Instant};

use ctdb_db::dump::{escaped, unescaped};
use ctdb_wire::api::databases::{
    DatabaseAsk, DatabaseStatsView, DatabaseView, DatabasesView, HotKeyView, LatencyView,
    LocksView, RecordBody, RecordView, RecordsView,
};
use ctdb_wire::api::{ApiError, Done};
use ctdb_wire::client::control::{Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::types::{DbFlags, Latency};
use serde_json::Value;

use crate::dbclient::{Error, Found, Kind, Session};

/// Most bytes of keys and data of a dump.
const MAX_DUMP: usize = 16 << 20;
/// Longest wait for one answer.
const LIMIT: Duration = Duration::from_secs(10);

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let (status, code) = match &error {
            Error::Connect { .. } | Error::Broken(_) => (503, "no_client_socket"),
            Error::TimedOut { .. } => (504, "timed_out"),
            Error::NoDatabase(_) => (404, "no_such_database"),
            Error::NotAttached { .. } => (409, "not_attached"),
            Error::WrongKind { .. } => (409, "wrong_kind"),
            Error::Unhealthy { .. } => (409, "unhealthy"),
            Error::NotDetachable(_) => (409, "not_detachable"),
            Error::Busy(_) | Error::File(ctdb_db::Error::Busy { .. }) => (409, "busy"),
            Error::Refused { .. } | Error::Overtaken => (409, "refused"),
            Error::Unknown(_) => (504, "unknown"),
            Error::Backup { .. } => (400, "bad_backup"),
            Error::Io { .. } | Error::File(_) => (500, "file"),
        };
        Self::new(status, code, error.to_string())
    }
}

fn value(view: impl serde::Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(view).map_err(|error| ApiError::new(500, "internal", error.to_string()))
}

fn done(changed: bool, message: impl Into<String>) -> Result<Value, ApiError> {
    value(Done {
        changed,
        message: message.into(),
    })
}

fn bytes(what: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    unescaped(text.as_bytes()).ok_or_else(|| {
        let text = format!(
            "the {what} has a `\\` that is not followed by two hex digits; a `\\` itself is `\\5C`"
        );
        ApiError::new(400, "bad_request", text)
    })
}

/// Does what is asked over the client socket; blocks, until `until` at the longest.
pub fn run(socket: &Path, ask: &DatabaseAsk, until: Instant) -> Result<Value, ApiError> {
    let mut session = Session::open(socket, LIMIT, until)?;
    let session = &mut session;
    match ask {
        DatabaseAsk::List => {
            let mut view = DatabasesView {
                node: session.pnn(),
                databases: Vec::new(),
            };
            for found in session.databases()? {
                view.databases.push(show(session, &found)?);
            }
            view.databases.sort_by(|a, b| a.name.cmp(&b.name));
            value(view)
        }
        DatabaseAsk::Show(db) => {
            let found = session.find(db)?;
            value(show(session, &found)?)
        }
        DatabaseAsk::Stats(db) => {
            let found = session.find(db)?;
            value(stats(session, &found)?)
        }
        DatabaseAsk::Attach(body) => {
            let kind = Kind::named(&body.kind).ok_or_else(|| {
                let text = format!(
                    "'{}' is no kind of database: volatile, persistent or replicated",
                    body.kind
                );
                ApiError::new(400, "bad_request", text)
            })?;
            let known = session.databases()?.iter().any(|one| one.name == body.name);
            session.attach(&body.name, kind)?;
            done(!known, format!("{} is attached", body.name))
        }
        DatabaseAsk::Detach(db) => {
            let found = session.find(db)?;
            session.detach(&found)?;
            done(true, format!("{} is detached", found.name))
        }
        DatabaseAsk::Set(db, set) => {
            let found = session.find(db)?;
            let changed = session.set_modes(&found, set.readonly, set.sticky)?;
            done(changed, format!("{} is set", found.name))
        }
        DatabaseAsk::Get(db, body) => {
            let key = bytes("key", &body.key)?;
            let mut opened = session.open_named(db)?;
            let data = session.fetch(&mut opened, &key)?;
            let data = data.ok_or_else(|| no_key(&opened.name, &key))?;
            value(record(&key, &data))
        }
        DatabaseAsk::Put(db, body) => {
            let (key, data) = both(body)?;
            let mut opened = session.open_named(db)?;
            session.put(&mut opened, &key, &data)?;
            done(true, format!("stored {} bytes", data.len()))
        }
        DatabaseAsk::Del(db, body) => {
            let key = bytes("key", &body.key)?;
            let mut opened = session.open_named(db)?;
            session.put(&mut opened, &key, b"")?;
            done(true, "deleted")
        }
        DatabaseAsk::Push(db, body) => {
            let (key, data) = both(body)?;
            let mut opened = session.open_named(db)?;
            session.push(&mut opened, &key, &data)?;
            done(true, format!("stored {} bytes and sent them", data.len()))
        }
        DatabaseAsk::Transaction(db, body) => {
            let changes: Vec<_> = body.changes.iter().map(both).collect::<Result<_, _>>()?;
            let mut opened = session.open_named(db)?;
            session.transaction(&mut opened, |transaction| {
                changes
                    .iter()
                    .try_for_each(|(key, data)| transaction.put(key, data))
            })?;
            done(true, format!("{} changes are committed", changes.len()))
        }
        DatabaseAsk::Dump(db) => dump(session, db),
        DatabaseAsk::Wipe(db) => {
            let found = session.find(db)?;
            session.wipe(&found)?;
            done(true, format!("{} is empty", found.name))
        }
        DatabaseAsk::Recover => {
            session.recover(node::CURRENT)?;
            done(true, "all databases are recovered")
        }
    }
}

fn no_key(db: &str, key: &[u8]) -> ApiError {
    let text = format!("{db} has no record {}", escaped(key));
    ApiError::new(404, "no_such_key", text)
}

fn both(body: &RecordBody) -> Result<(Vec<u8>, Vec<u8>), ApiError> {
    Ok((bytes("key", &body.key)?, bytes("data", &body.data)?))
}

fn record(key: &[u8], data: &[u8]) -> RecordView {
    RecordView {
        key: escaped(key),
        data: escaped(data),
        length: data.len(),
    }
}

fn show(session: &mut Session, found: &Found) -> Result<DatabaseView, Error> {
    let id = found.id;
    let path = session.text("GETDBPATH", &Request::GetDbPath(id))?;
    let health = session.text("DB_GET_HEALTH", &Request::DbGetHealth(id))?;
    let has = |flag| found.flags.contains(flag);
    let kind = Kind::of(found.flags);
    let sequence_number = match kind {
        Kind::Volatile => None,
        // A frozen one does not say.
        _ => session.sequence_number(id).ok(),
    };
    Ok(DatabaseView {
        id: format!("0x{id:08x}"),
        name: found.name.clone(),
        path: path.unwrap_or_default(),
        persistent: kind == Kind::Persistent,
        replicated: kind == Kind::Replicated,
        sticky: has(DbFlags::STICKY),
        readonly: has(DbFlags::READONLY),
        health: health.unwrap_or_else(|| "OK".to_owned()),
        sequence_number,
    })
}

fn latency(of: Latency) -> LatencyView {
    let Latency {
        count,
        min,
        max,
        total,
    } = of;
    LatencyView {
        num: u32::try_from(count).unwrap_or(0),
        min,
        avg: if count == 0 {
            0.0
        } else {
            total / f64::from(count)
        },
        max,
    }
}

fn stats(session: &mut Session, found: &Found) -> Result<DatabaseStatsView, Error> {
    let request = Request::GetDbStatistics(found.id);
    let of =
        session.connection.read(
            "GET_DB_STATISTICS",
            node::CURRENT,
            &request,
            |reply| match reply {
                Reply::DbStatistics(statistics) => Some(statistics),
                _ => None,
            },
        )?;
    let hot = of.hot_keys.iter().filter(|hot| hot.count > 0);
    Ok(DatabaseStatsView {
        name: found.name.clone(),
        ro_delegations: of.ro_delegations,
        ro_revokes: of.ro_revokes,
        locks: LocksView {
            calls: of.locks.calls,
            current: of.locks.current,
            pending: of.locks.pending,
            failed: of.locks.failed,
            latency: latency(of.locks.latency),
            buckets: of.locks.buckets.to_vec(),
        },
        hop_count_buckets: of.hop_count_bucket.to_vec(),
        vacuum: latency(of.vacuum),
        hot_keys: hot
            .map(|hot| HotKeyView {
                key: escaped(&hot.key),
                count: hot.count,
            })
            .collect(),
    })
}

fn dump(session: &mut Session, db: &str) -> Result<Value, ApiError> {
    let found = session.find(db)?;
    let mut view = RecordsView::default();
    let mut size = 0;
    session.traverse(found.id, false, |key, _, data| {
        size += key.len() + data.len();
        if size > MAX_DUMP {
            let text = format!(
                "{} has more than {MAX_DUMP} bytes; `ctdb db dump` prints databases of any size",
                found.name
            );
            return Err(ApiError::new(413, "too_large", text));
        }
        view.records.push(record(key, data));
        Ok(())
    })?;
    value(view)
}
