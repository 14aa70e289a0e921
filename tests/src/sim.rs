//! A whole cluster of the pure cores in one thread, from one seed, in virtual time.
//!
//! The shell around `ctdb_core` that the tests use, as the daemon is the one that users use:
//! hosts with clocks that are wrong, a kernel each that lets packets of an address pass or not,
//! daemons whose threads can be slow or stand still in the middle of a step, and a network that
//! does everything that networks do. The promises of `design.md` section 3 are looked at after
//! every event ([`check`]); the same seed gives the same run, so a failing one replays.

mod check;
mod clock;
mod coverage;
mod faults;
mod hosts;
mod kernel;
mod links;
mod lists;
mod lock;
mod net;
mod node;
mod options;
mod scenario;
mod sessions;
mod story;
mod threads;
mod trace;
mod world;

pub use coverage::Coverage;
pub use options::{Authority, Options, Outcome, Profile, Stats, Violation};
pub use scenario::{Bound, bounds, waits_for_members};

/// One run of random faults.
pub fn run(options: Options) -> Outcome {
    world::World::random(options).run()
}
