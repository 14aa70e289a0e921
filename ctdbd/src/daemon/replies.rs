//! Answers that other nodes wait for, and those that the connection table gives.

use ctdb_wire::api::connections::ConnectionAction;
use ctdb_wire::peer::{MAX_REPLY, OperationError, PeerFrame};

use super::actions::{Answer, Reply};
use super::node::Node;
use crate::failover;

/// An answer as it travels to the node that asked.
pub(super) fn to_peer(answer: Answer) -> Result<String, OperationError> {
    let text = answer
        .map(|value| value.to_string())
        .map_err(|error| OperationError {
            status: error.status,
            code: error.code,
            message: error.message,
        })?;
    if text.len() > MAX_REPLY {
        return Err(OperationError {
            status: 507,
            code: "too_large".to_owned(),
            message: format!(
                "the answer has {} bytes, more than travel between nodes; ask that node itself, or \
                 for less",
                text.len()
            ),
        });
    }
    Ok(text)
}

impl Node {
    /// Answered by the thread that has the table, from there.
    pub(super) fn connections(&mut self, action: ConnectionAction, reply: Reply) {
        let answer: failover::connections::Reply = match reply {
            Reply::Client(sender) | Reply::Control(sender) | Reply::Step(sender) => {
                Box::new(move |answer| drop(sender.send(answer)))
            }
            Reply::Peer(pnn, id) => {
                let transport = self.parts.transport.clone();
                Box::new(move |answer| {
                    let result = to_peer(answer);
                    transport.send(pnn, &PeerFrame::Reply { id, result });
                })
            }
        };
        self.parts.connections.query(action, answer);
    }
}
