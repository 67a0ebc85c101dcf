//! The line that says how far a long command has come (`-p`), in QEMU's words, because scripts read it.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Progress towards a known amount of work; threads add to it.
pub struct Progress {
    shown: Option<Mutex<f64>>,
    total: u64,
    done: AtomicU64,
}

/// Steps in which the line moves, in percent.
const STEP: f64 = 2.0;

impl Progress {
    /// Starts a line if `wanted`; `total` is the work there is.
    pub fn start(wanted: bool, total: u64) -> Self {
        let progress = Self { shown: wanted.then(|| Mutex::new(0.0)), total, done: AtomicU64::new(0) };
        if wanted {
            progress.print(0.0);
        }
        progress
    }

    /// More of the work is done.
    pub fn add(&self, amount: u64) {
        let done = self.done.fetch_add(amount, Ordering::Relaxed) + amount;
        let Some(shown) = &self.shown else { return };
        let percent = 100.0 * done as f64 / self.total.max(1) as f64;
        let mut shown = shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if percent >= *shown + STEP || percent >= 100.0 && *shown < 100.0 {
            *shown = percent.min(100.0);
            self.print(*shown);
        }
    }

    /// All is done.
    pub fn finish(&self) {
        if self.shown.is_some() {
            self.print(100.0);
            println!();
        }
    }

    fn print(&self, percent: f64) {
        print!("    ({percent:.2}/100%)\r");
        std::io::stdout().flush().ok(); // Nobody need watch.
    }
}
