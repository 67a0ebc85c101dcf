//! The page of disk and CD images: a list with real sizes and users, and what can be done to them. Everything that takes time is a job
//! with its progress and a way to stop it; jobs go on while the page is closed.
//!
//! * `catalogue.rs`: which images there are.  * `operations.rs`: what is done to them.  * `commands.rs`: the table of actions.
//! * `table.rs`: the list.  * `questions.rs`: what is asked before something is done.

mod catalogue;
mod commands;
#[cfg(test)]
mod media_tests;
mod operations;
mod questions;
mod table;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use egui::{Key, Ui};
use engine_session::library::Library;
use ui_assets::{Icon, Theme};

use self::catalogue::{Catalogue, Image, State};
use self::commands::{COMMANDS, MediaCommand};
use self::operations::{Cancel, Compacted, Outcome, Tool, keep_compacted};
use self::questions::{Answer, Plan, Question};
use super::file_dialog::{FileDialog, Wanted};
use super::job::Job;
use super::parts::{self, Tone, Weight, bytes_text, file_name_text};

/// How often the list is read anew while the page is open.
const PERIOD: Duration = Duration::from_secs(3);

/// Whether the page stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// It is still open.
    Open,
    /// The person is done.
    Done,
}

/// Something that is being done to an image.
struct Running {
    title: String,
    /// The files that it works on: an image, and the copy that it makes.
    files: Vec<PathBuf>,
    job: Job<Result<Outcome, String>>,
    cancel: Cancel,
    /// Stopping it halfway leaves nothing behind.
    stoppable: bool,
}

/// Something to tell, until it is dismissed.
enum News {
    Told { tone: Tone, what: String, advice: String },
    Findings { path: PathBuf, text: String, corrupt: bool },
    Choice(Compacted),
}

/// What a click on a piece of news asks for.
enum Reply {
    Dismiss,
    Repair(&'static str),
    Keep,
    ThrowAway,
}

/// The page and its jobs.
pub struct Media {
    library: Library,
    program: PathBuf,
    catalogue: Catalogue,
    read: bool,
    reading: Option<Job<Result<Catalogue, String>>>,
    read_at: Option<Instant>,
    failure: Option<String>,
    selected: Option<PathBuf>,
    filter: String,
    question: Option<Question>,
    chooser: Option<FileDialog>,
    running: Vec<Running>,
    /// Short work whose failure alone is worth telling.
    errands: Vec<Job<Result<(), String>>>,
    news: Vec<News>,
}

impl Media {
    /// The images of `library`; `program` is this program, which does the work.
    pub fn new(library: Library, program: PathBuf) -> Self {
        Self {
            library,
            program,
            catalogue: Catalogue::default(),
            read: false,
            reading: None,
            read_at: None,
            failure: None,
            selected: None,
            filter: String::new(),
            question: None,
            chooser: None,
            running: Vec::new(),
            errands: Vec::new(),
            news: Vec::new(),
        }
    }

    /// How many jobs are at work, for who shows that while the page is closed.
    pub fn jobs(&self) -> usize {
        self.running.len()
    }

    /// The person has opened the page: the list is read at once.
    pub fn opened(&mut self) {
        self.read_at = None;
    }

    /// Takes in what threads have found. Also while the page is closed.
    pub fn hear(&mut self) {
        if let Some(result) = self.reading.as_mut().and_then(Job::poll) {
            self.reading = None;
            match result.and_then(|result| result) {
                Ok(catalogue) => {
                    self.failure = None;
                    self.read = true;
                    self.catalogue = catalogue;
                }
                Err(reason) => self.failure = Some(reason),
            }
        }
        let mut ended = Vec::new();
        self.running.retain_mut(|running| match running.job.poll() {
            None => true,
            Some(result) => {
                ended.push((running.title.clone(), result.and_then(|result| result)));
                false
            }
        });
        for (title, result) in ended {
            self.read_at = None;
            match result {
                Ok(Outcome::Cancelled) => {}
                Ok(Outcome::Done(what)) => self.tell(Tone::Note, what, String::new()),
                Ok(Outcome::Findings { path, text, corrupt }) => self.news.push(News::Findings { path, text, corrupt }),
                Ok(Outcome::Compacted(compacted)) => self.news.push(News::Choice(compacted)),
                Err(reason) => self.tell(Tone::Failure, format!("{title} did not work."), reason),
            }
        }
        let mut failed = Vec::new();
        self.errands.retain_mut(|job| match job.poll() {
            None => true,
            Some(result) => {
                failed.extend(result.and_then(|result| result).err());
                false
            }
        });
        if !failed.is_empty() {
            self.read_at = None;
        }
        for reason in failed {
            self.tell(Tone::Failure, "That did not work.".to_owned(), reason);
        }
        if let Some(path) = FileDialog::follow(&mut self.chooser) {
            self.add(path);
        }
    }

    fn tell(&mut self, tone: Tone, what: String, advice: String) {
        self.news.push(News::Told { tone, what, advice });
    }

    fn add(&mut self, path: PathBuf) {
        match catalogue::set_added(&self.library, &path, true) {
            Ok(()) => self.selected = Some(catalogue::plain(&path)),
            Err(reason) => self.tell(Tone::Failure, "The image could not be added.".to_owned(), reason),
        }
        self.read_at = None;
    }

    fn selected_image(&self) -> Option<&Image> {
        self.catalogue.find(self.selected.as_deref()?)
    }

    fn available(&self, command: MediaCommand) -> Result<(), String> {
        let image = self.selected_image();
        if let Some(image) = image
            && self.running.iter().any(|running| running.files.contains(&image.path))
            && !matches!(command, MediaCommand::New | MediaCommand::Add)
        {
            return Err("Something is being done to it".to_owned());
        }
        command.available(image, &self.catalogue)
    }

    /// Does what a button or a key says.
    fn carry_out(&mut self, ctx: &egui::Context, command: MediaCommand) {
        if self.available(command).is_err() {
            return;
        }
        let image = self.selected_image().cloned();
        match (command, image) {
            (MediaCommand::New, _) => self.question = Some(Question::new_disk(self.library.root())),
            (MediaCommand::Add, _) => self.chooser = Some(FileDialog::open(ctx, Wanted::Image, Some(self.library.root()))),
            (MediaCommand::Convert, Some(image)) => self.question = Some(Question::convert(image)),
            (MediaCommand::Resize, Some(image)) => self.question = Some(Question::resize(image)),
            (MediaCommand::Delete, Some(image)) => {
                let needs = self.catalogue.needed_by(&image);
                self.question = Some(if needs.is_empty() { Question::Delete(image) } else { Question::Needed(image, needs) });
            }
            (MediaCommand::Locate, Some(image)) => {
                let overlays = self.catalogue.built_on(&image.path).cloned().collect();
                self.question = Some(Question::locate(image, overlays));
            }
            (MediaCommand::Check, Some(image)) => self.start(ctx, Plan::Check { image, repair: None }),
            (MediaCommand::Compact, Some(image)) => self.start(ctx, Plan::Compact(image)),
            (MediaCommand::Forget, Some(image)) => {
                if let Err(reason) = catalogue::set_added(&self.library, &image.path, false) {
                    self.tell(Tone::Failure, "The image is still listed.".to_owned(), reason);
                }
                self.read_at = None;
            }
            (_, None) => {}
        }
    }

    /// Starts a job.
    fn start(&mut self, ctx: &egui::Context, plan: Plan) {
        if let Plan::Delete(image) = plan {
            self.errands.push(Job::start(ctx, "media-delete", move |_| questions::move_to_trash(&image)));
            self.read_at = None;
            return;
        }
        let (title, stoppable) = (plan.title(), plan.is_stoppable());
        if let Plan::Create { path, .. } | Plan::Convert { to: path, .. } = &plan {
            self.selected = Some(catalogue::plain(path)); // Once it is there.
        }
        let files = plan.files();
        let (program, library, cancel) = (self.program.clone(), self.library.clone(), Cancel::default());
        let stop = cancel.clone();
        let job = Job::start(ctx, "media-job", move |reporter| {
            let tool = Tool { program: &program, cancel: &stop, reporter };
            match plan {
                Plan::Create { path, format, size } => tool.create(&path, format, size),
                Plan::Convert { image, format, compressed, to, passphrase } => {
                    tool.convert(&image, passphrase.as_ref(), format, compressed, &to)
                }
                Plan::Resize { image, size, shrink, passphrase } => tool.resize(&image, passphrase.as_ref(), size, shrink),
                Plan::Locate { missing, overlays, to } => tool.locate(&library, &missing, &overlays, &to),
                Plan::Check { image, repair } => tool.check(&image, repair),
                Plan::Compact(image) => tool.compact(&image),
                Plan::Delete(_) => Ok(Outcome::Cancelled),
            }
        });
        self.running.push(Running { title, files, job, cancel, stoppable });
    }

    /// Draws the page.
    pub fn page_ui(&mut self, ui: &mut Ui) -> Page {
        let ctx = ui.ctx().clone();
        self.keep_reading(&ctx);
        let dropped = ctx.input(|input| input.raw.dropped_files.first().map(|file| file.path().to_path_buf()));
        if let Some(path) = dropped {
            self.add(path);
        }
        let mut page = Page::Open;
        ui.horizontal(|ui| {
            ui.heading("Disk and CD images");
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                if parts::button(ui, Icon::Check, "Done", Weight::Primary).clicked() {
                    page = Page::Done;
                }
                let theme = Theme::of(ui.visuals());
                let taken = bytes_text(self.catalogue.total_on_disk());
                let mut total = match self.catalogue.images.len() {
                    1 => format!("1 image takes {taken}"),
                    count => format!("{count} images take {taken}"),
                };
                if let freeable @ 1.. = self.catalogue.total_freeable() {
                    total += &format!(", {} of them freeable", bytes_text(freeable));
                }
                ui.label(egui::RichText::new(total).size(12.5).color(*theme.weak_text));
            });
        });
        ui.add_space(4.0);
        ui.horizontal_wrapped(|ui| {
            for entry in COMMANDS {
                // Some are shown only where they can ever be used.
                let image = self.selected_image();
                let is_shown = match entry.command {
                    MediaCommand::Forget => image.is_some_and(|image| image.added),
                    MediaCommand::Locate => image.is_some_and(|image| image.state == State::Missing),
                    _ => true,
                };
                if is_shown {
                    self.command_ui(ui, entry.command);
                }
            }
        });
        FileDialog::hint_ui(&self.chooser, ui);
        self.running_ui(ui);
        self.news_ui(ui);
        if let Some(reason) = &self.failure {
            parts::banner(ui, Tone::Failure, "The images cannot be listed.", reason, |_| {});
        }
        ui.add_space(4.0);
        self.table_ui(ui);
        self.question_ui(&ctx);
        if !self.take_keys(&ctx) {
            return page;
        }
        Page::Done
    }

    /// Reads the list again from time to time.
    fn keep_reading(&mut self, ctx: &egui::Context) {
        let due = self.read_at.is_none_or(|at| at.elapsed() >= PERIOD);
        if due && self.reading.is_none() {
            self.read_at = Some(Instant::now());
            let (library, before) = (self.library.clone(), self.catalogue.clone());
            self.reading = Some(Job::start(ctx, "media-list", move |_| Catalogue::read(&library, &before)));
        }
        ctx.request_repaint_after(PERIOD);
    }

    fn command_ui(&mut self, ui: &mut Ui, command: MediaCommand) {
        let entry = command.entry();
        let available = self.available(command);
        let tip = match entry.keys {
            Some(keys) => format!("{} ({})", entry.tooltip, ui.ctx().format_shortcut(&keys)),
            None => entry.tooltip.to_owned(),
        };
        let response = ui.add_enabled_ui(available.is_ok(), |ui| parts::button(ui, entry.icon, entry.text, Weight::Plain)).inner;
        let response = match available {
            Ok(()) => response.on_hover_text(tip),
            Err(reason) => response.on_disabled_hover_text(format!("{tip}\n{reason}.")),
        };
        if response.clicked() {
            self.carry_out(ui.ctx(), command);
        }
    }

    fn running_ui(&mut self, ui: &mut Ui) {
        for running in &self.running {
            let progress = running.job.progress();
            parts::card(ui, |ui| {
                ui.horizontal(|ui| {
                    ui.spinner();
                    ui.label(&running.title);
                    ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                        let tip = if running.stoppable { "Nothing is left of it then" } else { "It cannot be stopped halfway" };
                        if ui.add_enabled(running.stoppable, egui::Button::new("Stop")).on_hover_text(tip).clicked() {
                            running.cancel.cancel();
                        }
                    });
                });
                if let Some(fraction) = progress.fraction {
                    ui.add(egui::ProgressBar::new(fraction).desired_height(8.0));
                }
                ui.label(&progress.text);
            });
        }
    }

    fn news_ui(&mut self, ui: &mut Ui) {
        let mut reply = None;
        for (index, news) in self.news.iter().enumerate() {
            if let Some(answer) = one_news_ui(ui, news) {
                reply = Some((index, answer));
            }
        }
        let Some((index, reply)) = reply else { return };
        match (self.news.remove(index), reply) {
            (News::Findings { path, .. }, Reply::Repair(how)) => {
                if let Some(image) = self.catalogue.find(&path).cloned() {
                    self.start(ui.ctx(), Plan::Check { image, repair: Some(how) });
                }
            }
            (News::Choice(compacted), Reply::Keep) => {
                match keep_compacted(&compacted) {
                    Ok(what) => self.tell(Tone::Note, what, String::new()),
                    Err(reason) => {
                        self.tell(Tone::Failure, "The original stays.".to_owned(), reason);
                        self.news.push(News::Choice(compacted));
                    }
                }
                self.read_at = None;
            }
            (News::Choice(compacted), Reply::ThrowAway) => {
                if let Err(error) = std::fs::remove_file(&compacted.copy) {
                    self.tell(Tone::Failure, "The copy could not be removed.".to_owned(), error.to_string());
                }
                self.read_at = None;
            }
            _ => {}
        }
    }

    /// Keys of the page; whether it is left.
    fn take_keys(&mut self, ctx: &egui::Context) -> bool {
        if self.question.is_some() || ctx.egui_wants_keyboard_input() || egui::Popup::is_any_open(ctx) {
            return false;
        }
        let pressed = COMMANDS
            .iter()
            .filter(|entry| self.available(entry.command).is_ok())
            .find(|entry| entry.keys.is_some_and(|keys| ctx.input_mut(|input| input.consume_shortcut(&keys))));
        if let Some(entry) = pressed {
            self.carry_out(ctx, entry.command);
            return false;
        }
        let (down, up, leave) = ctx
            .input(|input| (input.key_pressed(Key::ArrowDown), input.key_pressed(Key::ArrowUp), input.key_pressed(Key::Escape)));
        if down || up {
            self.move_selection(i32::from(down) - i32::from(up));
        }
        leave
    }

    fn move_selection(&mut self, step: i32) {
        let shown: Vec<PathBuf> = self.shown().map(|image| image.path.clone()).collect();
        let at = shown.iter().position(|path| Some(path) == self.selected.as_ref());
        let next = at.map_or(0, |at| at.saturating_add_signed(step as isize)).min(shown.len().saturating_sub(1));
        if let Some(path) = shown.into_iter().nth(next) {
            self.selected = Some(path);
        }
    }

    fn question_ui(&mut self, ctx: &egui::Context) {
        let Some(question) = &mut self.question else { return };
        match question.modal_ui(ctx) {
            None => {}
            Some(Answer::No) => self.question = None,
            Some(Answer::Yes(plan)) => {
                self.question = None;
                self.start(ctx, *plan);
            }
        }
    }
}

fn one_news_ui(ui: &mut Ui, news: &News) -> Option<Reply> {
    let mut reply = None;
    let mut button = |ui: &mut Ui, text: &str, means: Reply| {
        if ui.button(text).clicked() {
            reply = Some(means);
        }
    };
    match news {
        News::Told { tone, what, advice } => parts::banner(ui, *tone, what, advice, |ui| button(ui, "Dismiss", Reply::Dismiss)),
        News::Findings { path, text, corrupt } => {
            let (tone, how, word) =
                if *corrupt { (Tone::Failure, "all", "Repair") } else { (Tone::Warning, "leaks", "Give the space back") };
            parts::banner(ui, tone, &format!("{} was checked.", file_name_text(path)), text, |ui| {
                button(ui, word, Reply::Repair(how));
                button(ui, "Dismiss", Reply::Dismiss);
            });
        }
        News::Choice(Compacted { path, before, after, .. }) => {
            let what = format!("{}: {} before, {} after.", file_name_text(path), bytes_text(*before), bytes_text(*after));
            let advice = "Both hold the same, byte for byte. The original stays until you choose.";
            parts::banner(ui, Tone::Note, &what, advice, |ui| {
                button(ui, "Keep the smaller one", Reply::Keep);
                button(ui, "Keep the original", Reply::ThrowAway);
            });
        }
    }
    reply
}
