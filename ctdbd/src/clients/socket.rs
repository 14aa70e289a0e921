//! The Unix socket and the task of each connection.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ctdb_wire::client::packet::{Framed, framed};
use ctdb_wire::ids::NodeSet;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Clients;
use super::stream::{READ, Stream};
use crate::bell::Bell;
use crate::messaging::registry::ClientId;

/// Connections that are served; more wait in the listen queue.
pub const MAX_CLIENTS: usize = 16_384;
/// Bytes of packets that have not come whole, of all clients together.
pub const MAX_UNFINISHED: usize = 2 << 30;
/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 100;
/// Longest pause of a client that sends to a node which does not take its frames.
const CONGESTED: Duration = Duration::from_secs(5);

/// Why the client socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Somebody answers there.
    #[error("another daemon answers on {path}; stop it first with `ctdb shutdown`")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("{path} is in the way of the client socket and is not a socket; move it away")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{doing} the client socket {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Removes the socket with the room, unless somebody has put another there.
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "client socket stays behind");
        }
    }
}

/// Counts what has come of packets that are not whole.
#[derive(Default)]
struct Unfinished(AtomicUsize);

pub(super) fn start(clients: &Clients, path: &Path) -> Result<(), StartError> {
    let (listener, file) = bind(path)?;
    tokio::spawn(accept(clients.clone(), listener, file));
    Ok(())
}

fn bind(path: &Path) -> Result<(UnixListener, SocketFile), StartError> {
    let io = |doing| {
        move |source: io::Error| StartError::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    };
    remove_stale(path)?;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)
        .map_err(io("opening"))?;
    let address = socket2::SockAddr::unix(path).map_err(io("naming"))?;
    socket.bind(&address).map_err(io("binding"))?;
    let metadata = fs::symlink_metadata(path).map_err(io("examining"))?;
    // From here on every error removes the file again.
    let file = SocketFile {
        path: path.to_owned(),
        inode: (metadata.dev(), metadata.ino()),
    };
    // Nobody can connect before listen(), so the umask opens no window.
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(io("changing the mode of"))?;
    socket.listen(BACKLOG).map_err(io("listening on"))?;
    socket.set_nonblocking(true).map_err(io("preparing"))?;
    let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(
        std::os::fd::OwnedFd::from(socket),
    ))
    .map_err(io("registering"))?;
    Ok((listener, file))
}

/// Removes the socket of a daemon that has ended without doing so.
fn remove_stale(path: &Path) -> Result<(), StartError> {
    let io = |doing| {
        move |source: io::Error| StartError::Io {
            doing,
            path: path.to_owned(),
            source,
        }
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("examining")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(StartError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    // Not blocking: a full listen queue also means that somebody is there.
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)
        .map_err(io("opening"))?;
    socket.set_nonblocking(true).map_err(io("preparing"))?;
    let address = socket2::SockAddr::unix(path).map_err(io("naming"))?;
    match socket.connect(&address) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io("removing the stale"))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(StartError::InUse {
            path: path.to_owned(),
        }),
    }
}

async fn accept(clients: Clients, listener: UnixListener, file: SocketFile) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let unfinished = Arc::new(Unfinished::default());
    let mut ended = clients.shared.ended.subscribe();
    let serve = async {
        loop {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    admit(&clients, stream, place, &unfinished);
                }
                Err(error) => {
                    // Out of descriptors, mostly: those that are there go on.
                    tracing::warn!(%error, "a client is not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    };
    tokio::select! {
        () = serve => {}
        _ = ended.wait_for(|ended| *ended) => {}
    }
    drop(file);
}

/// Root alone: who writes here owns the cluster.
fn admit(
    clients: &Clients,
    stream: UnixStream,
    place: OwnedSemaphorePermit,
    unfinished: &Arc<Unfinished>,
) {
    let credentials = match stream.peer_cred() {
        Ok(credentials) => credentials,
        Err(error) => {
            tracing::warn!(%error, "a client without credentials is refused");
            return;
        }
    };
    let own = nix::unistd::geteuid().as_raw();
    if credentials.uid() != 0 && credentials.uid() != own {
        tracing::warn!(
            uid = credentials.uid(),
            pid = credentials.pid(),
            "a client that is not root is refused"
        );
        return;
    }
    let pid = credentials.pid().unwrap_or(0);
    let ((id, wake), _) = clients.with(|hub| hub.connected(pid));
    let stream = match Stream::new(stream) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::warn!(%error, pid, "a client is not accepted");
            clients.gone(id);
            return;
        }
    };
    let connection = Connection {
        clients: clients.clone(),
        id,
        stream,
        wake,
        partial: Vec::new(),
        counted: 0,
        unfinished: Arc::clone(unfinished),
        sent_to: NodeSet::EMPTY,
        _place: place,
    };
    tokio::spawn(connection.run());
}

struct Connection {
    clients: Clients,
    id: ClientId,
    stream: Stream,
    wake: Arc<Bell>,
    /// Packets that have not come whole, or not been looked at.
    partial: Vec<u8>,
    /// Of its bytes, those in the common count.
    counted: usize,
    unfinished: Arc<Unfinished>,
    /// Nodes that its last packets went to.
    sent_to: NodeSet,
    _place: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.unfinished.0.fetch_sub(self.counted, Ordering::Relaxed);
        self.clients.gone(self.id);
    }
}

/// The connection is over.
struct Over;

impl Connection {
    async fn run(mut self) {
        loop {
            let alive = if self.is_congested() {
                self.wait_for_room().await
            } else {
                poll_fn(|cx| self.poll(cx)).await
            };
            if alive.is_err() {
                return;
            }
        }
    }

    fn is_congested(&self) -> bool {
        !self.sent_to.is_empty() && self.clients.is_congested(self.sent_to)
    }

    /// Moves packets both ways until nodes that they go to take no more, or the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Over>> {
        self.poll_write(cx)?;
        loop {
            let room = self.room_for();
            match ready!(self.stream.poll_read(cx, &mut self.partial, room)) {
                Ok(1..) => self.take_in()?,
                Ok(0) | Err(_) => return Poll::Ready(Err(Over)),
            }
            // Whoever watches for room is registered.
            if self.stream.is_blocked() {
                self.poll_write(cx)?;
            }
            if self.is_congested() {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Writes when there is something to write and room for it; registers for both.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Result<(), Over> {
        loop {
            let rung = self.wake.poll(cx).is_ready();
            let mut room = false;
            if let Poll::Ready(ready) = self.stream.poll_room(cx) {
                ready.map_err(|_| Over)?;
                self.stream.unblock();
                room = true;
            }
            if !rung && !room {
                return Ok(());
            }
            if self.stream.is_blocked() {
                if self.clients.lock().hub.is_closing(self.id) {
                    return Err(Over);
                }
            } else {
                let (output, _) = self.clients.with(|hub| hub.take_output(self.id));
                self.write(&output.ok_or(Over)?)?;
            }
        }
    }

    /// Reads nothing until nodes that packets went to take them again, or for [`CONGESTED`].
    async fn wait_for_room(&mut self) -> Result<(), Over> {
        let clients = self.clients.clone();
        // Registered before it is looked at, so that no room is missed.
        let room = clients.shared.room.notified();
        if !self.is_congested() {
            return Ok(());
        }
        let write = poll_fn(|cx| match self.poll_write(cx) {
            Ok(()) => Poll::<Over>::Pending,
            Err(over) => Poll::Ready(over),
        });
        tokio::select! {
            over = write => return Err(over),
            () = room => {}
            () = tokio::time::sleep(CONGESTED) => self.sent_to = NodeSet::EMPTY,
        }
        Ok(())
    }

    /// Room for bytes that may come is taken as they come, at most doubling.
    fn room_for(&self) -> usize {
        let held = self.partial.len();
        let wanted = match framed(&self.partial) {
            Framed::Incomplete(length) => length - held,
            _ => 0,
        };
        wanted.clamp(READ, READ.max(held))
    }

    /// Takes in all packets that have come whole, and writes what is answered at once.
    fn take_in(&mut self) -> Result<(), Over> {
        let mut at = 0;
        let mut broken = false;
        let (id, bytes) = (self.id, &self.partial);
        let blocked = self.stream.is_blocked();
        let (output, sent_to) = self.clients.with(|hub| {
            hub.serve(id, |hub| {
                loop {
                    match framed(&bytes[at..]) {
                        Framed::Packet(length) => {
                            hub.packet(id, &bytes[at..at + length]);
                            at += length;
                        }
                        Framed::Incomplete(_) => return,
                        Framed::Broken => {
                            broken = true;
                            return;
                        }
                    }
                }
            });
            if blocked {
                (!hub.is_closing(id)).then(Vec::new)
            } else {
                hub.take_output(id)
            }
        });
        self.sent_to = sent_to;
        if broken {
            return Err(Over);
        }
        self.partial.drain(..at);
        if self.partial.is_empty() {
            // A long packet's room is not kept.
            self.partial.shrink_to(READ);
        }
        let held = self.partial.len();
        if held != self.counted {
            let all = &self.unfinished.0;
            let before = all.fetch_add(held, Ordering::Relaxed);
            all.fetch_sub(self.counted, Ordering::Relaxed);
            self.counted = held;
            if before + held > MAX_UNFINISHED {
                tracing::warn!("clients send too many long packets at once; one is disconnected");
                return Err(Over);
            }
        }
        self.write(&output.ok_or(Over)?)
    }

    /// Writes, in one call if the socket takes it; what it does not take goes back to the hub.
    fn write(&mut self, output: &[u8]) -> Result<(), Over> {
        let mut at = 0;
        while at < output.len() {
            match self.stream.write(&output[at..]) {
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let rest = output[at..].to_vec();
                    self.clients.with(|hub| hub.unwritten(self.id, rest));
                    return Ok(());
                }
                Err(_) => return Err(Over),
            }
        }
        Ok(())
    }
}
