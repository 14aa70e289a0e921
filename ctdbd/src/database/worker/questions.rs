//! Questions of clients about the database as a whole, and what an operator does with it: freeze,
//! restore, wipe (`spec/client-protocol.md` 5).

use ctdb_db::cluster::message::Record;
use ctdb_db::cluster::{Kind, SEQNUM_KEY, Store as _, StoreFault, sequence_of};
use ctdb_wire::client::codec::encode_to_vec;
use ctdb_wire::client::control::Reply;
use ctdb_wire::client::types::{DbStatistics, HotKey, LTDB_HEADER, Latency};

use super::Worker;
use crate::clients::hub::Origin;
use crate::database::mailbox::Question;

impl Worker {
    pub(super) fn answer(&mut self, origin: Origin, question: Question) {
        match question {
            Question::Seqnum => match self.seqnum() {
                Some(number) => self.control(origin, 0, encode_to_vec(&Reply::U64(number))),
                None => self.control(origin, -1, Vec::new()),
            },
            Question::Statistics => {
                let statistics = Box::new(self.statistics());
                let data = encode_to_vec(&Reply::DbStatistics(statistics));
                self.control(origin, 0, data);
            }
            Question::Freeze => {
                self.held = true;
                self.follow_right();
                if self.store.is_frozen() {
                    self.control(origin, 0, Vec::new());
                } else {
                    self.freezers.push(origin);
                }
            }
            Question::Thaw => {
                self.end_hold();
                self.control(origin, 0, Vec::new());
            }
            Question::TransactionStart => {
                let good = self.held && self.store.is_frozen() && self.begin_restore();
                self.control(origin, if good { 0 } else { -1 }, Vec::new());
            }
            Question::TransactionCommit => {
                let good = self.restoring && self.end_restore(true);
                self.control(origin, if good { 0 } else { -1 }, Vec::new());
            }
            Question::TransactionCancel => {
                // Nothing to undo is no failure (as CTDB).
                let good = !self.restoring || self.end_restore(false);
                self.control(origin, if good { 0 } else { -1 }, Vec::new());
            }
            Question::Wipe => {
                let wiped = self.restoring && self.logged(|this| this.store.wipe());
                self.control(origin, if wiped { 0 } else { -1 }, Vec::new());
            }
            Question::PushStart => {
                self.pushed = 0;
                let status = if self.restoring { 0 } else { -1 };
                self.control(origin, status, Vec::new());
            }
            Question::PushConfirm => {
                if self.restoring {
                    let data = encode_to_vec(&Reply::U32(self.pushed));
                    self.control(origin, 0, data);
                } else {
                    self.control(origin, -1, Vec::new());
                }
            }
        }
    }

    fn logged<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T, StoreFault>) -> bool {
        match work(self) {
            Ok(_) => true,
            Err(fault) => {
                tracing::error!(db = %self.id, %fault, "a restore fails");
                false
            }
        }
    }

    fn begin_restore(&mut self) -> bool {
        if self.restoring {
            return true;
        }
        if self.kind != Kind::Volatile
            && let Err(error) = self.store.tdb().transaction_start()
        {
            tracing::error!(db = %self.id, %error, "a restore cannot begin");
            return false;
        }
        self.restoring = true;
        true
    }

    pub(super) fn end_restore(&mut self, commit: bool) -> bool {
        if !std::mem::take(&mut self.restoring) {
            return false;
        }
        if self.kind == Kind::Volatile {
            return true;
        }
        let tdb = self.store.tdb();
        let result = if commit {
            tdb.transaction_commit()
        } else {
            tdb.transaction_cancel()
        };
        if let Err(error) = result {
            tracing::error!(db = %self.id, %error, "a restore fails");
            return false;
        }
        true
    }

    /// An operator's freeze is over: by command, or by a recovery.
    pub(super) fn end_hold(&mut self) {
        self.end_restore(false);
        self.held = false;
        for origin in std::mem::take(&mut self.freezers) {
            self.control(origin, -1, Vec::new());
        }
    }

    pub(super) fn restore(&mut self, records: &[Record]) {
        if !self.restoring {
            return;
        }
        for record in records {
            let header = record.header();
            if self.logged(|this| this.store.write(&record.key, &header, &record.data)) {
                self.pushed += 1;
            }
        }
    }

    fn seqnum(&mut self) -> Option<u64> {
        if self.held && !self.restoring {
            return None;
        }
        match self.store.tdb().fetch(SEQNUM_KEY) {
            Ok(Some(value)) => Some(value.get(LTDB_HEADER..).map_or(0, sequence_of)),
            Ok(None) => Some(0),
            Err(error) => {
                tracing::warn!(db = %self.id, %error, "the sequence number cannot be read");
                None
            }
        }
    }

    fn statistics(&self) -> DbStatistics {
        let from = self.database.statistics();
        let mut statistics = DbStatistics {
            ro_delegations: from.delegations as u32,
            ro_revokes: from.revocations as u32,
            hop_count_bucket: from.hop_buckets.map(|count| count as u32),
            ..DbStatistics::default()
        };
        statistics.locks.calls = from.calls as u32;
        statistics.locks.pending = self.waiters.waits() as u32;
        let (count, total, longest) = from.latency;
        statistics.locks.latency = Latency {
            count: count as i32,
            min: 0.0,
            max: longest.as_secs_f64(),
            total: total.as_secs_f64(),
        };
        for (slot, bucket) in statistics
            .locks
            .buckets
            .iter_mut()
            .zip(from.latency_buckets)
        {
            *slot = bucket as u32;
        }
        for (slot, hot) in statistics.hot_keys.iter_mut().zip(self.database.hot_keys()) {
            *slot = HotKey {
                count: hot.count,
                key: hot.key.clone(),
            };
        }
        statistics
    }
}
