//! Runs one test program of Rust's own harness and reads from its output which tests ran.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cargo::TestProgram;

/// What became of a test.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It was ignored.
    Skipped,
}

/// Reads the harness's output line by line. Pure.
#[derive(Default, Debug)]
pub struct Reader {
    /// Tests by their name within the program.
    pub tests: BTreeMap<String, Verdict>,
    /// Passed, failed and ignored as the last line of the program counts them.
    pub summary: Option<(usize, usize, usize)>,
    /// With one thread the name is printed before the verdict, and what a child of the test
    /// prints may come between.
    pending: Option<String>,
}

impl Reader {
    /// Takes in one line; the test that it ends.
    pub fn line(&mut self, line: &str) -> Option<(String, Verdict)> {
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.summary = counts(rest);
            return None;
        }
        let (name, tail) = match line
            .strip_prefix("test ")
            .and_then(|l| l.split_once(" ... "))
        {
            Some((name, tail)) => (name.trim_end_matches(" - should panic").to_owned(), tail),
            None => (self.pending.clone()?, line),
        };
        let Some(verdict) = verdict(tail) else {
            self.pending = Some(name);
            return None;
        };
        self.pending = None;
        self.tests.insert(name.clone(), verdict);
        Some((name, verdict))
    }

    /// How many have that verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.tests.values().filter(|v| **v == verdict).count()
    }
}

fn verdict(tail: &str) -> Option<Verdict> {
    // What a child of the test printed may stand before the verdict.
    let is = |word: &str| tail == word || tail.ends_with(&format!(" ... {word}"));
    if is("ok") {
        Some(Verdict::Passed)
    } else if is("FAILED") {
        Some(Verdict::Failed)
    } else if is("ignored") || tail.starts_with("ignored,") {
        Some(Verdict::Skipped)
    } else {
        None
    }
}

/// `ok. 3 passed; 0 failed; 1 ignored; ...`
fn counts(text: &str) -> Option<(usize, usize, usize)> {
    let count = |word: &str| -> Option<usize> {
        let before = text.split_once(word)?.0.trim_end();
        before
            .rsplit(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    };
    Some((count("passed")?, count("failed")?, count("ignored")?))
}

/// What running one program gave.
pub struct Outcome {
    /// Its tests.
    pub tests: BTreeMap<String, Verdict>,
    /// Failures beyond those of single tests: it died, took too long, or its own count differs.
    pub trouble: Option<String>,
}

/// How to run a program.
pub struct Plan<'a> {
    /// Parallel tests; the harness's own choice if `None`.
    pub threads: Option<usize>,
    /// Only tests whose name contains this.
    pub filter: Option<&'a str>,
    /// It is ended after this time.
    pub limit: Duration,
    /// Print each test as it ends, not only failures.
    pub each: bool,
    /// Tests that can go on for longer do (`CTDB_SOAK`).
    pub soak: bool,
}

/// Runs a program to its end or to the limit.
pub fn run(program: &TestProgram, plan: &Plan<'_>) -> Result<Outcome> {
    let mut command = Command::new(&program.path);
    command
        .args(plan.filter)
        // Those too that are left out for what they need, such as downloads.
        .args(plan.soak.then_some("--include-ignored"))
        .args(plan.threads.iter().map(|n| format!("--test-threads={n}")))
        .current_dir(&program.folder)
        .env("CARGO_MANIFEST_DIR", &program.folder)
        .env("CARGO_PKG_NAME", &program.package)
        .envs(plan.soak.then_some(("CTDB_SOAK", "1")))
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {}", program.path.display()))?;
    let out = child.stdout.take().context("a test's standard output")?;
    let (sender, lines) = mpsc::sync_channel::<String>(1024);
    let reading = thread::spawn(move || {
        let mut out = BufReader::new(out);
        let mut line = Vec::new();
        while out.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line)
                .trim_end_matches('\n')
                .to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    let start = Instant::now();
    let mut last = start;
    let mut reader = Reader::default();
    let mut late = false;
    loop {
        let left = plan.limit.saturating_sub(start.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => match reader.line(&line) {
                Some((name, verdict)) => {
                    let took = last.elapsed();
                    last = Instant::now();
                    if plan.each || verdict == Verdict::Failed {
                        let word = match verdict {
                            Verdict::Passed => "ok",
                            Verdict::Failed => "FAILED",
                            Verdict::Skipped => "skipped",
                        };
                        println!(
                            "  {}::{name} {word} ({:.1} s)",
                            program.target,
                            took.as_secs_f64()
                        );
                    }
                }
                // All else is output of failed tests, and the frame around it.
                None if is_frame(&line) => {}
                None => println!("    {line}"),
            },
            Err(mpsc::RecvTimeoutError::Timeout) => {
                late = true;
                let _ = child.kill();
                break;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    drop(lines);
    let trouble = trouble(&mut child, &reader, late.then_some(plan.limit))?;
    if !late {
        // A grandchild that holds the pipe open is not waited for.
        let _ = reading.join();
    }
    Ok(Outcome {
        tests: reader.tests,
        trouble,
    })
}

fn trouble(child: &mut Child, reader: &Reader, limit: Option<Duration>) -> Result<Option<String>> {
    let status = child.wait().context("waiting for a test program")?;
    if let Some(limit) = limit {
        let open = reader
            .pending
            .clone()
            .unwrap_or_else(|| "an unknown test".into());
        return Ok(Some(format!(
            "ended after its limit of {} s, in {open}",
            limit.as_secs()
        )));
    }
    let Some((passed, failed, _)) = reader.summary else {
        return Ok(Some(format!("died before its end ({status})")));
    };
    let read = (reader.count(Verdict::Passed), reader.count(Verdict::Failed));
    if read != (passed, failed) {
        return Ok(Some(format!(
            "counts {passed} passed and {failed} failed, but {} and {} were read",
            read.0, read.1
        )));
    }
    if !status.success() && failed == 0 {
        return Ok(Some(format!("no test failed, but it ended with {status}")));
    }
    Ok(None)
}

/// Lines of the harness that say nothing new.
fn is_frame(line: &str) -> bool {
    line.is_empty()
        || line.starts_with("running ")
        || line.starts_with("test result: ")
        || line.starts_with("test ")
        || line == "failures:"
        || line == "successes:"
}

#[cfg(test)]
mod tests {
    use super::{Reader, Verdict, counts};

    #[test]
    fn reads_verdicts() {
        let mut reader = Reader::default();
        for line in [
            "running 4 tests",
            "test a::b ... ok",
            "test c ... FAILED",
            "test d ... ignored, needs a week",
            "test e - should panic ... ok",
            "",
            "test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out",
        ] {
            reader.line(line);
        }
        assert_eq!(reader.tests["a::b"], Verdict::Passed);
        assert_eq!(reader.tests["c"], Verdict::Failed);
        assert_eq!(reader.tests["d"], Verdict::Skipped);
        assert_eq!(reader.tests["e"], Verdict::Passed);
        assert_eq!(reader.summary, Some((2, 1, 1)));
        assert_eq!(reader.count(Verdict::Passed), 2);
    }

    #[test]
    fn output_of_children_does_not_hide_a_verdict() {
        let mut reader = Reader::default();
        assert_eq!(reader.line("test slow ... a child says hello"), None);
        assert_eq!(reader.line("and more"), None);
        assert_eq!(reader.line("ok"), Some(("slow".into(), Verdict::Passed)));
        assert_eq!(reader.line("ok"), None);
    }

    #[test]
    fn a_summary_without_numbers_is_none() {
        assert_eq!(counts("ok. none"), None);
        assert_eq!(
            counts("ok. 12 passed; 3 failed; 4 ignored; 0 measured"),
            Some((12, 3, 4))
        );
    }
}
