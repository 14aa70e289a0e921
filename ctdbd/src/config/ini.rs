//! The syntax of `ctdb.conf`: `spec/cluster.md` 1.1, and where that page is silent what
//! `ctdb-config` of Debian 12 does with the same file.
//!
//! Runs of blanks in names, keys and values count as one blank. Quotation marks mean themselves.
//! A comment begins at the start of a line only. A backslash at the end of a line of a value
//! (blanks after it do not matter) joins the next line to it as it is.
//!
//! Stricter than CTDB where its leniency hides mistakes: a heading without `]` swallowed the
//! following lines, a line without `=` was nothing at all; both are errors here.

use std::path::Path;

use super::report::Report;

/// Longest configuration file, in bytes.
pub const MAX_FILE: usize = 1 << 20;

/// One `key = value` line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    /// Section, in lower case; empty before the first heading.
    pub section: String,
    /// Key, blanks normalised, case kept.
    pub key: String,
    /// Value, blanks normalised, not empty.
    pub value: String,
    /// Line where it begins, from 1.
    pub line: u32,
}

/// Runs of white space to one blank each, none at the ends.
pub(super) fn normalise(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for word in text.split_ascii_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

/// Reads a file's text; what cannot be read goes into the report. Later entries of the same key
/// win, so that the order is kept.
pub fn parse(bytes: &[u8], file: &Path, report: &mut Report) -> Vec<Entry> {
    if bytes.len() > MAX_FILE {
        report.error(
            file,
            None,
            format!("the file is longer than {MAX_FILE} bytes"),
            "this is not a ctdb.conf; put the right file there",
        );
        return Vec::new();
    }
    let mut entries = Vec::new();
    let mut section = String::new();
    let mut lines = bytes.split(|byte| *byte == b'\n').zip(1_u32..);
    while let Some((raw, line)) = lines.next() {
        let Some(text) = utf8(raw, file, line, report) else {
            continue;
        };
        let trimmed = text.trim_ascii();
        if trimmed.is_empty() || trimmed.starts_with(['#', ';']) {
            continue;
        }
        if let Some(heading) = trimmed.strip_prefix('[') {
            let Some((name, rest)) = heading.split_once(']') else {
                report.error(
                    file,
                    Some(line),
                    format!("the section heading '{trimmed}' has no ']'"),
                    "close it",
                );
                section.clear();
                continue;
            };
            if !rest.is_empty() {
                report.warning(
                    file,
                    Some(line),
                    format!(
                        "'{}' after the section heading is ignored",
                        rest.trim_ascii()
                    ),
                    "put it on a line of its own",
                );
            }
            section = normalise(name).to_ascii_lowercase();
            continue;
        }
        let mut whole = String::new();
        let mut part = text;
        while let Some(begun) = part.trim_ascii_end().strip_suffix('\\') {
            whole.push_str(begun);
            part = "";
            let Some((next, at)) = lines.next() else {
                break;
            };
            let Some(next) = utf8(next, file, at, report) else {
                break;
            };
            part = next;
        }
        whole.push_str(part);
        let Some((key, value)) = whole.split_once('=') else {
            report.error(
                file,
                Some(line),
                format!("'{}' has no '='", normalise(&whole)),
                "write `key = value`, or begin the line with # if it is a comment",
            );
            continue;
        };
        let (key, value) = (normalise(key), normalise(value));
        if key.is_empty() {
            report.error(
                file,
                Some(line),
                "there is no key before '='",
                "write `key = value`",
            );
        } else if value.is_empty() {
            report.error(
                file,
                Some(line),
                format!("[{section}] {key} has no value"),
                "give it one, or remove the line to have the default",
            );
        } else {
            entries.push(Entry {
                section: section.clone(),
                key,
                value,
                line,
            });
        }
    }
    entries
}

fn utf8<'a>(raw: &'a [u8], file: &Path, line: u32, report: &mut Report) -> Option<&'a str> {
    let text = std::str::from_utf8(raw)
        .ok()
        .filter(|text| !text.contains('\0'));
    if text.is_none() {
        report.error(
            file,
            Some(line),
            "the line is not text (UTF-8)",
            "correct it",
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> (Vec<Entry>, Vec<String>) {
        let mut report = Report::default();
        let entries = parse(text.as_bytes(), Path::new("f"), &mut report);
        (entries, report.lines().collect())
    }

    fn one(text: &str) -> (String, String) {
        let (entries, problems) = read(text);
        assert_eq!(problems, Vec::<String>::new(), "{text}");
        let Entry {
            section,
            key,
            value,
            ..
        } = entries.into_iter().next().unwrap();
        (format!("{section}/{key}"), value)
    }

    /// Each of these was given to `ctdb-config get` of Debian 12.
    #[test]
    fn reads_what_ctdb_config_reads() {
        let lock = "cluster/cluster lock".to_owned();
        for (text, value) in [
            ("[cluster]\ncluster lock = /a  b  c  \n", "/a b c"),
            ("[cluster]\n  cluster    lock=/x # y\n", "/x # y"),
            ("[cluster]\ncluster lock = \"/a b\"\n", "\"/a b\""),
            ("[cluster]\ncluster lock = /a \\\n   b\n", "/a b"),
            ("[cluster]\ncluster lock = /a\\\nb\n", "/ab"),
            ("[cluster]\ncluster lock = /a\\b\n", "/a\\b"),
            ("[cluster]\ncluster lock = /a = b\n", "/a = b"),
            (
                "[cluster]\ncluster lock = /a\\  \nleader timeout = 7\n",
                "/aleader timeout = 7",
            ),
            ("[ClusTer]\ncluster lock = /a", "/a"),
            ("[cluster]\r\ncluster lock = /a\r\n", "/a"),
            ("# x\n ; y\n[cluster]\n# foo \\\ncluster lock = /a\n", "/a"),
            ("[cluster]\nclu\\\nster lock = /a\n", "/a"),
        ] {
            assert_eq!(one(text), (lock.clone(), value.to_owned()), "{text}");
        }
        assert_eq!(one("[clu  ster]\nFoo\tBar = 1\n").0, "clu ster/Foo Bar");
    }

    #[test]
    fn lines_are_counted_through_continuations() {
        let (entries, _) = read("[a]\nb = 1 \\\n 2\nc = 3\n");
        assert_eq!(entries[0].line, 2);
        assert_eq!(entries[1].line, 4);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, part) in [
            (
                "[cluster]\nleader timeout =\n",
                "f:2: error: [cluster] leader timeout has no value",
            ),
            (
                "[cluster\nleader timeout = 7\n",
                "f:1: error: the section heading",
            ),
            (
                "[cluster]\nleader timeout\n",
                "f:2: error: 'leader timeout' has no '='",
            ),
            ("[cluster]\n= 3\n", "f:2: error: there is no key"),
            ("[cluster] foo\n", "f:1: warning: 'foo' after"),
        ] {
            let (_, problems) = read(text);
            assert!(problems[0].starts_with(part), "{problems:?}");
        }
        let mut report = Report::default();
        parse(b"[a]\nb = \xff\n", Path::new("f"), &mut report);
        assert!(report.has_errors());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut report = Report::default();
            for entry in parse(&bytes, Path::new("f"), &mut report) {
                prop_assert!(!entry.key.is_empty() && !entry.value.is_empty());
            }
        }

        #[test]
        fn no_odd_text_makes_it_panic(text in "([\\[\\]=#;\\\\ \ta-b]|\n){0,80}") {
            let mut report = Report::default();
            let lines = text.split('\n').count() as u32;
            for entry in parse(text.as_bytes(), Path::new("f"), &mut report) {
                prop_assert!(entry.line >= 1 && entry.line <= lines);
            }
        }
    }
}
