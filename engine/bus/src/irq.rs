//! Interrupt lines are wires: each is the OR of its sources and has any number of listeners. A device drives its own
//! [`IrqLine`] and does not know who listens; a controller listens and does not know who drives.

use crate::DeviceCell;
use engine_base::{RankedMutex, rank};
use std::collections::BTreeMap;
use std::sync::Arc;

/// All wires of a board, by name: `isa-irq4`, `pci-inta`, `cpu-intr`, `a20`.
#[derive(Clone, Default)]
pub struct Wires(Arc<RankedNets>);

struct RankedNets(RankedMutex<BTreeMap<String, Arc<Net>>>);

impl Default for RankedNets {
    fn default() -> Self {
        Self(RankedMutex::new(rank::LEAF, "wires", BTreeMap::new()))
    }
}

struct Net {
    state: RankedMutex<NetState>,
}

#[derive(Default)]
struct NetState {
    sources: Vec<bool>,
    listeners: Vec<Listener>,
}

#[derive(Clone)]
enum Listener {
    Device(Arc<DeviceCell>, u32),
    Call(Arc<dyn Fn(bool) + Send + Sync>),
}

impl Listener {
    fn set(&self, high: bool) {
        match self {
            Listener::Call(call) => call(high),
            Listener::Device(cell, input) => {
                if let Some(controller) = cell.lock().as_interrupt_controller() {
                    controller.set_input(*input, high);
                }
            }
        }
    }
}

/// Where in the lock order a wire stands: between its drivers and its listeners.
fn wire_rank(name: &str) -> u8 {
    if name.starts_with("pci-") {
        rank::OUTER_WIRE
    } else if name.starts_with("isa-") {
        rank::INNER_WIRE
    } else {
        rank::INTERRUPT_CONTROLLER + 10
    }
}

impl Wires {
    fn net(&self, name: &str) -> Arc<Net> {
        let mut nets = self.0.0.lock();
        let fresh = || Arc::new(Net { state: RankedMutex::new(wire_rank(name), "wire", NetState::default()) });
        Arc::clone(nets.entry(name.to_owned()).or_insert_with(fresh))
    }

    /// A new source on the wire `name`.
    pub fn drive(&self, name: &str) -> IrqLine {
        let net = self.net(name);
        let source = {
            let mut state = net.state.lock();
            state.sources.push(false);
            state.sources.len() - 1
        };
        IrqLine { net, source }
    }

    /// `call` hears every change of the wire. It runs under the wire's lock: flip an atomic, kick a thread, return.
    pub fn listen(&self, name: &str, call: impl Fn(bool) + Send + Sync + 'static) {
        self.net(name).state.lock().listeners.push(Listener::Call(Arc::new(call)));
    }

    pub(crate) fn connect(&self, name: &str, cell: Arc<DeviceCell>, input: u32) {
        self.net(name).state.lock().listeners.push(Listener::Device(cell, input));
    }

    /// The levels of all wires: for `info irq` and tests.
    pub fn levels(&self) -> Vec<(String, bool)> {
        let nets: Vec<_> = self.0.0.lock().iter().map(|(name, net)| (name.clone(), Arc::clone(net))).collect();
        nets.into_iter().map(|(name, net)| (name, net.state.lock().sources.contains(&true))).collect()
    }
}

/// One source on a wire. Levels are logical: `raise` asserts, whatever the polarity on a real board.
pub struct IrqLine {
    net: Arc<Net>,
    source: usize,
}

impl IrqLine {
    /// Sets this source's level; listeners hear it when the wire's level changes.
    pub fn set(&self, high: bool) {
        let mut state = self.net.state.lock();
        if state.sources[self.source] == high {
            return;
        }
        let before = state.sources.contains(&true);
        state.sources[self.source] = high;
        let after = state.sources.contains(&true);
        if before != after {
            // Under the lock, so that listeners hear the changes in the order in which they happened.
            for listener in &state.listeners {
                listener.set(after);
            }
        }
    }

    /// Asserts.
    pub fn raise(&self) {
        self.set(true);
    }

    /// Takes the assertion back.
    pub fn lower(&self) {
        self.set(false);
    }

    /// An edge: up and down again.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// An interrupt as a message: what an IOAPIC or an MSI-capable card sends to local APICs.
/// Address and data are laid out as in Intel SDM volume 3, 11.11 "Message Signalled Interrupts".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InterruptMessage {
    /// `0xFEExxxxx`: destination and its mode.
    pub address: u64,
    /// Vector, delivery mode, trigger mode, level.
    pub data: u32,
}

/// Sends interrupt messages to the CPUs.
#[derive(Clone)]
pub struct MessageSender(Arc<dyn Fn(InterruptMessage) + Send + Sync>);

impl MessageSender {
    /// A sender that hands every message to `deliver`.
    pub fn new(deliver: impl Fn(InterruptMessage) + Send + Sync + 'static) -> Self {
        Self(Arc::new(deliver))
    }

    /// Sends.
    pub fn send(&self, message: InterruptMessage) {
        (self.0)(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn a_wire_is_the_or_of_its_sources() {
        let wires = Wires::default();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&heard);
        wires.listen("isa-irq5", move |high| log.lock().unwrap().push(high));
        let first = wires.drive("isa-irq5");
        let second = wires.drive("isa-irq5");
        first.raise();
        second.raise();
        first.lower();
        assert_eq!(*heard.lock().unwrap(), [true]);
        second.lower();
        assert_eq!(*heard.lock().unwrap(), [true, false]);
    }
}
