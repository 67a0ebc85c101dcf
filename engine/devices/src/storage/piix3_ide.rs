//! The IDE function of the PIIX3: two channels at their legacy ports with two drives each, and a bus master for each.
//! A drive is there when the machine has one named `ide<channel>-<unit>`; an option of the same name with the value `cd`
//! makes it a CD-ROM drive. Channels in `ide_channel.rs`, drives in `ide_drive.rs`, `ata_disk.rs` and `atapi_cdrom.rs`.
//! Left out: the timing registers do nothing but keep what is written, and the channels answer even where those disable them.
//! See: Intel 290550-002, "82371SB PCI ISA IDE Xcelerator (PIIX3)", 2.3 and 2.4.

use super::ata_disk::Disk;
use super::atapi_cdrom::Cdrom;
use super::ide_channel::{IdeChannel, SavedIdeChannel};
use super::ide_drive::{IdeDrive, Kind, SECTOR_BYTES};
use engine_base::rank;
use engine_bus::{
    BarKind, BuildError, Device, DeviceModel, Options, PciConfig, PciFunction, Port, PortIo, ResetKind, RestoreError, SavedState,
    Slot, Width, Wiring, Worker,
};

/// The model.
pub const MODEL: DeviceModel = DeviceModel {
    id: "piix3-ide",
    title: "PIIX3 IDE controller",
    slot: Slot::Pci,
    rank: rank::DEVICE,
    options: &[
        ("ide0-0", "what the drive ide0-0 is: hd or cd"),
        ("ide0-1", "what the drive ide0-1 is: hd or cd"),
        ("ide1-0", "what the drive ide1-0 is: hd or cd"),
        ("ide1-1", "what the drive ide1-1 is: hd or cd"),
    ],
    build,
};

/// Command block, control block and interrupt of the two channels.
const LEGACY: [(u16, u16, u8); 2] = [(0x1f0, 0x3f6, 14), (0x170, 0x376, 15)];
const DRIVE_NAMES: [[&str; 2]; 2] = [["ide0-0", "ide0-1"], ["ide1-0", "ide1-1"]];
const BUS_MASTER_BAR: u8 = 4;

struct Piix3Ide {
    // State the guest can see; all of it is saved
    config: PciConfig,
    channels: [IdeChannel; 2],
}

fn build(options: &Options, wiring: &mut Wiring<'_>) -> Result<Box<dyn Device>, BuildError> {
    let mut config = PciConfig::new(0x8086, 0x7010, (1, 1, 0x80), 0).with_bar(BUS_MASTER_BAR, BarKind::Io, 16);
    config.set_byte(0x06, 0x80); // Status: fast back-to-back, medium DEVSEL#
    config.set_byte(0x07, 0x02);
    config.allow(0x40, &[0xff, 0xf3, 0xff, 0xf3, 0xff]); // IDE timing of both channels, timing of drives 1
    let channels = [channel(options, wiring, 0)?, channel(options, wiring, 1)?];
    Ok(Box::new(Piix3Ide { config, channels }))
}

fn channel(options: &Options, wiring: &mut Wiring<'_>, channel: usize) -> Result<IdeChannel, BuildError> {
    let (command, control, irq) = LEGACY[channel];
    let drives = [drive(options, wiring, channel, 0)?, drive(options, wiring, channel, 1)?];
    wiring.claim_ports(command, 1, Width::Dword);
    wiring.claim_ports(command + 1, 7, Width::Byte);
    wiring.claim_ports(control, 1, Width::Byte);
    Ok(IdeChannel::new(wiring.isa_irq(irq), wiring.pci_dma(), drives))
}

/// The drive at a place of a channel, if the machine has one.
fn drive(options: &Options, wiring: &mut Wiring<'_>, channel: usize, unit: usize) -> Result<Option<IdeDrive>, BuildError> {
    let name = DRIVE_NAMES[channel][unit];
    let is_cd = match options.text(name) {
        None | Some("hd") => false,
        Some("cd") => true,
        Some(other) => {
            return Err(BuildError::Option { device: MODEL.id, option: name, value: other.to_owned(), expected: "hd or cd" });
        }
    };
    let Some(drive) = wiring.drive(name) else { return Ok(None) };
    let serial = format!("BG{:05}", 1 + channel * 2 + unit);
    if is_cd {
        let cdrom = Cdrom::new(serial, &drive);
        return Ok(Some(IdeDrive::new(drive, Kind::Cdrom(cdrom))));
    }
    let sectors = drive.len() / SECTOR_BYTES as u64;
    if sectors == 0 {
        return Err(BuildError::Missing {
            device: MODEL.id,
            missing: format!("the disk {name} has no image; give it one, or make it a CD-ROM drive"),
        });
    }
    Ok(Some(IdeDrive::new(drive, Kind::Disk(Disk::new(sectors, serial)))))
}

impl Piix3Ide {
    /// The channel and its register behind a legacy port; 8 stands for the control block.
    fn legacy(&mut self, port: u16) -> Option<(&mut IdeChannel, u16)> {
        self.channels.iter_mut().zip(LEGACY).find_map(|(channel, (command, control, _))| {
            let register = if port == control { 8 } else { port.checked_sub(command).filter(|register| *register < 8)? };
            Some((channel, register))
        })
    }

    fn bus_master(&mut self, offset: u16) -> (&mut IdeChannel, u16) {
        let [first, second] = &mut self.channels;
        (if offset < 8 { first } else { second }, offset & 7)
    }
}

impl Device for Piix3Ide {
    fn reset(&mut self, _kind: ResetKind) {
        let Self { config, channels } = self;
        config.reset();
        channels.iter_mut().for_each(IdeChannel::reset);
    }

    fn save(&self) -> SavedState {
        let Self { config, channels } = self;
        let channels = channels.each_ref().map(IdeChannel::save);
        SavedState::of(saved::VERSION, &saved::Piix3Ide { config: config.save(), channels })
    }

    fn restore(&mut self, saved: &SavedState) -> Result<(), RestoreError> {
        let saved::Piix3Ide { config, channels } = saved.read(saved::VERSION)?;
        self.config.restore(&config)?;
        for (channel, saved) in self.channels.iter_mut().zip(channels) {
            channel.restore(saved)?;
        }
        Ok(())
    }

    fn as_port_io(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn as_pci(&mut self) -> Option<&mut dyn PciFunction> {
        Some(self)
    }

    fn as_worker(&mut self) -> Option<&mut dyn Worker> {
        Some(self)
    }
}

impl PortIo for Piix3Ide {
    fn port_read(&mut self, port: Port, width: Width) -> u32 {
        match port {
            Port::Fixed(port) => match self.legacy(port) {
                Some((channel, 8)) => channel.alternate_status().into(),
                Some((channel, register)) => channel.read(register, width),
                None => u32::MAX,
            },
            Port::Bar { offset, .. } => (0..width.bytes() as u16).rev().fold(0, |value, i| {
                let (channel, register) = self.bus_master(offset + i);
                value << 8 | u32::from(channel.bus_master.read(register))
            }),
        }
    }

    fn port_read_run(&mut self, port: Port, width: Width, into: &mut [u8]) {
        let bytes = width.bytes() as usize;
        let mut at = 0;
        while at < into.len() {
            if let Port::Fixed(number) = port
                && let Some((channel, register)) = self.legacy(number)
            {
                at += channel.read_ready(register, bytes, &mut into[at..]);
            }
            // What is not simply there, such as the end of a block.
            let Some(element) = into.get_mut(at..at + bytes) else { return };
            element.copy_from_slice(&self.port_read(port, width).to_le_bytes()[..bytes]);
            at += bytes;
        }
    }

    fn port_write(&mut self, port: Port, width: Width, value: u32) {
        match port {
            Port::Fixed(port) => match self.legacy(port) {
                Some((channel, 8)) => channel.write_control(value as u8),
                Some((channel, register)) => channel.write(register, width, value),
                None => {}
            },
            Port::Bar { offset, .. } => {
                for (byte, at) in value.to_le_bytes().into_iter().take(width.bytes() as usize).zip(offset..) {
                    let (channel, register) = self.bus_master(at);
                    channel.write_bus_master(register, byte);
                }
            }
        }
    }
}

impl PciFunction for Piix3Ide {
    fn config(&self) -> &PciConfig {
        &self.config
    }

    fn config_mut(&mut self) -> &mut PciConfig {
        &mut self.config
    }
}

impl Worker for Piix3Ide {
    fn work_ready(&mut self) {
        self.channels.iter_mut().for_each(IdeChannel::work_ready);
    }
}

mod saved {
    use super::SavedIdeChannel;
    use engine_bus::SavedPciConfig;
    use serde::{Deserialize, Serialize};

    pub const VERSION: u32 = 1;

    #[derive(Serialize, Deserialize)]
    pub struct Piix3Ide {
        pub config: SavedPciConfig,
        pub channels: [SavedIdeChannel; 2],
    }
}
