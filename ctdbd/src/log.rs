//! The daemon's one log, in CTDB's locations and line format (`spec/cluster.md` 5.3).
//!
//! Lines go through a bounded, lossy queue to a writer thread: a full or hanging disk costs log
//! lines, never the daemon (MEM-2).

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, reload};

/// Lines that may wait for the writer; at the bound further ones are dropped.
const QUEUE_LINES: usize = 8192;

/// CTDB's levels, by growing detail (`spec/cluster.md` 5.3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum LogLevel {
    /// 0
    Error,
    /// 1, 2
    Warning,
    /// 3, 4
    Notice,
    /// 5 to 9
    Info,
    /// 10
    Debug,
}

impl LogLevel {
    /// A word (any case, prefixes such as `ERR`), or a digit from 0 to 10.
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<u8>() {
            return match number {
                0 => Some(Self::Error),
                1 | 2 => Some(Self::Warning),
                3 | 4 => Some(Self::Notice),
                5..=9 => Some(Self::Info),
                10 => Some(Self::Debug),
                _ => None,
            };
        }
        let word = text.to_ascii_uppercase();
        if word.is_empty() {
            return None;
        }
        [
            Self::Error,
            Self::Warning,
            Self::Notice,
            Self::Info,
            Self::Debug,
        ]
        .into_iter()
        .find(|level| level.name().starts_with(&word))
    }

    /// The word that is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Warning => "WARNING",
            Self::Notice => "NOTICE",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
        }
    }

    fn filter(self) -> LevelFilter {
        // `tracing` has no notice: one step further down each.
        match self {
            Self::Error => LevelFilter::ERROR,
            Self::Warning => LevelFilter::WARN,
            Self::Notice => LevelFilter::INFO,
            Self::Info => LevelFilter::DEBUG,
            Self::Debug => LevelFilter::TRACE,
        }
    }
}

/// Where the log goes: `[logging] location`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// `file:PATH`
    File(PathBuf),
    /// `file:` or `file:-`
    Stderr,
    /// `syslog` and `syslog:nonblocking`: journald where it runs, else `/dev/log`.
    Syslog,
    /// `syslog:udp` (RFC 3164) or `syslog:udp-rfc5424`, to 127.0.0.1:514.
    Udp {
        /// RFC 5424 header instead of the short one.
        rfc5424: bool,
    },
}

impl Location {
    /// Parses the configuration's words.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "file:" | "file:-" => Some(Self::Stderr),
            "syslog" | "syslog:nonblocking" => Some(Self::Syslog),
            "syslog:udp" => Some(Self::Udp { rfc5424: false }),
            "syslog:udp-rfc5424" => Some(Self::Udp { rfc5424: true }),
            _ => text
                .strip_prefix("file:")
                .map(|path| Self::File(PathBuf::from(path))),
        }
    }
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file, or its directory.
    #[error(
        "cannot open the log file {path}: {source}; create the directory or change [logging] location"
    )]
    Open {
        /// Path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A socket.
    #[error("cannot reach the log service: {0}; change [logging] location")]
    Socket(io::Error),
    /// Started twice.
    #[error("the log is already open")]
    Twice,
}

/// The open log. Dropping it writes what waits.
pub struct Log {
    level: reload::Handle<LevelFilter, Registry>,
    reopen: Arc<AtomicBool>,
    _worker: Option<WorkerGuard>,
}

impl Log {
    /// Opens the log and makes it the process's.
    pub fn open(location: &Location, level: LogLevel) -> Result<Self, LogError> {
        let (filter, handle) = reload::Layer::new(level.filter());
        let reopen = Arc::new(AtomicBool::new(false));
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let pid = std::process::id();
        let plain = |with_time: bool| Lines {
            host: host.clone(),
            pid,
            with_time,
        };
        let (sink, format): (Box<dyn Write + Send>, Lines) = match location {
            Location::File(path) => {
                let file = ReopenFile::open(path.clone(), Arc::clone(&reopen))?;
                (Box::new(file), plain(true))
            }
            Location::Stderr => (Box::new(io::stderr()), plain(true)),
            Location::Syslog => {
                if let Ok(journal) = tracing_journald::layer() {
                    let journal = journal.with_syslog_identifier("ctdbd".to_owned());
                    Registry::default()
                        .with(filter.and_then(journal))
                        .try_init()
                        .map_err(|_| LogError::Twice)?;
                    return Ok(Self {
                        level: handle,
                        reopen,
                        _worker: None,
                    });
                }
                (Box::new(DevLog::open(Path::new("/dev/log"))?), plain(false))
            }
            Location::Udp { rfc5424 } => {
                (Box::new(UdpLog::open(*rfc5424, &host, pid)?), plain(false))
            }
        };
        let (writer, worker) = tracing_appender::non_blocking::NonBlockingBuilder::default()
            .buffered_lines_limit(QUEUE_LINES)
            .lossy(true)
            .finish(sink);
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(writer)
            .with_ansi(false)
            .event_format(format);
        Registry::default()
            .with(filter.and_then(layer))
            .try_init()
            .map_err(|_| LogError::Twice)?;
        Ok(Self {
            level: handle,
            reopen,
            _worker: Some(worker),
        })
    }

    /// `ctdb setdebug`.
    pub fn set_level(&self, level: LogLevel) {
        // Fails only when the subscriber is gone, and then there is no log.
        let _ = self.level.reload(level.filter());
    }

    /// SIGHUP: the file is opened anew before the next line (log rotation).
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Release);
    }
}

/// CTDB's line: `TIME HOST PROGRAM[PID]: TEXT`.
struct Lines {
    host: String,
    pid: u32,
    with_time: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        if self.with_time {
            let now = jiff::Zoned::now();
            write!(
                writer,
                "{} {} ctdbd[{}]: ",
                now.strftime("%Y-%m-%dT%H:%M:%S%.6f%:z"),
                self.host,
                self.pid
            )?;
        }
        let level = *event.metadata().level();
        if level == Level::ERROR || level == Level::WARN {
            write!(
                writer,
                "{}: ",
                if level == Level::ERROR {
                    "ERROR"
                } else {
                    "WARNING"
                }
            )?;
        }
        context
            .field_format()
            .format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}

struct ReopenFile {
    path: PathBuf,
    file: File,
    reopen: Arc<AtomicBool>,
}

impl ReopenFile {
    fn open(path: PathBuf, reopen: Arc<AtomicBool>) -> Result<Self, LogError> {
        let file = Self::append(&path).map_err(|source| LogError::Open {
            path: path.clone(),
            source,
        })?;
        Ok(Self { path, file, reopen })
    }

    fn append(path: &Path) -> io::Result<File> {
        OpenOptions::new().create(true).append(true).open(path)
    }
}

impl Write for ReopenFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.reopen.swap(false, Ordering::AcqRel)
            && let Ok(file) = Self::append(&self.path)
        {
            self.file = file;
        }
        // A full disk loses the line, not the writer thread.
        let _ = self.file.write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Facility daemon, severity notice.
const PRIORITY: u8 = 3 * 8 + 5;

/// The log service's socket. A service that is not there yet, or comes back with a new socket, is
/// connected to before the next line; what is said meanwhile is lost, and nobody waits.
struct DevLog {
    socket: UnixDatagram,
    path: PathBuf,
}

impl DevLog {
    fn open(path: &Path) -> Result<Self, LogError> {
        let socket = UnixDatagram::unbound().map_err(LogError::Socket)?;
        socket.set_nonblocking(true).map_err(LogError::Socket)?;
        let log = Self {
            socket,
            path: path.to_owned(),
        };
        if let Err(error) = log.socket.connect(path) {
            let _ = writeln!(
                io::stderr(),
                "ctdbd: nobody listens at {}: {error}; the log begins when the log service does",
                path.display()
            );
        }
        Ok(log)
    }

    fn send(&self, message: &[u8]) {
        match self.socket.send(message) {
            Ok(_) => {}
            // It does not keep up.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                if self.socket.connect(&self.path).is_ok() {
                    let _ = self.socket.send(message);
                }
            }
        }
    }
}

impl Write for DevLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let message = format!(
            "<{PRIORITY}>ctdbd[{}]: {}",
            std::process::id(),
            text.trim_end()
        );
        self.send(message.as_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct UdpLog {
    socket: UdpSocket,
    rfc5424: bool,
    host: String,
    pid: u32,
}

impl UdpLog {
    fn open(rfc5424: bool, host: &str, pid: u32) -> Result<Self, LogError> {
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(LogError::Socket)?;
        socket.connect("127.0.0.1:514").map_err(LogError::Socket)?;
        Ok(Self {
            socket,
            rfc5424,
            host: host.to_owned(),
            pid,
        })
    }
}

impl Write for UdpLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        let mut message = if self.rfc5424 {
            let now = jiff::Zoned::now();
            let time = now.strftime("%Y-%m-%dT%H:%M:%S%.6f%:z");
            format!(
                "<{PRIORITY}>1 {time} {} ctdbd {} - - {text}",
                self.host, self.pid
            )
        } else {
            format!("<{PRIORITY}>ctdbd[{}]: {text}", self.pid)
        };
        let mut end = message.len().min(1024);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        let _ = self.socket.send(message.as_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_words_are_ctdbs() {
        assert_eq!(LogLevel::parse("err"), Some(LogLevel::Error));
        assert_eq!(LogLevel::parse("NOT"), Some(LogLevel::Notice));
        assert_eq!(LogLevel::parse("2"), Some(LogLevel::Warning));
        assert_eq!(LogLevel::parse("8"), Some(LogLevel::Info));
        assert_eq!(LogLevel::parse("11"), None);
        assert_eq!(LogLevel::parse("loud"), None);
        assert_eq!(LogLevel::parse(""), None);
    }

    #[test]
    fn a_log_service_that_comes_late_and_comes_back_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = DevLog::open(&path).unwrap();
        log.write_all(b"lost\n").unwrap();
        for text in ["one", "two"] {
            let service = UnixDatagram::bind(&path).unwrap();
            service
                .set_read_timeout(Some(std::time::Duration::from_secs(10)))
                .unwrap();
            log.write_all(text.as_bytes()).unwrap();
            let mut line = [0; 100];
            let length = service.recv(&mut line).unwrap();
            let line = String::from_utf8_lossy(&line[..length]).into_owned();
            assert!(line.ends_with(&format!("]: {text}")), "{line}");
            drop(service);
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn locations_are_ctdbs() {
        assert_eq!(Location::parse("file:-"), Some(Location::Stderr));
        assert_eq!(
            Location::parse("file:/x/y"),
            Some(Location::File("/x/y".into()))
        );
        assert_eq!(
            Location::parse("syslog:udp"),
            Some(Location::Udp { rfc5424: false })
        );
        assert_eq!(Location::parse("syslog:what"), None);
        assert_eq!(Location::parse("/x/y"), None);
    }

    #[test]
    fn a_rotated_file_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let reopen = Arc::new(AtomicBool::new(false));
        let mut file = ReopenFile::open(path.clone(), Arc::clone(&reopen)).unwrap();
        file.write_all(b"one\n").unwrap();
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        reopen.store(true, Ordering::Release);
        file.write_all(b"two\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
    }
}
