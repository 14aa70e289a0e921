//! The address lease in the kernel (`design.md` section 4, `spec/kernel.md` 8).
//!
//! A program on every interface drops what comes in to, and goes out from, a public address that
//! is not granted here, whose slot's deadline has passed, or that belongs to another interface.
//! Nothing has to run for a deadline to pass. Maps and links are pinned, so that the addresses
//! stay silent when the daemon dies, and a successor takes over without a gap.

mod cell;
mod hook;
mod pins;
mod table;

use std::{
    collections::BTreeSet,
    fmt, io,
    net::IpAddr,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{MapData, PerCpuArray},
};

pub use self::{
    cell::{DeadlineCell, Renewing, open_pinned_deadline},
    hook::Hook,
};
use self::{
    hook::{DIRECTIONS, Direction, Interface},
    table::{Entry, Key, Table},
};
use crate::{
    Error,
    error::explain,
    sys::{self, MapRef},
};

/// Slots of one daemon life (`authority.md` 2). Slot 0 is "known, not ours" and never gets a
/// deadline.
pub const SLOTS: u32 = 4096;
/// Public addresses that the lease map holds.
pub const ADDRESSES: usize = 8192;
/// Interfaces that one address can belong to.
pub const INTERFACES: usize = 8;

static OBJECT: &[u8] = include_bytes_aligned!("../object/ctdb-ebpf-x86_64.o");

/// Dropped frames by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Refused {
    /// The address is not granted here.
    pub not_granted: u64,
    /// The deadline of its slot has passed.
    pub expired: u64,
    /// It belongs to another interface.
    pub wrong_interface: u64,
    /// The thread that renewed its deadline died.
    pub holder_died: u64,
}

impl Refused {
    /// For whatever reason.
    pub fn total(&self) -> u64 {
        self.not_granted + self.expired + self.wrong_interface + self.holder_died
    }
}

/// Dropped frames by what they carried. Fragments and what stands behind extension headers count
/// Dropped frames by what they carried. IPv6 with extension headers counts as other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// TCP.
    pub tcp: u64,
    /// UDP: flows of NFSv3, of its helpers, of QUIC, that are silenced with their address.
    pub udp: u64,
    /// Everything else: ARP, ICMP, neighbour discovery.
    pub other: u64,
}

/// What the programs have dropped since the maps were made (a successor counts on).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// To public addresses.
    pub incoming: Refused,
    /// From public addresses.
    pub outgoing: Refused,
    /// To public addresses, by what they carried.
    pub incoming_carried: Carried,
    /// From public addresses, by what they carried.
    pub outgoing_carried: Carried,
}

/// The lease of this host. Dropping it leaves all in place: programs, deadlines and grants.
pub struct Lease {
    dir: PathBuf,
    hook: Hook,
    ebpf: Ebpf,
    public: OwnedFd,
    cell: DeadlineCell,
    counters: PerCpuArray<MapData, u64>,
    /// What [`Lease::public`] holds.
    table: Mutex<Table>,
    attached: BTreeSet<u32>,
    /// Where somebody else's program comes first.
    behind: BTreeSet<(u32, Direction)>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("dir", &self.dir)
            .field("hook", &self.hook)
            .field("attached", &self.attached)
            .finish_non_exhaustive()
    }
}

impl Lease {
    /// Whether this machine has what the lease needs; the error is one line with what is missing.
    /// Loads the programs and drops them again.
    pub fn supported() -> Result<(), Error> {
        let lacks = |lacks: String| Error::Unsupported { lacks };
        if cfg!(not(target_arch = "x86_64")) {
            return Err(lacks(
                "no kernel programs are built for this processor yet".into(),
            ));
        }
        let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        if !filesystems.split_whitespace().any(|name| name == "bpf") {
            return Err(lacks(
                "the kernel has no bpf file system (CONFIG_BPF_SYSCALL); boot one that has".into(),
            ));
        }
        sys::raise_memlock();
        let hook = Hook::detect().map_err(|error| lacks(explain(&error)))?;
        let mut ebpf = load(None).map_err(|error| lacks(explain(&error)))?;
        for name in ["lease_ingress", "lease_egress"] {
            hook::program(&mut ebpf, name).map_err(|error| lacks(explain(&error)))?;
        }
        tracing::debug!(?hook, "the kernel takes the lease's programs");
        Ok(())
    }

    /// Opens the lease with its pins in `dir`, where a bpffs is mounted if it is none.
    ///
    /// Maps that a predecessor pinned there are taken over if they have this version's layout.
    /// All its deadlines end and all its grants are taken away first (`authority.md` 3). Its
    /// programs stay on their interfaces until [`Lease::attach`] replaces them.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        Self::open_with(dir, Hook::detect()?)
    }

    /// As [`Lease::open`], with the way of attaching given.
    pub fn open_with(dir: &Path, hook: Hook) -> Result<Self, Error> {
        sys::raise_memlock();
        pins::prepare(dir)?;
        end_predecessor(dir)?;
        for pin in pins::links(dir)? {
            if hook::is_dead(&pin) {
                pins::unpin(&pin)?;
            }
        }
        let mut ebpf = load(Some(dir))?;
        for name in ["lease_ingress", "lease_egress"] {
            hook::program(&mut ebpf, name)?;
        }
        let public = pins::open(dir, &pins::PUBLIC)?;
        let cell = open_pinned_deadline(dir)?;
        // Only now, since the mark of a predecessor's death silences too.
        cell.reset_holder()?;
        let counters = ebpf
            .take_map(pins::COUNTERS.name)
            .ok_or(Error::Object(pins::COUNTERS.name))?
            .try_into()
            .map_err(EbpfError::MapError)?;
        let table = read(public_map(&public)?)?;
        Ok(Self {
            dir: dir.to_owned(),
            hook,
            ebpf,
            public,
            cell,
            counters,
            table: Mutex::new(table),
            attached: BTreeSet::new(),
            behind: BTreeSet::new(),
        })
    }

    /// Guards an interface of the calling thread's network namespace, both ways. May be called
    /// again at any time, and should be when interfaces change: it puts right what is missing.
    ///
    /// For interfaces that carry addresses, not for ports of a bridge or bond: a public address
    /// does not belong to the port, so its frames would be dropped there. Interfaces that cannot
    /// carry any (CAN, monitors) are left alone, without error and without being in
    /// [`Lease::attached`].
    pub fn attach(&mut self, ifindex: u32) -> Result<(), Error> {
        let interface = Interface::find(ifindex)?;
        let Some(header) = interface.header()? else {
            return Ok(());
        };
        for direction in DIRECTIONS {
            interface.attach(&mut self.ebpf, self.hook, &self.dir, header, direction)?;
        }
        for direction in DIRECTIONS {
            if interface.is_first(self.hook, &self.dir, direction)? {
                self.behind.remove(&(ifindex, direction));
            } else if self.behind.insert((ifindex, direction)) {
                tracing::warn!(
                    interface = interface.name,
                    ?direction,
                    "another tc program stands before the lease's; what it accepts, the lease \
                     does not see"
                );
            }
        }
        if self.attached.insert(ifindex) {
            tracing::info!(interface = interface.name, ifindex, hook = ?self.hook, "lease attached");
        }
        Ok(())
    }

    /// Forgets an interface that is gone.
    pub fn detach(&mut self, ifindex: u32) {
        self.attached.remove(&ifindex);
        self.behind.retain(|(behind, _)| *behind != ifindex);
        for direction in DIRECTIONS {
            if let Err(error) = hook::end_link(&pins::link_path(&self.dir, ifindex, direction)) {
                tracing::warn!(ifindex, ?direction, %error, "a pin of a lost interface stays");
            }
        }
        if self.hook == Hook::Clsact
            && let Err(error) = detach_clsact(ifindex)
        {
            tracing::warn!(ifindex, %error, "the lease's filter stays on an interface");
        }
    }

    /// Interfaces that were attached since [`Lease::open`].
    pub fn attached(&self) -> impl Iterator<Item = u32> {
        self.attached.iter().copied()
    }

    /// How programs are attached.
    pub fn hook(&self) -> Hook {
        self.hook
    }

    /// Says which public addresses there are, and on which interfaces each may be served. New ones
    /// are not granted; those known already keep their grant. Whatever is no longer named is
    /// forgotten, and from then on like any other address: it must not be on this host any more.
    pub fn set_addresses(&mut self, addresses: &[(IpAddr, Vec<u32>)]) -> Result<(), Error> {
        let map = public_map(&self.public)?;
        let table = self.table.get_mut().unwrap_or_else(PoisonError::into_inner);
        let change = table::plan(table, addresses)?;
        map.remove_all(&change.forget).map_err(changing)?;
        for key in &change.forget {
            table.remove(key);
        }
        write(map, table, change.write)
    }

    /// Grants addresses to a slot, in one call of the kernel. Those that are granted to another
    /// slot change it.
    pub fn grant(&self, addresses: &[IpAddr], slot: u32) -> Result<(), Error> {
        if slot == 0 || slot >= SLOTS {
            return Err(Error::BadSlot(slot));
        }
        self.assign(addresses, slot, true)
    }

    /// Takes grants away: when this returns, no frame that passes a program comes from or goes to
    /// these addresses. Unknown ones are none.
    pub fn revoke(&self, addresses: &[IpAddr]) -> Result<(), Error> {
        self.assign(addresses, 0, false)
    }

    fn assign(&self, addresses: &[IpAddr], slot: u32, must_be_known: bool) -> Result<(), Error> {
        let mut table = self.table();
        let mut changed = Table::new();
        for address in addresses {
            let key = table::key(*address);
            match table.get(&key) {
                Some(entry) if entry.slot != slot => {
                    changed.insert(key, Entry { slot, ..*entry });
                }
                None if must_be_known => return Err(Error::UnknownAddress(*address)),
                _ => {}
            }
        }
        write(
            public_map(&self.public)?,
            &mut table,
            changed.into_iter().collect(),
        )
    }

    /// The granted addresses and their slots, as the kernel has them.
    pub fn granted(&self) -> Result<Vec<(IpAddr, u32)>, Error> {
        // No writer while the map is read.
        let _table = self.table();
        Ok(read(public_map(&self.public)?)?
            .into_iter()
            .filter(|(_, entry)| entry.slot != 0)
            .map(|(key, entry)| (table::address(key), entry.slot))
            .collect())
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The deadlines, for the thread that renews them.
    pub fn deadline_cell(&self) -> Result<DeadlineCell, Error> {
        Ok(self.cell.clone())
    }

    /// What was dropped.
    pub fn counters(&self) -> Result<Counters, Error> {
        let sum = |index| -> Result<u64, Error> {
            let values = self.counters.get(&index, 0).map_err(EbpfError::MapError)?;
            Ok(values.iter().sum())
        };
        let refused = |first| -> Result<Refused, Error> {
            Ok(Refused {
                not_granted: sum(first)?,
                expired: sum(first + 1)?,
                wrong_interface: sum(first + 2)?,
                holder_died: sum(first + 3)?,
            })
        };
        let carried = |first| -> Result<Carried, Error> {
            Ok(Carried {
                tcp: sum(first)?,
                udp: sum(first + 1)?,
                other: sum(first + 2)?,
            })
        };
        Ok(Counters {
            incoming: refused(0)?,
            outgoing: refused(4)?,
            incoming_carried: carried(8)?,
            outgoing_carried: carried(11)?,
        })
    }

    /// Ends all deadlines, takes the programs off all interfaces, removes all pins, and unmounts
    /// the bpffs if it was mounted for them. The public addresses must be off this host before.
    /// Queueing disciplines (`clsact`) stay, since others may use them.
    pub fn close_clean(self) -> Result<(), Error> {
        self.cell.end_all();
        for pin in pins::links(&self.dir)? {
            hook::end_link(&pin)?;
        }
        if self.hook == Hook::Clsact {
            for ifindex in &self.attached {
                detach_clsact(*ifindex)?;
            }
        }
        pins::drop_maps(&self.dir)?;
        pins::release(&self.dir)
    }
}

fn load(pin_dir: Option<&Path>) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    // Nothing in the object refers to the kernel's own types.
    loader.btf(None);
    if let Some(dir) = pin_dir {
        for spec in pins::MAPS {
            loader.map_pin_path(spec.name, dir.join(spec.pin));
        }
    }
    Ok(loader.load(OBJECT)?)
}

/// Silences what a predecessor left. Maps of another layout are unpinned: the programs that use
/// them then drop all that is public, and are replaced one by one.
fn end_predecessor(dir: &Path) -> Result<(), Error> {
    let mut opened = Vec::new();
    for spec in pins::MAPS {
        match pins::open(dir, spec) {
            Ok(fd) => opened.push(fd),
            Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
            Err(error @ Error::Layout(_)) => tracing::info!(%error, "dropping a pin"),
            Err(error) => return Err(error),
        }
    }
    match cell::end_pinned(dir) {
        Err(Error::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        Err(Error::Layout(_)) => {}
        result => result?,
    }
    let Ok([public, ..]) = <[OwnedFd; pins::MAPS.len()]>::try_from(opened) else {
        return pins::drop_maps(dir);
    };
    let map = public_map(&public)?;
    let mut table = read(map)?;
    let granted: Vec<(Key, Entry)> = table
        .iter()
        .filter(|(_, entry)| entry.slot != 0)
        .map(|(key, entry)| (*key, Entry { slot: 0, ..*entry }))
        .collect();
    write(map, &mut table, granted)
}

fn public_map(fd: &OwnedFd) -> Result<MapRef<'_, Key, Entry>, Error> {
    MapRef::new(fd.as_fd())
        .map_err(|error| Error::system("asking for the layout of", pins::PUBLIC.pin, error))?
        .ok_or_else(|| Error::Layout(pins::PUBLIC.pin.into()))
}

fn changing(error: io::Error) -> Error {
    Error::system("changing", "the lease map", error)
}

fn read(map: MapRef<'_, Key, Entry>) -> Result<Table, Error> {
    let reading = |error| Error::system("reading", "the lease map", error);
    let mut table = Table::new();
    for key in map.keys().map_err(reading)? {
        if let Some(entry) = map.get(&key).map_err(reading)? {
            table.insert(key, entry);
        }
    }
    Ok(table)
}

fn write(
    map: MapRef<'_, Key, Entry>,
    table: &mut Table,
    changes: Vec<(Key, Entry)>,
) -> Result<(), Error> {
    let (keys, entries): (Vec<Key>, Vec<Entry>) = changes.iter().copied().unzip();
    let result = map.set_all(&keys, &entries).map_err(changing);
    if result.is_ok() {
        table.extend(changes);
    } else {
        // Some may be written: what the kernel has is what counts.
        for key in keys {
            match map.get(&key) {
                Ok(Some(entry)) => drop(table.insert(key, entry)),
                Ok(None) => drop(table.remove(&key)),
                Err(_) => {}
            }
        }
    }
    result
}

fn detach_clsact(ifindex: u32) -> Result<(), Error> {
    // Gone, and its filters with it.
    let Ok(interface) = Interface::find(ifindex) else {
        return Ok(());
    };
    DIRECTIONS
        .iter()
        .try_for_each(|direction| interface.detach_clsact(*direction))
}
