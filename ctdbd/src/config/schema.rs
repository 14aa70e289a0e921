//! Every key of `ctdb.conf`: CTDB's (`spec/cluster.md` 1.1) and ours (`design.md` section 5).

use super::legacy::Fate::{self, Accepted, Honoured, Mapped, Ours};
use super::paths::Paths;

/// Where a key's default comes from.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// No value.
    Unset,
    /// This text.
    Text(&'static str),
    /// From the directory layout; the text describes it.
    Path(&'static str, fn(&Paths) -> String),
    /// From other settings; the text describes it.
    Computed(&'static str),
}

impl Default {
    /// For documentation.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Unset => "",
            Self::Text(text) | Self::Path(text, _) | Self::Computed(text) => text,
        }
    }

    /// The value as it would stand in the file.
    pub fn value(self, paths: &Paths) -> Option<String> {
        match self {
            Self::Unset | Self::Computed(_) => None,
            Self::Text(text) => Some(text.to_owned()),
            Self::Path(_, value) => Some(value(paths)),
        }
    }
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Section, in lower case.
    pub section: &'static str,
    /// Name.
    pub name: &'static str,
    /// Default.
    pub default: Default,
    /// What becomes of it.
    pub fate: Fate,
    /// What it means.
    pub meaning: &'static str,
}

const fn key(
    section: &'static str,
    name: &'static str,
    default: Default,
    fate: Fate,
    meaning: &'static str,
) -> Key {
    Key {
        section,
        name,
        default,
        fate,
        meaning,
    }
}

use self::Default::{Computed, Path, Text, Unset};

/// In the order of a dump: sections together.
pub const KEYS: &[Key] = &[
    key(
        "logging",
        "location",
        Path("file:/var/log/ctdb/log.ctdb", |paths| {
            format!("file:{}", paths.log.display())
        }),
        Honoured,
        "file:PATH, file: (standard error), syslog, syslog:nonblocking, syslog:udp, \
         syslog:udp-rfc5424",
    ),
    key(
        "logging",
        "log level",
        Text("NOTICE"),
        Honoured,
        "ERROR, WARNING, NOTICE, INFO, DEBUG",
    ),
    key(
        "log",
        "record",
        Unset,
        Ours,
        "File to record all inputs of the deciding core in, for ctdb debug replay. A new one is \
         begun at 64 MiB; three older ones are kept as FILE.1 to FILE.3",
    ),
    key("cluster", "transport", Text("tcp"), Honoured, "Only tcp"),
    key(
        "cluster",
        "node address",
        Unset,
        Honoured,
        "Own private address, if not found by itself",
    ),
    key(
        "cluster",
        "cluster lock",
        Unset,
        Honoured,
        "File, or !COMMAND of a lock helper (LOCKS.md)",
    ),
    key(
        "cluster",
        "recovery lock",
        Unset,
        Mapped("write `cluster lock` instead; used if that is not set"),
        "Former name of cluster lock",
    ),
    key(
        "cluster",
        "nodes list",
        Path("/etc/ctdb/nodes", |paths| paths.nodes.display().to_string()),
        Honoured,
        "File, or !COMMAND that writes the list",
    ),
    key(
        "cluster",
        "leader timeout",
        Text("5"),
        Mapped("the timing is that of `[lease] profile`"),
        "Seconds without leader before an election",
    ),
    key(
        "cluster",
        "leader capability",
        Text("true"),
        Honoured,
        "May this node become leader",
    ),
    key(
        "cluster",
        "name",
        Unset,
        Ours,
        "Name of the cluster; nodes of other clusters are refused",
    ),
    key(
        "cluster",
        "authority",
        Computed("lock if a cluster lock is set, else majority"),
        Ours,
        "lock, majority or both: what gives a partition the right to serve",
    ),
    key(
        "cluster",
        "allow split brain",
        Text("false"),
        Ours,
        "Two nodes without a lock serve even apart from each other",
    ),
    key(
        "cluster",
        "lock validity",
        Text("5s"),
        Ours,
        "How long a proved cluster lock counts",
    ),
    key(
        "cluster",
        "lock settle",
        Computed("1.2 x (lock validity + lease + queue bound)"),
        Ours,
        "How long a new holder waits for one that it cannot reach",
    ),
    key(
        "cluster",
        "voter only",
        Text("false"),
        Ours,
        "Votes, but has no addresses and databases",
    ),
    key(
        "cluster",
        "strict tunables",
        Text("false"),
        Ours,
        "Mistakes in the files of tunables keep the daemon from starting",
    ),
    key(
        "database",
        "volatile database directory",
        Path("/var/lib/ctdb/volatile", |paths| {
            paths.volatile.display().to_string()
        }),
        Honoured,
        "Local copies of volatile databases",
    ),
    key(
        "database",
        "persistent database directory",
        Path("/var/lib/ctdb/persistent", |paths| {
            paths.persistent.display().to_string()
        }),
        Honoured,
        "Persistent databases",
    ),
    key(
        "database",
        "state database directory",
        Path("/var/lib/ctdb/state", |paths| {
            paths.state.display().to_string()
        }),
        Honoured,
        "The daemon's own databases",
    ),
    key(
        "database",
        "lock debug script",
        Unset,
        Accepted("there are no lock helper processes to debug"),
        "Run when a lock takes long",
    ),
    key(
        "database",
        "tdb mutexes",
        Text("true"),
        Honoured,
        "Robust mutexes in volatile databases",
    ),
    key(
        "event",
        "debug script",
        Unset,
        Honoured,
        "Run when an event times out",
    ),
    key(
        "failover",
        "disabled",
        Text("false"),
        Honoured,
        "No failover of public addresses",
    ),
    key(
        "failover",
        "shutdown failover timeout",
        Text("10"),
        Honoured,
        "Seconds that a graceful stop waits until its addresses are served elsewhere",
    ),
    key(
        "failover",
        "shutdown extra timeout",
        Text("0"),
        Honoured,
        "Seconds that it waits after that",
    ),
    key(
        "failover",
        "addresses",
        Computed("builtin; script with CTDB_TEST_MODE"),
        Ours,
        "builtin, or script: addresses are handled by the event scripts as in CTDB",
    ),
    key(
        "lease",
        "profile",
        Text("standard"),
        Ours,
        "cautious, standard or fast",
    ),
    key(
        "lease",
        "required",
        Text("true"),
        Ours,
        "Refuse to start where the kernel has no lease",
    ),
    key(
        "lease",
        "paths",
        Text("auto"),
        Ours,
        "Where heartbeats travel: auto, private, or own addresses with commas",
    ),
    key(
        "lease",
        "queue bound",
        Text("20ms"),
        Ours,
        "How long a packet may wait in this host after it was let out",
    ),
    key(
        "security",
        "key file",
        Path("/etc/ctdb/cluster.key", |paths| {
            paths.key_file.display().to_string()
        }),
        Ours,
        "Cluster key",
    ),
    key(
        "security",
        "transport",
        Computed("noise; plain with CTDB_TEST_MODE"),
        Ours,
        "noise, or plain: the private network is trusted",
    ),
    key(
        "priority",
        "daemon",
        Text("nice:-19"),
        Ours,
        "nice:LEVEL, fifo:PRIORITY or none",
    ),
    key(
        "priority",
        "detector",
        Computed("rr:1 with the fast profile or `realtime scheduling = true`, else normal"),
        Ours,
        "rr:PRIORITY or normal",
    ),
    key(
        "conntrack",
        "enabled",
        Text("true"),
        Ours,
        "Connections to public addresses are tracked",
    ),
    key(
        "conntrack",
        "max connections",
        Text("131072"),
        Ours,
        "Size of the connection table",
    ),
    key(
        "conntrack",
        "tickle rounds",
        Text("5"),
        Ours,
        "How often each client of an address that moved is told, 1 to 8: at once, after 0.6 s, then after twice as long each time",
    ),
    key(
        "conntrack",
        "end first",
        Text("2049"),
        Ours,
        "Ports of services that must not answer a request which the client repeats elsewhere (NFS): their sockets end before the address moves; none for no port",
    ),
    key(
        "firewall",
        "enabled",
        Text("true"),
        Ours,
        "Ports without listener are silent after a takeover",
    ),
    key(
        "firewall",
        "opening timeout",
        Text("10s"),
        Ours,
        "For how long",
    ),
    key(
        "api",
        "group",
        Unset,
        Ours,
        "Group that may read the HTTP API",
    ),
    key(
        "legacy",
        "realtime scheduling",
        Text("true"),
        Mapped("`true` means the detector: `[priority] detector = rr:1`"),
        "Real-time priority",
    ),
    key(
        "legacy",
        "lmaster capability",
        Text("true"),
        Honoured,
        "May it be location master",
    ),
    key(
        "legacy",
        "start as stopped",
        Text("false"),
        Honoured,
        "Starts with the flag STOPPED",
    ),
    key(
        "legacy",
        "start as disabled",
        Text("false"),
        Honoured,
        "Starts with the flag DISABLED",
    ),
    key(
        "legacy",
        "script log level",
        Text("ERROR"),
        Honoured,
        "Level of the scripts' output",
    ),
];

/// Keys of CTDB releases before 4.16 that later ones ignore, with what to write today.
pub const FORMER: &[(&str, &str, &str)] = &[(
    "legacy",
    "recmaster capability",
    "CTDB 4.16 and later ignore it too; write `[cluster] leader capability`",
)];

/// Finds a key; the section in lower case.
pub fn find(section: &str, name: &str) -> Option<&'static Key> {
    KEYS.iter()
        .find(|key| key.section == section && key.name == name)
}

/// Whether any key is in that section.
pub fn is_section(section: &str) -> bool {
    KEYS.iter().any(|key| key.section == section)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_sections_together() {
        let mut seen = std::collections::BTreeSet::new();
        let mut sections: Vec<&str> = Vec::new();
        for key in KEYS {
            assert!(seen.insert((key.section, key.name)), "{}", key.name);
            if sections.last() != Some(&key.section) {
                assert!(!sections.contains(&key.section), "{}", key.section);
                sections.push(key.section);
            }
            assert_eq!(key.section, key.section.to_ascii_lowercase());
        }
        assert!(find("cluster", "cluster lock").is_some());
        assert!(find("cluster", "Cluster lock").is_none());
    }
}
