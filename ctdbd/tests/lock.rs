//! The cluster lock with its helpers: ours for files and for etcd (a real server from Debian's
//! package on loopback) and for RADOS, and programs that know nothing but CTDB's protocol.

#[path = "lock/rados.rs"]
mod rados;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ctdb_core::authority::LockNews;
use ctdb_ebpf::deadman::Deadman;
use ctdbd::config::{ClusterLock, LockKind};
use ctdbd::lock::{LockClient, Setup};
use ctdbd::process::Children;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc::Receiver;

const PROGRAM: &str = env!("CARGO_BIN_EXE_ctdbd");
const PATIENCE: Duration = Duration::from_secs(60);
const VALIDITY: Duration = Duration::from_secs(2);

/// A daemon's end of a lock.
struct Holder {
    client: LockClient,
    events: Receiver<LockNews>,
    children: Children,
}

impl Holder {
    fn new(words: &[&str]) -> Self {
        Self::proved_for(words, VALIDITY)
    }

    fn proved_for(words: &[&str], validity: Duration) -> Self {
        let children = Children::default();
        let (client, events) = LockClient::start(
            children.clone(),
            Setup {
                lock: ClusterLock {
                    text: words.join(" "),
                    kind: LockKind::Helper(words.iter().map(|word| (*word).to_owned()).collect()),
                },
                validity,
                retry: Duration::from_millis(100),
                deadman: Arc::new(Deadman::create().unwrap()),
            },
        );
        client.want(true);
        Self {
            client,
            events,
            children,
        }
    }

    fn file(path: &Path) -> Self {
        let path = path.to_str().unwrap();
        Self::new(&[PROGRAM, "--lock-helper", "fcntl", path, "0.2", "1"])
    }

    async fn event(&mut self) -> LockNews {
        tokio::time::timeout(PATIENCE, self.events.recv())
            .await
            .expect("no event in time")
            .unwrap()
    }

    async fn held(&mut self) -> u64 {
        loop {
            if let LockNews::Held { tenure, .. } = self.event().await {
                return tenure;
            }
        }
    }

    /// The next thing heard is a proof of this tenure.
    async fn proved(&mut self, tenure: u64) {
        let news = self.event().await;
        assert!(
            matches!(news, LockNews::Proved { tenure: of, .. } if of == tenure),
            "{news:?}"
        );
    }

    async fn lost(&mut self) {
        while !matches!(self.event().await, LockNews::Lost { .. }) {}
    }

    /// Waits until it shows this state.
    async fn shows(&self, state: &str) {
        let until = Instant::now() + PATIENCE;
        while self.client.view().state != state {
            assert!(Instant::now() < until, "{:?}", self.client.view());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn pid(&self) -> Pid {
        pid(self.client.view().pid.unwrap())
    }

    async fn end(self) {
        self.client.want(false);
        self.children.shutdown(PATIENCE).await;
        assert_eq!(self.children.running(), 0);
    }
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).unwrap()
}

/// The first child of a process.
fn child_of(parent: Pid) -> Pid {
    let until = Instant::now() + PATIENCE;
    loop {
        let number = parent.as_raw_nonzero();
        let children =
            fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap();
        if let Some(child) = children.split_whitespace().next() {
            return pid(child.parse().unwrap());
        }
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn script(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("helper");
    fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[tokio::test]
async fn one_holds_the_file_and_proves_it_and_the_next_takes_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let mut first = Holder::file(&path);
    let tenure = first.held().await;
    let (mut last, mut fell) = (None, 0);
    for _ in 0..6 {
        let LockNews::Proved { tenure: of, at } = first.event().await else {
            panic!("no proof");
        };
        assert_eq!(of, tenure);
        // That the helper lives counts until its first recheck is heard, which may have begun before
        // that; from then on only what began later is news.
        fell += usize::from(last >= Some(at));
        assert!(fell <= 1);
        last = Some(at);
    }
    let mut second = Holder::file(&path);
    second.shows("held by another node").await;
    kill_process(first.pid(), Signal::KILL).unwrap();
    first.lost().await;
    first.client.want(false);
    second.held().await;
    second.end().await;
    first.end().await;
}

#[tokio::test]
async fn another_file_of_that_name_is_another_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let mut holder = Holder::file(&path);
    holder.held().await;
    fs::remove_file(&path).unwrap();
    fs::write(&path, "").unwrap();
    holder.lost().await;
    holder.end().await;
}

#[tokio::test]
async fn a_recheck_that_hangs_loses_the_lock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let mut holder = Holder::file(&path);
    holder.held().await;
    // As one that waits in the kernel for a dead file system.
    let checker = child_of(holder.pid());
    kill_process(checker, Signal::STOP).unwrap();
    holder.lost().await;
    holder.held().await;
    holder.end().await;
}

#[tokio::test]
async fn a_helper_that_stands_still_is_no_proof() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let mut holder = Holder::file(&path);
    holder.held().await;
    kill_process(holder.pid(), Signal::STOP).unwrap();
    holder.lost().await;
    holder.held().await;
    holder.end().await;
}

#[tokio::test]
async fn a_helper_lets_go_when_its_daemon_dies() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    // The shell stands for the daemon; it starts the helper and waits.
    let mut daemon = Command::new("/bin/sh")
        .args([
            "-c",
            "\"$0\" --lock-helper fcntl \"$1\" 0.2 1 & wait",
            PROGRAM,
        ])
        .arg(&path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut digit = [0];
    std::io::Read::read_exact(daemon.stdout.as_mut().unwrap(), &mut digit).unwrap();
    assert_eq!(&digit, b"0");
    let mut next = Holder::file(&path);
    next.shows("held by another node").await;
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    next.held().await;
    next.end().await;
}

#[tokio::test]
async fn helpers_of_others_work_unmodified() {
    let dir = tempfile::tempdir().unwrap();
    let path = script(dir.path(), "printf 0; exec sleep 1000");
    let mut holder = Holder::new(&[path.to_str().unwrap()]);
    let tenure = holder.held().await;
    for _ in 0..2 {
        holder.proved(tenure).await;
    }
    kill_process(holder.pid(), Signal::KILL).unwrap();
    holder.lost().await;
    let next = holder.held().await;
    assert!(next > tenure);
    // One that stands still from the start on has no recheck to miss.
    kill_process(holder.pid(), Signal::STOP).unwrap();
    holder.lost().await;
    assert!(holder.held().await > next);
    holder.end().await;
    for (text, state) in [
        ("printf 1; sleep 1000", "held by another node"),
        ("printf 2", "helper timed out"),
        ("printf 3", "helper failed"),
        ("printf x", "helper failed"),
        ("exit 0", "helper failed"),
    ] {
        let path = script(dir.path(), text);
        let holder = Holder::new(&[path.to_str().unwrap()]);
        holder.shows(state).await;
        holder.end().await;
    }
    let holder = Holder::new(&["/no/such/helper"]);
    holder.shows("helper does not start").await;
    holder.end().await;
}

#[tokio::test]
async fn a_helper_that_never_answers_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = script(dir.path(), "exec sleep 1000");
    let holder = Holder::new(&[path.to_str().unwrap()]);
    holder.shows("being taken").await;
    let begun = Instant::now();
    holder.client.want(false);
    holder.shows("not wanted").await;
    assert!(begun.elapsed() < PATIENCE);
    holder.end().await;
}

/// A real etcd on loopback.
struct Etcd {
    server: Child,
    url: String,
    _dir: tempfile::TempDir,
}

impl Etcd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = || {
            let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            socket.local_addr().unwrap().port()
        };
        let (url, peer) = (
            format!("http://127.0.0.1:{}", port()),
            format!("http://127.0.0.1:{}", port()),
        );
        let server = Command::new("etcd")
            .args(["--name", "t", "--data-dir"])
            .arg(dir.path())
            .args([
                "--listen-client-urls",
                &url,
                "--advertise-client-urls",
                &url,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args(["--initial-cluster", &format!("t={peer}")])
            // Not the disk is tested here.
            .arg("--unsafe-no-fsync")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd is not installed; `cargo xtask setup` installs it");
        let etcd = Self {
            server,
            url,
            _dir: dir,
        };
        let until = Instant::now() + PATIENCE;
        while !etcd.control(&["endpoint", "health"]) {
            assert!(Instant::now() < until, "etcd does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
        etcd
    }

    fn control(&self, args: &[&str]) -> bool {
        Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.url])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .success()
    }

    fn holder(&self) -> Holder {
        let url = &self.url;
        Holder::new(&[
            PROGRAM,
            "--lock-helper",
            "etcd",
            "--endpoints",
            url,
            "--ttl",
            "2",
            "--refresh",
            "0.3",
        ])
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[tokio::test]
async fn etcd_gives_the_lock_to_one_and_takes_it_back() {
    let etcd = Etcd::start();
    let mut first = etcd.holder();
    let tenure = first.held().await;
    for _ in 0..3 {
        first.proved(tenure).await;
    }
    let mut second = etcd.holder();
    second.shows("held by another node").await;
    // Let go in order: the next one does not wait for the lease.
    first.client.want(false);
    first.lost().await;
    second.held().await;
    // Killed: it waits for that.
    first.client.want(true);
    first.shows("held by another node").await;
    kill_process(second.pid(), Signal::KILL).unwrap();
    second.lost().await;
    second.client.want(false);
    first.held().await;
    // Taken away by an operator.
    assert!(etcd.control(&["del", "_ctdb/lock"]));
    first.lost().await;
    // The server stands still: no proof, no lock.
    first.held().await;
    kill_process(pid(etcd.server.id()), Signal::STOP).unwrap();
    first.lost().await;
    kill_process(pid(etcd.server.id()), Signal::CONT).unwrap();
    first.held().await;
    first.end().await;
    second.end().await;
}
