//! Bugs on purpose, to show that the runner finds them.

use crate::fuzz::{Outcome, Target};

pub(in crate::fuzz) const PLANTED: Target = Target {
    name: "planted",
    about: "panics, hangs, aborts or eats memory when it is told to",
    run: planted,
    seeds: || vec![b"....".to_vec()],
    words: &[b"PANI", b"HANG", b"EATS", b"ABOR"],
    max_len: 16,
};

/// Which bug is there is in the environment, so that each is found by itself.
fn planted(bytes: &[u8], outcome: &mut Outcome) {
    let wanted = std::env::var("FUZZ_PLANTED").unwrap_or_default();
    let Some(word) = bytes.first_chunk::<4>() else {
        return;
    };
    outcome.note(&String::from_utf8_lossy(word));
    if wanted.as_bytes() != word {
        return;
    }
    match word {
        b"PANI" => panic!("a planted panic"),
        b"HANG" => loop {
            std::hint::spin_loop();
        },
        b"EATS" => {
            let eaten: Vec<u8> = Vec::with_capacity(1 << 40);
            outcome.count(eaten.capacity() as u64);
        }
        b"ABOR" => std::process::abort(),
        _ => {}
    }
}
