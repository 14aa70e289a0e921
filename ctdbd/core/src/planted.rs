//! Bugs that the simulator plants to show that it finds what it should.
//!
//! Without the feature `planted-bugs`, which only the tests enable, none can be switched on.

/// A planted bug, named as in `authority.md`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[allow(missing_docs, reason = "the names are those of authority.md's list")]
pub enum Bug {
    RightFromReceivingTime,
    SilenceIsExpiry,
    NoAbstention,
    LateTickAccuses,
    SpeaksAtOnce,
    NoMargin,
    NoEpoch,
    HoldsNotAccounted,
    DoneSaidEarly,
    VoteWithoutPromise,
    ActsAfterLoss,
    AnswerNotRecorded,
    NoTermFence,
    OneSlot,
    ActsAfterLostLock,
    LockActsAtOnce,
    SettleSkipped,
    ClaimKept,
    HolderOutlivesProof,
    AnyList,
    RemovedForgotten,
    FreshWhateverTheList,
    OutgoingLeader,
    NestedElection,
    GoodbyeReplayed,
    GrantBeforeDone,
    LinkIsMembership,
    FormerTakenAtOnce,
}

impl Bug {
    /// All of them, for the simulator's command line.
    pub const ALL: [Self; 28] = [
        Self::RightFromReceivingTime,
        Self::SilenceIsExpiry,
        Self::NoAbstention,
        Self::LateTickAccuses,
        Self::SpeaksAtOnce,
        Self::NoMargin,
        Self::NoEpoch,
        Self::HoldsNotAccounted,
        Self::DoneSaidEarly,
        Self::VoteWithoutPromise,
        Self::ActsAfterLoss,
        Self::AnswerNotRecorded,
        Self::NoTermFence,
        Self::OneSlot,
        Self::ActsAfterLostLock,
        Self::LockActsAtOnce,
        Self::SettleSkipped,
        Self::ClaimKept,
        Self::HolderOutlivesProof,
        Self::AnyList,
        Self::RemovedForgotten,
        Self::FreshWhateverTheList,
        Self::OutgoingLeader,
        Self::NestedElection,
        Self::GoodbyeReplayed,
        Self::GrantBeforeDone,
        Self::LinkIsMembership,
        Self::FormerTakenAtOnce,
    ];
}

/// The bug that is planted, if any.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Planted {
    #[cfg(feature = "planted-bugs")]
    bug: Option<Bug>,
}

impl Planted {
    /// Plants one bug.
    #[cfg(feature = "planted-bugs")]
    pub fn one(bug: Bug) -> Self {
        Self { bug: Some(bug) }
    }

    /// Whether `bug` is planted.
    #[cfg(feature = "planted-bugs")]
    pub fn has(self, bug: Bug) -> bool {
        self.bug == Some(bug)
    }

    /// Nothing can be planted in this build.
    #[cfg(not(feature = "planted-bugs"))]
    pub fn has(self, _bug: Bug) -> bool {
        false
    }
}
