//! Addresses that come and go.

use std::pin::pin;
use std::task::{Context, Waker};

use ctdb_core::holder::Fate;
use ctdb_db::cluster::Kind;
use ctdb_wire::client::types::Text;
use ctdb_wire::ids::RunState;

use super::*;

/// Nobody hears what databases say of themselves.
struct Nobody;

impl Outlet for Nobody {
    fn deliver(&self, _: Vec<Output>) {}

    fn alarm(&self, _: u32, _: BootTime) -> bool {
        false
    }
}

/// A table with a volatile database, `one.tdb`, and its number.
fn with_one(directory: &std::path::Path) -> (Table, u32) {
    let setup = database::Setup {
        me: pnn(0),
        volatile: directory.to_path_buf(),
        persistent: directory.to_path_buf(),
        mutexes: true,
    };
    let mut table = Table::new(setup, None, Arc::new(Nobody));
    let tunables = Tunables::default();
    let entry = table.attach("one.tdb", Kind::Volatile, &tunables).unwrap();
    let id = entry.id;
    (table, id)
}

#[test]
fn of_its_own_addresses_a_node_knows_best() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    // What the placement says, what is so, what is told; asked by another node's client.
    for (owner, here, told) in [
        (Some(0), Hold::None, 0),
        (None, Hold::Held, 1),
        (Some(0), Hold::Held, 1),
        (Some(1), Hold::Held, 1),
        (Some(0), Hold::Taking, 0),
        (Some(1), Hold::Releasing, node::UNKNOWN),
        (Some(1), Hold::None, node::UNKNOWN),
        (None, Hold::None, node::UNKNOWN),
    ] {
        pair.change(1, |snapshot| {
            snapshot.addresses[0].owner = owner;
            snapshot.addresses[0].here = here;
        });
        let (status, data, _) = pair.control(a, 1, 0, &Request::GetPublicIps);
        let Ok(Reply::PublicIps(list)) = Reply::decode(Opcode::GetPublicIps, &data) else {
            panic!("no list");
        };
        let pnns: Vec<u32> = list.iter().map(|ip| ip.pnn).collect();
        assert_eq!((status, pnns), (0, vec![told]), "{owner:?} {here:?}");
    }
}

#[test]
fn what_becomes_of_connections_of_a_former_right_the_databases_say() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let connection = Connection {
        client: "10.2.0.1:1000".parse().unwrap(),
        server: "10.1.0.1:445".parse().unwrap(),
    };
    let own = node::CURRENT;
    let request = Request::TcpClient(connection);
    assert_eq!(pair.control(a, own, 0, &request).0, 0);
    let (address, other) = (connection.server.ip(), "10.1.0.2".parse().unwrap());
    let both = [address, other];
    let fates = |hub: &mut Hub, right| {
        let known = hub.fates(right, &both);
        both.map(|of| known.iter().find(|(a, _)| *a == of).map(|(_, fate)| *fate))
    };
    let (kept, lost) = (Some(Fate::Kept), Some(Fate::Lost));
    let hub = &mut pair.nodes[0].hub;
    assert_eq!(fates(hub, 1), [kept, kept], "without databases");
    hub.database_says(vec![Output::CloseClients]);
    hub.gone(a.1);
    assert_eq!(fates(hub, 1), [lost, kept]);
    assert_eq!(fates(hub, 1), [lost, kept], "until they have ended");
    hub.ended(&[address]);
    assert_eq!(fates(hub, 1), [kept, kept]);
    // What waits for the databases' word.
    let b = (0, pair.client(0, 11));
    assert_eq!(pair.control(b, own, 0, &request).0, 0);
    let directory = tempfile::tempdir().unwrap();
    let (table, id) = with_one(directory.path());
    let hub = &mut pair.nodes[0].hub;
    let news = hub.fates_known();
    let mut cx = Context::from_waker(Waker::noop());
    let mut told = || pin!(news.notified()).poll(&mut cx).is_ready();
    hub.open_databases(table, &[]);
    let served = |right| Output::Served {
        db: id,
        first: true,
        right: Some(right),
    };
    hub.database_says(vec![served(1)]);
    assert!(!told(), "nobody has asked");
    assert_eq!(fates(hub, 1), [kept, kept]);
    assert_eq!(fates(hub, 2), [None, kept]);
    assert!(!told());
    hub.database_says(vec![served(2)]);
    assert!(told());
    assert_eq!(fates(hub, 2), [kept, kept]);
    assert_eq!(fates(hub, 3), [None, kept]);
    hub.database_says(vec![Output::CloseClients]);
    assert!(told());
    assert_eq!(fates(hub, 3), [lost, kept], "said before they are served");
    hub.close_databases();
}

#[test]
fn a_node_that_leaves_alone_has_nobody_wait_for_a_recovery() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let own = node::CURRENT;
    let directory = tempfile::tempdir().unwrap();
    let (table, id) = with_one(directory.path());
    let hub = &mut pair.nodes[0].hub;
    hub.open_databases(table, &[]);
    hub.database_says(vec![Output::Opened {
        db: id,
        result: Ok(None),
    }]);
    pair.change(0, |snapshot| {
        snapshot.recovery_mode = 1;
        snapshot.run_state = RunState::Running;
    });
    let attach = |name: &'static str| Request::DbAttach(Text(name.as_bytes()));
    let answered = |pair: &mut Pair| {
        let got = pair.received(a).pop()?;
        match Packet::decode(&got).unwrap().body {
            Body::ReplyControl(reply) => Some((reply.status, reply.data.to_vec())),
            other => panic!("{other:?}"),
        }
    };
    pair.control_with(a, own, 0, ControlFlags::empty(), &attach("one.tdb"));
    pair.tick(1000);
    assert_eq!(answered(&mut pair), None, "it waits");
    pair.change(0, |snapshot| snapshot.run_state = RunState::Shutdown);
    pair.tick(1000);
    let number = (0, id.to_le_bytes().to_vec());
    assert_eq!(answered(&mut pair).as_ref(), Some(&number));
    for (name, wanted) in [("one.tdb", number), ("two.tdb", (-1, Vec::new()))] {
        pair.control_with(a, own, 0, ControlFlags::empty(), &attach(name));
        assert_eq!(answered(&mut pair), Some(wanted), "{name}");
    }
    pair.nodes[0].hub.close_databases();
}
