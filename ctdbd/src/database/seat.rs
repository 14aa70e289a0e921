//! Who works for a database: its thread, or whoever has something for it and finds it idle.
//!
//! A hand-over to another thread costs more than what there is to do for most calls and messages.
//! So they are handled at once on the thread that read them ([`Seat::call`], [`Seat::peer`]) if nothing
//! waits in the [`Mailbox`] and nobody else is at work; else they wait there for the database's
//! thread, in order. Nothing is waited for on the way: who works under another's thread finds a lock
//! that is busy left to a waiting thread ([`Worker`] is *hasty* then). Threads that waited for a lock or
//! a disk go on with what they waited for ([`Seat::bring`]).
//!
//! Locks: who has the worker may take the hub's lock (to deliver), who has the hub's lock only tries
//! the worker's.

use std::sync::{Arc, Mutex, MutexGuard, TryLockError};

use ctdb_wire::ids::Pnn;

use super::mailbox::{Item, Mailbox};
use super::worker::Worker;
use super::{Outlet, Output};

/// Bytes of a message or a transaction that are worth a hand-over.
const LONG: usize = 64 << 10;

/// A database's place to work.
pub struct Seat {
    mailbox: Arc<Mailbox>,
    outlet: Arc<dyn Outlet>,
    /// `None` before the file is open, and when the database was stopped.
    worker: Mutex<Option<Worker>>,
}

impl std::fmt::Debug for Seat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seat").finish_non_exhaustive()
    }
}

impl Seat {
    /// Nobody works yet.
    pub(super) fn new(mailbox: Arc<Mailbox>, outlet: Arc<dyn Outlet>) -> Self {
        Self {
            mailbox,
            outlet,
            worker: Mutex::new(None),
        }
    }

    /// The worker, if nobody else has it just now, it has not ended, and nothing waits for it.
    fn idle(&self) -> Option<MutexGuard<'_, Option<Worker>>> {
        let place = self.worker.try_lock().ok()?;
        (place.is_some() && self.mailbox.is_empty()).then_some(place)
    }

    /// A client's call or transaction: what follows from it at once, or, if it has to wait, nothing.
    /// `None`: there is no room for it.
    pub fn call(&self, item: Item) -> Option<Vec<Output>> {
        if item.size() <= LONG
            && let Some(mut place) = self.idle()
            && let Some(worker) = place.as_mut()
            && worker.is_serving()
        {
            return Some(worker.at_once(item));
        }
        self.mailbox.offer(item).then(Vec::new)
    }

    /// Another node's message: what follows from it at once, or, if it has to wait, nothing.
    pub fn peer(&self, from: Pnn, bytes: &[u8]) -> Vec<Output> {
        if bytes.len() <= LONG
            && let Some(mut place) = self.idle()
            && let Some(worker) = place.as_mut()
            && worker.is_serving()
            && let Some(outputs) = worker.message_at_once(from, bytes)
        {
            return outputs;
        }
        self.mailbox.peer(from, bytes.to_vec());
        Vec::new()
    }

    /// The alarm of [`Outlet::alarm`] has come: what follows.
    pub fn due(&self) -> Vec<Output> {
        if let Some(mut place) = self.idle()
            && let Some(worker) = place.as_mut()
        {
            return worker.holds_at_once();
        }
        // Its thread looks at what is due in any case.
        self.mailbox.post(Item::Granted);
        Vec::new()
    }

    /// Something that a thread of this database waited for has come: it goes on with it itself, unless
    /// somebody is at work.
    pub(super) fn bring(&self, item: Item) {
        self.mailbox.put(item);
        match self.worker.try_lock() {
            Ok(mut place) => self.turn(&mut place, false),
            Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => self.mailbox.wake(),
        }
    }

    /// Takes in all that has come. `all`: also what is due by time.
    fn turn(&self, place: &mut Option<Worker>, all: bool) {
        let Some(worker) = place else {
            // It has ended; its thread sees that.
            return;
        };
        let ended = worker.turn(all).is_break();
        let outputs = worker.take_outputs();
        // Before anybody else can work, so that outputs keep their order.
        if !outputs.is_empty() {
            self.outlet.deliver(outputs);
        }
        if ended {
            *place = None;
            self.mailbox.close();
        } else {
            worker.set_alarm();
        }
    }

    /// The life of the database's thread.
    pub(super) fn serve(&self, worker: Worker) {
        if let Ok(mut place) = self.worker.lock() {
            *place = Some(worker);
        }
        loop {
            // Poisoned: somebody panicked in the middle of something. It was logged; what the worker
            // knows is worth nothing any more.
            let Ok(mut place) = self.worker.lock() else {
                return;
            };
            self.turn(&mut place, true);
            if place.is_none() {
                return;
            }
            drop(place);
            self.mailbox.wait();
        }
    }
}
