//! One HTTP exchange with the daemon over its Unix socket: blocking, one connection each, since
//! a command is over in a millisecond or two and needs no runtime for that.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ctdb_wire::api::ApiError;
use serde::de::DeserializeOwned;
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};

use super::failure::{Exit, Failure};

/// Longest answer, in bytes: a status of 8192 addresses on 64 nodes is shorter.
const MAX_ANSWER: u64 = 256 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no daemon answers on {path}: {source}; start it with `systemctl start ctdb`, or see its \
         log for why it does not run"
    )]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Not for this user.
    #[error("{path} is not open to this user; {hint}")]
    NotPermitted {
        /// The socket.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// The time for one request is over.
    #[error(
        "no answer within {} s; try again, with more time by -t, or see the daemon's log",
        .0.as_secs_f32()
    )]
    TimedOut(Duration),
    /// The time for the command is over.
    #[error(
        "still not done after {} s; it may be under way: see `ctdb status`, and -T for more time",
        .0.as_secs_f32()
    )]
    RunTime(Duration),
    /// The connection ended before the answer did.
    #[error("the daemon ended the connection without an answer; see its log")]
    Closed,
    /// Not HTTP, or not the JSON of this version.
    #[error("the daemon's answer is not understood ({0}); do tool and daemon belong together?")]
    Malformed(String),
    /// The system refused.
    #[error("talking to {path}: {source}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The daemon says why not.
    #[error("{0}")]
    Refused(ApiError),
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let (exit, code) = match &error {
            ClientError::Connect { .. } => (Exit::Failed, "no_daemon"),
            ClientError::NotPermitted { .. } => (Exit::Failed, "not_permitted"),
            ClientError::TimedOut(_) | ClientError::RunTime(_) => (Exit::TimedOut, "timed_out"),
            ClientError::Closed => (Exit::Failed, "closed"),
            ClientError::Malformed(_) => (Exit::Failed, "malformed"),
            ClientError::Io { .. } => (Exit::Failed, "io"),
            ClientError::Refused(refusal) => (Exit::of_status(refusal.status), &*refusal.code),
        };
        Failure::new(exit, code, error.to_string())
    }
}

/// Where the daemon is, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct Client {
    /// The socket for root.
    pub socket: PathBuf,
    /// The socket that only reads.
    pub read_socket: PathBuf,
    /// Most time for a read (`-t`).
    pub request: Duration,
    /// Most time for the whole command (`-T`).
    pub run: Duration,
    /// When that time is over.
    pub end: Instant,
}

impl Client {
    /// A client whose run time begins now.
    pub fn new(socket: &Path, read_socket: &Path, request: Duration, run: Duration) -> Self {
        Self {
            socket: socket.to_owned(),
            read_socket: read_socket.to_owned(),
            request,
            run,
            end: Instant::now() + run,
        }
    }

    /// Reads `path` as `T`.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        decode(&self.get_bytes(path)?)
    }

    /// Reads `path` as it comes.
    fn get_bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        self.call("GET", path, b"", self.request.min(self.left()?))
    }

    /// Has something changed, and waits until it is: up to the run time.
    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, ClientError> {
        decode(&self.call("POST", path, body.to_string().as_bytes(), self.left()?)?)
    }

    /// Whether anybody listens on the socket.
    pub fn reachable(&self) -> bool {
        connect(&self.socket, Duration::from_secs(1)).is_ok()
    }

    /// Why no daemon can be reached, if none can.
    pub fn try_connect(&self) -> Result<(), ClientError> {
        self.open(true, self.request).map(drop)
    }

    fn left(&self) -> Result<Duration, ClientError> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            Err(ClientError::RunTime(self.run))
        } else {
            Ok(left)
        }
    }

    fn open(&self, read: bool, limit: Duration) -> Result<(UnixStream, &Path), ClientError> {
        let denied = |error: &io::Error| error.kind() == io::ErrorKind::PermissionDenied;
        let mut path: &Path = &self.socket;
        let mut result = connect(path, limit);
        if read && result.as_ref().is_err_and(denied) {
            path = &self.read_socket;
            result = connect(path, limit);
        }
        match result {
            Ok(stream) => Ok((stream, path)),
            Err(error) if denied(&error) => {
                let hint = if read {
                    "run the command as root, or as a member of the group that api-ro.sock has"
                } else {
                    "changes are made by root only: try with sudo"
                };
                Err(ClientError::NotPermitted {
                    path: path.to_owned(),
                    hint,
                })
            }
            Err(error) if timed_out(&error) => Err(self.too_late(limit)),
            Err(source) => Err(ClientError::Connect {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn too_late(&self, limit: Duration) -> ClientError {
        if Instant::now() >= self.end {
            ClientError::RunTime(self.run)
        } else {
            ClientError::TimedOut(limit)
        }
    }

    /// One request and its answer's body.
    fn call(
        &self,
        method: &str,
        target: &str,
        body: &[u8],
        limit: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let end = Instant::now() + limit;
        let (mut stream, path) = self.open(method == "GET", limit)?;
        let fail = |source: io::Error| match source.kind() {
            _ if timed_out(&source) => self.too_late(limit),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Closed,
            _ => ClientError::Io {
                path: path.to_owned(),
                source,
            },
        };
        let mut request = format!(
            "{method} {target} HTTP/1.1\r\nhost: ctdbd\r\ncontent-type: application/json\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(body);
        stream.write_all(&request).map_err(fail)?;
        let mut answer = Vec::with_capacity(4096);
        let mut part = [0; 16 << 10];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(self.too_late(limit));
            }
            stream.set_read_timeout(Some(left)).map_err(fail)?;
            match stream.read(&mut part) {
                Ok(0) => break,
                Ok(count) => answer.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(fail(error)),
            }
            if answer.len() as u64 > MAX_ANSWER {
                return Err(ClientError::Malformed("too long".into()));
            }
        }
        parse(answer)
    }
}

fn connect(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Also bounds connect() while the listen queue is full.
    socket.set_write_timeout(Some(limit))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}

fn timed_out(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| ClientError::Malformed(error.to_string()))
}

/// The body of a whole HTTP/1.1 answer; an answer that is no success becomes its error.
fn parse(mut answer: Vec<u8>) -> Result<Vec<u8>, ClientError> {
    if answer.is_empty() {
        return Err(ClientError::Closed);
    }
    let malformed = |what: &str| ClientError::Malformed(what.to_owned());
    let split = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let split = split.ok_or_else(|| malformed("no end of the head"))?;
    let head = std::str::from_utf8(&answer[..split]).map_err(|_| malformed("no text"))?;
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok())
        .ok_or_else(|| malformed("no status line"))?;
    let length: Option<usize> = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok());
    let body = answer.split_off(split + 4);
    if length.is_some_and(|length| length != body.len()) {
        return Err(ClientError::Closed);
    }
    if (200..300).contains(&status) {
        return Ok(body);
    }
    let refusal = serde_json::from_slice(&body)
        .unwrap_or_else(|_| ApiError::new(status, "http", format!("HTTP status {status}")));
    Err(ClientError::Refused(refusal))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn client(directory: &Path, milliseconds: u64) -> Client {
        Client::new(
            &directory.join("api.sock"),
            &directory.join("api-ro.sock"),
            Duration::from_millis(milliseconds),
            Duration::from_secs(10),
        )
    }

    #[test]
    fn answers_are_taken_apart() {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec();
        assert_eq!(parse(ok).unwrap(), b"{}");
        let cut = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}".to_vec();
        assert!(matches!(parse(cut), Err(ClientError::Closed)));
        assert!(matches!(parse(Vec::new()), Err(ClientError::Closed)));
        assert!(matches!(
            parse(b"hello".to_vec()),
            Err(ClientError::Malformed(_))
        ));
        let other = b"SSH-2.0-OpenSSH\r\n\r\n".to_vec();
        assert!(matches!(parse(other), Err(ClientError::Malformed(_))));
        let refused = b"HTTP/1.1 409 X\r\n\r\n{\"status\":409,\"code\":\"c\",\"message\":\"m\"}";
        let Err(ClientError::Refused(error)) = parse(refused.to_vec()) else {
            panic!()
        };
        assert_eq!((error.status, &*error.code), (409, "c"));
        let Err(ClientError::Refused(error)) = parse(b"HTTP/1.1 431 X\r\n\r\n".to_vec()) else {
            panic!()
        };
        assert_eq!(error.status, 431);
    }

    #[test]
    fn absent_and_silent_daemons() {
        let directory = tempfile::tempdir().unwrap();
        let client = client(directory.path(), 100);
        let absent = client.get::<Value>("/v1/daemon").unwrap_err();
        assert!(matches!(absent, ClientError::Connect { .. }));
        assert!(absent.to_string().contains("systemctl start ctdb"));
        let listener = UnixListener::bind(directory.path().join("api.sock")).unwrap();
        let begun = Instant::now();
        let silent = client.get::<Value>("/v1/daemon").unwrap_err();
        assert!(matches!(silent, ClientError::TimedOut(_)), "{silent}");
        assert!(begun.elapsed() < Duration::from_secs(5));
        drop(listener);
        let gone = client.get::<Value>("/v1/daemon").unwrap_err();
        assert!(matches!(gone, ClientError::Connect { .. }));
    }
}
