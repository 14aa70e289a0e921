//! The cluster key: what makes a machine a member of the cluster.
//!
//! The key file is text: comment lines begin with `#`, each other line is
//! `ctdb-cluster-key-1 <base64 of 32 bytes>`. While a key is being replaced the file holds two:
//! the first is used to dial, both are accepted. To replace a key without closing a link: add
//! the new one as second line on all nodes, then make it the first on all, then remove the old.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use nix::libc::O_NONBLOCK;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// Most keys in one file: the one in use and the one that replaces it.
pub const MAX_KEYS: usize = 2;
/// Longest key file, in bytes.
pub const MAX_KEY_FILE: u64 = 4096;
const TAG: &str = "ctdb-cluster-key-1";

/// What went wrong with the key file, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is no key file.
    #[error(
        "there is no cluster key at {path}; make one on one node with `ctdb config keygen` and \
         copy it to the others with `ctdb config keygen --distribute`, or set [security] \
         transport = plain if the private network is trusted"
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("{action} cluster key {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Not a regular file.
    #[error("cluster key {path} is not a regular file; put the key itself there")]
    NotAFile {
        /// The file.
        path: PathBuf,
    },
    /// Others can read or change it.
    #[error(
        "cluster key {path} has mode {mode:04o}, so that others may know it; run `chmod 600 \
         {path}`, and replace the key on all nodes if it was readable for long"
    )]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Belongs to somebody else.
    #[error(
        "cluster key {path} belongs to user {owner}, not to user {expected} whom the daemon runs \
         as; run `chown {expected} {path}`"
    )]
    Owner {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The effective user.
        expected: u32,
    },
    /// Longer than a key file can be.
    #[error("cluster key {path} is longer than {MAX_KEY_FILE} bytes; it is not a key file")]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// A line that is neither key nor comment.
    #[error(
        "{path}:{line}: not a cluster key; a key line is `{TAG}` and 44 characters of base64, as \
         `ctdb config keygen` writes it"
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// No key line at all.
    #[error("cluster key {path} holds no key; make one with `ctdb config keygen --force`")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// More than [`MAX_KEYS`].
    #[error("cluster key {path} holds more than {MAX_KEYS} keys; remove the ones out of use")]
    TooMany {
        /// The file.
        path: PathBuf,
    },
    /// There is a file already.
    #[error(
        "{path} exists; nodes that use that key would be locked out by a new one. Copy it with \
         `ctdb config keygen --distribute`, or replace it with --force"
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The system has no randomness.
    #[error("drawing a random key: {0}")]
    Random(getrandom::Error),
}

/// One cluster key: 32 random bytes, wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterKey(Zeroizing<[u8; 32]>);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey")
    }
}

impl ClusterKey {
    /// A key of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Draws a key at random.
    pub fn generate() -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *bytes).map_err(KeyError::Random)?;
        Ok(Self(bytes))
    }

    /// The key itself.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The id of the cluster that has this key and name.
    pub fn cluster_id(&self, cluster_name: &str) -> ClusterId {
        let mut hash = Sha256::new();
        hash.update(b"ctdb cluster id 1\0");
        hash.update((cluster_name.len() as u64).to_le_bytes());
        hash.update(cluster_name);
        hash.update(*self.0);
        ClusterId(hash.finalize().into())
    }
}

/// Names a cluster: derived from key and `[cluster] name`, and bound into every handshake. Tells
/// nothing about the key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId(pub [u8; 32]);

impl fmt::Display for ClusterId {
    /// The first eight bytes, enough for an operator to compare two nodes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..8]
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The keys of one file: at least one, at most [`MAX_KEYS`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyRing {
    first: ClusterKey,
    second: Option<ClusterKey>,
}

impl KeyRing {
    /// A ring of one key.
    pub fn of(key: ClusterKey) -> Self {
        Self {
            first: key,
            second: None,
        }
    }

    /// A ring during a replacement: `dial` is used to dial, both are accepted.
    pub fn rotating(dial: ClusterKey, also: ClusterKey) -> Self {
        Self {
            first: dial,
            second: Some(also),
        }
    }

    /// The key used to dial.
    pub fn dial_key(&self) -> &ClusterKey {
        &self.first
    }

    /// All accepted keys, the dialing one first.
    pub fn accepted(&self) -> impl Iterator<Item = &ClusterKey> {
        std::iter::once(&self.first).chain(&self.second)
    }

    /// Reads and checks a key file: regular, mode 0600 or 0400, owned by the effective user.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let io = |action| {
            move |source: io::Error| KeyError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        // Not blocking: a FIFO in place of the file must not hang the daemon.
        let file = match OpenOptions::new()
            .read(true)
            .custom_flags(O_NONBLOCK)
            .open(path)
        {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(KeyError::Missing {
                    path: path.to_owned(),
                });
            }
            other => other.map_err(io("opening"))?,
        };
        let metadata = file.metadata().map_err(io("examining"))?;
        if !metadata.is_file() {
            return Err(KeyError::NotAFile {
                path: path.to_owned(),
            });
        }
        let (owner, expected) = (metadata.uid(), nix::unistd::geteuid().as_raw());
        if owner != expected {
            return Err(KeyError::Owner {
                path: path.to_owned(),
                owner,
                expected,
            });
        }
        let mode = metadata.mode() & 0o7777;
        if mode != 0o600 && mode != 0o400 {
            return Err(KeyError::Mode {
                path: path.to_owned(),
                mode,
            });
        }
        if metadata.len() > MAX_KEY_FILE {
            return Err(KeyError::TooLong {
                path: path.to_owned(),
            });
        }
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_KEY_FILE as usize));
        file.take(MAX_KEY_FILE)
            .read_to_end(&mut bytes)
            .map_err(io("reading"))?;
        Self::parse(&bytes, path)
    }

    /// Parses the text of a key file; `path` is for errors only.
    pub fn parse(bytes: &[u8], path: &Path) -> Result<Self, KeyError> {
        let mut keys = Vec::with_capacity(MAX_KEYS);
        for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            let line = line.trim_ascii();
            if line.is_empty() || line[0] == b'#' {
                continue;
            }
            let key = line
                .strip_prefix(TAG.as_bytes())
                .filter(|rest| rest.first().is_some_and(u8::is_ascii_whitespace))
                .and_then(|rest| base64_decode(rest.trim_ascii()))
                .ok_or_else(|| KeyError::Line {
                    path: path.to_owned(),
                    line: index + 1,
                })?;
            if keys.len() == MAX_KEYS {
                return Err(KeyError::TooMany {
                    path: path.to_owned(),
                });
            }
            keys.push(ClusterKey(key));
        }
        let mut keys = keys.into_iter();
        let first = keys.next().ok_or_else(|| KeyError::Empty {
            path: path.to_owned(),
        })?;
        Ok(Self {
            first,
            second: keys.next(),
        })
    }

    /// The text of a key file.
    pub fn render(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(512));
        text.push_str(
            "# Cluster key of ctdbd. Who has it is a member: keep it secret, the same on all \
             nodes.\n",
        );
        for key in self.accepted() {
            text.push_str(TAG);
            text.push(' ');
            text.push_str(&base64_encode(key.bytes()));
            text.push('\n');
        }
        text
    }

    /// Writes the ring to `path`, mode 0600, whole or not at all. An existing file is replaced
    /// only with `force`.
    pub fn write_new(&self, path: &Path, force: bool) -> Result<(), KeyError> {
        let io = |action| {
            move |source: io::Error| KeyError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".new.{}", std::process::id()));
        let temporary = directory.join(name);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io("creating a temporary file beside"))?;
        let written = (|| {
            // The mode of open() is cut by the umask.
            file.set_permissions(fs::Permissions::from_mode(0o600))?;
            file.write_all(self.render().as_bytes())?;
            file.sync_all()?;
            if force {
                fs::rename(&temporary, path)
            } else {
                fs::hard_link(&temporary, path)
            }
        })();
        // Gone already after a rename.
        let _ = fs::remove_file(&temporary);
        match written {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(KeyError::Exists {
                    path: path.to_owned(),
                });
            }
            other => other.map_err(io("writing"))?,
        }
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(io("syncing"))
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64_encode(bytes: &[u8; 32]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(44));
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for position in 0..4 {
            if position <= chunk.len() {
                let index = (word >> (18 - 6 * position)) & 63;
                text.push(char::from(ALPHABET[index as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

/// Strict: 43 characters, one `=`, no stray bits; so a key has one spelling.
fn base64_decode(text: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let text = text.strip_suffix(b"=").filter(|text| text.len() == 43)?;
    let mut bytes = Zeroizing::new([0; 32]);
    let (mut word, mut bits, mut at) = (0_u32, 0, 0);
    for character in text {
        let value = ALPHABET.iter().position(|other| other == character)?;
        word = (word << 6) | value as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes[at] = (word >> bits) as u8;
            at += 1;
            word &= (1 << bits) - 1;
        }
    }
    (word == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> ClusterKey {
        ClusterKey::from_bytes([byte; 32])
    }

    fn parse(text: &str) -> Result<KeyRing, KeyError> {
        KeyRing::parse(text.as_bytes(), Path::new("k"))
    }

    #[test]
    fn base64_is_the_usual_one() {
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = index as u8 * 8 + 3;
        }
        let text = base64_encode(&bytes);
        // From coreutils' base64.
        assert_eq!(*text, "AwsTGyMrMztDS1NbY2tze4OLk5ujq7O7w8vT2+Pr8/s=");
        assert_eq!(*base64_decode(text.as_bytes()).unwrap(), bytes);
        assert!(base64_decode(&text.as_bytes()[..43]).is_none());
        assert!(base64_decode(b"AwsTGyMrMztDS1NbY2tze4OLk5ujq7O7w8vT2+Pr8/t=").is_none());
        assert!(base64_decode(b"!wsTGyMrMztDS1NbY2tze4OLk5ujq7O7w8vT2+Pr8/s=").is_none());
    }

    #[test]
    fn files_of_one_and_two_keys_survive_the_journey() {
        let one = KeyRing::of(key(1));
        assert_eq!(parse(&one.render()).unwrap(), one);
        let two = KeyRing::rotating(key(2), key(1));
        let again = parse(&two.render()).unwrap();
        assert_eq!(again.dial_key(), &key(2));
        assert_eq!(again.accepted().count(), 2);
    }

    #[test]
    fn wrong_files_name_the_line() {
        assert!(matches!(
            parse("# nothing\n\n"),
            Err(KeyError::Empty { .. })
        ));
        assert!(matches!(
            parse("# c\nsecret\n"),
            Err(KeyError::Line { line: 2, .. })
        ));
        let line = KeyRing::of(key(1)).render().replace(' ', "");
        assert!(matches!(parse(&line), Err(KeyError::Line { .. })));
        let lines = KeyRing::of(key(1)).render().repeat(3);
        assert!(matches!(parse(&lines), Err(KeyError::TooMany { .. })));
        assert!(parse("\u{0}\u{7f}").is_err());
    }

    #[test]
    fn the_cluster_id_depends_on_key_and_name() {
        assert_eq!(key(1).cluster_id("a"), key(1).cluster_id("a"));
        assert_ne!(key(1).cluster_id("a"), key(1).cluster_id("b"));
        assert_ne!(key(1).cluster_id("a"), key(2).cluster_id("a"));
        assert_eq!(format!("{:?}", key(1)), "ClusterKey");
    }

    #[test]
    fn a_key_file_is_written_once_and_read_only_with_safe_modes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.key");
        assert!(matches!(
            KeyRing::load(&path),
            Err(KeyError::Missing { .. })
        ));
        let ring = KeyRing::of(ClusterKey::generate().unwrap());
        ring.write_new(&path, false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(KeyRing::load(&path).unwrap(), ring);

        let other = KeyRing::of(key(9));
        assert!(matches!(
            other.write_new(&path, false),
            Err(KeyError::Exists { .. })
        ));
        assert_eq!(KeyRing::load(&path).unwrap(), ring);
        other.write_new(&path, true).unwrap();
        assert_eq!(KeyRing::load(&path).unwrap(), other);
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            1,
            "no temporary file stays"
        );

        for (mode, good) in [
            (0o400, true),
            (0o640, false),
            (0o604, false),
            (0o700, false),
        ] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(KeyRing::load(&path).is_ok(), good, "mode {mode:o}");
        }
        let error = KeyRing::load(&path).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn odd_files_are_refused_without_hanging() {
        let directory = tempfile::tempdir().unwrap();
        assert!(matches!(
            KeyRing::load(directory.path()),
            Err(KeyError::NotAFile { .. })
        ));
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(
            KeyRing::load(&fifo),
            Err(KeyError::NotAFile { .. })
        ));
        let long = directory.path().join("long");
        fs::write(&long, vec![b'#'; MAX_KEY_FILE as usize + 1]).unwrap();
        fs::set_permissions(&long, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(
            KeyRing::load(&long),
            Err(KeyError::TooLong { .. })
        ));
        let missing = directory.path().join("none/cluster.key");
        assert!(matches!(
            KeyRing::of(key(1)).write_new(&missing, false),
            Err(KeyError::Io { .. })
        ));
    }
}
