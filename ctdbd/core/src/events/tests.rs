use super::*;
use ctdb_wire::ids::Pnn;

const LIMITS: Limits = Limits {
    event: Duration::from_secs(30),
    monitor_interval: Duration::from_secs(15),
    monitor_timeouts: 3,
};

/// The machine with its shell: what runs, what was said.
struct Node {
    events: Events,
    now: BootTime,
    running: Vec<(RunId, String)>,
    said: Vec<Effect>,
}

impl Node {
    fn new() -> Self {
        Self {
            events: Events::new(LIMITS),
            now: BootTime::from_millis(1000),
            running: Vec::new(),
            said: Vec::new(),
        }
    }

    /// Past its start-up, healthy.
    fn healthy() -> Self {
        let mut node = Self::new();
        node.put(Input::Ready);
        node.end("setup", Ending::Done);
        node.put(Input::Serve);
        for name in ["startrecovery", "recovered", "startup", "monitor"] {
            node.end(name, Ending::Done);
        }
        node.said.clear();
        node
    }

    fn put(&mut self, input: Input) {
        for effect in self.events.handle(self.now, input) {
            match effect {
                Effect::Run { run, event, .. } => {
                    let mut words = vec![event.name];
                    words.extend(event.args);
                    self.running.push((run, words.join(" ")));
                }
                Effect::Cancel(run) => self.running.retain(|(other, _)| *other != run),
                other => self.said.push(other),
            }
        }
    }

    fn ask(&mut self, ask: u64, event: Event) {
        self.put(Input::Ask {
            ask,
            event,
            limit: None,
            all: false,
        });
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.put(Input::Tick);
    }

    fn names(&self) -> Vec<&str> {
        self.running.iter().map(|(_, name)| name.as_str()).collect()
    }

    fn end(&mut self, name: &str, ending: Ending) {
        let at = self.running.iter().position(|(_, one)| one == name);
        let at = at.unwrap_or_else(|| panic!("{name} does not run: {:?}", self.names()));
        let (run, _) = self.running.remove(at);
        self.put(Input::Ended(run, ending));
    }

    fn answer(&self, ask: u64) -> Option<&Ending> {
        self.said.iter().find_map(|effect| match effect {
            Effect::Answer { ask: one, ending } if *one == ask => Some(ending),
            _ => None,
        })
    }
}

fn failed() -> Ending {
    Ending::Failed {
        script: "50.samba".to_owned(),
        why: "exit code 1".to_owned(),
    }
}

fn takeip(number: u8) -> Event {
    Event::address("takeip", "eth0", IpAddr::from([10, 0, 0, number]), 24)
}

#[test]
fn start_up_in_its_order() {
    let mut node = Node::new();
    node.put(Input::Serve);
    assert!(node.names().is_empty(), "before its set-up");
    node.put(Input::Ready);
    assert_eq!(node.names(), ["setup"]);
    node.end("setup", Ending::Done);
    node.put(Input::Serve);
    assert_eq!(node.names(), ["startrecovery"]);
    node.end("startrecovery", Ending::Done);
    node.end("recovered", Ending::Done);
    node.end("startup", failed());
    node.wait(4);
    assert!(node.names().is_empty());
    node.wait(1);
    node.end("startup", Ending::Done);
    assert_eq!(node.names(), ["monitor"], "the first at once");
    node.end("monitor", Ending::Done);
    let reached: Vec<_> = node
        .said
        .iter()
        .filter(|effect| {
            matches!(
                effect,
                Effect::Reach(_) | Effect::Health(_) | Effect::Notify(_)
            )
        })
        .cloned()
        .collect();
    assert_eq!(
        reached,
        [
            Effect::Notify("init".into()),
            Effect::Reach(RunState::Setup),
            Effect::Notify("setup".into()),
            Effect::Reach(RunState::FirstRecovery),
            Effect::Reach(RunState::Startup),
            Effect::Reach(RunState::Running),
            Effect::Notify("startup".into()),
            Effect::Health(Ok(())),
            Effect::Notify("healthy".into()),
        ]
    );
}

#[test]
fn a_failed_setup_ends_the_daemon() {
    let mut node = Node::new();
    node.put(Input::Ready);
    node.end("setup", failed());
    assert!(
        node.said
            .iter()
            .any(|effect| matches!(effect, Effect::Fatal(text) if text.contains("50.samba"))),
        "{:?}",
        node.said
    );
}

#[test]
fn a_monitor_holds_up_nothing() {
    let mut node = Node::healthy();
    node.wait(5);
    assert_eq!(node.names(), ["monitor"]);
    node.ask(1, takeip(1));
    assert_eq!(
        node.names(),
        ["takeip eth0 10.0.0.1 24"],
        "monitor is given up"
    );
    node.ask(2, Event::plain("monitor"));
    assert_eq!(node.answer(2), Some(&Ending::Cancelled));
    node.wait(20);
    assert_eq!(node.names().len(), 1, "none is begun beside another event");
    node.end("takeip eth0 10.0.0.1 24", Ending::Done);
    assert_eq!(node.answer(1), Some(&Ending::Done));
    assert_eq!(node.names(), ["monitor"], "made up for");
}

#[test]
fn addresses_do_not_wait_for_each_other() {
    let mut node = Node::healthy();
    for number in 1..=20 {
        node.ask(u64::from(number), takeip(number));
    }
    node.ask(
        30,
        Event::address("releaseip", "eth0", IpAddr::from([10, 0, 0, 1]), 24),
    );
    node.ask(31, Event::plain("ipreallocated"));
    node.ask(32, takeip(40));
    assert_eq!(node.names().len(), PARALLEL);
    assert!(
        !node.names().contains(&"releaseip eth0 10.0.0.1 24"),
        "in order for one address"
    );
    // One script hangs; the others go on.
    for number in 2..=20 {
        node.end(&format!("takeip eth0 10.0.0.{number} 24"), Ending::Done);
    }
    // What comes later does not wait for it either, by way of ipreallocated.
    assert_eq!(
        node.names(),
        ["takeip eth0 10.0.0.1 24", "takeip eth0 10.0.0.40 24"],
        "ipreallocated waits for all"
    );
    node.end("takeip eth0 10.0.0.40 24", Ending::Done);
    node.ask(33, Event::plain("startipreallocate"));
    node.ask(34, takeip(41));
    assert_eq!(
        node.names(),
        ["takeip eth0 10.0.0.1 24", "startipreallocate"],
        "a move begins beside a hung script of the last one"
    );
    node.end("startipreallocate", Ending::Done);
    node.end("takeip eth0 10.0.0.41 24", Ending::Done);
    assert_eq!(node.names(), ["takeip eth0 10.0.0.1 24"]);
    node.end("takeip eth0 10.0.0.1 24", Ending::TimedOut);
    node.end("releaseip eth0 10.0.0.1 24", Ending::Done);
    assert_eq!(node.names(), ["ipreallocated"]);
    // Other events wait for all that is before them.
    node.ask(35, Event::plain("reconfigure"));
    node.ask(36, takeip(42));
    assert_eq!(node.names(), ["ipreallocated"]);
    node.end("ipreallocated", Ending::Done);
    assert_eq!(node.names(), ["reconfigure"]);
    node.end("reconfigure", Ending::Done);
    assert_eq!(node.names(), ["takeip eth0 10.0.0.42 24"]);
}

#[test]
fn health_follows_the_monitor() {
    let mut node = Node::healthy();
    node.wait(5);
    for _ in 0..2 {
        node.end("monitor", Ending::TimedOut);
        node.wait(15);
    }
    assert!(node.said.is_empty(), "{:?}", node.said);
    node.end("monitor", Ending::TimedOut);
    assert!(matches!(&node.said[0], Effect::Health(Err(why)) if why.contains("3 times")));
    assert_eq!(node.said[1], Effect::Notify("unhealthy".into()));
    node.said.clear();
    node.wait(4);
    assert!(node.names().is_empty());
    node.wait(1);
    node.end("monitor", Ending::Done);
    assert_eq!(
        node.said,
        [Effect::Health(Ok(())), Effect::Notify("healthy".into())]
    );
    node.said.clear();
    node.wait(5);
    node.end("monitor", failed());
    assert_eq!(
        node.said,
        [
            Effect::Health(Err("50.samba: exit code 1".to_owned())),
            Effect::Notify("unhealthy".into())
        ]
    );
}

#[test]
fn a_node_that_may_not_is_not_monitored() {
    let mut node = Node::healthy();
    node.put(Input::Situation {
        active: false,
        recovering: false,
    });
    node.wait(60);
    assert!(node.names().is_empty());
    node.put(Input::Situation {
        active: true,
        recovering: true,
    });
    node.ask(1, Event::plain("monitor-like"));
    node.end("monitor-like", Ending::Done);
    node.ask(2, Event::plain("recovered"));
    assert!(matches!(node.answer(2), Some(Ending::Refused(_))));
    node.ask(3, takeip(1));
    assert!(
        node.names().is_empty(),
        "waits until the databases are back"
    );
    node.put(Input::Situation {
        active: true,
        recovering: false,
    });
    assert_eq!(node.names(), ["takeip eth0 10.0.0.1 24"]);
}

fn placed(version: u64, whole: bool, hosted: bool) -> Input {
    Input::Placement {
        term: Term {
            number: 1,
            leader: Pnn::new(0).unwrap(),
            session: ctdb_wire::ids::Incarnation(1),
        },
        version,
        whole,
        hosted,
    }
}

#[test]
fn runs_that_no_script_has_heard_of_are_one() {
    let mut node = Node::healthy();
    node.put(placed(1, true, true));
    node.end("startipreallocate", Ending::Done);
    assert_eq!(node.names(), ["ipreallocated"], "it hangs");
    for version in 2..=40 {
        node.put(placed(version, version % 3 != 0, true));
        if version == 20 {
            node.ask(1, takeip(1));
        }
    }
    node.end("ipreallocated", Ending::TimedOut);
    assert_eq!(node.names(), ["startipreallocate"]);
    node.end("startipreallocate", Ending::Done);
    assert_eq!(
        node.names(),
        ["takeip eth0 10.0.0.1 24"],
        "what has moved meanwhile, before the end of the run"
    );
    // One that comes now is another one.
    node.put(placed(41, true, true));
    assert_eq!(
        node.names(),
        ["takeip eth0 10.0.0.1 24", "startipreallocate"]
    );
    node.end("takeip eth0 10.0.0.1 24", Ending::Done);
    node.end("startipreallocate", Ending::Done);
    node.end("ipreallocated", Ending::Done);
    node.end("ipreallocated", Ending::Done);
    assert!(node.names().is_empty(), "{:?}", node.names());
}

#[test]
fn a_run_has_begun_when_addresses_move_here() {
    let mut node = Node::healthy();
    node.put(Input::Moves);
    node.ask(1, takeip(1));
    node.put(Input::Moves);
    node.ask(2, takeip(2));
    assert_eq!(node.names(), ["startipreallocate"], "before both, once");
    node.end("startipreallocate", Ending::Done);
    assert_eq!(node.names().len(), 2);
    for version in 1..=2 {
        node.put(placed(version, version == 2, true));
    }
    node.end("takeip eth0 10.0.0.1 24", Ending::Done);
    node.end("takeip eth0 10.0.0.2 24", Ending::Done);
    node.end("ipreallocated", Ending::Done);
    assert!(node.names().is_empty(), "one run: {:?}", node.names());
    // The leader says nothing of it any more.
    node.put(Input::Moves);
    node.ask(3, takeip(3));
    node.end("startipreallocate", Ending::Done);
    node.end("takeip eth0 10.0.0.3 24", Ending::Done);
    node.wait(1);
    node.end("ipreallocated", Ending::Done);
    node.put(Input::Shutdown);
    node.put(Input::Moves);
    assert_eq!(node.names(), ["shutdown"]);
}

#[test]
fn where_no_address_is_hosted_scripts_hear_of_the_end_alone() {
    let mut node = Node::healthy();
    for version in 1..=9 {
        node.put(placed(version, true, false));
    }
    assert_eq!(node.names(), ["ipreallocated"]);
    node.end("ipreallocated", Ending::Done);
    node.end("ipreallocated", Ending::Done);
    assert!(node.names().is_empty(), "{:?}", node.names());
    // The first that is hosted, and the last that is let go, move.
    for (version, hosted) in [(10, true), (11, false)] {
        node.put(placed(version, true, hosted));
        node.end("startipreallocate", Ending::Done);
        node.end("ipreallocated", Ending::Done);
    }
    node.put(placed(12, true, false));
    assert_eq!(node.names(), ["ipreallocated"]);
}

#[test]
fn a_takeover_run_begins_and_ends_once() {
    let mut node = Node::healthy();
    let placed = |version, whole| placed(version, whole, true);
    node.put(placed(1, false));
    node.put(placed(2, false));
    assert_eq!(node.names(), ["startipreallocate"]);
    node.end("startipreallocate", Ending::Done);
    node.put(placed(2, true));
    assert!(node.names().is_empty(), "an old placement says nothing");
    node.put(placed(3, true));
    assert_eq!(node.names(), ["ipreallocated"]);
    assert!(node.said.is_empty(), "clients are told behind the scripts");
    node.end("ipreallocated", Ending::Done);
    assert_eq!(node.said, [Effect::Reallocated]);
    // Nobody can host one of them: the run ends all the same.
    node.put(placed(4, false));
    node.end("startipreallocate", Ending::Done);
    node.wait(1);
    assert_eq!(node.names(), ["ipreallocated"]);
    node.said.clear();
    node.end("ipreallocated", failed());
    assert!(
        node.said.contains(&Effect::Reallocated),
        "what was distributed stays so"
    );
    // Somebody else's is not the end of a takeover run.
    node.said.clear();
    node.ask(1, Event::plain("ipreallocated"));
    node.end("ipreallocated", Ending::Done);
    assert!(!node.said.contains(&Effect::Reallocated));
}

#[test]
fn waiting_is_bounded_in_time_and_number() {
    let mut node = Node::healthy();
    node.ask(1, Event::plain("reconfigure"));
    node.ask(2, Event::plain("updatenatgw"));
    node.wait(30 * u64::from(PATIENCE));
    assert_eq!(node.answer(2), Some(&Ending::TimedOut));
    for ask in 0..=MAX_WAITING as u64 {
        node.ask(10 + ask, Event::plain("x"));
    }
    assert!(matches!(
        node.answer(10 + MAX_WAITING as u64),
        Some(Ending::Refused(_))
    ));
    node.put(Input::Shutdown);
    assert_eq!(node.answer(10), Some(&Ending::Cancelled));
    assert_eq!(node.names(), ["shutdown"], "nothing holds up the end");
    assert_eq!(node.answer(1), Some(&Ending::Cancelled));
    node.end("shutdown", failed());
    assert!(node.said.contains(&Effect::Down));
    assert!(
        node.said
            .iter()
            .any(|effect| matches!(effect, Effect::Bad { event, .. } if event == "shutdown"))
    );
}

fn recovery(databases: Option<(u64, u32)>, under_way: bool) -> Input {
    Input::Recovery(Recovery {
        generation: Some(7),
        databases,
        under_way,
    })
}

#[test]
fn scripts_hear_of_each_recovery_once() {
    let mut node = Node::healthy();
    node.put(recovery(Some((1, 1)), false));
    assert!(node.names().is_empty(), "that of the start");
    node.put(recovery(Some((1, 1)), true));
    assert_eq!(node.names(), ["startrecovery"]);
    node.end("startrecovery", Ending::Done);
    node.wait(3);
    assert!(node.names().is_empty(), "it is under way");
    // Databases end and begin one by one.
    node.put(recovery(Some((1, 2)), false));
    node.put(recovery(Some((1, 2)), true));
    node.put(recovery(Some((1, 3)), false));
    assert!(node.names().is_empty(), "not calm");
    node.wait(1);
    assert_eq!(node.names(), ["recovered"]);
    node.end("recovered", Ending::Done);
    node.wait(1);
    assert_eq!(node.names(), ["monitor"], "no second pair");
    // One that was over before it was seen; the monitor is given up for it.
    node.put(recovery(Some((2, 1)), false));
    assert_eq!(node.names(), ["startrecovery"]);
    node.end("startrecovery", failed());
    node.wait(1);
    // One that begins when scripts hear of the last one's end: again, after a pause, also for others.
    node.put(recovery(Some((2, 2)), false));
    node.put(recovery(Some((2, 3)), false));
    assert_eq!(node.names(), ["recovered"]);
    node.end("recovered", Ending::TimedOut);
    assert_eq!(node.names(), ["monitor"], "others have their turn");
    node.wait(1);
    assert_eq!(node.names(), ["startrecovery"]);
    node.end("startrecovery", Ending::Done);
    node.wait(1);
    node.end("recovered", Ending::Done);
    let bad = |name: &str| {
        let of = |effect: &&Effect| matches!(effect, Effect::Bad { event, .. } if event == name);
        node.said.iter().filter(of).count()
    };
    assert_eq!((bad("startrecovery"), bad("recovered")), (1, 1));
    let ends = node.said.iter().filter(|one| **one == Effect::Recovered);
    assert_eq!(
        ends.count(),
        3,
        "a takeover run behind each, in time or not"
    );
}

#[test]
fn without_databases_the_set_of_nodes_is_what_is_recovered() {
    let mut node = Node::healthy();
    let stand = |generation| {
        Input::Recovery(Recovery {
            generation,
            databases: None,
            under_way: false,
        })
    };
    node.put(stand(Some(1)));
    node.put(stand(None));
    node.put(stand(Some(1)));
    assert!(node.names().is_empty(), "the same as before");
    node.put(stand(Some(2)));
    node.end("startrecovery", Ending::Done);
    node.wait(1);
    node.end("recovered", Ending::Done);
    // The first database is no recovery, nor is the last one's end, nor a step back.
    for one in [Some((3, 1)), None, Some((3, 1)), Some((2, 9))] {
        node.put(recovery(one, false));
    }
    assert!(node.names().is_empty());
}

#[test]
fn what_moves_addresses_does_not_wait_for_a_recovery() {
    let mut node = Node::healthy();
    node.put(recovery(Some((1, 1)), false));
    node.ask(1, Event::plain("reconfigure"));
    node.put(recovery(Some((1, 2)), false));
    assert_eq!(node.names(), ["reconfigure"]);
    node.end("reconfigure", Ending::Done);
    assert_eq!(node.names(), ["startrecovery"]);
    node.ask(2, Event::plain("startipreallocate"));
    node.end("startipreallocate", Ending::Done);
    for number in 1..=20 {
        node.ask(10 + u64::from(number), takeip(number));
    }
    assert_eq!(node.names().len(), 1 + PARALLEL, "as many as ever");
    for number in 1..=20 {
        node.end(&format!("takeip eth0 10.0.0.{number} 24"), Ending::Done);
    }
    node.ask(3, Event::plain("ipreallocated"));
    node.end("ipreallocated", Ending::Done);
    assert_eq!(node.names(), ["startrecovery"], "it hangs");
    // All else and it wait for each other.
    node.ask(4, Event::plain("recovered"));
    node.ask(5, takeip(1));
    assert_eq!(node.names(), ["startrecovery"]);
    node.end("startrecovery", Ending::TimedOut);
    assert_eq!(
        node.names(),
        ["recovered", "takeip eth0 10.0.0.1 24"],
        "nor for one that was asked for by hand, once it runs"
    );
    node.wait(1);
    node.end("recovered", Ending::Done);
    node.end("takeip eth0 10.0.0.1 24", Ending::Done);
    node.wait(0);
    node.end("recovered", Ending::Done);
    assert!(node.names().is_empty(), "{:?}", node.names());
}

#[test]
fn a_node_that_is_stopped_hears_of_no_recovery() {
    let mut node = Node::healthy();
    let situation = |active| Input::Situation {
        active,
        recovering: false,
    };
    node.put(recovery(Some((1, 1)), false));
    node.put(recovery(Some((1, 1)), true));
    node.end("startrecovery", Ending::Done);
    node.put(situation(false));
    node.put(recovery(Some((1, 2)), false));
    node.wait(5);
    assert!(node.names().is_empty());
    node.put(situation(true));
    node.put(recovery(Some((1, 3)), false));
    assert_eq!(node.names(), ["startrecovery"], "that which brings it back");
    node.put(Input::Shutdown);
    node.wait(5);
    assert_eq!(node.names(), ["shutdown"]);
}
