//! Bodies that the paths take.

use std::net::IpAddr;

use ctdb_wire::api::{ApplyPart, NodeEntry};
use ctdb_wire::ids::Pnn;
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Nothing {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeBody {
    pub(super) seconds: Option<u32>,
    pub(super) reason: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MoveBody {
    pub(super) address: IpAddr,
    pub(super) to: Pnn,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnnounceBody {
    pub(super) address: Option<IpAddr>,
    #[serde(default)]
    pub(super) interface: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReloadBody {
    #[serde(default)]
    pub(super) dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApplyBody {
    pub(super) nodes: Vec<NodeEntry>,
    #[serde(default)]
    pub(super) part: ApplyPart,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkBody {
    pub(super) up: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LevelBody {
    pub(super) level: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventBody {
    pub(super) args: Option<Vec<String>>,
    pub(super) seconds: Option<u32>,
    pub(super) all: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScriptBody {
    pub(super) enable: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CapabilitiesBody {
    pub(super) leader: Option<bool>,
    pub(super) lmaster: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddBody {
    pub(super) address: IpAddr,
    pub(super) prefix: u8,
    pub(super) interfaces: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveBody {
    pub(super) address: IpAddr,
}
