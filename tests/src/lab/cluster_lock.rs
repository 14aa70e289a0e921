//! What the cluster lock of a lab is kept in: a file that all nodes see, as in a cluster file
//! system, or a real etcd beside the switch of the private network.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

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
}

/// An etcd that runs; ends with it.
pub struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have ended with the lab.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Lab {
    /// Gives all nodes a cluster lock, before they are started. An etcd runs as long as what is
    /// returned for it.
    pub fn keep_lock(&self, keeper: Keeper) -> Result<Option<Etcd>> {
        let (value, etcd) = match keeper {
            Keeper::File => (self.shared_dir().join("lock").display().to_string(), None),
            Keeper::Etcd => {
                let program = workspace_binary("CTDBD_BIN", "ctdbd")?;
                let helper = format!(
                    "!{} --lock-helper etcd --endpoints {CLIENTS} --ttl 2 --refresh 0.3",
                    program.display()
                );
                (helper, Some(self.start_etcd()?))
            }
        };
        for node in self.nodes() {
            let text = fs::read_to_string(node.etc().join("ctdb.conf"))?;
            let line = format!("[cluster]\n\tcluster lock = {value}\n");
            node.write("ctdb.conf", &text.replacen("[cluster]\n", &line, 1))?;
        }
        Ok(etcd)
    }

    fn start_etcd(&self) -> Result<Etcd> {
        self.switch().ip_batch(&[
            "link set lo up".to_owned(),
            format!("addr add {ADDRESS}/24 dev br-priv"),
        ])?;
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
