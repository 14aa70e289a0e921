//! Which local socket reaches which address of a peer.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::liveness::PathSet;

/// Pairs each of the peer's heartbeat addresses with the local socket of its network; where none
/// is of its network, the first of its family sends, and routing decides.
pub(super) fn pair(local: &[IpNet], peer: &[SocketAddr]) -> PathSet {
    let mut paths = PathSet::default();
    for address in peer {
        let near = local.iter().position(|net| net.contains(&address.ip()));
        let family = || {
            local
                .iter()
                .position(|net| net.addr().is_ipv4() == address.is_ipv4())
        };
        if let Some(index) = near.or_else(family) {
            paths.push(index as u8, *address);
        }
    }
    paths
}

/// The addresses that heartbeats leave from: the private one first, then the static global ones
/// of interfaces that public addresses name, at most `most`.
pub(super) fn local_paths(
    own: IpAddr,
    addresses: &[(u32, IpNet)],
    public_interfaces: &[u32],
    public: &[IpAddr],
    most: usize,
) -> Vec<IpNet> {
    let own_net = addresses
        .iter()
        .map(|(_, net)| *net)
        .find(|net| net.addr() == own)
        .unwrap_or_else(|| IpNet::from(own));
    let mut paths = vec![own_net];
    for (index, net) in addresses {
        let usable = public_interfaces.contains(index)
            && !public.contains(&net.addr())
            && !paths.iter().any(|path| path.trunc() == net.trunc())
            && !is_link_local(net.addr());
        if usable && paths.len() < most {
            paths.push(*net);
        }
    }
    paths
}

/// Link-local addresses need an interface to be named, which another host does not know.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn paths_are_paired_by_network() {
        let local = [net("10.0.0.1/24"), net("192.168.1.1/24"), net("fd00::1/64")];
        let peer: Vec<SocketAddr> = [
            "192.168.1.2:4379",
            "10.0.0.2:4379",
            "[fd00::2]:4379",
            "172.16.0.2:4379",
        ]
        .iter()
        .map(|text| text.parse().unwrap())
        .collect();
        let paths: Vec<(u8, SocketAddr)> = pair(&local, &peer).iter().collect();
        assert_eq!(
            paths,
            [(1, peer[0]), (0, peer[1]), (2, peer[2]), (0, peer[3])]
        );
    }

    #[test]
    fn static_addresses_of_public_interfaces_are_paths() {
        let addresses = [
            (1, net("127.0.0.1/8")),
            (2, net("10.0.0.1/24")),
            (3, net("192.168.1.1/24")),
            (3, net("192.168.1.100/24")),
            (3, net("fe80::1/64")),
            (3, net("fd00::1/64")),
            (4, net("172.16.0.1/24")),
        ];
        let public: Vec<IpAddr> = vec!["192.168.1.100".parse().unwrap()];
        let own = "10.0.0.1".parse().unwrap();
        let paths = local_paths(own, &addresses, &[3], &public, 4);
        assert_eq!(
            paths,
            [net("10.0.0.1/24"), net("192.168.1.1/24"), net("fd00::1/64")]
        );
        assert_eq!(local_paths(own, &addresses, &[3], &public, 2).len(), 2);
    }
}
