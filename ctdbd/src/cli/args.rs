//! The new form of the command line: `ctdb COMPONENT VERB`, and the help that teaches it.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

mod db;

pub use db::{
    Convert, Db, DbClient, DbFile, Filed, Format, HashName, KindName, Mode, Order, Put, YesNo,
};

const ABOUT: &str = "Runs and watches a cluster of file servers that fail over for each other";

const LONG_ABOUT: &str = "\
Runs and watches a cluster of file servers that fail over for each other.

Every command talks to the daemon on this node over /run/ctdb/api.sock (or api-ro.sock, for users \
who may only read); with -n the daemon has another node answer.

The commands of CTDB (`ctdb status`, `ctdb ip`, `ctdb disable`, `ctdb -X nodestatus` ...) are all \
there with their old output and exit codes; `ctdb -?` lists them.";

const EXIT_CODES: &str = "\
Exit codes:
  0   done
  1   failed; the message says why and what to do
  2   there is no such node, address, interface, file or key
  3   not possible in this state (no leader, address cannot be hosted there ...)
  4   not done in time
  64  wrong arguments

Examples:
  ctdb status                     the whole cluster, as CTDB prints it
  ctdb node list                  every node, its state and why
  ctdb ip list                    every public address and who serves it
  ctdb ip why 10.0.0.1            why it is where it is
  ctdb node disable 2             take node 2 out of service, addresses first
  ctdb cluster history            what failed over, why, how long it took
  ctdb --json ip list             the same for programs";

/// The whole command line.
#[derive(Parser, Debug)]
#[command(
    name = "ctdb",
    about = ABOUT,
    long_about = LONG_ABOUT,
    after_help = EXIT_CODES,
    version = super::RELEASE,
    max_term_width = 100
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub component: Component,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Print JSON: the object of the daemon's HTTP API; errors as {"error": ...}
    #[arg(short, long, global = true)]
    pub json: bool,
    /// The node that is to answer or to act, by its number [default: this one]
    #[arg(short, long, global = true, value_name = "PNN")]
    pub node: Option<u32>,
    /// Seconds that a question may take
    #[arg(
        short,
        long,
        global = true,
        alias = "timeout",
        value_name = "S",
        default_value_t = 10
    )]
    pub timelimit: u64,
    /// Seconds that the whole command may take; changes wait for their effect as long
    /// [default: CTDB_TIMEOUT, else 120]
    #[arg(short = 'T', long, global = true, value_name = "S")]
    pub maxruntime: Option<u64>,
}

/// Components.
#[derive(Subcommand, Debug)]
pub enum Component {
    /// The whole state, as CTDB prints it
    #[command(
        long_about = "Prints the whole state, as CTDB prints it: nodes with their flags, \
        generation, location masters, recovery mode, leader.\n\nNever waits for anything, and \
        exits 0 whatever the state is; `ctdb nodestatus` has the flags in its exit code. `-X` is \
        for scripts, `--json` for programs."
    )]
    Status,
    /// The cluster as a whole: leader, right to serve, what happened
    #[command(subcommand)]
    Cluster(Cluster),
    /// Nodes: show them, take them out of service and back
    #[command(subcommand)]
    Node(Node),
    /// Public addresses: where they are, why, and moving them
    #[command(subcommand)]
    Ip(Ip),
    /// Network interfaces that carry public addresses
    #[command(subcommand)]
    Interface(Interface),
    /// Events and their scripts
    #[command(subcommand)]
    Event(Event),
    /// TCP connections to public addresses: who is connected, and telling or ending them
    #[command(subcommand)]
    Conntrack(Conntrack),
    /// Child processes of the daemon: event scripts, lock helpers and others
    #[command(subcommand)]
    Process(Process),
    /// Configuration and cluster key
    #[command(subcommand)]
    Config(Config),
    /// The daemon's log
    #[command(subcommand)]
    Log(Log),
    /// Databases and their records; their files can be looked into without a daemon
    #[command(subcommand)]
    Db(Db),
    /// What helps to understand what a daemon did
    #[command(subcommand)]
    Debug(Debugging),
    /// The release
    Version,
    /// Prints completions for a shell
    #[command(after_help = "Example:\n  ctdb completions bash > /etc/bash_completion.d/ctdb")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Writes the manual pages of all components and verbs into a directory
    #[command(after_help = "Example:\n  ctdb manual /usr/local/share/man/man1")]
    Manual {
        /// Where to
        dir: PathBuf,
    },
}

/// `ctdb cluster`
#[derive(Subcommand, Debug)]
pub enum Cluster {
    /// Leader, right to serve, generation, counts of nodes and addresses
    #[command(
        long_about = "Shows leader, right to serve, generation, and how many nodes are \
        healthy and addresses served, as this node sees it.\n\n*Right* is this node's permission \
        to serve addresses: it lasts for the lease length from the last heartbeat that enough \
        nodes answered. A node without right is silent."
    )]
    Status,
    /// The leader, and what it knows of every node
    #[command(
        long_about = "Asks the leader for its books: for each node whether it has answered \
        in this term (known), has not yet (unknown), or cannot hold anything (dead). An address \
        is given away only when no node can hold it any more.\n\nExits 2 if there is no leader."
    )]
    Leader,
    /// The cluster lock: who holds it, how long taking it took, age of the last proof
    #[command(
        long_about = "Shows the cluster lock as this node (or that of -n) sees it. A node that \
        does not lead does not take it.\n\nExits 2 if none is configured."
    )]
    Lock,
    /// What happened, why, and how long each phase took
    #[command(after_help = "Example:\n  ctdb cluster history --last 20\n  \
        ctdb --json cluster history | jq '.records[] | select(.kind==\"takeover\")'")]
    History {
        /// Only the last N records
        #[arg(long, value_name = "N")]
        last: Option<usize>,
    },
    /// Recover all databases
    #[command(
        long_about = "Has all databases recovered: their copies are collected, merged and spread \
            again. Clients wait meanwhile, nothing is lost. Never needed in operation; returns when \
            all are served."
    )]
    Recover,
}

/// `ctdb node`
#[derive(Subcommand, Debug)]
pub enum Node {
    /// Every node, its state and why
    List,
    /// All that is known of one node
    Status {
        /// Its number [default: this node]
        pnn: Option<u32>,
    },
    /// Give the node's addresses away and take no new ones
    #[command(
        long_about = "Gives the node's addresses away, in order and without a gap, and takes no \
            new ones until `ctdb node enable`. Databases stay; clients of other addresses notice \
            nothing.\n\nReturns when the addresses have moved. Does not outlive a restart of the \
            daemon; set `[legacy] start as disabled = true` for that.",
        after_help = "Example, before work on node 2:\n  ctdb node disable 2 --reason 'new disk'\n  \
            ctdb node status 2\n  ctdb node enable 2"
    )]
    Disable(Change),
    /// Let the node serve again
    Enable(Target),
    /// Take the node out of the cluster's work until `start`
    #[command(
        long_about = "As disable, and its databases are frozen and leave the cluster: \
        Samba on the node stops serving. Returns when the addresses have moved."
    )]
    Stop(Change),
    /// Let a stopped node work again
    Start(Target),
    /// As `stop`, for a limited time
    Ban {
        /// Which node, and why
        #[command(flatten)]
        change: Change,
        /// For how many seconds
        #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
        time: u32,
    },
    /// End a ban
    Unban(Target),
    /// What stands against nodes that failed at their work, and how much of it bans them
    #[command(
        long_about = "Shows what the leader counts against each node: one credit for each order \
        to take addresses that it could not carry out. As many as twice the number of nodes ban it \
        for RecoveryBanPeriod, if others can do its work and EnableBans is not 0; after \
        RecoveryGracePeriod without a failure they are forgiven."
    )]
    Credits,
    /// Take on a changed nodes list, on all nodes
    #[command(
        long_about = "Reads the nodes list again (a file, or the command of `[cluster] nodes \
        list`), sees that every linked node has the same, and has them take it on, the leader \
        first. One node more or less at a time: a node whose line was commented out is deleted, \
        and has to be down. A list that cannot be had, or that differs between the nodes, changes \
        nothing.",
        after_help = "Example, a new node:\n  (append its address to /etc/ctdb/nodes on all \
        nodes)\n  ctdb node reload --dry-run\n  ctdb node reload"
    )]
    Reload {
        /// Only say what would change
        #[arg(long)]
        dry_run: bool,
    },
    /// End the node's daemon, gracefully
    #[command(
        long_about = "Hands the node's addresses over, stops its services and ends its \
        daemon. For this node the command returns when the daemon has ended."
    )]
    Shutdown(Target),
}

/// Which node.
#[derive(Args, Debug)]
pub struct Target {
    /// The node's number [default: that of --node, else this node]
    pub pnn: Option<u32>,
}

/// Which node, and why.
#[derive(Args, Debug)]
pub struct Change {
    /// Which.
    #[command(flatten)]
    pub target: Target,
    /// Shown with the node's state, so that others know why
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
}

/// `ctdb ip`
#[derive(Subcommand, Debug)]
pub enum Ip {
    /// Every public address and who serves it
    List,
    /// All that is known of one address
    Show {
        /// The address
        address: IpAddr,
    },
    /// What a takeover run would do now; changes nothing
    Plan,
    /// Move an address to another node
    #[command(
        long_about = "Moves an address: the old node falls silent, then the new one begins. \
            Returns when the new node serves it. The next takeover run may move it again; `ctdb \
            ip plan` shows what it would do.",
        after_help = "Example:\n  ctdb ip move 10.0.0.1 2"
    )]
    Move {
        /// The address
        address: IpAddr,
        /// The node that shall serve it
        pnn: u32,
    },
    /// Distribute all addresses anew
    #[command(
        long_about = "Has the leader look at all addresses again and carry out what \
        follows. Returns when every order is carried out. `ctdb ip plan` shows beforehand what \
        will move."
    )]
    Reallocate,
    /// Read the public addresses file of a node again
    #[command(
        long_about = "Reads /etc/ctdb/public_addresses again on this node (or that of -n): \
        new addresses are taken into account, those no longer named are given up. A file with \
        mistakes changes nothing."
    )]
    Reload,
    /// Tell the network where an address is
    #[command(
        long_about = "Sends gratuitous ARP or neighbour advertisements for one address, or \
        for all that the node serves: for switches and routers that did not notice a move."
    )]
    Announce {
        /// The address [default: all that the node serves]
        address: Option<IpAddr>,
        /// Where to announce an address that is no public address of the cluster
        #[arg(long, requires = "address")]
        interface: Option<String>,
    },
    /// Why an address is where it is, in one line; with --all also who else could host it
    Why {
        /// The address
        address: IpAddr,
        /// For every node why it could or could not host it
        #[arg(long)]
        all: bool,
    },
    /// What happened to an address, or to all: takeovers and releases of all nodes
    #[command(
        long_about = "Shows when which node took over or released an address, why, and how long \
        each phase took, as all nodes that can be reached remember it."
    )]
    History {
        /// The address [default: all]
        address: Option<IpAddr>,
        /// Only the last N records
        #[arg(long, value_name = "N")]
        last: Option<usize>,
    },
}

/// `ctdb interface`
#[derive(Subcommand, Debug)]
pub enum Interface {
    /// Interfaces, their links, and how many addresses each carries
    List,
    /// Take an interface's link for up or down
    #[command(
        long_about = "Takes an interface's link for down: its addresses move to another \
        interface or node. `up` ends that; a link without carrier stays down all the same."
    )]
    Link {
        /// The interface
        name: String,
        /// Its link
        link: Link,
    },
}

/// `ctdb event`
#[derive(Subcommand, Debug)]
pub enum Event {
    /// The last run of each event
    List,
    /// The last runs of all events, the newest at the end
    History {
        /// Only the last N
        #[arg(long, value_name = "N")]
        last: Option<usize>,
    },
    /// Runs as they end, until it is interrupted
    Tail {
        /// So many that have ended already, first
        #[arg(long, value_name = "N", default_value_t = 10)]
        lines: usize,
    },
    /// Run an event now
    #[command(
        long_about = "Runs the scripts of an event on this node (or that of -n) and waits for \
            their end. Exits 0 if all succeeded, 8 if one failed, 46 if the time was over, 61 if \
            it was given up for another event.",
        after_help = "Example:\n  ctdb event run 30 legacy monitor"
    )]
    Run {
        /// Seconds for all scripts together; 0: no limit
        timeout: u32,
        /// Component, a directory below /etc/ctdb/events
        component: String,
        /// Event
        event: String,
        /// Its arguments
        args: Vec<String>,
        /// Go on behind a script that fails
        #[arg(long)]
        all: bool,
    },
    /// What the scripts of the last run said, and how long they took
    #[command(after_help = "Example:\n  ctdb event status legacy monitor")]
    Status {
        /// Component
        component: String,
        /// Event
        event: String,
    },
    /// Scripts: show them, enable, disable
    #[command(subcommand)]
    Script(EventScript),
}

/// `ctdb event script`
#[derive(Subcommand, Debug)]
pub enum EventScript {
    /// Shipped ones and own ones; `*` marks those that are run
    List {
        /// Component
        component: String,
    },
    /// Have a script run, from the next event on
    Enable {
        /// Component
        component: String,
        /// Script, such as 50.samba
        script: String,
    },
    /// Have it run no more
    Disable {
        /// Component
        component: String,
        /// Script
        script: String,
    },
}

/// `ctdb conntrack`
#[derive(Subcommand, Debug)]
pub enum Conntrack {
    /// Connections to public addresses, of all nodes
    #[command(
        long_about = "Lists the TCP connections to public addresses on all ports, of all nodes, as \
            this node knows them (or that of -n).\n\n*Node* is the node that has the connection; \
            `lost` is what a node left behind that is gone: its clients are told when the address \
            is taken.",
        after_help = "Examples:\n  ctdb conntrack list 10.0.0.1\n  ctdb conntrack list 10.0.0.1:445\n  \
            ctdb conntrack list --by client"
    )]
    List {
        /// Only those to ADDRESS or ADDRESS:PORT
        server: Option<String>,
        /// Group them: the channels of an SMB multichannel session stand together
        #[arg(long, conflicts_with = "server")]
        by: Option<By>,
    },
    /// All that is known of one connection: process, bytes
    Show {
        /// The client's end, ADDRESS:PORT
        client: SocketAddr,
        /// The server's end, ADDRESS:PORT
        server: SocketAddr,
    },
    /// Register connections, so that their clients are told when the address moves
    #[command(
        long_about = "Registers connections that the kernel does not show here. Without arguments \
            pairs are read from standard input, one CLIENT:PORT SERVER:PORT a line."
    )]
    Add(Pairs),
    /// Forget registered connections
    Del(Pairs),
    /// Destroy this node's sockets, as `ss -K` does
    Kill {
        /// All connections of the node to this address
        #[arg(long, conflicts_with_all = ["client", "server"])]
        address: Option<IpAddr>,
        /// Or these
        #[command(flatten)]
        pairs: Pairs,
    },
    /// Send one tickle from each server to its client
    #[command(
        long_about = "Sends an ACK with a wrong sequence number from each server to its client. A \
            client whose connection is gone is reset by what that provokes; one whose connection \
            is alive notices nothing."
    )]
    Tickle(Pairs),
    /// How connections are tracked, and counts
    Stats,
    /// Services that answer on public addresses over UDP
    Udp,
    /// Print connections as they begin and end
    Watch {
        /// End after this time
        #[arg(long, value_name = "S")]
        seconds: Option<u64>,
    },
}

/// Connections; without them those on standard input.
#[derive(Args, Debug)]
pub struct Pairs {
    /// The client's end, ADDRESS:PORT
    #[arg(requires = "server")]
    pub client: Option<SocketAddr>,
    /// The server's end, ADDRESS:PORT
    pub server: Option<SocketAddr>,
}

/// How connections are grouped.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum By {
    /// By the client's address
    Client,
}

/// `ctdb process`
#[derive(Subcommand, Debug)]
pub enum Process {
    /// Those that run, and the last that ended
    List,
    /// All that is known of one, with the head of its output
    #[command(after_help = "Example:\n  ctdb process list\n  ctdb process show 12")]
    Show {
        /// Its number in the list
        id: u64,
    },
}

/// What to take a link for.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// As the kernel says
    Up,
    /// Down
    Down,
}

/// `ctdb config`
#[derive(Subcommand, Debug)]
pub enum Config {
    /// Check all files under /etc/ctdb
    #[command(
        long_about = "Reads all files under /etc/ctdb as the daemon does, and prints what \
        is wrong: file, line, and what to do. Needs no daemon and changes nothing.\n\nExits 1 if \
        the daemon would not start; warnings and notes do not count."
    )]
    Check,
    /// Make the cluster key, and copy it to the other nodes
    #[command(
        long_about = "Makes the cluster key: 32 random bytes, in a file that only root can read. \
            Every node needs the same file; who has it is a member of the cluster.\n\nWith \
            --distribute the key is copied by ssh to every other node of the nodes list, on ssh's \
            standard input; a key that this node already has is copied, not replaced. A node that \
            has another key keeps it, unless --force is given.",
        after_help = "Example, on one node of a new cluster:\n  ctdb config keygen --distribute"
    )]
    Keygen {
        /// Copy the key to the other nodes by ssh
        #[arg(long)]
        distribute: bool,
        /// Replace a key that exists: nodes that keep the old one are locked out
        #[arg(long)]
        force: bool,
        /// The key file [default: that of `[security] key file`]
        #[arg(long, value_name = "PATH")]
        file: Option<PathBuf>,
    },
    /// Print an example of ctdb.conf: every key with its meaning, commented out
    Example,
    /// Print the configuration with all defaults
    Dump {
        /// What the daemon runs with, instead of what the files say now
        #[arg(long)]
        running: bool,
    },
}

/// `ctdb log`
#[derive(Subcommand, Debug)]
pub enum Log {
    /// Show or set the daemon's log level
    #[command(after_help = "Example:\n  ctdb log level\n  ctdb -n 1 log level DEBUG")]
    Level {
        /// ERROR, WARNING, NOTICE, INFO or DEBUG
        level: Option<String>,
    },
}

/// `ctdb debug`
#[derive(Subcommand, Debug)]
pub enum Debugging {
    /// Run the deciding core over a recording (`[log] record`), offline, and print its decisions
    #[command(
        long_about = "Runs the deciding core over a recording (`[log] record`), offline, and \
        prints what it decides, without heartbeats unless --all. Ends with 1 where it decides \
        otherwise than the daemon did, and if the file is cut off or damaged.",
        after_help = "Example:\n  ctdb debug replay /var/lib/ctdb/state/recording"
    )]
    Replay {
        /// The recording
        file: PathBuf,
        /// Heartbeats, their answers and the lease's deadlines too
        #[arg(long)]
        all: bool,
    },
}

/// Words that begin a command of the new form. `ip`, `status` and `version` are old commands too.
pub const COMPONENTS: [&str; 14] = [
    "cluster",
    "node",
    "ip",
    "interface",
    "conntrack",
    "event",
    "process",
    "config",
    "log",
    "db",
    "debug",
    "completions",
    "manual",
    "help",
];

/// Whether a component has that verb.
pub fn is_verb(component: &str, word: &str) -> bool {
    Cli::command()
        .find_subcommand(component)
        .is_some_and(|component| component.find_subcommand(word).is_some())
}

/// Each component with its verbs, for the usage text.
pub fn components() -> Vec<(String, String)> {
    let command = Cli::command();
    let components = command
        .get_subcommands()
        .filter(|component| component.has_subcommands());
    components
        .map(|component| {
            let verbs: Vec<&str> = component
                .get_subcommands()
                .map(clap::Command::get_name)
                .collect();
            (component.get_name().to_owned(), verbs.join(" | "))
        })
        .collect()
}

/// A completion script.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ctdb", &mut script);
    script
}

/// The manual pages: name of the file, and its text. One for the whole (`ctdb-components`, since
/// `ctdb.1` is that of CTDB's package, whose commands work as it says), one for each component and
/// each verb.
pub fn manual() -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let mut whole = Cli::command().disable_help_subcommand(true);
    whole.build();
    let mut pages = Vec::new();
    let mut add = |name: &str, command: &clap::Command| -> std::io::Result<()> {
        let mut page = Vec::new();
        clap_mangen::Man::new(command.clone())
            .title(name.to_uppercase())
            .render(&mut page)?;
        pages.push((format!("{name}.1"), page));
        Ok(())
    };
    add("ctdb-components", &whole)?;
    for component in whole.get_subcommands() {
        let name = format!("ctdb-{}", component.get_name());
        add(&name, component)?;
        for verb in component.get_subcommands() {
            add(&format!("{name}-{}", verb.get_name()), verb)?;
        }
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_has_a_manual_page() {
        let pages = manual().unwrap();
        let names: std::collections::BTreeSet<&str> =
            pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.len(), pages.len());
        for name in ["ctdb-components.1", "ctdb-node.1", "ctdb-node-disable.1"] {
            assert!(names.contains(name), "{names:?}");
        }
        for (name, page) in &pages {
            let text = String::from_utf8(page.clone()).unwrap();
            assert!(
                text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"),
                "{name}"
            );
        }
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
        for (name, verbs) in components() {
            assert!(COMPONENTS.contains(&name.as_str()), "{name}");
            assert!(!verbs.is_empty());
        }
        for shell in Shell::value_variants() {
            assert!(!completions(*shell).is_empty());
        }
    }

    #[test]
    fn help_of_every_verb_says_something() {
        for component in Cli::command().get_subcommands() {
            assert!(component.get_about().is_some(), "{}", component.get_name());
            for verb in component.get_subcommands() {
                assert!(verb.get_about().is_some(), "{}", verb.get_name());
            }
        }
    }
}
