//! A small SMB client ([MS-SMB2], dialect 2.1): as much as it takes to be a guest who opens files,
//! locks ranges and sees how long that takes. Python's clients cost more time than what they measure.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::{Netns, Stamp};

/// The port.
const PORT: u16 = 445;
/// The whole of an answer; Samba's are far smaller for what is asked here.
const MOST_BYTES: usize = 1 << 20;
/// Fixed part of a message.
const HEADER: usize = 64;
/// `STATUS_PENDING`: the answer follows.
const PENDING: u32 = 0x103;
/// `STATUS_MORE_PROCESSING_REQUIRED`: the login has a second step.
const MORE: u32 = 0xC000_0016;

/// `STATUS_LOCK_NOT_GRANTED`.
pub const LOCK_NOT_GRANTED: u32 = 0xC000_0055;
/// `STATUS_SHARING_VIOLATION`.
pub const SHARING_VIOLATION: u32 = 0xC000_0043;
/// `STATUS_BAD_NETWORK_NAME`: there is no such share.
pub const BAD_NETWORK_NAME: u32 = 0xC000_00CC;

/// What may go wrong with a request.
#[derive(Debug, thiserror::Error)]
pub enum SmbError {
    /// The connection is gone, or nothing came in time.
    #[error("SMB connection: {0}")]
    Io(#[from] io::Error),
    /// The server's status.
    #[error("SMB status {0:#010X}")]
    Status(u32),
    /// An answer that is none.
    #[error("SMB answer without {0}")]
    Answer(&'static str),
}

impl SmbError {
    /// The server's status, if it gave one.
    pub fn status(&self) -> Option<u32> {
        match self {
            Self::Status(status) => Some(*status),
            Self::Io(_) | Self::Answer(_) => None,
        }
    }

    /// Whether only the time was up: the connection may be there.
    pub fn timed_out(&self) -> bool {
        let late = [io::ErrorKind::WouldBlock, io::ErrorKind::TimedOut];
        matches!(self, Self::Io(error) if late.contains(&error.kind()))
    }
}

type Result<T> = std::result::Result<T, SmbError>;

/// What others may do with a file while it is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Share {
    /// Nothing.
    Nothing,
    /// All.
    All,
}

/// A lock of a range, or its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lock {
    /// Exclusive; refused at once if it is not free.
    Try,
    /// Exclusive; waits until it is free.
    Wait,
    /// Gives it back.
    Unlock,
}

/// An open file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File([u8; 16]);

/// A guest's session with one share; its end is the connection's.
#[derive(Debug)]
pub struct Smb {
    stream: TcpStream,
    message: u64,
    session: u64,
    tree: u32,
}

struct Answer {
    status: u32,
    session: u64,
    tree: u32,
    /// From the header's end on.
    body: Vec<u8>,
}

impl Answer {
    fn bytes<const N: usize>(&self, at: usize, what: &'static str) -> Result<[u8; N]> {
        let found = self.body.get(at..at + N);
        found
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(SmbError::Answer(what))
    }
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A client that is no other of this host.
fn identity() -> [u8; 16] {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&Stamp::now().0.to_le_bytes());
    bytes[8..12].copy_from_slice(&std::process::id().to_le_bytes());
    bytes[12..].copy_from_slice(&COUNT.fetch_add(1, Ordering::Relaxed).to_le_bytes());
    bytes
}

/// NTLMSSP's first message, and the third of one without name and password.
fn anonymous(step: u32) -> Vec<u8> {
    // Unicode, NTLM, target wanted; anonymous.
    const FLAGS: u32 = 0x0008_8205;
    let mut blob = b"NTLMSSP\0".to_vec();
    blob.extend(step.to_le_bytes());
    if step == 1 {
        blob.extend(FLAGS.to_le_bytes());
        blob.extend([0; 16]);
        return blob;
    }
    // The answer to LM's challenge is one zero byte, all else is empty.
    for length in [1_u16, 0, 0, 0, 0, 0] {
        blob.extend(length.to_le_bytes());
        blob.extend(length.to_le_bytes());
        blob.extend(64_u32.to_le_bytes());
    }
    blob.extend((FLAGS | 0x800).to_le_bytes());
    blob.push(0);
    blob
}

impl Smb {
    /// A guest's session with `share`, from within `space`; each step has `patience`.
    pub fn connect(
        space: &Netns,
        address: IpAddr,
        share: &str,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        space.enter(|| Ok(Self::here(address, share, patience)?))
    }

    /// The same from the namespace of this thread.
    pub fn here(address: IpAddr, share: &str, patience: Duration) -> Result<Self> {
        Self::hasty(address, share, patience, patience)
    }

    /// The same, with another patience for the connection's establishment.
    pub fn hasty(
        address: IpAddr,
        share: &str,
        connect: Duration,
        patience: Duration,
    ) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::new(address, PORT), connect)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut smb = Self {
            stream,
            message: 0,
            session: 0,
            tree: 0,
        };
        smb.negotiate()?;
        smb.login()?;
        smb.tree(address, share)?;
        Ok(smb)
    }

    fn negotiate(&mut self) -> Result<()> {
        let mut body = Vec::new();
        for word in [36_u16, 1, 1, 0] {
            body.extend(word.to_le_bytes());
        }
        // No capabilities, no start time; another client each time, since Samba takes connections of
        // one client together and ends those of another node.
        body.extend([0; 4]);
        body.extend(identity());
        body.extend([0; 8]);
        body.extend(0x0210_u16.to_le_bytes());
        self.ask(0, &body).map(drop)
    }

    fn login(&mut self) -> Result<()> {
        for step in [1, 3] {
            let blob = anonymous(step);
            let mut body = vec![25, 0, 0, 1];
            body.extend([0; 8]);
            body.extend(88_u16.to_le_bytes());
            body.extend((blob.len() as u16).to_le_bytes());
            body.extend([0; 8]);
            body.extend(blob);
            let answer = self.exchange(1, &body)?;
            self.session = answer.session;
            match (step, answer.status) {
                (1, MORE) | (3, 0) => {}
                (_, status) => return Err(SmbError::Status(status)),
            }
        }
        Ok(())
    }

    fn tree(&mut self, address: IpAddr, share: &str) -> Result<()> {
        let path = utf16(&format!("\\\\{address}\\{share}"));
        let mut body = Vec::new();
        for word in [9_u16, 0, 72, path.len() as u16] {
            body.extend(word.to_le_bytes());
        }
        body.extend(path);
        self.tree = self.ask(3, &body)?.tree;
        Ok(())
    }

    /// Opens a file for reading and writing; makes it if there is none.
    pub fn open(&mut self, name: &str, share: Share) -> Result<File> {
        let name = utf16(name);
        let mut body = vec![57, 0, 0, 0];
        body.extend(2_u32.to_le_bytes());
        body.extend([0; 16]);
        let shared: u32 = match share {
            Share::Nothing => 0,
            Share::All => 7,
        };
        // Read and write data; no attributes; open or create a plain file.
        for word in [3_u32, 0, shared, 3, 0x40] {
            body.extend(word.to_le_bytes());
        }
        body.extend(120_u16.to_le_bytes());
        body.extend((name.len() as u16).to_le_bytes());
        body.extend([0; 8]);
        body.extend(name);
        self.ask(5, &body)?.bytes(64, "a file's number").map(File)
    }

    /// Closes it.
    pub fn close(&mut self, file: File) -> Result<()> {
        let mut body = vec![24, 0, 0, 0, 0, 0, 0, 0];
        body.extend(file.0);
        self.ask(6, &body).map(drop)
    }

    /// A range of it.
    pub fn lock(&mut self, file: File, offset: u64, length: u64, lock: Lock) -> Result<()> {
        let mut body = vec![48, 0, 1, 0, 0, 0, 0, 0];
        body.extend(file.0);
        body.extend(offset.to_le_bytes());
        body.extend(length.to_le_bytes());
        let flags: u32 = match lock {
            Lock::Try => 0x12,
            Lock::Wait => 0x2,
            Lock::Unlock => 0x4,
        };
        body.extend(flags.to_le_bytes());
        body.extend([0; 4]);
        self.ask(10, &body).map(drop)
    }

    /// Writes at the beginning.
    pub fn write(&mut self, file: File, data: &[u8]) -> Result<()> {
        let mut body = vec![49, 0, 112, 0];
        body.extend((data.len() as u32).to_le_bytes());
        body.extend([0; 8]);
        body.extend(file.0);
        body.extend([0; 16]);
        body.extend(data);
        self.ask(9, &body).map(drop)
    }

    /// Asks for nothing.
    pub fn echo(&mut self) -> Result<()> {
        self.ask(13, &[4, 0, 0, 0]).map(drop)
    }

    /// How long an answer is waited for from now on.
    pub fn set_patience(&mut self, patience: Duration) -> Result<()> {
        Ok(self.stream.set_read_timeout(Some(patience))?)
    }

    /// Waits until the server ends the connection; when it did, or nothing after `limit`.
    pub fn told_within(mut self, limit: Duration) -> Option<Instant> {
        let until = Instant::now() + limit;
        let mut some = [0; 512];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                return None;
            }
            match self.stream.read(&mut some) {
                Ok(0) => return Some(Instant::now()),
                Ok(_) => {}
                Err(error) if SmbError::Io(error.kind().into()).timed_out() => return None,
                Err(_) => return Some(Instant::now()),
            }
        }
    }

    fn ask(&mut self, command: u16, body: &[u8]) -> Result<Answer> {
        let answer = self.exchange(command, body)?;
        match answer.status {
            0 => Ok(answer),
            status => Err(SmbError::Status(status)),
        }
    }

    /// A request and its final answer.
    fn exchange(&mut self, command: u16, body: &[u8]) -> Result<Answer> {
        let number = self.message;
        self.message += 1;
        let length = HEADER + body.len();
        let mut packet = Vec::with_capacity(4 + length);
        packet.extend((length as u32).to_be_bytes());
        packet.extend(b"\xfeSMB\x40\0\0\0\0\0\0\0");
        packet.extend(command.to_le_bytes());
        // Credits; one request is under way at a time.
        packet.extend(32_u16.to_le_bytes());
        packet.extend([0; 8]);
        packet.extend(number.to_le_bytes());
        packet.extend([0; 4]);
        packet.extend(self.tree.to_le_bytes());
        packet.extend(self.session.to_le_bytes());
        packet.extend([0; 16]);
        packet.extend(body);
        self.stream.write_all(&packet)?;
        loop {
            let (answered, answer) = self.receive()?;
            // Of what waits the server says so first. Breaks have a number that none has.
            if answered == number && answer.status != PENDING {
                return Ok(answer);
            }
        }
    }

    fn receive(&mut self) -> Result<(u64, Answer)> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        if !(HEADER..=MOST_BYTES).contains(&length) {
            return Err(SmbError::Answer("a sound length"));
        }
        let mut packet = vec![0; length];
        self.stream.read_exact(&mut packet)?;
        let body = packet.split_off(HEADER);
        let header = Answer {
            status: 0,
            session: 0,
            tree: 0,
            body: packet,
        };
        let answer = Answer {
            status: u32::from_le_bytes(header.bytes(8, "a status")?),
            session: u64::from_le_bytes(header.bytes(40, "a session")?),
            tree: u32::from_le_bytes(header.bytes(36, "a tree")?),
            body,
        };
        Ok((u64::from_le_bytes(header.bytes(24, "a number")?), answer))
    }
}

#[cfg(test)]
mod tests {
    use super::anonymous;

    #[test]
    fn nobodys_login_has_its_fixed_form() {
        let first = anonymous(1);
        assert_eq!(
            (first.len(), &first[..12]),
            (32, &b"NTLMSSP\0\x01\0\0\0"[..])
        );
        let third = anonymous(3);
        // What is pointed to lies behind the fixed part.
        assert_eq!((third.len(), third[64]), (65, 0));
        assert_eq!(third[16..20], 64_u32.to_le_bytes());
    }
}
