//! The event daemon's socket (`spec/client-protocol.md` 11.3; replies as Debian's ctdb 4.17 gives
//! them): u32 length, u32 version 0, u32 request number, then the body, in host byte order.

use crate::client::codec::{Decode, DecodeError, Encode, Reader};

/// Longest packet that is accepted or sent, in bytes: output of scripts is capped before.
pub const MAX_PACKET: usize = 1 << 20;
/// Length, version, request number.
pub const HEADER: usize = 12;
/// Most scripts in an answer.
pub const MAX_SCRIPTS: usize = 100;

const RUN: u32 = 1;
const STATUS: u32 = 2;
const SCRIPT: u32 = 3;

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// Run an event.
    Run {
        /// Component, such as `legacy`.
        component: String,
        /// Event name.
        event: String,
        /// Arguments, separated by blanks.
        args: String,
        /// Seconds for all scripts together; 0: no limit.
        timeout: u32,
        /// Scripts behind one that failed run too.
        all: bool,
    },
    /// The last run of an event.
    Status {
        /// Component.
        component: String,
        /// Event name.
        event: String,
    },
    /// Enable or disable a script.
    Script {
        /// Component.
        component: String,
        /// Script name without `.script`.
        script: String,
        /// Enable.
        enable: bool,
    },
}

/// One script of a run.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Script {
    /// Name without `.script`.
    pub name: String,
    /// Begin and end, seconds since 1970.
    pub begin: f64,
    /// End.
    pub end: f64,
    /// 0, an exit code, or a negative error number (-8: disabled, -110: timed out).
    pub result: i32,
    /// Its output.
    pub output: String,
}

/// The answer.
#[derive(Clone, PartialEq, Debug)]
pub enum Reply {
    /// To [`Request::Run`]: 0 or an error number.
    Run(i32),
    /// To [`Request::Status`]: the result of the run and its scripts, or an error number.
    Status(Result<(i32, Vec<Script>), i32>),
    /// To [`Request::Script`]: 0 or an error number.
    Script(i32),
}

/// What the bytes at the front of a buffer are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framed {
    /// More is needed.
    Incomplete,
    /// A packet of so many bytes.
    Packet(usize),
    /// A length that no packet has.
    Broken,
}

/// Looks at the front of what was read.
pub fn framed(bytes: &[u8]) -> Framed {
    let Some(length) = bytes.first_chunk() else {
        return Framed::Incomplete;
    };
    let length = u32::from_ne_bytes(*length) as usize;
    if !(HEADER..=MAX_PACKET).contains(&length) {
        Framed::Broken
    } else if bytes.len() < length {
        Framed::Incomplete
    } else {
        Framed::Packet(length)
    }
}

fn text(reader: &mut Reader<'_>) -> Result<String, DecodeError> {
    let bytes = reader.blob()?;
    match bytes.split_last() {
        None => Ok(String::new()),
        Some((0, text)) if !text.contains(&0) => Ok(String::from_utf8_lossy(text).into_owned()),
        Some(_) => Err(DecodeError::NoTerminator),
    }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    // An empty output is what the event daemon sends as no text at all.
    if text.is_empty() {
        0u32.encode(out);
        return;
    }
    // A NUL would end it early.
    let bytes: Vec<u8> = text.bytes().filter(|byte| *byte != 0).collect();
    (bytes.len() as u32 + 1).encode(out);
    out.extend(bytes);
    out.push(0);
}

fn packet(id: u32, body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = vec![0; HEADER];
    out[8..].copy_from_slice(&id.to_ne_bytes());
    body(&mut out);
    let length = (out.len() as u32).to_ne_bytes();
    out[..4].copy_from_slice(&length);
    out
}

fn header(reader: &mut Reader<'_>) -> Result<u32, DecodeError> {
    let (_length, version, id): (u32, u32, u32) =
        (reader.value()?, reader.value()?, reader.value()?);
    if version == 0 {
        Ok(id)
    } else {
        Err(DecodeError::Protocol)
    }
}

impl Request {
    /// Request number and request of a whole packet.
    pub fn decode(packet: &[u8]) -> Result<(u32, Self), DecodeError> {
        let mut reader = Reader::new(packet);
        let id = header(&mut reader)?;
        let command: u32 = reader.value()?;
        let component = text(&mut reader)?;
        let name = text(&mut reader)?;
        let request = match command {
            RUN => Self::Run {
                component,
                event: name,
                args: text(&mut reader)?,
                timeout: reader.value()?,
                all: reader.value::<u32>()? & 1 != 0,
            },
            STATUS => Self::Status {
                component,
                event: name,
            },
            SCRIPT => Self::Script {
                component,
                script: name,
                enable: reader.value::<u32>()? != 0,
            },
            other => return Err(DecodeError::Unknown(other)),
        };
        reader.end()?;
        Ok((id, request))
    }

    /// A whole packet.
    pub fn encode(&self, id: u32) -> Vec<u8> {
        packet(id, |out| match self {
            Self::Run {
                component,
                event,
                args,
                timeout,
                all,
            } => {
                RUN.encode(out);
                put_text(component, out);
                put_text(event, out);
                put_text(args, out);
                timeout.encode(out);
                u32::from(*all).encode(out);
            }
            Self::Status { component, event } => {
                STATUS.encode(out);
                put_text(component, out);
                put_text(event, out);
            }
            Self::Script {
                component,
                script,
                enable,
            } => {
                SCRIPT.encode(out);
                put_text(component, out);
                put_text(script, out);
                u32::from(*enable).encode(out);
            }
        })
    }
}

fn put_moment(seconds: f64, out: &mut Vec<u8>) {
    let whole = seconds.floor();
    (whole as i64).encode(out);
    (((seconds - whole) * 1e6) as i64).encode(out);
}

fn moment(reader: &mut Reader<'_>) -> Result<f64, DecodeError> {
    let (seconds, micro): (i64, i64) = (reader.value()?, reader.value()?);
    Ok(seconds as f64 + micro as f64 / 1e6)
}

impl Encode for Script {
    fn encode(&self, out: &mut Vec<u8>) {
        put_text(&self.name, out);
        put_moment(self.begin, out);
        put_moment(self.end, out);
        self.result.encode(out);
        put_text(&self.output, out);
    }
}

impl<'a> Decode<'a> for Script {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: text(reader)?,
            begin: moment(reader)?,
            end: moment(reader)?,
            result: reader.value()?,
            output: text(reader)?,
        })
    }
}

impl Reply {
    /// A whole packet. Scripts beyond [`MAX_SCRIPTS`] are left out.
    pub fn encode(&self, id: u32) -> Vec<u8> {
        packet(id, |out| match self {
            Self::Run(result) => {
                RUN.encode(out);
                result.encode(out);
            }
            Self::Script(result) => {
                SCRIPT.encode(out);
                result.encode(out);
            }
            Self::Status(Err(result)) => {
                STATUS.encode(out);
                result.encode(out);
            }
            Self::Status(Ok((summary, scripts))) => {
                STATUS.encode(out);
                0i32.encode(out);
                summary.encode(out);
                let scripts = &scripts[..scripts.len().min(MAX_SCRIPTS)];
                (scripts.len() as i32).encode(out);
                for script in scripts {
                    script.encode(out);
                }
            }
        })
    }

    /// Request number and reply of a whole packet.
    pub fn decode(packet: &[u8]) -> Result<(u32, Self), DecodeError> {
        let mut reader = Reader::new(packet);
        let id = header(&mut reader)?;
        let (command, result): (u32, i32) = (reader.value()?, reader.value()?);
        let reply = match (command, result) {
            (RUN, result) => Self::Run(result),
            (SCRIPT, result) => Self::Script(result),
            (STATUS, 0) => {
                let (summary, count): (i32, u32) = (reader.value()?, reader.value()?);
                // Name, two moments, result, output: 44 bytes at least.
                Self::Status(Ok((summary, reader.list(count, 44)?)))
            }
            (STATUS, result) => Self::Status(Err(result)),
            (other, _) => return Err(DecodeError::Unknown(other)),
        };
        reader.end()?;
        Ok((id, reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text
            .bytes()
            .filter_map(|byte| (byte as char).to_digit(16))
            .map(|digit| digit as u8)
            .collect();
        digits
            .chunks(2)
            .map(|pair| pair[0] << 4 | pair[1])
            .collect()
    }

    /// `spec/client-protocol.md` 11.3.
    #[test]
    fn the_measured_status_request() {
        let bytes = hex(
            "27000000 00000000 38ffff7f 02000000 07000000 6c6567616379 00 08000000 6d6f6e69746f72 00",
        );
        assert_eq!(framed(&bytes), Framed::Packet(39));
        let (id, request) = Request::decode(&bytes).unwrap();
        assert_eq!(id, 0x7fff_ff38);
        let wanted = Request::Status {
            component: "legacy".into(),
            event: "monitor".into(),
        };
        assert_eq!(request, wanted);
        assert_eq!(request.encode(id), bytes);
        let empty = hex("1c000000 00000000 38ffff7f 02000000 00000000 00000000 00000000");
        assert_eq!(Reply::Status(Ok((0, Vec::new()))).encode(id), empty);
    }

    /// What Debian's `ctdb-eventd` 4.17 answered on 2026-11-24 for one script that printed and
    /// succeeded and one that is disabled.
    #[test]
    fn measured_replies() {
        let bytes = hex(
            "83000000 00000000 07000000 02000000 00000000 00000000 02000000 \
             06000000 30302e6f6b00 3706066b00000000 39c6090000000000 3706066b00000000 a3d6090000000000 00000000 07000000 68656c6c6f0a00 \
             07000000 31302e6f666600 3706066b00000000 f6d6090000000000 3706066b00000000 fcd6090000000000 f8ffffff 00000000",
        );
        let (id, reply) = Reply::decode(&bytes).unwrap();
        let Reply::Status(Ok((0, scripts))) = &reply else {
            panic!("{reply:?}");
        };
        assert_eq!(
            (scripts[0].name.as_str(), scripts[0].output.as_str()),
            ("00.ok", "hello\n")
        );
        assert_eq!((scripts[1].result, scripts[1].output.as_str()), (-8, ""));
        let again = Reply::decode(&reply.encode(id)).unwrap().1;
        let Reply::Status(Ok((0, again))) = again else {
            panic!("{again:?}");
        };
        assert!((again[1].end - scripts[1].end).abs() < 2e-6);
        assert_eq!(
            Reply::Run(110).encode(7),
            hex("14000000 00000000 07000000 01000000 6e000000")
        );
        assert_eq!(
            Reply::Script(2).encode(7),
            hex("14000000 00000000 07000000 03000000 02000000")
        );
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        assert_eq!(framed(&[1, 0]), Framed::Incomplete);
        assert_eq!(framed(&11u32.to_ne_bytes()), Framed::Broken);
        assert_eq!(framed(&u32::MAX.to_ne_bytes()), Framed::Broken);
        let mut packet = Request::Status {
            component: "x".into(),
            event: "y".into(),
        }
        .encode(1);
        packet[16..20].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(Request::decode(&packet).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = framed(&bytes);
            let _ = Request::decode(&bytes);
            let _ = Reply::decode(&bytes);
        }
    }
}
