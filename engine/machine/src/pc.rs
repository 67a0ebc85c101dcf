//! The PC: i440FX host bridge, PIIX3 and what is around them. Which parts there are, where, and what the BIOS is told.

use crate::machine::MachineError;
use crate::spec::{Display, DriveKind, DriveSlot, Spec};
use engine_bus::{Backplane, DeviceCell, Drive, Options, PciAddress};
use engine_devices::registry;
use engine_firmware::e820::RamLayout;
use engine_firmware::{images, linux, pc as pc_firmware};
use engine_memory::{Contents, Layer};
use std::sync::Arc;

const BIOS: &str = "bios-256k.bin";
const VGA_BIOS: &str = "vgabios-stdvga.bin";
const FOUR_GIB: u64 = 1 << 32;

/// The parts that the machine itself has to reach.
pub struct Pc {
    /// The 8259 pair, which CPUs ask for vectors.
    pub pic: Arc<DeviceCell>,
    /// The IOAPIC, which hears ends of interrupts.
    pub ioapic: Arc<DeviceCell>,
    /// The display adapter.
    pub screen: Option<Arc<DeviceCell>>,
    /// Keyboards and pointers; the first that wants an event gets it.
    pub inputs: Vec<Arc<DeviceCell>>,
    /// The part with the power button.
    pub power_button: Option<Arc<DeviceCell>>,
}

fn at(device: u8, function: u8) -> Option<PciAddress> {
    Some(PciAddress { device, function })
}

/// Maps memory, tells the firmware, and plugs the parts in.
pub fn build(spec: &Spec, plane: &mut Backplane) -> Result<Pc, MachineError> {
    let ram = RamLayout::of(spec.memory_bytes);
    map_ram(plane, ram)?;
    map_bios(spec, plane)?;
    tell_firmware(spec, plane, ram)?;

    let mut plug = |id: &str, name: &str, place: Option<PciAddress>, options: &Options| {
        let model = registry::model(id).ok_or_else(|| MachineError::NoSuchPart { id: id.to_owned() })?;
        plane.plug(model, name, place, options).map_err(MachineError::from)
    };
    let none = Options::default();
    let pic = plug("i8259", "i8259", None, &none)?;
    let ioapic = plug("ioapic", "ioapic", None, &none)?;
    plug("i8254", "i8254", None, &none)?;
    plug("hpet", "hpet", None, &none)?;
    plug("mc146818rtc", "mc146818rtc", None, &none)?;
    plug("i8237", "i8237", None, &none)?;
    plug("port92", "port92", None, &none)?;
    let keyboard = plug("i8042", "i8042", None, &none)?;
    plug("fw_cfg", "fw_cfg", None, &none)?;
    plug("i440fx", "i440fx", at(0, 0), &none)?;
    plug("piix3", "piix3", at(1, 0), &none)?;
    plug("piix3-ide", "piix3-ide", at(1, 1), &ide_options(spec))?;
    let usb = plug("piix3-usb-uhci", "piix3-usb-uhci", at(1, 2), &none)?;
    let power_button = plug("piix4-pm", "piix4-pm", at(1, 3), &none)?;
    let screen = match spec.display {
        Display::StandardVga => Some(plug("VGA", "VGA", at(2, 0), &none)?),
        Display::None => None,
    };
    if spec.drives.iter().any(|drive| drive.kind == DriveKind::Floppy) {
        plug("isa-fdc", "isa-fdc", None, &none)?;
    }
    for index in 0..4 {
        if spec.char_ports.contains_key(&format!("serial{index}")) {
            plug("isa-serial", &format!("isa-serial{index}"), None, &Options::of(&[("index", &index.to_string())]))?;
        }
    }
    for (index, part) in spec.parts.iter().enumerate() {
        plug(&part.model, &format!("{}#{index}", part.model), None, &part.options)?;
    }
    Ok(Pc { pic, ioapic, screen, inputs: vec![usb, keyboard], power_button: Some(power_button) })
}

fn map_ram(plane: &Backplane, ram: RamLayout) -> Result<(), MachineError> {
    let block = plane.memory.add_block("ram", ram.below_4g + ram.above_4g)?;
    let layer = |name: &str, base, len, offset| Layer {
        name: name.to_owned(),
        priority: 0,
        base,
        len,
        contents: Contents::Ram(block.clone(), offset),
    };
    plane.memory.set_layer(layer("ram below 4 GiB", 0, ram.below_4g, 0));
    if ram.above_4g > 0 {
        plane.memory.set_layer(layer("ram above 4 GiB", FOUR_GIB, ram.above_4g, ram.below_4g));
    }
    Ok(())
}

/// The BIOS ends at 4 GiB; the host bridge shows its last 128 KiB below 1 MiB.
fn map_bios(spec: &Spec, plane: &mut Backplane) -> Result<(), MachineError> {
    let name = spec.bios.as_deref().unwrap_or(BIOS);
    let image = images::load(name)?;
    let len = image.len() as u64;
    if len == 0 || !len.is_multiple_of(0x1_0000) {
        return Err(MachineError::BiosSize { name: name.to_owned(), len });
    }
    let block = plane.memory.add_block("bios", len)?;
    block.write(0, &image);
    let contents = Contents::Rom(block, 0);
    plane.memory.set_layer(Layer { name: "bios".to_owned(), priority: 1, base: FOUR_GIB - len, len, contents });
    plane.roms.insert("bios".to_owned(), image);
    if spec.display == Display::StandardVga {
        plane.roms.insert("vgabios".to_owned(), images::load(VGA_BIOS)?);
    }
    Ok(())
}

fn tell_firmware(spec: &Spec, plane: &mut Backplane, ram: RamLayout) -> Result<(), MachineError> {
    let mut ide = Vec::new();
    let mut floppies = [0; 2];
    for drive in &spec.drives {
        match drive.slot {
            DriveSlot::Ide { channel, unit } => ide.push((channel, unit, drive.kind == DriveKind::Cdrom)),
            DriveSlot::Floppy(unit) => {
                let len = plane.drives.get(&drive.slot.board_name()).map_or(0, Drive::len);
                floppies[usize::from(unit & 1)] = floppy_drive_type(len);
            }
        }
    }
    ide.sort_unstable();
    let kernel = spec.kernel.as_ref().map(|kernel| linux::prepare(kernel, ram)).transpose()?;
    let told = pc_firmware::PcFirmware {
        ram,
        cpus: spec.cpu.topology.cpus() as u16,
        topology: (spec.cpu.topology.sockets, spec.cpu.topology.cores, spec.cpu.topology.threads),
        boot_order: &spec.boot_order,
        ide: &ide,
        floppies,
        menu_wait_millis: spec.boot_menu_millis,
        serial_console: spec.serial_console,
        kernel,
    };
    plane.cmos = pc_firmware::cmos(&told);
    plane.firmware_files = pc_firmware::firmware_files(told);
    Ok(())
}

/// The CMOS type of the drive for a disk of so many bytes: a BIOS reads disks at the data rate of the drive's type only.
fn floppy_drive_type(disk_bytes: u64) -> u8 {
    const LONGEST_1440K: u64 = 82 * 2 * 21 * 512; // With more tracks and sectors than the format has
    match disk_bytes {
        1..=0x5_a000 => 1, // 360 KB
        0x12_c000 => 2,    // 1.2 MB
        0..=LONGEST_1440K => 4,
        _ => 5,
    }
}

/// Tells the IDE controller which drives are CD-ROMs: `ide1-0=cd`.
fn ide_options(spec: &Spec) -> Options {
    let mut options = Options::default();
    for drive in spec.drives.iter().filter(|drive| matches!(drive.slot, DriveSlot::Ide { .. })) {
        let kind = if drive.kind == DriveKind::Cdrom { "cd" } else { "hd" };
        options.0.insert(drive.slot.board_name(), kind.to_owned());
    }
    options
}
