//! `ctdb db file check`

use ctdb_db::hash::HashKind;
use ctdb_db::{CheckReport, Tdb};
use serde_json::{Value, json};

use super::super::args::Filed;
use super::super::failure::Failure;
use super::super::table::facts;
use super::{ByteOrder, Context, peek, users};

pub(super) fn check(context: &mut Context<'_>, filed: &Filed) -> Result<(), Failure> {
    let mut tdb = context.open_to_read(filed)?;
    let report = tdb.check()?;
    let mutexes = peek(&filed.file)?.is_some_and(|header| header.has_mutexes());
    let about = About {
        mutexes,
        sequence_number: tdb.sequence_number()?,
        users: users::of(&filed.file),
    };
    if context.json {
        return context.print_json(&as_json(&tdb, &report, &about));
    }
    context.print(&as_text(&tdb, &report, &about))
}

/// What is told beside the engine's report.
struct About {
    mutexes: bool,
    sequence_number: u32,
    users: Vec<users::User>,
}

fn hash_name(tdb: &Tdb) -> &'static str {
    match tdb.hash_kind() {
        HashKind::Old => "old",
        HashKind::Jenkins => "jenkins",
    }
}

fn order_name(tdb: &Tdb) -> &'static str {
    match tdb.byte_order() {
        ByteOrder::Little => "little",
        ByteOrder::Big => "big",
    }
}

fn as_json(tdb: &Tdb, report: &CheckReport, about: &About) -> Value {
    json!({
        "file": tdb.path(),
        "sound": true,
        "records": report.used,
        "payload_bytes": report.payload_bytes,
        "dead_records": report.dead,
        "free_records": report.free,
        "free_bytes": report.free_bytes,
        "lost_bytes": report.lost_bytes,
        "recovery_bytes": report.recovery_bytes,
        "size_bytes": tdb.map_size(),
        "hash": hash_name(tdb),
        "hash_size": tdb.hash_size(),
        "byte_order": order_name(tdb),
        "mutexes": about.mutexes,
        "sequence_number": about.sequence_number,
        "users": about.users.iter().map(|u| json!({"pid": u.pid, "name": u.name})).collect::<Vec<_>>(),
    })
}

fn as_text(tdb: &Tdb, report: &CheckReport, about: &About) -> String {
    let yes_no = if about.mutexes { "mutexes" } else { "fcntl" };
    let users: Vec<String> = about
        .users
        .iter()
        .map(|user| format!("{} ({})", user.name, user.pid))
        .collect();
    let count = |records: u64, bytes: u64| format!("{records} ({bytes} bytes)");
    format!("{} is sound\n", tdb.path().display())
        + &facts(&[
            ("records", count(report.used, report.payload_bytes)),
            ("dead records", report.dead.to_string()),
            ("free records", count(report.free, report.free_bytes)),
            ("lost bytes", report.lost_bytes.to_string()),
            ("recovery area", format!("{} bytes", report.recovery_bytes)),
            ("size", format!("{} bytes", tdb.map_size())),
            (
                "hash",
                format!("{}, {} chains", hash_name(tdb), tdb.hash_size()),
            ),
            ("byte order", order_name(tdb).to_owned()),
            ("locks", yes_no.to_owned()),
            ("sequence number", about.sequence_number.to_string()),
            ("in use by", super::super::table::list(users)),
        ])
}
