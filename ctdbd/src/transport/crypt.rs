//! Framing of an established link.
//!
//! A frame on the wire is a length (4 bytes, little-endian, of what follows, at most
//! [`MAX_WIRE`]) and then the encoded [`PeerFrame`](ctdb_wire::peer::PeerFrame) as Noise messages
//! of 65535 bytes, the last one shorter. In plain mode the same without encryption.

use ctdb_wire::peer::MAX_FRAME;
use snow::StatelessTransportState;

/// Longest Noise message, in bytes.
const MAX_MESSAGE: usize = 65535;
const TAG: usize = 16;
const CHUNK: usize = MAX_MESSAGE - TAG;
/// Longest frame behind its length, in bytes.
pub const MAX_WIRE: usize = MAX_FRAME + MAX_FRAME.div_ceil(CHUNK) * TAG;
/// Bytes of the length in front of a frame.
pub const LENGTH: usize = 4;

/// Bytes on a link that are no frame; the link is closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CryptError {
    /// The length is beyond [`MAX_WIRE`], or too short for anything.
    #[error("a frame of {0} bytes was announced, at most {MAX_WIRE} are possible")]
    Length(u32),
    /// Does not decrypt.
    #[error("a frame was forged or damaged on its way")]
    Forged,
}

/// Both directions of one link's encryption: state that both loops of a link share, since a
/// message's number is the caller's.
pub enum Crypt {
    /// Keys from the handshake.
    Noise(Box<StatelessTransportState>),
    /// The private network is trusted.
    Plain,
}

/// Counts the messages of one direction.
#[derive(Clone, Debug, Default)]
pub struct Nonce(u64);

impl Crypt {
    /// Appends `frame` (at most [`MAX_FRAME`] bytes, not empty) to `out` in wire form.
    pub fn append(&self, nonce: &mut Nonce, frame: &[u8], out: &mut Vec<u8>) {
        debug_assert!(!frame.is_empty() && frame.len() <= MAX_FRAME);
        let Self::Noise(state) = self else {
            out.extend_from_slice(&(frame.len() as u32).to_le_bytes());
            out.extend_from_slice(frame);
            return;
        };
        let length = frame.len() + frame.len().div_ceil(CHUNK) * TAG;
        out.extend_from_slice(&(length as u32).to_le_bytes());
        let start = out.len();
        out.resize(start + length, 0);
        let mut at = start;
        for chunk in frame.chunks(CHUNK) {
            at += state
                .write_message(nonce.0, chunk, &mut out[at..])
                .expect("chunks are below Noise's limit, and 2^64 messages are never reached");
            nonce.0 += 1;
        }
    }

    /// Checks the length in front of a frame, before anything is allocated for it.
    pub fn check_length(&self, bytes: [u8; LENGTH]) -> Result<usize, CryptError> {
        let length = u32::from_le_bytes(bytes);
        let (shortest, longest) = match self {
            Self::Noise(_) => (TAG + 1, MAX_WIRE),
            Self::Plain => (1, MAX_FRAME),
        };
        if (shortest..=longest).contains(&(length as usize)) {
            Ok(length as usize)
        } else {
            Err(CryptError::Length(length))
        }
    }

    /// Decrypts the `wire` bytes of one frame; `plain` is scratch that the result stands in.
    pub fn open<'a>(
        &self,
        nonce: &mut Nonce,
        wire: &'a [u8],
        plain: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], CryptError> {
        let Self::Noise(state) = self else {
            return Ok(wire);
        };
        plain.clear();
        plain.resize(wire.len(), 0);
        let mut at = 0;
        for message in wire.chunks(MAX_MESSAGE) {
            if message.len() <= TAG {
                return Err(CryptError::Forged);
            }
            at += state
                .read_message(nonce.0, message, &mut plain[at..])
                .map_err(|_| CryptError::Forged)?;
            nonce.0 += 1;
        }
        plain.truncate(at);
        Ok(plain)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two ends as a handshake makes them.
    pub fn ends() -> (Crypt, Crypt) {
        let params: snow::params::NoiseParams = "Noise_NN_25519_ChaChaPoly_SHA256".parse().unwrap();
        let mut a = snow::Builder::new(params.clone())
            .build_initiator()
            .unwrap();
        let mut b = snow::Builder::new(params).build_responder().unwrap();
        let (mut wire, mut rest) = ([0; 256], [0; 256]);
        let length = a.write_message(&[], &mut wire).unwrap();
        b.read_message(&wire[..length], &mut rest).unwrap();
        let length = b.write_message(&[], &mut wire).unwrap();
        a.read_message(&wire[..length], &mut rest).unwrap();
        let noise = |state: snow::HandshakeState| {
            Crypt::Noise(Box::new(state.into_stateless_transport_mode().unwrap()))
        };
        (noise(a), noise(b))
    }

    fn journey(from: &Crypt, to: &Crypt, nonces: &mut (Nonce, Nonce), frame: &[u8]) {
        let mut wire = Vec::new();
        from.append(&mut nonces.0, frame, &mut wire);
        let (length, body) = wire.split_at(LENGTH);
        assert_eq!(to.check_length(length.try_into().unwrap()), Ok(body.len()));
        assert!(to.open(&mut nonces.1, body, &mut Vec::new()).unwrap() == frame);
    }

    #[test]
    fn frames_of_all_sizes_survive_the_journey() {
        for (a, b) in [ends(), (Crypt::Plain, Crypt::Plain)] {
            let mut nonces = (Nonce::default(), Nonce::default());
            for size in [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, MAX_FRAME] {
                let frame: Vec<u8> = (0..size).map(|at| at as u8).collect();
                journey(&a, &b, &mut nonces, &frame);
            }
        }
    }

    #[test]
    fn lengths_beyond_the_cap_are_refused() {
        let (a, _) = ends();
        for crypt in [a, Crypt::Plain] {
            for length in [0, MAX_WIRE as u32 + 1, u32::MAX] {
                assert_eq!(
                    crypt.check_length(length.to_le_bytes()),
                    Err(CryptError::Length(length))
                );
            }
        }
    }

    #[test]
    fn damaged_repeated_and_swapped_frames_do_not_open() {
        let (a, b) = ends();
        let mut nonce = Nonce::default();
        let mut wires = [Vec::new(), Vec::new()];
        for wire in &mut wires {
            a.append(&mut nonce, b"frame", wire);
        }
        let mut scratch = Vec::new();
        let body = |wire: &Vec<u8>| wire[LENGTH..].to_vec();
        let open = |nonce: u64, wire: &[u8], scratch: &mut Vec<u8>| {
            b.open(&mut Nonce(nonce), wire, scratch).map(<[u8]>::to_vec)
        };
        assert!(open(0, &body(&wires[1]), &mut scratch).is_err(), "swapped");
        assert!(open(1, &body(&wires[0]), &mut scratch).is_err(), "repeated");
        assert!(open(0, &body(&wires[0])[1..], &mut scratch).is_err(), "cut");
        for at in 0..body(&wires[0]).len() {
            let mut damaged = body(&wires[0]);
            damaged[at] ^= 1;
            assert!(open(0, &damaged, &mut scratch).is_err());
        }
        assert_eq!(open(0, &body(&wires[0]), &mut scratch).unwrap(), b"frame");
    }
}
