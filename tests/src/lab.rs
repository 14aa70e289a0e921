//! A laboratory: nodes, switches and a client in network namespaces of its own, with real
//! daemons and real services, faults to inject, and instruments that see what a client and a
//! switch see. Used by `cargo xtask demo|bench|lab` and by the tests of this package.
//!
//! ```text
//!   node 0        node 1        node 2          client
//!   priv0 pub0    priv0 pub0    priv0 pub0      eth0
//!     |     |       |     |       |     |         |
//!   ==br-priv=====================     =br-pub======   (both bridges in one namespace)
//! ```
//!
//! * [`Lab`] builds, starts, waits and cleans up; [`node::Node`] has the faults.
//! * [`scenario`]: one failover from a healthy cluster to the verdict.
//! * [`probe`]: new TCP connections every few milliseconds; [`observe`]: who answers for which
//!   public address on the wires; [`timeline`]: all of it drawn as it happens.
//!
//! Needs root. Nothing is done to the host's own network. A lab goes away when it is dropped,
//! when its process dies in whatever way (a watchdog process sees to that), and, should both
//! fail, when the next lab is built.

pub mod bystander;
pub mod ceph;
pub mod cli;
pub mod clock;
pub mod cluster_lock;
pub mod held;
pub mod history;
mod leftovers;
pub mod load;
pub mod netns;
pub mod node;
pub mod observe;
pub mod overlay;
pub mod packaged;
pub mod plain;
pub mod probe;
pub mod reference;
pub mod samba;
pub mod scenario;
pub mod services;
pub mod sessions;
pub mod smb;
pub mod stage;
pub mod timeline;
pub mod torture;
pub mod usage;
mod wires;

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};

pub use clock::Stamp;
pub use netns::Netns;
pub use node::{Freeze, Links, Node};
pub use services::Service;

/// Whose daemons run in the lab.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavor {
    /// This project's.
    #[default]
    Ours,
    /// Debian's package `ctdb`, for comparison.
    Ctdb,
}

impl Flavor {
    /// Ours, or with `CTDB_LAB_FLAVOR=ctdb` Debian's: by hand, to see what a test that is for ours finds
    /// there.
    pub fn wanted() -> Self {
        match std::env::var("CTDB_LAB_FLAVOR").as_deref() {
            Ok("ctdb") => Self::Ctdb,
            _ => Self::Ours,
        }
    }
}

/// What a lab is to look like; made by [`Lab::builder`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Configured nodes, voters included, 1–64.
    pub nodes: u32,
    /// How many of them, counted from the last, only vote.
    pub voters_only: u32,
    /// IPv6 on all networks, and as many IPv6 public addresses as IPv4 ones.
    pub ipv6: bool,
    /// The nodes list names IPv6 addresses.
    pub private_ipv6: bool,
    /// Public addresses of each family.
    pub public: u32,
    /// Interfaces of a node on the public network: `pub0`, `pub1` …
    pub public_interfaces: u32,
    /// `[lease] profile`.
    pub profile: String,
    /// Further lines of `ctdb.conf`: section, key, value. They win over the lab's own.
    pub conf: Vec<(String, String, String)>,
    /// Lines of a tunables file: name and value.
    pub tunables: Vec<(String, u32)>,
    /// Whose daemons.
    pub flavor: Flavor,
    /// Further variables for the daemon.
    pub environment: Vec<(String, String)>,
    /// Ours in the places of Debian's package, and what lies over the host's files besides.
    pub packaged: Option<Vec<packaged::Cover>>,
    /// Root whose `/usr` lies over the host's for everything that is packaged: CTDB, Samba, scripts
    /// ([`overlay`]).
    pub overlay: Option<PathBuf>,
    /// Further lines of the global section of Samba's configuration.
    pub smb_conf: String,
}

/// Collects the wishes for a lab.
#[derive(Clone, Debug)]
pub struct Builder(Settings);

impl Builder {
    /// Number of nodes, 3 unless told.
    #[must_use]
    pub fn nodes(mut self, nodes: u32) -> Self {
        self.0.nodes = nodes;
        self
    }

    /// The last `count` nodes only vote.
    #[must_use]
    pub fn voters_only(mut self, count: u32) -> Self {
        self.0.voters_only = count;
        self
    }

    /// With IPv6 (the default) or without.
    #[must_use]
    pub fn ipv6(mut self, on: bool) -> Self {
        self.0.ipv6 = on;
        self
    }

    /// Nodes know each other by IPv6 addresses.
    #[must_use]
    pub fn private_ipv6(mut self, on: bool) -> Self {
        self.0.private_ipv6 = on;
        self
    }

    /// Number of public addresses of each family, 3 unless told.
    #[must_use]
    pub fn public_addresses(mut self, count: u32) -> Self {
        self.0.public = count;
        self
    }

    /// Number of public interfaces of each node, 1 unless told.
    #[must_use]
    pub fn public_interfaces(mut self, count: u32) -> Self {
        self.0.public_interfaces = count;
        self
    }

    /// Timing profile, `standard` unless told.
    #[must_use]
    pub fn profile(mut self, name: &str) -> Self {
        name.clone_into(&mut self.0.profile);
        self
    }

    /// One more line of `ctdb.conf`, on all nodes.
    #[must_use]
    pub fn conf(mut self, section: &str, key: &str, value: &str) -> Self {
        self.0.conf.push((section.into(), key.into(), value.into()));
        self
    }

    /// A tunable, on all nodes.
    #[must_use]
    pub fn tunable(mut self, name: &str, value: u32) -> Self {
        self.0.tunables.push((name.into(), value));
        self
    }

    /// Whose daemons; ours unless told.
    #[must_use]
    pub fn flavor(mut self, flavor: Flavor) -> Self {
        self.0.flavor = flavor;
        self
    }

    /// An environment variable for the daemons.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.0.environment.push((name.into(), value.into()));
        self
    }

    /// Ours in the places of Debian's package, with its scripts and helpers ([`packaged`]).
    #[must_use]
    pub fn packaged(mut self, covers: Vec<packaged::Cover>) -> Self {
        self.0.packaged = Some(covers);
        self
    }

    /// Packaged programs of another release: what [`overlay::overlay`] gave.
    #[must_use]
    pub fn overlay(mut self, root: PathBuf) -> Self {
        self.0.overlay = Some(root);
        self
    }

    /// Further lines of the global section of Samba's configuration.
    #[must_use]
    pub fn smb_conf(mut self, lines: &str) -> Self {
        lines.clone_into(&mut self.0.smb_conf);
        self
    }

    /// Makes namespaces, wires and configuration; starts no daemon and no service.
    pub fn build(self) -> Result<Lab> {
        Lab::new(self.0)
    }
}

/// A lab. Its end takes everything with it unless it was told to [`Lab::keep`].
pub struct Lab {
    name: String,
    dir: PathBuf,
    settings: Arc<Settings>,
    switch: Netns,
    client: Netns,
    nodes: Vec<Node>,
    watchdog: Option<Child>,
    keep: bool,
}

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Whether labs can be built here; otherwise the reason, in one line.
pub fn lacks() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("network namespaces need root".into());
    }
    for program in ["ip", "nft"] {
        if find_program(program).is_none() {
            return Some(format!(
                "program {program} is missing (packages iproute2, nftables)"
            ));
        }
    }
    helper_binary().err().map(|e| e.to_string())
}

impl Lab {
    /// Three nodes, both families, three public addresses of each, profile `standard`.
    pub fn builder() -> Builder {
        Builder(Settings {
            nodes: 3,
            voters_only: 0,
            ipv6: true,
            private_ipv6: false,
            public: 3,
            public_interfaces: 1,
            profile: "standard".into(),
            conf: Vec::new(),
            tunables: Vec::new(),
            flavor: Flavor::Ours,
            environment: Vec::new(),
            packaged: None,
            overlay: None,
            smb_conf: String::new(),
        })
    }

    fn new(settings: Settings) -> Result<Self> {
        ensure!(
            (1..=64).contains(&settings.nodes),
            "a lab has 1 to 64 nodes"
        );
        ensure!(
            settings.voters_only < settings.nodes,
            "a lab needs a node that hosts addresses"
        );
        ensure!(
            settings.public <= 20_000,
            "at most 20000 public addresses of a family"
        );
        if let Some(reason) = lacks() {
            anyhow::bail!("no lab can be built here: {reason}");
        }
        netns::reap_stale();
        let name = netns::lab_name(COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = netns::lab_dir(&name);
        let settings = Arc::new(settings);
        let switch = Netns::new(format!("{name}-sw"));
        let nodes = (0..settings.nodes)
            .map(|pnn| {
                Node::new(
                    pnn,
                    &dir,
                    Netns::new(format!("{name}-n{pnn}")),
                    &switch,
                    &settings,
                )
            })
            .collect();
        // From here on, dropping the half-built lab cleans up.
        let mut lab = Self {
            client: Netns::new(format!("{name}-cl")),
            name,
            dir,
            settings,
            switch,
            nodes,
            watchdog: None,
            keep: false,
        };
        lab.watchdog = Some(
            Command::new(helper_binary()?)
                .args(["watch", "--name", &lab.name])
                .stdin(Stdio::piped())
                .spawn()
                .context("starting the lab's watchdog")?,
        );
        fs::create_dir(&lab.dir)
            .with_context(|| format!("making the lab's directory {}", lab.dir.display()))?;
        fs::create_dir(lab.shared_dir())?;
        open_to_all(&lab.shared_dir())?;
        wires::build_switch(&lab)?;
        let key = random_bytes()?;
        for node in &lab.nodes {
            node.wire()?;
            node.write_configuration(&key)?;
        }
        Ok(lab)
    }

    /// Its name, the beginning of the names of its namespaces.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory; below it `nN` for each node.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A directory that all nodes share, writable for everybody: stands for the cluster file
    /// system.
    pub fn shared_dir(&self) -> PathBuf {
        self.dir.join("shared")
    }

    /// What it was built as.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The namespace with both bridges.
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    /// The client's namespace.
    pub fn client(&self) -> &Netns {
        &self.client
    }

    /// All nodes in order of number.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Node number `pnn`. Panics if the lab has none such: a bug of the test.
    pub fn node(&self, pnn: u32) -> &Node {
        &self.nodes[pnn as usize]
    }

    /// The nodes that host addresses.
    pub fn hosts(&self) -> &[Node] {
        &self.nodes[..(self.settings.nodes - self.settings.voters_only) as usize]
    }

    /// All public addresses, IPv4 first.
    pub fn public_addresses(&self) -> Vec<IpAddr> {
        self.settings.public_addresses()
    }

    /// Leaves everything running when the lab is dropped and the process ends; to be removed
    /// with [`netns::destroy`].
    pub fn keep(&mut self) -> Result<()> {
        fs::write(self.dir.join(netns::KEEP_MARK), b"")?;
        self.keep = true;
        Ok(())
    }

    /// The given words, or a shell (`$SHELL`), on a node or on the client: for `cargo xtask lab`.
    /// On a node `ctdb` finds its daemon.
    pub fn shell(&self, node: Option<u32>, words: &[std::ffi::OsString]) -> Result<Command> {
        let space = node.map_or(&self.client, |pnn| self.node(pnn).netns());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", space.path().display()))
            .arg("--");
        if words.is_empty() {
            command.arg(std::env::var_os("SHELL").unwrap_or_else(|| "/bin/bash".into()));
        }
        command.args(words);
        if let Some(pnn) = node {
            command.env("CTDBD_ROOT", self.node(pnn).root());
            let here = workspace_binary("CTDB_BIN", "ctdb")?;
            let path = std::env::var_os("PATH").unwrap_or_default();
            let dirs = here.parent().map(Path::to_path_buf).into_iter();
            command.env(
                "PATH",
                std::env::join_paths(dirs.chain(std::env::split_paths(&path)))?,
            );
        }
        Ok(command)
    }

    /// How an operator gets into a lab that was kept, and rid of it; lines of shell commands.
    pub fn how_to_enter(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            let _ = writeln!(
                text,
                "nsenter --net={} env CTDBD_ROOT={} ctdb status",
                node.netns().path().display(),
                node.root().display()
            );
        }
        let _ = writeln!(text, "nsenter --net={} bash", self.client.path().display());
        if let Ok(helper) = helper_binary() {
            let _ = writeln!(text, "{} destroy --name {}", helper.display(), self.name);
        }
        text
    }

    /// Starts the daemons of all nodes, without waiting for anything.
    pub fn start_daemons(&self) -> Result<()> {
        self.nodes.iter().try_for_each(Node::start_daemon)
    }

    /// The nodes' daemons are of `flavor` from now on, in the places of the package, with the
    /// configuration and the files that the other's leave; no daemon may run. The one extra step,
    /// the cluster key, is made if there is none.
    pub fn migrate(&mut self, flavor: Flavor) -> Result<()> {
        let running = self.nodes.iter().find(|node| node.is_running());
        if let Some(node) = running {
            anyhow::bail!("the daemon of node {} still runs", node.pnn());
        }
        let mut settings = (*self.settings).clone();
        settings.flavor = flavor;
        settings.packaged = (flavor == Flavor::Ours).then(Vec::new);
        self.settings = Arc::new(settings);
        for node in &mut self.nodes {
            node.change_settings(&self.settings);
        }
        let key = self.node(0).etc().join("cluster.key");
        if flavor == Flavor::Ours && !key.exists() {
            self.node(0).ctdb(&["config", "keygen"])?.success()?;
            for node in &self.nodes[1..] {
                fs::copy(&key, node.etc().join("cluster.key"))?;
            }
        }
        Ok(())
    }

    /// Last lines of every log of every node, for a test that failed.
    pub fn log_tails(&self, lines: usize) -> String {
        self.nodes.iter().map(|n| n.log_tails(lines)).collect()
    }

    /// Lets frames from `from` to `to` on that network be lost from now on; one way only.
    pub fn block(&self, from: u32, to: u32, links: Links) -> Result<()> {
        wires::block(self, from, to, links)
    }

    /// Cuts all ways between the nodes of `island` and all others (not the client), without any
    /// link going down.
    pub fn partition(&self, island: &[u32], links: Links) -> Result<()> {
        for a in 0..self.settings.nodes {
            for b in 0..self.settings.nodes {
                if island.contains(&a) != island.contains(&b) {
                    self.block(a, b, links)?;
                }
            }
        }
        Ok(())
    }

    /// Ends all blocks and partitions.
    pub fn heal(&self) -> Result<()> {
        wires::heal(self)
    }

    /// Ends everything and says what could not be removed: empty when nothing was left behind.
    pub fn destroy(self) -> Vec<String> {
        let name = self.name.clone();
        let kept = self.keep;
        drop(self);
        if kept {
            Vec::new()
        } else {
            netns::remains(&name)
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.keep {
            netns::destroy(&self.name);
            // Children that died above are still to be waited for.
            for node in &self.nodes {
                node.reap_children();
            }
        }
        if let Some(mut watchdog) = self.watchdog.take() {
            if let Some(mut stdin) = watchdog.stdin.take() {
                let _ = stdin.write_all(if self.keep { b"keep" } else { b"done" });
            }
            let _ = watchdog.wait();
        }
    }
}

impl Settings {
    /// All public addresses, IPv4 first. Up to 150 a family are 10.99.2.100 and on; more are
    /// in 10.98.0.0/16.
    pub fn public_addresses(&self) -> Vec<IpAddr> {
        let v4 = (0..self.public).map(|k| {
            IpAddr::V4(if self.many() {
                Ipv4Addr::from(
                    u32::from(Ipv4Addr::new(10, 98, 1, 0)) + (k / 250) * 256 + k % 250 + 1,
                )
            } else {
                Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 99, 2, 100)) + k)
            })
        });
        let v6 = (0..if self.ipv6 { self.public } else { 0 }).map(|k| {
            IpAddr::V6(Ipv6Addr::from(
                u128::from(PUBLIC_V6) + 0x100 + u128::from(k),
            ))
        });
        v4.chain(v6).collect()
    }

    /// Prefix length of a public address.
    pub fn public_prefix(&self, address: IpAddr) -> u8 {
        match address {
            IpAddr::V4(_) if self.many() => 16,
            IpAddr::V4(_) => 24,
            IpAddr::V6(_) => 64,
        }
    }

    fn many(&self) -> bool {
        self.public > 150
    }

    /// Names of a node's public interfaces.
    pub fn public_interface_names(&self) -> Vec<String> {
        (0..self.public_interfaces)
            .map(|i| format!("pub{i}"))
            .collect()
    }
}

const PRIVATE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 1, 0, 0, 0, 0, 0);
const PUBLIC_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x99, 2, 0, 0, 0, 0, 0);

/// Where a program of this workspace is: `$variable`, or beside (or one above, for tests) the
/// running program.
pub fn workspace_binary(variable: &str, name: &str) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let here = std::env::current_exe().context("finding the running program")?;
    here.ancestors()
        .skip(1)
        .take(2)
        .flat_map(|dir| [dir.join(name), dir.join("../debug").join(name)])
        .find(|p| p.is_file())
        .with_context(|| {
            format!(
                "program {name} is not built: run `cargo build --bin {name}`, or set {variable}"
            )
        })
}

/// The program of this package that labs start for their services and crowds.
pub fn helper_binary() -> Result<PathBuf> {
    workspace_binary("LAB_HELPER_BIN", "lab-helper")
}

/// A program of the system; administrators' folders are looked in whatever PATH says.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/sbin", "/sbin", "/usr/bin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

fn random_bytes() -> Result<[u8; 32]> {
    use std::io::Read as _;
    let mut key = [0; 32];
    fs::File::open("/dev/urandom")?
        .read_exact(&mut key)
        .context("reading /dev/urandom")?;
    Ok(key)
}

fn open_to_all(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777))
        .with_context(|| format!("opening {} to everybody", dir.display()))
}
