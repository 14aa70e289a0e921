//! The thread's loop: what is urgent first, clean-up in small pieces.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;

use super::connections::Message;
use super::herald::Herald;
use super::net::{Net, Phases};
use super::{Job, Outcome, Placed, Setup};

/// Addresses cleaned up between two looks at the queue: some 10 ms of work.
const PIECE: usize = 64;
/// So long the connections thread may take, on a machine that hardly gets to it, to hear what is to end.
const HEARD: Duration = Duration::from_millis(500);
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
    herald: Herald,
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
            herald: Herald::default(),
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
                    if let Some(connections) = self.setup.connections.take() {
                        connections.close();
                    }
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
            .chain(self.herald.next())
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
        self.herald.work(now);
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
                tenure,
                addresses,
                hold,
                end,
            } => {
                self.end_former(&addresses);
                self.end_lost(&addresses, end);
                // Of an epoch that is over: what is taken anew is not silenced any more.
                for (_, refused) in &mut self.refused {
                    refused.retain(|address| !addresses.iter().any(|p| p.net.addr() == *address));
                }
                let (results, phases) = match &mut self.net {
                    Some(net) => {
                        let done = net.take(slot, &addresses, hold);
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
                if let (Some(connections), Some(tenure)) = (&self.setup.connections, tenure) {
                    let taken = results.iter().filter(|(_, result)| result.is_ok());
                    let taken = taken.map(|(address, _)| *address).collect();
                    connections.post(Message::Taken(taken, tenure));
                }
                self.say(Outcome::Taken {
                    epoch,
                    results,
                    phases,
                });
            }
            Job::LetIn(addresses) => {
                if let Some(net) = &mut self.net {
                    net.let_in(&addresses);
                }
            }
            Job::Release { addresses } => self.release(addresses),
            Job::Discard { addresses } => {
                if let Some(connections) = &self.setup.connections {
                    connections.post(Message::Frozen(addresses.clone(), None));
                }
                // Their right is over and they are silent by it; from here on they are not held
                // any more, so that they are taken off and not announced or put back.
                if let Some(net) = &mut self.net
                    && let Err(error) = net.silence(&addresses)
                {
                    tracing::error!(
                        error,
                        "addresses of a right that is over stay on their interfaces"
                    );
                }
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
            Job::AnnounceOn { address, interface } => {
                self.herald.ask(address, interface, Instant::now());
            }
            Job::Hush(address) => self.herald.hush(address),
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
                let mut phases = vec![("silence", now - start)];
                self.last_words(&addresses);
                phases.push(("connections", now.elapsed()));
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

    /// What is known of the connections goes out before "done" does; and where a service must not
    /// answer a request here that the client repeats elsewhere, its sockets have ended by then.
    fn last_words(&mut self, addresses: &[IpAddr]) {
        if let Some(connections) = &self.setup.connections {
            connections.freeze(addresses);
        }
        if let Some(net) = &mut self.net
            && !self.setup.end_first.is_empty()
        {
            let killed = net.end_services(addresses, &self.setup.end_first);
            self.ended(killed, 0);
        }
    }

    /// Sockets of an earlier time as host that the clean-up has not reached yet: another host may
    /// have told their clients meanwhile.
    fn end_former(&mut self, placed: &[Placed]) {
        let mut former = Vec::new();
        for piece in &mut self.cleanup {
            let taken = |address: &IpAddr| placed.iter().any(|p| p.net.addr() == *address);
            former.extend(piece.iter().filter(|address| taken(address)));
        }
        if let Some(net) = &mut self.net
            && !former.is_empty()
        {
            let killed = net.end_connections(&former);
            self.ended(killed, 0);
        }
    }

    /// What is connected to addresses whose grant of a former right is dead: of all of them if `all`, and
    /// of those that could not be released then. Their clients are told when the addresses are taken.
    fn end_lost(&mut self, placed: &[Placed], all: bool) {
        let refused: BTreeSet<IpAddr> = self.refused.iter().flat_map(|(_, a)| a).copied().collect();
        let addresses = placed.iter().map(|place| place.net.addr());
        let addresses: BTreeSet<IpAddr> =
            addresses.filter(|a| all || refused.contains(a)).collect();
        if addresses.is_empty() {
            return;
        }
        if let Some(connections) = &self.setup.connections {
            // Of sockets that are seen to end before this has been heard nobody is told.
            let addresses: Vec<IpAddr> = addresses.iter().copied().collect();
            connections.freeze_within(&addresses, HEARD);
        }
        if let Some(net) = &mut self.net {
            let killed = net.end_all(&addresses);
            self.ended(killed, 0);
        }
    }

    fn ended(&self, killed: usize, udp: usize) {
        if let Some(connections) = &self.setup.connections
            && killed + udp > 0
        {
            connections.post(Message::Ended { killed, udp });
        }
    }

    fn clean_piece(&mut self) {
        let Some(addresses) = self.cleanup.pop_front() else {
            return;
        };
        let (mut connections, mut udp) = (0, 0);
        if let Some(net) = &mut self.net {
            connections = net.end_connections(&addresses);
            udp = net.udp_services(&addresses);
            net.remove_silent(&addresses);
        }
        self.ended(connections, udp);
        self.say(Outcome::Removed {
            addresses,
            connections,
            udp,
        });
    }
}
