//! Disks: controllers and the drives behind them.

mod ata_disk;
mod atapi_cdrom;
mod bus_master;
mod ide_channel;
mod ide_drive;
#[cfg(test)]
mod ide_tests;
pub mod isa_fdc;
#[cfg(test)]
mod memory_disk;
pub mod piix3_ide;
