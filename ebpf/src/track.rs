//! The connection tracker (`design.md` section 4, `spec/kernel.md` 2).
//!
//! A program on the tracepoint `inet_sock_set_state` keeps a table of all TCP connections to
//! public addresses in the daemon's network namespace and tells the daemon of each change. Program
//! and table are pinned: they go on while no daemon runs, and a successor takes the table over
//! without a gap. What was there before, or while no program ran, is read in by an iterator over
//! all sockets, which also finds what ended unseen.

mod pins;
mod table;

use std::{
    collections::BTreeSet,
    fmt, io,
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader, include_bytes_aligned,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, Iter, ProgramError},
};

pub use self::table::{Change, Tracked};
use self::table::{Config, Entry, Key};
use crate::{
    Error,
    btf::Btf,
    pins::MapSpec,
    sock::{Constants, kernel_types, lacking},
    sys::{self, MapRef},
};

/// Public addresses that the tracker's map holds.
pub const ADDRESSES: usize = 8192;
/// Bytes of the ring of changes: some 47,000 of them.
pub const RING_BYTES: u32 = 4 << 20;
/// Changes that one [`Tracker::drain`] gives at most; more than the ring holds.
pub const DRAIN_LIMIT: usize = 65_536;
/// An entry younger than this is not thought to be left over: its program may have begun before
/// the reading of all sockets that did not mark it.
const YOUNG_NS: u64 = 1_000_000_000;

/// Between two lines in the log about overruns.
const WARN_EVERY_NS: u64 = 10_000_000_000;

static OBJECT: &[u8] = include_bytes_aligned!("../object/ctdb-track-x86_64.o");
const WHAT: &str = "track connections";
const STATE: &str = "track_state";
const SEED: &str = "track_seed";
const TRACEPOINT: &str = "inet_sock_set_state";

// Counters of the kernel programs.
const OPENED: u32 = 0;
const CLOSED: u32 = 1;
const FULL: u32 = 2;
const FAILED: u32 = 3;
const RING_LOST: u32 = 4;
const SEEDED: u32 = 5;

/// Since the maps were made; a successor counts on, but for the last three.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections that were established.
    pub opened: u64,
    /// Connections that ended.
    pub closed: u64,
    /// Connections for which the table had no room.
    pub table_full: u64,
    /// Connections that the kernel could not put into the table for another reason.
    pub failed: u64,
    /// Changes that the ring had no room for, while no daemon read it included.
    pub ring_lost: u64,
    /// Connections that were read in.
    pub seeded: u64,
    /// Times that this daemon saw changes lost and read the table anew.
    pub overruns: u64,
    /// Things that were put right after somebody else had changed them.
    pub repairs: u64,
    /// Times that all sockets were read.
    pub sweeps: u64,
}

/// The tracker of the calling thread's network namespace. Dropping it leaves it at work.
pub struct Tracker {
    dir: PathBuf,
    specs: [MapSpec; 4],
    netns: u64,
    ebpf: Ebpf,
    link: OwnedFd,
    address: OwnedFd,
    table: OwnedFd,
    config: OwnedFd,
    counts: PerCpuArray<MapData, u64>,
    counts_fd: OwnedFd,
    ring: RingBuf<MapData>,
    /// What the map of addresses shall hold.
    known: BTreeSet<Key>,
    round: u32,
    /// The next drain gives everything.
    whole: bool,
    /// Changes lost before the last reading of the whole table.
    lost: u64,
    /// Insertions and removals that the map refused before the last sweep.
    refused: u64,
    /// Entries too young to be judged by the last sweep.
    unsettled: bool,
    overruns: u64,
    /// When an overrun was last logged.
    warned_ns: u64,
    repairs: u64,
    sweeps: u64,
}

impl fmt::Debug for Tracker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracker")
            .field("dir", &self.dir)
            .field("netns", &self.netns)
            .field("addresses", &self.known.len())
            .finish_non_exhaustive()
    }
}

impl Tracker {
    /// Whether this kernel can; the error is one line with what it lacks. Loads the programs and
    /// drops them again.
    pub fn supported() -> Result<(), Error> {
        if cfg!(not(target_arch = "x86_64")) {
            return Err(Error::Lacking {
                what: WHAT,
                lacks: "no kernel programs are built for this processor yet".into(),
            });
        }
        sys::raise_memlock();
        let constants = constants()?;
        let loaded = load(&constants, None, 1024).and_then(|mut ebpf| programs(&mut ebpf));
        loaded.map_err(|error| lacking(WHAT, &error))
    }

    /// Starts tracking in the calling thread's network namespace, with pins in `dir`, where a
    /// bpffs is mounted if it is none. The table holds `max_connections`.
    ///
    /// What a predecessor pinned there is taken over if it has this version's layout and is of
    /// this namespace: its program ends after ours has begun. [`Tracker::set_addresses`] is to
    /// follow; nothing is given before.
    pub fn open(dir: &Path, max_connections: u32) -> Result<Self, Error> {
        sys::raise_memlock();
        let constants = constants()?;
        crate::pins::prepare(dir)?;
        let specs = pins::maps(max_connections);
        pins::drop_unfit(dir, &specs, constants.netns)?;
        let mut ebpf = load(&constants, Some((dir, &specs)), max_connections)?;
        programs(&mut ebpf)?;
        sys::give_back_memory();
        let [address, table, config, counts_fd] =
            specs.each_ref().map(|spec| crate::pins::open(dir, spec));
        let (address, table, config, counts_fd) = (address?, table?, config?, counts_fd?);
        let counts = PerCpuArray::try_from(
            ebpf.take_map(pins::COUNTS)
                .ok_or(Error::Object(pins::COUNTS))?,
        )
        .map_err(EbpfError::MapError)?;
        let ring = RingBuf::try_from(
            ebpf.take_map(pins::CHANGES)
                .ok_or(Error::Object(pins::CHANGES))?,
        )
        .map_err(EbpfError::MapError)?;
        let round = pins::config(&config)?.round;
        let known = dump::<Key, u32>(&address, pins::ADDRESS)?
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        let link = {
            let program: &mut BtfTracePoint = program(&mut ebpf, STATE)?;
            let fd = program.fd().map_err(refused(STATE))?;
            let link = sys::attach_tracepoint(fd.as_fd())
                .map_err(|error| Error::system("attaching to tracepoint", TRACEPOINT, error))?;
            // A start that was broken off.
            crate::pins::unpin(&dir.join(pins::NEW_LINK))?;
            sys::obj_pin(link.as_fd(), &dir.join(pins::NEW_LINK))
                .map_err(|error| Error::system("pinning", pins::NEW_LINK, error))?;
            link
        };
        pins::replace_link(dir)?;
        let mut tracker = Self {
            dir: dir.to_owned(),
            specs,
            netns: constants.netns,
            ebpf,
            link,
            address,
            table,
            config,
            counts,
            counts_fd,
            ring,
            known,
            round,
            whole: false,
            lost: 0,
            refused: 0,
            unsettled: false,
            overruns: 0,
            warned_ns: 0,
            repairs: 0,
            sweeps: 0,
        };
        tracker.set_round(round)?;
        Ok(tracker)
    }

    /// Says which addresses are public. Connections to new ones are read in, those to others are
    /// forgotten; the next [`Tracker::drain`] gives everything. In the network namespace of
    /// [`Tracker::open`].
    pub fn set_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let wanted: BTreeSet<Key> = addresses.iter().copied().map(table::key).collect();
        if wanted.len() > ADDRESSES {
            return Err(Error::TooManyAddresses {
                count: wanted.len(),
                limit: ADDRESSES,
            });
        }
        let there = std::mem::replace(&mut self.known, wanted);
        self.write_addresses(&there)?;
        self.sweep()
    }

    /// Brings the kernel's set of addresses from `there` to what is known.
    fn write_addresses(&self, there: &BTreeSet<Key>) -> Result<(), Error> {
        let changing = |error| Error::system("changing", pins::ADDRESS, error);
        let map = map::<Key, u32>(&self.address, pins::ADDRESS)?;
        let gone: Vec<Key> = there.difference(&self.known).copied().collect();
        let new: Vec<Key> = self.known.difference(there).copied().collect();
        map.remove_all(&gone).map_err(changing)?;
        map.set_all(&new, &vec![1; new.len()]).map_err(changing)
    }

    /// Gives what happened since the last call, in order; how many changes there were. Does not
    /// block. At [`DRAIN_LIMIT`] there may be more.
    ///
    /// To be called when the descriptor is readable. The kernel wakes a reader only for the first
    /// change after it has read all, so a reader that waits some milliseconds before it drains is
    /// woken as rarely.
    pub fn drain(&mut self, mut each: impl FnMut(Change)) -> Result<usize, Error> {
        // Before the ring: what is lost meanwhile is noticed the next time.
        let lost = self.count(RING_LOST)?;
        if lost != self.lost {
            self.overruns += 1;
            self.whole = true;
            let now = sys::boot_ns();
            if self.warned_ns == 0 || now - self.warned_ns > WARN_EVERY_NS {
                self.warned_ns = now;
                tracing::warn!(
                    lost = lost - self.lost,
                    overruns = self.overruns,
                    "changes of connections came faster than they were read; reading the whole \
                     table"
                );
            }
        }
        let mut given = 0;
        while given < DRAIN_LIMIT
            && let Some(record) = self.ring.next()
        {
            given += 1;
            if self.whole {
                // Older than the table that follows.
                continue;
            }
            // The ring is this program's own, so that all its records are of this version.
            if let Some(change) = table::change(&record) {
                each(change);
            }
        }
        if self.whole {
            let connections = self.dump()?;
            self.whole = false;
            self.lost = lost;
            let complete = self.complete()?;
            given += connections.len();
            each(Change::Whole {
                connections,
                complete,
            });
        }
        Ok(given)
    }

    /// All connections in the kernel's table.
    pub fn dump(&self) -> Result<Vec<Tracked>, Error> {
        let entries = dump::<u64, Entry>(&self.table, pins::TABLE)?;
        Ok(entries
            .iter()
            .filter(|(_, entry)| self.known.contains(&entry.local))
            .map(|(cookie, entry)| table::tracked(*cookie, entry))
            .collect())
    }

    /// Whether the table had room for all connections there are.
    fn complete(&self) -> Result<bool, Error> {
        Ok(self.count(FULL)? + self.count(FAILED)? == self.refused)
    }

    /// Reads all sockets: what is not in the table is put there, what is there and has no socket
    /// any more is removed. The next drain gives everything.
    pub fn sweep(&mut self) -> Result<(), Error> {
        let here = sys::netns_cookie()
            .map_err(|error| Error::system("asking for the cookie of", "this namespace", error))?;
        if here != self.netns {
            return Err(Error::WrongNamespace {
                tracked: self.netns,
                here,
            });
        }
        let before = sys::boot_ns();
        self.refused = self.count(FULL)? + self.count(FAILED)?;
        self.set_round(self.round.wrapping_add(1))?;
        let program: &mut Iter = program(&mut self.ebpf, SEED)?;
        let fd = program.fd().map_err(refused(SEED))?;
        sys::run_iterator(fd.as_fd())
            .map_err(|error| Error::system("reading all sockets with", SEED, error))?;
        let mut stale = Vec::new();
        self.unsettled = false;
        for (cookie, entry) in dump::<u64, Entry>(&self.table, pins::TABLE)? {
            if !self.known.contains(&entry.local) {
                stale.push(cookie);
            } else if entry.round != self.round {
                if entry.since_ns + YOUNG_NS < before {
                    stale.push(cookie);
                } else {
                    self.unsettled = true;
                }
            }
        }
        map::<u64, Entry>(&self.table, pins::TABLE)?
            .remove_all(&stale)
            .map_err(|error| Error::system("changing", pins::TABLE, error))?;
        self.sweeps += 1;
        self.whole = true;
        Ok(())
    }

    fn set_round(&mut self, round: u32) -> Result<(), Error> {
        self.round = round;
        let config = Config {
            round,
            padding: 0,
            netns: self.netns,
        };
        map::<u32, Config>(&self.config, pins::CONFIG)?
            .set(&0, &config)
            .map_err(|error| Error::system("changing", pins::CONFIG, error))
    }

    /// Puts right what somebody else changed: pins that are gone, a bpffs that was unmounted,
    /// addresses that were taken out of the map. Reads all sockets anew if something was lost by
    /// that, or if the table was full and has room again. To be called every second or so, in the
    /// network namespace of [`Tracker::open`]. Returns whether a drain is due.
    pub fn check(&mut self) -> Result<bool, Error> {
        crate::pins::prepare(&self.dir)?;
        let [address, table, config, counts] = self.specs.each_ref().map(|spec| spec.pin);
        let missing = pins::repin(
            &self.dir,
            &[
                (address, self.address.as_fd()),
                (table, self.table.as_fd()),
                (config, self.config.as_fd()),
                (counts, self.counts_fd.as_fd()),
                (pins::LINK, self.link.as_fd()),
            ],
        )?;
        if missing > 0 {
            self.repairs += u64::from(missing);
            tracing::warn!(
                missing,
                dir = %self.dir.display(),
                "pins of the connection tracker were gone and are there again"
            );
        }
        let there: BTreeSet<Key> = dump::<Key, u32>(&self.address, pins::ADDRESS)?
            .into_iter()
            .map(|(key, _)| key)
            .collect();
        let round = pins::config(&self.config)?;
        if there != self.known || round.round != self.round || round.netns != self.netns {
            self.repairs += 1;
            tracing::warn!("the connection tracker's maps were changed from outside; put right");
            self.write_addresses(&there)?;
            self.sweep()?;
        } else if self.unsettled || (!self.complete()? && self.has_room()?) {
            self.sweep()?;
        }
        Ok(self.whole)
    }

    fn has_room(&self) -> Result<bool, Error> {
        let [_, table, ..] = &self.specs;
        let there = dump::<u64, Entry>(&self.table, pins::TABLE)?.len();
        // Some, so that a table that stays full is not swept every time.
        Ok(there < table.max_entries as usize - table.max_entries as usize / 16)
    }

    fn count(&self, what: u32) -> Result<u64, Error> {
        let values = self.counts.get(&what, 0).map_err(EbpfError::MapError)?;
        Ok(values.iter().sum())
    }

    /// What was counted.
    pub fn stats(&self) -> Result<Stats, Error> {
        Ok(Stats {
            opened: self.count(OPENED)?,
            closed: self.count(CLOSED)?,
            table_full: self.count(FULL)?,
            failed: self.count(FAILED)?,
            ring_lost: self.count(RING_LOST)?,
            seeded: self.count(SEEDED)?,
            overruns: self.overruns,
            repairs: self.repairs,
            sweeps: self.sweeps,
        })
    }

    /// Ends the tracking and removes all pins, and the bpffs if nothing else is in it.
    pub fn close_clean(self) -> Result<(), Error> {
        pins::drop_all(&self.dir)
    }
}

/// Readable when there are changes.
impl AsFd for Tracker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

fn constants() -> Result<Constants, Error> {
    Btf::of_kernel()
        .and_then(|btf| Constants::find(&btf))
        .map_err(|lacks| Error::Lacking { what: WHAT, lacks })
}

fn load(
    constants: &Constants,
    pins: Option<(&Path, &[MapSpec; 4])>,
    max_connections: u32,
) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    constants.set(&mut loader);
    loader.map_max_entries(pins::TABLE, max_connections);
    if let Some((dir, specs)) = pins {
        for spec in specs {
            loader.map_pin_path(spec.name, dir.join(spec.pin));
        }
    }
    Ok(loader.load(OBJECT)?)
}

/// Has the kernel check and take both programs.
fn programs(ebpf: &mut Ebpf) -> Result<(), Error> {
    let types = kernel_types().map_err(|lacks| Error::Lacking { what: WHAT, lacks })?;
    program::<BtfTracePoint>(ebpf, STATE)?
        .load(TRACEPOINT, &types)
        .map_err(refused(STATE))?;
    program::<Iter>(ebpf, SEED)?
        .load("tcp", &types)
        .map_err(refused(SEED))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut P, Error>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name)
        .ok_or(Error::Object(name))?
        .try_into()
        .map_err(refused(name))
}

fn refused(name: &'static str) -> impl Fn(ProgramError) -> Error {
    move |source| Error::Program {
        name,
        source: Box::new(source),
    }
}

fn map<'a, K: sys::Plain, V: sys::Plain>(
    fd: &'a OwnedFd,
    name: &'static str,
) -> Result<MapRef<'a, K, V>, Error> {
    MapRef::new(fd.as_fd())
        .map_err(|error| Error::system("asking for the layout of", name, error))?
        .ok_or_else(|| Error::Layout(name.into()))
}

fn dump<K: sys::Plain, V: sys::Plain>(
    fd: &OwnedFd,
    name: &'static str,
) -> Result<Vec<(K, V)>, Error> {
    map(fd, name)?
        .dump()
        .map_err(|error: io::Error| Error::system("reading", name, error))
}
