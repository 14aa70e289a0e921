//! The tracker of connections: a node and its clients, each in a network namespace of its own.

mod common;

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use common::{HOST, Net, PEER, PUBLIC, PUBLIC6, enter, ip, pins, run, within};
use ctdb_ebpf::{
    Error, boot_ns,
    track::{Change, Tracked, Tracker},
};
use socket2::{Domain, SockRef, Socket, Type};

const PORT: u16 = 4450;
const PATIENCE: Duration = Duration::from_secs(10);

/// A node with both public addresses on it.
fn node() -> Net {
    let net = Net::new();
    net.add(PUBLIC);
    net.add(PUBLIC6);
    net
}

fn publics() -> [IpAddr; 2] {
    [ip(PUBLIC), ip(PUBLIC6)]
}

fn opened(net: &Net, max: u32) -> Tracker {
    let mut tracker = Tracker::open(&net.dir, max).unwrap();
    tracker.set_addresses(&publics()).unwrap();
    tracker
}

/// A listener for both families.
fn listen() -> TcpListener {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    socket.set_reuse_address(true).unwrap();
    let any: SocketAddr = format!("[::]:{PORT}").parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.listen(4096).unwrap();
    socket.into()
}

/// Both ends of a connection.
struct Pair {
    client: TcpStream,
    server: TcpStream,
}

impl Pair {
    fn new(net: &Net, listener: &TcpListener, to: &str) -> Self {
        let to = SocketAddr::new(ip(to), listener.local_addr().unwrap().port());
        let client = within(&net.peer, || {
            TcpStream::connect_timeout(&to, PATIENCE).unwrap()
        });
        Self {
            client,
            server: listener.accept().unwrap().0,
        }
    }

    fn end(&self) -> SocketAddr {
        self.client.local_addr().unwrap()
    }

    /// No TIME_WAIT on either side.
    fn reset(self) {
        SockRef::from(&self.client)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(self.client);
        drop(self.server);
    }
}

/// What a daemon would keep.
#[derive(Default)]
struct Table {
    connections: BTreeMap<u64, Tracked>,
    wholes: usize,
    complete: bool,
}

impl Table {
    fn of(tracker: &mut Tracker) -> Self {
        let mut table = Self::default();
        table.read(tracker);
        table
    }

    fn read(&mut self, tracker: &mut Tracker) {
        tracker
            .drain(|change| match change {
                Change::Opened(tracked) => drop(self.connections.insert(tracked.cookie, tracked)),
                Change::Closed(tracked) => drop(self.connections.remove(&tracked.cookie)),
                Change::Whole {
                    connections,
                    complete,
                } => {
                    self.connections = connections
                        .into_iter()
                        .map(|tracked| (tracked.cookie, tracked))
                        .collect();
                    self.wholes += 1;
                    self.complete = complete;
                }
            })
            .unwrap();
    }

    /// Reads until it has so many.
    fn until(&mut self, tracker: &mut Tracker, count: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.read(tracker);
            if self.connections.len() == count {
                return;
            }
            assert!(
                Instant::now() < end,
                "{} connections, not {count}",
                self.connections.len()
            );
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn by_client(&self, client: SocketAddr) -> Option<Tracked> {
        let mut found = self.connections.values().filter(|t| t.client == client);
        let first = found.next().copied();
        assert_eq!(found.next(), None, "two entries of one client");
        first
    }
}

#[test]
fn this_machine_is_supported() {
    Tracker::supported().unwrap();
}

#[test]
fn connections_of_every_kind_from_beginning_to_end() {
    let net = node();
    let mut tracker = opened(&net, 1024);
    let mut table = Table::of(&mut tracker);
    assert!(table.connections.is_empty() && table.complete);

    let dual = listen();
    let plain = TcpListener::bind(SocketAddr::new(ip(PUBLIC), 2049)).unwrap();
    let before = boot_ns();
    let kinds = [
        (Pair::new(&net, &plain, PUBLIC), PUBLIC, 2049),
        (Pair::new(&net, &dual, PUBLIC), PUBLIC, PORT),
        (Pair::new(&net, &dual, PUBLIC6), PUBLIC6, PORT),
    ];
    // Not public; and one that the node opens, from a public address.
    let _other = Pair::new(&net, &dual, HOST);
    let there = within(&net.peer, || {
        TcpListener::bind(SocketAddr::new(ip(PEER), 9)).unwrap()
    });
    let from = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    from.bind(&SocketAddr::new(ip(PUBLIC), 0).into()).unwrap();
    from.connect(&there.local_addr().unwrap().into()).unwrap();

    table.until(&mut tracker, 3);
    let cgroup = own_cgroup();
    for (pair, server, port) in &kinds {
        let tracked = table.by_client(pair.end()).unwrap();
        assert_eq!(tracked.server, SocketAddr::new(ip(server), *port));
        assert!(before <= tracked.since_ns && tracked.since_ns <= boot_ns());
        assert!(!tracked.seeded);
        assert_eq!(tracked.cgroup, cgroup);
        let cookie = SockRef::from(&pair.server).cookie().unwrap();
        assert_eq!(tracked.cookie, cookie);
    }
    assert_eq!(tracker.dump().unwrap().len(), 3);

    // Half closed is not ended.
    let [first, second, third] = kinds.map(|(pair, ..)| pair);
    first.client.shutdown(std::net::Shutdown::Write).unwrap();
    second.reset();
    table.until(&mut tracker, 2);
    drop(third.server);
    drop(third.client);
    table.until(&mut tracker, 1);
    assert!(table.by_client(first.end()).is_some());
    drop(first);
    table.until(&mut tracker, 0);
    assert!(tracker.dump().unwrap().is_empty());
    let stats = tracker.stats().unwrap();
    assert_eq!((stats.opened, stats.table_full, stats.overruns), (3, 0, 0));
    tracker.close_clean().unwrap();
    assert!(!net.dir.exists(), "{:?} stays", net.dir);
}

/// The number of the test's control group: the inode of its directory.
fn own_cgroup() -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let text = fs::read_to_string("/proc/self/cgroup").unwrap();
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mounts.lines().find_map(|line| {
        let mut words = line.split(' ');
        let point = words.nth(1)?;
        (words.next() == Some("cgroup2")).then_some(point)
    });
    let (path, root) = (path.unwrap(), root.expect("cgroup2 is mounted"));
    fs::metadata(format!("{root}{path}")).unwrap().ino()
}

#[test]
fn what_was_there_before_is_read_in() {
    let net = node();
    let listener = listen();
    let old = [PUBLIC, PUBLIC, PUBLIC6].map(|to| Pair::new(&net, &listener, to));
    let _other = Pair::new(&net, &listener, HOST);
    let closed = Pair::new(&net, &listener, PUBLIC);
    let gone = closed.end();
    // In TIME_WAIT here.
    drop(closed.server);
    drop(closed.client);
    let mut tracker = Tracker::open(&net.dir, 1024).unwrap();
    tracker.set_addresses(&[ip(PUBLIC6)]).unwrap();
    let mut table = Table::of(&mut tracker);
    assert_eq!(table.connections.len(), 1);
    assert!(table.by_client(old[2].end()).unwrap().seeded);

    tracker.set_addresses(&publics()).unwrap();
    let new = Pair::new(&net, &listener, PUBLIC);
    table.until(&mut tracker, 4);
    assert_eq!(table.by_client(gone), None);
    for pair in &old {
        let tracked = table.by_client(pair.end()).unwrap();
        assert!(tracked.seeded);
        let cookie = SockRef::from(&pair.server).cookie().unwrap();
        assert_eq!(tracked.cookie, cookie);
    }
    assert!(!table.by_client(new.end()).unwrap().seeded);

    // No longer public: forgotten, though it lives.
    tracker.set_addresses(&[ip(PUBLIC)]).unwrap();
    table.read(&mut tracker);
    assert_eq!(table.connections.len(), 3);
    assert_eq!(table.by_client(old[2].end()), None);
    for pair in old {
        pair.reset();
    }
    table.until(&mut tracker, 1);
}

#[test]
fn goes_on_while_no_daemon_runs() {
    let net = node();
    let listener = listen();
    let mut tracker = opened(&net, 1024);
    let stays = Pair::new(&net, &listener, PUBLIC);
    let ends = Pair::new(&net, &listener, PUBLIC6);
    let mut table = Table::default();
    table.until(&mut tracker, 2);
    let since = table.by_client(stays.end()).unwrap().since_ns;
    drop(tracker);

    ends.reset();
    let new = Pair::new(&net, &listener, PUBLIC);
    Pair::new(&net, &listener, PUBLIC).reset();
    let shown = run(&[
        "bpftool",
        "map",
        "dump",
        "pinned",
        net.dir.join("track1-table").to_str().unwrap(),
    ]);
    for name in [
        "local_address",
        "remote_address",
        "local_port",
        "remote_port",
        "since_boot_ns",
        "cgroup",
    ] {
        assert!(shown.contains(name), "{name} is not in {shown}");
    }
    assert!(
        shown.contains(&format!("\"local_port\": {PORT}")),
        "{shown}"
    );
    assert!(
        shown.contains(&format!("\"remote_port\": {}", new.end().port())),
        "{shown}"
    );

    let mut successor = opened(&net, 1024);
    let mut table = Table::of(&mut successor);
    assert_eq!(table.wholes, 1);
    assert_eq!(table.connections.len(), 2);
    let tracked = table.by_client(stays.end()).unwrap();
    assert_eq!(tracked.since_ns, since);
    assert!(!tracked.seeded);
    assert!(
        !table.by_client(new.end()).unwrap().seeded,
        "seen by nobody but the program"
    );
    // One program only.
    let before = successor.stats().unwrap().opened;
    let another = Pair::new(&net, &listener, PUBLIC);
    table.until(&mut successor, 3);
    assert_eq!(successor.stats().unwrap().opened, before + 1);
    another.reset();
    table.until(&mut successor, 2);
    assert_eq!(successor.stats().unwrap().overruns, 0);
    assert_eq!(
        pins(&net.dir),
        [
            "track1-address",
            "track1-config",
            "track1-counts",
            "track1-link",
            "track1-table"
        ]
    );
}

#[test]
fn an_end_that_no_program_saw_is_found_out() {
    let net = node();
    let listener = listen();
    let mut tracker = opened(&net, 1024);
    let stays = Pair::new(&net, &listener, PUBLIC);
    let ends = Pair::new(&net, &listener, PUBLIC);
    let mut table = Table::default();
    table.until(&mut tracker, 2);
    drop(tracker);
    // Unloaded by hand.
    fs::remove_file(net.dir.join("track1-link")).unwrap();
    thread::sleep(Duration::from_millis(1200));
    ends.reset();
    let new = Pair::new(&net, &listener, PUBLIC);
    let mut successor = opened(&net, 1024);
    let table = Table::of(&mut successor);
    assert_eq!(table.connections.len(), 2);
    assert!(!table.by_client(stays.end()).unwrap().seeded);
    assert!(table.by_client(new.end()).unwrap().seeded);
}

#[test]
fn another_layout_is_dropped() {
    let net = node();
    let listener = listen();
    let tracker = opened(&net, 1024);
    let pair = Pair::new(&net, &listener, PUBLIC);
    drop(tracker);
    // Of another version, and of another size.
    run(&[
        "bpftool",
        "map",
        "create",
        net.dir.join("track0-table").to_str().unwrap(),
        "type",
        "array",
        "key",
        "4",
        "value",
        "8",
        "entries",
        "1",
        "name",
        "old",
    ]);
    let mut tracker = opened(&net, 2048);
    let mut table = Table::of(&mut tracker);
    assert_eq!(table.connections.len(), 1);
    assert!(table.by_client(pair.end()).unwrap().seeded, "a new table");
    assert!(!net.dir.join("track0-table").exists());
    pair.reset();
    table.until(&mut tracker, 0);
    drop(tracker);
    // The same pins from another network namespace: not its table.
    within(&net.peer, || {
        let tracker = Tracker::open(&net.dir, 2048).unwrap();
        assert_eq!(tracker.stats().unwrap().opened, 0);
    });
}

#[test]
fn a_full_table_is_counted_and_heals() {
    let net = node();
    let listener = listen();
    let mut tracker = opened(&net, 16);
    let mut table = Table::of(&mut tracker);
    let mut pairs: Vec<Pair> = (0..40)
        .map(|_| Pair::new(&net, &listener, PUBLIC))
        .collect();
    // The daemon is told of all; the kernel's table has less.
    table.until(&mut tracker, 40);
    assert_eq!(tracker.dump().unwrap().len(), 16);
    assert_eq!(tracker.stats().unwrap().table_full, 24);
    assert!(!tracker.check().unwrap(), "no room: nothing to be done");
    tracker.sweep().unwrap();
    table.read(&mut tracker);
    assert!(!table.complete, "a reading that says that some are missing");
    // Of those in the table all but one go.
    let mut table = Table::default();
    let inside: Vec<SocketAddr> = tracker.dump().unwrap().iter().map(|t| t.client).collect();
    for client in &inside[1..] {
        let at = pairs.iter().position(|pair| pair.end() == *client).unwrap();
        pairs.swap_remove(at).reset();
    }
    for pair in pairs.drain(15..) {
        pair.reset();
    }
    let end = Instant::now() + PATIENCE;
    while !tracker.check().unwrap() {
        assert!(Instant::now() < end, "room again, and nothing is read in");
        thread::sleep(Duration::from_millis(10));
    }
    table.until(&mut tracker, 15);
    assert!(table.complete);
    for pair in &pairs {
        assert!(table.by_client(pair.end()).is_some());
    }
}

#[test]
fn what_is_changed_by_hand_is_put_right() {
    let net = node();
    let listener = listen();
    let mut tracker = opened(&net, 1024);
    let first = Pair::new(&net, &listener, PUBLIC);
    let mut table = Table::default();
    table.until(&mut tracker, 1);
    assert!(!tracker.check().unwrap());
    assert_eq!(tracker.stats().unwrap().repairs, 0);
    // The kernel does not let go of a link that is held.
    let link = net.dir.join("track1-link");
    let detached = Command::new("bpftool")
        .args(["link", "detach", "pinned", link.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(!detached.status.success(), "{detached:?}");
    for name in pins(&net.dir) {
        fs::remove_file(net.dir.join(name)).unwrap();
    }
    tracker.check().unwrap();
    assert_eq!(tracker.stats().unwrap().repairs, 5);
    assert_eq!(pins(&net.dir).len(), 5);
    // The whole file system.
    run(&["umount", net.dir.to_str().unwrap()]);
    tracker.check().unwrap();
    assert_eq!(pins(&net.dir).len(), 5);
    // The addresses.
    let map = net.dir.join("track1-address");
    let mut words = vec!["bpftool", "map", "delete", "pinned"];
    words.extend([map.to_str().unwrap(), "key", "hex"]);
    let key: Vec<String> = Ipv6Key::of(PUBLIC);
    words.extend(key.iter().map(String::as_str));
    run(&words);
    let missed = Pair::new(&net, &listener, PUBLIC);
    assert!(tracker.check().unwrap());
    table.until(&mut tracker, 2);
    assert!(table.by_client(missed.end()).unwrap().seeded);
    assert!(table.by_client(first.end()).is_some());
    // And a successor finds what was put right.
    drop(tracker);
    Pair::new(&net, &listener, PUBLIC).reset();
    let mut successor = opened(&net, 1024);
    assert_eq!(Table::of(&mut successor).connections.len(), 2);
}

struct Ipv6Key;

impl Ipv6Key {
    fn of(address: &str) -> Vec<String> {
        let IpAddr::V4(v4) = ip(address) else {
            panic!("an IPv4 address")
        };
        v4.to_ipv6_mapped()
            .octets()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

#[test]
fn two_namespaces_do_not_disturb_each_other() {
    let one = node();
    let listener = listen();
    let mut tracker = opened(&one, 1024);
    // The same addresses in another pair of namespaces, by a thread that stays there.
    thread::scope(|scope| {
        scope
            .spawn(|| {
                let two = node();
                let there = listen();
                let mut other = opened(&two, 1024);
                let theirs = Pair::new(&two, &there, PUBLIC);
                let mut table = Table::default();
                table.until(&mut other, 1);
                let ours = within(&one.host, || Pair::new(&one, &listener, PUBLIC));
                let mut here = Table::default();
                here.until(&mut tracker, 1);
                assert!(here.by_client(ours.end()).is_some());
                table.read(&mut other);
                assert_eq!(table.connections.len(), 1);
                assert!(table.by_client(theirs.end()).is_some());
                assert!(matches!(tracker.sweep(), Err(Error::WrongNamespace { .. })));
                other.close_clean().unwrap();
                drop(theirs);
                drop(ours);
                here.until(&mut tracker, 0);
            })
            .join()
            .unwrap();
    });
    enter(&one.host);
    let ours = Pair::new(&one, &listener, PUBLIC);
    let mut table = Table::default();
    table.until(&mut tracker, 1);
    assert!(table.by_client(ours.end()).is_some());
}

/// Clients that connect and reset as fast as they can.
struct Storm {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Storm {
    /// At most so many connections.
    fn start(net: &Net, limit: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let made = Arc::new(AtomicU64::new(0));
        let listener = listen();
        let mut threads = Vec::new();
        for to in [PUBLIC, PUBLIC6] {
            let (stop, made, peer) = (Arc::clone(&stop), Arc::clone(&made), net.peer.clone());
            threads.push(thread::spawn(move || {
                enter(&peer);
                while !stop.load(Ordering::Relaxed) && made.fetch_add(1, Ordering::Relaxed) < limit
                {
                    let client = TcpStream::connect(SocketAddr::new(ip(to), PORT)).unwrap();
                    SockRef::from(&client)
                        .set_linger(Some(Duration::ZERO))
                        .unwrap();
                }
            }));
        }
        listener.set_nonblocking(true).unwrap();
        let stopped = Arc::clone(&stop);
        threads.push(thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                while let Ok((server, _)) = listener.accept() {
                    drop(server);
                }
                thread::sleep(Duration::from_micros(200));
            }
        }));
        Self {
            stop,
            made,
            threads,
        }
    }

    fn finished(&self, limit: u64) -> bool {
        self.made.load(Ordering::Relaxed) >= limit
    }

    fn end(mut self) {
        // The clients first: the one that accepts does it until the end.
        for client in self.threads.drain(..2) {
            client.join().unwrap();
        }
        self.stop.store(true, Ordering::Relaxed);
        for server in self.threads.drain(..) {
            server.join().unwrap();
        }
    }
}

#[test]
fn a_storm_loses_nothing() {
    // So few that the ring holds all their changes, however late they are read.
    const CONNECTIONS: u64 = 20_000;
    let net = node();
    let listener = TcpListener::bind(SocketAddr::new(ip(PUBLIC), 2049)).unwrap();
    let mut tracker = opened(&net, 65_536);
    let held = Pair::new(&net, &listener, PUBLIC);
    let mut table = Table::default();
    table.until(&mut tracker, 1);
    let before = tracker.stats().unwrap();
    let start = Instant::now();
    let storm = Storm::start(&net, CONNECTIONS);
    let (mut opened, mut closed) = (0, 0);
    let mut count = |tracker: &mut Tracker| {
        tracker
            .drain(|change| match change {
                Change::Opened(_) => opened += 1,
                Change::Closed(_) => closed += 1,
                Change::Whole { .. } => panic!("something was lost"),
            })
            .unwrap()
    };
    while !storm.finished(CONNECTIONS) {
        count(&mut tracker);
        thread::sleep(Duration::from_millis(5));
    }
    storm.end();
    let took = start.elapsed();
    let end = Instant::now() + PATIENCE;
    while tracker.dump().unwrap().len() > 1 && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    while count(&mut tracker) > 0 {}
    println!(
        "{CONNECTIONS} connections in {took:?}: {:.0} a second",
        CONNECTIONS as f64 / took.as_secs_f64()
    );
    assert_eq!((opened, closed), (CONNECTIONS, CONNECTIONS));
    let stats = tracker.stats().unwrap();
    assert_eq!(stats.opened - before.opened, CONNECTIONS);
    assert_eq!(stats.closed - before.closed, CONNECTIONS);
    assert_eq!(
        (stats.ring_lost, stats.overruns, stats.table_full),
        (0, 0, 0)
    );
    let left = tracker.dump().unwrap();
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].client, held.end());
}

#[test]
fn an_overrun_is_noticed_and_answered() {
    // More changes than the ring holds.
    const CONNECTIONS: u64 = 30_000;
    let net = node();
    let listener = TcpListener::bind(SocketAddr::new(ip(PUBLIC), 2049)).unwrap();
    let mut tracker = opened(&net, 65_536);
    let ends = Pair::new(&net, &listener, PUBLIC);
    let mut table = Table::default();
    table.until(&mut tracker, 1);
    Storm::start(&net, CONNECTIONS).end();
    ends.reset();
    let begins = Pair::new(&net, &listener, PUBLIC);
    assert!(tracker.stats().unwrap().ring_lost > 0, "the ring held all");
    table.until(&mut tracker, 1);
    assert!(table.by_client(begins.end()).is_some());
    assert_eq!(table.wholes, 2);
    assert!(table.complete);
    assert_eq!(tracker.stats().unwrap().overruns, 1);
    // And on as before.
    begins.reset();
    table.until(&mut tracker, 0);
    assert_eq!(table.wholes, 2);
    assert_eq!(tracker.stats().unwrap().overruns, 1);
}
