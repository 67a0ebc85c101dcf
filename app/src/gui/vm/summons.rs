//! Calls a machine's window to the front from another process. Connecting to the socket `window.sock` in the machine's
//! runtime folder is the call; nothing is said over it.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Weak;

use engine_base::spawn_guarded;
use engine_session::library::MachineFolder;
use winit::window::Window;

fn socket(folder: &MachineFolder) -> PathBuf {
    folder.runtime_folder().join("window.sock")
}

/// Listens for calls, on a thread `window-summons` that lives as long as the process. The window is not owned, so that it
/// can be destroyed.
pub fn listen(folder: &MachineFolder, window: Weak<Window>, ctx: egui::Context) {
    let listener = folder.make_runtime_folder().map_err(io::Error::other).and_then(|_| {
        let path = socket(folder);
        // The machine's lock is ours, so a socket that is there belongs to a process that is not.
        std::fs::remove_file(&path).ok();
        UnixListener::bind(path)
    });
    let started = listener.and_then(|listener| {
        let answer = move || {
            for call in listener.incoming() {
                let (Ok(_), Some(window)) = (call, window.upgrade()) else { return };
                window.set_visible(true);
                window.set_minimized(false);
                window.focus_window();
                ctx.request_repaint();
            }
        };
        spawn_guarded("window-summons", answer, |_| {})
    });
    if let Err(error) = started {
        tracing::warn!(%error, "the manager will not be able to bring this window to the front");
    }
}

/// Calls the window of the machine in `folder`.
///
/// # Errors
/// When it has no window.
pub fn call(folder: &MachineFolder) -> io::Result<()> {
    UnixStream::connect(socket(folder)).map(drop)
}
