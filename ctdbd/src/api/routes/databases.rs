//! `/v1/databases` and below. Records are read by `POST`, so that the socket for readers does not show
//! what only root may see.

use ctdb_wire::api::databases::DatabaseAsk;
use ctdb_wire::api::{Action, ApiError};
use serde::de::DeserializeOwned;

use super::{Input, Parsed, Route, Wanted, act, anywhere, get, post};

type Made = Result<Parsed, ApiError>;

#[allow(
    clippy::unnecessary_wraps,
    reason = "the table's functions share one type"
)]
fn ask(ask: DatabaseAsk) -> Made {
    Ok(Parsed {
        wanted: Wanted::Database(ask),
        node: None,
    })
}

/// Of one database, with a body.
fn of<T: DeserializeOwned>(input: &Input, make: fn(String, T) -> DatabaseAsk) -> Made {
    let body = input.json()?;
    ask(make(input.segment(0).to_owned(), body))
}

/// Of one database, without.
fn bare(input: &Input, make: fn(String) -> DatabaseAsk) -> Made {
    input.no_body()?;
    ask(make(input.segment(0).to_owned()))
}

const fn answers(answer: &'static str, route: Route) -> Route {
    Route { answer, ..route }
}

/// The part of the table.
pub(super) const ROUTES: &[Route] = &[
    anywhere(get(
        "/v1/databases",
        "Databases",
        "The databases that are attached on this node",
        |_| ask(DatabaseAsk::List),
    )),
    get(
        "/v1/databases/clients",
        "DatabaseClients",
        "Processes that are connected to the client socket",
        |_| act(Action::DatabaseClients),
    ),
    anywhere(get(
        "/v1/databases/{db}",
        "Database",
        "One database, by name or number (0x...)",
        |input| bare(input, DatabaseAsk::Show),
    )),
    anywhere(get(
        "/v1/databases/{db}/stats",
        "DatabaseStats",
        "This node's counters of a database",
        |input| bare(input, DatabaseAsk::Stats),
    )),
    anywhere(post(
        "/v1/databases/attach",
        Some("AttachRequest"),
        "Attaches a database on all nodes; it is made if there is none",
        |input| ask(DatabaseAsk::Attach(input.json()?)),
    )),
    anywhere(post(
        "/v1/databases/{db}/detach",
        None,
        "Detaches a volatile database on all nodes, where clients may not attach",
        |input| bare(input, DatabaseAsk::Detach),
    )),
    anywhere(post(
        "/v1/databases/{db}/set",
        Some("DatabaseSetRequest"),
        "Has a volatile database give read-only copies, or keep contended records, on all nodes",
        |input| of(input, DatabaseAsk::Set),
    )),
    answers(
        "Record",
        anywhere(post(
            "/v1/databases/{db}/get",
            Some("KeyRequest"),
            "One record",
            |input| of(input, DatabaseAsk::Get),
        )),
    ),
    anywhere(post(
        "/v1/databases/{db}/put",
        Some("RecordRequest"),
        "Writes one record; on all nodes when answered, where every node has all records",
        |input| of(input, DatabaseAsk::Put),
    )),
    anywhere(post(
        "/v1/databases/{db}/del",
        Some("KeyRequest"),
        "Deletes one record",
        |input| of(input, DatabaseAsk::Del),
    )),
    anywhere(post(
        "/v1/databases/{db}/push",
        Some("RecordRequest"),
        "Writes one record of a volatile database, and sends a copy to all nodes",
        |input| of(input, DatabaseAsk::Push),
    )),
    anywhere(post(
        "/v1/databases/{db}/transaction",
        Some("TransactionRequest"),
        "Writes several records of a persistent or replicated database, all or none",
        |input| of(input, DatabaseAsk::Transaction),
    )),
    answers(
        "Records",
        anywhere(post(
            "/v1/databases/{db}/dump",
            None,
            "All records of all nodes that are not empty, up to 16 MiB",
            |input| bare(input, DatabaseAsk::Dump),
        )),
    ),
    anywhere(post(
        "/v1/databases/{db}/wipe",
        None,
        "Deletes all records, on all nodes",
        |input| bare(input, DatabaseAsk::Wipe),
    )),
    anywhere(post(
        "/v1/cluster/recover",
        None,
        "Recovers all databases; answered when they are served",
        |input| {
            input.no_body()?;
            ask(DatabaseAsk::Recover)
        },
    )),
];
