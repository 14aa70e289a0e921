//! Small transitions of the holder.

use ctdb_wire::ids::{Incarnation, MAX_NODES, Pnn};

use super::*;
use crate::authority::PeerStatus;

const NOW: BootTime = BootTime::from_millis(1_000);

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn term(number: u64) -> Term {
    Term {
        number,
        leader: Pnn::new(1).unwrap(),
        session: Incarnation(7),
    }
}

fn epoch(number: u32) -> Epoch {
    Epoch {
        incarnation: Incarnation(5),
        number,
    }
}

fn status(number: u32, held: bool, leader: Option<u64>) -> Status {
    let now = NOW;
    Status {
        list: crate::authority::ListStatus {
            surveyed: true,
            voters: NodeSet(7),
            ..Default::default()
        },
        led: None,
        claimed: false,
        lock_wanted: false,
        lock: crate::authority::LockStatus::default(),
        now,
        epoch: epoch(number),
        slot: number,
        right_until: held.then_some(now + Duration::from_secs(1)),
        leader: leader.map(term),
        acting: None,
        outdated: false,
        abstaining: false,
        late_ticks: 0,
        peers: [PeerStatus::default(); MAX_NODES],
    }
}

fn order(term_number: u64, seq: u64, epoch_number: u32, addresses: &[u8]) -> Assign {
    Assign {
        term: term(term_number),
        seq: OrderSeq(seq),
        epoch: epoch(epoch_number),
        addresses: addresses.iter().map(|last| address(*last)).collect(),
    }
}

/// With a right in epoch 2, following term 3.
fn holder() -> Holder {
    let mut holder = Holder::new(Planted::default());
    assert!(holder.status(&status(2, true, Some(3))));
    holder
}

/// Holds 1 and 2 by order 1 of term 3.
fn holding() -> Holder {
    let mut holder = holder();
    let mut work = Vec::new();
    assert!(holder.order(NOW, &order(3, 1, 2, &[1, 2]), &mut work));
    let addresses = vec![address(1), address(2)];
    assert_eq!(
        work,
        [Work::Take {
            epoch: epoch(2),
            slot: 2,
            addresses,
            end: false
        }]
    );
    let done = [(address(1), Ok(())), (address(2), Ok(()))];
    work.clear();
    holder.taken(NOW, epoch(2), &done, &mut work);
    assert!(work.is_empty());
    assert!(holder.state().taking.is_empty());
    holder
}

fn obey(holder: &mut Holder, order: &Assign) -> Vec<Work> {
    let mut work = Vec::new();
    holder.order(NOW, order, &mut work);
    work
}

#[test]
fn a_life_without_epoch_says_and_does_nothing() {
    // R3.
    let mut holder = Holder::new(Planted::default());
    let mut work = Vec::new();
    assert!(!holder.order(NOW, &order(3, 1, 0, &[1]), &mut work));
    assert!(work.is_empty());
    assert!(!holder.speaks());
}

#[test]
fn older_terms_are_refused_in_silence() {
    // R15, R18.
    let mut holder = holder();
    let mut work = Vec::new();
    assert!(!holder.order(NOW, &order(2, 9, 2, &[1]), &mut work));
    assert!(work.is_empty());
    assert_eq!(holder.state().last_order, None);
}

#[test]
fn orders_of_another_epoch_are_answered_but_not_obeyed() {
    // R2, R15: also the current one once its right has ended.
    let mut holder = holder();
    let mut work = Vec::new();
    assert!(holder.order(NOW, &order(3, 1, 1, &[1]), &mut work));
    assert!(holder.order(NOW, &order(3, 2, 3, &[1]), &mut work));
    holder.status(&status(2, false, Some(3)));
    assert!(holder.order(NOW, &order(3, 3, 2, &[1]), &mut work));
    assert!(work.is_empty());
    assert_eq!(holder.state().last_order, None);
}

#[test]
fn a_repeat_is_answered_and_not_redone() {
    // R15.
    let mut holder = holding();
    let first = holder.state();
    assert!(obey(&mut holder, &order(3, 1, 2, &[1, 2])).is_empty());
    assert!(obey(&mut holder, &order(3, 1, 2, &[7])).is_empty());
    assert_eq!(holder.state(), first);
    let work = obey(&mut holder, &order(4, 1, 2, &[1]));
    assert_eq!(
        work,
        [Work::Release {
            addresses: vec![address(2)]
        }],
        "newer by its term"
    );
}

#[test]
fn done_is_said_after_the_silence() {
    // R16.
    let mut holder = holding();
    obey(&mut holder, &order(3, 2, 2, &[1]));
    let state = holder.state();
    assert_eq!(state.last_order, Some((term(3), OrderSeq(2))));
    assert_eq!(
        state.holds,
        [address(1), address(2)],
        "packets may still be queued"
    );
    holder.released(NOW, &[address(2)], &mut Vec::new());
    assert_eq!(holder.state().holds, [address(1)]);
}

#[test]
fn what_is_wanted_again_while_it_is_released_is_taken_after_it() {
    let mut holder = holding();
    obey(&mut holder, &order(3, 2, 2, &[1]));
    assert!(obey(&mut holder, &order(3, 3, 2, &[1, 2])).is_empty());
    let mut work = Vec::new();
    holder.released(NOW, &[address(2)], &mut work);
    let addresses = vec![address(2)];
    assert_eq!(
        work,
        [Work::Take {
            epoch: epoch(2),
            slot: 2,
            addresses,
            end: false
        }]
    );
}

#[test]
fn what_is_not_wanted_any_more_while_it_is_taken_is_released_after_it() {
    let mut holder = holder();
    obey(&mut holder, &order(3, 1, 2, &[1]));
    assert!(obey(&mut holder, &order(3, 2, 2, &[])).is_empty());
    assert_eq!(holder.state().holds, [address(1)]);
    let mut work = Vec::new();
    holder.taken(NOW, epoch(2), &[(address(1), Ok(()))], &mut work);
    assert_eq!(
        work,
        [Work::Release {
            addresses: vec![address(1)]
        }]
    );
}

#[test]
fn a_failed_takeover_is_undone_and_reported() {
    let mut holder = holder();
    obey(&mut holder, &order(3, 1, 2, &[1]));
    holder.taken(
        NOW,
        epoch(2),
        &[(address(1), Err("no link".to_owned()))],
        &mut Vec::new(),
    );
    let state = holder.state();
    assert!(state.holds.is_empty());
    assert_eq!(state.failed, [(address(1), "no link".to_owned())]);
    assert!(
        obey(&mut holder, &order(3, 1, 2, &[1])).is_empty(),
        "a repeat does not try again"
    );
    assert_eq!(obey(&mut holder, &order(3, 2, 2, &[1])).len(), 1);
    assert!(holder.state().failed.is_empty());
}

#[test]
fn a_new_epoch_holds_nothing_and_keeps_what_is_granted_again() {
    // R6: addresses stay on their interfaces; the leader grants them again.
    let mut holder = holding();
    assert!(holder.status(&status(2, false, Some(3))));
    assert_eq!(
        holder.state().holds,
        [address(1), address(2)],
        "not yet silent for sure"
    );
    assert!(holder.status(&status(3, false, Some(3))));
    assert!(holder.state().holds.is_empty());
    assert!(holder.status(&status(4, true, Some(3))));
    let work = obey(&mut holder, &order(3, 2, 4, &[1, 3]));
    assert_eq!(
        work,
        [
            take(&[3], false),
            Work::Discard {
                addresses: vec![address(2)]
            },
        ],
        "what is not here from a former right waits for nothing"
    );
    assert_eq!(holder.state().taking, [address(1), address(3)]);
    assert_eq!(say(&mut holder, &[(1, Fate::Kept)]), [take(&[1], false)]);
    assert_eq!(say(&mut holder, &[(1, Fate::Lost)]), [], "once");
}

/// Of epoch 4.
fn take(addresses: &[u8], end: bool) -> Work {
    Work::Take {
        epoch: epoch(4),
        slot: 4,
        addresses: addresses.iter().map(|last| address(*last)).collect(),
        end,
    }
}

/// The databases' word in epoch 4.
fn say(holder: &mut Holder, fates: &[(u8, Fate)]) -> Vec<Work> {
    let fates: Vec<_> = fates.iter().map(|(a, fate)| (address(*a), *fate)).collect();
    let mut work = Vec::new();
    holder.fates(epoch(4), &fates, &mut work);
    work
}

/// Held 1 and 2 in epoch 2, and is ordered to take them and 3 in epoch 4.
fn again() -> (Holder, Vec<Work>) {
    let mut holder = holding();
    holder.status(&status(2, false, Some(3)));
    holder.status(&status(4, true, Some(3)));
    let work = obey(&mut holder, &order(3, 2, 4, &[1, 2, 3]));
    (holder, work)
}

fn asked(holder: &Holder) -> Vec<IpAddr> {
    let (of, slot, addresses) = holder.asking();
    assert_eq!((of, slot), (epoch(4), 4));
    addresses.collect()
}

#[test]
fn what_is_here_from_a_former_right_waits_for_the_databases_word() {
    // MEM-3.
    let (mut holder, work) = again();
    assert_eq!(work, [take(&[3], false)]);
    assert_eq!(asked(&holder), [address(1), address(2)]);
    let mut work = Vec::new();
    let lost = [(address(1), Fate::Lost), (address(2), Fate::Lost)];
    holder.fates(epoch(2), &lost, &mut work);
    assert_eq!(work, [], "of another right");
    let fates = [(1, Fate::Lost), (2, Fate::Kept), (3, Fate::Lost)];
    let work = say(&mut holder, &fates);
    assert_eq!(work, [take(&[2], false), take(&[1], true)]);
    assert!(asked(&holder).is_empty());
}

#[test]
fn without_the_databases_word_it_is_taken_within_a_second() {
    let (mut holder, _) = again();
    let give_up = Duration::from_secs(5);
    let second = NOW + Duration::from_millis(100);
    assert_eq!(holder.tick(second, give_up), []);
    assert_eq!(
        say(&mut holder, &[(2, Fate::Kept)]),
        [take(&[2], false)],
        "one's word is not another's"
    );
    let last = NOW + PATIENCE + Duration::from_millis(100);
    assert!(last <= NOW + Duration::from_secs(1), "with a tick's delay");
    assert_eq!(holder.tick(NOW + PATIENCE, give_up), [take(&[1], true)]);
    assert_eq!(holder.tick(last, give_up), [], "once");
    assert_eq!(say(&mut holder, &[(1, Fate::Lost)]), []);
}

#[test]
fn what_waits_and_is_not_wanted_any_more_is_discarded() {
    let (mut holder, _) = again();
    let work = obey(&mut holder, &order(3, 3, 4, &[1, 3]));
    let addresses = vec![address(2)];
    assert_eq!(work, [Work::Discard { addresses }]);
    assert_eq!(asked(&holder), [address(1)]);
    assert_eq!(holder.state().holds, [address(1), address(3)]);
    // Nothing of before is here any more.
    let work = obey(&mut holder, &order(3, 4, 4, &[1, 2, 3]));
    assert_eq!(work, [take(&[2], false)]);
}

#[test]
fn a_takeover_that_failed_has_ended_nothing_for_sure() {
    let (mut holder, _) = again();
    say(&mut holder, &[(1, Fate::Lost), (2, Fate::Kept)]);
    let failed = Err("no link".to_owned());
    let results = [(address(1), failed), (address(2), Ok(()))];
    holder.taken(NOW, epoch(4), &results, &mut Vec::new());
    assert_eq!(obey(&mut holder, &order(3, 3, 4, &[1, 2, 3])), []);
    assert_eq!(asked(&holder), [address(1)]);
}

#[test]
fn what_was_released_has_nothing_connected_to_it() {
    // The release is under way, or its end is not known, when the right ends.
    let mut holder = holding();
    obey(&mut holder, &order(3, 2, 2, &[1]));
    holder.status(&status(4, true, Some(3)));
    let work = obey(&mut holder, &order(3, 3, 4, &[1, 2]));
    assert_eq!(work, [take(&[2], false)]);
    assert_eq!(asked(&holder), [address(1)]);
}

#[test]
fn a_late_result_of_an_old_epoch_changes_nothing() {
    // R2: it was granted in a dead slot.
    let mut holder = holder();
    obey(&mut holder, &order(3, 1, 2, &[1]));
    holder.status(&status(4, true, Some(3)));
    obey(&mut holder, &order(3, 2, 4, &[1]));
    holder.taken(
        NOW,
        epoch(2),
        &[(address(1), Err("late".to_owned()))],
        &mut Vec::new(),
    );
    assert_eq!(holder.state().taking, [address(1)]);
    assert!(holder.state().failed.is_empty());
}

#[test]
fn an_older_release_does_not_end_a_newer_one() {
    // R16: the first was of an epoch that is over.
    let mut holder = holding();
    obey(&mut holder, &order(3, 2, 2, &[1]));
    holder.status(&status(4, true, Some(3)));
    obey(&mut holder, &order(3, 3, 4, &[2]));
    holder.taken(NOW, epoch(4), &[(address(2), Ok(()))], &mut Vec::new());
    obey(&mut holder, &order(3, 4, 4, &[]));
    holder.released(NOW, &[address(2)], &mut Vec::new());
    assert_eq!(holder.state().holds, [address(2)]);
    holder.released(NOW, &[address(2)], &mut Vec::new());
    assert!(holder.state().holds.is_empty());
}

#[test]
fn long_without_right_takes_the_addresses_off() {
    let mut holder = holding();
    holder.status(&status(2, false, None));
    let give_up = Duration::from_secs(5);
    assert!(
        holder
            .tick(BootTime::from_millis(5_999), give_up)
            .is_empty()
    );
    let addresses = vec![address(1), address(2)];
    let work = holder.tick(BootTime::from_millis(6_000), give_up);
    assert_eq!(work, [Work::Release { addresses }]);
}
