//! `ctdb process`

use std::fmt::Write as _;

use ctdb_wire::api::{ProcessView, ProcessesView};
use jiff::tz::TimeZone;

use super::failure::Failure;
use super::table::{columns, facts, milliseconds, moment, or_dash};
use super::{Asking, args};

pub(super) fn run(asking: &Asking, verb: &args::Process) -> Result<String, Failure> {
    match verb {
        args::Process::List => asking.show(&asking.at("/v1/processes"), list),
        args::Process::Show { id } => {
            let path = asking.at(&format!("/v1/processes/{id}"));
            asking.show(&path, |view| show(view, &TimeZone::system()))
        }
    }
}

/// State, with the code or signal of one that has ended.
fn state(view: &ProcessView) -> String {
    match (view.exit_code, view.signal) {
        (Some(code), _) => format!("{} {code}", view.state),
        (None, Some(signal)) => format!("{} by signal {signal}", view.state),
        (None, None) => view.state.clone(),
    }
}

/// `ctdb process list`
pub fn list(view: &ProcessesView) -> String {
    let rows: Vec<[String; 7]> = view
        .processes
        .iter()
        .map(|process| {
            [
                process.id.to_string(),
                process.pid.to_string(),
                process.owner.clone(),
                process.name.clone(),
                state(process),
                milliseconds(process.seconds * 1000.0),
                milliseconds(process.cpu_ms as f64),
            ]
        })
        .collect();
    columns(["ID", "PID", "FOR", "NAME", "STATE", "TIME", "CPU"], &rows)
}

/// `ctdb process show`
pub fn show(view: &ProcessView, zone: &TimeZone) -> String {
    let mut text = facts(&[
        ("Id", view.id.to_string()),
        ("Pid", view.pid.to_string()),
        ("For", view.owner.clone()),
        ("Name", view.name.clone()),
        ("Command", view.command.join(" ")),
        ("State", state(view)),
        ("Started", moment(view.started_at, zone)),
        ("Time", milliseconds(view.seconds * 1000.0)),
        (
            "Limit",
            or_dash(view.limit_s.map(|limit| milliseconds(limit * 1000.0))),
        ),
        ("CPU", milliseconds(view.cpu_ms as f64)),
        (
            "Memory",
            or_dash(view.memory_kb.map(|memory| format!("{memory} KiB"))),
        ),
    ]);
    for (name, output) in [("Output", &view.stdout), ("Errors", &view.stderr)] {
        if !output.is_empty() {
            let _ = writeln!(text, "{name}:");
            for line in output.lines() {
                let _ = writeln!(text, "    {line}");
            }
        }
    }
    if view.dropped_bytes > 0 {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} more bytes were not kept", view.dropped_bytes);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_and_what_came_of_it() {
        let ended = ProcessView {
            id: 7,
            pid: 4711,
            name: "50.samba".into(),
            owner: "event".into(),
            command: vec!["/etc/x".into(), "monitor".into()],
            state: "exited".into(),
            exit_code: Some(1),
            started_at: 1_795_348_731.25,
            seconds: 0.25,
            limit_s: Some(30.0),
            cpu_ms: 12,
            stdout: "ERROR: no smbd\n".into(),
            dropped_bytes: 5,
            ..ProcessView::default()
        };
        let view = ProcessesView {
            processes: vec![ended.clone()],
        };
        let wanted = "\
ID  PID   FOR    NAME      STATE     TIME    CPU
7   4711  event  50.samba  exited 1  250 ms  12 ms
";
        assert_eq!(list(&view), wanted);
        let text = show(&ended, &TimeZone::UTC);
        assert!(text.contains("Command  /etc/x monitor\n"), "{text}");
        assert!(
            text.contains("Output:\n    ERROR: no smbd\n5 more bytes"),
            "{text}"
        );
    }
}
