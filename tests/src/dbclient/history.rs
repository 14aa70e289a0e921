//! What clients saw and did, judged: pure.
//!
//! A client that changes a record holds its chain lock on the node that owns it, and notes the time
//! after it got the lock and before it gives it back, on the one clock of the machine. So changes of
//! one record never overlap, whatever the nodes, and each finds what the one before it left
//! (DATA-1): that is linearizability, with the points of time given. Only changes of a node that is
//! lost may be lost, the newest ones of it, never those that had reached another node.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// One change of one record. Values are unique; `None` is an empty record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Change {
    /// Where.
    pub node: u32,
    /// When the lock was held.
    pub from: Instant,
    /// Until when at least.
    pub to: Instant,
    /// What was found.
    pub saw: Option<u64>,
    /// What was left.
    pub wrote: Option<u64>,
}

/// From when on the records that a node had may be lost: it was killed, cut off, frozen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loss {
    /// Which node.
    pub node: u32,
    /// The moment before the fault.
    pub from: Instant,
}

/// What was found when all was well.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Changes.
    pub changes: usize,
    /// How often a record was changed on another node than before.
    pub moves: usize,
    /// Changes that went with a lost node.
    pub lost: usize,
}

/// Judges the changes of one record.
pub fn judge(changes: &[Change], losses: &[Loss]) -> Result<Verdict, String> {
    let mut order: Vec<Change> = changes.to_vec();
    order.sort_by_key(|change| change.from);
    let mut verdict = Verdict {
        changes: order.len(),
        ..Verdict::default()
    };
    // What is there, and the changes that led to it, none of them lost.
    let mut kept: Vec<Change> = Vec::new();
    for change in order {
        if let Some(before) = kept.last() {
            if change.from < before.to {
                return Err(format!("two owners at once: {before:?} and {change:?}"));
            }
            verdict.moves += usize::from(before.node != change.node);
        }
        let newest = kept.last().and_then(|before| before.wrote);
        if change.saw != newest {
            verdict.lost += lose(&mut kept, &change, losses)?;
        }
        kept.push(change);
    }
    Ok(verdict)
}

/// Takes back what went with a lost node so that `change` could find what it found; how many changes.
fn lose(kept: &mut Vec<Change>, change: &Change, losses: &[Loss]) -> Result<usize, String> {
    let Some(last) = kept.last().copied() else {
        return Err(format!("{change:?} finds what nobody wrote"));
    };
    let may = losses
        .iter()
        .any(|loss| loss.node == last.node && loss.from <= change.from);
    let run = kept
        .iter()
        .rev()
        .take_while(|old| may && old.node == last.node);
    let Some(count) = run.map(|old| old.saw).position(|saw| saw == change.saw) else {
        return Err(format!(
            "lost: {change:?} does not find what the one before it left: {last:?}, losses {losses:?}"
        ));
    };
    kept.truncate(kept.len() - count - 1);
    Ok(count + 1)
}

/// What is known of a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transactions {
    /// Answered as done.
    pub acknowledged: BTreeSet<u64>,
    /// Not answered.
    pub unknown: BTreeSet<u64>,
}

impl Transactions {
    /// Judges the two lists, which each transaction extends alike, as one node has them (DATA-2).
    pub fn judge(&self, lists: [&[u64]; 2]) -> Result<(), String> {
        if lists[0] != lists[1] {
            return Err(format!("half a transaction: {lists:?}"));
        }
        let there: BTreeSet<u64> = lists[0].iter().copied().collect();
        if there.len() != lists[0].len() {
            return Err(format!("a transaction is there twice: {:?}", lists[0]));
        }
        if let Some(id) = self.acknowledged.difference(&there).next() {
            return Err(format!("{id} was acknowledged and is not there"));
        }
        let known: BTreeSet<u64> = self.acknowledged.union(&self.unknown).copied().collect();
        match there.difference(&known).next() {
            Some(id) => Err(format!("{id} is there, and nobody committed it")),
            None => Ok(()),
        }
    }
}

/// Numbered messages of several senders as one receiver got them.
#[derive(Clone, Debug, Default)]
pub struct Post {
    last: BTreeMap<u64, u64>,
    /// How many were skipped.
    pub gaps: u64,
    /// How many came.
    pub came: u64,
}

impl Post {
    /// Message `number` of sender `from`: never one twice, never an older one after a newer one.
    pub fn came(&mut self, from: u64, number: u64) -> Result<(), String> {
        self.came += 1;
        let last = self.last.insert(from, number);
        let expected = last.map_or(number, |last| last + 1);
        if number < expected {
            return Err(format!(
                "message {number} of {from:#x} comes after {last:?}"
            ));
        }
        self.gaps += number - expected;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Changes one after another: node, found, left.
    fn story(parts: &[(u32, Option<u64>, Option<u64>)]) -> (Instant, Vec<Change>) {
        let zero = Instant::now();
        let at = |ms: usize| zero + Duration::from_millis(ms as u64);
        let change = |(number, (node, saw, wrote)): (usize, &(u32, _, _))| Change {
            node: *node,
            from: at(number * 10),
            to: at(number * 10 + 5),
            saw: *saw,
            wrote: *wrote,
        };
        (zero, parts.iter().enumerate().map(change).collect())
    }

    #[test]
    fn a_chain_of_changes_is_well() {
        let (_, mut changes) = story(&[
            (0, None, Some(1)),
            (1, Some(1), Some(2)),
            (1, Some(2), None),
            (2, None, Some(3)),
        ]);
        changes.reverse();
        let verdict = judge(&changes, &[]).unwrap();
        assert_eq!((verdict.changes, verdict.moves, verdict.lost), (4, 2, 0));
    }

    #[test]
    fn a_lost_update_and_a_value_from_nowhere_are_found() {
        let (_, changes) = story(&[
            (0, None, Some(1)),
            (1, Some(1), Some(2)),
            (2, Some(1), Some(3)),
        ]);
        assert!(judge(&changes, &[]).unwrap_err().contains("lost"));
        let (_, changes) = story(&[(0, Some(9), Some(1))]);
        assert!(judge(&changes, &[]).unwrap_err().contains("nobody"));
        let (_, changes) = story(&[(0, None, Some(1)), (0, None, Some(2))]);
        assert!(judge(&changes, &[]).is_err());
    }

    #[test]
    fn two_owners_are_found() {
        let (_, mut changes) = story(&[(0, None, Some(1)), (1, Some(1), Some(2))]);
        changes[0].to = changes[1].from + Duration::from_millis(1);
        assert!(judge(&changes, &[]).unwrap_err().contains("two owners"));
    }

    #[test]
    fn a_lost_node_takes_its_newest_changes_and_no_others() {
        let parts = [
            (0, None, Some(1)),
            (1, Some(1), Some(2)),
            (1, Some(2), Some(3)),
            (2, Some(1), Some(4)),
        ];
        let (zero, changes) = story(&parts);
        let loss = |node| Loss { node, from: zero };
        assert_eq!(judge(&changes, &[loss(1)]).unwrap().lost, 2);
        assert!(judge(&changes, &[loss(0)]).is_err());
        // Before the fault nothing may be lost.
        let late = Loss {
            node: 1,
            from: zero + Duration::from_secs(1),
        };
        assert!(judge(&changes, &[late]).is_err());
        // What had reached another node stays.
        let older = [
            (0, None, Some(1)),
            (1, Some(1), Some(2)),
            (2, None, Some(4)),
        ];
        let (zero, changes) = story(&older);
        let losses = [Loss {
            node: 1,
            from: zero,
        }];
        assert!(judge(&changes, &losses).is_err());
        // An evicted node that writes on what it had.
        let stale = [
            (1, None, Some(1)),
            (2, Some(1), Some(2)),
            (1, Some(1), Some(3)),
        ];
        let (zero, changes) = story(&stale);
        let losses = [Loss {
            node: 1,
            from: zero,
        }];
        assert!(judge(&changes, &losses).is_err());
    }

    #[test]
    fn transactions_whole_once_and_as_acknowledged() {
        let known = Transactions {
            acknowledged: [1, 2].into(),
            unknown: [3].into(),
        };
        for good in [&[1_u64, 2][..], &[2, 1, 3]] {
            assert_eq!(known.judge([good, good]), Ok(()));
        }
        for bad in [&[1_u64][..], &[1, 2, 2], &[1, 2, 4]] {
            assert!(known.judge([bad, bad]).is_err(), "{bad:?}");
        }
        assert!(known.judge([&[1, 2], &[1]]).is_err());
    }

    #[test]
    fn post_in_order() {
        let mut post = Post::default();
        for (from, number) in [(1, 5), (1, 6), (2, 0), (1, 9)] {
            post.came(from, number).unwrap();
        }
        assert_eq!((post.came, post.gaps), (4, 2));
        assert!(post.came(1, 9).is_err());
        assert!(post.clone().came(2, 0).is_err());
    }
}
