//! The two Intel 8237A DMA controllers of an AT with their page registers. They show the channel registers that lie in
//! `engine_bus::IsaDma` to the guest; cards with a DREQ line move their data through the other end of it.
//! Left out: memory-to-memory transfers and software requests, which no PC uses; the page registers without a channel are
//! memory, as the one at port 80h for POST codes.
//! See: Intel 231466-005, "8237A High Performance Programmable DMA Controller"; IBM AT Technical Reference, "DMA".

use engine_base::{rank, warn_limited};
use engine_bus::{
    BuildError, Device, DeviceModel, IsaDma, IsaDmaRegisters, Options, Port, PortIo, ResetKind, RestoreError, SavedState, Slot,
    Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel =
    DeviceModel { id: "i8237", title: "8237A DMA controllers", slot: Slot::Chipset, rank: rank::DEVICE, options: &[], build };

const FIRST: u16 = 0x00;
const PAGES: u16 = 0x80;
const SECOND: u16 = 0xc0;
/// Which channel a page register belongs to, by its port from 80h on.
const PAGE_CHANNELS: [Option<u8>; 16] = {
    let mut channels = [None; 16];
    channels[0x1] = Some(2);
    channels[0x2] = Some(3);
    channels[0x3] = Some(1);
    channels[0x7] = Some(0);
    channels[0x9] = Some(6);
    channels[0xa] = Some(7);
    channels[0xb] = Some(5);
    channels[0xf] = Some(4);
    channels
};
/// Command register: the controller is off.
const COMMAND_OFF: u8 = 1 << 2;

struct DmaControllers {
    // Wires; the channel registers in it are saved here
    channels: IsaDma,
    // State the guest can see; all of it is saved
    controllers: [Controller; 2],
    /// Page registers that belong to no channel.
    spare_pages: [u8; 16],
}

/// What a controller has besides its four channels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Controller {
    command: u8,
    /// The next access to an address or count is the high byte.
    high_byte: bool,
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    wiring.claim_ports(FIRST, 16, Width::Byte);
    wiring.claim_ports(PAGES, 16, Width::Byte);
    wiring.claim_ports(SECOND, 32, Width::Byte);
    Ok(Box::new(DmaControllers { channels: wiring.isa_dma(), controllers: [Controller::default(); 2], spare_pages: [0; 16] }))
}

/// The half of `value` that the flip-flop selects.
fn half(value: u16, high: bool) -> u8 {
    value.to_le_bytes()[usize::from(high)]
}

fn set_half(value: &mut u16, high: bool, byte: u8) {
    let mut bytes = value.to_le_bytes();
    bytes[usize::from(high)] = byte;
    *value = u16::from_le_bytes(bytes);
}

impl DmaControllers {
    fn of_controller(controller: u8) -> std::ops::Range<u8> {
        4 * controller..4 * controller + 4
    }

    fn flip(&mut self, controller: u8) -> bool {
        let high_byte = &mut self.controllers[usize::from(controller & 1)].high_byte;
        std::mem::replace(high_byte, !*high_byte)
    }

    fn read_register(&mut self, controller: u8, register: u8) -> u8 {
        match register {
            0..8 => {
                let high = self.flip(controller);
                let read = |channel: &mut IsaDmaRegisters| if register & 1 == 0 { channel.address } else { channel.count };
                half(self.channels.with(4 * controller + register / 2, read), high)
            }
            8 => {
                // Reading the status clears the terminal count bits. No software request is ever pending.
                let reached = |channel: u8| self.channels.with(channel, |channel| std::mem::take(&mut channel.terminal_count));
                let bits = Self::of_controller(controller).enumerate().map(|(bit, channel)| u8::from(reached(channel)) << bit);
                bits.sum()
            }
            _ => 0,
        }
    }

    fn write_register(&mut self, controller: u8, register: u8, value: u8) {
        let first = 4 * controller;
        let selected = first + (value & 3);
        match register {
            0..8 => {
                let high = self.flip(controller);
                self.channels.with(first + register / 2, |channel| {
                    let (base, current) = match register & 1 {
                        0 => (&mut channel.base_address, &mut channel.address),
                        _ => (&mut channel.base_count, &mut channel.count),
                    };
                    set_half(base, high, value);
                    set_half(current, high, value);
                });
            }
            0x8 => self.set_command(controller, value),
            0x9 if value & 4 != 0 => warn_limited!(value, "8237: a DMA request by software, which is not emulated"),
            0xa => self.channels.with(selected, |channel| channel.masked = value & 4 != 0),
            0xb => self.channels.with(selected, |channel| channel.mode = value & 0xfc),
            0xc => self.controllers[usize::from(controller & 1)].high_byte = false,
            0xd => self.clear(controller),
            0xe => self.set_masks(controller, 0),
            0xf => self.set_masks(controller, value),
            _ => {}
        }
    }

    fn set_command(&mut self, controller: u8, value: u8) {
        self.controllers[usize::from(controller & 1)].command = value;
        for channel in Self::of_controller(controller) {
            self.channels.with(channel, |channel| channel.disabled = value & COMMAND_OFF != 0);
        }
    }

    fn set_masks(&mut self, controller: u8, masks: u8) {
        for (bit, channel) in Self::of_controller(controller).enumerate() {
            self.channels.with(channel, |channel| channel.masked = masks & 1 << bit != 0);
        }
    }

    /// Master clear: as a reset, but for addresses, counts and modes.
    fn clear(&mut self, controller: u8) {
        self.set_command(controller, 0);
        self.controllers[usize::from(controller & 1)].high_byte = false;
        self.set_masks(controller, 0x0f);
        for channel in Self::of_controller(controller) {
            self.channels.with(channel, |channel| channel.terminal_count = false);
        }
    }
}

/// Controller and register behind a port.
fn register_of(port: u16) -> (u8, u8) {
    if port >= SECOND { (1, ((port - SECOND) / 2) as u8) } else { (0, port as u8) }
}

impl Device for DmaControllers {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { channels, controllers, spare_pages } = self;
        (0..8).for_each(|channel| channels.with(channel, |registers| *registers = IsaDmaRegisters::RESET));
        *controllers = [Controller::default(); 2];
        *spare_pages = [0; 16];
    }

    fn save(&self) -> SavedState {
        let Self { channels, controllers, spare_pages } = self;
        let channels = std::array::from_fn(|channel| channels.with(channel as u8, |registers| saved::Channel::from(*registers)));
        let controllers = controllers.map(|Controller { command, high_byte }| saved::Controller { command, high_byte });
        SavedState::of(saved::VERSION, &saved::DmaControllers { channels, controllers, spare_pages: *spare_pages })
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::DmaControllers { channels, controllers, spare_pages } = saved.read(saved::VERSION)?;
        for (number, channel) in (0..).zip(channels) {
            let command = controllers[usize::from(number / 4)].command;
            let registers = channel.registers(command & COMMAND_OFF != 0);
            self.channels.with(number, |channel| *channel = registers);
        }
        self.controllers = controllers.map(|saved::Controller { command, high_byte }| Controller { command, high_byte });
        self.spare_pages = spare_pages;
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for DmaControllers {
    fn port_read(&mut self, port: Port, _width: Width) -> u32 {
        let Port::Fixed(port) = port else { return 0xff };
        let value = match port {
            PAGES..SECOND => {
                let page = usize::from(port & 15);
                match PAGE_CHANNELS[page] {
                    Some(channel) => self.channels.with(channel, |channel| channel.page),
                    None => self.spare_pages[page],
                }
            }
            _ => {
                let (controller, register) = register_of(port);
                self.read_register(controller, register)
            }
        };
        value.into()
    }

    fn port_write(&mut self, port: Port, _width: Width, value: u32) {
        let Port::Fixed(port) = port else { return };
        let value = value as u8;
        match port {
            PAGES..SECOND => {
                let page = usize::from(port & 15);
                match PAGE_CHANNELS[page] {
                    Some(channel) => self.channels.with(channel, |channel| channel.page = value),
                    None => self.spare_pages[page] = value,
                }
            }
            _ => {
                let (controller, register) = register_of(port);
                self.write_register(controller, register, value);
            }
        }
    }
}

mod saved {
    use engine_bus::IsaDmaRegisters;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct DmaControllers {
        pub channels: [Channel; 8],
        pub controllers: [Controller; 2],
        pub spare_pages: [u8; 16],
    }

    #[derive(Serialize, Deserialize, Clone, Copy)]
    pub struct Controller {
        pub command: u8,
        pub high_byte: bool,
    }

    #[derive(Serialize, Deserialize)]
    pub struct Channel {
        base_address: u16,
        base_count: u16,
        address: u16,
        count: u16,
        page: u8,
        mode: u8,
        masked: bool,
        terminal_count: bool,
    }

    impl From<IsaDmaRegisters> for Channel {
        fn from(registers: IsaDmaRegisters) -> Self {
            let IsaDmaRegisters { base_address, base_count, address, count, page, mode, masked, disabled: _, terminal_count } =
                registers; // `disabled` follows from the command register.
            Self { base_address, base_count, address, count, page, mode, masked, terminal_count }
        }
    }

    impl Channel {
        pub fn registers(self, disabled: bool) -> IsaDmaRegisters {
            let Self { base_address, base_count, address, count, page, mode, masked, terminal_count } = self;
            let mode = mode & 0xfc;
            IsaDmaRegisters { base_address, base_count, address, count, page, mode, masked, disabled, terminal_count }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, moved};
    use engine_bus::IsaDmaDirection;

    #[test]
    fn a_floppy_read_as_the_bios_programs_it_reaches_memory() {
        let (bench, cell) = Bench::with(&MODEL);
        let channel = bench.board.isa_dma_channel(2); // the card's end
        assert_eq!(channel.ready(), None);
        // 512 bytes to 17E00h, channel 2, single mode, to memory.
        for (port, value) in
            [(0x0a, 6), (0x0c, 0), (0x0b, 0x46), (4, 0x00), (4, 0x7e), (0x81, 0x01), (5, 0xff), (5, 0x01), (0x0a, 2)]
        {
            bench.outb(port, value);
        }
        assert_eq!(channel.ready(), Some(IsaDmaDirection::ToMemory));
        let half = channel.write_memory(&[0x55; 256]);
        assert_eq!((half.bytes, half.terminal_count), (256, false));
        bench.outb(0x0c, 0);
        assert_eq!([bench.inb(5), bench.inb(5)], [0xff, 0x00]);
        let (copy, _) = moved(&bench, &cell, &MODEL);
        assert_eq!(copy.inb(0x81), 1);
        assert!(channel.write_memory(&[0xaa; 1024]).terminal_count);
        assert_eq!(bench.board.memory.read_array::<2>(0x17eff).unwrap(), [0x55, 0xaa]);
        assert_eq!([bench.inb(8), bench.inb(8)], [0x04, 0x00]);
        assert_eq!(channel.ready(), None, "masked at its end");
    }

    #[test]
    fn the_second_controller_has_its_ports_two_apart() {
        let (bench, _cell) = Bench::with(&MODEL);
        bench.outb(0xd8, 0); // flip-flop
        [0x34, 0x12].iter().for_each(|byte| bench.outb(0xc4, *byte));
        bench.outb(0xd8, 0);
        assert_eq!([bench.inb(0xc4), bench.inb(0xc4)], [0x34, 0x12]);
        bench.outb(0x8b, 7);
        assert_eq!(bench.inb(0x8b), 7);
        bench.outb(0x80, 0xe1);
        assert_eq!(bench.inb(0x80), 0xe1, "a POST code");
    }
}
