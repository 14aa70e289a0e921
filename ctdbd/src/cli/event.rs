//! `ctdb event`, with the texts and exit codes of the old `ctdb event` (`spec/cli.md` 6.9).

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use ctdb_wire::api::{EventRunView, EventScriptView, EventsView, ScriptView, ScriptsView};
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use super::client::ClientError;
use super::failure::{Exit, Failure};
use super::table::{columns, milliseconds, moment};
use super::{Asking, args, pretty};
use crate::config::Paths;

const DISABLED: i32 = -8;
const TIMED_OUT: i32 = -110;

pub(super) fn run(
    asking: &Asking,
    verb: &args::Event,
    paths: &Paths,
    out: &mut dyn Write,
) -> Result<String, Failure> {
    match verb {
        args::Event::List => asking.show(&asking.at("/v1/events"), list),
        args::Event::History { last } => {
            let mut view: EventsView = asking.client.get(&asking.at("/v1/events/history"))?;
            let skip = last.map_or(0, |last| view.events.len().saturating_sub(last));
            view.events.drain(..skip);
            if asking.global.json {
                let value = serde_json::to_value(&view)
                    .map_err(|error| Failure::new(Exit::Failed, "internal", error.to_string()))?;
                return Ok(pretty(&value));
            }
            Ok(list(&view))
        }
        args::Event::Tail { lines } => tail(asking, *lines, out),
        args::Event::Run {
            timeout,
            component,
            event,
            args,
            all,
        } => start(asking, (*timeout, component, event, args, *all), out),
        args::Event::Status { component, event } => shown(asking, component, event, out),
        args::Event::Script(verb) => script(asking, verb, paths, out),
    }
}

/// Event and arguments.
fn words(run: &EventRunView) -> String {
    let args = run.args.iter().map(String::as_str);
    let words: Vec<&str> = std::iter::once(run.event.as_str()).chain(args).collect();
    words.join(" ")
}

fn list(view: &EventsView) -> String {
    let zone = TimeZone::system();
    let rows: Vec<[String; 5]> = view
        .events
        .iter()
        .map(|run| {
            [
                run.component.clone(),
                words(run),
                moment(run.begin, &zone),
                milliseconds(run.seconds * 1000.0),
                run.state.clone(),
            ]
        })
        .collect();
    columns(["COMPONENT", "EVENT", "BEGUN", "TIME", "RESULT"], &rows)
}

/// The old tool's words and exit code where no daemon answers.
fn no_daemon(error: ClientError) -> Failure {
    match error {
        ClientError::Connect { path, .. } => {
            let socket = path.with_file_name("eventd.socket");
            let text = format!(
                "socket connect failed - {}\nFailed to initialize event client, ret=5",
                socket.display()
            );
            Failure::new(Exit::Code(5), "no_daemon", text).bare()
        }
        other => other.into(),
    }
}

/// A text on standard output and an exit code: how the old command fails.
fn ends(out: &mut dyn Write, text: &str, code: u8) -> Failure {
    let _ = out.write_all(text.as_bytes());
    Failure::new(Exit::Code(code), "event", "")
}

/// The old tool shows error numbers from 64 on less 64, and complains about them.
fn big(out: &mut dyn Write, text: &str, errno: u8) -> Failure {
    let code = errno - 64;
    let _ = out.write_all(text.as_bytes());
    let complaint = format!("event daemon helper failed with error {code}");
    Failure::new(Exit::Code(code), "event", complaint).bare()
}

/// Names what the old tool says of an answer that is an error.
fn refused(error: &ClientError) -> Option<&str> {
    match error {
        ClientError::Refused(error) => Some(&error.code),
        _ => None,
    }
}

type Start<'a> = (u32, &'a String, &'a String, &'a Vec<String>, bool);

fn start(
    asking: &Asking,
    (timeout, component, event, args, all): Start,
    out: &mut dyn Write,
) -> Result<String, Failure> {
    let path = asking.at(&format!("/v1/events/run/{component}/{event}"));
    let body = json!({"args": args, "seconds": timeout, "all": all});
    let error = match asking.client.post(&path, &body) {
        Ok(done) if asking.global.json => return Ok(asking.done(&done)),
        Ok(_) => return Ok(String::new()),
        Err(error) => error,
    };
    if asking.global.json {
        return Err(error.into());
    }
    Err(match refused(&error) {
        Some("event_failed") => ends(out, &format!("Event {event} in {component} failed\n"), 8),
        Some("event_timed_out") => big(
            out,
            &format!("Event {event} in {component} timed out\n"),
            110,
        ),
        Some("event_cancelled") => big(
            out,
            &format!("Event {event} in {component} got cancelled\n"),
            125,
        ),
        Some("no_such_component") => ends(
            out,
            &format!("Event dir for {component} does not exist\n"),
            2,
        ),
        _ => no_daemon(error),
    })
}

fn shown(
    asking: &Asking,
    component: &str,
    event: &str,
    out: &mut dyn Write,
) -> Result<String, Failure> {
    let path = asking.at(&format!("/v1/events/status/{component}/{event}"));
    if asking.global.json {
        return Ok(pretty(&asking.client.get::<Value>(&path)?));
    }
    match asking.client.get::<EventRunView>(&path) {
        Ok(view) => {
            let text = status(&view, &TimeZone::system());
            match u8::try_from(view.result.unsigned_abs()) {
                Ok(0) => Ok(text),
                Ok(errno @ (110 | 125)) if view.result < 0 => Err(big(out, &text, errno)),
                Ok(code) => Err(ends(out, &text, code)),
                Err(_) => Err(ends(out, &text, 1)),
            }
        }
        Err(error) => Err(match refused(&error) {
            Some("never_ran") => ends(
                out,
                &format!("Event {event} has never run in {component}\n"),
                22,
            ),
            Some("no_such_component") => ends(
                out,
                &format!("Event dir for {component} does not exist\n"),
                2,
            ),
            _ => no_daemon(error),
        }),
    }
}

/// The lines of `ctdb event status` and `ctdb scriptstatus`.
pub fn status(view: &EventRunView, zone: &TimeZone) -> String {
    let mut text = String::new();
    for script in &view.scripts {
        line(&mut text, script, zone);
    }
    text
}

fn line(text: &mut String, script: &EventScriptView, zone: &TimeZone) {
    let EventScriptView { name, result, .. } = script;
    let begun = || {
        jiff::Timestamp::from_second(script.begin as i64).map_or_else(
            |_| String::new(),
            |begin| {
                begin
                    .to_zoned(zone.clone())
                    .strftime("%a %b %e %H:%M:%S %Y")
                    .to_string()
            },
        )
    };
    // Writing to a string does not fail.
    let _ = match *result {
        DISABLED => writeln!(text, "{name:<20} {:<10}", "DISABLED"),
        TIMED_OUT => writeln!(text, "{name:<20} {:<10} {}", "TIMEDOUT", begun()),
        negative if negative < 0 => {
            let why = std::io::Error::from_raw_os_error(-negative).to_string();
            let why = why.split(" (os error").next().unwrap_or_default();
            writeln!(text, "{name:<20} CANNOT RUN ({why})")
        }
        code => {
            let word = if code == 0 { "OK" } else { "ERROR" };
            let took = script.end - script.begin;
            writeln!(text, "{name:<20} {word:<10} {took:.3} {}", begun())
        }
    };
    let output = script.output.trim_end_matches('\n');
    if *result == DISABLED || *result == 0 && output.is_empty() {
        return;
    }
    if output.contains('\n') {
        text.push_str("  OUTPUT:\n");
        for line in output.lines() {
            let _ = writeln!(text, "    {line}");
        }
    } else {
        let _ = writeln!(text, "  OUTPUT: {output}");
    }
}

fn script(
    asking: &Asking,
    verb: &args::EventScript,
    paths: &Paths,
    out: &mut dyn Write,
) -> Result<String, Failure> {
    // Of this node it is a matter of files; no daemon is needed.
    let here = asking.global.node.is_none() && !asking.client.reachable();
    let shipped = paths.data.join("events");
    let (component, name, enable) = match verb {
        args::EventScript::List { component } => {
            let missing = |error: &Failure| error.code == "no_such_component";
            let shown = if here {
                listed(&paths.events, &shipped, component).map(|view| {
                    if asking.global.json {
                        pretty(&json!(view))
                    } else {
                        scripts(&view)
                    }
                })
            } else {
                let path = asking.at(&format!("/v1/events/scripts/{component}"));
                asking.show(&path, scripts)
            };
            return shown.map_err(|error| {
                if missing(&error) && !asking.global.json {
                    let text = "Command script list finished with result=2";
                    Failure::new(Exit::Code(2), "no_such_component", text).bare()
                } else {
                    error
                }
            });
        }
        args::EventScript::Enable { component, script } => (component, script, true),
        args::EventScript::Disable { component, script } => (component, script, false),
    };
    if here {
        let set =
            crate::events::scripts::set_enabled(&paths.events, &shipped, component, name, enable);
        return set.map(|()| String::new()).map_err(|error| {
            let code = u8::try_from(error.errno()).unwrap_or(1);
            if asking.global.json {
                Failure::new(Exit::Code(code), "bad_script", error.to_string())
            } else {
                ends(out, &format!("{error}\n"), code)
            }
        });
    }
    let path = asking.at(&format!("/v1/events/scripts/{component}/{name}"));
    let error = match asking.client.post(&path, &json!({"enable": enable})) {
        Ok(done) if asking.global.json => return Ok(asking.done(&done)),
        Ok(_) => return Ok(String::new()),
        Err(error) => error,
    };
    if asking.global.json {
        return Err(error.into());
    }
    Err(match &error {
        ClientError::Refused(api) => {
            let code = match api.code.as_str() {
                "no_such_script" => 2,
                "bad_script" => 22,
                _ => 5,
            };
            ends(out, &format!("{}\n", api.message), code)
        }
        _ => error.into(),
    })
}

/// Scripts of a component, from the files.
fn listed(events: &Path, shipped: &Path, component: &str) -> Result<ScriptsView, Failure> {
    let found = crate::events::scripts::is_component(component)
        .then(|| crate::events::scripts::list(events, shipped, component))
        .transpose()
        .map_err(|error| Failure::new(Exit::Failed, "system", error.to_string()))?
        .flatten()
        .ok_or_else(|| {
            let text = format!("there is no component {component} in {}", shipped.display());
            Failure::new(Exit::NotFound, "no_such_component", text)
        })?;
    let scripts = found
        .into_iter()
        .map(|script| ScriptView {
            name: script.name,
            enabled: script.enabled,
            shipped: script.shipped,
        })
        .collect();
    Ok(ScriptsView { scripts })
}

/// Shipped ones, an empty line, own ones.
pub fn scripts(view: &ScriptsView) -> String {
    let mut text = String::new();
    for shipped in [true, false] {
        if !shipped && view.scripts.iter().any(|script| !script.shipped) {
            text.push('\n');
        }
        for script in view
            .scripts
            .iter()
            .filter(|script| script.shipped == shipped)
        {
            let mark = if script.enabled { '*' } else { ' ' };
            let _ = writeln!(text, "{mark} {}", script.name);
        }
    }
    text
}

/// Runs as they end, until the reader goes.
fn tail(asking: &Asking, lines: usize, out: &mut dyn Write) -> Result<String, Failure> {
    let zone = TimeZone::system();
    let mut seen: Option<f64> = None;
    loop {
        let view: EventsView = asking.client.get(&asking.at("/v1/events/history"))?;
        let fresh = view
            .events
            .iter()
            .filter(|run| seen.is_none_or(|at| run.begin + run.seconds > at));
        let mut fresh: Vec<&EventRunView> = fresh.collect();
        if seen.is_none() {
            fresh.drain(..fresh.len().saturating_sub(lines));
        }
        seen = view
            .events
            .iter()
            .map(|run| run.begin + run.seconds)
            .reduce(f64::max)
            .or(Some(0.0));
        for run in fresh {
            let written = if asking.global.json {
                serde_json::to_string(run).map_or(Ok(()), |line| writeln!(out, "{line}"))
            } else {
                let words = words(run);
                let (begun, took) = (moment(run.begin, &zone), milliseconds(run.seconds * 1000.0));
                writeln!(
                    out,
                    "{begun} {} {words}: {} ({took})",
                    run.component, run.state
                )
            };
            if written.and_then(|()| out.flush()).is_err() {
                return Ok(String::new());
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, result: i32, output: &str) -> EventScriptView {
        EventScriptView {
            name: name.into(),
            begin: 1_795_348_769.5,
            end: 1_795_348_769.502,
            result,
            output: output.into(),
        }
    }

    /// `spec/cli.md` 6.9; `CANNOT RUN` and `TIMEDOUT` as Debian's 4.17 prints them.
    #[test]
    fn lines_of_the_specification() {
        let view = EventRunView {
            scripts: vec![
                one("00.test", 0, "text that a successful script printed\n"),
                one("05.quiet", 0, ""),
                one("10.off", -8, ""),
                one("20.other", 1, "first line\nsecond line\n"),
                one("30.late", -110, ""),
                one("40.gone", -2, ""),
                one("50.killed", -4, ""),
            ],
            ..EventRunView::default()
        };
        let wanted = "\
00.test              OK         0.002 Sun Nov 22 11:59:29 2026
  OUTPUT: text that a successful script printed
05.quiet             OK         0.002 Sun Nov 22 11:59:29 2026
10.off               DISABLED  
20.other             ERROR      0.002 Sun Nov 22 11:59:29 2026
  OUTPUT:
    first line
    second line
30.late              TIMEDOUT   Sun Nov 22 11:59:29 2026
  OUTPUT: 
40.gone              CANNOT RUN (No such file or directory)
  OUTPUT: 
50.killed            CANNOT RUN (Interrupted system call)
  OUTPUT: 
";
        assert_eq!(status(&view, &TimeZone::UTC), wanted);
    }

    #[test]
    fn scripts_with_their_marks() {
        let script = |name: &str, enabled, shipped| ScriptView {
            name: name.into(),
            enabled,
            shipped,
        };
        let view = ScriptsView {
            scripts: vec![
                script("50.samba", false, true),
                script("00.ok", true, false),
            ],
        };
        assert_eq!(scripts(&view), "  50.samba\n\n* 00.ok\n");
    }
}
