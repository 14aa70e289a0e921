//! What concerns databases as wholes: generation, recovery, switches, detaching.

use std::thread;
use std::time::{Duration, Instant};

use ctdb_wire::client::control::{Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::packet::INVALID_GENERATION;
use ctdb_wire::client::types::{DbFlags, TunableName};
use ctdb_wire::ids::NodeFlags;

use super::{Error, Found, Kind, NodeEntry, NotDetachable, Session};

/// Between two looks at databases that are being recovered.
const LOOK: Duration = Duration::from_millis(20);

impl Session {
    /// The generation of the VNN map.
    pub fn generation(&mut self) -> Result<u32, Error> {
        let request = Request::GetVnnMap;
        self.connection
            .read("GETVNNMAP", node::CURRENT, &request, |reply| match reply {
                Reply::VnnMap(map) => Some(map.generation),
                _ => None,
            })
    }

    /// Whether databases are being recovered.
    pub fn is_recovering(&mut self) -> Result<bool, Error> {
        let request = Request::GetRecmode;
        let mode = self
            .connection
            .control("GET_RECMODE", node::CURRENT, 0, &request)?;
        Ok(mode.status != 0)
    }

    /// A tunable of a node.
    pub fn tunable(&mut self, pnn: u32, name: &str) -> Result<u32, Error> {
        let request = Request::GetTunable(TunableName(name.as_bytes()));
        self.connection
            .read("GET_TUNABLE", pnn, &request, |reply| match reply {
                Reply::U32(value) => Some(value),
                _ => None,
            })
    }

    /// Transactions of a database so far.
    pub fn sequence_number(&mut self, db_id: u32) -> Result<u64, Error> {
        let request = Request::GetDbSeqnum([db_id, 0]);
        self.connection.read(
            "GET_DB_SEQNUM",
            node::CURRENT,
            &request,
            |reply| match reply {
                Reply::U64(number) => Some(number),
                _ => None,
            },
        )
    }

    /// Has all databases recovered, as the node `target` asks for it, and waits until they are served
    /// in another generation. Without databases, and on an inactive node, there is nothing to wait for.
    pub fn recover(&mut self, target: u32) -> Result<(), Error> {
        let before = self.generation()?;
        // An inactive node takes no part, and has no generation.
        let none = before == INVALID_GENERATION || self.databases()?.is_empty();
        let request = Request::SetRecmode(1);
        self.connection.good("SET_RECMODE", target, &request)?;
        while !none && (self.is_recovering()? || self.generation()? == before) {
            if Instant::now() >= self.until() {
                return Err(Error::Busy(
                    "the databases are not served again yet; `ctdb cluster status` and the log say \
                     why"
                    .to_owned(),
                ));
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Switches read-only copies or sticky records on, on all active nodes; whether that was a change.
    pub fn set_modes(&mut self, db: &Found, readonly: bool, sticky: bool) -> Result<bool, Error> {
        let kind = Kind::of(db.flags);
        if kind != Kind::Volatile {
            return Err(Error::WrongKind {
                name: db.name.clone(),
                kind,
                wanted: "only records of volatile ones move between nodes",
            });
        }
        let nodes = self.active()?;
        let mut changed = false;
        for (wanted, flag, name, request) in [
            (
                readonly,
                DbFlags::READONLY,
                "SET_DB_READONLY",
                Request::SetDbReadonly(db.id),
            ),
            (
                sticky,
                DbFlags::STICKY,
                "SET_DB_STICKY",
                Request::SetDbSticky(db.id),
            ),
        ] {
            if wanted {
                changed |= !db.flags.contains(flag);
                for node in &nodes {
                    self.connection.good(name, *node, &request)?;
                }
            }
        }
        Ok(changed)
    }

    /// Detaches a volatile database on all nodes.
    pub fn detach(&mut self, db: &Found) -> Result<(), Error> {
        let kind = Kind::of(db.flags);
        if kind != Kind::Volatile {
            return Err(Error::WrongKind {
                name: db.name.clone(),
                kind,
                wanted: "only volatile ones can be detached",
            });
        }
        self.may_detach()?;
        self.own("DB_DETACH", &Request::DbDetach(db.id)).map(drop)
    }

    /// Whether databases may be detached now: clients of no node may attach.
    pub fn may_detach(&mut self) -> Result<(), Error> {
        if self.is_recovering()? {
            return Err(Error::NotDetachable(NotDetachable::Recovering));
        }
        for NodeEntry { pnn, flags } in self.nodes()? {
            // One that is away may bring the database back when it returns; CTDB does not ask it either.
            if flags.intersects(NodeFlags::DELETED | NodeFlags::DISCONNECTED) {
                continue;
            }
            let why = if flags.is_inactive() {
                NotDetachable::Inactive(pnn)
            } else if self.tunable(pnn, "AllowClientDBAttach")? != 0 {
                NotDetachable::Attachable(pnn)
            } else {
                continue;
            };
            return Err(Error::NotDetachable(why));
        }
        Ok(())
    }
}
