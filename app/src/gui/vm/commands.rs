//! What a person can do in a machine's window, in one table: buttons, menus, chords and tests all come from it.
//! A new action is a variant, a line in [`COMMANDS`], and an arm in `VmWindow::carry_out`.

use engine_session::RunState;
use ui_assets::Icon;

/// One action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UiCommand {
    /// Guest time stands still, or goes on.
    PauseOrResume,
    /// The power button.
    PressPowerButton,
    /// The reset button, after a question.
    Reset,
    /// The plug, after a question.
    PowerOff,
    /// Put a medium into the CD drive.
    InsertMedium,
    /// Take it out.
    EjectMedium,
    /// Ctrl+Alt+Del for the guest.
    SendCtrlAltDel,
    /// Type text as keystrokes.
    TypeText,
    /// Save the picture.
    Screenshot,
    /// The next way of scaling.
    NextScale,
    /// Make the window as large as the guest's picture.
    WindowToGuestSize,
    /// The whole screen, or back.
    FullScreen,
    /// Close the window, after a question.
    Close,
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
    /// The key that, with the host key, does it: its Linux number and its name.
    pub chord: Option<(u16, &'static str)>,
}

/// All actions.
pub const COMMANDS: &[Entry] = &[
    Entry {
        command: UiCommand::PauseOrResume,
        icon: Icon::Pause,
        text: "Pause",
        tooltip: "Stop the machine's time, or let it go on",
        chord: Some((25, "P")),
    },
    Entry {
        command: UiCommand::PressPowerButton,
        icon: Icon::Power,
        text: "Shut down",
        tooltip: "Press the power button: the guest is asked to shut down",
        chord: Some((35, "H")),
    },
    Entry {
        command: UiCommand::Reset,
        icon: Icon::Reset,
        text: "Reset…",
        tooltip: "Press the reset button: what the guest has not saved is lost",
        chord: Some((19, "R")),
    },
    Entry {
        command: UiCommand::PowerOff,
        icon: Icon::Plug,
        text: "Power off…",
        tooltip: "Pull the plug: what the guest has not saved is lost",
        chord: None,
    },
    Entry {
        command: UiCommand::InsertMedium,
        icon: Icon::Disc,
        text: "Insert CD…",
        tooltip: "Put an ISO file into the CD drive; dropping it on the window does the same",
        chord: Some((23, "I")),
    },
    Entry {
        command: UiCommand::EjectMedium,
        icon: Icon::Eject,
        text: "Eject CD",
        tooltip: "Take the CD out of the drive",
        chord: None,
    },
    Entry {
        command: UiCommand::SendCtrlAltDel,
        icon: Icon::Keyboard,
        text: "Ctrl+Alt+Del",
        tooltip: "Send Ctrl+Alt+Del to the guest; Right Ctrl+F1 to F12 send Ctrl+Alt+F1 to F12",
        chord: Some((111, "Del")),
    },
    Entry {
        command: UiCommand::TypeText,
        icon: Icon::Text,
        text: "Type text…",
        tooltip: "Type a text into the guest, key by key, for a US keyboard",
        chord: Some((47, "V")),
    },
    Entry {
        command: UiCommand::Screenshot,
        icon: Icon::Camera,
        text: "Screenshot",
        tooltip: "Save the guest's picture as a PNG file in the machine's folder",
        chord: Some((18, "E")),
    },
    Entry {
        command: UiCommand::NextScale,
        icon: Icon::Scale,
        text: "Scale",
        tooltip: "Fit the window, actual size, or whole multiples",
        chord: Some((46, "C")),
    },
    Entry {
        command: UiCommand::WindowToGuestSize,
        icon: Icon::Screen,
        text: "Window to guest size",
        tooltip: "Make the window as large as the guest's picture",
        chord: Some((30, "A")),
    },
    Entry {
        command: UiCommand::FullScreen,
        icon: Icon::FullScreen,
        text: "Full screen",
        tooltip: "Use the whole screen; the same keys lead back",
        chord: Some((33, "F")),
    },
    Entry {
        command: UiCommand::Close, icon: Icon::Cross, text: "Close…", tooltip: "Close this window", chord: Some((16, "Q"))
    },
];

impl UiCommand {
    /// Its line in the table.
    pub fn entry(self) -> &'static Entry {
        // Every variant has its line; a test keeps that true.
        COMMANDS.iter().find(|entry| entry.command == self).unwrap_or(&COMMANDS[0])
    }

    /// The action of a chord.
    pub fn of_chord(code: u16) -> Option<UiCommand> {
        COMMANDS.iter().find(|entry| entry.chord.is_some_and(|(key, _)| key == code)).map(|entry| entry.command)
    }

    /// Whether it can be done now, or why not.
    ///
    /// # Errors
    /// A sentence for the tooltip.
    pub fn available(self, state: RunState, cd: CdDrive) -> Result<(), &'static str> {
        let alive = match state {
            RunState::Starting => Err("The machine is still starting"),
            RunState::Running | RunState::Paused | RunState::ShuttingDown => Ok(()),
            RunState::Ended | RunState::Failed => Err("The machine is off"),
        };
        match self {
            UiCommand::PressPowerButton | UiCommand::SendCtrlAltDel | UiCommand::TypeText if state == RunState::Paused => {
                Err("The machine is paused; resume it first")
            }
            UiCommand::PauseOrResume
            | UiCommand::PressPowerButton
            | UiCommand::Reset
            | UiCommand::SendCtrlAltDel
            | UiCommand::TypeText => alive,
            UiCommand::PowerOff => match state {
                RunState::Ended | RunState::Failed => Err("The machine is off"),
                _ => Ok(()),
            },
            UiCommand::InsertMedium => alive.and(match cd {
                CdDrive::None => Err("This machine has no CD drive"),
                CdDrive::Empty | CdDrive::Loaded => Ok(()),
            }),
            UiCommand::EjectMedium => alive.and(match cd {
                CdDrive::None => Err("This machine has no CD drive"),
                CdDrive::Empty => Err("The CD drive is empty"),
                CdDrive::Loaded => Ok(()),
            }),
            UiCommand::Screenshot
            | UiCommand::NextScale
            | UiCommand::WindowToGuestSize
            | UiCommand::FullScreen
            | UiCommand::Close => Ok(()),
        }
    }
}

/// What the actions need to know of the CD drive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CdDrive {
    /// There is none.
    None,
    /// Without a medium.
    Empty,
    /// With one.
    Loaded,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_actions_share_a_chord_and_every_line_is_found() {
        for (index, entry) in COMMANDS.iter().enumerate() {
            assert_eq!(entry.command.entry().text, entry.text);
            if let Some((code, _)) = entry.chord {
                assert_eq!(UiCommand::of_chord(code), Some(entry.command), "{}", entry.text);
            }
            assert!(!COMMANDS[..index].iter().any(|other| other.command == entry.command), "{} twice", entry.text);
        }
    }

    #[test]
    fn what_cannot_be_done_has_a_reason() {
        assert_eq!(UiCommand::Reset.available(RunState::Ended, CdDrive::None), Err("The machine is off"));
        assert_eq!(UiCommand::EjectMedium.available(RunState::Running, CdDrive::Empty), Err("The CD drive is empty"));
        assert_eq!(UiCommand::EjectMedium.available(RunState::Running, CdDrive::Loaded), Ok(()));
        assert_eq!(UiCommand::Screenshot.available(RunState::Failed, CdDrive::None), Ok(()));
    }
}
