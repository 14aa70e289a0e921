//! The simulator as the test command runs it. `SIM_SEEDS=N` sets the number of random runs; a
//! failing one is replayed with `cargo run -p ctdb-tests --bin simulate -- --seed N --trace`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ctdb_core::planted::Bug;
use ctdb_tests::sim::{self, Authority, Options, Outcome, Profile};

/// Random runs of the standard profile; a tenth as many of each of the others.
const SEEDS: u64 = 8_000;
const THREADS: usize = 2;

fn seeds() -> u64 {
    match std::env::var("SIM_SEEDS") {
        Ok(text) => text.parse().expect("SIM_SEEDS is a number"),
        Err(_) => SEEDS,
    }
}

/// Runs `options(seed)` for all seeds in threads; the first outcome that `stop` accepts ends it.
fn search(
    seeds: std::ops::Range<u64>,
    options: impl Fn(u64) -> Options + Sync,
) -> (Option<(u64, Outcome)>, Vec<Outcome>) {
    let next = AtomicU64::new(seeds.start);
    let found = Mutex::new(None::<(u64, Outcome)>);
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = sim::run(options(seed));
                    if outcome.violation.is_some() {
                        next.store(seeds.end, Ordering::Relaxed);
                        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                        if found.as_ref().is_none_or(|(other, _)| seed < *other) {
                            *found = Some((seed, outcome));
                        }
                        return;
                    }
                    done.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(outcome);
                }
            });
        }
    });
    (
        found.into_inner().unwrap_or_else(PoisonError::into_inner),
        done.into_inner().unwrap_or_else(PoisonError::into_inner),
    )
}

fn no_violation(profile: Profile, authority: Authority, seeds: u64) {
    let options = |seed| Options {
        profile,
        authority,
        ..Options::new(seed)
    };
    let (found, done) = search(0..seeds, options);
    if let Some((seed, _)) = found {
        let replay = sim::run(Options {
            trace: 300,
            ..options(seed)
        });
        let violation = replay.violation.expect("the same seed gives the same run");
        panic!(
            "{}\n{profile:?} {authority:?} seed {seed}: {violation}",
            replay.trace
        );
    }
    let recovered = done
        .iter()
        .filter(|outcome| outcome.stats.recovered)
        .count();
    let worst = done
        .iter()
        .map(|outcome| outcome.stats.recovery_ms)
        .max()
        .unwrap_or_default();
    let events: u64 = done.iter().map(|outcome| outcome.stats.events).sum();
    let elections: u64 = done.iter().map(|outcome| outcome.stats.elections).sum();
    println!(
        "{profile:?} {authority:?}: {} runs, {events} events, {elections} elections, worst recovery {worst} ms",
        done.len()
    );
    // A run without anything to serve proves little; there are few of them.
    assert!(
        recovered * 100 > done.len() * 95,
        "only {recovered} of {} recovered",
        done.len()
    );
}

#[test]
fn standard_profile_keeps_its_promises() {
    no_violation(Profile::Standard, Authority::Majority, seeds());
}

#[test]
fn whoever_holds_the_lock_keeps_the_promises() {
    no_violation(Profile::Standard, Authority::Lock, seeds() / 4);
    no_violation(Profile::Fast, Authority::Lock, seeds() / 20);
}

#[test]
fn majority_and_lock_together_bear_a_lock_that_lies() {
    no_violation(Profile::Standard, Authority::Both, seeds() / 4);
    no_violation(Profile::Fast, Authority::Both, seeds() / 20);
}

#[test]
fn fast_profile_keeps_its_promises() {
    no_violation(Profile::Fast, Authority::Majority, seeds() / 10);
}

#[test]
fn cautious_profile_keeps_its_promises() {
    no_violation(Profile::Cautious, Authority::Majority, seeds() / 10);
}

#[test]
fn a_seed_replays() {
    for seed in 0..5 {
        let run = || {
            sim::run(Options {
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

#[test]
fn events_cost_what_they_may() {
    let bounds = sim::bounds();
    for bound in &bounds {
        println!("{bound}");
    }
    for bound in bounds {
        assert!(bound.kept(), "{bound}");
    }
}

#[test]
fn databases_do_not_wait_for_ever_for_a_node_that_is_heard() {
    for bound in sim::waits_for_members() {
        println!("{bound}");
        assert!(bound.kept(), "{bound}");
    }
}

#[test]
fn finds_a_node_that_is_left_out_because_its_link_is_down() {
    finds(Bug::LinkIsMembership, "DATA-5", 100);
}

#[test]
fn finds_an_address_that_comes_back_with_clients_whose_locks_are_gone() {
    finds(Bug::FormerTakenAtOnce, "MEM-3", 500);
}

fn finds(bug: Bug, promise: &str, within: u64) {
    finds_with(Authority::Majority, bug, &[promise], within);
}

fn finds_with(authority: Authority, bug: Bug, promises: &[&str], within: u64) {
    let options = |seed| Options {
        authority,
        bug: Some(bug),
        // They break their promise as well, and often first.
        databases: matches!(bug, Bug::LinkIsMembership | Bug::FormerTakenAtOnce),
        ..Options::new(seed)
    };
    let (found, _) = search(0..within, options);
    let Some((seed, outcome)) = found else {
        panic!("{bug:?} is not found within {within} seeds");
    };
    let violation = outcome.violation.expect("it was found");
    println!("{bug:?}: seed {seed}: {violation}");
    assert!(
        promises.contains(&violation.promise),
        "{bug:?}: seed {seed}: {violation}"
    );
}

#[test]
fn finds_right_from_receiving_time() {
    finds(Bug::RightFromReceivingTime, "ADDR-1", 500);
}

#[test]
fn finds_silence_taken_for_expiry() {
    finds(Bug::SilenceIsExpiry, "ADDR-1", 500);
}

#[test]
fn finds_a_missing_margin() {
    finds(Bug::NoMargin, "ADDR-1", 500);
}

#[test]
fn finds_holds_that_are_not_accounted_for() {
    finds(Bug::HoldsNotAccounted, "ADDR-1", 100);
}

#[test]
fn finds_done_said_early() {
    finds(Bug::DoneSaidEarly, "ADDR-1", 100);
}

#[test]
fn finds_answers_that_are_not_recorded() {
    finds(Bug::AnswerNotRecorded, "ADDR-1", 200);
}

#[test]
fn finds_one_slot_for_all_epochs() {
    finds(Bug::OneSlot, "ADDR-1", 200);
}

#[test]
fn finds_votes_that_bind_nobody() {
    finds(Bug::VoteWithoutPromise, "MEM-1", 100);
}

#[test]
fn finds_a_leader_that_acts_after_its_loss() {
    finds(Bug::ActsAfterLoss, "MEM-1", 200);
}

#[test]
fn finds_missing_abstention() {
    finds(Bug::NoAbstention, "MEM-1", 1000);
}

#[test]
fn finds_orders_without_epoch() {
    finds(Bug::NoEpoch, "ADDR-1", 1000);
}

#[test]
fn finds_a_holder_that_acts_after_it_lost_the_lock() {
    finds_with(Authority::Lock, Bug::ActsAfterLostLock, &["MEM-1"], 500);
}

#[test]
fn finds_a_holder_that_asks_nobody() {
    finds_with(Authority::Lock, Bug::LockActsAtOnce, &["MEM-1"], 500);
}

#[test]
fn finds_a_claim_that_is_kept() {
    finds_with(Authority::Lock, Bug::ClaimKept, &["MEM-1"], 1000);
}

#[test]
fn finds_a_settle_that_is_skipped() {
    finds_with(Authority::Lock, Bug::SettleSkipped, &["ADDR-1"], 2000);
}

#[test]
fn finds_an_outgoing_leader_that_goes_on() {
    finds(Bug::OutgoingLeader, "MEM-1", 500);
}

#[test]
fn finds_an_address_granted_before_its_old_owner_is_silent() {
    finds(Bug::GrantBeforeDone, "ADDR-1", 500);
}

#[test]
fn finds_a_late_tick_that_accuses() {
    finds(Bug::LateTickAccuses, "ACCUSE", 1000);
}

#[test]
fn finds_a_removed_node_that_is_forgotten() {
    finds(Bug::RemovedForgotten, "ADDR-1", 1000);
}

#[test]
fn finds_a_witness_that_accepts_any_list() {
    // Two quorums that share nobody: two leaders, or two rights.
    finds_with(
        Authority::Majority,
        Bug::AnyList,
        &["MEM-1", "ADDR-1"],
        2000,
    );
}

#[test]
fn finds_a_cold_start_whatever_the_list() {
    finds(Bug::FreshWhateverTheList, "MEM-1", 2000);
}

#[test]
fn finds_old_orders_that_are_obeyed() {
    finds(Bug::NoTermFence, "ADDR-1", 2000);
}

#[test]
fn finds_a_daemon_that_speaks_at_once() {
    finds(Bug::SpeaksAtOnce, "ADDR-1", 2000);
}

#[test]
fn finds_a_goodbye_that_is_replayed() {
    finds(Bug::GoodbyeReplayed, "ADDR-1", 2000);
}

#[test]
fn finds_an_election_nested_in_an_election() {
    finds(Bug::NestedElection, "MEM-1", 2000);
}

#[test]
fn seven_nodes_and_short_faults() {
    let options = |seed| Options {
        nodes: Some(7),
        chaos: Duration::from_secs(15),
        ..Options::new(seed)
    };
    let (found, _) = search(0..200, options);
    assert!(
        found.is_none(),
        "{:?}",
        found.map(|(seed, outcome)| (seed, outcome.violation))
    );
}
