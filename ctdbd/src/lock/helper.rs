//! The helpers that hold a cluster lock: this program, started again.
//!
//! A helper speaks CTDB's protocol (`spec/cluster.md` 2.8): one digit on standard output, then it
//! runs until it is killed or the lock is lost. Ours add one line per recheck, `r` and the
//! boot-time clock in nanoseconds *before* the recheck began: only a recheck that began later
//! proves that the lock was held later (`authority.md` R20, R22).

use std::ffi::{OsStr, OsString};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::ExitCode;

use ctdb_wire::ids::BootTime;
use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};

use super::{etcd, fcntl, rados};

/// The hidden argument; followed by the kind and its arguments.
pub const HELPER_ARGUMENT: &str = "--lock-helper";

/// CTDB's name of the helper for files; the program is that helper when it is called so.
const FCNTL_NAME: &[u8] = b"ctdb_mutex_fcntl_helper";

/// What a helper reports, as its digit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Report {
    /// The lock is held.
    Held,
    /// Somebody else holds it.
    Contended,
    /// It took too long.
    Late,
    /// Anything else; the text goes to standard error.
    Failed,
}

impl Report {
    /// The digit.
    pub const fn digit(self) -> u8 {
        match self {
            Self::Held => b'0',
            Self::Contended => b'1',
            Self::Late => b'2',
            Self::Failed => b'3',
        }
    }

    /// What a byte means; all but four digits are errors.
    pub const fn of(byte: u8) -> Self {
        match byte {
            b'0' => Self::Held,
            b'1' => Self::Contended,
            b'2' => Self::Late,
            _ => Self::Failed,
        }
    }
}

/// If this process shall be a helper: runs it to its end.
pub fn run(args: &[OsString]) -> Option<ExitCode> {
    let (program, rest) = args.split_first()?;
    let name = Path::new(program).file_name().map(OsStr::as_bytes);
    let rest: Vec<&OsStr> = rest.iter().map(OsString::as_os_str).collect();
    let ran = match &rest[..] {
        arguments if name == Some(FCNTL_NAME) => fcntl::hold(arguments),
        [first, kind, arguments @ ..] if *first == HELPER_ARGUMENT => match kind.to_str() {
            Some("fcntl") => fcntl::hold(arguments),
            Some("fcntl-recheck") => fcntl::recheck(arguments),
            Some("etcd") => etcd::hold(arguments),
            Some("rados") => rados::hold(arguments),
            _ => Err(io::Error::other(
                "kinds of lock helpers are fcntl, etcd and rados",
            )),
        },
        _ => return None,
    };
    Some(match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cluster lock: {error}");
            // Ignored by whoever has already read a digit.
            let _ = say(Report::Failed);
            ExitCode::FAILURE
        }
    })
}

/// Writes the digit. Standard output never blocks from here on: a daemon that is stopped does
/// not read, and the lock must not hang on it.
pub(super) fn say(report: Report) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(&[report.digit()])?;
    out.flush()?;
    let flags = rustix::fs::fcntl_getfl(&out)?;
    rustix::fs::fcntl_setfl(&out, flags | rustix::fs::OFlags::NONBLOCK)?;
    Ok(())
}

/// Tells of a recheck that began at `began` and proved the lock. Dropped if nobody reads.
pub(super) fn say_proved(began: BootTime) {
    let line = format!("r{}\n", began.0);
    let _ = rustix::io::write(io::stdout(), line.as_bytes());
}

/// A descriptor that becomes readable when the parent ends: a helper whose daemon has died lets
/// go of the lock at once.
pub(super) fn parent() -> io::Result<OwnedFd> {
    let gone = || io::Error::other("the daemon that started this helper has gone");
    let parent = getppid().filter(|pid| *pid != Pid::INIT).ok_or_else(gone)?;
    let watched = pidfd_open(parent, PidfdFlags::empty())?;
    // It may have ended between the two, and its number may be another's now.
    if getppid() == Some(parent) {
        Ok(watched)
    } else {
        Err(gone())
    }
}
