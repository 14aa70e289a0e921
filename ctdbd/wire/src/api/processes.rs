//! JSON of child processes: `/v1/processes` and below.

use serde::{Deserialize, Serialize};

/// A child process of the daemon.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ProcessView {
    /// Its number in the list.
    pub id: u64,
    /// Its process number; 0 while it is being started, or if it was not.
    pub pid: u32,
    /// Short name.
    pub name: String,
    /// What it is for: `event`, `lock`, `nodes`, `debug`, `operator`.
    pub owner: String,
    /// Program and arguments.
    pub command: Vec<String>,
    /// `starting`, `running`, `being looked at` (by a debug script), `ending`, `exited`, `killed`
    /// (by a signal that was not ours), `timed out`, `stopped`, `stuck`, or why it was not started.
    pub state: String,
    /// Of one that ended by itself.
    pub exit_code: Option<i32>,
    /// Of one that was killed.
    pub signal: Option<i32>,
    /// Seconds since 1970.
    pub started_at: f64,
    /// How long it has run, or ran.
    pub seconds: f64,
    /// How long it may run.
    pub limit_s: Option<f64>,
    /// Processor time, with the processes that it waited for.
    pub cpu_ms: u64,
    /// Resident memory, while it runs.
    pub memory_kb: Option<u64>,
    /// Head of its standard output, once it has ended; not in the list.
    pub stdout: String,
    /// Head of its standard error, likewise.
    pub stderr: String,
    /// Output beyond what was kept.
    pub dropped_bytes: u64,
}

/// `GET /v1/processes`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ProcessesView {
    /// Running ones first, then those that ended, the last first.
    pub processes: Vec<ProcessView>,
}
