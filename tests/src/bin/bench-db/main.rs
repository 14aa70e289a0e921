//! `cargo xtask bench db`: our engine and libtdb do the same work on files of the same kind, in turn.
//!
//! A row is a number of pairs; in each, both sides do the same operations in fresh processes, one
//! after the other, and the ratios are those of their times and of their processor times. Printed are
//! the medians. What counts for one process is processor time, which a machine that is busy with
//! other things does not change (nothing here waits: transactions are not synced); for several, whose
//! waits for each other count, time.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

mod worker;

/// Measures the database engine beside libtdb.
#[derive(Parser)]
struct Args {
    /// Pairs of each row
    #[arg(long, default_value_t = 3)]
    pairs: usize,
    /// Milliseconds of work of each process of a pair, about
    #[arg(long, default_value_t = 60)]
    work: u64,
    /// Only rows whose text contains this
    #[arg(long)]
    row: Option<String>,
    /// Records of the large files
    #[arg(long, default_value_t = 1_000_000)]
    large: u32,
    /// Where the files stand while it runs [default: the temporary folder]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Also what a file of 1 GB costs in memory
    #[arg(long)]
    memory: bool,
}

const NOLOCK: u32 = 0x004;
const NOSYNC: u32 = 0x040;
const JENKINS: u32 = 0x800;
const MUTEXES: u32 = 0x1000;

const OPERATIONS: [&str; 5] = ["fetch", "store", "delete", "traverse", "commit"];

/// Which side does the work.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Ours,
    Libtdb,
}

/// How to lock, and by how many processes.
struct Way {
    name: &'static str,
    flags: u32,
    processes: u32,
}

const WAYS: [Way; 5] = [
    Way {
        name: "no locks, 1 process",
        flags: NOLOCK,
        processes: 1,
    },
    Way {
        name: "fcntl, 1 process",
        flags: 0,
        processes: 1,
    },
    Way {
        name: "fcntl, 4 processes",
        flags: 0,
        processes: 4,
    },
    Way {
        name: "mutexes, 1 process",
        flags: MUTEXES,
        processes: 1,
    },
    Way {
        name: "mutexes, 4 processes",
        flags: MUTEXES,
        processes: 4,
    },
];

/// The goal of a row: libtdb's time over ours.
fn goal(op: &str, way: &Way) -> f64 {
    match op {
        "traverse" => 1.5,
        _ if way.flags == NOLOCK => 1.5,
        "fetch" if way.flags == MUTEXES => 1.3,
        _ => 1.0,
    }
}

struct Bench {
    args: Args,
    folder: PathBuf,
    libtdb: PathBuf,
}

/// A process at work.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a worker ended early");
        Ok(line)
    }
}

/// What a run is about.
#[derive(Clone, Copy)]
struct Work<'a> {
    op: &'a str,
    records: u32,
    size: u32,
    flags: u32,
    count: u32,
}

impl Bench {
    fn hash_size(records: u32) -> u32 {
        if records > 100_000 { 100_001 } else { 1009 }
    }

    /// The file of a side. Files with mutexes are others.
    fn file(&self, side: Side, work: &Work<'_>) -> PathBuf {
        let side = if side == Side::Ours { "ours" } else { "libtdb" };
        let kind = if work.flags & MUTEXES == 0 {
            "fcntl"
        } else {
            "mutex"
        };
        self.folder
            .join(format!("{side}-{kind}-{}-{}.tdb", work.records, work.size))
    }

    fn command(&self, side: Side, work: &Work<'_>, number: u32) -> Result<Command> {
        let mut command = match side {
            Side::Libtdb => Command::new(&self.libtdb),
            Side::Ours => {
                let mut command = Command::new(std::env::current_exe()?);
                command.arg("worker");
                command
            }
        };
        let flags = work.flags | NOSYNC | JENKINS;
        command.arg(self.file(side, work)).args([
            flags.to_string(),
            Self::hash_size(work.records).to_string(),
            work.records.to_string(),
            work.size.to_string(),
            work.op.to_owned(),
            work.count.to_string(),
            number.to_string(),
        ]);
        Ok(command)
    }

    /// Makes the file if it is not there.
    fn fill(&self, side: Side, work: &Work<'_>) -> Result<()> {
        if self.file(side, work).exists() {
            return Ok(());
        }
        let fill = Work {
            op: "fill",
            ..*work
        };
        let status = self.command(side, &fill, 0)?.status()?;
        ensure!(status.success(), "filling a file failed");
        Ok(())
    }

    fn start(&self, side: Side, work: &Work<'_>, number: u32) -> Result<Process> {
        let mut child = self
            .command(side, work, number)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take().context("a pipe")?;
        let output = BufReader::new(child.stdout.take().context("a pipe")?);
        Ok(Process {
            child,
            input,
            output,
        })
    }

    /// Nanoseconds until all processes are done, and of processor time of all.
    fn time(&self, side: Side, work: &Work<'_>, processes: u32) -> Result<(u64, u64)> {
        let mut all = (0..processes)
            .map(|number| self.start(side, work, number))
            .collect::<Result<Vec<_>>>()?;
        for process in &mut all {
            ensure!(process.line()?.trim() == "ready", "a worker is not ready");
        }
        for process in &mut all {
            writeln!(process.input, "go")?;
        }
        let (mut longest, mut used) = (0, 0);
        for process in &mut all {
            let line = process.line()?;
            let mut words = line.split(' ');
            let mut number = || -> Result<u64> { Ok(words.next().unwrap_or_default().parse()?) };
            longest = longest.max(number()?);
            used += number()?;
        }
        for process in &mut all {
            writeln!(process.input, "end")?;
            process.child.wait()?;
        }
        Ok((longest, used))
    }

    /// How many operations take about as long as wanted, by libtdb.
    fn calibrate(&self, work: &Work<'_>, processes: u32) -> Result<u32> {
        let mut count = if work.op == "traverse" { 1 } else { 100 };
        // More would only make it more exact.
        for _ in 0..3 {
            let (_, took) = self.time(Side::Libtdb, &Work { count, ..*work }, processes)?;
            let took = took / u64::from(processes);
            let wanted = self.args.work * 1_000_000;
            if took * 2 > wanted {
                break;
            }
            let factor = (wanted / took.max(1)).clamp(1, 100);
            // Deleted records are stored before: not more than the file has.
            let most = if work.op == "delete" {
                work.records.max(1000)
            } else {
                u32::MAX
            };
            count = ((u64::from(count) * factor).min(u64::from(most))) as u32;
        }
        Ok(count)
    }

    /// Prints one row; whether it is at least as fast as libtdb, and whether it meets its goal.
    fn row(&self, way: &Way, op: &str, records: u32, size: u32) -> Result<Option<(bool, bool)>> {
        let text = format!("{op}, {records} x {size} B, {}", way.name);
        if self
            .args
            .row
            .as_ref()
            .is_some_and(|row| !text.contains(row.as_str()))
        {
            return Ok(None);
        }
        let work = Work {
            op,
            records,
            size,
            flags: way.flags,
            count: 0,
        };
        self.fill(Side::Ours, &work)?;
        self.fill(Side::Libtdb, &work)?;
        let count = self.calibrate(&work, way.processes)?;
        let work = Work { count, ..work };
        let (mut ratios, mut cpu_ratios) = (Vec::new(), Vec::new());
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for pair in 0..self.args.pairs.max(1) {
            // Neither side always comes first.
            let (a, b) = if pair % 2 == 0 {
                let a = self.time(Side::Ours, &work, way.processes)?;
                (a, self.time(Side::Libtdb, &work, way.processes)?)
            } else {
                let b = self.time(Side::Libtdb, &work, way.processes)?;
                (self.time(Side::Ours, &work, way.processes)?, b)
            };
            ratios.push(b.0 as f64 / a.0.max(1) as f64);
            cpu_ratios.push(b.1 as f64 / a.1.max(1) as f64);
            ours.push(a.1 as f64);
            theirs.push(b.1 as f64);
        }
        let all = f64::from(count) * f64::from(way.processes);
        // A traverse is told by record.
        let all = if op == "traverse" {
            all * f64::from(records)
        } else {
            all
        };
        let (time, cpu) = (median(&mut ratios), median(&mut cpu_ratios));
        let ratio = if way.processes == 1 { cpu } else { time };
        let goal = goal(op, way);
        let mark = match ratio {
            _ if ratio < 1.0 => "  SLOWER",
            _ if ratio < goal => "  below its goal",
            _ => "",
        };
        println!(
            "{text:<52} {:>9.0} {:>9.0} {cpu:>6.2} {time:>6.2} {goal:>5.1}{mark}",
            median(&mut ours) / all,
            median(&mut theirs) / all
        );
        Ok(Some((ratio >= 1.0, ratio >= goal)))
    }

    fn rows(&self) -> Result<()> {
        println!(
            "{:<52} {:>9} {:>9} {:>6} {:>5}",
            "", "ours, ns", "libtdb", "ratio", "goal"
        );
        let (mut all, mut fast, mut met) = (0, 0, 0);
        let large = self.args.large;
        for (records, size) in [(1000, 16), (1000, 1024), (1000, 65536), (large, 16)] {
            for way in &WAYS {
                for op in OPERATIONS {
                    if let Some((is_fast, is_met)) = self.row(way, op, records, size)? {
                        all += 1;
                        fast += u32::from(is_fast);
                        met += u32::from(is_met);
                    }
                }
            }
            for entry in fs::read_dir(&self.folder)? {
                let path = entry?.path();
                if path.extension().is_some_and(|e| e == "tdb") {
                    fs::remove_file(path)?;
                }
            }
        }
        println!("{all} rows: {fast} at least as fast as libtdb, {met} meet their goal");
        Ok(())
    }

    /// 1,000 records here and there of a file of 1 GB.
    fn memory(&self) -> Result<()> {
        let work = Work {
            op: "fetch",
            records: 900_000,
            size: 900,
            flags: 0,
            count: 1000,
        };
        for (side, name) in [(Side::Ours, "ours"), (Side::Libtdb, "libtdb")] {
            self.fill(side, &work)?;
            let path = self.file(side, &work);
            let mut process = self.start(side, &work, 0)?;
            process.line()?;
            writeln!(process.input, "go")?;
            process.line()?;
            let status = fs::read_to_string(format!("/proc/{}/status", process.child.id()))?;
            let of = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_default().trim().to_owned()
            };
            println!(
                "memory, {name}: 1000 of 900000 records read, file of {} MB: own {}, pages of files {}",
                fs::metadata(&path)?.len() >> 20,
                of("RssAnon:"),
                of("RssFile:")
            );
            drop(process);
            fs::remove_file(&path)?;
        }
        Ok(())
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Builds the side that is libtdb's.
fn build(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (folder.join("worker.c"), folder.join("libtdb-worker"));
    fs::write(&source, include_str!("worker.c"))?;
    let status = Command::new("cc")
        .args(["-O2", "-o"])
        .args([&program, &source])
        .arg("-ltdb")
        .status()
        .context("starting cc")?;
    ensure!(
        status.success(),
        "building the libtdb side failed; it needs the package libtdb-dev"
    );
    Ok(program)
}

fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "worker") {
        return worker::main(&words[1..]);
    }
    let args = Args::parse();
    let mut builder = tempfile::Builder::new();
    let folder = builder.prefix("bench-db-");
    let folder = match &args.folder {
        Some(place) => folder.tempdir_in(place)?,
        None => folder.tempdir()?,
    };
    let bench = Bench {
        libtdb: build(folder.path())?,
        folder: folder.path().to_owned(),
        args,
    };
    bench.rows()?;
    if bench.args.memory {
        bench.memory()?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-db: {error:#}");
            ExitCode::FAILURE
        }
    }
}
