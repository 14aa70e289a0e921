//! The detector's loop.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, TryRecvError};

use ctdb_core::authority::{Authority, Input, PROGRESS_LIMIT, Sink};
use ctdb_core::recording::Act;
use ctdb_ebpf::deadman::{Deadman, Right};
use ctdb_ebpf::lease::DeadlineCell;
use ctdb_wire::heartbeat::{MAX_MESSAGE, Message};
use ctdb_wire::ids::{BootTime, Incarnation, MAX_NODES, Pnn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;

use super::sockets::{DATAGRAM, PathSet, Sockets};
use super::{Command, Scheduling, Setup, Shared, significant};
use crate::clock::boot_now;
use crate::process::{RealTime, set_real_time, warn_once};
use crate::recorder::Tap;
use crate::transport::datagram::{Header, Opener, Sealer};

/// Datagrams read per wake-up and socket before the clock is looked at again.
const BATCH: usize = 128;

/// A peer's keys and addresses.
struct Line {
    sealer: Sealer,
    opener: Opener,
    paths: PathSet,
}

/// Carries out what the state machine asks for.
struct Wire<'a> {
    lines: &'a mut [Option<Line>],
    sockets: &'a Sockets,
    deadline: Option<&'a DeadlineCell>,
    deadman: Option<&'a Deadman>,
    /// The path that the datagram being handled came on: answers go back there.
    reply: Option<(Pnn, usize, SocketAddr)>,
    shared: &'a Shared,
    /// `[log] record`.
    tap: Option<&'a Tap>,
}

impl Wire<'_> {
    fn transmit(&mut self, to: Pnn, message: &Message, only: Option<(usize, SocketAddr)>) {
        let Some(line) = &mut self.lines[to.index()] else {
            return;
        };
        let mut plain = [0; MAX_MESSAGE];
        let length = message.encode(&mut plain);
        let paths = line.paths;
        let send = |socket: usize, address: SocketAddr, line: &mut Line| {
            let Some(socket) = self.sockets.sockets.get(socket) else {
                return;
            };
            let mut sealed = [0; DATAGRAM];
            let size = line.sealer.seal(&plain[..length], &mut sealed);
            // An interface that is down costs this path only; the other ones carry on.
            let counter = match socket.send_to(&sealed[..size], address) {
                Ok(_) => &self.shared.counters.sent,
                Err(_) => &self.shared.counters.send_errors,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        };
        if let Some((socket, address)) = only {
            send(socket, address, line);
        } else {
            for (socket, address) in paths.iter() {
                send(usize::from(socket), address, line);
            }
        }
    }
}

impl Sink for Wire<'_> {
    fn send(&mut self, to: Pnn, message: &Message) {
        if let Some(tap) = self.tap {
            tap.act(Act::Send(to, *message));
        }
        let answer = matches!(message, Message::Answer { .. } | Message::Vote { .. });
        let only = match self.reply {
            Some((from, socket, address)) if answer && from == to => Some((socket, address)),
            _ => None,
        };
        self.transmit(to, message, only);
    }

    fn deadline(&mut self, slot: u32, until: BootTime) {
        if let Some(tap) = self.tap {
            tap.act(Act::Deadline(slot, until));
        }
        if let Some(cell) = self.deadline {
            cell.set(slot, until.0);
        }
        // DATA-5: the databases' threads and the guard look at it, and wait for nobody.
        if let Some(deadman) = self.deadman {
            let until = until.0;
            deadman.set_right(Right { slot, until });
        }
    }
}

/// One step of the state machine.
fn feed(authority: &mut Authority, input: Input<'_>, wire: &mut Wire<'_>) {
    let now = boot_now();
    if let Some(tap) = wire.tap {
        tap.heard(now, input);
    }
    authority.handle(now, input, wire);
    if let Some(tap) = wire.tap {
        tap.done();
    }
}

/// The thread's body.
pub(super) fn run(
    setup: &Setup,
    mut authority: Authority,
    sockets: &Sockets,
    shared: &Shared,
    commands: &Receiver<Command>,
    wake: &OwnedFd,
) {
    schedule(setup.scheduling);
    // The kernel marks the death of this thread before it closes the process's sockets; the
    // programs then drop everything public (design.md section 4).
    let _renewing = match setup.deadline.as_ref().map(DeadlineCell::hold).transpose() {
        Ok(renewing) => renewing,
        Err(error) => {
            tracing::warn!(%error, "the lease is not bound to this thread's life; the guard ends it");
            None
        }
    };
    // Held until the thread ends, however it ends: then the guard acts (design.md section 4).
    let _held = setup.deadman.as_deref().map(Deadman::hold);
    let mut lines: Box<[Option<Line>]> = (0..MAX_NODES).map(|_| None).collect();
    let mut progress = 0;
    let mut buffer = [0_u8; DATAGRAM];
    loop {
        let now = boot_now();
        wait(sockets, wake, now, authority.next_wakeup());
        let mut wire = Wire {
            lines: &mut lines,
            sockets,
            deadline: setup.deadline.as_ref(),
            deadman: setup.deadman.as_deref(),
            reply: None,
            shared,
            tap: setup.tap.as_ref(),
        };
        let mut drain = [0_u8; 8];
        let _ = rustix::io::read(wake, &mut drain);
        // What already waits in the sockets is taken before the clock may accuse anybody.
        for index in 0..sockets.sockets.len() {
            receive(index, &mut authority, &mut wire, &mut buffer);
        }
        let main_loop = shared.progress.load(Ordering::Acquire);
        if main_loop != progress {
            progress = main_loop;
            feed(&mut authority, Input::Progress, &mut wire);
        }
        loop {
            match commands.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => {
                    shared.stopped.store(true, Ordering::Release);
                    return;
                }
                Ok(command) => obey(command, &mut authority, &mut wire, setup.incarnation),
                Err(TryRecvError::Empty) => break,
            }
        }
        feed(&mut authority, Input::Tick, &mut wire);
        entitle(setup, progress);
        publish(shared, &authority);
    }
}

/// While both loops work the daemon may keep its lock helper (MEM-4; `design.md`, Guard).
fn entitle(setup: &Setup, progress: u64) {
    if let (Some(validity), Some(deadman)) = (setup.lock_validity, &setup.deadman) {
        let now = boot_now();
        if now.since(BootTime(progress)) < PROGRESS_LIMIT {
            deadman.set_helper_until((now + validity).0);
        }
    }
}

/// Locked as pages are touched, so that unused stack and code cost nothing.
fn lock_memory() -> rustix::io::Result<()> {
    let flags = rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::ONFAULT;
    rustix::mm::mlockall(flags)
}

/// Gives back what the start needed for a moment (the kernel's types, for loading programs): the
/// allocator cannot while memory is locked, so it is not for an instant.
pub fn give_back_memory() {
    let unlocked = rustix::mm::munlockall();
    ctdb_ebpf::give_back_memory();
    if unlocked.is_ok()
        && let Err(errno) = lock_memory()
    {
        warn_once("locked memory", &errno.to_string());
    }
}

fn schedule(scheduling: Scheduling) {
    if let Err(errno) = lock_memory() {
        warn_once("locked memory", &errno.to_string());
    }
    if let Scheduling::RoundRobin(priority) = scheduling
        && let Err(error) = set_real_time(RealTime::RoundRobin, priority)
    {
        warn_once("[priority] detector", &error);
    }
}

fn wait(sockets: &Sockets, wake: &OwnedFd, now: BootTime, until: BootTime) {
    let timeout = until.since(now);
    let timeout = Timespec {
        tv_sec: timeout.as_secs().min(3600) as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    let mut fds = arrayvec::ArrayVec::<PollFd<'_>, { super::MAX_PATHS + 1 }>::new();
    fds.push(PollFd::from_borrowed_fd(wake.as_fd(), PollFlags::IN));
    for socket in &sockets.sockets {
        fds.push(PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
    }
    // EINTR and the like only make the next turn come early.
    let _ = poll(&mut fds, Some(&timeout));
}

fn receive(index: usize, authority: &mut Authority, wire: &mut Wire<'_>, buffer: &mut [u8]) {
    for _ in 0..BATCH {
        let Ok((length, address)) = wire.sockets.sockets[index].recv_from(buffer) else {
            return;
        };
        let datagram = &mut buffer[..length];
        let opened = Header::read(datagram)
            .ok()
            .and_then(|header| Some((header.sender, wire.lines[header.sender.index()].as_mut()?)))
            .and_then(|(from, line)| {
                let plain = line.opener.open(datagram).ok()?;
                Message::decode(plain).ok().map(|message| (from, message))
            });
        let Some((from, message)) = opened else {
            wire.shared.counters.refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        wire.shared
            .counters
            .received
            .fetch_add(1, Ordering::Relaxed);
        wire.reply = Some((from, index, address));
        // R6: the clock is read after the receipt.
        let message = &message;
        feed(authority, Input::Datagram { from, message }, wire);
        wire.reply = None;
    }
}

fn obey(
    command: Command,
    authority: &mut Authority,
    wire: &mut Wire<'_>,
    incarnation: Incarnation,
) {
    match command {
        Command::Session {
            pnn,
            incarnation,
            keys,
            paths,
        } => {
            let me = authority.config().me;
            wire.lines[pnn.index()] = Some(Line {
                sealer: Sealer::new((*keys).clone(), me),
                opener: Opener::new(*keys, pnn),
                paths,
            });
            feed(authority, Input::Session { pnn, incarnation }, wire);
        }
        Command::Paths(pnn, paths) => {
            if let Some(line) = &mut wire.lines[pnn.index()] {
                line.paths = paths;
            }
        }
        Command::Eligible(eligible) => feed(authority, Input::Eligible(eligible), wire),
        Command::Books(books) => feed(authority, Input::Books(books), wire),
        Command::Lock(news) => feed(authority, Input::Lock(news), wire),
        Command::List(list) => feed(authority, Input::List(list), wire),
        Command::Leave => feed(authority, Input::Leave, wire),
        Command::SayGone => {
            let message = Message::Gone { incarnation };
            for pnn in authority.config().voters.iter() {
                wire.transmit(pnn, &message, None);
            }
        }
        Command::Stop => {}
    }
}

fn publish(shared: &Shared, authority: &Authority) {
    let status = authority.status(boot_now());
    // Never wait for the main loop: what is missed now is published at the next turn.
    if let Ok(mut slot) = shared.status.try_lock() {
        let matters = significant(&slot, &status);
        *slot = status;
        drop(slot);
        if matters {
            shared.notify.notify_one();
        }
    }
}
