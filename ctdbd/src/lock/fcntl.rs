//! The lock on a file of the cluster file system: `FILE [RECHECK [PING_TIMEOUT]]`
//! (`spec/cluster.md` 2.8), in seconds, fractions allowed.
//!
//! The holder has a write lock on byte 0. A second process of its own opens the file by name
//! again and again, compares the inode, and takes and leaves a *blocking* lock on byte 1, which
//! hangs when the file system does. The two ping each other; when one falls silent the other
//! ends. Two processes, since one that hangs in the kernel does not go by SIGKILL, and its files,
//! with the lock on them, would stay open.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ctdb_wire::ids::BootTime;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::helper::{self, Report};
use crate::clock::boot_now;

/// CTDB's default.
const RECHECK: Duration = Duration::from_secs(5);
/// Between two pings.
const PING: Duration = Duration::from_secs(1);
const PING_BYTE: u8 = b'p';
const PROOF_BYTE: u8 = b'r';

/// Whether a lock was had.
#[derive(PartialEq, Eq)]
enum Got {
    Yes,
    Contended,
}

/// A write lock on one byte.
fn lock(file: &File, byte: i64, wait: bool) -> io::Result<Got> {
    let wanted = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    let how = if wait {
        FcntlArg::F_SETLKW(&wanted)
    } else {
        FcntlArg::F_SETLK(&wanted)
    };
    match fcntl(file, how) {
        Ok(_) => Ok(Got::Yes),
        Err(Errno::EACCES | Errno::EAGAIN) => Ok(Got::Contended),
        Err(errno) => Err(errno.into()),
    }
}

fn seconds(text: Option<&&OsStr>, default: Duration) -> io::Result<Duration> {
    let Some(text) = text else {
        return Ok(default);
    };
    text.to_str()
        .and_then(|text| text.parse::<f64>().ok())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| io::Error::other(format!("{} is not a number of seconds", text.display())))
}

fn words<'a>(args: &'a [&'a OsStr]) -> io::Result<(&'a Path, Duration, Duration)> {
    let path = args
        .first()
        .ok_or_else(|| io::Error::other("arguments are FILE [RECHECK [PING_TIMEOUT]]"))?;
    let recheck = seconds(args.get(1), RECHECK)?;
    let ping = seconds(args.get(2), Duration::ZERO)?;
    Ok((Path::new(path), recheck, ping))
}

/// The holder's whole life.
pub(super) fn hold(args: &[&OsStr]) -> io::Result<()> {
    let (path, every, ping) = words(args)?;
    let parent = helper::parent()?;
    let began = boot_now();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    if lock(&file, 0, false)? == Got::Contended {
        return helper::say(Report::Contended);
    }
    let inode = file.metadata()?;
    helper::say(Report::Held)?;
    if every.is_zero() {
        // Nothing is rechecked; the daemon takes it for a helper that only lives.
        wait_for(&parent);
        return Ok(());
    }
    helper::say_proved(began);
    let (ours, theirs) = UnixStream::pair()?;
    let mut checker = Command::new("/proc/self/exe")
        .arg(helper::HELPER_ARGUMENT)
        .arg("fcntl-recheck")
        .arg(path)
        .arg(every.as_secs_f64().to_string())
        .arg(ping.as_secs_f64().to_string())
        .arg(inode.dev().to_string())
        .arg(inode.ino().to_string())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn()?;
    let kept = keep(&parent, ours, ping);
    // It may hang in the kernel, so it is not waited for.
    let _ = checker.kill();
    kept
}

/// Passes proofs on until the parent, the checker or the file system is gone.
fn keep(parent: &OwnedFd, mut checker: UnixStream, ping: Duration) -> io::Result<()> {
    checker.set_nonblocking(true)?;
    let mut heard = Instant::now();
    let mut pinged = Instant::now();
    let mut pending = Vec::new();
    loop {
        let mut fds = [
            PollFd::new(parent, PollFlags::IN),
            PollFd::from_borrowed_fd(checker.as_fd(), PollFlags::IN),
        ];
        wait(&mut fds, PING);
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        let mut bytes = [0; 256];
        match checker.read(&mut bytes) {
            Ok(0) => return Err(io::Error::other("the recheck has failed; the lock is lost")),
            Ok(length) => {
                heard = Instant::now();
                pending.extend_from_slice(&bytes[..length]);
                take_proofs(&mut pending);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if pinged.elapsed() >= PING {
            pinged = Instant::now();
            // Full: then it does not read, and the time-out is what counts.
            let _ = checker.write(&[PING_BYTE]);
        }
        if !ping.is_zero() && heard.elapsed() > ping {
            return Err(io::Error::other(
                "the recheck hangs in the file system; the lock is given up",
            ));
        }
    }
}

/// Takes whole messages off the front: a ping, or a proof with its time.
fn take_proofs(pending: &mut Vec<u8>) {
    while let Some(first) = pending.first() {
        if *first != PROOF_BYTE {
            pending.remove(0);
            continue;
        }
        let Some(time) = pending.get(1..9) else {
            return;
        };
        let mut bytes = [0; 8];
        bytes.copy_from_slice(time);
        helper::say_proved(BootTime(u64::from_ne_bytes(bytes)));
        pending.drain(..9);
    }
}

fn wait(fds: &mut [PollFd<'_>], limit: Duration) {
    let limit = Timespec {
        tv_sec: limit.as_secs() as i64,
        tv_nsec: limit.subsec_nanos().into(),
    };
    // EINTR only makes the next look come early.
    let _ = poll(fds, Some(&limit));
}

fn wait_for(parent: &OwnedFd) {
    let mut fds = [PollFd::new(parent, PollFlags::IN)];
    while fds[0].revents().is_empty() {
        let _ = poll(&mut fds, None);
    }
}

/// The checker's whole life: rechecks on this thread, pings on another, so that a recheck that
/// waits a while for byte 1 is not taken for a dead checker, while one that hangs is: it stops
/// the pings when a recheck takes longer than the time-out.
pub(super) fn recheck(args: &[&OsStr]) -> io::Result<()> {
    let (path, every, ping) = words(args)?;
    let number = |index: usize| -> io::Result<u64> {
        args.get(index)
            .and_then(|text| text.to_str()?.parse().ok())
            .ok_or_else(|| io::Error::other("the inode is missing"))
    };
    let (device, inode) = (number(3)?, number(4)?);
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut proofs = socket.try_clone()?;
    let pings = std::sync::Arc::new(std::sync::Mutex::new(Instant::now()));
    let begun = std::sync::Arc::clone(&pings);
    std::thread::Builder::new()
        .name("pings".to_owned())
        .spawn(move || exchange_pings(socket, ping, &begun))?;
    loop {
        if let Ok(mut begun) = pings.lock() {
            *begun = Instant::now();
        }
        let began = boot_now();
        once(path, device, inode)?;
        let mut message = [PROOF_BYTE; 9];
        message[1..].copy_from_slice(&began.0.to_ne_bytes());
        proofs.write_all(&message)?;
        // A sleep is no hang, so the time-out counts from here, plus the pause.
        if let Ok(mut begun) = pings.lock() {
            *begun = Instant::now() + every;
        }
        std::thread::sleep(every);
    }
}

fn once(path: &Path, device: u64, inode: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let found = file.metadata()?;
    if (found.dev(), found.ino()) != (device, inode) {
        return Err(io::Error::other(format!(
            "{} is another file than the one that was locked",
            path.display()
        )));
    }
    lock(&file, 1, true).map(drop)
}

/// Ends the process when the holder is silent or gone.
fn exchange_pings(mut socket: UnixStream, ping: Duration, begun: &std::sync::Mutex<Instant>) -> ! {
    let _ = socket.set_read_timeout(Some(PING));
    let mut heard = Instant::now();
    let mut pinged = Instant::now();
    loop {
        let mut bytes = [0; 64];
        match socket.read(&mut bytes) {
            Ok(0) => break,
            Ok(_) => heard = Instant::now(),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock
                        | io::ErrorKind::TimedOut
                        | io::ErrorKind::Interrupted
                ) => {}
            Err(_) => break,
        }
        let hangs = begun
            .lock()
            .is_ok_and(|begun| !ping.is_zero() && begun.elapsed() > ping);
        if hangs || !ping.is_zero() && heard.elapsed() > ping {
            break;
        }
        if pinged.elapsed() >= PING {
            pinged = Instant::now();
            if socket.write_all(&[PING_BYTE]).is_err() {
                break;
            }
        }
    }
    std::process::exit(1)
}
