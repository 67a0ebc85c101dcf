//! MC146818 real-time clock with 128 bytes of CMOS memory. The date is the machine's wall clock plus what the guest has
//! set; the century is in byte 32h. Periodic, alarm and update interrupts come on IRQ 8, silent while the HPET replaces
//! them (flag `hpet-legacy`). Bit 7 of the index port is the NMI mask (flag `nmi-masked`). Flags nobody waits for are
//! worked out when register C is read; only enabled interrupts set a timer.
//! Left out: daylight saving, the square wave, and the divider (setting the time restarts no prescaler).
//! See: Motorola MC146818A (ADI1026R1), "Real-Time Clock Plus RAM".

use super::calendar::{Calendar, SECONDS_PER_DAY};
use engine_base::{Clock, VmTime, rank};
use engine_bus::{
    BuildError, Device, DeviceModel, IrqLine, Options, Port, PortIo, ResetKind, RestoreError, SavedState, SharedFlag, Slot,
    Timed, Timer, Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel = DeviceModel {
    id: "mc146818rtc",
    title: "Real-time clock and CMOS memory",
    slot: Slot::Chipset,
    rank: rank::DEVICE,
    options: &[],
    build,
};

const INDEX_PORT: u16 = 0x70;
const DATA_PORT: u16 = 0x71;
const BYTES: usize = 128;
const PERIODIC_HZ: u64 = 32_768;
const SECOND: u64 = 1_000_000_000;
/// The update flag is up this long before the second turns.
const UPDATE_WARNING_NANOS: u64 = 244_000;

/// No date and no difference of two is further away: ten thousand years and some.
const MOST_SECONDS: u64 = 400_000_000_000;

mod register {
    pub const SECONDS: u8 = 0x00;
    pub const SECONDS_ALARM: u8 = 0x01;
    pub const MINUTES: u8 = 0x02;
    pub const MINUTES_ALARM: u8 = 0x03;
    pub const HOURS: u8 = 0x04;
    pub const HOURS_ALARM: u8 = 0x05;
    pub const WEEKDAY: u8 = 0x06;
    pub const DAY: u8 = 0x07;
    pub const MONTH: u8 = 0x08;
    pub const YEAR: u8 = 0x09;
    pub const A: u8 = 0x0a;
    pub const B: u8 = 0x0b;
    pub const C: u8 = 0x0c;
    pub const D: u8 = 0x0d;
    pub const CENTURY: u8 = 0x32;
    /// Where the PS/2 has it.
    pub const CENTURY_PS2: u8 = 0x37;
}

const A_UPDATE_IN_PROGRESS: u8 = 1 << 7;
const A_AT_POWER_ON: u8 = 0x26;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
/// The interrupt enables of register B, at the same places as the flags of register C.
const ENABLES: u8 = 0x70;
const B_SQUARE_WAVE: u8 = 1 << 3;
const C_INTERRUPT: u8 = 1 << 7;
const PERIODIC: u8 = 1 << 6;
const ALARM: u8 = 1 << 5;
const UPDATE: u8 = 1 << 4;
const D_VALID: u8 = 1 << 7;
/// An alarm byte from here on means "any".
const ANY: u8 = 0xc0;

struct Rtc {
    // Wires
    clock: Clock,
    irq8: IrqLine,
    timer: Timer,
    hpet_legacy: SharedFlag,
    nmi_masked: SharedFlag,
    /// CMOS as the board sets it when power comes on.
    at_power_on: [u8; BYTES],
    // State the guest can see; all of it is saved
    index: u8,
    /// All bytes that are not worked out; A, B and C among them, the flags of C without its bit 7.
    memory: [u8; BYTES],
    /// The guest's date minus the wall clock's.
    offset_seconds: i64,
    /// The date while the SET bit stops it.
    stopped: Option<Calendar>,
    /// Up to when flags have been worked out: guest time, and the guest's date in seconds.
    settled: VmTime,
    settled_date: i64,
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    wiring.claim_ports(INDEX_PORT, 2, Width::Byte);
    let mut at_power_on = [0; BYTES];
    for (index, value) in wiring.cmos() {
        at_power_on[usize::from(index & 0x7f)] = value;
    }
    at_power_on[usize::from(register::A)] = A_AT_POWER_ON;
    at_power_on[usize::from(register::B)] = B_24_HOURS;
    at_power_on[usize::from(register::C)] = 0;
    at_power_on[usize::from(register::D)] = D_VALID;
    let mut rtc = Rtc {
        clock: wiring.clock(),
        irq8: wiring.isa_irq(8),
        timer: wiring.timer(0),
        hpet_legacy: wiring.shared_flag("hpet-legacy"),
        nmi_masked: wiring.shared_flag("nmi-masked"),
        at_power_on,
        index: 0,
        memory: at_power_on,
        offset_seconds: 0,
        stopped: None,
        settled: VmTime::ZERO,
        settled_date: 0,
    };
    rtc.settle_from_now();
    Ok(Box::new(rtc))
}

impl Rtc {
    fn register(&self, register: u8) -> u8 {
        self.memory[usize::from(register & 0x7f)]
    }

    fn register_mut(&mut self, register: u8) -> &mut u8 {
        &mut self.memory[usize::from(register & 0x7f)]
    }

    /// The running date in seconds since 1970, and nanoseconds into the second.
    fn date(&self) -> (i64, u64) {
        let nanos = self.clock.wall_clock_nanos();
        let seconds = i64::try_from(nanos / u128::from(SECOND)).unwrap_or(i64::MAX);
        (seconds.saturating_add(self.offset_seconds), (nanos % u128::from(SECOND)) as u64)
    }

    fn calendar(&self) -> Calendar {
        self.stopped.unwrap_or_else(|| Calendar::of_seconds(self.date().0))
    }

    fn set_calendar(&mut self, calendar: Calendar) {
        if self.stopped.is_some() {
            self.stopped = Some(calendar);
        } else {
            let (now, _) = self.date();
            self.offset_seconds = self.offset_seconds.saturating_add(calendar.seconds().saturating_sub(now));
            self.settle_from_now();
        }
    }

    fn settle_from_now(&mut self) {
        self.settled = self.clock.now();
        self.settled_date = self.date().0;
    }

    fn encode(&self, value: u8) -> u8 {
        if self.register(register::B) & B_BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.register(register::B) & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 15) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register(register::B) & B_24_HOURS != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        afternoon | self.encode((hour + 11) % 12 + 1)
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.register(register::B) & B_24_HOURS != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    /// The period of the periodic interrupt in ticks of 32768 Hz.
    fn periodic_ticks(&self) -> Option<u64> {
        match self.register(register::A) & 15 {
            0 => None,
            rate @ (1 | 2) => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// The first second after `date` at which the alarm matches.
    fn next_alarm(&self, date: i64) -> Option<i64> {
        let fields = [register::HOURS_ALARM, register::MINUTES_ALARM, register::SECONDS_ALARM].map(|at| self.register(at));
        let wanted = |field: usize, decoded: u8| (fields[field] < ANY).then_some(i64::from(decoded));
        // In 12-hour mode an afternoon hour has bit 7 set, which is still below "any".
        let hour = wanted(0, self.decode_hour(fields[0]));
        let (minute, second) = (wanted(1, self.decode(fields[1])), wanted(2, self.decode(fields[2])));
        let mut at = date.saturating_add(1);
        let end = at.saturating_add(SECONDS_PER_DAY);
        // Skips whole hours and minutes, so it looks at 25 + 60 + 60 moments at most.
        while at < end {
            let time = at.rem_euclid(SECONDS_PER_DAY);
            if hour.is_some_and(|hour| hour != time / 3600) {
                at += 3600 - time % 3600;
            } else if minute.is_some_and(|minute| minute != time / 60 % 60) {
                at += 60 - time % 60;
            } else if second.is_some_and(|second| second != time % 60) {
                at += 1;
            } else {
                return Some(at);
            }
        }
        None
    }

    /// Works out the flags of register C up to now.
    fn settle(&mut self) {
        let now = self.clock.now();
        let mut flags = 0;
        if let Some(period) = self.periodic_ticks()
            && now.ticks(PERIODIC_HZ) / period != self.settled.ticks(PERIODIC_HZ) / period
        {
            flags |= PERIODIC;
        }
        let (date, _) = self.date();
        if self.stopped.is_none() && date > self.settled_date {
            flags |= UPDATE;
            if self.next_alarm(self.settled_date).is_some_and(|alarm| alarm <= date) {
                flags |= ALARM;
            }
        }
        *self.register_mut(register::C) |= flags;
        self.settle_from_now();
    }

    /// When the next enabled interrupt is due whose flag is not up yet.
    fn next_event(&self) -> VmTime {
        let now = self.clock.now();
        let awaited = self.register(register::B) & ENABLES & !self.register(register::C);
        let mut next = VmTime::NEVER;
        if awaited & PERIODIC != 0
            && let Some(period) = self.periodic_ticks()
        {
            let periods = now.ticks(PERIODIC_HZ) / period + 1;
            next = next.min(VmTime::at_tick(periods * period, PERIODIC_HZ));
        }
        if self.stopped.is_some() {
            return next;
        }
        let (date, nanos) = self.date();
        let seconds_from_now = |seconds: i64| now.after_nanos((seconds.max(1) as u64).saturating_mul(SECOND) - nanos);
        if awaited & UPDATE != 0 {
            next = next.min(seconds_from_now(1));
        }
        if awaited & ALARM != 0
            && let Some(alarm) = self.next_alarm(date)
        {
            next = next.min(seconds_from_now(alarm - date));
        }
        next
    }

    fn interrupts(&self) -> bool {
        self.register(register::B) & self.register(register::C) & ENABLES != 0
    }

    fn update(&mut self) {
        self.irq8.set(self.interrupts() && !self.hpet_legacy.get());
        self.timer.set(self.next_event());
    }

    fn read(&mut self, index: u8) -> u8 {
        let calendar = self.calendar();
        match index {
            register::SECONDS => self.encode(calendar.second),
            register::MINUTES => self.encode(calendar.minute),
            register::HOURS => self.encode_hour(calendar.hour),
            register::WEEKDAY => self.encode(calendar.weekday()),
            register::DAY => self.encode(calendar.day),
            register::MONTH => self.encode(calendar.month),
            register::YEAR => self.encode((calendar.year % 100) as u8),
            register::CENTURY | register::CENTURY_PS2 => self.encode((calendar.year / 100) as u8),
            register::A => {
                let updating = self.stopped.is_none() && self.date().1 >= SECOND - UPDATE_WARNING_NANOS;
                self.register(register::A) | if updating { A_UPDATE_IN_PROGRESS } else { 0 }
            }
            register::C => {
                self.settle();
                let interrupt = if self.interrupts() { C_INTERRUPT } else { 0 };
                let flags = std::mem::take(self.register_mut(register::C));
                self.update();
                flags | interrupt
            }
            index => self.register(index),
        }
    }

    fn write(&mut self, index: u8, value: u8) {
        self.settle();
        let calendar = self.calendar();
        let number = self.decode(value);
        match index {
            register::SECONDS => self.set_calendar(Calendar { second: number.min(59), ..calendar }),
            register::MINUTES => self.set_calendar(Calendar { minute: number.min(59), ..calendar }),
            register::HOURS => self.set_calendar(Calendar { hour: self.decode_hour(value).min(23), ..calendar }),
            register::WEEKDAY => {} // It follows from the date.
            register::DAY => self.set_calendar(Calendar { day: number.clamp(1, 31), ..calendar }),
            register::MONTH => self.set_calendar(Calendar { month: number.clamp(1, 12), ..calendar }),
            register::YEAR => {
                let year = calendar.year / 100 * 100 + u16::from(number.min(99));
                self.set_calendar(Calendar { year, ..calendar });
            }
            register::CENTURY | register::CENTURY_PS2 => {
                let year = u16::from(number.min(99)) * 100 + calendar.year % 100;
                self.set_calendar(Calendar { year, ..calendar });
            }
            register::A => *self.register_mut(register::A) = value & !A_UPDATE_IN_PROGRESS,
            register::B => self.write_b(value),
            register::C | register::D => {} // read-only
            index => *self.register_mut(index) = value,
        }
        self.update();
    }

    fn write_b(&mut self, value: u8) {
        let value = if value & B_SET != 0 { value & !UPDATE } else { value };
        match (value & B_SET != 0, self.stopped) {
            (true, None) => self.stopped = Some(self.calendar()),
            (false, Some(calendar)) => {
                self.stopped = None;
                self.set_calendar(calendar);
            }
            _ => {}
        }
        *self.register_mut(register::B) = value;
    }
}

impl Device for Rtc {
    fn reset(&mut self, kind: ResetKind) {
        let Self {
            clock: _,
            irq8: _,
            timer: _,
            hpet_legacy: _,
            nmi_masked,
            at_power_on,
            index,
            memory,
            offset_seconds,
            stopped,
            settled: _,
            settled_date: _,
        } = self;
        nmi_masked.set(false);
        *index = 0;
        // The battery keeps the rest while the reset line is pulled.
        memory[usize::from(register::B)] &= !(ENABLES | B_SQUARE_WAVE);
        memory[usize::from(register::C)] = 0;
        if kind == ResetKind::PowerOn {
            *memory = *at_power_on;
            *offset_seconds = 0;
            *stopped = None;
        }
        self.settle_from_now();
        self.update();
    }

    fn save(&self) -> SavedState {
        let Self {
            clock: _,
            irq8: _,
            timer: _,
            hpet_legacy: _,
            nmi_masked,
            at_power_on: _,
            index,
            memory,
            offset_seconds,
            stopped,
            settled,
            settled_date,
        } = self;
        SavedState::of(
            saved::VERSION,
            &saved::Rtc {
                index: *index,
                nmi_masked: nmi_masked.get(),
                memory: memory.to_vec(),
                offset_seconds: *offset_seconds,
                stopped_at: stopped.map(|calendar| calendar.seconds()),
                settled: *settled,
                settled_date: *settled_date,
            },
        )
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved: saved::Rtc = saved.read(saved::VERSION)?;
        let memory: [u8; BYTES] =
            saved.memory.try_into().map_err(|_| RestoreError::impossible("real-time clock: CMOS memory is not 128 bytes"))?;
        self.memory = memory;
        *self.register_mut(register::A) &= !A_UPDATE_IN_PROGRESS;
        *self.register_mut(register::C) &= ENABLES;
        *self.register_mut(register::D) = D_VALID;
        if saved.stopped_at.is_some() != (self.register(register::B) & B_SET != 0) {
            return Err(RestoreError::impossible("real-time clock: stopped and running at once"));
        }
        if [saved.offset_seconds, saved.settled_date].iter().any(|seconds| seconds.unsigned_abs() > MOST_SECONDS) {
            return Err(RestoreError::impossible("real-time clock: no such date"));
        }
        self.index = saved.index & 0x7f;
        self.nmi_masked.set(saved.nmi_masked);
        self.offset_seconds = saved.offset_seconds;
        self.stopped = saved.stopped_at.map(Calendar::of_seconds);
        self.settled = saved.settled;
        self.settled_date = saved.settled_date;
        self.update();
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PortIo for Rtc {
    fn port_read(&mut self, port: Port, _width: Width) -> u32 {
        match port {
            Port::Fixed(DATA_PORT) => self.read(self.index).into(),
            _ => 0xff, // The index is write-only.
        }
    }

    fn port_write(&mut self, port: Port, _width: Width, value: u32) {
        match port {
            Port::Fixed(DATA_PORT) => self.write(self.index, value as u8),
            _ => {
                self.index = value as u8 & 0x7f;
                self.nmi_masked.set(value & 0x80 != 0);
            }
        }
    }
}

impl Timed for Rtc {
    fn timer_fired(&mut self, _timer: u32, _now: VmTime) {
        self.settle();
        self.update();
    }
}

mod saved {
    use engine_base::VmTime;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct Rtc {
        pub index: u8,
        pub nmi_masked: bool,
        pub memory: Vec<u8>,
        pub offset_seconds: i64,
        pub stopped_at: Option<i64>,
        pub settled: VmTime,
        pub settled_date: i64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, moved, reset};

    fn read(bench: &Bench, index: u8) -> u8 {
        bench.outb(INDEX_PORT, index);
        bench.inb(DATA_PORT)
    }

    fn write(bench: &Bench, index: u8, value: u8) {
        bench.outb(INDEX_PORT, index);
        bench.outb(DATA_PORT, value);
    }

    fn date(bench: &Bench) -> [u8; 7] {
        [0x32, 9, 8, 7, 4, 2, 0].map(|index| read(bench, index))
    }

    #[test]
    fn it_shows_the_wall_clock_in_bcd() {
        let (bench, _cell) = Bench::with(&MODEL);
        bench.advance(45_296 * SECOND); // 12:34:56 after the counted clock's first midnight
        assert_eq!(date(&bench), [0x20, 0x26, 0x01, 0x01, 0x12, 0x34, 0x56]);
        assert_eq!(read(&bench, 6), 5, "a Thursday");
        write(&bench, 0x0b, 0x06);
        assert_eq!(date(&bench), [20, 26, 1, 1, 12, 34, 56]);
        write(&bench, 0x0b, 0x04);
        bench.advance(3600 * SECOND);
        assert_eq!(read(&bench, 4), 0x81, "one in the afternoon");
    }

    #[test]
    fn the_date_set_by_the_guest_goes_on_from_there() {
        let (bench, _cell) = Bench::with(&MODEL);
        write(&bench, 0x0b, 0x82);
        for (index, value) in [(0x32, 0x19), (9, 0x99), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)] {
            write(&bench, index, value);
        }
        bench.advance(5 * SECOND);
        assert_eq!(date(&bench), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x58], "stopped while it is set");
        write(&bench, 0x0b, 0x02);
        bench.advance(2 * SECOND);
        assert_eq!(date(&bench), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
    }

    #[test]
    fn the_update_flag_is_up_shortly_before_the_second_turns() {
        let (bench, _cell) = Bench::with(&MODEL);
        bench.advance(SECOND - 300_000);
        assert_eq!(read(&bench, 0x0a), A_AT_POWER_ON);
        bench.advance(100_000);
        assert_eq!(read(&bench, 0x0a), A_AT_POWER_ON | A_UPDATE_IN_PROGRESS);
        bench.advance(200_000);
        assert_eq!(read(&bench, 0x0a), A_AT_POWER_ON);
    }

    #[test]
    fn the_periodic_interrupt_comes_at_its_rate_and_ends_with_reading_c() {
        let (bench, _cell) = Bench::with(&MODEL);
        write(&bench, 0x0b, 0x42);
        let mut count = 0;
        for _ in 0..2048 {
            bench.advance(SECOND / 2048);
            if bench.level("isa-irq8") {
                count += 1;
                assert_eq!(read(&bench, 0x0c) & 0xc0, 0xc0);
                assert!(!bench.level("isa-irq8"));
            }
        }
        assert!((1022..=1024).contains(&count), "{count} interrupts in a second at 1024 Hz");
    }

    #[test]
    fn flags_come_up_without_interrupts_too() {
        let (bench, _cell) = Bench::with(&MODEL);
        bench.advance(SECOND * 2);
        assert_eq!(read(&bench, 0x0c), PERIODIC | UPDATE);
        assert_eq!(read(&bench, 0x0c), 0);
    }

    #[test]
    fn the_alarm_rings_at_its_time_and_its_wildcards() {
        let (bench, _cell) = Bench::with(&MODEL);
        for (index, value) in [(5, 0x00), (3, 0x01), (1, 0x30)] {
            write(&bench, index, value);
        }
        write(&bench, 0x0b, 0x22);
        bench.advance(89 * SECOND + SECOND / 2);
        assert!(!bench.level("isa-irq8"));
        bench.advance(SECOND);
        assert!(bench.level("isa-irq8"));
        assert_eq!(read(&bench, 0x0c) & (C_INTERRUPT | ALARM), C_INTERRUPT | ALARM);
        write(&bench, 5, 0xff);
        bench.advance(3600 * SECOND);
        assert!(bench.level("isa-irq8"), "every hour");
    }

    #[test]
    fn memory_and_date_survive_the_reset_line_and_being_saved() {
        let (bench, cell) = Bench::with(&MODEL);
        write(&bench, 0x40, 0xa5);
        write(&bench, 0x07, 0x15);
        write(&bench, 0x0b, 0x52);
        bench.advance(SECOND);
        let (copy, copied) = moved(&bench, &cell, &MODEL);
        assert!(copy.level("isa-irq8"));
        reset(&copied);
        assert!(!copy.level("isa-irq8"));
        assert_eq!([read(&copy, 0x40), read(&copy, 0x07)], [0xa5, 0x15]);
        copied.lock().reset(ResetKind::PowerOn);
        assert_eq!([read(&copy, 0x40), read(&copy, 0x07)], [0x00, 0x01]);
    }

    #[test]
    fn the_board_sets_cmos_and_bit_7_of_the_index_masks_nmis() {
        let mut bench = Bench::new();
        bench.board.cmos = vec![(0x34, 0x12)];
        bench.plug(&MODEL, &[]);
        assert_eq!(read(&bench, 0x34 | 0x80), 0x12);
        assert!(bench.shared_flag("nmi-masked").get());
    }
}
