//! What a commit that did not finish left behind, and putting it back (spec/database.md A.11).

use crate::error::{Error, Fault, Result};
use crate::format::{
    FREE_MAGIC, FREELIST_TOP, RECORD_LEN, RecordHeader, RecordKind, TAILER_LEN, field,
};
use crate::handle::Tdb;
use crate::lock::{LockKind, LockName};

/// Offset of the magic in a record header.
pub(crate) const MAGIC_AT: u32 = 20;
/// Offset of the hash word in a record header.
pub(crate) const HASH_AT: u32 = 16;

impl Tdb {
    /// The recovery record of the file, if one was ever allocated.
    pub(crate) fn recovery_record(&mut self) -> Result<Option<(u32, RecordHeader)>> {
        let offset = self.storage.read_word(field::RECOVERY_START as u32)?;
        if offset == 0 {
            return Ok(None);
        }
        if offset < self.geometry.data_start() || !offset.is_multiple_of(4) {
            return Err(self.storage.corrupt(offset, Fault::BadRecovery));
        }
        let record = self.storage.read_record(offset)?;
        match record.kind() {
            RecordKind::Recovery | RecordKind::Blank => Ok(Some((offset, record))),
            _ => Err(self.storage.corrupt(offset, Fault::BadMagic(record.magic))),
        }
    }

    /// Whether a commit crashed between its second and its fourth sync.
    pub(crate) fn needs_recovery(&mut self) -> Result<bool> {
        if self.read_only || self.running.is_some() || !self.is_locking() {
            return Ok(false);
        }
        let record = self.recovery_record()?;
        Ok(record.is_some_and(|(_, record)| record.kind() == RecordKind::Recovery))
    }

    /// Refuses a file whose commit is half done, for a handle that can only read and so cannot undo it.
    /// Any other damage is found by what meets it.
    pub(crate) fn refuse_half_done(&mut self) -> Result<()> {
        match self.recovery_record() {
            Ok(Some((_, record))) if record.kind() == RecordKind::Recovery => {
                Err(Error::NeedsRecovery {
                    path: self.path().to_path_buf(),
                })
            }
            _ => Ok(()),
        }
    }

    /// Whether this handle locks a file that others use.
    pub(crate) fn is_locking(&self) -> bool {
        self.storage.file().is_some() && !self.flags.contains(crate::OpenFlags::NOLOCK)
    }

    /// Takes the locks that recovery needs, and recovers.
    pub(crate) fn recover_lazily(&mut self) -> Result<()> {
        self.lock_range(LockName::AllRecords, LockKind::Exclusive, self.wait)?;
        let result = self
            .lock_range(LockName::Open, LockKind::Exclusive, self.wait)
            .and_then(|()| {
                let recovered = self.recover_if_needed();
                recovered.and(self.unlock_range(LockName::Open))
            });
        result.and(self.release_all_bytes())
    }

    /// Puts the old content back if a commit crashed. The caller has the file to itself. Returns
    /// whether there was something to put back.
    pub(crate) fn recover_if_needed(&mut self) -> Result<bool> {
        let Some((offset, record)) = self.recovery_record()? else {
            return Ok(false);
        };
        if record.kind() != RecordKind::Recovery {
            return Ok(false);
        }
        if self.read_only {
            return Err(Error::ReadOnly);
        }
        // The one who died may have had a longer file than we have seen.
        self.storage.refresh()?;
        let damaged = self.storage.corrupt(offset, Fault::BadRecovery);
        let Some(area_end) = record.end(offset) else {
            return Err(damaged);
        };
        if record.data_len > record.rec_len {
            return Err(damaged);
        }
        self.storage.covers(offset, RECORD_LEN + record.rec_len)?;
        // First look at all of it, so that a damaged area changes nothing.
        let blocks = self.recovery_blocks(offset, &record, area_end)?;
        let mut buf = vec![0; 64 << 10];
        for (from, to, len) in blocks {
            let mut done = 0;
            while done < len {
                let piece = (len - done).min(buf.len() as u32) as usize;
                self.storage.read(from + done, &mut buf[..piece])?;
                if let Err(error) = self.storage.write(to + done, &buf[..piece])
                    && !self.storage.equals(to + done, &buf[..piece])?
                {
                    // A hole on a full disk, where the commit ended too, is as it was.
                    return Err(error);
                }
                done += piece as u32;
            }
        }
        let freelist_head = self.reclaim(&record, offset, area_end)?;
        self.storage.sync()?;
        if let Some(head) = freelist_head {
            self.storage.write_word(FREELIST_TOP, head)?;
            // Not disarmed before the head is safe: a free record in no list takes new space in.
            self.storage.sync()?;
        }
        self.storage
            .write_word(field::RECOVERY_START as u32, offset)?;
        self.storage.write_word(offset + MAGIC_AT, 0)?;
        self.storage.sync()?;
        Ok(true)
    }

    /// Makes free records of what the crashed commit added to the file, except the recovery area;
    /// the freelist's new head, if it changes.
    ///
    /// libtdb forgets this space and the recovery area in it (`recovery_start` becomes 0), and its
    /// own check then stumbles over what lies there (I.1). Keeping the area and freeing the rest
    /// leaves a file that both accept. Everything here can be cut off and done again: the records
    /// are synced before the head points to them, and the area is armed until after that.
    fn reclaim(&mut self, record: &RecordHeader, area: u32, area_end: u32) -> Result<Option<u32>> {
        self.storage.refresh()?;
        let end = self.storage.size() & !3;
        let Some(old_end) = record.key_len.checked_next_multiple_of(4) else {
            return Ok(None);
        };
        if old_end < self.geometry.data_start() {
            return Ok(None);
        }
        let mut gaps: Vec<_> = self.former_area(record, area)?.into_iter().collect();
        gaps.extend(around(old_end.min(end), end, area, area_end));
        gaps.retain(|(start, stop)| stop - start >= RECORD_LEN + TAILER_LEN);
        let head = self.storage.read_word(FREELIST_TOP)?;
        if gaps.iter().any(|(start, _)| *start == head) {
            // A recovery that got this far before.
            return Ok(None);
        }
        let mut next = head;
        for (start, stop) in gaps {
            let rec_len = stop - start - RECORD_LEN;
            let free = RecordHeader {
                next,
                rec_len,
                magic: FREE_MAGIC,
                ..RecordHeader::default()
            };
            self.storage.write_record(start, &free)?;
            self.storage.write_word(stop - TAILER_LEN, free.tailer())?;
            next = start;
        }
        Ok((next != head).then_some(next))
    }

    /// The area that the crashed commit gave up for a larger one, if it was ours and said so in its
    /// hash word, which libtdb leaves 0.
    fn former_area(&mut self, record: &RecordHeader, area: u32) -> Result<Option<(u32, u32)>> {
        let at = record.full_hash;
        let inside = |end: u32| end <= record.key_len && (end <= area || at > area);
        if at < self.geometry.data_start() || !at.is_multiple_of(4) || !inside(at) {
            return Ok(None);
        }
        let former = self.storage.read_record(at)?;
        let whole = former.rec_len >= TAILER_LEN && former.rec_len.is_multiple_of(4);
        let Some(end) = former.end(at).filter(|end| whole && inside(*end)) else {
            return Ok(None);
        };
        let sound = match former.kind() {
            // What a recovery area ends its content with.
            RecordKind::Blank => match former.data_len.checked_sub(TAILER_LEN) {
                Some(last) if last <= former.rec_len - TAILER_LEN => {
                    self.storage.read_word(at + RECORD_LEN + last)? == former.tailer()
                }
                _ => false,
            },
            // A recovery got this far before; its tailer may be missing.
            RecordKind::Free => true,
            _ => false,
        };
        Ok(sound.then_some((at, end)))
    }

    /// Source, target and length of what is to be put back, all inside the file and none of it over
    /// the recovery area itself.
    fn recovery_blocks(
        &mut self,
        area: u32,
        record: &RecordHeader,
        area_end: u32,
    ) -> Result<Vec<(u32, u32, u32)>> {
        let mut blocks = Vec::new();
        let mut at = area + RECORD_LEN;
        let end = at + record.data_len;
        while end - at > 8 {
            let to = self.storage.read_word(at)?;
            let len = self.storage.read_word(at + 4)?;
            at += 8;
            if len > end - at || to.checked_add(len).is_none_or(|e| e > self.storage.size()) {
                return Err(self.storage.corrupt(at - 8, Fault::BadRecovery));
            }
            for (start, stop) in around(to, to + len, area, area_end) {
                blocks.push((at + (start - to), start, stop - start));
            }
            at += len;
        }
        Ok(blocks)
    }
}

/// The parts of `start..end` outside `hole..hole_end`.
pub(crate) fn around(
    start: u32,
    end: u32,
    hole: u32,
    hole_end: u32,
) -> impl Iterator<Item = (u32, u32)> {
    let before = (start, end.min(hole).max(start));
    let after = (start.max(hole_end).min(end), end);
    [before, after].into_iter().filter(|(from, to)| from < to)
}

/// The header of a recovery area that is not armed (A.10 step 5). `former` is the area that it
/// replaces, 0 for none.
pub(crate) fn area_header(capacity: u32, old_end: u32, valid: u32, former: u32) -> RecordHeader {
    RecordHeader {
        next: 0,
        rec_len: capacity,
        key_len: old_end,
        data_len: valid,
        full_hash: former,
        magic: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn around_leaves_the_hole_out() {
        let parts = |s, e, h, k| around(s, e, h, k).collect::<Vec<_>>();
        assert_eq!(parts(0, 10, 20, 30), [(0, 10)]);
        assert_eq!(parts(0, 10, 4, 6), [(0, 4), (6, 10)]);
        assert_eq!(parts(0, 10, 4, 60), [(0, 4)]);
        assert_eq!(parts(5, 10, 0, 7), [(7, 10)]);
        assert_eq!(parts(5, 10, 0, 70), []);
        assert_eq!(parts(50, 60, 0, 7), [(50, 60)]);
    }
}
