//! One database out of the files of all nodes: the record protocol, recovery, transactions and
//! vacuuming as pure state machines (spec/database.md D to G; `db/CLUSTER.md` says how and why).
//!
//! A [`Database`] is one database on one node. It is fed [`Input`]s and answers with [`Effect`]s;
//! records are read and written at once through a [`Store`], under the lock of their chain, on the
//! thread that took the input in. [`Leader`] is what the leading node runs beside it for each
//! database: it takes the database through its recoveries. Neither knows clocks, sockets, threads or
//! randomness: the daemon is one shell around them, the simulator in `tests/` another.

mod call;
mod commit;
mod content;
mod database;
mod exchange;
pub mod hold;
mod hot;
mod leader;
pub mod memory;
pub mod message;
mod migrate;
mod park;
pub mod planted;
mod pushed;
mod readonly;
pub mod rights;
pub mod rule;
mod store;
mod traverse;
mod types;
mod vacuum;

pub use commit::{Change, Conflict, SEQNUM_KEY, TxId, sequence_of, verify};
pub use database::{Config, Database, State};
pub use hot::{HotKey, Statistics};
pub use leader::{Leader, Progress, View};
pub use message::{Body, Lineage, Message, MessageFault};
pub use store::{Cursor, Store, StoreFault, Visitor};
pub use types::{
    CallFlags, CallKind, ClientId, Effect, Generation, Input, JobId, JobResult, Key, Kind, Note,
    Ticket, Tunables, Work,
};
