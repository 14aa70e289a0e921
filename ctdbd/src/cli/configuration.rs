//! `ctdb config`

use std::fmt::Write as _;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};

use ctdb_wire::api::ConfigView;
use ctdb_wire::ids::Pnn;
use serde_json::{Value, json};

use super::failure::{Exit, Failure};
use super::table::facts;
use super::{Asking, args, pretty};
use crate::config::{self, Paths, Purpose, Report, Settings, Severity};
use crate::transport::distribute::{Delivered, DistributeError, Distribution, distribute};
use crate::transport::key::{ClusterKey, KeyError, KeyRing};

pub(super) fn run(asking: &Asking, verb: &args::Config, paths: &Paths) -> Result<String, Failure> {
    match verb {
        args::Config::Example => Ok(config::dump::example()),
        args::Config::Check => check(asking.global.json, paths),
        args::Config::Dump { running: true } => asking.show(&asking.at("/v1/config"), running),
        args::Config::Dump { running: false } => dump(asking.global.json, paths),
        args::Config::Keygen {
            distribute,
            force,
            file,
        } => {
            let path = file.clone().unwrap_or_else(|| key_file(paths));
            let made = make_key(&path, *distribute, *force)?;
            if *distribute {
                copy_key(asking.global.json, paths, &made, *force)
            } else {
                Ok(told(asking.global.json, &made))
            }
        }
    }
}

fn broken(report: &Report) -> Failure {
    let mut text = "the configuration has errors, the daemon would not start:".to_owned();
    for line in report.lines() {
        text.push('\n');
        text.push_str(&line);
    }
    Failure::new(Exit::Failed, "bad_configuration", text)
}

fn check(json: bool, paths: &Paths) -> Result<String, Failure> {
    let (_, report) = config::load_for(paths, Purpose::Validate);
    if report.has_errors() {
        return Err(broken(&report));
    }
    if json {
        return Ok(pretty(&json!(report)));
    }
    let mut text: String = report.lines().map(|line| line + "\n").collect();
    text.push_str("the configuration has no errors\n");
    Ok(text)
}

fn dump(json: bool, paths: &Paths) -> Result<String, Failure> {
    let (config, report) = config::load(paths);
    let config = config.ok_or_else(|| broken(&report))?;
    Ok(if json {
        pretty(&config::dump(&config))
    } else {
        config::dump::ini(&config.settings)
    })
}

/// `ctdb config dump --running`
pub fn running(view: &ConfigView) -> String {
    let mut text = String::new();
    let mut section = "";
    for option in &view.options {
        if option.section != section {
            section = &option.section;
            // Writing to a string does not fail.
            let _ = writeln!(text, "[{section}]");
        }
        let comment = if option.default { "# " } else { "" };
        let value = option.value.as_deref().unwrap_or_default();
        let _ = writeln!(text, "\t{comment}{} = {value}", option.key);
    }
    text
}

/// Where the key stands, also while other parts of the configuration are not right yet.
fn key_file(paths: &Paths) -> PathBuf {
    let settings = Settings::read(paths, Severity::Note, &mut Report::default());
    match settings.get("security", "key file") {
        Some(path) if !path.is_empty() => PathBuf::from(path),
        _ => paths.key_file.clone(),
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        let (exit, code) = match error {
            KeyError::Exists { .. } => (Exit::NotNow, "key_exists"),
            _ => (Exit::Failed, "key"),
        };
        Failure::new(exit, code, error.to_string())
    }
}

/// The key of this node.
struct Made {
    path: PathBuf,
    ring: KeyRing,
    new: bool,
}

/// Makes the key, or takes the one that is there if it is only to be copied.
fn make_key(path: &Path, copy: bool, force: bool) -> Result<Made, Failure> {
    let path = path.to_owned();
    if copy && !force {
        match KeyRing::load(&path) {
            Ok(ring) => {
                return Ok(Made {
                    path,
                    ring,
                    new: false,
                });
            }
            Err(KeyError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let ring = KeyRing::of(ClusterKey::generate()?);
    ring.write_new(&path, force)?;
    Ok(Made {
        path,
        ring,
        new: true,
    })
}

fn told(json: bool, made: &Made) -> String {
    if json {
        return pretty(&json!({"file": made.path, "changed": made.new, "nodes": []}));
    }
    format!(
        "The cluster key stands in {}. Every node needs the same file: `ctdb config keygen \
         --distribute` copies it.\n",
        made.path.display()
    )
}

type Outcome = (Pnn, IpAddr, Result<Delivered, DistributeError>);

fn copy_key(json: bool, paths: &Paths, made: &Made, force: bool) -> Result<String, Failure> {
    let (nodes, report) = config::load_nodes(paths);
    let nodes = nodes.ok_or_else(|| broken(&report))?;
    let others: Vec<(Pnn, IpAddr)> = nodes
        .active()
        .map(|node| (node.pnn, node.address))
        .filter(|(_, address)| !is_local(*address))
        .collect();
    let distribution = Distribution {
        force,
        ..Distribution::to(&made.path)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| {
        Failure::new(Exit::Failed, "io", format!("preparing to run ssh: {error}"))
    })?;
    let outcomes = runtime.block_on(distribute(&made.ring, &others, &distribution));
    delivered(json, made, &outcomes)
}

/// Whether an address is one of this host, which has the key already.
fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

fn delivered(json: bool, made: &Made, outcomes: &[Outcome]) -> Result<String, Failure> {
    let word = |delivered: &Delivered| match delivered {
        Delivered::Written => "written",
        Delivered::Already => "has it already",
    };
    let results = outcomes
        .iter()
        .map(|(pnn, address, outcome)| match outcome {
            Ok(delivered) => json!({"node": pnn, "address": address, "result": word(delivered)}),
            Err(error) => json!({"node": pnn, "address": address, "error": error.to_string()}),
        });
    let results: Vec<Value> = results.collect();
    let lines: Vec<(String, String)> = outcomes
        .iter()
        .map(|(pnn, address, outcome)| {
            let text = match outcome {
                Ok(delivered) => word(delivered).to_owned(),
                Err(error) => error.to_string(),
            };
            (format!("node {pnn} ({address})"), text)
        })
        .collect();
    let lines: Vec<(&str, String)> = lines
        .iter()
        .map(|(node, text)| (node.as_str(), text.clone()))
        .collect();
    let failed = outcomes
        .iter()
        .filter(|(.., outcome)| outcome.is_err())
        .count();
    if failed > 0 {
        let text = format!(
            "{failed} of {} nodes did not get the cluster key:\n{}correct that and repeat, or copy \
             {} there by hand with mode 0600",
            outcomes.len(),
            facts(&lines),
            made.path.display()
        );
        return Err(Failure::new(Exit::Failed, "not_distributed", text));
    }
    if json {
        return Ok(pretty(
            &json!({"file": made.path, "changed": made.new, "nodes": results}),
        ));
    }
    let first = format!("The cluster key stands in {}.\n", made.path.display());
    Ok(first + &facts(&lines))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_made_once_and_then_copied() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.key");
        let first = make_key(&path, false, false).unwrap();
        assert!(first.new);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let again = make_key(&path, false, false).err().unwrap();
        assert_eq!((again.exit, &*again.code), (Exit::NotNow, "key_exists"));
        let copied = make_key(&path, true, false).unwrap();
        assert!(!copied.new && copied.ring == first.ring);
        let replaced = make_key(&path, true, true).unwrap();
        assert!(replaced.new && replaced.ring != first.ring);
        assert!(told(false, &replaced).contains("--distribute"));
    }

    #[test]
    fn what_became_of_each_node_is_told() {
        let made = Made {
            path: "/etc/ctdb/cluster.key".into(),
            ring: KeyRing::of(ClusterKey::from_bytes([1; 32])),
            new: false,
        };
        let node = |number, result| {
            let address = IpAddr::from([10, 0, 0, number as u8]);
            (Pnn::new(number).unwrap(), address, result)
        };
        let good = [
            node(1, Ok(Delivered::Written)),
            node(2, Ok(Delivered::Already)),
        ];
        let wanted = "The cluster key stands in /etc/ctdb/cluster.key.\n\
            node 1 (10.0.0.1)  written\nnode 2 (10.0.0.2)  has it already\n";
        assert_eq!(delivered(false, &made, &good).unwrap(), wanted);
        let value: Value = serde_json::from_str(&delivered(true, &made, &good).unwrap()).unwrap();
        assert_eq!(value["nodes"][1]["result"], "has it already");
        let late = DistributeError::TimedOut(std::time::Duration::from_secs(20));
        let bad = [node(1, Err(late)), node(2, Ok(Delivered::Already))];
        let failure = delivered(false, &made, &bad).unwrap_err();
        assert!(
            failure.message.starts_with("1 of 2 nodes did not get"),
            "{failure}"
        );
    }

    #[test]
    fn the_running_configuration_looks_like_a_file() {
        let snapshot = crate::api::sample::snapshot();
        assert_eq!(
            running(&snapshot.config),
            "[cluster]\n\tcluster lock = /clusterfs/lock\n"
        );
    }
}
