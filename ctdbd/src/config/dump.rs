//! What is in effect and where it comes from: `ctdb config dump`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::legacy::{Fate, table};
use super::settings::{Origin, Settings};
use super::{Config, Tunable, nodes};

/// Everything, as JSON: each setting with its effective `value`, its `origin` (`default` or
/// `FILE:LINE`) and, where it is not simply honoured, what becomes of it.
pub fn dump(config: &Config) -> Value {
    let mut sections = serde_json::Map::new();
    for (key, setting) in config.settings.iter() {
        let section = sections.entry(key.section).or_insert_with(|| json!({}));
        section[key.name] = entry(&json!(setting.text), &setting.origin, key.fate);
    }
    let mut tunables = serde_json::Map::new();
    for tunable in Tunable::ALL
        .into_iter()
        .filter(|tunable| !tunable.is_obsolete())
    {
        let value = json!(config.tunables.get(tunable));
        let origin = config.tunables.origin(tunable);
        tunables.insert(
            tunable.name().to_owned(),
            entry(&value, origin, tunable.fate()),
        );
    }
    let nodes: Vec<Value> = config
        .nodes
        .entries
        .iter()
        .map(
            |nodes::Node {
                 pnn,
                 address,
                 deleted,
                 ..
             }| { json!({"pnn": pnn, "address": address, "deleted": deleted}) },
        )
        .collect();
    let addresses: Vec<Value> = config
        .public_addresses
        .iter()
        .map(|public| json!({"address": public.net, "interfaces": public.interfaces}))
        .collect();
    let homes: serde_json::Map<String, Value> = config
        .home_nodes
        .iter()
        .map(|(address, pnn)| (address.to_string(), json!(pnn)))
        .collect();
    let timing = config.timing();
    json!({
        "settings": sections,
        "tunables": tunables,
        "nodes": {"source": config.cluster.nodes_source.to_string(), "list": nodes},
        "public_addresses": addresses,
        "home_nodes": homes,
        "derived": {
            "quorum": config.quorum(),
            "port": config.cluster.port,
            "heartbeat_ms": timing.interval.as_millis() as u64,
            "lease_ms": timing.lease.as_millis() as u64,
            "margin_ms": timing.margin.as_millis() as u64,
        },
    })
}

fn entry(value: &Value, origin: &Origin, fate: Fate) -> Value {
    match fate {
        Fate::Honoured | Fate::Ours => json!({"value": value, "origin": origin}),
        _ => json!({"value": value, "origin": origin, "note": fate.to_string()}),
    }
}

/// As `ctdb-config dump` prints it: sections in order, keys behind a tab, those at their default
/// commented out.
pub fn ini(settings: &Settings) -> String {
    let mut text = String::new();
    let mut section = "";
    for (key, setting) in settings.iter() {
        if key.section != section {
            section = key.section;
            // Writing to a string does not fail.
            let _ = writeln!(text, "[{section}]");
        }
        let comment = if setting.origin == Origin::Default {
            "# "
        } else {
            ""
        };
        let value = setting.text.as_deref().unwrap_or_default();
        let _ = writeln!(text, "\t{comment}{} = {value}", key.name);
    }
    text
}

/// The table of what becomes of each of CTDB's settings, for documentation: Markdown.
pub fn legacy_markdown() -> String {
    let mut text =
        String::from("| Where | Setting | Default | Meaning | Here |\n|---|---|---|---|---|\n");
    for row in table() {
        let place = if row.place == "tunable" {
            "tunable".to_owned()
        } else {
            format!("`[{}]`", row.place)
        };
        let meaning = row.meaning.trim_end_matches('.');
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {place} | {} | {} | {meaning} | {} |",
            row.name, row.default, row.fate
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::{Paths, Report, Severity};
    use super::*;

    #[test]
    fn the_old_dump_comments_defaults_out() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::test_mode(dir.path());
        std::fs::write(&paths.config, "[cluster]\nnode address = 127.0.0.1\n").unwrap();
        let settings = Settings::read(&paths, Severity::Warning, &mut Report::default());
        let text = ini(&settings);
        assert!(
            text.starts_with("[logging]\n\t# location = file:"),
            "{text}"
        );
        let part = "[cluster]\n\t# transport = tcp\n\tnode address = 127.0.0.1\n\
                    \t# cluster lock = \n\t# recovery lock = \n";
        assert!(text.contains(part), "{text}");
        assert_eq!(settings.get("CLUSTER", "leader timeout"), Some("5"));
        assert_eq!(settings.get("cluster", "cluster lock"), Some(""));
        assert_eq!(settings.get("foo", "bar"), None);
    }

    #[test]
    fn the_table_has_a_row_for_each_setting() {
        assert_eq!(legacy_markdown().lines().count(), table().len() + 2);
        assert!(legacy_markdown().contains("| tunable | KeepaliveLimit | 5 |"));
    }
}
