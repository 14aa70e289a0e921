//! One blocking netlink socket with pipelined requests.

use std::io;
use std::time::Duration;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::SockRef;

/// Requests in flight at once: their answers fit the smallest receive buffer.
const WINDOW: usize = 64;
/// Receive and send buffer asked for, in bytes (a plain one stays if that is refused).
pub(crate) const BUFFER_BYTES: usize = 4 << 20;
/// Longest datagram of the kernel that is accepted, in bytes.
const DATAGRAM_BYTES: usize = 256 << 10;
/// The kernel answers within the call that sends; longer than this means that it never will.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A dump that changed under the reader is taken again so often.
const DUMP_TRIES: usize = 8;

const HEADER_BYTES: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A refusal: the kernel's error number and, where it gave any, its words.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) errno: i32,
    pub(crate) detail: Option<String>,
}

impl Refusal {
    pub(crate) fn io(&self) -> io::Error {
        io::Error::from_raw_os_error(self.errno)
    }
}

/// One message of a datagram; lengths were checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) body: &'a [u8],
}

impl Raw<'_> {
    /// For an acknowledgement or error: what it says about the request.
    pub(crate) fn verdict(&self) -> Option<Result<(), Refusal>> {
        if self.kind != NLMSG_ERROR {
            return None;
        }
        let code = self
            .body
            .first_chunk()
            .map_or(-libc::EPROTO, |c| i32::from_ne_bytes(*c));
        if code == 0 {
            return Some(Ok(()));
        }
        Some(Err(Refusal {
            errno: code.saturating_neg(),
            detail: self.detail(),
        }))
    }

    /// The kernel's words in an extended acknowledgement.
    fn detail(&self) -> Option<String> {
        if self.flags & NLM_F_ACK_TLVS == 0 {
            return None;
        }
        let request_bytes = if self.flags & NLM_F_CAPPED == 0 {
            u32::from_ne_bytes(*self.body.get(4..)?.first_chunk()?) as usize
        } else {
            HEADER_BYTES
        };
        let at = 4usize.checked_add(request_bytes.checked_next_multiple_of(4)?)?;
        attributes(self.body.get(at..)?)
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, text)| {
                String::from_utf8_lossy(text)
                    .trim_end_matches('\0')
                    .to_owned()
            })
    }
}

/// The messages of a datagram; ends at the first one whose length makes no sense.
pub(crate) fn split(mut datagram: &[u8]) -> impl Iterator<Item = Raw<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; HEADER_BYTES] = datagram.first_chunk()?;
        let [l0, l1, l2, l3, k0, k1, f0, f1, s0, s1, s2, s3, ..] = *header;
        let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
        let whole = datagram.get(..length)?;
        let body = whole.get(HEADER_BYTES..)?;
        datagram = datagram
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
        Some(Raw {
            kind: u16::from_ne_bytes([k0, k1]),
            flags: u16::from_ne_bytes([f0, f1]),
            seq: u32::from_ne_bytes([s0, s1, s2, s3]),
            body,
        })
    })
}

/// Type (without the nested and byte order bits) and value of each attribute; ends at the first
/// one whose length makes no sense.
pub(crate) fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *rest.first_chunk()?;
        let length = u16::from_ne_bytes([l0, l1]) as usize;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & 0x3fff, value))
    })
}

/// A netlink socket of the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: Socket,
    seq: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        enlarge_buffers(&socket);
        // Both only make answers shorter or more telling; old kernels have neither.
        let _ = socket.set_ext_ack(true);
        let _ = socket.set_cap_ack(true);
        SockRef::from(&socket).set_read_timeout(Some(ANSWER_TIMEOUT))?;
        Ok(Self {
            socket,
            seq: 0,
            buffer: Vec::with_capacity(DATAGRAM_BYTES),
        })
    }

    pub(crate) fn route() -> io::Result<Self> {
        Self::open(netlink_sys::protocols::NETLINK_ROUTE)
    }

    pub(crate) fn next_seq(&mut self) -> u32 {
        // 0 is what unrequested messages carry.
        self.seq = self.seq.checked_add(1).unwrap_or(1);
        self.seq
    }

    /// Sends all requests, several at a time, and returns the kernel's verdict on each.
    pub(crate) fn requests(
        &mut self,
        requests: Vec<(RouteNetlinkMessage, u16)>,
    ) -> io::Result<Vec<Result<(), Refusal>>> {
        let mut verdicts = Vec::with_capacity(requests.len());
        let mut bytes = Vec::new();
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            bytes.clear();
            let first = self.seq.wrapping_add(1);
            let mut count = 0;
            for (message, flags) in requests.by_ref().take(WINDOW) {
                let seq = self.next_seq();
                append(&mut bytes, message, flags | NLM_F_REQUEST | NLM_F_ACK, seq);
                count += 1;
            }
            self.socket.send(&bytes, 0)?;
            self.collect(first, count, &mut verdicts)?;
        }
        Ok(verdicts)
    }

    /// Reads the verdicts on `count` requests numbered from `first`.
    fn collect(
        &mut self,
        first: u32,
        count: usize,
        verdicts: &mut Vec<Result<(), Refusal>>,
    ) -> io::Result<()> {
        let start = verdicts.len();
        let mut seen = vec![false; count];
        let mut left = count;
        verdicts.extend((0..count).map(|_| Ok(())));
        while left > 0 {
            self.receive(0)?;
            for message in split(&self.buffer) {
                let index = message.seq.wrapping_sub(first) as usize;
                let (Some(verdict), Some(seen)) = (message.verdict(), seen.get_mut(index)) else {
                    continue;
                };
                if !std::mem::replace(seen, true) {
                    left -= 1;
                    verdicts[start + index] = verdict;
                }
            }
        }
        Ok(())
    }

    /// Dumps what `request` asks for; `each` sees every message of the answer and what was found
    /// before it. Taken again if the table changed meanwhile.
    pub(crate) fn dump<T>(
        &mut self,
        request: &RouteNetlinkMessage,
        mut each: impl FnMut(&mut Vec<T>, Raw<'_>),
    ) -> io::Result<Vec<T>> {
        let mut bytes = Vec::new();
        let mut found = Vec::new();
        for _ in 0..DUMP_TRIES {
            found.clear();
            bytes.clear();
            let seq = self.next_seq();
            append(&mut bytes, request.clone(), NLM_F_REQUEST | NLM_F_DUMP, seq);
            self.socket.send(&bytes, 0)?;
            if !self.read_dump(seq, |raw| each(&mut found, raw))? {
                return Ok(found);
            }
        }
        // Under constant change: the last reading, each entry of which was true at its time.
        Ok(found)
    }

    /// Reads a dump to its end; tells whether the kernel marked it as interrupted.
    pub(crate) fn read_dump(
        &mut self,
        seq: u32,
        mut each: impl FnMut(Raw<'_>),
    ) -> io::Result<bool> {
        let mut interrupted = false;
        loop {
            self.receive(0)?;
            for message in split(&self.buffer).filter(|m| m.seq == seq) {
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => {
                        let code = message
                            .body
                            .first_chunk()
                            .map_or(0, |c| i32::from_ne_bytes(*c));
                        if code < 0 {
                            return Err(io::Error::from_raw_os_error(code.saturating_neg()));
                        }
                        return Ok(interrupted);
                    }
                    NLMSG_ERROR => {
                        if let Some(Err(refusal)) = message.verdict() {
                            return Err(refusal.io());
                        }
                    }
                    _ => each(message),
                }
            }
        }
    }

    /// Asks for a dump with a message that no typed codec knows; [`Self::read_dump`] reads it.
    pub(crate) fn send_dump(&mut self, kind: u16, body: &[u8]) -> io::Result<u32> {
        self.send_raw(kind, NLM_F_REQUEST | NLM_F_DUMP, body)
    }

    /// Reads the one message that answers question `seq`, or the refusal.
    pub(crate) fn answer<T>(&mut self, seq: u32, read: impl Fn(Raw<'_>) -> T) -> io::Result<T> {
        loop {
            self.receive(0)?;
            if let Some(message) = split(&self.buffer).find(|m| m.seq == seq) {
                return match message.verdict() {
                    Some(Err(refusal)) => Err(refusal.io()),
                    _ => Ok(read(message)),
                };
            }
        }
    }

    /// Asks one question with such a message; [`Self::answer`] or [`Self::drain`] reads the answer.
    pub(crate) fn send_request(&mut self, kind: u16, body: &[u8]) -> io::Result<u32> {
        self.send_raw(kind, NLM_F_REQUEST, body)
    }

    fn send_raw(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<u32> {
        let seq = self.next_seq();
        let mut bytes = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(seq.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        self.send(&bytes)?;
        Ok(seq)
    }

    /// Sends raw bytes as one datagram.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.send(bytes, 0).map(drop)
    }

    /// All answers that wait already; does not block.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Raw<'_>)) -> io::Result<()> {
        loop {
            match self.receive(libc::MSG_DONTWAIT) {
                Ok(()) => split(&self.buffer).for_each(&mut each),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn receive(&mut self, flags: libc::c_int) -> io::Result<()> {
        loop {
            self.buffer.clear();
            let received = self.socket.recv(&mut self.buffer, flags | libc::MSG_TRUNC);
            match received {
                Ok(length) if length > self.buffer.len() => {
                    return Err(io::Error::other(
                        "datagram of the kernel longer than the buffer",
                    ));
                }
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && flags == 0 => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Large buffers where allowed: what is lost here costs a fresh dump.
pub(crate) fn enlarge_buffers(socket: &Socket) {
    let _ = setsockopt(socket, sockopt::RcvBufForce, &BUFFER_BYTES);
    let _ = setsockopt(socket, sockopt::SndBufForce, &BUFFER_BYTES);
}

fn append(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, seq: u32) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.header.sequence_number = seq;
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, seq: u32, body: &[u8]) -> Vec<u8> {
        let mut out = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        out.extend(kind.to_ne_bytes());
        out.extend((NLM_F_CAPPED | NLM_F_ACK_TLVS).to_ne_bytes());
        out.extend(seq.to_ne_bytes());
        out.extend([0; 4]);
        out.extend(body);
        out.resize(out.len().next_multiple_of(4), 0);
        out
    }

    #[test]
    fn refusal_with_words_is_read() {
        let mut body = (-libc::EEXIST).to_ne_bytes().to_vec();
        body.extend([0; HEADER_BYTES]);
        body.extend([9, 0, 1, 0]);
        body.extend(b"twice\0\0\0");
        let datagram = message(NLMSG_ERROR, 7, &body);
        let raw = split(&datagram).next().unwrap();
        let refusal = raw.verdict().unwrap().unwrap_err();
        assert_eq!((raw.seq, refusal.errno), (7, libc::EEXIST));
        assert_eq!(refusal.detail.as_deref(), Some("twice"));
    }

    #[test]
    fn lengths_that_lie_end_the_walk() {
        let mut datagram = message(NLMSG_ERROR, 1, &[0; 4]);
        datagram.extend(message(NLMSG_ERROR, 2, &[0; 4]));
        for length in [0u32, 3, 15, 21, u32::MAX] {
            let mut damaged = datagram.clone();
            damaged[20..24].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(split(&damaged).count(), 1, "length {length}");
        }
        for cut in 0..datagram.len() {
            assert!(split(&datagram[..cut]).count() <= 1);
        }
        for length in [0u16, 3, 200] {
            assert_eq!(
                attributes(&[
                    length.to_ne_bytes()[0],
                    length.to_ne_bytes()[1],
                    1,
                    0,
                    9,
                    9,
                    9,
                    9
                ])
                .count(),
                0
            );
        }
    }
}
