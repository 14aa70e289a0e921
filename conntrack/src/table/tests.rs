use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ctdb_wire::connections::{
    Change, ConnectionFrame, Digest, Key, MAX_IN_FRAME, Meta, Sources, Tenure,
};
use ctdb_wire::ids::{BootTime, Incarnation, NodeSet, OrderSeq, Pnn, Term};
use proptest::prelude::*;

use super::*;

pub(super) fn pnn(number: u32) -> Pnn {
    Pnn::new(number).unwrap()
}

pub(super) fn config(me: u32) -> Config {
    Config {
        me: pnn(me),
        max_connections: 50_000,
        tickle_rounds: 3,
        tickle_pause: Duration::from_millis(600),
    }
}

pub(super) fn address(last: u8) -> IpAddr {
    format!("10.0.0.{last}").parse().unwrap()
}

pub(super) fn public() -> BTreeSet<IpAddr> {
    (1..=4)
        .map(address)
        .chain(["fd00::1".parse().unwrap()])
        .collect()
}

pub(super) fn tenure(number: u64) -> Tenure {
    let term = Term {
        number: 1,
        leader: pnn(0),
        session: Incarnation(9),
    };
    Tenure {
        term,
        seq: OrderSeq(number),
    }
}

fn kernel(since: u32) -> Meta {
    Meta {
        since,
        sources: Sources::KERNEL,
    }
}

fn connection(server: IpAddr, client: u32) -> Ends {
    let client_ip: IpAddr = if server.is_ipv4() {
        IpAddr::V4(0x0a01_0000u32.wrapping_add(client).into())
    } else {
        IpAddr::V6((0xfd01_u128 << 112 | u128::from(client)).into())
    };
    Ends {
        client: (client_ip, 50_000).into(),
        server: (server, 445).into(),
    }
}

fn key(server: IpAddr, client: u32) -> Key {
    connection(server, client).split().1
}

fn at(ms: u64) -> BootTime {
    BootTime::from_millis(ms)
}

/// All frames that are due.
pub(super) fn pull(table: &mut Table, now: BootTime) -> Vec<(NodeSet, ConnectionFrame)> {
    let all = NodeSet(u64::MAX);
    std::iter::from_fn(|| table.next_frame(now, all))
        .take(10_000)
        .collect()
}

fn started(me: u32) -> Table {
    let mut table = Table::new(config(me));
    table.handle(at(0), Input::Public(public()));
    table
}

fn tickled(effects: &[Effect]) -> Vec<Ends> {
    effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Tickle { connections, .. } => Some(connections.clone()),
            Effect::Kill(_) => None,
        })
        .flatten()
        .collect()
}

#[test]
fn a_change_leaves_at_once_when_idle_and_others_wait_for_company() {
    let mut table = started(0);
    table.handle(at(0), Input::LinkUp(pnn(1), Incarnation(1)));
    pull(&mut table, at(0));
    table.handle(
        at(1000),
        Input::Opened(connection(address(1), 1), kernel(7)),
    );
    assert!(table.next_due().unwrap() <= at(1000));
    let frames = pull(&mut table, at(1000));
    assert!(matches!(&frames[..], [(_, ConnectionFrame::Changes(changes))] if changes.len() == 1));
    for client in 2..10 {
        table.handle(
            at(1001),
            Input::Opened(connection(address(1), client), kernel(7)),
        );
    }
    assert_eq!(pull(&mut table, at(1001)), []);
    assert_eq!(table.next_due(), Some(at(1000) + COALESCE));
    let frames = pull(&mut table, at(1020));
    assert!(matches!(&frames[..], [(_, ConnectionFrame::Changes(changes))] if changes.len() == 8));
}

#[test]
fn one_that_came_and_went_in_between_is_said_once_as_gone() {
    let mut table = started(0);
    table.handle(at(0), Input::LinkUp(pnn(1), Incarnation(1)));
    pull(&mut table, at(0));
    let short = connection(address(1), 1);
    for _ in 0..5 {
        table.handle(at(100), Input::Opened(short, kernel(7)));
        table.handle(at(100), Input::Closed(short, Sources::KERNEL));
    }
    let change = Change {
        address: address(1),
        key: key(address(1), 1),
        now: None,
    };
    let frames = pull(&mut table, at(100));
    assert!(
        matches!(&frames[..], [(_, ConnectionFrame::Changes(changes))] if *changes == [change])
    );
}

#[test]
fn what_is_released_stays_until_the_next_host_has_it() {
    let (mut old, mut new) = (started(0), started(1));
    old.handle(at(0), Input::LinkUp(pnn(1), Incarnation(1)));
    new.handle(at(0), Input::LinkUp(pnn(0), Incarnation(1)));
    let moved = address(1);
    old.handle(at(0), Input::Taken(vec![moved], tenure(1)));
    let known = connection(moved, 1);
    old.handle(at(10), Input::Opened(known, kernel(7)));
    // Established within the last milliseconds, and silent since.
    old.handle(at(11), Input::Frozen(vec![moved]));
    old.handle(at(12), Input::Closed(known, Sources::KERNEL));
    for (_, frame) in pull(&mut old, at(12)) {
        new.handle(at(13), Input::Frame(pnn(0), frame));
    }
    let effects = new.handle(at(20), Input::Taken(vec![moved], tenure(2)));
    assert_eq!(tickled(&effects), [known]);
    // The former host forgets it, and ends what is left there.
    let mut kills = Vec::new();
    for (_, frame) in pull(&mut new, at(21)) {
        kills.extend(old.handle(at(22), Input::Frame(pnn(1), frame)));
    }
    assert_eq!(kills, [Effect::Kill(vec![moved])]);
    assert_eq!(old.counts(), [0; 4]);
    // Repeats more than 500 ms apart, to the bound.
    assert_eq!(tickled(&new.handle(at(600), Input::Tick)), []);
    assert_eq!(tickled(&new.handle(at(620), Input::Tick)), [known]);
    assert_eq!(tickled(&new.handle(at(1900), Input::Tick)), [known]);
    assert_eq!(tickled(&new.handle(at(60_000), Input::Tick)), []);
    assert_eq!(new.counts(), [0; 4]);
}

#[test]
fn who_ended_before_or_came_back_is_not_tickled() {
    let mut new = started(1);
    new.handle(at(0), Input::LinkUp(pnn(0), Incarnation(1)));
    let moved = address(1);
    let change = |client, now| Change {
        address: moved,
        key: key(moved, client),
        now,
    };
    let changes = vec![
        change(1, Some(kernel(1))),
        change(2, Some(kernel(1))),
        change(3, Some(kernel(1))),
        change(1, None),
    ];
    new.handle(
        at(1),
        Input::Frame(pnn(0), ConnectionFrame::Changes(changes)),
    );
    let effects = new.handle(at(10), Input::Taken(vec![moved], tenure(2)));
    let told = tickled(&effects);
    assert_eq!(told, [connection(moved, 2), connection(moved, 3)]);
    // An NFS client comes back from the same port.
    new.handle(at(50), Input::Opened(connection(moved, 2), kernel(2)));
    assert_eq!(
        tickled(&new.handle(at(700), Input::Tick)),
        [connection(moved, 3)]
    );
    // The address goes on; its next host tells them.
    let held = ConnectionFrame::Held(vec![(moved, tenure(3))]);
    new.handle(at(800), Input::Frame(pnn(0), held));
    assert_eq!(tickled(&new.handle(at(5000), Input::Tick)), []);
}

#[test]
fn last_words_that_the_order_has_overtaken_are_heard() {
    let mut new = started(1);
    new.handle(at(0), Input::LinkUp(pnn(0), Incarnation(1)));
    let moved = address(1);
    assert_eq!(new.handle(at(1), Input::Taken(vec![moved], tenure(2))), []);
    let change = Change {
        address: moved,
        key: key(moved, 1),
        now: Some(kernel(1)),
    };
    let frame = ConnectionFrame::Changes(vec![change, change]);
    let effects = new.handle(at(2), Input::Frame(pnn(0), frame));
    assert_eq!(tickled(&effects), [connection(moved, 1)]);
    // What an operator registered elsewhere is only known.
    let manual = Meta {
        since: 1,
        sources: Sources::MANUAL,
    };
    let change = Change {
        address: moved,
        key: key(moved, 2),
        now: Some(manual),
    };
    let frame = ConnectionFrame::Changes(vec![change]);
    assert_eq!(new.handle(at(3), Input::Frame(pnn(0), frame)), []);
    assert_eq!(new.counts()[1], 1);
}

#[test]
fn sockets_that_outlive_a_pause_go_on_and_the_others_are_told() {
    let mut table = started(0);
    let mine = address(1);
    table.handle(at(0), Input::Taken(vec![mine], tenure(1)));
    let (stays, ended) = (connection(mine, 1), connection(mine, 2));
    table.handle(at(1), Input::Opened(stays, kernel(1)));
    table.handle(at(1), Input::Opened(ended, kernel(1)));
    table.handle(at(2), Input::Frozen(vec![mine]));
    table.handle(at(3), Input::Closed(ended, Sources::KERNEL));
    let effects = table.handle(at(4), Input::Taken(vec![mine], tenure(2)));
    assert_eq!(tickled(&effects), [ended]);
    assert_eq!(table.own(stays), Some(kernel(1)));
    assert_eq!(table.own(ended), None);
}

#[test]
fn a_lost_nodes_connections_outlive_its_restart() {
    let mut table = started(1);
    table.handle(at(0), Input::LinkUp(pnn(0), Incarnation(1)));
    let (lost, back) = (address(1), address(2));
    let there = |address| Change {
        address,
        key: key(address, 1),
        now: Some(kernel(1)),
    };
    let changes = vec![there(lost), there(back)];
    table.handle(
        at(1),
        Input::Frame(pnn(0), ConnectionFrame::Changes(changes)),
    );
    table.handle(at(2), Input::LinkDown(pnn(0)));
    assert_eq!(table.counts(), [0, 2, 0, 0]);
    table.handle(at(3), Input::LinkUp(pnn(0), Incarnation(2)));
    assert_eq!(table.counts(), [0, 0, 2, 0]);
    // The newcomer is told of them, by the lowest of those that stayed.
    let orphans = pull(&mut table, at(3))
        .into_iter()
        .filter_map(|(_, frame)| match frame {
            ConnectionFrame::Orphans { keys, .. } => Some(keys.len()),
            _ => None,
        });
    assert_eq!(orphans.sum::<usize>(), 2);
    // One socket outlived the daemon.
    let changes = ConnectionFrame::Changes(vec![there(back)]);
    table.handle(at(4), Input::Frame(pnn(0), changes));
    assert_eq!(table.counts(), [0, 1, 1, 0]);
    let effects = table.handle(at(5), Input::Taken(vec![lost], tenure(5)));
    assert_eq!(tickled(&effects), [connection(lost, 1)]);
}

#[test]
fn who_was_not_told_to_the_end_is_handed_on() {
    let mut table = started(0);
    table.handle(at(0), Input::LinkUp(pnn(1), Incarnation(1)));
    let moved = address(1);
    let change = Change {
        address: moved,
        key: key(moved, 1),
        now: Some(kernel(1)),
    };
    let frame = ConnectionFrame::Changes(vec![change]);
    table.handle(at(1), Input::Frame(pnn(1), frame));
    let effects = table.handle(at(2), Input::Taken(vec![moved], tenure(2)));
    assert_eq!(tickled(&effects), [connection(moved, 1)]);
    pull(&mut table, at(2));
    // It goes on before the second round.
    table.handle(at(100), Input::Frozen(vec![moved]));
    let mut next = started(1);
    next.handle(at(100), Input::LinkUp(pnn(0), Incarnation(1)));
    for (_, frame) in pull(&mut table, at(100)) {
        next.handle(at(101), Input::Frame(pnn(0), frame));
    }
    assert_eq!(tickled(&table.handle(at(5000), Input::Tick)), []);
    let effects = next.handle(at(102), Input::Taken(vec![moved], tenure(3)));
    assert_eq!(tickled(&effects), [connection(moved, 1)]);
    for (_, frame) in pull(&mut next, at(103)) {
        table.handle(at(103), Input::Frame(pnn(1), frame));
    }
    assert_eq!(table.counts(), [0; 4]);
}

#[test]
fn sockets_from_before_the_daemon_end_if_another_node_serves_them() {
    let mut table = started(0);
    table.handle(at(0), Input::LinkUp(pnn(1), Incarnation(1)));
    let taken = address(1);
    let held = ConnectionFrame::Held(vec![(taken, tenure(3))]);
    assert_eq!(table.handle(at(1), Input::Frame(pnn(1), held)), []);
    let there = vec![(key(taken, 1), 7)];
    let effects = table.handle(at(2), Input::Read(taken, there));
    assert_eq!(effects, [Effect::Kill(vec![taken])]);
    assert_eq!(table.handle(at(3), Input::Read(taken, Vec::new())), []);
    assert_eq!(table.counts(), [0; 4]);
    // An address that nobody else is known to serve goes on.
    let mine = address(2);
    let there = vec![(key(mine, 1), 7)];
    assert_eq!(table.handle(at(4), Input::Read(mine, there)), []);
    assert_eq!(table.counts(), [1, 0, 0, 0]);
}

#[test]
fn an_older_host_is_not_believed() {
    let mut table = started(0);
    table.handle(at(0), Input::LinkUp(pnn(1), Incarnation(1)));
    table.handle(at(0), Input::Taken(vec![address(1)], tenure(7)));
    table.handle(at(1), Input::Opened(connection(address(1), 1), kernel(1)));
    for number in [6, 7] {
        let held = ConnectionFrame::Held(vec![(address(1), tenure(number))]);
        assert_eq!(table.handle(at(2), Input::Frame(pnn(1), held)), []);
    }
    assert_eq!(table.counts(), [1, 0, 0, 0]);
}

#[test]
fn what_an_operator_registered_stays_until_it_is_taken_out() {
    let mut table = started(0);
    let ends = connection(address(1), 1);
    let manual = Meta {
        since: 3,
        sources: Sources::MANUAL,
    };
    table.handle(at(0), Input::Opened(ends, manual));
    table.handle(at(1), Input::Opened(ends, kernel(9)));
    assert_eq!(
        table.own(ends).unwrap().sources.names(),
        ["kernel", "manual"]
    );
    assert_eq!(table.own(ends).unwrap().since, 3);
    table.handle(at(2), Input::Closed(ends, Sources::KERNEL));
    assert_eq!(table.own(ends), Some(manual));
    table.handle(at(3), Input::Closed(ends, Sources::MANUAL));
    assert_eq!(table.own(ends), None);
}

#[test]
fn what_samba_registered_ends_with_its_process_or_is_told_by_the_next_host() {
    let mut table = started(0);
    let samba = Meta {
        since: 5,
        sources: Sources::SAMBA,
    };
    let [one, two, three] = [1, 2, 3].map(|client| connection(address(1), client));
    // The kernel's and the process's word are one connection; it stands until both are gone.
    table.handle(at(0), Input::Opened(one, samba));
    table.handle(at(0), Input::Opened(one, kernel(6)));
    let both = Sources::SAMBA.union(Sources::KERNEL);
    assert_eq!(table.own(one).unwrap().sources, both);
    table.handle(at(1), Input::Closed(one, Sources::SAMBA));
    assert_eq!(table.own(one).unwrap().sources, Sources::KERNEL);
    // Known to the kernel no more: the process's word does not hold it.
    table.handle(at(2), Input::Opened(one, samba));
    table.handle(at(2), Input::Closed(one, Sources::KERNEL));
    assert_eq!(table.own(one), None);
    // Released: a process that goes leaves its connection to the next host, but an operator's word
    // counts.
    table.handle(at(3), Input::Taken(vec![address(1)], tenure(1)));
    for ends in [one, two, three] {
        table.handle(at(4), Input::Opened(ends, samba));
    }
    table.handle(at(5), Input::Opened(two, kernel(7)));
    table.handle(at(6), Input::Frozen(vec![address(1)]));
    for ends in [one, two] {
        table.handle(at(7), Input::Closed(ends, Sources::SAMBA));
    }
    let by_hand = Sources::MANUAL.union(Sources::SAMBA);
    table.handle(at(7), Input::Closed(three, by_hand));
    assert_eq!(table.connections_to(address(1)), [one, two].into());
    // It comes back: whose socket the kernel shows goes on, the other's client is told.
    let effects = table.handle(at(8), Input::Taken(vec![address(1)], tenure(2)));
    assert_eq!(tickled(&effects), [one]);
    assert_eq!(table.connections_to(address(1)), [two].into());
    let left: Vec<Ends> = table.own_to(address(1)).map(|(ends, _)| ends).collect();
    assert_eq!(left, [two]);
}

#[test]
fn the_list_of_an_address_has_each_connection_once() {
    let mut table = started(0);
    let [own, peers] = [1, 2].map(|client| connection(address(1), client));
    table.handle(at(0), Input::Opened(own, kernel(1)));
    for peer in [1, 2] {
        table.handle(at(0), Input::LinkUp(pnn(peer), Incarnation(1)));
        let changes = [own, peers].map(|ends| Change {
            address: address(1),
            key: ends.split().1,
            now: Some(kernel(1)),
        });
        let frame = ConnectionFrame::Changes(changes.to_vec());
        table.handle(at(1), Input::Frame(pnn(peer), frame));
    }
    assert_eq!(table.connections_to(address(1)), [own, peers].into());
    assert_eq!(table.connections_to(address(2)), BTreeSet::new());
}

#[test]
fn a_peer_gets_no_more_room_than_a_node_may_have() {
    let mut config = config(0);
    config.max_connections = 100;
    let mut table = Table::new(config);
    table.handle(at(0), Input::Public(public()));
    table.handle(at(0), Input::LinkUp(pnn(1), Incarnation(1)));
    let changes = (0..1000).map(|client| Change {
        address: address(1),
        key: key(address(1), client),
        now: Some(kernel(1)),
    });
    let frame = ConnectionFrame::Changes(changes.collect());
    table.handle(at(1), Input::Frame(pnn(1), frame));
    assert_eq!(table.counts(), [0, 100, 0, 0]);
    assert_eq!(table.counters().overflowed, 900);
    // It is not asked for what has no room.
    pull(&mut table, at(1));
    let digest = Digest {
        address: address(1),
        count: 1000,
        sum: 5,
    };
    let digests = ConnectionFrame::Digests {
        after: None,
        through: None,
        list: vec![digest],
    };
    table.handle(at(2), Input::Frame(pnn(1), digests));
    assert!(
        !pull(&mut table, at(2))
            .iter()
            .any(|(_, frame)| matches!(frame, ConnectionFrame::Ask(_)))
    );
    // Own connections have the same bound.
    for client in 0..200 {
        table.handle(
            at(3),
            Input::Opened(connection(address(2), client), kernel(1)),
        );
    }
    assert_eq!(table.counts()[0], 100);
}

#[test]
fn foreign_addresses_and_mixed_families_are_refused() {
    let mut table = started(0);
    table.handle(at(0), Input::LinkUp(pnn(1), Incarnation(1)));
    let foreign: IpAddr = "192.0.2.1".parse().unwrap();
    let six: IpAddr = "fd00::1".parse().unwrap();
    let wrong = [
        (foreign, key(foreign, 1)),
        (six, key(address(1), 1)),
        (address(1), key(six, 1)),
    ];
    for (address, key) in wrong {
        let frames = [
            ConnectionFrame::Changes(vec![Change {
                address,
                key,
                now: Some(kernel(1)),
            }]),
            ConnectionFrame::Part {
                address,
                after: None,
                through: None,
                entries: vec![(key, kernel(1))],
            },
            ConnectionFrame::Orphans {
                address,
                keys: vec![key],
            },
        ];
        for frame in frames {
            let before = table.counters().refused;
            table.handle(at(1), Input::Frame(pnn(1), frame));
            assert_eq!(table.counters().refused, before + 1);
        }
    }
    let held = ConnectionFrame::Held(vec![(foreign, tenure(1))]);
    assert_eq!(table.handle(at(2), Input::Frame(pnn(1), held)), []);
    assert_eq!(table.counts(), [0; 4]);
    // Before its link is up, a peer has nothing to say.
    let late = ConnectionFrame::Orphans {
        address: address(1),
        keys: vec![key(address(1), 1)],
    };
    table.handle(at(3), Input::Frame(pnn(2), late));
    assert_eq!(table.counts(), [0; 4]);
}

#[test]
fn a_link_that_falls_behind_compares_instead() {
    let mut table = started(0);
    table.handle(at(0), Input::LinkUp(pnn(1), Incarnation(1)));
    pull(&mut table, at(0));
    for _ in 0..40_000 {
        let ends = connection(address(1), 1);
        table.handle(at(1), Input::Opened(ends, kernel(1)));
        table.handle(at(1), Input::Closed(ends, Sources::KERNEL));
    }
    table.handle(at(1), Input::Opened(connection(address(1), 2), kernel(1)));
    let frames = pull(&mut table, at(2));
    assert_eq!(table.counters().fell_behind, 1);
    assert!(matches!(&frames[..], [(_, ConnectionFrame::Digests { list, .. })] if list.len() == 1));
}

#[test]
fn a_large_table_travels_in_pieces_and_leaves_no_room_behind() {
    let (mut a, mut b) = (started(0), started(1));
    for client in 0..5000 {
        a.handle(
            at(0),
            Input::Opened(connection(address(1), client), kernel(client)),
        );
    }
    a.handle(at(1), Input::LinkUp(pnn(1), Incarnation(1)));
    b.handle(at(1), Input::LinkUp(pnn(0), Incarnation(1)));
    let mut frames = 0;
    for _ in 0..4 {
        for (_, frame) in pull(&mut a, at(2)) {
            frames += usize::from(matches!(frame, ConnectionFrame::Part { .. }));
            b.handle(at(2), Input::Frame(pnn(0), frame));
        }
        for (_, frame) in pull(&mut b, at(2)) {
            a.handle(at(2), Input::Frame(pnn(1), frame));
        }
    }
    assert_eq!(frames, 5000usize.div_ceil(MAX_IN_FRAME));
    assert_eq!(b.counts(), [0, 5000, 0, 0]);
    assert_eq!(a.next_due(), Some(at(2) + COMPARE), "and then it is quiet");
}

fn any_key() -> impl Strategy<Value = Key> {
    (any::<u32>(), any::<bool>()).prop_map(|(client, six)| {
        let server = if six {
            "fd00::1".parse().unwrap()
        } else {
            address(1)
        };
        key(server, client)
    })
}

fn any_frame() -> impl Strategy<Value = ConnectionFrame> {
    let any_address = prop_oneof![
        (0..8u8).prop_map(address),
        Just("fd00::1".parse().unwrap()),
        any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
    ];
    let entries = prop::collection::vec((any_key(), (0..3u32).prop_map(kernel)), 0..20);
    let ends = (prop::option::of(any_key()), prop::option::of(any_key()));
    prop_oneof![
        (any_address.clone(), 0..9u64)
            .prop_map(|(address, number)| ConnectionFrame::Held(vec![(address, tenure(number))])),
        (any_address.clone(), any_key(), any::<bool>()).prop_map(|(address, key, there)| {
            ConnectionFrame::Changes(vec![Change {
                address,
                key,
                now: there.then(|| kernel(1)),
            }])
        }),
        (any_address.clone(), ends, entries).prop_map(|(address, (after, through), entries)| {
            ConnectionFrame::Part {
                address,
                after,
                through,
                entries,
            }
        }),
        (any_address.clone(), any::<u32>(), any::<u64>()).prop_map(|(address, count, sum)| {
            ConnectionFrame::Digests {
                after: None,
                through: Some(address),
                list: vec![Digest {
                    address,
                    count,
                    sum,
                }],
            }
        }),
        prop::collection::vec(any_address.clone(), 0..5).prop_map(ConnectionFrame::Ask),
        Just(ConnectionFrame::Compare),
        (any_address, prop::collection::vec(any_key(), 0..20))
            .prop_map(|(address, keys)| ConnectionFrame::Orphans { address, keys }),
    ]
}

proptest! {
    /// Whatever a peer says, the counts are those of the lists, and own connections are safe
    /// unless their address is said to be held by a later host.
    #[test]
    fn no_frame_breaks_the_books(frames in prop::collection::vec(any_frame(), 0..60)) {
        let mut table = started(0);
        table.handle(at(0), Input::LinkUp(pnn(1), Incarnation(1)));
        table.handle(at(0), Input::Taken(vec![address(4)], tenure(100)));
        table.handle(at(0), Input::Opened(connection(address(4), 1), kernel(1)));
        for (step, frame) in frames.into_iter().enumerate() {
            let now = at(step as u64);
            table.handle(now, Input::Frame(pnn(1), frame));
            pull(&mut table, now);
            let shown: Vec<Shown> = table.connections().collect();
            let [own, replicated, orphans, _] = table.counts();
            let count = |node| shown.iter().filter(|shown| shown.node == node).count();
            prop_assert_eq!(count(Some(pnn(0))), own);
            prop_assert_eq!(count(Some(pnn(1))), replicated);
            prop_assert_eq!(count(None), orphans);
            prop_assert_eq!(own, 1);
            prop_assert!(shown.iter().all(|shown| public().contains(&shown.address)));
        }
    }
}
