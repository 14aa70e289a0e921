//! The two clocks: boot time for everything that leases and timers compare, wall time for what
//! is shown.

use ctdb_wire::ids::BootTime;

/// `CLOCK_BOOTTIME` now; it goes on while the host sleeps.
pub fn boot_now() -> BootTime {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    BootTime(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// Seconds since 1970, with fractions.
pub fn wall_now() -> f64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0.0, |since| since.as_secs_f64())
}
