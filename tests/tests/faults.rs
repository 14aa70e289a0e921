//! Faults that a cluster survives: interfaces, links, foreign addresses, full disks, deaths in
//! the middle of a move, clients and strangers that misbehave.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ctdb_tests::lab::{Lab, Links, Service, Stamp};
use ctdb_wire::api::NodeView;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;

const LONG: Duration = Duration::from_secs(30);

fn build() -> Lab {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    Lab::builder().build().unwrap()
}

fn cluster() -> Lab {
    let lab = build();
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    lab
}

/// Addresses that `asked` sees on `node`.
fn of(lab: &Lab, asked: u32, node: u32) -> Vec<IpAddr> {
    let owners = lab.node(asked).ip_owners().unwrap_or_default();
    owners
        .iter()
        .filter(|(_, o)| **o == Some(node))
        .map(|(a, _)| *a)
        .collect()
}

/// Waits until all addresses are hosted by other nodes than `node`, as `asked` sees it.
fn wait_without(lab: &Lab, asked: u32, node: u32) {
    lab.wait(
        &format!("all addresses to be on others than node {node}"),
        LONG,
        || {
            let owners = lab.node(asked).ip_owners().unwrap_or_default();
            owners.len() == 6 && owners.values().all(|o| o.is_some_and(|o| o != node))
        },
    )
    .unwrap();
}

/// Waits until every probe of the plain service is good.
fn wait_answered(lab: &Lab) {
    let prober = lab.probe(&[Service::Plain], None).unwrap();
    lab.wait("all services to answer", LONG, || prober.all_good())
        .unwrap();
}

/// A node that does not lead.
fn follower(lab: &Lab) -> u32 {
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    (0..3).find(|n| *n != leader).unwrap()
}

fn other(than: u32) -> u32 {
    (than + 1) % 3
}

#[test]
fn an_interface_that_vanishes_and_comes_back() {
    let lab = cluster();
    let pnn = follower(&lab);
    let observer = lab.observe(None).unwrap();
    lab.node(pnn).delete_interface("pub0").unwrap();
    wait_without(&lab, other(pnn), pnn);
    wait_answered(&lab);
    lab.node(pnn).create_interface("pub0").unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait("addresses to come back", LONG, || {
        !of(&lab, pnn, pnn).is_empty()
    })
    .unwrap();
    wait_answered(&lab);
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    lab.end().unwrap();
}

#[test]
fn a_public_link_that_goes_down_and_up() {
    let lab = cluster();
    let pnn = follower(&lab);
    let observer = lab.observe(None).unwrap();
    lab.node(pnn).set_cable("pub0", false).unwrap();
    wait_without(&lab, other(pnn), pnn);
    wait_answered(&lab);
    lab.node(pnn).set_cable("pub0", true).unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    wait_answered(&lab);
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    lab.end().unwrap();
}

/// The file is wrong then, and a wrong file never half-starts a daemon (spec/cluster.md 1.3): it
/// says what is missing, and the others serve.
#[test]
fn an_interface_that_is_missing_at_start() {
    let lab = build();
    let node = lab.node(1);
    node.delete_interface("pub0").unwrap();
    lab.start_service(Service::Plain).unwrap();
    lab.start_daemons().unwrap();
    let status = node.wait_daemon_exit(LONG).unwrap();
    assert_eq!(status.code(), Some(1));
    let said = node.log_tails(20);
    assert!(
        said.contains("public_addresses:1:") && said.contains("pub0"),
        "{said}"
    );
    wait_without(&lab, 0, 1);
    wait_answered(&lab);
    node.create_interface("pub0").unwrap();
    node.start_daemon().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait("node 1 to host its share", LONG, || {
        !of(&lab, 0, 1).is_empty()
    })
    .unwrap();
    wait_answered(&lab);
    lab.end().unwrap();
}

/// Some other host has one of the addresses: the cluster serves the rest, and says nothing false.
#[test]
fn an_address_that_is_elsewhere_on_the_link() {
    let lab = build();
    lab.client().ip("addr add 10.99.2.100/24 dev eth0").unwrap();
    lab.bring_up(&[Service::Plain], LONG).unwrap();
    let rest: Vec<_> = lab.public_addresses().into_iter().skip(1).collect();
    let prober = lab.probe_some(&[Service::Plain], &rest, None).unwrap();
    lab.wait("the other addresses to answer", LONG, || prober.all_good())
        .unwrap();
    lab.client().ip("addr del 10.99.2.100/24 dev eth0").unwrap();
    wait_answered(&lab);
    lab.end().unwrap();
}

#[test]
fn a_family_that_an_interface_lacks() {
    let lab = build();
    lab.node(1)
        .netns()
        .sysctl(&[("net/ipv6/conf/pub0/disable_ipv6", "1")])
        .unwrap();
    lab.start_service(Service::Plain).unwrap();
    lab.start_daemons().unwrap();
    lab.wait("all addresses to be hosted where they can be", LONG, || {
        let owners = lab.node(0).ip_owners().unwrap_or_default();
        owners.len() == 6
            && owners.iter().all(|(a, o)| match o {
                None => false,
                Some(1) => a.is_ipv4(),
                Some(_) => true,
            })
    })
    .unwrap();
    wait_answered(&lab);
    lab.end().unwrap();
}

/// A small file system over `dir`, full to the last byte.
fn fill(dir: &Path) {
    mount(
        Some("tmpfs"),
        dir,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=64k"),
    )
    .unwrap();
    let mut file = fs::File::create(dir.join("ballast")).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
}

#[test]
fn full_disks() {
    let lab = cluster();
    for node in lab.nodes() {
        for dir in ["var/lib/ctdb/state", "var/log/ctdb"] {
            fill(&node.root().join(dir));
        }
    }
    let pnn = follower(&lab);
    lab.node(pnn).cut_links(Links::All).unwrap();
    wait_without(&lab, other(pnn), pnn);
    wait_answered(&lab);
    lab.node(pnn).restore_links(Links::All).unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    // A daemon can also start there.
    lab.node(pnn).kill_daemon(Signal::SIGKILL).unwrap();
    lab.node(pnn).wait_daemon_exit(LONG).unwrap();
    lab.node(pnn).start_daemon().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    for node in lab.nodes() {
        node.stop_graceful(LONG).unwrap();
        for dir in ["var/lib/ctdb/state", "var/log/ctdb"] {
            nix::mount::umount(&node.root().join(dir)).unwrap();
        }
    }
    lab.end().unwrap();
}

/// The kernel refuses a node's changes to the firewall: what it is given goes elsewhere, with the
/// reason in its history, until it can again.
#[test]
fn a_firewall_that_the_kernel_refuses() {
    let lab = cluster();
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let (source, broken) = (other(leader), other(other(leader)));
    let address = of(&lab, 0, source)[0];
    // A table of our name that a running nft owns: nobody else may change or replace it.
    let node = lab.node(broken);
    let mut nft = node
        .netns()
        .spawn(
            Command::new("nft")
                .arg("-i")
                .stdin(Stdio::piped())
                .stdout(Stdio::null()),
        )
        .unwrap();
    let commands = b"delete table inet ctdb\nadd table inet ctdb { flags owner; }\n";
    nft.stdin.as_mut().unwrap().write_all(commands).unwrap();
    lab.wait("the table to have an owner", LONG, || {
        node.netns()
            .run("nft", &["list", "ruleset"])
            .is_ok_and(|text| text.contains("owner"))
    })
    .unwrap();
    let observer = lab.observe(None).unwrap();
    let asked = lab
        .ctdb(
            leader,
            &["moveip", &address.to_string(), &broken.to_string()],
        )
        .unwrap();
    assert!(!asked.ok(), "{asked:?}");
    lab.wait_all_served(LONG).unwrap();
    assert_ne!(lab.node(0).ip_owners().unwrap()[&address], Some(broken));
    assert!(
        !node
            .netns()
            .ip("-o address")
            .unwrap()
            .contains(&format!(" {address}/")),
        "the takeover was not undone"
    );
    let history = lab
        .ctdb(broken, &["cluster", "history"])
        .unwrap()
        .success()
        .unwrap();
    assert!(history.contains("prepare the firewall"), "{history}");
    wait_answered(&lab);
    // The owner ends and its table with it: the node takes again.
    drop(nft.stdin.take());
    nft.wait().unwrap();
    lab.wait("the address to be moved", LONG, || {
        lab.ctdb(
            leader,
            &["moveip", &address.to_string(), &broken.to_string()],
        )
        .is_ok_and(|answer| answer.ok())
    })
    .unwrap();
    lab.wait_owner(0, address, broken, LONG).unwrap();
    wait_answered(&lab);
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    lab.end().unwrap();
}

/// One side of a move dies after ever more milliseconds: before, in and after every phase.
fn killed_in_a_move(kill_target: bool) {
    let lab = cluster();
    let observer = lab.observe(None).unwrap();
    for delay in [0, 1, 2, 3, 5, 8, 12, 20] {
        let owners = lab.node(0).ip_owners().unwrap();
        let leader = lab.node(0).leader_seen().unwrap().unwrap();
        // Between the followers, so that each round is about the move alone.
        let (address, from) = owners
            .iter()
            .find_map(|(a, o)| o.filter(|o| *o != leader).map(|o| (*a, o)))
            .unwrap_or_else(|| panic!("no follower hosts an address: {owners:?}"));
        let to = (0..3).find(|n| *n != leader && *n != from).unwrap();
        let victim = if kill_target { to } else { from };
        let asker = lab.node(leader);
        thread::scope(|scope| {
            // Its answer may well be an error: one side dies.
            let asking =
                scope.spawn(|| asker.ctdb(&["moveip", &address.to_string(), &to.to_string()]));
            thread::sleep(Duration::from_millis(delay));
            lab.node(victim).kill_daemon(Signal::SIGKILL).unwrap();
            asking.join().unwrap().unwrap();
        });
        wait_without(&lab, leader, victim);
        wait_answered(&lab);
        lab.node(victim).wait_daemon_exit(LONG).unwrap();
        lab.node(victim).start_daemon().unwrap();
        lab.wait_all_healthy(LONG).unwrap();
        lab.wait_all_served(LONG).unwrap();
        lab.wait("the addresses to be spread", LONG, || {
            (0..3).all(|n| !of(&lab, leader, n).is_empty())
        })
        .unwrap();
    }
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    lab.end().unwrap();
}

#[test]
fn a_daemon_killed_in_every_phase_of_a_release() {
    killed_in_a_move(false);
}

#[test]
fn a_daemon_killed_in_every_phase_of_a_takeover() {
    killed_in_a_move(true);
}

/// Links stay up, frames are lost: the part with most nodes serves, the other falls silent.
#[test]
fn a_partition_silences_the_lesser_part() {
    let lab = cluster();
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let observer = lab.observe(None).unwrap();
    let prober = lab.probe(&[Service::Plain], None).unwrap();
    lab.wait("all services to answer", LONG, || prober.all_good())
        .unwrap();
    lab.partition(&[leader], Links::All).unwrap();
    let cut = Stamp::now();
    wait_without(&lab, other(leader), leader);
    lab.wait("all services to answer", LONG, || prober.all_good())
        .unwrap();
    assert!(
        prober
            .records()
            .iter()
            .all(|r| r.last_node() != Some(leader))
    );
    lab.heal().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    lab.wait("all services to answer", LONG, || prober.all_good())
        .unwrap();
    let report = observer.finish().unwrap();
    assert_eq!(report.conflicts(), []);
    for record in prober.finish().unwrap() {
        assert_eq!(record.refused(cut), 0, "{}", record.target.label);
    }
    lab.end().unwrap();
}

/// Heartbeats go over every network: while only the private one is cut, nobody loses the right to
/// what it serves.
#[test]
fn addresses_are_served_while_the_private_network_is_cut() {
    let lab = cluster();
    let pnn = follower(&lab);
    let observer = lab.observe(None).unwrap();
    let prober = lab.probe(&[Service::Plain], None).unwrap();
    lab.wait("all services to answer", LONG, || prober.all_good())
        .unwrap();
    lab.node(pnn).cut_links(Links::Private).unwrap();
    thread::sleep(Duration::from_secs(8));
    lab.wait("all services to answer", LONG, || prober.all_good())
        .unwrap();
    lab.node(pnn).restore_links(Links::Private).unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    lab.wait("all services to answer", LONG, || prober.all_good())
        .unwrap();
    assert_eq!(observer.finish().unwrap().conflicts(), []);
    lab.end().unwrap();
}

#[test]
fn garbage_on_the_private_network() {
    let lab = cluster();
    let leader = lab.node(0).leader_seen().unwrap();
    // Addresses of node 0, from node 2's side of the network.
    lab.node(2)
        .netns()
        .enter(|| {
            let mut noise: u64 = 0x9e37_79b9_7f4a_7c15;
            let mut bytes = vec![0_u8; 1400];
            let socket = UdpSocket::bind("10.99.1.3:0")?;
            for length in (1..1400).chain(1..1400) {
                for byte in &mut bytes[..length] {
                    noise = noise
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    *byte = (noise >> 56) as u8;
                }
                let _ = socket.send_to(&bytes[..length], "10.99.1.1:4379");
                if length % 100 == 0 {
                    // An answer by reset is an answer, too.
                    if let Ok(mut stream) = TcpStream::connect("10.99.1.1:4379") {
                        let _ = stream.write_all(&bytes[..length]);
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    assert!(
        lab.nodes()
            .iter()
            .all(|n| n.is_running() && n.sees_all_healthy())
    );
    assert_eq!(lab.node(0).leader_seen().unwrap(), leader);
    wait_answered(&lab);
    lab.end().unwrap();
}

#[test]
fn a_client_of_the_api_that_never_reads() {
    let lab = cluster();
    let node = lab.node(0);
    let socket = node.root().join("run/ctdb/api.sock");
    let request = b"GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut deaf = Vec::new();
    for _ in 0..8 {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        // Until the daemon reads no more either.
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until && stream.write_all(request).is_ok() {}
        deaf.push(stream);
    }
    for _ in 0..10 {
        assert!(node.ctdb(&["status"]).unwrap().ok());
    }
    let address = of(&lab, 0, 0)[0].to_string();
    node.ctdb(&["moveip", &address, "1"])
        .unwrap()
        .success()
        .unwrap();
    assert!(of(&lab, 1, 1).iter().any(|a| a.to_string() == address));
    assert!(
        lab.nodes()
            .iter()
            .all(ctdb_tests::lab::Node::sees_all_healthy)
    );
    drop(deaf);
    lab.end().unwrap();
}

/// Most of 64 configured nodes are not there: no majority, so nothing is served, and the daemons
/// say so instead of failing.
#[test]
fn sixty_four_nodes_in_the_list() {
    let lab = build();
    let list: String = (1..=64).fold(String::new(), |mut text, n| {
        text.push_str("10.99.1.");
        text.push_str(&n.to_string());
        text.push('\n');
        text
    });
    for node in lab.nodes() {
        node.write("nodes", &list).unwrap();
    }
    lab.start_daemons().unwrap();
    lab.wait("the three to see each other and the list", LONG, || {
        lab.nodes().iter().all(|n| {
            n.node_views().is_ok_and(|seen| {
                let linked = |node: &&NodeView| node.linked || node.this_node;
                seen.len() == 64 && seen.iter().filter(linked).count() == 3
            })
        })
    })
    .unwrap();
    for node in lab.nodes() {
        assert!(node.public_addresses_present().unwrap().is_empty());
        assert_eq!(node.leader_seen().unwrap_or(None), None);
    }
    lab.end().unwrap();
}
