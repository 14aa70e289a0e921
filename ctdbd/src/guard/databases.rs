//! What the guard does about the databases when the right to serve has ended and the daemon is silent
//! (DATA-5): no process of this node can change a record that a recovery gives away.
//!
//! The right ends at D; nothing is given away before D + m, m the margin. In between:
//!
//! | When | What |
//! |---|---|
//! | D + m/8 | every volatile database that its daemon has not frozen is closed: who is not inside comes no more |
//! | D + m/2 | a process that still keeps a record locked is named |
//! | D + 3m/4 | it is ended (SIGKILL) |
//! | D + 7m/8 | the daemon is ended if it has a lock in the way itself, as it may when it is stopped while it gives one back |
//!
//! Persistent and replicated databases need none of it: clients change them by the daemon only.
//!
//! What is held is offered to the daemon, which works under it when it is back and lets go after a
//! recovery; so there is no moment at which neither holds the lock. If the same right goes on after
//! all, everything is given back at once. So is what the guard took when the daemon had frozen the
//! database itself and was through with the recovery, since nobody would ask for that: the daemon says in
//! which right it serves. Files are opened when the daemon attaches them, at leisure; what is done when
//! the right has ended allocates nothing and waits for nobody.
//!
//! When the guard itself is killed while it holds databases of a stopped daemon, the kernel gives its
//! locks to the next who want them. A daemon that runs starts another guard, which takes up what the
//! daemon works under.

use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrayvec::ArrayString;
use ctdb_db::freezer::{Freezer, Holder, Pass};
use ctdb_ebpf::deadman::{DATABASES, Own, Right, Watcher, Wish};
use ctdb_wire::ids::BootTime;
use rustix::process::{Pid, Signal, kill_process, pidfd_send_signal};

use super::Death;
use crate::clock::boot_now;

/// How often it looks for databases, and at the right, at least.
const IDLE: Duration = Duration::from_secs(1);
/// The same without a right.
const LOOK: Duration = Duration::from_millis(100);
/// Pause while something is held that the daemon may let go.
const NEAR: Duration = Duration::from_millis(5);
/// How long a process may finish what it does under a lock when the daemon has died. It would end anyway.
const DYING: Duration = Duration::from_millis(30);
/// Pause while somebody is in the way.
const PASS: Duration = Duration::from_millis(1);

/// One database.
#[derive(Debug)]
struct Watched {
    version: u32,
    /// Number of the file.
    inode: u64,
    /// `None`: the file cannot be used.
    freezer: Option<Freezer>,
    /// The slot of the right that had ended when it was closed.
    slot: u32,
}

/// The right has ended.
#[derive(Clone, Copy, Debug)]
struct Over {
    right: Right,
    since: BootTime,
}

/// All databases.
#[derive(Debug)]
pub(super) struct Databases {
    watcher: Arc<Watcher>,
    directory: PathBuf,
    margin: Duration,
    watched: Vec<Option<Watched>>,
    over: Option<Over>,
}

impl Databases {
    /// None yet. All memory that is needed later but for the files is there now.
    pub(super) fn new(watcher: Arc<Watcher>, directory: PathBuf, margin: Duration) -> Self {
        let mut watched = Vec::with_capacity(DATABASES);
        watched.resize_with(DATABASES, || None);
        Self {
            watcher,
            directory,
            margin,
            watched,
            over: None,
        }
    }

    /// The thread that takes the locks, and therefore gives them back.
    pub(super) fn run(&mut self, death: &Death) -> ! {
        while !death.happened.load(Ordering::Acquire) {
            let pause = self.step(boot_now());
            std::thread::park_timeout(pause);
        }
        self.follow();
        let died = boot_now();
        while !self.give_up(boot_now(), died, is_daemon_too) {
            std::thread::sleep(PASS);
        }
        death.closed.store(true, Ordering::Release);
        // The process ends when all have been told.
        loop {
            std::thread::park();
        }
    }

    /// The daemon is dead: empties what is closed and gives it back. Whether that is all. `successor`
    /// says of a process whether it is another daemon.
    fn give_up(&mut self, now: BootTime, died: BootTime, successor: fn(u32) -> bool) -> bool {
        let watcher = &*self.watcher;
        let late = now >= died + DYING;
        let mut done = true;
        for (index, place) in self.watched.iter_mut().enumerate() {
            let Some(Watched {
                freezer: Some(freezer),
                inode,
                ..
            }) = place
            else {
                continue;
            };
            // Its threads are gone, and nobody else is one of them.
            match freezer.pass(&mut |_| false, false) {
                Ok(Pass::Open(holder)) => {
                    if let Holder::Thread(thread) = holder {
                        let pid = group_of(thread).unwrap_or(thread);
                        if pid != watcher.daemon() && successor(pid) {
                            // A successor has made the file new, and freezes it itself.
                            let _ = freezer.thaw_beside();
                            *place = None;
                            continue;
                        }
                        let end = late && has_it(freezer, pid, *inode);
                        in_the_way(watcher, index, pid, end);
                    }
                    done = false;
                }
                Ok(Pass::Held | Pass::Closed) => {
                    if freezer.empty().is_err() {
                        // Stays held until the guard ends, and the others are not told.
                        done = false;
                        continue;
                    }
                    let _ = freezer.thaw();
                    *place = None;
                }
                // Not a file that anybody can use.
                Err(_) => *place = None,
            }
        }
        done
    }

    /// What is due; how long nothing is.
    fn step(&mut self, now: BootTime) -> Duration {
        self.follow();
        let Some(right) = self.watcher.right() else {
            return LOOK;
        };
        if now.0 < right.until {
            self.over = None;
            let engaged = self.relax(right.slot);
            let left = BootTime(right.until).since(now);
            return if engaged { NEAR } else { left.min(IDLE) };
        }
        let over = match self.over {
            Some(over) if over.right == right => over,
            // One that was given up ends now.
            _ => Over {
                right,
                since: if right.until == 0 {
                    now
                } else {
                    BootTime(right.until)
                },
            },
        };
        self.over = Some(over);
        let begin = over.since + self.margin / 8;
        if now < begin {
            return begin.since(now).min(LOOK);
        }
        if !self.close_all(now, over) {
            PASS
        } else if self.is_engaged() {
            NEAR
        } else {
            LOOK
        }
    }

    fn is_engaged(&self) -> bool {
        let freezers = self.watched.iter().flatten();
        freezers
            .filter_map(|watched| watched.freezer.as_ref())
            .any(Freezer::is_engaged)
    }

    /// Opens files that came, closes those that went.
    fn follow(&mut self) {
        for index in 0..DATABASES {
            let version = self.watcher.version(index);
            let place = &mut self.watched[index];
            if let Some(watched) = place
                && Some(watched.version) != version
            {
                let gone = watched.freezer.as_mut().is_none_or(|freezer| {
                    // What cannot be given back goes with the file.
                    freezer.thaw().unwrap_or(true)
                });
                if !gone {
                    continue;
                }
                *place = None;
            }
            if place.is_none()
                && let Some(database) = self.watcher.database(index)
            {
                // What a guard before this one offered is not held by anybody.
                self.watcher.withdraw(index, database.version);
                let opened = database.name().map(|name| {
                    Freezer::open(&self.directory.join(name), database.device, database.inode)
                });
                let freezer = opened.and_then(Result::ok);
                if freezer.is_none() {
                    self.watcher.say_unusable(index);
                }
                *place = Some(Watched {
                    version: database.version,
                    inode: database.inode,
                    freezer,
                    slot: 0,
                });
            }
        }
    }

    /// The right holds: gives back what nobody needs. Whether anything is still held.
    fn relax(&mut self, slot: u32) -> bool {
        let watcher = &*self.watcher;
        let mut engaged = false;
        for (index, place) in self.watched.iter_mut().enumerate() {
            let Some(Watched {
                version,
                freezer: Some(freezer),
                slot: closed_in,
                ..
            }) = place
            else {
                continue;
            };
            let wish = watcher.wish(index, *version);
            // The right that went on was never away, so nothing was given away; and what the daemon has
            // recovered in another one needs no guard.
            let needless = *closed_in == slot || watcher.is_served(index, slot);
            let free = match wish {
                Wish::Claimed => false,
                Wish::Nothing => freezer.is_engaged() && needless,
                Wish::Offered => needless && watcher.withdraw(index, *version),
                Wish::LetGo => watcher.withdraw(index, *version),
            };
            if free {
                let _ = freezer.thaw();
            } else if wish == Wish::Claimed || freezer.is_engaged() {
                // To be offered, as soon as all of it is held.
                let (own, thawing) = watcher.own(index);
                if own == Own::Frozen && !thawing && wish == Wish::Nothing {
                    let _ = freezer.thaw_beside();
                } else {
                    let mut is_daemon = |thread| group_of(thread) == Some(watcher.daemon());
                    if let Ok(Pass::Held) = freezer.pass(&mut is_daemon, thawing) {
                        watcher.offer(index, *version);
                    }
                }
            }
            engaged |= freezer.is_engaged();
        }
        engaged
    }

    /// The right has ended: closes what is open. Whether nobody is in the way.
    fn close_all(&mut self, now: BootTime, over: Over) -> bool {
        let mut done = true;
        for index in 0..DATABASES {
            done &= self.close(index, now, over);
        }
        done
    }

    fn close(&mut self, index: usize, now: BootTime, over: Over) -> bool {
        let watcher = &*self.watcher;
        let Some(Watched {
            version,
            inode,
            freezer: Some(freezer),
            slot,
        }) = &mut self.watched[index]
        else {
            return true;
        };
        let (own, thawing) = watcher.own(index);
        if own == Own::Frozen && !thawing {
            // The daemon holds it, and does not give it back without a right.
            return freezer.thaw_beside().unwrap_or(true);
        }
        *slot = over.right.slot;
        watcher.keep(index, *version);
        let named = now >= over.since + self.margin / 2;
        let late = now >= over.since + self.margin * 3 / 4;
        let last = now >= over.since + self.margin * 7 / 8;
        if own == Own::Freezing && !freezer.has_mutexes() && !last {
            // Its threads take piece by piece, and so would we; each would have what the other
            // lacks. Only who is in its way is looked for.
            let Ok(Some(pid)) = freezer.client_in_the_way() else {
                return false;
            };
            if named {
                in_the_way(watcher, index, pid, late);
            }
            return false;
        }
        let mut is_daemon = |thread| group_of(thread) == Some(watcher.daemon());
        match freezer.pass(&mut is_daemon, thawing) {
            Ok(Pass::Held) => {
                watcher.offer(index, *version);
                true
            }
            Ok(Pass::Closed) => true,
            Ok(Pass::Open(Holder::Thread(thread))) if !is_daemon(thread) => {
                if named {
                    let pid = group_of(thread).unwrap_or(thread);
                    let end = late && has_it(freezer, pid, *inode);
                    in_the_way(watcher, index, pid, end);
                }
                false
            }
            Ok(Pass::Open(Holder::Passing(_))) => false,
            Ok(Pass::Open(_)) => {
                if last && let Some(daemon) = watcher.process() {
                    // ESRCH: it has just gone.
                    let _ = pidfd_send_signal(daemon, Signal::KILL);
                }
                false
            }
            Err(_) => {
                watcher.say_unusable(index);
                true
            }
        }
    }
}

/// A process keeps a record locked.
fn in_the_way(watcher: &Watcher, index: usize, pid: u32, end: bool) {
    if !end {
        watcher.say_blocked(index, pid);
    } else if let Some(process) = Pid::from_raw(pid.cast_signed()) {
        watcher.say_ended(index, pid);
        // ESRCH: it has just gone.
        let _ = kill_process(process, Signal::KILL);
    }
}

/// Whether a process that is said to have a lock of the file can have it. For a lock of bytes the
/// kernel says it. For a mutex a word in the file does, and a number there that outlived its process
/// may be anybody's by now, who is not to be ended for it.
fn has_it(freezer: &Freezer, pid: u32, inode: u64) -> bool {
    !freezer.has_mutexes() || has_mapped(pid, inode)
}

/// Whether a process has the file with this number mapped (`/proc/PID/maps`). Allocates nothing.
fn has_mapped(pid: u32, inode: u64) -> bool {
    /// Of the file's number in a line, by spaces before it.
    const FIELD: usize = 4;
    let mut path = ArrayString::<32>::new();
    if write!(path, "/proc/{pid}/maps").is_err() {
        return false;
    }
    let Ok(mut file) = std::fs::File::open(path.as_str()) else {
        return false;
    };
    let mut buffer = [0; 4096];
    let (mut field, mut number) = (0, 0_u64);
    while let Ok(length @ 1..) = file.read(&mut buffer) {
        for byte in &buffer[..length] {
            match byte {
                b' ' | b'\n' if field == FIELD && number == inode => return true,
                b'\n' => (field, number) = (0, 0),
                b' ' => field += 1,
                digit if field == FIELD => {
                    let digit = u64::from(digit.wrapping_sub(b'0'));
                    number = number.wrapping_mul(10).wrapping_add(digit);
                }
                _ => {}
            }
        }
    }
    false
}

/// Whether a process runs the same program as this one.
fn is_daemon_too(pid: u32) -> bool {
    let mut path = ArrayString::<32>::new();
    let program = |path: &str| std::fs::metadata(path).map(|file| (file.dev(), file.ino()));
    write!(path, "/proc/{pid}/exe").is_ok()
        && matches!(
            (program(&path), program("/proc/self/exe")),
            (Ok(theirs), Ok(ours)) if theirs == ours
        )
}

/// The process of a thread (`Tgid` of `/proc/TID/status`). Allocates nothing.
fn group_of(thread: u32) -> Option<u32> {
    let mut path = ArrayString::<32>::new();
    write!(path, "/proc/{thread}/status").ok()?;
    let mut file = std::fs::File::open(path.as_str()).ok()?;
    let mut buffer = [0; 512];
    let length = file.read(&mut buffer).ok()?;
    let mut lines = buffer[..length].split(|byte| *byte == b'\n');
    let number = lines.find_map(|line| line.strip_prefix(b"Tgid:"))?;
    std::str::from_utf8(number).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests;
