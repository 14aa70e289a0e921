use super::*;

fn pnn(n: u32) -> Pnn {
    Pnn::new(n).unwrap()
}

fn term(number: u64) -> Term {
    Term {
        number,
        leader: pnn(0),
        session: Incarnation(1),
    }
}

fn view(members: &[u32], complete: bool) -> View {
    View {
        term: term(1),
        number: 1,
        members: members.iter().map(|n| (pnn(*n), Incarnation(1))).collect(),
        donors: NodeSet::EMPTY,
        witnesses: NodeSet::EMPTY,
        lmasters: members.iter().map(|n| pnn(*n)).collect(),
        complete,
    }
}

fn epoch(seq: u32) -> Generation {
    Generation { term: term(1), seq }
}

fn copy(epoch: Generation, members: &[u32], seq: u64, digest: u128) -> Report {
    Report {
        committed: Generation::NONE,
        settled: Generation::NONE,
        valid: true,
        records: 0,
        copy: Some(Copy {
            lineage: Lineage {
                epoch,
                members: members.iter().map(|n| pnn(*n)).collect(),
                content: epoch,
            },
            seq,
            digest,
            healthy: true,
            history: Vec::new(),
            since: None,
        }),
    }
}

/// Leads nodes 0 and 1 with these copies up to the step after the choice.
fn chosen(view: View, copies: [Report; 2]) -> (Leader, Vec<Effect>) {
    let mut leader = Leader::new(DbId(1), "db".into(), Kind::Persistent, Planted::default());
    let mut out = Vec::new();
    let now = BootTime::from_millis(1);
    leader.view(now, Some(view), &mut out);
    for (node, report) in copies.into_iter().enumerate() {
        out.clear();
        let message = Message {
            db: DbId(1),
            generation: leader.generation(),
            body: Body::Stopped(Box::new(report)),
        };
        leader.peer(now, pnn(node as u32), message, &mut out);
    }
    (leader, out)
}

fn sent(out: &[Effect]) -> Vec<(Pnn, &Body)> {
    out.iter()
        .filter_map(|effect| match effect {
            Effect::Send { to, message } => Some((*to, &message.body)),
            _ => None,
        })
        .collect()
}

#[test]
fn the_newest_lineage_wins_over_a_higher_number() {
    let copies = [copy(epoch(1), &[0, 1], 9, 9), copy(epoch(2), &[1], 5, 5)];
    let (_, out) = chosen(view(&[0, 1], true), copies);
    let targets = vec![(pnn(0), true)];
    assert_eq!(sent(&out), [(pnn(1), &Body::Provide { targets })]);
}

#[test]
fn equal_copies_are_not_sent() {
    let copies = [copy(epoch(1), &[0, 1], 9, 9), copy(epoch(1), &[0, 1], 9, 9)];
    let (leader, out) = chosen(view(&[0, 1], true), copies);
    assert!(matches!(
        sent(&out)[..],
        [(_, Body::Seal { .. }), (_, Body::Seal { .. })]
    ));
    assert_eq!(
        leader.progress(),
        Progress::Step("lineage", leader.members())
    );
}

#[test]
fn without_a_member_of_the_newest_lineage_nothing_is_written() {
    let copies = || {
        [
            copy(epoch(1), &[0, 1, 2], 9, 9),
            copy(epoch(1), &[0, 1, 2], 9, 9),
        ]
    };
    let (_, out) = chosen(view(&[0, 1], false), copies());
    assert!(matches!(
        sent(&out)[0].1,
        Body::Thaw {
            writable: false,
            ..
        }
    ));
    let (mut leader, _) = chosen(view(&[0, 1], false), copies());
    let mut out = Vec::new();
    leader.adopt(BootTime::from_millis(2), &mut out);
    assert!(matches!(sent(&out)[0].1, Body::Freeze { .. }));
    assert!(leader.adopt);
}

#[test]
fn a_node_that_was_away_brings_no_volatile_records() {
    let mut leader = Leader::new(DbId(1), "db".into(), Kind::Volatile, Planted::default());
    let mut out = Vec::new();
    let now = BootTime::from_millis(1);
    leader.view(now, Some(view(&[0, 1], true)), &mut out);
    for (node, committed) in [(0, epoch(0)), (1, Generation::NONE)] {
        out.clear();
        let report = Report {
            committed,
            settled: committed,
            valid: true,
            records: 300_000,
            copy: None,
        };
        let message = Message {
            db: DbId(1),
            generation: leader.generation(),
            body: Body::Stopped(Box::new(report)),
        };
        leader.peer(now, pnn(node), message, &mut out);
    }
    let bodies = sent(&out);
    let Body::Exchange { valid, slices, .. } = bodies[0].1 else {
        panic!("{bodies:?}");
    };
    assert_eq!(*valid, [pnn(0)].into_iter().collect());
    assert_eq!(*slices, 5, "600,000 records in slices of 131,072");
}

#[test]
fn a_step_is_repeated_and_a_stalled_recovery_begun_anew() {
    let mut leader = Leader::new(DbId(1), "db".into(), Kind::Volatile, Planted::default());
    let mut out = Vec::new();
    leader.view(
        BootTime::from_millis(0),
        Some(view(&[0, 1], true)),
        &mut out,
    );
    let first = leader.generation();
    out.clear();
    leader.tick(BootTime::from_millis(1000), &mut out);
    assert_eq!(sent(&out).len(), 2);
    assert_eq!(leader.generation(), first);
    leader.tick(BootTime::from_millis(30_000), &mut out);
    assert!(leader.generation() > first);
}

#[test]
fn who_has_given_all_is_gone_for_those_that_ask() {
    let set = |nodes: &[u32]| nodes.iter().map(|n| pnn(*n)).collect::<NodeSet>();
    let mut leader = Leader::new(DbId(1), "db".into(), Kind::Volatile, Planted::default());
    let now = BootTime::from_millis(1);
    let mut given = view(&[0, 1], true);
    given.donors = set(&[2]);
    let mut out = Vec::new();
    leader.view(now, Some(given.clone()), &mut out);
    let may = |out: &[Effect]| -> Vec<(u32, u64, NodeSet)> {
        let says = |(to, body): (Pnn, &Body)| match body {
            Body::Freeze { view, may, .. } | Body::Thaw { view, may, .. } => {
                Some((to.get(), *view, *may))
            }
            _ => None,
        };
        sent(out).into_iter().filter_map(says).collect()
    };
    // It begins with the donor, which has not stopped yet, and ends with it: another database may not
    // have its records yet.
    let all = set(&[0, 1, 2]);
    assert_eq!(may(&out), [(0, 1, all), (1, 1, all), (2, 1, all)]);
    let report = Report {
        copy: None,
        ..copy(epoch(0), &[], 0, 0)
    };
    let steps: [(&[u32], Body); 3] = [
        (&[0, 1, 2], Body::Stopped(Box::new(report))),
        (&[0, 1, 2], Body::Settled { slice: 0 }),
        (&[0, 1], Body::Thawed),
    ];
    for (nodes, body) in steps {
        out.clear();
        for node in nodes {
            let message = Message {
                db: DbId(1),
                generation: leader.generation(),
                body: body.clone(),
            };
            leader.peer(now, pnn(*node), message, &mut out);
        }
        if let Body::Settled { .. } = body {
            assert_eq!(may(&out), [(0, 1, all), (1, 1, all)]);
        }
    }
    assert_eq!(leader.progress(), Progress::Done { writable: true });
    // A view without it needs no recovery, but is told.
    given.donors = NodeSet::EMPTY;
    given.number = 2;
    let generation = leader.generation();
    leader.view(now, Some(given), &mut out);
    assert_eq!(leader.generation(), generation);
    assert_eq!(leader.progress(), Progress::Done { writable: true });
    let two = set(&[0, 1]);
    assert_eq!(may(&out), [(0, 2, two), (1, 2, two)]);
}
