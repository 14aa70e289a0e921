//! What happened, why and how long it took (OPS-1): the last records, in memory.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use ctdb_wire::api::HistoryRecord;

/// Records that are kept; older ones go.
pub(super) const RECORDS: usize = 1000;
/// Addresses that one record names.
const NAMED: usize = 16;

/// The last records, oldest first.
#[derive(Default, Debug)]
pub(super) struct History {
    records: VecDeque<HistoryRecord>,
}

impl History {
    /// Adds a record of now.
    pub(super) fn add(
        &mut self,
        kind: &str,
        node: Option<u32>,
        text: String,
        addresses: &[IpAddr],
        phases: &[(&str, Duration)],
    ) {
        if self.records.len() == RECORDS {
            self.records.pop_front();
        }
        self.records.push_back(HistoryRecord {
            at: crate::clock::wall_now(),
            kind: kind.to_owned(),
            node,
            text,
            addresses: addresses.iter().take(NAMED).copied().collect(),
            phases: phases
                .iter()
                .map(|(name, length)| ((*name).to_owned(), length.as_secs_f64() * 1000.0))
                .collect(),
        });
    }

    /// All that are kept.
    pub(super) fn records(&self) -> impl Iterator<Item = &HistoryRecord> {
        self.records.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_records_make_room() {
        let mut history = History::default();
        for number in 0..RECORDS + 5 {
            history.add(
                "test",
                None,
                number.to_string(),
                &[],
                &[("a", Duration::from_micros(1500))],
            );
        }
        assert_eq!(history.records().count(), RECORDS);
        let first = history.records().next().unwrap();
        assert_eq!(first.text, "5");
        assert_eq!(first.phases, [("a".to_owned(), 1.5)]);
    }
}
