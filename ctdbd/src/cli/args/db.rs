//! `ctdb db`

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

const FILE_LONG: &str = "\
Looks into the file of a database (TDB, as Samba and CTDB use it), and changes it. No daemon is \
asked. The file may be in use: its locks are taken, for no longer than -t seconds.

Keys and data are shown, and taken, in the form of tdbdump: printable ASCII stands for itself, \
every other byte, `\"` and `\\` as `\\` and two hex digits (`a\\00` is an `a` and a NUL).

In a database of a cluster every value begins with 24 bytes of CTDB's: sequence number, owner, \
flags. --ctdb shows them as such. What is changed here the daemon does not know of: it is lost at \
the next recovery, or spread to other nodes. So with the daemon running nothing is changed unless \
--force is given.";

const FILE_AFTER: &str = "\
Exit codes:
  0   done
  1   failed: file damaged, no permission, disk full ...
  2   there is no such file or key
  3   not possible in this state (file in use, target exists ...)
  4   somebody held a lock for longer than -t seconds
  64  wrong arguments

Examples:
  ctdb db file list /var/lib/samba/private/secrets.tdb
  ctdb db file get --ctdb /var/lib/ctdb/persistent/registry.tdb.0 'HKLM\\00'
  ctdb db file check /var/lib/ctdb/persistent/registry.tdb.0
  ctdb db file dump a.tdb | ctdb db file restore b.tdb";

const LONG: &str = "\
Shows and changes the databases that are attached on this node, and their records, on all nodes of \
the cluster. A database is named by its name or number (0x...).

Keys and data are shown, and taken, in the form of tdbdump: printable ASCII stands for itself, \
every other byte, `\"` and `\\` as `\\` and two hex digits (`a\\00` is an `a` and a NUL); --raw takes \
and prints them as they are.

Records of volatile databases lie on one node each and are changed there, under their lock. \
Persistent and replicated ones are on every node, and changed in transactions: what was acknowledged \
is on all active nodes.";

/// `ctdb db`
#[derive(Subcommand, Debug)]
#[command(long_about = LONG)]
pub enum Db {
    /// The databases that are attached on this node
    List,
    /// All that is known of one database
    Show {
        /// The database
        db: String,
    },
    /// Attach a database on all nodes; it is made if there is none
    #[command(after_help = "Example:\n  ctdb db attach my.tdb --kind persistent")]
    Attach {
        /// Its name
        name: String,
        /// What it is
        #[arg(long, value_enum, default_value = "volatile")]
        kind: KindName,
    },
    /// Detach volatile databases on all nodes
    #[command(
        long_about = "Detaches volatile databases on all nodes. Their records are lost. Possible \
            only while no client may attach databases: `ctdb setvar AllowClientDBAttach 0` on all \
            nodes first."
    )]
    Detach {
        /// The databases
        #[arg(required = true)]
        db: Vec<String>,
    },
    /// Print all records
    #[command(
        long_about = "Prints all records that are not empty, of all nodes, in the form of tdbdump; \
            with --json a list. With --local those of this node's file, with their headers, as they \
            are: the owner of a volatile record may have a newer one."
    )]
    Dump {
        /// The database
        db: String,
        /// Of this node's file, empty ones and headers included
        #[arg(long)]
        local: bool,
    },
    /// Print what is stored under a key
    Get {
        /// The database
        db: String,
        /// The key
        key: String,
        /// Take the key as it is, print the data as it is, without a line end
        #[arg(long)]
        raw: bool,
    },
    /// Store a value under a key, whether or not the key exists
    #[command(after_help = "Example:\n  ctdb db put my.tdb key value\n  \
            ctdb db put my.tdb picture --from picture.png")]
    Put(Put),
    /// Delete a key
    Del {
        /// The database
        db: String,
        /// The key
        key: String,
        /// Take the key as it is, `\` too
        #[arg(long)]
        raw: bool,
    },
    /// Store a value in a volatile database, and send a copy to all nodes
    #[command(
        long_about = "Stores a value under a key of a volatile database, and sends a copy to all \
            nodes, so that it survives this one. Samba does so for persistent handles."
    )]
    Push(Put),
    /// Change several keys of a persistent or replicated database, all or none
    #[command(
        long_about = "Reads lines of a key and a value in double quotes, as `ctdb ptrans` does, and \
            stores them in one transaction. `0x` and hex digits stand for bytes; an empty value \
            deletes the key. A line that cannot be read changes nothing.",
        after_help = "Example:\n  printf '\"a\" \"1\"\\n\"b\" \"\"\\n' | ctdb db transaction my.tdb"
    )]
    Transaction {
        /// The database
        db: String,
        /// Where the lines are [default: standard input]
        file: Option<PathBuf>,
    },
    /// Write a backup
    #[command(
        long_about = "Writes a backup in the form of `ctdb backupdb`. Of a persistent or replicated \
            database that is all of it, as one transaction left it; of a volatile one the records \
            that this node owns."
    )]
    Backup {
        /// The database
        db: String,
        /// The file to write; an existing one is replaced
        file: PathBuf,
    },
    /// Replace the records of a database by those of a backup, on all nodes
    #[command(
        long_about = "Replaces the records of a database by those of a backup, on all nodes at once. \
            The database is attached if it is not. A backup that is damaged changes nothing. Clients \
            wait meanwhile."
    )]
    Restore {
        /// The backup
        file: PathBuf,
        /// Into this database [default: that of the backup]
        #[arg(long, value_name = "NAME")]
        into: Option<String>,
    },
    /// Print the records of a backup; no daemon is asked
    BackupDump {
        /// The backup
        file: PathBuf,
    },
    /// Delete all records, on all nodes
    Wipe {
        /// The database
        db: String,
    },
    /// Check that this node's file of a database is sound, as `ctdb db file check` does
    Check {
        /// The database
        db: String,
    },
    /// Whether this node's copies of the databases are sound; exits 3 if one is not
    Health {
        /// The database [default: all]
        db: Option<String>,
    },
    /// This node's counters of a database
    Stats {
        /// The database
        db: String,
    },
    /// How many transactions a persistent or replicated database has seen
    Seqnum {
        /// The database
        db: String,
    },
    /// Switch something on for a volatile database, on all nodes, until it is detached
    Set {
        /// The database
        db: String,
        /// What
        #[arg(value_enum)]
        mode: Mode,
    },
    /// Clients of the databases
    #[command(subcommand)]
    Client(DbClient),
    /// A database's file, without a daemon
    #[command(subcommand, long_about = FILE_LONG, after_help = FILE_AFTER)]
    File(DbFile),
}

/// `ctdb db put` and `push`
#[derive(Args, Debug)]
pub struct Put {
    /// The database
    pub db: String,
    /// The key
    pub key: String,
    /// The value
    #[arg(required_unless_present = "from", allow_negative_numbers = true)]
    pub value: Option<String>,
    /// Take the value from a file, byte for byte; `-` is standard input
    #[arg(long, value_name = "PATH", conflicts_with = "value")]
    pub from: Option<PathBuf>,
    /// Take key and value as they are, `\` too
    #[arg(long)]
    pub raw: bool,
}

/// `ctdb db client`
#[derive(Subcommand, Debug)]
pub enum DbClient {
    /// The processes that are connected to the daemon on this node, or on that of -n
    List,
    /// Whether a process is connected; exits 2 if not
    #[command(
        long_about = "Whether a process is a client of the daemon on this node, or on that of -n; with \
            SRVID whether it has registered that address. Exits 2 if not."
    )]
    Exists {
        /// The process
        pid: i32,
        /// An address, as 0x and hex digits
        srvid: Option<String>,
    },
}

/// A kind of database.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum KindName {
    /// Records go to the node that uses them
    Volatile,
    /// On every node, on disk
    Persistent,
    /// On every node, as long as one lives
    Replicated,
}

/// What can be switched on.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Nodes that only read a record get a copy
    Readonly,
    /// Contended records stay a while where they are
    Sticky,
}

/// A file and how to read it.
#[derive(Args, Debug)]
pub struct Filed {
    /// The file
    pub file: PathBuf,
    /// Read without locks and without changing a byte: for files whose users hang, and for
    /// evidence. Records may be seen half written
    #[arg(long)]
    pub no_lock: bool,
}

/// `ctdb db file`
#[derive(Subcommand, Debug)]
pub enum DbFile {
    /// Print what is stored under a key
    #[command(
        after_help = "Example:\n  ctdb db file get a.tdb 'INFO/version\\00'\n  \
        ctdb db file get --raw a.tdb picture > picture.png"
    )]
    Get {
        /// Which file
        #[command(flatten)]
        file: Filed,
        /// The key
        key: String,
        /// Take the key as it is, print the data as it is, without a line end
        #[arg(long)]
        raw: bool,
        /// Show CTDB's header apart from the data
        #[arg(long)]
        ctdb: bool,
    },
    /// Store a value under a key, whether or not the key exists
    #[command(
        long_about = "Stores a value under a key, whether or not the key exists. A file that does \
            not exist is made. Everything else in the file stays.",
        after_help = "Example:\n  ctdb db file put a.tdb 'INFO/version\\00' '\\03\\00\\00\\00'\n  \
            ctdb db file put --raw a.tdb path 'C:\\temp'\n  \
            ctdb db file put a.tdb picture --from picture.png"
    )]
    Put {
        /// The file
        file: PathBuf,
        /// The key
        key: String,
        /// The value
        #[arg(required_unless_present = "from", allow_negative_numbers = true)]
        value: Option<String>,
        /// Take the value from a file, byte for byte; `-` is standard input
        #[arg(long, value_name = "PATH", conflicts_with = "value")]
        from: Option<PathBuf>,
        /// Take key and value as they are, `\` too
        #[arg(long)]
        raw: bool,
        /// Put CTDB's header before the value: that of the record that is there, its sequence
        /// number raised by one, or a new one
        #[arg(long)]
        ctdb: bool,
        /// Sequence number of the header
        #[arg(long, requires = "ctdb")]
        rsn: Option<u64>,
        /// Owner (data master) in the header
        #[arg(long, value_name = "PNN", requires = "ctdb")]
        dmaster: Option<u32>,
        /// Also while the daemon has the file open
        #[arg(long)]
        force: bool,
    },
    /// Delete a key
    Del {
        /// The file
        file: PathBuf,
        /// The key
        key: String,
        /// Take the key as it is, `\` too
        #[arg(long)]
        raw: bool,
        /// Also while the daemon has the file open
        #[arg(long)]
        force: bool,
    },
    /// Print all keys, one a line
    List {
        /// Which file
        #[command(flatten)]
        file: Filed,
        /// Show CTDB's headers after the keys
        #[arg(long)]
        ctdb: bool,
    },
    /// Check that the file is sound, and say what is in it
    #[command(
        long_about = "Checks the file: header, lists, every record, its hash, the free space, and \
            counts what is there. Nobody can write meanwhile. A commit that was interrupted by a \
            crash is undone first, as every program does that opens the file (not with \
            --no-lock).\n\nExits 1 if the file is damaged; the message names the offset and what \
            is wrong there."
    )]
    Check {
        /// Which file
        #[command(flatten)]
        file: Filed,
    },
    /// Print all records, as tdbdump does
    #[command(
        long_about = "Prints all records in the form of tdbdump: `ctdb db file restore` and \
            tdbrestore read it. With --json or --ctdb the form is another, for looking at."
    )]
    Dump {
        /// Which file
        #[command(flatten)]
        file: Filed,
        /// Show CTDB's headers apart from the data
        #[arg(long)]
        ctdb: bool,
    },
    /// Gather the free space of a file in one piece
    #[command(
        long_about = "Writes all records anew, so that the free space is one piece. The file does \
            not become smaller: for that convert it to a new one. One transaction: a crash loses \
            nothing. Other programs may use the file, and wait meanwhile."
    )]
    Repack {
        /// The file
        file: PathBuf,
    },
    /// Copy the records to a new file of another kind
    #[command(
        long_about = "Copies all records to a new file, with another hash function, byte order, \
            number of hash chains, with or without mutexes. What is not named is as in the old \
            file. The old file stays, and nobody can change it meanwhile; the new one appears \
            when it is complete.",
        after_help = "Example, a persistent database with more chains:\n  \
            ctdb db file convert --hash-size 100001 old.tdb new.tdb\n\nThe hash function of a file \
            is found by whoever opens it. A file with mutexes only opens for programs that \
            ask for mutexes."
    )]
    Convert(Convert),
    /// Make a file from a dump
    #[command(
        long_about = "Makes a file from a dump of tdbdump or `ctdb db file dump`. The file \
            appears when it is complete: a dump with a mistake makes none.",
        after_help = "Example:\n  ctdb db file restore new.tdb < dump.txt"
    )]
    Restore {
        /// The file to make
        file: PathBuf,
        /// The dump [default: standard input]
        dump: Option<PathBuf>,
        /// What kind of file
        #[command(flatten)]
        format: Format,
        /// Replace a file that exists and that nobody has open
        #[arg(long)]
        force: bool,
    },
}

/// `ctdb db file convert`
#[derive(Args, Debug)]
pub struct Convert {
    /// The file to read
    #[command(flatten)]
    pub file: Filed,
    /// The file to make
    pub target: PathBuf,
    /// What kind of file
    #[command(flatten)]
    pub format: Format,
    /// Replace a target that exists and that nobody has open
    #[arg(long)]
    pub force: bool,
}

/// What a new file is like.
#[derive(Args, Debug, Default)]
pub struct Format {
    /// Hash function: CTDB's persistent databases and most of Samba's have the old one
    #[arg(long, value_enum)]
    pub hash: Option<HashName>,
    /// Number of hash chains [default for a restore: 131]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=0x3fff_0000))]
    pub hash_size: Option<u32>,
    /// Byte order of the machine that will use it
    #[arg(long, value_enum)]
    pub byte_order: Option<Order>,
    /// Locks in shared memory instead of fcntl locks; implies the jenkins hash
    #[arg(long, value_enum)]
    pub mutexes: Option<YesNo>,
}

/// A hash function.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum HashName {
    /// The default of libtdb
    Old,
    /// That of volatile databases
    Jenkins,
}

/// A byte order.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// This machine's
    Native,
    /// Little endian
    Little,
    /// Big endian
    Big,
}

/// Yes or no.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum YesNo {
    /// Yes
    Yes,
    /// No
    No,
}
