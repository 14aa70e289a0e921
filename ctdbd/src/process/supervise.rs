//! One child from its start to its end.

use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child as StdChild, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::spec::{Spec, Streams};

/// The pipes of a started child, on our side.
pub(super) struct Started {
    pub(super) process: Process,
    pub(super) stdin: Option<std::process::ChildStdin>,
    pub(super) stdout: PipeReader,
    /// `None` if both streams are in one.
    pub(super) stderr: Option<PipeReader>,
}

/// A running child, or one that has ended and was not taken note of yet.
pub(super) struct Process {
    child: StdChild,
    pidfd: OwnedFd,
    group: Pid,
}

/// What taking note of the end gives.
pub(super) struct Reaped {
    pub(super) status: ExitStatus,
    pub(super) user: Duration,
    pub(super) system: Duration,
}

/// Starts it, in a process group of its own. Blocks until the program file has been opened: on a
/// thread for blocking work only. The thread is given normal priority, which the child inherits.
pub(super) fn start(spec: &Spec) -> io::Result<Started> {
    super::own::be_normal();
    let Some((program, arguments)) = spec.argv.split_first() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no program"));
    };
    let (stdout, child_stdout) = io::pipe()?;
    let (stderr, child_stderr) = if spec.streams == Streams::Together {
        (None, child_stdout.try_clone()?)
    } else {
        let (reader, writer) = io::pipe()?;
        (Some(reader), writer)
    };
    let mut command = Command::new(program);
    if spec.clear_env {
        command.env_clear();
    }
    // Ours alone: a child's sd_notify would speak for the daemon.
    command
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_PID");
    command
        .args(arguments)
        .envs(spec.env.iter().map(|(name, value)| (name, value)))
        .stdin(if spec.stdin.is_empty() {
            Stdio::null()
        } else {
            Stdio::piped()
        })
        .stdout(child_stdout)
        .stderr(child_stderr)
        .process_group(0);
    if let Some(dir) = &spec.dir {
        command.current_dir(dir);
    }
    let mut child = command.spawn()?;
    // Our copies of the writing ends go with the command.
    drop(command);
    let handle = Pid::from_raw(child.id().cast_signed())
        .ok_or_else(|| io::Error::other("process number 0"))
        .and_then(|group| {
            let pidfd = pidfd_open(group, PidfdFlags::NONBLOCK)?;
            Ok((group, pidfd))
        });
    let (group, pidfd) = match handle {
        Ok(handle) => handle,
        Err(error) => {
            // Not reaped yet, so the number is still its own.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    };
    Ok(Started {
        stdin: child.stdin.take(),
        process: Process {
            child,
            pidfd,
            group,
        },
        stdout,
        stderr,
    })
}

impl Process {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A descriptor that tells of the end; it stays valid for as long as it is held.
    pub(super) fn watch(&self) -> io::Result<AsyncFd<OwnedFd>> {
        #[allow(
            deprecated,
            reason = "its successor is unsafe for types whose descriptor may change under tokio; \
                      an OwnedFd's does not, and this crate has no unsafe code"
        )]
        AsyncFd::with_interest(self.pidfd.try_clone()?, Interest::READABLE)
    }

    /// Signals the whole group. The child is not reaped as long as this value is there, so the
    /// number cannot have become another group's.
    pub(super) fn signal(&self, signal: Signal) {
        // ESRCH: all of them are gone.
        let _ = kill_process_group(self.group, signal);
    }

    /// Takes note of the end, after [`Process::watch`] has told of it.
    pub(super) fn reap(mut self) -> io::Result<Reaped> {
        // Every child of the daemon but the guard ends here, one at a time, so what the sum of
        // all ended children grows by is this child's.
        static REAPING: Mutex<()> = Mutex::new(());
        let _one = REAPING.lock().unwrap_or_else(PoisonError::into_inner);
        let before = usage();
        let status = self.child.wait()?;
        let after = usage();
        Ok(Reaped {
            status,
            user: after.0.saturating_sub(before.0),
            system: after.1.saturating_sub(before.1),
        })
    }
}

/// Processor time of all ended children, user and system.
fn usage() -> (Duration, Duration) {
    let micros = |micros: i64| Duration::from_micros(micros.unsigned_abs());
    getrusage(UsageWho::RUSAGE_CHILDREN).map_or((Duration::ZERO, Duration::ZERO), |usage| {
        (
            micros(usage.user_time().num_microseconds()),
            micros(usage.system_time().num_microseconds()),
        )
    })
}

/// Exit code, or signal.
pub(super) fn how(status: ExitStatus) -> super::How {
    match (status.code(), status.signal()) {
        (Some(code), _) => super::How::Exited(code),
        (None, signal) => super::How::Signal(signal.unwrap_or(0)),
    }
}

/// Processor time so far in milliseconds and memory in KiB of a running process, from
/// `/proc/PID/stat` (proc_pid_stat(5): utime 14, stime 15, rss 24).
pub(super) fn sample(pid: u32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    // The third field of the file is the first after the name.
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let page = rustix::param::page_size() as u64;
    Some((
        (field(14)? + field(15)?) * 1000 / ticks,
        field(24)? * page / 1024,
    ))
}
