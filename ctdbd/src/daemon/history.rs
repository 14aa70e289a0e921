//! What happened, why and how long it took (OPS-1): the last records in memory, and on disk, so
//! that they survive a restart.
//!
//! The file is written by a thread of its own: a slow disk costs records on disk, never a step of
//! the main loop.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use ctdb_wire::api::HistoryRecord;

/// Records that are kept; older ones go.
pub(super) const RECORDS: usize = 1000;
/// Addresses that one record names.
const NAMED: usize = 128;
/// Records that wait for the disk; more are not written.
const WAITING: usize = 1024;
/// A file longer than this is put aside, and the one before it goes.
const FILE: u64 = 1 << 20;

/// The last records, oldest first.
#[derive(Default, Debug)]
pub(super) struct History {
    records: VecDeque<HistoryRecord>,
    disk: Option<SyncSender<HistoryRecord>>,
    unwritten: u64,
}

impl History {
    /// Reads what earlier lives wrote, and writes on. Without the file it works all the same.
    pub(super) fn open(path: &Path) -> Self {
        let mut history = Self::default();
        for file in [aside(path), path.to_owned()] {
            match read(&file) {
                Ok(records) => {
                    for record in records {
                        history.keep(record);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(%error, path = %file.display(), "the history cannot be read");
                }
            }
        }
        let (sender, receiver) = sync_channel(WAITING);
        let path = path.to_owned();
        let thread = std::thread::Builder::new()
            .name("history".to_owned())
            .spawn(move || write(&path, &receiver));
        match thread {
            Ok(_) => history.disk = Some(sender),
            Err(error) => tracing::warn!(%error, "the history is kept in memory only"),
        }
        history
    }

    /// Adds a record of now.
    pub(super) fn add(
        &mut self,
        kind: &str,
        node: Option<u32>,
        text: String,
        addresses: &[IpAddr],
        phases: &[(&str, Duration)],
    ) {
        let record = HistoryRecord {
            at: crate::clock::wall_now(),
            kind: kind.to_owned(),
            node,
            text,
            addresses: addresses.iter().take(NAMED).copied().collect(),
            phases: phases
                .iter()
                .map(|(name, length)| ((*name).to_owned(), length.as_secs_f64() * 1000.0))
                .collect(),
        };
        if let Some(disk) = &self.disk
            && disk.try_send(record.clone()).is_err()
        {
            self.unwritten += 1;
            if self.unwritten.is_power_of_two() {
                tracing::warn!(
                    records = self.unwritten,
                    "the disk of the history is slow; records are kept in memory only"
                );
            }
        }
        self.keep(record);
    }

    fn keep(&mut self, record: HistoryRecord) {
        if self.records.len() == RECORDS {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// All that are kept.
    pub(super) fn records(&self) -> impl DoubleEndedIterator<Item = &HistoryRecord> {
        self.records.iter()
    }
}

/// Where a full file goes.
fn aside(path: &Path) -> PathBuf {
    path.with_extension("old")
}

/// The records of a file, one JSON object a line; what is no record (the end of a life in the
/// middle of a line) is passed over. Of a file that something else made long, only the end.
fn read(path: &Path) -> io::Result<Vec<HistoryRecord>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(2 * FILE)))?;
    let mut bytes = Vec::new();
    file.take(2 * FILE).read_to_end(&mut bytes)?;
    Ok(bytes
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect())
}

/// The writing thread: ends when the daemon lets go of its end.
fn write(path: &Path, records: &Receiver<HistoryRecord>) {
    let mut file: Option<(File, u64)> = None;
    let mut failing = false;
    while let Ok(record) = records.recv() {
        match append(path, &mut file, &record) {
            Ok(()) => failing = false,
            Err(error) => {
                file = None;
                if !failing {
                    failing = true;
                    tracing::warn!(%error, path = %path.display(), "the history is not written");
                }
            }
        }
    }
}

fn append(path: &Path, open: &mut Option<(File, u64)>, record: &HistoryRecord) -> io::Result<()> {
    if open.as_ref().is_some_and(|(_, length)| *length > FILE) {
        *open = None;
        std::fs::rename(path, aside(path))?;
    }
    let mut line = serde_json::to_vec(record)?;
    line.push(b'\n');
    let (file, length) = if let Some(open) = open {
        open
    } else {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o644)
            .open(path)?;
        let length = file.metadata()?.len();
        // A life may have ended in the middle of a line.
        if length > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                line.insert(0, b'\n');
            }
        }
        open.insert((file, length))
    };
    file.write_all(&line)?;
    *length += line.len() as u64;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(history: &mut History, text: &str) {
        let phase = ("a", Duration::from_micros(1500));
        history.add("test", None, text.to_owned(), &[], &[phase]);
    }

    fn texts(history: &History) -> Vec<&str> {
        history
            .records()
            .map(|record| record.text.as_str())
            .collect()
    }

    /// Waits until the thread has written a line with this text.
    fn written(path: &Path, text: &str) {
        for _ in 0..1000 {
            if std::fs::read_to_string(path).is_ok_and(|file| file.contains(text)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("{text} was not written");
    }

    #[test]
    fn old_records_make_room() {
        let mut history = History::default();
        for number in 0..RECORDS + 5 {
            add(&mut history, &number.to_string());
        }
        assert_eq!(history.records().count(), RECORDS);
        let first = history.records().next().unwrap();
        assert_eq!(first.text, "5");
        assert_eq!(first.phases, [("a".to_owned(), 1.5)]);
    }

    #[test]
    fn records_survive_a_life_even_one_that_ends_within_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let mut history = History::open(&path);
        add(&mut history, "first life");
        drop(history);
        written(&path, "first life\"");
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"{\"at\":1.0,\"ki").unwrap();
        let mut history = History::open(&path);
        add(&mut history, "second life");
        drop(history);
        written(&path, "second life\"");
        let history = History::open(&path);
        assert_eq!(texts(&history), ["first life", "second life"]);
    }

    #[test]
    fn the_file_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let mut open = None;
        let record = HistoryRecord {
            text: "x".repeat(100_000),
            ..HistoryRecord::default()
        };
        for _ in 0..100 {
            append(&path, &mut open, &record).unwrap();
        }
        let size = |path: &Path| path.metadata().unwrap().len();
        assert!(size(&path) <= FILE + 200_000);
        assert!(size(&aside(&path)) <= FILE + 200_000);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn without_a_disk_it_works_in_memory() {
        let mut history = History::open(Path::new("/no/such/directory/history"));
        add(&mut history, "here");
        assert_eq!(texts(&history), ["here"]);
    }
}
