//! A client's socket, watched for as little as possible.
//!
//! A Unix socket wakes whoever watches it for room at each packet that its peer takes, so that a
//! daemon which watched for room at all times woke once more for each of its answers. Room is
//! watched for only after the socket took nothing, through a descriptor of its own.

use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes of a read that needs no room of its own.
pub(super) const READ: usize = 16 * 1024;

thread_local! {
    /// What is read before it is known how much has come.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// A connected client.
pub(super) struct Stream {
    socket: AsyncFd<UnixStream>,
    /// The same socket, while it takes nothing.
    full: Option<AsyncFd<UnixStream>>,
}

impl Stream {
    /// Takes over what was accepted.
    pub(super) fn new(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let socket = watched(stream.into_std()?, Interest::READABLE)?;
        Ok(Self { socket, full: None })
    }

    /// Whether the socket takes nothing.
    pub(super) fn is_blocked(&self) -> bool {
        self.full.is_some()
    }

    /// Appends what has come, at most `room` bytes, and says how many; 0 at the end.
    pub(super) fn poll_read(
        &self,
        cx: &mut Context<'_>,
        into: &mut Vec<u8>,
        room: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.socket.poll_read_ready(cx))?;
            let read = guard.try_io(|socket| append(socket.get_ref(), into, room));
            if let Ok(read) = read {
                if read.as_ref().is_ok_and(|count| (1..room).contains(count)) {
                    // All that was there: what comes later is told again.
                    guard.clear_ready();
                }
                return Poll::Ready(read);
            }
        }
    }

    /// Ready when a full socket takes bytes again; never if it is not full.
    pub(super) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.full {
            Some(full) => full.poll_write_ready(cx).map_ok(drop),
            None => Poll::Pending,
        }
    }

    /// The socket takes bytes again.
    pub(super) fn unblock(&mut self) {
        self.full = None;
    }

    /// Writes as much as the socket takes. `WouldBlock` when it takes nothing; then there is
    /// [`Stream::poll_room`] to wait for.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.socket.get_ref().write(bytes);
        if written
            .as_ref()
            .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
        {
            let again = self.socket.get_ref().try_clone()?;
            self.full = Some(watched(again, Interest::WRITABLE)?);
        }
        written
    }
}

fn watched(socket: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    #[allow(
        deprecated,
        reason = "its successor is unsafe for types whose descriptor may change under tokio; \
                  a UnixStream's does not, and this crate has no unsafe code"
    )]
    AsyncFd::with_interest(socket, interest)
}

/// Reads once, at most `room` bytes.
fn append(mut socket: &UnixStream, into: &mut Vec<u8>, room: usize) -> io::Result<usize> {
    if room <= READ {
        return SCRATCH.with_borrow_mut(|scratch| {
            let count = socket.read(&mut scratch[..room])?;
            into.extend_from_slice(&scratch[..count]);
            Ok(count)
        });
    }
    let held = into.len();
    into.resize(held + room, 0);
    let read = socket.read(&mut into[held..]);
    into.truncate(held + read.as_ref().map_or(0, |count| *count));
    read
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    async fn read(stream: &Stream, into: &mut Vec<u8>, room: usize) -> io::Result<usize> {
        poll_fn(|cx| stream.poll_read(cx, into, room)).await
    }

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        (Stream::new(ours).unwrap(), theirs.into_std().unwrap())
    }

    #[tokio::test]
    async fn what_comes_is_read_whole_whatever_the_room() {
        for room in [1, 7, READ - 1, READ, READ + 1, 3 * READ] {
            let (stream, mut peer) = pair();
            let sent: Vec<u8> = (0..40_000_u32).flat_map(u32::to_le_bytes).collect();
            let (mut at, mut got) = (0, Vec::new());
            while got.len() < sent.len() {
                if at < sent.len() {
                    at += peer.write(&sent[at..]).unwrap_or(0);
                }
                let before = got.len();
                let count = read(&stream, &mut got, room).await.unwrap();
                assert!((1..=room).contains(&count), "{count} of {room}");
                assert_eq!(got.len(), before + count);
            }
            assert_eq!(got, sent);
            drop(peer);
            assert_eq!(read(&stream, &mut got, room).await.unwrap(), 0, "the end");
        }
    }

    #[tokio::test]
    async fn the_end_is_seen_behind_the_last_bytes() {
        let (stream, mut peer) = pair();
        peer.write_all(b"last").unwrap();
        drop(peer);
        let mut got = Vec::new();
        assert_eq!(read(&stream, &mut got, READ).await.unwrap(), 4);
        assert_eq!(read(&stream, &mut got, READ).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_reader_that_waits_is_woken() {
        let (stream, mut peer) = pair();
        for round in 0..3_u8 {
            let mut got = Vec::new();
            let late = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                peer.write_all(&[round]).unwrap();
            };
            let (count, ()) = tokio::join!(read(&stream, &mut got, READ), late);
            assert_eq!((count.unwrap(), got), (1, vec![round]));
        }
    }

    #[tokio::test]
    async fn a_full_socket_says_so_and_tells_when_it_takes_bytes_again() {
        let (mut stream, mut peer) = pair();
        for _ in 0..2 {
            assert!(!stream.is_blocked());
            let full = loop {
                if let Err(error) = stream.write(&[7; 4096]) {
                    break error;
                }
            };
            assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
            assert!(stream.is_blocked());
            let room = poll_fn(|cx| stream.poll_room(cx));
            let early = tokio::time::timeout(Duration::from_millis(20), room);
            assert!(early.await.is_err(), "nobody has read");
            let mut some = vec![0; 1 << 16];
            while peer.read(&mut some).is_ok() {}
            poll_fn(|cx| stream.poll_room(cx)).await.unwrap();
            stream.unblock();
        }
    }
}
