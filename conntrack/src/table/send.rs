//! What is said to peers: the log of changes, and how far each link has read it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::Bound;

use ctdb_wire::connections::{
    Change, ConnectionFrame, Digest, Key, MAX_DIGESTS, MAX_IN_FRAME, Tenure,
};
use ctdb_wire::ids::{BootTime, Incarnation, NodeSet, Pnn};

use super::{COALESCE, COMPARE, Replica, Table};

/// Changes that the log keeps for links that are behind; some 2.5 MB. A link that falls behind
/// it compares digests instead.
const LOG: usize = 1 << 16;

/// Connections that changed, oldest first. How they are is looked up when a frame is made.
#[derive(Clone, Debug, Default)]
pub(super) struct Log {
    items: VecDeque<(IpAddr, Key)>,
    /// Number of the first item.
    base: u64,
    /// Up to here nothing waits for others to travel with.
    urgent: u64,
}

impl Log {
    pub(super) fn push(&mut self, address: IpAddr, key: Key) {
        if self.items.len() >= LOG {
            self.items.pop_front();
            self.base += 1;
        }
        self.items.push_back((address, key));
    }

    /// What is there leaves at once.
    pub(super) fn flush(&mut self) {
        self.urgent = self.head();
    }

    fn head(&self) -> u64 {
        self.base + self.items.len() as u64
    }

    fn trim(&mut self, to: u64) {
        let count = to.saturating_sub(self.base).min(self.items.len() as u64);
        self.items.drain(..count as usize);
        self.base += count;
        if self.items.is_empty() && self.items.capacity() > LOG / 8 {
            self.items.shrink_to(LOG / 16);
        }
    }
}

/// One link.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    /// Number of the first change that was not sent.
    cursor: u64,
    /// When changes were sent last.
    sent_at: BootTime,
    /// Own addresses to be told.
    pub(super) held: BTreeMap<IpAddr, Tenure>,
    /// What the peer is to be asked for.
    pub(super) ask: BTreeSet<IpAddr>,
    pub(super) ask_compare: bool,
    /// Addresses that the peer asked for; the first one is sent from behind `part_after`.
    parts: BTreeSet<IpAddr>,
    part_after: Option<Key>,
    /// Orphans that are to be sent; the first address's from behind `orphan_after`.
    orphans: BTreeSet<IpAddr>,
    orphan_after: Option<Key>,
    /// When digests are next due, and how far they got.
    compare_at: BootTime,
    digest_after: Option<IpAddr>,
    /// The last digests said that there is nothing.
    pub(super) said_empty: bool,
}

impl Stream {
    fn new(now: BootTime, head: u64) -> Self {
        Self {
            cursor: head,
            sent_at: BootTime::ZERO,
            held: BTreeMap::new(),
            ask: BTreeSet::new(),
            ask_compare: false,
            parts: BTreeSet::new(),
            part_after: None,
            orphans: BTreeSet::new(),
            orphan_after: None,
            compare_at: now,
            digest_after: None,
            said_empty: false,
        }
    }

    /// All digests, from the first.
    pub(super) fn compare(&mut self, now: BootTime) {
        self.compare_at = now;
        self.digest_after = None;
        self.said_empty = false;
    }

    /// One that is being sent goes on; if another comes before it, it is begun anew after that.
    pub(super) fn ask_for_parts(&mut self, addresses: BTreeSet<IpAddr>) {
        let under_way = self.parts.first().copied();
        self.parts.extend(addresses);
        if self.parts.first().copied() != under_way || self.parts.is_empty() {
            self.part_after = None;
        }
    }

    pub(super) fn is_behind(&self, log: &Log) -> bool {
        self.cursor < log.head()
    }

    fn changes_at(&self, log: &Log) -> Option<BootTime> {
        let waiting = log.head().saturating_sub(self.cursor);
        if waiting == 0 {
            None
        } else if waiting >= MAX_IN_FRAME as u64 || self.cursor < log.urgent {
            Some(BootTime::ZERO)
        } else {
            Some(self.sent_at + COALESCE)
        }
    }

    fn digests_at(&self, own_count: usize) -> Option<BootTime> {
        (own_count > 0 || !self.said_empty).then_some(self.compare_at)
    }

    pub(super) fn due(&self, log: &Log, own_count: usize) -> Option<BootTime> {
        let more = !self.held.is_empty()
            || !self.ask.is_empty()
            || self.ask_compare
            || !self.parts.is_empty()
            || !self.orphans.is_empty();
        if more {
            return Some(BootTime::ZERO);
        }
        let times = [self.changes_at(log), self.digests_at(own_count)];
        times.into_iter().flatten().min()
    }
}

impl Table {
    pub(super) fn link_up(&mut self, now: BootTime, pnn: Pnn, incarnation: Incarnation) {
        let replica = &mut self.replicas[pnn.index()];
        if replica.incarnation != incarnation {
            let old = std::mem::replace(
                replica,
                Replica {
                    incarnation,
                    ..Replica::default()
                },
            );
            for (address, entries) in old.addresses {
                // If another has taken it, the clients have been told.
                let host = self.hosts.get(&address).map(|(_, host)| *host);
                if host.is_none_or(|host| host == pnn) {
                    self.add_orphans(address, entries.iter().map(|(key, _)| *key));
                }
            }
        }
        let mut stream = Stream::new(now, self.log.head());
        stream.held.extend(self.mine());
        // One of those that were there tells the newcomer what lost nodes left.
        self.streams.remove(&pnn);
        if self
            .streams
            .keys()
            .next()
            .is_none_or(|first| self.config.me < *first)
        {
            stream.orphans = self.orphans.keys().copied().collect();
        }
        self.streams.insert(pnn, stream);
    }

    /// What this node serves.
    pub(super) fn mine(&self) -> Vec<(IpAddr, Tenure)> {
        self.hosts
            .iter()
            .filter(|(address, _)| self.holds(**address))
            .map(|(address, (tenure, _))| (*address, *tenure))
            .collect()
    }

    /// The next frame for some of the peers `ready`, and for which of them. The shell calls it
    /// until there is none, and leaves out peers whose queues are long (nothing is lost by that).
    pub fn next_frame(
        &mut self,
        now: BootTime,
        ready: NodeSet,
    ) -> Option<(NodeSet, ConnectionFrame)> {
        let due: Vec<Pnn> = self
            .streams
            .iter()
            .filter(|(pnn, stream)| {
                ready.contains(**pnn)
                    && stream
                        .due(&self.log, self.own_count)
                        .is_some_and(|at| at <= now)
            })
            .map(|(pnn, _)| *pnn)
            .collect();
        due.into_iter()
            .find_map(|pnn| self.frame_for(now, pnn, ready))
    }

    fn frame_for(
        &mut self,
        now: BootTime,
        pnn: Pnn,
        ready: NodeSet,
    ) -> Option<(NodeSet, ConnectionFrame)> {
        let only: NodeSet = [pnn].into_iter().collect();
        let own_count = self.own_count;
        let base = self.log.base;
        let head = self.log.head();
        let stream = self.streams.get_mut(&pnn)?;
        if stream.cursor < base {
            stream.cursor = head;
            stream.compare(now);
            self.counters.fell_behind += 1;
        }
        // Before `held`: what was connected to an address comes before the word of its next host
        // that it has been dealt with.
        let digests_due =
            stream.parts.is_empty() && stream.digests_at(own_count).is_some_and(|at| at <= now);
        if stream.cursor < head
            && (digests_due || stream.changes_at(&self.log).is_some_and(|at| at <= now))
        {
            return Some(self.changes(now, pnn, ready));
        }
        if !stream.held.is_empty() {
            let held = std::mem::take(&mut stream.held).into_iter().collect();
            return Some((only, ConnectionFrame::Held(held)));
        }
        if std::mem::take(&mut stream.ask_compare) {
            return Some((only, ConnectionFrame::Compare));
        }
        if !stream.ask.is_empty() {
            let ask = std::mem::take(&mut stream.ask).into_iter().collect();
            return Some((only, ConnectionFrame::Ask(ask)));
        }
        if let Some(address) = stream.orphans.first().copied() {
            return self.orphan_piece(pnn, address).map(|frame| (only, frame));
        }
        if let Some(address) = stream.parts.first().copied() {
            return self.part(pnn, address).map(|frame| (only, frame));
        }
        if digests_due {
            return self.digests(now, pnn).map(|frame| (only, frame));
        }
        None
    }

    /// The next changes for this peer and for those that are as far.
    fn changes(&mut self, now: BootTime, pnn: Pnn, ready: NodeSet) -> (NodeSet, ConnectionFrame) {
        let from = self.streams.get(&pnn).map_or(0, |stream| stream.cursor);
        let start = from.saturating_sub(self.log.base) as usize;
        let end = self.log.items.len().min(start + MAX_IN_FRAME);
        let mut named: Vec<(IpAddr, Key)> = self.log.items.range(start..end).copied().collect();
        named.sort_unstable();
        named.dedup();
        let changes: Vec<Change> = named
            .into_iter()
            .map(|(address, key)| Change {
                address,
                key,
                now: self.own.get(&address).and_then(|own| own.entries.get(&key)),
            })
            .collect();
        let next = self.log.base + end as u64;
        let mut peers = NodeSet::EMPTY;
        for (other, stream) in &mut self.streams {
            if stream.cursor == from && ready.contains(*other) {
                stream.cursor = next;
                stream.sent_at = now;
                peers.insert(*other);
            }
        }
        self.counters.changes_out += changes.len() as u64 * peers.len() as u64;
        let read = self.streams.values().map(|stream| stream.cursor).min();
        self.log.trim(read.unwrap_or(next));
        (peers, ConnectionFrame::Changes(changes))
    }

    fn part(&mut self, pnn: Pnn, address: IpAddr) -> Option<ConnectionFrame> {
        let stream = self.streams.get_mut(&pnn)?;
        let after = stream.part_after;
        let mut entries = Vec::new();
        let mut through = None;
        if let Some(own) = self.own.get(&address) {
            let mut rest = own.entries.between(after, None);
            entries.extend(
                rest.by_ref()
                    .take(MAX_IN_FRAME)
                    .map(|(key, meta)| (*key, meta)),
            );
            if rest.next().is_some() {
                through = entries.last().map(|(key, _)| *key);
            }
        }
        stream.part_after = through;
        if through.is_none() {
            stream.parts.remove(&address);
        }
        self.counters.parts_out += 1;
        Some(ConnectionFrame::Part {
            address,
            after,
            through,
            entries,
        })
    }

    fn orphan_piece(&mut self, pnn: Pnn, address: IpAddr) -> Option<ConnectionFrame> {
        let stream = self.streams.get_mut(&pnn)?;
        let lower = stream
            .orphan_after
            .map_or(Bound::Unbounded, Bound::Excluded);
        let mut keys = Vec::new();
        if let Some(all) = self.orphans.get(&address) {
            let rest = all.range((lower, Bound::Unbounded));
            keys.extend(rest.take(MAX_IN_FRAME).copied());
        }
        stream.orphan_after = keys.last().copied().filter(|_| keys.len() == MAX_IN_FRAME);
        if stream.orphan_after.is_none() {
            stream.orphans.remove(&address);
        }
        Some(ConnectionFrame::Orphans { address, keys })
    }

    fn digests(&mut self, now: BootTime, pnn: Pnn) -> Option<ConnectionFrame> {
        let stream = self.streams.get_mut(&pnn)?;
        let after = stream.digest_after;
        let lower = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self
            .own
            .range((lower, Bound::Unbounded))
            .filter(|(_, own)| !own.entries.is_empty());
        let list: Vec<Digest> = rest
            .by_ref()
            .take(MAX_DIGESTS)
            .map(|(address, own)| {
                let (count, sum) = own.entries.digest();
                Digest {
                    address: *address,
                    count,
                    sum,
                }
            })
            .collect();
        let through = match (rest.next(), list.last()) {
            (Some(_), Some(last)) => Some(last.address),
            _ => None,
        };
        stream.digest_after = through;
        if through.is_none() {
            stream.compare_at = now + COMPARE;
            stream.said_empty = after.is_none() && list.is_empty();
        }
        Some(ConnectionFrame::Digests {
            after,
            through,
            list,
        })
    }
}
