//! The command line `ctdb`: the new form `ctdb COMPONENT VERB`, one module per component, and
//! the old commands of CTDB ([`legacy`]).
//!
//! The first word decides which of both a command line is (`spec/cli.md` 7.1). `ip` without a
//! verb, or with `all`, is the old command.
//!
//! A command is one or two HTTP exchanges with the daemon ([`client`]) and a text that a pure
//! function makes of the answer; nothing is started for it.

use std::ffi::OsString;
use std::io::Write;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use ctdb_wire::api::{DaemonView, Done};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::{self, Paths};

pub mod args;
pub mod client;
pub mod cluster;
pub mod configuration;
pub mod conntrack;
mod db;
mod debug;
pub mod event;
pub mod failure;
pub mod interface;
pub mod ip;
pub mod legacy;
pub mod log;
pub mod node;
pub mod process;
pub mod table;

use args::{Cli, Component, Global};
use client::{Client, ClientError};
use failure::{Exit, Failure};

/// The release, as `ctdb version` prints it.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");

/// `-T` where neither it nor CTDB_TIMEOUT is given, in seconds.
const RUN_TIME: u64 = 120;

/// What a command finds around it.
pub struct Surroundings {
    /// Where the daemon's sockets and files are.
    pub paths: Paths,
    /// CTDB_TIMEOUT.
    pub timeout: Option<String>,
}

/// The process `ctdb`: arguments and environment in, exit code out.
pub fn main() -> ExitCode {
    // Anything else in place of such a byte would be another key, or another file.
    let args: Result<Vec<String>, OsString> = std::env::args_os()
        .skip(1)
        .map(OsString::into_string)
        .collect();
    let args = match args {
        Ok(args) => args,
        Err(arg) => {
            let text = format!(
                "ctdb: the argument {} is not UTF-8; bytes of keys and values are given as \\ and \
                 two hex digits, or from a file",
                arg.display()
            );
            let _ = writeln!(std::io::stderr(), "{text}");
            return ExitCode::from(Exit::Usage.code());
        }
    };
    let surroundings = Surroundings {
        paths: Paths::from_env(),
        timeout: std::env::var("CTDB_TIMEOUT").ok(),
    };
    // One write for all of it, unless it is much.
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let code = run(
        &args,
        &surroundings,
        &mut out,
        &mut std::io::stderr().lock(),
    );
    // A reader that has gone (`ctdb ip | head -1`) is no error of the command.
    let _ = out.flush();
    ExitCode::from(code)
}

/// Runs one command line; the result is the exit code.
pub fn run(
    args: &[String],
    surroundings: &Surroundings,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    if let Some(problem) = &surroundings.paths.unusable {
        let _ = writeln!(err, "ctdb: {problem}");
        return 1;
    }
    if is_new_form(args) {
        new_form(args, surroundings, out, err)
    } else {
        old_form(args, surroundings, out, err)
    }
}

/// Whether a command line is of the form `ctdb COMPONENT VERB`.
fn is_new_form(args: &[String]) -> bool {
    let help = args.iter().any(|arg| arg == "--help" || arg == "-h");
    match legacy::options::words(args)[..] {
        [] => help || args.iter().any(|arg| arg == "--version" || arg == "-V"),
        // An old command unless a verb follows.
        ["ip", word, ..] if !help && !args::is_verb("ip", word) => false,
        ["ip"] | ["status" | "version", ..] => help,
        [word, ..] => args::COMPONENTS.contains(&word),
    }
}

fn run_time(given: Option<u64>, surroundings: &Surroundings) -> Result<Duration, String> {
    let seconds = match (given.filter(|seconds| *seconds > 0), &surroundings.timeout) {
        (Some(seconds), _) => seconds,
        (None, Some(text)) => {
            let seconds: u64 = text
                .trim()
                .parse()
                .map_err(|_| "Invalid value CTDB_TIMEOUT")?;
            if seconds == 0 { RUN_TIME } else { seconds }
        }
        (None, None) => RUN_TIME,
    };
    Ok(Duration::from_secs(seconds))
}

fn client(paths: &Paths, request: u64, run: Duration) -> Client {
    let request = Duration::from_secs(request.max(1));
    Client::new(&paths.api_socket, &paths.api_read_socket, request, run)
}

fn old_form(
    args: &[String],
    surroundings: &Surroundings,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let started = legacy::options::parse(args)
        .map_err(|error| error.to_string())
        .and_then(|options| Ok((run_time(Some(options.max_runtime), surroundings)?, options)));
    let (run_time, options) = match started {
        Ok(started) => started,
        Err(text) => {
            let _ = writeln!(err, "{text}");
            return 1;
        }
    };
    let client = client(&surroundings.paths, options.time_limit, run_time);
    let nodes_list = || nodes_list(&surroundings.paths);
    let helpers = &surroundings.paths.helpers;
    legacy::run(&options, &client, &nodes_list, helpers, out, err)
}

/// Numbers and addresses of the nodes list; its source if it cannot be read.
fn nodes_list(paths: &Paths) -> Result<Vec<(u32, IpAddr)>, String> {
    let (nodes, report) = config::load_nodes(paths);
    let source = || {
        report
            .problems
            .first()
            .map_or(&paths.nodes, |problem| &problem.file)
    };
    nodes
        .map(|nodes| {
            nodes
                .active()
                .map(|node| (node.pnn.get(), node.address))
                .collect()
        })
        .ok_or_else(|| source().display().to_string())
}

fn new_form(
    args: &[String],
    surroundings: &Surroundings,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let words = std::iter::once("ctdb").chain(args.iter().map(String::as_str));
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            let _ = write!(err, "{error}");
            return Exit::Usage.code();
        }
        Err(help) => {
            let _ = write!(out, "{help}");
            return 0;
        }
    };
    match component(&cli, surroundings, out, err) {
        Ok(text) => {
            let _ = out.write_all(text.as_bytes());
            0
        }
        Err(failure) => {
            if cli.global.json && !failure.told {
                let _ = writeln!(out, "{:#}", failure.json(cli.global.node));
            }
            // An old command has said it all on standard output.
            if failure.bare {
                let _ = writeln!(err, "{failure}");
            } else if !failure.message.is_empty() {
                let _ = writeln!(err, "ctdb: {failure}");
            }
            failure.exit.code()
        }
    }
}

/// What the command prints at its end.
fn component(
    cli: &Cli,
    surroundings: &Surroundings,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<String, Failure> {
    let run_time = run_time(cli.global.maxruntime, surroundings)
        .map_err(|text| Failure::new(Exit::Usage, "usage", text))?;
    let asking = Asking {
        client: client(&surroundings.paths, cli.global.timelimit, run_time),
        global: cli.global.clone(),
    };
    match &cli.component {
        Component::Status => {
            let snapshot = asking.client.get(&asking.at("/v1/status"))?;
            let style = legacy::text::Style {
                machine: None,
                verbose: false,
            };
            Ok(if cli.global.json {
                legacy::text::status_json(&snapshot)
            } else {
                legacy::text::status(&snapshot, style)
            })
        }
        Component::Version if cli.global.json => Ok(legacy::text::version_json(RELEASE)),
        Component::Version => Ok(format!("{RELEASE}\n")),
        Component::Cluster(verb) => cluster::run(&asking, verb),
        Component::Node(verb) => node::run(&asking, verb),
        Component::Ip(verb) => ip::run(&asking, verb),
        Component::Interface(verb) => interface::run(&asking, verb),
        Component::Conntrack(verb) => conntrack::run(&asking, verb, out),
        Component::Process(verb) => process::run(&asking, verb),
        Component::Event(verb) => event::run(&asking, verb, &surroundings.paths, out),
        Component::Config(verb) => configuration::run(&asking, verb, &surroundings.paths),
        Component::Log(verb) => log::run(&asking, verb),
        Component::Debug(verb) => debug::run(&cli.global, verb, out).map(|()| String::new()),
        Component::Db(verb) => db::run(&asking, verb, out, err).map(|()| String::new()),
        Component::Manual { dir } => write_manual(dir),
        Component::Completions { shell } => {
            Ok(String::from_utf8_lossy(&args::completions(*shell)).into_owned())
        }
    }
}

/// Writes the manual pages.
fn write_manual(dir: &std::path::Path) -> Result<String, Failure> {
    let pages = args::manual();
    let written = pages.and_then(|pages| {
        pages
            .into_iter()
            .try_for_each(|(name, page)| std::fs::write(dir.join(name), page))
    });
    written.map(|()| String::new()).map_err(|error| {
        let text = format!("writing manual pages to {}: {error}", dir.display());
        Failure::new(Exit::Failed, "io", text)
    })
}

/// What a command of the new form asks with.
pub struct Asking {
    client: Client,
    global: Global,
}

impl Asking {
    /// `path` of the node of `-n`.
    fn at(&self, path: &str) -> String {
        match self.global.node {
            Some(node) => format!("{path}?node={node}"),
            None => path.to_owned(),
        }
    }

    /// Reads `path`, and prints it as JSON or as `text` makes it.
    fn show<T: DeserializeOwned>(
        &self,
        path: &str,
        text: impl FnOnce(&T) -> String,
    ) -> Result<String, Failure> {
        if self.global.json {
            return Ok(pretty(&self.client.get::<Value>(path)?));
        }
        Ok(text(&self.client.get(path)?))
    }

    /// Has something changed, and prints what was done.
    fn change(&self, path: &str, body: &Value) -> Result<String, Failure> {
        Ok(self.done(&self.client.post(path, body)?))
    }

    fn done(&self, done: &Done) -> String {
        if self.global.json {
            return pretty(&serde_json::json!({
                "changed": done.changed,
                "message": done.message,
            }));
        }
        match (done.changed, done.message.as_str()) {
            (_, "") => String::new(),
            (true, message) => format!("{message}\n"),
            (false, message) => format!("{message} (nothing to do)\n"),
        }
    }

    /// The node that is meant: an argument, `-n`, or this node.
    fn node(&self, argument: Option<u32>) -> Result<u32, ClientError> {
        match argument.or(self.global.node) {
            Some(node) => Ok(node),
            None => Ok(self.client.get::<DaemonView>("/v1/daemon")?.node),
        }
    }
}

/// JSON for people and programs.
fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

#[cfg(test)]
mod tests;
