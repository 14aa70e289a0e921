//! Old commands that are one control on the daemon's client socket (`spec/client-protocol.md` 5):
//! what there is no better way for than that of the old tool.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ctdb_wire::client::codec::encode_to_vec;
use ctdb_wire::client::control::{Opcode, Reply, Request};
use ctdb_wire::client::node;
use ctdb_wire::client::packet::{
    Body, Control, ControlFlags, Framed, Header, Message, Packet, Padding, framed,
};
use ctdb_wire::client::srvid;
use ctdb_wire::client::types::{
    AddressInfo, PidSrvid, SetTunable, SrvidMessage, Statistics, TunableName, VnnMap,
};
use jiff::tz::TimeZone;

use super::{End, Tool, text};
use crate::cli::client::ClientError;

type Result = std::result::Result<u8, End>;

/// EINVAL.
const INVALID: u8 = 22;
/// EADDRINUSE: what scripts take for "somebody listens" (`spec/cli.md` 6.6).
const IN_USE: i32 = 98;
/// Status of SET_TUNABLE for an obsolete one.
const OBSOLETE: i32 = 1;
/// Address of the answer to a message; nobody else registers it on this connection.
const ANSWER: u64 = 0xFB00_0000_0000_0000;

/// The answer to a control.
pub(super) struct Answer {
    pub(super) status: i32,
    pub(super) data: Vec<u8>,
}

/// A connection to the client socket.
struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
    until: Instant,
    reqid: u32,
}

/// Why there is no answer.
enum Failure {
    Connect(std::io::Error),
    TimedOut,
    Broken(String),
}

impl Connection {
    fn open(socket: &Path, limit: Duration) -> std::result::Result<Self, Failure> {
        let stream = UnixStream::connect(socket).map_err(Failure::Connect)?;
        Ok(Self {
            stream,
            buffer: Vec::new(),
            until: Instant::now() + limit,
            reqid: 0,
        })
    }

    fn send(&mut self, header: Header, body: Body<'_>) -> std::result::Result<(), Failure> {
        let bytes = Packet { header, body }.to_vec(Padding::Eight);
        self.stream
            .write_all(&bytes)
            .map_err(|error| Failure::Broken(error.to_string()))
    }

    /// The first packet that `look` takes.
    fn receive<T>(
        &mut self,
        look: impl Fn(&Packet<'_>) -> Option<T>,
    ) -> std::result::Result<T, Failure> {
        loop {
            match framed(&self.buffer) {
                Framed::Packet(length) => {
                    let seen = Packet::decode(&self.buffer[..length])
                        .map(|packet| look(&packet))
                        .map_err(|error| Failure::Broken(error.to_string()))?;
                    self.buffer.drain(..length);
                    if let Some(seen) = seen {
                        return Ok(seen);
                    }
                    continue;
                }
                Framed::Broken => return Err(Failure::Broken("what came is no packet".into())),
                Framed::Incomplete(_) => {}
            }
            let left = self.until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Failure::TimedOut);
            }
            let broken = |error: std::io::Error| Failure::Broken(error.to_string());
            self.stream.set_read_timeout(Some(left)).map_err(broken)?;
            let mut bytes = [0; 16_384];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(Failure::Broken("the daemon ended the connection".into())),
                Ok(count) => self.buffer.extend_from_slice(&bytes[..count]),
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(broken(error)),
            }
        }
    }

    fn control(
        &mut self,
        to: u32,
        srvid: u64,
        request: &Request<'_>,
    ) -> std::result::Result<Answer, Failure> {
        self.reqid += 1;
        let reqid = self.reqid;
        let header = Header {
            destnode: to,
            ..Header::to_own(reqid)
        };
        let data = encode_to_vec(request);
        let body = Body::Control(Control {
            opcode: request.opcode() as u32,
            srvid,
            client_id: 0,
            flags: ControlFlags::empty(),
            data: &data,
        });
        self.send(header, body)?;
        self.receive(|packet| match packet.body {
            Body::ReplyControl(reply) if packet.header.reqid == reqid => Some(Answer {
                status: reply.status,
                data: reply.data.to_vec(),
            }),
            _ => None,
        })
    }
}

impl Tool<'_> {
    fn connection(&self, control: &str) -> std::result::Result<Connection, End> {
        let socket = self.client.socket.with_file_name("ctdbd.socket");
        Connection::open(&socket, self.client.request.min(self.client.run))
            .map_err(|failure| self.no_answer(control, failure))
    }

    fn no_answer(&self, control: &str, failure: Failure) -> End {
        let path = self.client.socket.with_file_name("ctdbd.socket");
        match failure {
            Failure::Connect(source) => {
                self.refused(control, &ClientError::Connect { path, source })
            }
            Failure::TimedOut => {
                let limit = self.client.request;
                self.refused(control, &ClientError::TimedOut(limit))
            }
            Failure::Broken(text) => self.refused(control, &ClientError::Malformed(text)),
        }
    }

    /// A control to the target whose status is 0.
    pub(super) fn control(
        &self,
        control: &str,
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
        control: &str,
        request: &Request<'_>,
    ) -> std::result::Result<Answer, End> {
        let to = self.options.node.unwrap_or(node::CURRENT);
        self.connection(control)?
            .control(to, 0, request)
            .map_err(|failure| self.no_answer(control, failure))
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
        [pid, srvid] => (pid, Some(srvid)),
        _ => return Err(End::Usage),
    };
    // As `atoi` reads it.
    let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
    let pid: i32 = digits.parse().unwrap_or(0);
    let (control, request, named) = match srvid {
        None => (
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
    let mut connection = tool.connection(control)?;
    let report = (|| {
        let own = connection
            .control(node::CURRENT, 0, &Request::GetPnn)?
            .status;
        connection.control(node::CURRENT, ANSWER, &Request::RegisterSrvid)?;
        let asked = encode_to_vec(&SrvidMessage {
            pnn: own.cast_unsigned(),
            srvid: ANSWER,
        });
        let header = Header {
            destnode: to,
            ..Header::to_own(0)
        };
        let message = Message {
            srvid: srvid::MEM_DUMP,
            data: &asked,
        };
        connection.send(header, Body::Message(message))?;
        connection.receive(|packet| match packet.body {
            Body::Message(message) if message.srvid == ANSWER => Some(message.data.to_vec()),
            _ => None,
        })
    })()
    .map_err(|failure| tool.no_answer(control, failure))?;
    tool.print(&String::from_utf8_lossy(&report))
}

/// What stands in the way of databases of this cluster is recovered when its cause comes up, so
/// this asks and waits for nothing that would have to change.
pub(super) fn recover(tool: &mut Tool, args: &[String]) -> Result {
    no_args(args)?;
    let answer = tool.ask("SET_RECMODE", &Request::SetRecmode(1))?;
    if answer.status == 0 {
        return Ok(0);
    }
    Err(also(
        failed("SET_RECMODE", answer.status),
        "Failed to set recovery mode active",
    ))
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
