//! Our daemon in the places of Debian's package `ctdb`: `/usr/sbin/ctdbd` and `/usr/bin/ctdb` are
//! ours, everything else (event scripts, `functions`, helpers, `onnode`) is the package's, and
//! `/etc/ctdb`, `/var/lib/ctdb`, `/var/log/ctdb` and `/run` are the node's own. As in
//! [`super::reference`] that is a mount namespace; nothing is changed on the host.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Node, find_program, netns, overlay, workspace_binary};

/// Directories of a node that lie over those of the host, as far as it has them.
const OVER: [&str; 5] = [
    "etc/ctdb",
    "etc/samba",
    "var/lib/ctdb",
    "var/log/ctdb",
    "run",
];

/// A file or directory that lies over one of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// What is seen.
    pub source: PathBuf,
    /// Where.
    pub target: PathBuf,
}

impl Cover {
    /// `source` is seen at `target`.
    pub fn new(source: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Self {
        Self {
            source: source.into(),
            target: target.into(),
        }
    }
}

/// A command in a mount namespace of its own; the process stays the one that is started.
fn command(node: &Node, covers: &[Cover], words: &[&Path]) -> Result<Command> {
    let mut command = netns::in_mounts(
        &(overlay::shell_line(node.settings())?
            + "while [ \"$1\" != -- ]; do mount --bind \"$1\" \"$2\"; shift 2; done; shift; exec \"$@\""),
    );
    command.arg("lab");
    // The node's own directories come last: their sources may lie below what they cover.
    for cover in covers {
        command.arg(&cover.source).arg(&cover.target);
    }
    for dir in OVER {
        let own = node.root().join(dir);
        if own.is_dir() {
            command.arg(own).arg(Path::new("/").join(dir));
        }
    }
    command.arg("--").args(words);
    Ok(command)
}

/// Our two programs over the packaged ones, and what the lab was told besides.
fn covers(node: &Node) -> Result<Vec<Cover>> {
    let mut covers = vec![
        Cover::new(workspace_binary("CTDBD_BIN", "ctdbd")?, place("ctdbd")?),
        Cover::new(workspace_binary("CTDB_BIN", "ctdb")?, place("ctdb")?),
    ];
    covers.extend(node.settings().packaged.iter().flatten().cloned());
    Ok(covers)
}

fn place(name: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| format!("finding {name} (install Debian's package ctdb)"))
}

/// The daemon in the foreground.
pub(super) fn daemon_command(node: &Node) -> Result<Command> {
    let ctdbd = place("ctdbd")?;
    command(node, &covers(node)?, &[&ctdbd, Path::new("-i")])
}

impl Node {
    /// A program that finds the node's files in the packaged places and, with `ours`, our two
    /// programs there instead of Debian's; to be started in the node's namespace.
    pub fn packaged_command(&self, ours: bool, words: &[&str]) -> Result<Command> {
        let covers = if ours { covers(self)? } else { Vec::new() };
        let words: Vec<&Path> = words.iter().map(Path::new).collect();
        command(self, &covers, &words)
    }
}
