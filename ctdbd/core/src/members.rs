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
    /// To whom it says that it has no link.
    pub lacks: NodeSet,
}

/// The life of a member: a daemon's, and a right's. A node whose right was away comes back through
/// a recovery, since it stopped serving when its right ended.
pub fn life(epoch: Epoch) -> Incarnation {
    let number = u64::from(epoch.number);
    Incarnation(epoch.incarnation.0 ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// What a node that is to serve with others says of its links.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// The node.
    pub pnn: Pnn,
    /// To whom it has no link.
    pub lacks: NodeSet,
    /// It only gives what it has, and serves no more.
    pub gives: bool,
}

impl Reach {
    /// One of the two says that it does not reach the other. What concerns the leader its own links say.
    fn apart(&self, other: &Self, leader: Pnn) -> bool {
        self.pnn != leader
            && other.pnn != leader
            && (self.lacks.contains(other.pnn) || other.lacks.contains(self.pnn))
    }
}

/// Whom to leave out so that all others reach each other: who only gives before who serves, who lacks
/// most of them first, of such nodes the one with fewer links, then that with the higher number;
/// nobody whose links to all that stay are there. The leader stays.
pub fn out_of_reach(leader: Pnn, nodes: &[Reach]) -> NodeSet {
    let mut out = NodeSet::EMPTY;
    let missing = |node: &Reach, out: NodeSet| {
        let others = nodes.iter().filter(|other| !out.contains(other.pnn));
        others.filter(|other| node.apart(other, leader)).count()
    };
    while let Some((.., pnn)) = nodes
        .iter()
        .filter(|node| !out.contains(node.pnn))
        .map(|node| (node.gives, missing(node, out), node.lacks.len(), node.pnn))
        .filter(|(_, missing, ..)| *missing > 0)
        .max()
    {
        out.insert(pnn);
    }
    for node in nodes {
        if out.contains(node.pnn) && missing(node, out) == 0 {
            out.remove(node.pnn);
        }
    }
    out
}

/// What the leader's books say of the members of the databases.
#[derive(Debug)]
pub(crate) struct Follow {
    /// The members, if they can be told.
    pub members: Option<Members>,
    /// Hosts that databases wait for: accounted for neither as members nor otherwise, or `apart`.
    pub awaited: NodeSet,
    /// Members that are to be left out since they and other members do not reach each other.
    pub apart: NodeSet,
}

/// The members, if they can be told: of each host it must be known that it is one, or gives what it
/// has, or cannot change its records any more (DATA-5). While it is not, those of before in this term
/// stand, and the hosts in question are returned beside them.
///
/// A recovery needs all links between those that take part. Two of them that do not reach each other are
/// members all the same, since nothing proves that the right of either is over; one of them is waited for
/// like a host without link to the leader, so that it is evicted in the end. Who has nothing, having been
/// away, is let in when it reaches all that are in.
pub(crate) fn follow(
    term: Term,
    hosts: &[Host],
    quorum: usize,
    old: Option<&Members>,
    planted: Planted,
) -> Follow {
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
    // Never one of this term's: it has nothing.
    let stranger =
        |pnn| old.is_some_and(|old| !old.members.contains_key(&pnn) && !old.donors.contains(pnn));
    let usable = |host: &Host| host.know == Know::Known && host.linked && host.described;
    let mut reach: Vec<Reach> = Vec::new();
    let others = hosts.iter().filter(|host| !stranger(host.pnn));
    let strangers = hosts.iter().filter(|host| stranger(host.pnn));
    for host in others.chain(strangers) {
        if host.voter_only || !host.described {
            without_databases += 1;
        }
        if host.voter_only || host.know == Know::Dead {
            continue;
        }
        let takes_part = usable(host) && (host.inactive || host.has_right);
        let this = Reach {
            pnn: host.pnn,
            lacks: host.lacks,
            gives: host.inactive,
        };
        if takes_part
            && stranger(host.pnn)
            && reach.iter().any(|other| this.apart(other, term.leader))
        {
            continue;
        }
        if takes_part {
            reach.push(this);
        }
        if takes_part && host.inactive {
            new.donors.insert(host.pnn);
        } else if takes_part {
            new.members.insert(host.pnn, life(host.epoch));
            if host.lmaster {
                new.lmasters.push(host.pnn);
            }
        } else {
            // It is waited for, or for its end.
            let knows = stranger(host.pnn) && host.know == Know::Known;
            if !(knows || planted.has(Bug::LinkIsMembership)) {
                awaited.insert(host.pnn);
            }
        }
    }
    let apart = out_of_reach(term.leader, &reach);
    if !awaited.is_empty() || new.members.is_empty() {
        return Follow {
            members: old.cloned(),
            awaited: NodeSet(awaited.0 | apart.0),
            apart,
        };
    }
    new.lmasters.sort_unstable();
    if new.lmasters.is_empty() {
        new.lmasters = new.members.keys().copied().collect();
    }
    // Two sets that can serve share a node with databases: |these| + quorum > |all|, as long as
    // voters without databases do not make a quorum of their own.
    let known = new.members.len() + new.donors.len();
    new.complete = quorum >= without_databases && known + quorum > hosts.len();
    Follow {
        members: Some(new),
        awaited: apart,
        apart,
    }
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
            lacks: NodeSet::EMPTY,
        }
    }

    fn three() -> Vec<Host> {
        (0..3).map(host).collect()
    }

    fn view(number: u64, hosts: &[Host], old: Option<&Members>) -> Option<Members> {
        follow(term(number), hosts, 2, old, Planted::default()).members
    }

    fn awaited(hosts: &[Host], old: Option<&Members>) -> NodeSet {
        follow(term(1), hosts, 2, old, Planted::default()).awaited
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

    fn set(nodes: &[u32]) -> NodeSet {
        nodes.iter().map(|node| pnn(*node)).collect()
    }

    fn reach(number: u32, lacks: &[u32]) -> Reach {
        Reach {
            pnn: pnn(number),
            lacks: set(lacks),
            gives: false,
        }
    }

    #[test]
    fn as_few_as_can_be_are_out_of_reach() {
        let out = |nodes: &[Reach]| out_of_reach(pnn(0), nodes);
        let well = [reach(0, &[]), reach(1, &[]), reach(2, &[])];
        assert_eq!(out(&well), NodeSet::EMPTY);
        // One of the two says so; equal ones: the higher number.
        let two = [reach(0, &[]), reach(1, &[2]), reach(2, &[])];
        assert_eq!(out(&two), set(&[1]), "it has fewer links");
        let two = [reach(0, &[]), reach(1, &[2]), reach(2, &[1])];
        assert_eq!(out(&two), set(&[2]));
        // One that lacks many; what it lacks beside the members counts when they are equal.
        let star = [
            reach(0, &[]),
            reach(1, &[2, 3]),
            reach(2, &[1]),
            reach(3, &[1]),
        ];
        assert_eq!(out(&star), set(&[1]));
        let dead = [reach(0, &[]), reach(1, &[2, 7]), reach(2, &[1])];
        assert_eq!(out(&dead), set(&[1]));
        // Whoever only gives goes first, if that helps.
        let mut gives = [reach(0, &[]), reach(1, &[2]), reach(2, &[1, 7])];
        gives[1].gives = true;
        assert_eq!(out(&gives), set(&[1]));
        let mut both = star;
        both[2].gives = true;
        assert_eq!(out(&both), set(&[1]));
        // The leader knows better.
        let told = [reach(0, &[2]), reach(1, &[0]), reach(2, &[])];
        assert_eq!(out(&told), NodeSet::EMPTY);
        // A chain: two of four.
        let chain = [
            reach(1, &[2]),
            reach(2, &[1, 3]),
            reach(3, &[2, 4]),
            reach(4, &[3]),
        ];
        assert_eq!(out(&chain).len(), 2);
    }

    #[test]
    fn two_that_do_not_reach_each_other_are_members_until_one_is_proved_to_have_no_right() {
        let all = view(1, &three(), None);
        let mut hosts = three();
        hosts[1].lacks = set(&[2]);
        hosts[2].lacks = set(&[1]);
        assert_eq!(view(1, &hosts, all.as_ref()), all);
        assert_eq!(awaited(&hosts, all.as_ref()), set(&[2]));
        // A new leader begins with both, too: nobody knows what they have.
        assert_eq!(members(view(2, &hosts, all.as_ref()).as_ref()), [0, 1, 2]);
        hosts[2].know = Know::Dead;
        let two = view(1, &hosts, all.as_ref());
        assert_eq!(members(two.as_ref()), [0, 1]);
        assert_eq!(awaited(&hosts, all.as_ref()), NodeSet::EMPTY);
        // It is heard again and has a right: it holds up nobody, and is let in with its link.
        hosts[2].know = Know::Known;
        hosts[2].epoch.number += 2;
        assert_eq!(view(1, &hosts, two.as_ref()), two);
        assert_eq!(awaited(&hosts, two.as_ref()), NodeSet::EMPTY);
        // Nor does it as one that gives.
        hosts[2].inactive = true;
        assert_eq!(view(1, &hosts, two.as_ref()), two);
        hosts[2].inactive = false;
        hosts[1].lacks = NodeSet::EMPTY;
        assert_eq!(view(1, &hosts, two.as_ref()), two, "its own word counts");
        hosts[2].lacks = NodeSet::EMPTY;
        let again = view(1, &hosts, two.as_ref());
        assert_eq!(members(again.as_ref()), [0, 1, 2]);
    }

    #[test]
    fn of_two_that_come_and_do_not_reach_each_other_one_is_let_in() {
        let one = view(1, &three()[..1], None);
        let mut hosts = three();
        hosts[1].lacks = set(&[2]);
        let two = view(1, &hosts, one.as_ref());
        assert_eq!(members(two.as_ref()), [0, 1]);
        assert_eq!(two.unwrap().lmasters, [pnn(0), pnn(1)]);
        assert_eq!(awaited(&hosts, one.as_ref()), NodeSet::EMPTY);
    }
}
