//! Fuzz targets, and the runner that feeds them: what comes off a socket or out of a file is checked
//! before use (DATA-4).
//!
//! A *target* is a function from bytes to an [`Outcome`]. The runner (`tests/src/bin/fuzz.rs`, one
//! process per target) begins with the checked-in corpus `tests/corpus/TARGET/`, changes its inputs
//! at random, and keeps those whose outcome has a shape not seen before: no coverage is measured, so
//! that it runs with the stable compiler, on what the targets tell about themselves instead.
//!
//! A finding is a panic or failed assertion, an abort, an input that computes for longer than
//! [`run::MAX_CPU`] or does not end, and an allocation beyond [`run::MAX_MEMORY`].
//!
//! To add a target for another room: a function in a file of `targets/`, its line in [`TARGETS`],
//! its name in `tests/tests/fuzz.rs`, and a few small inputs in `tests/corpus/NAME/`
//! (`cargo xtask fuzz NAME --keep DIR` writes those that it finds worth keeping).

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;

pub mod mutate;
pub mod run;
mod targets;

/// What an input led to, in words. Only its shape counts, see [`Outcome::note`].
#[derive(Default)]
pub struct Outcome {
    hasher: DefaultHasher,
}

impl Outcome {
    /// Adds a part. Digits, and what stands between quotes, do not count: an error at another offset is
    /// no other outcome.
    pub fn note(&mut self, text: &str) {
        let mut quoted = false;
        for byte in text.bytes() {
            if byte == b'"' {
                quoted = !quoted;
            }
            if !quoted && !byte.is_ascii_digit() {
                self.hasher.write_u8(byte);
            }
        }
        self.hasher.write_u8(0);
    }

    /// Adds a count by its size only: 0, 1, 2, some, many.
    pub fn count(&mut self, count: u64) {
        self.hasher
            .write_u32(count.checked_ilog2().map_or(0, |log| log + 1));
    }

    fn shape(&self) -> u64 {
        self.hasher.finish()
    }
}

/// A fuzz target.
pub struct Target {
    /// Its name, that of its corpus too.
    pub name: &'static str,
    /// What it does with the bytes.
    pub about: &'static str,
    /// Does it. Panics if something is wrong.
    pub run: fn(&[u8], &mut Outcome),
    /// Inputs beside the corpus, made by the code itself.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Words that mean something in the format.
    pub words: &'static [&'static [u8]],
    /// Longest input.
    pub max_len: usize,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    targets::db::FILE,
    targets::db::RECOVERY,
    targets::db::BUFFERS,
    targets::db::DUMP,
    targets::planted::PLANTED,
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
