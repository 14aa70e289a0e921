//! `cargo xtask bench record`: the databases and messages of three nodes, ours and Debian's CTDB in
//! turn in one run, by the same clients.

use std::process::{Command, ExitCode, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use ctdb_tests::dbclient::{Database, Kind, Session};
use ctdb_tests::lab::{Flavor, Lab, Node};
use ctdb_wire::client::packet::TunnelFlags;

use crate::large;
use crate::versus::{Choice, Figure, Unit, Versus};

/// How long one rate is measured.
const SPAN: Duration = Duration::from_secs(1);
/// Where tokens go.
const RING: u64 = 0xAE00_0000_0000_0042;
/// The tunnel.
const TUNNEL: u64 = 0xFFFF_FFFF_0000_0042;
/// Busy time under the lock of a contended record.
const BUSY: Duration = Duration::from_micros(50);
/// Migrations of one sample.
const MIGRATIONS: usize = 1000;

/// Measures databases and messages, ours and CTDB in turn.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench record")]
pub struct Options {
    #[command(flatten)]
    choice: Choice,
}

/// Measures once on a running cluster.
pub type Measure = fn(&Lab) -> Result<Vec<Figure>>;

const ALL: [(&str, Measure); 19] = [
    ("record-ring", record_ring),
    ("message-ring", message_ring),
    ("tunnel", tunnel),
    ("migration", migration),
    ("process", process),
    ("contended", contended),
    ("g-lock", g_lock),
    ("persistent", |lab| transactions(lab, Kind::Persistent)),
    ("replicated", |lab| transactions(lab, Kind::Replicated)),
    ("local", local),
    ("fill", large::fill),
    ("traverse", large::traverse),
    ("recovery-100k", |lab| large::recovery(lab, 100_000)),
    ("recovery-500k", |lab| large::recovery(lab, 500_000)),
    ("big-10k", |lab| large::transaction(lab, 10_000)),
    ("big-100k", |lab| large::transaction(lab, 100_000)),
    ("restore", large::restore),
    ("vacuum", large::vacuum),
    ("vanish", large::vanish),
];

/// Beginnings of the names of measurements that get clusters of their own.
const LARGE: [&str; 6] = ["traverse", "recovery", "big", "restore", "vacuum", "vanish"];

/// Builds both clusters and measures.
pub fn run(options: &Options) -> Result<ExitCode> {
    let options = &options.choice;
    let Some(chosen) = options.of(&ALL)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let sides = options.sides();
    let mut table = Versus::default();
    let build = || {
        sides
            .iter()
            .map(|(flavor, _)| {
                let lab = Lab::builder().flavor(*flavor).ipv6(false).build()?;
                lab.bring_up(&[], Duration::from_secs(90))?;
                Ok((*flavor, lab))
            })
            .collect::<Result<Vec<_>>>()
    };
    let mut standing: Option<Vec<(Flavor, Lab)>> = None;
    for (name, measure) in chosen {
        eprintln!("== {name}");
        // What a large one leaves would weigh on the next.
        let large = LARGE.iter().any(|part| name.starts_with(part));
        if large {
            standing = None;
        }
        let labs = match standing.take() {
            Some(labs) => labs,
            None => build()?,
        };
        for turn in 0..options.runs {
            // The order changes, so that neither is always the second.
            let mut order: Vec<&(Flavor, Lab)> = labs.iter().collect();
            if turn % 2 == 1 {
                order.reverse();
            }
            for (flavor, lab) in order {
                let ours = *flavor == Flavor::Ours;
                match measure(lab) {
                    Ok(figures) => {
                        for figure in &figures {
                            eprintln!("   {flavor:?} {}: {:.1}", figure.what, figure.value);
                            table.add(ours, figure);
                        }
                    }
                    Err(error) => {
                        let text = format!("{error:#}");
                        let first = text.lines().next().unwrap_or_default();
                        eprintln!("   {flavor:?} FAILED: {first}");
                        table.trouble(format!("{name}, {flavor:?}: not measured: {first}"));
                    }
                }
            }
        }
        standing = (!large).then_some(labs);
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

/// Operations and the time that they took.
#[derive(Clone, Copy)]
struct Done {
    operations: u64,
    span: Duration,
}

/// Runs `work`, and gives its rate and what the daemons spent on each operation; once more under
/// strace, for the system calls.
fn rate(
    lab: &Lab,
    what: &str,
    goal: &'static str,
    work: impl Fn(&Lab) -> Result<Done>,
) -> Result<Vec<Figure>> {
    let look = || {
        lab.nodes()
            .iter()
            .map(Node::work)
            .collect::<Result<Vec<_>>>()
    };
    let before = look()?;
    let done = work(lab)?;
    let after = look()?;
    ensure!(done.operations > 0, "{what}: nothing was done");
    let operations = done.operations as f64;
    let cpu: f64 = before
        .iter()
        .zip(&after)
        .map(|(b, a)| a.cpu.saturating_sub(b.cpu).as_secs_f64() * 1e6)
        .sum();
    let switches: u64 = before
        .iter()
        .zip(&after)
        .map(|(b, a)| a.switches.saturating_sub(b.switches))
        .sum();
    let mut figures = vec![
        Figure::new(
            what,
            Unit::PerSecond,
            operations / done.span.as_secs_f64(),
            goal,
        ),
        Figure::new(
            format!("{what}: CPU of all daemons per operation"),
            Unit::Us,
            cpu / operations,
            "0.5 ×",
        ),
        Figure::new(
            format!("{what}: context switches per operation"),
            Unit::Count,
            switches as f64 / operations,
            "",
        ),
    ];
    let (calls, done) = traced(lab, &work)?;
    if done.operations > 0 {
        figures.push(Figure::new(
            format!("{what}: system calls per operation"),
            Unit::Count,
            calls as f64 / done.operations as f64,
            "",
        ));
    }
    Ok(figures)
}

/// Runs `work` while strace counts the daemons' system calls.
fn traced(lab: &Lab, work: &impl Fn(&Lab) -> Result<Done>) -> Result<(u64, Done)> {
    let path = lab.dir().join("strace.txt");
    let mut command = Command::new("strace");
    command.args(["-f", "-c", "-o"]).arg(&path);
    for node in lab.nodes() {
        for pid in node.daemon_processes() {
            command.arg("-p").arg(pid.to_string());
        }
    }
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let mut strace = command
        .spawn()
        .context("starting strace (is it installed?)")?;
    // It says when it is attached only on a terminal; the loop is long against the attaching.
    thread::sleep(Duration::from_millis(300));
    let done = work(lab);
    let pid = nix::unistd::Pid::from_raw(strace.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
    strace.wait()?;
    let text = std::fs::read_to_string(&path)?;
    let total = text
        .lines()
        .find(|line| line.trim_end().ends_with(" total"))
        .context("strace printed no total")?;
    // % time, seconds, usecs/call, calls, errors, total.
    let words: Vec<_> = total.split_whitespace().collect();
    let calls = words.get(3).context("a total without calls")?.parse()?;
    Ok((calls, done?))
}

/// One client on each of `nodes`; `each` runs until its time is over and counts.
fn together(
    lab: &Lab,
    nodes: u32,
    each: impl Fn(u32, &mut Session, &Barrier, &AtomicBool, &AtomicU64) -> Result<()> + Sync,
) -> Result<Done> {
    let barrier = Barrier::new(nodes as usize + 1);
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..nodes)
            .map(|number| {
                let (barrier, stop, count, each) = (&barrier, &stop, &count, &each);
                scope.spawn(move || {
                    let session = Session::connect(lab.node(number));
                    let mut session = match session {
                        Ok(session) => session,
                        Err(error) => {
                            barrier.wait();
                            return Err(error);
                        }
                    };
                    session.wait_in_kernel();
                    each(number, &mut session, barrier, stop, count)
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        thread::sleep(SPAN);
        let operations = count.load(Ordering::Relaxed);
        let span = start.elapsed();
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            match client.join() {
                Ok(result) => result?,
                Err(_) => bail!("a client panicked"),
            }
        }
        Ok(Done { operations, span })
    })
}

/// Opens what is needed, meets the others, goes on; an error meets them too.
fn meet<T>(barrier: &Barrier, opened: Result<T>) -> Result<T> {
    barrier.wait();
    opened
}

fn ring(
    lab: &Lab,
    tokens: impl Fn(u32) -> u32 + Sync,
    work: impl Fn(&mut Session, &mut Database) -> Result<()> + Sync,
) -> Result<Done> {
    together(lab, 3, |number, session, barrier, stop, count| {
        let opened = session
            .client
            .register(RING)
            .and_then(|()| session.attach("ring.tdb", Kind::Volatile));
        let mut db = meet(barrier, opened)?;
        let next = (number + 1) % 3;
        for _ in 0..tokens(number) {
            session.client.message(next, RING, b"12345678")?;
        }
        while !stop.load(Ordering::Relaxed) {
            let Some(mail) = session.client.next_mail(Duration::from_millis(50))? else {
                continue;
            };
            if mail.srvid == RING {
                work(session, &mut db)?;
                count.fetch_add(1, Ordering::Relaxed);
                session.client.message(next, RING, &mail.data)?;
            }
        }
        Ok(())
    })
}

fn record_ring(lab: &Lab) -> Result<Vec<Figure>> {
    rate(lab, "record going round", "2 ×", |lab| {
        ring(
            lab,
            |number| u32::from(number == 0),
            |session, db| {
                session
                    .change(db, b"the record", |_| b"12345678".to_vec())
                    .map(drop)
            },
        )
    })
}

fn message_ring(lab: &Lab) -> Result<Vec<Figure>> {
    rate(lab, "message going round, six under way", "2 ×", |lab| {
        ring(lab, |_| 2, |_, _| Ok(()))
    })
}

fn tunnel(lab: &Lab) -> Result<Vec<Figure>> {
    use ctdb_wire::client::control::Request;
    use ctdb_wire::client::node;
    rate(lab, "tunnel request and reply", "2 ×", |lab| {
        together(lab, 3, |number, session, barrier, stop, count| {
            let client = &mut session.client;
            let answer = client.control(node::CURRENT, TUNNEL, &Request::TunnelRegister);
            let answer = meet(barrier, answer)?;
            ensure!(answer.status == 0, "{answer:?}");
            let next = (number + 1) % 3;
            // CTDB does not say who asked, so the question does.
            let question = [0, number as u8];
            client.tunnel(next, 1, TUNNEL, TunnelFlags::REQUEST, &question)?;
            while !stop.load(Ordering::Relaxed) {
                let Some(parcel) = client.next_parcel(Duration::from_millis(50))? else {
                    continue;
                };
                if let [0, from] = parcel.data[..] {
                    let reply = [1, number as u8];
                    client.tunnel(from.into(), 1, TUNNEL, TunnelFlags::REPLY, &reply)?;
                } else {
                    count.fetch_add(1, Ordering::Relaxed);
                    client.tunnel(next, 1, TUNNEL, TunnelFlags::REQUEST, &question)?;
                }
            }
            Ok(())
        })
    })
}

/// A key whose location master is the wished one of three.
pub fn key_of(lmaster: u32) -> Vec<u8> {
    (0..1000)
        .map(|number: u32| format!("key {number}").into_bytes())
        .find(|key| ctdb_db::hash::jenkins(key) % 3 == lmaster)
        .unwrap_or_default()
}

/// The value below which `percent` of the samples are.
pub fn percentile(samples: &mut [f64], percent: usize) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[(samples.len() * percent / 100).min(samples.len() - 1)]
}

fn migration(lab: &Lab) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for (lmaster, which) in [(1, "one of the two"), (2, "a third")] {
        let key = key_of(lmaster);
        let mut clients = (0..2)
            .map(|number| {
                let mut session = Session::connect(lab.node(number))?;
                session.wait_in_kernel();
                let db = session.attach("migration.tdb", Kind::Volatile)?;
                Ok((session, db))
            })
            .collect::<Result<Vec<_>>>()?;
        let mut samples = Vec::new();
        let before: u64 = switches(lab)?;
        for turn in 0..MIGRATIONS {
            let (session, db) = &mut clients[turn % 2];
            let start = Instant::now();
            let record = session.lock(db, &key)?;
            samples.push(start.elapsed().as_secs_f64() * 1e6);
            ensure!(
                turn < 2 || record.calls > 0,
                "a record that was here already"
            );
            record.unlock()?;
        }
        let each = (switches(lab)? - before) as f64 / MIGRATIONS as f64;
        let what = format!("migration, lmaster {which}");
        for (percent, goal) in [(50, "0.5 ×"), (99, "0.5 ×")] {
            let value = percentile(&mut samples, percent);
            figures.push(Figure::new(
                format!("{what}: p{percent}"),
                Unit::Us,
                value,
                goal,
            ));
        }
        let goal = if lmaster == 1 { "≤ 3" } else { "≤ 4" };
        let name = format!("{what}: context switches of the daemons");
        figures.push(Figure::new(name, Unit::Count, each, goal));
        let (calls, done) = traced(lab, &|_: &Lab| {
            let mut clients = (0..2)
                .map(|number| {
                    let mut session = Session::connect(lab.node(number))?;
                    let db = session.attach("migration.tdb", Kind::Volatile)?;
                    Ok((session, db))
                })
                .collect::<Result<Vec<_>>>()?;
            let start = Instant::now();
            for turn in 0..MIGRATIONS {
                let (session, db) = &mut clients[turn % 2];
                session.lock(db, &key)?.unlock()?;
            }
            Ok(Done {
                operations: MIGRATIONS as u64,
                span: start.elapsed(),
            })
        })?;
        let each = calls as f64 / done.operations as f64;
        let name = format!("{what}: system calls of the daemons");
        figures.push(Figure::new(name, Unit::Count, each, "≤ 12"));
    }
    Ok(figures)
}

fn switches(lab: &Lab) -> Result<u64> {
    let works = lab.nodes().iter().map(Node::work);
    Ok(works
        .collect::<Result<Vec<_>>>()?
        .iter()
        .map(|w| w.switches)
        .sum())
}

fn process(lab: &Lab) -> Result<Vec<Figure>> {
    let mut asker = Session::connect(lab.node(0))?;
    let other = Session::connect(lab.node(1))?;
    let pid = std::process::id().cast_signed();
    let mut samples = Vec::new();
    for _ in 0..2000 {
        let start = Instant::now();
        ensure!(asker.lives(1, pid, other.unique())?, "a false \"dead\"");
        samples.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok([(50, "0.5 ×"), (99, "")]
        .map(|(percent, goal)| {
            let what = format!("CHECK_PID_SRVID for a process of another node: p{percent}");
            Figure::new(what, Unit::Us, percentile(&mut samples, percent), goal)
        })
        .to_vec())
}

fn contended(lab: &Lab) -> Result<Vec<Figure>> {
    let mut figures = Vec::new();
    for nodes in [2, 3] {
        let (last, moves) = (AtomicU64::new(9), AtomicU64::new(0));
        let done = together(lab, nodes, |number, session, barrier, stop, count| {
            let mut db = meet(barrier, session.attach("contended.tdb", Kind::Volatile))?;
            while !stop.load(Ordering::Relaxed) {
                let mut record = session.lock(&mut db, b"hot")?;
                let until = Instant::now() + BUSY;
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
                record.store(&number.to_le_bytes())?;
                if last.swap(number.into(), Ordering::Relaxed) != u64::from(number) {
                    moves.fetch_add(1, Ordering::Relaxed);
                }
                count.fetch_add(1, Ordering::Relaxed);
                record.unlock()?;
            }
            Ok(())
        })?;
        let seconds = done.span.as_secs_f64();
        let what = format!("contended record, busy 50 µs, {nodes} nodes");
        let moved = moves.load(Ordering::Relaxed) as f64 / seconds;
        figures.push(Figure::new(
            format!("{what}: hand-overs"),
            Unit::PerSecond,
            moved,
            "5 ×",
        ));
        let all = done.operations as f64 / seconds;
        figures.push(Figure::new(
            format!("{what}: locks"),
            Unit::PerSecond,
            all,
            "",
        ));
    }
    Ok(figures)
}

fn g_lock(lab: &Lab) -> Result<Vec<Figure>> {
    rate(lab, "g_lock on one key from all nodes", "2 ×", |lab| {
        together(lab, 3, |_, session, barrier, stop, count| {
            let mut locks = meet(barrier, session.attach("g_lock.tdb", Kind::Volatile))?;
            while !stop.load(Ordering::Relaxed) {
                session.g_lock(&mut locks, b"one key\0", Duration::from_secs(20))?;
                count.fetch_add(1, Ordering::Relaxed);
                session.g_unlock(&mut locks, b"one key\0")?;
            }
            Ok(())
        })
    })
}

fn transactions(lab: &Lab, kind: Kind) -> Result<Vec<Figure>> {
    let what = match kind {
        Kind::Persistent => "persistent transactions",
        _ => "replicated transactions",
    };
    let name = format!("{kind:?}.tdb");
    rate(lab, what, "8 ×", |lab| {
        together(lab, 3, |number, session, barrier, stop, count| {
            let opened = session
                .attach("g_lock.tdb", Kind::Volatile)
                .and_then(|locks| Ok((locks, session.attach(&name, kind)?)));
            let (mut locks, mut db) = meet(barrier, opened)?;
            let mut turn = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                turn += 1;
                let value = (u64::from(number) << 32 | turn).to_le_bytes();
                let patience = Duration::from_secs(20);
                session.transaction(&mut db, &mut locks, patience, |changes| {
                    changes.put(b"one key", value.to_vec());
                    Ok(())
                })?;
                count.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    })
}

fn local(lab: &Lab) -> Result<Vec<Figure>> {
    let done = together(lab, 1, |_, session, barrier, stop, count| {
        let mut db = meet(barrier, session.attach("local.tdb", Kind::Volatile))?;
        while !stop.load(Ordering::Relaxed) {
            session.change(&mut db, b"mine", |_| b"12345678".to_vec())?;
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })?;
    let rate = done.operations as f64 / done.span.as_secs_f64();
    let what = "record already local: lock, change, unlock";
    Ok(vec![Figure::new(what, Unit::PerSecond, rate, "1 ×")])
}
