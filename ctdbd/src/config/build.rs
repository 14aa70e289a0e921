//! From texts to a [`Config`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::addresses::{self, PublicAddress, parse_home_nodes};
use super::cluster::RawCluster;
use super::settings::Reader;
use super::{
    AddressMode, Api, Config, Conntrack, Database, DetectorPriority, EventOptions, Failover,
    Firewall, Lease, LeasePaths, Legacy, Logging, Paths, Priorities, Profile, Purpose, Report,
    Security, Settings, Severity, Transport, Tunables, check, nodes, read_text,
};
use crate::log::{Location, LogLevel};
use crate::process::Priority;

/// Seconds; CTDB's integers go to 2^31-1.
pub(super) const ANY: (u32, u32) = (0, i32::MAX as u32);

pub(super) fn load(
    paths: &Paths,
    purpose: Purpose,
    interface_exists: &dyn Fn(&str) -> bool,
) -> (Option<Config>, Report) {
    let mut report = Report::default();
    if let Some(what) = &paths.unusable {
        report.error(&paths.etc, None, what, "");
        return (None, report);
    }
    let unknown = match purpose {
        Purpose::Start => Severity::Warning,
        Purpose::Validate => Severity::Error,
    };
    let mut settings = Settings::read(paths, unknown, &mut report);
    let mut reader = Reader::new(&settings, &mut report);
    let sections = Sections::read(paths, &mut reader);
    let nodes = sections
        .cluster
        .nodes_source
        .as_ref()
        .and_then(|source| source.load(nodes::COMMAND_LIMIT, &mut report));
    let public_addresses = public_addresses(paths, &mut report);
    let home_nodes = home_nodes(paths, &mut report);
    let strict = purpose == Purpose::Validate || sections.cluster.strict_tunables;
    let mistake = if strict {
        Severity::Error
    } else {
        Severity::Warning
    };
    let tunables = Tunables::load(&paths.tunables, &paths.tunables_dir, mistake, &mut report);

    let (Some(nodes), Some(public_addresses)) = (nodes, public_addresses) else {
        return (None, report);
    };
    let mut reader = Reader::new(&settings, &mut report);
    let Some(cluster) = sections
        .cluster
        .finish(&nodes, &sections.lease, &mut reader)
    else {
        return (None, report);
    };
    settings.computed("cluster", "authority", cluster.authority.name().to_owned());
    settings.computed("cluster", "lock settle", duration_text(cluster.lock_settle));
    settings.computed(
        "security",
        "transport",
        sections.security.transport.name().to_owned(),
    );
    let addresses = sections.failover.addresses.name().to_owned();
    settings.computed("failover", "addresses", addresses);
    let detector = match sections.priority.detector {
        DetectorPriority::Normal => "none".to_owned(),
        DetectorPriority::RoundRobin(level) => format!("rr:{level}"),
    };
    settings.computed("priority", "detector", detector);
    let mut config = Config {
        paths: paths.clone(),
        nodes,
        public_addresses,
        home_nodes,
        tunables,
        logging: sections.logging,
        cluster,
        database: sections.database,
        event: sections.event,
        failover: sections.failover,
        lease: sections.lease,
        security: sections.security,
        priority: sections.priority,
        conntrack: sections.conntrack,
        firewall: sections.firewall,
        api: sections.api,
        legacy: sections.legacy,
        settings,
    };
    check::check(&config, interface_exists, &mut report);
    if config.cluster.voter_only {
        config.public_addresses.clear();
    }
    let good = !report.has_errors();
    (good.then_some(config), report)
}

pub(super) fn duration_text(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}

pub(super) fn public_addresses(paths: &Paths, report: &mut Report) -> Option<Vec<PublicAddress>> {
    let file = &paths.public_addresses;
    match read_text(file, addresses::MAX_FILE) {
        Ok(Some(text)) => PublicAddress::parse_list(&text, file, report),
        Ok(None) => {
            report.warning(
                file,
                None,
                "there is no such file, so that this node hosts no public address",
                "write one line ADDRESS/BITS INTERFACE for each, or leave an empty file",
            );
            Some(Vec::new())
        }
        Err(error) => {
            report.error(file, None, error, "make it a readable text file");
            None
        }
    }
}

fn home_nodes(paths: &Paths, report: &mut Report) -> BTreeMap<IpAddr, ctdb_wire::ids::Pnn> {
    let file = &paths.home_nodes;
    match read_text(file, addresses::MAX_FILE) {
        Ok(Some(text)) => parse_home_nodes(&text, file, report),
        Ok(None) => BTreeMap::new(),
        Err(error) => {
            report.warning(file, None, error, "no address has a home node");
            BTreeMap::new()
        }
    }
}

/// What can be read without the other files.
pub(super) struct Sections {
    logging: Logging,
    cluster: RawCluster,
    database: Database,
    event: EventOptions,
    failover: Failover,
    lease: Lease,
    security: Security,
    priority: Priorities,
    conntrack: Conntrack,
    firewall: Firewall,
    api: Api,
    legacy: Legacy,
}

impl Sections {
    pub(super) fn read(paths: &Paths, reader: &mut Reader<'_>) -> Self {
        let lease = lease(reader);
        let legacy = legacy(reader);
        Self {
            logging: logging(reader),
            cluster: RawCluster::read(reader),
            database: database(paths, reader),
            event: EventOptions {
                debug_script: reader.script("event", "debug script", &paths.etc),
            },
            failover: failover(paths, reader),
            security: security(paths, reader),
            priority: priority(lease.profile, legacy.realtime_scheduling, reader),
            conntrack: Conntrack {
                enabled: reader.boolean("conntrack", "enabled"),
                max_connections: reader.integer("conntrack", "max connections", (1024, 1 << 24)),
                tickle_rounds: reader.integer("conntrack", "tickle rounds", (1, 8)) as u8,
                end_first: reader
                    .value(
                        "conntrack",
                        "end first",
                        ports,
                        "write port numbers with commas between them, or none",
                    )
                    .unwrap_or_default(),
            },
            firewall: Firewall {
                enabled: reader.boolean("firewall", "enabled"),
                opening_timeout: reader
                    .duration("firewall", "opening timeout", seconds(1, 3600))
                    .unwrap_or_default(),
            },
            api: Api {
                group: reader.text("api", "group").map(str::to_owned),
            },
            lease,
            legacy,
        }
    }
}

/// At most as many as fit on a line.
fn ports(text: &str) -> Result<BTreeSet<u16>, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(BTreeSet::new());
    }
    let ports: BTreeSet<u16> = text
        .split([',', ' '])
        .filter(|word| !word.is_empty())
        .map(|word| match word.parse() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(format!("'{word}' is not a port")),
        })
        .collect::<Result<_, _>>()?;
    if ports.is_empty() || ports.len() > 64 {
        return Err("one to 64 ports can be named".to_owned());
    }
    Ok(ports)
}

pub(super) const fn seconds(low: u64, high: u64) -> (Duration, Duration) {
    (Duration::from_secs(low), Duration::from_secs(high))
}

fn logging(reader: &mut Reader<'_>) -> Logging {
    let location_text = reader
        .text("logging", "location")
        .unwrap_or_default()
        .to_owned();
    let location = reader
        .value(
            "logging",
            "location",
            |text| Location::parse(text).ok_or_else(|| format!("'{text}' is no log location")),
            "write file:PATH, file:, syslog, syslog:nonblocking, syslog:udp or syslog:udp-rfc5424",
        )
        .unwrap_or(Location::Stderr);
    if let Location::File(path) = &location {
        let parent = path.parent().filter(|parent| parent.is_dir());
        if parent.is_none() || !path.is_absolute() {
            let what = format!("there is no directory for the log file {}", path.display());
            reader.error(
                "logging",
                "location",
                what,
                "create it, or write another location",
            );
        }
    }
    Logging {
        location,
        location_text,
        level: level("logging", "log level", reader),
        record: reader.text("log", "record").map(PathBuf::from),
    }
}

fn level(section: &'static str, name: &'static str, reader: &mut Reader<'_>) -> LogLevel {
    reader
        .value(
            section,
            name,
            |text| LogLevel::parse(text).ok_or_else(|| format!("'{text}' is no log level")),
            "write ERROR, WARNING, NOTICE, INFO or DEBUG",
        )
        .unwrap_or(LogLevel::Notice)
}

fn database(paths: &Paths, reader: &mut Reader<'_>) -> Database {
    Database {
        volatile: reader.directory("database", "volatile database directory"),
        persistent: reader.directory("database", "persistent database directory"),
        state: reader.directory("database", "state database directory"),
        lock_debug_script: reader.script("database", "lock debug script", &paths.etc),
        tdb_mutexes: reader.boolean("database", "tdb mutexes"),
    }
}

fn failover(paths: &Paths, reader: &mut Reader<'_>) -> Failover {
    let timeout = reader.integer("failover", "shutdown failover timeout", ANY);
    let extra = reader.integer("failover", "shutdown extra timeout", ANY);
    Failover {
        disabled: reader.boolean("failover", "disabled"),
        shutdown_timeout: Duration::from_secs(timeout.into()),
        shutdown_extra: Duration::from_secs(extra.into()),
        addresses: reader
            .choice(
                "failover",
                "addresses",
                &[
                    ("builtin", AddressMode::Builtin),
                    ("script", AddressMode::Script),
                ],
            )
            // The test mode touches nothing of the host (spec/cluster.md 1).
            .unwrap_or(if paths.test_mode {
                AddressMode::Script
            } else {
                AddressMode::Builtin
            }),
    }
}

fn lease(reader: &mut Reader<'_>) -> Lease {
    let profiles = [Profile::Cautious, Profile::Standard, Profile::Fast];
    Lease {
        profile: reader
            .choice(
                "lease",
                "profile",
                &profiles.map(|profile| (profile.name(), profile)),
            )
            .unwrap_or(Profile::Standard),
        required: reader.boolean("lease", "required"),
        paths: reader
            .value(
                "lease",
                "paths",
                lease_paths,
                "write auto, private, or own addresses with commas between them",
            )
            .unwrap_or(LeasePaths::Auto),
        queue_bound: reader
            .duration(
                "lease",
                "queue bound",
                (Duration::from_millis(1), Duration::from_millis(1000)),
            )
            .unwrap_or(Duration::from_millis(20)),
    }
}

fn lease_paths(text: &str) -> Result<LeasePaths, String> {
    match text.to_ascii_lowercase().as_str() {
        "auto" => return Ok(LeasePaths::Auto),
        "private" => return Ok(LeasePaths::Private),
        _ => {}
    }
    let mut list: Vec<IpAddr> = Vec::new();
    for word in text.split([',', ' ']).filter(|word| !word.is_empty()) {
        let address: IpAddr = word
            .parse()
            .map_err(|_| format!("'{word}' is not an IP address"))?;
        if !list.contains(&address) {
            list.push(address);
        }
    }
    // One path is the private network.
    let most = ctdb_wire::peer::MAX_PATHS - 1;
    if list.is_empty() || list.len() > most {
        return Err(format!("one to {most} addresses can be named"));
    }
    Ok(LeasePaths::Addresses(list))
}

fn security(paths: &Paths, reader: &mut Reader<'_>) -> Security {
    let chosen = reader.choice(
        "security",
        "transport",
        &[("noise", Transport::Noise), ("plain", Transport::Plain)],
    );
    let default = if paths.test_mode {
        Transport::Plain
    } else {
        Transport::Noise
    };
    Security {
        key_file: PathBuf::from(reader.text("security", "key file").unwrap_or_default()),
        transport: chosen.unwrap_or(default),
    }
}

fn priority(profile: Profile, realtime: Option<bool>, reader: &mut Reader<'_>) -> Priorities {
    let detector = reader.value(
        "priority",
        "detector",
        |text| {
            if ["normal", "none"]
                .iter()
                .any(|word| text.eq_ignore_ascii_case(word))
            {
                return Ok(DetectorPriority::Normal);
            }
            rt_level(text, "rr:").map(DetectorPriority::RoundRobin)
        },
        "write rr:PRIORITY with 1 to 99, or normal",
    );
    let default = match realtime {
        Some(true) => DetectorPriority::RoundRobin(1),
        None if profile == Profile::Fast => DetectorPriority::RoundRobin(1),
        _ => DetectorPriority::Normal,
    };
    let daemon = reader.value(
        "priority",
        "daemon",
        |text| {
            if text.eq_ignore_ascii_case("none") {
                return Ok(Priority::None);
            }
            if let Some(level) = text.strip_prefix("nice:") {
                return level
                    .parse()
                    .ok()
                    .filter(|level| (-20..=19).contains(level))
                    .map(Priority::Nice)
                    .ok_or_else(|| format!("'{level}' is not between -20 and 19"));
            }
            rt_level(text, "fifo:").map(Priority::Fifo)
        },
        "write nice:LEVEL with -20 to 19, fifo:PRIORITY with 1 to 99, or none",
    );
    Priorities {
        daemon: daemon.unwrap_or(Priority::None),
        detector: detector.unwrap_or(default),
    }
}

fn rt_level(text: &str, prefix: &str) -> Result<u8, String> {
    text.strip_prefix(prefix)
        .and_then(|level| level.parse().ok())
        .filter(|level| (1..=99).contains(level))
        .ok_or_else(|| format!("'{text}' is no priority"))
}

fn legacy(reader: &mut Reader<'_>) -> Legacy {
    let realtime = reader.boolean("legacy", "realtime scheduling");
    let realtime_scheduling = reader
        .is_set("legacy", "realtime scheduling")
        .then_some(realtime);
    if realtime_scheduling == Some(true) {
        reader.add(
            Severity::Note,
            "legacy",
            "realtime scheduling",
            "the detector thread runs with real-time priority, the rest of the daemon does not",
            "write `[priority] detector = rr:1`",
        );
    }
    Legacy {
        realtime_scheduling,
        start_as_stopped: reader.boolean("legacy", "start as stopped"),
        start_as_disabled: reader.boolean("legacy", "start as disabled"),
        script_log_level: level("legacy", "script log level", reader),
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema;
    use super::*;

    #[test]
    fn every_key_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        let mut report = Report::default();
        let settings = Settings::read(&paths, Severity::Warning, &mut report);
        let mut reader = Reader::new(&settings, &mut report);
        Sections::read(&paths, &mut reader);
        for key in schema::KEYS {
            assert!(
                reader.seen.contains(&(key.section, key.name)),
                "{} {}",
                key.section,
                key.name
            );
        }
    }

    #[test]
    fn lease_paths_are_words_or_addresses() {
        assert_eq!(lease_paths("AUTO"), Ok(LeasePaths::Auto));
        assert_eq!(lease_paths("private"), Ok(LeasePaths::Private));
        let two = vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()];
        assert_eq!(
            lease_paths("10.0.0.1, fd00::1"),
            Ok(LeasePaths::Addresses(two))
        );
        assert!(lease_paths(",").is_err());
        assert!(lease_paths("eth0").is_err());
    }
}
