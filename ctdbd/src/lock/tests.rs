use super::*;

#[test]
fn only_what_is_new_and_not_of_the_future_is_a_proof() {
    let ms = BootTime::from_millis;
    let mut proofs = Proofs::new(ms(100));
    assert_eq!(proofs.take(b"", ms(200)), None);
    assert!(!proofs.rechecks);
    // The recheck of the taking itself began before the answer.
    let line = |at: BootTime| format!("r{}\n", at.0);
    assert_eq!(proofs.take(line(ms(90)).as_bytes(), ms(200)), Some(ms(90)));
    assert!(proofs.rechecks);
    let (first, second) = (line(ms(150)), line(ms(140)));
    let text = format!("{first}{second}");
    let (head, tail) = text.split_at(5);
    assert_eq!(proofs.take(head.as_bytes(), ms(200)), None);
    assert_eq!(proofs.take(tail.as_bytes(), ms(200)), Some(ms(150)));
    assert_eq!(proofs.take(line(ms(201)).as_bytes(), ms(200)), None);
    for noise in [
        "r\n",
        "x1\n",
        "r-1\n",
        "r99999999999999999999999999999999999999\n",
    ] {
        assert_eq!(proofs.take(noise.as_bytes(), ms(200)), None);
    }
}

#[test]
fn a_file_is_held_by_this_program() {
    let lock = ClusterLock {
        text: "/x/y".to_owned(),
        kind: LockKind::File("/x/y".into()),
    };
    let words = command(&lock, Duration::from_secs(5));
    let wanted = ["/proc/self/exe", HELPER_ARGUMENT, "fcntl", "/x/y", "1", "5"];
    assert_eq!(words, wanted);
    assert!(runs(std::process::id()));
    assert!(!runs(u32::MAX));
}

#[test]
fn digits_of_the_protocol() {
    for report in [
        Report::Held,
        Report::Contended,
        Report::Late,
        Report::Failed,
    ] {
        assert_eq!(Report::of(report.digit()), report);
    }
    assert_eq!(Report::of(b'x'), Report::Failed);
}
