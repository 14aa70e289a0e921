//! VNN map, node map, database map, names of tunables (4.5).

use std::net::SocketAddr;

use crate::client::codec::{Decode, DecodeError, Encode, Reader, put_list, wire_struct};

/// Location masters by hash.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VnnMap {
    /// Generation.
    pub generation: u32,
    /// Node numbers.
    pub map: Vec<u32>,
}

impl Encode for VnnMap {
    fn encode(&self, out: &mut Vec<u8>) {
        self.generation.encode(out);
        put_list(&self.map, out);
    }
}

impl Decode<'_> for VnnMap {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let generation = reader.value()?;
        let count = reader.value()?;
        Ok(Self {
            generation,
            map: reader.list(count, 4)?,
        })
    }
}

wire_struct! {
    /// One node of the node map.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct NodeMapEntry {
        /// Its number, which is its place in the map.
        pub pnn: u32,
        /// Its flags (`spec/cluster.md` 2.1).
        pub flags: u32,
        /// Its private address with the port of the links.
        pub address: SocketAddr,
    }
}

bitflags::bitflags! {
    /// Kind of a database; none of PERSISTENT and REPLICATED is volatile.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
    pub struct DbFlags: u8 {
        /// Survives; every node has all records.
        const PERSISTENT = 0x01;
        /// Read-only copies are given.
        const READONLY = 0x02;
        /// Contended records stay.
        const STICKY = 0x04;
        /// Every node has all records; ends with the last daemon.
        const REPLICATED = 0x08;
        const _ = !0;
    }
}

/// One database of the database map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DbMapEntry {
    /// Hash of its name.
    pub db_id: u32,
    /// Its kind.
    pub flags: DbFlags,
}

impl Encode for DbMapEntry {
    fn encode(&self, out: &mut Vec<u8>) {
        self.db_id.encode(out);
        [self.flags.bits(), 0, 0, 0].encode(out);
    }
}

impl Decode<'_> for DbMapEntry {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let db_id = reader.value()?;
        let [flags, ..] = reader.array::<4>()?;
        Ok(Self {
            db_id,
            flags: DbFlags::from_bits_retain(flags),
        })
    }
}

/// A list behind its count: node map, database map, public addresses, interfaces.
macro_rules! counted {
    ($($entry:ty = $least:literal;)*) => {$(
        impl Encode for Vec<$entry> {
            fn encode(&self, out: &mut Vec<u8>) {
                put_list(self, out);
            }
        }
        impl Decode<'_> for Vec<$entry> {
            fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
                let count = reader.value()?;
                reader.list(count, $least)
            }
        }
    )*};
}
counted! {
    NodeMapEntry = 36;
    DbMapEntry = 8;
    super::PublicIp = 32;
    super::Interface = 24;
    super::Connection = 56;
}

/// Answer to LIST_TUNABLES: `:` and the names joined by `:`, with NUL, behind its length.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunableNames(pub Vec<String>);

impl Encode for TunableNames {
    fn encode(&self, out: &mut Vec<u8>) {
        let length: usize = self.0.iter().map(|name| name.len() + 1).sum();
        (length as u32 + 1).encode(out);
        for name in &self.0 {
            out.push(b':');
            out.extend_from_slice(name.as_bytes());
        }
        out.push(0);
    }
}

impl Decode<'_> for TunableNames {
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let text = reader.blob()?;
        let text = text.strip_suffix(&[0]).ok_or(DecodeError::NoTerminator)?;
        let names = text
            .split(|byte| *byte == b':')
            .filter(|name| !name.is_empty())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect();
        Ok(Self(names))
    }
}
