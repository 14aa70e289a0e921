//! Samba's witness service, which from 4.20 on tells its clients where addresses are: 4.22 on both
//! daemons. The release is downloaded, so this runs in `soak`.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use ctdb_tests::lab::samba::RPC_SERVER_APART;
use ctdb_tests::lab::{Flavor, Lab, lacks, overlay};

const LONG: Duration = Duration::from_secs(90);

/// A client that is told of an address by the service of another node than its own.
struct Client {
    child: Child,
    lines: Receiver<String>,
}

impl Client {
    fn new(lab: &Lab, words: &[&str]) -> Self {
        let mut command = lab.witness_client(words).unwrap();
        command.stdout(Stdio::piped());
        let mut child = lab.client().spawn(&mut command).unwrap();
        let (sender, lines) = mpsc::sync_channel(64);
        let out = BufReader::new(child.stdout.take().unwrap());
        // Ends with the program.
        thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines }
    }

    /// The next line; panics if none comes.
    fn hear(&self, what: &str) -> String {
        let line = self.lines.recv_timeout(LONG);
        line.unwrap_or_else(|error| panic!("{what}: {error}"))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of one server's address registers with another server and is told when the address moves.
fn a_move_is_told(flavor: Flavor) {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    let root = match overlay::overlay("trixie", &["samba", "winbind", "smbclient", "ctdb"]) {
        Ok(root) => root,
        Err(error) => {
            println!("NOT TESTED: the packages of trixie cannot be had: {error:#}");
            return;
        }
    };
    let wishes = Lab::builder().flavor(flavor).ipv6(false).overlay(root);
    let lab = Lab::with_samba_of(wishes.smb_conf(RPC_SERVER_APART), LONG).unwrap();
    let of = lab.address_of_each(LONG).unwrap();
    let leader = lab.node(0).leader_seen().unwrap().unwrap();
    let (victim, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let (through, watched) = (of[&leader].to_string(), of[&victim].to_string());
    // Registers when the service, which begins with the first call for it, is there.
    let client = Client::new(&lab, &["watch", &through, "LAB", &watched]);
    assert_eq!(client.hear("registration"), "registered");
    let list = lab.node(leader).samba(&["net", "witness", "list"]).unwrap();
    let list = list.success().unwrap();
    assert!(list.contains(&watched), "{list}");

    let start = Instant::now();
    let words = ["moveip", &watched, &third.to_string()];
    lab.node(victim).ctdb(&words).unwrap().success().unwrap();
    for state in ["unavailable", "available"] {
        assert_eq!(client.hear(state), format!("change {watched} {state}"));
        println!("{state} after {:.3} s", start.elapsed().as_secs_f64());
    }
    drop(client);
    assert_eq!(lab.samba_panics(), Vec::<String>::new());
    assert_eq!(lab.destroy(), Vec::<String>::new());
}

#[test]
#[ignore = "downloads packages of Debian's next release"]
fn of_4_22_on_our_daemon() {
    a_move_is_told(Flavor::Ours);
}

#[test]
#[ignore = "downloads packages of Debian's next release"]
fn of_4_22_on_ctdbs_daemon() {
    a_move_is_told(Flavor::Ctdb);
}
