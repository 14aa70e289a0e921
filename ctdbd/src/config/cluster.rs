//! `[cluster]`: what gives the right to serve depends on the number of nodes, so that the section
//! is finished when the nodes list is known.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::build::{ANY, seconds};
use super::settings::Reader;
use super::{
    Authority, Cluster, ClusterLock, Lease, LockKind, Nodes, NodesSource, Severity, check,
};

/// `[cluster]` before the nodes list is known.
pub(super) struct RawCluster {
    name: String,
    node_address: Option<IpAddr>,
    lock: Option<ClusterLock>,
    pub(super) nodes_source: Option<NodesSource>,
    leader_timeout: Duration,
    leader_capability: bool,
    lmaster_capability: bool,
    voter_only: bool,
    authority: Option<Authority>,
    authority_good: bool,
    allow_split_brain: bool,
    lock_validity: Duration,
    lock_settle: Option<Duration>,
    pub(super) strict_tunables: bool,
}

impl RawCluster {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        reader.value(
            "cluster",
            "transport",
            |text| {
                if text == "tcp" {
                    Ok(())
                } else {
                    Err(format!("'{text}' is not supported"))
                }
            },
            "write tcp, or remove the line; see `[security] transport` for encryption",
        );
        let mut lock = cluster_lock("cluster lock", reader);
        let former = cluster_lock("recovery lock", reader);
        if lock.is_none() {
            lock = former;
        }
        let authorities = [Authority::Lock, Authority::Majority, Authority::Both];
        let authority_set = reader.text("cluster", "authority").is_some();
        let authority = reader.choice(
            "cluster",
            "authority",
            &authorities.map(|word| (word.name(), word)),
        );
        let name = reader
            .text("cluster", "name")
            .unwrap_or_default()
            .to_owned();
        if name.len() > MAX_NAME {
            let what = format!("the name is longer than {MAX_NAME} bytes");
            reader.error("cluster", "name", what, "shorten it on all nodes");
        }
        Self {
            name,
            node_address: reader.address("cluster", "node address"),
            lock,
            nodes_source: reader.value(
                "cluster",
                "nodes list",
                NodesSource::parse,
                "write a file name, or ! and a command with its full path",
            ),
            leader_timeout: Duration::from_secs(
                reader
                    .integer("cluster", "leader timeout", (1, ANY.1))
                    .into(),
            ),
            leader_capability: reader.boolean("cluster", "leader capability"),
            lmaster_capability: reader.boolean("legacy", "lmaster capability"),
            voter_only: reader.boolean("cluster", "voter only"),
            authority,
            authority_good: authority.is_some() || !authority_set,
            allow_split_brain: reader.boolean("cluster", "allow split brain"),
            lock_validity: reader
                .duration("cluster", "lock validity", seconds(1, 600))
                .unwrap_or_default(),
            lock_settle: reader.duration("cluster", "lock settle", seconds(1, 3600)),
            strict_tunables: reader.boolean("cluster", "strict tunables"),
        }
    }

    /// What depends on the number of nodes: `design.md` section 4. `None` if there is an error.
    pub(super) fn finish(
        self,
        nodes: &Nodes,
        lease: &Lease,
        reader: &mut Reader<'_>,
    ) -> Option<Cluster> {
        let authority = if self.authority_good {
            self.authority(nodes, reader)
        } else {
            None
        };
        // Rule 23 of `authority.md`.
        let timing = lease.profile.timing(lease.queue_bound);
        let least = (self.lock_validity + timing.lease + timing.queue) * 6 / 5;
        let least = Duration::from_millis(least.as_millis() as u64);
        if self.lock_settle.is_some_and(|settle| settle < least) {
            let what = format!("is less than 1.2 x (validity + lease + queue bound) = {least:?}");
            reader.error(
                "cluster",
                "lock settle",
                what,
                "remove the line to have that",
            );
        }
        if self.voter_only && nodes.active().count() == 1 {
            reader.error(
                "cluster",
                "voter only",
                "the only node of a cluster cannot be a voter only",
                "remove the line",
            );
        }
        Some(Cluster {
            name: self.name,
            node_address: self.node_address,
            port: check::service_port(Path::new("/etc/services")),
            lock: self.lock,
            nodes_source: self.nodes_source?,
            leader_timeout: self.leader_timeout,
            leader_capability: self.leader_capability,
            lmaster_capability: self.lmaster_capability,
            voter_only: self.voter_only,
            authority: authority?,
            allow_split_brain: self.allow_split_brain,
            lock_validity: self.lock_validity,
            lock_settle: self.lock_settle.unwrap_or(least),
            strict_tunables: self.strict_tunables,
        })
    }

    fn authority(&self, nodes: &Nodes, reader: &mut Reader<'_>) -> Option<Authority> {
        let count = nodes.active().count();
        let split = self.allow_split_brain;
        match (self.authority, self.lock.is_some()) {
            (Some(word @ (Authority::Lock | Authority::Both)), false) => {
                let what = format!("'{}' needs a cluster lock, and there is none", word.name());
                reader.error(
                    "cluster",
                    "authority",
                    what,
                    "set `cluster lock`, or write majority",
                );
                return None;
            }
            (None, false) if count == 2 && !split => {
                reader.error(
                    "cluster",
                    "cluster lock",
                    "two nodes without a cluster lock cannot tell a dead node from a cut cable",
                    "set `cluster lock`, add a third node (`voter only = true` is enough), or \
                     accept double addresses and lost data with `allow split brain = true`",
                );
                return None;
            }
            (Some(Authority::Majority), _) if count == 2 && !split => reader.add(
                Severity::Warning,
                "cluster",
                "authority",
                "of two nodes both are the majority: when one is lost the other stops serving",
                "use a cluster lock or add a third node, which may be a voter only",
            ),
            _ => {}
        }
        if split && count == 2 && self.lock.is_none() {
            reader.add(
                Severity::Warning,
                "cluster",
                "allow split brain",
                "when the two nodes lose sight of each other both serve all addresses",
                "use a cluster lock or add a third node, which may be a voter only",
            );
        } else if split {
            reader.add(
                Severity::Warning,
                "cluster",
                "allow split brain",
                "has no effect here: it is for two nodes without a cluster lock",
                "remove the line",
            );
        }
        let default = if self.lock.is_some() {
            Authority::Lock
        } else {
            Authority::Majority
        };
        if self.lock.is_none() && self.authority.is_none() && count > 2 {
            reader.add(
                Severity::Note,
                "cluster",
                "cluster lock",
                "there is no cluster lock: the majority of the nodes decides who serves",
                "write `authority = majority` to say that this is meant",
            );
        }
        Some(self.authority.unwrap_or(default))
    }
}

/// Longest `[cluster] name`, in bytes.
const MAX_NAME: usize = 64;

fn cluster_lock(name: &'static str, reader: &mut Reader<'_>) -> Option<ClusterLock> {
    let parse = |text: &str| {
        let kind = if let Some(command) = text.strip_prefix('!') {
            let words: Vec<String> = command
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect();
            if words.is_empty() {
                return Err("there is no command after '!'".to_owned());
            }
            LockKind::Helper(words)
        } else {
            LockKind::File(PathBuf::from(text))
        };
        Ok(ClusterLock {
            text: text.to_owned(),
            kind,
        })
    };
    reader.value(
        "cluster",
        name,
        parse,
        "write a file name, or ! and a command with arguments",
    )
}
