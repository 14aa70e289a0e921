//! What becomes of every tunable and every `ctdb.conf` key of CTDB (`design.md` section 5), in
//! one table: the facts stand with the definitions in [`super::tunables`] and [`super::schema`].

use std::fmt;

use serde::Serialize;

use super::schema;
use super::tunables::Tunable;

/// What a setting does here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase", tag = "fate", content = "text")]
pub enum Fate {
    /// Does what it does in CTDB.
    Honoured,
    /// Its purpose is served by something else, which is named. Accepted with one warning where
    /// it is set.
    Mapped(&'static str),
    /// There is nothing left for it to do, for the reason named. Accepted with one warning where
    /// it is set.
    Accepted(&'static str),
    /// CTDB itself made it obsolete; what it says today is named.
    Obsolete(&'static str),
    /// Not known to CTDB, which ignores it.
    Ours,
}

impl Fate {
    /// The explanation, empty for what needs none.
    pub fn text(self) -> &'static str {
        match self {
            Self::Honoured | Self::Ours => "",
            Self::Mapped(text) | Self::Accepted(text) | Self::Obsolete(text) => text,
        }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Honoured => f.write_str("honoured"),
            Self::Mapped(text) => write!(f, "mapped: {text}"),
            Self::Accepted(text) => write!(f, "accepted, without effect: {text}"),
            Self::Obsolete(text) => write!(f, "obsolete: {text}"),
            Self::Ours => f.write_str("ours"),
        }
    }
}

/// One row of the table.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// `tunable`, or the section of the key.
    pub place: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Default as CTDB has it, or ours.
    pub default: String,
    /// What it means.
    pub meaning: &'static str,
    /// What becomes of it.
    pub fate: Fate,
}

/// The whole table: keys in the order of the file, then tunables by name.
pub fn table() -> Vec<Row> {
    let keys = schema::KEYS.iter().map(|key| Row {
        place: key.section,
        name: key.name,
        default: key.default.describe().to_owned(),
        meaning: key.meaning,
        fate: key.fate,
    });
    let mut tunables: Vec<Tunable> = Tunable::ALL.to_vec();
    tunables.sort_by_key(|tunable| tunable.name().to_ascii_lowercase());
    let tunables = tunables.into_iter().map(|tunable| Row {
        place: "tunable",
        name: tunable.name(),
        default: tunable.default_value().to_string(),
        meaning: tunable.meaning(),
        fate: tunable.fate(),
    });
    keys.chain(tunables).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `spec/cluster.md` 1.5: name, default, whether obsolete (`*`).
    const TUNABLES: &str = "AllowClientDBAttach 1, AllowMixedVersions 0, AllowUnhealthyDBRead 0, \
        ControlTimeout 60, DatabaseHashSize 100001, DatabaseMaxDead 5, DBRecordCountWarn 100000, \
        DBRecordSizeWarn 10000000, DBSizeWarn 100000000, DeferredAttachTO 120, \
        DeferredRebalanceOnNodeAdd 300*, DeterministicIPs 0*, DisableIPFailover 0*, \
        ElectionTimeout 3, EnableBans 1, EventScriptTimeout 30, EventScriptUnhealthyOnTimeout 0*, \
        FetchCollapse 1, HopcountMakeSticky 50, IPAllocAlgorithm 2, KeepaliveInterval 5, \
        KeepaliveLimit 5, LCP2PublicIPs 1*, LockProcessesPerDB 200, LogLatencyMs 0, \
        MaxQueueDropMsg 1000000, MaxRedirectCount 3*, MonitorInterval 15, MonitorTimeoutCount 20, \
        NoIPFailback 0, NoIPHostOnAllDisabled 1*, NoIPTakeover 0, PullDBPreallocation 10485760, \
        QueueBufferSize 1024, RecBufferSizeLimit 1000000, RecdFailCount 10, RecdPingTimeout 60, \
        ReclockPingPeriod 60*, RecLockLatencyMs 1000, RecoverInterval 1, RecoverPDBBySeqNum 1*, \
        RecoverTimeout 30, RecoveryBanPeriod 300, RecoveryDropAllIPs 120, \
        RecoveryGracePeriod 120, RepackLimit 10000, RerecoveryTimeout 10, \
        Samba3AvoidDeadlocks 0*, SeqnumInterval 1000, StatHistoryInterval 1, StickyDuration 600, \
        StickyPindown 200, TakeoverTimeout 9, TDBMutexEnabled 1*, TickleUpdateInterval 20, \
        TraverseTimeout 20, VacuumFastPathCount 60, VacuumInterval 10, VacuumLimit 5000*, \
        VacuumMaxRunTime 120, VerboseMemoryNames 0, VerifyRecoveryLock 1*";

    /// `spec/cluster.md` 1.1.
    const KEYS: &str = "logging/location, logging/log level, cluster/transport, \
        cluster/node address, cluster/cluster lock, cluster/recovery lock, cluster/nodes list, \
        cluster/leader timeout, cluster/leader capability, database/volatile database directory, \
        database/persistent database directory, database/state database directory, \
        database/lock debug script, database/tdb mutexes, event/debug script, failover/disabled, \
        failover/shutdown failover timeout, failover/shutdown extra timeout, \
        legacy/realtime scheduling, legacy/lmaster capability, legacy/start as stopped, \
        legacy/start as disabled, legacy/script log level";

    /// All of the program that is no test.
    fn program(dir: &std::path::Path, text: &mut String) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("tests") || path.ends_with("tests.rs") {
                continue;
            }
            if path.is_dir() {
                program(&path, text);
            } else {
                let file = std::fs::read_to_string(&path).unwrap();
                text.push_str(file.split("#[cfg(test)]").next().unwrap());
            }
        }
    }

    #[test]
    fn a_tunable_that_is_honoured_is_read() {
        let mut text = String::new();
        program(
            std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")),
            &mut text,
        );
        let reads = |tunable: Tunable| {
            text.split(&format!("Tunable::{}", tunable.name()))
                .skip(1)
                .any(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
        };
        let honoured = Tunable::ALL
            .into_iter()
            .filter(|one| one.fate() == Fate::Honoured);
        let unread: Vec<_> = honoured
            .filter(|one| !reads(*one))
            .map(Tunable::name)
            .collect();
        assert!(unread.is_empty(), "{unread:?}");
        assert!(
            !reads(Tunable::VacuumLimit),
            "nobody reads what is obsolete"
        );
    }

    #[test]
    fn every_tunable_of_the_specification_is_in_the_table() {
        let table = table();
        let mut count = 0;
        for item in TUNABLES.split(',') {
            let (name, default) = item.trim().split_once(' ').unwrap();
            let obsolete = default.ends_with('*');
            let row = table
                .iter()
                .find(|row| row.place == "tunable" && row.name == name)
                .unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(row.default, default.trim_end_matches('*'), "{name}");
            assert_eq!(matches!(row.fate, Fate::Obsolete(_)), obsolete, "{name}");
            assert_ne!(row.fate, Fate::Ours, "{name}");
            count += 1;
        }
        assert_eq!(
            table.iter().filter(|row| row.place == "tunable").count(),
            count
        );
        assert_eq!(count, 62);
    }

    #[test]
    fn every_key_of_the_specification_is_in_the_table() {
        let table = table();
        let theirs = table
            .iter()
            .filter(|row| row.place != "tunable" && row.fate != Fate::Ours);
        let ours: Vec<String> = theirs
            .map(|row| format!("{}/{}", row.place, row.name))
            .collect();
        let spec: Vec<&str> = KEYS.split(',').map(str::trim).collect();
        assert_eq!(ours, spec);
    }

    #[test]
    fn what_has_no_effect_says_why() {
        for row in table() {
            let needs = !matches!(row.fate, Fate::Honoured | Fate::Ours);
            assert_eq!(needs, !row.fate.text().is_empty(), "{}", row.name);
            assert!(!row.meaning.is_empty(), "{}", row.name);
        }
    }
}
