//! The Debian package: installed beside the package `ctdb` in a copy of this system that is thrown
//! away (an overlay in a mount namespace), and removed again. Nothing is changed on the host.

use std::path::Path;
use std::process::Command;

use ctdb_tests::lab::{netns, reference, workspace_binary};

/// What is done in the copy. Every line of output that begins with `--` is looked at below.
const STEPS: &str = r#"
set -eu
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay none -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount --bind /proc "$1/root/proc"
mkdir "$1/root/deb"
cp "$2" "$1/root/deb/ctdbd.deb"
exec chroot "$1/root" sh -eu -c '
sum() { sha256sum /usr/sbin/ctdbd /usr/bin/ctdb | cut -c1-64 | tr "\n" " "; }
unset CTDBD_ROOT
before=$(sum)
dpkg --install /deb/ctdbd.deb >/deb/log 2>&1 || { cat /deb/log; exit 1; }
echo "-- status: $(dpkg-query --show --showformat="\${Status}" ctdbd)"
echo "-- ctdb: $(readlink -f /usr/bin/ctdb) ctdbd: $(readlink -f /usr/sbin/ctdbd)"
echo "-- version: $(ctdb version)"
echo "-- theirs: $(/usr/lib/ctdbd/ctdb-package/ctdb version)"
[ "$(sha256sum /usr/lib/ctdbd/ctdb-package/ctdbd /usr/lib/ctdbd/ctdb-package/ctdb | cut -c1-64 | tr "\n" " ")" = "$before" ]
echo "-- check: $(dpkg --verify ctdbd)"
echo "-- unit: $(grep ^ExecStart= /usr/lib/systemd/system/ctdb.service.d/ctdbd.conf | tail -1)"
echo "-- scripts: $(ls /usr/share/ctdb/events/legacy | wc -l)"
echo "-- manual: $(zcat /usr/share/man/man1/ctdb-node.1.gz | grep -c "^\.SH")"
bash -n /usr/share/bash-completion/completions/ctdb
mkdir /deb/try
cp /usr/share/doc/ctdbd/examples/ctdb.conf /etc/ctdb/ctdb.conf
echo 127.0.0.1 >/etc/ctdb/nodes
ctdb config keygen >/dev/null
echo "-- example: $(ctdb config check | tail -1)"
# Installing it once more changes nothing; nor does an upgrade of the other package, whose files
# then go to the place aside (dpkg knows the diversion).
dpkg --install /deb/ctdbd.deb >/deb/log 2>&1 || { cat /deb/log; exit 1; }
echo "-- diverted: $(dpkg-divert --list ctdbd | wc -l)"
dpkg --remove ctdbd >/deb/log 2>&1 || { cat /deb/log; exit 1; }
[ "$(sum)" = "$before" ]
echo "-- restored: $(dpkg --verify ctdb | grep -c usr/ || true)"
echo "-- left: $(ls -d /usr/lib/ctdbd /usr/lib/systemd/system/ctdb.service.d /usr/share/doc/ctdbd 2>/dev/null | wc -l)"
echo "-- diversions: $(dpkg-divert --list ctdbd | wc -l)"
'
"#;

#[test]
fn installed_beside_ctdb_and_removed_again() {
    if let Some(package) = reference::lacks() {
        panic!("this test cannot run here: {package} is missing");
    }
    let dir = tempfile::tempdir().unwrap();
    let ours = workspace_binary("CTDB_BIN", "ctdb").unwrap();
    let built = netns::run(
        Command::new(workspace_binary("XTASK_BIN", "xtask").unwrap())
            .args(["dist", "--binaries"])
            .arg(ours.parent().unwrap())
            .arg("--output")
            .arg(dir.path()),
    )
    .unwrap();
    let package = built.lines().last().unwrap();
    assert!(Path::new(package).exists(), "{built}");
    let copy = dir.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    let said = netns::run(
        Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "--",
                "sh",
                "-c",
                STEPS,
                "steps",
            ])
            .arg(&copy)
            .arg(package),
    )
    .unwrap();
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("-- "))
        .collect();
    let release = ctdb_wire_release();
    assert_eq!(
        lines[..3],
        [
            "-- status: install ok installed",
            "-- ctdb: /usr/lib/ctdbd/ctdb ctdbd: /usr/lib/ctdbd/ctdbd",
            &format!("-- version: {release}"),
        ],
        "{said}"
    );
    assert!(lines[3].starts_with("-- theirs: 4."), "{said}");
    assert_eq!(
        lines[4..6],
        [
            "-- check: ",
            "-- unit: ExecStart=/usr/sbin/ctdbd --interactive"
        ],
        "{said}"
    );
    let count = |line: &str| -> usize { line.rsplit(' ').next().unwrap().parse().unwrap() };
    assert!(count(lines[6]) >= 17, "{said}");
    assert!(count(lines[7]) >= 3, "{said}");
    assert_eq!(
        lines[8..],
        [
            "-- example: the configuration has no errors",
            "-- diverted: 2",
            "-- restored: 0",
            "-- left: 0",
            "-- diversions: 0"
        ],
        "{said}"
    );
}

/// All crates of the workspace have one version.
fn ctdb_wire_release() -> &'static str {
    env!("CARGO_PKG_VERSION")
}
