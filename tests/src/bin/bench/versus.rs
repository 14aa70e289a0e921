//! A table of two daemons side by side: medians, and ours in proportion to CTDB's.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};
use clap::Args;
use ctdb_tests::lab::Flavor;

/// What is measured, and how often.
#[derive(Args)]
pub struct Choice {
    /// Only measurements whose name contains this; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// How often each is measured; the median counts
    #[arg(long, default_value_t = 3)]
    pub runs: usize,
    /// Leave one side out: ours or ctdb
    #[arg(long)]
    without: Option<String>,
    /// Show the names of the measurements and end
    #[arg(long)]
    list: bool,
}

impl Choice {
    /// Of these, by name, those that are wanted; `None` if they were only to be listed.
    pub fn of<T: Copy>(&self, all: &[(&'static str, T)]) -> Result<Option<Vec<(&'static str, T)>>> {
        let wanted = |name: &str| {
            self.only.is_empty() || self.only.iter().any(|only| name.contains(only.as_str()))
        };
        let chosen: Vec<_> = all
            .iter()
            .filter(|(name, _)| wanted(name))
            .copied()
            .collect();
        if self.list {
            for (name, _) in &chosen {
                println!("{name}");
            }
            return Ok(None);
        }
        ensure!(
            !chosen.is_empty(),
            "no measurement of that name; --list shows them"
        );
        Ok(Some(chosen))
    }

    /// The daemons that are measured.
    pub fn sides(&self) -> Vec<(Flavor, &'static str)> {
        [(Flavor::Ours, "ours"), (Flavor::Ctdb, "ctdb")]
            .into_iter()
            .filter(|(_, name)| self.without.as_deref() != Some(name))
            .collect()
    }
}

/// What a number is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Operations in a second; more is better.
    PerSecond,
    /// Microseconds.
    Us,
    /// Milliseconds.
    Ms,
    /// Something counted.
    Count,
    /// Mebibytes.
    Mib,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::PerSecond => format!("{value:.0}/s"),
            Self::Us => format!("{value:.1} µs"),
            Self::Ms if value >= 1000.0 => format!("{:.2} s", value / 1000.0),
            Self::Ms => format!("{value:.1} ms"),
            Self::Count => format!("{value:.1}"),
            Self::Mib => format!("{value:.1} MiB"),
        }
    }
}

/// One number of one run.
#[derive(Clone, Debug)]
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// Of its value.
    pub unit: Unit,
    /// The value.
    pub value: f64,
    /// The goal, in words; nothing if there is none.
    pub goal: &'static str,
}

impl Figure {
    /// A number.
    pub fn new(what: impl Into<String>, unit: Unit, value: f64, goal: &'static str) -> Self {
        Self {
            what: what.into(),
            unit,
            value,
            goal,
        }
    }
}

/// All runs of one figure.
#[derive(Debug)]
struct Line {
    unit: Unit,
    goal: &'static str,
    ours: Vec<f64>,
    theirs: Vec<f64>,
}

/// The table.
#[derive(Debug, Default)]
pub struct Versus {
    order: Vec<String>,
    lines: BTreeMap<String, Line>,
    /// What could not be measured, and why.
    troubles: Vec<String>,
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        n if n % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

impl Versus {
    /// Takes a number of a run of ours, or of theirs.
    pub fn add(&mut self, ours: bool, figure: &Figure) {
        if !self.lines.contains_key(&figure.what) {
            self.order.push(figure.what.clone());
        }
        let line = self.lines.entry(figure.what.clone()).or_insert(Line {
            unit: figure.unit,
            goal: figure.goal,
            ours: Vec::new(),
            theirs: Vec::new(),
        });
        if ours {
            &mut line.ours
        } else {
            &mut line.theirs
        }
        .push(figure.value);
    }

    /// Says below the table what could not be measured.
    pub fn trouble(&mut self, text: String) {
        if !self.troubles.contains(&text) {
            self.troubles.push(text);
        }
    }
}

impl fmt::Display for Versus {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "| What | Ours | CTDB (Debian) | Ours : CTDB | Goal |")?;
        writeln!(out, "|---|---|---|---|---|")?;
        for what in &self.order {
            let line = &self.lines[what];
            let show = |values: &[f64]| median(values).map(|m| line.unit.show(m));
            let ratio = match (median(&line.ours), median(&line.theirs)) {
                (Some(a), Some(b)) if b > 0.0 => format!("{:.2} ×", a / b),
                _ => String::new(),
            };
            writeln!(
                out,
                "| {what} | {} | {} | {ratio} | {} |",
                show(&line.ours).unwrap_or_else(|| "not yet".into()),
                show(&line.theirs).unwrap_or_else(|| "–".into()),
                line.goal,
            )?;
        }
        for trouble in &self.troubles {
            writeln!(out, "{trouble}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Figure, Unit, Versus};

    #[test]
    fn medians_side_by_side() {
        let mut table = Versus::default();
        for (ours, value) in [(true, 300.0), (true, 100.0), (true, 200.0), (false, 100.0)] {
            let figure = Figure::new("messages", Unit::PerSecond, value, "2 ×");
            table.add(ours, &figure);
        }
        table.add(false, &Figure::new("vacuum", Unit::Ms, 2000.0, ""));
        let text = table.to_string();
        assert!(
            text.contains("| messages | 200/s | 100/s | 2.00 × | 2 × |"),
            "{text}"
        );
        assert!(
            text.contains("| vacuum | not yet | 2.00 s |  |  |"),
            "{text}"
        );
    }
}
