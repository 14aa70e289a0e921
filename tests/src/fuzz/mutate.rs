//! Changes of inputs. Deterministic for a random generator.

use rand::Rng;
use rand::seq::IndexedRandom as _;

/// Words that formats with lengths and offsets tend to get wrong.
const WORDS: [u32; 14] = [
    0,
    1,
    2,
    3,
    4,
    8,
    24,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFF,
    0xFFFF_FFFC,
    0xFFFF_FF00,
    0x0100_0000,
    0x4242_4242,
];

/// Changes `input` one to several times.
pub fn mutate(
    random: &mut impl Rng,
    input: &mut Vec<u8>,
    other: &[u8],
    words: &[&[u8]],
    max_len: usize,
) {
    for _ in 0..1 << random.random_range(0..4) {
        once(random, input, other, words);
    }
    input.truncate(max_len);
}

fn once(random: &mut impl Rng, input: &mut Vec<u8>, other: &[u8], words: &[&[u8]]) {
    if input.is_empty() {
        input.extend_from_slice(other);
        input.push(random.random());
        return;
    }
    let at = place(random, input);
    match random.random_range(0..16) {
        0 => input[at] ^= 1 << random.random_range(0..8),
        1 => input[at] = random.random(),
        2 => input[at] = input[at].wrapping_add(if random.random() { 1 } else { 0xFF }),
        3..8 => word(random, input, at),
        8 | 9 => {
            if let Some(word) = words.choose(random) {
                if random.random_range(0..4) == 0 {
                    input.splice(at..at, word.iter().copied());
                } else {
                    overwrite(input, at, word);
                }
            }
        }
        10 => {
            let len = length(random, input.len() - at);
            let piece = input[at..at + len].to_vec();
            let to = place(random, input);
            if random.random() {
                overwrite(input, to, &piece);
            } else {
                input.splice(to..to, piece);
            }
        }
        11 => {
            let len = length(random, input.len() - at);
            input.drain(at..at + len);
        }
        12 => input.truncate(at),
        13 => {
            let len = length(random, 4096);
            let fill = if random.random() { 0 } else { 0x42 };
            input.extend(std::iter::repeat_n(fill, len));
        }
        _ => {
            if other.is_empty() {
                return;
            }
            let from = place(random, other);
            let len = length(random, other.len() - from);
            let piece = &other[from..from + len];
            if random.random() {
                overwrite(input, at, piece);
            } else {
                input.splice(at..at, piece.iter().copied());
            }
        }
    }
}

/// A place to change: mostly one that is not in a sea of zeros.
fn place(random: &mut impl Rng, input: &[u8]) -> usize {
    let mut at = random.random_range(0..input.len());
    for _ in 0..8 {
        if input[at] != 0 {
            break;
        }
        at = random.random_range(0..input.len());
    }
    at
}

/// Mostly short.
fn length(random: &mut impl Rng, most: usize) -> usize {
    let most = most.max(1);
    let bits = random.random_range(0..=most.ilog2());
    random.random_range(1..=(1usize << bits).min(most))
}

/// Changes the aligned word at `at`: to a word that is special, that stands elsewhere in the input
/// (an offset led to another place), or that is near.
fn word(random: &mut impl Rng, input: &mut [u8], at: usize) {
    let at = at & !3;
    let Some(bytes) = input.get(at..).and_then(|rest| rest.first_chunk::<4>()) else {
        return;
    };
    let old = u32::from_le_bytes(*bytes);
    let new = match random.random_range(0..6) {
        0 => WORDS.choose(random).copied().unwrap_or(0),
        1 | 2 => {
            let from = place(random, input) & !3;
            let found = input.get(from..).and_then(|rest| rest.first_chunk::<4>());
            found.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        }
        3 => old.wrapping_add(4 * random.random_range(1..9)),
        4 => old.wrapping_sub(4 * random.random_range(1..9)),
        _ => (random.random_range(0..=input.len() + 8) as u32) & !3,
    };
    let bytes = if random.random_range(0..8) == 0 {
        new.to_be_bytes()
    } else {
        new.to_le_bytes()
    };
    overwrite(input, at, &bytes);
}

fn overwrite(input: &mut [u8], at: usize, piece: &[u8]) {
    let len = piece.len().min(input.len() - at);
    input[at..at + len].copy_from_slice(&piece[..len]);
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand_chacha::ChaCha8Rng;

    use super::mutate;

    #[test]
    fn changes_stay_in_bounds_and_change_something() {
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut changed = 0;
        for round in 0..20_000usize {
            let old = vec![round as u8; round % 90];
            let mut input = old.clone();
            mutate(
                &mut random,
                &mut input,
                &old[old.len() / 2..],
                &[b"word"],
                100,
            );
            assert!(input.len() <= 100);
            changed += usize::from(input != old);
        }
        assert!(changed > 18_000, "{changed}");
    }
}
