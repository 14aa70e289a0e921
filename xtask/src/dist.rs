//! `cargo xtask dist`: a Debian package that puts our two programs in the place of those of the
//! package `ctdb`, keeps everything else of it (event scripts, `functions`, helpers, `onnode`), and
//! puts them back when it is removed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::cargo;

/// Options of `cargo xtask dist`.
#[derive(Args)]
pub struct Options {
    /// Where the package goes
    #[arg(long, default_value = "target/dist")]
    output: PathBuf,
    /// Take `ctdbd` and `ctdb` from this directory instead of building them
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
}

/// Name of the package.
const PACKAGE: &str = "ctdbd";
/// Where our programs are.
const PLACE: &str = "usr/lib/ctdbd";
/// Scripts that the package manager runs.
const SCRIPTS: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];
/// Pages that go along.
const PAGES: [&str; 5] = [
    "README.md",
    "ctdbd/EVENTS.md",
    "ctdbd/LOCKS.md",
    "ctdbd/SETTINGS.md",
    "CHANGELOG.md",
];

/// Builds the package and says where it is.
pub fn dist(workspace: &Path, options: &Options) -> Result<()> {
    let binaries = if let Some(dir) = &options.binaries {
        dir.clone()
    } else {
        cargo::build(&["build", "--release", "-p", "ctdbd", "--bins"])?;
        workspace.join("target/release")
    };
    let output = workspace.join(&options.output);
    let stage = output.join("stage");
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("removing {}", stage.display()))?;
    }
    fs::create_dir_all(&stage).with_context(|| format!("making {}", stage.display()))?;
    fill(workspace, &binaries, &stage)?;
    let control = control(&binaries)?;
    let meta = stage.join("DEBIAN");
    write(&meta.join("control"), control.as_bytes(), 0o644)?;
    for script in SCRIPTS {
        let text = fs::read(workspace.join("ctdbd/package").join(script))
            .with_context(|| format!("reading ctdbd/package/{script}"))?;
        write(&meta.join(script), &text, 0o755)?;
    }
    let name = format!("{PACKAGE}_{}_{}.deb", version(), architecture()?);
    let package = output.join(name);
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .arg(&stage)
        .arg(&package))?;
    println!("{}", package.display());
    Ok(())
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Everything below the root of the target system.
fn fill(workspace: &Path, binaries: &Path, stage: &Path) -> Result<()> {
    let ctdb = binaries.join("ctdb");
    for (name, link) in [("ctdbd", "usr/sbin/ctdbd"), ("ctdb", "usr/bin/ctdb")] {
        let from = binaries.join(name);
        let bytes = fs::read(&from).with_context(|| {
            format!(
                "reading {}; `cargo build -p ctdbd` makes it",
                from.display()
            )
        })?;
        let program = stage.join(PLACE).join(name);
        write(&program, &bytes, 0o755)?;
        // Debug sections make the package ten times as large and are of no use there.
        run(Command::new("strip").arg(&program))?;
        let link = stage.join(link);
        fs::create_dir_all(link.parent().unwrap_or(stage))?;
        symlink(Path::new("/").join(PLACE).join(name), &link)?;
    }
    let unit = fs::read(workspace.join("ctdbd/package/ctdbd.conf"))?;
    let dropin = stage.join("usr/lib/systemd/system/ctdb.service.d/ctdbd.conf");
    write(&dropin, &unit, 0o644)?;

    let man = stage.join("usr/share/man/man1");
    fs::create_dir_all(&man)?;
    run(Command::new(&ctdb).arg("manual").arg(&man))?;
    for entry in fs::read_dir(&man)? {
        run(Command::new("gzip").args(["-9n"]).arg(entry?.path()))?;
    }
    for (shell, place) in [
        ("bash", "usr/share/bash-completion/completions/ctdb"),
        ("zsh", "usr/share/zsh/vendor-completions/_ctdb"),
        ("fish", "usr/share/fish/vendor_completions.d/ctdb.fish"),
    ] {
        let script = read(Command::new(&ctdb).args(["completions", shell]))?;
        write(&stage.join(place), &script, 0o644)?;
    }

    let doc = stage.join("usr/share/doc").join(PACKAGE);
    let example = read(Command::new(&ctdb).args(["config", "example"]))?;
    write(&doc.join("examples/ctdb.conf"), &example, 0o644)?;
    for page in PAGES {
        let bytes = fs::read(workspace.join(page)).with_context(|| format!("reading {page}"))?;
        let name = Path::new(page).file_name().context("a page without name")?;
        write(&doc.join(name), &bytes, 0o644)?;
    }
    let licence = fs::read(workspace.join("LICENSE"))?;
    write(&doc.join("copyright"), &licence, 0o644)
}

fn control(binaries: &Path) -> Result<String> {
    let mut packages = libraries(&binaries.join("ctdbd"))?;
    packages.extend(libraries(&binaries.join("ctdb"))?);
    let mut depends: Vec<String> = packages.into_iter().collect();
    depends.push("ctdb (>= 2:4.17)".to_owned());
    Ok(format!(
        "Package: {PACKAGE}\n\
         Version: {}\n\
         Architecture: {}\n\
         Section: net\n\
         Priority: optional\n\
         Maintainer: ctdbd developers <ctdbd@localhost>\n\
         Depends: {}\n\
         Suggests: python3-rados\n\
         Description: failover daemon for clustered file servers, in the place of CTDB's\n \
         Puts ctdbd and ctdb in the place of those of the package ctdb, whose event scripts,\n \
         configuration and helper programs stay in use. Removing this package puts them back.\n",
        version(),
        architecture()?,
        depends.join(", ")
    ))
}

/// Packages of the shared libraries that a program wants.
fn libraries(program: &Path) -> Result<BTreeSet<String>> {
    let listed = String::from_utf8(read(Command::new("ldd").arg(program))?)?;
    let mut packages = BTreeSet::new();
    for path in listed
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
    {
        // As it is called, or as it is called without the link /lib -> /usr/lib.
        let real = fs::canonicalize(path).unwrap_or_else(|_| path.into());
        let short = path.strip_prefix("/usr").unwrap_or(path).to_owned();
        for name in [path.to_owned(), short, real.display().to_string()] {
            let output = Command::new("dpkg-query")
                .args(["--search", &name])
                .stderr(Stdio::null())
                .output()
                .context("running dpkg-query")?;
            let text = String::from_utf8_lossy(&output.stdout);
            if let Some((package, _)) = text.split_once(':').filter(|_| output.status.success()) {
                packages.insert(package.to_owned());
                break;
            }
        }
    }
    ensure!(
        !packages.is_empty(),
        "no package of the libraries of {} is known",
        program.display()
    );
    Ok(packages)
}

fn architecture() -> Result<String> {
    let text = read(Command::new("dpkg").arg("--print-architecture"))?;
    Ok(String::from_utf8(text)?.trim().to_owned())
}

fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let doing = || format!("writing {}", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(doing)?;
    }
    fs::write(path, bytes).with_context(doing)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(doing)
}

fn run(command: &mut Command) -> Result<()> {
    read(command).map(drop)
}

/// Standard output of a program that has to succeed.
fn read(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        bail!(
            "{name}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(output.stdout)
}
