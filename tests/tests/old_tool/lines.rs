//! The command lines that are compared.

/// Each with each of [`OPTIONS`]. `A` stands for a public address that node 0 knows.
const COMMANDS: &[&str] = &[
    "status",
    "nodestatus",
    "nodestatus all",
    "nodestatus 1",
    "nodestatus 0,2",
    "runstate",
    "pnn",
    "leader",
    "getcapabilities",
    "getreclock",
    "listnodes",
    "ip",
    "ip all",
    "ipinfo A",
    "ifaces",
    "getvar monitorinterval",
    "listvars",
    "getdebug",
    "gettickles A",
    "getdbmap",
    "uptime",
    "statistics",
];

const OPTIONS: &[&str] = &[
    "", "-Y", "-X -x ,", "-v", "-Xv", "-n 1", "-X -n 0", "-n 9", "-t 5", "-T 30",
];

/// Of these in the states behind the first.
const FEW: &[&str] = &["", "-X", "-n 1"];

/// Once in every state.
const ONCE: &[&str] = &[
    "",
    "--usage",
    "nosuchcommand",
    "--bogus status",
    "-n x status",
    "-t",
    "-j -Y status",
    "-j ip",
    "status extra",
    "pnn extra",
    "nodestatus 9",
    "nodestatus x",
    "nodestatus 0 1",
    "runstate running",
    "runstate setup first_recovery",
    "runstate foo",
    "ip foo",
    "ip all extra",
    "ipinfo",
    "ipinfo foo",
    "ipinfo 192.0.2.77",
    "ipinfo fd00:99::1",
    "getvar",
    "getvar NoSuchThing",
    "getvar VacuumLimit",
    "setvar",
    "setvar MonitorInterval",
    "setvar NoSuchThing 1",
    "setvar MonitorInterval xyz",
    "setvar MonitorInterval 15",
    "setvar VacuumLimit 1",
    "stats 1",
    "-X stats 1",
    "ping",
    "-n 1 ping",
    "getpid",
    "process-exists",
    "process-exists 1",
    "process-exists 1 0x1234567890",
    "process-exists 1 0",
    "process-exists abc",
    "-n 1 process-exists 1",
    "-n 1 pnn",
    "-n 0 listnodes",
    "-n 0 version",
    "setdebug foo",
    "setdebug",
    "setifacelink",
    "setifacelink nosuch up",
    "setifacelink pub0 sideways",
    "setifacelink averyveryverylongname up",
    "setifacelink pub0 up",
    "gratarp",
    "gratarp foo pub0",
    "gratarp 192.0.2.9 pub0",
    "moveip",
    "moveip foo 1",
    "moveip A x",
    "addtickle",
    "deltickle",
    "gettickles",
    "gettickles foo",
    "gettickles 192.0.2.77",
    "gettickles A 445",
    "ban",
    "ban 0",
    "ban x",
    "unban extra",
    "disable extra",
    "enable extra",
    "setleaderrole",
    "setleaderrole maybe",
    "setlmasterrole maybe",
    "checktcpport",
    "checktcpport 7",
    "checktcpport 7000",
    "natgw",
    "natgw leader",
    "natgw list",
    "natgw foo",
    "lvs",
    "lvs leader",
    "lvs list",
    "scriptstatus",
    "scriptstatus nosuchevent",
    "event status legacy nosuchevent",
    "event status nosuch monitor",
    "event script list nosuch",
    "event run 10 legacy nothing",
    "event run 10 nosuch nothing",
    "event script enable legacy nosuch",
    "event script enable legacy 99.nosuch",
    "dumpmemory",
    "rddumpmemory",
    "getdbstatus nosuch.tdb",
    "getdbstatus demo.tdb",
    "getdbstatus pdemo.tdb",
    "getdbstatus",
    "-X getdbmap",
    "getdbseqnum pdemo.tdb",
    "getdbseqnum",
    "dbstatistics quiet.tdb",
    "setdbreadonly pdemo.tdb",
    "setdbsticky pdemo.tdb",
    "attach demo.tdb",
    "attach demo.tdb wrongword",
    "catdb nosuch.tdb",
    "cattdb nosuch.tdb",
    "getdbseqnum nosuch.tdb",
    "dbstatistics nosuch.tdb",
    "backupdb nosuch.tdb /nonexistent/x",
    "wipedb nosuch.tdb",
    "pfetch nosuch.tdb k",
    "readkey nosuch.tdb k",
    "setdbreadonly nosuch.tdb",
    "attach",
    "detach nosuch.tdb",
    "reloadips 9",
    "reloadips x",
    "reloadips all extra",
];

/// Records, once while all is well; each line finds what the lines before it left, so the
/// first ones empty the databases. `D` is a directory of the test's.
const RECORDS: &[&str] = &[
    "wipedb demo.tdb",
    "wipedb pdemo.tdb",
    "wipedb demo.tdb extra",
    "catdb demo.tdb",
    "cattdb demo.tdb",
    "cattdb",
    "writekey demo.tdb k1 hello",
    "writekey demo.tdb 0x6b32 0x00ff22",
    "writekey demo.tdb 0x6b3 v",
    "writekey demo.tdb k 0xzz",
    "writekey demo.tdb k",
    "readkey demo.tdb k1",
    "readkey demo.tdb k1 readonly",
    "readkey demo.tdb k1 foo",
    "readkey demo.tdb k2",
    "readkey demo.tdb 0x6b1",
    "catdb demo.tdb",
    "-X catdb demo.tdb",
    "-v cattdb demo.tdb",
    "-n 1 catdb demo.tdb",
    "backupdb demo.tdb D/volatile",
    "backupdb demo.tdb /nonexistent/x",
    "backupdb demo.tdb",
    "dumpdbbackup D/volatile",
    "deletekey demo.tdb k1",
    "deletekey demo.tdb neverthere",
    "deletekey demo.tdb",
    "readkey demo.tdb k1",
    "readkey demo.tdb nokey",
    "catdb demo.tdb",
    "restoredb D/volatile",
    "catdb demo.tdb",
    "cattdb spread.tdb",
    "catdb spread.tdb",
    "backupdb spread.tdb D/spread",
    "dumpdbbackup D/spread",
    "getdbseqnum pdemo.tdb",
    "pfetch pdemo.tdb k",
    "pstore pdemo.tdb k v1",
    "pfetch pdemo.tdb k",
    "pstore pdemo.tdb k v1",
    "pstore pdemo.tdb k",
    "pstore pdemo.tdb 0x6b1 v",
    "pstore pdemo.tdb bin 0x4100ff0a",
    "pfetch pdemo.tdb bin",
    "pfetch pdemo.tdb",
    "getdbseqnum pdemo.tdb",
    "catdb pdemo.tdb",
    "cattdb pdemo.tdb",
    "tfetch /var/lib/ctdb/persistent/pdemo.tdb.0 k",
    "tfetch /var/lib/ctdb/persistent/pdemo.tdb.0 0x62696e",
    "tfetch /var/lib/ctdb/persistent/pdemo.tdb.0 nokey",
    "tfetch /var/lib/ctdb/persistent/pdemo.tdb.0 0x6",
    "tfetch /nonexistent k",
    "tfetch",
    "tstore D/file.tdb a NEW",
    "tfetch D/file.tdb a",
    "tstore D/file.tdb 0x61 0x4e00 7 3",
    "tfetch D/file.tdb a",
    "tstore D/file.tdb a b x",
    "tstore /nonexistent a b",
    "tstore D/file.tdb a b 1 2 3",
    "pdelete pdemo.tdb k",
    "pdelete pdemo.tdb k",
    "pdelete pdemo.tdb neverthere",
    "pdelete pdemo.tdb",
    "getdbseqnum pdemo.tdb",
    "catdb pdemo.tdb",
    "ptrans pdemo.tdb D/lines",
    "ptrans pdemo.tdb /nonexistent",
    "ptrans pdemo.tdb",
    "ptrans pdemo.tdb a b",
    "catdb pdemo.tdb",
    "backupdb pdemo.tdb D/persistent",
    "wipedb pdemo.tdb",
    "cattdb pdemo.tdb",
    "getdbseqnum pdemo.tdb",
    "restoredb D/persistent",
    "cattdb pdemo.tdb",
    "getdbseqnum pdemo.tdb",
    "dumpdbbackup D/persistent",
    "ptrans pdemo.tdb D/malformed",
    "wipedb pdemo.tdb",
    "pfetch demo.tdb k",
    "pstore demo.tdb k v",
    "pdelete demo.tdb k",
    "ptrans demo.tdb",
    "readkey pdemo.tdb k",
    "writekey pdemo.tdb k v",
    "deletekey pdemo.tdb k",
    "detach",
    "detach demo.tdb",
    "setvar AllowClientDBAttach 0",
    "detach demo.tdb",
    "catdb demo.tdb",
    "setvar AllowClientDBAttach 1",
    "reloadips",
    "reloadips 0",
    "reloadips all",
];

/// What needs databases, once in the other states.
const RECORDS_ELSEWHERE: &[&str] = &[
    "restoredb D/old",
    // Now this node has them, whoever had them before.
    "readkey demo.tdb k1",
    "readkey demo.tdb k2",
    "catdb demo.tdb",
    "cattdb pdemo.tdb",
    "pfetch pdemo.tdb k",
    "backupdb pdemo.tdb D/elsewhere",
    "detach demo.tdb",
];

/// Of files, once in every state.
const FILES: &[&str] = &[
    "dumpdbbackup D/old",
    "dumpdbbackup",
    "dumpdbbackup /nonexistent",
    "dumpdbbackup /etc/debian_version",
    "restoredb /nonexistent",
    "restoredb /etc/debian_version",
    "restoredb",
];

/// In states in which requests may wait: nothing that waits for databases but the last ones, and no
/// longer than a second.
const IMPATIENT: &[&str] = &["-t 1", "-t 1 -X"];

const IMPATIENT_ONCE: &[&str] = &[
    "-t 1 runstate running",
    "-t 1 getdbstatus demo.tdb",
    "-t 1 getdbstatus nosuch.tdb",
    "-t 1 process-exists 1",
    "-t 1 ping",
    "-t 1 getpid",
    "-t 1 setvar MonitorInterval 15",
    "-t 1 detach demo.tdb",
    "-t 1 cattdb nosuch.tdb",
    "-t 1 cattdb pdemo.tdb",
];

/// The lines of a state in which requests may wait.
pub fn impatient_lines(address: &str, state: &str) -> Vec<String> {
    // Without a leader the daemon names the hosts that the last one told it, and what the databases
    // are doing changes while the tools run.
    let of_the_leader = ["status", "ip", "ip all", "ipinfo A", "gettickles A"];
    let shown = COMMANDS
        .iter()
        .filter(|command| state != "no leader" || !of_the_leader.contains(command));
    let each = shown.flat_map(|command| {
        IMPATIENT
            .iter()
            .map(move |with| format!("{with} {command}"))
    });
    each.chain(IMPATIENT_ONCE.iter().map(|line| (*line).to_owned()))
        .map(|line| line.replace(" A", &format!(" {address}")))
        .collect()
}

/// The lines of a state; `dir` is what `D` stands for.
pub fn lines(address: &str, dir: &str, state: &str) -> Vec<String> {
    let options = if state == "healthy" { OPTIONS } else { FEW };
    let records = if state == "healthy" {
        RECORDS
    } else {
        RECORDS_ELSEWHERE
    };
    let each = COMMANDS.iter().flat_map(|command| {
        options
            .iter()
            .map(move |option| format!("{option} {command}"))
    });
    // First of all, so that what the other tool left is gone.
    let once = records.iter().chain(FILES).chain(ONCE);
    let once = once.map(|line| (*line).to_owned());
    once.chain(each)
        .map(|line| {
            let words = line.split_whitespace().map(|word| match word {
                "A" => address.to_owned(),
                _ => match word.strip_prefix("D/") {
                    Some(name) => format!("{dir}/{name}"),
                    None => word.to_owned(),
                },
            });
            words.collect::<Vec<_>>().join(" ")
        })
        .collect()
}
