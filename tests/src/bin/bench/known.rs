//! Connections: how soon they are known everywhere, what they cost, and how soon everybody is
//! told. Goals of issue 3.

use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ctdb_tests::lab::cli::wait_until;
use ctdb_tests::lab::held::{Crowd, Held, Kind, Wanted};
use ctdb_tests::lab::{self, Lab, Node, Service, Stamp, plain};

use crate::Runs;
use crate::table::{Row, Unit};

const LONG: Duration = Duration::from_secs(60);
/// Connections of one sample of [`visible`].
const SAMPLES: usize = 100;

fn row(what: &str, unit: Unit, goal: Option<f64>, ours: Vec<f64>) -> Row {
    Row {
        what: what.to_owned(),
        unit,
        ours,
        goal,
        reference: Vec::new(),
    }
}

fn up() -> Result<Lab> {
    let lab = Lab::builder().build()?;
    lab.bring_up(&[Service::Plain], LONG)?;
    Ok(lab)
}

fn idle(server: SocketAddr) -> Wanted {
    Wanted {
        server,
        kind: Kind::Idle,
        again: false,
    }
}

/// Own and replicated connections of a node.
fn known(lab: &Lab, pnn: u32) -> Result<(u64, u64)> {
    let stats = lab.node(pnn).ctdb_json(&["conntrack", "stats"])?;
    let count = |name: &str| {
        stats[name]
            .as_u64()
            .with_context(|| format!("no {name}: {stats}"))
    };
    Ok((count("own")?, count("replicated")?))
}

/// From a connection's establishment to its place in the tables of all other nodes, asked for
/// again and again, so that the cost of asking (some 5 ms) is in it.
pub fn visible(runs: Runs) -> Result<Vec<Row>> {
    let (mut half, mut most) = (Vec::new(), Vec::new());
    for _ in 0..runs.ours {
        let lab = up()?;
        let address = lab.public_addresses()[0];
        let owner = lab.node(0).ip_owners()?[&address].context("an address without owner")?;
        let others: Vec<u32> = (0..3).filter(|pnn| *pnn != owner).collect();
        let server = SocketAddr::new(address, plain::PORT);
        let mut times = Vec::new();
        for _ in 0..SAMPLES {
            let held = Held::open(lab.client(), &[idle(server)], None)?;
            let start = Instant::now();
            let client = held.records()[0].client.to_string();
            for pnn in &others {
                // Without a pause, which would be longer than what is measured.
                while !lab
                    .node(*pnn)
                    .ctdb(&["conntrack", "list", &server.to_string()])
                    .is_ok_and(|answer| answer.stdout.contains(&client))
                {
                    ensure!(start.elapsed() < LONG, "node {pnn} does not know {client}");
                }
            }
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        half.push(times[SAMPLES / 2]);
        most.push(times[SAMPLES - 1 - SAMPLES / 100]);
        eprint!(".");
    }
    eprintln!();
    Ok(vec![
        row(
            "connection known on all nodes, half of them",
            Unit::Ms,
            Some(20.0),
            half,
        ),
        row(
            "connection known on all nodes, 99 of 100",
            Unit::Ms,
            Some(100.0),
            most,
        ),
    ])
}

/// Connections that one process of the bench holds, and one of the servers: no process may open
/// many more files everywhere.
const CHILD: usize = 12_500;

/// `count` connections over the addresses of one node, whose ports for one server are not enough
/// for 50,000: a list for each process that holds them, each with a server port of its own.
fn spread(addresses: &[IpAddr], count: usize) -> Vec<Vec<SocketAddr>> {
    let all: Vec<usize> = (0..count).collect();
    all.chunks(CHILD)
        .zip(plain::PORT..)
        .map(|(part, port)| {
            part.iter()
                .map(|at| (addresses[at % addresses.len()], port).into())
                .collect()
        })
        .collect()
}

/// Further plain services of a node, on the ports behind the usual one.
fn further_servers(node: &Node, count: usize) -> Result<Vec<Process>> {
    (plain::PORT + 1..)
        .take(count)
        .map(|port| {
            let mut command = Command::new(lab::helper_binary()?);
            command.args(["serve", "--node", &node.pnn().to_string()]);
            command.args(["--listen", &format!("[::]:{port}")]);
            Ok(Process(node.netns().spawn(&mut command)?))
        })
        .collect()
}

/// A child that ends with its owner.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Many {
    memory: f64,
    told_all: f64,
}

/// Many idle connections to one node, whose addresses are then drained.
fn many(count: usize) -> Result<Many> {
    let lab = Lab::builder().public_addresses(12).build()?;
    for node in lab.hosts() {
        node.netns().sysctl(&[("net.core.somaxconn", "65535")])?;
    }
    lab.client()
        .sysctl(&[("net.ipv4.ip_local_port_range", "1024 65535")])?;
    lab.bring_up(&[Service::Plain], LONG)?;
    let leader = lab.node(0).leader_seen()?.context("no leader")?;
    let victim = (leader + 1) % 3;
    let addresses: Vec<IpAddr> = lab
        .node(0)
        .ip_owners()?
        .into_iter()
        .filter(|(address, owner)| *owner == Some(victim) && address.is_ipv4())
        .map(|(address, _)| address)
        .collect();
    let lists = spread(&addresses, count);
    let _further = further_servers(lab.node(victim), lists.len() - 1)?;
    let crowd = Crowd::open(lab.client(), &lists)?;
    wait_until("all nodes to know all connections", LONG, || {
        (0..3).all(|pnn| known(&lab, pnn).is_ok_and(|(own, others)| own + others == count as u64))
    })?;
    thread::sleep(Duration::from_secs(1));
    let memory = lab
        .nodes()
        .iter()
        .map(|node| Ok(node.usage()?.proportional as f64 / f64::from(1 << 20)))
        .collect::<Result<Vec<f64>>>()?
        .into_iter()
        .fold(0.0, f64::max);
    lab.node(victim).ctdb(&["disable"])?.success()?;
    let mut times = crowd.told()?;
    times.sort_unstable();
    ensure!(times.len() == count, "{} of {count} were told", times.len());
    let taken = history(&lab, leader, "takeover")
        .or_else(|_| history(&lab, 3 - leader - victim, "takeover"))?;
    let told_all = times[count - 1].since(taken).as_secs_f64() * 1e3;
    Ok(Many { memory, told_all })
}

/// When the last record of a kind was written.
fn history(lab: &Lab, pnn: u32, kind: &str) -> Result<Stamp> {
    let history = lab.node(pnn).ctdb_json(&["cluster", "history"])?;
    let records = history["records"].as_array().context("no records")?;
    let last = records
        .iter()
        .rfind(|record| record["kind"] == kind)
        .with_context(|| format!("no {kind} on node {pnn}"))?;
    let time = last["at"]
        .as_f64()
        .with_context(|| format!("no time: {last}"))?;
    Ok(Stamp::from_wall_ns((time * 1e9) as u64))
}

/// 10,000 and 50,000 idle connections on addresses that are drained.
pub fn many_told(runs: Runs) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (count, all) in [(10_000, 500.0), (50_000, 2000.0)] {
        let mut samples = Vec::new();
        for _ in 0..runs.ours {
            samples.push(many(count)?);
            eprint!(".");
        }
        let of = |part: fn(&Many) -> f64| samples.iter().map(part).collect::<Vec<f64>>();
        rows.push(row(
            &format!("{count} idle connections: all clients told after the takeover"),
            Unit::Ms,
            Some(all),
            of(|sample| sample.told_all),
        ));
        if count == 50_000 {
            rows.push(row(
                "memory of a node with 50,000 connections, own or replicated",
                Unit::Mib,
                Some(60.0),
                of(|sample| sample.memory),
            ));
        }
    }
    eprintln!();
    Ok(rows)
}

/// Connections that come and go as fast as the clients can make them, on one address; the time of
/// the host's daemon for 20,000 of them beyond what it needs without, and how many it has not seen.
pub fn sustained(runs: Runs) -> Result<Vec<Row>> {
    const SPAN: Duration = Duration::from_secs(5);
    const CLIENTS: usize = 2;
    const RATE: f64 = 20_000.0;
    let (mut cpu, mut lost, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    if runs.ours == 0 {
        return Ok(Vec::new());
    }
    let lab = Lab::builder().build()?;
    for node in lab.hosts() {
        node.netns().sysctl(&[("net.core.somaxconn", "65535")])?;
    }
    lab.bring_up(&[Service::Plain], LONG)?;
    let address = lab.public_addresses()[0];
    let owner = lab.node(0).ip_owners()?[&address].context("an address without owner")?;
    let server = SocketAddr::new(address, plain::PORT);
    let node = lab.node(owner);
    let opened = || -> Result<u64> {
        let stats = node.ctdb_json(&["conntrack", "stats"])?;
        stats["opened"].as_u64().context("no count")
    };
    for _ in 0..runs.ours {
        let (before, start) = (node.usage()?, Instant::now());
        thread::sleep(SPAN);
        let idle = node.usage()?.cpu.saturating_sub(before.cpu).as_secs_f64()
            / start.elapsed().as_secs_f64();
        let (before, begun, start) = (node.usage()?, opened()?, Instant::now());
        let made = thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|_| scope.spawn(|| lab.client().enter(|| connect_for(server, start + SPAN))))
                .collect();
            clients.into_iter().try_fold(0, |made, client| {
                let more = client
                    .join()
                    .map_err(|_| anyhow::anyhow!("a client panicked"))??;
                anyhow::Ok(made + more)
            })
        })?;
        let span = start.elapsed().as_secs_f64();
        // What comes behind the last one belongs to it, too.
        thread::sleep(Duration::from_millis(500));
        let (after, ended) = (node.usage()?, opened()?);
        let spent = after.cpu.saturating_sub(before.cpu).as_secs_f64()
            - idle * start.elapsed().as_secs_f64();
        rates.push(made as f64 / span);
        cpu.push(spent / made as f64 * RATE * 100.0);
        lost.push((made as f64 - (ended - begun) as f64) / made as f64 * 100.0);
        eprint!(".");
    }
    eprintln!();
    rates.sort_by(f64::total_cmp);
    let rate = rates.get(rates.len() / 2).context("no run")?;
    Ok(vec![
        row(
            &format!(
                "20,000 connections/s: daemon of their host, of one core (measured at {rate:.0}/s)"
            ),
            Unit::Percent,
            Some(20.0),
            cpu,
        ),
        row(
            "20,000 connections/s: not seen",
            Unit::Percent,
            Some(0.0),
            lost,
        ),
    ])
}

/// Connects again and again, each time ended by a reset, so that no port waits; how often.
fn connect_for(server: SocketAddr, until: Instant) -> Result<u64> {
    let mut made = 0;
    while Instant::now() < until {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(server),
            socket2::Type::STREAM,
            None,
        )?;
        socket.set_linger(Some(Duration::ZERO))?;
        socket.connect(&server.into())?;
        made += 1;
    }
    Ok(made)
}
