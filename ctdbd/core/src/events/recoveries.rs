//! When `startrecovery` and `recovered` run at recoveries after the start (`spec/cluster.md` 4.4): in
//! pairs, one at a time; recoveries that follow each other while a pair has not got to `recovered` are
//! told of by that pair. They hold up nothing that clients see.

use std::time::Duration;

use ctdb_wire::ids::BootTime;
use serde::{Deserialize, Serialize};

use super::RunId;

/// The event at the begin of a recovery.
pub(super) const BEGIN: &str = "startrecovery";
/// The event at its end.
pub(super) const END: &str = "recovered";

/// What was recovered has stood still for this long before scripts hear that it is: databases and
/// nodes change one by one.
const CALM: Duration = Duration::from_millis(500);
/// Between one pair and the next, for what else waits.
const PAUSE: Duration = Duration::from_secs(1);

/// How a node's recoveries stand.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Recovery {
    /// Number that the leader and the set of active nodes give; `None` without right and leader.
    pub generation: Option<u32>,
    /// Where there are databases: the newest of their recoveries, by the leader's term and the number
    /// within it. They are recovered at every change of the nodes, too, when it is known that it is one.
    pub databases: Option<(u64, u32)>,
    /// Some database that was served is being recovered.
    pub under_way: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
enum Step {
    #[default]
    Idle,
    /// `startrecovery` runs.
    Begun(RunId),
    /// `recovered` is due when the recovery has ended.
    Between,
    /// `recovered` runs.
    Ending(RunId),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Recoveries {
    newest: Option<Recovery>,
    changed_at: Option<BootTime>,
    /// A recovery has begun of which no script has heard.
    owed: bool,
    step: Step,
    pause_until: Option<BootTime>,
}

impl Recoveries {
    /// How it stands now; `count`: the node is past its first recovery.
    pub(super) fn follow(&mut self, now: BootTime, new: Recovery, count: bool) {
        let Some(old) = &mut self.newest else {
            self.newest = Some(new);
            self.changed_at = Some(now);
            return;
        };
        let another = match (old.databases, new.databases) {
            (Some(before), Some(after)) => before < after,
            (None, None) => new
                .generation
                .is_some_and(|one| old.generation.is_some_and(|before| before != one)),
            // The first database is attached, or the last one detached.
            _ => false,
        };
        let begins = another || (new.under_way && !old.under_way);
        if begins || new.under_way != old.under_way {
            self.changed_at = Some(now);
        }
        old.generation = new.generation.or(old.generation);
        old.databases = new
            .databases
            .map(|one| old.databases.map_or(one, |before| before.max(one)));
        old.under_way = new.under_way;
        if begins && count && !matches!(self.step, Step::Begun(_) | Step::Between) {
            self.owed = true;
        }
    }

    /// A stopped or banned node takes no part: scripts hear of the recovery that brings it back.
    pub(super) fn forget(&mut self) {
        self.owed = false;
        if self.step == Step::Between {
            self.step = Step::Idle;
        }
    }

    /// The event that is to run now.
    pub(super) fn due(&self, now: BootTime) -> Option<&'static str> {
        match self.step {
            Step::Idle if self.owed && self.pause_until.is_none_or(|at| at <= now) => Some(BEGIN),
            Step::Between => {
                let over = self.newest.is_none_or(|newest| !newest.under_way);
                let calm = self.changed_at.is_none_or(|at| now.since(at) >= CALM);
                (over && calm).then_some(END)
            }
            _ => None,
        }
    }

    /// What was due runs.
    pub(super) fn began(&mut self, run: RunId) {
        if self.step == Step::Between {
            self.step = Step::Ending(run);
        } else {
            self.owed = false;
            self.step = Step::Begun(run);
        }
    }

    /// A run ended, which may be one of these; whether it was the last of a pair.
    pub(super) fn ended(&mut self, now: BootTime, run: RunId) -> bool {
        if self.step == Step::Begun(run) {
            self.step = Step::Between;
        } else if self.step == Step::Ending(run) {
            self.step = Step::Idle;
            self.pause_until = Some(now + PAUSE);
            return true;
        }
        false
    }
}
