//! The database simulator as the test command runs it. `DBSIM_SEEDS=N` sets the number of runs; a
//! failing one is replayed with `cargo run -p ctdb-tests --bin dbsim -- --seed N --trace`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ctdb_db::cluster::hold::Hold;
use ctdb_db::cluster::planted::Bug;
use ctdb_tests::dbsim::{self, Options, Outcome, Stats};

const SEEDS: u64 = 300;
const THREADS: usize = 2;

/// Runs `options(seed)` for all seeds in threads; the first violation ends it.
fn search(
    seeds: u64,
    options: impl Fn(u64) -> Options + Sync,
) -> (Option<(u64, Outcome)>, Vec<Stats>) {
    let next = AtomicU64::new(0);
    let found = Mutex::new(None::<(u64, Outcome)>);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let outcome = dbsim::run(options(seed));
                    if outcome.violation.is_some() {
                        next.store(seeds, Ordering::Relaxed);
                        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                        if found.as_ref().is_none_or(|(other, _)| seed < *other) {
                            *found = Some((seed, outcome));
                        }
                        return;
                    }
                    done.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(outcome.stats);
                }
            });
        }
    });
    (
        found.into_inner().unwrap_or_else(PoisonError::into_inner),
        done.into_inner().unwrap_or_else(PoisonError::into_inner),
    )
}

#[test]
fn databases_keep_their_promises() {
    let seeds = std::env::var("DBSIM_SEEDS")
        .map_or(SEEDS, |text| text.parse().expect("DBSIM_SEEDS is a number"));
    let (found, done) = search(seeds, Options::new);
    if let Some((seed, _)) = found {
        let replay = dbsim::run(Options {
            trace: 300,
            ..Options::new(seed)
        });
        let violation = replay.violation.expect("the same seed gives the same run");
        panic!("{}\nseed {seed}: {violation}", replay.trace);
    }
    let sum = |field: fn(&Stats) -> u64| done.iter().map(field).sum::<u64>();
    let counts = [
        ("updates", sum(|stats| stats.updates)),
        ("migrations", sum(|stats| stats.migrations)),
        ("delegations", sum(|stats| stats.delegations)),
        ("vacuumed", sum(|stats| stats.vacuumed)),
        ("recoveries", sum(|stats| stats.recoveries)),
        ("commits", sum(|stats| stats.commits)),
        ("lost with their node", sum(|stats| stats.lost_with_node)),
        ("traverses", sum(|stats| stats.traverses)),
        ("pushes", sum(|stats| stats.pushes)),
        ("counters", sum(|stats| stats.counters)),
        ("companions", sum(|stats| stats.companions)),
        ("rights over", sum(|stats| stats.rights_over)),
    ];
    println!("{} runs: {counts:?}", done.len());
    for (what, count) in counts {
        assert!(
            count > seeds / 4,
            "too few {what} to show anything: {count}"
        );
    }
}

#[test]
fn a_seed_replays() {
    for seed in 0..3 {
        let run = || {
            dbsim::run(Options {
                trace: 200,
                ..Options::new(seed)
            })
        };
        let (first, second) = (run(), run());
        assert_eq!(first.trace, second.trace);
        assert_eq!(first.stats.events, second.stats.events);
        assert!(!first.trace.is_empty());
    }
}

fn finds(bug: Bug, promises: &[&str]) {
    let (found, _) = search(2000, |seed| Options {
        bug: Some(bug),
        ..Options::new(seed)
    });
    let Some((seed, outcome)) = found else {
        panic!("{bug:?} is not found within 2000 seeds");
    };
    let violation = outcome.violation.expect("it was found");
    println!("{bug:?}: seed {seed}: {violation}");
    assert!(
        promises.contains(&violation.promise),
        "{bug:?}: seed {seed}: {violation}"
    );
}

/// The hold policy over whole clusters: who wants a record that all want waits for those in front of
/// it, each of which keeps it for `limit` at most; 1 ms more each for locks and the way.
#[test]
fn nobody_starves_for_a_record_that_all_want() {
    let wait = |seed: u64, hold: Hold| {
        let outcome = dbsim::run(Options {
            calm: true,
            hold,
            ..Options::new(seed)
        });
        assert_eq!(outcome.violation, None, "seed {seed}");
        let nodes = outcome.stats.nodes as u64;
        (outcome.stats, nodes * 6000)
    };
    for seed in 0..10 {
        let (stats, bound_us) = wait(seed, Hold::default());
        let worst = stats.worst_call_us;
        println!(
            "seed {seed}: {} nodes, {worst} us, {:?}",
            stats.nodes, stats.answered
        );
        assert!(worst <= bound_us, "seed {seed}: {worst} us, {stats:?}");
        let all: u64 = stats.answered.iter().sum();
        for node in 0..stats.nodes {
            let share = stats.answered[node] * 4 * stats.nodes as u64;
            assert!(share >= all, "seed {seed}: node {node} of {stats:?}");
        }
    }
    // Without its limit nothing bounds the wait, which shows that it is looked at.
    let endless = Hold {
        limit: Duration::from_millis(100),
        ..Hold::default()
    };
    let (stats, bound_us) = wait(0, endless);
    assert!(stats.worst_call_us > bound_us, "{stats:?}");
}

/// Two nodes do not reach each other, to the end; the leader reaches both. One of them is left out, and
/// nobody else is held up.
#[test]
fn two_nodes_that_do_not_reach_each_other_hold_up_nobody_for_long() {
    let apart = |seed, patience_ms| {
        dbsim::run(Options {
            apart: true,
            patience_ms,
            ..Options::new(seed)
        })
    };
    for seed in 0..20 {
        let outcome = apart(seed, Some(300));
        assert_eq!(outcome.violation, None, "seed {seed}");
        assert_eq!(outcome.stats.left_apart, 1, "seed {seed}");
    }
    // Without that, databases are not served to the end.
    let held_up = (0..20).filter(|seed| apart(*seed, None).violation.is_some());
    assert_eq!(held_up.count(), 20);
}

#[test]
fn finds_a_traverse_that_asks_nobody() {
    finds(Bug::TraverseHere, &["D.14"]);
}

#[test]
fn finds_a_changed_counter_that_is_not_told() {
    finds(Bug::SequenceUntold, &["D.15"]);
}

#[test]
fn finds_a_pushed_record_that_replaces_a_newer_one() {
    finds(Bug::PushReplaces, &["G.13", "G.16", "DATA-1"]);
}

#[test]
fn finds_a_sequence_number_that_is_not_raised() {
    finds(Bug::RsnNotRaised, &["G.16", "DATA-1"]);
}

#[test]
fn finds_messages_of_an_old_generation() {
    // An answer of an old generation is an old value, too.
    let promises = ["G.13", "G.16", "DATA-1", "linearizable reads"];
    finds(Bug::OldGenerationAccepted, &promises);
}

#[test]
fn finds_a_merge_by_the_wrong_node() {
    finds(Bug::MergeByWrongNode, &["DATA-1", "G.13", "G.16"]);
}

#[test]
fn finds_an_answer_before_the_last_sync() {
    finds(Bug::AnswerBeforeLastSync, &["DATA-2"]);
}

#[test]
fn finds_lineages_that_are_ignored() {
    finds(Bug::LineageIgnored, &["DATA-2"]);
}

#[test]
fn finds_a_node_that_comes_back_and_is_taken_for_dead() {
    finds(Bug::OverForGood, &["false dead"]);
}

#[test]
fn finds_a_stale_owner_that_writes() {
    finds(Bug::StaleOwnerWrites, &["DATA-5", "DATA-1", "G.13"]);
}
