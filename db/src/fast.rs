//! The usual fetch, in one piece: nothing held, no transaction, a map, no crash to recover. The same
//! locks and checks as the general way ([`Tdb::fetch`]), without its counting; whatever is not
//! usual goes the general way from the beginning.

use crate::error::Result;
use crate::format::{RECORD_LEN, RECOVERY_MAGIC, field};
use crate::handle::Tdb;
use crate::lock::{LockKind, LockName};
use crate::mutex::MutexArea;
use crate::open::OpenFlags;
use crate::recovery::MAGIC_AT;
use crate::robust;
use crate::storage::Search;

impl Tdb {
    /// Appends the data of `key` to `data`; whether it exists. `None`: not the usual case, and `data`
    /// is as it was.
    #[inline]
    pub(crate) fn fetch_fast(&mut self, key: &[u8], data: &mut Vec<u8>) -> Result<Option<bool>> {
        if self.locks.holds_any() || self.running.is_some() {
            return Ok(None);
        }
        let hash = self.hash.hash(key);
        let chain = self.geometry.chain(hash);
        if self.flags.contains(OpenFlags::NOLOCK) {
            return Ok(self.fetch_unlocked(key, hash, chain, data));
        }
        if let Some(mutexes) = &self.mutexes {
            if !mutexes.try_quickly(chain + 1) {
                return Ok(None);
            }
            let before = data.len();
            let state = robust::Mutexes::state(mutexes);
            let found = if robust::lets_readers_in(state) && !self.may_need_recovery() {
                self.fetch_unlocked(key, hash, chain, data)
            } else {
                None
            };
            let unlocked = |mutexes: &MutexArea| mutexes.unlock_quickly(chain + 1);
            if !self.mutexes.as_ref().is_some_and(unlocked) {
                data.truncate(before);
                return Ok(None);
            }
            return Ok(found);
        }
        let name = LockName::Chain(chain);
        self.lock_range(name, LockKind::Shared, self.wait)?;
        let before = data.len();
        let found = if self.may_need_recovery() {
            None
        } else {
            self.fetch_unlocked(key, hash, chain, data)
        };
        if self.unlock_range(name).is_err() {
            data.truncate(before);
            return Ok(None);
        }
        Ok(found)
    }

    /// Whether a commit may have crashed (A.11).
    #[inline]
    fn may_need_recovery(&self) -> bool {
        let storage = &self.storage;
        match storage.map_word(field::RECOVERY_START as u32) {
            Some(0) => false,
            Some(area) => area
                .checked_add(MAGIC_AT)
                .and_then(|at| storage.map_word(at))
                .is_none_or(|magic| magic == RECOVERY_MAGIC),
            None => true,
        }
    }

    #[inline]
    fn fetch_unlocked(
        &mut self,
        key: &[u8],
        hash: u32,
        chain: u32,
        data: &mut Vec<u8>,
    ) -> Option<bool> {
        let head = self.geometry.head(chain);
        let data_start = self.geometry.data_start();
        match self.storage.find_in_map(head, data_start, hash, key) {
            Search::Found(found) => {
                let record = &found.record;
                let at = found.offset + RECORD_LEN + record.key_len;
                let small = record.data_len <= self.max_record_len;
                (small && self.storage.copy_from_map(at, record.data_len, data)).then_some(true)
            }
            Search::Absent => Some(false),
            Search::Unclear => None,
        }
    }
}
