//! The database machines of whole clusters in one thread, from one seed, in virtual time: clients
//! that lock and change records, transactions, crashes, frozen daemons, partitions, lost links,
//! failing disks, nodes that are stopped and continued; traverses, pushed records, change counters,
//! sticky records, databases that are used together.
//!
//! Membership is a model of what `ctdb_core` guarantees, reduced to what the databases need: a right
//! that ends by itself, a node that is left out only when its right has ended, one leader at a time.
//! The promises DATA-1, DATA-2 and DATA-5 and the invariants of spec/database.md G are the checkers.

mod check;
mod client;
mod extras;
mod faults;
mod files;
mod membership;
mod node;
mod options;
mod world;

pub use options::{Authority, Options, Outcome, Stats, Violation};

/// One run.
pub fn run(options: Options) -> Outcome {
    world::World::new(options).run()
}
