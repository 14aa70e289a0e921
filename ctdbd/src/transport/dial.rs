//! Dialing the nodes with lower numbers, again and again.

use std::{io, sync::Arc, time::Duration};

use rand::Rng as _;
use tokio::time::{sleep, timeout};

use super::{
    Peer, Shared, connect,
    handshake::{self, Failure},
    refusal::Refusal,
};

/// Pauses that double, each shortened at random by up to a half, so that nodes that lost a peer
/// together do not come back together.
struct Backoff {
    next: Duration,
    min: Duration,
    max: Duration,
}

impl Backoff {
    fn new(min: Duration, max: Duration) -> Self {
        Self {
            next: min,
            min,
            max,
        }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.max);
        pause.mul_f64(rand::rng().random_range(0.5..=1.0))
    }
}

/// Keeps a link with `peer` until it is removed or the transport leaves.
pub(super) async fn run(shared: Arc<Shared>, peer: Arc<Peer>) {
    let mut removed = peer.removed.subscribe();
    let dialing = async {
        let mut backoff = Backoff::new(shared.timings.backoff_min, shared.timings.backoff_max);
        loop {
            if let Some((stream, established)) = attempt(&shared, &peer).await {
                // In a task of its own: it must send its `Down` also when dialing ends.
                let (shared_, peer_) = (Arc::clone(&shared), Arc::clone(&peer));
                let (done, up_for) = tokio::sync::oneshot::channel();
                shared.spawn(async move {
                    let _ = done.send(shared_.serve(&peer_, stream, established).await);
                });
                if up_for
                    .await
                    .is_ok_and(|up_for| up_for >= shared.timings.backoff_max)
                {
                    backoff.reset();
                }
            }
            // The first part also where the peer knocks, so that it cannot make us dial madly.
            sleep(shared.timings.backoff_min / 2).await;
            let pause = backoff.pause();
            tokio::select! {
                () = sleep(pause) => {}
                () = peer.knock.notified() => backoff.reset(),
            }
        }
    };
    tokio::select! {
        () = dialing => {}
        () = shared.leaving() => {}
        _ = removed.wait_for(|removed| *removed) => {}
    }
}

async fn attempt(
    shared: &Shared,
    peer: &Peer,
) -> Option<(tokio::net::TcpStream, handshake::Established)> {
    let mut stream = match connect(shared, peer).await {
        Ok(stream) => stream,
        Err(error) => {
            peer.problem(format!("connecting: {}", error.kind()), true);
            return None;
        }
    };
    let dial = handshake::dial(&mut stream, &shared.identity, peer.pnn);
    let failure = match timeout(shared.timings.handshake, dial).await {
        Ok(Ok(established)) => return Some((stream, established)),
        Ok(Err(failure)) => failure,
        Err(_) => Refusal::TimedOut.into(),
    };
    match failure {
        Failure::Refused(refusal) => {
            shared.refusals.note(peer.address, refusal, true);
            peer.problem(refusal.to_string(), false);
        }
        Failure::Io(error) if is_close(&error) => {
            shared.refusals.note(peer.address, Refusal::Closed, true);
            peer.problem(Refusal::Closed.to_string(), false);
        }
        failure => peer.problem(failure.to_string(), true),
    }
    None
}

/// Whether the other side ended the connection.
pub(super) fn is_close(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(
        error.kind(),
        BrokenPipe | ConnectionAborted | ConnectionReset
    )
}

/// Tells a node that dials us that we are there: connects once, says nothing. It may be in the
/// longest pause of its back-off.
pub(super) async fn knock(shared: Arc<Shared>, peer: Arc<Peer>) {
    tokio::select! {
        _ = connect(&shared, &peer) => {}
        () = shared.leaving() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_the_bound_and_begin_anew() {
        let (min, max) = (Duration::from_millis(50), Duration::from_secs(1));
        let mut backoff = Backoff::new(min, max);
        let mut expected = min;
        for _ in 0..20 {
            let pause = backoff.pause();
            assert!(
                pause >= expected / 2 && pause <= expected,
                "{pause:?} for {expected:?}"
            );
            expected = (expected * 2).min(max);
        }
        backoff.reset();
        assert!(backoff.pause() <= min);
    }
}
