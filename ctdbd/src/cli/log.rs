//! `ctdb log`

use ctdb_wire::api::LogLevelView;
use serde_json::json;

use super::failure::{Exit, Failure};
use super::{Asking, args};
use crate::log::LogLevel;

pub(super) fn run(asking: &Asking, verb: &args::Log) -> Result<String, Failure> {
    let path = asking.at("/v1/log/level");
    match verb {
        args::Log::Level { level: None } => {
            asking.show(&path, |view: &LogLevelView| format!("{}\n", view.level))
        }
        args::Log::Level { level: Some(word) } => {
            let level = LogLevel::parse(word).ok_or_else(|| {
                let text = format!(
                    "'{word}' is not a log level; use ERROR, WARNING, NOTICE, INFO or DEBUG"
                );
                Failure::new(Exit::Usage, "usage", text)
            })?;
            asking.change(&path, &json!({"level": level.name()}))
        }
    }
}
