//! smbtorture on our daemon: a short part of `cargo xtask smbtorture`, in which the connections of each
//! test go to two nodes in turn, and what the whole of it said when it was last run on both daemons.

use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use ctdb_tests::lab::torture::results::Results;
use ctdb_tests::lab::torture::{Torture, Verdict, Way};
use ctdb_tests::lab::{Flavor, lacks};

/// Tests of locks, share modes, leases, durable handles, renames and deletes that take little time and
/// wait for nothing but answers.
const SHORT: [&str; 42] = [
    "base.delete.deltest1",
    "base.delete.deltest16",
    "base.delete.deltest17",
    "base.delete.deltest20a",
    "base.deny3",
    "base.lock.LOCK2",
    "base.lock.LOCK4",
    "base.lock.LOCK7",
    "base.rename",
    "base.unlink",
    "raw.lock.lock",
    "raw.lock.lockx",
    "raw.lock.stacking",
    "raw.lock.unlock",
    "raw.lock.zerobytelocks",
    "raw.open.brlocked",
    "raw.rename.ntrename",
    "raw.unlink.delete_on_close",
    "smb2.create.brlocked",
    "smb2.durable-open.lock-lease",
    "smb2.durable-open.lock-oplock",
    "smb2.durable-open.open2-lease",
    "smb2.durable-open.open2-oplock",
    "smb2.durable-open.reopen1",
    "smb2.durable-open.reopen2",
    "smb2.durable-open.reopen2-lease",
    "smb2.durable-v2-open.reopen2",
    "smb2.lease.upgrade",
    "smb2.lease.upgrade2",
    "smb2.lease.upgrade3",
    "smb2.lock.auto-unlock",
    "smb2.lock.contend",
    "smb2.lock.context",
    "smb2.lock.lock",
    "smb2.lock.overlap",
    "smb2.lock.range",
    "smb2.lock.rw-exclusive",
    "smb2.lock.stacking",
    "smb2.lock.truncate",
    "smb2.lock.zerobyteread",
    "smb2.sharemode.access-sharemode",
    "smb2.sharemode.sharemode-access",
];
const WORKERS: usize = 3;

fn recorded() -> Results {
    Results::parse(include_str!("../smbtorture.results")).unwrap()
}

#[test]
fn nothing_that_passes_on_ctdb_fails_on_ours() {
    let results = recorded();
    assert_eq!(results.worse(), Vec::<String>::new());
    let across = results
        .0
        .iter()
        .filter(|((way, _), pair)| *way == Way::Two && pair.ours.passes());
    assert!(across.count() > 200, "{}", results.summary());
}

#[test]
fn clients_of_two_nodes_pass_the_short_list() {
    if let Some(reason) = lacks() {
        panic!("this test cannot run here: {reason}");
    }
    if let Some(package) = Torture::lacks() {
        panic!("this test cannot run here: {package} is missing");
    }
    let results = recorded();
    for test in SHORT {
        let pair = results.0[&(Way::Two, test.to_owned())];
        assert!(pair.ctdb.passes() && pair.ours.passes(), "{test}: {pair:?}");
    }
    let torture = Torture::bring_up(Flavor::Ours).unwrap();
    let queue = Mutex::new(SHORT.iter());
    let failed = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (torture, queue, failed) = (&torture, &queue, &failed);
            scope.spawn(move || {
                let next = || queue.lock().unwrap().next();
                while let Some(test) = next() {
                    let run = torture.run(worker, Way::Two, test, Duration::from_mins(2));
                    let run = run.unwrap();
                    if run.verdict != Verdict::Pass {
                        failed.lock().unwrap().push(format!("{test}: {}", run.text));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert_eq!(torture.lab().samba_panics(), Vec::<String>::new());
    assert_eq!(torture.end(), Vec::<String>::new());
}
