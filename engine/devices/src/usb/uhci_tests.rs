//! The controller on a bench, with a schedule in guest memory and the devices on its ports.

use super::uhci::MODEL;
use crate::bench::Bench;
use engine_bus::DeviceCell;
use engine_input::{Button, InputEvent, KeyCode};
use std::sync::Arc;

const IO: u16 = 0xc000;
const FRAMES: u64 = 0x1_0000;
const QUEUE: u64 = 0x2000;
const DESCRIPTORS: u64 = 0x3000;
const DATA: u64 = 0x5000;

const ACTIVE: u32 = 1 << 23;
const STALLED: u32 = 1 << 22;
const SHORT_PACKET_DETECT: u32 = 1 << 29;
const IN: u32 = 0x69;
const OUT: u32 = 0xe1;
const SETUP: u32 = 0x2d;
const MILLISECOND: u64 = 1_000_000;

struct Usb {
    bench: Bench,
    cell: Arc<DeviceCell>,
}

impl Usb {
    /// A running controller whose frames all lead to one queue, with a freshly reset and enabled port 1.
    fn with(options: &[(&str, &str)]) -> Self {
        let mut bench = Bench::new();
        let cell = bench.plug(&MODEL, options);
        bench.set_config_dword(0x20, IO.into());
        bench.set_config_byte(4, 5);
        for frame in 0..1024 {
            bench.board.memory.write(FRAMES + frame * 4, &(QUEUE as u32 | 2).to_le_bytes()).unwrap();
        }
        let usb = Self { bench, cell };
        usb.set_queue(1);
        usb.bench.outl(IO + 8, FRAMES as u32);
        usb.bench.outw(IO + 4, 0xf);
        usb.bench.outw(IO, 1);
        usb.bench.outw(IO + 0x10, 1 << 9);
        usb.bench.outw(IO + 0x10, 0);
        usb.bench.outw(IO + 0x10, 1 << 2);
        usb
    }

    fn new() -> Self {
        Self::with(&[])
    }

    fn set_queue(&self, element: u32) {
        let queue = [1_u32.to_le_bytes(), element.to_le_bytes()].concat();
        self.bench.board.memory.write(QUEUE, &queue).unwrap();
    }

    fn element(&self) -> u32 {
        u32::from_le_bytes(self.bench.board.memory.read_array(QUEUE + 4).unwrap())
    }

    fn status(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.bench.board.memory.read_array(DESCRIPTORS + 16 * index as u64 + 4).unwrap())
    }

    /// Queues descriptors: packet identifier, address, endpoint, length; data lies one after the other.
    fn queue(&self, address: u32, descriptors: &[(u32, u32, usize)]) {
        let mut data = DATA as u32;
        for (index, (pid, endpoint, len)) in descriptors.iter().enumerate() {
            let at = DESCRIPTORS as u32 + 16 * index as u32;
            let is_last = index + 1 == descriptors.len();
            let link = if is_last { 1 } else { (at + 16) | 4 };
            let status = ACTIVE | SHORT_PACKET_DETECT | 3 << 27 | u32::from(is_last) << 24;
            let token = pid | address << 8 | endpoint << 15 | ((*len as u32).wrapping_sub(1) & 0x7ff) << 21;
            let bytes: Vec<u8> = [link, status, token, data].into_iter().flat_map(u32::to_le_bytes).collect();
            self.bench.board.memory.write(at.into(), &bytes).unwrap();
            data += *len as u32;
        }
        self.set_queue(DESCRIPTORS as u32);
    }

    fn run(&self) {
        self.bench.advance(20 * MILLISECOND);
    }

    fn setup(&self, bytes: [u8; 8]) {
        self.bench.board.memory.write(DATA, &bytes).unwrap();
    }

    /// A request without data.
    fn request(&self, address: u32, bytes: [u8; 8]) {
        self.setup(bytes);
        self.queue(address, &[(SETUP, 0, 8), (IN, 0, 0)]);
        self.run();
        assert_eq!((self.status(0) & ACTIVE, self.status(1) & (ACTIVE | STALLED)), (0, 0));
    }

    /// Gives the device address 5 and its configuration.
    fn configure(&self) {
        self.request(0, [0, 5, 5, 0, 0, 0, 0, 0]);
        self.request(5, [0, 9, 1, 0, 0, 0, 0, 0]);
    }

    /// Asks endpoint 1; `None` while there is no news.
    fn poll(&self, len: usize) -> Option<Vec<u8>> {
        self.queue(5, &[(IN, 1, len)]);
        self.run();
        let status = self.status(0);
        if status & ACTIVE != 0 {
            return None;
        }
        let actual = ((status + 1) & 0x7ff) as usize;
        let mut data = vec![0; actual];
        self.bench.board.memory.read(DATA, &mut data).unwrap();
        Some(data)
    }

    fn input(&self, event: InputEvent) {
        self.cell.lock().as_input().unwrap().input(&event);
    }

    fn wants(&self, event: InputEvent) -> bool {
        self.cell.lock().as_input().unwrap().wants(&event)
    }
}

const MIDDLE: InputEvent = InputEvent::PointerAt { x: 0x4000, y: 0x2000 };

#[test]
fn the_device_descriptor_is_read_in_packets_of_eight() {
    let usb = Usb::new();
    usb.setup([0x80, 6, 0, 1, 0, 0, 18, 0]);
    usb.queue(0, &[(SETUP, 0, 8), (IN, 0, 8), (IN, 0, 8), (IN, 0, 8), (OUT, 0, 0)]);
    usb.run();
    // The third packet has two bytes: short, so that the queue waits there and interrupts.
    assert_eq!([1, 2, 3].map(|index| (usb.status(index) + 1) & 0x7ff), [8, 8, 2]);
    assert_eq!(usb.element() & !15, DESCRIPTORS as u32 + 48);
    assert!(usb.bench.level("pci-pirqb"), "device 3, pin D");
    let data: [u8; 18] = usb.bench.board.memory.read_array(DATA + 8).unwrap();
    assert_eq!((data[0], data[1], &data[8..12]), (18, 1, [0x27, 0x06, 0x01, 0x00].as_slice()));
    usb.bench.outw(IO + 2, 1);
    assert!(!usb.bench.level("pci-pirqb"));
}

#[test]
fn the_configuration_names_a_report_descriptor_of_the_right_length() {
    for (function, kind) in [("usb-tablet", 0), ("usb-kbd", 1)] {
        let usb = Usb::with(&[("port1", function)]);
        usb.setup([0x80, 6, 0, 2, 0, 0, 34, 0]);
        usb.queue(0, &[(SETUP, 0, 8), (IN, 0, 8), (IN, 0, 8), (IN, 0, 8), (IN, 0, 8), (IN, 0, 2), (OUT, 0, 0)]);
        usb.run();
        let configuration: [u8; 34] = usb.bench.board.memory.read_array(DATA + 8).unwrap();
        assert_eq!((configuration[2], configuration[15]), (34, kind));
        let len = configuration[25];
        usb.setup([0x81, 6, 0, 0x22, 0, 0, 0xff, 0]);
        let packets: Vec<_> = std::iter::once((SETUP, 0, 8)).chain((0..12).map(|_| (IN, 0, 8))).collect();
        usb.queue(0, &packets);
        usb.run();
        let read: u32 =
            (1..13).map(|index| usb.status(index)).filter(|status| status & ACTIVE == 0).map(|status| (status + 1) & 0x7ff).sum();
        assert_eq!(read, u32::from(len), "{function}");
    }
}

#[test]
fn the_tablet_takes_the_pointer_once_a_driver_listens() {
    let usb = Usb::new();
    assert!(!usb.wants(MIDDLE));
    usb.configure();
    assert!(!usb.wants(MIDDLE), "configured by a bus driver, but nobody asks");
    assert_eq!(usb.poll(6), None);
    assert!(usb.wants(MIDDLE));
    assert!(!usb.wants(InputEvent::PointerMoved { dx: 1, dy: 1 }));
    usb.input(MIDDLE);
    assert_eq!(usb.poll(6), Some(vec![0, 0, 0x40, 0, 0x20, 0]));
    usb.bench.advance(2000 * MILLISECOND);
    usb.set_queue(1);
    usb.bench.advance(2000 * MILLISECOND);
    assert!(!usb.wants(MIDDLE), "nobody has asked for two seconds");
}

#[test]
fn a_click_stays_where_it_was_made_and_movements_merge() {
    let usb = Usb::new();
    usb.configure();
    usb.poll(6);
    usb.set_queue(1);
    for x in [1, 2, 3] {
        usb.input(InputEvent::PointerAt { x, y: 0 });
    }
    usb.input(InputEvent::Button { button: Button::Right, pressed: true });
    usb.input(InputEvent::PointerAt { x: 9, y: 0 });
    usb.input(InputEvent::Wheel { notches: -1 });
    let reports: Vec<_> = std::iter::from_fn(|| usb.poll(6)).collect();
    assert_eq!(reports, [vec![0, 3, 0, 0, 0, 0], vec![2, 3, 0, 0, 0, 0], vec![2, 9, 0, 0, 0, 0], vec![2, 9, 0, 0, 0, 0xff]]);
}

#[test]
fn the_keyboard_reports_modifiers_keys_and_roll_over() {
    let usb = Usb::with(&[("port1", "usb-kbd")]);
    usb.configure();
    usb.poll(8);
    usb.set_queue(1);
    for code in [42, 30] {
        usb.input(InputEvent::Key { code: KeyCode(code), pressed: true });
    }
    usb.input(InputEvent::Key { code: KeyCode(42), pressed: false });
    let reports: Vec<_> = std::iter::from_fn(|| usb.poll(8)).collect();
    assert_eq!(reports, [[2, 0, 0, 0, 0, 0, 0, 0], [2, 0, 4, 0, 0, 0, 0, 0], [0, 0, 4, 0, 0, 0, 0, 0]]);
    for code in 16..22 {
        usb.input(InputEvent::Key { code: KeyCode(code), pressed: true });
    }
    assert_eq!(std::iter::from_fn(|| usb.poll(8)).last(), Some(vec![0, 0, 1, 1, 1, 1, 1, 1]));
}

#[test]
fn unknown_requests_and_absent_devices_stall() {
    let usb = Usb::new();
    usb.setup([0xc0, 0x55, 0, 0, 0, 0, 8, 0]);
    usb.queue(0, &[(SETUP, 0, 8), (IN, 0, 8)]);
    usb.run();
    assert_eq!((usb.status(0) & ACTIVE, usb.status(1) & (ACTIVE | STALLED)), (0, STALLED));
    usb.queue(77, &[(IN, 0, 8)]);
    usb.run();
    assert_eq!(usb.status(0) & (ACTIVE | STALLED | 1 << 18), STALLED | 1 << 18);
    assert_eq!(usb.bench.inw(IO + 2) & 2, 2);
}

#[test]
fn circular_and_nonsensical_schedules_end() {
    let usb = Usb::new();
    // A queue beside itself, a queue within itself, a descriptor after itself.
    for (beside, element) in [(QUEUE as u32 | 2, 1), (1, QUEUE as u32 | 2), (1, DESCRIPTORS as u32), (1, 0xffff_fff0)] {
        let queue = [beside.to_le_bytes(), element.to_le_bytes()].concat();
        usb.bench.board.memory.write(QUEUE, &queue).unwrap();
        let descriptor: Vec<u8> =
            [DESCRIPTORS as u32 | 4, ACTIVE, OUT | 0x7ff << 21, 0].into_iter().flat_map(u32::to_le_bytes).collect();
        usb.bench.board.memory.write(DESCRIPTORS, &descriptor).unwrap();
        usb.run();
    }
    assert_eq!(usb.bench.inw(IO + 2) & 0x28, 0x28, "the last one is not in RAM: host system error, halted");
}

#[test]
fn frame_numbers_follow_the_clock_and_an_idle_controller_wakes_rarely() {
    let usb = Usb::new();
    usb.bench.advance(100 * MILLISECOND);
    let before = usb.bench.inw(IO + 6);
    let deadline = usb.bench.board.timers.next_deadline();
    assert!(deadline.nanos_since(usb.bench.clock.now()) <= 8 * MILLISECOND);
    let mut wakes = 0;
    let end = usb.bench.clock.now().after_nanos(1000 * MILLISECOND);
    while usb.bench.clock.now() < end {
        usb.bench.clock.leap_to(usb.bench.board.timers.next_deadline());
        usb.bench.board.timers.fire_due();
        wakes += 1;
    }
    assert!((120..=130).contains(&wakes), "{wakes}");
    let passed = usb.bench.inw(IO + 6).wrapping_sub(before) & 0x7ff;
    assert!((995..=1008).contains(&passed), "{passed}");
    usb.bench.outw(IO, 0);
    assert_eq!(usb.bench.board.timers.next_deadline(), engine_base::VmTime::NEVER);
}

#[test]
fn state_moves_to_another_machine() {
    let usb = Usb::new();
    usb.configure();
    usb.poll(6);
    usb.set_queue(1);
    usb.input(MIDDLE);
    let (_bench, copy) = crate::bench::moved(&usb.bench, &usb.cell, &MODEL);
    assert!(copy.lock().as_input().unwrap().wants(&MIDDLE));
}
