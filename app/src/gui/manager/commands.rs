//! What a person can do in the manager, in one table: buttons, keys and tests all come from it.
//! A new action is a variant, a line in [`COMMANDS`], and an arm in `Manager::carry_out`.

use egui::{Key, KeyboardShortcut, Modifiers};
use ui_assets::Icon;

use super::scan::Status;

/// One action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UiCommand {
    /// Open the wizard.
    New,
    /// Build and start the live Linux.
    TryLiveLinux,
    /// Start the selected machine.
    Start,
    /// Bring its window to the front.
    Show,
    /// Its time stands still.
    Pause,
    /// Its time goes on.
    Resume,
    /// Press its power button.
    ShutDown,
    /// Press its reset button.
    Reset,
    /// Pull its plug.
    PowerOff,
    /// What it is made of.
    Settings,
    /// Throw it away.
    Delete,
    /// Show disk and CD images.
    Media,
    /// Look again.
    Rescan,
}

/// A line of the table.
pub struct Entry {
    /// The action.
    pub command: UiCommand,
    /// Its picture.
    pub icon: Icon,
    /// Its words.
    pub text: &'static str,
    /// What it does, for a tooltip.
    pub tooltip: &'static str,
    /// Its keys.
    pub keys: Option<KeyboardShortcut>,
}

const fn key(key: Key) -> Option<KeyboardShortcut> {
    Some(KeyboardShortcut::new(Modifiers::NONE, key))
}

const fn ctrl(key: Key) -> Option<KeyboardShortcut> {
    Some(KeyboardShortcut::new(Modifiers::COMMAND, key))
}

/// All actions.
pub const COMMANDS: &[Entry] = &[
    Entry { command: UiCommand::New, icon: Icon::Plus, text: "New", tooltip: "Make a machine from an ISO", keys: ctrl(Key::N) },
    Entry {
        command: UiCommand::TryLiveLinux,
        icon: Icon::Spark,
        text: "Try a live Linux",
        tooltip: "Build a small Linux once, and start it in a machine that leaves nothing behind",
        keys: None,
    },
    Entry { command: UiCommand::Start, icon: Icon::Play, text: "Start", tooltip: "Switch the machine on", keys: key(Key::Enter) },
    Entry {
        command: UiCommand::Show,
        icon: Icon::Screen,
        text: "Show",
        tooltip: "Bring its window to the front",
        keys: key(Key::Enter),
    },
    Entry { command: UiCommand::Pause, icon: Icon::Pause, text: "Pause", tooltip: "Stop its time", keys: ctrl(Key::P) },
    Entry { command: UiCommand::Resume, icon: Icon::Play, text: "Resume", tooltip: "Let its time go on", keys: ctrl(Key::P) },
    Entry {
        command: UiCommand::ShutDown,
        icon: Icon::Power,
        text: "Shut down",
        tooltip: "Press the power button: the guest is asked to shut down",
        keys: ctrl(Key::H),
    },
    Entry {
        command: UiCommand::Reset,
        icon: Icon::Reset,
        text: "Reset…",
        tooltip: "Press the reset button: what the guest has not saved is lost",
        keys: None,
    },
    Entry {
        command: UiCommand::PowerOff,
        icon: Icon::Plug,
        text: "Power off…",
        tooltip: "Pull the plug: what the guest has not saved is lost",
        keys: None,
    },
    Entry {
        command: UiCommand::Settings,
        icon: Icon::Sliders,
        text: "Settings",
        tooltip: "See and change what the machine is made of",
        keys: ctrl(Key::S),
    },
    Entry {
        command: UiCommand::Delete,
        icon: Icon::Trash,
        text: "Delete…",
        tooltip: "Move the machine and its disks to the trash",
        keys: key(Key::Delete),
    },
    Entry {
        command: UiCommand::Media,
        icon: Icon::HardDisk,
        text: "Images",
        tooltip: "See disk and CD images: make, convert, resize, check, compact",
        keys: ctrl(Key::D),
    },
    Entry {
        command: UiCommand::Rescan,
        icon: Icon::Reset,
        text: "Look again",
        tooltip: "Read the folder of machines again",
        keys: key(Key::F5),
    },
];

impl UiCommand {
    /// Its line in the table.
    pub fn entry(self) -> &'static Entry {
        // Every variant has its line; a test keeps that true.
        COMMANDS.iter().find(|entry| entry.command == self).unwrap_or(&COMMANDS[0])
    }

    /// Whether it can be done to a machine in this state (`None`: nothing is selected), or why not.
    ///
    /// # Errors
    /// A sentence for the tooltip.
    pub fn available(self, selected: Option<&Status>) -> Result<(), &'static str> {
        if matches!(self, UiCommand::New | UiCommand::TryLiveLinux | UiCommand::Media | UiCommand::Rescan) {
            return Ok(());
        }
        let Some(status) = selected else { return Err("Select a machine first") };
        let alive = match status {
            Status::Off => Err("The machine is off"),
            Status::Busy => Err("The machine is busy; wait a moment"),
            Status::Running | Status::Paused | Status::Stopped => Ok(()),
        };
        match self {
            UiCommand::New | UiCommand::TryLiveLinux | UiCommand::Media | UiCommand::Rescan | UiCommand::Settings => Ok(()),
            UiCommand::Start | UiCommand::Delete if *status == Status::Off => Ok(()),
            UiCommand::Start => Err("The machine is on"),
            UiCommand::Delete => Err("The machine is on; shut it down first"),
            UiCommand::Pause | UiCommand::ShutDown if *status == Status::Paused => Err("The machine is paused"),
            UiCommand::Resume if *status != Status::Paused => Err("The machine is not paused"),
            UiCommand::Pause | UiCommand::Resume | UiCommand::ShutDown | UiCommand::Reset => alive,
            UiCommand::Show | UiCommand::PowerOff => match status {
                Status::Off => Err("The machine is off"),
                _ => Ok(()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_has_one_line() {
        for (index, entry) in COMMANDS.iter().enumerate() {
            assert_eq!(entry.command.entry().text, entry.text);
            assert!(!COMMANDS[..index].iter().any(|other| other.command == entry.command), "{} twice", entry.text);
        }
    }

    #[test]
    fn keys_shared_by_two_actions_never_mean_both() {
        for status in
            [None, Some(Status::Off), Some(Status::Busy), Some(Status::Running), Some(Status::Paused), Some(Status::Stopped)]
        {
            let mut taken = Vec::new();
            for entry in COMMANDS.iter().filter(|entry| entry.command.available(status.as_ref()).is_ok()) {
                if let Some(keys) = entry.keys {
                    assert!(!taken.contains(&keys), "{} in {status:?}", entry.text);
                    taken.push(keys);
                }
            }
        }
    }

    #[test]
    fn a_machine_that_runs_cannot_be_deleted() {
        assert_eq!(UiCommand::Delete.available(Some(&Status::Running)), Err("The machine is on; shut it down first"));
        assert_eq!(UiCommand::Delete.available(Some(&Status::Off)), Ok(()));
        assert_eq!(UiCommand::Start.available(None), Err("Select a machine first"));
    }
}
