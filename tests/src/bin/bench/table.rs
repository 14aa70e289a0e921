//! The table of results.

use std::fmt::{self, Write as _};

/// What a number is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Milliseconds; less is better.
    Ms,
    /// Microseconds; less is better.
    Us,
    /// Percent; less is better.
    Percent,
    /// Mebibytes; less is better.
    Mib,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Ms if value >= 1000.0 => format!("{:.2} s", value / 1000.0),
            Self::Ms if value < 10.0 => format!("{value:.1} ms"),
            Self::Ms => format!("{value:.0} ms"),
            Self::Us => format!("{value:.1} µs"),
            Self::Percent => format!("{value:.2} %"),
            Self::Mib => format!("{value:.1} MiB"),
        }
    }
}

/// One line.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Of its numbers.
    pub unit: Unit,
    /// Our samples.
    pub ours: Vec<f64>,
    /// The goal, if there is one.
    pub goal: Option<f64>,
    /// CTDB's samples; `None` where it did not get there, empty if it was not measured.
    pub reference: Vec<Option<f64>>,
}

impl Row {
    /// Our median.
    pub fn median(&self) -> Option<f64> {
        median(&self.ours)
    }

    /// Whether our median meets the goal.
    pub fn met(&self) -> bool {
        self.goal
            .is_none_or(|goal| self.median().is_some_and(|m| m <= goal))
    }

    /// CTDB's median; `None` if it was not measured or mostly did not get there.
    fn reference_median(&self) -> Option<f64> {
        // Whoever did not get there took longer than all others.
        let all: Vec<f64> = self
            .reference
            .iter()
            .map(|s| s.unwrap_or(f64::INFINITY))
            .collect();
        median(&all).filter(|m| m.is_finite())
    }

    fn cells(&self) -> [String; 5] {
        let ours = self
            .median()
            .map_or_else(|| "–".into(), |m| self.unit.show(m));
        let goal = self.goal.map_or_else(String::new, |g| {
            format!(
                "≤ {}{}",
                self.unit.show(g),
                if self.ours.is_empty() || self.met() {
                    ""
                } else {
                    " **missed**"
                }
            )
        });
        let theirs = match self.reference_median() {
            Some(m) => self.unit.show(m),
            None if self.reference.is_empty() => String::new(),
            None => "not reached".into(),
        };
        let ratio = match (self.median(), self.reference_median()) {
            (Some(a), Some(b)) if a > 0.0 => format!("{:.1}", b / a),
            _ => String::new(),
        };
        [self.what.clone(), ours, goal, theirs, ratio]
    }

    /// In one line, for progress.
    pub fn text(&self) -> String {
        let [what, ours, goal, theirs, _] = self.cells();
        let mut text = format!("{what}: {ours}");
        if !goal.is_empty() {
            let _ = write!(text, " (goal {goal})");
        }
        if !theirs.is_empty() {
            let _ = write!(text, ", CTDB {theirs}");
        }
        let all: Vec<_> = self.ours.iter().map(|v| self.unit.show(*v)).collect();
        let _ = write!(text, "  [{}]", all.join(", "));
        text
    }
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

/// All results.
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Without lines.
    pub fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a line.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = ["What", "Ours", "Goal", "CTDB (Debian)", "CTDB / ours"].map(String::from);
        let lines: Vec<[String; 5]> = std::iter::once(head)
            .chain(self.rows.iter().map(Row::cells))
            .collect();
        let mut widths = [0; 5];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        for (number, line) in lines.iter().enumerate() {
            let cells: Vec<_> = line
                .iter()
                .zip(widths)
                .map(|(cell, width)| format!("{cell:<width$}"))
                .collect();
            writeln!(out, "| {} |", cells.join(" | "))?;
            if number == 0 {
                let rule: Vec<_> = widths.iter().map(|w| "-".repeat(*w)).collect();
                writeln!(out, "|-{}-|", rule.join("-|-"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Row, Table, Unit, median};

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn a_table_with_goals_and_ratios() {
        let row = |ours: &[f64], reference: &[Option<f64>]| Row {
            what: "move".into(),
            unit: Unit::Ms,
            ours: ours.to_vec(),
            goal: Some(20.0),
            reference: reference.to_vec(),
        };
        let mut table = Table::new();
        table.add(row(&[10.0], &[Some(200.0)]));
        table.add(row(&[30.0], &[None, None, Some(1.0)]));
        let text = table.to_string();
        assert!(
            text.contains("| move | 10 ms | ≤ 20 ms            | 200 ms        | 20.0"),
            "{text}"
        );
        assert!(text.contains("≤ 20 ms **missed** | not reached"), "{text}");
        assert!(row(&[1.0], &[]).met() && !row(&[], &[]).met());
    }
}
