//! The nodes list: `spec/cluster.md` 1.3.

use std::fmt;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use ctdb_wire::ids::{MAX_NODES, NodeSet, Pnn};

use super::report::Report;

/// Longest nodes list, in bytes.
pub const MAX_LIST: u64 = 64 * 1024;
/// How long the command of `nodes list = !COMMAND` may take at start.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(10);

/// One entry of the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its number, which is its position.
    pub pnn: Pnn,
    /// Private address; 0.0.0.0 if deleted.
    pub address: IpAddr,
    /// Place holder for a node that was removed.
    pub deleted: bool,
    /// Line of the list, from 1.
    pub line: u32,
}

/// The list, in order; deleted entries included.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Nodes {
    /// At most [`MAX_NODES`]; entry *i* has number *i*.
    pub entries: Vec<Node>,
}

impl Nodes {
    /// Number of entries, deleted ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Entries that are not deleted.
    pub fn active(&self) -> impl Iterator<Item = &Node> {
        self.entries.iter().filter(|node| !node.deleted)
    }

    /// Numbers that are not deleted.
    pub fn set(&self) -> NodeSet {
        self.active().map(|node| node.pnn).collect()
    }

    /// Address of a node that is not deleted.
    pub fn address(&self, pnn: Pnn) -> Option<IpAddr> {
        self.entries
            .get(pnn.index())
            .filter(|node| !node.deleted)
            .map(|node| node.address)
    }

    /// The node with this address.
    pub fn find(&self, address: IpAddr) -> Option<Pnn> {
        self.active()
            .find(|node| node.address == address)
            .map(|node| node.pnn)
    }

    /// Parses a list, of a file or of a command. `None` if it has an error: one bad line makes
    /// the whole list invalid, since it shifts the numbers of all nodes after it.
    pub fn parse(text: &str, file: &Path, report: &mut Report) -> Option<Self> {
        let mut nodes = Self::default();
        let mut good = true;
        let mut empty: Option<u32> = None;
        for (raw, line) in text.split('\n').zip(1_u32..) {
            let entry = raw.trim_ascii();
            if entry.is_empty() {
                empty = empty.or(Some(line));
                continue;
            }
            if let Some(at) = empty.take() {
                report.warning(
                    file,
                    Some(at),
                    "an empty line within the list has no node number",
                    "remove it; to keep the number of a removed node begin its line with '#'",
                );
            }
            let Some(pnn) = Pnn::new(nodes.len() as u32).ok() else {
                report.error(
                    file,
                    Some(line),
                    format!("there are more than {MAX_NODES} nodes, deleted ones included"),
                    "a cluster has at most that many; remove the rest",
                );
                return None;
            };
            let deleted = entry.starts_with('#');
            let address = if deleted {
                Ok(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
            } else {
                node_address(entry).map(|address| address.to_canonical())
            };
            match address {
                Ok(address) => {
                    let twice = nodes
                        .active()
                        .find(|node| !deleted && node.address == address);
                    if let Some(first) = twice {
                        report.error(
                            file,
                            Some(line),
                            format!(
                                "{address} is in the list twice, first in line {}",
                                first.line
                            ),
                            "each node has its own address; correct one of the lines",
                        );
                        good = false;
                    }
                    nodes.entries.push(Node {
                        pnn,
                        address,
                        deleted,
                        line,
                    });
                }
                Err(what) => {
                    report.error(
                        file,
                        Some(line),
                        what,
                        "write one literal IP address of the private network, without port or name",
                    );
                    good = false;
                    // Keeps the numbers of what follows, for the messages about it.
                    let address = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
                    nodes.entries.push(Node {
                        pnn,
                        address,
                        deleted: true,
                        line,
                    });
                }
            }
        }
        if good && nodes.active().next().is_none() {
            report.error(
                file,
                None,
                "the nodes list names no node",
                "write one private IP address per line, the same list on all nodes",
            );
            good = false;
        }
        good.then_some(nodes)
    }
}

fn node_address(text: &str) -> Result<IpAddr, String> {
    let address: IpAddr = text
        .parse()
        .map_err(|_| format!("'{text}' is not an IP address"))?;
    if address.is_unspecified() || address.is_multicast() {
        return Err(format!("{address} cannot be the address of a node"));
    }
    Ok(address)
}

/// Where the list comes from: `[cluster] nodes list`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodesSource {
    /// A file.
    File(PathBuf),
    /// A command and its arguments, run without a shell; its output is the list.
    Command(Vec<String>),
}

/// Why the list could not be had.
#[derive(Debug, thiserror::Error)]
pub enum NodesError {
    /// There is no file.
    #[error(
        "there is no nodes list {0}; write it, one private IP address per line, the same on all \
         nodes"
    )]
    Missing(PathBuf),
    /// The file cannot be read.
    #[error("{0}: {1}")]
    Unreadable(PathBuf, String),
    /// The command was not started.
    #[error("cannot run '{0}' for the nodes list: {1}; correct `[cluster] nodes list`")]
    Start(String, std::io::Error),
    /// It failed.
    #[error("'{0}' ended with {1} instead of giving the nodes list")]
    Failed(String, ExitStatus),
    /// It did not end in time and was killed.
    #[error("'{0}' did not give the nodes list within {1:?}")]
    Late(String, Duration),
    /// It wrote too much, or not text.
    #[error("'{0}' wrote what is not a nodes list (more than 64 KiB, or not text)")]
    NotAList(String),
}

impl fmt::Display for NodesSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Command(words) => write!(f, "!{}", words.join(" ")),
        }
    }
}

impl NodesSource {
    /// Parses the value of the key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let Some(command) = text.strip_prefix('!') else {
            return Ok(Self::File(PathBuf::from(text)));
        };
        let words: Vec<String> = command
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect();
        if words
            .first()
            .is_some_and(|program| Path::new(program).is_absolute())
        {
            Ok(Self::Command(words))
        } else {
            Err(format!(
                "'{text}' does not begin with the absolute path of a program"
            ))
        }
    }

    /// What problems with it are about.
    pub fn path(&self) -> &Path {
        match self {
            Self::File(path) => path,
            // Never empty: `parse` checks.
            Self::Command(words) => Path::new(words.first().map_or("", String::as_str)),
        }
    }

    /// The text of the list. Waits for the command, at most `limit`: call it where that is
    /// allowed (at start, or on a thread for blocking work).
    pub fn fetch(&self, limit: Duration) -> Result<String, NodesError> {
        match self {
            Self::File(path) => match super::read_text(path, MAX_LIST) {
                Ok(Some(text)) => Ok(text),
                Ok(None) => Err(NodesError::Missing(path.clone())),
                Err(error) => Err(NodesError::Unreadable(path.clone(), error)),
            },
            Self::Command(words) => run(words, limit),
        }
    }

    /// Fetches and parses.
    pub fn load(&self, limit: Duration, report: &mut Report) -> Option<Nodes> {
        match self.fetch(limit) {
            Ok(text) => Nodes::parse(&text, self.path(), report),
            Err(error) => {
                report.error(self.path(), None, error.to_string(), "");
                None
            }
        }
    }
}

fn run(words: &[String], limit: Duration) -> Result<String, NodesError> {
    let shown = words.join(" ");
    let Some((program, arguments)) = words.split_first() else {
        return Err(NodesError::NotAList(shown));
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(|error| NodesError::Start(shown.clone(), error))?;
    let (sender, receiver) = mpsc::sync_channel(1);
    if let Some(output) = child.stdout.take() {
        // Ends when all writers of the pipe are gone: the whole process group is killed below.
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let result = output
                .take(MAX_LIST + 1)
                .read_to_end(&mut bytes)
                .map(|_| bytes);
            let _ = sender.send(result);
        });
    }
    let output = receiver.recv_timeout(limit);
    let finished = match &output {
        Ok(Ok(bytes)) if bytes.len() as u64 <= MAX_LIST => wait_a_little(&mut child),
        _ => None,
    };
    let status = if let Some(status) = finished {
        status
    } else {
        if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        child
            .wait()
            .map_err(|error| NodesError::Start(shown.clone(), error))?
    };
    match output {
        Err(_) => Err(NodesError::Late(shown, limit)),
        Ok(Err(error)) => Err(NodesError::Start(shown, error)),
        Ok(Ok(bytes)) if bytes.len() as u64 > MAX_LIST => Err(NodesError::NotAList(shown)),
        Ok(Ok(_)) if finished.is_none() => Err(NodesError::Late(shown, limit)),
        Ok(Ok(_)) if !status.success() => Err(NodesError::Failed(shown, status)),
        Ok(Ok(bytes)) => String::from_utf8(bytes).map_err(|_| NodesError::NotAList(shown)),
    }
}

/// A program that has closed its output ends at once, or is not waited for.
fn wait_a_little(child: &mut std::process::Child) -> Option<ExitStatus> {
    for _ in 0..100 {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => std::thread::sleep(Duration::from_millis(10)),
            Err(_) => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> (Option<Nodes>, Vec<String>) {
        let mut report = Report::default();
        let nodes = Nodes::parse(text, Path::new("n"), &mut report);
        (nodes, report.lines().collect())
    }

    #[test]
    fn a_list_with_a_deleted_node() {
        let (nodes, problems) = parse("10.0.0.1\n#10.0.0.2\n\t fd00::3 \r\n\n\n");
        let nodes = nodes.unwrap();
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(nodes.len(), 3);
        assert!(nodes.entries[1].deleted);
        assert_eq!(nodes.entries[1].address, IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let third = Pnn::new(2).unwrap();
        assert_eq!(nodes.find("fd00::3".parse().unwrap()), Some(third));
        assert_eq!(
            nodes.set(),
            [Pnn::new(0).unwrap(), third].into_iter().collect()
        );
        assert_eq!(nodes.address(Pnn::new(1).unwrap()), None);
    }

    #[test]
    fn an_inner_empty_line_takes_no_number_and_warns() {
        let (nodes, problems) = parse("10.0.0.1\n\n\n10.0.0.2\n");
        assert_eq!(nodes.unwrap().len(), 2);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("n:2: warning: an empty line"));
    }

    #[test]
    fn one_bad_line_makes_the_list_invalid() {
        for (text, part) in [
            (
                "10.0.0.1\nhost2\n",
                "n:2: error: 'host2' is not an IP address",
            ),
            ("10.0.0.1:4379\n", "n:1: error: '10.0.0.1:4379'"),
            (
                "10.0.0.1\n10.0.0.2\n10.0.0.1\n",
                "n:3: error: 10.0.0.1 is in the list twice",
            ),
            (
                "::ffff:10.0.0.1\n10.0.0.1\n",
                "n:2: error: 10.0.0.1 is in the list twice",
            ),
            ("0.0.0.0\n", "n:1: error: 0.0.0.0 cannot be"),
            ("#10.0.0.1\n", "n: error: the nodes list names no node"),
            ("", "n: error: the nodes list names no node"),
        ] {
            let (nodes, problems) = parse(text);
            assert_eq!(nodes, None, "{text}");
            assert!(problems[0].starts_with(part), "{problems:?}");
        }
    }

    #[test]
    fn at_most_sixty_four() {
        let list = |n: usize| {
            let lines: Vec<String> = (1..=n).map(|i| format!("10.0.0.{i}")).collect();
            lines.join("\n")
        };
        assert_eq!(parse(&list(64)).0.unwrap().len(), 64);
        let (nodes, problems) = parse(&list(65));
        assert_eq!(nodes, None);
        assert!(problems[0].starts_with("n:65: error: there are more than 64 nodes"));
    }

    #[test]
    fn a_command_gives_the_list() {
        let source = NodesSource::parse("!/bin/echo  10.0.0.7").unwrap();
        let mut report = Report::default();
        let nodes = source.load(COMMAND_LIMIT, &mut report).unwrap();
        assert_eq!(nodes.entries[0].address.to_string(), "10.0.0.7");
        assert!(NodesSource::parse("!echo 10.0.0.7").is_err());
        assert!(NodesSource::parse("!").is_err());
        assert_eq!(
            NodesSource::parse("/x y").unwrap(),
            NodesSource::File("/x y".into())
        );
    }

    #[test]
    fn a_command_that_fails_hangs_or_floods_is_an_error() {
        let run = |text: &str, ms| {
            NodesSource::parse(text)
                .unwrap()
                .fetch(Duration::from_millis(ms))
                .unwrap_err()
        };
        assert!(matches!(run("!/bin/false", 5000), NodesError::Failed(..)));
        assert!(matches!(run("!/bin/sleep 60", 100), NodesError::Late(..)));
        assert!(matches!(
            run("!/no/such/program", 5000),
            NodesError::Start(..)
        ));
        assert!(matches!(
            run("!/usr/bin/yes 10.0.0.1", 5000),
            NodesError::NotAList(..)
        ));
        let missing = NodesSource::File("/no/such/file".into()).fetch(COMMAND_LIMIT);
        assert!(matches!(missing, Err(NodesError::Missing(_))));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([0-9.:#a-f \t]|\n){0,200}") {
            if let (Some(nodes), _) = parse(&text) {
                prop_assert!(nodes.len() <= MAX_NODES);
                prop_assert!(nodes.entries.iter().enumerate().all(|(i, n)| n.pnn.index() == i));
            }
        }
    }
}
