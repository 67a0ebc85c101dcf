//! Hosts: what is known of the machine that translated code runs on. One folder for each architecture.

pub(crate) mod x64;
