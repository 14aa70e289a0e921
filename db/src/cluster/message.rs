//! What the nodes tell each other about one database. Encoded with postcard, at most
//! [`MAX_MESSAGE`] bytes; they travel inside the frames of the link, which keeps their order.

use ctdb_wire::ids::{NodeSet, Pnn};
use serde::{Deserialize, Serialize};

use super::commit::{Change, TxId};
use super::types::{CallFlags, CallKind, Generation, Key, Kind};
use crate::record::{DbId, LtdbHeader, RecordFlags, Rsn};

/// Longest encoded message, in bytes: a record of the client protocol's largest packet fits.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Bytes of records that one message gathers before the next one is begun.
pub const PIECE: usize = 128 << 10;

/// Most transaction numbers that a message carries.
pub const MAX_HISTORY: usize = 128;

/// A message.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Message {
    /// The database.
    pub db: DbId,
    /// The sender's generation of it; during a recovery that of the recovery.
    pub generation: Generation,
    /// What it says.
    pub body: Body,
}

/// A record that travels whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Key.
    #[serde(with = "serde_bytes")]
    pub key: Key,
    /// Sequence number.
    pub rsn: Rsn,
    /// Data master as the copy says.
    pub dmaster: u32,
    /// Flags.
    pub flags: RecordFlags,
    /// Data.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

impl Record {
    /// From a key, a header and data.
    pub fn new(key: &[u8], header: &LtdbHeader, data: &[u8]) -> Self {
        Self {
            key: key.to_vec(),
            rsn: header.rsn,
            dmaster: header.dmaster,
            flags: header.flags,
            data: data.to_vec(),
        }
    }

    /// Its header.
    pub fn header(&self) -> LtdbHeader {
        LtdbHeader {
            rsn: self.rsn,
            dmaster: self.dmaster,
            reserved: 0,
            flags: self.flags,
        }
    }

    /// Bytes that it takes in a message, about.
    pub fn size(&self) -> usize {
        self.key.len() + self.data.len() + 32
    }
}

/// A call under way (`REQ_CALL`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Call {
    /// The node whose client called.
    pub origin: Pnn,
    /// Its number there.
    pub reqid: u64,
    /// What is wanted.
    pub call: CallKind,
    /// How.
    pub flags: CallFlags,
    /// Nodes that passed it on.
    pub hops: u16,
    /// Key.
    #[serde(with = "serde_bytes")]
    pub key: Key,
}

/// One copy of a record, as its node describes it to the location master during a recovery.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// Key.
    #[serde(with = "serde_bytes")]
    pub key: Key,
    /// Sequence number.
    pub rsn: Rsn,
    /// The copy's node owns the record.
    pub owner: bool,
    /// The copy has data.
    pub filled: bool,
    /// Flags and data, if the node leaves and cannot keep the record.
    pub content: Option<(RecordFlags, serde_bytes::ByteBuf)>,
}

/// What the location master decided about a copy.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Award {
    /// Key.
    #[serde(with = "serde_bytes")]
    pub key: Key,
    /// The node that owns the record now.
    pub owner: Pnn,
}

/// Who had the last commits of a persistent database (DATA-2). Stands beside each copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lineage {
    /// The recovery that sealed it.
    pub epoch: Generation,
    /// Every node that took part, and so has each commit since.
    pub members: NodeSet,
    /// The newest lineage in which this copy took part: older than `epoch` on a node that only
    /// witnessed that one.
    pub content: Generation,
}

impl Lineage {
    /// Of a database that no recovery has seen.
    pub const NONE: Self = Self {
        epoch: Generation::NONE,
        members: NodeSet::EMPTY,
        content: Generation::NONE,
    };
}

/// Digest of a database's content: the sum, modulo 2^128, of the first 16 bytes (little endian) of
/// SHA-256 over each record's key length (8 bytes, little endian), key and data; records without
/// data do not count. Independent of order.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Digest(pub u128);

impl Digest {
    /// Adds a record.
    pub fn add(&mut self, key: &[u8], data: &[u8]) {
        use sha2::Digest as _;
        if data.is_empty() {
            return;
        }
        let mut hash = sha2::Sha256::new();
        hash.update((key.len() as u64).to_le_bytes());
        hash.update(key);
        hash.update(data);
        let bytes = hash.finalize();
        let mut low = [0; 16];
        low.copy_from_slice(&bytes[..16]);
        self.0 = self.0.wrapping_add(u128::from_le_bytes(low));
    }
}

/// What a node says about its copy when it has stopped for a recovery.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Generation that it served in last.
    pub committed: Generation,
    /// Newest recovery in which all its records found their owners.
    pub settled: Generation,
    /// Its volatile records count: it was not evicted since.
    pub valid: bool,
    /// Records, about.
    pub records: u64,
    /// Of persistent and replicated databases.
    pub copy: Option<Copy>,
}

/// A copy of a persistent or replicated database.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Copy {
    /// Its lineage; if the copy cannot be read, the one that was read or sealed last.
    pub lineage: Lineage,
    /// Its sequence number.
    pub seq: u64,
    /// Digest of its content.
    pub digest: u128,
    /// It can be read.
    pub healthy: bool,
    /// Transactions that it has, newest last; at most [`MAX_HISTORY`].
    pub history: Vec<TxId>,
    /// The history is complete from this generation on; of a daemon that has just started it is
    /// not at all.
    pub since: Option<Generation>,
}

/// What a message says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Body {
    /// `REQ_CALL`.
    Call(Call),
    /// `REPLY_CALL`.
    Reply {
        /// The call's number at its origin.
        reqid: u64,
        /// The record; of a `Null` call without data.
        record: Record,
    },
    /// `REQ_DMASTER`: the record shall go to `owner`; to the location master.
    Moved {
        /// The call's number at the new owner.
        reqid: u64,
        /// The new owner.
        owner: Pnn,
        /// The record as it left.
        record: Record,
    },
    /// `REPLY_DMASTER`: the receiver is data master now.
    Grant {
        /// The call's number there.
        reqid: u64,
        /// The record.
        record: Record,
    },
    /// A read-only copy ends: the record as it is (`UPDATE_RECORD` of a revocation).
    Refresh {
        /// The revocation.
        revocation: u64,
        /// The record.
        record: Record,
    },
    /// That is done.
    Refreshed {
        /// The revocation.
        revocation: u64,
    },
    /// `VACUUM_FETCH`: the location master shall fetch these empty records.
    VacuumFetch {
        /// Keys.
        keys: Vec<serde_bytes::ByteBuf>,
    },
    /// `TRY_DELETE_RECORDS`.
    TryDelete {
        /// The vacuum run.
        run: u64,
        /// Keys of empty records, with the sequence numbers that their owner has.
        records: Vec<(serde_bytes::ByteBuf, Rsn)>,
        /// Remove the copies; before, they are only emptied.
        remove: bool,
    },
    /// The records of a run that the sender could not delete.
    Kept {
        /// The run.
        run: u64,
        /// Their positions in the request.
        kept: Vec<u32>,
    },
    /// `TRAVERSE_ALL`.
    Traverse {
        /// The traverse, at its originator.
        id: u64,
        /// Empty records too.
        empty: bool,
    },
    /// `TRAVERSE_DATA`.
    Traversed {
        /// The traverse.
        id: u64,
        /// Records.
        records: Vec<Record>,
        /// Nothing follows.
        end: bool,
    },
    /// The last piece was taken, the next may come.
    TraverseMore {
        /// The traverse.
        id: u64,
    },
    /// `TRAVERSE_KILL`.
    TraverseStop {
        /// The traverse.
        id: u64,
    },
    /// `UPDATE_SEQNUM`.
    Sequence,
    /// `PUSH_RECORD`.
    Push {
        /// The record.
        record: Record,
    },
    /// A transaction: store it if it fits.
    Apply {
        /// Which.
        tx: TxId,
        /// Sequence number before it.
        base: u64,
        /// The transaction before it, as the coordinator knows: a copy that had another one refuses.
        after: Option<TxId>,
        /// The records.
        changes: Vec<Change>,
    },
    /// The transaction is stored (durably), or not.
    Applied {
        /// Which.
        tx: TxId,
        /// Stored.
        ok: bool,
    },
    /// To the leader: something was lost; recover the database.
    WantRecovery,
    /// From the leader: stop, and report.
    Freeze {
        /// Name of the database, for nodes that do not have it.
        name: String,
        /// Its kind.
        kind: Kind,
        /// Counts the views of the leader.
        view: u64,
        /// Nodes whose right may still run: members and donors of that view.
        may: NodeSet,
    },
    /// To the leader: stopped.
    Stopped(Box<Report>),
    /// To the leader: a newer recovery than yours was seen.
    Newer(Generation),
    /// From the leader: tell the location masters what you have.
    Exchange {
        /// Keys whose hash is this modulo `slices`.
        slice: u32,
        /// Number of slices.
        slices: u32,
        /// Nodes of the new generation.
        members: NodeSet,
        /// Nodes that leave, and give what they have.
        donors: NodeSet,
        /// Members and donors whose records count; the others' are wiped.
        valid: NodeSet,
        /// Location masters of the new generation.
        lmasters: Vec<Pnn>,
    },
    /// Copies of the sender, to a location master.
    Claims {
        /// The slice.
        slice: u32,
        /// Copies.
        claims: Vec<Claim>,
        /// Nothing follows in this slice.
        end: bool,
    },
    /// Decisions about copies of the receiver.
    Awards {
        /// The slice.
        slice: u32,
        /// Copies whose owner changes.
        awards: Vec<Award>,
        /// Nothing follows in this slice.
        end: bool,
    },
    /// To the leader: each record of the slice has its owner.
    Settled {
        /// The slice.
        slice: u32,
    },
    /// From the leader to the node with the copy to keep: give it to these.
    Provide {
        /// Who gets it, and whether the old content is kept aside.
        targets: Vec<(Pnn, bool)>,
    },
    /// Content for a node whose copy is replaced.
    Content {
        /// Counts from 0.
        piece: u32,
        /// The old content is kept aside.
        backup: bool,
        /// Records.
        records: Vec<Record>,
        /// Nothing follows: the transactions that this content has, newest last, and from when on
        /// that is complete.
        end: Option<(Vec<TxId>, Option<Generation>)>,
    },
    /// The piece is taken; after the last one: the content is in place.
    Taken {
        /// Which piece.
        piece: u32,
        /// It could be stored.
        ok: bool,
    },
    /// To the leader: all have the content, or not.
    Provided {
        /// All of them.
        ok: bool,
    },
    /// From the leader: this is the lineage now; write it down.
    Seal {
        /// The lineage.
        lineage: Lineage,
    },
    /// To the leader: written down, or not.
    Sealed {
        /// Done.
        ok: bool,
    },
    /// From the leader: go on.
    Thaw {
        /// Counts the views of the leader.
        view: u64,
        /// Nodes whose right may still run.
        may: NodeSet,
        /// Nodes of the generation.
        members: NodeSet,
        /// Location masters.
        lmasters: Vec<Pnn>,
        /// Transactions are taken; if not, the newest lineage is missing (DATA-2).
        writable: bool,
        /// Transactions that are in, newest last.
        history: Vec<TxId>,
        /// From when on the history is complete.
        since: Generation,
    },
    /// To the leader: gone on.
    Thawed,
}

impl Body {
    /// Whether the message is for the leader of the database's recovery.
    pub fn for_leader(&self) -> bool {
        matches!(
            self,
            Self::WantRecovery
                | Self::Stopped(_)
                | Self::Newer(_)
                | Self::Settled { .. }
                | Self::Provided { .. }
                | Self::Sealed { .. }
                | Self::Thawed
        )
    }

    /// Whether it is about single records or a transaction, and takes no time to take in.
    pub fn of_record(&self) -> bool {
        matches!(
            self,
            Self::Call(_)
                | Self::Reply { .. }
                | Self::Moved { .. }
                | Self::Grant { .. }
                | Self::Refresh { .. }
                | Self::Refreshed { .. }
                | Self::Apply { .. }
                | Self::Applied { .. }
                | Self::Push { .. }
                | Self::Sequence
        )
    }

    /// Whether it belongs to a recovery, which has rules of its own for generations.
    pub fn of_recovery(&self) -> bool {
        matches!(
            self,
            Self::Freeze { .. }
                | Self::Exchange { .. }
                | Self::Claims { .. }
                | Self::Awards { .. }
                | Self::Provide { .. }
                | Self::Content { .. }
                | Self::Taken { .. }
                | Self::Seal { .. }
                | Self::Thaw { .. }
        )
    }
}

/// Why bytes are no message, or a message cannot be sent.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MessageFault {
    /// Longer than [`MAX_MESSAGE`].
    #[error("database message of {0} bytes is longer than {MAX_MESSAGE}")]
    TooLong(usize),
    /// Cannot be decoded.
    #[error("database message cannot be decoded: {0}")]
    Malformed(String),
}

impl Message {
    /// Appends the encoded message to `to`.
    pub fn encode(&self, to: &mut Vec<u8>) -> Result<(), MessageFault> {
        let before = to.len();
        let bytes = postcard::to_extend(self, std::mem::take(to))
            .map_err(|error| MessageFault::Malformed(error.to_string()))?;
        *to = bytes;
        let length = to.len() - before;
        if length > MAX_MESSAGE {
            to.truncate(before);
            return Err(MessageFault::TooLong(length));
        }
        Ok(())
    }

    /// Decodes a message. Allocates no more than the bytes can hold: postcard reads lists element
    /// by element, and does not trust their length beyond what is left.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageFault> {
        if bytes.len() > MAX_MESSAGE {
            return Err(MessageFault::TooLong(bytes.len()));
        }
        let (message, rest) = postcard::take_from_bytes::<Self>(bytes)
            .map_err(|error| MessageFault::Malformed(error.to_string()))?;
        if rest.is_empty() {
            Ok(message)
        } else {
            Err(MessageFault::Malformed(format!(
                "{} bytes behind the message",
                rest.len()
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_survives_the_journey() {
        let message = Message {
            db: DbId::of("locking.tdb"),
            generation: Generation::NONE,
            body: Body::Grant {
                reqid: 7,
                record: Record::new(b"key", &LtdbHeader::default(), b"data"),
            },
        };
        let mut bytes = vec![9];
        message.encode(&mut bytes).unwrap();
        assert_eq!(bytes[0], 9, "appended");
        assert_eq!(Message::decode(&bytes[1..]).unwrap(), message);
        assert!(Message::decode(&bytes[1..bytes.len() - 1]).is_err());
        bytes.push(0);
        assert!(Message::decode(&bytes[1..]).is_err());
    }

    #[test]
    fn a_digest_does_not_depend_on_order_or_on_empty_records() {
        let (mut a, mut b) = (Digest::default(), Digest::default());
        a.add(b"k1", b"v1");
        a.add(b"k2", b"v2");
        b.add(b"k2", b"v2");
        b.add(b"k3", b"");
        b.add(b"k1", b"v1");
        assert_eq!(a, b);
        let mut c = Digest::default();
        c.add(b"k1v", b"1");
        c.add(b"k2", b"v2");
        assert_ne!(a, c, "where the key ends counts");
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = Message::decode(&bytes);
        }
    }
}
