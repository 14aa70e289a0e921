//! Children of a test laboratory: the plain TCP service of a node, and the watchdog that removes
//! a lab whose maker died. Started by `ctdb_tests::lab` only.
#![forbid(unsafe_code)]

use std::io::Read as _;
use std::net::SocketAddr;

use anyhow::Result;
use clap::Parser;
use ctdb_tests::lab;

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
    /// Waits for the end of standard input; unless it was told `done` or `keep`, removes the lab.
    Watch {
        /// The lab's name.
        #[arg(long)]
        name: String,
    },
    /// Removes a lab that was kept.
    Destroy {
        /// The lab's name.
        #[arg(long)]
        name: String,
    },
}

fn main() -> Result<()> {
    match Role::parse() {
        Role::Serve { node, listen } => lab::plain::serve(node, listen),
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
