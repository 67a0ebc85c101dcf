//! What a person can do on the page of images, in one table: buttons, keys and tests all come from it.

use egui::{Key, KeyboardShortcut, Modifiers};
use engine_disk::Format;
use ui_assets::Icon;

use super::catalogue::{Catalogue, Image, State};

/// One action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaCommand {
    /// Make an empty disk.
    New,
    /// List a file that lies elsewhere.
    Add,
    /// Copy it into another format.
    Convert,
    /// Change its size.
    Resize,
    /// Say where a file is that is missing.
    Locate,
    /// Look for errors.
    Check,
    /// Give unused space back to the host.
    Compact,
    /// Take it off the list, and leave the file.
    Forget,
    /// Move the file to the trash.
    Delete,
}

/// A line of the table.
pub struct Entry {
    /// The action.
    pub command: MediaCommand,
    /// Its picture.
    pub icon: Icon,
    /// Its words.
    pub text: &'static str,
    /// What it does, for a tooltip.
    pub tooltip: &'static str,
    /// Its keys.
    pub keys: Option<KeyboardShortcut>,
}

const fn ctrl(key: Key) -> Option<KeyboardShortcut> {
    Some(KeyboardShortcut::new(Modifiers::COMMAND, key))
}

/// All actions.
pub const COMMANDS: &[Entry] = &[
    Entry {
        command: MediaCommand::New, icon: Icon::Plus, text: "New disk…", tooltip: "Make an empty disk", keys: ctrl(Key::N)
    },
    Entry {
        command: MediaCommand::Add,
        icon: Icon::Folder,
        text: "Add…",
        tooltip: "List an image that lies elsewhere; the file stays where it is",
        keys: ctrl(Key::O),
    },
    Entry {
        command: MediaCommand::Convert,
        icon: Icon::HardDisk,
        text: "Convert…",
        tooltip: "Copy it into a new file of another format",
        keys: None,
    },
    Entry {
        command: MediaCommand::Resize,
        icon: Icon::Scale,
        text: "Resize…",
        tooltip: "Make the disk larger or smaller",
        keys: None,
    },
    Entry {
        command: MediaCommand::Locate,
        icon: Icon::Folder,
        text: "Locate…",
        tooltip: "Say where the file is now; whatever names its old place is changed",
        keys: ctrl(Key::L),
    },
    Entry {
        command: MediaCommand::Check,
        icon: Icon::Check,
        text: "Check",
        tooltip: "See whether its records agree with each other; nothing is changed",
        keys: None,
    },
    Entry {
        command: MediaCommand::Compact,
        icon: Icon::Spark,
        text: "Compact",
        tooltip: "Make a copy without unused space; you choose which one stays",
        keys: None,
    },
    Entry {
        command: MediaCommand::Forget,
        icon: Icon::Cross,
        text: "Take off the list",
        tooltip: "The file stays where it is",
        keys: None,
    },
    Entry {
        command: MediaCommand::Delete,
        icon: Icon::Trash,
        text: "Delete…",
        tooltip: "Move the file to the trash",
        keys: Some(KeyboardShortcut::new(Modifiers::NONE, Key::Delete)),
    },
];

impl MediaCommand {
    /// Its line in the table.
    pub fn entry(self) -> &'static Entry {
        // Every variant has its line; a test keeps that true.
        COMMANDS.iter().find(|entry| entry.command == self).unwrap_or(&COMMANDS[0])
    }

    /// Whether it can be done to this image (`None`: nothing is selected), or why not: a sentence without its full stop.
    ///
    /// # Errors
    /// See above.
    pub fn available(self, image: Option<&Image>, catalogue: &Catalogue) -> Result<(), String> {
        if matches!(self, MediaCommand::New | MediaCommand::Add) {
            return Ok(());
        }
        let refuse = |reason: &str| Err(reason.to_owned());
        let Some(image) = image else { return refuse("Select an image first") };
        match (self, &image.state) {
            (MediaCommand::Forget, _) if image.added => return Ok(()),
            (MediaCommand::Forget, _) => return refuse("It is listed because it belongs to a machine or lies in the library"),
            (MediaCommand::Locate, State::Missing) if image.users.is_empty() && catalogue.built_on(&image.path).count() == 0 => {
                return refuse("Nothing needs it; it can be taken off the list");
            }
            (MediaCommand::Locate, State::Missing) => return Ok(()),
            (MediaCommand::Locate, _) => return refuse("The file is where it should be"),
            (_, State::Missing) => return refuse("The file is not there"),
            (_, State::InUse) => return refuse("A running machine or another program uses it"),
            // Who needs it is said in the question.
            (MediaCommand::Delete, _) => return Ok(()),
            (_, State::Unfinished) => return refuse("It is a copy that was never finished"),
            (MediaCommand::Check, State::Damaged(_)) => return Ok(()),
            (_, State::Damaged(_)) => return refuse("It is damaged; check it first"),
            (MediaCommand::Check, _) => {}
            (_, State::NeedsCheck) => return refuse("It was not closed properly; check it first"),
            (_, State::Fine) => {}
        }
        let overlays = catalogue.built_on(&image.path).count();
        match self {
            MediaCommand::Resize | MediaCommand::Compact if image.format == Format::Iso => refuse("It is a CD image"),
            MediaCommand::Resize if image.format == Format::Luks => {
                refuse("LUKS disks keep their size; only qcow2 ones can grow")
            }
            MediaCommand::Resize if overlays > 0 => refuse("Other images are built on it and would no longer fit"),
            MediaCommand::Compact if image.format == Format::Vmdk => {
                refuse("A VMDK disk may have several files; convert it instead")
            }
            MediaCommand::Compact if image.snapshots > 0 => refuse("Its snapshots would be lost"),
            MediaCommand::Compact if image.encrypted => refuse("It is encrypted: what it does not use looks like all the rest"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(state: State) -> Image {
        Image {
            path: "/a.qcow2".into(),
            format: Format::Qcow2,
            size: Some(1 << 20),
            on_disk: Some(0),
            users: Vec::new(),
            base: None,
            base_format: None,
            snapshots: 0,
            encrypted: false,
            freeable: None,
            stamp: 0,
            orphan: false,
            state,
            added: false,
            depth: 0,
        }
    }

    #[test]
    fn every_action_has_one_line_and_keys_of_its_own() {
        for (index, entry) in COMMANDS.iter().enumerate() {
            assert_eq!(entry.command.entry().text, entry.text);
            for other in &COMMANDS[..index] {
                assert!(other.command != entry.command && (entry.keys.is_none() || other.keys != entry.keys), "{}", entry.text);
            }
        }
    }

    #[test]
    fn what_others_need_cannot_be_resized_and_is_known() {
        let base = image(State::Fine);
        let overlay = Image { path: "/b.qcow2".into(), base: Some(base.path.clone()), ..image(State::Fine) };
        let catalogue = Catalogue { images: vec![base.clone(), overlay.clone()] };
        assert!(catalogue.needed_by(&base)[0].contains("b.qcow2"));
        assert!(MediaCommand::Resize.available(Some(&base), &catalogue).is_err());
        assert_eq!(catalogue.needed_by(&overlay), Vec::<String>::new());
        let used = Image { users: vec!["Debian".into()], ..overlay };
        assert!(catalogue.needed_by(&used)[0].contains("Debian"));
    }

    #[test]
    fn only_what_is_missing_and_needed_can_be_located() {
        let missing = image(State::Missing);
        let overlay = Image { path: "/b.qcow2".into(), base: Some(missing.path.clone()), ..image(State::Fine) };
        let catalogue = Catalogue { images: vec![missing.clone(), overlay.clone()] };
        assert_eq!(MediaCommand::Locate.available(Some(&missing), &catalogue), Ok(()));
        assert!(MediaCommand::Locate.available(Some(&overlay), &catalogue).is_err());
        assert!(MediaCommand::Locate.available(Some(&missing), &Catalogue::default()).is_err());
        let locked = Image { encrypted: true, ..image(State::Fine) };
        assert!(MediaCommand::Compact.available(Some(&locked), &catalogue).is_err());
        assert_eq!(MediaCommand::Convert.available(Some(&locked), &catalogue), Ok(()));
    }

    #[test]
    fn an_image_in_use_is_left_alone_and_a_damaged_one_can_only_be_checked_or_deleted() {
        let catalogue = Catalogue::default();
        let possible = |image: &Image| {
            let on_image = COMMANDS
                .iter()
                .map(|entry| entry.command)
                .filter(|command| !matches!(command, MediaCommand::New | MediaCommand::Add));
            on_image.filter(|command| command.available(Some(image), &catalogue).is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(possible(&image(State::InUse)), []);
        assert_eq!(possible(&image(State::Missing)), []);
        assert_eq!(possible(&image(State::Damaged("x".into()))), [MediaCommand::Check, MediaCommand::Delete]);
        assert_eq!(possible(&image(State::Unfinished)), [MediaCommand::Delete]);
        assert!(!possible(&Image { snapshots: 1, ..image(State::Fine) }).contains(&MediaCommand::Compact));
    }
}
