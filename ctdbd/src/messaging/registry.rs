//! What this node's clients have registered (`spec/client-protocol.md` 1.2, 6.1, 7).

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use ctdb_wire::client::srvid;
use ctdb_wire::relay::Process;

/// Number of a connection, unique among those of this daemon's life; never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClientId(pub u32);

/// Most registrations of one client; more are refused. Samba has about ten.
pub const MAX_REGISTRATIONS: usize = 65_536;
/// Most entries of a client's list of who is told when it goes, and of its connections.
pub const MAX_LIST: usize = 65_536;

#[derive(Debug)]
struct Known {
    pid: i32,
    srvids: Vec<u64>,
}

/// Addresses, tunnels and processes of this node's clients.
#[derive(Debug, Default)]
pub struct Registry {
    clients: HashMap<ClientId, Known>,
    /// A client that has registered twice stands here twice.
    handlers: HashMap<u64, Vec<ClientId>>,
    tunnels: HashMap<u64, ClientId>,
    by_pid: HashMap<i32, Vec<ClientId>>,
    /// What other nodes have not been told yet.
    changes: Vec<Process>,
}

/// Whether other nodes keep it in their tables: what every process has, and what stands for a
/// process number, nobody asks for together with a process.
fn is_told(srvid: u64) -> bool {
    srvid > u64::from(u32::MAX)
        && !(srvid::LEADER..=srvid::START_IPREALLOCATE).contains(&srvid)
        && srvid != srvid::SAMBA_PROCESS
        && srvid != srvid::ALL
}

fn remove_one<T: PartialEq>(list: &mut Vec<T>, value: &T) -> bool {
    let at = list.iter().position(|other| other == value);
    if let Some(at) = at {
        list.swap_remove(at);
    }
    at.is_some()
}

impl Registry {
    /// A connection of a process.
    pub fn connected(&mut self, client: ClientId, pid: i32) {
        self.by_pid.entry(pid).or_default().push(client);
        self.clients.insert(
            client,
            Known {
                pid,
                srvids: Vec::new(),
            },
        );
    }

    /// The connection is over; nothing is registered by it any more.
    pub fn gone(&mut self, client: ClientId) {
        let Some(known) = self.clients.remove(&client) else {
            return;
        };
        for srvid in known.srvids {
            if let Entry::Occupied(mut entry) = self.handlers.entry(srvid) {
                remove_one(entry.get_mut(), &client);
                if entry.get().is_empty() {
                    entry.remove();
                }
            }
            self.changed(known.pid, srvid, false);
        }
        if let Entry::Occupied(mut entry) = self.by_pid.entry(known.pid) {
            remove_one(entry.get_mut(), &client);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
        self.tunnels.retain(|_, holder| *holder != client);
    }

    /// Registers an address, once more if it is registered already. False at the bound.
    pub fn register(&mut self, client: ClientId, srvid: u64) -> bool {
        let Some(known) = self.clients.get_mut(&client) else {
            return false;
        };
        if known.srvids.len() >= MAX_REGISTRATIONS {
            return false;
        }
        known.srvids.push(srvid);
        let pid = known.pid;
        self.handlers.entry(srvid).or_default().push(client);
        self.changed(pid, srvid, true);
        true
    }

    /// Takes one registration back; false if there is none.
    pub fn deregister(&mut self, client: ClientId, srvid: u64) -> bool {
        let Some(known) = self.clients.get_mut(&client) else {
            return false;
        };
        if !remove_one(&mut known.srvids, &srvid) {
            return false;
        }
        let (pid, again) = (known.pid, known.srvids.contains(&srvid));
        if let Entry::Occupied(mut entry) = self.handlers.entry(srvid) {
            remove_one(entry.get_mut(), &client);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
        if !again {
            self.changed(pid, srvid, false);
        }
        true
    }

    /// Who gets a message to this address, as often as it is registered.
    pub fn handlers(&self, srvid: u64) -> &[ClientId] {
        self.handlers.get(&srvid).map_or(&[], Vec::as_slice)
    }

    /// Connections of a process.
    pub fn of_process(&self, pid: i32) -> &[ClientId] {
        self.by_pid.get(&pid).map_or(&[], Vec::as_slice)
    }

    /// Whether a connection of that process has registered the address.
    pub fn has(&self, pid: i32, srvid: u64) -> bool {
        self.of_process(pid).iter().any(|client| {
            self.clients
                .get(client)
                .is_some_and(|known| known.srvids.contains(&srvid))
        })
    }

    /// Registers a tunnel; false if somebody has it.
    pub fn register_tunnel(&mut self, client: ClientId, id: u64) -> bool {
        if !self.clients.contains_key(&client) || self.tunnels.len() >= MAX_REGISTRATIONS {
            return false;
        }
        match self.tunnels.entry(id) {
            Entry::Occupied(_) => false,
            Entry::Vacant(entry) => {
                entry.insert(client);
                true
            }
        }
    }

    /// Takes a tunnel back; false if the client does not have it.
    pub fn deregister_tunnel(&mut self, client: ClientId, id: u64) -> bool {
        if self.tunnels.get(&id) != Some(&client) {
            return false;
        }
        self.tunnels.remove(&id);
        true
    }

    /// Who has a tunnel.
    pub fn tunnel(&self, id: u64) -> Option<ClientId> {
        self.tunnels.get(&id).copied()
    }

    fn changed(&mut self, pid: i32, srvid: u64, here: bool) {
        // Another connection of the process may still have it.
        if is_told(srvid) && (here || !self.has(pid, srvid)) {
            self.changes.push(Process { pid, srvid, here });
        }
    }

    /// What other nodes are to be told, since the last time.
    pub fn take_changes(&mut self) -> Vec<Process> {
        std::mem::take(&mut self.changes)
    }

    /// All that other nodes keep of this one.
    pub fn all(&self) -> impl Iterator<Item = Process> {
        self.clients.values().flat_map(|known| {
            known
                .srvids
                .iter()
                .filter(|srvid| is_told(**srvid))
                .map(|srvid| Process {
                    pid: known.pid,
                    srvid: *srvid,
                    here: true,
                })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    fn registry() -> Registry {
        let mut registry = Registry::default();
        registry.connected(A, 100);
        registry.connected(B, 200);
        registry
    }

    #[test]
    fn an_address_is_registered_as_often_as_it_is_registered() {
        let mut registry = registry();
        for client in [A, A, B] {
            assert!(registry.register(client, 7));
        }
        assert_eq!(registry.handlers(7), [A, A, B]);
        assert!(registry.deregister(A, 7));
        assert_eq!(registry.handlers(7).len(), 2);
        assert!(registry.deregister(A, 7));
        assert!(!registry.deregister(A, 7));
        assert_eq!(registry.handlers(7), [B]);
        registry.gone(B);
        assert!(registry.handlers(7).is_empty());
        assert!(!registry.register(B, 7), "it has gone");
    }

    #[test]
    fn one_client_has_a_tunnel() {
        let mut registry = registry();
        assert!(registry.register_tunnel(A, 9));
        assert!(!registry.register_tunnel(B, 9));
        assert!(!registry.deregister_tunnel(B, 9));
        assert_eq!(registry.tunnel(9), Some(A));
        registry.gone(A);
        assert_eq!(registry.tunnel(9), None);
        assert!(registry.register_tunnel(B, 9));
    }

    #[test]
    fn a_process_is_there_while_one_of_its_connections_is() {
        let unique = 0x1122_3344_5566_7788;
        let mut registry = Registry::default();
        registry.connected(A, 100);
        registry.connected(B, 100);
        registry.register(A, unique);
        registry.register(B, unique);
        registry.register(A, 100);
        registry.register(A, srvid::SAMBA_PROCESS);
        let change = |here| Process {
            pid: 100,
            srvid: unique,
            here,
        };
        assert_eq!(registry.take_changes(), [change(true), change(true)]);
        assert_eq!(registry.all().count(), 2);
        registry.gone(B);
        assert!(registry.has(100, unique));
        assert!(registry.take_changes().is_empty());
        registry.gone(A);
        assert!(!registry.has(100, unique) && registry.of_process(100).is_empty());
        assert_eq!(registry.take_changes(), [change(false)]);
    }
}
