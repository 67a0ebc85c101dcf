//! The guest's changes straight into the window, for computers without a GPU. There a drawing of the window costs 50 ms of
//! the CPU that the guest needs, however little has changed; a blinking cursor alone would take a third of a core. X11 keeps
//! what a window shows, so a changed part of an uncovered picture can be put over the old one, past egui and wgpu.
//!
//! ```text
//!   Screen ── wake ─► thread `window-direct` ── the picture lies uncovered ──► XPutImage of what changed
//!                                           └── something is drawn over it, or its size changed ─► Pace ─► the window
//!   VmWindow::guest_ui ── after each drawing: where the picture lies, or that it is covered ──► Scene
//! ```
//! The window's own drawing reaches the screen some time after it was made, on another connection, and may then cover
//! something newer. So after a drawing nothing is put for [`GUARD`], and everything once more after [`SETTLE`].

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TrySendError, bounded};
use engine_base::spawn_guarded;
use engine_display::{Damage, Rect, Screen, ScreenReader};
use winit::raw_window_handle::{HasWindowHandle, RawWindowHandle};
use x11rb::connection::{Connection as _, RequestConnection as _};
use x11rb::errors::ReplyOrIdError;
use x11rb::protocol::xproto::{ConnectionExt as _, CreateGCAux, Gcontext, ImageFormat, ImageOrder, Window};
use x11rb::rust_connection::RustConnection;

use super::enlarge::{enlarge, shown_rect};
use super::placement::{PixelRect, Placement};
use super::{Pace, lock};

/// How long a drawing of the window may be under way to the screen.
const GUARD: Duration = Duration::from_millis(60);
/// When it must have arrived.
const SETTLE: Duration = Duration::from_millis(600);
/// The shortest time between two changes that are put: the rate of a display.
const PERIOD: Duration = Duration::from_millis(16);
/// The most bytes of pixels in one request.
const MOST_BYTES: usize = 256 * 1024;

/// What the window has drawn last.
struct Scene {
    /// Where the picture lies, if nothing is over it.
    uncovered: Option<Placement>,
    drawn: Instant,
}

/// Puts the guest's changes into a window, from a thread that lives as long as the process.
pub struct Direct {
    scene: Arc<Mutex<Scene>>,
}

impl Direct {
    /// For the window behind `handle`, which shows `screen`. `None` where the window is not X11's, or not one of 32 bits a
    /// pixel: everything is then drawn by the window itself.
    pub fn start(handle: &impl HasWindowHandle, screen: &Screen, pace: Arc<Pace>, ctx: egui::Context) -> Option<Self> {
        let window = match handle.window_handle().ok()?.as_raw() {
            RawWindowHandle::Xlib(handle) => u32::try_from(handle.window).ok()?,
            RawWindowHandle::Xcb(handle) => handle.window.get(),
            _ => return None,
        };
        let canvas = Canvas::open(window)
            .inspect_err(|error| tracing::info!(%error, "the guest's changes cannot be put into the window"))
            .ok()??;
        let scene = Arc::new(Mutex::new(Scene { uncovered: None, drawn: Instant::now() }));
        let (changed, changes) = bounded(1);
        let reader = screen.watch(move || match changed.try_send(()) {
            // Full: the thread will look anyway.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        });
        let mut worker = Worker { canvas, reader, scene: Arc::clone(&scene), pace, ctx, unsettled: None, pixels: Vec::new() };
        spawn_guarded("window-direct", move || worker.run(&changes), |_| {})
            .inspect_err(|error| tracing::warn!(%error, "the guest's changes cannot be put into the window"))
            .ok()?;
        Some(Self { scene })
    }

    /// Tells where the picture lies in the drawing that is being made, or that something will be over it.
    pub fn set_scene(&self, uncovered: Option<Placement>) {
        *lock(&self.scene) = Scene { uncovered, drawn: Instant::now() };
    }
}

struct Worker {
    canvas: Canvas,
    reader: ScreenReader,
    scene: Arc<Mutex<Scene>>,
    pace: Arc<Pace>,
    ctx: egui::Context,
    /// The drawing after which everything is still to be put once more.
    unsettled: Option<Instant>,
    pixels: Vec<u32>,
}

impl Worker {
    fn run(&mut self, changes: &Receiver<()>) {
        use crossbeam_channel::RecvTimeoutError::{Disconnected, Timeout};
        loop {
            let news = match self.unsettled {
                Some(drawn) => changes.recv_deadline(drawn + SETTLE),
                None => changes.recv().map_err(|_| Disconnected),
            };
            let everything = match news {
                Ok(()) => false,
                Err(Timeout) => self.unsettled.take().is_some(),
                Err(Disconnected) => return,
            };
            if let Err(error) = self.put(everything) {
                // The X server is gone, or the window is; the window's own thread deals with either.
                tracing::info!(%error, "the guest's changes are not put into the window any more");
                lock(&self.scene).uncovered = None;
                self.pace.repaint(&self.ctx);
            }
            std::thread::sleep(PERIOD);
        }
    }

    fn put(&mut self, everything: bool) -> Result<(), ReplyOrIdError> {
        let scene = Arc::clone(&self.scene);
        let scene = settled_scene(&scene);
        // The scene stays locked until all is put: the next drawing of the window comes after it, and covers it.
        let Some(placement) = scene.uncovered.filter(|placement| placement.guest == self.reader.screen().size()) else {
            self.pace.repaint(&self.ctx);
            return Ok(());
        };
        if !everything {
            self.unsettled.get_or_insert(scene.drawn);
        }
        let (canvas, pixels) = (&self.canvas, &mut self.pixels);
        let mut result = Ok(());
        let mut show = |picture: &engine_display::Picture, damage: &Damage| {
            let rects = damage.rects().iter().filter_map(|rect| shown_rect(&placement, *rect));
            for rect in rects {
                enlarge(picture, &placement, rect, pixels);
                result = canvas.put(rect, pixels);
                if result.is_err() {
                    return;
                }
            }
        };
        if everything {
            let picture = self.reader.screen().picture();
            let mut whole = Damage::default();
            whole.add(Rect { left: 0, top: 0, right: picture.width, bottom: picture.height });
            show(&picture, &whole);
        } else {
            self.reader.read(show);
        }
        drop(scene);
        result?;
        self.canvas.flush()
    }
}

/// The scene, once its drawing has had time to reach the screen.
fn settled_scene(scene: &Mutex<Scene>) -> MutexGuard<'_, Scene> {
    loop {
        let guard = lock(scene);
        let wait = GUARD.saturating_sub(guard.drawn.elapsed());
        if wait.is_zero() || guard.uncovered.is_none() {
            return guard;
        }
        drop(guard);
        std::thread::sleep(wait);
    }
}

/// A window on a connection of our own.
struct Canvas {
    connection: RustConnection,
    window: Window,
    gc: Gcontext,
    depth: u8,
    order: ImageOrder,
}

impl Canvas {
    /// `None` where pixels are not 32 bits wide.
    fn open(window: Window) -> Result<Option<Self>, ReplyOrIdError> {
        let (connection, _) = x11rb::connect(None).map_err(|_| x11rb::errors::ConnectionError::UnknownError)?;
        let depth = connection.get_geometry(window)?.reply()?.depth;
        let setup = connection.setup();
        let wide = setup.pixmap_formats.iter().any(|format| format.depth == depth && format.bits_per_pixel == 32);
        if !wide || !matches!(depth, 24 | 32) {
            return Ok(None);
        }
        let order = setup.image_byte_order;
        let gc = connection.generate_id()?;
        connection.create_gc(gc, window, &CreateGCAux::new().graphics_exposures(0))?.check()?;
        Ok(Some(Self { connection, window, gc, depth, order }))
    }

    fn put(&self, rect: PixelRect, pixels: &[u32]) -> Result<(), ReplyOrIdError> {
        // Windows of 32 bits have an alpha channel, and ours are opaque.
        let opaque = if self.depth == 32 { 0xff00_0000 } else { 0 };
        let width = rect.width as usize;
        let most = MOST_BYTES.min(self.connection.maximum_request_bytes() - 64);
        let rows = (most / (width * 4)).max(1);
        for (index, band) in pixels.chunks(rows * width).enumerate() {
            let bytes: Vec<u8> = match self.order {
                ImageOrder::MSB_FIRST => band.iter().flat_map(|pixel| (pixel | opaque).to_be_bytes()).collect(),
                _ => band.iter().flat_map(|pixel| (pixel | opaque).to_le_bytes()).collect(),
            };
            let (height, top) = ((band.len() / width) as u16, rect.top + (index * rows) as i32);
            let (x, y) = (rect.left as i16, top as i16);
            let (window, gc, depth) = (self.window, self.gc, self.depth);
            self.connection.put_image(ImageFormat::Z_PIXMAP, window, gc, rect.width as u16, height, x, y, 0, depth, &bytes)?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), ReplyOrIdError> {
        self.connection.flush()?;
        // Errors, such as that of a window that has just gone, wait here; they are not ours to handle.
        while self.connection.poll_for_event()?.is_some() {}
        Ok(())
    }
}
