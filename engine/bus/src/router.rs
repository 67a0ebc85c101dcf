//! Which device answers at which port and which physical address. vCPU threads come in here; each access locks exactly
//! the device that answers. PCI configuration ports are the router's own, because they reach into other devices: after a
//! configuration write the router re-reads the function's base address registers, with the device unlocked again.

use crate::device::{DeviceCell, Port, Width};
use crate::pci::{BarKind, PciAddress, PciBus};
use arc_swap::ArcSwap;
use engine_base::{RankedMutex, rank};
use engine_memory::{Contents, GuestMemory, Layer};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
/// Above RAM (0), below a device window that hides it (20).
const PCI_LAYER_PRIORITY: i32 = 10;

/// The router of one board; clones share it.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    memory: GuestMemory,
    map: ArcSwap<Map>,
    config_address: AtomicU32,
    setup: RankedMutex<Setup>,
}

#[derive(Default)]
struct Setup {
    fixed: Map,
    pci: PciBus,
    bus_masters: HashMap<PciAddress, Arc<AtomicBool>>,
}

#[derive(Default, Clone)]
struct Map {
    ports: Vec<PortClaim>,
    /// Which of `ports` each of the 65536 ports belongs to, or [`UNCLAIMED`]. Empty until [`Map::index_ports`].
    claim_of_port: Vec<u16>,
    regions: Vec<MmioClaim>,
}

const UNCLAIMED: u16 = u16::MAX;

#[derive(Clone)]
struct PortClaim {
    base: u16,
    /// One past the last port; up to 0x10000.
    end: u32,
    widest: Width,
    cell: Arc<DeviceCell>,
    bar: Option<u8>,
}

#[derive(Clone)]
struct MmioClaim {
    base: u64,
    len: u64,
    region: u8,
    cell: Arc<DeviceCell>,
}

impl Map {
    /// Later claims hide earlier ones, so PCI (added first) cannot hide what is fixed: fixed claims are put last by `rebuild`.
    fn index_ports(&mut self) {
        self.claim_of_port = vec![UNCLAIMED; 0x1_0000];
        for (number, claim) in (0..UNCLAIMED).zip(&self.ports) {
            let end = claim.end.min(0x1_0000) as usize;
            if let Some(ports) = self.claim_of_port.get_mut(usize::from(claim.base)..end) {
                ports.fill(number);
            }
        }
    }

    fn port(&self, port: u16) -> Option<&PortClaim> {
        self.ports.get(usize::from(*self.claim_of_port.get(usize::from(port))?))
    }

    fn region(&self, address: u64) -> Option<&MmioClaim> {
        self.regions.iter().rev().find(|claim| claim.base <= address && address - claim.base < claim.len)
    }
}

impl Router {
    /// A router with nothing on it.
    pub fn new(memory: GuestMemory) -> Self {
        Self(Arc::new(Inner {
            memory,
            map: ArcSwap::from_pointee(Map::default()),
            config_address: AtomicU32::new(0),
            setup: RankedMutex::new(rank::ROUTER, "router", Setup::default()),
        }))
    }

    pub(crate) fn claim_ports(&self, cell: &Arc<DeviceCell>, base: u16, count: u16, widest: Width) {
        let mut setup = self.0.setup.lock();
        let end = u32::from(base) + u32::from(count);
        setup.fixed.ports.push(PortClaim { base, end, widest, cell: Arc::clone(cell), bar: None });
    }

    pub(crate) fn claim_mmio(&self, cell: &Arc<DeviceCell>, region: u8, base: u64, len: u64) {
        let mut setup = self.0.setup.lock();
        setup.fixed.regions.push(MmioClaim { base, len, region, cell: Arc::clone(cell) });
        let name = format!("{} window {region}", cell.name());
        self.0.memory.set_layer(Layer { name, priority: 20, base, len, contents: Contents::Device });
    }

    pub(crate) fn claim_pci(&self, cell: &Arc<DeviceCell>, address: PciAddress, bus_master: Arc<AtomicBool>) {
        let mut setup = self.0.setup.lock();
        setup.pci.insert(address, Arc::clone(cell));
        setup.bus_masters.insert(address, bus_master);
    }

    /// Reads every function's base address registers and command register again: after build, reset and restore.
    pub fn rebuild(&self) {
        let mut setup = self.0.setup.lock();
        self.rebuild_with(&mut setup);
    }

    fn rebuild_with(&self, setup: &mut Setup) {
        let mut map = Map::default();
        let mut layers = Vec::new();
        for (address, cell) in setup.pci.functions() {
            let mut device = cell.lock();
            let Some(function) = device.as_pci() else { continue };
            let config = function.config();
            if let Some(master) = setup.bus_masters.get(&address) {
                master.store(config.is_bus_master(), Ordering::Release);
            }
            for (index, base, bar) in config.mapped() {
                let contents = match &bar.kind {
                    BarKind::Io => {
                        let end = base as u32 + bar.size as u32;
                        map.ports.push(PortClaim {
                            base: base as u16,
                            end,
                            widest: Width::Dword,
                            cell: Arc::clone(cell),
                            bar: Some(index),
                        });
                        continue;
                    }
                    BarKind::Memory => {
                        map.regions.push(MmioClaim { base, len: bar.size, region: index, cell: Arc::clone(cell) });
                        Contents::Device
                    }
                    BarKind::Ram(block) => Contents::Ram(block.clone(), 0),
                    BarKind::Rom(block) => Contents::Rom(block.clone(), 0),
                };
                let name = format!("{} bar {index}", cell.name());
                layers.push(Layer { name, priority: PCI_LAYER_PRIORITY, base, len: bar.size, contents });
            }
        }
        map.ports.extend(setup.fixed.ports.iter().cloned());
        map.index_ports();
        map.regions.extend(setup.fixed.regions.iter().cloned());
        self.0.map.store(Arc::new(map));
        self.set_pci_layers(layers);
    }

    /// Replaces the layers of all base address registers, touching only what changed.
    fn set_pci_layers(&self, wanted: Vec<Layer>) {
        let present = self.0.memory.layers();
        let of_pci = |layer: &&Layer| layer.priority == PCI_LAYER_PRIORITY;
        for old in present.iter().filter(of_pci) {
            if !wanted.iter().any(|new| new.name == old.name) {
                self.0.memory.remove_layer(&old.name);
            }
        }
        for new in wanted {
            let same = present.iter().any(|old| old.name == new.name && old.base == new.base && old.len == new.len);
            if !same {
                self.0.memory.set_layer(new);
            }
        }
    }

    /// A port read by a CPU. Ports that nothing claims read as all ones.
    pub fn port_read(&self, port: u16, width: Width) -> u32 {
        if let Some(value) = self.config_read(port, width) {
            return value;
        }
        let map = self.0.map.load();
        if let Some(claim) = map.port(port)
            && width <= claim.widest
        {
            let mut device = claim.cell.lock();
            return match device.as_port_io() {
                Some(io) => io.port_read(claim.port(port), width) & width.all_ones() as u32,
                None => width.all_ones() as u32,
            };
        }
        if width == Width::Byte {
            tracing::trace!(port = format_args!("{port:#x}"), "read of a port that no device claims");
            return 0xff;
        }
        // A wide access to narrow ports is a row of narrow ones, as an ISA bridge makes it.
        let bytes = (0..width.bytes() as u16).map(|i| self.port_read(port.wrapping_add(i), Width::Byte));
        bytes.enumerate().fold(0, |value, (i, byte)| value | byte << (8 * i))
    }

    /// A CPU reads the same port again and again, until `into`, a multiple of `width`, is full.
    pub fn port_read_run(&self, port: u16, width: Width, into: &mut [u8]) {
        let map = self.0.map.load();
        if let Some(claim) = map.port(port)
            && width <= claim.widest
            && let Some(io) = claim.cell.lock().as_port_io()
        {
            return io.port_read_run(claim.port(port), width, into);
        }
        for element in into.chunks_exact_mut(width.bytes() as usize) {
            let value = self.port_read(port, width).to_le_bytes();
            element.copy_from_slice(&value[..element.len()]);
        }
    }

    /// A port write by a CPU.
    pub fn port_write(&self, port: u16, width: Width, value: u32) {
        let value = value & width.all_ones() as u32;
        if self.config_write(port, width, value) {
            return;
        }
        let map = self.0.map.load();
        if let Some(claim) = map.port(port)
            && width <= claim.widest
        {
            if let Some(io) = claim.cell.lock().as_port_io() {
                io.port_write(claim.port(port), width, value);
            }
            return;
        }
        if width == Width::Byte {
            tracing::trace!(port = format_args!("{port:#x}"), value, "write to a port that no device claims");
            return;
        }
        for i in 0..width.bytes() as u16 {
            self.port_write(port.wrapping_add(i), Width::Byte, value >> (8 * i) & 0xff);
        }
    }

    /// A read at a physical address where no memory answers.
    pub fn mmio_read(&self, address: u64, width: Width) -> u64 {
        let map = self.0.map.load();
        let Some(claim) = map.region(address) else {
            tracing::trace!(address = format_args!("{address:#x}"), "read of an address that nothing answers");
            return width.all_ones();
        };
        let mut device = claim.cell.lock();
        match device.as_mmio() {
            Some(mmio) => mmio.mmio_read(claim.region, address - claim.base, width) & width.all_ones(),
            None => width.all_ones(),
        }
    }

    /// A write at a physical address where no memory answers.
    pub fn mmio_write(&self, address: u64, width: Width, value: u64) {
        let map = self.0.map.load();
        let Some(claim) = map.region(address) else {
            tracing::trace!(address = format_args!("{address:#x}"), "write to an address that nothing answers");
            return;
        };
        if let Some(mmio) = claim.cell.lock().as_mmio() {
            mmio.mmio_write(claim.region, address - claim.base, width, value & width.all_ones());
        }
    }

    /// The PCI address register (CF8h), which is saved with the machine.
    pub fn config_address(&self) -> u32 {
        self.0.config_address.load(Ordering::Acquire)
    }

    /// Restores the PCI address register.
    pub fn set_config_address(&self, value: u32) {
        self.0.config_address.store(value & 0x80ff_fffc, Ordering::Release);
    }

    fn selected(&self) -> Option<(PciAddress, u8)> {
        let address = self.config_address();
        let enabled = address & 0x8000_0000 != 0 && address & 0x00ff_0000 == 0;
        let at = PciAddress { device: (address >> 11 & 31) as u8, function: (address >> 8 & 7) as u8 };
        enabled.then_some((at, (address & 0xfc) as u8))
    }

    fn config_read(&self, port: u16, width: Width) -> Option<u32> {
        if port == CONFIG_ADDRESS && width == Width::Dword {
            return Some(self.config_address());
        }
        let inside = port.checked_sub(CONFIG_DATA).filter(|inside| *inside < 4)?;
        let ones = width.all_ones() as u32;
        let Some((at, register)) = self.selected() else { return Some(ones) };
        let cell = self.0.setup.lock().pci.function(at).cloned();
        let value = cell.and_then(|cell| cell.lock().as_pci().map(|pci| pci.config().read(register + inside as u8, width)));
        Some(value.unwrap_or(ones))
    }

    fn config_write(&self, port: u16, width: Width, value: u32) -> bool {
        if port == CONFIG_ADDRESS && width == Width::Dword {
            self.set_config_address(value);
            return true;
        }
        let Some(inside) = port.checked_sub(CONFIG_DATA).filter(|inside| *inside < 4) else { return false };
        let Some((at, register)) = self.selected() else { return true };
        let offset = register + inside as u8;
        let mut setup = self.0.setup.lock();
        let Some(cell) = setup.pci.function(at).cloned() else { return true };
        let moved = {
            let mut device = cell.lock();
            let Some(pci) = device.as_pci() else { return true };
            let before = decoding(pci.config());
            pci.config_mut().write(offset, width, value);
            pci.config_written(offset, width.bytes() as u8);
            before != decoding(pci.config())
        };
        if moved {
            self.rebuild_with(&mut setup);
        }
        true
    }

    /// The claimed ports and regions with their devices, for `info mtree`.
    pub fn claims(&self) -> Vec<(String, u64, u64, String)> {
        let map = self.0.map.load();
        let ports =
            map.ports.iter().map(|c| ("io".to_owned(), u64::from(c.base), u64::from(c.end) - 1, c.cell.name().to_owned()));
        let regions = map.regions.iter().map(|c| ("mem".to_owned(), c.base, c.base + c.len - 1, c.cell.name().to_owned()));
        ports.chain(regions).collect()
    }

    /// The functions on the PCI bus, for `info pci`.
    pub fn pci_functions(&self) -> Vec<(PciAddress, Arc<DeviceCell>)> {
        self.0.setup.lock().pci.functions().map(|(at, cell)| (at, Arc::clone(cell))).collect()
    }
}

impl PortClaim {
    fn port(&self, port: u16) -> Port {
        match self.bar {
            None => Port::Fixed(port),
            Some(index) => Port::Bar { index, offset: port - self.base },
        }
    }
}

/// What decides where a function answers.
fn decoding(config: &crate::PciConfig) -> (bool, Vec<(u8, u64)>) {
    (config.is_bus_master(), config.mapped().map(|(index, base, _)| (index, base)).collect())
}

impl std::fmt::Debug for Router {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Router({} claims)", self.claims().len())
    }
}
