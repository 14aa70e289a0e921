//! A child's output: kept up to a bound, logged by lines, read on even when nobody wants more, so
//! that the child does not wait for a reader.

use std::io::PipeReader;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::Level;

/// Read at once.
const CHUNK: usize = 16 * 1024;
/// Beyond the limit a chunk is read only this often: a child that floods costs next to nothing.
const THROTTLE: Duration = Duration::from_millis(10);
/// Longest line in the log.
const LINE: usize = 1024;
/// Lines of one child that are logged in each minute.
const LINES: u32 = 200;
/// Chunks that wait for the caller of a piped output.
pub(super) const PIPED: usize = 16;

/// What was read of one stream.
#[derive(Default, Debug)]
pub(super) struct Kept {
    pub(super) head: Vec<u8>,
    pub(super) dropped: u64,
}

/// How a stream is treated.
pub(super) struct Treatment {
    pub(super) name: String,
    pub(super) pid: u32,
    pub(super) limit: usize,
    pub(super) log: Option<Level>,
    pub(super) pass_on: Option<mpsc::Sender<Vec<u8>>>,
}

/// Reads until end of file, or until `ended` says that the child has gone and nothing more is
/// waiting in the pipe: others that hold its end may live on for years.
pub(super) async fn read(
    pipe: PipeReader,
    treatment: Treatment,
    mut ended: watch::Receiver<bool>,
) -> Kept {
    let mut kept = Kept::default();
    let mut lines = Lines::new(&treatment);
    let Ok(mut pipe) = receiver(pipe) else {
        return kept;
    };
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = if *ended.borrow() {
            pipe.try_read(&mut chunk).unwrap_or_default()
        } else {
            tokio::select! {
                read = pipe.read(&mut chunk) => read.unwrap_or(0),
                changed = ended.changed() => {
                    if changed.is_err() {
                        break;
                    }
                    continue;
                }
            }
        };
        if length == 0 {
            break;
        }
        let bytes = &chunk[..length];
        lines.take(bytes);
        if let Some(pass_on) = &treatment.pass_on {
            // The bound: a caller that does not read loses what is more, as all readers do.
            let _ = pass_on.try_send(bytes.to_vec());
        }
        let room = treatment.limit.saturating_sub(kept.head.len()).min(length);
        kept.head.extend_from_slice(&bytes[..room]);
        kept.dropped += (length - room) as u64;
        if kept.dropped > 0 {
            if *ended.borrow() {
                break;
            }
            sleep(THROTTLE).await;
        }
    }
    lines.finish();
    kept
}

fn receiver(pipe: PipeReader) -> std::io::Result<Receiver> {
    Receiver::from_owned_fd(OwnedFd::from(pipe))
}

/// Cuts bytes into lines and logs them.
struct Lines {
    name: String,
    pid: u32,
    level: Option<Level>,
    line: Vec<u8>,
    /// The rest of an overlong line is left out.
    skipping: bool,
    logged: u32,
    minute: Instant,
}

impl Lines {
    fn new(treatment: &Treatment) -> Self {
        Self {
            name: treatment.name.clone(),
            pid: treatment.pid,
            level: treatment.log,
            line: Vec::new(),
            skipping: false,
            logged: 0,
            minute: Instant::now(),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        if self.level.is_none() {
            return;
        }
        for byte in bytes {
            if *byte == b'\n' {
                self.finish();
                self.skipping = false;
            } else if !self.skipping {
                self.line.push(*byte);
                if self.line.len() >= LINE {
                    self.finish();
                    self.skipping = true;
                }
            }
        }
    }

    fn finish(&mut self) {
        let line = std::mem::take(&mut self.line);
        let Some(level) = self.level.filter(|_| !line.trim_ascii().is_empty()) else {
            return;
        };
        if self.minute.elapsed() >= Duration::from_secs(60) {
            self.minute = Instant::now();
            self.logged = 0;
        }
        self.logged += 1;
        let (name, pid) = (&self.name, self.pid);
        if self.logged == LINES {
            tracing::warn!(name, pid, "writes too much; not logged for a while");
        }
        if self.logged >= LINES {
            return;
        }
        // Control characters of a script have no business in the log.
        let text: String = String::from_utf8_lossy(&line)
            .chars()
            .map(|c| if c.is_control() && c != '\t' { '?' } else { c })
            .collect();
        match level {
            Level::ERROR => tracing::error!(pid, "{name}: {text}"),
            Level::WARN => tracing::warn!(pid, "{name}: {text}"),
            Level::INFO => tracing::info!(pid, "{name}: {text}"),
            Level::DEBUG => tracing::debug!(pid, "{name}: {text}"),
            Level::TRACE => tracing::trace!(pid, "{name}: {text}"),
        }
    }
}
