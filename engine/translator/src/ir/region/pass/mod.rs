//! Passes over regions. A pass is one function in one file and one line in [`PIPELINE`]. The first of them work on what was
//! formed, the others on values.

mod dead_values;
mod flags;
mod forward;
mod loops;
mod probes;
mod simplify;
mod straighten;

use super::{Region, ssa, verify};

/// A pass: changes a region and keeps what it means.
pub(crate) struct Pass {
    pub name: &'static str,
    pub run: fn(&mut Region),
}

/// All passes, in the order in which they run.
pub(crate) const PIPELINE: &[Pass] = &[
    Pass { name: "straighten", run: straighten::run },
    Pass { name: "loops", run: loops::run },
    Pass { name: "slots_to_ssa", run: ssa::slots_to_ssa },
    Pass { name: "simplify", run: simplify::run },
    Pass { name: "flags", run: flags::run },
    Pass { name: "probes", run: probes::run },
    Pass { name: "forward", run: forward::run },
    Pass { name: "simplify again", run: simplify::run },
    Pass { name: "dead_values", run: dead_values::run },
];

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
