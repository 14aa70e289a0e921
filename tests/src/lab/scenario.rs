//! A failover from beginning to end: a healthy cluster under probes, one fault, what followed.
//! The demo, the tests and the benchmarks are made of these.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use nix::sys::signal::Signal;
use serde::Serialize;

use super::bystander::{Bystander, disturbances};
use super::observe::{Observer, Report};
use super::probe::{Outage, Prober, Record, Target};
use super::timeline::{Event, human};
use super::{Freeze, Lab, Links, Service, Stamp};

/// What happens to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fail {
    /// All its cables are pulled.
    Links,
    /// Its daemon is killed (SIGKILL); the host lives on.
    Daemon,
    /// All its processes stop in their tracks (SIGSTOP); its kernel lives on.
    Freeze,
    /// It is drained: `ctdb disable`.
    Drain,
    /// Its daemon is stopped gracefully (SIGTERM).
    Stop,
    /// One of its addresses is moved: `ctdb moveip`.
    Move,
    /// It loses power.
    Power,
}

impl Fail {
    /// Word for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::Daemon => "daemon",
            Self::Freeze => "freeze",
            Self::Drain => "drain",
            Self::Stop => "stop",
            Self::Move => "move",
            Self::Power => "power",
        }
    }

    /// The node hands over (ADDR-5).
    pub fn planned(self) -> bool {
        matches!(self, Self::Drain | Self::Stop | Self::Move)
    }

    /// Lets it happen to node `pnn`; in a move, `address` goes to node `target`.
    pub fn happen(self, lab: &Lab, pnn: u32, address: Option<IpAddr>, target: u32) -> Result<()> {
        let node = lab.node(pnn);
        match self {
            Self::Links => node.cut_links(Links::All)?,
            Self::Daemon => node.kill_daemon(Signal::SIGKILL)?,
            Self::Freeze => node.freeze(Freeze::Node)?,
            Self::Drain => drop(node.ctdb(&["disable"])?.success().context("ctdb disable")?),
            Self::Stop => drop(node.stop_graceful(Duration::from_mins(1))?),
            Self::Move => {
                let address = address.context("nothing to move")?.to_string();
                let words = ["moveip", &address, &target.to_string()];
                drop(node.ctdb(&words)?.success().context("ctdb moveip")?);
            }
            Self::Power => node.power_loss()?,
        }
        Ok(())
    }

    /// The time after the fault within which every address is served again (ADDR-2), for the
    /// goals of a `standard` profile and the same sums for the others: lease, margin, one
    /// heartbeat and a bit of work; two more heartbeats where a leader has to be elected.
    pub fn bound(self, profile: &str, leader: bool) -> Duration {
        let (lease, beat) = match profile {
            "cautious" => (5000, 1000),
            "fast" => (300, 50),
            _ => (1500, 250),
        };
        let margin = (lease / 5).max(50) + 20;
        let silence = lease + margin + beat + 130;
        Duration::from_millis(match self {
            Self::Drain | Self::Stop | Self::Move => 500,
            _ if leader => silence + 2 * beat,
            Self::Daemon => 300,
            Self::Links | Self::Freeze | Self::Power => silence,
        })
    }
}

/// Whom it strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A node that does not lead.
    Follower,
    /// The leader.
    Leader,
}

/// Age of a cluster at work.
const SETTLED: Duration = Duration::from_secs(2);

/// What is to happen to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What.
    pub fail: Fail,
    /// To whom.
    pub role: Role,
    /// The address that moves is an IPv6 one.
    pub ipv6: bool,
}

impl Plan {
    /// A move is that of an IPv4 address.
    pub fn new(fail: Fail, role: Role) -> Self {
        Self {
            fail,
            role,
            ipv6: false,
        }
    }

    /// As [`Fail::bound`].
    pub fn bound(self, profile: &str) -> Duration {
        self.fail.bound(profile, self.role == Role::Leader)
    }
}

/// A cluster under watch.
pub struct Scene<'a> {
    lab: &'a Lab,
    prober: Prober,
    /// Tells a busy machine from a disturbed address.
    _bystander: Bystander,
    observer: Observer,
    events: Option<Sender<Event>>,
    fail: Fail,
    role: Role,
    victim: u32,
    /// Addresses that the fault takes from the victim.
    affected: Vec<IpAddr>,
    /// Where an address is moved to.
    target: u32,
    /// When it was healed, and the addresses that had nothing to do with the fault but moved then.
    healed: RefCell<Option<(Stamp, Vec<IpAddr>)>>,
}

/// What followed.
#[derive(Debug)]
pub struct Aftermath {
    /// The fault.
    pub fail: Fail,
    /// Whom it struck.
    pub role: Role,
    /// Its number.
    pub victim: u32,
    /// When.
    pub fault: Stamp,
    /// Addresses that had to go elsewhere.
    pub affected: Vec<IpAddr>,
    /// When it was healed, and the addresses that had nothing to do with the fault but were moved
    /// then, in order, to even out what each node hosts.
    pub healed: Option<(Stamp, Vec<IpAddr>)>,
    /// What the prober saw.
    pub records: Vec<Record>,
    /// What it saw of a service that no daemon has anything to do with.
    pub bystander: Record,
    /// What the switch saw.
    pub report: Report,
}

impl Lab {
    /// Starts services and daemons and waits until every node sees every node healthy and every
    /// address hosted; the time from the start of the first daemon to there.
    pub fn bring_up(&self, services: &[Service], limit: Duration) -> Result<Duration> {
        for service in services {
            self.start_service(*service)?;
        }
        let start = Instant::now();
        self.start_daemons()?;
        self.wait_all_healthy(limit)?;
        self.wait_all_served(limit.saturating_sub(start.elapsed()))?;
        Ok(start.elapsed())
    }

    /// Stops all daemons that run and takes everything away; an error that names whatever a
    /// daemon, or the lab itself, left behind.
    pub fn end(self) -> Result<()> {
        let mut left = Vec::new();
        for node in self.nodes().iter().filter(|n| n.is_running()) {
            let status = node.stop_graceful(Duration::from_secs(20))?;
            if !status.success() {
                let pnn = node.pnn();
                left.push(format!(
                    "node {pnn}: stopped with {status}\n{}",
                    node.log_tails(20)
                ));
            }
        }
        for node in self.nodes() {
            left.extend(node.left_behind()?);
        }
        left.extend(self.destroy());
        if !left.is_empty() {
            bail!("left behind: {}", left.join("; "));
        }
        Ok(())
    }

    /// A node of the plan's role that hosts an address, of the plan's family if one is to move.
    pub fn victim(&self, plan: Plan) -> Result<u32> {
        let asked = self
            .hosts()
            .iter()
            .find(|n| n.is_running())
            .context("no daemon runs")?;
        let leader = asked.leader_seen()?.context("there is no leader")?;
        let owners = asked.ip_owners()?;
        let fits = |pnn: u32| {
            owners.iter().any(|(address, owner)| {
                *owner == Some(pnn) && (plan.fail != Fail::Move || address.is_ipv6() == plan.ipv6)
            })
        };
        let found = match plan.role {
            Role::Leader => Some(leader).filter(|l| fits(*l)),
            Role::Follower => (0..self.settings().nodes).find(|n| *n != leader && fits(*n)),
        };
        found.with_context(|| format!("no node fits {plan:?}: leader {leader}, {owners:?}"))
    }
}

impl<'a> Scene<'a> {
    /// Begins to probe and to observe a cluster that is up. The plain service is probed on all
    /// addresses; `services` beside it on one affected address of each family, since sshd and
    /// smbd fork for each connection.
    pub fn set(
        lab: &'a Lab,
        plan: Plan,
        services: &[Service],
        events: Option<Sender<Event>>,
    ) -> Result<Self> {
        let Plan { fail, role, ipv6 } = plan;
        // What fails is a cluster at work, not one that starts: a witness that has not answered
        // a node yet knows nothing of it (authority.md 11).
        std::thread::sleep(SETTLED);
        let victim = lab.victim(plan)?;
        let owners = lab.node(victim).ip_owners()?;
        let of_victim = owners
            .iter()
            .filter(|(_, o)| **o == Some(victim))
            .map(|(a, _)| *a);
        let affected: Vec<IpAddr> = match fail {
            Fail::Move => of_victim.filter(|a| a.is_ipv6() == ipv6).take(1).collect(),
            _ => of_victim.collect(),
        };
        // Where the fewest are, so that moves after moves do not heap them on one node.
        let target = (0..lab.hosts().len() as u32)
            .filter(|n| *n != victim)
            .min_by_key(|n| owners.values().filter(|o| **o == Some(*n)).count())
            .context("one host alone has nobody to move an address to")?;
        let mut targets: Vec<_> = lab
            .public_addresses()
            .into_iter()
            .map(|a| Target::for_service(Service::Plain, a))
            .collect();
        for service in services.iter().filter(|s| **s != Service::Plain) {
            for v4 in [true, false] {
                let one = affected.iter().find(|a| a.is_ipv4() == v4);
                targets.extend(one.map(|a| {
                    let mut target = Target::for_service(*service, *a);
                    target.every = Duration::from_millis(100);
                    target
                }));
            }
        }
        let bystander = Bystander::start(lab)?;
        targets.push(Bystander::target());
        let observer = lab.observe(events.clone())?;
        let prober = Prober::start(lab.client(), targets, events.clone())?;
        let scene = Self {
            lab,
            prober,
            _bystander: bystander,
            observer,
            events,
            fail,
            role,
            victim,
            affected,
            target,
            healed: RefCell::new(None),
        };
        lab.wait("all probes to be answered", Duration::from_secs(30), || {
            scene.prober.all_good()
        })?;
        Ok(scene)
    }

    /// The node that is to fail.
    pub fn victim(&self) -> u32 {
        self.victim
    }

    /// Addresses that have to go elsewhere.
    pub fn affected(&self) -> &[IpAddr] {
        &self.affected
    }

    fn tell(&self, text: String) {
        if let Some(events) = &self.events {
            let _ = events.send(Event::fault(text));
        }
    }

    /// Lets it fail. The time of the fault is that before the command.
    pub fn strike(&self) -> Result<Stamp> {
        let (lab, pnn) = (self.lab, self.victim);
        let what = match self.fail {
            Fail::Links => "all links cut",
            Fail::Daemon => "daemon killed",
            Fail::Freeze => "all processes frozen",
            Fail::Drain => "ctdb disable",
            Fail::Stop => "SIGTERM to the daemon",
            Fail::Move => "ctdb moveip",
            Fail::Power => "power lost",
        };
        self.tell(format!("node {pnn}: {what}"));
        let fault = Stamp::now();
        self.fail
            .happen(lab, pnn, self.affected.first().copied(), self.target)?;
        Ok(fault)
    }

    /// Waits until another node answers for every affected address and every probe is good again;
    /// the watch then goes on for a second, for late frames.
    pub fn settle(&self, limit: Duration) -> Result<()> {
        let moved = || {
            self.affected.iter().all(|a| {
                self.observer
                    .owner(*a)
                    .is_some_and(|owner| owner != self.victim)
            })
        };
        let what = format!("{:?} to be served by other nodes", self.affected);
        self.lab
            .wait(&what, limit, || moved() && self.prober.all_good())?;
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    }

    /// Undoes the fault and waits until the cluster is whole again.
    pub fn heal(&self, limit: Duration) -> Result<()> {
        let node = self.lab.node(self.victim);
        self.tell(format!("node {}: whole again", self.victim));
        let (healed, before) = (Stamp::now(), self.owners()?);
        match self.fail {
            Fail::Links => node.restore_links(Links::All)?,
            Fail::Freeze => node.thaw(Freeze::Node)?,
            Fail::Drain => drop(node.ctdb(&["enable"])?.success().context("ctdb enable")?),
            Fail::Daemon | Fail::Stop => node.start_daemon()?,
            Fail::Power => {
                node.restore_power()?;
                node.start_service(Service::Plain)?;
                node.start_daemon()?;
            }
            Fail::Move => {}
        }
        self.lab.wait_all_healthy(limit)?;
        self.lab.wait_all_served(limit)?;
        self.lab.wait("all probes to be answered", limit, || {
            self.prober.all_good()
        })?;
        // A node that came back must stay silent for what it no longer holds.
        std::thread::sleep(Duration::from_secs(1));
        // To even out what each hosts the leader may give it others than it had.
        let after = self.owners()?;
        let moved = before.iter().filter(|(address, owner)| {
            !self.affected.contains(address) && after.get(address) != Some(owner)
        });
        let moved = moved.map(|(address, _)| *address).collect();
        self.healed.replace(Some((healed, moved)));
        Ok(())
    }

    /// Who hosts what, as a node says that was not struck.
    fn owners(&self) -> Result<BTreeMap<IpAddr, Option<u32>>> {
        let hosts = self.lab.hosts();
        let others = hosts.iter().filter(|n| n.pnn() != self.victim);
        let asked = others.clone().find(|n| n.is_running());
        asked.context("no other daemon runs")?.ip_owners()
    }

    /// Ends the watch.
    pub fn finish(self, fault: Stamp) -> Result<Aftermath> {
        let mut records = self.prober.finish()?;
        let bystander = records
            .pop_if(|record| Bystander::is(record))
            .context("nothing was seen of the bystander")?;
        Ok(Aftermath {
            fail: self.fail,
            role: self.role,
            victim: self.victim,
            fault,
            affected: self.affected,
            healed: self.healed.into_inner(),
            records,
            bystander,
            report: self.observer.finish()?,
        })
    }

    /// What the prober saw so far.
    pub fn records(&self) -> Vec<Record> {
        let mut records = self.prober.records();
        records.retain(|record| !Bystander::is(record));
        records
    }
}

impl Aftermath {
    fn of(&self, affected: bool) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(move |r| self.affected.contains(&r.target.address.ip()) == affected)
    }

    /// The longest outage of new connections to an affected address.
    pub fn outage(&self) -> Duration {
        self.of(true)
            .map(|r| r.longest_outage(self.fault))
            .max()
            .unwrap_or_default()
    }

    /// The longest of one connect() to an affected address.
    pub fn worst_connect(&self) -> Duration {
        self.of(true)
            .map(|r| r.worst_connect(self.fault))
            .max()
            .unwrap_or_default()
    }

    /// The longest outage of an address that had nothing to do with it, as far as it is not that
    /// the machine was busy.
    pub fn disturbance(&self) -> Duration {
        self.others(|address, outage| !self.moved_back(address, outage))
    }

    /// The longest of an address that was moved when it was over: a move that is planned.
    pub fn evened_out(&self) -> Duration {
        self.others(|address, outage| self.moved_back(address, outage))
    }

    fn moved_back(&self, address: IpAddr, outage: &Outage) -> bool {
        self.healed
            .as_ref()
            .is_some_and(|(at, moved)| outage.start >= *at && moved.contains(&address))
    }

    fn others(&self, count: impl Fn(IpAddr, &Outage) -> bool) -> Duration {
        let outages = self.of(false).flat_map(|r| {
            let found = disturbances(r, &self.bystander).into_iter();
            found.map(move |outage| (r, outage))
        });
        outages
            .filter(|(_, outage)| outage.end.is_none_or(|end| end > self.fault))
            .filter(|(r, outage)| count(r.target.address.ip(), outage))
            .map(|(r, outage)| outage.length(r.taken))
            .max()
            .unwrap_or_default()
    }

    /// Per target the longest time in which new connections failed since the fault, or were slow
    /// without that the machine was busy; `None` while they do.
    pub fn unserved(&self) -> BTreeMap<&str, Option<Duration>> {
        self.of(true)
            .map(|record| {
                let outages = disturbances(record, &self.bystander);
                let over = outages.last().is_none_or(|outage| outage.end.is_some());
                let since = outages
                    .iter()
                    .filter(|outage| outage.end.is_none_or(|end| end > self.fault));
                let longest = since.map(|outage| outage.length(record.taken)).max();
                (
                    record.target.label.as_str(),
                    over.then(|| longest.unwrap_or_default()),
                )
            })
            .collect()
    }

    /// Everything that broke a promise: two answers for an address (ADDR-1), an address not served
    /// within `bound` (ADDR-2), a connection refused (ADDR-4). Empty if all were kept.
    pub fn broken(&self, bound: Duration) -> Vec<String> {
        let mut broken: Vec<String> = self
            .report
            .conflicts()
            .iter()
            .take(10)
            .map(|c| {
                let at = c.at.seconds_from(self.fault);
                format!(
                    "ADDR-1: {} answered by node {} while node {} had it, at {at:+.3} s",
                    c.address, c.intruder, c.owner
                )
            })
            .collect();
        if self.report.lost > 0 {
            broken.push(format!(
                "the observer lost {} frames: no verdict",
                self.report.lost
            ));
        }
        for record in &self.records {
            let refused = record.refused(self.fault);
            if refused > 0 {
                broken.push(format!(
                    "ADDR-4: {} refused {refused} times",
                    record.target.label
                ));
            }
        }
        for (label, unserved) in self.unserved() {
            // The prober's own grain, and what it calls slow.
            let grain = self
                .records
                .iter()
                .find(|r| r.target.label == label)
                .map_or(Duration::ZERO, |r| r.target.every + r.target.slow);
            match unserved {
                None => broken.push(format!("ADDR-2: {label} is not served again")),
                Some(time) if time > bound + grain => broken.push(format!(
                    "ADDR-2: {label} was not served for {}, bound {}",
                    human(time),
                    human(bound)
                )),
                Some(_) => {}
            }
        }
        broken
    }

    /// The same as an error.
    pub fn kept(&self, bound: Duration) -> Result<()> {
        let broken = self.broken(bound);
        if broken.is_empty() {
            return Ok(());
        }
        bail!(
            "{} of the {:?} (node {}): {}",
            self.fail.name(),
            self.role,
            self.victim,
            broken.join("; ")
        )
    }

    /// A table: outage and worst connect() of each target.
    pub fn table(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!(
            "{:<28} {:>12} {:>14} {:>10} {:>8}\n",
            "new connections to", "outage", "worst connect", "refused", "now on"
        );
        for record in &self.records {
            let mark = if self.affected.contains(&record.target.address.ip()) {
                '*'
            } else {
                ' '
            };
            let node = record
                .last_node()
                .map_or_else(String::new, |n| format!("node {n}"));
            let _ = writeln!(
                text,
                "{mark} {:<26} {:>12} {:>14} {:>10} {node:>8}",
                record.target.label,
                human(record.longest_outage(self.fault)),
                human(record.worst_connect(self.fault)),
                record.refused(self.fault),
            );
        }
        text.push_str("* on the node that failed\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Fail;
    use std::time::Duration;

    #[test]
    fn bounds_of_the_standard_profile_are_the_goals() {
        let ms = Duration::from_millis;
        for fail in [Fail::Links, Fail::Freeze, Fail::Power] {
            assert_eq!(fail.bound("standard", false), ms(2200));
            assert_eq!(fail.bound("standard", true), ms(2700));
        }
        assert_eq!(Fail::Daemon.bound("standard", false), ms(300));
        assert!(Fail::Links.bound("fast", true) < ms(1000));
        assert!(Fail::Move.planned() && !Fail::Daemon.planned());
    }
}
