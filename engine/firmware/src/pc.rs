//! Everything that SeaBIOS on a PC is told: the fw_cfg items and files, and the CMOS bytes.
//! See: QEMU `docs/specs/fw_cfg` (item numbers), SeaBIOS `docs/Runtime_config.md` (files).

use crate::e820::{PCI_HOLE, RamLayout};
use crate::linux::KernelBoot;
use engine_bus::FirmwareFile;

/// What kinds of device to boot from, in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootDevice {
    /// `a`.
    Floppy,
    /// `c`.
    Disk,
    /// `d`.
    Cdrom,
    /// `n`.
    Network,
}

/// What the firmware is told about a PC.
#[derive(Debug)]
pub struct PcFirmware<'a> {
    /// Memory.
    pub ram: RamLayout,
    /// CPUs present at power-on.
    pub cpus: u16,
    /// How they are arranged: sockets, cores in each, threads in each core.
    pub topology: (u32, u32, u32),
    /// `-boot order=`.
    pub boot_order: &'a [BootDevice],
    /// IDE drives present: channel, unit, whether a CD-ROM.
    pub ide: &'a [(u8, u8, bool)],
    /// Floppy drives' CMOS types (0 none, 4 is 1.44 MB, 5 is 2.88 MB).
    pub floppies: [u8; 2],
    /// `-boot menu=on`: how long the boot menu prompt waits, in milliseconds.
    pub menu_wait_millis: Option<u16>,
    /// No display: SeaBIOS then also uses the serial port as its console.
    pub serial_console: bool,
    /// Direct kernel boot.
    pub kernel: Option<KernelBoot>,
}

mod key {
    pub const UUID: u16 = 0x02;
    pub const RAM_SIZE: u16 = 0x03;
    pub const NO_GRAPHICS: u16 = 0x04;
    pub const CPUS: u16 = 0x05;
    pub const NUMA: u16 = 0x0d;
    pub const BOOT_MENU: u16 = 0x0e;
    pub const MAX_CPUS: u16 = 0x0f;
    pub const IRQ0_OVERRIDE: u16 = 0x8002;
}

const KERNEL_ROM: &str = "kernel-boot.rom";

/// The fw_cfg items and files.
pub fn firmware_files(pc: PcFirmware<'_>) -> Vec<FirmwareFile> {
    let item = |key, bytes: &[u8]| FirmwareFile::Item { key, bytes: bytes.to_vec() };
    let named = |name: &str, bytes: Vec<u8>| FirmwareFile::Named { name: name.to_owned(), bytes };
    let mut files = vec![
        item(key::UUID, &[0; 16]),
        item(key::RAM_SIZE, &(pc.ram.below_4g + pc.ram.above_4g).to_le_bytes()),
        item(key::NO_GRAPHICS, &u16::from(pc.serial_console).to_le_bytes()),
        item(key::CPUS, &pc.cpus.to_le_bytes()),
        item(key::MAX_CPUS, &pc.cpus.to_le_bytes()),
        item(key::NUMA, &[0; 8]),
        item(key::BOOT_MENU, &u16::from(pc.menu_wait_millis.is_some()).to_le_bytes()),
        // IRQ 0 of the ISA bus arrives at IOAPIC pin 2.
        item(key::IRQ0_OVERRIDE, &1_u32.to_le_bytes()),
        named("etc/e820", pc.ram.e820()),
        named("bootorder", boot_order(&pc)),
    ];
    files.extend(crate::acpi::files(pc.cpus, PCI_HOLE as u32));
    let (sockets, cores, threads) = pc.topology;
    files.extend(crate::smbios::files(pc.ram, sockets, cores, threads));
    if let Some(wait) = pc.menu_wait_millis {
        files.push(named("etc/boot-menu-wait", u32::from(wait).to_le_bytes().to_vec()));
    }
    if pc.serial_console {
        files.push(named("etc/sercon-port", 0x3f8_u16.to_le_bytes().to_vec()));
    }
    if let Some(kernel) = pc.kernel {
        files.push(named(&format!("genroms/{KERNEL_ROM}"), kernel.rom));
        files.extend(kernel.files);
    }
    files
}

/// SeaBIOS' boot order: Open Firmware device paths, one a line, NUL at the end.
fn boot_order(pc: &PcFirmware<'_>) -> Vec<u8> {
    let mut lines = Vec::new();
    if pc.kernel.is_some() {
        lines.push(format!("/rom@genroms/{KERNEL_ROM}"));
    }
    for device in pc.boot_order {
        match device {
            BootDevice::Floppy => lines.push("/pci@i0cf8/isa@1/fdc@03f0/floppy@0".to_owned()),
            BootDevice::Network => lines.push("/pci@i0cf8/ethernet@3/ethernet-phy@0".to_owned()),
            BootDevice::Disk | BootDevice::Cdrom => {
                let wanted = pc.ide.iter().filter(|(_, _, cdrom)| *cdrom == (*device == BootDevice::Cdrom));
                lines.extend(wanted.map(|(channel, unit, _)| format!("/pci@i0cf8/ide@1,1/drive@{channel}/disk@{unit}")));
            }
        }
    }
    let mut bytes = lines.join("\n").into_bytes();
    bytes.push(0);
    bytes
}

/// The CMOS bytes that the board sets: memory sizes, drives, CPU count, boot order.
pub fn cmos(pc: &PcFirmware<'_>) -> Vec<(u8, u8)> {
    let mut bytes = Vec::new();
    let mut word = |index: u8, value: u64| bytes.extend([(index, value as u8), (index + 1, (value >> 8) as u8)]);
    let below = pc.ram.below_4g;
    word(0x15, 640);
    let extended_kib = (below.saturating_sub(1 << 20) / 1024).min(0xffff);
    word(0x17, extended_kib);
    word(0x30, extended_kib);
    word(0x34, (below.saturating_sub(16 << 20) / 65536).min(0xffff));
    word(0x5b, pc.ram.above_4g / 65536);
    bytes.push((0x5d, (pc.ram.above_4g >> 32) as u8));
    bytes.push((0x5f, pc.cpus.saturating_sub(1) as u8));
    bytes.push((0x10, pc.floppies[0] << 4 | pc.floppies[1]));
    let floppies = pc.floppies.iter().filter(|kind| **kind != 0).count() as u8;
    // Equipment: floppies present and their number less one, FPU, PS/2 mouse.
    bytes.push((0x14, 0x06 | if floppies > 0 { 1 | (floppies - 1) << 6 } else { 0 }));
    let code = |device: Option<&BootDevice>| match device {
        Some(BootDevice::Floppy) => 1,
        Some(BootDevice::Disk) => 2,
        Some(BootDevice::Cdrom) => 3,
        Some(BootDevice::Network) => 4,
        None => 0,
    };
    let order: Vec<u8> = (0..3).map(|n| code(pc.boot_order.get(n))).collect();
    // Bit 0 of 38h skips the check of a floppy's boot signature.
    bytes.push((0x3d, order[1] << 4 | order[0]));
    bytes.push((0x38, order[2] << 4 | 1));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cdrom_comes_first_when_asked_for() {
        let pc = PcFirmware {
            ram: RamLayout::of(512 << 20),
            cpus: 2,
            topology: (1, 2, 1),
            boot_order: &[BootDevice::Cdrom, BootDevice::Disk],
            ide: &[(0, 0, false), (1, 0, true)],
            floppies: [0, 0],
            menu_wait_millis: None,
            serial_console: false,
            kernel: None,
        };
        let text = String::from_utf8(boot_order(&pc)).unwrap();
        assert_eq!(text, "/pci@i0cf8/ide@1,1/drive@1/disk@0\n/pci@i0cf8/ide@1,1/drive@0/disk@0\0");
        assert!(cmos(&pc).contains(&(0x3d, 0x23)) && cmos(&pc).contains(&(0x5f, 1)));
    }
}
