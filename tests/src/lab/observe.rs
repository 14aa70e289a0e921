//! The observer: sees on the switch every frame by which a node answers for a public address,
//! and judges whether two nodes ever did at once (promise ADDR-1).
//!
//! One AF_PACKET socket in the switch's namespace; a filter in the kernel lets through only ARP,
//! ICMPv6 and what comes from public addresses, and only on its way *into* the switch. The port
//! that a frame came in by says which node sent it; the time is the kernel's.

mod frame;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::IoSliceMut;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType,
    recvmsg, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use serde::Serialize;
use socket2::{SockFilter, Socket};

pub use frame::Sign;
use frame::sign_of;

use super::timeline::{Event, What};
use super::{Lab, Netns, Stamp, wires};

/// Two frames whose time stamps are closer than this may have been seen in the wrong order.
const SKEW: Duration = Duration::from_millis(1);
/// An address that is back on a node within this, after another answered, without being announced
/// has not moved: both answer.
const ALTERNATION: Duration = Duration::from_secs(1);
/// A node that takes an address announces it; an answer may go out this long before that.
const ANNOUNCES: Duration = Duration::from_millis(50);
/// Frames kept in the raw log; the oldest go first.
const MOST_SIGHTINGS: usize = 200_000;
/// Intervals kept of one address; beyond, the last one grows and nothing is lost from verdicts
/// already reached.
const MOST_INTERVALS: usize = 10_000;

/// One frame by which a node answered for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sighting {
    /// When the switch got it.
    pub at: Stamp,
    /// The address.
    pub address: IpAddr,
    /// The node behind the port.
    pub node: u32,
    /// Whether it came over the private network.
    pub private: bool,
    /// By which kind of frame.
    pub sign: Sign,
}

/// A time in which only one node was seen to answer for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Interval {
    /// The node.
    pub node: u32,
    /// Its first frame.
    pub first: Stamp,
    /// Its last frame.
    pub last: Stamp,
    /// How many.
    pub count: u64,
}

/// Two nodes that answered for one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Conflict {
    /// The address.
    pub address: IpAddr,
    /// The node that had begun to answer.
    pub owner: u32,
    /// The node that answered again or outside its time.
    pub intruder: u32,
    /// When the intruder did.
    pub at: Stamp,
}

/// Who was to answer for an address, and when; for [`Report::unexpected`].
#[derive(Clone, Copy, Debug)]
pub struct Tenure {
    /// The address.
    pub address: IpAddr,
    /// The node.
    pub node: u32,
    /// From when.
    pub from: Stamp,
    /// Until when.
    pub until: Stamp,
}

/// Gathers sightings into intervals. Pure.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Of each address the intervals in order of time.
    pub intervals: BTreeMap<IpAddr, Vec<Interval>>,
    /// The raw log, newest last, bounded.
    pub log: VecDeque<Sighting>,
    /// Frames that the kernel could not hand over: if not zero, a verdict "no conflict" is weak.
    pub lost: u32,
    conflicts: Vec<Conflict>,
    /// Of an address the last return to a former node that was not announced yet.
    suspects: BTreeMap<IpAddr, Conflict>,
}

impl Report {
    /// Takes in one sighting, in the order seen. True if it begins a new interval.
    pub fn add(&mut self, seen: Sighting) -> bool {
        if self.log.len() == MOST_SIGHTINGS {
            self.log.pop_front();
        }
        self.log.push_back(seen);
        self.resolve(&seen);
        let list = self.intervals.entry(seen.address).or_default();
        let count = list.len();
        if let Some(last) = list.last_mut()
            && (last.node == seen.node || count >= MOST_INTERVALS)
        {
            last.last = last.last.max(seen.at);
            last.count += 1;
            return false;
        }
        if let [.., before, current] = list.as_mut_slice()
            && before.node == seen.node
        {
            if seen.at.0 <= current.first.after(SKEW).0 {
                before.last = before.last.max(seen.at);
                before.count += 1;
                return false;
            }
            if seen.at.since(before.last) <= ALTERNATION && !seen.sign.announces() {
                let suspect = Conflict {
                    address: seen.address,
                    owner: current.node,
                    intruder: seen.node,
                    at: seen.at,
                };
                self.suspects.insert(seen.address, suspect);
            }
        }
        list.push(Interval {
            node: seen.node,
            first: seen.at,
            last: seen.at,
            count: 1,
        });
        true
    }

    /// The next frame shows whether an unannounced return was the beginning of a takeover.
    fn resolve(&mut self, seen: &Sighting) {
        let Some(suspect) = self.suspects.get(&seen.address).copied() else {
            return;
        };
        let mine = seen.node == suspect.intruder && seen.at.since(suspect.at) <= ANNOUNCES;
        if mine && !seen.sign.announces() {
            return;
        }
        self.suspects.remove(&seen.address);
        if !mine {
            self.conflicts.push(suspect);
        }
    }

    /// Two nodes that answered alternately within one second, without the announcement by which
    /// a takeover begins: no hand-over explains that.
    pub fn conflicts(&self) -> Vec<Conflict> {
        self.conflicts
            .iter()
            .chain(self.suspects.values())
            .copied()
            .collect()
    }

    /// Frames outside the times at which their node was to answer, with 1 ms of grace. Sees
    /// only what the raw log still holds. Addresses without any tenure are not judged.
    pub fn unexpected(&self, tenures: &[Tenure]) -> Vec<Conflict> {
        let mut of: HashMap<IpAddr, Vec<&Tenure>> = HashMap::new();
        for tenure in tenures {
            of.entry(tenure.address).or_default().push(tenure);
        }
        self.log
            .iter()
            .filter_map(|seen| {
                let known = of.get(&seen.address)?;
                let in_time = |t: &&&Tenure| {
                    t.from.0 <= seen.at.after(SKEW).0 && seen.at.0 <= t.until.after(SKEW).0
                };
                if known.iter().any(|t| t.node == seen.node && in_time(&t)) {
                    return None;
                }
                let owner = known.iter().find(in_time).map_or(seen.node, |t| t.node);
                Some(Conflict {
                    address: seen.address,
                    owner,
                    intruder: seen.node,
                    at: seen.at,
                })
            })
            .collect()
    }

    /// The node that answered last.
    pub fn owner(&self, address: IpAddr) -> Option<u32> {
        Some(self.intervals.get(&address)?.last()?.node)
    }

    /// When `node` was first seen to answer for `address` at or after `from`.
    pub fn first_seen(&self, address: IpAddr, node: u32, from: Stamp) -> Option<Stamp> {
        self.intervals
            .get(&address)?
            .iter()
            .find(|i| i.node == node && i.last >= from)
            .map(|i| i.first.max(from))
    }

    /// When `node` last answered for `address`.
    pub fn last_seen(&self, address: IpAddr, node: u32) -> Option<Stamp> {
        self.intervals
            .get(&address)?
            .iter()
            .rev()
            .find(|i| i.node == node)
            .map(|i| i.last)
    }

    /// Sightings of one address between two moments, for a look at what happened.
    pub fn around(&self, address: IpAddr, from: Stamp, until: Stamp) -> Vec<Sighting> {
        self.log
            .iter()
            .filter(|s| s.address == address && s.at >= from && s.at <= until)
            .copied()
            .collect()
    }
}

/// A running observer. Dropping it stops it.
pub struct Observer {
    report: Arc<Mutex<Report>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Observer {
    /// Starts watching; from the return on no frame is missed. Changes of owner and conflicts
    /// are told to `events`.
    pub fn start(
        switch: &Netns,
        addresses: &[IpAddr],
        events: Option<Sender<Event>>,
    ) -> Result<Self> {
        let report = Arc::new(Mutex::new(Report::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, started) = mpsc::channel();
        let mut watch = Watch {
            report: Arc::clone(&report),
            stop: Arc::clone(&stop),
            events,
            addresses: addresses.iter().copied().collect(),
            ports: HashMap::new(),
        };
        let switch = switch.clone();
        let thread = thread::Builder::new()
            .name("observer".into())
            .spawn(move || {
                switch.join()?;
                let socket = open(&watch.addresses)?;
                let _ = ready.send(());
                watch.run(&socket)
            })
            .context("starting the observer")?;
        let mut observer = Self {
            report,
            stop,
            thread: Some(thread),
        };
        if started.recv().is_err() {
            // It ended before it was ready: its error says why.
            observer.halt()?;
            bail!("the observer ended at once");
        }
        Ok(observer)
    }

    /// What it saw so far.
    pub fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// The node that answered last for `address`.
    pub fn owner(&self, address: IpAddr) -> Option<u32> {
        lock(&self.report).owner(address)
    }

    /// Takes in what is on the way, stops, and gives back all that it saw.
    pub fn finish(mut self) -> Result<Report> {
        self.halt()?;
        Ok(self.report())
    }

    fn halt(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .map_err(|_| anyhow!("the observer panicked"))?,
            None => Ok(()),
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.halt();
    }
}

impl Lab {
    /// Watches all public addresses on both networks.
    pub fn observe(&self, events: Option<Sender<Event>>) -> Result<Observer> {
        Observer::start(self.switch(), &self.public_addresses(), events)
    }
}

fn lock(mutex: &Mutex<Report>) -> MutexGuard<'_, Report> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Watch {
    report: Arc<Mutex<Report>>,
    stop: Arc<AtomicBool>,
    events: Option<Sender<Event>>,
    addresses: std::collections::HashSet<IpAddr>,
    /// Node and network by interface index; `None` for what is no node's port.
    ports: HashMap<usize, Option<(u32, bool)>>,
}

impl Watch {
    fn run(&mut self, socket: &OwnedFd) -> Result<()> {
        let mut buffer = [0_u8; 256];
        let mut space = cmsg_space!(TimeSpec, u32);
        loop {
            // Read before the last look, so that nothing that was there at `halt` is missed.
            let last = self.stop.load(Ordering::Relaxed);
            let mut fds = [PollFd::new(
                std::os::fd::AsFd::as_fd(socket),
                PollFlags::POLLIN,
            )];
            match poll(&mut fds, PollTimeout::from(if last { 0_u8 } else { 20_u8 })) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e).context("observer: waiting"),
            }
            loop {
                let mut slices = [IoSliceMut::new(&mut buffer)];
                let message = match recvmsg::<LinkAddr>(
                    socket.as_raw_fd(),
                    &mut slices,
                    Some(&mut space),
                    MsgFlags::MSG_DONTWAIT,
                ) {
                    Ok(message) => message,
                    Err(Errno::EAGAIN) => break,
                    // An interface went down or away; the others go on.
                    Err(Errno::EINTR | Errno::ENETDOWN) => continue,
                    Err(e) => return Err(e).context("observer: reading"),
                };
                let mut at = Stamp::now();
                for control in message.cmsgs().into_iter().flatten() {
                    match control {
                        ControlMessageOwned::ScmTimestampns(t) => at = stamp_of(t),
                        ControlMessageOwned::RxqOvfl(lost) => lock(&self.report).lost = lost,
                        _ => {}
                    }
                }
                let (Some(from), length) = (message.address, message.bytes) else {
                    continue;
                };
                // Only what comes from outside; PACKET_OUTGOING is 4.
                if from.pkttype() == 4 {
                    continue;
                }
                let index = from.ifindex();
                self.take(at, index, &buffer[..length.min(256)]);
            }
            if last {
                return Ok(());
            }
        }
    }

    fn take(&mut self, at: Stamp, index: usize, frame: &[u8]) {
        let Some((address, sign)) = sign_of(frame) else {
            return;
        };
        if !self.addresses.contains(&address) {
            return;
        }
        let port = self.ports.entry(index).or_insert_with(|| port_of(index));
        let Some((node, private)) = *port else { return };
        let mut report = lock(&self.report);
        let before = report.owner(address);
        let conflicts = report.conflicts.len();
        let fresh = report.add(Sighting {
            at,
            address,
            node,
            private,
            sign,
        });
        let conflict = report.conflicts.get(conflicts).copied();
        drop(report);
        let Some(events) = &self.events else { return };
        if let Some(c) = conflict {
            let what = What::Conflict {
                address,
                nodes: [c.owner, c.intruder],
            };
            let _ = events.send(Event { at, what });
        } else if fresh {
            let what = What::Owner {
                address,
                from: before,
                to: node,
            };
            let _ = events.send(Event { at, what });
        }
    }
}

/// Which node's port an interface of this namespace is.
fn port_of(index: usize) -> Option<(u32, bool)> {
    // /sys shows the host's namespace; the kernel's own list shows this thread's.
    let list = nix::net::if_::if_nameindex().ok()?;
    let entry = list.iter().find(|i| i.index() as usize == index)?;
    let (node, name) = wires::behind(entry.name().to_str().ok()?)?;
    Some((node, name.starts_with("priv")))
}

fn stamp_of(t: TimeSpec) -> Stamp {
    let seconds = u64::try_from(t.tv_sec()).unwrap_or(0);
    Stamp::from_wall_ns(seconds * 1_000_000_000 + u64::try_from(t.tv_nsec()).unwrap_or(0))
}

fn open(addresses: &std::collections::HashSet<IpAddr>) -> Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )
    .context("opening the observer's packet socket")?;
    let socket = Socket::from(fd);
    socket
        .attach_filter(&filter(addresses))
        .context("observer: setting its filter")?;
    setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("observer: time stamps")?;
    setsockopt(&socket, sockopt::RxqOvfl, &1).context("observer: counting losses")?;
    // Some 80,000 small frames; a kernel that refuses that loses more, and the loss is counted.
    let _ = setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20));
    Ok(socket.into())
}

/// A filter of the old kind: ARP, ICMPv6, and IP packets whose source lies between the lowest
/// and the highest of the addresses; incoming only; cut after 128 bytes.
fn filter(addresses: &std::collections::HashSet<IpAddr>) -> Vec<SockFilter> {
    const LOAD_WORD: u16 = 0x20;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const EQUAL: u16 = 0x15;
    const GREATER: u16 = 0x25;
    const AT_LEAST: u16 = 0x35;
    const RETURN: u16 = 0x06;
    const PACKET_TYPE: u32 = 0xffff_f004;
    let v4: Vec<u32> = addresses
        .iter()
        .filter_map(|a| {
            if let IpAddr::V4(a) = a {
                Some(u32::from(*a))
            } else {
                None
            }
        })
        .collect();
    let v6: Vec<u128> = addresses
        .iter()
        .filter_map(|a| {
            if let IpAddr::V6(a) = a {
                Some(u128::from(*a))
            } else {
                None
            }
        })
        .collect();
    let (low, high) = (v4.iter().min().unwrap_or(&1), v4.iter().max().unwrap_or(&0));
    // Of IPv6 the first word is enough to keep most away.
    let (low6, high6) = (
        v6.iter().min().unwrap_or(&u128::MAX),
        v6.iter().max().unwrap_or(&0),
    );
    let word = |a: &u128| (a >> 96) as u32;
    // Jumps count from the next instruction; 16 drops, 17 accepts.
    let code = [
        (LOAD_WORD, 0, 0, PACKET_TYPE),
        (EQUAL, 14, 0, 4),
        (LOAD_HALF, 0, 0, 12),
        (EQUAL, 13, 0, 0x0806),
        (EQUAL, 0, 4, 0x0800),
        (LOAD_WORD, 0, 0, 26),
        (AT_LEAST, 0, 9, *low),
        (GREATER, 8, 0, *high),
        (EQUAL, 8, 8, 0), // Accumulator holds an address: accepted either way.
        (EQUAL, 0, 6, 0x86dd),
        (LOAD_BYTE, 0, 0, 20),
        (EQUAL, 5, 0, 58),
        (LOAD_WORD, 0, 0, 22),
        (AT_LEAST, 0, 2, word(low6)),
        (GREATER, 1, 0, word(high6)),
        (EQUAL, 1, 1, 0),
        (RETURN, 0, 0, 0),
        (RETURN, 0, 0, 128),
    ];
    code.into_iter()
        .map(|(op, yes, no, k)| SockFilter::new(op, yes, no, k))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn see(report: &mut Report, node: u32, tenths: u64) -> bool {
        report.add(Sighting {
            at: Stamp(tenths * 100_000),
            address: IpAddr::from([10, 0, 0, 1]),
            node,
            private: false,
            sign: Sign::Tcp,
        })
    }

    #[test]
    fn a_hand_over_is_no_conflict() {
        let mut report = Report::default();
        for (node, tenths) in [(0, 100), (0, 200), (1, 300), (0, 305), (1, 310), (1, 9000)] {
            see(&mut report, node, tenths);
        }
        assert!(report.conflicts().is_empty());
        let list = &report.intervals[&IpAddr::from([10, 0, 0, 1])];
        assert_eq!(
            list.iter().map(|i| (i.node, i.count)).collect::<Vec<_>>(),
            [(0, 3), (1, 3)]
        );
        assert_eq!(report.owner(IpAddr::from([10, 0, 0, 1])), Some(1));
    }

    #[test]
    fn a_move_back_after_a_while_is_no_conflict() {
        let mut report = Report::default();
        for (node, tenths) in [(0, 100), (1, 300), (0, 11000), (0, 50000)] {
            see(&mut report, node, tenths);
        }
        assert!(report.conflicts().is_empty());
    }

    #[test]
    fn alternation_is_a_conflict() {
        let mut report = Report::default();
        for (node, tenths) in [(0, 100), (1, 300), (0, 400)] {
            see(&mut report, node, tenths);
        }
        assert_eq!(report.conflicts().len(), 1);
        assert_eq!(
            (report.conflicts()[0].owner, report.conflicts()[0].intruder),
            (1, 0)
        );
        // One late frame of a woken node, amid the frames of the new owner.
        let mut report = Report::default();
        for (node, tenths) in [(0, 100), (1, 300), (1, 49900), (0, 50000), (1, 50050)] {
            see(&mut report, node, tenths);
        }
        assert_eq!(report.conflicts().len(), 1);
    }

    #[test]
    fn an_announced_return_is_a_hand_over() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let seen = |node, ms: u64, sign| Sighting {
            at: Stamp(ms * 1_000_000),
            address,
            node,
            private: false,
            sign,
        };
        let gratuitous = Sign::ArpGratuitous;
        // Announced at once, or right after a first answer.
        for first in [gratuitous, Sign::ArpReply] {
            let mut report = Report::default();
            report.add(seen(0, 10, Sign::Tcp));
            report.add(seen(1, 30, gratuitous));
            report.add(seen(0, 60, first));
            report.add(seen(0, 61, gratuitous));
            report.add(seen(0, 62, Sign::Tcp));
            assert_eq!(report.conflicts(), []);
        }
        // The other one goes on: it has not let go.
        let mut report = Report::default();
        for (node, ms, sign) in [
            (0, 10, Sign::Tcp),
            (1, 30, gratuitous),
            (0, 60, gratuitous),
            (1, 63, Sign::Tcp),
            (0, 66, Sign::Tcp),
        ] {
            report.add(seen(node, ms, sign));
        }
        assert_eq!(report.conflicts().len(), 2);
        // Announced too late.
        let mut report = Report::default();
        report.add(seen(0, 10, Sign::Tcp));
        report.add(seen(1, 30, gratuitous));
        report.add(seen(0, 60, Sign::ArpReply));
        report.add(seen(0, 160, gratuitous));
        assert_eq!(report.conflicts().len(), 1);
    }

    #[test]
    fn frames_outside_a_tenure_are_unexpected() {
        let address = IpAddr::from([10, 0, 0, 1]);
        let mut report = Report::default();
        for (node, tenths) in [(0, 100), (1, 300), (0, 30000)] {
            see(&mut report, node, tenths);
        }
        let tenure = |node, from: u64, until: u64| Tenure {
            address,
            node,
            from: Stamp(from * 1_000_000),
            until: Stamp(until * 1_000_000),
        };
        let wrong = report.unexpected(&[tenure(0, 0, 20), tenure(1, 25, 9000)]);
        assert_eq!(wrong.len(), 1);
        assert_eq!((wrong[0].owner, wrong[0].intruder), (1, 0));
    }
}
