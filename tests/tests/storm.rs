//! Faults at random on the real kernel: for two minutes in the test command, ten in `soak`, an
//! observer on the switches proves that no two nodes answered for an address at once (ADDR-1),
//! with client traffic all the while. The seed is printed; `CTDB_SEED` repeats one.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ctdb_tests::lab::{Freeze, Lab, Links, Service};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const LONG: Duration = Duration::from_secs(90);

fn build(profile: &str) -> Lab {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    Lab::builder().profile(profile).build().unwrap()
}

fn soaking() -> bool {
    std::env::var_os("CTDB_SOAK").is_some()
}

/// Programs that keep all processors busy, ended with this value.
struct Load(Vec<Child>);

impl Load {
    /// `times` busy programs for each processor.
    fn new(times: usize) -> Self {
        let processors = thread::available_parallelism().unwrap().get();
        let busy = || {
            Command::new("/bin/sh")
                .args(["-c", "while :; do :; done"])
                .stdin(Stdio::null())
                .spawn()
                .unwrap()
        };
        Self((0..times * processors).map(|_| busy()).collect())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Too little memory for one daemon and a program beside it that always wants more: the daemon's
/// allocations wait for reclaim.
struct Pressure {
    group: PathBuf,
    hog: Child,
}

impl Pressure {
    /// Control groups of version 1 or 2.
    fn root() -> PathBuf {
        let first = PathBuf::from("/sys/fs/cgroup/memory");
        if first.is_dir() {
            return first;
        }
        let second = PathBuf::from("/sys/fs/cgroup");
        let _ = fs::write(second.join("cgroup.subtree_control"), "+memory");
        second
    }

    fn on(daemon: i32, name: &str) -> Self {
        let group = Self::root().join(name);
        fs::create_dir(&group).expect("a memory group");
        let hog = Command::new("/bin/sh")
            // Pages of a file in memory, again and again: they can be reclaimed and come back.
            .args([
                "-c",
                "while :; do cat /usr/bin/* /usr/lib/*/*.so* >/dev/null 2>&1; done",
            ])
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        let pressure = Self { group, hog };
        // One of the two exists.
        pressure.write("memory.limit_in_bytes", "12582912");
        pressure.write("memory.max", "12582912");
        pressure.write("cgroup.procs", &pressure.hog.id().to_string());
        pressure.write("cgroup.procs", &daemon.to_string());
        pressure
    }

    fn write(&self, file: &str, value: &str) {
        // The daemon may have ended meanwhile.
        let _ = fs::write(self.group.join(file), value);
    }
}

impl Drop for Pressure {
    fn drop(&mut self) {
        let _ = killpg(Pid::from_raw(self.hog.id().cast_signed()), Signal::SIGKILL);
        let _ = self.hog.wait();
        // What still runs goes back to where it came from.
        for _ in 0..100 {
            let processes = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
            for process in processes.lines() {
                let _ = fs::write(Self::root().join("cgroup.procs"), process);
            }
            if fs::remove_dir(&self.group).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    FreezeDaemon,
    FreezeNode,
    Kill,
    OneWay,
    OneAgainstTwo,
    AllApart,
    CutLinks,
    Stop,
    Load,
    Memory,
}

const FAULTS: [Fault; 10] = [
    Fault::FreezeDaemon,
    Fault::FreezeNode,
    Fault::Kill,
    Fault::OneWay,
    Fault::OneAgainstTwo,
    Fault::AllApart,
    Fault::CutLinks,
    Fault::Stop,
    Fault::Load,
    Fault::Memory,
];

/// Does it, lets it stand for `length`, and undoes it.
fn inflict(lab: &Lab, fault: Fault, victim: u32, other: u32, length: Duration) {
    let node = lab.node(victim);
    let links = Links::All;
    match fault {
        Fault::FreezeDaemon | Fault::FreezeNode => {
            let what = if matches!(fault, Fault::FreezeNode) {
                Freeze::Node
            } else {
                Freeze::Daemon
            };
            node.freeze(what).unwrap();
            thread::sleep(length);
            node.thaw(what).unwrap();
        }
        Fault::Kill => {
            node.kill_daemon(Signal::SIGKILL).unwrap();
            node.wait_daemon_exit(LONG).unwrap();
            thread::sleep(length / 4);
            node.start_daemon().unwrap();
        }
        Fault::OneWay => {
            lab.block(victim, other, links).unwrap();
            thread::sleep(length);
            lab.heal().unwrap();
        }
        Fault::OneAgainstTwo => {
            lab.partition(&[victim], links).unwrap();
            thread::sleep(length);
            lab.heal().unwrap();
        }
        Fault::AllApart => {
            lab.partition(&[0], links).unwrap();
            lab.partition(&[1], links).unwrap();
            thread::sleep(length);
            lab.heal().unwrap();
        }
        Fault::CutLinks => {
            node.cut_links(links).unwrap();
            thread::sleep(length);
            node.restore_links(links).unwrap();
        }
        Fault::Stop => {
            let status = node.stop_graceful(LONG).unwrap();
            assert!(status.success(), "{status}");
            node.start_daemon().unwrap();
        }
        Fault::Load => {
            let _load = Load::new(16);
            thread::sleep(length);
        }
        Fault::Memory => {
            let daemon = node.daemon_pid().unwrap().as_raw();
            {
                let _pressure = Pressure::on(daemon, &format!("{}-{victim}", lab.name()));
                thread::sleep(length);
            }
            // The kernel may have chosen it to be killed.
            if !node.is_running() {
                node.wait_daemon_exit(LONG).unwrap();
                node.start_daemon().unwrap();
            }
        }
    }
}

#[test]
fn no_address_is_answered_by_two_in_a_storm() {
    let seed = std::env::var("CTDB_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| rand::rng().random::<u32>().into());
    println!("seed {seed}: CTDB_SEED={seed} repeats the same faults");
    let length = Duration::from_secs(if soaking() { 600 } else { 120 });
    let mut chance = ChaCha8Rng::seed_from_u64(seed);
    let lab = build("standard");
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    let observer = lab.observe(None).unwrap();
    let prober = lab.probe(&[Service::Plain], None).unwrap();
    let until = Instant::now() + length;
    let mut seen = BTreeSet::new();
    let mut rounds = 0;
    while Instant::now() < until {
        // Each kind once, in an order of chance, then as it comes.
        let fresh: Vec<Fault> = FAULTS
            .into_iter()
            .filter(|fault| !seen.contains(&(*fault as u8)))
            .collect();
        let fault = *fresh
            .choose(&mut chance)
            .unwrap_or(&FAULTS[chance.random_range(0..FAULTS.len())]);
        seen.insert(fault as u8);
        rounds += 1;
        // Half of all faults strike whoever leads.
        let leader = (0..3).find_map(|pnn| lab.node(pnn).leader_seen().ok().flatten());
        let victim = match leader {
            Some(leader) if chance.random_bool(0.5) => leader,
            _ => chance.random_range(0..3),
        };
        let other = (victim + chance.random_range(1..3)) % 3;
        let stands = Duration::from_millis(chance.random_range(300..5000));
        println!("{fault:?} of node {victim} for {stands:?}");
        inflict(&lab, fault, victim, other, stands);
        // Often the next one comes before the cluster has settled.
        thread::sleep(Duration::from_millis(chance.random_range(0..4000)));
    }
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    lab.wait("all services to answer", LONG, || prober.all_good())
        .unwrap();
    let report = observer.finish().unwrap();
    let frames: u64 = report
        .intervals
        .values()
        .flatten()
        .map(|interval| interval.count)
        .sum();
    println!(
        "{rounds} faults, {frames} answers seen, {} lost",
        report.lost
    );
    assert_eq!(report.conflicts(), [], "seed {seed}");
    assert!(u64::from(report.lost) * 100 <= frames, "too few were seen");
    assert!(frames > 0);
    let served: BTreeSet<IpAddr> = report.intervals.keys().copied().collect();
    assert_eq!(served, lab.public_addresses().into_iter().collect());
    for record in prober.finish().unwrap() {
        assert!(record.is_good(), "{}", record.target.label);
    }
    lab.end().unwrap();
}

/// Nobody is accused, and nothing moves, while sixteen programs want each processor.
#[test]
fn load_accuses_nobody() {
    let length = Duration::from_secs(if soaking() { 600 } else { 20 });
    let lab = build("standard");
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    let history = |pnn: u32| {
        let view = lab.node(pnn).ctdb_json(&["cluster", "history"]).unwrap();
        view["records"].as_array().unwrap().len()
    };
    let owners = lab.node(0).ip_owners().unwrap();
    let before: Vec<usize> = (0..3).map(history).collect();
    let load = Load::new(16);
    thread::sleep(length);
    drop(load);
    let after: Vec<usize> = (0..3).map(history).collect();
    assert_eq!(before, after, "{}", lab.log_tails(20));
    assert_eq!(lab.node(0).ip_owners().unwrap(), owners);
    lab.end().unwrap();
}
