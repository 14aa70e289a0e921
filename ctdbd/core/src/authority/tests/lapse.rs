//! A leader whose lock is lost while its main loop stands still: `authority = both`.

use super::*;

const TIMES: LockTimes = LockTimes {
    validity: Duration::from_secs(9),
    settle: Duration::from_secs(20),
};

fn held(cluster: &mut Cluster, node: usize, tenure: u64) {
    let now = cluster.now;
    cluster.handle(
        node,
        Input::Lock(LockNews::Held {
            tenure,
            asked_at: now,
            granted_at: now,
        }),
    );
}

/// Three nodes, node 0 leads; its lock goes to node 1. The end of acting that its main loop has
/// read is returned.
fn lock_moves() -> (Cluster, Term, BootTime) {
    let mut cluster = Cluster::new(3);
    for node in &mut cluster.nodes {
        node.config.mode = Mode::Both(TIMES);
    }
    held(&mut cluster, 0, 1);
    cluster.handle(0, Input::Eligible(true));
    cluster.run(ms(1000), all);
    let (term, read) = cluster.status(0).acting.expect("it has votes and lock");
    for node in 1..3 {
        cluster.handle(node, Input::Eligible(true));
    }
    cluster.handle(0, Input::Lock(LockNews::Lost { tenure: 1 }));
    assert_eq!(cluster.status(0).acting, None);
    held(&mut cluster, 1, 1);
    (cluster, term, read)
}

/// When node 1 acts, at the latest 5 s from now.
fn acts_at(cluster: &mut Cluster) -> BootTime {
    for _ in 0..1000 {
        if let Some((term, _)) = cluster.status(1).acting {
            assert_eq!(term.leader, pnn(1));
            return cluster.now;
        }
        cluster.run(ms(5), all);
    }
    panic!("nobody acts");
}

#[test]
fn promises_outlive_a_lost_lock() {
    // MEM-1: the hung main loop may act until `read`.
    let (mut cluster, _, read) = lock_moves();
    let next = acts_at(&mut cluster);
    assert!(next >= read, "{next:?} {read:?}");
    // At that end the promises are freed: nobody waits for L + m.
    assert!(next < read + ms(400), "{next:?} {read:?}");
}

#[test]
fn a_main_loop_that_renounces_frees_them() {
    let (mut cluster, term, read) = lock_moves();
    cluster.run(ms(20), all);
    assert_eq!(cluster.leader(), None);
    cluster.handle(
        0,
        Input::Books(Books {
            renounced: Some(term),
            ..Books::default()
        }),
    );
    let told = cluster.now;
    let next = acts_at(&mut cluster);
    assert!(next < told + ms(400) && next < read, "{next:?} {read:?}");
}

#[test]
fn who_lapsed_votes_for_nobody_meanwhile() {
    let (mut cluster, old, read) = lock_moves();
    let next = term(old.number + 5, 1);
    assert!(!cluster.ask_for_vote(0, next, false));
    cluster.wire.clear();
    cluster.now = read;
    cluster.handle(0, Input::Tick);
    cluster.wire.clear();
    assert!(cluster.ask_for_vote(0, next, false));
}
