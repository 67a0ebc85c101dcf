//! Every engine thread starts here, named and guarded: a panic inside does not end the process silently, it is
//! caught, described and handed to the owner, who stops that machine and says why.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

/// What a guarded thread said when it panicked.
#[derive(Debug, Clone)]
pub struct PanicReport {
    /// The thread's name, such as `vm-cpu0`.
    pub thread: String,
    /// The panic message.
    pub message: String,
}

/// Starts a named thread; if `body` panics, `on_panic` runs on it with the reason.
///
/// # Errors
/// When the host refuses another thread.
pub fn spawn_guarded(
    name: impl Into<String>,
    body: impl FnOnce() + Send + 'static,
    on_panic: impl FnOnce(PanicReport) + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    let name = name.into();
    Builder::new().name(name.clone()).spawn(move || {
        // The closure is never looked at again after a panic; what it shared is behind locks that pass over poison.
        if let Err(payload) = catch_unwind(AssertUnwindSafe(body)) {
            let message = payload
                .downcast_ref::<&str>()
                .map(|text| (*text).to_owned())
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "a panic without a message".to_owned());
            tracing::error!(thread = %name, %message, "thread panicked");
            on_panic(PanicReport { thread: name, message });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_panic_is_reported_with_thread_and_message() {
        let (sender, receiver) = mpsc::channel();
        let thread = spawn_guarded("vm-test", || panic!("oh {}", "no"), move |report| sender.send(report).unwrap()).unwrap();
        let report = receiver.recv().unwrap();
        thread.join().unwrap();
        assert_eq!((report.thread.as_str(), report.message.as_str()), ("vm-test", "oh no"));
    }
}
