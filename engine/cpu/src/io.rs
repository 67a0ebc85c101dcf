//! The border between a CPU and its board: what a vCPU asks of the board ([`CpuIo`]) and what interrupt controllers send to CPUs.

use engine_base::{Clock, VmTime};

/// The board, as a vCPU sees it. Widths are 1, 2, 4 or (memory only) 8 bytes.
pub trait CpuIo: Send + Sync {
    /// Reads an I/O port.
    fn port_read(&self, port: u16, bytes: u8) -> u32;
    /// Reads the same port again and again, `bytes` each time, until `into`, a multiple of that, is full: a repeated INS.
    fn port_read_run(&self, port: u16, bytes: u8, into: &mut [u8]) {
        for element in into.chunks_exact_mut(bytes.max(1).into()) {
            let value = self.port_read(port, bytes).to_le_bytes();
            element.copy_from_slice(&value[..element.len()]);
        }
    }
    /// Writes an I/O port.
    fn port_write(&self, port: u16, bytes: u8, value: u32);
    /// Reads a physical address at which no memory answers.
    fn mmio_read(&self, address: u64, bytes: u8) -> u64;
    /// Writes a physical address at which no memory answers.
    fn mmio_write(&self, address: u64, bytes: u8, value: u64);
    /// The INTA cycle of the 8259 pair: the vector. Only called while the INTR pin is high (it may have just fallen: then
    /// the PIC answers its spurious vector).
    fn acknowledge_interrupt(&self) -> u8;
    /// A local APIC ends a level-triggered interrupt: IOAPICs listen.
    fn end_of_interrupt(&self, vector: u8);
    /// The FERR# pin rises: an x87 exception is pending and CR0.NE is clear. On a PC it is wired to IRQ 13.
    fn set_ferr(&self) {}
    /// The machine's clock. The time stamp counter is this clock times [`crate::x86::TSC_HZ`].
    fn clock(&self) -> &Clock;
    /// Sets the deadline of CPU `cpu`'s own timer (local APIC, TSC deadline), in place of an earlier one. When it has
    /// passed, the board calls [`crate::CpuBackend::timer_due`]. [`VmTime::NEVER`] disarms.
    fn set_cpu_timer(&self, cpu: u32, deadline: VmTime);
    /// Counted machines only: the earliest deadline of all timers. The vCPU runs up to it, then calls `fire_timers`.
    fn next_timer(&self) -> VmTime;
    /// Counted machines only: fires what is due, on the vCPU's thread.
    fn fire_timers(&self);
}

/// An interrupt on its way to local APICs (Intel SDM volume 3, 11.6.1 and 11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApicMessage {
    /// APIC id (physical) or destination set (logical); 0xff is everybody in physical xAPIC mode.
    pub destination: u32,
    /// Logical destination mode.
    pub logical: bool,
    /// What it does.
    pub mode: DeliveryMode,
    /// The vector; start-up page for SIPI.
    pub vector: u8,
    /// Level triggered: the end of interrupt is broadcast to IOAPICs.
    pub level_triggered: bool,
}

/// Delivery modes, encoded as in the interrupt command register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryMode {
    /// To each destination.
    Fixed = 0,
    /// To the one of them with the lowest priority.
    LowestPriority = 1,
    /// System management interrupt.
    Smi = 2,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// Back to wait-for-SIPI.
    Init = 5,
    /// Start-up.
    StartUp = 6,
    /// As if the PIC had raised INTR.
    ExtInt = 7,
}

impl ApicMessage {
    /// Decodes a message-signalled interrupt (address `0xFEExxxxx` and data).
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        let mode = match data >> 8 & 7 {
            0 => DeliveryMode::Fixed,
            1 => DeliveryMode::LowestPriority,
            2 => DeliveryMode::Smi,
            4 => DeliveryMode::Nmi,
            5 => DeliveryMode::Init,
            7 => DeliveryMode::ExtInt,
            _ => return None,
        };
        Some(Self {
            destination: (address >> 12 & 0xff) as u32,
            logical: address & 4 != 0,
            mode,
            vector: data as u8,
            level_triggered: data & 0x8000 != 0,
        })
    }
}
