//! Where everything is: `spec/cluster.md` 1.2, 1.7, 1.8.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The directory layout of one daemon.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    /// Configuration directory, `/etc/ctdb`; `CTDB_BASE` for event scripts.
    pub etc: PathBuf,
    /// `ETC/ctdb.conf`.
    pub config: PathBuf,
    /// `ETC/nodes`, unless `[cluster] nodes list` names another source.
    pub nodes: PathBuf,
    /// `ETC/public_addresses`.
    pub public_addresses: PathBuf,
    /// `ETC/home_nodes`.
    pub home_nodes: PathBuf,
    /// `ETC/ctdb.tunables`.
    pub tunables: PathBuf,
    /// `ETC/tunables.d`.
    pub tunables_dir: PathBuf,
    /// `ETC/script.options`.
    pub script_options: PathBuf,
    /// `ETC/events`.
    pub events: PathBuf,
    /// `ETC/notify.sh`.
    pub notify: PathBuf,
    /// `ETC/cluster.key`, unless `[security] key file` names another.
    pub key_file: PathBuf,
    /// Run-time directory, `/run/ctdb`: sockets, pid files, locks.
    pub run: PathBuf,
    /// The client socket, `RUN/ctdbd.socket`.
    pub socket: PathBuf,
    /// `RUN/ctdbd.pid`.
    pub pid_file: PathBuf,
    /// `RUN/tcp_listen_automatic.lock`: serialises the choice of an own address.
    pub listen_lock: PathBuf,
    /// HTTP API for root, `RUN/api.sock`.
    pub api_socket: PathBuf,
    /// HTTP API that only reads, `RUN/api-ro.sock`.
    pub api_read_socket: PathBuf,
    /// Where kernel maps and links are pinned, `RUN/bpf`.
    pub bpf: PathBuf,
    /// `/var/lib/ctdb`.
    pub var: PathBuf,
    /// Default of `[database] volatile database directory`.
    pub volatile: PathBuf,
    /// Default of `[database] persistent database directory`.
    pub persistent: PathBuf,
    /// Default of `[database] state database directory`.
    pub state: PathBuf,
    /// `VAR/scripts`: state of event scripts.
    pub scripts: PathBuf,
    /// Default log file, `/var/log/ctdb/log.ctdb`.
    pub log: PathBuf,
    /// `/usr/share/ctdb`: shipped event scripts.
    pub data: PathBuf,
    /// `/usr/libexec/ctdb`: helper programs. Never under `CTDBD_ROOT`.
    pub helpers: PathBuf,
    /// `CTDB_TEST_MODE` is set: several daemons on one host, plain transport by default.
    pub test_mode: bool,
    /// What is wrong with the environment; [`super::load`] reports it as an error.
    pub unusable: Option<String>,
}

impl Paths {
    /// The layout of Debian's packages below `root` (`/` in production).
    pub fn under(root: &Path) -> Self {
        Self::assemble(
            root.join("etc/ctdb"),
            root.join("run/ctdb"),
            root.join("var/lib/ctdb"),
            root.join("usr/share/ctdb"),
            root.join("var/log/ctdb/log.ctdb"),
            false,
        )
    }

    /// The layout of CTDB's test mode: everything in `base` (`spec/cluster.md` 1.7).
    pub fn test_mode(base: &Path) -> Self {
        Self::assemble(
            base.to_owned(),
            base.join("run"),
            base.join("var"),
            base.join("share"),
            base.join("var/log.ctdb"),
            true,
        )
    }

    /// The layout that the environment asks for.
    ///
    /// * `CTDB_TEST_MODE` (set, to anything): the directories are inside `CTDB_BASE`, which must
    ///   be set, and `CTDB_SOCKET` may name another client socket.
    /// * `CTDBD_ROOT=DIR`: configuration, run-time, state and log directories are below `DIR`.
    ///   Values inside `ctdb.conf` are taken as they are.
    /// * Otherwise the usual places. `CTDB_BASE` and `CTDB_SOCKET` alone change nothing, since
    ///   a variable of a user's shell must not point a command at another daemon.
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Self {
        if var("CTDB_TEST_MODE").is_none() {
            return var("CTDBD_ROOT").map_or_else(
                || Self::under(Path::new("/")),
                |root| Self::under(Path::new(&root)),
            );
        }
        let mut paths = if let Some(base) = var("CTDB_BASE") {
            Self::test_mode(Path::new(&base))
        } else {
            let mut paths = Self::under(Path::new("/"));
            paths.test_mode = true;
            paths.unusable = Some(
                "CTDB_TEST_MODE is set but CTDB_BASE is not; set it to the test's directory, or \
                 unset CTDB_TEST_MODE"
                    .to_owned(),
            );
            paths
        };
        if let Some(socket) = var("CTDB_SOCKET") {
            paths.socket = PathBuf::from(socket);
        }
        paths
    }

    fn assemble(
        etc: PathBuf,
        run: PathBuf,
        var: PathBuf,
        data: PathBuf,
        log: PathBuf,
        test_mode: bool,
    ) -> Self {
        Self {
            config: etc.join("ctdb.conf"),
            nodes: etc.join("nodes"),
            public_addresses: etc.join("public_addresses"),
            home_nodes: etc.join("home_nodes"),
            tunables: etc.join("ctdb.tunables"),
            tunables_dir: etc.join("tunables.d"),
            script_options: etc.join("script.options"),
            events: etc.join("events"),
            notify: etc.join("notify.sh"),
            key_file: etc.join("cluster.key"),
            socket: run.join("ctdbd.socket"),
            pid_file: run.join("ctdbd.pid"),
            listen_lock: run.join("tcp_listen_automatic.lock"),
            api_socket: run.join("api.sock"),
            api_read_socket: run.join("api-ro.sock"),
            bpf: run.join("bpf"),
            volatile: var.join("volatile"),
            persistent: var.join("persistent"),
            state: var.join("state"),
            scripts: var.join("scripts"),
            helpers: PathBuf::from("/usr/libexec/ctdb"),
            log,
            etc,
            run,
            var,
            data,
            test_mode,
            unusable: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(list: &[(&str, &str)]) -> Paths {
        Paths::from_vars(|name| {
            list.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn packages_layout() {
        let paths = vars(&[("CTDB_BASE", "/x"), ("CTDB_SOCKET", "/y")]);
        assert_eq!(paths.config, Path::new("/etc/ctdb/ctdb.conf"));
        assert_eq!(paths.socket, Path::new("/run/ctdb/ctdbd.socket"));
        assert_eq!(paths.volatile, Path::new("/var/lib/ctdb/volatile"));
        assert_eq!(paths.log, Path::new("/var/log/ctdb/log.ctdb"));
        assert!(!paths.test_mode);
    }

    #[test]
    fn test_mode_moves_everything_into_its_base() {
        let paths = vars(&[
            ("CTDB_TEST_MODE", "yes"),
            ("CTDB_BASE", "/t"),
            ("CTDB_SOCKET", "/s"),
        ]);
        assert_eq!(paths.nodes, Path::new("/t/nodes"));
        assert_eq!(paths.pid_file, Path::new("/t/run/ctdbd.pid"));
        assert_eq!(paths.persistent, Path::new("/t/var/persistent"));
        assert_eq!(paths.data, Path::new("/t/share"));
        assert_eq!(paths.socket, Path::new("/s"));
        assert_eq!(paths.unusable, None);
        assert!(vars(&[("CTDB_TEST_MODE", "yes")]).unusable.is_some());
    }

    #[test]
    fn our_root_prefixes_all_but_programs() {
        let paths = vars(&[("CTDBD_ROOT", "/r"), ("CTDB_SOCKET", "/s")]);
        assert_eq!(paths.key_file, Path::new("/r/etc/ctdb/cluster.key"));
        assert_eq!(paths.api_socket, Path::new("/r/run/ctdb/api.sock"));
        assert_eq!(paths.bpf, Path::new("/r/run/ctdb/bpf"));
        assert_eq!(paths.socket, Path::new("/r/run/ctdb/ctdbd.socket"));
        assert_eq!(paths.helpers, Path::new("/usr/libexec/ctdb"));
    }
}
