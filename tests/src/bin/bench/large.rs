//! Large databases: filling, traverse, recovery, vacuum, one big transaction; and a node that
//! vanishes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use ctdb_tests::dbclient::transaction::Outcome;
use ctdb_tests::dbclient::work::{self, Plan};
use ctdb_tests::dbclient::{Kind, Session};
use ctdb_tests::lab::{Flavor, Lab, Node};
use ctdb_wire::client::control::Request;
use ctdb_wire::client::node;
use ctdb_wire::client::types::DbVacuum;

use crate::versus::{Figure, Unit};

/// Bytes of a record's data.
const SIZE: usize = 64;
/// Records that one connection fills in.
const FILL: usize = 20_000;
/// Longest wait for anything here.
const LONG: Duration = Duration::from_secs(180);

fn name_of(number: usize) -> Vec<u8> {
    format!("record {number:08}").into_bytes()
}

fn data_of(number: usize) -> Vec<u8> {
    let mut data = vec![0xA5; SIZE];
    data[..8].copy_from_slice(&(number as u64).to_le_bytes());
    data
}

/// Puts records `from..to` in, from all nodes at once.
fn populate(lab: &Lab, database: &str, from: usize, to: usize) -> Result<()> {
    let nodes = lab.nodes().len();
    on_all(lab, |index, session| {
        let mut db = session.attach(database, Kind::Volatile)?;
        for number in (from..to).filter(|n| n % nodes == index) {
            session.change(&mut db, &name_of(number), |_| data_of(number))?;
        }
        Ok(())
    })
}

/// One client on each node, all at once.
fn on_all(lab: &Lab, each: impl Fn(usize, &mut Session) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let clients: Vec<_> = (0..lab.nodes().len())
            .map(|index| {
                let each = &each;
                scope.spawn(move || {
                    let mut session = Session::connect_within(lab.node(index as u32), LONG)?;
                    session.wait_in_kernel();
                    each(index, &mut session)
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().map_err(|_| anyhow!("a client panicked"))?)
    })
}

/// The longest time that a client of node 0 waited for a record of its own while `work` ran, in
/// milliseconds, and what `work` gave.
fn stall<T>(lab: &Lab, database: &str, work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let probe = scope.spawn(move || -> Result<f64> {
            let mut session = Session::connect_within(lab.node(0), LONG)?;
            session.wait_in_kernel();
            let mut db = session.attach(database, Kind::Volatile)?;
            session.change(&mut db, b"probe", |_| b"x".to_vec())?;
            let mut worst = Duration::ZERO;
            while !stop.load(Ordering::Relaxed) {
                let start = Instant::now();
                session.change(&mut db, b"probe", |_| b"x".to_vec())?;
                worst = worst.max(start.elapsed());
                thread::sleep(Duration::from_micros(200));
            }
            Ok(worst.as_secs_f64() * 1e3)
        });
        // Until the probe is at work.
        thread::sleep(Duration::from_millis(300));
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let worst = probe.join().map_err(|_| anyhow!("the probe panicked"))??;
        Ok((worst, done?))
    })
}

/// New records over one connection.
pub fn fill(lab: &Lab) -> Result<Vec<Figure>> {
    let mut session = Session::connect(lab.node(0))?;
    let name = format!("fill {}.tdb", session.unique());
    let mut db = session.attach(&name, Kind::Volatile)?;
    let start = Instant::now();
    for number in 0..FILL {
        session.change(&mut db, &name_of(number), |_| data_of(number))?;
    }
    let rate = FILL as f64 / start.elapsed().as_secs_f64();
    let what = "fill over one connection";
    Ok(vec![Figure::new(what, Unit::PerSecond, rate, "3 ×")])
}

/// A traverse of 100,000 records of three nodes.
pub fn traverse(lab: &Lab) -> Result<Vec<Figure>> {
    const COUNT: usize = 100_000;
    let mut session = Session::connect_within(lab.node(0), LONG)?;
    let db = session.attach("traverse.tdb", Kind::Volatile)?;
    if session.traverse(&db)?.len() != COUNT {
        populate(lab, "traverse.tdb", 0, COUNT)?;
    }
    let start = Instant::now();
    let found = session.traverse(&db)?.len();
    let took = start.elapsed().as_secs_f64() * 1e3;
    ensure!(found == COUNT, "the traverse showed {found} records");
    let what = "traverse of 100 k records";
    Ok(vec![Figure::new(what, Unit::Ms, took, "1/3 ×")])
}

/// A recovery with `count` records: the wait of a client, which is the time from freeze to thaw, and
/// memory afterwards.
pub fn recovery(lab: &Lab, count: usize) -> Result<Vec<Figure>> {
    let mark = lab.dir().join("populated");
    if !mark.exists() {
        populate(lab, "large.tdb", 0, count)?;
        std::fs::write(&mark, b"")?;
    }
    let (worst, ()) = stall(lab, "large.tdb", || {
        lab.node(0).ctdb(&["recover"])?.success()?;
        // The command of ours and of CTDB's may come back before the databases do.
        thread::sleep(Duration::from_secs(2));
        Ok(())
    })?;
    let works = lab.nodes().iter().map(Node::work);
    let memory = works
        .collect::<Result<Vec<_>>>()?
        .iter()
        .map(|w| w.anonymous as f64 / f64::from(1 << 20))
        .fold(0.0, f64::max);
    let what = format!("recovery of {} k records", count / 1000);
    Ok(vec![
        Figure::new(
            format!("{what}: wait of a client"),
            Unit::Ms,
            worst,
            "1/4 ×",
        ),
        Figure::new(
            format!("{what}: memory of a node's daemons, no mapped files"),
            Unit::Mib,
            memory,
            "≤ 64 MiB",
        ),
    ])
}

/// One transaction that changes `count` records of a persistent database.
pub fn transaction(lab: &Lab, count: usize) -> Result<Vec<Figure>> {
    let mut session = Session::connect_within(lab.node(0), LONG)?;
    let mut db = session.attach("big.tdb", Kind::Persistent)?;
    let salt = session.unique() as usize;
    let start = Instant::now();
    let outcome = session.commit(&mut db, LONG, |changes| {
        for number in 0..count {
            changes.put(&name_of(number), data_of(number ^ salt));
        }
        Ok(())
    })?;
    ensure!(outcome == Outcome::Committed, "{outcome:?}");
    let took = start.elapsed().as_secs_f64() * 1e3;
    let what = format!("one transaction of {} k records", count / 1000);
    let goal = if count == 10_000 { "1/3 ×" } else { "≤ 2 s" };
    Ok(vec![Figure::new(what, Unit::Ms, took, goal)])
}

/// A backup and a restore of a persistent database of 100,000 records, by the command line.
pub fn restore(lab: &Lab) -> Result<Vec<Figure>> {
    const COUNT: usize = 100_000;
    const PIECE: usize = 10_000;
    let mut session = Session::connect_within(lab.node(0), LONG)?;
    let mut db = session.attach("restore.tdb", Kind::Persistent)?;
    for from in (0..COUNT).step_by(PIECE) {
        let outcome = session.commit(&mut db, LONG, |changes| {
            for number in from..from + PIECE {
                changes.put(&name_of(number), data_of(number));
            }
            Ok(())
        })?;
        ensure!(outcome == Outcome::Committed, "{outcome:?}");
    }
    let file = lab.dir().join("restore.backup");
    let path = file.to_str().ok_or_else(|| anyhow!("{}", file.display()))?;
    let mut figures = Vec::new();
    for (what, words) in [
        ("backup", ["backupdb", "restore.tdb", path]),
        ("restore", ["restoredb", path, "restore.tdb"]),
    ] {
        let start = Instant::now();
        lab.node(0).ctdb(&words)?.success()?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        figures.push(Figure::new(
            format!("{what} of 100 k persistent records"),
            Unit::Ms,
            took,
            "–",
        ));
    }
    for node in lab.nodes() {
        let mut session = Session::connect_within(node, LONG)?;
        let db = session.attach("restore.tdb", Kind::Persistent)?;
        let all = session.traverse(&db)?;
        let found = all
            .iter()
            .filter(|(key, _)| key.starts_with(b"record"))
            .count();
        ensure!(found == COUNT, "node {} has {found} records", node.pnn());
    }
    Ok(figures)
}

/// A vacuum of all nodes after half of 100,000 records were deleted.
pub fn vacuum(lab: &Lab) -> Result<Vec<Figure>> {
    const COUNT: usize = 100_000;
    let nodes = lab.nodes().len();
    populate(lab, "vacuum.tdb", 0, COUNT)?;
    on_all(lab, |index, session| {
        let mut db = session.attach("vacuum.tdb", Kind::Volatile)?;
        for number in (0..COUNT / 2).filter(|n| n % nodes == index) {
            session.delete(&mut db, &name_of(number))?;
        }
        Ok(())
    })?;
    let (worst, took) = stall(lab, "vacuum.tdb", || {
        let start = Instant::now();
        on_all(lab, |_, session| {
            let db_id = session.attach("vacuum.tdb", Kind::Volatile)?.id;
            let request = Request::DbVacuum(DbVacuum { db_id, full: 1 });
            let answer = session.client.control(node::CURRENT, 0, &request)?;
            ensure!(answer.status == 0, "{answer:?}");
            Ok(())
        })?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    })?;
    let what = "vacuum after 50 k of 100 k were deleted";
    Ok(vec![
        Figure::new(what, Unit::Ms, took, "1 ×"),
        Figure::new(
            format!("{what}: longest wait of a client"),
            Unit::Ms,
            worst,
            "≤ 5 ms",
        ),
    ])
}

/// The worst wait for a record on the other nodes when a node loses its power.
pub fn vanish(lab: &Lab) -> Result<Vec<Figure>> {
    let leader = lab.node(0).leader_seen()?.unwrap_or(0);
    let victim = (leader + 1) % 3;
    let others: Vec<u32> = (0..3).filter(|n| *n != victim).collect();
    let patience = Duration::from_secs(match lab.settings().flavor {
        Flavor::Ours => 20,
        Flavor::Ctdb => 90,
    });
    let plan = Plan {
        patience,
        ..Plan::default()
    };
    let record = work::run(lab, &plan, |record| {
        thread::sleep(Duration::from_secs(1));
        record.may_lose(victim);
        lab.node(victim).power_loss()?;
        let before: Vec<_> = others.iter().map(|n| record.changes_on(*n)).collect();
        // All of them have to get on, far beyond what was on its way at the fault.
        lab.wait("the others to get on", patience, || {
            others
                .iter()
                .zip(&before)
                .all(|(node, before)| record.changes_on(*node) > before + 1000)
        })
        .map(drop)
    })?;
    record.verdict()?;
    let worst = others.iter().map(|n| record.worst_stall(*n)).max();
    lab.node(victim).restore_power()?;
    lab.node(victim).start_daemon()?;
    lab.wait_all_healthy(patience)?;
    let what = "a node vanishes: worst wait for a record on the others";
    let value = worst.unwrap_or_default().as_secs_f64() * 1e3;
    Ok(vec![Figure::new(what, Unit::Ms, value, "≤ 2.5 s")])
}
