//! The old command line, byte for byte (`spec/cli.md` 6.1 to 6.5): its options, its commands,
//! its texts, its exit codes. Scripts and monitoring of twenty years read them.

use std::cell::RefCell;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;

use ctdb_wire::api::NodesView;
use ctdb_wire::ids::NodeFlags;
use serde::de::DeserializeOwned;

use super::client::{Client, ClientError};
use crate::dbclient::Connection;

mod commands;
mod connections;
mod controls;
mod databases;
pub mod options;
pub(in crate::cli) mod records;
pub mod table;
pub mod text;

use options::Options;
use table::Class;
use text::Style;

/// Exit code where a daemon did not answer in time (ETIMEDOUT).
const TIMED_OUT: u8 = 110;

/// What an old command does; its result is the exit code.
pub type Run = fn(&mut Tool, &[String]) -> Result<u8, End>;

/// Reads the nodes list: numbers and addresses of what is not deleted, or the name of the source
/// that cannot be read.
pub type NodesList<'a> = &'a dyn Fn() -> Result<Vec<(u32, IpAddr)>, String>;

/// How an old command ends when it does not succeed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// Wrong number of arguments: its usage on standard output, exit code 1.
    Usage,
    /// A text on standard error.
    Error {
        /// Without the last newline.
        text: String,
        /// Exit code.
        code: u8,
    },
    /// A text on standard output, exit code 1.
    Stdout(String),
}

impl End {
    fn error(text: impl Into<String>) -> Self {
        Self::Error {
            text: text.into(),
            code: 1,
        }
    }

    fn stdout(text: impl Into<String>) -> Self {
        Self::Stdout(text.into())
    }
}

/// What a running command has.
pub struct Tool<'a> {
    /// The options.
    pub options: &'a Options,
    /// The daemon.
    pub client: &'a Client,
    /// The source of `listnodes`.
    pub nodes_list: NodesList<'a>,
    /// Where CTDB's helper programs are.
    pub helpers: &'a Path,
    /// To the client socket, once it was needed.
    connection: RefCell<Option<Connection>>,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl Tool<'_> {
    fn style(&self) -> Style<'_> {
        Style {
            machine: self.options.machine.then_some(&*self.options.separator),
            verbose: self.options.verbose,
        }
    }

    /// Prints, and ends well. A reader that has gone is no error of the command.
    #[allow(clippy::unnecessary_wraps, reason = "the last step of most commands")]
    fn print(&mut self, text: &str) -> Result<u8, End> {
        let _ = self.out.write_all(text.as_bytes());
        Ok(0)
    }

    /// Prints bytes; a reader that has gone is no error of the command.
    fn write(&mut self, bytes: &[u8]) {
        let _ = self.out.write_all(bytes);
    }

    fn complain(&mut self, line: &str) {
        let _ = writeln!(self.err, "{line}");
    }

    /// The node of `-n`.
    fn target(&self) -> Option<u32> {
        self.options.node
    }

    /// `path` of the node of `-n`.
    fn at(&self, path: &str) -> String {
        match self.options.node {
            Some(node) => format!("{path}?node={node}"),
            None => path.to_owned(),
        }
    }

    /// Reads from the target; `control` is what the old tool would have asked.
    fn get<T: DeserializeOwned>(&self, control: &str, path: &str) -> Result<T, End> {
        self.client
            .get(&self.at(path))
            .map_err(|error| self.refused(control, &error))
    }

    /// How a request that failed is told (`spec/cli.md` 6.1, common errors).
    fn refused(&self, control: &str, error: &ClientError) -> End {
        match error {
            ClientError::Connect { path, source } => {
                let mut text = format!(
                    "connect() failed, errno={}\nFailed to connect to CTDB daemon ({})",
                    source.raw_os_error().unwrap_or(0),
                    // The old tool's socket, whichever was tried.
                    path.with_file_name("ctdbd.socket").display()
                );
                let why = match (self.nodes_list)() {
                    Err(source) => Some(format!("Failed to read nodes file \"{source}\"")),
                    Ok(nodes) if !nodes.iter().any(is_local) => {
                        Some("Failed to detect PNN of the current node.".to_owned())
                    }
                    Ok(_) => None,
                };
                if let Some(why) = why {
                    text.push('\n');
                    text.push_str(&why);
                    text.push_str("\nIs this node part of CTDB cluster?");
                }
                End::error(text)
            }
            ClientError::RunTime(_) => End::error("Maximum runtime exceeded - exiting"),
            ClientError::TimedOut(_) => {
                let text = match self.options.node {
                    Some(node) => format!("Control {control} failed to node {node}, ret=110"),
                    None => format!("Control {control} failed, ret=110"),
                };
                End::Error {
                    text,
                    code: TIMED_OUT,
                }
            }
            ClientError::Refused(refusal) if refusal.status == 504 => {
                let text = format!("Control {control} failed, ret=110\n{refusal}");
                End::Error {
                    text,
                    code: TIMED_OUT,
                }
            }
            // The second line is ours: what is wrong and what to do.
            other => End::error(format!("Control {control} failed, ret=-1\n{other}")),
        }
    }

    /// The same, with what could not be done in the end. After a time-out nothing has failed yet:
    /// it may be under way.
    fn failed(&self, control: &str, error: &ClientError, what: impl FnOnce() -> String) -> End {
        match self.refused(control, error) {
            End::Error { text, code }
                if code != TIMED_OUT && matches!(error, ClientError::Refused(_)) =>
            {
                End::Error {
                    text: format!("{text}\n{}", what()),
                    code,
                }
            }
            other => other,
        }
    }
}

/// Whether an entry of the nodes list is an address of this host.
fn is_local((_, address): &(u32, IpAddr)) -> bool {
    std::net::UdpSocket::bind((*address, 0)).is_ok()
}

/// Runs an old command line; the result is the exit code.
pub fn run(
    options: &Options,
    client: &Client,
    nodes_list: NodesList,
    helpers: &Path,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let Some((name, args)) = options.words.split_first() else {
        let text = if options.usage {
            table::BRIEF.to_owned()
        } else {
            table::usage()
        };
        let _ = out.write_all(text.as_bytes());
        return u8::from(!(options.help || options.usage));
    };
    let Some(command) = table::find(name) else {
        let _ = writeln!(err, "Unknown command '{name}'");
        return 1;
    };
    if options.help || options.usage {
        let _ = out.write_all(table::usage_of(command).as_bytes());
        return 0;
    }
    let mut tool = Tool {
        options,
        client,
        nodes_list,
        helpers,
        connection: RefCell::new(None),
        out,
        err,
    };
    let end = check(&tool, command).and_then(|()| (command.run)(&mut tool, args));
    match end {
        Ok(code) => code,
        Err(End::Usage) => {
            let _ = tool.print(&table::usage_of(command));
            1
        }
        Err(End::Stdout(text)) => {
            let _ = tool.print(&format!("{text}\n"));
            1
        }
        Err(End::Error { text, code }) => {
            tool.complain(&text);
            code
        }
    }
}

/// Options that the command does not take, and nodes that cannot answer.
fn check(tool: &Tool, command: &table::Command) -> Result<(), End> {
    let options = tool.options;
    if options.json && options.machine {
        return Err(End::error("--json and -Y options are mutually exclusive"));
    }
    if options.json && !command.json {
        let text = format!("--json not supported by the {} subcommand", command.name);
        return Err(End::error(text));
    }
    // The old tool connects before it looks at arguments.
    if command.class != Class::WithoutDaemon {
        tool.client
            .try_connect()
            .map_err(|error| tool.refused(command.name, &error))?;
    }
    let Some(wanted) = options.node else {
        return Ok(());
    };
    if command.class == Class::WithoutDaemon {
        return Err(End::error(format!(
            "Cannot specify node for command {}",
            command.name
        )));
    }
    let view: NodesView = tool
        .client
        .get("/v1/nodes")
        .map_err(|error| tool.refused("GET_NODEMAP", &error))?;
    let Some(node) = view.nodes.iter().find(|node| node.pnn == wanted) else {
        return Err(End::error(format!("Node {wanted} does not exist")));
    };
    if node
        .flags
        .intersects(NodeFlags::DISCONNECTED | NodeFlags::DELETED)
    {
        return Err(End::error(format!(
            "Node {wanted} has status {}",
            node.flags
        )));
    }
    if command.class == Class::LocalOnly && wanted != view.node {
        let text = format!("Node cannot be specified for command {}", command.name);
        return Err(End::error(text));
    }
    Ok(())
}
