//! Small transitions of the leader's books.

use ctdb_wire::ids::{Incarnation, MAX_NODES};

use super::*;
use crate::authority::PeerStatus;

fn pnn(number: u32) -> Pnn {
    Pnn::new(number).unwrap()
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

const TERM: u64 = 4;

fn term(number: u64) -> Term {
    Term {
        number,
        leader: pnn(0),
        session: Incarnation(1),
    }
}

fn epoch(node: u32, number: u32) -> Epoch {
    Epoch {
        incarnation: Incarnation(u64::from(node) + 1),
        number,
    }
}

fn at(ms: u64) -> BootTime {
    BootTime::from_millis(10_000 + ms)
}

/// Books of three hosts, all of which can host the addresses 1 to 3.
struct Desk {
    now: BootTime,
    leader: Leader,
    situation: Situation,
    status: Status,
}

impl Desk {
    fn new() -> Self {
        let hosts: NodeSet = (0..3).map(pnn).collect();
        let situation = Situation {
            able: (1..=3).map(|last| (address(last), hosts)).collect(),
            linked: hosts,
            list_length: 3,
            ..Situation::default()
        };
        let mut peers = [PeerStatus::default(); MAX_NODES];
        for node in 0..3 {
            peers[node as usize].incarnation = epoch(node, 0).incarnation;
        }
        let now = at(0);
        let status = Status {
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
            epoch: epoch(0, 2),
            slot: 2,
            right_until: Some(at(60_000)),
            leader: Some(term(TERM)),
            acting: Some((term(TERM), at(60_000))),
            outdated: false,
            abstaining: false,
            late_ticks: 0,
            peers,
        };
        Self {
            now,
            leader: Leader::new(term(TERM), hosts, hosts.len() / 2 + 1, Planted::default()),
            situation,
            status,
        }
    }

    fn drive(&mut self) -> Vec<(Pnn, Assign)> {
        self.leader.evidence(self.now, &self.status);
        self.leader.drive(self.now, &self.situation)
    }

    fn state(&mut self, node: u32, number: u32, last: Option<OrderSeq>, holds: &[u8]) {
        let state = HolderState {
            term: Some(term(TERM)),
            epoch: epoch(node, number),
            has_right: true,
            last_order: last.map(|seq| (term(TERM), seq)),
            holds: holds.iter().map(|last| address(*last)).collect(),
            ..HolderState::default()
        };
        self.leader.state(self.now, pnn(node), &state);
    }

    /// Evidence of the heartbeat sent now, for the epoch that is named.
    fn evidence(&mut self, node: u32, number: u32) {
        let peer = &mut self.status.peers[node as usize];
        peer.evidence = Some(self.now);
        peer.evidence_epoch = epoch(node, number);
    }

    /// All known and holding what allocation wants: 0 holds 1, 1 holds 2, 2 holds 3.
    fn settled() -> Self {
        let mut desk = Self::new();
        for node in 0..3 {
            desk.state(node, 2, None, &[node as u8 + 1]);
        }
        for (node, order) in desk.drive() {
            assert_eq!(
                order.addresses,
                [address(node.get() as u8 + 1)],
                "it stays where it is"
            );
            desk.state(node.get(), 2, Some(order.seq), &[node.get() as u8 + 1]);
        }
        assert!(desk.drive().is_empty());
        assert!(desk.leader.settled());
        desk
    }
}

fn of(orders: &[(Pnn, Assign)], node: u32) -> Option<&Assign> {
    orders
        .iter()
        .find(|(to, _)| *to == pnn(node))
        .map(|(_, order)| order)
}

#[test]
fn nothing_unheld_is_assigned_while_a_host_is_unknown() {
    // R18: and what is held is confirmed with an order of the new term.
    let mut desk = Desk::new();
    desk.state(0, 2, None, &[]);
    desk.state(1, 2, None, &[2]);
    let orders = desk.drive();
    assert!(of(&orders, 0).unwrap().addresses.is_empty());
    assert_eq!(of(&orders, 1).unwrap().addresses, [address(2)]);
    assert!(!desk.leader.complete());
    desk.evidence(2, 2);
    let orders = desk.drive();
    for last in 1..=3 {
        let may = desk.leader.whereabouts(address(last)).1;
        assert!(
            !may.is_empty() && !may.contains(pnn(2)),
            "{last} is at {may:?}"
        );
    }
    assert!(of(&orders, 2).is_none());
}

#[test]
fn a_state_of_another_term_counts_for_nothing() {
    // R16.
    let mut desk = Desk::new();
    let state = HolderState {
        term: Some(term(TERM - 1)),
        epoch: epoch(1, 2),
        has_right: true,
        ..HolderState::default()
    };
    desk.leader.state(desk.now, pnn(1), &state);
    assert_eq!(
        desk.leader.refusal(pnn(1), address(1)),
        Some("it has not answered this leader")
    );
}

#[test]
fn an_order_is_repeated_with_its_number_until_it_is_echoed() {
    // R15.
    let mut desk = Desk::new();
    desk.state(1, 2, None, &[]);
    let first = of(&desk.drive(), 1).unwrap().clone();
    assert!(desk.drive().is_empty(), "rate-limited");
    desk.now += REPEAT;
    assert_eq!(of(&desk.drive(), 1), Some(&first));
    desk.state(1, 2, Some(first.seq), &[]);
    desk.now += REPEAT;
    assert!(desk.drive().is_empty());
}

/// `spec/cluster.md` 3.2, 3.4: all nodes hear of a run, moved or not.
#[test]
fn a_run_that_moves_nothing_is_told_of_once_all_is_carried_out() {
    let mut desk = Desk::settled();
    let told = |desk: &mut Desk| {
        let situation = desk.situation.clone();
        let placement = desk.leader.placement(&situation);
        placement.map(|placement| (placement.version, placement.owners))
    };
    let (first, owners) = told(&mut desk).unwrap();
    assert_eq!(told(&mut desk), None);
    desk.leader.reallocate(NodeSet::EMPTY);
    desk.leader.run();
    assert_eq!(told(&mut desk), None, "not computed yet");
    assert!(desk.drive().is_empty());
    assert_eq!(told(&mut desk), Some((first + 1, owners.clone())));
    assert_eq!(told(&mut desk), None, "once");
    // A node that can host no more, or again, whatever addresses it had.
    for fit in [NodeSet(3), NodeSet(7)] {
        desk.situation.fit = fit;
        desk.drive();
        assert!(told(&mut desk).is_some());
        desk.drive();
        assert_eq!(told(&mut desk), None);
    }
    // One that moves is told of when it moves, and is that run.
    desk.leader.run();
    desk.leader.move_address(address(1), pnn(1));
    let orders = desk.drive();
    let release = of(&orders, 0).unwrap().seq;
    assert_eq!(told(&mut desk), None, "under way");
    desk.state(0, 2, Some(release), &[]);
    let orders = desk.drive();
    assert!(told(&mut desk).is_some(), "nobody has it");
    let take = of(&orders, 1).unwrap().seq;
    desk.state(1, 2, Some(take), &[1, 2]);
    desk.drive();
    assert!(told(&mut desk).is_some());
    assert!(desk.leader.settled());
    desk.drive();
    assert_eq!(told(&mut desk), None);
    // `[failover] disabled`: nothing is ever carried out.
    desk.situation.disabled = true;
    desk.leader.reallocate(NodeSet::EMPTY);
    desk.leader.run();
    desk.drive();
    assert!(!desk.leader.settled() && told(&mut desk).is_some());
}

#[test]
fn an_address_moves_only_after_done() {
    // R16, R17: released, echoed without it, then given.
    let mut desk = Desk::settled();
    desk.leader.move_address(address(1), pnn(1));
    let orders = desk.drive();
    let release = of(&orders, 0).unwrap();
    assert!(release.addresses.is_empty());
    assert!(of(&orders, 1).is_none(), "still in the may of node 0");
    desk.state(0, 2, Some(release.seq), &[1]);
    assert!(of(&desk.drive(), 1).is_none(), "echoed, and not yet silent");
    desk.state(0, 2, Some(OrderSeq(1)), &[]);
    assert!(
        of(&desk.drive(), 1).is_none(),
        "an older STATE shrinks nothing"
    );
    desk.state(0, 2, Some(release.seq), &[]);
    let orders = desk.drive();
    assert_eq!(of(&orders, 1).unwrap().addresses, [address(1), address(2)]);
    assert!(of(&orders, 2).is_none(), "ADDR-5: nobody else is disturbed");
}

#[test]
fn a_move_to_a_node_that_cannot_host_does_nothing() {
    let mut desk = Desk::settled();
    desk.situation
        .able
        .get_mut(&address(1))
        .unwrap()
        .remove(pnn(1));
    desk.drive();
    desk.leader.move_address(address(1), pnn(1));
    assert!(desk.drive().is_empty());
    assert_eq!(desk.leader.serves(address(1)), Some(pnn(0)));
}

#[test]
fn what_was_ordered_counts_although_no_answer_came() {
    // R17: may(X) grows with the order.
    let mut desk = Desk::new();
    for node in 0..3 {
        desk.state(node, 2, None, &[]);
    }
    let orders = desk.drive();
    let (to, order) = orders
        .iter()
        .find(|(_, order)| !order.addresses.is_empty())
        .unwrap();
    let given = order.addresses[0];
    // It cannot host it any more, and has not answered.
    desk.situation.able.get_mut(&given).unwrap().remove(*to);
    let orders = desk.drive();
    assert!(
        orders
            .iter()
            .all(|(other, order)| other == to || !order.addresses.contains(&given))
    );
    assert!(desk.leader.whereabouts(given).1.contains(*to));
}

#[test]
fn silence_frees_nothing_and_evidence_does() {
    // R12, R17, R19.
    let mut desk = Desk::settled();
    desk.situation.linked.remove(pnn(2));
    desk.now += Duration::from_secs(30);
    assert!(desk.drive().is_empty(), "a closed link proves nothing");
    assert!(desk.leader.whereabouts(address(3)).1.contains(pnn(2)));
    desk.evidence(2, 2);
    let orders = desk.drive();
    assert!(
        orders
            .iter()
            .any(|(_, order)| order.addresses.contains(&address(3)))
    );
}

#[test]
fn evidence_of_an_older_epoch_says_nothing() {
    // R13.
    let mut desk = Desk::settled();
    desk.evidence(2, 1);
    desk.status.peers[2].evidence = Some(at(0) - Duration::from_secs(1));
    assert!(desk.drive().is_empty());
    assert_eq!(desk.leader.serves(address(3)), Some(pnn(2)));
}

#[test]
fn what_evidence_ended_does_not_come_back() {
    // R2: a STATE of that epoch was under way.
    let mut desk = Desk::settled();
    desk.now += Duration::from_secs(3);
    desk.evidence(2, 2);
    desk.drive();
    desk.state(2, 2, Some(OrderSeq(3)), &[3]);
    assert!(!desk.leader.whereabouts(address(3)).1.contains(pnn(2)));
    desk.state(2, 4, None, &[]);
    assert_eq!(
        desk.leader.refusal(pnn(2), address(3)),
        None,
        "a newer epoch is welcome"
    );
}

#[test]
fn a_newer_epoch_frees_what_the_old_one_held() {
    // R17: by STATE, or as the detector saw it.
    for by_state in [true, false] {
        let mut desk = Desk::settled();
        desk.now += Duration::from_secs(1);
        if by_state {
            desk.state(2, 4, None, &[]);
        } else {
            desk.status.peers[2].epoch = 3;
        }
        desk.drive();
        desk.now += RIGHT_RETURNS;
        let orders = desk.drive();
        let may = desk.leader.whereabouts(address(3)).1;
        assert_eq!(
            may.contains(pnn(2)),
            by_state,
            "it has a right again, or others take over"
        );
        let given =
            |(to, order): &(Pnn, Assign)| *to != pnn(2) && order.addresses.contains(&address(3));
        assert_eq!(orders.iter().any(given), !by_state);
    }
}

#[test]
fn a_short_lapse_moves_nothing() {
    // MEM-3: granted again in one round trip.
    let mut desk = Desk::settled();
    desk.status.peers[2].epoch = 3;
    assert!(desk.drive().is_empty());
    desk.now += RIGHT_RETURNS / 2;
    desk.state(2, 4, None, &[]);
    let orders = desk.drive();
    assert_eq!(orders.len(), 1);
    let order = of(&orders, 2).unwrap();
    assert_eq!(
        (order.epoch, &order.addresses[..]),
        (epoch(2, 4), &[address(3)][..])
    );
}

#[test]
fn an_older_epoch_comes_late() {
    let mut desk = Desk::settled();
    desk.state(2, 4, None, &[]);
    desk.state(2, 2, None, &[1, 2, 3]);
    assert!(!desk.leader.whereabouts(address(1)).1.contains(pnn(2)));
}

#[test]
fn who_does_not_answer_orders_is_reported_and_given_nothing() {
    let mut desk = Desk::new();
    for node in 0..3 {
        desk.state(node, 2, None, &[]);
    }
    for (node, order) in desk.drive() {
        if node != pnn(2) {
            let holds: Vec<u8> = order.addresses.iter().map(last_octet).collect();
            desk.state(node.get(), 2, Some(order.seq), &holds);
        }
    }
    desk.drive();
    desk.now += TALKS + Duration::from_millis(1);
    desk.drive();
    assert_eq!(
        desk.leader.unaccounted(desk.now),
        NodeSet::from_iter([pnn(2)])
    );
    assert!(!desk.leader.lonely(desk.now));
    desk.evidence(2, 2);
    let orders = desk.drive();
    assert!(!orders.is_empty(), "others take over");
    assert_eq!(desk.leader.unaccounted(desk.now), NodeSet::EMPTY);
}

fn last_octet(address: &IpAddr) -> u8 {
    match address {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(v6) => v6.octets()[15],
    }
}

#[test]
fn a_failed_takeover_goes_elsewhere_or_is_tried_again() {
    let mut desk = Desk::settled();
    let failed = |desk: &mut Desk, seq: OrderSeq| {
        let state = HolderState {
            term: Some(term(TERM)),
            epoch: epoch(1, 2),
            has_right: true,
            last_order: Some((term(TERM), seq)),
            holds: vec![address(2)],
            failed: vec![(address(1), "no link".to_owned())],
            ..HolderState::default()
        };
        desk.leader.state(desk.now, pnn(1), &state);
    };
    // Only node 1 could host address 1 from now on; the others stay where they are.
    for (last, node) in [(2, 1), (3, 2)] {
        *desk.situation.able.get_mut(&address(last)).unwrap() = NodeSet::from_iter([pnn(node)]);
    }
    *desk.situation.able.get_mut(&address(1)).unwrap() = NodeSet::from_iter([pnn(1)]);
    let release = of(&desk.drive(), 0).unwrap().seq;
    desk.state(0, 2, Some(release), &[]);
    let seq = of(&desk.drive(), 1).unwrap().seq;
    failed(&mut desk, seq);
    let without = of(&desk.drive(), 1).unwrap().clone();
    assert_eq!(without.addresses, [address(2)]);
    desk.state(1, 2, Some(without.seq), &[2]);
    assert!(desk.drive().is_empty());
    desk.now += RETRY_ALONE;
    let again = of(&desk.drive(), 1).unwrap().clone();
    assert_eq!(again.addresses, [address(1), address(2)]);
    // With somebody else it goes there at once.
    failed(&mut desk, again.seq);
    desk.situation
        .able
        .get_mut(&address(1))
        .unwrap()
        .insert(pnn(2));
    let orders = desk.drive();
    let taken = of(&orders, 2).unwrap();
    assert_eq!(taken.addresses, [address(1), address(3)]);
}

fn fails(desk: &mut Desk, node: u32, order: u64) {
    let state = HolderState {
        term: Some(term(TERM)),
        epoch: epoch(node, 2),
        has_right: true,
        last_order: Some((term(TERM), OrderSeq(order))),
        holds: vec![address(node as u8 + 1)],
        failed: vec![(address(1), "no lease on eth0".to_owned())],
        ..HolderState::default()
    };
    // A STATE is repeated until the next order.
    for _ in 0..3 {
        desk.leader.state(desk.now, pnn(node), &state);
    }
}

fn strict() -> Desk {
    let mut desk = Desk::settled();
    desk.situation.policy.bans = credits::Bans {
        enabled: true,
        period_s: 300,
        grace: Duration::from_secs(120),
    };
    desk
}

#[test]
fn who_fails_again_and_again_is_banned_if_others_can_do_its_work() {
    let mut desk = strict();
    for order in 1..=6 {
        assert_eq!(desk.leader.convict(desk.now, &desk.situation), None);
        fails(&mut desk, 1, 100 + order);
        let credit = desk.leader.credits().of(pnn(1)).unwrap();
        assert_eq!(u64::from(credit.count), order);
    }
    let (banned, credit) = desk.leader.convict(desk.now, &desk.situation).unwrap();
    assert_eq!((banned, credit.count), (pnn(1), 6));
    assert_eq!(credit.why, "takeover of 10.0.0.1 failed: no lease on eth0");
    assert_eq!(desk.leader.convict(desk.now, &desk.situation), None);
    assert_eq!(desk.leader.credits().of(pnn(1)), None);
}

#[test]
fn credits_are_forgiven_and_nobody_is_banned_whose_work_nobody_else_can_do() {
    let mut desk = strict();
    for order in 1..=9 {
        fails(&mut desk, 1, 100 + order);
    }
    // It alone could serve one of the addresses.
    let mut alone = desk.situation.clone();
    alone
        .able
        .insert(address(9), [pnn(1)].into_iter().collect());
    assert_eq!(desk.leader.convict(desk.now, &alone), None);
    // The others fail as well, or cannot be reached.
    let mut cut = desk.situation.clone();
    cut.linked = [pnn(1)].into_iter().collect();
    assert_eq!(desk.leader.convict(desk.now, &cut), None);
    // EnableBans = 0.
    let mut mild = desk.situation.clone();
    mild.policy.bans.enabled = false;
    assert_eq!(desk.leader.convict(desk.now, &mild), None);
    assert!(desk.leader.credits().of(pnn(1)).is_some());
    desk.now = at(120_001);
    assert_eq!(desk.leader.convict(desk.now, &desk.situation), None);
    assert_eq!(desk.leader.credits().of(pnn(1)), None);
}

#[test]
fn databases_wait_for_a_host_for_so_long() {
    let mut desk = Desk::settled();
    // It keeps what it has: nobody but the databases misses it.
    desk.situation.linked.remove(pnn(2));
    desk.drive();
    desk.now += SERVES * 3;
    desk.drive();
    assert_eq!(desk.leader.unaccounted(desk.now), NodeSet::EMPTY);
    desk.situation.awaited = NodeSet::from_iter([pnn(2)]);
    desk.drive();
    desk.now += SERVES;
    desk.drive();
    assert_eq!(desk.leader.unaccounted(desk.now), NodeSet::EMPTY, "in time");
    desk.now += Duration::from_millis(1);
    desk.drive();
    assert_eq!(
        desk.leader.unaccounted(desk.now),
        NodeSet::from_iter([pnn(2)])
    );
    // It is a member again: the next time counts from its beginning.
    desk.situation.awaited = NodeSet::EMPTY;
    desk.drive();
    assert_eq!(desk.leader.unaccounted(desk.now), NodeSet::EMPTY);
    desk.situation.awaited = NodeSet::from_iter([pnn(2)]);
    desk.drive();
    desk.now += SERVES * 2;
    desk.drive();
    assert!(desk.leader.unaccounted(desk.now).contains(pnn(2)));
    // Evidence has it: nobody waits any more.
    desk.evidence(2, 2);
    desk.drive();
    assert_eq!(desk.leader.unaccounted(desk.now), NodeSet::EMPTY);
}
