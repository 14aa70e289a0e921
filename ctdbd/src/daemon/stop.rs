//! The orderly end (`spec/cluster.md` 2.15): hand over, fall silent, say so, take everything away.

use std::time::Duration;

use ctdb_wire::api::NodeVerb;
use ctdb_wire::ids::BootTime;

use super::Daemon;
use super::node::Node;
use super::settings::Settings;
use crate::clock::boot_now;
use crate::failover::{Job, Outcome};
use crate::liveness::Command;
use crate::process::Owner;

/// How long the end waits for the executor to take everything away; with thousands of
/// connections that is seconds.
const TAKE_AWAY: Duration = Duration::from_secs(20);
/// How long children may take to end: SIGTERM, their grace, SIGKILL.
const CHILDREN: Duration = Duration::from_secs(5);

impl Node {
    /// Begins the orderly end.
    pub(super) fn shutdown(&mut self, why: &str) {
        let now = boot_now();
        if self.parts.local.verb(now, NodeVerb::Shutdown, None, None) == Ok(true) {
            tracing::warn!(why, "asked to stop");
            self.parts.history.add(
                "node",
                Some(self.parts.me.get()),
                format!("stops: {why}"),
                &[],
                &[],
            );
        }
        self.local_changed();
    }
}

/// The handing over that comes before the end.
pub(super) struct Stopping {
    begun: BootTime,
    handed_over: Option<BootTime>,
}

impl Stopping {
    pub(super) fn begin() -> Self {
        Self {
            begun: boot_now(),
            handed_over: None,
        }
    }

    /// Whether the node may go: it holds nothing any more and the extra time has passed, or
    /// nobody has taken its addresses in time.
    pub(super) fn is_over(&mut self, node: &Node, settings: &Settings) -> bool {
        let now = boot_now();
        let coordinator = &node.parts.coordinator;
        let holds = coordinator.holder().holds().len();
        let has_right = coordinator
            .status()
            .is_some_and(|status| status.right_until.is_some());
        // The leader must have seen that this node leaves before "holds nothing" means something.
        let asked = now.since(self.begun) >= super::node::TICK;
        // A leader that leaves sees its last orders carried out, as far as anybody is there.
        let settled = coordinator
            .leader()
            .is_none_or(|leader| leader.settled() || leader.is_alone());
        if asked && (!has_right || holds == 0 && settled) {
            let since = *self.handed_over.get_or_insert(now);
            return now.since(since) >= settings.shutdown_extra_timeout;
        }
        let late = now.since(self.begun) >= settings.shutdown_failover_timeout;
        if late {
            tracing::warn!(
                holds,
                "nobody has taken the remaining addresses in time; stopping without"
            );
        }
        late
    }
}

impl Daemon {
    /// From here on nothing is decided any more.
    pub(super) async fn end(mut self) {
        let settle = self.settings.timing.settle();
        // R9: the coordinator has no say from now on, then the detector resigns and the right ends.
        self.node.tell_detector(Command::Eligible(false));
        self.node.tell_detector(Command::Leave);
        // R19: GONE only after the right has ended and what was queued has left.
        let until = boot_now() + self.settings.timing.promise();
        while self.node.parts.detector.status().right_until.is_some() && boot_now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.node.flush_unsaid();
        }
        tokio::time::sleep(settle).await;
        // Only now: whoever takes the lock must not meet a right of this node.
        if let Some(lock) = &self.node.parts.lock {
            lock.want(false);
        }
        self.node.parts.children.end(Owner::Lock, CHILDREN).await;
        if self.node.parts.detector.status().right_until.is_none() {
            self.node.tell_detector(Command::SayGone);
        }
        self.node.parts.clients.shutdown();
        self.node.parts.transport.shutdown().await;
        self.node.parts.executor.submit(Job::Close);
        let closed = async {
            while let Some(outcome) = self.outcomes.recv().await {
                if matches!(outcome, Outcome::Closed) {
                    return;
                }
                self.node.parts.executor.flush();
            }
        };
        if tokio::time::timeout(TAKE_AWAY, closed).await.is_err() {
            tracing::error!("not everything was taken away in time; the next daemon does it");
        }
        self.node.parts.children.shutdown(CHILDREN).await;
        self.event_socket.1.abort();
        // A left-over socket would only tell clients that nobody answers.
        let _ = std::fs::remove_file(&self.event_socket.0);
        self.api.shutdown(Duration::from_secs(1)).await;
        // Ends its mutex in order, so that the guard goes without a word.
        self.node.parts.detector.stop();
        if let Some(recorder) = self.node.parts.recorder.take() {
            recorder.finish();
        }
        if let Some(mut guard) = self.guard.take() {
            let _ = tokio::time::timeout(Duration::from_secs(1), guard.wait()).await;
        }
        tracing::warn!("Shutdown sequence complete, exiting.");
    }
}
