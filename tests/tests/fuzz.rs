//! Every fuzz target for a while, each in a process of its own (`tests/src/fuzz.rs`). `CTDB_SOAK`
//! in the environment: for ten minutes.

use std::path::PathBuf;
use std::process::{Command, Output};

use ctdb_tests::fuzz::TARGETS;

/// Where the input of a finding stays.
fn current(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("fuzz");
    std::fs::create_dir_all(&folder).unwrap();
    folder.join(format!("{name}-{}", std::process::id()))
}

fn run(name: &str, seconds: f64, planted: &str) -> (Output, PathBuf) {
    let current = current(&format!("{name}{planted}"));
    let out = Command::new(env!("CARGO_BIN_EXE_fuzz"))
        .args([name, "--seconds", &seconds.to_string(), "--current"])
        .arg(&current)
        .env("FUZZ_PLANTED", planted)
        .output()
        .unwrap();
    (out, current)
}

fn fuzz(name: &str) {
    let seconds = if std::env::var_os("CTDB_SOAK").is_some() {
        600.0
    } else {
        30.0
    };
    let (out, current) = run(name, seconds, "");
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(
        out.status.success(),
        "{}: {text}\nthe input is in {1}; run it with `cargo xtask fuzz {name} --input {1}`",
        out.status,
        current.display()
    );
    println!("{text}");
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            fuzz(stringify!($name));
        })*

        #[test]
        fn every_target_has_its_test_and_corpus() {
            let tested = [$(stringify!($name)),*];
            for target in TARGETS.iter().filter(|target| target.name != "planted") {
                assert!(tested.contains(&target.name), "{}", target.name);
                let folder = format!("{}/corpus/{}", env!("CARGO_MANIFEST_DIR"), target.name);
                let inputs = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{folder}: {e}"));
                assert!(inputs.count() > 2, "{folder}");
            }
        }
    };
}

targets! {
    tdb_file
    tdb_recovery
    tdb_buffers
    tdb_dump
}

/// The runner finds what it should, and leaves the input.
#[test]
fn planted_bugs_are_found() {
    for (planted, code, words) in [
        ("PANI", Some(1), "a planted panic"),
        ("HANG", Some(ctdb_tests::fuzz::run::HANG), "hangs"),
        (
            "EATS",
            None,
            "memory allocation of 1099511627776 bytes failed",
        ),
        ("ABOR", None, ""),
    ] {
        let (out, current) = run("planted", 60.0, planted);
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), code, "{planted}: {text}");
        assert!(text.contains(words), "{planted}: {text}");
        let input = std::fs::read(&current).unwrap();
        assert_eq!(&input[..4], planted.as_bytes());
        std::fs::remove_file(&current).unwrap();
    }
    let (out, _) = run("planted", 0.2, "none");
    assert!(out.status.success());
}
