//! The mutex protocol in all orders of its steps, with owners that die at any of them.
//!
//! The mutexes are a model (`shuttle` schedules its threads); what runs over them is the code that
//! runs over the C library's.

use std::sync::Mutex as Plain;

use shuttle::sync::atomic::{AtomicU16, Ordering};
use shuttle::sync::{Arc, Condvar, Mutex};
use shuttle::thread;

use crate::lock::{LockKind, Patience, Wait};
use crate::robust::{
    Got, Mutexes, Which, lock_all, lock_one, may_upgrade, unlock_all, upgrade_all,
};

const CHAINS: u32 = 2;

#[derive(Debug, Default)]
struct Inner {
    owner: Option<thread::ThreadId>,
    died: bool,
}

#[derive(Default)]
struct Robust {
    inner: Mutex<Inner>,
    freed: Condvar,
}

#[derive(Debug, PartialEq)]
enum Refused {
    Busy,
    /// The caller is dead from here on.
    Dead,
}

/// What is done under the locks, to see who is there together.
#[derive(Debug, Default)]
struct Inside {
    readers: [u32; CHAINS as usize],
    writers: [u32; CHAINS as usize],
    all_shared: u32,
    all_exclusive: u32,
}

struct Model {
    mutexes: Vec<Robust>,
    state: AtomicU16,
    inside: Plain<Inside>,
    /// Steps that each mortal thread has left.
    lives: Plain<Vec<(thread::ThreadId, u32)>>,
}

impl Model {
    fn new(chains: u32) -> Arc<Self> {
        Arc::new(Self {
            mutexes: (0..chains + 2).map(|_| Robust::default()).collect(),
            state: AtomicU16::new(libc::F_UNLCK as u16),
            inside: Plain::default(),
            lives: Plain::default(),
        })
    }

    fn mutex(&self, which: Which) -> &Robust {
        match which {
            Which::All => &self.mutexes[0],
            Which::Nth(n) => &self.mutexes[n as usize + 1],
        }
    }

    /// The calling thread does `steps` more steps.
    fn mortal(&self, steps: u32) {
        let me = thread::current().id();
        self.lives.lock().unwrap().push((me, steps));
    }

    /// One step; `false`: the caller is dead.
    fn step(&self) -> bool {
        let me = thread::current().id();
        let mut lives = self.lives.lock().unwrap();
        match lives.iter_mut().find(|(id, _)| *id == me) {
            Some((_, 0)) => false,
            Some((_, left)) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }

    /// What the kernel does with a dead thread's mutexes.
    fn bury(&self) {
        let me = thread::current().id();
        for mutex in &self.mutexes {
            let mut inner = mutex.inner.lock().unwrap();
            if inner.owner == Some(me) {
                inner.owner = None;
                inner.died = true;
                mutex.freed.notify_one();
            }
        }
    }

    fn look(&self) {
        let inside = self.inside.lock().unwrap();
        let (r, w) = (inside.readers, inside.writers);
        for i in 0..CHAINS as usize {
            assert!(w[i] + r[i] <= 1, "a chain's mutex is exclusive: {inside:?}");
        }
        let (readers, writers) = (r.iter().sum::<u32>(), w.iter().sum::<u32>());
        assert!(
            inside.all_exclusive + inside.all_shared <= 1,
            "all records are one holder's: {inside:?}"
        );
        assert!(
            inside.all_shared == 0 || writers == 0,
            "a writer beside a reader of all records: {inside:?}"
        );
        assert!(
            inside.all_exclusive == 0 || readers + writers == 0,
            "somebody beside a writer of all records: {inside:?}"
        );
    }

    fn change(&self, change: impl FnOnce(&mut Inside)) {
        change(&mut self.inside.lock().unwrap());
        self.look();
        thread::yield_now();
        self.look();
    }
}

impl Mutexes for Model {
    type Error = Refused;

    fn lock(&self, which: Which, patience: &mut Patience<'_>) -> Result<Got, Refused> {
        if !self.step() {
            return Err(Refused::Dead);
        }
        let mutex = self.mutex(which);
        let mut inner = mutex.inner.lock().unwrap();
        let me = thread::current().id();
        assert_ne!(inner.owner, Some(me), "{which:?} is locked twice");
        while inner.owner.is_some() {
            if !patience.begin() {
                return Err(Refused::Busy);
            }
            inner = mutex.freed.wait(inner).unwrap();
        }
        inner.owner = Some(me);
        if inner.died {
            Ok(Got::OwnerDied)
        } else {
            Ok(Got::Clean)
        }
    }

    fn unlock(&self, which: Which) -> Result<(), Refused> {
        if !self.step() {
            return Err(Refused::Dead);
        }
        let mutex = self.mutex(which);
        let mut inner = mutex.inner.lock().unwrap();
        assert_eq!(inner.owner, Some(thread::current().id()), "{which:?}");
        assert!(!inner.died, "{which:?} given back without being made good");
        inner.owner = None;
        mutex.freed.notify_one();
        Ok(())
    }

    fn make_consistent(&self, which: Which) -> Result<(), Refused> {
        if !self.step() {
            return Err(Refused::Dead);
        }
        self.mutex(which).inner.lock().unwrap().died = false;
        Ok(())
    }

    fn is_free(&self, which: Which) -> bool {
        let inner = self.mutex(which).inner.lock().unwrap();
        self.step() && inner.owner.is_none() && !inner.died
    }

    fn state(&self) -> u16 {
        self.state.load(Ordering::SeqCst)
    }

    fn set_state(&self, state: u16) {
        if self.step() {
            let all = self.mutex(Which::All).inner.lock().unwrap();
            assert_eq!(all.owner, Some(thread::current().id()));
            drop(all);
            self.state.store(state, Ordering::SeqCst);
        }
    }

    fn chains(&self) -> u32 {
        self.mutexes.len() as u32 - 2
    }
}

fn forever() -> Patience<'static> {
    Wait::Forever.patience()
}

/// A store: its chain, now and then another by trying, and the freelist.
fn store(model: &Model, chain: u32) -> Result<(), Refused> {
    let write = LockKind::Exclusive;
    lock_one(model, chain + 1, write, false, &mut forever())?;
    model.change(|inside| inside.writers[chain as usize] += 1);
    let other = (chain + 1) % CHAINS;
    match lock_one(model, other + 1, write, true, &mut Wait::Try.patience()) {
        Ok(()) => {
            model.change(|inside| inside.writers[other as usize] += 1);
            model.change(|inside| inside.writers[other as usize] -= 1);
            if model.unlock(Which::Nth(other + 1)).is_err() {
                model.change(|inside| inside.writers[chain as usize] -= 1);
                return Err(Refused::Dead);
            }
        }
        Err(Refused::Busy) => {}
        Err(Refused::Dead) => {
            model.change(|inside| inside.writers[chain as usize] -= 1);
            return Err(Refused::Dead);
        }
    }
    let freelist =
        lock_one(model, 0, write, true, &mut forever()).and_then(|()| model.unlock(Which::Nth(0)));
    model.change(|inside| inside.writers[chain as usize] -= 1);
    freelist?;
    model.unlock(Which::Nth(chain + 1))
}

/// A fetch, which makes its lock a writer's if it may.
fn fetch(model: &Model, chain: u32) -> Result<(), Refused> {
    lock_one(model, chain + 1, LockKind::Shared, false, &mut forever())?;
    let at = chain as usize;
    model.change(|inside| inside.readers[at] += 1);
    if may_upgrade(model) {
        model.change(|inside| {
            inside.readers[at] -= 1;
            inside.writers[at] += 1;
        });
        model.change(|inside| inside.writers[at] -= 1);
    } else {
        model.change(|inside| inside.readers[at] -= 1);
    }
    model.unlock(Which::Nth(chain + 1))
}

/// A commit: all records for reading, then for writing.
fn commit(model: &Model) -> Result<(), Refused> {
    if !lock_all(model, LockKind::Shared, &mut forever())? {
        return Ok(());
    }
    model.change(|inside| inside.all_shared += 1);
    let upgraded = upgrade_all(model, &mut forever());
    model.change(|inside| inside.all_shared -= 1);
    upgraded?;
    model.change(|inside| inside.all_exclusive += 1);
    model.change(|inside| inside.all_exclusive -= 1);
    unlock_all(model)
}

fn wipe(model: &Model) -> Result<(), Refused> {
    if !lock_all(model, LockKind::Exclusive, &mut forever())? {
        return Ok(());
    }
    model.change(|inside| inside.all_exclusive += 1);
    model.change(|inside| inside.all_exclusive -= 1);
    unlock_all(model)
}

type Job = fn(&Model) -> Result<(), Refused>;

/// Runs `jobs` side by side, `mortal` of them with an end at a random step, and then looks whether
/// everything can still be locked.
fn run(jobs: &'static [Job], mortal: usize) {
    let model = Model::new(CHAINS);
    let threads: Vec<_> = jobs
        .iter()
        .enumerate()
        .map(|(i, job)| {
            let model = Arc::clone(&model);
            thread::spawn(move || {
                if i < mortal {
                    let steps =
                        shuttle::rand::Rng::gen_range(&mut shuttle::rand::thread_rng(), 0..16);
                    model.mortal(steps);
                }
                if job(&model) == Err(Refused::Dead) {
                    model.bury();
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // Nothing is left locked.
    for chain in 0..CHAINS {
        fetch(&model, chain).unwrap();
    }
    assert!(lock_all(&*model, LockKind::Exclusive, &mut forever()).unwrap());
    unlock_all(&*model).unwrap();
}

const STORE_0: Job = |model| store(model, 0);
const STORE_1: Job = |model| store(model, 1);
const FETCH_0: Job = |model| fetch(model, 0);

#[test]
fn nobody_is_where_another_is() {
    shuttle::check_random(|| run(&[STORE_0, STORE_1, commit, FETCH_0], 0), 3000);
    shuttle::check_random(|| run(&[wipe, commit, STORE_0, FETCH_0], 0), 3000);
    shuttle::check_pct(|| run(&[STORE_0, STORE_1, commit, wipe], 0), 3000, 4);
}

#[test]
fn the_dead_hold_nothing_up() {
    shuttle::check_random(|| run(&[commit, STORE_0, STORE_1, FETCH_0], 1), 3000);
    shuttle::check_random(|| run(&[STORE_0, wipe, commit, FETCH_0], 2), 3000);
    shuttle::check_pct(|| run(&[commit, wipe, STORE_0, FETCH_0], 3), 3000, 4);
}

/// Every order of a wipe and a read.
#[test]
fn all_orders_of_a_wipe_and_a_read() {
    shuttle::check_dfs(
        || {
            let model = Model::new(1);
            let other = Arc::clone(&model);
            let wiper = thread::spawn(move || wipe(&other).unwrap());
            lock_one(&*model, 1, LockKind::Shared, false, &mut forever()).unwrap();
            model.change(|inside| inside.readers[0] += 1);
            model.inside.lock().unwrap().readers[0] -= 1;
            model.unlock(Which::Nth(1)).unwrap();
            wiper.join().unwrap();
        },
        None,
    );
}
