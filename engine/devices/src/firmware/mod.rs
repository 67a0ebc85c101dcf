//! What firmware asks the machine about itself.

pub mod fw_cfg;
