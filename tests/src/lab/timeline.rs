//! A timeline for people: what happened, drawn as it happens, with lanes at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, anyhow};
use ctdb_wire::api::HistoryRecord;

use super::Stamp;
use super::clock::nanos;

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When.
    pub at: Stamp,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// The lab did something to the cluster. The first one is the origin of times.
    Fault(String),
    /// An address is answered by another node than before, as the switch sees it.
    Owner {
        /// The address.
        address: IpAddr,
        /// Who answered before.
        from: Option<u32>,
        /// Who answers now.
        to: u32,
    },
    /// Two nodes answer for an address.
    Conflict {
        /// The address.
        address: IpAddr,
        /// The nodes.
        nodes: [u32; 2],
    },
    /// New connections fail.
    ServiceDown {
        /// The prober's name for the service and address.
        label: String,
    },
    /// New connections succeed again.
    ServiceUp {
        /// The prober's name for the service and address.
        label: String,
        /// How long they failed.
        outage: Duration,
        /// Who answers now, if the service says.
        node: Option<u32>,
    },
    /// A connection that a client holds open was told that it is gone, or works again.
    Client {
        /// What it is.
        label: String,
        /// What happened.
        text: String,
    },
    /// A step that a daemon or the caller reports, with the time that it took.
    Phase {
        /// Who reports it.
        node: Option<u32>,
        /// What was done.
        text: String,
        /// How long it took.
        took: Option<Duration>,
    },
}

impl Event {
    /// A fault, now.
    pub fn fault(text: impl Into<String>) -> Self {
        Self {
            at: Stamp::now(),
            what: What::Fault(text.into()),
        }
    }

    /// A step, now.
    pub fn phase(node: Option<u32>, text: impl Into<String>, took: Option<Duration>) -> Self {
        Self {
            at: Stamp::now(),
            what: What::Phase {
                node,
                text: text.into(),
                took,
            },
        }
    }

    /// A record of a daemon's history: what and why, and the phases with their lengths.
    pub fn from_history(node: u32, record: &HistoryRecord) -> Self {
        let mut text = format!("{}: {}", record.kind, record.text);
        let mut sum = 0.0;
        for (name, ms) in &record.phases {
            sum += ms;
            let _ = write!(text, ", {name} {ms:.1} ms");
        }
        // A negative or absurd number comes from a daemon's bug: shown without a time.
        let took = Duration::try_from_secs_f64(sum / 1e3)
            .ok()
            .filter(|t| !t.is_zero());
        let at = Stamp::from_wall_ns(Duration::try_from_secs_f64(record.at).map_or(0, nanos));
        Self {
            at,
            what: What::Phase {
                node: Some(node),
                text,
                took,
            },
        }
    }
}

/// The columns of a line: kind, subject and the rest.
fn columns(what: &What) -> (&'static str, String, String) {
    match what {
        What::Fault(text) => ("fault", String::new(), text.clone()),
        What::Owner {
            address,
            from: Some(from),
            to,
        } => (
            "address",
            address.to_string(),
            format!("node {from} -> node {to}"),
        ),
        What::Owner {
            address,
            from: None,
            to,
        } => ("address", address.to_string(), format!("on node {to}")),
        What::Conflict { address, nodes } => (
            "CONFLICT",
            address.to_string(),
            format!("answered by node {} and node {}", nodes[0], nodes[1]),
        ),
        What::ServiceDown { label } => {
            ("service", label.clone(), "new connections fail".to_string())
        }
        What::Client { label, text } => ("client", label.clone(), text.clone()),
        What::ServiceUp {
            label,
            outage,
            node,
        } => {
            let by = node.map(|n| format!(", by node {n}")).unwrap_or_default();
            (
                "service",
                label.clone(),
                format!("accepts again after {}{by}", human(*outage)),
            )
        }
        What::Phase { node, text, took } => (
            "step",
            node.map(|n| format!("node {n}")).unwrap_or_default(),
            match took {
                Some(t) => format!("{text} ({})", human(*t)),
                None => text.clone(),
            },
        ),
    }
}

/// A time in the unit that suits it.
pub fn human(t: Duration) -> String {
    if t < Duration::from_millis(10) {
        format!("{:.1} ms", t.as_secs_f64() * 1e3)
    } else if t < Duration::from_secs(1) {
        format!("{} ms", t.as_millis())
    } else {
        format!("{:.2} s", t.as_secs_f64())
    }
}

/// One line of the timeline, without colour. `origin` is where times count from.
pub fn line(event: &Event, origin: Stamp) -> String {
    let (kind, subject, rest) = columns(&event.what);
    let text = format!(
        "{:>+9.3} s  {kind:<8}  {subject:<22}  {rest}",
        event.at.seconds_from(origin)
    );
    text.trim_end().to_string()
}

/// Lanes: for each address a strip of `width` letters from `from` to `until`, one digit or
/// letter for the node that answers (`0`–`9`, `a`…), `.` while the service's new connections
/// fail. Empty if no address changed hands.
pub fn lanes(events: &[Event], from: Stamp, until: Stamp, width: usize) -> String {
    let mut owners: BTreeMap<IpAddr, Vec<(Stamp, u32)>> = BTreeMap::new();
    let mut downs: BTreeMap<IpAddr, Vec<(Stamp, Stamp)>> = BTreeMap::new();
    for event in events {
        match &event.what {
            What::Owner { address, to, .. } => {
                owners.entry(*address).or_default().push((event.at, *to));
            }
            What::ServiceUp { label, outage, .. } => {
                if let Some(a) = label.split(' ').next_back().and_then(|a| a.parse().ok()) {
                    let begin = Stamp(event.at.0.saturating_sub(nanos(*outage)));
                    downs.entry(a).or_default().push((begin, event.at));
                }
            }
            _ => {}
        }
    }
    owners.retain(|_, list| list.len() > 1);
    let span = until.0.saturating_sub(from.0).max(1);
    let at = |column: usize| Stamp(from.0 + (span as u128 * column as u128 / width as u128) as u64);
    let mut text = String::new();
    for (address, list) in &mut owners {
        list.sort_unstable_by_key(|(t, _)| *t);
        let strip: String = (0..width)
            .map(|c| {
                let (begin, end) = (at(c), at(c + 1));
                let gone = downs
                    .get(address)
                    .is_some_and(|d| d.iter().any(|(b, e)| *b < end && *e > begin));
                if gone {
                    return '.';
                }
                let owner = list.iter().rev().find(|(t, _)| *t < end).map(|(_, n)| *n);
                owner.map_or(' ', |n| char::from_digit(n % 36, 36).unwrap_or('?'))
            })
            .collect();
        let _ = writeln!(text, "{:>24}  |{strip}|", address.to_string());
    }
    if !text.is_empty() {
        let _ = writeln!(
            text,
            "{:>24}   each column {}; digits: the node that answers; dots: new connections fail",
            "",
            human(Duration::from_nanos(span / width.max(1) as u64))
        );
    }
    text
}

/// A timeline that draws itself while events come in.
pub struct Timeline {
    sender: Sender<Event>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Event>>,
}

impl Timeline {
    /// Draws to standard output, in colour if that is a terminal.
    pub fn start() -> Self {
        let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self::to(Box::new(io::stdout()), colour)
    }

    /// Draws to `out`.
    pub fn to(mut out: Box<dyn Write + Send>, colour: bool) -> Self {
        let (sender, receiver) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let halt = Arc::clone(&stop);
        let thread = thread::spawn(move || draw(&receiver, &halt, out.as_mut(), colour));
        Self {
            sender,
            stop,
            thread,
        }
    }

    /// Where to send events; clones go to the prober and the observer.
    pub fn events(&self) -> Sender<Event> {
        self.sender.clone()
    }

    /// Sends one event.
    pub fn add(&self, event: Event) {
        let _ = self.sender.send(event);
    }

    /// Ends the drawing; all events in order of their time. End prober and observer first: what
    /// they send later is lost.
    pub fn finish(self) -> Result<Vec<Event>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut events = self
            .thread
            .join()
            .map_err(|_| anyhow!("the timeline panicked"))?;
        events.sort_by_key(|e| e.at);
        Ok(events)
    }
}

fn draw(
    receiver: &Receiver<Event>,
    stop: &AtomicBool,
    out: &mut dyn Write,
    colour: bool,
) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    let mut origin = None;
    loop {
        // Read first: what was sent before `finish` is drawn.
        let last = stop.load(Ordering::Relaxed);
        match receiver.recv_timeout(Duration::from_millis(if last { 0 } else { 20 })) {
            Ok(event) => {
                if matches!(event.what, What::Fault(_)) {
                    origin.get_or_insert(event.at);
                }
                let start = origin.or(events.first().map(|e| e.at)).unwrap_or(event.at);
                let text = line(&event, start);
                let text = if colour {
                    paint(&event.what, &text)
                } else {
                    text
                };
                // A reader that went away is no reason to stop recording.
                let _ = writeln!(out, "{text}");
                let _ = out.flush();
                events.push(event);
            }
            Err(RecvTimeoutError::Timeout) if !last => {}
            Err(_) => return events,
        }
    }
}

fn paint(what: &What, text: &str) -> String {
    let colour = match what {
        What::Fault(_) => "1;33",
        What::Conflict { .. } => "1;31",
        What::ServiceDown { .. } => "31",
        What::ServiceUp { .. } => "32",
        What::Owner { .. } => "36",
        What::Client { .. } => "35",
        What::Phase { .. } => "2",
    };
    format!("\x1b[{colour}m{text}\x1b[0m")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Vec<Event> {
        let address = IpAddr::from([10, 99, 2, 100]);
        let ms = |n: u64| Stamp((1000 + n) * 1_000_000);
        vec![
            Event {
                at: ms(0),
                what: What::Owner {
                    address,
                    from: None,
                    to: 1,
                },
            },
            Event {
                at: ms(100),
                what: What::Fault("links of node 1 cut".into()),
            },
            Event {
                at: ms(500),
                what: What::ServiceUp {
                    label: format!("tcp {address}"),
                    outage: Duration::from_millis(400),
                    node: Some(2),
                },
            },
            Event {
                at: ms(490),
                what: What::Owner {
                    address,
                    from: Some(1),
                    to: 2,
                },
            },
        ]
    }

    #[test]
    fn lines_are_aligned() {
        let origin = events()[1].at;
        let text: Vec<_> = events().iter().map(|e| line(e, origin)).collect();
        assert_eq!(
            text,
            [
                "   -0.100 s  address   10.99.2.100             on node 1",
                "   +0.000 s  fault                             links of node 1 cut",
                "   +0.400 s  service   tcp 10.99.2.100         accepts again after 400 ms, by node 2",
                "   +0.390 s  address   10.99.2.100             node 1 -> node 2",
            ]
        );
    }

    #[test]
    fn lanes_show_who_answers() {
        let (from, until) = (Stamp(1_000_000_000), Stamp(2_000_000_000));
        let text = lanes(&events(), from, until, 10);
        assert!(text.contains("|1....22222|"), "{text}");
        assert!(lanes(&events()[..1], from, until, 10).is_empty());
    }

    #[test]
    fn daemon_records_become_steps() {
        let record = HistoryRecord {
            kind: "takeover".into(),
            text: "node 1 lost".into(),
            phases: vec![("address".into(), 1.5), ("announce".into(), 0.25)],
            ..HistoryRecord::default()
        };
        let event = Event::from_history(2, &record);
        let What::Phase { node, text, took } = event.what else {
            panic!("no step")
        };
        assert_eq!(node, Some(2));
        assert_eq!(
            text,
            "takeover: node 1 lost, address 1.5 ms, announce 0.2 ms"
        );
        assert_eq!(took, Some(Duration::from_micros(1750)));
    }
}
