//! Death and orderly end of the daemon, as the guard sees them.

use std::{
    env,
    fs::File,
    io::{self, BufRead as _, BufReader, Lines, Write as _},
    net::SocketAddr,
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, ChildStdout, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use ctdb_ebpf::{
    Error,
    deadman::{DATAGRAM, Deadman, GuardPeer, PEERS, Verdict, Watcher},
};

const PATIENCE: Duration = Duration::from_secs(10);

fn watcher(deadman: &Deadman) -> Watcher {
    Watcher::from_fd(deadman.fd().try_clone_to_owned().unwrap()).unwrap()
}

/// What [`Watcher::wait`] will say, and when.
fn waiting(watcher: Watcher) -> mpsc::Receiver<(Verdict, Instant)> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let verdict = watcher.wait();
        let _ = sender.send((verdict, Instant::now()));
    });
    receiver
}

/// A daemon in a process of its own that does what it is told, line by line.
struct Daemon {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Daemon {
    fn start() -> (Self, OwnedFd) {
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "daemon_process", "--nocapture"])
            .env("CTDBT_DEADMAN", "yes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut daemon = Self { child, lines };
        let fd = daemon.expect("fd ");
        let path = format!("/proc/{}/fd/{fd}", daemon.child.id());
        let memory = File::options().read(true).write(true).open(path).unwrap();
        (daemon, memory.into())
    }

    fn expect(&mut self, prefix: &str) -> String {
        let found = self
            .lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix(prefix).map(str::to_owned));
        found.unwrap_or_else(|| panic!("the daemon did not say {prefix:?}"))
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{word}").unwrap();
        self.expect(&format!("done {word}"));
    }

    fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &id])
                .status()
                .unwrap()
                .success()
        );
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The body of [`Daemon`]; nothing when run as a test.
#[test]
fn daemon_process() {
    if env::var_os("CTDBT_DEADMAN").is_none() {
        return;
    }
    let deadman = Deadman::create().unwrap();
    println!("\nfd {}", std::os::fd::AsRawFd::as_raw_fd(&deadman.fd()));
    // Another thread than the process's first, as in the real daemon.
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut held = None;
            for word in io::stdin().lines().map_while(Result::ok) {
                match word.as_str() {
                    "hold" => held = Some(deadman.hold()),
                    "drop" => drop(held.take()),
                    "peer" => deadman.set_peer(3, Some(peer(3, 7))),
                    other => panic!("{other}"),
                }
                println!("done {word}");
            }
        });
    });
}

fn peer(index: u8, content: u8) -> GuardPeer {
    let text = if index.is_multiple_of(2) {
        format!("192.0.2.{index}:4379")
    } else {
        format!("[fe80::{index}%{index}]:4379")
    };
    GuardPeer {
        address: text.parse().unwrap(),
        local: SocketAddr::from(([192, 0, 2, content], 1)),
        datagram: [content; DATAGRAM],
        length: content,
    }
}

#[test]
fn a_killed_holder_died() {
    let (mut daemon, memory) = Daemon::start();
    daemon.tell("peer");
    let watcher = Watcher::from_fd(memory).unwrap();
    let verdict = waiting(watcher);
    daemon.tell("hold");
    assert!(
        verdict.recv_timeout(Duration::from_millis(200)).is_err(),
        "it lives"
    );
    // A stopped one lives too.
    daemon.signal("-STOP");
    assert!(
        verdict.recv_timeout(Duration::from_millis(200)).is_err(),
        "it is only stopped"
    );
    let start = Instant::now();
    daemon.child.kill().unwrap();
    let (verdict, when) = verdict.recv_timeout(PATIENCE).unwrap();
    assert_eq!(verdict, Verdict::Died);
    println!("noticed after {:?}", when - start);
    assert!(when - start < Duration::from_secs(1), "{:?}", when - start);
}

#[test]
fn what_a_dead_daemon_left_can_be_read() {
    let (mut daemon, memory) = Daemon::start();
    let watcher = Watcher::from_fd(memory).unwrap();
    daemon.tell("hold");
    daemon.tell("peer");
    daemon.child.kill().unwrap();
    assert_eq!(watcher.wait(), Verdict::Died);
    assert_eq!(watcher.peers().collect::<Vec<_>>(), [peer(3, 7)]);
    // And again, by another guard.
    assert_eq!(watcher.wait(), Verdict::Died);
}

#[test]
fn dead_before_it_held() {
    let (mut daemon, memory) = Daemon::start();
    let watcher = Watcher::from_fd(memory.try_clone().unwrap()).unwrap();
    let verdict = waiting(watcher);
    assert!(
        verdict.recv_timeout(Duration::from_millis(100)).is_err(),
        "it lives"
    );
    daemon.child.kill().unwrap();
    assert_eq!(verdict.recv_timeout(PATIENCE).unwrap().0, Verdict::Died);
    daemon.child.wait().unwrap();
    // Even before the guard looked.
    assert_eq!(Watcher::from_fd(memory).unwrap().wait(), Verdict::Died);
}

#[test]
fn left_in_order() {
    let (mut daemon, memory) = Daemon::start();
    let verdict = waiting(Watcher::from_fd(memory.try_clone().unwrap()).unwrap());
    daemon.tell("hold");
    daemon.tell("drop");
    assert_eq!(verdict.recv_timeout(PATIENCE).unwrap().0, Verdict::Left);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert_eq!(
        Watcher::from_fd(memory).unwrap().wait(),
        Verdict::Left,
        "and stays so"
    );
}

#[test]
fn a_panic_of_the_holder_is_a_death() {
    let deadman = Deadman::create().unwrap();
    let verdict = waiting(watcher(&deadman));
    thread::scope(|scope| {
        let holder = scope.spawn(|| {
            let _held = deadman.hold();
            std::panic::resume_unwind(Box::new("on purpose"));
        });
        assert!(holder.join().is_err());
    });
    assert_eq!(verdict.recv_timeout(PATIENCE).unwrap().0, Verdict::Died);
}

#[test]
fn held_once() {
    let deadman = Deadman::create().unwrap();
    let verdict = waiting(watcher(&deadman));
    let held = deadman.hold();
    // Says so in the log, and changes nothing.
    thread::scope(|scope| {
        scope
            .spawn(|| std::mem::forget(deadman.hold()))
            .join()
            .unwrap();
    });
    assert!(
        verdict.recv_timeout(Duration::from_millis(100)).is_err(),
        "it lives"
    );
    drop(held);
    assert_eq!(verdict.recv_timeout(PATIENCE).unwrap().0, Verdict::Left);
}

#[test]
fn peers_come_and_go() {
    let deadman = Deadman::create().unwrap();
    let watcher = watcher(&deadman);
    assert_eq!(watcher.peers().count(), 0);
    let all: Vec<GuardPeer> = (0..PEERS as u8)
        .map(|index| peer(index, index + 1))
        .collect();
    for (index, peer) in all.iter().enumerate() {
        deadman.set_peer(index, Some(*peer));
    }
    assert_eq!(watcher.peers().collect::<Vec<_>>(), all);
    deadman.set_peer(0, None);
    deadman.set_peer(63, Some(peer(2, 160)));
    let now: Vec<_> = watcher.peers().collect();
    assert_eq!(now[..62], all[1..63]);
    assert_eq!(now[62], peer(2, 160));
}

#[test]
fn copies_are_consistent() {
    let deadman = Deadman::create().unwrap();
    let watcher = watcher(&deadman);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for first in [1_u8, 2] {
            let (deadman, stop) = (&deadman, &stop);
            scope.spawn(move || {
                let mut content = first;
                while !stop.load(Ordering::Relaxed) {
                    deadman.set_peer(0, Some(peer(content & 1, content)));
                    content = content % 100 + 2;
                    // Writers are rare in life; the reader needs a pause.
                    thread::yield_now();
                }
            });
        }
        let mut seen = [false; 256];
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            for found in watcher.peers() {
                let content = found.length;
                assert_eq!(found, peer(content & 1, content));
                seen[usize::from(content)] = true;
            }
        }
        stop.store(true, Ordering::Relaxed);
        let seen = seen.iter().filter(|seen| **seen).count();
        assert!(seen > 5, "only {seen} different copies were read");
    });
}

#[test]
fn other_files_are_refused() {
    let refused = |fd: OwnedFd| {
        let error = Watcher::from_fd(fd).unwrap_err();
        assert!(matches!(error, Error::NotAPage(_)), "{error}");
    };
    refused(File::open("/dev/null").unwrap().into());
    refused(tempfile::tempfile().unwrap().into());
    let deadman = Deadman::create().unwrap();
    // Sealed: nobody can pull the memory away from under the guard.
    let file = File::from(deadman.fd().as_fd().try_clone_to_owned().unwrap());
    assert!(file.set_len(0).is_err());
}
