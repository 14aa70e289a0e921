//! Sealing of the liveness path's datagrams under keys of the link's session.
//!
//! Layout, little-endian, [`HEADER`] bytes in clear that the tag covers, then ciphertext, then a
//! tag of [`TAG`] bytes:
//!
//! | Offset | Size | Field |
//! |---|---|---|
//! | 0 | 2 | magic `c7 db` |
//! | 2 | 1 | layout version, 1 |
//! | 3 | 1 | sender's node number |
//! | 4 | 8 | session id |
//! | 12 | 8 | counter: from 0, +1 per datagram; top bit set: the guard's GONE |
//!
//! The nonce is the counter; each direction has its own key, so none repeats. Sealing and opening
//! allocate nothing and take no lock: they run in the detector thread (MEM-2).

use std::fmt;

use chacha20poly1305::{AeadInOut as _, ChaCha20Poly1305, KeyInit as _, Nonce, Tag};
use ctdb_wire::ids::{Incarnation, Pnn};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Bytes before the ciphertext.
pub const HEADER: usize = 20;
/// Bytes behind the ciphertext.
pub const TAG: usize = 16;
/// Longest plaintext, in bytes.
pub const MAX_PLAINTEXT: usize = 512;
/// Longest datagram, in bytes: fits every path without fragments.
pub const MAX_DATAGRAM: usize = HEADER + MAX_PLAINTEXT + TAG;
/// Datagrams that may arrive out of order; older ones count as replayed.
pub const REPLAY_WINDOW: u64 = 1024;

const MAGIC: [u8; 3] = [0xc7, 0xdb, 1];
/// Counters from here on belong to the guard ([`seal_gone`]).
const GONE_BIT: u64 = 1 << 63;
const WORDS: usize = (REPLAY_WINDOW / 64) as usize;

/// A ChaCha20-Poly1305 key of one direction; wiped when dropped, never printed.
pub type DirectionKey = Zeroizing<[u8; 32]>;

/// Keys of one session of a link, for the datagrams in both directions. They live as long as the
/// session; nothing of them is kept over a restart.
#[derive(Clone)]
pub struct SessionKeys {
    /// Names the session on the wire; the same on both sides.
    pub session_id: u64,
    /// Seals what this node sends.
    pub send_key: DirectionKey,
    /// Opens what the peer sends.
    pub recv_key: DirectionKey,
}

impl fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {:016x}", self.session_id)
    }
}

impl SessionKeys {
    /// Derives the keys by HKDF-SHA256. `transcript` (the Noise handshake hash, or the fixed
    /// string of plain mode) is the salt; `secret` is what the listener drew at random for this
    /// session and sent under the handshake's encryption. Incarnations bind the keys to the two
    /// daemon lives.
    pub fn derive(
        transcript: &[u8],
        secret: &[u8],
        dialer: Incarnation,
        listener: Incarnation,
        we_dial: bool,
    ) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(transcript), secret);
        let expand = |label: &[u8], out: &mut [u8]| {
            let dialer = dialer.0.to_le_bytes();
            let listener = listener.0.to_le_bytes();
            hkdf.expand_multi_info(&[label, &dialer, &listener], out)
                .expect("HKDF-SHA256 gives up to 8160 bytes, 32 are asked for");
        };
        let mut id = [0; 8];
        expand(b"ctdb datagram session", &mut id);
        let mut to_listener = DirectionKey::default();
        expand(b"ctdb datagram dialer to listener", &mut *to_listener);
        let mut to_dialer = DirectionKey::default();
        expand(b"ctdb datagram listener to dialer", &mut *to_dialer);
        let (send_key, recv_key) = if we_dial {
            (to_listener, to_dialer)
        } else {
            (to_dialer, to_listener)
        };
        Self {
            session_id: u64::from_le_bytes(id),
            send_key,
            recv_key,
        }
    }
}

/// The clear part of a datagram. Nothing of it is true before [`Opener::open`] agrees; it serves
/// to find the opener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Claimed sender.
    pub sender: Pnn,
    /// Claimed session.
    pub session_id: u64,
    /// Claimed counter, with the bit of GONE.
    pub counter: u64,
}

impl Header {
    /// Reads the header of `datagram`.
    pub fn read(datagram: &[u8]) -> Result<Self, OpenError> {
        if datagram.len() < HEADER + TAG {
            return Err(OpenError::Truncated);
        }
        if datagram.len() > MAX_DATAGRAM {
            return Err(OpenError::TooLong);
        }
        if datagram[..3] != MAGIC {
            return Err(OpenError::NotOurs);
        }
        let sender = Pnn::new(u32::from(datagram[3])).map_err(|_| OpenError::NotOurs)?;
        let word = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&datagram[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        Ok(Self {
            sender,
            session_id: word(4),
            counter: word(12),
        })
    }

    /// Whether the datagram claims to come from the guard ([`seal_gone`]).
    pub const fn is_gone(&self) -> bool {
        self.counter & GONE_BIT != 0
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    bytes.into()
}

fn seal_with(
    key: &[u8; 32],
    session_id: u64,
    sender: Pnn,
    counter: u64,
    plaintext: &[u8],
    out: &mut [u8],
) -> usize {
    let total = HEADER + plaintext.len() + TAG;
    if plaintext.len() > MAX_PLAINTEXT || out.len() < total {
        return 0;
    }
    let (header, rest) = out[..total].split_at_mut(HEADER);
    header[..3].copy_from_slice(&MAGIC);
    header[3] = sender.get() as u8;
    header[4..12].copy_from_slice(&session_id.to_le_bytes());
    header[12..].copy_from_slice(&counter.to_le_bytes());
    let (body, tag) = rest.split_at_mut(plaintext.len());
    body.copy_from_slice(plaintext);
    let cipher = ChaCha20Poly1305::new(&(*key).into());
    match cipher.encrypt_inout_detached(&nonce(counter), header, body.into()) {
        Ok(made) => {
            tag.copy_from_slice(&made);
            total
        }
        // Only beyond 256 GiB of plaintext.
        Err(_) => 0,
    }
}

/// Seals this node's datagrams of one session.
#[derive(Debug)]
pub struct Sealer {
    keys: SessionKeys,
    sender: Pnn,
    next: u64,
}

impl Sealer {
    /// A sealer that counts from 0: one per session, ever.
    pub fn new(keys: SessionKeys, sender: Pnn) -> Self {
        Self {
            keys,
            sender,
            next: 0,
        }
    }

    /// The session it seals for.
    pub const fn session_id(&self) -> u64 {
        self.keys.session_id
    }

    /// Seals `plaintext` into `out` and returns the datagram's length; 0, with nothing sealed, if
    /// `plaintext` is longer than [`MAX_PLAINTEXT`] or `out` too short ([`MAX_DATAGRAM`] always
    /// suffices).
    pub fn seal(&mut self, plaintext: &[u8], out: &mut [u8]) -> usize {
        if self.next & GONE_BIT != 0 {
            return 0; // 2^63 datagrams: not in the life of a cluster, yet never a nonce twice.
        }
        let keys = &self.keys;
        let length = seal_with(
            &keys.send_key,
            keys.session_id,
            self.sender,
            self.next,
            plaintext,
            out,
        );
        if length > 0 {
            self.next += 1;
        }
        length
    }
}

/// Seals the guard's GONE: the daemon's send key with a counter that the daemon never uses. The
/// result may be sent any number of times and is accepted once per session. It must be called
/// with *one* plaintext per session: all copies of GONE are the same bytes. Returns the length,
/// or 0 as [`Sealer::seal`] does.
pub fn seal_gone(
    send_key: &[u8; 32],
    session_id: u64,
    sender: Pnn,
    plaintext: &[u8],
    out: &mut [u8],
) -> usize {
    seal_with(send_key, session_id, sender, GONE_BIT, plaintext, out)
}

/// Why a datagram was not opened. It is counted ([`OpenCounters`]), never logged one by one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// Shorter than header and tag.
    #[error("datagram is truncated")]
    Truncated,
    /// Longer than [`MAX_DATAGRAM`].
    #[error("datagram is longer than {MAX_DATAGRAM} bytes")]
    TooLong,
    /// Other magic, layout version or an impossible node number.
    #[error("datagram is not of this protocol")]
    NotOurs,
    /// Of another session or sender than this opener's: late, or from before a restart.
    #[error("datagram belongs to another session")]
    OtherSession,
    /// Seen before, or older than [`REPLAY_WINDOW`].
    #[error("datagram was received before")]
    Replayed,
    /// Changed on its way or sealed under another key.
    #[error("datagram is forged or damaged")]
    Forged,
}

/// What an [`Opener`] has seen; for `status` and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct OpenCounters {
    /// Opened.
    pub accepted: u64,
    /// [`OpenError::Truncated`], [`OpenError::TooLong`] and [`OpenError::NotOurs`].
    pub malformed: u64,
    /// [`OpenError::OtherSession`].
    pub other_session: u64,
    /// [`OpenError::Replayed`].
    pub replayed: u64,
    /// [`OpenError::Forged`].
    pub forged: u64,
}

/// Opens the peer's datagrams of one session.
#[derive(Debug)]
pub struct Opener {
    keys: SessionKeys,
    peer: Pnn,
    window: Window,
    gone_seen: bool,
    counters: OpenCounters,
}

impl Opener {
    /// An opener for what `peer` seals in the session of `keys`.
    pub fn new(keys: SessionKeys, peer: Pnn) -> Self {
        Self {
            keys,
            peer,
            window: Window::default(),
            gone_seen: false,
            counters: OpenCounters::default(),
        }
    }

    /// The session it opens.
    pub const fn session_id(&self) -> u64 {
        self.keys.session_id
    }

    /// What it has seen.
    pub const fn counters(&self) -> OpenCounters {
        self.counters
    }

    /// Opens `datagram` in place and returns the plaintext. A datagram that fails changes nothing
    /// but a counter.
    pub fn open<'a>(&mut self, datagram: &'a mut [u8]) -> Result<&'a [u8], OpenError> {
        let result = self.open_uncounted(datagram);
        let counters = &mut self.counters;
        *match result {
            Ok(_) => &mut counters.accepted,
            Err(OpenError::Truncated | OpenError::TooLong | OpenError::NotOurs) => {
                &mut counters.malformed
            }
            Err(OpenError::OtherSession) => &mut counters.other_session,
            Err(OpenError::Replayed) => &mut counters.replayed,
            Err(OpenError::Forged) => &mut counters.forged,
        } += 1;
        result
    }

    fn open_uncounted<'a>(&mut self, datagram: &'a mut [u8]) -> Result<&'a [u8], OpenError> {
        let head = Header::read(datagram)?;
        if head.session_id != self.keys.session_id || head.sender != self.peer {
            return Err(OpenError::OtherSession);
        }
        // Before the cipher, so that a flood of copies costs little; marked only after it.
        let fresh = if head.is_gone() {
            head.counter == GONE_BIT && !self.gone_seen
        } else {
            self.window.is_fresh(head.counter)
        };
        if !fresh {
            return Err(OpenError::Replayed);
        }
        let (header, rest) = datagram.split_at_mut(HEADER);
        let (body, tag) = rest.split_at_mut(rest.len() - TAG);
        let tag = Tag::try_from(&*tag).map_err(|_| OpenError::Truncated)?;
        ChaCha20Poly1305::new(&(*self.keys.recv_key).into())
            .decrypt_inout_detached(&nonce(head.counter), header, (&mut *body).into(), &tag)
            .map_err(|_| OpenError::Forged)?;
        if head.is_gone() {
            self.gone_seen = true;
        } else {
            self.window.mark(head.counter);
        }
        Ok(body)
    }
}

/// Which of the last [`REPLAY_WINDOW`] counters were seen: a ring of bits.
#[derive(Debug, Default)]
struct Window {
    /// One above the highest counter seen.
    end: u64,
    seen: [u64; WORDS],
}

impl Window {
    const fn place(counter: u64) -> (usize, u64) {
        let bit = counter % REPLAY_WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn is_fresh(&self, counter: u64) -> bool {
        if counter >= self.end {
            return true;
        }
        let (word, bit) = Self::place(counter);
        self.end - counter <= REPLAY_WINDOW && self.seen[word] & bit == 0
    }

    fn mark(&mut self, counter: u64) {
        if counter >= self.end {
            if counter - self.end >= REPLAY_WINDOW {
                self.seen = [0; WORDS];
            } else {
                for skipped in self.end..counter {
                    let (word, bit) = Self::place(skipped);
                    self.seen[word] &= !bit;
                }
            }
            self.end = counter + 1;
        }
        let (word, bit) = Self::place(counter);
        self.seen[word] |= bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pnn(number: u32) -> Pnn {
        Pnn::new(number).unwrap()
    }

    fn pair(secret: &[u8]) -> (SessionKeys, SessionKeys) {
        let derive =
            |we_dial| SessionKeys::derive(b"hash", secret, Incarnation(7), Incarnation(9), we_dial);
        (derive(true), derive(false))
    }

    fn ends() -> (Sealer, Opener) {
        let (a, b) = pair(b"secret");
        (Sealer::new(a, pnn(1)), Opener::new(b, pnn(1)))
    }

    fn sealed(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        let mut out = [0; MAX_DATAGRAM];
        let length = sealer.seal(text, &mut out);
        out[..length].to_vec()
    }

    #[test]
    fn both_sides_derive_the_same_keys_and_directions_differ() {
        let (a, b) = pair(b"secret");
        assert_eq!(a.session_id, b.session_id);
        assert_eq!(a.send_key, b.recv_key);
        assert_eq!(a.recv_key, b.send_key);
        assert_ne!(a.send_key, a.recv_key);
        assert_ne!(a.session_id, pair(b"other").0.session_id);
        assert_eq!(format!("{a:?}"), format!("session {:016x}", a.session_id));
    }

    #[test]
    fn what_is_sealed_opens_once() {
        let (mut sealer, mut opener) = ends();
        let datagram = sealed(&mut sealer, b"heartbeat");
        assert_eq!(opener.open(&mut datagram.clone()), Ok(&b"heartbeat"[..]));
        assert_eq!(opener.open(&mut datagram.clone()), Err(OpenError::Replayed));
        assert_eq!(sealed(&mut sealer, &[]).len(), HEADER + TAG);
        assert_eq!(
            opener.counters(),
            OpenCounters {
                accepted: 1,
                replayed: 1,
                ..OpenCounters::default()
            }
        );
    }

    #[test]
    fn sizes_have_bounds() {
        let (mut sealer, mut opener) = ends();
        let mut out = [0; MAX_DATAGRAM + 1];
        assert_eq!(sealer.seal(&[0; MAX_PLAINTEXT + 1], &mut out), 0);
        assert_eq!(sealer.seal(&[1; 9], &mut out[..HEADER + 9 + TAG - 1]), 0);
        let length = sealer.seal(&[1; MAX_PLAINTEXT], &mut out);
        assert_eq!(length, MAX_DATAGRAM);
        assert_eq!(opener.open(&mut out), Err(OpenError::TooLong));
        assert_eq!(opener.open(&mut out[..length]).unwrap(), [1; MAX_PLAINTEXT]);
        for short in 0..HEADER + TAG {
            assert_eq!(opener.open(&mut out[..short]), Err(OpenError::Truncated));
        }
    }

    #[test]
    fn another_session_or_sender_is_told_apart() {
        let (mut sealer, _) = ends();
        let datagram = sealed(&mut sealer, b"x");
        let mut other = Opener::new(pair(b"later").1, pnn(1));
        assert_eq!(
            other.open(&mut datagram.clone()),
            Err(OpenError::OtherSession)
        );
        let mut third = Opener::new(pair(b"secret").1, pnn(2));
        assert_eq!(
            third.open(&mut datagram.clone()),
            Err(OpenError::OtherSession)
        );
        // What a node sent cannot be reflected to it: the directions have different keys.
        let mut own = Opener::new(pair(b"secret").0, pnn(1));
        assert_eq!(own.open(&mut datagram.clone()), Err(OpenError::Forged));
    }

    #[test]
    fn gone_is_accepted_once_and_leaves_the_window_alone() {
        let (mut sealer, mut opener) = ends();
        let keys = pair(b"secret").0;
        let mut out = [0; MAX_DATAGRAM];
        let length = seal_gone(&keys.send_key, keys.session_id, pnn(1), b"gone", &mut out);
        assert!(Header::read(&out[..length]).unwrap().is_gone());
        assert_eq!(opener.open(&mut out.to_vec()[..length]), Ok(&b"gone"[..]));
        assert_eq!(
            opener.open(&mut out.to_vec()[..length]),
            Err(OpenError::Replayed)
        );
        let late = sealed(&mut sealer, b"sent before");
        assert_eq!(opener.open(&mut late.clone()), Ok(&b"sent before"[..]));
        // Other counters of the reserved range do not exist.
        let mut odd = out[..length].to_vec();
        odd[12] = 1;
        let mut fresh = Opener::new(pair(b"secret").1, pnn(1));
        assert_eq!(fresh.open(&mut odd), Err(OpenError::Replayed));
    }

    #[test]
    fn a_forged_counter_does_not_move_the_window() {
        let (mut sealer, mut opener) = ends();
        let first = sealed(&mut sealer, b"1");
        let mut forged = first.clone();
        forged[18] = 0x7f;
        assert_eq!(opener.open(&mut forged), Err(OpenError::Forged));
        assert_eq!(opener.open(&mut first.clone()), Ok(&b"1"[..]));
    }

    #[test]
    fn the_window_has_its_edges_where_documented() {
        let mut window = Window::default();
        window.mark(0);
        window.mark(REPLAY_WINDOW);
        assert!(!window.is_fresh(0), "one behind the window");
        assert!(window.is_fresh(1), "the last inside");
        window.mark(1);
        assert!(!window.is_fresh(1));
        window.mark(5 * REPLAY_WINDOW);
        assert!(!window.is_fresh(REPLAY_WINDOW));
        assert!(window.is_fresh(4 * REPLAY_WINDOW + 1));
        assert!(!window.is_fresh(4 * REPLAY_WINDOW));
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(
            counters in proptest::collection::vec(0_u64..5000, 1..400)
        ) {
            let mut window = Window::default();
            let mut seen = BTreeSet::new();
            for counter in counters {
                let highest = seen.last().copied().unwrap_or(0);
                let expected = !seen.contains(&counter) && counter + REPLAY_WINDOW > highest;
                prop_assert_eq!(window.is_fresh(counter), expected);
                if expected {
                    window.mark(counter);
                    seen.insert(counter);
                }
            }
        }

        #[test]
        fn a_changed_datagram_never_opens(
            text in proptest::collection::vec(any::<u8>(), 0..64),
            at in any::<proptest::sample::Index>(),
            flip in 1_u8..=255,
            cut in any::<proptest::sample::Index>(),
        ) {
            let (mut sealer, mut opener) = ends();
            let datagram = sealed(&mut sealer, &text);
            let mut changed = datagram.clone();
            let place = at.index(changed.len());
            changed[place] ^= flip;
            prop_assert!(opener.open(&mut changed).is_err());
            let mut shorter = datagram[..cut.index(datagram.len())].to_vec();
            prop_assert!(opener.open(&mut shorter).is_err());
            let mut longer = datagram.clone();
            longer.push(flip);
            prop_assert!(opener.open(&mut longer).is_err());
            let mut copy = datagram.clone();
            prop_assert_eq!(opener.open(&mut copy), Ok(&text[..]));
        }

        #[test]
        fn random_bytes_never_open(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..700),
            dress in any::<bool>(),
        ) {
            let (_, mut opener) = ends();
            if dress && bytes.len() >= HEADER {
                bytes[..3].copy_from_slice(&MAGIC);
                bytes[3] = 1;
                bytes[4..12].copy_from_slice(&opener.session_id().to_le_bytes());
            }
            prop_assert!(opener.open(&mut bytes).is_err());
        }
    }
}
