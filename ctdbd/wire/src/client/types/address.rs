//! Socket addresses, connections, public addresses, interfaces (4.2, 4.3, 4.5).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

use crate::client::codec::{Decode, DecodeError, Encode, Reader, pad, put_list, wire_struct};

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// 28 bytes; of IPv4 the last 20 are written as zero and ignored when read, since Samba leaves
/// garbage there (4.2).
impl Encode for SocketAddr {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::V4(v4) => {
                AF_INET.to_ne_bytes().encode(out);
                v4.port().to_be_bytes().encode(out);
                v4.ip().octets().encode(out);
                pad(20, out);
            }
            Self::V6(v6) => {
                AF_INET6.to_ne_bytes().encode(out);
                v6.port().to_be_bytes().encode(out);
                v6.flowinfo().encode(out);
                v6.ip().octets().encode(out);
                v6.scope_id().encode(out);
            }
        }
    }
}

impl Decode<'_> for SocketAddr {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut inner = Reader::new(reader.take(28)?);
        let family = u16::from_ne_bytes(inner.array()?);
        let port = u16::from_be_bytes(inner.array()?);
        match family {
            AF_INET => {
                let ip = Ipv4Addr::from(inner.array::<4>()?);
                Ok(Self::V4(SocketAddrV4::new(ip, port)))
            }
            AF_INET6 => {
                let flow = inner.value()?;
                let ip = Ipv6Addr::from(inner.array::<16>()?);
                Ok(Self::V6(SocketAddrV6::new(ip, port, flow, inner.value()?)))
            }
            other => Err(DecodeError::Family(other)),
        }
    }
}

wire_struct! {
    /// A TCP connection (4.3).
    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
    pub struct Connection {
        /// The remote client.
        pub client: SocketAddr,
        /// The server's, a public address.
        pub server: SocketAddr,
    }
}

impl Connection {
    /// IPv4-mapped addresses as IPv4, without flow and scope (4.2).
    #[must_use]
    pub fn canonical(self) -> Self {
        let plain =
            |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
        Self {
            client: plain(self.client),
            server: plain(self.server),
        }
    }
}

wire_struct! {
    /// A public address and its host; the port is 0.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct PublicIp {
        /// Node that hosts it, or [`UNKNOWN`](crate::client::node::UNKNOWN).
        pub pnn: u32,
        /// The address.
        pub address: SocketAddr,
    }
}

/// An interface's name: 18 bytes, filled up with NUL, the last one always NUL.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct InterfaceName([u8; 18]);

impl InterfaceName {
    /// From text; at most the first 17 bytes, and nothing behind a NUL.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; 18];
        for (to, from) in bytes[..17]
            .iter_mut()
            .zip(name.bytes().take_while(|byte| *byte != 0))
        {
            *to = from;
        }
        Self(bytes)
    }

    /// The name, if it ends in a NUL and is text.
    pub fn as_str(&self) -> Option<&str> {
        let length = self.0.iter().position(|byte| *byte == 0)?;
        std::str::from_utf8(&self.0[..length]).ok()
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_str().fmt(f)
    }
}

/// An interface (24 bytes).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Name.
    pub name: InterfaceName,
    /// 0 down, 1 up.
    pub link_state: u16,
    /// Public addresses on it.
    pub references: u32,
}

impl Encode for Interface {
    fn encode(&self, out: &mut Vec<u8>) {
        self.name.0.encode(out);
        self.link_state.to_ne_bytes().encode(out);
        self.references.encode(out);
    }
}

impl Decode<'_> for Interface {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            name: InterfaceName(reader.array()?),
            link_state: u16::from_ne_bytes(reader.array()?),
            references: reader.value()?,
        })
    }
}

impl Interface {
    pub(crate) const LENGTH: usize = 24;
}

/// Answer to GET_PUBLIC_IP_INFO.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PublicIpInfo {
    /// The address.
    pub ip: PublicIp,
    /// The interface that carries it: index into the list, or `u32::MAX`.
    pub active: u32,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
}

impl Encode for PublicIpInfo {
    fn encode(&self, out: &mut Vec<u8>) {
        self.ip.encode(out);
        self.active.encode(out);
        put_list(&self.interfaces, out);
    }
}

impl Decode<'_> for PublicIpInfo {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let (ip, active) = (reader.value()?, reader.value()?);
        let count = reader.value()?;
        Ok(Self {
            ip,
            active,
            interfaces: reader.list(count, Interface::LENGTH)?,
        })
    }
}

/// ADD_PUBLIC_IP, DEL_PUBLIC_IP, SEND_GRATUITOUS_ARP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressInfo<'a> {
    /// The address.
    pub address: SocketAddr,
    /// Prefix length.
    pub mask: u32,
    /// Name of the interface without its NUL; DEL_PUBLIC_IP comes without one.
    pub interface: &'a [u8],
}

impl Encode for AddressInfo<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.address.encode(out);
        self.mask.encode(out);
        if self.interface.is_empty() {
            0_u32.encode(out);
        } else {
            (self.interface.len() as u32 + 1).encode(out);
            out.extend_from_slice(self.interface);
            out.push(0);
        }
    }
}

impl<'a> Decode<'a> for AddressInfo<'a> {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let (address, mask) = (reader.value()?, reader.value()?);
        let name = reader.blob()?;
        Ok(Self {
            address,
            mask,
            interface: name.split(|byte| *byte == 0).next().unwrap_or_default(),
        })
    }
}

/// The connections of a public address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TickleList {
    /// The address.
    pub address: SocketAddr,
    /// Its connections.
    pub connections: Vec<Connection>,
}

impl Encode for TickleList {
    fn encode(&self, out: &mut Vec<u8>) {
        self.address.encode(out);
        put_list(&self.connections, out);
    }
}

impl Decode<'_> for TickleList {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let address = reader.value()?;
        let count = reader.value()?;
        Ok(Self {
            address,
            connections: reader.list(count, 56)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::codec::{decode_all, encode_to_vec};

    #[test]
    fn garbage_behind_an_ipv4_address_is_ignored() {
        let address: SocketAddr = "10.9.9.9:40000".parse().unwrap();
        let mut bytes = encode_to_vec(&address);
        assert_eq!(bytes.len(), 28);
        bytes[8..].fill(0xAA);
        assert_eq!(decode_all::<SocketAddr>(&bytes), Ok(address));
        bytes[0] = 1;
        assert_eq!(
            decode_all::<SocketAddr>(&bytes),
            Err(DecodeError::Family(u16::from_ne_bytes([1, bytes[1]])))
        );
    }

    #[test]
    fn ipv6_keeps_flow_and_scope_until_it_is_made_canonical() {
        let v6 = SocketAddr::V6(SocketAddrV6::new(
            "::ffff:10.0.0.1".parse().unwrap(),
            445,
            7,
            3,
        ));
        let connection = Connection {
            client: v6,
            server: "[fd00::1]:445".parse().unwrap(),
        };
        assert_eq!(
            decode_all::<Connection>(&encode_to_vec(&connection)),
            Ok(connection)
        );
        let plain = connection.canonical();
        assert_eq!(plain.client.to_string(), "10.0.0.1:445");
        assert_eq!(plain.server.to_string(), "[fd00::1]:445");
    }

    #[test]
    fn a_name_without_its_nul_is_no_name() {
        let long = InterfaceName::new("an-interface-that-is-too-long");
        assert_eq!(long.as_str(), Some("an-interface-that"));
        assert_eq!(InterfaceName([b'x'; 18]).as_str(), None);
        assert_eq!(InterfaceName([0xFF; 18]).as_str(), None);
        let info = AddressInfo {
            address: "10.0.0.1:0".parse().unwrap(),
            mask: 24,
            interface: b"eth0",
        };
        let bytes = encode_to_vec(&info);
        assert_eq!(bytes.len(), 41);
        assert_eq!(decode_all::<AddressInfo<'_>>(&bytes), Ok(info));
        let none = AddressInfo {
            interface: b"",
            ..info
        };
        assert_eq!(encode_to_vec(&none).len(), 36);
    }
}
