//! Tunables: their table, their files, their values (`spec/cluster.md` 1.5,
//! `spec/client-protocol.md` 4.8).

use std::path::{Path, PathBuf};
use std::time::Duration;

use ctdb_core::allocation::{Algorithm, Bans, Policy};

use super::legacy::Fate::{self, Accepted, Honoured, Mapped, Obsolete};
use super::report::{Report, Severity};
use super::settings::Origin;

/// Longest file of tunables, in bytes.
const MAX_FILE: u64 = 64 * 1024;
/// Most files that are read from `tunables.d`.
const MAX_FILES: usize = 100;

struct Row {
    name: &'static str,
    default: u32,
    fate: Fate,
    meaning: &'static str,
}

macro_rules! tunables {
    ($($name:ident = $default:literal, $fate:expr, $meaning:literal;)*) => {
        /// Every tunable that CTDB ever had, in the order of the wire.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Tunable {
            $(#[doc = $meaning] $name,)*
        }

        impl Tunable {
            /// In the order of the wire.
            pub const ALL: [Self; COUNT] = [$(Self::$name,)*];
        }

        const TABLE: [Row; COUNT] = [$(Row {
            name: stringify!($name),
            default: $default,
            fate: $fate,
            meaning: $meaning,
        },)*];

        /// How many there are.
        pub const COUNT: usize = [$(stringify!($name),)*].len();
    };
}

const PROFILE: &str = "the timing is that of `[lease] profile`";
const NO_RECOVERY_DAEMON: &str = "there is no recovery daemon; the right to serve ends when the \
     daemon's loops have not moved for 5 s";
const NEVER_READ: &str = "CTDB did not read it either";

tunables! {
    MaxRedirectCount = 3, Obsolete("remove it"), "Redirects of a call before it goes to the lmaster.";
    SeqnumInterval = 1000, Honoured, "ms over which updates of a sequence number are batched.";
    ControlTimeout = 60, Honoured, "Seconds that a control sent by the daemon may take.";
    TraverseTimeout = 20, Honoured, "Seconds that a traverse may take.";
    KeepaliveInterval = 5, Mapped(PROFILE), "Seconds between keepalives.";
    KeepaliveLimit = 5, Mapped(PROFILE), "Keepalives that may be missed.";
    RecoverTimeout = 30,
        Accepted("a step of a recovery is repeated each second and begun anew after 30 s"),
        "Seconds that a step of recovery may take.";
    RecoverInterval = 1, Accepted("recovery begins when its cause does, not at a period"),
        "Seconds between checks of the recovery daemon.";
    ElectionTimeout = 3, Mapped(PROFILE), "Seconds of quiet that end an election.";
    TakeoverTimeout = 9,
        Mapped("a node that carries out no orders for 2 s is passed over; scripts have EventScriptTimeout"),
        "Seconds; the stages of a takeover share three times this.";
    MonitorInterval = 15, Honoured, "Longest distance of monitor events in seconds.";
    TickleUpdateInterval = 20, Mapped("connections are always replicated within 100 ms"),
        "Seconds between updates of connection lists.";
    EventScriptTimeout = 30, Honoured, "Seconds for one event, all scripts together.";
    MonitorTimeoutCount = 20, Honoured, "Consecutive time-outs of monitor that are tolerated.";
    EventScriptUnhealthyOnTimeout = 0, Obsolete("see MonitorTimeoutCount"),
        "A monitor time-out makes the node unhealthy.";
    RecoveryGracePeriod = 120, Honoured, "Seconds after which misbehaviour is forgiven.";
    RecoveryBanPeriod = 300, Honoured, "Seconds of an automatic ban.";
    DatabaseHashSize = 100_001, Honoured, "Hash chains of a new database.";
    DatabaseMaxDead = 5, Honoured, "Dead records kept per hash chain.";
    RerecoveryTimeout = 10, Accepted("recovery begins when its cause does"),
        "Seconds without a new recovery after one succeeded.";
    EnableBans = 1, Honoured, "0: no node is ever banned.";
    DeterministicIPs = 0, Obsolete("use IPAllocAlgorithm=0"), "Deterministic allocation.";
    ReclockPingPeriod = 60, Obsolete("remove it"), "Seconds between checks of the lock.";
    NoIPFailback = 0, Honoured, "1: addresses are not rebalanced to nodes that come back.";
    DisableIPFailover = 0, Obsolete("use `[failover] disabled` in ctdb.conf"),
        "No failover of addresses.";
    VerboseMemoryNames = 0, Accepted(NEVER_READ), "Names in memory reports.";
    RecdPingTimeout = 60, Mapped(NO_RECOVERY_DAEMON), "Seconds without a sign of life of the recovery daemon.";
    RecdFailCount = 10, Mapped(NO_RECOVERY_DAEMON), "How often that may happen.";
    LogLatencyMs = 0, Honoured, "Slower database operations are logged; ms, 0 is off.";
    RecLockLatencyMs = 1000, Accepted("the time is logged each time that the cluster lock is taken"),
        "Slower taking of the cluster lock is logged; ms, 0 is off.";
    RecoveryDropAllIPs = 120,
        Mapped("a node without the right to serve is silent at once (`[lease] profile`)"),
        "Seconds in recovery after which all addresses are released.";
    VerifyRecoveryLock = 1, Obsolete("remove it"), "The lock is checked at recovery.";
    VacuumInterval = 10, Honoured, "Seconds between vacuum runs.";
    VacuumMaxRunTime = 120, Honoured, "Seconds that a vacuum run may take.";
    RepackLimit = 10_000,
        Accepted("a file is repacked by the commit that grows it and finds scattered free space"),
        "Free-list length that triggers a repack.";
    VacuumLimit = 5000, Obsolete("remove it"), "Deleted records that trigger vacuuming.";
    MaxQueueDropMsg = 1_000_000, Honoured, "Queue length at which a client is disconnected.";
    AllowUnhealthyDBRead = 0, Honoured, "1: traverses may read unhealthy databases.";
    StatHistoryInterval = 1, Honoured, "Seconds between samples of `ctdb stats`.";
    DeferredAttachTO = 120, Honoured, "Seconds that an attach waits while databases are frozen.";
    VacuumFastPathCount = 60, Honoured, "Fast vacuum runs between full scans.";
    LCP2PublicIPs = 1, Obsolete("use IPAllocAlgorithm=2, the default"), "LCP2 allocation.";
    AllowClientDBAttach = 1, Honoured, "0: local clients may not attach databases.";
    RecoverPDBBySeqNum = 1, Obsolete("persistent databases always recover by sequence number"),
        "Recovery of persistent databases by sequence number.";
    DeferredRebalanceOnNodeAdd = 300, Obsolete("remove it"), "Seconds before a rebalance.";
    FetchCollapse = 1, Honoured, "Concurrent fetches of one record are merged.";
    HopcountMakeSticky = 50, Honoured, "Hops that make a record of a sticky database sticky.";
    StickyDuration = 600, Honoured, "Seconds that a record stays sticky.";
    StickyPindown = 200, Honoured, "ms that a sticky record stays after a migration.";
    NoIPTakeover = 0, Honoured, "1: addresses stay or become unhosted, they never move.";
    DBRecordCountWarn = 100_000, Accepted(NEVER_READ), "Number of records worth a warning.";
    DBRecordSizeWarn = 10_000_000, Accepted(NEVER_READ), "Size of a record worth a warning.";
    DBSizeWarn = 100_000_000, Accepted(NEVER_READ), "Size of a database worth a warning.";
    PullDBPreallocation = 10_485_760, Accepted(NEVER_READ), "Preallocation for pulls.";
    NoIPHostOnAllDisabled = 1, Obsolete("unhealthy and disabled nodes never host addresses"),
        "Nobody hosts addresses when all nodes are disabled.";
    Samba3AvoidDeadlocks = 0, Obsolete("remove it"), "Lock order of old Samba releases.";
    TDBMutexEnabled = 1, Obsolete("use `[database] tdb mutexes` in ctdb.conf"), "Robust mutexes.";
    LockProcessesPerDB = 200, Accepted("records are locked without helper processes"),
        "Lock helper processes per database.";
    RecBufferSizeLimit = 1_000_000, Accepted("records travel in frames of a bounded size of their own"),
        "Bytes of records sent at once in recovery.";
    QueueBufferSize = 1024, Accepted("reads from clients take what there is"),
        "Bytes read from a client at once.";
    IPAllocAlgorithm = 2, Honoured, "0 deterministic, 1 non-deterministic, 2 LCP2.";
    AllowMixedVersions = 0, Mapped("releases N and N+1 run together, by negotiation"),
        "1: other versions are not refused.";
}

impl Tunable {
    const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// Name, with CTDB's capitals.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// Default value.
    pub const fn default_value(self) -> u32 {
        self.row().default
    }

    /// What it means, with its unit.
    pub const fn meaning(self) -> &'static str {
        self.row().meaning
    }

    /// What becomes of it.
    pub const fn fate(self) -> Fate {
        self.row().fate
    }

    /// Obsolete: not listed, and setting it says so.
    pub const fn is_obsolete(self) -> bool {
        matches!(self.row().fate, Obsolete(_))
    }

    /// Those that are not obsolete in the order of `ctdb listvars` (`spec/cli.md` 6.8): that of the
    /// wire, but for one.
    pub fn listed() -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(|tunable| !tunable.is_obsolete() && *tunable != Self::VacuumFastPathCount)
            .flat_map(|tunable| {
                let behind = (tunable == Self::RepackLimit).then_some(Self::VacuumFastPathCount);
                std::iter::once(tunable).chain(behind)
            })
    }

    /// By name, without regard to case.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|tunable| tunable.name().eq_ignore_ascii_case(name))
    }

    /// What an operator is told who sets it, if it will not do what it did in CTDB.
    pub fn advice(self) -> Option<String> {
        let name = self.name();
        match self.fate() {
            Honoured | Fate::Ours => None,
            Mapped(text) | Accepted(text) => Some(format!("{name} has no effect: {text}")),
            Obsolete(text) => Some(format!("{name} is obsolete: {text}")),
        }
    }
}

/// The values of all tunables on one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tunables {
    values: [u32; COUNT],
    /// Where each value comes from.
    origins: [Origin; COUNT],
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            values: Tunable::ALL.map(Tunable::default_value),
            origins: [const { Origin::Default }; COUNT],
        }
    }
}

impl Tunables {
    /// A value.
    pub const fn get(&self, tunable: Tunable) -> u32 {
        self.values[tunable as usize]
    }

    /// A value that is a switch.
    pub const fn on(&self, tunable: Tunable) -> bool {
        self.get(tunable) != 0
    }

    /// A value that counts seconds.
    pub const fn seconds(&self, tunable: Tunable) -> Duration {
        Duration::from_secs(self.get(tunable) as u64)
    }

    /// A value that counts milliseconds.
    pub const fn millis(&self, tunable: Tunable) -> Duration {
        Duration::from_millis(self.get(tunable) as u64)
    }

    /// `ctdb setvar`: no range check, as in CTDB.
    pub fn set(&mut self, tunable: Tunable, value: u32) {
        self.set_from(tunable, value, Origin::Runtime);
    }

    fn set_from(&mut self, tunable: Tunable, value: u32, origin: Origin) {
        self.values[tunable as usize] = value;
        self.origins[tunable as usize] = origin;
    }

    /// Where a value comes from.
    pub const fn origin(&self, tunable: Tunable) -> &Origin {
        &self.origins[tunable as usize]
    }

    /// All values in the order of the wire (GET_ALL_TUNABLES).
    pub const fn wire(&self) -> &[u32; COUNT] {
        &self.values
    }

    /// What allocation wants to know; an unknown algorithm is LCP2.
    pub const fn policy(&self) -> Policy {
        Policy {
            algorithm: match self.get(Tunable::IPAllocAlgorithm) {
                0 => Algorithm::Deterministic,
                1 => Algorithm::NonDeterministic,
                _ => Algorithm::LowCost,
            },
            no_failback: self.on(Tunable::NoIPFailback),
            no_takeover: self.on(Tunable::NoIPTakeover),
            bans: Bans {
                enabled: self.on(Tunable::EnableBans),
                period_s: self.get(Tunable::RecoveryBanPeriod),
                grace: self.seconds(Tunable::RecoveryGracePeriod),
            },
        }
    }

    /// Reads `ctdb.tunables` and then `tunables.d/*.tunables`. Mistakes have the severity
    /// `mistake`; the lines without mistakes count in any case.
    pub fn load(file: &Path, dir: &Path, mistake: Severity, report: &mut Report) -> Self {
        let mut tunables = Self::default();
        let mut files = vec![file.to_owned()];
        files.extend(files_in(dir, report));
        for file in files {
            let text = match super::read_text(&file, MAX_FILE) {
                Ok(Some(text)) => text,
                Ok(None) => continue,
                Err(error) => {
                    report.add(mistake, &file, None, error, "make it a readable text file");
                    continue;
                }
            };
            tunables.read(&text, &file, mistake, report);
        }
        tunables.give_advice(report);
        tunables
    }

    fn read(&mut self, text: &str, file: &Path, mistake: Severity, report: &mut Report) {
        for (raw, line) in text.split('\n').zip(1_u32..) {
            // Comments are whole lines only: a value is the last thing on its line.
            let trimmed = raw.trim_ascii();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let mut problem =
                |what: String, hint: &str| report.add(mistake, file, Some(line), what, hint);
            let Some((name, value)) = trimmed.split_once('=') else {
                problem(format!("'{trimmed}' is not NAME=VALUE"), "write NAME=VALUE");
                continue;
            };
            let (name, value) = (name.trim_ascii(), value.trim_ascii());
            let Some(tunable) = Tunable::by_name(name) else {
                problem(
                    format!("there is no tunable '{name}'"),
                    "see `ctdb listvars` for their names",
                );
                continue;
            };
            if let Obsolete(instead) = tunable.fate() {
                problem(
                    format!("the tunable {} is obsolete", tunable.name()),
                    instead,
                );
            } else if let Some(number) = super::c_integer(value) {
                let origin = Origin::File(file.to_owned(), line);
                self.set_from(tunable, number, origin);
            } else {
                problem(
                    format!("'{value}' is not a value for {}", tunable.name()),
                    "write one number from 0 to 4294967295 and nothing after it",
                );
            }
        }
    }

    fn give_advice(&self, report: &mut Report) {
        for tunable in Tunable::ALL {
            let Origin::File(file, line) = self.origin(tunable) else {
                continue;
            };
            if self.get(tunable) == tunable.default_value() {
                continue;
            }
            if let Some(advice) = tunable.advice() {
                report.warning(file, Some(*line), advice, "remove the line");
            }
        }
    }
}

/// `*.tunables` in the directory, by name; none if there is no directory.
fn files_in(dir: &Path, report: &mut Report) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            if error.kind() != std::io::ErrorKind::NotFound {
                report.warning(
                    dir,
                    None,
                    format!("cannot be read: {error}"),
                    "see its mode",
                );
            }
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "tunables")
        })
        .take(MAX_FILES + 1)
        .collect();
    if files.len() > MAX_FILES {
        report.warning(
            dir,
            None,
            format!("there are more than {MAX_FILES} files; not all are read"),
            "put the tunables into fewer files",
        );
        files.truncate(MAX_FILES);
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> (Tunables, Vec<String>) {
        let mut report = Report::default();
        let mut tunables = Tunables::default();
        tunables.read(text, Path::new("t"), Severity::Warning, &mut report);
        tunables.give_advice(&mut report);
        (tunables, report.lines().collect())
    }

    #[test]
    fn stand_where_the_wire_has_them() {
        for (tunable, offset) in [
            (Tunable::MaxRedirectCount, 0),
            (Tunable::MonitorInterval, 40),
            (Tunable::DatabaseHashSize, 68),
            (Tunable::NoIPFailback, 92),
            (Tunable::RecoveryDropAllIPs, 120),
            (Tunable::VacuumLimit, 140),
            (Tunable::LCP2PublicIPs, 164),
            (Tunable::NoIPTakeover, 196),
            (Tunable::RecBufferSizeLimit, 232),
            (Tunable::AllowMixedVersions, 244),
        ] {
            assert_eq!(tunable as usize * 4, offset, "{}", tunable.name());
        }
        assert_eq!(COUNT, 62);
    }

    #[test]
    fn lines() {
        let (tunables, problems) = read(
            "# comment\n\n  monitorinterval = 7\nControlTimeout=0x10\nTraverseTimeout=010 \n\
             EnableBans=0",
        );
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(tunables.get(Tunable::MonitorInterval), 7);
        assert_eq!(tunables.get(Tunable::ControlTimeout), 16);
        assert_eq!(tunables.get(Tunable::TraverseTimeout), 8);
        assert!(!tunables.on(Tunable::EnableBans));
        assert_eq!(
            tunables.origin(Tunable::EnableBans),
            &Origin::File("t".into(), 6)
        );
        assert_eq!(
            tunables.origin(Tunable::EventScriptTimeout),
            &Origin::Default
        );
    }

    #[test]
    fn all_mistakes_are_told_and_the_rest_counts() {
        let (tunables, problems) = read(
            "MutexEnabled=0\nVacuumLimit=3\nMonitorInterval=x\nControlTimeout=\n[tunables]\n\
             ControlTimeout=5 6\nControlTimeout=-1\nTraverseTimeout=9\n",
        );
        let starts: Vec<&str> = problems.iter().map(|p| p.split_at(4).0).collect();
        assert_eq!(
            starts,
            ["t:1:", "t:2:", "t:3:", "t:4:", "t:5:", "t:6:", "t:7:"]
        );
        assert_eq!(tunables.get(Tunable::TraverseTimeout), 9);
        assert_eq!(tunables.get(Tunable::ControlTimeout), 60);
    }

    #[test]
    fn what_has_no_effect_warns_once_and_only_if_changed() {
        let (_, problems) = read("KeepaliveInterval=1\nKeepaliveInterval=2\nKeepaliveLimit=5\n");
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("t:2: warning: KeepaliveInterval has no effect"));
    }

    #[test]
    fn files_are_read_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let more = dir.path().join("tunables.d");
        std::fs::create_dir(&more).unwrap();
        std::fs::write(
            dir.path().join("ctdb.tunables"),
            "MonitorInterval=1\nNoIPFailback=1\n",
        )
        .unwrap();
        std::fs::write(more.join("b.tunables"), "MonitorInterval=3\n").unwrap();
        std::fs::write(more.join("a.tunables"), "MonitorInterval=2\n").unwrap();
        std::fs::write(more.join("c.conf"), "MonitorInterval=4\n").unwrap();
        let mut report = Report::default();
        let tunables = Tunables::load(
            &dir.path().join("ctdb.tunables"),
            &more,
            Severity::Warning,
            &mut report,
        );
        assert_eq!(tunables.get(Tunable::MonitorInterval), 3);
        assert!(tunables.policy().no_failback);
        assert_eq!(report, Report::default());
    }

    #[test]
    fn an_unknown_algorithm_is_the_default() {
        let mut tunables = Tunables::default();
        tunables.set(Tunable::IPAllocAlgorithm, 7);
        assert_eq!(tunables.policy().algorithm, Algorithm::LowCost);
        tunables.set(Tunable::IPAllocAlgorithm, 0);
        assert_eq!(tunables.policy().algorithm, Algorithm::Deterministic);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([a-zA-Z0-9=# \t\\[x-]|\n|.){0,80}") {
            read(&text);
        }
    }
}
