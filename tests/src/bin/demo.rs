//! `cargo xtask demo`: a cluster in network namespaces, one node that fails, and what becomes of
//! its addresses, drawn as it happens. Exits 0 only if no address was answered by two nodes,
//! every address was served again in time and nothing was left behind.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use ctdb_tests::lab::scenario::{Aftermath, Fail, Plan, Role, Scene};
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
    let stop = AtomicBool::new(false);
    let events = timeline.events();
    let story = thread::scope(|scope| {
        scope.spawn(|| history::follow(lab, &tellers, Stamp::now(), &events, &stop));
        let story = play(&scene, bound);
        stop.store(true, Ordering::Relaxed);
        story
    });
    // A scene that did not come to its end is shown as far as it came.
    let (fault, trouble) = match story {
        (Some(fault), trouble) => (fault, trouble),
        (None, trouble) => return Err(trouble.context("the fault")?).context("demo"),
    };
    let aftermath = scene.finish(fault)?;
    let events = timeline.finish()?;
    print(&aftermath, &events, begin);
    let mut wrong = aftermath.broken(bound);
    wrong.extend(trouble.map(|error| format!("{error:#}")));
    Ok(wrong)
}

/// The fault, its aftermath and its end: when it was, and what stopped the play.
fn play(scene: &Scene<'_>, bound: Duration) -> (Option<Stamp>, Option<anyhow::Error>) {
    let fault = match scene.strike() {
        Ok(fault) => fault,
        Err(error) => return (None, Some(error)),
    };
    let rest = scene
        .settle(bound + Duration::from_secs(10))
        .and_then(|()| scene.heal(Duration::from_secs(30)));
    (Some(fault), rest.err())
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
