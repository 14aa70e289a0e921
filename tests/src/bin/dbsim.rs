//! Runs the database simulator from the command line: many seeds, or one with its trace.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;
use ctdb_db::cluster::planted::Bug;
use ctdb_tests::dbsim::{self, Options};

/// Simulates the databases of whole clusters, one seed each, and looks for broken promises.
#[derive(Parser, Debug)]
struct Args {
    /// First seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Number of seeds.
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// One seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Lines of trace to print of a failing run, and of a single one.
    #[arg(long, default_value_t = 0)]
    trace: usize,
    /// Plant a bug.
    #[arg(long, value_parser = parse_bug)]
    bug: Option<Bug>,
    /// Nothing goes wrong, and all want the same record; with the longest wait for it.
    #[arg(long)]
    calm: bool,
    /// Go on after a failing seed.
    #[arg(long)]
    keep_going: bool,
}

fn parse_bug(text: &str) -> Result<Bug, String> {
    Bug::ALL
        .into_iter()
        .find(|bug| format!("{bug:?}") == text)
        .ok_or_else(|| format!("no such bug; there are {:?}", Bug::ALL))
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seeds = match args.seed {
        Some(seed) => seed..seed + 1,
        None => args.from..args.from + args.count,
    };
    let mut failed = false;
    let total = seeds.end - seeds.start;
    for seed in seeds {
        let options = Options {
            bug: args.bug,
            trace: args.trace,
            calm: args.calm,
            ..Options::new(seed)
        };
        let outcome = dbsim::run(options);
        if args.seed.is_some() {
            println!("{}\n{:?}", outcome.trace, outcome.stats);
        }
        if args.calm {
            let (nodes, worst) = (outcome.stats.nodes, outcome.stats.worst_call_us);
            println!(
                "seed {seed}: {nodes} nodes, {worst} us, {:?}",
                outcome.stats.answered
            );
        }
        if let Some(violation) = outcome.violation {
            println!("seed {seed}: {violation}");
            failed = true;
            if !args.keep_going {
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{total} seeds");
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
