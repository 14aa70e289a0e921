//! What is to be started, and what came of it.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tracing::Level;

/// Output that is kept of one child, per stream.
const OUTPUT: usize = 64 * 1024;
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// What a child is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// An event script.
    Event,
    /// Holds the cluster lock.
    Lock,
    /// The command that gives the nodes list.
    Nodes,
    /// A debug script that looks at another child before it is ended.
    Debug,
    /// Whatever an operator asked for.
    Operator,
}

impl Owner {
    /// As it is listed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Lock => "lock",
            Self::Nodes => "nodes",
            Self::Debug => "debug",
            Self::Operator => "operator",
        }
    }
}

/// Where a child's output goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Streams {
    /// Standard output and standard error in one, in the order of writing; kept as `stdout`.
    Together,
    /// Each for itself.
    Apart,
    /// Standard output is passed to the caller byte by byte ([`super::Child::bytes`]), standard
    /// error is logged and kept.
    Piped,
}

/// What happens to processes of the group that are left when the child itself has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leftovers {
    /// They go on: a script may start a service. They are ended only with a child that is
    /// stopped or out of time.
    Leave,
    /// They are killed.
    End,
}

/// Makes the program that looks at a child that is out of time, of the child's process number.
pub type DebugHook = Box<dyn FnOnce(u32) -> Spec + Send>;

/// A child that is to be started.
pub struct Spec {
    /// Short name, as listed and as the log's tag.
    pub name: String,
    /// What it is for.
    pub owner: Owner,
    /// Program and arguments; no shell.
    pub argv: Vec<OsString>,
    /// Added to the environment.
    pub env: Vec<(OsString, OsString)>,
    /// Whether the child gets nothing of the daemon's own environment.
    pub clear_env: bool,
    /// Working directory.
    pub dir: Option<PathBuf>,
    /// What it reads on standard input, then end of file.
    pub stdin: Vec<u8>,
    /// Time that it may take from its start; `None`: until it is stopped.
    pub limit: Option<Duration>,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Output.
    pub streams: Streams,
    /// Bytes of each stream that are kept; the rest is read and dropped.
    pub output_limit: usize,
    /// Level at which lines of its output are logged; `None`: they are not.
    pub log: Option<Level>,
    /// Processes that it leaves behind.
    pub leftovers: Leftovers,
    /// Runs when the child is out of time, before it is ended.
    pub debug: Option<DebugHook>,
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec")
            .field("name", &self.name)
            .field("owner", &self.owner)
            .field("argv", &self.argv)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl Spec {
    /// A program with its arguments; the rest as for a script that ends by itself.
    pub fn new(
        name: impl Into<String>,
        owner: Owner,
        argv: impl IntoIterator<Item = impl Into<OsString>>,
    ) -> Self {
        Self {
            name: name.into(),
            owner,
            argv: argv.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            clear_env: false,
            dir: None,
            stdin: Vec::new(),
            limit: None,
            grace: GRACE,
            streams: Streams::Apart,
            output_limit: OUTPUT,
            log: None,
            leftovers: Leftovers::Leave,
            debug: None,
        }
    }
}

/// How a child ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum How {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal, which was not ours.
    Signal(i32),
    /// It was out of time and was ended.
    TimedOut,
    /// It was ended because its owner, or the daemon, had no use for it any more.
    Stopped,
    /// It does not even go by SIGKILL: it waits in the kernel (a dead file system). It is given
    /// up, and its entry stays until it has gone.
    Stuck,
    /// It could not be started.
    NotStarted(String),
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Stopped => f.write_str("stopped"),
            Self::Stuck => f.write_str("stuck in the kernel"),
            Self::NotStarted(why) => write!(f, "not started: {why}"),
        }
    }
}

/// What came of a child.
#[derive(Clone, PartialEq, Debug)]
pub struct Ended {
    /// How.
    pub how: How,
    /// Its process number; 0 if it was not started.
    pub pid: u32,
    /// Head of its standard output (of both streams if they were together).
    pub stdout: Vec<u8>,
    /// Head of its standard error.
    pub stderr: Vec<u8>,
    /// Bytes of output that were dropped at the limit.
    pub dropped: u64,
    /// When it was started, seconds since 1970.
    pub started_at: f64,
    /// From its start to its end.
    pub took: Duration,
    /// Processor time in user mode, its own and that of the processes it waited for.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
}

impl Ended {
    /// Whether it ended by itself with code 0.
    pub fn is_success(&self) -> bool {
        self.how == How::Exited(0)
    }

    pub(super) fn not_started(why: String) -> Self {
        Self {
            how: How::NotStarted(why),
            pid: 0,
            stdout: Vec::new(),
            stderr: Vec::new(),
            dropped: 0,
            started_at: crate::clock::wall_now(),
            took: Duration::ZERO,
            user: Duration::ZERO,
            system: Duration::ZERO,
        }
    }
}
