//! The README's first command, as it is: `cargo xtask demo` starts this program after its set-up.

use std::process::Command;

/// Exit 0 says: no address answered by two nodes, all served again within the profile's bound,
/// nothing left behind.
#[test]
fn it_keeps_all_promises() {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let shown = Command::new(env!("CARGO_BIN_EXE_demo")).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.status.success(), "{text}\n{shown:?}");
    assert!(text.contains("demo: all promises kept"), "{text}");
    assert!(text.contains(" 0 by a second node"), "{text}");
    // Who held something open was told, and works again; both times are shown.
    let held = text.rsplit("works again\n").next().unwrap_or_default();
    for client in [
        "sftp transfer",
        "SMB session",
        "TCP, idle, ",
        "TCP, sending, ",
    ] {
        let line = held.lines().find(|line| line.starts_with(client));
        let line = line.unwrap_or_else(|| panic!("no {client} in {text}"));
        let times = line
            .split_whitespace()
            .filter(|word| ["ms", "s"].contains(word));
        assert_eq!(times.count(), 2, "{line}");
    }
}
