//! A machine of the library: its lock, its settings as a [`Spec`], its control socket.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use engine_config::{Host, Machine};
use engine_cpu::Topology;
use engine_disk::Format;
use engine_remote::ControlSocket;
use engine_session::library::{Library, MachineFolder};
use engine_session::{BootDevice, DriveSlot, DriveSpec, EndReason, ImageSource, MachineDriveKind, Policy, Session, Spec};

use super::passphrases::locked_disks;
use super::{Face, MachineProcess, Passphrases, exit_code};

/// Runs the machine that a person means by `name` (its name, or its folder) until it ends. `passphrases` says who unlocks its
/// encrypted disks.
///
/// # Errors
/// A sentence that says what keeps the machine from starting.
pub fn run(name: &str, face: Face, passphrases: Passphrases) -> Result<ExitCode> {
    let folder = Library::of_this_person()?.find(name)?;
    let machine = folder.load()?;
    let lock = folder.lock()?;
    let problems = engine_config::check(&machine, folder.path(), &Host::this_computer());
    if !problems.is_empty() {
        let list: Vec<String> = problems.iter().map(|problem| problem.to_string()).collect();
        bail!("This machine cannot start. {}", list.join("\n"));
    }
    let mut spec = spec(&machine, folder.path())?;
    let locked = locked_disks(&machine, folder.path());
    for (disk, passphrase) in locked.iter().zip(passphrases.obtain(&locked)?) {
        // Disks come first among the drives, in their order.
        if let Some(source) = &mut spec.drives[disk.index].source {
            source.passphrase = Some(passphrase);
        }
    }
    let process = MachineProcess::start(&spec, Policy::default())?;
    let _control = serve_control_socket(&folder, process.session(), &machine.name)?;
    let reason = process.until_end(face, Some(&folder))?;
    std::fs::remove_dir_all(folder.runtime_folder()).ok(); // Sockets of a machine that is off help nobody.
    if machine.lifetime == engine_config::Lifetime::Disposable && reason != EndReason::Failed {
        folder.dispose()?;
    }
    drop(lock);
    Ok(exit_code(reason))
}

/// The computer that the settings describe.
fn spec(machine: &Machine, folder: &Path) -> Result<Spec> {
    let disposable = machine.lifetime == engine_config::Lifetime::Disposable;
    let mut places = (0..4).map(|index| DriveSlot::Ide { channel: index / 2, unit: index % 2 });
    let mut drives = Vec::new();
    for disk in &machine.disks {
        let format: Format = disk.format.parse().map_err(|_| {
            anyhow::anyhow!(
                "The disk's format “{}” is not known. Write qcow2 or raw in machine.ron: {}",
                disk.format,
                disk.file.display()
            )
        })?;
        let source = ImageSource { format: Some(format), snapshot: disposable, ..ImageSource::new(folder.join(&disk.file)) };
        drives.push((places.next(), MachineDriveKind::Disk, Some(source)));
    }
    // A CD drive alone stands where PCs had it: first on the second channel.
    let mut cd_places: Vec<_> = places.collect();
    cd_places.sort_by_key(|slot| (!matches!(slot, DriveSlot::Ide { channel: 1, unit: 0 }), *slot));
    let mut cd_places = cd_places.into_iter();
    for drive in &machine.cdroms {
        let source = drive.medium.as_ref().map(|medium| ImageSource { read_only: true, ..ImageSource::new(folder.join(medium)) });
        drives.push((cd_places.next(), MachineDriveKind::Cdrom, source));
    }
    for (unit, drive) in machine.floppies.iter().enumerate() {
        let source = drive.medium.as_ref().map(|medium| ImageSource {
            format: Some(Format::Raw),
            snapshot: disposable,
            ..ImageSource::new(folder.join(medium))
        });
        drives.push((Some(DriveSlot::Floppy(unit as u8)), MachineDriveKind::Floppy, source));
    }
    let drives = drives
        .into_iter()
        .map(|(slot, kind, source)| slot.map(|slot| DriveSpec { slot, kind, source }))
        .collect::<Option<Vec<_>>>()
        .context("The board has no place for so many drives. Remove one from machine.ron.")?;
    let mut spec = Spec {
        name: machine.name.clone(),
        memory_bytes: machine.memory_mib << 20,
        drives,
        // An empty disk does not boot, so the installer on the CD has its turn, and later the installed system goes first.
        boot_order: vec![BootDevice::Disk, BootDevice::Cdrom, BootDevice::Floppy],
        ..Spec::default()
    };
    if machine.accelerator == engine_config::Accelerator::Kvm {
        spec.notices.push(crate::cli::why_not_kvm());
    }
    spec.cpu.topology = Topology { sockets: 1, cores: machine.cpus, threads: 1 };
    Ok(spec)
}

fn serve_control_socket(folder: &MachineFolder, session: &Session, name: &str) -> Result<ControlSocket> {
    folder.make_runtime_folder()?;
    let path = folder.control_socket();
    ControlSocket::open(&path, session, name).with_context(|| {
        format!("The machine's control socket could not be made. Check the permissions there: {}", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_config::{CdDrive, Disk, FloppyDrive};

    #[test]
    fn a_cd_drive_stands_on_the_second_channel_and_disks_on_the_first() {
        let mut machine = Machine::new("x");
        machine.cpus = 4;
        machine.disks = vec![Disk { file: "disks/a.img".into(), format: "raw".into() }];
        machine.floppies = vec![FloppyDrive::default()];
        let spec = spec(&machine, Path::new("/m")).unwrap();
        let slots: Vec<_> = spec.drives.iter().map(|drive| drive.slot).collect();
        let ide = |channel, unit| DriveSlot::Ide { channel, unit };
        assert_eq!(slots, [ide(0, 0), ide(1, 0), DriveSlot::Floppy(0)]);
        assert_eq!(spec.drives[0].source.as_ref().unwrap().path, Path::new("/m/disks/a.img"));
        assert_eq!(spec.cpu.topology.cpus(), 4);
    }

    #[test]
    fn four_disks_and_a_cd_drive_do_not_fit() {
        let mut machine = Machine::new("x");
        machine.disks = vec![Disk { file: "a".into(), format: "raw".into() }; 4];
        machine.cdroms = vec![CdDrive::default()];
        assert!(spec(&machine, Path::new("/m")).is_err());
    }

    #[test]
    fn a_wish_for_kvm_is_answered_with_a_reason() {
        let mut machine = Machine::new("x");
        assert!(spec(&machine, Path::new("/m")).unwrap().notices.is_empty());
        machine.accelerator = engine_config::Accelerator::Kvm;
        assert!(spec(&machine, Path::new("/m")).unwrap().notices[0].starts_with("KVM is not used: "));
    }

    #[test]
    fn an_unknown_disk_format_is_named() {
        let mut machine = Machine::new("x");
        machine.disks = vec![Disk { file: "a".into(), format: "zip".into() }];
        let error = spec(&machine, Path::new("/m")).err().unwrap();
        assert!(error.to_string().contains("zip"));
    }
}
