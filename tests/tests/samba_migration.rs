//! A cluster that Debian's CTDB ran, with Samba's data in its persistent databases, goes on under our
//! daemon with the same configuration and on the same files; what is changed there is there when
//! Debian's is back.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use ctdb_tests::lab::{Flavor, Lab, Service, lacks, reference};

const LONG: Duration = Duration::from_secs(90);
/// A user of every Debian host besides root.
const OTHER: &str = "daemon";

fn tool(lab: &Lab, node: u32, words: &[&str]) -> String {
    let answer = lab.node(node).samba(words).unwrap().success();
    answer.unwrap_or_else(|error| panic!("node {node}: {words:?}: {error:#}"))
}

/// What Samba says about its persistent databases on a node: `passdb.tdb`, `secrets.tdb`,
/// `registry.tdb`, `account_policy.tdb`, `group_mapping.tdb`.
fn said(lab: &Lab, node: u32) -> Vec<String> {
    let commands: [&[&str]; 5] = [
        &["pdbedit", "-L", "-w"],
        &["net", "getlocalsid"],
        &["net", "conf", "list"],
        &["pdbedit", "-P", "min password length"],
        &["net", "groupmap", "list"],
    ];
    commands
        .into_iter()
        .map(|words| {
            let text = tool(lab, node, words);
            let mut lines: Vec<_> = text.lines().map(str::trim_end).collect();
            // The order of a traverse is nobody's promise.
            if words.contains(&"-L") || words.contains(&"groupmap") {
                lines.sort_unstable();
            }
            lines.join("\n")
        })
        .collect()
}

/// All nodes say the same, which is returned.
fn all_say(lab: &Lab) -> Vec<String> {
    let first = said(lab, 0);
    for node in 1..3 {
        assert_eq!(said(lab, node), first, "node {node}");
    }
    first
}

/// A login through every address, and a file made by it.
fn login(lab: &Lab, user: &str, share: &str, folder: &str) {
    for (number, address) in lab.public_addresses().iter().enumerate() {
        let mut text = String::new();
        let mut command = Command::new("smbclient");
        command.args([&format!("//{address}/{share}"), "-U", user, "-c"]);
        command.arg(format!("mkdir {folder}{number}"));
        let done = lab.wait(&format!("{user} at {address}"), LONG, || {
            let out = lab.client().output(&mut command).unwrap();
            text = String::from_utf8_lossy(&out.stdout).into_owned();
            text.push_str(&String::from_utf8_lossy(&out.stderr));
            // It may have been made by an attempt whose answer was lost.
            out.status.success() || text.contains("NT_STATUS_OBJECT_NAME_COLLISION")
        });
        done.unwrap_or_else(|error| panic!("{error:#}\n{text}"));
    }
    let made = std::fs::read_dir(lab.shared_dir().join(share)).unwrap();
    let made = made.filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(folder)
    });
    assert_eq!(made.count(), 3, "{folder}");
}

fn refused(lab: &Lab, user: &str) {
    let address = lab.public_addresses()[1];
    let mut command = Command::new("smbclient");
    command.args([&format!("//{address}/share"), "-U", user, "-c", "ls"]);
    let out = lab.client().output(&mut command).unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(text.contains("NT_STATUS_LOGON_FAILURE"), "{user}: {text}");
}

/// A share of the registry that any node may make, with a folder of its name.
fn share(lab: &Lab, node: u32, name: &str) {
    let path = lab.shared_dir().join(name);
    std::fs::create_dir(&path).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(&path, open).unwrap();
    let path = path.to_str().unwrap();
    tool(
        lab,
        node,
        &["net", "conf", "addshare", name, path, "writeable=y"],
    );
}

fn policy(lab: &Lab, node: u32, length: &str) {
    tool(
        lab,
        node,
        &["pdbedit", "-P", "min password length", "-C", length],
    );
}

fn start(lab: &Lab) {
    lab.bring_up(&[], LONG).unwrap();
    lab.start_service(Service::ClusteredSmb).unwrap();
}

fn stop(lab: &Lab) {
    for node in lab.nodes() {
        node.stop_service(Service::ClusteredSmb).unwrap();
    }
    for node in lab.nodes() {
        node.stop_graceful(LONG).unwrap();
    }
}

/// The other daemon, and Samba again; it says what it said before.
fn migrate(lab: &mut Lab, flavor: Flavor, before: &[String]) {
    stop(lab);
    lab.migrate(flavor).unwrap();
    start(lab);
    let after = all_say(lab);
    assert_eq!(after, before, "under {flavor:?}");
}

/// What `said` prints, by its words.
fn contains(said: &[String], words: &[(&str, bool)]) {
    let text = said.join("\n");
    let found: BTreeMap<_, _> = words.iter().map(|(w, _)| (*w, text.contains(*w))).collect();
    let wanted: BTreeMap<_, _> = words.iter().copied().collect();
    assert_eq!(found, wanted, "{text}");
}

#[test]
fn from_ctdb_to_ours_and_back() {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let missing = Service::ClusteredSmb.lacks();
    if let Some(package) = missing.or_else(reference::lacks) {
        panic!("this test cannot run here: {package} is missing");
    }
    let builder = Lab::builder().flavor(Flavor::Ctdb).ipv6(false);
    let mut lab = builder.build().unwrap();
    start(&lab);
    lab.node(0).samba_account().unwrap();
    lab.node(1).samba_password(OTHER, "first").unwrap();
    policy(&lab, 2, "4");
    share(&lab, 0, "one");
    let group = "ntgroup=Lab people";
    let add = ["net", "groupmap", "add", group, "unixgroup=daemon"];
    tool(&lab, 1, &[&add[..], &["rid=5000", "type=domain"]].concat());
    login(&lab, "daemon%first", "one", "theirs");
    let before = all_say(&lab);
    contains(
        &before,
        &[
            ("root:0:", true),
            ("daemon:1:", true),
            ("[one]", true),
            ("Lab people", true),
        ],
    );

    migrate(&mut lab, Flavor::Ours, &before);
    login(&lab, "daemon%first", "one", "ours");
    login(&lab, "root%secret", "one", "root");
    lab.node(2).samba_password(OTHER, "second").unwrap();
    policy(&lab, 0, "5");
    tool(&lab, 1, &["net", "conf", "delshare", "one"]);
    share(&lab, 2, "two");
    tool(&lab, 0, &["net", "groupmap", "delete", group]);
    login(&lab, "daemon%second", "two", "ours");
    refused(&lab, "daemon%first");
    let before = all_say(&lab);
    contains(
        &before,
        &[("[one]", false), ("[two]", true), ("Lab people", false)],
    );

    migrate(&mut lab, Flavor::Ctdb, &before);
    login(&lab, "daemon%second", "two", "back");
    refused(&lab, "daemon%first");
    lab.node(0).samba_password(OTHER, "third").unwrap();
    policy(&lab, 1, "6");
    share(&lab, 1, "three");
    let before = all_say(&lab);

    // What ours wrote down beside the databases is older than they are now.
    migrate(&mut lab, Flavor::Ours, &before);
    login(&lab, "daemon%third", "three", "ours");
    refused(&lab, "daemon%second");
    lab.node(1).samba_password(OTHER, "fourth").unwrap();
    login(&lab, "daemon%fourth", "three", "last");
    assert_eq!(lab.destroy(), Vec::<String>::new());
}
