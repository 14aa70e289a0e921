//! The cluster lock: a helper that holds it, run as a child, and what the daemon learns from it.
//!
//! A *tenure* is one life of a helper that said that it holds the lock. No helper takes the lock
//! a second time, so a proof of a tenure is a proof of that one (`authority.md` R20). Whatever
//! the helper does, hangs in a dead file system included, holds up nothing but the lock.

mod etcd;
mod fcntl;
pub mod helper;
mod rados;

use std::ffi::OsString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ctdb_core::authority::LockNews;
use ctdb_ebpf::deadman::Deadman;
use ctdb_wire::api::LockView;
use ctdb_wire::ids::BootTime;
use tokio::sync::{mpsc, watch};
use tokio::time::{interval, sleep, timeout};
use tracing::Level;

use crate::clock::{boot_now, wall_now};
use crate::config::{ClusterLock, LockKind};
use crate::process::{Child, Children, Owner, Spec, Streams};
use helper::{HELPER_ARGUMENT, Report};

/// How long a helper may take to say a digit (`spec/cluster.md` 2.8).
const TAKE: Duration = Duration::from_secs(120);
/// Between SIGTERM and SIGKILL: a helper has something to take away.
const GRACE: Duration = Duration::from_secs(2);
/// Events that wait for the main loop; the lock waits at the bound.
const EVENTS: usize = 16;
/// Bytes of a line of a helper; longer ones are not ours.
const LINE: usize = 32;

/// The daemon's lock.
pub struct LockClient {
    wish: watch::Sender<bool>,
    view: Arc<Mutex<LockView>>,
}

/// What the client needs.
pub struct Setup {
    /// The lock.
    pub lock: ClusterLock,
    /// How long a proof counts.
    pub validity: Duration,
    /// Between two attempts.
    pub retry: Duration,
    /// Where the guard finds the helper.
    pub deadman: Arc<Deadman>,
}

/// Program and arguments. The built-in helper rechecks often enough for the validity and ends
/// when the file system hangs for as long.
fn command(lock: &ClusterLock, validity: Duration) -> Vec<OsString> {
    match &lock.kind {
        LockKind::File(path) => vec![
            "/proc/self/exe".into(),
            HELPER_ARGUMENT.into(),
            "fcntl".into(),
            path.into(),
            (validity / 5).as_secs_f64().to_string().into(),
            validity.as_secs_f64().to_string().into(),
        ],
        LockKind::Helper(words) => words.iter().map(OsString::from).collect(),
    }
}

fn spec(lock: &ClusterLock, validity: Duration) -> Spec {
    let mut spec = Spec::new("cluster lock", Owner::Lock, command(lock, validity));
    spec.streams = Streams::Piped;
    spec.log = Some(Level::WARN);
    spec.grace = GRACE;
    spec.leftovers = crate::process::Leftovers::End;
    spec
}

impl LockClient {
    /// Starts it, not wanting the lock.
    pub fn start(children: Children, setup: Setup) -> (Self, mpsc::Receiver<LockNews>) {
        let (events, receiver) = mpsc::channel(EVENTS);
        let (wish, wished) = watch::channel(false);
        let view = Arc::new(Mutex::new(LockView {
            setting: setup.lock.text.clone(),
            state: "not wanted".to_owned(),
            ..LockView::default()
        }));
        let task = Task {
            children,
            setup,
            view: Arc::clone(&view),
            events,
            wished,
            tenure: 0,
        };
        tokio::spawn(task.run());
        (Self { wish, view }, receiver)
    }

    /// Whether the lock is to be taken and held.
    pub fn want(&self, wanted: bool) {
        self.wish.send_if_modified(|wish| {
            let changed = *wish != wanted;
            *wish = wanted;
            changed
        });
    }

    /// As the API shows it.
    pub fn view(&self) -> LockView {
        locked(&self.view).clone()
    }
}

fn locked(view: &Mutex<LockView>) -> MutexGuard<'_, LockView> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Task {
    children: Children,
    setup: Setup,
    view: Arc<Mutex<LockView>>,
    events: mpsc::Sender<LockNews>,
    wished: watch::Receiver<bool>,
    tenure: u64,
}

/// What came of an attempt.
enum Attempt {
    Held(Child, Vec<u8>),
    Not(&'static str),
    Unwanted,
}

impl Task {
    /// Until the client is dropped.
    async fn run(mut self) {
        loop {
            if self.wished.wait_for(|wish| *wish).await.is_err() {
                return;
            }
            let asked_at = boot_now();
            self.show("being taken");
            match self.attempt(asked_at).await {
                Attempt::Held(child, rest) => {
                    if !self.hold(child, rest, asked_at).await {
                        return;
                    }
                }
                Attempt::Not(state) => self.show(state),
                Attempt::Unwanted => {
                    self.show("not wanted");
                    continue;
                }
            }
            // Not at once again, whatever came of it; a changed wish is looked at earlier.
            let _ = timeout(self.setup.retry, self.wished.changed()).await;
        }
    }

    fn show(&self, state: &str) {
        let mut view = locked(&self.view);
        state.clone_into(&mut view.state);
        view.held_since = None;
        view.pid = None;
    }

    async fn unwanted(wished: &mut watch::Receiver<bool>) {
        // An error: the client is gone, so nobody wants anything.
        let _ = wished.wait_for(|wish| !*wish).await;
    }

    async fn attempt(&mut self, asked_at: BootTime) -> Attempt {
        let spec = spec(&self.setup.lock, self.setup.validity);
        let mut child = match self.children.start(spec).await {
            Ok(child) => child,
            Err(error) => {
                tracing::error!(%error, "the cluster lock helper does not start");
                return Attempt::Not("helper does not start");
            }
        };
        let said = tokio::select! {
            said = child.bytes() => said,
            () = sleep(TAKE) => {
                tracing::error!("the cluster lock helper has not answered in time; it is ended");
                return Attempt::Not("helper does not answer");
            }
            // Dropped, it is ended.
            () = Self::unwanted(&mut self.wished) => return Attempt::Unwanted,
        };
        let latency = boot_now().since(asked_at);
        locked(&self.view).latency_ms = Some(latency.as_secs_f64() * 1000.0);
        let Some((digit, rest)) = said.as_deref().and_then(<[u8]>::split_first) else {
            tracing::error!("the cluster lock helper has ended without an answer");
            return Attempt::Not("helper failed");
        };
        match Report::of(*digit) {
            Report::Held => Attempt::Held(child, rest.to_vec()),
            Report::Contended => Attempt::Not("held by another node"),
            Report::Late => Attempt::Not("helper timed out"),
            Report::Failed => {
                tracing::error!("the cluster lock helper reports an error");
                Attempt::Not("helper failed")
            }
        }
    }

    /// Holds the lock to its end; false if nobody listens any more.
    async fn hold(&mut self, mut child: Child, rest: Vec<u8>, asked_at: BootTime) -> bool {
        self.tenure += 1;
        let tenure = self.tenure;
        let granted_at = boot_now();
        self.setup.deadman.set_helper(Some(child.pid()));
        {
            let mut view = locked(&self.view);
            "held".clone_into(&mut view.state);
            view.held_since = Some(wall_now());
            view.pid = Some(child.pid());
            view.proved_ms = Some(0);
        }
        tracing::warn!(tenure, latency = ?granted_at.since(asked_at), "cluster lock taken");
        let held = LockNews::Held {
            tenure,
            asked_at,
            granted_at,
        };
        let mut listening = self.events.send(held).await.is_ok();
        let why = if listening {
            self.watch(&mut child, rest, tenure, granted_at).await
        } else {
            "the daemon ends"
        };
        child.stop();
        let ended = child.ended().await;
        self.setup.deadman.set_helper(None);
        if *self.wished.borrow() {
            tracing::error!(tenure, why, ended = %ended.how, "cluster lock lost");
            self.show("lost");
        } else {
            tracing::warn!(tenure, ended = %ended.how, "cluster lock let go");
            self.show("not wanted");
        }
        listening &= self.events.send(LockNews::Lost { tenure }).await.is_ok();
        listening
    }

    /// Passes proofs on; returns why the tenure is over.
    async fn watch(
        &mut self,
        child: &mut Child,
        rest: Vec<u8>,
        tenure: u64,
        granted_at: BootTime,
    ) -> &'static str {
        let validity = self.setup.validity;
        let mut proofs = Proofs::new(granted_at);
        let mut looks = interval(validity / 4);
        let mut news = Some(rest);
        loop {
            let newest = match news.take() {
                Some(bytes) => proofs.take(&bytes, boot_now()),
                None => None,
            };
            if let Some(at) = newest {
                locked(&self.view).proved_ms = Some(0);
                if self
                    .events
                    .send(LockNews::Proved { tenure, at })
                    .await
                    .is_err()
                {
                    return "the daemon ends";
                }
            }
            tokio::select! {
                bytes = child.bytes() => match bytes {
                    Some(bytes) => news = Some(bytes),
                    None => return "the helper has ended",
                },
                _ = looks.tick() => {
                    let now = boot_now();
                    if !proofs.rechecks && runs(child.pid()) {
                        // It knows only CTDB's protocol, or has not come to its first recheck:
                        // that it lives is all the proof there is.
                        proofs.newest = now;
                        if self.events.send(LockNews::Proved { tenure, at: now }).await.is_err() {
                            return "the daemon ends";
                        }
                    }
                    let age = now.since(proofs.newest);
                    locked(&self.view).proved_ms = Some(age.as_millis() as u64);
                    if age > validity {
                        return "nothing has proved it for as long as a proof counts";
                    }
                }
                () = Self::unwanted(&mut self.wished) => return "it is not wanted any more",
            }
        }
    }
}

/// Whether a process runs: not ended, not stopped.
fn runs(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X', 'T', 't']))
    })
}

/// The lines of a helper of ours.
struct Proofs {
    line: Vec<u8>,
    newest: BootTime,
    /// Whether the helper tells of rechecks; then its mere life proves nothing.
    rechecks: bool,
}

impl Proofs {
    fn new(granted_at: BootTime) -> Self {
        Self {
            line: Vec::new(),
            newest: granted_at,
            rechecks: false,
        }
    }

    /// The newest proof in the bytes, if it is news. One from the future is a lie.
    fn take(&mut self, bytes: &[u8], now: BootTime) -> Option<BootTime> {
        let mut newest = None;
        for byte in bytes {
            if *byte != b'\n' {
                if self.line.len() < LINE {
                    self.line.push(*byte);
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let time = line
                .strip_prefix(b"r")
                .and_then(|time| std::str::from_utf8(time).ok()?.parse().ok());
            let Some(at) = time.map(BootTime).filter(|at| *at <= now) else {
                continue;
            };
            if !self.rechecks {
                self.rechecks = true;
                self.newest = at;
                newest = Some(at);
            } else if at > self.newest {
                self.newest = at;
                newest = Some(at);
            }
        }
        newest
    }
}

#[cfg(test)]
mod tests;
