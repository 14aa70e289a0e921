//! Whole configurations in a directory of their own.

use std::path::Path;

use super::*;

/// A host with a good configuration of three nodes.
struct Host {
    _dir: tempfile::TempDir,
    paths: Paths,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::under(dir.path());
        for directory in [&paths.etc, &paths.volatile, &paths.persistent, &paths.state] {
            std::fs::create_dir_all(directory).unwrap();
        }
        std::fs::create_dir_all(paths.log.parent().unwrap()).unwrap();
        std::fs::write(&paths.nodes, "10.1.0.1\n10.1.0.2\n10.1.0.3\n").unwrap();
        std::fs::write(&paths.public_addresses, "10.2.0.1/24 lo\n").unwrap();
        std::fs::write(&paths.key_file, "").unwrap();
        std::fs::set_permissions(
            &paths.key_file,
            std::os::unix::fs::PermissionsExt::from_mode(0o600),
        )
        .unwrap();
        Self { _dir: dir, paths }
    }

    fn conf(&self, text: &str) -> (Option<Config>, Vec<String>) {
        write(&self.paths.config, text);
        self.load()
    }

    fn load(&self) -> (Option<Config>, Vec<String>) {
        let (config, report) = load(&self.paths);
        assert_eq!(config.is_none(), report.has_errors());
        let etc = format!("{}/", self.paths.etc.display());
        (
            config,
            report.lines().map(|line| line.replace(&etc, "")).collect(),
        )
    }
}

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
}

fn has(problems: &[String], start: &str) {
    assert!(
        problems.iter().any(|line| line.starts_with(start)),
        "{start} not in {problems:#?}"
    );
}

#[test]
fn defaults() {
    let host = Host::new();
    let (config, problems) = host.load();
    let config = config.unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    has(
        &problems,
        "ctdb.conf: note: [cluster] cluster lock: there is no cluster lock: the maj",
    );
    assert_eq!(config.cluster.authority, Authority::Majority);
    assert_eq!(config.quorum(), 2);
    assert_eq!(config.timing(), Timing::standard());
    assert_eq!(config.security.transport, Transport::Noise);
    assert_eq!(config.priority.daemon, Priority::Nice(-19));
    assert_eq!(config.priority.detector, DetectorPriority::Normal);
    assert_eq!(config.failover.shutdown_timeout, Duration::from_secs(10));
    assert_eq!(config.cluster.lock_settle, Duration::from_millis(7824));
    assert_eq!(
        config.logging.location,
        Location::File(host.paths.log.clone())
    );
    assert_eq!(config.logging.level, LogLevel::Notice);
    assert_eq!(config.legacy.script_log_level, LogLevel::Error);
    assert!(config.lease.required && config.database.tdb_mutexes);
    assert_eq!(config.capabilities(), Capabilities::default());
}

#[test]
fn every_key_of_a_full_file_counts() {
    let host = Host::new();
    let script = host.paths.etc.join("debug-hung-script.sh");
    write(&script, "#!/bin/sh\n");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (config, problems) = host.conf(
        "[logging]\nlocation = syslog\nlog level = debug\n\
         [cluster]\ntransport = tcp\nnode address = 10.1.0.2\ncluster lock = !/bin/true a  b\n\
         leader timeout = 0x7\nleader capability = no\nname = files\nauthority = both\n\
         lock validity = 2s\nlock settle = 10\n\
         [database]\ntdb mutexes = false\n[event]\ndebug script = /x/debug-hung-script.sh\n\
         [failover]\ndisabled = yes\nshutdown failover timeout = 0\nshutdown extra timeout = 3\n\
         addresses = script\n[lease]\nprofile = fast\nrequired = no\npaths = private\n\
         queue bound = 5ms\n[security]\ntransport = plain\n[priority]\ndaemon = fifo:2\n\
         detector = rr:9\n[conntrack]\nenabled = no\nmax connections = 2048\n\
         tickle rounds = 2\nend first = 2049, 20048\n\
         [firewall]\nenabled = no\nopening timeout = 3\n[api]\ngroup = adm\n\
         [legacy]\nlmaster capability = false\nstart as stopped = true\n\
         start as disabled = true\nscript log level = INFO\nrealtime scheduling = false\n",
    );
    let config = config.unwrap();
    assert_eq!(problems.len(), 1, "{problems:#?}");
    has(
        &problems,
        "ctdb.conf:8: warning: [cluster] leader timeout is not used as such",
    );
    assert_eq!(config.logging.location, Location::Syslog);
    let lock = config.cluster.lock.clone().unwrap();
    assert_eq!(lock.text, "!/bin/true a b");
    assert_eq!(
        lock.kind,
        LockKind::Helper(vec!["/bin/true".into(), "a".into(), "b".into()])
    );
    assert_eq!(config.cluster.authority, Authority::Both);
    assert_eq!(config.cluster.leader_timeout, Duration::from_secs(7));
    assert_eq!(config.cluster.lock_settle, Duration::from_secs(10));
    assert_eq!(config.event.debug_script, Some(script));
    assert_eq!(config.failover.addresses, AddressMode::Script);
    assert_eq!(config.lease.profile, Profile::Fast);
    assert_eq!(config.lease.paths, LeasePaths::Private);
    assert_eq!(config.timing().lease, Duration::from_millis(300));
    assert_eq!(config.timing().queue, Duration::from_millis(5));
    assert_eq!(config.priority.daemon, Priority::Fifo(2));
    assert_eq!(config.priority.detector, DetectorPriority::RoundRobin(9));
    assert_eq!(
        config.conntrack,
        Conntrack {
            enabled: false,
            max_connections: 2048,
            tickle_rounds: 2,
            end_first: [2049, 20048].into(),
        }
    );
    assert_eq!(config.firewall.opening_timeout, Duration::from_secs(3));
    assert_eq!(config.api.group.as_deref(), Some("adm"));
    assert!(config.legacy.start_as_stopped && config.legacy.start_as_disabled);
    let capabilities = Capabilities {
        leader: false,
        lmaster: false,
        voter_only: false,
    };
    assert_eq!(config.capabilities(), capabilities);
    assert_eq!(own_node(&config, &[]).unwrap().get(), 1);
}

#[test]
fn wrong_values_are_errors_with_line_and_key() {
    let host = Host::new();
    for (text, part) in [
        (
            "[cluster]\ntransport = ib\n",
            "[cluster] transport: 'ib' is not supported",
        ),
        (
            "[cluster]\nnode address = 10.0.0.300\n",
            "[cluster] node address: '10.0.0.300' is not",
        ),
        (
            "[cluster]\nnode address = 10.9.9.9\n",
            "node address 10.9.9.9 is not in the nodes",
        ),
        (
            "[cluster]\nleader timeout = 0\n",
            "[cluster] leader timeout: 0 is not between 1",
        ),
        (
            "[cluster]\nleader timeout = -1\n",
            "[cluster] leader timeout: '-1' is not a number",
        ),
        (
            "[cluster]\nleader timeout = 2147483648\n",
            "[cluster] leader timeout: '2147483648' is",
        ),
        (
            "[cluster]\nleader timeout = 7x\n",
            "[cluster] leader timeout: '7x' is not a number",
        ),
        (
            "[cluster]\nleader capability = on\n",
            "[cluster] leader capability: 'on' is neither",
        ),
        (
            "[cluster]\nnodes list = !nodes\n",
            "[cluster] nodes list: '!nodes' does not begin",
        ),
        (
            "[cluster]\ncluster lock = lock\n",
            "the cluster lock 'lock' has no full path",
        ),
        (
            "[cluster]\ncluster lock = !\n",
            "[cluster] cluster lock: there is no command",
        ),
        (
            "[cluster]\ncluster lock = !/no/x\n",
            "the lock helper /no/x is not an executable",
        ),
        (
            "[cluster]\nauthority = any\n",
            "[cluster] authority: 'any' is not one of lock",
        ),
        (
            "[cluster]\nauthority = lock\n",
            "[cluster] authority: 'lock' needs a cluster lock",
        ),
        (
            "[cluster]\nlock settle = 2\n",
            "[cluster] lock settle: is less than 1.2",
        ),
        (
            "[logging]\nlocation = syslogd\n",
            "[logging] location: 'syslogd' is no log",
        ),
        (
            "[logging]\nlocation = file:/no/x/log\n",
            "[logging] location: there is no directory",
        ),
        (
            "[logging]\nlog level = LOUD\n",
            "[logging] log level: 'LOUD' is no log level",
        ),
        (
            "[database]\nvolatile database directory = /no\n",
            "[database] volatile database",
        ),
        (
            "[database]\nlock debug script = x.sh\n",
            "[database] lock debug script: ",
        ),
        ("[event]\ndebug script = x.sh\n", "[event] debug script: "),
        (
            "[failover]\ndisabled = 1\n",
            "[failover] disabled: '1' is neither",
        ),
        (
            "[failover]\naddresses = no\n",
            "[failover] addresses: 'no' is not one of",
        ),
        (
            "[lease]\nprofile = slow\n",
            "[lease] profile: 'slow' is not one of",
        ),
        (
            "[lease]\nqueue bound = 2s\n",
            "[lease] queue bound: 2s is not between",
        ),
        (
            "[priority]\ndaemon = nice:-21\n",
            "[priority] daemon: '-21' is not between",
        ),
        (
            "[priority]\ndetector = rr:0\n",
            "[priority] detector: 'rr:0' is no priority",
        ),
        (
            "[security]\ntransport = tls\n",
            "[security] transport: 'tls' is not one of",
        ),
    ] {
        let (config, problems) = host.conf(text);
        assert!(config.is_none(), "{text}");
        has(&problems, &format!("ctdb.conf:2: error: {part}"));
    }
}

#[test]
fn former_and_unknown_keys_warn_and_fail_only_validation() {
    let host = Host::new();
    let (config, problems) = host.conf(
        "x = 1\n[cluster]\nrecovery lock = /clusterfs/lock\nNode Address = 10.1.0.1\n\
         tdb mutexes = no\nfoo = 1\n[ctdb]\na = b\n[legacy]\nrecmaster capability = no\n",
    );
    let lock = config.unwrap().cluster.lock.unwrap();
    assert_eq!(lock.kind, LockKind::File("/clusterfs/lock".into()));
    has(
        &problems,
        "ctdb.conf:1: warning: 'x' stands before any [section]",
    );
    has(
        &problems,
        "ctdb.conf:3: warning: [cluster] recovery lock is not used as such; write `cl",
    );
    has(
        &problems,
        "ctdb.conf:3: warning: there is no directory for the cluster lock",
    );
    has(
        &problems,
        "ctdb.conf:4: warning: [cluster] has no key 'Node Address'; it is ignored; wri",
    );
    has(
        &problems,
        "ctdb.conf:5: warning: [cluster] has no key 'tdb mutexes'; it is ignored; 'td",
    );
    has(
        &problems,
        "ctdb.conf:6: warning: [cluster] has no key 'foo'",
    );
    has(
        &problems,
        "ctdb.conf:8: warning: there is no section [ctdb]",
    );
    has(
        &problems,
        "ctdb.conf:10: warning: [legacy] recmaster capability is not used any more",
    );
    let (config, report) = load_for(&host.paths, Purpose::Validate);
    assert!(config.is_none() && report.has_errors());
}

#[test]
fn what_decides_depends_on_lock_and_nodes() {
    let host = Host::new();
    let lock = "cluster lock = !/bin/true\n";
    let split = "allow split brain = yes\n";
    for (nodes, keys, expected) in [
        (1, String::new(), Some((Authority::Majority, 1))),
        (2, String::new(), None),
        (2, split.to_owned(), Some((Authority::Majority, 1))),
        (2, lock.to_owned(), Some((Authority::Lock, 2))),
        (
            2,
            "authority = majority\n".to_owned(),
            Some((Authority::Majority, 2)),
        ),
        (
            2,
            format!("{lock}{split}authority = both\n"),
            Some((Authority::Both, 2)),
        ),
        (3, String::new(), Some((Authority::Majority, 2))),
        (3, lock.to_owned(), Some((Authority::Lock, 2))),
        (
            4,
            format!("{lock}authority = majority\n"),
            Some((Authority::Majority, 3)),
        ),
        (5, split.to_owned(), Some((Authority::Majority, 3))),
    ] {
        let list: Vec<String> = (1..=nodes).map(|n| format!("10.1.0.{n}")).collect();
        write(
            &host.paths.nodes,
            &format!("{}\n#10.1.0.9\n", list.join("\n")),
        );
        let (config, problems) = host.conf(&format!("[cluster]\n{keys}"));
        let found = config.map(|config| (config.cluster.authority, config.quorum()));
        assert_eq!(found, expected, "{nodes} nodes, {keys}: {problems:?}");
        if expected.is_none() {
            has(
                &problems,
                "ctdb.conf: error: [cluster] cluster lock: two nodes without",
            );
        }
    }
}

#[test]
fn scheduling_of_the_detector() {
    let host = Host::new();
    for (text, expected) in [
        (
            "[legacy]\nrealtime scheduling = true\n",
            DetectorPriority::RoundRobin(1),
        ),
        (
            "[legacy]\nrealtime scheduling = false\n",
            DetectorPriority::Normal,
        ),
        ("[lease]\nprofile = fast\n", DetectorPriority::RoundRobin(1)),
        (
            "[lease]\nprofile = fast\n[priority]\ndetector = none\n",
            DetectorPriority::Normal,
        ),
    ] {
        assert_eq!(
            host.conf(text).0.unwrap().priority.detector,
            expected,
            "{text}"
        );
    }
    let (_, problems) = host.conf("[lease]\nprofile = fast\n[priority]\ndetector = none\n");
    has(
        &problems,
        "ctdb.conf: warning: the fast profile without a real-time detector",
    );
}

#[test]
fn the_other_files_are_checked_against_each_other() {
    let host = Host::new();
    write(
        &host.paths.public_addresses,
        "10.1.0.2/24 lo\n10.1.0.50/24 lo,no-such-if\n",
    );
    write(&host.paths.home_nodes, "10.2.0.1 7\n");
    write(&host.paths.tunables, "NoIPFailback=1\nIPAllocAlgorithm=0\n");
    let (config, problems) = host.load();
    assert!(config.is_none());
    has(
        &problems,
        "public_addresses:1: error: 10.1.0.2 is the private address of node 1",
    );
    has(
        &problems,
        "public_addresses:2: error: there is no interface no-such-if",
    );
    has(
        &problems,
        "public_addresses:2: warning: 10.1.0.50/24 is in the network of node address",
    );
    has(&problems, "home_nodes: warning: 10.2.0.1 has home node 7");
    has(
        &problems,
        "ctdb.tunables:1: warning: NoIPFailback has no effect with",
    );
}

#[test]
fn public_addresses_are_read_again_with_all_checks() {
    let host = Host::new();
    let config = host.load().0.unwrap();
    write(
        &host.paths.public_addresses,
        "10.2.0.1/24 lo\n10.2.0.2/24 lo\n",
    );
    let (list, report) = reload_public_addresses(&config);
    assert_eq!(list.unwrap().len(), 2);
    assert_eq!(report, Report::default());
    for bad in [
        "10.1.0.1/24 lo\n",
        "10.2.0.1/24 no-such-if\n",
        "10.2.0.1 lo\n",
    ] {
        write(&host.paths.public_addresses, bad);
        let (list, report) = reload_public_addresses(&config);
        assert!(list.is_none() && report.has_errors(), "{bad}");
    }
    std::fs::remove_file(&host.paths.public_addresses).unwrap();
    assert_eq!(reload_public_addresses(&config).0.unwrap(), []);
}

#[test]
fn missing_files() {
    let host = Host::new();
    std::fs::remove_file(&host.paths.public_addresses).unwrap();
    std::fs::remove_file(&host.paths.key_file).unwrap();
    let (config, problems) = host.load();
    assert!(config.is_some());
    has(
        &problems,
        "public_addresses: warning: there is no such file",
    );
    has(&problems, "cluster.key: warning: there is no cluster key");
    std::fs::remove_file(&host.paths.nodes).unwrap();
    let (config, problems) = host.load();
    assert!(config.is_none());
    has(&problems, "nodes: error: there is no nodes list");
    let (nodes, report) = load_nodes(&host.paths);
    assert!(nodes.is_none() && report.has_errors());
    let (config, _) = host.conf("[cluster]\nnodes list = !/bin/echo 10.1.0.1\n");
    assert_eq!(config.unwrap().nodes.len(), 1);
    assert_eq!(load_nodes(&host.paths).0.unwrap().len(), 1);
}

#[test]
fn tunables_with_mistakes_start_unless_strict() {
    let host = Host::new();
    write(&host.paths.tunables, "MutexEnabled=0\nMonitorInterval=3\n");
    let (config, problems) = host.load();
    assert_eq!(config.unwrap().tunables.get(Tunable::MonitorInterval), 3);
    has(
        &problems,
        "ctdb.tunables:1: warning: there is no tunable 'MutexEnabled'",
    );
    let (config, problems) = host.conf("[cluster]\nstrict tunables = yes\n");
    assert!(config.is_none());
    has(
        &problems,
        "ctdb.tunables:1: error: there is no tunable 'MutexEnabled'",
    );
}

#[test]
fn a_voter_hosts_nothing() {
    let host = Host::new();
    let (config, problems) = host.conf("[cluster]\nvoter only = true\n");
    let config = config.unwrap();
    assert!(config.public_addresses.is_empty());
    assert!(config.capabilities().voter_only && !config.capabilities().lmaster);
    has(&problems, "public_addresses: warning: this node only votes");
}

#[test]
fn the_own_number_is_that_of_a_local_address() {
    let host = Host::new();
    let config = host.load().0.unwrap();
    let local =
        |list: &[&str]| -> Vec<IpAddr> { list.iter().map(|a| a.parse().unwrap()).collect() };
    assert_eq!(
        own_node(&config, &local(&["127.0.0.1", "10.1.0.3"]))
            .unwrap()
            .get(),
        2
    );
    assert_eq!(
        own_node(&config, &local(&["10.1.0.3", "10.1.0.1"]))
            .unwrap()
            .get(),
        0
    );
    let error = own_node(&config, &local(&["127.0.0.1"])).unwrap_err();
    assert!(
        error.to_string().contains("(10.1.0.1, 10.1.0.2, 10.1.0.3)"),
        "{error}"
    );
}

#[test]
fn test_mode_trusts_the_network_and_has_no_interfaces() {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::test_mode(dir.path());
    for directory in [&paths.volatile, &paths.persistent, &paths.state] {
        std::fs::create_dir_all(directory).unwrap();
    }
    write(&paths.nodes, "127.0.0.1\n");
    write(&paths.public_addresses, "10.2.0.1/24 no-such-if\n");
    let (config, report) = load(&paths);
    assert_eq!(config.unwrap().security.transport, Transport::Plain);
    assert_eq!(report.lines().count(), 1, "{report}");
    let (config, report) = load(&Paths {
        unusable: Some("x".into()),
        ..paths
    });
    assert!(config.is_none() && report.has_errors());
}

#[test]
fn the_dump_names_values_and_origins() {
    let host = Host::new();
    write(&host.paths.tunables, "MonitorInterval=3\n");
    let config = host.conf("[lease]\nprofile = cautious\n").0.unwrap();
    let dump = dump(&config);
    let file = host.paths.config.display();
    assert_eq!(dump["settings"]["lease"]["profile"]["value"], "cautious");
    assert_eq!(
        dump["settings"]["lease"]["profile"]["origin"],
        format!("{file}:2")
    );
    assert_eq!(
        dump["settings"]["cluster"]["authority"]["value"],
        "majority"
    );
    assert_eq!(
        dump["settings"]["cluster"]["authority"]["origin"],
        "default"
    );
    assert_eq!(dump["tunables"]["MonitorInterval"]["value"], 3);
    assert!(
        dump["tunables"]["KeepaliveLimit"]["note"]
            .as_str()
            .unwrap()
            .starts_with("mapped: ")
    );
    assert!(dump["tunables"].get("VacuumLimit").is_none());
    assert_eq!(dump["nodes"]["list"][1]["address"], "10.1.0.2");
    assert_eq!(dump["derived"]["lease_ms"], 5000);
}

#[test]
fn numbers_are_those_of_c() {
    for (text, value) in [
        ("0", 0),
        ("10", 10),
        ("0x1F", 31),
        ("010", 8),
        ("4294967295", u32::MAX),
    ] {
        assert_eq!(c_integer(text), Some(value), "{text}");
    }
    for text in ["", "-1", "+1", "0x", "08", "1 2", "x", "4294967296", "0x+1"] {
        assert_eq!(c_integer(text), None, "{text}");
    }
}

mod arbitrary {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn files_never_panic_and_a_config_has_no_errors(
            conf in proptest::collection::vec(any::<u8>(), 0..200),
            nodes in "([0-9.#:\n]){0,60}",
            public in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let host = Host::new();
            std::fs::write(&host.paths.config, conf).unwrap();
            write(&host.paths.nodes, &nodes);
            std::fs::write(&host.paths.public_addresses, public).unwrap();
            let (config, report) = load(&host.paths);
            prop_assert_eq!(config.is_none(), report.has_errors());
        }

        #[test]
        fn values_of_known_keys_never_panic(index in 0..schema::KEYS.len(), value in ".{1,40}") {
            let key = &schema::KEYS[index];
            // Nothing is run here.
            prop_assume!(!value.contains('!'));
            let host = Host::new();
            write(&host.paths.config, &format!("[{}]\n{} = {value}\n", key.section, key.name));
            let (config, report) = load(&host.paths);
            prop_assert_eq!(config.is_none(), report.has_errors());
        }
    }
}
