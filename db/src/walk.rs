//! Walking along lists that nobody vouches for.

use crate::error::{Fault, Result};
use crate::format::{RECORD_LEN, RecordHeader};
use crate::handle::Tdb;

impl Tdb {
    /// The record at `offset`, after all checks that a reader makes (A.3).
    #[inline]
    pub(crate) fn read_checked(&mut self, offset: u32) -> Result<RecordHeader> {
        let data_start = self.geometry.data_start();
        if let Some(record) = self.storage.record_in_map(offset, data_start) {
            return Ok(record);
        }
        self.read_checked_slowly(offset)
    }

    fn read_checked_slowly(&mut self, offset: u32) -> Result<RecordHeader> {
        if offset < self.geometry.data_start() || !offset.is_multiple_of(4) {
            return Err(self.storage.corrupt(offset, Fault::BadOffset));
        }
        self.storage.covers(offset, RECORD_LEN)?;
        let record = self.storage.read_record(offset)?;
        if record.rec_len < 4 || !record.rec_len.is_multiple_of(4) {
            return Err(self
                .storage
                .corrupt(offset, Fault::BadLength(record.rec_len)));
        }
        let Some(_) = record.end(offset) else {
            let fault = Fault::OutOfFile {
                len: record.rec_len,
                size: self.storage.size(),
            };
            return Err(self.storage.corrupt(offset, fault));
        };
        self.storage.covers(offset, RECORD_LEN + record.rec_len)?;
        if record.next != 0 {
            if record.next < self.geometry.data_start() {
                return Err(self.storage.corrupt(record.next, Fault::BadOffset));
            }
            self.storage.covers(record.next, RECORD_LEN)?;
        }
        Ok(record)
    }
}

/// Finds out that a list is circular, without reading anything twice (Brent), and bounds it even
/// if somebody changes it under us.
#[derive(Debug)]
pub(crate) struct LoopGuard {
    mark: u32,
    steps: u32,
    next_mark: u32,
    left: u32,
}

impl LoopGuard {
    /// For a list of records in a file of `size` bytes.
    pub(crate) fn new(size: u32) -> Self {
        Self {
            mark: 0,
            steps: 0,
            next_mark: 1,
            left: size / (RECORD_LEN + 4) + 1,
        }
    }

    /// The walk comes to `offset`. `false`: it was there before.
    #[inline]
    pub(crate) fn step(&mut self, offset: u32) -> bool {
        if (offset == self.mark && self.steps > 0) || self.left == 0 {
            return false;
        }
        self.left -= 1;
        self.steps += 1;
        if self.steps == self.next_mark {
            self.mark = offset;
            self.next_mark = self.next_mark.saturating_mul(2);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_noticed_and_a_list_is_not_a_loop() {
        let mut guard = LoopGuard::new(1 << 20);
        assert!((1..30_000).all(|i| guard.step(i * 28)));
        for (lead, round) in [(0u32, 1u32), (5, 3), (100, 1000)] {
            let mut guard = LoopGuard::new(u32::MAX);
            let noticed = (0..10_000u32).find(|i| {
                let at = if *i < lead {
                    *i
                } else {
                    lead + (i - lead) % round
                };
                !guard.step(1000 + at)
            });
            assert!(noticed.is_some(), "lead {lead} round {round}");
        }
        let mut guard = LoopGuard::new(28);
        assert!(guard.step(4) && guard.step(8) && !guard.step(12));
    }
}
