//! `cargo xtask bench samba`: Debian's Samba with `clustering = yes` on ours and on Debian's CTDB in turn
//! in one run: failovers as its clients see them, and work on files through several nodes.

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use ctdb_tests::lab::scenario::Fail;
use ctdb_tests::lab::smb::{Lock, Share, Smb, SmbError};
use ctdb_tests::lab::{Flavor, Lab, Service};

use crate::versus::{Choice, Figure, Unit, Versus};

/// How long one rate is measured.
const SPAN: Duration = Duration::from_secs(2);
/// Until something that should work does.
const LONG: Duration = Duration::from_secs(90);
/// How long an idle session is watched after a hand-over.
const IDLE: Duration = Duration::from_secs(10);
/// An impatient client's wait for a connection.
const HASTE: Duration = Duration::from_millis(20);
/// And for each step of its login.
const STEP: Duration = Duration::from_millis(400);
/// Pause of a client between two opens.
const PAUSE: Duration = Duration::from_millis(2);
/// Files that are created through two nodes at once.
const FILES: usize = 10_000;

/// Measures Samba on ours and on CTDB in turn.
#[derive(Parser)]
#[command(bin_name = "cargo xtask bench samba")]
pub struct Options {
    #[command(flatten)]
    choice: Choice,
}

/// Measures once; each has a cluster of its own.
type Measure = fn(Flavor) -> Result<Vec<Figure>>;

const ALL: [(&str, Measure); 7] = [
    ("start", start),
    ("move", |flavor| failover(flavor, &MOVE)),
    ("drain", |flavor| failover(flavor, &DRAIN)),
    ("stop", |flavor| failover(flavor, &STOP)),
    ("kill", |flavor| failover(flavor, &KILL)),
    ("power", |flavor| failover(flavor, &POWER)),
    ("files", files),
];

/// A failover, and its goals.
struct Case {
    fail: Fail,
    what: &'static str,
    session: &'static str,
    told: &'static str,
    stall: &'static str,
}

const MOVE: Case = case(Fail::Move, "move", ["≤ 150 ms", "≤ 100 ms", ""]);
const DRAIN: Case = case(Fail::Drain, "drain", ["≤ 200 ms", "≤ 100 ms", ""]);
const STOP: Case = case(Fail::Stop, "graceful stop", ["≤ 200 ms", "≤ 100 ms", ""]);
const KILL: Case = case(Fail::Daemon, "kill -9 of the daemon", ["≤ 500 ms", "", ""]);
const POWER: Case = case(Fail::Power, "power loss", ["≤ 2.5 s", "", "≤ 2.5 s"]);

const fn case(fail: Fail, what: &'static str, goals: [&'static str; 3]) -> Case {
    let [session, told, stall] = goals;
    Case {
        fail,
        what,
        session,
        told,
        stall,
    }
}

/// Measures all that was chosen, both sides in turn.
pub fn run(options: &Options) -> Result<ExitCode> {
    let options = &options.choice;
    let Some(chosen) = options.of(&ALL)? else {
        return Ok(ExitCode::SUCCESS);
    };
    let mut sides = options.sides();
    let mut table = Versus::default();
    for (name, measure) in chosen {
        eprintln!("== {name}");
        for _ in 0..options.runs {
            for (flavor, side) in &sides {
                match measure(*flavor) {
                    Ok(figures) => {
                        for figure in &figures {
                            eprintln!("   {side} {}: {:.1}", figure.what, figure.value);
                            table.add(*flavor == Flavor::Ours, figure);
                        }
                    }
                    Err(error) => {
                        let text = format!("{error:#}");
                        let first = text.lines().next().unwrap_or_default();
                        eprintln!("   {side} FAILED: {text}");
                        table.trouble(format!("{name}, {side}: not measured: {first}"));
                    }
                }
            }
            // So that neither is always the second.
            sides.reverse();
        }
    }
    println!("{table}");
    Ok(ExitCode::SUCCESS)
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// From the start of three daemons until Samba serves on all addresses; Samba is started on each node
/// when its daemon lets services start, as by the event script.
fn start(flavor: Flavor) -> Result<Vec<Figure>> {
    let lab = Lab::builder().flavor(flavor).ipv6(false).build()?;
    let begin = Instant::now();
    lab.start_daemons()?;
    thread::scope(|scope| {
        let starting: Vec<_> = lab
            .nodes()
            .iter()
            .map(|node| {
                scope.spawn(|| -> Result<()> {
                    let words = ["runstate", "startup", "running"];
                    while !node.ctdb(&words).is_ok_and(|answer| answer.ok()) {
                        ensure!(begin.elapsed() < LONG, "node {} does not start", node.pnn());
                        thread::sleep(Duration::from_millis(50));
                    }
                    node.start_service(Service::ClusteredSmb)
                })
            })
            .collect();
        starting.into_iter().try_for_each(join)
    })?;
    lab.client().enter(|| {
        for address in lab.public_addresses() {
            while Smb::hasty(address, "open", HASTE, LONG).is_err() {
                ensure!(begin.elapsed() < LONG, "{address} is not served");
                thread::sleep(HASTE);
            }
        }
        Ok(())
    })?;
    let took = ms(begin.elapsed());
    Ok(vec![Figure::new(
        "start of three nodes until Samba serves on all addresses",
        Unit::Ms,
        took,
        "0.33 ×",
    )])
}

fn join<T>(handle: thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    match handle.join() {
        Ok(done) => done,
        Err(_) => bail!("a client panicked"),
    }
}

/// Tells the others to stop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Tries until it has a new session with a share that only other nodes have, and gives the time.
fn first_session(lab: &Lab, address: IpAddr, share: &str, stop: &AtomicBool) -> Result<Instant> {
    lab.client().enter(|| {
        let begin = Instant::now();
        loop {
            if Smb::hasty(address, share, HASTE, STEP).is_ok() || stop.load(Ordering::Relaxed) {
                return Ok(Instant::now());
            }
            ensure!(begin.elapsed() < LONG, "no new session with {address}");
        }
    })
}

/// Opens and closes a file of its own through one node, again and again; the longest of it.
fn longest_open(lab: &Lab, address: IpAddr, stop: &AtomicBool) -> Result<Duration> {
    let mut session = Smb::connect(lab.client(), address, "open", LONG)?;
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let file = session.open(&format!("of-{address}"), Share::All)?;
        session.close(file)?;
        longest = longest.max(begin.elapsed());
        thread::sleep(PAUSE);
    }
    Ok(longest)
}

/// One failover of a node that does not lead.
fn failover(flavor: Flavor, case: &Case) -> Result<Vec<Figure>> {
    let lab = Lab::with_samba(flavor, LONG)?;
    let of = lab.address_of_each(LONG)?;
    let leader = lab
        .node(0)
        .leader_seen()?
        .context("nobody leads the cluster")?;
    let (victim, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let address = of[&victim];
    let others = [leader, third].map(|pnn| lab.node(pnn).own_address());
    // Two seconds of age.
    thread::sleep(Duration::from_secs(2));
    let idle = Smb::connect(lab.client(), address, "open", LONG)?;
    let share = format!("not{victim}");
    let (stop, found) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let stopping = Stop(&stop);
        let finding = Stop(&found);
        let stalls = others.map(|other| {
            let (lab, stop) = (&lab, &stop);
            scope.spawn(move || longest_open(lab, other, stop))
        });
        thread::sleep(Duration::from_millis(500));
        let watch = if case.told.is_empty() {
            Duration::ZERO
        } else {
            IDLE
        };
        let told = scope.spawn(move || idle.told_within(watch));
        let fault = Instant::now();
        let clients = [(); 2].map(|()| {
            let (lab, share, found) = (&lab, share.as_str(), &found);
            let client = scope.spawn(move || {
                let session = first_session(lab, address, share, found);
                found.store(true, Ordering::Relaxed);
                session
            });
            thread::sleep(HASTE / 2);
            client
        });
        case.fail.happen(&lab, victim, Some(address), third)?;
        let mut figures = Vec::new();
        let mut first = None;
        for client in clients {
            let session = join(client)?;
            first = Some(first.map_or(session, |first: Instant| first.min(session)));
        }
        drop(finding);
        let session = first.context("no client")?.saturating_duration_since(fault);
        let what = case.what;
        figures.push(Figure::new(
            format!("{what}: new SMB session works"),
            Unit::Ms,
            ms(session),
            case.session,
        ));
        // A client that is never told is no figure.
        if !case.told.is_empty() {
            let told = told.join().ok().flatten();
            figures.extend(told.map(|told| {
                Figure::new(
                    format!("{what}: idle SMB session told"),
                    Unit::Ms,
                    ms(told.saturating_duration_since(fault)),
                    case.told,
                )
            }));
        }
        // What follows the failover counts as well.
        thread::sleep(Duration::from_secs(2));
        drop(stopping);
        let mut longest = Duration::ZERO;
        for stall in stalls {
            longest = longest.max(join(stall)?);
        }
        figures.push(Figure::new(
            format!("{what}: worst open and close of other nodes' clients"),
            Unit::Ms,
            ms(longest),
            case.stall,
        ));
        Ok(figures)
    })
}

/// Rates of work on files, on a cluster to which nothing happens.
fn files(flavor: Flavor) -> Result<Vec<Figure>> {
    let lab = Lab::with_samba(flavor, LONG)?;
    let mut figures = Vec::new();
    for (clients, nodes, what, goal) in [
        (1, 1, "one client", ""),
        (2, 1, "two clients of one node", ""),
        (2, 2, "clients of two nodes", "1.1 ×"),
        (3, 3, "clients of three nodes", "1.1 ×"),
    ] {
        let name = format!("open and close of one file, {what}");
        let rate = together(&lab, clients, nodes, |_, session, stop| {
            turns(session, stop)
        })?;
        figures.push(Figure::new(name, Unit::PerSecond, rate, goal));
    }
    for (clients, nodes, what, goal) in [
        (1, 1, "one client", ""),
        (2, 1, "two clients of one node", ""),
        (2, 2, "clients of two nodes", "6 ×"),
        (3, 3, "clients of three nodes", "6 ×"),
    ] {
        let name = format!("byte-range locks handed round, {what}");
        let rate = together(&lab, clients, nodes, |_, session, stop| {
            ring(session, clients as u64 + 1, stop)
        })?;
        figures.push(Figure::new(name, Unit::PerSecond, rate, goal));
    }
    figures.push(Figure::new(
        "session set-ups, one client",
        Unit::PerSecond,
        logins(&lab)?,
        "1 ×",
    ));
    let begin = Instant::now();
    together(&lab, 2, 2, |number, session, _| {
        create(session, number, FILES / 2)
    })?;
    figures.push(Figure::new(
        format!("{FILES} files created through two nodes"),
        Unit::Ms,
        ms(begin.elapsed()),
        "1 ×",
    ));
    Ok(figures)
}

/// Clients at work at once, spread over the first nodes; all that they did, in a second.
fn together(
    lab: &Lab,
    clients: usize,
    nodes: usize,
    work: impl Fn(usize, &mut Smb, &AtomicBool) -> Result<u64, SmbError> + Sync,
) -> Result<f64> {
    let stop = AtomicBool::new(false);
    let ready = Barrier::new(clients);
    let mut sessions = Vec::new();
    for client in 0..clients {
        let node = lab.node((client % nodes) as u32);
        sessions.push(Smb::connect(
            lab.client(),
            node.own_address(),
            "open",
            LONG,
        )?);
    }
    thread::scope(|scope| {
        let running: Vec<_> = sessions
            .iter_mut()
            .enumerate()
            .map(|(number, session)| {
                let (ready, stop, work) = (&ready, &stop, &work);
                scope.spawn(move || -> Result<f64> {
                    ready.wait();
                    let begin = Instant::now();
                    let done = work(number, session, stop);
                    let span = begin.elapsed();
                    // The others would wait for what it does no more.
                    stop.store(true, Ordering::Relaxed);
                    Ok(done? as f64 / span.as_secs_f64())
                })
            })
            .collect();
        running.into_iter().try_fold(0.0, |sum, one| {
            let rate = join(one)?;
            ensure!(rate > 0.0, "a client did nothing");
            Ok(sum + rate)
        })
    })
}

/// Whether to go on.
fn goes_on(begin: Instant, stop: &AtomicBool) -> bool {
    begin.elapsed() < SPAN && !stop.load(Ordering::Relaxed)
}

fn turns(session: &mut Smb, stop: &AtomicBool) -> Result<u64, SmbError> {
    let begin = Instant::now();
    let mut done = 0;
    while goes_on(begin, stop) {
        let file = session.open("turns", Share::All)?;
        session.close(file)?;
        done += 1;
    }
    Ok(done)
}

/// Takes the next byte's lock, then gives back the one before: as `ping_pong` does.
fn ring(session: &mut Smb, bytes: u64, stop: &AtomicBool) -> Result<u64, SmbError> {
    let begin = Instant::now();
    let file = session.open("ring", Share::All)?;
    session.lock(file, 0, 1, Lock::Wait)?;
    let (mut done, mut at) = (0, 0);
    while goes_on(begin, stop) {
        let next = (at + 1) % bytes;
        session.lock(file, next, 1, Lock::Wait)?;
        session.lock(file, at, 1, Lock::Unlock)?;
        (at, done) = (next, done + 1);
    }
    // Its end lets the others go on.
    session.close(file)?;
    Ok(done)
}

fn create(session: &mut Smb, client: usize, count: usize) -> Result<u64, SmbError> {
    for number in 0..count {
        let file = session.open(&format!("many-{client}-{number}"), Share::All)?;
        session.close(file)?;
    }
    Ok(count as u64)
}

/// Sessions that are set up one after another, in a second.
fn logins(lab: &Lab) -> Result<f64> {
    lab.client().enter(|| {
        let begin = Instant::now();
        let mut done = 0;
        while begin.elapsed() < SPAN {
            drop(Smb::here(lab.node(0).own_address(), "open", LONG)?);
            done += 1;
        }
        Ok(f64::from(done) / begin.elapsed().as_secs_f64())
    })
}
