//! The cluster lock as a service outside of the cluster, and the daemon's client of it.
//!
//! An honest service grants to one tenure at a time. It may still hang, expire a tenure early,
//! or keep one whose daemon is dead; rules 20 to 23 bear all of that. A service that lies says
//! yes to whoever asks: then `authority = lock` promises nothing any more, `both` still does.

use std::time::Duration;

use ctdb_core::authority::{LockNews, LockTimes};
use ctdb_wire::ids::BootTime;
use rand::Rng as _;

use super::clock::Real;
use super::node::Item;
use super::options::Authority;
use super::world::{Event, World};

/// The service.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// Tenure that holds it.
    pub holder: Option<u64>,
    /// Node of that tenure, and the life of its daemon.
    pub owner: (usize, u64),
    /// Nothing is answered until then.
    pub hangs_until: Real,
    /// Everybody is told yes until then.
    pub lies_until: Real,
    /// It has lied, so that nothing is promised with `authority = lock` before that.
    pub excused_until: Real,
    /// Nodes that do not reach it.
    pub cut: u64,
    last: u64,
}

/// What a client asks; `at` and `tenure` come back with the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Question {
    /// Give it to me.
    Take,
    /// Do I still hold this tenure?
    Check(u64),
}

/// The daemon's client.
#[derive(Clone, Copy, Default, Debug)]
pub struct Client {
    /// Held tenure.
    pub tenure: Option<u64>,
    /// A question is on the way.
    pub busy: bool,
    /// Next question, on the local clock.
    pub next: BootTime,
}

impl World {
    /// V of the run.
    pub fn validity(&self) -> Duration {
        self.plan.validity
    }

    /// V and the shortest settle that the configuration allows (R23).
    pub fn lock_times(&self) -> LockTimes {
        let validity = self.validity();
        LockTimes {
            validity,
            settle: (validity + self.timing.lease + self.timing.queue) * 6 / 5,
        }
    }

    /// The main loop's look at its lock client.
    pub fn tend_lock(&mut self, node: usize) {
        if self.options.authority == Authority::Majority {
            return;
        }
        let now = self.local(node);
        let (lease, validity) = (self.timing.lease, self.validity());
        let Some(daemon) = self.hosts[node].daemon.as_deref_mut() else {
            return;
        };
        let wanted = daemon.published.lock_wanted;
        let life = daemon.life;
        match daemon.lock.tenure {
            Some(tenure) if !wanted => {
                // The helper is ended and reaped.
                daemon.lock.tenure = None;
                self.release_lock(tenure);
                self.give(node, Item::Lock(LockNews::Lost { tenure }));
            }
            Some(tenure) if !daemon.lock.busy && now >= daemon.lock.next => {
                daemon.lock.busy = true;
                daemon.lock.next = now + validity / 4;
                self.ask_lock(node, life, now, Question::Check(tenure));
            }
            None if wanted && !daemon.lock.busy && now >= daemon.lock.next => {
                daemon.lock.busy = true;
                daemon.lock.next = now + (lease / 4).max(Duration::from_millis(250));
                self.ask_lock(node, life, now, Question::Take);
            }
            _ => {}
        }
    }

    fn ask_lock(&mut self, node: usize, life: u64, asked_at: BootTime, question: Question) {
        let delay = self.upto(Duration::from_millis(5));
        let at = self.now + delay;
        self.schedule(
            at,
            Event::LockAsked {
                node,
                life,
                asked_at,
                question,
            },
        );
    }

    /// The question reaches the service.
    pub fn lock_asked(&mut self, node: usize, life: u64, asked_at: BootTime, question: Question) {
        let again = Event::LockAsked {
            node,
            life,
            asked_at,
            question,
        };
        if !self.hosts[node].powered {
            return;
        }
        if self.now < self.lock.hangs_until || self.lock.cut & (1 << node) != 0 {
            // The call hangs, until the service answers again, which may be before its time when the
            // faults end; a helper that is gone meanwhile asks no more.
            let look = self.now + Duration::from_millis(50);
            let at = if self.now < self.lock.hangs_until {
                look.min(self.lock.hangs_until)
            } else {
                look
            };
            if self.lives(node, life) {
                self.schedule(at, again);
            }
            return;
        }
        let lies = self.now < self.lock.lies_until;
        let news = match question {
            Question::Take if self.lock.holder.is_none() || lies => {
                if !self.lives(node, life) {
                    return; // The helper died with its daemon.
                }
                self.lock.last += 1;
                let tenure = self.lock.last;
                self.lock.holder = Some(tenure);
                self.lock.owner = (node, life);
                Some(LockNews::Held {
                    tenure,
                    asked_at,
                    granted_at: asked_at, // Set at receipt.
                })
            }
            Question::Take => None,
            Question::Check(tenure) if self.lock.holder == Some(tenure) || lies => {
                Some(LockNews::Proved {
                    tenure,
                    at: asked_at,
                })
            }
            Question::Check(tenure) => Some(LockNews::Lost { tenure }),
        };
        let slow = if self.rng.random_bool(0.05) { 400 } else { 3 };
        let delay = self.upto(Duration::from_millis(slow));
        let at = self.now + delay;
        self.schedule(at, Event::LockSaid { node, life, news });
    }

    fn lives(&self, node: usize, life: u64) -> bool {
        self.hosts[node]
            .daemon
            .as_ref()
            .is_some_and(|daemon| daemon.life == life)
    }

    /// The answer reaches the daemon's client.
    pub fn lock_said(&mut self, node: usize, life: u64, news: Option<LockNews>) {
        if !self.lives(node, life) {
            return;
        }
        self.give(node, Item::LockSaid(news));
    }

    /// The main loop reads the answer: `granted_at` is read after the receipt.
    pub fn lock_read(&mut self, node: usize, news: Option<LockNews>) -> Option<LockNews> {
        let now = self.local(node);
        let daemon = self.hosts[node].daemon.as_deref_mut()?;
        daemon.lock.busy = false;
        let news = match news? {
            LockNews::Held {
                tenure, asked_at, ..
            } => {
                daemon.lock.tenure = Some(tenure);
                daemon.lock.next = now;
                LockNews::Held {
                    tenure,
                    asked_at,
                    granted_at: now,
                }
            }
            LockNews::Lost { tenure } => {
                if daemon.lock.tenure != Some(tenure) {
                    return None; // It was given back meanwhile.
                }
                daemon.lock.tenure = None;
                daemon.lock.next = now;
                LockNews::Lost { tenure }
            }
            proved @ LockNews::Proved { tenure, .. } => {
                if daemon.lock.tenure != Some(tenure) {
                    return None;
                }
                proved
            }
        };
        Some(news)
    }

    /// The service takes note that a tenure is over.
    pub fn release_lock(&mut self, tenure: u64) {
        if self.lock.holder == Some(tenure) {
            self.lock.holder = None;
            self.say(|| format!("lock: tenure {tenure} is over"));
        }
    }

    /// The daemon of this life is dead: its helper ends, and the service notices, at once or
    /// after long ("stays with the dead").
    pub fn orphan_lock(&mut self, node: usize, life: u64) {
        if self.lock.owner != (node, life) {
            return;
        }
        let Some(tenure) = self.lock.holder else {
            return;
        };
        let stays = if self.rng.random_bool(0.2) { 6_000 } else { 30 };
        let delay = self.upto(Duration::from_millis(stays));
        let at = self.now + delay;
        self.schedule(at, Event::LockOver { tenure });
    }

    /// Whether two rights prove nothing against the rules just now (A lying lock is the lock's
    /// fault).
    pub fn lock_excuses(&self) -> bool {
        self.options.authority == Authority::Lock && self.now < self.lock.excused_until
    }

    /// The lock lies until then; what was promised on its word lasts longer.
    pub fn lock_lies(&mut self, length: Duration) {
        let until = self.now + length;
        self.lock.lies_until = self.lock.lies_until.max(until);
        let after = self.validity() * 2 + self.timing.promise() * 3;
        self.lock.excused_until = self.lock.excused_until.max(until + after);
    }
}
