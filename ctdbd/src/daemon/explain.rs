//! Why addresses are where they are: the leader's books, its plan, and one address in words.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ctdb_core::allocation::{self, Problem};
use ctdb_core::leader::Know;
use ctdb_wire::api::{ApiError, BookView, LeaderView, PlanView, PlannedMove, WhyView};
use ctdb_wire::ids::{BootTime, NodeFlags, NodeSet, Pnn, RunState};

use super::actions::{Answer, json, no_leader};
use super::node::Node;
use crate::clock::boot_now;

impl Node {
    pub(super) fn leader_view(&self) -> LeaderView {
        let coordinator = &self.parts.coordinator;
        let term = coordinator.status().and_then(|status| status.leader);
        let leader = coordinator.leader();
        LeaderView {
            leader: term.map(|term| term.leader.get()),
            term: term.map(|term| term.number),
            acting: leader.is_some(),
            books: leader
                .into_iter()
                .flat_map(ctdb_core::leader::Leader::hosts)
                .map(|(pnn, know, may)| BookView {
                    node: pnn.get(),
                    know: match know {
                        Know::Unknown => "unknown",
                        Know::Known => "known",
                        Know::Dead => "dead",
                    }
                    .to_owned(),
                    may_hold: may as u32,
                })
                .collect(),
            settled: leader.is_some_and(ctdb_core::leader::Leader::settled),
        }
    }

    pub(super) fn plan(&self) -> Answer {
        let Some(leader) = self.parts.coordinator.leader() else {
            return Err(no_leader());
        };
        let situation = self.parts.coordinator.situation();
        let states = leader.address_states(&situation);
        let plan = allocation::allocate(&Problem {
            nodes: situation.list_length,
            addresses: &states,
            policy: situation.policy,
            home_nodes: &situation.home_nodes,
            rebalance: NodeSet::EMPTY,
        });
        let mut view = PlanView::default();
        for (state, assignment) in states.iter().zip(&plan.assignments) {
            if state.current == assignment.to && assignment.to.is_some() {
                view.unchanged += 1;
            } else if assignment.to.is_none() {
                view.unhosted.push(assignment.address);
            } else {
                view.moves.push(PlannedMove {
                    address: assignment.address,
                    from: state.current.map(Pnn::get),
                    to: assignment.to.map(Pnn::get),
                    reason: assignment.reason.to_string(),
                });
            }
        }
        if situation.policy.no_takeover {
            view.notes
                .push("NoIPTakeover is set: nothing is given to anybody".to_owned());
        }
        if situation.disabled {
            view.notes
                .push("[failover] disabled is set: the plan is not carried out".to_owned());
        }
        json(&view)
    }

    pub(super) fn why(&self, address: IpAddr) -> Answer {
        let coordinator = &self.parts.coordinator;
        let Some(leader) = coordinator.leader() else {
            return Err(no_leader());
        };
        let now = boot_now();
        let situation = coordinator.situation();
        let Some(able) = situation.able.get(&address) else {
            return Err(ApiError::new(
                404,
                "no_such_address",
                format!("no node names the public address {address}; see `ctdb ip list`"),
            ));
        };
        let (wanted, may) = leader.whereabouts(address);
        let owner = leader.serves(address);
        let mut nodes = BTreeMap::new();
        for pnn in coordinator.config().voters.iter() {
            let text = self.why_on(now, address, pnn, able.contains(pnn));
            nodes.insert(pnn.get(), text);
        }
        let reason = match (owner, wanted) {
            (Some(owner), _) => format!("node {owner} serves it"),
            (None, Some(wanted)) if !leader.complete() => format!(
                "it shall go to node {wanted}, as soon as every node has answered this leader or \
                 its right has ended"
            ),
            (None, Some(wanted)) if may.iter().any(|pnn| pnn != wanted) => {
                format!("on its way to node {wanted}; its former host has not let go yet")
            }
            (None, Some(wanted)) => format!("on its way to node {wanted}"),
            (None, None) => "no node can host it".to_owned(),
        };
        json(&WhyView {
            address,
            owner: owner.map(Pnn::get),
            wanted: wanted.map(Pnn::get),
            may_hold: may.iter().map(Pnn::get).collect(),
            nodes,
            reason,
        })
    }

    fn why_on(&self, now: BootTime, address: IpAddr, pnn: Pnn, able: bool) -> String {
        let coordinator = &self.parts.coordinator;
        let flags = coordinator.flags(now, pnn);
        let info = if pnn == self.parts.me {
            Some(coordinator.info())
        } else {
            coordinator.peer(pnn).info.as_ref()
        };
        let refused = coordinator
            .leader()
            .and_then(|leader| leader.refusal(pnn, address));
        match info {
            _ if flags.intersects(NodeFlags::NO_ADDRESSES) => format!("no: {flags}"),
            None => "no: nothing is known of it yet".to_owned(),
            Some(info) if info.run_state != RunState::Running => {
                format!("no: its run state is {}", info.run_state)
            }
            Some(info) => match info
                .addresses
                .iter()
                .find(|known| known.net.addr() == address)
            {
                None => "no: its public addresses file does not name it".to_owned(),
                Some(known) if !known.available => {
                    format!("no: no link on {}", known.interfaces.join(", "))
                }
                Some(_) if refused.is_some() => {
                    format!("not now: {}", refused.unwrap_or_default())
                }
                Some(_) if able => "yes".to_owned(),
                Some(_) => "no: it only votes".to_owned(),
            },
        }
    }
}
