//! The file with what smbtorture said of Debian's daemon and of ours.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context as _, Result, ensure};

use super::{Verdict, Way};

/// What stands before the lines.
const HEAD: &str = "\
# smbtorture of Debian 12 (samba-testsuite) against its smbd on Debian's ctdbd and on ours: how often each
# test passed, of how many runs. `two`: the test's connections go to two nodes in turn; `one`: all
# to one node. `skip`: smbtorture found the server not to be testable that way. What fails on both says
# nothing about the daemon: a session belongs to one node, the share lacks what the test wants, or the
# test took longer than its limit. Written by `cargo xtask smbtorture`.
";

/// Runs of one test against one daemon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// How many of them passed.
    pub passed: u32,
    /// All but those that skipped.
    pub runs: u32,
}

impl Score {
    /// One more run.
    pub fn add(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Pass => {
                self.passed += 1;
                self.runs += 1;
            }
            Verdict::Fail => self.runs += 1,
            Verdict::Skip => {}
        }
    }

    /// All passed, and there were some.
    pub fn passes(self) -> bool {
        self.runs > 0 && self.passed == self.runs
    }

    fn parse(text: &str) -> Result<Self> {
        if text == "skip" {
            return Ok(Self::default());
        }
        let (passed, runs) = text.split_once('/').context("no `/`")?;
        let (passed, runs) = (passed.parse()?, runs.parse()?);
        ensure!(passed <= runs, "more passed than ran: {text}");
        Ok(Self { passed, runs })
    }
}

impl fmt::Display for Score {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.runs == 0 {
            out.write_str("skip")
        } else {
            write!(out, "{}/{}", self.passed, self.runs)
        }
    }
}

/// A test against both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pair {
    /// Debian's ctdbd.
    pub ctdb: Score,
    /// Ours.
    pub ours: Score,
}

impl Pair {
    /// One run more on one than on the other, or another outcome.
    pub fn differs(self) -> bool {
        self.ctdb != self.ours
    }

    /// It always passes on theirs and not always on ours, or never passes on ours alone.
    pub fn worse(self) -> bool {
        let never = self.ours.passed == 0 && self.ctdb.passed > 0;
        never || self.ctdb.passes() && !self.ours.passes()
    }
}

/// All tests, by way and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Results(pub BTreeMap<(Way, String), Pair>);

impl Results {
    /// Reads the file: `WAY NAME CTDB OURS`; names may have spaces.
    pub fn parse(text: &str) -> Result<Self> {
        let mut all = BTreeMap::new();
        for line in text.lines().filter(|l| !l.starts_with('#')) {
            let (key, pair) = parse_line(line).with_context(|| line.to_owned())?;
            ensure!(all.insert(key, pair).is_none(), "twice: {line}");
        }
        Ok(Self(all))
    }

    /// Tests that our daemon fails and Debian's does not.
    pub fn worse(&self) -> Vec<String> {
        let worse = self.0.iter().filter(|(_, pair)| pair.worse());
        worse
            .map(|((way, name), pair)| format!("{} {name} {} {}", way.name(), pair.ctdb, pair.ours))
            .collect()
    }

    /// One line: how many there are, and how many pass.
    pub fn summary(&self) -> String {
        let count = |f: &dyn Fn(&Pair) -> bool| self.0.values().filter(|p| f(p)).count();
        format!(
            "{} tests; pass on ctdb: {}, on ours: {}; worse on ours: {}",
            self.0.len(),
            count(&|p| p.ctdb.passes()),
            count(&|p| p.ours.passes()),
            count(&|p| p.worse()),
        )
    }
}

fn parse_line(line: &str) -> Result<((Way, String), Pair)> {
    let (way, rest) = line.split_once(' ').context("one word")?;
    let way = [Way::One, Way::Two]
        .into_iter()
        .find(|w| w.name() == way)
        .context("no such way")?;
    let (rest, ours) = rest.rsplit_once(' ').context("two words")?;
    let (name, ctdb) = rest.rsplit_once(' ').context("three words")?;
    let pair = Pair {
        ctdb: Score::parse(ctdb)?,
        ours: Score::parse(ours)?,
    };
    Ok(((way, name.to_owned()), pair))
}

impl fmt::Display for Results {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{HEAD}# {}\n# way test ctdb ours\n", self.summary())?;
        for ((way, name), Pair { ctdb, ours }) in &self.0 {
            writeln!(out, "{} {name} {ctdb} {ours}", way.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Pair, Results, Score, Verdict};

    fn score(passed: u32, runs: u32) -> Score {
        Score { passed, runs }
    }

    #[test]
    fn what_is_written_is_read() {
        let text = "two smb2.a b.c 1/1 0/5\none base.x skip 1/1\n";
        let read = Results::parse(text).unwrap();
        assert_eq!(Results::parse(&read.to_string()).unwrap(), read);
        assert_eq!(read.worse(), ["two smb2.a b.c 1/1 0/5"]);
        assert!(Results::parse("two smb2.a 2/1 0/5").is_err());
        assert!(Results::parse("some smb2.a 1/1 0/5").is_err());
    }

    #[test]
    fn ours_must_pass_what_theirs_passes() {
        let worse = |ctdb, ours| Pair { ctdb, ours }.worse();
        assert!(worse(score(1, 1), score(4, 5)));
        assert!(worse(score(1, 5), score(0, 5)));
        assert!(worse(score(1, 1), Score::default()));
        assert!(!worse(score(3, 5), score(4, 5)));
        assert!(!worse(score(0, 1), score(0, 1)));
        let mut skipped = Score::default();
        skipped.add(Verdict::Skip);
        assert!(!worse(skipped, skipped));
    }
}
