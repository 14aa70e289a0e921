//! Connections watched and killed, UDP sockets and owners, against the kernel, in namespaces.

// The same file, not a dependency: the two crates do not know each other.
#[path = "../../netfw/tests/common/mod.rs"]
mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use common::{Net, Pair};
use ctdb_conntrack::owners::{cgroup_path, owners};
use ctdb_conntrack::{Change, Killer, Method, Sockets, Source, Tracked, Watch};
use socket2::{Domain, SockRef, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(10);
/// Connections of a crowd; a process may have 20,000 files open here.
const CROWD: usize = 3000;

fn end(text: &str) -> SocketAddr {
    text.parse().expect("address and port")
}

fn set(addresses: &[&str]) -> BTreeSet<IpAddr> {
    addresses
        .iter()
        .map(|text| text.parse().expect("an address"))
        .collect()
}

fn listen(room: &Net, at: &str) -> TcpListener {
    let at = end(at);
    room.run(|| {
        let socket = Socket::new(Domain::for_address(at), Type::STREAM, None).unwrap();
        if at.is_ipv6() {
            socket.set_only_v6(false).unwrap();
        }
        socket.set_reuse_address(true).unwrap();
        socket.bind(&at.into()).unwrap();
        socket.listen(4096).unwrap();
        socket.into()
    })
}

fn connect(pair: &Pair, listener: &TcpListener, to: &[SocketAddr]) -> Vec<(TcpStream, TcpStream)> {
    pair.client.run(|| {
        to.iter()
            .map(|to| {
                let client = TcpStream::connect_timeout(to, PATIENCE).expect("connects");
                client
                    .set_read_timeout(Some(Duration::from_millis(300)))
                    .unwrap();
                (client, listener.accept().expect("accepts").0)
            })
            .collect()
    })
}

fn read(client: &mut TcpStream) -> Result<usize, ErrorKind> {
    loop {
        match client.read(&mut [0]).map_err(|error| error.kind()) {
            Err(ErrorKind::Interrupted) => {}
            result => return result,
        }
    }
}

#[test]
fn both_ways_kill_all_and_spare_the_rest() {
    for iterator in [true, false] {
        let pair = Pair::new();
        pair.server.ip("addr add 10.77.0.10/24 dev srv0");
        pair.server.ip("addr add 10.77.0.11/24 dev srv0");
        pair.server.ip("addr add fd77::10/64 dev srv0 nodad");
        let mut killer = pair
            .server
            .run(|| {
                if iterator {
                    Killer::open()
                } else {
                    Killer::with_sock_diag()
                }
            })
            .unwrap();
        let expected = if iterator {
            Method::Iterator
        } else {
            Method::SockDiag
        };
        assert_eq!(killer.method(), expected, "this kernel has it");
        let dual = listen(&pair.server, "[::]:1003");
        let plain = listen(&pair.server, "0.0.0.0:1001");
        let mut gone = connect(
            &pair,
            &dual,
            &[end("10.77.0.10:1003"), end("[fd77::10]:1003")],
        );
        gone.extend(connect(&pair, &plain, &[end("10.77.0.10:1001")]));
        let mut stay = connect(
            &pair,
            &dual,
            &[end("10.77.0.11:1003"), end("[fd77::1]:1003")],
        );
        // The server closes first: TIME_WAIT on its side.
        let (client, server) = connect(&pair, &plain, &[end("10.77.0.10:1001")]).remove(0);
        let waits = client.local_addr().unwrap();
        drop(server);
        drop(client);
        let filter = format!("state time-wait dport = :{}", waits.port());
        let shown = || pair.server.exec(&format!("ss -Htn {filter}"));
        let patience = Instant::now() + PATIENCE;
        while shown().is_empty() {
            assert!(Instant::now() < patience, "no TIME_WAIT");
        }
        let addresses = set(&["10.77.0.10", "fd77::10"]);
        let killed = pair.server.run(|| killer.kill(&addresses)).unwrap();
        assert_eq!((killed.destroyed, killed.left), (3, false), "{killed:?}");
        assert!(killed.passes >= 2);
        for (client, server) in &mut gone {
            assert_eq!(read(client), Err(ErrorKind::ConnectionReset));
            assert_eq!(read(server), Err(ErrorKind::ConnectionAborted));
        }
        for (client, server) in &mut stay {
            server.write_all(b"x").unwrap();
            assert_eq!(read(client), Ok(1));
        }
        assert!(!shown().is_empty(), "TIME_WAIT is spared");
        let again = pair.server.run(|| killer.kill(&addresses)).unwrap();
        assert_eq!((again.destroyed, again.passes), (0, 1));
        let none = pair.server.run(|| killer.kill(&BTreeSet::new())).unwrap();
        assert_eq!(none.passes, 0);
        // The listeners live.
        connect(&pair, &dual, &[end("10.77.0.10:1003")]);
        connect(&pair, &plain, &[end("10.77.0.10:1001")]);
        // One of two, by its ends.
        let mut two = connect(&pair, &dual, &[end("10.77.0.10:1003"); 2]);
        let which = (two[0].0.local_addr().unwrap(), end("10.77.0.10:1003"));
        let one = pair.server.run(|| killer.kill_connections(&[which]));
        assert_eq!(one.unwrap().destroyed, 1);
        assert_eq!(read(&mut two[0].0), Err(ErrorKind::ConnectionReset));
        assert_eq!(read(&mut two[1].0), Err(ErrorKind::WouldBlock));
    }
}

#[test]
fn another_namespace_with_the_same_addresses_is_left_alone() {
    let (one, two) = (Pair::new(), Pair::new());
    let there = listen(&two.server, "0.0.0.0:1001");
    let mut stays = connect(&two, &there, &[end("10.77.0.1:1001")]);
    let here = listen(&one.server, "0.0.0.0:1001");
    let mut goes = connect(&one, &here, &[end("10.77.0.1:1001")]);
    let mut killer = one.server.run(Killer::open).unwrap();
    let addresses = set(&["10.77.0.1"]);
    let killed = one.server.run(|| killer.kill(&addresses)).unwrap();
    assert_eq!(killed.destroyed, 1);
    assert_eq!(read(&mut goes[0].0), Err(ErrorKind::ConnectionReset));
    assert_eq!(read(&mut stays[0].0), Err(ErrorKind::WouldBlock));
    // A thread that strayed there kills by the socket that it has: of its own namespace.
    let killed = two.server.run(|| killer.kill(&addresses)).unwrap();
    assert_eq!(killed.destroyed, 0);
    assert_eq!(read(&mut stays[0].0), Err(ErrorKind::WouldBlock));
}

#[test]
fn many_are_killed_by_both() {
    let pair = Pair::new();
    let listener = listen(&pair.server, "[::]:1003");
    let addresses = set(&["10.77.0.1", "fd77::1"]);
    for iterator in [true, false] {
        let mut killer = pair
            .server
            .run(|| {
                if iterator {
                    Killer::open()
                } else {
                    Killer::with_sock_diag()
                }
            })
            .unwrap();
        let to: Vec<SocketAddr> = (0..CROWD)
            .map(|n| end(["10.77.0.1:1003", "[fd77::1]:1003"][n % 2]))
            .collect();
        let mut crowd = connect(&pair, &listener, &to);
        let start = Instant::now();
        let killed = pair.server.run(|| killer.kill(&addresses)).unwrap();
        println!("{CROWD} by {}: {:?}", killer.method(), start.elapsed());
        assert_eq!((killed.destroyed, killed.left), (CROWD, false));
        for (client, _) in &mut crowd {
            assert_eq!(read(client), Err(ErrorKind::ConnectionReset));
        }
    }
}

/// A pin directory that goes with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(pair: &Pair) -> Self {
        Self(PathBuf::from(format!("/run/{}-bpf", pair.server.name)))
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).output();
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[derive(Default)]
struct Table {
    connections: BTreeMap<u64, Tracked>,
    wholes: usize,
}

impl Table {
    fn until(&mut self, watch: &mut Watch, count: usize) {
        let patience = Instant::now() + PATIENCE;
        loop {
            watch
                .poll(|change| match change {
                    Change::Opened(at) => drop(self.connections.insert(at.cookie, at)),
                    Change::Closed(at) => drop(self.connections.remove(&at.cookie)),
                    Change::Whole {
                        connections,
                        complete,
                    } => {
                        assert!(complete);
                        self.connections = connections.iter().map(|at| (at.cookie, *at)).collect();
                        self.wholes += 1;
                    }
                })
                .unwrap();
            if self.connections.len() == count {
                return;
            }
            assert!(
                Instant::now() < patience,
                "{} connections, not {count}",
                self.connections.len()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn clients(&self) -> BTreeSet<SocketAddr> {
        self.connections.values().map(|at| at.client).collect()
    }
}

fn ends(pairs: &[(TcpStream, TcpStream)]) -> BTreeSet<SocketAddr> {
    pairs
        .iter()
        .map(|(client, _)| client.local_addr().unwrap())
        .collect()
}

fn reset(pairs: Vec<(TcpStream, TcpStream)>) {
    for (client, _) in pairs {
        SockRef::from(&client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    }
}

#[test]
fn a_watch_with_and_without_the_kernels_tracker() {
    for tracked in [true, false] {
        let pair = Pair::new();
        let dir = Dir::new(&pair);
        let listener = listen(&pair.server, "[::]:1003");
        let to = [end("10.77.0.1:1003"), end("[fd77::1]:1003")];
        let before = connect(&pair, &listener, &to);
        let mut watch = pair
            .server
            .run(|| {
                if tracked {
                    Watch::open(&dir.0, 1024)
                } else {
                    Watch::without_tracker("a test")
                }
            })
            .unwrap();
        assert_eq!(watch.source() == Source::Kernel, tracked);
        assert_eq!(watch.fd().is_some(), tracked);
        let addresses = set(&["10.77.0.1", "fd77::1"]);
        pair.server.run(|| watch.set_addresses(&addresses)).unwrap();
        let mut table = Table::default();
        table.until(&mut watch, 2);
        assert_eq!(table.clients(), ends(&before));
        let after = connect(&pair, &listener, &to);
        table.until(&mut watch, 4);
        assert_eq!(
            table.clients(),
            ends(&before).union(&ends(&after)).copied().collect()
        );
        reset(before);
        table.until(&mut watch, 2);
        assert_eq!(table.clients(), ends(&after));
        assert_eq!(table.wholes, 1);
        pair.server.run(|| watch.check()).unwrap();
        watch.close_clean().unwrap();
        assert!(!dir.0.exists());
    }
}

#[test]
fn a_watch_whose_tracker_is_full_misses_none() {
    let pair = Pair::new();
    let dir = Dir::new(&pair);
    let listener = listen(&pair.server, "[::]:1003");
    let crowd = connect(&pair, &listener, &[end("10.77.0.1:1003"); 50]);
    let mut watch = pair.server.run(|| Watch::open(&dir.0, 16)).unwrap();
    let addresses = set(&["10.77.0.1"]);
    pair.server.run(|| watch.set_addresses(&addresses)).unwrap();
    let mut table = Table::default();
    table.until(&mut watch, 50);
    assert_eq!(table.clients(), ends(&crowd));
    assert_eq!(watch.filled(), 34);
    assert!(watch.stats().unwrap().table_full >= 34);
    // The ends of those that the kernel's table does not have are told too.
    reset(crowd);
    table.until(&mut watch, 0);
    watch.close_clean().unwrap();
}

#[test]
fn traffic_and_owner_of_a_connection() {
    let pair = Pair::new();
    let listener = listen(&pair.server, "0.0.0.0:1001");
    let mut both = connect(&pair, &listener, &[end("10.77.0.1:1001")]).remove(0);
    both.0.write_all(&[1; 1000]).unwrap();
    both.1.read_exact(&mut [0; 1000]).unwrap();
    both.1.write_all(&[2; 300]).unwrap();
    both.0.read_exact(&mut [0; 300]).unwrap();
    let mut sockets = pair.server.run(Sockets::open).unwrap();
    let addresses = set(&["10.77.0.1"]);
    let patience = Instant::now() + PATIENCE;
    let found = loop {
        let found = sockets.connections_with_info(&addresses).unwrap().remove(0);
        // The client's acknowledgement may be delayed.
        if found.info.unwrap().bytes_acked == 300 {
            break found;
        }
        assert!(Instant::now() < patience, "{found:?}");
    };
    assert_eq!(found.info.unwrap().bytes_received, 1000);
    assert_eq!(sockets.connections(&addresses).unwrap()[0].info, None);
    let holders = owners(&BTreeSet::from([found.inode]));
    assert_eq!(holders[&found.inode].pid, std::process::id());
    // The control group of this process has a path, the one in /proc.
    let dir = Dir::new(&pair);
    let mut watch = pair.server.run(|| Watch::open(&dir.0, 1024)).unwrap();
    pair.server.run(|| watch.set_addresses(&addresses)).unwrap();
    let mut table = Table::default();
    table.until(&mut watch, 1);
    let (_, tracked) = table.connections.pop_first().unwrap();
    let mine = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let mine = mine.lines().find_map(|line| line.strip_prefix("0::"));
    assert_eq!(cgroup_path(tracked.cgroup), mine.map(PathBuf::from));
    watch.close_clean().unwrap();
}

#[test]
fn udp_sockets_that_answer() {
    let pair = Pair::new();
    let bind = |at: &str, v6only: bool| {
        let at = end(at);
        pair.server.run(|| {
            let socket = Socket::new(Domain::for_address(at), Type::DGRAM, None).unwrap();
            if at.is_ipv6() {
                socket.set_only_v6(v6only).unwrap();
            }
            socket.bind(&at.into()).unwrap();
            UdpSocket::from(socket)
        })
    };
    let _open = [
        bind("10.77.0.1:443", false),
        bind("0.0.0.0:111", false),
        bind("[::]:2049", false),
        bind("[::]:4045", true),
        bind("[fd77::1]:443", false),
        bind("127.0.0.1:53", false),
    ];
    let connected = bind("10.77.0.1:9999", false);
    pair.server
        .run(|| connected.connect("10.77.0.2:1"))
        .unwrap();
    let mut sockets = pair.server.run(Sockets::open).unwrap();
    let mut on = |address: &str| -> Vec<(SocketAddr, bool)> {
        let found = sockets.udp(&set(&[address])).unwrap();
        found.iter().map(|at| (at.local, at.dual)).collect()
    };
    assert_eq!(
        on("10.77.0.1"),
        [
            (end("0.0.0.0:111"), false),
            (end("10.77.0.1:443"), false),
            (end("[::]:2049"), true),
        ]
    );
    assert_eq!(
        on("fd77::1"),
        [
            (end("[::]:2049"), true),
            (end("[::]:4045"), false),
            (end("[fd77::1]:443"), false),
        ]
    );
    assert_eq!(
        on("10.77.0.99"),
        [(end("0.0.0.0:111"), false), (end("[::]:2049"), true)]
    );
}
