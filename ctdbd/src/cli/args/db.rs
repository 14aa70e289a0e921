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

/// `ctdb db`
#[derive(Subcommand, Debug)]
pub enum Db {
    /// A database's file, without a daemon
    #[command(subcommand, long_about = FILE_LONG, after_help = FILE_AFTER)]
    File(DbFile),
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
