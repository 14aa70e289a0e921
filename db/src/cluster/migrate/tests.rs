//! Journeys of a record among three nodes, message by message.

use std::collections::VecDeque;

use ctdb_wire::ids::{Incarnation, NodeSet, Term};

use super::*;
use crate::cluster::memory::MemoryStore;
use crate::cluster::planted::Planted;
use crate::cluster::{
    CallFlags, CallKind, ClientId, Config, Generation, Input, Kind, Message, Tunables,
};
use crate::hash::jenkins;
use crate::record::DbId;

const NODES: u32 = 3;

fn pnn(number: u32) -> Pnn {
    Pnn::new(number).unwrap()
}

/// A key whose location master is that node.
fn key_of(lmaster: u32) -> Key {
    (0..100_u32)
        .map(|number| number.to_le_bytes().to_vec())
        .find(|key| jenkins(key) % NODES == lmaster)
        .unwrap()
}

struct Nodes(Vec<(Database, MemoryStore)>);

impl Nodes {
    fn new() -> Self {
        let all: Vec<Pnn> = (0..NODES).map(pnn).collect();
        let node = |me: &Pnn| {
            let mut tunables = Tunables::default();
            tunables.hold.first = std::time::Duration::ZERO;
            let mut database = Database::new(Config {
                id: DbId::of("test.tdb"),
                name: "test.tdb".to_owned(),
                kind: Kind::Volatile,
                me: *me,
                tunables,
                planted: Planted::default(),
            });
            database.generation = Generation {
                term: Term {
                    number: 1,
                    leader: pnn(0),
                    session: Incarnation(1),
                },
                seq: 1,
            };
            database.members = all.iter().copied().collect::<NodeSet>();
            database.lmasters.clone_from(&all);
            (database, MemoryStore::default())
        };
        Self(all.iter().map(node).collect())
    }

    fn handle(&mut self, node: Pnn, input: Input<'_>) -> Vec<Effect> {
        let (database, store) = &mut self.0[node.index()];
        let mut out = Vec::new();
        database.handle(BootTime(1), input, store, &mut out);
        out
    }

    /// A client of `node` asks for the record; who hears of it, in order, until it is answered.
    fn journey(&mut self, node: u32, key: &[u8]) -> Vec<u32> {
        let call = Input::Call {
            client: ClientId(1),
            reqid: 7,
            key,
            call: CallKind::Null,
            flags: CallFlags::empty(),
        };
        let mut effects: VecDeque<(Pnn, Effect)> = VecDeque::new();
        let first = self.handle(pnn(node), call);
        effects.extend(first.into_iter().map(|effect| (pnn(node), effect)));
        let mut heard = Vec::new();
        let mut answered = false;
        while let Some((from, effect)) = effects.pop_front() {
            match effect {
                Effect::Send { to, message } => {
                    heard.push(to.get());
                    let more = self.handle(to, peer(from, message));
                    effects.extend(more.into_iter().map(|effect| (to, effect)));
                }
                Effect::Reply { status, .. } => {
                    assert_eq!((from, status), (pnn(node), 0));
                    answered = true;
                }
                Effect::Went { .. } | Effect::Note(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(answered);
        let (database, store) = &self.0[node as usize];
        assert!(!database.left_for.contains_key(key), "it is here");
        assert_eq!(store.records[key].0.dmaster, node);
        heard
    }
}

fn peer(from: Pnn, message: Message) -> Input<'static> {
    Input::Peer { from, message }
}

#[test]
fn a_record_is_asked_for_where_it_went_though_nothing_of_it_was_kept() {
    let mut nodes = Nodes::new();
    let key = key_of(2);
    assert_eq!(nodes.journey(0, &key), [2, 0], "from its location master");
    assert_eq!(nodes.journey(1, &key), [2, 0, 2, 1], "over it");
    for _ in 0..3 {
        // Its owner is known: one hop less.
        assert_eq!(nodes.journey(0, &key), [1, 2, 0]);
        assert_eq!(nodes.journey(1, &key), [0, 2, 1]);
    }
    assert_eq!(nodes.journey(2, &key), [1, 2], "the location master knows");
    // It is not there any more: it is found nevertheless.
    assert_eq!(nodes.journey(0, &key), [1, 2, 0]);
    let key = key_of(1);
    assert_eq!(nodes.journey(0, &key), [1, 0]);
    assert_eq!(nodes.journey(1, &key), [0, 1]);
    assert_eq!(nodes.journey(0, &key), [1, 0]);
}

#[test]
fn where_records_went_is_known_of_a_bounded_number() {
    let (mut database, _) = Nodes::new().0.remove(0);
    for number in 0..=MAX_TENURES as u64 {
        database.remember(&number.to_le_bytes(), pnn(1));
        assert!(database.left_for.len() <= MAX_TENURES);
    }
    assert_eq!(database.left_for.len(), 1, "all is learned again");
}
