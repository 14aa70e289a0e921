//! Ban credits (`spec/cluster.md` 2.9): what the leader counts against nodes that fail at what they
//! are asked for, until it is forgiven or the node is banned. Books of one term, like all of the
//! leader's: a new leader begins with a clean sheet.

use std::collections::BTreeMap;
use std::time::Duration;

use ctdb_wire::ids::{BootTime, Pnn};
use serde::{Deserialize, Serialize};

/// The tunables that concern bans. The default bans nobody.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Bans {
    /// `EnableBans`.
    pub enabled: bool,
    /// `RecoveryBanPeriod`, in seconds.
    pub period_s: u32,
    /// `RecoveryGracePeriod`: what is older is forgiven.
    pub grace: Duration,
}

/// What stands against a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Credit {
    /// How often it failed.
    pub count: u32,
    /// The last time.
    pub last: BootTime,
    /// At what, the last time.
    pub why: String,
}

/// The sheet.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Credits(BTreeMap<Pnn, Credit>);

/// How many credits ban a node of a list of `nodes`.
pub fn limit(nodes: usize) -> u32 {
    u32::try_from(2 * nodes).unwrap_or(u32::MAX)
}

impl Credits {
    /// `pnn` has failed.
    pub(super) fn blame(&mut self, now: BootTime, pnn: Pnn, why: String) {
        let count = self.0.get(&pnn).map_or(0, |credit| credit.count);
        let credit = Credit {
            count: count.saturating_add(1),
            last: now,
            why,
        };
        self.0.insert(pnn, credit);
    }

    /// Drops what is older than the grace period.
    pub(super) fn forgive(&mut self, now: BootTime, grace: Duration) {
        self.0.retain(|_, credit| now.since(credit.last) <= grace);
    }

    /// A ban settles them.
    pub(super) fn settle(&mut self, pnn: Pnn) -> Option<Credit> {
        self.0.remove(&pnn)
    }

    /// What stands against a node.
    pub fn of(&self, pnn: Pnn) -> Option<&Credit> {
        self.0.get(&pnn)
    }

    /// Whose credits have reached `limit`.
    pub(super) fn reached(&self, limit: u32) -> Option<Pnn> {
        let mut over = self.0.iter().filter(|(_, credit)| credit.count >= limit);
        over.next().map(|(pnn, _)| *pnn)
    }
}
