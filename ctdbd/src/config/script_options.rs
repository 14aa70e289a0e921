//! Options of CTDB's event scripts (`spec/cluster.md` 1.6): assignments in `ETC/script.options` and
//! in `events/legacy/SCRIPT.options`, which the scripts source themselves. So all of them work as
//! they did, but for what 10.interface is not asked to do when addresses are built in.

use std::path::{Path, PathBuf};

use super::legacy::Fate::{self, Honoured, Mapped};
use super::report::Report;

/// Longest file of options.
const MAX_FILE: u64 = 256 * 1024;

/// One option.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScriptOption {
    /// Script, or `any`.
    pub script: &'static str,
    /// Name.
    pub name: &'static str,
    /// Default as the scripts have it.
    pub default: &'static str,
    /// What becomes of it with `[failover] addresses = builtin`.
    pub fate: Fate,
}

const fn option(script: &'static str, name: &'static str, default: &'static str) -> ScriptOption {
    ScriptOption {
        script,
        name,
        default,
        fate: Honoured,
    }
}

const ENDED: Fate = Mapped(
    "the daemon ends the connections of an address that leaves; 91.lvs still reads this option",
);

/// All options, by script.
pub const OPTIONS: &[ScriptOption] = &[
    option("any", "CTDB_PLATFORM_STYLE", "from /etc/os-release"),
    option(
        "05.system",
        "CTDB_MONITOR_FILESYSTEM_USAGE",
        "database directories, :90",
    ),
    option("05.system", "CTDB_MONITOR_MEMORY_USAGE", "80"),
    option("10.interface", "CTDB_PARTIALLY_ONLINE_INTERFACES", "no"),
    ScriptOption {
        fate: ENDED,
        ..option("10.interface", "CTDB_KILLTCP_USE_SS_KILL", "no")
    },
    ScriptOption {
        fate: ENDED,
        ..option("10.interface", "CTDB_KILLTCP_DEBUGLEVEL", "daemon level")
    },
    option("11.natgw", "CTDB_NATGW_NODES", ""),
    option("11.natgw", "CTDB_NATGW_PUBLIC_IP", ""),
    option("11.natgw", "CTDB_NATGW_PUBLIC_IFACE", ""),
    option("11.natgw", "CTDB_NATGW_PRIVATE_NETWORK", ""),
    option("11.natgw", "CTDB_NATGW_DEFAULT_GATEWAY", ""),
    option("11.natgw", "CTDB_NATGW_STATIC_ROUTES", "0.0.0.0/0"),
    option("13.per_ip_routing", "CTDB_PER_IP_ROUTING_CONF", ""),
    option("13.per_ip_routing", "CTDB_PER_IP_ROUTING_RULE_PREF", ""),
    option("13.per_ip_routing", "CTDB_PER_IP_ROUTING_TABLE_ID_LOW", ""),
    option("13.per_ip_routing", "CTDB_PER_IP_ROUTING_TABLE_ID_HIGH", ""),
    option("15.network", "CTDB_MONITOR_HOSTS", ""),
    option("20.multipathd", "CTDB_MONITOR_MPDEVICES", ""),
    option("31.clamd", "CTDB_CLAMD_SOCKET", ""),
    option("40.vsftpd", "CTDB_VSFTPD_MONITOR_THRESHOLDS", "1:2"),
    option(
        "47.samba-dcerpcd",
        "CTDB_SERVICE_SAMBA_DCERPCD",
        "samba-dcerpcd",
    ),
    option("48.netbios", "CTDB_SERVICE_NMB", "nmb or nmbd"),
    option("49.winbind", "CTDB_SERVICE_WINBIND", "winbind"),
    option("50.samba", "CTDB_SERVICE_SMB", "smb or smbd"),
    option("50.samba", "CTDB_SAMBA_CHECK_PORTS", "from testparm"),
    option("50.samba", "CTDB_SAMBA_SKIP_SHARE_CHECK", "no"),
    option("50.samba", "CTDB_SAMBA_INTERFACES_FILE", ""),
    option("50.samba", "CTDB_SAMBA_INTERFACES_EXTRA", ""),
    option("60.nfs", "CTDB_NFS_CALLOUT", "nfs-linux-kernel-callout"),
    option("60.nfs", "CTDB_NFS_CHECKS_DIR", "nfs-checks.d"),
    option("60.nfs", "CTDB_NFS_SKIP_SHARE_CHECK", "no"),
    option("60.nfs", "CTDB_NFS_EXPORTS_FILE", "of the call-out"),
    option("60.nfs", "CTDB_NFS_SHARED_STATE_DIR", ""),
    option("60.nfs", "CTDB_RPCINFO_LOCALHOST", "127.0.0.1"),
    option("60.nfs", "CTDB_RPCINFO_LOCALHOST6", "::1"),
    option(
        "60.nfs",
        "CTDB_STATD_CALLOUT_SHARED_STORAGE",
        "persistent_db",
    ),
    option("70.iscsi", "CTDB_START_ISCSI_SCRIPTS", ""),
    option("91.lvs", "CTDB_LVS_NODES", ""),
    option("91.lvs", "CTDB_LVS_PUBLIC_IP", ""),
    option("91.lvs", "CTDB_LVS_PUBLIC_IFACE", ""),
    option("95.database", "CTDB_MAX_CORRUPT_DB_BACKUPS", "10"),
    option("95.database", "CTDB_PERSISTENT_DB_BACKUP_DIR", ""),
    option("95.database", "CTDB_PERSISTENT_DB_BACKUP_LIMIT", "14"),
    option("95.database", "CTDB_PERSISTENT_DB_BACKUP_MODE", "0700"),
    option(
        "debug-hung-script.sh",
        "CTDB_DEBUG_HUNG_SCRIPT_STACKPAT",
        "exportfs\\|rpcinfo",
    ),
];

/// Options in a file of assignments that do not do here what they did in CTDB, with line number.
pub fn without_effect(text: &str) -> Vec<(u32, &'static ScriptOption)> {
    text.lines()
        .zip(1..)
        .filter_map(|(line, number)| {
            let line = line.trim_start();
            let line = line.strip_prefix("export ").unwrap_or(line);
            let (name, _) = line.split_once('=')?;
            let option = OPTIONS.iter().find(|option| option.name == name)?;
            (option.fate != Honoured).then_some((number, option))
        })
        .collect()
}

/// One warning for each option that has no effect, where addresses are built in. Files that are
/// not there or cannot be read are the scripts' own business.
pub(super) fn check(options: &Path, events: &Path, report: &mut Report) {
    let mut files = vec![options.to_owned()];
    let mut own: Vec<PathBuf> = std::fs::read_dir(events.join("legacy"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "options"))
        .collect();
    own.sort();
    files.extend(own);
    let mut told = Vec::new();
    for file in files {
        let Ok(Some(text)) = super::read_text(&file, MAX_FILE) else {
            continue;
        };
        for (line, option) in without_effect(&text) {
            if !told.contains(&option.name) {
                told.push(option.name);
                let what = format!("{} has no effect: {}", option.name, option.fate.text());
                report.warning(&file, Some(line), what, "remove the line");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `spec/cluster.md` 1.6.
    const NAMES: &str = "CTDB_PLATFORM_STYLE CTDB_MONITOR_FILESYSTEM_USAGE \
        CTDB_MONITOR_MEMORY_USAGE CTDB_PARTIALLY_ONLINE_INTERFACES CTDB_KILLTCP_USE_SS_KILL \
        CTDB_KILLTCP_DEBUGLEVEL CTDB_NATGW_NODES CTDB_NATGW_PUBLIC_IP CTDB_NATGW_PUBLIC_IFACE \
        CTDB_NATGW_PRIVATE_NETWORK CTDB_NATGW_DEFAULT_GATEWAY CTDB_NATGW_STATIC_ROUTES \
        CTDB_PER_IP_ROUTING_CONF CTDB_PER_IP_ROUTING_RULE_PREF CTDB_PER_IP_ROUTING_TABLE_ID_LOW \
        CTDB_PER_IP_ROUTING_TABLE_ID_HIGH CTDB_MONITOR_HOSTS CTDB_MONITOR_MPDEVICES \
        CTDB_CLAMD_SOCKET CTDB_VSFTPD_MONITOR_THRESHOLDS CTDB_SERVICE_SAMBA_DCERPCD \
        CTDB_SERVICE_NMB CTDB_SERVICE_WINBIND CTDB_SERVICE_SMB CTDB_SAMBA_CHECK_PORTS \
        CTDB_SAMBA_SKIP_SHARE_CHECK CTDB_SAMBA_INTERFACES_FILE CTDB_SAMBA_INTERFACES_EXTRA \
        CTDB_NFS_CALLOUT CTDB_NFS_CHECKS_DIR CTDB_NFS_SKIP_SHARE_CHECK CTDB_NFS_EXPORTS_FILE \
        CTDB_NFS_SHARED_STATE_DIR CTDB_RPCINFO_LOCALHOST CTDB_RPCINFO_LOCALHOST6 \
        CTDB_STATD_CALLOUT_SHARED_STORAGE CTDB_START_ISCSI_SCRIPTS CTDB_LVS_NODES \
        CTDB_LVS_PUBLIC_IP CTDB_LVS_PUBLIC_IFACE CTDB_MAX_CORRUPT_DB_BACKUPS \
        CTDB_PERSISTENT_DB_BACKUP_DIR CTDB_PERSISTENT_DB_BACKUP_LIMIT \
        CTDB_PERSISTENT_DB_BACKUP_MODE CTDB_DEBUG_HUNG_SCRIPT_STACKPAT";

    #[test]
    fn every_option_of_the_specification_is_in_the_table() {
        let wanted: Vec<&str> = NAMES.split_whitespace().collect();
        let found: Vec<&str> = OPTIONS.iter().map(|option| option.name).collect();
        assert_eq!(found, wanted);
    }

    #[test]
    fn one_warning_for_what_has_no_effect() {
        let text = "# CTDB_KILLTCP_DEBUGLEVEL=1\nCTDB_NATGW_NODES=/x\n  \
                    CTDB_KILLTCP_USE_SS_KILL=yes\nexport CTDB_KILLTCP_DEBUGLEVEL=NOTICE\n";
        let lines: Vec<u32> = without_effect(text).iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [3, 4]);

        let dir = tempfile::tempdir().unwrap();
        let legacy = dir.path().join("events/legacy");
        std::fs::create_dir_all(&legacy).unwrap();
        let options = dir.path().join("script.options");
        std::fs::write(&options, "CTDB_KILLTCP_USE_SS_KILL=yes\n").unwrap();
        std::fs::write(
            legacy.join("10.interface.options"),
            "CTDB_KILLTCP_USE_SS_KILL=try\n",
        )
        .unwrap();
        let mut report = Report::default();
        check(&options, &dir.path().join("events"), &mut report);
        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
        assert!(
            report.problems[0].to_string().contains("script.options:1"),
            "{}",
            report.problems[0]
        );
    }
}
