//! Whatever stands on the client socket: it is read without panic and without taking more room
//! than it has, and what was read is written back as it was.

use ctdb_wire::client::codec::encode_to_vec;
use ctdb_wire::client::control::{Opcode, Reply, Request};
use ctdb_wire::client::packet::{Body, Framed, Packet, Padding, framed};
use ctdb_wire::client::types::RecData;
use proptest::prelude::*;

fn look_at(bytes: &[u8]) {
    let Ok(packet) = Packet::decode(bytes) else {
        return;
    };
    let again = packet.to_vec(Padding::Exact);
    assert_eq!(Packet::decode(&again), Ok(packet));
    if let Body::Control(control) = packet.body
        && let Some(opcode) = Opcode::of(control.opcode)
    {
        payload(opcode, control.data);
    }
    if let Body::Message(message) = packet.body {
        let _ = ctdb_wire::client::codec::decode_all::<RecData<'_>>(message.data);
    }
}

fn payload(opcode: Opcode, bytes: &[u8]) {
    if let Ok(request) = Request::decode(opcode, bytes) {
        let again = encode_to_vec(&request);
        let second = Request::decode(opcode, &again).unwrap();
        // Compared as bytes: a number that is none equals nothing.
        assert_eq!(encode_to_vec(&second), again);
    }
    if let Ok(reply) = Reply::decode(opcode, bytes) {
        let again = encode_to_vec(&reply);
        let second = Reply::decode(opcode, &again).unwrap();
        assert_eq!(encode_to_vec(&second), again);
    }
}

/// A header that is right but for what varies.
fn with_header(operation: u32, body: &[u8]) -> Vec<u8> {
    let words = [
        32 + body.len() as u32,
        0x4354_4442,
        1,
        0,
        operation,
        0xF000_0001,
        0,
        7,
    ];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.extend_from_slice(body);
    bytes
}

/// Numbers as attackers like them, among arbitrary ones.
fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        0_u32..64,
        Just(u32::MAX),
        Just(u32::MAX - 15),
        Just(1 << 31),
        any::<u32>()
    ]
}

fn words() -> impl Strategy<Value = Vec<u8>> {
    (
        proptest::collection::vec(number(), 0..40),
        proptest::collection::vec(any::<u8>(), 0..8),
    )
        .prop_map(|(words, tail)| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            bytes.extend(tail);
            bytes
        })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = framed(&bytes);
        look_at(&bytes);
    }

    #[test]
    fn bodies_of_every_operation(operation in 0_u32..12, body in words()) {
        look_at(&with_header(operation, &body));
    }

    #[test]
    fn payloads_of_every_control(index in 0..Opcode::ALL.len(), bytes in words()) {
        payload(Opcode::ALL[index], &bytes);
    }

    #[test]
    fn a_stream_is_cut_the_same_however_it_arrives(
        lengths in proptest::collection::vec(32_u32..100, 1..5),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut stream = Vec::new();
        for length in &lengths {
            let at = stream.len();
            stream.resize(at + *length as usize, 0);
            stream[at..at + 4].copy_from_slice(&length.to_ne_bytes());
        }
        let cut = cut.index(stream.len());
        let mut found = Vec::new();
        let mut at = 0;
        for end in [cut, stream.len()] {
            while let Framed::Packet(length) = framed(&stream[at..end]) {
                found.push(length as u32);
                at += length;
            }
        }
        prop_assert_eq!(found, lengths);
    }
}
