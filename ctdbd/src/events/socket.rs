//! The event daemon's socket, for the old `ctdb event` and `ctdb scriptstatus`
//! (`spec/client-protocol.md` 11.3). Root only.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ctdb_core::events::Event;
use ctdb_wire::eventd::{Framed, Reply, Request, Script, framed};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::scripts;
use super::store::Store;

/// Clients at a time; more wait to be accepted.
const MAX_CLIENTS: usize = 64;
/// A client that does not read its answer, or stops within a packet, is closed after this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Largest request; only answers are longer.
const MAX_REQUEST: usize = 64 * 1024;

/// Somebody asks for an event.
pub struct Wish {
    /// Component.
    pub component: String,
    /// What.
    pub event: Event,
    /// Its own limit; zero: none.
    pub limit: Duration,
    /// Scripts behind one that failed run too.
    pub all: bool,
    /// Gets the result code.
    pub answer: oneshot::Sender<i32>,
}

/// Where things are, and who runs events.
#[derive(Clone)]
pub struct Context {
    /// `ETC/events`.
    pub events: PathBuf,
    /// Directory of the shipped components.
    pub shipped: PathBuf,
    /// Results.
    pub store: Store,
    /// To the main loop.
    pub wishes: mpsc::Sender<Wish>,
}

/// Binds the socket; one that a dead daemon left is replaced.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))?;
    Ok(listener)
}

/// Serves clients until it is dropped.
pub async fn serve(listener: UnixListener, context: Context) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        // Never closed, so this does not fail.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let context = context.clone();
                tokio::spawn(async move {
                    if let Err(error) = client(stream, &context).await {
                        tracing::debug!(%error, "a client of the event socket was closed");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the event socket accepts nobody; trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn client(mut stream: UnixStream, context: &Context) -> io::Result<()> {
    // The socket's mode says it already; a descriptor that was passed on does not.
    let peer = stream.peer_cred()?.uid();
    if peer != 0 && peer != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let mut buffer = Vec::new();
    while let Some(length) = packet(&mut stream, &mut buffer).await? {
        let (id, request) = Request::decode(&buffer[..length])
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        buffer.drain(..length);
        let reply = answer(request, context).await.encode(id);
        timeout(PATIENCE, stream.write_all(&reply)).await??;
    }
    Ok(())
}

/// Length of the packet at the front of the buffer, read until it is whole; `None` at the end.
async fn packet(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        match framed(buffer) {
            Framed::Packet(length) => return Ok(Some(length)),
            Framed::Incomplete if buffer.len() < MAX_REQUEST => {}
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        // Between packets a client may take its time.
        let read = if buffer.is_empty() {
            stream.read_buf(buffer).await?
        } else {
            timeout(PATIENCE, stream.read_buf(buffer)).await??
        };
        match (read, buffer.is_empty()) {
            (0, true) => return Ok(None),
            (0, false) => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => {}
        }
    }
}

/// There is no such component.
const ENOENT: i32 = 2;
/// Communication with the main loop has ended.
const EIO: i32 = 5;
/// The event has never run.
const EINVAL: i32 = 22;

async fn answer(request: Request, context: &Context) -> Reply {
    match request {
        Request::Run {
            component,
            event,
            args,
            timeout,
            all,
        } => {
            let (answer, result) = oneshot::channel();
            let wish = Wish {
                component,
                event: Event {
                    name: event,
                    args: args.split_whitespace().map(str::to_owned).collect(),
                },
                limit: Duration::from_secs(timeout.into()),
                all,
                answer,
            };
            if context.wishes.send(wish).await.is_err() {
                return Reply::Run(EIO);
            }
            Reply::Run(result.await.unwrap_or(EIO))
        }
        Request::Status { component, event } => {
            let dir = context.events.join(&component);
            if !scripts::is_component(&component) || !dir.is_dir() {
                return Reply::Status(Err(ENOENT));
            }
            match context.store.last(&component, &event) {
                None => Reply::Status(Err(EINVAL)),
                Some(run) => Reply::Status(Ok((
                    run.result,
                    run.scripts
                        .into_iter()
                        .map(|script| Script {
                            name: script.name,
                            begin: script.begin,
                            end: script.end,
                            result: script.result,
                            output: script.output,
                        })
                        .collect(),
                ))),
            }
        }
        Request::Script {
            component,
            script,
            enable,
        } => {
            let (events, shipped) = (context.events.clone(), context.shipped.clone());
            let done = tokio::task::spawn_blocking(move || {
                scripts::set_enabled(&events, &shipped, &component, &script, enable)
            })
            .await;
            Reply::Script(match done {
                Ok(Ok(())) => 0,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "a script cannot be enabled or disabled");
                    error.errno()
                }
                Err(_) => EIO,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctdb_wire::api::{EventRunView, EventScriptView};

    async fn ask(path: &Path, request: &[u8]) -> Vec<u8> {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut buffer = Vec::new();
        loop {
            match framed(&buffer) {
                Framed::Packet(length) => return buffer[..length].to_vec(),
                _ => assert_ne!(stream.read_buf(&mut buffer).await.unwrap(), 0, "closed"),
            }
        }
    }

    fn status(component: &str, event: &str) -> Vec<u8> {
        Request::Status {
            component: component.into(),
            event: event.into(),
        }
        .encode(9)
    }

    #[tokio::test]
    async fn it_answers_as_the_event_daemon() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("events/legacy")).unwrap();
        let path = dir.path().join("eventd.socket");
        std::fs::write(&path, "left by a dead daemon").unwrap();
        let (wishes, mut wished) = mpsc::channel(1);
        let context = Context {
            events: dir.path().join("events"),
            shipped: dir.path().join("share"),
            store: Store::default(),
            wishes,
        };
        let store = context.store.clone();
        let server = tokio::spawn(serve(bind(&path).unwrap(), context));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let never = Reply::Status(Err(22)).encode(9);
        assert_eq!(ask(&path, &status("legacy", "monitor")).await, never);
        let nowhere = Reply::Status(Err(2)).encode(9);
        assert_eq!(ask(&path, &status("..", "monitor")).await, nowhere);
        store.add(EventRunView {
            component: "legacy".into(),
            event: "monitor".into(),
            result: 3,
            scripts: vec![EventScriptView {
                name: "50.samba".into(),
                begin: 10.5,
                end: 11.25,
                result: 3,
                output: "no\n".into(),
            }],
            ..EventRunView::default()
        });
        let bytes = ask(&path, &status("legacy", "monitor")).await;
        let (9, Reply::Status(Ok((3, scripts)))) = Reply::decode(&bytes).unwrap() else {
            panic!("{bytes:?}");
        };
        assert_eq!(
            (scripts[0].begin, scripts[0].output.as_str()),
            (10.5, "no\n")
        );
        let run = Request::Run {
            component: "legacy".into(),
            event: "takeip".into(),
            args: "eth0 10.0.0.1 24".into(),
            timeout: 7,
            all: true,
        };
        let run = run.encode(1);
        let (bytes, ()) = tokio::join!(ask(&path, &run), async {
            let wish = wished.recv().await.unwrap();
            assert_eq!(wish.event.args, ["eth0", "10.0.0.1", "24"]);
            assert_eq!((wish.limit, wish.all), (Duration::from_secs(7), true));
            wish.answer.send(110).unwrap();
        });
        assert_eq!(bytes, Reply::Run(110).encode(1));
        // What is no packet is closed, and others are served.
        let mut stranger = UnixStream::connect(&path).await.unwrap();
        stranger.write_all(&u32::MAX.to_ne_bytes()).await.unwrap();
        assert_eq!(stranger.read(&mut [0; 8]).await.unwrap_or(0), 0);
        assert_eq!(ask(&path, &status("..", "monitor")).await, nowhere);
        server.abort();
    }
}
