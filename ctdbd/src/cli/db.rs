//! `ctdb db`: databases and their records, and the files of databases without a daemon.

use std::io::{self, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use ctdb_db::dump::DumpError;
use ctdb_db::format::{ByteOrder, HEADER_LEN, Header};
use ctdb_db::{Error, OpenFlags, OpenOptions, Tdb, Wait};
use serde_json::Value;

use super::args::{Db, DbFile, Filed};
use super::failure::{Exit, Failure};
use super::{Asking, pretty};

mod attached;
mod check;
mod copy;
mod records;
mod users;

/// Runs one command. It writes its own output, which may be as large as a file.
pub(super) fn run(
    asking: &Asking,
    verb: &Db,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<(), Failure> {
    let mut context = Context {
        json: asking.global.json,
        wait: Wait::UpTo(Duration::from_secs(asking.global.timelimit)),
        out,
        err,
        in_list: false,
    };
    let result = match verb {
        Db::File(verb) => file(&mut context, verb),
        verb => attached::run(&mut context, asking, verb),
    };
    context.end(result)
}

/// `ctdb db file`
fn file(context: &mut Context<'_>, verb: &DbFile) -> Result<(), Failure> {
    match verb {
        DbFile::Get {
            file,
            key,
            raw,
            ctdb,
        } => records::get(context, file, key, *raw, *ctdb),
        DbFile::Put { .. } => records::put(context, verb),
        DbFile::Del {
            file,
            key,
            raw,
            force,
        } => records::del(context, file, key, *raw, *force),
        DbFile::List { file, ctdb } => records::list(context, file, *ctdb),
        DbFile::Dump { file, ctdb } => records::dump(context, file, *ctdb),
        DbFile::Check { file } => check::check(context, file),
        DbFile::Repack { file } => copy::repack(context, file),
        DbFile::Convert(convert) => copy::convert(context, convert),
        DbFile::Restore {
            file,
            dump,
            format,
            force,
        } => copy::restore(context, file, dump.as_deref(), format, *force),
    }
}

/// What every verb needs.
struct Context<'a> {
    json: bool,
    wait: Wait,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
    /// A JSON list has been begun.
    in_list: bool,
}

impl Context<'_> {
    /// Closes what was begun, and makes sure that all of it was written.
    fn end(&mut self, result: Result<(), Failure>) -> Result<(), Failure> {
        let result = match result {
            Err(failure) if failure.reader_gone() => Ok(()),
            Err(mut failure) if self.in_list => {
                let error = failure.json(None)["error"].clone();
                failure.told = true;
                self.in_list = false;
                self.print(&format!("\n], \"error\": {error}}}\n"))?;
                Err(failure)
            }
            other => other,
        };
        match self.out.flush() {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                result.and(Err(output(&error)))
            }
            _ => result,
        }
    }

    fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.print_bytes(text.as_bytes())
    }

    fn print_bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| output(&error))
    }

    fn print_json(&mut self, value: &Value) -> Result<(), Failure> {
        self.print(&pretty(value))
    }

    /// Begins `{"name": [`.
    fn begin_list(&mut self, name: &str) -> Result<(), Failure> {
        self.in_list = true;
        self.print(&format!("{{\"{name}\": ["))
    }

    fn end_list(&mut self) -> Result<(), Failure> {
        self.in_list = false;
        self.print("\n]}\n")
    }

    /// Tells that something was changed, in JSON only: a command that did its work is silent.
    fn changed(&mut self, text: &str, more: &Value) -> Result<(), Failure> {
        if !self.json {
            return Ok(());
        }
        let mut value = serde_json::json!({"changed": true, "message": text});
        if let (Some(all), Some(more)) = (value.as_object_mut(), more.as_object()) {
            all.extend(more.clone());
        }
        self.print_json(&value)
    }

    fn warn(&mut self, text: &str) {
        // Nothing can be done about a standard error that is closed.
        let _ = writeln!(self.err, "ctdb: warning: {text}");
    }

    fn options(&self) -> OpenOptions {
        OpenOptions {
            wait: self.wait,
            ..OpenOptions::default()
        }
    }

    /// Opens a file to read it: with its locks, or without where that was asked for or is the only
    /// way.
    fn open_to_read(&mut self, filed: &Filed) -> Result<Tdb, Failure> {
        let path = &filed.file;
        let reading = OpenOptions {
            read_only: true,
            ..self.options()
        };
        if filed.no_lock {
            return Ok(Tdb::open(path, &reading)?);
        }
        let locking = OpenOptions {
            flags: lock_flags(peek(path)?.as_ref()),
            ..self.options()
        };
        let why = match Tdb::open(path, &locking) {
            Ok(tdb) => return Ok(tdb),
            Err(Error::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                "it may only be read"
            }
            Err(Error::MutexFile { .. } | Error::BadFlags(_)) => {
                "its mutexes cannot be used from here"
            }
            Err(error) => return Err(error.into()),
        };
        let tdb = Tdb::open(path, &reading)?;
        self.warn(&format!(
            "{} is read without locks, since {why}: what is being written meanwhile may be seen \
             half",
            path.display()
        ));
        Ok(tdb)
    }

    /// Opens a file to change it; it is made if `create`. Whether it was made.
    fn open_to_write(&mut self, path: &Path, create: bool) -> Result<(Tdb, bool), Failure> {
        let header = peek(path)?;
        let new = !path.exists();
        if header
            .as_ref()
            .is_some_and(|h| h.order != ByteOrder::NATIVE)
        {
            self.warn(&format!(
                "{} has the byte order of another kind of machine; `ctdb db file convert \
                 --byte-order native` makes a file for this one",
                path.display()
            ));
        }
        if header.as_ref().is_some_and(Header::has_mutexes) && users::of(path).is_empty() {
            self.warn(&format!(
                "no program has {} open, and those that use such files mostly empty them when \
                 they are the first (CLEAR_IF_FIRST)",
                path.display()
            ));
        }
        let options = OpenOptions {
            create,
            flags: lock_flags(header.as_ref()),
            ..self.options()
        };
        Ok((Tdb::open(path, &options)?, new))
    }
}

/// Opens a file to read and change it, with its locks, whoever has it open; it has to be there.
pub(super) fn open_plain(path: &Path) -> Result<Tdb, Failure> {
    let options = OpenOptions {
        flags: lock_flags(peek(path)?.as_ref()),
        wait: Wait::UpTo(Duration::from_secs(10)),
        ..OpenOptions::default()
    };
    Ok(Tdb::open(path, &options)?)
}

/// The flags with which a file's locks can be used.
fn lock_flags(header: Option<&Header>) -> OpenFlags {
    if header.is_some_and(Header::has_mutexes) {
        OpenFlags::MUTEX_LOCKING
    } else {
        OpenFlags::empty()
    }
}

/// The header of a file, `None` if there is no file or no sound header: opening it says what is
/// wrong.
fn peek(path: &Path) -> Result<Option<Header>, Failure> {
    let opened = std::fs::File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path);
    let mut file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_failure("open", path, &error)),
    };
    let mut bytes = [0; HEADER_LEN as usize];
    Ok(match file.read_exact(&mut bytes) {
        Ok(()) => Header::decode(&bytes).ok(),
        Err(_) => None,
    })
}

fn output(error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::BrokenPipe {
        READER_GONE
    } else {
        "io"
    };
    Failure::new(
        Exit::Failed,
        code,
        format!("cannot write the output: {error}"),
    )
}

/// The word of a failure that only says that nobody reads on (`ctdb db file list ... | head -1`).
const READER_GONE: &str = "reader_gone";

impl Failure {
    fn reader_gone(&self) -> bool {
        self.code == READER_GONE
    }
}

fn io_failure(doing: &str, path: &Path, error: &io::Error) -> Failure {
    let text = format!("cannot {doing} {}: {error}", path.display());
    let (exit, code) = match error.kind() {
        io::ErrorKind::NotFound => (Exit::NotFound, "no_such_file"),
        io::ErrorKind::AlreadyExists => (Exit::NotNow, "exists"),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (Exit::Failed, "no_space"),
        _ => (Exit::Failed, "io"),
    };
    Failure::new(exit, code, text)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        let (exit, code) = match &error {
            Error::Io {
                doing,
                path,
                source,
            } => return io_failure(doing, path, source),
            Error::NotFound => (Exit::NotFound, "no_such_key"),
            Error::Busy { .. } => {
                let text = format!("{text}; it was not given back in time, -t waits longer");
                return Failure::new(Exit::TimedOut, "busy", text);
            }
            Error::Header { .. } => (Exit::Failed, "no_database"),
            Error::Corrupt { .. } => (Exit::Failed, "corrupt"),
            Error::NoSpace { .. } => (Exit::Failed, "no_space"),
            Error::ReadOnly
            | Error::MutexFile { .. }
            | Error::NeedsRecovery { .. }
            | Error::InTransaction => (Exit::NotNow, "not_now"),
            _ => (Exit::Failed, "database"),
        };
        Failure::new(exit, code, text)
    }
}

impl From<DumpError> for Failure {
    fn from(error: DumpError) -> Self {
        match error {
            DumpError::Db(error) => error.into(),
            DumpError::Io(error) => {
                Failure::new(Exit::Failed, "io", format!("cannot read the dump: {error}"))
            }
            other => Failure::new(Exit::Failed, "bad_dump", other.to_string()),
        }
    }
}
