//! Messages that CTDB's recovery daemon takes and answers (`spec/client-protocol.md` 6.3): the
//! tool depends on them, and there is no such daemon here.

use ctdb_wire::api::Action;
use ctdb_wire::client::codec::{Reader, decode_all};
use ctdb_wire::client::srvid;
use ctdb_wire::client::types::{DisableMessage, SrvidMessage};

use super::AskKind;
use super::hub::{Effect, Hub, Then};

impl Hub {
    /// Looks at a message that is delivered here.
    pub(super) fn steward(&mut self, address: u64, data: &[u8]) {
        match address {
            srvid::TAKEOVER_RUN => {
                let Ok(SrvidMessage { pnn, srvid }) = decode_all(data) else {
                    return;
                };
                let then = Then::Message { pnn, srvid };
                // Broadcast: the leader alone acts. A run that is under way is joined.
                if self.leader_number() == self.me.get() {
                    self.effect(Effect::Ask(AskKind::Act(Action::Reallocate), then));
                } else if self.nobody_is_active() {
                    // There is nobody who could lead or host anything: it is as done as it can be.
                    self.answered(then, Ok(serde_json::Value::Null));
                }
            }
            srvid::REBALANCE_NODE if self.leader_number() == self.me.get() => {
                let then = Then::Message { pnn: 0, srvid: 0 };
                self.effect(Effect::Ask(AskKind::Act(Action::Reallocate), then));
            }
            // Moves and reloads are carried out by the leader as one step, so there is nothing
            // that could come in between and would have to be held back.
            srvid::DISABLE_TAKEOVER_RUNS | srvid::DISABLE_RECOVERIES => {
                if let Ok(message) = Reader::new(data).value::<DisableMessage>()
                    && message.srvid != 0
                {
                    let done = self.me.get().cast_signed().to_ne_bytes();
                    self.message_to(message.pnn, message.srvid, &done);
                }
            }
            srvid::MEM_DUMP => {
                if let Ok(message) = Reader::new(data).value::<SrvidMessage>()
                    && message.srvid != 0
                {
                    let report = self.memory_report();
                    self.message_to(message.pnn, message.srvid, report.as_bytes());
                }
            }
            _ => {}
        }
    }
}
