//! Services of the distribution on the public addresses: a stand-alone Samba and OpenSSH, before
//! and after their node fails.

use std::process::Command;
use std::time::Duration;

use ctdb_tests::lab::{Lab, Service};

const LONG: Duration = Duration::from_secs(30);

/// Runs a command on the client; tries again until it works, since a server may be starting.
fn client(lab: &Lab, words: &[&str]) -> String {
    let mut stdout = String::new();
    lab.wait(&format!("{words:?} to work"), LONG, || {
        let output = lab
            .client()
            .output(Command::new(words[0]).args(&words[1..]))
            .unwrap();
        stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success()
    })
    .unwrap();
    stdout
}

fn share(address: &str, command: &str) -> [String; 5] {
    let share = format!("//{address}/share");
    ["smbclient", "-N", &share, "-c", command].map(str::to_owned)
}

#[test]
fn files_and_logins_outlive_the_node_that_served_them() {
    if let Some(reason) = ctdb_tests::lab::lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let lab = Lab::builder().build().unwrap();
    lab.bring_up(&[Service::Smb, Service::Ssh], LONG).unwrap();
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let victim = (leader + 1) % 3;
    let seen = lab.node(leader).ip_owners().unwrap();
    let lost: Vec<_> = seen
        .iter()
        .filter(|(_, owner)| **owner == Some(victim))
        .map(|(a, _)| *a)
        .collect();
    assert!(lost.iter().any(std::net::IpAddr::is_ipv4), "{lost:?}");
    let run = |words: &[String]| {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        client(&lab, &words)
    };
    for (number, address) in lost.iter().enumerate() {
        run(&share(
            &address.to_string(),
            &format!("mkdir before{number}"),
        ));
        assert!(lab.shared_dir().join(format!("before{number}")).is_dir());
    }
    lab.node(victim).power_loss().unwrap();
    let key = lab.ssh_key();
    for (number, address) in lost.iter().enumerate() {
        let address = address.to_string();
        let listing = run(&share(&address, "ls"));
        assert!(listing.contains(&format!("before{number}")), "{listing}");
        let login = format!("root@{address}");
        let options = [
            "ssh",
            "-F",
            "none",
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "ConnectTimeout=3",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-i",
            key.to_str().unwrap(),
            &login,
            "echo",
            "works",
        ];
        assert_eq!(client(&lab, &options), "works\n");
    }
    let owners = lab.node(leader).ip_owners().unwrap();
    assert!(
        lost.iter()
            .all(|address| owners[address].is_some_and(|owner| owner != victim))
    );
    // What a node without power leaves goes with its namespace.
    assert_eq!(lab.destroy(), Vec::<String>::new());
}
