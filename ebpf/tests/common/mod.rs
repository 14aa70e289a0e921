//! Two network namespaces joined by a veth pair, and what the tests do in them.
#![allow(unsafe_code, reason = "setns and a tun device")]
#![allow(dead_code, reason = "no test needs all of it")]

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ctdb_ebpf::lease::Lease;

pub const HOST: &str = "10.77.0.1";
pub const PEER: &str = "10.77.0.2";
pub const HOST6: &str = "fd77::1";
pub const PEER6: &str = "fd77::2";
pub const PUBLIC: &str = "10.77.0.100";
pub const PUBLIC6: &str = "fd77::100";
pub const ECHO: u16 = 7777;

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn run(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .unwrap_or_else(|error| {
            panic!(
                "`{}` is needed: {error}; install it (`cargo xtask setup`)",
                words[0]
            )
        });
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The calling thread's network namespace from now on.
pub fn enter(name: &str) {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    // SAFETY: no pointers.
    let result = unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "entering {name}: {}", io::Error::last_os_error());
}

/// Runs something in another namespace; sockets made there stay there.
pub fn within<T: Send>(name: &str, action: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        scope
            .spawn(|| {
                enter(name);
                action()
            })
            .join()
            .unwrap()
    })
}

/// Namespaces made by this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// `h0` in the namespace of the node, `p0` in that of its peer, and a pin directory.
pub struct Net {
    pub host: String,
    pub peer: String,
    pub dir: PathBuf,
}

impl Net {
    /// Makes them, and enters the node's with this thread.
    pub fn new() -> Self {
        // SAFETY: no arguments.
        let root = unsafe { libc::geteuid() } == 0;
        assert!(
            root,
            "this test makes network namespaces and loads kernel programs: run it as root"
        );
        let id = format!(
            "ctdbt-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let net = Self {
            host: format!("{id}-h"),
            peer: format!("{id}-p"),
            dir: PathBuf::from(format!("/run/{id}-bpf")),
        };
        for name in [&net.host, &net.peer] {
            run(&["ip", "netns", "add", name]);
            run(&["ip", "-n", name, "link", "set", "lo", "up"]);
        }
        net.link("h0", None);
        enter(&net.host);
        net
    }

    /// The veth pair, up, with its static addresses.
    pub fn link(&self, name: &str, index: Option<u32>) {
        let index = index.map(|index| index.to_string());
        let mut words = vec!["ip", "-n", &self.host, "link", "add", name];
        if let Some(index) = &index {
            words.extend(["index", index]);
        }
        words.extend(["type", "veth", "peer", "name", "p0", "netns", &self.peer]);
        run(&words);
        for (namespace, name, v4, v6) in [
            (&self.host, name, HOST, HOST6),
            (&self.peer, "p0", PEER, PEER6),
        ] {
            add_address(namespace, name, &format!("{v4}/24"));
            add_address(namespace, name, &format!("{v6}/64"));
            run(&["ip", "-n", namespace, "link", "set", name, "up"]);
        }
    }

    pub fn ifindex(&self, name: &str) -> u32 {
        let shown = run(&["ip", "-n", &self.host, "-o", "link", "show", name]);
        shown.split(':').next().unwrap().trim().parse().unwrap()
    }

    pub fn add(&self, address: &str) {
        let length = if address.contains(':') { 64 } else { 24 };
        add_address(&self.host, "h0", &format!("{address}/{length}"));
    }

    /// Forgets what the peer knows about its neighbours.
    pub fn flush_neighbours(&self) {
        run(&["ip", "-n", &self.peer, "neigh", "flush", "all"]);
    }

    /// Whether the peer has the address's hardware address.
    pub fn resolved(&self, address: &str) -> bool {
        run(&["ip", "-n", &self.peer, "neigh", "show", "to", address]).contains("lladdr")
    }

    pub fn pings(&self, address: &str) -> bool {
        let peer = &self.peer;
        Command::new("ip")
            .args([
                "netns", "exec", peer, "ping", "-q", "-n", "-i", "0.1", "-W", "1",
            ])
            .args(["-c", "2", "-w", "1", address])
            .output()
            .expect("`ip` and `ping` are needed")
            .status
            .success()
    }

    pub fn prober(&self, address: &str) -> Prober {
        let any = if address.contains(':') {
            "[::]:0"
        } else {
            "0.0.0.0:0"
        };
        let socket = within(&self.peer, || UdpSocket::bind(any).unwrap());
        socket
            .set_read_timeout(Some(Duration::from_millis(10)))
            .unwrap();
        Prober {
            socket,
            to: SocketAddr::new(ip(address), ECHO),
            sent: 0,
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // Links and filters go with their interfaces.
        for name in [&self.host, &self.peer] {
            let _ = Command::new("ip").args(["netns", "del", name]).output();
        }
        let below = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut dirs: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
        dirs.push(self.dir.clone());
        for dir in dirs.iter().filter(|dir| dir.is_dir()) {
            let _ = Command::new("umount").arg(dir).output();
            let _ = fs::remove_dir(dir);
        }
    }
}

pub fn add_address(namespace: &str, interface: &str, address: &str) {
    let mut words = vec![
        "ip", "-n", namespace, "addr", "add", address, "dev", interface,
    ];
    if address.contains(':') {
        words.push("nodad");
    }
    run(&words);
}

/// The host's side of a point-to-point interface `t0` whose frames have no link header.
pub struct Tun(File);

impl Tun {
    /// In the calling thread's namespace.
    pub fn open() -> Self {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .unwrap_or_else(|error| panic!("/dev/net/tun is needed: {error}"));
        // SAFETY: plain numbers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name[..2].copy_from_slice(&[b't'.cast_signed(), b'0'.cast_signed()]);
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
        // SAFETY: a request of the type that this ioctl takes.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        assert_eq!(result, 0, "making t0: {}", io::Error::last_os_error());
        Self(file)
    }

    /// Sends an ICMP echo request in; whether its answer comes out.
    pub fn pings(&mut self, from: Ipv4Addr, to: Ipv4Addr) -> bool {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0];
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend([8, 0, 0, 0, 0, 1, 0, 1]);
        for (range, place) in [(0..20, 10), (20..28, 22)] {
            let sum: u32 = packet[range]
                .chunks_exact(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            packet[place..place + 2].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        }
        self.0.write_all(&packet).unwrap();
        let mut buffer = [0; 2048];
        let end = Instant::now() + Duration::from_millis(200);
        while Instant::now() < end {
            match self.0.read(&mut buffer) {
                // An echo reply from there.
                Ok(28..) if buffer[9] == 1 && buffer[12..16] == to.octets() && buffer[20] == 0 => {
                    return true;
                }
                Ok(_) => {}
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
        false
    }
}

/// Answers datagrams to an address of the calling thread's namespace.
pub struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub fn start(address: &str) -> Self {
        let socket = UdpSocket::bind(SocketAddr::new(ip(address), ECHO)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 64];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    // Refused by the lease: EPERM.
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Asks an address from the peer's namespace.
pub struct Prober {
    socket: UdpSocket,
    to: SocketAddr,
    sent: u64,
}

impl Prober {
    /// One datagram; whether its answer came within 10 ms.
    pub fn probe(&mut self) -> bool {
        self.sent += 1;
        if self
            .socket
            .send_to(&self.sent.to_ne_bytes(), self.to)
            .is_err()
        {
            return false;
        }
        let mut buffer = [0; 64];
        while let Ok((length, _)) = self.socket.recv_from(&mut buffer) {
            if buffer[..length] == self.sent.to_ne_bytes() {
                return true;
            }
        }
        false
    }

    /// Waits for the first answer.
    pub fn answers(&mut self) {
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end {
            if self.probe() {
                return;
            }
        }
        panic!("{} does not answer", self.to);
    }

    /// No answer for a while, and none that is late.
    pub fn silent(&mut self) {
        for probe in 0..20 {
            assert!(!self.probe(), "{} answered probe {probe}", self.to);
        }
    }
}

/// Pins that are there, but for the kernel's own in every bpffs.
pub fn pins(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["maps.debug", "progs.debug"].contains(&name.as_str()))
        .collect();
    names.sort();
    names
}

/// A deadline that much later.
pub fn after(time: Duration) -> u64 {
    ctdb_ebpf::boot_ns() + u64::try_from(time.as_nanos()).unwrap()
}

/// Opened, attached to `h0`, and both public addresses known there and added.
pub fn ready(net: &Net, mut lease: Lease) -> Lease {
    let h0 = net.ifindex("h0");
    lease
        .set_addresses(&[(ip(PUBLIC), vec![h0]), (ip(PUBLIC6), vec![h0])])
        .unwrap();
    lease.attach(h0).unwrap();
    net.add(PUBLIC);
    net.add(PUBLIC6);
    lease
}
