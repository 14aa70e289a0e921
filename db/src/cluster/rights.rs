//! Of which nodes the right to serve may still run, as each node hears it from recoveries.
//!
//! A recovery begins when its leader has proof that nobody but members and donors can change a record
//! any more ([`View`], DATA-5). So a node that is asked about a process of another one, whose link is
//! lost, may say that it is gone as soon as a recovery without that node *begins* here, of whatever
//! database, and never before.
//!
//! Why a later view does not make that wrong: a node that comes back owns nothing before a recovery
//! that names it has settled on all its members, and each of these has joined it, so has heard of
//! that view, before. Older views, which a slower database or a replaced leader tells of, are ignored.

use ctdb_wire::ids::{NodeSet, Pnn, Term};

use super::leader::View;
use super::planted::{Bug, Planted};

/// One of the views that a leader gave its databases; ordered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ViewId {
    /// The leader's term.
    pub term: Term,
    /// Counts its views.
    pub number: u64,
}

/// Numbers the views that one daemon gives to its databases.
#[derive(Debug, Default)]
pub struct Views {
    last: Option<View>,
    number: u64,
}

impl Views {
    /// The view to give, if it is another one than the last.
    pub fn follow(&mut self, view: Option<View>) -> Option<Option<View>> {
        let view = view.map(|view| View {
            number: self.number,
            ..view
        });
        if view == self.last {
            return None;
        }
        self.number += 1;
        self.last = view.map(|view| View {
            number: self.number,
            ..view
        });
        Some(self.last.clone())
    }

    /// The last one.
    pub fn last(&self) -> Option<&View> {
        self.last.as_ref()
    }
}

/// What one node knows.
#[derive(Debug, Default)]
pub struct Rights {
    view: Option<ViewId>,
    may: NodeSet,
    planted: Planted,
}

impl Rights {
    /// Of a daemon that starts.
    pub fn new(planted: Planted) -> Self {
        Self {
            planted,
            ..Self::default()
        }
    }

    /// A recovery of that view begins here, or goes on by it: only these may have a right. True if it is
    /// over for one that had it.
    pub fn heard(&mut self, view: ViewId, may: NodeSet) -> bool {
        let before = self.may;
        let may = match self.view {
            Some(newest) if view <= newest => return false,
            Some(_) if self.planted.has(Bug::OverForGood) => NodeSet(before.0 & may.0),
            _ => may,
        };
        self.view = Some(view);
        self.may = may;
        before.0 & !may.0 != 0
    }

    /// Whether processes of that node may live and hold something.
    pub fn may_live(&self, node: Pnn) -> bool {
        self.may.contains(node)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ctdb_wire::ids::Incarnation;

    use super::*;

    fn pnn(number: u32) -> Pnn {
        Pnn::new(number).unwrap()
    }

    fn set(nodes: &[u32]) -> NodeSet {
        nodes.iter().map(|node| pnn(*node)).collect()
    }

    fn term(number: u64) -> Term {
        Term {
            number,
            leader: pnn(0),
            session: Incarnation(1),
        }
    }

    fn id(number: u64, count: u64) -> ViewId {
        ViewId {
            term: term(number),
            number: count,
        }
    }

    #[test]
    fn nobody_is_gone_but_by_the_newest_view() {
        let mut rights = Rights::default();
        assert!(!rights.may_live(pnn(2)), "before any recovery");
        assert!(!rights.heard(id(1, 1), set(&[0, 1, 2])));
        assert!(rights.may_live(pnn(2)));
        assert!(rights.heard(id(1, 2), set(&[0, 1])));
        assert!(!rights.may_live(pnn(2)));
        // A slower database still begins what was before, or ends it.
        assert!(!rights.heard(id(1, 1), set(&[0, 1, 2])));
        assert!(!rights.may_live(pnn(2)));
        // It comes back; what was said when it was away counts no more.
        assert!(!rights.heard(id(1, 3), set(&[0, 1, 2])));
        assert!(!rights.heard(id(1, 2), set(&[0, 1])));
        assert!(rights.may_live(pnn(2)));
        // Another leader; the old one is heard late.
        assert!(!rights.heard(id(2, 1), set(&[0, 1, 2])));
        assert!(!rights.heard(id(1, 9), set(&[0])));
        assert!(rights.may_live(pnn(1)) && rights.may_live(pnn(2)));
    }

    #[test]
    fn views_are_counted_when_they_change() {
        let view = |members: &[u32]| View {
            term: term(1),
            number: 0,
            members: members
                .iter()
                .map(|node| (pnn(*node), Incarnation(1)))
                .collect::<BTreeMap<_, _>>(),
            donors: NodeSet::EMPTY,
            witnesses: NodeSet::EMPTY,
            lmasters: vec![pnn(0)],
            complete: true,
        };
        let mut views = Views::default();
        let mut number = |new: Option<View>| {
            let given = views.follow(new)?;
            Some(given.map(|view| view.number))
        };
        assert_eq!(number(None), None);
        let first = number(Some(view(&[0, 1]))).unwrap().unwrap();
        assert_eq!(number(Some(view(&[0, 1]))), None);
        let second = number(Some(view(&[0]))).unwrap().unwrap();
        assert!(second > first);
        // Not the same one again after a time without.
        assert_eq!(number(None), Some(None));
        assert!(number(Some(view(&[0]))).unwrap().unwrap() > second);
    }
}
