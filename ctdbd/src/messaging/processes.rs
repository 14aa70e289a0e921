//! Processes of other nodes, as those nodes say.
//!
//! What stands in a table is there, or was a tenth of a second ago; what does not may still be,
//! so the node is asked: there is never a false "dead".

use std::collections::{HashMap, HashSet};

use ctdb_wire::ids::{MAX_NODES, Pnn};
use ctdb_wire::relay::Process;

/// Most entries kept of one node. What is beyond is not kept, and asked for.
pub const MAX_ENTRIES: usize = 1 << 20;

#[derive(Debug, Default)]
struct Table {
    entries: HashSet<(i32, u64)>,
    /// How many entries each process has.
    pids: HashMap<i32, u32>,
}

/// The tables of all other nodes.
#[derive(Debug)]
pub struct Processes {
    tables: [Option<Table>; MAX_NODES],
}

impl Default for Processes {
    fn default() -> Self {
        Self {
            tables: [const { None }; MAX_NODES],
        }
    }
}

impl Processes {
    /// A node says what it has: all of it, or changes of what it said before.
    pub fn told(&mut self, node: Pnn, anew: bool, changes: impl Iterator<Item = Process>) {
        let slot = &mut self.tables[node.index()];
        if anew {
            *slot = Some(Table::default());
        }
        // Changes without what they change are of no use.
        let Some(table) = slot else { return };
        for Process { pid, srvid, here } in changes {
            if here {
                if table.entries.len() < MAX_ENTRIES && table.entries.insert((pid, srvid)) {
                    *table.pids.entry(pid).or_default() += 1;
                }
            } else if table.entries.remove(&(pid, srvid))
                && let Some(count) = table.pids.get_mut(&pid)
            {
                *count -= 1;
                if *count == 0 {
                    table.pids.remove(&pid);
                }
            }
        }
    }

    /// The link with a node is gone, and with it what it said.
    pub fn lost(&mut self, node: Pnn) {
        self.tables[node.index()] = None;
    }

    /// Whether a process of that node has registered the address; false is "not known".
    pub fn has(&self, node: Pnn, pid: i32, srvid: u64) -> bool {
        self.tables[node.index()]
            .as_ref()
            .is_some_and(|table| table.entries.contains(&(pid, srvid)))
    }

    /// Whether that process is a client there; false is "not known".
    pub fn has_process(&self, node: Pnn, pid: i32) -> bool {
        self.tables[node.index()]
            .as_ref()
            .is_some_and(|table| table.pids.contains_key(&pid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, srvid: u64, here: bool) -> Process {
        Process { pid, srvid, here }
    }

    #[test]
    fn what_a_node_says_counts_until_its_link_is_gone() {
        let node = Pnn::new(3).unwrap();
        let mut processes = Processes::default();
        processes.told(node, false, [process(1, 2, true)].into_iter());
        assert!(!processes.has(node, 1, 2), "changes of nothing");
        let all = [
            process(1, 2, true),
            process(1, 3, true),
            process(4, 5, true),
        ];
        processes.told(node, true, all.into_iter());
        assert!(processes.has(node, 1, 2) && processes.has_process(node, 1));
        assert!(!processes.has(node, 1, 5));
        let changes = [
            process(1, 2, false),
            process(1, 2, false),
            process(6, 7, true),
        ];
        processes.told(node, false, changes.into_iter());
        assert!(!processes.has(node, 1, 2) && processes.has_process(node, 1));
        processes.told(node, false, [process(1, 3, false)].into_iter());
        assert!(!processes.has_process(node, 1));
        assert!(processes.has(node, 6, 7));
        processes.lost(node);
        assert!(!processes.has(node, 6, 7) && !processes.has_process(node, 4));
    }
}
