//! SMBIOS tables: what a guest's `dmidecode` shows. SeaBIOS adds its own type 0 (BIOS information) and the final address.
//! See: DSP0134 "System Management BIOS Reference Specification" 2.8.

use crate::e820::RamLayout;
use engine_bus::FirmwareFile;

const VERSION: (u8, u8) = (2, 8);
const MANUFACTURER: &str = "Bellglass";
const PRODUCT: &str = "Standard PC (i440FX + PIIX)";

/// The two fw_cfg files: the anchor (entry point) and the tables.
pub fn files(ram: RamLayout, sockets: u32, cores: u32, threads: u32) -> Vec<FirmwareFile> {
    let mut tables = Tables::default();
    tables.system();
    tables.chassis();
    for socket in 0..sockets.min(64) {
        tables.processor(socket as u16, cores, threads);
    }
    tables.memory(ram);
    tables.structure(32, 0x2000, &[0; 7], &[]); // boot status: no errors
    tables.structure(127, 0x7f00, &[], &[]);
    let named = |name: &str, bytes| FirmwareFile::Named { name: name.to_owned(), bytes };
    vec![named("etc/smbios/smbios-anchor", tables.anchor()), named("etc/smbios/smbios-tables", tables.bytes)]
}

#[derive(Default)]
struct Tables {
    bytes: Vec<u8>,
    count: u16,
    largest: u16,
}

impl Tables {
    /// Appends a structure: its formatted area after the 4-byte header, then its strings.
    fn structure(&mut self, kind: u8, handle: u16, formatted: &[u8], strings: &[&str]) {
        let start = self.bytes.len();
        self.bytes.extend([kind, 4 + formatted.len() as u8]);
        self.bytes.extend(handle.to_le_bytes());
        self.bytes.extend(formatted);
        for text in strings {
            self.bytes.extend(text.bytes());
            self.bytes.push(0);
        }
        if strings.is_empty() {
            self.bytes.push(0);
        }
        self.bytes.push(0);
        self.count += 1;
        self.largest = self.largest.max((self.bytes.len() - start) as u16);
    }

    fn system(&mut self) {
        // Manufacturer, product, version, serial number; UUID; wake-up by power switch; SKU, family.
        let formatted = [&[1, 2, 0, 0][..], &[0; 16], &[6, 0, 0]].concat();
        self.structure(1, 0x100, &formatted, &[MANUFACTURER, PRODUCT]);
    }

    fn chassis(&mut self) {
        // Manufacturer; type "other"; no version, serial, asset tag; boot-up, supply and thermal state safe; security none.
        let formatted = [&[1, 1, 0, 0, 0, 3, 3, 3, 2][..], &[0; 4], &[0, 0, 0, 0, 0]].concat();
        self.structure(3, 0x300, &formatted, &[MANUFACTURER]);
    }

    fn processor(&mut self, socket: u16, cores: u32, threads: u32) {
        let socket_name = format!("CPU {socket}");
        let (cores, threads) = (cores.min(255) as u8, (cores * threads).min(255) as u8);
        let mut formatted = vec![1, 3, 1, 2]; // socket name, central processor, family other, manufacturer
        formatted.extend([0; 8]); // processor id: the guest asks CPUID
        formatted.extend([0, 0, 0, 0]); // version, voltage, external clock
        formatted.extend(2000_u16.to_le_bytes()); // maximum and current speed, MHz
        formatted.extend(2000_u16.to_le_bytes());
        formatted.extend([0x41, 1]); // populated and enabled; upgrade other
        formatted.extend([0xff; 6]); // no cache information
        formatted.extend([0, 0, 0, cores, cores, threads, 2, 0, 1, 0]); // …; characteristics unknown; family 2
        self.structure(4, 0x400 + socket, &formatted, &[&socket_name, MANUFACTURER]);
    }

    fn memory(&mut self, ram: RamLayout) {
        let bytes = ram.below_4g + ram.above_4g;
        // Array: other location, system memory, multi-bit ECC unknown, capacity in KiB, no error handle, one device.
        let capacity = u32::try_from(bytes / 1024).ok().filter(|kib| *kib < 0x8000_0000);
        let mut array = vec![1, 3, 6];
        array.extend(capacity.unwrap_or(0x8000_0000).to_le_bytes());
        array.extend(0xfffe_u16.to_le_bytes());
        array.extend(1_u16.to_le_bytes());
        array.extend(if capacity.is_some() { 0 } else { bytes }.to_le_bytes());
        self.structure(16, 0x1000, &array, &[]);

        let mebibytes = bytes >> 20;
        let small = u16::try_from(mebibytes).ok().filter(|mib| *mib < 0x7fff);
        let mut device = Vec::new();
        for word in [0x1000_u16, 0xfffe, 0xffff, 0xffff, small.unwrap_or(0x7fff)] {
            device.extend(word.to_le_bytes());
        }
        device.extend([9, 0, 1, 0, 7]); // DIMM; no set; locator; no bank; RAM
        device.extend(2_u16.to_le_bytes()); // detail: other
        device.extend([0, 0, 2, 0, 0, 0, 0]); // speed; manufacturer, serial, asset tag, part number; attributes
        device.extend(if small.is_some() { 0 } else { mebibytes as u32 }.to_le_bytes());
        device.extend([0; 8]); // configured speed, voltages
        self.structure(17, 0x1100, &device, &["DIMM 0", MANUFACTURER]);

        let ranges = [(0_u64, ram.below_4g), (1 << 32, ram.above_4g)];
        for (index, (base, len)) in ranges.into_iter().filter(|(_, len)| *len > 0).enumerate() {
            let last = base + len - 1;
            let mut mapped = Vec::new();
            if last >> 42 == 0 {
                mapped.extend(((base / 1024) as u32).to_le_bytes());
                mapped.extend(((last / 1024) as u32).to_le_bytes());
            } else {
                mapped.extend([0xff; 8]);
            }
            mapped.extend(0x1000_u16.to_le_bytes());
            mapped.push(1);
            mapped.extend(base.to_le_bytes());
            mapped.extend(last.to_le_bytes());
            self.structure(19, 0x1300 + index as u16, &mapped, &[]);
        }
    }

    /// The entry point, 31 bytes; the BIOS fills the address in and renews the checksums.
    fn anchor(&self) -> Vec<u8> {
        let mut anchor = b"_SM_".to_vec();
        anchor.extend([0, 31, VERSION.0, VERSION.1]);
        anchor.extend(self.largest.to_le_bytes());
        anchor.extend([0; 6]);
        anchor.extend(b"_DMI_");
        anchor.push(0);
        anchor.extend((self.bytes.len() as u16).to_le_bytes());
        anchor.extend([0; 4]);
        anchor.extend(self.count.to_le_bytes());
        anchor.push(VERSION.0 << 4 | VERSION.1);
        anchor
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_structure_can_be_walked_to_the_end() {
        let files = files(RamLayout::of(6 << 30), 2, 2, 1);
        let FirmwareFile::Named { bytes: tables, .. } = &files[1] else { panic!("a file") };
        let FirmwareFile::Named { bytes: anchor, .. } = &files[0] else { panic!("a file") };
        assert_eq!(anchor.len(), 31);
        let (mut at, mut kinds) = (0, Vec::new());
        while at < tables.len() {
            kinds.push(tables[at]);
            at += usize::from(tables[at + 1]);
            at += tables[at..].windows(2).position(|pair| pair == [0, 0]).unwrap() + 2;
        }
        assert_eq!(kinds, [1, 3, 4, 4, 16, 17, 19, 19, 32, 127]);
        assert_eq!(u16::from_le_bytes([anchor[28], anchor[29]]), 10);
    }
}
