//! Whether processes of other nodes live.

use ctdb_db::cluster::rights::ViewId;
use ctdb_wire::ids::{Incarnation, Term};

use super::*;

#[test]
fn a_process_elsewhere_is_known_and_never_falsely_dead() {
    let unique = 0x1122_3344_5566_7788;
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let b = (1, pair.client(1, 20));
    let question = |srvid| Request::CheckPidSrvid(PidSrvid { pid: 20, srvid });
    pair.register(b, unique);
    let asked = |pair: &Pair| pair.nodes[1].hub.statistics.node.req_control;
    // Not told yet: the node itself answers.
    assert_eq!(pair.control(a, 1, 0, &question(unique)).0, 0);
    assert_eq!(asked(&pair), 1);
    pair.tick(100);
    assert_eq!(pair.control(a, 1, 0, &question(unique)).0, 0);
    assert_eq!(pair.control(a, 1, 0, &Request::ProcessExists(20)).0, 0);
    assert_eq!(asked(&pair), 1, "from the table");
    assert_eq!(pair.control(a, 1, 0, &question(6)).0, -1);
    assert_eq!(asked(&pair), 2);
    pair.nodes[1].hub.gone(b.1);
    pair.tick(100);
    assert_eq!(pair.control(a, 1, 0, &question(unique)).0, -1);
    // A link that is made anew brings the whole table.
    let c = (1, pair.client(1, 30));
    pair.register(c, unique);
    for node in 0..2 {
        pair.nodes[node].hub.link_down(pnn(1 - node));
    }
    for node in 0..2 {
        pair.nodes[node].hub.link_up(pnn(1 - node));
    }
    pair.settle();
    let before = asked(&pair);
    let third = Request::CheckPidSrvid(PidSrvid {
        pid: 30,
        srvid: unique,
    });
    assert_eq!(pair.control(a, 1, 0, &third).0, 0);
    assert_eq!(asked(&pair), before);
}

#[test]
fn nobody_is_dead_while_the_node_may_live() {
    let mut pair = Pair::new();
    let a = (0, pair.client(0, 10));
    let b = (1, pair.client(1, 20));
    pair.register(b, 7);
    pair.tick(100);
    let ask = |pair: &mut Pair, request: &Request<'_>| {
        let data = encode_to_vec(request);
        let control = Control {
            opcode: request.opcode() as u32,
            srvid: 0,
            client_id: 0,
            flags: ControlFlags::empty(),
            data: &data,
        };
        let header = Header {
            destnode: 1,
            ..Header::to_own(3)
        };
        let body = Body::Control(control);
        let bytes = Packet { header, body }.to_vec(Padding::Exact);
        pair.nodes[0].hub.packet(a.1, &bytes);
    };
    let answers = |pair: &mut Pair| -> Vec<(i32, String)> {
        pair.settle();
        let replies = pair.received(a);
        let answer = |reply: &Vec<u8>| match Packet::decode(reply).unwrap().body {
            Body::ReplyControl(reply) => (
                reply.status,
                String::from_utf8_lossy(reply.error).into_owned(),
            ),
            other => panic!("{other:?}"),
        };
        replies.iter().map(answer).collect()
    };
    let lives = Request::CheckPidSrvid(PidSrvid { pid: 20, srvid: 7 });
    let dead = Request::CheckPidSrvid(PidSrvid { pid: 21, srvid: 7 });
    let exists = Request::ProcessExists(20);
    let both: NodeSet = [pnn(0), pnn(1)].into_iter().collect();
    let alone: NodeSet = [pnn(0)].into_iter().collect();
    let view = |number| ViewId {
        term: Term {
            number: 1,
            leader: pnn(0),
            session: Incarnation(1),
        },
        number,
    };
    pair.nodes[0].hub.rights(view(1), both);
    pair.nodes[0].hub.take_effects();

    // One is under way when the link goes, the others come then; all are answered behind it.
    ask(&mut pair, &dead);
    pair.nodes[0].hub.take_effects();
    pair.nodes[0].hub.link_down(pnn(1));
    ask(&mut pair, &lives);
    ask(&mut pair, &exists);
    assert_eq!(answers(&mut pair), []);
    // What asks for no process does not wait.
    ask(&mut pair, &Request::GetPnn);
    assert_eq!(answers(&mut pair).len(), 1);
    pair.nodes[1].hub.link_down(pnn(0));
    for node in 0..2 {
        pair.nodes[node].hub.link_up(pnn(1 - node));
    }
    let mut statuses: Vec<i32> = answers(&mut pair)
        .iter()
        .map(|(status, _)| *status)
        .collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [-1, 0, 0]);

    // A recovery without that node begins: its right is over, and so is what its processes hold.
    pair.nodes[0].hub.link_down(pnn(1));
    ask(&mut pair, &lives);
    assert_eq!(answers(&mut pair), []);
    pair.nodes[0].hub.rights(view(2), alone);
    assert_eq!(
        answers(&mut pair),
        [(-1, "node is disconnected".to_owned())]
    );
    ask(&mut pair, &lives);
    let [(-1, text)] = &answers(&mut pair)[..] else {
        panic!("it is answered at once");
    };
    assert_eq!(text, "ctdb_control to disconnected node");

    // Neither comes: as long as any control; and a client that goes takes its questions along.
    // What is told late of the time without it says nothing when it is there again.
    pair.nodes[0].hub.rights(view(3), both);
    pair.nodes[0].hub.rights(view(2), alone);
    ask(&mut pair, &lives);
    pair.tick(59_000);
    assert_eq!(answers(&mut pair), []);
    pair.tick(2000);
    assert_eq!(
        answers(&mut pair),
        [(-1, "ctdb_control timed out".to_owned())]
    );
    ask(&mut pair, &lives);
    pair.nodes[0].hub.gone(a.1);
    pair.nodes[0].hub.rights(view(4), alone);
    assert!(pair.nodes[0].hub.take_effects().is_empty());
}
