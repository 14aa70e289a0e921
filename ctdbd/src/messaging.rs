//! Messages between the clients of all nodes (`spec/client-protocol.md` 6, 7): who has registered
//! what, where a packet goes, and which processes of other nodes are there. Pure; the shell is
//! [`clients`](crate::clients).
//!
//! * [`registry`]: addresses, tunnels and processes of this node's clients.
//! * [`routing`]: node numbers and broadcast addresses.
//! * [`processes`]: tables that nodes keep of each other's processes, so that most questions
//!   whether one is there are answered without a journey.

pub mod processes;
pub mod registry;
pub mod routing;
