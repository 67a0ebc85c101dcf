//! High precision event timers: a 64-bit counter of 100 MHz and three comparators, each one-shot or periodic, edge or level
//! triggered, 64 or 32 bits wide. In legacy replacement mode timers 0 and 1 take IRQ 0 and IRQ 8 away from the 8254 and the
//! real-time clock (flag `hpet-legacy`). Otherwise a timer may be routed to I/O APIC input 2 only, which on this board is
//! the wire of ISA interrupt 0. The counter is computed from `VmTime` when looked at; nothing ticks.
//! Periodic interrupts that come late are made good ([`OwedTicks`]).
//! Left out: interrupts as messages (FSB), which are not advertised.
//! See: Intel, "IA-PC HPET (High Precision Event Timers) Specification", revision 1.0a.

use super::owed_ticks::OwedTicks;
use engine_base::{Clock, VmTime, rank, warn_limited};
use engine_bus::{
    BuildError, Device, DeviceModel, IrqLine, Mmio, Options, ResetKind, RestoreError, SavedState, SharedFlag, Slot, Timed, Timer,
    Width, Wiring,
};

/// The model.
pub const MODEL: DeviceModel = DeviceModel {
    id: "hpet",
    title: "High precision event timers",
    slot: Slot::Chipset,
    rank: rank::DEVICE,
    options: &[],
    build,
};

const BASE: u64 = 0xfed0_0000;
const REGION: u8 = 16;
const TIMERS: usize = 3;
const NANOS_PER_TICK: u64 = 10;
/// A guest that asks for a shorter period gets interrupts this far apart: the host shall not drown in them.
const LEAST_PERIOD: u64 = 1000;
const LEAST_PERIOD_NANOS: u64 = LEAST_PERIOD * NANOS_PER_TICK;

mod register {
    pub const CAPABILITIES: u64 = 0x000;
    pub const CONFIG: u64 = 0x010;
    pub const STATUS: u64 = 0x020;
    pub const COUNTER: u64 = 0x0f0;
    pub const FIRST_TIMER: u64 = 0x100;
    pub const TIMER_STRIDE: u64 = 0x20;
    pub const TIMER_CONFIG: u64 = 0x00;
    pub const TIMER_COMPARATOR: u64 = 0x08;
}

/// Revision 1, three timers, 64-bit counter, legacy replacement, Intel; the period in femtoseconds.
const CAPABILITIES: u64 = 0x01 | (TIMERS as u64 - 1) << 8 | 1 << 13 | 1 << 15 | 0x8086 << 16 | (NANOS_PER_TICK * 1_000_000) << 32;

const ENABLE: u64 = 1 << 0;
const LEGACY: u64 = 1 << 1;

mod timer_config {
    pub const LEVEL: u64 = 1 << 1;
    pub const INTERRUPT: u64 = 1 << 2;
    pub const PERIODIC: u64 = 1 << 3;
    pub const SET_VALUE: u64 = 1 << 6;
    pub const SHORT: u64 = 1 << 8;
    pub const ROUTE_SHIFT: u32 = 9;
    pub const ROUTE: u64 = 0x1f << ROUTE_SHIFT;
    pub const WRITABLE: u64 = LEVEL | INTERRUPT | PERIODIC | SET_VALUE | SHORT | ROUTE;
    /// Can be periodic, can be 64 bits wide, can be routed to input 2.
    pub const FIXED: u64 = 1 << 4 | 1 << 5 | 1 << (32 + ROUTABLE);
    pub const ROUTABLE: u64 = 2;
}

struct Hpet {
    // Wires
    clock: Clock,
    irq0: IrqLine,
    irq8: IrqLine,
    timers: [Timer; TIMERS],
    legacy: SharedFlag,
    // State the guest can see; all of it is saved
    config: u64,
    /// Level-triggered interrupts under way, a bit for each timer.
    status: u64,
    /// The counter at `since`; it stands there while it is disabled.
    count: u64,
    since: VmTime,
    comparators: [Comparator; TIMERS],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Comparator {
    /// As written; fixed bits are added when read.
    config: u64,
    value: u64,
    period: u64,
    /// When the counter reaches the value.
    due: VmTime,
    owed: OwedTicks,
}

impl Comparator {
    const RESET: Self = Self { config: 0, value: u64::MAX, period: 0, due: VmTime::NEVER, owed: OwedTicks::NONE };

    fn has(&self, bit: u64) -> bool {
        self.config & bit != 0
    }

    fn mask(&self) -> u64 {
        if self.has(timer_config::SHORT) { u32::MAX.into() } else { u64::MAX }
    }

    fn write_config(&mut self, value: u64) {
        let route = value >> timer_config::ROUTE_SHIFT & 0x1f;
        let mut value = value & timer_config::WRITABLE;
        if route != 0 && route != timer_config::ROUTABLE {
            // Drivers find out by reading back.
            value = value & !timer_config::ROUTE | self.config & timer_config::ROUTE;
        }
        self.config = value;
        if self.has(timer_config::SHORT) {
            self.value &= self.mask();
            self.period &= self.mask();
        }
    }

    /// `written` tells which bits of `value` were written.
    fn write_value(&mut self, value: u64, written: u64) {
        let merged = |old: u64| (old & !written | value & written) & self.mask();
        let (new_value, new_period) = (merged(self.value), merged(self.period));
        if !self.has(timer_config::PERIODIC) || self.has(timer_config::SET_VALUE) {
            self.value = new_value;
        }
        if self.has(timer_config::PERIODIC) {
            self.period = new_period;
        }
        self.config &= !timer_config::SET_VALUE;
    }
}

fn build(_options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    wiring.claim_mmio(REGION, BASE, 0x1000);
    Ok(Box::new(Hpet {
        clock: wiring.clock(),
        irq0: wiring.isa_irq(0),
        irq8: wiring.isa_irq(8),
        timers: [wiring.timer(0), wiring.timer(1), wiring.timer(2)],
        legacy: wiring.shared_flag("hpet-legacy"),
        config: 0,
        status: 0,
        count: 0,
        since: wiring.clock().now(),
        comparators: [Comparator::RESET; TIMERS],
    }))
}

impl Hpet {
    fn is_enabled(&self) -> bool {
        self.config & ENABLE != 0
    }

    fn is_legacy(&self) -> bool {
        self.config & (ENABLE | LEGACY) == ENABLE | LEGACY
    }

    fn counter(&self, now: VmTime) -> u64 {
        if self.is_enabled() { self.count.wrapping_add(now.nanos_since(self.since) / NANOS_PER_TICK) } else { self.count }
    }

    /// When the counter reaches `tick`.
    fn moment_of(&self, tick: u64) -> VmTime {
        self.since.after_nanos(tick.wrapping_sub(self.count).saturating_mul(NANOS_PER_TICK))
    }

    /// Waits for the first match of comparator `index` at or after the counter value `from`.
    fn arm(&mut self, index: usize, from: u64) {
        let comparator = &self.comparators[index];
        let due = if self.is_enabled() {
            let away = comparator.value.wrapping_sub(from) & comparator.mask();
            self.moment_of(from).after_nanos(away.saturating_mul(NANOS_PER_TICK))
        } else {
            VmTime::NEVER
        };
        self.comparators[index].due = due;
        self.set_timer(index);
    }

    fn set_timer(&self, index: usize) {
        let comparator = &self.comparators[index];
        self.timers[index].set(comparator.due.min(comparator.owed.due()));
    }

    fn arm_all(&mut self, now: VmTime) {
        let from = self.counter(now);
        (0..TIMERS).for_each(|index| self.arm(index, from));
    }

    /// Acts on a match of comparator `index` that has come by `now`.
    fn take_match(&mut self, index: usize, now: VmTime) {
        if self.comparators[index].due > now {
            if self.comparators[index].owed.take(now) {
                self.set_timer(index);
                self.interrupt(index);
            }
            return;
        }
        let counter = self.counter(now);
        let comparator = &mut self.comparators[index];
        let periodic = comparator.has(timer_config::PERIODIC) && comparator.period != 0;
        if periodic {
            // The comparator skips the periods that are over.
            let late = counter.wrapping_sub(comparator.value) & comparator.mask();
            let steps = (late / comparator.period).wrapping_add(1);
            comparator.value = comparator.value.wrapping_add(steps.wrapping_mul(comparator.period)) & comparator.mask();
            if comparator.period >= LEAST_PERIOD
                && comparator.has(timer_config::INTERRUPT)
                && !comparator.has(timer_config::LEVEL)
            {
                comparator.owed.delivered(now, steps - 1, comparator.period.saturating_mul(NANOS_PER_TICK));
            }
        }
        let interrupts = comparator.has(timer_config::INTERRUPT);
        self.arm(index, counter.wrapping_add(1));
        let comparator = &mut self.comparators[index];
        if periodic && comparator.period < LEAST_PERIOD {
            comparator.due = now.after_nanos(LEAST_PERIOD_NANOS);
            self.set_timer(index);
        }
        if interrupts {
            self.interrupt(index);
        }
    }

    /// The wire that a timer interrupts on.
    fn line(&self, index: usize) -> Option<&IrqLine> {
        let route = self.comparators[index].config >> timer_config::ROUTE_SHIFT & 0x1f;
        match (self.is_legacy(), index) {
            (true, 0) => Some(&self.irq0),
            (true, 1) => Some(&self.irq8),
            _ => (route == timer_config::ROUTABLE).then_some(&self.irq0),
        }
    }

    fn interrupt(&mut self, index: usize) {
        if self.comparators[index].has(timer_config::LEVEL) {
            self.status |= 1 << index;
            self.update_lines();
        } else if let Some(line) = self.line(index) {
            // A level-triggered interrupt of another timer may hold the line; then this edge is lost, as on a real wire.
            if self.held_lines() == [false; 2] {
                line.pulse();
            }
        }
    }

    /// Whether level-triggered interrupts hold IRQ 0 and IRQ 8.
    fn held_lines(&self) -> [bool; 2] {
        let mut held = [false; 2];
        for index in (0..TIMERS).filter(|index| self.status & 1 << index != 0) {
            let comparator = &self.comparators[index];
            if comparator.has(timer_config::LEVEL) && comparator.has(timer_config::INTERRUPT) {
                match self.line(index) {
                    Some(line) if std::ptr::eq(line, &self.irq8) => held[1] = true,
                    Some(_) => held[0] = true,
                    None => {}
                }
            }
        }
        held
    }

    fn update_lines(&mut self) {
        self.legacy.set(self.is_legacy());
        let [irq0, irq8] = self.held_lines();
        self.irq0.set(irq0);
        self.irq8.set(irq8);
    }

    fn read(&self, register: u64, now: VmTime) -> u64 {
        match register {
            register::CAPABILITIES => CAPABILITIES,
            register::CONFIG => self.config,
            register::STATUS => self.status,
            register::COUNTER => self.counter(now),
            _ => {
                let Some((comparator, inside)) = self.comparator(register) else { return 0 };
                match inside {
                    register::TIMER_CONFIG => self.comparators[comparator].config | timer_config::FIXED,
                    register::TIMER_COMPARATOR => self.comparators[comparator].value,
                    _ => 0,
                }
            }
        }
    }

    /// The comparator that a register belongs to, and which of its registers it is.
    fn comparator(&self, register: u64) -> Option<(usize, u64)> {
        let inside = register.checked_sub(register::FIRST_TIMER)?;
        let index = (inside / register::TIMER_STRIDE) as usize;
        (index < TIMERS).then_some((index, inside % register::TIMER_STRIDE))
    }

    /// Writes those bits of a 64-bit register that `written` tells.
    fn write(&mut self, register: u64, value: u64, written: u64, now: VmTime) {
        (0..TIMERS).for_each(|index| self.take_match(index, now));
        let merged = |old: u64| old & !written | value & written;
        match register {
            register::CONFIG => {
                let counter = self.counter(now);
                self.config = merged(self.config) & (ENABLE | LEGACY);
                (self.count, self.since) = (counter, now);
                self.comparators.iter_mut().for_each(|comparator| comparator.owed = OwedTicks::NONE);
                self.arm_all(now);
            }
            register::STATUS => self.status &= !(value & written),
            register::COUNTER => {
                if self.is_enabled() {
                    warn_limited!("HPET: the guest writes the counter while it runs");
                }
                (self.count, self.since) = (merged(self.counter(now)), now);
                self.arm_all(now);
            }
            _ => {
                let Some((index, inside)) = self.comparator(register) else { return };
                let comparator = &mut self.comparators[index];
                comparator.owed = OwedTicks::NONE; // Ticks of another length are no substitute.
                match inside {
                    register::TIMER_CONFIG => comparator.write_config(merged(comparator.config)),
                    register::TIMER_COMPARATOR => comparator.write_value(value, written),
                    _ => return,
                }
                self.arm(index, self.counter(now));
            }
        }
        self.update_lines();
    }
}

impl Device for Hpet {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { clock, irq0: _, irq8: _, timers, legacy: _, config, status, count, since, comparators } = self;
        *config = 0;
        *status = 0;
        *count = 0;
        *since = clock.now();
        *comparators = [Comparator::RESET; TIMERS];
        timers.iter().for_each(Timer::cancel);
        self.update_lines();
    }

    fn save(&self) -> SavedState {
        let Self { clock: _, irq0: _, irq8: _, timers: _, legacy: _, config, status, count, since, comparators } = self;
        let comparators = comparators.map(|Comparator { config, value, period, due, owed }| saved::Comparator {
            config,
            value,
            period,
            due,
            owed,
        });
        let state = saved::Hpet { config: *config, status: *status, count: *count, since: *since, comparators };
        SavedState::of(saved::VERSION, &state)
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::Hpet { config, status, count, since, comparators } = saved.read(saved::VERSION)?;
        if since > self.clock.now() {
            return Err(RestoreError::impossible("HPET: its counter was last set in the future"));
        }
        self.config = config & (ENABLE | LEGACY);
        self.status = status & ((1 << TIMERS) - 1);
        (self.count, self.since) = (count, since);
        for (index, saved::Comparator { config, value, period, due, owed }) in comparators.into_iter().enumerate() {
            let comparator = &mut self.comparators[index];
            *comparator = Comparator { value, period, due, owed, ..Comparator::RESET };
            comparator.write_config(config);
            self.set_timer(index);
        }
        self.update_lines();
        Ok(())
    }

    fn as_mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }

    fn as_timed(&mut self) -> Option<&mut dyn Timed> {
        Some(self)
    }
}

impl Mmio for Hpet {
    fn mmio_read(&mut self, _region: u8, offset: u64, width: Width) -> u64 {
        if width < Width::Dword || !offset.is_multiple_of(width.bytes()) {
            warn_limited!(offset, ?width, "HPET: registers are read in 32 or 64 bits");
            return 0;
        }
        self.read(offset & !7, self.clock.now()) >> (8 * (offset & 7))
    }

    fn mmio_write(&mut self, _region: u8, offset: u64, width: Width, value: u64) {
        if width < Width::Dword || !offset.is_multiple_of(width.bytes()) {
            warn_limited!(offset, ?width, "HPET: registers are written in 32 or 64 bits");
            return;
        }
        let shift = 8 * (offset & 7);
        self.write(offset & !7, value << shift, width.all_ones() << shift, self.clock.now());
    }
}

impl Timed for Hpet {
    fn timer_fired(&mut self, timer: u32, now: VmTime) {
        if (timer as usize) < TIMERS {
            self.take_match(timer as usize, now);
        }
    }
}

mod saved {
    use engine_base::VmTime;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct Hpet {
        pub config: u64,
        pub status: u64,
        pub count: u64,
        pub since: VmTime,
        pub comparators: [Comparator; super::TIMERS],
    }

    #[derive(Serialize, Deserialize)]
    pub struct Comparator {
        pub config: u64,
        pub value: u64,
        pub period: u64,
        pub due: VmTime,
        pub owed: super::OwedTicks,
    }
}

#[cfg(test)]
mod tests {
    use super::timer_config::{INTERRUPT, LEVEL, PERIODIC, ROUTABLE, ROUTE_SHIFT, SET_VALUE, SHORT};
    use super::*;
    use crate::bench::{Bench, moved};

    fn read(bench: &Bench, register: u64) -> u64 {
        bench.board.router.mmio_read(BASE + register, Width::Qword)
    }

    fn write(bench: &Bench, register: u64, value: u64) {
        bench.board.router.mmio_write(BASE + register, Width::Qword, value);
    }

    fn timer(index: u64) -> (u64, u64) {
        let base = register::FIRST_TIMER + index * register::TIMER_STRIDE;
        (base + register::TIMER_CONFIG, base + register::TIMER_COMPARATOR)
    }

    /// Rising edges of a wire while `nanos` pass.
    fn interrupts(bench: &Bench, wire: &str, nanos: u64) -> usize {
        let heard = bench.watch(wire);
        bench.advance(nanos);
        let edges = heard.lock().unwrap();
        edges.iter().filter(|high| **high).count()
    }

    #[test]
    fn the_counter_runs_at_the_period_it_tells_while_enabled() {
        let (bench, _cell) = Bench::with(&MODEL);
        assert_eq!(read(&bench, 0), 0x0098_9680_8086_a201);
        bench.advance(1000);
        assert_eq!(read(&bench, register::COUNTER), 0);
        write(&bench, register::CONFIG, ENABLE);
        bench.advance(1_000_000);
        assert_eq!(read(&bench, register::COUNTER), 100_000);
        assert_eq!(bench.board.router.mmio_read(BASE + register::COUNTER + 4, Width::Dword), 0);
        write(&bench, register::CONFIG, 0);
        bench.advance(1000);
        assert_eq!(read(&bench, register::COUNTER), 100_000);
        write(&bench, register::COUNTER, 0xffff_ffff_0000);
        assert_eq!(read(&bench, register::COUNTER), 0xffff_ffff_0000);
    }

    #[test]
    fn legacy_replacement_takes_irq_0_and_irq_8() {
        let (bench, _cell) = Bench::with(&MODEL);
        // As Linux sets its periodic tick up: value with SET_VALUE, then the period.
        write(&bench, timer(0).0, INTERRUPT | PERIODIC | SET_VALUE);
        write(&bench, timer(0).1, 400_000);
        write(&bench, timer(0).1, 400_000);
        write(&bench, timer(1).0, INTERRUPT);
        write(&bench, timer(1).1, 1_000_000);
        write(&bench, register::CONFIG, ENABLE | LEGACY);
        assert!(bench.shared_flag("hpet-legacy").get());
        let clock = bench.watch("isa-irq8");
        assert_eq!(interrupts(&bench, "isa-irq0", 1_000_000_000), 250);
        assert_eq!(*clock.lock().unwrap(), [true, false], "one-shot: once");
    }

    #[test]
    fn a_busy_host_costs_the_guest_no_ticks() {
        let (bench, _cell) = Bench::with(&MODEL);
        write(&bench, timer(0).0, INTERRUPT | PERIODIC | SET_VALUE);
        write(&bench, timer(0).1, 1_000_000);
        write(&bench, timer(0).1, 1_000_000); // 100 Hz
        write(&bench, register::CONFIG, ENABLE | LEGACY);
        bench.advance(100_500_000);
        bench.stall(500_000_000);
        assert_eq!(interrupts(&bench, "isa-irq0", 0), 1);
        assert_eq!(interrupts(&bench, "isa-irq0", 1_000_000_000), 149);
    }

    #[test]
    fn a_one_shot_in_the_past_does_not_come() {
        let (bench, _cell) = Bench::with(&MODEL);
        write(&bench, register::CONFIG, ENABLE | LEGACY);
        bench.advance(10_000);
        write(&bench, timer(0).0, INTERRUPT);
        write(&bench, timer(0).1, 999);
        assert_eq!(interrupts(&bench, "isa-irq0", 1_000_000_000), 0);
    }

    #[test]
    fn a_32_bit_timer_matches_again_when_its_bits_come_around() {
        let (bench, _cell) = Bench::with(&MODEL);
        write(&bench, timer(0).0, INTERRUPT | SHORT);
        write(&bench, timer(0).1, 0x1_0000_0064);
        write(&bench, register::CONFIG, ENABLE | LEGACY);
        assert_eq!(interrupts(&bench, "isa-irq0", 1_100), 1);
        assert_eq!(interrupts(&bench, "isa-irq0", 42_949_672_960), 1);
    }

    #[test]
    fn a_level_interrupt_holds_its_line_until_its_status_is_cleared() {
        let (bench, cell) = Bench::with(&MODEL);
        write(&bench, timer(2).0, INTERRUPT | LEVEL | ROUTABLE << ROUTE_SHIFT);
        write(&bench, timer(2).1, 100);
        write(&bench, register::CONFIG, ENABLE);
        bench.advance(2_000);
        assert!(bench.level("isa-irq0"));
        let (copy, _) = moved(&bench, &cell, &MODEL);
        assert!(copy.level("isa-irq0"));
        assert_eq!(read(&copy, register::STATUS), 4);
        write(&copy, register::STATUS, 4);
        assert!(!copy.level("isa-irq0"));
    }

    #[test]
    fn only_input_2_can_be_routed_to() {
        let (bench, _cell) = Bench::with(&MODEL);
        write(&bench, timer(0).0, 9 << ROUTE_SHIFT);
        assert_eq!(read(&bench, timer(0).0), timer_config::FIXED);
        write(&bench, timer(0).0, ROUTABLE << ROUTE_SHIFT);
        assert_eq!(read(&bench, timer(0).0), 0x0000_0004_0000_0430);
    }

    #[test]
    fn an_absurd_rate_does_not_drown_the_host() {
        let (bench, _cell) = Bench::with(&MODEL);
        write(&bench, timer(0).0, INTERRUPT | PERIODIC | SET_VALUE);
        write(&bench, timer(0).1, 1);
        write(&bench, register::CONFIG, ENABLE | LEGACY);
        assert!(interrupts(&bench, "isa-irq0", 10_000_000) <= 1001);
    }
}
