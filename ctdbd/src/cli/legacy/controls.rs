//! Old commands that are one control on the daemon's client socket (`spec/client-protocol.md` 5):
//! what there is no better way for than that of the old tool.

use std::cell::RefMut;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use ctdb_wire::client::codec::encode_to_vec;
use ctdb_wire::client::control::{Opcode, Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::srvid;
use ctdb_wire::client::types::{
    AddressInfo, PidSrvid, SetTunable, SrvidMessage, Statistics, TunableName, VnnMap,
};
use jiff::tz::TimeZone;

use super::{End, Tool, text};
use crate::cli::client::ClientError;
use crate::dbclient::{Answer, Connection, Error, Session};

type Result = std::result::Result<u8, End>;

/// EINVAL.
const INVALID: u8 = 22;
/// EADDRINUSE: what scripts take for "somebody listens" (`spec/cli.md` 6.6).
const IN_USE: i32 = 98;
/// Status of SET_TUNABLE for an obsolete one.
const OBSOLETE: i32 = 1;
/// Address of the answer to a message; nobody else registers it on this connection.
const ANSWER: u64 = 0xFB00_0000_0000_0000;

impl Tool<'_> {
    /// The one connection of the command, opened when it is first needed.
    fn connection(&self, control: &str) -> std::result::Result<RefMut<'_, Connection>, End> {
        let mut known = self.connection.borrow_mut();
        if known.is_none() {
            let socket = self.client.socket.with_file_name("ctdbd.socket");
            let limit = self.client.request.min(self.client.run);
            let opened = Connection::open(&socket, limit);
            *known = Some(opened.map_err(|error| self.client_end(control, error))?);
        }
        RefMut::filter_map(known, Option::as_mut)
            .map_err(|_| End::error("Failed to connect to CTDB daemon"))
    }

    /// A connection of its own, registered, for commands that work with records.
    pub(super) fn session(&self, control: &str) -> std::result::Result<Session, End> {
        let socket = self.client.socket.with_file_name("ctdbd.socket");
        let limit = self.client.request.min(self.client.run);
        Session::open(&socket, limit, self.client.end)
            .map_err(|error| self.client_end(control, error))
    }

    /// How a client's error is told.
    pub(super) fn client_end(&self, control: &str, error: Error) -> End {
        match error {
            Error::Connect { path, source } => {
                self.refused(control, &ClientError::Connect { path, source })
            }
            Error::TimedOut { control, limit } => {
                self.refused(control, &ClientError::TimedOut(limit))
            }
            Error::Broken(text) => self.refused(control, &ClientError::Malformed(text)),
            Error::Refused {
                control, status, ..
            } => failed(control, status),
            Error::NoDatabase(word) => End::error(format!("No database matching '{word}' found")),
            Error::NotAttached { name, status } => End::error(format!(
                "attach: {name} failed to get db_id, ret={status}\nFailed to attach to DB {name}"
            )),
            other => End::error(other.to_string()),
        }
    }

    /// A control to the target whose status is 0.
    pub(super) fn control(
        &self,
        control: &'static str,
        request: &Request<'_>,
    ) -> std::result::Result<Vec<u8>, End> {
        let answer = self.ask(control, request)?;
        if answer.status == 0 {
            Ok(answer.data)
        } else {
            Err(failed(control, answer.status))
        }
    }

    pub(super) fn ask(
        &self,
        control: &'static str,
        request: &Request<'_>,
    ) -> std::result::Result<Answer, End> {
        let to = self.options.node.unwrap_or(node::CURRENT);
        self.connection(control)?
            .control(control, to, 0, request)
            .map_err(|error| self.client_end(control, error))
    }
}

/// The old tool's words, and its exit code: the status where it is a positive number.
pub(super) fn failed(control: &str, status: i32) -> End {
    End::Error {
        text: format!("Control {control} failed, ret={status}"),
        code: u8::try_from(status.unsigned_abs()).unwrap_or(1).max(1),
    }
}

fn no_args(args: &[String]) -> std::result::Result<(), End> {
    if args.is_empty() {
        Ok(())
    } else {
        Err(End::Usage)
    }
}

/// A number in C notation, as `strtoul` with base 0 takes it.
pub(super) fn number(word: &str) -> Option<u64> {
    if let Some(hex) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        u64::from_str_radix(hex, 16).ok()
    } else if word.len() > 1 && word.starts_with('0') {
        u64::from_str_radix(word, 8).ok()
    } else {
        word.parse().ok()
    }
}

/// What the target's databases say, which is what the old tool shows: recovery mode, and generation
/// with location masters. `None` if it does not say.
pub(super) fn databases(tool: &Tool) -> Option<(u32, VnnMap)> {
    let mode = tool.ask("GET_RECMODE", &Request::GetRecmode).ok()?.status;
    let data = tool.control("GET_VNNMAP", &Request::GetVnnMap).ok()?;
    match Reply::decode(Opcode::GetVnnMap, &data) {
        Ok(Reply::VnnMap(map)) => Some((u32::try_from(mode).ok()?, map)),
        _ => None,
    }
}

pub(super) fn set_variable(tool: &mut Tool, args: &[String]) -> Result {
    let [name, word] = args else {
        return Err(End::Usage);
    };
    // Without a text, as the old tool does.
    let Some(value) = number(word).and_then(|value| u32::try_from(value).ok()) else {
        return Ok(INVALID);
    };
    let list = tool.control("LIST_TUNABLES", &Request::ListTunables)?;
    let known = match Reply::decode(Opcode::ListTunables, &list) {
        Ok(Reply::TunableNames(names)) => {
            names.0.iter().any(|known| known.eq_ignore_ascii_case(name))
        }
        _ => false,
    };
    if !known {
        return Err(End::stdout(format!("No such tunable {name}")));
    }
    let request = Request::SetTunable(SetTunable {
        value,
        name: TunableName(name.as_bytes()),
    });
    let answer = tool.ask("SET_TUNABLE", &request)?;
    match answer.status {
        0 => Ok(0),
        OBSOLETE => {
            tool.complain(&format!("Setting obsolete tunable variable '{name}'"));
            Ok(0)
        }
        status => Err(also(
            failed("SET_TUNABLE", status),
            &format!("Failed to set tunable '{name}'"),
        )),
    }
}

pub(super) fn statistics(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let data = tool.control("STATISTICS", &Request::Statistics)?;
    match Reply::decode(Opcode::Statistics, &data) {
        Ok(Reply::Statistics(statistics)) => {
            let text =
                text::statistics::print(&statistics, tool.style(), true, &TimeZone::system());
            tool.print(&text)
        }
        _ => Err(failed("STATISTICS", -1)),
    }
}

pub(super) fn statistics_reset(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    tool.control("STATISTICS_RESET", &Request::StatisticsReset)?;
    Ok(0)
}

pub(super) fn stats(tool: &mut Tool, args: &[String]) -> Result {
    let count = match args {
        [] => usize::MAX,
        [word] => match number(word).and_then(|count| usize::try_from(count).ok()) {
            Some(count) => count,
            None => return Ok(INVALID),
        },
        _ => return Err(End::Usage),
    };
    let data = tool.control("GET_STAT_HISTORY", &Request::GetStatHistory)?;
    let Ok(Reply::History(history)) = Reply::decode(Opcode::GetStatHistory, &data) else {
        return Err(failed("GET_STAT_HISTORY", -1));
    };
    let zone = TimeZone::system();
    let mut out = String::new();
    let used = |one: &&Statistics| one.current_time.seconds != 0;
    // One more than was asked for, as the old tool does.
    for (index, one) in history
        .iter()
        .take(count.saturating_add(1))
        .filter(used)
        .enumerate()
    {
        out.push_str(&text::statistics::print(
            one,
            tool.style(),
            index == 0,
            &zone,
        ));
    }
    tool.print(&out)
}

pub(super) fn process_exists(tool: &mut Tool, args: &[String]) -> Result {
    let (word, srvid) = match args {
        [pid] => (pid, None),
        [pid, srvid] => (pid, Some(srvid.as_str())),
        _ => return Err(End::Usage),
    };
    // As `atoi` reads it.
    let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
    let pid: i32 = digits.parse().unwrap_or(0);
    let (control, request, named) = match srvid {
        // CTDB's tool takes 0 for none.
        None | Some("0" | "0x0") => (
            "PROCESS_EXISTS",
            Request::ProcessExists(pid),
            format!("PID {pid}"),
        ),
        Some(word) => {
            let Some(srvid) = number(word) else {
                return Ok(INVALID);
            };
            (
                "CHECK_PID_SRVID",
                Request::CheckPidSrvid(PidSrvid { pid, srvid }),
                format!("PID {pid} with SRVID 0x{srvid:x}"),
            )
        }
    };
    let status = tool.ask(control, &request)?.status;
    let text = if status == 0 {
        format!("{named} exists\n")
    } else {
        format!("{named} does not exist\n")
    };
    tool.print(&text)?;
    Ok(u8::from(status != 0))
}

pub(super) fn dump_memory(tool: &mut Tool, _: &[String]) -> Result {
    let report = tool.control("DUMP_MEMORY", &Request::DumpMemory)?;
    tool.print(&String::from_utf8_lossy(&report))
}

/// CTDB's recovery daemon answers this by message; here the daemon itself does.
pub(super) fn dump_recovery_memory(tool: &mut Tool, _: &[String]) -> Result {
    let control = "RD_DUMP_MEMORY";
    let to = tool.options.node.unwrap_or(node::CURRENT);
    let report = (|| {
        let mut connection = tool.connection(control)?;
        let asked = (|| {
            let own = connection
                .control("GET_PNN", node::CURRENT, 0, &Request::GetPnn)?
                .status;
            connection.register(ANSWER)?;
            let asked = encode_to_vec(&SrvidMessage {
                pnn: own.cast_unsigned(),
                srvid: ANSWER,
            });
            connection.message(to, srvid::MEM_DUMP, &asked)?;
            connection.mail(control, ANSWER)
        })();
        asked.map_err(|error| tool.client_end(control, error))
    })()?;
    tool.print(&String::from_utf8_lossy(&report))
}

/// Waits until the databases are served in another generation, as the old tool does.
pub(super) fn recover(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let mut session = tool.session("SET_RECMODE")?;
    let target = tool.options.node.unwrap_or(node::CURRENT);
    session.recover(target).map_err(|error| {
        let refused = matches!(error, Error::Refused { .. });
        let end = tool.client_end("SET_RECMODE", error);
        if refused {
            also(end, "Failed to set recovery mode active")
        } else {
            end
        }
    })?;
    Ok(0)
}

pub(super) fn add_ip(tool: &mut Tool, args: &[String]) -> Result {
    let [word, interface] = args else {
        return Err(End::Usage);
    };
    let parsed = word.split_once('/').and_then(|(address, bits)| {
        let (address, bits): (IpAddr, u32) = (address.parse().ok()?, bits.parse().ok()?);
        (bits <= if address.is_ipv4() { 32 } else { 128 }).then_some((address, bits))
    });
    let Some((address, mask)) = parsed else {
        return Err(End::error(format!("Invalid IP/Mask {word}")));
    };
    if knows(tool, address)? {
        tool.complain(&format!("Node already knows about IP {address}"));
        return Ok(0);
    }
    let request = Request::AddPublicIp(AddressInfo {
        address: SocketAddr::new(address, 0),
        mask,
        interface: interface.as_bytes(),
    });
    let status = tool.ask("ADD_PUBLIC_IP", &request)?.status;
    if status != 0 {
        let node = target(tool)?;
        return Err(also(
            failed("ADD_PUBLIC_IP", status),
            &format!("Failed to add public IP to node {node}. Giving up"),
        ));
    }
    super::commands::reallocate(tool, &[])
}

pub(super) fn delete_ip(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else { return Err(End::Usage) };
    let address: IpAddr = word
        .parse()
        .map_err(|_| End::error(format!("Invalid IP address {word}")))?;
    if !knows(tool, address)? {
        tool.complain(&format!("Node does not know about IP address {address}"));
        return Ok(0);
    }
    let request = Request::DelPublicIp(AddressInfo {
        address: SocketAddr::new(address, 0),
        mask: 0,
        interface: &[],
    });
    let status = tool.ask("DEL_PUBLIC_IP", &request)?.status;
    if status != 0 {
        let node = target(tool)?;
        return Err(also(
            failed("DEL_PUBLIC_IP", status),
            &format!("Failed to delete public IP from node {node}"),
        ));
    }
    Ok(0)
}

/// Whether the target has that public address.
fn knows(tool: &Tool, address: IpAddr) -> std::result::Result<bool, End> {
    let data = tool.control("GET_PUBLIC_IPS", &Request::GetPublicIps)?;
    Ok(match Reply::decode(Opcode::GetPublicIps, &data) {
        Ok(Reply::PublicIps(list)) => list.iter().any(|known| known.address.ip() == address),
        _ => false,
    })
}

/// Number of the node that acts.
fn target(tool: &Tool) -> std::result::Result<i32, End> {
    Ok(tool.ask("GET_PNN", &Request::GetPnn)?.status)
}

/// With one more line.
fn also(end: End, line: &str) -> End {
    match end {
        End::Error { text, code } => End::Error {
            text: format!("{text}\n{line}"),
            code,
        },
        other => other,
    }
}

/// Needs no daemon: binds the port, as the old tool does.
pub(super) fn check_tcp_port(tool: &mut Tool, args: &[String]) -> Result {
    let [word] = args else {
        // All of it, as the old tool does here alone.
        tool.print(&super::table::usage())?;
        return Ok(1);
    };
    // As `atoi` reads it; port 0 is always free.
    let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
    let port: u16 = digits.parse().unwrap_or(0);
    match bind(port) {
        Ok(()) => Ok(0),
        Err(error) => {
            let code = error.raw_os_error().unwrap_or(1);
            tool.complain(&if code == IN_USE {
                format!("Failed to bind to TCP port {port}")
            } else {
                format!("Failed to bind to TCP port {port}: {error}")
            });
            Ok(u8::try_from(code).unwrap_or(1))
        }
    }
}

/// The IPv4 wildcard, with SO_REUSEADDR: old connections of the port are in nobody's way.
fn bind(port: u16) -> std::io::Result<()> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).map(drop)
}

/// A helper program of CTDB's package that reads the state through `ctdb` itself.
fn helper(tool: &mut Tool, args: &[String], name: &str, said: &str) -> Result {
    // What words there are is the helper's business.
    let [verb] = args else { return Err(End::Usage) };
    let program = tool.helpers.join(name);
    let output = std::process::Command::new(&program).arg(verb).output();
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            return Err(End::error(format!(
                "{}: {error}; it comes with CTDB's package",
                program.display()
            )));
        }
    };
    let _ = tool.out.write_all(&output.stdout);
    let _ = tool.err.write_all(&output.stderr);
    match output.status.code() {
        // The old tool reads these as error numbers.
        Some(code @ 64..=254) => {
            tool.complain(&format!("{said} helper failed with error {}", code - 64));
            Ok(u8::try_from(code - 64).unwrap_or(1))
        }
        Some(code) => Ok(u8::try_from(code).unwrap_or(1)),
        None => Ok(1),
    }
}

pub(super) fn natgw(tool: &mut Tool, args: &[String]) -> Result {
    helper(tool, args, "ctdb_natgw", "NAT gateway")
}

pub(super) fn lvs(tool: &mut Tool, args: &[String]) -> Result {
    helper(tool, args, "ctdb_lvs", "LVS")
}
