//! The connections of public addresses, as clients and other nodes tell them
//! (`spec/client-protocol.md` 5.11): who takes an address over resets them.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ctdb_wire::client::types::Connection;

/// Most connections of one address; more are not kept.
pub const MAX_CONNECTIONS: usize = 1 << 18;

/// Connections by public address. They are in canonical form.
#[derive(Debug, Default)]
pub struct Tickles {
    lists: HashMap<IpAddr, BTreeSet<Connection>>,
}

impl Tickles {
    /// A connection is there. False if it was known, or if there is no room.
    pub fn add(&mut self, connection: Connection) -> bool {
        let list = self.lists.entry(connection.server.ip()).or_default();
        list.len() < MAX_CONNECTIONS && list.insert(connection)
    }

    /// A connection is over.
    pub fn remove(&mut self, connection: &Connection) -> bool {
        let address = connection.server.ip();
        let Some(list) = self.lists.get_mut(&address) else {
            return false;
        };
        let was = list.remove(connection);
        if list.is_empty() {
            self.lists.remove(&address);
        }
        was
    }

    /// All connections of an address; of one port of it unless `port` is 0.
    pub fn of(&self, address: IpAddr, port: u16) -> Vec<Connection> {
        self.lists
            .get(&address)
            .into_iter()
            .flatten()
            .filter(|connection| port == 0 || connection.server.port() == port)
            .copied()
            .collect()
    }

    /// What the host of an address says replaces what was known.
    pub fn replace(&mut self, address: IpAddr, connections: impl Iterator<Item = Connection>) {
        let list: BTreeSet<Connection> = connections
            .filter(|connection| connection.server.ip() == address)
            .take(MAX_CONNECTIONS)
            .collect();
        if list.is_empty() {
            self.lists.remove(&address);
        } else {
            self.lists.insert(address, list);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(client: &str, server: &str) -> Connection {
        Connection {
            client: client.parse().unwrap(),
            server: server.parse().unwrap(),
        }
    }

    #[test]
    fn connections_are_listed_by_address_and_port() {
        let mut tickles = Tickles::default();
        let smb = connection("10.9.9.9:40000", "10.0.0.1:445");
        let nfs = connection("10.9.9.9:40001", "10.0.0.1:2049");
        assert!(tickles.add(smb) && tickles.add(nfs) && !tickles.add(smb));
        let address = smb.server.ip();
        assert_eq!(tickles.of(address, 0).len(), 2);
        assert_eq!(tickles.of(address, 445), [smb]);
        assert!(tickles.remove(&smb) && !tickles.remove(&smb));
        let other = connection("10.9.9.9:1", "10.0.0.2:445");
        tickles.replace(address, [smb, other].into_iter());
        assert_eq!(tickles.of(address, 0), [smb]);
        tickles.replace(address, std::iter::empty());
        assert!(tickles.of(address, 0).is_empty());
    }
}
