//! Reload of the nodes list at run time (`spec/cluster.md` 2.14, `authority.md` R24 to R26).
//!
//! The node that is asked reads its source, asks every linked node for what *its* source says,
//! and goes on only if all say the same and the change is one that may be made. Then all remove
//! their records of the old list, which may wait for disks; then the leader's node takes the list
//! on, and behind it all others at once: a node that has retired this very list before hears no
//! leader that uses it until it has taken it on itself. It is done when all nodes that run have. A
//! source that is a command runs as a child: it may hang or fail, and costs nothing but this reload.

use std::path::Path;
use std::time::Duration;

use ctdb_core::authority::List;
use ctdb_core::coordinator::Input;
use ctdb_core::reload::{self, Telling, Told};
use ctdb_wire::api::{Action, ApiError, ApplyPart, Done, NodeEntry, ReloadView, SourceView};
use ctdb_wire::ids::{BootTime, NodeFlags, NodeSet, Pnn};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::actions::{Answer, Reply, Step, Wait, json};
use super::node::Node;
use super::record::Removal;
use crate::clock::boot_now;
use crate::config::{Nodes, NodesSource, Report};
use crate::liveness;
use crate::process::{Children, How, Owner, Spec};

/// How long a source may take.
const FETCH: Duration = Duration::from_secs(10);
/// How long the whole reload may take.
pub(super) const RELOAD: Duration = Duration::from_secs(90);
/// How long nodes that run are told the list again that others have taken on.
const TELL: Duration = Duration::from_secs(30);
/// How long is waited for what comes by itself: the link to a node that is heard (one whole attempt
/// of it takes 5 s at its longest), a leader, the last change of the list being settled.
const PATIENCE: Duration = Duration::from_secs(6);

/// Reads a list, off the main loop.
pub(super) async fn fetch(
    children: Children,
    source: NodesSource,
) -> Result<Vec<NodeEntry>, String> {
    let text = match &source {
        NodesSource::Command(words) => {
            let mut spec = Spec::new("nodes list", Owner::Nodes, words);
            spec.limit = Some(FETCH);
            spec.log = Some(tracing::Level::WARN);
            let ended = children.run(spec).await;
            if ended.how != How::Exited(0) {
                return Err(format!("{source}: {}", ended.how));
            }
            if ended.dropped > 0 {
                return Err(format!("{source}: wrote more than a nodes list has"));
            }
            String::from_utf8(ended.stdout).map_err(|_| format!("{source}: wrote no text"))?
        }
        NodesSource::File(_) => {
            let source = source.clone();
            let read = tokio::task::spawn_blocking(move || source.fetch(FETCH));
            match tokio::time::timeout(FETCH, read).await {
                Ok(Ok(text)) => text.map_err(|error| error.to_string())?,
                _ => return Err("the nodes list cannot be read in time".to_owned()),
            }
        }
    };
    parse(&text, source.path())
}

fn parse(text: &str, path: &Path) -> Result<Vec<NodeEntry>, String> {
    let mut report = Report::default();
    let Some(nodes) = Nodes::parse(text, path, &mut report) else {
        let lines: Vec<String> = report.lines().collect();
        return Err(lines.join("; "));
    };
    let entry = |node: &crate::config::Node| NodeEntry {
        pnn: node.pnn.get(),
        address: node.address,
        deleted: node.deleted,
    };
    Ok(nodes.entries.iter().map(entry).collect())
}

/// What a new list changes, or why it may not be taken on, in the old tool's words.
pub(super) fn compare(
    old: &[NodeEntry],
    new: &[NodeEntry],
    connected: impl Fn(u32) -> bool,
) -> Result<ReloadView, Vec<String>> {
    let mut view = ReloadView::default();
    let mut errors = Vec::new();
    for (index, before) in old.iter().enumerate() {
        let pnn = before.pnn;
        let Some(after) = new.get(index) else {
            errors.push(format!(
                "Node {pnn} ({}) missing from nodes file",
                before.address
            ));
            continue;
        };
        match (before.deleted, after.deleted) {
            (true, false) => view.undeleted.push(pnn),
            (false, true) if connected(pnn) => {
                errors.push(format!("ERROR: Node {pnn} is still connected"));
            }
            (false, true) => view.deleted.push(pnn),
            (false, false) if before.address != after.address => errors.push(format!(
                "Node {pnn} has changed IP address (was {}, now {})",
                before.address, after.address
            )),
            _ => {}
        }
    }
    view.new = new
        .iter()
        .skip(old.len())
        .filter(|node| !node.deleted)
        .map(|node| node.pnn)
        .collect();
    view.changed = old != new;
    if errors.is_empty() {
        Ok(view)
    } else {
        Err(errors)
    }
}

/// A reload under way.
pub(super) struct Reload {
    dry_run: bool,
    stage: Stage,
}

enum Stage {
    /// This node's source is read.
    Own(oneshot::Receiver<Result<Vec<NodeEntry>, String>>),
    /// Nodes that are heard have no link yet, without which they cannot be told.
    Links {
        list: Vec<NodeEntry>,
        until: BootTime,
    },
    /// The others are asked for what theirs say.
    Others {
        list: Vec<NodeEntry>,
        asked: Vec<(Pnn, oneshot::Receiver<Answer>)>,
    },
    /// All that will be told remove their records of the old list.
    Preparing {
        told: Box<Tell>,
        asked: Vec<(Pnn, oneshot::Receiver<Answer>)>,
    },
    /// The leader's node takes it on, then the others do.
    Applying(Box<Tell>),
}

/// A list on its way to all nodes.
struct Tell {
    list: Vec<NodeEntry>,
    view: ReloadView,
    telling: Telling,
    asked: Vec<(Pnn, oneshot::Receiver<Answer>)>,
}

/// A new list that waits to be taken on by this node.
pub(super) struct Applying {
    nodes: Vec<NodeEntry>,
    /// Until then what may come by itself is waited for.
    until: BootTime,
    part: ApplyPart,
}

/// Why a list is not taken on.
enum MayNot {
    /// It may come by itself.
    Yet(String),
    /// Not without something being done.
    AtAll(String),
    /// Another node is to be the first.
    AsFirst,
}

/// The code of [`MayNot::AsFirst`].
const NOT_LEADER: &str = "not_leader";

impl From<MayNot> for ApiError {
    fn from(reason: MayNot) -> Self {
        match reason {
            MayNot::Yet(text) | MayNot::AtAll(text) => Self::new(409, "not_reloaded", text),
            MayNot::AsFirst => {
                let text = reload::Refused::NotLeader.to_string();
                Self::new(409, NOT_LEADER, text)
            }
        }
    }
}

fn refuse(text: String) -> Step {
    Step::Answered(Err(ApiError::new(409, "not_reloaded", text)))
}

fn without_links(untold: NodeSet) -> Step {
    refuse(format!(
        "there is no link to nodes that run: {untold:?}; try again when `ctdb status` shows them \
         connected"
    ))
}

impl Node {
    /// The list that is in force.
    pub(super) fn entries(&self) -> Vec<NodeEntry> {
        self.parts
            .nodes
            .iter()
            .map(|(pnn, address, deleted)| NodeEntry {
                pnn: *pnn,
                address: *address,
                deleted: *deleted,
            })
            .collect()
    }

    fn start_fetch(&self) -> oneshot::Receiver<Result<Vec<NodeEntry>, String>> {
        let (sender, receiver) = oneshot::channel();
        let fetch = fetch(self.parts.children.clone(), self.parts.nodes_source.clone());
        tokio::spawn(async move {
            let _ = sender.send(fetch.await);
        });
        receiver
    }

    /// `GET /v1/nodes/source`
    pub(super) fn nodes_source(&self) -> Wait {
        Wait::Source(self.start_fetch())
    }

    /// What has come of reading the source.
    pub(super) fn look_at_source(
        &self,
        mut receiver: oneshot::Receiver<Result<Vec<NodeEntry>, String>>,
    ) -> Step {
        match receiver.try_recv() {
            Ok(Ok(nodes)) => Step::Answered(json(&SourceView {
                node: self.parts.me.get(),
                nodes,
            })),
            Ok(Err(text)) => Step::Answered(Err(ApiError::new(422, "bad_nodes_list", text))),
            Err(TryRecvError::Empty) => Step::Stay(Wait::Source(receiver)),
            Err(TryRecvError::Closed) => refuse("the daemon ends".to_owned()),
        }
    }

    /// `POST /v1/nodes/reload`
    pub(super) fn reload_nodes(&self, dry_run: bool) -> Wait {
        Wait::Reload(Box::new(Reload {
            dry_run,
            stage: Stage::Own(self.start_fetch()),
        }))
    }

    /// The next step of a reload, if one can be made.
    pub(super) fn look_at_reload(&mut self, reload: Reload) -> Step {
        let dry_run = reload.dry_run;
        let again = |stage| Wait::Reload(Box::new(Reload { dry_run, stage }));
        match reload.stage {
            Stage::Own(mut receiver) => match receiver.try_recv() {
                Ok(Ok(list)) => {
                    let until = boot_now() + PATIENCE;
                    Step::Next(again(Stage::Links { list, until }))
                }
                Ok(Err(text)) => {
                    tracing::error!("nodes list not reloaded, the old one stays: {text}");
                    Step::Answered(Err(ApiError::new(422, "bad_nodes_list", text)))
                }
                Err(TryRecvError::Empty) => Step::Stay(again(Stage::Own(receiver))),
                Err(TryRecvError::Closed) => refuse("the daemon ends".to_owned()),
            },
            Stage::Links { list, until } => {
                let untold = self.untold();
                if untold.is_empty() {
                    let asked = self.ask_others();
                    return Step::Next(again(Stage::Others { list, asked }));
                }
                if until <= boot_now() {
                    return without_links(untold);
                }
                Step::Stay(again(Stage::Links { list, until }))
            }
            Stage::Others { list, mut asked } => {
                while let Some((pnn, receiver)) = asked.last_mut() {
                    match receiver.try_recv() {
                        Ok(Ok(value)) => {
                            let theirs = serde_json::from_value::<SourceView>(value);
                            if !theirs.is_ok_and(|theirs| theirs.nodes == list) {
                                return refuse(format!(
                                    "ERROR: Nodes file on node {pnn} differs from current node ({})",
                                    self.parts.me
                                ));
                            }
                            asked.pop();
                        }
                        Err(TryRecvError::Empty) => {
                            return Step::Stay(again(Stage::Others { list, asked }));
                        }
                        Ok(Err(error)) => {
                            return refuse(format!(
                                "ERROR: Failed to get nodes file from node {pnn}: {}",
                                error.message
                            ));
                        }
                        Err(TryRecvError::Closed) => {
                            return refuse(format!(
                                "ERROR: Failed to get nodes file from node {pnn}"
                            ));
                        }
                    }
                }
                self.begin_applying(dry_run, list)
            }
            Stage::Preparing { told, mut asked } => {
                while let Some((pnn, receiver)) = asked.last_mut() {
                    match receiver.try_recv() {
                        Err(TryRecvError::Empty) => {
                            return Step::Stay(again(Stage::Preparing { told, asked }));
                        }
                        Ok(Ok(_)) => {}
                        Ok(Err(error)) => {
                            return refuse(format!("ERROR: Node {pnn}: {}", error.message));
                        }
                        Err(TryRecvError::Closed) => {
                            return refuse(format!("ERROR: Node {pnn} does not answer"));
                        }
                    }
                    asked.pop();
                }
                Step::Next(again(Stage::Applying(told)))
            }
            Stage::Applying(told) => self.tell_all(told),
        }
    }

    /// What has come of telling the list, and who is told next.
    fn tell_all(&mut self, mut tell: Box<Tell>) -> Step {
        let now = boot_now();
        for (pnn, mut receiver) in std::mem::take(&mut tell.asked) {
            let result = match receiver.try_recv() {
                Err(TryRecvError::Empty) => {
                    tell.asked.push((pnn, receiver));
                    continue;
                }
                Ok(Ok(value)) => {
                    let done = serde_json::from_value::<Done>(value).unwrap_or_default();
                    if done.changed && !tell.view.changed {
                        tell.view.warnings.push(format!(
                            "Node {pnn} had not taken on the list yet; it has now"
                        ));
                    }
                    tell.view.applied += 1;
                    Ok(())
                }
                Ok(Err(error)) if tell.telling.is_first(pnn) && error.code == NOT_LEADER => {
                    let leader = self.leader();
                    tell.telling.led_by(now, leader);
                    continue;
                }
                // What the leader's node refuses nobody takes on.
                Ok(Err(error)) if tell.telling.is_first(pnn) => return Step::Answered(Err(error)),
                Ok(Err(error)) => Err(error.message),
                Err(TryRecvError::Closed) => Err("it does not answer".to_owned()),
            };
            tell.telling.answered(now, pnn, result);
        }
        let mut linked: NodeSet = self.linked_others().into_iter().collect();
        linked.insert(self.parts.me);
        let status = self.parts.coordinator.status();
        let heard = status.map_or(NodeSet::EMPTY, reload::heard);
        match tell.telling.next(now, linked, heard) {
            Told::Ask(nodes) => {
                for pnn in nodes.iter() {
                    let part = if tell.telling.is_first(pnn) {
                        ApplyPart::First
                    } else {
                        ApplyPart::Follow
                    };
                    tell.asked
                        .push((pnn, self.ask_to_apply(pnn, &tell.list, part)));
                }
                let stage = Stage::Applying(tell);
                let wait = Wait::Reload(Box::new(Reload {
                    dry_run: false,
                    stage,
                }));
                if nodes.is_empty() {
                    Step::Stay(wait)
                } else {
                    Step::Next(wait)
                }
            }
            Told::Done { gone } => {
                for pnn in gone.iter() {
                    tell.view.warnings.push(disconnected(pnn.get()));
                }
                tell.view.changed |= !tell.view.warnings.is_empty();
                Step::Answered(json(&tell.view))
            }
            Told::Late(_) if tell.telling.is_untold() => refuse(format!(
                "no node that leads could be told for {} s (the leader changed, or the link to its \
                 node is down: see ctdb cluster status); no node has taken the list on; run it again",
                TELL.as_secs()
            )),
            Told::Late(failed) => {
                let mut lines: Vec<String> = failed
                    .iter()
                    .map(|(pnn, reason)| format!("Node {pnn} failed to reload nodes: {reason}"))
                    .collect();
                lines.push(
                    "the other nodes use the new list; run it again, and if that does not help \
                     restart ctdbd there"
                        .to_owned(),
                );
                Step::Answered(Err(ApiError::new(504, "not_on_all", lines.join("; "))))
            }
        }
    }

    fn ask_to_apply(
        &mut self,
        pnn: Pnn,
        list: &[NodeEntry],
        part: ApplyPart,
    ) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        let action = Action::ApplyNodes {
            nodes: list.to_vec(),
            part,
        };
        self.action(action, Some(pnn), Reply::Step(sender));
        receiver
    }

    /// `POST /v1/nodes/apply`: checked, then the record of the old list is removed, off the main
    /// loop, then the list is in force, unless this was only to prepare.
    pub(super) fn apply_nodes(
        &self,
        nodes: Vec<NodeEntry>,
        part: ApplyPart,
    ) -> Result<Wait, Answer> {
        match self.may_apply(&nodes, part) {
            Ok(false) => Err(json(&Done {
                changed: false,
                message: "the list is in force already".to_owned(),
            })),
            Ok(true) | Err(MayNot::Yet(_)) => Ok(Wait::Apply(Applying {
                nodes,
                until: boot_now() + PATIENCE,
                part,
            })),
            Err(reason) => Err(Err(reason.into())),
        }
    }

    /// Whether a list differs from the one in force, and may be taken on now (R24).
    fn may_apply(&self, nodes: &[NodeEntry], part: ApplyPart) -> Result<bool, MayNot> {
        let old = self.entries();
        if nodes == old {
            return Ok(false);
        }
        compare(&old, nodes, |_| false).map_err(|errors| MayNot::AtAll(errors.join("; ")))?;
        let active = |list: &[NodeEntry]| list.iter().filter(|node| !node.deleted).count();
        if self.parts.split_brain && (active(&old) == 2) != (active(nodes) == 2) {
            // One node alone is a quorum of such a list, and no witness of the other's (L1).
            return Err(MayNot::AtAll(
                "with `allow split brain` a list of two nodes is changed only by stopping all \
                 daemons and starting them"
                    .to_owned(),
            ));
        }
        let list = self.list_of(nodes);
        let Some(status) = self.parts.coordinator.status() else {
            let text = "the detector has not spoken yet; try again";
            return Err(MayNot::Yet(text.to_owned()));
        };
        let refused = if status.list.voters == self.parts.coordinator.config().voters {
            let first = part == ApplyPart::First;
            reload::check(status, self.parts.mode, &list, first).err()
        } else {
            Some(reload::Refused::NotSettled) // The detector is to hear of it.
        };
        match refused {
            None => Ok(true),
            Some(reload::Refused::NotLeader) => Err(MayNot::AsFirst),
            Some(refused) if refused.may_pass() => Err(MayNot::Yet(refused.to_string())),
            Some(refused) => Err(MayNot::AtAll(refused.to_string())),
        }
    }

    /// Whether the record is gone; then the list is taken on.
    pub(super) fn look_at_apply(&mut self, applying: Applying) -> Step {
        let now = boot_now();
        // Another reload may have come before this one.
        let prepare = applying.part == ApplyPart::Prepare;
        match self.may_apply(&applying.nodes, applying.part) {
            Ok(true) => {}
            Ok(false) => return Step::Answered(json(&Done::default())),
            Err(MayNot::Yet(_)) if prepare => {}
            Err(MayNot::Yet(_)) if now < applying.until => {
                return Step::Stay(Wait::Apply(applying));
            }
            Err(reason) => return Step::Answered(Err(reason.into())),
        }
        match self.record.remove(now) {
            Removal::UnderWay => Step::Stay(Wait::Apply(applying)),
            Removal::Failed(text) => {
                refuse(format!("the record of voters cannot be removed: {text}"))
            }
            Removal::Done if prepare => Step::Answered(json(&Done::default())),
            Removal::Done => Step::Answered(self.take_on(&applying.nodes)),
        }
    }

    fn list_of(&self, nodes: &[NodeEntry]) -> List {
        let voters: NodeSet = nodes
            .iter()
            .filter(|node| !node.deleted)
            .filter_map(|node| Pnn::new(node.pnn).ok())
            .collect();
        let lock_alone = self.parts.mode.lock_alone();
        let count = voters.len();
        let quorum = if lock_alone || count == 2 && self.parts.split_brain {
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
        // R24: the coordinator now; the detector is told at the end of this step.
        self.handle(
            boot_now(),
            Input::List {
                list,
                deleted,
                list_length: nodes.len(),
            },
        );
        self.record.release();
        let text = format!("nodes list taken on: {} nodes", list.voters.len());
        tracing::warn!("{text}");
        let me = self.parts.me;
        self.parts
            .history
            .add("node", Some(me.get()), text, &[], &[]);
        self.changed();
        if list.voters.len() == 2 && !self.parts.mode.lock_alone() && !self.parts.split_brain {
            tracing::warn!(
                "of two nodes both are the majority: when one is lost the other stops serving; \
                 use a cluster lock or add a third node, which may be a voter only"
            );
        }
        if !list.voters.contains(me) {
            self.shutdown("removed from the nodes list");
        }
        json(&Done {
            changed: true,
            message: "the nodes list is in force".to_owned(),
        })
    }

    /// R24: the detector is told of a list after the coordinator, whenever they differ.
    pub(super) fn tell_list(&mut self) {
        let config = self.parts.coordinator.config();
        let list = List {
            voters: config.voters,
            quorum: config.quorum,
        };
        if self.told_list != list {
            self.told_list = list;
            self.tell_detector(liveness::Command::List(list));
        }
    }

    /// Writes down the list once it is settled and somebody leads under it (R10).
    pub(super) fn record_voters(&mut self, now: BootTime) {
        let voters = self.parts.coordinator.config().voters;
        let Some(status) = self.parts.coordinator.status() else {
            return;
        };
        // The detector may not have heard of the newest list yet.
        let settled = status.list.settled && status.list.voters == voters;
        if settled && status.leader.is_some() && voters.contains(self.parts.me) {
            self.record.keep(now, voters);
        }
    }

    fn linked_others(&self) -> Vec<Pnn> {
        let coordinator = &self.parts.coordinator;
        let me = self.parts.me;
        coordinator
            .config()
            .voters
            .iter()
            .filter(|pnn| *pnn != me && coordinator.peer(*pnn).linked)
            .collect()
    }

    /// Nodes that would not be told of a new list.
    fn untold(&self) -> NodeSet {
        let linked = self.linked_others().into_iter().collect();
        let status = self.parts.coordinator.status();
        status.map_or(NodeSet::EMPTY, |status| {
            reload::untold(status, self.parts.me, linked)
        })
    }

    fn ask_others(&mut self) -> Vec<(Pnn, oneshot::Receiver<Answer>)> {
        let others = self.linked_others();
        others
            .into_iter()
            .map(|pnn| {
                let (sender, receiver) = oneshot::channel();
                self.action(Action::NodesSource, Some(pnn), Reply::Step(sender));
                (pnn, receiver)
            })
            .collect()
    }

    fn begin_applying(&mut self, dry_run: bool, list: Vec<NodeEntry>) -> Step {
        let now = boot_now();
        let coordinator = &self.parts.coordinator;
        let connected = |number| {
            Pnn::new(number).is_ok_and(|pnn| {
                !coordinator
                    .flags(now, pnn)
                    .intersects(NodeFlags::DISCONNECTED)
            })
        };
        let mut view = match compare(&self.entries(), &list, connected) {
            Ok(view) => view,
            Err(errors) => return refuse(errors.join("; ")),
        };
        if dry_run {
            return Step::Answered(json(&view));
        }
        // A link may have been lost while the others were asked.
        let untold = self.untold();
        if !untold.is_empty() {
            return without_links(untold);
        }
        let Some(leader) = self.leader() else {
            if !view.changed {
                return Step::Answered(json(&view));
            }
            return refuse("there is no leader to take on the list first".to_owned());
        };
        let me = self.parts.me;
        let mut others: NodeSet = self.linked_others().into_iter().collect();
        others.insert(me);
        // Those that cannot be told, but will go on.
        for node in &list {
            if !node.deleted && node.pnn != me.get() && !connected(node.pnn) {
                let known = !view.new.contains(&node.pnn) && !view.undeleted.contains(&node.pnn);
                if view.changed && known {
                    view.warnings.push(disconnected(node.pnn));
                }
            }
        }
        // Also if nothing changes here: an earlier reload may not have come to all.
        let asked = others
            .iter()
            .map(|pnn| (pnn, self.ask_to_apply(pnn, &list, ApplyPart::Prepare)))
            .collect();
        let told = Box::new(Tell {
            list,
            view,
            telling: Telling::new(leader, others, now + TELL),
            asked: Vec::new(),
        });
        Step::Next(Wait::Reload(Box::new(Reload {
            dry_run,
            stage: Stage::Preparing { told, asked },
        })))
    }
}

/// CTDB's words for a node that goes on with its old list.
fn disconnected(pnn: u32) -> String {
    format!("WARNING: Node {pnn} is disconnected. You MUST fix this node manually!")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<NodeEntry> {
        parse(text, Path::new("nodes")).unwrap()
    }

    #[test]
    fn what_may_change_and_what_may_not() {
        let old = list("10.0.0.1\n#10.0.0.2\n10.0.0.3\n");
        let nobody = |_| false;
        let view = compare(&old, &old, nobody).unwrap();
        assert!(!view.changed);
        let view = compare(
            &old,
            &list("10.0.0.1\n10.0.0.2\n#10.0.0.3\n10.0.0.4\n"),
            nobody,
        )
        .unwrap();
        assert_eq!(
            (view.new, view.deleted, view.undeleted),
            (vec![3], vec![2], vec![1])
        );
        for (new, connected, error) in [
            (
                "10.0.0.1\n#\n",
                false,
                "Node 2 (10.0.0.3) missing from nodes file",
            ),
            (
                "10.0.0.9\n#\n10.0.0.3\n",
                false,
                "Node 0 has changed IP address (was 10.0.0.1, now 10.0.0.9)",
            ),
            (
                "10.0.0.1\n#\n#10.0.0.3\n",
                true,
                "ERROR: Node 2 is still connected",
            ),
        ] {
            let errors = compare(&old, &list(new), |_| connected).unwrap_err();
            assert_eq!(errors, [error]);
        }
    }

    #[tokio::test]
    async fn a_command_may_fail_or_flood() {
        let run = |command: &'static str| {
            let source = NodesSource::parse(command).unwrap();
            fetch(Children::default(), source)
        };
        assert_eq!(run("!/bin/echo 10.0.0.7").await.unwrap().len(), 1);
        for (command, part) in [
            ("!/bin/false", "exit code 1"),
            ("!/no/such/program", "not started"),
            ("!/bin/echo nonsense", "is not an IP address"),
            ("!/bin/true", "names no node"),
        ] {
            let error = run(command).await.unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let error = run("!/usr/bin/seq 1 100000").await.unwrap_err();
        assert!(error.contains("more than a nodes list"), "{error}");
    }
}
