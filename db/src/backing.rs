//! Where a database's bytes are: a file, or memory.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::format::FILL_WORD;

/// Where the bytes are.
#[derive(Debug)]
pub(crate) enum Backing {
    /// A file. The mapping of logical to physical offsets is the storage's.
    File(File),
    /// Memory only.
    Memory(Vec<u8>),
    /// Memory that notes every change and can be full, for crash tests.
    #[cfg(test)]
    Recorded {
        bytes: Vec<u8>,
        log: Vec<Change>,
        limit: u64,
    },
}

/// One change of a recorded backing.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Bytes were written.
    Write(u64, Vec<u8>),
    /// The file was extended with zeros.
    Grow(u64),
    /// Everything before is on stable storage.
    Sync,
}

impl Backing {
    /// Physical size.
    pub(crate) fn len(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => Ok(file.metadata()?.len()),
            Self::Memory(bytes) => Ok(bytes.len() as u64),
            #[cfg(test)]
            Self::Recorded { bytes, .. } => Ok(bytes.len() as u64),
        }
    }

    pub(crate) fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(buf, at),
            Self::Memory(bytes) => read_memory(bytes, at, buf),
            #[cfg(test)]
            Self::Recorded { bytes, .. } => read_memory(bytes, at, buf),
        }
    }

    pub(crate) fn write_at(&mut self, at: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all_at(data, at),
            Self::Memory(bytes) => write_memory(bytes, at, data),
            #[cfg(test)]
            Self::Recorded { bytes, log, .. } => {
                log.push(Change::Write(at, data.to_vec()));
                write_memory(bytes, at, data)
            }
        }
    }

    /// Extends from `old` to `new` bytes; the new space exists on the medium.
    pub(crate) fn grow(&mut self, old: u64, new: u64) -> io::Result<()> {
        match self {
            Self::File(file) => grow_file(file, old, new),
            Self::Memory(bytes) => grow_memory(bytes, new),
            #[cfg(test)]
            Self::Recorded { bytes, log, limit } => {
                if new > *limit {
                    return Err(io::ErrorKind::StorageFull.into());
                }
                log.push(Change::Grow(new));
                grow_memory(bytes, new)
            }
        }
    }

    /// Has the medium hold room for bytes that are in the file, without changing them; where the file
    /// system cannot promise that, nothing.
    pub(crate) fn reserve(&self, at: u64, len: u64) -> io::Result<()> {
        let Self::File(file) = self else {
            return Ok(());
        };
        let (Ok(at), Ok(len)) = (i64::try_from(at), i64::try_from(len)) else {
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        // Never makes a file longer that was truncated under us.
        let keep = nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
        match nix::fcntl::fallocate(file, keep, at, len) {
            Err(error) if !cannot_reserve(error) => Err(error.into()),
            _ => Ok(()),
        }
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        match self {
            Self::File(file) => file.sync_data(),
            Self::Memory(_) => Ok(()),
            #[cfg(test)]
            Self::Recorded { log, .. } => {
                log.push(Change::Sync);
                Ok(())
            }
        }
    }
}

fn read_memory(bytes: &[u8], at: u64, buf: &mut [u8]) -> io::Result<()> {
    let source = usize::try_from(at)
        .ok()
        .and_then(|at| bytes.get(at..at.checked_add(buf.len())?))
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    buf.copy_from_slice(source);
    Ok(())
}

fn write_memory(bytes: &mut [u8], at: u64, data: &[u8]) -> io::Result<()> {
    let target = usize::try_from(at)
        .ok()
        .and_then(|at| bytes.get_mut(at..at.checked_add(data.len())?))
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    target.copy_from_slice(data);
    Ok(())
}

fn grow_memory(bytes: &mut Vec<u8>, new: u64) -> io::Result<()> {
    let new = usize::try_from(new).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes
        .try_reserve(new.saturating_sub(bytes.len()))
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(new, 0);
    Ok(())
}

/// Whether space has to be had by writing. A signal ends the call on a tmpfs of older kernels, again and
/// again; writes go on after it.
fn cannot_reserve(error: nix::Error) -> bool {
    matches!(
        error,
        nix::Error::EOPNOTSUPP | nix::Error::EINVAL | nix::Error::ENOSYS | nix::Error::EINTR
    )
}

/// Reserves the new range on the medium, so that a later write through somebody's map cannot hit a
/// full disk.
fn grow_file(file: &File, old: u64, new: u64) -> io::Result<()> {
    let (Ok(start), Ok(len)) = (i64::try_from(old), i64::try_from(new - old)) else {
        return Err(io::ErrorKind::FileTooLarge.into());
    };
    match nix::fcntl::posix_fallocate(file, start, len) {
        Ok(()) => Ok(()),
        Err(error) if cannot_reserve(error) => {
            let fill = [FILL_WORD.to_ne_bytes()[0]; 8192];
            let mut at = old;
            while at < new {
                let piece = (new - at).min(fill.len() as u64) as usize;
                if let Err(error) = file.write_all_at(&fill[..piece], at) {
                    file.set_len(old)?;
                    return Err(error);
                }
                at += piece as u64;
            }
            Ok(())
        }
        Err(error) => {
            // The file may have grown in part.
            file.set_len(old)?;
            Err(error.into())
        }
    }
}
