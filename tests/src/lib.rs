//! What needs more than one room: the simulator of whole clusters of the pure cores, and the
//! laboratory of network namespaces with real daemons and services.
#![forbid(unsafe_code)]

pub mod lab;
pub mod sim;
