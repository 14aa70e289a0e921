//! Public addresses of this node that are added and taken away at run time, as by `ctdb addip` and
//! `ctdb delip`. They last until the public addresses file is read again.

use std::net::IpAddr;

use ctdb_core::local::PublicAddress;
use ctdb_wire::api::{ApiError, Done};
use ctdb_wire::ids::MAX_ADDRESSES;
use ipnet::IpNet;

use super::actions::{Reply, Wait};
use super::node::Node;
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
        let message = format!("{address}/{prefix} is a public address of this node");
        self.take_addresses(list, message, reply);
    }

    pub(super) fn remove_address(&mut self, address: IpAddr, reply: Reply) {
        let list = without(self.parts.local.addresses(), address);
        let message = format!("{address} is no public address of this node any more");
        self.take_addresses(list, message, reply);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn code(result: Result<Vec<PublicAddress>, ApiError>) -> String {
        result.unwrap_err().code
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
