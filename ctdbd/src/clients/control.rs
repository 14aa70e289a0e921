//! Controls: carried out here, sent on to the node that they are for, answered
//! (`spec/client-protocol.md` 3.6).

use ctdb_wire::client::control::{Opcode, Request};
use ctdb_wire::client::packet::{Body, Control, ControlFlags, Header, ReplyControl};
use ctdb_wire::client::types::NodeMapEntry;
use ctdb_wire::ids::{NodeSet, Pnn};
use ctdb_wire::relay::Relay;
use serde_json::Value;

use super::hub::{DISCONNECTED, Forwarded, Hub, MAX_FORWARDED, Origin, TIMED_OUT, Then, Verdict};
use super::parked::Question;
use crate::config::Tunable;
use crate::messaging::registry::ClientId;
use crate::messaging::routing::Route;

impl Hub {
    pub(super) fn control(&mut self, id: ClientId, header: Header, control: &Control<'_>) {
        let silent = control.flags.contains(ControlFlags::NO_REPLY);
        let origin = if silent {
            Origin::Silent(id)
        } else {
            Origin::Client(id, header.reqid)
        };
        match self.nodes.route(header.destnode) {
            Route::Here => self.local(origin, control),
            Route::Node(pnn) => {
                if !self.known_elsewhere(pnn, origin, control) {
                    self.forward(pnn, origin, control);
                }
            }
            Route::Nodes(_) if !silent => {
                tracing::warn!(
                    opcode = control.opcode,
                    "a client's broadcast control that wants a reply is not answered"
                );
            }
            Route::Nodes(mut nodes) => {
                let here = nodes.remove(self.me);
                if !nodes.is_empty() {
                    self.frame_to(nodes, relayed(0, control));
                }
                if here {
                    self.local(origin, control);
                }
            }
            Route::Nowhere => {
                if !self.park_new(header.destnode, origin, control) {
                    self.fail(origin, DISCONNECTED);
                }
            }
        }
    }

    /// Sends a control to nodes without wanting an answer, this one perhaps among them.
    pub(super) fn tell(&mut self, to: NodeSet, request: &Request<'_>) {
        let payload = ctdb_wire::client::codec::encode_to_vec(request);
        let control = Control {
            opcode: request.opcode() as u32,
            srvid: 0,
            client_id: 0,
            flags: ControlFlags::NO_REPLY,
            data: &payload,
        };
        let mut others = to;
        let here = others.remove(self.me);
        if !others.is_empty() {
            self.frame_to(others, relayed(0, &control));
        }
        if here {
            self.local(Origin::Peer(self.me, 0), &control);
        }
    }

    /// Other nodes whose link is up, and this one.
    pub(super) fn connected_nodes(&self) -> NodeSet {
        self.nodes.connected
    }

    /// Answers from the tables of other nodes' processes; what does not stand there is asked for.
    pub(super) fn known_elsewhere(
        &mut self,
        node: Pnn,
        origin: Origin,
        control: &Control<'_>,
    ) -> bool {
        // An inactive node answers for itself (5.9).
        if !self.nodes.active.contains(node) {
            return false;
        }
        let Some(opcode @ (Opcode::CheckPidSrvid | Opcode::ProcessExists)) =
            Opcode::of(control.opcode)
        else {
            return false;
        };
        let there = match Request::decode(opcode, control.data) {
            Ok(Request::CheckPidSrvid(asked)) => self.processes.has(node, asked.pid, asked.srvid),
            Ok(Request::ProcessExists(pid)) => self.processes.has_process(node, pid),
            _ => false,
        };
        if there {
            self.payload.clear();
            self.finish(origin, Verdict::Status(0));
        }
        there
    }

    /// What is asked of a node now.
    pub(super) fn asked(&self, to: Pnn, origin: Origin, control: &Control<'_>) -> Forwarded {
        Forwarded {
            to,
            origin,
            until: self.now + self.tunables.seconds(Tunable::ControlTimeout),
            question: Question::of(control),
        }
    }

    pub(super) fn forward(&mut self, to: Pnn, origin: Origin, control: &Control<'_>) {
        let mut number = 0;
        if !matches!(origin, Origin::Silent(_)) {
            if self.forwarded.len() >= MAX_FORWARDED {
                self.fail(origin, TIMED_OUT);
                return;
            }
            loop {
                self.last_forwarded = self.last_forwarded.wrapping_add(1).max(1);
                if !self.forwarded.contains_key(&self.last_forwarded) {
                    break;
                }
            }
            number = self.last_forwarded;
            let forwarded = self.asked(to, origin, control);
            self.forwarded.insert(number, forwarded);
        }
        self.frame_to([to].into_iter().collect(), relayed(number, control));
    }

    /// Carries out a control on this node.
    pub(super) fn local(&mut self, origin: Origin, control: &Control<'_>) {
        let verdict = match Opcode::of(control.opcode)
            .map(|opcode| Request::decode(opcode, control.data))
        {
            Some(Ok(request)) => {
                self.payload.clear();
                self.carry_out(origin, control, &request)
            }
            Some(Err(error)) => {
                tracing::debug!(opcode = control.opcode, %error, "a control's payload is malformed");
                Verdict::Failed
            }
            None => Verdict::Failed,
        };
        self.finish(origin, verdict);
    }

    /// Answers a control; with [`Verdict::Status`] the payload goes along.
    pub(super) fn finish(&mut self, origin: Origin, verdict: Verdict) {
        let payload = std::mem::take(&mut self.payload);
        match verdict {
            Verdict::Status(status) => self.reply(origin, status, &payload, ""),
            Verdict::Failed => self.reply(origin, -1, &[], ""),
            Verdict::Later => {}
        }
        self.payload = payload;
    }

    pub(super) fn fail(&mut self, origin: Origin, text: &str) {
        self.reply(origin, -1, &[], text);
    }

    pub(super) fn reply(&mut self, origin: Origin, status: i32, data: &[u8], error: &str) {
        match origin {
            Origin::Silent(_) | Origin::Peer(_, 0) => {}
            Origin::Client(id, reqid) => {
                let error = error.as_bytes();
                let body = Body::ReplyControl(ReplyControl {
                    status,
                    data,
                    error,
                });
                self.send(id, reqid, body);
            }
            Origin::Peer(pnn, id) => {
                let frame = Relay::Reply {
                    id,
                    status,
                    data,
                    error: error.as_bytes(),
                }
                .to_vec();
                self.frame_to([pnn].into_iter().collect(), frame);
            }
        }
    }

    /// The main loop has answered.
    pub fn answered(&mut self, then: Then, answer: Result<Value, ()>) {
        self.refresh();
        self.payload.clear();
        match then {
            Then::Control(origin) => {
                let verdict = if answer.is_ok() {
                    Verdict::Status(0)
                } else {
                    Verdict::Failed
                };
                self.finish(origin, verdict);
            }
            Then::Ban(origin) => {
                let seconds = answer.ok().and_then(|value| value.as_u64());
                let verdict = self.ban_state(seconds.unwrap_or(0) as u32);
                self.finish(origin, verdict);
            }
            Then::Message { srvid: 0, .. } => {}
            Then::Message { pnn, srvid } => {
                let result = if answer.is_ok() {
                    self.me.get().cast_signed()
                } else {
                    -1
                };
                self.message_to(pnn, srvid, &result.to_ne_bytes());
            }
        }
    }

    /// The nodes list was read.
    pub fn nodes_file(&mut self, origin: Origin, nodes: Option<Vec<NodeMapEntry>>) {
        self.payload.clear();
        let verdict = match nodes {
            Some(nodes) => {
                ctdb_wire::client::codec::Encode::encode(&nodes, &mut self.payload);
                Verdict::Status(0)
            }
            None => Verdict::Failed,
        };
        self.finish(origin, verdict);
    }
}

fn relayed(id: u32, control: &Control<'_>) -> Vec<u8> {
    Relay::Control {
        id,
        opcode: control.opcode,
        srvid: control.srvid,
        flags: control.flags.bits(),
        data: control.data,
    }
    .to_vec()
}
