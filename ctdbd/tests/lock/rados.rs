//! The lock in RADOS, with a library of Ceph that can hang, fail and talk nonsense; a real Ceph is in
//! `tests/tests/ceph.rs`.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::{Value, json};

use super::{Holder, PATIENCE, PROGRAM, pid};

const LIBRARY: &str = include_str!("fake_rados.py");
/// For a machine that has much else to do.
const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(2);

/// Ceph, as far as its library shows it.
struct Ceph(tempfile::TempDir);

impl Ceph {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("rados.py"), LIBRARY).unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A helper; `name` is that of its mood.
    fn helper(&self, name: &str, duration: u32) -> Vec<String> {
        let dir = self.0.path().display();
        let words = format!(
            "/usr/bin/env PYTHONPATH={dir} FAKE_RADOS={dir} FAKE_MOOD={dir}/{name} {PROGRAM} \
             --lock-helper rados ceph client.test pool object {duration} -n space -R"
        );
        words.split(' ').map(str::to_owned).collect()
    }

    /// A daemon with that helper.
    fn holder(&self, name: &str, duration: u32, validity: Duration) -> Holder {
        let words = self.helper(name, duration);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        Holder::proved_for(&words, validity)
    }

    /// From now on this helper's calls go so.
    fn mood(&self, name: &str, how: &str) {
        let new = self.path("mood.new");
        fs::write(&new, how).unwrap();
        fs::rename(new, self.path(name)).unwrap();
    }

    fn good(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    /// Sees or changes the lock while no client does.
    fn lock<T>(&self, change: impl FnOnce(&mut Option<Value>) -> T) -> T {
        let guard = File::create(self.path("guard")).unwrap();
        guard.lock().unwrap();
        let path = self.path("lock");
        let mut lock = fs::read(&path)
            .ok()
            .map(|bytes| serde_json::from_slice(&bytes).unwrap());
        let before = lock.clone();
        let answer = change(&mut lock);
        match lock {
            Some(lock) if before.as_ref() != Some(&lock) => {
                fs::write(&path, lock.to_string()).unwrap();
            }
            None if before.is_some() => fs::remove_file(&path).unwrap(),
            _ => {}
        }
        answer
    }

    /// The helper that holds it, by the lock's description.
    fn process(&self) -> Pid {
        let lock = self.lock(|lock| lock.clone()).unwrap();
        let (_, number) = lock["desc"].as_str().unwrap().rsplit_once(' ').unwrap();
        pid(number.parse().unwrap())
    }
}

fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs_f64()
}

#[tokio::test]
async fn rados_gives_the_lock_to_one_and_takes_it_back() {
    let ceph = Ceph::new();
    let mut first = ceph.holder("first", 60, LONG);
    let tenure = first.held().await;
    for _ in 0..4 {
        first.proved(tenure).await;
    }
    let lock = ceph.lock(|lock| lock.clone()).unwrap();
    assert_eq!(lock["owner"][1], "space");
    assert_eq!(lock["owner"][2], "object");
    assert_eq!(ceph.process(), first.pid());
    let mut second = ceph.holder("second", 60, LONG);
    second.shows("held by another node").await;
    // Let go in order: the next one does not wait for a minute.
    first.client.want(false);
    first.lost().await;
    second.held().await;
    first.client.want(true);
    first.shows("held by another node").await;
    // Killed with all its processes: the others wait until it has expired.
    kill_process_group(second.pid(), Signal::KILL).unwrap();
    second.lost().await;
    second.client.want(false);
    first.shows("held by another node").await;
    let expiry = now() + 0.3;
    ceph.lock(|lock| lock.as_mut().unwrap()["until"] = json!(expiry));
    first.held().await;
    assert!(now() >= expiry);
    // Broken by an operator.
    ceph.lock(|lock| *lock = None);
    first.lost().await;
    // Another has it now, though with the same cookie.
    first.held().await;
    ceph.lock(|lock| lock.as_mut().unwrap()["owner"][0] = json!("another"));
    first.lost().await;
    first.shows("held by another node").await;
    first.end().await;
    second.end().await;
}

#[tokio::test]
async fn one_without_expiry_stays_with_the_dead_until_it_is_broken() {
    let ceph = Ceph::new();
    let mut holder = ceph.holder("it", 0, LONG);
    let tenure = holder.held().await;
    holder.proved(tenure).await;
    holder.proved(tenure).await;
    assert_eq!(
        ceph.lock(|lock| lock.clone()).unwrap()["until"],
        Value::Null
    );
    kill_process_group(holder.pid(), Signal::KILL).unwrap();
    holder.lost().await;
    holder.shows("held by another node").await;
    ceph.lock(|lock| *lock = None);
    holder.held().await;
    holder.end().await;
}

/// A shell that stands for the daemon: it starts a helper and waits.
fn daemon(words: &[String]) -> Child {
    Command::new("/bin/sh")
        .args(["-c", "\"$@\" & wait", "sh"])
        .args(words)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn it_is_freed_when_the_helper_or_its_daemon_ends() {
    let ceph = Ceph::new();
    for end in ["helper ends", "helper dies", "daemon dies"] {
        // Without expiry: if it is there again, then because it was freed.
        let mut daemon = daemon(&ceph.helper("it", 0));
        let mut digit = [0];
        let out = daemon.stdout.as_mut().unwrap();
        out.read_exact(&mut digit).unwrap();
        assert_eq!(&digit, b"0", "{end}");
        match end {
            "helper ends" => kill_process(ceph.process(), Signal::TERM).unwrap(),
            "helper dies" => kill_process(ceph.process(), Signal::KILL).unwrap(),
            _ => daemon.kill().unwrap(),
        }
        daemon.wait().unwrap();
        until(end, || ceph.lock(|lock| lock.is_none()));
    }
}

/// What is proved is the time before the question, not that of the answer.
#[test]
fn an_answer_that_takes_its_time_proves_nothing_later_than_its_question() {
    let ceph = Ceph::new();
    ceph.mood("it", "renew wait");
    let mut daemon = daemon(&ceph.helper("it", 60));
    let mut out = BufReader::new(daemon.stdout.take().unwrap());
    let mut digit = [0];
    out.read_exact(&mut digit).unwrap();
    assert_eq!(&digit, b"0");
    let mut proof = || -> u64 {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        line.trim().strip_prefix('r').unwrap().parse().unwrap()
    };
    let taken = proof();
    until("a renewal", || ceph.path("it.called").exists());
    let asked = ctdbd::clock::boot_now().0;
    ceph.good("it");
    let renewed = proof();
    assert!(taken < renewed && renewed <= asked);
    assert!(proof() > asked);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[tokio::test]
async fn a_ceph_that_does_not_give_the_lock_holds_up_nothing() {
    for (mood, state) in [
        ("connect hang", "being taken"),
        ("take hang", "being taken"),
        ("connect fail", "helper failed"),
        ("take fail", "helper failed"),
        ("connect late", "helper timed out"),
        ("take late", "helper timed out"),
        ("connect die", "helper failed"),
        ("take die", "helper failed"),
        ("connect babble", "helper failed"),
        ("take babble", "helper failed"),
        ("connect endless", "helper failed"),
        ("connect ahead", "helper failed"),
        ("take ahead", "helper failed"),
        ("take fenced", "helper failed"),
    ] {
        let ceph = Ceph::new();
        ceph.mood("it", mood);
        let holder = ceph.holder("it", 60, LONG);
        holder.shows(state).await;
        if state == "being taken" {
            holder.client.want(false);
            holder.shows("not wanted").await;
        }
        holder.end().await;
    }
    // A take that hangs is given up by the helper itself.
    let ceph = Ceph::new();
    ceph.mood("it", "take hang");
    let holder = ceph.holder("it", 1, LONG);
    holder.shows("helper timed out").await;
    holder.end().await;
    // Without the library.
    fs::write(ceph.path("rados.py"), "raise ImportError('none')").unwrap();
    let holder = ceph.holder("it", 60, LONG);
    holder.shows("helper failed").await;
    holder.end().await;
}

#[tokio::test]
async fn a_ceph_that_does_not_renew_loses_the_lock() {
    for (mood, duration, validity) in [
        // The helper gives up, or the daemon does.
        ("renew hang", 1, LONG),
        ("renew hang", 60, SHORT),
        ("renew fail", 1, LONG),
        ("renew late", 1, LONG),
        ("renew fail", 60, SHORT),
        // At once, whatever the times.
        ("renew fenced", 60, LONG),
        ("renew die", 60, LONG),
        ("renew babble", 60, LONG),
        ("renew ahead", 60, LONG),
    ] {
        let ceph = Ceph::new();
        let mut holder = ceph.holder("it", duration, validity);
        holder.held().await;
        ceph.mood("it", mood);
        holder.lost().await;
        holder.end().await;
    }
    // One failure among renewals is none.
    let ceph = Ceph::new();
    let mut holder = ceph.holder("it", 60, LONG);
    let tenure = holder.held().await;
    ceph.mood("it", "renew fail-once");
    while ceph.path("it").exists() {
        holder.proved(tenure).await;
    }
    holder.proved(tenure).await;
    holder.proved(tenure).await;
    holder.end().await;
}
