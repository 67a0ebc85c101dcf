//! Intel 8042 keyboard controller as in a PS/2, with its keyboard and mouse: ports 60h and 64h, ISA interrupts 1 and 12,
//! the slow A20 gate (one source of the wire `a20`) and the reset line. Translation to scancode set 1 happens here.
//! One byte waits in the output buffer; the next one follows as soon as it is read. Answers of the controller itself come
//! before those of the keyboard, and these before the mouse's.
//! Left out: the 31 further bytes of its memory, the password, and the bit rate of its serial lines.
//! See: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".

use super::ps2_keyboard::Ps2Keyboard;
use super::ps2_mouse::Ps2Mouse;
use crate::fifo::BoundedFifo;
use engine_base::{rank, warn_limited};
use engine_bus::{
    BuildError, Device, DeviceModel, InputSink, IrqLine, LedPanel, Options, Port, PortIo, Power, PowerRequest, ResetKind,
    RestoreError, SavedState, Slot, Width, Wiring,
};
use engine_input::{InputEvent, KEYS};

/// The model.
pub const MODEL: DeviceModel =
    DeviceModel { id: "i8042", title: "PS/2 keyboard and mouse", slot: Slot::Chipset, rank: rank::DEVICE, options: &[], build };

const DATA_PORT: u16 = 0x60;
const COMMAND_PORT: u16 = 0x64;

mod status {
    pub const OUTPUT_FULL: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const COMMAND: u8 = 1 << 3;
    pub const UNLOCKED: u8 = 1 << 4;
    pub const FROM_MOUSE: u8 = 1 << 5;
}
mod config {
    pub const KEYBOARD_INTERRUPT: u8 = 1 << 0;
    pub const MOUSE_INTERRUPT: u8 = 1 << 1;
    pub const SYSTEM: u8 = 1 << 2;
    pub const KEYBOARD_OFF: u8 = 1 << 4;
    pub const MOUSE_OFF: u8 = 1 << 5;
    pub const TRANSLATE: u8 = 1 << 6;
}
mod output_port {
    /// Low resets the processor.
    pub const NO_RESET: u8 = 1 << 0;
    pub const A20: u8 = 1 << 1;
    pub const KEYBOARD_FULL: u8 = 1 << 4;
    pub const MOUSE_FULL: u8 = 1 << 5;
    /// Clock and data lines, idle.
    pub const IDLE: u8 = 0xcc;
}

struct KeyboardController {
    // Wires
    irq1: IrqLine,
    irq12: IrqLine,
    a20: IrqLine,
    power: Power,
    leds: LedPanel,
    // State the guest can see; all of it is saved
    config: u8,
    a20_open: bool,
    /// The last byte written went to the command port.
    last_was_command: bool,
    /// A command that waits for its byte at the data port.
    awaiting: Option<AwaitedByte>,
    output: Option<OutputByte>,
    /// What the data port reads while the output buffer is empty: the byte that was there. Programs that hook the keyboard
    /// interrupt read it, and then the BIOS reads it again.
    last_output: u8,
    /// Bytes of the controller's own for the output buffer, as from the keyboard and as from the mouse.
    as_keyboard: BoundedFifo<16>,
    as_mouse: BoundedFifo<16>,
    /// Translation has seen F0h: the next scancode is a break.
    break_follows: bool,
    keyboard: Ps2Keyboard,
    mouse: Ps2Mouse,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OutputByte {
    byte: u8,
    from_mouse: bool,
}

/// Commands that take a byte, by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AwaitedByte {
    Config = 0x60,
    OutputPort = 0xd1,
    AsKeyboard = 0xd2,
    AsMouse = 0xd3,
    ForMouse = 0xd4,
}

impl AwaitedByte {
    fn of(command: u8) -> Option<Self> {
        [Self::Config, Self::OutputPort, Self::AsKeyboard, Self::AsMouse, Self::ForMouse]
            .into_iter()
            .find(|awaited| *awaited as u8 == command)
    }
}

/// Set 2 to set 1, byte by byte. Prefixes, answers and everything unknown stay as they are.
const TRANSLATION: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = byte as u8;
        byte += 1;
    }
    let mut key = 0;
    while key < KEYS.len() {
        table[(KEYS[key].set2 & 0xff) as usize] = KEYS[key].set1 as u8;
        key += 1;
    }
    // Inside the sequences of Pause, Ctrl+Pause and Alt+Print Screen.
    table[0x77] = 0x45;
    table[0x7e] = 0x46;
    table[0x84] = 0x54;
    table
};

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    wiring.claim_ports(DATA_PORT, 1, Width::Byte);
    wiring.claim_ports(COMMAND_PORT, 1, Width::Byte);
    let mut controller = KeyboardController {
        irq1: wiring.isa_irq(1),
        irq12: wiring.isa_irq(12),
        a20: wiring.wire("a20"),
        power: wiring.power(),
        leds: wiring.leds(),
        config: 0,
        a20_open: true,
        last_was_command: false,
        awaiting: None,
        output: None,
        last_output: 0,
        as_keyboard: BoundedFifo::new(),
        as_mouse: BoundedFifo::new(),
        break_follows: false,
        keyboard: Ps2Keyboard::new(),
        mouse: Ps2Mouse::new(),
    };
    controller.reset(ResetKind::PowerOn);
    Ok(Box::new(controller))
}

impl KeyboardController {
    const CONFIG_AT_RESET: u8 = config::KEYBOARD_INTERRUPT | config::MOUSE_INTERRUPT;

    fn is_on(&self, bit: u8) -> bool {
        self.config & bit != 0
    }

    fn translate(&mut self, byte: u8) -> Option<u8> {
        if !self.is_on(config::TRANSLATE) {
            return Some(byte);
        }
        if byte == 0xf0 {
            self.break_follows = true;
            return None;
        }
        let released = if std::mem::take(&mut self.break_follows) { 0x80 } else { 0 };
        Some(TRANSLATION[usize::from(byte)] | released)
    }

    fn next_output(&mut self) -> Option<OutputByte> {
        if let Some(byte) = self.as_keyboard.pop() {
            return Some(OutputByte { byte, from_mouse: false });
        }
        if let Some(byte) = self.as_mouse.pop() {
            return Some(OutputByte { byte, from_mouse: true });
        }
        while !self.is_on(config::KEYBOARD_OFF)
            && let Some(byte) = self.keyboard.pop()
        {
            // A break marker is swallowed, so look again.
            if let Some(byte) = self.translate(byte) {
                return Some(OutputByte { byte, from_mouse: false });
            }
        }
        let byte = if self.is_on(config::MOUSE_OFF) { None } else { self.mouse.pop() };
        byte.map(|byte| OutputByte { byte, from_mouse: true })
    }

    fn update(&mut self) {
        if self.output.is_none() {
            self.output = self.next_output();
        }
        let from_keyboard = self.output.is_some_and(|output| !output.from_mouse);
        let from_mouse = self.output.is_some_and(|output| output.from_mouse);
        self.irq1.set(from_keyboard && self.is_on(config::KEYBOARD_INTERRUPT));
        self.irq12.set(from_mouse && self.is_on(config::MOUSE_INTERRUPT));
        self.a20.set(self.a20_open);
    }

    fn status(&self) -> u8 {
        let full = match self.output {
            None => 0,
            Some(OutputByte { from_mouse: false, .. }) => status::OUTPUT_FULL,
            Some(OutputByte { from_mouse: true, .. }) => status::OUTPUT_FULL | status::FROM_MOUSE,
        };
        let system = if self.is_on(config::SYSTEM) { status::SYSTEM } else { 0 };
        let command = if self.last_was_command { status::COMMAND } else { 0 };
        full | system | command | status::UNLOCKED
    }

    fn answer(&mut self, byte: u8) {
        self.as_keyboard.push_what_fits(&[byte]);
    }

    fn read_data(&mut self) -> u8 {
        let Some(output) = self.output.take() else { return self.last_output };
        // The line falls before the next byte raises it, so that each byte is an edge.
        let line = if output.from_mouse { &self.irq12 } else { &self.irq1 };
        line.lower();
        self.last_output = output.byte;
        output.byte
    }

    fn command(&mut self, command: u8) {
        self.awaiting = AwaitedByte::of(command);
        if self.awaiting.is_some() {
            return;
        }
        match command {
            0x20 => self.answer(self.config),
            0x21..=0x3f => self.answer(0),
            0xa4 => self.answer(0xf1), // no password
            0xa7 => self.config |= config::MOUSE_OFF,
            0xa8 => self.config &= !config::MOUSE_OFF,
            0xa9 | 0xab => self.answer(0), // interface tests passed
            0xaa => {
                self.config |= config::SYSTEM;
                self.answer(0x55); // self test passed
            }
            0xad => self.config |= config::KEYBOARD_OFF,
            0xae => self.config &= !config::KEYBOARD_OFF,
            0xc0 => self.answer(0x80), // input port: keyboard not locked
            0xd0 => self.answer(self.output_port()),
            0xdd => self.a20_open = false,
            0xdf => self.a20_open = true,
            0xf0..=0xff => {
                // Pulses those lines of the output port whose bits are 0; only the reset line hears it.
                if command & output_port::NO_RESET == 0 {
                    self.power.request(PowerRequest::Reset);
                }
            }
            _ => warn_limited!(command, "8042: no such command"),
        }
    }

    fn output_port(&self) -> u8 {
        let full = match self.output {
            None => 0,
            Some(OutputByte { from_mouse: false, .. }) => output_port::KEYBOARD_FULL,
            Some(OutputByte { from_mouse: true, .. }) => output_port::MOUSE_FULL,
        };
        let a20 = if self.a20_open { output_port::A20 } else { 0 };
        output_port::IDLE | output_port::NO_RESET | a20 | full
    }

    fn write_data(&mut self, byte: u8) {
        match self.awaiting.take() {
            None => {
                // Talking to the keyboard switches its line on.
                self.config &= !config::KEYBOARD_OFF;
                self.keyboard.command(byte);
                self.leds.set(self.keyboard.leds());
            }
            Some(AwaitedByte::Config) => self.config = byte & 0x7f,
            Some(AwaitedByte::OutputPort) => {
                self.a20_open = byte & output_port::A20 != 0;
                if byte & output_port::NO_RESET == 0 {
                    self.power.request(PowerRequest::Reset);
                }
            }
            Some(AwaitedByte::AsKeyboard) => self.answer(byte),
            Some(AwaitedByte::AsMouse) => self.as_mouse.push_what_fits(&[byte]),
            Some(AwaitedByte::ForMouse) => {
                self.config &= !config::MOUSE_OFF;
                self.mouse.command(byte);
            }
        }
    }
}

impl Device for KeyboardController {
    fn reset(&mut self, _kind: ResetKind) {
        let Self {
            irq1,
            irq12,
            a20: _,
            power: _,
            leds,
            config,
            a20_open,
            last_was_command,
            awaiting,
            output,
            last_output,
            as_keyboard,
            as_mouse,
            break_follows,
            keyboard,
            mouse,
        } = self;
        *config = Self::CONFIG_AT_RESET;
        *a20_open = true;
        *last_was_command = false;
        *awaiting = None;
        *output = None;
        *last_output = 0;
        as_keyboard.clear();
        as_mouse.clear();
        *break_follows = false;
        *keyboard = Ps2Keyboard::new();
        *mouse = Ps2Mouse::new();
        leds.set(keyboard.leds());
        irq1.lower();
        irq12.lower();
        self.update();
    }

    fn save(&self) -> SavedState {
        let Self {
            irq1: _,
            irq12: _,
            a20: _,
            power: _,
            leds: _,
            config,
            a20_open,
            last_was_command,
            awaiting,
            output,
            last_output,
            as_keyboard,
            as_mouse,
            break_follows,
            keyboard,
            mouse,
        } = self;
        SavedState::of(
            saved::VERSION,
            &saved::KeyboardController {
                config: *config,
                a20_open: *a20_open,
                last_was_command: *last_was_command,
                awaiting: awaiting.map(|awaited| awaited as u8),
                output: output.map(|OutputByte { byte, from_mouse }| (byte, from_mouse)),
                last_output: *last_output,
                as_keyboard: as_keyboard.to_vec(),
                as_mouse: as_mouse.to_vec(),
                break_follows: *break_follows,
                keyboard: keyboard.save(),
                mouse: mouse.save(),
            },
        )
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved: saved::KeyboardController = saved.read(saved::VERSION)?;
        let awaiting = saved
            .awaiting
            .map(|command| AwaitedByte::of(command).ok_or_else(|| RestoreError::impossible("8042: no command takes a byte so")));
        let keyboard = Ps2Keyboard::of_saved(saved.keyboard)?;
        let mouse = Ps2Mouse::of_saved(saved.mouse)?;
        self.as_keyboard = BoundedFifo::of_saved(&saved.as_keyboard)?;
        self.as_mouse = BoundedFifo::of_saved(&saved.as_mouse)?;
        self.awaiting = awaiting.transpose()?;
        self.leds.set(keyboard.leds());
        self.keyboard = keyboard;
        self.mouse = mouse;
        self.config = saved.config & 0x7f;
        self.a20_open = saved.a20_open;
        self.last_was_command = saved.last_was_command;
        self.output = saved.output.map(|(byte, from_mouse)| OutputByte { byte, from_mouse });
        self.last_output = saved.last_output;
        self.break_follows = saved.break_follows;
        self.update();
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn as_input(&mut self) -> Option<&mut dyn InputSink> {
        Some(self)
    }
}

impl PortIo for KeyboardController {
    fn port_read(&mut self, port: Port, _width: Width) -> u32 {
        let value = if port == Port::Fixed(DATA_PORT) { self.read_data() } else { self.status() };
        self.update();
        value.into()
    }

    fn port_write(&mut self, port: Port, _width: Width, value: u32) {
        self.last_was_command = port == Port::Fixed(COMMAND_PORT);
        if self.last_was_command {
            self.command(value as u8);
        } else {
            self.write_data(value as u8);
        }
        self.update();
    }
}

impl InputSink for KeyboardController {
    fn wants(&self, event: &InputEvent) -> bool {
        !matches!(event, InputEvent::PointerAt { .. })
    }

    fn input(&mut self, event: &InputEvent) {
        match *event {
            InputEvent::Key { code, pressed } => self.keyboard.key(code, pressed),
            InputEvent::PointerMoved { dx, dy } => self.mouse.pointer_moved(dx, dy),
            InputEvent::Button { button, pressed } => self.mouse.button(button, pressed),
            InputEvent::Wheel { notches } => self.mouse.wheel(notches),
            InputEvent::PointerAt { .. } => {} // not wanted
        }
        self.update();
    }
}

mod saved {
    use super::super::{ps2_keyboard, ps2_mouse};
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct KeyboardController {
        pub config: u8,
        pub a20_open: bool,
        pub last_was_command: bool,
        pub awaiting: Option<u8>,
        pub output: Option<(u8, bool)>,
        pub last_output: u8,
        pub as_keyboard: Vec<u8>,
        pub as_mouse: Vec<u8>,
        pub break_follows: bool,
        pub keyboard: ps2_keyboard::saved::Ps2Keyboard,
        pub mouse: ps2_mouse::saved::Ps2Mouse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, moved};
    use engine_bus::DeviceCell;
    use engine_input::{Button, KeyCode, KeyboardLeds};
    use std::sync::Arc;

    /// Set up as SeaBIOS does: translation on, both interrupts on, keyboard scanning.
    fn bench() -> (Bench, Arc<DeviceCell>) {
        let (bench, cell) = Bench::with(&MODEL);
        bench.outb(COMMAND_PORT, 0x60);
        bench.outb(DATA_PORT, 0x47);
        (bench, cell)
    }

    fn drain(bench: &Bench) -> Vec<u8> {
        std::iter::from_fn(|| (bench.inb(COMMAND_PORT) & 1 != 0).then(|| bench.inb(DATA_PORT))).collect()
    }

    fn input(cell: &Arc<DeviceCell>, event: InputEvent) {
        cell.lock().as_input().unwrap().input(&event);
    }

    fn key(cell: &Arc<DeviceCell>, code: u16, pressed: bool) {
        input(cell, InputEvent::Key { code: KeyCode(code), pressed });
    }

    #[test]
    fn every_key_is_translated_to_what_set_1_says() {
        let (bench, cell) = bench();
        for wanted in KEYS.iter().filter(|key| ![99, 119].contains(&key.code.0)) {
            key(&cell, wanted.code.0, true);
            key(&cell, wanted.code.0, false);
            let [prefix, code] = wanted.set1.to_be_bytes();
            let prefix = (prefix != 0).then_some(prefix);
            let expected: Vec<u8> = prefix.into_iter().chain([code]).chain(prefix).chain([code | 0x80]).collect();
            assert_eq!(drain(&bench), expected, "{:?}", wanted.names);
        }
    }

    #[test]
    fn pause_and_print_screen_are_translated_inside_their_sequences() {
        let (bench, cell) = bench();
        key(&cell, 119, true);
        assert_eq!(drain(&bench), [0xe1, 0x1d, 0x45, 0xe1, 0x9d, 0xc5]);
        key(&cell, 99, true);
        key(&cell, 99, false);
        assert_eq!(drain(&bench), [0xe0, 0x2a, 0xe0, 0x37, 0xe0, 0xb7, 0xe0, 0xaa]);
    }

    #[test]
    fn each_byte_is_an_interrupt_of_its_own() {
        let (bench, cell) = bench();
        let heard = bench.watch("isa-irq1");
        key(&cell, 111, true);
        assert_eq!([bench.inb(DATA_PORT), bench.inb(DATA_PORT)], [0xe0, 0x53]);
        assert_eq!(*heard.lock().unwrap(), [true, false, true, false]);
    }

    #[test]
    fn the_last_byte_can_be_read_again() {
        let (bench, cell) = bench();
        key(&cell, 30, true);
        assert_eq!([bench.inb(DATA_PORT), bench.inb(DATA_PORT)], [0x1e, 0x1e]);
    }

    #[test]
    fn the_controller_tests_itself_and_resets_its_keyboard() {
        let (bench, _cell) = bench();
        for (command, answer) in [(0xaa, 0x55), (0xab, 0x00), (0xa9, 0x00), (0x20, 0x47), (0xd0, 0xcf)] {
            bench.outb(COMMAND_PORT, command);
            assert_eq!(drain(&bench), [answer], "{command:#x}");
        }
        bench.outb(DATA_PORT, 0xff);
        assert_eq!(drain(&bench), [0xfa, 0xaa]);
        assert_eq!(bench.inb(COMMAND_PORT), 0x14);
    }

    #[test]
    fn the_lamps_reach_those_who_look_at_them() {
        let (bench, cell) = bench();
        let (sender, heard) = std::sync::mpsc::channel();
        bench.board.leds.listen(move |leds| sender.send(leds).unwrap());
        let caps_lock = KeyboardLeds { caps_lock: true, ..KeyboardLeds::default() };
        for _ in 0..2 {
            [0xed, 0x04].iter().for_each(|byte| bench.outb(DATA_PORT, *byte));
        }
        assert_eq!((heard.try_iter().collect::<Vec<_>>(), bench.board.leds.get()), (vec![caps_lock], caps_lock));
        let saved = cell.lock().save();
        cell.lock().reset(ResetKind::System);
        cell.lock().restore(&saved).unwrap();
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [KeyboardLeds::default(), caps_lock]);
    }

    #[test]
    fn the_mouse_is_behind_command_d4_and_interrupt_12() {
        let (bench, cell) = bench();
        bench.outb(COMMAND_PORT, 0xd4);
        bench.outb(DATA_PORT, 0xf4);
        assert!(bench.level("isa-irq12") && !bench.level("isa-irq1"));
        assert_eq!(bench.inb(COMMAND_PORT) & 0x21, 0x21);
        assert_eq!(drain(&bench), [0xfa]);
        input(&cell, InputEvent::PointerMoved { dx: 2, dy: -1 });
        input(&cell, InputEvent::Button { button: Button::Left, pressed: true });
        assert_eq!(drain(&bench), [0x08, 2, 1, 0x09, 0, 0]);
        assert!(!bench.level("isa-irq12"));
    }

    #[test]
    fn a_keyboard_switched_off_keeps_its_keys() {
        let (bench, cell) = bench();
        bench.outb(COMMAND_PORT, 0xad);
        key(&cell, 30, true);
        assert_eq!(drain(&bench), []);
        bench.outb(COMMAND_PORT, 0xae);
        assert_eq!(drain(&bench), [0x1e]);
    }

    #[test]
    fn the_output_port_moves_a20_and_resets() {
        let (bench, _cell) = bench();
        assert!(bench.level("a20"), "open after reset");
        bench.outb(COMMAND_PORT, 0xd1);
        bench.outb(DATA_PORT, 0xdd);
        assert!(!bench.level("a20"));
        bench.outb(COMMAND_PORT, 0xdf);
        assert!(bench.level("a20"));
        assert_eq!(bench.take_power_requests(), []);
        bench.outb(COMMAND_PORT, 0xff);
        bench.outb(COMMAND_PORT, 0xfe);
        assert_eq!(bench.take_power_requests(), [PowerRequest::Reset]);
    }

    #[test]
    fn loopback_commands_put_bytes_into_the_output_buffer() {
        let (bench, _cell) = bench();
        bench.outb(COMMAND_PORT, 0xd3);
        bench.outb(DATA_PORT, 0x5a);
        assert_eq!(bench.inb(COMMAND_PORT) & 0x21, 0x21);
        assert_eq!(bench.inb(DATA_PORT), 0x5a);
        bench.outb(COMMAND_PORT, 0xd2);
        bench.outb(DATA_PORT, 0xa5);
        assert_eq!((bench.inb(COMMAND_PORT) & 0x21, bench.inb(DATA_PORT)), (0x01, 0xa5));
    }

    #[test]
    fn keys_on_their_way_survive_being_saved() {
        let (bench, cell) = bench();
        key(&cell, 30, true);
        key(&cell, 48, true);
        let (copy, _) = moved(&bench, &cell, &MODEL);
        assert!(copy.level("isa-irq1"));
        assert_eq!(drain(&copy), [0x1e, 0x30]);
    }
}
