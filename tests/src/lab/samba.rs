//! Debian's Samba on the database of the node's daemon, `clustering = yes`: smbd, nmbd and
//! winbindd of one cluster over one shared directory (spec/client-protocol.md 8).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;

use super::cli::Answer;
use super::{Builder, Flavor, Lab, Node, Service, find_program, netns, overlay, reference};

/// The account that exists on all nodes, in root's name.
pub const PASSWORD: &str = "secret";
/// Python that knows the system's packages.
const PYTHON: &str = "/usr/bin/python3";
/// Two SMB sessions at once; its checks are named in it.
const CLIENT: &str = include_str!("smb_client.py");
/// A client of the witness service.
const WITNESS: &str = include_str!("witness.py");
/// Samba's server of remote procedure calls, where releases from 4.22 on have it in Debian.
const RPC_SERVER: &str = "/usr/libexec/samba/samba-dcerpcd";
/// A line of the configuration with which that server is a daemon of its own, and listens on TCP too.
pub const RPC_SERVER_APART: &str = "rpc start on demand helpers = no";
/// Many sessions that are busy.
const LOAD: &str = include_str!("smb_load.py");

/// What to install.
pub(super) fn lacks() -> Option<&'static str> {
    [
        ("smbd", "package samba"),
        ("winbindd", "package winbind"),
        ("smbclient", "package smbclient"),
    ]
    .into_iter()
    .find(|(program, _)| find_program(program).is_none())
    .map(|(_, package)| package)
}

impl Node {
    /// Folder of the node's Samba.
    pub fn samba_dir(&self) -> PathBuf {
        self.root().join("clustered-smb")
    }

    fn samba_conf_path(&self) -> PathBuf {
        self.root().join("etc/samba/smb.conf")
    }

    /// Makes the directories and the configuration of the node's Samba.
    pub fn prepare_samba(&self) -> Result<()> {
        let dir = self.samba_dir();
        for sub in [
            "lock", "state", "cache", "private", "ncalrpc", "nmbd", "log",
        ] {
            fs::create_dir_all(dir.join(sub))?;
        }
        for dir in ["run/samba", "etc/samba"] {
            fs::create_dir_all(self.root().join(dir))?;
        }
        Ok(fs::write(self.samba_conf_path(), self.samba_conf())?)
    }

    /// Processes on this node whose names begin so (`smbd`, `winbindd`, `nmbd`), whoever started them.
    pub fn samba_processes(&self, name: &str) -> Vec<Pid> {
        let comm = |pid: &Pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let all = self.netns().processes();
        all.into_iter()
            .filter(|pid| comm(pid).starts_with(name))
            .collect()
    }

    /// The daemons of the node's Samba, with the names of their logs.
    pub(super) fn samba_daemons(&self) -> Result<Vec<(Command, String)>> {
        self.prepare_samba()?;
        let options = ["-F", "--no-process-group", "--debug-stdout"];
        let mut daemons = Vec::new();
        if self.settings().smb_conf.contains(RPC_SERVER_APART) {
            let words = [&[RPC_SERVER, "--libexec-rpcds"], &options[..]].concat();
            daemons.push((self.in_samba(&words)?, "samba-dcerpcd.out".to_owned()));
        }
        for name in ["winbindd", "nmbd", "smbd"] {
            let program = find_program(name).with_context(|| format!("finding {name}"))?;
            let program = program.to_string_lossy().into_owned();
            let command = self.in_samba(&[&[program.as_str()], &options[..]].concat())?;
            daemons.push((command, format!("{name}.out")));
        }
        Ok(daemons)
    }

    /// A command line with the node's run directory where programs look for it, and with the
    /// databases where its daemon says that they are.
    fn in_samba(&self, words: &[&str]) -> Result<Command> {
        // A daemon of ours that is not in the package's places says where below the root they are.
        let mut command = netns::in_mounts(
            &(overlay::shell_line(self.settings())?
                + "mount --bind \"$0/run\" /run\n\
             mount --bind \"$0/var/lib/ctdb\" /var/lib/ctdb\nexec \"$@\""),
        );
        command.arg(self.root()).args(words);
        if words[0] != "wbinfo" {
            command.arg("-s").arg(self.samba_conf_path());
        }
        Ok(command)
    }

    /// Runs a program of Samba (`smbstatus`, `net`, `pdbedit`, `wbinfo` ...) on this node.
    pub fn samba(&self, words: &[&str]) -> Result<Answer> {
        let start = Instant::now();
        let out = self.netns().output(&mut self.in_samba(words)?)?;
        Ok(Answer {
            code: out.status.code(),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
            took: start.elapsed(),
        })
    }

    /// Gives root a password of Samba's, on any node for all.
    pub fn samba_account(&self) -> Result<()> {
        self.samba_password("root", PASSWORD)
    }

    /// Gives a user of this host a password of Samba's, on any node for all.
    pub fn samba_password(&self, user: &str, password: &str) -> Result<()> {
        // The options come last, as everywhere; `$0` is what the outer shell has as first word.
        let script =
            format!("printf '%s\\n%s\\n' {password} {password} | smbpasswd -c $1 -a -s {user}");
        self.samba(&["sh", "-c", &script])?.success().map(drop)
    }

    /// `share`; `open`, where guests write files of other guests too; and the like that say who
    /// answers: `notN` is on all nodes but N.
    fn samba_conf(&self) -> String {
        let dir = self.samba_dir();
        let dir = dir.display();
        let more = &self.settings().smb_conf;
        let share = self.root().with_file_name("shared");
        let others = (0..self.settings().nodes).filter(|pnn| *pnn != self.pnn());
        let mut open = String::new();
        for name in others.map(|pnn| format!("not{pnn}")).chain(["open".into()]) {
            let _ = write!(
                open,
                "[{name}]\npath = {}\nguest ok = yes\nread only = no\nforce create mode = 0666\n",
                share.display()
            );
        }
        // What the nodes would see of each other in the kernel that they share here is off, so that
        // conflicts are found by the cluster's databases or not at all.
        format!(
            "[global]\n\
             clustering = yes\n\
             ctdbd socket = /run/ctdb/ctdbd.socket\n\
             kernel oplocks = no\n\
             kernel share modes = no\n\
             kernel change notify = no\n\
             posix locking = no\n\
             netbios name = LAB\n\
             server role = standalone server\n\
             map to guest = Bad User\n\
             guest account = nobody\n\
             passdb backend = tdbsam\n\
             registry shares = yes\n\
             idmap config * : backend = tdb\n\
             idmap config * : range = 100000-200000\n\
             smb ports = 445\n\
             server min protocol = NT1\n\
             disable spoolss = yes\n\
             load printers = no\n\
             printcap name = /dev/null\n\
             lock directory = {dir}/lock\n\
             state directory = {dir}/state\n\
             cache directory = {dir}/cache\n\
             pid directory = /run/samba\n\
             private dir = {dir}/private\n\
             ncalrpc dir = {dir}/ncalrpc\n\
             nmbd:socket dir = {dir}/nmbd\n\
             log file = {dir}/log/log.%m\n\
             log level = 1\n\
             {more}\n\
             [share]\n\
             path = {}\n\
             guest ok = yes\n\
             read only = no\n\
             {open}",
            share.display()
        )
    }
}

impl Lab {
    /// Three nodes with Samba on them and root's account, all addresses served; IPv4 only.
    pub fn with_samba(flavor: Flavor, limit: Duration) -> Result<Self> {
        Self::with_samba_of(Self::builder().flavor(flavor).ipv6(false), limit)
    }

    /// The same with another lab, as one with packages of another release ([`super::overlay`]).
    pub fn with_samba_of(lab: Builder, limit: Duration) -> Result<Self> {
        let missing = Service::ClusteredSmb.lacks();
        if let Some(package) = missing.or_else(reference::lacks) {
            bail!("{package} is missing");
        }
        let lab = lab.build()?;
        lab.bring_up(&[], limit)?;
        lab.start_service(Service::ClusteredSmb)?;
        lab.node(0).samba_account()?;
        Ok(lab)
    }

    /// One address of each node, when each has one.
    pub fn address_of_each(&self, limit: Duration) -> Result<BTreeMap<u32, IpAddr>> {
        let mut of = BTreeMap::new();
        self.wait("an address on every node", limit, || {
            of = self.node(0).ip_owners().map_or_else(
                |_| BTreeMap::new(),
                |owners| {
                    let served = owners.into_iter().filter_map(|(a, o)| Some((o?, a)));
                    served.collect()
                },
            );
            of.len() == self.nodes().len()
        })?;
        Ok(of)
    }

    /// The Python client with two sessions, to be run in the client's namespace: a check's name, and
    /// two addresses. It prints `ok`.
    pub fn smb_client(&self, check: &str, first: &str, second: &str) -> Result<Command> {
        self.python("smb_client.py", CLIENT, &[check, first, second])
    }

    /// Many sessions in the client's namespace that work until their standard input ends; what they
    /// print is said in the program's head.
    pub fn smb_load(&self, sessions: usize, addresses: &[String]) -> Result<Command> {
        let mut command = self.python("smb_load.py", LOAD, &[&sessions.to_string()])?;
        command.args(addresses);
        Ok(command)
    }

    /// A client of the witness service; its words are said in the program's head.
    pub fn witness_client(&self, words: &[&str]) -> Result<Command> {
        self.python("witness.py", WITNESS, words)
    }

    fn python(&self, name: &str, program: &str, words: &[&str]) -> Result<Command> {
        let path = self.dir().join(name);
        fs::write(&path, program)?;
        let mut command = Command::new(PYTHON);
        command.arg(path).args(words);
        Ok(command)
    }

    /// Lines of the nodes' logs that tell of a process that panicked.
    pub fn samba_panics(&self) -> Vec<String> {
        let mut found = Vec::new();
        for node in self.nodes() {
            for dir in [node.root().join("log"), node.samba_dir().join("log")] {
                for log in fs::read_dir(dir).into_iter().flatten().flatten() {
                    let text = fs::read(log.path()).unwrap_or_default();
                    let text = String::from_utf8_lossy(&text);
                    let bad = ["PANIC", "INTERNAL ERROR", "panicked at"];
                    let lines = text.lines().filter(|l| bad.iter().any(|b| l.contains(b)));
                    found.extend(lines.map(|l| format!("{}: {l}", log.path().display())));
                }
            }
        }
        found
    }
}
