//! Processes: the daemon as one (`own`), and every child that it starts (`children`).
//!
//! Event scripts, lock helpers, the command of the nodes list: all are started, limited, logged,
//! listed and ended here, so that no caller has to think of process groups, pipes that stay open,
//! output without end, or programs that hang on a dead file system. Nothing here blocks the main
//! loop: even the start, which waits for the program file, is done on a thread of its own.
//!
//! The guard is not among them. It has to outlive the daemon ([`crate::guard`]).

mod children;
mod output;
mod own;
mod spec;
mod supervise;

pub use children::{Child, Children, MAX_ENDED, MAX_RUNNING, StartError};
pub use own::*;
pub use spec::{DebugHook, Ended, How, Leftovers, Owner, Spec, Streams};

#[cfg(test)]
mod tests;
