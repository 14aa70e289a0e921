//! `[log] record`: every input of this node's machines (the detector's, the main loop's, that of
//! the event scripts) with its moment, and what was decided on it, in the format of
//! [`ctdb_core::recording`]. `ctdb debug replay` runs the machines over it again.
//!
//! A thread of its own writes. It runs the machines a second time beside the daemon, so that each
//! part of the recording can begin with how they stand, and a decision that is not a function of
//! the inputs shows at once. A slow disk ends the recording and holds up nobody: the detector and
//! the main loop put into bounded queues what they have, and never wait. What has a gap could not be
//! replayed behind it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use ctdb_core::authority;
use ctdb_core::recording::{self, Act, End, Entry, Head, Heard, Machines, Step};
use ctdb_wire::ids::BootTime;

use crate::clock::wall_now;

/// Bytes after which a part ends and the next begins.
const PART: u64 = 64 << 20;
/// Parts that are kept: `FILE`, and the older ones as `FILE.1` and so on.
const PARTS: u64 = 4;
/// Steps of the main loop that wait for the writer.
const STEPS: usize = 4096;
/// What the detector has heard and done that waits: a tick of a leader of 64 nodes is 200 of these.
const ITEMS: usize = 16 * 1024;
/// The writer looks for news so often. Nobody wakes it: that would be a system call of the detector.
const PAUSE: Duration = Duration::from_millis(25);
/// How long the daemon's end waits for the last lines.
const LAST: Duration = Duration::from_secs(1);

/// What the detector says, in fixed size.
#[derive(Clone, Copy)]
enum Item {
    Heard(BootTime, Heard),
    Act(Act),
    /// The step is whole.
    Done,
}

/// The detector's end: allocates nothing, waits for nobody (MEM-2).
pub struct Tap {
    items: SyncSender<Item>,
    lost: Arc<AtomicBool>,
}

impl Tap {
    /// Behind what is lost nothing more is put in: what is there has no gap.
    fn put(&self, item: Item) {
        if self.lost.load(Ordering::Relaxed) {
            return;
        }
        if self.items.try_send(item).is_err() {
            self.lost.store(true, Ordering::Release);
        }
    }

    /// An input is about to be handled.
    pub fn heard(&self, at: BootTime, input: authority::Input<'_>) {
        self.put(Item::Heard(at, input.into()));
    }

    /// It asks for this.
    pub fn act(&self, act: Act) {
        self.put(Item::Act(act));
    }

    /// It is handled.
    pub fn done(&self) {
        self.put(Item::Done);
    }
}

/// The main loop's end.
pub struct Recorder {
    steps: SyncSender<Step>,
    lost: Arc<AtomicBool>,
    ended: Receiver<()>,
}

/// A recording that is about to begin; what comes meanwhile waits.
pub struct Prepared {
    path: PathBuf,
    items: Receiver<Item>,
    lost: Arc<AtomicBool>,
    part: u64,
}

/// The file is not opened yet, the detector can already speak.
pub fn prepare(path: &Path) -> (Prepared, Tap) {
    let (sender, items) = sync_channel(ITEMS);
    let lost = Arc::new(AtomicBool::new(false));
    let prepared = Prepared {
        path: path.to_owned(),
        items,
        lost: Arc::clone(&lost),
        part: PART,
    };
    let tap = Tap {
        items: sender,
        lost,
    };
    (prepared, tap)
}

impl Prepared {
    /// Begins it. `machines` are as they were before their first input.
    pub fn start(self, head: Head, machines: Machines) -> io::Result<Recorder> {
        let (steps, receiver) = sync_channel(STEPS);
        let (end, ended) = sync_channel(1);
        let lost = Arc::clone(&self.lost);
        let writer = Writer {
            path: self.path,
            head,
            machines,
            part: self.part,
            file: None,
            written: 0,
            buffer: Vec::new(),
        };
        let items = self.items;
        std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn({
                let lost = Arc::clone(&lost);
                move || {
                    let mut writer = writer;
                    if let Err(error) = writer.run(&items, &receiver, &lost) {
                        let path = writer.path.display();
                        tracing::error!(%error, %path, "the recording ends");
                    }
                    let _ = end.try_send(());
                }
            })?;
        Ok(Recorder { steps, lost, ended })
    }
}

impl Recorder {
    /// A step of the main loop; false if there is no use in giving another.
    pub fn step(&self, step: Step) -> bool {
        if self.steps.try_send(step).is_err() {
            self.lost.store(true, Ordering::Release);
            return false;
        }
        true
    }

    /// The daemon ends, and its detector has: waits a moment until all is written.
    pub fn finish(self) {
        drop(self.steps);
        let _ = self.ended.recv_timeout(LAST);
    }
}

/// Why nothing is recorded any more.
#[derive(Debug, thiserror::Error)]
enum WriterError {
    #[error("cannot write it: {0}")]
    Io(#[from] io::Error),
    #[error("a step cannot be put into it: {0}")]
    Encode(#[from] postcard::Error),
    #[error("inputs come faster than they can be written; what is there can be replayed")]
    Gap,
    #[error(
        "the machines decide otherwise when they are run beside the daemon; please report: {0}"
    )]
    Differs(Box<recording::Difference>),
}

struct Writer {
    path: PathBuf,
    head: Head,
    machines: Machines,
    part: u64,
    file: Option<File>,
    written: u64,
    buffer: Vec<u8>,
}

impl Writer {
    fn run(
        &mut self,
        items: &Receiver<Item>,
        steps: &Receiver<Step>,
        lost: &AtomicBool,
    ) -> Result<(), WriterError> {
        self.begin()?;
        let mut open = None;
        loop {
            let mut ended = false;
            // What was lost was lost behind what waits now.
            let gap = lost.load(Ordering::Acquire);
            for _ in 0..ITEMS {
                match items.try_recv() {
                    Ok(item) => {
                        if let Some(step) = assemble(&mut open, item) {
                            self.take(&step)?;
                        }
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        ended = true;
                        break;
                    }
                }
            }
            for _ in 0..STEPS {
                match steps.try_recv() {
                    Ok(step) => self.take(&step)?,
                    Err(TryRecvError::Empty) => {
                        ended = false;
                        break;
                    }
                    Err(TryRecvError::Disconnected) => break,
                }
            }
            if gap {
                self.end(End::Gap)?;
                return Err(WriterError::Gap);
            }
            if ended {
                return self.end(End::Stopped);
            }
            self.flush()?;
            if self.written >= self.part {
                self.end(End::Full)?;
                self.head.part += 1;
                self.begin()?;
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn take(&mut self, step: &Step) -> Result<(), WriterError> {
        recording::write(&mut self.buffer, &Entry::Step(step.clone()))?;
        if let Err(difference) = self.machines.again(step) {
            self.end(End::Differs)?;
            return Err(WriterError::Differs(difference));
        }
        Ok(())
    }

    /// Moves the older parts on and begins a new one.
    fn begin(&mut self) -> Result<(), WriterError> {
        for number in (1..PARTS).rev() {
            let (from, to) = (self.part_path(number - 1), self.part_path(number));
            match fs::rename(from, to) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)?;
        self.file = Some(file);
        self.written = 0;
        self.head.begun_at = wall_now() as i64;
        recording::begin(&mut self.buffer);
        recording::write(&mut self.buffer, &Entry::Head(self.head.clone()))?;
        let machines = Box::new(self.machines.clone());
        recording::write(&mut self.buffer, &Entry::Begin(machines))?;
        self.flush()
    }

    fn part_path(&self, number: u64) -> PathBuf {
        match number {
            0 => self.path.clone(),
            number => self.path.with_added_extension(number.to_string()),
        }
    }

    fn end(&mut self, end: End) -> Result<(), WriterError> {
        recording::write(&mut self.buffer, &Entry::End(end))?;
        self.flush()
    }

    fn flush(&mut self) -> Result<(), WriterError> {
        if let Some(file) = &mut self.file
            && !self.buffer.is_empty()
        {
            file.write_all(&self.buffer)?;
            self.written += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// Puts the detector's pieces together again.
fn assemble(open: &mut Option<(BootTime, Heard, Vec<Act>)>, item: Item) -> Option<Step> {
    match item {
        Item::Heard(at, input) => {
            *open = Some((at, input, Vec::new()));
            None
        }
        Item::Act(act) => {
            if let Some((_, _, effects)) = open {
                effects.push(act);
            }
            None
        }
        Item::Done => open
            .take()
            .map(|(at, input, effects)| Step::Detector { at, input, effects }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ctdb_core::authority::{Authority, Config, Input, Timing};
    use ctdb_core::coordinator::{self, Coordinator};
    use ctdb_core::events::{Events, Limits};
    use ctdb_core::planted::Planted;
    use ctdb_wire::ids::{Incarnation, NodeSet, Pnn};
    use ctdb_wire::peer::NodeInfo;

    use super::*;

    fn machines(at: BootTime) -> (Head, Machines) {
        let (me, incarnation) = (Pnn::new(0).unwrap(), Incarnation(7));
        let voters = NodeSet(1);
        let config = Config::majority(me, incarnation, voters, Timing::standard());
        let machines = Machines {
            authority: Authority::new(config, at),
            coordinator: Coordinator::new(
                coordinator::Config {
                    me,
                    voters,
                    quorum: 1,
                    deleted: NodeSet::EMPTY,
                    list_length: 1,
                    give_up: Duration::from_secs(6),
                    home_nodes: BTreeMap::new(),
                    failover_disabled: false,
                    planted: Planted::default(),
                },
                NodeInfo::default(),
            ),
            events: Events::new(Limits {
                event: Duration::from_secs(30),
                monitor_interval: Duration::from_secs(15),
                monitor_timeouts: 20,
            }),
        };
        let head = Head {
            release: "1".to_owned(),
            node: me,
            incarnation,
            begun_at: 0,
            part: 0,
        };
        (head, machines)
    }

    /// A daemon's two threads in one: some steps of each.
    fn live(tap: &Tap, recorder: &Recorder, machines: &mut Machines, at: &mut BootTime) {
        struct Tapped<'a>(&'a Tap);
        impl authority::Sink for Tapped<'_> {
            fn send(&mut self, to: Pnn, message: &ctdb_wire::heartbeat::Message) {
                self.0.act(Act::Send(to, *message));
            }
            fn deadline(&mut self, slot: u32, until: BootTime) {
                self.0.act(Act::Deadline(slot, until));
            }
        }
        for _ in 0..100 {
            *at += Duration::from_millis(50);
            for input in [Input::Progress, Input::Eligible(true), Input::Tick] {
                tap.heard(*at, input);
                machines.authority.handle(*at, input, &mut Tapped(tap));
                tap.done();
            }
            let input = coordinator::Input::Status(Box::new(machines.authority.status(*at)));
            let effects = machines.coordinator.handle(*at, input.clone());
            assert!(recorder.step(Step::Node {
                at: *at,
                input,
                effects,
            }));
        }
    }

    fn run(path: &Path) -> recording::Summary {
        let bytes = fs::read(path).unwrap();
        recording::replay(&bytes, |_| {}, |_| {}).unwrap()
    }

    #[test]
    fn parts_follow_each_other_and_each_stands_for_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        fs::write(&path, "of another life").unwrap();
        let mut at = BootTime::from_millis(100_000);
        let (head, mut machines) = machines(at);
        let (mut prepared, tap) = prepare(&path);
        prepared.part = 20_000;
        let recorder = prepared.start(head, machines.clone()).unwrap();
        let third = path.with_added_extension("3");
        // Until it has gone on often enough for the oldest to be dropped.
        let old = |path: &Path| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"of"));
        while !third.exists() || old(&third) {
            live(&tap, &recorder, &mut machines, &mut at);
            std::thread::sleep(PAUSE);
        }
        drop(tap);
        recorder.finish();
        assert_eq!(run(&path).end, Some(End::Stopped));
        for number in 1..PARTS {
            let part = run(&path.with_added_extension(number.to_string()));
            assert_eq!(part.end, Some(End::Full));
            assert!(part.steps > 0 && part.decisions > 0, "{part:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count() as u64, PARTS);
    }

    #[test]
    fn what_is_behind_a_gap_is_not_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let at = BootTime::from_millis(100_000);
        let (head, mut machines) = machines(at);
        let before = machines.clone();
        let (prepared, tap) = prepare(&path);
        // Nobody writes yet: more than fits.
        for _ in 0..ITEMS {
            tap.heard(at, Input::Tick);
            machines.authority.handle(at, Input::Tick, &mut Vec::new());
            tap.done();
        }
        let recorder = prepared.start(head, before).unwrap();
        drop(tap);
        recorder.finish();
        let summary = run(&path);
        assert_eq!(summary.end, Some(End::Gap));
        assert_eq!(summary.steps, ITEMS as u64 / 2);
    }

    #[test]
    fn a_decision_that_does_not_follow_from_the_inputs_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("recording");
        let at = BootTime::from_millis(100_000);
        let (head, machines) = machines(at);
        let (prepared, tap) = prepare(&path);
        let recorder = prepared.start(head, machines).unwrap();
        tap.heard(at, Input::Tick);
        tap.act(Act::Deadline(9, at));
        tap.done();
        drop(tap);
        recorder.finish();
        let bytes = fs::read(&path).unwrap();
        let error = recording::replay(&bytes, |_| {}, |_| {}).unwrap_err();
        assert!(matches!(error, recording::RecordingError::Differs(_)));
    }
}
