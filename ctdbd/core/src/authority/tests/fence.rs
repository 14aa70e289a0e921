//! When a leader is fenced off by its voters, and when it only seems so.

use super::*;

/// The leader's term after `length`, and whether it ever thought itself fenced off.
fn watched(cluster: &mut Cluster, length: Duration) -> (Option<Term>, bool) {
    let end = cluster.now + length;
    let mut outdated = false;
    while cluster.now < end {
        cluster.run(ms(5), all);
        outdated |= cluster.status(0).outdated;
    }
    let acting = cluster.status(0).acting;
    (acting.map(|(term, _)| term), outdated)
}

fn restart(cluster: &mut Cluster, node: usize) {
    let voters = cluster.nodes[0].config.voters;
    let config = Config::majority(pnn(node), life(node, 2), voters, Timing::standard());
    cluster.nodes[node] = Authority::new(config, cluster.now);
    for peer in (0..cluster.nodes.len()).filter(|peer| *peer != node) {
        cluster.session(node, peer, life(peer, 1));
        cluster.session(peer, node, life(node, 2));
    }
}

#[test]
fn a_voter_that_starts_does_not_move_the_leader() {
    // It answers and promises nobody for L + m (R8, R10), however long the leader has led.
    let mut cluster = Cluster::led(3);
    cluster.run(ms(10_000), all);
    let (term, _) = cluster.status(0).acting.unwrap();
    restart(&mut cluster, 2);
    assert_eq!(watched(&mut cluster, ms(6000)), (Some(term), false));
}

#[test]
fn a_voter_that_never_promises_does() {
    // It has voted for a newer term in which nobody acts; only a newer one wins it back.
    let mut cluster = Cluster::led(3);
    cluster.run(ms(10_000), all);
    cluster.nodes[2].newest = Some(term(90, 1));
    let (_, outdated) = watched(&mut cluster, ms(6000));
    assert!(outdated);
}
