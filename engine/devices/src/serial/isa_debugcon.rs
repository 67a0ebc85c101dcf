//! The debug port of Bochs and QEMU: a byte written to port E9h goes to the character port `debugcon`, and reading it
//! gives E9h back, by which firmware finds out that it is there. It has no state.

use engine_base::rank;
use engine_bus::{
    BuildError, CharPort, Device, DeviceModel, Options, Port, PortIo, ResetKind, RestoreError, SavedState, Slot, Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel = DeviceModel {
    id: "isa-debugcon",
    title: "Debug port",
    slot: Slot::Isa,
    rank: rank::DEVICE,
    options: &[("iobase", "its port, 0xe9 when not given"), ("readback", "what reading gives, 0xe9 when not given")],
    build,
};

struct DebugPort {
    host: Option<CharPort>,
    readback: u8,
}

fn build(options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    let port = options.number(MODEL.id, "iobase", 0xe9, 0xffff)? as u16;
    let readback = options.number(MODEL.id, "readback", 0xe9, 0xff)? as u8;
    wiring.claim_ports(port, 1, Width::Byte);
    Ok(Box::new(DebugPort { host: wiring.char_port("debugcon"), readback }))
}

impl Device for DebugPort {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { host: _, readback: _ } = self;
    }

    fn save(&self) -> SavedState {
        let Self { host: _, readback: _ } = self;
        SavedState::stateless()
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        saved.expect_stateless()
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for DebugPort {
    fn port_read(&mut self, _port: Port, _width: Width) -> u32 {
        self.readback.into()
    }

    fn port_write(&mut self, _port: Port, _width: Width, value: u32) {
        if let Some(host) = &self.host {
            host.write(&[value as u8]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Bench;

    #[test]
    fn what_is_written_reaches_the_host_and_reading_says_that_it_is_there() {
        let mut bench = Bench::new();
        let (received, _host) = bench.char_port("debugcon");
        bench.plug(&MODEL, &[("iobase", "0x402")]);
        assert_eq!(bench.inb(0x402), 0xe9);
        b"SeaBIOS".iter().for_each(|byte| bench.outb(0x402, *byte));
        assert_eq!(received.take(), b"SeaBIOS");
    }
}
