//! The guard: a tiny process beside the daemon that ends the lease deadline when the daemon dies,
//! waits until no packet can be queued, and tells the peers (`design.md` section 4, R19).
//!
//! It is this program started again with a hidden argument. What it needs comes as shared memory
//! on its standard input; it allocates nothing after its start and its memory is locked. It
//! notices the death by the robust mutex that the detector thread holds, so SIGKILL, a crash and
//! an abort are all the same to it.
//!
//! With a cluster lock it also ends the helper that holds it: at once when the daemon dies, and
//! when the daemon is silent (stopped, or its main loop hangs) for longer than a proof of the
//! lock counts. Otherwise the lock would stay with a node that does nothing with it.
//!
//! And it freezes the databases when the right has ended and the daemon has not ([`databases`]).

mod databases;

use std::ffi::OsString;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ctdb_ebpf::deadman::{DATABASES, Deadman, GuardPeer, Verdict, Watcher};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use tokio::process::{Child, Command};

use crate::clock::boot_now;

/// The hidden argument; followed by the pin directory (or `-`), 1.2·q in microseconds, `lock`
/// or `-`, the margin in microseconds, and the directory of the volatile databases.
pub const GUARD_ARGUMENT: &str = "--guard-of-the-lease";

const LOCK: &str = "lock";

/// What the guard is started with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Arguments {
    /// Where the lease's maps are pinned; `None`: there is no lease.
    pub pins: Option<PathBuf>,
    /// 1.2·q: after this no packet of a silenced address is in a queue of this host.
    pub settle: Duration,
    /// There may be a lock helper to end.
    pub lock: bool,
    /// m: how long after the end of its right nothing of this node is given away.
    pub margin: Duration,
    /// Where the volatile databases are.
    pub volatile: PathBuf,
}

/// What the two threads tell each other when the daemon has died.
#[derive(Default, Debug)]
struct Death {
    happened: AtomicBool,
    /// No process can change a record any more.
    closed: AtomicBool,
}

/// GONE is sent this often, since a datagram may be lost.
const REPEATS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(10);

/// After this the peers have waited for the end of the right themselves.
const LATEST: Duration = Duration::from_secs(5);
/// How often it looks whether the databases of a dead daemon are closed.
const WAIT: Duration = Duration::from_millis(1);

/// How often it looks whether the daemon is still entitled to its lock helper.
const LOOK: Duration = Duration::from_millis(100);

/// Starts the guard of this daemon.
pub fn spawn(deadman: &Deadman, with: &Arguments) -> io::Result<Child> {
    let memory = deadman.fd().as_fd().try_clone_to_owned()?;
    let pins = with
        .pins
        .as_ref()
        .map_or_else(|| OsString::from("-"), |path| path.clone().into_os_string());
    Command::new("/proc/self/exe")
        .arg(GUARD_ARGUMENT)
        .arg(pins)
        .arg(with.settle.as_micros().to_string())
        .arg(if with.lock { LOCK } else { "-" })
        .arg(with.margin.as_micros().to_string())
        .arg(&with.volatile)
        .stdin(Stdio::from(memory))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Arguments of the guard, if this process shall be one.
pub fn arguments(args: &[OsString]) -> Option<Arguments> {
    let [_, name, pins, settle, lock, margin, volatile] = args else {
        return None;
    };
    if name != GUARD_ARGUMENT {
        return None;
    }
    let duration = |text: &OsString| text.to_str()?.parse().ok().map(Duration::from_micros);
    Some(Arguments {
        pins: (pins != "-").then(|| PathBuf::from(pins)),
        settle: duration(settle)?,
        lock: lock == LOCK,
        margin: duration(margin)?,
        volatile: PathBuf::from(volatile),
    })
}

/// The guard's whole life.
pub fn run(arguments: &Arguments) -> ExitCode {
    match guard(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn guard(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    // A terminal's Ctrl-C and a service manager's SIGTERM are the daemon's to obey; the guard
    // goes when the daemon has gone.
    rustix::process::setsid()?;
    ignore_signals()?;
    set_parent_process_death_signal(None::<Signal>)?;
    let memory = io::stdin().as_fd().try_clone_to_owned()?;
    let watcher = Arc::new(Watcher::from_fd(memory)?);
    let deadlines = arguments
        .pins
        .as_deref()
        .map(ctdb_ebpf::lease::open_pinned_deadline)
        .transpose()?;
    let v4 = UdpSocket::bind("0.0.0.0:0").ok();
    let v6 = UdpSocket::bind("[::]:0").ok();
    let (volatile, margin) = (arguments.volatile.clone(), arguments.margin);
    let mut databases = databases::Databases::new(Arc::clone(&watcher), volatile, margin);
    // A guard that the kernel ends for its memory would give its locks away. Needs a privilege.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    // Not possible without the right limit; then the pages stay as likely in memory as any.
    let _ = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT);
    if arguments.lock {
        let watcher = Arc::clone(&watcher);
        std::thread::Builder::new()
            .name("lock".to_owned())
            .spawn(move || watch_helper(&watcher))?;
    }
    let death = Arc::new(Death::default());
    let theirs = Arc::clone(&death);
    let freezer = std::thread::Builder::new()
        .name("databases".to_owned())
        .spawn(move || databases.run(&theirs))?;
    if watcher.wait() == Verdict::Left {
        return Ok(());
    }
    if let Some(deadlines) = &deadlines {
        deadlines.end_all();
    }
    watcher.end_right();
    death.happened.store(true, Ordering::Release);
    freezer.thread().unpark();
    let until = Instant::now() + LATEST;
    // Only now: whoever gets the lock next must not meet a right of this node.
    if let Some((pid, _)) = watcher.helper() {
        end_helper(pid);
    }
    // R19: after the deadline is 0 and what was queued has left.
    std::thread::sleep(arguments.settle);
    // DATA-5: and after no process can change a record any more. Else the peers wait for the end of the
    // right.
    let databases = (0..DATABASES).any(|index| watcher.version(index).is_some());
    while databases && !death.closed.load(Ordering::Acquire) {
        if Instant::now() > until {
            return Ok(());
        }
        std::thread::sleep(WAIT);
    }
    for _ in 0..REPEATS {
        for peer in watcher.peers() {
            say_gone(&peer, v4.as_ref(), v6.as_ref());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn watch_helper(watcher: &Watcher) -> ! {
    loop {
        std::thread::sleep(LOOK);
        if let Some((pid, until)) = watcher.helper()
            && boot_now().0 > until
        {
            end_helper(pid);
        }
    }
}

/// Its whole process group, as it was started ([`crate::process`]).
fn end_helper(pid: u32) {
    if let Some(group) = Pid::from_raw(pid.cast_signed()) {
        // ESRCH: it has just gone.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

fn say_gone(peer: &GuardPeer, v4: Option<&UdpSocket>, v6: Option<&UdpSocket>) {
    let socket = if peer.address.is_ipv4() { v4 } else { v6 };
    if let Some(socket) = socket
        && let Some(datagram) = peer.datagram.get(..usize::from(peer.length))
    {
        // Lost is lost: the peers then wait for the end of the right.
        let _ = socket.send_to(datagram, peer.address);
    }
}

fn ignore_signals() -> io::Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
    let mut blocked = SigSet::empty();
    for signal in [
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
        Signal::SIGQUIT,
    ] {
        blocked.add(signal);
    }
    pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&blocked), None)?;
    Ok(())
}
