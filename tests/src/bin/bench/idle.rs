//! What the daemon costs while nothing happens: the lease program, memory, CPU, one command.

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ctdb_tests::lab::{Flavor, Lab, Node, Service};

use crate::Runs;
use crate::table::{Row, Unit};

/// Time of one load.
const SPAN: Duration = Duration::from_millis(200);
/// Pairs of loads for one sample: a busy machine changes its mind from second to second.
const PAIRS: usize = 30;
/// How long an idle node is watched.
const WATCH: Duration = Duration::from_secs(10);

/// Gives a rate of a load on a node's address.
type Load = fn(&Lab, u32, IpAddr) -> Result<f64>;

fn patience(flavor: Flavor) -> Duration {
    Duration::from_secs(if flavor == Flavor::Ours { 20 } else { 90 })
}

/// Load to a public address under a lease, and to the same in a cluster without daemons, in turn.
pub fn lease(runs: Runs) -> Result<Vec<Row>> {
    if runs.ours == 0 {
        return Ok(Vec::new());
    }
    let with = Lab::builder().build()?;
    with.bring_up(&[Service::Plain], patience(Flavor::Ours))?;
    let address = with.public_addresses()[0];
    let owner = with.node(0).ip_owners()?[&address].context("an address without owner")?;
    let without = Lab::builder().build()?;
    let bare = without.node(owner).netns();
    bare.ip(&format!("addr add {address}/24 dev pub0"))?;
    // The firewall is no part of the lease's cost, so both have the same; without what it holds
    // back, which a daemon would let in.
    let rules = with
        .node(owner)
        .netns()
        .run("nft", &["--terse", "list", "ruleset"])?;
    bare.nft(&rules)?;
    let loads: [(&str, Load); 2] = [
        ("TCP throughput", |lab, node, address| {
            lab.tcp_throughput(node, address, SPAN)
        }),
        ("small packets", |lab, node, address| {
            lab.small_packets(node, address, SPAN)
        }),
    ];
    let mut rows = Vec::new();
    for (name, load) in loads {
        let mut ours = Vec::new();
        for _ in 0..runs.ours {
            let mut ratios = Vec::new();
            for pair in 0..PAIRS {
                // The order changes, so that neither is always the second.
                let (a, b) = if pair % 2 == 0 {
                    let a = load(&with, owner, address)?;
                    (a, load(&without, owner, address)?)
                } else {
                    let b = load(&without, owner, address)?;
                    (load(&with, owner, address)?, b)
                };
                ratios.push(b / a);
            }
            ratios.sort_by(f64::total_cmp);
            let middle = f64::midpoint(ratios[PAIRS / 2 - 1], ratios[PAIRS / 2]);
            ours.push((middle - 1.0) * 100.0);
            eprint!(".");
        }
        rows.push(Row {
            what: format!("cost of the lease program: {name}"),
            unit: Unit::Percent,
            ours,
            goal: Some(2.0),
            reference: Vec::new(),
        });
    }
    eprintln!();
    Ok(rows)
}

/// Memory and CPU of an idle node, all processes of its daemon.
pub fn idle(runs: Runs) -> Result<Vec<Row>> {
    let samples = |flavor, runs: usize| -> Result<(Vec<f64>, Vec<f64>)> {
        let (mut memory, mut cpu) = (Vec::new(), Vec::new());
        let Some(lab) = up(flavor, runs)? else {
            return Ok((memory, cpu));
        };
        thread::sleep(Duration::from_secs(5));
        // All nodes at once: the dearest counts.
        for _ in 0..runs {
            let look = || {
                lab.nodes()
                    .iter()
                    .map(Node::usage)
                    .collect::<Result<Vec<_>>>()
            };
            let before = look()?;
            let start = Instant::now();
            thread::sleep(WATCH);
            let after = look()?;
            let span = start.elapsed().as_secs_f64();
            let most = |values: Vec<f64>| values.into_iter().fold(0.0, f64::max);
            memory.push(most(
                after
                    .iter()
                    .map(|u| u.proportional as f64 / f64::from(1 << 20))
                    .collect(),
            ));
            cpu.push(most(
                before
                    .iter()
                    .zip(&after)
                    .map(|(b, a)| a.cpu.saturating_sub(b.cpu).as_secs_f64() / span * 100.0)
                    .collect(),
            ));
            eprint!(".");
        }
        Ok((memory, cpu))
    };
    let (memory, cpu) = samples(Flavor::Ours, runs.ours)?;
    let (their_memory, their_cpu) = samples(Flavor::Ctdb, runs.reference)?;
    eprintln!();
    let row = |what: &str, unit, goal, ours, theirs: Vec<f64>| Row {
        what: what.into(),
        unit,
        ours,
        goal: Some(goal),
        reference: theirs.into_iter().map(Some).collect(),
    };
    Ok(vec![
        row(
            "memory of an idle node, all processes",
            Unit::Mib,
            20.0,
            memory,
            their_memory,
        ),
        row(
            "CPU of an idle node, of one core",
            Unit::Percent,
            0.5,
            cpu,
            their_cpu,
        ),
    ])
}

/// One call of the command line, process and all, as a shell's loop sees it. CTDB's `status`
/// waits for the next broadcast of its leader, its `pnn` does not.
pub fn command(runs: Runs) -> Result<Vec<Row>> {
    let (ours, theirs) = (
        up(Flavor::Ours, runs.ours)?,
        up(Flavor::Ctdb, runs.reference)?,
    );
    let mut rows = Vec::new();
    for (words, calls) in [
        (&["pnn"][..], 100),
        (&["status"], 20),
        (&["-X", "status"], 20),
    ] {
        rows.push(Row {
            what: format!("one call of the command line (`ctdb {}`)", words.join(" ")),
            unit: Unit::Ms,
            ours: calls_of(ours.as_ref(), words, calls, runs.ours)?,
            goal: Some(3.0),
            reference: calls_of(theirs.as_ref(), words, calls, runs.reference)?
                .into_iter()
                .map(Some)
                .collect(),
        });
    }
    eprintln!();
    Ok(rows)
}

/// A cluster, if there is anything to measure.
fn up(flavor: Flavor, runs: usize) -> Result<Option<Lab>> {
    if runs == 0 {
        return Ok(None);
    }
    let lab = Lab::builder().flavor(flavor).build()?;
    lab.bring_up(&[], patience(flavor))?;
    Ok(Some(lab))
}

/// Milliseconds of one call, for each run of many.
fn calls_of(lab: Option<&Lab>, words: &[&str], calls: u32, runs: usize) -> Result<Vec<f64>> {
    let Some(lab) = lab else {
        return Ok(Vec::new());
    };
    let node = lab.node(0);
    let script = format!(
        "i=0; while [ $i -lt {calls} ]; do \"$0\" \"$@\" >/dev/null || exit 1; i=$((i+1)); done"
    );
    (0..runs)
        .map(|_| {
            let mut command = node.ctdb_in_shell(&script, words)?;
            let start = Instant::now();
            let out = node.netns().output(&mut command)?;
            ensure!(out.status.success(), "ctdb {words:?}: {out:?}");
            eprint!(".");
            Ok(start.elapsed().as_secs_f64() * 1000.0 / f64::from(calls))
        })
        .collect()
}
