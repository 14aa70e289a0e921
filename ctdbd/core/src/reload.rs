//! Whether a new nodes list may be used now: R24.

use std::collections::BTreeMap;
use std::time::Duration;

use ctdb_wire::ids::{BootTime, NodeSet, Pnn};

use crate::authority::{List, Mode, Status};

/// Why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    /// More than one voter differs.
    #[error(
        "the list differs by more than one node (added: {added:?}, removed: {removed:?}); change it one node at a time"
    )]
    MoreThanOne {
        /// Not in the present list.
        added: NodeSet,
        /// Not in the new one.
        removed: NodeSet,
    },
    /// The last change is not over.
    #[error("the last change of the nodes list is not settled yet; try again in some seconds")]
    NotSettled,
    /// Nodes that are heard do not use the present list, or are not settled on it.
    #[error("not all running nodes use the present list yet: {0:?}; reload it there first")]
    NotAll(NodeSet),
    /// The node that was to be the first does not lead.
    #[error("this node does not lead any more; the leader's node takes a list on first")]
    NotLeader,
    /// Nobody leads.
    #[error("there is no leader; the list is changed only while one acts")]
    NoLeader,
    /// Where the lock alone decides, a node that runs would go on with the lock.
    #[error("node {0} still runs; with `authority = lock` stop it before it is removed")]
    StillRuns(Pnn),
}

impl Refused {
    /// Whether waiting alone may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::NotSettled | Self::NotAll(_) | Self::NoLeader)
    }
}

/// Nodes of the list that run, whether there is a link to them or not.
#[must_use]
pub fn heard(status: &Status) -> NodeSet {
    let voters = status.list.voters.iter();
    voters
        .filter(|pnn| status.peers[pnn.index()].is_heard())
        .collect()
}

/// Nodes of the list that run and have no link to `me`, which has those to `linked`. A reload is told over
/// links; who runs and is not told would go on with the old list.
#[must_use]
pub fn untold(status: &Status, me: Pnn, linked: NodeSet) -> NodeSet {
    let heard = heard(status).iter();
    heard
        .filter(|pnn| *pnn != me && !linked.contains(*pnn))
        .collect()
}

/// Checks a reload from what the detector knows.
///
/// The `first` to take a list on is the leader's node, and only while it acts: what it knows makes the
/// reload safe (L3). Behind it the others follow, as long as somebody leads. Where all others that are heard
/// and not settled on this node's list use the new one, it joins them: the leadership may have come to a node
/// while a list is told, or it has retired that list and hears no leader that uses it (L3).
pub fn check(status: &Status, mode: Mode, new: &List, first: bool) -> Result<(), Refused> {
    let old = status.list.voters;
    let added = NodeSet(new.voters.0 & !old.0);
    let removed = NodeSet(old.0 & !new.voters.0);
    if added.len() + removed.len() > 1 {
        return Err(Refused::MoreThanOne { added, removed });
    }
    if added.is_empty() && removed.is_empty() {
        return Ok(());
    }
    let acts = status.acting.is_some();
    if status.leader.is_none() && first {
        return Err(Refused::NoLeader);
    }
    if first && !acts {
        return Err(Refused::NotLeader);
    }
    if status.list.others_use != Some(new.voters) {
        if status.leader.is_none() {
            return Err(Refused::NoLeader);
        }
        if acts && !status.list.settled {
            return Err(Refused::NotSettled);
        }
        let others = NodeSet(status.list.others.0 & !removed.0);
        if acts && !others.is_empty() {
            return Err(Refused::NotAll(others));
        }
    }
    if let (true, Some(node)) = (mode.lock_alone(), removed.iter().next())
        && !status.peers[node.index()].gone
        && status.peers[node.index()].incarnation != ctdb_wire::ids::Incarnation::NONE
    {
        return Err(Refused::StillRuns(node));
    }
    Ok(())
}

/// A node that could not take a list on is told again after this.
const AGAIN: Duration = Duration::from_millis(500);

/// What is to be done for a list that all are told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// These are told now; if they are none, answers are waited for.
    Ask(NodeSet),
    /// All that run have taken it on.
    Done {
        /// Who was to be told and does not run any more.
        gone: NodeSet,
    },
    /// The time is over, and these have not, with what each last said.
    Late(Vec<(Pnn, String)>),
}

/// A list that is told to all nodes: the leader's first (R24), behind it all others at once. Who fails is
/// told again as long as it runs: a change that is not on all nodes is not done.
#[derive(Debug)]
pub struct Telling {
    leader: Pnn,
    /// Who has not taken it on; the leader's node while it is the first.
    left: NodeSet,
    asked: NodeSet,
    gone: NodeSet,
    reasons: BTreeMap<Pnn, String>,
    again_at: BootTime,
    until: BootTime,
}

impl Telling {
    /// To the leader's node and `others`, until then.
    #[must_use]
    pub fn new(leader: Pnn, others: NodeSet, until: BootTime) -> Self {
        let mut left = others;
        left.insert(leader);
        Self {
            leader,
            left,
            asked: NodeSet::EMPTY,
            gone: NodeSet::EMPTY,
            reasons: BTreeMap::new(),
            again_at: BootTime::ZERO,
            until,
        }
    }

    /// Whether it is the leader's node, and nobody has taken the list on.
    #[must_use]
    pub fn is_first(&self, pnn: Pnn) -> bool {
        pnn == self.leader && self.is_untold()
    }

    /// Whether nobody has taken the list on.
    #[must_use]
    pub fn is_untold(&self) -> bool {
        self.left.contains(self.leader)
    }

    /// The node that was to be the first leads no more: `leader` is the first, if it is known.
    pub fn led_by(&mut self, now: BootTime, leader: Option<Pnn>) {
        self.asked.remove(self.leader);
        self.again_at = now + AGAIN;
        let reason = "it does not lead any more".to_owned();
        self.reasons.insert(self.leader, reason);
        if let Some(leader) = leader {
            self.leader = leader;
            self.left.insert(leader);
        }
    }

    /// A node that was asked has taken it on, or says why not.
    pub fn answered(&mut self, now: BootTime, pnn: Pnn, result: Result<(), String>) {
        self.asked.remove(pnn);
        match result {
            Ok(()) => {
                self.left.remove(pnn);
                self.reasons.remove(&pnn);
            }
            Err(reason) => {
                self.reasons.insert(pnn, reason);
                self.again_at = now + AGAIN;
            }
        }
    }

    /// What is next. `linked`: whom a word would reach, this node among them; `heard`: who runs.
    pub fn next(&mut self, now: BootTime, linked: NodeSet, heard: NodeSet) -> Told {
        let mut ready = NodeSet(self.left.0 & !self.asked.0);
        if self.left.contains(self.leader) {
            ready = ready.iter().filter(|pnn| *pnn == self.leader).collect();
        } else {
            let gone = NodeSet(ready.0 & !linked.0 & !heard.0);
            self.gone = NodeSet(self.gone.0 | gone.0);
            self.left = NodeSet(self.left.0 & !gone.0);
        }
        if self.left.is_empty() {
            return Told::Done { gone: self.gone };
        }
        if self.until <= now {
            let reason = |pnn| {
                let said = self.reasons.get(&pnn).cloned();
                (pnn, said.unwrap_or_else(|| "it does not answer".to_owned()))
            };
            return Told::Late(self.left.iter().map(reason).collect());
        }
        ready = NodeSet(ready.0 & linked.0);
        if now < self.again_at {
            ready = ready
                .iter()
                .filter(|pnn| !self.reasons.contains_key(pnn))
                .collect();
        }
        self.asked = NodeSet(self.asked.0 | ready.0);
        Told::Ask(ready)
    }
}

#[cfg(test)]
mod tests {
    use ctdb_wire::ids::{Incarnation, Term};

    use super::*;
    use crate::authority::{Authority, Config, PeerStatus, Timing};

    fn pnn(number: u32) -> Pnn {
        Pnn::new(number).unwrap()
    }

    fn set(nodes: &[u32]) -> NodeSet {
        nodes.iter().map(|node| pnn(*node)).collect()
    }

    /// Of node 0 of four: it hears 1 and 2; nothing is known of 3.
    fn status() -> Status {
        let now = BootTime::from_millis(100_000);
        let voters = set(&[0, 1, 2, 3]);
        let config = Config::majority(pnn(0), Incarnation(1), voters, Timing::standard());
        let mut status = Authority::new(config, now).status(now);
        for node in [1, 2] {
            status.peers[node] = PeerStatus {
                incarnation: Incarnation(7),
                heard_at: now,
                ..PeerStatus::default()
            };
        }
        status
    }

    #[test]
    fn who_runs_and_has_no_link_would_not_be_told() {
        let mut status = status();
        let untold = |status: &Status, linked: &[u32]| untold(status, pnn(0), set(linked));
        assert_eq!(untold(&status, &[1, 2]), set(&[]));
        assert_eq!(untold(&status, &[1]), set(&[2]));
        assert_eq!(untold(&status, &[]), set(&[1, 2]));
        // Who is silent, dead or left out is not waited for.
        let changes: [fn(&mut PeerStatus); 3] = [
            |peer| peer.suspected = true,
            |peer| peer.gone = true,
            |peer| peer.evicted = true,
        ];
        for change in changes {
            let mut other = status.clone();
            change(&mut other.peers[2]);
            assert_eq!(untold(&other, &[]), set(&[1]));
        }
        // Nor who is not in the list.
        status.list.voters = set(&[0, 1]);
        assert_eq!(untold(&status, &[]), set(&[1]));
    }

    #[test]
    fn it_is_done_when_all_that_run_have_taken_it_on() {
        let at = BootTime::from_millis;
        let mut telling = Telling::new(pnn(1), set(&[0, 1, 2, 3]), at(30_000));
        let all = set(&[0, 1, 2, 3]);
        assert_eq!(telling.next(at(0), all, all), Told::Ask(set(&[1])));
        assert!(telling.is_first(pnn(1)) && !telling.is_first(pnn(0)));
        assert_eq!(telling.next(at(1), all, all), Told::Ask(set(&[])));
        telling.answered(at(2), pnn(1), Ok(()));
        assert!(!telling.is_first(pnn(1)));
        assert_eq!(telling.next(at(2), all, all), Told::Ask(set(&[0, 2, 3])));
        telling.answered(at(3), pnn(0), Ok(()));
        // Who fails is told again, after a while, and only over a link.
        telling.answered(at(3), pnn(2), Err("its link is lost".to_owned()));
        assert_eq!(telling.next(at(4), all, all), Told::Ask(set(&[])));
        let three = set(&[0, 1, 3]);
        assert_eq!(telling.next(at(600), three, all), Told::Ask(set(&[])));
        assert_eq!(telling.next(at(601), all, all), Told::Ask(set(&[2])));
        // Who is asked is waited for, and who runs no more is not.
        assert_eq!(telling.next(at(700), three, three), Told::Ask(set(&[])));
        telling.answered(at(700), pnn(2), Err("the link ended".to_owned()));
        telling.answered(at(700), pnn(3), Ok(()));
        let done = Told::Done { gone: set(&[2]) };
        assert_eq!(telling.next(at(700), three, three), done);
    }

    #[test]
    fn who_runs_and_does_not_take_it_on_is_named() {
        let at = BootTime::from_millis;
        let mut telling = Telling::new(pnn(0), set(&[0, 1, 2]), at(30_000));
        let all = set(&[0, 1, 2]);
        telling.next(at(0), all, all);
        telling.answered(at(0), pnn(0), Ok(()));
        assert_eq!(telling.next(at(0), all, all), Told::Ask(set(&[1, 2])));
        telling.answered(at(1), pnn(1), Err("there is no leader".to_owned()));
        let late = vec![
            (pnn(1), "there is no leader".to_owned()),
            (pnn(2), "it does not answer".to_owned()),
        ];
        assert_eq!(telling.next(at(30_000), all, all), Told::Late(late));
        // Who led and leads no more is not the first, but told like the others.
        let mut telling = Telling::new(pnn(0), set(&[0, 1, 2]), at(30_000));
        assert_eq!(telling.next(at(0), all, all), Told::Ask(set(&[0])));
        telling.led_by(at(1), Some(pnn(2)));
        assert_eq!(telling.next(at(1), all, all), Told::Ask(set(&[2])));
        telling.answered(at(2), pnn(2), Ok(()));
        assert_eq!(telling.next(at(600), all, all), Told::Ask(set(&[0, 1])));
        // The leader's node is never left out for its silence.
        let mut telling = Telling::new(pnn(0), set(&[1]), at(30_000));
        assert_eq!(
            telling.next(at(0), set(&[1]), set(&[1])),
            Told::Ask(set(&[]))
        );
    }

    #[test]
    fn what_may_come_by_itself_is_waited_for() {
        let mut status = status();
        let new = List {
            voters: set(&[0, 1, 2]),
            quorum: 2,
        };
        let refused = check(&status, Mode::Majority, &new, true).unwrap_err();
        assert_eq!(refused, Refused::NoLeader);
        assert!(refused.may_pass());
        status.list.voters = set(&[0, 1, 2, 3, 4]);
        let refused = check(&status, Mode::Majority, &new, true).unwrap_err();
        assert!(matches!(refused, Refused::MoreThanOne { .. }));
        assert!(!refused.may_pass());
    }

    #[test]
    fn only_a_leader_that_acts_is_the_first() {
        let mut status = status();
        let new = List {
            voters: set(&[0, 1, 2]),
            quorum: 2,
        };
        let check = |status: &Status, first| check(status, Mode::Majority, &new, first);
        let term = |leader| Term {
            number: 7,
            leader: pnn(leader),
            session: Incarnation(7),
        };
        status.list.settled = true;
        // The leader was another node when this one was asked, and it is not this one now.
        status.leader = Some(term(1));
        assert_eq!(check(&status, true), Err(Refused::NotLeader));
        assert!(!Refused::NotLeader.may_pass());
        assert_eq!(check(&status, false), Ok(()));
        let until = status.now + Duration::from_secs(1);
        status.leader = Some(term(0));
        status.acting = Some((term(0), until));
        assert_eq!(check(&status, true), Ok(()));
        assert_eq!(check(&status, false), Ok(()));
        // Some have taken it on when this node becomes the leader, itself not settled any more.
        status.list.settled = false;
        status.list.others = set(&[1, 2]);
        assert_eq!(check(&status, false), Err(Refused::NotSettled));
        status.list.others_use = Some(new.voters);
        assert_eq!(check(&status, false), Ok(()));
        assert_eq!(check(&status, true), Ok(()));
        // Nor does it lead: it has retired the new list and hears no leader under it.
        status.acting = None;
        status.leader = None;
        assert_eq!(check(&status, false), Ok(()));
        assert_eq!(check(&status, true), Err(Refused::NoLeader));
        // Another list than theirs is not joined.
        status.list.others_use = Some(set(&[0, 1]));
        assert_eq!(check(&status, false), Err(Refused::NoLeader));
    }
}
