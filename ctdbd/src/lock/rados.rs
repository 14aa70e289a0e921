//! The lock in RADOS (Ceph): an exclusive advisory lock with an expiry on one object.
//!
//! Arguments are those of CTDB's helper: `CLUSTER USER POOL OBJECT [DURATION] [-n NAMESPACE] [-R]`
//! (`spec/cluster.md` 2.8). DURATION is in seconds, 0: no expiry, so the lock of a dead host has to
//! be broken by an operator (`rados lock break`). The lock has the name that CTDB's helper uses, so
//! the two exclude each other. `-R` is accepted: nothing is registered with Ceph's manager; host and
//! process stand in the lock's description (`rados lock info`).
//!
//! Ceph is spoken to by `rados.py` with Debian's `python3-rados`, in a process of its own that may
//! hang; it frees the lock when this one ends, however that happens. Not by the `rados` tool: to Ceph
//! each run of it is another client, a lock belongs to client *and* cookie, so a second run cannot
//! renew what the first took ("Device or resource busy", seen with 16.2.15). Letting it expire and
//! taking it again leaves a gap in which another may have held it; and a lock without expiry, only
//! looked at, would stay with the dead.
//!
//! Each renewal demands that the lock is still this client's and cookie's (`MUST_RENEW`), so it is
//! also the recheck: one that was broken, expired, or was taken meanwhile is another tenure. What
//! proves the lock is the time *before* the question; no clock of Ceph's hosts comes in. They decide
//! when a lock that is not renewed expires: after DURATION, or some seconds later (python3-rados
//! 16.2.15 leaves the fraction of the duration to chance; 1.0 to 1.5 s more were seen). If one
//! expires early, by a clock that jumped, the next holder still waits `lock settle` after its taking.

use std::ffi::OsStr;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use ctdb_wire::ids::BootTime;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::helper::{self, Report};
use crate::clock::boot_now;

const CLIENT: &str = include_str!("rados.py");
/// Debian's, for which its `python3-rados` is built.
const PYTHON: &str = "/usr/bin/python3";
/// CTDB's default (`spec/cluster.md` 2.8).
const DURATION: u32 = 10;
/// Longest time between two renewals; it has to be well below any `lock validity`.
const RENEW: Duration = Duration::from_millis(500);
/// Python's start and the connecting.
const CONNECT: Duration = Duration::from_secs(15);
/// How long the freeing is waited for: less than the daemon leaves between SIGTERM and SIGKILL.
const FAREWELL: Duration = Duration::from_millis(1500);
/// Bytes of an answer; longer ones are not the client's.
const LINE: u64 = 512;

/// What the command line says.
#[derive(PartialEq, Eq, Debug)]
struct Options {
    cluster: String,
    user: String,
    pool: String,
    object: String,
    namespace: String,
    /// Seconds; 0: the lock does not expire.
    duration: u32,
}

impl Options {
    fn parse(args: &[&OsStr]) -> io::Result<Self> {
        let usage = || {
            io::Error::other(
                "arguments are CLUSTER USER POOL OBJECT [DURATION] [-n NAMESPACE] [-R]; DURATION is \
                 in whole seconds",
            )
        };
        let mut names = Vec::new();
        let mut namespace = String::new();
        let mut rest = args.iter();
        while let Some(word) = rest.next() {
            let word = word.to_str().ok_or_else(usage)?;
            match word {
                "-n" => {
                    let value = rest.next().and_then(|value| value.to_str());
                    value.ok_or_else(usage)?.clone_into(&mut namespace);
                }
                "-R" => {}
                _ if word.starts_with('-') => return Err(usage()),
                _ => names.push(word),
            }
        }
        let ([cluster, user, pool, object], duration) = match names[..] {
            [cluster, user, pool, object] => ([cluster, user, pool, object], DURATION),
            [cluster, user, pool, object, duration] => (
                [cluster, user, pool, object],
                duration.parse().map_err(|_| usage())?,
            ),
            _ => return Err(usage()),
        };
        Ok(Self {
            cluster: cluster.to_owned(),
            user: user.to_owned(),
            pool: pool.to_owned(),
            object: object.to_owned(),
            namespace,
            duration,
        })
    }

    /// Without a renewal for this long the lock counts as lost.
    fn lapse(&self) -> Duration {
        Duration::from_secs(match self.duration {
            0 => DURATION.into(),
            seconds => seconds.into(),
        })
    }

    fn renew(&self) -> Duration {
        (self.lapse() / 5).min(RENEW)
    }

    /// How long Ceph may take for one question, in whole seconds, as its library counts.
    fn patience(&self) -> u64 {
        (self.lapse().as_secs() / 4).clamp(1, 5)
    }
}

/// The helper's whole life.
pub(super) fn hold(args: &[&OsStr]) -> io::Result<()> {
    let options = Options::parse(args)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(life(options))
}

/// What Ceph's client says to a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Word {
    Ok,
    /// Another has it.
    Busy,
    /// It is not this client's any more, or the object, the pool or the client is not there.
    Gone,
    Late,
    Failed,
}

#[derive(PartialEq, Eq, Debug)]
struct Answer {
    question: u64,
    word: Word,
    text: String,
}

impl Answer {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.strip_suffix('\n')?.splitn(3, ' ');
        Some(Self {
            question: words.next()?.parse().ok()?,
            word: match words.next()? {
                "ok" => Word::Ok,
                "busy" => Word::Busy,
                "gone" => Word::Gone,
                "late" => Word::Late,
                "failed" => Word::Failed,
                _ => return None,
            },
            text: words.next().unwrap_or_default().to_owned(),
        })
    }

    fn error(&self) -> io::Error {
        match self.text.as_str() {
            "" => io::Error::other("Ceph refuses it"),
            text => io::Error::other(text.to_owned()),
        }
    }
}

/// The process that speaks to Ceph. It ends with its standard input, or when it hangs.
struct Client {
    process: Child,
    questions: ChildStdin,
    answers: mpsc::Receiver<Answer>,
    /// Whether there may be something to free.
    taking: bool,
}

impl Client {
    fn start(options: &Options) -> io::Result<Self> {
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let random = getrandom::u64().map_err(io::Error::other)?;
        let pid = std::process::id();
        let mut process = Command::new(PYTHON)
            .args(["-s", "-c", CLIENT])
            .args([&options.cluster, &options.user, &options.pool])
            .args([&options.namespace, &options.object])
            .arg(options.duration.to_string())
            .arg(format!("{host}-{pid}-{random:016x}"))
            .arg(format!("ctdbd lock, host {host}, process {pid}"))
            .arg(options.patience().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{PYTHON}: {error}")))?;
        let (Some(questions), Some(answers)) = (process.stdin.take(), process.stdout.take()) else {
            return Err(io::Error::other("no pipes"));
        };
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(read(answers, sender));
        Ok(Self {
            process,
            questions,
            answers: receiver,
            taking: false,
        })
    }

    /// Asks and waits for the answer. Questions carry a number that cannot be guessed, so that
    /// nothing but an answer to this one counts. Not asked again after one that was given up.
    async fn ask(&mut self, what: &str) -> io::Result<Answer> {
        let question = getrandom::u64().map_err(io::Error::other)?;
        let line = format!("{question} {what}\n");
        self.questions.write_all(line.as_bytes()).await?;
        let answer = self.answers.recv().await;
        answer
            .filter(|answer| answer.question == question)
            .ok_or_else(|| io::Error::other("Ceph's client has ended, or talks nonsense"))
    }

    /// Lets it free the lock; others need not wait until that expires. It does so even when it
    /// takes longer than is waited for here, if nobody ends it.
    async fn end(self) {
        let Self {
            mut process,
            questions,
            taking,
            ..
        } = self;
        drop(questions);
        if taking {
            let _ = timeout(FAREWELL, process.wait()).await;
        } else {
            let _ = process.start_kill();
        }
    }
}

/// Passes answers on until there is something that is none.
async fn read(pipe: ChildStdout, answers: mpsc::Sender<Answer>) {
    let mut pipe = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        let got = (&mut pipe).take(LINE).read_until(b'\n', &mut line).await;
        let answer = got
            .ok()
            .and_then(|_| Answer::parse(std::str::from_utf8(&line).ok()?));
        let Some(answer) = answer else {
            return;
        };
        if answers.send(answer).await.is_err() {
            return;
        }
    }
}

async fn life(options: Options) -> io::Result<()> {
    let parent = helper::parent()?;
    #[allow(
        deprecated,
        reason = "its successor is unsafe for types whose descriptor may change under tokio; \
                  an OwnedFd's does not, and this crate has no unsafe code"
    )]
    let parent = AsyncFd::new(parent)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut client = Client::start(&options)?;
    let ended = tokio::select! {
        ended = tenure(&mut client, &options) => ended,
        _ = parent.readable() => Ok(None),
        _ = terminate.recv() => Ok(None),
    };
    client.end().await;
    match ended? {
        Some(report) => helper::say(report),
        None => Ok(()),
    }
}

/// Takes the lock and holds it until it is lost; or what to report instead.
async fn tenure(client: &mut Client, options: &Options) -> io::Result<Option<Report>> {
    let Ok(connected) = timeout(CONNECT, client.ask("connect")).await else {
        eprintln!("cluster lock: Ceph does not answer");
        return Ok(Some(Report::Late));
    };
    if let Some(report) = refused(&connected?)? {
        return Ok(Some(report));
    }
    client.taking = true;
    let began = boot_now();
    let Ok(taken) = timeout(options.lapse() / 2, client.ask("take")).await else {
        eprintln!("cluster lock: Ceph does not answer");
        return Ok(Some(Report::Late));
    };
    if let Some(report) = refused(&taken?)? {
        return Ok(Some(report));
    }
    helper::say(Report::Held)?;
    helper::say_proved(began);
    keep(client, options, began).await.map(|()| None)
}

/// What to report if it was not done.
fn refused(answer: &Answer) -> io::Result<Option<Report>> {
    match answer.word {
        Word::Ok => Ok(None),
        Word::Busy => Ok(Some(Report::Contended)),
        Word::Late => {
            eprintln!("cluster lock: {}", answer.error());
            Ok(Some(Report::Late))
        }
        Word::Gone | Word::Failed => Err(answer.error()),
    }
}

/// Renews until the lock is lost.
async fn keep(client: &mut Client, options: &Options, mut proved: BootTime) -> io::Result<()> {
    let unproved = || io::Error::other("the lock was not renewed in time");
    loop {
        sleep(options.renew()).await;
        let began = boot_now();
        let left = options.lapse().saturating_sub(began.since(proved));
        let answer = timeout(left, client.ask("renew"))
            .await
            .map_err(|_| unproved())??;
        match answer.word {
            Word::Ok => {
                proved = began;
                helper::say_proved(began);
            }
            Word::Busy | Word::Gone => {
                return Err(io::Error::other(format!(
                    "{}; the lock is lost",
                    answer.error()
                )));
            }
            // The next question may be answered; when none is, the time is up.
            Word::Late | Word::Failed => eprintln!("cluster lock: {}", answer.error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> io::Result<Options> {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        Options::parse(&words)
    }

    #[test]
    fn words_of_the_command_line() {
        let options = parse(&["ceph", "client.ctdb", "pool", "object"]).unwrap();
        assert_eq!(options.lapse(), Duration::from_secs(10));
        assert_eq!(options.renew(), Duration::from_millis(500));
        assert_eq!(options.patience(), 2);
        let options = parse(&["-n", "space", "ceph", "u", "p", "-R", "o", "1"]).unwrap();
        assert_eq!(
            options,
            Options {
                cluster: "ceph".to_owned(),
                user: "u".to_owned(),
                pool: "p".to_owned(),
                object: "o".to_owned(),
                namespace: "space".to_owned(),
                duration: 1,
            }
        );
        assert_eq!(options.renew(), Duration::from_millis(200));
        assert_eq!(options.patience(), 1);
        // No expiry; still not held longer than it is proved.
        let options = parse(&["ceph", "u", "p", "o", "0"]).unwrap();
        assert_eq!(options.lapse(), Duration::from_secs(10));
        for bad in [
            &["ceph", "u", "p"][..],
            &["ceph", "u", "p", "o", "x"],
            &["ceph", "u", "p", "o", "1.5"],
            &["ceph", "u", "p", "o", "1", "2"],
            &["ceph", "u", "p", "o", "-n"],
            &["ceph", "u", "p", "o", "-x"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_is_no_answer() {
        let answer = Answer::parse("3 failed [errno 1] no\n").unwrap();
        assert_eq!((answer.question, answer.word), (3, Word::Failed));
        assert_eq!(answer.error().to_string(), "[errno 1] no");
        assert_eq!(Answer::parse("3 ok\n").unwrap().word, Word::Ok);
        for bad in [
            "", "\n", "3 ok", "ok\n", "x ok\n", "3 OK\n", "-1 ok\n", "3  ok\n",
        ] {
            assert_eq!(Answer::parse(bad), None, "{bad:?}");
        }
    }
}
