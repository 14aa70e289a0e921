//! An established link: the queue of frames that leave, and the loop that moves frames.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use ctdb_wire::{
    ids::{Incarnation, Pnn},
    peer::{self, FrameError, PeerFrame},
    relay,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::{mpsc, watch},
    task::coop,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    LinkEvent, Relays,
    crypt::{Crypt, CryptError, LENGTH, Nonce},
    handshake::ping,
};
use crate::bell::Bell;

/// Most frames that wait for one peer.
pub const MAX_QUEUED_FRAMES: usize = 1024;
/// Most bytes that wait for one peer.
pub const MAX_QUEUED_BYTES: usize = 8 << 20;
/// Most frames that clients' traffic may have waiting; the rest is for the cluster's own.
pub const MAX_RELAY_FRAMES: usize = MAX_QUEUED_FRAMES / 2;
/// Most bytes of them, before the last.
pub const MAX_RELAY_BYTES: usize = MAX_QUEUED_BYTES / 4;
/// Frames leave in writes of about this size, when several wait.
const BATCH: usize = 128 * 1024;
/// Bytes asked for in one read.
const READ: usize = 64 * 1024;

/// Why a link ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DownReason {
    /// The peer closed the stream; proves nothing about its right (`authority.md` rule 19).
    #[error("the peer closed the connection")]
    Closed,
    /// The peer left in order.
    #[error("the peer said goodbye")]
    Goodbye,
    /// Nothing was received for the idle time-out.
    #[error("nothing was received for {0:?}")]
    Silent(Duration),
    /// The system ended the connection.
    #[error("the connection failed: {0}")]
    Io(io::ErrorKind),
    /// Frames for the peer piled up to a bound; they are state that is repeated on the next link.
    #[error("more than {MAX_QUEUED_FRAMES} frames or {MAX_QUEUED_BYTES} bytes waited for the peer")]
    QueueFull,
    /// A newer connection of the same peer took its place.
    #[error("replaced by a newer connection of the same peer")]
    Replaced,
    /// Bytes that are no frame.
    #[error("{0}")]
    Crypt(#[from] CryptError),
    /// A frame that does not decode.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A frame of clients' traffic that does not decode.
    #[error("a frame of clients' traffic cannot be decoded")]
    Relay,
    /// The node left the list, or changed its address.
    #[error("the node is not in the nodes list any more")]
    Removed,
    /// [`TransportHandle::close`](super::TransportHandle::close).
    #[error("closed by this node")]
    Requested,
    /// This daemon stops.
    #[error("this node shuts down")]
    Shutdown,
}

/// Byte and frame counts of the links with one peer.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Frames sent.
    pub frames_out: AtomicU64,
    /// Bytes sent.
    pub bytes_out: AtomicU64,
    /// Frames received.
    pub frames_in: AtomicU64,
    /// Bytes received.
    pub bytes_in: AtomicU64,
}

/// Timing of links.
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// A handshake that takes longer is refused.
    pub handshake: Duration,
    /// A TCP connection that takes longer to open is given up.
    pub connect: Duration,
    /// Pause between two pings.
    pub ping: Duration,
    /// A link without a received byte for this long is closed.
    pub idle: Duration,
    /// First pause before dialing again; it doubles up to `backoff_max`.
    pub backoff_min: Duration,
    /// Longest pause before dialing again.
    pub backoff_max: Duration,
    /// How long a shutdown waits for its goodbyes to leave.
    pub flush: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(2),
            connect: Duration::from_secs(1),
            ping: Duration::from_secs(1),
            idle: Duration::from_secs(5),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            flush: Duration::from_secs(1),
        }
    }
}

#[derive(Debug, Default)]
struct Waiting {
    frames: VecDeque<Arc<[u8]>>,
    bytes: usize,
    /// No frame is taken any more; when the queue is empty the stream is closed.
    finishing: bool,
    /// A relay frame was refused since the queue was last short enough.
    refused: bool,
    /// The link is ended.
    closed: bool,
}

/// What became of a relay frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Relayed {
    /// It is queued.
    Queued,
    /// Too much waits; [`Relays::room`](super::Relays::room) will say when to try again.
    Full,
    /// There is no link.
    NoLink,
}

/// The queue of one link, shared by those who send and the link's loop.
#[derive(Debug)]
pub struct Outgoing {
    waiting: Mutex<Waiting>,
    /// A frame waits, or the link is ended.
    more: Bell,
    closed: watch::Sender<Option<DownReason>>,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self {
            waiting: Mutex::default(),
            more: Bell::default(),
            closed: watch::Sender::new(None),
        }
    }
}

impl Outgoing {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues an encoded frame. At the bound the link is closed. False if it will not be sent.
    pub fn push(&self, frame: Arc<[u8]>) -> bool {
        let mut waiting = self.waiting();
        if waiting.finishing || waiting.closed {
            return false;
        }
        if waiting.frames.len() >= MAX_QUEUED_FRAMES
            || waiting.bytes + frame.len() > MAX_QUEUED_BYTES
        {
            drop(waiting);
            self.close(DownReason::QueueFull);
            return false;
        }
        waiting.bytes += frame.len();
        waiting.frames.push_back(frame);
        drop(waiting);
        self.more.ring();
        true
    }

    /// Queues a frame of clients' traffic, if it leaves room for the cluster's own.
    pub fn push_relay(&self, frame: &Arc<[u8]>) -> Relayed {
        let mut waiting = self.waiting();
        if waiting.finishing || waiting.closed {
            return Relayed::NoLink;
        }
        if waiting.frames.len() >= MAX_RELAY_FRAMES || waiting.bytes >= MAX_RELAY_BYTES {
            waiting.refused = true;
            return Relayed::Full;
        }
        waiting.bytes += frame.len();
        waiting.frames.push_back(Arc::clone(frame));
        drop(waiting);
        self.more.ring();
        Relayed::Queued
    }

    /// Moves what leaves with the next write to `batch`, and says whether nothing more will come and
    /// whether relay frames are to be told that there is room again; `None` if the link is ended.
    fn take(&self, batch: &mut Vec<Arc<[u8]>>) -> Option<(bool, bool)> {
        let mut waiting = self.waiting();
        if waiting.closed {
            return None;
        }
        let mut bytes = 0;
        while bytes < BATCH
            && let Some(frame) = waiting.frames.pop_front()
        {
            bytes += frame.len();
            waiting.bytes -= frame.len();
            batch.push(frame);
        }
        let room = waiting.refused
            && waiting.frames.len() < MAX_RELAY_FRAMES / 2
            && waiting.bytes < MAX_RELAY_BYTES / 2;
        waiting.refused &= !room;
        Some((waiting.finishing, room))
    }

    /// Frames and bytes that wait.
    pub fn depth(&self) -> (usize, usize) {
        let waiting = self.waiting();
        (waiting.frames.len(), waiting.bytes)
    }

    /// Ends the link now; what waits is dropped. The first reason counts.
    pub fn close(&self, reason: DownReason) {
        self.waiting().closed = true;
        self.closed.send_if_modified(|closed| {
            let first = closed.is_none();
            if first {
                *closed = Some(reason);
            }
            first
        });
        self.more.ring();
    }

    /// Queues `last` and ends the link when everything has left.
    pub fn finish(&self, last: Arc<[u8]>) {
        let mut waiting = self.waiting();
        waiting.bytes += last.len();
        waiting.frames.push_back(last);
        waiting.finishing = true;
        drop(waiting);
        self.more.ring();
    }

    /// Writes all of `wire`, unless the link is ended meanwhile.
    async fn write<W>(&self, writer: &mut W, wire: &[u8]) -> Result<(), DownReason>
    where
        W: AsyncWrite + Unpin,
    {
        let mut at = 0;
        while at < wire.len() {
            let count = poll_fn(|cx| {
                if let Poll::Ready(written) = Pin::new(&mut *writer).poll_write(cx, &wire[at..]) {
                    return Poll::Ready(written.map_err(|error| DownReason::Io(error.kind())));
                }
                // Frames that are queued meanwhile are found afterwards.
                while self.more.poll(cx).is_ready() {
                    if let Some(reason) = self.close_reason() {
                        return Poll::Ready(Err(reason));
                    }
                }
                Poll::Pending
            });
            match count.await? {
                0 => return Err(DownReason::Io(io::ErrorKind::WriteZero)),
                count => at += count,
            }
        }
        Ok(())
    }

    /// The reason that it was closed for, if it was.
    pub fn close_reason(&self) -> Option<DownReason> {
        self.closed.borrow().clone()
    }

    /// Waits for [`Outgoing::close`].
    pub async fn closed(&self) -> DownReason {
        let mut receiver = self.closed.subscribe();
        match receiver.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or(DownReason::Closed),
            // The sender is in self.
            Err(_) => DownReason::Closed,
        }
    }
}

/// A timer that one task waits for; while it has not run out it costs a look.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    registered: bool,
}

impl Timer {
    fn at(at: Instant) -> Self {
        Self {
            sleep: Box::pin(sleep_until(at)),
            registered: false,
        }
    }

    fn reset(&mut self, at: Instant) {
        self.sleep.as_mut().reset(at);
        self.registered = false;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.registered && !self.sleep.is_elapsed() {
            return Poll::Pending;
        }
        // Without budget it is not registered, and the task comes again at once.
        self.registered = coop::has_budget_remaining();
        self.sleep.as_mut().poll(cx)
    }
}

/// What the loop of a link needs.
pub struct Link {
    /// The peer.
    pub peer: Pnn,
    /// Its life.
    pub incarnation: Incarnation,
    /// Encryption.
    pub crypt: Crypt,
    /// Numbers of sent messages.
    pub sent: Nonce,
    /// Numbers of received messages.
    pub received: Nonce,
    /// Queue.
    pub outgoing: Arc<Outgoing>,
    /// Counters.
    pub traffic: Arc<Traffic>,
    /// Where frames go.
    pub events: mpsc::Sender<LinkEvent>,
    /// Where those of clients' traffic go.
    pub relays: Arc<dyn Relays>,
    /// Timing.
    pub timings: Timings,
}

impl Link {
    /// Moves frames until the link ends, and says why it did.
    pub async fn run<R, W>(self, reader: R, writer: W) -> DownReason
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let Self {
            crypt,
            outgoing,
            traffic,
            timings,
            ..
        } = &self;
        // What ends the link is seen by the sending side.
        let (sent, received) = (self.sent.clone(), self.received.clone());
        // In random order: a busy receiver would use up the task's budget before each send.
        tokio::select! {
            reason = self.receive(reader, crypt, received) => reason,
            reason = self.send(writer, crypt, sent, outgoing, traffic, *timings) => reason,
        }
    }

    async fn receive<R>(&self, mut reader: R, crypt: &Crypt, mut nonce: Nonce) -> DownReason
    where
        R: AsyncRead + Unpin,
    {
        let mut buffer: Vec<u8> = Vec::with_capacity(READ);
        let mut plain = Vec::new();
        let mut needed = LENGTH;
        let mut heard = Instant::now();
        let mut silence = Timer::at(heard + self.timings.idle);
        loop {
            // A frame's room is taken as its bytes arrive, at most doubling.
            if buffer.capacity() - buffer.len() < READ / 4 {
                buffer.reserve(READ);
            }
            let read = poll_fn(|cx| {
                if let Poll::Ready(read) = pin!(reader.read_buf(&mut buffer)).poll(cx) {
                    return Poll::Ready(Some(read));
                }
                silence.poll(cx).map(|()| None)
            });
            let Some(read) = read.await else {
                // It is not set anew with each read.
                if heard.elapsed() >= self.timings.idle {
                    return DownReason::Silent(self.timings.idle);
                }
                silence.reset(heard + self.timings.idle);
                continue;
            };
            heard = Instant::now();
            match read {
                Err(error) => return DownReason::Io(error.kind()),
                Ok(0) => return DownReason::Closed,
                Ok(count) => {
                    self.traffic
                        .bytes_in
                        .fetch_add(count as u64, Ordering::Relaxed);
                }
            }
            if buffer.len() < needed {
                continue;
            }
            let mut at = 0;
            loop {
                let rest = &buffer[at..];
                let Some((length, rest)) = rest.split_first_chunk::<LENGTH>() else {
                    needed = LENGTH;
                    break;
                };
                let length = match crypt.check_length(*length) {
                    Ok(length) => length,
                    Err(error) => return error.into(),
                };
                let Some(wire) = rest.get(..length) else {
                    needed = LENGTH + length;
                    break;
                };
                let bytes = match crypt.open(&mut nonce, wire, &mut plain) {
                    Ok(bytes) => bytes,
                    Err(error) => return error.into(),
                };
                at += LENGTH + length;
                self.traffic.frames_in.fetch_add(1, Ordering::Relaxed);
                if bytes.first().is_some_and(|first| *first >= relay::FIRST) {
                    if !self.relays.frame(self.peer, bytes) {
                        return DownReason::Relay;
                    }
                    continue;
                }
                let frame = match peer::decode(bytes) {
                    Ok(frame) => frame,
                    Err(error) => return error.into(),
                };
                if frame == PeerFrame::Ping {
                    continue;
                }
                let goodbye = frame == PeerFrame::Goodbye;
                let event = LinkEvent::Frame {
                    pnn: self.peer,
                    incarnation: self.incarnation,
                    frame,
                };
                if self.events.send(event).await.is_err() {
                    return DownReason::Shutdown;
                }
                if goodbye {
                    return DownReason::Goodbye;
                }
            }
            buffer.drain(..at);
            if buffer.is_empty() && buffer.capacity() > 4 * READ {
                buffer.shrink_to(READ);
                plain = Vec::new();
            }
        }
    }

    async fn send<W>(
        &self,
        mut writer: W,
        crypt: &Crypt,
        mut nonce: Nonce,
        outgoing: &Outgoing,
        traffic: &Traffic,
        timings: Timings,
    ) -> DownReason
    where
        W: AsyncWrite + Unpin,
    {
        let ping = ping();
        let mut pings = Timer::at(Instant::now() + timings.ping);
        let mut batch = Vec::new();
        let mut wire = Vec::new();
        loop {
            let Some((finishing, room)) = outgoing.take(&mut batch) else {
                return outgoing.closed().await;
            };
            // They are queued behind what is sent now.
            if room {
                self.relays.room(self.peer);
            }
            if batch.is_empty() && finishing {
                // The peer closes when it has read the goodbye; that ends the receiving loop. Closing
                // first could reset the connection under it.
                let finish = async {
                    let _ = writer.shutdown().await;
                    tokio::time::sleep(timings.flush).await;
                };
                tokio::select! {
                    reason = outgoing.closed() => return reason,
                    () = finish => return DownReason::Shutdown,
                }
            }
            let mut frames = batch.len() as u64;
            if batch.is_empty() {
                let ping_due = poll_fn(|cx| {
                    if outgoing.more.poll(cx).is_ready() {
                        return Poll::Ready(false);
                    }
                    pings.poll(cx).map(|()| true)
                });
                if !ping_due.await {
                    continue;
                }
                pings.reset(Instant::now() + timings.ping);
                crypt.append(&mut nonce, &ping, &mut wire);
                frames = 1;
            }
            for frame in batch.drain(..) {
                crypt.append(&mut nonce, &frame, &mut wire);
            }
            if let Err(reason) = outgoing.write(&mut writer, &wire).await {
                return reason;
            }
            traffic.frames_out.fetch_add(frames, Ordering::Relaxed);
            traffic
                .bytes_out
                .fetch_add(wire.len() as u64, Ordering::Relaxed);
            wire.clear();
            wire.shrink_to(2 * BATCH);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::crypt::tests::ends, *};
    use ctdb_wire::peer::{HolderState, MAX_FRAME};
    use tokio::io::{DuplexStream, duplex, split};

    fn frame(bytes: usize) -> Arc<[u8]> {
        vec![0; bytes].into()
    }

    #[test]
    fn the_queue_closes_the_link_at_either_bound() {
        let queue = Outgoing::default();
        for _ in 0..MAX_QUEUED_FRAMES {
            assert!(queue.push(frame(1)));
        }
        assert_eq!(queue.depth(), (MAX_QUEUED_FRAMES, MAX_QUEUED_FRAMES));
        assert!(!queue.push(frame(1)));
        assert_eq!(queue.close_reason(), Some(DownReason::QueueFull));

        let queue = Outgoing::default();
        for _ in 0..MAX_QUEUED_BYTES / MAX_FRAME {
            assert!(queue.push(frame(MAX_FRAME)));
        }
        assert!(!queue.push(frame(1)));
        queue.close(DownReason::Replaced);
        assert_eq!(
            queue.close_reason(),
            Some(DownReason::QueueFull),
            "the first reason counts"
        );
        assert!(!queue.push(frame(1)));
    }

    #[test]
    fn clients_traffic_leaves_room_for_the_clusters_own() {
        let queue = Outgoing::default();
        for _ in 0..MAX_RELAY_FRAMES {
            assert_eq!(queue.push_relay(&frame(1)), Relayed::Queued);
        }
        assert_eq!(queue.push_relay(&frame(1)), Relayed::Full);
        assert!(queue.push(frame(1)));
        assert_eq!(queue.close_reason(), None);
        let queue = Outgoing::default();
        assert_eq!(queue.push_relay(&frame(MAX_RELAY_BYTES)), Relayed::Queued);
        assert_eq!(queue.push_relay(&frame(1)), Relayed::Full);
        queue.close(DownReason::Requested);
        assert_eq!(queue.push_relay(&frame(1)), Relayed::NoLink);
    }

    struct End {
        outgoing: Arc<Outgoing>,
        events: mpsc::Receiver<LinkEvent>,
        task: tokio::task::JoinHandle<DownReason>,
    }

    fn start(stream: DuplexStream, crypt: Crypt, timings: Timings) -> End {
        let (sender, events) = mpsc::channel(4);
        let outgoing = Arc::new(Outgoing::default());
        let link = Link {
            peer: Pnn::new(1).unwrap(),
            incarnation: Incarnation(1),
            crypt,
            sent: Nonce::default(),
            received: Nonce::default(),
            outgoing: Arc::clone(&outgoing),
            traffic: Arc::default(),
            events: sender,
            relays: Arc::new(super::super::NoRelays),
            timings,
        };
        let (reader, writer) = split(stream);
        End {
            outgoing,
            events,
            task: tokio::spawn(link.run(reader, writer)),
        }
    }

    fn encoded(frame: &PeerFrame) -> Arc<[u8]> {
        peer::encode(frame).unwrap().into()
    }

    #[tokio::test]
    async fn frames_arrive_in_order_and_goodbye_ends_both_sides() {
        let (a, b) = duplex(1000);
        let (crypt_a, crypt_b) = ends();
        let a = start(a, crypt_a, Timings::default());
        let mut b = start(b, crypt_b, Timings::default());
        let big = PeerFrame::State(HolderState {
            failed: vec![("10.0.0.1".parse().unwrap(), "x".repeat(200_000))],
            ..HolderState::default()
        });
        let frames = [PeerFrame::State(HolderState::default()), big];
        for frame in &frames {
            assert!(a.outgoing.push(encoded(frame)));
        }
        a.outgoing.finish(encoded(&PeerFrame::Goodbye));
        assert!(!a.outgoing.push(frame(1)));
        for expected in frames.into_iter().chain([PeerFrame::Goodbye]) {
            let Some(LinkEvent::Frame { frame, .. }) = b.events.recv().await else {
                panic!("no frame");
            };
            assert!(frame == expected);
        }
        assert_eq!(b.task.await.unwrap(), DownReason::Goodbye);
        assert_eq!(a.task.await.unwrap(), DownReason::Closed);
    }

    #[tokio::test(start_paused = true)]
    async fn pings_keep_a_link_and_silence_ends_it() {
        let (a, b) = duplex(1000);
        let (crypt_a, crypt_b) = ends();
        let a = start(a, crypt_a, Timings::default());
        let b = start(b, crypt_b, Timings::default());
        tokio::time::sleep(Duration::from_mins(1)).await;
        assert!(!a.task.is_finished() && !b.task.is_finished());
        a.outgoing.close(DownReason::Requested);
        assert_eq!(a.task.await.unwrap(), DownReason::Requested);
        // Its ping may find the end before its read does.
        let reason = b.task.await.unwrap();
        let broken = DownReason::Io(io::ErrorKind::BrokenPipe);
        assert!(reason == DownReason::Closed || reason == broken, "{reason}");

        let (a, _kept_open) = duplex(1000);
        let a = start(a, ends().0, Timings::default());
        assert_eq!(
            a.task.await.unwrap(),
            DownReason::Silent(Duration::from_secs(5))
        );
    }

    #[tokio::test]
    async fn an_endless_frame_ends_the_link_before_it_is_taken_in() {
        let (a, mut raw) = duplex(1000);
        let a = start(a, ends().0, Timings::default());
        raw.write_all(&u32::MAX.to_le_bytes()).await.unwrap();
        assert_eq!(
            a.task.await.unwrap(),
            DownReason::Crypt(CryptError::Length(u32::MAX))
        );

        for (first, relay) in [(0x7f, false), (0xff, true)] {
            let (a, mut raw) = duplex(1000);
            let a = start(a, Crypt::Plain, Timings::default());
            raw.write_all(&[3, 0, 0, 0, first, 0xff, 0xff])
                .await
                .unwrap();
            match a.task.await.unwrap() {
                DownReason::Frame(_) => assert!(!relay),
                DownReason::Relay => assert!(relay),
                other => panic!("{other}"),
            }
        }
    }

    #[tokio::test]
    async fn a_truncated_frame_is_not_delivered() {
        let (a, mut raw) = duplex(1000);
        let (crypt_a, crypt_b) = ends();
        let mut a = start(a, crypt_a, Timings::default());
        let mut wire = Vec::new();
        crypt_b.append(
            &mut Nonce::default(),
            &encoded(&PeerFrame::Goodbye),
            &mut wire,
        );
        raw.write_all(&wire[..wire.len() - 1]).await.unwrap();
        drop(raw);
        assert_eq!(a.task.await.unwrap(), DownReason::Closed);
        assert!(a.events.recv().await.is_none());
    }
}
