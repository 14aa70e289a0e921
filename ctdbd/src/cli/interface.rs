//! `ctdb interface`

use ctdb_wire::api::InterfacesView;
use serde_json::json;

use super::failure::Failure;
use super::table::columns;
use super::{Asking, args};
use crate::api::routes::encode_segment;

pub(super) fn run(asking: &Asking, verb: &args::Interface) -> Result<String, Failure> {
    match verb {
        args::Interface::List => asking.show(&asking.at("/v1/interfaces"), interfaces),
        args::Interface::Link { name, link } => {
            let path = format!("/v1/interfaces/{}/link", encode_segment(name));
            asking.change(&asking.at(&path), &json!({"up": *link == args::Link::Up}))
        }
    }
}

/// `ctdb interface list`
pub fn interfaces(view: &InterfacesView) -> String {
    let rows: Vec<[String; 4]> = view
        .interfaces
        .iter()
        .map(|interface| {
            [
                interface.name.clone(),
                if interface.up { "up" } else { "down" }.to_owned(),
                interface.references.to_string(),
                interface.reason.clone(),
            ]
        })
        .collect();
    columns(["INTERFACE", "LINK", "ADDRESSES", "REASON"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ctdb_wire::api::InterfaceView;

    #[test]
    fn links_and_reasons() {
        let interface = |name: &str, up, reason: &str| InterfaceView {
            name: name.into(),
            up,
            references: 2,
            reason: reason.into(),
        };
        let view = InterfacesView {
            node: 0,
            interfaces: vec![
                interface("eth1", true, ""),
                interface("eth2", false, "no carrier"),
            ],
        };
        let wanted = "\
INTERFACE  LINK  ADDRESSES  REASON
eth1       up    2
eth2       down  2          no carrier
";
        assert_eq!(interfaces(&view), wanted);
    }
}
