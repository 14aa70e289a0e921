//! Public addresses of this node that are added and taken away at run time, as by `ctdb addip` and
//! `ctdb delip`. They last until the public addresses file is read again.

use std::net::IpAddr;

use ctdb_core::local::PublicAddress;
use ctdb_wire::api::{ApiError, Done};
use ctdb_wire::ids::MAX_ADDRESSES;
use ipnet::IpNet;

use super::actions::{Answer, Reply, Wait, json};
use super::node::Node;
use crate::config::interface_exists;
use crate::failover::Job;

/// The list with one more address.
fn with(
    list: &[PublicAddress],
    address: IpAddr,
    prefix: u8,
    interfaces: &[String],
) -> Result<Vec<PublicAddress>, ApiError> {
    let bad = |text: String| ApiError::new(400, "bad_request", text);
    let net = IpNet::new(address, prefix)
        .map_err(|_| bad(format!("{address} has no prefix of {prefix} bits")))?;
    if interfaces.is_empty() || interfaces.iter().any(String::is_empty) {
        return Err(bad("an address needs an interface that carries it".into()));
    }
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(bad(format!("{address} cannot be a public address")));
    }
    if list.iter().any(|known| known.net.addr() == address) {
        let text = format!("{address} is a public address of this node already");
        return Err(ApiError::new(409, "address_exists", text));
    }
    if list.len() >= MAX_ADDRESSES {
        let text = format!("there are {MAX_ADDRESSES} public addresses, which is the most");
        return Err(ApiError::new(409, "too_many_addresses", text));
    }
    let mut list = list.to_vec();
    list.push(PublicAddress {
        net,
        interfaces: interfaces.to_vec(),
    });
    Ok(list)
}

/// The list without an address.
fn without(list: &[PublicAddress], address: IpAddr) -> Result<Vec<PublicAddress>, ApiError> {
    let rest: Vec<PublicAddress> = list
        .iter()
        .filter(|known| known.net.addr() != address)
        .cloned()
        .collect();
    if rest.len() == list.len() {
        let text = format!("{address} is no public address of this node; see `ctdb ip list`");
        return Err(ApiError::new(404, "no_such_address", text));
    }
    Ok(rest)
}

impl Node {
    pub(super) fn add_address(
        &mut self,
        address: IpAddr,
        prefix: u8,
        interfaces: &[String],
        reply: Reply,
    ) {
        let list = with(self.parts.local.addresses(), address, prefix, interfaces);
        let list = list.and_then(|list| {
            let unknown = interfaces.iter().find(|name| !interface_exists(name));
            unknown.map_or(Ok(list), |name| {
                let text = format!("there is no interface {name}; see `ip link`");
                Err(ApiError::new(404, "no_such_interface", text))
            })
        });
        let message = format!("{address}/{prefix} is a public address of this node");
        self.take_addresses(list, message, reply);
    }

    pub(super) fn remove_address(&mut self, address: IpAddr, reply: Reply) {
        let list = without(self.parts.local.addresses(), address);
        let message = format!("{address} is no public address of this node any more");
        self.take_addresses(list, message, reply);
    }

    /// Gratuitous ARP or neighbour advertisements. A public address is announced by its host alone
    /// (ADDR-1); any other address, such as that of an LVS service, by who is asked.
    pub(super) fn announce(
        &mut self,
        address: Option<IpAddr>,
        interface: Option<String>,
    ) -> Answer {
        let holds = self.parts.coordinator.holder().holds();
        let held: Vec<IpAddr> = match address {
            None => holds.keys().copied().collect(),
            Some(address) if holds.contains_key(&address) => vec![address],
            Some(address) => {
                let snapshot = self.snapshot();
                let public: Vec<IpAddr> = snapshot.addresses.iter().map(|a| a.address).collect();
                let interface = herald_on(address, interface, &public)?;
                self.parts
                    .executor
                    .submit(Job::AnnounceOn { address, interface });
                return json(&Done {
                    changed: true,
                    message: format!("{address} announced"),
                });
            }
        };
        let message = format!("{} addresses announced", held.len());
        if self.parts.builtin {
            self.parts.executor.submit(Job::Announce(address));
        } else {
            for address in held {
                self.script_announce(address);
            }
        }
        json(&Done {
            changed: true,
            message,
        })
    }

    /// With `addresses = script` nobody but the daemon announces what a script has put on an
    /// interface.
    pub(super) fn script_announce(&mut self, address: IpAddr) {
        if let Some(interface) = self.parts.local.interface_of(address) {
            self.parts.executor.submit(Job::AnnounceOn {
                address,
                interface: interface.to_owned(),
            });
        }
    }

    /// From now on these are this node's public addresses.
    pub(super) fn take_addresses(
        &mut self,
        list: Result<Vec<PublicAddress>, ApiError>,
        message: String,
        reply: Reply,
    ) {
        match list {
            Ok(list) => {
                self.parts.local.set_addresses(list.clone());
                self.parts.executor.submit(Job::SetAddresses(list));
                self.local_changed();
                let done = Done {
                    changed: true,
                    message,
                };
                self.wait(Wait::Leader, done, reply);
            }
            Err(error) => self.actions.answer(reply, Err(error)),
        }
    }
}

/// Where to announce an address that this node does not host; `public` are the cluster's.
fn herald_on(
    address: IpAddr,
    interface: Option<String>,
    public: &[IpAddr],
) -> Result<String, ApiError> {
    if public.contains(&address) {
        return Err(ApiError::new(
            409,
            "not_held",
            format!("this node does not host {address}; only its host announces an address"),
        ));
    }
    interface.ok_or_else(|| {
        ApiError::new(
            409,
            "not_held",
            format!("{address} is no public address; name the interface to announce it on"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<Vec<PublicAddress>, ApiError>) -> String {
        result.unwrap_err().code
    }

    #[test]
    fn only_its_host_announces_a_public_address() {
        let lvs: IpAddr = "10.0.0.9".parse().unwrap();
        let public: IpAddr = "10.0.0.1".parse().unwrap();
        let on = |address, interface: Option<&str>| {
            herald_on(address, interface.map(str::to_owned), &[public])
        };
        assert_eq!(on(lvs, Some("eth0")).unwrap(), "eth0");
        assert_eq!(on(lvs, None).unwrap_err().code, "not_held");
        assert_eq!(on(public, Some("eth0")).unwrap_err().code, "not_held");
    }

    #[test]
    fn one_more_and_one_less() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let eth = ["eth0".to_owned(), "eth1".to_owned()];
        let one = with(&[], address, 24, &eth).unwrap();
        assert_eq!(one[0].net.to_string(), "10.0.0.1/24");
        assert_eq!(one[0].interfaces, eth);
        let two = with(&one, "fd00::1".parse().unwrap(), 64, &eth).unwrap();
        assert_eq!(without(&two, address).unwrap(), two[1..]);
        assert_eq!(code(with(&one, address, 16, &eth)), "address_exists");
        assert_eq!(code(with(&[], address, 33, &eth)), "bad_request");
        assert_eq!(code(with(&[], address, 24, &[])), "bad_request");
        assert_eq!(
            code(with(&[], "127.0.0.1".parse().unwrap(), 8, &eth)),
            "bad_request"
        );
        assert_eq!(
            code(without(&two, "10.0.0.2".parse().unwrap())),
            "no_such_address"
        );
        let many = vec![one[0].clone(); MAX_ADDRESSES];
        let other = "10.0.0.2".parse().unwrap();
        assert_eq!(code(with(&many, other, 24, &eth)), "too_many_addresses");
    }
}
