//! `ctdb db file`: the built program beside Debian's tdbtool, tdbdump and tdbrestore, with no daemon
//! anywhere.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use ctdb_db::{LockKind, OpenFlags, OpenOptions, StoreMode, Tdb, Wait};
use serde_json::Value;

/// A folder to work in.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, program: &str, words: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(words)
            .current_dir(self.0.path())
            // Whatever runs on this machine is not to be found.
            .env("CTDB_TEST_MODE", "1")
            .env("CTDB_BASE", self.0.path())
            .stdin(Stdio::null());
        command
    }

    fn run(&self, program: &str, words: &[&str]) -> Output {
        self.command(program, words)
            .output()
            .unwrap_or_else(|error| panic!("{program} (package tdb-tools): {error}"))
    }

    /// `ctdb db file WORDS`: exit code, standard output, standard error.
    fn ctdb(&self, words: &[&str]) -> (i32, String, String) {
        let words: Vec<&str> = ["db", "file"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        let out = self.run(env!("CARGO_BIN_EXE_ctdb"), &words);
        (
            out.status.code().unwrap(),
            text(&out.stdout),
            text(&out.stderr),
        )
    }

    /// The output of a command that must succeed without a word of warning.
    fn ok(&self, words: &[&str]) -> String {
        let (code, out, err) = self.ctdb(words);
        assert_eq!((code, err.as_str()), (0, ""), "{words:?}: {out}");
        out
    }

    /// The JSON and the standard error of a command that must end with `code`.
    fn json(&self, code: i32, words: &[&str]) -> (Value, String) {
        let words: Vec<&str> = ["--json"]
            .into_iter()
            .chain(words.iter().copied())
            .collect();
        let (found, out, err) = self.ctdb(&words);
        assert_eq!(found, code, "{words:?}: {out}{err}");
        let value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{words:?}: {e}: {out}"));
        (value, err)
    }

    fn tool(&self, program: &str, words: &[&str]) -> String {
        let out = self.run(program, words);
        assert!(
            out.status.success(),
            "{program} {words:?}: {}",
            text(&out.stderr)
        );
        text(&out.stdout)
    }

    /// A process with the file as its standard input.
    fn holder(&self, program: &Path, file: &str) -> Holder {
        let mut command = Command::new(program);
        command
            .arg("60")
            .stdin(File::open(self.path(file)).unwrap());
        Holder(command.spawn().unwrap())
    }
}

struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_one_puts_the_other_gets() {
    let folder = Folder::new();
    folder.tool("tdbtool", &["a.tdb", "create", "a.tdb"]);
    folder.tool("tdbtool", &["a.tdb", "insert", "theirs", "their data"]);
    assert_eq!(folder.ok(&["get", "a.tdb", "theirs"]), "their data\n");
    assert_eq!(folder.ok(&["put", "a.tdb", "ours", "our data"]), "");
    let shown = folder.tool("tdbtool", &["a.tdb", "show", "ours"]);
    assert!(shown.contains("our data"), "{shown}");
    assert_eq!(folder.ok(&["list", "a.tdb"]).lines().count(), 2);
    folder.ok(&["put", "a.tdb", "ours", "other"]);
    assert_eq!(folder.ok(&["get", "a.tdb", "ours"]), "other\n");
    folder.ok(&["del", "a.tdb", "theirs"]);
    let keys = folder.tool("tdbtool", &["a.tdb", "keys"]);
    assert_eq!(keys.trim(), "key 4 bytes: ours");
    // No transaction where nobody makes any: the file stays small, and is what libtdb would make.
    assert_eq!(fs::metadata(folder.path("a.tdb")).unwrap().len(), 8192);
    let check = folder.tool("tdbtool", &["a.tdb", "check"]);
    assert!(
        check.contains("integrity is OK and has 1 records"),
        "{check}"
    );
}

#[test]
fn any_byte_can_be_named() {
    let folder = Folder::new();
    let (code, out, err) = folder.ctdb(&["put", "a.tdb", r"nul\00\0Aend", r"\FF\5C\22 plain"]);
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(err.contains("a.tdb did not exist and was made"), "{err}");
    assert_eq!(folder.ok(&["list", "a.tdb"]), "nul\\00\\0Aend\n");
    assert_eq!(
        folder.ok(&["get", "a.tdb", r"nul\00\0aend"]),
        "\\FF\\5C\\22 plain\n"
    );
    let raw = folder.run(
        env!("CARGO_BIN_EXE_ctdb"),
        &[
            "db",
            "file",
            "put",
            "--raw",
            "a.tdb",
            r"back\slash",
            r"C:\temp",
        ],
    );
    assert!(raw.status.success());
    assert_eq!(
        folder.ok(&["get", "a.tdb", "--raw", r"back\slash"]),
        r"C:\temp"
    );
    assert_eq!(
        folder.ok(&["get", "a.tdb", r"back\5Cslash"]),
        "C:\\5Ctemp\n"
    );
    let (code, _, err) = folder.ctdb(&["get", "a.tdb", r"back\slash"]);
    assert!(code == 64 && err.contains(r"`\5C`"), "{code} {err}");
    folder.ok(&["put", "a.tdb", "number", "-5"]);
    folder.ok(&["put", "a.tdb", "", ""]);
    assert_eq!(folder.ok(&["get", "a.tdb", ""]), "\n");
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    fs::write(folder.path("in"), &bytes).unwrap();
    folder.ok(&["put", "a.tdb", "large", "--from", "in"]);
    let got = folder.run(
        env!("CARGO_BIN_EXE_ctdb"),
        &["db", "file", "get", "--raw", "a.tdb", "large"],
    );
    assert_eq!(got.stdout, bytes);
    assert_eq!(
        folder.ok(&["dump", "a.tdb"]),
        folder.tool("tdbdump", &["a.tdb"])
    );
}

#[test]
fn dumps_go_both_ways() {
    let folder = Folder::new();
    let mut tdb = Tdb::open(
        folder.path("a.tdb"),
        &OpenOptions {
            create: true,
            flags: OpenFlags::INCOMPATIBLE_HASH,
            ..OpenOptions::default()
        },
    )
    .unwrap();
    for i in 0..300u32 {
        let data = vec![i as u8; i as usize * 3];
        tdb.store(&i.to_le_bytes(), &data, StoreMode::Insert)
            .unwrap();
    }
    drop(tdb);
    let ours = folder.ok(&["dump", "a.tdb"]);
    assert_eq!(ours, folder.tool("tdbdump", &["a.tdb"]));
    fs::write(folder.path("dump"), &ours).unwrap();
    // Theirs reads ours.
    let mut restore = folder.command("tdbrestore", &["theirs.tdb"]);
    let dump = File::open(folder.path("dump")).unwrap();
    assert!(restore.stdin(dump).status().unwrap().success());
    // Ours reads theirs, from a file and from a pipe.
    assert_eq!(
        folder.ok(&["restore", "b.tdb", "dump"]),
        "300 records are in b.tdb\n"
    );
    let mut child = folder
        .command(
            env!("CARGO_BIN_EXE_ctdb"),
            &["db", "file", "restore", "c.tdb"],
        )
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let theirs = folder.tool("tdbdump", &["theirs.tdb"]);
    child
        .stdin
        .take()
        .unwrap()
        .write_all(theirs.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    let sorted = |dump: String| {
        let mut records: Vec<String> = dump.split("}\n").map(str::to_owned).collect();
        records.sort();
        records
    };
    for file in ["theirs.tdb", "b.tdb", "c.tdb"] {
        assert_eq!(
            sorted(folder.ok(&["dump", file])),
            sorted(ours.clone()),
            "{file}"
        );
    }
    // The same records in the same order give libtdb's file.
    assert!(
        fs::read(folder.path("theirs.tdb")).unwrap() == fs::read(folder.path("b.tdb")).unwrap()
    );

    // A dump with a mistake makes no file, and leaves nothing behind.
    fs::write(folder.path("bad"), ours.replace("data(30)", "data(31)")).unwrap();
    let (value, err) = folder.json(1, &["restore", "d.tdb", "bad"]);
    assert_eq!(value["error"]["code"], "bad_dump");
    assert!(err.contains("31 bytes announced, 30 found"), "{err}");
    let left: Vec<_> = fs::read_dir(folder.0.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .filter(|name| name.to_string_lossy().contains("d.tdb"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    let (value, _) = folder.json(3, &["restore", "b.tdb", "dump"]);
    assert_eq!(value["error"]["code"], "exists");
    folder.ok(&["restore", "--force", "b.tdb", "dump"]);
}

#[test]
fn files_become_files_of_another_kind() {
    let folder = Folder::new();
    folder.ctdb(&["put", "a.tdb", "key", "value"]);
    folder.ok(&["put", "a.tdb", "other", "more"]);
    fs::set_permissions(folder.path("a.tdb"), fs::Permissions::from_mode(0o640)).unwrap();
    let content = folder.tool("tdbdump", &["a.tdb"]);
    for (options, hash, chains, order) in [
        (&["--hash", "jenkins"][..], "jenkins", 131, "little"),
        (
            &["--hash-size", "3", "--byte-order", "big"],
            "old",
            3,
            "big",
        ),
        (
            &["--hash", "jenkins", "--byte-order", "big"],
            "jenkins",
            131,
            "big",
        ),
        (&["--byte-order", "native"], "old", 131, "little"),
    ] {
        let words: Vec<&str> = ["convert", "--force", "a.tdb", "b.tdb"]
            .iter()
            .chain(options)
            .copied()
            .collect();
        folder.ok(&words);
        let (check, _) = folder.json(0, &["check", "b.tdb"]);
        assert_eq!(
            (
                &check["hash"],
                &check["hash_size"],
                &check["byte_order"],
                &check["records"]
            ),
            (&hash.into(), &chains.into(), &order.into(), &2.into())
        );
        let mut lines: Vec<String> = folder
            .tool("tdbdump", &["b.tdb"])
            .lines()
            .map(str::to_owned)
            .collect();
        let mut wanted: Vec<String> = content.lines().map(str::to_owned).collect();
        lines.sort();
        wanted.sort();
        assert_eq!(lines, wanted, "{options:?}");
        let text = folder.tool("tdbtool", &["b.tdb", "check"]);
        assert!(
            text.contains("integrity is OK and has 2 records"),
            "{options:?}: {text}"
        );
        let mode = fs::metadata(folder.path("b.tdb"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
    }
    // A file of the other byte order is read, and changed with a warning.
    folder.ok(&["convert", "--byte-order", "big", "a.tdb", "big.tdb"]);
    assert_eq!(folder.ok(&["get", "big.tdb", "key"]), "value\n");
    let (code, _, err) = folder.ctdb(&["put", "big.tdb", "key", "new"]);
    assert!(
        code == 0 && err.contains("--byte-order native"),
        "{code} {err}"
    );
    assert!(folder.tool("tdbdump", &["big.tdb"]).contains("\"new\""));
    for options in [
        &["--hash", "old", "--mutexes", "yes"][..],
        &["--mutexes", "yes", "--byte-order", "big"],
    ] {
        let words: Vec<&str> = ["convert", "a.tdb", "c.tdb"]
            .iter()
            .chain(options)
            .copied()
            .collect();
        assert_eq!(folder.ctdb(&words).0, 64, "{options:?}");
    }
}

#[test]
fn headers_of_ctdb_are_shown_and_kept() {
    let folder = Folder::new();
    folder.ctdb(&["put", "--ctdb", "--dmaster", "2", "a.tdb", "key", "value"]);
    folder.ok(&["put", "--ctdb", "a.tdb", "key", "value 2"]);
    let (record, _) = folder.json(0, &["get", "--ctdb", "a.tdb", "key"]);
    assert_eq!(record["header"]["rsn"], 2);
    assert_eq!(record["header"]["dmaster"], 2);
    assert_eq!(record["data"], "value 2");
    assert_eq!(
        folder.ok(&["get", "--ctdb", "a.tdb", "key"]),
        "rsn      2\ndmaster  2\nflags    0x00000000\nlength   7\ndata     value 2\n"
    );
    // The bytes are CTDB's: number, owner, nothing, flags, padding, data.
    let raw = r"\02\00\00\00\00\00\00\00\02\00\00\00\00\00\00\00\00\00\00\00\00\00\00\00value 2";
    assert_eq!(folder.ok(&["get", "a.tdb", "key"]), format!("{raw}\n"));
    folder.ok(&["put", "a.tdb", "short", "x"]);
    let (code, _, err) = folder.ctdb(&["get", "--ctdb", "a.tdb", "short"]);
    assert!(
        code == 3 && err.contains("fewer than CTDB's header"),
        "{code} {err}"
    );
    let list = folder.ok(&["list", "--ctdb", "a.tdb"]);
    assert!(
        list.contains("key\trsn=2 dmaster=2 flags=0x00000000 length=7\n"),
        "{list}"
    );
    assert!(list.contains("short\tno header\n"), "{list}");
    let (dump, _) = folder.json(0, &["dump", "--ctdb", "a.tdb"]);
    assert_eq!(dump["records"].as_array().unwrap().len(), 2);
    assert!(
        dump["records"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["header"].is_null())
    );
    let dump = folder.ok(&["dump", "--ctdb", "a.tdb"]);
    assert!(
        dump.contains("data(7) = \"value 2\"\nrsn = 2\ndmaster = 2\n"),
        "{dump}"
    );
}

#[test]
fn what_cannot_be_done_is_said() {
    let folder = Folder::new();
    folder.ctdb(&["put", "a.tdb", "key", "value"]);
    for (code, word, words) in [
        (2, "no_such_key", &["get", "a.tdb", "none"][..]),
        (2, "no_such_key", &["del", "a.tdb", "none"]),
        (2, "no_such_file", &["get", "none.tdb", "key"]),
        (2, "no_such_file", &["del", "none.tdb", "key"]),
        (2, "no_such_file", &["list", "none.tdb"]),
        (2, "no_such_file", &["check", "none.tdb"]),
        (2, "no_such_file", &["dump", "none.tdb"]),
        (2, "no_such_file", &["repack", "none.tdb"]),
        (2, "no_such_file", &["convert", "none.tdb", "b.tdb"]),
        (2, "no_such_file", &["restore", "b.tdb", "none"]),
        (2, "no_such_file", &["put", "none/a.tdb", "key", "value"]),
        (3, "exists", &["convert", "a.tdb", "a.tdb"]),
        (1, "io", &["list", "."]),
    ] {
        let (value, err) = folder.json(code, words);
        assert_eq!(value["error"]["code"], word, "{words:?}: {value}");
        assert!(err.starts_with("ctdb: "), "{words:?}: {err}");
    }
    fs::write(folder.path("text"), "not a database ".repeat(100)).unwrap();
    for words in [
        &["list", "text"][..],
        &["put", "text", "key", "value"],
        &["check", "text"],
    ] {
        let (value, _) = folder.json(1, words);
        assert_eq!(value["error"]["code"], "no_database");
    }
    assert!(!folder.path("b.tdb").exists());
    let (code, _, err) = folder.ctdb(&["put", "a.tdb", "key"]);
    assert!(code == 64 && err.contains("Usage"), "{code} {err}");
    assert_eq!(folder.ctdb(&["frobnicate"]).0, 64);

    // A damaged file: what was found first is printed, and the JSON is whole.
    for i in 0..=20 {
        folder.ok(&["put", "a.tdb", &format!("key{i}"), &"x".repeat(50)]);
    }
    let mut bytes = fs::read(folder.path("a.tdb")).unwrap();
    let at = bytes.windows(5).rposition(|w| w == b"key20").unwrap();
    bytes[at - 4] ^= 1;
    fs::write(folder.path("a.tdb"), &bytes).unwrap();
    let (value, err) = folder.json(1, &["check", "a.tdb"]);
    assert_eq!(value["error"]["code"], "corrupt");
    assert!(err.contains(&format!("{:#x}", at - 24)), "{err}");
    let (value, _) = folder.json(1, &["list", "a.tdb"]);
    assert_eq!(value["error"]["code"], "corrupt");
    assert!(value["keys"].is_array());
}

#[test]
fn a_file_in_use_is_treated_with_care() {
    let folder = Folder::new();
    folder.ctdb(&["put", "a.tdb", "key", "value"]);
    let mut tdb = Tdb::open(folder.path("a.tdb"), &OpenOptions::default()).unwrap();
    let wait = Wait::Try;
    tdb.chain_lock(b"key", LockKind::Exclusive, wait).unwrap();
    let (value, err) = folder.json(4, &["-t", "1", "get", "a.tdb", "key"]);
    assert_eq!(value["error"]["code"], "busy");
    assert!(err.contains("-t waits longer"), "{err}");
    assert_eq!(folder.ok(&["get", "--no-lock", "a.tdb", "key"]), "value\n");
    let (value, _) = folder.json(3, &["convert", "--force", "--no-lock", "a.tdb", "a.tdb"]);
    assert_eq!(value["error"]["code"], "in_use");
    tdb.chain_unlock(b"key").unwrap();
    drop(tdb);

    // A CLEAR_IF_FIRST file that somebody uses: read and changed under its locks, not replaced.
    let options = OpenOptions {
        create: true,
        flags: OpenFlags::CLEAR_IF_FIRST,
        ..OpenOptions::default()
    };
    let mut volatile = Tdb::open(folder.path("v.tdb"), &options).unwrap();
    volatile.store(b"k", b"v", StoreMode::Insert).unwrap();
    assert_eq!(folder.ok(&["list", "v.tdb"]), "k\n");
    folder.ok(&["put", "v.tdb", "k2", "v2"]);
    assert_eq!(volatile.fetch(b"k2").unwrap().unwrap(), b"v2");
    let (value, _) = folder.json(3, &["convert", "--force", "a.tdb", "v.tdb"]);
    assert_eq!(value["error"]["code"], "in_use");
    drop(volatile);

    // The daemon: another program of that name.
    let daemon = folder.path("ctdbd");
    fs::copy("/bin/sleep", &daemon).unwrap();
    let holder = folder.holder(&daemon, "a.tdb");
    for words in [&["put", "a.tdb", "key", "x"][..], &["del", "a.tdb", "key"]] {
        let (value, err) = folder.json(3, words);
        assert_eq!(value["error"]["code"], "in_use");
        assert!(err.contains(&format!("process {}", holder.0.id())), "{err}");
    }
    let (check, _) = folder.json(0, &["check", "a.tdb"]);
    assert_eq!(check["users"][0]["name"], "ctdbd");
    folder.ok(&["put", "--force", "a.tdb", "key", "forced"]);
    drop(holder);
    assert_eq!(folder.ok(&["get", "a.tdb", "key"]), "forced\n");
    folder.ok(&["repack", "a.tdb"]);
}

/// What libtdb's transactions leave is used: ours are transactions too.
#[test]
fn files_with_transactions_are_changed_in_transactions() {
    let folder = Folder::new();
    let options = OpenOptions {
        create: true,
        ..OpenOptions::default()
    };
    let mut tdb = Tdb::open(folder.path("p.tdb"), &options).unwrap();
    let mut transaction = tdb.transaction().unwrap();
    transaction.store(b"a", b"1", StoreMode::Insert).unwrap();
    transaction.commit().unwrap();
    // Somebody's transaction lock keeps a transaction out, but would let a plain store in only
    // without it.
    tdb.transaction_start().unwrap();
    let (value, _) = folder.json(4, &["-t", "1", "put", "p.tdb", "a", "2"]);
    assert_eq!(value["error"]["code"], "busy");
    tdb.transaction_cancel().unwrap();
    folder.ok(&["put", "p.tdb", "a", "2"]);
    assert_eq!(tdb.fetch(b"a").unwrap().unwrap(), b"2");
    let (check, _) = folder.json(0, &["check", "p.tdb"]);
    assert!(check["recovery_bytes"].as_u64().unwrap() > 0);
    let text = folder.tool("tdbtool", &["p.tdb", "check"]);
    assert!(text.contains("integrity is OK"), "{text}");
}

/// A shell script in a mount namespace of its own, where `$1` is the folder and `$ctdb` the program:
/// what it prints. Nothing stays mounted.
fn in_namespace(folder: &Folder, script: &str) -> String {
    let mut command = folder.command("unshare", &[]);
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let out = command
        .args(["--mount", "sh", "-euc", script, "sh"])
        .arg(folder.0.path())
        .env("ctdb", env!("CARGO_BIN_EXE_ctdb"))
        .output()
        .expect("this test needs unshare (util-linux)");
    assert!(out.status.success(), "{}", text(&out.stderr));
    text(&out.stdout)
}

/// Keys, values and files as they come: what works, works to the byte, and what cannot be done is
/// said and changes nothing.
#[test]
fn odd_keys_and_files() {
    use std::os::unix::ffi::OsStrExt as _;
    let folder = Folder::new();
    folder.ctdb(&["put", "a.tdb", "", ""]);
    folder.ok(&["put", "a.tdb", "\\00\\FF", "\\0a"]);
    folder.ok(&["put", "a.tdb", "--", "-k", "-v"]);
    let mut keys: Vec<String> = folder
        .ok(&["list", "a.tdb"])
        .lines()
        .map(str::to_owned)
        .collect();
    keys.sort();
    assert_eq!(keys, ["", "-k", "\\00\\FF"]);
    assert_eq!(folder.ok(&["get", "a.tdb", ""]), "\n");
    folder.ok(&["del", "a.tdb", ""]);
    // A byte that is not UTF-8 must not become another key, nor another file.
    let before = fs::read(folder.path("a.tdb")).unwrap();
    for words in [
        [&b"put"[..], b"--raw", b"a.tdb", b"\xFF", b"v"],
        [b"put", b"--raw", b"a.tdb", b"k", b"\xFF"],
        [b"put", b"--raw", b"\xFF.tdb", b"k", b"v"],
    ] {
        let mut command = folder.command(env!("CARGO_BIN_EXE_ctdb"), &["db", "file"]);
        command.args(words.map(std::ffi::OsStr::from_bytes));
        let out = command.output().unwrap();
        assert_eq!(out.status.code(), Some(64));
        assert!(text(&out.stderr).contains("is not UTF-8"), "{out:?}");
    }
    assert_eq!(fs::read(folder.path("a.tdb")).unwrap(), before);
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 1);

    fs::write(folder.path("empty"), "").unwrap();
    fs::write(folder.path("short"), "TDB file\n").unwrap();
    let large = File::create(folder.path("large")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&large, &before, 0).unwrap();
    large.set_len(5 << 30).unwrap();
    std::os::unix::fs::symlink("loop", folder.path("loop")).unwrap();
    nix::unistd::mkfifo(&folder.path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (word, words) in [
        ("no_database", &["list", "empty"][..]),
        ("no_database", &["check", "short"]),
        ("database", &["list", "large"]),
        ("database", &["put", "large", "k", "v"]),
        ("io", &["list", "loop"]),
        ("database", &["check", "fifo"]),
        ("database", &["check", "/dev/null"]),
        ("io", &["convert", "--force", "a.tdb", "."]),
    ] {
        let (code, out, err) = folder.ctdb(&[&["--json"], words].concat());
        let usage = code == 64 && words.last() == Some(&".");
        assert!(
            usage || (code == 1 && out.contains(&format!("\"{word}\""))),
            "{words:?}: {out}{err}"
        );
    }
    // What is no more than the beginning of a file is made one.
    folder.ok(&["put", "empty", "k", "v"]);
    assert_eq!(folder.ok(&["list", "empty"]), "k\n");
}

#[test]
fn a_full_disk_and_a_read_only_one_cost_nothing() {
    let folder = Folder::new();
    let said = in_namespace(
        &folder,
        r#"
        mount -t tmpfs -o size=2m none "$1"
        cd "$1"
        "$ctdb" db file put a.tdb first 1 2> /dev/null
        for i in 1 2 3 4 5 6 7 8; do "$ctdb" db file put a.tdb "key$i" "$i"; done
        "$ctdb" db file dump a.tdb > dump
        mkdir read-only
        cp a.tdb read-only
        cp a.tdb before
        big=$(head -c 60000 /dev/zero | tr '\0' x)
        head -c 9000000 /dev/zero > filler 2> /dev/null || true
        try() {
            said=$("$ctdb" --json db file "$@" 2> /dev/null | tr -d '\n ' || true)
            echo "$1 $said" | cut -d, -f1
            [ "$("$ctdb" db file dump a.tdb)" = "$(cat dump)" ]
            "$ctdb" db file check a.tdb | grep -q 'lost bytes *0'
        }
        try put a.tdb big "$big"
        try put a.tdb first "$big"
        try repack a.tdb
        try convert a.tdb b.tdb
        try convert --force a.tdb a.tdb
        try restore b.tdb dump
        try restore --force a.tdb dump
        cmp a.tdb before
        ls -A | tr '\n' ' '
        echo
        mount --bind read-only read-only
        mount -o remount,ro,bind read-only
        for words in 'list read-only/a.tdb' 'put read-only/a.tdb k v' 'put read-only/b.tdb k v' \
            'repack read-only/a.tdb' 'convert a.tdb read-only/b.tdb' 'del read-only/a.tdb first'; do
            code=0
            "$ctdb" db file $words > /dev/null 2>&1 || code=$?
            echo "$code $words"
        done
        cmp read-only/a.tdb before
        rm filler
        "$ctdb" db file put a.tdb first 2
        "$ctdb" db file get a.tdb first
        "#,
    );
    let full = |verb: &str| format!("{verb} {{\"error\":{{\"code\":\"no_space\"\n");
    let wanted = [
        "put", "put", "repack", "convert", "convert", "restore", "restore",
    ]
    .map(full)
    .concat()
        + "a.tdb before dump filler read-only \n\
           0 list read-only/a.tdb\n1 put read-only/a.tdb k v\n1 put read-only/b.tdb k v\n\
           1 repack read-only/a.tdb\n1 convert a.tdb read-only/b.tdb\n1 del read-only/a.tdb first\n2\n";
    assert_eq!(said, wanted);
}

/// A program that is killed while it makes a file leaves the old one, and nothing under the new name.
#[test]
fn the_interrupted_leave_the_old_file() {
    let folder = Folder::new();
    folder.ctdb(&["put", "a.tdb", "key", "value"]);
    fs::set_permissions(folder.path("a.tdb"), fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::read(folder.path("a.tdb")).unwrap();
    let dump = folder.ok(&["dump", "a.tdb"]);
    let killed = |words: &[&str], input: &str| {
        let words = [&["-t", "600", "db", "file"], words].concat();
        let mut command = folder.command(env!("CARGO_BIN_EXE_ctdb"), &words);
        let mut child = Holder(command.stdin(Stdio::piped()).spawn().unwrap());
        let mut stdin = child.0.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        let unfinished = format!(".{}.new", child.0.id());
        let begun = || {
            fs::read_dir(folder.0.path()).unwrap().any(|entry| {
                entry
                    .unwrap()
                    .file_name()
                    .to_string_lossy()
                    .ends_with(&unfinished)
            })
        };
        while !begun() {
            assert!(child.0.try_wait().unwrap().is_none(), "{words:?} ended");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        assert_eq!(fs::read(folder.path("a.tdb")).unwrap(), before);
        assert!(!folder.path("b.tdb").exists());
    };
    killed(&["restore", "--force", "a.tdb"], &dump);
    killed(&["restore", "b.tdb"], &dump);
    // It waits for the records' locks.
    let mut tdb = Tdb::open(folder.path("a.tdb"), &OpenOptions::default()).unwrap();
    tdb.chain_lock(b"key", LockKind::Exclusive, Wait::Try)
        .unwrap();
    killed(&["convert", "a.tdb", "b.tdb"], "");
    drop(tdb);
    // What they left is in nobody's way, and whoever could use the file still can.
    fs::write(folder.path("dump"), &dump).unwrap();
    folder.ok(&["restore", "--force", "a.tdb", "dump"]);
    folder.ok(&["convert", "a.tdb", "b.tdb"]);
    for name in ["a.tdb", "b.tdb"] {
        assert_eq!(folder.ok(&["get", name, "key"]), "value\n");
        let mode = fs::metadata(folder.path(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640, "{name}");
    }
}

#[test]
fn help_teaches() {
    let folder = Folder::new();
    for verb in [
        "get", "put", "del", "list", "check", "dump", "repack", "convert", "restore",
    ] {
        let help = folder.ok(&[verb, "--help"]);
        assert!(help.contains("Usage: ctdb db file"), "{verb}: {help}");
    }
    let help = folder.ok(&["--help"]);
    for word in ["Exit codes", "Examples", "tdbdump"] {
        assert!(help.contains(word), "{word}");
    }
}
