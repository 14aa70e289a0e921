//! `cargo xtask test`: the ladder of tests (`design.md` section 6), what each rung took, and the
//! check of `tests/table.toml` against what ran.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::cargo::{self, TestProgram};
use crate::harness::{self, Plan, Reader, Verdict};
use crate::setup::{self, Need};
use crate::table;

/// Options of `cargo xtask test`.
#[derive(Args)]
pub struct Options {
    /// Only these rungs; the table is checked only when all run
    #[arg(long, value_enum, value_delimiter = ',')]
    rung: Vec<Rung>,
    /// Only tests whose name contains this; the table is not checked then
    #[arg(long)]
    filter: Option<String>,
}

/// A rung of the ladder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub enum Rung {
    /// Unit, property and fuzz-like tests beside the code
    Fast,
    /// Whole clusters of the pure cores in virtual time
    Simulation,
    /// Real daemons in network namespaces
    Namespaces,
    /// Real Samba on top of that, clients of the protocol that it speaks, and Ceph
    Samba,
}

impl Rung {
    const ALL: [Self; 4] = [Self::Fast, Self::Simulation, Self::Namespaces, Self::Samba];

    /// Where a test program belongs.
    pub fn of(program: &TestProgram) -> Self {
        match (
            program.package.as_str(),
            program.kind.as_str(),
            program.target.as_str(),
        ) {
            ("ctdb-tests", "test", "simulation" | "simulation_db" | "model") => Self::Simulation,
            ("ctdb-tests", "test", "fuzz") => Self::Fast,
            (
                "ctdb-tests",
                "test",
                "ceph" | "client_socket" | "database" | "old_tool" | "records",
            ) => Self::Samba,
            ("ctdb-tests", "test", target) if target.starts_with("samba") => Self::Samba,
            ("ctdb-tests", "test", _) => Self::Namespaces,
            _ => Self::Fast,
        }
    }

    /// All of a rung's programs together end after this.
    fn limit(self) -> Duration {
        Duration::from_mins(match self {
            Self::Fast | Self::Simulation => 10,
            Self::Namespaces | Self::Samba => 15,
        })
    }

    /// Rungs that measure times run one test after another.
    fn alone(self) -> bool {
        matches!(self, Self::Namespaces | Self::Samba)
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Fast => "fast",
            Self::Simulation => "simulation",
            Self::Namespaces => "namespaces",
            Self::Samba => "samba",
        })
    }
}

/// Sums over all rungs.
#[derive(Default)]
pub struct Tally {
    /// Tests by full name: target and path.
    pub tests: BTreeMap<String, Verdict>,
    /// What failed and is no single test, in words.
    pub troubles: Vec<String>,
    /// Rungs with the time that each took, and passed, failed, skipped.
    times: Vec<(String, Duration, [usize; 3])>,
}

impl Tally {
    fn count(&self, verdict: Verdict) -> usize {
        self.tests.values().filter(|v| **v == verdict).count()
    }

    fn failed(&self) -> usize {
        self.count(Verdict::Failed) + self.troubles.len()
    }

    /// The last line of the output: `N passed, N failed`, and what was skipped if anything was.
    fn last_line(&self) -> String {
        let mut line = format!(
            "{} passed, {} failed",
            self.count(Verdict::Passed),
            self.failed()
        );
        let skipped = self.count(Verdict::Skipped);
        if skipped > 0 {
            let _ = write!(line, ", {skipped} skipped");
        }
        line
    }

    fn trouble(&mut self, text: String) {
        println!("  FAILED {text}");
        self.troubles.push(text);
    }

    fn timed(&mut self, name: &str, start: Instant, before: [usize; 3]) {
        let now = self.counts();
        let counts = [0, 1, 2].map(|i: usize| now[i] - before[i]);
        let took = start.elapsed();
        println!("== {name}: {:.1} s", took.as_secs_f64());
        self.times.push((name.to_owned(), took, counts));
    }

    fn counts(&self) -> [usize; 3] {
        [
            self.count(Verdict::Passed),
            self.failed(),
            self.count(Verdict::Skipped),
        ]
    }
}

/// Runs the ladder. Every problem is a failure in the count, so that the last line is always
/// there.
pub fn test(options: &Options) -> ExitCode {
    let start = Instant::now();
    let mut tally = Tally::default();
    climb(options, &mut tally);
    report(&tally, start.elapsed());
    if tally.failed() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn climb(options: &Options, tally: &mut Tally) {
    let chosen = |rung: Rung| options.rung.is_empty() || options.rung.contains(&rung);
    let start = Instant::now();
    if let Err(error) = setup::packages() {
        tally.trouble(format!("setup: {error:#}"));
    }
    for lack in setup::lacks(&Need::ALL) {
        println!("setup: {lack}; tests that need it will fail");
    }
    tally.timed("setup", start, [0; 3]);

    let (start, before) = (Instant::now(), tally.counts());
    println!("== build");
    // Tests, and the daemon and the tools, which the namespace tests start.
    // Test programs, and the daemon and tools that the namespace tests start, in one go.
    let built = match cargo::build(&["build", "--workspace", "--all-targets"]) {
        Ok(built) => built,
        Err(error) => {
            tally.trouble(format!("build: {error:#}"));
            return;
        }
    };
    if !built.complete {
        tally.trouble("build: not everything could be built; messages are above".into());
    }
    tally.timed("build", start, before);

    for rung in Rung::ALL.into_iter().filter(|r| chosen(*r)) {
        let (start, before) = (Instant::now(), tally.counts());
        println!("== {rung}");
        for program in built.tests.iter().filter(|p| Rung::of(p) == rung) {
            let left = rung.limit().saturating_sub(start.elapsed());
            run_program(program, rung, left, options.filter.as_deref(), tally);
        }
        if rung == Rung::Fast && options.filter.is_none() {
            documentation(tally);
        }
        tally.timed(&rung.to_string(), start, before);
    }

    if options.rung.is_empty() && options.filter.is_none() {
        let (start, before) = (Instant::now(), tally.counts());
        println!("== table");
        match table::check(&crate::workspace(), &tally.tests) {
            Ok(report) => {
                println!("  {}", report.summary);
                for wrong in report.wrong {
                    tally.trouble(wrong);
                }
            }
            Err(error) => tally.trouble(format!("table: {error:#}")),
        }
        tally.timed("table", start, before);
    }
}

fn run_program(
    program: &TestProgram,
    rung: Rung,
    limit: Duration,
    filter: Option<&str>,
    tally: &mut Tally,
) {
    let name = format!(
        "{} ({} of {})",
        program.target, program.kind, program.package
    );
    let start = Instant::now();
    let plan = Plan {
        threads: rung.alone().then_some(1),
        filter,
        limit,
        each: rung != Rung::Fast,
        soak: false,
    };
    match harness::run(program, &plan) {
        Ok(outcome) => {
            let count = |v| outcome.tests.values().filter(|w| **w == v).count();
            if !outcome.tests.is_empty() {
                println!(
                    "  {name}: {} passed, {} failed, {:.1} s",
                    count(Verdict::Passed),
                    count(Verdict::Failed),
                    start.elapsed().as_secs_f64()
                );
            }
            for (test, verdict) in outcome.tests {
                record(tally, &format!("{}::{test}", program.target), verdict);
            }
            if let Some(trouble) = outcome.trouble {
                tally.trouble(format!("{name}: {trouble}"));
            }
        }
        Err(error) => tally.trouble(format!("{name}: {error:#}")),
    }
}

/// Targets of two packages may bear one name: none of two tests is lost, and the worse verdict
/// stands under the plain name, which is the table's.
fn record(tally: &mut Tally, name: &str, verdict: Verdict) {
    let mut unique = name.to_owned();
    let mut copy = 1;
    while tally.tests.contains_key(&unique) {
        copy += 1;
        unique = format!("{name}#{copy}");
    }
    let first = tally.tests.get(name).copied();
    if first == Some(Verdict::Passed) && verdict != Verdict::Passed {
        tally.tests.insert(name.to_owned(), verdict);
        tally.tests.insert(unique, Verdict::Passed);
    } else {
        tally.tests.insert(unique, verdict);
    }
}

/// Examples in the documentation.
fn documentation(tally: &mut Tally) {
    let mut run = || -> Result<()> {
        let out = cargo::cargo()
            .args([
                "test",
                "--quiet",
                "--workspace",
                "--doc",
                "--",
                "--format",
                "pretty",
            ])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("starting cargo test --doc")?;
        let text = String::from_utf8_lossy(&out.stdout);
        let mut reader = Reader::default();
        for line in text.lines() {
            reader.line(line);
        }
        let failed = reader.count(Verdict::Failed);
        if !reader.tests.is_empty() {
            println!(
                "  documentation: {} passed, {failed} failed",
                reader.count(Verdict::Passed)
            );
        }
        for (test, verdict) in reader.tests {
            record(tally, &format!("doc::{test}"), verdict);
        }
        if failed > 0 {
            println!("{text}");
        } else if !out.status.success() {
            println!("{text}");
            tally.trouble(format!("documentation tests ended with {}", out.status));
        }
        Ok(())
    };
    let result = run();
    if let Err(error) = result {
        tally.trouble(format!("documentation: {error:#}"));
    }
}

fn report(tally: &Tally, took: Duration) {
    println!("== summary");
    for (name, took, [passed, failed, skipped]) in &tally.times {
        println!(
            "  {name:<11} {:>7.1} s  {passed:>5} passed  {failed:>3} failed  {skipped:>3} skipped",
            took.as_secs_f64()
        );
    }
    println!("  {:<11} {:>7.1} s", "total", took.as_secs_f64());
    for (name, _) in tally.tests.iter().filter(|(_, v)| **v == Verdict::Failed) {
        println!("  FAILED {name}");
    }
    for trouble in &tally.troubles {
        println!("  FAILED {trouble}");
    }
    println!("{}", tally.last_line());
}

#[cfg(test)]
mod tests {
    use super::{Rung, Tally, Verdict, record};
    use crate::cargo::TestProgram;

    fn program(package: &str, kind: &str, target: &str) -> TestProgram {
        TestProgram {
            package: package.into(),
            target: target.into(),
            kind: kind.into(),
            path: "/p".into(),
            folder: "/".into(),
        }
    }

    #[test]
    fn programs_find_their_rung() {
        assert_eq!(
            Rung::of(&program("ctdb-core", "lib", "ctdb_core")),
            Rung::Fast
        );
        assert_eq!(
            Rung::of(&program("ctdb-tests", "lib", "ctdb_tests")),
            Rung::Fast
        );
        assert_eq!(
            Rung::of(&program("ctdb-tests", "test", "simulation")),
            Rung::Simulation
        );
        assert_eq!(Rung::of(&program("ctdb-tests", "test", "fuzz")), Rung::Fast);
        assert_eq!(
            Rung::of(&program("ctdb-tests", "test", "failover")),
            Rung::Namespaces
        );
        assert_eq!(
            Rung::of(&program("ctdb-tests", "test", "samba_sessions")),
            Rung::Samba
        );
    }

    #[test]
    fn the_last_line_counts_everything() {
        let mut tally = Tally::default();
        record(&mut tally, "a::b", Verdict::Passed);
        record(&mut tally, "a::b", Verdict::Failed);
        assert_eq!(tally.last_line(), "1 passed, 1 failed");
        assert_eq!(tally.tests["a::b"], Verdict::Failed);
        tally.troubles.push("build".into());
        record(&mut tally, "c", Verdict::Skipped);
        assert_eq!(tally.last_line(), "1 passed, 2 failed, 1 skipped");
    }
}
