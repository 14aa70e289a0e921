//! The vectors of `spec/client-protocol.md` section 12, byte for byte, in both directions.

use std::net::SocketAddr;

use ctdb_wire::client::codec::{decode_all, encode_to_vec};
use ctdb_wire::client::control::{Opcode, Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::packet::{
    Body, Call, CallFlags, CallId, Control, ControlFlags, Framed, Header, Message, Packet, Padding,
    ReplyCall, ReplyControl, Tunnel, TunnelFlags, framed,
};
use ctdb_wire::client::srvid;
use ctdb_wire::client::types::{
    Connection, Interface, InterfaceName, KeyData, LtdbHeader, NodeMapEntry, NotifyData, PidSrvid,
    PublicIp, PublicIpInfo, RecBufferBuilder, RecData, RecordFlags, Text, TickleList, Timeval,
    TraverseStart, TunableName, Uptime, VnnMap,
};

/// Generation of the daemon that answered most of them.
const GENERATION: u32 = 0x2842_9fc2;

struct Vector {
    name: String,
    from_client: bool,
    bytes: Vec<u8>,
}

fn vectors() -> Vec<Vector> {
    let mut vectors: Vec<Vector> = Vec::new();
    for line in include_str!("client-vectors.txt").lines() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(rest) = line.strip_prefix('V') {
            let (number, direction) = rest.split_once(' ').unwrap();
            vectors.push(Vector {
                name: format!("V{number}"),
                from_client: direction == ">",
                bytes: Vec::new(),
            });
            continue;
        }
        let hex: String = line.split(' ').collect();
        let bytes = &mut vectors.last_mut().unwrap().bytes;
        bytes.extend(
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap()),
        );
    }
    vectors
}

/// The packets of one vector in order.
fn vector(name: &str) -> Vec<Vec<u8>> {
    vectors()
        .into_iter()
        .filter(|vector| vector.name == name)
        .map(|vector| vector.bytes)
        .collect()
}

fn control(reqid: u32, request: &Request<'_>) -> Vec<u8> {
    control_with(Header::to_own(reqid), 0, ControlFlags::empty(), request)
}

fn control_with(header: Header, srvid: u64, flags: ControlFlags, request: &Request<'_>) -> Vec<u8> {
    Packet {
        header,
        body: Body::Control(Control {
            opcode: request.opcode() as u32,
            srvid,
            client_id: 0,
            flags,
            data: &encode_to_vec(request),
        }),
    }
    .to_vec(Padding::Exact)
}

/// From the daemon of node 0 to a client.
fn to_client(reqid: u32, body: Body<'_>) -> Vec<u8> {
    to_client_of(GENERATION, 0, reqid, body)
}

fn to_client_of(generation: u32, srcnode: u32, reqid: u32, body: Body<'_>) -> Vec<u8> {
    Packet {
        header: Header {
            generation,
            destnode: 0,
            srcnode,
            reqid,
        },
        body,
    }
    .to_vec(Padding::Eight)
}

fn failure(reqid: u32, error: &[u8]) -> Vec<u8> {
    to_client(
        reqid,
        Body::ReplyControl(ReplyControl {
            status: -1,
            data: &[],
            error,
        }),
    )
}

fn reply(reqid: u32, reply: &Reply<'_>) -> Vec<u8> {
    to_client(
        reqid,
        Body::ReplyControl(ReplyControl {
            status: 0,
            data: &encode_to_vec(reply),
            error: &[],
        }),
    )
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn every_packet_is_read_and_written_again_as_it_was() {
    let all = vectors();
    assert_eq!(all.len(), 58);
    for Vector {
        name,
        from_client,
        bytes,
    } in all
    {
        assert_eq!(framed(&bytes), Framed::Packet(bytes.len()), "{name}");
        let packet = Packet::decode(&bytes).unwrap();
        let padding = if from_client && name != "V19" {
            Padding::Exact
        } else {
            Padding::Eight
        };
        assert_eq!(packet.to_vec(padding), bytes, "{name}");
        if let Body::Control(control) = packet.body {
            let opcode = Opcode::of(control.opcode).unwrap();
            let request = Request::decode(opcode, control.data).unwrap();
            assert_eq!(request.opcode(), opcode);
            if name != "V19" {
                assert_eq!(encode_to_vec(&request), control.data, "{name}");
            }
        }
    }
}

#[test]
fn identity_and_maps() {
    assert_eq!(
        vector("V1"),
        [control(1, &Request::GetPnn), reply(1, &Reply::None)]
    );
    let entry = |pnn, text| NodeMapEntry {
        pnn,
        flags: 0,
        address: address(text),
    };
    let nodes = vec![entry(0, "127.78.0.1:4379"), entry(1, "127.78.0.2:4379")];
    assert_eq!(
        vector("V2"),
        [
            control(2, &Request::GetNodeMap),
            reply(2, &Reply::NodeMap(nodes))
        ]
    );
    let map = VnnMap {
        generation: GENERATION,
        map: vec![0, 1],
    };
    assert_eq!(
        vector("V3"),
        [
            control(3, &Request::GetVnnMap),
            reply(3, &Reply::VnnMap(map))
        ]
    );
    let time = |seconds, micros| Timeval { seconds, micros };
    let uptime = Uptime {
        now: time(0x6b02_d8b6, 0x000c_81ba),
        started: time(0x6b02_d372, 0x0003_1a09),
        recovery_started: time(0x6b02_d5c5, 0x0009_1037),
        recovery_finished: time(0x6b02_d5c5, 0x000c_227e),
    };
    assert_eq!(
        vector("V10"),
        [
            control(10, &Request::Uptime),
            reply(10, &Reply::Uptime(uptime))
        ]
    );
}

#[test]
fn databases() {
    assert_eq!(
        vector("V4"),
        [
            control(4, &Request::DbAttach(Text(b"g_lock.tdb"))),
            reply(4, &Reply::U32(0x4d2a_432b))
        ]
    );
    let path = b"/var/lib/ctdb/volatile/locking.tdb.0";
    assert_eq!(
        vector("V5"),
        [
            control(5, &Request::GetDbPath(0x7a19_d84d)),
            reply(5, &Reply::Text(Text(path)))
        ]
    );
    assert_eq!(
        vector("V6"),
        [
            control(6, &Request::DbOpenFlags(0x4d2a_432b)),
            reply(6, &Reply::I32(0x1c41))
        ]
    );
    assert_eq!(
        vector("V7"),
        [control(7, &Request::GetDbPath(1)), failure(7, b"")]
    );
}

#[test]
fn errors_and_tunables() {
    let to_77 = Header {
        destnode: 77,
        ..Header::to_own(8)
    };
    assert_eq!(
        vector("V8"),
        [
            control_with(to_77, 0, ControlFlags::empty(), &Request::GetPnn),
            failure(8, b"ctdb_control to disconnected node")
        ]
    );
    assert_eq!(
        vector("V9"),
        [
            control(9, &Request::GetTunable(TunableName(b"RecoverTimeout"))),
            reply(9, &Reply::U32(30))
        ]
    );
}

#[test]
fn public_addresses() {
    let ip = PublicIp {
        pnn: 0,
        address: address("10.78.0.11:0"),
    };
    let lo = Interface {
        name: InterfaceName::new("lo"),
        link_state: 1,
        references: 1,
    };
    let info = PublicIpInfo {
        ip,
        active: 0,
        interfaces: vec![lo],
    };
    assert_eq!(
        vector("V11"),
        [
            control(11, &Request::GetPublicIps),
            reply(11, &Reply::PublicIps(vec![ip])),
            control(12, &Request::GetPublicIpInfo(ip.address)),
            reply(12, &Reply::PublicIpInfo(info)),
        ]
    );
    assert_eq!(
        vector("V12"),
        [
            control(13, &Request::GetIfaces),
            reply(13, &Reply::Interfaces(vec![lo]))
        ]
    );
    let connection = Connection {
        client: address("10.9.9.9:40000"),
        server: address("10.78.0.11:445"),
    };
    let tickles = TickleList {
        address: address("10.78.0.11:0"),
        connections: vec![connection],
    };
    assert_eq!(
        vector("V22"),
        [
            control_with(
                Header::to_own(0x16),
                0,
                ControlFlags::NO_REPLY,
                &Request::TcpClient(connection)
            ),
            control(0x17, &Request::GetTcpTickleList(address("10.78.0.11:0"))),
            reply(0x17, &Reply::Tickles(tickles)),
        ]
    );
}

#[test]
fn messages() {
    let id = 0xAE00_0000_0000_1234;
    let hello = Body::Message(Message {
        srvid: id,
        data: b"hello",
    });
    let from_samba = Packet {
        header: Header {
            generation: 1,
            ..Header::to_own(0)
        },
        body: hello,
    };
    assert_eq!(
        vector("V13"),
        [
            control_with(
                Header::to_own(14),
                id,
                ControlFlags::empty(),
                &Request::RegisterSrvid
            ),
            reply(14, &Reply::None),
            from_samba.to_vec(Padding::Exact),
            to_client(0, hello),
        ]
    );
    let release = Body::Message(Message {
        srvid: srvid::RELEASE_IP,
        data: b"10.77.0.12\0",
    });
    assert_eq!(vector("V14"), [to_client_of(0x3b71_509e, 0, 0, release)]);
    let notify = NotifyData {
        srvid: 0xFE00_0000_0000_0000,
        data: &[0],
    };
    assert_eq!(
        vector("V23"),
        [
            control(0x18, &Request::RegisterNotify(notify)),
            reply(0x18, &Reply::None)
        ]
    );
}

#[test]
fn calls() {
    let call = |flags, call_id: CallId| Packet {
        header: Header {
            destnode: 0,
            ..Header::to_own(if flags == CallFlags::empty() {
                0x12
            } else {
                0x11
            })
        },
        body: Body::Call(Call {
            flags,
            db_id: 0x2d2b_1757,
            call_id: call_id as u32,
            hop_count: 0,
            key: b"key1",
            data: &[],
        }),
    };
    let answer =
        |reqid, data: &[u8]| to_client(reqid, Body::ReplyCall(ReplyCall { status: 0, data }));
    assert_eq!(
        vector("V15"),
        [
            call(CallFlags::IMMEDIATE_MIGRATION, CallId::Null).to_vec(Padding::Exact),
            answer(0x11, &[])
        ]
    );
    let header = LtdbHeader {
        rsn: 3,
        ..LtdbHeader::default()
    };
    assert_eq!(
        vector("V16"),
        [
            call(CallFlags::empty(), CallId::FetchWithHeader).to_vec(Padding::Exact),
            answer(0x12, &encode_to_vec(&header))
        ]
    );
    let copy = LtdbHeader {
        rsn: 6,
        dmaster: 1,
        reserved: 0,
        flags: RecordFlags::MIGRATED_WITH_DATA | RecordFlags::RO_HAVE_READONLY,
    };
    let mut record = encode_to_vec(&copy);
    record.extend_from_slice(b"hello");
    assert_eq!(vector("V17"), [answer(4, &record)]);
    let deletion = KeyData {
        db_id: 0x2d2b_1757,
        header,
        key: b"key1",
    };
    assert_eq!(
        vector("V18"),
        [control_with(
            Header::to_own(0x13),
            0x2d2b_1757,
            ControlFlags::NO_REPLY,
            &Request::ScheduleForDeletion(deletion)
        )]
    );
}

#[test]
fn a_transaction() {
    let [request, answer] = vector("V19").try_into().unwrap();
    let Body::Control(control) = Packet::decode(&request).unwrap().body else {
        panic!("no control");
    };
    let Request::Trans3Commit(buffer) =
        Request::decode(Opcode::Trans3Commit, control.data).unwrap()
    else {
        panic!("no commit");
    };
    assert_eq!((buffer.db_id, buffer.count()), (0x1741_d1b4, 2));
    let header = LtdbHeader {
        rsn: 1,
        ..LtdbHeader::default()
    };
    let sequence = 1_u64.to_ne_bytes();
    let expected = [
        (&b"k1"[..], &b"v1"[..]),
        (b"__db_sequence_number__\0", &sequence),
    ];
    assert_eq!(buffer.records().count(), 2);
    for (record, (key, value)) in buffer.records().zip(expected) {
        assert_eq!(record.key, key);
        assert_eq!(record.record(), Some((header, value)));
    }
    let done = Body::ReplyControl(ReplyControl {
        status: 0,
        data: &[],
        error: &[],
    });
    assert_eq!(answer, to_client_of(0x4684_c787, 0, 0x7fff_ff47, done));
}

#[test]
fn a_traverse() {
    let id = 0xAE00_0000_0000_1234;
    let start = TraverseStart {
        db_id: 0xc445_c6ab,
        reqid: 5,
        srvid: id,
    };
    let header = LtdbHeader {
        rsn: 6,
        flags: RecordFlags::MIGRATED_WITH_DATA,
        ..LtdbHeader::default()
    };
    let [_, _, record, _] = vector("V20").try_into().unwrap();
    let Body::Message(message) = Packet::decode(&record).unwrap().body else {
        panic!("no message");
    };
    let data: RecData<'_> = decode_all(message.data).unwrap();
    assert_eq!((data.reqid, data.key), (5, &b"k2"[..]));
    let (found, value) = data.record().unwrap();
    assert_eq!((found, value), (header, &b"v2"[..]));

    let element = |key, data| {
        encode_to_vec(&RecData {
            reqid: 5,
            key,
            data,
        })
    };
    let message = |data: &[u8]| to_client(0, Body::Message(Message { srvid: id, data }));
    assert_eq!(
        vector("V20"),
        [
            control_with(
                Header::to_own(0x14),
                id,
                ControlFlags::empty(),
                &Request::TraverseStart(start)
            ),
            reply(0x14, &Reply::None),
            message(&element(b"k2", data.data)),
            message(&element(b"", b"")),
        ]
    );
}

#[test]
fn existence() {
    let question = PidSrvid {
        pid: 0x1234,
        srvid: 0x1122_3344_5566_7788,
    };
    assert_eq!(
        vector("V21"),
        [
            control(0x15, &Request::CheckPidSrvid(question)),
            failure(0x15, b"")
        ]
    );
}

#[test]
fn tunnels() {
    let id = 0xFFFF_FFFF_0000_0001;
    let body = |id| {
        Body::Tunnel(Tunnel {
            id,
            flags: TunnelFlags::REQUEST,
            data: b"abc",
        })
    };
    let sent = Packet {
        header: Header {
            destnode: 0,
            ..Header::to_own(4711)
        },
        body: body(id),
    };
    // Received with request number 0: what CTDB loses and we carry.
    assert_eq!(
        vector("V24"),
        [
            control_with(
                Header::to_own(0x19),
                id,
                ControlFlags::empty(),
                &Request::TunnelRegister
            ),
            reply(0x19, &Reply::None),
            sent.to_vec(Padding::Exact),
            to_client(0, body(id)),
        ]
    );
}

#[test]
fn traffic_of_two_nodes() {
    let generation = 0x3b71_509e;
    let [question, answer, sent, received] = vector("V25").try_into().unwrap();
    let pid = PidSrvid {
        pid: 0x6477,
        srvid: 0xc6f5_ae08_4fad_0eda,
    };
    let to_0 = |reqid| Header {
        destnode: 0,
        ..Header::to_own(reqid)
    };
    assert_eq!(
        question,
        control_with(
            to_0(0x48),
            0,
            ControlFlags::empty(),
            &Request::CheckPidSrvid(pid)
        )
    );
    let yes = Body::ReplyControl(ReplyControl {
        status: 0,
        data: &[],
        error: &[],
    });
    assert_eq!(answer, to_client_of(generation, 1, 0x48, yes));
    for (bytes, srvid) in [(sent, 0x654a), (received, 0x67cc)] {
        let Packet {
            header,
            body: Body::Message(message),
        } = Packet::decode(&bytes).unwrap()
        else {
            panic!("no message");
        };
        assert_eq!((message.srvid, message.data.len()), (srvid, 52));
        assert_eq!((header.srcnode, header.destnode), (1, 0));
    }
    let none = RecBufferBuilder::new(1).finish();
    assert_eq!(none.len(), 8, "an empty buffer is a number and a count");
    assert_eq!(node::CURRENT, 0xF000_0001);
}
