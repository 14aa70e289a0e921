//! One clock for everything that the laboratory records.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A moment: nanoseconds of `CLOCK_MONOTONIC` (no suspended machine runs a lab, so this is also
/// the boot-time clock but for a constant).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Stamp(pub u64);

impl Stamp {
    /// Now.
    pub fn now() -> Self {
        Self(read(ClockId::CLOCK_MONOTONIC))
    }

    /// The moment at which the wall clock read `unix_ns` nanoseconds since 1970, if the wall
    /// clock was not set since: kernel time stamps of packets, times in logs.
    pub fn from_wall_ns(unix_ns: u64) -> Self {
        let wall = read(ClockId::CLOCK_REALTIME);
        let now = read(ClockId::CLOCK_MONOTONIC);
        Self(now.saturating_sub(wall.saturating_sub(unix_ns)) + unix_ns.saturating_sub(wall))
    }

    /// The moment at which the boot-time clock read `boottime_ns`: times in the daemon's records.
    pub fn from_boottime_ns(boottime_ns: u64) -> Self {
        let boot = read(ClockId::CLOCK_BOOTTIME);
        let now = read(ClockId::CLOCK_MONOTONIC);
        Self(
            now.saturating_sub(boot.saturating_sub(boottime_ns)) + boottime_ns.saturating_sub(boot),
        )
    }

    /// Time from `earlier` to here, zero if it is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Here plus `span`.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(nanos(span)))
    }

    /// Seconds from `origin`, negative before it.
    pub fn seconds_from(self, origin: Self) -> f64 {
        (i128::from(self.0) - i128::from(origin.0)) as f64 / 1e9
    }
}

/// `span` in nanoseconds, at most `u64::MAX`.
pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

fn read(clock: ClockId) -> u64 {
    // These clocks exist on every Linux; the call has no other way to fail.
    clock_gettime(clock).map_or(0, |t| {
        u64::try_from(t.tv_sec()).unwrap_or(0) * 1_000_000_000
            + u64::try_from(t.tv_nsec()).unwrap_or(0)
    })
}
