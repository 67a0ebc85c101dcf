//! Timers and clocks.

mod calendar;
pub mod hpet;
pub mod i8254;
pub mod mc146818rtc;
mod owed_ticks;
