//! Who is to be told that its connection is gone, and when.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ctdb_wire::connections::Key;
use ctdb_wire::ids::BootTime;

use super::{Ends, ends};

/// Connections that became known together.
#[derive(Clone, Debug)]
struct Group {
    keys: BTreeSet<Key>,
    round: u8,
    due: BootTime,
}

/// All that is to be told.
#[derive(Clone, Debug)]
pub(super) struct Tickling {
    rounds: u8,
    pause: Duration,
    groups: BTreeMap<IpAddr, Vec<Group>>,
}

impl Tickling {
    pub(super) fn new(rounds: u8, pause: Duration) -> Self {
        Self {
            rounds,
            pause,
            groups: BTreeMap::new(),
        }
    }

    /// The first round is due at once.
    pub(super) fn add(&mut self, now: BootTime, address: IpAddr, keys: BTreeSet<Key>) {
        if keys.is_empty() || self.rounds == 0 {
            return;
        }
        let groups = self.groups.entry(address).or_default();
        let fresh = groups
            .iter_mut()
            .find(|group| group.round == 0 && group.due == now);
        match fresh {
            Some(group) => group.keys.extend(keys),
            None => groups.push(Group {
                keys,
                round: 0,
                due: now,
            }),
        }
    }

    /// Rounds that are due, without the connections that are alive here: a client that was told
    /// and has come back from the same port.
    pub(super) fn due(
        &mut self,
        now: BootTime,
        alive: impl Fn(&IpAddr, &Key) -> bool,
    ) -> Vec<(u8, Vec<Ends>)> {
        if self.next_due().is_none_or(|due| now < due) {
            return Vec::new();
        }
        let mut rounds: BTreeMap<u8, Vec<Ends>> = BTreeMap::new();
        for (address, groups) in &mut self.groups {
            for group in groups.iter_mut().filter(|group| group.due <= now) {
                group.keys.retain(|key| !alive(address, key));
                let connections = group.keys.iter().map(|key| ends(*address, key));
                rounds.entry(group.round).or_default().extend(connections);
                group.due = now + self.pause * (1 << group.round.min(8));
                group.round += 1;
            }
            groups.retain(|group| group.round < self.rounds && !group.keys.is_empty());
        }
        self.groups.retain(|_, groups| !groups.is_empty());
        rounds
            .into_iter()
            .filter(|(_, connections)| !connections.is_empty())
            .collect()
    }

    pub(super) fn next_due(&self) -> Option<BootTime> {
        self.groups.values().flatten().map(|group| group.due).min()
    }

    /// An address that went on has another host that tells its clients.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(IpAddr) -> bool) {
        self.groups.retain(|address, _| keep(*address));
    }

    /// All that are not told to the end yet; they are not this node's to tell any more.
    pub(super) fn take(&mut self, address: IpAddr) -> BTreeSet<Key> {
        let groups = self.groups.remove(&address).into_iter().flatten();
        groups.flat_map(|group| group.keys).collect()
    }

    /// Whether it is to be told already.
    pub(super) fn has(&self, address: IpAddr, key: &Key) -> bool {
        self.groups
            .get(&address)
            .is_some_and(|groups| groups.iter().any(|group| group.keys.contains(key)))
    }

    pub(super) fn len(&self) -> usize {
        let groups = self.groups.values().flatten();
        groups.map(|group| group.keys.len()).sum()
    }
}
