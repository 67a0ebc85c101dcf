//! From winit's raw events to the guest. It stands before egui: what goes to the guest, egui never sees, so that the
//! guest gets physical keys (egui's are logical, folded and partly dropped) and moving the pointer over the guest costs
//! no repaint of the window.
//!
//! ```text
//!   keyboard   Window ──click on the picture, or the host key──► Guest        (a dialog or menu is open: always Window)
//!                     ◄──host key alone, focus lost, dialog──
//!   pointer    absolute (tablet in use): over the picture it is the guest's, elsewhere the window's; nothing is caught
//!              relative: caught by a click, let go by the host key
//! ```
//! The host key is Right Ctrl. Held with another key it is a chord: a command for the window.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use engine_input::{Button, InputEvent, KeyCode};
use engine_session::{Command, Session};
use winit::event::{DeviceEvent, ElementState, MouseButton, MouseScrollDelta, WindowEvent};
use winit::platform::scancode::PhysicalKeyExtScancode as _;
use winit::window::{CursorGrabMode, Window};

use super::placement::Placement;

/// Right Ctrl, as Linux numbers it.
const HOST_KEY: u16 = 97;

/// What becomes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It was the guest's; egui never hears of it.
    Guest,
    /// It was the guest's, and the window should draw itself anew because something it shows has changed.
    GuestAndRedraw,
    /// It is egui's.
    Window,
}

/// Who has the keyboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keyboard {
    /// The guest.
    Guest,
    /// This window, by the person's choice.
    Window,
}

/// Sends what a person does to the guest; see the top of the file.
pub struct GuestInput {
    session: Session,
    /// The real window, to catch the pointer; tests have none. Not owned: a window that anybody holds is never destroyed,
    /// and eframe ends only after the last one was.
    window: Weak<Window>,
    keyboard: Keyboard,
    /// A dialog, a menu or a text field of ours is open.
    covered: bool,
    placement: Option<Placement>,
    pointer: (f64, f64),
    pointer_inside: bool,
    caught: bool,
    keys_down: BTreeSet<u16>,
    /// Keys whose press was ours, so their release is too.
    keys_swallowed: BTreeSet<u16>,
    buttons_down: Vec<Button>,
    host_key: HostKey,
    chords: Vec<u16>,
    wheel: f64,
    motion: (f64, f64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HostKey {
    Up,
    Down,
    /// Down, and another key was pressed with it.
    Chord,
}

impl GuestInput {
    /// For the window of `session`'s machine.
    pub fn new(session: Session) -> Self {
        Self {
            session,
            window: Weak::new(),
            keyboard: Keyboard::Guest,
            covered: false,
            placement: None,
            pointer: (-1.0, -1.0),
            pointer_inside: false,
            caught: false,
            keys_down: BTreeSet::new(),
            keys_swallowed: BTreeSet::new(),
            buttons_down: Vec::new(),
            host_key: HostKey::Up,
            chords: Vec::new(),
            wheel: 0.0,
            motion: (0.0, 0.0),
        }
    }

    /// Tells which window the pointer is caught in.
    pub fn attach(&mut self, window: &Arc<Window>) {
        self.window = Arc::downgrade(window);
    }

    /// Tells, after each drawing, where the picture is and whether something of ours covers it.
    pub fn set_scene(&mut self, placement: Placement, covered: bool) {
        self.placement = Some(placement);
        if covered && !self.covered {
            self.release_all();
            self.let_go();
        }
        self.covered = covered;
    }

    /// Who has the keyboard.
    pub fn keyboard(&self) -> Keyboard {
        if self.covered { Keyboard::Window } else { self.keyboard }
    }

    /// Gives the keyboard to the guest or takes it.
    pub fn set_keyboard(&mut self, keyboard: Keyboard) {
        if keyboard == Keyboard::Window && self.keyboard == Keyboard::Guest {
            self.release_all();
        }
        self.keyboard = keyboard;
    }

    /// Whether the pointer is caught inside the guest.
    pub fn is_caught(&self) -> bool {
        self.caught
    }

    /// Where the pointer is on the window, in physical pixels.
    pub fn pointer(&self) -> (f64, f64) {
        self.pointer
    }

    /// The keys pressed together with the host key since the last call.
    pub fn take_chords(&mut self) -> Vec<u16> {
        std::mem::take(&mut self.chords)
    }

    /// Looks at an event before egui does.
    pub fn window_event(&mut self, event: &WindowEvent) -> Verdict {
        match event {
            WindowEvent::KeyboardInput { event, is_synthetic, .. } => {
                let Some(code) = event.physical_key.to_scancode().and_then(|code| u16::try_from(code).ok()) else {
                    return Verdict::Window;
                };
                // Keys that were down when the window got the focus were pressed for somebody else.
                if *is_synthetic && event.state == ElementState::Pressed {
                    return Verdict::Window;
                }
                self.key(code, event.state, event.repeat)
            }
            WindowEvent::CursorMoved { position, .. } => self.pointer_moved_to(position.x, position.y),
            WindowEvent::CursorLeft { .. } => {
                self.pointer_inside = false;
                Verdict::Window
            }
            WindowEvent::MouseInput { state, button, .. } => {
                let button = match button {
                    MouseButton::Left => Button::Left,
                    MouseButton::Right => Button::Right,
                    MouseButton::Middle => Button::Middle,
                    MouseButton::Back => Button::Side,
                    MouseButton::Forward => Button::Extra,
                    MouseButton::Other(_) => return Verdict::Window,
                };
                self.button(button, *state)
            }
            WindowEvent::MouseWheel { delta, .. } => self.wheel(match delta {
                MouseScrollDelta::LineDelta(_, lines) => f64::from(*lines),
                MouseScrollDelta::PixelDelta(pixels) => pixels.y / 40.0,
            }),
            WindowEvent::Focused(false) => {
                self.release_all();
                self.let_go();
                self.host_key = HostKey::Up;
                Verdict::Window
            }
            _ => Verdict::Window,
        }
    }

    /// Raw motion, for a pointer that is caught.
    pub fn device_event(&mut self, event: &DeviceEvent) {
        if let DeviceEvent::MouseMotion { delta: (dx, dy) } = event
            && self.caught
        {
            self.motion.0 += dx;
            self.motion.1 += dy;
            let whole = (self.motion.0.trunc(), self.motion.1.trunc());
            if whole != (0.0, 0.0) {
                self.motion = (self.motion.0 - whole.0, self.motion.1 - whole.1);
                self.send(InputEvent::PointerMoved { dx: whole.0 as i32, dy: whole.1 as i32 });
            }
        }
    }

    fn key(&mut self, code: u16, state: ElementState, repeat: bool) -> Verdict {
        let pressed = state == ElementState::Pressed;
        if !pressed && self.keys_swallowed.remove(&code) {
            return Verdict::Guest;
        }
        if !pressed && self.keys_down.remove(&code) {
            self.send(InputEvent::Key { code: KeyCode(code), pressed: false });
            return Verdict::Guest;
        }
        if self.covered {
            return Verdict::Window;
        }
        if code == HOST_KEY {
            return self.host_key(pressed, repeat);
        }
        if self.host_key != HostKey::Up && pressed {
            self.host_key = HostKey::Chord;
            self.keys_swallowed.insert(code);
            if !repeat {
                self.chords.push(code);
            }
            return Verdict::GuestAndRedraw;
        }
        if self.keyboard == Keyboard::Window {
            return Verdict::Window;
        }
        if pressed {
            self.keys_down.insert(code);
            self.send(InputEvent::Key { code: KeyCode(code), pressed: true });
        }
        Verdict::Guest
    }

    fn host_key(&mut self, pressed: bool, repeat: bool) -> Verdict {
        match (pressed, self.host_key) {
            (true, _) if repeat => Verdict::Guest,
            (true, _) => {
                self.host_key = HostKey::Down;
                Verdict::GuestAndRedraw
            }
            (false, HostKey::Down) => {
                self.host_key = HostKey::Up;
                self.toggle();
                Verdict::GuestAndRedraw
            }
            (false, _) => {
                self.host_key = HostKey::Up;
                Verdict::GuestAndRedraw
            }
        }
    }

    /// The host key alone: gives everything back to the person, or, pressed again, to the guest.
    fn toggle(&mut self) {
        if self.caught || self.keyboard == Keyboard::Guest {
            self.let_go();
            self.set_keyboard(Keyboard::Window);
        } else {
            self.keyboard = Keyboard::Guest;
            if !self.session.pointer_is_absolute() {
                self.catch();
            }
        }
    }

    fn pointer_moved_to(&mut self, x: f64, y: f64) -> Verdict {
        self.pointer = (x, y);
        if self.caught {
            return Verdict::Guest; // The raw motion counts.
        }
        let was_inside = self.pointer_inside;
        let dragging = !self.buttons_down.is_empty();
        self.pointer_inside = !self.covered && self.is_over_picture(x, y);
        if !self.pointer_inside && !dragging {
            return Verdict::Window;
        }
        if self.session.pointer_is_absolute()
            && let Some(placement) = self.placement
        {
            let (x, y) = placement.tablet_position(x, y);
            self.send(InputEvent::PointerAt { x, y });
        }
        match () {
            // egui hears of the first move inside, so that nothing stays lit under a pointer that has left it.
            () if !was_inside && self.pointer_inside => Verdict::Window,
            () if self.placement.is_some_and(|placement| placement.is_cut()) => Verdict::GuestAndRedraw,
            () => Verdict::Guest,
        }
    }

    fn button(&mut self, button: Button, state: ElementState) -> Verdict {
        if state == ElementState::Released {
            let Some(at) = self.buttons_down.iter().position(|down| *down == button) else { return Verdict::Window };
            self.buttons_down.remove(at);
            self.send(InputEvent::Button { button, pressed: false });
            return Verdict::Guest;
        }
        if self.covered || (!self.caught && !self.pointer_inside) {
            return Verdict::Window;
        }
        let took_keyboard = std::mem::replace(&mut self.keyboard, Keyboard::Guest) == Keyboard::Window;
        if !self.caught && !self.session.pointer_is_absolute() {
            // The click that catches the pointer is not one for the guest, whose pointer is elsewhere.
            self.catch();
            return Verdict::GuestAndRedraw;
        }
        self.buttons_down.push(button);
        self.send(InputEvent::Button { button, pressed: true });
        if took_keyboard { Verdict::GuestAndRedraw } else { Verdict::Guest }
    }

    fn wheel(&mut self, notches: f64) -> Verdict {
        if self.covered || (!self.caught && !self.pointer_inside) {
            return Verdict::Window;
        }
        self.wheel += notches;
        let whole = self.wheel.trunc();
        if whole != 0.0 {
            self.wheel -= whole;
            self.send(InputEvent::Wheel { notches: whole as i32 });
        }
        Verdict::Guest
    }

    fn is_over_picture(&self, x: f64, y: f64) -> bool {
        self.placement.is_some_and(|placement| placement.view.contains(x, y) && placement.picture.contains(x, y))
    }

    fn catch(&mut self) {
        self.caught = true;
        self.motion = (0.0, 0.0);
        if let Some(window) = self.window.upgrade() {
            // X11 cannot lock the pointer in its place; kept inside the window, its raw motion serves as well.
            if let Err(error) =
                window.set_cursor_grab(CursorGrabMode::Locked).or_else(|_| window.set_cursor_grab(CursorGrabMode::Confined))
            {
                tracing::warn!(%error, "the pointer could not be caught");
            }
            window.set_cursor_visible(false);
        }
    }

    fn let_go(&mut self) {
        if !std::mem::take(&mut self.caught) {
            return;
        }
        self.pointer_inside = false;
        if let Some(window) = self.window.upgrade() {
            if let Err(error) = window.set_cursor_grab(CursorGrabMode::None) {
                tracing::warn!(%error, "the pointer could not be let go");
            }
            window.set_cursor_visible(true);
        }
    }

    fn release_all(&mut self) {
        // The machine knows best what is down in the guest; a key it has not seen released would repeat for ever there.
        self.keys_down.clear();
        self.buttons_down.clear();
        self.session.send(Command::ReleaseAllKeys);
    }

    fn send(&self, event: InputEvent) {
        self.session.send(Command::Input(event));
    }
}

#[cfg(test)]
mod tests {
    use super::super::placement::{PixelRect, ScaleMode};
    use super::*;
    use ElementState::{Pressed, Released};
    use engine_display::Screen;
    use engine_session::{EngineSide, link};

    const VIEW: PixelRect = PixelRect { left: 0, top: 50, width: 800, height: 600 };
    const KEY_A: u16 = 30;
    const KEY_F: u16 = 33;

    fn input() -> (GuestInput, EngineSide) {
        let (session, engine) = link(Screen::new());
        engine.set_pointer_is_absolute(true);
        let mut input = GuestInput::new(session);
        input.set_scene(Placement::new(VIEW, (800, 600), ScaleMode::Fit, (0.5, 0.5)), false);
        (input, engine)
    }

    fn received(engine: &EngineSide) -> Vec<String> {
        engine
            .commands()
            .try_iter()
            .map(|command| match command {
                Command::Input(event) => format!("{event:?}"),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn keys_go_to_the_guest_by_their_place_on_the_keyboard() {
        let (mut input, engine) = input();
        assert_eq!(input.key(KEY_A, Pressed, false), Verdict::Guest);
        assert_eq!(input.key(KEY_A, Released, false), Verdict::Guest);
        assert_eq!(received(&engine), ["Key { code: KeyCode(30), pressed: true }", "Key { code: KeyCode(30), pressed: false }"]);
    }

    #[test]
    fn the_host_key_with_another_is_a_chord_and_neither_reaches_the_guest() {
        let (mut input, engine) = input();
        input.key(HOST_KEY, Pressed, false);
        assert_eq!(input.key(KEY_F, Pressed, false), Verdict::GuestAndRedraw);
        input.key(HOST_KEY, Released, false);
        assert_eq!(input.key(KEY_F, Released, false), Verdict::Guest);
        assert_eq!(input.take_chords(), [KEY_F]);
        assert!(received(&engine).is_empty());
        assert_eq!(input.keyboard(), Keyboard::Guest);
    }

    #[test]
    fn the_host_key_alone_gives_the_keyboard_back_and_takes_it_again() {
        let (mut input, engine) = input();
        for expected in [Keyboard::Window, Keyboard::Guest] {
            input.key(HOST_KEY, Pressed, false);
            input.key(HOST_KEY, Released, false);
            assert_eq!(input.keyboard(), expected);
        }
        assert_eq!(received(&engine), ["ReleaseAllKeys"]);
        input.set_keyboard(Keyboard::Window);
        assert_eq!(input.key(KEY_A, Pressed, false), Verdict::Window);
    }

    #[test]
    fn losing_the_focus_releases_what_was_held() {
        let (mut input, engine) = input();
        input.key(KEY_A, Pressed, false);
        input.window_event(&WindowEvent::Focused(false));
        assert_eq!(received(&engine)[1..], ["ReleaseAllKeys"]);
        // Its late release is no second one for the guest.
        input.key(KEY_A, Released, false);
        assert!(received(&engine).is_empty());
    }

    #[test]
    fn a_tablet_points_without_being_caught_and_the_toolbar_stays_the_windows() {
        let (mut input, engine) = input();
        assert_eq!(input.pointer_moved_to(400.0, 20.0), Verdict::Window);
        assert_eq!(input.pointer_moved_to(400.0, 350.0), Verdict::Window, "the first move inside is for both");
        assert_eq!(input.pointer_moved_to(401.0, 350.0), Verdict::Guest);
        assert_eq!(input.button(Button::Left, Pressed), Verdict::Guest);
        assert!(!input.is_caught());
        // Dragged out of the picture, the guest still hears of it, at the edge, and of the release.
        assert_eq!(input.pointer_moved_to(400.0, 10.0), Verdict::Guest);
        assert_eq!(input.button(Button::Left, Released), Verdict::Guest);
        let events = received(&engine);
        assert_eq!(events[0], "PointerAt { x: 16404, y: 16411 }");
        assert!(events[3].ends_with("y: 27 }"), "{events:?}");
    }

    #[test]
    fn without_a_tablet_a_click_catches_the_pointer_and_the_host_key_lets_go() {
        let (mut input, engine) = input();
        engine.set_pointer_is_absolute(false);
        input.pointer_moved_to(400.0, 350.0);
        input.button(Button::Left, Pressed);
        assert!(input.is_caught());
        input.device_event(&DeviceEvent::MouseMotion { delta: (2.5, -1.0) });
        input.device_event(&DeviceEvent::MouseMotion { delta: (0.5, 0.0) });
        assert_eq!(received(&engine), ["PointerMoved { dx: 2, dy: -1 }", "PointerMoved { dx: 1, dy: 0 }"]);
        input.key(HOST_KEY, Pressed, false);
        input.key(HOST_KEY, Released, false);
        assert!(!input.is_caught());
    }

    #[test]
    fn an_open_dialog_has_keyboard_and_pointer() {
        let (mut input, engine) = input();
        input.key(KEY_A, Pressed, false);
        input.set_scene(Placement::new(VIEW, (800, 600), ScaleMode::Fit, (0.5, 0.5)), true);
        received(&engine);
        assert_eq!(input.key(KEY_F, Pressed, false), Verdict::Window);
        assert_eq!(input.pointer_moved_to(400.0, 350.0), Verdict::Window);
        assert_eq!(input.button(Button::Left, Pressed), Verdict::Window);
        assert!(received(&engine).is_empty());
    }
}
