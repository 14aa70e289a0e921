//! The bench's work done by our engine; the same as worker.c.

use std::hint::black_box;
use std::io::{BufRead as _, Write as _};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use ctdb_db::{OpenFlags, OpenOptions, StoreMode, Tdb, TraverseKind};
use rustix::time::{ClockId, clock_gettime};

struct Worker {
    tdb: Tdb,
    value: Vec<u8>,
    records: u32,
    state: u64,
    sum: u64,
}

fn key(i: u32) -> [u8; 12] {
    let mut key = *b"key-00000000";
    let mut rest = i;
    for digit in key[4..].iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    key
}

impl Worker {
    fn some(&mut self) -> u32 {
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.state >> 33) % u64::from(self.records)) as u32
    }

    fn store(&mut self, i: u32, round: u32) -> Result<()> {
        self.value[..4].copy_from_slice(&round.to_ne_bytes());
        Ok(self.tdb.store(&key(i), &self.value, StoreMode::Replace)?)
    }

    fn work(&mut self, op: &str, count: u32) -> Result<()> {
        for i in 0..count {
            match op {
                "fetch" => {
                    let wanted = key(self.some());
                    let data = self.tdb.fetch(&wanted)?.context("fetch")?;
                    self.sum += u64::from(data[0]);
                }
                "store" => {
                    let at = self.some();
                    self.store(at, i)?;
                }
                "delete" => self.tdb.delete(&key(self.records + i))?,
                "traverse" => {
                    let mut sum = 0;
                    self.tdb.traverse(TraverseKind::Read, |_, _, data| {
                        sum += data.len() as u64 + u64::from(data[0]);
                        Ok(ControlFlow::Continue(()))
                    })?;
                    self.sum += sum;
                }
                "commit" => {
                    self.tdb.transaction_start()?;
                    let at = self.some();
                    self.store(at, i)?;
                    self.tdb.transaction_commit()?;
                }
                _ => bail!("no such operation: {op}"),
            }
        }
        Ok(())
    }
}

/// Processor time of this process.
fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// `PATH FLAGS HASH_SIZE RECORDS SIZE OP COUNT NUMBER`
pub(super) fn main(words: &[String]) -> Result<()> {
    ensure!(words.len() == 8, "eight words");
    let (path, op) = (&words[0], words[5].as_str());
    let number = |at: usize| -> Result<u32> { Ok(words[at].parse()?) };
    let (records, size, count, state) = (number(3)?, number(4)?, number(6)?, number(7)?);
    let options = OpenOptions {
        flags: OpenFlags::from_bits_retain(number(1)?),
        hash_size: number(2)?,
        create: true,
        ..OpenOptions::default()
    };
    let mut worker = Worker {
        tdb: Tdb::open(path, &options)?,
        value: vec![0; size as usize],
        records,
        state: u64::from(state),
        sum: 0,
    };
    if op == "fill" {
        return (0..records).try_for_each(|i| worker.store(i, i));
    }
    if op == "delete" {
        // Each process deletes records of its own, after the others.
        worker.records = records + state * 10_000_000;
        (0..count).try_for_each(|i| worker.store(worker.records + i, i))?;
    }
    println!("ready");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let (start, cpu_start) = (Instant::now(), cpu());
    worker.work(op, count)?;
    let (took, used) = (start.elapsed(), cpu().saturating_sub(cpu_start));
    let (took, used) = (took.as_nanos(), used.as_nanos());
    println!("{took} {used} {}", black_box(worker.sum));
    std::io::stdout().flush()?;
    // The memory of a process is read while it waits here.
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(())
}
