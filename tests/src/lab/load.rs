//! Load between the client and a node, for the cost of what looks at every packet.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use socket2::SockRef;

use super::{Lab, Netns};

/// Bytes of a small packet's payload.
const SMALL: usize = 64;
/// Port of the sink and of the echo.
const PORT: u16 = 7100;
/// A lost datagram, or a connection that is never let in, must not hang the measurement.
const PATIENCE: Duration = Duration::from_secs(2);

impl Lab {
    /// Bytes per second of one TCP connection from the client to an address on a node.
    pub fn tcp_throughput(&self, node: u32, address: IpAddr, span: Duration) -> Result<f64> {
        let target = SocketAddr::new(address, PORT);
        serving(
            self.node(node).netns(),
            || {
                let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT))?;
                // Linux holds accept() to it, too: a client that never comes is an error.
                SockRef::from(&listener).set_read_timeout(Some(PATIENCE))?;
                Ok(listener)
            },
            |listener| {
                let (mut stream, _) = listener.accept()?;
                let mut data = vec![0; 256 << 10];
                while stream.read(&mut data)? > 0 {}
                Ok(())
            },
            || {
                self.client().enter(|| {
                    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)
                        .with_context(|| format!("connecting to {target}"))?;
                    let data = vec![0; 256 << 10];
                    let start = Instant::now();
                    let mut sent = 0_usize;
                    while start.elapsed() < span {
                        stream.write_all(&data)?;
                        sent += data.len();
                    }
                    Ok(sent as f64 / start.elapsed().as_secs_f64())
                })
            },
        )
    }

    /// Round trips per second of one small UDP packet at a time to an address on a node, both ends
    /// on one CPU.
    pub fn small_packets(&self, node: u32, address: IpAddr, span: Duration) -> Result<f64> {
        let target = SocketAddr::new(address, PORT);
        serving(
            self.node(node).netns(),
            || {
                // Bound to the address, so that the answer comes from it.
                let socket =
                    UdpSocket::bind(target).with_context(|| format!("binding {target}"))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                Ok(socket)
            },
            |socket| {
                one_cpu()?;
                let mut data = [0; 2 * SMALL];
                loop {
                    let (length, from) = socket.recv_from(&mut data)?;
                    if length != SMALL {
                        return Ok(());
                    }
                    socket.send_to(&data[..length], from)?;
                }
            },
            || {
                self.client().enter(|| {
                    one_cpu()?;
                    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                    socket.set_read_timeout(Some(PATIENCE))?;
                    socket.connect(target)?;
                    let mut data = [0; SMALL];
                    let start = Instant::now();
                    let mut trips = 0_u64;
                    while start.elapsed() < span {
                        socket.send(&data)?;
                        socket.recv(&mut data).context("waiting for the echo")?;
                        trips += 1;
                    }
                    let rate = trips as f64 / start.elapsed().as_secs_f64();
                    socket.send(&[0])?;
                    Ok(rate)
                })
            },
        )
    }
}

/// Keeps the calling thread on the first CPU: both ends together, a round trip is work alone, and
/// not the waking of another CPU, which takes now more, now less.
fn one_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(0)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).context("staying on one CPU")
}

/// Opens and serves on a thread of its own inside `space` while `work` goes on here.
fn serving<S: Send>(
    space: &Netns,
    open: impl FnOnce() -> Result<S> + Send,
    serve: impl FnOnce(S) -> Result<()> + Send,
    work: impl FnOnce() -> Result<f64>,
) -> Result<f64> {
    thread::scope(|scope| {
        let (ready, opened) = mpsc::channel();
        let server = scope.spawn(move || {
            space.join()?;
            let open = open()?;
            let _ = ready.send(());
            serve(open)
        });
        // Without a word the server has failed, and says why below.
        let result = match opened.recv() {
            Ok(()) => work(),
            Err(_) => Err(anyhow!("the server of the load did not start")),
        };
        server
            .join()
            .map_err(|_| anyhow!("the server of the load panicked"))??;
        result
    })
}
