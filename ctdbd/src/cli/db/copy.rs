//! `ctdb db file convert|restore|repack`: whole files.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use ctdb_db::hash::HashKind;
use ctdb_db::{LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, dump};
use serde_json::json;

use super::super::args::{Convert, Format, HashName, Order, YesNo};
use super::super::failure::{Exit, Failure};
use super::{ByteOrder, Context, io_failure, peek, users};

/// What the new file is like.
struct Kind {
    hash: HashKind,
    hash_size: u32,
    order: ByteOrder,
    mutexes: bool,
}

impl Kind {
    /// As tdbrestore makes it.
    const DEFAULT: Self = Self {
        hash: HashKind::Old,
        hash_size: 0,
        order: ByteOrder::NATIVE,
        mutexes: false,
    };

    /// What was asked for; the rest stays.
    fn with(mut self, format: &Format) -> Result<Self, Failure> {
        if let Some(mutexes) = format.mutexes {
            self.mutexes = mutexes == YesNo::Yes;
        }
        match format.hash {
            Some(HashName::Old) if format.mutexes == Some(YesNo::Yes) => {
                return Err(usage("a file with mutexes always has the jenkins hash"));
            }
            Some(HashName::Old) => {
                self.hash = HashKind::Old;
                if self.mutexes {
                    return Err(usage(
                        "a file with mutexes always has the jenkins hash; add --mutexes no",
                    ));
                }
            }
            Some(HashName::Jenkins) => self.hash = HashKind::Jenkins,
            None => {}
        }
        self.hash_size = format.hash_size.unwrap_or(self.hash_size);
        self.order = match format.byte_order {
            Some(Order::Native) => ByteOrder::NATIVE,
            Some(Order::Little) => ByteOrder::Little,
            Some(Order::Big) => ByteOrder::Big,
            None => self.order,
        };
        if self.mutexes && self.order != ByteOrder::NATIVE {
            return Err(usage(
                "mutexes have the byte order of the machine; add --mutexes no, or leave \
                 --byte-order",
            ));
        }
        Ok(self)
    }

    fn flags(&self) -> OpenFlags {
        let mut flags = OpenFlags::NOSYNC;
        flags.set(OpenFlags::INCOMPATIBLE_HASH, self.hash == HashKind::Jenkins);
        flags.set(OpenFlags::CONVERT, self.order != ByteOrder::NATIVE);
        flags.set(OpenFlags::MUTEX_LOCKING, self.mutexes);
        flags
    }
}

fn usage(text: &str) -> Failure {
    Failure::new(Exit::Usage, "usage", text)
}

/// A file that is being made beside its place, and is removed if it does not get there.
struct NewFile {
    temporary: PathBuf,
    target: PathBuf,
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // It is not there any more if it was put in its place.
        let _ = fs::remove_file(&self.temporary);
    }
}

impl NewFile {
    fn create(
        context: &Context<'_>,
        target: &Path,
        kind: &Kind,
        force: bool,
    ) -> Result<(Self, Tdb), Failure> {
        let Some(name) = target.file_name() else {
            return Err(usage("the new file needs a name"));
        };
        if target.exists() {
            if !force {
                let text = format!("{} exists; --force replaces it", target.display());
                return Err(Failure::new(Exit::NotNow, "exists", text));
            }
            users::refuse_users(target)?;
        }
        let name = format!(".{}.{}.new", name.to_string_lossy(), std::process::id());
        let this = Self {
            temporary: target.with_file_name(name),
            target: target.to_owned(),
        };
        // Left by a process with our number; nobody else uses the name.
        let _ = fs::remove_file(&this.temporary);
        let options = OpenOptions {
            flags: kind.flags(),
            create: true,
            hash_size: kind.hash_size,
            wait: context.wait,
            ..OpenOptions::default()
        };
        let tdb = Tdb::open(&this.temporary, &options)?;
        Ok((this, tdb))
    }

    /// Puts it in its place, on stable storage.
    fn finish(self, tdb: Tdb, like: Option<&Path>, force: bool) -> Result<(), Failure> {
        drop(tdb);
        let path = &self.temporary;
        let file = File::open(path).map_err(|error| io_failure("open", path, &error))?;
        if let Some(like) = like {
            let old = fs::metadata(like).map_err(|error| io_failure("look at", like, &error))?;
            let mode = fs::Permissions::from_mode(old.mode() & 0o7777);
            // Only root can give files away; for others the file is theirs.
            let _ = std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()));
            file.set_permissions(mode)
                .map_err(|error| io_failure("set the permissions of", path, &error))?;
        }
        file.sync_all()
            .map_err(|error| io_failure("sync", path, &error))?;
        let placed = if force {
            fs::rename(path, &self.target)
        } else {
            // Fails if somebody made one meanwhile; the other name goes with `self`.
            fs::hard_link(path, &self.target)
        };
        placed.map_err(|error| io_failure("make", &self.target, &error))?;
        let folder = match self.target.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        File::open(folder)
            .and_then(|folder| folder.sync_all())
            .map_err(|error| io_failure("sync", folder, &error))
    }
}

pub(super) fn convert(context: &mut Context<'_>, convert: &Convert) -> Result<(), Failure> {
    let source = &convert.file.file;
    let mut old = context.open_to_read(&convert.file)?;
    let kind = Kind {
        hash: old.hash_kind(),
        hash_size: old.hash_size(),
        order: old.byte_order(),
        mutexes: peek(source)?.is_some_and(|header| header.has_mutexes()),
    }
    .with(&convert.format)?;
    let (file, mut new) = NewFile::create(context, &convert.target, &kind, convert.force)?;
    // All records of one moment.
    old.lock_all(LockKind::Shared)?;
    let records = super::records::for_each(&mut old, |key, value| {
        Ok(new.store(key, value, StoreMode::Insert)?)
    })?;
    old.unlock_all()?;
    file.finish(new, Some(source), convert.force)?;
    told(context, &convert.target, records)
}

pub(super) fn restore(
    context: &mut Context<'_>,
    target: &Path,
    from: Option<&Path>,
    format: &Format,
    force: bool,
) -> Result<(), Failure> {
    let kind = Kind::DEFAULT.with(format)?;
    // Who could use the former file can use this one.
    let like = target.exists().then_some(target);
    let mut input: Box<dyn BufRead> = match from {
        None => Box::new(io::stdin().lock()),
        Some(path) => Box::new(BufReader::new(
            File::open(path).map_err(|error| io_failure("open", path, &error))?,
        )),
    };
    let (file, mut tdb) = NewFile::create(context, target, &kind, force)?;
    let limit = OpenOptions::default().max_record_len;
    let records = dump::read(&mut input, limit, |key, value| {
        Ok(tdb.store(key, value, StoreMode::Insert)?)
    })?;
    file.finish(tdb, like, force)?;
    told(context, target, records)
}

fn told(context: &mut Context<'_>, target: &Path, records: u64) -> Result<(), Failure> {
    let text = format!("{records} records are in {}", target.display());
    if context.json {
        return context.changed(&text, &json!({"records": records}));
    }
    context.print(&(text + "\n"))
}

pub(super) fn repack(context: &mut Context<'_>, path: &Path) -> Result<(), Failure> {
    let (mut tdb, _) = context.open_to_write(path, false)?;
    let before = tdb.check()?;
    tdb.repack()?;
    let after = tdb.check()?;
    let text = format!(
        "{}: {} bytes were free in {} pieces, now {} in {}",
        path.display(),
        before.free_bytes,
        before.free,
        after.free_bytes,
        after.free
    );
    if context.json {
        let more = json!({"free_records": after.free, "free_bytes": after.free_bytes});
        return context.changed(&text, &more);
    }
    context.print(&(text + "\n"))
}
