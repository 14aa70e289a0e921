//! Runs one fuzz target in this process.
#![forbid(unsafe_code)]

use std::alloc::System;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cap::Cap;
use clap::Parser;
use ctdb_tests::fuzz::{self, Outcome, TARGETS, run};

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// Feeds a fuzz target with changed inputs until the time is up or something is found.
#[derive(Parser)]
struct Args {
    /// The target; without one the targets are listed
    target: Option<String>,
    /// For how long
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
    /// Of the random changes [default: drawn]
    #[arg(long)]
    seed: Option<u64>,
    /// Run this input once instead
    #[arg(long, value_name = "PATH")]
    input: Option<PathBuf>,
    /// Write new inputs that are worth keeping to this folder
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
    /// Where the input under way stands, and stays if it is a finding [default: in the temporary
    /// folder]
    #[arg(long, value_name = "PATH")]
    current: Option<PathBuf>,
}

fn main() -> ExitCode {
    match work(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn work(args: &Args) -> Result<()> {
    let Some(name) = &args.target else {
        for target in TARGETS {
            println!("{:<12} {}", target.name, target.about);
        }
        return Ok(());
    };
    let target = fuzz::target(name).with_context(|| format!("there is no target {name}"))?;
    // An allocation beyond the limit fails: the process aborts, or the target sees an error and says
    // so. The limit itself is above what the runner holds.
    let begin = |len: usize| {
        let limit = MEMORY.allocated() + run::MAX_MEMORY + 16 * len;
        // Fails only below what is allocated.
        let _ = MEMORY.set_limit(limit);
    };
    if let Some(path) = &args.input {
        let input = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        begin(input.len());
        let mut outcome = Outcome::default();
        (target.run)(&input, &mut outcome);
        println!("fuzz: {name}: no finding");
        return Ok(());
    }
    let seed = args.seed.unwrap_or_else(rand::random);
    let current = args.current.clone().unwrap_or_else(|| {
        std::env::temp_dir().join(format!("fuzz-{name}-{}", std::process::id()))
    });
    let options = run::Options {
        time: Duration::from_secs_f64(args.seconds),
        seed,
        corpus: Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name),
        current: current.clone(),
        keep: args.keep.clone(),
    };
    println!("fuzz: {name}: seed {seed}, input in {}", current.display());
    let report = run::run(target, &options, &begin)?;
    println!(
        "fuzz: {name}: {} inputs ({} of the corpus), {} shapes of outcomes, slowest {:.1} ms",
        report.inputs,
        report.corpus,
        report.shapes,
        report.slowest.as_secs_f64() * 1000.0
    );
    let _ = std::fs::remove_file(&current);
    Ok(())
}
