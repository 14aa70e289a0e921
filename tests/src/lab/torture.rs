//! smbtorture (Debian's package `samba-testsuite`), the outside judge of a Samba server, against a
//! lab's clustered Samba.
//!
//! Most of its tests make several connections to one server. Here that server is an address which
//! the client's own firewall spreads over two nodes, one connection to each in turn: what two of a
//! test's connections owe each other then goes through the cluster's databases and messages.

pub mod results;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Flavor, Lab, Service, find_program, reference, samba};

/// Last byte of the first virtual server in 10.99.2.0/24, which no lab uses.
const VIRTUAL: u8 = 240;
/// Tests that run at once at most.
pub const WORKERS: usize = 8;

/// Which nodes a test's connections go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// All to node 0.
    One,
    /// The first to node 0, the second to node 1, and so on in turn.
    Two,
}

impl Way {
    /// As it stands in the file of results.
    pub fn name(self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Two => "two",
        }
    }
}

/// What smbtorture said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Success.
    Pass,
    /// Failure, error, or no end within the limit.
    Fail,
    /// It found that the server cannot be tested that way.
    Skip,
}

/// One run of one test.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it said.
    pub verdict: Verdict,
    /// From start to end.
    pub took: Duration,
    /// All that it printed.
    pub text: String,
}

/// The verdict in smbtorture's lines (`success: NAME`, `failure: NAME [`, `skip: NAME [` ...).
fn judge(text: &str, code: Option<i32>) -> Verdict {
    let mut passed = false;
    for line in text.lines() {
        if line.starts_with("failure: ") || line.starts_with("error: ") {
            return Verdict::Fail;
        }
        if line.starts_with("skip: ") {
            return Verdict::Skip;
        }
        passed |= line.starts_with("success: ");
    }
    if passed && code == Some(0) {
        Verdict::Pass
    } else {
        Verdict::Fail
    }
}

/// What smbtorture's tests are called, in its order.
pub fn list() -> Result<Vec<String>> {
    let out = Command::new("smbtorture")
        .args(["-s", "/dev/null", "--list"])
        .output()
        .context("starting smbtorture (install package samba-testsuite)")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    Ok(names(&text))
}

/// The list repeats the last word of each name: `smb2.lock.lock.lock` is run as `smb2.lock.lock`.
fn names(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| {
            let (name, last) = line.rsplit_once('.')?;
            name.ends_with(&format!(".{last}")).then(|| name.to_owned())
        })
        .collect()
}

/// A clustered Samba with what smbtorture wants.
pub struct Torture {
    lab: Lab,
    nodes: [Ipv4Addr; 2],
}

impl Torture {
    /// What to install, if anything is missing.
    pub fn lacks() -> Option<&'static str> {
        let tool = find_program("smbtorture")
            .is_none()
            .then_some("package samba-testsuite");
        tool.or_else(samba::lacks).or_else(reference::lacks)
    }

    /// Three nodes with Samba, and a share for each of the tests that run at once.
    pub fn bring_up(flavor: Flavor) -> Result<Self> {
        const LONG: Duration = Duration::from_secs(90);
        let lab = Lab::builder().flavor(flavor).ipv6(false).build()?;
        lab.bring_up(&[], LONG)?;
        lab.start_service(Service::ClusteredSmb)?;
        lab.node(0).samba_account()?;
        let mut of = [None; 2];
        lab.wait("an address on nodes 0 and 1", LONG, || {
            let Ok(owners) = lab.node(0).ip_owners() else {
                return false;
            };
            for (address, owner) in owners {
                if let (Some(pnn @ 0..=1), IpAddr::V4(address)) = (owner, address) {
                    of[pnn as usize] = Some(address);
                }
            }
            of.iter().all(Option::is_some)
        })?;
        let nodes = [of[0], of[1]].map(|a| a.unwrap_or(Ipv4Addr::UNSPECIFIED));
        let torture = Self { lab, nodes };
        torture.shares()?;
        Ok(torture)
    }

    /// The lab, to be looked at and ended.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Ends everything; what could not be removed.
    pub fn end(self) -> Vec<String> {
        self.lab.destroy()
    }

    fn place(&self, worker: usize) -> PathBuf {
        self.lab.shared_dir().join(format!("torture{worker}"))
    }

    fn shares(&self) -> Result<()> {
        for worker in 0..WORKERS {
            self.fresh(worker)?;
            let name = format!("torture{worker}");
            let path = self.place(worker).display().to_string();
            let words = ["net", "conf", "addshare", &name, &path, "writeable=y"];
            self.lab.node(0).samba(&words)?.success()?;
        }
        // Every smbd has read it when a session through it finds the last share.
        let last = format!("torture{}", WORKERS - 1);
        for address in self.nodes {
            let share = format!("//{address}/{last}");
            let account = format!("root%{}", samba::PASSWORD);
            self.lab.wait(&share, Duration::from_secs(60), || {
                let mut command = Command::new("smbclient");
                command.args([&share, "-U", &account, "-c", "ls"]);
                let out = self.lab.client().output(&mut command);
                out.is_ok_and(|out| out.status.success())
            })?;
        }
        Ok(())
    }

    /// The share's folder is a new one, so that no test meets another's files, and none of its
    /// inodes is used again: handles that outlive their session are still known by them.
    fn fresh(&self, worker: usize) -> Result<()> {
        let (link, next) = (self.place(worker), self.lab.shared_dir().join("next"));
        for number in 0.. {
            let folder = self
                .lab
                .shared_dir()
                .join(format!("of-torture{worker}-{number}"));
            match fs::create_dir(&folder) {
                Ok(()) => {
                    let next = next.with_extension(worker.to_string());
                    std::os::unix::fs::symlink(&folder, &next)
                        .and_then(|()| fs::rename(&next, &link))
                        .with_context(|| format!("pointing {} to a new folder", link.display()))?;
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("making {}", folder.display()));
                }
            }
        }
        bail!("no name is left below {}", self.lab.shared_dir().display())
    }

    /// Lets the worker's virtual server begin with node 0 again.
    fn aim(&self, worker: usize, way: Way) -> Result<Ipv4Addr> {
        ensure!(worker < WORKERS, "at most {WORKERS} tests at once");
        let server = Ipv4Addr::new(10, 99, 2, VIRTUAL + u8::try_from(worker)?);
        let [first, second] = self.nodes;
        let second = if way == Way::One { first } else { second };
        // The generator of numbers goes with its rule.
        self.lab.client().nft(&format!(
            "table ip torture{worker}\n\
             delete table ip torture{worker}\n\
             table ip torture{worker} {{\n\
             chain out {{\n\
             type nat hook output priority -100\n\
             ip daddr {server} dnat to numgen inc mod 2 map {{ 0 : {first}, 1 : {second} }}\n\
             }}\n}}\n"
        ))?;
        Ok(server)
    }

    /// Runs one test, in one of [`WORKERS`] places; at most one at a time in each.
    pub fn run(&self, worker: usize, way: Way, test: &str, limit: Duration) -> Result<Run> {
        self.fresh(worker)?;
        let server = self.aim(worker, way)?;
        let dir = self.lab.dir().join(format!("torture-client{worker}"));
        for sub in ["private", "state"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let conf = dir.join("smb.conf");
        let here = dir.display();
        fs::write(
            &conf,
            format!(
                "[global]\n\
                 client min protocol = NT1\n\
                 private dir = {here}/private\n\
                 state directory = {here}/state\n\
                 lock directory = {here}/state\n\
                 cache directory = {here}/state\n"
            ),
        )?;
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", &limit.as_secs().to_string()])
            .args(["smbtorture", "--target=samba3", "-s"])
            .arg(&conf)
            .arg(format!("-Uroot%{}", samba::PASSWORD))
            .arg(format!("//{server}/torture{worker}"))
            .arg(test)
            .current_dir(&dir);
        let start = Instant::now();
        let out = self.lab.client().output(&mut command)?;
        let took = start.elapsed();
        let mut text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&out.stderr));
        Ok(Run {
            verdict: judge(&text, out.status.code()),
            took,
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Verdict, judge, names};

    #[test]
    fn names_are_those_that_it_takes() {
        let list = "smbtorture 4.17.12-Debian\nsmb2.lock.lock.lock\nbase.deny1.deny1\n";
        assert_eq!(names(list), ["smb2.lock.lock", "base.deny1"]);
    }

    #[test]
    fn a_success_is_one_only_with_its_exit() {
        let text = "time: 2026-11-29 23:00:00\ntest: lock\nsuccess: lock\n";
        assert_eq!(judge(text, Some(0)), Verdict::Pass);
        assert_eq!(judge(text, Some(1)), Verdict::Fail);
        assert_eq!(judge("success: a\nfailure: b [\n", Some(0)), Verdict::Fail);
        assert_eq!(judge("skip: a [\nno\n]\n", Some(0)), Verdict::Skip);
        assert_eq!(judge("", Some(0)), Verdict::Fail);
    }
}
