//! Codecs and shared identifiers of the cluster's protocols: pure, no I/O.
//!
//! * [`ids`]: node numbers, incarnations, terms, epochs, node flags: the newtypes of the house.
//! * [`heartbeat`]: the datagrams of the liveness path, fixed layout, no allocation.
//! * [`peer`]: the frames of the encrypted stream between two nodes.
//! * [`relay`]: frames of that stream that carry what clients say.
//! * [`connections`]: the part of them that is about connections to public addresses.
//! * [`client`]: the protocol of the client socket, that of CTDB.
//! * [`eventd`]: the protocol of the event daemon's socket, that of CTDB.
//! * [`api`]: the JSON shapes of the HTTP API, shared by daemon and command line.
#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod connections;
pub mod eventd;
pub mod heartbeat;
pub mod ids;
pub mod peer;
pub mod relay;
