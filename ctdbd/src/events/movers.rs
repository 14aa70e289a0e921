//! Which scripts move public addresses themselves: copies of CTDB's `10.interface` under other
//! names, and scripts that were made after it.
//!
//! With `[failover] addresses = builtin` such a script would add addresses that are there and, on a
//! late `releaseip`, remove one that has just been taken again. So it is named in the log and not
//! sent `takeip`, `releaseip` and `updateip`; its other events stay.
//!
//! [`moves_addresses`] reads a shell script as far as that takes: the branches for the three
//! events, and the functions that they call. A command with literal addresses only (`ip addr add
//! 169.254.1.1/32 dev lo`) is about something else and does not count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::scripts::Script;

/// The script whose work on addresses is built in (`spec/cluster.md` 3.11).
pub const BUILT_IN: &str = "10.interface";
/// Larger files are no scripts that somebody wrote.
const MAX_SCRIPT: u64 = 1024 * 1024;

/// The events that are about an address.
pub fn is_address_event(event: &str) -> bool {
    ADDRESS_EVENTS.contains(&event)
}

const ADDRESS_EVENTS: [&str; 3] = ["takeip", "releaseip", "updateip"];

/// Functions of CTDB's `functions` file that put addresses on interfaces or take them off
/// (`spec/cluster.md` 4.8, old names included).
const HELPERS: [&str; 6] = [
    "ip_addr_add",
    "ip_addr_del",
    "add_ip_to_iface",
    "delete_ip_from_iface",
    "drop_ip",
    "drop_all_public_ips",
];

/// Where a script moves an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Evidence {
    /// Line number, from 1.
    pub line: usize,
    /// The command.
    pub command: String,
}

/// The first command in a script's branches for `takeip`, `releaseip` and `updateip` that moves an
/// address.
pub fn moves_addresses(text: &str) -> Option<Evidence> {
    let lines = code_lines(text);
    let functions = functions(&lines);
    let mut wanted: Vec<usize> = branches(&lines);
    let mut seen: BTreeSet<usize> = wanted.iter().copied().collect();
    let mut found: Option<usize> = None;
    while let Some(at) = wanted.pop() {
        let line = &lines[at].1;
        if moves(line) && found.is_none_or(|old| at < old) {
            found = Some(at);
        }
        for word in words(line) {
            for body in functions.get(word).into_iter().flatten() {
                if seen.insert(*body) {
                    wanted.push(*body);
                }
            }
        }
    }
    found.map(|at| Evidence {
        line: lines[at].0,
        command: lines[at].1.trim().to_owned(),
    })
}

/// Lines without comments, continued ones joined, with the number of their first line.
fn code_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut joined = false;
    for (raw, number) in text.lines().zip(1..) {
        let code = if joined { raw } else { without_comment(raw) };
        let (code, goes_on) = match code.strip_suffix('\\') {
            Some(code) => (code, true),
            None => (code, false),
        };
        match lines.last_mut().filter(|_| joined) {
            Some((_, last)) => last.push_str(code),
            None => lines.push((number, code.to_owned())),
        }
        joined = goes_on;
    }
    lines
}

/// Without what stands behind a `#` that begins a word outside of quotes.
fn without_comment(line: &str) -> &str {
    let (mut quote, mut before) = (None, ' ');
    for (at, letter) in line.char_indices() {
        match (quote, letter) {
            (None, '#') if before.is_whitespace() || before == ';' => return &line[..at],
            (None, '\'' | '"') if before != '\\' => quote = Some(letter),
            (Some(open), letter) if open == letter && before != '\\' => quote = None,
            _ => {}
        }
        before = letter;
    }
    line
}

/// Words, as far as names and options go: separators and quotes of the shell part them.
fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|letter: char| letter.is_whitespace() || "\"'`;&|(){}=".contains(letter))
        .filter(|word| !word.is_empty())
}

/// Lines of the body of each function.
fn functions(lines: &[(usize, String)]) -> BTreeMap<&str, Vec<usize>> {
    let mut found: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    let mut current: Option<&str> = None;
    for (at, (_, line)) in lines.iter().enumerate() {
        let trimmed = line.trim();
        if current.is_none()
            && let Some(name) = function_name(trimmed)
        {
            current = Some(name);
            found.entry(name).or_default().push(at);
            if trimmed.ends_with('}') {
                current = None;
            }
            continue;
        }
        if let Some(name) = current {
            found.entry(name).or_default().push(at);
            // As everybody writes it: the brace that ends a function begins its line.
            if line.starts_with('}') {
                current = None;
            }
        }
    }
    found
}

fn function_name(line: &str) -> Option<&str> {
    let name = if let Some(rest) = line.strip_prefix("function ") {
        rest.split(|letter: char| letter.is_whitespace() || letter == '(')
            .next()?
    } else {
        let (name, rest) = line.split_once('(')?;
        rest.trim_start().starts_with(')').then_some(name)?
    };
    let name = name.trim();
    let good = |letter: char| letter.is_ascii_alphanumeric() || "_-.".contains(letter);
    (!name.is_empty() && name.chars().all(good)).then_some(name)
}

/// Lines of branches for address events: the arms of `case`, and `if` with a comparison.
fn branches(lines: &[(usize, String)]) -> Vec<usize> {
    let mut found = Vec::new();
    let (mut arm, mut depth) = (false, 0_usize);
    for (at, (_, line)) in lines.iter().enumerate() {
        let trimmed = line.trim();
        if arm {
            found.push(at);
            arm = !trimmed.ends_with(";;");
            continue;
        }
        if depth > 0 {
            found.push(at);
            for word in words(trimmed) {
                match word {
                    "if" => depth += 1,
                    "fi" => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
            continue;
        }
        let names_event = words(trimmed).any(is_address_event);
        if !names_event {
            continue;
        }
        let pattern = trimmed.split_once(')').map(|(pattern, _)| pattern);
        if pattern
            .is_some_and(|pattern| !pattern.contains("$(") && words(pattern).any(is_address_event))
        {
            found.push(at);
            arm = !trimmed.ends_with(";;");
        } else if words(trimmed).any(|word| word == "if" || word == "elif") {
            found.push(at);
            depth = usize::from(!words(trimmed).any(|word| word == "fi"));
        } else if trimmed.contains("&&") || trimmed.contains("||") {
            found.push(at);
        }
    }
    found
}

/// A command of this line puts an address that is not literal on an interface, or takes one off.
fn moves(line: &str) -> bool {
    if !line.contains('$') {
        return false;
    }
    let words: Vec<&str> = words(line).collect();
    words.iter().enumerate().any(|(at, word)| {
        let name = word.rsplit('/').next().unwrap_or(word);
        let mut rest = words[at + 1..]
            .iter()
            .copied()
            .filter(|word| !word.starts_with('-'));
        if HELPERS.contains(word) {
            // Not its definition.
            return function_name(line.trim()).is_none();
        }
        match name {
            "ip" => {
                let object = rest.next().unwrap_or("");
                let verb = rest.next().unwrap_or("");
                !object.is_empty()
                    && "address".starts_with(object)
                    && ["add", "del", "delete", "replace", "change", "flush"]
                        .iter()
                        .any(|one| !verb.is_empty() && one.starts_with(verb))
            }
            "ifconfig" => rest.nth(1).is_some(),
            _ => false,
        }
    })
}

/// What a file was when it was read.
type Stamp = (u64, u64, i64, i64, u64);

/// What was found in each file.
type Known = BTreeMap<PathBuf, (Stamp, Option<Evidence>)>;

/// What is known of the scripts of a directory; files are read when they have changed. Cheap to
/// clone.
#[derive(Clone)]
pub struct Movers {
    /// Directory of shipped scripts.
    shipped: PathBuf,
    known: Arc<Mutex<Known>>,
}

impl Movers {
    /// For scripts whose originals are in `shipped`.
    pub fn new(shipped: &Path) -> Self {
        Self {
            shipped: shipped.to_owned(),
            known: Arc::default(),
        }
    }

    /// Those of `scripts` that are not sent address events, with the reason. Each is named in the
    /// log when it is first seen and when it has changed. Reads files.
    pub fn withheld(&self, scripts: &[Script]) -> BTreeMap<String, String> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|path, _| scripts.iter().any(|script| script.path == *path));
        let mut withheld = BTreeMap::new();
        for script in scripts.iter().filter(|script| script.enabled) {
            let evidence = match stamp(&script.path) {
                Some(stamp) => match known.get(&script.path) {
                    Some((old, evidence)) if *old == stamp => evidence.clone(),
                    _ => {
                        let evidence = self.read(script, stamp.2);
                        known.insert(script.path.clone(), (stamp, evidence.clone()));
                        evidence
                    }
                },
                None => None,
            };
            if let Some(evidence) = evidence {
                let why = format!(
                    "not sent: line {} moves addresses ({}), which is built in",
                    evidence.line, evidence.command
                );
                withheld.insert(script.name.clone(), why);
            } else if script.name == BUILT_IN {
                withheld.insert(script.name.clone(), String::new());
            }
        }
        withheld
    }

    /// Looks at a new or changed file and names it if there is reason to.
    fn read(&self, script: &Script, size: i64) -> Option<Evidence> {
        if u64::try_from(size).is_ok_and(|size| size > MAX_SCRIPT) {
            return None;
        }
        let bytes = fs::read(&script.path).ok()?;
        let original = self.shipped.join(format!("{}.script", script.name));
        let shipped = fs::read(&original).ok();
        if script.name == BUILT_IN {
            if shipped.is_some_and(|shipped| shipped != bytes) {
                tracing::warn!(
                    script = script.name, file = %script.path.display(),
                    original = %original.display(),
                    "this copy was edited; takeip, releaseip and updateip are not sent to it, since \
                     addresses are built in. If its changes matter, move them to a script of another \
                     name, or set [failover] addresses = script"
                );
            }
            return None;
        }
        let evidence = moves_addresses(&String::from_utf8_lossy(&bytes))?;
        tracing::warn!(
            script = script.name, file = %script.path.display(),
            line = evidence.line, command = evidence.command,
            "this script moves public addresses itself; takeip, releaseip and updateip are not sent \
             to it, since addresses are built in. Remove what moves addresses, or set [failover] \
             addresses = script"
        );
        Some(evidence)
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = fs::metadata(path).ok()?;
    Some((
        meta.dev(),
        meta.ino(),
        i64::try_from(meta.len()).ok()?,
        meta.mtime(),
        u64::try_from(meta.mtime_nsec()).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line_of(text: &str) -> Option<usize> {
        moves_addresses(text).map(|evidence| evidence.line)
    }

    #[test]
    fn commands_in_branches_of_address_events() {
        let script = |command: &str| {
            format!(
                "#!/bin/sh\ncase \"$1\" in\nmonitor)\n\ttrue\n\t;;\ntakeip)\n\t{command}\n\t;;\nesac\n"
            )
        };
        for command in [
            "ip addr add \"$3/$4\" dev \"$2\"",
            "/sbin/ip -6 addr add $3/$4 dev $2",
            "ip a d $3/$4 dev $2",
            "ip address replace \"${ip}/${bits}\" dev $iface",
            "ifconfig $2 $3 netmask $m",
            "if ! ip addr add $3/$4 dev $2; then exit 1; fi",
            "add_ip_to_iface $2 $3 $4 || exit 1",
            "x=$(ip addr del $3/$4 dev $2 2>&1)",
            "ip addr \\\n\t\tadd $3/$4 dev $2",
        ] {
            assert_eq!(line_of(&script(command)), Some(7), "{command}");
        }
        for command in [
            "ip addr show dev $2",
            "ip route add $net via $gw",
            "ip addr add 169.254.1.1/32 dev lo",
            "# ip addr add $3/$4 dev $2",
            "true # ip addr add $3/$4 dev $2",
            "ip link set $2 up",
            "ifconfig $2",
            "echo \"takeip $3\"",
        ] {
            assert_eq!(line_of(&script(command)), None, "{command}");
        }
    }

    #[test]
    fn other_branches_and_how_they_can_be_written() {
        let other = "case $1 in\nipreallocated)\n\tip addr add $NATGW dev $IF\n\t;;\ntakeip)\n\ttouch $x\n\t;;\nesac\n";
        assert_eq!(line_of(other), None);
        let one_line = "case $1 in takeip|updateip) ip addr add $3/$4 dev $2 ;; esac\n";
        assert_eq!(line_of(one_line), Some(1));
        let quoted = "case \"$1\" in\n\"releaseip\")\n ip addr del $3/$4 dev $2;;\nesac\n";
        assert_eq!(line_of(quoted), Some(3));
        let compared = "if [ \"$1\" = \"takeip\" ]; then\n\tif true; then\n\t\ttrue\n\tfi\n\tip addr add $3/$4 dev $2\nfi\n";
        assert_eq!(line_of(compared), Some(5));
        let after = "if [ \"$1\" = takeip ]; then\n\ttrue\nfi\nip addr add $OTHER dev lo\n";
        assert_eq!(line_of(after), None);
        let short = "[ $1 = takeip ] && ip addr add $3/$4 dev $2\n";
        assert_eq!(line_of(short), Some(1));
    }

    #[test]
    fn functions_are_followed() {
        let text = "up ()\n{\n\tdo_add \"$@\"\n}\nfunction do_add {\n\tip addr add $2/$3 dev $1\n}\nunused() { ip addr del $1; }\ncase $1 in\ntakeip) up $2 $3 $4 ;;\nesac\n";
        assert_eq!(line_of(text), Some(6));
        let unused = "never()\n{\n\tip addr add $1 dev $2\n}\ncase $1 in\ntakeip) true ;;\nesac\n";
        assert_eq!(line_of(unused), None);
        // Functions that call each other end.
        let round = "a() {\n b\n}\nb() {\n a\n}\ncase $1 in takeip) a ;; esac\n";
        assert_eq!(line_of(round), None);
    }

    #[test]
    fn debians_own_scripts() {
        let dir = Path::new("/usr/share/ctdb/events/legacy");
        let Ok(Some(found)) = super::super::scripts::scripts(dir) else {
            panic!("Debian's package ctdb is missing: no {}", dir.display());
        };
        let movers: Vec<String> = found
            .into_iter()
            .filter(|script| {
                let text = fs::read(&script.path).unwrap();
                moves_addresses(&String::from_utf8_lossy(&text)).is_some()
            })
            .map(|script| script.name)
            .collect();
        assert_eq!(movers, ["10.interface"]);
    }

    #[test]
    fn copies_are_named_and_looked_at_again_when_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let shipped = dir.path().join("share");
        fs::create_dir(&shipped).unwrap();
        let mover = "case $1 in takeip) ip addr add $3/$4 dev $2 ;; esac\n";
        fs::write(shipped.join("10.interface.script"), mover).unwrap();
        let script = |name: &str, text: &str| {
            let path = dir.path().join(format!("{name}.script"));
            fs::write(&path, text).unwrap();
            Script {
                name: name.to_owned(),
                path,
                enabled: true,
            }
        };
        let mut scripts = vec![
            script("10.interface", mover),
            script("12.mine", mover),
            script("50.other", "exit 0\n"),
        ];
        let movers = Movers::new(&shipped);
        let withheld = movers.withheld(&scripts);
        assert_eq!(
            withheld.keys().collect::<Vec<_>>(),
            ["10.interface", "12.mine"]
        );
        assert_eq!(withheld["10.interface"], "");
        assert!(withheld["12.mine"].starts_with("not sent: line 1 moves addresses (case $1"));
        fs::write(&scripts[1].path, "exit 0 # of another length\n").unwrap();
        scripts[0].enabled = false;
        assert!(movers.withheld(&scripts).is_empty());
    }
}
