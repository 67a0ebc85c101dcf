//! The manager: the list of machines and the details of the selected one, or the wizard. It runs no machine; each has a
//! process of its own that goes on when the manager is closed.
//!
//! ```text
//!   thread `library-scan` ── rows, when changed ──► Manager ── UiCommand ──► a thread: `bellglass run`, QMP, trash
//!                         ◄── look again ──                    └─ what failed, as a sentence ─► the machine's banner
//! ```

mod commands;
mod details;
mod live_linux;
mod machines;
#[cfg(test)]
mod manager_tests;
mod new_disk;
mod questions;
mod rows;
mod scan;
mod settings;
mod unlock;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::SystemTime;

use egui::{CentralPanel, Frame, Margin, Panel, TextureHandle, Ui};
use engine_base::spawn_guarded;
use engine_config::Host;
use engine_session::library::{Library, MachineFolder};
use ui_assets::{Icon, Theme};

use self::commands::{COMMANDS, UiCommand};
use self::questions::Question;
use self::scan::{Row, Scanner, Status};
use self::settings::{Page, Settings};
use self::unlock::{Unlock, disks_to_unlock};
use super::form::Secret;
use super::job::Job;
use super::media::{self, Media};
use super::parts::{self, Tone, Weight};
use super::wizard::{Outcome, Then, Wizard};
use crate::machine_process::LockedDisk;

/// The manager's window.
pub struct Manager {
    library: Library,
    host: Host,
    program: PathBuf,
    builder: Option<PathBuf>,
    scanner: Scanner,
    rows: Vec<Row>,
    list_error: Option<String>,
    scanned: bool,
    selected: Option<MachineFolder>,
    filter: String,
    pictures: HashMap<PathBuf, (SystemTime, TextureHandle)>,
    wizard: Option<Box<Wizard>>,
    settings: Option<Box<Settings>>,
    media: Media,
    /// Its page is open.
    shows_media: bool,
    question: Option<Question>,
    /// Machines that are to start, once it is known which of their disks ask for a passphrase.
    starting: Vec<(MachineFolder, Job<Vec<LockedDisk>>)>,
    /// What failed, by machine; `None` is the manager itself.
    failures: Vec<(Option<MachineFolder>, String)>,
    jobs: Vec<(Option<MachineFolder>, Job<Result<(), String>>)>,
    live: Option<Job<Result<MachineFolder, String>>>,
    /// Just made: to be selected once it is listed.
    awaited: Option<MachineFolder>,
}

impl Manager {
    /// The manager of the person's own library.
    ///
    /// # Errors
    /// When the account has no home, or the host refuses a thread.
    pub fn new(cc: &eframe::CreationContext<'_>) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Self::with(cc, Library::of_this_person()?, machines::this_program(), Host::this_computer())
    }

    /// A manager of any library.
    ///
    /// # Errors
    /// When the host refuses a thread.
    pub fn with(
        cc: &eframe::CreationContext<'_>,
        library: Library,
        program: PathBuf,
        host: Host,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        ui_assets::apply(&cc.egui_ctx);
        let ctx = cc.egui_ctx.clone();
        Ok(Self {
            scanner: Scanner::start(library.clone(), move || ctx.request_repaint())?,
            media: Media::new(library.clone(), program.clone()),
            shows_media: false,
            library,
            host,
            program,
            builder: live_linux::builder(),
            rows: Vec::new(),
            list_error: None,
            scanned: false,
            selected: None,
            filter: String::new(),
            pictures: HashMap::new(),
            wizard: None,
            settings: None,
            question: None,
            starting: Vec::new(),
            failures: Vec::new(),
            jobs: Vec::new(),
            live: None,
            awaited: None,
        })
    }

    fn selected_row(&self) -> Option<&Row> {
        let selected = self.selected.as_ref()?;
        self.rows.iter().find(|row| row.entry.folder == *selected)
    }

    fn available(&self, command: UiCommand) -> Result<(), &'static str> {
        if command == UiCommand::TryLiveLinux {
            return match (&self.builder, &self.live) {
                (None, _) => Err("The builder of the live Linux is not installed"),
                (_, Some(_)) => Err("The live Linux is being built"),
                _ => Ok(()),
            };
        }
        let row = self.selected_row();
        let needs_settings = matches!(command, UiCommand::Start | UiCommand::Settings);
        if needs_settings && row.is_some_and(|row| row.entry.machine.is_err()) {
            return Err("The machine's settings are damaged");
        }
        command.available(row.map(|row| &row.status))
    }

    /// Does what a button or a key says.
    fn carry_out(&mut self, ctx: &egui::Context, command: UiCommand) {
        if self.available(command).is_err() {
            return;
        }
        match command {
            UiCommand::New => {
                self.settings = None;
                self.wizard = Some(Box::new(Wizard::new(self.library.clone(), self.host)));
            }
            UiCommand::Rescan => self.scanner.look_again(),
            UiCommand::TryLiveLinux => self.try_live_linux(ctx),
            UiCommand::Media => {
                self.settings = None;
                self.shows_media = true;
                self.media.opened();
            }
            _ => {
                let Some(folder) = self.selected.clone() else { return };
                match command {
                    UiCommand::Start => self.start(ctx, folder),
                    UiCommand::Show => self.in_background(ctx, folder, machines::show),
                    UiCommand::Pause => self.tell(ctx, folder, "stop"),
                    UiCommand::Resume => self.tell(ctx, folder, "cont"),
                    UiCommand::ShutDown => self.tell(ctx, folder, "system_powerdown"),
                    UiCommand::Reset => self.question = Some(Question::Reset(folder)),
                    UiCommand::PowerOff => self.question = Some(Question::PowerOff(folder)),
                    UiCommand::Settings => self.open_settings(),
                    UiCommand::Delete => self.question = Some(Question::delete(folder)),
                    UiCommand::New | UiCommand::Rescan | UiCommand::TryLiveLinux | UiCommand::Media => {}
                }
            }
        }
    }

    fn open_settings(&mut self) {
        let Some(row) = self.selected_row() else { return };
        if let Ok(machine) = &row.entry.machine {
            self.settings =
                Some(Box::new(Settings::new(row.entry.folder.clone(), machine.clone(), self.host, self.program.clone())));
        }
    }

    fn tell(&mut self, ctx: &egui::Context, folder: MachineFolder, command: &'static str) {
        self.in_background(ctx, folder, move |folder| machines::tell(folder, command));
    }

    /// Does something to a machine on a thread; the list is looked at again afterwards.
    fn in_background(
        &mut self,
        ctx: &egui::Context,
        folder: MachineFolder,
        work: impl FnOnce(&MachineFolder) -> Result<(), String> + Send + 'static,
    ) {
        self.forget_failures(&folder);
        let (nudge, target) = (self.scanner.nudger(), folder.clone());
        let job = Job::start(ctx, "machine-command", move |_| {
            let result = work(&target);
            nudge.try_send(()).ok(); // Full: it will be looked at anyway.
            result
        });
        self.jobs.push((Some(folder), job));
    }

    /// Starts a machine, or first asks for its passphrases.
    fn start(&mut self, ctx: &egui::Context, folder: MachineFolder) {
        self.forget_failures(&folder);
        let target = folder.clone();
        let job = Job::start(ctx, "look-for-locks", move |_| disks_to_unlock(&target));
        self.starting.push((folder, job));
    }

    /// Starts the machines of which it is known what they need.
    fn go_on_starting(&mut self, ctx: &egui::Context) {
        // One question at a time; who comes next waits.
        if self.question.is_none()
            && let Some((index, locked)) =
                self.starting.iter_mut().enumerate().find_map(|(index, (_, job))| Some((index, job.poll()?)))
        {
            let (folder, _) = self.starting.remove(index);
            match locked.unwrap_or_default() {
                locked if locked.is_empty() => self.launch(ctx, folder, Vec::new()),
                locked => self.question = Some(Question::Unlock(Unlock::new(folder, locked))),
            }
        }
        if let Some(Question::Unlock(unlock)) = &mut self.question
            && let Some((folder, passphrases)) = unlock.poll()
        {
            self.question = None;
            self.launch(ctx, folder, passphrases);
        }
    }

    fn launch(&mut self, ctx: &egui::Context, folder: MachineFolder, passphrases: Vec<Secret>) {
        let program = self.program.clone();
        let nudge = self.scanner.nudger();
        // The machine's process takes its lock a moment after it was started; look again then.
        let later = spawn_guarded(
            "look-again",
            move || {
                for _ in 0..8 {
                    std::thread::sleep(std::time::Duration::from_millis(150));
                    nudge.try_send(()).ok(); // Full: it will be looked at anyway.
                }
            },
            |_| {},
        );
        if let Err(error) = later {
            tracing::warn!(%error, "the list will follow within a second");
        }
        self.in_background(ctx, folder, move |folder| machines::run_process(&program, folder, &passphrases));
    }

    fn try_live_linux(&mut self, ctx: &egui::Context) {
        let Some(builder) = self.builder.clone() else { return };
        let library = self.library.clone();
        self.live = Some(Job::start(ctx, "live-linux", move |reporter| live_linux::make(&builder, &library, reporter)));
    }

    fn forget_failures(&mut self, folder: &MachineFolder) {
        self.failures.retain(|(of, _)| of.as_ref() != Some(folder));
    }

    /// Takes in what threads have found since the last drawing.
    fn hear(&mut self, ctx: &egui::Context) {
        self.media.hear();
        if let Some(rows) = self.scanner.take() {
            self.scanned = true;
            match rows {
                Ok(rows) => (self.rows, self.list_error) = (rows, None),
                Err(reason) => self.list_error = Some(reason),
            }
            self.load_pictures(ctx);
            if let Some(awaited) = self.awaited.take_if(|awaited| self.rows.iter().any(|row| row.entry.folder == *awaited)) {
                self.selected = Some(awaited);
            }
            if self.selected_row().is_none() {
                self.selected = self.rows.first().map(|row| row.entry.folder.clone());
            }
        }
        let failures = &mut self.failures;
        self.jobs.retain_mut(|(folder, job)| match job.poll() {
            None => true,
            Some(result) => {
                if let Err(reason) = result.and_then(|result| result) {
                    failures.push((folder.clone(), reason));
                }
                false
            }
        });
        if let Some(result) = self.live.as_mut().and_then(Job::poll) {
            self.live = None;
            match result.and_then(|result| result) {
                Ok(folder) => self.welcome(ctx, folder, Then::Start),
                Err(reason) => self.failures.push((None, reason)),
            }
        }
        if let Some(Question::Delete { files, .. }) = &mut self.question {
            files.poll();
        }
        self.go_on_starting(ctx);
    }

    /// A machine was just made.
    fn welcome(&mut self, ctx: &egui::Context, folder: MachineFolder, then: Then) {
        self.awaited = Some(folder.clone());
        self.filter.clear();
        self.scanner.look_again();
        if then == Then::Start {
            self.start(ctx, folder);
        }
    }

    fn load_pictures(&mut self, ctx: &egui::Context) {
        let mut before = std::mem::take(&mut self.pictures);
        for row in &self.rows {
            let Some((taken, image)) = &row.thumbnail else { continue };
            let path = row.entry.folder.path().to_path_buf();
            let picture = match before.remove(&path) {
                Some((known, texture)) if known == *taken => texture,
                _ => ctx.load_texture("thumbnail", image.clone(), egui::TextureOptions::LINEAR),
            };
            self.pictures.insert(path, (*taken, picture));
        }
    }

    fn take_keys(&mut self, ctx: &egui::Context) {
        if self.has_page() || self.question.is_some() || ctx.egui_wants_keyboard_input() || egui::Popup::is_any_open(ctx) {
            return;
        }
        let pressed = COMMANDS
            .iter()
            .filter(|entry| self.available(entry.command).is_ok())
            .find(|entry| entry.keys.is_some_and(|keys| ctx.input_mut(|input| input.consume_shortcut(&keys))));
        if let Some(entry) = pressed {
            self.carry_out(ctx, entry.command);
        }
        let step = ctx
            .input(|input| i32::from(input.key_pressed(egui::Key::ArrowDown)) - i32::from(input.key_pressed(egui::Key::ArrowUp)));
        if step != 0 {
            self.move_selection(step);
        }
    }

    fn move_selection(&mut self, step: i32) {
        let shown: Vec<_> = self.shown_rows().map(|row| row.entry.folder.clone()).collect();
        let at = shown.iter().position(|folder| Some(folder) == self.selected.as_ref());
        let next = at.map_or(0, |at| at.saturating_add_signed(step as isize)).min(shown.len().saturating_sub(1));
        if let Some(folder) = shown.into_iter().nth(next) {
            self.selected = Some(folder);
        }
    }

    fn take_drop(&mut self, ctx: &egui::Context) {
        if self.has_page() {
            return; // The wizard takes drops itself.
        }
        let dropped = ctx.input(|input| input.raw.dropped_files.first().map(|file| file.path().to_path_buf()));
        if let Some(path) = dropped {
            self.wizard = Some(Box::new(Wizard::with_iso(self.library.clone(), self.host, path)));
        }
    }

    fn toolbar_ui(&mut self, ui: &mut Ui) {
        ui.horizontal(|ui| {
            let theme = Theme::of(ui.visuals());
            let (rect, _) = ui.allocate_exact_size(egui::Vec2::splat(26.0), egui::Sense::hover());
            Icon::Bellglass.paint(ui.painter(), rect, *theme.accent);
            ui.label(egui::RichText::new("Bellglass").size(17.0).strong());
            ui.add_space(14.0);
            let weight = if self.rows.is_empty() { Weight::Plain } else { Weight::Primary };
            self.command_ui(ui, UiCommand::New, weight);
            if !self.rows.is_empty() {
                self.command_ui(ui, UiCommand::TryLiveLinux, Weight::Plain);
            }
            self.command_ui(ui, UiCommand::Media, Weight::Plain);
            if self.media.jobs() > 0 {
                ui.spinner().on_hover_text("Something is being done to an image");
            }
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                let host = format!(
                    "{} CPUs, {} of memory, {} free",
                    self.host.cpus,
                    parts::bytes_text(self.host.memory_mib << 20),
                    parts::bytes_text(self.host.available_mib << 20),
                );
                ui.label(egui::RichText::new(host).size(12.5).color(*theme.weak_text))
                    .on_hover_text("This computer, when the manager was opened");
            });
        });
    }

    /// A button for one line of the table.
    fn command_ui(&mut self, ui: &mut Ui, command: UiCommand, weight: Weight) {
        let entry = command.entry();
        let available = self.available(command);
        let tip = match entry.keys {
            Some(keys) => format!("{} ({})", entry.tooltip, ui.ctx().format_shortcut(&keys)),
            None => entry.tooltip.to_owned(),
        };
        let response = ui.add_enabled_ui(available.is_ok(), |ui| parts::button(ui, entry.icon, entry.text, weight)).inner;
        let response = match available {
            Ok(()) => response.on_hover_text(tip),
            Err(reason) => response.on_disabled_hover_text(format!("{tip}\n{reason}.")),
        };
        if response.clicked() {
            self.carry_out(ui.ctx(), command);
        }
    }

    /// News of the manager itself, and the live Linux's progress.
    fn news_ui(&mut self, ui: &mut Ui) {
        if let Some(job) = &self.live {
            let progress = job.progress();
            parts::card(ui, |ui| {
                ui.horizontal(|ui| {
                    ui.spinner();
                    ui.label("Preparing the live Linux, once");
                });
                ui.add(egui::ProgressBar::new(progress.fraction.unwrap_or(0.0)).desired_height(8.0));
                ui.add(egui::Label::new(&progress.text).truncate());
            });
        }
        let mut dismissed = None;
        for (index, (folder, reason)) in self.failures.iter().enumerate() {
            if folder.is_none() {
                parts::banner(ui, Tone::Failure, "That did not work.", reason, |ui| {
                    if ui.button("Dismiss").clicked() {
                        dismissed = Some(index);
                    }
                });
            }
        }
        if let Some(index) = dismissed {
            self.failures.remove(index);
        }
    }

    /// Whether a page lies over the list.
    fn has_page(&self) -> bool {
        self.wizard.is_some() || self.settings.is_some() || self.shows_media
    }

    fn settings_ui(&mut self, ui: &mut Ui) {
        let Some(settings) = &mut self.settings else { return };
        let row = self.rows.iter().find(|row| row.entry.folder == *settings.folder());
        let status = row.map_or(Status::Off, |row| row.status.clone());
        if settings.page_ui(ui, &status) == Page::Done {
            self.settings = None;
            self.scanner.look_again();
        }
    }

    fn wizard_ui(&mut self, ui: &mut Ui) {
        let Some(wizard) = &mut self.wizard else { return };
        match wizard.page_ui(ui) {
            Outcome::Open => {}
            Outcome::Cancelled => self.wizard = None,
            Outcome::Created(folder, then) => {
                self.wizard = None;
                self.welcome(ui.ctx(), folder, then);
            }
        }
    }
}

impl eframe::App for Manager {
    fn ui(&mut self, ui: &mut Ui, _frame: &mut eframe::Frame) {
        let ctx = ui.ctx().clone();
        self.hear(&ctx);
        self.take_drop(&ctx);
        self.take_keys(&ctx);
        let theme = Theme::of(ui.visuals());
        let bar = Frame::new().fill(*theme.window).inner_margin(Margin::symmetric(14, 8));
        Panel::top("toolbar").frame(bar).show(ui, |ui| self.toolbar_ui(ui));
        let page = Frame::new().fill(*theme.window).inner_margin(Margin::same(14));
        if self.has_page() {
            CentralPanel::default().frame(page).show(ui, |ui| match (&self.wizard, &self.settings) {
                (Some(_), _) => self.wizard_ui(ui),
                (None, Some(_)) => self.settings_ui(ui),
                (None, None) => self.shows_media = self.media.page_ui(ui) == media::Page::Open,
            });
            return;
        }
        if self.rows.is_empty() {
            CentralPanel::default().frame(page).show(ui, |ui| self.empty_ui(ui));
        } else {
            let side = Frame::new().fill(*theme.window).inner_margin(Margin { left: 12, right: 8, top: 12, bottom: 12 });
            Panel::left("machines").frame(side).default_size(330.0).min_size(240.0).show(ui, |ui| self.rows_ui(ui));
            CentralPanel::default().frame(page).show(ui, |ui| {
                self.news_ui(ui);
                self.details_ui(ui);
            });
        }
        self.question_ui(&ctx);
    }

    fn clear_color(&self, visuals: &egui::Visuals) -> [f32; 4] {
        Theme::of(visuals).window.to_normalized_gamma_f32()
    }
}

fn status_word(status: &Status) -> &'static str {
    match status {
        Status::Off => "Off",
        Status::Busy => "Busy",
        Status::Running => "Running",
        Status::Paused => "Paused",
        Status::Stopped => "Stopped",
    }
}

fn status_color(theme: &Theme, status: &Status) -> egui::Color32 {
    match status {
        Status::Off => *theme.weak_text,
        Status::Busy => *theme.accent,
        Status::Running => *theme.running,
        Status::Paused => *theme.paused,
        Status::Stopped => *theme.error,
    }
}
