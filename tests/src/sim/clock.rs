//! Real time, which only the simulator knows, and the clocks of the hosts, which are wrong.

use std::time::Duration;

use ctdb_wire::ids::BootTime;

/// A moment of real time, in nanoseconds since the start of the run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Real(pub u64);

impl Real {
    /// Later than any run.
    pub const NEVER: Self = Self(u64::MAX);

    /// Time passed since `earlier`; zero if that is in the future.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Seconds, for print.
    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e9
    }
}

impl std::ops::Add<Duration> for Real {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs.as_nanos() as u64))
    }
}

const MILLION: u128 = 1_000_000;

/// A boot-time clock: its own origin, and a rate that is wrong by at most 9 %, unless the
/// adversary has it run wild.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base_real: Real,
    base_local: u64,
    /// Local nanoseconds per million real ones; never 0.
    rate: u64,
}

impl Clock {
    /// A clock that shows `local` at `real` and runs `drift_ppm` too fast.
    pub fn new(real: Real, local: BootTime, drift_ppm: i64) -> Self {
        Self {
            base_real: real,
            base_local: local.0,
            rate: 1_000_000_u64.saturating_add_signed(drift_ppm).max(1),
        }
    }

    /// What it shows.
    pub fn local(&self, real: Real) -> BootTime {
        let passed = u128::from(real.0 - self.base_real.0.min(real.0));
        BootTime(self.base_local + (passed * u128::from(self.rate) / MILLION) as u64)
    }

    /// The first real moment at which it shows `local` or more; `base` if that was before its
    /// rate last changed.
    pub fn real(&self, local: BootTime) -> Real {
        let ahead = u128::from(local.0.saturating_sub(self.base_local));
        let real = (ahead * MILLION).div_ceil(u128::from(self.rate));
        Real(
            self.base_real
                .0
                .saturating_add(u64::try_from(real).unwrap_or(u64::MAX)),
        )
    }

    /// From now on it runs `drift_ppm` too fast.
    pub fn change_rate(&mut self, now: Real, drift_ppm: i64) {
        *self = Self::new(now, self.local(now), drift_ppm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_and_real_are_inverse() {
        for drift in [-90_000, 0, 90_000] {
            let clock = Clock::new(Real(5_000), BootTime(77), drift);
            for real in [5_000, 5_001, 123_456_789_012] {
                let local = clock.local(Real(real));
                assert!(clock.real(local).0.abs_diff(real) <= 2);
                assert!(clock.local(clock.real(local)) >= local);
            }
        }
    }
}
