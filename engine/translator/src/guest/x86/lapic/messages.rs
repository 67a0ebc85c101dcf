//! The way of interrupt messages to the local APICs of one machine: destinations, shorthands, lowest priority.

use super::{ApicMode, LocalApic};
use engine_cpu::{ApicMessage, DeliveryMode};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// All local APICs of a machine.
#[derive(Default)]
pub(crate) struct ApicBus {
    apics: RwLock<Vec<Arc<LocalApic>>>,
    /// Where the search for the lowest priority begins, so that equals take turns.
    turn: AtomicUsize,
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    Everybody,
    AllBut(u32),
    Cpu(u32),
    Physical(u32),
    Logical(u32),
}

impl ApicBus {
    /// Nobody on it yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Connects the APIC of one more CPU.
    pub fn attach(&self, apic: Arc<LocalApic>) {
        self.apics.write().unwrap_or_else(PoisonError::into_inner).push(apic);
    }

    /// Calls `visit` with each APIC: for wires that reach all of them.
    pub fn each(&self, visit: impl FnMut(&Arc<LocalApic>)) {
        self.apics.read().unwrap_or_else(PoisonError::into_inner).iter().for_each(visit);
    }

    /// The APIC of CPU `cpu`.
    pub fn of_cpu(&self, cpu: u32) -> Option<Arc<LocalApic>> {
        self.apics.read().unwrap_or_else(PoisonError::into_inner).iter().find(|apic| apic.cpu == cpu).cloned()
    }

    /// The APIC with this id.
    pub fn of_id(&self, id: u32) -> Option<Arc<LocalApic>> {
        self.apics.read().unwrap_or_else(PoisonError::into_inner).iter().find(|apic| apic.matches_physical(id)).cloned()
    }

    /// A message from the IOAPIC, the HPET or an MSI-capable card.
    pub fn signal(&self, message: ApicMessage) {
        let ApicMessage { destination, logical, mode, vector, level_triggered } = message;
        let destination = match (logical, destination) {
            (false, 0xff | u32::MAX) => Destination::Everybody,
            (false, id) => Destination::Physical(id),
            (true, set) => Destination::Logical(set),
        };
        self.deliver(destination, mode, vector, level_triggered);
    }

    /// The interrupt command `command` of CPU `from`, whose APIC is in `sender_mode`.
    pub(super) fn send(&self, from: u32, command: u64, destination: u32, mode: DeliveryMode, sender_mode: ApicMode) {
        let everybody = if sender_mode == ApicMode::X2Apic { u32::MAX } else { 0xff };
        let destination = match command >> 18 & 3 {
            1 => Destination::Cpu(from),
            2 => Destination::Everybody,
            3 => Destination::AllBut(from),
            _ if destination == everybody && command & 1 << 11 == 0 => Destination::Everybody,
            _ if sender_mode == ApicMode::X2Apic && destination == everybody => Destination::Everybody,
            _ if command & 1 << 11 != 0 => Destination::Logical(destination),
            _ => Destination::Physical(destination),
        };
        // From an interrupt command, only the edge is meant: a level cannot be taken back (SDM 11.6.1).
        self.deliver(destination, mode, command as u8, command & 1 << 15 != 0 && mode == DeliveryMode::Fixed);
    }

    fn deliver(&self, destination: Destination, mode: DeliveryMode, vector: u8, level_triggered: bool) {
        let apics = self.apics.read().unwrap_or_else(PoisonError::into_inner);
        let mut targets = apics.iter().filter(|apic| apic.is_meant(destination));
        if mode != DeliveryMode::LowestPriority {
            targets.for_each(|apic| apic.deliver(mode, vector, level_triggered));
            return;
        }
        if let (Some(only), None) = (targets.next(), targets.next()) {
            only.deliver(DeliveryMode::Fixed, vector, level_triggered);
            return;
        }
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let count = apics.len().max(1);
        let chosen = (0..apics.len())
            .map(|step| &apics[(first + step) % count])
            .filter(|apic| apic.is_meant(destination))
            .filter_map(|apic| Some((apic.arbitration_priority()?, apic)))
            .min_by_key(|(priority, _)| *priority);
        if let Some((_, apic)) = chosen {
            apic.deliver(DeliveryMode::Fixed, vector, level_triggered);
        }
    }
}

impl LocalApic {
    fn is_meant(&self, destination: Destination) -> bool {
        match destination {
            Destination::Everybody => self.is_on_the_bus(),
            Destination::AllBut(cpu) => self.cpu != cpu && self.is_on_the_bus(),
            Destination::Cpu(cpu) => self.cpu == cpu,
            Destination::Physical(id) => self.matches_physical(id),
            Destination::Logical(set) => self.matches_logical(set),
        }
    }
}
