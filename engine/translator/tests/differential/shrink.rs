//! Makes a failing case small: whatever can be zero while the case still fails, becomes zero.

use crate::{
    Engine,
    case::{Case, WINDOW_BYTES},
    compare,
    interpret::Interpreted,
    native::Native,
};

/// Runs one case on both.
pub fn differences_of(engine: Engine, case: &Case) -> anyhow::Result<Vec<String>> {
    compare_with(&mut Native::new()?, &mut engine.start()?, case)
}

fn compare_with(native: &mut Native, interpreted: &mut Interpreted, case: &Case) -> anyhow::Result<Vec<String>> {
    let outcome = native.run(std::slice::from_ref(case))?.pop().flatten();
    let Some(outcome) = outcome else { return Ok(Vec::new()) };
    let ours = interpreted.run(case)?;
    Ok(compare::differences(case, &outcome, &ours))
}

/// The smallest case found, and its differences.
pub fn shrink(engine: Engine, case: &Case, differences: &[String]) -> anyhow::Result<(Case, Vec<String>)> {
    let (mut native, mut interpreted) = (Native::new()?, engine.start()?);
    let mut best = (case.clone(), differences.to_vec());
    let mut attempt = |change: &dyn Fn(&mut Case)| -> anyhow::Result<()> {
        let mut smaller = best.0.clone();
        change(&mut smaller);
        let found = compare_with(&mut native, &mut interpreted, &smaller)?;
        if !found.is_empty() {
            best = (smaller, found);
        }
        Ok(())
    };
    attempt(&|case| case.window.fill(0))?;
    for part in 0..WINDOW_BYTES / 512 {
        attempt(&|case| case.window[part * 512..][..512].fill(0))?;
    }
    for i in 0..16 {
        attempt(&|case| case.registers.gpr[i] = 0)?;
        attempt(&|case| case.registers.fx.put(160 + 16 * i, &[0; 16]))?;
        attempt(&|case| case.registers.ymm_high[i] = 0)?;
    }
    for i in 0..8 {
        attempt(&|case| case.registers.fx.put(32 + 16 * i, &[0; 16]))?;
    }
    attempt(&|case| case.registers.fx.put(24, &0x1f80u32.to_le_bytes()))?;
    attempt(&|case| case.registers.fx.put(0, &0x37fu16.to_le_bytes()))?;
    attempt(&|case| case.registers.fx.put(2, &0u16.to_le_bytes()))?;
    attempt(&|case| case.registers.rflags = 0x202)?;
    Ok(best)
}
