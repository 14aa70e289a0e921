//! The node daemon; see `ctdbd::daemon`.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use ctdbd::daemon::{self, Options};
use ctdbd::guard;

/// Node daemon of a clustered file server: membership, public addresses, cluster databases.
///
/// Without arguments it goes to the background, writes its pid file and serves. Configuration is
/// read from /etc/ctdb; `ctdb config check` says what is wrong with it. SIGTERM stops it in order:
/// its addresses are handed over first. SIGHUP reopens the log file.
#[derive(Parser)]
#[command(name = "ctdbd", version)]
struct Arguments {
    /// Stay in the foreground; log to standard error unless [logging] location says otherwise.
    #[arg(short, long)]
    interactive: bool,
    /// Used by the daemon itself.
    #[arg(long, hide = true)]
    background_child: bool,
}

fn main() -> ExitCode {
    let raw: Vec<OsString> = std::env::args_os().collect();
    if let Some(arguments) = guard::arguments(&raw) {
        return guard::run(&arguments);
    }
    if let Some(code) = ctdbd::lock::helper::run(&raw) {
        return code;
    }
    let arguments = Arguments::parse();
    let options = Options {
        interactive: arguments.interactive,
        background_child: arguments.background_child,
    };
    match daemon::run(options) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ctdbd: {error}");
            tracing::error!("{error}");
            error.exit_code()
        }
    }
}
