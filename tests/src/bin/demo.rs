//! `cargo xtask demo`: a cluster in network namespaces, one node that fails, and what becomes of
//! its addresses, drawn as it happens. Exits 0 only if no address was answered by two nodes,
//! every address was served again in time and nothing was left behind.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use ctdb_tests::lab::cli::wait_until;
use ctdb_tests::lab::held::{Held, Kind, Wanted};
use ctdb_tests::lab::scenario::{Aftermath, Fail, Plan, Role, Scene};
use ctdb_tests::lab::sessions::Session;
use ctdb_tests::lab::timeline::{Event, Timeline, human, lanes};
use ctdb_tests::lab::{Lab, Node, Service, Stamp, history};

/// Shows three file servers and a client, lets one of them fail, and draws what happens.
#[derive(Parser)]
#[command(bin_name = "cargo xtask demo")]
struct Options {
    /// What happens to the node
    #[arg(long, value_enum, default_value = "links")]
    fail: Fail,
    /// Which node it happens to
    #[arg(long, value_enum, default_value = "follower")]
    role: Role,
    /// Timing profile: cautious, standard or fast
    #[arg(long, default_value = "standard")]
    profile: String,
    /// Leave the cluster running and say how to get into it
    #[arg(long)]
    keep: bool,
}

/// From the bound of the takeover to the last client that was told: three rounds of tickles.
const TOLD: Duration = Duration::from_millis(2500);

const SERVICES: [Service; 3] = [Service::Ssh, Service::Smb, Service::Plain];

const PICTURE: &str = "  node 0         node 1         node 2         client
  priv0  pub0    priv0  pub0    priv0  pub0    eth0
    |      |       |      |       |      |       |
  ==|======+=======|======+=======|======+=======+==   public network 10.99.2.0/24, fd00:99:2::/64
    +==============+==============+=================   private network 10.99.1.0/24
";

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(wrong) if wrong.is_empty() => {
            println!("demo: all promises kept");
            ExitCode::SUCCESS
        }
        Ok(wrong) => {
            for line in wrong {
                println!("demo: {line}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that went wrong, in words.
fn run(options: &Options) -> Result<Vec<String>> {
    println!(
        "Three nodes and a client; OpenSSH, Samba and a plain TCP service on all nodes:\n\n{PICTURE}"
    );
    let mut lab = Lab::builder().profile(&options.profile).build()?;
    println!("starting the services and the daemons ...");
    let took = lab.bring_up(&SERVICES, Duration::from_secs(30))?;
    println!(
        "all nodes healthy and all addresses served {} after the daemons' start\n",
        human(took)
    );
    show(lab.node(0))?;
    let aftermath = fail(&lab, options);
    if options.keep {
        lab.keep()?;
        println!(
            "\nThe cluster stays. To get into it, and at last rid of it:\n\n{}",
            lab.how_to_enter()
        );
        return aftermath;
    }
    let mut wrong = aftermath?;
    println!("stopping the daemons ...");
    wrong.extend(lab.end().err().map(|error| format!("{error:#}")));
    Ok(wrong)
}

/// The cluster as an operator sees it.
fn show(node: &Node) -> Result<()> {
    for command in ["status", "ip"] {
        println!("# ctdb {command}");
        println!("{}", node.ctdb(&[command])?.success()?.trim_end());
    }
    println!();
    Ok(())
}

fn fail(lab: &Lab, options: &Options) -> Result<Vec<String>> {
    let plan = Plan::new(options.fail, options.role);
    let bound = plan.bound(&options.profile);
    let timeline = Timeline::start();
    let begin = Stamp::now();
    let scene = Scene::set(lab, plan, &SERVICES, Some(timeline.events()))?;
    // A frozen or dead node does not tell its story.
    let tellers: Vec<u32> = (0..lab.settings().nodes)
        .filter(|pnn| options.fail.planned() || *pnn != scene.victim())
        .collect();
    println!(
        "new connections: {} every 5 ms, ssh and smb every 100 ms; bound of profile {} for this: {}\n",
        Service::Plain.name(),
        options.profile,
        human(bound)
    );
    let clients = Clients::open(lab, &scene, &timeline)?;
    clients.held.wait_known(lab, Duration::from_secs(10))?;
    let stop = AtomicBool::new(false);
    let events = timeline.events();
    let story = thread::scope(|scope| {
        scope.spawn(|| history::follow(lab, &tellers, Stamp::now(), &events, &stop));
        let story = play(&scene, &clients, bound);
        stop.store(true, Ordering::Relaxed);
        story
    });
    // A scene that did not come to its end is shown as far as it came.
    let (fault, trouble) = match story {
        (Some(fault), trouble) => (fault, trouble),
        (None, trouble) => return Err(trouble.context("the fault")?).context("demo"),
    };
    let told = clients.finish(fault)?;
    let aftermath = scene.finish(fault)?;
    let events = timeline.finish()?;
    print(&aftermath, &events, begin);
    println!("\n{}", table(&told));
    let mut wrong = aftermath.broken(bound);
    wrong.extend(told.iter().filter_map(|client| client.wrong(bound)));
    wrong.extend(trouble.map(|error| format!("{error:#}")));
    Ok(wrong)
}

/// The fault, its aftermath and its end: when it was, and what stopped the play.
fn play(
    scene: &Scene<'_>,
    clients: &Clients,
    bound: Duration,
) -> (Option<Stamp>, Option<anyhow::Error>) {
    let fault = match scene.strike() {
        Ok(fault) => fault,
        Err(error) => return (None, Some(error)),
    };
    let rest = scene
        .settle(bound + Duration::from_secs(10))
        .and_then(|()| clients.wait(bound + TOLD + Duration::from_secs(10)))
        .and_then(|()| scene.heal(Duration::from_secs(30)));
    (Some(fault), rest.err())
}

/// Clients that hold something open on an address that moves.
struct Clients {
    sessions: Vec<Session>,
    held: Held,
}

/// What became of one of them, counted from the fault.
struct Client {
    label: String,
    told: Option<Duration>,
    again: Option<Duration>,
}

impl Client {
    fn wrong(&self, bound: Duration) -> Option<String> {
        let limit = bound + TOLD;
        match (self.told, self.again) {
            (Some(told), Some(_)) if told <= limit => None,
            (Some(told), Some(_)) => Some(format!(
                "{}: told after {}, later than {}",
                self.label,
                human(told),
                human(limit)
            )),
            (None, _) => Some(format!("{}: never told", self.label)),
            (_, None) => Some(format!("{}: never worked again", self.label)),
        }
    }
}

impl Clients {
    fn open(lab: &Lab, scene: &Scene<'_>, timeline: &Timeline) -> Result<Self> {
        let address = scene
            .affected()
            .iter()
            .min_by_key(|address| address.is_ipv6())
            .context("no address moves")?;
        let events = || Some(timeline.events());
        let wanted: Vec<Wanted> = scene
            .affected()
            .iter()
            .flat_map(|address| {
                [Kind::Idle, Kind::Sending].map(|kind| Wanted {
                    server: (*address, Service::Plain.port()).into(),
                    kind,
                    again: true,
                })
            })
            .collect();
        Ok(Self {
            sessions: vec![
                Session::sftp(lab, *address, events())?,
                Session::smb(lab, *address, events())?,
            ],
            held: Held::open(lab.client(), &wanted, events())?,
        })
    }

    /// Until all were told and served again.
    fn wait(&self, limit: Duration) -> Result<()> {
        wait_until("the clients to be told and served again", limit, || {
            let sessions = self.sessions.iter();
            sessions
                .map(Session::outcome)
                .all(|outcome| outcome.again.is_some())
                && self.held.records().iter().all(|told| told.again.is_some())
        })
        .map(drop)
    }

    fn finish(self, fault: Stamp) -> Result<Vec<Client>> {
        let after = |at: Option<Stamp>| at.map(|at| at.since(fault));
        let mut clients = Vec::new();
        for session in self.sessions {
            let outcome = session.finish()?;
            clients.push(Client {
                label: outcome.label,
                told: after(outcome.told),
                again: after(outcome.again),
            });
        }
        for told in self.held.finish()? {
            clients.push(Client {
                label: format!("TCP, {}, {}", told.wanted.kind.name(), told.wanted.server),
                told: after(told.told.map(|(at, _)| at)),
                again: after(told.again),
            });
        }
        Ok(clients)
    }
}

fn table(clients: &[Client]) -> String {
    let mut text = format!(
        "{:<44} {:>12} {:>14}\n",
        "client", "told after", "works again"
    );
    for client in clients {
        let time = |time: Option<Duration>| time.map_or_else(|| "never".to_owned(), human);
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "{:<44} {:>12} {:>14}",
            client.label,
            time(client.told),
            time(client.again)
        );
    }
    text
}

fn print(aftermath: &Aftermath, events: &[Event], begin: Stamp) {
    let last = events.last().map_or(begin, |e| e.at);
    println!("\n{}", lanes(events, aftermath.fault, last, 80));
    println!("{}", aftermath.table());
    println!(
        "longest outage {}, worst connect() {}, other addresses disturbed for {}",
        human(aftermath.outage()),
        human(aftermath.worst_connect()),
        human(aftermath.disturbance())
    );
    let frames: u64 = aftermath
        .report
        .intervals
        .values()
        .flatten()
        .map(|interval| interval.count)
        .sum();
    println!(
        "the observer saw {frames} answers for public addresses, {} by a second node",
        aftermath.report.conflicts().len()
    );
}
