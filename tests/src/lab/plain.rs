//! The plain TCP service: says which node it is on, then echoes.

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Socket, Type};

/// Its port in every lab.
pub const PORT: u16 = 7000;

/// Key of the listener among the polled sockets.
const LISTENER: u64 = u64::MAX;

/// As many may wait as the kernel allows (`net.core.somaxconn`).
fn listener(listen: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into())?;
    socket.listen(i32::from(u16::MAX))?;
    Ok(socket.into())
}

/// Serves for ever, all connections in one thread. At the bound of open files new connections
/// wait in the backlog.
pub fn serve(node: u32, listen: SocketAddr) -> Result<()> {
    let listener = listener(listen).with_context(|| format!("listening on {listen}"))?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let greeting = format!("node {node}\n");
    let mut clients: HashMap<u64, TcpStream> = HashMap::new();
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(n) => n,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(e) => return Err(e).context("waiting for connections"),
        };
        for event in &events[..count] {
            if event.data() == LISTENER {
                while let Ok((mut stream, _)) = listener.accept() {
                    let key = u64::try_from(stream.as_raw_fd()).unwrap_or(0);
                    if stream.set_nonblocking(true).is_ok()
                        && stream.write_all(greeting.as_bytes()).is_ok()
                        && epoll
                            .add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, key))
                            .is_ok()
                    {
                        clients.insert(key, stream);
                    }
                }
            } else if let Some(stream) = clients.get_mut(&event.data())
                && !echo(stream)
                && let Some(stream) = clients.remove(&event.data())
            {
                let _ = epoll.delete(&stream);
            }
        }
    }
}

/// Sends back what came; false when the connection is over, or its peer does not read.
fn echo(stream: &mut TcpStream) -> bool {
    let mut data = [0_u8; 4096];
    loop {
        match stream.read(&mut data) {
            Ok(0) => return false,
            Ok(n) => {
                if stream.write_all(&data[..n]).is_err() {
                    return false;
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => return true,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}
