//! Debian's event scripts, unmodified, under our daemon in the places of the package: all of them
//! enabled, with their options set, services that are stubs, and a note of every call of `ctdb`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ctdb_tests::lab::packaged::Cover;
use ctdb_tests::lab::{Lab, Node, Service, netns, overlay, reference, workspace_binary};

const LONG: Duration = Duration::from_secs(60);
const SHARE: &str = "/usr/share/ctdb";

/// Programs of services and of the host's firewall. Those that are installed are covered, so that
/// no script can end a process of this host.
const STUBS: &[&str] = &[
    "apache2",
    "clamd",
    "ethtool",
    "exportfs",
    "httpd",
    "invoke-rc.d",
    "ip6tables",
    "ipcrm",
    "ipcs",
    "iptables",
    "ipvsadm",
    "killall",
    "multipath",
    "net",
    "nfsstat",
    "nmbd",
    "pidof",
    "pgrep",
    "pkill",
    "rpc.mountd",
    "rpc.nfsd",
    "rpc.statd",
    "rpcinfo",
    "service",
    "sm-notify",
    "smbcontrol",
    "smbd",
    "smbstatus",
    "smnotify",
    "systemctl",
    "testparm",
    "tgt-admin",
    "tgtadm",
    "tgtd",
    "vsftpd",
    "wbinfo",
    "winbindd",
];

const STUB: &str = r#"#!/bin/sh
name=${0##*/}
echo "$name $*" >>/var/log/ctdb/stubs.log
case "$name $*" in
"testparm "*--parameter-name=*) echo '445 139' ;;
"ethtool "*) echo 'Link detected: yes' ;;
"testparm "*) printf '[global]\n\tsmb ports = 445 139\n[share]\n\tpath = /tmp\n' ;;
"multipath "*) printf "mpatha (360) dm-0 X,Y\n|-+- policy='round-robin 0' prio=1 status=active\n" ;;
# A rule that is deleted until there is none.
"iptables -D "* | "ip6tables -D "*) exit 1 ;;
"pgrep "* | "pidof "*) exit 1 ;;
esac
exit 0
"#;

/// Notes each call with its exit code and errors.
fn wrapper(real: &Path) -> String {
    format!(
        "#!/bin/sh\n\
         err=$(mktemp /var/log/ctdb/err.XXXXXX)\n\
         '{}' \"$@\" 2>\"$err\"\n\
         code=$?\n\
         printf '%s\\t%s\\t%s\\n' \"$code\" \"$*\" \"$(tr '\\n' ';' <\"$err\")\" >>/var/log/ctdb/calls.log\n\
         cat \"$err\" >&2\n\
         rm -f \"$err\"\n\
         exit $code\n",
        real.display()
    )
}

const OPTIONS: &str = "\
CTDB_NATGW_NODES=/etc/ctdb/natgw_nodes
CTDB_NATGW_PUBLIC_IP=10.99.9.9/24
CTDB_NATGW_PUBLIC_IFACE=pub1
CTDB_NATGW_PRIVATE_NETWORK=10.99.1.0/24
CTDB_NATGW_DEFAULT_GATEWAY=10.99.9.1
CTDB_PER_IP_ROUTING_CONF=/etc/ctdb/per_ip_routing
CTDB_PER_IP_ROUTING_RULE_PREF=100
CTDB_PER_IP_ROUTING_TABLE_ID_LOW=1000
CTDB_PER_IP_ROUTING_TABLE_ID_HIGH=9000
CTDB_MONITOR_MPDEVICES=mpatha
CTDB_LVS_NODES=/etc/ctdb/lvs_nodes
CTDB_LVS_PUBLIC_IP=10.99.8.8
CTDB_LVS_PUBLIC_IFACE=pub1
CTDB_START_ISCSI_SCRIPTS=/etc/ctdb/iscsi
";

/// Listens as the services would, on the ports that scripts look at, and on a Unix socket.
const LISTENERS: &str = "
import signal, socket, sys
held = []
for port in (21, 80, 139, 445, 3260):
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind(('0.0.0.0', port))
    one.listen()
    held.append(one)
unix = socket.socket(socket.AF_UNIX)
unix.bind(sys.argv[1])
unix.listen()
signal.pause()
";

fn executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn copy(from: &Path, to: &Path) {
    netns::run(
        Command::new("cp")
            .args(["-a", "--no-clobber"])
            .arg(from.join("."))
            .arg(to),
    )
    .unwrap();
}

/// Where the files of a release are: `/` for the installed one, else unpacked.
fn cluster(root: &Path) -> (Lab, tempfile::TempDir) {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    if let Some(package) = reference::lacks() {
        panic!("this test cannot run here: {package} is missing");
    }
    let stage = tempfile::tempdir().unwrap();
    fs::set_permissions(stage.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let stub = stage.path().join("stub");
    executable(&stub, STUB);
    let stubs = stage.path().join("bin");
    fs::create_dir(&stubs).unwrap();
    let mut covers = Vec::new();
    for name in STUBS {
        symlink(&stub, stubs.join(name)).unwrap();
        for dir in ["/usr/bin", "/usr/sbin", "/bin", "/sbin"] {
            let Ok(installed) = fs::canonicalize(Path::new(dir).join(name)) else {
                continue;
            };
            // What is reached by several names (systemctl, alternatives) is covered once.
            if !covers.iter().any(|cover: &Cover| cover.target == installed) {
                covers.push(Cover::new(&stub, installed));
            }
        }
    }
    let ctdb = stage.path().join("ctdb");
    executable(
        &ctdb,
        &wrapper(&workspace_binary("CTDB_BIN", "ctdb").unwrap()),
    );
    covers.push(Cover::new(&ctdb, "/usr/bin/ctdb"));
    // 13.per_ip_routing writes there.
    let iproute = stage.path().join("iproute2");
    fs::create_dir(&iproute).unwrap();
    copy(Path::new("/etc/iproute2"), &iproute);
    covers.push(Cover::new(&iproute, "/etc/iproute2"));
    if root != Path::new("/") {
        covers.push(Cover::new(root.join(&SHARE[1..]), SHARE));
    }
    let path = std::env::join_paths(std::iter::once(stubs).chain(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    )))
    .unwrap();
    let lab = Lab::builder()
        .public_interfaces(2)
        .tunable("MonitorInterval", 2)
        .packaged(covers)
        .env("PATH", path.to_str().unwrap())
        .build()
        .unwrap();
    for node in lab.nodes() {
        prepare(node, root, stage.path());
    }
    (lab, stage)
}

/// The package's configuration, all of its scripts, and listeners.
fn prepare(node: &Node, root: &Path, stage: &Path) {
    copy(&root.join("etc/ctdb"), &node.etc());
    let legacy = node.etc().join("events/legacy");
    fs::create_dir_all(&legacy).unwrap();
    for entry in fs::read_dir(root.join(&SHARE[1..]).join("events/legacy")).unwrap() {
        let name = entry.unwrap().file_name();
        let _ = fs::remove_file(legacy.join(&name));
        symlink(
            Path::new(SHARE).join("events/legacy").join(&name),
            legacy.join(&name),
        )
        .unwrap();
    }
    let socket = stage.join(format!("clamd{}", node.pnn()));
    let options = format!("{OPTIONS}CTDB_CLAMD_SOCKET={}\n", socket.display());
    node.write("script.options", &options).unwrap();
    let nodes = fs::read_to_string(node.etc().join("nodes")).unwrap();
    node.write("natgw_nodes", &nodes).unwrap();
    node.write("lvs_nodes", &nodes).unwrap();
    node.write("static-routes", "pub0 10.50.0.0/16 10.99.2.1\n")
        .unwrap();
    // The script knows IPv4 only.
    let mut routes = String::new();
    for host in 100..103 {
        let public = format!("10.99.2.{host}");
        _ = writeln!(
            routes,
            "{public} 10.99.2.0/24\n{public} 10.60.0.0/16 10.99.2.1"
        );
    }
    node.write("per_ip_routing", &routes).unwrap();
    fs::create_dir_all(node.etc().join("iscsi")).unwrap();
    for dir in ["run/lock", "run/samba"] {
        fs::create_dir_all(node.root().join(dir)).unwrap();
    }
    let mut python = Command::new("python3");
    python
        .args(["-c", LISTENERS])
        .arg(&socket)
        .stdin(Stdio::null());
    // It goes with the namespace.
    drop(node.netns().spawn(&mut python).unwrap());
}

/// Calls of `ctdb` with exit code and errors.
fn calls(node: &Node) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(node.root().join("var/log/ctdb/calls.log")).unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, '\t').map(str::to_owned);
            Some((fields.next()?, fields.next()?, fields.next()?))
        })
        .collect()
}

/// Result of each script in the last run of an event.
fn results(lab: &Lab, pnn: u32, event: &str) -> BTreeMap<String, (i64, String)> {
    let answer = lab
        .ctdb(pnn, &["event", "status", "legacy", event, "--json"])
        .unwrap();
    let json: serde_json::Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
    json["scripts"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|script| {
            (
                script["name"].as_str().unwrap().to_owned(),
                (
                    script["result"].as_i64().unwrap_or(-1),
                    script["output"].as_str().unwrap_or_default().to_owned(),
                ),
            )
        })
        .collect()
}

fn hosted(lab: &Lab, pnn: u32) -> BTreeSet<String> {
    let owners = lab.node(pnn).ip_owners().unwrap_or_default();
    owners
        .into_iter()
        .filter(|(_, owner)| *owner == Some(pnn))
        .map(|(address, _)| address.to_string())
        .collect()
}

fn listed(node: &Node) -> BTreeSet<String> {
    let file = node
        .root()
        .join("var/lib/ctdb/scripts/my-public-ip-addresses");
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

const DISABLED: i64 = -8;

/// What is wrong with the last run of an event on node 0.
fn complaints(lab: &Lab, event: &str) -> String {
    let mut wrong = String::new();
    let results = results(lab, 0, event);
    if results.len() < 15 {
        _ = writeln!(wrong, "{event}: only {} scripts", results.len());
    }
    for (script, (result, output)) in results {
        // Its work is built in; it keeps its other events.
        let built_in =
            script == "10.interface" && ["takeip", "releaseip", "updateip"].contains(&event);
        if result != if built_in { DISABLED } else { 0 } {
            _ = writeln!(wrong, "{event}: {script} gave {result}: {output}");
        }
    }
    wrong
}

/// All events, on all nodes; `missing`: commands that these scripts call and that are not here yet.
fn through_all_events(root: &Path, missing: &[&str]) {
    let (lab, _stage) = cluster(root);
    lab.bring_up(&[Service::Plain], LONG).unwrap();

    // A move: releaseip, takeip; an interface without link: updateip.
    let address = lab.public_addresses()[0];
    for to in [0, 1, 0] {
        let to = to.to_string();
        lab.ctdb(0, &["moveip", &address.to_string(), &to])
            .unwrap()
            .success()
            .unwrap();
    }
    lab.node(0).set_cable("pub0", false).unwrap();
    lab.wait("updateip", LONG, || {
        !results(&lab, 0, "updateip").is_empty()
    })
    .unwrap();
    lab.node(0).set_cable("pub0", true).unwrap();
    lab.wait("a monitor of all", LONG, || {
        (0..3).all(|pnn| !results(&lab, pnn, "monitor").is_empty())
    })
    .unwrap();
    lab.wait_all_healthy(LONG).unwrap();

    let mut wrong = String::new();
    for event in [
        "init",
        "setup",
        "startrecovery",
        "recovered",
        "startup",
        "monitor",
        "startipreallocate",
        "ipreallocated",
        "takeip",
        "releaseip",
        "updateip",
    ] {
        // One may just run, or have been given up for another event.
        let mut found = String::new();
        let _ = lab.wait(event, Duration::from_secs(15), || {
            found = complaints(&lab, event);
            found.is_empty()
        });
        wrong.push_str(&found);
    }
    let mut seen: BTreeSet<String> = BTreeSet::new();
    for (code, words, error) in lab.nodes().iter().flat_map(calls) {
        let command = words
            .split(' ')
            .find(|word| !word.starts_with('-'))
            .unwrap_or_default();
        seen.insert(words.clone());
        if error.contains("Unknown command") && !missing.contains(&command) {
            _ = writeln!(wrong, "ctdb {words}: exit {code}, {error}");
        }
    }
    println!("calls of ctdb: {seen:#?}");
    for wanted in [
        "setifacelink pub0 up",
        "-X ifaces",
        "pnn",
        "-X nodestatus all",
    ] {
        if !seen.contains(wanted) {
            _ = writeln!(wrong, "nobody called ctdb {wanted}: {seen:?}");
        }
    }
    for pnn in 0..3 {
        lab.wait("the list that scripts read", LONG, || {
            listed(lab.node(pnn)) == hosted(&lab, pnn)
        })
        .unwrap();
    }

    // A copy of 10.interface under another name is named, and not sent what is built in.
    let copy = lab.node(0).etc().join("events/legacy/12.mine.script");
    let original = root
        .join(&SHARE[1..])
        .join("events/legacy/10.interface.script");
    fs::copy(original, &copy).unwrap();
    lab.wait("the copy to be named", LONG, || {
        lab.node(0)
            .log_tails(2000)
            .contains("this script moves public addresses itself")
    })
    .unwrap();
    lab.ctdb(0, &["moveip", &address.to_string(), "1"])
        .unwrap()
        .success()
        .unwrap();
    lab.wait("releaseip", LONG, || {
        results(&lab, 0, "releaseip")
            .get("12.mine")
            .is_some_and(|(result, output)| *result == DISABLED && output.starts_with("not sent"))
    })
    .unwrap();
    assert!(wrong.is_empty(), "{wrong}\n{}", lab.log_tails(60));
    // `shutdown`, and everything is off.
    lab.end().unwrap();
}

/// Commands that come with other parts of the daemon.
const MISSING: &[&str] = &[];

#[test]
fn release_4_17_through_all_events() {
    through_all_events(Path::new("/"), MISSING);
}

/// 4.22's, or with `CTDB_OTHER=DIR` those of a package that `dpkg-deb -x` unpacked.
#[test]
#[ignore = "downloads packages of Debian's next release"]
fn another_release_through_all_events() {
    let other = std::env::var_os("CTDB_OTHER").map(PathBuf::from);
    match other.map_or_else(|| overlay::overlay("trixie", &["ctdb"]), Ok) {
        Ok(root) => through_all_events(&root, MISSING),
        Err(error) => println!("NOT TESTED: the packages of trixie cannot be had: {error:#}"),
    }
}
