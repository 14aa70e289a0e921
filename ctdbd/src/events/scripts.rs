//! The scripts of a component: which there are, which are enabled (`spec/cluster.md` 4.1,
//! `spec/cli.md` 6.9).

use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// Most scripts of a component; what is beyond is left out, with a log line.
pub const MAX_SCRIPTS: usize = ctdb_wire::eventd::MAX_SCRIPTS;

/// A script of a component.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Script {
    /// File name without `.script`.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// It is run.
    pub enabled: bool,
}

/// A script as `ctdb event script list` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Name.
    pub name: String,
    /// It is run.
    pub enabled: bool,
    /// It stands in the directory of shipped scripts.
    pub shipped: bool,
}

/// Why a script cannot be enabled or disabled.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// No such script.
    #[error("Script {script} does not exist in {component}")]
    Unknown {
        /// Script.
        script: String,
        /// Component.
        component: String,
    },
    /// Not a script's name.
    #[error("Script {script} is invalid in {component}")]
    Invalid {
        /// Script.
        script: String,
        /// Component.
        component: String,
    },
    /// Neither a file nor a link.
    #[error("Script {0} is not a file or a link")]
    Kind(PathBuf),
    /// The file system.
    #[error("{doing} {path}: {source}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl ScriptError {
    /// The error number of the event daemon's protocol.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Unknown { .. } => 2,
            Self::Invalid { .. } | Self::Kind(_) => 22,
            Self::System { .. } => 5,
        }
    }
}

/// A component's name is one path segment.
pub fn is_component(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0'])
}

/// The script name of a file name: two digits, a dot, a name, `.script`.
fn script_name(file: &str) -> Option<&str> {
    let name = file.strip_suffix(".script")?;
    is_script(name).then_some(name)
}

/// Two digits, a dot, a name.
fn is_script(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() > 3
        && bytes[..2].iter().all(u8::is_ascii_digit)
        && bytes[2] == b'.'
        && !bytes.contains(&b'/')
}

/// Scripts in a directory, in the order of their run. `None` if there is no such directory.
pub fn scripts(dir: &Path) -> io::Result<Option<Vec<Script>>> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let file = entry.file_name();
        let Some(name) = file.to_str().and_then(script_name) else {
            continue;
        };
        let path = entry.path();
        // A dangling link counts as disabled.
        let enabled = std::fs::metadata(&path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o100 != 0);
        found.push(Script {
            name: name.to_owned(),
            path,
            enabled,
        });
    }
    found.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    if found.len() > MAX_SCRIPTS {
        tracing::warn!(dir = %dir.display(), count = found.len(), "more than {MAX_SCRIPTS} event scripts; the last ones are left out");
        found.truncate(MAX_SCRIPTS);
    }
    Ok(Some(found))
}

/// Shipped scripts with whether they are enabled, and local ones.
pub fn list(events: &Path, shipped: &Path, component: &str) -> io::Result<Option<Vec<Listed>>> {
    let Some(shipped_scripts) = scripts(&shipped.join(component))? else {
        return Ok(None);
    };
    let local = scripts(&events.join(component))?.unwrap_or_default();
    let is_link_to = |script: &Script, target: &Path| {
        std::fs::read_link(&script.path).is_ok_and(|to| to == *target)
    };
    let mut listed: Vec<Listed> = shipped_scripts
        .iter()
        .map(|script| Listed {
            name: script.name.clone(),
            enabled: local
                .iter()
                .any(|one| one.name == script.name && is_link_to(one, &script.path)),
            shipped: true,
        })
        .collect();
    let own = local.into_iter().filter(|script| {
        !shipped_scripts
            .iter()
            .any(|one| one.name == script.name && is_link_to(script, &one.path))
    });
    listed.extend(own.map(|script| Listed {
        name: script.name,
        enabled: script.enabled,
        shipped: false,
    }));
    Ok(Some(listed))
}

/// Enables or disables a script; takes effect at the next event.
pub fn set_enabled(
    events: &Path,
    shipped: &Path,
    component: &str,
    script: &str,
    enable: bool,
) -> Result<(), ScriptError> {
    let unknown = || ScriptError::Unknown {
        script: script.to_owned(),
        component: component.to_owned(),
    };
    let segment = |name: &str| !name.is_empty() && !name.contains(['/', '\0']);
    if !is_component(component) || !segment(script) {
        return Err(ScriptError::Invalid {
            script: script.to_owned(),
            component: component.to_owned(),
        });
    }
    let path = events.join(component).join(format!("{script}.script"));
    let target = shipped.join(component).join(format!("{script}.script"));
    if !is_script(script) {
        // As 4.17 tells them apart.
        if path.symlink_metadata().is_err() && !target.exists() {
            return Err(unknown());
        }
        return Err(ScriptError::Invalid {
            script: script.to_owned(),
            component: component.to_owned(),
        });
    }
    let system = |doing, path: &Path| {
        let path = path.to_owned();
        move |source| ScriptError::System {
            doing,
            path,
            source,
        }
    };
    let meta = match std::fs::symlink_metadata(&path) {
        Ok(meta) => Some(meta),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(system("cannot look at", &path)(error)),
    };
    match meta {
        Some(meta) if meta.is_file() => {
            let mode = meta.permissions().mode();
            let wanted = if enable { mode | 0o100 } else { mode & !0o111 };
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(wanted))
                .map_err(system("cannot change", &path))
        }
        Some(meta) if meta.is_symlink() => {
            if enable {
                return Ok(());
            }
            std::fs::remove_file(&path).map_err(system("Failed to remove symlink", &path))
        }
        Some(_) => Err(ScriptError::Kind(path)),
        None if !target.exists() => Err(unknown()),
        None if !enable => Ok(()),
        None => {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir).map_err(system("cannot make", dir))?;
            }
            symlink(&target, &path).map_err(system("Failed to create symlink", &path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(dir: &Path, name: &str, mode: u32) -> PathBuf {
        std::fs::create_dir_all(dir).unwrap();
        let path = dir.join(name);
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn which_there_are_and_in_which_order() {
        let dir = tempfile::tempdir().unwrap();
        let legacy = dir.path().join("legacy");
        assert_eq!(scripts(&legacy).unwrap(), None);
        for (name, mode) in [
            ("50.samba.script", 0o755),
            ("05.system.script", 0o644),
            ("README", 0o755),
            ("5.x.script", 0o755),
            ("60.nfs.script.bak", 0o755),
            ("11.b.script", 0o700),
        ] {
            script(&legacy, name, mode);
        }
        symlink("/no/such/file", legacy.join("99.gone.script")).unwrap();
        let found: Vec<(String, bool)> = scripts(&legacy)
            .unwrap()
            .unwrap()
            .into_iter()
            .map(|script| (script.name, script.enabled))
            .collect();
        let wanted = [
            ("05.system", false),
            ("11.b", true),
            ("50.samba", true),
            ("99.gone", false),
        ];
        assert_eq!(found, wanted.map(|(name, on)| (name.to_owned(), on)));
    }

    #[test]
    fn shipped_ones_by_links_own_ones_by_their_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (events, shipped) = (dir.path().join("events"), dir.path().join("share"));
        script(&shipped.join("legacy"), "50.samba.script", 0o755);
        let own = script(&events.join("legacy"), "70.own.script", 0o644);
        let set = |name: &str, on| set_enabled(&events, &shipped, "legacy", name, on);
        let listed = || -> Vec<(String, bool, bool)> {
            let all = list(&events, &shipped, "legacy").unwrap().unwrap();
            all.into_iter()
                .map(|one| (one.name, one.enabled, one.shipped))
                .collect()
        };
        let names = |samba, own| {
            vec![
                ("50.samba".to_owned(), samba, true),
                ("70.own".to_owned(), own, false),
            ]
        };
        assert_eq!(listed(), names(false, false));
        set("50.samba", true).unwrap();
        set("50.samba", true).unwrap();
        set("70.own", true).unwrap();
        assert_eq!(listed(), names(true, true));
        assert!(own.exists());
        set("50.samba", false).unwrap();
        set("50.samba", false).unwrap();
        set("70.own", false).unwrap();
        assert_eq!(listed(), names(false, false));
        let error = set("99.zzz", true).unwrap_err();
        assert_eq!(
            (error.errno(), error.to_string().as_str()),
            (2, "Script 99.zzz does not exist in legacy")
        );
        assert_eq!(set("zzz", true).unwrap_err().errno(), 2);
        script(&events.join("legacy"), "zzz.script", 0o644);
        assert_eq!(set("zzz", true).unwrap_err().errno(), 22);
        assert_eq!(set("../zzz", true).unwrap_err().errno(), 22);
        assert_eq!(
            set_enabled(&events, &shipped, "../x", "50.samba", true)
                .unwrap_err()
                .errno(),
            22
        );
        std::fs::create_dir(events.join("legacy/80.dir.script")).unwrap();
        assert_eq!(set("80.dir", true).unwrap_err().errno(), 22);
        assert_eq!(list(&events, &shipped, "none").unwrap(), None);
    }
}
