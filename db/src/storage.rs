//! Bytes of a file by logical offset: every access is checked, and inside a transaction goes to
//! copies of the blocks that it changed.
//!
//! A file is mapped ([`crate::map`]), with `pread` and `pwrite` where it is not or the map does not
//! reach; Linux keeps the two coherent, also for libtdb (A.7). A file truncated under us gives an
//! error either way: through the map the access sees zeros, and the map tells.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::backing::Backing;
#[cfg(test)]
use crate::backing::Change;
use crate::error::{Error, Fault, Result};
use crate::format::{ByteOrder, DEAD_MAGIC, RECORD_LEN, RecordHeader, USED_MAGIC};
use crate::map::Map;
use crate::read::Found;
use crate::walk::LoopGuard;

/// What a transaction changed: whole blocks, by number.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    blocks: BTreeMap<u32, Box<[u8]>>,
    /// Logical size of the file below.
    base_size: u32,
}

/// A file's bytes by logical offset.
#[derive(Debug)]
pub(crate) struct Storage {
    backing: Backing,
    path: PathBuf,
    /// Physical offset of logical offset 0 (the mutex area's size).
    base: u64,
    /// Logical size as last seen; in a transaction, as it will be.
    size: u32,
    order: ByteOrder,
    page: u32,
    overlay: Option<Overlay>,
    /// The file from `base` on, as long as it was when last looked at.
    map: Option<Map>,
    access: Access,
}

/// What a search through the map came to.
#[derive(Debug)]
pub(crate) enum Search {
    /// The record.
    Found(Found),
    /// There is none.
    Absent,
    /// It cannot be said this way; the slow way names the fault.
    Unclear,
}

/// How the bytes of a file are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// By system calls.
    Calls,
    /// By a map for reading.
    MapToRead,
    /// By a map for reading and writing.
    MapToWrite,
}

/// Address space beyond a file's end, so that growth does not move the map: a quarter of the file,
/// and not less than this.
const LEAST_RESERVE: usize = 1 << 20;

impl Storage {
    /// Logical offset 0 lies at physical `base`.
    pub(crate) fn new(
        backing: Backing,
        path: &Path,
        base: u32,
        order: ByteOrder,
        access: Access,
    ) -> Result<Self> {
        let page = u32::try_from(rustix::param::page_size()).unwrap_or(4096);
        // A file of a machine with smaller pages cannot be mapped at its base.
        let mappable = matches!(backing, Backing::File(_)) && base.is_multiple_of(page);
        let access = if mappable { access } else { Access::Calls };
        let base = u64::from(base);
        let path = path.to_path_buf();
        let mut storage = Self {
            backing,
            path,
            base,
            size: 0,
            order,
            page,
            overlay: None,
            map: None,
            access,
        };
        storage.refresh()?;
        Ok(storage)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn order(&self) -> ByteOrder {
        self.order
    }

    pub(crate) fn page(&self) -> u32 {
        self.page
    }

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// The file, unless the bytes are in memory.
    pub(crate) fn file(&self) -> Option<&File> {
        match &self.backing {
            Backing::File(file) => Some(file),
            Backing::Memory(_) => None,
            #[cfg(test)]
            Backing::Recorded { .. } => None,
        }
    }

    /// The bytes of a memory database.
    pub(crate) fn memory(&self) -> Option<&[u8]> {
        match &self.backing {
            Backing::File(_) => None,
            Backing::Memory(bytes) => Some(bytes),
            #[cfg(test)]
            Backing::Recorded { bytes, .. } => Some(bytes),
        }
    }

    #[cfg(test)]
    pub(crate) fn take_log(&mut self) -> Vec<Change> {
        match &mut self.backing {
            Backing::Recorded { log, .. } => std::mem::take(log),
            _ => Vec::new(),
        }
    }

    /// An error of the system while `doing` something to the file.
    pub(crate) fn io_error(&self, doing: &'static str, source: io::Error) -> Error {
        Error::Io {
            doing,
            path: self.path.clone(),
            source,
        }
    }

    /// A fault in the content at `offset`.
    pub(crate) fn corrupt(&self, offset: u32, fault: Fault) -> Error {
        Error::Corrupt {
            path: self.path.clone(),
            offset,
            fault,
        }
    }

    /// Notices growth (and shrinking) by other processes. Not in a transaction.
    pub(crate) fn refresh(&mut self) -> Result<()> {
        let physical = self
            .backing
            .len()
            .map_err(|e| self.io_error("ask the size of", e))?;
        let logical = physical.saturating_sub(self.base);
        let size = u32::try_from(logical).map_err(|_| Error::FileTooLarge {
            path: self.path.clone(),
            size: physical,
        })?;
        match &mut self.overlay {
            Some(overlay) => {
                // Nobody else may change the size now, but a truncated file must be noticed.
                overlay.base_size = overlay.base_size.min(size);
            }
            None => self.size = size,
        }
        self.follow(size);
        Ok(())
    }

    /// Makes the map `size` bytes long.
    fn follow(&mut self, size: u32) {
        if self.access == Access::Calls {
            return;
        }
        let len = size as usize;
        let sound = |map: &mut Map| !map.has_faulted() && map.set_len(len);
        if self.map.as_mut().is_some_and(sound) {
            return;
        }
        // Before the new one, so that not both need address space.
        self.map = None;
        if let Backing::File(file) = &self.backing
            && len > 0
        {
            let reserve = (len / 4).max(LEAST_RESERVE);
            let writable = self.access == Access::MapToWrite;
            // Without a map it goes on by system calls.
            self.map = Map::new(file, self.base, len, reserve, writable).ok();
        }
    }

    /// The map, when it shows what a reader should see.
    #[inline]
    fn plain_map(&self) -> Option<&Map> {
        if self.overlay.is_none() {
            self.map.as_ref()
        } else {
            None
        }
    }

    /// After an access through the map at `offset`: whether there was something.
    #[inline]
    fn was_there(&self, map: &Map, offset: u32) -> Result<()> {
        if map.has_faulted() {
            return Err(self.lost(offset));
        }
        Ok(())
    }

    #[cold]
    fn lost(&self, offset: u32) -> Error {
        let physical = self.base + u64::from(offset);
        let fault = match self.backing.len() {
            Ok(len) if physical < len => Fault::Unreadable,
            _ => Fault::Truncated,
        };
        self.corrupt(offset, fault)
    }

    /// Checks that `len` bytes at `offset` are inside the file.
    pub(crate) fn covers(&mut self, offset: u32, len: u32) -> Result<()> {
        let inside = |size: u32| offset.checked_add(len).is_some_and(|end| end <= size);
        let sound = !self.map.as_ref().is_some_and(Map::has_faulted);
        if sound && inside(self.size) {
            return Ok(());
        }
        self.refresh()?;
        if inside(self.size) {
            return Ok(());
        }
        Err(self.corrupt(
            offset,
            Fault::OutOfFile {
                len,
                size: self.size,
            },
        ))
    }

    /// Reads the file itself, below a transaction.
    pub(crate) fn read_below(&self, offset: u32, buf: &mut [u8]) -> Result<()> {
        // What the map cannot give, a system call gives (a hole of a full tmpfs), or says why not.
        if let Some(map) = &self.map
            && map.read(offset as usize, buf)
            && !map.has_faulted()
        {
            return Ok(());
        }
        self.backing
            .read_at(self.base + u64::from(offset), buf)
            .map_err(|e| {
                if e.kind() == io::ErrorKind::UnexpectedEof {
                    self.corrupt(offset, Fault::Truncated)
                } else {
                    self.io_error("read", e)
                }
            })
    }

    /// Writes the file itself, below a transaction.
    pub(crate) fn write_below(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        if self.access == Access::MapToWrite
            && let Some(map) = &self.map
        {
            let at = offset as usize;
            let written = match data.as_array::<4>() {
                Some(word) if at.is_multiple_of(4) => map.store(at, u32::from_ne_bytes(*word)),
                _ => map.write(at, data),
            };
            if written {
                if map.has_faulted() {
                    return self.write_past_map(offset, data);
                }
                return Ok(());
            }
        }
        self.write_last(offset, data)
    }

    /// Writes once more, by a system call, what was lost with the map: then it is written, or the
    /// system says why not (a full disk under a hole). Never beyond the end of a truncated file.
    #[cold]
    fn write_past_map(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        let end = self.base + u64::from(offset) + data.len() as u64;
        match self.backing.len() {
            Ok(len) if end <= len => self.write_last(offset, data),
            _ => Err(self.corrupt(offset, Fault::Truncated)),
        }
    }

    /// Writes the file itself by a system call, which also sets its modification time.
    pub(crate) fn write_last(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        self.backing
            .write_at(self.base + u64::from(offset), data)
            .map_err(|e| self.refused("write", data.len() as u32, e))
    }

    /// The medium did not take `wanted` bytes.
    #[cold]
    fn refused(&self, doing: &'static str, wanted: u32, source: io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace {
                path: self.path.clone(),
                wanted,
            },
            _ => self.io_error(doing, source),
        }
    }

    /// Reads `buf.len()` bytes at `offset`.
    pub(crate) fn read(&mut self, offset: u32, buf: &mut [u8]) -> Result<()> {
        if let Some(map) = self.plain_map()
            && map.read(offset as usize, buf)
            && !map.has_faulted()
        {
            return Ok(());
        }
        let len = u32::try_from(buf.len()).map_err(|_| Error::TooLarge(buf.len() as u64))?;
        self.covers(offset, len)?;
        if self.overlay.is_none() {
            return self.read_below(offset, buf);
        }
        let page = self.page;
        let mut done = 0usize;
        while done < buf.len() {
            let at = offset + done as u32;
            let (number, within) = (at / page, at % page);
            let piece = (buf.len() - done).min((page - within) as usize);
            let target = &mut buf[done..done + piece];
            let overlay = self.overlay.as_ref();
            if let Some(block) = overlay.and_then(|o| o.blocks.get(&number)) {
                target.copy_from_slice(&block[within as usize..within as usize + piece]);
            } else {
                let base_size = overlay.map_or(0, |o| o.base_size);
                // Beyond the end of the file below, a transaction sees zeros until it writes.
                let below = (base_size.saturating_sub(at) as usize).min(piece);
                let (inside, beyond) = target.split_at_mut(below);
                beyond.fill(0);
                if !inside.is_empty() {
                    self.read_below(at, inside)?;
                }
            }
            done += piece;
        }
        Ok(())
    }

    /// Writes `data` at `offset`.
    pub(crate) fn write(&mut self, offset: u32, data: &[u8]) -> Result<()> {
        if self.access == Access::MapToWrite
            && let Some(map) = self.plain_map()
            && map.write(offset as usize, data)
        {
            if map.has_faulted() {
                return self.write_past_map(offset, data);
            }
            return Ok(());
        }
        let len = u32::try_from(data.len()).map_err(|_| Error::TooLarge(data.len() as u64))?;
        self.covers(offset, len)?;
        if self.overlay.is_none() {
            return self.write_below(offset, data);
        }
        let page = self.page;
        let mut done = 0usize;
        while done < data.len() {
            let at = offset + done as u32;
            let (number, within) = (at / page, at % page);
            let piece = (data.len() - done).min((page - within) as usize);
            if !self
                .overlay
                .as_ref()
                .is_some_and(|o| o.blocks.contains_key(&number))
            {
                let mut block = vec![0; page as usize];
                let start = number * page;
                let known = (self.size - start).min(page) as usize;
                self.read(start, &mut block[..known])?;
                if let Some(overlay) = &mut self.overlay {
                    overlay.blocks.insert(number, block.into_boxed_slice());
                }
            }
            if let Some(block) = self
                .overlay
                .as_mut()
                .and_then(|o| o.blocks.get_mut(&number))
            {
                block[within as usize..within as usize + piece]
                    .copy_from_slice(&data[done..done + piece]);
            }
            done += piece;
        }
        Ok(())
    }

    /// Reads `len` bytes into a new vector.
    pub(crate) fn read_vec(&mut self, offset: u32, len: u32) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.append_to(offset, len, &mut bytes)?;
        Ok(bytes)
    }

    /// Appends `len` bytes to a vector.
    pub(crate) fn append_to(&mut self, offset: u32, len: u32, bytes: &mut Vec<u8>) -> Result<()> {
        // Before the allocation, so that a damaged length cannot ask for more than the file has.
        self.covers(offset, len)?;
        let before = bytes.len();
        let wanted = len as usize;
        if bytes.capacity() - before < wanted {
            let reserved = if before == 0 {
                bytes.try_reserve_exact(wanted)
            } else {
                bytes.try_reserve(wanted)
            };
            reserved.map_err(|_| Error::NoMemory(wanted))?;
        }
        if let Some(map) = self.plain_map()
            && map.append_to(offset as usize, wanted, bytes)
        {
            if !map.has_faulted() {
                return Ok(());
            }
            bytes.truncate(before);
        }
        bytes.resize(before + wanted, 0);
        self.read(offset, &mut bytes[before..])
    }

    /// Whether the bytes at `offset` are `expected`.
    #[inline]
    pub(crate) fn equals(&mut self, offset: u32, expected: &[u8]) -> Result<bool> {
        if let Some(map) = self.plain_map()
            && let Some(same) = map.equals(offset as usize, expected)
            && !map.has_faulted()
        {
            return Ok(same);
        }
        let mut buf = [0; 4096];
        let mut at = offset;
        for part in expected.chunks(buf.len()) {
            let buf = &mut buf[..part.len()];
            self.read(at, buf)?;
            if buf != part {
                return Ok(false);
            }
            at += part.len() as u32;
        }
        Ok(true)
    }

    /// Looks for a key along the chain whose head is at `head`, through the map, with all checks that
    /// [`crate::walk`] makes.
    #[inline]
    pub(crate) fn find_in_map(&self, head: u32, data_start: u32, hash: u32, key: &[u8]) -> Search {
        self.search_map(head, data_start, hash, key)
            .unwrap_or(Search::Unclear)
    }

    #[inline]
    fn search_map(&self, head: u32, data_start: u32, hash: u32, key: &[u8]) -> Option<Search> {
        let map = self.plain_map()?;
        if self.order != ByteOrder::NATIVE {
            return None;
        }
        let mut link = head;
        let mut offset = map.load(head as usize)?;
        let mut guard = LoopGuard::new(self.size);
        while offset != 0 {
            if offset < data_start || !guard.step(offset) {
                return None;
            }
            let at = offset as usize;
            let [next, rec_len, key_len, data_len, full_hash, magic] = map.load_words::<6>(at)?;
            let payload = key_len.checked_add(data_len)?;
            let inside = at + RECORD_LEN as usize + rec_len as usize <= map.len();
            let sound = matches!(magic, USED_MAGIC | DEAD_MAGIC)
                && rec_len >= 4
                && rec_len.is_multiple_of(4)
                && inside
                && payload <= rec_len;
            if !sound {
                return None;
            }
            if full_hash == hash
                && magic == USED_MAGIC
                && key_len as usize == key.len()
                && map.equals(at + RECORD_LEN as usize, key)?
            {
                let record = RecordHeader {
                    next,
                    rec_len,
                    key_len,
                    data_len,
                    full_hash,
                    magic,
                };
                let found = Found {
                    offset,
                    record,
                    link,
                };
                return (!map.has_faulted()).then_some(Search::Found(found));
            }
            link = offset;
            offset = next;
        }
        (!map.has_faulted()).then_some(Search::Absent)
    }

    /// The record header at `offset` if it passes every check of [`Tdb::read_checked`], through the
    /// map. `None`: the slow way names the fault, or reads past the map.
    ///
    /// [`Tdb::read_checked`]: crate::Tdb::read_checked
    #[inline]
    pub(crate) fn record_in_map(&self, offset: u32, data_start: u32) -> Option<RecordHeader> {
        let map = self.plain_map()?;
        if offset < data_start || !offset.is_multiple_of(4) {
            return None;
        }
        let at = offset as usize;
        let words = map.load_words::<6>(at)?;
        let [next, rec_len, key_len, data_len, full_hash, magic] =
            if self.order == ByteOrder::NATIVE {
                words
            } else {
                words.map(u32::swap_bytes)
            };
        let header = RECORD_LEN as usize;
        let sound = rec_len >= 4
            && rec_len.is_multiple_of(4)
            && at + header + rec_len as usize <= map.len()
            && (next == 0 || (next >= data_start && next as usize + header <= map.len()))
            && !map.has_faulted();
        sound.then_some(RecordHeader {
            next,
            rec_len,
            key_len,
            data_len,
            full_hash,
            magic,
        })
    }

    /// A word through the map.
    #[inline]
    pub(crate) fn map_word(&self, offset: u32) -> Option<u32> {
        let map = self.plain_map()?;
        let word = map.load(offset as usize)?;
        (!map.has_faulted()).then_some(self.ordered(word))
    }

    /// Appends bytes through the map. `false`: not possible, and nothing was appended.
    #[inline]
    pub(crate) fn copy_from_map(&self, offset: u32, len: u32, bytes: &mut Vec<u8>) -> bool {
        let Some(map) = self.plain_map() else {
            return false;
        };
        let (at, wanted, before) = (offset as usize, len as usize, bytes.len());
        // The file has that many bytes, so that no damaged length asks for more.
        if at + wanted > map.len() || bytes.try_reserve_exact(wanted).is_err() {
            return false;
        }
        let copied = map.append_to(at, wanted, bytes) && !map.has_faulted();
        if !copied {
            bytes.truncate(before);
        }
        copied
    }

    /// Whether writes are cheap enough to make several.
    pub(crate) fn is_mapped(&self) -> bool {
        self.overlay.is_some() || self.map.is_some()
    }

    /// A word as the machine read it, in the file's order.
    #[inline]
    fn ordered(&self, word: u32) -> u32 {
        if self.order == ByteOrder::NATIVE {
            word
        } else {
            word.swap_bytes()
        }
    }

    /// The word at `offset`.
    #[inline]
    pub(crate) fn read_word(&mut self, offset: u32) -> Result<u32> {
        if let Some(map) = self.plain_map()
            && let Some(word) = map.load(offset as usize)
            && !map.has_faulted()
        {
            return Ok(self.ordered(word));
        }
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes)?;
        Ok(self.order.word(bytes))
    }

    /// Adds one to a word in one step, as others see it. `false`: there is no map to do it in.
    pub(crate) fn increment(&mut self, offset: u32) -> Result<bool> {
        self.covers(offset, 4)?;
        if self.access != Access::MapToWrite {
            return Ok(false);
        }
        let Some(map) = self.plain_map() else {
            return Ok(false);
        };
        let add = |word| self.ordered(self.ordered(word).wrapping_add(1));
        let done = map.update(offset as usize, add);
        self.was_there(map, offset)?;
        Ok(done)
    }

    /// Writes a word.
    pub(crate) fn write_word(&mut self, offset: u32, word: u32) -> Result<()> {
        if self.access == Access::MapToWrite
            && let Some(map) = self.plain_map()
            && map.store(offset as usize, self.ordered(word))
        {
            if map.has_faulted() {
                return self.write_past_map(offset, &self.order.bytes(word));
            }
            return Ok(());
        }
        self.write(offset, &self.order.bytes(word))
    }

    /// The record header at `offset`, unchecked.
    #[inline]
    pub(crate) fn read_record(&mut self, offset: u32) -> Result<RecordHeader> {
        if let Some(map) = self.plain_map()
            && let Some(words) = map.load_words::<6>(offset as usize)
            && !map.has_faulted()
        {
            let [next, rec_len, key_len, data_len, full_hash, magic] =
                words.map(|word| self.ordered(word));
            return Ok(RecordHeader {
                next,
                rec_len,
                key_len,
                data_len,
                full_hash,
                magic,
            });
        }
        let mut bytes = [0; RECORD_LEN as usize];
        self.read(offset, &mut bytes)?;
        Ok(RecordHeader::decode(&bytes, self.order))
    }

    /// Writes a record header.
    pub(crate) fn write_record(&mut self, offset: u32, record: &RecordHeader) -> Result<()> {
        self.write(offset, &record.encode(self.order))
    }

    /// Makes the file `addition` bytes longer; in a transaction only in the plan.
    pub(crate) fn grow(&mut self, addition: u32) -> Result<()> {
        let no_space = || Error::NoSpace {
            path: self.path.clone(),
            wanted: addition,
        };
        let new = self.size.checked_add(addition).ok_or_else(no_space)?;
        if self.overlay.is_none() {
            self.grow_below(self.size, new)?;
        }
        self.size = new;
        Ok(())
    }

    /// Extends the file itself from `old` to `new` logical bytes.
    pub(crate) fn grow_below(&mut self, old: u32, new: u32) -> Result<()> {
        let (from, to) = (self.base + u64::from(old), self.base + u64::from(new));
        self.backing
            .grow(from, to)
            .map_err(|source| self.refused("extend", new - old, source))?;
        self.follow(new);
        Ok(())
    }

    /// Puts everything written on stable storage.
    pub(crate) fn sync(&mut self) -> Result<()> {
        self.backing.sync().map_err(|source| Error::Io {
            doing: "put on stable storage",
            path: self.path.clone(),
            source,
        })
    }

    /// Makes sure that bytes can be written before the first of them is: the medium may be full under
    /// a hole, and what is overwritten shall be there whole, old or new. Without a map only for what
    /// lies in more than one page: a single one takes all or nothing.
    pub(crate) fn make_room(&mut self, offset: u32, len: u32) -> Result<()> {
        self.covers(offset, len)?;
        if self.overlay.is_some() || len == 0 {
            return Ok(());
        }
        let (first, last) = (offset / self.page, (offset + len - 1) / self.page);
        if self.access == Access::MapToWrite
            && let Some(map) = &self.map
        {
            let mut starts = (first..=last).map(|page| offset.max(page * self.page));
            if starts.all(|at| map.touch(at as usize).is_some() && !map.has_faulted()) {
                return Ok(());
            }
        } else if first == last {
            return Ok(());
        }
        let reserved = self
            .backing
            .reserve(self.base + u64::from(offset), len.into());
        reserved.map_err(|source| self.refused("write", len, source))?;
        self.refresh()
    }

    /// From now on changes go to copies.
    pub(crate) fn begin(&mut self) {
        self.overlay = Some(Overlay {
            blocks: BTreeMap::new(),
            base_size: self.size,
        });
    }

    /// Drops the copies, if any.
    pub(crate) fn abandon(&mut self) {
        if let Some(overlay) = self.overlay.take() {
            self.size = overlay.base_size;
        }
    }

    /// Whether changes go to copies.
    pub(crate) fn in_overlay(&self) -> bool {
        self.overlay.is_some()
    }

    /// Whether a copy was changed.
    pub(crate) fn has_changes(&self) -> bool {
        self.overlay.as_ref().is_some_and(|o| !o.blocks.is_empty())
    }

    /// Size of the file below the transaction.
    pub(crate) fn size_below(&self) -> u32 {
        self.overlay.as_ref().map_or(self.size, |o| o.base_size)
    }

    /// The file below the transaction was extended to `size` (the recovery area).
    pub(crate) fn set_sizes(&mut self, size: u32) {
        self.size = size;
        if let Some(overlay) = &mut self.overlay {
            overlay.base_size = size;
        }
    }

    /// Changed blocks in ascending order: offset and length, inside the file's size.
    pub(crate) fn changed_ranges(&self) -> Vec<(u32, u32)> {
        let Some(overlay) = &self.overlay else {
            return Vec::new();
        };
        overlay
            .blocks
            .keys()
            .map(|number| number * self.page)
            .filter(|start| *start < self.size)
            .map(|start| (start, self.page.min(self.size - start)))
            .collect()
    }
}
