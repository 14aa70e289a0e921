//! The lock in etcd: a key that is bound to a lease, over etcd's JSON gateway (API v3).
//!
//! Arguments: `[--endpoints URL,URL] [--key NAME] [--ttl SECONDS] [--refresh SECONDS]`. The key is
//! made only if there is none (compare on its create revision), and goes with the lease. Each
//! refresh renews the lease *and* sees that the key is still the one that was made: one that an
//! operator deleted, or another made anew, is another tenure. Plain HTTP: for TLS put etcd's own
//! gRPC proxy on loopback in front.

use std::ffi::OsStr;
use std::io;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ctdb_wire::ids::BootTime;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::unix::AsyncFd;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

use super::helper::{self, Report};
use crate::clock::boot_now;

/// The ports and times of CTDB's etcd helper (`spec/cluster.md` 2.8).
const ENDPOINT: &str = "http://127.0.0.1:2379";
const KEY: &str = "_ctdb/lock";
const TTL: u64 = 9;
const REFRESH: Duration = Duration::from_secs(2);
/// Longest answer that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// What the command line says.
#[derive(PartialEq, Eq, Debug)]
struct Options {
    endpoints: Vec<String>,
    key: String,
    ttl: u64,
    refresh: Duration,
}

impl Options {
    fn parse(args: &[&OsStr]) -> io::Result<Self> {
        let mut options = Self {
            endpoints: vec![ENDPOINT.to_owned()],
            key: KEY.to_owned(),
            ttl: TTL,
            refresh: REFRESH,
        };
        let wrong = |what: &str| io::Error::other(format!("'{what}' is not understood"));
        for pair in args.chunks(2) {
            let name = pair[0].to_str().unwrap_or_default();
            let value = pair
                .get(1)
                .and_then(|value| value.to_str())
                .ok_or_else(|| wrong(name))?;
            match name {
                "--endpoints" => options.endpoints = value.split(',').map(str::to_owned).collect(),
                "--key" => value.clone_into(&mut options.key),
                "--ttl" => options.ttl = value.parse().map_err(|_| wrong(value))?,
                "--refresh" => {
                    options.refresh = value
                        .parse()
                        .ok()
                        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
                        .ok_or_else(|| wrong(value))?;
                }
                _ => return Err(wrong(name)),
            }
        }
        for endpoint in &options.endpoints {
            authority(endpoint)?;
        }
        if options.refresh.is_zero() || options.refresh.as_secs() * 2 > options.ttl {
            return Err(io::Error::other(
                "--refresh has to be at most half of --ttl, and more than 0",
            ));
        }
        Ok(options)
    }
}

/// Host and port of an endpoint.
fn authority(endpoint: &str) -> io::Result<&str> {
    endpoint
        .strip_prefix("http://")
        .map(|rest| rest.trim_end_matches('/'))
        .filter(|rest| rest.contains(':') && !rest.contains('/'))
        .ok_or_else(|| {
            io::Error::other(format!(
                "'{endpoint}' is not of the form http://HOST:PORT (for TLS use a gRPC proxy on \
                 loopback)"
            ))
        })
}

/// The helper's whole life.
pub(super) fn hold(args: &[&OsStr]) -> io::Result<()> {
    let options = Options::parse(args)?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(life(options))
}

struct Etcd {
    options: Options,
    /// The endpoint that answered last.
    current: usize,
    patience: Duration,
}

impl Etcd {
    /// One request; every endpoint is tried once.
    async fn ask(&mut self, path: &str, body: &Value) -> io::Result<Value> {
        let mut failed = io::Error::other("no endpoint");
        for _ in 0..self.options.endpoints.len() {
            let endpoint = authority(&self.options.endpoints[self.current])?;
            match timeout(self.patience, post(endpoint, path, body)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => failed = error,
                Err(_) => failed = io::Error::new(io::ErrorKind::TimedOut, "etcd does not answer"),
            }
            failed = io::Error::new(failed.kind(), format!("{endpoint}: {failed}"));
            self.current = (self.current + 1) % self.options.endpoints.len();
        }
        Err(failed)
    }

    fn key(&self) -> String {
        STANDARD.encode(&self.options.key)
    }
}

async fn post(endpoint: &str, path: &str, body: &Value) -> io::Result<Value> {
    let stream = TcpStream::connect(endpoint).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let request = hyper::Request::post(path)
        .header("host", endpoint)
        .header("content-type", "application/json")
        .body(Full::<Bytes>::from(body.to_string()))
        .map_err(io::Error::other)?;
    let answer = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        let status = response.status();
        let bytes = Limited::new(response.into_body(), MAX_ANSWER)
            .collect()
            .await
            .map_err(io::Error::other)?
            .to_bytes();
        if !status.is_success() {
            let text = String::from_utf8_lossy(&bytes);
            return Err(io::Error::other(format!("{status}: {}", text.trim())));
        }
        serde_json::from_slice(&bytes).map_err(io::Error::other)
    }
    .await;
    connection.abort();
    answer
}

/// etcd writes 64-bit numbers as text, and leaves out what is 0.
fn number(value: &Value) -> i64 {
    value
        .as_str()
        .map_or_else(|| value.as_i64(), |text| text.parse().ok())
        .unwrap_or(0)
}

/// The lease and the key's create revision.
struct Tenure {
    lease: i64,
    revision: i64,
}

async fn life(options: Options) -> io::Result<()> {
    let parent = helper::parent()?;
    #[allow(
        deprecated,
        reason = "its successor is unsafe for types whose descriptor may change under tokio; \
                  an OwnedFd's does not, and this crate has no unsafe code"
    )]
    let parent = AsyncFd::new(parent)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let ttl = Duration::from_secs(options.ttl);
    let mut etcd = Etcd {
        patience: (ttl / 4).min(Duration::from_secs(5)),
        current: 0,
        options,
    };
    let began = boot_now();
    let Some(tenure) = take(&mut etcd).await? else {
        return helper::say(Report::Contended);
    };
    helper::say(Report::Held)?;
    helper::say_proved(began);
    let kept = tokio::select! {
        kept = keep(&mut etcd, &tenure, began, ttl) => kept,
        _ = parent.readable() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    // Others need not wait for the lease to expire. If etcd is not there, they do.
    let revoke = json!({"ID": tenure.lease.to_string()});
    let _ = etcd.ask("/v3/lease/revoke", &revoke).await;
    kept
}

async fn take(etcd: &mut Etcd) -> io::Result<Option<Tenure>> {
    let key = etcd.key();
    let found = etcd.ask("/v3/kv/range", &json!({"key": key})).await?;
    if number(&found["count"]) > 0 {
        return Ok(None);
    }
    let grant = json!({"TTL": etcd.options.ttl.to_string()});
    let lease = number(&etcd.ask("/v3/lease/grant", &grant).await?["ID"]);
    if lease == 0 {
        return Err(io::Error::other("etcd gave no lease"));
    }
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let value = STANDARD.encode(format!("{host} {}", std::process::id()));
    let id = lease.to_string();
    let transaction = json!({
        "compare": [{"key": key, "target": "CREATE", "result": "EQUAL", "create_revision": "0"}],
        "success": [{"request_put": {"key": key, "value": value, "lease": id}}],
    });
    let answer = etcd.ask("/v3/kv/txn", &transaction).await;
    if let Ok(answer) = &answer
        && answer["succeeded"] == true
    {
        return Ok(Some(Tenure {
            lease,
            revision: number(&answer["header"]["revision"]),
        }));
    }
    // Lost the race, or the answer: in both cases the lease must not hold a key.
    let _ = etcd.ask("/v3/lease/revoke", &json!({"ID": id})).await;
    answer.map(|_| None)
}

/// Renews until the lock is lost.
async fn keep(
    etcd: &mut Etcd,
    tenure: &Tenure,
    mut proved: BootTime,
    ttl: Duration,
) -> io::Result<()> {
    let id = tenure.lease.to_string();
    let same = json!({"compare": [
        {"key": etcd.key(), "target": "LEASE", "result": "EQUAL", "lease": id},
        {"key": etcd.key(), "target": "CREATE", "result": "EQUAL",
         "create_revision": tenure.revision.to_string()},
    ]});
    loop {
        sleep(etcd.options.refresh).await;
        let began = boot_now();
        match renew(etcd, &id, &same).await {
            Ok(true) => {
                proved = began;
                helper::say_proved(began);
            }
            Ok(false) => {
                return Err(io::Error::other(
                    "the key is gone from etcd; the lock is lost",
                ));
            }
            Err(error) => {
                eprintln!("cluster lock: {error}");
                if boot_now().since(proved) >= ttl {
                    return Err(io::Error::other("the lease was not renewed in time"));
                }
            }
        }
    }
}

async fn renew(etcd: &mut Etcd, id: &str, same: &Value) -> io::Result<bool> {
    let answer = etcd.ask("/v3/lease/keepalive", &json!({"ID": id})).await?;
    if number(&answer["result"]["TTL"]) <= 0 {
        return Ok(false);
    }
    Ok(etcd.ask("/v3/kv/txn", same).await?["succeeded"] == true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> io::Result<Options> {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        Options::parse(&words)
    }

    #[test]
    fn words_of_the_command_line() {
        let options = parse(&[
            "--endpoints",
            "http://a:1,http://b:2/",
            "--key",
            "k",
            "--ttl",
            "3",
            "--refresh",
            "0.5",
        ])
        .unwrap();
        assert_eq!(options.endpoints, ["http://a:1", "http://b:2/"]);
        assert_eq!(options.refresh, Duration::from_millis(500));
        assert_eq!(authority("http://b:2/").unwrap(), "b:2");
        for bad in [
            &["--ttl"][..],
            &["--ttl", "x"],
            &["--what", "1"],
            &["--endpoints", "https://a:1"],
            &["--ttl", "3", "--refresh", "2"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn numbers_as_etcd_writes_them() {
        assert_eq!(number(&json!("7587")), 7587);
        assert_eq!(number(&json!(3)), 3);
        assert_eq!(number(&Value::Null), 0);
    }
}
