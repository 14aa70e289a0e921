//! The numbers of a timing profile, and what clocks make of them (`design.md` section 4).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The numbers of a timing profile (`design.md` section 4).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Timing {
    /// Distance of heartbeats.
    pub interval: Duration,
    /// L: how long a right lasts from the sending of the heartbeat that was answered.
    pub lease: Duration,
    /// m: what two clocks may differ by in L and q, plus the queue bound.
    pub margin: Duration,
    /// q: how long a packet that passed the lease check may wait in a queue of the host.
    pub queue: Duration,
}

impl Timing {
    /// m = max(20 % of L, 50 ms) + 1.2·q: who counts m may have a clock that is fast by 9 %, so q has
    /// to be stretched as L is (`DESIGN.md` A1, A2).
    pub fn new(interval: Duration, lease: Duration, queue: Duration) -> Self {
        let margin = (lease / 5).max(Duration::from_millis(50)) + stretch(queue);
        Self {
            interval,
            lease,
            margin,
            queue,
        }
    }

    /// The default profile: 250 ms, 1.5 s, 20 ms.
    pub fn standard() -> Self {
        Self::new(
            Duration::from_millis(250),
            Duration::from_millis(1500),
            Duration::from_millis(20),
        )
    }

    /// L + m: how long a promise runs from its receipt, and how old evidence must be.
    pub fn promise(&self) -> Duration {
        self.lease + self.margin
    }

    /// 1.2·q: after this a silenced address has no packet left in a queue of this host.
    pub fn settle(&self) -> Duration {
        stretch(self.queue)
    }
}

/// A duration of this clock that is surely over on another's (20 %, R12).
pub(crate) fn stretch(duration: Duration) -> Duration {
    duration * 6 / 5
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_margin_bears_the_clocks_at_their_worst_and_the_queue() {
        // A1, A2: the holder's clock is slow by 9 %, the leader's fast by 9 %, and a packet that passed at the
        // last moment waits for q. In real nanoseconds, times 91 * 109.
        for lease in [200, 300, 1500, 5000] {
            for queue in [0, 5, 20, 200, 1000] {
                let timing = Timing::new(ms(50), ms(lease), ms(queue));
                let silent = timing.lease * 100 * 109 + timing.queue * 91 * 109;
                let counted = timing.promise() * 100 * 91;
                assert!(silent <= counted, "L {lease} ms, q {queue} ms");
                // R16: what is let go is told when it has left, by a slow clock or a fast one.
                assert!(timing.queue * 109 <= timing.settle() * 100);
            }
        }
    }
}
