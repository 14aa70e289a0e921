//! What a stopped daemon left on its node: nothing, if all is well.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Netns, Node, netns};

impl Node {
    /// Everything of a daemon that is still there though it was stopped, in words: processes,
    /// public addresses, nftables tables, attached BPF programs, mounts, sockets and pid files.
    pub fn left_behind(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        for pid in self.netns().processes() {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            if name.starts_with("ctdb") {
                left.push(format!("process {pid} ({})", name.trim()));
            }
        }
        for address in self.public_addresses_present()? {
            left.push(format!("public address {address}"));
        }
        for table in self.netns().run("nft", &["list", "tables"])?.lines() {
            left.push(format!("nftables: {table}"));
        }
        left.extend(attached(self.netns())?);
        for mount in netns::mounts_below(self.root()) {
            left.push(format!("mount {}", mount.display()));
        }
        walk(&self.root().join("run"), &mut left)?;
        Ok(left
            .into_iter()
            .map(|what| format!("node {}: {what}", self.pnn()))
            .collect())
    }

    /// Public addresses that are on an interface of the node.
    pub fn public_addresses_present(&self) -> Result<Vec<std::net::IpAddr>> {
        let text = self.netns().ip("-json addr show")?;
        let links: Value = serde_json::from_str(&text).context("reading `ip -json addr show`")?;
        let known = self.settings().public_addresses();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let mut found: Vec<_> = list(&links)
            .iter()
            .flat_map(|link| list(&link["addr_info"]))
            .filter_map(|info| info["local"].as_str()?.parse().ok())
            .filter(|address| known.contains(address))
            .collect();
        found.sort_unstable();
        Ok(found)
    }
}

/// BPF programs on interfaces of the namespace.
fn attached(space: &Netns) -> Result<Vec<String>> {
    let text = space.run("bpftool", &["-j", "net", "show"])?;
    let shown: Value = serde_json::from_str(&text).context("reading `bpftool net`")?;
    let mut found = Vec::new();
    for group in shown.as_array().into_iter().flatten() {
        for kind in ["xdp", "tc"] {
            for program in group[kind].as_array().into_iter().flatten() {
                found.push(format!("BPF program {program}"));
            }
        }
    }
    Ok(found)
}

/// Everything but directories, and but lock files that are empty.
fn walk(dir: &Path, left: &mut Vec<String>) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", dir.display())),
    };
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            // What Samba's programs leave there is not the daemon's.
            if entry.file_name() != "samba" {
                walk(&entry.path(), left)?;
            }
        } else {
            // Stays by intent until the host boots: a daemon has run (R10, `core::cold`).
            if entry.file_name() == "ctdbd.started" {
                continue;
            }
            let what = if kind.is_socket() { "socket" } else { "file" };
            left.push(format!("{what} {}", entry.path().display()));
        }
    }
    Ok(())
}
