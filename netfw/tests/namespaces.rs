//! Addresses, links, announcements and firewall, against the kernel, in namespaces.

#[path = "namespaces/addresses.rs"]
mod addresses;
mod common;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{Net, Pair};
use ctdb_netfw::Error;
use ctdb_netfw::address::Addresses;
use ctdb_netfw::announce::Announcer;
use ctdb_netfw::firewall::{Counters, Firewall};
use ctdb_netfw::link::{self, Watch};
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};

fn net(text: &str) -> IpNet {
    text.parse().expect("an address with prefix length")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Number of an interface.
fn index_of(room: &Net, interface: &str) -> u32 {
    let line = room.ip(&format!("-o link show dev {interface}"));
    line.split(':')
        .next()
        .and_then(|number| number.parse().ok())
        .expect("a number")
}

fn all_ok(results: Vec<Result<(), Error>>) {
    for result in results {
        result.expect("no error");
    }
}

// Links

#[test]
fn links_are_described() {
    let pair = Pair::new();
    pair.server.ip("link add name br0 type bridge");
    pair.server.ip("link set br0 up");
    pair.server.ip("link add port0 type veth peer name port1");
    pair.server
        .ip("link set port0 master br0 mtu 1400 address 02:00:00:00:00:55");
    let find = || {
        let dump = pair.server.run(link::dump).unwrap();
        let get = |name: &str| dump.links.iter().find(|l| l.name == name).unwrap().clone();
        (
            get("lo"),
            get("srv0"),
            get("br0"),
            get("port0"),
            dump.addresses.clone(),
        )
    };
    let (lo, srv0, br0, port0, addresses) = find();
    assert!(lo.loopback && lo.up && lo.hardware_type == 772);
    assert!(srv0.up && srv0.admin_up && !srv0.loopback);
    assert_eq!(
        (srv0.index, srv0.hardware_type),
        (index_of(&pair.server, "srv0"), 1)
    );
    assert_eq!((srv0.mac.len(), &srv0.broadcast[..]), (6, &[0xff; 6][..]));
    assert_eq!(
        (srv0.master, srv0.mtu, &srv0.qdisc[..]),
        (None, 1500, "noqueue")
    );
    assert_eq!((port0.master, port0.mtu), (Some(br0.index), 1400));
    assert_eq!(port0.mac, [2, 0, 0, 0, 0, 0x55]);
    assert!(!port0.up && !port0.admin_up);
    assert!(
        !br0.up && br0.admin_up,
        "a bridge without live ports has no carrier"
    );
    assert!(addresses.contains(&(srv0.index, net("10.77.0.1/24"))));
    assert!(addresses.contains(&(srv0.index, net("fd77::1/64"))));

    pair.client.ip("link set cli0 down");
    let (_, srv0, ..) = find();
    assert!(srv0.admin_up && !srv0.up, "the cable is out");
}

#[test]
fn the_watch_notices_links_and_addresses() {
    let pair = Pair::new();
    pair.server.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut watch = Watch::open().unwrap();
            let wait = |ms| tokio::time::sleep(Duration::from_millis(ms));
            // What the kernel still does by itself to new links.
            loop {
                tokio::select! {
                    changed = watch.changed() => changed.unwrap(),
                    () = wait(2_500) => break,
                }
            }
            let changes = [
                "addr add 10.77.0.50/24 dev srv0",
                "addr add fd77::50/64 dev srv0",
                "link set srv0 mtu 1400",
                "addr del 10.77.0.50/24 dev srv0",
                "link set srv0 down",
            ];
            for change in changes {
                pair.server.ip(change);
                tokio::select! {
                    changed = watch.changed() => changed.unwrap(),
                    () = wait(5_000) => panic!("`ip {change}` was not noticed"),
                }
            }
        });
    });
}

#[test]
fn the_watch_survives_more_than_its_buffer_holds() {
    let room = Net::new("flood");
    room.ip("link add v0 type veth peer name v1");
    room.ip("link set v0 up");
    let index = index_of(&room, "v0");
    room.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut watch = Watch::open().unwrap();
            let mut addresses = Addresses::open().unwrap();
            let batch = thousand(index);
            for _ in 0..6 {
                all_ok(addresses.add(&batch));
                all_ok(addresses.remove(&batch));
            }
            let wait = || tokio::time::sleep(Duration::from_secs(3));
            let mut seen = 0;
            loop {
                tokio::select! {
                    changed = watch.changed() => { changed.unwrap(); seen += 1; }
                    () = wait() => break,
                }
            }
            assert!(seen > 0);
            assert!(
                seen < 20,
                "{seen} wake-ups: the changes were not drained together"
            );
            all_ok(addresses.add(&batch[..1]));
            tokio::select! {
                changed = watch.changed() => changed.unwrap(),
                () = wait() => panic!("deaf after the flood"),
            }
        });
    });
}

// Addresses

fn thousand(index: u32) -> Vec<(u32, IpNet)> {
    (0..1000)
        .map(|n| (index, net(&format!("10.78.{}.{}/16", n / 250, n % 250 + 1))))
        .collect()
}

fn addresses_on(room: &Net, index: u32) -> BTreeSet<IpNet> {
    let dump = room.run(link::dump).unwrap();
    dump.addresses
        .into_iter()
        .filter(|(at, _)| *at == index)
        .map(|(_, net)| net)
        .collect()
}

// Announcements

/// Frames that arrive on an interface within a while, link-layer header included.
fn listen_on(room: &Net, interface: &str) -> Socket {
    let index = index_of(room, interface);
    let everything = i32::from(u16::try_from(libc::ETH_P_ALL).unwrap().to_be());
    room.run(|| {
        let raw = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(everything))).unwrap();
        raw.set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        assert!(index > 1, "the only other interface is quiet");
        raw
    })
}

fn frames(mut socket: &Socket, of_ethertype: u16) -> Vec<Vec<u8>> {
    let mut frames = vec![];
    let end = Instant::now() + Duration::from_millis(400);
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        if let Ok(length) = socket.read(&mut buffer)
            && buffer[12..14] == of_ethertype.to_be_bytes()
        {
            frames.push(buffer[..length].to_vec());
        }
    }
    frames
}

#[test]
fn announcements_arrive_as_they_should() {
    let pair = Pair::new();
    let index = index_of(&pair.server, "srv0");
    pair.server.ip("link set srv0 address 02:00:00:00:00:07");
    let mut announcer = pair.server.run(Announcer::open).unwrap();
    let on_wire = listen_on(&pair.client, "cli0");
    all_ok(announcer.announce(&[(index, ip("10.77.0.10"))]));
    let seen = frames(&on_wire, 0x0806);
    let ethernet = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 7], &[8, 6]].concat();
    let own = [2, 0, 0, 0, 0, 7];
    let address = [10, 77, 0, 10];
    let arp = |operation: u8, target: &[u8]| {
        [
            &ethernet[..],
            &[0, 1, 8, 0, 6, 4, 0, operation],
            &own,
            &address,
            target,
            &address,
        ]
        .concat()
    };
    let of_address = |frame: &&Vec<u8>| frame[28..32] == address;
    let seen: Vec<_> = seen.iter().filter(of_address).cloned().collect();
    assert_eq!(seen, [arp(1, &[0; 6]), arp(2, &own)]);

    // The hardware address is that of the moment, not of the first time.
    pair.server.ip("link set srv0 address 02:00:00:00:00:08");
    all_ok(announcer.announce(&[(index, ip("fd77::10"))]));
    let seen = frames(&on_wire, 0x86dd);
    let target: std::net::Ipv6Addr = "fd77::10".parse().unwrap();
    let seen: Vec<_> = seen
        .iter()
        .filter(|f| f[22..38] == target.octets())
        .collect();
    assert_eq!(seen.len(), 1, "{seen:?}");
    let frame = seen[0];
    assert_eq!(frame[..12], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 8]);
    assert_eq!(
        (frame[20], frame[21]),
        (58, 255),
        "ICMPv6 with hop limit 255"
    );
    assert_eq!(frame[54..56], [136, 0]);
    assert_eq!(
        frame[58], 0x20,
        "override, and neither router nor solicited"
    );
    assert_eq!(frame[62..78], target.octets());
    assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 8]);
}

#[test]
fn a_client_believes_the_announcement() {
    let pair = Pair::new();
    let index = index_of(&pair.server, "srv0");
    pair.server.ip("link set srv0 address 02:00:00:00:00:07");
    for address in ["10.77.0.10", "fd77::10"] {
        pair.client.ip(&format!(
            "neigh replace {address} lladdr 02:00:00:00:00:99 nud stale dev cli0"
        ));
    }
    let mut announcer = pair.server.run(Announcer::open).unwrap();
    all_ok(announcer.announce(&[(index, ip("10.77.0.10")), (index, ip("fd77::10"))]));
    std::thread::sleep(Duration::from_millis(200));
    let neighbours = pair.client.ip("neigh show dev cli0");
    for address in ["10.77.0.10 ", "fd77::10 "] {
        let line = neighbours
            .lines()
            .find(|line| line.starts_with(address))
            .unwrap();
        assert!(line.contains("02:00:00:00:00:07"), "{line}");
    }
}

#[test]
fn announcements_that_cannot_leave_are_errors() {
    let pair = Pair::new();
    let index = index_of(&pair.server, "srv0");
    pair.server.ip("link add down0 type veth peer name down1");
    let down = index_of(&pair.server, "down0");
    let mut announcer = pair.server.run(Announcer::open).unwrap();
    let on_wire = listen_on(&pair.client, "cli0");
    let results = announcer.announce(&[
        (down, ip("10.77.0.9")),
        (999_999, ip("10.77.0.9")),
        (index, ip("10.77.0.10")),
        (1, ip("10.77.0.10")),
    ]);
    assert_eq!(
        results[0].as_ref().unwrap_err().errno(),
        Some(libc::ENETDOWN)
    );
    assert!(
        matches!(
            results[1],
            Err(Error::NoDevice {
                ifindex: 999_999,
                ..
            })
        ),
        "{results:?}"
    );
    assert!(results[2].is_ok(), "{results:?}");
    assert!(
        results[3].is_ok(),
        "nobody to tell on the loopback interface: {results:?}"
    );
    let requests = frames(&on_wire, 0x0806);
    assert_eq!(
        requests
            .iter()
            .filter(|frame| frame[28..32] == [10, 77, 0, 10])
            .count(),
        2
    );

    // As the lease program does: dropped on the way out.
    pair.server.exec("nft add table netdev lease");
    pair.server.exec(
        "nft add chain netdev lease out { type filter hook egress device srv0 priority 0 ; policy drop ; }",
    );
    for address in ["10.77.0.10", "fd77::10"] {
        let results = announcer.announce(&[(index, ip(address))]);
        assert_eq!(
            results[0].as_ref().unwrap_err().errno(),
            Some(libc::ENOBUFS),
            "{results:?}"
        );
    }
}

// Firewall

fn connect(room: &Net, to: &str) -> Result<TcpStream, ErrorKind> {
    let to: SocketAddr = to.parse().expect("address and port");
    room.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(400)))
        .map_err(|error| error.kind())
}

fn tables(room: &Net) -> String {
    room.exec("nft list tables")
}

fn ports<const N: usize>(ports: [u16; N]) -> BTreeSet<u16> {
    BTreeSet::from(ports)
}

fn ends<const N: usize>(ends: [&str; N]) -> BTreeSet<SocketAddr> {
    ends.iter()
        .map(|text| text.parse().expect("address and port"))
        .collect()
}

const BOTH: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 77, 0, 1)),
    IpAddr::V6(std::net::Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1)),
];

#[test]
fn connection_requests_wait_for_the_listener() {
    use ErrorKind::{ConnectionRefused, TimedOut};
    let pair = Pair::new();
    pair.server.ip("addr add 10.77.0.11/24 dev srv0");
    let _listener = pair.server.run(|| TcpListener::bind("[::]:445")).unwrap();
    let (open, shut) = (
        ["10.77.0.1:445", "[fd77::1]:445"],
        ["10.77.0.1:9", "[fd77::1]:9"],
    );
    let outcome = |to: [&str; 2]| to.map(|to| connect(&pair.client, to).err());
    assert_eq!(
        (outcome(open), outcome(shut)),
        ([None; 2], [Some(ConnectionRefused); 2])
    );

    pair.server.run(Firewall::supported).unwrap();
    assert_eq!(tables(&pair.server), "");
    let mut firewall = pair.server.run(Firewall::install).unwrap();
    assert_eq!(
        (outcome(open), outcome(shut)),
        ([None; 2], [Some(ConnectionRefused); 2])
    );

    let mut before = connect(&pair.client, "10.77.0.1:445").unwrap();
    firewall.close(&BOTH).unwrap();
    firewall.close(&BOTH).unwrap();
    assert_eq!(
        (outcome(open), outcome(shut)),
        ([Some(TimedOut); 2], [Some(TimedOut); 2])
    );
    assert_eq!(
        connect(&pair.client, "10.77.0.11:445").err(),
        None,
        "another address"
    );
    assert!(firewall.counters().unwrap().opening_packets >= 4);
    before.write_all(b"still through").unwrap();

    let none = BTreeSet::new();
    firewall
        .set_ready(&none, &ports([445]), &BTreeSet::new())
        .unwrap();
    assert_eq!(
        outcome(open),
        [Some(TimedOut), None],
        "the wildcard of one family"
    );
    firewall
        .set_ready(&ports([445]), &ports([445, 2049]), &BTreeSet::new())
        .unwrap();
    assert_eq!(
        (outcome(open), outcome(shut)),
        ([None; 2], [Some(TimedOut); 2])
    );
    firewall
        .set_ready(&none, &none, &ends(["10.77.0.1:445"]))
        .unwrap();
    assert_eq!(outcome(open), [None, Some(TimedOut)], "one address");
    firewall
        .set_ready(&none, &none, &ends(["10.77.0.2:445", "[fd77::1]:445"]))
        .unwrap();
    assert_eq!(
        outcome(open),
        [Some(TimedOut), None],
        "the wrong and the right address"
    );
    firewall
        .set_ready(&none, &none, &ends(["10.77.0.1:446", "[fd77::1]:446"]))
        .unwrap();
    assert_eq!(outcome(open), [Some(TimedOut); 2], "the wrong port");

    firewall.open(&BOTH).unwrap();
    firewall.open(&BOTH).unwrap();
    assert_eq!(
        (outcome(open), outcome(shut)),
        ([None; 2], [Some(ConnectionRefused); 2])
    );
    firewall.remove().unwrap();
    assert_eq!(tables(&pair.server), "");
}

#[test]
fn blocked_addresses_are_silent() {
    let pair = Pair::new();
    let listener = pair.server.run(|| TcpListener::bind("[::]:445")).unwrap();
    let mut streams = ["10.77.0.1:445", "[fd77::1]:445"].map(|to| {
        let client = connect(&pair.client, to).unwrap();
        client
            .set_read_timeout(Some(Duration::from_millis(300)))
            .unwrap();
        (client, listener.accept().unwrap().0)
    });
    let mut firewall = pair.server.run(Firewall::install).unwrap();
    firewall.block(&BOTH).unwrap();
    for (client, server) in &mut streams {
        server.write_all(b"x").unwrap();
        let read = client.read(&mut [0]);
        assert_eq!(
            read.unwrap_err().kind(),
            ErrorKind::WouldBlock,
            "nothing goes out"
        );
    }
    assert_eq!(
        connect(&pair.client, "10.77.0.1:445").err(),
        Some(ErrorKind::TimedOut)
    );
    let counted = firewall.counters().unwrap();
    assert!(
        counted.blocked_packets >= 3 && counted.blocked_bytes > 100,
        "{counted:?}"
    );
    assert_eq!(counted.opening_packets, 0);

    firewall.prepare(&BOTH, false).unwrap();
    assert_eq!(
        connect(&pair.client, "[fd77::1]:445").err(),
        Some(ErrorKind::TimedOut)
    );
    for (client, _) in &mut streams {
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        client.read_exact(&mut [0]).expect("sent again");
    }
    firewall.block(&BOTH).unwrap();
    firewall.unblock(&BOTH).unwrap();
    firewall.open(&BOTH).unwrap();
    assert_eq!(connect(&pair.client, "10.77.0.1:445").err(), None);
    firewall.remove().unwrap();
}

/// Held: nobody comes in, listener or not; connections that there are go on.
#[test]
fn held_addresses_wait_for_their_scripts() {
    let pair = Pair::new();
    let listener = pair.server.run(|| TcpListener::bind("[::]:445")).unwrap();
    let open = ["10.77.0.1:445", "[fd77::1]:445"];
    let outcome = || open.map(|to| connect(&pair.client, to).err());
    let mut before = connect(&pair.client, open[0]).unwrap();
    let mut served = listener.accept().unwrap().0;
    let mut firewall = pair.server.run(Firewall::install).unwrap();
    let listens: BTreeSet<u16> = [445].into();
    firewall
        .set_ready(&listens, &listens, &BTreeSet::new())
        .unwrap();
    firewall.prepare(&BOTH, true).unwrap();
    assert_eq!(outcome(), [Some(ErrorKind::TimedOut); 2]);
    before.write_all(b"x").unwrap();
    served.read_exact(&mut [0]).unwrap();
    // One is let in, the other is not held up by it, nor let in.
    firewall.let_in(&BOTH[..1]).unwrap();
    assert_eq!(outcome(), [None, Some(ErrorKind::TimedOut)]);
    firewall.let_in(&BOTH).unwrap();
    assert_eq!(outcome(), [None; 2]);
    // The end of the opening lets in, too.
    firewall.prepare(&BOTH, true).unwrap();
    firewall.open(&BOTH).unwrap();
    assert_eq!(outcome(), [None; 2]);
    firewall.prepare(&BOTH, true).unwrap();
    firewall.prepare(&BOTH, false).unwrap();
    assert_eq!(outcome(), [None; 2]);
    firewall.remove().unwrap();
}

#[test]
fn the_table_of_a_dead_daemon_is_replaced() {
    let pair = Pair::new();
    let mut dead = pair.server.run(Firewall::install).unwrap();
    dead.close(&BOTH).unwrap();
    drop(dead);
    assert_eq!(tables(&pair.server).trim(), "table inet ctdb");
    assert_eq!(
        connect(&pair.client, "10.77.0.1:9").err(),
        Some(ErrorKind::TimedOut)
    );
    let mut firewall = pair.server.run(Firewall::install).unwrap();
    assert_eq!(
        connect(&pair.client, "10.77.0.1:9").err(),
        Some(ErrorKind::ConnectionRefused)
    );
    assert_eq!(firewall.counters().unwrap(), Counters::default());
    pair.server.exec("nft delete table inet ctdb");
    firewall.remove().expect("gone already is gone");
}

#[test]
fn a_flushed_ruleset_is_put_right_by_the_next_change() {
    let pair = Pair::new();
    let mut firewall = pair.server.run(Firewall::install).unwrap();
    firewall.close(&BOTH).unwrap();
    assert!(connect(&pair.client, "10.77.0.1:9").is_err());
    pair.server.exec("nft flush ruleset");
    // Nothing new: no call into the kernel.
    firewall.close(&BOTH).unwrap();
    firewall
        .set_ready(&BTreeSet::new(), &BTreeSet::new(), &BTreeSet::new())
        .unwrap();
    assert_eq!(tables(&pair.server), "");
    firewall
        .set_ready(&ports([445]), &ports([]), &BTreeSet::new())
        .unwrap();
    assert_eq!(
        connect(&pair.client, "10.77.0.1:9").err(),
        Some(ErrorKind::TimedOut)
    );
    assert_eq!(
        connect(&pair.client, "10.77.0.1:445").err(),
        Some(ErrorKind::ConnectionRefused)
    );
    // An element taken away by somebody else.
    pair.server
        .exec("nft delete element inet ctdb closed4 { 10.77.0.1 }");
    firewall.open(&BOTH).unwrap();
    assert_eq!(
        connect(&pair.client, "[fd77::1]:9").err(),
        Some(ErrorKind::ConnectionRefused)
    );
    firewall.remove().unwrap();
}

/// A table `inet ctdb` that belongs to a running `nft`: nobody else may change it.
struct OwnedTable(std::process::Child);

impl OwnedTable {
    fn take(net: &Net) -> Self {
        let mut nft = std::process::Command::new("ip")
            .args(["netns", "exec", &net.name, "nft", "-i"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        nft.stdin
            .as_mut()
            .unwrap()
            .write_all(b"delete table inet ctdb\nadd table inet ctdb { flags owner; }\n")
            .unwrap();
        let owned = Self(nft);
        let end = Instant::now() + Duration::from_secs(10);
        while !net.exec("nft list ruleset").contains("owner") {
            assert!(Instant::now() < end, "no table with an owner");
            std::thread::sleep(Duration::from_millis(10));
        }
        owned
    }
}

impl Drop for OwnedTable {
    fn drop(&mut self) {
        // It ends with its input, and the table with it.
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_takeover_finds_a_whole_table_or_an_error() {
    let pair = Pair::new();
    let mut firewall = pair.server.run(Firewall::install).unwrap();
    firewall.close(&BOTH).unwrap();
    // Somebody empties the ruleset; nothing of ours has changed.
    pair.server.exec("nft flush ruleset");
    firewall.prepare(&BOTH, false).unwrap();
    assert_eq!(
        connect(&pair.client, "10.77.0.1:9").err(),
        Some(ErrorKind::TimedOut)
    );
    // A change of somebody else's right before one of ours.
    pair.server.exec("nft flush ruleset");
    pair.server.exec("nft add table inet others");
    firewall.prepare(&BOTH, false).unwrap();
    assert!(tables(&pair.server).contains("ctdb"));
    // A table of our name that belongs to another process cannot be replaced.
    let owner = OwnedTable::take(&pair.server);
    let refused = firewall.prepare(&BOTH, false).unwrap_err();
    assert_eq!(refused.errno(), Some(libc::EPERM), "{refused}");
    drop(owner);
    firewall.prepare(&BOTH, false).unwrap();
    assert_eq!(
        connect(&pair.client, "[fd77::1]:9").err(),
        Some(ErrorKind::TimedOut)
    );
    firewall.remove().unwrap();
}

#[test]
fn many_addresses_and_ports_fit() {
    let room = Net::new("many");
    let mut firewall = room.run(Firewall::install).unwrap();
    let mut addresses: Vec<IpAddr> = thousand(1).iter().map(|(_, net)| net.addr()).collect();
    addresses.extend((0..4000u32).map(|n| ip(&format!("fd77::{n:x}:1"))));
    let specific = addresses
        .iter()
        .map(|address| SocketAddr::new(*address, 445))
        .collect();
    // The kernel's time to add ports is quadratic (its bitmap sets look for duplicates in a list).
    let many: BTreeSet<u16> = (1..=2000).collect();
    let start = Instant::now();
    firewall.close(&addresses).unwrap();
    firewall.set_ready(&many, &many, &specific).unwrap();
    println!(
        "5,000 addresses, as many listeners, 2,000 ports: {:?}",
        start.elapsed()
    );
    let listed = room.exec("nft list set inet ctdb ports6");
    assert!(listed.contains("fd77::f9f:1 . 445"), "{}", &listed[..400]);
    assert!(
        room.exec("nft list set inet ctdb ports4")
            .contains("10.78.3.250 . 445")
    );
    firewall.open(&addresses).unwrap();
    firewall
        .set_ready(&BTreeSet::new(), &BTreeSet::new(), &BTreeSet::new())
        .unwrap();
    assert!(!room.exec("nft list ruleset").contains("elements"));
    let too_many: Vec<IpAddr> = (0..65_537u32)
        .map(|n| IpAddr::V4((0x0a00_0000 + n).into()))
        .collect();
    assert!(matches!(
        firewall.block(&too_many),
        Err(Error::TooMany { .. })
    ));
    firewall.remove().unwrap();
}
