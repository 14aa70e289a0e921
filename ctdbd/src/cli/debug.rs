//! `ctdb debug`: the deciding core over a recording, offline.

use std::io::Write;
use std::path::Path;

use ctdb_core::recording::{self, Act, End, RecordingError, Step, Summary};
use ctdb_wire::heartbeat::Message;
use ctdb_wire::ids::BootTime;
use serde_json::json;

use super::args;
use super::failure::{Exit, Failure};

pub(super) fn run(
    global: &args::Global,
    verb: &args::Debugging,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let args::Debugging::Replay { file, all } = verb;
    // A part is 64 MiB, and a little more.
    let bytes = std::fs::read(file).map_err(|error| {
        let text = format!("cannot read {}: {error}", file.display());
        Failure::new(Exit::Failed, "unreadable", text)
    })?;
    replay(file, &bytes, *all, global.json, out)
}

/// Runs the core over a recording and prints what it decides.
fn replay(
    file: &Path,
    bytes: &[u8],
    all: bool,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut out = std::io::BufWriter::new(out);
    // A reader that goes away ends the command at its next write to it.
    let (mut head, mut steps) = (Vec::new(), 0_u64);
    let result = recording::replay(
        bytes,
        |one| head.push(one.clone()),
        |step| {
            steps += 1;
            let _ = print(&mut out, step, all, json);
        },
    );
    let from = head.first().map_or_else(String::new, |head| {
        format!(
            "node {}, release {}, part {} begun at {}",
            head.node, head.release, head.part, head.begun_at
        )
    });
    let summary = result.map_err(|error| {
        let _ = out.flush();
        failure(file, &from, steps, &error)
    })?;
    let _ = if json {
        let Summary {
            steps,
            decisions,
            end,
        } = summary;
        let head = head.first();
        writeln!(
            out,
            "{}",
            json!({"inputs": steps, "decisions": decisions, "end": end, "head": head})
        )
    } else {
        writeln!(
            out,
            "{from}: {} inputs, {} decisions, all as recorded; {}",
            summary.steps,
            summary.decisions,
            ending(summary.end)
        )
    };
    let _ = out.flush();
    Ok(())
}

fn ending(end: Option<End>) -> &'static str {
    match end {
        Some(End::Stopped) => "the daemon was stopped",
        Some(End::Full) => "the next part goes on",
        Some(End::Gap) => "inputs came faster than they could be written, and it was given up",
        Some(End::Differs) => "its machines decided otherwise beside the daemon",
        None => "the daemon died, or still writes",
    }
}

fn failure(file: &Path, from: &str, steps: u64, error: &RecordingError) -> Failure {
    let code = match error {
        RecordingError::Foreign => "no_recording",
        RecordingError::Format(_) => "other_format",
        RecordingError::Truncated { .. } => "truncated",
        RecordingError::Corrupt { .. } => "corrupt",
        RecordingError::Differs(_) => "differs",
    };
    let before = match error {
        RecordingError::Foreign | RecordingError::Format(_) => String::new(),
        _ => format!(" ({from}; {steps} inputs before it, all as recorded)"),
    };
    let text = format!("{}: {error}{before}", file.display());
    Failure::new(Exit::Failed, code, text)
}

/// What of a step is shown.
fn print(out: &mut impl Write, step: &Step, all: bool, json: bool) -> std::io::Result<()> {
    let mut line = |at: &BootTime, machine: &str, effect: serde_json::Result<serde_json::Value>| {
        let effect = effect.unwrap_or_default();
        if json {
            writeln!(
                out,
                "{}",
                json!({"at": at, "machine": machine, "effect": effect})
            )
        } else {
            writeln!(out, "{:>16.6} {machine:8} {effect}", at.0 as f64 / 1e9)
        }
    };
    match step {
        Step::Detector { at, effects, .. } => {
            for act in effects.iter().filter(|act| all || matters(act)) {
                line(at, "detector", serde_json::to_value(act))?;
            }
        }
        Step::Node { at, effects, .. } => {
            for effect in effects {
                line(at, "node", serde_json::to_value(effect))?;
            }
        }
        Step::Events { at, effects, .. } => {
            for effect in effects {
                line(at, "events", serde_json::to_value(effect))?;
            }
        }
    }
    Ok(())
}

/// What is not repeated all the time.
fn matters(act: &Act) -> bool {
    !matches!(
        act,
        Act::Deadline(..)
            | Act::Send(
                _,
                Message::Heartbeat { .. } | Message::Answer { .. } | Message::Gone { .. }
            )
    )
}
