//! A Ceph of one host from Debian's packages, inside a namespace: one monitor, and one OSD that keeps
//! all in memory. No manager: pools and locks need none. No authentication: the namespace is ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::{self, Netns};

/// The pool that is made.
pub const POOL: &str = "locks";
/// Who speaks to it.
pub const USER: &str = "client.admin";
/// Longest time of one command, in seconds.
const PATIENCE: &str = "60";

/// A daemon of Ceph; ends when dropped.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended with the namespace.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A Ceph that runs; ends when dropped.
pub struct Ceph {
    netns: Netns,
    conf: PathBuf,
    store: Daemon,
    _monitor: Daemon,
}

impl Ceph {
    /// Starts it on an address of the namespace, its files in `dir`, and waits until its pool works.
    pub fn start(netns: &Netns, dir: &Path, address: &str) -> Result<Self> {
        let (mon, osd) = (dir.join("mon"), dir.join("osd"));
        for dir in [&mon, &osd] {
            fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
        }
        let conf = dir.join("ceph.conf");
        let text = format!(
            "[global]\n\
             fsid = 7c1f5a52-0b6e-4d6c-9a53-6f2d4b1c9e10\n\
             mon host = v2:{address}:3300/0\n\
             public addr = {address}\n\
             auth cluster required = none\n\
             auth service required = none\n\
             auth client required = none\n\
             osd pool default size = 1\n\
             osd pool default min size = 1\n\
             mon allow pool size one = true\n\
             osd crush chooseleaf type = 0\n\
             osd objectstore = memstore\n\
             memstore device bytes = 67108864\n\
             mon data avail crit = 0\n\
             mon data = {mon}\n\
             osd data = {osd}\n\
             run dir = {dir}\n\
             admin socket =\n\
             pid file =\n\
             log file = {dir}/$name.log\n",
            mon = mon.display(),
            osd = osd.display(),
            dir = dir.display(),
        );
        fs::write(&conf, text).with_context(|| format!("writing {}", conf.display()))?;
        let missing = "is it installed? `cargo xtask setup` installs it";
        run(netns, &conf, &["ceph-mon", "--mkfs", "--id", "a"]).context(missing)?;
        let monitor = daemon(netns, &conf, &["ceph-mon", "-f", "--id", "a"])?;
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").context("a new UUID")?;
        let uuid = uuid.trim();
        run(netns, &conf, &["ceph", "osd", "new", uuid])?;
        let make = ["ceph-osd", "--mkfs", "--id", "0", "--osd-uuid", uuid];
        run(netns, &conf, &make)?;
        let store = daemon(netns, &conf, &["ceph-osd", "-f", "--id", "0"])?;
        run(netns, &conf, &["ceph", "osd", "pool", "create", POOL, "1"])?;
        let ceph = Self {
            netns: netns.clone(),
            conf,
            store,
            _monitor: monitor,
        };
        // Comes back when the OSD serves.
        let name = ceph.conf.display().to_string();
        ceph.run(&["rados", "-p", POOL, "put", "ready", &name])?;
        Ok(ceph)
    }

    /// Its configuration, for `CEPH_CONF`.
    pub fn conf(&self) -> &Path {
        &self.conf
    }

    /// A tool of Ceph's, to its end and for a minute at most; what it wrote if it succeeded.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        run(&self.netns, &self.conf, words)
    }

    /// Stops the OSD in its tracks, or lets it go on.
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let signal = if frozen {
            Signal::SIGSTOP
        } else {
            Signal::SIGCONT
        };
        let pid = Pid::from_raw(self.store.0.id().cast_signed());
        kill(pid, signal).context("stopping the OSD, or letting it go on")
    }
}

fn command(conf: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.arg("--conf").arg(conf).args(&words[1..]);
    command
}

fn daemon(netns: &Netns, conf: &Path, words: &[&str]) -> Result<Daemon> {
    let mut command = command(conf, words);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Ok(Daemon(netns.spawn(&mut command)?))
}

fn run(netns: &Netns, conf: &Path, words: &[&str]) -> Result<String> {
    let inner = command(conf, words);
    let mut outer = Command::new("timeout");
    outer
        .arg(PATIENCE)
        .arg(inner.get_program())
        .args(inner.get_args());
    let output: Output = netns.output(&mut outer)?;
    netns::judge(&words.join(" "), &output)
}
