//! Network namespaces of a test's own: made by it, removed when dropped.

use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns};

/// Runs a command to its end; its standard output. Panics with its words if it fails.
pub fn command(line: &str) -> String {
    let mut words = line.split_whitespace();
    let program = words.next().expect("a program");
    let output = Command::new(program)
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("cannot run {program} ({error}): install it"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "`{line}`: {errors}");
    String::from_utf8(output.stdout).expect("text")
}

/// A network namespace, with its loopback interface up.
pub struct Net {
    pub name: String,
}

impl Net {
    pub fn new(what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test needs root, for network namespaces"
        );
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ctdbt-{}-{count}-{what}", std::process::id());
        command(&format!("ip netns add {name}"));
        let net = Self { name };
        net.ip("link set lo up");
        net
    }

    /// `ip -n NAME ...`
    pub fn ip(&self, arguments: &str) -> String {
        command(&format!("ip -n {} {arguments}", self.name))
    }

    /// Any other command inside.
    pub fn exec(&self, line: &str) -> String {
        command(&format!("ip netns exec {} {line}", self.name))
    }

    /// Runs `work` on a thread inside; what it opens stays inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(Path::new("/run/netns").join(&self.name)).expect("the namespace");
        let inside = move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            work()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// A server and a client on one wire: `srv0` with 10.77.0.1/24 and fd77::1/64, `cli0` with
/// 10.77.0.2/24 and fd77::2/64.
pub struct Pair {
    pub server: Net,
    pub client: Net,
}

impl Pair {
    pub fn new() -> Self {
        let (server, client) = (Net::new("server"), Net::new("client"));
        server.ip(&format!(
            "link add srv0 type veth peer name cli0 netns {}",
            client.name
        ));
        for (net, interface, number) in [(&server, "srv0", 1), (&client, "cli0", 2)] {
            net.ip(&format!("addr add 10.77.0.{number}/24 dev {interface}"));
            net.ip(&format!("addr add fd77::{number}/64 dev {interface} nodad"));
            net.ip(&format!("link set {interface} up"));
        }
        // Until the kernel has seen the carrier, what is sent may get lost.
        for (net, interface) in [(&server, "srv0"), (&client, "cli0")] {
            let up = || {
                net.ip(&format!("link show dev {interface}"))
                    .contains("state UP")
            };
            let end = Instant::now() + Duration::from_secs(10);
            while !up() {
                assert!(Instant::now() < end, "{interface} does not come up");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Self { server, client }
    }
}
