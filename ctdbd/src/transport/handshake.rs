//! The handshake of a link, over any byte stream.
//!
//! The dialer speaks first:
//!
//! 1. *Preface* in clear, [`PREFACE`] bytes, then its first message.
//! 2. The listener's *reply* in clear, [`REPLY`] bytes: verdict and its versions, then its message.
//! 3. The dialer's first frame, a [`PeerFrame::Ping`]. Only now does the listener take the
//!    connection for authenticated: before, message 1 could be a copy of an old one.
//!
//! The messages are those of `Noise_NNpsk0_25519_ChaChaPoly_SHA256` with the cluster key as PSK;
//! their payloads are [`Hello`]s. The preface, with both node numbers, the versions and the
//! cluster name, and the cluster id are the prologue, so that nobody can change them on the way.
//! A message 1 under a wrong key costs the listener some hashes and no curve operation.
//! In plain mode the messages are the bare hellos.

use std::{fmt, time::Duration};

use ctdb_wire::{
    ids::{Incarnation, Pnn},
    peer::{self, PeerFrame},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use snow::HandshakeState;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use zeroize::{Zeroize as _, Zeroizing};

use super::{
    crypt::{Crypt, LENGTH, Nonce},
    datagram::SessionKeys,
    key::{ClusterKey, KeyRing},
    refusal::{Refusal, Verdict},
};

/// Length of the preface, which it states in its first word: a CTDB daemon that we dial by
/// mistake reads a short packet with a wrong magic, and closes.
pub const PREFACE: usize = 28;
/// Length of the reply's clear part.
pub const REPLY: usize = 16;
/// Longest handshake message, in bytes.
pub const MAX_HANDSHAKE: usize = 512;
/// Longest release text in a hello, in bytes.
pub const MAX_RELEASE: usize = 64;

const PREFACE_MAGIC: [u8; 8] = *b"\x1c\0\0\0n2n\x01";
const REPLY_MAGIC: [u8; 8] = *b"\x10\0\0\0n2n\x02";
/// The second word of every packet of CTDB's (`spec/client-protocol.md` 2).
const CTDB_MAGIC: u32 = 0x4354_4442;
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_SHA256";
const KIND_NOISE: u8 = 1;
const KIND_PLAIN: u8 = 2;

/// The protocol versions that a release speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VersionRange {
    /// Oldest.
    pub min: u16,
    /// Newest.
    pub max: u16,
}

impl VersionRange {
    /// What this release speaks. 2: STATE says which links its sender lacks, FREEZE and THAW of databases
    /// which view they follow.
    pub const OURS: Self = Self { min: 2, max: 2 };

    /// The newest that both speak.
    pub fn common(self, other: Self) -> Option<u16> {
        let newest = self.max.min(other.max);
        (newest >= self.min.max(other.min)).then_some(newest)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "{}", self.max)
        } else {
            write!(f, "{} to {}", self.min, self.max)
        }
    }
}

/// How links are protected (`[security] transport`).
#[derive(Clone, Debug)]
pub enum Security {
    /// Encrypted and mutually authenticated with the cluster key.
    Noise(KeyRing),
    /// Neither: the private network is trusted. Also what `CTDB_TEST_MODE` implies.
    Plain,
}

/// What this node says of itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Own node number.
    pub me: Pnn,
    /// Own life; not zero.
    pub incarnation: Incarnation,
    /// Own release, cut to [`MAX_RELEASE`] bytes.
    pub release: String,
    /// Length of the own nodes list.
    pub nodes: u16,
    /// `[cluster] name`, or empty.
    pub cluster_name: String,
    /// Spoken versions.
    pub versions: VersionRange,
    /// Keys.
    pub security: Security,
}

/// A node's introduction inside the handshake.
#[derive(Serialize, Deserialize)]
struct Hello {
    versions: VersionRange,
    pnn: Pnn,
    incarnation: Incarnation,
    nodes: u16,
    release: String,
    /// The listener's alone counts: it travels under keys that nobody else can know afterwards.
    secret: Secret,
}

/// Random bytes, wiped when dropped, never printed.
#[derive(Serialize, Deserialize)]
struct Secret([u8; 32]);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// A completed handshake.
pub struct Established {
    /// Encryption of the frames.
    pub crypt: Crypt,
    /// Numbers of the frames sent and received so far.
    pub sent: Nonce,
    /// See `sent`.
    pub received: Nonce,
    /// Who it is.
    pub peer: Pnn,
    /// Its life.
    pub incarnation: Incarnation,
    /// The agreed version.
    pub version: u16,
    /// Its release.
    pub release: String,
    /// Length of its nodes list.
    pub nodes: u16,
    /// Keys for datagrams.
    pub session: SessionKeys,
}

impl fmt::Debug for Established {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "node {} {:?} {:?}",
            self.peer, self.incarnation, self.session
        )
    }
}

impl Identity {
    const fn kind(&self) -> u8 {
        match self.security {
            Security::Noise(_) => KIND_NOISE,
            Security::Plain => KIND_PLAIN,
        }
    }

    fn cluster_tag(&self) -> [u8; 8] {
        let mut hash = Sha256::new();
        hash.update(b"ctdb cluster name\0");
        hash.update(&self.cluster_name);
        let mut tag = [0; 8];
        tag.copy_from_slice(&hash.finalize()[..8]);
        tag
    }

    fn preface(&self, listener: Pnn, message: usize) -> [u8; PREFACE] {
        let mut bytes = [0; PREFACE];
        bytes[..8].copy_from_slice(&PREFACE_MAGIC);
        bytes[8] = self.kind();
        bytes[9] = self.me.get() as u8;
        bytes[10] = listener.get() as u8;
        bytes[12..14].copy_from_slice(&self.versions.min.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.versions.max.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.cluster_tag());
        bytes[24..26].copy_from_slice(&(message as u16).to_le_bytes());
        bytes
    }

    fn prologue(&self, preface: &[u8; PREFACE], key: &ClusterKey) -> Vec<u8> {
        let mut bytes = b"ctdb link 1\0".to_vec();
        // Without the message's length, which is not known yet when the dialer needs this.
        bytes.extend_from_slice(&preface[..24]);
        bytes.extend_from_slice(&key.cluster_id(&self.cluster_name).0);
        bytes
    }

    fn noise(
        &self,
        preface: &[u8; PREFACE],
        key: &ClusterKey,
        dial: bool,
    ) -> Result<HandshakeState, Failure> {
        let prologue = self.prologue(preface, key);
        let params = PATTERN.parse().map_err(Failure::Noise)?;
        let builder = snow::Builder::new(params)
            .psk(0, key.bytes())
            .and_then(|builder| builder.prologue(&prologue))
            .map_err(Failure::Noise)?;
        let state = if dial {
            builder.build_initiator()
        } else {
            builder.build_responder()
        };
        state.map_err(Failure::Noise)
    }

    fn hello(&self) -> Result<Hello, Failure> {
        let mut secret = Secret([0; 32]);
        getrandom::fill(&mut secret.0).map_err(Failure::Random)?;
        let mut release = self.release.clone();
        let mut length = release.len().min(MAX_RELEASE);
        while !release.is_char_boundary(length) {
            length -= 1;
        }
        release.truncate(length);
        Ok(Hello {
            versions: self.versions,
            pnn: self.me,
            incarnation: self.incarnation,
            nodes: self.nodes,
            release,
            secret,
        })
    }

    fn check(&self, hello: &Hello, expected: Pnn) -> Result<u16, Refusal> {
        if hello.pnn != expected {
            return Err(Refusal::WrongNode);
        }
        if hello.release.len() > MAX_RELEASE
            || hello.incarnation == Incarnation::NONE
            || hello.incarnation == self.incarnation
        {
            return Err(Refusal::Malformed);
        }
        self.versions
            .common(hello.versions)
            .ok_or(Refusal::OtherVersion {
                theirs: hello.versions,
                ours: self.versions,
            })
    }
}

/// Why a handshake ended without a link.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The peer's fault, or the configuration's.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The connection failed.
    #[error("connection: {0}")]
    Io(#[from] std::io::Error),
    /// The Noise library failed for a reason of its own.
    #[error("Noise: {0}")]
    Noise(snow::Error),
    /// No randomness.
    #[error("drawing random bytes: {0}")]
    Random(getrandom::Error),
}

fn encode_hello(hello: &Hello) -> Result<Zeroizing<Vec<u8>>, Failure> {
    postcard::to_allocvec(hello)
        .map(Zeroizing::new)
        .map_err(|_| Failure::Refused(Refusal::Malformed))
}

fn decode_hello(bytes: &[u8]) -> Result<Hello, Refusal> {
    match postcard::take_from_bytes(bytes) {
        Ok((hello, [])) => Ok(hello),
        _ => Err(Refusal::Malformed),
    }
}

fn is_ctdb(head: [u8; 8]) -> bool {
    let word = [head[4], head[5], head[6], head[7]];
    u32::from_le_bytes(word) == CTDB_MAGIC || u32::from_be_bytes(word) == CTDB_MAGIC
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S, bytes: &mut [u8]) -> Result<(), Failure> {
    match stream.read_exact(bytes).await {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Err(Refusal::Closed.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Reads a clear part of `N` bytes and checks its magic before the rest is waited for.
async fn read_head<const N: usize, S: AsyncRead + Unpin>(
    stream: &mut S,
    magic: [u8; 8],
) -> Result<[u8; N], Failure> {
    let mut head = [0; 8];
    read(stream, &mut head).await?;
    if is_ctdb(head) {
        return Err(Refusal::CtdbDaemon.into());
    }
    if head != magic {
        return Err(Refusal::Garbage.into());
    }
    let mut bytes = [0; N];
    bytes[..8].copy_from_slice(&head);
    read(stream, &mut bytes[8..]).await?;
    Ok(bytes)
}

async fn read_message<'a, S: AsyncRead + Unpin>(
    stream: &mut S,
    length: u16,
    buffer: &'a mut [u8; MAX_HANDSHAKE],
) -> Result<&'a [u8], Failure> {
    let message = buffer.get_mut(..length as usize).ok_or(Refusal::TooLong)?;
    read(stream, message).await?;
    Ok(message)
}

fn transport(state: HandshakeState) -> Result<(Crypt, Vec<u8>), Failure> {
    let hash = state.get_handshake_hash().to_vec();
    let state = state
        .into_stateless_transport_mode()
        .map_err(Failure::Noise)?;
    Ok((Crypt::Noise(Box::new(state)), hash))
}

/// How long a refused dialer is given to read why.
const FAREWELL: Duration = Duration::from_millis(200);
/// Salt of the datagram keys where no handshake hash exists.
const PLAIN_TRANSCRIPT: &[u8] = b"ctdb plain transport";

/// Dials `listener` over `stream`. The caller sets the time-out.
pub async fn dial<S>(
    stream: &mut S,
    identity: &Identity,
    listener: Pnn,
) -> Result<Established, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let hello = encode_hello(&identity.hello()?)?;
    let mut message = [0; MAX_HANDSHAKE];
    let (mut state, length) = match &identity.security {
        Security::Noise(keys) => {
            let mut state =
                identity.noise(&identity.preface(listener, 0), keys.dial_key(), true)?;
            let length = state
                .write_message(&hello, &mut message)
                .map_err(Failure::Noise)?;
            (Some(state), length)
        }
        Security::Plain => {
            message[..hello.len()].copy_from_slice(&hello);
            (None, hello.len())
        }
    };
    let mut out = identity.preface(listener, length).to_vec();
    out.extend_from_slice(&message[..length]);
    stream.write_all(&out).await?;

    let reply: [u8; REPLY] = read_head(stream, REPLY_MAGIC).await?;
    let theirs = VersionRange {
        min: u16_at(&reply, 12),
        max: u16_at(&reply, 14),
    };
    match Verdict::from_byte(reply[8]) {
        Some(Verdict::Welcome) => {}
        Some(Verdict::OtherVersion) => {
            return Err(Refusal::OtherVersion {
                theirs,
                ours: identity.versions,
            }
            .into());
        }
        Some(verdict) => return Err(Refusal::ByPeer(verdict).into()),
        None => return Err(Refusal::ByPeer(Verdict::Malformed).into()),
    }
    let received = read_message(stream, u16_at(&reply, 10), &mut message).await?;
    let mut plain = Zeroizing::new([0; MAX_HANDSHAKE]);
    let hello = match &mut state {
        Some(state) => {
            // The listener knew the key or it would not have welcomed us; else it is a fake.
            let length = state
                .read_message(received, &mut *plain)
                .map_err(|_| Refusal::WrongKey)?;
            decode_hello(&plain[..length])?
        }
        None => decode_hello(received)?,
    };
    let version = identity.check(&hello, listener)?;
    let (crypt, transcript) = match state {
        Some(state) => transport(state)?,
        None => (Crypt::Plain, PLAIN_TRANSCRIPT.to_vec()),
    };
    let session = SessionKeys::derive(
        &transcript,
        &hello.secret.0,
        identity.incarnation,
        hello.incarnation,
        true,
    );
    let mut sent = Nonce::default();
    let mut confirm = Vec::new();
    crypt.append(&mut sent, &ping(), &mut confirm);
    stream.write_all(&confirm).await?;
    Ok(Established {
        crypt,
        sent,
        received: Nonce::default(),
        peer: listener,
        incarnation: hello.incarnation,
        version,
        release: hello.release,
        nodes: hello.nodes,
        session,
    })
}

/// An encoded [`PeerFrame::Ping`].
pub fn ping() -> Vec<u8> {
    peer::encode(&PeerFrame::Ping).expect("a ping has no bounds to break")
}

/// Answers a dialer on `stream`. `admits` says whether a node of that number may dial from where
/// the connection comes from. The caller sets the time-out.
pub async fn accept<S>(
    stream: &mut S,
    identity: &Identity,
    admits: impl Fn(Pnn) -> bool,
) -> Result<Established, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let result = accept_first(stream, identity, admits).await;
    let (established, message) = match result {
        Ok(done) => done,
        Err(failure) => {
            if let Failure::Refused(refusal) = &failure {
                // What does not speak our protocol gets no answer.
                if !matches!(
                    refusal,
                    Refusal::Garbage | Refusal::CtdbDaemon | Refusal::Closed
                ) {
                    let farewell = refuse(stream, reply(identity, refusal.verdict(), 0));
                    let _ = tokio::time::timeout(FAREWELL, farewell).await;
                }
            }
            return Err(failure);
        }
    };
    let mut out = reply(identity, Verdict::Welcome, message.len()).to_vec();
    out.extend_from_slice(&message);
    stream.write_all(&out).await?;
    confirmed(stream, established).await
}

/// Tells a dialer why not, and reads what it still had under way: closing on unread bytes would
/// reset the connection before the reply is seen.
async fn refuse<S>(stream: &mut S, reply: [u8; REPLY]) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&reply).await?;
    stream.shutdown().await?;
    let mut rest = [0; MAX_HANDSHAKE];
    for _ in 0..4 {
        if stream.read(&mut rest).await? == 0 {
            break;
        }
    }
    Ok(())
}

fn reply(identity: &Identity, verdict: Verdict, message: usize) -> [u8; REPLY] {
    let mut bytes = [0; REPLY];
    bytes[..8].copy_from_slice(&REPLY_MAGIC);
    bytes[8] = verdict as u8;
    bytes[10..12].copy_from_slice(&(message as u16).to_le_bytes());
    bytes[12..14].copy_from_slice(&identity.versions.min.to_le_bytes());
    bytes[14..].copy_from_slice(&identity.versions.max.to_le_bytes());
    bytes
}

async fn accept_first<S: AsyncRead + Unpin>(
    stream: &mut S,
    identity: &Identity,
    admits: impl Fn(Pnn) -> bool,
) -> Result<(Established, Vec<u8>), Failure> {
    let preface: [u8; PREFACE] = read_head(stream, PREFACE_MAGIC).await?;
    let theirs = VersionRange {
        min: u16_at(&preface, 12),
        max: u16_at(&preface, 14),
    };
    if identity.versions.common(theirs).is_none() {
        return Err(Refusal::OtherVersion {
            theirs,
            ours: identity.versions,
        }
        .into());
    }
    if preface[8] != identity.kind() {
        return Err(Refusal::OtherMode.into());
    }
    if preface[16..24] != identity.cluster_tag() {
        return Err(Refusal::OtherCluster.into());
    }
    let dialer = Pnn::new(u32::from(preface[9])).map_err(|_| Refusal::Malformed)?;
    // The higher number dials, so that a pair has one stream.
    if u32::from(preface[10]) != identity.me.get() || dialer <= identity.me || !admits(dialer) {
        return Err(Refusal::WrongNode.into());
    }
    let mut buffer = [0; MAX_HANDSHAKE];
    let received = read_message(stream, u16_at(&preface, 24), &mut buffer).await?;
    let mut plain = Zeroizing::new([0; MAX_HANDSHAKE]);
    let (mut state, hello) = match &identity.security {
        Security::Noise(keys) => {
            let mut opened = None;
            for key in keys.accepted() {
                let mut state = identity.noise(&preface, key, false)?;
                if let Ok(length) = state.read_message(received, &mut *plain) {
                    opened = Some((state, length));
                    break;
                }
            }
            let (state, length) = opened.ok_or(Refusal::WrongKey)?;
            (Some(state), decode_hello(&plain[..length])?)
        }
        Security::Plain => (None, decode_hello(received)?),
    };
    let version = identity.check(&hello, dialer)?;
    let own = identity.hello()?;
    let encoded = encode_hello(&own)?;
    let message = match &mut state {
        Some(state) => {
            let mut message = vec![0; MAX_HANDSHAKE];
            let length = state
                .write_message(&encoded, &mut message)
                .map_err(Failure::Noise)?;
            message.truncate(length);
            message
        }
        None => encoded.to_vec(),
    };
    let (crypt, transcript) = match state {
        Some(state) => transport(state)?,
        None => (Crypt::Plain, PLAIN_TRANSCRIPT.to_vec()),
    };
    let session = SessionKeys::derive(
        &transcript,
        &own.secret.0,
        hello.incarnation,
        identity.incarnation,
        false,
    );
    let established = Established {
        crypt,
        sent: Nonce::default(),
        received: Nonce::default(),
        peer: dialer,
        incarnation: hello.incarnation,
        version,
        release: hello.release,
        nodes: hello.nodes,
        session,
    };
    Ok((established, message))
}

/// Waits for the dialer's first frame, which proves that it holds the keys of *this* handshake.
async fn confirmed<S: AsyncRead + Unpin>(
    stream: &mut S,
    mut established: Established,
) -> Result<Established, Failure> {
    let mut length = [0; LENGTH];
    read(stream, &mut length).await?;
    let length = established
        .crypt
        .check_length(length)
        .map_err(|_| Refusal::Malformed)?;
    let mut wire = [0; 64];
    let wire = wire.get_mut(..length).ok_or(Refusal::TooLong)?;
    read(stream, wire).await?;
    let mut plain = Vec::new();
    let frame = established
        .crypt
        .open(&mut established.received, wire, &mut plain)
        .map_err(|_| Refusal::WrongKey)?;
    if frame != ping() {
        return Err(Refusal::Malformed.into());
    }
    Ok(established)
}
