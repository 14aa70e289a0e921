//! The laboratory tested on itself: what it measures, what it sees, and that it leaves nothing.
//! Needs root, and says what it lacks.

use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use ctdb_tests::lab::cli::wait_until;
use ctdb_tests::lab::observe::Sign;
use ctdb_tests::lab::timeline::{Event, Timeline, What};
use ctdb_tests::lab::{Flavor, Freeze, Lab, Links, Service, Stamp, netns};

/// Fails with one line if no lab can be built here.
fn needs() {
    if std::env::var_os("LAB_HELPER_BIN").is_none() {
        // Cargo has built it for this test; the search beside the test would find it as well.
        assert!(std::path::Path::new(env!("CARGO_BIN_EXE_lab-helper")).is_file());
    }
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
}

/// Puts `address` on a node by hand, announced as a takeover does.
fn take(lab: &Lab, pnn: u32, address: IpAddr) {
    let (prefix, flags) = match address {
        IpAddr::V4(_) => (24, ""),
        IpAddr::V6(_) => (64, "nodad"),
    };
    let space = lab.node(pnn).netns();
    space
        .ip(&format!("addr add {address}/{prefix} dev pub0 {flags}"))
        .unwrap();
    if address.is_ipv4() {
        let text = address.to_string();
        space
            .run(
                "arping",
                &["-q", "-U", "-c", "1", "-w", "1", "-I", "pub0", &text],
            )
            .unwrap();
    } else {
        // No tool here sends unsolicited advertisements: the client forgets by itself.
        let _ = lab.client().ip("-6 neigh flush dev eth0");
    }
}

fn release(lab: &Lab, pnn: u32, address: IpAddr) {
    let prefix = if address.is_ipv4() { 24 } else { 64 };
    lab.node(pnn)
        .netns()
        .ip(&format!("addr del {address}/{prefix} dev pub0"))
        .unwrap();
}

fn ping(lab: &Lab, from: u32, to: &str) -> bool {
    let mut command = Command::new("ping");
    command.args(["-q", "-c", "1", "-W", "1", to]);
    lab.node(from)
        .netns()
        .output(&mut command)
        .unwrap()
        .status
        .success()
}

/// Answers soon: a neighbour entry or a bridge port may need a moment after a repair.
fn reaches(lab: &Lab, from: u32, to: &str) -> bool {
    wait_until(to, Duration::from_secs(10), || ping(lab, from, to)).is_ok()
}

#[test]
fn wires_faults_and_nothing_left() {
    needs();
    let lab = Lab::builder().nodes(3).public_addresses(2).build().unwrap();
    assert!(ping(&lab, 0, "10.99.1.2") && ping(&lab, 0, "10.99.2.12"));
    assert!(ping(&lab, 2, "fd00:99:1::1") && ping(&lab, 2, "fd00:99:2::5"));

    lab.node(1).cut_links(Links::Private).unwrap();
    assert!(!ping(&lab, 0, "10.99.1.2") && ping(&lab, 0, "10.99.2.11"));
    lab.node(1).restore_links(Links::Private).unwrap();
    assert!(reaches(&lab, 0, "10.99.1.2"));

    lab.partition(&[2], Links::Public).unwrap();
    assert!(!ping(&lab, 0, "10.99.2.12") && ping(&lab, 0, "10.99.2.11"));
    lab.heal().unwrap();
    assert!(reaches(&lab, 0, "10.99.2.12"));

    // A frozen service's kernel answers, its process does not.
    lab.start_service(Service::Plain).unwrap();
    lab.node(1).freeze(Freeze::Node).unwrap();
    assert!(ping(&lab, 0, "10.99.2.11"));
    lab.node(1).thaw(Freeze::Node).unwrap();
    lab.node(1)
        .wait_service(Service::Plain, Duration::from_secs(2))
        .unwrap();

    lab.node(0).delete_interface("pub0").unwrap();
    assert!(!ping(&lab, 2, "10.99.2.10"));
    lab.node(0).create_interface("pub0").unwrap();
    assert!(reaches(&lab, 2, "10.99.2.10"));

    lab.node(1).power_loss().unwrap();
    assert!(lab.node(1).netns().processes().is_empty());
    assert!(!ping(&lab, 0, "10.99.2.11"));
    lab.node(1).restore_power().unwrap();
    assert!(reaches(&lab, 0, "10.99.2.11") && reaches(&lab, 1, "fd00:99:1::1"));

    assert_eq!(lab.destroy(), Vec::<String>::new());
}

#[test]
fn real_services_answer() {
    needs();
    let lab = Lab::builder().nodes(2).public_addresses(1).build().unwrap();
    let services = [Service::Plain, Service::Ssh, Service::Smb];
    for service in services {
        lab.start_service(service).unwrap();
    }
    for address in lab.public_addresses() {
        take(&lab, 0, address);
    }
    let prober = lab.probe(&services, None).unwrap();
    wait_until("good probes", Duration::from_secs(10), || prober.all_good()).unwrap();
    drop(prober);

    let run = |words: &[&str]| {
        let out = lab
            .client()
            .output(Command::new(words[0]).args(&words[1..]))
            .unwrap();
        assert!(out.status.success(), "{words:?}: {out:?}");
        String::from_utf8_lossy(&out.stdout).into_owned()
    };
    let key = lab.ssh_key();
    let ssh = [
        "-F",
        "none",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=no",
    ];
    let hosts = [
        "-o",
        "UserKnownHostsFile=/dev/null",
        "-o",
        "LogLevel=ERROR",
        "-i",
    ];
    let mut words = vec!["ssh"];
    words.extend(ssh);
    words.extend(hosts);
    words.extend([key.to_str().unwrap(), "root@10.99.2.100", "echo", "works"]);
    assert_eq!(run(&words), "works\n");
    run(&["smbclient", "-N", "//10.99.2.100/share", "-c", "mkdir seen"]);
    assert!(lab.shared_dir().join("seen").is_dir());
    assert_eq!(lab.destroy(), Vec::<String>::new());
}

#[test]
fn a_move_is_measured_and_seen() {
    needs();
    let lab = Lab::builder().nodes(2).public_addresses(1).build().unwrap();
    lab.start_service(Service::Plain).unwrap();
    let addresses = lab.public_addresses();
    let timeline = Timeline::start();
    let observer = lab.observe(Some(timeline.events())).unwrap();
    for address in &addresses {
        take(&lab, 0, *address);
    }
    let prober = lab
        .probe(&[Service::Plain], Some(timeline.events()))
        .unwrap();
    wait_until("good probes", Duration::from_secs(5), || prober.all_good()).unwrap();
    let before = Stamp::now();
    sleep(Duration::from_millis(200));

    // An address on no node for 300 ms, then on the other.
    timeline.add(Event::fault("addresses taken from node 0"));
    let fault = Stamp::now();
    for address in &addresses {
        release(&lab, 0, *address);
    }
    sleep(Duration::from_millis(300));
    for address in &addresses {
        take(&lab, 1, *address);
    }
    wait_until(
        "good probes after the move",
        Duration::from_secs(10),
        || prober.all_good(),
    )
    .unwrap();
    assert!(prober.records().iter().all(|r| r.last_node() == Some(1)));
    let records = prober.finish().unwrap();
    let report = observer.finish().unwrap();
    let events = timeline.finish().unwrap();

    for record in &records {
        let outage = record.longest_outage(fault);
        assert!(
            (Duration::from_millis(280)..Duration::from_secs(3)).contains(&outage),
            "{}: {outage:?}",
            record.target.label
        );
        assert!(record.worst_connect(fault) >= Duration::from_millis(250));
        let calm = record.median(before).unwrap();
        assert!(
            calm < Duration::from_millis(10),
            "{}: median {calm:?}",
            record.target.label
        );
    }
    assert_eq!(report.lost, 0);
    assert_eq!(report.conflicts(), []);
    for address in &addresses {
        assert_eq!(report.owner(*address), Some(1));
        assert!(
            report.last_seen(*address, 0).unwrap() < report.first_seen(*address, 1, fault).unwrap()
        );
        let log = report.around(*address, Stamp(0), Stamp(u64::MAX));
        assert!(log.iter().any(|s| s.sign == Sign::SynAck && !s.private));
    }
    assert!(
        report
            .log
            .iter()
            .any(|s| s.sign == Sign::ArpGratuitous && s.node == 1)
    );
    assert!(
        report
            .log
            .iter()
            .any(|s| s.sign == Sign::NdAdvert && s.node == 1)
    );
    let moved = |e: &Event| {
        matches!(
            e.what,
            What::Owner {
                from: Some(0),
                to: 1,
                ..
            }
        )
    };
    assert_eq!(events.iter().filter(|e| moved(e)).count(), 2);
    assert!(
        events
            .iter()
            .any(|e| matches!(e.what, What::ServiceUp { node: Some(1), .. }))
    );
    assert_eq!(lab.destroy(), Vec::<String>::new());
}

#[test]
fn two_owners_are_a_conflict() {
    needs();
    let lab = Lab::builder()
        .nodes(2)
        .public_addresses(1)
        .ipv6(false)
        .build()
        .unwrap();
    let address = lab.public_addresses()[0];
    let observer = lab.observe(None).unwrap();
    take(&lab, 0, address);
    take(&lab, 1, address);
    wait_until("the conflict to be seen", Duration::from_secs(5), || {
        let _ = lab.client().ip("neigh flush dev eth0");
        let mut ping = Command::new("ping");
        ping.args(["-q", "-c", "1", "-W", "1", "10.99.2.100"]);
        let _ = lab.client().output(&mut ping);
        !observer.report().conflicts().is_empty()
    })
    .unwrap();
    let report = observer.finish().unwrap();
    assert!(
        report
            .conflicts()
            .iter()
            .all(|c| c.address == address && c.owner != c.intruder)
    );
    assert_eq!(lab.destroy(), Vec::<String>::new());
}

#[test]
fn a_panic_leaves_nothing() {
    needs();
    let mut name = String::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::builder().nodes(2).build().unwrap();
        lab.name().clone_into(&mut name);
        lab.start_service(Service::Plain).unwrap();
        assert!(!netns::remains(lab.name()).is_empty());
        panic!("in the middle");
    }));
    assert!(outcome.is_err());
    assert_eq!(netns::remains(&name), Vec::<String>::new());
}

#[test]
fn a_killed_maker_leaves_nothing() {
    needs();
    // This test again, in a child that builds a lab and is killed.
    if std::env::var_os("LAB_TEST_CHILD").is_some() {
        let lab = Lab::builder().nodes(2).build().unwrap();
        lab.start_service(Service::Plain).unwrap();
        println!("LAB={}", lab.name());
        sleep(Duration::from_mins(1));
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_killed_maker_leaves_nothing", "--nocapture"])
        .env("LAB_TEST_CHILD", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let name = lines
        .map_while(Result::ok)
        .find_map(|l| l.split_once("LAB=").map(|(_, name)| name.to_string()))
        .unwrap();
    assert!(!netns::remains(&name).is_empty());
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the watchdog to clean up", Duration::from_secs(10), || {
        netns::remains(&name).is_empty()
    })
    .unwrap();
}

#[test]
fn debians_ctdb_can_be_measured_too() {
    needs();
    assert_eq!(ctdb_tests::lab::reference::lacks(), None, "install it");
    let lab = Lab::builder()
        .nodes(2)
        .public_addresses(2)
        .flavor(Flavor::Ctdb)
        .conf("cluster", "leader timeout", "2")
        .build()
        .unwrap();
    lab.start_service(Service::Plain).unwrap();
    lab.start_daemons().unwrap();
    eprintln!(
        "healthy after {:?}",
        lab.wait_all_healthy(Duration::from_mins(1)).unwrap()
    );
    eprintln!(
        "served after {:?}",
        lab.wait_all_served(Duration::from_mins(1)).unwrap()
    );
    let usage = lab.node(0).usage().unwrap();
    assert!(
        usage.processes >= 2 && usage.proportional > 1 << 20,
        "{usage:?}"
    );
    let timeline = Timeline::start();
    let observer = lab.observe(Some(timeline.events())).unwrap();
    let prober = lab
        .probe(&[Service::Plain], Some(timeline.events()))
        .unwrap();
    wait_until("good probes", Duration::from_secs(20), || prober.all_good()).unwrap();
    let address = lab.public_addresses()[0];
    let owner = lab.node(0).ip_owners().unwrap()[&address].unwrap();
    timeline.add(Event::fault("moveip"));
    let fault = Stamp::now();
    let other = 1 - owner;
    lab.ctdb(0, &["moveip", &address.to_string(), &other.to_string()])
        .unwrap()
        .success()
        .unwrap();
    lab.wait_owner(0, address, other, Duration::from_secs(20))
        .unwrap();
    wait_until("good probes", Duration::from_secs(20), || prober.all_good()).unwrap();
    let records = prober.finish().unwrap();
    assert_eq!(records[0].last_node(), Some(other));
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    eprintln!("outage of a move: {:?}", records[0].longest_outage(fault));
    let status = lab.node(0).stop_graceful(Duration::from_secs(30)).unwrap();
    assert_eq!(status.signal(), None, "ended by itself: {status:?}");
    assert_eq!(lab.destroy(), Vec::<String>::new());
}
