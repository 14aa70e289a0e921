//! Event scripts: which there are (`scripts`), which of them move addresses themselves (`movers`),
//! the list of addresses that they read (`cache`), running them (`runner`), what came of them
//! (`store`), and the socket of the old tools (`socket`). Which event runs when is decided by
//! [`ctdb_core::events`]; the main loop is between the two.

pub mod cache;
pub mod movers;
pub mod runner;
pub mod scripts;
pub mod socket;
pub mod store;

/// The component that ships.
pub const LEGACY: &str = "legacy";
