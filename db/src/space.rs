//! Space management: the freelist, dead records, growth, wiping (spec/database.md A.9).
//!
//! The policy is libtdb's, so that the same operations give the same bytes.

use std::ops::ControlFlow;

use crate::error::{Error, Fault, Result};
use crate::format::{
    FILL_WORD, FREE_MAGIC, FREELIST_TOP, MIN_SPLIT, RECORD_LEN, RecordHeader, RecordKind,
    TAILER_LEN, USED_MAGIC, expansion, request_len,
};
use crate::handle::Tdb;
use crate::lock::{LockKind, LockName, Wait};
use crate::recovery::MAGIC_AT;
use crate::walk::LoopGuard;

/// What the allocator found in the freelist.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    offset: u32,
    rec_len: u32,
    /// Offset of the word that leads to it.
    link: u32,
}

/// Offset and `rec_len` of an allocated record.
pub(crate) type Place = (u32, u32);

impl Tdb {
    /// Finds room for `payload` bytes of key and data. The chain of `hash` is locked.
    pub(crate) fn allocate(&mut self, hash: u32, payload: u32) -> Result<Place> {
        let requested = request_len(payload).ok_or(Error::TooLarge(u64::from(payload)))?;
        let own = self.geometry.chain(hash);
        if self.max_dead > 0 {
            for i in 0..self.geometry.hash_size() {
                let chain = self.geometry.chain(hash.wrapping_add(i));
                if let Some(place) = self.reuse_dead(chain, payload)? {
                    return Ok(place);
                }
                match self.lock(LockName::Freelist, LockKind::Exclusive, Wait::Try) {
                    Ok(()) => return self.allocate_and_unlock(own, requested),
                    Err(Error::Busy { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        self.lock(LockName::Freelist, LockKind::Exclusive, self.wait)?;
        self.allocate_and_unlock(own, requested)
    }

    fn allocate_and_unlock(&mut self, own: u32, requested: u32) -> Result<Place> {
        let result = self
            .trim(own, 0)
            .and_then(|()| self.allocate_free(requested));
        let unlocked = self.unlock(LockName::Freelist);
        result.and_then(|place| unlocked.map(|()| place))
    }

    /// Takes the smallest dead record of a chain that `payload` fits, if the chain is free.
    fn reuse_dead(&mut self, chain: u32, payload: u32) -> Result<Option<Place>> {
        let name = LockName::Chain(chain);
        match self.lock(name, LockKind::Exclusive, Wait::Try) {
            Ok(()) => {}
            Err(Error::Busy { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        let result = self.reuse_dead_locked(chain, payload);
        let unlocked = self.unlock(name);
        result.and_then(|place| unlocked.map(|()| place))
    }

    fn reuse_dead_locked(&mut self, chain: u32, payload: u32) -> Result<Option<Place>> {
        let mut best: Option<(u32, RecordHeader, u32)> = None;
        self.walk_chain(chain, |_, found| {
            let record = &found.record;
            let fits = record.kind() == RecordKind::Dead
                && u64::from(record.rec_len) >= u64::from(payload) + u64::from(TAILER_LEN);
            if fits && best.is_none_or(|(_, b, _)| record.rec_len < b.rec_len) {
                best = Some((found.offset, *record, found.link));
            }
            Ok(ControlFlow::<()>::Continue(()))
        })?;
        let Some((offset, record, link)) = best else {
            return Ok(None);
        };
        if !self.may_free(offset)? {
            // Somebody's traverse stands on it and follows its `next`.
            return Ok(None);
        }
        self.storage.write_word(link, record.next)?;
        Ok(Some((offset, record.rec_len)))
    }

    /// Whether no traverse stands on the record.
    fn may_free(&mut self, offset: u32) -> Result<bool> {
        if self.positions.contains(&offset) {
            return Ok(false);
        }
        if self.locks.all.is_some() {
            // Nobody else can stand anywhere when our lock becomes or is exclusive.
            return Ok(true);
        }
        let name = LockName::Record(offset);
        match self.lock_range(name, LockKind::Exclusive, Wait::Try) {
            Ok(()) => self.unlock_range(name).map(|()| true),
            Err(Error::Busy { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Frees the dead records of a chain beyond the first `keep`, except where somebody stands.
    /// The chain is locked exclusively; the freelist is locked when the first is freed.
    pub(crate) fn trim(&mut self, chain: u32, keep: u32) -> Result<()> {
        let mut freelist = false;
        let result = self.trim_chain(chain, keep, &mut freelist);
        if freelist {
            let unlocked = self.unlock(LockName::Freelist);
            return result.and(unlocked);
        }
        result
    }

    fn trim_chain(&mut self, chain: u32, keep: u32, freelist: &mut bool) -> Result<()> {
        let mut dead = 0u32;
        let mut link = self.geometry.head(chain);
        let mut guard = LoopGuard::new(self.storage.size());
        let mut offset = self.storage.read_word(link)?;
        while offset != 0 {
            if !guard.step(offset) {
                return Err(self.storage.corrupt(offset, Fault::Cycle));
            }
            let record = self.read_checked(offset)?;
            match record.kind() {
                RecordKind::Used => link = offset,
                RecordKind::Dead => {
                    dead += 1;
                    if dead > keep {
                        if !*freelist {
                            self.lock(LockName::Freelist, LockKind::Exclusive, self.wait)?;
                            *freelist = true;
                        }
                        if self.may_free(offset)? {
                            self.storage.write_word(link, record.next)?;
                            self.free(offset, record)?;
                        } else {
                            link = offset;
                        }
                    } else {
                        link = offset;
                    }
                }
                _ => return Err(self.storage.corrupt(offset, Fault::BadMagic(record.magic))),
            }
            offset = record.next;
        }
        Ok(())
    }

    /// The free record that ends where `offset` begins (A.9.5).
    fn free_left_neighbour(&mut self, offset: u32) -> Result<Option<(u32, RecordHeader)>> {
        let data_start = self.geometry.data_start();
        let Some(tailer_at) = offset.checked_sub(TAILER_LEN).filter(|at| *at > data_start) else {
            return Ok(None);
        };
        let distance = self.storage.read_word(tailer_at)?;
        if distance == 0 || distance == FILL_WORD || distance > offset {
            return Ok(None);
        }
        let left = offset - distance;
        if left < data_start || !left.is_multiple_of(4) {
            return Ok(None);
        }
        let record = self.storage.read_record(left)?;
        let is_free = record.kind() == RecordKind::Free && record.end(left) == Some(offset);
        Ok(is_free.then_some((left, record)))
    }

    fn write_tailer(&mut self, offset: u32, record: &RecordHeader) -> Result<()> {
        let at = record
            .end(offset)
            .and_then(|end| end.checked_sub(TAILER_LEN))
            .ok_or_else(|| {
                self.storage
                    .corrupt(offset, Fault::BadLength(record.rec_len))
            })?;
        self.storage.write_word(at, record.tailer())
    }

    /// Makes `left` longer by the record that follows it, which is not marked free. Until the new
    /// tailer is there, the old one leads to that record: at no moment does what follows find a free
    /// neighbour that ends elsewhere, which libtdb would not notice.
    fn merge_into(
        &mut self,
        left: u32,
        mut record: RecordHeader,
        added: u32,
    ) -> Result<RecordHeader> {
        record.rec_len = record
            .rec_len
            .checked_add(RECORD_LEN)
            .and_then(|len| len.checked_add(added))
            .ok_or_else(|| self.storage.corrupt(left, Fault::BadLength(record.rec_len)))?;
        self.storage.write_record(left, &record)?;
        self.write_tailer(left, &record)?;
        Ok(record)
    }

    /// Puts a record into the freelist, which is locked (A.9.5).
    pub(crate) fn free(&mut self, offset: u32, record: RecordHeader) -> Result<()> {
        if let Some((left, neighbour)) = self.free_left_neighbour(offset)? {
            self.merge_into(left, neighbour, record.rec_len)?;
            return Ok(());
        }
        self.write_tailer(offset, &record)?;
        self.enlist(offset, record)
    }

    /// Puts a record whose tailer is right at the head of the freelist.
    ///
    /// It is marked free when the list leads to it. Whoever dies before has lost a used record, which
    /// stays what it is, where a free one would swallow what becomes free behind it; whoever dies
    /// between has left a used record in the list, which the next search makes free.
    fn enlist(&mut self, offset: u32, mut record: RecordHeader) -> Result<()> {
        record.next = self.storage.read_word(FREELIST_TOP)?;
        record.magic = USED_MAGIC;
        self.storage.write_record(offset, &record)?;
        self.storage.write_word(FREELIST_TOP, offset)?;
        self.storage.write_word(offset + MAGIC_AT, FREE_MAGIC)
    }

    /// Searches the freelist, grows the file if nothing fits. The freelist is locked (A.9.2).
    fn allocate_free(&mut self, requested: u32) -> Result<Place> {
        let wanted = requested
            .checked_add(RECORD_LEN)
            .ok_or(Error::TooLarge(u64::from(requested)))?;
        // A pass that merged is followed by one that finds; so is one that grew the file.
        let mut grown = None;
        for _ in 0..16 {
            let (best, merged) = self.search(requested)?;
            match (best, grown.take()) {
                (Some(best), _) => return self.carve(best, requested),
                (None, _) if merged => {}
                // Somebody died between taking the last record of the file off the list and
                // marking it: it has taken the new space in, and no list leads to it.
                (None, Some(lost)) => self.link_free(lost)?,
                (None, None) => grown = Some(self.expand(wanted)?),
            }
        }
        Err(self.storage.corrupt(FREELIST_TOP, Fault::Restless))
    }

    /// Puts a free record that is in no list into the freelist.
    fn link_free(&mut self, offset: u32) -> Result<()> {
        let record = self.read_checked(offset)?;
        if record.kind() != RecordKind::Free {
            return Err(self.storage.corrupt(offset, Fault::BadMagic(record.magic)));
        }
        self.enlist(offset, record)
    }

    /// Best free record for `requested` bytes, and whether merging made one that was not looked at.
    fn search(&mut self, requested: u32) -> Result<(Option<Candidate>, bool)> {
        let mut best: Option<Candidate> = None;
        let mut merged = false;
        let mut multiplier = 1.0f32;
        let mut link = FREELIST_TOP;
        let mut guard = LoopGuard::new(self.storage.size());
        let mut offset = self.storage.read_word(link)?;
        while offset != 0 {
            if !guard.step(offset) {
                return Err(self.storage.corrupt(offset, Fault::Cycle));
            }
            let mut record = self.read_checked(offset)?;
            match record.kind() {
                RecordKind::Free => {}
                RecordKind::Used => {
                    // What libtdb does with a record that lost its way.
                    record.magic = FREE_MAGIC;
                    self.storage.write_record(offset, &record)?;
                }
                _ => return Err(self.storage.corrupt(offset, Fault::BadMagic(record.magic))),
            }
            if let Some((left, mut neighbour)) = self.free_left_neighbour(offset)? {
                // Out of the list before it belongs to another, and never free in no list.
                self.storage.write_word(offset + MAGIC_AT, USED_MAGIC)?;
                self.storage.write_word(link, record.next)?;
                if link == left {
                    neighbour.next = record.next;
                }
                let grown = self.merge_into(left, neighbour, record.rec_len)?;
                self.storage.write_word(offset + MAGIC_AT, FREE_MAGIC)?;
                if let Some(best) = best.as_mut().filter(|best| best.offset == left) {
                    best.rec_len = grown.rec_len;
                }
                if grown.rec_len > requested {
                    merged = true;
                }
                offset = record.next;
                continue;
            }
            if record.rec_len >= requested && best.is_none_or(|b| record.rec_len < b.rec_len) {
                best = Some(Candidate {
                    offset,
                    rec_len: record.rec_len,
                    link,
                });
            }
            if best.is_some_and(|b| (b.rec_len as f32) < requested as f32 * multiplier) {
                break;
            }
            multiplier *= 1.05;
            link = offset;
            offset = record.next;
        }
        Ok((best, merged))
    }

    /// Takes `requested` bytes from a free record, or all of it (A.9.3).
    fn carve(&mut self, from: Candidate, requested: u32) -> Result<Place> {
        let mut record = self.read_checked(from.offset)?;
        if record.kind() != RecordKind::Free {
            return Err(self
                .storage
                .corrupt(from.offset, Fault::BadMagic(record.magic)));
        }
        if u64::from(record.rec_len) < u64::from(requested) + u64::from(MIN_SPLIT) {
            // Whoever dies between has left a used record in the list: nothing is lost. The tailer
            // may be wrong if somebody died who made a free record shorter or longer.
            self.storage
                .write_word(from.offset + MAGIC_AT, USED_MAGIC)?;
            self.storage.write_word(from.link, record.next)?;
            self.write_tailer(from.offset, &record)?;
            return Ok((from.offset, record.rec_len));
        }
        record.rec_len -= requested + RECORD_LEN;
        let offset = from.offset + RECORD_LEN + record.rec_len;
        let taken = RecordHeader {
            rec_len: requested,
            magic: USED_MAGIC,
            ..RecordHeader::default()
        };
        // Inside the free record, until its header says that it is shorter. Its tailer first leads to
        // the taken one: what follows must not find a free neighbour that ends elsewhere.
        self.storage.write_record(offset, &taken)?;
        self.write_tailer(offset, &taken)?;
        self.write_tailer(from.offset, &record)?;
        self.storage.write_record(from.offset, &record)?;
        Ok((offset, requested))
    }

    /// Takes the record that was at `offset` and became free, out of the free record that it is, or that
    /// it is part of by now. The freelist is locked. `None`: it is not free any more.
    pub(crate) fn take_back(&mut self, offset: u32, rec_len: u32) -> Result<Option<Place>> {
        let end = offset + RECORD_LEN + rec_len;
        let mut link = FREELIST_TOP;
        let mut guard = LoopGuard::new(self.storage.size());
        let mut at = self.storage.read_word(link)?;
        while at != 0 {
            if !guard.step(at) {
                return Err(self.storage.corrupt(at, Fault::Cycle));
            }
            let mut record = self.read_checked(at)?;
            let record_end = at + RECORD_LEN + record.rec_len;
            // What is left and right of it were records, so it is none or enough for one.
            let fits = |len: u32| len == 0 || len >= RECORD_LEN + TAILER_LEN;
            let around = at <= offset && end <= record_end;
            if around && record.kind() == RecordKind::Free {
                if !fits(offset - at) || !fits(record_end - end) {
                    return Ok(None);
                }
                // Whoever dies between has lost space, or left a used record in the list.
                let right = (end < record_end).then_some(end);
                if let Some(right) = right {
                    let rest = RecordHeader {
                        rec_len: record_end - end - RECORD_LEN,
                        magic: USED_MAGIC,
                        ..record
                    };
                    self.storage.write_record(right, &rest)?;
                    self.write_tailer(right, &rest)?;
                    record.next = right;
                }
                let taken = RecordHeader {
                    next: record.next,
                    rec_len,
                    magic: USED_MAGIC,
                    ..RecordHeader::default()
                };
                self.storage.write_record(offset, &taken)?;
                self.write_tailer(offset, &taken)?;
                if at == offset {
                    self.storage.write_word(link, record.next)?;
                } else {
                    record.rec_len = offset - at - RECORD_LEN;
                    self.write_tailer(at, &record)?;
                    self.storage.write_word(at + 4, record.rec_len)?;
                    self.storage.write_word(at, record.next)?;
                }
                if let Some(right) = right {
                    self.storage.write_word(right + MAGIC_AT, FREE_MAGIC)?;
                }
                return Ok(Some((offset, rec_len)));
            }
            link = at;
            at = record.next;
        }
        Ok(None)
    }

    /// Takes a record of exactly `rec_len` bytes or a little more, without growing the file.
    pub(crate) fn take_free(&mut self, rec_len: u32) -> Result<Option<Place>> {
        for _ in 0..16 {
            match self.search(rec_len)? {
                (Some(best), _) => return self.carve(best, rec_len).map(Some),
                (None, true) => {}
                (None, false) => break,
            }
        }
        Ok(None)
    }

    /// Grows the file by at least `wanted` bytes and frees the new space (A.9.6). The free record
    /// that holds the new space.
    fn expand(&mut self, wanted: u32) -> Result<u32> {
        if !self.storage.in_overlay() {
            self.storage.refresh()?;
        }
        // A file that was cut at an odd place: records begin at the next offset where they may.
        let end = self.storage.size();
        let no_space = || Error::NoSpace {
            path: self.path().to_path_buf(),
            wanted,
        };
        let current = end.checked_next_multiple_of(4).ok_or_else(no_space)?;
        let addition = expansion(current, wanted, self.storage.page()) & !3;
        if addition < wanted.max(RECORD_LEN + TAILER_LEN) || current.checked_add(addition).is_none()
        {
            return Err(no_space());
        }
        self.storage.grow(current - end + addition)?;
        let rec_len = addition - RECORD_LEN;
        let left = self.free_left_neighbour(current)?.map(|(left, _)| left);
        self.free(
            current,
            RecordHeader {
                rec_len,
                ..RecordHeader::default()
            },
        )?;
        Ok(left.unwrap_or(current))
    }

    /// Empties all lists and makes all space free, around the recovery record (A.9.7). All records
    /// are locked.
    pub(crate) fn wipe_locked(&mut self) -> Result<()> {
        if !self.storage.in_overlay() {
            self.storage.refresh()?;
        }
        self.count_change()?;
        let start = self.geometry.data_start();
        let end = self.storage.size() & !3;
        let (first, second) = match self.recovery_record()? {
            Some((offset, record)) => {
                let after = record
                    .end(offset)
                    .filter(|after| *after <= end && offset >= start)
                    .ok_or_else(|| self.storage.corrupt(offset, Fault::BadRecovery))?;
                ((start, offset), (after, end))
            }
            None => ((start, end), (end, end)),
        };
        // A range makes one free record, if it can hold one.
        let ranges = [first, second]
            .into_iter()
            .filter(|(from, to)| to.saturating_sub(*from) > RECORD_LEN)
            .map(|(from, to)| {
                let rec_len = to - from - RECORD_LEN;
                (
                    from,
                    RecordHeader {
                        rec_len,
                        ..RecordHeader::default()
                    },
                )
            });
        let zeros = [0; 4096];
        let mut at = self.geometry.head(0);
        while at < start {
            let piece = (start - at).min(zeros.len() as u32);
            self.storage.write(at, &zeros[..piece as usize])?;
            at += piece;
        }
        // At no moment is the last record of the file free, whole and in no list: to libtdb, which
        // would look for it there for ever, new space would belong to it.
        for (offset, record) in ranges.clone() {
            self.storage
                .write_word(offset + RECORD_LEN + record.rec_len - TAILER_LEN, 0)?;
        }
        self.storage.write_word(FREELIST_TOP, 0)?;
        for (offset, record) in ranges {
            self.storage.write_word(offset + MAGIC_AT, USED_MAGIC)?;
            self.write_tailer(offset, &record)?;
            self.enlist(offset, record)?;
        }
        Ok(())
    }

    /// Sum and maximum of the free records' lengths. The freelist or all records are locked.
    pub(crate) fn free_sizes(&mut self) -> Result<(u64, u32)> {
        let (mut sum, mut largest) = (0u64, 0u32);
        let mut guard = LoopGuard::new(self.storage.size());
        let mut offset = self.storage.read_word(FREELIST_TOP)?;
        while offset != 0 {
            if !guard.step(offset) {
                return Err(self.storage.corrupt(offset, Fault::Cycle));
            }
            let record = self.read_checked(offset)?;
            sum += u64::from(record.rec_len);
            largest = largest.max(record.rec_len);
            offset = record.next;
        }
        Ok((sum, largest))
    }
}

#[cfg(test)]
mod tests {
    use crate::format::FREELIST_TOP;
    use crate::{Error, Fault, OpenOptions, StoreMode, Tdb};

    /// A process died between taking the last record of the file off the freelist and marking it.
    #[test]
    fn a_lost_free_record_that_swallows_new_space_is_found_again() {
        let mut tdb = Tdb::internal(&OpenOptions::default()).unwrap();
        for key in [b"last", b"next"] {
            tdb.store(key, &[1; 100], StoreMode::Insert).unwrap();
        }
        tdb.delete(b"last").unwrap();
        tdb.storage.write_word(FREELIST_TOP, 0).unwrap();
        let before = tdb.map_size();
        tdb.store(b"big", &[2; 1000], StoreMode::Insert).unwrap();
        assert!(
            tdb.map_size() > before && tdb.map_size() < before * 20,
            "{}",
            tdb.map_size()
        );
        assert_eq!(tdb.fetch(b"big").unwrap().unwrap(), [2; 1000]);
        // The other record that the list lost is still lost, and check says so.
        let error = tdb.check().unwrap_err();
        assert!(
            matches!(
                error,
                Error::Corrupt {
                    fault: Fault::Unreferenced,
                    ..
                }
            ),
            "{error}"
        );
        tdb.repack().unwrap();
        tdb.check().unwrap();
    }
}
