//! When `monitor` runs, and what health follows from it (`spec/cluster.md` 4.6).

use std::time::Duration;

use ctdb_wire::ids::BootTime;
use serde::{Deserialize, Serialize};

use super::{Effect, Ending, Limits, RunId};

/// The first distance; then it doubles up to `MonitorInterval`.
const FIRST: Duration = Duration::from_secs(2);
/// The distance after health has changed.
const AFTER_CHANGE: Duration = Duration::from_secs(5);
/// A monitor that was given up for another event is made up for soon.
const AFTER_CANCEL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Monitor {
    next: Option<BootTime>,
    delay: Duration,
    running: Option<RunId>,
    timeouts: u32,
    /// As said last; a node is unhealthy until its first success.
    healthy: bool,
}

impl Default for Monitor {
    fn default() -> Self {
        Self {
            next: None,
            delay: FIRST,
            running: None,
            timeouts: 0,
            healthy: false,
        }
    }
}

impl Monitor {
    /// Services were started: the first run is due at once (design.md section 8).
    pub(super) fn first(&mut self, now: BootTime) {
        self.next = Some(now);
        self.delay = FIRST;
    }

    pub(super) fn began(&mut self, run: RunId) {
        self.running = Some(run);
    }

    pub(super) fn is(&self, run: RunId) -> bool {
        self.running == Some(run)
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Another event comes.
    pub(super) fn give_up(&mut self) -> Option<RunId> {
        self.running.take()
    }

    pub(super) fn cancelled(&mut self, now: BootTime) {
        self.next = Some(now + AFTER_CANCEL);
    }

    /// Whether a run is due; where the node is not fit for one, it is put off.
    pub(super) fn is_due(&mut self, now: BootTime, fit: bool, limits: &Limits) -> bool {
        let due = self.running.is_none() && self.next.is_some_and(|at| at <= now);
        if due && !fit {
            self.next = Some(now + self.delay.min(limits.monitor_interval));
        }
        due && fit
    }

    pub(super) fn ended(
        &mut self,
        now: BootTime,
        ending: &Ending,
        limits: &Limits,
        out: &mut Vec<Effect>,
    ) {
        self.running = None;
        let health = match ending {
            Ending::Done => {
                self.timeouts = 0;
                Some(Ok(()))
            }
            Ending::TimedOut => {
                self.timeouts = self.timeouts.saturating_add(1);
                (self.timeouts >= limits.monitor_timeouts).then(|| {
                    Err(format!(
                        "monitor timed out {} times in a row",
                        self.timeouts
                    ))
                })
            }
            Ending::Cancelled => {
                self.cancelled(now);
                return;
            }
            other => Some(Err(other.text())),
        };
        self.delay = (self.delay * 2).min(limits.monitor_interval);
        if let Some(health) = health {
            if health.is_ok() != self.healthy {
                self.healthy = health.is_ok();
                self.delay = AFTER_CHANGE.min(limits.monitor_interval);
                let word = if self.healthy { "healthy" } else { "unhealthy" };
                out.push(Effect::Health(health));
                out.push(Effect::Notify(word.into()));
            } else if health.is_err() {
                // The reason may be another one.
                out.push(Effect::Health(health));
            }
        }
        self.next = Some(now + self.delay);
    }
}
