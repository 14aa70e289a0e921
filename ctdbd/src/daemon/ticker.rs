//! The main loop's regular turn.
//!
//! A timer of the kernel's that stays set: setting the runtime's own wakes the runtime once more at
//! each turn, and once more while its wheel turns, which is most of what an idle node does.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Ticks at a fixed rate; those that nobody waited for count as one.
#[derive(Debug)]
pub(super) struct Ticker(AsyncFd<OwnedFd>);

impl Ticker {
    /// The first tick comes at once. Must be called in a tokio runtime.
    pub(super) fn start(every: Duration) -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let spec = |seconds: u64, nanos: u32| Timespec {
            tv_sec: seconds.cast_signed(),
            tv_nsec: nanos.into(),
        };
        let timing = Itimerspec {
            it_interval: spec(every.as_secs(), every.subsec_nanos()),
            // 0 and 0 would switch it off.
            it_value: spec(0, 1),
        };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &timing)?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe for types whose descriptor may change under tokio; \
                      an OwnedFd's does not, and this crate has no unsafe code"
        )]
        AsyncFd::with_interest(timer, Interest::READABLE).map(Self)
    }

    /// Waits for the next tick. Nothing is lost if it is dropped.
    pub(super) async fn tick(&self) {
        // The timer of a runtime that ends is not waited for.
        while let Ok(mut ready) = self.0.readable().await {
            let mut count = [0; 8];
            let read = ready.try_io(|timer| {
                rustix::io::read(timer.get_ref(), &mut count).map_err(io::Error::from)
            });
            ready.clear_ready();
            if read.is_ok() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn ticks_come_at_their_rate_and_what_was_missed_is_one() {
        let start = Instant::now();
        let ticker = Ticker::start(Duration::from_millis(20)).unwrap();
        for _ in 0..5 {
            ticker.tick().await;
        }
        assert!(start.elapsed() >= Duration::from_millis(80));
        std::thread::sleep(Duration::from_millis(70));
        let late = Instant::now();
        ticker.tick().await;
        let missed = late.elapsed();
        ticker.tick().await;
        assert!(
            late.elapsed() > missed,
            "three ticks were missed, one is made up for"
        );
    }

    #[tokio::test]
    async fn a_tick_that_nobody_saw_to_its_end_comes_again() {
        let ticker = Ticker::start(Duration::from_millis(20)).unwrap();
        ticker.tick().await;
        for _ in 0..3 {
            let dropped = tokio::time::timeout(Duration::from_millis(1), ticker.tick());
            let _ = dropped.await;
        }
        ticker.tick().await;
    }
}
