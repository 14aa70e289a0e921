//! The cluster lock in a real Ceph from Debian's packages: our helper, beside CTDB's own, and a cluster
//! whose right to serve comes from it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use ctdb_tests::lab::ceph::{Ceph, POOL, USER};
use ctdb_tests::lab::cluster_lock::Keeper;
use ctdb_tests::lab::{Lab, Service, workspace_binary};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);
const OBJECT: &str = "object";
/// As CTDB's helper calls it.
const LOCK: &str = "ctdb_reclock_mutex";
/// CTDB's helper, of the package `ctdb`.
const THEIRS: &str = "/usr/libexec/ctdb/ctdb_mutex_ceph_rados_helper";
/// Long enough that nothing in a test expires by itself.
const NEVER: &str = "600";

fn lab(nodes: u32) -> Lab {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    Lab::builder()
        .nodes(nodes)
        .conf("cluster", "authority", "lock")
        .conf("cluster", "lock validity", "2s")
        .build()
        .unwrap()
}

/// A helper that a daemon would have started.
struct Helper {
    child: Child,
    digit: char,
    /// The lines after the digit; ends with the helper.
    lines: Receiver<String>,
}

impl Helper {
    fn start(lab: &Lab, ceph: &Ceph, words: &[&str]) -> Self {
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .env("CEPH_CONF", ceph.conf())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .process_group(0);
        let mut child = lab.switch().spawn(&mut command).unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut digit = [b'?'];
            let _ = out.read_exact(&mut digit);
            let _ = sender.send(char::from(digit[0]).to_string());
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let digit = lines.recv_timeout(LONG).expect("a digit in time");
        Self {
            child,
            digit: digit.chars().next().unwrap(),
            lines,
        }
    }

    fn ours(lab: &Lab, ceph: &Ceph, duration: &str) -> Self {
        let program = workspace_binary("CTDBD_BIN", "ctdbd").unwrap();
        let program = program.display().to_string();
        let words = [
            &program,
            "--lock-helper",
            "rados",
            "ceph",
            USER,
            POOL,
            OBJECT,
            duration,
        ];
        Self::start(lab, ceph, &words)
    }

    /// Tries again until it says `0` or, if it is to be refused, `1`.
    fn until(wanted: char, mut start: impl FnMut() -> Self) -> Self {
        let until = Instant::now() + LONG;
        loop {
            let helper = start();
            if helper.digit == wanted {
                return helper;
            }
            // Another has it still, or the machine is slow.
            let allowed = helper.digit == '2' || (helper.digit, wanted) == ('1', '0');
            assert!(allowed, "{} instead of {wanted}", helper.digit);
            assert!(Instant::now() < until, "no {wanted} in time");
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// The boot-time clock before its next recheck.
    fn proof(&self) -> Duration {
        let line = self.lines.recv_timeout(LONG).expect("a proof in time");
        Duration::from_nanos(line.strip_prefix('r').unwrap().parse().unwrap())
    }

    /// Waits until it has ended; its newest proof.
    fn lost(&mut self) -> Option<Duration> {
        let mut newest = None;
        loop {
            match self.lines.recv_timeout(LONG) {
                // Its last word is the digit of an error, which nobody reads any more.
                Ok(line) => {
                    if let Some(proof) = line.strip_prefix('r') {
                        newest = Some(Duration::from_nanos(proof.parse().unwrap()));
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("it goes on"),
            }
        }
        self.child.wait().unwrap();
        newest
    }

    fn end(mut self) {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // All have ended but when a test fails; then the lab ends the rest.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn boot_now() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.try_into().unwrap()
}

/// Who holds it, as an operator asks.
fn locker(ceph: &Ceph) -> Value {
    let text = ceph
        .run(&["rados", "-p", POOL, "lock", "info", OBJECT, LOCK])
        .unwrap();
    let info: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(info["type"], "exclusive", "{info}");
    assert_eq!(info["lockers"].as_array().unwrap().len(), 1, "{info}");
    info["lockers"][0].clone()
}

fn word<'a>(locker: &'a Value, name: &str) -> &'a str {
    locker[name].as_str().unwrap()
}

#[test]
fn a_real_ceph_gives_the_lock_to_one_and_takes_it_back() {
    let lab = lab(1);
    let ceph = lab.start_ceph().unwrap();
    let ours = |duration| Helper::ours(&lab, &ceph, duration);
    let theirs = || Helper::start(&lab, &ceph, &[THEIRS, "ceph", USER, POOL, OBJECT]);

    let first = Helper::until('0', || ours(NEVER));
    let proofs = [first.proof(), first.proof(), first.proof()];
    assert!(proofs.is_sorted() && proofs[2] <= boot_now(), "{proofs:?}");
    Helper::until('1', || ours(NEVER));
    // CTDB's helper and ours exclude each other.
    Helper::until('1', theirs);
    let pid = format!("process {}", first.pid());
    let shown = locker(&ceph);
    assert!(word(&shown, "description").ends_with(&pid), "{shown}");
    // Ended in order, it is there for the next.
    first.end();
    let other = Helper::until('0', theirs);
    Helper::until('1', || ours(NEVER));
    other.end();

    // Killed with all its processes: it is there when it has expired, not before.
    let mut killed = Helper::until('0', || ours("3"));
    let proof = killed.proof();
    killpg(killed.pid(), Signal::SIGKILL).unwrap();
    let newest = killed.lost().unwrap_or(proof);
    let mut next = Helper::until('0', || ours(NEVER));
    // Two clocks, of which one may be slewed.
    let least = newest + Duration::from_millis(2900);
    assert!(boot_now() >= least, "{newest:?}");

    // Broken by an operator.
    let shown = locker(&ceph);
    let (name, cookie) = (word(&shown, "name"), word(&shown, "cookie"));
    ceph.run(&[
        "rados",
        "-p",
        POOL,
        "lock",
        "break",
        OBJECT,
        LOCK,
        name,
        "--lock-cookie",
        cookie,
    ])
    .unwrap();
    next.lost();

    // Fenced: the host is shut out of Ceph, the lock itself still stands.
    let mut fenced = Helper::until('0', || ours(NEVER));
    let shown = locker(&ceph);
    let addr = word(&shown, "addr");
    ceph.run(&["ceph", "osd", "blocklist", "add", addr])
        .unwrap();
    fenced.lost();
    let cookie = word(&shown, "cookie");
    assert_eq!(word(&locker(&ceph), "cookie"), cookie);
    ceph.run(&["rados", "-p", POOL, "rm", OBJECT]).unwrap();

    // Ceph stands still: no proof, no lock, and nobody else has it.
    let mut last = Helper::until('0', || ours("3"));
    ceph.freeze(true).unwrap();
    last.lost();
    assert_eq!(ours("3").digit, '2');
    ceph.freeze(false).unwrap();
    Helper::until('0', || ours("3")).end();

    // The object is removed under the holder.
    let mut last = Helper::until('0', || ours(NEVER));
    ceph.run(&["rados", "-p", POOL, "rm", OBJECT]).unwrap();
    last.lost();
    drop(ceph);
    lab.end().unwrap();
}

fn holder(lab: &Lab) -> Option<u32> {
    (0..2).find(|pnn| {
        let view = lab.node(*pnn).ctdb_json(&["cluster", "lock"]);
        view.is_ok_and(|view| view["state"] == "held")
    })
}

/// Two nodes whose right comes from a lock in Ceph: the one that is left serves all, and no two ever
/// answer for one address.
#[test]
fn two_nodes_with_a_lock_in_ceph() {
    let lab = lab(2);
    let _ceph = lab.keep_lock(Keeper::Rados).unwrap();
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    let observer = lab.observe(None).unwrap();
    let mut found = None;
    lab.wait("a holder of the lock", LONG, || {
        found = holder(&lab);
        found.is_some()
    })
    .unwrap();
    let holder = found.unwrap();
    lab.node(holder).power_loss().unwrap();
    let other = 1 - holder;
    let took = lab
        .wait("all addresses to be on the other node", LONG, || {
            let owners = lab.node(other).ip_owners().unwrap_or_default();
            !owners.is_empty() && owners.values().all(|owner| *owner == Some(other))
        })
        .unwrap();
    println!("lock in Ceph, two nodes, power loss of the holder: {took:?}");
    lab.node(holder).restore_power().unwrap();
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    lab.end().unwrap();
}
