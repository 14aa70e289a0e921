//! What waits for a disk, on a thread beside the worker, one job after another.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use ctdb_db::cluster::message::{Digest, Record};
use ctdb_db::cluster::{
    Change, Conflict, JobId, JobResult, Kind, Lineage, SEQNUM_KEY, StoreFault, Work, sequence_of,
    verify,
};
use ctdb_db::record::LtdbHeader;
use ctdb_db::{Error, StoreMode, Tdb, TraverseKind, Wait};

use super::file::FileOptions;
use super::lineage::LineageFile;
use super::mailbox::Item;
use super::seat::Seat;

/// How long a transaction waits for other processes' locks.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a job's thread has.
pub(super) struct Jobs {
    options: FileOptions,
    /// Of a persistent database.
    lineage: Option<LineageFile>,
    /// That of the others lives as long as the daemon.
    in_memory: Lineage,
    tdb: Option<Tdb>,
    /// A transaction that replaces everything is running on the handle.
    replacing: bool,
}

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Engine(#[from] Error),
    #[error(transparent)]
    Lineage(#[from] super::lineage::LineageError),
    #[error("cannot {0}: {1}")]
    Io(&'static str, std::io::Error),
    #[error("no replacement has begun")]
    NoReplacement,
    #[error("it cannot be read")]
    Damaged,
    #[error(transparent)]
    Conflict(#[from] Conflict),
}

/// The thread.
#[derive(Debug)]
pub(super) struct JobThread {
    queue: Sender<(JobId, Work)>,
}

impl JobThread {
    /// Results go back to the worker.
    pub(super) fn start(mut jobs: Jobs, name: &str, seat: Arc<Seat>) -> std::io::Result<Self> {
        let (queue, work): (_, Receiver<(JobId, Work)>) = channel();
        std::thread::Builder::new()
            .name(format!("job {name}"))
            .spawn(move || {
                while let Ok((job, work)) = work.recv() {
                    let result = jobs.run(work);
                    seat.bring(Item::Done(job, result));
                }
            })?;
        Ok(Self { queue })
    }

    /// Begins a job; the machine has one at a time.
    pub(super) fn run(&self, job: JobId, work: Work) {
        // The thread ends only with this handle.
        let _ = self.queue.send((job, work));
    }
}

impl Jobs {
    pub(super) fn new(options: FileOptions, lineage: Option<LineageFile>) -> Self {
        Self {
            options,
            lineage,
            in_memory: Lineage::NONE,
            tdb: None,
            replacing: false,
        }
    }

    fn lineage(&self) -> Lineage {
        self.lineage
            .as_ref()
            .map_or(self.in_memory, LineageFile::lineage)
    }

    fn tdb(&mut self) -> Result<&mut Tdb, Failure> {
        let tdb = if let Some(tdb) = self.tdb.take() {
            tdb
        } else {
            let mut tdb = self.options.again()?;
            tdb.set_wait(Wait::UpTo(PATIENCE));
            tdb
        };
        Ok(self.tdb.insert(tdb))
    }

    fn run(&mut self, work: Work) -> JobResult {
        match self.carry_out(work) {
            Ok(result) => result,
            Err(Failure::Conflict(conflict)) => JobResult::Conflict(conflict),
            Err(failure) => JobResult::Failed(StoreFault(failure.to_string())),
        }
    }

    fn carry_out(&mut self, work: Work) -> Result<JobResult, Failure> {
        match work {
            Work::Inspect => return self.inspect(),
            Work::Apply { base, changes, .. } => self.apply(base, &changes)?,
            Work::ReplaceBegin { backup } => {
                self.abandon()?;
                if backup {
                    self.keep_aside()?;
                }
                let tdb = self.tdb()?;
                tdb.transaction_start()?;
                self.replacing = true;
                empty(self.tdb()?)?;
            }
            Work::ReplacePiece { records } => {
                if !self.replacing {
                    return Err(Failure::NoReplacement);
                }
                let tdb = self.tdb()?;
                for record in &records {
                    put(tdb, record)?;
                }
            }
            Work::ReplaceCommit => {
                if !std::mem::take(&mut self.replacing) {
                    return Err(Failure::NoReplacement);
                }
                let tdb = self.tdb()?;
                tdb.increment_sequence_number()?;
                tdb.transaction_commit()?;
                if let Some(lineage) = &mut self.lineage
                    && lineage.damaged().is_some()
                {
                    lineage.set_damaged(None)?;
                }
            }
            Work::Seal { lineage } => match &mut self.lineage {
                Some(file) => file.seal(lineage)?,
                None => self.in_memory = lineage,
            },
            Work::Sync => sync(&self.options.path)?,
        }
        Ok(JobResult::Ok)
    }

    /// What an interrupted recovery left.
    fn abandon(&mut self) -> Result<(), Failure> {
        if std::mem::take(&mut self.replacing) {
            self.tdb()?.transaction_cancel()?;
        }
        Ok(())
    }

    fn inspect(&mut self) -> Result<JobResult, Failure> {
        self.abandon()?;
        let lineage = self.lineage();
        if self
            .lineage
            .as_ref()
            .is_some_and(|file| file.damaged().is_some())
        {
            return Ok(JobResult::Damaged { lineage });
        }
        let mut digest = Digest::default();
        let mut seq = 0;
        let read = self.tdb()?.traverse(TraverseKind::Read, |_, key, value| {
            if let Some((_, data)) = LtdbHeader::split(value) {
                digest.add(key, data);
                if key == SEQNUM_KEY {
                    seq = sequence_of(data);
                }
            }
            Ok(std::ops::ControlFlow::Continue(()))
        });
        match read {
            Ok(_) => Ok(JobResult::Inspected {
                lineage,
                seq,
                digest: digest.0,
            }),
            Err(error @ (Error::Corrupt { .. } | Error::Header { .. })) => {
                tracing::error!(%error, "a copy cannot be read");
                Ok(JobResult::Damaged { lineage })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// In one transaction of the file: durable for a persistent database (DATA-2).
    fn apply(&mut self, base: u64, changes: &[Change]) -> Result<(), Failure> {
        if self
            .lineage
            .as_ref()
            .is_some_and(|file| file.damaged().is_some())
        {
            return Err(Failure::Damaged);
        }
        let mut transaction = self.tdb()?.transaction()?;
        let mut unread = None;
        let verdict = verify(base, changes, |key| match transaction.fetch(key) {
            Ok(value) => {
                let value = value?;
                let (header, data) = LtdbHeader::split(&value)?;
                Some((header, data.to_vec()))
            }
            Err(error) => {
                unread.get_or_insert(error);
                None
            }
        });
        if let Some(error) = unread {
            return Err(error.into());
        }
        if verdict? {
            // There already: its commit was durable.
            return Ok(transaction.cancel()?);
        }
        for change in changes {
            put(&mut transaction, change)?;
        }
        // Samba's registry looks at the file's sequence number before it trusts what it has read. The
        // daemon's own handle is not open for counting, as CTDB's is after ENABLE_SEQNUM.
        transaction.increment_sequence_number()?;
        Ok(transaction.commit()?)
    }

    /// Keeps the content before it is replaced by one that does not follow from it.
    fn keep_aside(&mut self) -> Result<(), Failure> {
        if self.options.kind != Kind::Persistent {
            return Ok(());
        }
        let aside = aside(&self.options.path, "replaced");
        std::fs::copy(&self.options.path, &aside)
            .map_err(|error| Failure::Io("keep a copy of the database aside", error))?;
        tracing::warn!(kept = %aside.display(), "a copy that is about to be replaced is kept");
        Ok(())
    }
}

/// A name beside the file, with the time.
pub(super) fn aside(path: &Path, what: &str) -> std::path::PathBuf {
    let now = jiff::Timestamp::now().strftime("%Y%m%d%H%M%S");
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{what}.{now}.0Z"));
    name.into()
}

/// Removes all records, in the transaction that runs.
fn empty(tdb: &mut Tdb) -> Result<(), Error> {
    let mut keys = Vec::new();
    tdb.traverse(TraverseKind::Read, |_, key, _| {
        keys.push(key.to_vec());
        Ok(std::ops::ControlFlow::Continue(()))
    })?;
    for key in &keys {
        tdb.delete(key)?;
    }
    Ok(())
}

fn put(tdb: &mut Tdb, record: &Record) -> Result<(), Error> {
    let value = record.header().join(&record.data);
    tdb.store(&record.key, &value, StoreMode::Replace)
}

fn sync(path: &Path) -> Result<(), Failure> {
    std::fs::File::open(path)
        .and_then(|file| file.sync_data())
        .map_err(|error| Failure::Io("sync the database", error))
}
