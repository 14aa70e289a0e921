//! A server and a client on one wire, without any daemon: what a room needs to be measured alone.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, SockRef, Socket, Type};

use super::Netns;
use super::netns::{destroy, lab_dir, lab_name};

/// The server's public addresses, on its `srv0` from the start.
pub const PUBLIC: [&str; 2] = ["10.77.0.10", "fd77::10"];
/// Another address of the server's, which is not public.
pub const PRIVATE: &str = "10.77.0.1";
/// The client's addresses, on its `cli0`.
pub const CLIENT: [&str; 2] = ["10.77.0.2", "fd77::2"];
/// Connections that one child holds: two open files each, of 20,000 that a process may have.
const CHILD: usize = 8_000;
/// The first child's port; the others' follow.
const PORT: u16 = 4000;
const PATIENCE: Duration = Duration::from_secs(30);

/// Both namespaces and a directory; all goes when it is dropped.
#[derive(Debug)]
pub struct Stage {
    name: String,
    /// With `srv0`.
    pub server: Netns,
    /// With `cli0`.
    pub client: Netns,
}

impl Stage {
    /// Makes it.
    pub fn new() -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Apart from the numbers of the labs of this process.
        let name = lab_name(10_000 + COUNT.fetch_add(1, Ordering::Relaxed));
        let stage = Self {
            server: Netns::new(format!("{name}-server")),
            client: Netns::new(format!("{name}-client")),
            name,
        };
        stage.server.create()?;
        stage.client.create()?;
        let peer = stage.client.name();
        stage.server.ip(&format!(
            "link add srv0 type veth peer name cli0 netns {peer}"
        ))?;
        for (net, interface, addresses) in [
            (&stage.server, "srv0", &[PUBLIC[0], PUBLIC[1], PRIVATE][..]),
            (&stage.client, "cli0", &CLIENT[..]),
        ] {
            net.ip("link set lo up")?;
            for address in addresses {
                let rest = if address.contains(':') {
                    "/64 nodad"
                } else {
                    "/24"
                };
                net.ip(&format!("addr add {address}{rest} dev {interface}"))?;
            }
            net.ip(&format!("link set {interface} up"))?;
        }
        // Ports enough for a crowd.
        stage
            .client
            .sysctl(&[("net/ipv4/ip_local_port_range", "1024 65535")])?;
        std::fs::create_dir_all(lab_dir(&stage.name))?;
        stage.wait_for_wire()?;
        Ok(stage)
    }

    fn wait_for_wire(&self) -> Result<()> {
        let listener = self.listen(PORT - 1)?;
        let end = Instant::now() + PATIENCE;
        for address in PUBLIC {
            let to = SocketAddr::new(address.parse()?, PORT - 1);
            let answers = || {
                self.client.enter(|| {
                    Ok(TcpStream::connect_timeout(&to, Duration::from_millis(200)).is_ok())
                })
            };
            while !answers()? {
                ensure!(Instant::now() < end, "{to} does not answer");
            }
        }
        drop(listener);
        Ok(())
    }

    /// Where pins may be.
    pub fn bpf_dir(&self) -> PathBuf {
        lab_dir(&self.name).join("bpf")
    }

    /// A listener of the server's for both families.
    pub fn listen(&self, port: u16) -> Result<TcpListener> {
        self.server.enter(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::new("::".parse()?, port).into())?;
            socket.listen(4096)?;
            Ok(socket.into())
        })
    }

    /// Opens `count` idle connections from the client to a public address, the IPv4 and the IPv6
    /// one in turn, held by children.
    pub fn crowd(&self, count: usize) -> Result<Crowd> {
        let mut crowd = Crowd::default();
        let mut left = count;
        while left > 0 {
            let part = left.min(CHILD);
            left -= part;
            let index = crowd.children.len() as u16;
            let mut command = Command::new(super::helper_binary()?);
            command
                .args(["crowd", "--client"])
                .arg(self.client.name())
                .args(["--port", &(PORT + index).to_string()])
                .args(["--count", &part.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            let mut child = self.server.spawn(&mut command)?;
            let output = child.stdout.take().context("no standard output")?;
            crowd.children.push(Member {
                input: child.stdin.take(),
                child,
            });
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line)?;
            if line.trim() != "ready" {
                bail!("a child could not open {part} connections: {line:?}");
            }
        }
        Ok(crowd)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        destroy(&self.name);
    }
}

/// Idle connections, both ends of them in children of this process.
#[derive(Debug, Default)]
pub struct Crowd {
    children: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    child: Child,
    /// Its end ends the child.
    input: Option<ChildStdin>,
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for member in &mut self.children {
            drop(member.input.take());
        }
        for member in &mut self.children {
            let _ = member.child.wait();
        }
    }
}

/// What such a child does: opens the connections, says so, and waits for the end of its input.
pub fn hold(client: &str, port: u16, count: usize) -> Result<()> {
    let any = SocketAddr::new("::".parse()?, port);
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&any.into())?;
    socket.listen(4096)?;
    let listener: TcpListener = socket.into();
    let client = Netns::new(client);
    let opening = thread::spawn(move || {
        client.enter(|| {
            let mut clients = Vec::with_capacity(count);
            for number in 0..count {
                let to = SocketAddr::new(PUBLIC[number % 2].parse()?, port);
                let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
                // Ends without a trace.
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                clients.push(stream);
            }
            Ok(clients)
        })
    });
    let mut servers = BTreeMap::new();
    SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
    while servers.len() < count {
        let (server, from) = listener.accept()?;
        SockRef::from(&server).set_linger(Some(Duration::ZERO))?;
        servers.insert(from, server);
    }
    let clients = opening
        .join()
        .map_err(|_| anyhow::anyhow!("the opening thread panicked"))??;
    println!("ready");
    std::io::stdout().flush()?;
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    drop((clients, servers));
    Ok(())
}
