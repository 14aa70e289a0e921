//! Frames between nodes that carry what clients say: messages, tunnels, controls, and the tables
//! of processes. Their own layout, little-endian, so that nothing is copied or parsed byte by
//! byte; the first byte, [`FIRST`] or more, tells them from [`peer`](crate::peer) frames.
//!
//! A frame longer than [`MAX_PIECE`] travels as pieces, one after the other, and is put together
//! again by [`Assembler`], which takes room only for bytes that have come.

/// First bytes from here on are relay frames.
pub const FIRST: u8 = 0x80;
/// Longest piece of a frame, in bytes.
pub const MAX_PIECE: usize = 512 * 1024;
/// Longest frame that is put together, in bytes: what the client socket takes, and its fields.
pub const MAX_WHOLE: usize = crate::client::packet::MAX_PACKET;
/// Most entries of one [`Relay::Processes`].
pub const MAX_PROCESSES: usize = 16 * 1024;

const MESSAGE: u8 = 0x81;
const TUNNEL: u8 = 0x82;
const CONTROL: u8 = 0x83;
const REPLY: u8 = 0x84;
const PROCESSES: u8 = 0x85;
const PIECE: u8 = 0x86;
const DATABASE: u8 = 0x87;

/// One registration of a process that came or went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    /// Process number on its node.
    pub pid: i32,
    /// What it registered.
    pub srvid: u64,
    /// It has it now.
    pub here: bool,
}

impl Process {
    const LENGTH: usize = 13;
}

/// A relay frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relay<'a> {
    /// A message for the receiver's clients.
    Message {
        /// Address.
        srvid: u64,
        /// Opaque.
        data: &'a [u8],
    },
    /// A tunnel packet for the receiver's client.
    Tunnel {
        /// Tunnel.
        id: u64,
        /// As the sender set them.
        flags: u32,
        /// As the sender set it; CTDB loses it.
        reqid: u32,
        /// Opaque.
        data: &'a [u8],
    },
    /// A control for the receiver.
    Control {
        /// Of the sender's choice; 0 wants no reply.
        id: u32,
        /// Number of the control.
        opcode: u32,
        /// As in the client's packet.
        srvid: u64,
        /// As in the client's packet.
        flags: u32,
        /// Payload.
        data: &'a [u8],
    },
    /// The answer to a control.
    Reply {
        /// Of the control.
        id: u32,
        /// Status.
        status: i32,
        /// Payload.
        data: &'a [u8],
        /// Error text.
        error: &'a [u8],
    },
    /// The sender's processes: all of them, or changes.
    Processes {
        /// What was known is forgotten first.
        anew: bool,
        /// At most [`MAX_PROCESSES`]; see [`processes`].
        entries: &'a [u8],
    },
    /// A piece of a longer frame.
    Piece {
        /// The frame is complete with it.
        last: bool,
        /// Its bytes.
        data: &'a [u8],
    },
    /// For the databases; opaque here.
    Database(&'a [u8]),
}

/// A relay frame that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a relay frame of kind {kind:#x} and {length} bytes is malformed")]
pub struct RelayError {
    /// Its first byte.
    pub kind: u8,
    /// Its length.
    pub length: usize,
}

fn word(bytes: &mut &[u8]) -> Option<u32> {
    let (word, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u32::from_le_bytes(*word))
}

fn long(bytes: &mut &[u8]) -> Option<u64> {
    let (long, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(u64::from_le_bytes(*long))
}

impl<'a> Relay<'a> {
    /// Reads a frame whose first byte is [`FIRST`] or more.
    pub fn decode(frame: &'a [u8]) -> Result<Self, RelayError> {
        let kind = frame.first().copied().unwrap_or_default();
        Self::read(kind, frame.get(1..).unwrap_or_default()).ok_or(RelayError {
            kind,
            length: frame.len(),
        })
    }

    fn read(kind: u8, mut bytes: &'a [u8]) -> Option<Self> {
        let rest = &mut bytes;
        Some(match kind {
            MESSAGE => Self::Message {
                srvid: long(rest)?,
                data: rest,
            },
            TUNNEL => Self::Tunnel {
                id: long(rest)?,
                flags: word(rest)?,
                reqid: word(rest)?,
                data: rest,
            },
            CONTROL => Self::Control {
                id: word(rest)?,
                opcode: word(rest)?,
                srvid: long(rest)?,
                flags: word(rest)?,
                data: rest,
            },
            REPLY => {
                let (id, status) = (word(rest)?, word(rest)?.cast_signed());
                let length = word(rest)? as usize;
                let (data, error) = rest.split_at_checked(length)?;
                Self::Reply {
                    id,
                    status,
                    data,
                    error,
                }
            }
            PROCESSES => {
                let (anew, entries) = rest.split_first()?;
                if entries.len() % Process::LENGTH != 0
                    || entries.len() / Process::LENGTH > MAX_PROCESSES
                {
                    return None;
                }
                Self::Processes {
                    anew: *anew != 0,
                    entries,
                }
            }
            PIECE => {
                let (last, data) = rest.split_first()?;
                Self::Piece {
                    last: *last != 0,
                    data,
                }
            }
            DATABASE => Self::Database(rest),
            _ => return None,
        })
    }

    /// The frame's bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut put = |kind: u8, fields: &[&[u8]]| {
            out.reserve_exact(1 + fields.iter().map(|field| field.len()).sum::<usize>());
            out.push(kind);
            for field in fields {
                out.extend_from_slice(field);
            }
        };
        match *self {
            Self::Message { srvid, data } => put(MESSAGE, &[&srvid.to_le_bytes(), data]),
            Self::Tunnel {
                id,
                flags,
                reqid,
                data,
            } => put(
                TUNNEL,
                &[
                    &id.to_le_bytes(),
                    &flags.to_le_bytes(),
                    &reqid.to_le_bytes(),
                    data,
                ],
            ),
            Self::Control {
                id,
                opcode,
                srvid,
                flags,
                data,
            } => put(
                CONTROL,
                &[
                    &id.to_le_bytes(),
                    &opcode.to_le_bytes(),
                    &srvid.to_le_bytes(),
                    &flags.to_le_bytes(),
                    data,
                ],
            ),
            Self::Reply {
                id,
                status,
                data,
                error,
            } => put(
                REPLY,
                &[
                    &id.to_le_bytes(),
                    &status.to_le_bytes(),
                    &(data.len() as u32).to_le_bytes(),
                    data,
                    error,
                ],
            ),
            Self::Processes { anew, entries } => put(PROCESSES, &[&[u8::from(anew)], entries]),
            Self::Piece { last, data } => put(PIECE, &[&[u8::from(last)], data]),
            Self::Database(data) => put(DATABASE, &[data]),
        }
        out
    }
}

/// The entries of a [`Relay::Processes`].
pub fn processes(entries: &[u8]) -> impl Iterator<Item = Process> {
    entries
        .chunks_exact(Process::LENGTH)
        .filter_map(|mut bytes| {
            Some(Process {
                pid: word(&mut bytes)?.cast_signed(),
                srvid: long(&mut bytes)?,
                here: bytes.first()? == &1,
            })
        })
}

/// Appends an entry.
pub fn put_process(process: &Process, out: &mut Vec<u8>) {
    out.extend_from_slice(&process.pid.to_le_bytes());
    out.extend_from_slice(&process.srvid.to_le_bytes());
    out.push(u8::from(process.here));
}

/// Cuts a frame that is too long for one into pieces; one that is not stays as it is.
pub fn cut(frame: Vec<u8>) -> Vec<Vec<u8>> {
    if frame.len() <= MAX_PIECE {
        return vec![frame];
    }
    let count = frame.len().div_ceil(MAX_PIECE);
    frame
        .chunks(MAX_PIECE)
        .enumerate()
        .map(|(at, data)| {
            Relay::Piece {
                last: at + 1 == count,
                data,
            }
            .to_vec()
        })
        .collect()
}

/// Puts pieces of one peer together.
#[derive(Debug, Default)]
pub struct Assembler {
    bytes: Vec<u8>,
}

impl Assembler {
    /// Takes a piece; the frame, when it is complete.
    pub fn piece(&mut self, last: bool, data: &[u8]) -> Result<Option<Vec<u8>>, RelayError> {
        if self.bytes.len() + data.len() > MAX_WHOLE + MAX_PIECE {
            return Err(RelayError {
                kind: PIECE,
                length: self.bytes.len() + data.len(),
            });
        }
        self.bytes.extend_from_slice(data);
        Ok(last.then(|| std::mem::take(&mut self.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frames_survive_the_journey() {
        let mut entries = Vec::new();
        let process = Process {
            pid: -1,
            srvid: u64::MAX,
            here: true,
        };
        put_process(&process, &mut entries);
        for relay in [
            Relay::Message {
                srvid: 1,
                data: b"x",
            },
            Relay::Tunnel {
                id: 1,
                flags: 2,
                reqid: 3,
                data: b"",
            },
            Relay::Control {
                id: 1,
                opcode: 2,
                srvid: 3,
                flags: 4,
                data: b"data",
            },
            Relay::Reply {
                id: 1,
                status: -1,
                data: b"data",
                error: b"text",
            },
            Relay::Processes {
                anew: true,
                entries: &entries,
            },
            Relay::Database(b"db"),
        ] {
            let frame = relay.to_vec();
            assert!(frame[0] >= FIRST);
            assert_eq!(Relay::decode(&frame), Ok(relay));
            assert_eq!(cut(frame.clone()), [frame]);
        }
        assert_eq!(processes(&entries).collect::<Vec<_>>(), [process]);
        assert!(Relay::decode(&[PROCESSES, 1, 0]).is_err(), "half an entry");
        assert!(Relay::decode(&[0xFF]).is_err());
        assert!(Relay::decode(&[REPLY, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1]).is_err());
    }

    #[test]
    fn long_frames_travel_in_pieces() {
        let data: Vec<u8> = (0..3 * MAX_PIECE).map(|at| at as u8).collect();
        let whole = Relay::Message {
            srvid: 5,
            data: &data,
        }
        .to_vec();
        let pieces = cut(whole.clone());
        assert_eq!(pieces.len(), 4);
        let mut assembler = Assembler::default();
        let mut done = None;
        for piece in &pieces {
            assert!(done.is_none());
            assert!(piece.len() <= MAX_PIECE + 2);
            let Ok(Relay::Piece { last, data }) = Relay::decode(piece) else {
                panic!("no piece");
            };
            done = assembler.piece(last, data).unwrap();
        }
        assert!(done == Some(whole));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(relay) = Relay::decode(&bytes) {
                prop_assert!(Relay::decode(&relay.to_vec()) == Ok(relay));
            }
        }
    }
}
