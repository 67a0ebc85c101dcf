//! QEMU's exit port: a value written to it ends the process with the status `value * 2 + 1`, by which test programs
//! report without any other device. It has no state.

use engine_base::rank;
use engine_bus::{
    BuildError, Device, DeviceModel, Options, Port, PortIo, Power, PowerRequest, ResetKind, RestoreError, SavedState, Slot,
    Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel = DeviceModel {
    id: "isa-debug-exit",
    title: "Exit port for test programs",
    slot: Slot::Isa,
    rank: rank::DEVICE,
    options: &[("iobase", "its first port, 0x501 when not given"), ("iosize", "how many ports, 2 when not given")],
    build,
};

struct ExitPort {
    power: Power,
}

fn build(options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    let base = options.number(MODEL.id, "iobase", 0x501, 0xffff)? as u16;
    let size = options.number(MODEL.id, "iosize", 2, 8)? as u16;
    wiring.claim_ports(base, size.max(1), Width::Dword);
    Ok(Box::new(ExitPort { power: wiring.power() }))
}

impl Device for ExitPort {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { power: _ } = self;
    }

    fn save(&self) -> SavedState {
        let Self { power: _ } = self;
        SavedState::stateless()
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        saved.expect_stateless()
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for ExitPort {
    fn port_read(&mut self, _port: Port, _width: Width) -> u32 {
        0
    }

    fn port_write(&mut self, _port: Port, _width: Width, value: u32) {
        self.power.request(PowerRequest::Exit((value << 1 | 1) as i32));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    #[test]
    fn the_written_value_becomes_an_odd_exit_status() {
        let mut bench = Bench::new();
        bench.plug(&MODEL, &[("iobase", "0xf4"), ("iosize", "0x04")]);
        bench.outl(0xf4, 0x10);
        assert_eq!(bench.take_power_requests(), [PowerRequest::Exit(33)]);
    }
}
