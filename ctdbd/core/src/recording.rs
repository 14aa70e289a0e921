//! Recordings (`[log] record`, `ctdb debug replay`): every input of a node's machines with its
//! moment and what was decided on it, and how the machines stood where the file begins. Since they
//! are pure, running them again over the inputs shows the same decisions, offline.
//!
//! A file is [`MAGIC`] with the format's number, then frames: length and CRC-32 of the content,
//! each 4 bytes little-endian, and the content, an [`Entry`] in postcard. First [`Entry::Head`],
//! then [`Entry::Begin`], then steps; [`Entry::End`] stands last unless the daemon died, or lives.

use std::ops::Deref;

use ctdb_wire::heartbeat::Message;
use ctdb_wire::ids::{BootTime, Incarnation, MAX_NODES, Pnn};
use serde::{Deserialize, Deserializer, Serialize};

use crate::authority::{self, Authority, Books, List, LockNews, Sink};
use crate::coordinator::{self, Coordinator};
use crate::events::{self, Events};

/// The first bytes of a recording; one more byte is [`FORMAT`].
pub const MAGIC: &[u8; 15] = b"ctdb recording\n";
/// Rises whenever an older reader would misunderstand.
pub const FORMAT: u8 = 5;
/// Longest entry, in bytes: a start of 64 nodes with 1,000 addresses is below a tenth of it.
pub const MAX_ENTRY: usize = 32 << 20;

/// Where a part of a recording comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Head {
    /// Release of the daemon: another one may decide otherwise.
    pub release: String,
    /// The node.
    pub node: Pnn,
    /// Its life.
    pub incarnation: Incarnation,
    /// When the part was begun, in seconds since 1970.
    pub begun_at: i64,
    /// Its number in this life, from 0.
    pub part: u64,
}

/// The machines of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machines {
    /// The detector's.
    pub authority: Authority,
    /// The main loop's.
    pub coordinator: Coordinator,
    /// The one of the event scripts.
    pub events: Events,
}

/// [`authority::Input`], owned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names are those of authority::Input")]
pub enum Heard {
    Tick,
    Datagram { from: Pnn, message: Message },
    Session { pnn: Pnn, incarnation: Incarnation },
    Progress,
    Books(Books),
    Eligible(bool),
    Lock(LockNews),
    List(List),
    Leave,
}

impl From<authority::Input<'_>> for Heard {
    fn from(input: authority::Input<'_>) -> Self {
        match input {
            authority::Input::Tick => Self::Tick,
            authority::Input::Datagram { from, message } => Self::Datagram {
                from,
                message: *message,
            },
            authority::Input::Session { pnn, incarnation } => Self::Session { pnn, incarnation },
            authority::Input::Progress => Self::Progress,
            authority::Input::Books(books) => Self::Books(books),
            authority::Input::Eligible(eligible) => Self::Eligible(eligible),
            authority::Input::Lock(news) => Self::Lock(news),
            authority::Input::List(list) => Self::List(list),
            authority::Input::Leave => Self::Leave,
        }
    }
}

impl Heard {
    /// As the machine takes it.
    pub fn input(&self) -> authority::Input<'_> {
        match self {
            Self::Tick => authority::Input::Tick,
            Self::Datagram { from, message } => authority::Input::Datagram {
                from: *from,
                message,
            },
            Self::Session { pnn, incarnation } => authority::Input::Session {
                pnn: *pnn,
                incarnation: *incarnation,
            },
            Self::Progress => authority::Input::Progress,
            Self::Books(books) => authority::Input::Books(*books),
            Self::Eligible(eligible) => authority::Input::Eligible(*eligible),
            Self::Lock(news) => authority::Input::Lock(*news),
            Self::List(list) => authority::Input::List(*list),
            Self::Leave => authority::Input::Leave,
        }
    }
}

/// What the detector's machine asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Act {
    /// [`Sink::send`].
    Send(Pnn, Message),
    /// [`Sink::deadline`].
    Deadline(u32, BootTime),
}

impl Sink for Vec<Act> {
    fn send(&mut self, to: Pnn, message: &Message) {
        self.push(Act::Send(to, *message));
    }

    fn deadline(&mut self, slot: u32, until: BootTime) {
        self.push(Act::Deadline(slot, until));
    }
}

/// One input and what was decided on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, for the length of a step"
)]
pub enum Step {
    /// Of [`Machines::authority`].
    Detector {
        /// When.
        at: BootTime,
        /// What came.
        input: Heard,
        /// What followed.
        effects: Vec<Act>,
    },
    /// Of [`Machines::coordinator`].
    Node {
        /// When.
        at: BootTime,
        /// What came.
        input: coordinator::Input,
        /// What followed.
        effects: Vec<coordinator::Effect>,
    },
    /// Of [`Machines::events`].
    Events {
        /// When.
        at: BootTime,
        /// What came.
        input: events::Input,
        /// What followed.
        effects: Vec<events::Effect>,
    },
}

/// Why a part ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum End {
    /// The daemon was stopped.
    Stopped,
    /// It was full; the next part goes on.
    Full,
    /// Inputs came faster than they could be written; what came later is not recorded.
    Gap,
    /// The machines decided otherwise when they were run beside the daemon: a bug.
    Differs,
}

/// What stands in a frame.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "one at a time, for the length of a step"
)]
pub enum Entry {
    /// The first one.
    Head(Head),
    /// The second one: how the machines stand.
    Begin(Box<Machines>),
    /// All others but the last.
    Step(Step),
    /// The last one.
    End(End),
}

/// Why a recording cannot be run again, or what came out of it.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// Not ours.
    #[error("this is no recording of ctdbd")]
    Foreign,
    /// Of a release that writes them in another way.
    #[error(
        "the recording has format {0} and this release reads {FORMAT}; use the ctdb of the release \
         that wrote it"
    )]
    Format(u8),
    /// It ends within an entry.
    #[error("the recording is cut off at byte {offset}, within an entry")]
    Truncated {
        /// Where the entry begins.
        offset: usize,
    },
    /// Not what was written.
    #[error("the recording is damaged at byte {offset}: {what}")]
    Corrupt {
        /// Where the entry begins.
        offset: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The machines decide otherwise.
    #[error(transparent)]
    Differs(Box<Difference>),
}

/// Where the machines decide otherwise than is recorded.
#[derive(PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "at {at:?} the core decides otherwise than recorded\n  input:    {input}\n  recorded: {recorded}\n  \
     now:      {now}"
)]
pub struct Difference {
    /// When.
    pub at: BootTime,
    /// The input.
    pub input: String,
    /// What is recorded.
    pub recorded: String,
    /// What is decided now.
    pub now: String,
}

impl Machines {
    /// Takes the input of `step` in; an error if the decision is not the one that it names.
    pub fn again(&mut self, step: &Step) -> Result<(), Box<Difference>> {
        match step {
            Step::Detector { at, input, effects } => {
                let mut now = Vec::new();
                self.authority.handle(*at, input.input(), &mut now);
                same(*at, input, effects, &now)
            }
            Step::Node { at, input, effects } => {
                let now = self.coordinator.handle(*at, input.clone());
                same(*at, input, effects, &now)
            }
            Step::Events { at, input, effects } => {
                let now = self.events.handle(*at, input.clone());
                same(*at, input, effects, &now)
            }
        }
    }
}

fn same<E: PartialEq + std::fmt::Debug>(
    at: BootTime,
    input: &impl std::fmt::Debug,
    recorded: &[E],
    now: &[E],
) -> Result<(), Box<Difference>> {
    if recorded == now {
        return Ok(());
    }
    Err(Box::new(Difference {
        at,
        input: format!("{input:?}"),
        recorded: format!("{recorded:?}"),
        now: format!("{now:?}"),
    }))
}

/// Appends an entry to what is to be written. An error if it is too long, which only states of
/// more than [`MAX_ENTRY`] are.
pub fn write(out: &mut Vec<u8>, entry: &Entry) -> Result<(), postcard::Error> {
    let content = postcard::to_allocvec(entry)?;
    let length = u32::try_from(content.len()).unwrap_or(u32::MAX);
    if content.len() > MAX_ENTRY {
        return Err(postcard::Error::SerializeBufferFull);
    }
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&crc32fast::hash(&content).to_le_bytes());
    out.extend_from_slice(&content);
    Ok(())
}

/// The first bytes of a file.
pub fn begin(out: &mut Vec<u8>) {
    out.extend_from_slice(MAGIC);
    out.push(FORMAT);
}

/// What a replay has run over.
#[derive(PartialEq, Eq, Debug)]
pub struct Summary {
    /// Inputs.
    pub steps: u64,
    /// Effects, all as recorded.
    pub decisions: u64,
    /// Why the part ends; `None` if the daemon died, or still writes.
    pub end: Option<End>,
}

/// The entries of a file, checked one by one.
struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<Option<Entry>, RecordingError> {
        let offset = self.offset;
        let rest = self.bytes.get(offset..).unwrap_or_default();
        if rest.is_empty() {
            return Ok(None);
        }
        let cut = RecordingError::Truncated { offset };
        let Some((length, rest)) = rest.split_first_chunk() else {
            return Err(cut);
        };
        let Some((checksum, rest)) = rest.split_first_chunk() else {
            return Err(cut);
        };
        let length = u32::from_le_bytes(*length) as usize;
        let corrupt = |what: String| RecordingError::Corrupt { offset, what };
        if length > MAX_ENTRY {
            return Err(corrupt(format!("an entry of {length} bytes")));
        }
        let Some(content) = rest.get(..length) else {
            return Err(cut);
        };
        if crc32fast::hash(content) != u32::from_le_bytes(*checksum) {
            return Err(corrupt("the checksum is another one".to_owned()));
        }
        self.offset += 8 + length;
        match postcard::take_from_bytes(content) {
            Ok((entry, [])) => Ok(Some(entry)),
            Ok(_) => Err(corrupt("the entry is longer than its content".to_owned())),
            Err(error) => Err(corrupt(error.to_string())),
        }
    }

    /// What has to come now.
    fn want<T>(&mut self, of: impl FnOnce(Entry) -> Option<T>) -> Result<T, RecordingError> {
        let offset = self.offset;
        let entry = self.next()?;
        let entry = entry.ok_or(RecordingError::Truncated { offset })?;
        of(entry).ok_or_else(|| RecordingError::Corrupt {
            offset,
            what: "an entry that does not belong here".to_owned(),
        })
    }
}

/// Runs the machines again over a file. `head` is told where it comes from, `each` every step that
/// is decided as recorded, in order, before an error further on is known.
pub fn replay(
    bytes: &[u8],
    head: impl FnOnce(&Head),
    mut each: impl FnMut(&Step),
) -> Result<Summary, RecordingError> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(RecordingError::Foreign);
    };
    match rest.first() {
        Some(&FORMAT) => {}
        Some(&other) => return Err(RecordingError::Format(other)),
        None => return Err(RecordingError::Truncated { offset: 0 }),
    }
    let mut reader = Reader {
        bytes,
        offset: MAGIC.len() + 1,
    };
    head(&reader.want(|entry| match entry {
        Entry::Head(head) => Some(head),
        _ => None,
    })?);
    let mut machines = reader.want(|entry| match entry {
        Entry::Begin(machines) => Some(machines),
        _ => None,
    })?;
    let mut summary = Summary {
        steps: 0,
        decisions: 0,
        end: None,
    };
    loop {
        let offset = reader.offset;
        match reader.next()? {
            None => return Ok(summary),
            Some(Entry::Step(step)) if summary.end.is_none() => {
                machines.again(&step).map_err(RecordingError::Differs)?;
                summary.steps += 1;
                summary.decisions += match &step {
                    Step::Detector { effects, .. } => effects.len(),
                    Step::Node { effects, .. } => effects.len(),
                    Step::Events { effects, .. } => effects.len(),
                } as u64;
                each(&step);
            }
            Some(Entry::End(end)) if summary.end.is_none() => summary.end = Some(end),
            Some(_) => {
                let what = "an entry that does not belong here".to_owned();
                return Err(RecordingError::Corrupt { offset, what });
            }
        }
    }
}

/// What there is one of per node number, checked: it is indexed by those.
pub(crate) fn per_node<'de, D, L, T>(deserializer: D) -> Result<L, D::Error>
where
    D: Deserializer<'de>,
    L: Deserialize<'de> + Deref<Target = [T]>,
{
    let list = L::deserialize(deserializer)?;
    if list.len() == MAX_NODES {
        Ok(list)
    } else {
        Err(serde::de::Error::invalid_length(
            list.len(),
            &"one per node number",
        ))
    }
}

#[cfg(test)]
mod tests;
