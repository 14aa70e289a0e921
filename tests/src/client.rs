//! A client of the client socket: what Samba's processes do, in the test's own words. Speaks to our
//! daemon and to Debian's alike, which shows that it speaks the protocol as it is.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ctdb_wire::client::codec::encode_to_vec;
use ctdb_wire::client::control::Request;
use ctdb_wire::client::node;
use ctdb_wire::client::packet::{
    Body, Call, CallFlags, CallId, Control, ControlFlags, Framed, Header, Message, Packet, Padding,
    Tunnel, TunnelFlags, framed,
};

/// Longest wait for an answer, unless told.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether a read that failed so is to be tried again. Signals come from the engine, which ends its
/// own waits by them.
fn is_passing(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}

/// The answer to a control.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Status.
    pub status: i32,
    /// Payload.
    pub data: Vec<u8>,
    /// Error text.
    pub error: String,
}

/// A message that came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mail {
    /// Its address.
    pub srvid: u64,
    /// Its data.
    pub data: Vec<u8>,
}

/// A tunnel packet that came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parcel {
    /// Sender, where the daemon tells.
    pub from: u32,
    /// Request number, where the daemon tells.
    pub reqid: u32,
    /// Its data.
    pub data: Vec<u8>,
}

/// A connection.
pub struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
    last_reqid: u32,
    mail: VecDeque<Mail>,
    parcels: VecDeque<Parcel>,
    padding: Padding,
    patience: Duration,
}

impl Client {
    /// Connects, and sends unpadded packets, as Samba does.
    pub fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            last_reqid: 0,
            mail: VecDeque::new(),
            parcels: VecDeque::new(),
            padding: Padding::Exact,
            patience: PATIENCE,
        })
    }

    /// How long it waits for an answer; 20 s unless told.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Whether the daemon has closed the connection. Does not wait.
    pub fn ended(&self) -> bool {
        use rustix::net::{RecvFlags, recv};
        let mut byte = [0_u8; 1];
        let look = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match recv(&self.stream, &mut byte, look) {
            Ok((_, count)) => count == 0,
            Err(error) => error != rustix::io::Errno::AGAIN,
        }
    }

    /// Pads packets, as CTDB's tool does.
    pub fn pad(&mut self) {
        self.padding = Padding::Eight;
    }

    /// The connection itself.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("writing")
    }

    fn send(&mut self, header: Header, body: Body<'_>) -> Result<()> {
        let bytes = Packet { header, body }.to_vec(self.padding);
        self.send_bytes(&bytes)
    }

    /// The next packet, looked at by `look`; `None` when `until` has passed.
    fn receive<T>(
        &mut self,
        until: Instant,
        look: impl FnOnce(&Packet<'_>) -> T,
    ) -> Result<Option<T>> {
        loop {
            match framed(&self.buffer) {
                Framed::Packet(length) => {
                    ensure!(length.is_multiple_of(8), "a packet of {length} bytes");
                    let seen = look(&Packet::decode(&self.buffer[..length])?);
                    self.buffer.drain(..length);
                    return Ok(Some(seen));
                }
                Framed::Broken => bail!("the daemon sent no packet"),
                Framed::Incomplete(_) => {}
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut bytes = [0; 16_384];
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("the daemon closed the connection"),
                Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
                Err(e) if is_passing(e.kind()) => {}
                Err(e) => return Err(e).context("reading"),
            }
        }
    }

    /// Takes the next packet; what is no reply to `reqid` is kept.
    fn look_for(&mut self, reqid: Option<u32>, until: Instant) -> Result<Option<Answer>> {
        enum Came {
            Answer(u32, Answer),
            Mail(Mail),
            Parcel(Parcel),
            Other,
        }
        while let Some(came) = self.receive(until, |packet| match packet.body {
            Body::ReplyControl(reply) => Came::Answer(
                packet.header.reqid,
                Answer {
                    status: reply.status,
                    data: reply.data.to_vec(),
                    error: String::from_utf8_lossy(reply.error).into_owned(),
                },
            ),
            Body::ReplyCall(reply) => Came::Answer(
                packet.header.reqid,
                Answer {
                    status: reply.status,
                    data: reply.data.to_vec(),
                    error: String::new(),
                },
            ),
            Body::Message(message) => Came::Mail(Mail {
                srvid: message.srvid,
                data: message.data.to_vec(),
            }),
            Body::Tunnel(tunnel) => Came::Parcel(Parcel {
                from: packet.header.srcnode,
                reqid: packet.header.reqid,
                data: tunnel.data.to_vec(),
            }),
            _ => Came::Other,
        })? {
            match came {
                Came::Answer(of, answer) if Some(of) == reqid => return Ok(Some(answer)),
                Came::Answer(..) | Came::Other => {}
                Came::Mail(mail) => {
                    self.mail.push_back(mail);
                    if reqid.is_none() {
                        return Ok(None);
                    }
                }
                Came::Parcel(parcel) => {
                    self.parcels.push_back(parcel);
                    if reqid.is_none() {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(None)
    }

    /// A control and its answer.
    pub fn control(&mut self, to: u32, srvid: u64, request: &Request<'_>) -> Result<Answer> {
        let data = encode_to_vec(request);
        self.raw_control(to, srvid, request.opcode() as u32, &data)
    }

    /// A control with any number and payload.
    pub fn raw_control(&mut self, to: u32, srvid: u64, opcode: u32, data: &[u8]) -> Result<Answer> {
        self.last_reqid += 1;
        let reqid = self.last_reqid;
        self.send_control(to, srvid, reqid, opcode, ControlFlags::empty(), data)?;
        self.look_for(Some(reqid), Instant::now() + self.patience)?
            .with_context(|| format!("control {opcode} to {to:#x} is not answered"))
    }

    /// A call for a record and its answer.
    pub fn call(
        &mut self,
        db_id: u32,
        kind: CallId,
        flags: CallFlags,
        key: &[u8],
    ) -> Result<Answer> {
        let reqid = self.send_call(db_id, kind, flags, key)?;
        self.look_for(Some(reqid), Instant::now() + self.patience)?
            .with_context(|| format!("the call for {key:02x?} of {db_id:#x} is not answered"))
    }

    /// Sends a call without waiting; its request number.
    pub fn send_call(
        &mut self,
        db_id: u32,
        kind: CallId,
        flags: CallFlags,
        key: &[u8],
    ) -> Result<u32> {
        self.last_reqid += 1;
        let reqid = self.last_reqid;
        let body = Body::Call(Call {
            flags,
            db_id,
            call_id: kind as u32,
            hop_count: 0,
            key,
            data: b"",
        });
        self.send(Header::to_own(reqid), body)?;
        Ok(reqid)
    }

    /// Waits for the answer to request number `reqid`; `None` if none comes within `limit`.
    pub fn answer(&mut self, reqid: u32, limit: Duration) -> Result<Option<Answer>> {
        self.look_for(Some(reqid), Instant::now() + limit)
    }

    /// A control that wants no answer.
    pub fn tell(&mut self, to: u32, request: &Request<'_>) -> Result<()> {
        let data = encode_to_vec(request);
        let opcode = request.opcode() as u32;
        self.send_control(to, 0, 0, opcode, ControlFlags::NO_REPLY, &data)
    }

    fn send_control(
        &mut self,
        to: u32,
        srvid: u64,
        reqid: u32,
        opcode: u32,
        flags: ControlFlags,
        data: &[u8],
    ) -> Result<()> {
        let header = Header {
            destnode: to,
            ..Header::to_own(reqid)
        };
        let body = Body::Control(Control {
            opcode,
            srvid,
            client_id: 0,
            flags,
            data,
        });
        self.send(header, body)
    }

    /// A control to the own node that has to succeed.
    pub fn own(&mut self, request: &Request<'_>) -> Result<Vec<u8>> {
        let answer = self.control(node::CURRENT, 0, request)?;
        ensure!(answer.status == 0, "{request:?}: {answer:?}");
        Ok(answer.data)
    }

    /// Registers an address.
    pub fn register(&mut self, srvid: u64) -> Result<()> {
        let answer = self.control(node::CURRENT, srvid, &Request::RegisterSrvid)?;
        ensure!(answer.status == 0, "registering {srvid:#x}: {answer:?}");
        Ok(())
    }

    /// Sends a message.
    pub fn message(&mut self, to: u32, srvid: u64, data: &[u8]) -> Result<()> {
        let header = Header {
            generation: 1,
            destnode: to,
            ..Header::to_own(0)
        };
        self.send(header, Body::Message(Message { srvid, data }))
    }

    /// The next message; `None` if none comes within `limit`.
    pub fn next_mail(&mut self, limit: Duration) -> Result<Option<Mail>> {
        let until = Instant::now() + limit;
        while self.mail.is_empty() && Instant::now() < until {
            self.look_for(None, until)?;
        }
        Ok(self.mail.pop_front())
    }

    /// Sends a tunnel packet.
    pub fn tunnel(
        &mut self,
        to: u32,
        reqid: u32,
        id: u64,
        flags: TunnelFlags,
        data: &[u8],
    ) -> Result<()> {
        let header = Header {
            destnode: to,
            ..Header::to_own(reqid)
        };
        self.send(header, Body::Tunnel(Tunnel { id, flags, data }))
    }

    /// The next tunnel packet; `None` if none comes within `limit`.
    pub fn next_parcel(&mut self, limit: Duration) -> Result<Option<Parcel>> {
        let until = Instant::now() + limit;
        while self.parcels.is_empty() && Instant::now() < until {
            self.look_for(None, until)?;
        }
        Ok(self.parcels.pop_front())
    }

    /// Waits until the daemon has closed the connection.
    pub fn wait_for_end(&mut self, limit: Duration) -> Result<()> {
        let until = Instant::now() + limit;
        let mut bytes = [0; 16_384];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the connection stands after {limit:?}");
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Ok(_) => {}
                Err(e) if is_passing(e.kind()) => {}
                Err(e) => return Err(e).context("reading"),
            }
        }
    }
}
