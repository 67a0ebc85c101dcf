//! Intel 8254 interval timer with port 61h: three counters, of which 0 drives IRQ 0 and 2 the speaker.
//! Counters are computed from `VmTime` when looked at; nothing ticks. All six modes, BCD, latch and read-back are done.
//! IRQ 0 is a pulse at each rising edge of OUT 0, and silent while the HPET replaces it (flag `hpet-legacy`). Edges that
//! come late are made good ([`OwedTicks`]), so that a guest which counts them keeps time on a busy host. Counter 1,
//! once the memory refresh, counts but is wired to nothing; the refresh bit of port 61h comes from the clock.
//! Left out: sound (the speaker's gate and data bits are kept; hearing them is an issue of its own).
//! See: Intel 231164-005, "8254 Programmable Interval Timer"; IBM AT Technical Reference, "port 61".

use super::owed_ticks::OwedTicks;
use engine_base::{Clock, VmTime, rank};
use engine_bus::{
    BuildError, Device, DeviceModel, IrqLine, Options, Port, PortIo, ResetKind, RestoreError, SavedState, SharedFlag, Slot,
    Timed, Timer, Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel =
    DeviceModel { id: "i8254", title: "8254 interval timer", slot: Slot::Chipset, rank: rank::DEVICE, options: &[], build };

/// The clock input of all counters.
const HZ: u64 = 1_193_182;
const COUNTER_PORTS: u16 = 0x40;
const CONTROL_PORT: u16 = 0x43;
const SYSTEM_PORT: u16 = 0x61;
/// Port 61h: gate of counter 2, speaker data, parity check, channel check.
const SYSTEM_WRITABLE: u8 = 0x0f;
const SYSTEM_GATE_2: u8 = 1 << 0;
const SYSTEM_REFRESH: u8 = 1 << 4;
const SYSTEM_OUT_2: u8 = 1 << 5;
/// The refresh bit turns over this often.
const REFRESH_NANOS: u64 = 15_085;
/// A guest that asks for a shorter period gets edges this far apart: the host shall not drown in them.
const LEAST_PERIOD_NANOS: u64 = 10_000;
const LEAST_PERIOD: u32 = 12;

struct Pit {
    // Wires
    clock: Clock,
    irq0: IrqLine,
    timer: Timer,
    hpet_legacy: SharedFlag,
    // State the guest can see; all of it is saved
    counters: [Counter; 3],
    system: u8,
    /// The next rising edge of OUT 0.
    next_edge: VmTime,
    owed: OwedTicks,
}

/// The six modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    InterruptOnTerminalCount,
    OneShot,
    RateGenerator,
    SquareWave,
    SoftwareStrobe,
    HardwareStrobe,
}

/// Which bytes of a count the data port carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bytes {
    Low,
    High,
    Both,
}

/// Which byte of two comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Low,
    High,
}

/// Where a counter is in its count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    /// The mode is set, but no count yet; or the gate has not triggered it.
    Waiting,
    /// Counting since this tick.
    Since(u64),
    /// The gate holds it after this many ticks.
    Held(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counter {
    mode: Mode,
    bytes: Bytes,
    bcd: bool,
    gate: bool,
    /// 1 to 65536 (10000 in BCD).
    count: u32,
    /// A count that takes effect when the present period (or trigger) ends.
    next_count: Option<u32>,
    progress: Progress,
    write_half: Half,
    /// The low byte of a count of which the high byte has not been written yet.
    written_low: u8,
    read_half: Half,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Mode {
    fn of(bits: u8) -> Self {
        match bits & 7 {
            0 => Mode::InterruptOnTerminalCount,
            1 => Mode::OneShot,
            2 | 6 => Mode::RateGenerator,
            3 | 7 => Mode::SquareWave,
            4 => Mode::SoftwareStrobe,
            _ => Mode::HardwareStrobe,
        }
    }

    fn is_triggered(self) -> bool {
        matches!(self, Mode::OneShot | Mode::HardwareStrobe)
    }

    fn is_periodic(self) -> bool {
        matches!(self, Mode::RateGenerator | Mode::SquareWave)
    }
}

impl Counter {
    const RESET: Self = Self {
        mode: Mode::InterruptOnTerminalCount,
        bytes: Bytes::Both,
        bcd: false,
        gate: true,
        count: 0x1_0000,
        next_count: None,
        progress: Progress::Waiting,
        write_half: Half::Low,
        written_low: 0,
        read_half: Half::Low,
        latched_count: None,
        latched_status: None,
    };

    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    fn elapsed(&self, now: u64) -> Option<u64> {
        match self.progress {
            Progress::Waiting => None,
            Progress::Since(start) => Some(now.saturating_sub(start)),
            Progress::Held(elapsed) => Some(elapsed),
        }
    }

    /// Lets a count written during a period take effect once that period is over.
    fn settle(&mut self, now: u64) {
        if let (Some(next), Progress::Since(start)) = (self.next_count, self.progress)
            && self.mode.is_periodic()
            && now.saturating_sub(start) >= u64::from(self.count)
        {
            self.progress = Progress::Since(start + u64::from(self.count));
            self.count = next;
            self.next_count = None;
        }
    }

    /// The counting element.
    fn value(&self, now: u64) -> u32 {
        let count = u64::from(self.count);
        let modulus = u64::from(self.modulus());
        let Some(elapsed) = self.elapsed(now) else { return self.count % self.modulus() };
        let value = match self.mode {
            Mode::RateGenerator => count - elapsed % count,
            Mode::SquareWave => {
                // Counts by two: down once while OUT is high, once while it is low.
                let half = (count / 2).max(1);
                (count & !1) - 2 * (elapsed % count % half).min(count / 2)
            }
            _ => count + modulus - elapsed % modulus,
        };
        (value % modulus) as u32
    }

    fn out(&self, now: u64) -> bool {
        let count = u64::from(self.count);
        match (self.mode, self.elapsed(now)) {
            (Mode::InterruptOnTerminalCount, elapsed) => elapsed.is_some_and(|elapsed| elapsed >= count),
            (_, None) => true,
            (Mode::RateGenerator | Mode::SquareWave, _) if !self.gate => true,
            (Mode::OneShot, Some(elapsed)) => elapsed >= count,
            (Mode::RateGenerator, Some(elapsed)) => elapsed % count != count - 1,
            (Mode::SquareWave, Some(elapsed)) => elapsed % count < count.div_ceil(2),
            (Mode::SoftwareStrobe | Mode::HardwareStrobe, Some(elapsed)) => elapsed != count,
        }
    }

    /// The first tick after `now` at which OUT rises by itself.
    fn next_rise(&self, now: u64) -> Option<u64> {
        let Progress::Since(start) = self.progress else { return None };
        let count = u64::from(self.count);
        if self.mode.is_periodic() {
            let periods = now.saturating_sub(start) / count + 1;
            return Some(start.saturating_add(periods * count));
        }
        let strobe = matches!(self.mode, Mode::SoftwareStrobe | Mode::HardwareStrobe);
        let rise = start.saturating_add(count + u64::from(strobe));
        (rise > now).then_some(rise)
    }

    fn status(&self, now: u64) -> u8 {
        let null = self.progress == Progress::Waiting && !self.mode.is_triggered() || self.next_count.is_some();
        let bytes = match self.bytes {
            Bytes::Low => 1,
            Bytes::High => 2,
            Bytes::Both => 3,
        };
        u8::from(self.out(now)) << 7 | u8::from(null) << 6 | bytes << 4 | (self.mode as u8) << 1 | u8::from(self.bcd)
    }

    /// What a program reads: binary or four BCD digits.
    fn digits(&self, value: u32) -> u16 {
        if !self.bcd {
            return value as u16;
        }
        (0..4).fold(0, |digits, place| digits | ((value / 10_u32.pow(place) % 10) as u16) << (4 * place))
    }

    /// What a written count means: zero is the largest.
    fn meaning(&self, written: u16) -> u32 {
        let value = if self.bcd {
            (0..4).map(|place| u32::from(written >> (4 * place) & 15) * 10_u32.pow(place)).sum::<u32>()
        } else {
            u32::from(written)
        };
        match value % self.modulus() {
            0 => self.modulus(),
            value => value,
        }
    }

    fn set_mode(&mut self, control: u8) {
        *self = Self {
            mode: Mode::of(control >> 1),
            bytes: match control >> 4 & 3 {
                1 => Bytes::Low,
                2 => Bytes::High,
                _ => Bytes::Both,
            },
            bcd: control & 1 != 0,
            gate: self.gate,
            ..Self::RESET
        };
        self.count = self.modulus();
    }

    fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.digits(self.value(now)));
            self.read_half = Half::Low;
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            self.latched_status = Some(self.status(now));
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.digits(self.value(now))).to_le_bytes();
        let half = match self.bytes {
            Bytes::Low => Half::Low,
            Bytes::High => Half::High,
            Bytes::Both => self.read_half,
        };
        self.read_half = if self.bytes == Bytes::Both && half == Half::Low { Half::High } else { Half::Low };
        if self.read_half == Half::Low {
            self.latched_count = None;
        }
        if half == Half::Low { low } else { high }
    }

    fn write(&mut self, value: u8, now: u64) {
        let written = match (self.bytes, self.write_half) {
            (Bytes::Low, _) => u16::from(value),
            (Bytes::High, _) => u16::from(value) << 8,
            (Bytes::Both, Half::Low) => {
                self.written_low = value;
                self.write_half = Half::High;
                if self.mode == Mode::InterruptOnTerminalCount {
                    // The first byte stops the count and takes OUT low.
                    self.progress = Progress::Waiting;
                }
                return;
            }
            (Bytes::Both, Half::High) => {
                self.write_half = Half::Low;
                u16::from_le_bytes([self.written_low, value])
            }
        };
        self.load(self.meaning(written), now);
    }

    fn load(&mut self, count: u32, now: u64) {
        let under_way = self.progress != Progress::Waiting;
        if self.mode.is_triggered() && under_way || self.mode.is_periodic() && matches!(self.progress, Progress::Since(_)) {
            self.next_count = Some(count);
            return;
        }
        self.count = count;
        self.next_count = None;
        if !self.mode.is_triggered() {
            self.progress = if self.gate { Progress::Since(now) } else { Progress::Held(0) };
        }
    }

    fn set_gate(&mut self, gate: bool, now: u64) {
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        if self.mode.is_triggered() {
            if rises {
                self.count = self.next_count.take().unwrap_or(self.count);
                self.progress = Progress::Since(now);
            }
            return;
        }
        match self.progress {
            Progress::Since(start) if falls => self.progress = Progress::Held(now.saturating_sub(start)),
            Progress::Held(_) if rises && self.mode.is_periodic() => {
                self.count = self.next_count.take().unwrap_or(self.count);
                self.progress = Progress::Since(now);
            }
            Progress::Held(elapsed) if rises => self.progress = Progress::Since(now.saturating_sub(elapsed)),
            _ => {}
        }
    }
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    wiring.claim_ports(COUNTER_PORTS, 4, Width::Byte);
    wiring.claim_ports(SYSTEM_PORT, 1, Width::Byte);
    Ok(Box::new(Pit {
        clock: wiring.clock(),
        irq0: wiring.isa_irq(0),
        timer: wiring.timer(0),
        hpet_legacy: wiring.shared_flag("hpet-legacy"),
        counters: Pit::COUNTERS_AT_RESET,
        system: 0,
        next_edge: VmTime::NEVER,
        owed: OwedTicks::NONE,
    }))
}

impl Pit {
    const COUNTERS_AT_RESET: [Counter; 3] = [Counter::RESET, Counter::RESET, Counter { gate: false, ..Counter::RESET }];

    fn interrupt(&self) {
        if !self.hpet_legacy.get() {
            self.irq0.pulse();
        }
    }

    /// Interrupts if the edge we wait for has come by `now`.
    fn take_edge(&mut self, now: VmTime) {
        if self.next_edge <= now {
            let counter = &self.counters[0];
            if counter.mode.is_periodic() && counter.count >= LEAST_PERIOD {
                let period = u64::from(counter.count);
                let missed = now.ticks(HZ).saturating_sub(self.next_edge.ticks(HZ)) / period;
                self.owed.delivered(now, missed, VmTime::at_tick(period, HZ).nanos());
            }
            self.next_edge = VmTime::NEVER;
            self.interrupt();
        } else if self.owed.take(now) {
            self.interrupt();
        }
    }

    fn wait_for_edge(&mut self, now: VmTime) {
        self.counters[0].settle(now.ticks(HZ));
        let counter = &self.counters[0];
        self.next_edge = match counter.next_rise(now.ticks(HZ)) {
            Some(_) if counter.mode.is_periodic() && counter.count < LEAST_PERIOD => now.after_nanos(LEAST_PERIOD_NANOS),
            Some(tick) => VmTime::at_tick(tick, HZ),
            None => VmTime::NEVER,
        };
        self.timer.set(self.next_edge.min(self.owed.due()));
    }

    /// Changes counters; IRQ 0 follows what becomes of OUT 0.
    fn change(&mut self, change: impl FnOnce(&mut [Counter; 3], u64)) {
        let now = self.clock.now();
        self.take_edge(now);
        let ticks = now.ticks(HZ);
        self.counters.iter_mut().for_each(|counter| counter.settle(ticks));
        let before = self.counters[0];
        change(&mut self.counters, ticks);
        if !before.out(ticks) && self.counters[0].out(ticks) {
            self.interrupt();
        }
        let ticks_as = |counter: &Counter| (counter.mode, counter.count, counter.next_count);
        if ticks_as(&before) != ticks_as(&self.counters[0]) {
            self.owed = OwedTicks::NONE; // Ticks of another length are no substitute.
        }
        self.wait_for_edge(now);
    }

    fn control(&mut self, value: u8) {
        self.change(|counters, now| match value >> 6 {
            3 => {
                for (_, counter) in counters.iter_mut().enumerate().filter(|(index, _)| value & 2 << index != 0) {
                    if value & 0x20 == 0 {
                        counter.latch_count(now);
                    }
                    if value & 0x10 == 0 {
                        counter.latch_status(now);
                    }
                }
            }
            index => {
                if let Some(counter) = counters.get_mut(usize::from(index)) {
                    match value & 0x30 {
                        0 => counter.latch_count(now),
                        _ => counter.set_mode(value),
                    }
                }
            }
        });
    }

    fn system_read(&mut self) -> u8 {
        let now = self.clock.now();
        let refresh = if (now.nanos() / REFRESH_NANOS) & 1 != 0 { SYSTEM_REFRESH } else { 0 };
        self.counters[2].settle(now.ticks(HZ));
        let out = if self.counters[2].out(now.ticks(HZ)) { SYSTEM_OUT_2 } else { 0 };
        self.system | refresh | out
    }
}

impl Device for Pit {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { clock: _, irq0: _, timer, hpet_legacy: _, counters, system, next_edge, owed } = self;
        *counters = Self::COUNTERS_AT_RESET;
        *system = 0;
        *next_edge = VmTime::NEVER;
        *owed = OwedTicks::NONE;
        timer.cancel();
    }

    fn save(&self) -> SavedState {
        let Self { clock: _, irq0: _, timer: _, hpet_legacy: _, counters, system, next_edge, owed } = self;
        let counters = counters.map(saved::Counter::from);
        SavedState::of(saved::VERSION, &saved::Pit { counters, system: *system, next_edge: *next_edge, owed: *owed })
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::Pit { counters: [first, second, third], system, next_edge, owed } = saved.read(saved::VERSION)?;
        let system = system & SYSTEM_WRITABLE;
        let gate_2 = system & SYSTEM_GATE_2 != 0;
        self.counters = [first.check(true)?, second.check(true)?, third.check(gate_2)?];
        self.system = system;
        self.next_edge = next_edge;
        self.owed = owed;
        self.timer.set(next_edge.min(owed.due()));
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl PortIo for Pit {
    fn port_read(&mut self, port: Port, _width: Width) -> u32 {
        let now = self.clock.now().ticks(HZ);
        match port {
            Port::Fixed(SYSTEM_PORT) => self.system_read().into(),
            Port::Fixed(port @ COUNTER_PORTS..CONTROL_PORT) => {
                let counter = &mut self.counters[usize::from(port - COUNTER_PORTS)];
                counter.settle(now);
                counter.read(now).into()
            }
            _ => 0xff, // The control register is write-only.
        }
    }

    fn port_write(&mut self, port: Port, _width: Width, value: u32) {
        let value = value as u8;
        match port {
            Port::Fixed(SYSTEM_PORT) => {
                self.system = value & SYSTEM_WRITABLE;
                self.change(|counters, now| counters[2].set_gate(value & SYSTEM_GATE_2 != 0, now));
            }
            Port::Fixed(CONTROL_PORT) => self.control(value),
            Port::Fixed(port @ COUNTER_PORTS..CONTROL_PORT) => {
                self.change(|counters, now| counters[usize::from(port - COUNTER_PORTS)].write(value, now));
            }
            _ => {}
        }
    }
}

impl Timed for Pit {
    fn timer_fired(&mut self, _timer: u32, now: VmTime) {
        self.take_edge(now);
        self.wait_for_edge(now);
    }
}

mod saved {
    use super::{Bytes, Half, Mode, OwedTicks, Progress};
    use engine_base::VmTime;
    use engine_bus::RestoreError;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct Pit {
        pub counters: [Counter; 3],
        pub system: u8,
        pub next_edge: VmTime,
        pub owed: OwedTicks,
    }

    #[derive(Serialize, Deserialize)]
    pub struct Counter {
        mode: u8,
        bytes: u8,
        bcd: bool,
        count: u32,
        next_count: Option<u32>,
        counting_since: Option<u64>,
        held_after: Option<u64>,
        high_byte_to_write: bool,
        written_low: u8,
        high_byte_to_read: bool,
        latched_count: Option<u16>,
        latched_status: Option<u8>,
    }

    impl From<super::Counter> for Counter {
        fn from(counter: super::Counter) -> Self {
            let super::Counter {
                mode,
                bytes,
                bcd,
                gate: _, // a wire: port 61h has it
                count,
                next_count,
                progress,
                write_half,
                written_low,
                read_half,
                latched_count,
                latched_status,
            } = counter;
            let (counting_since, held_after) = match progress {
                Progress::Waiting => (None, None),
                Progress::Since(start) => (Some(start), None),
                Progress::Held(elapsed) => (None, Some(elapsed)),
            };
            let bytes = match bytes {
                Bytes::Low => 1,
                Bytes::High => 2,
                Bytes::Both => 3,
            };
            Self {
                mode: mode as u8,
                bytes,
                bcd,
                count,
                next_count,
                counting_since,
                held_after,
                high_byte_to_write: write_half == Half::High,
                written_low,
                high_byte_to_read: read_half == Half::High,
                latched_count,
                latched_status,
            }
        }
    }

    impl Counter {
        pub fn check(self, gate: bool) -> Result<super::Counter, RestoreError> {
            let half = |high| if high { Half::High } else { Half::Low };
            let modulus = if self.bcd { 10_000 } else { 0x1_0000 };
            let counts = [Some(self.count), self.next_count];
            if self.mode > 5 || counts.into_iter().flatten().any(|count| count == 0 || count > modulus) {
                return Err(RestoreError::impossible("8254: no such mode or count"));
            }
            Ok(super::Counter {
                mode: Mode::of(self.mode),
                bytes: match self.bytes {
                    1 => Bytes::Low,
                    2 => Bytes::High,
                    3 => Bytes::Both,
                    _ => return Err(RestoreError::impossible("8254: no such byte order")),
                },
                bcd: self.bcd,
                gate,
                count: self.count,
                next_count: self.next_count,
                progress: match (self.counting_since, self.held_after) {
                    (Some(start), _) => Progress::Since(start),
                    (None, Some(elapsed)) => Progress::Held(elapsed),
                    (None, None) => Progress::Waiting,
                },
                write_half: half(self.high_byte_to_write),
                written_low: self.written_low,
                read_half: half(self.high_byte_to_read),
                latched_count: self.latched_count,
                latched_status: self.latched_status,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::{Bench, moved};

    /// Nanoseconds of so many ticks, rounded up to the moment at which they are over.
    fn ticks(ticks: u64) -> u64 {
        VmTime::at_tick(ticks, HZ).nanos()
    }

    fn program(bench: &Bench, counter: u8, mode: u8, count: u16) {
        bench.outb(CONTROL_PORT, counter << 6 | 0x30 | mode << 1);
        let port = COUNTER_PORTS + u16::from(counter);
        count.to_le_bytes().iter().for_each(|byte| bench.outb(port, *byte));
    }

    fn count(bench: &Bench, counter: u8) -> u16 {
        bench.outb(CONTROL_PORT, counter << 6);
        let port = COUNTER_PORTS + u16::from(counter);
        u16::from_le_bytes([bench.inb(port), bench.inb(port)])
    }

    fn status(bench: &Bench, counter: u8) -> u8 {
        bench.outb(CONTROL_PORT, 0xe0 | 2 << counter);
        bench.inb(COUNTER_PORTS + u16::from(counter))
    }

    /// Rising edges of IRQ 0 while `nanos` pass.
    fn interrupts(bench: &Bench, nanos: u64) -> usize {
        let heard = bench.watch("isa-irq0");
        bench.advance(nanos);
        let edges = heard.lock().unwrap();
        edges.iter().filter(|high| **high).count()
    }

    #[test]
    fn the_rate_generator_interrupts_every_period_for_ever() {
        let (bench, _cell) = Bench::with(&MODEL);
        program(&bench, 0, 2, 11_932); // 100 Hz
        assert_eq!(interrupts(&bench, 1_000_100_000), 100);
        program(&bench, 0, 2, 0); // 18.2 Hz
        assert_eq!(interrupts(&bench, 10_000_000_000), 182);
    }

    #[test]
    fn a_busy_host_costs_the_guest_no_ticks() {
        let (bench, cell) = Bench::with(&MODEL);
        program(&bench, 0, 2, 11_932); // 100 Hz
        bench.advance(100_050_000);
        bench.stall(500_000_000);
        let heard = bench.watch("isa-irq0");
        bench.advance(0);
        assert_eq!(*heard.lock().unwrap(), [true, false], "one at once, for the interrupt controller remembers one");
        let (copy, _) = moved(&bench, &cell, &MODEL);
        // 49 are owed, and one more comes with each regular one.
        assert_eq!(interrupts(&copy, 400_000_000), 80);
        assert_eq!(interrupts(&copy, 600_000_000), 69);
        program(&copy, 0, 2, 11_932);
        assert_eq!(interrupts(&copy, 1_000_100_000), 100);
    }

    #[test]
    fn terminal_count_interrupts_once() {
        let (bench, _cell) = Bench::with(&MODEL);
        program(&bench, 0, 0, 1000);
        assert_eq!(interrupts(&bench, ticks(999)), 0);
        assert_eq!(status(&bench, 0) & 0x80, 0);
        assert_eq!(interrupts(&bench, ticks(2)), 1);
        assert_eq!(status(&bench, 0) & 0x80, 0x80);
        assert_eq!(interrupts(&bench, ticks(200_000)), 0);
    }

    #[test]
    fn a_latched_count_stays_while_the_counter_runs() {
        let (bench, _cell) = Bench::with(&MODEL);
        program(&bench, 0, 2, 5000);
        bench.advance(ticks(1000));
        bench.outb(CONTROL_PORT, 0x00);
        bench.advance(ticks(500));
        bench.outb(CONTROL_PORT, 0x00);
        assert_eq!([bench.inb(0x40), bench.inb(0x40)], 4000_u16.to_le_bytes());
        assert_eq!(count(&bench, 0), 3500);
    }

    #[test]
    fn the_square_wave_is_high_for_half_of_the_time_and_counts_by_two() {
        let (bench, _cell) = Bench::with(&MODEL);
        program(&bench, 0, 3, 1000);
        bench.advance(ticks(100));
        assert_eq!((status(&bench, 0) & 0x80, count(&bench, 0)), (0x80, 800));
        bench.advance(ticks(500));
        assert_eq!((status(&bench, 0) & 0x80, count(&bench, 0)), (0, 800));
    }

    #[test]
    fn the_strobe_is_low_for_one_tick() {
        let (bench, _cell) = Bench::with(&MODEL);
        program(&bench, 0, 4, 100);
        bench.advance(ticks(100));
        assert_eq!(status(&bench, 0) & 0x80, 0);
        assert_eq!(interrupts(&bench, ticks(2)), 1);
        assert_eq!(status(&bench, 0) & 0x80, 0x80);
    }

    #[test]
    fn bcd_counts_in_decimal_digits() {
        let (bench, _cell) = Bench::with(&MODEL);
        bench.outb(CONTROL_PORT, 0x35);
        [0x34, 0x12].iter().for_each(|byte| bench.outb(0x40, *byte));
        bench.advance(ticks(35));
        assert_eq!(count(&bench, 0), 0x1199);
    }

    #[test]
    fn programs_time_themselves_with_counter_2_and_port_61() {
        // As kernels calibrate their clocks: speaker off, gate on, mode 0, wait for OUT 2.
        let (bench, _cell) = Bench::with(&MODEL);
        bench.outb(SYSTEM_PORT, 0x01);
        program(&bench, 2, 0, 0xffff);
        assert_eq!(bench.inb(SYSTEM_PORT) & 0x20, 0);
        bench.advance(ticks(0x8000));
        bench.outb(SYSTEM_PORT, 0x00); // the gate holds the count
        bench.advance(ticks(0x20000));
        assert_eq!(count(&bench, 2), 0x7fff);
        bench.outb(SYSTEM_PORT, 0x01);
        bench.advance(ticks(0x7fff) + 1000);
        assert_eq!(bench.inb(SYSTEM_PORT) & 0x23, 0x21);
    }

    #[test]
    fn the_one_shot_is_started_by_its_gate() {
        let (bench, _cell) = Bench::with(&MODEL);
        program(&bench, 2, 1, 300);
        bench.advance(ticks(1000));
        assert_eq!(status(&bench, 2) & 0x80, 0x80);
        bench.outb(SYSTEM_PORT, 0x01);
        assert_eq!(status(&bench, 2) & 0x80, 0);
        bench.advance(ticks(301));
        assert_eq!(status(&bench, 2) & 0x80, 0x80);
    }

    #[test]
    fn a_new_count_waits_for_the_end_of_the_period() {
        let (bench, _cell) = Bench::with(&MODEL);
        program(&bench, 0, 2, 1000);
        bench.advance(ticks(600));
        [0xd0, 0x07].iter().for_each(|byte| bench.outb(0x40, *byte)); // 2000
        assert_eq!(status(&bench, 0) & 0x40, 0x40, "null count: not loaded yet");
        bench.advance(ticks(500));
        assert_eq!(count(&bench, 0), 1900);
    }

    #[test]
    fn the_refresh_bit_toggles() {
        let (bench, _cell) = Bench::with(&MODEL);
        let first = bench.inb(SYSTEM_PORT) & 0x10;
        bench.advance(REFRESH_NANOS);
        assert_ne!(bench.inb(SYSTEM_PORT) & 0x10, first);
    }

    #[test]
    fn the_hpet_silences_irq_0() {
        let (bench, _cell) = Bench::with(&MODEL);
        program(&bench, 0, 2, 1193);
        let replaced = bench.shared_flag("hpet-legacy");
        replaced.set(true);
        assert_eq!(interrupts(&bench, 10_000_000), 0);
        replaced.set(false);
        assert!(interrupts(&bench, 10_000_000) > 0);
    }

    #[test]
    fn an_absurd_rate_does_not_drown_the_host() {
        let (bench, _cell) = Bench::with(&MODEL);
        program(&bench, 0, 2, 1);
        assert!(interrupts(&bench, 10_000_000) <= 1000);
    }

    #[test]
    fn the_next_interrupt_survives_being_saved() {
        let (bench, cell) = Bench::with(&MODEL);
        program(&bench, 0, 2, 11_932);
        bench.advance(5_000_000);
        let (copy, _) = moved(&bench, &cell, &MODEL);
        assert_eq!(interrupts(&copy, 4_900_000), 0);
        assert_eq!(interrupts(&copy, 200_000), 1);
    }
}
