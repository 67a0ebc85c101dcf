//! System control port A: the fast A20 gate and the fast reset of the PS/2.
//! The gate is one source of the wire `a20`; the keyboard controller is the other, and either one opens it.
//! Left out: the security lock of the CMOS (bit 3), which is stored and does nothing, as on later chipsets.
//! See: IBM PS/2 Hardware Interface Technical Reference, "System Control Port A (Hex 0092)".

use engine_base::rank;
use engine_bus::{
    BuildError, Device, DeviceModel, IrqLine, Options, Port, PortIo, Power, PowerRequest, ResetKind, RestoreError, SavedState,
    Slot, Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel =
    DeviceModel { id: "port92", title: "System control port A", slot: Slot::Chipset, rank: rank::DEVICE, options: &[], build };

const PORT: u16 = 0x92;
/// A change from 0 to 1 pulses the processor's reset.
const ALTERNATE_RESET: u8 = 1 << 0;
/// Opens the A20 gate.
const ALTERNATE_A20: u8 = 1 << 1;

struct Port92 {
    // Wires
    a20: IrqLine,
    power: Power,
    // State the guest can see; all of it is saved
    value: u8,
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    wiring.claim_ports(PORT, 1, Width::Byte);
    Ok(Box::new(Port92 { a20: wiring.wire("a20"), power: wiring.power(), value: 0 }))
}

impl Device for Port92 {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { a20, power: _, value } = self;
        *value = 0;
        a20.lower();
    }

    fn save(&self) -> SavedState {
        let Self { a20: _, power: _, value } = self;
        SavedState::of(saved::VERSION, &saved::Port92 { value: *value })
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::Port92 { value } = saved.read(saved::VERSION)?;
        self.value = value;
        self.a20.set(value & ALTERNATE_A20 != 0);
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for Port92 {
    fn port_read(&mut self, _port: Port, _width: Width) -> u32 {
        self.value.into()
    }

    fn port_write(&mut self, _port: Port, _width: Width, value: u32) {
        let before = std::mem::replace(&mut self.value, value as u8);
        self.a20.set(self.value & ALTERNATE_A20 != 0);
        if self.value & !before & ALTERNATE_RESET != 0 {
            self.power.request(PowerRequest::Reset);
        }
    }
}

mod saved {
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct Port92 {
        pub value: u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, moved, reset};

    #[test]
    fn bit_1_opens_the_a20_gate_until_reset() {
        let (bench, cell) = Bench::with(&MODEL);
        bench.outb(PORT, ALTERNATE_A20);
        assert!(bench.level("a20"));
        assert_eq!(bench.inb(PORT), ALTERNATE_A20);
        let (copy, _) = moved(&bench, &cell, &MODEL);
        assert!(copy.level("a20"));
        reset(&cell);
        assert!(!bench.level("a20"));
    }

    #[test]
    fn only_a_rising_bit_0_resets() {
        let (bench, _cell) = Bench::with(&MODEL);
        bench.outb(PORT, ALTERNATE_RESET);
        bench.outb(PORT, ALTERNATE_RESET);
        assert_eq!(bench.take_power_requests(), [PowerRequest::Reset]);
    }
}
