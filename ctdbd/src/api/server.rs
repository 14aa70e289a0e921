//! The sockets. Every connection carries one request and is bounded in time, memory and number,
//! so that a client that never finishes its request, or never reads the answer, costs its own
//! connection and nothing else.
//!
//! At each bound:
//! * connections per socket ([`MAX_CONNECTIONS`]): the oldest one that is at least
//!   [`RECLAIM_AGE`] old and does not wait for the main loop is closed; while there is none, new
//!   ones wait in the listen queue;
//! * requests in the main loop per socket ([`MAX_WAITING`]) and its queue: 503 `busy`;
//! * requests about databases per socket ([`MAX_DATABASE`]), each on a thread of its own: 503 `busy`;
//! * bytes of answers not yet read ([`MAX_UNREAD`]): 503 `busy`;
//! * head: 431 by hyper; body: 413; time for the request, the main loop, the answer
//!   ([`REQUEST_TIME`], [`ACTION_TIME`], [`WRITE_TIME`]): 504 while waiting for the main loop,
//!   otherwise the connection is closed.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ctdb_wire::api::databases::DatabaseAsk;
use ctdb_wire::api::{Action, ApiError, MAX_BODY, Snapshot};
use ctdb_wire::ids::Pnn;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, warn};

use super::metrics;
use super::render::render;
use super::routes::{Parsed, Wanted, action_of, methods_of};
use super::{ApiConfig, ApiStartError, Command};

/// Connections per socket.
pub const MAX_CONNECTIONS: usize = 64;
/// Requests per socket that wait for the main loop.
pub const MAX_WAITING: usize = 32;
/// Requests per socket about databases that are under way; also those whose client has gone.
pub const MAX_DATABASE: usize = 8;
/// Bytes of answers per socket that clients have not read yet.
pub const MAX_UNREAD: usize = 64 << 20;
/// Longest request head, in bytes.
pub const MAX_HEAD: usize = 16 << 10;
/// Most headers of a request.
const MAX_HEADERS: usize = 32;
/// Most time for a client to send its request.
pub const REQUEST_TIME: Duration = Duration::from_secs(5);
/// Most time for the main loop to answer: `-T` of the old tool is 120 s, and it is the tool's
/// time that is to end first.
pub const ACTION_TIME: Duration = Duration::from_secs(150);
/// Most time for a client to take its answer.
pub const WRITE_TIME: Duration = Duration::from_secs(10);
/// Before that age a connection is not closed in favour of a new one.
pub const RECLAIM_AGE: Duration = Duration::from_secs(1);
/// Snapshots with more addresses than this are rendered on the pool for blocking work.
const RENDER_HERE: usize = 256;
/// Connections that the kernel keeps while all places are taken.
const BACKLOG: i32 = 128;

/// The bounds in time, shorter in tests.
#[derive(Clone, Copy, Debug)]
struct Times {
    request: Duration,
    action: Duration,
    write: Duration,
    reclaim: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            request: REQUEST_TIME,
            action: ACTION_TIME,
            write: WRITE_TIME,
            reclaim: RECLAIM_AGE,
        }
    }
}

/// Both sockets. Dropping it closes them, and every connection, at once.
#[derive(Debug)]
pub struct ApiHandle {
    stop: watch::Sender<Option<Instant>>,
    listeners: Vec<JoinHandle<()>>,
}

impl ApiHandle {
    /// Accepts no more, removes the sockets, and lets requests under way finish for up to
    /// `grace`.
    pub async fn shutdown(mut self, grace: Duration) {
        let end = Instant::now() + grace;
        self.stop.send_replace(Some(end));
        for listener in std::mem::take(&mut self.listeners) {
            // A listener ends by itself at `end`; a panic in it has been logged.
            let _ = listener.await;
        }
    }
}

impl Drop for ApiHandle {
    fn drop(&mut self) {
        for listener in &self.listeners {
            listener.abort();
        }
    }
}

/// A socket file that is removed with its owner, unless somebody has put another there.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    inode: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.inode);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "API socket stays behind");
        }
    }
}

/// What a request may do on a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Full,
    ReadOnly,
}

/// What the connections of one socket share.
struct Shared {
    access: Access,
    snapshot: watch::Receiver<Arc<Snapshot>>,
    commands: mpsc::Sender<Command>,
    waiting: Arc<Semaphore>,
    databases: Arc<Semaphore>,
    client_socket: PathBuf,
    unread: Arc<Semaphore>,
    times: Times,
}

/// See [`super::start`].
pub(super) fn start(
    config: &ApiConfig,
    snapshot: &watch::Receiver<Arc<Snapshot>>,
    commands: &mpsc::Sender<Command>,
) -> Result<ApiHandle, ApiStartError> {
    start_with(config, snapshot, commands, Times::default())
}

fn start_with(
    config: &ApiConfig,
    snapshot: &watch::Receiver<Arc<Snapshot>>,
    commands: &mpsc::Sender<Command>,
    times: Times,
) -> Result<ApiHandle, ApiStartError> {
    let full = bind(&config.socket, 0o600, None)?;
    let read_only = bind(&config.read_socket, 0o660, config.group.as_deref())?;
    let (stop, stopped) = watch::channel(None);
    let listeners = [(full, Access::Full), (read_only, Access::ReadOnly)]
        .into_iter()
        .map(|((listener, file), access)| {
            let shared = Shared {
                access,
                snapshot: snapshot.clone(),
                commands: commands.clone(),
                waiting: Arc::new(Semaphore::new(MAX_WAITING)),
                databases: Arc::new(Semaphore::new(MAX_DATABASE)),
                client_socket: config.socket.with_file_name("ctdbd.socket"),
                unread: Arc::new(Semaphore::new(MAX_UNREAD)),
                times,
            };
            tokio::spawn(listen(listener, file, Arc::new(shared), stopped.clone()))
        })
        .collect();
    Ok(ApiHandle { stop, listeners })
}

/// Opens a socket whose mode and group are right before the first client can connect.
fn bind(
    path: &Path,
    mode: u32,
    group: Option<&str>,
) -> Result<(UnixListener, SocketFile), ApiStartError> {
    let io = |action| {
        move |source: io::Error| ApiStartError::Io {
            action,
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
    if let Some(name) = group {
        let found = nix::unistd::Group::from_name(name)
            .map_err(io::Error::from)
            .map_err(io("looking up the group of"))?
            .ok_or_else(|| ApiStartError::NoGroup {
                group: name.to_owned(),
                path: path.to_owned(),
            })?;
        std::os::unix::fs::chown(path, None, Some(found.gid.as_raw()))
            .map_err(io("changing the group of"))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
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
fn remove_stale(path: &Path) -> Result<(), ApiStartError> {
    let io = |action| {
        move |source: io::Error| ApiStartError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io("examining")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ApiStartError::NotASocket {
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
        _ => Err(ApiStartError::InUse {
            path: path.to_owned(),
        }),
    }
}

/// Where Prometheus asks; text, so that it stands beside the table of routes.
const METRICS: &str = "/metrics";

/// One connection, as its listener sees it.
struct Place {
    since: Instant,
    /// It waits for the main loop.
    waiting: Arc<AtomicBool>,
    task: AbortHandle,
}

async fn listen(
    listener: UnixListener,
    file: SocketFile,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<Option<Instant>>,
) {
    let mut tasks = JoinSet::new();
    let mut places: Vec<Place> = Vec::with_capacity(MAX_CONNECTIONS);
    let end = loop {
        while tasks.try_join_next().is_some() {}
        places.retain(|place| !place.task.is_finished());
        if places.len() >= MAX_CONNECTIONS {
            let reclaim = places.iter().position(|place| {
                place.since.elapsed() >= shared.times.reclaim
                    && !place.waiting.load(Ordering::Relaxed)
            });
            let Some(index) = reclaim else {
                tokio::select! {
                    _ = tasks.join_next() => continue,
                    () = sleep(shared.times.reclaim / 10) => continue,
                    end = stop_of(&mut stopped) => break end,
                }
            };
            places.remove(index).task.abort();
        }
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors or memory: give others time to free some.
                    warn!(%error, "API connection not accepted");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
            end = stop_of(&mut stopped) => break end,
        };
        let waiting = Arc::new(AtomicBool::new(false));
        let task = tasks.spawn(serve(stream, Arc::clone(&shared), Arc::clone(&waiting)));
        places.push(Place {
            since: Instant::now(),
            waiting,
            task,
        });
    };
    drop(listener);
    drop(file);
    // What is not finished by then ends with the set.
    let _ = timeout_at(end, async { while tasks.join_next().await.is_some() {} }).await;
}

/// Until when requests may finish, once the handle says so.
async fn stop_of(stopped: &mut watch::Receiver<Option<Instant>>) -> Instant {
    match stopped.wait_for(Option::is_some).await {
        Ok(end) => end.unwrap_or_else(Instant::now),
        Err(_) => Instant::now(),
    }
}

/// One connection, to its end.
async fn serve(stream: UnixStream, shared: Arc<Shared>, waiting: Arc<AtomicBool>) {
    let times = shared.times;
    let (deadline, mut deadlines) = watch::channel(Instant::now() + times.request);
    let service = service_fn(move |request| {
        let (shared, waiting, deadline) =
            (Arc::clone(&shared), Arc::clone(&waiting), deadline.clone());
        async move {
            let response = answer(request, &shared, &waiting, &deadline).await;
            waiting.store(false, Ordering::Relaxed);
            deadline.send_replace(Instant::now() + times.write);
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        // One request each: no idle connections, and nothing to tell apart.
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .timer(TokioTimer::new())
        .header_read_timeout(times.request)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    loop {
        let until = *deadlines.borrow_and_update();
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    debug!(%error, "API connection ended early");
                }
                return;
            }
            () = sleep_until(until) => {
                debug!("API client too slow, connection closed");
                return;
            }
            Ok(()) = deadlines.changed() => {}
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: &Shared,
    waiting: &AtomicBool,
    deadline: &watch::Sender<Instant>,
) -> Response<Full<Bytes>> {
    let allowed = match shared.access {
        Access::Full => methods_of(request.uri().path()).join(", "),
        Access::ReadOnly => "GET".to_owned(),
    };
    if request.method() == Method::GET && request.uri().path() == METRICS {
        let text = metrics::render(&shared.snapshot.borrow());
        let mut response = response(StatusCode::OK, Bytes::from(text));
        let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
        response.headers_mut().insert(CONTENT_TYPE, kind);
        return response;
    }
    let result = match reply(request, shared, waiting, deadline).await {
        Ok(value) => encode(StatusCode::OK, &value, shared),
        Err(error) => Err(error),
    };
    result.unwrap_or_else(|error| {
        let status =
            StatusCode::from_u16(error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = serde_json::to_vec(&error).unwrap_or_default();
        let mut response = response(status, Bytes::from(text));
        if status == StatusCode::METHOD_NOT_ALLOWED
            && let Ok(allowed) = HeaderValue::from_str(&allowed)
        {
            response.headers_mut().insert(ALLOW, allowed);
        }
        response
    })
}

async fn reply(
    request: Request<Incoming>,
    shared: &Shared,
    waiting: &AtomicBool,
    deadline: &watch::Sender<Instant>,
) -> Result<Value, ApiError> {
    if shared.access == Access::ReadOnly && request.method() != Method::GET {
        let text = "this socket only reads; changes go to api.sock, as root";
        return Err(ApiError::new(405, "read_only", text));
    }
    let (head, body) = request.into_parts();
    let body = collect(body).await?;
    let Parsed { wanted, node } = action_of(
        head.method.as_str(),
        head.uri.path(),
        head.uri.query(),
        &body,
    )?;
    let snapshot = Arc::clone(&shared.snapshot.borrow());
    let other = node.filter(|node| node.get() != snapshot.node);
    match (wanted, other) {
        (Wanted::Read(read), None) if snapshot.addresses.len() > RENDER_HERE => {
            tokio::task::spawn_blocking(move || render(&snapshot, &read))
                .await
                .unwrap_or_else(|_| Err(internal("rendering the answer")))
        }
        (Wanted::Read(read), None) => {
            let mut value = render(&snapshot, &read)?;
            if read == super::Read::Daemon {
                set_now(&mut value);
            }
            Ok(value)
        }
        (Wanted::Read(read), Some(_)) => {
            let action = Action::Read { path: read.path() };
            command(action, other, shared, waiting, deadline).await
        }
        (Wanted::Action(action), _) => command(action, other, shared, waiting, deadline).await,
        (Wanted::Database(ask), _) => database(ask, shared, waiting, deadline).await,
    }
}

/// The snapshot's `now` is when it was taken; a short view can have the moment itself.
fn set_now(value: &mut Value) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    if let (Ok(now), Some(field)) = (now, value.get_mut("now")) {
        *field = now.as_secs_f64().into();
    }
}

async fn collect(body: Incoming) -> Result<Bytes, ApiError> {
    let too_large = || {
        let text = format!("the body is longer than {MAX_BODY} bytes");
        ApiError::new(413, "too_large", text)
    };
    if body.size_hint().lower() > MAX_BODY as u64 {
        return Err(too_large());
    }
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => {
            let text = format!("the body did not arrive: {error}");
            Err(ApiError::new(400, "bad_request", text))
        }
    }
}

/// Has the main loop do something.
async fn command(
    action: Action,
    node: Option<Pnn>,
    shared: &Shared,
    waiting: &AtomicBool,
    deadline: &watch::Sender<Instant>,
) -> Result<Value, ApiError> {
    let _place = shared.waiting.try_acquire().map_err(|_| {
        busy(format!(
            "{MAX_WAITING} requests wait for the daemon's main loop; try again later"
        ))
    })?;
    let (reply, answer) = oneshot::channel();
    shared
        .commands
        .try_send(Command {
            action,
            node,
            reply,
        })
        .map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                busy("the daemon's main loop has too much to do; try again later")
            }
            mpsc::error::TrySendError::Closed(_) => stopping(),
        })?;
    waiting.store(true, Ordering::Relaxed);
    let limit = shared.times.action;
    // The connection's own bound stands behind this one.
    deadline.send_replace(Instant::now() + limit + shared.times.write);
    match timeout(limit, answer).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(stopping()),
        Err(_) => {
            let text = format!(
                "no answer within {} s; `ctdb status` and the log tell what is under way",
                limit.as_secs()
            );
            Err(ApiError::new(504, "timed_out", text))
        }
    }
}

/// Asks the databases as a client, on a thread that may wait for records, and that nothing waits for
/// when the daemon ends.
async fn database(
    ask: DatabaseAsk,
    shared: &Shared,
    waiting: &AtomicBool,
    deadline: &watch::Sender<Instant>,
) -> Result<Value, ApiError> {
    let place = Arc::clone(&shared.databases)
        .try_acquire_owned()
        .map_err(|_| {
            busy(format!(
                "{MAX_DATABASE} requests about databases are under way; try again later"
            ))
        })?;
    let limit = shared.times.action;
    let socket = shared.client_socket.clone();
    let (reply, answer) = oneshot::channel();
    std::thread::Builder::new()
        .name("api-database".to_owned())
        .spawn(move || {
            let until = std::time::Instant::now() + limit;
            let result = super::databases::run(&socket, &ask, until);
            drop(place);
            // The client may have gone.
            let _ = reply.send(result);
        })
        .map_err(|_| busy("no thread can be started; try again later"))?;
    waiting.store(true, Ordering::Relaxed);
    // The connection's own bound stands behind that of the request.
    deadline.send_replace(Instant::now() + limit + 2 * shared.times.write);
    match answer.await {
        Ok(result) => result,
        Err(_) => Err(internal("asking the database")),
    }
}

fn busy(message: impl Into<String>) -> ApiError {
    ApiError::new(503, "busy", message)
}

fn stopping() -> ApiError {
    ApiError::new(
        503,
        "stopping",
        "the daemon is about to end; start it again for this",
    )
}

fn internal(what: &str) -> ApiError {
    ApiError::new(
        500,
        "internal",
        format!("{what} failed; the daemon's log says more"),
    )
}

/// Bytes of an answer that count against [`MAX_UNREAD`] until they are gone.
struct Unread {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn encode(
    status: StatusCode,
    value: &Value,
    shared: &Shared,
) -> Result<Response<Full<Bytes>>, ApiError> {
    let bytes = serde_json::to_vec(value).map_err(|_| internal("writing the answer"))?;
    let permit = u32::try_from(bytes.len())
        .ok()
        .and_then(|length| {
            Arc::clone(&shared.unread)
                .try_acquire_many_owned(length)
                .ok()
        })
        .ok_or_else(|| busy("too many answers are waiting to be read; try again later"))?;
    Ok(response(
        status,
        Bytes::from_owner(Unread {
            bytes,
            _permit: permit,
        }),
    ))
}

fn response(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests;
