//! What peers say. Everything is checked: an address must be a public one, both ends of one
//! family, lists in order, and no peer gets more room than a node may have (DATA-4).

use std::collections::BTreeSet;
use std::net::IpAddr;

use ctdb_wire::connections::{Change, ConnectionFrame, Digest, Key, Meta, Sources, Tenure};
use ctdb_wire::ids::{BootTime, Pnn};

use super::{Effect, Replica, Table};

impl Table {
    pub(super) fn receive(
        &mut self,
        now: BootTime,
        from: Pnn,
        frame: ConnectionFrame,
        out: &mut Vec<Effect>,
    ) {
        if !self.streams.contains_key(&from) {
            return;
        }
        match frame {
            ConnectionFrame::Held(list) => self.held_elsewhere(from, list, out),
            ConnectionFrame::Changes(changes) => {
                self.counters.changes_in += changes.len() as u64;
                for change in changes {
                    self.change(now, from, change);
                }
            }
            ConnectionFrame::Part {
                address,
                after,
                through,
                entries,
            } => self.part_in(now, from, address, (after, through), entries),
            ConnectionFrame::Digests {
                after,
                through,
                list,
            } => self.compare(from, (after, through), &list),
            ConnectionFrame::Ask(addresses) => {
                let public = &self.public;
                let known = addresses.into_iter().filter(|a| public.contains(a));
                if let Some(stream) = self.streams.get_mut(&from) {
                    let known: BTreeSet<IpAddr> = known.collect();
                    stream.ask_for_parts(known);
                }
            }
            ConnectionFrame::Compare => {
                // Its frames were lost, whatever was in them.
                let mine = self.mine();
                if let Some(stream) = self.streams.get_mut(&from) {
                    stream.held.extend(mine);
                    stream.compare(now);
                }
            }
            ConnectionFrame::Orphans { address, keys } => {
                let sound = |key: &Key| key.client.is_ipv4() == address.is_ipv4();
                if !self.public.contains(&address) || !keys.iter().all(sound) {
                    self.counters.refused += keys.len() as u64;
                } else if self.holds(address) {
                    self.tell_late(now, address, &keys);
                } else if !self.hosts.contains_key(&address) {
                    // Who has heard of a host knows by itself what that one left.
                    self.add_orphans(address, keys.into_iter());
                }
            }
        }
    }

    fn held_elsewhere(&mut self, from: Pnn, list: Vec<(IpAddr, Tenure)>, out: &mut Vec<Effect>) {
        let mut kill = Vec::new();
        for (address, tenure) in list {
            if !self.public.contains(&address) {
                self.counters.refused += 1;
                continue;
            }
            if self
                .hosts
                .get(&address)
                .is_some_and(|(known, _)| tenure <= *known)
            {
                continue;
            }
            self.hosts.insert(address, (tenure, from));
            for (at, replica) in self.replicas.iter_mut().enumerate() {
                if at != from.index()
                    && let Some(entries) = replica.addresses.remove(&address)
                {
                    replica.count -= entries.len();
                }
            }
            if let Some(keys) = self.orphans.remove(&address) {
                self.orphan_count -= keys.len();
            }
            self.tickling.retain(|other| other != address);
            if self.drop_own(address) {
                kill.push(address);
            }
        }
        if !kill.is_empty() {
            out.push(Effect::Kill(kill));
        }
    }

    fn sound(&mut self, address: IpAddr, key: &Key) -> bool {
        let sound = self.public.contains(&address) && key.client.is_ipv4() == address.is_ipv4();
        self.counters.refused += u64::from(!sound);
        sound
    }

    fn change(&mut self, now: BootTime, from: Pnn, change: Change) {
        let Change {
            address,
            key,
            now: meta,
        } = change;
        if !self.sound(address, &key) {
            return;
        }
        match meta {
            // The former host's last words, overtaken by the order to take it.
            Some(meta) if self.is_former(address, meta) => self.tell_late(now, address, &[key]),
            Some(meta) => self.put(from, address, key, meta),
            None => {
                self.replicas[from.index()].take(address, &key);
            }
        }
    }

    /// Whether a connection ended at the former host of an address that this node serves now. What
    /// an operator registered on some node says nothing of where it ends.
    fn is_former(&self, address: IpAddr, meta: Meta) -> bool {
        meta.sources != Sources::MANUAL && self.holds(address)
    }

    fn put(&mut self, from: Pnn, address: IpAddr, key: Key, meta: Meta) {
        let most = self.config.max_connections;
        let replica = &mut self.replicas[from.index()];
        let known = replica
            .addresses
            .get(&address)
            .is_some_and(|entries| entries.get(&key).is_some());
        if !known && replica.count >= most {
            replica.full = true;
            self.counters.overflowed += 1;
            return;
        }
        replica
            .addresses
            .entry(address)
            .or_default()
            .insert(key, meta);
        if !known {
            replica.count += 1;
            // It was not lost with its node: the sockets outlived the daemon.
            self.remove_orphan(address, &key);
        }
    }

    fn part_in(
        &mut self,
        now: BootTime,
        from: Pnn,
        address: IpAddr,
        (after, through): (Option<Key>, Option<Key>),
        entries: Vec<(Key, Meta)>,
    ) {
        self.counters.parts_in += 1;
        let within = |key: &Key| {
            after.is_none_or(|after| after < *key) && through.is_none_or(|through| *key <= through)
        };
        let in_order = entries.is_sorted_by(|(a, _), (b, _)| a < b);
        let sound =
            |(key, _): &(Key, Meta)| within(key) && key.client.is_ipv4() == address.is_ipv4();
        if !self.public.contains(&address) || !in_order || !entries.iter().all(sound) {
            self.counters.refused += entries.len() as u64;
            return;
        }
        let (former, entries): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|(_, meta)| self.is_former(address, *meta));
        let former: Vec<Key> = former.into_iter().map(|(key, _)| key).collect();
        self.tell_late(now, address, &former);
        let replica = &mut self.replicas[from.index()];
        let named: BTreeSet<Key> = entries.iter().map(|(key, _)| *key).collect();
        let gone: Vec<Key> = replica
            .addresses
            .get(&address)
            .map_or_else(Vec::new, |known| {
                let range = known.between(after, through).map(|(key, _)| *key);
                range.filter(|key| !named.contains(key)).collect()
            });
        for key in gone {
            replica.take(address, &key);
        }
        for (key, meta) in entries {
            self.put(from, address, key, meta);
        }
    }

    fn compare(
        &mut self,
        from: Pnn,
        (after, through): (Option<IpAddr>, Option<IpAddr>),
        list: &[Digest],
    ) {
        let within = |address: &IpAddr| {
            after.is_none_or(|after| after < *address)
                && through.is_none_or(|through| *address <= through)
        };
        let in_order = list.is_sorted_by(|a, b| a.address < b.address);
        if !in_order || !list.iter().all(|digest| within(&digest.address)) {
            self.counters.refused += list.len() as u64;
            return;
        }
        let replica = &self.replicas[from.index()];
        let mut ask = Vec::new();
        for digest in list {
            let known = replica.addresses.get(&digest.address);
            let same = known.is_some_and(|known| known.digest() == (digest.count, digest.sum));
            if !same
                && !replica.full
                && self.public.contains(&digest.address)
                && !self.holds(digest.address)
            {
                ask.push(digest.address);
            }
        }
        let named: BTreeSet<IpAddr> = list.iter().map(|digest| digest.address).collect();
        let stale: Vec<IpAddr> = replica
            .addresses
            .keys()
            .filter(|address| within(address) && !named.contains(*address))
            .copied()
            .collect();
        let replica = &mut self.replicas[from.index()];
        for address in &stale {
            if let Some(entries) = replica.addresses.remove(address) {
                replica.count -= entries.len();
                self.counters.diverged += u64::from(!entries.is_empty());
            }
        }
        // What was beyond the bound may fit now.
        replica.full &= replica.count >= self.config.max_connections;
        self.counters.diverged += ask.len() as u64;
        if let Some(stream) = self.streams.get_mut(&from) {
            stream.ask.extend(ask);
        }
    }

    /// Connections of an address that this node serves already.
    fn tell_late(&mut self, now: BootTime, address: IpAddr, keys: &[Key]) {
        let own = self.own.get(&address);
        let keys: BTreeSet<Key> = keys
            .iter()
            .filter(|key| {
                own.is_none_or(|own| own.entries.get(key).is_none())
                    && !self.tickling.has(address, key)
            })
            .copied()
            .collect();
        self.counters.tickled += keys.len() as u64;
        self.tickling.add(now, address, keys);
    }

    pub(super) fn add_orphans(&mut self, address: IpAddr, keys: impl Iterator<Item = Key>) {
        let own = self.own.get(&address);
        let orphans = self.orphans.entry(address).or_default();
        for key in keys {
            if own.is_some_and(|own| own.entries.get(&key).is_some()) {
                continue;
            }
            if self.orphan_count >= self.config.max_connections {
                self.counters.overflowed += 1;
                continue;
            }
            self.orphan_count += usize::from(orphans.insert(key));
        }
        if orphans.is_empty() {
            self.orphans.remove(&address);
        }
    }
}

impl Replica {
    /// Takes one out, and with the last one its address.
    fn take(&mut self, address: IpAddr, key: &Key) {
        if let Some(entries) = self.addresses.get_mut(&address)
            && entries.remove(key).is_some()
        {
            self.count -= 1;
            if entries.is_empty() {
                self.addresses.remove(&address);
            }
        }
    }
}
