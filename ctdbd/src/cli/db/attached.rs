//! `ctdb db` for attached databases: what is short by the API, records by the client socket.

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _};
use std::path::Path;

use ctdb_db::dump::{escaped, write_record};
use ctdb_db::record::LtdbHeader;
use ctdb_wire::api::Done;
use ctdb_wire::api::databases::{
    DatabaseClientsView, DatabaseStatsView, DatabaseView, DatabasesView, LatencyView,
};
use ctdb_wire::client::control::Request;
use ctdb_wire::client::node;
use ctdb_wire::client::types::PidSrvid;
use serde_json::{Value, json};

use super::super::args::{Db, DbClient, Filed, KindName, Mode, Put};
use super::super::failure::{Exit, Failure};
use super::super::legacy::records::pair;
use super::super::table::{columns, facts, list, or_dash};
use super::super::{Asking, pretty};
use super::records::{bytes, header_facts, header_json, item, record_json, value_of};
use super::{Context, check, output};
use crate::api::routes::encode_segment;
use crate::dbclient::backup::{self, Backup, Unreadable};
use crate::dbclient::{Connection, Database, Error, Found, Kind, Session};

/// Longest input of a transaction: what one transaction may have.
const MAX_INPUT: u64 = 64 << 20;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (exit, code) = match error {
            Error::File(error) => return error.into(),
            Error::Io {
                doing,
                path,
                source,
            } => {
                return super::io_failure(
                    if doing == "opening" { "open" } else { "write" },
                    &path,
                    &source,
                );
            }
            Error::Connect { .. } => (Exit::Failed, "no_daemon"),
            Error::TimedOut { .. } => (Exit::TimedOut, "timed_out"),
            Error::NoDatabase(_) => (Exit::NotFound, "no_such_database"),
            Error::NotAttached { .. } => (Exit::NotNow, "not_attached"),
            Error::WrongKind { .. } => (Exit::NotNow, "wrong_kind"),
            Error::Unhealthy { .. } => (Exit::NotNow, "unhealthy"),
            Error::NotDetachable(_) => (Exit::NotNow, "not_detachable"),
            Error::Busy(_) => (Exit::TimedOut, "busy"),
            Error::Unknown(_) => (Exit::Failed, "unknown"),
            Error::Backup { .. } => (Exit::Failed, "bad_backup"),
            Error::Refused { .. } | Error::Overtaken => (Exit::Failed, "refused"),
            Error::Broken(_) => (Exit::Failed, "closed"),
        };
        Failure::new(exit, code, error.to_string())
    }
}

pub(super) fn run(context: &mut Context<'_>, asking: &Asking, verb: &Db) -> Result<(), Failure> {
    let here = asking.global.node.is_none() || matches!(verb, Db::Client(_));
    if !here {
        let text = "databases are looked at from their own node; run the command there";
        return Err(Failure::new(Exit::Usage, "usage", text));
    }
    let text = match verb {
        Db::List => asking.show("/v1/databases", databases)?,
        Db::Show { db } => asking.show(&path(db, ""), database)?,
        Db::Stats { db } => asking.show(&path(db, "/stats"), stats)?,
        Db::Seqnum { db } => seqnum(asking, db)?,
        Db::Health { db } => health(asking, db.as_deref())?,
        Db::Attach { name, kind } => {
            let kind = match kind {
                KindName::Volatile => Kind::Volatile,
                KindName::Persistent => Kind::Persistent,
                KindName::Replicated => Kind::Replicated,
            };
            let body = json!({"name": name, "kind": kind.name()});
            asking.change("/v1/databases/attach", &body)?
        }
        Db::Detach { db } => {
            let mut last = Done::default();
            for db in db {
                last = asking.client.post(&path(db, "/detach"), &json!({}))?;
            }
            asking.done(&last)
        }
        Db::Set { db, mode } => {
            let body = json!({
                "readonly": *mode == Mode::Readonly,
                "sticky": *mode == Mode::Sticky,
            });
            asking.change(&path(db, "/set"), &body)?
        }
        Db::Wipe { db } => asking.change(&path(db, "/wipe"), &json!({}))?,
        Db::Check { db } => {
            let view: DatabaseView = asking.client.get(&path(db, ""))?;
            let filed = Filed {
                file: view.path.into(),
                no_lock: false,
            };
            return check::check(context, &filed);
        }
        Db::Client(DbClient::List) => asking.show(&asking.at("/v1/databases/clients"), |view| {
            clients(view, asking.global.node.is_none())
        })?,
        Db::Client(DbClient::Exists { pid, srvid }) => {
            client_exists(asking, *pid, srvid.as_deref())?
        }
        Db::Dump { db, local } => return dump(context, asking, db, *local),
        Db::Get { db, key, raw } => return get(context, asking, db, key, *raw),
        Db::Put(put) => {
            let (key, value) = both(put)?;
            let (mut session, mut db) = open(asking, &put.db)?;
            session.put(&mut db, &key, &value)?;
            let text = format!("stored {} bytes under {}", value.len(), escaped(&key));
            return context.changed(&text, &json!({}));
        }
        Db::Push(put) => {
            let (key, value) = both(put)?;
            let (mut session, mut db) = open(asking, &put.db)?;
            session.push(&mut db, &key, &value)?;
            let text = format!("stored {} bytes under {}", value.len(), escaped(&key));
            return context.changed(&text, &json!({}));
        }
        Db::Del { db, key, raw } => {
            let key = bytes("key", key, *raw)?;
            let (mut session, mut db) = open(asking, db)?;
            if session.fetch(&mut db, &key)?.is_none() {
                return Err(no_key(&db, &key));
            }
            session.put(&mut db, &key, b"")?;
            return context.changed(&format!("deleted {}", escaped(&key)), &json!({}));
        }
        Db::Transaction { db, file } => {
            return transaction(context, asking, db, file.as_deref());
        }
        Db::Backup { db, file } => {
            let (session, mut db) = open(asking, db)?;
            let now = jiff::Timestamp::now().as_second();
            let records = backup::write(&mut db, session.pnn(), now, file)?;
            let text = format!("{records} records are in {}", file.display());
            return context.changed(&text, &json!({"records": records}));
        }
        Db::Restore { file, into } => return restore(context, asking, file, into.as_deref()),
        Db::BackupDump { file } => return dump_backup(context, file),
        Db::File(_) => String::new(),
    };
    context.print(&text)
}

fn path(db: &str, rest: &str) -> String {
    format!("/v1/databases/{}{rest}", encode_segment(db))
}

fn session(asking: &Asking) -> Result<Session, Failure> {
    let client = &asking.client;
    let socket = client.socket.with_file_name("ctdbd.socket");
    let limit = client.request.min(client.run);
    Ok(Session::open(&socket, limit, client.end)?)
}

fn open(asking: &Asking, db: &str) -> Result<(Session, Database), Failure> {
    let mut session = session(asking)?;
    let db = session.open_named(db)?;
    Ok((session, db))
}

fn both(put: &Put) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let key = bytes("key", &put.key, put.raw)?;
    let value = value_of(put.value.as_deref(), put.from.as_deref(), put.raw)?;
    Ok((key, value))
}

fn no_key(db: &Database, key: &[u8]) -> Failure {
    let text = format!("{} has no key {}", db.name, escaped(key));
    Failure::new(Exit::NotFound, "no_such_key", text)
}

/// `ctdb db list`
fn databases(view: &DatabasesView) -> String {
    let rows: Vec<[String; 5]> = view
        .databases
        .iter()
        .map(|db| {
            [
                db.name.clone(),
                db.id.clone(),
                db.kind().to_owned(),
                modes(db),
                db.health.clone(),
            ]
        })
        .collect();
    columns(["NAME", "ID", "KIND", "MODES", "HEALTH"], &rows)
}

fn modes(db: &DatabaseView) -> String {
    let modes = [(db.readonly, "readonly"), (db.sticky, "sticky")];
    list(modes.iter().filter(|(on, _)| *on).map(|(_, name)| *name))
}

/// `ctdb db show`
fn database(db: &DatabaseView) -> String {
    let mut lines = vec![
        ("name", db.name.clone()),
        ("id", db.id.clone()),
        ("kind", db.kind().to_owned()),
        ("modes", modes(db)),
        ("file", db.path.clone()),
        ("health", db.health.clone()),
    ];
    if let Some(number) = db.sequence_number {
        lines.push(("transactions", number.to_string()));
    }
    facts(&lines)
}

/// `ctdb db stats`
fn stats(of: &DatabaseStatsView) -> String {
    let latency = |of: &LatencyView| {
        format!(
            "{}, {:.6} / {:.6} / {:.6} s (shortest, average, longest)",
            of.num, of.min, of.avg, of.max
        )
    };
    let mut text = facts(&[
        ("name", of.name.clone()),
        ("read-only copies given", of.ro_delegations.to_string()),
        ("read-only copies revoked", of.ro_revokes.to_string()),
        (
            "waits for locks",
            format!(
                "{}, {} under way, {} queued, {} failed",
                of.locks.calls, of.locks.current, of.locks.pending, of.locks.failed
            ),
        ),
        ("they took", latency(&of.locks.latency)),
        ("hops of calls", list(&of.hop_count_buckets)),
        ("vacuum runs", latency(&of.vacuum)),
    ]);
    if !of.hot_keys.is_empty() {
        let rows: Vec<[String; 2]> = of
            .hot_keys
            .iter()
            .map(|hot| [hot.count.to_string(), hot.key.clone()])
            .collect();
        text.push('\n');
        text.push_str(&columns(["HOPS", "HOT KEY"], &rows));
    }
    text
}

fn seqnum(asking: &Asking, db: &str) -> Result<String, Failure> {
    let view: DatabaseView = asking.client.get(&path(db, ""))?;
    let Some(number) = view.sequence_number else {
        let text = if view.kind() == "volatile" {
            format!("{} is volatile and has no transactions", view.name)
        } else {
            format!("{} is frozen; try again", view.name)
        };
        return Err(Failure::new(Exit::NotNow, "no_sequence_number", text));
    };
    Ok(if asking.global.json {
        pretty(&json!({"name": view.name, "sequence_number": number}))
    } else {
        format!("{number}\n")
    })
}

fn health(asking: &Asking, db: Option<&str>) -> Result<String, Failure> {
    let all = match db {
        Some(db) => vec![asking.client.get::<DatabaseView>(&path(db, ""))?],
        None => {
            asking
                .client
                .get::<DatabasesView>("/v1/databases")?
                .databases
        }
    };
    let ill: Vec<String> = all
        .iter()
        .filter(|db| !db.is_healthy())
        .map(|db| format!("{}: {}", db.name, db.health))
        .collect();
    if !ill.is_empty() {
        return Err(Failure::new(Exit::NotNow, "unhealthy", ill.join("\n")));
    }
    Ok(if asking.global.json {
        pretty(&json!({"healthy": true, "databases": all.len()}))
    } else {
        String::new()
    })
}

/// `ctdb db client list`; of this node's own processes with their names.
fn clients(view: &DatabaseClientsView, own: bool) -> String {
    let rows: Vec<[String; 3]> = view
        .clients
        .iter()
        .map(|client| {
            let name = own
                .then(|| std::fs::read_to_string(format!("/proc/{}/comm", client.pid)).ok())
                .flatten();
            [
                client.pid.to_string(),
                client.connections.to_string(),
                or_dash(name.as_deref().map(str::trim_end)),
            ]
        })
        .collect();
    columns(["PID", "CONNECTIONS", "COMMAND"], &rows)
}

fn client_exists(asking: &Asking, pid: i32, srvid: Option<&str>) -> Result<String, Failure> {
    let client = &asking.client;
    let socket = client.socket.with_file_name("ctdbd.socket");
    let mut connection = Connection::open(&socket, client.request.min(client.run))?;
    let to = asking.global.node.unwrap_or(node::CURRENT);
    let (name, request) = match srvid {
        None => ("PROCESS_EXISTS", Request::ProcessExists(pid)),
        Some(word) => {
            let digits = word.strip_prefix("0x").unwrap_or(word);
            let srvid = u64::from_str_radix(digits, 16).map_err(|_| {
                let text = format!("'{word}' is no address: 0x and hex digits");
                Failure::new(Exit::Usage, "usage", text)
            })?;
            let who = PidSrvid { pid, srvid };
            ("CHECK_PID_SRVID", Request::CheckPidSrvid(who))
        }
    };
    if connection.control(name, to, 0, &request)?.status != 0 {
        let text = format!("process {pid} is no such client");
        return Err(Failure::new(Exit::NotFound, "no_such_client", text));
    }
    Ok(if asking.global.json {
        pretty(&json!({"pid": pid, "exists": true}))
    } else {
        format!("process {pid} is a client\n")
    })
}

fn get(
    context: &mut Context<'_>,
    asking: &Asking,
    db: &str,
    key: &str,
    raw: bool,
) -> Result<(), Failure> {
    let key = bytes("key", key, raw)?;
    let (mut session, mut db) = open(asking, db)?;
    let data = session
        .fetch(&mut db, &key)?
        .ok_or_else(|| no_key(&db, &key))?;
    if context.json {
        return context.print_json(&record_json(&key, &data, false));
    }
    if raw {
        context.print_bytes(&data)
    } else {
        context.print(&(escaped(&data) + "\n"))
    }
}

/// One record of a dump; with its header where there is one.
fn show_record(
    context: &mut Context<'_>,
    first: &mut bool,
    key: &[u8],
    header: Option<&LtdbHeader>,
    data: &[u8],
) -> Result<(), Failure> {
    if context.json {
        let mut record = record_json(key, data, false);
        if let (Some(header), Value::Object(fields)) = (header, &mut record) {
            fields.insert("header".to_owned(), header_json(header));
        }
        return item(context, first, &record);
    }
    let mut text = Vec::new();
    write_record(&mut text, key, data).map_err(|error| output(&error))?;
    if let Some(header) = header {
        let lines =
            header_facts(header).map(|(name, text)| format!("{name} = {}\n", text.trim_end()));
        // Before the closing brace.
        text.truncate(text.len() - 2);
        text.extend_from_slice(format!("{}}}\n", lines.concat()).as_bytes());
    }
    context.print_bytes(&text)
}

fn dump(context: &mut Context<'_>, asking: &Asking, db: &str, local: bool) -> Result<(), Failure> {
    let (mut session, mut db) = open(asking, db)?;
    if context.json {
        context.begin_list("records")?;
    }
    let mut first = true;
    if local {
        db.each(|key, header, data| show_record(context, &mut first, key, Some(header), data))?;
    } else {
        session.traverse(db.id, false, |key, _, data| {
            show_record(context, &mut first, key, None, data)
        })?;
    }
    if context.json {
        context.end_list()?;
    }
    Ok(())
}

fn transaction(
    context: &mut Context<'_>,
    asking: &Asking,
    db: &str,
    file: Option<&Path>,
) -> Result<(), Failure> {
    let input: Box<dyn std::io::Read> = match file {
        None => Box::new(std::io::stdin()),
        Some(path) => {
            Box::new(File::open(path).map_err(|error| super::io_failure("open", path, &error))?)
        }
    };
    let mut input = BufReader::new(input.take(MAX_INPUT + 1));
    let (mut changes, mut line, mut read) = (Vec::new(), Vec::new(), 0_u64);
    for number in 1_u64.. {
        line.clear();
        let count = input
            .read_until(b'\n', &mut line)
            .map_err(|error| Failure::new(Exit::Failed, "io", format!("reading: {error}")))?;
        read += count as u64;
        if count == 0 {
            break;
        }
        let change = pair(&line).map_err(|why| {
            let text = format!(
                "line {number}: {}; nothing was changed",
                why.trim_end_matches('\n')
            );
            Failure::new(Exit::Usage, "usage", text)
        })?;
        changes.extend(change);
    }
    if read > MAX_INPUT {
        let text = format!("the input has more than {MAX_INPUT} bytes");
        return Err(Failure::new(Exit::Failed, "too_large", text));
    }
    let (mut session, mut db) = open(asking, db)?;
    session.transaction(&mut db, |transaction| {
        changes
            .iter()
            .try_for_each(|(key, data)| transaction.put(key, data))
    })?;
    let text = format!("{} changes are committed", changes.len());
    context.changed(&text, &json!({}))
}

fn restore(
    context: &mut Context<'_>,
    asking: &Asking,
    file: &Path,
    into: Option<&str>,
) -> Result<(), Failure> {
    let unreadable = |why: Unreadable| Failure::from(why.about(file));
    let mut backup = Backup::open(file).map_err(unreadable)?;
    backup.check().map_err(unreadable)?;
    let mut session = session(asking)?;
    let name = into.unwrap_or(&backup.head.name).to_owned();
    let wanted = Found {
        id: 0,
        name: name.clone(),
        flags: backup.head.flags,
    };
    let db = session.open_found(&wanted)?;
    session.restore(db.id, &mut backup, file)?;
    let records = backup.head.records;
    let text = format!("{name} has the {records} records of the backup");
    context.changed(&text, &json!({"records": records}))
}

fn dump_backup(context: &mut Context<'_>, file: &Path) -> Result<(), Failure> {
    /// What ends a dump.
    enum Ended {
        Backup(Unreadable),
        Output(Failure),
    }
    impl From<Unreadable> for Ended {
        fn from(why: Unreadable) -> Self {
            Self::Backup(why)
        }
    }
    let mut backup = Backup::open(file).map_err(|why| Failure::from(why.about(file)))?;
    if context.json {
        context.begin_list("records")?;
    }
    let mut first = true;
    let done = backup.records(|key, header, data| {
        show_record(context, &mut first, key, Some(header), data).map_err(Ended::Output)
    });
    done.map_err(|ended| match ended {
        Ended::Backup(why) => Failure::from(why.about(file)),
        Ended::Output(failure) => failure,
    })?;
    if context.json {
        context.end_list()?;
    }
    Ok(())
}
