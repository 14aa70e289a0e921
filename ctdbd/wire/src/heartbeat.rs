//! The datagrams of the liveness path: fixed layout, little-endian, no allocation.
//!
//! They are sealed under keys of the link's session before they leave (`design.md` section 5);
//! sender and incarnation are therefore known from the key and do not stand in them.

use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, MAX_NODES, NodeSet, Pnn, Term};

/// Longest encoded message, in bytes.
pub const MAX_MESSAGE: usize = 256;

/// Age of a witness's last answer to each node, in milliseconds (`authority.md` rule 11).
/// [`AGE_INFINITE`] says that the last answer went to an incarnation known dead.
pub type Ages = [u16; MAX_NODES];

/// See [`Ages`].
pub const AGE_INFINITE: u16 = u16::MAX;

/// [`Ages`] in a recording; on the wire [`Message::encode`] writes them.
pub mod ages {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::Ages;

    /// As a sequence.
    pub fn serialize<S: Serializer>(ages: &Ages, serializer: S) -> Result<S::Ok, S::Error> {
        ages.as_slice().serialize(serializer)
    }

    /// As many as there are nodes, or an error.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Ages, D::Error> {
        sized(&Vec::deserialize(deserializer)?)
    }

    fn sized<E: serde::de::Error>(ages: &[u16]) -> Result<Ages, E> {
        Ages::try_from(ages).map_err(|_| E::invalid_length(ages.len(), &"one per node number"))
    }

    /// Where there may be none.
    pub mod option {
        use super::{Ages, Deserializer, Serializer, sized};
        use serde::{Deserialize as _, Serialize as _};

        /// As a sequence, if there are any.
        pub fn serialize<S: Serializer>(
            ages: &Option<Ages>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            ages.as_ref().map(Ages::as_slice).serialize(serializer)
        }

        /// As many as there are nodes, none, or an error.
        pub fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Ages>, D::Error> {
            let ages = Option::<Vec<u16>>::deserialize(deserializer)?;
            ages.map(|ages| sized(&ages)).transpose()
        }
    }
}

/// One message of the liveness path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Message {
    /// "I am alive; answer me" (`authority.md` rule 4).
    Heartbeat {
        /// The sender's clock, read before sending; opaque to the receiver, which echoes it.
        sent_at: u64,
        /// The sender's epoch.
        epoch: u32,
        /// Whether the sender holds a right in that epoch.
        has_right: bool,
        /// The sender's term, if it leads.
        leader: Option<Term>,
        /// Nodes that the leader wants answered no more (rule 14).
        evict: NodeSet,
        /// The nodes list that the sender uses (rules 24 to 26).
        list: NodeSet,
        /// The sender accepts no other list, and has not for L + m.
        settled: bool,
    },
    /// The witness's answer.
    Answer {
        /// The heartbeat's `sent_at`.
        echo: u64,
        /// The answering node's epoch.
        epoch: u32,
        /// Neither stood, voted nor promised in this life (rule 10).
        virgin: bool,
        /// The sender holds the cluster lock and acts (rules 21 to 23).
        holder: bool,
        /// The term promised to, if this answer carries a promise (rules 7 and 8).
        promise: Option<Term>,
        /// Nodes that the witness has stopped answering.
        stopped: NodeSet,
        /// Only to a leader.
        #[serde(with = "ages::option")]
        ages: Option<Ages>,
    },
    /// Asks for a vote; with `pre` asks whether one would be given.
    VoteRequest {
        /// The term the candidate stands for.
        term: Term,
        /// A pre-vote binds nobody.
        pre: bool,
        /// The candidate's clock at sending.
        sent_at: u64,
        /// The nodes list that the candidate uses (rule 26).
        list: NodeSet,
    },
    /// The answer to a [`Message::VoteRequest`].
    Vote {
        /// The term asked for.
        term: Term,
        /// As asked.
        pre: bool,
        /// The request's `sent_at`.
        echo: u64,
        /// Yes or no.
        granted: bool,
        /// The highest term number that the voter has heard of.
        newest_number: u64,
    },
    /// The candidate or leader of `term` gives it up (rule 9).
    Withdraw {
        /// The term that is over.
        term: Term,
        /// Whether anybody acted in it; if not, voters may forget that they voted for it.
        acted: bool,
    },
    /// An incarnation is dead and silent (rule 19): said by its guard, forwarded by the leader.
    Gone {
        /// Which.
        incarnation: Incarnation,
    },
}

/// Bytes that are no message of this version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0} bytes are no liveness message")]
pub struct NotAMessage(pub usize);

struct Writer<'a> {
    out: &'a mut [u8; MAX_MESSAGE],
    at: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        // The largest message is an answer with ages: 174 bytes, below MAX_MESSAGE.
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }
    fn u8(&mut self, value: u8) {
        self.bytes(&[value]);
    }
    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
    fn term(&mut self, term: Term) {
        self.u64(term.number);
        self.u8(term.leader.get() as u8);
        self.u64(term.session.0);
    }
    fn option_term(&mut self, term: Option<Term>) {
        match term {
            None => self.u8(0),
            Some(term) => {
                self.u8(1);
                self.term(term);
            }
        }
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }
    fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn term(&mut self) -> Option<Term> {
        let number = self.u64()?;
        let leader = Pnn::new(u32::from(self.u8()?)).ok()?;
        let session = Incarnation(self.u64()?);
        Some(Term {
            number,
            leader,
            session,
        })
    }
    #[allow(
        clippy::option_option,
        reason = "outer: were the bytes there; inner: what they say"
    )]
    fn option_term(&mut self) -> Option<Option<Term>> {
        if self.bool()? {
            self.term().map(Some)
        } else {
            Some(None)
        }
    }
}

impl Message {
    /// Encodes into `out`; returns the length.
    pub fn encode(&self, out: &mut [u8; MAX_MESSAGE]) -> usize {
        let mut w = Writer { out, at: 0 };
        match *self {
            Self::Heartbeat {
                sent_at,
                epoch,
                has_right,
                leader,
                evict,
                list,
                settled,
            } => {
                w.u8(1);
                w.u64(sent_at);
                w.u32(epoch);
                w.u8(has_right.into());
                w.option_term(leader);
                w.u64(evict.0);
                w.u64(list.0);
                w.u8(settled.into());
            }
            Self::Answer {
                echo,
                epoch,
                virgin,
                holder,
                promise,
                stopped,
                ages,
            } => {
                w.u8(2);
                w.u64(echo);
                w.u32(epoch);
                w.u8(virgin.into());
                w.u8(holder.into());
                w.option_term(promise);
                w.u64(stopped.0);
                match ages {
                    None => w.u8(0),
                    Some(ages) => {
                        w.u8(1);
                        for age in ages {
                            w.bytes(&age.to_le_bytes());
                        }
                    }
                }
            }
            Self::VoteRequest {
                term,
                pre,
                sent_at,
                list,
            } => {
                w.u8(3);
                w.term(term);
                w.u8(pre.into());
                w.u64(sent_at);
                w.u64(list.0);
            }
            Self::Vote {
                term,
                pre,
                echo,
                granted,
                newest_number,
            } => {
                w.u8(4);
                w.term(term);
                w.u8(pre.into());
                w.u64(echo);
                w.u8(granted.into());
                w.u64(newest_number);
            }
            Self::Withdraw { term, acted } => {
                w.u8(5);
                w.term(term);
                w.u8(acted.into());
            }
            Self::Gone { incarnation } => {
                w.u8(6);
                w.u64(incarnation.0);
            }
        }
        w.at
    }

    /// Decodes a whole message; anything missing, left over or out of range is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotAMessage> {
        let mut r = Reader { rest: bytes };
        let message = Self::read(&mut r);
        match message {
            Some(message) if r.rest.is_empty() => Ok(message),
            _ => Err(NotAMessage(bytes.len())),
        }
    }

    fn read(r: &mut Reader<'_>) -> Option<Self> {
        Some(match r.u8()? {
            1 => Self::Heartbeat {
                sent_at: r.u64()?,
                epoch: r.u32()?,
                has_right: r.bool()?,
                leader: r.option_term()?,
                evict: NodeSet(r.u64()?),
                list: NodeSet(r.u64()?),
                settled: r.bool()?,
            },
            2 => Self::Answer {
                echo: r.u64()?,
                epoch: r.u32()?,
                virgin: r.bool()?,
                holder: r.bool()?,
                promise: r.option_term()?,
                stopped: NodeSet(r.u64()?),
                ages: if r.bool()? {
                    let mut ages = [0; MAX_NODES];
                    for age in &mut ages {
                        *age = r.u16()?;
                    }
                    Some(ages)
                } else {
                    None
                },
            },
            3 => Self::VoteRequest {
                term: r.term()?,
                pre: r.bool()?,
                sent_at: r.u64()?,
                list: NodeSet(r.u64()?),
            },
            4 => Self::Vote {
                term: r.term()?,
                pre: r.bool()?,
                echo: r.u64()?,
                granted: r.bool()?,
                newest_number: r.u64()?,
            },
            5 => Self::Withdraw {
                term: r.term()?,
                acted: r.bool()?,
            },
            6 => Self::Gone {
                incarnation: Incarnation(r.u64()?),
            },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn term() -> Term {
        Term {
            number: 7,
            leader: Pnn::new(63).unwrap(),
            session: Incarnation(u64::MAX),
        }
    }

    #[test]
    fn messages_survive_the_journey() {
        let mut ages = [0; MAX_NODES];
        ages[3] = AGE_INFINITE;
        let messages = [
            Message::Heartbeat {
                sent_at: 1,
                epoch: 2,
                has_right: true,
                leader: Some(term()),
                evict: NodeSet(5),
                list: NodeSet(7),
                settled: true,
            },
            Message::Answer {
                echo: 9,
                epoch: 1,
                virgin: true,
                holder: true,
                promise: Some(term()),
                stopped: NodeSet(u64::MAX),
                ages: Some(ages),
            },
            Message::Answer {
                echo: 9,
                epoch: 1,
                virgin: false,
                holder: false,
                promise: None,
                stopped: NodeSet::EMPTY,
                ages: None,
            },
            Message::VoteRequest {
                term: term(),
                pre: true,
                sent_at: 4,
                list: NodeSet(1),
            },
            Message::Vote {
                term: term(),
                pre: false,
                echo: 4,
                granted: true,
                newest_number: 6,
            },
            Message::Withdraw {
                term: term(),
                acted: true,
            },
            Message::Gone {
                incarnation: Incarnation(77),
            },
        ];
        for message in messages {
            let mut out = [0; MAX_MESSAGE];
            let length = message.encode(&mut out);
            assert_eq!(Message::decode(&out[..length]), Ok(message));
            for short in 0..length {
                assert!(
                    Message::decode(&out[..short]).is_err(),
                    "{message:?} cut at {short}"
                );
            }
            assert!(Message::decode(&out[..=length]).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = Message::decode(&bytes) {
                let mut out = [0; MAX_MESSAGE];
                let length = message.encode(&mut out);
                prop_assert_eq!(&out[..length], &bytes[..]);
            }
        }
    }
}
