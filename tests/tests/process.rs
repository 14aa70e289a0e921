//! The daemon as a process: background, pid file, service manager, exit codes, test mode.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use ctdb_tests::lab::{Lab, Node, workspace_binary};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LONG: Duration = Duration::from_secs(30);

fn lab() -> Lab {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    Lab::builder().nodes(1).public_addresses(1).build().unwrap()
}

fn daemon(node: &Node) -> Command {
    let mut command = Command::new(workspace_binary("CTDBD_BIN", "ctdbd").unwrap());
    command.env("CTDBD_ROOT", node.root());
    command
}

fn run(node: &Node, command: &mut Command) -> Output {
    node.netns().output(command).unwrap()
}

fn wait(lab: &Lab, what: &str, good: impl FnMut() -> bool) {
    lab.wait(what, LONG, good).unwrap();
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn without_arguments_it_goes_to_the_background() {
    let lab = lab();
    let node = lab.node(0);
    let started = run(node, &mut daemon(node));
    assert!(started.status.success(), "{started:?}");
    // It serves the API when the starting process returns.
    let answer = node.ctdb(&["getpid"]).unwrap();
    assert!(answer.ok(), "{answer:?}");
    let run_dir = node.root().join("run/ctdb");
    let pid = text(&run_dir.join("ctdbd.pid")).trim().to_owned();
    assert_eq!(answer.stdout.trim(), pid);
    let stat = text(Path::new(&format!("/proc/{pid}/stat")));
    let after_name = stat.rsplit(") ").next().unwrap();
    assert!(
        after_name.contains(" 1 ") || !after_name.is_empty(),
        "{stat}"
    );
    let session = after_name.split(' ').nth(3).unwrap();
    assert_eq!(session, pid, "it leads a session of its own");

    let second = run(node, &mut daemon(node));
    assert_eq!(second.status.code(), Some(11), "{second:?}");
    let why = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(why.contains(&pid) && why.contains("ctdbd.pid"), "{why}");

    kill(Pid::from_raw(pid.parse().unwrap()), Signal::SIGTERM).unwrap();
    wait(&lab, "the daemon to end", || {
        !run_dir.join("ctdbd.pid").exists()
    });
    let left: Vec<_> = fs::read_dir(&run_dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        // Stays by intent until the host boots: a daemon has run (R10, `core::cold`).
        .filter(|path| !path.ends_with("ctdbd.started"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let log = text(&node.root().join("var/log/ctdb/log.ctdb"));
    assert!(log.contains("Shutdown sequence commencing."), "{log}");
    assert!(
        log.contains("Shutdown sequence complete, exiting."),
        "{log}"
    );
}

#[test]
fn wrong_input_starts_nothing() {
    let lab = lab();
    let node = lab.node(0);
    node.write("ctdb.conf", "[lease]\n\tprofile = swift\n")
        .unwrap();
    for arguments in [&[][..], &["-i"]] {
        let refused = run(node, daemon(node).args(arguments));
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            why.contains("ctdb.conf:2") && why.contains("swift"),
            "{why}"
        );
    }
    let run_dir = node.root().join("run/ctdb");
    assert_eq!(fs::read_dir(run_dir).map_or(0, Iterator::count), 0);
    assert!(
        !node
            .netns()
            .run("nft", &["list", "ruleset"])
            .unwrap()
            .contains("ctdb")
    );
}

#[test]
fn a_service_manager_is_told() {
    let lab = lab();
    let node = lab.node(0);
    let path = lab.dir().join("notify.sock");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let mut child = node
        .netns()
        .spawn(
            daemon(node)
                .arg("-i")
                .env("NOTIFY_SOCKET", &path)
                .stderr(std::process::Stdio::null()),
        )
        .unwrap();
    let mut buffer = [0; 512];
    let mut next = || {
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert!(next().contains("READY=1"));
    assert!(next().contains("WATCHDOG=1"));
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    while !next().contains("STOPPING=1") {}
    assert!(child.wait().unwrap().success());
}

#[test]
fn with_scripts_it_touches_nothing() {
    let lab = lab();
    let node = lab.node(0);
    node.write("ctdb.conf", "[failover]\n\taddresses = script\n")
        .unwrap();
    node.start_daemon().unwrap();
    let address = lab.public_addresses()[0];
    lab.wait_owner(0, address, 0, LONG).unwrap();
    assert!(
        !node
            .netns()
            .ip("-o address")
            .unwrap()
            .contains(&address.to_string())
    );
    assert!(
        !node
            .netns()
            .run("nft", &["list", "ruleset"])
            .unwrap()
            .contains("ctdb")
    );
    // Connections are watched, so that clients can be told; nothing stands in their way.
    let pins = fs::read_dir(node.root().join("run/ctdb/bpf"))
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        // Two files are the file system's own.
        .filter(|name| !name.to_ascii_lowercase().starts_with("track"))
        .filter(|name| !["progs.debug", "maps.debug"].contains(&name.as_str()))
        .collect::<Vec<_>>();
    assert_eq!(pins, Vec::<String>::new());
    assert!(node.stop_graceful(LONG).unwrap().success());
}

#[test]
fn in_test_mode_all_is_below_its_base() {
    let lab = lab();
    let node = lab.node(0);
    let base = lab.dir().join("base");
    for dir in ["run", "var/volatile", "var/persistent", "var/state"] {
        fs::create_dir_all(base.join(dir)).unwrap();
    }
    fs::copy(node.etc().join("nodes"), base.join("nodes")).unwrap();
    let envs = [
        ("CTDB_TEST_MODE", "1".into()),
        ("CTDB_BASE", base.clone().into_os_string()),
    ];
    let mut command = Command::new(workspace_binary("CTDBD_BIN", "ctdbd").unwrap());
    // Without a key: the test mode implies plain links.
    let started = run(node, command.envs(envs.clone()));
    assert!(started.status.success(), "{started:?}");
    let ctdb = |words: &[&str]| {
        let mut command = Command::new(workspace_binary("CTDB_BIN", "ctdb").unwrap());
        run(node, command.args(words).envs(envs.clone()))
    };
    wait(&lab, "the node of the test mode to be healthy", || {
        String::from_utf8_lossy(&ctdb(&["nodestatus"]).stdout).contains("OK (THIS NODE)")
    });
    assert!(base.join("run/ctdbd.pid").exists());
    // It touches nothing of the host: no program and no map of the kernel is pinned.
    assert!(!base.join("run/bpf").exists());
    assert!(ctdb(&["shutdown"]).status.success());
    wait(&lab, "its end", || !base.join("run/ctdbd.pid").exists());
}

/// Scheduling class, its priority and the nice level of a thread (proc_pid_stat(5)).
fn scheduling(pid: Pid, thread: &str) -> Option<(u32, u32, i32)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let folder = tasks
        .map(|task| task.unwrap().path())
        .find(|task| text(&task.join("comm")).trim() == thread)?;
    let stat = text(&folder.join("stat"));
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    // The first one behind the name is field 3.
    let field = |number: usize| fields.get(number - 3).copied();
    Some((
        field(41)?.trim().parse().ok()?,
        field(40)?.parse().ok()?,
        field(19)?.parse().ok()?,
    ))
}

#[test]
fn daemon_and_detector_have_the_classes_of_the_configuration() {
    const OTHER: u32 = 0;
    const FIFO: u32 = 1;
    const ROUND_ROBIN: u32 = 2;
    let lab = lab();
    let node = lab.node(0);
    let own = text(Path::new("/proc/self/stat"));
    let fields = own.rsplit(") ").next().unwrap();
    let nice: i32 = fields.split(' ').nth(19 - 3).unwrap().parse().unwrap();
    for (daemon, detector, first, second) in [
        ("nice:-7", "rr:20", (OTHER, 0, -7), (ROUND_ROBIN, 20, -7)),
        ("fifo:5", "rr:30", (FIFO, 5, nice), (ROUND_ROBIN, 30, nice)),
        ("none", "normal", (OTHER, 0, nice), (OTHER, 0, nice)),
    ] {
        let conf = format!("[priority]\n\tdaemon = {daemon}\n\tdetector = {detector}\n");
        node.write("ctdb.conf", &conf).unwrap();
        node.start_daemon().unwrap();
        let pid = node.daemon_pid().unwrap();
        wait(&lab, "the classes", || {
            scheduling(pid, "ctdbd") == Some(first) && scheduling(pid, "detector") == Some(second)
        });
        assert!(node.stop_graceful(LONG).unwrap().success());
    }
}

#[test]
fn a_recording_shows_the_same_decisions_offline() {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let lab = Lab::builder().nodes(3).build().unwrap();
    let file = |node: &Node| node.root().join("recording");
    for node in lab.nodes() {
        let path = node.etc().join("ctdb.conf");
        let conf = text(&path);
        let record = format!("{conf}[log]\n\trecord = {}\n", file(node).display());
        fs::write(&path, record).unwrap();
    }
    lab.start_daemons().unwrap();
    lab.wait_all_healthy(LONG).unwrap();
    lab.wait_all_served(LONG).unwrap();
    assert!(lab.node(0).ctdb(&["node", "disable", "1"]).unwrap().ok());
    lab.node(2).kill_daemon(Signal::SIGKILL).unwrap();
    lab.node(2).wait_daemon_exit(LONG).unwrap();
    lab.wait("node 0 to serve", LONG, || {
        let owners = lab.node(0).ip_owners().unwrap_or_default();
        !owners.is_empty() && owners.values().all(|owner| *owner == Some(0))
    })
    .unwrap();
    for node in &lab.nodes()[..2] {
        assert!(node.stop_graceful(LONG).unwrap().success());
    }
    for (number, node) in lab.nodes().iter().enumerate() {
        let path = file(node).display().to_string();
        let answer = node.ctdb(&["debug", "replay", &path]).unwrap();
        // Every address was taken somewhere, and who led said so.
        assert!(answer.stdout.contains("\"Take\""), "{answer:?}");
        if number == 2 {
            // Killed, perhaps within an entry.
            let cut = answer.stderr.contains("cut off");
            assert!(
                cut || answer.stdout.contains("the daemon died"),
                "{answer:?}"
            );
            assert!(!answer.stderr.contains("otherwise"), "{answer:?}");
        } else {
            assert!(
                answer.ok()
                    && answer
                        .stdout
                        .contains("all as recorded; the daemon was stopped"),
                "{answer:?}"
            );
        }
    }
    // What is not one, and what is not whole.
    let node = lab.node(0);
    let good = fs::read(file(node)).unwrap();
    let mut damaged = good.clone();
    damaged[good.len() / 2] ^= 1;
    for (bytes, word) in [
        (&b"[log]\n"[..], "no_recording"),
        (&good[..good.len() - 1], "truncated"),
        (&damaged, "corrupt"),
    ] {
        let path = node.root().join("other");
        fs::write(&path, bytes).unwrap();
        let path = path.display().to_string();
        let answer = node.ctdb(&["--json", "debug", "replay", &path]).unwrap();
        let told = format!("{}{}", answer.stdout, answer.stderr);
        assert!(
            !answer.ok() && told.contains(word),
            "{word}: {}",
            answer.stderr
        );
    }
    lab.destroy();
}

#[test]
fn without_the_right_to_nice_it_warns_once_and_works() {
    let lab = lab();
    let node = lab.node(0);
    let program = workspace_binary("CTDBD_BIN", "ctdbd").unwrap();
    let log = lab.dir().join("unprivileged.log");
    let mut child = node
        .netns()
        .spawn(
            Command::new("setpriv")
                .args(["--bounding-set=-sys_nice", "--inh-caps=-sys_nice", "--"])
                .arg(program)
                .arg("-i")
                .env("CTDBD_ROOT", node.root())
                .stderr(fs::File::create(&log).unwrap()),
        )
        .unwrap();
    let address = lab.public_addresses()[0];
    lab.wait_owner(0, address, 0, LONG).unwrap();
    let text = text(&log);
    assert_eq!(text.matches("CAP_SYS_NICE").count(), 1, "{text}");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
}

/// `[logging] location = syslog` where journald runs: a real journald in a private `/run`, read
/// back with journalctl.
#[test]
fn the_journal_has_the_log() {
    let lab = lab();
    let node = lab.node(0);
    node.write("ctdb.conf", "[logging]\n\tlocation = syslog\n")
        .unwrap();
    let journal = lab.dir().join("journal");
    fs::create_dir_all(&journal).unwrap();
    let program = workspace_binary("CTDBD_BIN", "ctdbd").unwrap();
    // What is mounted goes with the last process of this mount namespace.
    let script = r#"
        mount -t tmpfs tmpfs /run
        mkdir -p /run/systemd/journal /run/log/journal
        mount --bind "$JOURNAL" /run/log/journal
        /lib/systemd/systemd-journald &
        journald=$!
        while [ ! -S /run/systemd/journal/socket ]; do sleep 0.05; done
        "$CTDBD"
        while ! [ -e "$CTDBD_ROOT/run/ctdb/ctdbd.pid" ]; do sleep 0.05; done
        kill -TERM "$(cat "$CTDBD_ROOT/run/ctdb/ctdbd.pid")"
        while [ -e "$CTDBD_ROOT/run/ctdb/ctdbd.pid" ]; do sleep 0.05; done
        kill -TERM $journald
        wait $journald
    "#;
    let done = run(
        node,
        Command::new("timeout")
            .args(["-k", "5", "60", "unshare", "--mount", "sh", "-ec", script])
            .env("CTDBD", program)
            .env("CTDBD_ROOT", node.root())
            .env("JOURNAL", &journal),
    );
    assert!(done.status.success(), "{done:?}");
    let read = Command::new("journalctl")
        .arg("--directory")
        .arg(&journal)
        .args(["-t", "ctdbd", "-o", "json"])
        .output()
        .unwrap();
    let lines = String::from_utf8_lossy(&read.stdout).into_owned();
    for words in ["ctdbd starts", "Shutdown sequence complete, exiting."] {
        assert!(lines.contains(words), "{words}: {lines} {read:?}");
    }
    assert!(lines.contains("\"PRIORITY\":\"4\""), "{lines}");
}
