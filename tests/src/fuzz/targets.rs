//! The targets, by room.

pub(super) mod db;
pub(super) mod planted;
