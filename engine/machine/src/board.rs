//! The board as a vCPU sees it: the adapter between [`CpuIo`] and the bus, which do not know each other.

use engine_base::{Clock, VmTime};
use engine_bus::{DeviceCell, IrqLine, Router, Timer, TimerQueue, Width};
use engine_cpu::{CpuBackend, CpuIo};
use std::sync::{Arc, OnceLock};

/// What vCPU threads share.
pub struct Board {
    router: Router,
    timers: TimerQueue,
    cpu_timers: Vec<Timer>,
    pic: Arc<DeviceCell>,
    ioapic: Arc<DeviceCell>,
    /// The latch behind FERR#: set by the CPU, cleared by a write to port F0h, as on the AT's board.
    coprocessor_irq: IrqLine,
}

const CLEAR_COPROCESSOR_BUSY: u16 = 0xf0;

impl Board {
    /// A board for `cpus` CPUs; `backend` is filled in by the time the first timer fires.
    pub fn new(
        router: Router,
        timers: TimerQueue,
        cpus: u32,
        backend: &Arc<OnceLock<Arc<dyn CpuBackend>>>,
        pic: Arc<DeviceCell>,
        ioapic: Arc<DeviceCell>,
        coprocessor_irq: IrqLine,
    ) -> Self {
        let cpu_timers = (0..cpus)
            .map(|cpu| {
                let backend = Arc::clone(backend);
                timers.callback(move |_| {
                    if let Some(backend) = backend.get() {
                        backend.timer_due(cpu);
                    }
                })
            })
            .collect();
        Self { router, timers, cpu_timers, pic, ioapic, coprocessor_irq }
    }
}

fn width(bytes: u8) -> Width {
    Width::of(u64::from(bytes)).unwrap_or(Width::Byte)
}

impl CpuIo for Board {
    fn port_read(&self, port: u16, bytes: u8) -> u32 {
        self.router.port_read(port, width(bytes))
    }

    fn port_read_run(&self, port: u16, bytes: u8, into: &mut [u8]) {
        self.router.port_read_run(port, width(bytes), into);
    }

    fn port_write(&self, port: u16, bytes: u8, value: u32) {
        if port == CLEAR_COPROCESSOR_BUSY {
            self.coprocessor_irq.lower();
        }
        self.router.port_write(port, width(bytes), value);
    }

    fn mmio_read(&self, address: u64, bytes: u8) -> u64 {
        self.router.mmio_read(address, width(bytes))
    }

    fn mmio_write(&self, address: u64, bytes: u8, value: u64) {
        self.router.mmio_write(address, width(bytes), value);
    }

    fn acknowledge_interrupt(&self) -> u8 {
        let mut pic = self.pic.lock();
        pic.as_interrupt_controller().and_then(|pic| pic.acknowledge()).unwrap_or(0xff)
    }

    fn end_of_interrupt(&self, vector: u8) {
        if let Some(ioapic) = self.ioapic.lock().as_interrupt_controller() {
            ioapic.end_of_interrupt(vector);
        }
    }

    fn set_ferr(&self) {
        self.coprocessor_irq.raise();
    }

    fn clock(&self) -> &Clock {
        self.timers.clock()
    }

    fn set_cpu_timer(&self, cpu: u32, deadline: VmTime) {
        if let Some(timer) = self.cpu_timers.get(cpu as usize) {
            timer.set(deadline);
        }
    }

    fn next_timer(&self) -> VmTime {
        self.timers.next_deadline()
    }

    fn fire_timers(&self) {
        self.timers.fire_due();
    }
}
