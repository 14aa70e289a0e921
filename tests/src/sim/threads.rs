//! The threads of a daemon, as the real ones are: each handles what has come, carries out the
//! effects one by one, and can stand still between any two of them.

use std::time::Duration;

use ctdb_core::authority;
use ctdb_core::coordinator::{Effect, Input};
use ctdb_core::holder::Work;
use ctdb_wire::heartbeat::Message;
use ctdb_wire::ids::{Incarnation, NodeFlags, NodeSet, RunState};
use ctdb_wire::peer::PeerFrame;
use rand::Rng as _;

use super::clock::Real;
use super::node::{Command, Daemon, Datagram, DetectorEffect, Item, Leaving, Out, Taking, Thread};
use super::world::{Event, World};

/// Datagrams that fit into a socket's buffer; further ones are lost.
const SOCKET: usize = 400;
/// The main loop's tick.
const TICK: Duration = Duration::from_millis(100);

impl World {
    fn daemon(&mut self, node: usize) -> Option<&mut Daemon> {
        self.hosts[node].daemon.as_deref_mut()
    }

    /// The detector is to run at `at`, if not earlier anyway.
    pub fn wake_detector(&mut self, node: usize, at: Real) {
        let late = self.habits.wakeup;
        let at = at.max(self.now) + self.upto(late);
        let Some(daemon) = self.daemon(node) else {
            return;
        };
        let at = at.max(daemon.detector_stalled);
        if at < daemon.detector_due.0 {
            daemon.detector_due = (at, daemon.detector_due.1 + 1);
            let (life, number) = (daemon.life, daemon.detector_due.1);
            self.schedule(at, Event::Detector { node, life, number });
        }
    }

    /// The same for the main loop.
    pub fn wake_main(&mut self, node: usize, at: Real) {
        let late = self.habits.wakeup;
        let at = at.max(self.now) + self.upto(late);
        let Some(daemon) = self.daemon(node) else {
            return;
        };
        let at = at.max(daemon.main_hung);
        if at < daemon.main_due.0 {
            daemon.main_due = (at, daemon.main_due.1 + 1);
            let (life, number) = (daemon.life, daemon.main_due.1);
            self.schedule(at, Event::Main { node, life, number });
        }
    }

    fn wake_executor(&mut self, node: usize, at: Real) {
        let now = self.now;
        let Some(daemon) = self.daemon(node) else {
            return;
        };
        if at < daemon.executor_due.0 {
            daemon.executor_due = (at.max(now), daemon.executor_due.1 + 1);
            let (life, number) = (daemon.life, daemon.executor_due.1);
            self.schedule(at, Event::Executor { node, life, number });
        }
    }

    /// Something for the main loop.
    pub fn give(&mut self, node: usize, item: Item) {
        if let Some(daemon) = self.daemon(node) {
            daemon.inbox.push_back(item);
            let now = self.now;
            self.wake_main(node, now);
        }
    }

    /// A datagram arrives in the socket.
    pub fn datagram(&mut self, to: usize, datagram: Datagram) {
        // What was under way when the network broke still arrives.
        let Some(daemon) = self.daemon(to) else {
            return;
        };
        if daemon.socket.len() >= SOCKET {
            return;
        }
        daemon.socket.push_back(datagram);
        let now = self.now;
        self.wake_detector(to, now);
    }

    /// Whether the daemon stops in its tracks before this effect.
    fn interrupted(&mut self, node: usize, thread: Thread) -> bool {
        let Some(interrupt) = self.hosts[node].interrupt.as_mut() else {
            return false;
        };
        if interrupt.thread != thread {
            return false;
        }
        if interrupt.after > 0 {
            interrupt.after -= 1;
            return false;
        }
        let length = interrupt.length;
        self.hosts[node].interrupt = None;
        self.freeze(node, length);
        true
    }

    /// One turn of the detector's loop.
    pub fn detector(&mut self, node: usize, number: u64) {
        let stalled = match self.daemon(node) {
            Some(daemon) if daemon.detector_due.1 == number => {
                daemon.detector_due.0 = Real::NEVER;
                daemon.wakeups += 1;
                daemon.detector_stalled
            }
            _ => return,
        };
        if stalled > self.now {
            self.wake_detector(node, stalled);
            return;
        }
        if !self.detector_effects(node) {
            return;
        }
        loop {
            // R6: the clock is read after the receipt.
            let now = self.local(node);
            let Some(daemon) = self.daemon(node) else {
                return;
            };
            let me = daemon.incarnation;
            let evicted = daemon.authority.evicts();
            let mut out = Out(&mut daemon.detector_effects);
            if let Some(datagram) = daemon.socket.pop_front() {
                let from = super::world::pnn(datagram.from);
                if daemon.sessions[datagram.from] != datagram.from_life || datagram.to_life != me {
                    continue; // Sealed under keys of another session.
                }
                let message = &datagram.message;
                daemon.authority.handle(
                    now,
                    authority::Input::Datagram { from, message },
                    &mut out,
                );
            } else if daemon.progress != daemon.progress_seen {
                daemon.progress_seen = daemon.progress;
                daemon
                    .authority
                    .handle(now, authority::Input::Progress, &mut out);
            } else if let Some(command) = daemon.commands.pop_front() {
                let input = match command {
                    Command::Session(pnn, incarnation) => {
                        daemon.sessions[pnn.index()] = incarnation;
                        authority::Input::Session { pnn, incarnation }
                    }
                    Command::Eligible(eligible) => authority::Input::Eligible(eligible),
                    Command::Books(books) => authority::Input::Books(books),
                    Command::List(list) => authority::Input::List(list),
                    Command::Lock(news) => authority::Input::Lock(news),
                    Command::Leave => authority::Input::Leave,
                    Command::SayGone => {
                        let message = Message::Gone { incarnation: me };
                        for index in 0..daemon.sessions.len() {
                            let to = super::world::pnn(index);
                            daemon
                                .detector_effects
                                .push_back(DetectorEffect::Send(to, message));
                        }
                        if !self.detector_effects(node) {
                            return;
                        }
                        continue;
                    }
                };
                daemon.authority.handle(now, input, &mut out);
            } else {
                daemon
                    .authority
                    .handle(now, authority::Input::Tick, &mut out);
                self.check_accusations(node, evicted);
                if self.detector_effects(node) {
                    break;
                }
                return;
            }
            self.check_accusations(node, evicted);
            if !self.detector_effects(node) {
                return;
            }
        }
        self.publish(node);
    }

    /// Carries out what the detector decided; false if it was stopped meanwhile.
    fn detector_effects(&mut self, node: usize) -> bool {
        loop {
            let Some(daemon) = self.daemon(node) else {
                return false;
            };
            if daemon.detector_effects.is_empty() {
                return true;
            }
            if self.interrupted(node, Thread::Detector) {
                let now = self.now;
                self.wake_detector(node, now);
                return false;
            }
            let Some(effect) = self
                .daemon(node)
                .and_then(|daemon| daemon.detector_effects.pop_front())
            else {
                return true;
            };
            match effect {
                DetectorEffect::Send(to, message) => {
                    let Some(daemon) = self.daemon(node) else {
                        return false;
                    };
                    let (life, to_life) = (daemon.incarnation, daemon.sessions[to.index()]);
                    self.send(node, to.index(), life, to_life, message);
                }
                DetectorEffect::Deadline(slot, until) => {
                    let now = self.now;
                    let host = &mut self.hosts[node];
                    host.kernel.deadline(now, &host.clock, slot, until);
                }
            }
        }
    }

    /// A datagram leaves.
    pub fn send(
        &mut self,
        from: usize,
        to: usize,
        from_life: Incarnation,
        to_life: Incarnation,
        message: Message,
    ) {
        if to_life == Incarnation::NONE || from == to {
            return;
        }
        if !matches!(message, Message::Heartbeat { .. } | Message::Answer { .. }) {
            self.say(|| format!("node {from} -> {to}: {message:?}"));
        }
        if self.net.datagrams[from][to] {
            return;
        }
        let quality = self.net.quality;
        if quality.loss > 0.0 && self.rng.random_bool(quality.loss) {
            return;
        }
        let datagram = Datagram {
            from,
            from_life,
            to_life,
            message,
        };
        let choked = match self.net.choked {
            Some((node, by, until)) if node == to && self.now < until => by,
            _ => Duration::ZERO,
        };
        let at = self.now + quality.delay(&mut self.rng) + choked;
        if quality.double > 0.0 && self.rng.random_bool(quality.double) {
            let again = self.now + quality.delay(&mut self.rng);
            self.schedule(
                again,
                Event::Datagram {
                    to,
                    datagram: Box::new(datagram),
                },
            );
        }
        self.schedule(
            at,
            Event::Datagram {
                to,
                datagram: Box::new(datagram),
            },
        );
    }

    /// A node whose answer has come and waits to be read is in nobody's way.
    fn check_accusations(&mut self, node: usize, before: NodeSet) {
        let Some(daemon) = self.daemon(node) else {
            return;
        };
        let new = NodeSet(daemon.authority.evicts().0 & !before.0 & !daemon.books.unaccounted.0);
        let wrong = new.iter().find(|x| {
            let session = daemon.sessions[x.index()];
            let gone = |datagram: &Datagram| {
                matches!(datagram.message, Message::Answer { .. })
                    && datagram.from == x.index()
                    && datagram.from_life == session
                    && datagram.to_life == daemon.incarnation
            };
            let status = daemon.authority.status(daemon.published.now);
            !status.peers[x.index()].gone
                && !status.list.strangers.contains(*x)
                && daemon.socket.iter().any(gone)
        });
        if let Some(x) = wrong {
            let text = format!("node {node} evicts {x:?} while its answer waits in the socket");
            self.broken("ACCUSE", text);
        }
    }

    fn publish(&mut self, node: usize) {
        let local = self.local(node);
        let Some(daemon) = self.daemon(node) else {
            return;
        };
        let (role, right) = daemon.authority.states();
        let seen = (super::coverage::role(role), super::coverage::right(right));
        let was = std::mem::replace(&mut daemon.seen, seen);
        self.stats.coverage.roles[was.0][seen.0] += u64::from(was.0 != seen.0);
        self.stats.coverage.rights[was.1][seen.1] += u64::from(was.1 != seen.1);
        let Some(daemon) = self.daemon(node) else {
            return;
        };
        let status = Box::new(daemon.authority.status(local));
        let old = &daemon.published;
        let news = old.epoch != status.epoch
            || old.right_until.is_some() != status.right_until.is_some()
            || old.leader != status.leader
            || old.acting.map(|(term, _)| term) != status.acting.map(|(term, _)| term)
            || old.abstaining != status.abstaining
            || old.lock_wanted != status.lock_wanted
            || old.led != status.led
            || old.claimed != status.claimed
            || old.list != status.list
            || old.peers.iter().zip(&status.peers).any(|(x, y)| {
                x.incarnation != y.incarnation
                    || x.suspected != y.suspected
                    || x.evicted != y.evicted
                    || x.evidence != y.evidence
                    || x.has_right != y.has_right
            });
        let old = std::mem::replace(&mut daemon.published, status);
        let new = daemon.published.clone();
        let next = daemon.authority.next_wakeup();
        if news {
            daemon.news = true;
            let now = self.now;
            self.wake_main(node, now);
            self.note_status(node, &old, &new);
        }
        let at = self.hosts[node].clock.real(next);
        self.wake_detector(node, at);
    }

    fn note_status(&mut self, node: usize, old: &authority::Status, new: &authority::Status) {
        let (was, is) = (
            old.acting.map(|(term, _)| term),
            new.acting.map(|(term, _)| term),
        );
        if let Some(term) = is
            && was != is
        {
            self.stats.elections += 1;
            self.say(|| format!("node {node}: acts in {term:?}"));
        } else if let Some(term) = was
            && is.is_none()
        {
            self.say(|| format!("node {node}: acts no more in {term:?}"));
        }
        if old.leader != new.leader {
            self.say(|| format!("node {node}: leader {:?} -> {:?}", old.leader, new.leader));
        }
        if old.right_until.is_some() != new.right_until.is_some() || old.epoch != new.epoch {
            let held = new.right_until.is_some();
            self.say(|| format!("node {node}: right={held} epoch={:?}", new.epoch));
        }
        for index in 0..self.hosts.len() {
            let (x, y) = (&old.peers[index], &new.peers[index]);
            if x.evicted != y.evicted || (x.evidence.is_some() != y.evidence.is_some()) {
                let (evicted, evidence) = (y.evicted, y.evidence);
                self.say(|| {
                    format!("node {node}: of {index} evicted={evicted} evidence={evidence:?}")
                });
            }
        }
    }

    /// One turn of the main loop.
    pub fn main_loop(&mut self, node: usize, number: u64) {
        let hung = match self.daemon(node) {
            Some(daemon) if daemon.main_due.1 == number => {
                daemon.main_due.0 = Real::NEVER;
                daemon.main_hung
            }
            _ => return,
        };
        if hung > self.now {
            self.wake_main(node, hung);
            return;
        }
        if !self.main_effects(node) {
            return;
        }
        // The level-triggered seam: the status is usually looked at first, but not always.
        let first = self.rng.random_bool(0.8);
        if first && !self.read_status(node) {
            return;
        }
        while let Some(item) = self
            .daemon(node)
            .and_then(|daemon| daemon.inbox.pop_front())
        {
            if !self.item(node, item) {
                return;
            }
        }
        if !first && !self.read_status(node) {
            return;
        }
        let local = self.local(node);
        let Some(daemon) = self.daemon(node) else {
            return;
        };
        daemon.progress = local.0;
        if local >= daemon.next_tick {
            let wakeups = std::mem::take(&mut daemon.wakeups);
            let passed = local.since(daemon.next_tick) + TICK;
            if !self.clocks_excuse() && wakeups as f64 > 1_000.0 + passed.as_secs_f64() * 5_000.0 {
                let text = format!("node {node}: {wakeups} wake-ups of the detector in {passed:?}");
                self.broken("SPIN", text);
                return;
            }
            let Some(daemon) = self.daemon(node) else {
                return;
            };
            daemon.next_tick = local + TICK;
            daemon.news = true;
            if !self.feed(node, Input::Tick) || !self.read_status(node) {
                return;
            }
        }
        if !self.tell_fates(node) || !self.look_after(node) {
            return;
        }
        let Some(daemon) = self.daemon(node) else {
            return;
        };
        let next = daemon.next_tick;
        let at = self.hosts[node].clock.real(next);
        self.wake_main(node, at);
        self.check_members(node);
        self.follow_view(node);
        self.connect(node);
    }

    fn read_status(&mut self, node: usize) -> bool {
        let Some(daemon) = self.daemon(node) else {
            return false;
        };
        if !daemon.news {
            return true;
        }
        daemon.news = false;
        let status = daemon.published.clone();
        self.feed(node, Input::Status(status))
    }

    /// Hands an input to the coordinator; false if the daemon was stopped meanwhile.
    pub fn feed(&mut self, node: usize, input: Input) -> bool {
        let now = self.local(node);
        let Some(daemon) = self.daemon(node) else {
            return false;
        };
        let effects = daemon.coordinator.handle(now, input);
        daemon.main_effects.extend(effects);
        self.main_effects(node)
    }

    fn item(&mut self, node: usize, item: Item) -> bool {
        let Some(daemon) = self.daemon(node) else {
            return false;
        };
        match item {
            Item::LinkUp(link, peer, incarnation) => {
                daemon.links[peer] = Some(link);
                let pnn = super::world::pnn(peer);
                daemon
                    .commands
                    .push_back(Command::Session(pnn, incarnation));
                self.say(|| format!("node {node}: link to {peer} up, {incarnation:?}"));
                let now = self.now;
                self.wake_detector(node, now);
                self.feed(node, Input::LinkUp(pnn, incarnation))
            }
            Item::LinkDown(link, peer) => {
                if daemon.links[peer] != Some(link) {
                    return true;
                }
                daemon.links[peer] = None;
                self.say(|| format!("node {node}: link to {peer} down"));
                self.feed(node, Input::LinkDown(super::world::pnn(peer)))
            }
            Item::Frame(link, peer, frame) => {
                if daemon.links[peer] != Some(link) {
                    return true; // Of a link that is over (R1).
                }
                if let PeerFrame::Assign(order) = &frame {
                    let text = format!("{order:?}");
                    self.say(|| format!("node {node}: reads from {peer} {text}"));
                }
                self.feed(node, Input::Frame(super::world::pnn(peer), frame))
            }
            Item::Taken(epoch, results) => self.feed(node, Input::Taken { epoch, results }),
            Item::Released(addresses) => self.feed(node, Input::Released(addresses)),
            Item::Move(address, to) => self.feed(node, Input::Move(address, to)),
            Item::Reallocate(nodes) => self.feed(node, Input::Reallocate(nodes)),
            Item::Flag(flag, on) => {
                daemon.info.flags.set(flag, on);
                true
            }
            Item::Availability(address, up) => {
                daemon.info.addresses[address].available = up;
                true
            }
            Item::LockSaid(news) => {
                let news = self.lock_read(node, news);
                news.is_none_or(|news| self.item(node, Item::Lock(news)))
            }
            Item::List { voters, first } => self.reload_daemon(node, voters, first),
            Item::Lock(news) => {
                self.say(|| format!("node {node}: lock {news:?}"));
                self.command(node, Command::Lock(news));
                true
            }
            Item::Stop => {
                let until = self.local(node) + Duration::from_secs(3);
                self.say(|| format!("node {node}: is to leave"));
                if let Some(daemon) = self.daemon(node)
                    && daemon.leaving.is_none()
                {
                    daemon.info.run_state = RunState::Shutdown;
                    daemon.leaving = Some(Leaving::Handover(until));
                }
                true
            }
        }
    }

    /// Tells the detector.
    pub fn command(&mut self, node: usize, command: Command) {
        if let Some(daemon) = self.daemon(node) {
            daemon.commands.push_back(command);
        }
        let at = self.now;
        self.wake_detector(node, at);
    }

    /// What the daemon's shell does by itself: its description, eligibility, leaving.
    fn look_after(&mut self, node: usize) -> bool {
        let startup = self.habits.startup;
        let settle = self.timing.settle();
        let now = self.local(node);
        let Some(daemon) = self.daemon(node) else {
            return false;
        };
        if daemon.info.run_state == RunState::FirstRecovery
            && let Some(status) = daemon.coordinator.status()
            && status.right_until.is_some()
            && status.leader.is_some()
            && now >= daemon.started + startup
        {
            daemon.info.run_state = RunState::Running;
            daemon.info.flags.remove(NodeFlags::UNHEALTHY);
        }
        let info = daemon.info.clone();
        if !self.feed(node, Input::Info(info)) {
            return false;
        }
        self.tell_list(node);
        self.tend_lock(node);
        self.keep_record(node);
        let Some(daemon) = self.daemon(node) else {
            return false;
        };
        let active = !daemon
            .info
            .flags
            .intersects(NodeFlags::BANNED | NodeFlags::STOPPED);
        let gone = matches!(daemon.leaving, Some(Leaving::Silent(_) | Leaving::End(_)));
        let eligible = active && !gone;
        let books = daemon.coordinator.books(now);
        if daemon.books != books {
            daemon.books = books;
            daemon.commands.push_back(Command::Books(books));
            let at = self.now;
            self.wake_detector(node, at);
        }
        let Some(daemon) = self.daemon(node) else {
            return false;
        };
        if daemon.eligible != Some(eligible) {
            daemon.eligible = Some(eligible);
            daemon.commands.push_back(Command::Eligible(eligible));
            let at = self.now;
            self.wake_detector(node, at);
        }
        let Some(daemon) = self.daemon(node) else {
            return false;
        };
        match daemon.leaving {
            Some(Leaving::Handover(until))
                if now >= until || daemon.coordinator.holder().holds().is_empty() =>
            {
                daemon.leaving = Some(Leaving::Silent(now + settle));
                daemon.info.capabilities.leader = false;
                let info = daemon.info.clone();
                if !self.feed(node, Input::Info(info)) {
                    return false;
                }
                if let Some(daemon) = self.daemon(node) {
                    daemon.eligible = Some(false);
                    daemon.commands.push_back(Command::Eligible(false));
                    daemon.commands.push_back(Command::Leave);
                }
                let at = self.now;
                self.wake_detector(node, at);
            }
            Some(Leaving::Silent(until)) if now >= until => {
                // The deadline was ended by the detector at least 1.2·q ago.
                let ended = daemon.published.right_until.is_none() && daemon.commands.is_empty();
                if ended {
                    daemon.commands.push_back(Command::SayGone);
                    daemon.leaving = Some(Leaving::End(now + Duration::from_millis(20)));
                    let at = self.now;
                    self.wake_detector(node, at);
                }
            }
            Some(Leaving::End(until)) if now >= until && daemon.commands.is_empty() => {
                self.say(|| format!("node {node}: has left"));
                self.die(node);
                return false;
            }
            _ => {}
        }
        true
    }

    /// Carries out what the coordinator decided; false if the daemon was stopped meanwhile.
    fn main_effects(&mut self, node: usize) -> bool {
        loop {
            let Some(daemon) = self.daemon(node) else {
                return false;
            };
            if daemon.main_effects.is_empty() {
                return true;
            }
            if self.interrupted(node, Thread::Main) {
                let now = self.now;
                self.wake_main(node, now);
                return false;
            }
            let Some(effect) = self
                .daemon(node)
                .and_then(|daemon| daemon.main_effects.pop_front())
            else {
                return true;
            };
            match effect {
                Effect::Send(to, frame) => self.send_frame(node, to.index(), frame),
                Effect::Work(work) => {
                    let text = work.clone();
                    self.say(|| format!("node {node}: {text:?}"));
                    if let Some(daemon) = self.daemon(node) {
                        daemon.jobs.push_back(work);
                    }
                    let late = self.upto(Duration::from_micros(200));
                    let at = self.now + late;
                    self.wake_executor(node, at);
                }
                // The policy of these runs bans nobody; administrators do.
                Effect::Ban { .. } => {}
                Effect::Note(note) => self.say(|| format!("node {node}: note {}", note.text)),
            }
        }
    }

    /// The executor thread takes its next step: one address, or one job.
    pub fn executor(&mut self, node: usize, number: u64) {
        match self.daemon(node) {
            Some(daemon) if daemon.executor_due.1 == number => {
                daemon.executor_due.0 = Real::NEVER;
            }
            _ => return,
        }
        if self.interrupted(node, Thread::Executor) {
            let now = self.now;
            self.wake_executor(node, now);
            return;
        }
        let (now, fails) = (self.now, self.habits.take_fails);
        let Some(daemon) = self.hosts[node].daemon.as_deref_mut() else {
            return;
        };
        if let Some(taking) = &mut daemon.taking {
            if let Some(address) = taking.rest.pop_front() {
                let (slot, failed) = (taking.slot, fails > 0.0 && self.rng.random_bool(fails));
                if failed {
                    taking
                        .results
                        .push((address, Err("the model says no".to_owned())));
                } else {
                    taking.results.push((address, Ok(())));
                    let end = taking.end;
                    let host = &mut self.hosts[node];
                    if end {
                        host.sessions.end(address);
                    }
                    host.kernel.grant(now, &host.clock, address, slot);
                    self.stats.grants += 1;
                }
                self.say(|| format!("node {node}: granted {address} slot {slot} ok={}", !failed));
            }
            if let Some(daemon) = self.hosts[node].daemon.as_deref_mut()
                && daemon
                    .taking
                    .as_ref()
                    .is_some_and(|taking| taking.rest.is_empty())
                && let Some(done) = daemon.taking.take()
            {
                self.give(node, Item::Taken(done.epoch, done.results));
            }
        } else if let Some(work) = daemon.jobs.pop_front() {
            match work {
                Work::Take {
                    epoch,
                    slot,
                    addresses,
                    end,
                } => {
                    daemon.taking = Some(Taking {
                        epoch,
                        slot,
                        end,
                        rest: addresses.into(),
                        results: Vec::new(),
                    });
                }
                Work::Release { addresses } => {
                    let life = daemon.life;
                    let host = &mut self.hosts[node];
                    for address in &addresses {
                        host.kernel.revoke(now, &host.clock, *address);
                        host.sessions.end(*address);
                    }
                    let silent = host
                        .clock
                        .real(host.clock.local(now) + self.timing.settle());
                    let text = addresses.clone();
                    self.say(|| format!("node {node}: silenced {text:?}"));
                    self.schedule(
                        silent,
                        Event::Settled {
                            node,
                            life,
                            addresses,
                        },
                    );
                }
                Work::Discard { addresses } => {
                    let host = &mut self.hosts[node];
                    for address in &addresses {
                        host.kernel.revoke(now, &host.clock, *address);
                        host.sessions.end(*address);
                    }
                }
            }
        }
        let take = self.habits.take;
        let Some(daemon) = self.daemon(node) else {
            return;
        };
        if daemon.taking.is_some() {
            let at = now + self.upto(take);
            self.wake_executor(node, at);
        } else if !daemon.jobs.is_empty() {
            let at = now + self.upto(Duration::from_micros(500));
            self.wake_executor(node, at);
        }
    }
}
