//! Events of a node: which of them runs when, what waits for what, how health follows
//! (`spec/cluster.md` 4). Pure: scripts are run by the shell, which tells how each event ended.
//!
//! * One event after another, in the order of their requests, but for these: address events
//!   (`takeip`, `releaseip`, `updateip`) of different addresses run beside each other, up to
//!   [`PARALLEL`]; a `monitor` waits for nothing and nothing waits for it: it is given up when
//!   another event comes, and not begun while one runs or waits (4.3).
//! * The clock of an event starts when it starts; one that waited longer than
//!   [`PATIENCE`] limits is given up as timed out.
//! * Start-up: `setup`, then with right and leader `startrecovery`, `recovered` and `startup`
//!   (again every 5 s until it succeeds), then the first `monitor` at once.
//! * Later recoveries: `startrecovery` and `recovered` again, beside what moves addresses, which never
//!   waits for them; all other events and they wait for each other.

mod monitor;
mod queue;
mod recoveries;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use ctdb_wire::ids::{BootTime, RunState, Term};
use serde::{Deserialize, Serialize};

use monitor::Monitor;
pub use queue::{MAX_WAITING, PARALLEL, PATIENCE, RunId};
use queue::{Order, Queue};
use recoveries::Recoveries;
pub use recoveries::Recovery;

/// A failed `startup` is tried again after this (`spec/cluster.md` 4.4).
const STARTUP_AGAIN: Duration = Duration::from_secs(5);
/// A takeover run whose placement has stood still for this long has ended, even if some address
/// has no host.
const PLACEMENT_STILL: Duration = Duration::from_millis(500);

/// An event with its arguments.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Name, as the scripts get it.
    pub name: String,
    /// Arguments behind the name.
    pub args: Vec<String>,
}

impl Event {
    /// An event without arguments.
    pub fn plain(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            args: Vec::new(),
        }
    }

    /// `takeip` or `releaseip IFACE IP MASKBITS`.
    pub fn address(name: &str, interface: &str, address: IpAddr, bits: u8) -> Self {
        Self {
            name: name.to_owned(),
            args: vec![interface.to_owned(), address.to_string(), bits.to_string()],
        }
    }

    /// `updateip OLDIFACE NEWIFACE IP MASKBITS`.
    pub fn updateip(from: &str, to: &str, address: IpAddr, bits: u8) -> Self {
        Self {
            name: "updateip".to_owned(),
            args: vec![
                from.to_owned(),
                to.to_owned(),
                address.to_string(),
                bits.to_string(),
            ],
        }
    }

    /// The address that an address event is about.
    fn of_address(&self) -> Option<&str> {
        let at = match self.name.as_str() {
            "takeip" | "releaseip" => 1,
            "updateip" => 2,
            _ => return None,
        };
        self.args.get(at).map(String::as_str)
    }

    /// Whether it may run while databases are being recovered (4.4).
    fn during_recovery(&self) -> bool {
        !matches!(
            self.name.as_str(),
            "startup" | "monitor" | "takeip" | "updateip" | "recovered"
        )
    }
}

/// How an event ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Ending {
    /// All scripts succeeded, or none is enabled.
    Done,
    /// This script failed, with this code or for this reason.
    Failed {
        /// Script name, such as `50.samba`.
        script: String,
        /// `exit code 1`, `signal 9`.
        why: String,
    },
    /// The time limit passed.
    TimedOut,
    /// Given up for another event, or refused because others run (`monitor`).
    Cancelled,
    /// There is no such component directory.
    NoDirectory,
    /// It cannot run now; why.
    Refused(Cow<'static, str>),
}

impl Ending {
    /// The result code of the event daemon's protocol (4.2): an error number.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Done => 0,
            Self::NoDirectory => 2,
            Self::Refused(_) => 5,
            Self::Failed { .. } => 8,
            Self::TimedOut => 110,
            Self::Cancelled => 125,
        }
    }

    /// In words.
    pub fn text(&self) -> String {
        match self {
            Self::Done => "ok".to_owned(),
            Self::Failed { script, why } => format!("{script}: {why}"),
            Self::TimedOut => "timed out".to_owned(),
            Self::Cancelled => "given up for another event".to_owned(),
            Self::NoDirectory => "there is no such component".to_owned(),
            Self::Refused(why) => why.clone().into_owned(),
        }
    }
}

/// Times that the configuration gives.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Limits {
    /// `EventScriptTimeout`: one event, all its scripts together.
    pub event: Duration,
    /// `MonitorInterval`: longest distance of monitor events.
    pub monitor_interval: Duration,
    /// `MonitorTimeoutCount`: time-outs in a row that make the node unhealthy.
    pub monitor_timeouts: u32,
}

/// Who waits for an event's end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Asker {
    /// This machine itself.
    Own,
    /// Somebody outside, by a number of the shell's.
    Outside(u64),
}

/// What happens.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Input {
    /// Clients can connect: `setup` may run.
    Ready,
    /// The node has right and leader for the first time.
    Serve,
    /// How recoveries stand, when that changes.
    Recovery(Recovery),
    /// An address event, or whatever a client asks for.
    Ask {
        /// A number of the shell's that [`Effect::Answer`] carries.
        ask: u64,
        /// What.
        event: Event,
        /// Its own limit instead of that of the configuration; zero: none.
        limit: Option<Duration>,
        /// Scripts behind one that failed run too.
        all: bool,
    },
    /// The shell ran the scripts to their end.
    Ended(RunId, Ending),
    /// Whether the node may monitor: active, databases thawed, no recovery.
    Situation {
        /// Not banned, stopped or disconnected.
        active: bool,
        /// Databases are being recovered, or frozen.
        recovering: bool,
    },
    /// What the leader says about who hosts what.
    Placement {
        /// The leader's term.
        term: Term,
        /// Number within the term.
        version: u64,
        /// Every address has a host.
        whole: bool,
        /// Some address has a host.
        hosted: bool,
    },
    /// The configuration's times changed.
    Limits(Limits),
    /// The orderly end has handed over: `shutdown` runs.
    Shutdown,
    /// Time passes; at least every 100 ms.
    Tick,
    /// This node has taken or let go addresses, and asks for their events next: the run has begun,
    /// whatever the leader has said.
    Moves,
}

/// What the shell does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Effect {
    /// Run the scripts of this event.
    Run {
        /// Named in [`Input::Ended`].
        run: RunId,
        /// What.
        event: Event,
        /// All scripts together; `None`: no limit.
        limit: Option<Duration>,
        /// Scripts behind one that failed run too.
        all: bool,
    },
    /// End the scripts of this run; nobody waits for it any more.
    Cancel(RunId),
    /// The answer to [`Input::Ask`].
    Answer {
        /// Of the question.
        ask: u64,
        /// How the event ended.
        ending: Ending,
    },
    /// The run state moves on.
    Reach(RunState),
    /// Services are fit, or why not.
    Health(Result<(), String>),
    /// `notify.sh` is told: `init`, `setup`, `startup`, `healthy`, `unhealthy` (`spec/cluster.md` 2.13).
    Notify(Cow<'static, str>),
    /// An event of the node's own ended badly: for log and history.
    Bad {
        /// Event name.
        event: String,
        /// How.
        ending: Ending,
    },
    /// The daemon cannot start.
    Fatal(String),
    /// `shutdown` has run.
    Down,
    /// Addresses have been distributed, and the scripts know: `ipreallocated` of a takeover run has
    /// ended here, well or not.
    Reallocated,
    /// Scripts have heard of a recovery's end: behind it comes a takeover run, if this node leads.
    Recovered,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum Phase {
    Waiting,
    Setup,
    FirstRecovery,
    /// `startup` runs.
    Startup,
    /// It failed and is tried again then.
    StartupAt(BootTime),
    Running,
    Down,
}

/// A takeover run as seen from one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Run {
    /// Of the newest placement.
    moved_at: BootTime,
    whole: bool,
}

/// The event machine of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Events {
    limits: Limits,
    phase: Phase,
    queue: Queue,
    monitor: Monitor,
    placement: Option<(Term, u64)>,
    /// Some address had a host in it.
    hosted: bool,
    takeover: Option<Run>,
    recoveries: Recoveries,
    recovering: bool,
    active: bool,
}

impl Events {
    /// A daemon that starts; `init` has run already.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Waiting,
            queue: Queue::default(),
            monitor: Monitor::default(),
            placement: None,
            hosted: false,
            takeover: None,
            recoveries: Recoveries::default(),
            recovering: false,
            active: true,
        }
    }

    /// One step at `now`.
    pub fn handle(&mut self, now: BootTime, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        match input {
            Input::Ready => {
                if self.phase == Phase::Waiting {
                    self.phase = Phase::Setup;
                    out.push(Effect::Notify("init".into()));
                    out.push(Effect::Reach(RunState::Setup));
                    self.own(now, Event::plain("setup"), &mut out);
                }
            }
            Input::Serve => {
                if self.phase == Phase::FirstRecovery {
                    self.begin_startup(now, &mut out);
                }
            }
            Input::Recovery(stand) => {
                let count = matches!(
                    self.phase,
                    Phase::Startup | Phase::StartupAt(_) | Phase::Running
                );
                self.recoveries.follow(now, stand, count);
            }
            Input::Ask {
                ask,
                event,
                limit,
                all,
            } => self.ask(now, ask, event, limit, all, &mut out),
            Input::Ended(run, ending) => self.ended(now, run, ending, &mut out),
            Input::Situation { active, recovering } => {
                self.active = active;
                self.recovering = recovering;
            }
            Input::Placement {
                term,
                version,
                whole,
                hosted,
            } => self.placed(now, (term, version), whole, hosted, &mut out),
            Input::Limits(limits) => self.limits = limits,
            Input::Shutdown => self.shutdown(now, &mut out),
            Input::Tick => {}
            Input::Moves => {
                if self.phase == Phase::Running && self.takeover.is_none() {
                    self.run(now, false, true, &mut out);
                }
            }
        }
        self.due(now, &mut out);
        self.queue.start(now, self.recovering, &mut out);
        out
    }

    /// The run state that the machine has brought about is [`RunState::Running`].
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    fn order(&self, event: Event) -> Order {
        Order {
            asker: Asker::Own,
            event,
            limit: Some(self.limits.event),
            all: false,
        }
    }

    /// An event of the node's own.
    fn own(&mut self, now: BootTime, event: Event, out: &mut Vec<Effect>) {
        let order = self.order(event);
        self.submit(now, order, out);
    }

    fn give_up_monitor(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        if let Some(run) = self.monitor.give_up() {
            // It is not waited for; its end means nothing any more.
            self.queue.forget(run);
            out.push(Effect::Cancel(run));
            self.monitor.cancelled(now);
        }
    }

    fn submit(&mut self, now: BootTime, order: Order, out: &mut Vec<Effect>) {
        self.give_up_monitor(now, out);
        if let Err(order) = self.queue.push(now, order) {
            let ending = Ending::Refused("too many events wait".into());
            Self::tell(&order, ending, out);
        }
    }

    fn ask(
        &mut self,
        now: BootTime,
        ask: u64,
        event: Event,
        limit: Option<Duration>,
        all: bool,
        out: &mut Vec<Effect>,
    ) {
        let answer = |ending| Effect::Answer { ask, ending };
        if self.recovering && !event.during_recovery() && event.of_address().is_none() {
            out.push(answer(Ending::Refused(
                "databases are being recovered".into(),
            )));
            return;
        }
        let order = Order {
            asker: Asker::Outside(ask),
            limit: match limit {
                None => Some(self.limits.event),
                Some(Duration::ZERO) => None,
                some => some,
            },
            event,
            all,
        };
        if order.event.name == "monitor" {
            // Not begun beside another event (4.3).
            if self.queue.is_idle() && !self.monitor.is_running() {
                let run = self.queue.begin(now, order, out);
                self.monitor.began(run);
            } else {
                out.push(answer(Ending::Cancelled));
            }
            return;
        }
        self.submit(now, order, out);
    }

    fn tell(order: &Order, ending: Ending, out: &mut Vec<Effect>) {
        match order.asker {
            Asker::Outside(ask) => out.push(Effect::Answer { ask, ending }),
            Asker::Own if ending == Ending::Done => {}
            Asker::Own => out.push(Effect::Bad {
                event: order.event.name.clone(),
                ending,
            }),
        }
    }

    fn ended(&mut self, now: BootTime, run: RunId, ending: Ending, out: &mut Vec<Effect>) {
        let Some(order) = self.queue.ended(run) else {
            return;
        };
        if self.monitor.is(run) {
            self.monitor.ended(now, &ending, &self.limits, out);
            if let Asker::Outside(_) = order.asker {
                Self::tell(&order, ending, out);
            }
            return;
        }
        if order.asker == Asker::Own {
            if self.recoveries.ended(now, run) {
                out.push(Effect::Recovered);
            }
            match (order.event.name.as_str(), self.phase) {
                ("setup", Phase::Setup) => {
                    if ending == Ending::Done {
                        self.phase = Phase::FirstRecovery;
                        out.push(Effect::Notify("setup".into()));
                        out.push(Effect::Reach(RunState::FirstRecovery));
                    } else {
                        let text = format!("the setup event failed: {}", ending.text());
                        out.push(Effect::Fatal(text));
                    }
                }
                ("startup", Phase::Startup) => {
                    if ending == Ending::Done {
                        self.phase = Phase::Running;
                        out.push(Effect::Reach(RunState::Running));
                        out.push(Effect::Notify("startup".into()));
                        self.monitor.first(now);
                    } else {
                        self.phase = Phase::StartupAt(now + STARTUP_AGAIN);
                    }
                }
                ("shutdown", _) => out.push(Effect::Down),
                ("ipreallocated", _) => out.push(Effect::Reallocated),
                _ => {}
            }
        }
        Self::tell(&order, ending, out);
    }

    fn begin_startup(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        self.phase = Phase::Startup;
        out.push(Effect::Reach(RunState::Startup));
        for name in ["startrecovery", "recovered", "startup"] {
            self.own(now, Event::plain(name), out);
        }
    }

    fn placed(
        &mut self,
        now: BootTime,
        which: (Term, u64),
        whole: bool,
        hosted: bool,
        out: &mut Vec<Effect>,
    ) {
        if self.placement.is_some_and(|known| known >= which) {
            return;
        }
        self.placement = Some(which);
        let addresses = std::mem::replace(&mut self.hosted, hosted) || hosted;
        if self.phase != Phase::Running {
            return;
        }
        self.run(now, whole, addresses, out);
    }

    /// A takeover run begins or goes on; `moves`: some address is or was hosted. Where none is, scripts
    /// hear of the end alone, as with CTDB.
    fn run(&mut self, now: BootTime, whole: bool, moves: bool, out: &mut Vec<Effect>) {
        if self.takeover.is_none() && !self.queue.reopen(moves) && moves {
            self.own(now, Event::plain(queue::BEGIN), out);
        }
        self.takeover = Some(Run {
            moved_at: now,
            whole,
        });
    }

    fn shutdown(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        if self.phase == Phase::Down {
            return;
        }
        self.phase = Phase::Down;
        // A script that hangs does not hold up the end.
        for (run, order) in self.queue.drop_running() {
            out.push(Effect::Cancel(run));
            Self::tell(&order, Ending::Cancelled, out);
        }
        for order in self.queue.drop_waiting() {
            Self::tell(&order, Ending::Cancelled, out);
        }
        self.own(now, Event::plain("shutdown"), out);
    }

    /// What time brings.
    fn due(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        for order in self.queue.expire(now) {
            Self::tell(&order, Ending::TimedOut, out);
            if order.asker == Asker::Own && order.event.name == "startup" {
                self.phase = Phase::StartupAt(now + STARTUP_AGAIN);
            } else if order.asker == Asker::Own && order.event.name == "ipreallocated" {
                out.push(Effect::Reallocated);
            }
        }
        if let Phase::StartupAt(at) = self.phase
            && at <= now
        {
            self.phase = Phase::Startup;
            self.own(now, Event::plain("startup"), out);
        }
        if let Some(run) = self.takeover
            && (run.whole || now.since(run.moved_at) >= PLACEMENT_STILL)
        {
            self.takeover = None;
            self.own(now, Event::plain(queue::END), out);
        }
        self.recovery_due(now, out);
        let fit = self.phase == Phase::Running && self.active && !self.recovering;
        if self.monitor.is_due(now, fit, &self.limits) && self.queue.is_idle() {
            let order = self.order(Event::plain("monitor"));
            let run = self.queue.begin(now, order, out);
            self.monitor.began(run);
        }
    }

    /// `startrecovery` and `recovered` of a recovery after the start.
    fn recovery_due(&mut self, now: BootTime, out: &mut Vec<Effect>) {
        if !self.active || self.phase == Phase::Down {
            self.recoveries.forget();
        }
        if !matches!(self.phase, Phase::Running | Phase::StartupAt(_)) {
            return;
        }
        let Some(name) = self.recoveries.due(now) else {
            return;
        };
        self.give_up_monitor(now, out);
        if self.queue.only_addresses_move() {
            let order = self.order(Event::plain(name));
            let run = self.queue.begin(now, order, out);
            self.recoveries.began(run);
        }
    }
}
