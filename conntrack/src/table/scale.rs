//! The sizes that are promised: 64 nodes, 50,000 connections each, changes everywhere within 100 ms.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use ctdb_wire::connections::{Change, Digest, MAX_IN_FRAME};
use ctdb_wire::ids::Incarnation;
use ctdb_wire::peer::{PeerFrame, encode};

use super::tests::{config, pnn, pull, tenure};
use super::*;

const NODES: u32 = 64;
/// ADDR-3.
const BOUND: Duration = Duration::from_millis(100);

/// The address that a node serves.
fn address(node: u32) -> IpAddr {
    IpAddr::V4((0x0a00_0001 + node).into())
}

fn public() -> BTreeSet<IpAddr> {
    (0..NODES).map(address).collect()
}

fn connection(node: u32, client: u32) -> Ends {
    Ends {
        client: (
            IpAddr::V4((0x0b00_0000 + client / 60_000).into()),
            (client % 60_000) as u16,
        )
            .into(),
        server: (address(node), 445).into(),
    }
}

fn meta() -> Meta {
    Meta {
        since: 7,
        sources: Sources::KERNEL,
    }
}

fn at(ms: u64) -> BootTime {
    BootTime::from_millis(ms)
}

/// All nodes' tables with a network between them that takes 1 ms for each frame.
#[test]
fn every_change_is_on_all_64_nodes_within_100_ms() {
    let mut tables: Vec<Table> = (0..NODES).map(|me| Table::new(config(me))).collect();
    for (me, table) in (0..).zip(&mut tables) {
        table.handle(at(0), Input::Public(public()));
        for peer in (0..NODES).filter(|peer| *peer != me) {
            table.handle(at(0), Input::LinkUp(pnn(peer), Incarnation(1)));
        }
        table.handle(
            at(0),
            Input::Taken(vec![address(me)], tenure(u64::from(me) + 1)),
        );
    }
    // Frames on their way, by arrival.
    let mut wire: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut frames: Vec<(u32, NodeSet, ConnectionFrame)> = Vec::new();
    // When each change was made, until it is everywhere.
    let mut made: BTreeMap<(u32, u32), (u64, u32)> = BTreeMap::new();
    let mut worst = 0;
    let mut seen = 0;
    for ms in 1..1000 {
        // Each node opens one connection in 10 ms; one of them, in turn, has a burst of 3,000.
        for node in 0..NODES {
            let burst = ms % 100 == 0 && ms / 100 == u64::from(node % 10) && node < 10;
            let count = if burst {
                3000
            } else {
                u32::from(ms % 10 == u64::from(node % 10) && ms < 800)
            };
            for number in 0..count {
                let client = ms as u32 * 4000 + number;
                let input = Input::Opened(connection(node, client), meta());
                tables[node as usize].handle(at(ms), input);
                // Of a burst its first and its last tell how all of it fares.
                if number == 0 || number + 1 == count {
                    made.insert((node, client), (ms, NODES - 1));
                }
            }
        }
        for node in 0..NODES {
            for (peers, frame) in pull(&mut tables[node as usize], at(ms)) {
                wire.push(Reverse((ms + 1, frames.len())));
                frames.push((node, peers, frame));
            }
        }
        while let Some(Reverse((arrival, index))) = wire.peek().copied()
            && arrival <= ms + 1
        {
            wire.pop();
            let (from, peers, frame) = frames[index].clone();
            frames[index].2 = ConnectionFrame::Compare;
            if let ConnectionFrame::Changes(changes) = &frame {
                assert!(changes.len() <= MAX_IN_FRAME);
                for change in changes {
                    let client = u32::from(change.key.client_port)
                        + match change.key.client {
                            IpAddr::V4(client) => (client.to_bits() - 0x0b00_0000) * 60_000,
                            IpAddr::V6(_) => panic!("no such client here"),
                        };
                    if let Some((begun, missing)) = made.get_mut(&(from, client)) {
                        worst = worst.max(arrival - *begun);
                        *missing -= peers.len() as u32;
                        seen += u32::from(*missing == 0);
                    }
                }
            }
            for peer in peers.iter() {
                let input = Input::Frame(pnn(from), frame.clone());
                tables[peer.index()].handle(at(arrival), input);
            }
        }
    }
    assert_eq!(seen as usize, made.len(), "all changes reached all nodes");
    assert!(u128::from(worst) <= BOUND.as_millis(), "{worst} ms");
    println!(
        "{} changes watched, the slowest took {worst} ms",
        made.len()
    );
    let total = tables[0].counts()[0] + tables[0].counts()[1];
    assert!(
        tables
            .iter()
            .all(|table| table.counts()[0] + table.counts()[1] == total)
    );
}

#[test]
fn fifty_thousand_connections_of_each_of_63_peers_fit_and_differences_are_found() {
    const EACH: u32 = 50_000;
    let mut table = Table::new(config(63));
    table.handle(at(0), Input::Public(public()));
    let mut digests = Vec::new();
    let mut largest = 0;
    for peer in 0..63 {
        // A peer's table as it travels, in pieces.
        let mut sender = Table::new(config(peer));
        sender.handle(at(0), Input::Public(public()));
        for client in 0..EACH {
            sender.handle(at(0), Input::Opened(connection(peer, client), meta()));
        }
        sender.handle(at(0), Input::LinkUp(pnn(63), Incarnation(1)));
        table.handle(at(0), Input::LinkUp(pnn(peer), Incarnation(1)));
        // Digests, the question that they raise, and the whole table in pieces.
        for (_, frame) in pull(&mut sender, at(1)) {
            table.handle(at(1), Input::Frame(pnn(peer), frame));
        }
        let asked = pull(&mut table, at(1));
        for (_, frame) in asked {
            if matches!(frame, ConnectionFrame::Ask(_)) {
                sender.handle(at(1), Input::Frame(pnn(63), frame));
            }
        }
        let parts = pull(&mut sender, at(1));
        assert_eq!(parts.len() as u32, EACH.div_ceil(MAX_IN_FRAME as u32));
        for (_, frame) in parts {
            let bytes = encode(&PeerFrame::Connections(frame.clone())).unwrap();
            largest = largest.max(bytes.len());
            table.handle(at(1), Input::Frame(pnn(peer), frame));
        }
        let (_, count, sum) = sender
            .own
            .iter()
            .map(|(address, own)| (*address, own.entries.digest().0, own.entries.digest().1))
            .next()
            .unwrap();
        digests.push(Digest {
            address: address(peer),
            count,
            sum,
        });
    }
    assert_eq!(table.counts(), [0, 63 * EACH as usize, 0, 0]);
    assert_eq!(table.counters().overflowed, 0);
    assert!(largest < 64 * 1024, "{largest} bytes in one frame");
    // Equal copies raise no question; one connection too many or too few does.
    let compare = |table: &mut Table, peer: u32, digest: Digest| {
        let frame = ConnectionFrame::Digests {
            after: None,
            through: None,
            list: vec![digest],
        };
        table.handle(at(9000), Input::Frame(pnn(peer), frame));
        let frames = pull(table, at(9000)).into_iter();
        frames
            .filter(|(_, frame)| matches!(frame, ConnectionFrame::Ask(_)))
            .count()
    };
    for peer in 0..63 {
        assert_eq!(compare(&mut table, peer, digests[peer as usize]), 0);
    }
    let extra = Change {
        address: address(5),
        key: connection(5, EACH).split().1,
        now: Some(meta()),
    };
    let frame = ConnectionFrame::Changes(vec![extra]);
    table.handle(at(9001), Input::Frame(pnn(5), frame));
    assert_eq!(table.counters().overflowed, 1, "50,000 is the bound");
    let lost = Change {
        now: None,
        key: connection(6, 77).split().1,
        address: address(6),
    };
    let frame = ConnectionFrame::Changes(vec![lost]);
    table.handle(at(9001), Input::Frame(pnn(6), frame));
    assert_eq!(compare(&mut table, 6, digests[6]), 1);
    // Its address moves here: all are told, in one round.
    let effects = table.handle(at(9002), Input::Taken(vec![address(7)], tenure(9)));
    let told: usize = effects
        .iter()
        .map(|effect| match effect {
            Effect::Tickle { connections, .. } => connections.len(),
            Effect::Kill(_) => 0,
        })
        .sum();
    assert_eq!(told, EACH as usize);
}
