//! Records that this node has pushed lately (D.16). A push that comes after the record's removal would
//! bring old data back, so the pusher says no to the removal until its pushes have surely arrived.

use std::collections::BTreeMap;

use ctdb_wire::ids::BootTime;

use super::types::Key;

/// Most records of one window.
const MAX_KEYS: usize = super::migrate::MAX_TENURES;

/// Since a push takes the same time always, two windows of that length have all that may be under way:
/// when one ends, the one before it holds nothing any more and goes as a whole.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    young: BTreeMap<Key, BootTime>,
    old: BTreeMap<Key, BootTime>,
    /// When `young` becomes `old`.
    turn: BootTime,
    /// Too many were pushed to tell them apart: all records stay until then.
    all: Option<BootTime>,
}

impl Pushed {
    /// A record is pushed; it has arrived by `until`, which comes the same time after each `now`.
    pub(super) fn note(&mut self, now: BootTime, key: &[u8], until: BootTime) {
        if now >= self.turn {
            self.old = std::mem::take(&mut self.young);
            self.turn = until;
        }
        if let Some(known) = self.young.get_mut(key) {
            *known = until;
        } else if self.young.len() < MAX_KEYS {
            self.young.insert(key.to_vec(), until);
        } else {
            self.all = Some(until);
        }
    }

    /// Whether a push of the record may be under way.
    pub(super) fn keeps(&self, now: BootTime, key: &[u8]) -> bool {
        let runs = |until: Option<&BootTime>| until.is_some_and(|until| now < *until);
        runs(self.all.as_ref()) || runs(self.young.get(key)) || runs(self.old.get(key))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WAY: Duration = Duration::from_secs(10);

    fn at(ms: u64) -> BootTime {
        BootTime::from_millis(ms)
    }

    #[test]
    fn each_record_is_kept_for_as_long_as_its_push_may_travel() {
        let mut pushed = Pushed::default();
        let note = |pushed: &mut Pushed, ms, key: &[u8]| pushed.note(at(ms), key, at(ms) + WAY);
        assert!(!pushed.keeps(at(1), b"a"));
        note(&mut pushed, 1000, b"a");
        note(&mut pushed, 9000, b"b");
        // The window has ended; neither is forgotten before its time, nor kept beyond it.
        note(&mut pushed, 10_990, b"c");
        note(&mut pushed, 11_000, b"d");
        assert!(pushed.keeps(at(10_999), b"a") && !pushed.keeps(at(11_000), b"a"));
        assert!(pushed.keeps(at(18_999), b"b") && !pushed.keeps(at(19_000), b"b"));
        assert!(pushed.keeps(at(20_989), b"c") && !pushed.keeps(at(20_990), b"c"));
        // Pushed again it is kept anew.
        note(&mut pushed, 18_000, b"b");
        assert!(pushed.keeps(at(27_999), b"b") && !pushed.keeps(at(28_000), b"b"));
        // After a pause nothing is left that counts.
        note(&mut pushed, 90_000, b"e");
        assert!(!pushed.keeps(at(90_000), b"b") && pushed.keeps(at(90_000), b"e"));
    }

    #[test]
    fn what_is_known_is_bounded_and_beyond_that_all_records_stay() {
        let mut pushed = Pushed::default();
        let key = |number: u64| number.to_le_bytes();
        // 1,000 a second: a window has 10,000 of them.
        for number in 0..60_000 {
            pushed.note(at(number), &key(number), at(number) + WAY);
        }
        assert!(pushed.young.len() + pushed.old.len() <= 20_001);
        assert_eq!(pushed.all, None);
        assert!(!pushed.keeps(at(60_000), &key(50_000)) && pushed.keeps(at(60_000), &key(50_001)));
        for number in 60_000..100_000 {
            pushed.note(at(60_000), &key(number), at(60_000) + WAY);
        }
        assert!(pushed.young.len() + pushed.old.len() <= 2 * MAX_KEYS);
        assert!(pushed.keeps(at(69_999), b"any") && !pushed.keeps(at(70_000), b"any"));
        assert!(!pushed.keeps(at(70_000), &key(60_000)));
    }
}
