def sub(p, *pairs):
    s=open(p).read()
    for a,b in pairs:
        assert a in s, (p,a)
        s=s.replace(a,b,1)
    open(p,'w').write(s)
B='/work/w-lockd/ctdbd/src/'
open(B+'daemon/record.rs','w').write('''//! The list of voters that this node last acted under, on disk (`authority.md` R10, R26).
//!
//! A cold cluster may skip the abstention after a start only if the list has not changed since.
//! The record is removed before a daemon speaks and before a list is changed, and written when a
//! list is settled: what stands there was true. Without it the cluster starts L + m later.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use ctdb_wire::ids::NodeSet;

/// Reads the record and removes it; `None` if there is none, or it is not certain that it is gone.
pub(super) fn take(path: &Path) -> Option<NodeSet> {
    let text = fs::read_to_string(path).ok();
    match remove(path) {
        Ok(()) => u64::from_str_radix(text?.trim(), 16).ok().map(NodeSet),
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "the record of voters cannot be removed");
            None
        }
    }
}

/// Removes it for good; that it was not there is well.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_directory(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes it, whole or not at all.
pub(super) fn write(path: &Path, voters: NodeSet) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    writeln!(file, "{:x}", voters.0)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_directory(path)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("voters");
        assert_eq!(take(&path), None);
        write(&path, NodeSet(0b1011)).unwrap();
        assert_eq!(take(&path), Some(NodeSet(0b1011)));
        assert_eq!(take(&path), None);
        fs::write(&path, "nonsense").unwrap();
        assert_eq!(take(&path), None);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
''')
s=open(B+'daemon/nodes.rs').read()
i=s.index("    /// `POST /v1/nodes/apply`"); j=s.index("    fn linked_others")
s=s[:i]+'''    /// `POST /v1/nodes/apply`: checked, then the record of the old list is removed, off the main
    /// loop, then the list is in force.
    pub(super) fn apply_nodes(&mut self, nodes: Vec<NodeEntry>) -> Result<Wait, Answer> {
        if nodes == self.entries() {
            return Err(json(&Done {
                changed: false,
                message: "the list is in force already".to_owned(),
            }));
        }
        let refuse = |text: String| Err(Err(ApiError::new(409, "not_reloaded", text)));
        if compare(&self.entries(), &nodes, |_| false).is_err() {
            return refuse("the list moves nodes to other numbers or addresses".to_owned());
        }
        let list = self.list_of(&nodes);
        let Some(status) = self.parts.coordinator.status() else {
            return refuse("the detector has not spoken yet".to_owned());
        };
        if let Err(refused) = reload::check(status, self.parts.mode, &list) {
            return refuse(refused.to_string());
        }
        if self.recording.is_some() {
            return refuse("the last list is being recorded; try again".to_owned());
        }
        self.recorded = None;
        let path = self.parts.voters_record.clone();
        let (sender, receiver) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let _ = sender.send(record::remove(&path).map_err(|error| error.to_string()));
        });
        Ok(Wait::Apply(nodes, receiver))
    }

    /// Whether the record is gone; then the list is taken on.
    pub(super) fn look_at_apply(
        &mut self,
        nodes: Vec<NodeEntry>,
        mut receiver: oneshot::Receiver<Result<(), String>>,
    ) -> Step {
        match receiver.try_recv() {
            Ok(Ok(())) => Step::Answered(self.take_on(&nodes)),
            Ok(Err(text)) => refuse(format!("the record of voters cannot be removed: {text}")),
            Err(TryRecvError::Empty) => Step::Stay(Wait::Apply(nodes, receiver)),
            Err(TryRecvError::Closed) => refuse("the daemon ends".to_owned()),
        }
    }

    fn list_of(&self, nodes: &[NodeEntry]) -> List {
        let voters: NodeSet = nodes
            .iter()
            .filter(|node| !node.deleted)
            .filter_map(|node| Pnn::new(node.pnn).ok())
            .collect();
        let count = voters.len();
        let quorum = if count == 2 && self.parts.split_brain {
            1
        } else {
            count / 2 + 1
        };
        List { voters, quorum }
    }

    fn take_on(&mut self, nodes: &[NodeEntry]) -> Answer {
        let list = self.list_of(nodes);
        let addresses: Vec<_> = nodes
            .iter()
            .filter(|node| !node.deleted)
            .filter_map(|node| Some((Pnn::new(node.pnn).ok()?, node.address)))
            .collect();
        self.parts
            .transport
            .set_nodes(&addresses)
            .map_err(|error| ApiError::new(422, "bad_nodes_list", error.to_string()))?;
        self.parts.nodes = nodes
            .iter()
            .map(|node| (node.pnn, node.address, node.deleted))
            .collect();
        self.parts.quorum = list.quorum;
        let deleted = nodes
            .iter()
            .filter(|node| node.deleted)
            .filter_map(|node| Pnn::new(node.pnn).ok())
            .collect();
        // R24: the coordinator first, then the detector.
        self.handle(
            boot_now(),
            Input::List {
                list,
                deleted,
                list_length: nodes.len(),
            },
        );
        self.tell_detector(liveness::Command::List(list));
        let text = format!("nodes list taken on: {} nodes", list.voters.len());
        tracing::warn!("{text}");
        let me = self.parts.me;
        self.parts.history.add("node", Some(me.get()), text, &[], &[]);
        self.changed();
        if !list.voters.contains(me) {
            self.shutdown("removed from the nodes list");
        }
        json(&Done {
            changed: true,
            message: "the nodes list is in force".to_owned(),
        })
    }

    /// Writes down the list once it is settled and somebody leads under it.
    pub(super) fn record_voters(&mut self) {
        if let Some(receiver) = &mut self.recording {
            match receiver.try_recv() {
                Err(TryRecvError::Empty) => return,
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(error, "the list of voters is not recorded; the next cold start takes longer");
                }
                Err(TryRecvError::Closed) => {}
            }
            self.recording = None;
        }
        let Some(status) = self.parts.coordinator.status() else {
            return;
        };
        let voters = status.list.voters;
        if !status.list.settled || status.leader.is_none() || self.recorded == Some(voters) {
            return;
        }
        self.recorded = Some(voters);
        let path = self.parts.voters_record.clone();
        let (sender, receiver) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let _ = sender.send(record::write(&path, voters).map_err(|error| error.to_string()));
        });
        self.recording = Some(receiver);
    }

'''+s[j:]
s=s.replace('''use ctdb_wire::api::{Action,''','''use ctdb_core::authority::List;
use ctdb_core::coordinator::Input;
use ctdb_core::reload;
use ctdb_wire::api::{Action,''')
s=s.replace("use ctdb_wire::ids::{NodeFlags, Pnn};","use ctdb_wire::ids::{NodeFlags, NodeSet, Pnn};")
s=s.replace("use super::node::Node;\n","use super::node::Node;\nuse super::record;\n")
s=s.replace("use crate::config::{Nodes, NodesSource, Report};","use crate::config::{Nodes, NodesSource, Report};\nuse crate::liveness;")
open(B+'daemon/nodes.rs','w').write(s)
sub(B+'daemon/actions.rs',
('            Action::ApplyNodes { nodes } => self.apply_nodes(&nodes),','''            Action::ApplyNodes { nodes } => match self.apply_nodes(nodes) {
                Ok(wait) => return self.wait(wait, Done::default(), reply),
                Err(answer) => answer,
            },'''),
('    /// A new nodes list is taken on.','    /// The record of the old list is removed, then this one is taken on.\n    Apply(Vec<NodeEntry>, oneshot::Receiver<Result<(), String>>),\n    /// A new nodes list is taken on by all nodes.'),
('            Wait::Reload(reload) => return','            Wait::Apply(nodes, receiver) => return self.look_at_apply(nodes, receiver),\n            Wait::Reload(reload) => return'),
('            Wait::Source(_) | Wait::Reload(_) =>','            Wait::Source(_) | Wait::Apply(..) | Wait::Reload(_) =>'))
sub(B+'daemon/node.rs',
('    cause: Option<(BootTime, String)>,\n}','''    cause: Option<(BootTime, String)>,
    /// The voters that were recorded last, and the writing of it.
    pub(super) recorded: Option<NodeSet>,
    pub(super) recording: Option<oneshot::Receiver<Result<(), String>>>,
}'''),
('            cause: None,\n','            cause: None,\n            recorded: None,\n            recording: None,\n'),
('use ctdb_wire::ids::{BootTime, Incarnation, Pnn, RunState};','use ctdb_wire::ids::{BootTime, Incarnation, NodeSet, Pnn, RunState};'),
('use tokio::sync::watch;','use tokio::sync::{oneshot, watch};'),
('    pub(super) lock_decides: bool,','    pub(super) lock_decides: bool,\n    pub(super) mode: Mode,\n    /// Two nodes serve each for itself.\n    pub(super) split_brain: bool,\n    /// Where the list of voters is recorded.\n    pub(super) voters_record: PathBuf,'),
('use ctdb_core::authority::{Books, LockNews};','use ctdb_core::authority::{Books, LockNews, Mode};'),
('use std::net::IpAddr;\n','use std::net::IpAddr;\nuse std::path::PathBuf;\n'),
('        self.want_lock(now);\n','        self.want_lock(now);\n        self.record_voters();\n'),
('    fn handle(&mut self, now','    pub(super) fn handle(&mut self, now'),
)
sub(B+'daemon.rs',
('            lock_decides: settings.mode.lock().is_some(),','            lock_decides: settings.mode.lock().is_some(),\n            mode: settings.mode,\n            split_brain: settings.split_brain,\n            voters_record: settings.voters_record.clone(),'),
('mod paths;\n','mod paths;\nmod record;\n'),
('            authority: settings.authority(incarnation),','            authority: settings.authority(incarnation, record::take(&settings.voters_record)),'))
sub(B+'daemon/settings.rs',
('    pub(super) history: PathBuf,','    pub(super) history: PathBuf,\n    pub(super) split_brain: bool,\n    pub(super) voters_record: PathBuf,'),
('            history: config.database.state.join("history.jsonl"),','''            history: config.database.state.join("history.jsonl"),
            split_brain: config.cluster.allow_split_brain
                && config.cluster.lock.is_none()
                && config.cluster.authority == Authority::Majority,
            voters_record: config.database.state.join("voters"),'''),
('    pub(super) fn authority(&self, incarnation: Incarnation) -> authority::Config {','    pub(super) fn authority(\n        &self,\n        incarnation: Incarnation,\n        acted_under: Option<NodeSet>,\n    ) -> authority::Config {'),
('            mode: self.mode,\n            quorum','            mode: self.mode,\n            acted_under,\n            quorum'))
sub(B+'liveness.rs',
('    /// The right ends now and is not renewed.','    /// Another nodes list; the coordinator has been told (R24).\n    List(List),\n    /// The right ends now and is not renewed.'),
('use ctdb_core::authority::{self, Books, LockNews, Status};','use ctdb_core::authority::{self, Books, List, LockNews, Status};'))
sub(B+'liveness/thread.rs',
('        Command::Leave =>','        Command::List(list) => authority.handle(boot_now(), Input::List(list), wire),\n        Command::Leave =>'))
