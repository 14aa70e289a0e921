//! Connections to public addresses: a thread of its own keeps the table, sees what the kernel
//! sees, talks to the peers' threads over the links, tickles and kills.
//!
//! The main loop passes frames and events of links on and never waits for it. The executor tells
//! it what was taken and what is silent, and at a release waits until the last changes are in the
//! queues of all links, for at most [`LAST_WORDS`]: what it says after that ("done") leaves behind
//! them.

mod query;
mod thread;

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ctdb_conntrack::table::Ends;
use ctdb_wire::api::ApiError;
use ctdb_wire::api::connections::{ConnectionAction, ConnectionStats};
use ctdb_wire::connections::{ConnectionFrame, Sources, Tenure};
use ctdb_wire::ids::{Incarnation, NodeSet, Pnn};
use rustix::event::{EventfdFlags, eventfd};
use serde_json::Value;
use tokio::sync::oneshot;

pub use thread::start;

/// Messages that may wait for the thread.
const MESSAGES: usize = 4096;
/// How long a release waits for the last changes to be in the queues. The next host tells what
/// comes later as well, only later.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(50);
/// Words of clients that may wait for the thread to have room.
const TELLING: usize = 65_536;
/// How long the end waits for the tracker to be taken away.
const END: Duration = Duration::from_secs(5);

/// `[conntrack]` and what goes with it.
#[derive(Clone, Debug)]
pub struct Setup {
    /// This node.
    pub me: Pnn,
    /// Pins of the tracker.
    pub bpf_dir: PathBuf,
    /// Size of the table.
    pub max_connections: u32,
    /// Tickles for each connection.
    pub tickle_rounds: u8,
    /// Ports of services that are tickled in both directions.
    pub end_first: BTreeSet<u16>,
}

/// An answer to a query.
pub type Answer = Result<Value, ApiError>;

/// Where an answer goes.
pub type Reply = Box<dyn FnOnce(Answer) + Send>;

/// What the thread is told.
pub(super) enum Message {
    LinkUp(Pnn, Incarnation),
    LinkDown(Pnn),
    Lost(Pnn),
    Frame(Pnn, ConnectionFrame),
    /// All public addresses that any node names.
    Public(BTreeSet<IpAddr>),
    Taken(Vec<IpAddr>, Tenure),
    /// Silent; whoever waits is told when the last changes are in the queues.
    Frozen(Vec<IpAddr>, Option<SyncSender<()>>),
    /// Sockets that the executor destroyed, and UDP sockets that fell silent.
    Ended {
        killed: usize,
        udp: usize,
    },
    Query(ConnectionAction, Reply),
    Said(Said),
    /// Connections to an address, of one port unless it is 0.
    List(IpAddr, u16, oneshot::Sender<Vec<Ends>>),
    /// The end; whoever waits is told when the tracker is gone.
    Close(SyncSender<()>),
}

/// What clients of the client socket say of connections (`spec/client-protocol.md` 5.11).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Said {
    /// It is there.
    Opened(Ends, Sources),
    /// These sources do not know it any more.
    Closed(Ends, Sources),
    /// To this address exactly these are registered by hand.
    Exactly(IpAddr, Vec<Ends>),
}

/// Tells the thread things; cheap to clone.
#[derive(Clone, Debug)]
pub struct Connections {
    messages: SyncSender<Message>,
    wake: Arc<OwnedFd>,
    stats: Arc<Mutex<ConnectionStats>>,
}

/// The thread's end, before there is a thread.
#[derive(Debug)]
pub struct Inbox {
    messages: Receiver<Message>,
    wake: Arc<OwnedFd>,
    stats: Arc<Mutex<ConnectionStats>>,
}

/// Both ends. The thread is started when there are links.
pub fn channel() -> io::Result<(Connections, Inbox)> {
    let (sender, receiver) = sync_channel(MESSAGES);
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let stats = Arc::default();
    let connections = Connections {
        messages: sender,
        wake: Arc::clone(&wake),
        stats: Arc::clone(&stats),
    };
    let inbox = Inbox {
        messages: receiver,
        wake,
        stats,
    };
    Ok((connections, inbox))
}

impl Connections {
    fn wake(&self) {
        // Full only when the thread has a billion reasons to wake up already.
        let _ = rustix::io::write(self.wake.as_fd(), &1u64.to_ne_bytes());
    }

    fn try_post(&self, message: Message) -> Result<(), Message> {
        match self.messages.try_send(message) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(TrySendError::Full(message)) => Err(message),
            // The daemon ends.
            Err(TrySendError::Disconnected(_)) => Ok(()),
        }
    }

    /// Waits for room; not for the main loop.
    pub(super) fn post(&self, message: Message) {
        if self.messages.send(message).is_ok() {
            self.wake();
        }
    }

    /// These addresses are silent; returns when the last that was known of their connections is
    /// in the queues of all links, or after [`LAST_WORDS`].
    pub(super) fn freeze(&self, addresses: &[IpAddr]) {
        self.freeze_within(addresses, LAST_WORDS);
    }

    /// The same, where more depends on it than who hears of it first.
    pub(super) fn freeze_within(&self, addresses: &[IpAddr], limit: Duration) {
        let (said, done) = sync_channel(1);
        self.post(Message::Frozen(addresses.to_vec(), Some(said)));
        if done.recv_timeout(limit).is_err() {
            tracing::warn!("the last changes of released connections are late");
        }
    }

    /// The newest counts.
    pub fn stats(&self) -> ConnectionStats {
        let stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.clone()
    }

    /// The end of an orderly stop: returns when the kernel tracks no more, or after [`END`].
    pub(super) fn close(&self) {
        let (said, done) = sync_channel(1);
        self.post(Message::Close(said));
        if done.recv_timeout(END).is_err() {
            tracing::error!("the tracker of connections is not taken away in time");
        }
    }
}

/// The main loop's side: never waits. Links' ups and downs are kept until there is room; frames
/// that find none are dropped, and their sender is asked to compare.
#[derive(Debug)]
pub struct Feed {
    connections: Option<Connections>,
    waiting: VecDeque<Message>,
    lost: NodeSet,
    frames_lost: u64,
    public: BTreeSet<IpAddr>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("message")
    }
}

impl Feed {
    /// To this thread; to none if connections are not tracked.
    pub fn new(connections: Option<Connections>) -> Self {
        Self {
            connections,
            waiting: VecDeque::new(),
            lost: NodeSet::EMPTY,
            frames_lost: 0,
            public: BTreeSet::new(),
        }
    }

    /// A link came up.
    pub fn link_up(&mut self, pnn: Pnn, incarnation: Incarnation) {
        self.keep(Message::LinkUp(pnn, incarnation));
    }

    /// A link ended.
    pub fn link_down(&mut self, pnn: Pnn) {
        self.keep(Message::LinkDown(pnn));
    }

    /// The public addresses of all nodes; told if they changed.
    pub fn public(&mut self, addresses: BTreeSet<IpAddr>) {
        if addresses != self.public {
            self.public.clone_from(&addresses);
            self.keep(Message::Public(addresses));
        }
    }

    /// With `addresses = script`: this node serves the address now.
    pub fn taken(&mut self, address: IpAddr, tenure: Tenure) {
        self.keep(Message::Taken(vec![address], tenure));
    }

    /// With `addresses = script`: the address is about to fall silent. What ends from now on is
    /// the next host's to tell.
    pub fn frozen(&mut self, address: IpAddr) {
        self.keep(Message::Frozen(vec![address], None));
    }

    /// A frame of a peer.
    pub fn frame(&mut self, pnn: Pnn, frame: ConnectionFrame) {
        self.flush();
        let Some(connections) = &self.connections else {
            return;
        };
        let refused =
            !self.waiting.is_empty() || connections.try_post(Message::Frame(pnn, frame)).is_err();
        if refused {
            self.lost.insert(pnn);
            self.frames_lost += 1;
        }
    }

    /// Something to be answered by the thread.
    pub fn query(&mut self, action: ConnectionAction, reply: Reply) {
        self.flush();
        let Some(connections) = &self.connections else {
            return reply(Err(ApiError::new(
                409,
                "not_tracked",
                "connections are not tracked; set [conntrack] enabled = true and restart the daemon",
            )));
        };
        if let Err(Message::Query(_, reply)) = connections.try_post(Message::Query(action, reply)) {
            reply(Err(ApiError::new(
                503,
                "busy",
                "the connection table has too much to do; try again",
            )));
        }
    }

    /// At most one for each change of a link or of an address.
    fn keep(&mut self, message: Message) {
        if self.connections.is_some() {
            self.waiting.push_back(message);
            self.flush();
        }
    }

    /// Tries again what found no room; called at every tick.
    pub fn flush(&mut self) {
        let Some(connections) = &self.connections else {
            return;
        };
        while let Some(message) = self.waiting.pop_front() {
            if let Err(message) = connections.try_post(message) {
                self.waiting.push_front(message);
                return;
            }
        }
        for pnn in self.lost.iter() {
            if connections.try_post(Message::Lost(pnn)).is_err() {
                return;
            }
            self.lost.remove(pnn);
        }
    }

    /// The newest counts.
    pub fn stats(&self) -> ConnectionStats {
        let mut stats = self
            .connections
            .as_ref()
            .map_or_else(ConnectionStats::default, Connections::stats);
        stats.frames_lost = self.frames_lost;
        stats
    }
}

/// The client socket's side: never waits. What finds no room is kept in order, up to [`TELLING`];
/// what is beyond is lost: a mark on a connection that the kernel shows too, or an answer.
#[derive(Debug)]
pub struct Teller {
    connections: Option<Connections>,
    waiting: VecDeque<Message>,
    warned: bool,
}

impl Teller {
    /// To this thread; to none if connections are not tracked.
    pub fn new(connections: Option<Connections>) -> Self {
        Self {
            connections,
            waiting: VecDeque::new(),
            warned: false,
        }
    }

    /// A client has said something.
    pub fn say(&mut self, said: Said) {
        self.keep(Message::Said(said));
    }

    /// Connections to `address`, of one port unless it is 0; none if they are not tracked.
    pub fn list(&mut self, address: IpAddr, port: u16, reply: oneshot::Sender<Vec<Ends>>) {
        if self.connections.is_none() {
            // Who asked may be gone.
            let _ = reply.send(Vec::new());
            return;
        }
        self.keep(Message::List(address, port, reply));
    }

    fn keep(&mut self, message: Message) {
        if self.connections.is_none() {
            return;
        }
        if self.waiting.len() >= TELLING {
            if !self.warned {
                self.warned = true;
                tracing::error!("the connection table is too busy for what clients say of it");
            }
            return;
        }
        self.waiting.push_back(message);
        self.flush();
    }

    /// Tries again what found no room; called at every tick.
    pub fn flush(&mut self) {
        let Some(connections) = &self.connections else {
            return;
        };
        while let Some(message) = self.waiting.pop_front() {
            if let Err(message) = connections.try_post(message) {
                self.waiting.push_front(message);
                return;
            }
        }
        self.warned = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(port: u16) -> Said {
        let ends = Ends {
            client: ([192, 0, 2, 1], port).into(),
            server: ([10, 0, 0, 1], 445).into(),
        };
        Said::Opened(ends, Sources::SAMBA)
    }

    fn ports(inbox: &Inbox) -> Vec<u16> {
        let said = inbox
            .messages
            .try_iter()
            .filter_map(|message| match message {
                Message::Said(Said::Opened(ends, _)) => Some(ends.client.port()),
                _ => None,
            });
        said.collect()
    }

    #[test]
    fn what_clients_say_waits_in_order_while_there_is_no_room() {
        let (connections, inbox) = channel().unwrap();
        let mut teller = Teller::new(Some(connections));
        let many = MESSAGES as u16 + 100;
        for port in 0..many {
            teller.say(opened(port));
        }
        assert_eq!(teller.waiting.len(), 100);
        let first = ports(&inbox);
        teller.flush();
        let all: Vec<u16> = first.into_iter().chain(ports(&inbox)).collect();
        assert_eq!(all, (0..many).collect::<Vec<_>>());
        for _ in 0..MESSAGES + TELLING + 5 {
            teller.say(opened(1));
        }
        assert_eq!(teller.waiting.len(), TELLING, "the bound");
    }

    #[test]
    fn without_a_table_lists_are_empty() {
        let mut teller = Teller::new(None);
        teller.say(opened(1));
        let (reply, mut answer) = oneshot::channel();
        teller.list([10, 0, 0, 1].into(), 0, reply);
        assert_eq!(answer.try_recv(), Ok(Vec::new()));
    }
}
