//! Runs the scripts of one event, one after another (`spec/cluster.md` 4.2).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ctdb_core::events::{Ending, Event};
use ctdb_wire::api::{EventRunView, EventScriptView};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::Level;

use super::LEGACY;
use super::cache::AddressCache;
use super::movers::{self, Movers};
use super::scripts::{self, Script};
use crate::clock::wall_now;
use crate::process::{Children, How, Owner, Spec, Streams};

/// A script that is not enabled, as the event daemon's protocol has it (-ENOEXEC).
pub const DISABLED: i32 = -8;
const TIMED_OUT: i32 = -110;
const INTERRUPTED: i32 = -4;
const CANCELLED: i32 = -125;

/// What all events of a daemon have in common.
#[derive(Clone)]
pub struct Runner {
    /// Starts them.
    pub children: Children,
    /// `ETC/events`.
    pub events: PathBuf,
    /// Added to the environment (`spec/cluster.md` 1.7).
    pub env: Vec<(OsString, OsString)>,
    /// `[event] debug script`.
    pub debug: Option<PathBuf>,
    /// `script log level`.
    pub level: Level,
    /// With `[failover] addresses = builtin`: what scripts are not sent and are told instead.
    pub builtin: Option<Builtin>,
}

/// What is different for scripts when addresses are built in.
#[derive(Clone)]
pub struct Builtin {
    /// Which scripts do not get address events.
    pub movers: Movers,
    /// The list of addresses that scripts read.
    pub cache: AddressCache,
    /// Whether any script is sent address events, as far as the last event showed.
    pub told: Arc<AtomicBool>,
}

impl Builtin {
    /// `shipped`: directory of the shipped scripts of component `legacy`; `state`: `VAR/scripts`.
    pub fn new(shipped: &Path, state: &Path) -> Self {
        Self {
            movers: Movers::new(shipped),
            cache: AddressCache::new(state),
            told: Arc::default(),
        }
    }

    /// Scripts that do not get address events, with the reason if there is one to tell. Reads files.
    fn withheld(&self, scripts: &[Script]) -> BTreeMap<String, String> {
        let withheld = self.movers.withheld(scripts);
        let told = scripts
            .iter()
            .any(|script| script.enabled && !withheld.contains_key(&script.name));
        self.told.store(told, Ordering::Relaxed);
        withheld
    }
}

/// What is to run.
pub struct Job {
    /// Component.
    pub component: String,
    /// Event.
    pub event: Event,
    /// All scripts together.
    pub limit: Option<Duration>,
    /// Scripts behind one that failed run too.
    pub all: bool,
}

impl Runner {
    /// Runs an event to its end, or until `cancel` is dropped or sent.
    pub async fn run(&self, job: Job, mut cancel: oneshot::Receiver<()>) -> (Ending, EventRunView) {
        let (begun, begin) = (Instant::now(), wall_now());
        let mut done = Vec::new();
        let dir = self.events.join(&job.component);
        let builtin = self.builtin.clone().filter(|_| job.component == LEGACY);
        let looking = builtin.clone();
        let found = tokio::task::spawn_blocking(move || {
            let scripts = scripts::scripts(&dir)?;
            let withheld = match (&looking, &scripts) {
                (Some(builtin), Some(scripts)) => builtin.withheld(scripts),
                _ => BTreeMap::new(),
            };
            Ok::<_, std::io::Error>(scripts.map(|scripts| (scripts, withheld)))
        })
        .await;
        // Who runs reads it; if nobody does, it follows by itself.
        let some = |scripts: &[Script]| scripts.iter().any(|script| script.enabled);
        if let (Some(builtin), Ok(Ok(Some((scripts, _))))) = (&builtin, &found)
            && some(scripts)
        {
            builtin.cache.settle().await;
        }
        let (ending, summary) = match found {
            Ok(Ok(Some((scripts, withheld)))) => {
                self.chain(&job, scripts, &withheld, begun, &mut cancel, &mut done)
                    .await
            }
            Ok(Ok(None)) => (Ending::NoDirectory, 2),
            Ok(Err(error)) => {
                tracing::error!(component = job.component, %error, "event scripts cannot be read");
                (
                    Ending::Refused("the event scripts cannot be read".into()),
                    5,
                )
            }
            Err(_) => (Ending::Refused("the daemon ends".into()), 5),
        };
        let view = EventRunView {
            component: job.component,
            event: job.event.name,
            args: job.event.args,
            begin,
            seconds: begun.elapsed().as_secs_f64(),
            result: summary,
            state: ending.text(),
            scripts: done,
        };
        (ending, view)
    }

    async fn chain(
        &self,
        job: &Job,
        scripts: Vec<Script>,
        withheld: &BTreeMap<String, String>,
        begun: Instant,
        cancel: &mut oneshot::Receiver<()>,
        done: &mut Vec<EventScriptView>,
    ) -> (Ending, i32) {
        let mut ending = (Ending::Done, 0);
        let addresses = movers::is_address_event(&job.event.name);
        for script in scripts {
            let reason = withheld.get(&script.name).filter(|_| addresses);
            if !script.enabled || reason.is_some() {
                let now = wall_now();
                done.push(EventScriptView {
                    name: script.name,
                    begin: now,
                    end: now,
                    result: DISABLED,
                    output: reason.cloned().unwrap_or_default(),
                });
                continue;
            }
            let left = job.limit.map(|limit| limit.saturating_sub(begun.elapsed()));
            let (how, view) = self.script(&script, job, left, cancel).await;
            let result = view.result;
            done.push(view);
            if result == 0 {
                continue;
            }
            let this = match how {
                How::TimedOut => Ending::TimedOut,
                How::Stopped => Ending::Cancelled,
                how => Ending::Failed {
                    script: script.name,
                    why: how.to_string(),
                },
            };
            let over = matches!(this, Ending::TimedOut | Ending::Cancelled) || !job.all;
            if ending.0 == Ending::Done || over {
                ending = (this, result);
            }
            if over {
                break;
            }
        }
        ending
    }

    async fn script(
        &self,
        script: &Script,
        job: &Job,
        left: Option<Duration>,
        cancel: &mut oneshot::Receiver<()>,
    ) -> (How, EventScriptView) {
        let mut argv: Vec<OsString> =
            vec![script.path.clone().into(), job.event.name.clone().into()];
        argv.extend(job.event.args.iter().map(OsString::from));
        let mut spec = Spec::new(&script.name, Owner::Event, argv);
        spec.env.clone_from(&self.env);
        spec.streams = Streams::Together;
        spec.log = Some(self.level);
        spec.limit = left;
        if let Some(debug) = &self.debug {
            let (debug, event) = (debug.clone(), job.event.name.clone());
            let (env, level) = (self.env.clone(), self.level);
            spec.debug = Some(Box::new(move |pid| {
                let argv = [debug.into_os_string(), pid.to_string().into(), event.into()];
                let mut spec = Spec::new("debug-hung-script", Owner::Debug, argv);
                spec.env = env;
                spec.log = Some(level);
                spec
            }));
        }
        let begin = wall_now();
        let ended = match self.children.start(spec).await {
            Ok(mut child) => {
                let early = tokio::select! {
                    biased;
                    ended = child.ended() => Some(ended),
                    _ = &mut *cancel => None,
                };
                if let Some(ended) = early {
                    ended
                } else {
                    child.stop();
                    child.ended().await
                }
            }
            Err(error) => {
                let view = EventScriptView {
                    name: script.name.clone(),
                    begin,
                    end: wall_now(),
                    result: errno_of(&error),
                    output: String::new(),
                };
                return (How::NotStarted(error.to_string()), view);
            }
        };
        let result = match &ended.how {
            How::Exited(code) => *code,
            How::Signal(_) => INTERRUPTED,
            How::TimedOut | How::Stuck => TIMED_OUT,
            How::Stopped => CANCELLED,
            How::NotStarted(_) => -5,
        };
        let how = if ended.how == How::Stuck {
            How::TimedOut
        } else {
            ended.how
        };
        let view = EventScriptView {
            name: script.name.clone(),
            begin,
            end: wall_now(),
            result,
            output: String::from_utf8_lossy(&ended.stdout).into_owned(),
        };
        (how, view)
    }
}

/// A program file that cannot be run, as the protocol has it; Debian's 4.17 shows it as `CANNOT RUN`.
fn errno_of(error: &crate::process::StartError) -> i32 {
    match error {
        crate::process::StartError::System { source, .. } => -source.raw_os_error().unwrap_or(5),
        _ => -11,
    }
}

/// The environment of event scripts (`spec/cluster.md` 1.7).
pub fn environment(
    etc: &Path,
    logging: &str,
    level: &str,
    interactive: bool,
) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = vec![
        ("CTDB_LOGGING".into(), logging.into()),
        ("CTDB_DEBUGLEVEL".into(), level.into()),
    ];
    if std::env::var_os("CTDB_BASE").is_none() {
        env.push(("CTDB_BASE".into(), etc.into()));
    }
    if interactive {
        env.push(("CTDB_INTERACTIVE".into(), "true".into()));
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    struct Place {
        dir: tempfile::TempDir,
        runner: Runner,
    }

    impl Place {
        fn new(scripts: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let legacy = dir.path().join("legacy");
            std::fs::create_dir(&legacy).unwrap();
            for (name, text) in scripts {
                let path = legacy.join(format!("{name}.script"));
                std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            let runner = Runner {
                children: Children::default(),
                events: dir.path().to_owned(),
                env: environment(dir.path(), "file:", "NOTICE", true),
                debug: None,
                level: Level::ERROR,
                builtin: Some(Builtin::new(
                    &dir.path().join("shipped"),
                    &dir.path().join("state"),
                )),
            };
            Self { dir, runner }
        }

        async fn event(&self, name: &str, limit_ms: u64, all: bool) -> (Ending, EventRunView) {
            let (_keep, cancel) = oneshot::channel();
            self.runner.run(job(name, limit_ms, all), cancel).await
        }
    }

    fn job(name: &str, limit_ms: u64, all: bool) -> Job {
        Job {
            component: "legacy".into(),
            event: Event {
                name: name.into(),
                args: vec!["one".into(), "two words".into()],
            },
            limit: Some(Duration::from_millis(limit_ms)),
            all,
        }
    }

    fn results(view: &EventRunView) -> Vec<(&str, i32)> {
        view.scripts
            .iter()
            .map(|one| (one.name.as_str(), one.result))
            .collect()
    }

    #[tokio::test]
    async fn one_after_another_until_one_fails() {
        let place = Place::new(&[
            (
                "10.a",
                "echo \"$1|$2|$3|$CTDB_INTERACTIVE|$CTDB_DEBUGLEVEL\"",
            ),
            ("20.b", "[ $1 != bad ] || exit 66"),
            ("30.c", "[ $1 != killed ] || kill -9 $$"),
            ("40.d", "exit 0"),
        ]);
        std::fs::set_permissions(
            place.dir.path().join("legacy/40.d.script"),
            std::fs::Permissions::from_mode(0o644),
        )
        .unwrap();
        let (ending, view) = place.event("good", 10_000, false).await;
        assert_eq!((ending, view.result), (Ending::Done, 0));
        assert_eq!(view.scripts[0].output, "good|one|two words|true|NOTICE\n");
        assert_eq!(
            results(&view),
            [("10.a", 0), ("20.b", 0), ("30.c", 0), ("40.d", DISABLED)]
        );
        let (ending, view) = place.event("bad", 10_000, false).await;
        assert_eq!(results(&view), [("10.a", 0), ("20.b", 66)]);
        assert_eq!((ending.errno(), view.result), (8, 66));
        assert_eq!(ending.text(), "20.b: exit code 66");
        let (ending, view) = place.event("bad", 10_000, true).await;
        assert_eq!(results(&view).len(), 4);
        assert_eq!((ending.errno(), view.result), (8, 66));
        let (ending, view) = place.event("killed", 10_000, false).await;
        assert_eq!(
            (ending.text().as_str(), view.result),
            ("30.c: signal 9", INTERRUPTED)
        );
    }

    #[tokio::test]
    async fn a_hung_script_is_really_ended() {
        let place = Place::new(&[
            (
                "10.hang",
                "trap '' TERM; sleep 60 & echo $!; wait; sleep 60",
            ),
            ("20.b", "exit 0"),
        ]);
        let (ending, view) = place.event("monitor", 300, true).await;
        assert_eq!(ending, Ending::TimedOut);
        assert_eq!(results(&view), [("10.hang", TIMED_OUT)]);
        let pid = view.scripts[0].output.trim();
        let gone = |path: &str| {
            !Path::new(path).exists()
                || std::fs::read_to_string(format!("{path}/stat"))
                    .is_ok_and(|stat| stat.contains(") Z "))
        };
        // SIGKILL has been sent; the kernel takes it away in its own time.
        let end = Instant::now() + Duration::from_secs(10);
        while !gone(&format!("/proc/{pid}")) {
            assert!(Instant::now() < end, "its child {pid} lives");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Every exit code but 0 is a failure and is told as it is; a flood is cut; what a script leaves
    /// running holds up nothing.
    #[tokio::test]
    async fn hostile_scripts() {
        let place = Place::new(&[(
            "10.code",
            "case $1 in flood) yes x | head -c 5000000 ;; fork) for i in 1 2 3; do sleep 30 & done ;; \
             *) exit $1 ;; esac",
        )]);
        for code in [
            1, 2, 8, 63, 64, 66, 72, 77, 110, 126, 127, 128, 174, 254, 255,
        ] {
            let (ending, view) = place.event(&code.to_string(), 10_000, false).await;
            assert_eq!((ending.errno(), view.result), (8, code));
            assert_eq!(results(&view), [("10.code", code)]);
        }
        let (ending, view) = place.event("flood", 20_000, false).await;
        assert_eq!(ending, Ending::Done);
        let kept = view.scripts[0].output.len();
        assert!((1..=70_000).contains(&kept), "{kept} bytes kept");
        let begun = Instant::now();
        let (ending, _) = place.event("fork", 20_000, false).await;
        assert_eq!(ending, Ending::Done);
        // Far from what its children take; no figure of ours.
        assert!(begun.elapsed() < Duration::from_secs(15));
    }

    #[tokio::test]
    async fn given_up_for_another_event() {
        let place = Place::new(&[("10.slow", "sleep 60"), ("20.b", "exit 0")]);
        let (send, cancel) = oneshot::channel();
        let running = place.runner.run(job("monitor", 60_000, false), cancel);
        let (result, ()) = tokio::join!(running, async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            send.send(()).unwrap();
        });
        assert_eq!((result.0, result.1.result), (Ending::Cancelled, CANCELLED));
    }

    /// Scripts read the list of addresses; the daemon has written it when they begin.
    #[tokio::test]
    async fn the_list_of_addresses_is_there_before_scripts_read_it() {
        let place = Place::new(&[("20.b", "cat \"$CTDB_BASE/state/my-public-ip-addresses\"")]);
        let cache = place.runner.builtin.clone().unwrap().cache;
        for address in ["10.1.1.1", "fd00::7"] {
            cache.set([address.parse().unwrap()].into());
            let (ending, view) = place.event("takeip", 10_000, false).await;
            assert_eq!(ending, Ending::Done);
            assert_eq!(view.scripts[0].output, format!("{address}\n"));
        }
        // As 00.ctdb does it.
        std::fs::remove_dir_all(place.dir.path().join("state")).unwrap();
        let (_, view) = place.event("monitor", 10_000, false).await;
        assert_eq!(view.scripts[0].output, "fd00::7\n");
    }

    #[tokio::test]
    async fn what_cannot_run_and_what_is_built_in() {
        let place = Place::new(&[("10.interface", "exit 1"), ("20.b", "exit 0")]);
        let told = place.runner.builtin.clone().unwrap().told;
        let (ending, view) = place.event("takeip", 10_000, false).await;
        assert_eq!(
            (ending, results(&view)),
            (Ending::Done, vec![("10.interface", DISABLED), ("20.b", 0)])
        );
        assert!(told.load(Ordering::Relaxed));
        assert_eq!(place.event("monitor", 10_000, false).await.0.errno(), 8);
        let bad = place.dir.path().join("legacy/20.b.script");
        std::fs::write(&bad, "#!/no/such/interpreter\n").unwrap();
        let (ending, view) = place.event("takeip", 10_000, false).await;
        assert_eq!((ending.errno(), view.result), (8, -2));
        // One that moves addresses itself is not told, and says why; nobody is left who is.
        std::fs::write(
            &bad,
            "case $1 in takeip) ip addr add $3/$4 dev $2 ;; esac\n",
        )
        .unwrap();
        let (ending, view) = place.event("takeip", 10_000, false).await;
        assert_eq!(
            (ending, results(&view)),
            (
                Ending::Done,
                vec![("10.interface", DISABLED), ("20.b", DISABLED)]
            )
        );
        assert!(view.scripts[1].output.starts_with("not sent: line 1"));
        assert!(!told.load(Ordering::Relaxed));
        std::fs::remove_dir_all(place.dir.path().join("legacy")).unwrap();
        let (ending, _) = place.event("takeip", 10_000, false).await;
        assert_eq!(ending, Ending::NoDirectory);
    }
}
