//! What happened last, in words.

use std::collections::VecDeque;

use super::clock::Real;

/// The last events of a run; empty unless it was asked for.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    keep: usize,
    lines: VecDeque<(Real, String)>,
}

impl Trace {
    /// Keeps the last `keep` lines; none if zero.
    pub fn new(keep: usize) -> Self {
        Self {
            keep,
            lines: VecDeque::new(),
        }
    }

    /// Whether lines are kept, so that nothing is formatted in vain.
    pub fn on(&self) -> bool {
        self.keep > 0
    }

    /// Adds a line.
    pub fn push(&mut self, now: Real, line: String) {
        if self.lines.len() >= self.keep {
            self.lines.pop_front();
        }
        self.lines.push_back((now, line));
    }

    /// The lines as text.
    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for (at, line) in &self.lines {
            let _ = writeln!(text, "{:>11.6} {line}", at.seconds());
        }
        text
    }
}
