use std::time::Duration;

use tracing::Level;

use super::*;

fn shell(script: &str) -> Spec {
    Spec::new("test", Owner::Operator, ["/bin/sh", "-c", script])
}

fn alive(pid: &str) -> bool {
    // A zombie counts as gone: its parent has not looked yet.
    std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.contains(") Z "))
}

async fn gone(pid: &str) -> bool {
    for _ in 0..500 {
        if !alive(pid) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn code_output_and_processor_time_are_told() {
    let children = Children::default();
    let mut spec = shell(
        "cat; echo out; echo err >&2; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; exit 7",
    );
    spec.stdin = b"in\n".to_vec();
    spec.log = Some(Level::DEBUG);
    let ended = children.run(spec).await;
    assert_eq!(ended.how, How::Exited(7));
    assert_eq!(ended.stdout, b"in\nout\n");
    assert_eq!(ended.stderr, b"err\n");
    assert!(ended.user + ended.system > Duration::ZERO);
    let view = &children.list().processes[0];
    assert_eq!((view.state.as_str(), view.exit_code), ("exited", Some(7)));
    assert_eq!(view.stdout, "");
    assert_eq!(children.show(view.id).unwrap().stdout, "in\nout\n");
    assert_eq!(children.running(), 0);
}

#[tokio::test]
async fn both_streams_in_one_keep_their_order() {
    let children = Children::default();
    let mut spec = shell("echo 1; echo 2 >&2; echo 3");
    spec.streams = Streams::Together;
    assert_eq!(children.run(spec).await.stdout, b"1\n2\n3\n");
}

#[tokio::test]
async fn a_signal_is_told() {
    let ended = Children::default().run(shell("kill -SEGV $$")).await;
    assert_eq!(ended.how, How::Signal(11));
}

#[tokio::test]
async fn out_of_time_ends_the_whole_group_after_a_look() {
    let children = Children::default();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    // Neither it nor its child obeys SIGTERM.
    let mut spec = shell(&format!(
        "trap '' TERM; sleep 1000 & echo $! > {}; wait; wait; sleep 1000",
        file.display()
    ));
    spec.limit = Some(Duration::from_millis(500));
    spec.grace = Duration::from_millis(100);
    let seen = dir.path().join("seen");
    let looked = seen.clone();
    spec.debug = Some(Box::new(move |pid| {
        shell(&format!(
            "kill -0 {pid} && echo {pid} > {}",
            looked.display()
        ))
    }));
    let ended = children.run(spec).await;
    assert_eq!(ended.how, How::TimedOut);
    let seen = std::fs::read_to_string(seen).unwrap();
    assert_eq!(seen.trim(), ended.pid.to_string());
    let child = std::fs::read_to_string(file).unwrap();
    assert!(gone(&child).await, "{child} lives on");
}

#[tokio::test]
async fn a_stopped_process_is_ended_too() {
    let children = Children::default();
    let mut spec = shell("kill -STOP $$");
    spec.limit = Some(Duration::from_millis(300));
    assert_eq!(children.run(spec).await.how, How::TimedOut);
}

#[tokio::test]
async fn a_service_that_a_script_starts_lives_on_and_holds_up_nothing() {
    let children = Children::default();
    // It keeps the script's standard output open.
    let ended = children.run(shell("sleep 1000 & echo $!")).await;
    let pid = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.took < Duration::from_secs(60));
    assert!(alive(&pid));
    let number = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(number, rustix::process::Signal::KILL).unwrap();
    let mut spec = shell("sleep 1000 & echo $!");
    spec.leftovers = Leftovers::End;
    let ended = children.run(spec).await;
    assert!(gone(&String::from_utf8(ended.stdout).unwrap()).await);
}

#[tokio::test]
async fn a_flood_is_cut_and_dropped() {
    let children = Children::default();
    let mut spec = Spec::new("flood", Owner::Event, ["/usr/bin/yes"]);
    spec.limit = Some(Duration::from_millis(500));
    spec.output_limit = 1000;
    let ended = children.run(spec).await;
    assert_eq!(ended.how, How::TimedOut);
    assert_eq!(ended.stdout.len(), 1000);
    assert!(ended.dropped > 0);
}

#[tokio::test]
async fn what_cannot_be_started_says_why() {
    let children = Children::default();
    let spec = Spec::new("none", Owner::Nodes, ["/no/such/program"]);
    let How::NotStarted(why) = children.run(spec).await.how else {
        panic!("started");
    };
    assert!(why.contains("/no/such/program"), "{why}");
    assert_eq!(children.running(), 0);
}

#[tokio::test]
async fn a_dropped_child_is_ended() {
    let children = Children::default();
    let mut spec = shell("echo 0; exec sleep 1000");
    spec.streams = Streams::Piped;
    let mut child = children.start(spec).await.unwrap();
    assert_eq!(child.bytes().await.unwrap(), b"0\n");
    let pid = child.pid().to_string();
    assert!(alive(&pid));
    drop(child);
    assert!(gone(&pid).await);
}

#[tokio::test]
async fn an_end_of_the_daemon_ends_all_and_starts_none() {
    let children = Children::default();
    let child = children.start(shell("exec sleep 1000")).await.unwrap();
    assert_eq!(children.running(), 1);
    children.shutdown(Duration::from_secs(30)).await;
    assert_eq!(children.running(), 0);
    assert!(gone(&child.pid().to_string()).await);
    let again = children.start(shell("true")).await;
    assert!(matches!(again, Err(StartError::Stopping)));
}

#[tokio::test]
async fn a_thousand_leave_nothing_behind() {
    let children = Children::default();
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(
        children
            .run(Spec::new("true", Owner::Event, ["/bin/true"]))
            .await
            .is_success()
    );
    let before = files();
    for _ in 0..1000 {
        let ended = children
            .run(Spec::new("true", Owner::Event, ["/bin/true"]))
            .await;
        assert_eq!(ended.how, How::Exited(0));
    }
    // Other tests of this process open files as well.
    assert!(files() < before + 100);
    assert_eq!(children.running(), 0);
    assert_eq!(children.list().processes.len(), MAX_ENDED);
}
