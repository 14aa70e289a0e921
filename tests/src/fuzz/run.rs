//! Feeding one target until its time is up.

use std::collections::HashSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use rustix::time::{ClockId, clock_gettime};

use super::mutate::mutate;
use super::{Outcome, Target};

/// An input that computes longer than this hangs. Of the process, so a busy machine does not count.
pub const MAX_CPU: Duration = Duration::from_secs(10);
/// An input that is not done after this hangs too, whatever it waits for.
pub const MAX_WAIT: Duration = Duration::from_secs(120);
/// Memory that an input may have allocated at any time.
pub const MAX_MEMORY: usize = 64 << 20;
/// Inputs kept in memory. At the bound, new ones take the place of others.
const MAX_KEPT: usize = 4096;

/// How to run.
pub struct Options {
    /// For how long, after the corpus.
    pub time: Duration,
    /// Of the random changes.
    pub seed: u64,
    /// The checked-in corpus.
    pub corpus: PathBuf,
    /// Where the input stands while it runs.
    pub current: PathBuf,
    /// Where new inputs worth keeping go.
    pub keep: Option<PathBuf>,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Report {
    /// Inputs run.
    pub inputs: u64,
    /// Of these, from the corpus.
    pub corpus: u64,
    /// Shapes of outcomes seen.
    pub shapes: u64,
    /// Processor time of the slowest input.
    pub slowest: Duration,
}

/// The processor time of this process.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The input under way, for the watch.
#[derive(Clone, Copy)]
struct Started {
    number: u64,
    cpu: Duration,
    at: Instant,
}

/// Ends the process if an input hangs. `current` holds the input then.
fn watch(started: &'static Mutex<Option<Started>>) {
    std::thread::spawn(move || {
        let mut seen = None;
        loop {
            std::thread::sleep(Duration::from_millis(500));
            let Some(now) = *started
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
            else {
                continue;
            };
            if seen != Some(now.number) {
                seen = Some(now.number);
                continue;
            }
            if cpu().saturating_sub(now.cpu) > MAX_CPU || now.at.elapsed() > MAX_WAIT {
                eprintln!("fuzz: input {} hangs", now.number);
                std::process::exit(HANG);
            }
        }
    });
}

/// Exit code of the runner when an input hangs.
pub const HANG: i32 = 70;

/// One target being fed.
struct Runner<'a> {
    target: &'a Target,
    current: File,
    started: &'static Mutex<Option<Started>>,
    shapes: HashSet<u64>,
    kept: Vec<Vec<u8>>,
    report: Report,
    keep: Option<&'a Path>,
    /// Tells the allocator that an input begins, with its length.
    begin: &'a dyn Fn(usize),
}

impl Runner<'_> {
    /// Runs one input; whether its outcome is new. `Err`: it panicked.
    fn feed(&mut self, input: &[u8]) -> Result<bool> {
        self.current.set_len(0)?;
        self.current.write_all_at(input, 0)?;
        self.report.inputs += 1;
        let before = cpu();
        *self
            .started
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Started {
            number: self.report.inputs,
            cpu: before,
            at: Instant::now(),
        });
        (self.begin)(input.len());
        let mut outcome = Outcome::default();
        let run = self.target.run;
        let result = catch_unwind(AssertUnwindSafe(|| run(input, &mut outcome)));
        *self
            .started
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        self.report.slowest = self.report.slowest.max(cpu().saturating_sub(before));
        anyhow::ensure!(result.is_ok(), "input {} panicked", self.report.inputs);
        let new = self.shapes.insert(outcome.shape());
        self.report.shapes = self.shapes.len() as u64;
        Ok(new)
    }

    fn keep(&mut self, input: Vec<u8>, random: &mut ChaCha8Rng) -> Result<()> {
        if let Some(folder) = self.keep {
            let mut name = DefaultHasher::new();
            input.hash(&mut name);
            let path = folder.join(format!("{:016x}", name.finish()));
            fs::write(&path, &input).with_context(|| format!("writing {}", path.display()))?;
        }
        if self.kept.len() < MAX_KEPT {
            self.kept.push(input);
        } else {
            let at = random.random_range(0..self.kept.len());
            self.kept[at] = input;
        }
        Ok(())
    }
}

/// The inputs of a folder, in the order of their names.
pub fn corpus(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("reading {}", folder.display())),
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| fs::read(path).with_context(|| format!("reading {}", path.display())))
        .collect()
}

/// Runs the corpus, then changed inputs until the time is up. `begin` is called before every input
/// with its length.
pub fn run(target: &Target, options: &Options, begin: &dyn Fn(usize)) -> Result<Report> {
    let current = File::create(&options.current)
        .with_context(|| format!("creating {}", options.current.display()))?;
    let started: &'static Mutex<Option<Started>> = Box::leak(Box::new(Mutex::new(None)));
    watch(started);
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let mut runner = Runner {
        target,
        current,
        started,
        shapes: HashSet::new(),
        kept: Vec::new(),
        report: Report::default(),
        keep: None,
        begin,
    };
    let mut first = corpus(&options.corpus)?;
    runner.report.corpus = first.len() as u64;
    first.extend((target.seeds)());
    first.push(Vec::new());
    for input in first {
        runner.feed(&input)?;
        runner.keep(input, &mut random)?;
    }
    runner.keep = options.keep.as_deref();
    let end = Instant::now() + options.time;
    let mut input = Vec::new();
    while Instant::now() < end {
        let at = random.random_range(0..runner.kept.len());
        let other = random.random_range(0..runner.kept.len());
        input.clone_from(&runner.kept[at]);
        mutate(
            &mut random,
            &mut input,
            &runner.kept[other],
            target.words,
            target.max_len,
        );
        if runner.feed(&input)? {
            runner.keep(input.clone(), &mut random)?;
        }
    }
    Ok(runner.report)
}
