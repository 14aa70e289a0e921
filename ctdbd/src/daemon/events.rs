//! Events of this node: the shell around [`ctdb_core::events`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ctdb_core::coordinator;
use ctdb_core::events::{Effect, Ending, Event, Events, Input, Limits, Recovery, RunId};
use ctdb_core::recording::Step;
use ctdb_wire::api::{ApiError, Done, EventRunView, ScriptView, ScriptsView};
use ctdb_wire::connections::Tenure;
use ctdb_wire::ids::Epoch;
use ipnet::IpNet;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tracing::Level;

use super::actions::Reply;
use super::node::Node;
use crate::clock::boot_now;
use crate::config::{Config, Tunable};
use crate::events::runner::{self, Builtin, Job, Runner};
use crate::events::socket::Wish;
use crate::events::store::Store;
use crate::events::{LEGACY, scripts};
use crate::failover::Job as Work;
use crate::log::LogLevel;
use crate::process::{Children, Owner, Spec};

/// Ended events that may wait for the main loop; at the bound their tasks wait.
pub(super) const FINISHED: usize = 256;
/// Events of other components that run at a time; more are refused.
const MAX_DIRECT: usize = 16;
/// Longest run of `notify.sh`.
const NOTIFY: Duration = Duration::from_secs(30);

/// What the configuration says about events.
#[derive(Clone)]
pub(super) struct Settings {
    events: PathBuf,
    shipped: PathBuf,
    /// `RUN/eventd.socket`.
    pub(super) socket: PathBuf,
    notify: PathBuf,
    env: Vec<(OsString, OsString)>,
    debug: Option<PathBuf>,
    level: Level,
    limits: Limits,
    builtin: Option<Builtin>,
}

impl Settings {
    pub(super) fn new(config: &Config, builtin: bool, interactive: bool) -> Self {
        let paths = &config.paths;
        let location = config
            .settings
            .iter()
            .find(|(key, _)| key.section == "logging" && key.name == "location")
            .map_or_else(String::new, |(_, setting)| {
                setting.text.clone().unwrap_or_default()
            });
        let seconds = |tunable| Duration::from_secs(config.tunables.get(tunable).into());
        Self {
            events: paths.events.clone(),
            shipped: paths.data.join("events"),
            socket: paths.run.join("eventd.socket"),
            notify: paths.notify.clone(),
            env: runner::environment(
                &paths.etc,
                &location,
                config.logging.level.name(),
                interactive,
            ),
            debug: config.event.debug_script.clone(),
            level: match config.legacy.script_log_level {
                LogLevel::Error => Level::ERROR,
                LogLevel::Warning => Level::WARN,
                LogLevel::Notice => Level::INFO,
                LogLevel::Info => Level::DEBUG,
                LogLevel::Debug => Level::TRACE,
            },
            limits: Limits {
                event: seconds(Tunable::EventScriptTimeout),
                monitor_interval: seconds(Tunable::MonitorInterval),
                monitor_timeouts: config.tunables.get(Tunable::MonitorTimeoutCount),
            },
            builtin: builtin
                .then(|| Builtin::new(&paths.data.join("events").join(LEGACY), &paths.scripts)),
        }
    }

    fn runner(&self, children: Children) -> Runner {
        Runner {
            children,
            events: self.events.clone(),
            env: self.env.clone(),
            debug: self.debug.clone(),
            level: self.level,
            builtin: self.builtin.clone(),
        }
    }

    /// `init`, before the transport is up; an error ends the start.
    pub(super) async fn init(&self, children: Children, store: &Store) -> Result<(), String> {
        let (_keep, cancel) = oneshot::channel();
        let job = Job {
            component: LEGACY.to_owned(),
            event: Event::plain("init"),
            limit: Some(self.limits.event),
            all: false,
        };
        let (ending, view) = self.runner(children).run(job, cancel).await;
        store.add(view);
        match ending {
            Ending::Done | Ending::NoDirectory => Ok(()),
            other => Err(format!("the init event failed: {}", other.text())),
        }
    }

    /// What the socket of the old tools needs.
    pub(super) fn context(
        &self,
        store: Store,
        wishes: mpsc::Sender<Wish>,
    ) -> crate::events::socket::Context {
        crate::events::socket::Context {
            events: self.events.clone(),
            shipped: self.shipped.clone(),
            store,
            wishes,
        }
    }
}

/// A run that has ended.
pub(super) struct Finished {
    asked: Asked,
    ending: Ending,
    view: EventRunView,
}

/// Whose run it was.
enum Asked {
    Machine(RunId),
    /// Of another component than `legacy`: those know no order.
    Direct(u64),
}

/// Who waits for an event's end.
enum Answer {
    /// A client of the event socket.
    Socket(oneshot::Sender<i32>),
    /// A client of the API, or another node.
    Api(Reply),
    /// With `addresses = script`: an address that this node was ordered to host.
    Take(Epoch, IpAddr),
    /// The same: one that it was ordered to release.
    Release(IpAddr),
    /// Connection requests to an address wait for its scripts (design.md section 4); and the log.
    LetIn(IpAddr, Event),
    /// The log.
    Log(Event),
}

/// The node's events.
pub(super) struct NodeEvents {
    machine: Events,
    settings: Settings,
    runner: Runner,
    pub(super) store: Store,
    finished: mpsc::Sender<Finished>,
    /// Dropping the sender ends the scripts.
    running: BTreeMap<RunId, oneshot::Sender<()>>,
    answers: BTreeMap<u64, Answer>,
    /// Runs that are not the machine's.
    direct: BTreeMap<u64, (Answer, oneshot::Sender<()>)>,
    next: u64,
    /// What ends the daemon.
    pub(super) fatal: Option<String>,
    /// The orderly end has begun.
    leaving: bool,
    /// `shutdown` has run.
    pub(super) down: bool,
}

impl NodeEvents {
    pub(super) fn new(
        settings: Settings,
        children: Children,
        store: Store,
        finished: mpsc::Sender<Finished>,
    ) -> Self {
        Self {
            machine: Events::new(settings.limits),
            runner: settings.runner(children),
            settings,
            store,
            finished,
            running: BTreeMap::new(),
            answers: BTreeMap::new(),
            direct: BTreeMap::new(),
            next: 0,
            fatal: None,
            leaving: false,
            down: false,
        }
    }

    /// The machine, as it stands.
    pub(super) fn machine(&self) -> &Events {
        &self.machine
    }

    /// Runs it beside the main loop; the scripts are ended when what is returned is dropped.
    fn spawn(&self, asked: Asked, job: Job) -> oneshot::Sender<()> {
        let (runner, finished) = (self.runner.clone(), self.finished.clone());
        let (keep, cancel) = oneshot::channel();
        tokio::spawn(async move {
            let (ending, view) = runner.run(job, cancel).await;
            // Fails only when the main loop has ended.
            let _ = finished
                .send(Finished {
                    asked,
                    ending,
                    view,
                })
                .await;
        });
        keep
    }
}

fn job(component: &str, event: Event, limit: Option<Duration>, all: bool) -> Job {
    Job {
        component: component.to_owned(),
        event,
        limit,
        all,
    }
}

impl Node {
    /// Feeds the machine and carries out what it asks for.
    pub(super) fn event(&mut self, input: Input) {
        let now = boot_now();
        let recorded = self.parts.recorder.is_some().then(|| input.clone());
        let effects = self.parts.events.machine.handle(now, input);
        if let Some(input) = recorded {
            self.record(Step::Events {
                at: now,
                input,
                effects: effects.clone(),
            });
        }
        for effect in effects {
            match effect {
                Effect::Run {
                    run,
                    event,
                    limit,
                    all,
                } => {
                    let job = job(LEGACY, event, limit, all);
                    let keep = self.parts.events.spawn(Asked::Machine(run), job);
                    self.parts.events.running.insert(run, keep);
                }
                Effect::Cancel(run) => drop(self.parts.events.running.remove(&run)),
                Effect::Answer { ask, ending } => {
                    if let Some(answer) = self.parts.events.answers.remove(&ask) {
                        self.event_answer(answer, &ending);
                    }
                }
                Effect::Reach(state) => {
                    tracing::warn!(%state, "run state");
                    self.parts.local.advance(state);
                    self.local_changed();
                }
                Effect::Health(health) => self.health(health),
                Effect::Notify(word) => self.notify(&word),
                Effect::Bad { event, ending } => {
                    let text = format!("{event} event: {}", ending.text());
                    tracing::error!("{text}");
                    let me = Some(self.parts.me.get());
                    self.parts.history.add("event", me, text, &[], &[]);
                }
                Effect::Fatal(text) => self.parts.events.fatal = Some(text),
                Effect::Down => self.parts.events.down = true,
                Effect::Reallocated => {
                    self.dirty = true;
                    self.reallocated = true;
                }
                Effect::Recovered => self.input(coordinator::Input::Run),
            }
        }
    }

    fn health(&mut self, health: Result<(), String>) {
        // CTDB's words, which monitoring looks for.
        let (text, before) = match &health {
            Ok(()) => (
                "Node became HEALTHY.".to_owned(),
                "monitor event OK - node re-enabled",
            ),
            Err(why) => (
                format!("Node became UNHEALTHY. {why}"),
                "monitor event failed - disabling node",
            ),
        };
        if self.parts.local.set_health(health) {
            tracing::warn!("{before}");
            // CTDB logs both as errors.
            tracing::error!("{text}");
            let me = Some(self.parts.me.get());
            self.parts.history.add("health", me, text, &[], &[]);
        }
        self.local_changed();
    }

    fn notify(&mut self, word: &str) {
        let path = self.parts.events.settings.notify.clone();
        let mut spec = Spec::new(
            "notify.sh",
            Owner::Event,
            [path.clone().into(), OsString::from(word)],
        );
        spec.env.clone_from(&self.parts.events.settings.env);
        spec.limit = Some(NOTIFY);
        spec.log = Some(Level::ERROR);
        let children = self.parts.children.clone();
        tokio::spawn(async move {
            // It need not be there.
            if tokio::fs::try_exists(&path).await.unwrap_or(false) {
                children.run(spec).await;
            }
        });
    }

    /// What the machine has to know of the rest of the node, after every step.
    pub(super) fn follow_events(&mut self) {
        let active = !self.parts.local.flags().is_inactive();
        self.event(Input::Situation {
            active,
            recovering: false,
        });
        let (databases, under_way) = self.parts.clients.recoveries_seen();
        let seen = Recovery {
            generation: self.shown_generation(),
            databases,
            under_way,
        };
        if self.told_recovery != Some(seen) {
            self.told_recovery = Some(seen);
            self.event(Input::Recovery(seen));
        }
        if let Some(placement) = self.parts.coordinator.placement() {
            let input = Input::Placement {
                term: placement.term,
                version: placement.version,
                whole: placement.owners.iter().all(|(_, owner)| owner.is_some()),
                hosted: placement.owners.iter().any(|(_, owner)| owner.is_some()),
            };
            self.event(input);
        }
    }

    /// Scripts have ended.
    pub(super) fn event_finished(&mut self, finished: Finished) {
        self.parts.events.store.add(finished.view);
        match finished.asked {
            Asked::Machine(run) => {
                self.parts.events.running.remove(&run);
                // A component without directory has no scripts that could fail.
                let ending = match finished.ending {
                    Ending::NoDirectory => Ending::Done,
                    other => other,
                };
                self.event(Input::Ended(run, ending));
            }
            Asked::Direct(number) => {
                if let Some((answer, _)) = self.parts.events.direct.remove(&number) {
                    self.event_answer(answer, &finished.ending);
                }
            }
        }
    }

    /// A client of the event socket wants an event.
    pub(super) fn event_wish(&mut self, wish: Wish) {
        let answer = Answer::Socket(wish.answer);
        self.event_ask(
            &wish.component,
            wish.event,
            Some(wish.limit),
            wish.all,
            answer,
        );
    }

    /// A client of the API wants one.
    pub(super) fn event_run(
        &mut self,
        component: &str,
        event: Event,
        limit: Option<Duration>,
        all: bool,
        reply: Reply,
    ) {
        self.event_ask(component, event, limit, all, Answer::Api(reply));
    }

    fn event_ask(
        &mut self,
        component: &str,
        event: Event,
        limit: Option<Duration>,
        all: bool,
        answer: Answer,
    ) {
        if component == LEGACY {
            self.parts.events.next += 1;
            let ask = self.parts.events.next;
            self.parts.events.answers.insert(ask, answer);
            self.event(Input::Ask {
                ask,
                event,
                limit,
                all,
            });
            return;
        }
        if !scripts::is_component(component) {
            self.event_answer(answer, &Ending::NoDirectory);
            return;
        }
        if self.parts.events.direct.len() >= MAX_DIRECT {
            self.event_answer(answer, &Ending::Refused("too many events run".into()));
            return;
        }
        let limit = limit.unwrap_or(self.parts.events.settings.limits.event);
        let limit = (limit > Duration::ZERO).then_some(limit);
        self.parts.events.next += 1;
        let number = self.parts.events.next;
        let job = job(component, event, limit, all);
        let keep = self.parts.events.spawn(Asked::Direct(number), job);
        self.parts.events.direct.insert(number, (answer, keep));
    }

    fn event_answer(&mut self, answer: Answer, ending: &Ending) {
        match answer {
            // Fails only when the client has gone.
            Answer::Socket(client) => drop(client.send(ending.errno())),
            Answer::Api(reply) => {
                let answer = match ending {
                    Ending::Done => serde_json::to_value(Done {
                        changed: true,
                        message: "the event ran".to_owned(),
                    })
                    .map_err(|error| ApiError::new(500, "internal", error.to_string())),
                    other => Err(failure(other)),
                };
                self.actions.answer(reply, answer);
            }
            Answer::Take(epoch, address) => {
                // A hung script counts as done: whether the address is there shows (3.5).
                let result = match ending {
                    Ending::Done | Ending::TimedOut => Ok(()),
                    other => Err(format!("takeip: {}", other.text())),
                };
                if result.is_err() {
                    self.parts.local.unplace(address);
                } else {
                    self.script_announce(address);
                    self.parts.clients.taken(address);
                    if let Some((term, seq)) = self.parts.coordinator.holder().last_order() {
                        self.parts.connections.taken(address, Tenure { term, seq });
                    }
                }
                self.local_changed();
                self.input(coordinator::Input::Taken {
                    epoch,
                    results: vec![(address, result)],
                });
            }
            Answer::Release(address) => {
                if *ending != Ending::Done {
                    tracing::error!(%address, why = ending.text(), "releaseip failed; with [failover] addresses = script nobody else takes the address away");
                }
                self.parts.clients.released(address);
                self.parts.local.unplace(address);
                self.local_changed();
                self.input(coordinator::Input::Released(vec![address]));
            }
            Answer::LetIn(address, event) => {
                self.log_event(&event, ending);
                // Of a takeover whose address has gone and come again, another event waits.
                let waits = self
                    .parts
                    .events
                    .answers
                    .values()
                    .any(|answer| matches!(answer, Answer::LetIn(one, _) if *one == address));
                if !waits {
                    self.parts.executor.submit(Work::LetIn(vec![address]));
                }
            }
            Answer::Log(event) => self.log_event(&event, ending),
        }
    }

    fn log_event(&mut self, event: &Event, ending: &Ending) {
        if *ending != Ending::Done {
            let text = format!("{} {}: {}", event.name, event.args.join(" "), ending.text());
            tracing::error!("{text}");
            let me = Some(self.parts.me.get());
            self.parts.history.add("event", me, text, &[], &[]);
        }
    }

    /// Connection requests to addresses that are taken now wait for scripts.
    pub(super) fn holds_for_scripts(&self) -> bool {
        let builtin = self.parts.events.settings.builtin.as_ref();
        builtin.is_some_and(|builtin| builtin.told.load(Ordering::Relaxed))
    }

    /// The list that scripts read says what this node hosts.
    pub(super) fn note_hosted(&self) {
        if let Some(builtin) = &self.parts.events.settings.builtin {
            let local = &self.parts.local;
            let addresses = local.addresses().iter().map(|public| public.net.addr());
            let hosted = addresses.filter(|address| local.interface_of(*address).is_some());
            builtin.cache.set(hosted.collect());
        }
    }

    fn address_event(&mut self, event: Event, answer: Option<Answer>) {
        let answer = answer.unwrap_or_else(|| Answer::Log(event.clone()));
        self.event_ask(LEGACY, event, None, false, answer);
    }

    /// Built in: this node has taken these; the scripts are told.
    pub(super) fn told_taken(&mut self, taken: &[(IpNet, String)]) {
        self.note_hosted();
        if !taken.is_empty() {
            self.event(Input::Moves);
        }
        for (net, interface) in taken {
            let event = Event::address("takeip", interface, net.addr(), net.prefix_len());
            let answer = Answer::LetIn(net.addr(), event.clone());
            self.address_event(event, Some(answer));
        }
    }

    /// Built in: these have fallen silent.
    pub(super) fn told_released(&mut self, released: &[(IpNet, String)]) {
        self.note_hosted();
        if !released.is_empty() {
            self.event(Input::Moves);
        }
        for (net, interface) in released {
            let event = Event::address("releaseip", interface, net.addr(), net.prefix_len());
            self.address_event(event, None);
        }
    }

    /// Built in: these have changed their interface.
    pub(super) fn told_moved(&mut self, moves: &[ctdb_core::local::Relocation]) {
        for one in moves {
            let net = one.net;
            let event = Event::updateip(&one.from, &one.to, net.addr(), net.prefix_len());
            self.address_event(event, None);
        }
    }

    /// With `addresses = script`: the scripts do it.
    pub(super) fn script_take(&mut self, epoch: Epoch, net: IpNet, interface: &str) {
        let event = Event::address("takeip", interface, net.addr(), net.prefix_len());
        self.address_event(event, Some(Answer::Take(epoch, net.addr())));
    }

    /// The same for a release.
    pub(super) fn script_release(&mut self, address: IpAddr) {
        let interface = self
            .parts
            .local
            .interface_of(address)
            .unwrap_or("__none__")
            .to_owned();
        let bits = self
            .parts
            .local
            .addresses()
            .iter()
            .find(|public| public.net.addr() == address)
            .map_or(if address.is_ipv4() { 32 } else { 128 }, |public| {
                public.net.prefix_len()
            });
        self.parts.connections.frozen(address);
        self.parts.executor.submit(Work::Hush(address));
        let event = Event::address("releaseip", &interface, address, bits);
        self.address_event(event, Some(Answer::Release(address)));
    }

    /// The orderly end: with `addresses = script` what is still held is released, then `shutdown`
    /// runs. To be called again until [`NodeEvents::down`].
    pub(super) fn events_leave(&mut self) {
        if !self.parts.builtin && !self.parts.events.leaving {
            let held: Vec<IpAddr> = self
                .parts
                .local
                .addresses()
                .iter()
                .map(|public| public.net.addr())
                .filter(|address| self.parts.local.interface_of(*address).is_some())
                .collect();
            for address in held {
                self.script_release(address);
            }
        }
        self.parts.events.leaving = true;
        let releasing = |answer: &Answer| matches!(answer, Answer::Release(_));
        if !self.parts.events.answers.values().any(releasing) {
            self.event(Input::Shutdown);
        }
    }

    /// The last run of an event, for the API.
    pub(super) fn event_status(&self, component: &str, event: &str) -> Result<Value, ApiError> {
        if !scripts::is_component(component)
            || !self.parts.events.settings.events.join(component).is_dir()
        {
            return Err(ApiError::new(
                404,
                "no_such_component",
                format!("Event dir for {component} does not exist"),
            ));
        }
        let run = self
            .parts
            .events
            .store
            .last(component, event)
            .ok_or_else(|| {
                ApiError::new(
                    404,
                    "never_ran",
                    format!("Event {event} has never run in {component}"),
                )
            })?;
        serde_json::to_value(run).map_err(|error| ApiError::new(500, "internal", error.to_string()))
    }

    /// Scripts of a component, for the API.
    pub(super) fn event_scripts(&self, component: &str) -> Result<Value, ApiError> {
        let settings = &self.parts.events.settings;
        let missing = || {
            let text = format!(
                "there is no component {component} in {}",
                settings.shipped.display()
            );
            ApiError::new(404, "no_such_component", text)
        };
        if !scripts::is_component(component) {
            return Err(missing());
        }
        let found = scripts::list(&settings.events, &settings.shipped, component)
            .map_err(|error| ApiError::new(500, "system", error.to_string()))?
            .ok_or_else(missing)?;
        let scripts = found
            .into_iter()
            .map(|script| ScriptView {
                name: script.name,
                enabled: script.enabled,
                shipped: script.shipped,
            })
            .collect();
        serde_json::to_value(ScriptsView { scripts })
            .map_err(|error| ApiError::new(500, "internal", error.to_string()))
    }

    /// Enables or disables one, for the API.
    pub(super) fn event_script(
        &self,
        component: &str,
        script: &str,
        enable: bool,
    ) -> Result<Value, ApiError> {
        let settings = &self.parts.events.settings;
        scripts::set_enabled(
            &settings.events,
            &settings.shipped,
            component,
            script,
            enable,
        )
        .map_err(|error| {
            let code = match error.errno() {
                2 => "no_such_script",
                22 => "bad_script",
                _ => "system",
            };
            ApiError::new(
                if code == "system" { 500 } else { 404 },
                code,
                error.to_string(),
            )
        })?;
        serde_json::to_value(Done {
            changed: true,
            message: format!(
                "{script} is {}",
                if enable { "enabled" } else { "disabled" }
            ),
        })
        .map_err(|error| ApiError::new(500, "internal", error.to_string()))
    }
}

fn failure(ending: &Ending) -> ApiError {
    let (status, code) = match ending {
        Ending::NoDirectory => (404, "no_such_component"),
        Ending::TimedOut => (504, "event_timed_out"),
        Ending::Cancelled => (409, "event_cancelled"),
        Ending::Refused(_) => (503, "event_refused"),
        _ => (502, "event_failed"),
    };
    ApiError::new(status, code, ending.text())
}
