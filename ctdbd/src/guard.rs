//! The guard: a tiny process beside the daemon that ends the lease deadline when the daemon dies,
//! waits until no packet can be queued, and tells the peers (`design.md` section 4, R19).
//!
//! It is this program started again with a hidden argument. What it needs comes as shared memory
//! on its standard input; it allocates nothing after its start and its memory is locked. It
//! notices the death by the robust mutex that the detector thread holds, so SIGKILL, a crash and
//! an abort are all the same to it.

use std::ffi::OsString;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use ctdb_ebpf::deadman::{Deadman, GuardPeer, Verdict, Watcher};
use rustix::process::{Signal, set_parent_process_death_signal};
use tokio::process::{Child, Command};

/// The hidden argument; followed by the pin directory (or `-`) and 1.2·q in microseconds.
pub const GUARD_ARGUMENT: &str = "--guard-of-the-lease";

/// GONE is sent this often, since a datagram may be lost.
const REPEATS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(10);

/// Starts the guard of this daemon.
pub fn spawn(deadman: &Deadman, pins: Option<&Path>, settle: Duration) -> io::Result<Child> {
    let memory = deadman.fd().as_fd().try_clone_to_owned()?;
    let pins = pins.map_or_else(|| OsString::from("-"), |path| path.as_os_str().to_owned());
    Command::new("/proc/self/exe")
        .arg(GUARD_ARGUMENT)
        .arg(pins)
        .arg(settle.as_micros().to_string())
        .stdin(Stdio::from(memory))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// Arguments of the guard, if this process shall be one.
pub fn arguments(args: &[OsString]) -> Option<(Option<PathBuf>, Duration)> {
    let [_, name, pins, settle] = args else {
        return None;
    };
    if name != GUARD_ARGUMENT {
        return None;
    }
    let pins = (pins != "-").then(|| PathBuf::from(pins));
    let settle = settle.to_str()?.parse().ok()?;
    Some((pins, Duration::from_micros(settle)))
}

/// The guard's whole life.
pub fn run(pins: Option<&Path>, settle: Duration) -> ExitCode {
    match guard(pins, settle) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn guard(pins: Option<&Path>, settle: Duration) -> Result<(), Box<dyn std::error::Error>> {
    // A terminal's Ctrl-C and a service manager's SIGTERM are the daemon's to obey; the guard
    // goes when the daemon has gone.
    rustix::process::setsid()?;
    ignore_signals()?;
    set_parent_process_death_signal(None::<Signal>)?;
    let memory = io::stdin().as_fd().try_clone_to_owned()?;
    let watcher = Watcher::from_fd(memory)?;
    let deadlines = pins
        .map(ctdb_ebpf::lease::open_pinned_deadline)
        .transpose()?;
    let v4 = UdpSocket::bind("0.0.0.0:0").ok();
    let v6 = UdpSocket::bind("[::]:0").ok();
    // Not possible without the right limit; then the pages stay as likely in memory as any.
    let _ = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT);
    if watcher.wait() == Verdict::Left {
        return Ok(());
    }
    if let Some(deadlines) = &deadlines {
        deadlines.end_all();
    }
    // R19: after the deadline is 0 and what was queued has left.
    std::thread::sleep(settle);
    for _ in 0..REPEATS {
        for peer in watcher.peers() {
            say_gone(&peer, v4.as_ref(), v6.as_ref());
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
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
