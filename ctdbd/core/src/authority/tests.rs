//! Small transitions of the detector, with virtual time and a network that is in the test's hand.

mod fence;
mod lapse;

use std::collections::VecDeque;

use super::*;

/// Some detectors, and what they have sent and not yet received.
struct Cluster {
    now: BootTime,
    nodes: Vec<Authority>,
    /// (from, to, message)
    wire: VecDeque<(Pnn, Pnn, Message)>,
    deadlines: Vec<Vec<(u32, BootTime)>>,
}

struct Outbox<'a> {
    from: Pnn,
    wire: &'a mut VecDeque<(Pnn, Pnn, Message)>,
    deadlines: &'a mut Vec<(u32, BootTime)>,
}

impl Sink for Outbox<'_> {
    fn send(&mut self, to: Pnn, message: &Message) {
        self.wire.push_back((self.from, to, *message));
    }
    fn deadline(&mut self, slot: u32, until: BootTime) {
        self.deadlines.push((slot, until));
    }
}

fn pnn(number: usize) -> Pnn {
    Pnn::new(number as u32).unwrap()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn life(node: usize, number: u64) -> Incarnation {
    Incarnation(node as u64 * 1000 + number)
}

impl Cluster {
    /// All start at once, with sessions between all; nobody may lead yet.
    fn new(count: usize) -> Self {
        let now = BootTime::from_millis(100_000);
        let voters: NodeSet = (0..count).map(pnn).collect();
        let nodes = (0..count)
            .map(|node| {
                let config = Config::majority(pnn(node), life(node, 1), voters, Timing::standard());
                Authority::new(config, now)
            })
            .collect();
        let mut cluster = Self {
            now,
            nodes,
            wire: VecDeque::new(),
            deadlines: vec![Vec::new(); count],
        };
        for node in 0..count {
            for peer in (0..count).filter(|peer| *peer != node) {
                cluster.session(node, peer, life(peer, 1));
            }
        }
        cluster
    }

    fn handle(&mut self, node: usize, input: Input<'_>) {
        let mut out = Outbox {
            from: pnn(node),
            wire: &mut self.wire,
            deadlines: &mut self.deadlines[node],
        };
        self.nodes[node].handle(self.now, input, &mut out);
    }

    fn session(&mut self, node: usize, peer: usize, incarnation: Incarnation) {
        self.handle(
            node,
            Input::Session {
                pnn: pnn(peer),
                incarnation,
            },
        );
    }

    /// Delivers everything that `way` lets through, at once; the rest is lost.
    fn deliver(&mut self, way: impl Fn(usize, usize) -> bool) {
        while let Some((from, to, message)) = self.wire.pop_front() {
            if way(from.index(), to.index()) {
                self.handle(
                    to.index(),
                    Input::Datagram {
                        from,
                        message: &message,
                    },
                );
            }
        }
    }

    /// Time passes, in steps of 5 ms.
    fn run(&mut self, length: Duration, way: impl Fn(usize, usize) -> bool) {
        let end = self.now + length;
        while self.now < end {
            self.now += ms(5);
            for node in 0..self.nodes.len() {
                self.handle(node, Input::Progress);
                self.handle(node, Input::Tick);
            }
            self.deliver(&way);
        }
    }

    fn status(&self, node: usize) -> Status {
        self.nodes[node].status(self.now)
    }

    fn leader(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|node| self.status(*node).acting.is_some())
    }

    /// A cluster with a leader, which is node 0.
    fn led(count: usize) -> Self {
        let mut cluster = Self::new(count);
        cluster.handle(0, Input::Eligible(true));
        cluster.run(ms(1000), |_, _| true);
        assert_eq!(cluster.leader(), Some(0));
        for node in 1..count {
            cluster.handle(node, Input::Eligible(true));
        }
        cluster.deliver(|_, _| true);
        cluster
    }

    fn ask_for_vote(&mut self, node: usize, term: Term, pre: bool) -> bool {
        let message = Message::VoteRequest {
            term,
            pre,
            sent_at: 1,
            list: NodeSet(7),
        };
        self.handle(
            node,
            Input::Datagram {
                from: term.leader,
                message: &message,
            },
        );
        let answers: Vec<bool> = self
            .wire
            .drain(..)
            .filter_map(|(from, to, message)| match message {
                Message::Vote { granted, .. } if from == pnn(node) && to == term.leader => {
                    Some(granted)
                }
                _ => None,
            })
            .collect();
        assert_eq!(answers.len(), 1);
        answers[0]
    }
}

fn all(_: usize, _: usize) -> bool {
    true
}

fn term(number: u64, leader: usize) -> Term {
    Term {
        number,
        leader: pnn(leader),
        session: life(leader, 1),
    }
}

#[test]
fn a_starting_daemon_is_silent_for_the_queue() {
    // R3, and that it has no epoch until then.
    let mut cluster = Cluster::new(3);
    let settle = Timing::standard().settle();
    let heartbeat = Message::Heartbeat {
        sent_at: 5,
        epoch: 2,
        has_right: true,
        leader: None,
        evict: NodeSet::EMPTY,
        list: NodeSet(7),
        settled: true,
    };
    cluster.now = cluster.now + settle - ms(1);
    cluster.handle(
        0,
        Input::Datagram {
            from: pnn(1),
            message: &heartbeat,
        },
    );
    cluster.handle(0, Input::Tick);
    assert!(cluster.wire.is_empty());
    assert_eq!(cluster.status(0).epoch.number, 0);
    cluster.now += ms(1);
    cluster.handle(
        0,
        Input::Datagram {
            from: pnn(1),
            message: &heartbeat,
        },
    );
    assert!(
        cluster
            .wire
            .iter()
            .any(|(_, _, message)| matches!(message, Message::Answer { .. }))
    );
    assert!(
        cluster
            .wire
            .iter()
            .any(|(_, _, message)| matches!(message, Message::Heartbeat { .. }))
    );
    assert_eq!(cluster.status(0).epoch.number, 1);
}

#[test]
fn the_right_runs_from_the_sending() {
    // R5: Q-th newest answered s, itself included, + L.
    let mut cluster = Cluster::new(3);
    cluster.now += ms(30);
    cluster.handle(0, Input::Tick);
    let sent_at = cluster.now;
    let held: Vec<_> = cluster.wire.drain(..).collect();
    cluster.now += ms(200);
    cluster.wire.extend(held);
    cluster.deliver(|from, to| from + to == 1);
    let status = cluster.status(0);
    assert_eq!(status.right_until, Some(sent_at + ms(1500)));
    assert_eq!(cluster.deadlines[0], [(status.slot, sent_at + ms(1500))]);
}

#[test]
fn a_lapsed_right_is_not_revived_by_a_late_answer() {
    // R6: judged by the clock read after the receipt; silence for 1.2·q; then a new epoch.
    let mut cluster = Cluster::new(3);
    cluster.run(ms(300), all);
    let first = cluster.status(0);
    let until = first.right_until.unwrap();
    cluster.run(ms(251), |from, to| {
        from != 0 && to != 0 || to == 0 && from == 99
    });
    // The answers to a heartbeat that is still good are under way, and come after the end.
    cluster.now = BootTime(until.0 - 1);
    cluster.nodes[0].next_heartbeat = cluster.now;
    cluster.handle(0, Input::Tick);
    cluster.now = until + ms(1);
    let before = cluster.deadlines[0].len();
    cluster.deliver(all);
    assert_eq!(
        cluster.status(0).right_until,
        None,
        "ignored while packets may be queued"
    );
    assert_eq!(cluster.deadlines[0].len(), before);
    assert_eq!(cluster.status(0).epoch, first.epoch);
    cluster.now = until + Timing::standard().settle();
    cluster.handle(0, Input::Tick);
    assert_eq!(
        cluster.status(0).epoch.number,
        first.epoch.number + 1,
        "the old one is over"
    );
    cluster.run(ms(300), all);
    let second = cluster.status(0);
    assert!(second.right_until.is_some());
    assert_eq!(second.epoch.number, first.epoch.number + 2);
    assert_ne!(second.slot, first.slot, "R2: a slot of its own");
}

#[test]
fn an_answer_to_nothing_that_was_sent_counts_for_nothing() {
    let mut cluster = Cluster::new(3);
    cluster.now += ms(30);
    let answer = |echo| Message::Answer {
        echo,
        epoch: 1,
        virgin: false,
        holder: false,
        promise: None,
        stopped: NodeSet::EMPTY,
        ages: None,
    };
    for echo in [0, cluster.now.0 + 1, u64::MAX] {
        cluster.handle(
            0,
            Input::Datagram {
                from: pnn(1),
                message: &answer(echo),
            },
        );
        cluster.handle(
            0,
            Input::Datagram {
                from: pnn(2),
                message: &answer(echo),
            },
        );
        assert_eq!(cluster.status(0).right_until, None);
    }
}

#[test]
fn a_hung_main_loop_ends_the_right() {
    // MEM-4.
    let mut cluster = Cluster::led(3);
    let end = cluster.now + PROGRESS_LIMIT + ms(1600);
    while cluster.now < end {
        cluster.now += ms(5);
        for node in 1..3 {
            cluster.handle(node, Input::Progress);
        }
        cluster.handle(0, Input::Tick);
        cluster.deliver(all);
    }
    assert_eq!(cluster.status(0).right_until, None);
    assert_ne!(cluster.leader(), Some(0));
    assert!(
        cluster.nodes[0].next_wakeup() > cluster.now,
        "it does not spin"
    );
    cluster.run(ms(600), all);
    assert!(cluster.status(0).right_until.is_some());
}

#[test]
fn three_fresh_nodes_elect_at_once() {
    // R10, exception: all are seen to be fresh.
    let mut cluster = Cluster::new(3);
    cluster.handle(1, Input::Eligible(true));
    cluster.run(ms(300), all);
    assert_eq!(cluster.leader(), Some(1));
}

#[test]
fn two_of_three_fresh_nodes_wait() {
    // R10: the third may have promised in an earlier life.
    let mut cluster = Cluster::new(3);
    cluster.handle(0, Input::Eligible(true));
    let up = |from: usize, to: usize| from != 2 && to != 2;
    cluster.run(ms(1800), up);
    assert_eq!(cluster.leader(), None);
    assert!(cluster.status(0).abstaining);
    cluster.run(ms(300), up);
    assert_eq!(cluster.leader(), Some(0));
}

#[test]
fn a_restarted_voter_abstains() {
    // R10: the others are not fresh.
    let mut cluster = Cluster::led(3);
    let voters = cluster.nodes[0].config.voters;
    let config = Config::majority(pnn(2), life(2, 2), voters, Timing::standard());
    cluster.nodes[2] = Authority::new(config, cluster.now);
    for peer in 0..2 {
        cluster.session(2, peer, life(peer, 1));
        cluster.session(peer, 2, life(2, 2));
    }
    cluster.run(ms(1000), all);
    assert!(cluster.status(2).abstaining);
    assert!(
        cluster.status(2).right_until.is_some(),
        "R8: it is answered, and answers"
    );
    assert!(!cluster.ask_for_vote(2, term(50, 1), false));
    cluster.run(ms(900), all);
    assert!(!cluster.status(2).abstaining);
}

#[test]
fn a_promise_runs_for_lease_and_margin_from_receipt() {
    // R7.
    let mut cluster = Cluster::led(3);
    cluster.run(ms(500), all);
    let newest = cluster.nodes[1].promise.unwrap();
    assert!(!cluster.ask_for_vote(1, term(60, 2), true));
    cluster.wire.clear();
    cluster.now = BootTime(newest.until.0 - 1);
    assert!(!cluster.ask_for_vote(1, term(61, 2), false));
    cluster.now = newest.until;
    assert!(cluster.ask_for_vote(1, term(62, 2), false));
    assert!(
        !cluster.ask_for_vote(1, term(63, 0), false),
        "bound to another one now"
    );
}

#[test]
fn a_leader_acts_only_as_long_as_it_is_promised() {
    // R7: until the Q-th newest promised s + L, and the voters are bound for longer.
    let mut cluster = Cluster::led(3);
    let (_, until) = cluster.status(0).acting.unwrap();
    let cut = |from: usize, to: usize| from != 0 && to != 0;
    while cluster.now + ms(5) < until {
        cluster.run(ms(5), cut);
        assert_eq!(cluster.leader(), Some(0));
    }
    cluster.run(ms(5), cut);
    assert_eq!(cluster.leader(), None);
    cluster.run(ms(1000), cut);
    assert!(matches!(cluster.leader(), Some(1 | 2)));
}

#[test]
fn answers_without_promise_do_not_make_a_leader_act() {
    // R8: they feed the right, never the leader.
    let mut cluster = Cluster::led(3);
    for node in 1..3 {
        cluster.nodes[node].abstain_until = BootTime(u64::MAX);
        for peer in &mut cluster.nodes[node].peers {
            peer.virgin = false;
        }
    }
    cluster.run(ms(1600), all);
    assert!(cluster.status(0).right_until.is_some());
    assert_eq!(cluster.status(0).acting, None);
}

#[test]
fn a_vote_binds_until_it_is_withdrawn() {
    // R9: the message names the term and frees only a promise of that term.
    let mut cluster = Cluster::new(3);
    cluster.run(ms(100), all);
    assert!(cluster.ask_for_vote(0, term(5, 1), false));
    assert!(!cluster.ask_for_vote(0, term(6, 2), false));
    let withdraw = |term| Message::Withdraw { term, acted: false };
    let other = withdraw(term(4, 1));
    cluster.handle(
        0,
        Input::Datagram {
            from: pnn(1),
            message: &other,
        },
    );
    assert!(!cluster.ask_for_vote(0, term(7, 2), false));
    let forged = withdraw(term(5, 1));
    cluster.handle(
        0,
        Input::Datagram {
            from: pnn(2),
            message: &forged,
        },
    );
    assert!(!cluster.ask_for_vote(0, term(8, 2), false));
    cluster.handle(
        0,
        Input::Datagram {
            from: pnn(1),
            message: &forged,
        },
    );
    assert!(
        cluster.ask_for_vote(0, term(4, 2), false),
        "nobody acted in 5: 4 may be elected"
    );
}

#[test]
fn terms_that_were_acted_in_only_rise() {
    let mut cluster = Cluster::new(3);
    cluster.run(ms(100), all);
    assert!(cluster.ask_for_vote(0, term(5, 1), false));
    let withdraw = Message::Withdraw {
        term: term(5, 1),
        acted: true,
    };
    cluster.handle(
        0,
        Input::Datagram {
            from: pnn(1),
            message: &withdraw,
        },
    );
    assert!(!cluster.ask_for_vote(0, term(4, 2), false));
    assert!(cluster.ask_for_vote(0, term(6, 2), false));
    // What a holder has heard of counts as well, whoever forgot it.
    let books = Books {
        newest: Some(term(40, 1)),
        ..Books::default()
    };
    cluster.handle(1, Input::Books(books));
    assert!(!cluster.ask_for_vote(1, term(39, 2), false));
    assert!(cluster.ask_for_vote(1, term(41, 2), false));
}

#[test]
fn a_late_vote_does_not_elect() {
    // R9: the candidacy is over.
    let mut cluster = Cluster::new(3);
    cluster.run(ms(100), all);
    cluster.handle(0, Input::Eligible(true));
    // Only the real votes are kept back.
    let mut votes = Vec::new();
    for _ in 0..40 {
        cluster.now += ms(5);
        for node in 0..3 {
            cluster.handle(node, Input::Progress);
        }
        while let Some((from, to, message)) = cluster.wire.pop_front() {
            match message {
                Message::Vote { pre: false, .. } => votes.push((from, to, message)),
                _ => cluster.handle(
                    to.index(),
                    Input::Datagram {
                        from,
                        message: &message,
                    },
                ),
            }
        }
    }
    assert!(!votes.is_empty());
    // Its candidacy ends, and it has not been elected.
    for _ in 0..200 {
        cluster.now += ms(5);
        cluster.handle(0, Input::Progress);
        cluster.wire.clear();
    }
    cluster.handle(0, Input::Eligible(false));
    for (from, to, message) in votes {
        cluster.handle(
            to.index(),
            Input::Datagram {
                from,
                message: &message,
            },
        );
    }
    assert_eq!(cluster.leader(), None);
}

#[test]
fn a_resigning_leader_frees_its_voters() {
    // R9: stops acting, then says so; the next one is there in some round trips.
    let mut cluster = Cluster::led(3);
    cluster.handle(0, Input::Eligible(false));
    assert_eq!(cluster.leader(), None);
    cluster.run(ms(150), all);
    assert!(matches!(cluster.leader(), Some(1 | 2)));
    for node in 0..3 {
        assert!(
            cluster.status(node).right_until.is_some(),
            "a change of leader silences nobody"
        );
    }
}

#[test]
fn what_the_main_loop_renounced_is_given_up() {
    // R9.
    let mut cluster = Cluster::led(3);
    let (acting, _) = cluster.status(0).acting.unwrap();
    let older = Term {
        number: acting.number - 1,
        ..acting
    };
    cluster.handle(
        0,
        Input::Books(Books {
            renounced: Some(older),
            ..Books::default()
        }),
    );
    assert_eq!(cluster.leader(), Some(0));
    cluster.handle(
        0,
        Input::Books(Books {
            renounced: Some(acting),
            ..Books::default()
        }),
    );
    assert_eq!(cluster.leader(), None);
    cluster.run(ms(200), all);
    assert!(matches!(cluster.leader(), Some(1 | 2)), "others first");
}

#[test]
fn evidence_needs_the_age_of_a_lapsed_right() {
    // R11, R12, R14: silent for L, evicted; dead when all answers are L + m old.
    let mut cluster = Cluster::led(3);
    cluster.run(ms(250), all);
    let silent_since = cluster.now;
    let cut = |from: usize, to: usize| from != 2 && to != 2;
    let needed = Timing::standard().promise();
    while cluster.status(0).peers[2].evidence.is_none() {
        assert!(cluster.now.since(silent_since) < needed + ms(30));
        cluster.run(ms(5), cut);
    }
    let answered = cluster.nodes[0].peers[2]
        .answered_at
        .max(cluster.nodes[1].peers[2].answered_at);
    assert!(cluster.now.since(answered) >= needed);
    assert!(cluster.status(0).peers[2].evicted);
    assert_eq!(cluster.status(0).peers[2].evidence_epoch.number, 2);
}

#[test]
fn evidence_is_of_this_term_and_from_a_quorum() {
    // R12, R13: the witness that does not answer, or answers an older heartbeat, does not count.
    let mut cluster = Cluster::led(5);
    cluster.run(ms(250), all);
    // 3 and 4 are cut off: two witnesses besides the leader remain, which is Q.
    let cut = |from: usize, to: usize| from < 3 && to < 3;
    cluster.run(ms(2200), cut);
    assert!(cluster.status(0).peers[4].evidence.is_some());
    // Now only one besides the leader: it loses its promises, and proves nothing new.
    let mut cluster = Cluster::led(5);
    cluster.run(ms(250), all);
    cluster.run(ms(1400), |from, to| from < 3 && to < 3);
    cluster.run(ms(1000), |from, to| from < 2 && to < 2);
    assert_eq!(cluster.status(0).peers[4].evidence, None);
}

#[test]
fn who_answers_again_before_the_evidence_goes_on() {
    // MEM-3.
    let mut cluster = Cluster::led(3);
    cluster.run(ms(250), all);
    let cut = |from: usize, to: usize| from != 2 && to != 2;
    while !cluster.status(0).peers[2].evicted {
        cluster.run(ms(5), cut);
    }
    cluster.run(ms(300), all);
    assert!(!cluster.status(0).peers[2].evicted);
    assert!(cluster.status(2).right_until.is_some());
}

#[test]
fn an_evicted_node_is_answered_by_nobody() {
    // R14: not even by those that hear it, until the leader admits it.
    let mut cluster = Cluster::led(3);
    cluster.run(ms(250), all);
    // The leader does not hear node 2; node 1 does.
    let half = |from: usize, to: usize| !(from == 2 && to == 0);
    let epoch = cluster.status(2).epoch;
    cluster.run(ms(3500), half);
    assert!(cluster.status(0).peers[2].evidence.is_some());
    assert_eq!(cluster.status(2).right_until, None);
    assert_eq!(
        cluster.status(2).epoch.number,
        epoch.number + 1,
        "it says that it is over"
    );
    cluster.run(ms(600), all);
    assert!(!cluster.status(0).peers[2].evicted);
    assert!(cluster.status(2).right_until.is_some());
}

#[test]
fn an_unaccounted_node_is_evicted_although_it_is_heard() {
    // R18 would otherwise wait for ever.
    let mut cluster = Cluster::led(3);
    cluster.run(ms(1600), all);
    let unaccounted = NodeSet::from_iter([pnn(2)]);
    cluster.handle(
        0,
        Input::Books(Books {
            unaccounted,
            ..Books::default()
        }),
    );
    let since = cluster.now;
    while cluster.status(0).peers[2].evidence.is_none() {
        cluster.run(ms(5), all);
        assert!(cluster.now.since(since) < ms(2200));
    }
    cluster.handle(0, Input::Books(Books::default()));
    cluster.run(ms(600), all);
    assert!(
        !cluster.status(0).peers[2].evicted,
        "and admitted, since it holds nothing now"
    );
}

#[test]
fn gone_makes_evidence_in_one_round_trip() {
    // R19: by witnesses whose last answer went to the dead incarnation.
    let mut cluster = Cluster::led(3);
    cluster.run(ms(250), all);
    let gone = Message::Gone {
        incarnation: life(2, 1),
    };
    cluster.handle(
        0,
        Input::Datagram {
            from: pnn(2),
            message: &gone,
        },
    );
    // Node 1 hears of it from the leader.
    let cut = |from: usize, to: usize| from != 2 && to != 2;
    cluster.run(ms(10), cut);
    assert!(cluster.status(0).peers[2].evidence.is_some());
}

#[test]
fn gone_of_another_life_means_nothing() {
    // R19.
    let mut cluster = Cluster::led(3);
    cluster.run(ms(250), all);
    let gone = Message::Gone {
        incarnation: life(2, 7),
    };
    for node in 0..2 {
        cluster.handle(
            node,
            Input::Datagram {
                from: pnn(2),
                message: &gone,
            },
        );
    }
    cluster.run(ms(100), all);
    assert_eq!(cluster.status(0).peers[2].evidence, None);
    assert!(!cluster.status(0).peers[2].evicted);
}

#[test]
fn gone_of_the_leader_starts_an_election() {
    let mut cluster = Cluster::led(3);
    cluster.run(ms(250), all);
    let gone = Message::Gone {
        incarnation: life(0, 1),
    };
    for node in 1..3 {
        cluster.handle(
            node,
            Input::Datagram {
                from: pnn(0),
                message: &gone,
            },
        );
    }
    let cut = |from: usize, to: usize| from != 0 && to != 0;
    cluster.run(ms(150), cut);
    // The dead one has not been told that it is.
    let leader = (1..3).find(|node| cluster.status(*node).acting.is_some());
    let leader = leader.expect("somebody else acts");
    cluster.run(ms(50), cut);
    assert!(cluster.status(leader).peers[0].evidence.is_some());
}

#[test]
fn a_leaving_node_ends_its_right_and_starts_none() {
    // R25 in spirit: it ends its deadline and starts no new epoch.
    let mut cluster = Cluster::led(3);
    cluster.handle(0, Input::Leave);
    let slot = cluster.status(0).slot;
    assert_eq!(cluster.deadlines[0].last(), Some(&(slot, BootTime::ZERO)));
    let epoch = cluster.status(0).epoch;
    cluster.run(ms(3000), all);
    assert_eq!(cluster.status(0).right_until, None);
    assert_eq!(cluster.status(0).epoch, epoch);
    assert!(cluster.nodes[0].next_wakeup() > cluster.now);
}

#[test]
fn a_late_tick_accuses_nobody() {
    let mut cluster = Cluster::led(3);
    cluster.run(ms(250), all);
    // The leader's thread was not run; what the others sent waits in its sockets.
    cluster.now += ms(1490);
    cluster.handle(0, Input::Tick);
    assert!(!cluster.status(0).peers[1].evicted);
    assert!(!cluster.status(0).peers[1].suspected);
    assert_eq!(cluster.status(0).late_ticks, 1);
}

#[test]
fn one_node_alone_serves_and_leads() {
    let mut cluster = Cluster::new(1);
    cluster.handle(0, Input::Eligible(true));
    cluster.run(ms(400), all);
    assert_eq!(cluster.leader(), Some(0));
    assert!(cluster.status(0).right_until.is_some());
}

#[test]
fn slots_repeat_late_and_never_hit_zero() {
    // R2.
    assert_eq!(slot_of(0), 0);
    assert_eq!(slot_of(1), 1);
    assert_eq!(slot_of(SLOTS - 1), SLOTS - 1);
    assert_eq!(slot_of(SLOTS), 1);
}
