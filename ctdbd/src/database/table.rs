//! Which databases are attached here.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ctdb_db::OpenFlags;
use ctdb_db::cluster::rights::Views;
use ctdb_db::cluster::{self, Body, Kind, Message, View};
use ctdb_db::record::DbId;
use ctdb_ebpf::deadman::Deadman;
use ctdb_wire::client::types::DbFlags;
use ctdb_wire::ids::Pnn;

use super::file::FileOptions;
use super::mailbox::{Item, Mailbox};
use super::seat::Seat;
use super::worker::{self, Birth, Shown};
use super::{Outlet, Output, Setup};
use crate::clients::hub::Origin;
use crate::config::{Tunable, Tunables};
use crate::messaging::registry::ClientId;

/// Most databases; Samba has about thirty.
pub const MAX_DATABASES: usize = 1024;
/// Longest name of a database, in bytes.
pub const MAX_NAME: usize = 200;
/// Databases of which records with the same key are used together.
const COMPANIONS: [&str; 2] = ["locking.tdb", "brlock.tdb"];

/// Why a database cannot be attached.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AttachError {
    /// The name cannot be that of a file.
    #[error("{0:?} is no name of a database")]
    Name(String),
    /// It is attached with another kind.
    #[error("{name} is attached as {flags:?}")]
    Kind {
        /// Its name.
        name: String,
        /// Its flags.
        flags: DbFlags,
    },
    /// Another name has the same number.
    #[error("{name} has the same number as {other}, which is attached")]
    Collision {
        /// The name.
        name: String,
        /// The other.
        other: String,
    },
    /// Too many.
    #[error("{MAX_DATABASES} databases are attached")]
    TooMany,
    /// The system gives no thread.
    #[error("no thread for {name}: {error}")]
    NoThread {
        /// The name.
        name: String,
        /// Why not.
        error: String,
    },
}

/// One database.
#[derive(Debug)]
pub struct Entry {
    /// Its number.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: Kind,
    /// Its file.
    pub path: PathBuf,
    /// As the database map has them.
    pub flags: DbFlags,
    /// With which clients open the file.
    pub open_flags: OpenFlags,
    /// Why it is not healthy.
    pub health: Option<String>,
    /// Who waits for its file to be opened; `None` when it is.
    pub opening: Option<Vec<Origin>>,
    /// For its thread.
    pub mailbox: Arc<Mailbox>,
    /// Where calls and messages go.
    pub seat: Arc<Seat>,
    /// What its thread shows.
    pub shown: Arc<Shown>,
    /// The slot of the right in which it was recovered and served last.
    through: Option<u32>,
}

/// The kind that an attach control asks for, or that a database has.
pub fn flags_of(kind: Kind) -> DbFlags {
    match kind {
        Kind::Volatile => DbFlags::empty(),
        Kind::Persistent => DbFlags::PERSISTENT,
        Kind::Replicated => DbFlags::REPLICATED,
    }
}

/// All databases of this node.
pub struct Table {
    setup: Setup,
    outlet: Arc<dyn Outlet>,
    /// The oldest first.
    list: Vec<Entry>,
    /// Databases that a client has called.
    used: HashMap<ClientId, Vec<u32>>,
    /// What the guard is told.
    deadman: Option<Arc<Deadman>>,
    /// The slot of the right to serve.
    right: Option<u32>,
    views: Views,
    view: Option<Arc<View>>,
    /// Addresses to which an operator's restore sends records, with their databases.
    pushes: HashMap<u64, u32>,
    /// A database was recovered, and clients have not been told.
    recovered: bool,
}

impl std::fmt::Debug for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} databases", self.list.len())
    }
}

impl Table {
    /// None yet.
    pub fn new(setup: Setup, deadman: Option<Arc<Deadman>>, outlet: Arc<dyn Outlet>) -> Self {
        Self {
            setup,
            deadman,
            outlet,
            list: Vec::new(),
            used: HashMap::new(),
            right: None,
            views: Views::default(),
            view: None,
            pushes: HashMap::new(),
            recovered: false,
        }
    }

    /// Names of the persistent databases whose files are here.
    pub fn found(setup: &Setup) -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        let suffix = format!(".{}", setup.me);
        for entry in std::fs::read_dir(&setup.persistent)? {
            let file = entry?.file_name();
            let Some(file) = file.to_str() else { continue };
            if let Some(name) = file.strip_suffix(&suffix)
                && std::path::Path::new(name)
                    .extension()
                    .is_some_and(|extension| extension == "tdb")
            {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The databases, the oldest first.
    pub fn entries(&self) -> &[Entry] {
        &self.list
    }

    /// By its number.
    pub fn get(&self, id: u32) -> Option<&Entry> {
        self.list.iter().find(|entry| entry.id == id)
    }

    /// By its number.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Entry> {
        self.list.iter_mut().find(|entry| entry.id == id)
    }

    /// Attaches it, if it is not yet. Its file is opened by its own thread.
    pub fn attach(
        &mut self,
        name: &str,
        kind: Kind,
        tunables: &Tunables,
    ) -> Result<&mut Entry, AttachError> {
        let usable = !name.is_empty()
            && name.len() <= MAX_NAME
            && !name.starts_with('.')
            && !name.contains(['/', '\0']);
        if !usable {
            return Err(AttachError::Name(name.to_owned()));
        }
        let id = DbId::of(name).0;
        if let Some(at) = self.list.iter().position(|entry| entry.id == id) {
            let entry = &mut self.list[at];
            if entry.name != name {
                return Err(AttachError::Collision {
                    name: name.to_owned(),
                    other: entry.name.clone(),
                });
            }
            if !entry.flags.contains(flags_of(kind)) {
                return Err(AttachError::Kind {
                    name: name.to_owned(),
                    flags: entry.flags,
                });
            }
            return Ok(entry);
        }
        if self.list.len() >= MAX_DATABASES {
            return Err(AttachError::TooMany);
        }
        let entry = self.begin(id, name, kind, tunables)?;
        self.list.push(entry);
        let last = self.list.len() - 1;
        Ok(&mut self.list[last])
    }

    fn begin(
        &self,
        id: u32,
        name: &str,
        kind: Kind,
        tunables: &Tunables,
    ) -> Result<Entry, AttachError> {
        let directory = match kind {
            Kind::Persistent => &self.setup.persistent,
            Kind::Volatile | Kind::Replicated => &self.setup.volatile,
        };
        let path = directory.join(format!("{name}.{}", self.setup.me));
        let open_flags = FileOptions::flags_of(kind, self.setup.mutexes);
        let mailbox = Arc::new(Mailbox::default());
        let seat = Arc::new(Seat::new(Arc::clone(&mailbox), Arc::clone(&self.outlet)));
        let shown = Arc::new(Shown::default());
        if let Some(view) = &self.view {
            mailbox.post(Item::View(Some(Arc::clone(view))));
        }
        let birth = Birth {
            me: self.setup.me,
            name: name.to_owned(),
            file: FileOptions {
                path: path.clone(),
                kind,
                flags: open_flags,
                hash_size: tunables.get(Tunable::DatabaseHashSize),
                max_dead: tunables.get(Tunable::DatabaseMaxDead),
            },
            tunables: machine_tunables(tunables),
            mailbox: Arc::clone(&mailbox),
            seat: Arc::clone(&seat),
            outlet: Arc::clone(&self.outlet),
            shown: Arc::clone(&shown),
            deadman: self.deadman.clone(),
            right: self.right,
        };
        std::thread::Builder::new()
            .name(format!("db {name}"))
            .spawn(move || worker::run(birth))
            .map_err(|error| AttachError::NoThread {
                name: name.to_owned(),
                error: error.to_string(),
            })?;
        Ok(Entry {
            id,
            name: name.to_owned(),
            kind,
            path,
            flags: flags_of(kind),
            open_flags,
            health: None,
            opening: Some(Vec::new()),
            mailbox,
            seat,
            shown,
            through: None,
        })
    }

    /// The file of a database is open, or cannot be: who waited for it.
    pub fn opened(&mut self, id: u32, result: &Result<Option<String>, String>) -> Vec<Origin> {
        let Some(entry) = self.get_mut(id) else {
            return Vec::new();
        };
        let waiting = entry.opening.take().unwrap_or_default();
        match result {
            Ok(health) => entry.health.clone_from(health),
            Err(_) => self.list.retain(|entry| entry.id != id),
        }
        waiting
    }

    /// Detaches it.
    pub fn detach(&mut self, id: u32) {
        if let Some(entry) = self.get(id) {
            entry.mailbox.post(Item::Stop);
        }
        self.list.retain(|entry| entry.id != id);
        self.pushes.retain(|_, db| *db != id);
    }

    /// All threads end.
    pub fn stop(&mut self) {
        for entry in self.list.drain(..) {
            entry.mailbox.post(Item::Stop);
        }
    }

    /// A client uses a database: it is told when the client goes.
    pub fn use_by(&mut self, client: ClientId, id: u32) {
        let used = self.used.entry(client).or_default();
        if !used.contains(&id) {
            used.push(id);
        }
    }

    /// The client is gone.
    pub fn gone(&mut self, client: ClientId) {
        for id in self.used.remove(&client).unwrap_or_default() {
            if let Some(entry) = self.get(id) {
                entry.mailbox.post(Item::Gone(client));
            }
        }
    }

    /// A link was made anew.
    pub fn link_reset(&self, peer: Pnn) {
        for entry in &self.list {
            entry.mailbox.post(Item::LinkReset(peer));
        }
    }

    /// The slot of the right to serve that this node has (DATA-5, MEM-3). Another slot is another
    /// right: the one before it was away.
    pub fn set_right(&mut self, right: Option<u32>) {
        if self.right != right {
            self.right = right;
            for entry in &self.list {
                entry.mailbox.post(Item::Right(right));
            }
        }
    }

    /// The cluster as this node, which leads it, sees it.
    pub fn set_view(&mut self, view: Option<View>) {
        let Some(view) = self.views.follow(view) else {
            return;
        };
        self.view = view.map(Arc::new);
        for entry in &self.list {
            entry.mailbox.post(Item::View(self.view.clone()));
        }
    }

    /// A message of another node for one of its databases; attaches one that the leader names and
    /// this node does not have. What follows at once; `None`: no message.
    pub fn peer(&mut self, from: Pnn, payload: &[u8], tunables: &Tunables) -> Option<Vec<Output>> {
        let (id, bytes) = payload.split_first_chunk()?;
        let id = u32::from_le_bytes(*id);
        if self.get(id).is_none() {
            let message = Message::decode(bytes).ok()?;
            if message.db.0 != id {
                return None;
            }
            // What else there is for a database that is not here has no receiver.
            let Body::Freeze { name, kind, .. } = message.body else {
                return Some(Vec::new());
            };
            match self.attach(&name, kind, tunables) {
                Ok(entry) if entry.id == id => {}
                Ok(_) => return None,
                Err(error) => {
                    tracing::error!(%error, node = %from, "the leader's database is not attached");
                    return Some(Vec::new());
                }
            }
        }
        let entry = self.get(id)?;
        Some(entry.seat.peer(from, bytes))
    }

    /// A record went to a node: those that are used together with it follow.
    /// What follows at once.
    pub fn went(&self, id: u32, key: &cluster::Key, to: Pnn) -> Vec<Output> {
        let Some(from) = self.get(id) else {
            return Vec::new();
        };
        if !COMPANIONS.contains(&from.name.as_str()) {
            return Vec::new();
        }
        let mut outputs = Vec::new();
        for entry in &self.list {
            if entry.id != id && COMPANIONS.contains(&entry.name.as_str()) {
                // One that has no room for it does without.
                let followed = entry.seat.call(Item::Companion(key.clone(), to));
                outputs.extend(followed.unwrap_or_default());
            }
        }
        outputs
    }

    /// A database is served, perhaps again. True if all are, and clients are to be told.
    pub fn served(&mut self, id: u32, first: bool, right: Option<u32>) -> bool {
        // A damaged copy is replaced before its database is served.
        if let Some(entry) = self.get_mut(id) {
            entry.health = None;
            entry.through = right;
        }
        self.recovered |= !first;
        if self.recovered && !self.is_recovering() {
            self.recovered = false;
            return true;
        }
        false
    }

    /// Whether one that was served is being recovered.
    pub fn is_recovering(&self) -> bool {
        self.list
            .iter()
            .any(|entry| entry.shown.recovering.load(Ordering::Relaxed))
    }

    /// Whether all volatile ones have been through a recovery in this right: if this node was left out
    /// before, that has been said.
    pub fn is_through(&self, right: u32) -> bool {
        let mut volatile = self.list.iter().filter(|e| e.kind == Kind::Volatile);
        volatile.all(|entry| entry.through == Some(right))
    }

    /// Whether all are served.
    pub fn is_serving(&self) -> bool {
        self.list
            .iter()
            .all(|entry| entry.shown.serving.load(Ordering::Relaxed))
    }

    /// The newest recovery that a database has been through: term, and number within it.
    pub fn newest_recovery(&self) -> Option<(u64, u32)> {
        let of = |entry: &Entry| {
            let term = entry.shown.term.load(Ordering::Relaxed);
            (term, entry.shown.seq.load(Ordering::Relaxed))
        };
        self.list.iter().map(of).max()
    }

    /// Highest number of a recovery in a term: the same on all nodes when all have recovered.
    pub fn recoveries(&self, term: u64) -> u32 {
        self.list
            .iter()
            .filter(|entry| entry.shown.term.load(Ordering::Relaxed) == term)
            .map(|entry| entry.shown.seq.load(Ordering::Relaxed))
            .max()
            .unwrap_or(0)
    }

    /// An operator's restore sends a database's records there.
    pub fn set_push(&mut self, srvid: u64, id: u32) {
        self.pushes.retain(|_, db| *db != id);
        self.pushes.insert(srvid, id);
    }

    /// The database whose records come to that address.
    pub fn push(&self, srvid: u64) -> Option<&Entry> {
        if self.pushes.is_empty() {
            return None;
        }
        self.get(*self.pushes.get(&srvid)?)
    }
}

fn machine_tunables(tunables: &Tunables) -> cluster::Tunables {
    cluster::Tunables {
        fetch_collapse: tunables.get(Tunable::FetchCollapse) != 0,
        hopcount_make_sticky: tunables
            .get(Tunable::HopcountMakeSticky)
            .min(u32::from(u16::MAX)) as u16,
        sticky_duration: tunables.seconds(Tunable::StickyDuration),
        sticky_pindown: Duration::from_millis(tunables.get(Tunable::StickyPindown).into()),
        vacuum_interval: tunables.seconds(Tunable::VacuumInterval),
        vacuum_fast_path: tunables.get(Tunable::VacuumFastPathCount),
        vacuum_max_run: tunables.seconds(Tunable::VacuumMaxRunTime),
        log_latency: Duration::from_millis(tunables.get(Tunable::LogLatencyMs).into()),
        seqnum_interval: Duration::from_millis(tunables.get(Tunable::SeqnumInterval).into()),
        traverse_timeout: tunables.seconds(Tunable::TraverseTimeout),
        ..cluster::Tunables::default()
    }
}
