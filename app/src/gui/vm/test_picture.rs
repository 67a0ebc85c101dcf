//! A machine that is none: a session whose picture is a test card, which follows keys, pointer and media. The window can
//! be tried and tested with it as with a machine.

use engine_base::spawn_guarded;
use engine_display::{Damage, Picture, Rect, Screen};
use engine_input::InputEvent;
use engine_session::{Command, DriveKind, DriveStatus, EndReason, EngineSide, Event, ResetBy, RunState, Session, link};

/// Starts it, with a screen of this size.
///
/// # Errors
/// When the host refuses a thread.
pub fn test_session(width: u32, height: u32) -> std::io::Result<Session> {
    let screen = Screen::new();
    screen.draw(|picture, damage| {
        *picture = card(width, height);
        damage.add(Rect { left: 0, top: 0, right: width, bottom: height });
    });
    let (session, engine) = link(screen);
    engine.set_backend("test picture");
    engine.set_pointer_is_absolute(true);
    engine.set_drives(drives(None));
    spawn_guarded("test-picture", move || run(&engine), |_| {})?;
    Ok(session)
}

fn drives(medium: Option<String>) -> Vec<DriveStatus> {
    let drive = |name: &str, title: &str, kind, removable, medium| DriveStatus {
        name: name.into(),
        title: title.into(),
        kind,
        removable,
        medium,
        working: false,
    };
    vec![
        drive("disk0", "Hard disk", DriveKind::HardDisk, false, Some("system.qcow2".to_owned())),
        drive("cdrom", "CD drive", DriveKind::Cdrom, true, medium),
    ]
}

fn run(engine: &EngineSide) {
    engine.set_state(RunState::Running);
    for command in engine.commands() {
        match command {
            Command::Input(InputEvent::PointerAt { x, y }) => engine.screen().draw(|picture, damage| mark(picture, damage, x, y)),
            Command::Input(InputEvent::Key { code, pressed }) => {
                let color = if pressed { 0x00ff_d040 } else { 0x0030_3840 };
                engine.screen().draw(|picture, damage| key_cell(picture, damage, code.0, color));
            }
            Command::Pause => engine.set_state(RunState::Paused),
            Command::Resume => engine.set_state(RunState::Running),
            Command::PowerButton => {
                engine.set_state(RunState::ShuttingDown);
                return end(engine, EndReason::GuestPoweredOff);
            }
            Command::PowerOff => return end(engine, EndReason::PoweredOff),
            Command::Reset => engine.tell(Event::Reset { by: ResetBy::Person }),
            Command::InsertMedium { drive, path, reply } => {
                let answer = if path.is_file() { Ok(()) } else { Err(format!("There is no such file: {}", path.display())) };
                if answer.is_ok() {
                    let title = path.file_name().map(|name| name.to_string_lossy().into_owned());
                    engine.set_drives(drives(title.clone()));
                    engine.tell(Event::MediumChanged { drive, title });
                }
                reply.send(answer);
            }
            Command::EjectMedium { drive, force: _, reply } => {
                engine.set_drives(drives(None));
                engine.tell(Event::MediumChanged { drive, title: None });
                reply.send(Ok(()));
            }
            Command::TypeText { text, reply } => reply.send(Ok(text.chars().count())),
            Command::TakePicture { reply } => reply.send(engine.screen().picture()),
            // A test card has no registers, memory or board, and nothing that could be held down.
            _ => {}
        }
    }
}

fn end(engine: &EngineSide, reason: EndReason) {
    engine.set_state(RunState::Ended);
    engine.tell(Event::Ended(reason));
}

/// A gradient, a border of one pixel to see that nothing is cut off, and a grid of cells for keys.
fn card(width: u32, height: u32) -> Picture {
    let mut picture = Picture::black(width, height);
    for y in 0..height {
        for x in 0..width {
            let border = x == 0 || y == 0 || x + 1 == width || y + 1 == height;
            let check = (x / 32 + y / 32) % 2 * 10;
            let (red, green) = (24 + check + 90 * x / width, 40 + check + 60 * y / height);
            let color = if border { 0x00ff_ffff } else { red << 16 | green << 8 | (70 + check) };
            picture.pixels[(y * width + x) as usize] = color;
        }
    }
    let mut damage = Damage::default();
    (0..128).for_each(|code| key_cell(&mut picture, &mut damage, code, 0x0030_3840));
    picture
}

fn fill(picture: &mut Picture, damage: &mut Damage, rect: Rect, color: u32) {
    let Some(rect) = rect.clipped(picture.width, picture.height) else { return };
    for y in rect.top..rect.bottom {
        let row = (y * picture.width) as usize;
        picture.pixels[row + rect.left as usize..row + rect.right as usize].fill(color);
    }
    damage.add(rect);
}

fn key_cell(picture: &mut Picture, damage: &mut Damage, code: u16, color: u32) {
    let (column, row) = (u32::from(code) % 32, u32::from(code) / 32);
    let (left, top) = (20 + column * 14, 20 + row * 14);
    fill(picture, damage, Rect { left, top, right: left + 11, bottom: top + 11 }, color);
}

/// Marks the pixel that the tablet points at.
fn mark(picture: &mut Picture, damage: &mut Damage, x: u16, y: u16) {
    let column = (u32::from(x) * picture.width) >> 15;
    let row = (u32::from(y) * picture.height) >> 15;
    fill(picture, damage, Rect { left: column, top: row, right: column + 1, bottom: row + 1 }, 0x00ff_3030);
}
