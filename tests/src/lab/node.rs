//! One node of a lab: its files, its daemon, and what can be done to it.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Flavor, Netns, Service, Settings, packaged, reference, wires, workspace_binary};

/// Links of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// To the private network.
    Private,
    /// To the public network.
    Public,
    /// All.
    All,
}

/// What a freeze (SIGSTOP) strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freeze {
    /// The daemon's main process.
    Daemon,
    /// All processes of the node. Its kernel goes on.
    Node,
}

/// A node. All of it works through shared references; several threads may use it.
pub struct Node {
    pnn: u32,
    root: PathBuf,
    netns: Netns,
    switch: Netns,
    settings: Arc<Settings>,
    daemon: Mutex<Option<Child>>,
    pub(super) services: Mutex<Vec<(Service, Child)>>,
}

impl Node {
    pub(super) fn new(
        pnn: u32,
        lab_dir: &Path,
        netns: Netns,
        switch: &Netns,
        settings: &Arc<Settings>,
    ) -> Self {
        Self {
            pnn,
            root: lab_dir.join(format!("n{pnn}")),
            netns,
            switch: switch.clone(),
            settings: Arc::clone(settings),
            daemon: Mutex::new(None),
            services: Mutex::new(Vec::new()),
        }
    }

    /// Node number.
    pub fn pnn(&self) -> u32 {
        self.pnn
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Directory below which it has `etc/ctdb`, `var/lib/ctdb`, `run/ctdb`, `var/log/ctdb`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Folder of its configuration.
    pub fn etc(&self) -> PathBuf {
        self.root.join("etc/ctdb")
    }

    /// Its own address on the public network, which does not move.
    pub fn own_address(&self) -> std::net::IpAddr {
        wires::own_v4(self.pnn).into()
    }

    /// Whether it only votes.
    pub fn votes_only(&self) -> bool {
        self.pnn >= self.settings.nodes - self.settings.voters_only
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn change_settings(&mut self, settings: &Arc<Settings>) {
        self.settings = Arc::clone(settings);
    }

    pub(super) fn wire(&self) -> Result<()> {
        wires::build_node(self.pnn, &self.netns, &self.switch, &self.settings)
    }

    pub(super) fn write_configuration(&self, key: &[u8; 32]) -> Result<()> {
        for dir in [
            "etc/ctdb",
            "var/lib/ctdb/volatile",
            "var/lib/ctdb/persistent",
            "var/lib/ctdb/state",
            "var/log/ctdb",
            "run/ctdb",
            "log",
        ] {
            fs::create_dir_all(self.root.join(dir))
                .with_context(|| format!("making {dir} below {}", self.root.display()))?;
        }
        let etc = self.etc();
        self.write("nodes", &nodes_list(&self.settings))?;
        if !self.votes_only() {
            self.write("public_addresses", &public_list(&self.settings))?;
        }
        if !self.settings.tunables.is_empty() {
            let mut lines = String::new();
            for (name, value) in &self.settings.tunables {
                let _ = writeln!(lines, "{name}={value}");
            }
            self.write("ctdb.tunables", &lines)?;
        }
        self.write("ctdb.conf", &self.configuration())?;
        match self.settings.flavor {
            Flavor::Ours => write_cluster_key(&etc.join("cluster.key"), key),
            Flavor::Ctdb => reference::prepare(self),
        }
    }

    /// Replaces one file of its configuration.
    pub fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.etc().join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
    }

    fn configuration(&self) -> String {
        let mut lines: Vec<(String, String, String)> = Vec::new();
        let mut set = |section: &str, key: &str, value: &str| {
            lines.retain(|(s, k, _)| s != section || k != key);
            lines.push((section.into(), key.into(), value.into()));
        };
        match self.settings.flavor {
            Flavor::Ours => {
                set("logging", "log level", "INFO");
                set("lease", "profile", &self.settings.profile);
                if self.votes_only() {
                    set("cluster", "voter only", "yes");
                }
            }
            Flavor::Ctdb => {
                set("logging", "log level", "NOTICE");
                set("legacy", "realtime scheduling", "false");
            }
        }
        for (section, key, value) in &self.settings.conf {
            set(section, key, value);
        }
        lines.sort_by(|a, b| a.0.cmp(&b.0));
        let mut text = String::new();
        let mut last = "";
        for (section, key, value) in &lines {
            if section != last {
                let _ = writeln!(text, "[{section}]");
                last = section;
            }
            let _ = writeln!(text, "\t{key} = {value}");
        }
        text
    }

    /// Starts the daemon in the foreground, its output to `log/ctdbd.out` of the node.
    pub fn start_daemon(&self) -> Result<()> {
        let mut daemon = self.daemon();
        if let Some(child) = daemon.as_mut()
            && child.try_wait()?.is_none()
        {
            bail!("the daemon of node {} is running already", self.pnn);
        }
        let mut command = match self.settings.flavor {
            Flavor::Ours if self.settings.packaged.is_some() => packaged::daemon_command(self)?,
            Flavor::Ours => {
                let mut command = Command::new(workspace_binary("CTDBD_BIN", "ctdbd")?);
                command.arg("-i").env("CTDBD_ROOT", &self.root);
                command
            }
            Flavor::Ctdb => reference::daemon_command(self)?,
        };
        command.envs(self.settings.environment.iter().map(|(k, v)| (k, v)));
        *daemon = Some(self.spawn(&mut command, "ctdbd.out")?);
        Ok(())
    }

    /// Starts a child inside, its output appended to a file in `log` of the node.
    pub(super) fn spawn(&self, command: &mut Command, log: &str) -> Result<Child> {
        let path = self.root.join("log").join(log);
        let open = || -> Result<File> {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .with_context(|| format!("opening {}", path.display()))
        };
        // A group of its own: Ctrl-C in a terminal is for the lab's maker alone.
        command
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .process_group(0);
        self.netns.spawn(command)
    }

    /// Process id of the daemon's main process while it runs.
    pub fn daemon_pid(&self) -> Option<Pid> {
        let mut daemon = self.daemon();
        let child = daemon.as_mut()?;
        match child.try_wait() {
            Ok(None) => i32::try_from(child.id()).ok().map(Pid::from_raw),
            _ => None,
        }
    }

    /// Whether the daemon runs.
    pub fn is_running(&self) -> bool {
        self.daemon_pid().is_some()
    }

    /// Sends a signal to the daemon's main process.
    pub fn kill_daemon(&self, signal: Signal) -> Result<()> {
        let pid = self
            .daemon_pid()
            .with_context(|| format!("the daemon of node {} is not running", self.pnn))?;
        kill(pid, signal).with_context(|| format!("signalling the daemon of node {}", self.pnn))
    }

    /// Waits for the daemon's end; its status, or an error after `limit`.
    pub fn wait_daemon_exit(&self, limit: Duration) -> Result<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            // The lock is not held over the sleep: others may want the pid.
            if let Some(child) = self.daemon().as_mut() {
                if let Some(status) = child.try_wait()? {
                    return Ok(status);
                }
            } else {
                bail!("node {} has no daemon", self.pnn);
            }
            if Instant::now() > until {
                bail!("the daemon of node {} still runs after {limit:?}", self.pnn);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// SIGTERM, then waits for the end. CTDB dies of that without a word, so its tool is asked.
    pub fn stop_graceful(&self, limit: Duration) -> Result<ExitStatus> {
        match self.settings.flavor {
            Flavor::Ours => self.kill_daemon(Signal::SIGTERM)?,
            Flavor::Ctdb => drop(self.ctdb(&["shutdown"])?.success()?),
        }
        self.wait_daemon_exit(limit)
    }

    /// SIGSTOP.
    pub fn freeze(&self, what: Freeze) -> Result<()> {
        self.pass(what, Signal::SIGSTOP)
    }

    /// SIGCONT.
    pub fn thaw(&self, what: Freeze) -> Result<()> {
        self.pass(what, Signal::SIGCONT)
    }

    fn pass(&self, what: Freeze, signal: Signal) -> Result<()> {
        match what {
            Freeze::Daemon => self.kill_daemon(signal),
            Freeze::Node => {
                self.netns.signal_all(signal);
                Ok(())
            }
        }
    }

    /// Cuts links at the switch; the node sees its carrier go.
    pub fn cut_links(&self, links: Links) -> Result<()> {
        wires::set_ports(
            &self.switch,
            &wires::ports(self.pnn, links, &self.settings),
            false,
        )
    }

    /// Joins cut links again.
    pub fn restore_links(&self, links: Links) -> Result<()> {
        wires::set_ports(
            &self.switch,
            &wires::ports(self.pnn, links, &self.settings),
            true,
        )
    }

    /// Takes one interface away for good, as a driver's removal does; its addresses go with it.
    pub fn delete_interface(&self, name: &str) -> Result<()> {
        self.switch
            .ip(&format!("link del {}", wires::port(self.pnn, name)))
            .map(drop)
    }

    /// Makes a deleted interface again, up and with the addresses that it had at first.
    pub fn create_interface(&self, name: &str) -> Result<()> {
        wires::plug(self.pnn, &self.netns, &self.switch, &self.settings, name)
    }

    /// Pulls one interface's cable, or puts it back.
    pub fn set_cable(&self, name: &str, plugged: bool) -> Result<()> {
        wires::set_ports(&self.switch, &[wires::port(self.pnn, name)], plugged)
    }

    /// Power loss: links first, then every process, by SIGKILL.
    pub fn power_loss(&self) -> Result<()> {
        self.cut_links(Links::All)?;
        self.netns.kill_all();
        self.reap_children();
        Ok(())
    }

    /// Power again: a new kernel state (namespace), empty run directory, disks as they were.
    /// Daemon and services are not started.
    pub fn restore_power(&self) -> Result<()> {
        wires::remove_node(self.pnn, &self.netns, &self.switch, &self.settings);
        self.reap_children();
        let run = self.root.join("run");
        super::netns::unmount_below(&run);
        let _ = fs::remove_dir_all(&run);
        fs::create_dir_all(run.join("ctdb"))
            .with_context(|| format!("making {}", run.display()))?;
        self.wire()
    }

    /// Collects children that have ended and forgets them.
    pub(super) fn reap_children(&self) {
        let ended = |child: &mut Child| !matches!(child.try_wait(), Ok(None));
        let mut daemon = self.daemon();
        if daemon.as_mut().is_some_and(ended) {
            *daemon = None;
        }
        self.services
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain_mut(|(_, child)| !ended(child));
    }

    /// Last lines of each of its logs.
    pub fn log_tails(&self, lines: usize) -> String {
        let mut text = String::new();
        for dir in ["log", "var/log/ctdb"] {
            for entry in fs::read_dir(self.root.join(dir))
                .into_iter()
                .flatten()
                .flatten()
            {
                if !entry.path().is_file() {
                    continue;
                }
                let bytes = fs::read(entry.path()).unwrap_or_default();
                let content = String::from_utf8_lossy(&bytes);
                let all: Vec<_> = content.lines().collect();
                if !all.is_empty() {
                    let _ = writeln!(
                        text,
                        "--- node {}: {dir}/{}\n{}",
                        self.pnn,
                        entry.file_name().to_string_lossy(),
                        all[all.len().saturating_sub(lines)..].join("\n")
                    );
                }
            }
        }
        text
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        // A panic while it was held leaves a child to be ended all the same.
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nodes_list(settings: &Settings) -> String {
    let mut text = String::new();
    for pnn in 0..settings.nodes {
        let _ = if settings.private_ipv6 {
            writeln!(text, "{}", wires::private_v6(pnn))
        } else {
            writeln!(text, "{}", wires::private_v4(pnn))
        };
    }
    text
}

fn public_list(settings: &Settings) -> String {
    let interfaces = settings.public_interface_names().join(",");
    let mut text = String::new();
    for address in settings.public_addresses() {
        let _ = writeln!(
            text,
            "{address}/{} {interfaces}",
            settings.public_prefix(address)
        );
    }
    text
}

/// The cluster key's file, for root alone; its form is defined by `ctdbd::transport::key`.
fn write_cluster_key(path: &Path, key: &[u8; 32]) -> Result<()> {
    fs::write(path, format!("ctdb-cluster-key-1 {}\n", base64(key)))
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o600)))
        .with_context(|| format!("writing {}", path.display()))
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0_u32, |w, i| {
            w << 8 | u32::from(*chunk.get(i).unwrap_or(&0))
        });
        for i in 0..4 {
            if i <= chunk.len() {
                text.push(char::from(LETTERS[(word >> (18 - 6 * i) & 63) as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_as_in_rfc_4648() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }
}
