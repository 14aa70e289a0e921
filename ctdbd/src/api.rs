//! The HTTP API over two Unix sockets (`design.md` section 5).
//!
//! `api.sock` (mode 0600) takes every method, `api-ro.sock` (0660, group as configured) only
//! `GET`. Reads that a snapshot answers never reach the main loop, except those of another node
//! (`?node=N`) and `GET /v1/ping`; everything else becomes a [`Command`].
//!
//! * [`routes`]: what each method and path asks for; pure, and used for requests that another
//!   node passes on.
//! * [`render`](mod@render): what a snapshot answers; pure.
//! * `databases`: databases and records, over the client socket.
//! * [`openapi`]: the description of both.
//! * [`server`]: the sockets, and what bounds each connection.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ctdb_wire::api::{Action, ApiError, Snapshot};
use ctdb_wire::ids::Pnn;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};

mod databases;
pub mod metrics;
pub mod openapi;
pub mod render;
pub mod routes;
#[cfg(test)]
pub(crate) mod sample;
pub mod server;

pub use render::{render, render_path};
pub use routes::{HttpCall, Parsed, Read, Wanted, action_of, action_of_target, http_of};
pub use server::ApiHandle;

/// What the main loop is asked to do.
#[derive(Debug)]
pub struct Command {
    /// What.
    pub action: Action,
    /// Another node than this one that is to do it; `None` for this node, and for what belongs
    /// to the leader. [`http_of`] turns it into the request for that node.
    pub node: Option<Pnn>,
    /// Where the answer goes. It is dropped when the client has gone or has waited too long.
    pub reply: oneshot::Sender<Result<Value, ApiError>>,
}

/// Where the API is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiConfig {
    /// The socket for root.
    pub socket: PathBuf,
    /// The socket that only reads.
    pub read_socket: PathBuf,
    /// Group of `read_socket`; the daemon's own if unset.
    pub group: Option<String>,
}

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiStartError {
    /// Somebody answers there.
    #[error("another daemon answers on {path}; stop it first with `ctdb shutdown`")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is not a socket is in the way.
    #[error("{path} is in the way of the API socket and is not a socket; move it away")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The group does not exist.
    #[error("there is no group '{group}' for {path}; create it or choose another in ctdb.conf")]
    NoGroup {
        /// Its name.
        group: String,
        /// The socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{action} API socket {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// Opens both sockets and serves them until the handle is dropped or shut down. Must be called
/// in a tokio runtime.
pub fn start(
    config: &ApiConfig,
    snapshot: &watch::Receiver<Arc<Snapshot>>,
    commands: &mpsc::Sender<Command>,
) -> Result<ApiHandle, ApiStartError> {
    server::start(config, snapshot, commands)
}
