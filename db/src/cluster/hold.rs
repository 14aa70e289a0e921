//! How long a record that has arrived stays, though others wait for it.
//!
//! Journeys cost three wake-ups, so a record shall be worth its own: it stays for `first`, and then
//! as long as its content is found changed at each look, `step` apart, until `limit` after its
//! arrival. Numbers and why: `baseline.md`, last section (hold 300 µs, go on while the content keeps
//! changing every 200 µs, up to 5 ms). Whoever waits is served in the order of arrival, so the
//! longest wait for a record is `limit` for each node that is in front.
//!
//! Some records are used once by each node and then wanted by the next (what goes round in a ring). A
//! stay in which nobody here used the record again was for nothing: the next ones end as soon as the
//! content was changed, or after `grace`, in which who asked for it can lock it. How many are cut short
//! doubles with each stay that is for nothing ([`Habit`]); the one after those is whole again. So the
//! habit is unlearned when it is wrong, and who is too slow for `grace` gets its turn.

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
    /// Stays at least this long if longer stays are for nothing.
    pub grace: Duration,
}

impl Default for Hold {
    fn default() -> Self {
        Self {
            first: Duration::from_micros(300),
            step: Duration::from_micros(200),
            limit: Duration::from_millis(5),
            grace: Duration::from_micros(40),
        }
    }
}

/// Stays that are cut short after the first that was for nothing.
const FIRST_SHORT: u8 = 15;

/// What earlier stays of a record on this node taught.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Habit {
    /// So many stays are cut short now.
    short: u8,
    /// So many were, the last time.
    last: u8,
}

impl Habit {
    fn for_nothing(&mut self) {
        self.last = self
            .last
            .saturating_mul(2)
            .saturating_add(1)
            .max(FIRST_SHORT);
        self.short = self.last;
    }

    /// The record was found in use while others waited for it.
    pub fn used(&mut self) {
        *self = Self::default();
    }
}

/// The stay of a record on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// When it arrived.
    pub since: BootTime,
    /// Fingerprint of its content at the last look.
    pub seen: u64,
    /// Of its content when the first of those came that wait now.
    pub asked: Option<u64>,
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
    /// fingerprint). Notes the content that was seen, and what the stay taught.
    pub fn verdict(
        &self,
        now: BootTime,
        tenure: &mut Tenure,
        habit: &mut Habit,
        content: u64,
    ) -> Verdict {
        if now < tenure.pinned {
            return Verdict::Until(tenure.pinned);
        }
        if habit.short > 0 && tenure.asked.is_none() {
            let grace = tenure.since + self.grace.min(self.first);
            if tenure.seen == content && now < grace {
                return Verdict::Until(grace);
            }
            habit.short -= 1;
            return Verdict::Go;
        }
        let waited = tenure.asked.is_some();
        let asked = *tenure.asked.get_or_insert(content);
        if asked != content {
            habit.used();
        }
        let first = tenure.since + self.first;
        if now < first {
            return Verdict::Until(first);
        }
        let end = tenure.since + self.limit.max(self.first);
        let changed = tenure.seen != content;
        tenure.seen = content;
        if changed && now < end {
            return Verdict::Until(end.min(now + self.step));
        }
        // Who came when the stay was over anyway did not wait.
        if waited && asked == content {
            habit.for_nothing();
        }
        Verdict::Go
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
            asked: None,
            pinned: BootTime::ZERO,
        }
    }

    fn verdict(hold: Hold, now: BootTime, tenure: &mut Tenure, content: u64) -> Verdict {
        hold.verdict(now, tenure, &mut Habit::default(), content)
    }

    #[test]
    fn stays_for_the_first_time_and_then_while_it_changes() {
        let hold = Hold::default();
        let mut tenure = tenure();
        assert_eq!(
            verdict(hold, at(1000), &mut tenure, 1),
            Verdict::Until(at(1300))
        );
        assert_eq!(
            verdict(hold, at(1300), &mut tenure, 2),
            Verdict::Until(at(1500))
        );
        assert_eq!(
            verdict(hold, at(1500), &mut tenure, 3),
            Verdict::Until(at(1700))
        );
        assert_eq!(verdict(hold, at(1700), &mut tenure, 3), Verdict::Go);
    }

    #[test]
    fn never_longer_than_the_limit() {
        let hold = Hold::default();
        let mut tenure = tenure();
        let mut now = at(1000);
        let mut content = 1;
        while let Verdict::Until(next) = verdict(hold, now, &mut tenure, content) {
            assert!(next > now, "time goes on");
            now = next;
            content += 1;
        }
        assert_eq!(now, at(6000));
    }

    #[test]
    fn an_idle_record_goes_at_once() {
        let hold = Hold::default();
        assert_eq!(verdict(hold, at(9000), &mut tenure(), 1), Verdict::Go);
        assert_eq!(verdict(hold, at(9000), &mut tenure(), 2), Verdict::Go);
    }

    #[test]
    fn pinned_down_is_pinned_down() {
        let hold = Hold::default();
        let mut tenure = Tenure {
            pinned: at(200_000),
            ..tenure()
        };
        assert_eq!(
            verdict(hold, at(9000), &mut tenure, 1),
            Verdict::Until(at(200_000))
        );
    }

    /// What happens to a stay that begins at 1 ms when it is asked for at `asked` µs after that: when it
    /// ends, if the content changes at the times in `changes`.
    fn stay(hold: Hold, habit: &mut Habit, asked: u64, changes: &[u64]) -> u64 {
        let mut tenure = tenure();
        let mut now = 1000 + asked;
        loop {
            let changed = changes.iter().filter(|at| 1000 + **at <= now).count();
            match hold.verdict(at(now), &mut tenure, habit, 1 + changed as u64) {
                Verdict::Go => return now - 1000,
                Verdict::Until(then) => now = then.0 / 1000,
            }
        }
    }

    #[test]
    fn stays_for_nothing_are_cut_short_and_tried_again_ever_less() {
        let hold = Hold::default();
        let mut habit = Habit::default();
        let stays: Vec<u64> = (0..1000)
            .map(|_| stay(hold, &mut habit, 50, &[20]))
            .collect();
        let long = |stays: &[u64]| stays.iter().filter(|us| **us >= 300).count();
        assert_eq!(stays[0], 500, "it was changed since it came");
        assert_eq!(stays[1], 50, "at once");
        assert_eq!(long(&stays), 7);
        assert_eq!(long(&stays[500..756]), 1, "never none for long");
    }

    #[test]
    fn who_asked_for_a_record_has_time_to_lock_it() {
        let hold = Hold::default();
        let mut habit = Habit::default();
        habit.for_nothing();
        assert_eq!(stay(hold, &mut habit, 0, &[]), 40);
        assert_eq!(stay(hold, &mut habit, 10, &[]), 40);
        assert_eq!(stay(hold, &mut habit, 10, &[5]), 10, "it has been used");
        assert_eq!(stay(hold, &mut habit, 70, &[]), 70);
    }

    #[test]
    fn a_stay_that_is_worth_it_ends_the_habit() {
        let hold = Hold::default();
        let mut habit = Habit::default();
        habit.for_nothing();
        for _ in 0..FIRST_SHORT {
            assert_eq!(stay(hold, &mut habit, 10, &[5]), 10);
        }
        assert_eq!(stay(hold, &mut habit, 10, &[5, 120]), 500);
        assert_eq!(habit, Habit::default());
        // Somebody who is too slow for the grace gets the whole stay then.
        assert_eq!(stay(hold, &mut habit, 10, &[250, 450]), 700);
        assert_eq!(habit, Habit::default());
    }
}
