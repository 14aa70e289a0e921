//! Announces addresses that the failover thread does not carry itself: with
//! `[failover] addresses = script` those that a script has put on an interface, and what
//! `ctdb gratarp` asks for (`91.lvs` does). CTDB sends three announcements, a second apart
//! (`spec/client-protocol.md` 5.2, control 64).

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ctdb_netfw::announce::Announcer;

/// How often an address is announced.
const TIMES: u8 = 3;
/// Time between two announcements.
const PAUSE: Duration = Duration::from_secs(1);
/// Addresses under way at most; the oldest goes.
const MOST: usize = 8192;

struct Due {
    at: Instant,
    left: u8,
    address: IpAddr,
    interface: String,
}

/// What is still to be announced, and the sockets for it, which are opened when first needed.
#[derive(Default)]
pub(super) struct Herald {
    announcer: Option<Announcer>,
    due: Vec<Due>,
}

impl Herald {
    /// Announces an address from now on.
    pub(super) fn ask(&mut self, address: IpAddr, interface: String, now: Instant) {
        self.hush(address);
        if self.due.len() >= MOST {
            self.due.remove(0);
        }
        self.due.push(Due {
            at: now,
            left: TIMES,
            address,
            interface,
        });
    }

    /// The address goes elsewhere.
    pub(super) fn hush(&mut self, address: IpAddr) {
        self.due.retain(|due| due.address != address);
    }

    /// When there is something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.iter().map(|due| due.at).min()
    }

    /// Sends what is due.
    pub(super) fn work(&mut self, now: Instant) {
        for (interface, address) in self.take_due(now) {
            if let Err(error) = self.announce(&interface, address) {
                tracing::warn!(%address, interface, %error, "announcement failed");
            }
        }
    }

    /// What is due now; each comes again until its times are over.
    fn take_due(&mut self, now: Instant) -> Vec<(String, IpAddr)> {
        let mut ready = Vec::new();
        for due in self.due.iter_mut().filter(|due| due.at <= now) {
            ready.push((due.interface.clone(), due.address));
            due.left -= 1;
            due.at = now + PAUSE;
        }
        self.due.retain(|due| due.left > 0);
        ready
    }

    fn announce(&mut self, interface: &str, address: IpAddr) -> Result<(), ctdb_netfw::Error> {
        let announcer = match &mut self.announcer {
            Some(announcer) => announcer,
            None => self.announcer.insert(Announcer::open()?),
        };
        announcer.announce_by_name(interface, address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_times_a_second_apart_unless_it_goes() {
        let start = Instant::now();
        let (a, b): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
        let mut herald = Herald::default();
        assert_eq!(herald.next(), None);
        herald.ask(a, "eth0".into(), start);
        herald.ask(b, "eth1".into(), start);
        assert_eq!(herald.next(), Some(start));
        assert_eq!(
            herald.take_due(start),
            [("eth0".to_owned(), a), ("eth1".to_owned(), b)]
        );
        assert_eq!(herald.next(), Some(start + PAUSE));
        assert!(herald.take_due(start + PAUSE / 2).is_empty());
        herald.hush(b);
        assert_eq!(herald.take_due(start + PAUSE), [("eth0".to_owned(), a)]);
        // Asked again it begins anew, once.
        herald.ask(a, "eth0".into(), start + PAUSE);
        for step in 1..=3 {
            assert_eq!(herald.take_due(start + PAUSE * step).len(), 1, "{step}");
        }
        assert_eq!(herald.next(), None);
    }
}
