//! What the databases are told of the cluster: the right of this node, and, while it leads, who is
//! a member.

use std::collections::BTreeMap;

use ctdb_core::coordinator::Coordinator;
use ctdb_core::leader::Know;
use ctdb_db::cluster::View;
use ctdb_wire::ids::{BootTime, Epoch, Incarnation, NodeSet, Pnn, Term};

use super::node::Node;

/// A host in the leader's books, and what it says of itself.
#[derive(Clone, Copy, Debug)]
struct Host {
    pnn: Pnn,
    know: Know,
    epoch: Epoch,
    has_right: bool,
    linked: bool,
    /// It said what follows.
    described: bool,
    voter_only: bool,
    inactive: bool,
    lmaster: bool,
}

/// The life of a member: a daemon's, and a right's. A node whose right was away comes back through
/// a recovery, since it stopped serving when its right ended.
fn life(epoch: Epoch) -> Incarnation {
    let number = u64::from(epoch.number);
    Incarnation(epoch.incarnation.0 ^ number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

/// The view of a leader, if it can be given: of each host it must be known that it is a member, or
/// gives what it has, or cannot change its records any more (DATA-5). While it is not, the last one
/// of this term stands.
fn view(term: Term, hosts: &[Host], quorum: usize, old: Option<&View>) -> Option<View> {
    let old = old.filter(|old| old.term == term);
    let mut view = View {
        term,
        members: BTreeMap::new(),
        donors: NodeSet::EMPTY,
        witnesses: NodeSet::EMPTY,
        lmasters: Vec::new(),
        complete: false,
    };
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
            view.donors.insert(host.pnn);
        } else if usable && host.has_right {
            view.members.insert(host.pnn, life(host.epoch));
            if host.lmaster {
                view.lmasters.push(host.pnn);
            }
        } else {
            // Never one of this term's: it has nothing. Else it is waited for, or for its end.
            let stranger = old.is_some_and(|old| {
                !old.members.contains_key(&host.pnn) && !old.donors.contains(host.pnn)
            });
            if !(stranger && host.know == Know::Known) {
                return old.cloned();
            }
        }
    }
    if view.members.is_empty() {
        return old.cloned();
    }
    if view.lmasters.is_empty() {
        view.lmasters = view.members.keys().copied().collect();
    }
    // Two sets that can serve share a node with databases: |these| + quorum > |all|, as long as
    // voters without databases do not make a quorum of their own.
    let known = view.members.len() + view.donors.len();
    view.complete = quorum >= without_databases && known + quorum > hosts.len();
    Some(view)
}

fn hosts(coordinator: &Coordinator, now: BootTime) -> Option<(Term, Vec<Host>)> {
    let term = coordinator.acting(now)?;
    let leader = coordinator
        .leader()
        .filter(|leader| leader.term() == term)?;
    let config = coordinator.config();
    let host = |(pnn, know, epoch, has_right)| {
        let me = pnn == config.me;
        let peer = coordinator.peer(pnn);
        let info = if me {
            Some(coordinator.info())
        } else {
            peer.info.as_ref()
        };
        Host {
            pnn,
            know,
            epoch,
            has_right,
            linked: me || peer.linked && peer.incarnation == epoch.incarnation,
            described: info.is_some(),
            voter_only: info.is_some_and(|info| info.capabilities.voter_only),
            inactive: info.is_some_and(|info| info.flags.is_inactive()),
            lmaster: info.is_some_and(|info| info.capabilities.lmaster),
        }
    };
    let hosts = leader.standing().map(host).collect();
    Some((term, hosts))
}

impl Node {
    /// After each step: the databases hear what is new.
    pub(super) fn follow_databases(&mut self, now: BootTime) {
        let coordinator = &self.parts.coordinator;
        let right = coordinator
            .status()
            .and_then(|status| status.right_until.map(|_| status.slot));
        let quorum = coordinator.config().quorum;
        let hosts = hosts(coordinator, now);
        self.parts.clients.follow_cluster(right, |old| {
            let (term, hosts) = hosts.as_ref()?;
            view(*term, hosts, quorum, old)
        });
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
        }
    }

    fn three() -> Vec<Host> {
        (0..3).map(host).collect()
    }

    fn members(view: Option<&View>) -> Vec<u32> {
        let members = view.into_iter().flat_map(|view| view.members.keys());
        members.map(|pnn| pnn.get()).collect()
    }

    #[test]
    fn nobody_is_left_out_before_its_right_has_ended() {
        let mut hosts = three();
        hosts[2].know = Know::Unknown;
        assert_eq!(view(term(1), &hosts, 2, None), None);
        let all = view(term(1), &three(), 2, None);
        assert_eq!(members(all.as_ref()), [0, 1, 2]);
        assert!(all.as_ref().unwrap().complete);
        // Silent, or without right: still one of them.
        let mut hosts = three();
        hosts[2].linked = false;
        assert_eq!(view(term(1), &hosts, 2, all.as_ref()), all);
        assert_eq!(view(term(2), &hosts, 2, all.as_ref()), None, "a new term");
        hosts[2].has_right = false;
        assert_eq!(view(term(1), &hosts, 2, all.as_ref()), all);
        // Proved to have none.
        hosts[2].know = Know::Dead;
        let two = view(term(1), &hosts, 2, all.as_ref());
        assert_eq!(members(two.as_ref()), [0, 1]);
        assert!(two.as_ref().unwrap().complete, "2 of 3 met every quorum");
        // On its way back it holds up nobody.
        hosts[2].know = Know::Known;
        assert_eq!(view(term(1), &hosts, 2, two.as_ref()), two);
    }

    #[test]
    fn a_right_that_was_away_comes_back_by_a_recovery() {
        let all = view(term(1), &three(), 2, None);
        let mut hosts = three();
        hosts[1].epoch.number += 2;
        let again = view(term(1), &hosts, 2, all.as_ref());
        assert_ne!(again, all);
        assert_eq!(members(again.as_ref()), [0, 1, 2]);
    }

    #[test]
    fn stopped_nodes_give_and_voters_have_nothing() {
        let mut hosts = three();
        hosts[1].inactive = true;
        hosts[2].voter_only = true;
        let view = view(term(1), &hosts, 2, None).unwrap();
        assert_eq!(members(Some(&view)), [0]);
        assert!(view.donors.contains(pnn(1)));
        assert_eq!(view.lmasters, [pnn(0)]);
    }
}
