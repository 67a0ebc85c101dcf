//! Work that a window must not wait for: a named thread, its last line of progress, and its result.

use std::sync::mpsc::{self, Receiver, Sender};

use engine_base::spawn_guarded;

/// What a job says while it works.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What it does just now.
    pub text: String,
    /// From 0 to 1, where known.
    pub fraction: Option<f32>,
}

enum Message<T> {
    Progress(Progress),
    Done(T),
    Panicked(String),
}

/// A running or finished job. Dropping it lets the thread finish unheard.
pub struct Job<T> {
    messages: Receiver<Message<T>>,
    progress: Progress,
}

/// The thread's side: tells progress and wakes the window.
pub struct Reporter<T> {
    sender: Sender<Message<T>>,
    ctx: egui::Context,
}

impl<T> Clone for Reporter<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), ctx: self.ctx.clone() }
    }
}

impl<T> Reporter<T> {
    /// Tells what it does just now.
    pub fn progress(&self, text: impl Into<String>, fraction: Option<f32>) {
        self.send(Message::Progress(Progress { text: text.into(), fraction }));
    }

    fn send(&self, message: Message<T>) {
        self.sender.send(message).ok(); // The window has dropped the job; nobody wants to know.
        self.ctx.request_repaint();
    }
}

impl<T: Send + 'static> Job<T> {
    /// Starts `work` on a thread of its own.
    pub fn start(ctx: &egui::Context, name: &str, work: impl FnOnce(&Reporter<T>) -> T + Send + 'static) -> Self {
        let (sender, messages) = mpsc::channel();
        let reporter = Reporter { sender, ctx: ctx.clone() };
        let (on_panic, no_thread) = (reporter.clone(), reporter.clone());
        let started = spawn_guarded(
            name,
            move || {
                let result = work(&reporter);
                reporter.send(Message::Done(result));
            },
            move |report| on_panic.send(Message::Panicked(report.message)),
        );
        if let Err(error) = started {
            no_thread.send(Message::Panicked(error.to_string()));
        }
        Self { messages, progress: Progress { text: String::new(), fraction: None } }
    }

    /// The result, once; `Err` when the thread died, with the reason.
    pub fn poll(&mut self) -> Option<Result<T, String>> {
        loop {
            match self.messages.try_recv() {
                Ok(Message::Progress(progress)) => self.progress = progress,
                Ok(Message::Done(result)) => return Some(Ok(result)),
                Ok(Message::Panicked(reason)) => {
                    return Some(Err(format!("Something went wrong inside Bellglass ({reason}). Try again.")));
                }
                Err(_) => return None,
            }
        }
    }

    /// What it said last.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn wait<T: Send + 'static>(job: &mut Job<T>) -> Result<T, String> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(result) = job.poll() {
                return result;
            }
            assert!(Instant::now() < deadline, "the job never ended");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_job_tells_its_progress_and_its_result() {
        let mut job = Job::start(&egui::Context::default(), "test-job", |reporter| {
            reporter.progress("half way", Some(0.5));
            42
        });
        assert_eq!(wait(&mut job), Ok(42));
        assert_eq!(job.progress(), &Progress { text: "half way".into(), fraction: Some(0.5) });
    }

    #[test]
    fn a_job_that_dies_says_so() {
        let mut job = Job::<()>::start(&egui::Context::default(), "test-job", |_| panic!("oh no"));
        assert!(wait(&mut job).unwrap_err().contains("oh no"));
    }
}
