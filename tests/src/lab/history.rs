//! What the daemons themselves record of a failover (OPS-1), read while it happens.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use ctdb_wire::api::{HistoryRecord, HistoryView};

use super::timeline::Event;
use super::{Lab, Node, Stamp};

/// Time between two looks at a node's records.
const EVERY: Duration = Duration::from_millis(250);

impl Node {
    /// `ctdb cluster history`.
    pub fn history(&self) -> Result<Vec<HistoryRecord>> {
        let value = self.ctdb_json(&["cluster", "history"])?;
        let view: HistoryView =
            serde_json::from_value(value).context("reading `ctdb cluster history --json`")?;
        Ok(view.records)
    }
}

/// Sends the records of the given nodes from `from` on to `events`, until `stop` is set. A node
/// that does not answer is asked again.
pub fn follow(lab: &Lab, nodes: &[u32], from: Stamp, events: &Sender<Event>, stop: &AtomicBool) {
    thread::scope(|scope| {
        for pnn in nodes {
            scope.spawn(move || {
                let node = lab.node(*pnn);
                let mut newest = 0.0;
                loop {
                    // Read first: what was recorded before the stop is told.
                    let last = stop.load(Ordering::Relaxed);
                    for record in node.history().unwrap_or_default() {
                        let event = Event::from_history(*pnn, &record);
                        if record.at > newest && event.at >= from {
                            let _ = events.send(event);
                        }
                        newest = record.at.max(newest);
                    }
                    if last {
                        return;
                    }
                    thread::sleep(EVERY);
                }
            });
        }
    });
}
