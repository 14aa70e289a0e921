//! What is only wrong when files are seen together, or against this host.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::settings::Origin;
use super::{
    AddressMode, Config, DetectorPriority, LockKind, Problem, Profile, PublicAddress, Report,
    Severity, Transport, Tunable,
};

/// Port of the links if `/etc/services` does not name one.
const DEFAULT_PORT: u16 = 4379;

/// Checks across files. `interface_exists` also knows alternative names.
pub(super) fn check(config: &Config, interface_exists: &dyn Fn(&str) -> bool, report: &mut Report) {
    node_address(config, report);
    public_addresses(config, &config.public_addresses, interface_exists, report);
    home_nodes(config, report);
    lock(config, report);
    if config.failover.addresses == AddressMode::Builtin {
        let paths = &config.paths;
        super::script_options::check(&paths.script_options, &paths.events, report);
    }
    if config.security.transport == Transport::Noise {
        for problem in check_key(&config.security.key_file) {
            report.push(problem);
        }
    }
    let fast = config.lease.profile == Profile::Fast;
    if fast && config.priority.detector == DetectorPriority::Normal {
        report.warning(
            &config.paths.config,
            None,
            "the fast profile without a real-time detector takes busy nodes for dead ones",
            "write `[priority] detector = rr:1`",
        );
    }
    if config.cluster.voter_only && config.failover.addresses == AddressMode::Script {
        report.note(
            &config.paths.config,
            None,
            "`[failover] addresses = script` has no effect on a node that only votes",
            "",
        );
    }
}

fn origin(config: &Config, section: &str, name: &str) -> (std::path::PathBuf, Option<u32>) {
    config
        .settings
        .iter()
        .find(|(key, _)| key.section == section && key.name == name)
        .and_then(|(_, setting)| match &setting.origin {
            Origin::File(file, line) => Some((file.clone(), Some(*line))),
            _ => None,
        })
        .unwrap_or_else(|| (config.paths.config.clone(), None))
}

fn node_address(config: &Config, report: &mut Report) {
    if let Some(address) = config.cluster.node_address
        && config.nodes.find(address).is_none()
    {
        let (file, line) = origin(config, "cluster", "node address");
        report.error(
            &file,
            line,
            format!("node address {address} is not in the nodes list"),
            "correct one of them; the list must be the same on all nodes",
        );
    }
}

/// Public addresses against the nodes list and this host; also when the file is read again.
pub(super) fn public_addresses(
    config: &Config,
    list: &[PublicAddress],
    interface_exists: &dyn Fn(&str) -> bool,
    report: &mut Report,
) {
    let file = &config.paths.public_addresses;
    if config.cluster.voter_only {
        if !list.is_empty() {
            report.warning(
                file,
                None,
                "this node only votes; its public addresses are not used",
                "empty the file, or remove `[cluster] voter only`",
            );
        }
        return;
    }
    // Several daemons of one host, in CTDB's test mode, name interfaces that are not there.
    let severity = if config.paths.test_mode {
        Severity::Warning
    } else {
        Severity::Error
    };
    let mut unknown: Vec<&str> = Vec::new();
    let mut shared = false;
    for public in list {
        let line = Some(public.line);
        if let Some(pnn) = config.nodes.find(public.address()) {
            report.error(
                file,
                line,
                format!("{} is the private address of node {pnn}", public.address()),
                "a public address moves between nodes; take another one",
            );
        } else if let Some(node) = config
            .nodes
            .active()
            .find(|node| public.net.contains(&node.address))
            && !shared
        {
            shared = true;
            report.warning(
                file,
                line,
                format!(
                    "{} is in the network of node address {}",
                    public.net, node.address
                ),
                "keep node addresses in a private network of their own",
            );
        }
        for name in &public.interfaces {
            if !unknown.contains(&name.as_str()) && !interface_exists(name) {
                unknown.push(name);
                report.add(
                    severity,
                    file,
                    line,
                    format!("there is no interface {name}"),
                    "create it before the daemon starts, or correct the name (see `ip link`)",
                );
            }
        }
    }
}

fn home_nodes(config: &Config, report: &mut Report) {
    let file = &config.paths.home_nodes;
    let deterministic = config.tunables.get(Tunable::IPAllocAlgorithm) == 0;
    if !config.home_nodes.is_empty() && !deterministic {
        report.note(
            file,
            None,
            "home nodes are only for the deterministic algorithm",
            "set the tunable IPAllocAlgorithm=0, on all nodes",
        );
    }
    let beyond = config
        .home_nodes
        .iter()
        .find(|(_, pnn)| config.nodes.address(**pnn).is_none());
    if let Some((address, pnn)) = beyond {
        report.warning(
            file,
            None,
            format!("{address} has home node {pnn}, which is not in the nodes list"),
            "correct the number",
        );
    }
    if let Origin::File(file, line) = config.tunables.origin(Tunable::NoIPFailback)
        && deterministic
        && config.tunables.on(Tunable::NoIPFailback)
    {
        report.warning(
            file,
            Some(*line),
            "NoIPFailback has no effect with the deterministic algorithm",
            "remove it, or choose IPAllocAlgorithm=2",
        );
    }
}

fn lock(config: &Config, report: &mut Report) {
    let Some(lock) = &config.cluster.lock else {
        return;
    };
    let (file, line) = match origin(config, "cluster", "cluster lock") {
        (_, None) => origin(config, "cluster", "recovery lock"),
        found => found,
    };
    match &lock.kind {
        LockKind::File(path) => {
            if !path.is_absolute() {
                report.error(
                    &file,
                    line,
                    format!("the cluster lock '{}' has no full path", path.display()),
                    "write the path of a file in the cluster file system, or ! and a command",
                );
            } else if !path.parent().is_some_and(Path::is_dir) {
                report.warning(
                    &file,
                    line,
                    format!(
                        "there is no directory for the cluster lock {}",
                        path.display()
                    ),
                    "mount the cluster file system before the daemon starts",
                );
            }
        }
        LockKind::Helper(words) => {
            // Never empty: checked where it is read.
            let program = words.first().map_or("", String::as_str);
            if !Path::new(program).is_absolute() {
                report.error(
                    &file,
                    line,
                    format!("the lock helper '{program}' has no full path"),
                    "write it",
                );
            } else if !executable(Path::new(program)) {
                report.error(
                    &file,
                    line,
                    format!("the lock helper {program} is not an executable file"),
                    "install it, or correct the path",
                );
            }
        }
    }
}

fn executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether there is a key file that nobody else may read: warnings only, since the transport
/// reads it and knows its format.
pub fn check_key(path: &Path) -> Vec<Problem> {
    let mut report = Report::default();
    match path.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => report.warning(
            path,
            None,
            "there is no cluster key",
            "make one on one node with `ctdb config keygen` and copy it to the others with \
             `ctdb config keygen --distribute`",
        ),
        Err(error) => {
            report.warning(
                path,
                None,
                format!("the cluster key cannot be seen: {error}"),
                "",
            );
        }
        Ok(meta) if !meta.is_file() => {
            report.warning(
                path,
                None,
                "is not a regular file",
                "put the key itself there",
            );
        }
        Ok(meta) => {
            let mode = meta.permissions().mode() & 0o7777;
            if mode & 0o077 != 0 {
                report.warning(
                    path,
                    None,
                    format!("has mode {mode:04o}, so that others may know the cluster key"),
                    format!("run `chmod 600 {}`", path.display()),
                );
            }
            let me = rustix::process::geteuid().as_raw();
            if meta.uid() != me {
                report.warning(
                    path,
                    None,
                    format!("belongs to user {}, not to user {me}", meta.uid()),
                    format!("run `chown {me} {}`", path.display()),
                );
            }
        }
    }
    report.problems
}

/// Port of the service `ctdb/tcp` in a services file, else 4379.
pub fn service_port(services: &Path) -> u16 {
    let text = super::read_text(services, 4 << 20)
        .ok()
        .flatten()
        .unwrap_or_default();
    text.lines()
        .find_map(|line| {
            let mut words = line.split('#').next()?.split_ascii_whitespace();
            let name = words.next()?;
            let (port, protocol) = words.next()?.split_once('/')?;
            let named = name == "ctdb" || words.any(|alias| alias == "ctdb");
            (named && protocol == "tcp").then(|| port.parse().ok().filter(|port| *port > 0))?
        })
        .unwrap_or(DEFAULT_PORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_may_stand_in_services() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(service_port(file.path()), 4379);
        std::fs::write(
            file.path(),
            "# ctdb 1/tcp\nctdb 5/udp\nx 6/tcp y ctdb # z\n",
        )
        .unwrap();
        assert_eq!(service_port(file.path()), 6);
        assert_eq!(service_port(Path::new("/no/such/file")), 4379);
    }

    #[test]
    fn a_key_that_others_can_read_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        assert!(check_key(&key)[0].what.contains("no cluster key"));
        std::fs::write(&key, "").unwrap();
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(check_key(&key)[0].what.contains("0640"));
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(check_key(&key), []);
        assert!(check_key(dir.path())[0].what.contains("not a regular file"));
    }
}
