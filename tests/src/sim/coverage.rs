//! Which states and transitions a number of runs has seen.

use ctdb_core::authority::{Right, Role};

/// Names of the roles, in the order of [`role`].
pub const ROLES: [&str; 5] = [
    "follower",
    "pre-candidate",
    "candidate",
    "claimant",
    "leader",
];
/// Names of the states of the right.
pub const RIGHTS: [&str; 3] = ["waiting", "held", "lapsed"];
/// Kinds of faults, in the order of the plan.
pub const FAULTS: [&str; super::faults::KINDS] = [
    "crash",
    "power",
    "freeze",
    "freeze-within",
    "hang",
    "stall",
    "block",
    "block",
    "split",
    "heal",
    "quality",
    "interface",
    "rate",
    "stop",
    "move",
    "choke",
    "flag",
    "lock-hangs",
    "lock-expires",
    "lock-cut",
    "reload",
    "clock",
    "disk",
    "rolling",
    "blackout",
    "list-trouble",
    "stuck-order",
];

/// Counters.
#[derive(Clone, Copy, Default, Debug)]
pub struct Coverage {
    /// Changes of role, from and to.
    pub roles: [[u64; 5]; 5],
    /// Changes of the right, from and to.
    pub rights: [[u64; 3]; 3],
    /// Faults of each kind.
    pub faults: [u64; super::faults::KINDS],
}

/// Index of a role.
pub fn role(role: Role) -> usize {
    match role {
        Role::Follower => 0,
        Role::PreCandidate { .. } => 1,
        Role::Candidate { .. } => 2,
        Role::Claimant { .. } => 3,
        Role::Leader { .. } => 4,
    }
}

/// Index of a right.
pub fn right(right: Right) -> usize {
    match right {
        Right::Waiting => 0,
        Right::Held { .. } => 1,
        Right::Lapsed { .. } => 2,
    }
}

impl Coverage {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Self) {
        let mine = self.roles.as_flattened_mut().iter_mut();
        mine.zip(other.roles.as_flattened())
            .for_each(|(a, b)| *a += b);
        let mine = self.rights.as_flattened_mut().iter_mut();
        mine.zip(other.rights.as_flattened())
            .for_each(|(a, b)| *a += b);
        self.faults
            .iter_mut()
            .zip(&other.faults)
            .for_each(|(a, b)| *a += b);
    }

    /// One line for each table; what was never seen has a zero.
    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::from("roles:");
        for (from, row) in self.roles.iter().enumerate() {
            for (to, count) in row.iter().enumerate().filter(|(to, _)| *to != from) {
                let _ = write!(text, " {}>{}={count}", ROLES[from], ROLES[to]);
            }
        }
        text.push_str("\nrights:");
        for (from, row) in self.rights.iter().enumerate() {
            for (to, count) in row.iter().enumerate().filter(|(to, _)| *to != from) {
                let _ = write!(text, " {}>{}={count}", RIGHTS[from], RIGHTS[to]);
            }
        }
        text.push_str("\nfaults:");
        for (name, count) in FAULTS.iter().zip(&self.faults) {
            let _ = write!(text, " {name}={count}");
        }
        text
    }
}
