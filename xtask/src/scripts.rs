//! The shell scripts of this project: found, and kept clean by `shellcheck` and `shfmt`.

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// Files under version control, or about to be, that a shell runs.
    fn scripts(root: &Path) -> Vec<PathBuf> {
        let listed = Command::new("git")
            .args(["ls-files", "--cached", "--others", "--exclude-standard"])
            .current_dir(root)
            .output()
            .unwrap();
        assert!(listed.status.success(), "git ls-files");
        let files = String::from_utf8(listed.stdout).unwrap();
        files
            .lines()
            .map(|name| root.join(name))
            .filter(|path| {
                let bytes = std::fs::read(path).unwrap_or_default();
                let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
                let first = String::from_utf8_lossy(first);
                first.starts_with("#!") && (first.ends_with("sh") || first.contains("sh "))
            })
            .collect()
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
        for (program, options) in [("shellcheck", &[][..]), ("shfmt", &["-d"][..])] {
            let output = Command::new(program)
                .args(options)
                .args(&scripts)
                .output()
                .unwrap_or_else(|error| {
                    panic!("{program}: {error}; `cargo xtask setup` installs it")
                });
            assert!(
                output.status.success(),
                "{program}:\n{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
}
