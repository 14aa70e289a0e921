//! What tickles do on the wire, captured: who is told, by which packets, and who is not bothered.

// The same file, not a dependency: the two crates do not know each other.
#[path = "../../netfw/tests/common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use common::{Net, Pair};
use ctdb_conntrack::tickle::{Tickler, Ways, ways};
use ctdb_conntrack::{Killer, Sockets, Watch};
use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(10);
/// Clients of each kind.
const CLIENTS: usize = 40;

fn end(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}

fn listen(room: &Net, at: &str) -> TcpListener {
    let at = end(at);
    room.run(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        if at.is_ipv6() {
            socket.set_only_v6(false).unwrap();
        }
        socket.bind(&at.into()).unwrap();
        socket.listen(512).unwrap();
        socket.into()
    })
}

fn connect(pair: &Pair, listener: &TcpListener, to: &str) -> (TcpStream, TcpStream) {
    let to = end(to);
    let client = pair
        .client
        .run(|| TcpStream::connect_timeout(&to, PATIENCE))
        .expect("connects");
    client
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    (client, listener.accept().expect("accepts").0)
}

fn read(client: &mut TcpStream) -> Result<usize, ErrorKind> {
    loop {
        match client.read(&mut [0]).map_err(|error| error.kind()) {
            Err(ErrorKind::Interrupted) => {}
            result => return result,
        }
    }
}

/// Reads until the connection is reset, for a while; whether it was.
fn hears(client: &mut TcpStream, patience: Duration) -> bool {
    let end = Instant::now() + patience;
    while read(client) != Err(ErrorKind::ConnectionReset) {
        if Instant::now() >= end {
            return false;
        }
    }
    true
}

fn is_told(client: &mut TcpStream) {
    assert!(hears(client, PATIENCE), "{client:?} was not told");
}

/// A TCP segment seen on the client's wire.
#[derive(Clone, Debug)]
struct Seen {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    reset: bool,
    plain_ack: bool,
}

/// All frames of a namespace.
struct Capture(Socket);

impl Capture {
    fn start(room: &Net) -> Self {
        const ALL: u16 = libc::ETH_P_ALL as u16;
        room.run(|| {
            let protocol = Protocol::from(i32::from(ALL.to_be()));
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).unwrap();
            // Beyond the system's limit: a lost frame is a wrong verdict.
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20)).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self(socket)
        })
    }

    fn segments(&self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut frame = [0; 2048];
        while let Ok(length) = (&self.0).read(&mut frame) {
            let Ok(sliced) = SlicedPacket::from_ethernet(&frame[..length]) else {
                continue;
            };
            let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
                continue;
            };
            let (from, to): (IpAddr, IpAddr) = match sliced.net {
                Some(NetSlice::Ipv4(ip)) => (
                    ip.header().source_addr().into(),
                    ip.header().destination_addr().into(),
                ),
                Some(NetSlice::Ipv6(ip)) => (
                    ip.header().source_addr().into(),
                    ip.header().destination_addr().into(),
                ),
                _ => continue,
            };
            seen.push(Seen {
                from: SocketAddr::new(from, tcp.source_port()),
                to: SocketAddr::new(to, tcp.destination_port()),
                sequence: tcp.sequence_number(),
                reset: tcp.rst(),
                plain_ack: tcp.ack() && !tcp.rst() && !tcp.syn() && tcp.payload().is_empty(),
            });
        }
        seen
    }
}

/// The server's sockets go without a word, as on a node that has fallen silent; the address comes
/// back without them, as on the next one.
fn move_silently(pair: &Pair, killer: &mut Killer, addresses: &[(&str, u8)]) -> usize {
    pair.server.exec("nft add table inet mute");
    pair.server
        .exec("nft add chain inet mute out { type filter hook output priority 0 ; }");
    pair.server.exec("nft add rule inet mute out drop");
    let set = addresses.iter().map(|(at, _)| at.parse().unwrap());
    let set: BTreeSet<IpAddr> = set.collect();
    let killed = pair.server.run(|| killer.kill(&set)).unwrap();
    assert!(!killed.left);
    for (address, prefix) in addresses {
        pair.server
            .ip(&format!("addr del {address}/{prefix} dev srv0"));
        pair.server
            .ip(&format!("addr add {address}/{prefix} dev srv0 nodad"));
    }
    pair.server.exec("nft delete table inet mute");
    killed.destroyed
}

#[test]
fn clients_of_every_kind_are_told_and_nobody_else_hears_of_it() {
    let pair = Pair::new();
    let addresses = [("10.77.0.10", 24), ("fd77::10", 64)];
    for (address, prefix) in addresses {
        pair.server
            .ip(&format!("addr add {address}/{prefix} dev srv0 nodad"));
    }
    let plain = listen(&pair.server, "0.0.0.0:445");
    let dual = listen(&pair.server, "[::]:2049");
    let dir = std::path::PathBuf::from(format!("/run/{}-bpf", pair.server.name));
    let mut watch = pair.server.run(|| Watch::open(&dir, 4096)).unwrap();
    let public: BTreeSet<IpAddr> = addresses.map(|(at, _)| at.parse().unwrap()).into();
    pair.server.run(|| watch.set_addresses(&public)).unwrap();

    let kinds = [
        (&plain, "10.77.0.10:445"),
        (&dual, "10.77.0.10:2049"),
        (&dual, "[fd77::10]:2049"),
    ];
    let (mut idle, mut active, mut ended) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (listener, to) in kinds {
        for _ in 0..CLIENTS {
            idle.push(connect(&pair, listener, to));
        }
        for _ in 0..5 {
            active.push(connect(&pair, listener, to));
        }
        for _ in 0..5 {
            let (client, _) = connect(&pair, listener, to);
            // Both ends: one that comes later to another service may get the same port.
            ended.insert((end(to), client.local_addr().unwrap()));
            SockRef::from(&client)
                .set_linger(Some(Duration::ZERO))
                .unwrap();
        }
    }
    let mut other = connect(&pair, &plain, "10.77.0.1:445");
    let ends_of_other = (end("10.77.0.1:445"), other.0.local_addr().unwrap());

    // What the table knows when the address moves: the ended ones are not in it any more.
    let all = idle.len() + active.len();
    let mut table = BTreeMap::new();
    let patience = Instant::now() + PATIENCE;
    loop {
        watch
            .poll(|change| match change {
                ctdb_conntrack::Change::Opened(at) => drop(table.insert(at.cookie, at)),
                ctdb_conntrack::Change::Closed(at) => drop(table.remove(&at.cookie)),
                ctdb_conntrack::Change::Whole { connections, .. } => {
                    table.extend(connections.iter().map(|at| (at.cookie, *at)));
                }
            })
            .unwrap();
        if table.len() == all {
            break;
        }
        assert!(Instant::now() < patience, "{} of {all}", table.len());
    }
    let mut killer = pair.server.run(Killer::open).unwrap();
    assert_eq!(move_silently(&pair, &mut killer, &addresses), all);
    let mut ends_of_idle: Vec<_> = idle
        .iter()
        .map(|(client, _)| (client.local_addr().unwrap(), client.peer_addr().unwrap()))
        .collect();
    for (client, _) in &mut idle {
        client.set_nonblocking(true).unwrap();
        assert_eq!(read(client), Err(ErrorKind::WouldBlock), "knows of nothing");
        client.set_nonblocking(false).unwrap();
    }

    let capture = Capture::start(&pair.client);
    let mut tickler = pair.server.run(Tickler::open).unwrap();
    let list: Vec<_> = table.values().map(|at| (at.client, at.server)).collect();
    let start = Instant::now();
    let results = pair.server.run(|| tickler.send(&list));
    assert!(results.iter().all(Result::is_ok), "{results:?}");
    for (client, _) in &mut active {
        // If it has been told already, this is where it hears of it.
        if let Err(error) = client.write_all(b"x") {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        } else {
            is_told(client);
        }
    }
    // A packet may be lost on a busy machine. Whoever moves addresses repeats, and so does this.
    let mut again = BTreeSet::new();
    for ((client, _), ends) in idle.iter_mut().zip(&ends_of_idle) {
        let patience = Instant::now() + PATIENCE;
        while !hears(client, Duration::from_secs(1)) {
            assert!(Instant::now() < patience, "{client:?} was not told");
            again.insert(*ends);
            let results = pair.server.run(|| tickler.send(&[*ends]));
            assert!(results[0].is_ok(), "{results:?}");
        }
    }
    println!("{all} clients told in {:?}", start.elapsed());
    assert!(again.len() <= 2, "told again: {again:?}");

    // Both ends each: the same port may be in use towards two services.
    let seen = capture.segments();
    ends_of_idle.retain(|ends| !again.contains(ends));
    for (client, server) in ends_of_idle {
        let to: Vec<&Seen> = seen
            .iter()
            .filter(|at| at.to == client && at.from == server)
            .collect();
        let from: Vec<&Seen> = seen
            .iter()
            .filter(|at| at.from == client && at.to == server)
            .collect();
        assert!(to[0].plain_ack && [0, 1 << 31].contains(&to[0].sequence));
        assert_eq!(from.len(), 1, "its true numbers, once: {from:?}");
        assert!(from[0].plain_ack);
        assert_eq!(to.len(), 2, "a tickle and a reset: {to:?}");
        assert!(to[1].reset);
    }
    for at in &seen {
        let ends = (at.from, at.to);
        assert!(!ended.contains(&ends), "sent for one that ended: {at:?}");
        assert_ne!(ends, ends_of_other, "{at:?}");
    }
    assert_eq!(read(&mut other.0), Err(ErrorKind::WouldBlock));
    watch.close_clean().unwrap();
}

#[test]
fn nfs_is_tickled_both_ways() {
    assert_eq!(ways(2049), Ways::Both);
    assert_eq!(ways(445), Ways::Client);
    let pair = Pair::new();
    let dual = listen(&pair.server, "[::]:2049");
    let mut tickler = pair.server.run(Tickler::open).unwrap();
    for to in ["10.77.0.1:2049", "[fd77::1]:2049"] {
        // The client's socket is lost without a word; the server has one that nobody answers.
        let (client, mut server) = connect(&pair, &dual, to);
        let here = client.local_addr().unwrap();
        pair.client.exec("nft add table inet mute");
        pair.client
            .exec("nft add chain inet mute out { type filter hook output priority 0 ; }");
        pair.client.exec("nft add rule inet mute out drop");
        let mut there = pair.client.run(Sockets::open).unwrap();
        let its = there.connections(&BTreeSet::from([here.ip()])).unwrap();
        let its: Vec<_> = its.into_iter().filter(|at| at.server == here).collect();
        assert_eq!(there.destroy(&its).unwrap(), 1);
        pair.client.exec("nft delete table inet mute");
        server
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        assert_eq!(read(&mut server), Err(ErrorKind::WouldBlock));
        // To the client alone: it resets what it does not know, with numbers that nobody takes.
        let results = pair.server.run(|| tickler.send(&[(here, end(to))]));
        assert!(results[0].is_ok(), "{results:?}");
        assert_eq!(read(&mut server), Err(ErrorKind::WouldBlock));
        // To the server, as if by the client; repeated, as a plan does.
        let patience = Instant::now() + PATIENCE;
        loop {
            let results = pair.server.run(|| tickler.send(&[(end(to), here)]));
            assert!(results[0].is_ok(), "{results:?}");
            server
                .set_read_timeout(Some(Duration::from_millis(600)))
                .unwrap();
            if read(&mut server) == Err(ErrorKind::ConnectionReset) {
                break;
            }
            assert!(Instant::now() < patience, "{to}: the server was not told");
        }
    }
}

#[test]
fn thousands_leave_at_once() {
    const TICKLES: u16 = 20_000;
    let pair = Pair::new();
    pair.server.ip("addr add 10.77.0.10/24 dev srv0");
    let capture = Capture::start(&pair.client);
    let mut tickler = pair.server.run(Tickler::open).unwrap();
    // Warm the neighbours.
    pair.server.exec("ping -q -c 1 -W 5 10.77.0.2");
    let list: Vec<_> = (0..TICKLES)
        .map(|n| {
            (
                end(&format!("10.77.0.2:{}", 10_000 + n)),
                end("10.77.0.10:445"),
            )
        })
        .collect();
    let mut ports = BTreeSet::new();
    let start = Instant::now();
    for part in list.chunks(1000) {
        let results = tickler.send(part);
        assert!(results.iter().all(Result::is_ok));
        let seen = capture.segments();
        ports.extend(
            seen.iter()
                .filter(|at| at.from == end("10.77.0.10:445") && at.plain_ack)
                .map(|at| at.to.port()),
        );
    }
    println!("{TICKLES} tickles sent and seen in {:?}", start.elapsed());
    let patience = Instant::now() + PATIENCE;
    while ports.len() < usize::from(TICKLES) && Instant::now() < patience {
        let seen = capture.segments();
        ports.extend(seen.iter().filter(|at| at.plain_ack).map(|at| at.to.port()));
    }
    assert_eq!(ports.len(), usize::from(TICKLES));
}
