//! `cargo xtask smbtorture`: smbtorture against Debian's smbd on Debian's ctdbd and on ours, both in
//! one run, test by test; what both said goes to `tests/smbtorture.results`.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use ctdb_tests::lab::Flavor;
use ctdb_tests::lab::torture::results::{Pair, Results};
use ctdb_tests::lab::torture::{Run, Torture, Verdict, WORKERS, Way, list};

/// What is run: suites in which clients meet over files, locks, leases, handles and sessions.
const SUITES: [&str; 53] = [
    "base.createx_access",
    "base.createx_sharemodes_dir",
    "base.createx_sharemodes_file",
    "base.defer_open",
    "base.delaywrite",
    "base.delete",
    "base.deny1",
    "base.deny2",
    "base.deny3",
    "base.disconnect",
    "base.lock",
    "base.ntdeny1",
    "base.ntdeny2",
    "base.open",
    "base.rename",
    "base.tcon",
    "base.unlink",
    "base.vuid",
    "raw.context",
    "raw.lock",
    "raw.mux",
    "raw.notify",
    "raw.open",
    "raw.oplock",
    "raw.rename",
    "raw.samba3oplocklogoff",
    "raw.unlink",
    "smb2.compound",
    "smb2.compound_async",
    "smb2.compound_find",
    "smb2.create",
    "smb2.credits",
    "smb2.delete-on-close-perms",
    "smb2.deny",
    "smb2.dir",
    "smb2.durable-open",
    "smb2.durable-open-disconnect",
    "smb2.durable-v2-delay",
    "smb2.durable-v2-open",
    "smb2.lease",
    "smb2.lock",
    "smb2.maximum_allowed",
    "smb2.multichannel",
    "smb2.notify",
    "smb2.oplock",
    "smb2.rename",
    "smb2.replay",
    "smb2.rw",
    "smb2.session",
    "smb2.session-id",
    "smb2.sharemode",
    "smb2.tcon",
    "smb2.timestamps",
];

/// Suites that also run with all connections to one node: a session's channels and its end belong
/// to one node.
const ONE: [&str; 5] = [
    "smb2.durable-open",
    "smb2.durable-v2-open",
    "smb2.multichannel",
    "smb2.replay",
    "smb2.session",
];

/// What is left out of these suites: benchmarks, and what makes inputs at random.
const WITHOUT: [&str; 3] = [
    "smb2.create.bench-path-contention-shared",
    "smb2.create.gentest",
    "smb2.rename.rename_dir_bench",
];

#[derive(Parser)]
#[command(about = "smbtorture on Debian's ctdbd and on ours")]
struct Options {
    /// Only tests whose name begins so; all others keep what the file says of them
    only: Vec<String>,
    /// Tests at once on each daemon
    #[arg(long, default_value_t = 4)]
    workers: usize,
    /// How often a test runs on both whose outcomes differ
    #[arg(long, default_value_t = 5)]
    repeat: u32,
    /// A test that takes longer than these seconds fails
    #[arg(long, default_value_t = 90)]
    limit: u64,
    /// Run what the file says of is worse on ours, only that, and repeat each in any case
    #[arg(long)]
    worse: bool,
    /// Leave the file as it is
    #[arg(long)]
    dry: bool,
}

type Job = (Way, String);

fn workspace() -> PathBuf {
    let mut root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    root.pop();
    root
}

fn belongs(name: &str, suite: &str) -> bool {
    name.strip_prefix(suite)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// All jobs of this program.
fn jobs() -> Result<Vec<Job>> {
    let names = list()?;
    for suite in SUITES.iter().chain(&WITHOUT) {
        let known = names.iter().any(|name| belongs(name, suite));
        ensure!(known, "smbtorture has no {suite}");
    }
    let mut jobs = Vec::new();
    for name in names {
        let of = |suites: &[&str]| suites.iter().any(|suite| belongs(&name, suite));
        if !of(&SUITES) || of(&WITHOUT) {
            continue;
        }
        if of(&ONE) {
            jobs.push((Way::One, name.clone()));
        }
        jobs.push((Way::Two, name));
    }
    Ok(jobs)
}

/// Runs jobs, some at once, and hands each outcome on.
fn run(
    torture: &Torture,
    jobs: &[Job],
    options: &Options,
    done: &(impl Fn(&Job, &Run) + Sync),
) -> Result<()> {
    let queue = Mutex::new(jobs.iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let limit = Duration::from_secs(options.limit);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..options.workers.clamp(1, WORKERS))
            .map(|worker| {
                let next = &next;
                scope.spawn(move || -> Result<()> {
                    while let Some(job) = next() {
                        let run = torture.run(worker, job.0, &job.1, limit)?;
                        done(job, &run);
                    }
                    Ok(())
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("a worker panicked")?;
        }
        Ok(())
    })
}

/// What a test printed that did not pass.
fn keep(flavor: Flavor, job: &Job, run: &Run) -> Result<()> {
    let dir = workspace().join("target/smbtorture");
    fs::create_dir_all(&dir)?;
    let name = format!("{flavor:?}-{}-{}.txt", job.0.name(), job.1);
    let path = dir.join(name.replace(['/', ' '], "_"));
    fs::write(&path, &run.text).with_context(|| format!("writing {}", path.display()))
}

/// Runs jobs on both daemons at once; adds what they say.
fn both(
    tortures: &[(Flavor, Torture)],
    jobs: &[Job],
    options: &Options,
    results: &Mutex<Results>,
) -> Result<()> {
    thread::scope(|scope| {
        let sides: Vec<_> = tortures
            .iter()
            .map(|(flavor, torture)| {
                scope.spawn(move || {
                    run(torture, jobs, options, &|job, run| {
                        println!(
                            "{flavor:?} {} {} {:?} {:.1} s",
                            job.0.name(),
                            job.1,
                            run.verdict,
                            run.took.as_secs_f64()
                        );
                        if run.verdict != Verdict::Pass
                            && let Err(error) = keep(*flavor, job, run)
                        {
                            eprintln!("{error:#}");
                        }
                        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                        let pair = results.0.entry(job.clone()).or_default();
                        match flavor {
                            Flavor::Ctdb => pair.ctdb.add(run.verdict),
                            Flavor::Ours => pair.ours.add(run.verdict),
                        }
                    })
                })
            })
            .collect();
        for side in sides {
            side.join().expect("a side panicked")?;
        }
        Ok(())
    })
}

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    if let Some(package) = Torture::lacks() {
        anyhow::bail!("{package} is missing; `cargo xtask setup` installs it");
    }
    let file = workspace().join("tests/smbtorture.results");
    let mut before = match fs::read_to_string(&file) {
        Ok(text) => Results::parse(&text).context("tests/smbtorture.results")?,
        Err(_) => Results::default(),
    };
    let all = jobs()?;
    let known: BTreeSet<&Job> = all.iter().collect();
    before.0.retain(|job, _| known.contains(job));
    let chosen: Vec<Job> = all
        .iter()
        .filter(|(_, name)| {
            options.only.is_empty() || options.only.iter().any(|o| belongs(name, o))
        })
        .filter(|job| !options.worse || before.0.get(job).is_some_and(|p| p.worse()))
        .cloned()
        .collect();
    ensure!(!chosen.is_empty(), "no test is called so");
    println!("{} runs on each daemon", chosen.len());
    let tortures = [Flavor::Ctdb, Flavor::Ours]
        .into_iter()
        .map(|flavor| Ok((flavor, Torture::bring_up(flavor)?)))
        .collect::<Result<Vec<_>>>()?;
    let results = Mutex::new(Results::default());
    both(&tortures, &chosen, &options, &results)?;
    for _ in 1..options.repeat {
        let differ: Vec<Job> = {
            let results = results.lock().unwrap_or_else(PoisonError::into_inner);
            let pairs = results.0.iter();
            pairs
                .filter(|(_, pair): &(_, &Pair)| {
                    options.worse || pair.ctdb.passed != pair.ours.passed || pair.ctdb.runs > 1
                })
                .map(|(job, _)| job.clone())
                .collect()
        };
        both(&tortures, &differ, &options, &results)?;
    }
    let panics: Vec<String> = tortures
        .iter()
        .flat_map(|(flavor, torture)| {
            let found = torture.lab().samba_panics();
            found
                .into_iter()
                .map(move |line| format!("{flavor:?}: {line}"))
        })
        .collect();
    for (_, torture) in tortures {
        let left = torture.end();
        ensure!(left.is_empty(), "could not remove: {}", left.join(", "));
    }
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    before.0.extend(results.0.clone());
    if !options.dry {
        fs::write(&file, before.to_string())?;
    }
    for line in results.worse().iter().chain(&panics) {
        println!("WORSE {line}");
    }
    println!(
        "this run: {}\nthe file: {}",
        results.summary(),
        before.summary()
    );
    Ok(if results.worse().is_empty() && panics.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
