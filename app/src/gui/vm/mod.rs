//! The window of one running machine: the guest's picture, a bar of commands above it, a bar of facts below.
//!
//! ```text
//!  winit event ─► GuestInput ── the guest's ──► Command::Input ─► session
//!                    └─ the window's ─► eframe ─► VmWindow::ui ─► Command
//!  Screen ── wake ─► Pace ─► request_repaint ─► GuestPicture uploads what changed, and draws
//!            (without a GPU: ─► Direct puts what changed into the window; see there)
//!  session ── Event ─► thread `window-events` ─► list + request_repaint ─► VmWindow::hear
//! ```
//! Nothing is drawn while nothing changes. The window holds no machine: it may be closed, and the machine goes on.

mod commands;
mod dialogs;
mod direct;
mod enlarge;
mod frame_texture;
mod guest_input;
mod picture_file;
mod placement;
mod status_bar;
mod summons;
#[cfg(test)]
mod test_picture;
mod toolbar;
#[cfg(test)]
mod window_tests;

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use egui::{CentralPanel, Frame, Margin, Panel, Sense, Ui, ViewportCommand};
use engine_base::{Asked, reply, spawn_guarded};
use engine_display::{Screen, ScreenReader};
use engine_input::{InputEvent, KeyCode};
use engine_session::library::MachineFolder;
use engine_session::{Command, DriveKind, EndReason, Event, Force, RunState, Session};
use ui_assets::{Icon, Theme};

use self::commands::{CdDrive, UiCommand};
use self::dialogs::Dialog;
use self::direct::Direct;
use self::frame_texture::GuestPicture;
pub use self::guest_input::{GuestInput, Verdict};
use self::picture_file::{ThumbnailWriter, write_png};
use self::placement::{PixelRect, Placement, ScaleMode};
pub use self::summons::call as call_window;
#[cfg(test)]
use self::test_picture::test_session;
use super::job::Job;
use super::parts::{self, Tone};

/// What the key that belongs to the window is called.
const HOST_KEY_NAME: &str = "Right Ctrl";
/// How long a note stays.
const NOTE_SECONDS: f64 = 6.0;

/// A machine that a window shows.
pub struct Shown {
    /// The machine.
    pub session: Session,
    /// Its name.
    pub title: String,
    /// Its folder, if it has one: screenshots and the manager's small picture go there.
    pub folder: Option<MachineFolder>,
}

/// The window of one machine.
pub struct VmWindow {
    session: Session,
    title: String,
    folder: Option<MachineFolder>,
    input: Rc<RefCell<GuestInput>>,
    reader: Arc<Mutex<ScreenReader>>,
    screen: Screen,
    pace: Arc<Pace>,
    direct: Option<Direct>,
    _thumbnail: Option<ThumbnailWriter>,
    events: Arc<Mutex<Vec<Event>>>,
    // What is shown
    scale: ScaleMode,
    look_at: (f32, f32),
    placement: Option<Placement>,
    full_screen: bool,
    dialog: Option<Dialog>,
    failures: Vec<Failure>,
    note: Option<(String, f64)>,
    titled: String,
    // What is being waited for
    answers: Vec<Pending>,
    screenshot: Option<Job<Result<PathBuf, String>>>,
    ended: Option<EndReason>,
}

struct Failure {
    what: String,
    advice: String,
}

enum Pending {
    Done(Asked<Result<(), String>>, &'static str),
    Typed(Asked<Result<usize, String>>),
}

impl VmWindow {
    /// A window for `shown`. `input` is the same that the event loop asks first.
    pub fn new(cc: &eframe::CreationContext<'_>, shown: Shown, input: Rc<RefCell<GuestInput>>) -> Self {
        let Shown { session, title, folder } = shown;
        ui_assets::apply(&cc.egui_ctx);
        let mut pace = Pace::default();
        let mut without_gpu = false;
        if let Some(state) = &cc.wgpu_render_state {
            frame_texture::prepare_gpu(state);
            without_gpu = state.adapter.get_info().device_type == wgpu::DeviceType::Cpu;
        }
        if without_gpu {
            // Each drawing costs a good part of a core, which the guest needs more.
            pace.shortest = Duration::from_millis(33);
        }
        let pace = Arc::new(pace);
        let screen = session.screen();
        let direct = cc
            .winit_window()
            .filter(|_| without_gpu)
            .and_then(|window| Direct::start(window, &screen, Arc::clone(&pace), cc.egui_ctx.clone()));
        let thumbnail = folder.as_ref().and_then(|folder| {
            let started = ThumbnailWriter::start(screen.clone(), folder.thumbnail_path());
            started.inspect_err(|error| tracing::warn!(%error, "no small pictures for the manager")).ok()
        });
        let reader = screen.watch({
            // What can be put into the window directly is no reason to draw all of it.
            let repaint = direct.is_none().then(|| (cc.egui_ctx.clone(), Arc::clone(&pace)));
            let thumbnail = thumbnail.as_ref().map(ThumbnailWriter::waker);
            move || {
                if let Some((ctx, pace)) = &repaint {
                    pace.repaint(ctx);
                }
                if let Some(changed) = &thumbnail {
                    changed();
                }
            }
        });
        if let (Some(folder), Some(window)) = (&folder, cc.winit_window()) {
            summons::listen(folder, Arc::downgrade(window), cc.egui_ctx.clone());
        }
        Self {
            events: listen(&session, &cc.egui_ctx),
            session,
            title,
            folder,
            input,
            reader: Arc::new(Mutex::new(reader)),
            screen,
            pace,
            direct,
            _thumbnail: thumbnail,
            scale: ScaleMode::Fit,
            look_at: (0.5, 0.5),
            placement: None,
            full_screen: false,
            dialog: None,
            failures: Vec::new(),
            note: None,
            titled: String::new(),
            answers: Vec::new(),
            screenshot: None,
            ended: None,
        }
    }

    /// Does what a button, a menu line or a chord says.
    fn carry_out(&mut self, ctx: &egui::Context, command: UiCommand) {
        if let Err(reason) = self.available(command) {
            self.say(ctx, format!("{reason}."));
            return;
        }
        match command {
            UiCommand::PauseOrResume => {
                let resume = self.session.state() == RunState::Paused;
                self.session.send(if resume { Command::Resume } else { Command::Pause });
            }
            UiCommand::PressPowerButton => {
                self.session.send(Command::PowerButton);
                self.say(ctx, "The guest was asked to shut down. Some need a moment, some ask first.".into());
            }
            UiCommand::Reset => self.dialog = Some(Dialog::Reset),
            UiCommand::PowerOff => self.dialog = Some(Dialog::PowerOff),
            UiCommand::InsertMedium => self.dialog = Some(Dialog::InsertMedium { path: String::new(), chooser: None }),
            UiCommand::EjectMedium => self.eject_medium(),
            UiCommand::SendCtrlAltDel => self.send_keys(&[KeyCode(29), KeyCode(56), KeyCode(111)]),
            UiCommand::TypeText => self.dialog = Some(Dialog::TypeText { text: String::new() }),
            UiCommand::Screenshot => self.take_screenshot(ctx),
            UiCommand::NextScale => {
                self.scale = self.scale.next();
                let words = ScaleMode::ALL.iter().find(|(mode, _)| *mode == self.scale).map_or("", |(_, words)| words);
                self.say(ctx, format!("{words}."));
            }
            UiCommand::WindowToGuestSize => self.fit_window_to_guest(ctx),
            UiCommand::FullScreen => {
                self.full_screen = !self.full_screen;
                ctx.send_viewport_cmd(ViewportCommand::Fullscreen(self.full_screen));
                if self.full_screen {
                    self.say(ctx, format!("{HOST_KEY_NAME}+F leaves full screen; {HOST_KEY_NAME} alone shows the bars."));
                }
            }
            UiCommand::Close => ctx.send_viewport_cmd(ViewportCommand::Close),
        }
    }

    fn available(&self, command: UiCommand) -> Result<(), &'static str> {
        command.available(self.session.state(), self.cd_drive().map_or(CdDrive::None, |(_, cd)| cd))
    }

    /// The first CD drive: its name, and whether something is in it.
    fn cd_drive(&self) -> Option<(String, CdDrive)> {
        let drive = self.session.drives().into_iter().find(|drive| drive.kind == DriveKind::Cdrom && drive.removable)?;
        let cd = if drive.medium.is_some() { CdDrive::Loaded } else { CdDrive::Empty };
        Some((drive.name, cd))
    }

    fn insert_medium(&mut self, path: PathBuf) {
        let Some((drive, _)) = self.cd_drive() else {
            self.failures.push(Failure {
                what: "This machine has no CD drive.".into(),
                advice: "Add one in the machine's settings while it is off.".into(),
            });
            return;
        };
        let (reply, asked) = reply();
        self.session.send(Command::InsertMedium { drive, path, reply });
        self.answers.push(Pending::Done(asked, "The CD was not inserted."));
    }

    fn eject_medium(&mut self) {
        if let Some((drive, _)) = self.cd_drive() {
            let (reply, asked) = reply();
            self.session.send(Command::EjectMedium { drive, force: Force::RespectLock, reply });
            self.answers.push(Pending::Done(asked, "The CD was not ejected."));
        }
    }

    fn type_text(&mut self, text: String) {
        let (reply, asked) = reply();
        self.session.send(Command::TypeText { text, reply });
        self.answers.push(Pending::Typed(asked));
    }

    /// Presses keys one after the other and lets them go the other way round.
    fn send_keys(&self, keys: &[KeyCode]) {
        let key = |code: &KeyCode, pressed| self.session.send(Command::Input(InputEvent::Key { code: *code, pressed }));
        keys.iter().for_each(|code| key(code, true));
        keys.iter().rev().for_each(|code| key(code, false));
    }

    fn take_screenshot(&mut self, ctx: &egui::Context) {
        let picture = self.screen.picture();
        let folder = match &self.folder {
            Some(folder) => folder.screenshot_folder(),
            None => {
                directories::UserDirs::new().and_then(|dirs| dirs.picture_dir().map(PathBuf::from)).unwrap_or_else(|| ".".into())
            }
        };
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let path = folder.join(format!("screenshot-{seconds}.png"));
        self.screenshot = Some(Job::start(ctx, "screenshot", move |_| {
            let written = std::fs::create_dir_all(&folder).and_then(|()| write_png(&picture, &path));
            written.map(|()| path.clone()).map_err(|error| {
                format!(
                    "The picture could not be written ({error}). Check the free space and the permissions there: {}",
                    path.display()
                )
            })
        }));
    }

    fn fit_window_to_guest(&mut self, ctx: &egui::Context) {
        let Some(placement) = self.placement else { return };
        let pixels_per_point = ctx.pixels_per_point();
        let window = ctx.content_rect().size();
        let bars = window - egui::vec2(placement.view.width as f32, placement.view.height as f32) / pixels_per_point;
        let guest = egui::vec2(placement.guest.0 as f32, placement.guest.1 as f32) / pixels_per_point;
        ctx.send_viewport_cmd(ViewportCommand::InnerSize(guest + bars));
        self.scale = ScaleMode::Exact;
    }

    /// Whether the window can go while the machine stays: the manager must be able to call it back.
    fn can_hide(&self) -> bool {
        self.folder.is_some()
    }

    fn hide(&mut self, ctx: &egui::Context) {
        ctx.send_viewport_cmd(ViewportCommand::Visible(false));
    }

    fn say(&mut self, ctx: &egui::Context, text: String) {
        self.note = Some((text, ctx.input(|input| input.time)));
        ctx.request_repaint();
    }

    /// Takes in what happened since the last drawing.
    fn hear(&mut self, ctx: &egui::Context) {
        let events = std::mem::take(&mut *lock(&self.events));
        for event in events {
            match event {
                Event::StateChanged(_)
                | Event::KeyboardLeds(_)
                | Event::TrayMoved { .. }
                | Event::Reset { .. }
                | Event::GuestShutdown
                | Event::DriveLights => {}
                Event::MediumChanged { drive: _, title: Some(title) } => self.say(ctx, format!("{title} is in the drive.")),
                Event::MediumChanged { drive: _, title: None } => self.say(ctx, "The drive is empty.".into()),
                Event::Notice { text } => self.say(ctx, text),
                Event::Failed { what, advice } => self.failures.push(Failure { what, advice }),
                Event::Ended(reason) => self.ended = Some(reason),
            }
        }
        self.leave_when_ended(ctx);
        self.collect_answers(ctx);
        for code in self.take_chords() {
            match UiCommand::of_chord(code) {
                Some(command) => self.carry_out(ctx, command),
                // F1 to F10, F11, F12: the consoles of a Unix guest, which the host would keep for its own.
                None if matches!(code, 59..=68 | 87 | 88) => self.send_keys(&[KeyCode(29), KeyCode(56), KeyCode(code)]),
                None => {}
            }
        }
    }

    /// Closes the window once its machine has ended. A failure stays to be read; everything else was wanted.
    fn leave_when_ended(&self, ctx: &egui::Context) {
        if self.ended.is_some_and(|reason| reason != EndReason::Failed) {
            ctx.send_viewport_cmd(ViewportCommand::Close);
            // eframe looks at the wish in the drawing after this one.
            ctx.request_repaint();
        }
    }

    fn take_chords(&self) -> Vec<u16> {
        self.input.borrow_mut().take_chords()
    }

    fn collect_answers(&mut self, ctx: &egui::Context) {
        for pending in std::mem::take(&mut self.answers) {
            match pending {
                Pending::Done(asked, what) => match asked.poll() {
                    // What failed before has now been done.
                    Some(Ok(())) => self.failures.retain(|failure| failure.what != what),
                    Some(Err(advice)) => {
                        self.failures.retain(|failure| failure.what != what);
                        self.failures.push(Failure { what: what.to_owned(), advice });
                    }
                    None => self.answers.push(Pending::Done(asked, what)),
                },
                Pending::Typed(asked) => match asked.poll() {
                    Some(Ok(count)) => self.say(ctx, format!("Typing {count} characters.")),
                    Some(Err(advice)) => self.failures.push(Failure { what: "The text was not typed.".into(), advice }),
                    None => self.answers.push(Pending::Typed(asked)),
                },
            }
        }
        let gone = matches!(self.session.state(), RunState::Ended | RunState::Failed);
        if gone {
            self.answers.clear(); // Nobody will answer any more.
        } else if !self.answers.is_empty() {
            ctx.request_repaint_after(Duration::from_millis(50));
        }
        if let Some(job) = &mut self.screenshot
            && let Some(result) = job.poll()
        {
            self.screenshot = None;
            match result.and_then(|result| result) {
                Ok(path) => self.say(ctx, format!("Saved: {}", path.display())),
                Err(advice) => self.failures.push(Failure { what: "The screenshot was not saved.".into(), advice }),
            }
        }
    }

    /// Drops on the window go into the CD drive.
    fn take_drops(&mut self, ctx: &egui::Context) {
        let dropped = ctx.input(|input| input.raw.dropped_files.clone());
        let mut paths = dropped.iter().map(|file| file.path().to_path_buf()).filter(|path| !path.as_os_str().is_empty());
        if let Some(path) = paths.next() {
            if paths.next().is_some() {
                self.say(ctx, "Only the first of these files was put into the drive.".into());
            }
            self.insert_medium(path);
        }
    }

    fn ask_before_closing(&mut self, ctx: &egui::Context) {
        let closing = ctx.input(|input| input.viewport().close_requested());
        let running = !matches!(self.session.state(), RunState::Ended | RunState::Failed) && self.ended.is_none();
        if closing && running {
            ctx.send_viewport_cmd(ViewportCommand::CancelClose);
            self.dialog = Some(Dialog::Close);
        }
    }

    fn set_title(&mut self, ctx: &egui::Context) {
        let state = match self.session.state() {
            RunState::Starting => " (starting)",
            RunState::Running => "",
            RunState::Paused => " (paused)",
            RunState::ShuttingDown => " (shutting down)",
            RunState::Ended => " (off)",
            RunState::Failed => " (stopped)",
        };
        let title = format!("{}{state} — Bellglass", self.title);
        if title != self.titled {
            self.titled.clone_from(&title);
            ctx.send_viewport_cmd(ViewportCommand::Title(title));
        }
    }

    fn banners_ui(&mut self, ui: &mut Ui) {
        let mut dismissed = None;
        for (index, failure) in self.failures.iter().enumerate() {
            ui.push_id(index, |ui| {
                parts::banner(ui, Tone::Failure, &failure.what, &failure.advice, |ui| {
                    if ui.button("Dismiss").clicked() {
                        dismissed = Some(index);
                    }
                });
            });
        }
        if let Some(index) = dismissed {
            self.failures.remove(index);
        }
    }

    fn guest_ui(&mut self, ui: &mut Ui) {
        let theme = Theme::of(ui.visuals());
        let rect = ui.available_rect_before_wrap();
        let response = ui.allocate_rect(rect, Sense::hover());
        response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Image, true, format!("Screen of {}", self.title)));
        let pixels_per_point = ui.ctx().pixels_per_point();
        let pixel = |points: f32| (points * pixels_per_point).round() as i32;
        let view = PixelRect {
            left: pixel(rect.left()),
            top: pixel(rect.top()),
            width: pixel(rect.right()) - pixel(rect.left()),
            height: pixel(rect.bottom()) - pixel(rect.top()),
        };
        let guest = self.guest_size();
        let before = Placement::new(view, guest, self.scale, self.look_at);
        if before.is_cut() {
            let (x, y) = self.input.borrow().pointer();
            if view.contains(x, y) {
                self.look_at = before.look_at(x, y);
            }
        }
        let placement = Placement::new(view, guest, self.scale, self.look_at);
        self.placement = Some(placement);
        let covered = self.dialog.is_some() || egui::Popup::is_any_open(ui.ctx()) || ui.ctx().egui_wants_keyboard_input();
        let (pointer, caught) = {
            let mut input = self.input.borrow_mut();
            input.set_scene(placement, covered);
            (input.pointer(), input.is_caught())
        };
        let picture = GuestPicture { reader: Arc::clone(&self.reader), placement };
        ui.painter().with_clip_rect(rect).add(egui_wgpu::Callback::new_paint_callback(rect, picture));

        // The guest draws its own pointer; a second one above it would only trail behind.
        let over = !covered && placement.picture.contains(pointer.0, pointer.1) && view.contains(pointer.0, pointer.1);
        let alive = matches!(self.session.state(), RunState::Running | RunState::ShuttingDown);
        if caught || (over && alive && self.session.pointer_is_absolute()) {
            ui.ctx().set_cursor_icon(egui::CursorIcon::None);
        }
        match self.session.state() {
            RunState::Paused => veil_ui(ui, rect, Icon::Pause, "Paused"),
            RunState::Ended => veil_ui(ui, rect, Icon::Power, "Switched off"),
            RunState::Failed => veil_ui(ui, rect, Icon::Warning, "Stopped"),
            RunState::Starting => veil_ui(ui, rect, Icon::Bellglass, "Starting"),
            RunState::Running | RunState::ShuttingDown => {}
        }
        let hovered = ui.input(|input| input.raw.hovered_files.iter().filter_map(|file| file.path.clone()).next());
        if let Some(path) = hovered {
            let name = parts::file_name_text(&path);
            drop_ui(ui, rect, theme, &name);
        }
        self.note_ui(ui, rect, theme);
    }

    /// Whether the guest's picture lies in the window as it is, with nothing of ours drawn over it.
    fn picture_is_uncovered(&self, ctx: &egui::Context) -> bool {
        let alive = matches!(self.session.state(), RunState::Running | RunState::ShuttingDown);
        let dropping = ctx.input(|input| !input.raw.hovered_files.is_empty());
        // Menus, tooltips and questions lie on layers of their own.
        let layers = ctx.memory(|memory| memory.areas().visible_layer_ids());
        alive && !dropping && self.note.is_none() && layers.iter().all(|layer| layer.order == egui::Order::Background)
    }

    fn guest_size(&self) -> (u32, u32) {
        // Reading the size must not mark anything as seen, so the screen is asked, not the reader.
        self.screen.size()
    }

    fn note_ui(&mut self, ui: &Ui, rect: egui::Rect, theme: &Theme) {
        let Some((text, since)) = &self.note else { return };
        let left = NOTE_SECONDS - (ui.input(|input| input.time) - since);
        if left <= 0.0 {
            self.note = None;
            return;
        }
        ui.ctx().request_repaint_after(Duration::from_secs_f64(left));
        let font = egui::FontId::proportional(14.0);
        let galley = ui.painter().layout(text.clone(), font, *theme.text, (rect.width() - 80.0).max(100.0));
        let size = galley.size() + egui::vec2(28.0, 16.0);
        let place = egui::Rect::from_center_size(rect.center_bottom() - egui::vec2(0.0, 24.0 + size.y / 2.0), size);
        ui.painter().rect(place, 10, *theme.surface, egui::Stroke::new(1.0, *theme.border), egui::StrokeKind::Inside);
        ui.painter().galley(place.min + egui::vec2(14.0, 8.0), galley, *theme.text);
    }
}

impl eframe::App for VmWindow {
    fn logic(&mut self, ctx: &egui::Context, _frame: &mut eframe::Frame) {
        // Also while the window is hidden, so that a machine that ends there ends its process.
        self.hear(ctx);
    }

    fn ui(&mut self, ui: &mut Ui, _frame: &mut eframe::Frame) {
        let ctx = ui.ctx().clone();
        self.pace.drawn();
        self.take_drops(&ctx);
        self.ask_before_closing(&ctx);
        self.set_title(&ctx);
        let theme = Theme::of(ui.visuals());
        let bar = |top| Frame::new().fill(*theme.window).inner_margin(Margin { left: 8, right: 12, top, bottom: top });
        // In full screen the bars come with the host key.
        if !self.full_screen || self.input.borrow().keyboard() == guest_input::Keyboard::Window {
            Panel::top("toolbar").frame(bar(4)).show(ui, |ui| self.toolbar_ui(ui));
            Panel::bottom("status").frame(bar(3)).show(ui, |ui| self.status_bar_ui(ui));
        }
        if !self.failures.is_empty() {
            Panel::top("failures").frame(bar(6)).show(ui, |ui| self.banners_ui(ui));
        }
        CentralPanel::no_frame().show(ui, |ui| self.guest_ui(ui));
        self.dialog_ui(ui);
        if let Some(direct) = &self.direct {
            direct.set_scene(self.placement.filter(|_| self.picture_is_uncovered(&ctx)));
        }
        self.leave_when_ended(&ctx);
    }

    fn clear_color(&self, visuals: &egui::Visuals) -> [f32; 4] {
        Theme::of(visuals).stage.to_normalized_gamma_f32()
    }
}

fn veil_ui(ui: &Ui, rect: egui::Rect, icon: Icon, word: &str) {
    let painter = ui.painter().with_clip_rect(rect);
    painter.rect_filled(rect, 0, egui::Color32::from_black_alpha(150));
    let ink = egui::Color32::from_gray(235);
    icon.paint(&painter, egui::Rect::from_center_size(rect.center() - egui::vec2(0.0, 16.0), egui::Vec2::splat(54.0)), ink);
    painter.text(rect.center() + egui::vec2(0.0, 34.0), egui::Align2::CENTER_CENTER, word, egui::FontId::proportional(18.0), ink);
}

fn drop_ui(ui: &Ui, rect: egui::Rect, theme: &Theme, name: &str) {
    let painter = ui.painter().with_clip_rect(rect);
    painter.rect_filled(rect, 0, egui::Color32::from_black_alpha(120));
    let place = egui::Rect::from_center_size(rect.center(), egui::vec2(rect.width().min(460.0) - 20.0, 120.0));
    painter.rect(place, 14, *theme.surface, egui::Stroke::new(2.0, *theme.accent), egui::StrokeKind::Inside);
    Icon::Disc.paint(
        &painter,
        egui::Rect::from_center_size(place.center() - egui::vec2(0.0, 22.0), egui::Vec2::splat(40.0)),
        *theme.accent,
    );
    let text = format!("Drop to insert {name} into the CD drive");
    let galley = painter.layout(text, egui::FontId::proportional(15.0), *theme.text, place.width() - 30.0);
    painter.galley(egui::pos2(place.center().x - galley.size().x / 2.0, place.center().y + 14.0), galley, *theme.text);
}

fn listen(session: &Session, ctx: &egui::Context) -> Arc<Mutex<Vec<Event>>> {
    let events = Arc::new(Mutex::new(Vec::new()));
    let (receiver, list, ctx) = (session.events(), Arc::clone(&events), ctx.clone());
    let started = spawn_guarded(
        "window-events",
        move || {
            for event in receiver {
                let last = matches!(event, Event::Ended(_));
                lock(&list).push(event);
                ctx.request_repaint();
                if last {
                    return;
                }
            }
        },
        |_| {},
    );
    if let Err(error) = started {
        tracing::error!(%error, "the window will not hear from its machine");
    }
    events
}

/// Nothing behind these locks is ever left half done, so a panic elsewhere changes nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poison| poison.into_inner())
}

/// Asks for a drawing as often as the picture changes, but no faster than the host can draw.
struct Pace {
    shortest: Duration,
    origin: Instant,
    last_drawn_micros: AtomicU64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { shortest: Duration::ZERO, origin: Instant::now(), last_drawn_micros: AtomicU64::new(0) }
    }
}

impl Pace {
    fn drawn(&self) {
        self.last_drawn_micros.store(self.origin.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    fn repaint(&self, ctx: &egui::Context) {
        let since = self.origin.elapsed().saturating_sub(Duration::from_micros(self.last_drawn_micros.load(Ordering::Relaxed)));
        match self.shortest.checked_sub(since) {
            Some(wait) if !wait.is_zero() => ctx.request_repaint_after(wait),
            _ => ctx.request_repaint(),
        }
    }
}
