//! What a node says of itself: its flags and why, its run state, its interfaces, and which of its
//! public addresses it could host.
//!
//! Each node is authoritative for its own flags (`spec/cluster.md` 2.1); everybody else, the
//! leader included, only reads the [`NodeInfo`] that is made here.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ctdb_wire::api::NodeVerb;
use ctdb_wire::ids::{BootTime, NodeFlags, RunState};
use ctdb_wire::peer::{AddressInfo, Capabilities, InterfaceInfo, NodeInfo};
use ipnet::IpNet;

/// Longest ban, in seconds: a week. A longer one is a typing error.
pub const MAX_BAN_S: u32 = 7 * 24 * 3600;

/// A line of the public addresses file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicAddress {
    /// Address with its prefix length.
    pub net: IpNet,
    /// Interfaces that may carry it, in file order.
    pub interfaces: Vec<String>,
}

/// What a node is born with.
#[derive(Clone, Debug)]
pub struct Birth {
    /// Capabilities of the configuration.
    pub capabilities: Capabilities,
    /// Public addresses of its file.
    pub addresses: Vec<PublicAddress>,
    /// `start as disabled`.
    pub disabled: bool,
    /// `start as stopped`.
    pub stopped: bool,
    /// Seconds since 1970.
    pub started_at: i64,
    /// As `ctdb version` prints it.
    pub release: String,
    /// Where heartbeats reach it.
    pub paths: Vec<SocketAddr>,
}

/// State of one interface that public addresses name.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Interface {
    /// It exists.
    present: bool,
    /// Its link is up.
    carrier: bool,
    /// The operator set it down (`ctdb setifacelink`).
    held_down: bool,
}

impl Interface {
    fn up(&self) -> bool {
        self.present && self.carrier && !self.held_down
    }
}

/// Why a verb was not obeyed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LocalError {
    /// Ban of no time.
    #[error("Ban time cannot be zero")]
    NoBanTime,
    /// Ban beyond [`MAX_BAN_S`].
    #[error(
        "a ban of {0} s is longer than a week; use `ctdb node stop` for a node that shall stay out"
    )]
    BanTooLong(u32),
    /// No public address names the interface.
    #[error("Interface {0} not configured")]
    NoInterface(String),
    /// The daemon is being stopped.
    #[error("the node leaves; nothing can be changed any more")]
    Leaving,
}

/// A public address that has to go to another interface of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relocation {
    /// Address with its prefix length.
    pub net: IpNet,
    /// The interface that lost its link.
    pub from: String,
    /// One whose link is up.
    pub to: String,
}

/// The node's view of itself.
#[derive(Clone, Debug)]
pub struct Local {
    birth: Birth,
    run_state: RunState,
    healthy: bool,
    unhealthy_reason: String,
    disabled: Option<String>,
    stopped: Option<String>,
    banned: Option<(BootTime, String)>,
    interfaces: BTreeMap<String, Interface>,
    /// Interface of each address that is, or is about to be, on one.
    active: BTreeMap<IpAddr, String>,
}

impl Local {
    /// A node that starts.
    pub fn new(birth: Birth) -> Self {
        let mut local = Self {
            run_state: RunState::Init,
            healthy: false,
            unhealthy_reason: "starts".to_owned(),
            disabled: birth.disabled.then(|| "start as disabled".to_owned()),
            stopped: birth.stopped.then(|| "start as stopped".to_owned()),
            banned: None,
            interfaces: BTreeMap::new(),
            active: BTreeMap::new(),
            birth,
        };
        local.name_interfaces();
        local
    }

    fn name_interfaces(&mut self) {
        let old = std::mem::take(&mut self.interfaces);
        for name in self
            .birth
            .addresses
            .iter()
            .flat_map(|address| &address.interfaces)
        {
            let state = old.get(name).cloned().unwrap_or_default();
            self.interfaces.insert(name.clone(), state);
        }
    }

    /// The public addresses file was read again.
    pub fn set_addresses(&mut self, addresses: Vec<PublicAddress>) {
        self.birth.addresses = addresses;
        self.name_interfaces();
    }

    /// The public addresses of this node.
    pub fn addresses(&self) -> &[PublicAddress] {
        &self.birth.addresses
    }

    /// The operator's verb. `Ok(false)` if it was so already.
    pub fn verb(
        &mut self,
        now: BootTime,
        verb: NodeVerb,
        seconds: Option<u32>,
        reason: Option<String>,
    ) -> Result<bool, LocalError> {
        if self.run_state == RunState::Shutdown && verb != NodeVerb::Shutdown {
            return Err(LocalError::Leaving);
        }
        let reason = reason.unwrap_or_else(|| "by the operator".to_owned());
        let changed = match verb {
            NodeVerb::Disable => self.disabled.replace(reason).is_none(),
            NodeVerb::Enable => self.disabled.take().is_some(),
            NodeVerb::Stop => self.stopped.replace(reason).is_none(),
            NodeVerb::Start => self.stopped.take().is_some(),
            NodeVerb::Ban => {
                let seconds = seconds.filter(|s| *s > 0).ok_or(LocalError::NoBanTime)?;
                if seconds > MAX_BAN_S {
                    return Err(LocalError::BanTooLong(seconds));
                }
                let until = now + Duration::from_secs(u64::from(seconds));
                self.banned.replace((until, reason)).is_none()
            }
            NodeVerb::Unban => self.banned.take().is_some(),
            NodeVerb::Shutdown => {
                let was = self.run_state;
                self.run_state = RunState::Shutdown;
                was != RunState::Shutdown
            }
        };
        Ok(changed)
    }

    /// Time passes; true if a ban ended.
    pub fn tick(&mut self, now: BootTime) -> bool {
        if self.banned.as_ref().is_some_and(|(until, _)| *until <= now) {
            self.banned = None;
            return true;
        }
        false
    }

    /// Moves the run state forward; it never goes back (`spec/cluster.md` 2.13).
    pub fn advance(&mut self, to: RunState) -> bool {
        let forward = to > self.run_state;
        if forward {
            self.run_state = to;
        }
        forward
    }

    /// The right and the leader as the detector sees them. When both are there for the first time
    /// services are started ([`crate::events`]); true then.
    pub fn observe(&mut self, right: bool, leader: bool) -> bool {
        let waits = self.run_state == RunState::FirstRecovery;
        if !(waits && right && leader) {
            return false;
        }
        self.run_state = RunState::Startup;
        true
    }

    /// The run state.
    pub fn run_state(&self) -> RunState {
        self.run_state
    }

    /// Whether services are fit, or why not. True if this is news.
    pub fn set_health(&mut self, health: Result<(), String>) -> bool {
        let (healthy, reason) = match health {
            Ok(()) => (true, String::new()),
            Err(reason) => (false, reason),
        };
        let news = healthy != self.healthy;
        self.healthy = healthy;
        self.unhealthy_reason = reason;
        news
    }

    /// Roles at run time (`ctdb setleaderrole`); `None` leaves one as it is.
    pub fn set_roles(&mut self, leader: Option<bool>, lmaster: Option<bool>) -> bool {
        let before = self.birth.capabilities;
        let capabilities = &mut self.birth.capabilities;
        capabilities.leader = leader.unwrap_or(capabilities.leader);
        capabilities.lmaster = lmaster.unwrap_or(capabilities.lmaster);
        before != self.birth.capabilities
    }

    /// The links of this host: (name, link up), complete. True if something changed for an
    /// interface that public addresses name.
    pub fn set_links<'a>(&mut self, links: impl IntoIterator<Item = (&'a str, bool)>) -> bool {
        let found: BTreeMap<&str, bool> = links.into_iter().collect();
        let mut changed = false;
        for (name, state) in &mut self.interfaces {
            let up = found.get(name.as_str());
            let (present, carrier) = (up.is_some(), up.copied().unwrap_or(false));
            changed |= (present, carrier) != (state.present, state.carrier);
            (state.present, state.carrier) = (present, carrier);
        }
        changed
    }

    /// The operator's view of a link (`ctdb setifacelink`). True if it changed.
    pub fn hold_link(&mut self, name: &str, up: bool) -> Result<bool, LocalError> {
        let state = self
            .interfaces
            .get_mut(name)
            .ok_or_else(|| LocalError::NoInterface(name.to_owned()))?;
        let changed = state.held_down == up;
        state.held_down = !up;
        Ok(changed)
    }

    /// The interface that shall carry an address: of those whose link is up the one with fewest
    /// addresses, the first in file order among equals. It counts as carried from now on.
    pub fn place(&mut self, address: IpAddr) -> Result<(IpNet, String), String> {
        let Some(public) = self
            .birth
            .addresses
            .iter()
            .find(|public| public.net.addr() == address)
        else {
            return Err("this node's public addresses file does not name it".to_owned());
        };
        let best = public
            .interfaces
            .iter()
            .filter(|name| self.interfaces.get(*name).is_some_and(Interface::up))
            .min_by_key(|name| self.references(name));
        let Some(name) = best.cloned() else {
            return Err(format!("no link on {}", public.interfaces.join(", ")));
        };
        let net = public.net;
        self.active.insert(address, name.clone());
        Ok((net, name))
    }

    /// The address is on no interface any more.
    pub fn unplace(&mut self, address: IpAddr) {
        self.active.remove(&address);
    }

    /// The interface that carries an address.
    pub fn interface_of(&self, address: IpAddr) -> Option<&str> {
        self.active.get(&address).map(String::as_str)
    }

    /// Addresses whose interface has lost its link while another one of theirs is up. They count
    /// as carried by the new one from now on.
    pub fn relocate(&mut self) -> Vec<Relocation> {
        let stranded: Vec<(IpAddr, String)> = self
            .active
            .iter()
            .filter(|(_, name)| !self.interfaces.get(*name).is_some_and(Interface::up))
            .map(|(address, name)| (*address, name.clone()))
            .collect();
        let mut moves = Vec::new();
        for (address, from) in stranded {
            if let Ok((net, to)) = self.place(address) {
                moves.push(Relocation { net, from, to });
            }
        }
        moves
    }

    fn references(&self, name: &str) -> u32 {
        self.active
            .values()
            .filter(|active| *active == name)
            .count() as u32
    }

    /// Own flags; DISCONNECTED, DELETED and UNKNOWN are others' to see.
    pub fn flags(&self) -> NodeFlags {
        let mut flags = NodeFlags::empty();
        flags.set(NodeFlags::UNHEALTHY, !self.healthy);
        flags.set(NodeFlags::DISABLED, self.disabled.is_some());
        flags.set(NodeFlags::STOPPED, self.stopped.is_some());
        flags.set(NodeFlags::BANNED, self.banned.is_some());
        flags
    }

    /// Whether this node may lead: it has the capability, is active and stays.
    pub fn may_lead(&self) -> bool {
        self.birth.capabilities.leader && !self.flags().is_inactive()
    }

    /// Why the node is not `OK`; without the rest of a ban, which changes with every second.
    fn reason(&self) -> String {
        let mut reasons = Vec::new();
        if let Some((_, reason)) = &self.banned {
            reasons.push(format!("banned: {reason}"));
        }
        if let Some(reason) = &self.stopped {
            reasons.push(format!("stopped: {reason}"));
        }
        if let Some(reason) = &self.disabled {
            reasons.push(format!("disabled: {reason}"));
        }
        if !self.healthy {
            reasons.push(format!("unhealthy: {}", self.unhealthy_reason));
        }
        reasons.join("; ")
    }

    /// When the ban ends, if there is one.
    pub fn banned_until(&self) -> Option<BootTime> {
        self.banned.as_ref().map(|(until, _)| *until)
    }

    /// Interfaces with their state, for display.
    pub fn interfaces(&self) -> Vec<(InterfaceInfo, &'static str)> {
        self.interfaces
            .iter()
            .map(|(name, state)| {
                let why = if !state.present {
                    "it does not exist"
                } else if !state.carrier {
                    "no link"
                } else if state.held_down {
                    "set down by the operator"
                } else {
                    ""
                };
                let info = InterfaceInfo {
                    name: name.clone(),
                    up: state.up(),
                    references: self.references(name),
                };
                (info, why)
            })
            .collect()
    }

    /// Those interfaces of an address whose link is up.
    pub fn available(&self, address: &PublicAddress) -> Vec<String> {
        address
            .interfaces
            .iter()
            .filter(|name| self.interfaces.get(*name).is_some_and(Interface::up))
            .cloned()
            .collect()
    }

    /// What goes to the other nodes; the version is set by the sender.
    pub fn info(&self) -> NodeInfo {
        NodeInfo {
            version: 0,
            flags: self.flags(),
            run_state: self.run_state,
            capabilities: self.birth.capabilities,
            addresses: self
                .birth
                .addresses
                .iter()
                .map(|public| AddressInfo {
                    net: public.net,
                    interfaces: public.interfaces.clone(),
                    active: self.active.get(&public.net.addr()).cloned(),
                    available: public
                        .interfaces
                        .iter()
                        .any(|name| self.interfaces.get(name).is_some_and(Interface::up)),
                })
                .collect(),
            interfaces: self
                .interfaces()
                .into_iter()
                .map(|(info, _)| info)
                .collect(),
            reason: self.reason(),
            started_at: self.birth.started_at,
            release: self.birth.release.clone(),
            paths: self.birth.paths.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str, interfaces: &[&str]) -> PublicAddress {
        PublicAddress {
            net: text.parse().unwrap(),
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    fn local() -> Local {
        Local::new(Birth {
            capabilities: Capabilities::default(),
            addresses: vec![
                address("10.0.0.1/24", &["eth0", "eth1"]),
                address("10.0.0.2/24", &["eth0", "eth1"]),
                address("10.0.1.1/24", &["eth2"]),
            ],
            disabled: false,
            stopped: false,
            started_at: 1,
            release: "x".to_owned(),
            paths: Vec::new(),
        })
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_spread_over_interfaces_and_follow_the_link() {
        let mut local = local();
        assert_eq!(
            local.place(ip("10.0.0.1")).unwrap_err(),
            "no link on eth0, eth1"
        );
        assert!(local.set_links([("eth0", true), ("eth1", true), ("lo", true)]));
        assert!(
            !local.set_links([("eth0", true), ("eth1", true)]),
            "no change of what counts"
        );
        assert_eq!(local.place(ip("10.0.0.1")).unwrap().1, "eth0");
        assert_eq!(local.place(ip("10.0.0.2")).unwrap().1, "eth1");
        assert!(local.place(ip("10.0.1.1")).is_err(), "eth2 is missing");
        assert!(local.place(ip("10.9.9.9")).is_err());
        local.set_links([("eth1", true)]);
        let moves = local.relocate();
        assert_eq!(moves.len(), 1);
        assert_eq!(
            (moves[0].from.as_str(), moves[0].to.as_str()),
            ("eth0", "eth1")
        );
        local.set_links([]);
        assert!(
            local.relocate().is_empty(),
            "nowhere to go: the leader decides"
        );
        assert!(
            local
                .info()
                .addresses
                .iter()
                .all(|address| !address.available)
        );
    }

    #[test]
    fn the_operators_link_counts_like_a_cable() {
        let mut local = local();
        local.set_links([("eth2", true)]);
        assert!(local.info().addresses[2].available);
        assert_eq!(local.hold_link("eth2", false), Ok(true));
        assert_eq!(local.hold_link("eth2", false), Ok(false));
        assert!(!local.info().addresses[2].available);
        assert!(local.hold_link("eth9", true).is_err());
    }

    #[test]
    fn verbs_set_flags_and_say_whether_they_changed_something() {
        let mut local = local();
        let now = BootTime::from_millis(1000);
        assert_eq!(local.flags(), NodeFlags::UNHEALTHY);
        assert!(local.set_health(Ok(())));
        assert_eq!(local.verb(now, NodeVerb::Disable, None, None), Ok(true));
        assert_eq!(local.verb(now, NodeVerb::Disable, None, None), Ok(false));
        assert!(local.may_lead(), "a disabled node may lead");
        assert_eq!(local.verb(now, NodeVerb::Enable, None, None), Ok(true));
        assert_eq!(
            local.verb(now, NodeVerb::Ban, Some(0), None),
            Err(LocalError::NoBanTime)
        );
        assert_eq!(
            local.verb(now, NodeVerb::Ban, None, None),
            Err(LocalError::NoBanTime)
        );
        assert!(
            local
                .verb(now, NodeVerb::Ban, Some(MAX_BAN_S + 1), None)
                .is_err()
        );
        assert_eq!(
            local.verb(now, NodeVerb::Ban, Some(2), Some("test".into())),
            Ok(true)
        );
        assert_eq!(local.info().reason, "banned: test");
        assert!(!local.may_lead());
        assert!(!local.tick(now + Duration::from_millis(1999)));
        assert!(local.tick(now + Duration::from_secs(2)));
        assert_eq!(local.flags(), NodeFlags::empty());
        assert_eq!(local.verb(now, NodeVerb::Stop, None, None), Ok(true));
        assert_eq!(local.flags(), NodeFlags::STOPPED);
        assert_eq!(local.verb(now, NodeVerb::Shutdown, None, None), Ok(true));
        assert_eq!(
            local.verb(now, NodeVerb::Start, None, None),
            Err(LocalError::Leaving)
        );
        assert!(!local.advance(RunState::Running), "never back");
    }
}
