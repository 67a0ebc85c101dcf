//! ACPI tables of the PC board: FACS, DSDT, FADT, MADT, HPET, RSDT, RSDP. The BIOS decides where they go, so they travel as
//! blobs with a loader script (`etc/table-loader`) that patches pointers and checksums. Interrupt routing is written down as
//! SeaBIOS and OVMF program it (PIRQA, B → IRQ 10; C, D → IRQ 11). Where they put the PIIX4's power management (600h the one,
//! B000h the other) is filled in when they read the tables, which both do afterwards.
//! See: ACPI Specification 6.5 (tables, AML), QEMU `docs/specs/acpi_table_loader` facts: 128-byte commands.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate,
    Scope,
};
use acpi_tables::sdt::Sdt;
use engine_bus::FirmwareFile;

const OEM: [u8; 6] = *b"BELGLS";
const OEM_TABLE: [u8; 8] = *b"BELLGLAS";

/// Where a BIOS puts power management.
const PM_BASE: u32 = 0x600;
/// Under this name the PIIX4 says where it is.
const PM_BASE_NUMBER: &str = "piix4-pm.base";
/// The registers' distances from the base, and where their addresses stand in the FADT: events, control, timer.
const PM_REGISTERS: [(u32, usize); 3] = [(0, 56), (4, 64), (8, 76)];
const GPE_BASE: u32 = 0xafe0;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
const HPET: u32 = 0xfed0_0000;
/// The HPET's capabilities: vendor 8086h, 64-bit counter, legacy routing, three timers, revision 1.
const HPET_ID: u32 = 0x8086_a201;
const SCI: u8 = 9;
/// ISA IRQ of PIRQA to PIRQD, as SeaBIOS programs the PIIX3.
const PIRQ: [u32; 4] = [10, 10, 11, 11];

const TABLES: &str = "etc/acpi/tables";
const RSDP: &str = "etc/acpi/rsdp";

/// The three fw_cfg files that carry the tables: the tables, the RSDP, the loader script.
/// `pci_hole` is the first address that PCI devices below 4 GiB may have.
pub fn files(cpus: u16, pci_hole: u32) -> Vec<FirmwareFile> {
    let mut blob = Blob::default();
    let facs = blob.append(&facs());
    let dsdt = blob.append(dsdt(cpus, pci_hole).as_slice());
    let fadt = blob.append(fadt().as_slice());
    blob.point(fadt + 36, facs);
    blob.point(fadt + 40, dsdt);
    blob.checksum(fadt);
    let tables = [fadt, blob.append(madt(cpus).as_slice()), blob.append(hpet().as_slice())];
    let rsdt = blob.append(Sdt::new(*b"RSDT", 36 + 4 * tables.len() as u32, 1, OEM, OEM_TABLE, 1).as_slice());
    for (index, table) in tables.into_iter().enumerate() {
        blob.point(rsdt + 36 + 4 * index, table);
    }
    blob.checksum(rsdt);

    let mut rsdp = b"RSD PTR \0".to_vec();
    rsdp.extend(OEM);
    rsdp.push(0); // revision 0: 20 bytes, RSDT
    rsdp.extend((rsdt as u32).to_le_bytes());
    let mut script = vec![allocate(RSDP, 16, Zone::FSegment), allocate(TABLES, 64, Zone::High)];
    script.extend(blob.script);
    script.push(add_pointer(RSDP, TABLES, 16));
    script.push(add_checksum(RSDP, 8, 0, 20));
    let named = |name: &str, bytes| FirmwareFile::Named { name: name.to_owned(), bytes };
    let places = PM_REGISTERS.iter().map(|(distance, at)| (fadt + at, *distance)).collect();
    let tables = FirmwareFile::Filled { name: TABLES.to_owned(), bytes: blob.bytes, number: PM_BASE_NUMBER, places };
    vec![tables, named(RSDP, rsdp), named("etc/table-loader", script.concat())]
}

#[derive(Default)]
struct Blob {
    bytes: Vec<u8>,
    script: Vec<[u8; 128]>,
}

impl Blob {
    fn append(&mut self, table: &[u8]) -> usize {
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        self.bytes.extend(table);
        self.bytes.len() - table.len()
    }

    /// The four bytes at `at` become the address of offset `to`: the offset now, the rest when it is loaded.
    fn point(&mut self, at: usize, to: usize) {
        self.bytes[at..at + 4].copy_from_slice(&(to as u32).to_le_bytes());
        self.script.push(add_pointer(TABLES, TABLES, at));
    }

    /// The table at `at` gets a new checksum when it is loaded.
    fn checksum(&mut self, at: usize) {
        let len = u32::from_le_bytes([self.bytes[at + 4], self.bytes[at + 5], self.bytes[at + 6], self.bytes[at + 7]]);
        self.bytes[at + 9] = 0;
        self.script.push(add_checksum(TABLES, at + 9, at, len as usize));
    }
}

#[derive(Clone, Copy)]
enum Zone {
    High = 1,
    FSegment = 2,
}

fn command(number: u32, fields: &[(usize, &[u8])]) -> [u8; 128] {
    let mut command = [0; 128];
    command[..4].copy_from_slice(&number.to_le_bytes());
    for (at, bytes) in fields {
        command[4 + at..4 + at + bytes.len()].copy_from_slice(bytes);
    }
    command
}

fn allocate(file: &str, align: u32, zone: Zone) -> [u8; 128] {
    command(1, &[(0, file.as_bytes()), (56, &align.to_le_bytes()), (60, &[zone as u8])])
}

fn add_pointer(in_file: &str, to_file: &str, at: usize) -> [u8; 128] {
    command(2, &[(0, in_file.as_bytes()), (56, to_file.as_bytes()), (112, &(at as u32).to_le_bytes()), (116, &[4])])
}

fn add_checksum(file: &str, at: usize, start: usize, len: usize) -> [u8; 128] {
    let numbers = [at, start, len].map(|number| (number as u32).to_le_bytes()).concat();
    command(3, &[(0, file.as_bytes()), (56, &numbers)])
}

fn facs() -> Vec<u8> {
    let mut facs = b"FACS".to_vec();
    facs.extend(64_u32.to_le_bytes());
    facs.resize(64, 0);
    facs
}

/// Revision 1 (116 bytes), like the board's age.
fn fadt() -> Sdt {
    let mut fadt = Sdt::new(*b"FACP", 116, 1, OEM, OEM_TABLE, 1);
    fadt.write_u16(46, u16::from(SCI));
    fadt.write_u32(48, 0xb2); // SMI command port
    fadt.write_u8(52, 0xf1); // ACPI enable
    fadt.write_u8(53, 0xf0); // ACPI disable
    for (distance, at) in PM_REGISTERS {
        fadt.write_u32(at, PM_BASE + distance);
    }
    fadt.write_u32(80, GPE_BASE);
    fadt.write_u8(88, 4); // lengths: PM1 event, PM1 control, PM timer, GPE0
    fadt.write_u8(89, 2);
    fadt.write_u8(91, 4);
    fadt.write_u8(92, 4);
    fadt.write_u16(96, 0xfff); // no C2, no C3
    fadt.write_u16(98, 0xfff);
    fadt.write_u8(108, 0x32); // century in CMOS
    // WBINVD works, C1 works, no sleep button, RTC cannot wake from S4
    fadt.write_u32(112, 1 << 0 | 1 << 2 | 1 << 5 | 1 << 7);
    fadt
}

fn madt(cpus: u16) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", 44, 1, OEM, OEM_TABLE, 1);
    madt.write_u32(36, LOCAL_APIC);
    madt.write_u32(40, 1); // there is a PIC pair as well
    for cpu in 0..cpus.min(255) as u8 {
        madt.append_slice(&[0, 8, cpu, cpu, 1, 0, 0, 0]);
    }
    madt.append_slice(&[[1, 12, 0, 0].as_slice(), &IO_APIC.to_le_bytes(), &[0; 4]].concat());
    madt.append_slice(&[2, 10, 0, 0, 2, 0, 0, 0, 0, 0]); // IRQ 0 is pin 2
    for irq in [5, SCI, 10, 11] {
        madt.append_slice(&[2, 10, 0, irq, irq, 0, 0, 0, 0x0d, 0]); // active high, level triggered
    }
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]); // NMI at LINT1 of every CPU
    madt
}

fn hpet() -> Sdt {
    let mut hpet = Sdt::new(*b"HPET", 56, 1, OEM, OEM_TABLE, 1);
    hpet.write_u32(36, HPET_ID);
    hpet.write_u64(44, u64::from(HPET));
    hpet
}

fn dsdt(cpus: u16, pci_hole: u32) -> Sdt {
    let mut aml = Vec::new();
    let scope = Path::new("_SB_");
    let pci = pci_root(pci_hole);
    aml.extend(Scope::raw(scope, pci));
    let processors: Vec<u8> = (0..cpus.min(255)).flat_map(processor).collect();
    aml.extend(Scope::raw(Path::new("_SB_"), processors));
    // Sleep type 0 is "off" on a PIIX4.
    let zero = 0_u8;
    Name::new(Path::new("_S5_"), &Package::new(vec![&zero, &zero, &zero, &zero])).to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 1, OEM, OEM_TABLE, 1);
    dsdt.append_slice(&aml);
    dsdt
}

fn bytes_of(object: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    object.to_aml_bytes(&mut bytes);
    bytes
}

fn processor(number: u16) -> Vec<u8> {
    let path = Path::new(&format!("C{number:03X}"));
    let hid = Name::new(Path::new("_HID"), &"ACPI0007");
    let uid = Name::new(Path::new("_UID"), &number);
    bytes_of(&Device::new(path, vec![&hid, &uid]))
}

fn pci_root(pci_hole: u32) -> Vec<u8> {
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0A03"));
    let address = Name::new(Path::new("_ADR"), &0_u8);
    let uid = Name::new(Path::new("_UID"), &0_u8);
    let buses = AddressSpace::new_bus_number(0_u16, 0xff);
    let config = IO::new(0xcf8, 0xcf8, 1, 8);
    let low_ports = AddressSpace::new_io(0_u16, 0xcf7, None);
    let high_ports = AddressSpace::new_io(0xd00_u16, 0xffff, None);
    let vga = AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, 0xa_0000_u32, 0xb_ffff, None);
    let hole = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, pci_hole, IO_APIC - 1, None);
    let resources = ResourceTemplate::new(vec![&buses, &config, &low_ports, &high_ports, &vga, &hole]);
    let resources = Name::new(Path::new("_CRS"), &resources);
    let routes = Routes;
    let routing = Name::new(Path::new("_PRT"), &routes);
    let (isa, hpet) = (RawAml(isa_bridge()), RawAml(hpet_device()));
    bytes_of(&Device::new(Path::new("PCI0"), vec![&hid, &address, &uid, &resources, &routing, &isa, &hpet]))
}

struct RawAml(Vec<u8>);

impl Aml for RawAml {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// `_PRT`: for each device and pin the interrupt, without link devices, since the BIOS sets the routes once.
struct Routes;

impl Aml for Routes {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        let mut table = acpi_tables::aml::PackageBuilder::new();
        for device in 1..32_u32 {
            for pin in 0..4_u32 {
                let route = (device << 16 | 0xffff, pin as u8, 0_u8, PIRQ[((device - 1 + pin) & 3) as usize]);
                table.add_element(&Package::new(vec![&route.0, &route.1, &route.2, &route.3]));
            }
        }
        table.to_aml_bytes(sink);
    }
}

fn isa_device(name: &str, id: &str, resources: Vec<&dyn Aml>) -> Vec<u8> {
    let hid = Name::new(Path::new("_HID"), &EISAName::new(id));
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources));
    bytes_of(&Device::new(Path::new(name), vec![&hid, &resources]))
}

fn isa_bridge() -> Vec<u8> {
    let irq = |number| Interrupt::new(true, true, false, false, number);
    let port = |base, len| IO::new(base, base, 1, len);
    let keyboard = isa_device("KBD_", "PNP0303", vec![&port(0x60, 1), &port(0x64, 1), &irq(1)]);
    let mouse = isa_device("MOU_", "PNP0F13", vec![&irq(12)]);
    let clock = isa_device("RTC_", "PNP0B00", vec![&port(0x70, 8), &irq(8)]);
    let serial: Vec<u8> = [(1_u8, 0x3f8, 4), (2, 0x2f8, 3)]
        .into_iter()
        .flat_map(|(number, base, line)| {
            let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
            let uid = Name::new(Path::new("_UID"), &number);
            let (port, irq) = (port(base, 8), irq(line));
            let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&port, &irq]));
            bytes_of(&Device::new(Path::new(&format!("COM{number}")), vec![&hid, &uid, &resources]))
        })
        .collect();
    let address = Name::new(Path::new("_ADR"), &0x0001_0000_u32);
    let inside = RawAml([keyboard, mouse, clock, serial].concat());
    bytes_of(&Device::new(Path::new("ISA_"), vec![&address, &inside]))
}

fn hpet_device() -> Vec<u8> {
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0103"));
    let uid = Name::new(Path::new("_UID"), &0_u8);
    let resources = Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&Memory32Fixed::new(false, HPET, 0x400)]));
    bytes_of(&Device::new(Path::new("HPET"), vec![&hid, &uid, &resources]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(file: &FirmwareFile) -> &[u8] {
        match file {
            FirmwareFile::Named { bytes, .. } | FirmwareFile::Filled { bytes, .. } | FirmwareFile::Item { bytes, .. } => bytes,
        }
    }

    #[test]
    fn every_table_that_is_not_patched_sums_to_zero() {
        for table in [dsdt(4, 0xe000_0000), madt(4), hpet()] {
            let sum = table.as_slice().iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0);
        }
        assert_eq!(madt(4).len(), 44 + 4 * 8 + 12 + 5 * 10 + 6);
    }

    #[test]
    fn the_loader_script_allocates_before_it_points() {
        let files = files(1, 0xe000_0000);
        let commands: Vec<u32> =
            bytes(&files[2]).chunks(128).map(|command| u32::from_le_bytes(command[..4].try_into().unwrap())).collect();
        assert_eq!(commands, [1, 1, 2, 2, 3, 2, 2, 2, 3, 2, 3]);
        assert_eq!(bytes(&files[1]).len(), 20);
    }

    /// `iasl` (package acpica-tools) is the judge of AML; where it is missing, this says so.
    #[test]
    fn iasl_disassembles_the_dsdt() {
        let folder = std::env::temp_dir().join(format!("bellglass-acpi-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("dsdt.aml"), dsdt(2, 0xe000_0000).as_slice()).unwrap();
        let run = std::process::Command::new("iasl").args(["-d", "dsdt.aml"]).current_dir(&folder).output();
        let text = std::fs::read_to_string(folder.join("dsdt.dsl"));
        std::fs::remove_dir_all(&folder).unwrap();
        match run {
            Err(_) => println!("skipped: iasl is not installed"),
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                let text = text.unwrap();
                for wanted in ["Device (PCI0)", "_PRT", "PNP0103", "Name (_S5", "ACPI0007"] {
                    assert!(text.contains(wanted), "{wanted} in {text}");
                }
            }
        }
    }
}
