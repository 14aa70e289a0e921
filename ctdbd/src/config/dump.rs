//! What is in effect and where it comes from: `ctdb config dump`.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::legacy::{Fate, table};
use super::settings::{Origin, Settings};
use super::{Config, Tunable, nodes, schema, script_options};

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

/// A `ctdb.conf` that says what every key means and changes nothing: `ctdb config example`.
pub fn example() -> String {
    let mut text = "\
# ctdb.conf: every key, its default, and what it means. A key counts when its `#` is removed.
# Keys of CTDB that do something else here than there say so; SETTINGS.md has the whole table.
"
    .to_owned();
    let mut section = "";
    for key in schema::KEYS {
        if key.section != section {
            section = key.section;
            // Writing to a string does not fail.
            let _ = writeln!(text, "\n[{section}]");
        }
        let _ = writeln!(text, "\t# {}", key.meaning);
        if !key.fate.text().is_empty() {
            let _ = writeln!(text, "\t# {}", key.fate);
        }
        let _ = writeln!(text, "\t# {} = {}", key.name, key.default.describe());
    }
    text
}

/// What becomes of each of CTDB's settings and of the options of its scripts, and which settings are
/// ours: the page `ctdbd/SETTINGS.md`.
pub fn settings_page() -> String {
    let mut text = "# Settings

Made from the program (`ctdbd::config::dump::settings_page`); the test beside that function fails when
this page is old, and writes it anew with `UPDATE_SETTINGS=1`. *Honoured*: does what it does in CTDB.
*Mapped*, *accepted*, *obsolete*: accepted, with one warning where it is set to something else than
its default. *Ours*: CTDB does not know it.

## `ctdb.conf` and tunables

| Where | Setting | Default | Meaning | Here |
|---|---|---|---|---|
"
    .to_owned();
    let cell = |text: &str| text.replace('|', "\\|");
    for row in table() {
        let place = if row.place == "tunable" {
            "tunable".to_owned()
        } else {
            format!("`[{}]`", row.place)
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {place} | {} | {} | {} | {} |",
            row.name,
            cell(&row.default),
            cell(row.meaning.trim_end_matches('.')),
            cell(&row.fate.to_string())
        );
    }
    text.push_str(
        "
## Options of event scripts

In `script.options` and `events/legacy/SCRIPT.options`; the scripts source them. The last column holds
with `[failover] addresses = builtin`; with `script` all are honoured.

| Script | Option | Default | Here |
|---|---|---|---|
",
    );
    for option in script_options::OPTIONS {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} |",
            option.script,
            option.name,
            cell(option.default),
            cell(&option.fate.to_string())
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
    fn the_example_changes_nothing_and_names_every_key() {
        let text = example();
        for key in schema::KEYS {
            let line = format!("\n\t# {} = ", key.name);
            assert!(text.contains(&line), "{}", key.name);
        }
        let counts = |line: &str| !line.trim().is_empty() && !line.trim().starts_with(['#', '[']);
        assert!(!text.lines().any(counts));
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::test_mode(dir.path());
        std::fs::write(&paths.config, &text).unwrap();
        let mut report = Report::default();
        Settings::read(&paths, Severity::Warning, &mut report);
        assert!(report.problems.is_empty(), "{:?}", report.problems);
    }

    #[test]
    fn the_page_of_settings_is_up_to_date() {
        let page = settings_page();
        let rows = page.lines().filter(|line| line.starts_with("| ")).count();
        assert_eq!(rows, table().len() + script_options::OPTIONS.len() + 2);
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/SETTINGS.md");
        if std::env::var_os("UPDATE_SETTINGS").is_some() {
            std::fs::write(path, &page).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == page,
            "ctdbd/SETTINGS.md is not what the program says; run this test with UPDATE_SETTINGS=1"
        );
    }
}
