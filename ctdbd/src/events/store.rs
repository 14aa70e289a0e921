//! The last run of every event, and the last runs of all (`spec/cluster.md` 4.7).

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ctdb_wire::api::{EventRunView, EventScriptView, EventsView};

/// Events whose last run is kept; scripts may have private ones, so this is bounded. At the bound
/// the event that ran longest ago goes.
const MAX_EVENTS: usize = 256;
/// Runs that are kept in the order of their end.
const MAX_HISTORY: usize = 200;

#[derive(Default)]
struct Inner {
    /// By component and event.
    last: BTreeMap<(String, String), EventRunView>,
    history: VecDeque<EventRunView>,
}

/// Results of events. Cheap to clone.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<Inner>>);

impl Store {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event has ended.
    pub fn add(&self, run: EventRunView) {
        let mut inner = self.inner();
        if inner.history.len() == MAX_HISTORY {
            inner.history.pop_front();
        }
        // The history is for what happened, the last run for what was said.
        let mut short = run.clone();
        for script in &mut short.scripts {
            script.output.clear();
        }
        inner.history.push_back(short);
        let key = (run.component.clone(), run.event.clone());
        if inner.last.len() >= MAX_EVENTS && !inner.last.contains_key(&key) {
            let oldest = inner
                .last
                .iter()
                .min_by(|(_, a), (_, b)| a.begin.total_cmp(&b.begin))
                .map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                inner.last.remove(&oldest);
            }
        }
        inner.last.insert(key, run);
    }

    /// The last run.
    pub fn last(&self, component: &str, event: &str) -> Option<EventRunView> {
        let key = (component.to_owned(), event.to_owned());
        self.inner().last.get(&key).cloned()
    }

    /// The last run of every event, or the last runs of all; without output.
    pub fn list(&self, history: bool) -> EventsView {
        let inner = self.inner();
        let bare = |run: &EventRunView| EventRunView {
            scripts: run
                .scripts
                .iter()
                .map(|script| EventScriptView {
                    output: String::new(),
                    ..script.clone()
                })
                .collect(),
            ..run.clone()
        };
        EventsView {
            events: if history {
                inner.history.iter().map(bare).collect()
            } else {
                inner.last.values().map(bare).collect()
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_lists_are_bounded() {
        let store = Store::default();
        for number in 0..MAX_EVENTS + 10 {
            store.add(EventRunView {
                component: "legacy".into(),
                event: format!("event{number}"),
                begin: number as f64,
                scripts: vec![EventScriptView {
                    output: "words".into(),
                    ..EventScriptView::default()
                }],
                ..EventRunView::default()
            });
        }
        assert_eq!(store.list(false).events.len(), MAX_EVENTS);
        assert_eq!(store.list(true).events.len(), MAX_HISTORY);
        assert!(store.last("legacy", "event9").is_none(), "the oldest went");
        let last = store.last("legacy", "event100").unwrap();
        assert_eq!(last.scripts[0].output, "words");
        assert!(
            store
                .list(true)
                .events
                .iter()
                .all(|run| run.scripts[0].output.is_empty())
        );
    }
}
