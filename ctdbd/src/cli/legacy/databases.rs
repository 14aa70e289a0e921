//! Old commands about databases that are controls (`spec/cli.md` 6.10).

use std::fmt::Write as _;

use ctdb_wire::client::control::{Opcode, Reply, Request};
use ctdb_wire::client::types::{DbFlags, DbMapEntry, DbStatistics, HotKey, Latency, Text};

use super::controls::{failed, number};
use super::text::{self, Style};
use super::{End, Tool};

type Result = std::result::Result<u8, End>;

/// A database as the daemon knows it.
struct Database {
    id: u32,
    flags: DbFlags,
    name: String,
}

/// A text of a database; `None` if there is none.
fn text_of(
    tool: &Tool,
    control: &'static str,
    request: &Request<'_>,
) -> std::result::Result<Option<String>, End> {
    let data = tool.control(control, request)?;
    let said = |text: Text<'_>| String::from_utf8_lossy(text.0).into_owned();
    match Reply::decode(request.opcode(), &data) {
        Ok(Reply::Text(text) | Reply::OptionalText(Some(text))) => Ok(Some(said(text))),
        Ok(Reply::OptionalText(None)) => Ok(None),
        _ => Err(failed(control, -1)),
    }
}

fn map(tool: &Tool) -> std::result::Result<Vec<DbMapEntry>, End> {
    let data = tool.control("GET_DBMAP", &Request::GetDbMap)?;
    match Reply::decode(Opcode::GetDbMap, &data) {
        Ok(Reply::DbMap(map)) => Ok(map),
        _ => Err(failed("GET_DBMAP", -1)),
    }
}

fn name_of(tool: &Tool, id: u32) -> std::result::Result<String, End> {
    Ok(text_of(tool, "GET_DBNAME", &Request::GetDbName(id))?.unwrap_or_default())
}

/// The database of that name or number.
fn find(tool: &Tool, word: &str) -> std::result::Result<Database, End> {
    let wanted = word
        .starts_with("0x")
        .then(|| number(word))
        .flatten()
        .and_then(|id| u32::try_from(id).ok());
    for entry in map(tool)? {
        let name = name_of(tool, entry.db_id)?;
        if wanted == Some(entry.db_id) || name == word {
            return Ok(Database {
                id: entry.db_id,
                flags: entry.flags,
                name,
            });
        }
    }
    Err(End::error(format!("No database matching '{word}' found")))
}

pub(super) fn list(tool: &mut Tool, args: &[String]) -> Result {
    if !args.is_empty() {
        return Err(End::Usage);
    }
    let map = map(tool)?;
    let mut out = match tool.style() {
        Style {
            machine: Some(separator),
            ..
        } => text::row(
            separator,
            &[
                "ID",
                "Name",
                "Path",
                "Persistent",
                "Sticky",
                "Unhealthy",
                "Readonly",
                "Replicated",
            ],
        ),
        Style { machine: None, .. } => format!("Number of databases:{}\n", map.len()),
    };
    for entry in map {
        let id = entry.db_id;
        let name = name_of(tool, id)?;
        let path = text_of(tool, "GETDBPATH", &Request::GetDbPath(id))?.unwrap_or_default();
        let ill = text_of(tool, "DB_GET_HEALTH", &Request::DbGetHealth(id))?.is_some();
        let has = |flag| entry.flags.contains(flag);
        if let Some(separator) = tool.style().machine {
            let bit = |set: bool| if set { "1" } else { "0" }.to_owned();
            let fields = [
                format!("0x{id:08X}"),
                name,
                path,
                bit(has(DbFlags::PERSISTENT)),
                bit(has(DbFlags::STICKY)),
                bit(ill),
                bit(has(DbFlags::READONLY)),
                bit(has(DbFlags::REPLICATED)),
            ];
            out.push_str(&text::row(separator, &fields));
            continue;
        }
        let _ = write!(out, "dbid:0x{id:08x} name:{name} path:{path}");
        for (set, word) in [
            (has(DbFlags::PERSISTENT), "PERSISTENT"),
            (has(DbFlags::STICKY), "STICKY"),
            (has(DbFlags::READONLY), "READONLY"),
            (has(DbFlags::REPLICATED), "REPLICATED"),
            (ill, "UNHEALTHY"),
        ] {
            if set {
                let _ = write!(out, " {word}");
            }
        }
        out.push('\n');
    }
    tool.print(&out)
}

pub(super) fn status(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else { return Err(End::Usage) };
    let db = find(tool, word)?;
    let path = text_of(tool, "GETDBPATH", &Request::GetDbPath(db.id))?.unwrap_or_default();
    let health = text_of(tool, "DB_GET_HEALTH", &Request::DbGetHealth(db.id))?;
    let word = |flag| if db.flags.contains(flag) { "yes" } else { "no" };
    let out = format!(
        "dbid: 0x{:08x}\nname: {}\npath: {path}\nPERSISTENT: {}\nREPLICATED: {}\nSTICKY: {}\n\
         READONLY: {}\nHEALTH: {}\n",
        db.id,
        db.name,
        word(DbFlags::PERSISTENT),
        word(DbFlags::REPLICATED),
        word(DbFlags::STICKY),
        word(DbFlags::READONLY),
        health.as_deref().unwrap_or("OK"),
    );
    tool.print(&out)
}

pub(super) fn attach(tool: &mut Tool, args: &[String]) -> Result {
    let (name, kind) = match args {
        [name] => (name, None),
        [name, kind] => (name, Some(kind.as_str())),
        _ => return Err(End::Usage),
    };
    let text = Text(name.as_bytes());
    let (control, request, mode) = match kind {
        None => ("DB_ATTACH", Request::DbAttach(text), None),
        Some("persistent") => (
            "DB_ATTACH_PERSISTENT",
            Request::DbAttachPersistent(text),
            None,
        ),
        Some("replicated") => (
            "DB_ATTACH_REPLICATED",
            Request::DbAttachReplicated(text),
            None,
        ),
        Some("readonly") => (
            "DB_ATTACH",
            Request::DbAttach(text),
            Some(DbFlags::READONLY),
        ),
        Some("sticky") => ("DB_ATTACH", Request::DbAttach(text), Some(DbFlags::STICKY)),
        Some(_) => return Err(End::Usage),
    };
    let answer = tool.ask(control, &request)?;
    if answer.status != 0 {
        let status = answer.status;
        let text = format!("attach: {name} failed to get db_id, ret={status}");
        return Err(End::error(text));
    }
    if let (Some(flag), Ok(Reply::U32(id))) = (mode, Reply::decode(request.opcode(), &answer.data))
    {
        set_flag(tool, id, flag)?;
    }
    Ok(0)
}

fn set_flag(tool: &Tool, id: u32, flag: DbFlags) -> std::result::Result<(), End> {
    let (control, request) = if flag == DbFlags::READONLY {
        ("SET_DB_READONLY", Request::SetDbReadonly(id))
    } else {
        ("SET_DB_STICKY", Request::SetDbSticky(id))
    };
    tool.control(control, &request).map(drop)
}

fn set_mode(tool: &mut Tool, args: &[String], flag: DbFlags, word: &str) -> Result {
    let [name] = args else { return Err(End::Usage) };
    let db = find(tool, name)?;
    if db
        .flags
        .intersects(DbFlags::PERSISTENT | DbFlags::REPLICATED)
    {
        return Err(End::error(format!("{word} can be set only on volatile DB")));
    }
    set_flag(tool, db.id, flag)?;
    Ok(0)
}

pub(super) fn set_readonly(tool: &mut Tool, args: &[String]) -> Result {
    set_mode(tool, args, DbFlags::READONLY, "READONLY")
}

pub(super) fn set_sticky(tool: &mut Tool, args: &[String]) -> Result {
    set_mode(tool, args, DbFlags::STICKY, "STICKY")
}

pub(super) fn sequence_number(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else { return Err(End::Usage) };
    let db = find(tool, word)?;
    let data = tool.control("GET_DB_SEQNUM", &Request::GetDbSeqnum([db.id, 0]))?;
    match Reply::decode(Opcode::GetDbSeqnum, &data) {
        Ok(Reply::U64(seqnum)) => tool.print(&format!("0x{seqnum:x}\n")),
        _ => Err(failed("GET_DB_SEQNUM", -1)),
    }
}

pub(super) fn statistics(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else { return Err(End::Usage) };
    let db = find(tool, word)?;
    let data = tool.control("GET_DB_STATISTICS", &Request::GetDbStatistics(db.id))?;
    match Reply::decode(Opcode::GetDbStatistics, &data) {
        Ok(Reply::DbStatistics(statistics)) => {
            let text = statistics_text(&db.name, &statistics);
            tool.print(&text)
        }
        _ => Err(failed("GET_DB_STATISTICS", -1)),
    }
}

fn statistics_text(name: &str, of: &DbStatistics) -> String {
    let mut text = format!("DB Statistics {name}\n");
    for (name, value) in [
        ("db_ro_delegations", of.ro_delegations),
        ("db_ro_revokes", of.ro_revokes),
    ] {
        let _ = writeln!(text, " {name:<22}    {value:>10}");
    }
    text.push_str(" locks\n");
    for (name, value) in [
        ("num_calls", of.locks.calls),
        ("num_current", of.locks.current),
        ("num_pending", of.locks.pending),
        ("num_failed", of.locks.failed),
    ] {
        let _ = writeln!(text, "     {name:<22}{value:>10}");
    }
    for (name, buckets) in [
        ("hop_count_buckets", &of.hop_count_bucket),
        ("lock_buckets", &of.locks.buckets),
    ] {
        let _ = write!(text, " {name}:");
        for value in buckets {
            let _ = write!(text, " {value}");
        }
        text.push('\n');
    }
    for (name, latency) in [
        ("locks_latency", of.locks.latency),
        ("vacuum_latency", of.vacuum),
    ] {
        let Latency {
            count,
            min,
            max,
            total,
        } = latency;
        let average = if count == 0 {
            0.0
        } else {
            total / f64::from(count)
        };
        let _ = writeln!(
            text,
            " {name:<18} MIN/AVG/MAX     {min:.6}/{average:.6}/{max:.6} sec out of {count}"
        );
    }
    let _ = writeln!(text, " Num Hot Keys:     {}", of.hot_keys.len());
    for HotKey { count, key } in &of.hot_keys {
        let _ = write!(text, "     Count:{count} Key:");
        for byte in key {
            let _ = write!(text, "{byte:02x}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_of_a_database() {
        let mut statistics = DbStatistics::default();
        statistics.hot_keys[0] = HotKey {
            count: 1,
            key: b"k1".to_vec(),
        };
        let text = statistics_text("demo.tdb", &statistics);
        // spec/cli.md 6.8.
        let head = "DB Statistics demo.tdb\n db_ro_delegations                  0\n \
                    db_ro_revokes                      0\n locks\n     \
                    num_calls                      0\n";
        assert!(text.starts_with(head), "{text}");
        let part = " vacuum_latency     MIN/AVG/MAX     0.000000/0.000000/0.000000 sec out of 0\n \
                    Num Hot Keys:     10\n     Count:1 Key:6b31\n     Count:0 Key:\n";
        assert!(text.contains(part), "{text}");
    }
}
