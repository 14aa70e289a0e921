//! When a public address is announced: at once, soon again, then slowly for ever.
//!
//! The quick repeats are for frames lost while ports and switches still learn; the slow ones are
//! for switches that age out an address whose host only ever receives.

use std::time::Duration;

/// The ages, counted from the takeover of an address, at which it is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Ages of the quick announcements, rising. The first, at age 0, is the takeover's own.
    quick: Vec<Duration>,
    /// After the last quick one: every so often, or never again.
    every: Option<Duration>,
}

impl Default for Schedule {
    /// At 0, 1, 2 and 5 s, then every 60 s.
    fn default() -> Self {
        Self::new(
            [0, 1, 2, 5].map(Duration::from_secs),
            Some(Duration::from_mins(1)),
        )
    }
}

impl Schedule {
    /// Announcements at the ages `quick` (in any order), then `every` so often after the last of
    /// them. An interval of zero counts as none.
    pub fn new(quick: impl IntoIterator<Item = Duration>, every: Option<Duration>) -> Self {
        let mut quick: Vec<_> = quick.into_iter().collect();
        quick.sort_unstable();
        quick.dedup();
        Self {
            quick,
            every: every.filter(|every| !every.is_zero()),
        }
    }

    /// How long after `age` the next announcement is due: always later than `age`, so that the one
    /// due at `age` itself counts as sent. `None` if there is none any more.
    pub fn next(&self, age: Duration) -> Option<Duration> {
        if let Some(due) = self.quick.iter().find(|due| **due > age) {
            return Some(due.saturating_sub(age));
        }
        let every = self.every?;
        let since = age.saturating_sub(self.quick.last().copied().unwrap_or_default());
        let into = since.as_nanos() % every.as_nanos();
        // Less than an interval, so it fits.
        let into = Duration::from_nanos_u128(into);
        Some(every.saturating_sub(into))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn default_is_quick_and_then_slow() {
        let schedule = Schedule::default();
        let mut age = Duration::ZERO;
        let mut ages = vec![];
        for _ in 0..6 {
            age += schedule.next(age).unwrap();
            ages.push(age.as_secs());
        }
        assert_eq!(ages, [1, 2, 5, 65, 125, 185]);
    }

    #[test]
    fn a_late_caller_does_not_catch_up() {
        let schedule = Schedule::default();
        assert_eq!(schedule.next(ms(1_700)), Some(ms(300)));
        assert_eq!(schedule.next(ms(64_999)), Some(ms(1)));
        assert_eq!(schedule.next(ms(65_000 + 7 * 60_000 + 1)), Some(ms(59_999)));
    }

    #[test]
    fn without_slow_repeats_it_ends() {
        let schedule = Schedule::new([ms(200), ms(0)], None);
        assert_eq!(schedule.next(ms(0)), Some(ms(200)));
        assert_eq!(schedule.next(ms(200)), None);
        assert_eq!(Schedule::new([ms(0)], Some(ms(0))).next(ms(5)), None);
    }
}
