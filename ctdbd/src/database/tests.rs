//! The pieces around the machines.

use std::sync::Arc;
use std::time::Duration;

use ctdb_db::cluster::{
    CallFlags, CallKind, Change, Cursor, Generation, Kind, Lineage, Store as _, View,
};
use ctdb_db::record::{LtdbHeader, Rsn};
use ctdb_db::{LockKind, OpenOptions, Tdb, Wait};
use ctdb_ebpf::deadman::{Deadman, Own, Right, Watcher};
use ctdb_wire::ids::{BootTime, Incarnation, NodeSet, Pnn, Term};

use super::file::{FileOptions, FileStore};
use super::lineage::{LineageError, LineageFile};
use super::mailbox::{Item, MAX_ITEMS, Mailbox};
use super::table::Table;
use super::{Outlet, Output, Setup};
use crate::clock::boot_now;
use crate::config::Tunables;
use crate::messaging::registry::ClientId;

fn pnn(number: u32) -> Pnn {
    Pnn::new(number).unwrap()
}

fn options(directory: &std::path::Path, kind: Kind) -> FileOptions {
    FileOptions {
        path: directory.join("test.tdb.0"),
        kind,
        flags: FileOptions::flags_of(kind, true),
        hash_size: 7,
        max_dead: 5,
    }
}

fn header(rsn: u64) -> LtdbHeader {
    LtdbHeader {
        rsn: Rsn(rsn),
        ..LtdbHeader::default()
    }
}

#[test]
fn a_full_mailbox_refuses_calls_and_notes_whose_messages_are_lost() {
    let mailbox = Mailbox::default();
    for _ in 0..MAX_ITEMS {
        assert!(mailbox.offer(Item::Readonly));
    }
    assert!(!mailbox.offer(Item::Readonly));
    mailbox.peer(pnn(3), vec![1]);
    // What must not get lost goes in nevertheless.
    mailbox.post(Item::LinkReset(pnn(1)));
    let (items, lost) = mailbox.take();
    assert_eq!(items.len(), MAX_ITEMS + 1);
    assert_eq!(lost, [pnn(3)].into_iter().collect::<NodeSet>());
    assert!(mailbox.offer(Item::Readonly), "there is room again");
    let (_, lost) = mailbox.take();
    assert!(lost.is_empty());
    mailbox.close();
    assert!(!mailbox.offer(Item::Readonly));
}

#[test]
fn who_waits_at_a_mailbox_is_woken_by_items_and_alarms() {
    let mailbox = Arc::new(Mailbox::default());
    let wait = || {
        let other = Arc::clone(&mailbox);
        std::thread::spawn(move || {
            other.wait();
            other.take().0.len()
        })
    };
    let waiting = wait();
    mailbox.post(Item::Readonly);
    assert_eq!(waiting.join().unwrap(), 1);
    // Whether it sleeps already or not: an alarm that is set earlier counts.
    mailbox.set_alarm(Some(boot_now() + Duration::from_hours(1)));
    let waiting = wait();
    mailbox.set_alarm(Some(boot_now() + Duration::from_millis(1)));
    assert_eq!(waiting.join().unwrap(), 0);
    mailbox.set_alarm(None);
    let waiting = wait();
    mailbox.close();
    assert_eq!(waiting.join().unwrap(), 0);
}

#[test]
fn in_haste_a_record_is_not_locked_without_the_free_list() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), Kind::Volatile);
    let mut store = FileStore::new(options.open().unwrap());
    let mut other = options.again().unwrap();
    store.set_hasty(true);
    assert!(store.try_lock(b"key").unwrap());
    let list = other.try_free_list();
    assert!(matches!(list, Err(ctdb_db::Error::Busy { .. })), "{list:?}");
    store.write(b"key", &header(1), b"data").unwrap();
    store.unlock(b"key");
    other.try_free_list().unwrap();
    assert!(!store.try_lock(b"key").unwrap(), "it would have to wait");
    let mut third = options.again().unwrap();
    third
        .chain_lock(b"key", LockKind::Exclusive, Wait::Try)
        .unwrap();
    third.chain_unlock(b"key").unwrap();
    store.set_hasty(false);
    assert!(store.try_lock(b"key").unwrap());
    store.unlock(b"key");
    other.unlock_free_list().unwrap();
}

#[test]
fn a_lineage_survives_and_says_when_it_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    let database = directory.path().join("p.tdb.0");
    let mut file = LineageFile::open(&database).unwrap();
    assert_eq!(file.lineage(), Lineage::NONE);
    let generation = |number| Generation {
        term: Term {
            number,
            leader: pnn(2),
            session: Incarnation(u64::MAX),
        },
        seq: 3,
    };
    let lineage = Lineage {
        epoch: generation(9),
        members: [pnn(0), pnn(63)].into_iter().collect(),
        content: generation(8),
    };
    file.seal(lineage).unwrap();
    file.set_damaged(Some("there".to_owned())).unwrap();
    let mut again = LineageFile::open(&database).unwrap();
    assert_eq!(again.lineage(), lineage);
    assert_eq!(again.damaged(), Some("there"));
    // A recovery that only seals does not make a damaged copy a good one.
    again.seal(lineage).unwrap();
    assert_eq!(
        LineageFile::open(&database).unwrap().damaged(),
        Some("there")
    );
    again.set_damaged(None).unwrap();
    assert_eq!(LineageFile::open(&database).unwrap().damaged(), None);
    std::fs::write(directory.path().join("p.tdb.0.lineage"), b"{}").unwrap();
    let error = LineageFile::open(&database).unwrap_err();
    assert!(matches!(error, LineageError::Content { .. }), "{error}");
}

#[test]
fn a_scan_stops_at_a_busy_chain_and_goes_on_there() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), Kind::Volatile);
    let mut store = FileStore::new(options.open().unwrap());
    let keys: Vec<Vec<u8>> = (0..40_u32).map(|n| n.to_le_bytes().to_vec()).collect();
    for (number, key) in keys.iter().enumerate() {
        assert!(store.try_lock(key).unwrap());
        store.write(key, &header(number as u64), b"data").unwrap();
        store.unlock(key);
    }
    let mut other = options.again().unwrap();
    other
        .chain_lock(&keys[5], LockKind::Exclusive, Wait::Try)
        .unwrap();
    assert!(!store.try_lock(&keys[5]).unwrap(), "somebody has it");
    let mut seen = Vec::new();
    let mut cursor = Cursor::default();
    let all = |store: &mut FileStore, cursor: &mut Cursor, seen: &mut Vec<Vec<u8>>| {
        store
            .scan(cursor, 1000, &mut |key, _, data| {
                assert_eq!(data, b"data");
                seen.push(key.to_vec());
            })
            .unwrap()
    };
    assert!(!all(&mut store, &mut cursor, &mut seen));
    let stuck = cursor;
    assert!(!all(&mut store, &mut cursor, &mut seen));
    assert_eq!(cursor, stuck, "it passes over no chain");
    other.chain_unlock(&keys[5]).unwrap();
    assert!(all(&mut store, &mut cursor, &mut seen));
    seen.sort();
    let mut expected = keys.clone();
    expected.sort();
    assert_eq!(seen, expected, "each once");
    let mut data = Vec::new();
    assert_eq!(store.read(&keys[3], &mut data).unwrap(), Some(header(3)));
    assert_eq!(data, b"data");
    store.remove(&keys[3]).unwrap();
    store.remove(&keys[3]).unwrap();
    assert_eq!(store.read(&keys[3], &mut data).unwrap(), None);
}

#[test]
fn a_volatile_file_that_somebody_still_has_open_is_left_to_him() {
    let directory = tempfile::tempdir().unwrap();
    let options = options(directory.path(), Kind::Volatile);
    let mut old = options.open().unwrap();
    old.store(b"key", b"value", ctdb_db::StoreMode::Replace)
        .unwrap();
    let mut new = options.open().unwrap();
    assert_eq!(
        new.fetch(b"key").unwrap(),
        None,
        "a new daemon begins empty"
    );
    assert_eq!(old.fetch(b"key").unwrap().as_deref(), Some(&b"value"[..]));
    // A persistent one is the same file for all.
    let kept = FileOptions {
        path: directory.path().join("kept.tdb.0"),
        ..super::tests::options(directory.path(), Kind::Persistent)
    };
    let mut first = kept.open().unwrap();
    first
        .store(b"key", b"value", ctdb_db::StoreMode::Replace)
        .unwrap();
    let mut second = kept.open().unwrap();
    assert_eq!(
        second.fetch(b"key").unwrap().as_deref(),
        Some(&b"value"[..])
    );
}

/// What databases say, where no hub is.
struct Said(std::sync::mpsc::SyncSender<Output>);

impl Outlet for Said {
    fn deliver(&self, outputs: Vec<Output>) {
        for output in outputs {
            // Full when nobody listens any more.
            let _ = self.0.try_send(output);
        }
    }

    fn alarm(&self, _: u32, _: BootTime) -> bool {
        false
    }
}

/// A table of a node that serves alone, and what its databases say.
fn alone(directory: &std::path::Path) -> (Table, std::sync::mpsc::Receiver<Output>) {
    guarded(directory, None)
}

fn guarded(
    directory: &std::path::Path,
    deadman: Option<Arc<Deadman>>,
) -> (Table, std::sync::mpsc::Receiver<Output>) {
    let setup = Setup {
        me: pnn(0),
        volatile: directory.to_path_buf(),
        persistent: directory.to_path_buf(),
        mutexes: true,
    };
    let (say, said) = std::sync::mpsc::sync_channel(1000);
    let mut table = Table::new(setup, deadman, Arc::new(Said(say)));
    table.set_right(Some(1));
    table.set_view(Some(view(&[0], 1)));
    (table, said)
}

/// As the first node, in its life of that number, sees the cluster that it leads.
fn view(members: &[u32], life: u64) -> View {
    let members = members.iter().map(|n| (pnn(*n), Incarnation(life)));
    View {
        term: Term {
            number: 1,
            leader: pnn(0),
            session: Incarnation(1),
        },
        number: 0,
        members: members.collect(),
        donors: NodeSet::EMPTY,
        witnesses: NodeSet::EMPTY,
        lmasters: vec![pnn(0)],
        complete: true,
    }
}

/// A client that has the record `key` of a database locked.
fn with_key_locked(path: &std::path::Path) -> Tdb {
    let options = OpenOptions {
        flags: FileOptions::flags_of(Kind::Volatile, true),
        ..OpenOptions::default()
    };
    let mut client = Tdb::open(path, &options).unwrap();
    client
        .chain_lock(b"key", LockKind::Exclusive, Wait::Forever)
        .unwrap();
    client
}

fn until<T>(
    said: &std::sync::mpsc::Receiver<Output>,
    mut wanted: impl FnMut(Output) -> Option<T>,
) -> T {
    loop {
        let output = said.recv_timeout(Duration::from_secs(60)).unwrap();
        if let Some(found) = wanted(output) {
            return found;
        }
    }
}

fn call(reqid: u32) -> Item {
    Item::Call {
        client: ClientId(1),
        reqid,
        key: b"key".to_vec(),
        call: CallKind::Null,
        flags: CallFlags::IMMEDIATE_MIGRATION,
    }
}

#[test]
fn calls_are_answered_where_they_are_read_and_behind_what_waits() {
    let directory = tempfile::tempdir().unwrap();
    let (mut table, said) = alone(directory.path());
    let tunables = Tunables::default();
    let entry = table
        .attach("calls.tdb", Kind::Volatile, &tunables)
        .unwrap();
    let (seat, path) = (Arc::clone(&entry.seat), entry.path.clone());
    let reply = |output| match output {
        Output::Reply { reqid, status, .. } => Some((reqid, status)),
        _ => None,
    };
    // While the file is not open, and while its thread is at work, calls wait for that; none is lost.
    let (mut at_once, mut reqid) = (0, 0);
    while at_once < 10 {
        reqid += 1;
        let outputs = seat.call(call(reqid)).unwrap();
        if outputs.is_empty() {
            assert_eq!(until(&said, reply), (reqid, 0));
        } else {
            let answers: Vec<_> = outputs.into_iter().filter_map(reply).collect();
            assert_eq!(answers, [(reqid, 0)]);
            at_once += 1;
        }
    }
    // A client has the record locked: the call waits for that, and what comes later is behind it.
    let mut other = with_key_locked(&path);
    for later in [1, 2] {
        assert!(seat.call(call(reqid + later)).unwrap().is_empty());
    }
    other.chain_unlock(b"key").unwrap();
    assert_eq!(until(&said, reply), (reqid + 1, 0));
    assert_eq!(until(&said, reply), (reqid + 2, 0));
    table.stop();
}

#[test]
fn the_guard_hears_in_which_right_a_database_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let deadman = Arc::new(Deadman::create().unwrap());
    let memory = deadman.fd().try_clone_to_owned().unwrap();
    let watcher = Watcher::from_fd(memory).unwrap();
    let right = |slot, seconds| {
        let until = (boot_now() + Duration::from_secs(seconds)).0;
        deadman.set_right(Right { slot, until });
    };
    let wait = |wanted: &dyn Fn() -> bool| {
        let late = std::time::Instant::now() + Duration::from_secs(60);
        while !wanted() {
            assert!(std::time::Instant::now() < late);
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    right(1, 3600);
    let (mut table, _said) = guarded(directory.path(), Some(Arc::clone(&deadman)));
    table
        .attach("served.tdb", Kind::Volatile, &Tunables::default())
        .unwrap();
    wait(&|| watcher.is_served(0, 1));
    // The right has ended: nothing is, until a recovery in the next.
    right(1, 0);
    table.set_right(None);
    wait(&|| watcher.own(0).0 == Own::Frozen);
    assert!(!watcher.is_served(0, 1));
    right(2, 3600);
    table.set_right(Some(2));
    assert!(!watcher.is_served(0, 2));
    table.set_view(Some(view(&[0], 2)));
    wait(&|| watcher.is_served(0, 2));
    assert!(!watcher.is_served(0, 1));
    table.stop();
}

#[test]
fn a_right_in_which_all_have_been_recovered_is_known() {
    let directory = tempfile::tempdir().unwrap();
    let (mut table, _said) = guarded(directory.path(), None);
    assert!(table.is_through(1), "there is none");
    let tunables = Tunables::default();
    let ids = ["one.tdb", "two.tdb"]
        .map(|name| table.attach(name, Kind::Volatile, &tunables).unwrap().id);
    assert!(!table.is_through(1));
    table.served(ids[0], true, Some(1));
    assert!(!table.is_through(1));
    table.served(ids[1], true, Some(1));
    assert!(table.is_through(1));
    table.served(ids[1], false, Some(2));
    assert!(!table.is_through(1) && !table.is_through(2));
    table.stop();
}

#[test]
fn a_message_that_cannot_be_taken_in_at_once_waits_for_the_thread() {
    let directory = tempfile::tempdir().unwrap();
    let (mut table, said) = alone(directory.path());
    let entry = table
        .attach("messages.tdb", Kind::Replicated, &Tunables::default())
        .unwrap();
    let (id, seat) = (entry.id, Arc::clone(&entry.seat));
    until(&said, |output| {
        matches!(output, Output::Served { .. }).then_some(())
    });
    // No message, then a client's commit: its answer shows that the thread came through the first.
    assert!(seat.peer(pnn(1), &[0xff; 9]).is_empty());
    let commit = Item::Commit {
        origin: crate::clients::hub::Origin::Client(ClientId(1), 7),
        client: ClientId(1),
        changes: vec![Change::new(b"key", &header(1), b"data")],
    };
    let outputs = seat.call(commit).unwrap();
    assert!(outputs.is_empty(), "a disk is waited for: {outputs:?}");
    let status = until(&said, |output| match output {
        Output::Control { status, .. } => Some(status),
        _ => None,
    });
    assert_eq!(status, 0);
    table.detach(id);
}

/// A client that keeps a record locked holds up the freeze, but not the news whose right is over.
#[test]
fn whose_right_is_over_is_told_before_a_database_stops() {
    let directory = tempfile::tempdir().unwrap();
    let (mut table, said) = alone(directory.path());
    let entry = table
        .attach("locked.tdb", Kind::Volatile, &Tunables::default())
        .unwrap();
    let (id, path) = (entry.id, entry.path.clone());
    until(&said, |output| {
        matches!(output, Output::Served { .. }).then_some(())
    });
    let mut other = with_key_locked(&path);
    let rights = |output| match output {
        Output::Rights { view, may } => Some((view, may)),
        Output::Served { .. } => panic!("it is served while a record is locked"),
        _ => None,
    };
    table.set_view(Some(view(&[0, 1], 1)));
    let (first, may) = until(&said, rights);
    assert_eq!(may, [pnn(0), pnn(1)].into_iter().collect());
    table.set_view(Some(view(&[0], 1)));
    let (second, may) = until(&said, rights);
    assert_eq!(may, [pnn(0)].into_iter().collect());
    assert!(second > first);
    other.chain_unlock(b"key").unwrap();
    until(&said, |output| {
        matches!(output, Output::Served { .. }).then_some(())
    });
    table.detach(id);
}
