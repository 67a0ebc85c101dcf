//! What every PC since the AT has and no chip of its own owns.

pub mod i8237;
pub mod port92;
