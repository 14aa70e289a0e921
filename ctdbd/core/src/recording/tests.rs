use std::collections::BTreeMap;
use std::time::Duration;

use ctdb_wire::ids::NodeSet;
use ctdb_wire::peer::{NodeInfo, PeerFrame};
use proptest::prelude::*;

use super::*;
use crate::authority::Timing;
use crate::events::Limits;
use crate::planted::Planted;

fn pnn(number: u32) -> Pnn {
    Pnn::new(number).unwrap()
}

fn head(part: u64) -> Entry {
    Entry::Head(Head {
        release: "1.0".to_owned(),
        node: pnn(0),
        incarnation: Incarnation(77),
        begun_at: 1_800_000_000,
        part,
    })
}

fn machines(at: BootTime) -> Machines {
    let voters = NodeSet(0b11);
    let mut config =
        authority::Config::majority(pnn(0), Incarnation(77), voters, Timing::standard());
    // Alone, so that it leads without another machine.
    config.quorum = 1;
    Machines {
        authority: Authority::new(config, at),
        coordinator: Coordinator::new(
            coordinator::Config {
                me: pnn(0),
                voters,
                quorum: 1,
                deleted: NodeSet::EMPTY,
                list_length: 2,
                give_up: Duration::from_secs(6),
                home_nodes: BTreeMap::new(),
                failover_disabled: false,
                planted: Planted::default(),
            },
            NodeInfo::default(),
        ),
        events: Events::new(Limits {
            event: Duration::from_secs(30),
            monitor_interval: Duration::from_secs(15),
            monitor_timeouts: 20,
        }),
    }
}

/// Some seconds of a node's life, as two parts of a recording.
fn recording() -> (Vec<u8>, Vec<u8>) {
    let mut at = BootTime::from_millis(500_000);
    let mut machines = machines(at);
    let mut parts = [Vec::new(), Vec::new()];
    for (part, out) in parts.iter_mut().enumerate() {
        begin(out);
        write(out, &head(part as u64)).unwrap();
        write(out, &Entry::Begin(Box::new(machines.clone()))).unwrap();
        for turn in 0..40_u64 {
            at += Duration::from_millis(100);
            let message = Message::Heartbeat {
                sent_at: at.0,
                epoch: 1,
                has_right: turn % 2 == 0,
                leader: None,
                evict: NodeSet::EMPTY,
                list: NodeSet(0b11),
                settled: true,
            };
            let inputs = [
                Heard::Progress,
                Heard::Eligible(true),
                Heard::Session {
                    pnn: pnn(1),
                    incarnation: Incarnation(5),
                },
                Heard::Datagram {
                    from: pnn(1),
                    message,
                },
                Heard::Tick,
            ];
            for input in inputs {
                let mut effects = Vec::new();
                machines.authority.handle(at, input.input(), &mut effects);
                let step = Step::Detector { at, input, effects };
                write(out, &Entry::Step(step)).unwrap();
            }
            let status = Box::new(machines.authority.status(at));
            let inputs = [
                coordinator::Input::Status(status),
                coordinator::Input::LinkUp(pnn(1), Incarnation(5)),
                coordinator::Input::Frame(pnn(1), PeerFrame::Info(NodeInfo::default())),
                coordinator::Input::Tick,
                coordinator::Input::LinkDown(pnn(1)),
            ];
            for input in inputs {
                let effects = machines.coordinator.handle(at, input.clone());
                let step = Step::Node { at, input, effects };
                write(out, &Entry::Step(step)).unwrap();
            }
            let input = match turn {
                0 => events::Input::Ready,
                _ => events::Input::Tick,
            };
            let effects = machines.events.handle(at, input.clone());
            let step = Step::Events { at, input, effects };
            write(out, &Entry::Step(step)).unwrap();
        }
        let end = [End::Full, End::Stopped][part];
        write(out, &Entry::End(end)).unwrap();
    }
    let [first, second] = parts;
    (first, second)
}

fn run(bytes: &[u8]) -> Result<Summary, RecordingError> {
    replay(bytes, |_| {}, |_| {})
}

#[test]
fn the_same_inputs_give_the_same_decisions() {
    let (first, second) = recording();
    let (mut led, mut nodes) = (false, Vec::new());
    let summary = replay(
        &first,
        |head| nodes.push(head.node),
        |step| {
            led |= matches!(step, Step::Node { effects, .. } if effects.iter().any(|effect| {
                matches!(effect, coordinator::Effect::Note(note) if note.kind == "leader")
            }));
        },
    )
    .unwrap();
    assert_eq!((summary.steps, summary.end), (440, Some(End::Full)));
    assert!(led && nodes == [pnn(0)]);
    // A part that begins in the middle of a life stands for itself.
    let summary = run(&second).unwrap();
    assert_eq!((summary.steps, summary.end), (440, Some(End::Stopped)));
    assert!(summary.decisions > 100, "{summary:?}");
}

#[test]
fn another_decision_is_noticed() {
    let (mut bytes, _) = recording();
    let end = Entry::End(End::Full);
    let mut last = Vec::new();
    write(&mut last, &end).unwrap();
    bytes.truncate(bytes.len() - last.len());
    let step = Step::Detector {
        at: BootTime::from_millis(600_000),
        input: Heard::Tick,
        effects: vec![Act::Deadline(4000, BootTime::ZERO)],
    };
    write(&mut bytes, &Entry::Step(step)).unwrap();
    let error = run(&bytes).unwrap_err();
    let RecordingError::Differs(difference) = &error else {
        panic!("{error:?}");
    };
    assert!(difference.recorded.contains("4000") && !difference.now.contains("4000"));
    assert_eq!(difference.input, "Tick");
}

#[test]
fn what_is_no_recording_is_told_apart() {
    assert!(matches!(run(b""), Err(RecordingError::Foreign)));
    assert!(matches!(run(b"{\"a\":1}"), Err(RecordingError::Foreign)));
    let (bytes, _) = recording();
    assert!(matches!(run(&bytes[..10]), Err(RecordingError::Foreign)));
    assert!(matches!(
        run(&bytes[..MAGIC.len()]),
        Err(RecordingError::Truncated { .. })
    ));
    assert!(matches!(
        run(&bytes[..=MAGIC.len()]),
        Err(RecordingError::Truncated { .. })
    ));
    let mut other = bytes.clone();
    other[MAGIC.len()] = 9;
    assert!(matches!(run(&other), Err(RecordingError::Format(9))));
    // In another order, and behind the end.
    let mut wrong = Vec::new();
    begin(&mut wrong);
    write(&mut wrong, &Entry::End(End::Full)).unwrap();
    assert!(matches!(run(&wrong), Err(RecordingError::Corrupt { .. })));
    let mut behind = bytes;
    write(&mut behind, &Entry::End(End::Full)).unwrap();
    assert!(matches!(run(&behind), Err(RecordingError::Corrupt { .. })));
}

#[test]
fn a_state_of_too_few_nodes_is_refused() {
    let mut authority = machines(BootTime::ZERO).authority;
    let short = authority.peers[..3].to_vec();
    authority.peers = short.into_boxed_slice();
    let bytes = postcard::to_allocvec(&authority).unwrap();
    assert!(postcard::from_bytes::<Authority>(&bytes).is_err());
}

proptest! {
    #[test]
    fn a_cut_is_noticed(at in 0_usize..1_000_000) {
        let (bytes, _) = recording();
        let at = at % bytes.len();
        match run(&bytes[..at]) {
            // Between two entries: nothing tells it from a daemon that was killed.
            Ok(summary) => prop_assert_eq!(summary.end, None),
            Err(RecordingError::Foreign) => prop_assert!(at < MAGIC.len()),
            Err(RecordingError::Truncated { offset }) => prop_assert!(offset <= at),
            Err(error) => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn a_changed_byte_is_noticed(at in 0_usize..1_000_000, with in 1_u8..) {
        let (mut bytes, _) = recording();
        let at = at % bytes.len();
        bytes[at] ^= with;
        prop_assert!(run(&bytes).is_err());
    }
}
