//! Debian's Samba, unmodified, `clustering = yes`, on three nodes over one directory: what one node
//! knows the others know, and what is held while nodes come and go stays held. The daemon below is a
//! parameter: Debian's shows that the test is right.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ctdb_tests::lab::{Builder, Flavor, Lab, Service, lacks, overlay};

const LONG: Duration = Duration::from_secs(60);

/// smbclient's commands through an address; tried again, since Samba may be starting.
fn smbclient(lab: &Lab, address: IpAddr, share: &str, commands: &str) -> String {
    let mut text = String::new();
    lab.wait(&format!("{address}: {commands}"), LONG, || {
        let out = lab
            .client()
            .output(Command::new("smbclient").args([
                &format!("//{address}/{share}"),
                "-U",
                "root%secret",
                "-c",
                commands,
            ]))
            .unwrap();
        text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&out.stderr));
        out.status.success()
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    text
}

fn tool(lab: &Lab, node: u32, words: &[&str]) -> String {
    lab.node(node).samba(words).unwrap().success().unwrap()
}

/// Accounts and the registry are everywhere, whichever node wrote them.
fn replicated(lab: &Lab, of: &BTreeMap<u32, IpAddr>) {
    for node in 0..3 {
        let accounts = tool(lab, node, &["pdbedit", "-L"]);
        assert!(accounts.contains("root:0:"), "node {node}: {accounts}");
    }
    let path = lab.shared_dir().join("of the registry");
    std::fs::create_dir(&path).unwrap();
    let path = path.to_str().unwrap();
    tool(
        lab,
        1,
        &[
            "net",
            "conf",
            "addshare",
            "reg",
            path,
            "writeable=y",
            "guest_ok=y",
        ],
    );
    for node in 0..3 {
        let list = tool(lab, node, &["net", "conf", "list"]);
        assert!(list.contains("[reg]"), "node {node}: {list}");
        smbclient(lab, of[&node], "reg", &format!("mkdir by{node}"));
        let answer = tool(lab, node, &["wbinfo", "-p"]);
        assert!(answer.contains("succeeded"), "node {node}: {answer}");
    }
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 3);
}

/// Files written through one node are read through the others.
fn files(lab: &Lab, of: &BTreeMap<u32, IpAddr>) {
    let local = lab.dir().join("sent");
    for (node, address) in of {
        std::fs::write(&local, format!("through node {node}")).unwrap();
        let put = format!("put {} file{node}", local.display());
        smbclient(lab, *address, "share", &put);
        for other in of.values() {
            let got = lab.dir().join("got");
            let get = format!("get file{node} {}", got.display());
            smbclient(lab, *other, "share", &get);
            let text = std::fs::read_to_string(&got).unwrap();
            assert_eq!(text, format!("through node {node}"));
        }
    }
}

/// Conflicts between two sessions through two nodes.
fn conflicts(lab: &Lab, of: &BTreeMap<u32, IpAddr>) {
    for (first, second) in [(0, 1), (1, 2), (2, 0)] {
        for check in [
            "content",
            "share-modes",
            "ranges",
            "oplock",
            "lease",
            "notify",
        ] {
            let (a, b) = (of[&first].to_string(), of[&second].to_string());
            let mut command = lab.smb_client(check, &a, &b).unwrap();
            let out = lab.client().output(&mut command).unwrap();
            let text = String::from_utf8_lossy(&out.stdout);
            let errors = String::from_utf8_lossy(&out.stderr);
            assert_eq!(text.trim(), "ok", "{check} {first} {second}: {errors}");
        }
    }
}

/// Sessions through two nodes, and a lock held through the first.
struct Held(Child);

impl Held {
    fn new(lab: &Lab, first: IpAddr, second: IpAddr) -> Self {
        let (a, b) = (first.to_string(), second.to_string());
        let mut command = lab.smb_client("hold", &a, &b).unwrap();
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = lab.client().spawn(&mut command).unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.as_mut().unwrap());
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        Self(child)
    }

    /// The lock is still there, for a new session through the second address too.
    fn check(mut self, what: &str) {
        self.0.stdin.take().unwrap().write_all(b"go\n").unwrap();
        let out = self.0.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{what}: {errors}");
    }
}

/// Every node's smbstatus lists the sessions of both nodes and the open file.
fn status(lab: &Lab, of: &BTreeMap<u32, IpAddr>) {
    let held = Held::new(lab, of[&0], of[&1]);
    for node in 0..3 {
        let text = tool(lab, node, &["smbstatus"]);
        for what in [" 0:", " 1:", " hold-"] {
            let listed = text.lines().any(|line| format!(" {line}").contains(what));
            assert!(listed, "node {node}: no {what} in\n{text}");
        }
        // The range that is locked through node 0.
        let ranges = tool(lab, node, &["smbstatus", "--byterange"]);
        let listed = ranges.lines().any(|line| line.contains(" hold-"));
        assert!(listed, "node {node}: no range of hold- in\n{ranges}");
    }
    held.check("without a fault");
}

/// What happens to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Move,
    Drain,
    Kill,
    Power,
}

/// A lock that is held through one node outlives what happens to another, whose address serves
/// again from elsewhere.
fn failover(lab: &Lab, fault: Fault) {
    let of = lab.address_of_each(LONG).unwrap();
    // Its leader stays, so that only one thing happens at a time.
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let keeper = leader;
    let victim = (leader + 1) % 3;
    let address = of[&victim];
    let held = Held::new(lab, of[&keeper], address);
    let node = lab.node(victim);
    let moved = |to: u32| {
        let words = ["moveip", &address.to_string(), &to.to_string()];
        node.ctdb(&words).unwrap().success().unwrap();
    };
    match fault {
        Fault::Move => moved(keeper),
        Fault::Drain => drop(node.ctdb(&["disable"]).unwrap().success().unwrap()),
        Fault::Kill => node.kill_daemon(nix::sys::signal::Signal::SIGKILL).unwrap(),
        Fault::Power => node.power_loss().unwrap(),
    }
    lab.wait(
        &format!("{fault:?}: {address} to be elsewhere"),
        LONG,
        || {
            let owners = lab.node(keeper).ip_owners();
            owners.is_ok_and(|o| o[&address].is_some_and(|owner| owner != victim))
        },
    )
    .unwrap();
    smbclient(lab, address, "share", &format!("mkdir after-{fault:?}"));
    held.check(&format!("{fault:?}"));
    // As it was.
    match fault {
        Fault::Move => moved(victim),
        Fault::Drain => drop(node.ctdb(&["enable"]).unwrap().success().unwrap()),
        Fault::Kill | Fault::Power => {
            node.stop_service(Service::ClusteredSmb).unwrap();
            if fault == Fault::Power {
                node.restore_power().unwrap();
            }
            node.start_daemon().unwrap();
            lab.wait_all_healthy(LONG).unwrap();
            node.start_service(Service::ClusteredSmb).unwrap();
            node.wait_service(Service::ClusteredSmb, LONG).unwrap();
        }
    }
}

fn everything(flavor: Flavor, faults: &[Fault]) {
    everything_on(Lab::builder().flavor(flavor), faults, "Version 4.");
}

/// The same on a lab whose smbd says that it is of that version.
fn everything_on(wishes: Builder, faults: &[Fault], version: &str) {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let lab = Lab::with_samba_of(wishes.ipv6(false), LONG).unwrap();
    let says = tool(&lab, 0, &["smbd", "-V"]);
    assert!(says.contains(version), "{says}");
    let of = lab.address_of_each(LONG).unwrap();
    replicated(&lab, &of);
    files(&lab, &of);
    conflicts(&lab, &of);
    status(&lab, &of);
    for fault in faults {
        failover(&lab, *fault);
    }
    assert_eq!(lab.samba_panics(), Vec::<String>::new());
    assert_eq!(lab.destroy(), Vec::<String>::new());
}

/// A killed CTDB daemon does not come back beside what it leaves running.
const THEIRS: [Fault; 2] = [Fault::Move, Fault::Drain];
const ALL: [Fault; 4] = [Fault::Move, Fault::Drain, Fault::Kill, Fault::Power];

#[test]
fn samba_on_ctdbs_daemon() {
    everything(Flavor::Ctdb, &THEIRS);
}

#[test]
fn samba_on_our_daemon() {
    everything(Flavor::Ours, &ALL);
}

/// On our daemon, with the packages of another release of Debian.
fn release(suite: &str, version: &str) {
    match overlay::overlay(suite, &["samba", "winbind", "smbclient", "ctdb"]) {
        Ok(root) => everything_on(Lab::builder().overlay(root), &ALL, version),
        Err(error) => println!("NOT TESTED: the packages of {suite} cannot be had: {error:#}"),
    }
}

#[test]
#[ignore = "downloads packages of Debian's next release"]
fn samba_4_22_on_our_daemon() {
    release("trixie", "Version 4.22.");
}

#[test]
#[ignore = "downloads packages of Debian's testing release"]
fn samba_4_25_on_our_daemon() {
    release("forky", "Version 4.25.");
}
