//! The prober: starts a new TCP connection to every target every few milliseconds, as many
//! impatient clients would, and remembers what became of each.
//!
//! One thread, one epoll set, no blocking. An attempt that succeeded is closed with a reset, so
//! that neither side keeps TIME_WAIT sockets. sshd and smbd fork for each connection, so they
//! want a longer period than the plain service: [`Target::for_service`] picks one.

use std::collections::{HashMap, VecDeque};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use socket2::{Domain, Protocol, Socket, Type};

use super::clock::nanos;
use super::timeline::{Event, What};
use super::{Lab, Netns, Service, Stamp};

/// How long an attempt may go on.
const PATIENCE: Duration = Duration::from_secs(5);
/// Attempts kept per target; then probing of it stops (about three hours at 5 ms).
const MOST_ATTEMPTS: usize = 2_000_000;
/// Good attempts in a row that end an outage.
const SETTLED: usize = 20;
/// Key of the timer among the polled.
const TIMER: u64 = u64::MAX;

/// What makes an attempt succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// The connection is established.
    Connect,
    /// The plain service has said which node it is on.
    NodeLine,
}

/// What to probe.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name in reports.
    pub label: String,
    /// Where to connect to.
    pub address: SocketAddr,
    /// Time between two attempts.
    pub every: Duration,
    /// What counts as success.
    pub expect: Expect,
    /// An attempt that takes longer counts as failed service, even when it succeeds at last.
    pub slow: Duration,
}

impl Target {
    /// A service on a public address: the plain one every 5 ms, the others every 50 ms; slow
    /// is what takes longer than 5 ms and an ample round trip of this network (10 ms).
    pub fn for_service(service: Service, address: IpAddr) -> Self {
        Self {
            label: format!("{} {address}", service.name()),
            address: SocketAddr::new(address, service.port()),
            every: Duration::from_millis(if service == Service::Plain { 5 } else { 50 }),
            expect: if service == Service::Plain {
                Expect::NodeLine
            } else {
                Expect::Connect
            },
            slow: Duration::from_millis(10),
        }
    }
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// When the first SYN was sent.
    pub start: Stamp,
    /// When connect() succeeded.
    pub connected: Option<Stamp>,
    /// When it had all that was expected.
    pub done: Option<Stamp>,
    /// Why it failed: an errno by name, `timeout`, `closed` before the answer.
    pub error: Option<String>,
    /// The node that answered, if it says so.
    pub node: Option<u32>,
}

impl Attempt {
    fn good(&self, slow: Duration) -> bool {
        self.done.is_some_and(|d| d.since(self.start) <= slow)
    }

    fn pending(&self) -> bool {
        self.done.is_none() && self.error.is_none()
    }
}

/// A time in which new connections failed or were slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Start of the first attempt that did not succeed in time.
    pub start: Stamp,
    /// Start of the first attempt of the good series after it; `None` if it goes on.
    pub end: Option<Stamp>,
    /// Attempts in it that were bad.
    pub bad: usize,
}

impl Outage {
    /// Its length, until `now` if it goes on.
    pub fn length(&self, now: Stamp) -> Duration {
        self.end.unwrap_or(now).since(self.start)
    }
}

/// Outages among attempts in order of their start: groups of bad ones with fewer than 20 good
/// ones between. Attempts still pending and younger than `slow` at `now` are left out.
pub fn outages(attempts: &[Attempt], slow: Duration, now: Stamp) -> Vec<Outage> {
    let mut found: Vec<Outage> = Vec::new();
    let mut good_since: Option<(Stamp, usize)> = None;
    for attempt in attempts {
        if attempt.pending() && now.since(attempt.start) <= slow {
            continue;
        }
        if attempt.good(slow) {
            let (since, count) = good_since.unwrap_or((attempt.start, 0));
            good_since = Some((since, count + 1));
            continue;
        }
        let settled = good_since.is_none_or(|(_, count)| count >= SETTLED);
        match found.last_mut() {
            Some(last) if !settled || good_since.is_none() => last.bad += 1,
            Some(last) => {
                last.end = good_since.map(|(since, _)| since);
                found.push(Outage {
                    start: attempt.start,
                    end: None,
                    bad: 1,
                });
            }
            None => found.push(Outage {
                start: attempt.start,
                end: None,
                bad: 1,
            }),
        }
        good_since = None;
    }
    if let Some(last) = found.last_mut() {
        last.end = good_since.map(|(since, _)| since);
    }
    found
}

/// What the prober saw of one target.
#[derive(Clone, Debug)]
pub struct Record {
    /// The target.
    pub target: Target,
    /// All attempts, in order of start.
    pub attempts: Vec<Attempt>,
    /// When this was taken.
    pub taken: Stamp,
}

impl Record {
    /// All outages.
    pub fn outages(&self) -> Vec<Outage> {
        outages(&self.attempts, self.target.slow, self.taken)
    }

    /// The longest outage that began at `from` or later (or went on then).
    pub fn longest_outage(&self, from: Stamp) -> Duration {
        self.outages()
            .iter()
            .filter(|o| o.end.is_none_or(|e| e > from))
            .map(|o| o.length(self.taken))
            .max()
            .unwrap_or_default()
    }

    /// Whether the last 20 attempts that are over were good.
    pub fn is_good(&self) -> bool {
        let over: Vec<_> = self
            .attempts
            .iter()
            .rev()
            .filter(|a| !a.pending() || self.taken.since(a.start) > self.target.slow)
            .take(SETTLED)
            .collect();
        over.len() == SETTLED && over.iter().all(|a| a.good(self.target.slow))
    }

    /// The longest that one connect() took of those begun at `from` or later, the ones that are
    /// still waiting or were given up included.
    pub fn worst_connect(&self, from: Stamp) -> Duration {
        self.attempts
            .iter()
            .filter(|a| a.start >= from)
            .filter(|a| {
                a.connected.is_some() || a.pending() || a.error.as_deref() == Some("timeout")
            })
            .map(|a| {
                let end = if a.error.is_some() {
                    a.start.after(PATIENCE)
                } else {
                    self.taken
                };
                a.connected.unwrap_or(end).since(a.start)
            })
            .max()
            .unwrap_or_default()
    }

    /// Attempts begun at `from` or later that the kernel refused (reset): promise ADDR-4.
    pub fn refused(&self, from: Stamp) -> usize {
        self.attempts
            .iter()
            .filter(|a| a.start >= from && a.error.as_deref() == Some("ECONNREFUSED"))
            .count()
    }

    /// The node that answered last.
    pub fn last_node(&self) -> Option<u32> {
        self.attempts.iter().rev().find_map(|a| a.node)
    }

    /// Median time to success of the attempts begun before `until`.
    pub fn median(&self, until: Stamp) -> Option<Duration> {
        let mut times: Vec<_> = self
            .attempts
            .iter()
            .filter(|a| a.start < until)
            .filter_map(|a| Some(a.done?.since(a.start)))
            .collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }
}

/// A running prober. Dropping it stops it.
pub struct Prober {
    targets: Arc<Vec<Target>>,
    seen: Arc<Mutex<Vec<Vec<Attempt>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Prober {
    /// Starts probing from inside `netns`. Outages are told to `events` as they begin and end.
    pub fn start(
        netns: &Netns,
        targets: Vec<Target>,
        events: Option<Sender<Event>>,
    ) -> Result<Self> {
        // In an outage each target has a thousand attempts open.
        if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
        }
        let targets = Arc::new(targets);
        let seen = Arc::new(Mutex::new(vec![Vec::new(); targets.len()]));
        let stop = Arc::new(AtomicBool::new(false));
        let mut engine = Engine {
            targets: Arc::clone(&targets),
            seen: Arc::clone(&seen),
            stop: Arc::clone(&stop),
            events,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            pending: HashMap::new(),
            order: VecDeque::new(),
            watches: (0..targets.len()).map(|_| Watch::default()).collect(),
            next_key: 0,
        };
        let netns = netns.clone();
        let thread = thread::Builder::new()
            .name("prober".into())
            .spawn(move || {
                netns.join()?;
                engine.run()
            })
            .context("starting the prober")?;
        Ok(Self {
            targets,
            seen,
            stop,
            thread: Some(thread),
        })
    }

    /// What it saw so far.
    pub fn records(&self) -> Vec<Record> {
        let taken = Stamp::now();
        self.targets
            .iter()
            .zip(lock(&self.seen).iter())
            .map(|(target, attempts)| Record {
                target: target.clone(),
                attempts: attempts.clone(),
                taken,
            })
            .collect()
    }

    /// Whether the last 20 attempts at every target were good.
    pub fn all_good(&self) -> bool {
        let taken = Stamp::now();
        self.targets
            .iter()
            .zip(lock(&self.seen).iter())
            .all(|(target, attempts)| {
                // Enough for those that are too young to judge, too; the rest is not copied.
                let tail = attempts.len().saturating_sub(20 * SETTLED);
                let attempts = attempts[tail..].to_vec();
                Record {
                    target: target.clone(),
                    attempts,
                    taken,
                }
                .is_good()
            })
    }

    /// Stops and gives back all that it saw.
    pub fn finish(mut self) -> Result<Vec<Record>> {
        let records = self.records();
        self.halt()?;
        Ok(records)
    }

    fn halt(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread.join().map_err(|_| anyhow!("the prober panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        let _ = self.halt();
    }
}

impl Lab {
    /// Probes services on all public addresses from the client.
    pub fn probe(&self, services: &[Service], events: Option<Sender<Event>>) -> Result<Prober> {
        self.probe_some(services, &self.public_addresses(), events)
    }

    /// Probes services on some addresses from the client. A hundred targets at 5 ms are too
    /// much for a small machine.
    pub fn probe_some(
        &self,
        services: &[Service],
        addresses: &[IpAddr],
        events: Option<Sender<Event>>,
    ) -> Result<Prober> {
        let targets = services
            .iter()
            .flat_map(|s| addresses.iter().map(|a| Target::for_service(*s, *a)))
            .collect();
        Prober::start(self.client(), targets, events)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only plain pushes happen under it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An attempt under way.
struct Flight {
    target: usize,
    attempt: usize,
    stream: TcpStream,
    connected: bool,
}

/// Live view of a target, for the timeline: judges its attempts one by one in order of start.
#[derive(Default)]
struct Watch {
    /// The next attempt to judge.
    next: usize,
    down_since: Option<Stamp>,
    told: bool,
    /// The first bad attempts of this outage.
    bad: Vec<usize>,
    good: usize,
    good_since: Stamp,
}

/// Shorter hiccups in which no attempt is lost are not worth a line.
const HICCUP: Duration = Duration::from_millis(20);

impl Watch {
    /// Judges what can be judged at `now`, and tells of changes.
    fn look(&mut self, target: &Target, attempts: &[Attempt], now: Stamp, events: &Sender<Event>) {
        while let Some(attempt) = attempts.get(self.next) {
            if attempt.pending() && now.since(attempt.start) <= target.slow {
                return;
            }
            self.next += 1;
            if attempt.good(target.slow) {
                if self.good == 0 {
                    self.good_since = attempt.start;
                }
                self.good += 1;
                if self.good == SETTLED
                    && let Some(from) = self.down_since.take()
                {
                    let outage = self.good_since.since(from);
                    let lost = self.bad.iter().any(|i| attempts[*i].done.is_none());
                    self.bad.clear();
                    if outage >= HICCUP || lost {
                        self.tell_down(from, target, events);
                        let label = target.label.clone();
                        let what = What::ServiceUp {
                            label,
                            outage,
                            node: attempt.node,
                        };
                        let _ = events.send(Event {
                            at: self.good_since,
                            what,
                        });
                    }
                    self.told = false;
                }
            } else {
                self.good = 0;
                let from = *self.down_since.get_or_insert(attempt.start);
                if self.bad.len() < 100 {
                    self.bad.push(self.next - 1);
                }
                if attempt.start.since(from) >= HICCUP {
                    self.tell_down(from, target, events);
                }
            }
        }
    }

    fn tell_down(&mut self, from: Stamp, target: &Target, events: &Sender<Event>) {
        if !self.told {
            self.told = true;
            let what = What::ServiceDown {
                label: target.label.clone(),
            };
            let _ = events.send(Event { at: from, what });
        }
    }
}

struct Engine {
    targets: Arc<Vec<Target>>,
    seen: Arc<Mutex<Vec<Vec<Attempt>>>>,
    stop: Arc<AtomicBool>,
    events: Option<Sender<Event>>,
    epoll: Epoll,
    pending: HashMap<u64, Flight>,
    /// Keys in order of start, for time-outs.
    order: VecDeque<(Stamp, u64)>,
    watches: Vec<Watch>,
    next_key: u64,
}

impl Engine {
    fn run(&mut self) -> Result<()> {
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
        self.epoll
            .add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TIMER))?;
        let begin = Stamp::now();
        // Spread over the period, so that the targets do not all fire at once.
        let count = u64::try_from(self.targets.len().max(1))?;
        let mut due: Vec<Stamp> = (0..count)
            .zip(self.targets.iter())
            .map(|(i, t)| Stamp(begin.0 + nanos(t.every) * i / count))
            .collect();
        let mut events = [EpollEvent::empty(); 128];
        while !self.stop.load(Ordering::Relaxed) {
            let now = Stamp::now();
            for (i, at) in due.iter_mut().enumerate() {
                if *at <= now {
                    self.launch(i);
                    let every = nanos(self.targets[i].every);
                    // Late by more than a period: no burst to catch up.
                    at.0 = if now.0 - at.0 > every {
                        now.0 + every
                    } else {
                        at.0 + every
                    };
                }
            }
            self.give_up(now);
            let next = due
                .iter()
                .min()
                .copied()
                .unwrap_or(now.after(Duration::from_millis(50)));
            timer.set(
                Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(next.0.max(1)))),
                TimerSetTimeFlags::TFD_TIMER_ABSTIME,
            )?;
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(50_u8)) {
                Ok(n) => n,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(e) => return Err(e).context("prober: waiting"),
            };
            for event in &events[..ready] {
                if event.data() == TIMER {
                    let _ = timer.wait();
                } else {
                    self.progress(event.data());
                }
            }
        }
        Ok(())
    }

    fn launch(&mut self, target: usize) {
        let mut seen = lock(&self.seen);
        let attempt = seen[target].len();
        if attempt >= MOST_ATTEMPTS {
            return;
        }
        let start = Stamp::now();
        let (stream, error) = match open(self.targets[target].address) {
            Ok(stream) => (Some(stream), None),
            Err(e) => (None, Some(error_name(&e))),
        };
        seen[target].push(Attempt {
            start,
            connected: None,
            done: None,
            error,
            node: None,
        });
        drop(seen);
        let Some(stream) = stream else { return };
        let key = self.next_key;
        self.next_key += 1;
        let interest = EpollFlags::EPOLLOUT | EpollFlags::EPOLLONESHOT;
        if self
            .epoll
            .add(&stream, EpollEvent::new(interest, key))
            .is_ok()
        {
            self.pending.insert(
                key,
                Flight {
                    target,
                    attempt,
                    stream,
                    connected: false,
                },
            );
            self.order.push_back((start, key));
        }
    }

    fn progress(&mut self, key: u64) {
        let Some(mut flight) = self.pending.remove(&key) else {
            return;
        };
        let now = Stamp::now();
        let expect = self.targets[flight.target].expect;
        let mut node = None;
        let outcome = if flight.connected {
            let mut line = [0_u8; 32];
            match flight.stream.read(&mut line) {
                Ok(0) => Err("closed".to_string()),
                Ok(n) => {
                    node = node_of(&line[..n]);
                    Ok(())
                }
                Err(e) => Err(error_name(&e)),
            }
        } else {
            match flight.stream.take_error() {
                Ok(None) => Ok(()),
                Ok(Some(e)) | Err(e) => Err(error_name(&e)),
            }
        };
        let mut seen = lock(&self.seen);
        let attempt = &mut seen[flight.target][flight.attempt];
        match outcome {
            Ok(()) if !flight.connected && expect == Expect::NodeLine => {
                attempt.connected = Some(now);
                drop(seen);
                flight.connected = true;
                let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
                let mut event = EpollEvent::new(interest, key);
                if self.epoll.modify(&flight.stream, &mut event).is_ok() {
                    self.pending.insert(key, flight);
                }
            }
            Ok(()) => {
                attempt.connected.get_or_insert(now);
                attempt.done = Some(now);
                attempt.node = node;
            }
            Err(name) => attempt.error = Some(name),
        }
    }

    /// Ends attempts that have waited long enough, and keeps the live view.
    fn give_up(&mut self, now: Stamp) {
        while let Some((start, key)) = self.order.front().copied() {
            if self.pending.contains_key(&key) && now.since(start) < PATIENCE {
                break;
            }
            self.order.pop_front();
            if let Some(flight) = self.pending.remove(&key) {
                lock(&self.seen)[flight.target][flight.attempt].error = Some("timeout".into());
            }
        }
        if let Some(events) = &self.events {
            let seen = lock(&self.seen);
            for (i, watch) in self.watches.iter_mut().enumerate() {
                watch.look(&self.targets[i], &seen[i], now, events);
            }
        }
    }
}

fn open(address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_linger(Some(Duration::ZERO))?;
    match socket.connect(&address.into()) {
        Err(e) if e.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(e),
        _ => Ok(socket.into()),
    }
}

fn error_name(error: &std::io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.kind().to_string(),
        |raw| format!("{:?}", nix::errno::Errno::from_raw(raw)),
    )
}

fn node_of(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(line)
        .ok()?
        .strip_prefix("node ")?
        .trim_end()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(pattern: &str) -> Vec<Attempt> {
        pattern
            .chars()
            .zip(0_u64..)
            .map(|(c, i)| {
                let start = Stamp(i * 5_000_000);
                let done = match c {
                    'o' => Some(start.after(Duration::from_millis(1))),
                    's' => Some(start.after(Duration::from_secs(1))),
                    _ => None,
                };
                let error = (c == 'x').then(|| "timeout".into());
                Attempt {
                    start,
                    connected: done,
                    done,
                    error,
                    node: None,
                }
            })
            .collect()
    }

    fn lengths(pattern: &str) -> Vec<(u64, Option<u64>, usize)> {
        outages(
            &series(pattern),
            Duration::from_millis(10),
            Stamp(1_000_000_000_000),
        )
        .iter()
        .map(|o| (o.start.0 / 5_000_000, o.end.map(|e| e.0 / 5_000_000), o.bad))
        .collect()
    }

    #[test]
    fn an_outage_runs_to_the_unbroken_good_series() {
        assert_eq!(lengths("oooo"), []);
        assert_eq!(lengths("oosxo"), [(2, Some(4), 2)]);
        // Two good ones amid the bad do not end it, nor does a straggler that waits still.
        assert_eq!(lengths("ooxoo?oo"), [(2, Some(6), 2)]);
        assert_eq!(lengths("oxx"), [(1, None, 2)]);
        let apart = format!("ox{}xoo", "o".repeat(20));
        assert_eq!(lengths(&apart), [(1, Some(2), 1), (22, Some(23), 1)]);
        let near = format!("ox{}xoo", "o".repeat(19));
        assert_eq!(lengths(&near), [(1, Some(22), 2)]);
    }

    #[test]
    fn young_attempts_are_not_judged() {
        let attempts = series("oo?");
        assert!(outages(&attempts, Duration::from_millis(10), Stamp(12_000_000)).is_empty());
        assert_eq!(
            outages(&attempts, Duration::from_millis(10), Stamp(21_000_000)).len(),
            1
        );
    }

    #[test]
    fn worst_connect_counts_those_that_wait() {
        let record = Record {
            target: Target::for_service(Service::Plain, IpAddr::from([10, 0, 0, 1])),
            attempts: series("os?x"),
            taken: Stamp(3_010_000_000),
        };
        assert_eq!(record.worst_connect(Stamp(0)), PATIENCE);
        assert_eq!(record.last_node(), None);
        assert!(!record.is_good());
    }
}
