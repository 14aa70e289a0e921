//! The thread's loop: what is urgent first, clean-up in small pieces.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::net::{Net, Phases};
use super::{Job, Outcome, Setup};

/// Addresses cleaned up between two looks at the queue: some 10 ms of work.
const PIECE: usize = 64;
/// Listeners are looked for this often in the first second of an opening.
const POLL_FAST: Duration = Duration::from_millis(20);
/// And this often later.
const POLL_SLOW: Duration = Duration::from_millis(200);
/// A silence that the kernel refused is tried again after this.
const RETRY: Duration = Duration::from_millis(50);

/// Silent, but a packet may still be queued.
struct Settling {
    since: Instant,
    at: Instant,
    addresses: Vec<IpAddr>,
    phases: Phases,
}

pub(super) struct Thread {
    net: Option<Net>,
    setup: Setup,
    jobs: Receiver<Job>,
    outcomes: Sender<Outcome>,
    settling: Vec<Settling>,
    /// Silences that the kernel refused.
    refused: VecDeque<(Instant, Vec<IpAddr>)>,
    cleanup: VecDeque<Vec<IpAddr>>,
    opened_at: Instant,
    next_poll: Option<Instant>,
    next_announce: Option<Instant>,
}

impl Thread {
    pub(super) fn new(
        net: Option<Net>,
        setup: Setup,
        jobs: Receiver<Job>,
        outcomes: Sender<Outcome>,
    ) -> Self {
        Self {
            net,
            setup,
            jobs,
            outcomes,
            settling: Vec::new(),
            refused: VecDeque::new(),
            cleanup: VecDeque::new(),
            opened_at: Instant::now(),
            next_poll: None,
            next_announce: None,
        }
    }

    pub(super) fn run(mut self) {
        self.report_links();
        loop {
            let job = if self.cleanup.is_empty() {
                let pause = self.next_due().map_or(Duration::from_secs(3600), |at| {
                    at.saturating_duration_since(Instant::now())
                });
                match self.jobs.recv_timeout(pause) {
                    Ok(job) => Some(job),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            } else {
                match self.jobs.try_recv() {
                    Ok(job) => Some(job),
                    Err(TryRecvError::Empty) => None,
                    Err(TryRecvError::Disconnected) => return,
                }
            };
            match job {
                Some(Job::Close) => {
                    if let Some(net) = self.net.take() {
                        net.close();
                    }
                    self.say(Outcome::Closed);
                    return;
                }
                Some(job) => self.carry_out(job),
                None => self.clean_piece(),
            }
            self.timers();
        }
    }

    fn say(&self, outcome: Outcome) {
        // Fails only when the main loop has ended, and then nobody wants to know.
        let _ = self.outcomes.blocking_send(outcome);
    }

    fn report_links(&self) {
        let links = match &self.net {
            Some(net) => net.links(),
            // With scripts every link counts as up; the scripts know better.
            None => self
                .setup
                .addresses
                .iter()
                .flat_map(|public| public.interfaces.iter().map(|name| (name.clone(), true)))
                .collect(),
        };
        self.say(Outcome::Links(links));
    }

    fn next_due(&self) -> Option<Instant> {
        let settling = self.settling.iter().map(|settling| settling.at);
        let refused = self.refused.iter().map(|(at, _)| *at);
        settling
            .chain(refused)
            .chain(self.next_poll)
            .chain(self.next_announce)
            .min()
    }

    fn timers(&mut self) {
        let now = Instant::now();
        let due: Vec<Settling> = self
            .settling
            .extract_if(.., |settling| settling.at <= now)
            .collect();
        for mut settled in due {
            settled
                .phases
                .push(("queue", now.duration_since(settled.since)));
            let addresses = settled.addresses.clone();
            self.say(Outcome::Released {
                addresses: settled.addresses,
                phases: settled.phases,
            });
            self.cleanup
                .extend(addresses.chunks(PIECE).map(<[IpAddr]>::to_vec));
        }
        while self.refused.front().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, addresses)) = self.refused.pop_front()
                && !addresses.is_empty()
            {
                self.release(addresses);
            }
        }
        let Some(net) = &mut self.net else { return };
        if self.next_poll.is_some_and(|at| at <= now) {
            net.poll_openings();
            let pause = if now.duration_since(self.opened_at) < Duration::from_secs(1) {
                POLL_FAST
            } else {
                POLL_SLOW
            };
            self.next_poll = net.is_opening().then(|| Instant::now() + pause);
        }
        if self.next_announce.is_some_and(|at| at <= now) {
            self.next_announce = net.announce_due();
        }
    }

    fn carry_out(&mut self, job: Job) {
        match job {
            Job::Take {
                epoch,
                slot,
                addresses,
            } => {
                // Of an epoch that is over: what is taken anew is not silenced any more.
                for (_, refused) in &mut self.refused {
                    refused.retain(|address| !addresses.iter().any(|p| p.net.addr() == *address));
                }
                let (results, phases) = match &mut self.net {
                    Some(net) => {
                        let done = net.take(slot, &addresses);
                        self.opened_at = Instant::now();
                        self.next_poll = Some(self.opened_at + POLL_FAST);
                        self.next_announce = net.announce_due();
                        done
                    }
                    None => (
                        addresses
                            .into_iter()
                            .map(|place| (place.net.addr(), Ok(())))
                            .collect(),
                        Vec::new(),
                    ),
                };
                self.say(Outcome::Taken {
                    epoch,
                    results,
                    phases,
                });
            }
            Job::Release { addresses } => self.release(addresses),
            Job::Discard { addresses } => {
                self.cleanup
                    .extend(addresses.chunks(PIECE).map(<[IpAddr]>::to_vec));
            }
            Job::Relocate(moves) => {
                if let Some(net) = &mut self.net {
                    net.relocate(&moves);
                    self.next_announce = net.announce_due();
                }
            }
            Job::Announce(only) => {
                if let Some(net) = &mut self.net {
                    net.announce(only);
                }
            }
            Job::Rescan => {
                if let Some(net) = &mut self.net {
                    if let Err(error) = net.rescan() {
                        tracing::error!(%error, "the host's links cannot be read");
                    }
                    self.next_announce = net.announce_due();
                    self.report_links();
                }
            }
            Job::SetAddresses(addresses) => {
                self.setup.addresses.clone_from(&addresses);
                if let Some(net) = &mut self.net {
                    net.set_addresses(addresses);
                }
                self.report_links();
            }
            // Handled by the loop, which ends with it.
            Job::Close => {}
        }
    }

    fn release(&mut self, addresses: Vec<IpAddr>) {
        let start = Instant::now();
        let settle = match &mut self.net {
            Some(net) => net.silence(&addresses),
            None => Ok(Duration::ZERO),
        };
        match settle {
            Ok(settle) => {
                let now = Instant::now();
                let phases = vec![("silence", now - start)];
                self.settling.push(Settling {
                    since: now,
                    at: now + settle,
                    addresses,
                    phases,
                });
            }
            Err(error) => {
                // "Done" is not said before it is true (R16).
                tracing::error!(error, "addresses cannot be silenced; trying again");
                self.refused.push_back((Instant::now() + RETRY, addresses));
            }
        }
    }

    fn clean_piece(&mut self) {
        let Some(addresses) = self.cleanup.pop_front() else {
            return;
        };
        let mut connections = 0;
        if let Some(net) = &mut self.net {
            connections = net.end_connections(&addresses);
            net.remove_silent(&addresses);
        }
        self.say(Outcome::Removed {
            addresses,
            connections,
        });
    }
}
