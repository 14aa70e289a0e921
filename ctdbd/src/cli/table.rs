//! Columns and times of the new commands. Pure.

use std::fmt::Write as _;

/// Lines of columns, each as wide as its widest entry; no blanks at the ends of lines.
pub fn columns<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = head.map(|text| text.chars().count());
    for row in rows {
        for (width, text) in widths.iter_mut().zip(row) {
            *width = (*width).max(text.chars().count());
        }
    }
    let mut text = String::new();
    let rows = rows.iter().map(|row| row.each_ref().map(String::as_str));
    for row in std::iter::once(head).chain(rows) {
        let mut line = String::new();
        for (width, field) in widths.iter().zip(row) {
            // Writing to a string does not fail.
            let _ = write!(line, "{field:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Names and values, one below the other.
pub fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    facts.iter().fold(String::new(), |text, (name, value)| {
        let line = format!("{name:<width$}  {value}");
        text + line.trim_end() + "\n"
    })
}

/// `-` for nothing.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A list with blanks, `-` for none.
pub fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let words: Vec<String> = values.into_iter().map(|value| value.to_string()).collect();
    if words.is_empty() {
        "-".to_owned()
    } else {
        words.join(", ")
    }
}

/// A moment in local time, with milliseconds.
pub fn moment(seconds: f64, zone: &jiff::tz::TimeZone) -> String {
    jiff::Timestamp::from_millisecond((seconds * 1000.0) as i64).map_or_else(
        |_| "-".to_owned(),
        |moment| {
            moment
                .to_zoned(zone.clone())
                .strftime("%Y-%m-%d %H:%M:%S.%3f")
                .to_string()
        },
    )
}

/// A length in milliseconds, in the unit that people would take.
pub fn milliseconds(length: f64) -> String {
    if length < 10.0 {
        format!("{length:.1} ms")
    } else if length < 10_000.0 {
        format!("{length:.0} ms")
    } else {
        format!("{:.1} s", length / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_needed() {
        let rows = [
            ["0".to_owned(), "10.0.0.1".to_owned()],
            ["10".to_owned(), String::new()],
        ];
        assert_eq!(
            columns(["N", "ADDRESS"], &rows),
            "N   ADDRESS\n0   10.0.0.1\n10\n"
        );
        assert_eq!(
            facts(&[("a", "1".into()), ("long", String::new())]),
            "a     1\nlong\n"
        );
        assert_eq!(milliseconds(0.25), "0.2 ms");
        assert_eq!(milliseconds(1531.7), "1532 ms");
        assert_eq!(milliseconds(25_000.0), "25.0 s");
        let zone = jiff::tz::TimeZone::UTC;
        assert_eq!(moment(1_795_348_731.25, &zone), "2026-11-22 11:58:51.250");
    }
}
