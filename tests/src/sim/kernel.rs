//! The kernel of one host: the lease map, and what it lets through.
//!
//! It goes on whatever the daemon does. A packet that passed the check waits in a queue for up
//! to q; the model takes the worst case, that such a packet is always there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ctdb_wire::ids::BootTime;

use super::clock::{Clock, Real};

/// The lease map of one host.
#[derive(Clone, Debug, Default)]
pub struct Kernel {
    /// Slot of each granted address.
    grants: BTreeMap<IpAddr, u32>,
    /// Deadline of each slot, on this host's clock.
    deadlines: BTreeMap<u32, BootTime>,
    /// Last real moment at which the check was passed, for each address.
    passed: BTreeMap<IpAddr, Real>,
    settled_at: Real,
}

impl Kernel {
    /// Whether a packet of `address` passes the check.
    pub fn passes(&self, address: IpAddr, local: BootTime) -> bool {
        self.grants
            .get(&address)
            .and_then(|slot| self.deadlines.get(slot))
            .is_some_and(|end| local < *end)
    }

    /// When the last packet that passed the check leaves the host's queues, if later than `now`.
    pub fn silent_at(&self, address: IpAddr, queue: Duration) -> Real {
        self.passed
            .get(&address)
            .map_or(Real(0), |last| *last + queue)
    }

    /// Notes what passed since the last call; to be called before every change and every check.
    pub fn settle(&mut self, now: Real, clock: &Clock) {
        let local = clock.local(now);
        for (address, slot) in &self.grants {
            let Some(end) = self.deadlines.get(slot) else {
                continue;
            };
            let last = if local < *end {
                now
            } else {
                clock.real(*end).min(now)
            };
            if last > self.settled_at || local < *end {
                let passed = self.passed.entry(*address).or_default();
                *passed = last.max(*passed);
            }
        }
        self.settled_at = now;
    }

    /// Stores a deadline.
    pub fn deadline(&mut self, now: Real, clock: &Clock, slot: u32, until: BootTime) {
        self.settle(now, clock);
        self.deadlines.insert(slot, until);
    }

    /// The guard ends all.
    pub fn end_all(&mut self, now: Real, clock: &Clock) {
        self.settle(now, clock);
        self.deadlines.clear();
    }

    /// A starting daemon clears grants and deadlines (R3).
    pub fn clear(&mut self, now: Real, clock: &Clock) {
        self.settle(now, clock);
        self.deadlines.clear();
        self.grants.clear();
    }

    /// Power is gone, and with it the queues.
    pub fn lost(&mut self, now: Real) {
        *self = Self {
            settled_at: now,
            ..Self::default()
        };
    }

    /// Grants an address in a slot.
    pub fn grant(&mut self, now: Real, clock: &Clock, address: IpAddr, slot: u32) {
        self.settle(now, clock);
        self.grants.insert(address, slot);
    }

    /// Takes a grant away.
    pub fn revoke(&mut self, now: Real, clock: &Clock, address: IpAddr) {
        self.settle(now, clock);
        self.grants.remove(&address);
    }

    /// Slot and its deadline, for the trace.
    pub fn show(&self, address: IpAddr) -> Option<(u32, BootTime)> {
        let slot = *self.grants.get(&address)?;
        Some((slot, self.deadlines.get(&slot).copied().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes_by_itself_and_the_queue_comes_after() {
        let clock = Clock::new(Real(0), BootTime(1_000), 0);
        let address = "10.0.0.1".parse().unwrap();
        let queue = Duration::from_nanos(20);
        let mut kernel = Kernel::default();
        kernel.deadline(Real(0), &clock, 1, BootTime(1_100));
        kernel.grant(Real(10), &clock, address, 1);
        assert!(kernel.passes(address, BootTime(1_099)));
        kernel.settle(Real(500), &clock);
        assert!(!kernel.passes(address, clock.local(Real(500))));
        assert_eq!(kernel.silent_at(address, queue), Real(120));
        // Another slot: the old grant stays dead.
        kernel.deadline(Real(600), &clock, 2, BootTime(5_000));
        assert!(!kernel.passes(address, BootTime(1_601)));
    }
}
