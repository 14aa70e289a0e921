//! Failovers while SMB sessions are open on Debian's Samba, unmodified, `clustering = yes`: what is held
//! through other nodes is held all the while, what a client that is gone held is free, its address
//! serves again, no process of Samba's dies that need not, and a node that was cut off or stopped
//! changes nothing (DATA-5). Debian's daemon shows that the test is right.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ctdb_tests::lab::smb::{File, LOCK_NOT_GRANTED, Lock, SHARING_VIOLATION, Share, Smb, SmbError};
use ctdb_tests::lab::{Flavor, Lab, Links, Node, Service, lacks};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LONG: Duration = Duration::from_secs(60);
/// For one answer of a server that is there.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Move,
    Drain,
    Stop,
    Kill,
    /// SIGSTOP of the daemon.
    Frozen,
    /// SIGSTOP of the daemon and of Samba; Samba wakes first.
    AllFrozen,
    /// No way between the node and the others; the clients reach all.
    Cut,
    Power,
}

impl Fault {
    /// The node's Samba goes on.
    fn gentle(self) -> bool {
        matches!(self, Self::Move | Self::Drain)
    }

    /// The node lives, and loses its right.
    fn evicts(self) -> bool {
        matches!(self, Self::Frozen | Self::AllFrozen | Self::Cut)
    }
}

fn guest(lab: &Lab, address: IpAddr) -> Smb {
    Smb::connect(lab.client(), address, "open", PATIENCE).unwrap()
}

/// The status with which it was refused.
fn status<T>(done: Result<T, SmbError>) -> Result<T, Option<u32>> {
    done.map_err(|error| {
        assert!(error.status().is_some(), "{error}");
        error.status()
    })
}

/// A client of a node that nothing happens to, and what it holds.
struct Keeper {
    session: Smb,
    ranged: File,
    both: File,
    closed: File,
}

/// A range that the keeper holds of a file that it has for itself, and of one where others hold some.
const RANGED: &str = "ranged";
const BOTH: &str = "both";
/// A file that the keeper shares with nobody.
const CLOSED: &str = "closed";
/// Held by the client of the node that fails.
const LOST: &str = "lost";
/// Opened by turns before the fault, then through another node only.
const TURNS: &str = "turns";

impl Keeper {
    fn new(lab: &Lab, node: &Node) -> Self {
        let mut session = guest(lab, node.own_address());
        let ranged = session.open(RANGED, Share::All).unwrap();
        session.lock(ranged, 0, 10, Lock::Try).unwrap();
        let both = session.open(BOTH, Share::All).unwrap();
        session.lock(both, 20, 10, Lock::Try).unwrap();
        let closed = session.open(CLOSED, Share::Nothing).unwrap();
        Self {
            session,
            ranged,
            both,
            closed,
        }
    }

    /// Gives all back; others can have it then.
    fn release(self, other: &mut Smb) {
        let mut session = self.session;
        session.write(self.ranged, b"still there").unwrap();
        session.lock(self.ranged, 0, 10, Lock::Unlock).unwrap();
        session.lock(self.both, 20, 10, Lock::Unlock).unwrap();
        session.close(self.closed).unwrap();
        let ranged = other.open(RANGED, Share::All).unwrap();
        other.lock(ranged, 0, 10, Lock::Try).unwrap();
        let both = other.open(BOTH, Share::All).unwrap();
        other.lock(both, 0, 100, Lock::Try).unwrap();
        let closed = other.open(CLOSED, Share::Nothing).unwrap();
        for file in [ranged, both, closed] {
            other.close(file).unwrap();
        }
    }
}

/// Tells others to stop, also when a check fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tries to take what the keeper holds until told to stop; how often it was tried.
fn besiege(mut session: Smb, stop: &AtomicBool) -> usize {
    let ranged = session.open(RANGED, Share::All).unwrap();
    let both = session.open(BOTH, Share::All).unwrap();
    let mut tries = 0;
    while !stop.load(Ordering::Relaxed) {
        let held = status(session.lock(ranged, 5, 10, Lock::Try));
        assert_eq!(held, Err(Some(LOCK_NOT_GRANTED)), "{RANGED}");
        let held = status(session.lock(both, 29, 10, Lock::Try));
        assert_eq!(held, Err(Some(LOCK_NOT_GRANTED)), "{BOTH}");
        let held = status(session.open(CLOSED, Share::All));
        assert_eq!(held, Err(Some(SHARING_VIOLATION)), "{CLOSED}");
        tries += 1;
        thread::sleep(Duration::from_millis(10));
    }
    for file in [ranged, both] {
        session.close(file).unwrap();
    }
    tries
}

fn signal(pids: &[Pid], signal: Signal) {
    for pid in pids {
        // One of them may have ended.
        let _ = kill(*pid, signal);
    }
}

fn strike(lab: &Lab, fault: Fault, victim: u32, address: IpAddr, to: u32) {
    let node = lab.node(victim);
    match fault {
        Fault::Move => {
            let words = ["moveip", &address.to_string(), &to.to_string()];
            node.ctdb(&words).unwrap().success().unwrap();
        }
        Fault::Drain => drop(node.ctdb(&["disable"]).unwrap().success().unwrap()),
        Fault::Stop => drop(node.stop_graceful(LONG).unwrap()),
        Fault::Kill => node.kill_daemon(Signal::SIGKILL).unwrap(),
        Fault::Frozen => node.kill_daemon(Signal::SIGSTOP).unwrap(),
        Fault::AllFrozen => {
            signal(&node.samba_processes("smbd"), Signal::SIGSTOP);
            node.kill_daemon(Signal::SIGSTOP).unwrap();
        }
        Fault::Cut => lab.partition(&[victim], Links::All).unwrap(),
        Fault::Power => node.power_loss().unwrap(),
    }
}

/// As it was, but for which node has which address.
fn heal(lab: &Lab, fault: Fault, victim: u32, address: IpAddr) {
    let node = lab.node(victim);
    match fault {
        Fault::Move => {
            let words = ["moveip", &address.to_string(), &victim.to_string()];
            node.ctdb(&words).unwrap().success().unwrap();
        }
        Fault::Drain => drop(node.ctdb(&["enable"]).unwrap().success().unwrap()),
        Fault::Frozen | Fault::AllFrozen => node.kill_daemon(Signal::SIGCONT).unwrap(),
        Fault::Cut => lab.heal().unwrap(),
        Fault::Stop | Fault::Kill => {
            node.stop_service(Service::ClusteredSmb).unwrap();
            node.start_daemon().unwrap();
        }
        Fault::Power => {
            node.stop_service(Service::ClusteredSmb).unwrap();
            node.restore_power().unwrap();
            node.start_daemon().unwrap();
        }
    }
    lab.wait_all_healthy(LONG).unwrap();
}

/// What its holder's end gives back can be had through another node.
fn freed(lab: &Lab, session: &mut Smb, what: &str) {
    lab.wait(&format!("{what}: the lost client's file"), LONG, || {
        let Ok(file) = status(session.open(LOST, Share::Nothing)) else {
            return false;
        };
        session.close(file).unwrap();
        true
    })
    .unwrap();
    let both = session.open(BOTH, Share::All).unwrap();
    lab.wait(&format!("{what}: the lost client's range"), LONG, || {
        status(session.lock(both, 0, 10, Lock::Try)).is_ok()
    })
    .unwrap();
    session.close(both).unwrap();
}

fn failover(lab: &Lab, fault: Fault) {
    let what = format!("{fault:?}");
    let of = lab.address_of_each(LONG).unwrap();
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let (keeper, victim, third) = (leader, (leader + 1) % 3, (leader + 2) % 3);
    let node = lab.node(victim);
    let address = of[&victim];
    let ours = lab.settings().flavor == Flavor::Ours;

    let mut held = Keeper::new(lab, lab.node(keeper));
    let mut other = guest(lab, lab.node(third).own_address());
    let besieger = guest(lab, lab.node(third).own_address());
    // The client that is lost, and one of the same node whose connection no failover ends.
    let mut lost = guest(lab, address);
    let file = lost.open(LOST, Share::Nothing).unwrap();
    lost.lock(file, 0, 10, Lock::Try).unwrap();
    let both = lost.open(BOTH, Share::All).unwrap();
    lost.lock(both, 0, 10, Lock::Try).unwrap();
    let mut stays = guest(lab, node.own_address());
    for session in [&mut held.session, &mut other, &mut stays] {
        let file = session.open(TURNS, Share::Nothing).unwrap();
        session.close(file).unwrap();
    }
    let parents: Vec<_> = lab
        .nodes()
        .iter()
        .map(|node| node.service_processes(Service::ClusteredSmb))
        .collect();
    assert_eq!(parents, [3, 3, 3], "{what}");
    let frozen = node.samba_processes("smbd");

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let siege = scope.spawn(|| besiege(besieger, &stop));
        let stopping = Stop(&stop);
        // Theirs does not tell a session of a move.
        let limit = if ours { LONG } else { Duration::ZERO };
        let told = scope.spawn(move || lost.told_within(limit));
        strike(lab, fault, victim, address, third);
        // A new session with it, which the node that failed does not serve.
        lab.wait(&format!("{what}: a session with {address}"), LONG, || {
            let share = format!("not{victim}");
            Smb::connect(lab.client(), address, &share, Duration::from_secs(2)).is_ok()
        })
        .unwrap();
        freed(lab, &mut other, &what);
        if ours {
            assert!(told.join().unwrap().is_some(), "{what}: a client not told");
        }
        if fault.evicts() {
            // DATA-5: another has the file, and whoever still talks to the node does not get it.
            let taken = other.open(TURNS, Share::Nothing).unwrap();
            let refused = scope.spawn(move || stays.open(TURNS, Share::Nothing));
            if fault == Fault::AllFrozen {
                signal(&frozen, Signal::SIGCONT);
            }
            // Time to do what it must not.
            thread::sleep(Duration::from_secs(1));
            heal(lab, fault, victim, address);
            let got = refused.join().unwrap();
            assert!(got.is_err(), "{what}: {got:?}");
            other.close(taken).unwrap();
        } else {
            if fault.gentle() {
                stays.echo().unwrap();
                let file = stays.open(TURNS, Share::Nothing).unwrap();
                stays.close(file).unwrap();
            }
            heal(lab, fault, victim, address);
        }
        drop(stopping);
        assert!(siege.join().unwrap() > 0, "{what}");
    });
    held.session.echo().unwrap();
    for node in lab.nodes() {
        let alive = node.service_processes(Service::ClusteredSmb);
        if node.pnn() != victim || fault.gentle() {
            assert_eq!(alive, 3, "{what}: node {}", node.pnn());
        }
    }
    held.release(&mut other);
    if !fault.gentle() {
        node.stop_service(Service::ClusteredSmb).unwrap();
        node.start_service(Service::ClusteredSmb).unwrap();
        node.wait_service(Service::ClusteredSmb, LONG).unwrap();
    }
    assert_eq!(lab.samba_panics(), Vec::<String>::new(), "{what}");
}

/// No node's smbstatus lists a file as open, or a range as locked.
fn nothing_left(lab: &Lab) {
    for node in lab.nodes() {
        for option in ["-L", "-B"] {
            let what = format!("nothing in smbstatus {option} of node {}", node.pnn());
            let nothing = || {
                let text = node.samba(&["smbstatus", option]).unwrap().success();
                !text.unwrap().contains("/shared")
            };
            lab.wait(&what, LONG, nothing).unwrap();
        }
    }
}

fn everything(flavor: Flavor, faults: &[Fault]) {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let lab = Lab::with_samba(flavor, LONG).unwrap();
    for fault in faults {
        let start = std::time::Instant::now();
        failover(&lab, *fault);
        eprintln!("{fault:?}: {:.1} s", start.elapsed().as_secs_f64());
    }
    nothing_left(&lab);
    assert_eq!(lab.destroy(), Vec::<String>::new());
}

#[test]
fn sessions_on_ctdbs_daemon() {
    // A killed CTDB daemon does not come back beside what it leaves running.
    everything(Flavor::Ctdb, &[Fault::Move, Fault::Drain]);
}

#[test]
fn sessions_outlive_hand_overs() {
    everything(Flavor::Ours, &[Fault::Move, Fault::Drain, Fault::Stop]);
}

#[test]
fn sessions_outlive_failures() {
    everything(Flavor::Ours, &[Fault::Kill, Fault::Cut, Fault::Power]);
}

/// An address that comes back to a node that was left out, since no other may host it: what was connected
/// to it there has ended by then, whatever the processes of before still do (MEM-3).
#[test]
fn who_was_left_out_says_nothing_more() {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let lab = Lab::with_samba(Flavor::Ours, LONG).unwrap();
    let of = lab.address_of_each(LONG).unwrap();
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let (victim, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let (node, address) = (lab.node(victim), of[&victim]);
    let owner = || lab.node(leader).ip_owners().unwrap()[&address];
    for other in [leader, third] {
        let disabled = lab.node(other).ctdb(&["disable"]).unwrap();
        disabled.success().unwrap();
    }
    let mut lost = guest(&lab, address);
    let file = lost.open(LOST, Share::All).unwrap();
    lost.lock(file, 0, 10, Lock::Try).unwrap();
    let mut other = guest(&lab, lab.node(leader).own_address());
    let theirs = other.open(LOST, Share::All).unwrap();
    let held = status(other.lock(theirs, 0, 10, Lock::Try));
    assert_eq!(held, Err(Some(LOCK_NOT_GRANTED)));

    // Samba stands until the end, so that it is the daemon who ends its connections, or nobody.
    let stopped = node.samba_processes("smbd");
    signal(&stopped, Signal::SIGSTOP);
    node.kill_daemon(Signal::SIGSTOP).unwrap();
    lab.wait("the range to be another's", LONG, || {
        status(other.lock(theirs, 0, 10, Lock::Try)).is_ok()
    })
    .unwrap();
    assert_ne!(owner(), Some(victim));
    node.kill_daemon(Signal::SIGCONT).unwrap();
    lab.wait("the address to come back", LONG, || owner() == Some(victim))
        .unwrap();
    // An answer could come from Samba only, which stands; what ends it at once is that nothing is there.
    let answer = lost.lock(file, 0, 10, Lock::Try);
    let ended = matches!(&answer, Err(error @ SmbError::Io(_)) if !error.timed_out());
    assert!(ended, "still connected: {answer:?}");
    signal(&stopped, Signal::SIGCONT);
    assert_eq!(lab.samba_panics(), Vec::<String>::new());
    assert_eq!(lab.destroy(), Vec::<String>::new());
}

#[test]
fn what_is_stopped_changes_nothing() {
    everything(Flavor::wanted(), &[Fault::Frozen, Fault::AllFrozen]);
}
