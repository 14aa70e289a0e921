//! The lineage of a persistent database, in a file beside it (DATA-2): `NAME.tdb.PNN.lineage`. CTDB
//! passes over such names.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use ctdb_db::cluster::{Generation, Lineage};
use ctdb_wire::ids::{Incarnation, NodeSet, Pnn, Term};
use serde::{Deserialize, Serialize};

/// Release of the file's layout.
const VERSION: u32 = 1;

/// Why a lineage cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LineageError {
    /// The system refused.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What stands there is no lineage of ours.
    #[error("{path} is no lineage of this release: {fault}")]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        fault: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Number {
    term: u64,
    leader: u32,
    session: u64,
    seq: u32,
}

impl Number {
    fn new(generation: Generation) -> Self {
        Self {
            term: generation.term.number,
            leader: generation.term.leader.get(),
            session: generation.term.session.0,
            seq: generation.seq,
        }
    }

    fn generation(self) -> Option<Generation> {
        Some(Generation {
            term: Term {
                number: self.term,
                leader: Pnn::new(self.leader).ok()?,
                session: Incarnation(self.session),
            },
            seq: self.seq,
        })
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Stored {
    version: u32,
    epoch: Number,
    members: u64,
    content: Number,
    /// The copy was found damaged and is to be replaced: where it was put.
    damaged: Option<String>,
}

/// The file.
#[derive(Debug)]
pub struct LineageFile {
    path: PathBuf,
    lineage: Lineage,
    damaged: Option<String>,
}

impl LineageFile {
    /// Of the database file at `database`; none is fine, and is [`Lineage::NONE`].
    pub fn open(database: &Path) -> Result<Self, LineageError> {
        let mut path = database.as_os_str().to_owned();
        path.push(".lineage");
        let path = PathBuf::from(path);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self {
                    path,
                    lineage: Lineage::NONE,
                    damaged: None,
                });
            }
            Err(source) => {
                let doing = "read";
                return Err(LineageError::Io {
                    doing,
                    path,
                    source,
                });
            }
        };
        match Self::parse(&text) {
            Ok((lineage, damaged)) => Ok(Self {
                path,
                lineage,
                damaged,
            }),
            Err(fault) => Err(LineageError::Content { path, fault }),
        }
    }

    fn parse(text: &[u8]) -> Result<(Lineage, Option<String>), String> {
        let stored: Stored = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if stored.version != VERSION {
            return Err(format!("its version is {}", stored.version));
        }
        let number = |number: Number| number.generation().ok_or("a node number is out of range");
        let lineage = Lineage {
            epoch: number(stored.epoch)?,
            members: NodeSet(stored.members),
            content: number(stored.content)?,
        };
        Ok((lineage, stored.damaged))
    }

    /// As it was read or stored last.
    pub fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// Where the damaged copy was put, until it is replaced.
    pub fn damaged(&self) -> Option<&str> {
        self.damaged.as_deref()
    }

    /// Stores it durably.
    pub fn seal(&mut self, lineage: Lineage) -> Result<(), LineageError> {
        self.store(lineage, self.damaged.clone())
    }

    /// Notes durably that the copy is damaged, or that it has been replaced.
    pub fn set_damaged(&mut self, damaged: Option<String>) -> Result<(), LineageError> {
        self.store(self.lineage, damaged)
    }

    fn store(&mut self, lineage: Lineage, damaged: Option<String>) -> Result<(), LineageError> {
        let stored = Stored {
            version: VERSION,
            epoch: Number::new(lineage.epoch),
            members: lineage.members.0,
            content: Number::new(lineage.content),
            damaged: damaged.clone(),
        };
        let mut new = self.path.as_os_str().to_owned();
        new.push(".new");
        let new = PathBuf::from(new);
        let write = || -> io::Result<()> {
            let mut file = File::create(&new)?;
            let text = serde_json::to_vec(&stored).map_err(io::Error::other)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            match self.path.parent() {
                Some(directory) => File::open(directory)?.sync_all(),
                None => Ok(()),
            }
        };
        write().map_err(|source| LineageError::Io {
            doing: "write",
            path: self.path.clone(),
            source,
        })?;
        self.lineage = lineage;
        self.damaged = damaged;
        Ok(())
    }
}
