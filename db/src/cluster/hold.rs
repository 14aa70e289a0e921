//! How long a record that has arrived stays, though others wait for it.
//!
//! Journeys cost three wake-ups, so a record shall be worth its own: it stays for `first`, and then
//! as long as its content is found changed at each look, `step` apart, until `limit` after its
//! arrival. Numbers and why: `baseline.md`, last section (hold 300 µs, go on while the content keeps
//! changing every 200 µs, up to 5 ms). Whoever waits is served in the order of arrival, so the
//! longest wait for a record is `limit` for each node that is in front.

use std::time::Duration;

use ctdb_wire::ids::BootTime;

/// Parameters of the policy; tunables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Stays at least this long; zero switches the policy off.
    pub first: Duration,
    /// Time between two looks at the content.
    pub step: Duration,
    /// Stays at most this long, if others wait.
    pub limit: Duration,
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            first: Duration::from_micros(300),
            step: Duration::from_micros(200),
            limit: Duration::from_millis(5),
        }
    }
}

/// The stay of a record on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// When it arrived.
    pub since: BootTime,
    /// Fingerprint of its content at the last look.
    pub seen: u64,
    /// Pinned down until then whatever its content does (D.10).
    pub pinned: BootTime,
}

/// May the record go?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Go,
    /// Ask again then.
    Until(BootTime),
}

impl Hold {
    /// Decides at `now`, when somebody waits for the record and its content is `content` (a
    /// fingerprint). Notes the content that was seen.
    pub fn verdict(&self, now: BootTime, tenure: &mut Tenure, content: u64) -> Verdict {
        if now < tenure.pinned {
            return Verdict::Until(tenure.pinned);
        }
        let first = tenure.since + self.first;
        if now < first {
            return Verdict::Until(first);
        }
        let end = tenure.since + self.limit.max(self.first);
        let changed = tenure.seen != content;
        tenure.seen = content;
        if changed && now < end {
            Verdict::Until(end.min(now + self.step))
        } else {
            Verdict::Go
        }
    }
}

/// A fingerprint of a record's content: FNV-1a, since only accidents are to be told apart, and one
/// that is missed costs a hold.
pub fn fingerprint(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(us: u64) -> BootTime {
        BootTime(us * 1000)
    }

    fn tenure() -> Tenure {
        Tenure {
            since: at(1000),
            seen: 1,
            pinned: BootTime::ZERO,
        }
    }

    #[test]
    fn stays_for_the_first_time_and_then_while_it_changes() {
        let hold = Hold::default();
        let mut tenure = tenure();
        assert_eq!(
            hold.verdict(at(1000), &mut tenure, 1),
            Verdict::Until(at(1300))
        );
        assert_eq!(
            hold.verdict(at(1300), &mut tenure, 2),
            Verdict::Until(at(1500))
        );
        assert_eq!(
            hold.verdict(at(1500), &mut tenure, 3),
            Verdict::Until(at(1700))
        );
        assert_eq!(hold.verdict(at(1700), &mut tenure, 3), Verdict::Go);
    }

    #[test]
    fn never_longer_than_the_limit() {
        let hold = Hold::default();
        let mut tenure = tenure();
        let mut now = at(1000);
        let mut content = 1;
        while let Verdict::Until(next) = hold.verdict(now, &mut tenure, content) {
            assert!(next > now, "time goes on");
            now = next;
            content += 1;
        }
        assert_eq!(now, at(6000));
    }

    #[test]
    fn an_idle_record_goes_at_once() {
        let hold = Hold::default();
        assert_eq!(hold.verdict(at(9000), &mut tenure(), 1), Verdict::Go);
        assert_eq!(hold.verdict(at(9000), &mut tenure(), 2), Verdict::Go);
    }

    #[test]
    fn pinned_down_is_pinned_down() {
        let hold = Hold::default();
        let mut tenure = Tenure {
            pinned: at(200_000),
            ..tenure()
        };
        assert_eq!(
            hold.verdict(at(9000), &mut tenure, 1),
            Verdict::Until(at(200_000))
        );
    }
}
