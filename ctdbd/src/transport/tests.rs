//! Whole transports on loopback addresses: what connects, what is refused, what is said.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use ctdb_wire::ids::{Incarnation, Pnn};
use ctdb_wire::peer::{HolderState, PeerFrame};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::handshake::VersionRange;
use super::key::{ClusterKey, KeyRing};
use super::{DownReason, LinkEvent, Security, Transport, TransportConfig, TransportHandle};

const LONG: Duration = Duration::from_secs(20);

/// Addresses of one test: 127.77.N.1, 127.77.N.2 ..., and a port that is free on all.
struct Net {
    third: u8,
    port: u16,
}

static NEXT: AtomicU8 = AtomicU8::new(1);

impl Net {
    fn new() -> Self {
        let third = NEXT.fetch_add(1, Ordering::Relaxed);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self {
            third,
            port: listener.local_addr().unwrap().port(),
        }
    }

    fn address(&self, pnn: u32) -> IpAddr {
        Ipv4Addr::new(127, 77, self.third, pnn as u8 + 1).into()
    }

    fn config(&self, me: u32, security: Security, life: u64) -> TransportConfig {
        let nodes = (0..3).map(|pnn| (node(pnn), self.address(pnn))).collect();
        let mut config =
            TransportConfig::new(node(me), nodes, security, Incarnation(life), "test 1");
        config.port = self.port;
        config
    }

    fn start(&self, me: u32, security: Security, life: u64) -> End {
        End::start(self.config(me, security, life))
    }
}

fn node(pnn: u32) -> Pnn {
    Pnn::new(pnn).unwrap()
}

fn noise(byte: u8) -> Security {
    Security::Noise(KeyRing::of(ClusterKey::from_bytes([byte; 32])))
}

struct End {
    handle: TransportHandle,
    events: mpsc::Receiver<LinkEvent>,
}

impl End {
    fn start(config: TransportConfig) -> Self {
        let (handle, events) = Transport::start(config).unwrap();
        Self { handle, events }
    }

    async fn event(&mut self) -> LinkEvent {
        timeout(LONG, self.events.recv())
            .await
            .expect("no event in time")
            .expect("transport ended")
    }

    async fn up(&mut self) -> (Pnn, Incarnation, u64) {
        match self.event().await {
            LinkEvent::Up {
                pnn,
                incarnation,
                session,
                ..
            } => (pnn, incarnation, session.session_id),
            other => panic!("{other:?} instead of Up"),
        }
    }

    async fn refused(&self, kind: &str) {
        for _ in 0..200 {
            let refusals = self.handle.refusals();
            if refusals
                .iter()
                .any(|(name, count)| *name == kind && *count > 0)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never refused as {kind}: {:?}", self.handle.refusals());
    }
}

#[tokio::test]
async fn two_nodes_find_each_other_and_talk() {
    for security in [noise(1), Security::Plain] {
        let net = Net::new();
        let mut a = net.start(0, security.clone(), 10);
        let mut b = net.start(1, security, 11);
        let (peer, life, session_a) = a.up().await;
        assert_eq!((peer, life), (node(1), Incarnation(11)));
        let (peer, life, session_b) = b.up().await;
        assert_eq!((peer, life), (node(0), Incarnation(10)));
        assert_eq!(
            session_a, session_b,
            "both know the datagram session by the same name"
        );
        let frame = PeerFrame::State(HolderState::default());
        assert!(a.handle.send(node(1), &frame));
        assert!(!a.handle.send(node(2), &frame), "no link, no promise");
        match b.event().await {
            LinkEvent::Frame {
                pnn,
                incarnation,
                frame: got,
            } => {
                assert_eq!((pnn, incarnation), (node(0), Incarnation(10)));
                assert_eq!(got, frame);
            }
            other => panic!("{other:?}"),
        }
        a.handle.shutdown().await;
        assert!(matches!(
            b.event().await,
            LinkEvent::Frame {
                frame: PeerFrame::Goodbye,
                ..
            }
        ));
        assert!(matches!(
            b.event().await,
            LinkEvent::Down {
                reason: DownReason::Goodbye,
                ..
            }
        ));
    }
}

#[tokio::test]
async fn a_restarted_peer_replaces_its_former_life() {
    let net = Net::new();
    let mut a = net.start(0, noise(1), 10);
    let b = net.start(1, noise(1), 11);
    assert_eq!(a.up().await.1, Incarnation(11));
    drop(b); // Without goodbye.
    assert!(matches!(
        a.event().await,
        LinkEvent::Down {
            incarnation: Incarnation(11),
            ..
        }
    ));
    let _b = net.start(1, noise(1), 12);
    assert_eq!(a.up().await.1, Incarnation(12));
}

#[tokio::test]
async fn keys_rotate_without_a_gap() {
    let net = Net::new();
    let (old, new) = (
        ClusterKey::from_bytes([1; 32]),
        ClusterKey::from_bytes([2; 32]),
    );
    let both = Security::Noise(KeyRing::rotating(new, old));
    let mut a = net.start(0, both.clone(), 10);
    let _b = net.start(1, noise(1), 11);
    assert_eq!(a.up().await.0, node(1));
    let _c = net.start(2, noise(2), 12);
    assert_eq!(a.up().await.0, node(2));
}

#[tokio::test]
async fn another_key_cluster_mode_or_version_is_refused() {
    let net = Net::new();
    let a = net.start(0, noise(1), 10);
    let _b = net.start(1, noise(2), 11);
    a.refused("wrong_key").await;

    let net = Net::new();
    let a = net.start(0, noise(1), 10);
    let mut other = net.config(1, noise(1), 11);
    other.cluster_name = "another".to_owned();
    let _b = End::start(other);
    a.refused("other_cluster").await;

    let net = Net::new();
    let a = net.start(0, noise(1), 10);
    let _b = net.start(1, Security::Plain, 11);
    a.refused("other_mode").await;

    let net = Net::new();
    let a = net.start(0, noise(1), 10);
    let mut other = net.config(1, noise(1), 11);
    other.versions = VersionRange { min: 7, max: 9 };
    let _b = End::start(other);
    a.refused("other_version").await;
}

/// A connection from the address of node 1 that sends `bytes`, and what came back.
fn visit(net: &Net, bytes: &[u8]) -> usize {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket
        .bind(&SocketAddr::new(net.address(1), 0).into())
        .unwrap();
    socket
        .connect(&SocketAddr::new(net.address(0), net.port).into())
        .unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(LONG)).unwrap();
    // The listener may have closed already; that is what is tested.
    let _ = stream.write_all(bytes);
    let mut back = Vec::new();
    let _ = stream.read_to_end(&mut back);
    back.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_garbage_and_ctdb_daemons_are_refused_and_closed() {
    let net = Net::new();
    let a = net.start(0, noise(1), 10);
    let garbage = vec![0x5a; 4096];
    // The header of a CTDB keepalive: length, magic, version (spec/client-protocol.md 2).
    let mut ctdb = vec![0; 64];
    ctdb[0] = 64;
    ctdb[4..8].copy_from_slice(&0x4354_4442_u32.to_le_bytes());
    ctdb[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let (back_garbage, back_ctdb) = tokio::task::spawn_blocking({
        let net = Net {
            third: net.third,
            port: net.port,
        };
        move || (visit(&net, &garbage), visit(&net, &ctdb))
    })
    .await
    .unwrap();
    assert!(
        back_garbage < 64 && back_ctdb < 64,
        "a refusal costs little"
    );
    a.refused("garbage").await;
    a.refused("ctdb_daemon").await;
    // From an address that is in no nodes list.
    let stranger = SocketAddr::new(net.address(0), net.port);
    tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(stranger).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut back = Vec::new();
        let _ = stream.read_to_end(&mut back);
    })
    .await
    .unwrap();
    a.refused("unknown_source").await;
}

#[tokio::test]
async fn the_nodes_list_changes_while_links_stand() {
    let net = Net::new();
    let mut a = net.start(0, noise(1), 10);
    let _b = net.start(1, noise(1), 11);
    a.up().await;
    let without: Vec<(Pnn, IpAddr)> = [0, 2]
        .into_iter()
        .map(|pnn| (node(pnn), net.address(pnn)))
        .collect();
    a.handle.set_nodes(&without).unwrap();
    assert!(matches!(
        a.event().await,
        LinkEvent::Down {
            reason: DownReason::Removed,
            ..
        }
    ));
    let _c = net.start(2, noise(1), 12);
    assert_eq!(a.up().await.0, node(2));
}
