//! Cargo as the other commands use it.
//!
//! Everything is built with `--workspace`: with `-p` cargo unifies features differently and
//! builds half of the packages twice.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// How to optimise.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// As for tests.
    Dev,
    /// As for packages.
    Release,
}

/// A test program that cargo built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestProgram {
    /// Name of its package.
    pub package: String,
    /// Name of its target, with underscores: the first part of the names of its tests.
    pub target: String,
    /// `lib`, `bin` or `test`.
    pub kind: String,
    /// Where it is.
    pub path: PathBuf,
    /// Folder of its package, which tests start in.
    pub folder: PathBuf,
}

/// `cargo` in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::workspace());
    command
}

/// Lines of `cargo build --message-format json` that name what was built.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    target: Option<Target>,
    profile: Option<BuiltProfile>,
    executable: Option<PathBuf>,
    #[serde(rename = "message")]
    diagnostic: Option<Diagnostic>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct BuiltProfile {
    test: bool,
}

#[derive(Deserialize)]
struct Diagnostic {
    rendered: Option<String>,
}

/// What a build gave.
#[derive(Default)]
pub struct Built {
    /// Test programs, in the order of package and target.
    pub tests: Vec<TestProgram>,
    /// Programs by name.
    pub programs: BTreeMap<String, PathBuf>,
    /// Everything was built.
    pub complete: bool,
}

/// Builds with cargo's own progress on standard error, and collects the executables. What can be
/// built is, even if something else cannot.
pub fn build(words: &[&str]) -> Result<Built> {
    let mut command = cargo();
    command
        .args(words)
        .args(["--keep-going", "--message-format", "json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut built = Built::default();
    let out = child.stdout.take().context("cargo's standard output")?;
    for line in BufReader::new(out).lines() {
        let line = line.context("reading cargo's messages")?;
        // Anything else that a build prints to standard output is not for us.
        let Ok(message) = serde_json::from_str::<Message>(&line) else {
            continue;
        };
        if message.reason == "compiler-message" {
            if let Some(text) = message.diagnostic.and_then(|m| m.rendered) {
                eprint!("{text}");
            }
            continue;
        }
        let (Some(target), Some(path)) = (message.target, message.executable) else {
            continue;
        };
        if !message.profile.is_some_and(|p| p.test) {
            built.programs.insert(target.name, path);
            continue;
        }
        let folder = message
            .manifest_path
            .parent()
            .map(PathBuf::from)
            .unwrap_or_default();
        let manifest = std::fs::read_to_string(&message.manifest_path).unwrap_or_default();
        built.tests.push(TestProgram {
            package: package_name(&manifest).unwrap_or_default(),
            target: target.name.replace('-', "_"),
            kind: target.kind.first().cloned().unwrap_or_default(),
            path,
            folder,
        });
    }
    built.complete = child.wait().context("waiting for cargo")?.success();
    built
        .tests
        .sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(built)
}

/// The first `name = "..."` of a manifest.
fn package_name(manifest: &str) -> Option<String> {
    let value = manifest.lines().find_map(|line| {
        let (key, value) = line.split_once('=')?;
        (key.trim() == "name").then(|| value.trim().trim_matches('"').to_owned())
    });
    value.filter(|name| !name.is_empty())
}

/// Builds all programs of the workspace, then becomes the named one: signals and exit status are
/// its own.
pub fn exec_built(name: &str, words: &[OsString], profile: Profile) -> Result<ExitCode> {
    let mut line = vec!["build", "--workspace", "--bins"];
    if profile == Profile::Release {
        line.push("--release");
    }
    eprintln!("building ...");
    let built = build(&line)?;
    if !built.complete {
        bail!("`cargo {}` failed; its messages are above", line.join(" "));
    }
    let Some(path) = built.programs.get(name) else {
        bail!("the workspace has no program `{name}`");
    };
    let error = Command::new(path).args(words).exec();
    Err(error).with_context(|| format!("starting {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::package_name;

    #[test]
    fn finds_the_name_in_a_manifest() {
        let manifest = "[package]\nname = \"ctdb-core\"\n[[bin]]\nname = \"x\"\n";
        assert_eq!(package_name(manifest).as_deref(), Some("ctdb-core"));
        assert_eq!(package_name("[workspace]\nnames = 1\n"), None);
    }
}
