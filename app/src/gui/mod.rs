//! The windows: the manager (list of machines, wizard) and the window of one running machine. Each is a process of its
//! own. They hold no engine: the manager speaks QMP to running machines, a machine's window has a session.
//!
//! Threads: the window's own (winit's event loop, egui, wgpu), and one for each thing that takes time (see `job.rs`).
//! Start at [`manager`] and [`vm`].

mod file_dialog;
mod form;
mod job;
mod manager;
mod media;
mod parts;
mod vm;
mod wizard;

use std::cell::RefCell;
use std::process::ExitCode;
use std::rc::Rc;

use winit::application::ApplicationHandler;
use winit::event::{DeviceEvent, DeviceId, StartCause, WindowEvent};
use winit::event_loop::{ActiveEventLoop, EventLoop};
use winit::platform::x11::EventLoopBuilderExtX11 as _;
use winit::window::WindowId;

pub use vm::Shown;
use vm::{GuestInput, Verdict, VmWindow};

/// Opens the manager and returns when it is closed.
pub fn show_manager() -> ExitCode {
    let result = event_loop().and_then(|event_loop| {
        let options = options("Bellglass", [1080.0, 700.0]);
        let opened = Rc::new(RefCell::new(Opened::NotYet));
        let create: eframe::AppCreator<'_> = {
            let opened = Rc::clone(&opened);
            Box::new(move |cc| match manager::Manager::new(cc) {
                Ok(manager) => {
                    *opened.borrow_mut() = Opened::Yes(cc.egui_ctx.clone());
                    Ok(Box::new(manager))
                }
                Err(error) => {
                    *opened.borrow_mut() = Opened::Refused(error.to_string());
                    Err(error)
                }
            })
        };
        let inner = eframe::create_native("bellglass", options, create, &event_loop);
        run(event_loop, WithGuestInput { inner, input: None, opened })
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("bellglass: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Opens the window of a machine and returns when it has closed.
///
/// # Errors
/// A sentence, when there is no display to open a window on.
pub fn show_machine(shown: Shown) -> Result<(), String> {
    let event_loop = event_loop()?;
    let options = options(&shown.title, [1024.0, 660.0]);
    let input = Rc::new(RefCell::new(GuestInput::new(shown.session.clone())));
    let opened = Rc::new(RefCell::new(Opened::NotYet));
    let create: eframe::AppCreator<'_> = {
        let (input, opened) = (Rc::clone(&input), Rc::clone(&opened));
        Box::new(move |cc| {
            *opened.borrow_mut() = Opened::Yes(cc.egui_ctx.clone());
            if let Some(window) = cc.winit_window() {
                input.borrow_mut().attach(window);
            }
            Ok(Box::new(VmWindow::new(cc, shown, input)))
        })
    };
    let inner = eframe::create_native("bellglass-machine", options, create, &event_loop);
    run(event_loop, WithGuestInput { inner, input: Some(input), opened })
}

/// How far a window has come. eframe keeps the reason to itself when it cannot make one.
enum Opened {
    NotYet,
    Yes(egui::Context),
    /// Our own part could not start: a sentence.
    Refused(String),
}

fn options(title: &str, size: [f32; 2]) -> eframe::NativeOptions {
    let viewport = egui::ViewportBuilder::default()
        .with_title(title)
        .with_app_id("bellglass")
        // Empty: the desktop file of the installation names ours, and this keeps egui from showing its own.
        .with_icon(egui::IconData::default())
        .with_inner_size(size)
        .with_min_inner_size([480.0, 320.0]);
    eframe::NativeOptions { viewport, ..Default::default() }
}

fn event_loop() -> Result<EventLoop<eframe::UserEvent>, String> {
    let mut builder = EventLoop::<eframe::UserEvent>::with_user_event();
    // winit cannot take file drops on Wayland yet, so X11 (through XWayland) comes first where both are there.
    let prefer_wayland = std::env::var_os("BELLGLASS_WAYLAND").is_some();
    if std::env::var_os("DISPLAY").is_some_and(|display| !display.is_empty()) && !prefer_wayland {
        builder.with_x11();
    }
    builder.build().map_err(|error| {
        // winit's words name its own source files; they are for the log.
        tracing::info!(%error, "no display");
        let tried = std::env::var("DISPLAY").or_else(|_| std::env::var("WAYLAND_DISPLAY"));
        let tried = tried.map_or_else(|_| "DISPLAY is not set".to_owned(), |name| format!("{name} does not answer"));
        format!("No window could be opened, because there is no display ({tried}). Start it in a desktop session, or use “bellglass run --headless”.")
    })
}

fn run(event_loop: EventLoop<eframe::UserEvent>, mut application: WithGuestInput<'_>) -> Result<(), String> {
    event_loop.run_app(&mut application).map_err(|error| format!("The window could not go on ({error})."))?;
    match &*application.opened.borrow() {
        Opened::Yes(_) => Ok(()),
        Opened::Refused(reason) => Err(reason.clone()),
        Opened::NotYet => {
            Err("No window could be opened, because this computer's graphics offer neither Vulkan nor OpenGL ES. Install \
             mesa-vulkan-drivers, or use “bellglass run --headless”."
                .to_owned())
        }
    }
}

/// eframe's event loop with the guest's input asked first.
struct WithGuestInput<'a> {
    inner: eframe::EframeWinitApplication<'a>,
    input: Option<Rc<RefCell<GuestInput>>>,
    opened: Rc<RefCell<Opened>>,
}

impl ApplicationHandler<eframe::UserEvent> for WithGuestInput<'_> {
    fn window_event(&mut self, event_loop: &ActiveEventLoop, window: WindowId, event: WindowEvent) {
        // The borrow ends here: eframe's turn may draw the window, which looks at the same input.
        let verdict = self.input.as_ref().map_or(Verdict::Window, |input| input.borrow_mut().window_event(&event));
        match verdict {
            Verdict::Guest => {}
            Verdict::GuestAndRedraw => {
                if let Opened::Yes(ctx) = &*self.opened.borrow() {
                    ctx.request_repaint();
                }
            }
            Verdict::Window => self.inner.window_event(event_loop, window, event),
        }
    }

    fn device_event(&mut self, event_loop: &ActiveEventLoop, device: DeviceId, event: DeviceEvent) {
        if let Some(input) = &self.input {
            input.borrow_mut().device_event(&event);
        }
        self.inner.device_event(event_loop, device, event);
    }

    fn resumed(&mut self, event_loop: &ActiveEventLoop) {
        self.inner.resumed(event_loop);
    }

    fn suspended(&mut self, event_loop: &ActiveEventLoop) {
        self.inner.suspended(event_loop);
    }

    fn new_events(&mut self, event_loop: &ActiveEventLoop, cause: StartCause) {
        self.inner.new_events(event_loop, cause);
    }

    fn user_event(&mut self, event_loop: &ActiveEventLoop, event: eframe::UserEvent) {
        self.inner.user_event(event_loop, event);
    }

    fn about_to_wait(&mut self, event_loop: &ActiveEventLoop) {
        self.inner.about_to_wait(event_loop);
    }

    fn exiting(&mut self, event_loop: &ActiveEventLoop) {
        self.inner.exiting(event_loop);
    }

    fn memory_warning(&mut self, event_loop: &ActiveEventLoop) {
        self.inner.memory_warning(event_loop);
    }
}
