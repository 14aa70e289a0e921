//! Children of a test laboratory: the plain TCP service of a node, and the watchdog that removes
//! a lab whose maker died, started by `ctdb_tests::lab` only; and `cargo xtask lab`, a shell in a
//! running cluster.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::Read as _;
use std::net::SocketAddr;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use ctdb_tests::lab::{self, Service};

#[derive(Parser)]
enum Role {
    /// Answers each connection with `node N` and then sends back what it gets.
    Serve {
        /// The number to answer with.
        #[arg(long)]
        node: u32,
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Holds idle connections to the public addresses of a stage's server, whose namespace it is
    /// started in, until its standard input ends.
    Crowd {
        /// The client's namespace.
        #[arg(long)]
        client: String,
        /// The server's port.
        #[arg(long)]
        port: u16,
        /// How many.
        #[arg(long)]
        count: usize,
    },
    /// Holds idle connections to the servers that its standard input names, up to an empty line,
    /// and says when each was told that it is gone.
    Hold {
        /// The client's namespace.
        #[arg(long)]
        client: String,
    },
    /// Waits for the end of standard input; unless it was told `done` or `keep`, removes the lab.
    Watch {
        /// The lab's name.
        #[arg(long)]
        name: String,
    },
    /// Opens a shell in a running cluster; at its end the cluster goes away
    Shell {
        /// The node whose network the shell is in; the client's if none is named
        #[arg(long)]
        node: Option<u32>,
        /// Number of nodes
        #[arg(long, default_value_t = 3)]
        nodes: u32,
        /// Timing profile: cautious, standard or fast
        #[arg(long, default_value = "standard")]
        profile: String,
        /// Words to run instead of a shell
        #[arg(trailing_var_arg = true)]
        command: Vec<OsString>,
    },
    /// Removes a lab that was kept.
    Destroy {
        /// The lab's name.
        #[arg(long)]
        name: String,
    },
}

/// Builds a cluster, opens the shell, and takes everything away again.
fn shell(lab: &lab::Lab, node: Option<u32>, words: &[OsString]) -> Result<ExitStatus> {
    println!("starting {} nodes ...", lab.nodes().len());
    lab.bring_up(
        &[Service::Plain, Service::Ssh, Service::Smb],
        Duration::from_secs(30),
    )?;
    println!("{}", lab.node(0).ctdb(&["status"])?.success()?);
    println!("{}", lab.node(0).ctdb(&["ip"])?.success()?);
    println!("Other places of this cluster:\n\n{}", lab.how_to_enter());
    lab.shell(node, words)?
        .status()
        .context("starting the shell")
}

fn main() -> Result<ExitCode> {
    match Role::parse() {
        Role::Shell {
            node,
            nodes,
            profile,
            command,
        } => {
            let lab = lab::Lab::builder().nodes(nodes).profile(&profile).build()?;
            anyhow::ensure!(
                node.is_none_or(|n| n < nodes),
                "there are nodes 0 to {}",
                nodes - 1
            );
            let status = shell(&lab, node, &command)?;
            let left = lab.destroy();
            anyhow::ensure!(left.is_empty(), "could not remove: {}", left.join(", "));
            Ok(status
                .code()
                .and_then(|c| u8::try_from(c).ok())
                .unwrap_or(1)
                .into())
        }
        other => children(other).map(|()| ExitCode::SUCCESS),
    }
}

fn children(role: Role) -> Result<()> {
    match role {
        Role::Shell { .. } => Ok(()),
        Role::Serve { node, listen } => lab::plain::serve(node, listen),
        Role::Crowd {
            client,
            port,
            count,
        } => lab::stage::hold(&client, port, count),
        Role::Hold { client } => lab::held::hold(&client),
        Role::Destroy { name } => {
            lab::netns::destroy(&name);
            let left = lab::netns::remains(&name);
            anyhow::ensure!(left.is_empty(), "could not remove: {}", left.join(", "));
            Ok(())
        }
        Role::Watch { name } => {
            // Out of the terminal's reach: Ctrl-C is for the lab's maker.
            let _ = nix::unistd::setsid();
            let mut told = String::new();
            let _ = std::io::stdin().read_to_string(&mut told);
            if !matches!(told.trim(), "done" | "keep") {
                lab::netns::destroy(&name);
            }
            Ok(())
        }
    }
}
