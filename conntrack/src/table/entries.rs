//! Connections of one address, with their digest kept up to date.

use std::collections::BTreeMap;
use std::ops::Bound;

use ctdb_wire::connections::{Key, Meta, hash};

/// A sorted map; some 40 bytes a connection.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    map: BTreeMap<Key, Meta>,
    sum: u64,
}

impl Entries {
    /// Puts one in; what was known of it before.
    pub fn insert(&mut self, key: Key, meta: Meta) -> Option<Meta> {
        let old = self.map.insert(key, meta);
        if let Some(old) = old {
            self.sum = self.sum.wrapping_sub(hash(&key, old));
        }
        self.sum = self.sum.wrapping_add(hash(&key, meta));
        old
    }

    /// Takes one out.
    pub fn remove(&mut self, key: &Key) -> Option<Meta> {
        let old = self.map.remove(key)?;
        self.sum = self.sum.wrapping_sub(hash(key, old));
        Some(old)
    }

    /// What is known of one.
    pub fn get(&self, key: &Key) -> Option<Meta> {
        self.map.get(key).copied()
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, Meta)> {
        self.map.iter().map(|(key, meta)| (key, *meta))
    }

    /// Those behind `after` (or from the start) up to and with `through` (or to the end).
    pub fn between(
        &self,
        after: Option<Key>,
        through: Option<Key>,
    ) -> impl Iterator<Item = (&Key, Meta)> {
        // A range that ends before it begins has nothing, and would panic.
        let sound = after.zip(through).is_none_or(|(a, t)| a < t);
        let lower = after.map_or(Bound::Unbounded, Bound::Excluded);
        let upper = through.map_or(Bound::Unbounded, Bound::Included);
        let range = sound.then(|| self.map.range((lower, upper)));
        range.into_iter().flatten().map(|(key, meta)| (key, *meta))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Number and sum, as they travel.
    pub fn digest(&self) -> (u32, u64) {
        (self.map.len() as u32, self.sum)
    }
}
