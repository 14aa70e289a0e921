//! What a run is made of.

use std::time::Duration;

use ctdb_core::authority::Timing;
use ctdb_core::planted::Bug;

/// A timing profile of `design.md` section 4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Profile {
    /// 1 s, L 5 s.
    Cautious,
    /// 250 ms, L 1.5 s.
    Standard,
    /// 50 ms, L 300 ms.
    Fast,
}

impl Profile {
    /// Its numbers; q is 20 ms in all of them.
    pub fn timing(self) -> Timing {
        let ms = Duration::from_millis;
        match self {
            Self::Cautious => Timing::new(ms(1000), ms(5000), ms(20)),
            Self::Standard => Timing::standard(),
            Self::Fast => Timing::new(ms(50), ms(300), ms(20)),
        }
    }

    /// ADDR-2 after faults of any kind, on clocks that are wrong by up to 9 %: a promise to run
    /// out, the abstention of nodes that started last, evidence, links that have to come back,
    /// and some elections that fail. The bounds of single faults are those of the scenarios.
    pub fn recovery_bound(self) -> Duration {
        let timing = self.timing();
        timing.promise() * 3 + timing.interval * 4 + Duration::from_secs(3)
    }

    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "cautious" => Some(Self::Cautious),
            "standard" => Some(Self::Standard),
            "fast" => Some(Self::Fast),
            _ => None,
        }
    }
}

/// What decides in a run (`[cluster] authority`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Authority {
    /// More than half of the nodes.
    Majority,
    /// Whoever holds the lock.
    Lock,
    /// Both.
    Both,
}

impl Authority {
    /// From its name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "majority" => Some(Self::Majority),
            "lock" => Some(Self::Lock),
            "both" => Some(Self::Both),
            _ => None,
        }
    }
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Everything random comes from it.
    pub seed: u64,
    /// Number of nodes; drawn if `None`.
    pub nodes: Option<usize>,
    /// Timing profile.
    pub profile: Profile,
    /// What decides.
    pub authority: Authority,
    /// Planted bug.
    pub bug: Option<Bug>,
    /// Lines of trace to keep.
    pub trace: usize,
    /// How long faults go on.
    pub chaos: Duration,
    /// Databases are attached, and their members looked at.
    pub databases: bool,
}

impl Options {
    /// A run as the tests do it.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: None,
            profile: Profile::Standard,
            authority: Authority::Majority,
            bug: None,
            trace: 0,
            chaos: Duration::from_secs(40),
            databases: seed.is_multiple_of(2),
        }
    }
}

/// A broken promise.
#[derive(Clone, PartialEq, Debug)]
pub struct Violation {
    /// `ADDR-1` ...
    pub promise: &'static str,
    /// Seconds into the run.
    pub at: f64,
    /// What was seen.
    pub text: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} broken at {:.6} s: {}",
            self.promise, self.at, self.text
        )
    }
}

/// What happened in a run.
#[derive(Clone, Copy, Default, Debug)]
pub struct Stats {
    /// Events of the simulator.
    pub events: u64,
    /// Terms that were acted in.
    pub elections: u64,
    /// Grants given.
    pub grants: u64,
    /// States and transitions seen.
    pub coverage: super::coverage::Coverage,
    /// Simulated time, in milliseconds.
    pub simulated_ms: u64,
    /// Changes of the nodes list.
    pub reloads: u64,
    /// Starts without a record of the list: of those that abstain, and of those that count as the
    /// first life of a boot long past.
    pub unrecorded: [u64; 2],
    /// Faults injected.
    pub faults: u64,
    /// From the end of the faults until all addresses were served, in milliseconds.
    pub recovery_ms: u64,
    /// Whether the partition had a quorum and something to serve.
    pub recovered: bool,
}

/// The end of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// Counters.
    pub stats: Stats,
    /// The last lines, if they were asked for.
    pub trace: String,
}
