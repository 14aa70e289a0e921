//! The hub's side towards other nodes: links that come and go, and their frames.

use ctdb_wire::client::packet::{Control, ControlFlags};
use ctdb_wire::ids::{NodeSet, Pnn};
use ctdb_wire::relay::{self, Assembler, Relay};

use super::hub::{Hub, NODE_LOST, Origin};

impl Hub {
    /// A link stands.
    pub fn link_up(&mut self, pnn: Pnn) {
        self.refresh();
        self.linked.insert(pnn);
        self.look_at_nodes();
        self.processes.lost(pnn);
        self.assemblers[pnn.index()] = Assembler::default();
        let to: NodeSet = [pnn].into_iter().collect();
        let all: Vec<relay::Process> = self.registry.all().collect();
        self.tell_processes(to, true, &all);
        self.databases_linked(pnn);
        self.ask_parked(pnn);
    }

    pub(super) fn tell_processes(&mut self, to: NodeSet, mut anew: bool, list: &[relay::Process]) {
        let mut chunks = list.chunks(relay::MAX_PROCESSES);
        let mut next = chunks.next();
        while anew || next.is_some() {
            let mut entries = Vec::new();
            for process in next.unwrap_or_default() {
                relay::put_process(process, &mut entries);
            }
            let entries = &entries;
            self.frame_to(to, Relay::Processes { anew, entries }.to_vec());
            anew = false;
            next = chunks.next();
        }
    }

    /// A link is gone.
    pub fn link_down(&mut self, pnn: Pnn) {
        self.linked.remove(pnn);
        self.look_at_nodes();
        self.processes.lost(pnn);
        self.assemblers[pnn.index()] = Assembler::default();
        let lost: Vec<u32> = self
            .forwarded
            .iter()
            .filter(|(_, forwarded)| forwarded.to == pnn)
            .map(|(number, _)| *number)
            .collect();
        for number in lost {
            if let Some(forwarded) = self.forwarded.remove(&number)
                && let Some(forwarded) = self.park(forwarded)
            {
                self.fail(forwarded.origin, NODE_LOST);
            }
        }
    }

    /// A frame of another node; false if it is none.
    pub fn frame(&mut self, from: Pnn, bytes: &[u8]) -> bool {
        self.refresh();
        let received = &mut self.statistics.node_packets_recv;
        *received = received.wrapping_add(1);
        match Relay::decode(bytes) {
            Ok(Relay::Piece { last, data }) => {
                match self.assemblers[from.index()].piece(last, data) {
                    Ok(Some(whole)) => match Relay::decode(&whole) {
                        Ok(Relay::Piece { .. }) | Err(_) => false,
                        Ok(relay) => self.relay(from, relay),
                    },
                    Ok(None) => true,
                    Err(_) => false,
                }
            }
            Ok(relay) => self.relay(from, relay),
            Err(error) => {
                tracing::error!(node = %from, %error, "another node's frame is malformed");
                false
            }
        }
    }

    fn relay(&mut self, from: Pnn, relay: Relay<'_>) -> bool {
        let count = &mut self.statistics.node;
        match relay {
            Relay::Message { srvid, data } => {
                count.req_message = count.req_message.wrapping_add(1);
                self.deliver(srvid, data);
            }
            Relay::Tunnel {
                id,
                flags,
                reqid,
                data,
            } => {
                count.req_tunnel = count.req_tunnel.wrapping_add(1);
                self.tunnelled(from, id, flags, reqid, data);
            }
            Relay::Control {
                id,
                opcode,
                srvid,
                flags,
                data,
            } => {
                count.req_control = count.req_control.wrapping_add(1);
                let control = Control {
                    opcode,
                    srvid,
                    client_id: 0,
                    flags: ControlFlags::from_bits_retain(flags),
                    data,
                };
                self.local(Origin::Peer(from, id), &control);
            }
            Relay::Reply {
                id,
                status,
                data,
                error,
            } => {
                count.reply_control = count.reply_control.wrapping_add(1);
                // Of another node than was asked, or too late: nobody waits for it.
                if self
                    .forwarded
                    .get(&id)
                    .is_some_and(|forwarded| forwarded.to == from)
                    && let Some(forwarded) = self.forwarded.remove(&id)
                {
                    let error = String::from_utf8_lossy(error);
                    self.reply(forwarded.origin, status, data, &error);
                }
            }
            Relay::Processes { anew, entries } => {
                self.processes.told(from, anew, relay::processes(entries));
            }
            Relay::Database(payload) => return self.database_frame(from, payload),
            Relay::Piece { .. } => return false,
        }
        true
    }
}
