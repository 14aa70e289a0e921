//! What is counted (D.11).

use std::collections::BTreeMap;
use std::time::Duration;

use ctdb_wire::ids::BootTime;

use super::types::Key;

/// Slots for hot keys.
pub const HOT_KEYS: usize = 10;

/// The window in which arrivals of a key are counted.
const WINDOW: Duration = Duration::from_secs(1);

/// Most keys that are counted at a time.
const MAX_KEYS: usize = 16_384;

/// Bounds of the buckets of latencies, in milliseconds; the last one has none.
const BUCKETS_MS: [u64; 10] = [1, 10, 100, 1000, 2000, 4000, 8000, 16_000, 32_000, 64_000];

/// Counters of one database.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Calls of clients.
    pub calls: u64,
    /// Of these, answered without another node.
    pub local_calls: u64,
    /// Calls sent to other nodes.
    pub remote_calls: u64,
    /// Calls passed on.
    pub redirects: u64,
    /// Records that came.
    pub migrations_in: u64,
    /// Records that went.
    pub migrations_out: u64,
    /// Chain locks that were taken when they were wanted.
    pub busy_chains: u64,
    /// Looks at a record that then stayed.
    pub holds: u64,
    /// Messages of an old generation.
    pub old_generation: u64,
    /// Read-only copies handed out.
    pub delegations: u64,
    /// Revocations.
    pub revocations: u64,
    /// Records removed by the vacuum.
    pub vacuumed: u64,
    /// Recoveries joined.
    pub recoveries: u64,
    /// Transactions stored here.
    pub commits: u64,
    /// Most hops of a call.
    pub max_hops: u16,
    /// Calls by number of significant bits of their hop count.
    pub hop_buckets: [u64; 16],
    /// Calls by latency: below 1 ms, 10 ms, 100 ms, 1, 2, 4, 8, 16, 32, 64 s, more.
    pub latency_buckets: [u64; 11],
    /// Number and sum of these latencies, and the longest.
    pub latency: (u64, Duration, Duration),
}

impl Statistics {
    pub(super) fn hops(&mut self, hops: u16) {
        self.max_hops = self.max_hops.max(hops);
        let bits = (u16::BITS - hops.leading_zeros()).min(15) as usize;
        self.hop_buckets[bits] += 1;
    }

    pub(super) fn call_latency(&mut self, latency: Duration) {
        let ms = latency.as_millis() as u64;
        let bucket = BUCKETS_MS.iter().position(|bound| ms < *bound);
        self.latency_buckets[bucket.unwrap_or(BUCKETS_MS.len())] += 1;
        let (count, sum, longest) = self.latency;
        self.latency = (count + 1, sum + latency, longest.max(latency));
    }
}

/// A key that came often.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HotKey {
    /// Arrivals within a second.
    pub count: u32,
    /// The key.
    pub key: Key,
    logged: u32,
}

/// Counts how often records come to this node.
#[derive(Clone, Debug, Default)]
pub(super) struct Hot {
    counts: BTreeMap<Key, (BootTime, u32)>,
    top: Vec<HotKey>,
}

impl Hot {
    /// A record has come. Its count, if that is worth a line in the log.
    pub(super) fn arrived(&mut self, now: BootTime, key: &[u8]) -> Option<u32> {
        if self.counts.len() >= MAX_KEYS {
            self.counts
                .retain(|_, (since, _)| now.since(*since) < WINDOW);
            if self.counts.len() >= MAX_KEYS {
                return None;
            }
        }
        let entry = match self.counts.get_mut(key) {
            Some(entry) => entry,
            None => self.counts.entry(key.to_vec()).or_insert((now, 0)),
        };
        if now.since(entry.0) >= WINDOW {
            *entry = (now, 0);
        }
        entry.1 += 1;
        let count = entry.1;
        self.rank(key, count)
    }

    fn rank(&mut self, key: &[u8], count: u32) -> Option<u32> {
        if let Some(hot) = self.top.iter_mut().find(|hot| hot.key == key) {
            if count <= hot.count {
                return None;
            }
            hot.count = count;
            let log = count >= hot.logged.saturating_mul(2);
            if log {
                hot.logged = count;
            }
            self.top.sort_by_key(|hot| hot.count);
            return log.then_some(count);
        }
        if self.top.len() >= HOT_KEYS {
            if self.top.first().is_some_and(|least| least.count >= count) {
                return None;
            }
            self.top.remove(0);
        }
        self.top.push(HotKey {
            count,
            key: key.to_vec(),
            logged: count,
        });
        self.top.sort_by_key(|hot| hot.count);
        Some(count)
    }

    /// The keys that came most often, ascending.
    pub(super) fn top(&self) -> &[HotKey] {
        &self.top
    }

    /// Forgets them.
    pub(super) fn reset(&mut self) {
        self.top.clear();
        self.counts.clear();
    }
}

impl super::Database {
    /// The keys that came here most often within a second, ascending; at most ten.
    pub fn hot_keys(&self) -> &[HotKey] {
        self.hot.top()
    }

    /// `STATISTICS_RESET`.
    pub fn reset_statistics(&mut self) {
        self.statistics = Statistics::default();
        self.hot.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_within_a_second_and_says_when_it_doubles() {
        let mut hot = Hot::default();
        let said: Vec<_> = (0..8)
            .filter_map(|i| hot.arrived(BootTime::from_millis(i * 10), b"k"))
            .collect();
        assert_eq!(said, [1, 2, 4, 8]);
        assert_eq!(hot.top()[0].count, 8);
        assert_eq!(hot.arrived(BootTime::from_millis(5000), b"k"), None);
    }

    #[test]
    fn the_ten_hottest_stay() {
        let mut hot = Hot::default();
        for i in 0..12u8 {
            for _ in 0..=i {
                hot.arrived(BootTime::ZERO, &[i]);
            }
        }
        let counts: Vec<_> = hot.top().iter().map(|hot| hot.count).collect();
        assert_eq!(counts, [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    }

    #[test]
    fn buckets_of_hops_and_latency() {
        let mut statistics = Statistics::default();
        statistics.hops(0);
        statistics.hops(5);
        statistics.call_latency(Duration::from_millis(5));
        statistics.call_latency(Duration::from_secs(100));
        assert_eq!(statistics.hop_buckets[0], 1);
        assert_eq!(statistics.hop_buckets[3], 1);
        assert_eq!(statistics.latency_buckets[1], 1);
        assert_eq!(statistics.latency_buckets[10], 1);
    }
}
