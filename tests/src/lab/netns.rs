//! Network namespaces of a lab: made, entered, emptied and removed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where `ip netns` keeps its handles.
const NETNS_DIR: &str = "/run/netns";

/// What every lab's name begins with.
const PREFIX: &str = "ctdbt-";

/// A network namespace by name. Dropping it removes nothing: the lab does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// The namespace of that name, which `ip netns` may or may not know yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into() }
    }

    /// Its name, for `ip -n NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its handle, for `nsenter --net=PATH`.
    pub fn path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.name)
    }

    /// Makes it.
    pub(crate) fn create(&self) -> Result<()> {
        run(Command::new("ip").args(["netns", "add", &self.name])).map(drop)
    }

    /// Runs `work` on a thread of its own inside the namespace and gives back its result. What
    /// it opens stays in the namespace; children that it starts live there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.join()?;
                    work()
                })
                .join()
                .map_err(|_| anyhow!("a thread in namespace {} panicked", self.name))?
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub fn join(&self) -> Result<()> {
        let handle = File::open(self.path())
            .with_context(|| format!("opening network namespace {}", self.name))?;
        setns(handle, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering network namespace {} (root needed)", self.name))
    }

    /// Starts a program inside. Unlike with `ip netns exec`, /sys and its mounts stay those of
    /// the host, so that bpffs can be seen (spec/kernel.md 2).
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let what = command.get_program().to_string_lossy().into_owned();
        self.enter(|| {
            command
                .spawn()
                .with_context(|| format!("starting {what} in {}", self.name))
        })
    }

    /// Runs a program inside to its end; its exit status is for the caller to judge.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        let what = command.get_program().to_string_lossy().into_owned();
        self.enter(|| {
            command
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("running {what} in {}", self.name))
        })
    }

    /// Runs a program inside; anything but exit 0 is an error that carries what it wrote.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.enter(|| run(Command::new(program).args(args)))
    }

    /// `ip` with the given words, inside.
    pub fn ip(&self, words: &str) -> Result<String> {
        run(Command::new("ip")
            .args(["-n", &self.name])
            .args(words.split_whitespace()))
    }

    /// Many `ip` lines at once, inside.
    pub fn ip_batch(&self, lines: &[String]) -> Result<()> {
        feed(
            Command::new("ip").args(["-n", &self.name, "-batch", "-"]),
            &lines.join("\n"),
        )
    }

    /// An `nft` script, inside.
    pub fn nft(&self, script: &str) -> Result<()> {
        self.enter(|| feed(Command::new("nft").args(["-f", "-"]), script))
    }

    /// Writes settings below /proc/sys, inside. A setting that this kernel lacks is passed over.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                let path = Path::new("/proc/sys").join(key);
                match fs::write(&path, value) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(e).with_context(|| format!("writing {}", path.display()));
                    }
                    _ => {}
                }
            }
            Ok(())
        })
    }

    /// Process ids of all that lives in the namespace, by the main thread of each; the caller
    /// and zombies are left out.
    pub fn processes(&self) -> Vec<Pid> {
        let Ok(meta) = fs::metadata(self.path()) else {
            return Vec::new();
        };
        let link = PathBuf::from(format!("net:[{}]", meta.ino()));
        let me = Pid::this();
        all_processes()
            .filter(|pid| {
                *pid != me && fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|l| l == link)
            })
            .collect()
    }

    /// Sends `signal` to every process inside, until a pass finds no new one.
    pub fn signal_all(&self, signal: Signal) {
        let mut done = BTreeSet::new();
        // A process that forks faster than five passes is none that a lab starts.
        for _ in 0..5 {
            let mut fresh = false;
            for pid in self.processes() {
                if done.insert(pid.as_raw()) {
                    fresh = true;
                    let _ = kill(pid, signal);
                }
            }
            if !fresh {
                return;
            }
        }
    }

    /// Ends every process inside by SIGKILL and waits up to 5 s for the last to go.
    pub fn kill_all(&self) {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.processes();
            if left.is_empty() || Instant::now() > until {
                return;
            }
            for pid in left {
                let _ = kill(pid, Signal::SIGKILL);
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends what lives in it and removes it, if it is there.
    pub(crate) fn remove(&self) {
        if self.path().exists() {
            self.kill_all();
            if run(Command::new("ip").args(["netns", "del", &self.name])).is_err() {
                // A handle that was never mounted is a plain file.
                let _ = fs::remove_file(self.path());
            }
        }
    }
}

/// Names of all network namespaces that begin with `prefix`.
pub(crate) fn list(prefix: &str) -> Vec<Netns> {
    fs::read_dir(NETNS_DIR)
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| n.starts_with(prefix))
        .map(Netns::new)
        .collect()
}

/// Base name of the `count`-th lab of this process.
pub(crate) fn lab_name(count: u32) -> String {
    format!("{PREFIX}{}-lab{count}", std::process::id())
}

/// The process number in a lab's name (or in that of one of its namespaces), and the lab's name.
fn owner_of(name: &str) -> Option<(u32, String)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let pid = parts.next()?.parse().ok()?;
    let lab = parts.next()?;
    lab.strip_prefix("lab")?.parse::<u32>().ok()?;
    Some((pid, format!("{PREFIX}{pid}-{lab}")))
}

/// Where the lab of that name keeps its files.
pub fn lab_dir(name: &str) -> PathBuf {
    Path::new("/tmp").join(name)
}

/// File in a lab's directory that tells the reaper to let it be.
pub(crate) const KEEP_MARK: &str = "keep";

/// Names of all labs on this machine of which anything is there, and the process that made each.
pub fn labs() -> Vec<(String, u32)> {
    let spaces = list(PREFIX).into_iter().map(|n| n.name);
    let dirs = fs::read_dir("/tmp")
        .into_iter()
        .flatten()
        .filter_map(|e| e.ok()?.file_name().into_string().ok());
    let found: BTreeSet<_> = spaces.chain(dirs).filter_map(|n| owner_of(&n)).collect();
    found.into_iter().map(|(pid, name)| (name, pid)).collect()
}

/// Removes labs whose maker is dead and that were not meant to stay.
pub fn reap_stale() {
    for (name, pid) in labs() {
        if !Path::new(&format!("/proc/{pid}")).exists() && !lab_dir(&name).join(KEEP_MARK).exists()
        {
            destroy(&name);
        }
    }
}

/// Removes all that there is of a lab: processes, mounts, namespaces, files.
pub fn destroy(name: &str) {
    if owner_of(name).is_none_or(|(_, lab)| lab != name) {
        return;
    }
    let spaces = list(&format!("{name}-"));
    for space in &spaces {
        space.kill_all();
    }
    let dir = lab_dir(name);
    unmount_below(&dir);
    for space in &spaces {
        space.remove();
    }
    // A process that died a moment ago can still have written a file behind us.
    for _ in 0..5 {
        match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                thread::sleep(Duration::from_millis(20));
            }
            _ => break,
        }
    }
}

/// Everything of a lab that is still there, in words; empty when it left nothing.
pub fn remains(name: &str) -> Vec<String> {
    let mut left = Vec::new();
    for space in list(&format!("{name}-")) {
        for pid in space.processes() {
            let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            left.push(format!(
                "process {pid} ({}) in {}",
                command.trim(),
                space.name
            ));
        }
        left.push(format!("namespace {}", space.name));
    }
    let dir = lab_dir(name);
    // Processes outside the namespaces give themselves away by their command line.
    let mark = dir.to_string_lossy().into_owned();
    for pid in all_processes() {
        if let Ok(line) = fs::read(format!("/proc/{pid}/cmdline"))
            && String::from_utf8_lossy(&line)
                .split('\0')
                .any(|word| word.starts_with(&mark))
        {
            left.push(format!("process {pid} works in {mark}"));
        }
    }
    for mount in mounts_below(&dir) {
        left.push(format!("mount {}", mount.display()));
    }
    if dir.exists() {
        left.push(format!("directory {}", dir.display()));
    }
    left
}

pub(crate) fn unmount_below(dir: &Path) {
    // Deepest first; the table lists parents before children.
    for mount in mounts_below(dir).into_iter().rev() {
        let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
    }
}

pub(crate) fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter_map(|l| l.split(' ').nth(4).map(PathBuf::from))
        .filter(|p| p.starts_with(dir))
        .collect()
}

fn all_processes() -> impl Iterator<Item = Pid> {
    fs::read_dir("/proc").into_iter().flatten().filter_map(|e| {
        e.ok()?
            .file_name()
            .to_str()?
            .parse()
            .ok()
            .map(Pid::from_raw)
    })
}

/// Runs a program to its end; anything but exit 0 is an error that carries what it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let what = format!("{command:?}");
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {what}"))?;
    judge(&what, &out)
}

/// A command that runs a script of shell in a mount namespace of its own; what it gets as `$0` and
/// `$1` is to be added. The process stays the one that is started where the script ends in `exec`.
pub fn in_mounts(script: &str) -> Command {
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "--",
        "sh",
        "-ec",
        script,
    ]);
    command
}

/// Copies what is in a directory to another one, and leaves what is there already.
pub fn copy_missing(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.args(["-a", "--no-clobber"]);
    run(command.arg(from.join(".")).arg(to)).map(drop)
}

fn feed(command: &mut Command, input: &str) -> Result<()> {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {what}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that stopped reading says why on stderr, which is the better message.
        let _ = stdin.write_all(input.as_bytes());
        let _ = stdin.write_all(b"\n");
    }
    let out = child
        .wait_with_output()
        .with_context(|| format!("waiting for {what}"))?;
    judge(&what, &out)
        .map(drop)
        .with_context(|| format!("input was:\n{input}"))
}

pub(super) fn judge(what: &str, out: &Output) -> Result<String> {
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("{what}: {}: {}{}", out.status, stdout, stderr.trim());
    }
    Ok(stdout)
}

#[cfg(test)]
mod tests {
    use super::owner_of;

    #[test]
    fn only_names_of_labs_are_ours() {
        assert_eq!(
            owner_of("ctdbt-12-lab3-n0"),
            Some((12, "ctdbt-12-lab3".into()))
        );
        assert_eq!(
            owner_of("ctdbt-12-lab3"),
            Some((12, "ctdbt-12-lab3".into()))
        );
        assert_eq!(owner_of("ctdbt-12-a"), None);
        assert_eq!(owner_of("ctdbt-12"), None);
        assert_eq!(owner_of("other-12-lab3"), None);
    }
}
