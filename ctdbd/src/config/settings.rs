//! `ctdb.conf` as texts: what stands in the file over the defaults, with origins.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::legacy::Fate;
use super::paths::Paths;
use super::report::{Report, Severity};
use super::schema::{self, Key};
use super::{c_integer, ini};

/// Where a value comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// File and line.
    File(PathBuf, u32),
    /// Set while the daemon runs (`ctdb setvar`).
    Runtime,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(file, line) => write!(f, "{}:{line}", file.display()),
            Self::Runtime => f.write_str("runtime"),
        }
    }
}

impl Serialize for Origin {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A key's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setting {
    /// As in the file, blanks normalised; `None` if it has no value.
    pub text: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
}

/// Values of all keys of [`schema::KEYS`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    file: PathBuf,
    values: BTreeMap<(&'static str, &'static str), Setting>,
}

impl Settings {
    /// Reads the file. A missing file is no error: all defaults apply. Unknown sections and keys
    /// have the severity `unknown`.
    pub fn read(paths: &Paths, unknown: Severity, report: &mut Report) -> Self {
        let file = &paths.config;
        let bytes = match super::read_bytes(file, ini::MAX_FILE as u64) {
            Ok(bytes) => bytes.unwrap_or_default(),
            Err(error) => {
                report.error(
                    file,
                    None,
                    error,
                    "make it a readable text file, or remove it",
                );
                Vec::new()
            }
        };
        let mut values: BTreeMap<_, _> = schema::KEYS
            .iter()
            .map(|key| {
                let text = key.default.value(paths);
                (
                    (key.section, key.name),
                    Setting {
                        text,
                        origin: Origin::Default,
                    },
                )
            })
            .collect();
        for entry in ini::parse(&bytes, file, report) {
            if let Some(key) = schema::find(&entry.section, &entry.key) {
                let origin = Origin::File(file.clone(), entry.line);
                let setting = Setting {
                    text: Some(entry.value),
                    origin,
                };
                values.insert((key.section, key.name), setting);
            } else {
                let (what, hint) = unknown_key(&entry);
                report.add(unknown, file, Some(entry.line), what, hint);
            }
        }
        let settings = Self {
            file: file.clone(),
            values,
        };
        settings.give_advice(report);
        settings
    }

    /// One warning for each key that is set and will not do what it did in CTDB.
    fn give_advice(&self, report: &mut Report) {
        for key in schema::KEYS {
            let Some(setting) = self.setting(key) else {
                continue;
            };
            let Origin::File(file, line) = &setting.origin else {
                continue;
            };
            let same = match key.default {
                // False changes nothing, and the note for true stands where it is read.
                schema::Default::Text(_) if key.name == "realtime scheduling" => true,
                schema::Default::Text(default) => setting.text.as_deref() == Some(default),
                _ => false,
            };
            if let (Fate::Mapped(text) | Fate::Accepted(text), false) = (key.fate, same) {
                let word = match key.fate {
                    Fate::Mapped(_) => "is not used as such",
                    _ => "has no effect",
                };
                let (section, name) = (key.section, key.name);
                report.warning(
                    file,
                    Some(*line),
                    format!("[{section}] {name} {word}"),
                    text,
                );
            }
        }
    }

    fn setting(&self, key: &Key) -> Option<&Setting> {
        self.values.get(&(key.section, key.name))
    }

    /// All keys in the order of a dump.
    pub fn iter(&self) -> impl Iterator<Item = (&'static Key, &Setting)> {
        schema::KEYS
            .iter()
            .filter_map(|key| Some((key, self.setting(key)?)))
    }

    /// `ctdb-config get`: the value of a known key, whatever it is; empty if it has none. `None`
    /// for unknown keys.
    pub fn get(&self, section: &str, name: &str) -> Option<&str> {
        let key = schema::find(&section.to_ascii_lowercase(), name)?;
        Some(self.setting(key)?.text.as_deref().unwrap_or_default())
    }

    /// Records what a value without text turned out to be.
    pub(super) fn computed(&mut self, section: &str, name: &str, text: String) {
        if let Some(key) = schema::find(section, name)
            && let Some(setting) = self.values.get_mut(&(key.section, key.name))
            && setting.text.is_none()
        {
            setting.text = Some(text);
        }
    }
}

fn unknown_key(entry: &ini::Entry) -> (String, String) {
    let ini::Entry { section, key, .. } = entry;
    if let Some((_, _, hint)) = schema::FORMER
        .iter()
        .find(|(s, k, _)| s == section && k == key)
    {
        return (
            format!("[{section}] {key} is not used any more"),
            (*hint).to_owned(),
        );
    }
    if section.is_empty() {
        return (
            format!("'{key}' stands before any [section] and is ignored"),
            "put it below the heading of its section".to_owned(),
        );
    }
    if !schema::is_section(section) {
        return (
            format!("there is no section [{section}]; '{key}' is ignored"),
            "see `ctdb config dump` for the sections and keys".to_owned(),
        );
    }
    let lower = key.to_ascii_lowercase();
    let elsewhere = schema::KEYS.iter().find(|known| known.name == lower);
    let hint = if schema::find(section, &lower).is_some() {
        format!("write it in lower case: {lower}")
    } else if let Some(known) = elsewhere {
        format!("'{}' belongs into section [{}]", known.name, known.section)
    } else {
        "see `ctdb config dump` for the keys of the section".to_owned()
    };
    (
        format!("[{section}] has no key '{key}'; it is ignored"),
        hint,
    )
}

/// Turns texts into values; what cannot be turned goes into the report.
pub(super) struct Reader<'a> {
    settings: &'a Settings,
    report: &'a mut Report,
    #[cfg(test)]
    pub(super) seen: std::collections::BTreeSet<(&'static str, &'static str)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(settings: &'a Settings, report: &'a mut Report) -> Self {
        Self {
            settings,
            report,
            #[cfg(test)]
            seen: std::collections::BTreeSet::new(),
        }
    }

    fn at(&self, section: &'static str, name: &'static str) -> (PathBuf, Option<u32>) {
        match self
            .settings
            .values
            .get(&(section, name))
            .map(|setting| &setting.origin)
        {
            Some(Origin::File(file, line)) => (file.clone(), Some(*line)),
            _ => (self.settings.file.clone(), None),
        }
    }

    /// Whether the file sets it.
    pub(super) fn is_set(&self, section: &'static str, name: &'static str) -> bool {
        self.at(section, name).1.is_some()
    }

    /// An error about a key.
    pub(super) fn error(
        &mut self,
        section: &'static str,
        name: &'static str,
        what: impl fmt::Display,
        hint: &str,
    ) {
        self.add(Severity::Error, section, name, what, hint);
    }

    /// A finding about a key.
    pub(super) fn add(
        &mut self,
        severity: Severity,
        section: &'static str,
        name: &'static str,
        what: impl fmt::Display,
        hint: &str,
    ) {
        let (file, line) = self.at(section, name);
        self.report.add(
            severity,
            &file,
            line,
            format!("[{section}] {name}: {what}"),
            hint,
        );
    }

    /// The text, if there is one.
    pub(super) fn text(&mut self, section: &'static str, name: &'static str) -> Option<&'a str> {
        #[cfg(test)]
        self.seen.insert((section, name));
        self.settings
            .values
            .get(&(section, name))
            .and_then(|setting| setting.text.as_deref())
    }

    /// A value that `parse` makes of the text; `None` if there is no text or it is wrong.
    pub(super) fn value<T>(
        &mut self,
        section: &'static str,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
        hint: &str,
    ) -> Option<T> {
        match parse(self.text(section, name)?) {
            Ok(value) => Some(value),
            Err(what) => {
                self.error(section, name, what, hint);
                None
            }
        }
    }

    /// A boolean; false if it is wrong, which is an error of the report.
    pub(super) fn boolean(&mut self, section: &'static str, name: &'static str) -> bool {
        self.value(section, name, boolean, "write true, yes, false or no")
            .unwrap_or_default()
    }

    /// An integer within the bounds; the lower one if it is wrong.
    pub(super) fn integer(
        &mut self,
        section: &'static str,
        name: &'static str,
        (low, high): (u32, u32),
    ) -> u32 {
        let parse = |text: &str| {
            c_integer(text)
                .filter(|number| i32::try_from(*number).is_ok())
                .ok_or_else(|| format!("'{text}' is not a number"))
                .and_then(|number| {
                    if (low..=high).contains(&number) {
                        Ok(number)
                    } else {
                        Err(format!("{number} is not between {low} and {high}"))
                    }
                })
        };
        self.value(section, name, parse, "write a number in that range")
            .unwrap_or(low)
    }

    /// A duration within the bounds: seconds, or with the unit `s` or `ms`.
    pub(super) fn duration(
        &mut self,
        section: &'static str,
        name: &'static str,
        (low, high): (Duration, Duration),
    ) -> Option<Duration> {
        let parse = |text: &str| {
            duration(text).and_then(|value| {
                if (low..=high).contains(&value) {
                    Ok(value)
                } else {
                    Err(format!("{text} is not between {low:?} and {high:?}"))
                }
            })
        };
        self.value(
            section,
            name,
            parse,
            "write seconds, or a number with ms, in that range",
        )
    }

    /// One of some words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        section: &'static str,
        name: &'static str,
        words: &[(&str, T)],
    ) -> Option<T> {
        let list: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let list = list.join(", ");
        let parse = |text: &str| {
            words
                .iter()
                .find(|(word, _)| text.eq_ignore_ascii_case(word))
                .map(|(_, value)| *value)
                .ok_or_else(|| format!("'{text}' is not one of {list}"))
        };
        self.value(section, name, parse, &format!("write one of {list}"))
    }

    /// A literal address.
    pub(super) fn address(&mut self, section: &'static str, name: &'static str) -> Option<IpAddr> {
        let parse = |text: &str| {
            let address = text.parse::<IpAddr>();
            address
                .map(|address| address.to_canonical())
                .map_err(|_| format!("'{text}' is not an IP address"))
        };
        self.value(section, name, parse, "write a literal IPv4 or IPv6 address")
    }

    /// A directory that must exist.
    pub(super) fn directory(&mut self, section: &'static str, name: &'static str) -> PathBuf {
        let path = PathBuf::from(self.text(section, name).unwrap_or_default());
        if !path.is_dir() {
            let what = format!("there is no directory {}", path.display());
            let hint = format!("create it (`install -d -m 0700 {}`)", path.display());
            self.error(section, name, what, &hint);
        }
        path
    }

    /// A script in the configuration directory: any directory part is dropped.
    pub(super) fn script(
        &mut self,
        section: &'static str,
        name: &'static str,
        etc: &Path,
    ) -> Option<PathBuf> {
        use std::os::unix::fs::PermissionsExt as _;
        let text = self.text(section, name)?;
        let path = etc.join(Path::new(text).file_name().unwrap_or_default());
        let good = path
            .metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o100 != 0);
        if !good {
            let what = format!("{} is not an executable file", path.display());
            self.error(
                section,
                name,
                what,
                "put the script there and make it executable",
            );
        }
        Some(path)
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "yes" => Ok(true),
        "false" | "no" => Ok(false),
        _ => Err(format!("'{text}' is neither true nor false")),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let error = || format!("'{text}' is not a duration");
    let (number, unit): (&str, fn(u64) -> Duration) = if let Some(ms) = text.strip_suffix("ms") {
        (ms, Duration::from_millis)
    } else {
        (text.strip_suffix('s').unwrap_or(text), Duration::from_secs)
    };
    let number = number.trim_ascii_end();
    c_integer(number)
        .map(|number| unit(number.into()))
        .ok_or_else(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("20 ms"), Ok(Duration::from_millis(20)));
        for bad in ["", "s", "ms", "5m", "1.5", "-1"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn booleans_are_ctdbs() {
        assert_eq!(boolean("YES"), Ok(true));
        assert_eq!(boolean("False"), Ok(false));
        for bad in ["1", "0", "on", "off", ""] {
            assert!(boolean(bad).is_err(), "{bad}");
        }
    }
}
