//! The board's own PCI functions: host bridge, ISA bridge, power management.

pub mod i440fx;
pub mod piix3;
pub mod piix4_pm;
