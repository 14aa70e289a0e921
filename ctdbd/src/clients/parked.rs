//! Questions about processes of a node that cannot be reached but may live.
//!
//! Samba takes any failure of CHECK_PID_SRVID for "dead" and then takes over what the process holds.
//! A node whose link is lost may serve for as long as its right runs, and its processes with it; so
//! such a question waits until the link is back, or until a recovery without that node begins, which
//! proves that its right is over (DATA-5). Whether it waits is decided by [`Rights`].

use ctdb_db::cluster::rights::{Rights, ViewId};
use ctdb_wire::client::control::Opcode;
use ctdb_wire::client::packet::{Control, ControlFlags};
use ctdb_wire::ids::{NodeSet, Pnn};

use super::hub::{Forwarded, Hub, MAX_FORWARDED, NODE_LOST, Origin, TIMED_OUT};
use crate::messaging::registry::ClientId;

/// A control that asks whether a process lives.
pub(super) struct Question {
    opcode: u32,
    srvid: u64,
    flags: ControlFlags,
    data: Box<[u8]>,
}

impl Question {
    /// The control, if it asks for that.
    pub(super) fn of(control: &Control<'_>) -> Option<Self> {
        let asks = matches!(
            Opcode::of(control.opcode),
            Some(Opcode::CheckPidSrvid | Opcode::ProcessExists)
        );
        asks.then(|| Self {
            opcode: control.opcode,
            srvid: control.srvid,
            flags: control.flags,
            data: control.data.into(),
        })
    }
}

/// What waits.
#[derive(Default)]
pub(super) struct Parked {
    waiting: Vec<Forwarded>,
    /// As recoveries told.
    rights: Rights,
}

impl Parked {
    /// A client is gone.
    pub(super) fn gone(&mut self, client: ClientId) {
        self.waiting
            .retain(|parked| parked.origin.client() != Some(client));
    }

    /// Questions about nodes whose right is over.
    fn take_over(&mut self) -> Vec<Forwarded> {
        let rights = &self.rights;
        self.waiting
            .extract_if(.., |parked| !rights.may_live(parked.to))
            .collect()
    }

    fn take(&mut self, mut which: impl FnMut(&Forwarded) -> bool) -> Vec<Forwarded> {
        self.waiting
            .extract_if(.., |parked| which(parked))
            .collect()
    }
}

impl Hub {
    /// A control for a node that cannot be reached; false if it is not one that waits.
    pub(super) fn park_new(&mut self, to: u32, origin: Origin, control: &Control<'_>) -> bool {
        let Ok(to) = Pnn::new(to) else {
            return false;
        };
        if matches!(origin, Origin::Silent(_)) {
            return false;
        }
        let asked = self.asked(to, origin, control);
        self.park(asked).is_none()
    }

    /// Keeps what was asked of a node whose link is gone; given back if it is not to wait.
    pub(super) fn park(&mut self, asked: Forwarded) -> Option<Forwarded> {
        let waits = asked.question.is_some()
            && self.parked.rights.may_live(asked.to)
            && self.parked.waiting.len() < MAX_FORWARDED;
        if !waits {
            return Some(asked);
        }
        self.parked.waiting.push(asked);
        None
    }

    /// The link to that node stands again: it is asked.
    pub(super) fn ask_parked(&mut self, pnn: Pnn) {
        for parked in self.parked.take(|parked| parked.to == pnn) {
            let Some(question) = parked.question else {
                continue;
            };
            let control = Control {
                opcode: question.opcode,
                srvid: question.srvid,
                client_id: 0,
                flags: question.flags,
                data: &question.data,
            };
            if !self.known_elsewhere(pnn, parked.origin, &control) {
                self.forward(pnn, parked.origin, &control);
            }
        }
    }

    /// A recovery begins, or ends: only these nodes may have a right to serve.
    pub(super) fn rights(&mut self, view: ViewId, may: NodeSet) {
        if !self.parked.rights.heard(view, may) {
            return;
        }
        for parked in self.parked.take_over() {
            self.fail(parked.origin, NODE_LOST);
        }
    }

    /// What has waited for as long as a control may.
    pub(super) fn parked_too_long(&mut self) {
        let now = self.now;
        for parked in self.parked.take(|parked| parked.until <= now) {
            self.statistics.timeouts.control += 1;
            self.fail(parked.origin, TIMED_OUT);
        }
    }
}
