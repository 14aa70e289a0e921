//! Debian's packages of another release, unpacked in a cache, and a way to lay them over `/usr` of
//! a node's programs: so CTDB and Samba of a later release run as packaged, with their own libraries
//! (libc included) and their own helpers, and nothing is installed on the host.
//!
//! [`overlay`] downloads and unpacks, [`super::Builder::overlay`] makes a lab of it. What packages
//! have in `/etc` is copied for `/etc/ctdb` alone.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Settings, netns};

/// Shared by all checkouts of this machine. What lies there stays until somebody removes it, also when
/// the mirror has newer packages by then.
const CACHE: &str = "/var/cache/ctdb-tests";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";
/// Lines `PACKAGE VERSION` of all that was unpacked.
const VERSIONS: &str = "versions";

/// The root below which `packages` of Debian's `suite` (such as `trixie`) and all that they depend
/// on are unpacked; downloaded at the first call, which needs the network, root and 200 MB.
pub fn overlay(suite: &str, packages: &[&str]) -> Result<PathBuf> {
    let wanted: BTreeSet<&str> = packages.iter().copied().collect();
    let mut hasher = DefaultHasher::new();
    wanted.hash(&mut hasher);
    let place = Path::new(CACHE).join(format!("{suite}-{:016x}", hasher.finish()));
    fs::create_dir_all(CACHE).with_context(|| format!("making {CACHE}"))?;
    // Several test programs may want the same at once.
    let lock = place.with_extension("lock");
    let lock = File::create(&lock).with_context(|| format!("making {}", lock.display()))?;
    lock.lock().context("waiting for another download")?;
    if !place.join(VERSIONS).exists() {
        let work = place.with_extension("part");
        let _ = fs::remove_dir_all(&work);
        fetch(suite, &wanted, &work).with_context(|| format!("packages {wanted:?} of {suite}"))?;
        let _ = fs::remove_dir_all(&place);
        fs::rename(work.join("root"), &place)?;
        fs::remove_dir_all(&work)?;
    }
    Ok(place)
}

/// Version of a package below a root that [`overlay`] made.
pub fn version(root: &Path, package: &str) -> Result<String> {
    let text = fs::read_to_string(root.join(VERSIONS))?;
    text.lines()
        .find_map(|line| line.strip_prefix(package)?.strip_prefix(' '))
        .map(str::to_owned)
        .with_context(|| format!("{} has no package {package}", root.display()))
}

/// Into `work/root`.
fn fetch(suite: &str, packages: &BTreeSet<&str>, work: &Path) -> Result<()> {
    let root = work.join("root");
    for dir in ["root", "lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.join(dir))?;
    }
    // As if nothing were installed, so that all dependencies come; nothing of the system's apt changes.
    fs::write(work.join("status"), "")?;
    let list = work.join("sources.list");
    fs::write(
        &list,
        format!("deb [signed-by={KEYRING}] {MIRROR} {suite} main\n"),
    )?;
    let apt_get = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-q=2").env("DEBIAN_FRONTEND", "noninteractive");
        for option in [
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            format!("Dir::State={}", work.display()),
            format!("Dir::State::status={}", work.join("status").display()),
            format!("Dir::Cache={}", work.join("cache").display()),
            "APT::Sandbox::User=root".to_owned(),
            "APT::Install-Recommends=false".to_owned(),
            "pkgCacheGen::Essential=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.arg("-o").arg(option);
        }
        netns::run(command.args(words))
    };
    apt_get(&["update"])?;
    let mut words = vec!["install", "--download-only", "--yes"];
    words.extend(packages);
    apt_get(&words)?;
    let mut versions = String::new();
    for entry in fs::read_dir(work.join("cache/archives"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "deb") {
            netns::run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&root))?;
            let show = "--showformat=${Package} ${Version}\n";
            versions += &netns::run(Command::new("dpkg-deb").args(["-W", show]).arg(&path))?;
        }
    }
    ensure!(!versions.is_empty(), "nothing was downloaded");
    for dir in ["bin", "sbin", "lib", "lib64"] {
        // They are links into /usr on a system; a package that has them still would be half there.
        let old = root.join(dir);
        if old.is_dir() {
            let new = root.join("usr").join(dir);
            fs::create_dir_all(&new)?;
            netns::run(Command::new("cp").arg("-a").arg(old.join(".")).arg(&new))?;
            fs::remove_dir_all(&old)?;
        }
    }
    fs::write(root.join(VERSIONS), versions)?;
    Ok(())
}

/// A line of shell that lays `/usr` of a root over the host's, for a mount namespace of its own.
fn line(root: &Path) -> Result<String> {
    let Some(path) = root
        .to_str()
        .filter(|path| !path.contains(['\'', ':', ',']))
    else {
        bail!("{} cannot be mounted", root.display());
    };
    Ok(format!(
        "mount -t overlay ctdb-tests -o 'lowerdir={path}/usr:/usr' /usr\n"
    ))
}

/// Of the lab's overlay; nothing if it has none.
pub(super) fn shell_line(settings: &Settings) -> Result<String> {
    settings
        .overlay
        .as_deref()
        .map_or_else(|| Ok(String::new()), line)
}

/// A command that has the root's `/usr` over the host's; the process stays the one that is started.
pub fn command(root: &Path, words: &[&str]) -> Result<Command> {
    let mut command = netns::in_mounts(&(line(root)? + "exec \"$@\""));
    command.arg("overlay");
    command.args(words);
    Ok(command)
}
