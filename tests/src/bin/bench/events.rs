//! What an address event costs when there is no script: asked for on the event daemon's socket, one
//! after another, as CTDB's own daemon asks its event daemon.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ctdb_tests::lab::{Flavor, Lab, Node};
use ctdb_wire::eventd::{Framed, Reply, Request, framed};

use crate::Runs;
use crate::table::{Row, Unit};

const LIMIT: Duration = Duration::from_secs(90);
/// Events of one sample.
const EVENTS: u32 = 1000;

/// From the request to the answer.
pub fn address_event(runs: Runs) -> Result<Vec<Row>> {
    let row = Row {
        what: "an address event without scripts".into(),
        unit: Unit::Us,
        ours: samples(Flavor::Ours, runs.ours)?,
        goal: Some(100.0),
        reference: samples(Flavor::Ctdb, runs.reference)?
            .into_iter()
            .map(Some)
            .collect(),
    };
    eprintln!();
    Ok(vec![row])
}

fn samples(flavor: Flavor, runs: usize) -> Result<Vec<f64>> {
    if runs == 0 {
        return Ok(Vec::new());
    }
    let lab = Lab::builder().nodes(1).flavor(flavor).build()?;
    let node = lab.node(0);
    let scripts = node.etc().join("events/legacy");
    fs::create_dir_all(&scripts)?;
    for entry in fs::read_dir(&scripts)? {
        fs::remove_file(entry?.path())?;
    }
    node.start_daemon()?;
    lab.wait_all_healthy(LIMIT)?;
    (0..runs)
        .map(|_| {
            eprint!(".");
            microseconds(node)
        })
        .collect()
}

/// Mean of many.
fn microseconds(node: &Node) -> Result<f64> {
    let path = node.root().join("run/ctdb/eventd.socket");
    let mut socket =
        UnixStream::connect(&path).with_context(|| format!("connecting to {}", path.display()))?;
    let request = Request::Run {
        component: "legacy".into(),
        event: "takeip".into(),
        args: "pub0 10.99.2.100 24".into(),
        timeout: 30,
        all: false,
    };
    let mut bytes = [0; 4096];
    let start = Instant::now();
    for number in 0..EVENTS {
        socket.write_all(&request.encode(number))?;
        let mut have = 0;
        let length = loop {
            let read = socket.read(&mut bytes[have..])?;
            ensure!(read > 0, "the event daemon has closed its socket");
            have += read;
            match framed(&bytes[..have]) {
                Framed::Incomplete => {}
                Framed::Packet(length) => break length,
                Framed::Broken => bail!("the event daemon's answer is no packet"),
            }
        };
        let (of, reply) = Reply::decode(&bytes[..length])?;
        ensure!(of == number && reply == Reply::Run(0), "{reply:?}");
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(EVENTS))
}
