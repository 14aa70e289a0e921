//! Many clients at once on all nodes of a lab, while the test does something to the nodes: changes of
//! volatile records, transactions, messages. All is recorded, and judged at the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::history::{Change, Loss, Post, Transactions, Verdict, judge};
use super::transaction::Outcome;
use super::{Database, Kind, Session};
use crate::lab::{Lab, Node};

/// The records that each transaction extends alike.
pub const LISTS: [&[u8]; 2] = [b"list a", b"list b"];
/// Where messages go.
const POST: u64 = 0xAE00_0000_0000_0017;
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(50);

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Records of the volatile database.
    pub keys: usize,
    /// Clients on each node that change them.
    pub changers: usize,
    /// One of so many changes deletes the record; 0 none.
    pub delete_one_of: u64,
    /// The database of transactions, if any, one client on each node.
    pub transactions: Option<(String, Kind)>,
    /// With messages from each node to all others.
    pub messages: bool,
    /// Between two operations of a client.
    pub pause: Duration,
    /// Longest wait for an answer.
    pub patience: Duration,
    /// Name of the volatile database.
    pub database: String,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            keys: 3,
            changers: 2,
            delete_one_of: 0,
            transactions: None,
            messages: false,
            pause: Duration::from_millis(1),
            patience: Duration::from_secs(20),
            database: "counters.tdb".into(),
        }
    }
}

/// An operation that failed.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// On which node.
    pub node: u32,
    /// When.
    pub at: Instant,
    /// Why.
    pub text: String,
}

/// What the clients did.
#[derive(Debug, Default)]
pub struct Record {
    changes: Mutex<BTreeMap<usize, Vec<Change>>>,
    transactions: Mutex<Transactions>,
    troubles: Mutex<Vec<Trouble>>,
    posts: Mutex<Vec<(u32, Post)>>,
    wrong: Mutex<Vec<String>>,
    losses: Mutex<Vec<Loss>>,
    /// The longest that a change took, by node.
    stalls: Mutex<BTreeMap<u32, Duration>>,
    paused: Mutex<BTreeMap<u32, bool>>,
    stop: AtomicBool,
    next: AtomicU64,
}

fn held<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Record {
    /// From now on what `node` had may be lost; to be called before the fault.
    pub fn may_lose(&self, node: u32) {
        let from = Instant::now();
        held(&self.losses).push(Loss { node, from });
    }

    /// The clients of `node` end what they do and wait (a frozen node's do not run either), or go on.
    pub fn pause(&self, node: u32, on: bool) {
        held(&self.paused).insert(node, on);
    }

    /// How many changes there were on `node` so far.
    pub fn changes_on(&self, node: u32) -> usize {
        let changes = held(&self.changes);
        let all = changes.values().flatten();
        all.filter(|change| change.node == node).count()
    }

    /// How many transactions were acknowledged so far.
    pub fn commits(&self) -> usize {
        held(&self.transactions).acknowledged.len()
    }

    /// Operations that failed, in order.
    pub fn troubles(&self) -> Vec<Trouble> {
        held(&self.troubles).clone()
    }

    /// The longest that a change took on `node`, waits for recoveries included.
    pub fn worst_stall(&self, node: u32) -> Duration {
        held(&self.stalls).get(&node).copied().unwrap_or_default()
    }

    /// Messages that came to `node`: how many, and how many were skipped.
    pub fn post(&self, node: u32) -> (u64, u64) {
        let posts = held(&self.posts);
        let of = posts.iter().filter(|(at, _)| *at == node);
        of.fold((0, 0), |(came, gaps), (_, post)| {
            (came + post.came, gaps + post.gaps)
        })
    }

    /// Judges all changes and messages.
    pub fn verdict(&self) -> Result<Verdict> {
        let wrong = held(&self.wrong);
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        let losses = held(&self.losses).clone();
        let mut sum = Verdict::default();
        for (key, changes) in held(&self.changes).iter() {
            let verdict = judge(changes, &losses)
                .map_err(|text| anyhow::anyhow!("record {key}: {text} (DATA-1)"))?;
            sum.changes += verdict.changes;
            sum.moves += verdict.moves;
            sum.lost += verdict.lost;
        }
        Ok(sum)
    }

    /// Judges the transactions by what each of `nodes` has in its file.
    pub fn judge_transactions(&self, nodes: &[Node], plan: &Plan) -> Result<()> {
        let Some((name, kind)) = &plan.transactions else {
            return Ok(());
        };
        let mut first: Option<Vec<u64>> = None;
        for node in nodes {
            let mut db = Session::connect(node)?.attach(name, *kind)?;
            let lists = LISTS.map(|key| list(&mut db, key));
            let [a, b] = [lists[0].as_ref(), lists[1].as_ref()]
                .map(|l| l.map_err(|e| anyhow::anyhow!("{e:#}")));
            let (a, b) = (a?.clone(), b?);
            held(&self.transactions)
                .judge([&a, b])
                .map_err(|text| anyhow::anyhow!("node {}: {text} (DATA-2)", node.pnn()))?;
            let same = first.get_or_insert_with(|| a.clone());
            ensure!(
                *same == a,
                "node {} has {a:?}, another {same:?}",
                node.pnn()
            );
        }
        Ok(())
    }

    fn is_paused(&self, node: u32) -> bool {
        held(&self.paused).get(&node).copied().unwrap_or(false)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn unique(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn trouble(&self, node: &Node, error: &anyhow::Error) {
        held(&self.troubles).push(Trouble {
            node: node.pnn(),
            at: Instant::now(),
            text: format!("{error:#}"),
        });
    }
}

/// A list of transactions as it is stored.
fn list(db: &mut Database, key: &[u8]) -> Result<Vec<u64>> {
    let value = db.tdb.fetch(key)?;
    let data = value
        .as_deref()
        .and_then(ctdb_db::record::LtdbHeader::split)
        .map_or(&b""[..], |(_, data)| data);
    let numbers = data
        .chunks(8)
        .map(|id| id.try_into().map(u64::from_le_bytes));
    numbers
        .collect::<Result<_, _>>()
        .context("half a number in a list")
}

/// Name of a record.
pub fn key(number: usize) -> Vec<u8> {
    format!("record {number}").into_bytes()
}

/// Runs the clients while `meanwhile` does its work, ends them, and gives back what they did.
pub fn run(
    lab: &Lab,
    plan: &Plan,
    meanwhile: impl FnOnce(&Record) -> Result<()>,
) -> Result<Record> {
    let record = Record::default();
    thread::scope(|scope| {
        let record = &record;
        for node in lab.hosts() {
            for number in 0..plan.changers {
                scope.spawn(move || changer(node, plan, record, number));
            }
            if plan.transactions.is_some() {
                scope.spawn(move || committer(node, plan, record));
            }
            if plan.messages {
                scope.spawn(move || postman(lab, node, plan, record));
            }
        }
        let result = meanwhile(record);
        record.stop.store(true, Ordering::Relaxed);
        result
    })?;
    Ok(record)
}

/// Does `step` with a connection of its own, made anew when it fails, until the end.
fn keep_on<T>(
    node: &Node,
    plan: &Plan,
    record: &Record,
    open: impl Fn(&mut Session) -> Result<T>,
    mut step: impl FnMut(&mut Session, &mut T) -> Result<()>,
) {
    let mut open_now: Option<(Session, T)> = None;
    while !record.stopped() {
        if record.is_paused(node.pnn()) {
            thread::sleep(Duration::from_millis(5));
            continue;
        }
        let Some((session, state)) = &mut open_now else {
            let made = Session::connect_within(node, plan.patience)
                .and_then(|mut session| open(&mut session).map(|state| (session, state)));
            match made {
                Ok(made) => open_now = Some(made),
                Err(error) => {
                    record.trouble(node, &error);
                    thread::sleep(AGAIN);
                }
            }
            continue;
        };
        if let Err(error) = step(session, state) {
            record.trouble(node, &error);
            open_now = None;
        }
        thread::sleep(plan.pause);
    }
}

fn changer(node: &Node, plan: &Plan, record: &Record, number: usize) {
    let mut turn = number;
    let open = |session: &mut Session| session.attach(&plan.database, Kind::Volatile);
    keep_on(node, plan, record, open, |session, db| {
        turn += 1;
        let index = turn % plan.keys;
        let id = record.unique();
        let deletes = plan.delete_one_of > 0 && id.is_multiple_of(plan.delete_one_of);
        let begin = Instant::now();
        let name = key(index);
        let mut locked = session.lock(db, &name)?;
        let from = Instant::now();
        let saw = value(&locked.data)?;
        let data = if deletes {
            Vec::new()
        } else {
            id.to_le_bytes().to_vec()
        };
        locked.store(&data)?;
        let change = Change {
            node: node.pnn(),
            from,
            to: Instant::now(),
            saw,
            wrote: (!deletes).then_some(id),
        };
        held(&record.changes).entry(index).or_default().push(change);
        let header = locked.header;
        locked.unlock()?;
        if deletes {
            session.forget(db, &name, &header)?;
        }
        let took = begin.elapsed();
        let mut stalls = held(&record.stalls);
        let worst = stalls.entry(node.pnn()).or_default();
        *worst = took.max(*worst);
        Ok(())
    });
}

fn value(data: &[u8]) -> Result<Option<u64>> {
    if data.is_empty() {
        return Ok(None);
    }
    let bytes = data.try_into().context("a record of another length")?;
    Ok(Some(u64::from_le_bytes(bytes)))
}

fn committer(node: &Node, plan: &Plan, record: &Record) {
    let Some((name, kind)) = &plan.transactions else {
        return;
    };
    let open = |session: &mut Session| {
        let locks = session.attach("g_lock.tdb", Kind::Volatile)?;
        Ok((session.attach(name, *kind)?, locks))
    };
    keep_on(node, plan, record, open, |session, (db, locks)| {
        let id = record.unique();
        // Before it is sent it may be there.
        held(&record.transactions).unknown.insert(id);
        let outcome = session.transaction(db, locks, plan.patience, |changes| {
            for key in LISTS {
                let mut data = changes.get(key)?;
                data.extend_from_slice(&id.to_le_bytes());
                changes.put(key, data);
            }
            Ok(())
        })?;
        if outcome == Outcome::Committed {
            let mut transactions = held(&record.transactions);
            transactions.unknown.remove(&id);
            transactions.acknowledged.insert(id);
        }
        Ok(())
    });
}

fn postman(lab: &Lab, node: &Node, plan: &Plan, record: &Record) {
    let mut post = Post::default();
    let open = |session: &mut Session| {
        session.client.register(POST)?;
        Ok(0_u64)
    };
    keep_on(node, plan, record, open, |session, number| {
        let mut data = session.unique().to_le_bytes().to_vec();
        data.extend_from_slice(&number.to_le_bytes());
        *number += 1;
        for other in lab.hosts().iter().filter(|o| o.pnn() != node.pnn()) {
            session.client.message(other.pnn(), POST, &data)?;
        }
        while let Some(mail) = session.client.next_mail(Duration::from_millis(1))? {
            let (from, number) = mail.data.split_at_checked(8).context("a short message")?;
            let word = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes);
            if let Err(text) = post.came(word(from)?, word(number)?) {
                held(&record.wrong).push(format!("node {}: {text}", node.pnn()));
            }
        }
        Ok(())
    });
    held(&record.posts).push((node.pnn(), post));
}
