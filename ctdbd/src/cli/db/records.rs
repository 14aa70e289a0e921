//! `ctdb db file get|put|del|list|dump`

use std::fs::File;
use std::io::Read as _;
use std::ops::ControlFlow;
use std::path::Path;

use ctdb_db::dump::{escaped, unescaped};
use ctdb_db::record::{LTDB_HEADER_LEN, LtdbHeader, Rsn};
use ctdb_db::{Error, LockKind, StoreMode, Tdb, TraverseKind};
use serde_json::{Value, json};

use super::super::args::{DbFile, Filed};
use super::super::failure::{Exit, Failure};
use super::super::table::facts;
use super::{Context, io_failure, users};

/// Longest value that a file given to `put` may have: what the engine stores.
const MAX_VALUE: u64 = 256 << 20;

/// The bytes of an argument.
pub(super) fn bytes(what: &str, text: &str, raw: bool) -> Result<Vec<u8>, Failure> {
    if raw {
        return Ok(text.as_bytes().to_vec());
    }
    unescaped(text.as_bytes()).ok_or_else(|| {
        let text = format!(
            "the {what} has a `\\` that is not followed by two hex digits; a `\\` itself is \
             `\\5C`, or give --raw"
        );
        Failure::new(Exit::Usage, "usage", text)
    })
}

fn no_key(path: &Path, key: &[u8]) -> Failure {
    let text = format!("{} has no key {}", path.display(), escaped(key));
    Failure::new(Exit::NotFound, "no_such_key", text)
}

/// CTDB's header in front of a value, as facts.
pub(super) fn header_facts(header: &LtdbHeader) -> [(&'static str, String); 3] {
    let names: Vec<&str> = header.flags.iter_names().map(|(name, _)| name).collect();
    [
        ("rsn", header.rsn.0.to_string()),
        ("dmaster", header.dmaster.to_string()),
        (
            "flags",
            format!("{:#010x} {}", header.flags.bits(), names.join(" ")),
        ),
    ]
}

pub(super) fn header_json(header: &LtdbHeader) -> Value {
    let names: Vec<&str> = header.flags.iter_names().map(|(name, _)| name).collect();
    json!({
        "rsn": header.rsn.0,
        "dmaster": header.dmaster,
        "flags": header.flags.bits(),
        "flag_names": names,
    })
}

/// One record as JSON. With `ctdb` a value too short for a header has `null` in its place.
pub(super) fn record_json(key: &[u8], value: &[u8], ctdb: bool) -> Value {
    let split = ctdb.then(|| LtdbHeader::split(value));
    let data = split.flatten().map_or(value, |(_, data)| data);
    let mut record = json!({"key": escaped(key), "data": escaped(data), "length": data.len()});
    if let Some(split) = split {
        record["header"] = split.map_or(Value::Null, |(header, _)| header_json(&header));
    }
    record
}

pub(super) fn get(
    context: &mut Context<'_>,
    filed: &Filed,
    key: &str,
    raw: bool,
    ctdb: bool,
) -> Result<(), Failure> {
    let key = bytes("key", key, raw)?;
    let mut tdb = context.open_to_read(filed)?;
    let value = tdb.fetch(&key)?.ok_or_else(|| no_key(&filed.file, &key))?;
    if context.json {
        return context.print_json(&record_json(&key, &value, ctdb));
    }
    if !ctdb {
        return if raw {
            context.print_bytes(&value)
        } else {
            context.print(&(escaped(&value) + "\n"))
        };
    }
    let Some((header, data)) = LtdbHeader::split(&value) else {
        let text = format!(
            "the value has {} bytes, fewer than CTDB's header; it is of no database of a cluster, \
             or CTDB takes it for absent",
            value.len()
        );
        return Err(Failure::new(Exit::NotNow, "no_header", text));
    };
    if raw {
        return context.print_bytes(data);
    }
    let [rsn, dmaster, flags] = header_facts(&header);
    context.print(&facts(&[
        rsn,
        dmaster,
        flags,
        ("length", data.len().to_string()),
        ("data", escaped(data)),
    ]))
}

/// The value of `put`: the argument's or a file's.
pub(super) fn value_of(
    value: Option<&str>,
    from: Option<&Path>,
    raw: bool,
) -> Result<Vec<u8>, Failure> {
    let Some(path) = from else {
        return bytes("value", value.unwrap_or_default(), raw);
    };
    let mut value = Vec::new();
    let read = if path == Path::new("-") {
        std::io::stdin().take(MAX_VALUE + 1).read_to_end(&mut value)
    } else {
        File::open(path).and_then(|file| file.take(MAX_VALUE + 1).read_to_end(&mut value))
    };
    read.map_err(|error| io_failure("read", path, &error))?;
    if value.len() as u64 > MAX_VALUE {
        let text = format!("{} has more than {MAX_VALUE} bytes", path.display());
        return Err(Failure::new(Exit::Failed, "too_large", text));
    }
    Ok(value)
}

pub(super) fn put(context: &mut Context<'_>, verb: &DbFile) -> Result<(), Failure> {
    let DbFile::Put {
        file,
        key,
        value,
        from,
        raw,
        ctdb,
        rsn,
        dmaster,
        force,
    } = verb
    else {
        return Ok(());
    };
    let key = bytes("key", key, *raw)?;
    let value = value_of(value.as_deref(), from.as_deref(), *raw)?;
    users::refuse_daemon(file, *force)?;
    let (mut tdb, new) = context.open_to_write(file, true)?;
    if new && !context.json {
        context.warn(&format!("{} did not exist and was made", file.display()));
    }
    let value = change(&mut tdb, |tdb| {
        let value = if *ctdb {
            let mut header = next_header(tdb, &key)?;
            header.rsn = rsn.map_or(header.rsn, Rsn);
            header.dmaster = dmaster.unwrap_or(header.dmaster);
            header.join(&value)
        } else {
            value
        };
        tdb.store(&key, &value, StoreMode::Replace)?;
        Ok(value)
    })?;
    let text = format!("stored {} bytes under {}", value.len(), escaped(&key));
    context.changed(&text, &json!({"created": new}))
}

/// Makes one change: as a transaction where the file's users make transactions, so that it is there
/// whole or not at all whatever happens to us; under a lock elsewhere, since a first transaction makes
/// a small file large.
fn change<T>(
    tdb: &mut Tdb,
    work: impl FnOnce(&mut Tdb) -> Result<T, Failure>,
) -> Result<T, Failure> {
    if tdb.has_recovery_area()? {
        let mut transaction = tdb.transaction()?;
        let done = work(&mut transaction)?;
        transaction.commit()?;
        return Ok(done);
    }
    tdb.lock_all(LockKind::Exclusive)?;
    let done = work(tdb);
    tdb.unlock_all()?;
    done
}

/// The header for a changed record: that of the stored one, a change later.
fn next_header(tdb: &mut Tdb, key: &[u8]) -> Result<LtdbHeader, Failure> {
    let stored = tdb.fetch(key)?;
    let header = stored.as_deref().and_then(LtdbHeader::split);
    let mut header = header.map_or_else(LtdbHeader::default, |(header, _)| header);
    header.rsn = Rsn(header.rsn.0.saturating_add(1));
    Ok(header)
}

pub(super) fn del(
    context: &mut Context<'_>,
    file: &Path,
    key: &str,
    raw: bool,
    force: bool,
) -> Result<(), Failure> {
    let key = bytes("key", key, raw)?;
    users::refuse_daemon(file, force)?;
    let (mut tdb, _) = context.open_to_write(file, false)?;
    change(&mut tdb, |tdb| {
        tdb.delete(&key).map_err(|error| match error {
            Error::NotFound => no_key(file, &key),
            other => other.into(),
        })
    })?;
    context.changed(&format!("deleted {}", escaped(&key)), &json!({}))
}

/// Calls `each` with every record until it fails.
pub(super) fn for_each(
    tdb: &mut Tdb,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut failed = None;
    let count = tdb.traverse(TraverseKind::Read, |_, key, value| {
        Ok(match each(key, value) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                failed = Some(failure);
                ControlFlow::Break(())
            }
        })
    })?;
    failed.map_or(Ok(count), Err)
}

/// Prints one item of a JSON list.
pub(super) fn item(
    context: &mut Context<'_>,
    first: &mut bool,
    value: &Value,
) -> Result<(), Failure> {
    let comma = if std::mem::take(first) { "\n" } else { ",\n" };
    context.print(&format!("{comma}  {value}"))
}

pub(super) fn list(context: &mut Context<'_>, filed: &Filed, ctdb: bool) -> Result<(), Failure> {
    let mut tdb = context.open_to_read(filed)?;
    if context.json {
        context.begin_list("keys")?;
        let mut first = true;
        for_each(&mut tdb, |key, value| {
            let header = LtdbHeader::split(value).map(|(header, _)| header_json(&header));
            let listed = if ctdb {
                json!({"key": escaped(key), "header": header})
            } else {
                json!(escaped(key))
            };
            item(context, &mut first, &listed)
        })?;
        return context.end_list();
    }
    for_each(&mut tdb, |key, value| {
        let mut line = escaped(key);
        if ctdb {
            let data = value.len().saturating_sub(LTDB_HEADER_LEN);
            line += &LtdbHeader::split(value).map_or_else(
                || "\tno header".to_owned(),
                |(header, _)| {
                    format!(
                        "\trsn={} dmaster={} flags={:#010x} length={data}",
                        header.rsn.0,
                        header.dmaster,
                        header.flags.bits()
                    )
                },
            );
        }
        context.print(&(line + "\n"))
    })?;
    Ok(())
}

pub(super) fn dump(context: &mut Context<'_>, filed: &Filed, ctdb: bool) -> Result<(), Failure> {
    let mut tdb = context.open_to_read(filed)?;
    if context.json {
        context.begin_list("records")?;
        let mut first = true;
        for_each(&mut tdb, |key, value| {
            item(context, &mut first, &record_json(key, value, ctdb))
        })?;
        return context.end_list();
    }
    for_each(&mut tdb, |key, value| {
        let split = LtdbHeader::split(value).filter(|_| ctdb);
        let mut text = Vec::new();
        let data = match &split {
            Some((_, data)) => data,
            None => value,
        };
        ctdb_db::dump::write_record(&mut text, key, data).map_err(|error| super::output(&error))?;
        if let Some((header, _)) = split {
            let [rsn, dmaster, flags] =
                header_facts(&header).map(|(name, text)| format!("{name} = {}\n", text.trim_end()));
            // Before the closing brace.
            text.truncate(text.len() - 2);
            text.extend_from_slice(format!("{rsn}{dmaster}{flags}}}\n").as_bytes());
        }
        context.print_bytes(&text)
    })?;
    Ok(())
}
