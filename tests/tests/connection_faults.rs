//! The connection table in whole clusters, when things happen that nobody ordered: addresses taken
//! off by hand, storms of connections during takeovers, services over UDP, scripts that carry the
//! addresses, and what clients of the client socket say of connections.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ctdb_tests::client::Client;
use ctdb_tests::lab::cli::wait_until;
use ctdb_tests::lab::held::{Held, Kind, Wanted};
use ctdb_tests::lab::{Lab, Netns, Node, Service, plain};
use ctdb_wire::client::control::{Opcode, Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::types::Connection;

const LONG: Duration = Duration::from_secs(30);
/// For one attempt to connect: the address may be nobody's at that moment.
const ATTEMPT: Duration = Duration::from_millis(300);
/// Connections that one thread of a storm has open at a time.
const OPEN: usize = 8;

fn needs() {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
}

fn build() -> Lab {
    needs();
    let lab = Lab::builder().build().unwrap();
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    lab
}

fn owner(lab: &Lab, ip: IpAddr) -> u32 {
    lab.node(0).ip_owners().unwrap()[&ip].unwrap()
}

fn hold(lab: &Lab, ip: IpAddr, again: bool) -> Held {
    let wanted = [Kind::Idle, Kind::Sending].map(|kind| Wanted {
        server: (ip, plain::PORT).into(),
        kind,
        again,
    });
    Held::open(lab.client(), &wanted, None).unwrap()
}

/// (client, server) of all connections that a node knows.
fn known(node: &Node) -> Vec<(SocketAddr, SocketAddr)> {
    let view = node.ctdb_json(&["conntrack", "list"]).unwrap();
    let end = |value: &serde_json::Value| value.as_str().unwrap().parse().unwrap();
    let list = view["connections"].as_array().unwrap().iter();
    list.map(|c| (end(&c["client"]), end(&c["server"])))
        .collect()
}

/// (client, server) of all established connections to one of the addresses, from the server's side
/// or the client's.
fn established(
    space: &Netns,
    addresses: &[IpAddr],
    is_server: bool,
) -> Vec<(SocketAddr, SocketAddr)> {
    let text = space.run("ss", &["-Htn", "state", "established"]).unwrap();
    let mut found = Vec::new();
    for line in text.lines() {
        let ends: Vec<SocketAddr> = line
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let [local, peer] = ends[..] else { continue };
        let (client, server) = if is_server {
            (peer, local)
        } else {
            (local, peer)
        };
        let plain = |end: SocketAddr| SocketAddr::new(end.ip().to_canonical(), end.port());
        if addresses.contains(&server.ip().to_canonical()) {
            found.push((plain(client), plain(server)));
        }
    }
    found
}

/// Connects and closes all the while; how often, and what is open at the end.
fn storm(server: &SocketAddr, stop: &AtomicBool) -> (u64, VecDeque<TcpStream>) {
    let mut open = VecDeque::new();
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        if let Ok(stream) = TcpStream::connect_timeout(server, ATTEMPT) {
            made += 1;
            open.push_back(stream);
        }
        if open.len() > OPEN {
            open.pop_front();
        }
        thread::sleep(Duration::from_millis(1));
    }
    (made, open)
}

#[test]
fn a_storm_during_takeovers_leaves_no_connection_untold_or_unknown() {
    let lab = build();
    let addresses = lab.public_addresses();
    let servers: Vec<SocketAddr> = addresses
        .iter()
        .map(|ip| (*ip, plain::PORT).into())
        .collect();
    let stop = AtomicBool::new(false);
    let storms = thread::scope(|scope| {
        let client = scope.spawn(|| {
            lab.client().enter(|| {
                let stop = &stop;
                // Each thread is in the client's namespace, as the one that starts it.
                thread::scope(|scope| {
                    let one = |server| scope.spawn(move || storm(server, stop));
                    let threads: Vec<_> = servers.iter().map(one).collect();
                    let done = threads.into_iter().map(|thread| thread.join().unwrap());
                    Ok(done.collect::<Vec<_>>())
                })
            })
        });
        for round in 0..2 {
            for ip in &addresses[..2] {
                let to = (owner(&lab, *ip) + 1 + round) % 3;
                let (ip, to) = (ip.to_string(), to.to_string());
                let moved = lab.node(0).ctdb(&["moveip", &ip, &to]).unwrap();
                moved.success().unwrap();
            }
        }
        let leader = lab.node(0).leader_seen().unwrap().unwrap();
        let victim = lab.node((leader + 1) % 3);
        victim.ctdb(&["disable"]).unwrap().success().unwrap();
        lab.wait("its addresses to be elsewhere", LONG, || {
            let owners = lab.node(leader).ip_owners().unwrap_or_default();
            owners
                .values()
                .all(|owner| owner.is_some() && *owner != Some(victim.pnn()))
        })
        .unwrap();
        stop.store(true, Ordering::Relaxed);
        client.join().unwrap().unwrap()
    });
    let made: u64 = storms.iter().map(|(made, _)| made).sum();
    println!("{made} connections in the storm");
    assert!(made > 100, "{made}");
    // Both sides agree about what is left, and so do all tables.
    let mut last = String::new();
    let agreed = wait_until("both sides and all tables to agree", LONG, || {
        let clients: BTreeSet<_> = established(lab.client(), &addresses, false)
            .into_iter()
            .collect();
        let servers: BTreeSet<_> = lab
            .hosts()
            .iter()
            .flat_map(|node| established(node.netns(), &addresses, true))
            .collect();
        let tables: Vec<BTreeSet<_>> = lab
            .hosts()
            .iter()
            .map(|node| known(node).into_iter().collect())
            .collect();
        last = format!("{clients:?}\n{servers:?}\n{tables:?}");
        clients == servers && tables.iter().all(|table| *table == servers)
    });
    assert!(agreed.is_ok(), "{last}");
    let stats = lab.node(0).ctdb_json(&["conntrack", "stats"]).unwrap();
    assert_eq!(stats["overflowed"], 0);
    let method = stats["kill_method"].as_str().unwrap();
    assert!(
        ["bpf_sock_destroy", "sock_diag"].contains(&method),
        "{method}"
    );
    drop(storms);
    lab.end().unwrap();
}

#[test]
fn an_address_taken_off_by_hand_comes_back_and_its_clients_are_told_when_it_moves() {
    let lab = build();
    let ip = lab.public_addresses()[0];
    let from = owner(&lab, ip);
    let to = (from + 1) % 3;
    // A service over UDP on all addresses: it is shown, and silenced with the address.
    let udp = lab
        .node(from)
        .netns()
        .enter(|| Ok(UdpSocket::bind("0.0.0.0:443")?))
        .unwrap();
    let services = lab
        .node(to)
        .ctdb_json(&["conntrack", "udp", "-n", &from.to_string()])
        .unwrap();
    let quic = services["services"].as_array().unwrap().iter();
    let quic: Vec<_> = quic.filter(|s| s["service"] == "SMB over QUIC").collect();
    assert_eq!(quic.len(), 1, "{services}");
    assert_eq!(quic[0]["pid"], std::process::id());
    let stats = |pnn: u32| {
        let stats = lab.node(pnn).ctdb_json(&["conntrack", "stats"]).unwrap();
        stats["udp_silenced"].as_u64().unwrap()
    };
    let before = stats(from);

    let held = hold(&lab, ip, true);
    wait_until("all to know them", LONG, || {
        lab.hosts().iter().all(|node| known(node).len() == 2)
    })
    .unwrap();
    let space = lab.node(from).netns();
    let shown = space.ip("-o -4 address show").unwrap();
    let line = shown
        .lines()
        .find(|line| line.contains(&format!(" {ip}/")))
        .unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    let (interface, net) = (words[1], words[3]);
    for _ in 0..3 {
        space
            .ip(&format!("addr del {net} dev {interface}"))
            .unwrap();
        lab.wait("the address to be put back", LONG, || {
            space
                .ip("-o -4 address show")
                .unwrap()
                .contains(&format!(" {ip}/"))
        })
        .unwrap();
    }
    // Nobody was disturbed for good, and nothing is forgotten.
    assert_eq!(owner(&lab, ip), from);
    assert_eq!(held.told(), 0);
    assert!(lab.hosts().iter().all(|node| known(node).len() == 2));
    // It is taken off and moves at once.
    space
        .ip(&format!("addr del {net} dev {interface}"))
        .unwrap();
    let words = ["moveip", &ip.to_string(), &to.to_string()];
    lab.node(0).ctdb(&words).unwrap().success().unwrap();
    wait_until("both clients to be told and served again", LONG, || {
        held.records().iter().all(|told| told.again.is_some())
    })
    .unwrap();
    for told in held.finish().unwrap() {
        assert_eq!(told.told.unwrap().1, "ECONNRESET");
    }
    lab.wait("the silenced service to be counted", LONG, || {
        stats(from) > before
    })
    .unwrap();
    drop(udp);
    lab.end().unwrap();
}

#[test]
fn clients_are_told_too_where_scripts_carry_the_addresses() {
    needs();
    let lab = Lab::builder()
        .conf("failover", "addresses", "script")
        .build()
        .unwrap();
    for node in lab.nodes() {
        let dir = node.etc().join("events/legacy");
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("10.interface.script");
        let flags = "case $3 in *:*) flags=nodad ;; esac";
        fs::write(
            &path,
            format!(
                "#!/bin/sh\n{flags}\ncase $1 in takeip) ip addr add \"$3/$4\" dev \"$2\" $flags ;; \
                 releaseip) ip addr del \"$3/$4\" dev \"$2\" ;; esac\n"
            ),
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    let ip = lab.public_addresses()[0];
    let from = owner(&lab, ip);
    let to = (from + 1) % 3;
    let held = hold(&lab, ip, true);
    wait_until("all to know them", LONG, || {
        lab.hosts().iter().all(|node| known(node).len() == 2)
    })
    .unwrap();
    let words = ["moveip", &ip.to_string(), &to.to_string()];
    lab.node(0).ctdb(&words).unwrap().success().unwrap();
    wait_until("both clients to be told and served again", LONG, || {
        held.records().iter().all(|told| told.again.is_some())
    })
    .unwrap();
    wait_until("the former host's sockets to be gone", LONG, || {
        established(lab.node(from).netns(), &[ip], true).is_empty()
    })
    .unwrap();
    drop(held);
    lab.end().unwrap();
}

/// The sources of a connection as a node shows it; none if it does not know it.
fn sources(node: &Node, client: SocketAddr) -> Vec<String> {
    let view = node.ctdb_json(&["conntrack", "list"]).unwrap();
    let list = view["connections"].as_array().unwrap().iter();
    let found = list.filter(|c| c["client"] == client.to_string());
    found
        .flat_map(|c| c["sources"].as_array().unwrap().clone())
        .map(|source| source.as_str().unwrap().to_owned())
        .collect()
}

fn listed(client: &mut Client, at: u32, server: SocketAddr) -> Vec<Connection> {
    let answer = client
        .control(at, 0, &Request::GetTcpTickleList(server))
        .unwrap();
    assert_eq!(answer.status, 0);
    match Reply::decode(Opcode::GetTcpTickleList, &answer.data) {
        Ok(Reply::Tickles(list)) => list.connections,
        other => panic!("no list: {other:?}"),
    }
}

#[test]
fn what_clients_of_the_client_socket_say_is_in_the_same_table() {
    let lab = build();
    let ip = lab.public_addresses()[0];
    let host = lab.node(owner(&lab, ip));
    let other = lab.node((host.pnn() + 1) % 3);
    let connect =
        |node: &Node| Client::connect(&node.root().join("run/ctdb/ctdbd.socket")).unwrap();
    let held = hold(&lab, ip, false);
    let first = held.records()[0].client;
    let server = SocketAddr::new(ip, plain::PORT);
    let real = Connection {
        client: first,
        server,
    };
    // One that the kernel shows too, and one that nobody else knows of.
    let alone = Connection {
        client: "192.0.2.9:50000".parse().unwrap(),
        server: SocketAddr::new(ip, 445),
    };
    let mut samba = connect(host);
    for connection in [real, alone] {
        samba.own(&Request::TcpClient(connection)).unwrap();
    }
    wait_until("another node to know the sources", LONG, || {
        sources(other, first) == ["kernel", "samba"] && sources(other, alone.client) == ["samba"]
    })
    .unwrap();
    // The old list is the same table, with or without a port, here and through another node.
    let mut asking = connect(other);
    let any_port = SocketAddr::new(ip, 0);
    for at in [node::CURRENT, host.pnn()] {
        assert_eq!(listed(&mut asking, at, any_port).len(), 3);
        assert_eq!(listed(&mut asking, at, alone.server), [alone]);
    }
    // Its process ends, and with it what only that one knew of.
    drop(samba);
    wait_until("the process's word to be gone", LONG, || {
        sources(other, first) == ["kernel"] && sources(other, alone.client).is_empty()
    })
    .unwrap();
    // By hand, as event scripts do, with Debian's tool if it is there, else as it does.
    let mut script = connect(host);
    script.own(&Request::TcpAddDelayedUpdate(alone)).unwrap();
    wait_until("another node to know it", LONG, || {
        sources(other, alone.client) == ["manual"]
    })
    .unwrap();
    drop(script);
    assert_eq!(listed(&mut asking, host.pnn(), alone.server), [alone]);
    let debians = Command::new("/usr/bin/ctdb")
        .args(["-X", "gettickles", &ip.to_string(), "445"])
        .env("CTDB_TEST_MODE", "yes")
        .env("CTDB_BASE", host.etc())
        .env("CTDB_SOCKET", host.root().join("run/ctdb/ctdbd.socket"))
        .output();
    if let Ok(debians) = debians {
        let text = String::from_utf8_lossy(&debians.stdout);
        let row = format!("|192.0.2.9|50000|{ip}|445|");
        assert!(text.contains(&row), "{text}{debians:?}");
    }
    let mut script = connect(host);
    script.own(&Request::TcpRemove(alone)).unwrap();
    wait_until("another node to forget it", LONG, || {
        sources(other, alone.client).is_empty()
    })
    .unwrap();
    drop(held);
    lab.end().unwrap();
}
