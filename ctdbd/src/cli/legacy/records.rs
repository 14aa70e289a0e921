//! Old commands that read and write records (`spec/cli.md` 6.10). Texts and exit codes were asked of
//! the package 4.17.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;

use ctdb_db::dump::escaped;
use ctdb_db::record::{LtdbHeader, RecordFlags, Rsn};
use ctdb_db::{StoreMode, Tdb};
use ctdb_wire::client::control::Request;
use jiff::tz::TimeZone;

use super::controls::number;
use super::{End, TIMED_OUT, Tool, table};
use crate::cli::db;
use crate::dbclient::backup::{self, Backup, Unreadable};
use crate::dbclient::{Database, Error, Found, Kind, NotDetachable, Session};

type Result = std::result::Result<u8, End>;

/// ENOENT.
const NOT_FOUND: u8 = 2;
/// EINVAL.
const INVALID: u8 = 22;

fn end(text: impl Into<String>, code: u8) -> End {
    End::Error {
        text: text.into(),
        code,
    }
}

/// Key or value: text, or `0x` and an even number of hex digits.
fn bytes(word: &str, what: &str) -> std::result::Result<Vec<u8>, End> {
    unhexed(word).map_err(|why| end(format!("{why}\nFailed to parse {what} {word}"), INVALID))
}

fn unhexed(word: &str) -> std::result::Result<Vec<u8>, String> {
    let Some(digits) = word.strip_prefix("0x") else {
        return Ok(word.as_bytes().to_vec());
    };
    if !digits.len().is_multiple_of(2) {
        return Err(format!("Key ({digits}) contains odd number of hex digits"));
    }
    digits
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| {
            std::str::from_utf8(pair)
                .ok()
                .filter(|pair| pair.bytes().all(|digit| digit.is_ascii_hexdigit()))
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
                .ok_or_else(|| format!("Invalid hex: {digits}"))
        })
        .collect()
}

/// A record as catdb, cattdb, dumpdbbackup and tfetch show it.
fn block(key: Option<&[u8]>, header: &LtdbHeader, data: &[u8]) -> String {
    let mut text = String::new();
    if let Some(key) = key {
        let _ = writeln!(text, "key({}) = \"{}\"", key.len(), escaped(key));
    }
    let _ = write!(
        text,
        "dmaster: {}\nrsn: {}\nflags: {:#010x}",
        header.dmaster,
        header.rsn.0,
        header.flags.bits()
    );
    for (flag, name) in [
        (RecordFlags::MIGRATED_WITH_DATA, "MIGRATED_WITH_DATA"),
        (RecordFlags::VACUUM_MIGRATED, "VACUUM_MIGRATED"),
        (RecordFlags::AUTOMATIC, "AUTOMATIC"),
        (RecordFlags::RO_HAVE_DELEGATIONS, "RO_HAVE_DELEGATIONS"),
        (RecordFlags::RO_HAVE_READONLY, "RO_HAVE_READONLY"),
        (RecordFlags::RO_REVOKING_READONLY, "RO_REVOKING_READONLY"),
        (RecordFlags::RO_REVOKE_COMPLETE, "RO_REVOKE_COMPLETE"),
    ] {
        if header.flags.contains(flag) {
            let _ = write!(text, " {name}");
        }
    }
    let _ = write!(text, "\ndata({}) = \"{}\"\n", data.len(), escaped(data));
    if key.is_some() {
        text.push('\n');
    }
    text
}

/// As C prints a string of bounded length: up to a NUL.
fn until_nul(data: &[u8]) -> &[u8] {
    data.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A database that is found and opened.
fn open(tool: &Tool, word: &str) -> std::result::Result<(Session, Found, Database), End> {
    let (mut session, found) = find(tool, word)?;
    let db = attached(tool, &mut session, &found)?;
    Ok((session, found, db))
}

fn find(tool: &Tool, word: &str) -> std::result::Result<(Session, Found), End> {
    let mut session = tool.session("GET_DBMAP")?;
    let found = session
        .find(word)
        .map_err(|error| tool.client_end("GET_DBMAP", error))?;
    Ok((session, found))
}

fn attached(
    tool: &Tool,
    session: &mut Session,
    found: &Found,
) -> std::result::Result<Database, End> {
    session.open_found(found).map_err(|error| {
        if let Error::TimedOut { control, .. } = error
            && control.starts_with("DB_ATTACH")
        {
            let name = &found.name;
            let text = format!("attach: {name} {control} failed, ret={TIMED_OUT}");
            return end(format!("{text}\nFailed to attach to DB {name}"), TIMED_OUT);
        }
        let known = matches!(error, Error::NotAttached { .. });
        match tool.client_end("DB_ATTACH", error) {
            End::Error { text, code } if !known => End::Error {
                text: format!("{text}\nFailed to attach to DB {}", found.name),
                code,
            },
            other => other,
        }
    })
}

fn volatile(word: &str, found: &Found) -> std::result::Result<(), End> {
    if Kind::of(found.flags) == Kind::Volatile {
        return Ok(());
    }
    Err(End::error(format!("DB {word} is not a volatile database")))
}

fn transactional(word: &str, found: &Found) -> std::result::Result<(), End> {
    if Kind::of(found.flags) == Kind::Volatile {
        let text = format!("Transactions not supported on DB {word}");
        return Err(End::error(text));
    }
    Ok(())
}

pub(super) fn catdb(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else { return Err(End::Usage) };
    let (mut session, _, db) = open(tool, word)?;
    let mut count = 0_u64;
    let done = session.traverse(db.id, false, |key, header, data| {
        count += 1;
        tool.write(block(Some(key), header, data).as_bytes());
        Ok::<_, Error>(())
    });
    done.map_err(|error| tool.client_end("TRAVERSE_START_EXT", error))?;
    tool.print(&format!("Dumped {count} records\n"))
}

pub(super) fn cattdb(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else { return Err(End::Usage) };
    let (_session, _, mut db) = open(tool, word)?;
    let done = db.each(|key, header, data| {
        tool.write(block(Some(key), header, data).as_bytes());
        Ok::<_, Error>(())
    });
    let count = done.map_err(|error| tool.client_end("GETDBPATH", error))?;
    tool.print(&format!("Dumped {count} record(s)\n"))
}

/// A call for a record that failed, as libctdb says it.
fn lock_failed(tool: &Tool, db: &str, error: Error, what: &str) -> End {
    match error {
        Error::Refused {
            control: "CALL",
            status,
            ..
        } => end(
            format!("fetch_lock: {db} CALL failed, ret={status}\n{what}"),
            u8::try_from(status.unsigned_abs()).unwrap_or(1).max(1),
        ),
        other => tool.client_end("CALL", other),
    }
}

pub(super) fn read_key(tool: &mut Tool, args: &[String]) -> Result {
    let (word, key_word, read_only) = match args {
        [word, key] => (word, key, false),
        [word, key, mode] if mode == "readonly" => (word, key, true),
        _ => return Err(End::Usage),
    };
    let (mut session, found) = find(tool, word)?;
    volatile(word, &found)?;
    let key = bytes(key_word, "key")?;
    let mut db = attached(tool, &mut session, &found)?;
    let name = db.name.clone();
    let data = match session.lock(&mut db, &key, read_only) {
        Ok(record) => record.data.clone(),
        Err(error) => {
            let what = format!("Failed to read record for key {key_word}");
            return Err(lock_failed(tool, &name, error, &what));
        }
    };
    let head = format!("Data: size:{} ptr:[", data.len());
    let out = [head.as_bytes(), until_nul(&data), b"]\n"].concat();
    tool.write(&out);
    Ok(0)
}

pub(super) fn write_key(tool: &mut Tool, args: &[String]) -> Result {
    with_value(tool, args, Session::store, |name, _| {
        format!("Failed to lock record for key {name}")
    })
}

/// Gives a record of a database, by its key, a value.
type Change = fn(&mut Session, &mut Database, &[u8], &[u8]) -> std::result::Result<(), Error>;

/// A key and a value for a record of a volatile database; `failed` makes the words for a failure of
/// the database's name and the key.
fn with_value(
    tool: &mut Tool,
    args: &[String],
    change: Change,
    failed: fn(&str, &str) -> String,
) -> Result {
    let [word, key_word, value] = args else {
        return Err(End::Usage);
    };
    let (mut session, found) = find(tool, word)?;
    volatile(word, &found)?;
    let (key, value) = (bytes(key_word, "key")?, bytes(value, "value")?);
    let mut db = attached(tool, &mut session, &found)?;
    let name = db.name.clone();
    change(&mut session, &mut db, &key, &value)
        .map_err(|error| lock_failed(tool, &name, error, &failed(&name, key_word)))?;
    Ok(0)
}

pub(super) fn delete_key(tool: &mut Tool, args: &[String]) -> Result {
    let [word, key_word] = args else {
        return Err(End::Usage);
    };
    let (mut session, found) = find(tool, word)?;
    volatile(word, &found)?;
    let key = bytes(key_word, "key")?;
    let mut db = attached(tool, &mut session, &found)?;
    let name = db.name.clone();
    session.delete(&mut db, &key).map_err(|error| {
        let what = format!("Failed to fetch record for key {key_word}");
        lock_failed(tool, &name, error, &what)
    })?;
    Ok(0)
}

/// CTDB's later releases have it: the record is written, and a copy goes to all nodes.
pub(super) fn push_record(tool: &mut Tool, args: &[String]) -> Result {
    with_value(tool, args, Session::push, |_, key| {
        format!("Failed to push record for key {key}")
    })
}

pub(super) fn fetch(tool: &mut Tool, args: &[String]) -> Result {
    let [word, key] = args else {
        return Err(End::Usage);
    };
    let (mut session, found) = find(tool, word)?;
    transactional(word, &found)?;
    let key = bytes(key, "key")?;
    let mut db = attached(tool, &mut session, &found)?;
    let data = session
        .fetch(&mut db, &key)
        .map_err(|error| tool.client_end("GETDBPATH", error))?
        .unwrap_or_default();
    tool.write(&[until_nul(&data), b"\n"].concat());
    Ok(0)
}

/// One record, in a transaction.
fn change(tool: &mut Tool, word: &str, key: &str, value: Option<&str>) -> Result {
    let (mut session, found) = find(tool, word)?;
    transactional(word, &found)?;
    let key = bytes(key, "key")?;
    let value = value.map_or_else(|| Ok(Vec::new()), |value| bytes(value, "value"))?;
    let mut db = attached(tool, &mut session, &found)?;
    session
        .transaction(&mut db, |changes| changes.put(&key, &value))
        .map_err(|error| tool.client_end("TRANS3_COMMIT", error))?;
    Ok(0)
}

pub(super) fn store(tool: &mut Tool, args: &[String]) -> Result {
    match args {
        [word, key, value] => change(tool, word, key, Some(value)),
        _ => Err(End::Usage),
    }
}

pub(super) fn delete(tool: &mut Tool, args: &[String]) -> Result {
    match args {
        [word, key] => change(tool, word, key, None),
        _ => Err(End::Usage),
    }
}

/// A quoted text at the front of a line, and what follows it.
fn quoted(line: &[u8]) -> std::result::Result<(Vec<u8>, &[u8]), String> {
    let shown = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
    let text = line.trim_ascii_start();
    let Some(text) = text.strip_prefix(b"\"") else {
        return Err(format!("Unsupported input format in {}", shown(line)));
    };
    let Some(end) = text.iter().position(|byte| *byte == b'"') else {
        return Err(format!("Unmatched \" in input {}", shown(line)));
    };
    let (text, rest) = (&text[..end], &text[end + 1..]);
    let bytes = match std::str::from_utf8(text) {
        Ok(text) => unhexed(text)?,
        Err(_) => text.to_vec(),
    };
    Ok((bytes, rest))
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);

/// Key and value of a line of `ptrans`; nothing of an empty line, or of an empty key, which the old
/// tool skips, too.
pub(in crate::cli) fn pair(line: &[u8]) -> std::result::Result<Option<Pair>, String> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let (key, rest) = quoted(line)?;
    let (value, _) = quoted(rest)?;
    Ok((!key.is_empty()).then_some((key, value)))
}

pub(super) fn transaction(tool: &mut Tool, args: &[String]) -> Result {
    let (word, file) = match args {
        [word] => (word, None),
        [word, file] => (word, Some(file)),
        _ => return Err(End::Usage),
    };
    let (mut session, found) = find(tool, word)?;
    transactional(word, &found)?;
    let mut input: Box<dyn BufRead> = match file {
        None => Box::new(BufReader::new(std::io::stdin())),
        Some(file) => match File::open(file) {
            Ok(opened) => Box::new(BufReader::new(opened)),
            Err(_) => return Err(End::error(format!("Failed to open file {file}"))),
        },
    };
    let mut db = attached(tool, &mut session, &found)?;
    // All of it is read before the lock is taken: nobody waits for our input, and a line that cannot
    // be read changes nothing. The old tool commits the other lines.
    let mut pairs = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        match input.read_until(b'\n', &mut line) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) => return Err(End::error(format!("Failed to read the input: {error}"))),
        }
        match pair(&line) {
            Ok(None) if line.trim_ascii().is_empty() => {
                // No reason to change nothing.
                let line = String::from_utf8_lossy(&line);
                tool.complain(&format!("Unsupported input format in {line}"));
            }
            Ok(pair) => pairs.extend(pair),
            Err(text) => {
                let text = text.trim_end_matches('\n');
                return Err(End::error(format!("{text}\nNothing was changed")));
            }
        }
    }
    session
        .transaction(&mut db, |changes| {
            pairs
                .iter()
                .try_for_each(|(key, value)| changes.put(key, value))
        })
        .map_err(|error| tool.client_end("TRANS3_COMMIT", error))?;
    Ok(0)
}

// ---- Files

fn open_file(path: &str) -> std::result::Result<Tdb, End> {
    db::open_plain(Path::new(path))
        .map_err(|_| End::error(format!("Failed to open TDB file {path}")))
}

pub(super) fn file_fetch(tool: &mut Tool, args: &[String]) -> Result {
    let (path, key_word, out) = match args {
        [path, key] => (path, key, None),
        [path, key, out] => (path, key, Some(out)),
        _ => return Err(End::Usage),
    };
    let mut tdb = open_file(path)?;
    let key = bytes(key_word, "key")?;
    let value = tdb
        .fetch(&key)
        .map_err(|error| End::error(error.to_string()))?;
    let Some(value) = value else {
        return Err(End::error(format!("No record for key {key_word}")));
    };
    let Some((header, data)) = LtdbHeader::split(&value) else {
        return Err(End::error(format!(
            "Failed to parse header from data of {key_word}"
        )));
    };
    tool.print(&block(None, &header, data))?;
    if let Some(out) = out {
        let written = File::create(out).and_then(|mut file| file.write_all(&value));
        if written.is_err() {
            tool.complain(&format!("Failed to open output file {out}"));
        }
    }
    Ok(0)
}

pub(super) fn file_store(_: &mut Tool, args: &[String]) -> Result {
    let (path, key, data, rest) = match args {
        [path, key, data, rest @ ..] if rest.len() <= 2 => (path, key, data, rest),
        _ => return Err(End::Usage),
    };
    let mut tdb = open_file(path)?;
    let (key, data) = (bytes(key, "key")?, bytes(data, "value")?);
    let mut header = LtdbHeader::default();
    // Without a text, as the old tool does.
    if let Some(rsn) = rest.first() {
        match number(rsn) {
            Some(rsn) => header.rsn = Rsn(rsn),
            None => return Ok(INVALID),
        }
    }
    if let Some(dmaster) = rest.get(1) {
        match number(dmaster).and_then(|number| u32::try_from(number).ok()) {
            Some(dmaster) => header.dmaster = dmaster,
            None => return Ok(INVALID),
        }
    }
    let stored = tdb.store(&key, &header.join(&data), StoreMode::Replace);
    stored.map_err(|error| End::error(format!("Failed to store record: {error}")))?;
    Ok(0)
}

// ---- Whole databases

/// Local time, as the old tool writes it.
fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(
        |_| seconds.to_string(),
        |moment| {
            let local = moment.to_zoned(TimeZone::system());
            local.strftime("%Y/%m/%d %H:%M:%S").to_string()
        },
    )
}

pub(super) fn backup(tool: &mut Tool, args: &[String]) -> Result {
    let [word, path] = args else {
        return Err(End::Usage);
    };
    let (session, _, mut db) = open(tool, word)?;
    let now = jiff::Timestamp::now().as_second();
    let done = backup::write(&mut db, session.pnn(), now, Path::new(path));
    done.map_err(|error| match error {
        Error::Io {
            doing: "creating",
            source,
            ..
        } => end(
            format!("Failed to open file {path} for writing"),
            source
                .raw_os_error()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(1),
        ),
        other => tool.client_end("GETDBPATH", other),
    })?;
    tool.print(&format!("Database backed up to {path}\n"))
}

fn unreadable(path: &str, why: &Unreadable) -> End {
    match why {
        Unreadable::Open(error) => end(
            format!("Failed to open file {path} for reading"),
            error
                .raw_os_error()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(1),
        ),
        Unreadable::Version(version) => end(
            format!(
                "Wrong version of backup file, expected {}, got {version}",
                backup::VERSION
            ),
            INVALID,
        ),
        Unreadable::Records(_) => end("Failed to read records", NOT_FOUND),
    }
}

/// Needs no daemon.
pub(super) fn dump_backup(tool: &mut Tool, args: &[String]) -> Result {
    let [path] = args else {
        // All of it, as the old tool does here.
        tool.print(&table::usage())?;
        return Ok(1);
    };
    let mut backup = Backup::open(Path::new(path)).map_err(|why| unreadable(path, &why))?;
    let head = &backup.head;
    let line = format!(
        "Dumping database {} from backup @ {}\n",
        head.name,
        time(head.time)
    );
    tool.print(&line)?;
    let done = backup.records(|key, header, data| {
        tool.write(block(Some(key), header, data).as_bytes());
        Ok::<_, Unreadable>(())
    });
    let count = done.map_err(|why| unreadable(path, &why))?;
    tool.print(&format!("Dumped {count} record(s)\n"))
}

pub(super) fn restore(tool: &mut Tool, args: &[String]) -> Result {
    let (path, name) = match args {
        [path] => (path, None),
        [path, name] => (path, Some(name)),
        _ => return Err(End::Usage),
    };
    let mut backup = Backup::open(Path::new(path)).map_err(|why| unreadable(path, &why))?;
    let name = name.unwrap_or(&backup.head.name).clone();
    let line = format!(
        "Restoring database {name} from backup @ {}\n",
        time(backup.head.time)
    );
    tool.print(&line)?;
    // Before anything is frozen, which the old tool does not see to.
    backup.check().map_err(|why| unreadable(path, &why))?;
    let mut session = tool.session("DB_ATTACH")?;
    let wanted = Found {
        id: 0,
        name: name.clone(),
        flags: backup.head.flags,
    };
    let db = attached(tool, &mut session, &wanted)?;
    session
        .restore(db.id, &mut backup, Path::new(path))
        .map_err(|error| tool.client_end("DB_FREEZE", error))?;
    tool.print(&format!("Database {name} restored\n"))
}

pub(super) fn wipe(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else { return Err(End::Usage) };
    let (mut session, found, _db) = open(tool, word)?;
    session
        .wipe(&found)
        .map_err(|error| tool.client_end("DB_FREEZE", error))?;
    tool.print(&format!("Database {} wiped\n", found.name))
}

pub(super) fn detach(tool: &mut Tool, args: &[String]) -> Result {
    if args.is_empty() {
        return Err(End::Usage);
    }
    let mut session = tool.session("GET_RECMODE")?;
    session.may_detach().map_err(|error| match error {
        Error::NotDetachable(why) => End::error(match why {
            NotDetachable::Recovering => {
                "Database cannot be detached when recovery is active".to_owned()
            }
            NotDetachable::Inactive(pnn) => {
                format!("Database cannot be detached on inactive (stopped or banned) node {pnn}")
            }
            NotDetachable::Attachable(pnn) => format!(
                "Database access is still active on node {pnn}. Set AllowclientDBAttach=0 on all \
                 nodes."
            ),
        }),
        other => tool.client_end("GET_TUNABLE", other),
    })?;
    let mut code = 0;
    for word in args {
        let found = match session.find(word) {
            Ok(found) => found,
            Err(Error::NoDatabase(word)) => {
                tool.complain(&format!("No database matching '{word}' found"));
                continue;
            }
            Err(error) => return Err(tool.client_end("GET_DBMAP", error)),
        };
        if Kind::of(found.flags) != Kind::Volatile {
            tool.complain("Only volatile databases can be detached");
            code = 1;
            continue;
        }
        let request = Request::DbDetach(found.id);
        if session.own("DB_DETACH", &request).is_err() {
            tool.complain(&format!("Database {word} detach failed"));
            code = 1;
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_are_text_or_hex() {
        assert_eq!(unhexed("k1").unwrap(), b"k1");
        assert_eq!(unhexed("0x6b31").unwrap(), b"k1");
        assert_eq!(unhexed("0x").unwrap(), b"");
        assert_eq!(unhexed("0X61").unwrap(), b"0X61");
        assert_eq!(
            unhexed("0x6").unwrap_err(),
            "Key (6) contains odd number of hex digits"
        );
        assert_eq!(unhexed("0x+1").unwrap_err(), "Invalid hex: +1");
    }

    #[test]
    fn lines_of_a_transaction() {
        let both = |key: &str, value: &str| Some((key.as_bytes().to_vec(), value.into()));
        for (line, wanted) in [
            ("\"a\" \"1\"\n", both("a", "1")),
            ("  \"b\"\t\"0x3132\"  \n", both("b", "12")),
            ("\"c\" \"\"\n", both("c", "")),
            ("\"d\" \"x y\" trailing\n", both("d", "x y")),
            ("\"z\"\"last\"", both("z", "last")),
            ("\n", None),
            ("\"\" \"x\"\n", None),
        ] {
            assert_eq!(pair(line.as_bytes()).unwrap(), wanted, "{line}");
        }
        for (line, text) in [
            ("bad line\n", "Unsupported input format in bad line\n"),
            ("\"h\" \"2\n", "Unmatched \" in input  \"2\n"),
            ("\"h\n", "Unmatched \" in input \"h\n"),
            ("\"h\" 2\n", "Unsupported input format in  2\n"),
            ("\"h\"\n", "Unsupported input format in \n"),
            (
                "\"0x1\" \"2\"\n",
                "Key (1) contains odd number of hex digits",
            ),
        ] {
            assert_eq!(pair(line.as_bytes()).unwrap_err(), text, "{line}");
        }
    }

    #[test]
    fn records_are_shown_as_the_old_tool_does() {
        let header = LtdbHeader {
            rsn: Rsn(3),
            dmaster: 1,
            reserved: 0,
            flags: RecordFlags::MIGRATED_WITH_DATA,
        };
        assert_eq!(
            block(Some(b"k\"1"), &header, b"\0A\xFF\n\\"),
            "key(3) = \"k\\221\"\ndmaster: 1\nrsn: 3\nflags: 0x00010000 MIGRATED_WITH_DATA\n\
             data(5) = \"\\00A\\FF\\0A\\5C\"\n\n"
        );
        assert_eq!(until_nul(b"\0\xFF\""), b"");
        assert_eq!(until_nul(b"abc"), b"abc");
    }
}
