//! How long addresses are not served, start, and a thousand addresses.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ctdb_tests::lab::cluster_lock::{Keeper, Server};
use ctdb_tests::lab::scenario::{Aftermath, Fail, Plan, Role, Scene};
use ctdb_tests::lab::{Flavor, Lab, Service, Stamp};

use crate::table::{Row, Unit};
use crate::{Authority, Profile, Runs};

/// A failover to measure.
#[derive(Clone, Copy)]
pub struct Case {
    fail: Fail,
    role: Role,
    what: &'static str,
    /// Milliseconds of outage.
    goal: f64,
}

/// An address is moved.
pub const MOVE: Case = case(Fail::Move, Role::Follower, "move", 20.0);
/// A node is drained.
pub const DRAIN: Case = case(Fail::Drain, Role::Follower, "drain", 20.0);
/// A daemon is stopped.
pub const STOP: Case = case(Fail::Stop, Role::Follower, "graceful stop", 20.0);
/// A daemon is killed.
pub const DAEMON: Case = case(Fail::Daemon, Role::Follower, "kill -9 of the daemon", 300.0);
/// The leader's daemon is killed.
pub const DAEMON_LEADER: Case = case(
    Fail::Daemon,
    Role::Leader,
    "kill -9 of the leader's daemon",
    2500.0,
);
/// A node loses power.
pub const POWER: Case = case(Fail::Power, Role::Follower, "power loss", 2200.0);
/// The leader loses power.
pub const POWER_LEADER: Case = case(Fail::Power, Role::Leader, "power loss, leader", 2700.0);
/// All links of a node are cut.
pub const LINKS: Case = case(Fail::Links, Role::Follower, "all links down", 2200.0);
/// All links of the leader are cut.
pub const LINKS_LEADER: Case = case(Fail::Links, Role::Leader, "all links down, leader", 2700.0);
/// The leader's processes are frozen.
pub const FREEZE_LEADER: Case = case(Fail::Freeze, Role::Leader, "freeze, leader", 2700.0);
/// A node's processes are frozen.
pub const FREEZE: Case = case(Fail::Freeze, Role::Follower, "freeze", 2200.0);

const fn case(fail: Fail, role: Role, what: &'static str, goal: f64) -> Case {
    Case {
        fail,
        role,
        what,
        goal,
    }
}

/// Until a cluster is up.
fn patience(flavor: Flavor) -> Duration {
    match flavor {
        Flavor::Ours => Duration::from_secs(20),
        Flavor::Ctdb => Duration::from_secs(90),
    }
}

fn cluster(flavor: Flavor, ipv6: bool) -> Result<Lab> {
    let mut builder = Lab::builder().flavor(flavor).ipv6(ipv6);
    if flavor == Flavor::Ctdb {
        builder = builder.tunable("EventScriptTimeout", 30);
    }
    let lab = builder.build()?;
    lab.bring_up(&[Service::Plain], patience(flavor))?;
    Ok(lab)
}

/// Ours with the timing profile and the authority that were asked for; with the server of its lock,
/// if it has one.
fn cluster_as(runs: Runs) -> Result<(Lab, Option<Server>)> {
    let mut builder = Lab::builder();
    if runs.profile == Profile::Fast {
        builder = builder
            .profile("fast")
            .conf("priority", "detector", "rr:10");
    }
    let (authority, keeper) = match runs.authority {
        Authority::Majority => ("majority", None),
        Authority::LockFile => ("lock", Some(Keeper::File)),
        Authority::LockEtcd => ("lock", Some(Keeper::Etcd)),
        Authority::BothFile => ("both", Some(Keeper::File)),
    };
    if keeper.is_some() {
        builder =
            builder
                .conf("cluster", "authority", authority)
                .conf("cluster", "lock validity", "2s");
    }
    let lab = builder.build()?;
    let server = match keeper {
        Some(keeper) => lab.keep_lock(keeper)?,
        None => None,
    };
    lab.bring_up(&[Service::Plain], patience(Flavor::Ours))?;
    Ok((lab, server))
}

/// The goal of a case under the profile and the authority: those of a lock are measured and stated
/// only, since they depend on what keeps it.
fn goal(case: Case, runs: Runs) -> Option<f64> {
    match (runs.authority, runs.profile) {
        (Authority::Majority, Profile::Standard) => Some(case.goal),
        (Authority::Majority, Profile::Fast) => Some(match (case.role, case.fail) {
            (Role::Leader, _) => 700.0,
            (Role::Follower, Fail::Daemon) => 200.0,
            (Role::Follower, _) => 500.0,
        }),
        _ => None,
    }
}

fn conditions(runs: Runs) -> String {
    let profile = (runs.profile == Profile::Fast).then_some(", fast");
    let authority = match runs.authority {
        Authority::Majority => None,
        Authority::LockFile => Some(", lock in a file"),
        Authority::LockEtcd => Some(", lock in etcd"),
        Authority::BothFile => Some(", both, lock in a file"),
    };
    [profile, authority].into_iter().flatten().collect()
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1000.0
}

/// Strikes once and waits for the end of the outage.
fn strike(lab: &Lab, case: Case, limit: Duration) -> Result<(Aftermath, Option<anyhow::Error>)> {
    let scene = Scene::set(lab, Plan::new(case.fail, case.role), &[], None)?;
    let fault = scene.strike()?;
    let missed = scene.settle(limit).err();
    Ok((scene.finish(fault)?, missed))
}

/// Outages and worst connects of hand-overs, IPv4 and IPv6 apart. One cluster does for all
/// samples; what was drained or stopped comes back between them.
fn hand_overs(case: Case, flavor: Flavor, runs: usize) -> Result<[Vec<Option<f64>>; 3]> {
    let mut samples = [Vec::new(), Vec::new(), Vec::new()];
    if runs == 0 {
        return Ok(samples);
    }
    let lab = cluster(flavor, true)?;
    while samples[0].len() < runs || samples[1].len() < runs {
        // A move is that of one address: of both families in turn.
        let moves = case.fail == Fail::Move;
        let ipv6 = moves && samples[0].len() > samples[1].len();
        let scene = Scene::set(
            &lab,
            Plan {
                ipv6,
                ..Plan::new(case.fail, case.role)
            },
            &[],
            None,
        )?;
        let fault = scene.strike()?;
        let missed = scene.settle(Duration::from_mins(1)).is_err();
        let seen = scene.records();
        scene.heal(patience(flavor))?;
        let after = scene.finish(fault)?;
        ensure!(
            flavor == Flavor::Ctdb || after.report.conflicts().is_empty(),
            "ADDR-1 was broken: {:?}",
            after.report.conflicts()
        );
        let longest = |v4: bool| {
            seen.iter()
                .filter(|r| after.affected.contains(&r.target.address.ip()))
                .filter(|r| r.target.address.is_ipv4() == v4)
                .map(|r| r.longest_outage(fault))
                .max()
        };
        let worst = seen.iter().map(|r| r.worst_connect(fault)).max();
        for (list, value) in samples
            .iter_mut()
            .zip([longest(true), longest(false), worst])
        {
            if value.is_some() {
                list.push(value.map(ms).filter(|_| !missed));
            }
        }
        eprint!(".");
    }
    eprintln!();
    Ok(samples)
}

/// Samples of ours: all are there.
fn all(samples: Vec<Option<f64>>) -> Result<Vec<f64>> {
    samples
        .into_iter()
        .collect::<Option<_>>()
        .context("an address was not served again")
}

/// Hand-overs: outage of each family, worst connect().
pub fn planned(case: Case, runs: Runs) -> Result<Vec<Row>> {
    let [v4, v6, worst] = hand_overs(case, Flavor::Ours, runs.ours)?;
    let [their_v4, their_v6, their_worst] = hand_overs(case, Flavor::Ctdb, runs.reference)?;
    let row = |what: &str, goal, ours, reference| -> Result<Row> {
        let what = format!("{}: {what}", case.what);
        Ok(Row {
            what,
            unit: Unit::Ms,
            ours: all(ours)?,
            goal: Some(goal),
            reference,
        })
    };
    Ok(vec![
        row("outage, IPv4", case.goal, v4, their_v4)?,
        row("outage, IPv6", case.goal, v6, their_v6)?,
        row("worst connect()", 1100.0, worst, their_worst)?,
    ])
}

/// From the fault to the first answer of another node, for the last of the addresses.
fn taken_after(after: &Aftermath) -> Option<Duration> {
    after
        .affected
        .iter()
        .map(|address| {
            let list = after.report.intervals.get(address)?;
            let taken = list
                .iter()
                .find(|i| i.node != after.victim && i.last >= after.fault)?;
            Some(taken.first.since(after.fault))
        })
        .try_fold(Duration::ZERO, |longest, one| Some(longest.max(one?)))
}

/// Failures without warning: the time in which new connections failed. A cluster of its own for
/// each sample.
pub fn sudden(case: Case, runs: Runs) -> Result<Vec<Row>> {
    let role = if case.role == Role::Leader {
        ""
    } else {
        ", follower"
    };
    let mut outages = Vec::new();
    for _ in 0..runs.ours {
        let (lab, _server) = cluster_as(runs)?;
        let (after, missed) = strike(&lab, case, Duration::from_secs(30))?;
        if let Some(error) = missed {
            return Err(error);
        }
        ensure!(
            after.report.conflicts().is_empty(),
            "ADDR-1 was broken: {:?}",
            after.report.conflicts()
        );
        outages.push(ms(after.outage()));
        eprint!(".");
    }
    let mut reference = Vec::new();
    for _ in 0..runs.reference {
        // With IPv6 addresses its survivors ban each other after a kill (baseline.md).
        let lab = cluster(Flavor::Ctdb, false)?;
        let (after, _) = strike(&lab, case, Duration::from_mins(1))?;
        // After a kill its kernel goes on answering: what counts is when another node does.
        reference.push(taken_after(&after).map(|taken| ms(taken.max(after.outage()))));
        eprint!(".");
    }
    eprintln!();
    Ok(vec![Row {
        what: format!("{}{role}{}", case.what, conditions(runs)),
        unit: Unit::Ms,
        ours: outages,
        goal: goal(case, runs),
        reference,
    }])
}

/// Three daemons from their start to all healthy and all addresses served.
pub fn start(runs: Runs) -> Result<Vec<Row>> {
    let samples = |flavor, runs: usize, ipv6| -> Result<Vec<f64>> {
        (0..runs)
            .map(|_| {
                let lab = Lab::builder().flavor(flavor).ipv6(ipv6).build()?;
                let took = lab.bring_up(&[Service::Plain], patience(flavor))?;
                eprint!(".");
                Ok(ms(took))
            })
            .collect()
    };
    let ours = samples(Flavor::Ours, runs.ours, true)?;
    let theirs = samples(Flavor::Ctdb, runs.reference, true)?;
    eprintln!();
    Ok(vec![Row {
        what: "start of three daemons to all healthy, all addresses served".into(),
        unit: Unit::Ms,
        ours,
        goal: Some(2000.0),
        reference: theirs.into_iter().map(Some).collect(),
    }])
}

/// A thousand addresses on two nodes (and a voter); one is drained.
pub fn thousand(runs: Runs) -> Result<Vec<Row>> {
    if runs.ours == 0 {
        return Ok(Vec::new());
    }
    let lab = Lab::builder()
        .public_addresses(500)
        .voters_only(1)
        .build()?;
    lab.bring_up(&[Service::Plain], Duration::from_mins(1))?;
    let mut ours = Vec::new();
    for run in 0..runs.ours {
        let victim = run as u32 % 2;
        let other = 1 - victim;
        let owners = lab.node(0).ip_owners()?;
        let mine: Vec<_> = owners
            .iter()
            .filter(|(_, o)| **o == Some(victim))
            .map(|(a, _)| *a)
            .collect();
        ensure!(
            mine.len() >= 450,
            "node {victim} hosts {} of 1000 addresses",
            mine.len()
        );
        let observer = lab.observe(None)?;
        let fault = Stamp::now();
        lab.ctdb(victim, &["disable"])?.success()?;
        let there = || {
            let report = observer.report();
            mine.iter().all(|a| report.owner(*a) == Some(other))
        };
        let limit = Instant::now() + Duration::from_secs(20);
        while !there() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(50));
        }
        let report = observer.finish()?;
        let last = mine
            .iter()
            .map(|a| report.first_seen(*a, other, fault))
            .collect::<Option<Vec<_>>>()
            .and_then(|all| all.into_iter().max())
            .context("not all addresses were announced by the other node")?;
        ensure!(
            report.conflicts().is_empty(),
            "ADDR-1 was broken: {:?}",
            report.conflicts()
        );
        ours.push(ms(last.since(fault)));
        eprint!(".");
        lab.ctdb(victim, &["enable"])?.success()?;
        lab.wait(
            "addresses to be spread again",
            Duration::from_secs(30),
            || {
                lab.node(0).ip_owners().is_ok_and(|owners| {
                    owners.values().filter(|o| **o == Some(victim)).count() >= 450
                })
            },
        )?;
    }
    eprintln!();
    Ok(vec![Row {
        what: "1,000 public addresses: move half of them".into(),
        unit: Unit::Ms,
        ours,
        goal: Some(1000.0),
        reference: Vec::new(),
    }])
}
