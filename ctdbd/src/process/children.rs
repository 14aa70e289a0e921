//! All children: starting, listing, ending.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ctdb_wire::api::{ProcessView, ProcessesView};
use rustix::process::Signal;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::output::{self, Kept, PIPED, Treatment};
use super::spec::{Ended, How, Leftovers, Owner, Spec, Streams};
use super::supervise::{self, Process, Started};
use crate::clock::wall_now;

/// Children that run at a time; more are refused.
pub const MAX_RUNNING: usize = 256;
/// Ended children that are listed; older ones go.
pub const MAX_ENDED: usize = 100;
/// A child that SIGKILL has not ended after this long waits in the kernel.
const STUCK: Duration = Duration::from_secs(2);
/// Longest run of a debug script.
const DEBUG_LIMIT: Duration = Duration::from_secs(60);
/// Output of an ended child that the list keeps, of each stream.
const LISTED_OUTPUT: usize = 4096;

/// Why a child was not started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The bound.
    #[error("{MAX_RUNNING} child processes run already; `ctdb process list` shows which")]
    Busy,
    /// The daemon ends.
    #[error("the daemon is stopping")]
    Stopping,
    /// The system, or the program file.
    #[error("cannot start {program}: {source}")]
    System {
        /// Which program.
        program: String,
        /// Why not.
        source: std::io::Error,
    },
}

struct Entry {
    view: ProcessView,
    started: Instant,
    stop: Arc<Notify>,
}

#[derive(Default)]
struct Table {
    next: u64,
    running: BTreeMap<u64, Entry>,
    ended: VecDeque<ProcessView>,
    stopping: bool,
}

/// The one place where children are started. Cheap to clone.
#[derive(Clone, Default)]
pub struct Children {
    table: Arc<Mutex<Table>>,
}

/// A running child. Dropped, it is ended: SIGTERM to its group, then SIGKILL.
pub struct Child {
    id: u64,
    pid: u32,
    stop: Arc<Notify>,
    ended: oneshot::Receiver<Ended>,
    bytes: mpsc::Receiver<Vec<u8>>,
}

impl Child {
    /// Its number in the list.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Its process number; also that of its group.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to end. [`Child::ended`] tells when it has.
    pub fn stop(&self) {
        self.stop.notify_one();
    }

    /// The next bytes of a [`Streams::Piped`] output; `None` at its end.
    pub async fn bytes(&mut self) -> Option<Vec<u8>> {
        self.bytes.recv().await
    }

    /// Waits for the end. To be awaited once; may be dropped and called again before that.
    pub async fn ended(&mut self) -> Ended {
        (&mut self.ended)
            .await
            .unwrap_or_else(|_| Ended::not_started("its end was told already".to_owned()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.stop.notify_one();
    }
}

impl Children {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child. Waits for the program file, so a caller that may not wait does it in a
    /// task; a dropped call ends the child as soon as it has started.
    pub async fn start(&self, spec: Spec) -> Result<Child, StartError> {
        let (sender, receiver) = oneshot::channel();
        let (id, stop) = self.enter(&spec)?;
        let program = shown(&spec);
        self.spawn_life(id, stop, spec, sender);
        match receiver.await {
            Ok(started) => started,
            Err(_) => Err(StartError::System {
                program,
                source: std::io::Error::other("the daemon ends"),
            }),
        }
    }

    /// Starts a child and waits for its end.
    pub async fn run(&self, spec: Spec) -> Ended {
        match self.start(spec).await {
            Ok(mut child) => child.ended().await,
            Err(error) => Ended::not_started(error.to_string()),
        }
    }

    /// [`Children::run`] for a child's own life, which would otherwise contain itself.
    fn run_within(&self, spec: Spec) -> Pin<Box<dyn Future<Output = Ended> + Send + '_>> {
        Box::pin(self.run(spec))
    }

    fn spawn_life(
        &self,
        id: u64,
        stop: Arc<Notify>,
        spec: Spec,
        sender: oneshot::Sender<Result<Child, StartError>>,
    ) {
        tokio::spawn(self.clone().live(id, stop, spec, sender));
    }

    fn enter(&self, spec: &Spec) -> Result<(u64, Arc<Notify>), StartError> {
        let mut table = self.table();
        if table.stopping {
            return Err(StartError::Stopping);
        }
        if table.running.len() >= MAX_RUNNING {
            return Err(StartError::Busy);
        }
        table.next += 1;
        let id = table.next;
        let stop = Arc::new(Notify::new());
        let view = ProcessView {
            id,
            name: spec.name.clone(),
            owner: spec.owner.name().to_owned(),
            command: spec
                .argv
                .iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
            state: "starting".to_owned(),
            started_at: wall_now(),
            limit_s: spec.limit.map(|limit| limit.as_secs_f64()),
            ..ProcessView::default()
        };
        let entry = Entry {
            view,
            started: Instant::now(),
            stop: Arc::clone(&stop),
        };
        table.running.insert(id, entry);
        Ok((id, stop))
    }

    /// A child's whole life.
    async fn live(
        self,
        id: u64,
        stop: Arc<Notify>,
        mut spec: Spec,
        sender: oneshot::Sender<Result<Child, StartError>>,
    ) {
        let begun = Instant::now();
        let started_at = wall_now();
        let program = shown(&spec);
        let started = tokio::task::spawn_blocking(move || {
            let started = supervise::start(&spec);
            (spec, started)
        })
        .await;
        let started = match started {
            Ok((back, Ok(started))) => {
                spec = back;
                started
            }
            failed => {
                let source = match failed {
                    Ok((_, Err(error))) => error,
                    _ => std::io::Error::other("the starting thread ended"),
                };
                self.leave(id, &Ended::not_started(source.to_string()));
                let _ = sender.send(Err(StartError::System { program, source }));
                return;
            }
        };
        let Started {
            process,
            stdin,
            stdout,
            stderr,
        } = started;
        let pid = process.pid();
        self.set_state(id, pid, "running");
        tracing::debug!(name = spec.name, pid, owner = spec.owner.name(), "started");
        let (tell, ended) = oneshot::channel();
        let (pass_on, bytes) = mpsc::channel(PIPED);
        let child = Child {
            id,
            pid,
            stop: Arc::clone(&stop),
            ended,
            bytes,
        };
        // A caller that has gone drops the child, and that asks it to stop.
        let _ = sender.send(Ok(child));
        if let Some(stdin) = stdin {
            feed(stdin, std::mem::take(&mut spec.stdin));
        }
        let (gone, gone_seen) = watch::channel(false);
        let treatment = |pass_on| Treatment {
            name: spec.name.clone(),
            pid,
            limit: spec.output_limit,
            log: spec.log,
            pass_on,
        };
        let piped = (spec.streams == Streams::Piped).then_some(pass_on);
        let mut out = treatment(piped);
        if spec.streams == Streams::Piped {
            // Its bytes are for its owner, not for people.
            out.log = None;
        }
        let out = tokio::spawn(output::read(stdout, out, gone_seen.clone()));
        let err = stderr.map(|pipe| tokio::spawn(output::read(pipe, treatment(None), gone_seen)));
        let (how, reaped) = self.until_end(id, process, &stop, &mut spec, begun).await;
        gone.send_replace(true);
        let out: Kept = out.await.unwrap_or_default();
        let err: Kept = match err {
            Some(err) => err.await.unwrap_or_default(),
            None => Kept::default(),
        };
        let mut result = Ended {
            how,
            pid,
            stdout: out.head,
            stderr: err.head,
            dropped: out.dropped + err.dropped,
            started_at,
            took: begun.elapsed(),
            user: Duration::ZERO,
            system: Duration::ZERO,
        };
        match reaped {
            Ok(reaped) => {
                (result.user, result.system) = (reaped.user, reaped.system);
                self.leave(id, &result);
                let _ = tell.send(result);
            }
            Err(process) => {
                let name = &spec.name;
                tracing::error!(name, pid, "does not end by SIGKILL: it waits in the kernel");
                self.set_state(id, pid, "stuck");
                let _ = tell.send(result.clone());
                // Its entry stays, so that the bound counts it, until it has gone.
                if let Ok(watch) = process.watch() {
                    let _ = watch.readable().await;
                }
                let _ = process.reap();
                self.leave(id, &result);
            }
        }
    }

    /// Waits for the end, and brings it about when the child is out of time or not wanted.
    async fn until_end(
        &self,
        id: u64,
        process: Process,
        stop: &Notify,
        spec: &mut Spec,
        begun: Instant,
    ) -> (How, Result<supervise::Reaped, Process>) {
        let watch = match process.watch() {
            Ok(watch) => watch,
            Err(error) => {
                process.signal(Signal::KILL);
                return (How::NotStarted(error.to_string()), Err(process));
            }
        };
        let gone = async || {
            // The descriptor is readable once the child has ended, and stays so.
            let _ = watch.readable().await;
        };
        let limit = async {
            match spec.limit {
                Some(limit) => sleep_until(begun + limit).await,
                None => std::future::pending().await,
            }
        };
        let wish = tokio::select! {
            biased;
            () = gone() => None,
            () = stop.notified() => Some(How::Stopped),
            () = limit => Some(How::TimedOut),
        };
        let pid = process.pid();
        if let Some(wish) = &wish {
            if *wish == How::TimedOut {
                let name = &spec.name;
                tracing::error!(name, pid, limit = ?spec.limit, "timed out; it is ended");
                if let Some(debug) = spec.debug.take() {
                    self.set_state(id, pid, "being looked at");
                    let mut debug = debug(pid);
                    debug.limit = debug.limit.or(Some(DEBUG_LIMIT));
                    debug.debug = None;
                    // It may be asked to stop while it is looked at.
                    tokio::select! {
                        _ = self.run_within(debug) => {}
                        () = stop.notified() => {}
                    }
                }
            }
            self.set_state(id, pid, "ending");
            process.signal(Signal::TERM);
            // One that is stopped obeys SIGTERM only when it goes on.
            process.signal(Signal::CONT);
            let _ = timeout(spec.grace, gone()).await;
        }
        if wish.is_some() || spec.leftovers == Leftovers::End {
            process.signal(Signal::KILL);
        }
        if timeout(STUCK, gone()).await.is_err() {
            return (How::Stuck, Err(process));
        }
        match process.reap() {
            Ok(reaped) => (wish.unwrap_or(supervise::how(reaped.status)), Ok(reaped)),
            Err(error) => {
                let how = How::NotStarted(format!("its end cannot be read: {error}"));
                let nothing = supervise::Reaped {
                    status: std::process::ExitStatus::default(),
                    user: Duration::ZERO,
                    system: Duration::ZERO,
                };
                (how, Ok(nothing))
            }
        }
    }

    fn set_state(&self, id: u64, pid: u32, state: &str) {
        if let Some(entry) = self.table().running.get_mut(&id) {
            entry.view.pid = pid;
            state.clone_into(&mut entry.view.state);
        }
    }

    fn leave(&self, id: u64, ended: &Ended) {
        let mut table = self.table();
        let Some(entry) = table.running.remove(&id) else {
            return;
        };
        let mut view = entry.view;
        view.pid = ended.pid;
        match &ended.how {
            How::Exited(code) => {
                "exited".clone_into(&mut view.state);
                view.exit_code = Some(*code);
            }
            How::Signal(signal) => {
                "killed".clone_into(&mut view.state);
                view.signal = Some(*signal);
            }
            other => view.state = other.to_string(),
        }
        view.seconds = ended.took.as_secs_f64();
        view.cpu_ms = (ended.user + ended.system).as_millis() as u64;
        view.memory_kb = None;
        view.stdout = listed(&ended.stdout);
        view.stderr = listed(&ended.stderr);
        view.dropped_bytes = ended.dropped;
        if table.ended.len() == MAX_ENDED {
            table.ended.pop_front();
        }
        table.ended.push_back(view);
    }

    /// Running children first, then those that ended, the last first; without their output.
    pub fn list(&self) -> ProcessesView {
        let table = self.table();
        let running = table.running.values().map(running_view);
        let ended = table.ended.iter().rev().cloned();
        ProcessesView {
            processes: running
                .chain(ended)
                .map(|view| ProcessView {
                    stdout: String::new(),
                    stderr: String::new(),
                    ..view
                })
                .collect(),
        }
    }

    /// One child, with the head of its output once it has ended.
    pub fn show(&self, id: u64) -> Option<ProcessView> {
        let table = self.table();
        let running = table.running.get(&id).map(running_view);
        running.or_else(|| table.ended.iter().find(|view| view.id == id).cloned())
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.table().running.len()
    }

    /// Ends those of one owner and waits until they have gone, at most for `limit`.
    pub async fn end(&self, owner: Owner, limit: Duration) {
        self.end_where(|view| view.owner == owner.name(), limit)
            .await;
    }

    /// Ends all of them; none is started any more.
    pub async fn shutdown(&self, limit: Duration) {
        self.table().stopping = true;
        self.end_where(|_| true, limit).await;
    }

    async fn end_where(&self, which: impl Fn(&ProcessView) -> bool, limit: Duration) {
        for entry in self.table().running.values() {
            if which(&entry.view) {
                entry.stop.notify_one();
            }
        }
        let until = Instant::now() + limit;
        while Instant::now() < until {
            let left = self
                .table()
                .running
                .values()
                .any(|entry| which(&entry.view) && entry.view.state != "stuck");
            if !left {
                return;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

fn running_view(entry: &Entry) -> ProcessView {
    let mut view = entry.view.clone();
    view.seconds = entry.started.elapsed().as_secs_f64();
    if let Some((cpu, memory)) = supervise::sample(view.pid) {
        view.cpu_ms = cpu;
        view.memory_kb = Some(memory);
    }
    view
}

fn listed(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(LISTED_OUTPUT)]).into_owned()
}

fn shown(spec: &Spec) -> String {
    spec.argv.first().map_or_else(
        || spec.name.clone(),
        |program| program.to_string_lossy().into_owned(),
    )
}

/// Writes what the child reads; it may not want it.
fn feed(stdin: std::process::ChildStdin, bytes: Vec<u8>) {
    if let Ok(mut stdin) = tokio::process::ChildStdin::from_std(stdin) {
        tokio::spawn(async move {
            let _ = stdin.write_all(&bytes).await;
        });
    }
}
