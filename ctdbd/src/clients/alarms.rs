//! A timer for what is due within tens of microseconds: the runtime's own counts in milliseconds, and a
//! thread that sleeps would have to be woken twice, to sleep less and to do what is due.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ctdb_wire::ids::BootTime;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Clients;
use crate::clock::boot_now;

#[derive(Debug, Default)]
struct Inner {
    /// Of each database.
    due: BTreeMap<u32, BootTime>,
    /// When the timer fires.
    armed: Option<BootTime>,
}

/// The alarms of all databases.
#[derive(Debug)]
pub(super) struct Alarms {
    timer: AsyncFd<OwnedFd>,
    inner: Mutex<Inner>,
}

fn spec(at: BootTime) -> Itimerspec {
    let zero = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Itimerspec {
        it_interval: zero,
        it_value: Timespec {
            tv_sec: (at.0 / 1_000_000_000) as i64,
            // 0 and 0 would switch it off.
            tv_nsec: (at.0 % 1_000_000_000).max(1) as i64,
        },
    }
}

impl Alarms {
    /// Starts the timer; what is due goes to the hub. Must be called in a tokio runtime; without one
    /// there is none.
    pub(super) fn start(clients: &Clients) -> io::Result<Option<Arc<Self>>> {
        if tokio::runtime::Handle::try_current().is_err() {
            return Ok(None);
        }
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe for types whose descriptor may change under tokio; \
                      an OwnedFd's does not, and this crate has no unsafe code"
        )]
        let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
        let alarms = Arc::new(Self {
            timer,
            inner: Mutex::default(),
        });
        let (own, clients) = (Arc::clone(&alarms), clients.clone());
        tokio::spawn(async move {
            let mut ended = clients.shared.ended.subscribe();
            let ring = async {
                while let Ok(mut ready) = own.timer.readable().await {
                    let mut count = [0; 8];
                    let read = |fd: &AsyncFd<OwnedFd>| {
                        rustix::io::read(fd.get_ref(), &mut count).map_err(io::Error::from)
                    };
                    if ready.try_io(read).is_err() {
                        // Set anew before it was read.
                        continue;
                    }
                    let due = own.take_due();
                    clients.with(|hub| hub.holds_due(&due));
                }
            };
            tokio::select! {
                () = ring => {}
                _ = ended.wait_for(|ended| *ended) => {}
            }
        });
        Ok(Some(alarms))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That database's alarm is then; one that is set already may come earlier. `false` if it cannot be
    /// set.
    pub(super) fn set(&self, db: u32, at: BootTime) -> bool {
        let mut inner = self.lock();
        inner.due.insert(db, at);
        self.arm(&mut inner, at)
    }

    fn arm(&self, inner: &mut Inner, at: BootTime) -> bool {
        if inner.armed.is_some_and(|armed| armed <= at) {
            return true;
        }
        let armed = timerfd_settime(self.timer.get_ref(), TimerfdTimerFlags::ABSTIME, &spec(at));
        if let Err(error) = armed {
            tracing::error!(%error, "a timer cannot be set");
            return false;
        }
        inner.armed = Some(at);
        true
    }

    /// Databases whose alarm has come.
    fn take_due(&self) -> Vec<u32> {
        let now = boot_now();
        let mut inner = self.lock();
        inner.armed = None;
        let due: Vec<u32> = inner
            .due
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(db, _)| *db)
            .collect();
        for db in &due {
            inner.due.remove(db);
        }
        if let Some(next) = inner.due.values().min().copied() {
            self.arm(&mut inner, next);
        }
        due
    }
}
