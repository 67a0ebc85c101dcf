//! Passes over regions. A pass is one function in one file and one line in [`PIPELINE`].

use super::{Region, verify};

/// A pass: changes a region and keeps what it means.
pub(crate) struct Pass {
    pub name: &'static str,
    pub run: fn(&mut Region),
}

/// All passes, in the order in which they run.
pub(crate) const PIPELINE: &[Pass] = &[];

/// Runs some of them. Debug builds verify the region after each.
pub(crate) fn run(region: &mut Region, passes: &[Pass]) {
    for pass in passes {
        (pass.run)(region);
        if cfg!(debug_assertions)
            && let Err(why) = verify::verify(region)
        {
            panic!("the pass {} broke a region: {why}", pass.name);
        }
    }
}
