//! The client socket of running daemons: CTDB's own tool, and clients that speak as Samba does,
//! against ours and against Debian's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ctdb_tests::client::{Client, Mail};
use ctdb_tests::lab::{Flavor, Lab, Node, lacks, reference};
use ctdb_wire::client::codec::decode_all;
use ctdb_wire::client::control::{Opcode, Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::packet::TunnelFlags;
use ctdb_wire::client::types::{NotifyData, PidSrvid, TunableName};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(300);

fn lab(flavor: Flavor) -> Lab {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    if let Some(package) = reference::lacks() {
        panic!("this test cannot run here: {package} is missing");
    }
    let lab = Lab::builder()
        .flavor(flavor)
        .conf("logging", "log level", "NOTICE")
        .public_addresses(3)
        .build()
        .unwrap();
    lab.bring_up(&[], LONG).unwrap();
    lab
}

fn socket(node: &Node) -> PathBuf {
    node.root().join("run/ctdb/ctdbd.socket")
}

fn connect(node: &Node) -> Client {
    Client::connect(&socket(node)).unwrap()
}

/// CTDB's tool against any daemon; its test mode takes the socket from the environment.
fn tool(node: &Node, words: &[&str]) -> String {
    let mut command = Command::new("/usr/bin/ctdb");
    command
        .args(words)
        .env("CTDB_TEST_MODE", "yes")
        .env("CTDB_BASE", node.etc())
        .env("CTDB_SOCKET", socket(node));
    let out = node.netns().output(&mut command).unwrap();
    format!(
        "{}{}exit {:?}\n",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr),
        out.status.code()
    )
}

/// Commands that change nothing and print the same whatever daemon answers.
const SAME: &[&[&str]] = &[
    &["pnn"],
    &["runstate"],
    &["listvars"],
    &["getvar", "RecoverTimeout"],
    &["getvar", "recovertimeout"],
    &["getvar", "NoSuchThing"],
    &["-X", "listnodes"],
    &["listnodes"],
    &["getcapabilities"],
    &["getreclock"],
    &["-X", "ifaces"],
    &["process-exists", "1"],
    &["process-exists", "1", "0x1234567890"],
    &["-n", "1", "process-exists", "1"],
    &["-n", "1", "pnn"],
    &["-n", "7", "runstate"],
    &["-n", "2", "runstate"],
    &["-X", "status"],
    &["-X", "nodestatus"],
    &["nodestatus", "all"],
    &["-n", "1", "nodestatus"],
    &["getdbstatus", "nosuch.tdb"],
    &["gettickles", "192.0.2.77"],
    &["ipinfo", "192.0.2.77"],
];

/// Commands that print numbers of their own: their text is the same without digits.
const ALIKE: &[&[&str]] = &[
    &["status"],
    &["uptime"],
    &["ping"],
    &["leader"],
    &["getpid"],
    &["statistics"],
    &["stats", "1"],
    &["-X", "ip", "all"],
    &["ip", "all"],
    &["getdebug"],
];

fn without_digits(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        // Dates, and times that may be longer than a second or not.
        let line: String = line
            .chars()
            .filter(|c| !c.is_ascii_digit() && *c != '-')
            .collect();
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

fn all_outputs(flavor: Flavor) -> BTreeMap<String, String> {
    let lab = lab(flavor);
    // CTDB calls a node healthy before its takeover run is through, and may move addresses again.
    lab.wait("node 0 to host its share of the addresses", LONG, || {
        tool(lab.node(0), &["-X", "ifaces"]).contains("|pub0|1|2|")
    })
    .unwrap();
    // Time for some intervals of the statistics.
    std::thread::sleep(Duration::from_secs(3));
    let mut outputs = BTreeMap::new();
    for words in SAME {
        outputs.insert(words.join(" "), tool(lab.node(0), words));
    }
    for words in ALIKE {
        let text = without_digits(&tool(lab.node(0), words));
        // Clients come and go; statistics name weekdays.
        outputs.insert(words.join(" "), text);
    }
    outputs
}

#[test]
fn ctdbs_tool_prints_the_same_against_both_daemons() {
    let ours = all_outputs(Flavor::Ours);
    let theirs = all_outputs(Flavor::Ctdb);
    let mut wrong = String::new();
    for (command, expected) in &theirs {
        let got = &ours[command];
        if got != expected {
            let _ = writeln!(
                wrong,
                "ctdb {command}\n--- CTDB:\n{expected}--- ours:\n{got}"
            );
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

fn check_identity(node: &Node) {
    let mut client = connect(node);
    let own = client.control(node::CURRENT, 0, &Request::GetPnn).unwrap();
    assert_eq!(own.status.cast_unsigned(), node.pnn());
    let data = client.own(&Request::GetNodeMap).unwrap();
    let Ok(Reply::NodeMap(map)) = Reply::decode(Opcode::GetNodeMap, &data) else {
        panic!("no map");
    };
    assert_eq!(map.len(), 3);
    assert!(map.iter().all(|entry| entry.flags == 0), "{map:?}");
    assert!(map.iter().all(|entry| entry.address.port() == 4379));
    let data = client.own(&Request::Uptime).unwrap();
    assert_eq!(data.len(), 64);
    assert_eq!(client.own(&Request::GetAllTunables).unwrap().len(), 248);
    let data = client.own(&Request::GetPublicIps).unwrap();
    let Ok(Reply::PublicIps(ips)) = Reply::decode(Opcode::GetPublicIps, &data) else {
        panic!("no list");
    };
    assert_eq!(ips.len(), 6, "three of each family");
    // Unknown, obsolete, of the wrong size; unknown node.
    for opcode in [9999, 10, 31] {
        let answer = client.raw_control(node::CURRENT, 0, opcode, b"").unwrap();
        assert_eq!((answer.status, answer.data.len()), (-1, 0), "{opcode}");
    }
    let wrong = client.raw_control(node::CURRENT, 0, 91, b"x").unwrap();
    assert_eq!(wrong.status, -1);
    let nowhere = client.control(77, 0, &Request::GetPnn).unwrap();
    assert_eq!(
        (nowhere.status, nowhere.error.as_str()),
        (-1, "ctdb_control to disconnected node")
    );
    let unknown = client
        .control(
            node::CURRENT,
            0,
            &Request::GetTunable(TunableName(b"NoSuchThing")),
        )
        .unwrap();
    assert_eq!(unknown.status, -22);
    // Of no use: ignored, the connection stands.
    client.send_bytes(&[4, 0, 0, 0, 36, 0, 0, 0]).unwrap();
    client.send_bytes(&[1; 32]).unwrap();
    client.pad();
    let other = client.control(1, 0, &Request::GetPnn).unwrap();
    assert_eq!(other.status, 1);
    // A length of 0 ends it.
    client.send_bytes(&[0; 4]).unwrap();
    client.wait_for_end(LONG).unwrap();
}

fn check_messages(lab: &Lab) {
    let id = 0xAE00_0000_0000_0001;
    let mut a = connect(lab.node(0));
    let mut b = connect(lab.node(1));
    for client in [&mut a, &mut b] {
        client.register(id).unwrap();
    }
    b.register(id).unwrap();
    a.message(1, id, b"to node 1").unwrap();
    let mail = |text: &str| {
        Some(Mail {
            srvid: id,
            data: text.as_bytes().to_vec(),
        })
    };
    for _ in 0..2 {
        assert_eq!(b.next_mail(LONG).unwrap(), mail("to node 1"));
    }
    let gone = b
        .control(node::CURRENT, id, &Request::DeregisterSrvid)
        .unwrap();
    assert_eq!(gone.status, 0);
    for (to, text) in [
        (node::BROADCAST_ALL, "all"),
        (node::BROADCAST_CONNECTED, "connected"),
        (node::BROADCAST_ACTIVE, "active"),
    ] {
        a.message(to, id, text.as_bytes()).unwrap();
        assert_eq!(a.next_mail(LONG).unwrap(), mail(text));
        assert_eq!(b.next_mail(LONG).unwrap(), mail(text));
    }
    a.message(77, id, b"nowhere").unwrap();
    // In order, also when one is long.
    for number in 0..100_u32 {
        let length = if number == 50 { 3 << 20 } else { 10 };
        let mut data = vec![0; length];
        data[..4].copy_from_slice(&number.to_le_bytes());
        a.message(1, id, &data).unwrap();
    }
    for number in 0..100_u32 {
        let mail = b.next_mail(LONG).unwrap().unwrap();
        assert_eq!(mail.data[..4], number.to_le_bytes());
    }
    let none = b
        .control(node::CURRENT, 12345, &Request::DeregisterSrvid)
        .unwrap();
    assert_eq!(none.status, 2);
    // A notice when a client goes.
    let notify = NotifyData {
        srvid: id,
        data: b"gone",
    };
    a.own(&Request::RegisterNotify(notify)).unwrap();
    drop(a);
    assert_eq!(b.next_mail(LONG).unwrap(), mail("gone"));
}

fn check_processes(lab: &Lab) {
    let unique = 0x0123_4567_89AB_CDEF;
    let pid = std::process::id().cast_signed();
    let mut a = connect(lab.node(0));
    let mut b = connect(lab.node(1));
    let mut exists = |request: &Request<'_>| a.control(1, 0, request).unwrap().status;
    let check = |srvid| Request::CheckPidSrvid(PidSrvid { pid, srvid });
    assert_eq!(exists(&check(unique)), -1);
    b.register(unique).unwrap();
    assert_eq!(exists(&check(unique)), 0, "never a false \"dead\"");
    assert_eq!(exists(&Request::ProcessExists(pid)), 0);
    assert_eq!(exists(&Request::ProcessExists(1)), -1);
    std::thread::sleep(SHORT);
    assert_eq!(exists(&check(unique)), 0);
    assert_eq!(exists(&check(unique + 1)), -1);
    drop(b);
    lab.wait("the process to be gone", LONG, || {
        exists(&check(unique)) == -1
    })
    .unwrap();
}

fn check_tunnels(lab: &Lab, carried: bool) {
    let id = 0xFFFF_FFFF_0000_0000;
    let mut a = connect(lab.node(0));
    let mut b = connect(lab.node(1));
    for client in [&mut a, &mut b] {
        let answer = client
            .control(node::CURRENT, id, &Request::TunnelRegister)
            .unwrap();
        assert_eq!(answer.status, 0);
    }
    let second = connect(lab.node(0)).control(node::CURRENT, id, &Request::TunnelRegister);
    assert_eq!(second.unwrap().status, -1);
    a.tunnel(1, 4711, id, TunnelFlags::REQUEST, b"question")
        .unwrap();
    let parcel = b.next_parcel(LONG).unwrap().unwrap();
    assert_eq!(parcel.data, b"question");
    assert_eq!((parcel.from, parcel.reqid) == (0, 4711), carried);
    a.tunnel(node::CURRENT, 1, id, TunnelFlags::REQUEST, b"x")
        .unwrap();
    assert_eq!(a.next_parcel(SHORT).unwrap(), None);
}

fn check_all(flavor: Flavor) {
    let lab = lab(flavor);
    for number in 0..3 {
        check_identity(lab.node(number));
    }
    check_messages(&lab);
    check_processes(&lab);
    check_tunnels(&lab, flavor == Flavor::Ours);
}

#[test]
fn clients_speak_with_our_daemon() {
    check_all(Flavor::Ours);
}

#[test]
fn the_same_clients_speak_with_ctdbs_daemon() {
    check_all(Flavor::Ctdb);
}

/// Text of a file that may be gone.
fn text(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn resident_kb(node: &Node) -> u64 {
    let pid = node.daemon_pid().unwrap();
    text(Path::new(&format!("/proc/{pid}/status")))
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
        .unwrap()
}

#[test]
fn hostile_and_many_clients_disturb_nobody() {
    let lab = lab(Flavor::Ours);
    let node = lab.node(0);
    let mut good = connect(node);
    good.register(7).unwrap();

    // Half a packet, and one that announces a gigabyte: they cost what was sent.
    let mut half: Vec<Client> = (0..20).map(|_| connect(node)).collect();
    let before = resident_kb(node);
    for client in &mut half {
        client.send_bytes(&(1_u32 << 30).to_ne_bytes()).unwrap();
        client.send_bytes(&[0; 1000]).unwrap();
    }
    let mut endless = connect(node);
    endless.send_bytes(&u32::MAX.to_ne_bytes()).unwrap();
    endless.wait_for_end(LONG).unwrap();
    good.own(&Request::GetNodeMap).unwrap();
    assert!(resident_kb(node) < before + 20_000);
    drop(half);

    // One that never reads: messages to it pile up to the bound, then it is gone.
    let mut deaf = connect(node);
    deaf.register(8).unwrap();
    let long = vec![0; 8 << 20];
    for _ in 0..40 {
        good.message(node::CURRENT, 8, &long).unwrap();
    }
    good.own(&Request::GetNodeMap).unwrap();
    deaf.wait_for_end(LONG).unwrap();
    lab.wait("its memory to be given back", LONG, || {
        resident_kb(node) < before + 100_000
    })
    .unwrap();

    // Messages between nodes faster than they can go: the sender is held up, nothing is lost.
    let mut far = connect(lab.node(1));
    far.register(9).unwrap();
    let sender = std::thread::spawn({
        let mut flood = connect(node);
        move || {
            let data = vec![1; 1 << 20];
            for _ in 0..100 {
                flood.message(1, 9, &data).unwrap();
            }
            flood
        }
    });
    for _ in 0..100 {
        assert_eq!(far.next_mail(LONG).unwrap().unwrap().data.len(), 1 << 20);
    }
    drop(sender.join().unwrap());

    // Ten thousand that do nothing.
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
    let count = usize::try_from(limit.1)
        .unwrap()
        .saturating_sub(1000)
        .min(10_000);
    let most = nix::sys::resource::Resource::RLIMIT_NOFILE;
    nix::sys::resource::setrlimit(most, limit.1, limit.1).unwrap();
    let crowd: Vec<Client> = (0..count).map(|_| connect(node)).collect();
    lab.wait("all to be counted", LONG, || {
        let answer = good.control(node::CURRENT, 0, &Request::Ping).unwrap();
        answer.status as usize > count
    })
    .unwrap();
    good.message(node::CURRENT, 7, b"still here").unwrap();
    assert_eq!(good.next_mail(LONG).unwrap().unwrap().data, b"still here");
    drop(crowd);
    lab.wait("them to be gone", LONG, || {
        let answer = good.control(node::CURRENT, 0, &Request::Ping).unwrap();
        answer.status < 10
    })
    .unwrap();
    assert!(decode_all::<u32>(&good.own(&Request::GetRunstate).unwrap()).is_ok());
    let log = text(&node.root().join("log/ctdbd.out"));
    assert!(!log.contains("panicked"), "{log}");
    // The end of the daemon is the end of its clients.
    node.stop_graceful(LONG).unwrap();
    good.wait_for_end(LONG).unwrap();
    assert!(!socket(node).exists());
}
