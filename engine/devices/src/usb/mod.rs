//! USB: host controllers and the devices on their ports.

mod device;
mod keyboard;
mod tablet;
pub mod uhci;
#[cfg(test)]
mod uhci_tests;
