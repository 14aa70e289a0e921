//! `tests/table.toml`: every line of an issue with the tests or figures that show it, checked
//! against the tests that ran.
//!
//! A line is met by tests that passed, or by figures: a file of this tree (`README.md`), or a file
//! and words that stand in it (`README.md: kill -9 of the daemon`). What is not met yet stands
//! under `[[open]]` with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::harness::Verdict;

/// Where it is in the workspace.
const PLACE: &str = "tests/table.toml";

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Table {
    #[serde(default)]
    line: Vec<Line>,
    #[serde(default)]
    open: Vec<Open>,
}

/// A line of an issue that is met.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    issue: u32,
    text: String,
    /// Full names: target and path, as `ctdb_core::allocation::tests::worked_example`.
    #[serde(default)]
    tests: Vec<String>,
    #[serde(default)]
    figures: Vec<String>,
}

/// A line that is not met yet.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Open {
    issue: u32,
    text: String,
    why: String,
}

/// What the check found.
pub struct Report {
    /// One line.
    pub summary: String,
    /// What is wrong, one line each.
    pub wrong: Vec<String>,
}

/// Checks the table of the tree at `root` against the tests that ran.
pub fn check(root: &Path, ran: &BTreeMap<String, Verdict>) -> Result<Report> {
    let path = root.join(PLACE);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    judge(&text, ran, |file| {
        std::fs::read_to_string(root.join(file)).ok()
    })
}

fn judge(
    text: &str,
    ran: &BTreeMap<String, Verdict>,
    read: impl Fn(&str) -> Option<String>,
) -> Result<Report> {
    let table: Table = toml::from_str(text).with_context(|| format!("reading {PLACE}"))?;
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let entries = table.line.iter().map(|l| (l.issue, &l.text));
    for (issue, text) in entries.chain(table.open.iter().map(|o| (o.issue, &o.text))) {
        if text.trim().is_empty() {
            wrong.push(format!("table: an entry of issue {issue} has no text"));
        } else if !seen.insert((issue, text)) {
            wrong.push(format!(
                "table: issue {issue} \"{text}\" stands there twice"
            ));
        }
    }
    for line in &table.line {
        let about = format!("table: issue {} \"{}\"", line.issue, line.text);
        if line.tests.is_empty() && line.figures.is_empty() {
            wrong.push(format!("{about} names neither a test nor a figure"));
        }
        let mut absent = Vec::new();
        for test in &line.tests {
            match ran.get(test) {
                Some(Verdict::Passed) => {}
                Some(Verdict::Failed) => wrong.push(format!("{about}: test {test} failed")),
                Some(Verdict::Skipped) => wrong.push(format!("{about}: test {test} was skipped")),
                None => absent.push(test.as_str()),
            }
        }
        if !absent.is_empty() {
            let absent = absent.join(", ");
            wrong.push(format!("{about}: did not run or do not exist: {absent}"));
        }
        for figure in &line.figures {
            let (file, words) = figure.split_once(": ").unwrap_or((figure, ""));
            match read(file) {
                None => wrong.push(format!("{about}: {file} is not there")),
                Some(content) if !content.contains(words) => {
                    wrong.push(format!("{about}: \"{words}\" does not stand in {file}"));
                }
                Some(_) => {}
            }
        }
    }
    for open in table.open.iter().filter(|o| o.why.trim().is_empty()) {
        wrong.push(format!(
            "table: issue {} \"{}\" is open without a reason",
            open.issue, open.text
        ));
    }
    let summary = format!(
        "{} lines with tests or figures, {} open",
        table.line.len(),
        table.open.len()
    );
    Ok(Report { summary, wrong })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::judge;
    use crate::harness::Verdict;

    const GOOD: &str = r#"
        [[line]]
        issue = 2
        text = "moves"
        tests = ["core::a"]
        figures = ["README.md: outage", "README.md"]
        [[open]]
        issue = 2
        text = "more"
        why = "later"
    "#;

    fn wrong(text: &str) -> Vec<String> {
        let ran = BTreeMap::from([
            ("core::a".to_owned(), Verdict::Passed),
            ("core::b".to_owned(), Verdict::Failed),
            ("core::c".to_owned(), Verdict::Skipped),
        ]);
        let read = |file: &str| (file == "README.md").then(|| "the outage is short".to_owned());
        judge(text, &ran, read).unwrap().wrong
    }

    #[test]
    fn a_good_table_passes() {
        assert_eq!(wrong(GOOD), Vec::<String>::new());
    }

    #[test]
    fn tests_must_have_passed() {
        for test in ["core::b", "core::c", "core::d"] {
            let found = wrong(&GOOD.replace("core::a", test));
            assert!(found.len() == 1 && found[0].contains(test), "{found:?}");
        }
    }

    #[test]
    fn figures_must_be_there() {
        assert_eq!(wrong(&GOOD.replace(": outage", ": nothing of it")).len(), 1);
        assert_eq!(
            wrong(&GOOD.replace("\"README.md\"]", "\"NO.md\"]")).len(),
            1
        );
    }

    #[test]
    fn entries_must_say_something() {
        assert_eq!(wrong(&GOOD.replace("later", " ")).len(), 1);
        assert_eq!(wrong(&GOOD.replace("more", "moves")).len(), 1);
        assert_eq!(wrong("[[line]]\nissue = 2\ntext = \"x\"\n").len(), 1);
        assert!(judge("[[line]]\nissue = 2\n", &BTreeMap::new(), |_| None).is_err());
    }
}
