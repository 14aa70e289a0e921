//! Bugs that the simulator plants to show that it finds what it should.
//!
//! Without the feature `planted-bugs`, which only the tests enable, none can be switched on.

/// A planted bug.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Bug {
    /// A node that becomes data master keeps the sequence number that the record came with.
    RsnNotRaised,
    /// Messages of an old generation are taken as those of the current one.
    OldGenerationAccepted,
    /// Copies are compared on the location masters of the old map.
    MergeByWrongNode,
    /// A commit is answered when all nodes but one have it on disk.
    AnswerBeforeLastSync,
    /// The copy of a persistent database with the highest sequence number wins, whatever its lineage.
    LineageIgnored,
    /// The databases of a node without right are not frozen.
    StaleOwnerWrites,
    /// A traverse shows the records of its own node only.
    TraverseHere,
    /// A node keeps to itself that records changed.
    SequenceUntold,
    /// A pushed record replaces whatever is there.
    PushReplaces,
    /// A node whose right was proved to be over once stays gone for who asks about its processes.
    OverForGood,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::RsnNotRaised,
        Self::OldGenerationAccepted,
        Self::MergeByWrongNode,
        Self::AnswerBeforeLastSync,
        Self::LineageIgnored,
        Self::StaleOwnerWrites,
        Self::TraverseHere,
        Self::SequenceUntold,
        Self::PushReplaces,
        Self::OverForGood,
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
