//! Checking that a file is consistent (spec/database.md A.12).
//!
//! Other than libtdb's, this check knows exactly where dead space ends: at the next record that a
//! list leads to. A file that lost a recovery area in a crash passes here (I.1).

use std::ops::ControlFlow;

use crate::error::{Fault, Result};
use crate::format::{FREELIST_TOP, HEADER_LEN, Header, RECORD_LEN, RecordHeader, RecordKind};
use crate::handle::Tdb;
use crate::hash::HashKind;
use crate::lock::LockKind;
use crate::read::Heads;
use crate::walk::LoopGuard;

/// What a check counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Records with a key and data.
    pub used: u64,
    /// Deleted records that are still linked.
    pub dead: u64,
    /// Records of the freelist.
    pub free: u64,
    /// Bytes of key and data.
    pub payload_bytes: u64,
    /// Bytes in free records, headers included.
    pub free_bytes: u64,
    /// Bytes that belong to nothing: what a crash left.
    pub lost_bytes: u64,
    /// Size of the recovery area, its header included; 0 without one.
    pub recovery_bytes: u64,
}

/// The list that leads to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum List {
    Free,
    Chain(u32),
}

impl Tdb {
    /// Checks everything: header, lists, records, hashes, tailers, the recovery area. A
    /// read-only handle takes no lock: what others change meanwhile can then look like damage.
    ///
    /// * Locks: all records, shared.
    /// * Errors: [`Error::Corrupt`] with the first fault, [`Error::Header`].
    /// * Cost: every header, key and tailer read once; 12 bytes of memory per record, bounded by
    ///   half of the file's size.
    pub fn check(&mut self) -> Result<CheckReport> {
        if self.locks.all.is_some() || self.read_only {
            return self.check_locked();
        }
        self.lock_all_as(LockKind::Shared, false, self.wait)?;
        let result = self.check_locked();
        let unlocked = self.unlock_all();
        result.and_then(|report| unlocked.map(|()| report))
    }

    fn check_locked(&mut self) -> Result<CheckReport> {
        if !self.storage.in_overlay() {
            self.storage.refresh()?;
        }
        let mut bytes = [0; HEADER_LEN as usize];
        self.storage.read(0, &mut bytes)?;
        let header = Header::decode(&bytes).map_err(|fault| crate::Error::Header {
            path: self.path().to_path_buf(),
            fault,
        })?;
        if header.hash_size != self.geometry.hash_size() || header.order != self.storage.order() {
            return Err(self.storage.corrupt(0, Fault::HeaderChanged));
        }
        self.storage.covers(0, self.geometry.data_start())?;
        let recovery = match self.recovery_record()? {
            Some((offset, record)) => {
                let end = record.end(offset).filter(|end| *end <= self.storage.size());
                Some((
                    offset,
                    end.ok_or_else(|| self.storage.corrupt(offset, Fault::BadRecovery))?,
                ))
            }
            None => None,
        };
        let links = self.collect_links()?;
        self.check_records(&links, recovery)
    }

    /// Every record that a list leads to, in the order of the file.
    fn collect_links(&mut self) -> Result<Vec<(u32, List)>> {
        let mut links = Vec::new();
        let mut left = u64::from(self.storage.size() / (RECORD_LEN + 4)) + 1;
        let mut note = |offset, list| {
            left = left.checked_sub(1).ok_or(Fault::Cycle)?;
            links.push((offset, list));
            Ok(())
        };
        let mut guard = LoopGuard::new(self.storage.size());
        let mut offset = self.storage.read_word(FREELIST_TOP)?;
        while offset != 0 {
            if !guard.step(offset) {
                return Err(self.storage.corrupt(offset, Fault::Cycle));
            }
            note(offset, List::Free).map_err(|fault| self.storage.corrupt(offset, fault))?;
            offset = self.read_checked(offset)?.next;
        }
        let mut heads = Heads::default();
        for chain in 0..self.geometry.hash_size() {
            if heads.get(self, chain)? == 0 {
                continue;
            }
            self.walk_chain(chain, |tdb, found| {
                note(found.offset, List::Chain(chain))
                    .map_err(|fault| tdb.storage.corrupt(found.offset, fault))?;
                Ok(ControlFlow::<()>::Continue(()))
            })?;
        }
        links.sort_unstable();
        match links.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(self.storage.corrupt(pair[0].0, Fault::LinkedTwice)),
            None => Ok(links),
        }
    }

    fn check_records(
        &mut self,
        links: &[(u32, List)],
        recovery: Option<(u32, u32)>,
    ) -> Result<CheckReport> {
        let mut report = CheckReport::default();
        let size = self.storage.size();
        let mut links = links.iter().copied().peekable();
        let mut recovery = recovery;
        let mut offset = self.geometry.data_start();
        while offset < size {
            if let Some((at, list)) = links.next_if(|(at, _)| *at <= offset) {
                if at < offset {
                    return Err(self.storage.corrupt(at, Fault::NotARecord));
                }
                let record = self.read_checked(offset)?;
                self.check_record(offset, &record, list, &mut report)?;
                offset = offset + RECORD_LEN + record.rec_len;
                continue;
            }
            if let Some((at, end)) = recovery.filter(|(at, _)| *at <= offset) {
                if at < offset {
                    return Err(self.storage.corrupt(at, Fault::BadRecovery));
                }
                report.recovery_bytes = u64::from(end - at);
                offset = end;
                recovery = None;
                continue;
            }
            offset = self.skip_lost(
                offset,
                links.peek().map(|(at, _)| *at),
                recovery,
                &mut report,
            )?;
        }
        if let Some((at, _)) = links.next() {
            return Err(self.storage.corrupt(at, Fault::NotARecord));
        }
        if let Some((at, _)) = recovery {
            return Err(self.storage.corrupt(at, Fault::BadRecovery));
        }
        Ok(report)
    }

    /// Steps over space that nothing leads to.
    fn skip_lost(
        &mut self,
        offset: u32,
        next_link: Option<u32>,
        recovery: Option<(u32, u32)>,
        report: &mut CheckReport,
    ) -> Result<u32> {
        let size = self.storage.size();
        let stop = next_link
            .into_iter()
            .chain(recovery.map(|(at, _)| at))
            .fold(size, u32::min);
        if stop - offset >= RECORD_LEN {
            let record = self.storage.read_record(offset)?;
            match record.kind() {
                RecordKind::Blank => {}
                RecordKind::Used | RecordKind::Dead | RecordKind::Free => {
                    return Err(self.storage.corrupt(offset, Fault::Unreferenced));
                }
                RecordKind::Recovery => {
                    return Err(self.storage.corrupt(offset, Fault::BadRecovery));
                }
                RecordKind::Unknown(magic) => {
                    return Err(self.storage.corrupt(offset, Fault::BadMagic(magic)));
                }
            }
        }
        report.lost_bytes += u64::from(stop - offset);
        Ok(stop)
    }

    fn check_record(
        &mut self,
        offset: u32,
        record: &RecordHeader,
        list: List,
        report: &mut CheckReport,
    ) -> Result<()> {
        let found = self
            .storage
            .read_word(offset + RECORD_LEN + record.rec_len - 4)?;
        if found != record.tailer() {
            let fault = Fault::BadTailer {
                found,
                expected: record.tailer(),
            };
            return Err(self.storage.corrupt(offset, fault));
        }
        match (record.kind(), list) {
            (RecordKind::Free, List::Free) => {
                report.free += 1;
                report.free_bytes += u64::from(RECORD_LEN + record.rec_len);
            }
            (kind @ (RecordKind::Used | RecordKind::Dead), List::Chain(chain)) => {
                self.check_payload(offset, record, chain)?;
                if kind == RecordKind::Used {
                    report.used += 1;
                    report.payload_bytes += u64::from(record.key_len) + u64::from(record.data_len);
                } else {
                    report.dead += 1;
                }
            }
            _ => return Err(self.storage.corrupt(offset, Fault::BadMagic(record.magic))),
        }
        Ok(())
    }

    fn check_payload(&mut self, offset: u32, record: &RecordHeader, chain: u32) -> Result<()> {
        let payload = u64::from(record.key_len) + u64::from(record.data_len);
        if payload + 4 > u64::from(record.rec_len) {
            let fault = Fault::BadPayload {
                key_len: record.key_len,
                data_len: record.data_len,
                rec_len: record.rec_len,
            };
            return Err(self.storage.corrupt(offset, fault));
        }
        let key = self.storage.read_vec(offset + RECORD_LEN, record.key_len)?;
        let computed = HashKind::hash(self.hash, &key);
        if computed != record.full_hash {
            let fault = Fault::BadHash {
                computed,
                stored: record.full_hash,
            };
            return Err(self.storage.corrupt(offset, fault));
        }
        let expected = self.geometry.chain(computed);
        if expected != chain {
            return Err(self.storage.corrupt(
                offset,
                Fault::WrongChain {
                    found: chain,
                    expected,
                },
            ));
        }
        Ok(())
    }
}
