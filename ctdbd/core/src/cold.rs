//! What a daemon that starts may believe of the list that it last acted under (R10, DESIGN.md P3).
//!
//! A cold cluster may skip the abstention after a start only if every node's list is the one that
//! it last acted under, so that no right under another list can still run. The shell looks at the
//! host; what follows from that is decided here, for the daemon and for the simulator.

use std::time::Duration;

use ctdb_wire::ids::{BootTime, NodeSet};

use crate::authority::{Timing, stretch};

/// The first daemon since a boot believes its own list if the boot is that long past: longer than
/// what a promise of any profile lasts.
pub const SINCE_BOOT: Duration = Duration::from_mins(1);

/// The record of the list that was acted under, as a daemon finds it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Record {
    /// There is none.
    Absent,
    /// It named this list, and is certainly gone now.
    Taken(NodeSet),
    /// There was, or is, something that says nothing for certain: it cannot be read, makes no
    /// sense, or cannot be removed, so that it could speak for another list later.
    Useless,
}

/// A host on which a daemon starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Host {
    /// The record of the list.
    pub record: Record,
    /// A daemon has been started since the host has booted.
    pub ran_since_boot: bool,
    /// The list of the nodes file.
    pub list: NodeSet,
}

/// For [`crate::authority::Config::acted_under`]: the list whose nodes may start without
/// abstaining, if all of them say that they have done nothing yet.
pub fn acted_under(now: BootTime, timing: &Timing, host: &Host) -> Option<NodeSet> {
    match host.record {
        Record::Taken(list) => Some(list),
        Record::Useless => None,
        // Nothing that a daemon promised here before the boot can still bind, and none has run
        // since. Without the record of another list this one may as well be the first.
        Record::Absent => {
            let past = SINCE_BOOT.max(stretch(timing.promise()));
            let nothing_binds = !host.ran_since_boot && now >= BootTime::ZERO + past;
            nothing_binds.then_some(host.list)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn believes(record: Record, ran_since_boot: bool, seconds: u64) -> Option<NodeSet> {
        let host = Host {
            record,
            ran_since_boot,
            list: NodeSet(0b111),
        };
        acted_under(
            BootTime::from_millis(seconds * 1000),
            &Timing::standard(),
            &host,
        )
    }

    #[test]
    fn a_record_speaks_for_its_list() {
        for ran in [false, true] {
            for seconds in [1, 3600] {
                let list = NodeSet(0b11);
                assert_eq!(believes(Record::Taken(list), ran, seconds), Some(list));
            }
        }
    }

    #[test]
    fn without_one_only_the_first_life_of_a_boot_long_past_believes_its_list() {
        let own = Some(NodeSet(0b111));
        assert_eq!(believes(Record::Absent, false, 60), own);
        assert_eq!(believes(Record::Absent, false, 59), None);
        assert_eq!(believes(Record::Absent, true, 3600), None);
    }

    #[test]
    fn what_cannot_be_read_or_removed_speaks_for_nothing() {
        for ran in [false, true] {
            assert_eq!(believes(Record::Useless, ran, 3600), None);
        }
    }

    #[test]
    fn a_slow_profile_waits_for_its_own_promises() {
        let long = Duration::from_secs(100);
        let timing = Timing::new(Duration::from_secs(20), long, Duration::from_millis(20));
        let host = Host {
            record: Record::Absent,
            ran_since_boot: false,
            list: NodeSet(1),
        };
        let at = |seconds: u64| acted_under(BootTime::from_millis(seconds * 1000), &timing, &host);
        assert_eq!((at(100), at(200)), (None, Some(NodeSet(1))));
    }
}
