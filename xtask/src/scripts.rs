//! The scripts of this project: found, and kept clean, those of shells by `shellcheck` and `shfmt`,
//! those of Python by `pyflakes3`.

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// Files under version control, or about to be.
    fn files(root: &Path) -> Vec<PathBuf> {
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .unwrap();
        assert!(listed.status.success(), "git ls-files");
        let files = String::from_utf8(listed.stdout).unwrap();
        files.lines().map(|name| root.join(name)).collect()
    }

    /// Those that a shell runs.
    fn scripts(root: &Path) -> Vec<PathBuf> {
        let mut files = files(root);
        files.retain(|path| {
            let bytes = std::fs::read(path).unwrap_or_default();
            let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
            let first = String::from_utf8_lossy(first);
            first.starts_with("#!") && (first.ends_with("sh") || first.contains("sh "))
        });
        files
    }

    /// Runs a checker over files; it has to find nothing.
    fn clean(program: &str, options: &[&str], files: &[PathBuf]) {
        let output = Command::new(program)
            .args(options)
            .args(files)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}; `cargo xtask setup` installs it"));
        assert!(
            output.status.success(),
            "{program}:\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    #[test]
    fn every_script_is_clean() {
        let root = crate::workspace();
        let scripts = scripts(&root);
        for name in [".ci/run", "ctdbd/package/preinst"] {
            assert!(
                scripts.contains(&root.join(name)),
                "{name} is not among {scripts:?}"
            );
        }
        clean("shellcheck", &[], &scripts);
        clean("shfmt", &["-d"], &scripts);
    }

    #[test]
    fn every_python_program_is_clean() {
        let root = crate::workspace();
        let mut programs = files(&root);
        programs.retain(|path| path.extension().is_some_and(|ending| ending == "py"));
        let lock = root.join("ctdbd/src/lock/rados.py");
        assert!(programs.contains(&lock), "it is not among {programs:?}");
        clean("pyflakes3", &[], &programs);
    }
}
