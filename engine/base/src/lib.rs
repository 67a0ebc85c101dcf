//! What `std` lacks and every engine crate needs: a ranked mutex, guarded threads, a rate-limited log, a typed
//! reply, guest time and its clock. Anyone may use this crate; it uses none of ours.
//!
//! It is *not* a place for "shared code": a thing lives here only when two unrelated crates need the same primitive.
//!
//! Threads: none of its own; [`spawn_guarded`] is how all others start.
//! Start at [`RankedMutex`] for locking and [`Clock`] for time.
#![forbid(unsafe_code)]

mod clock;
mod limited_log;
mod lock;
mod reply;
mod thread;

pub use clock::{Clock, ClockMode, VmTime};
pub use limited_log::LogLimit;
pub use lock::{RankedGuard, RankedMutex, rank};
pub use reply::{Asked, Reply, reply};
pub use thread::{PanicReport, spawn_guarded};

#[doc(hidden)]
pub use tracing as __tracing;
