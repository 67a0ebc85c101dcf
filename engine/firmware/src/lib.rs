//! What a computer needs before its operating system: BIOS images (found on the host, never shipped), the tables that
//! describe the board, boot order, and direct kernel boot. All of it reaches the firmware through fw_cfg as
//! [`FirmwareFile`](engine_bus::FirmwareFile)s.
//!
//! It is *not* a BIOS: SeaBIOS and its VGA BIOS come from the host's packages at run time.
//! Threads: none; everything is made before the first instruction. Start at [`pc`], then [`linux`].
#![forbid(unsafe_code)]

pub mod acpi;
pub mod e820;
pub mod images;
pub mod linux;
mod multiboot;
pub mod pc;
mod rom_code;
pub mod smbios;

pub use images::FirmwareError;
