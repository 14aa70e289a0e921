//! Builds the kernel programs' objects, or checks that those in the tree are what the sources give.
//!
//! The recipe is that of `spec/kernel.md` 1: rustc's own core source from Debian's `rust-src`, and
//! bpf-linker on rustc's own LLVM, so that no rustup component and no LLVM package is needed.
//! Everything downloaded or built stays below `target/ebpf-toolchain`.

use std::{
    ffi::OsString,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

/// To be raised when anything below changes what the object's bytes depend on.
const RECIPE: u32 = 1;
/// rustc, and so the core source.
const RUST: &str = "1.95.0";
const RUST_SRC_PACKAGE: &str = "1.95.0+dfsg1-2~bpo13+1";
const RUST_SRC_SHA256: &str = "7b76db5b880a77f9e52975d2baa6209d2f76d2c9c2789515c3088cb960e2c83b";
const RUST_SRC_SUITE: &str = "trixie-backports";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const LINKER: &str = "0.13.0";
/// One for each thing that is loaded by itself: lease, tracker, destroyer of sockets.
const BINARIES: [&str; 3] = ["ctdb-ebpf", "ctdb-track", "ctdb-destroy"];
const OBJECTS: &str = "ebpf/object";
const RECORD: &str = "ebpf/object/RECIPE.sha256";
const PROGRAMS: &str = "ebpf/programs";

/// Builds the objects below `ebpf/object` and records their sources' hash beside them. With `check`
/// nothing is written: the objects are built again and compared byte by byte; where that is not
/// possible (no network, another rustc) a warning says so and the recorded hashes are compared.
pub fn build(workspace_root: &Path, check: bool) -> Result<()> {
    let root = workspace_root
        .canonicalize()
        .with_context(|| format!("finding the workspace at {}", workspace_root.display()))?;
    let sources = hash_sources(&root)?;
    let objects: Option<Vec<_>> = BINARIES
        .iter()
        .map(|name| fs::read(object_path(&root, name)).ok())
        .collect();
    let recorded = fs::read_to_string(root.join(RECORD)).ok();
    let matches = objects
        .as_ref()
        .is_some_and(|objects| recorded.as_deref() == Some(&record(&sources, objects)));
    if !check && matches {
        println!("build-ebpf: the objects in {OBJECTS} are up to date");
        return Ok(());
    }
    if check {
        ensure!(
            matches,
            "objects in {OBJECTS} or their sources changed without the other; run `cargo xtask \
             build-ebpf` and commit {OBJECTS}"
        );
    }
    let toolchain = match Toolchain::prepare(&root) {
        Ok(toolchain) => toolchain,
        Err(error) if check => {
            eprintln!(
                "build-ebpf: WARNING: NOT REBUILT, only hashes of sources, recipe and objects were \
                 compared (they match): {error:#}"
            );
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let built = toolchain.objects(&root)?;
    if check {
        for ((name, here), built) in BINARIES.iter().zip(objects.unwrap_or_default()).zip(&built) {
            ensure!(
                here == *built,
                "{} differs from what its sources give (sha256 {} in the tree, {} built); run \
                 `cargo xtask build-ebpf` on a machine with rustc {RUST}",
                object_path(Path::new(""), name).display(),
                hex(&Sha256::digest(&here)),
                hex(&Sha256::digest(built)),
            );
        }
        println!("build-ebpf: the objects in {OBJECTS} rebuilt, identical");
        return Ok(());
    }
    fs::create_dir_all(root.join(OBJECTS))?;
    for (name, built) in BINARIES.iter().zip(&built) {
        let path = object_path(&root, name);
        fs::write(&path, built).with_context(|| format!("writing {}", path.display()))?;
        println!(
            "build-ebpf: wrote {} ({} bytes)",
            path.display(),
            built.len()
        );
    }
    fs::write(root.join(RECORD), record(&sources, &built))
        .with_context(|| format!("writing {RECORD}"))?;
    Ok(())
}

fn object_name(binary: &str) -> String {
    format!("{binary}-x86_64.o")
}

fn object_path(root: &Path, binary: &str) -> PathBuf {
    root.join(OBJECTS).join(object_name(binary))
}

/// The content of [`RECORD`].
fn record(sources: &str, objects: &[Vec<u8>]) -> String {
    let mut text = format!("{sources}  sources, Cargo.lock and recipe {RECIPE}\n");
    for (name, object) in BINARIES.iter().zip(objects) {
        let _ = writeln!(
            text,
            "{}  {}",
            hex(&Sha256::digest(object)),
            object_name(name)
        );
    }
    text
}

fn hash_sources(root: &Path) -> Result<String> {
    let programs = root.join(PROGRAMS);
    let mut files = vec![programs.join("Cargo.toml"), programs.join("Cargo.lock")];
    collect(&programs.join("src"), &mut files)?;
    files.sort();
    let mut hash = Sha256::new();
    hash.update(format!("recipe {RECIPE} rust {RUST} linker {LINKER}\n"));
    for file in files {
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.strip_prefix(&programs).unwrap_or(&file);
        hash.update(format!("{} {}\n", name.display(), content.len()));
        hash.update(&content);
    }
    Ok(hex(&hash.finalize()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What the object is built with.
struct Toolchain {
    folder: PathBuf,
    sysroot: PathBuf,
    host: String,
    library: PathBuf,
    linker: PathBuf,
}

impl Toolchain {
    /// Brings together core source and linker; both are kept for the next time.
    fn prepare(root: &Path) -> Result<Self> {
        let folder = root.join("target/ebpf-toolchain");
        fs::create_dir_all(&folder)
            .with_context(|| format!("making folder {}", folder.display()))?;
        let version = output(Command::new("rustc").arg("-vV").current_dir(root))?;
        let field = |name: &str| {
            version
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(|value| value.trim().to_owned())
                .with_context(|| format!("`rustc -vV` has no line `{name}`"))
        };
        let release = field("release:")?;
        ensure!(
            release == RUST,
            "the recipe is for rustc {RUST}, here is {release}"
        );
        let llvm = field("LLVM version:")?;
        let llvm_major = llvm.split('.').next().unwrap_or_default().to_owned();
        let host = field("host:")?;
        let sysroot = output(
            Command::new("rustc")
                .args(["--print", "sysroot"])
                .current_dir(root),
        )?;
        let sysroot = PathBuf::from(sysroot.trim());
        let library = core_source(&folder, &sysroot)?;
        let linker = linker(&folder, &sysroot, &llvm_major)?;
        Ok(Self {
            folder,
            sysroot,
            host,
            library,
            linker,
        })
    }

    /// The stripped objects.
    fn objects(&self, root: &Path) -> Result<Vec<Vec<u8>>> {
        step("compiling the kernel programs (about 20 s the first time)");
        let cargo_home = std::env::var_os("CARGO_HOME").map_or_else(
            || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"),
            PathBuf::from,
        );
        let target = self.folder.join("object-target");
        let programs = root.join(PROGRAMS);
        let manifest = programs.join("Cargo.toml");
        run(command("cargo")
            .current_dir(&programs)
            .args(["fetch", "--quiet", "--locked", "--manifest-path"])
            .arg(&manifest))?;
        // Fetched first, so that the registry's folder is there to be named.
        let mut remaps = vec![
            (programs, "/ctdb-ebpf"),
            (self.library.clone(), "/rust/library"),
        ];
        let registry = cargo_home.join("registry/src");
        if let Ok(entries) = fs::read_dir(&registry) {
            for entry in entries {
                remaps.push((entry?.path(), "/registry"));
            }
        }
        let mut flags: Vec<OsString> = vec![
            "--cfg=bpf_target_arch=\"x86_64\"".into(),
            "-Cdebuginfo=2".into(),
            "-Clink-arg=--btf".into(),
        ];
        let mut linker = OsString::from("-Clinker=");
        linker.push(&self.linker);
        flags.push(linker);
        for (from, to) in remaps {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push("=");
            flag.push(to);
            flags.push(flag);
        }
        run(command("cargo")
            .current_dir(root.join(PROGRAMS))
            .env("RUSTC_BOOTSTRAP", "1")
            .env("__CARGO_TESTS_ONLY_SRC_ROOT", &self.library)
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                flags.join(&OsString::from("\u{1f}")),
            )
            .env("LD_LIBRARY_PATH", self.sysroot.join("lib"))
            .args(["build", "--quiet", "--locked", "--release", "-j", "2"])
            .args([
                "--target",
                "bpfel-unknown-none",
                "-Zbuild-std=core",
                "--manifest-path",
            ])
            .arg(&manifest)
            .arg("--target-dir")
            .arg(&target))?;
        let objcopy = self
            .sysroot
            .join("lib/rustlib")
            .join(&self.host)
            .join("bin/rust-objcopy");
        let strip = |name: &&str| {
            let linked = target.join("bpfel-unknown-none/release").join(name);
            let stripped = self.folder.join(object_name(name));
            run(command(&objcopy)
                .env("LD_LIBRARY_PATH", self.sysroot.join("lib"))
                .arg("--strip-debug")
                .args([&linked, &stripped]))?;
            fs::read(&stripped).with_context(|| format!("reading {}", stripped.display()))
        };
        BINARIES.iter().map(strip).collect()
    }
}

/// The folder `library` of rustc's sources: rustup's component if it is there, else Debian's.
fn core_source(folder: &Path, sysroot: &Path) -> Result<PathBuf> {
    let component = sysroot.join("lib/rustlib/src/rust/library");
    if component.join("core/src/lib.rs").exists() {
        return Ok(component);
    }
    let place = folder.join(format!("rust-src-{RUST}"));
    let library = place.join("library");
    if library.join("core/src/lib.rs").exists() {
        return Ok(library);
    }
    step(&format!("downloading rust-src {RUST_SRC_PACKAGE} (45 MB)"));
    let apt = folder.join("apt");
    for part in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(part))?;
    }
    let list = apt.join("sources.list");
    let keyring = if Path::new(KEYRING).exists() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    fs::write(
        &list,
        format!("deb {keyring}{} {RUST_SRC_SUITE} main\n", debian_mirror()),
    )?;
    // A private tree: nothing of the system's apt changes.
    let options = [
        format!("Dir::Etc::sourcelist={}", list.display()),
        "Dir::Etc::sourceparts=-".to_owned(),
        format!("Dir::State::lists={}", apt.join("lists").display()),
        format!("Dir::Cache={}", apt.join("cache").display()),
        "APT::Sandbox::User=root".to_owned(),
    ];
    let apt_get = || {
        let mut command = command("apt-get");
        command.current_dir(apt.join("cache")).arg("-q=2");
        for option in &options {
            command.arg("-o").arg(option);
        }
        command
    };
    run(apt_get().arg("update"))?;
    run(apt_get()
        .arg("download")
        .arg(format!("rust-src={RUST_SRC_PACKAGE}")))?;
    let package = apt
        .join("cache")
        .join(format!("rust-src_{RUST_SRC_PACKAGE}_all.deb"));
    let content = fs::read(&package).with_context(|| format!("reading {}", package.display()))?;
    let found = hex(&Sha256::digest(&content));
    ensure!(
        found == RUST_SRC_SHA256,
        "{} has sha256 {found}, expected {RUST_SRC_SHA256}; delete it and try again",
        package.display()
    );
    let unpacking = folder.join("rust-src.part");
    let _ = fs::remove_dir_all(&unpacking);
    fs::create_dir_all(&unpacking)?;
    let archive = folder.join("rust-src.tar");
    run(command("sh")
        .args(["-ec", "dpkg-deb --fsys-tarfile \"$0\" > \"$1\""])
        .args([&package, &archive]))?;
    run(command("tar")
        .arg("-xf")
        .arg(&archive)
        .arg("-C")
        .arg(&unpacking)
        .arg("--strip-components=4")
        .arg(format!("./usr/src/rustc-{RUST}/library")))?;
    fs::remove_file(&archive)?;
    let _ = fs::remove_dir_all(&place);
    fs::rename(&unpacking, &place)?;
    Ok(library)
}

/// The Debian mirror that this machine's own apt names.
fn debian_mirror() -> String {
    let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        texts.extend(
            entries
                .flatten()
                .filter_map(|entry| fs::read_to_string(entry.path()).ok()),
        );
    }
    texts
        .iter()
        .flat_map(|text| text.lines())
        .filter(|line| !line.trim_start().starts_with('#'))
        .flat_map(str::split_whitespace)
        .find(|word| {
            let word = word.trim_end_matches('/');
            word.starts_with("http") && word.ends_with("/debian")
        })
        .unwrap_or("http://deb.debian.org/debian")
        .to_owned()
}

/// bpf-linker, built on rustc's own LLVM.
fn linker(folder: &Path, sysroot: &Path, llvm_major: &str) -> Result<PathBuf> {
    let place = folder.join(format!("bpf-linker-{LINKER}-llvm{llvm_major}"));
    let binary = place.join("bin/bpf-linker");
    if binary.exists() {
        return Ok(binary);
    }
    step(&format!("building bpf-linker {LINKER} (about 70 s)"));
    let mut llvm = None;
    for entry in fs::read_dir(sysroot.join("lib"))? {
        let name = entry?.file_name();
        if name.to_string_lossy().starts_with("libLLVM.so.") {
            llvm = Some(name);
        }
    }
    let Some(llvm) = llvm else {
        bail!(
            "rustc at {} has no libLLVM.so of its own",
            sysroot.display()
        );
    };
    let prefix = folder.join("llvm");
    let library = prefix.join("lib");
    fs::create_dir_all(&library)?;
    for name in [llvm.clone(), OsString::from("libLLVM.so")] {
        let link = library.join(name);
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(sysroot.join("lib").join(&llvm), &link)?;
    }
    run(command("cargo")
        .env("LLVM_PREFIX", &prefix)
        .args([
            "install",
            "bpf-linker",
            "--quiet",
            "--version",
            LINKER,
            "--locked",
        ])
        .args(["--no-default-features", "--features"])
        .arg(format!("llvm-{llvm_major}"))
        .args(["-j", "2", "--root"])
        .arg(&place)
        .arg("--target-dir")
        .arg(folder.join("linker-target")))?;
    // 270 MB that nobody needs again.
    let _ = fs::remove_dir_all(folder.join("linker-target"));
    Ok(binary)
}

fn step(what: &str) {
    println!("build-ebpf: {what}");
}

/// A command without what an outer cargo or the user's shell set for other builds.
fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
        "CARGO_TARGET_DIR",
    ] {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C.UTF-8");
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("running {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} ended with {}",
        output.status
    );
    String::from_utf8(output.stdout).with_context(|| format!("reading what {command:?} printed"))
}
