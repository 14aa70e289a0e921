//! The thread: waits for the kernel's events, for messages and for time; feeds the table.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::sync::PoisonError;
use std::sync::mpsc::{SyncSender, TryRecvError};
use std::time::{Duration, Instant};

use ctdb_conntrack::table::{Config, Counters, Effect, Ends, Input, Table};
use ctdb_conntrack::tickle::Tickler;
use ctdb_conntrack::{Change, Killer, Sockets, Tracked, Watch};
use ctdb_ebpf::track::DRAIN_LIMIT;
use ctdb_wire::api::connections::ConnectionStats;
use ctdb_wire::connections::{ConnectionFrame, Key, Meta, Sources};
use ctdb_wire::ids::NodeSet;
use ctdb_wire::peer::PeerFrame;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Inbox, Message, Setup};
use crate::clock::{boot_now, wall_now};
use crate::failover::FailoverError;
use crate::transport::TransportHandle;

/// The kernel's events are read this long after the first, so that a wake-up brings many.
const GATHER: Duration = Duration::from_millis(5);
/// Without a tracker the kernel's sockets are read this often.
const DUMP: Duration = Duration::from_millis(50);
/// Readings of the kernel's events in a row.
const DRAINS: usize = 64;
/// The tracker is looked after this often.
const CHECK: Duration = Duration::from_secs(1);
/// Bytes in a link's queue above which connections wait; what is urgent needs the room.
const QUEUE: usize = 256 * 1024;
/// A link whose queue was long is looked at again after this.
const RETRY: Duration = Duration::from_millis(5);
/// Counts are shown this often, while something happens.
const PUBLISH: Duration = Duration::from_millis(100);
/// Messages taken in before time and the kernel have their turn.
const MESSAGES: usize = 256;
/// Between two tickles to the same client, at least (`spec/kernel.md` 5: Linux answers one in
/// 500 ms).
const TICKLE_PAUSE: Duration = Duration::from_millis(600);

pub(super) struct Thread {
    pub(super) setup: Setup,
    pub(super) table: Table,
    pub(super) watch: Watch,
    pub(super) killer: Killer,
    pub(super) sockets: Sockets,
    pub(super) tickler: Tickler,
    transport: TransportHandle,
    inbox: Inbox,
    public: BTreeSet<IpAddr>,
    /// When the kernel's events are read next.
    drain_at: Option<Instant>,
    check_at: Instant,
    /// Of the sockets that were destroyed, here and by the executor.
    pub(super) killed: u64,
    udp_silenced: u64,
    pub(super) tickle_errors: u64,
    warned_full: bool,
    /// A link's queue was long at the last look.
    held_back: bool,
    published_at: Instant,
}

/// Opens everything and starts the thread.
pub fn start(inbox: Inbox, setup: Setup, transport: TransportHandle) -> Result<(), FailoverError> {
    let watch = Watch::open(&setup.bpf_dir, setup.max_connections)?;
    let killer = Killer::open()?;
    tracing::info!(source = %watch.source(), kill = killer.method().name(), "connections are tracked");
    let thread = Thread {
        table: Table::new(Config {
            me: setup.me,
            max_connections: setup.max_connections as usize,
            tickle_rounds: setup.tickle_rounds,
            tickle_pause: TICKLE_PAUSE,
        }),
        watch,
        killer,
        sockets: Sockets::open()?,
        tickler: Tickler::open()?,
        transport,
        inbox,
        public: BTreeSet::new(),
        drain_at: None,
        check_at: Instant::now() + CHECK,
        killed: 0,
        udp_silenced: 0,
        tickle_errors: 0,
        warned_full: false,
        held_back: false,
        published_at: Instant::now(),
        setup,
    };
    crate::liveness::give_back_memory();
    std::thread::Builder::new()
        .name("connections".to_owned())
        .spawn(move || thread.run())
        .map_err(FailoverError::Thread)?;
    Ok(())
}

impl Thread {
    fn run(mut self) {
        loop {
            self.wait();
            for _ in 0..MESSAGES {
                match self.inbox.messages.try_recv() {
                    Ok(Message::Close(done)) => {
                        self.close();
                        let _ = done.try_send(());
                        return;
                    }
                    Ok(message) => self.message(message),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let now = Instant::now();
            if self.drain_at.is_some_and(|at| at <= now) {
                self.drain();
            }
            if self.check_at <= now {
                self.check_at = now + CHECK;
                match self.watch.check() {
                    Ok(true) => self.drain(),
                    Ok(false) => {}
                    Err(error) => tracing::error!(
                        %error,
                        "the tracker of connections cannot be looked after"
                    ),
                }
                self.warn_full();
            }
            self.input(Input::Tick);
            self.send(QUEUE);
            if now.duration_since(self.published_at) >= PUBLISH {
                self.published_at = now;
                self.publish();
            }
        }
    }

    fn wait(&mut self) {
        let now = Instant::now();
        if self.watch.fd().is_none() && self.drain_at.is_none() {
            self.drain_at = Some(now + DUMP);
        }
        let mut until = self.check_at;
        until = self.drain_at.map_or(until, |at| until.min(at));
        if let Some(due) = self.table.next_due() {
            let mut pause = due.since(boot_now());
            if pause.is_zero() && self.held_back {
                pause = RETRY;
            }
            until = until.min(now + pause);
        }
        let pause = until.saturating_duration_since(now);
        let pause = Timespec {
            tv_sec: pause.as_secs() as i64,
            tv_nsec: pause.subsec_nanos().into(),
        };
        let ready = {
            let mut fds = vec![PollFd::new(&self.inbox.wake, PollFlags::IN)];
            // While events gather there is nothing to learn from it.
            if self.drain_at.is_none()
                && let Some(kernel) = self.watch.fd()
            {
                fds.push(PollFd::from_borrowed_fd(kernel, PollFlags::IN));
            }
            // A signal ends the wait early, which does no harm.
            let _ = poll(&mut fds, Some(&pause));
            fds.iter()
                .map(|fd| !fd.revents().is_empty())
                .collect::<Vec<_>>()
        };
        if ready.first() == Some(&true) {
            let mut count = [0; 8];
            // Read by this thread alone; nothing to read is nothing to wait for.
            let _ = rustix::io::read(self.inbox.wake.as_fd(), &mut count);
        }
        if ready.get(1) == Some(&true) {
            self.drain_at = Some(Instant::now() + GATHER);
        }
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::LinkUp(pnn, incarnation) => self.input(Input::LinkUp(pnn, incarnation)),
            Message::LinkDown(pnn) => self.input(Input::LinkDown(pnn)),
            Message::Lost(pnn) => self.input(Input::Lost(pnn)),
            Message::Frame(pnn, frame) => self.input(Input::Frame(pnn, frame)),
            Message::Public(addresses) => {
                self.public.clone_from(&addresses);
                self.input(Input::Public(addresses.clone()));
                if let Err(error) = self.watch.set_addresses(&addresses) {
                    tracing::error!(%error, "the kernel does not know which connections to track (ADDR-3)");
                }
                self.drain();
            }
            Message::Taken(addresses, tenure) => {
                // Sockets that were destroyed just before have clients to tell.
                self.drain();
                self.input(Input::Taken(addresses, tenure));
            }
            Message::Frozen(addresses, done) => self.freeze(addresses, done),
            Message::Ended { killed, udp } => {
                self.killed += killed as u64;
                self.udp_silenced += udp as u64;
            }
            Message::Query(action, reply) => reply(self.query(action)),
            Message::Said(said) => self.said(said),
            Message::List(address, port, reply) => {
                // Who asked may be gone.
                let _ = reply.send(self.list_of(address, port));
            }
            // The loop's.
            Message::Close(_) => {}
        }
    }

    /// Everything that happened before the silence is in the table, and on its way, before the
    /// one who waits goes on.
    fn freeze(&mut self, addresses: Vec<IpAddr>, done: Option<SyncSender<()>>) {
        self.drain();
        self.input(Input::Frozen(addresses));
        self.send(usize::MAX);
        if let Some(done) = done {
            // It may have given up.
            let _ = done.try_send(());
        }
    }

    /// Takes in what the kernel saw.
    pub(super) fn drain(&mut self) {
        self.drain_at = None;
        // What comes as fast as it is read waits for the next turn.
        for _ in 0..DRAINS {
            let (count, inputs) = self.poll();
            for input in inputs {
                self.input(input);
            }
            if count < DRAIN_LIMIT {
                return;
            }
        }
        self.drain_at = Some(Instant::now());
    }

    fn poll(&mut self) -> (usize, Vec<Input>) {
        let mut inputs = Vec::new();
        let (boot, wall) = (boot_now(), wall_now());
        let since = |ns: u64| (wall - boot.0.saturating_sub(ns) as f64 / 1e9) as u32;
        let public = &self.public;
        let result = self.watch.poll(|change| match change {
            Change::Opened(tracked) => inputs.push(Input::Opened(
                ends(&tracked),
                Meta {
                    since: since(tracked.since_ns),
                    sources: Sources::KERNEL,
                },
            )),
            Change::Closed(tracked) => {
                inputs.push(Input::Closed(ends(&tracked), Sources::KERNEL));
            }
            Change::Whole { connections, .. } => {
                let mut by_address: BTreeMap<IpAddr, Vec<(Key, u32)>> = public
                    .iter()
                    .map(|address| (*address, Vec::new()))
                    .collect();
                for tracked in connections {
                    if let Some(list) = by_address.get_mut(&tracked.server.ip()) {
                        list.push((key(&tracked), since(tracked.since_ns)));
                    }
                }
                let read = by_address.into_iter();
                inputs.extend(read.map(|(address, found)| Input::Read(address, found)));
            }
        });
        match result {
            Ok(count) => (count, inputs),
            Err(error) => {
                tracing::warn!(%error, "connections cannot be read from the kernel; trying again");
                (0, inputs)
            }
        }
    }

    pub(super) fn input(&mut self, input: Input) {
        for effect in self.table.handle(boot_now(), input) {
            match effect {
                Effect::Tickle { connections, .. } => {
                    self.tickle(&connections);
                }
                Effect::Kill(addresses) => {
                    let addresses: BTreeSet<IpAddr> = addresses
                        .into_iter()
                        .filter(|address| !self.table.holds(*address))
                        .collect();
                    match self.killer.kill(&addresses) {
                        Ok(killed) => self.killed += killed.destroyed as u64,
                        Err(error) => tracing::warn!(
                            %error,
                            "connections to addresses of another node cannot be ended (ADDR-3)"
                        ),
                    }
                }
            }
        }
    }

    pub(super) fn tickle(&mut self, connections: &[Ends]) -> usize {
        let mut pairs: Vec<(SocketAddr, SocketAddr)> = connections
            .iter()
            .map(|ends| (ends.client, ends.server))
            .collect();
        // Where a stale socket here would answer from what it remembers, this host's kernel is
        // asked about it too, as if by the client.
        let end_first = &self.setup.end_first;
        let both = connections
            .iter()
            .filter(|ends| end_first.contains(&ends.server.port()));
        pairs.extend(both.map(|ends| (ends.server, ends.client)));
        let mut failed = 0;
        for error in self
            .tickler
            .send(&pairs)
            .into_iter()
            .filter_map(Result::err)
        {
            if failed == 0 {
                tracing::warn!(%error, count = pairs.len(), "tickles cannot be sent");
            }
            failed += 1;
        }
        self.tickle_errors += failed as u64;
        failed
    }

    /// What is due, to links whose queues are shorter than `queue`.
    fn send(&mut self, queue: usize) {
        loop {
            let long = self.transport.queues_above(queue);
            let ready = NodeSet(!long.0);
            let Some((peers, frame)) = self.table.next_frame(boot_now(), ready) else {
                self.held_back = !long.is_empty();
                return;
            };
            self.say(peers, frame);
        }
    }

    fn say(&self, peers: NodeSet, frame: ConnectionFrame) {
        // Those that it does not reach lose their link, and compare on the next.
        self.transport
            .send_many(peers, &PeerFrame::Connections(frame));
    }

    fn warn_full(&mut self) {
        let Counters { overflowed, .. } = self.table.counters();
        if overflowed > 0 && !self.warned_full {
            self.warned_full = true;
            tracing::error!(
                overflowed,
                max_connections = self.setup.max_connections,
                "more connections than the table may have; their clients will not be told when an \
                 address moves. Raise [conntrack] max connections"
            );
        }
    }

    pub(super) fn public(&self) -> &BTreeSet<IpAddr> {
        &self.public
    }

    fn publish(&self) {
        let stats = self.stats();
        *self
            .inbox
            .stats
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = stats;
    }

    pub(super) fn stats(&self) -> ConnectionStats {
        let counters = self.table.counters();
        let [own, replicated, orphans, telling] = self.table.counts().map(|count| count as u64);
        let kernel = self.watch.stats().unwrap_or_default();
        ConnectionStats {
            enabled: true,
            source: self.watch.source().to_string(),
            kill_method: self.killer.method().name().to_owned(),
            max_connections: self.setup.max_connections,
            own,
            replicated,
            orphans,
            telling,
            opened: counters.opened,
            closed: counters.closed,
            changes_sent: counters.changes_out,
            changes_received: counters.changes_in,
            parts_sent: counters.parts_out,
            parts_received: counters.parts_in,
            diverged: counters.diverged,
            fell_behind: counters.fell_behind,
            frames_lost: 0,
            refused: counters.refused,
            overflowed: counters.overflowed,
            told: counters.tickled,
            tickles: counters.tickles,
            tickle_errors: self.tickle_errors,
            killed: self.killed,
            udp_silenced: self.udp_silenced,
            overruns: kernel.overruns,
            table_full: kernel.table_full,
            repairs: kernel.repairs,
        }
    }

    fn close(self) {
        if let Err(error) = self.watch.close_clean() {
            tracing::error!(%error, "the tracker of connections stays; the next daemon takes it over");
        }
    }
}

fn ends(tracked: &Tracked) -> Ends {
    Ends {
        client: tracked.client,
        server: tracked.server,
    }
}

fn key(tracked: &Tracked) -> Key {
    Key {
        client: tracked.client.ip(),
        client_port: tracked.client.port(),
        server_port: tracked.server.port(),
    }
}
