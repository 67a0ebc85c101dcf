//! The list of all parts. Adding one is its file and a line here; the settings page, `-device help`, the fuzzer and the
//! save/restore test pick it up from this list.

use engine_bus::DeviceModel;

/// Every device model, by folder.
#[rustfmt::skip] // one line each, however short
pub const MODELS: &[&DeviceModel] = &[
    &crate::chipset::i440fx::MODEL,
    &crate::chipset::piix3::MODEL,
    &crate::chipset::piix4_pm::MODEL,
    &crate::firmware::fw_cfg::MODEL,
    &crate::input::i8042::MODEL,
    &crate::interrupt::i8259::MODEL,
    &crate::interrupt::ioapic::MODEL,
    &crate::legacy::i8237::MODEL,
    &crate::legacy::port92::MODEL,
    &crate::serial::isa_debug_exit::MODEL,
    &crate::serial::isa_debugcon::MODEL,
    &crate::serial::isa_serial::MODEL,
    &crate::time::hpet::MODEL,
    &crate::time::i8254::MODEL,
    &crate::time::mc146818rtc::MODEL,
    &crate::video::vga::MODEL,
    &crate::storage::piix3_ide::MODEL,
    &crate::usb::uhci::MODEL,
    &crate::storage::isa_fdc::MODEL,
];

/// The model of this id: `isa-serial`.
pub fn model(id: &str) -> Option<&'static DeviceModel> {
    MODELS.iter().copied().find(|model| model.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_model_has_an_id_of_its_own() {
        let ids: BTreeSet<_> = MODELS.iter().map(|model| model.id).collect();
        assert_eq!(ids.len(), MODELS.len());
    }
}
