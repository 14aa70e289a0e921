//! Values at the edge, compared with CTDB 4.17.12 through a raw client (2026-11-29).

use ctdb_wire::client::types::{AddressInfo, FlagChange, TunableName};

use super::*;

#[test]
fn odd_values_are_taken_as_ctdb_takes_them() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let own = node::CURRENT;
    let mut action = |request: &Request<'_>| {
        pair.control_with(a, own, 0, ControlFlags::empty(), request);
        let (kind, then) = pair.nodes[0].asks.pop().unwrap();
        pair.nodes[0].hub.answered(then, Ok(Value::Null));
        assert_eq!(pair.received(a).len(), 1);
        let AskKind::Act(action) = kind else {
            panic!("no action");
        };
        action
    };
    for (number, name) in [(-1, "ERROR"), (2, "WARNING"), (9, "INFO"), (99, "DEBUG")] {
        let level = name.to_owned();
        assert_eq!(
            action(&Request::SetDebug(number)),
            Action::LogLevel { level }
        );
    }
    // `91.lvs` announces an address that is none of ours, on an interface.
    let announce = Request::SendGratuitousArp(AddressInfo {
        address: "[::ffff:10.9.9.9]:0".parse().unwrap(),
        mask: 0,
        interface: b"eth7",
    });
    assert_eq!(
        action(&announce),
        Action::Announce {
            address: Some("10.9.9.9".parse().unwrap()),
            interface: Some("eth7".into()),
        }
    );
    for (pnn, status) in [(1, 0), (9, -1), (node::UNKNOWN, -1)] {
        let change = FlagChange {
            pnn,
            new: 4,
            old: 0,
        };
        let request = Request::ModifyFlags(change);
        assert_eq!(pair.control(a, own, 0, &request).0, status, "{pnn}");
    }
    for (name, status) in [
        (&b""[..], -1),
        (b"NoSuchThing", -22),
        (b"RecoverTimeout", 0),
    ] {
        let request = Request::GetTunable(TunableName(name));
        assert_eq!(pair.control(a, own, 0, &request).0, status, "{name:?}");
    }
    // A reset ends the interval that runs; those that are over are still shown.
    pair.tick(1000);
    let history = pair.nodes[0].hub.history.len();
    assert!(history > 0);
    assert_eq!(pair.control(a, own, 0, &Request::StatisticsReset).0, 0);
    assert_eq!(pair.nodes[0].hub.history.len(), history);
}
