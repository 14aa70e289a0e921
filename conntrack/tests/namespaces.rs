//! Listeners, connections, destruction and tickles, against the kernel, in namespaces.

// The same file, not a dependency: the two crates do not know each other.
#[path = "../../netfw/tests/common/mod.rs"]
mod common;

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{Net, Pair};
use ctdb_conntrack::tickle::Tickler;
use ctdb_conntrack::{Connection, Error, Sockets};
use socket2::{Domain, Socket, Type};

fn end(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect()
}

fn listen(room: &Net, at: &str, only_v6: bool) -> TcpListener {
    let at = end(at);
    room.run(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        if at.is_ipv6() {
            socket.set_only_v6(only_v6).unwrap();
        }
        socket.set_reuse_address(true).unwrap();
        socket.bind(&at.into()).unwrap();
        socket.listen(512).unwrap();
        socket.into()
    })
}

/// A client in its room and what the server accepted.
fn connect(pair: &Pair, listener: &TcpListener, to: &str) -> (TcpStream, TcpStream) {
    let to = end(to);
    let client = pair
        .client
        .run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))
        .expect("connects");
    client
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    (client, listener.accept().expect("accepts").0)
}

/// How a client's connection is: what a read says.
fn read(client: &mut TcpStream) -> Result<usize, ErrorKind> {
    loop {
        // A child of another test's that ends interrupts the read.
        match client.read(&mut [0]).map_err(|error| error.kind()) {
            Err(ErrorKind::Interrupted) => {}
            result => return result,
        }
    }
}

fn clients(connections: &[Connection]) -> BTreeSet<SocketAddr> {
    connections
        .iter()
        .map(|connection| connection.client)
        .collect()
}

#[test]
fn listeners_of_every_kind() {
    let pair = Pair::new();
    let open = [
        listen(&pair.server, "0.0.0.0:1001", false),
        listen(&pair.server, "[::]:1002", true),
        listen(&pair.server, "[::]:1003", false),
        listen(&pair.server, "10.77.0.1:1004", false),
        listen(&pair.server, "[fd77::1]:1005", false),
        listen(&pair.server, "[::ffff:10.77.0.1]:1006", false),
    ];
    let mut sockets = pair.server.run(Sockets::open).unwrap();
    let expected = [
        "0.0.0.0:1001",
        "0.0.0.0:1003",
        "10.77.0.1:1004",
        "10.77.0.1:1006",
        "[::]:1002",
        "[::]:1003",
        "[fd77::1]:1005",
    ];
    assert_eq!(sockets.listeners().unwrap(), expected.map(end));
    drop(open);
    assert_eq!(sockets.listeners().unwrap(), []);
    assert_eq!(
        pair.client.run(Sockets::open).unwrap().listeners().unwrap(),
        []
    );
}

#[test]
fn connections_to_the_addresses_asked_for() {
    let pair = Pair::new();
    pair.server.ip("addr add 10.77.0.11/24 dev srv0");
    let plain = listen(&pair.server, "0.0.0.0:1001", false);
    let dual = listen(&pair.server, "[::]:1003", false);
    let v4 = connect(&pair, &plain, "10.77.0.1:1001");
    let mapped = connect(&pair, &dual, "10.77.0.1:1003");
    let v6 = connect(&pair, &dual, "[fd77::1]:1003");
    let other = connect(&pair, &dual, "10.77.0.11:1003");
    let port = |stream: &TcpStream| stream.local_addr().unwrap();

    let mut sockets = pair.server.run(Sockets::open).unwrap();
    let found = sockets.connections(&set(&["10.77.0.1"])).unwrap();
    assert_eq!(
        clients(&found),
        BTreeSet::from([port(&v4.0), port(&mapped.0)])
    );
    let servers: BTreeSet<_> = found.iter().map(|connection| connection.server).collect();
    assert_eq!(
        servers,
        BTreeSet::from([end("10.77.0.1:1001"), end("10.77.0.1:1003")])
    );
    assert!(
        found.iter().all(|connection| connection.state == 1),
        "{found:?}"
    );
    let cookies: BTreeSet<u64> = found.iter().map(Connection::cookie).collect();
    assert_eq!(cookies.len(), 2);

    let found = sockets.connections(&set(&["fd77::1"])).unwrap();
    assert_eq!(clients(&found), BTreeSet::from([port(&v6.0)]));
    let found = sockets
        .connections(&set(&["fd77::1", "::ffff:10.77.0.11", "fd77::99"]))
        .unwrap();
    assert_eq!(
        clients(&found),
        BTreeSet::from([port(&v6.0), port(&other.0)])
    );
    assert_eq!(sockets.connections(&set(&["10.77.0.99"])).unwrap(), []);
    assert_eq!(sockets.connections(&BTreeSet::new()).unwrap(), []);

    // As many as the kernel filters, and more than that.
    for count in [64, 200] {
        let mut many: BTreeSet<IpAddr> = (0..count - 2)
            .map(|n| IpAddr::V4((0x0a63_0000u32 + n).into()))
            .collect();
        many.extend(set(&["10.77.0.1", "fd77::1"]));
        let found = sockets.connections(&many).unwrap();
        assert_eq!(
            clients(&found),
            [&v4, &mapped, &v6].map(|both| port(&both.0)).into()
        );
    }

    // Half closed, and closed: one is listed, the other is nothing any more.
    drop(v6.1);
    let found = sockets.connections(&set(&["fd77::1"])).unwrap();
    assert!(
        [4, 5].contains(&found[0].state),
        "FIN_WAIT1 or 2: {found:?}"
    );
    drop(v6.0);
    let end = Instant::now() + Duration::from_secs(5);
    while !sockets.connections(&set(&["fd77::1"])).unwrap().is_empty() {
        assert!(
            Instant::now() < end,
            "a connection that ended is still listed"
        );
    }
}

#[test]
fn requests_that_are_not_answered_yet() {
    let pair = Pair::new();
    let _listener = listen(&pair.server, "[::]:1003", false);
    // The answer to the request does not arrive.
    pair.client.exec("nft add table inet deaf");
    pair.client
        .exec("nft add chain inet deaf in { type filter hook input priority 0 ; }");
    pair.client
        .exec("nft add rule inet deaf in tcp sport 1003 drop");
    let to = end("10.77.0.1:1003");
    std::thread::scope(|scope| {
        let attempt = scope.spawn(|| {
            pair.client
                .run(|| TcpStream::connect_timeout(&to, Duration::from_millis(800)))
        });
        std::thread::sleep(Duration::from_millis(300));
        let mut sockets = pair.server.run(Sockets::open).unwrap();
        let found = sockets.connections(&set(&["10.77.0.1"])).unwrap();
        assert_eq!(
            found.iter().map(|at| at.state).collect::<Vec<_>>(),
            [3],
            "SYN_RECV"
        );
        assert_eq!(sockets.destroy(&found).unwrap(), 1);
        assert_eq!(sockets.connections(&set(&["10.77.0.1"])).unwrap(), []);
        assert_eq!(
            attempt.join().unwrap().unwrap_err().kind(),
            ErrorKind::TimedOut
        );
    });
}

#[test]
fn destroyed_connections_are_reset() {
    let pair = Pair::new();
    pair.server.ip("addr add 10.77.0.11/24 dev srv0");
    let plain = listen(&pair.server, "0.0.0.0:1001", false);
    let dual = listen(&pair.server, "[::]:1003", false);
    let mut gone = [
        connect(&pair, &plain, "10.77.0.1:1001"),
        connect(&pair, &dual, "10.77.0.1:1003"),
        connect(&pair, &dual, "[fd77::1]:1003"),
    ];
    let mut stays = connect(&pair, &dual, "10.77.0.11:1003");
    let mut sockets = pair.server.run(Sockets::open).unwrap();
    let found = sockets
        .connections(&set(&["10.77.0.1", "fd77::1"]))
        .unwrap();
    assert_eq!(sockets.destroy(&found).unwrap(), 3);
    for (client, server) in &mut gone {
        assert_eq!(read(client), Err(ErrorKind::ConnectionReset));
        assert_eq!(read(server), Err(ErrorKind::ConnectionAborted));
    }
    assert_eq!(
        sockets.destroy(&found).unwrap(),
        0,
        "gone already is no error"
    );
    assert_eq!(
        sockets
            .connections(&set(&["10.77.0.1", "fd77::1"]))
            .unwrap(),
        []
    );
    assert_eq!(read(&mut stays.0), Err(ErrorKind::WouldBlock));
    stays.1.write_all(b"x").unwrap();
    assert_eq!(read(&mut stays.0), Ok(1));
}

#[test]
fn many_are_destroyed_and_the_ended_ones_do_not_count() {
    let pair = Pair::new();
    let listener = listen(&pair.server, "[::]:1003", false);
    let mut open: Vec<_> = (0..300)
        .map(|_| connect(&pair, &listener, "10.77.0.1:1003"))
        .collect();
    let mut sockets = pair.server.run(Sockets::open).unwrap();
    let found = sockets.connections(&set(&["10.77.0.1"])).unwrap();
    assert_eq!(found.len(), 300);
    assert_eq!(sockets.destroy(&found[100..150]).unwrap(), 50);
    let start = Instant::now();
    assert_eq!(sockets.destroy(&found).unwrap(), 250);
    println!("250 destroyed in {:?}", start.elapsed());
    for (client, _) in &mut open {
        assert_eq!(read(client), Err(ErrorKind::ConnectionReset));
    }
}

/// The address goes, with its sockets, and comes back without them: as on a new owner.
fn move_silently(pair: &Pair, sockets: &mut Sockets, address: &str, prefix: u8) -> Vec<Connection> {
    let found = sockets.connections(&set(&[address])).unwrap();
    // IPv4 resets cannot leave from an address that is not there. IPv6 ones can.
    pair.server
        .ip(&format!("addr del {address}/{prefix} dev srv0"));
    pair.server.exec("nft add table inet mute");
    pair.server
        .exec("nft add chain inet mute out { type filter hook output priority 0 ; }");
    pair.server
        .exec("nft add rule inet mute out meta nfproto ipv6 tcp flags rst drop");
    assert_eq!(sockets.destroy(&found).unwrap(), found.len());
    pair.server.exec("nft delete table inet mute");
    pair.server
        .ip(&format!("addr add {address}/{prefix} dev srv0 nodad"));
    found
}

#[test]
fn a_tickle_makes_the_client_notice() {
    let pair = Pair::new();
    let plain = listen(&pair.server, "0.0.0.0:1001", false);
    let dual = listen(&pair.server, "[::]:1003", false);
    let mut sockets = pair.server.run(Sockets::open).unwrap();
    let mut tickler = pair.server.run(Tickler::open).unwrap();
    for (address, prefix, to, listener) in [
        ("10.77.0.10", 24, "10.77.0.10:1001", &plain),
        ("10.77.0.10", 24, "10.77.0.10:1003", &dual),
        ("fd77::10", 64, "[fd77::10]:1003", &dual),
    ] {
        // An address beside that of the subnet, as public addresses are.
        pair.server
            .ip(&format!("addr add {address}/{prefix} dev srv0 nodad"));
        let (mut client, server) = connect(&pair, listener, to);
        let moved = move_silently(&pair, &mut sockets, address, prefix);
        assert_eq!(moved.len(), 1);
        assert_eq!(
            read(&mut client),
            Err(ErrorKind::WouldBlock),
            "{to}: it knows of nothing yet"
        );
        let pairs: Vec<_> = moved.iter().map(|at| (at.client, at.server)).collect();
        for result in tickler.send(&pairs) {
            result.expect("sent");
        }
        assert_eq!(read(&mut client), Err(ErrorKind::ConnectionReset), "{to}");
        drop(server);
        pair.server
            .ip(&format!("addr del {address}/{prefix} dev srv0"));
    }
}

#[test]
fn a_tickle_does_no_harm_to_a_living_connection() {
    let pair = Pair::new();
    let listener = listen(&pair.server, "[::]:1003", false);
    let (mut client, mut server) = connect(&pair, &listener, "10.77.0.1:1003");
    let mut tickler = pair.server.run(Tickler::open).unwrap();
    let ends = (client.local_addr().unwrap(), end("10.77.0.1:1003"));
    for _ in 0..4 {
        tickler.send(&[ends]).remove(0).unwrap();
    }
    server.write_all(b"x").unwrap();
    assert_eq!(read(&mut client), Ok(1));
    client.write_all(b"y").unwrap();
    assert_eq!(read(&mut server), Ok(1));
}

#[test]
fn one_tickle_that_fails_stops_no_other() {
    let pair = Pair::new();
    let listener = listen(&pair.server, "0.0.0.0:1001", false);
    pair.server.ip("addr add 10.77.0.10/24 dev srv0");
    let (mut client, _server) = connect(&pair, &listener, "10.77.0.10:1001");
    let mut sockets = pair.server.run(Sockets::open).unwrap();
    move_silently(&pair, &mut sockets, "10.77.0.10", 24);
    let here = client.local_addr().unwrap();
    let mut tickler = pair.server.run(Tickler::open).unwrap();
    let results = tickler.send(&[
        (end("198.51.100.1:5"), end("10.77.0.10:1001")),
        (end("[fd77::2]:5"), end("10.77.0.10:1001")),
        (end("[2001:db8::2]:5"), end("[fd77::1]:1001")),
        (
            end(&format!("[::ffff:10.77.0.2]:{}", here.port())),
            end("10.77.0.10:1001"),
        ),
    ]);
    let unreachable = Some(libc::ENETUNREACH);
    assert_eq!(
        results[0].as_ref().unwrap_err().errno(),
        unreachable,
        "{results:?}"
    );
    assert!(
        results[0]
            .as_ref()
            .unwrap_err()
            .to_string()
            .contains("198.51.100.1:5")
    );
    assert!(
        matches!(results[1], Err(Error::MixedFamilies { .. })),
        "{results:?}"
    );
    assert_eq!(
        results[2].as_ref().unwrap_err().errno(),
        unreachable,
        "{results:?}"
    );
    assert!(results[3].is_ok(), "{results:?}");
    assert_eq!(read(&mut client), Err(ErrorKind::ConnectionReset));
    // Before the address is here a tickle leaves as well.
    let early = [
        (end("10.77.0.2:5"), end("10.77.0.99:1001")),
        (end("[fd77::2]:5"), end("[fd77::99]:1001")),
    ];
    assert!(tickler.send(&early).iter().all(Result::is_ok));
}

#[test]
fn tickles_take_the_route_of_the_servers_address() {
    let pair = Pair::new();
    pair.server.ip("addr add 10.77.0.10/24 dev srv0");
    pair.server.ip("addr add fd77::10/64 dev srv0 nodad");
    // To the client's second network only from the public address.
    pair.server
        .ip("route add 198.51.100.0/24 via 10.77.0.2 table 77");
    pair.server.ip("rule add from 10.77.0.10 table 77");
    pair.server
        .ip("-6 route add 2001:db8:1::/64 via fd77::2 table 77");
    pair.server.ip("-6 rule add from fd77::10 table 77");
    let mut tickler = pair.server.run(Tickler::open).unwrap();
    let results = tickler.send(&[
        (end("198.51.100.1:5"), end("10.77.0.10:1001")),
        (end("198.51.100.1:5"), end("10.77.0.1:1001")),
        (end("[2001:db8:1::1]:5"), end("[fd77::10]:1001")),
        (end("[2001:db8:1::1]:5"), end("[fd77::1]:1001")),
    ]);
    let sent: Vec<bool> = results.iter().map(Result::is_ok).collect();
    assert_eq!(sent, [true, false, true, false], "{results:?}");
}
