//! What the cluster lock of a lab is kept in: a file that all nodes see, as in a cluster file
//! system, or a real etcd or Ceph beside the switch of the private network.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::ceph::{self, Ceph};
use super::cli::wait_until;
use super::{Lab, workspace_binary};

/// Of the private network, no node's.
const ADDRESS: &str = "10.99.1.250";
const CLIENTS: &str = "http://10.99.1.250:2379";
const PEERS: &str = "http://127.0.0.1:2380";

/// A service that keeps locks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keeper {
    /// A file, by fcntl locks.
    File,
    /// Debian's etcd, one server.
    Etcd,
    /// Debian's Ceph, one monitor and one OSD.
    Rados,
}

/// What keeps the lock; ends when dropped.
pub enum Server {
    /// An etcd.
    Etcd(Etcd),
    /// A Ceph.
    Ceph(Ceph),
}

/// An etcd that runs; ends when dropped.
pub struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended with the lab.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Lab {
    /// Gives all nodes a cluster lock, before they are started. A server runs as long as what is
    /// returned for it.
    pub fn keep_lock(&self, keeper: Keeper) -> Result<Option<Server>> {
        let program = workspace_binary("CTDBD_BIN", "ctdbd")?;
        let program = program.display();
        let (value, server) = match keeper {
            Keeper::File => (self.shared_dir().join("lock").display().to_string(), None),
            Keeper::Etcd => {
                let helper = format!(
                    "!{program} --lock-helper etcd --endpoints {CLIENTS} --ttl 2 --refresh 0.3"
                );
                (helper, Some(Server::Etcd(self.start_etcd()?)))
            }
            Keeper::Rados => {
                let ceph = self.start_ceph()?;
                let helper = format!(
                    "!/usr/bin/env CEPH_CONF={} {program} --lock-helper rados ceph {} {} cluster 3",
                    ceph.conf().display(),
                    ceph::USER,
                    ceph::POOL,
                );
                (helper, Some(Server::Ceph(ceph)))
            }
        };
        for node in self.nodes() {
            let text = fs::read_to_string(node.etc().join("ctdb.conf"))?;
            let line = format!("[cluster]\n\tcluster lock = {value}\n");
            node.write("ctdb.conf", &text.replacen("[cluster]\n", &line, 1))?;
        }
        Ok(server)
    }

    /// An address for a server, on the private network.
    fn give_address(&self) -> Result<()> {
        self.switch().ip_batch(&[
            "link set lo up".to_owned(),
            format!("addr add {ADDRESS}/24 dev br-priv"),
        ])
    }

    /// Starts a Ceph beside the switch.
    pub fn start_ceph(&self) -> Result<Ceph> {
        self.give_address()?;
        Ceph::start(self.switch(), &self.dir().join("ceph"), ADDRESS)
    }

    fn start_etcd(&self) -> Result<Etcd> {
        self.give_address()?;
        let mut command = Command::new("etcd");
        command.args(["--name", "lab", "--data-dir"]);
        command.arg(self.dir().join("etcd"));
        for (option, value) in [
            ("--listen-client-urls", CLIENTS),
            ("--advertise-client-urls", CLIENTS),
            ("--listen-peer-urls", PEERS),
            ("--initial-advertise-peer-urls", PEERS),
            ("--initial-cluster", "lab=http://127.0.0.1:2380"),
        ] {
            command.args([option, value]);
        }
        // Not the disk is looked at.
        command.arg("--unsafe-no-fsync");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let etcd = Etcd(
            self.switch()
                .spawn(&mut command)
                .context("starting etcd (package etcd-server)")?,
        );
        wait_until("etcd to answer", Duration::from_secs(30), || {
            let mut ask = Command::new("etcdctl");
            ask.env("ETCDCTL_API", "3");
            ask.args(["--endpoints", CLIENTS, "endpoint", "health"]);
            ask.stdout(Stdio::null()).stderr(Stdio::null());
            let asked = self.switch().spawn(&mut ask);
            asked.is_ok_and(|mut asked| asked.wait().is_ok_and(|status| status.success()))
        })?;
        Ok(etcd)
    }
}
