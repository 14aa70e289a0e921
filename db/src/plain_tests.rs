//! Stores, appends and deletes outside transactions, cut off at every write and in the middle of it.
//!
//! The format has no protection for them (spec/database.md A.11). What holds all the same, by the
//! order of our writes (DESIGN.md, "Crash safety, by cases"): every other key is there as it was; the
//! key in hand is there as before, as wanted, or, if it was being moved, not at all, or, if it was being
//! overwritten where it is, as a mixture of both; no list leads to space of another; what is lost is
//! lost space, which does not spread; and whoever goes on, we or libtdb, finds a file that works.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use crate::backing::Change;
use crate::crash_tests::{Content, apply, content, put, recorded};
use crate::error::{Error, Fault};
use crate::format::{FREELIST_TOP, Header, RECORD_LEN, USED_MAGIC};
use crate::{OpenFlags, OpenOptions, StoreMode, Tdb};

/// What a handle does differently.
#[derive(Clone, Copy, Debug)]
struct Manner {
    max_dead: u32,
    counts: bool,
}

const PLAIN: Manner = Manner {
    max_dead: 0,
    counts: false,
};
const DEAD: Manner = Manner {
    max_dead: 5,
    counts: true,
};

/// A change of one key; `None`: its deletion.
type Wanted = Option<Vec<u8>>;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// A change under way: the image before, its writes, and what may be found of its key.
struct Case {
    name: String,
    image: Vec<u8>,
    log: Vec<Change>,
    key: Vec<u8>,
    /// Content before, without the key.
    others: Content,
    old: Wanted,
    new: Wanted,
    /// The record stays where it is.
    in_place: bool,
}

fn handle(image: &[u8], manner: Manner) -> Tdb {
    let mut tdb = recorded(image);
    tdb.set_max_dead(manner.max_dead);
    if manner.counts {
        tdb.flags.insert(OpenFlags::SEQNUM);
    }
    tdb
}

fn image(tdb: &Tdb) -> Vec<u8> {
    tdb.bytes().unwrap().to_vec()
}

fn change(tdb: &mut Tdb, key: &[u8], wanted: Option<&[u8]>) {
    match wanted {
        Some(data) => tdb.store(key, data, StoreMode::Replace).unwrap(),
        None => match tdb.delete(key) {
            Ok(()) | Err(Error::NotFound) => {}
            Err(error) => panic!("{error}"),
        },
    }
}

fn place(tdb: &mut Tdb, key: &[u8]) -> Option<u32> {
    let hash = tdb.hash.hash(key);
    tdb.find(key, hash).unwrap().map(|found| found.offset)
}

impl Case {
    fn new(name: &str, start: &[u8], manner: Manner, key: &[u8], new: Wanted) -> Self {
        let mut tdb = handle(start, manner);
        let mut others = content(&mut tdb);
        let old = others.remove(key);
        let from = place(&mut tdb, key);
        change(&mut tdb, key, new.as_deref());
        let log = tdb.storage.take_log();
        let in_place = from.is_some() && from == place(&mut tdb, key);
        Self {
            name: name.to_owned(),
            image: start.to_vec(),
            log,
            key: key.to_vec(),
            others,
            old,
            new,
            in_place,
        }
    }

    fn may_hold(&self, found: Option<&Vec<u8>>) -> bool {
        if found == self.old.as_ref() || found == self.new.as_ref() {
            return true;
        }
        let (Some(old), Some(new)) = (&self.old, &self.new) else {
            return false;
        };
        let Some(found) = found else {
            // Deleted, and not stored again yet.
            return !self.in_place;
        };
        // New bytes over old ones, then the new length.
        let mixed = |(i, byte): (usize, &u8)| old.get(i) == Some(byte) || new.get(i) == Some(byte);
        self.in_place
            && (found.len() == old.len() || found.len() == new.len())
            && found.iter().enumerate().all(mixed)
    }

    /// Every image that a death can leave: after each write, and with part of a write done, in either
    /// direction. An aligned word is written whole or not.
    fn images(&self) -> Vec<(String, Vec<u8>)> {
        let mut all = vec![(format!("{}, nothing", self.name), self.image.clone())];
        let mut image = self.image.clone();
        for (i, change) in self.log.iter().enumerate() {
            if let Change::Write(at, data) = change {
                let words = data.len() / 4;
                for done in (1..words).filter(|n| *n < 8 || n.is_multiple_of(words / 4)) {
                    let mut front = image.clone();
                    apply(&mut front, &Change::Write(*at, data[..4 * done].to_vec()));
                    all.push((format!("{}, {done} words of write {i}", self.name), front));
                    let from = 4 * (words - done);
                    let mut back = image.clone();
                    apply(
                        &mut back,
                        &Change::Write(*at + from as u64, data[from..].to_vec()),
                    );
                    let name = format!("{}, last {done} words of write {i}", self.name);
                    all.push((name, back));
                }
            }
            apply(&mut image, change);
            all.push((format!("{}, write {i}", self.name), image.clone()));
        }
        all
    }
}

/// Whether a check names nothing but what is lost, or a free record that whoever takes it puts right.
fn is_only_lost(tdb: &mut Tdb, error: &Error) -> bool {
    let Error::Corrupt { offset, fault, .. } = error else {
        return false;
    };
    match fault {
        Fault::Unreferenced => true,
        Fault::BadMagic(USED_MAGIC) | Fault::BadTailer { .. } => free_list(tdb).contains(offset),
        _ => false,
    }
}

fn free_list(tdb: &mut Tdb) -> BTreeSet<u32> {
    let mut list = BTreeSet::new();
    let mut at = tdb.storage.read_word(FREELIST_TOP).unwrap();
    while at != 0 {
        assert!(list.insert(at), "the freelist is circular");
        at = tdb.read_checked(at).unwrap().next;
    }
    list
}

/// No two lists lead to the same bytes.
fn spaces_are_apart(tdb: &mut Tdb, name: &str) {
    let mut spaces: Vec<(u32, u32)> = Vec::new();
    for offset in free_list(tdb) {
        let record = tdb.read_checked(offset).unwrap();
        spaces.push((offset, offset + RECORD_LEN + record.rec_len));
    }
    for chain in 0..tdb.hash_size() {
        tdb.walk_chain(chain, |_, found| {
            let end = found.offset + RECORD_LEN + found.record.rec_len;
            spaces.push((found.offset, end));
            Ok(std::ops::ControlFlow::<()>::Continue(()))
        })
        .unwrap();
    }
    spaces.sort_unstable();
    for pair in spaces.windows(2) {
        assert!(pair[0].1 <= pair[1].0, "{name}: {pair:?} overlap");
    }
}

/// Goes on with the file as any process would, and finds what it stores.
fn go_on(tdb: &mut Tdb, seed: u64, name: &str) -> Content {
    let mut known = content(tdb);
    let mut random = Random(seed | 1);
    for i in 0..60 {
        let key = format!("later{}", random.below(9)).into_bytes();
        let key = match random.below(3) {
            0 => known.keys().next().cloned().unwrap_or(key),
            _ => key,
        };
        if random.below(3) == 0 {
            change(tdb, &key, None);
            known.remove(&key);
        } else {
            let most = [40, 300, 1500][random.below(3) as usize];
            let data = vec![i; random.below(most) as usize];
            change(tdb, &key, Some(&data));
            known.insert(key, data);
        }
    }
    assert!(content(tdb) == known, "{name}: later changes hurt others");
    known
}

fn judge(case: &Case, manner: Manner) {
    let mut done = case.image.clone();
    case.log.iter().for_each(|change| apply(&mut done, change));
    let mut control = handle(&done, manner);
    control
        .check()
        .unwrap_or_else(|e| panic!("{}: {e}", case.name));
    go_on(&mut control, 77, &case.name);
    let control = control.map_size();
    for (name, image) in case.images() {
        let mut tdb = handle(&image, manner);
        let mut found = content(&mut tdb);
        let of_key = found.remove(&case.key);
        assert!(found == case.others, "{name}: others are hurt");
        assert!(
            case.may_hold(of_key.as_ref()),
            "{name}: {of_key:?} of {:?}, {:?}",
            case.old,
            case.new
        );
        for (key, data) in &case.others {
            assert_eq!(tdb.fetch(key).unwrap().as_ref(), Some(data), "{name}");
        }
        spaces_are_apart(&mut tdb, &name);
        if let Err(error) = tdb.check() {
            assert!(is_only_lost(&mut tdb, &error), "{name}: {error}");
        }
        let known = go_on(&mut tdb, 77, &name);
        spaces_are_apart(&mut tdb, &name);
        // What was lost costs one more growth at most: it does not swallow what becomes free.
        let size = tdb.map_size();
        assert!(
            size <= control + control / 4 + (256 << 10),
            "{name}: {size} bytes, {control} without a death"
        );
        tdb.repack().unwrap();
        tdb.check()
            .unwrap_or_else(|e| panic!("{name}, repacked: {e}"));
        assert!(content(&mut tdb) == known, "{name}, repacked");
    }
}

fn base(before: impl Fn(&mut Tdb)) -> Vec<u8> {
    let options = OpenOptions {
        hash_size: 2,
        ..OpenOptions::default()
    };
    let mut tdb = Tdb::internal(&options).unwrap();
    before(&mut tdb);
    image(&tdb)
}

/// Every way through the allocator and the freelist, by name.
fn cases() -> Vec<(Case, Manner)> {
    let five = |tdb: &mut Tdb| {
        for key in ["a", "b", "c", "d", "e"] {
            put(tdb, key, &[b'o'; 200]);
        }
    };
    let without = |keys: &'static [&'static str]| {
        base(move |tdb| {
            five(tdb);
            for key in keys {
                tdb.delete(key.as_bytes()).unwrap();
            }
        })
    };
    let with_dead = base(|tdb| {
        five(tdb);
        tdb.set_max_dead(5);
        for key in ["b", "c", "d"] {
            tdb.delete(key.as_bytes()).unwrap();
        }
    });
    let full = without(&[]);
    let new = |name, image: &[u8], manner, key: &str, len: Option<usize>| {
        let wanted = len.map(|len| vec![b'n'; len]);
        let case = Case::new(name, image, manner, key.as_bytes(), wanted);
        (case, manner)
    };
    vec![
        new("first store", &base(|_| {}), PLAIN, "x", Some(10)),
        new("store, split", &full, PLAIN, "x", Some(100)),
        new(
            "store, a whole free record",
            &without(&["b"]),
            PLAIN,
            "x",
            Some(200),
        ),
        // Freed from the right to the left: not merged until somebody searches.
        new(
            "store, two merge, one behind the other",
            &without(&["c", "b"]),
            PLAIN,
            "x",
            Some(400),
        ),
        // b is freed between: the right one comes first in the list.
        new(
            "store, two merge, the right one first",
            &without(&["b", "d", "c"]),
            PLAIN,
            "x",
            Some(600),
        ),
        new(
            "store, all merge",
            &without(&["e", "d", "c", "b", "a"]),
            PLAIN,
            "x",
            Some(1000),
        ),
        new("store, the file grows", &full, PLAIN, "x", Some(9000)),
        new(
            "store, the file grows by a free end",
            &without(&["a"]),
            PLAIN,
            "x",
            Some(30_000),
        ),
        new("overwrite, same length", &full, PLAIN, "c", Some(200)),
        new("overwrite, shorter", &full, PLAIN, "c", Some(90)),
        new("overwrite, longer in place", &full, PLAIN, "c", Some(230)),
        new("overwrite, moved", &full, PLAIN, "c", Some(700)),
        new("overwrite, moved, counted", &full, DEAD, "c", Some(700)),
        new("delete, listed", &full, PLAIN, "c", None),
        new(
            "delete, merged to the left",
            &without(&["d"]),
            PLAIN,
            "c",
            None,
        ),
        new(
            "delete, merged from the right",
            &without(&["b"]),
            PLAIN,
            "c",
            None,
        ),
        new("delete, kept dead", &full, DEAD, "c", None),
        new("delete, dead ones trimmed", &with_dead, PLAIN, "a", None),
        new("store, dead ones purged", &with_dead, PLAIN, "x", Some(900)),
        new("store, a dead one reused", &with_dead, DEAD, "x", Some(190)),
        new(
            "overwrite, a dead one reused",
            &with_dead,
            DEAD,
            "a",
            Some(205),
        ),
    ]
}

#[test]
fn a_process_dies_at_every_write_of_a_plain_change() {
    for (case, manner) in cases() {
        assert!(!case.log.is_empty(), "{}", case.name);
        judge(&case, manner);
    }
}

/// The same for whatever a random life comes to.
#[test]
fn a_process_dies_in_a_random_life() {
    for (seed, manner) in [(1, PLAIN), (2, DEAD), (3, PLAIN)] {
        let mut random = Random(0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed) | 1);
        let mut start = base(|_| {});
        for i in 0..40 {
            let key = format!("key{}", random.below(8)).into_bytes();
            let most = [30, 250, 1200][random.below(3) as usize];
            let len = random.below(most) as usize;
            let mut tdb = handle(&start, manner);
            let wanted = match random.below(4) {
                0 => None,
                // As an append does.
                1 => {
                    let mut data = tdb.fetch(&key).unwrap().unwrap_or_default();
                    data.extend(vec![i; len / 4]);
                    Some(data)
                }
                _ => Some(vec![i; len]),
            };
            let name = format!("life {seed}, change {i}");
            judge(
                &Case::new(&name, &start, manner, &key, wanted.clone()),
                manner,
            );
            change(&mut tdb, &key, wanted.as_deref());
            start = image(&tdb);
        }
    }
}

/// Nobody promises a key to survive a wipe; whatever is cut off, the file works, and its space is
/// neither lost for ever nor anybody's twice.
#[test]
fn a_process_dies_in_a_wipe() {
    for (name, keys) in [("of used", 5), ("of mostly free", 1)] {
        for areas in [false, true] {
            let start = base(|tdb| {
                for i in 0..keys {
                    put(tdb, &format!("k{i}"), &[i; 300]);
                }
                if areas {
                    let mut transaction = tdb.transaction().unwrap();
                    put(&mut transaction, "x", b"committed");
                    transaction.commit().unwrap();
                }
                if keys == 1 {
                    tdb.wipe_all().unwrap();
                }
            });
            let mut tdb = handle(&start, PLAIN);
            let before = content(&mut tdb);
            tdb.wipe_all().unwrap();
            assert!(content(&mut tdb).is_empty());
            tdb.check().unwrap();
            let mut image = start.clone();
            for (i, change) in tdb.storage.take_log().iter().enumerate() {
                apply(&mut image, change);
                let name = format!("wipe {name}, area {areas}, write {i}");
                let mut tdb = handle(&image, PLAIN);
                let found = content(&mut tdb);
                assert!(
                    found.iter().all(|(k, v)| before.get(k) == Some(v)),
                    "{name}"
                );
                spaces_are_apart(&mut tdb, &name);
                let known = go_on(&mut tdb, 5, &name);
                assert!(tdb.map_size() < start.len() as u32 + (512 << 10), "{name}");
                tdb.repack().unwrap();
                tdb.check().unwrap_or_else(|e| panic!("{name}: {e}"));
                assert!(content(&mut tdb) == known, "{name}");
            }
        }
    }
}

/// What our deaths leave, libtdb goes on with: it finds the others, stores, deletes, and the file does
/// not grow without end.
#[test]
fn libtdb_goes_on_after_our_deaths() {
    const SCRIPT: &str = "
import sys, os, random, resource, tdb
resource.setrlimit(resource.RLIMIT_FSIZE, (32 << 20, 32 << 20))
for path in sys.stdin.read().split():
    size = os.path.getsize(path)
    t = tdb.Tdb(path, 0, tdb.NOSYNC, os.O_RDWR, 0o600)
    mine = {k: t[k] for k in t}
    print(' '.join([path] + sorted(k.hex() + '=' + v.hex() for k, v in mine.items())))
    rnd = random.Random(7)
    for i in range(60):
        k = b'later%d' % rnd.randrange(9)
        if rnd.randrange(3) == 0 and mine: k = sorted(mine)[0]
        if rnd.randrange(3) == 0:
            if mine.pop(k, None) is not None: t.delete(k)
        else:
            mine[k] = bytes([65 + i % 26]) * rnd.randrange(rnd.choice((40, 300, 1500)))
            t.store(k, mine[k])
    assert {k: t[k] for k in t} == mine, path
    for k, v in mine.items(): assert t.get(k) == v, (path, k)
    assert os.path.getsize(path) < size + size // 4 + (1 << 20), (path, size, os.path.getsize(path))
    t.close()
";
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(String::new(), |s, b| s + &format!("{b:02x}"))
    };
    let dir = tempfile::tempdir().unwrap();
    let (mut paths, mut want) = (String::new(), Vec::new());
    for (n, (case, _)) in cases().iter().enumerate() {
        for (i, (name, image)) in case.images().into_iter().enumerate() {
            let path = dir.path().join(format!("{n}-{i}.tdb"));
            std::fs::write(&path, &image).unwrap();
            let mut records: Vec<_> = content(&mut recorded(&image))
                .iter()
                .map(|(k, v)| format!("{}={}", hex(k), hex(v)))
                .collect();
            records.sort();
            records.insert(0, path.display().to_string());
            want.push((name, records.join(" ")));
            writeln!(paths, "{}", path.display()).unwrap();
        }
    }
    let list = dir.path().join("list");
    std::fs::write(&list, paths).unwrap();
    let output = Command::new("timeout")
        .args(["300", "/usr/bin/python3", "-c", SCRIPT])
        .stdin(std::fs::File::open(&list).unwrap())
        .output()
        .unwrap();
    let found = String::from_utf8(output.stdout).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    for (found, (name, want)) in found.lines().zip(&want) {
        assert_eq!(found, want, "{name}");
    }
    let after = want.get(found.lines().count().saturating_sub(1));
    assert!(
        output.status.success() && found.lines().count() == want.len(),
        "{:?} (python3-tdb installed?): {errors}",
        after.map(|(name, _)| name)
    );
    // And every image is one of a file.
    assert!(
        cases()
            .iter()
            .all(|(case, _)| Header::decode(&case.image).is_ok())
    );
}
