//! Tells a busy machine from a disturbed address: a service on the client's own loopback, which no
//! daemon has anything to do with, probed by the same thread as the addresses. When it is slow as
//! well, the machine was busy.
//!
//! Only slowness is excused by that. An attempt that failed, or whose request was lost so that the
//! client had to send it again (Linux: after a second), counts whatever the machine did.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::probe::{Attempt, Outage, Record, Target, outages};
use super::{Lab, Service, Stamp, helper_binary};

/// What takes longer was lost on its way at least once.
const LOST: Duration = Duration::from_millis(500);

/// The service, while it runs.
pub struct Bystander {
    child: Child,
}

impl Bystander {
    /// Starts it beside the prober.
    pub fn start(lab: &Lab) -> Result<Self> {
        let mut command = Command::new(helper_binary()?);
        let listen = Self::target().address.to_string();
        command.args(["serve", "--node", "999", "--listen", &listen]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = lab.client().spawn(&mut command).context("the bystander")?;
        Ok(Self { child })
    }

    /// How it is probed.
    pub fn target() -> Target {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Target {
            address: SocketAddr::new(address, Service::Plain.port()),
            label: "bystander".into(),
            ..Target::for_service(Service::Plain, address)
        }
    }

    /// Whether it is what a record is about.
    pub fn is(record: &Record) -> bool {
        record.target.address == Self::target().address
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Outages of `record` that the machine does not explain.
pub fn disturbances(record: &Record, bystander: &Record) -> Vec<Outage> {
    let busy = busy(bystander);
    let slow = record.target.slow;
    let counted: Vec<Attempt> = record
        .attempts
        .iter()
        .filter(|attempt| {
            let end = match attempt.done {
                Some(done) if done.since(attempt.start) < LOST => done,
                // Lost, or not over: judged as it is.
                _ => return true,
            };
            end.since(attempt.start) <= slow || !overlaps(&busy, attempt.start, end)
        })
        .cloned()
        .collect();
    outages(&counted, slow, record.taken)
}

/// When the machine was busy, in order, apart from each other: an attempt at the bystander was
/// slow, or the prober itself came late to start one.
fn busy(bystander: &Record) -> Vec<(Stamp, Stamp)> {
    let slow = bystander.target.slow;
    let mut spans: Vec<(Stamp, Stamp)> = Vec::new();
    let mut add = |from: Stamp, to: Stamp| match spans.last_mut() {
        Some(last) if from <= last.1 => last.1 = last.1.max(to),
        _ => spans.push((from, to)),
    };
    let mut before: Option<Stamp> = None;
    for attempt in &bystander.attempts {
        let late =
            before.filter(|before| attempt.start.since(*before) > bystander.target.every + slow);
        if let Some(before) = late {
            add(before, attempt.start);
        }
        before = Some(attempt.start);
        let end = attempt.done.unwrap_or(bystander.taken);
        if end.since(attempt.start) > slow {
            add(attempt.start, end);
        }
    }
    spans
}

fn overlaps(spans: &[(Stamp, Stamp)], from: Stamp, to: Stamp) -> bool {
    let first = spans.partition_point(|span| span.1 < from);
    spans.get(first).is_some_and(|span| span.0 <= to)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 5_000_000;

    /// One attempt every 5 ms: `o` good, `s` connected after 40 ms, `l` after a second, `x` failed,
    /// `-` not begun.
    fn record(pattern: &str) -> Record {
        let attempts = pattern.chars().zip(0_u64..).filter(|(c, _)| *c != '-');
        let attempts = attempts
            .map(|(c, i)| {
                let start = Stamp(i * STEP);
                let took = match c {
                    'o' => Some(1),
                    's' => Some(40),
                    'l' => Some(1001),
                    _ => None,
                };
                let done = took.map(|ms| start.after(Duration::from_millis(ms)));
                Attempt {
                    start,
                    connected: done,
                    done,
                    error: (c == 'x').then(|| "ECONNRESET".into()),
                    node: None,
                }
            })
            .collect();
        Record {
            target: Bystander::target(),
            attempts,
            taken: Stamp(10_000_000_000),
        }
    }

    fn bad(address: &str, bystander: &str) -> Vec<usize> {
        let found = disturbances(&record(address), &record(bystander));
        found.iter().map(|outage| outage.bad).collect()
    }

    #[test]
    fn slowness_of_the_whole_machine_is_no_disturbance() {
        assert_eq!(bad("ooossssooo", "ooossssooo"), [0_usize; 0]);
        // One slow attempt at the bystander lasts 40 ms: eight steps.
        assert_eq!(bad("ooossssooo", "ooosoooooo"), [0_usize; 0]);
        // The prober stood still.
        assert_eq!(bad("oosooooooo", "oo------oo"), [0_usize; 0]);
    }

    #[test]
    fn slowness_of_an_address_alone_is() {
        assert_eq!(bad("ooossssooo", "oooooooooo"), [4]);
        let apart = format!("s{}ss", "o".repeat(30));
        assert_eq!(bad(&apart, &format!("s{}", "o".repeat(32))), [2]);
    }

    #[test]
    fn what_was_lost_counts_whatever_the_machine_did() {
        assert_eq!(bad("ooolxxsooo", "ooosssssoo"), [3]);
        assert_eq!(bad("ooo?oo", "ooosss"), [1]);
    }
}
