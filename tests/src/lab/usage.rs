//! What the daemons of a node use, for the goals of an idle node.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{Pid, SysconfVar, sysconf};
use serde::Serialize;

use super::Node;

/// Sums over all processes of a node's daemon, its services left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Processes.
    pub processes: usize,
    /// Resident memory in bytes, shared pages counted in each process.
    pub resident: u64,
    /// Resident memory in bytes, shared pages divided among those that share them.
    pub proportional: u64,
    /// CPU time since each started, user and system.
    pub cpu: Duration,
}

impl Node {
    /// The daemon and all that descends from it, the guard included.
    pub fn daemon_processes(&self) -> Vec<Pid> {
        let Some(main) = self.daemon_pid() else {
            return Vec::new();
        };
        let exe = exe_of(main);
        // A process that left the family is known by its program.
        let mut family = vec![main];
        let others: Vec<_> = self.netns().processes();
        loop {
            let before = family.len();
            for pid in &others {
                let child = || parent_of(*pid).is_some_and(|p| family.contains(&p));
                if !family.contains(pid) && (exe_of(*pid) == exe || child()) {
                    family.push(*pid);
                }
            }
            if family.len() == before {
                return family;
            }
        }
    }

    /// What they use now.
    pub fn usage(&self) -> Result<Usage> {
        let ticks = sysconf(SysconfVar::CLK_TCK)?.context("clock ticks of this system")?;
        let mut sum = Usage::default();
        for pid in self.daemon_processes() {
            // One may end while we look.
            let Ok(memory) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
                continue;
            };
            let kib = |key: &str| {
                memory
                    .lines()
                    .find_map(|l| l.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
                    .unwrap_or(0_u64)
            };
            sum.processes += 1;
            sum.resident += kib("Rss:") * 1024;
            sum.proportional += kib("Pss:") * 1024;
            let spent: u64 = [11, 12].iter().filter_map(|i| stat_field(pid, *i)).sum();
            sum.cpu += Duration::from_secs_f64(spent as f64 / ticks as f64);
        }
        Ok(sum)
    }
}

/// What the daemons of a node have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// CPU time, that of children that have ended included.
    pub cpu: Duration,
    /// How often they were switched to, by their own will and not.
    pub switches: u64,
    /// Memory that is no mapped file, in bytes.
    pub anonymous: u64,
}

impl Node {
    /// What its daemons have done since they were started.
    pub fn work(&self) -> Result<Work> {
        let ticks = sysconf(SysconfVar::CLK_TCK)?.context("clock ticks of this system")?;
        let mut sum = Work::default();
        for pid in self.daemon_processes() {
            let spent: u64 = (11..=14).filter_map(|i| stat_field(pid, i)).sum();
            sum.cpu += Duration::from_secs_f64(spent as f64 / ticks as f64);
            sum.anonymous += lines_of(&format!("/proc/{pid}/status"), &["RssAnon:"]) * 1024;
            for task in fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten()
            {
                // A thread may end while we look.
                let Ok(task) = task else { continue };
                let path = task.path().join("status");
                let keys = ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"];
                sum.switches += lines_of(&path.to_string_lossy(), &keys);
            }
        }
        Ok(sum)
    }
}

/// Sum of the numbers on the lines of a file that begin with one of `keys`.
fn lines_of(path: &str, keys: &[&str]) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let number = |line: &str| {
        let key = keys.iter().find(|key| line.starts_with(**key))?;
        line[key.len()..]
            .split_whitespace()
            .next()?
            .parse::<u64>()
            .ok()
    };
    text.lines().filter_map(number).sum()
}

fn exe_of(pid: Pid) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/exe")).ok()
}

fn parent_of(pid: Pid) -> Option<Pid> {
    i32::try_from(stat_field(pid, 1)?).ok().map(Pid::from_raw)
}

/// A number of /proc/PID/stat, counted from the state, which follows the name in brackets.
fn stat_field(pid: Pid, index: usize) -> Option<u64> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    line.rsplit_once(')')?
        .1
        .split_whitespace()
        .nth(index)?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::{lines_of, parent_of, stat_field};
    use nix::unistd::Pid;

    #[test]
    fn reads_its_own_numbers() {
        assert_eq!(parent_of(Pid::this()), Some(Pid::parent()));
        assert!(stat_field(Pid::this(), 11).is_some());
        assert_eq!(stat_field(Pid::from_raw(i32::MAX), 11), None);
        let status = format!("/proc/{}/status", Pid::this());
        assert_eq!(lines_of(&status, &["Pid:"]), Pid::this().as_raw() as u64);
        assert!(lines_of(&status, &["RssAnon:"]) > 0);
        assert_eq!(lines_of("/nowhere", &["Pid:"]), 0);
    }
}
