//! Debian's event scripts around Samba, unmodified, start, watch and stop Debian's Samba under our
//! daemon in the places of the package: `49.winbind`, `50.samba` and `48.netbios` call Debian's
//! `service`, which calls the packages' init scripts, since no systemd runs in a node's `/run`.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use ctdb_tests::lab::packaged::Cover;
use ctdb_tests::lab::smb::{Share, Smb};
use ctdb_tests::lab::{Lab, Node, Service, lacks, netns, reference};
use nix::sys::signal::{Signal, kill};

const LONG: Duration = Duration::from_secs(60);
/// For one answer of a server that is there.
const PATIENCE: Duration = Duration::from_secs(20);
/// Switched on, beside those that the package has on.
const SCRIPTS: [&str; 3] = ["48.netbios", "49.winbind", "50.samba"];
const PROGRAMS: [&str; 3] = ["nmbd", "winbindd", "smbd"];

/// In `killall`'s and `pidof`'s stead: the nodes of a lab share one table of processes, and the
/// scripts mean those of their own node.
const KILLALL: &str = r#"#!/bin/sh
signal=TERM
found=1
for word; do
	case $word in
	-q) ;;
	-*) signal=${word#-} ;;
	*) pkill "-$signal" -x --ns $$ --nslist net "$word" && found=0 ;;
	esac
done
exit $found
"#;
const PIDOF: &str = "#!/bin/sh\nexec pgrep -x --ns $$ --nslist net \"$1\"\n";

fn cluster() -> (Lab, tempfile::TempDir) {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    if let Some(package) = Service::ClusteredSmb.lacks().or_else(reference::lacks) {
        panic!("this test cannot run here: {package} is missing");
    }
    let stage = tempfile::tempdir().unwrap();
    let mut covers = Vec::new();
    for (name, text) in [("killall", KILLALL), ("pidof", PIDOF)] {
        let path = stage.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        // What is not installed kills nobody.
        if let Ok(program) = fs::canonicalize(Path::new("/usr/bin").join(name)) {
            covers.push(Cover::new(path, program));
        }
    }
    let lab = Lab::builder()
        .ipv6(false)
        .tunable("MonitorInterval", 2)
        .packaged(covers)
        .build()
        .unwrap();
    for node in lab.nodes() {
        netns::copy_missing(Path::new("/etc/ctdb"), &node.etc()).unwrap();
        node.prepare_samba().unwrap();
        for script in SCRIPTS {
            run(
                node,
                &["ctdb", "event", "script", "enable", "legacy", script],
            );
        }
    }
    (lab, stage)
}

/// A command on a node, which must succeed.
fn run(node: &Node, words: &[&str]) {
    let mut command = node.packaged_command(true, words).unwrap();
    let out = node.netns().output(&mut command).unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "node {}: {words:?}: {errors}",
        node.pnn()
    );
}

/// Result and output of a script in the last run of an event.
fn result(node: &Node, event: &str, script: &str) -> Option<(i64, String)> {
    let json = node.ctdb_json(&["event", "status", "legacy", event]).ok()?;
    let scripts = json["scripts"].as_array()?;
    let script = scripts.iter().find(|s| s["name"] == script)?;
    let output = script["output"].as_str().unwrap_or_default();
    Some((script["result"].as_i64()?, output.to_owned()))
}

/// A guest's session through an address with a share, tried until it is there.
fn session(lab: &Lab, address: IpAddr, share: &str) -> Smb {
    let mut found = None;
    lab.wait(
        &format!("a session with {share} of {address}"),
        LONG,
        || {
            found = Smb::connect(lab.client(), address, share, PATIENCE).ok();
            found.is_some()
        },
    )
    .unwrap();
    found.unwrap()
}

#[test]
fn debians_scripts_start_watch_and_stop_samba() {
    let (lab, _stage) = cluster();
    lab.bring_up(&[], LONG).unwrap();
    for node in lab.nodes() {
        for program in PROGRAMS {
            assert!(!node.samba_processes(program).is_empty(), "{program}");
        }
        for script in SCRIPTS {
            for event in ["startup", "monitor"] {
                // The first monitor may be running yet.
                lab.wait(&format!("{event} of {script}"), LONG, || {
                    result(node, event, script).is_some_and(|(code, _)| code == 0)
                })
                .unwrap();
            }
        }
    }
    let of = lab.address_of_each(LONG).unwrap();
    for (node, address) in &of {
        let mut guest = session(&lab, *address, "open");
        let file = guest.open(&format!("by{node}"), Share::Nothing).unwrap();
        guest.write(file, b"written").unwrap();
        guest.close(file).unwrap();
    }

    // A node without smbd hosts nothing until it is back.
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let victim = (leader + 1) % 3;
    let (node, address) = (lab.node(victim), of[&victim]);
    for pid in node.samba_processes("smbd") {
        // One of them may have ended with its parent.
        let _ = kill(pid, Signal::SIGKILL);
    }
    lab.wait("the node to be unhealthy", LONG, || {
        let seen = lab.node(leader).nodes_seen().unwrap_or_default();
        seen.iter().any(|n| n.pnn == victim && !n.flags.is_empty())
    })
    .unwrap();
    lab.wait("what the script says", LONG, || {
        result(node, "monitor", "50.samba")
            .is_some_and(|(code, text)| code == 1 && text.contains("not listening on TCP port 445"))
    })
    .unwrap();
    let mut guest = session(&lab, address, &format!("not{victim}"));
    let file = guest.open(&format!("by{victim}"), Share::Nothing).unwrap();
    guest.close(file).unwrap();
    assert!(!node.samba_processes("winbindd").is_empty());
    run(node, &["service", "smbd", "start"]);
    lab.wait_all_healthy(LONG).unwrap();
    let of = lab.address_of_each(LONG).unwrap();
    drop(session(&lab, of[&victim], &format!("not{leader}")));

    // A node that is stopped takes its Samba along; the clients are served elsewhere.
    let address = of[&victim];
    assert!(node.stop_graceful(LONG).unwrap().success());
    drop(session(&lab, address, &format!("not{victim}")));
    for program in PROGRAMS {
        lab.wait(&format!("no {program}"), LONG, || {
            node.samba_processes(program).is_empty()
        })
        .unwrap();
    }
    assert_eq!(lab.samba_panics(), Vec::<String>::new());
    assert_eq!(lab.destroy(), Vec::<String>::new());
}
