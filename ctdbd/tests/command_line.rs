//! The real program `ctdb` as users other than root run it.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ctdb_wire::api::Snapshot;
use ctdbd::api::{self, ApiConfig};
use tokio::sync::{mpsc, watch};

/// A user and group that own nothing.
const NOBODY: u32 = 65534;

/// A copy of the program where everybody can run it.
fn program(directory: &Path) -> PathBuf {
    let copy = directory.join("ctdb");
    fs::copy(env!("CARGO_BIN_EXE_ctdb"), &copy).unwrap();
    fs::set_permissions(&copy, Permissions::from_mode(0o755)).unwrap();
    copy
}

/// Standard output, standard error and exit code of `ctdb` as a user in one group.
fn run(directory: &Path, group: u32, args: &[&str]) -> (String, String, Option<i32>) {
    let output = Command::new(directory.join("ctdb"))
        .args(args)
        .env("CTDBD_ROOT", directory)
        .env_remove("CTDB_TEST_MODE")
        .uid(NOBODY)
        .gid(group)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        text(output.stdout),
        text(output.stderr),
        output.status.code(),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_of_the_group_read_and_nobody_else_does() {
    let directory = tempfile::tempdir().unwrap();
    assert!(
        fs::metadata(directory.path()).unwrap().uid() == 0,
        "this test needs root, to run the program as other users"
    );
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    program(directory.path());
    let sockets = directory.path().join("run/ctdb");
    fs::create_dir_all(&sockets).unwrap();
    let nobody = nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(NOBODY)).unwrap();
    let config = ApiConfig {
        socket: sockets.join("api.sock"),
        read_socket: sockets.join("api-ro.sock"),
        group: Some(nobody.expect("a group 65534").name),
    };
    let (_state, snapshot) = watch::channel(Arc::new(Snapshot {
        node: 5,
        ..Snapshot::default()
    }));
    let (commands, _queue) = mpsc::channel(1);
    let handle = api::start(&config, &snapshot, &commands).unwrap();

    let root = directory.path().to_owned();
    tokio::task::spawn_blocking(move || {
        assert_eq!(
            run(&root, NOBODY, &["pnn"]),
            ("5\n".into(), String::new(), Some(0))
        );
        let (_, error, code) = run(&root, NOBODY, &["ip", "reallocate"]);
        assert!(error.contains("sudo") && code == Some(1), "{error}");
        let (_, error, code) = run(&root, 12345, &["node", "list"]);
        assert!(
            error.contains("member of the group") && code == Some(1),
            "{error}"
        );
    })
    .await
    .unwrap();
    handle.shutdown(Duration::from_secs(1)).await;
}
