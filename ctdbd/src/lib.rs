//! The node daemon `ctdbd` and the command line `ctdb`: the shell around the pure cores.
//!
//! Rooms: [`transport`] (links to the other nodes), [`liveness`] (the detector thread),
//! [`clients`] (the client socket) and [`messaging`] (who gets which message), [`events`] (scripts),
//! [`failover`] (addresses on this host), [`guard`] (what happens when the daemon dies),
//! [`api`] (HTTP over Unix sockets), [`cli`] (the command line), [`config`], [`process`],
//! [`lock`] (the cluster lock), [`log`], and [`daemon`], which puts them together.
#![forbid(unsafe_code)]

pub mod api;
pub mod bell;
pub mod cli;
pub mod clients;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod database;
pub mod dbclient;
pub mod events;
pub mod failover;
pub mod guard;
pub mod liveness;
pub mod lock;
pub mod log;
pub mod messaging;
pub mod process;
pub mod recorder;
pub mod transport;
