//! Intel PIIX3 ISA bridge (0:1.0): the router from the PCI interrupt pins to ISA interrupts, and the reset control port
//! CF9h. The interrupt controllers, timers and DMA that the real chip holds are devices of their own here.
//! Left out: the registers of its X-bus and ISA timing, which are kept and do nothing.
//! See: Intel 290550-002, "82371FB (PIIX) and 82371SB (PIIX3) PCI ISA IDE Xcelerator".

use engine_base::rank;
use engine_bus::{
    BuildError, Device, DeviceModel, InterruptController, IrqLine, Options, PciConfig, PciFunction, Port, PortIo, Power,
    PowerRequest, ResetKind, RestoreError, SavedState, Slot, Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel =
    DeviceModel { id: "piix3", title: "PIIX3 ISA bridge", slot: Slot::Pci, rank: rank::INTERRUPT_ROUTER, options: &[], build };

const PIRQ_ROUTES: u8 = 0x60;
const ROUTE_DISABLED: u8 = 1 << 7;
/// The ISA interrupts that a PIRQ may come to.
const ROUTABLE: u16 = 0xdef8;

const RESET_CONTROL_PORT: u16 = 0xcf9;
const HARD_RESET: u8 = 1 << 1;
const RESET_CPU: u8 = 1 << 2;

/// Registers that are writable and do nothing: where, mask, value after reset.
const INERT: [(u8, u8, u8); 9] = [
    (0x4c, 0xff, 0x4d), // ISA I/O recovery timer
    (0x4e, 0xff, 0x03), // X-bus chip select
    (0x4f, 0x01, 0x00),
    (0x69, 0xfe, 0x02), // top of memory
    (0x70, 0xef, 0x80), // motherboard device interrupt route
    (0x71, 0xef, 0x80),
    (0x76, 0x8f, 0x0c), // motherboard device DMA
    (0x77, 0x8f, 0x0c),
    (0x82, 0x8f, 0x00), // deterministic latency
];

struct IsaBridge {
    // Wires
    isa_irqs: [IrqLine; 16],
    power: Power,
    // State the guest can see; all of it is saved
    config: PciConfig,
    /// Levels of PIRQA# to PIRQD#.
    pirqs: [bool; 4],
    reset_control: u8,
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    let mut config = PciConfig::new(0x8086, 0x7000, (6, 1, 0), 0).with_subsystem(0x1af4, 0x1100).multifunction();
    config.allow(PIRQ_ROUTES, &[0x8f; 4]);
    for (offset, mask, _) in INERT {
        config.allow(offset, &[mask]);
    }
    wiring.claim_ports(RESET_CONTROL_PORT, 1, Width::Byte);
    for (input, name) in (0..).zip(["pci-pirqa", "pci-pirqb", "pci-pirqc", "pci-pirqd"]) {
        wiring.listen(name, input);
    }
    let isa_irqs = std::array::from_fn(|irq| wiring.isa_irq(irq as u8));
    let mut bridge = IsaBridge { isa_irqs, power: wiring.power(), config, pirqs: [false; 4], reset_control: 0 };
    bridge.reset(ResetKind::PowerOn);
    Ok(Box::new(bridge))
}

impl IsaBridge {
    /// Where a PIRQ comes to.
    fn route(&self, pirq: u8) -> Option<u8> {
        let route = self.config.byte(PIRQ_ROUTES + pirq);
        let irq = route & 15;
        (route & ROUTE_DISABLED == 0 && ROUTABLE & 1 << irq != 0).then_some(irq)
    }

    fn update(&self) {
        let routed = (0..4).filter(|pirq| self.pirqs[usize::from(*pirq)]).filter_map(|pirq| self.route(pirq));
        let high = routed.fold(0_u16, |high, irq| high | 1 << irq);
        for (irq, line) in self.isa_irqs.iter().enumerate() {
            line.set(high & 1 << irq != 0);
        }
    }
}

impl Device for IsaBridge {
    fn reset(&mut self, _kind: ResetKind) {
        // The levels of the PIRQs belong to those who drive them.
        let Self { isa_irqs: _, power: _, config, pirqs: _, reset_control } = self;
        config.reset();
        config.set_byte(0x04, 0x07); // I/O, memory and bus master, always
        for pirq in 0..4 {
            config.set_byte(PIRQ_ROUTES + pirq, ROUTE_DISABLED);
        }
        for (offset, _, value) in INERT {
            config.set_byte(offset, value);
        }
        *reset_control = 0;
        self.update();
    }

    fn save(&self) -> SavedState {
        let Self { isa_irqs: _, power: _, config, pirqs, reset_control } = self;
        let state = saved::IsaBridge { config: config.save(), pirqs: *pirqs, reset_control: *reset_control };
        SavedState::of(saved::VERSION, &state)
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::IsaBridge { config, pirqs, reset_control } = saved.read(saved::VERSION)?;
        self.config.restore(&config)?;
        self.pirqs = pirqs;
        self.reset_control = reset_control & HARD_RESET;
        self.update();
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn as_interrupt_controller(&mut self) -> Option<&mut dyn InterruptController> {
        Some(self)
    }
}

impl PortIo for IsaBridge {
    fn port_read(&mut self, _port: Port, _width: Width) -> u32 {
        self.reset_control.into()
    }

    fn port_write(&mut self, _port: Port, _width: Width, value: u32) {
        self.reset_control = value as u8 & HARD_RESET;
        if value as u8 & RESET_CPU != 0 {
            self.power.request(PowerRequest::Reset);
        }
    }
}

impl PciFunction for IsaBridge {
    fn config(&self) -> &PciConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut PciConfig {
        &mut self.config
    }

    fn config_written(&mut self, _offset: u8, _len: u8) {
        self.update();
    }
}

impl InterruptController for IsaBridge {
    fn set_input(&mut self, input: u32, high: bool) {
        if let Some(pirq) = self.pirqs.get_mut(input as usize) {
            *pirq = high;
            self.update();
        }
    }
}

mod saved {
    use engine_bus::SavedPciConfig;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct IsaBridge {
        pub config: SavedPciConfig,
        pub pirqs: [bool; 4],
        pub reset_control: u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, moved, reset};

    #[test]
    fn pins_come_to_the_isa_interrupt_they_are_routed_to() {
        let (bench, cell) = Bench::with(&MODEL);
        let (b, d) = (bench.board.wires.drive("pci-pirqb"), bench.board.wires.drive("pci-pirqd"));
        b.raise();
        assert!(!bench.level("isa-irq10"), "not routed after reset");
        bench.set_config_byte(0x61, 10);
        bench.set_config_byte(0x63, 10);
        assert!(bench.level("isa-irq10"));
        d.raise();
        b.lower();
        assert!(bench.level("isa-irq10"), "shared");
        bench.set_config_byte(0x63, 11);
        assert_eq!((bench.level("isa-irq10"), bench.level("isa-irq11")), (false, true));
        let (copy, _) = moved(&bench, &cell, &MODEL);
        assert!(copy.level("isa-irq11"));
        reset(&cell);
        assert!(!bench.level("isa-irq11"));
    }

    #[test]
    fn the_timers_and_the_keyboards_interrupt_cannot_be_taken() {
        let (bench, _cell) = Bench::with(&MODEL);
        bench.board.wires.drive("pci-pirqa").raise();
        for irq in [0, 1, 2, 8, 13] {
            bench.set_config_byte(0x60, irq);
            assert!(!bench.level(&format!("isa-irq{irq}")));
        }
    }

    #[test]
    fn port_cf9_resets() {
        let (bench, _cell) = Bench::with(&MODEL);
        bench.outb(RESET_CONTROL_PORT, 0x02);
        assert_eq!(bench.take_power_requests(), []);
        bench.outb(RESET_CONTROL_PORT, 0x06);
        assert_eq!(bench.take_power_requests(), [PowerRequest::Reset]);
        assert_eq!(bench.inb(RESET_CONTROL_PORT), 0x02);
    }
}
