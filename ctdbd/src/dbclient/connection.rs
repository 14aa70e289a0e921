//! A connection to the client socket, blocking (`spec/client-protocol.md` 1 to 3).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ctdb_wire::client::codec::encode_to_vec;
use ctdb_wire::client::control::{Opcode, Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::packet::{
    Body, Call, CallFlags, CallId, Control, ControlFlags, Framed, Header, Message, Packet, Padding,
    framed,
};

use super::Error;

/// Messages that have come and nobody has asked for yet; beyond it the oldest goes. A traverse is
/// read as it comes, and nothing else is sent to this process in numbers.
const MAX_MAIL: usize = 65_536;

/// The answer to a control.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// 0 success; some controls answer with it.
    pub status: i32,
    /// Payload.
    pub data: Vec<u8>,
    /// What the daemon says about a failure; may be empty.
    pub text: String,
}

/// A connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// Bytes at the front of `buffer` that have been used.
    used: usize,
    limit: Duration,
    reqid: u32,
    mail: VecDeque<(u64, Vec<u8>)>,
}

/// What came, as far as somebody may wait for it.
enum Came {
    Answer(u32, Answer),
    Mail(u64, Vec<u8>),
    Other,
}

impl Connection {
    /// Connects. No answer may take longer than `limit`.
    pub fn open(socket: &Path, limit: Duration) -> Result<Self, Error> {
        let stream = UnixStream::connect(socket).map_err(|source| Error::Connect {
            path: socket.to_owned(),
            source,
        })?;
        // A daemon that reads nothing must not hold us up for ever either.
        stream
            .set_write_timeout(Some(limit.max(Duration::from_millis(1))))
            .map_err(|error| broken(&error))?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            used: 0,
            limit,
            reqid: 0,
            mail: VecDeque::new(),
        })
    }

    /// How long an answer may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Sets how long an answer may take.
    pub fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    fn send(&mut self, header: Header, body: Body<'_>) -> Result<(), Error> {
        let bytes = Packet { header, body }.to_vec(Padding::Eight);
        self.stream
            .write_all(&bytes)
            .map_err(|error| broken(&error))
    }

    /// The next packet; `None` when `until` has passed.
    fn receive(&mut self, until: Instant) -> Result<Option<Came>, Error> {
        loop {
            match framed(&self.buffer[self.used..]) {
                Framed::Packet(length) => {
                    let bytes = &self.buffer[self.used..self.used + length];
                    let came = came(bytes)?;
                    self.used += length;
                    return Ok(Some(came));
                }
                Framed::Broken => return Err(Error::Broken("what came is no packet".into())),
                Framed::Incomplete(_) => {}
            }
            self.buffer.drain(..self.used);
            self.used = 0;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream
                .set_read_timeout(Some(left))
                .map_err(|error| broken(&error))?;
            let mut bytes = [0; 16_384];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Error::Broken("the daemon ended it".into())),
                Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(broken(&error)),
            }
        }
    }

    fn answer_to(&mut self, control: &'static str, reqid: u32) -> Result<Answer, Error> {
        let limit = self.limit;
        let until = Instant::now() + limit;
        loop {
            match self.receive(until)? {
                None => return Err(Error::TimedOut { control, limit }),
                Some(Came::Answer(of, answer)) if of == reqid => return Ok(answer),
                Some(Came::Mail(srvid, data)) => {
                    if self.mail.len() >= MAX_MAIL {
                        self.mail.pop_front();
                    }
                    self.mail.push_back((srvid, data));
                }
                Some(Came::Answer(..) | Came::Other) => {}
            }
        }
    }

    /// A control and its answer. `name` is for the error.
    pub fn control(
        &mut self,
        name: &'static str,
        to: u32,
        srvid: u64,
        request: &Request<'_>,
    ) -> Result<Answer, Error> {
        self.raw_control(name, to, srvid, request.opcode(), &encode_to_vec(request))
    }

    /// A control whose payload is there already.
    pub fn raw_control(
        &mut self,
        name: &'static str,
        to: u32,
        srvid: u64,
        opcode: Opcode,
        data: &[u8],
    ) -> Result<Answer, Error> {
        self.reqid += 1;
        let reqid = self.reqid;
        let header = Header {
            destnode: to,
            ..Header::to_own(reqid)
        };
        let body = Body::Control(Control {
            opcode: opcode as u32,
            srvid,
            client_id: 0,
            flags: ControlFlags::empty(),
            data,
        });
        self.send(header, body)?;
        self.answer_to(name, reqid)
    }

    /// The payload of a control whose status is 0.
    pub fn good(
        &mut self,
        name: &'static str,
        to: u32,
        request: &Request<'_>,
    ) -> Result<Vec<u8>, Error> {
        let answer = self.control(name, to, 0, request)?;
        if answer.status == 0 {
            return Ok(answer.data);
        }
        Err(Error::Refused {
            control: name,
            status: answer.status,
            text: answer.text,
        })
    }

    /// As [`Self::good`], looked at as the reply that the control has.
    pub fn read<T>(
        &mut self,
        name: &'static str,
        to: u32,
        request: &Request<'_>,
        look: impl FnOnce(Reply<'_>) -> Option<T>,
    ) -> Result<T, Error> {
        let data = self.good(name, to, request)?;
        Reply::decode(request.opcode(), &data)
            .ok()
            .and_then(look)
            .ok_or_else(|| Error::Broken(format!("the answer to {name} is malformed")))
    }

    /// A call for a record; the answer's data.
    pub fn call(
        &mut self,
        db_id: u32,
        kind: CallId,
        flags: CallFlags,
        key: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.reqid += 1;
        let reqid = self.reqid;
        let body = Body::Call(Call {
            flags,
            db_id,
            call_id: kind as u32,
            hop_count: 0,
            key,
            data: b"",
        });
        self.send(Header::to_own(reqid), body)?;
        let answer = self.answer_to("CALL", reqid)?;
        if answer.status == 0 {
            return Ok(answer.data);
        }
        Err(Error::Refused {
            control: "CALL",
            status: answer.status,
            text: answer.text,
        })
    }

    /// Sends a message.
    pub fn message(&mut self, to: u32, srvid: u64, data: &[u8]) -> Result<(), Error> {
        let header = Header {
            destnode: to,
            ..Header::to_own(0)
        };
        self.send(header, Body::Message(Message { srvid, data }))
    }

    /// The next message to `srvid`; what comes for others is dropped.
    pub fn mail(&mut self, what: &'static str, srvid: u64) -> Result<Vec<u8>, Error> {
        let limit = self.limit;
        let until = Instant::now() + limit;
        loop {
            while let Some((to, data)) = self.mail.pop_front() {
                if to == srvid {
                    return Ok(data);
                }
            }
            match self.receive(until)? {
                None => {
                    return Err(Error::TimedOut {
                        control: what,
                        limit,
                    });
                }
                Some(Came::Mail(to, data)) if to == srvid => return Ok(data),
                Some(_) => {}
            }
        }
    }

    /// Registers an address at the own node.
    pub fn register(&mut self, srvid: u64) -> Result<(), Error> {
        let name = "REGISTER_SRVID";
        let answer = self.control(name, node::CURRENT, srvid, &Request::RegisterSrvid)?;
        if answer.status == 0 {
            return Ok(());
        }
        Err(Error::Refused {
            control: name,
            status: answer.status,
            text: answer.text,
        })
    }
}

fn broken(error: &std::io::Error) -> Error {
    Error::Broken(error.to_string())
}

fn came(bytes: &[u8]) -> Result<Came, Error> {
    let packet = Packet::decode(bytes).map_err(|error| Error::Broken(error.to_string()))?;
    let reqid = packet.header.reqid;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(match packet.body {
        Body::ReplyControl(reply) => Came::Answer(
            reqid,
            Answer {
                status: reply.status,
                data: reply.data.to_vec(),
                text: text(reply.error),
            },
        ),
        Body::ReplyCall(reply) => Came::Answer(
            reqid,
            Answer {
                status: reply.status,
                data: reply.data.to_vec(),
                text: String::new(),
            },
        ),
        Body::ReplyError(error) => Came::Answer(
            reqid,
            Answer {
                status: if error.status == 0 { -1 } else { error.status },
                data: Vec::new(),
                text: text(error.text),
            },
        ),
        Body::Message(message) => Came::Mail(message.srvid, message.data.to_vec()),
        _ => Came::Other,
    })
}
