//! What building and testing need of the machine: Debian packages, which are installed, and
//! privileges and kernel features, which are named if they are not there.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

/// Debian packages that the build, the tests and the benchmarks use.
const PACKAGES: [&str; 33] = [
    "bpftool",
    // The lock in RADOS is tested against the real thing.
    "ceph-common",
    "ceph-mon",
    "ceph-osd",
    "ctdb",
    // The lock in etcd is tested against the real server.
    "etcd-client",
    "etcd-server",
    // Wanted by CTDB's own scripts, to see links.
    "ethtool",
    "iproute2",
    // Wanted by CTDB's own scripts, for the comparison.
    "iptables",
    "iputils-arping",
    "iputils-ping",
    "libmnl-dev",
    "libnftnl-dev",
    // For the bench of the database engine.
    "libtdb-dev",
    "nftables",
    "openssh-client",
    "openssh-server",
    "pkg-config",
    "procps",
    // Every Python program of ours is kept clean by it.
    "pyflakes3",
    // SMB sessions that a test steers packet by packet.
    "python3-impacket",
    // The client of Ceph behind our helper of that lock.
    "python3-rados",
    // libtdb, as the other side of the engine's tests.
    "python3-tdb",
    "samba",
    // smbtorture.
    "samba-testsuite",
    // Every script of ours is kept clean by these two.
    "shellcheck",
    "shfmt",
    "smbclient",
    // Counts the daemons' system calls in `bench record`.
    "strace",
    "tcpdump",
    "tdb-tools",
    "winbind",
];

/// Asked by the packages' scripts before they start a service; status 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Something that a command cannot do without and that cannot be installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Need {
    /// Root: namespaces, raw sockets, BPF.
    Root,
    /// The kernel's type information.
    Btf,
    /// nftables in the kernel.
    Nftables,
    /// Network namespaces, bridges and veth pairs.
    Namespaces,
}

impl Need {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Root, Self::Btf, Self::Nftables, Self::Namespaces];

    /// What is missing and what to do about it; `None` if it is there.
    fn lack(self) -> Option<String> {
        match self {
            Self::Root => {
                (!is_root()).then(|| "not root: run it with sudo, or as root in a container".into())
            }
            Self::Btf => (!Path::new("/sys/kernel/btf/vmlinux").exists()).then(|| {
                "no BTF: /sys/kernel/btf/vmlinux is missing; use a kernel with \
                 CONFIG_DEBUG_INFO_BTF=y (Debian's have it)"
                    .into()
            }),
            Self::Nftables => (is_root() && !quietly("nft", &["list", "tables"])).then(|| {
                "no nftables: `nft list tables` fails; load nf_tables or use a kernel with \
                 CONFIG_NF_TABLES"
                    .into()
            }),
            Self::Namespaces => {
                let shell =
                    "ip link add br0 type bridge && ip link add veth0 type veth peer name veth1";
                (is_root() && !quietly("unshare", &["--net", "sh", "-c", shell])).then(|| {
                    "no network namespaces with bridge and veth: load bridge and veth, or use a \
                     kernel with CONFIG_NET_NS, CONFIG_BRIDGE and CONFIG_VETH"
                        .into()
                })
            }
        }
    }
}

/// One line for each need that is not met.
pub fn lacks(needs: &[Need]) -> Vec<String> {
    needs.iter().filter_map(|need| need.lack()).collect()
}

/// Installs packages, then fails with one line if the machine lacks something.
pub fn require(needs: &[Need]) -> Result<()> {
    packages()?;
    let lacks = lacks(needs);
    ensure!(lacks.is_empty(), "cannot run here: {}", lacks.join("; "));
    Ok(())
}

/// Installs the missing ones of [`PACKAGES`] without starting their services. Does nothing, and
/// quickly, when all are there.
pub fn packages() -> Result<()> {
    let Some(missing) = missing()? else {
        // Not Debian: the build says what it does not find.
        eprintln!("setup: no dpkg here; needed are: {}", PACKAGES.join(" "));
        return Ok(());
    };
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() {
        bail!("Debian packages are missing and only root can install them: apt-get install {list}");
    }
    println!("setup: installing {list}");
    let _policy = Policy::forbid()?;
    apt(&["update"])?;
    let mut words = vec!["install", "--yes", "--no-install-recommends"];
    words.extend(&missing);
    apt(&words)
}

/// `None` where there is no dpkg.
fn missing() -> Result<Option<Vec<&'static str>>> {
    let query = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${db:Status-Status}\n"])
        .args(PACKAGES)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    let out = match query {
        Ok(out) => out,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("asking dpkg-query for installed packages"),
    };
    Ok(Some(absent(&String::from_utf8_lossy(&out.stdout))))
}

/// Those of [`PACKAGES`] that a list of `NAME STATUS` lines does not show as installed.
fn absent(list: &str) -> Vec<&'static str> {
    let installed: Vec<_> = list
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    PACKAGES
        .into_iter()
        .filter(|name| !installed.contains(name))
        .collect()
}

fn apt(words: &[&str]) -> Result<()> {
    println!("setup: apt-get {}", words.join(" "));
    let status = Command::new("apt-get")
        .args([
            "-q",
            "-o",
            "Dpkg::Options::=--force-confold",
            "-o",
            "Dpkg::Use-Pty=0",
        ])
        .args(words)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // Progress to standard error: the last line of output is `xtask test`'s own.
        .stdout(std::io::stderr())
        .status()
        .context("starting apt-get")?;
    ensure!(
        status.success(),
        "apt-get {} failed ({status})",
        words.join(" ")
    );
    Ok(())
}

/// While it lives no package's script starts a service.
struct Policy {
    ours: bool,
}

impl Policy {
    fn forbid() -> Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            fs::write(POLICY, "#!/bin/sh\nexit 101\n")
                .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)))
                .with_context(|| format!("writing {POLICY}, so that no service is started"))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// Whether the effective user is root.
pub fn is_root() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:"))
            .and_then(|ids| ids.split_whitespace().nth(1))
            == Some("0")
    })
}

fn quietly(program: &str, words: &[&str]) -> bool {
    Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::{PACKAGES, absent};

    #[test]
    fn only_installed_packages_count() {
        assert_eq!(absent("").len(), PACKAGES.len());
        let all = PACKAGES
            .map(|p| {
                format!(
                    "{p} installed
"
                )
            })
            .concat();
        assert_eq!(absent(&all), Vec::<&str>::new());
        let removed = all.replace("samba installed", "samba config-files");
        assert_eq!(absent(&removed), ["samba"]);
    }
}
