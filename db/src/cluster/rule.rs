//! Rules of single records, as functions (spec/database.md C.1, D.1, D.2).

use ctdb_wire::ids::Pnn;

use crate::hash::jenkins;
use crate::record::{LtdbHeader, RecordFlags, Rsn};

/// The location master of `key` among `lmasters` (D.1). `None` if there is none at all.
pub fn lmaster(key: &[u8], lmasters: &[Pnn]) -> Option<Pnn> {
    if lmasters.is_empty() {
        return None;
    }
    lmasters
        .get(jenkins(key) as usize % lmasters.len())
        .copied()
}

/// What a record that a node does not have is taken for (D.1).
pub fn initial(lmaster: Pnn) -> LtdbHeader {
    LtdbHeader {
        rsn: Rsn(0),
        dmaster: lmaster.get(),
        reserved: 0,
        flags: RecordFlags::AUTOMATIC,
    }
}

/// What the daemon does with a record that it stores in a volatile database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Keep it as the header now says; `delete_later` puts it into the delete queue.
    Keep {
        /// The record is empty and owned here: the vacuum shall look at it.
        delete_later: bool,
    },
    /// Remove it.
    Remove,
}

/// The store rule (D.2): decides, raises the sequence number of an owned record if `raise`, and
/// clears the flags that are never stored.
///
/// Ours raises only where the record has just arrived: see "Sequence numbers" in `db/CLUSTER.md`.
pub fn store(
    header: &mut LtdbHeader,
    empty: bool,
    me: Pnn,
    lmaster: Option<Pnn>,
    raise: bool,
) -> Stored {
    let flags = header.flags;
    let mine = header.dmaster == me.get();
    let keep = !empty
        || flags.intersects(
            RecordFlags::RO_FLAGS | RecordFlags::AUTOMATIC | RecordFlags::MIGRATED_WITH_DATA,
        )
        || if lmaster == Some(me) {
            !(mine && flags.contains(RecordFlags::VACUUM_MIGRATED))
        } else {
            mine
        };
    if keep && mine && raise && !flags.intersects(RecordFlags::RO_FLAGS) {
        header.rsn.0 += 1;
    }
    header
        .flags
        .remove(RecordFlags::VACUUM_MIGRATED | RecordFlags::AUTOMATIC);
    if keep {
        Stored::Keep {
            delete_later: empty && (mine || flags.contains(RecordFlags::AUTOMATIC)),
        }
    } else {
        Stored::Remove
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pnn(n: u32) -> Pnn {
        Pnn::new(n).unwrap()
    }

    #[test]
    fn lmasters_are_those_of_the_vectors() {
        // H.3: index of "hello" among 3 is 1; vnn map {0, 2, 3} gives node 2.
        let map = [pnn(0), pnn(2), pnn(3)];
        let expected = map[0x34cb_bc6e % 3];
        assert_eq!(jenkins(b"hello"), 0x34cb_bc6e);
        assert_eq!(lmaster(b"hello", &map), Some(expected));
        assert_eq!(lmaster(b"hello", &[]), None);
    }

    #[test]
    fn what_is_kept() {
        let (me, other) = (pnn(0), pnn(1));
        let header = |dmaster: Pnn, flags| LtdbHeader {
            rsn: Rsn(7),
            dmaster: dmaster.get(),
            reserved: 0,
            flags,
        };
        let none = RecordFlags::empty();
        let cases = [
            // header, empty, lmaster, kept, number
            (header(other, none), false, other, true, 7),
            (header(other, none), true, other, false, 7),
            (header(other, none), true, me, true, 7),
            (
                header(other, RecordFlags::MIGRATED_WITH_DATA),
                true,
                other,
                true,
                7,
            ),
            (header(me, none), true, other, true, 8),
            (header(me, none), false, other, true, 8),
            (header(me, RecordFlags::VACUUM_MIGRATED), true, me, false, 7),
            (
                header(me, RecordFlags::RO_HAVE_DELEGATIONS),
                false,
                me,
                true,
                7,
            ),
        ];
        for (header, empty, lmaster, kept, rsn) in cases {
            let mut stored = header;
            let verdict = store(&mut stored, empty, me, Some(lmaster), true);
            assert_eq!(verdict != Stored::Remove, kept, "{header:?} {empty}");
            assert_eq!(stored.rsn, Rsn(rsn), "{header:?} {empty}");
            assert!(!stored.flags.contains(RecordFlags::VACUUM_MIGRATED));
        }
    }
}
