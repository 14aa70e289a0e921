//! The command line against a node of the lab, and waiting for what it shows.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use ctdb_wire::api::NodeView;
use ctdb_wire::api::connections::ConnectionView;
use serde_json::Value;

use super::{Flavor, Lab, Node, reference, workspace_binary};

/// What one call of the command line gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Exit status, `None` if a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end, process creation included.
    pub took: Duration,
}

impl Answer {
    /// Whether it exited with 0.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Its standard output, or an error that says all.
    pub fn success(self) -> Result<String> {
        if self.ok() {
            Ok(self.stdout)
        } else {
            bail!(
                "exit {:?}: {}{}",
                self.code,
                self.stdout,
                self.stderr.trim_end()
            )
        }
    }
}

/// One node as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Node number.
    pub pnn: u32,
    /// Names of the flags that are set, in lower case; empty when all is well.
    pub flags: Vec<String>,
}

impl Node {
    /// Runs `ctdb ARGS` as on this node. An exit other than 0 is in the answer, not an error.
    pub fn ctdb(&self, args: &[&str]) -> Result<Answer> {
        let mut command = match self.settings().flavor {
            Flavor::Ours => {
                let mut command = Command::new(workspace_binary("CTDB_BIN", "ctdb")?);
                command.env("CTDBD_ROOT", self.root());
                command
            }
            Flavor::Ctdb => reference::cli_command(self, &["ctdb"])?,
        };
        command.args(args);
        let start = Instant::now();
        let out = self.netns().output(&mut command)?;
        Ok(Answer {
            code: out.status.code(),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
            took: start.elapsed(),
        })
    }

    /// A shell that runs `script` with the command line's program as `$0` and `args` as `$@`; to
    /// be started in the node's namespace.
    pub fn ctdb_in_shell(&self, script: &str, args: &[&str]) -> Result<Command> {
        let mut command = match self.settings().flavor {
            Flavor::Ours => {
                let mut command = Command::new("sh");
                command.env("CTDBD_ROOT", self.root()).args(["-c", script]);
                command.arg(workspace_binary("CTDB_BIN", "ctdb")?);
                command
            }
            Flavor::Ctdb => reference::cli_command(self, &["sh", "-c", script, "ctdb"])?,
        };
        command.args(args);
        Ok(command)
    }

    /// Runs `ctdb ARGS --json` and reads what it prints.
    pub fn ctdb_json(&self, args: &[&str]) -> Result<Value> {
        let mut all = args.to_vec();
        all.push("--json");
        let text = self
            .ctdb(&all)?
            .success()
            .with_context(|| format!("ctdb {all:?}"))?;
        serde_json::from_str(&text).with_context(|| format!("ctdb {all:?} printed: {text}"))
    }

    /// `ctdb conntrack list`: the connections that this node knows.
    pub fn connections(&self) -> Result<Vec<ConnectionView>> {
        let mut value = self.ctdb_json(&["conntrack", "list"])?;
        serde_json::from_value(value["connections"].take()).context("ctdb conntrack list")
    }

    /// `ctdb node list`: all that this node knows of each.
    pub fn node_views(&self) -> Result<Vec<NodeView>> {
        let mut value = self.ctdb_json(&["node", "list"])?;
        serde_json::from_value(value["nodes"].take()).context("reading `ctdb node list --json`")
    }

    /// All nodes as this one sees them (`ctdb -X status`, spec/cli.md 6.3).
    pub fn nodes_seen(&self) -> Result<Vec<Seen>> {
        let text = self
            .ctdb(&["-X", "status"])?
            .success()
            .context("ctdb -X status")?;
        parse_status(&text)
    }

    /// Which node hosts each public address by what the hosts themselves say
    /// (`ctdb -X ip all`, spec/cli.md 6.5); `None` if nobody.
    pub fn ip_owners(&self) -> Result<BTreeMap<IpAddr, Option<u32>>> {
        let text = self
            .ctdb(&["-X", "ip", "all"])?
            .success()
            .context("ctdb -X ip all")?;
        parse_ip(&text)
    }

    /// The leader as this node sees it, by `ctdb leader`.
    pub fn leader_seen(&self) -> Result<Option<u32>> {
        let verb = match self.settings().flavor {
            Flavor::Ours => "leader",
            // Debian 12's tool still has the older word.
            Flavor::Ctdb => reference::LEADER_VERB,
        };
        let text = self.ctdb(&[verb])?.success()?;
        Ok(text.trim().parse().ok().filter(|n| *n != u32::MAX))
    }

    /// Whether this node sees all configured nodes without any flag, and a leader.
    pub fn sees_all_healthy(&self) -> bool {
        self.nodes_seen().is_ok_and(|seen| {
            seen.len() == self.settings().nodes as usize && seen.iter().all(|n| n.flags.is_empty())
        }) && self.leader_seen().is_ok_and(|l| l.is_some())
    }

    /// Whether by this node's word every public address is hosted.
    pub fn sees_all_served(&self) -> bool {
        self.ip_owners().is_ok_and(|owners| {
            owners.len() == self.settings().public_addresses().len()
                && owners.values().all(Option::is_some)
        })
    }
}

impl Lab {
    /// `ctdb ARGS` on node `pnn`.
    pub fn ctdb(&self, pnn: u32, args: &[&str]) -> Result<Answer> {
        self.node(pnn).ctdb(args)
    }

    /// Waits until every node sees every node healthy.
    pub fn wait_all_healthy(&self, limit: Duration) -> Result<Duration> {
        self.wait("all nodes to be healthy", limit, || {
            self.nodes().iter().all(Node::sees_all_healthy)
        })
    }

    /// Waits until each of the given nodes sees all of them without any flag, and a leader,
    /// whatever it sees of the others.
    pub fn wait_healthy_among(&self, nodes: &[u32], limit: Duration) -> Result<Duration> {
        self.wait(&format!("nodes {nodes:?} to be healthy"), limit, || {
            nodes.iter().all(|n| {
                let node = self.node(*n);
                node.nodes_seen().is_ok_and(|seen| {
                    nodes
                        .iter()
                        .all(|m| seen.iter().any(|s| s.pnn == *m && s.flags.is_empty()))
                }) && node.leader_seen().is_ok_and(|l| l.is_some())
            })
        })
    }

    /// Waits until every running node that hosts addresses sees all public addresses hosted.
    pub fn wait_all_served(&self, limit: Duration) -> Result<Duration> {
        self.wait("all public addresses to be served", limit, || {
            self.hosts()
                .iter()
                .filter(|n| n.is_running())
                .all(Node::sees_all_served)
        })
    }

    /// Waits until `node`'s view has `address` on `owner`.
    pub fn wait_owner(
        &self,
        node: u32,
        address: IpAddr,
        owner: u32,
        limit: Duration,
    ) -> Result<Duration> {
        self.wait(&format!("{address} to be on node {owner}"), limit, || {
            self.node(node)
                .ip_owners()
                .is_ok_and(|owners| owners.get(&address) == Some(&Some(owner)))
        })
    }

    /// Waits for `predicate`; the time it took, or an error with the nodes' logs.
    pub fn wait(
        &self,
        what: &str,
        limit: Duration,
        predicate: impl FnMut() -> bool,
    ) -> Result<Duration> {
        // A call of CTDB's tool is dear, and its waits are long.
        let pause = Duration::from_millis(match self.settings().flavor {
            Flavor::Ours => 10,
            Flavor::Ctdb => 100,
        });
        poll_until(what, limit, pause, predicate).with_context(|| {
            let mut status = String::new();
            for node in self.nodes() {
                for words in [&["status"][..], &["ip"], &["cluster", "leader"]] {
                    let Ok(answer) = node.ctdb(words) else {
                        continue;
                    };
                    let _ = writeln!(
                        status,
                        "--- node {}: ctdb {}\n{}{}",
                        node.pnn(),
                        words.join(" "),
                        answer.stdout,
                        answer.stderr
                    );
                }
            }
            format!("{}{status}", self.log_tails(15))
        })
    }
}

/// Tries `predicate` every 10 ms until it holds; the time it took.
pub fn wait_until(
    what: &str,
    limit: Duration,
    predicate: impl FnMut() -> bool,
) -> Result<Duration> {
    poll_until(what, limit, Duration::from_millis(10), predicate)
}

fn poll_until(
    what: &str,
    limit: Duration,
    pause: Duration,
    mut predicate: impl FnMut() -> bool,
) -> Result<Duration> {
    let start = Instant::now();
    loop {
        if predicate() {
            return Ok(start.elapsed());
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(pause);
    }
}

/// Rows of a `-X` table as maps from the head's words.
fn parse_table(text: &str) -> Result<Vec<BTreeMap<&str, &str>>> {
    let mut rows = text
        .lines()
        .filter(|l| l.starts_with('|'))
        .map(|l| l.trim_matches('|').split('|').collect::<Vec<_>>());
    let head = rows
        .next()
        .with_context(|| format!("no table in: {text}"))?;
    Ok(rows
        .map(|row| head.iter().copied().zip(row).collect())
        .collect())
}

fn parse_status(text: &str) -> Result<Vec<Seen>> {
    parse_table(text)?
        .into_iter()
        .map(|row| {
            let pnn = row
                .get("Node")
                .and_then(|n| n.parse().ok())
                .context("no node number")?;
            let flags = row
                .iter()
                .filter(|(name, value)| {
                    **value == "1" && !["Node", "IP", "ThisNode", "PartiallyOnline"].contains(name)
                })
                .map(|(name, _)| name.to_lowercase())
                .collect();
            Ok(Seen { pnn, flags })
        })
        .collect()
}

fn parse_ip(text: &str) -> Result<BTreeMap<IpAddr, Option<u32>>> {
    parse_table(text)?
        .into_iter()
        .map(|row| {
            let address = row
                .get("Public IP")
                .and_then(|a| a.parse().ok())
                .context("no address in a row")?;
            let node: i64 = row
                .get("Node")
                .and_then(|n| n.parse().ok())
                .context("no node in a row")?;
            Ok((address, u32::try_from(node).ok().filter(|n| *n != u32::MAX)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{parse_ip, parse_status};

    #[test]
    fn reads_the_tables_of_both() {
        let seen = parse_status(
            "|Node|IP|Disconnected|Unknown|Banned|Disabled|Unhealthy|Stopped|Inactive|PartiallyOnline|ThisNode|\n\
             |0|127.0.0.1|0|0|0|0|0|0|0|0|Y|\n|1|127.0.0.2|1|0|0|0|1|0|1|0|N|\n",
        )
        .unwrap();
        assert!(seen[0].flags.is_empty());
        assert_eq!(seen[1].flags, ["disconnected", "inactive", "unhealthy"]);
        let owners = parse_ip("|Public IP|Node|\n|10.0.0.1|1|\n|fd00::1|-1|\n").unwrap();
        assert_eq!(owners[&"10.0.0.1".parse().unwrap()], Some(1));
        assert_eq!(owners[&"fd00::1".parse().unwrap()], None);
        assert!(parse_ip("nothing").is_err());
    }
}
