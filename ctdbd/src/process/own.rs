//! The daemon as a process: background, pid file, priority.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::FlockOperation;
use thread_priority::{
    NormalThreadSchedulePolicy, RealtimeThreadSchedulePolicy, ThreadPriority, ThreadPriorityValue,
    ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
};

/// Exit code when another daemon holds the pid file (`spec/cluster.md` 2.13, step 5).
pub const EXIT_PID_FILE: u8 = 11;
/// Exit code when a socket cannot be opened (step 6).
pub const EXIT_SOCKET: u8 = 10;

/// What the background child writes when it serves.
const READY: &[u8] = b"ready\n";

/// The hidden argument of the background child.
pub const BACKGROUND_ARGUMENT: &str = "--background-child";

/// Starts this program again in the background and waits until it serves or has failed.
///
/// A second program image instead of `fork`: threads and locks never meet a fork, and it needs
/// no unsafe code.
pub fn into_background() -> io::Result<ExitCode> {
    let mut child = Command::new("/proc/self/exe")
        .args(std::env::args_os().skip(1))
        .arg(BACKGROUND_ARGUMENT)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let mut stdout = stdout.take(READY.len() as u64);
        stdout.read_to_end(&mut said)?;
    }
    if said == READY {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait()?;
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1).max(1)))
}

/// In the background child, first thing: a session of its own.
pub fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    std::env::set_current_dir("/")
}

/// In the background child, once it serves: lets the parent go and closes the terminal.
pub fn say_ready() -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(READY)?;
    stdout.flush()?;
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Why the pid file cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Another daemon runs.
    #[error("another daemon (pid {pid}) holds {path}; stop it first")]
    Held {
        /// The file.
        path: PathBuf,
        /// What stands in it.
        pid: String,
    },
    /// The file system.
    #[error("cannot write the pid file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The pid file, locked while the daemon runs.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    _file: File,
}

impl PidFile {
    /// Takes the file's lock and writes our number into it. The lock is the kind that CTDB
    /// takes, so that the two never run on one set of directories.
    pub fn take(path: &Path) -> Result<Self, PidFileError> {
        let failed = |source| PidFileError::Io {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)
            .map_err(failed)?;
        if rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut pid = String::new();
            let _ = file.take(32).read_to_string(&mut pid);
            let pid = pid.trim().to_owned();
            return Err(PidFileError::Held {
                path: path.to_owned(),
                pid,
            });
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self {
            path: path.to_owned(),
            _file: file,
        })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// `[priority] daemon`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Priority {
    /// As started.
    None,
    /// This nice level.
    Nice(i32),
    /// First in, first out, with this priority.
    Fifo(u8),
}

/// A real-time scheduling class.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RealTime {
    /// First in, first out.
    Fifo,
    /// Round robin.
    RoundRobin,
}

/// Puts the calling thread into a real-time class with a priority from 1 to 99.
pub fn set_real_time(class: RealTime, priority: u8) -> Result<(), String> {
    let policy = match class {
        RealTime::Fifo => RealtimeThreadSchedulePolicy::Fifo,
        RealTime::RoundRobin => RealtimeThreadSchedulePolicy::RoundRobin,
    };
    let value = ThreadPriorityValue::try_from(priority)
        .map_err(|_| "priority is not within 0 to 99".to_owned())?;
    set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Crossplatform(value),
        ThreadSchedulePolicy::Realtime(policy),
    )
    .map_err(|error| format!("{error:?}"))
}

/// The nice level that the daemon was started with: its children's.
static STARTED_WITH: OnceLock<i32> = OnceLock::new();

/// Gives the calling thread the scheduling that the daemon was started with. Children inherit
/// that of the thread which starts them, and they are to run like any other program.
pub(super) fn be_normal() {
    let Some(level) = STARTED_WITH.get() else {
        return;
    };
    // Lowering one's own priority is always allowed; if the kernel refuses, they run as we do.
    let _ = set_thread_priority_and_policy(
        thread_native_id(),
        ThreadPriority::Min,
        ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Other),
    );
    let _ = rustix::process::setpriority_process(None, *level);
}

/// Sets the daemon's priority; without CAP_SYS_NICE it goes on with a warning.
pub fn set_priority(priority: Priority) {
    // Of the calling thread, the first one (getpriority(2)); every later one inherits from it.
    if priority != Priority::None
        && let Ok(level) = rustix::process::getpriority_process(None)
    {
        let _ = STARTED_WITH.set(level);
    }
    let failed = match priority {
        Priority::None => None,
        Priority::Nice(level) => rustix::process::setpriority_process(None, level)
            .err()
            .map(|errno| errno.to_string()),
        Priority::Fifo(level) => set_real_time(RealTime::Fifo, level).err(),
    };
    if let Some(error) = failed {
        warn_once("[priority] daemon", &error);
    }
}

/// Says once in this life what the system refuses: in a container without capabilities it refuses
/// all of priority, scheduling class and locked memory, and the daemon runs without.
pub fn warn_once(what: &str, error: &str) {
    static SAID: AtomicBool = AtomicBool::new(false);
    if SAID.swap(true, Ordering::Relaxed) {
        tracing::debug!(what, error, "refused as well");
    } else {
        tracing::warn!(
            what,
            error,
            "priority, real-time scheduling or locked memory are refused (CAP_SYS_NICE, \
             CAP_IPC_LOCK); the daemon runs without, and may be late under load"
        );
    }
}

/// Takes all open files that the system allows: each client is one. Service managers give few and
/// allow many.
pub fn take_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, most)| setrlimit(Resource::RLIMIT_NOFILE, most, most));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_holds_the_pid_and_goes_with_the_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctdbd.pid");
        let file = PidFile::take(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim(), std::process::id().to_string());
        drop(file);
        assert!(!path.exists());
        assert!(matches!(
            PidFile::take(&dir.path().join("no/such/dir")),
            Err(PidFileError::Io { .. })
        ));
    }
}
