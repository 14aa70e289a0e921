//! Kernel programs of the address lease: see `lease`.
#![no_std]
#![no_main]

mod frame;
mod lease;
mod rt;
