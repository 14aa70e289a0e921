//! Accepting connections of the nodes with higher numbers, at bounded cost for everybody else's.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
    time::{sleep, timeout},
};

use super::{
    Shared, dial,
    handshake::{self, Failure},
    lock, prepare,
    refusal::Refusal,
};

/// Most connections at a time whose handshake is not complete.
pub const MAX_PENDING: usize = 16;
/// Of these, most from one address.
pub const MAX_PENDING_PER_SOURCE: usize = 4;
/// Connections per second that one address may open, after as many at once.
pub const RATE: u32 = 50;
/// Most addresses whose rate is kept apart; the rest share one.
const MAX_RATES: usize = 128;

pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(128)
}

/// Accepts until the transport leaves.
pub(super) async fn run(shared: Arc<Shared>, listener: TcpListener) {
    let gate = Arc::new(Mutex::new(Gate::default()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.leaving() => return,
        };
        let (stream, source) = match accepted {
            Ok((stream, source)) => (stream, source.ip()),
            Err(error) => {
                // Of one connection, or no descriptors left: the next try must not spin.
                tracing::debug!(%error, "accepting a connection of another node");
                sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let known = shared.all_peers().iter().any(|peer| peer.address == source);
        if shared.check_source && !known {
            shared.refusals.note(source, Refusal::UnknownSource, false);
            continue;
        }
        let admitted = lock(&gate).admit(source, Instant::now());
        match admitted {
            Ok((id, crowded)) => {
                let (shared_, gate) = (Arc::clone(&shared), Arc::clone(&gate));
                shared.spawn(async move {
                    greet(&shared_, &gate, stream, source, id, &crowded).await;
                });
            }
            Err(refusal) => {
                shared.refusals.note(source, refusal, false);
            }
        }
    }
}

async fn greet(
    shared: &Shared,
    gate: &Mutex<Gate>,
    mut stream: TcpStream,
    source: IpAddr,
    id: u64,
    crowded: &Notify,
) {
    // A node that we dial does not dial us: it has started and knocks.
    let knocking = shared
        .all_peers()
        .into_iter()
        .find(|peer| peer.address == source && peer.pnn < shared.identity.me);
    if let Some(peer) = &knocking {
        peer.knock.notify_one();
    }
    let admits = |pnn| {
        shared
            .peer(pnn)
            .is_some_and(|peer| !shared.check_source || peer.address == source)
    };
    let handshake = async {
        prepare(&stream, &shared.timings)?;
        handshake::accept(&mut stream, &shared.identity, admits).await
    };
    let result = tokio::select! {
        result = timeout(shared.timings.handshake, handshake) => {
            result.unwrap_or_else(|_| Err(Refusal::TimedOut.into()))
        }
        () = crowded.notified() => Err(Refusal::Crowded.into()),
        () = shared.leaving() => return,
    };
    lock(gate).done(id);
    let refusal = match result {
        Ok(established) => {
            if let Some(peer) = shared.peer(established.peer) {
                shared.serve(&peer, stream, established).await;
            }
            return;
        }
        Err(Failure::Refused(Refusal::Closed)) if knocking.is_some() => return,
        Err(Failure::Refused(refusal)) => refusal,
        Err(Failure::Io(error)) if dial::is_close(&error) => Refusal::Closed,
        Err(failure) => {
            tracing::warn!(peer = %source, %failure, "handshake with another node");
            return;
        }
    };
    shared.refusals.note(source, refusal, false);
    // Shown beside the peer whose address it is.
    if let Some(peer) = shared
        .all_peers()
        .into_iter()
        .find(|peer| peer.address == source)
    {
        peer.problem(refusal.to_string(), false);
    }
}

/// Bounds what connections that are not authenticated can cost.
#[derive(Default)]
struct Gate {
    /// In order of arrival.
    pending: Vec<Pending>,
    next_id: u64,
    rates: HashMap<Option<IpAddr>, Bucket>,
}

struct Pending {
    id: u64,
    source: IpAddr,
    crowded: Arc<Notify>,
}

struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + passed * f64::from(RATE)).min(f64::from(RATE));
        self.filled = now;
    }
}

impl Gate {
    /// Lets a connection in, if need be in place of the oldest of its source, or of the source
    /// that has most: a slow one cannot keep others out, nor one source the others.
    fn admit(&mut self, source: IpAddr, now: Instant) -> Result<(u64, Arc<Notify>), Refusal> {
        self.take_token(source, now)?;
        let of = |source: IpAddr, pending: &[Pending]| {
            pending
                .iter()
                .filter(|other| other.source == source)
                .count()
        };
        let crowd = if of(source, &self.pending) >= MAX_PENDING_PER_SOURCE {
            Some(source)
        } else if self.pending.len() >= MAX_PENDING {
            // Of several the one whose connection is oldest: max_by_key takes the last.
            let sources = self.pending.iter().rev().map(|pending| pending.source);
            sources.max_by_key(|source| of(*source, &self.pending))
        } else {
            None
        };
        if let Some(crowd) = crowd
            && let Some(oldest) = self
                .pending
                .iter()
                .position(|pending| pending.source == crowd)
        {
            self.pending.remove(oldest).crowded.notify_one();
        }
        let id = self.next_id;
        self.next_id += 1;
        let crowded = Arc::new(Notify::new());
        self.pending.push(Pending {
            id,
            source,
            crowded: Arc::clone(&crowded),
        });
        Ok((id, crowded))
    }

    fn take_token(&mut self, source: IpAddr, now: Instant) -> Result<(), Refusal> {
        let mut key = Some(source);
        if !self.rates.contains_key(&key) && self.rates.len() >= MAX_RATES {
            self.rates.retain(|_, bucket| {
                bucket.fill(now);
                bucket.tokens < f64::from(RATE)
            });
            if self.rates.len() >= MAX_RATES {
                key = None;
            }
        }
        let bucket = self.rates.entry(key).or_insert(Bucket {
            tokens: f64::from(RATE),
            filled: now,
        });
        bucket.fill(now);
        if bucket.tokens < 1.0 {
            return Err(Refusal::RateLimited);
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    fn done(&mut self, id: u64) {
        self.pending.retain(|pending| pending.id != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn one_source_takes_its_share_and_no_more() {
        let mut gate = Gate::default();
        let now = Instant::now();
        for _ in 0..40 {
            gate.admit(ip(1), now).unwrap();
        }
        assert_eq!(gate.pending.len(), MAX_PENDING_PER_SOURCE);
        assert_eq!(gate.pending[0].id, 36, "the oldest made room");
        let (id, _) = gate.admit(ip(2), now).unwrap();
        gate.admit(ip(1), now).unwrap();
        assert!(
            gate.pending.iter().any(|pending| pending.id == id),
            "others are not touched"
        );
    }

    #[test]
    fn all_sources_together_are_bounded() {
        let mut gate = Gate::default();
        let now = Instant::now();
        let mut admitted = 0;
        for round in 0..4 {
            for source in 0..=255 {
                admitted += usize::from(gate.admit(ip(source), now).is_ok());
                assert!(gate.pending.len() <= MAX_PENDING, "round {round}");
            }
        }
        // Each source that has a rate of its own got in; the rest share one.
        assert_eq!(admitted, 4 * MAX_RATES + RATE as usize);
        assert!(gate.rates.len() <= MAX_RATES + 1);
    }

    #[test]
    fn the_rate_is_bounded_per_source() {
        let mut gate = Gate::default();
        let now = Instant::now();
        let admitted = |gate: &mut Gate, source, now| {
            (0..1000)
                .filter(|_| gate.admit(source, now).is_ok())
                .count()
        };
        assert_eq!(admitted(&mut gate, ip(1), now), RATE as usize);
        assert_eq!(admitted(&mut gate, ip(2), now), RATE as usize);
        let later = now + Duration::from_millis(500);
        assert_eq!(admitted(&mut gate, ip(1), later), RATE as usize / 2);
    }

    #[test]
    fn a_closed_connection_is_told() {
        let mut gate = Gate::default();
        let (id, crowded) = gate.admit(ip(1), Instant::now()).unwrap();
        for _ in 0..MAX_PENDING_PER_SOURCE {
            gate.admit(ip(1), Instant::now()).unwrap();
        }
        assert!(!gate.pending.iter().any(|pending| pending.id == id));
        let notified = crowded.notified();
        tokio::pin!(notified);
        assert!(notified.enable());
        gate.done(id);
    }
}
