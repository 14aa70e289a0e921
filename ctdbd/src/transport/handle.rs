//! What the rest of the daemon says to a running transport.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ctdb_wire::ids::{NodeSet, Pnn};
use ctdb_wire::peer::{self, PeerFrame};
use tokio::time::timeout;

use super::link::{DownReason, Relayed};
use super::{
    EndOnDrop, LinkInfo, LinkStatus, Peer, Phase, Shared, TransportError, check_nodes, lock,
    refusal,
};

/// Speaks for a running transport. Cheap to clone; when the last clone is dropped, all links are
/// closed without goodbye.
#[derive(Clone)]
pub struct TransportHandle {
    pub(super) shared: Arc<Shared>,
    /// Its drop ends the transport.
    pub(super) _end: Arc<EndOnDrop>,
}

impl std::fmt::Debug for TransportHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "transport of node {}", self.shared.identity.me)
    }
}

impl TransportHandle {
    /// Queues `frame` for one peer. False if there is no link, if its queue is full (the link is
    /// then closed), or if the frame breaks a bound of its own, which is a bug and logged.
    pub fn send(&self, pnn: Pnn, frame: &PeerFrame) -> bool {
        !self
            .send_many([pnn].into_iter().collect(), frame)
            .is_empty()
    }

    /// Queues `frame`, encoded once, for every node of `peers`; returns those that will get it.
    pub fn send_many(&self, peers: NodeSet, frame: &PeerFrame) -> NodeSet {
        let bytes: Arc<[u8]> = match peer::encode(frame) {
            Ok(bytes) => bytes.into(),
            Err(error) => {
                tracing::error!(%error, "a frame for other nodes breaks a bound; not sent");
                return NodeSet::EMPTY;
            }
        };
        let mut reached = NodeSet::EMPTY;
        let all = lock(&self.shared.peers);
        for pnn in peers.iter() {
            if let Some(peer) = &all[pnn.index()]
                && let Some(slot) = &*lock(&peer.newest)
                && slot.up
                && slot.outgoing.push(Arc::clone(&bytes))
            {
                reached.insert(pnn);
            }
        }
        reached
    }

    /// Queues a relay frame for one peer, unless as much waits already as clients' traffic may
    /// take of the queue; [`Relays::room`] then says when to try again.
    pub fn relay(&self, pnn: Pnn, frame: &Arc<[u8]>) -> Relayed {
        let all = lock(&self.shared.peers);
        let Some(peer) = &all[pnn.index()] else {
            return Relayed::NoLink;
        };
        match &*lock(&peer.newest) {
            Some(slot) if slot.up => slot.outgoing.push_relay(frame),
            _ => Relayed::NoLink,
        }
    }

    /// Peers for whom more than `bytes` wait in the queue.
    pub fn queues_above(&self, bytes: usize) -> NodeSet {
        let all = lock(&self.shared.peers);
        let peers = all.iter().flatten();
        peers
            .filter(|peer| {
                lock(&peer.newest)
                    .as_ref()
                    .is_some_and(|slot| slot.outgoing.depth().1 > bytes)
            })
            .map(|peer| peer.pnn)
            .collect()
    }

    /// Closes the link with a peer. It is made anew as after any other end.
    pub fn close(&self, pnn: Pnn) {
        if let Some(peer) = self.shared.peer(pnn) {
            peer.close(DownReason::Requested);
        }
    }

    /// Replaces the nodes list. Links with nodes that left, or whose address changed, are closed
    /// ([`DownReason::Removed`]); others stay as they are. This node's own entry is not used: its
    /// address changes only with a restart.
    pub fn set_nodes(&self, nodes: &[(Pnn, IpAddr)]) -> Result<(), TransportError> {
        check_nodes(nodes)?;
        let shared = &self.shared;
        let wanted = |pnn| {
            nodes
                .iter()
                .find(|(other, _)| *other == pnn && pnn != shared.identity.me)
                .map(|(_, address)| *address)
        };
        {
            let mut peers = lock(&shared.peers);
            for slot in peers.iter_mut() {
                if let Some(peer) = slot
                    && wanted(peer.pnn) != Some(peer.address)
                {
                    peer.remove();
                    *slot = None;
                }
            }
        }
        if shared.is_running() {
            for (pnn, address) in nodes {
                if *pnn != shared.identity.me && shared.peer(*pnn).is_none() {
                    shared.add_peer(*pnn, *address);
                }
            }
        }
        Ok(())
    }

    /// The peers in ascending order, for display.
    pub fn status(&self) -> Vec<LinkStatus> {
        let me = self.shared.identity.me;
        let status = |peer: Arc<Peer>| {
            let newest = lock(&peer.newest);
            let history = lock(&peer.history);
            let up = newest.as_ref().filter(|slot| slot.up);
            let (queued_frames, queued_bytes) =
                up.map(|slot| slot.outgoing.depth()).unwrap_or_default();
            LinkStatus {
                pnn: peer.pnn,
                address: peer.address,
                dials: peer.pnn < me,
                link: up.map(|slot| LinkInfo {
                    up_for: slot.since.elapsed(),
                    ..slot.info.clone()
                }),
                links: history.links,
                last_problem: history.last_problem.clone(),
                queued_frames,
                queued_bytes,
                frames_out: peer.traffic.frames_out.load(Ordering::Relaxed),
                bytes_out: peer.traffic.bytes_out.load(Ordering::Relaxed),
                frames_in: peer.traffic.frames_in.load(Ordering::Relaxed),
                bytes_in: peer.traffic.bytes_in.load(Ordering::Relaxed),
            }
        };
        self.shared.all_peers().into_iter().map(status).collect()
    }

    /// How many connections were refused since the start, by
    /// [`Refusal::kind`](refusal::Refusal::kind) with its name.
    pub fn refusals(&self) -> [(&'static str, u64); refusal::Refusal::KINDS] {
        let counts = self.shared.refusals.counts();
        std::array::from_fn(|kind| (refusal::Refusal::NAMES[kind], counts[kind]))
    }

    /// Leaves in order: sends what waits and then a goodbye on each link, for at most
    /// [`Timings::flush`], then closes everything. `Down` events go on being sent meanwhile.
    pub async fn shutdown(&self) {
        let shared = &self.shared;
        if shared.phase.send_replace(Phase::Leaving) == Phase::Ended {
            shared.phase.send_replace(Phase::Ended);
            return;
        }
        let goodbye: Arc<[u8]> = peer::encode(&PeerFrame::Goodbye)
            .expect("a goodbye has no bounds to break")
            .into();
        for peer in shared.all_peers() {
            if let Some(slot) = &*lock(&peer.newest) {
                slot.outgoing.finish(Arc::clone(&goodbye));
            }
        }
        let mut tasks = shared.tasks.subscribe();
        let flush = shared.timings.flush;
        if timeout(flush, tasks.wait_for(|tasks| *tasks == 0))
            .await
            .is_err()
        {
            tracing::warn!(?flush, "goodbyes did not leave in time; closing all links");
        }
        shared.end();
        // Every task sees the end at its next await; nothing it does blocks.
        let _ = timeout(flush, tasks.wait_for(|tasks| *tasks == 0)).await;
    }
}
