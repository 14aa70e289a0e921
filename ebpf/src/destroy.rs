//! Destroys the sockets of addresses in one pass of the kernel (`spec/kernel.md` 3): an iterator
//! over all TCP sockets that calls the kernel's `bpf_sock_destroy` (6.5 and newer).

use std::{
    fmt,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{Ebpf, EbpfLoader, include_bytes_aligned, maps::Map, programs::Iter};

use crate::{
    Error,
    btf::Btf,
    sock::{Constants, kernel_types, lacking},
    sys::{self, MapRef},
};

/// Addresses of one pass.
pub const ADDRESSES: usize = 8192;

static OBJECT: &[u8] = include_bytes_aligned!("../object/ctdb-destroy-x86_64.o");
const WHAT: &str = "destroy sockets by a program";
const KILL: &str = "kill_sockets";
const ADDRESS: &str = "KILL_ADDRESS";
const COUNTS: &str = "KILL_COUNTS";
const FUNCTION: &str = "bpf_sock_destroy";
/// `call 0x63746462`: the kernel programs' `DESTROY`.
const MAGIC_CALL: [u8; 8] = [0x85, 0, 0, 0, 0x62, 0x64, 0x74, 0x63];
/// `BPF_PSEUDO_KFUNC_CALL`, in the place of the source register.
const KERNEL_FUNCTION: u8 = 2 << 4;

type Key = [u8; 16];

/// What one pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pass {
    /// Sockets that were destroyed.
    pub destroyed: u64,
    /// Sockets that the kernel did not destroy: those that end already.
    pub refused: u64,
}

/// The loaded program.
pub struct Destroyer {
    ebpf: Ebpf,
    address: OwnedFd,
    counts: OwnedFd,
    netns: u64,
}

impl fmt::Debug for Destroyer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Destroyer")
            .field("netns", &self.netns)
            .finish_non_exhaustive()
    }
}

impl Destroyer {
    /// Loads it for the calling thread's network namespace. [`Error::Lacking`] where the kernel
    /// cannot.
    pub fn load() -> Result<Self, Error> {
        sys::raise_memlock();
        let loaded = Self::try_load().map_err(|error| lacking(WHAT, &error));
        sys::give_back_memory();
        loaded
    }

    fn try_load() -> Result<Self, Error> {
        let lacks = |lacks| Error::Lacking { what: WHAT, lacks };
        let btf = Btf::of_kernel().map_err(lacks)?;
        let function = btf
            .function(FUNCTION)
            .ok_or_else(|| lacks(format!("it has no {FUNCTION} (6.5 and newer have)")))?;
        let object = with_call(OBJECT, function).ok_or(Error::Object(FUNCTION))?;
        let constants = Constants::find(&btf).map_err(lacks)?;
        let mut loader = EbpfLoader::new();
        constants.set(&mut loader);
        let mut ebpf = loader.load(&object)?;
        let types = kernel_types().map_err(lacks)?;
        program(&mut ebpf)?
            .load("tcp", &types)
            .map_err(|source| Error::Program {
                name: KILL,
                source: Box::new(source),
            })?;
        let fd = |name: &'static str| -> Result<OwnedFd, Error> {
            let map = ebpf.map(name).ok_or(Error::Object(name))?;
            let (Map::HashMap(data) | Map::Array(data)) = map else {
                return Err(Error::Object(name));
            };
            data.fd()
                .as_fd()
                .try_clone_to_owned()
                .map_err(|error| Error::system("keeping map", name, error))
        };
        Ok(Self {
            address: fd(ADDRESS)?,
            counts: fd(COUNTS)?,
            netns: constants.netns,
            ebpf,
        })
    }

    /// Destroys all TCP sockets whose local address is one of `addresses`, but for listeners and
    /// TIME_WAIT. In the network namespace of [`Destroyer::load`]. A kernel before 6.17 may skip
    /// sockets where the tables change meanwhile: repeat until nothing is found.
    pub fn pass(&mut self, addresses: &[IpAddr]) -> Result<Pass, Error> {
        if addresses.len() > ADDRESSES {
            return Err(Error::TooManyAddresses {
                count: addresses.len(),
                limit: ADDRESSES,
            });
        }
        let here = sys::netns_cookie()
            .map_err(|error| Error::system("asking for the cookie of", "this namespace", error))?;
        if here != self.netns {
            return Err(Error::WrongNamespace {
                tracked: self.netns,
                here,
            });
        }
        let keys: Vec<Key> = addresses
            .iter()
            .map(|address| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            })
            .collect();
        let set: MapRef<'_, Key, u32> = map(&self.address, ADDRESS)?;
        let counts: MapRef<'_, u32, u64> = map(&self.counts, COUNTS)?;
        let changing = |error| Error::system("changing", ADDRESS, error);
        counts.set_all(&[0, 1], &[0, 0]).map_err(changing)?;
        set.set_all(&keys, &vec![1; keys.len()]).map_err(changing)?;
        let result = run(&mut self.ebpf);
        // Whatever came of it: nothing is to be destroyed later.
        set.remove_all(&keys).map_err(changing)?;
        result?;
        let count = |what| {
            counts
                .get(&what)
                .map(Option::unwrap_or_default)
                .map_err(|error| Error::system("reading", COUNTS, error))
        };
        Ok(Pass {
            destroyed: count(0)?,
            refused: count(1)?,
        })
    }
}

fn run(ebpf: &mut Ebpf) -> Result<(), Error> {
    let fd = program(ebpf)?.fd().map_err(|source| Error::Program {
        name: KILL,
        source: Box::new(source),
    })?;
    sys::run_iterator(fd.as_fd())
        .map_err(|error| Error::system("destroying sockets with", KILL, error))
}

fn program(ebpf: &mut Ebpf) -> Result<&mut Iter, Error> {
    ebpf.program_mut(KILL)
        .ok_or(Error::Object(KILL))?
        .try_into()
        .map_err(|source| Error::Program {
            name: KILL,
            source: Box::new(source),
        })
}

fn map<'a, K: sys::Plain, V: sys::Plain>(
    fd: &'a OwnedFd,
    name: &'static str,
) -> Result<MapRef<'a, K, V>, Error> {
    MapRef::new(fd.as_fd())
        .map_err(|error| Error::system("asking for the layout of", name, error))?
        .ok_or_else(|| Error::Layout(name.into()))
}

/// The object with its one call of a helper that does not exist made a call of the kernel function
/// with this number. aya has no relocation for it.
fn with_call(object: &[u8], function: u32) -> Option<Vec<u8>> {
    let mut places = object
        .windows(MAGIC_CALL.len())
        .enumerate()
        .filter(|(_, bytes)| *bytes == MAGIC_CALL)
        .map(|(at, _)| at);
    let (at, None) = (places.next()?, places.next()) else {
        return None;
    };
    let mut object = object.to_vec();
    object[at + 1] = KERNEL_FUNCTION;
    object[at + 4..at + 8].copy_from_slice(&function.to_le_bytes());
    Some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_call_is_there_once_and_is_changed() {
        let changed = with_call(OBJECT, 0x0102_0304).unwrap();
        let differ: Vec<usize> = (0..OBJECT.len())
            .filter(|at| OBJECT[*at] != changed[*at])
            .collect();
        let first = differ[0] - 1;
        assert_eq!(changed[first..first + 8], [0x85, 0x20, 0, 0, 4, 3, 2, 1]);
        assert_eq!(with_call(&changed, 1), None, "no call left");
        let twice = [OBJECT, OBJECT].concat();
        assert_eq!(with_call(&twice, 1), None);
    }
}
