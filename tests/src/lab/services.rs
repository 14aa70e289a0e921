//! Real services on a node: OpenSSH, a stand-alone Samba share, a plain TCP service.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Flavor, Lab, Node, find_program, helper_binary, netns, plain, samba};

/// A kind of service; each listens on all addresses of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Says `node N`, then echoes.
    Plain,
    /// OpenSSH with sftp; root may log in with the key `Lab::ssh_key`. One host key for all.
    Ssh,
    /// A stand-alone Samba, share `share`, guests may write; all nodes share the directory.
    Smb,
    /// Samba with `clustering = yes` on the node's daemon, share `share`, with nmbd and winbindd; see
    /// `super::samba`.
    ClusteredSmb,
}

impl Service {
    /// TCP port.
    pub fn port(self) -> u16 {
        match self {
            Self::Plain => plain::PORT,
            Self::Ssh => 22,
            Self::Smb | Self::ClusteredSmb => 445,
        }
    }

    /// Short name for tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "tcp",
            Self::Ssh => "ssh",
            Self::Smb => "smb",
            Self::ClusteredSmb => "clustered-smb",
        }
    }

    /// Whether it can be started here; otherwise what to install.
    pub fn lacks(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Ssh => find_program("sshd")
                .is_none()
                .then_some("package openssh-server"),
            Self::Smb => find_program("smbd").is_none().then_some("package samba"),
            Self::ClusteredSmb => samba::lacks(),
        }
    }
}

impl Lab {
    /// Starts a service on all nodes that host addresses and waits until it accepts.
    pub fn start_service(&self, service: Service) -> Result<()> {
        for node in self.hosts() {
            node.start_service(service)?;
        }
        for node in self.hosts() {
            let accepts = node.wait_service(service, Duration::from_secs(20));
            if accepts.is_err() && node.lost_samba_race(service)? {
                eprintln!("smbd of node {} is started once more", node.pnn());
                node.stop_service(service)?;
                node.start_service(service)?;
                node.wait_service(service, Duration::from_secs(20))?;
            } else {
                accepts?;
            }
        }
        Ok(())
    }

    /// Private key with which root may log in to every node.
    pub fn ssh_key(&self) -> std::path::PathBuf {
        self.dir().join("ssh/client_key")
    }
}

impl Node {
    /// On CTDB's daemon an smbd that starts with others now and then takes them for another version and
    /// ends (`g_lock_lock` says `POSSIBLE_DEADLOCK`; seen once, on 2026-11-30). On ours that would be a
    /// finding.
    fn lost_samba_race(&self, service: Service) -> Result<bool> {
        if service != Service::ClusteredSmb || self.settings().flavor != Flavor::Ctdb {
            return Ok(false);
        }
        let log = fs::read_to_string(self.root().join("log/smbd.out"))?;
        Ok(log.contains("NT_STATUS_SXS_VERSION_CONFLICT"))
    }

    /// Starts a service.
    pub fn start_service(&self, service: Service) -> Result<()> {
        if let Some(package) = service.lacks() {
            bail!(
                "service {} cannot be started: install {package}",
                service.name()
            );
        }
        let log = format!("{}.out", service.name());
        let commands = match service {
            Service::Plain => {
                let any = if self.settings().ipv6 {
                    "[::]"
                } else {
                    "0.0.0.0"
                };
                let mut command = Command::new(helper_binary()?);
                command.args(["serve", "--node", &self.pnn().to_string()]);
                command.args(["--listen", &format!("{any}:{}", plain::PORT)]);
                vec![(command, log)]
            }
            Service::Ssh => vec![(self.sshd()?, log)],
            Service::Smb => vec![(self.smbd()?, log)],
            Service::ClusteredSmb => self.samba_daemons()?,
        };
        for (mut command, log) in commands {
            let child = self.spawn(&mut command, &log)?;
            self.services
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((service, child));
        }
        Ok(())
    }

    /// Waits until a connection to the service on the node's loopback address is accepted.
    pub fn wait_service(&self, service: Service, limit: Duration) -> Result<()> {
        let target = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), service.port());
        let until = Instant::now() + limit;
        self.netns().enter(|| {
            loop {
                match TcpStream::connect_timeout(&target, Duration::from_secs(1)) {
                    Ok(_) => return Ok(()),
                    Err(e) if Instant::now() > until => {
                        return Err(e).with_context(|| {
                            format!(
                                "service {} of node {} does not accept:\n{}",
                                service.name(),
                                self.pnn(),
                                self.log_tails(5)
                            )
                        });
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        })
    }

    /// Ends a service's main process by SIGKILL and waits for it.
    pub fn stop_service(&self, service: Service) -> Result<()> {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, child) in services.iter_mut().filter(|(s, _)| *s == service) {
            // Its sessions are in its process group.
            let group = Pid::from_raw(-i32::try_from(child.id()).unwrap_or(i32::MAX));
            let _ = kill(group, Signal::SIGKILL);
            child.wait()?;
        }
        services.retain(|(s, _)| *s != service);
        Ok(())
    }

    /// How many of a service's main processes run.
    pub fn service_processes(&self, service: Service) -> usize {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services
            .iter_mut()
            .filter(|(s, _)| *s == service)
            .filter_map(|(_, child)| child.try_wait().ok())
            .filter(Option::is_none)
            .count()
    }

    fn sshd(&self) -> Result<Command> {
        let dir = self.root().with_file_name("ssh");
        fs::create_dir_all(&dir)?;
        for key in ["host_key", "client_key"] {
            let path = dir.join(key);
            if !path.exists() {
                netns::run(
                    Command::new("ssh-keygen")
                        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                        .arg(&path),
                )?;
            }
        }
        // The place is compiled in to sshd; its service unit makes it on other machines.
        fs::create_dir_all("/run/sshd").context("making sshd's empty directory")?;
        let config = self.root().join("sshd_config");
        let at = |name: &str| dir.join(name).display().to_string();
        fs::write(
            &config,
            format!(
                "Port 22\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
                 StrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n\
                 PermitRootLogin yes\nUseDNS no\nMaxStartups 2000:30:4000\nLoginGraceTime 20\n\
                 Subsystem sftp internal-sftp\nLogLevel ERROR\n",
                at("host_key"),
                at("client_key.pub"),
            ),
        )?;
        let mut command = Command::new(find_program("sshd").context("finding sshd")?);
        command.args(["-D", "-e", "-f"]).arg(config);
        Ok(command)
    }

    fn smbd(&self) -> Result<Command> {
        let dir = self.root().join("smb");
        for sub in ["lock", "state", "cache", "pid", "private", "ncalrpc", "log"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let share = self.root().with_file_name("shared");
        let config = dir.join("smb.conf");
        fs::write(&config, smb_conf(&dir, &share))?;
        let mut command = Command::new(find_program("smbd").context("finding smbd")?);
        command
            .args(["-F", "--no-process-group", "--debug-stdout", "-s"])
            .arg(config);
        Ok(command)
    }
}

fn smb_conf(dir: &Path, share: &Path) -> String {
    let dir = dir.display();
    format!(
        "[global]\n\
         netbios name = LAB\n\
         server role = standalone server\n\
         map to guest = Bad User\n\
         guest account = nobody\n\
         clustering = no\n\
         bind interfaces only = no\n\
         smb ports = 445\n\
         disable netbios = yes\n\
         disable spoolss = yes\n\
         load printers = no\n\
         printcap name = /dev/null\n\
         lock directory = {dir}/lock\n\
         state directory = {dir}/state\n\
         cache directory = {dir}/cache\n\
         pid directory = {dir}/pid\n\
         private dir = {dir}/private\n\
         ncalrpc dir = {dir}/ncalrpc\n\
         log file = {dir}/log/log.%m\n\
         log level = 0\n\
         [share]\n\
         path = {}\n\
         guest ok = yes\n\
         read only = no\n",
        share.display()
    )
}
