//! What the kernel does about connections: tracking, killing, telling. Without a cluster, on a
//! server and a client of its own.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ctdb_conntrack::tickle::Tickler;
use ctdb_conntrack::{Change, Killer, Method, Sockets, Watch};
use ctdb_ebpf::track::Tracker;
use ctdb_tests::lab::stage::{CLIENT, PRIVATE, PUBLIC, Stage};
use nix::sys::resource::{UsageWho, getrusage};
use socket2::SockRef;

use crate::Runs;
use crate::table::{Row, Unit};

/// Connections of one load.
const LOAD: u32 = 2_000;
/// Pairs of loads for one sample: a busy machine changes its mind from second to second.
const PAIRS: usize = 20;
const PORT: u16 = 3900;
/// How long a reader waits after it was woken.
const READ_EVERY: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(30);

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

fn public() -> Result<BTreeSet<IpAddr>> {
    PUBLIC.iter().map(|text| Ok(text.parse()?)).collect()
}

/// CPU that was used so far, user and system, in microseconds.
fn cpu_us(who: UsageWho) -> Result<f64> {
    let usage = getrusage(who)?;
    let us = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 * 1e6 + time.tv_usec() as f64;
    Ok(us(usage.user_time()) + us(usage.system_time()))
}

/// Connections one after the other, each reset at once; CPU of both ends for each, in microseconds.
fn load(stage: &Stage, address: &str) -> Result<f64> {
    let listener = stage.listen(PORT)?;
    let to = SocketAddr::new(address.parse()?, PORT);
    let before = cpu_us(UsageWho::RUSAGE_SELF)?;
    stage.client.enter(|| {
        for _ in 0..LOAD {
            let client = TcpStream::connect_timeout(&to, PATIENCE)?;
            let (server, _) = listener.accept()?;
            SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
            drop(client);
            drop(server);
        }
        Ok(())
    })?;
    Ok((cpu_us(UsageWho::RUSAGE_SELF)? - before) / f64::from(LOAD))
}

/// A watch and a thread that reads it, while `work` is done; and what that thread used of a CPU,
/// in microseconds, and how many changes it read.
fn watched<T>(stage: &Stage, work: impl FnOnce() -> Result<T>) -> Result<(T, f64, usize)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (started, ready) = std::sync::mpsc::channel();
        let reader = scope.spawn(|| -> Result<(f64, usize)> {
            let started = started;
            stage.server.join()?;
            let mut watch = Watch::open(&stage.bpf_dir(), 131_072)?;
            watch.set_addresses(&public()?)?;
            watch.poll(|_| {})?;
            started.send(())?;
            let before = cpu_us(UsageWho::RUSAGE_THREAD)?;
            let mut count = 0;
            loop {
                let last = stop.load(Ordering::Relaxed);
                count += watch.poll(|change| {
                    std::hint::black_box(change);
                })?;
                if last {
                    break;
                }
                thread::sleep(READ_EVERY);
            }
            let used = cpu_us(UsageWho::RUSAGE_THREAD)? - before;
            let stats = watch.stats()?;
            ensure!(stats.overruns == 0, "changes were lost: {stats:?}");
            watch.close_clean()?;
            Ok((used, count))
        });
        let result = if ready.recv().is_ok() {
            work()
        } else {
            Err(anyhow::anyhow!("the watch did not start"))
        };
        stop.store(true, Ordering::Relaxed);
        let (used, count) = reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader panicked"))??;
        Ok((result?, used, count))
    })
}

/// CPU that tracking adds to a connection, to a public address and to another: with the tracker
/// and without, in turn.
pub fn cost(runs: Runs) -> Result<Vec<Row>> {
    if runs.ours == 0 {
        return Ok(Vec::new());
    }
    let stage = Stage::new()?;
    let mut rows = Vec::new();
    for (what, address, goal) in [
        ("a public address", PUBLIC[0], Some(10.0)),
        ("another address (pairs; noise included)", PRIVATE, None),
    ] {
        let mut samples = Vec::new();
        for _ in 0..runs.ours {
            let mut added = Vec::new();
            for pair in 0..PAIRS {
                let with = || watched(&stage, || load(&stage, address));
                let without = || load(&stage, address);
                // The order changes, so that neither is always the second.
                let (with, without) = if pair % 2 == 0 {
                    let with = with()?;
                    (with.0, without()?)
                } else {
                    let without = without()?;
                    (with()?.0, without)
                };
                added.push(with - without);
            }
            added.sort_by(f64::total_cmp);
            samples.push(f64::midpoint(added[PAIRS / 2 - 1], added[PAIRS / 2]));
            eprint!(".");
        }
        rows.push(Row {
            what: format!("CPU that tracking adds to a connection to {what}"),
            unit: Unit::Us,
            ours: samples,
            goal,
            reference: Vec::new(),
        });
    }
    eprintln!();
    Ok(rows)
}

/// Many short connections: how many a second, that none is lost, and what reading them costs.
pub fn storm(runs: Runs) -> Result<Vec<Row>> {
    /// Clients at the same time.
    const CLIENTS: usize = 2;
    /// Connections of each.
    const EACH: usize = 30_000;
    /// What the goal is about.
    const A_SECOND: f64 = 20_000.0;
    if runs.ours == 0 {
        return Ok(Vec::new());
    }
    let stage = Stage::new()?;
    let (mut of_a_core, mut each) = (Vec::new(), Vec::new());
    for _ in 0..runs.ours {
        let listener = stage.listen(PORT)?;
        listener.set_nonblocking(true)?;
        let done = AtomicBool::new(false);
        let (took, used, changes) = watched(&stage, || {
            thread::scope(|scope| {
                let server = scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        while listener.accept().is_ok() {}
                        thread::sleep(Duration::from_micros(200));
                    }
                });
                let start = Instant::now();
                let clients: Vec<_> = (0..CLIENTS)
                    .map(|number| {
                        let to = PUBLIC[number % 2];
                        scope.spawn(|| connect_often(&stage, to, EACH))
                    })
                    .collect();
                let results: Result<Vec<()>> = clients
                    .into_iter()
                    .map(|client| {
                        client
                            .join()
                            .map_err(|_| anyhow::anyhow!("a client panicked"))?
                    })
                    .collect();
                let took = start.elapsed();
                // What is reset is told a moment later.
                thread::sleep(Duration::from_millis(300));
                done.store(true, Ordering::Relaxed);
                let _ = server.join();
                results.map(|_| took)
            })
        })?;
        let connections = CLIENTS * EACH;
        ensure!(
            changes == 2 * connections,
            "{changes} changes of {connections} connections"
        );
        of_a_core.push(used / connections as f64 * A_SECOND / 1e6 * 100.0);
        each.push(connections as f64 / took.as_secs_f64());
        eprint!(".");
    }
    eprintln!();
    each.sort_by(f64::total_cmp);
    let rate = each.get(each.len() / 2).context("no run")?;
    Ok(vec![Row {
        what: format!(
            "reading the changes of 20,000 connections/s, of one core (measured at {rate:.0}/s; \
             none lost)"
        ),
        unit: Unit::Percent,
        ours: of_a_core,
        goal: Some(20.0),
        reference: Vec::new(),
    }])
}

fn connect_often(stage: &Stage, address: &str, count: usize) -> Result<()> {
    let to = SocketAddr::new(address.parse()?, PORT);
    stage.client.enter(|| {
        for _ in 0..count {
            let client = TcpStream::connect_timeout(&to, PATIENCE)?;
            SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
        }
        Ok(())
    })
}

/// A tracker that starts with so many connections there: read in.
pub fn seeding(runs: Runs) -> Result<Vec<Row>> {
    const THERE: usize = 10_000;
    if runs.ours == 0 {
        return Ok(Vec::new());
    }
    let stage = Stage::new()?;
    let _crowd = stage.crowd(THERE)?;
    let mut samples = Vec::new();
    for _ in 0..runs.ours {
        let took = stage.server.enter(|| {
            let mut tracker = Tracker::open(&stage.bpf_dir(), 131_072)?;
            let addresses: Vec<IpAddr> = public()?.into_iter().collect();
            let start = Instant::now();
            tracker.set_addresses(&addresses)?;
            let mut found = 0;
            tracker.drain(|change| {
                if let Change::Whole { connections, .. } = change {
                    found = connections.len();
                }
            })?;
            let took = start.elapsed();
            ensure!(found == THERE, "{found} connections of {THERE}");
            tracker.close_clean()?;
            Ok(took)
        })?;
        samples.push(ms(took));
        eprint!(".");
    }
    eprintln!();
    Ok(vec![Row {
        what: "10,000 connections from before the daemon: read in".into(),
        unit: Unit::Ms,
        ours: samples,
        goal: None,
        reference: Vec::new(),
    }])
}

/// How server sockets are destroyed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Chosen,
    SockDiag,
    Ss,
}

/// Sockets of a silent address destroyed, by our ways and by `ss -K` in the same run, and the
/// clients told when the address speaks again.
pub fn kill(runs: Runs) -> Result<Vec<Row>> {
    let sizes = [
        (1_000, None, None),
        (10_000, Some(100.0), Some(500.0)),
        (50_000, Some(400.0), Some(2000.0)),
    ];
    let mut rows = Vec::new();
    for (count, goal, told_goal) in sizes {
        let (mut chosen, mut diag, mut ss) = (Vec::new(), Vec::new(), Vec::new());
        let (mut told, mut first) = (Vec::new(), Vec::new());
        for _ in 0..runs.ours {
            for way in [Way::Chosen, Way::SockDiag, Way::Ss] {
                let stage = Stage::new()?;
                let _crowd = stage.crowd(count)?;
                silence(&stage)?;
                let took = destroy(&stage, way, count)?;
                match way {
                    Way::Chosen => {
                        chosen.push(ms(took));
                        let (span, share) = tell(&stage, count)?;
                        told.push(ms(span));
                        first.push(share);
                    }
                    Way::SockDiag => diag.push(ms(took)),
                    Way::Ss => ss.push(Some(ms(took))),
                }
                eprint!(".");
            }
        }
        let row = |what: &str, unit, ours: &[f64], goal, reference: &[Option<f64>]| Row {
            what: format!("{count} connections on a released address: {what}"),
            unit,
            ours: ours.to_vec(),
            goal,
            reference: reference.to_vec(),
        };
        rows.push(row(
            "server sockets gone (the other column: `ss -K`)",
            Unit::Ms,
            &chosen,
            goal,
            &ss,
        ));
        rows.push(row(
            "the same by sock_diag (the other column: `ss -K`)",
            Unit::Ms,
            &diag,
            None,
            &ss,
        ));
        rows.push(row(
            "idle clients told, once it is served again",
            Unit::Ms,
            &told,
            told_goal,
            &[],
        ));
        rows.push(row(
            "idle clients not told by the first tickle",
            Unit::Percent,
            &first,
            goal.map(|_| 1.0),
            &[],
        ));
    }
    eprintln!();
    Ok(rows)
}

/// Nothing leaves from the public addresses, and nothing comes in, as under a lease not held.
fn silence(stage: &Stage) -> Result<()> {
    let [v4, v6] = PUBLIC;
    stage.server.nft(&format!(
        "table inet mute {{
            chain out {{
                type filter hook output priority -300;
                ip saddr {v4} drop
                ip6 saddr {v6} drop
            }}
            chain in {{
                type filter hook input priority -300;
                ip daddr {v4} drop
                ip6 daddr {v6} drop
            }}
        }}"
    ))
}

fn destroy(stage: &Stage, way: Way, count: usize) -> Result<Duration> {
    let addresses = public()?;
    let (took, left) = stage.server.enter(|| {
        let mut sockets = Sockets::open()?;
        let there = sockets.connections(&addresses)?.len();
        ensure!(there == count, "{there} connections of {count}");
        let took = if way == Way::Ss {
            let start = Instant::now();
            let mut command = std::process::Command::new("ss");
            command.args(["-K", "-H", "-t", "-n", "state", "connected", "exclude"]);
            let v6 = format!("[{}]", PUBLIC[1]);
            command.args(["time-wait", "src", PUBLIC[0], "or", "src", &v6]);
            let out = command.output().context("running ss")?;
            ensure!(out.status.success(), "ss -K: {out:?}");
            start.elapsed()
        } else {
            let mut killer = if way == Way::Chosen {
                Killer::open()?
            } else {
                Killer::with_sock_diag()?
            };
            if way == Way::Chosen && killer.method() != Method::Iterator {
                eprint!("(no bpf_sock_destroy)");
            }
            let start = Instant::now();
            let killed = killer.kill(&addresses)?;
            let took = start.elapsed();
            ensure!(!killed.left && killed.destroyed == count, "{killed:?}");
            took
        };
        Ok((took, sockets.connections(&addresses)?.len()))
    })?;
    ensure!(left == 0, "{left} sockets are left");
    Ok(took)
}

/// Tickles to all clients, repeated until each has heard; how long that took, and how many percent
/// had not heard before the first repeat.
fn tell(stage: &Stage, count: usize) -> Result<(Duration, f64)> {
    /// Linux answers once in 500 ms.
    const PAUSE: Duration = Duration::from_millis(600);
    let addresses: BTreeSet<IpAddr> = CLIENT
        .iter()
        .map(|text| text.parse())
        .collect::<Result<_, _>>()?;
    let mut clients = stage.client.enter(|| Ok(Sockets::open()?))?;
    let all = clients.connections(&addresses)?;
    ensure!(all.len() == count, "{} clients of {count}", all.len());
    let list: Vec<_> = all.iter().map(|at| (at.server, at.client)).collect();
    stage.server.nft("delete table inet mute")?;
    let mut tickler = stage.server.enter(|| Ok(Tickler::open()?))?;
    let start = Instant::now();
    let mut untold = None;
    loop {
        let round = Instant::now();
        let failed = tickler.send(&list).iter().filter(|r| r.is_err()).count();
        ensure!(failed == 0, "{failed} tickles were refused");
        let left = loop {
            let left = clients.connections(&addresses)?.len();
            if left == 0 || round.elapsed() >= PAUSE {
                break left;
            }
            thread::sleep(Duration::from_millis(2));
        };
        untold.get_or_insert(left);
        if left == 0 {
            break;
        }
        ensure!(start.elapsed() < PATIENCE, "{left} clients were never told");
    }
    let share = untold.unwrap_or_default() as f64 / count as f64 * 100.0;
    Ok((start.elapsed(), share))
}
