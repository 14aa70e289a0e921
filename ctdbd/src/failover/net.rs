//! The host's network as the executor sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use ctdb_conntrack::{Killed, Killer, Sockets};
use ctdb_core::local::{PublicAddress, Relocation};
use ctdb_ebpf::lease::{DeadlineCell, Lease};
use ctdb_netfw::address::Addresses;
use ctdb_netfw::announce::Announcer;
use ctdb_netfw::firewall::Firewall;
use ctdb_netfw::link::{self, Dump};
use ctdb_netfw::schedule::Schedule;
use ipnet::IpNet;

use super::{FailoverError, Placed, Setup};

/// The end of an opening that the kernel refused is tried again after this.
const OPENING_RETRY: Duration = Duration::from_secs(1);
/// Longest wait for the routes of IPv6 addresses that were taken; IPv4's are there at once.
const SETTLE_LIMIT: Duration = Duration::from_millis(100);

/// A public address on an interface of this host.
#[derive(Clone, Debug)]
struct Carried {
    net: IpNet,
    interface: String,
    ifindex: u32,
    /// Granted; else it waits for its removal.
    held: bool,
    since: Instant,
    /// Until then requests to ports without listener are dropped.
    opening_until: Option<Instant>,
    announce_at: Option<Instant>,
}

struct Interface {
    ifindex: u32,
    up: bool,
    /// Packets do not wait in a queue of the host.
    queueless: bool,
    guarded: bool,
}

/// Everything that the executor has open.
pub(super) struct Net {
    lease: Option<Lease>,
    firewall: Option<Firewall>,
    addresses: Addresses,
    announcer: Announcer,
    schedule: Schedule,
    sockets: Sockets,
    killer: Killer,
    public: BTreeMap<IpAddr, PublicAddress>,
    interfaces: BTreeMap<String, Interface>,
    carried: BTreeMap<IpAddr, Carried>,
    settle: Duration,
    opening: Duration,
}

/// What became of each address of a takeover.
pub(super) type Results = Vec<(IpAddr, Result<(), String>)>;

/// Lengths of the phases of one job.
pub(super) type Phases = Vec<(&'static str, Duration)>;

struct Watch {
    last: Instant,
    phases: Phases,
}

impl Watch {
    fn start() -> Self {
        Self {
            last: Instant::now(),
            phases: Vec::new(),
        }
    }

    fn lap(&mut self, name: &'static str) {
        let now = Instant::now();
        self.phases.push((name, now - self.last));
        self.last = now;
    }
}

impl Net {
    pub(super) fn open(setup: &Setup) -> Result<Self, FailoverError> {
        let lease = match Lease::supported().and_then(|()| Lease::open(&setup.bpf_dir)) {
            Ok(lease) => Some(lease),
            Err(error) if setup.lease_required => return Err(FailoverError::Lease(error)),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "no address lease; as [lease] required = false says, addresses are guarded by \
                     the daemon alone: a stopped daemon can answer for an address twice"
                );
                None
            }
        };
        let firewall = if setup.firewall {
            Some(Firewall::install().map_err(FailoverError::Firewall)?)
        } else {
            None
        };
        let mut net = Self {
            lease,
            firewall,
            addresses: Addresses::open()?,
            announcer: Announcer::open()?,
            schedule: Schedule::default(),
            sockets: Sockets::open()?,
            killer: Killer::open()?,
            public: BTreeMap::new(),
            interfaces: BTreeMap::new(),
            carried: BTreeMap::new(),
            settle: setup.settle,
            opening: setup.opening,
        };
        let dump = link::dump()?;
        net.public = by_address(setup.addresses.clone());
        net.scan_links(&dump);
        net.publish_addresses();
        net.remove_leftovers(&dump);
        Ok(net)
    }

    pub(super) fn deadline_cell(&self) -> Result<Option<DeadlineCell>, ctdb_ebpf::Error> {
        self.lease.as_ref().map(Lease::deadline_cell).transpose()
    }

    /// Public addresses that an earlier run left on any interface.
    fn remove_leftovers(&mut self, dump: &Dump) {
        let left: Vec<(u32, IpNet)> = dump
            .addresses
            .iter()
            .filter(|(_, net)| self.public.contains_key(&net.addr()))
            .copied()
            .collect();
        if left.is_empty() {
            return;
        }
        tracing::info!(
            count = left.len(),
            "removing public addresses that an earlier run left"
        );
        for result in self.addresses.remove(&left) {
            if let Err(error) = result {
                tracing::error!(%error, "a left-over public address stays; it is silent by its lease");
            }
        }
    }

    /// Tells lease and firewall which addresses there are, and which interfaces they belong to.
    fn publish_addresses(&mut self) {
        let known: Vec<(IpAddr, Vec<u32>)> = self
            .public
            .values()
            .map(|public| {
                let indices = public
                    .interfaces
                    .iter()
                    .filter_map(|name| self.interfaces.get(name).map(|found| found.ifindex))
                    .collect();
                (public.net.addr(), indices)
            })
            .collect();
        if let Some(lease) = &mut self.lease
            && let Err(error) = lease.set_addresses(&known)
        {
            tracing::error!(%error, "the lease does not know the public addresses; none can be taken");
        }
        let idle: Vec<IpAddr> = self
            .public
            .keys()
            .filter(|address| {
                !self
                    .carried
                    .get(*address)
                    .is_some_and(|carried| carried.held)
            })
            .copied()
            .collect();
        if let Some(firewall) = &mut self.firewall
            && let Err(error) = firewall.close(&idle)
        {
            tracing::error!(%error, "the firewall does not know the public addresses (ADDR-4)");
        }
    }

    /// Looks at the host's links; attaches the lease where it is missing.
    fn scan_links(&mut self, dump: &Dump) {
        let mut found = BTreeMap::new();
        for link in dump.links.iter().filter(|link| !link.loopback) {
            let mut guarded = true;
            if !link.port
                && let Some(lease) = &mut self.lease
                && let Err(error) = lease.attach(link.index)
            {
                guarded = false;
                tracing::error!(
                    interface = link.name, %error,
                    "no lease on this interface; it carries no public address"
                );
            }
            found.insert(
                link.name.clone(),
                Interface {
                    ifindex: link.index,
                    up: link.up,
                    // A bridge, bond or VLAN has no queue of its own; its lower device has.
                    queueless: link.kind == "veth" && link.qdisc == "noqueue",
                    guarded,
                },
            );
        }
        if let Some(lease) = &mut self.lease {
            let gone: Vec<u32> = lease
                .attached()
                .filter(|index| !found.values().any(|interface| interface.ifindex == *index))
                .collect();
            for index in gone {
                lease.detach(index);
            }
        }
        let moved = found.iter().any(|(name, new)| {
            self.interfaces
                .get(name)
                .is_none_or(|old| old.ifindex != new.ifindex)
        }) || found.len() != self.interfaces.len();
        self.interfaces = found;
        if moved && !self.public.is_empty() {
            self.publish_addresses();
        }
    }

    /// Links or addresses changed. Puts back what somebody else removed.
    pub(super) fn rescan(&mut self) -> Result<(), ctdb_netfw::Error> {
        let dump = link::dump()?;
        self.scan_links(&dump);
        let present: BTreeSet<(u32, IpAddr)> = dump
            .addresses
            .iter()
            .map(|(index, net)| (*index, net.addr()))
            .collect();
        let mut lost = Vec::new();
        for (address, carried) in self.carried.iter_mut().filter(|(_, carried)| carried.held) {
            let Some(interface) = self.interfaces.get(&carried.interface) else {
                continue;
            };
            if !present.contains(&(interface.ifindex, *address)) {
                carried.ifindex = interface.ifindex;
                lost.push((interface.ifindex, carried.net));
            }
        }
        if lost.is_empty() {
            return Ok(());
        }
        let results = self.addresses.add(&lost);
        let mut back = Vec::new();
        for ((ifindex, net), result) in lost.into_iter().zip(results) {
            match result {
                Ok(()) => back.push((ifindex, net.addr())),
                Err(error) => {
                    tracing::error!(address = %net, %error, "a held address vanished and cannot be put back");
                }
            }
        }
        tracing::warn!(
            count = back.len(),
            "held addresses had vanished from their interface; put back"
        );
        self.announce_now(&back);
        Ok(())
    }

    /// Name and state of every link, for the main loop.
    pub(super) fn links(&self) -> Vec<(String, bool)> {
        self.interfaces
            .iter()
            .map(|(name, interface)| (name.clone(), interface.up && interface.guarded))
            .collect()
    }

    pub(super) fn set_addresses(&mut self, addresses: Vec<PublicAddress>) {
        self.public = by_address(addresses);
        // What is still carried keeps its lease entry until it is removed.
        for (address, carried) in &self.carried {
            self.public
                .entry(*address)
                .or_insert_with(|| PublicAddress {
                    net: carried.net,
                    interfaces: vec![carried.interface.clone()],
                });
        }
        self.publish_addresses();
    }

    /// Takeover in the order of design.md section 4. `hold`: see [`Self::let_in`].
    pub(super) fn take(&mut self, slot: u32, placed: &[Placed], hold: bool) -> (Results, Phases) {
        let mut watch = Watch::start();
        let mut results = Vec::new();
        let mut batch = Vec::new();
        for place in placed {
            let address = place.net.addr();
            match self.interfaces.get(&place.interface) {
                Some(interface) if interface.guarded => {
                    batch.push((interface.ifindex, place.net, place.interface.clone()));
                }
                Some(_) => results.push((address, Err(format!("no lease on {}", place.interface)))),
                None => {
                    results.push((
                        address,
                        Err(format!("interface {} is gone", place.interface)),
                    ));
                }
            }
        }
        // ADDR-4: what listens passes, everything else is dropped; before the address is there.
        self.refresh_listeners();
        if let Some(firewall) = &mut self.firewall
            && !batch.is_empty()
        {
            // What is granted anew in a new epoch has been open for long.
            let new: Vec<IpAddr> = batch
                .iter()
                .map(|(_, net, _)| net.addr())
                .filter(|address| {
                    !self
                        .carried
                        .get(address)
                        .is_some_and(|carried| carried.held)
                })
                .collect();
            if let Err(error) = firewall.prepare(&new, hold) {
                // Nothing was touched yet; the leader takes them elsewhere.
                let text = error.to_string();
                let refused = batch.iter().map(|(_, net, _)| net.addr());
                results.extend(refused.map(|one| (one, Err(text.clone()))));
                return (results, watch.phases);
            }
        }
        watch.lap("firewall");
        let wanted: Vec<(u32, IpNet)> = batch
            .iter()
            .map(|(ifindex, net, _)| (*ifindex, *net))
            .collect();
        let mut added = Vec::new();
        for ((ifindex, net, interface), result) in
            batch.into_iter().zip(self.addresses.add(&wanted))
        {
            match result {
                Ok(()) => added.push((ifindex, net, interface)),
                Err(error) => results.push((net.addr(), Err(error.to_string()))),
            }
        }
        watch.lap("address");
        let addresses: Vec<IpAddr> = added.iter().map(|(_, net, _)| net.addr()).collect();
        if let Some(lease) = &self.lease
            && let Err(error) = lease.grant(&addresses, slot)
        {
            // Undone and reported: the leader takes them elsewhere.
            if let Err(error) = lease.revoke(&addresses) {
                tracing::error!(%error, "a failed grant cannot be taken back");
            }
            let undo: Vec<(u32, IpNet)> = added
                .iter()
                .map(|(ifindex, net, _)| (*ifindex, *net))
                .collect();
            for result in self.addresses.remove(&undo) {
                if let Err(error) = result {
                    tracing::error!(%error, "a takeover cannot be undone; the address stays silent");
                }
            }
            let text = error.to_string();
            results.extend(
                addresses
                    .into_iter()
                    .map(|address| (address, Err(text.clone()))),
            );
            return (results, watch.phases);
        }
        watch.lap("lease");
        let now = Instant::now();
        let mut announce = Vec::new();
        for (ifindex, net, interface) in added {
            let address = net.addr();
            announce.push((ifindex, address));
            // It may have been on another interface, waiting for its removal.
            if let Some(old) = self
                .carried
                .get(&address)
                .filter(|old| old.ifindex != ifindex)
            {
                let left = [(old.ifindex, old.net)];
                for error in self
                    .addresses
                    .remove(&left)
                    .into_iter()
                    .filter_map(Result::err)
                {
                    tracing::warn!(%address, %error, "the address stays on its former interface too");
                }
            }
            self.carried.insert(
                address,
                Carried {
                    net,
                    interface,
                    ifindex,
                    held: true,
                    since: now,
                    opening_until: Some(now + self.opening),
                    announce_at: None,
                },
            );
            results.push((address, Ok(())));
        }
        let (v6, v4): (Vec<_>, Vec<_>) = announce
            .into_iter()
            .partition(|(_, address): &(u32, IpAddr)| address.is_ipv6());
        self.announce_now(&v4);
        // Clients that are told before the kernel takes their packets in are told in vain.
        let there: Vec<(u32, IpNet)> = v6
            .iter()
            .map(|(ifindex, address)| (*ifindex, IpNet::from(*address)))
            .collect();
        match self.addresses.settle(&there, SETTLE_LIMIT) {
            Ok(true) => {}
            Ok(false) => tracing::warn!("IPv6 addresses wait for their routes"),
            Err(error) => {
                tracing::warn!(%error, "announced without knowing whether routes are there");
            }
        }
        watch.lap("routes");
        self.announce_now(&v6);
        watch.lap("announce");
        (results, watch.phases)
    }

    fn announce_now(&mut self, items: &[(u32, IpAddr)]) {
        let mut failed = 0;
        for ((_, address), result) in items.iter().zip(self.announcer.announce(items)) {
            if let Err(error) = result {
                if failed == 0 {
                    tracing::warn!(%address, %error, "announcement failed; it is repeated");
                }
                failed += 1;
            }
        }
        let now = Instant::now();
        for (_, address) in items {
            if let Some(carried) = self.carried.get_mut(address) {
                carried.announce_at = self
                    .schedule
                    .next(now - carried.since)
                    .map(|pause| now + pause);
            }
        }
    }

    /// Repeats announcements that are due, and returns when the next is.
    pub(super) fn announce_due(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let due: Vec<(u32, IpAddr)> = self
            .carried
            .iter()
            .filter(|(_, carried)| carried.held && carried.announce_at.is_some_and(|at| at <= now))
            .map(|(address, carried)| (carried.ifindex, *address))
            .collect();
        if !due.is_empty() {
            self.announce_now(&due);
        }
        self.carried
            .values()
            .filter(|carried| carried.held)
            .filter_map(|c| c.announce_at)
            .min()
    }

    /// The operator wants them announced.
    pub(super) fn announce(&mut self, only: Option<IpAddr>) {
        let items: Vec<(u32, IpAddr)> = self
            .carried
            .iter()
            .filter(|(address, carried)| carried.held && only.is_none_or(|one| one == **address))
            .map(|(address, carried)| (carried.ifindex, *address))
            .collect();
        self.announce_now(&items);
    }

    /// The scripts of a takeover that was to hold requests back have run. If the kernel refuses,
    /// the end of the opening lets them in.
    pub(super) fn let_in(&mut self, addresses: &[IpAddr]) {
        if let Some(firewall) = &mut self.firewall
            && let Err(error) = firewall.let_in(addresses)
        {
            tracing::error!(%error, "connection requests wait for the end of the opening");
        }
    }

    /// Whether any address is in its opening.
    pub(super) fn is_opening(&self) -> bool {
        self.carried
            .values()
            .any(|carried| carried.opening_until.is_some())
    }

    /// Lets listeners' ports pass; ends openings whose time is over.
    pub(super) fn poll_openings(&mut self) {
        self.refresh_listeners();
        let now = Instant::now();
        let mut over = Vec::new();
        for (address, carried) in &mut self.carried {
            if carried.opening_until.is_some_and(|until| until <= now) {
                carried.opening_until = None;
                over.push(*address);
            }
        }
        if !over.is_empty()
            && let Some(firewall) = &mut self.firewall
            && let Err(error) = firewall.open(&over)
        {
            tracing::error!(%error, "the opening cannot be ended, ports without listener stay dropped; tried again");
            for address in over {
                if let Some(carried) = self.carried.get_mut(&address) {
                    carried.opening_until = Some(now + OPENING_RETRY);
                }
            }
        }
    }

    fn refresh_listeners(&mut self) {
        let Some(firewall) = &mut self.firewall else {
            return;
        };
        let listeners = match self.sockets.listeners() {
            Ok(listeners) => listeners,
            Err(error) => {
                tracing::warn!(%error, "listeners cannot be read; ports open when the opening ends");
                return;
            }
        };
        let (mut v4, mut v6) = (BTreeSet::new(), BTreeSet::new());
        let mut specific: BTreeSet<SocketAddr> = BTreeSet::new();
        for listener in listeners {
            match listener.ip() {
                IpAddr::V4(ip) if ip.is_unspecified() => {
                    v4.insert(listener.port());
                }
                IpAddr::V6(ip) if ip.is_unspecified() => {
                    v6.insert(listener.port());
                }
                ip if self.public.contains_key(&ip) => {
                    specific.insert(listener);
                }
                _ => {}
            }
        }
        if let Err(error) = firewall.set_ready(&v4, &v6, &specific) {
            tracing::warn!(%error, "ports of listeners cannot be let through yet");
        }
    }

    /// Silence: the grant is gone when this returns true. How long packets may still wait in a
    /// queue comes with it.
    pub(super) fn silence(&mut self, addresses: &[IpAddr]) -> Result<Duration, String> {
        if let Some(lease) = &self.lease {
            if let Err(error) = lease.revoke(addresses) {
                tracing::error!(%error, "grants cannot be taken away; removing the addresses instead");
                self.remove(addresses)?;
            }
        } else {
            // Without a lease the firewall keeps the kernel's own resets in while the address goes.
            if let Some(firewall) = &mut self.firewall
                && let Err(error) = firewall.block(addresses)
            {
                tracing::warn!(%error, "released addresses cannot be blocked");
            }
            self.remove(addresses)?;
        }
        let mut queued = false;
        for address in addresses {
            if let Some(carried) = self.carried.get_mut(address) {
                carried.held = false;
                carried.opening_until = None;
                carried.announce_at = None;
                queued |= self
                    .interfaces
                    .get(&carried.interface)
                    .is_some_and(|interface| !interface.queueless);
            }
        }
        Ok(if queued { self.settle } else { Duration::ZERO })
    }

    /// Ends the server's sockets of addresses that are silent; returns how many.
    pub(super) fn end_connections(&mut self, addresses: &[IpAddr]) -> usize {
        let addresses: BTreeSet<IpAddr> = self.silent(addresses);
        ended(self.killer.kill(&addresses))
    }

    /// The same of addresses that are held here, by a grant that is dead.
    pub(super) fn end_all(&mut self, addresses: &BTreeSet<IpAddr>) -> usize {
        ended(self.killer.kill(addresses))
    }

    /// Ends those of some services (by their ports) only.
    pub(super) fn end_services(&mut self, addresses: &[IpAddr], ports: &BTreeSet<u16>) -> usize {
        let addresses: BTreeSet<IpAddr> = self.silent(addresses);
        let found = match self.sockets.connections(&addresses) {
            Ok(found) => found,
            Err(error) => return ended(Err(error)),
        };
        let pairs: Vec<(SocketAddr, SocketAddr)> = found
            .into_iter()
            .filter(|connection| ports.contains(&connection.server.port()))
            .map(|connection| (connection.client, connection.server))
            .collect();
        if pairs.is_empty() {
            return 0;
        }
        ended(self.killer.kill_connections(&pairs))
    }

    /// UDP sockets that answered on addresses that are silent: nothing ends there, but flows do.
    pub(super) fn udp_services(&mut self, addresses: &[IpAddr]) -> usize {
        let addresses: BTreeSet<IpAddr> = self.silent(addresses);
        // Only counted.
        self.sockets.udp(&addresses).map_or(0, |found| found.len())
    }

    /// Those of `addresses` that were not taken again meanwhile.
    fn silent(&self, addresses: &[IpAddr]) -> BTreeSet<IpAddr> {
        addresses
            .iter()
            .filter(|address| {
                !self
                    .carried
                    .get(*address)
                    .is_some_and(|carried| carried.held)
            })
            .copied()
            .collect()
    }

    /// Takes silent addresses off their interfaces.
    pub(super) fn remove(&mut self, addresses: &[IpAddr]) -> Result<(), String> {
        let mut batch = Vec::new();
        for address in addresses {
            if let Some(carried) = self.carried.get(address) {
                batch.push((carried.ifindex, carried.net));
            }
        }
        let mut problem = None;
        for ((_, net), result) in batch.iter().zip(self.addresses.remove(&batch)) {
            match result {
                Ok(()) => {
                    self.carried.remove(&net.addr());
                }
                Err(error) => problem = Some(error.to_string()),
            }
        }
        problem.map_or(Ok(()), Err)
    }

    /// Clean-up of silent addresses, what was taken again left out.
    pub(super) fn remove_silent(&mut self, addresses: &[IpAddr]) {
        let silent: Vec<IpAddr> = self.silent(addresses).into_iter().collect();
        if let Err(error) = self.remove(&silent) {
            tracing::error!(
                error,
                "a released address stays on its interface; it is silent by its lease"
            );
        }
        if let Some(firewall) = &mut self.firewall {
            let known: Vec<IpAddr> = silent
                .into_iter()
                .filter(|address| self.public.contains_key(address))
                .collect();
            // The next takeover finds the firewall prepared.
            if let Err(error) = firewall.close(&known) {
                tracing::warn!(%error, "the firewall is not prepared for the next takeover (ADDR-4)");
            }
        }
    }

    /// Other interfaces of this node; the grant stays.
    pub(super) fn relocate(&mut self, moves: &[Relocation]) {
        let mut announce = Vec::new();
        for relocation in moves {
            let address = relocation.net.addr();
            let Some(ifindex) = self
                .interfaces
                .get(&relocation.to)
                .map(|found| found.ifindex)
            else {
                continue;
            };
            let Some(carried) = self.carried.get(&address) else {
                continue;
            };
            let old = (carried.ifindex, carried.net);
            let problem = self
                .addresses
                .remove(&[old])
                .into_iter()
                .chain(self.addresses.add(&[(ifindex, relocation.net)]))
                .find_map(Result::err);
            if let Some(error) = problem {
                tracing::error!(%address, to = relocation.to, %error, "the address cannot change its interface");
                continue;
            }
            tracing::info!(%address, from = relocation.from, to = relocation.to, "address changed its interface");
            if let Some(carried) = self.carried.get_mut(&address) {
                carried.ifindex = ifindex;
                carried.interface.clone_from(&relocation.to);
                carried.since = Instant::now();
            }
            announce.push((ifindex, address));
        }
        self.announce_now(&announce);
    }

    /// The end of an orderly stop.
    pub(super) fn close(mut self) {
        let all: Vec<IpAddr> = self.carried.keys().copied().collect();
        if let Some(lease) = &self.lease
            && let Err(error) = lease.revoke(&all)
        {
            tracing::error!(%error, "grants cannot be taken away at the end");
        }
        for carried in self.carried.values_mut() {
            carried.held = false;
        }
        self.end_connections(&all);
        self.remove_silent(&all);
        if let Some(firewall) = self.firewall.take()
            && let Err(error) = firewall.remove()
        {
            tracing::error!(%error, "the firewall table stays; `nft delete table inet ctdb` removes it");
        }
        if let Some(lease) = self.lease.take()
            && let Err(error) = lease.close_clean()
        {
            tracing::error!(%error, "the lease programs stay; the next daemon takes them over");
        }
    }
}

fn ended(result: Result<Killed, ctdb_conntrack::Error>) -> usize {
    match result {
        Ok(killed) => killed.destroyed,
        Err(error) => {
            tracing::warn!(%error, "connections to released addresses cannot be ended (ADDR-3)");
            0
        }
    }
}

fn by_address(addresses: Vec<PublicAddress>) -> BTreeMap<IpAddr, PublicAddress> {
    addresses
        .into_iter()
        .map(|public| (public.net.addr(), public))
        .collect()
}
