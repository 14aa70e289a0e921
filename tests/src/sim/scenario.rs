//! Directed runs that measure what a single event costs.

/// What an event may cost, and what it did.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The event.
    pub name: &'static str,
}

/// All of them.
pub fn bounds() -> Vec<Bound> {
    Vec::new()
}
