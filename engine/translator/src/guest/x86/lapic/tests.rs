use super::*;
use engine_base::{Clock, ClockMode};
use engine_cpu::ApicMessage;
use engine_cpu::x86::X86State;
use std::sync::Mutex;

/// A board that notes what the APICs ask of it; its clock is turned by hand.
struct Board {
    clock: Clock,
    ended: Mutex<Vec<u8>>,
    deadlines: Mutex<Vec<VmTime>>,
    bus: ApicBus,
    apics: Vec<Arc<LocalApic>>,
}

impl Board {
    fn with_cpus(cpus: u32) -> Self {
        let bus = ApicBus::new();
        let apics: Vec<_> = (0..cpus).map(|cpu| LocalApic::new(cpu, X86State::after_reset(cpu).apic, || {})).collect();
        apics.iter().for_each(|apic| bus.attach(apic.clone()));
        let clock = Clock::new(ClockMode::Counted { picos_per_instruction: 1000 }, VmTime::ZERO);
        let deadlines = Mutex::new(vec![VmTime::NEVER; cpus as usize]);
        let board = Self { clock, ended: Mutex::default(), deadlines, bus, apics };
        (0..cpus).for_each(|cpu| board.write(cpu, 0xf0, 0x1ff));
        board
    }

    fn write(&self, cpu: u32, offset: u64, value: u32) {
        self.apics[cpu as usize].page_write(offset, 4, u64::from(value), &self.bus, self);
    }

    fn read(&self, cpu: u32, offset: u64) -> u32 {
        self.apics[cpu as usize].page_read(offset, 4, self) as u32
    }

    /// Time passes; CPU 0's timer is served as the board would.
    fn wait_until(&self, nanos: u64) {
        loop {
            let next = self.deadlines.lock().unwrap()[0];
            if next.nanos() > nanos {
                break;
            }
            self.clock.leap_to(next);
            self.apics[0].timer_due();
            assert_ne!(self.apics[0].take_events(Event::TIMER), 0);
            self.apics[0].service_timer(self);
        }
        self.clock.leap_to(VmTime(nanos));
    }

    fn message(&self, destination: u32, logical: bool, mode: DeliveryMode, vector: u8) {
        self.bus.signal(ApicMessage { destination, logical, mode, vector, level_triggered: false });
    }

    fn requested(&self, vector: u8) -> Vec<u32> {
        (0..self.apics.len() as u32)
            .filter(|cpu| self.read(*cpu, 0x200 + u64::from(vector / 32) * 16) >> (vector % 32) & 1 != 0)
            .collect()
    }
}

impl CpuIo for Board {
    fn port_read(&self, _: u16, _: u8) -> u32 {
        0
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {}
    fn mmio_read(&self, _: u64, _: u8) -> u64 {
        0
    }
    fn mmio_write(&self, _: u64, _: u8, _: u64) {}
    fn acknowledge_interrupt(&self) -> u8 {
        0
    }
    fn end_of_interrupt(&self, vector: u8) {
        self.ended.lock().unwrap().push(vector);
    }
    fn clock(&self) -> &Clock {
        &self.clock
    }
    fn set_cpu_timer(&self, cpu: u32, deadline: VmTime) {
        self.deadlines.lock().unwrap()[cpu as usize] = deadline;
    }
    fn next_timer(&self) -> VmTime {
        VmTime::NEVER
    }
    fn fire_timers(&self) {}
}

#[test]
fn vectors_are_taken_by_priority_and_nest() {
    let board = Board::with_cpus(1);
    let apic = &board.apics[0];
    [0x31, 0x52, 0x35].into_iter().for_each(|vector| apic.deliver(DeliveryMode::Fixed, vector, false));
    assert_eq!(apic.take_interrupt(), Some(0x52));
    assert_eq!(apic.take_interrupt(), None, "both others are below the one in service");
    assert_eq!(board.read(0, 0xa0), 0x50, "processor priority");
    board.write(0, 0xb0, 0);
    assert_eq!(apic.take_interrupt(), Some(0x35));
    assert_eq!(apic.take_interrupt(), None, "31h is of the same class");
    board.write(0, 0xb0, 0);
    assert_eq!(apic.take_interrupt(), Some(0x31));
    assert!(board.ended.lock().unwrap().is_empty(), "edges are not told to the IOAPIC");
}

#[test]
fn the_task_priority_holds_vectors_back_until_it_falls() {
    let board = Board::with_cpus(1);
    let apic = &board.apics[0];
    apic.set_cr8(5);
    apic.deliver(DeliveryMode::Fixed, 0x5f, false);
    assert_eq!((apic.events() & Event::INTERRUPT, apic.take_interrupt()), (0, None));
    apic.set_cr8(4);
    assert_eq!(apic.events() & Event::INTERRUPT, Event::INTERRUPT);
    assert_eq!(apic.take_interrupt(), Some(0x5f));
    assert_eq!(board.read(0, 0x80), 0x40);
}

#[test]
fn the_end_of_a_level_triggered_interrupt_is_broadcast() {
    let board = Board::with_cpus(1);
    board.apics[0].deliver(DeliveryMode::Fixed, 0x61, true);
    assert_eq!(board.read(0, 0x1b0), 2, "trigger mode register, vectors 60h to 7fh");
    board.apics[0].take_interrupt();
    board.write(0, 0xb0, 0);
    assert_eq!(*board.ended.lock().unwrap(), [0x61]);
}

#[test]
fn destinations_are_physical_flat_cluster_and_shorthand() {
    let board = Board::with_cpus(4);
    for cpu in 0..4 {
        board.write(cpu, 0xd0, 1 << (24 + cpu));
    }
    board.message(2, false, DeliveryMode::Fixed, 0x40);
    assert_eq!(board.requested(0x40), [2]);
    board.message(0b1010, true, DeliveryMode::Fixed, 0x41);
    assert_eq!(board.requested(0x41), [1, 3]);
    board.message(0xff, false, DeliveryMode::Fixed, 0x42);
    assert_eq!(board.requested(0x42), [0, 1, 2, 3]);
    board.write(1, 0x300, 0x000c_4043);
    assert_eq!(board.requested(0x43), [0, 2, 3], "all but self");
    board.write(1, 0x300, 0x0004_4044);
    assert_eq!(board.requested(0x44), [1], "self");
    for cpu in 0..4 {
        board.write(cpu, 0xe0, 0);
        board.write(cpu, 0xd0, (cpu / 2) << 28 | 1 << (24 + cpu % 2));
    }
    board.message(0x12, true, DeliveryMode::Fixed, 0x45);
    assert_eq!(board.requested(0x45), [3], "cluster 1, member 1");
    board.message(0xf1, true, DeliveryMode::Fixed, 0x46);
    assert_eq!(board.requested(0x46), [0, 2], "member 0 of every cluster");
}

#[test]
fn the_lowest_priority_gets_the_message_and_equals_take_turns() {
    let board = Board::with_cpus(3);
    (0..3).for_each(|cpu| board.write(cpu, 0xd0, 1 << (24 + cpu)));
    board.write(0, 0x80, 0x80);
    board.write(1, 0x80, 0x20);
    board.write(2, 0x80, 0x40);
    board.message(7, true, DeliveryMode::LowestPriority, 0x91);
    assert_eq!(board.requested(0x91), [1]);
    (0..3).for_each(|cpu| board.write(cpu, 0x80, 0));
    (0xa0..0xa3).for_each(|vector| board.message(7, true, DeliveryMode::LowestPriority, vector));
    let mut met: Vec<u32> = (0xa0..0xa3).flat_map(|vector| board.requested(vector)).collect();
    met.sort_unstable();
    assert_eq!(met, [0, 1, 2]);
}

#[test]
fn start_up_reaches_its_cpu_and_an_init_before_it_stays() {
    let board = Board::with_cpus(2);
    board.write(0, 0x310, 1 << 24);
    board.write(0, 0x300, 0x0000_4500);
    board.write(0, 0x300, 0x0000_4608);
    let apic = &board.apics[1];
    assert_eq!(apic.events(), Event::INIT | Event::START_UP);
    assert_eq!(apic.start_up_page(), 8);
    assert_eq!(board.apics[0].events(), 0);
    board.write(0, 0x300, 0x0000_8500);
    assert_eq!(apic.take_events(Event::INIT | Event::START_UP), Event::INIT | Event::START_UP);
    assert_eq!(apic.events(), 0, "INIT de-assert is nothing");
}

#[test]
fn a_one_shot_fires_once_and_counts_down() {
    let board = Board::with_cpus(1);
    board.write(0, 0x320, 0x30);
    board.write(0, 0x3e0, 0xb);
    board.write(0, 0x380, 1000);
    board.wait_until(400);
    assert_eq!(board.read(0, 0x390), 600);
    assert_eq!(board.apics[0].take_interrupt(), None);
    board.wait_until(1000);
    assert_eq!(board.apics[0].take_interrupt(), Some(0x30));
    assert_eq!((board.read(0, 0x390), board.read(0, 0x380)), (0, 1000));
    assert_eq!(board.deadlines.lock().unwrap()[0], VmTime::NEVER);
}

#[test]
fn a_count_that_ran_out_does_not_start_again_by_a_change_of_mode() {
    let board = Board::with_cpus(1);
    board.write(0, 0x320, 0x41);
    board.write(0, 0x380, 1_000);
    // Nobody serves the timer in between.
    board.clock.leap_to(VmTime(1_000_000));
    assert_eq!(board.read(0, 0x390), 0);
    board.write(0, 0x320, 1 << 17 | 0x42);
    assert_eq!(board.read(0, 0x390), 0, "it had ended before it was made periodic");
    assert_eq!(board.apics[0].take_interrupt(), Some(0x41), "by the entry that stood there when it ended");
}

#[test]
fn a_periodic_timer_keeps_its_rhythm_and_its_divider() {
    let board = Board::with_cpus(1);
    board.write(0, 0x320, 0x2_0030);
    board.write(0, 0x3e0, 0x3);
    board.write(0, 0x380, 100);
    for period in 1..4 {
        board.wait_until(period * 1600);
        assert_eq!(board.apics[0].take_interrupt(), Some(0x30), "16 ns × 100");
        board.write(0, 0xb0, 0);
    }
    board.wait_until(3 * 1600 + 160);
    assert_eq!(board.read(0, 0x390), 90);
    board.write(0, 0x380, 0);
    assert_eq!(board.deadlines.lock().unwrap()[0], VmTime::NEVER);
}

#[test]
fn the_tsc_deadline_fires_and_disarms_itself() {
    let board = Board::with_cpus(1);
    let apic = &board.apics[0];
    apic.set_tsc_deadline(500, &board);
    assert_eq!(apic.tsc_deadline(), 0, "another mode: ignored");
    board.write(0, 0x320, 0x4_0031);
    apic.set_tsc_offset(100, &board);
    apic.set_tsc_deadline(600, &board);
    board.wait_until(499);
    assert_eq!((apic.take_interrupt(), apic.tsc_deadline()), (None, 600));
    board.wait_until(500);
    assert_eq!((apic.take_interrupt(), apic.tsc_deadline()), (Some(0x31), 0));
    board.write(0, 0xb0, 0);
    apic.set_tsc_deadline(3, &board);
    assert_eq!(apic.take_interrupt(), Some(0x31), "a time that has passed fires at once");
}

#[test]
fn intr_comes_through_lint0_as_the_table_says() {
    let board = Board::with_cpus(1);
    let apic = &board.apics[0];
    board.write(0, 0x350, 0x700);
    apic.set_intr(true);
    assert_eq!(apic.events(), Event::EXTERNAL);
    apic.set_intr(false);
    assert_eq!(apic.events(), 0);
    board.write(0, 0x350, 0x1_0700);
    apic.set_intr(true);
    assert_eq!(apic.events(), 0, "masked");
    apic.set_intr(false);
    board.write(0, 0x350, 0x0040);
    apic.set_intr(true);
    assert_eq!(apic.take_interrupt(), Some(0x40), "as a vector of its own");
    assert_eq!(apic.set_base(0xfee0_0000, 40), Ok(()));
    assert_eq!(apic.events(), Event::EXTERNAL, "past a disabled APIC, straight to the CPU");
}

#[test]
fn illegal_vectors_and_registers_are_errors() {
    let board = Board::with_cpus(1);
    board.write(0, 0x370, 0x44);
    board.write(0, 0x310, 0);
    board.write(0, 0x300, 0x4005);
    assert_eq!(board.read(0, 0x280), 0, "not visible before a write");
    board.write(0, 0x280, 0);
    assert_eq!(board.read(0, 0x280), 1 << 5);
    assert_eq!(board.apics[0].take_interrupt(), Some(0x44));
    board.read(0, 0x2f0);
    board.message(0, false, DeliveryMode::Fixed, 3);
    board.write(0, 0x280, 0);
    assert_eq!(board.read(0, 0x280), 1 << 7 | 1 << 6);
}

#[test]
fn software_disable_masks_the_table_and_ignores_vectors_but_not_nmi() {
    let board = Board::with_cpus(1);
    board.write(0, 0x350, 0x700);
    board.write(0, 0xf0, 0xff);
    assert_eq!(board.read(0, 0x350), 0x1_0700);
    board.write(0, 0x350, 0x700);
    assert_eq!(board.read(0, 0x350), 0x1_0700, "the mask is held");
    board.message(0, false, DeliveryMode::Fixed, 0x50);
    board.message(0, false, DeliveryMode::Nmi, 0);
    assert_eq!(board.apics[0].events(), Event::NMI);
}

#[test]
fn apic_base_allows_only_the_drawn_transitions() {
    let board = Board::with_cpus(1);
    let apic = &board.apics[0];
    let (off, on, x2) = (0xfee0_0000, 0xfee0_0800, 0xfee0_0c00);
    assert_eq!(apic.set_base(0xfee0_0400, 40), Err(Refused), "x2APIC without enable");
    assert_eq!(apic.set_base(on | 1 << 41, 40), Err(Refused), "beyond the physical address");
    assert_eq!(apic.set_base(on | 1, 40), Err(Refused), "reserved");
    assert_eq!(apic.set_base(x2, 40), Ok(()));
    assert_eq!(apic.mode(), ApicMode::X2Apic);
    assert_eq!(apic.set_base(on, 40), Err(Refused), "x2APIC to xAPIC");
    assert_eq!(apic.set_base(off, 40), Ok(()));
    assert_eq!(apic.set_base(x2, 40), Err(Refused), "disabled to x2APIC");
    assert_eq!(apic.set_base(on, 40), Ok(()));
    board.write(0, 0x20, 5 << 24);
    assert_eq!(board.read(0, 0x20), 5 << 24);
    assert_eq!((apic.set_base(off, 40), apic.set_base(on, 40)), (Ok(()), Ok(())));
    assert_eq!(board.read(0, 0x20), 0, "its own id again");
    assert_eq!(apic.set_base(0xfed0_0800, 40), Ok(()));
    assert_eq!((apic.mode(), apic.base()), (ApicMode::XApic, 0xfed0_0900), "moved; the boot flag stays");
}

#[test]
fn x2apic_registers_are_msrs_with_their_own_rules() {
    let board = Board::with_cpus(2);
    let [first, second] = [0, 1].map(|cpu: usize| &board.apics[cpu]);
    assert_eq!(first.msr_read(0x802, &board), Err(Refused), "not in xAPIC mode");
    for apic in [first, second] {
        apic.set_base(apic.base() | 0xc00, 40).unwrap();
    }
    assert_eq!(second.msr_read(0x802, &board), Ok(1));
    assert_eq!(second.msr_read(0x80d, &board), Ok(2), "logical id: cluster 0, member 1");
    for refused in [0x80b, 0x80e, 0x831, 0x83f, 0x840] {
        assert_eq!(first.msr_read(refused, &board), Err(Refused), "{refused:#x}");
    }
    let write = |msr, value| first.msr_write(msr, value, &board.bus, &board);
    assert_eq!(write(0x808, 0x100), Err(Refused));
    assert_eq!(write(0x80b, 1), Err(Refused));
    assert_eq!(write(0x802, 0), Err(Refused), "read-only");
    assert_eq!(write(0x832, 1 << 32), Err(Refused));
    assert_eq!(write(0x830, 1 << 32 | 0x4051), Ok(()), "to APIC 1");
    assert_eq!(second.take_interrupt(), Some(0x51));
    assert_eq!(write(0x830, 0b11 << 32 | 0x4852), Ok(()), "logical: both");
    assert_eq!((first.take_interrupt(), second.events() & Event::INTERRUPT), (Some(0x52), 0), "51h is still in service there");
    assert_eq!(write(0x83f, 0x63), Ok(()));
    assert_eq!(first.take_interrupt(), Some(0x63));
}

#[test]
fn a_saved_apic_comes_back_as_it_was() {
    let board = Board::with_cpus(1);
    let apic = &board.apics[0];
    board.write(0, 0x320, 0x2_0030);
    board.write(0, 0x380, 5000);
    apic.deliver(DeliveryMode::Fixed, 0x70, true);
    apic.deliver(DeliveryMode::Fixed, 0x80, false);
    apic.take_interrupt();
    let saved = apic.save();
    let other = Board::with_cpus(1);
    other.apics[0].load(&saved, 0);
    assert_eq!(other.apics[0].save(), saved);
    assert_eq!(other.apics[0].take_events(Event::TIMER), Event::TIMER);
    other.apics[0].service_timer(&other);
    assert_eq!(other.deadlines.lock().unwrap()[0], VmTime(10_000), "divide by 2 after reset");
    other.write(0, 0xb0, 0);
    assert_eq!(other.apics[0].take_interrupt(), Some(0x70));
}

#[test]
fn a_cpu_is_woken_for_what_is_new_only() {
    let woken = Arc::new(AtomicU32::new(0));
    let count = woken.clone();
    let apic = LocalApic::new(0, X86State::after_reset(0).apic, move || {
        count.fetch_add(1, Ordering::Relaxed);
    });
    apic.deliver(DeliveryMode::Nmi, 0, false);
    apic.deliver(DeliveryMode::Nmi, 0, false);
    assert_eq!(woken.load(Ordering::Relaxed), 1);
    assert!(apic.take_nmi() && apic.take_nmi(), "one to be taken and one to wait");
    assert!(!apic.take_nmi());
    apic.deliver(DeliveryMode::Nmi, 0, false);
    assert_eq!(woken.load(Ordering::Relaxed), 2);
}

#[test]
fn two_nmis_at_once_are_two() {
    for round in 0..2_000 {
        let apic = LocalApic::new(0, X86State::after_reset(0).apic, || {});
        let both = std::sync::Barrier::new(2);
        let send = || {
            both.wait();
            apic.deliver(DeliveryMode::Nmi, 0, false);
        };
        std::thread::scope(|scope| {
            scope.spawn(send);
            send();
        });
        assert!(apic.take_nmi() && apic.take_nmi(), "one was lost in round {round}");
        assert!(!apic.take_nmi());
    }
}

/// Firmware sends the start-up right behind the INIT; it may arrive while the CPU's own thread carries the INIT out.
#[test]
fn a_start_up_outlives_the_init_before_it() {
    for round in 0..2_000 {
        let apic = LocalApic::new(1, X86State::after_reset(1).apic, || {});
        std::thread::scope(|scope| {
            let cpu = scope.spawn(|| {
                while apic.take_events(Event::INIT) == 0 {
                    std::hint::spin_loop();
                }
                apic.carry_out_init();
            });
            apic.deliver(DeliveryMode::Init, 0, false);
            apic.deliver(DeliveryMode::StartUp, 0x9f, false);
            cpu.join().unwrap();
        });
        assert_ne!(apic.events() & Event::START_UP, 0, "lost in round {round}");
        assert_eq!(apic.start_up_page(), 0x9f);
    }
}

#[test]
fn what_was_latched_is_latched_again() {
    let apic = LocalApic::new(1, X86State::after_reset(1).apic, || {});
    apic.load_latched(true, Some(7), false);
    assert_eq!(apic.take_events(Event::INIT | Event::START_UP), Event::INIT | Event::START_UP);
    assert_eq!(apic.start_up_page(), 7);
    apic.load_latched(false, None, false);
    assert_eq!(apic.events(), 0);
}
