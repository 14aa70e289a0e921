//! `cargo xtask bench`: the goals, measured, beside what Debian's CTDB does in the same
//! namespaces, as a table for the README.
#![forbid(unsafe_code)]

#[path = "bench/connections.rs"]
mod connections;
#[path = "bench/events.rs"]
mod events;
#[path = "bench/failover.rs"]
mod failover;
#[path = "bench/idle.rs"]
mod idle;
#[path = "bench/known.rs"]
mod known;
#[path = "bench/large.rs"]
mod large;
#[path = "bench/record.rs"]
mod record;
#[path = "bench/samba.rs"]
mod samba;
#[path = "bench/table.rs"]
mod table;
#[path = "bench/versus.rs"]
mod versus;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, ValueEnum};

use table::{Row, Table};

/// Measures the goals and prints a table.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench")]
struct Options {
    /// Only measurements whose name contains this; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// How often each is measured; the median counts; 0 leaves it out
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How often CTDB is measured; 0 leaves it out
    #[arg(long, default_value_t = 5)]
    reference_runs: usize,
    /// Timing profile of ours in the failures without warning
    #[arg(long, value_enum, default_value = "standard")]
    profile: Profile,
    /// What decides who may serve, in the failures without warning
    #[arg(long, value_enum, default_value = "majority")]
    authority: Authority,
    /// Show the names of the measurements and end
    #[arg(long)]
    list: bool,
}

/// How much to measure.
#[derive(Clone, Copy)]
pub struct Runs {
    /// Samples of ours.
    pub ours: usize,
    /// Samples of CTDB.
    pub reference: usize,
    /// `[lease] profile` of ours where nodes fail without warning.
    pub profile: Profile,
    /// `[cluster] authority` there.
    pub authority: Authority,
}

/// Timing profile (`design.md` section 3).
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Profile {
    /// Lease of 1.5 s.
    Standard,
    /// Lease of 0.3 s, real-time detector.
    Fast,
}

/// What decides who may serve, with the service that keeps the lock.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Authority {
    /// The majority.
    Majority,
    /// A lock in a file that all nodes see.
    LockFile,
    /// A lock in etcd.
    LockEtcd,
    /// The majority with the lock, in a file.
    BothFile,
}

/// A measurement with its name.
type Measurement = (&'static str, fn(Runs) -> Result<Vec<Row>>);

const ALL: [Measurement; 24] = [
    ("move", |runs| failover::planned(failover::MOVE, runs)),
    ("drain", |runs| failover::planned(failover::DRAIN, runs)),
    ("stop", |runs| failover::planned(failover::STOP, runs)),
    ("daemon", |runs| failover::sudden(failover::DAEMON, runs)),
    ("daemon-leader", |runs| {
        failover::sudden(failover::DAEMON_LEADER, runs)
    }),
    ("power", |runs| failover::sudden(failover::POWER, runs)),
    ("power-leader", |runs| {
        failover::sudden(failover::POWER_LEADER, runs)
    }),
    ("links", |runs| failover::sudden(failover::LINKS, runs)),
    ("links-leader", |runs| {
        failover::sudden(failover::LINKS_LEADER, runs)
    }),
    ("freeze", |runs| failover::sudden(failover::FREEZE, runs)),
    ("freeze-leader", |runs| {
        failover::sudden(failover::FREEZE_LEADER, runs)
    }),
    ("start", failover::start),
    ("thousand", failover::thousand),
    ("lease", idle::lease),
    ("connections-cost", connections::cost),
    ("connections-storm", connections::storm),
    ("connections-seeding", connections::seeding),
    ("connections-kill", connections::kill),
    ("connections-known", known::visible),
    ("connections-told", known::many_told),
    ("connections-daemon", known::sustained),
    ("idle", idle::idle),
    ("command", idle::command),
    ("event", events::address_event),
];

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let first = words.get(1).and_then(|word| word.to_str());
    let done = match first {
        Some("record") => record::run(&record::Options::parse_from(&words[1..])),
        Some("samba") => samba::run(&samba::Options::parse_from(&words[1..])),
        _ => run(&Options::parse()),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<ExitCode> {
    let chosen: Vec<_> = ALL
        .iter()
        .filter(|(name, _)| {
            options.only.is_empty() || options.only.iter().any(|o| name.contains(o.as_str()))
        })
        .collect();
    if options.list {
        for (name, _) in chosen {
            println!("{name}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    ensure!(
        !chosen.is_empty(),
        "no measurement of that name; --list shows them"
    );
    let runs = Runs {
        ours: options.runs,
        reference: options.reference_runs,
        profile: options.profile,
        authority: options.authority,
    };
    let mut table = Table::new();
    let mut failed = false;
    for (name, measure) in chosen {
        eprintln!("== {name}");
        match measure(runs) {
            Ok(rows) => rows.into_iter().for_each(|row| {
                eprintln!("   {}", row.text());
                table.add(row);
            }),
            Err(error) => {
                failed = true;
                eprintln!("   FAILED: {error:#}");
            }
        }
    }
    println!("{table}");
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
