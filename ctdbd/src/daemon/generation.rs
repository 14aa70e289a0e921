//! The generation that is shown: it changes with every leader and every set of active nodes, and
//! is the same on all nodes that agree on both.

use ctdb_wire::ids::Term;

/// What CTDB's tools take for "no generation" (`spec/cluster.md` 2.6).
const INVALID: u32 = 1;

/// The current one, and when it changed.
#[derive(Default, Debug)]
pub(super) struct Generation {
    of: Option<(Term, Vec<u32>)>,
    number: u32,
    changed: Option<(f64, f64)>,
}

impl Generation {
    /// The leader's term, if one is followed and this node has the right, and the active nodes.
    /// True if that is news.
    pub(super) fn follow(&mut self, term: Option<Term>, members: Vec<u32>, now: f64) -> bool {
        let of = term.map(|term| (term, members));
        if of == self.of {
            return false;
        }
        if let Some((term, members)) = &of {
            self.number = number(*term, members);
            self.changed = Some((now, now));
        }
        self.of = of;
        true
    }

    pub(super) fn current(&self) -> Option<u32> {
        self.of.as_ref().map(|_| self.number)
    }

    pub(super) fn members(&self) -> &[u32] {
        self.of.as_ref().map_or(&[], |(_, members)| members)
    }

    pub(super) fn last_change(&self) -> Option<(f64, f64)> {
        self.changed
    }
}

/// FNV-1a over the term and the members: spread, the same everywhere, never INVALID.
fn number(term: Term, members: &[u32]) -> u32 {
    let mut hash: u32 = 0x811c_9dc5;
    let mut mix = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    mix(&term.number.to_le_bytes());
    mix(&term.session.0.to_le_bytes());
    mix(&term.leader.get().to_le_bytes());
    for member in members {
        mix(&member.to_le_bytes());
    }
    hash.max(INVALID + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctdb_wire::ids::{Incarnation, Pnn};

    #[test]
    fn it_changes_with_leader_and_members_only() {
        let term = |number| Term {
            number,
            leader: Pnn::new(1).unwrap(),
            session: Incarnation(7),
        };
        let mut generation = Generation::default();
        assert_eq!(generation.current(), None);
        assert!(generation.follow(Some(term(1)), vec![0, 1], 1.0));
        let first = generation.current().unwrap();
        assert!(!generation.follow(Some(term(1)), vec![0, 1], 2.0));
        assert!(generation.follow(Some(term(1)), vec![0, 1, 2], 3.0));
        assert_ne!(generation.current(), Some(first));
        assert_eq!(generation.last_change(), Some((3.0, 3.0)));
        assert!(generation.follow(None, Vec::new(), 4.0));
        assert_eq!(
            (generation.current(), generation.members().len()),
            (None, 0)
        );
    }
}
