//! One folder for each guest architecture.

pub(crate) mod x86;
