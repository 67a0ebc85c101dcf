//! Walks the registry, so that a device is tested from the commit that adds its line. Each model is built on a small
//! board and poked at random: ports, MMIO, PCI configuration, wires, timers, input, character ports, drives. Then
//! - saving it, restoring into a fresh one and saving again gives the same;
//! - a power-on reset makes it what a new one is;
//! - damaged saved state is refused or taken, but never a panic, not even later;
//! - nothing takes long.
//!
//! Every run prints its seed. `VMTEST_SEED=… cargo test -p engine_devices --test every_device` repeats it; `VMTEST_ROUNDS=1000`
//! looks longer.

use engine_base::{Clock, ClockMode, VmTime};
use engine_bus::{
    Backplane, CharHost, DeviceCell, DeviceModel, Drive, DriveRules, FirmwareFile, IrqLine, Medium, MessageSender, Options,
    PciAddress, Power, ResetKind, SavedState, Slot, Width, char_port,
};
use engine_devices::registry::MODELS;
use engine_disk::{DiskError, DiskImage, Extent, ExtentKind, Format};
use engine_input::{Button, InputEvent, KeyCode};
use engine_memory::{Contents, GuestMemory, Layer};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const ROUNDS: u64 = 8;
const STEPS: usize = 600;
const RAM_BYTES: u64 = 2 << 20;
/// Far more than it takes, so that a busy host does not fail the test: a loop without end does.
const MOST_TIME: Duration = Duration::from_secs(60);
const PCI: PciAddress = PciAddress { device: 3, function: 0 };

/// SplitMix64: enough randomness for poking, and the same on every host.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn width(&mut self) -> Width {
        [Width::Byte, Width::Byte, Width::Word, Width::Dword][self.below(4) as usize]
    }

    /// A value that often lies at some border.
    fn value(&mut self) -> u64 {
        match self.below(4) {
            0 => 1 << self.below(64),
            1 => u64::MAX >> self.below(64),
            2 => self.below(256),
            _ => self.next(),
        }
    }
}

/// A disk in the host's memory.
struct MemoryDisk(Mutex<Vec<u8>>);

impl DiskImage for MemoryDisk {
    fn len(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        buffer.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.0.lock().unwrap()[offset as usize..][..length as usize].fill(0);
        Ok(())
    }
    fn read_only(&self) -> bool {
        false
    }
    fn format(&self) -> Format {
        Format::Raw
    }
    fn extent_at(&self, offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent::new(ExtentKind::Data, self.len() - offset))
    }
}

/// A board with one device on it.
struct Bench {
    board: Backplane,
    clock: Clock,
    cell: Arc<DeviceCell>,
    hosts: Vec<CharHost>,
    wires: BTreeMap<String, IrqLine>,
}

impl Bench {
    fn new(model: &DeviceModel, start: VmTime) -> Self {
        let clock = Clock::new(ClockMode::Counted { picos_per_instruction: 1000 }, start);
        let memory = GuestMemory::new();
        let ram = memory.add_block("ram", RAM_BYTES).unwrap();
        memory.set_layer(Layer { name: "ram".into(), priority: 0, base: 0, len: RAM_BYTES, contents: Contents::Ram(ram, 0) });
        let mut board = Backplane::new(memory, clock.clone(), Power::new(|_| ()), MessageSender::new(|_| ()));
        let mut hosts = Vec::new();
        for name in ["serial0", "debugcon"] {
            let (port, host) = char_port(|_| ());
            board.char_ports.insert(name.into(), port);
            hosts.push(host);
        }
        for name in ["ide0-0", "ide1-0", "floppy0"] {
            let (drive, _server) = Drive::new(name);
            drive.serve_in_place(&board.timers);
            board.drives.insert(name.into(), drive);
        }
        board.firmware_files = vec![
            FirmwareFile::Item { key: 5, bytes: vec![1, 0] },
            FirmwareFile::Named { name: "etc/e820".into(), bytes: vec![7; 100] },
        ];
        board.roms.insert("bios".into(), vec![0x90; 0x20000]);
        board.roms.insert("vgabios".into(), vec![0x55; 0x8000]);
        for drive in board.drives.values() {
            drive.set_medium(Some(disk()));
        }
        let pci = (model.slot == Slot::Pci).then_some(PCI);
        let cell = board.plug(model, model.id, pci, &Options::default()).unwrap();
        let names = board.wires.levels().into_iter().map(|(name, _)| name);
        let wires = names.map(|name| (name.clone(), board.wires.drive(&name))).collect();
        Self { board, clock, cell, hosts, wires }
    }

    fn save(&self) -> SavedState {
        self.cell.lock().save()
    }

    /// One random thing that a guest or the world outside might do.
    fn poke(&self, random: &mut Random) {
        match random.below(24) {
            0..=10 => self.poke_claim(random),
            11..=13 => self.poke_config(random),
            14 => self.poke_wire(random),
            15 => self.pass_time(random),
            16 => self.poke_input(random),
            17 => {
                let bytes: Vec<u8> = (0..random.below(40)).map(|_| random.next() as u8).collect();
                self.hosts.iter().map(|host| host.feed(&bytes)).for_each(drop);
            }
            18 => {
                let address = random.below(RAM_BYTES);
                let bytes: Vec<u8> = (0..random.below(64)).map(|_| random.value() as u8).collect();
                self.board.memory.write(address, &bytes).ok(); // It may reach past the end of RAM.
            }
            19 => self.cell.ring(),
            20 => self.poke_controller(random),
            21 => {
                if let Some(button) = self.cell.lock().as_power_button() {
                    button.press();
                }
            }
            22 => {
                let everything = random.chance(4);
                if let Some(source) = self.cell.lock().as_screen() {
                    source.draw(&self.board.screen, everything);
                }
            }
            _ => {
                if random.chance(10) {
                    let medium = random.chance(2).then(disk);
                    let which = random.below(self.board.drives.len() as u64) as usize;
                    self.board.drives.values().skip(which).take(1).for_each(|drive| drive.set_medium(medium.clone()));
                }
                let mut bytes = [0; 64];
                let channel = self.board.isa_dma_channel(random.next() as u8);
                channel.read_memory(&mut bytes);
                channel.write_memory(&bytes);
            }
        }
    }

    fn poke_claim(&self, random: &mut Random) {
        let claims = self.board.router.claims();
        if claims.is_empty() {
            return;
        }
        let (kind, first, last, _) = &claims[random.below(claims.len() as u64) as usize];
        // Mostly near the start, where the registers are.
        let span = if random.chance(3) { last - first + 1 } else { (last - first + 1).min(64) };
        let at = first + random.below(span);
        let (width, value) = (random.width(), random.value());
        let router = &self.board.router;
        match (kind.as_str(), random.chance(3)) {
            ("io", true) => drop(router.port_read(at as u16, width)),
            ("io", false) => router.port_write(at as u16, width, value as u32),
            (_, true) => drop(router.mmio_read(at, width)),
            (_, false) => router.mmio_write(at, width, value),
        }
    }

    fn poke_config(&self, random: &mut Random) {
        // The registers that place things get sensible values now and then, so that there is something behind them.
        let (offset, value) = match random.below(4) {
            0 => (0x04, 0x0107),
            1 => (0x10 + 4 * random.below(6), random.below(0x10) << 12 | 0xc000),
            _ => (random.below(64) * 4, random.value()),
        };
        let router = &self.board.router;
        let address = 0x8000_0000 | u32::from(PCI.device) << 11 | offset as u32;
        router.port_write(0xcf8, Width::Dword, address);
        let (port, width) = (0xcfc + random.below(4) as u16, random.width());
        match random.below(4) {
            0 => drop(router.port_read(port, width)),
            1 => router.port_write(port, width, value as u32),
            _ => router.port_write(0xcfc, Width::Dword, value as u32),
        }
    }

    fn poke_wire(&self, random: &mut Random) {
        let which = random.below(self.wires.len() as u64) as usize;
        for line in self.wires.values().skip(which).take(1) {
            line.set(random.chance(2));
        }
    }

    fn pass_time(&self, random: &mut Random) {
        let longest = if random.chance(30) { 2_500_000_000 } else { 3_000_000 };
        let end = self.clock.now().after_nanos(random.below(longest));
        while self.board.timers.next_deadline() <= end {
            self.clock.leap_to(self.board.timers.next_deadline());
            self.board.timers.fire_due();
        }
        self.clock.leap_to(end);
    }

    fn poke_input(&self, random: &mut Random) {
        let pressed = random.chance(2);
        let event = match random.below(5) {
            0 => InputEvent::Key { code: KeyCode(random.below(140) as u16), pressed },
            1 => InputEvent::PointerAt { x: random.below(32768) as u16, y: random.below(32768) as u16 },
            2 => InputEvent::PointerMoved { dx: random.value() as i32, dy: random.value() as i32 },
            3 => {
                let button = [Button::Left, Button::Right, Button::Middle, Button::Side, Button::Extra][random.below(5) as usize];
                InputEvent::Button { button, pressed }
            }
            _ => InputEvent::Wheel { notches: random.value() as i32 },
        };
        let mut device = self.cell.lock();
        if let Some(sink) = device.as_input()
            && sink.wants(&event)
        {
            sink.input(&event);
        }
    }

    fn poke_controller(&self, random: &mut Random) {
        let mut device = self.cell.lock();
        let Some(controller) = device.as_interrupt_controller() else { return };
        match random.below(3) {
            0 => drop(controller.acknowledge()),
            1 => controller.end_of_interrupt(random.next() as u8),
            _ => {
                let input = random.below(40) as u32;
                controller.set_input(input, true);
                controller.set_input(input, false);
            }
        }
    }
}

/// Compares two saved states; says where they part, not all megabytes of them.
fn assert_same(found: &SavedState, expected: &SavedState, model: &DeviceModel) {
    if found != expected {
        let (found, expected) = (format!("{found:?}"), format!("{expected:?}"));
        let part = found.bytes().zip(expected.bytes()).take_while(|(one, other)| one == other).count();
        let around = |text: &str| text.chars().skip(part.saturating_sub(300)).take(500).collect::<String>();
        panic!("{}: found …{}…, expected …{}…", model.id, around(&found), around(&expected));
    }
}

fn disk() -> Medium {
    let image = Arc::new(MemoryDisk(Mutex::new(vec![0x5a; 2880 * 512])));
    Medium { image, read_only: false, title: "test".into(), rules: DriveRules::default() }
}

/// A number from the environment.
fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

fn seed() -> u64 {
    number("VMTEST_SEED").unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().map_or(1, |since| since.as_nanos() as u64))
}

/// Runs `body` for every model and round with a seed of its own, and checks that it does not take for ever.
fn for_every_model(body: impl Fn(&DeviceModel, &mut Random)) {
    let seed = seed();
    let rounds = number("VMTEST_ROUNDS").unwrap_or(ROUNDS);
    println!("VMTEST_SEED={seed}");
    for (number, model) in (0_u64..).zip(MODELS) {
        let started = Instant::now();
        for round in 0..rounds {
            let mut random = Random(seed ^ number << 32 ^ round << 48);
            println!("{} round {round}", model.id);
            body(model, &mut random);
        }
        let took = started.elapsed();
        assert!(took < MOST_TIME * (rounds / ROUNDS + 1) as u32, "{} took {took:?}", model.id);
        println!("{} took {took:?}", model.id);
    }
}

#[test]
fn what_is_saved_comes_back_the_same() {
    for_every_model(|model, random| {
        let bench = Bench::new(model, VmTime::ZERO);
        for _ in 0..STEPS {
            bench.poke(random);
        }
        let saved = bench.save();
        let copy = Bench::new(model, bench.clock.now());
        copy.cell.lock().restore(&saved).unwrap_or_else(|error| panic!("{}: {error}", model.id));
        copy.board.router.rebuild();
        assert_same(&copy.save(), &saved, model);
        for _ in 0..STEPS / 4 {
            copy.poke(random);
        }
    });
}

#[test]
fn a_power_on_reset_makes_it_new() {
    for_every_model(|model, random| {
        let bench = Bench::new(model, VmTime::ZERO);
        for _ in 0..STEPS {
            bench.poke(random);
        }
        // What others drive is not the device's to reset.
        bench.wires.values().for_each(IrqLine::lower);
        bench.board.drives.values().for_each(|drive| drive.set_medium(Some(disk())));
        bench.cell.lock().reset(ResetKind::PowerOn);
        bench.board.router.rebuild();
        let new = Bench::new(model, bench.clock.now());
        assert_same(&bench.save(), &new.save(), model);
        bench.cell.lock().reset(ResetKind::System);
    });
}

#[test]
fn damaged_saved_state_is_never_a_panic() {
    for_every_model(|model, random| {
        let bench = Bench::new(model, VmTime::ZERO);
        for _ in 0..STEPS / 2 {
            bench.poke(random);
        }
        let mut bytes = Vec::new();
        ciborium::into_writer(&bench.save(), &mut bytes).unwrap();
        for _ in 0..8 {
            let mut damaged = bytes.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(damaged.len() as u64) as usize;
                damaged[at] ^= 1 << random.below(8);
            }
            let Ok(state) = ciborium::from_reader::<SavedState, _>(damaged.as_slice()) else { continue };
            let victim = Bench::new(model, bench.clock.now());
            if victim.cell.lock().restore(&state).is_ok() {
                victim.board.router.rebuild();
                for _ in 0..STEPS / 20 {
                    victim.poke(random);
                }
                victim.save();
            }
        }
    });
}
