//! The project's own commands. `cargo xtask help` lists them.
//!
//! Depends on nothing of the workspace, so that it builds on a machine where nothing was installed
//! and can install what the rest needs.
#![forbid(unsafe_code)]

mod build_ebpf;
mod cargo;
mod dist;
mod harness;
mod rungs;
#[cfg(test)]
mod scripts;
mod setup;
mod soak;
mod table;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use setup::Need;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "The project's own commands")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run all tests, rung by rung, and check the table of what they show
    ///
    /// The last line of output is always `N passed, N failed`.
    Test(rungs::Options),
    /// Show a cluster in network namespaces, make a node fail, draw what happens
    Demo(Rest),
    /// Measure the goals and print them as a table
    ///
    /// `bench db` measures the database engine, libtdb beside it; `bench record` the databases and
    /// messages of three nodes, `bench samba` Debian's Samba on them, Debian's CTDB in turn.
    Bench(Rest),
    /// Run whole clusters of the pure cores in virtual time, from seeds
    Simulate(Rest),
    /// Feed a fuzz target with changed inputs; without a name, list the targets
    ///
    /// The targets stand in `tests/src/fuzz/targets`, one file per room, their inputs in
    /// `tests/corpus`; the head of `tests/src/fuzz.rs` says how to add one. The test command runs
    /// each for half a minute, `soak` for ten minutes.
    Fuzz(Rest),
    /// Repeat fuzzing, differential tests, simulation and namespace tests for a long time
    Soak(soak::Options),
    /// Run smbtorture on Debian's Samba over Debian's ctdbd and over ours, and write down what both say
    ///
    /// The file is `tests/smbtorture.results`; words choose tests by the beginnings of their names.
    Smbtorture(Rest),
    /// Open a shell in a running namespace cluster
    Lab(Rest),
    /// Build the kernel programs' object that is checked in
    BuildEbpf {
        /// Write nothing; fail unless the object is what the sources give
        #[arg(long)]
        check: bool,
    },
    /// Build the Debian package that stands beside the package ctdb; prints its path last
    Dist(dist::Options),
    /// Install what building and testing need (Debian packages), and say what this machine lacks
    Setup,
}

/// Words that are handed on to the program behind a command.
#[derive(Args)]
struct Rest {
    /// Options of the command; `--help` shows them
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "OPTION"
    )]
    words: Vec<OsString>,
}

/// Where the workspace is: xtask stands in its own folder there.
fn workspace() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

fn run(cli: Cli) -> Result<ExitCode> {
    let done = ExitCode::SUCCESS;
    match cli.command {
        Command::Test(options) => Ok(rungs::test(&options)),
        Command::Soak(options) => soak::soak(&options),
        Command::Setup => {
            setup::packages()?;
            for lack in setup::lacks(&Need::ALL) {
                println!("setup: {lack}");
            }
            println!("setup: done");
            Ok(done)
        }
        Command::Dist(options) => dist::dist(&workspace(), &options).map(|()| done),
        Command::BuildEbpf { check } => build_ebpf::build(&workspace(), check).map(|()| done),
        Command::Demo(rest) => {
            setup::require(&Need::ALL)?;
            cargo::exec_built("demo", &rest.words, cargo::Profile::Dev)
        }
        Command::Smbtorture(rest) => {
            setup::require(&Need::ALL)?;
            cargo::exec_built("smbtorture", &rest.words, cargo::Profile::Dev)
        }
        Command::Lab(rest) => {
            setup::require(&Need::ALL)?;
            let mut words = vec![OsString::from("shell")];
            words.extend(rest.words);
            cargo::exec_built("lab-helper", &words, cargo::Profile::Dev)
        }
        Command::Bench(rest) if rest.words.first().is_some_and(|word| word == "db") => {
            setup::packages()?;
            cargo::exec_built("bench-db", &rest.words[1..], cargo::Profile::Release)
        }
        Command::Bench(rest) => {
            setup::require(&Need::ALL)?;
            cargo::exec_built("bench", &rest.words, cargo::Profile::Release)
        }
        Command::Fuzz(rest) => cargo::exec_built("fuzz", &rest.words, cargo::Profile::Release),
        Command::Simulate(rest) => {
            setup::packages()?;
            cargo::exec_built("simulate", &rest.words, cargo::Profile::Release)
        }
    }
}

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
