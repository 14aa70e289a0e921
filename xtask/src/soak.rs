//! `cargo xtask soak`: fuzz targets for ten minutes each, the differential tests of the database
//! engine, simulation with ever new seeds, then the namespace and Samba tests, again and again until
//! the time is up.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use crate::cargo::{self, TestProgram};
use crate::harness::{self, Plan, Verdict};
use crate::rungs::Rung;
use crate::setup::{self, Need};

/// Options of `cargo xtask soak`.
#[derive(Args)]
pub struct Options {
    /// No new round begins after this many minutes
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Go on after a failure
    #[arg(long)]
    keep_going: bool,
}

/// Longest time of one test program in a round.
const LIMIT: Duration = Duration::from_hours(2);

/// Test programs of the fast rung that go on for longer when they are told to.
const LONG: [&str; 2] = ["differential", "fuzz"];

/// Runs rounds until the time is up or, unless told otherwise, something fails.
pub fn soak(options: &Options) -> Result<ExitCode> {
    setup::require(&Need::ALL)?;
    let built = cargo::build(&["build", "--workspace", "--all-targets"])?;
    ensure!(built.complete, "the build failed; its messages are above");
    let chosen: Vec<&TestProgram> = built
        .tests
        .iter()
        .filter(|p| Rung::of(p) != Rung::Fast || LONG.contains(&p.target.as_str()))
        .collect();
    let start = Instant::now();
    let (mut rounds, mut failures) = (0_u64, 0_u64);
    loop {
        rounds += 1;
        for program in &chosen {
            let alone = matches!(Rung::of(program), Rung::Namespaces | Rung::Samba);
            let plan = Plan {
                threads: alone.then_some(1),
                filter: None,
                limit: LIMIT,
                each: false,
                soak: true,
            };
            let outcome = harness::run(program, &plan)?;
            let failed = outcome
                .tests
                .values()
                .filter(|v| **v == Verdict::Failed)
                .count();
            failures += failed as u64 + u64::from(outcome.trouble.is_some());
            if let Some(trouble) = outcome.trouble {
                println!("  FAILED {}: {trouble}", program.target);
            }
        }
        let elapsed = start.elapsed();
        println!(
            "soak: round {rounds}, {failures} failures, {} s",
            elapsed.as_secs()
        );
        let over = elapsed > Duration::from_mins(options.minutes);
        if over || (failures > 0 && !options.keep_going) {
            return Ok(if failures == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
    }
}
