//! Looks into a machine for the monitor: which memory is where, and what a virtual address means.

use engine_cpu::x86::X86State;
use engine_memory::GuestMemory;

/// A line of `info mtree`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRegionInfo {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
    /// `ram`, `rom`, `i/o`.
    pub kind: &'static str,
    /// The layer's or the device's name.
    pub name: String,
}

/// A function on the PCI bus, for `info pci`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciFunctionInfo {
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
    /// Vendor identifier.
    pub vendor: u16,
    /// Device identifier.
    pub id: u16,
    /// Base class, subclass, programming interface: 24 bits.
    pub class: u32,
    /// The device's name on this board.
    pub name: String,
}

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Walks the page tables of `state` without touching accessed bits (SDM volume 3, chapter 4): the physical address of a
/// linear one; `None` when it is not mapped.
pub fn linear_to_physical(state: &X86State, memory: &GuestMemory, linear: u64) -> Option<u64> {
    let (paging, pae, long) = (state.cr0 >> 31 & 1 != 0, state.cr4 >> 5 & 1 != 0, state.msr.efer >> 10 & 1 != 0);
    if !paging {
        return Some(linear & 0xffff_ffff);
    }
    if !pae {
        return walk_32_bit(state, memory, linear as u32);
    }
    let entry = |table: u64, index: u64| {
        let entry = u64::from_le_bytes(memory.read_array((table & ADDRESS) + 8 * (index & 511)).ok()?);
        (entry & PRESENT != 0).then_some(entry)
    };
    let third = if long {
        let top = entry(state.cr3, linear >> 39)?;
        let third = entry(top, linear >> 30)?;
        if third & LARGE != 0 {
            return Some(third & ADDRESS & !0x3fff_ffff | linear & 0x3fff_ffff);
        }
        third
    } else {
        Some(state.pdptes[(linear >> 30 & 3) as usize]).filter(|entry| entry & PRESENT != 0)?
    };
    let second = entry(third, linear >> 21)?;
    if second & LARGE != 0 {
        return Some(second & ADDRESS & !0x1f_ffff | linear & 0x1f_ffff);
    }
    let first = entry(second, linear >> 12)?;
    Some(first & ADDRESS | linear & 0xfff)
}

fn walk_32_bit(state: &X86State, memory: &GuestMemory, linear: u32) -> Option<u64> {
    let entry = |table: u64, index: u32| {
        let entry = u64::from(u32::from_le_bytes(memory.read_array((table & 0xffff_f000) + 4 * u64::from(index & 1023)).ok()?));
        (entry & PRESENT != 0).then_some(entry)
    };
    let directory = entry(state.cr3, linear >> 22)?;
    if directory & LARGE != 0 && state.cr4 & 0x10 != 0 {
        // PSE-36: bits 13–20 of the entry are bits 32–39 of the address.
        let high = (directory >> 13 & 0xff) << 32;
        return Some(high | directory & 0xffc0_0000 | u64::from(linear & 0x3f_ffff));
    }
    let table = entry(directory, linear >> 12)?;
    Some(table & 0xffff_f000 | u64::from(linear & 0xfff))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_memory::{Contents, Layer};

    #[test]
    fn a_four_level_walk_finds_small_and_large_pages() {
        let memory = GuestMemory::new();
        let ram = memory.add_block("ram", 0x10000).unwrap();
        let contents = Contents::Ram(ram, 0);
        memory.set_layer(Layer { name: "ram".into(), priority: 0, base: 0, len: 0x10000, contents });
        let put = |at: u64, value: u64| memory.write(at, &value.to_le_bytes()).unwrap();
        put(0x1000, 0x2003);
        put(0x2000, 0x3003);
        put(0x3000, 0x4003);
        put(0x3008, 0x4000_0083);
        put(0x4008, 0x7_7003);
        let mut state = X86State::after_reset(0);
        state.cr0 = 0x8000_0001;
        state.cr4 = 0x20;
        state.msr.efer = 0x500;
        state.cr3 = 0x1000;
        assert_eq!(linear_to_physical(&state, &memory, 0x1234), Some(0x7_7234));
        assert_eq!(linear_to_physical(&state, &memory, 0x21_2345), Some(0x4001_2345));
        assert_eq!(linear_to_physical(&state, &memory, 0x5000), None);
    }
}
