//! Debian's CTDB on a node of the lab, for comparison.
//!
//! Its test mode keeps its files together but is no production path, so it runs as packaged, in
//! a mount namespace of its own where the node's directories lie over `/etc/ctdb`,
//! `/var/lib/ctdb`, `/var/log/ctdb` and `/run`. The packaged event scripts `00.ctdb` and
//! `10.interface` are on, so it manages addresses.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Node, find_program, netns, overlay};

/// Word of its tool for the leader's number.
pub(super) const LEADER_VERB: &str = "leader";

/// Event scripts that are switched on.
const SCRIPTS: [&str; 2] = ["00.ctdb.script", "10.interface.script"];

/// Whether it can be run here; otherwise what to install.
pub fn lacks() -> Option<&'static str> {
    find_program("ctdbd").is_none().then_some("package ctdb")
}

/// Adds the package's own files to a node's configuration folder.
pub(super) fn prepare(node: &Node) -> Result<()> {
    let host = Path::new("/").to_path_buf();
    let root = node.settings().overlay.as_ref().unwrap_or(&host);
    netns::copy_missing(&root.join("etc/ctdb"), &node.etc())
        .context("copying the configuration of Debian's package ctdb (is it installed?)")?;
    let legacy = node.etc().join("events/legacy");
    fs::create_dir_all(&legacy)?;
    for script in SCRIPTS {
        let link = legacy.join(script);
        if fs::symlink_metadata(&link).is_err() {
            let target = format!("/usr/share/ctdb/events/legacy/{script}");
            std::os::unix::fs::symlink(&target, &link)
                .with_context(|| format!("switching {script} on"))?;
        }
    }
    for dir in ["var/lib/ctdb/scripts", "run/lock"] {
        fs::create_dir_all(node.root().join(dir))?;
    }
    Ok(())
}

/// The daemon in the foreground. The process stays the one that is started, by `exec`.
pub(super) fn daemon_command(node: &Node) -> Result<Command> {
    let ctdbd = find_program("ctdbd").context("finding ctdbd (install Debian's package ctdb)")?;
    let mut command = netns::in_mounts(
        &(overlay::shell_line(node.settings())?
            + "for d in etc/ctdb var/lib/ctdb var/log/ctdb run; do mount --bind \"$1/$d\" \"/$d\"; done\n\
         exec \"$2\" -i"),
    );
    command.arg("lab").arg(node.root()).arg(ctdbd);
    Ok(command)
}

/// The packaged tool, or whatever `words` name, in the daemon's mount namespace.
pub(super) fn cli_command(node: &Node, words: &[&str]) -> Result<Command> {
    let pid = node
        .daemon_pid()
        .with_context(|| format!("CTDB's daemon of node {} is not running", node.pnn()))?;
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--mount=/proc/{pid}/ns/mnt"))
        .arg("--")
        .args(words);
    Ok(command)
}
