//! What is wrong with the configuration, where, and what to do about it.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// Most problems that one report keeps; further ones are only counted.
pub const MAX_PROBLEMS: usize = 200;

/// How bad a problem is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Note,
    /// The daemon starts, but perhaps not as meant.
    Warning,
    /// The daemon does not start.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// The file that it is about.
    pub file: PathBuf,
    /// The line in it, from 1, if it is about one.
    pub line: Option<u32>,
    /// What is wrong.
    pub what: String,
    /// What to do; may be empty for notes.
    pub hint: String,
}

impl fmt::Display for Problem {
    /// `FILE:LINE: severity: what; hint`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        write!(f, ": {}: {}", self.severity, self.what)?;
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

/// All findings of one reading, in the order of reading.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Report {
    /// At most [`MAX_PROBLEMS`].
    pub problems: Vec<Problem>,
    /// How many more there were.
    pub more: usize,
    /// Whether one of those left out is an error.
    #[serde(skip)]
    more_errors: bool,
}

impl Report {
    /// Whether the daemon must not start.
    pub fn has_errors(&self) -> bool {
        self.more_errors || self.problems.iter().any(|p| p.severity == Severity::Error)
    }

    /// One line for each problem.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.problems
            .iter()
            .map(ToString::to_string)
            .chain((self.more > 0).then(|| format!("{} further problems are not shown", self.more)))
    }

    /// Adds a finding.
    pub fn push(&mut self, problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        } else {
            self.more += 1;
            self.more_errors |= problem.severity == Severity::Error;
        }
    }

    /// Adds an error.
    pub fn error(
        &mut self,
        file: &Path,
        line: Option<u32>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(Severity::Error, file, line, what, hint);
    }

    /// Adds a warning.
    pub fn warning(
        &mut self,
        file: &Path,
        line: Option<u32>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(Severity::Warning, file, line, what, hint);
    }

    /// Adds a note.
    pub fn note(
        &mut self,
        file: &Path,
        line: Option<u32>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(Severity::Note, file, line, what, hint);
    }

    /// Adds a finding of any severity.
    pub fn add(
        &mut self,
        severity: Severity,
        file: &Path,
        line: Option<u32>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.push(Problem {
            severity,
            file: file.to_owned(),
            line,
            what: what.into(),
            hint: hint.into(),
        });
    }

    /// Adds all findings of another report.
    pub fn extend(&mut self, other: Self) {
        for problem in other.problems {
            self.push(problem);
        }
        self.more += other.more;
        self.more_errors |= other.more_errors;
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.lines() {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_file_line_and_what_to_do() {
        let mut report = Report::default();
        report.warning(
            Path::new("/etc/ctdb/nodes"),
            Some(3),
            "empty line",
            "remove it",
        );
        assert_eq!(
            report.to_string(),
            "/etc/ctdb/nodes:3: warning: empty line; remove it\n"
        );
        assert!(!report.has_errors());
    }

    #[test]
    fn a_report_is_bounded_and_forgets_no_error() {
        let mut report = Report::default();
        for _ in 0..MAX_PROBLEMS {
            report.note(Path::new("x"), None, "y", "");
        }
        report.error(Path::new("x"), None, "z", "");
        assert_eq!(report.problems.len(), MAX_PROBLEMS);
        assert!(report.has_errors());
        assert_eq!(
            report.lines().last().unwrap(),
            "1 further problems are not shown"
        );
        let mut outer = Report::default();
        outer.extend(report);
        assert!(outer.has_errors());
    }
}
