//! Sessions of real clients that are open over a failover: an sftp transfer and an SMB session.
//! When the client was told is when its kernel has no established connection any more.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use super::cli::wait_until;
use super::timeline::{Event, What};
use super::{Lab, Netns, Service, Stamp};

/// Between two looks at the client's sockets.
const LOOK: Duration = Duration::from_millis(10);
/// Of the transfer, in bytes; a hole, so that it costs no room.
const FILE: u64 = 1 << 30;
/// Limit of the transfer, in kbit/s: it outlasts every failover.
const RATE: &str = "8000";

/// What became of a session.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What it is: `sftp transfer 10.0.0.1`.
    pub label: String,
    /// When the client was told that its connection is gone.
    pub told: Option<Stamp>,
    /// When a new session of the same kind had done something.
    pub again: Option<Stamp>,
}

/// A session that is open.
pub struct Session {
    outcome: Arc<Mutex<Outcome>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

fn ssh_options(lab: &Lab) -> Vec<String> {
    let key = lab.ssh_key().display().to_string();
    let options = [
        "BatchMode=yes",
        "StrictHostKeyChecking=no",
        "ConnectTimeout=2",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ];
    let mut words: Vec<String> = ["-F", "none", "-i", &key].map(str::to_owned).to_vec();
    for option in options {
        words.extend(["-o".to_owned(), option.to_owned()]);
    }
    words
}

fn host(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

impl Session {
    /// An sftp transfer of a large file from the server.
    pub fn sftp(lab: &Lab, address: IpAddr, events: Option<Sender<Event>>) -> Result<Self> {
        let file = lab.dir().join("large");
        fs::File::create(&file)?.set_len(FILE)?;
        let mut transfer = Command::new("sftp");
        transfer.args(ssh_options(lab)).args(["-q", "-l", RATE]);
        transfer.arg(format!("root@{}:{}", host(address), file.display()));
        transfer.arg("/dev/null");
        let mut options = ssh_options(lab);
        options.extend(["-b", "-"].map(str::to_owned));
        options.push(format!("root@{}", host(address)));
        let again = move || {
            let mut command = Command::new("sftp");
            command.args(&options);
            (command, "pwd\n")
        };
        let label = format!("sftp transfer {address}");
        let server = SocketAddr::new(address, Service::Ssh.port());
        Self::open(lab.client(), label, server, transfer, again, events)
    }

    /// An SMB session that is idle.
    pub fn smb(lab: &Lab, address: IpAddr, events: Option<Sender<Event>>) -> Result<Self> {
        let share = format!("//{address}/share");
        let mut session = Command::new("smbclient");
        session.args(["-N", &share]);
        let again = move || {
            let mut command = Command::new("smbclient");
            command.args(["-N", &share, "-c", "ls"]);
            (command, "")
        };
        let label = format!("SMB session {address}");
        let server = SocketAddr::new(address, Service::Smb.port());
        Self::open(lab.client(), label, server, session, again, events)
    }

    fn open(
        client: &Netns,
        label: String,
        server: SocketAddr,
        mut command: Command,
        again: impl Fn() -> (Command, &'static str) + Send + 'static,
        events: Option<Sender<Event>>,
    ) -> Result<Self> {
        // Its standard input stays open: nobody types.
        command.stdin(Stdio::piped());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = client
            .spawn(&mut command)
            .with_context(|| format!("starting {label}"))?;
        let pid = child.id();
        let up = wait_until(&label, Duration::from_secs(20), || established(pid, server));
        if let Err(error) = up {
            end(&mut child);
            return Err(error);
        }
        let outcome = Arc::new(Mutex::new(Outcome {
            label: label.clone(),
            told: None,
            again: None,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (outcome, stop, client) = (Arc::clone(&outcome), Arc::clone(&stop), client.clone());
            thread::Builder::new()
                .name("session".to_owned())
                .spawn(move || {
                    let say = |text: &str| {
                        if let Some(events) = &events {
                            let what = What::Client {
                                label: label.clone(),
                                text: text.to_owned(),
                            };
                            // A timeline that is finished listens no more.
                            let _ = events.send(Event {
                                at: Stamp::now(),
                                what,
                            });
                        }
                    };
                    while established(pid, server) {
                        if stop.load(Ordering::Relaxed) {
                            end(&mut child);
                            return Ok(());
                        }
                        thread::sleep(LOOK);
                    }
                    lock(&outcome).told = Some(Stamp::now());
                    say("told");
                    end(&mut child);
                    while !stop.load(Ordering::Relaxed) {
                        let (command, input) = again();
                        if works(&client, command, input)? {
                            lock(&outcome).again = Some(Stamp::now());
                            say("works again");
                            return Ok(());
                        }
                        thread::sleep(LOOK);
                    }
                    Ok(())
                })?
        };
        Ok(Self {
            outcome,
            stop,
            thread: Some(thread),
        })
    }

    /// What is known so far.
    pub fn outcome(&self) -> Outcome {
        lock(&self.outcome).clone()
    }

    /// Ends it.
    pub fn finish(mut self) -> Result<Outcome> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread
                .join()
                .map_err(|_| anyhow!("a session's thread panicked"))??;
        }
        Ok(self.outcome())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(outcome: &Mutex<Outcome>) -> std::sync::MutexGuard<'_, Outcome> {
    outcome.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end(child: &mut Child) {
    // It may have ended by itself.
    let _ = child.kill();
    let _ = child.wait();
}

fn works(client: &Netns, mut command: Command, input: &str) -> Result<bool> {
    use std::io::Write as _;
    command.stdin(Stdio::piped());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = client.spawn(&mut command)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ended at once reads nothing.
        let _ = stdin.write_all(input.as_bytes());
    }
    Ok(child.wait()?.success())
}

/// Whether a process has an established connection to `server`. The kernel's list is read piece by
/// piece: what stands behind a socket that goes meanwhile may be left out, so one look that finds
/// nothing says nothing yet.
fn established(pid: u32, server: SocketAddr) -> bool {
    (0..3).any(|_| seen(pid, server))
}

fn seen(pid: u32, server: SocketAddr) -> bool {
    let name = if server.is_ipv4() { "tcp" } else { "tcp6" };
    let text = fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default();
    let own = sockets(pid);
    // sl, local, remote, state, queues, timer, retransmissions, user, probes, inode.
    text.lines().skip(1).any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.len() > 9
            && words[3] == "01"
            && parse(words[2]).ok() == Some(server)
            && own.iter().any(|inode| inode == words[9])
    })
}

/// Inodes of the sockets that a process or a child of it has open (sftp's is its ssh's).
fn sockets(pid: u32) -> Vec<String> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let mut processes = vec![pid.to_string()];
    processes.extend(
        children
            .unwrap_or_default()
            .split_whitespace()
            .map(str::to_owned),
    );
    // One that has ended has none.
    let entries = processes
        .iter()
        .filter_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok())
        .flatten();
    entries
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| {
            let inode = target.to_str()?.strip_prefix("socket:[")?;
            Some(inode.strip_suffix(']')?.to_owned())
        })
        .collect()
}

/// `0100007F:01BD` of `/proc/net/tcp`: words of the address in the host's byte order.
fn parse(text: &str) -> Result<SocketAddr> {
    let (address, port) = text.split_once(':').context("no port")?;
    let port = u16::from_str_radix(port, 16)?;
    let words = address
        .as_bytes()
        .chunks(8)
        .map(|word| Ok(u32::from_str_radix(std::str::from_utf8(word)?, 16)?))
        .collect::<Result<Vec<u32>>>()?;
    let octets: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let address = match octets.len() {
        4 => IpAddr::V4(Ipv4Addr::from([octets[0], octets[1], octets[2], octets[3]])),
        16 => {
            let octets: [u8; 16] = octets.as_slice().try_into()?;
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        other => bail!("an address of {other} bytes"),
    };
    Ok(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_addresses_are_read() {
        let v4: SocketAddr = "127.0.0.1:445".parse().unwrap();
        assert_eq!(parse("0100007F:01BD").unwrap(), v4);
        let v6: SocketAddr = "[::1]:22".parse().unwrap();
        assert_eq!(parse("00000000000000000000000001000000:0016").unwrap(), v6);
        assert!(parse("xyz").is_err());
    }
}
