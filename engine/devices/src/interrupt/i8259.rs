//! The two Intel 8259A interrupt controllers of an AT, as the PIIX3 holds them, with its edge/level registers (ELCR).
//! The second chip's output is input 2 of the first; the first one's is the wire `cpu-intr`, and the CPU fetches the vector
//! with `acknowledge`. All of ICW1–4 and OCW1–3 is done: rotation, special mask, special fully nested mode, automatic EOI, poll.
//! On purpose like common emulators rather than the chip: an edge stays latched when its line falls again before the
//! acknowledge, so a short pulse is an interrupt. Left out: MCS-80 mode (its vectors are answered as 8086 vectors).
//! See: Intel 231468-003, "8259A Programmable Interrupt Controller"; Intel 290550-002 (PIIX3), "ELCR".

use engine_base::{rank, warn_limited};
use engine_bus::{
    BuildError, Device, DeviceModel, InterruptController, IrqLine, Options, Port, PortIo, ResetKind, RestoreError, SavedState,
    Slot, Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel = DeviceModel {
    id: "i8259",
    title: "8259A interrupt controllers",
    slot: Slot::Chipset,
    rank: rank::INTERRUPT_CONTROLLER,
    options: &[],
    build,
};

const ELCR_PORT: u16 = 0x4d0;
/// Inputs that may be made level triggered: not the timer, keyboard and cascade, not the clock and the coprocessor.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];
const CASCADE: u8 = 2;

struct PicPair {
    // Wires
    intr: IrqLine,
    // State the guest can see; all of it is saved
    first: Chip,
    second: Chip,
}

/// One 8259A.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chip {
    /// Levels of the inputs.
    lines: u8,
    /// Level triggered inputs.
    elcr: u8,
    /// Edges not yet acknowledged. For level triggered inputs `lines` counts.
    latched: u8,
    in_service: u8,
    mask: u8,
    /// Bits 3 to 7 of the vectors.
    vector_base: u8,
    /// The input with the lowest priority; the next one has the highest.
    lowest: u8,
    next_icw: NextIcw,
    /// ICW1: an ICW4 follows.
    needs_icw4: bool,
    /// ICW1: no other chip, so no ICW3 follows.
    single: bool,
    automatic_eoi: bool,
    rotate_on_automatic_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    /// OCW3: what an even-port read gives.
    read_in_service: bool,
    /// OCW3: the next read is a poll.
    polled: bool,
}

/// Which initialisation command word the odd port expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextIcw {
    /// None: it is the mask register.
    None,
    Icw2,
    Icw3,
    Icw4,
}

impl Chip {
    const RESET: Self = Self {
        lines: 0,
        elcr: 0,
        latched: 0,
        in_service: 0,
        mask: 0,
        vector_base: 0,
        lowest: 7,
        next_icw: NextIcw::None,
        needs_icw4: false,
        single: false,
        automatic_eoi: false,
        rotate_on_automatic_eoi: false,
        special_mask: false,
        special_fully_nested: false,
        read_in_service: false,
        polled: false,
    };

    fn requests(&self) -> u8 {
        self.latched & !self.elcr | self.lines & self.elcr
    }

    /// The distance of the highest set bit's input from the top of the present priority order; 8 when none is set.
    fn priority(&self, inputs: u8) -> u32 {
        inputs.rotate_right(u32::from(self.lowest) + 1).trailing_zeros()
    }

    fn input_at(&self, priority: u32) -> u8 {
        (self.lowest.wrapping_add(1).wrapping_add(priority as u8)) & 7
    }

    /// The input to be served next, if it may interrupt what is in service. `cascade` is the input another chip hangs on.
    fn pending(&self, cascade: Option<u8>) -> Option<u8> {
        let request = self.priority(self.requests() & !self.mask);
        let mut blocking = self.in_service;
        if self.special_mask {
            blocking &= !self.mask;
        }
        if self.special_fully_nested
            && let Some(input) = cascade
        {
            // The other chip orders its own requests, so a higher one there may pass while one is in service.
            blocking &= !(1 << input);
        }
        (request < self.priority(blocking)).then(|| self.input_at(request))
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        if high {
            self.latched |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// The end of the INTA cycles for `input`.
    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        self.latched &= !bit;
        if !self.automatic_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_automatic_eoi {
            self.lowest = input;
        }
    }

    fn icw1(&mut self, value: u8) {
        let Self { lines, elcr, .. } = *self;
        *self = Self { lines, elcr, next_icw: NextIcw::Icw2, needs_icw4: value & 1 != 0, single: value & 2 != 0, ..Self::RESET };
        if value & 8 != 0 {
            warn_limited!("the guest asks for level triggering in ICW1; the ELCR decides on this board");
        }
    }

    fn write_odd(&mut self, value: u8) {
        let after_icw3 = if self.needs_icw4 { NextIcw::Icw4 } else { NextIcw::None };
        match self.next_icw {
            NextIcw::None => self.mask = value,
            NextIcw::Icw2 => {
                self.vector_base = value & 0xf8;
                self.next_icw = if self.single { after_icw3 } else { NextIcw::Icw3 };
            }
            // Which input the other chip hangs on is fixed by the board.
            NextIcw::Icw3 => self.next_icw = after_icw3,
            NextIcw::Icw4 => {
                self.special_fully_nested = value & 0x10 != 0;
                self.automatic_eoi = value & 2 != 0;
                self.next_icw = NextIcw::None;
            }
        }
    }

    fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        let in_service = if self.special_mask { self.in_service & !self.mask } else { self.in_service };
        let highest = (in_service != 0).then(|| self.input_at(self.priority(in_service)));
        match value >> 5 {
            0 => self.rotate_on_automatic_eoi = false,
            4 => self.rotate_on_automatic_eoi = true,
            command @ (1 | 5) => {
                if let Some(input) = highest {
                    self.in_service &= !(1 << input);
                    if command == 5 {
                        self.lowest = input;
                    }
                }
            }
            command @ (3 | 7) => {
                self.in_service &= !(1 << level);
                if command == 7 {
                    self.lowest = level;
                }
            }
            6 => self.lowest = level,
            _ => {} // 2: no operation
        }
    }

    fn ocw3(&mut self, value: u8) {
        self.polled = value & 4 != 0;
        if value & 2 != 0 {
            self.read_in_service = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_even(&mut self, value: u8) {
        match value & 0x18 {
            0x00 => self.ocw2(value),
            0x08 => self.ocw3(value),
            _ => self.icw1(value),
        }
    }
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    wiring.claim_ports(0x20, 2, Width::Byte);
    wiring.claim_ports(0xa0, 2, Width::Byte);
    wiring.claim_ports(ELCR_PORT, 2, Width::Byte);
    for input in (0..16).filter(|input| *input != u32::from(CASCADE)) {
        wiring.listen(&format!("isa-irq{input}"), input);
    }
    Ok(Box::new(PicPair { intr: wiring.wire("cpu-intr"), first: Chip::RESET, second: Chip::RESET }))
}

impl PicPair {
    /// Lets what has changed inside reach the outputs.
    fn update(&mut self) {
        let cascade = self.second.pending(None).is_some();
        self.first.set_line(CASCADE, cascade);
        self.intr.set(self.first.pending(Some(CASCADE)).is_some());
    }

    /// The second chip has been acknowledged through the first: what it still wants is a new request there.
    fn renew_cascade(&mut self) {
        self.first.set_line(CASCADE, false);
        self.update();
    }

    fn chip(&mut self, port: u16) -> &mut Chip {
        if port & 0x80 == 0 { &mut self.first } else { &mut self.second }
    }

    fn poll(&mut self, port: u16) -> u8 {
        let cascade = (port & 0x80 == 0).then_some(CASCADE);
        let chip = self.chip(port);
        chip.polled = false;
        let Some(input) = chip.pending(cascade) else { return 0 };
        chip.acknowledge(input);
        self.renew_cascade();
        0x80 | input
    }
}

impl Device for PicPair {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { intr: _, first, second } = self;
        for chip in [first, second] {
            // The inputs belong to those who drive them.
            *chip = Chip { lines: chip.lines, ..Chip::RESET };
        }
        self.update();
    }

    fn save(&self) -> SavedState {
        let Self { intr: _, first, second } = self;
        SavedState::of(saved::VERSION, &saved::PicPair { first: first.into(), second: second.into() })
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::PicPair { first, second } = saved.read(saved::VERSION)?;
        self.first = first.check(ELCR_MASK[0])?;
        self.second = second.check(ELCR_MASK[1])?;
        self.update();
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn as_interrupt_controller(&mut self) -> Option<&mut dyn InterruptController> {
        Some(self)
    }
}

impl PortIo for PicPair {
    fn port_read(&mut self, port: Port, _width: Width) -> u32 {
        let Port::Fixed(port) = port else { return 0xff };
        match port {
            ELCR_PORT => self.first.elcr.into(),
            0x4d1 => self.second.elcr.into(),
            _ if self.chip(port).polled => self.poll(port).into(),
            _ => {
                let chip = self.chip(port);
                let value = match port & 1 {
                    1 => chip.mask,
                    _ if chip.read_in_service => chip.in_service,
                    _ => chip.requests(),
                };
                value.into()
            }
        }
    }

    fn port_write(&mut self, port: Port, _width: Width, value: u32) {
        let Port::Fixed(port) = port else { return };
        let value = value as u8;
        match port {
            ELCR_PORT => self.first.elcr = value & ELCR_MASK[0],
            0x4d1 => self.second.elcr = value & ELCR_MASK[1],
            _ if port & 1 == 1 => self.chip(port).write_odd(value),
            _ => self.chip(port).write_even(value),
        }
        self.update();
    }
}

impl InterruptController for PicPair {
    fn set_input(&mut self, input: u32, high: bool) {
        let chip = if input < 8 { &mut self.first } else { &mut self.second };
        chip.set_line(input as u8 & 7, high);
        self.update();
    }

    fn acknowledge(&mut self) -> Option<u8> {
        let Some(input) = self.first.pending(Some(CASCADE)) else {
            // Whoever asked has gone: the spurious interrupt, which is not marked in service.
            return Some(self.first.vector_base | 7);
        };
        self.first.acknowledge(input);
        let vector = if input == CASCADE {
            let from_second = self.second.pending(None);
            if let Some(input) = from_second {
                self.second.acknowledge(input);
            }
            self.second.vector_base | from_second.unwrap_or(7)
        } else {
            self.first.vector_base | input
        };
        self.renew_cascade();
        Some(vector)
    }
}

mod saved {
    use super::NextIcw;
    use engine_bus::RestoreError;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct PicPair {
        pub first: Chip,
        pub second: Chip,
    }

    #[derive(Serialize, Deserialize)]
    pub struct Chip {
        lines: u8,
        elcr: u8,
        latched: u8,
        in_service: u8,
        mask: u8,
        vector_base: u8,
        lowest: u8,
        next_icw: u8,
        needs_icw4: bool,
        single: bool,
        automatic_eoi: bool,
        rotate_on_automatic_eoi: bool,
        special_mask: bool,
        special_fully_nested: bool,
        read_in_service: bool,
        polled: bool,
    }

    impl From<&super::Chip> for Chip {
        fn from(chip: &super::Chip) -> Self {
            let super::Chip {
                lines,
                elcr,
                latched,
                in_service,
                mask,
                vector_base,
                lowest,
                next_icw,
                needs_icw4,
                single,
                automatic_eoi,
                rotate_on_automatic_eoi,
                special_mask,
                special_fully_nested,
                read_in_service,
                polled,
            } = *chip;
            let next_icw = match next_icw {
                NextIcw::None => 0,
                NextIcw::Icw2 => 2,
                NextIcw::Icw3 => 3,
                NextIcw::Icw4 => 4,
            };
            Self {
                lines,
                elcr,
                latched,
                in_service,
                mask,
                vector_base,
                lowest,
                next_icw,
                needs_icw4,
                single,
                automatic_eoi,
                rotate_on_automatic_eoi,
                special_mask,
                special_fully_nested,
                read_in_service,
                polled,
            }
        }
    }

    impl Chip {
        pub fn check(self, elcr_mask: u8) -> Result<super::Chip, RestoreError> {
            if self.lowest > 7 {
                return Err(RestoreError::impossible("8259A: the lowest priority is not an input"));
            }
            let next_icw = match self.next_icw {
                0 => NextIcw::None,
                2 => NextIcw::Icw2,
                3 => NextIcw::Icw3,
                4 => NextIcw::Icw4,
                _ => return Err(RestoreError::impossible("8259A: no such initialisation command word")),
            };
            Ok(super::Chip {
                lines: self.lines,
                elcr: self.elcr & elcr_mask,
                latched: self.latched,
                in_service: self.in_service,
                mask: self.mask,
                vector_base: self.vector_base & 0xf8,
                lowest: self.lowest,
                next_icw,
                needs_icw4: self.needs_icw4,
                single: self.single,
                automatic_eoi: self.automatic_eoi,
                rotate_on_automatic_eoi: self.rotate_on_automatic_eoi,
                special_mask: self.special_mask,
                special_fully_nested: self.special_fully_nested,
                read_in_service: self.read_in_service,
                polled: self.polled,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, moved};
    use engine_bus::DeviceCell;
    use std::sync::Arc;

    /// A pair set up as a PC BIOS does: vectors 08h and 70h, nothing masked.
    fn pair() -> (Bench, Arc<DeviceCell>) {
        pair_with_icw4(0x01)
    }

    fn pair_with_icw4(icw4: u8) -> (Bench, Arc<DeviceCell>) {
        let (bench, cell) = Bench::with(&MODEL);
        for (port, base, wiring) in [(0x20, 0x08, 0x04), (0xa0, 0x70, 0x02)] {
            bench.outb(port, 0x11);
            bench.outb(port + 1, base);
            bench.outb(port + 1, wiring);
            bench.outb(port + 1, icw4);
            bench.outb(port + 1, 0x00);
        }
        (bench, cell)
    }

    fn acknowledge(cell: &Arc<DeviceCell>) -> u8 {
        cell.lock().as_interrupt_controller().unwrap().acknowledge().unwrap()
    }

    #[test]
    fn an_edge_interrupts_once_and_is_served_until_eoi() {
        let (bench, cell) = pair();
        let timer = bench.board.wires.drive("isa-irq0");
        timer.raise();
        assert!(bench.level("cpu-intr"));
        assert_eq!(acknowledge(&cell), 0x08);
        assert!(!bench.level("cpu-intr"));
        timer.pulse();
        timer.pulse();
        assert!(!bench.level("cpu-intr"), "in service, so not again yet");
        bench.outb(0x20, 0x20);
        assert!(bench.level("cpu-intr"));
        assert_eq!(acknowledge(&cell), 0x08);
    }

    #[test]
    fn the_second_chip_comes_in_through_input_2_with_its_own_vectors() {
        let (bench, cell) = pair();
        let (mouse, disk) = (bench.board.wires.drive("isa-irq12"), bench.board.wires.drive("isa-irq14"));
        disk.raise();
        mouse.raise();
        assert_eq!(acknowledge(&cell), 0x74);
        bench.outb(0xa0, 0x20);
        assert!(!bench.level("cpu-intr"), "the first chip still serves input 2");
        bench.outb(0x20, 0x20);
        assert_eq!(acknowledge(&cell), 0x76);
    }

    #[test]
    fn a_request_that_goes_away_is_answered_with_the_spurious_vector() {
        let (bench, cell) = pair();
        let keyboard = bench.board.wires.drive("isa-irq1");
        keyboard.raise();
        bench.outb(0x21, 0x02);
        assert_eq!(acknowledge(&cell), 0x0f);
        bench.outb(0x20, 0x0b);
        assert_eq!(bench.inb(0x20), 0, "nothing is in service");
        // On the second chip it is IRQ 15, and the first chip does serve input 2.
        bench.board.wires.drive("isa-irq8").raise();
        bench.outb(0xa1, 0x01);
        assert_eq!(acknowledge(&cell), 0x77);
        assert_eq!(bench.inb(0x20), 0x04);
    }

    #[test]
    fn a_level_triggered_input_interrupts_until_its_line_falls() {
        let (bench, cell) = pair();
        bench.outb(0x4d1, 0xff);
        assert_eq!(bench.inb(0x4d1), 0xde, "the clock and the coprocessor stay edge triggered");
        let card = bench.board.wires.drive("isa-irq11");
        card.raise();
        assert_eq!(acknowledge(&cell), 0x73);
        bench.outb(0xa0, 0x20);
        bench.outb(0x20, 0x20);
        assert!(bench.level("cpu-intr"));
        card.lower();
        bench.outb(0xa0, 0x20);
        assert_eq!(acknowledge(&cell), 0x77, "gone: spurious");
    }

    #[test]
    fn priorities_rotate_and_are_set() {
        let (bench, cell) = pair();
        let lines = [3, 4, 7].map(|irq| bench.board.wires.drive(&format!("isa-irq{irq}")));
        bench.outb(0x20, 0xc3); // input 3 lowest
        lines.iter().for_each(IrqLine::raise);
        assert_eq!(acknowledge(&cell), 0x0c);
        bench.outb(0x20, 0xa0); // rotate on non-specific EOI: input 4 lowest
        assert_eq!(acknowledge(&cell), 0x0f);
        bench.outb(0x20, 0x67); // specific EOI of 7
        assert_eq!(acknowledge(&cell), 0x0b);
    }

    #[test]
    fn special_mask_lets_lower_priorities_in() {
        let (bench, cell) = pair();
        bench.board.wires.drive("isa-irq3").raise();
        assert_eq!(acknowledge(&cell), 0x0b);
        bench.board.wires.drive("isa-irq6").raise();
        assert!(!bench.level("cpu-intr"));
        bench.outb(0x21, 0x08);
        bench.outb(0x20, 0x68);
        assert_eq!(acknowledge(&cell), 0x0e);
    }

    #[test]
    fn automatic_eoi_leaves_nothing_in_service() {
        let (bench, cell) = pair_with_icw4(0x03);
        for irq in [9, 10] {
            bench.board.wires.drive(&format!("isa-irq{irq}")).raise();
        }
        assert_eq!(acknowledge(&cell), 0x71);
        assert_eq!(acknowledge(&cell), 0x72, "the second request comes through although the cascade never fell");
        bench.outb(0x20, 0x0b);
        assert_eq!(bench.inb(0x20), 0);
    }

    #[test]
    fn polling_acknowledges_without_the_cpu() {
        let (bench, _cell) = pair();
        bench.board.wires.drive("isa-irq5").raise();
        bench.outb(0x20, 0x0c);
        assert_eq!(bench.inb(0x20), 0x85);
        assert!(!bench.level("cpu-intr"));
        bench.outb(0x20, 0x0c);
        assert_eq!(bench.inb(0x20), 0, "nothing more");
    }

    #[test]
    fn a_pending_interrupt_survives_being_saved() {
        let (bench, cell) = pair();
        bench.board.wires.drive("isa-irq12").raise();
        let (copy, copied) = moved(&bench, &cell, &MODEL);
        assert!(copy.level("cpu-intr"));
        assert_eq!(acknowledge(&copied), 0x74);
    }

    #[test]
    fn impossible_saved_state_is_refused() {
        let (_bench, cell) = pair();
        let other = SavedState::of(saved::VERSION, &7);
        assert!(cell.lock().restore(&other).is_err());
    }
}
