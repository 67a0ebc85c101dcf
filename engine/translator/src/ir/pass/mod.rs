//! Passes over one block. A pass is one function in one file and one line in [`PIPELINE`].

mod dead_values;
mod flags_need;
mod fold;

use super::{Block, FlagSet, verify};

/// A pass: changes a block and keeps what it means.
pub(crate) struct Pass {
    pub name: &'static str,
    pub run: fn(&mut Block),
}

/// All passes, in the order in which they run.
pub(crate) const PIPELINE: &[Pass] = &[
    Pass { name: "fold", run: fold::run },
    Pass { name: "flags_need", run: flags_need::run },
    Pass { name: "dead_values", run: dead_values::run },
];

/// One word for each value of a block, as a pass needs them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Room {
    need: Vec<FlagSet>,
    marks: Vec<bool>,
}

impl Room {
    /// Empty words for `count` values.
    fn clear(&mut self, count: usize) {
        self.need.clear();
        self.need.resize(count, FlagSet::empty());
        self.marks.clear();
        self.marks.resize(count, false);
    }
}

/// Runs them all. Debug builds verify the block after each.
pub(crate) fn run(block: &mut Block) {
    for pass in PIPELINE {
        (pass.run)(block);
        if cfg!(debug_assertions)
            && let Err(why) = verify::verify(block)
        {
            panic!("the pass {} broke a block: {why}", pass.name);
        }
    }
}
