//! Who is a member of the databases, as the leader's books show it, and whom that waits for.

use std::collections::BTreeMap;

use ctdb_wire::ids::{Epoch, Incarnation, NodeSet, Pnn, Term};
use serde::{Deserialize, Serialize};

use crate::leader::Know;
use crate::planted::{Bug, Planted};

/// The cluster as the leader of its databases sees it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Members {
    /// The leader's term.
    pub term: Term,
    /// Who serves, with its life: that of its daemon and of its right.
    pub members: BTreeMap<Pnn, Incarnation>,
    /// Who is to give what it has, and serves no more.
    pub donors: NodeSet,
    /// Members that may be location masters; all of them if none has the capability.
    pub lmasters: Vec<Pnn>,
    /// No set of other nodes can have served without one of these.
    pub complete: bool,
}

/// A host in the leader's books, and what it says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    pub pnn: Pnn,
    pub know: Know,
    pub epoch: Epoch,
    pub has_right: bool,
    pub linked: bool,
    /// It said what follows.
    pub described: bool,
    pub voter_only: bool,
    pub inactive: bool,
    pub lmaster: bool,
}

/// The life of a member: a daemon's, and a right's. A node whose right was away comes back through
/// a recovery, since it stopped serving when its right ended.
pub fn life(epoch: Epoch) -> Incarnation {
    let number = u64::from(epoch.number);
    Incarnation(epoch.incarnation.0 ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// The members, if they can be told: of each host it must be known that it is one, or gives what it
/// has, or cannot change its records any more (DATA-5). While it is not, those of before in this term
/// stand, and the hosts in question are returned beside them.
pub(crate) fn follow(
    term: Term,
    hosts: &[Host],
    quorum: usize,
    old: Option<&Members>,
    planted: Planted,
) -> (Option<Members>, NodeSet) {
    let old = old.filter(|old| old.term == term);
    let mut new = Members {
        term,
        members: BTreeMap::new(),
        donors: NodeSet::EMPTY,
        lmasters: Vec::new(),
        complete: false,
    };
    let mut awaited = NodeSet::EMPTY;
    let mut without_databases = 0;
    for host in hosts {
        if host.voter_only || !host.described {
            without_databases += 1;
        }
        if host.voter_only || host.know == Know::Dead {
            continue;
        }
        let usable = host.know == Know::Known && host.linked && host.described;
        if usable && host.inactive {
            new.donors.insert(host.pnn);
        } else if usable && host.has_right {
            new.members.insert(host.pnn, life(host.epoch));
            if host.lmaster {
                new.lmasters.push(host.pnn);
            }
        } else {
            // Never one of this term's: it has nothing. Else it is waited for, or for its end.
            let stranger = old.is_some_and(|old| {
                !old.members.contains_key(&host.pnn) && !old.donors.contains(host.pnn)
            });
            if !(stranger && host.know == Know::Known || planted.has(Bug::LinkIsMembership)) {
                awaited.insert(host.pnn);
            }
        }
    }
    if !awaited.is_empty() || new.members.is_empty() {
        return (old.cloned(), awaited);
    }
    if new.lmasters.is_empty() {
        new.lmasters = new.members.keys().copied().collect();
    }
    // Two sets that can serve share a node with databases: |these| + quorum > |all|, as long as
    // voters without databases do not make a quorum of their own.
    let known = new.members.len() + new.donors.len();
    new.complete = quorum >= without_databases && known + quorum > hosts.len();
    (Some(new), awaited)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pnn(number: u32) -> Pnn {
        Pnn::new(number).unwrap()
    }

    fn term(number: u64) -> Term {
        Term {
            number,
            leader: pnn(0),
            session: Incarnation(1),
        }
    }

    fn host(number: u32) -> Host {
        Host {
            pnn: pnn(number),
            know: Know::Known,
            epoch: Epoch {
                incarnation: Incarnation(u64::from(number) + 1),
                number: 2,
            },
            has_right: true,
            linked: true,
            described: true,
            voter_only: false,
            inactive: false,
            lmaster: true,
        }
    }

    fn three() -> Vec<Host> {
        (0..3).map(host).collect()
    }

    fn view(number: u64, hosts: &[Host], old: Option<&Members>) -> Option<Members> {
        follow(term(number), hosts, 2, old, Planted::default()).0
    }

    fn awaited(hosts: &[Host], old: Option<&Members>) -> NodeSet {
        follow(term(1), hosts, 2, old, Planted::default()).1
    }

    fn members(view: Option<&Members>) -> Vec<u32> {
        let members = view.into_iter().flat_map(|view| view.members.keys());
        members.map(|pnn| pnn.get()).collect()
    }

    #[test]
    fn nobody_is_left_out_before_its_right_has_ended() {
        let mut hosts = three();
        hosts[2].know = Know::Unknown;
        assert_eq!(view(1, &hosts, None), None);
        let all = view(1, &three(), None);
        assert_eq!(members(all.as_ref()), [0, 1, 2]);
        assert!(all.as_ref().unwrap().complete);
        // Silent, or without right: still one of them.
        let mut hosts = three();
        hosts[2].linked = false;
        assert_eq!(view(1, &hosts, all.as_ref()), all);
        assert_eq!(view(2, &hosts, all.as_ref()), None, "a new term");
        hosts[2].has_right = false;
        assert_eq!(view(1, &hosts, all.as_ref()), all);
        // Proved to have none.
        hosts[2].know = Know::Dead;
        let two = view(1, &hosts, all.as_ref());
        assert_eq!(members(two.as_ref()), [0, 1]);
        assert!(two.as_ref().unwrap().complete, "2 of 3 met every quorum");
        // On its way back it holds up nobody.
        hosts[2].know = Know::Known;
        assert_eq!(view(1, &hosts, two.as_ref()), two);
    }

    #[test]
    fn who_is_waited_for_is_named() {
        let all = view(1, &three(), None);
        let third = NodeSet::from_iter([pnn(2)]);
        assert_eq!(awaited(&three(), all.as_ref()), NodeSet::EMPTY);
        let mut hosts = three();
        hosts[2].linked = false;
        assert_eq!(awaited(&hosts, all.as_ref()), third, "no link");
        let mut hosts = three();
        hosts[2].has_right = false;
        assert_eq!(awaited(&hosts, all.as_ref()), third, "no right");
        // Proved to have none, and on its way back: nobody waits.
        hosts[2].know = Know::Dead;
        assert_eq!(awaited(&hosts, all.as_ref()), NodeSet::EMPTY);
        let two = view(1, &hosts, all.as_ref());
        hosts[2].know = Know::Known;
        assert_eq!(awaited(&hosts, two.as_ref()), NodeSet::EMPTY);
        // A voter has nothing that anybody could wait for.
        let mut hosts = three();
        (hosts[2].linked, hosts[2].voter_only) = (false, true);
        assert_eq!(awaited(&hosts, None), NodeSet::EMPTY);
    }

    #[test]
    fn a_right_that_was_away_comes_back_by_a_recovery() {
        let all = view(1, &three(), None);
        let mut hosts = three();
        hosts[1].epoch.number += 2;
        let again = view(1, &hosts, all.as_ref());
        assert_ne!(again, all);
        assert_eq!(members(again.as_ref()), [0, 1, 2]);
    }

    #[test]
    fn stopped_nodes_give_and_voters_have_nothing() {
        let mut hosts = three();
        hosts[1].inactive = true;
        hosts[2].voter_only = true;
        let view = view(1, &hosts, None).unwrap();
        assert_eq!(members(Some(&view)), [0]);
        assert!(view.donors.contains(pnn(1)));
        assert_eq!(view.lmasters, [pnn(0)]);
    }
}
