//! Copying the cluster key to the other nodes by ssh, for `ctdb config keygen --distribute`.
//!
//! `ssh` is the only external program. The key travels on its standard input, never on a command
//! line; the file appears on the node whole, with mode 0600, or not at all.

use std::{
    ffi::OsString,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use ctdb_wire::ids::Pnn;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::Command,
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};

use super::key::KeyRing;

/// Nodes that are copied to at a time.
const PARALLEL: usize = 8;
/// Most bytes of ssh's complaints that are kept.
const MAX_COMPLAINT: u64 = 2048;
/// Exit status of the remote script for "another key is there".
const EXISTS: i32 = 73;

/// How to copy.
#[derive(Clone, Debug)]
pub struct Distribution {
    /// Where the key file is to stand, on every node.
    pub path: PathBuf,
    /// Replace a different key that a node has.
    pub force: bool,
    /// Program and options in front of the host; a test puts its own here.
    pub ssh: Vec<OsString>,
    /// Most time for one node.
    pub time_out: Duration,
}

impl Distribution {
    /// To `path`, with the system's ssh asking no questions, 20 s per node.
    pub fn to(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            force: false,
            ssh: ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"]
                .map(OsString::from)
                .to_vec(),
            time_out: Duration::from_secs(20),
        }
    }
}

/// What became of one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivered {
    /// The key was written.
    Written,
    /// The node has this very key already.
    Already,
}

/// Why a node did not get the key.
#[derive(Debug, thiserror::Error)]
pub enum DistributeError {
    /// The node has another key.
    #[error(
        "has another cluster key at {0}; compare, and repeat with --force if this node's is right"
    )]
    Exists(PathBuf),
    /// ssh did not start.
    #[error("starting {program}: {source}; install an ssh client, or copy the file by hand")]
    Start {
        /// The program.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It took too long.
    #[error("no answer within {0:?}; check that the node is up and reachable by ssh")]
    TimedOut(Duration),
    /// ssh or the node's shell failed.
    #[error("{status}: {complaint}; check with `ssh` that root can log in without a password")]
    Failed {
        /// How it ended.
        status: String,
        /// What it said.
        complaint: String,
    },
    /// Talking to ssh failed.
    #[error("talking to ssh: {0}")]
    Io(#[from] io::Error),
}

/// Copies `ring` to all `nodes`, several at a time; the results stand in the order of `nodes`.
pub async fn distribute(
    ring: &KeyRing,
    nodes: &[(Pnn, IpAddr)],
    distribution: &Distribution,
) -> Vec<(Pnn, IpAddr, Result<Delivered, DistributeError>)> {
    let text = Arc::new(ring.render());
    let places = Arc::new(Semaphore::new(PARALLEL));
    let mut running = JoinSet::new();
    for (pnn, address) in nodes.iter().copied() {
        let (text, places) = (Arc::clone(&text), Arc::clone(&places));
        let distribution = distribution.clone();
        running.spawn(async move {
            let _place = places.acquire().await;
            let time_out = distribution.time_out;
            let result = timeout(time_out, deliver(&text, address, &distribution))
                .await
                .unwrap_or(Err(DistributeError::TimedOut(time_out)));
            (pnn, address, result)
        });
    }
    let mut results = Vec::with_capacity(nodes.len());
    while let Some(joined) = running.join_next().await {
        if let Ok(result) = joined {
            results.push(result);
        }
    }
    results.sort_by_key(|(pnn, ..)| nodes.iter().position(|(other, _)| other == pnn));
    results
}

/// Quotes for a POSIX shell.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', r"'\''"))
}

fn script(distribution: &Distribution) -> String {
    let path = quoted(&distribution.path);
    let directory = quoted(distribution.path.parent().unwrap_or(Path::new("/")));
    let place = if distribution.force {
        r#"mv -f "$t" "$p""#
    } else {
        r#"ln "$t" "$p""#
    };
    format!(
        "umask 077; p={path}; t=\"$p.new.$$\"; trap 'rm -f \"$t\"' EXIT; mkdir -p {directory} && \
         cat >\"$t\" && if [ -e \"$p\" ] && cmp -s \"$t\" \"$p\"; then echo already; \
         elif [ -e \"$p\" ] && [ {force} = false ]; then exit {EXISTS}; \
         else {place} && sync \"$p\" && echo written; fi",
        force = distribution.force,
    )
}

async fn deliver(
    text: &str,
    address: IpAddr,
    distribution: &Distribution,
) -> Result<Delivered, DistributeError> {
    let program = distribution
        .ssh
        .first()
        .cloned()
        .unwrap_or_else(|| "ssh".into());
    let start = |source| DistributeError::Start {
        program: program.to_string_lossy().into_owned(),
        source,
    };
    let mut child = Command::new(&program)
        .args(distribution.ssh.iter().skip(1))
        .arg("--")
        .arg(address.to_string())
        .arg(script(distribution))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(start)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) = (stdin, stdout, stderr) else {
        return Err(io::Error::other("ssh has no pipes").into());
    };
    let feed = async {
        // Where ssh has ended its complaint says why; that the pipe is closed does not.
        let _ = stdin.write_all(text.as_bytes()).await;
        drop(stdin);
    };
    // Read to the end, since a child whose pipe is full would wait; only the beginning is kept.
    let hear = async {
        let mut complaint = Vec::new();
        (&mut stderr)
            .take(MAX_COMPLAINT)
            .read_to_end(&mut complaint)
            .await?;
        tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await?;
        Ok::<_, io::Error>(complaint)
    };
    let answer = async {
        let mut answer = Vec::new();
        (&mut stdout).take(64).read_to_end(&mut answer).await?;
        tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await?;
        Ok::<_, io::Error>(answer)
    };
    let ((), complaint, answer) = tokio::join!(feed, hear, answer);
    let (complaint, answer) = (complaint?, answer?);
    let status = child.wait().await?;
    match (status.success(), answer.trim_ascii()) {
        (true, b"written") => Ok(Delivered::Written),
        (true, b"already") => Ok(Delivered::Already),
        _ if status.code() == Some(EXISTS) => {
            Err(DistributeError::Exists(distribution.path.clone()))
        }
        _ => Err(DistributeError::Failed {
            status: status.to_string(),
            complaint: String::from_utf8_lossy(complaint.trim_ascii()).into_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::key::ClusterKey, *};
    use std::{fs, os::unix::fs::MetadataExt as _};

    fn nodes(count: u8) -> Vec<(Pnn, IpAddr)> {
        (0..count)
            .map(|n| (Pnn::new(n.into()).unwrap(), IpAddr::from([10, 0, 0, n + 1])))
            .collect()
    }

    /// In place of ssh: runs the script on this host, each "node" in a directory of its own.
    fn local(directory: &Path) -> Distribution {
        let ssh = r#"shift; cd "$0" && mkdir -p "$1" && cd "$1" && exec sh -c "$2""#;
        Distribution {
            ssh: ["sh", "-c", ssh]
                .map(OsString::from)
                .into_iter()
                .chain([directory.as_os_str().to_owned()])
                .collect(),
            ..Distribution::to(Path::new("etc/the 'key'"))
        }
    }

    #[tokio::test]
    async fn every_node_gets_the_key_and_an_existing_one_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let distribution = local(directory.path());
        let ring = KeyRing::of(ClusterKey::generate().unwrap());
        let nodes = nodes(10);
        let results = distribute(&ring, &nodes, &distribution).await;
        assert_eq!(results.len(), 10);
        for ((pnn, address, result), node) in results.iter().zip(&nodes) {
            assert_eq!((*pnn, *address), *node);
            assert_eq!(*result.as_ref().unwrap(), Delivered::Written);
            let folder = directory.path().join(address.to_string()).join("etc");
            let path = folder.join("the 'key'");
            assert_eq!(KeyRing::load(&path).unwrap(), ring);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            assert_eq!(
                fs::read_dir(folder).unwrap().count(),
                1,
                "nothing else is left"
            );
        }
        let again = distribute(&ring, &nodes[..1], &distribution).await;
        assert_eq!(*again[0].2.as_ref().unwrap(), Delivered::Already);

        let other = KeyRing::of(ClusterKey::generate().unwrap());
        let refused = distribute(&other, &nodes[..1], &distribution).await;
        assert!(matches!(refused[0].2, Err(DistributeError::Exists(_))));
        let path = directory.path().join("10.0.0.1/etc/the 'key'");
        assert_eq!(KeyRing::load(&path).unwrap(), ring);
        let forced = Distribution {
            force: true,
            ..distribution
        };
        let replaced = distribute(&other, &nodes[..1], &forced).await;
        assert_eq!(*replaced[0].2.as_ref().unwrap(), Delivered::Written);
        assert_eq!(KeyRing::load(&path).unwrap(), other);
    }

    #[tokio::test]
    async fn failures_are_told_per_node() {
        let ring = KeyRing::of(ClusterKey::generate().unwrap());
        let with = |words: &[&str]| Distribution {
            ssh: words.iter().map(OsString::from).collect(),
            time_out: Duration::from_secs(10),
            ..Distribution::to(Path::new("/nonexistent/k"))
        };
        let one = |distribution: Distribution| {
            let ring = ring.clone();
            async move {
                distribute(&ring, &nodes(1), &distribution)
                    .await
                    .remove(0)
                    .2
            }
        };
        let denied = one(with(&["sh", "-c", "echo Permission denied >&2; exit 255"])).await;
        let text = denied.unwrap_err().to_string();
        assert!(
            text.contains("Permission denied") && text.contains("255"),
            "{text}"
        );
        let missing = one(with(&["/nonexistent/ssh"])).await;
        assert!(matches!(missing, Err(DistributeError::Start { .. })));
        let silent = one(with(&["sh", "-c", "true"])).await;
        assert!(
            matches!(silent, Err(DistributeError::Failed { .. })),
            "success must be said"
        );
        let hung = Distribution {
            time_out: Duration::from_millis(200),
            ..with(&["sh", "-c", "exec sleep 60"])
        };
        assert!(matches!(one(hung).await, Err(DistributeError::TimedOut(_))));
    }
}
