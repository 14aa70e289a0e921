//! `public_addresses` and `home_nodes`: `spec/cluster.md` 1.4.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use ctdb_wire::ids::{MAX_ADDRESSES, Pnn};
use ipnet::IpNet;

use super::report::Report;

/// Longest file, in bytes.
pub const MAX_FILE: u64 = 1 << 20;
/// Longest name of an interface, as CTDB has it. The kernel's own names are at most 15 long.
pub const MAX_INTERFACE_NAME: usize = 16;
/// Most interfaces of one address.
pub const MAX_INTERFACES: usize = 16;

/// One line of `public_addresses`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicAddress {
    /// The address (not the network) with its prefix length.
    pub net: IpNet,
    /// Interfaces that may carry it, in the order of the file; at least one.
    pub interfaces: Vec<String>,
    /// Line of the file, from 1.
    pub line: u32,
}

impl PublicAddress {
    /// The address.
    pub fn address(&self) -> IpAddr {
        self.net.addr()
    }

    /// Parses `ADDRESS/BITS IFACE[,IFACE...]`; further words are ignored.
    pub fn parse(text: &str, line: u32) -> Result<Self, String> {
        let mut words = text.split_ascii_whitespace();
        let address = words.next().unwrap_or_default();
        if !address.contains('/') {
            return Err(format!("'{address}' has no prefix length"));
        }
        let net: IpNet = address
            .parse()
            .map_err(|_| format!("'{address}' is not an address with prefix length"))?;
        if net.addr().is_unspecified() || net.addr().is_multicast() || net.addr().is_loopback() {
            return Err(format!("{} cannot be a public address", net.addr()));
        }
        if let IpAddr::V6(v6) = net.addr()
            && v6.to_ipv4_mapped().is_some()
        {
            return Err(format!("{v6} is an IPv4 address written as IPv6"));
        }
        let list = words
            .next()
            .ok_or_else(|| format!("{net} has no interface"))?;
        let mut interfaces: Vec<String> = Vec::new();
        // Empty names (`eth0, eth1`, where CTDB does not read what follows the blank) are passed over.
        for name in list.split(',').filter(|name| !name.is_empty()) {
            check_interface_name(name)?;
            if interfaces.iter().any(|known| known == name) {
                return Err(format!("the interface {name} is named twice"));
            }
            interfaces.push(name.to_owned());
        }
        if interfaces.is_empty() {
            return Err(format!("{net} has no interface"));
        }
        if interfaces.len() > MAX_INTERFACES {
            return Err(format!("{net} has more than {MAX_INTERFACES} interfaces"));
        }
        Ok(Self {
            net,
            interfaces,
            line,
        })
    }

    /// Parses a file's text. `None` if it has an error.
    pub fn parse_list(text: &str, file: &Path, report: &mut Report) -> Option<Vec<Self>> {
        let mut lines = BTreeMap::<IpAddr, u32>::new();
        let mut list = Vec::new();
        let mut good = true;
        for (raw, line) in text.split('\n').zip(1_u32..) {
            let entry = raw.trim_ascii();
            if entry.is_empty() || entry.starts_with('#') {
                continue;
            }
            let parsed = Self::parse(entry, line).and_then(|public| {
                match lines.insert(public.address(), line) {
                    None => Ok(public),
                    Some(first) => Err(format!(
                        "{} stands in line {first} already",
                        public.address()
                    )),
                }
            });
            match parsed {
                Ok(public) if list.len() < MAX_ADDRESSES => list.push(public),
                Ok(_) => {
                    report.error(
                        file,
                        Some(line),
                        format!("there are more than {MAX_ADDRESSES} public addresses"),
                        "remove the rest",
                    );
                    return None;
                }
                Err(what) => {
                    report.error(
                        file,
                        Some(line),
                        what,
                        "write ADDRESS/BITS INTERFACE[,INTERFACE...], each address once",
                    );
                    good = false;
                }
            }
        }
        good.then_some(list)
    }
}

fn check_interface_name(name: &str) -> Result<(), String> {
    if name.len() > MAX_INTERFACE_NAME {
        return Err(format!(
            "the interface name '{name}' is longer than {MAX_INTERFACE_NAME} characters"
        ));
    }
    let good = name
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if !good || name == "." || name == ".." {
        return Err(format!("'{name}' cannot be the name of an interface"));
    }
    Ok(())
}

/// Parses `home_nodes`: lines `ADDRESS PNN`, shorter lines are skipped, one bad address or number
/// discards the whole file (with a warning).
pub fn parse_home_nodes(text: &str, file: &Path, report: &mut Report) -> BTreeMap<IpAddr, Pnn> {
    let mut homes = BTreeMap::new();
    for (raw, line) in text.split('\n').zip(1_u32..) {
        let entry = raw.trim_ascii();
        if entry.starts_with('#') {
            continue;
        }
        let mut words = entry.split_ascii_whitespace();
        let (Some(address), Some(number)) = (words.next(), words.next()) else {
            continue;
        };
        let parsed = address
            .parse::<IpAddr>()
            .map_err(|_| format!("'{address}' is not an IP address"))
            .and_then(|address| Ok((address, number.parse::<Pnn>()?)));
        match parsed {
            Ok((address, pnn)) if homes.len() < MAX_ADDRESSES => {
                homes.insert(address, pnn);
            }
            Ok(_) => break,
            Err(what) => {
                report.warning(
                    file,
                    Some(line),
                    format!("{what}, so that no address has a home node"),
                    "write ADDRESS PNN",
                );
                return BTreeMap::new();
            }
        }
    }
    homes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(text: &str) -> (Option<Vec<PublicAddress>>, Vec<String>) {
        let mut report = Report::default();
        let list = PublicAddress::parse_list(text, Path::new("p"), &mut report);
        (list, report.lines().collect())
    }

    #[test]
    fn lines() {
        let (addresses, problems) = list(
            "# comment\n\n10.0.0.1/24 eth0,eth1 more words\n  fd00::1/64\tbond0.12\n #10.0.0.2\n",
        );
        assert_eq!(problems, Vec::<String>::new());
        let addresses = addresses.unwrap();
        assert_eq!(addresses[0].net.to_string(), "10.0.0.1/24");
        assert_eq!(addresses[0].interfaces, ["eth0", "eth1"]);
        assert_eq!(addresses[1].address().to_string(), "fd00::1");
        assert_eq!(addresses[1].line, 4);
    }

    /// Of `eth0, eth1` CTDB reads the first word alone, and starts (ctdb 4.17.12, 2026-11-29).
    #[test]
    fn empty_names_of_interfaces_are_passed_over() {
        let (addresses, problems) = list("10.0.0.1/24 eth0, eth1\n10.0.0.2/24 eth0,,eth1,\r\n");
        assert_eq!(problems, Vec::<String>::new());
        let addresses = addresses.unwrap();
        assert_eq!(addresses[0].interfaces, ["eth0"]);
        assert_eq!(addresses[1].interfaces, ["eth0", "eth1"]);
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, part) in [
            (
                "10.0.0.1 eth0",
                "p:1: error: '10.0.0.1' has no prefix length",
            ),
            (
                "10.0.0.1/33 eth0",
                "p:1: error: '10.0.0.1/33' is not an address",
            ),
            ("\n10.0.0.1/24", "p:2: error: 10.0.0.1/24 has no interface"),
            ("10.0.0.1/24 ,", "p:1: error: 10.0.0.1/24 has no interface"),
            (
                "10.0.0.1/24 eth0,eth0",
                "p:1: error: the interface eth0 is named twice",
            ),
            (
                "10.0.0.1/24 a\n10.0.0.1/16 b",
                "p:2: error: 10.0.0.1 stands in line 1",
            ),
            (
                "10.0.0.1/24 interface-name-17",
                "p:1: error: the interface name",
            ),
            ("10.0.0.1/24 a/b", "p:1: error: 'a/b' cannot be"),
            (
                "127.0.0.1/8 lo",
                "p:1: error: 127.0.0.1 cannot be a public address",
            ),
            (
                "::ffff:10.0.0.1/120 eth0",
                "p:1: error: ::ffff:10.0.0.1 is an IPv4",
            ),
        ] {
            let (addresses, problems) = list(text);
            assert_eq!(addresses, None, "{text}");
            assert!(problems[0].starts_with(part), "{problems:?}");
        }
        assert!(list("10.0.0.1/24 sixteen-letters-").0.is_some());
    }

    #[test]
    fn home_nodes() {
        let mut report = Report::default();
        let homes = parse_home_nodes(
            "10.0.0.1 2\n10.0.0.2\n\nfd00::1 0 x\n",
            Path::new("h"),
            &mut report,
        );
        assert_eq!(report, Report::default());
        assert_eq!(homes.len(), 2);
        assert_eq!(homes[&"10.0.0.1".parse::<IpAddr>().unwrap()].get(), 2);
        for text in [
            "10.0.0.1 2\n10.0.0.x 1\n",
            "10.0.0.1 2\n10.0.0.2 -1\n",
            "10.0.0.1 64\n",
        ] {
            let mut report = Report::default();
            assert!(parse_home_nodes(text, Path::new("h"), &mut report).is_empty());
            assert_eq!(report.problems.len(), 1);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in "([0-9.:/,#a-f \t]|\n){0,200}") {
            let mut report = Report::default();
            if let Some(list) = PublicAddress::parse_list(&text, Path::new("p"), &mut report) {
                prop_assert!(list.iter().all(|public| !public.interfaces.is_empty()));
            }
            parse_home_nodes(&text, Path::new("h"), &mut report);
        }
    }
}
