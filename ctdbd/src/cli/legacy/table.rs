//! The old commands that exist here, and their usage texts (`spec/cli.md` 6.1, 6.2).

use std::fmt::Write as _;

use super::{Run, commands, connections, controls, databases, records};

/// Where a command may be sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// It needs no daemon and takes no `-n`.
    WithoutDaemon,
    /// It takes `-n`.
    AnyNode,
    /// It takes no other node than the local one.
    LocalOnly,
}

/// One old command.
pub struct Command {
    /// Its word.
    pub name: &'static str,
    /// Its arguments, as the usage shows them.
    pub args: &'static str,
    /// What it does, as the usage says.
    pub about: &'static str,
    /// Where it may be sent.
    pub class: Class,
    /// Whether it prints JSON.
    pub json: bool,
    /// What it does.
    pub run: Run,
}

const fn any(name: &'static str, args: &'static str, about: &'static str, run: Run) -> Command {
    Command {
        name,
        args,
        about,
        class: Class::AnyNode,
        json: false,
        run,
    }
}

const fn local(name: &'static str, args: &'static str, about: &'static str, run: Run) -> Command {
    Command {
        class: Class::LocalOnly,
        ..any(name, args, about, run)
    }
}

/// Every old command that exists here, in the order of the old tool's usage.
pub const COMMANDS: &[Command] = &[
    Command {
        class: Class::WithoutDaemon,
        json: true,
        ..any("version", "", "show version of ctdb", commands::version)
    },
    Command {
        json: true,
        ..any("status", "", "show node status", commands::status)
    },
    any("uptime", "", "show node uptime", commands::uptime),
    any("ping", "", "ping a node", commands::ping),
    any(
        "runstate",
        "[setup|first_recovery|startup|running]",
        "get/check runstate of a node",
        commands::run_state,
    ),
    any(
        "getvar",
        "<name>",
        "get a tunable variable",
        commands::get_variable,
    ),
    any(
        "setvar",
        "<name> <value>",
        "set a tunable variable",
        controls::set_variable,
    ),
    any(
        "listvars",
        "",
        "list tunable variables",
        commands::list_variables,
    ),
    any(
        "statistics",
        "",
        "show ctdb statistics",
        controls::statistics,
    ),
    any(
        "statisticsreset",
        "",
        "reset ctdb statistics",
        controls::statistics_reset,
    ),
    any(
        "stats",
        "[count]",
        "show rolling statistics",
        controls::stats,
    ),
    any("ip", "[all]", "show public ips", commands::ip),
    any(
        "ipinfo",
        "<ip>",
        "show public ip details",
        commands::ip_info,
    ),
    any("ifaces", "", "show interfaces", commands::interfaces),
    any(
        "setifacelink",
        "<iface> up|down",
        "set interface link status",
        commands::set_interface_link,
    ),
    any(
        "process-exists",
        "<pid> [<srvid>]",
        "check if a process exists on a node",
        controls::process_exists,
    ),
    any("getdbmap", "", "show attached databases", databases::list),
    any(
        "getdbstatus",
        "<dbname|dbid>",
        "show database status",
        databases::status,
    ),
    local(
        "catdb",
        "<dbname|dbid>",
        "dump cluster-wide ctdb database",
        records::catdb,
    ),
    local(
        "cattdb",
        "<dbname|dbid>",
        "dump local ctdb database",
        records::cattdb,
    ),
    any(
        "getcapabilities",
        "",
        "show node capabilities",
        commands::capabilities,
    ),
    local("pnn", "", "show the pnn of the currnet node", commands::pnn),
    local(
        "lvs",
        "leader|list|status",
        "show lvs configuration",
        controls::lvs,
    ),
    any(
        "setdebug",
        "ERROR|WARNING|NOTICE|INFO|DEBUG",
        "set debug level",
        commands::set_debug,
    ),
    any("getdebug", "", "get debug level", commands::get_debug),
    local(
        "attach",
        "<dbname> [persistent|replicated]",
        "attach a database",
        databases::attach,
    ),
    local(
        "detach",
        "<dbname|dbid> ...",
        "detach database(s)",
        records::detach,
    ),
    any(
        "dumpmemory",
        "",
        "dump ctdbd memory map",
        controls::dump_memory,
    ),
    any(
        "rddumpmemory",
        "",
        "dump recoverd memory map",
        controls::dump_recovery_memory,
    ),
    any("getpid", "", "get ctdbd process ID", commands::pid),
    any("disable", "", "disable a node", commands::disable),
    any("enable", "", "enable a node", commands::enable),
    any("stop", "", "stop a node", commands::stop),
    any("continue", "", "continue a stopped node", commands::start),
    Command {
        class: Class::WithoutDaemon,
        ..any(
            "scriptstatus",
            "[init|setup|startup|monitor|takeip|releaseip|ipreallocated]",
            "show event script status",
            commands::script_status,
        )
    },
    any("ban", "<bantime>", "ban a node", commands::ban),
    any("unban", "", "unban a node", commands::unban),
    any("shutdown", "", "shutdown ctdb daemon", commands::shutdown),
    any("recover", "", "force recovery", controls::recover),
    any(
        "sync",
        "",
        "run ip reallocation (deprecated)",
        commands::reallocate,
    ),
    any(
        "ipreallocate",
        "",
        "run ip reallocation",
        commands::reallocate,
    ),
    any(
        "gratarp",
        "<ip> <interface>",
        "send a gratuitous arp",
        commands::announce,
    ),
    any(
        "gettickles",
        "<ip> [<port>]",
        "get the list of tickles",
        connections::get,
    ),
    any(
        "addtickle",
        "<ip>:<port> <ip>:<port>",
        "add a tickle",
        connections::add,
    ),
    any(
        "deltickle",
        "<ip>:<port> <ip>:<port>",
        "delete a tickle",
        connections::del,
    ),
    Command {
        class: Class::WithoutDaemon,
        ..any(
            "tickle",
            "<srcip:port> <dstip:port>",
            "send a tcp tickle ack",
            connections::tickle,
        )
    },
    Command {
        class: Class::WithoutDaemon,
        ..any(
            "listnodes",
            "",
            "list nodes in the cluster",
            commands::list_nodes,
        )
    },
    local(
        "moveip",
        "<ip> <node>",
        "move an ip address to another node",
        commands::move_ip,
    ),
    any(
        "addip",
        "<ip/mask> <iface>",
        "add an ip address to a node",
        controls::add_ip,
    ),
    any(
        "delip",
        "<ip>",
        "delete an ip address from a node",
        controls::delete_ip,
    ),
    local(
        "backupdb",
        "<dbname|dbid> <file>",
        "backup a database into a file",
        records::backup,
    ),
    local(
        "restoredb",
        "<file> [dbname]",
        "restore a database from a file",
        records::restore,
    ),
    Command {
        class: Class::WithoutDaemon,
        ..any(
            "dumpdbbackup",
            "<file>",
            "dump database from a backup file",
            records::dump_backup,
        )
    },
    local(
        "wipedb",
        "<dbname|dbid>",
        "wipe the contents of a database.",
        records::wipe,
    ),
    any("leader", "", "show the pnn of the leader", commands::leader),
    local(
        "natgw",
        "leader|list|status",
        "show natgw configuration",
        controls::natgw,
    ),
    any(
        "setdbreadonly",
        "<dbname|dbid>",
        "enable readonly records",
        databases::set_readonly,
    ),
    any(
        "setdbsticky",
        "<dbname|dbid>",
        "enable sticky records",
        databases::set_sticky,
    ),
    local(
        "pfetch",
        "<dbname|dbid> <key>",
        "fetch record from persistent database",
        records::fetch,
    ),
    local(
        "pstore",
        "<dbname|dbid> <key> <value>",
        "write record to persistent database",
        records::store,
    ),
    local(
        "pdelete",
        "<dbname|dbid> <key>",
        "delete record from persistent database",
        records::delete,
    ),
    local(
        "ptrans",
        "<dbname|dbid> [<file>]",
        "update a persistent database (from file or stdin)",
        records::transaction,
    ),
    any(
        "tfetch",
        "<tdb-file> <key> [<file>]",
        "fetch a record",
        records::file_fetch,
    ),
    any(
        "tstore",
        "<tdb-file> <key> <data> [<rsn> <dmaster> <flags>]",
        "store a record",
        records::file_store,
    ),
    local(
        "readkey",
        "<dbname|dbid> <key> [readonly]",
        "read value of a database key",
        records::read_key,
    ),
    local(
        "writekey",
        "<dbname|dbid> <key> <value>",
        "write value for a database key",
        records::write_key,
    ),
    local(
        "deletekey",
        "<dbname|dbid> <key>",
        "delete a database key",
        records::delete_key,
    ),
    local(
        "pushrecord",
        "<dbname|dbid> <key> <value>",
        "write a record and push it to all nodes",
        records::push_record,
    ),
    any(
        "getreclock",
        "",
        "get recovery lock file",
        commands::cluster_lock,
    ),
    any(
        "setlmasterrole",
        "on|off",
        "set LMASTER role",
        commands::set_lmaster_role,
    ),
    any(
        "setleaderrole",
        "on|off",
        "set LEADER role",
        commands::set_leader_role,
    ),
    Command {
        class: Class::WithoutDaemon,
        ..any(
            "checktcpport",
            "<port>",
            "check if a service is bound to a specific tcp port or not",
            controls::check_tcp_port,
        )
    },
    local(
        "getdbseqnum",
        "<dbname|dbid>",
        "get database sequence number",
        databases::sequence_number,
    ),
    any(
        "dbstatistics",
        "<dbname|dbid>",
        "show database statistics",
        databases::statistics,
    ),
    any(
        "nodestatus",
        "[all|<pnn-list>]",
        "show and return node status",
        commands::node_status,
    ),
    local(
        "reloadips",
        "[all|<pnn-list>]",
        "reload the public addresses file",
        commands::reload,
    ),
    local(
        "reloadnodes",
        "",
        "reload the nodes file all nodes",
        commands::reload_nodes,
    ),
];

/// The command of that name.
pub fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

fn line(command: &Command) -> String {
    format!(
        "  {:<15} {:<27}  {}\n",
        command.name, command.args, command.about
    )
}

/// What `--usage` prints.
pub const BRIEF: &str = "\
Usage: [-?YXjv] [-?|--help] [--usage] [-d|--debug=STRING]
        [-t|--timelimit=INT] [-n|--node=INT] [-Y] [-x|--separator=CHAR]
        [-X] [-j|--json] [-v|--verbose] [-T|--maxruntime=INT]
";

/// What a wrong number of arguments prints.
pub fn usage_of(command: &Command) -> String {
    format!("{BRIEF}\nCommands:\n{}", line(command))
}

/// What the tool prints without a command.
pub fn usage() -> String {
    let mut text = "\
Usage: [OPTION...]
  -d, --debug=STRING       debug level
  -t, --timelimit=INT      timelimit (in seconds)
  -n, --node=INT           node specification - integer
  -Y                       enable machine readable output
  -x, --separator=CHAR     specify separator for machine readable output
  -X                       enable machine parsable output with separator |
  -j, --json               enable JSON output
  -v, --verbose            enable verbose output
  -T, --maxruntime=INT     die if runtime exceeds this limit (in seconds)

Help options:
  -?, --help               Show this help message
      --usage              Display brief usage message

Components (`ctdb COMPONENT --help` says more):
"
    .to_owned();
    for (name, verbs) in super::super::args::components() {
        _ = writeln!(text, "  {name:<15} {verbs}");
    }
    text.push_str("\nCommands:\n");
    text.extend(COMMANDS.iter().map(line));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_of_one_command_is_that_of_the_old_tool() {
        let text = usage_of(find("ipinfo").unwrap());
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            "  ipinfo          <ip>                         show public ip details"
        );
        let long = usage_of(find("setdebug").unwrap());
        assert!(long.ends_with(
            "\nCommands:\n  setdebug        ERROR|WARNING|NOTICE|INFO|DEBUG  set debug level\n"
        ));
    }
}
