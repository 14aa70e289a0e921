//! JSON of events and their scripts: `/v1/events` and below.

use serde::{Deserialize, Serialize};

/// One script of an event's run.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct EventScriptView {
    /// Name without `.script`.
    pub name: String,
    /// Begin, seconds since 1970.
    pub begin: f64,
    /// End.
    pub end: f64,
    /// 0, its exit code, or a negative error number: -8 disabled, -4 killed by a signal, -110 timed
    /// out, -125 given up, others could not be run.
    pub result: i32,
    /// Head of its output; not in lists.
    pub output: String,
}

/// A run of an event.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct EventRunView {
    /// Component, such as `legacy`.
    pub component: String,
    /// Event name.
    pub event: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Begin, seconds since 1970.
    pub begin: f64,
    /// How long it took.
    pub seconds: f64,
    /// 0, or the result of the script that failed.
    pub result: i32,
    /// `ok`, or what went wrong.
    pub state: String,
    /// Scripts in the order of their run, up to the one that ended it.
    pub scripts: Vec<EventScriptView>,
}

/// `GET /v1/events`, `GET /v1/events/history`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct EventsView {
    /// The last run of each event, or the last runs, the oldest first.
    pub events: Vec<EventRunView>,
}

/// A script as it stands in the directories.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ScriptView {
    /// Name without `.script`.
    pub name: String,
    /// It is run.
    pub enabled: bool,
    /// It was shipped; else it is the administrator's own.
    pub shipped: bool,
}

/// `GET /v1/events/scripts/{component}`.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ScriptsView {
    /// Shipped ones first.
    pub scripts: Vec<ScriptView>,
}
