//! What needs more than one room: the simulators of whole clusters of the pure cores, the
//! laboratory of network namespaces with real daemons and services, and the fuzz targets.
#![forbid(unsafe_code)]

pub mod client;
pub mod dbclient;
pub mod dbsim;
pub mod fuzz;
pub mod lab;
pub mod sim;
