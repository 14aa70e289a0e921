//! Membership, the right to serve, address allocation and takeover as pure state machines.
//!
//! Nothing here reads a clock, opens a file, draws a random number or spawns anything
//! (`design.md` section 2, rule 1; enforced by `clippy.toml` beside this crate): the daemon and
//! the simulator are two shells around the same code.
#![forbid(unsafe_code)]

pub mod allocation;
pub mod authority;
pub mod cold;
pub mod coordinator;
pub mod events;
pub mod holder;
pub mod leader;
pub mod local;
pub mod members;
pub mod planted;
pub mod recording;
pub mod reload;
