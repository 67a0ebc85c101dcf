//! The passphrases of a machine's encrypted disks. They stand in no file: the person says them each time the machine starts,
//! to the manager, which hands them over by a pipe, or on the terminal.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use engine_config::{Disk, Machine};
use engine_disk::{Access, BackingFiles, DiskError, Format, OpenOptions, Passphrase, Sharing};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// Where passphrases come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passphrases {
    /// The person is asked on the terminal, if there is one.
    Asked,
    /// They stand on the standard input, a line for each encrypted disk, in the machine's order.
    OnStandardInput,
}

/// A disk that nobody reads without its passphrase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedDisk {
    /// Which of the machine's disks it is.
    pub index: usize,
    /// Its file.
    pub path: PathBuf,
    format: Format,
}

/// How often a wrong passphrase may be entered on the terminal.
const TRIES: u32 = 3;

/// The encrypted disks of a machine. A disk that cannot be looked at is none of them; starting the machine tells why.
pub fn locked_disks(machine: &Machine, folder: &Path) -> Vec<LockedDisk> {
    let locked = |(index, disk): (usize, &Disk)| {
        let locked = LockedDisk { index, path: folder.join(&disk.file), format: disk.format.parse().ok()? };
        let image = engine_disk::open(&locked.look()).ok()?;
        image.info().encrypted.then_some(locked)
    };
    machine.disks.iter().enumerate().filter_map(locked).collect()
}

impl LockedDisk {
    /// A look from outside, which disturbs nobody.
    fn look(&self) -> OpenOptions {
        OpenOptions {
            format: Some(self.format),
            access: Access::ReadOnly,
            backing_files: BackingFiles::LeftOut,
            sharing: Sharing::Unlocked,
            ..OpenOptions::new(&self.path)
        }
    }

    /// Its file's name, for people.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned()
    }

    /// Tries a passphrase, which takes a moment by design.
    ///
    /// # Errors
    /// [`DiskError::WrongPassphrase`], or what else is wrong with the disk.
    pub fn try_passphrase(&self, passphrase: &Passphrase) -> Result<(), DiskError> {
        engine_disk::open(&OpenOptions { passphrase: Some(passphrase.clone()), ..self.look() }).map(drop)
    }
}

impl Passphrases {
    /// Obtains the passphrase of each of these disks.
    ///
    /// # Errors
    /// When there is nobody to ask, or what was said is wrong.
    pub fn obtain(self, disks: &[LockedDisk]) -> Result<Vec<Passphrase>> {
        let mut input = std::io::stdin().lock();
        if self == Passphrases::OnStandardInput {
            return disks.iter().map(|disk| line(&mut input, disk)).collect();
        }
        disks
            .iter()
            .map(|disk| {
                if !input.is_terminal() {
                    bail!(
                        "The disk “{}” is encrypted, and there is nobody to ask for its passphrase. Start the machine from \
                         Bellglass's window, from a terminal, or with --passphrases-on-stdin.",
                        disk.name()
                    );
                }
                for _ in 0..TRIES {
                    let passphrase = ask(&mut input, disk)?;
                    match disk.try_passphrase(&passphrase) {
                        Ok(()) => return Ok(passphrase),
                        Err(DiskError::WrongPassphrase { .. }) => eprintln!("This passphrase does not unlock the disk."),
                        Err(error) => return Err(error.into()),
                    }
                }
                bail!("The disk “{}” stays locked.", disk.name())
            })
            .collect()
    }
}

/// Asks on the terminal, which does not show what is typed.
fn ask(input: &mut std::io::StdinLock<'_>, disk: &LockedDisk) -> Result<Passphrase> {
    eprint!("Passphrase of {}: ", disk.name());
    std::io::stderr().flush().ok(); // The question may be lost with the terminal; so is the answer then.
    let before = tcgetattr(&*input)?;
    let mut silent = before.clone();
    silent.local_modes -= LocalModes::ECHO;
    tcsetattr(&*input, OptionalActions::Flush, &silent)?;
    let said = line(input, disk);
    tcsetattr(&*input, OptionalActions::Now, &before)?;
    eprintln!();
    said
}

fn line(input: &mut std::io::StdinLock<'_>, disk: &LockedDisk) -> Result<Passphrase> {
    let mut bytes = Vec::new();
    input.read_until(b'\n', &mut bytes).context("The standard input could not be read.")?;
    if bytes.pop_if(|last| *last == b'\n').is_none() && bytes.is_empty() {
        bail!("Nobody said the passphrase of the disk “{}”.", disk.name());
    }
    Ok(Passphrase::new(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_disk::CreateOptions;
    use std::time::Duration;

    #[test]
    fn the_locked_disks_of_a_machine_are_found_and_passphrases_tried_on_them() {
        let folder = tempfile::tempdir().unwrap();
        let secret = || Some(Passphrase::new(b"open sesame".to_vec()));
        let mut machine = Machine::new("x");
        for (name, format, passphrase) in
            [("a.raw", Format::Raw, None), ("b.qcow2", Format::Qcow2, secret()), ("c.luks", Format::Luks, secret())]
        {
            let options = CreateOptions { passphrase, passphrase_time: Duration::ZERO, ..CreateOptions::new(format, 1 << 20) };
            engine_disk::create(&folder.path().join(name), &options).unwrap();
            machine.disks.push(Disk { file: name.into(), format: format.name().into() });
        }
        machine.disks.push(Disk { file: "gone.qcow2".into(), format: "qcow2".into() });
        let locked = locked_disks(&machine, folder.path());
        assert_eq!(
            locked.iter().map(|disk| (disk.index, disk.name())).collect::<Vec<_>>(),
            [(1, "b.qcow2".into()), (2, "c.luks".into())]
        );
        for disk in &locked {
            disk.try_passphrase(&secret().unwrap()).unwrap();
            let wrong = disk.try_passphrase(&Passphrase::new(b"open".to_vec()));
            assert!(matches!(wrong, Err(DiskError::WrongPassphrase { .. })));
        }
    }
}
