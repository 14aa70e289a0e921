//! Framing, the common header, and every packet type (`spec/client-protocol.md` 1.3, 2, 3).

use super::codec::{Decode, DecodeError, Encode, Reader, put_blob, wire_struct};
use super::node;

/// First word behind the length: "BDTC" on a little-endian wire.
pub const MAGIC: u32 = 0x4354_4442;
/// Version of the protocol, the same in all Samba releases of interest.
pub const VERSION: u32 = 1;
/// Bytes of the common header.
pub const HEADER: usize = 32;
/// Longest packet that is taken in: the protocol has no bound, this one is invisible (1.3).
pub const MAX_PACKET: usize = 1 << 30;
/// Generation before the first recovery, and on an inactive node (2).
pub const INVALID_GENERATION: u32 = 1;

/// What stands at the front of a stream of packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Framed {
    /// Not a whole packet: this many bytes are needed in all.
    Incomplete(usize),
    /// A packet of this many bytes.
    Packet(usize),
    /// No stream of packets; the connection is to be closed.
    Broken,
}

/// Looks at the front of a stream. A length below 4 cannot be skipped and breaks the stream; one
/// below [`HEADER`] is a packet that [`Packet::decode`] refuses.
pub fn framed(bytes: &[u8]) -> Framed {
    let Some(length) = bytes.first_chunk::<4>() else {
        return Framed::Incomplete(4);
    };
    match u32::from_ne_bytes(*length) as usize {
        0..4 => Framed::Broken,
        length if length > MAX_PACKET => Framed::Broken,
        length if length > bytes.len() => Framed::Incomplete(length),
        length => Framed::Packet(length),
    }
}

/// The common header, without length, magic and version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// Current generation, in packets to clients; ignored in packets from clients.
    pub generation: u32,
    /// Receiver: a node number or one of [`node`].
    pub destnode: u32,
    /// Sender; ignored in packets from clients.
    pub srcnode: u32,
    /// Of the request, repeated in its reply.
    pub reqid: u32,
}

impl Header {
    /// A request of this node's client to its own daemon.
    pub const fn to_own(reqid: u32) -> Self {
        Self {
            generation: 0,
            destnode: node::CURRENT,
            srcnode: 0,
            reqid,
        }
    }
}

/// How a packet is filled up (1.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Padding {
    /// Not at all, as Samba does.
    Exact,
    /// To 8 bytes, and at least the C structure of its type, as daemon and tool do.
    Eight,
}

/// REQ_CALL: asks for a record (3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Call<'a> {
    /// What the caller wants beside.
    pub flags: CallFlags,
    /// Database.
    pub db_id: u32,
    /// One of [`CallId`]; others get a reply without data.
    pub call_id: u32,
    /// 0 from clients.
    pub hop_count: u32,
    /// The record's key.
    pub key: &'a [u8],
    /// Nothing in practice.
    pub data: &'a [u8],
}

bitflags::bitflags! {
    /// Flags of a [`Call`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct CallFlags: u32 {
        /// The record shall become local.
        const IMMEDIATE_MIGRATION = 0x1;
        /// The record may be deleted after the migration if it is empty.
        const VACUUM_MIGRATION = 0x2;
        /// A read-only copy is enough.
        const WANT_READONLY = 0x4;
        const _ = !0;
    }

    /// Flags of a [`Control`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct ControlFlags: u32 {
        /// No reply, not even on error.
        const NO_REPLY = 0x1;
        /// GET_PUBLIC_IPS: only addresses that could be hosted.
        const ONLY_AVAILABLE = 0x0001_0000;
        /// DB_ATTACH...: on behalf of recovery.
        const ATTACH_RECOVERY = 0x0002_0000;
        const _ = !0;
    }

    /// Flags of a [`Tunnel`] packet; the daemon carries them.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct TunnelFlags: u32 {
        /// A request.
        const REQUEST = 0x1;
        /// A reply.
        const REPLY = 0x2;
        /// No reply is wanted.
        const NO_REPLY = 0x10;
        const _ = !0;
    }
}

/// What a call answers with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum CallId {
    /// Nothing: the record is local when the reply comes.
    Null = 0xFF00_0001,
    /// The record's data without its header.
    Fetch = 0xFF00_0002,
    /// Header and data.
    FetchWithHeader = 0xFF00_0003,
}

impl CallId {
    /// By its number.
    pub const fn of(number: u32) -> Option<Self> {
        match number {
            0xFF00_0001 => Some(Self::Null),
            0xFF00_0002 => Some(Self::Fetch),
            0xFF00_0003 => Some(Self::FetchWithHeader),
            _ => None,
        }
    }
}

/// REPLY_CALL (3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyCall<'a> {
    /// 0 in all normal cases.
    pub status: i32,
    /// See [`CallId`].
    pub data: &'a [u8],
}

wire_struct! {
    /// Fixed part of [`Dmaster`].
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct DmasterFixed {
        /// Database.
        pub db_id: u32 => pad 4,
        /// Sequence number of the record.
        pub rsn: u64,
    }
}

/// REQ_DMASTER and REPLY_DMASTER, between CTDB's daemons only (3.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dmaster<'a> {
    /// Database and sequence number.
    pub fixed: DmasterFixed,
    /// New data master; REQ_DMASTER only.
    pub dmaster: Option<u32>,
    /// Key.
    pub key: &'a [u8],
    /// Data.
    pub data: &'a [u8],
    /// Record flags; 0 if the packet ends before them.
    pub flags: u32,
}

/// REPLY_ERROR (3.4).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyError<'a> {
    /// Why.
    pub status: i32,
    /// Text without its NUL.
    pub text: &'a [u8],
}

/// REQ_MESSAGE (3.5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message<'a> {
    /// Address.
    pub srvid: u64,
    /// Opaque.
    pub data: &'a [u8],
}

/// REQ_CONTROL (3.6); [`Request`](super::control::Request) decodes its payload.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Control<'a> {
    /// Number of the control.
    pub opcode: u32,
    /// Only for the controls that register something.
    pub srvid: u64,
    /// 0 from clients.
    pub client_id: u32,
    /// Flags.
    pub flags: ControlFlags,
    /// Payload.
    pub data: &'a [u8],
}

/// REPLY_CONTROL (3.7).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyControl<'a> {
    /// 0 success, -1 failure; some controls answer with it.
    pub status: i32,
    /// Payload.
    pub data: &'a [u8],
    /// Error text without NUL; may be absent.
    pub error: &'a [u8],
}

/// REQ_TUNNEL (3.9).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel<'a> {
    /// Tunnel.
    pub id: u64,
    /// Flags.
    pub flags: TunnelFlags,
    /// Opaque.
    pub data: &'a [u8],
}

/// The body of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Body<'a> {
    /// 0.
    Call(Call<'a>),
    /// 1.
    ReplyCall(ReplyCall<'a>),
    /// 2; between CTDB's daemons.
    Dmaster(Dmaster<'a>),
    /// 3; between CTDB's daemons.
    ReplyDmaster(Dmaster<'a>),
    /// 4.
    ReplyError(ReplyError<'a>),
    /// 5.
    Message(Message<'a>),
    /// 7.
    Control(Control<'a>),
    /// 8.
    ReplyControl(ReplyControl<'a>),
    /// 9; between CTDB's daemons.
    Keepalive {
        /// `major << 16 | minor`.
        version: u32,
        /// Seconds.
        uptime: u32,
    },
    /// 10.
    Tunnel(Tunnel<'a>),
}

/// A packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet<'a> {
    /// Common header.
    pub header: Header,
    /// Body.
    pub body: Body<'a>,
}

impl<'a> Packet<'a> {
    /// Reads one whole packet, as [`framed`] cut it. What follows the body is padding and ignored.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let length: u32 = reader.value()?;
        if length as usize != bytes.len() {
            return Err(DecodeError::Length);
        }
        let (magic, version): (u32, u32) = (reader.value()?, reader.value()?);
        let generation = reader.value()?;
        let operation: u32 = reader.value()?;
        let header = Header {
            generation,
            destnode: reader.value()?,
            srcnode: reader.value()?,
            reqid: reader.value()?,
        };
        if magic != MAGIC || version != VERSION {
            return Err(DecodeError::Protocol);
        }
        let body = match operation {
            0 => Body::Call(reader.value()?),
            1 => Body::ReplyCall(reader.value()?),
            2 => Body::Dmaster(dmaster(&mut reader, true)?),
            3 => Body::ReplyDmaster(dmaster(&mut reader, false)?),
            4 => Body::ReplyError(reader.value()?),
            5 => Body::Message(reader.value()?),
            7 => Body::Control(reader.value()?),
            8 => Body::ReplyControl(reader.value()?),
            9 => Body::Keepalive {
                version: reader.value()?,
                uptime: reader.value()?,
            },
            10 => Body::Tunnel(reader.value()?),
            other => return Err(DecodeError::Unknown(other)),
        };
        Ok(Self { header, body })
    }

    /// Appends the packet.
    pub fn encode(&self, padding: Padding, out: &mut Vec<u8>) {
        let start = out.len();
        out.reserve(HEADER + 64);
        0_u32.encode(out);
        MAGIC.encode(out);
        VERSION.encode(out);
        self.header.generation.encode(out);
        self.body.operation().encode(out);
        self.header.destnode.encode(out);
        self.header.srcnode.encode(out);
        self.header.reqid.encode(out);
        self.body.encode(out);
        if padding == Padding::Eight {
            let length = (out.len() - start).max(self.body.least());
            out.resize(start + length.next_multiple_of(8), 0);
        }
        let length = ((out.len() - start) as u32).to_ne_bytes();
        out[start..start + 4].copy_from_slice(&length);
    }

    /// The packet on its own.
    pub fn to_vec(&self, padding: Padding) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(padding, &mut out);
        out
    }
}

impl Body<'_> {
    /// Operation number (2.2).
    pub const fn operation(&self) -> u32 {
        match self {
            Self::Call(_) => 0,
            Self::ReplyCall(_) => 1,
            Self::Dmaster(_) => 2,
            Self::ReplyDmaster(_) => 3,
            Self::ReplyError(_) => 4,
            Self::Message(_) => 5,
            Self::Control(_) => 7,
            Self::ReplyControl(_) => 8,
            Self::Keepalive { .. } => 9,
            Self::Tunnel(_) => 10,
        }
    }

    /// Bytes of the C structure, which a padded packet is never shorter than (1.3).
    const fn least(&self) -> usize {
        match self {
            Self::Call(_) | Self::Dmaster(_) | Self::ReplyDmaster(_) | Self::Control(_) => 64,
            Self::ReplyCall(_) | Self::ReplyError(_) | Self::Message(_) | Self::ReplyControl(_) => {
                48
            }
            Self::Keepalive { .. } => 40,
            Self::Tunnel(_) => 56,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Call(call) => {
                call.flags.bits().encode(out);
                call.db_id.encode(out);
                call.call_id.encode(out);
                call.hop_count.encode(out);
                (call.key.len() as u32).encode(out);
                (call.data.len() as u32).encode(out);
                out.extend_from_slice(call.key);
                out.extend_from_slice(call.data);
            }
            Self::ReplyCall(reply) => {
                reply.status.encode(out);
                put_blob(reply.data, out);
            }
            Self::Dmaster(dmaster) | Self::ReplyDmaster(dmaster) => {
                dmaster.fixed.encode(out);
                if let Some(new) = dmaster.dmaster {
                    new.encode(out);
                }
                (dmaster.key.len() as u32).encode(out);
                (dmaster.data.len() as u32).encode(out);
                out.extend_from_slice(dmaster.key);
                out.extend_from_slice(dmaster.data);
                dmaster.flags.encode(out);
            }
            Self::ReplyError(error) => {
                error.status.encode(out);
                (error.text.len() as u32 + 1).encode(out);
                out.extend_from_slice(error.text);
                out.push(0);
            }
            Self::Message(message) => {
                message.srvid.encode(out);
                put_blob(message.data, out);
            }
            Self::Control(control) => {
                control.opcode.encode(out);
                0_u32.encode(out);
                control.srvid.encode(out);
                control.client_id.encode(out);
                control.flags.bits().encode(out);
                put_blob(control.data, out);
            }
            Self::ReplyControl(reply) => {
                reply.status.encode(out);
                (reply.data.len() as u32).encode(out);
                (reply.error.len() as u32).encode(out);
                out.extend_from_slice(reply.data);
                out.extend_from_slice(reply.error);
            }
            Self::Keepalive { version, uptime } => {
                version.encode(out);
                uptime.encode(out);
            }
            Self::Tunnel(tunnel) => {
                tunnel.id.encode(out);
                tunnel.flags.bits().encode(out);
                put_blob(tunnel.data, out);
            }
        }
    }
}

impl<'a> Decode<'a> for Call<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let flags = CallFlags::from_bits_retain(reader.value()?);
        let (db_id, call_id, hop_count) = (reader.value()?, reader.value()?, reader.value()?);
        let (key_length, data_length): (u32, u32) = (reader.value()?, reader.value()?);
        Ok(Self {
            flags,
            db_id,
            call_id,
            hop_count,
            key: reader.take(key_length as usize)?,
            data: reader.take(data_length as usize)?,
        })
    }
}

impl<'a> Decode<'a> for ReplyCall<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            status: reader.value()?,
            data: reader.blob()?,
        })
    }
}

fn dmaster<'a>(reader: &mut Reader<'a>, request: bool) -> Result<Dmaster<'a>, DecodeError> {
    let fixed = reader.value()?;
    let dmaster = request.then(|| reader.value()).transpose()?;
    let (key_length, data_length): (u32, u32) = (reader.value()?, reader.value()?);
    let key = reader.take(key_length as usize)?;
    let data = reader.take(data_length as usize)?;
    // Absent in packets that end here (3.3).
    let flags = reader.value().unwrap_or(0);
    Ok(Dmaster {
        fixed,
        dmaster,
        key,
        data,
        flags,
    })
}

impl<'a> Decode<'a> for ReplyError<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let status = reader.value()?;
        let text = reader.blob()?;
        Ok(Self {
            status,
            text: text.strip_suffix(&[0]).unwrap_or(text),
        })
    }
}

impl<'a> Decode<'a> for Message<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            srvid: reader.value()?,
            data: reader.blob()?,
        })
    }
}

impl<'a> Decode<'a> for Control<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let opcode = reader.value()?;
        reader.take(4)?;
        Ok(Self {
            opcode,
            srvid: reader.value()?,
            client_id: reader.value()?,
            flags: ControlFlags::from_bits_retain(reader.value()?),
            data: reader.blob()?,
        })
    }
}

impl<'a> Decode<'a> for ReplyControl<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let status = reader.value()?;
        let (data_length, error_length): (u32, u32) = (reader.value()?, reader.value()?);
        Ok(Self {
            status,
            data: reader.take(data_length as usize)?,
            error: reader.take(error_length as usize)?,
        })
    }
}

impl<'a> Decode<'a> for Tunnel<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: reader.value()?,
            flags: TunnelFlags::from_bits_retain(reader.value()?),
            data: reader.blob()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_cut_by_length_alone() {
        assert_eq!(framed(&[]), Framed::Incomplete(4));
        assert_eq!(framed(&[0, 0, 0]), Framed::Incomplete(4));
        for length in 0..4_u32 {
            assert_eq!(framed(&length.to_ne_bytes()), Framed::Broken);
        }
        assert_eq!(framed(&u32::MAX.to_ne_bytes()), Framed::Broken);
        assert_eq!(framed(&61_u32.to_ne_bytes()), Framed::Incomplete(61));
        let short = [4_u32.to_ne_bytes(), 60_u32.to_ne_bytes()].concat();
        assert_eq!(framed(&short), Framed::Packet(4));
        assert!(
            Packet::decode(&short[..4]).is_err(),
            "too short for a header"
        );
    }

    #[test]
    fn a_padded_packet_has_its_padded_length_and_least_size() {
        let packet = |body| Packet {
            header: Header::to_own(7),
            body,
        };
        let empty_tunnel = Body::Tunnel(Tunnel {
            id: 1,
            flags: TunnelFlags::empty(),
            data: &[],
        });
        let empty_call = Body::ReplyCall(ReplyCall {
            status: 0,
            data: &[],
        });
        let error = Body::ReplyError(ReplyError {
            status: 5,
            text: b"x",
        });
        for (body, exact, padded) in [
            (empty_tunnel, 48, 56),
            (empty_call, 40, 48),
            (error, 42, 48),
        ] {
            for (padding, length) in [(Padding::Exact, exact), (Padding::Eight, padded)] {
                let bytes = packet(body).to_vec(padding);
                assert_eq!(bytes.len(), length);
                assert_eq!(framed(&bytes), Framed::Packet(length));
                assert_eq!(Packet::decode(&bytes), Ok(packet(body)));
            }
        }
    }

    #[test]
    fn packets_between_daemons_survive_the_journey() {
        let request = Dmaster {
            fixed: DmasterFixed { db_id: 1, rsn: 2 },
            dmaster: Some(3),
            key: b"key",
            data: b"data",
            flags: 0x10000,
        };
        let reply = Dmaster {
            dmaster: None,
            ..request
        };
        let keepalive = Body::Keepalive {
            version: 0x0004_0011,
            uptime: 9,
        };
        for body in [Body::Dmaster(request), Body::ReplyDmaster(reply), keepalive] {
            let packet = Packet {
                header: Header::default(),
                body,
            };
            assert_eq!(Packet::decode(&packet.to_vec(Padding::Exact)), Ok(packet));
        }
        // Without the flags at the end they are 0.
        let mut bytes = Packet {
            header: Header::default(),
            body: Body::Dmaster(request),
        }
        .to_vec(Padding::Exact);
        let length = bytes.len() - 4;
        bytes.truncate(length);
        bytes[..4].copy_from_slice(&(length as u32).to_ne_bytes());
        let Ok(Packet {
            body: Body::Dmaster(cut),
            ..
        }) = Packet::decode(&bytes)
        else {
            panic!("no REQ_DMASTER");
        };
        assert_eq!(
            cut,
            Dmaster {
                flags: 0,
                ..request
            }
        );
    }

    #[test]
    fn foreign_packets_are_refused() {
        let packet = Packet {
            header: Header::to_own(1),
            body: Body::Message(Message {
                srvid: 1,
                data: b"x",
            }),
        };
        let good = packet.to_vec(Padding::Eight);
        for (at, error) in [
            (4, DecodeError::Protocol),
            (8, DecodeError::Protocol),
            (0, DecodeError::Length),
            (16, DecodeError::Unknown(5 ^ 0x40)),
            (40, DecodeError::Short { missing: 61 }),
        ] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(Packet::decode(&bad), Err(error), "at {at}");
        }
    }
}
