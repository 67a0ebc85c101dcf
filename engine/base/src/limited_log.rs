//! Log lines that a guest can trigger are counted: the first few of each place are printed, then one in every doubling.
//! A guest that pokes an unknown register a million times costs twenty lines, and the count is not lost.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counter behind one [`crate::warn_limited!`] line.
pub struct LogLimit(AtomicU64);

impl LogLimit {
    /// A counter at zero.
    #[allow(clippy::new_without_default, reason = "it is only ever a static")]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts one event; `Some(count)` when it should be printed.
    pub fn count(&self) -> Option<u64> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        (count <= 4 || count.is_power_of_two()).then_some(count)
    }
}

/// `tracing::warn!` for lines that a guest can trigger: printed 4 times, then at each power of two, with the count.
#[macro_export]
macro_rules! warn_limited {
    (target: $target:expr, $($arg:tt)+) => {{
        static LIMIT: $crate::LogLimit = $crate::LogLimit::new();
        if let Some(seen) = LIMIT.count() {
            $crate::__tracing::warn!(target: $target, seen, $($arg)+);
        }
    }};
    ($($arg:tt)+) => {{
        static LIMIT: $crate::LogLimit = $crate::LogLimit::new();
        if let Some(seen) = LIMIT.count() {
            $crate::__tracing::warn!(seen, $($arg)+);
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_events_print_few_lines() {
        let limit = LogLimit::new();
        let printed = (0..1_000_000).filter(|_| limit.count().is_some()).count();
        assert_eq!(printed, 4 + 17, "1..=4, then 8, 16 … 524288");
    }
}
