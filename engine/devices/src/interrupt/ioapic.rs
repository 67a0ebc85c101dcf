//! Intel 82093AA I/O APIC with 24 pins, with the end-of-interrupt register of its successors (version 20h).
//! ISA interrupt N comes in at pin N, the timer's at pin 2; pins 0 and 16 to 23 are not connected on this board. It sends
//! messages to local APICs and hears the end of level-triggered interrupts from them. Lines are logical levels, so the
//! polarity bit is kept and means nothing. An edge that comes while its pin is masked is kept, as common emulators do.
//! See: Intel 290566-001, "82093AA I/O Advanced Programmable Interrupt Controller".

use engine_base::{rank, warn_limited};
use engine_bus::{
    BuildError, Device, DeviceModel, InterruptController, InterruptMessage, MessageSender, Mmio, Options, ResetKind,
    RestoreError, SavedState, Slot, Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel =
    DeviceModel { id: "ioapic", title: "I/O APIC", slot: Slot::Chipset, rank: rank::INTERRUPT_CONTROLLER, options: &[], build };

const BASE: u64 = 0xfec0_0000;
const REGION: u8 = 16;
const PINS: usize = 24;
const PIN_MASK: u32 = (1 << PINS) - 1;
const VERSION: u32 = 0x20;

// Memory-mapped registers
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;
// Registers behind IOREGSEL
const ID: u8 = 0;
const VERSION_REGISTER: u8 = 1;
const ARBITRATION: u8 = 2;
const FIRST_ENTRY: u8 = 0x10;

struct IoApic {
    // Wires
    messages: MessageSender,
    // State the guest can see; all of it is saved
    select: u8,
    id: u8,
    /// Levels of the pins.
    lines: u32,
    /// Edges not sent yet.
    edges: u32,
    entries: [Entry; PINS],
}

/// An entry of the redirection table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    const RESET: Self = Self(1 << 16);
    const REMOTE_IRR: u64 = 1 << 14;
    /// Delivery status and remote IRR.
    const READ_ONLY: u64 = 1 << 12 | Self::REMOTE_IRR;
    const IMPLEMENTED: u64 = 0xff00_0000_0001_ffff;

    fn vector(self) -> u8 {
        self.0 as u8
    }

    fn is_level_triggered(self) -> bool {
        self.0 & 1 << 15 != 0
    }

    fn is_masked(self) -> bool {
        self.0 & 1 << 16 != 0
    }

    /// Sent and not yet ended, for level-triggered entries.
    fn remote_irr(self) -> bool {
        self.0 & Self::REMOTE_IRR != 0
    }

    fn write(&mut self, value: u64) {
        self.0 = self.0 & Self::READ_ONLY | value & Self::IMPLEMENTED & !Self::READ_ONLY;
        if !self.is_level_triggered() {
            // Drivers switch to edge and back to get rid of a lost end of interrupt.
            self.0 &= !Self::REMOTE_IRR;
        }
    }

    fn message(self) -> InterruptMessage {
        let destination = self.0 >> 56;
        let logical = self.0 >> 11 & 1;
        let delivery_mode = (self.0 >> 8 & 7) as u32;
        let trigger = u32::from(self.is_level_triggered()) << 15;
        InterruptMessage {
            address: 0xfee0_0000 | destination << 12 | logical << 2,
            data: trigger | 1 << 14 | delivery_mode << 8 | u32::from(self.vector()),
        }
    }
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    wiring.claim_mmio(REGION, BASE, 0x1000);
    for irq in (0..16).filter(|irq| *irq != 2) {
        wiring.listen(&format!("isa-irq{irq}"), if irq == 0 { 2 } else { irq });
    }
    Ok(Box::new(IoApic { messages: wiring.messages(), select: 0, id: 0, lines: 0, edges: 0, entries: [Entry::RESET; PINS] }))
}

impl IoApic {
    fn service(&mut self, pin: usize) {
        let Some(entry) = self.entries.get_mut(pin) else { return };
        let bit = 1 << pin;
        if entry.is_masked() {
            return;
        }
        if entry.is_level_triggered() {
            if self.lines & bit == 0 || entry.remote_irr() {
                return;
            }
            entry.0 |= Entry::REMOTE_IRR;
        } else if self.edges & bit == 0 {
            return;
        }
        self.edges &= !bit;
        self.messages.send(entry.message());
    }

    fn register_read(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => u32::from(self.id) << 24,
            VERSION_REGISTER => (PINS as u32 - 1) << 16 | VERSION,
            select => {
                let Some(index) = select.checked_sub(FIRST_ENTRY) else { return 0 };
                let entry = self.entries.get(usize::from(index / 2)).map_or(0, |entry| entry.0);
                (entry >> (32 * (index & 1))) as u32
            }
        }
    }

    fn register_write(&mut self, value: u32) {
        if self.select == ID {
            self.id = (value >> 24) as u8 & 0x0f;
            return;
        }
        let Some(index) = self.select.checked_sub(FIRST_ENTRY) else { return };
        let pin = usize::from(index / 2);
        let Some(entry) = self.entries.get_mut(pin) else { return };
        let value = u64::from(value);
        entry.write(if index & 1 == 0 { entry.0 & !0xffff_ffff | value } else { entry.0 & 0xffff_ffff | value << 32 });
        self.service(pin);
    }
}

impl Device for IoApic {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { messages: _, select, id, lines: _, edges, entries } = self;
        *select = 0;
        *id = 0;
        *edges = 0;
        *entries = [Entry::RESET; PINS];
    }

    fn save(&self) -> SavedState {
        let Self { messages: _, select, id, lines, edges, entries } = self;
        let entries = entries.map(|entry| entry.0);
        SavedState::of(saved::VERSION, &saved::IoApic { select: *select, id: *id, lines: *lines, edges: *edges, entries })
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::IoApic { select, id, lines, edges, entries } = saved.read(saved::VERSION)?;
        self.select = select;
        self.id = id & 0x0f;
        self.lines = lines & PIN_MASK;
        self.edges = edges & PIN_MASK;
        self.entries = entries.map(|bits| Entry(bits & Entry::IMPLEMENTED));
        Ok(())
    }

    fn as_mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }

    fn as_interrupt_controller(&mut self) -> Option<&mut dyn InterruptController> {
        Some(self)
    }
}

impl Mmio for IoApic {
    fn mmio_read(&mut self, _region: u8, offset: u64, _width: Width) -> u64 {
        match offset {
            IOREGSEL => self.select.into(),
            IOWIN => self.register_read().into(),
            _ => 0,
        }
    }

    fn mmio_write(&mut self, _region: u8, offset: u64, width: Width, value: u64) {
        match offset {
            IOREGSEL => self.select = value as u8,
            IOWIN if width == Width::Dword => self.register_write(value as u32),
            EOI => self.end_of_interrupt(value as u8),
            _ => warn_limited!(offset, ?width, "I/O APIC: write that no register takes"),
        }
    }
}

impl InterruptController for IoApic {
    fn set_input(&mut self, input: u32, high: bool) {
        let bit = 1 << (input & 31) & PIN_MASK;
        if high {
            let edge = self.entries.get(input as usize).is_some_and(|entry| !entry.is_level_triggered());
            if edge {
                self.edges |= bit & !self.lines;
            }
            self.lines |= bit;
            self.service(input as usize);
        } else {
            self.lines &= !bit;
        }
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = &mut self.entries[pin];
            if entry.vector() == vector && entry.is_level_triggered() && entry.remote_irr() {
                entry.0 &= !Entry::REMOTE_IRR;
                self.service(pin);
            }
        }
    }
}

mod saved {
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct IoApic {
        pub select: u8,
        pub id: u8,
        pub lines: u32,
        pub edges: u32,
        pub entries: [u64; super::PINS],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, moved};

    fn write(bench: &Bench, register: u8, value: u32) {
        bench.board.router.mmio_write(BASE, Width::Dword, register.into());
        bench.board.router.mmio_write(BASE + IOWIN, Width::Dword, value.into());
    }

    fn read(bench: &Bench, register: u8) -> u32 {
        bench.board.router.mmio_write(BASE, Width::Dword, register.into());
        bench.board.router.mmio_read(BASE + IOWIN, Width::Dword) as u32
    }

    fn set_entry(bench: &Bench, pin: u8, entry: u64) {
        write(bench, FIRST_ENTRY + 2 * pin + 1, (entry >> 32) as u32);
        write(bench, FIRST_ENTRY + 2 * pin, entry as u32);
    }

    #[test]
    fn it_says_that_it_has_24_pins() {
        let (bench, _cell) = Bench::with(&MODEL);
        assert_eq!(read(&bench, VERSION_REGISTER), 0x0017_0020);
        assert_eq!(read(&bench, FIRST_ENTRY), 0x0001_0000);
    }

    #[test]
    fn the_timer_comes_in_at_pin_2_as_an_edge() {
        let (bench, _cell) = Bench::with(&MODEL);
        set_entry(&bench, 2, 0x0300_0000_0000_0830); // logical destination 3, vector 30h
        bench.board.wires.drive("isa-irq0").pulse();
        assert_eq!(bench.take_messages(), [InterruptMessage { address: 0xfee0_3004, data: 0x4030 }]);
    }

    #[test]
    fn a_level_is_sent_again_only_after_its_end() {
        let (bench, cell) = Bench::with(&MODEL);
        set_entry(&bench, 11, 0x0000_0000_0000_a059);
        let line = bench.board.wires.drive("isa-irq11");
        line.raise();
        assert_eq!(bench.take_messages(), [InterruptMessage { address: 0xfee0_0000, data: 0xc059 }]);
        assert_eq!(read(&bench, FIRST_ENTRY + 22) & 1 << 14, 1 << 14);
        line.lower();
        line.raise();
        assert_eq!(bench.take_messages(), []);
        cell.lock().as_interrupt_controller().unwrap().end_of_interrupt(0x59);
        assert_eq!(bench.take_messages().len(), 1);
        line.lower();
        bench.board.router.mmio_write(BASE + EOI, Width::Dword, 0x59);
        assert_eq!(bench.take_messages(), []);
        assert_eq!(read(&bench, FIRST_ENTRY + 22) & 1 << 14, 0);
    }

    #[test]
    fn a_masked_edge_is_kept_and_the_read_only_bits_stay() {
        let (bench, _cell) = Bench::with(&MODEL);
        set_entry(&bench, 4, 0x1_0044);
        bench.board.wires.drive("isa-irq4").pulse();
        assert_eq!(bench.take_messages(), []);
        write(&bench, FIRST_ENTRY + 8, 0x5044);
        assert_eq!(bench.take_messages().len(), 1);
        assert_eq!(read(&bench, FIRST_ENTRY + 8), 0x0044);
    }

    #[test]
    fn a_restored_line_that_is_high_already_is_no_new_edge() {
        let (bench, cell) = Bench::with(&MODEL);
        set_entry(&bench, 4, 0x44);
        let line = bench.board.wires.drive("isa-irq4");
        line.raise();
        let (copy, _) = moved(&bench, &cell, &MODEL);
        copy.board.wires.drive("isa-irq4").raise();
        assert_eq!(copy.take_messages(), []);
    }
}
