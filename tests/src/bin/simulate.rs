//! Runs the simulator from the command line: many seeds, or one with its trace.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use ctdb_core::planted::Bug;
use ctdb_tests::sim::{self, Authority, Options, Profile, Stats};

/// Simulates whole clusters of the decision cores, one seed each, and looks for broken promises.
#[derive(Parser, Debug)]
struct Args {
    /// Seeds to run: A..B, without B.
    #[arg(long, default_value = "0..1000", value_parser = parse_range)]
    seeds: (u64, u64),
    /// One seed only.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Print the last lines of the run; of a failing one in any case.
    #[arg(long)]
    trace: bool,
    /// Lines of the trace.
    #[arg(long, default_value_t = 400)]
    lines: usize,
    /// Plant a bug.
    #[arg(long, value_parser = parse_bug)]
    bug: Option<Bug>,
    /// Go on with further seeds for that long.
    #[arg(long)]
    minutes: Option<f64>,
    /// cautious, standard or fast.
    #[arg(long, default_value = "standard", value_parser = parse_profile)]
    profile: Profile,
    /// majority, lock or both.
    #[arg(long, default_value = "majority", value_parser = parse_authority)]
    authority: Authority,
    /// Number of nodes; drawn for each seed otherwise.
    #[arg(long)]
    nodes: Option<usize>,
    /// Seconds of faults in each run.
    #[arg(long, default_value_t = 40)]
    chaos: u64,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Go on after a failing seed.
    #[arg(long)]
    keep_going: bool,
    /// Measure what single events cost instead.
    #[arg(long)]
    bounds: bool,
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text.split_once("..").ok_or("seeds are written A..B")?;
    let number = |part: &str| part.parse().map_err(|_| format!("'{part}' is not a seed"));
    Ok((number(from)?, number(to)?))
}

fn parse_bug(text: &str) -> Result<Bug, String> {
    Bug::ALL
        .into_iter()
        .find(|bug| format!("{bug:?}") == text)
        .ok_or_else(|| format!("no such bug; there are {:?}", Bug::ALL))
}

fn parse_profile(text: &str) -> Result<Profile, String> {
    Profile::parse(text).ok_or_else(|| "profiles are cautious, standard, fast".to_owned())
}

fn parse_authority(text: &str) -> Result<Authority, String> {
    Authority::parse(text).ok_or_else(|| "authorities are majority, lock, both".to_owned())
}

#[derive(Default)]
struct Total {
    runs: u64,
    stats: Stats,
    unserved: u64,
    worst_seed: u64,
    recoveries: Vec<u64>,
    failures: Vec<(u64, String)>,
}

impl Total {
    fn add(&mut self, seed: u64, outcome: &sim::Outcome) {
        let stats = &outcome.stats;
        self.runs += 1;
        self.stats.events += stats.events;
        self.stats.elections += stats.elections;
        self.stats.grants += stats.grants;
        self.stats.faults += stats.faults;
        self.stats.reloads += stats.reloads;
        for (sum, number) in self.stats.unrecorded.iter_mut().zip(stats.unrecorded) {
            *sum += number;
        }
        self.stats.simulated_ms += stats.simulated_ms;
        self.stats.coverage.add(&stats.coverage);
        if stats.recovered {
            self.recoveries.push(stats.recovery_ms);
            if stats.recovery_ms > self.stats.recovery_ms {
                self.stats.recovery_ms = stats.recovery_ms;
                self.worst_seed = seed;
            }
        } else {
            self.unserved += 1;
        }
        if let Some(violation) = &outcome.violation {
            self.failures.push((seed, violation.to_string()));
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.bounds {
        let mut good = true;
        for bound in sim::bounds() {
            println!("{bound}");
            good &= bound.kept();
        }
        return if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let options = |seed: u64, trace: usize| Options {
        nodes: args.nodes,
        profile: args.profile,
        authority: args.authority,
        bug: args.bug,
        trace,
        chaos: Duration::from_secs(args.chaos),
        ..Options::new(seed)
    };
    let (from, to) = match args.seed {
        Some(seed) => (seed, seed + 1),
        None => args.seeds,
    };
    let started = Instant::now();
    let until = args
        .minutes
        .map(|minutes| started + Duration::from_secs_f64(minutes * 60.0));
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let total = Mutex::new(Total::default());
    std::thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let over = match until {
                        Some(until) => Instant::now() >= until,
                        None => seed >= to,
                    };
                    if over || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let outcome = sim::run(options(seed, 0));
                    if outcome.violation.is_some() && !args.keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                    if let Ok(mut total) = total.lock() {
                        total.add(seed, &outcome);
                    }
                }
            });
        }
    });
    let mut total = total.into_inner().unwrap_or_default();
    total.failures.sort();
    if let Some((seed, text)) = total.failures.first() {
        let replay = sim::run(options(*seed, args.lines));
        println!("{}", replay.trace);
        println!("seed {seed}: {text}");
    } else if args.trace {
        println!("{}", sim::run(options(from, args.lines)).trace);
    }
    println!("{}", total.stats.coverage.text());
    let hours = total.stats.simulated_ms as f64 / 3.6e6;
    println!(
        "reloads={} unrecorded_starts={} believed_first={} simulated_hours={hours:.2} \
         per_real_minute={:.2}",
        total.stats.reloads,
        total.stats.unrecorded[0],
        total.stats.unrecorded[1],
        hours / (started.elapsed().as_secs_f64() / 60.0)
    );
    total.recoveries.sort_unstable();
    let share = |percent: usize| {
        let index = (total.recoveries.len() * percent / 100).min(total.recoveries.len().max(1) - 1);
        total.recoveries.get(index).copied().unwrap_or_default()
    };
    println!(
        "runs={} seconds={:.1} events={} faults={} elections={} moves={} unserved={} \
         recovery_ms median={} p90={} p99={} worst={} (seed {}) failures={}",
        total.runs,
        started.elapsed().as_secs_f64(),
        total.stats.events,
        total.stats.faults,
        total.stats.elections,
        total.stats.grants,
        total.unserved,
        share(50),
        share(90),
        share(99),
        total.stats.recovery_ms,
        total.worst_seed,
        total.failures.len(),
    );
    for (seed, text) in total.failures.iter().take(20) {
        println!("  seed {seed}: {text}");
    }
    if total.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
