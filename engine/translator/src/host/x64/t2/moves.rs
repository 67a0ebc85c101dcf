//! Moves that happen all at once: what an edge or an exit asks for. Registers and cells of memory are both places; the host's
//! flags stay as they are.

use crate::host::x64::asm::{Asm, Mem, R, W};

/// A place that holds a value of up to eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Reg(R),
    /// `[RBP + distance]`
    Cell(i32),
}

/// Where a move comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum From {
    Place(Place),
    Constant(u64),
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub from: From,
    pub to: Place,
}

/// `[RBP + distance]`
pub(super) fn cell(distance: i32) -> Mem {
    Mem::at(R::Bp, distance)
}

/// Writes moves so that each takes what its source held before all of them. No two go to the same place. Nothing else is
/// changed, flags included.
pub(super) fn write(asm: &mut Asm, moves: &[Move]) {
    let mut constants = Vec::new();
    let mut left = Vec::with_capacity(moves.len());
    for &Move { from, to } in moves {
        match from {
            From::Constant(value) => constants.push((value, to)),
            From::Place(from) if from == to => {}
            From::Place(from) => left.push((Some(from), to)),
        }
    }
    while !left.is_empty() {
        // A place that nobody waits for any more can be overwritten. `None` is the top of the host's stack.
        let ready = left.iter().position(|(_, to)| !left.iter().any(|(from, _)| *from == Some(*to)));
        if let Some(at) = ready {
            let (from, to) = left.swap_remove(at);
            one(asm, from, to);
            continue;
        }
        // All that is left are cycles.
        let swap = left.iter().position(|pair| matches!(pair, (Some(Place::Reg(_)), Place::Reg(_))));
        if let Some(at) = swap
            && let (Some(Place::Reg(from)), Place::Reg(to)) = left[at]
        {
            asm.xchg(W::B8, to, from);
            left.swap_remove(at);
            // What was in either is now in the other.
            for (source, _) in &mut left {
                if *source == Some(Place::Reg(to)) {
                    *source = Some(Place::Reg(from));
                } else if *source == Some(Place::Reg(from)) {
                    *source = Some(Place::Reg(to));
                }
            }
            left.retain(|(source, to)| *source != Some(*to));
            continue;
        }
        let Some((Some(source), _)) = left.first().copied() else { return };
        push(asm, source);
        for (from, _) in &mut left {
            // Of several that read it, one pops; the others follow from there.
            if *from == Some(source) {
                *from = None;
            }
        }
        let mut waiting = left.iter_mut().filter(|(from, _)| from.is_none());
        let first = waiting.next().map(|(_, to)| *to);
        for (from, _) in waiting {
            *from = first;
        }
    }
    for (value, to) in constants {
        match to {
            Place::Reg(reg) => asm.set(reg, value),
            Place::Cell(at) => match i32::try_from(value as i64) {
                Ok(value) => asm.mov_imm(W::B8, cell(at), value),
                Err(_) => {
                    asm.mov_imm(W::B4, cell(at), value as i32);
                    asm.mov_imm(W::B4, cell(at + 4), (value >> 32) as i32);
                }
            },
        }
    }
}

fn one(asm: &mut Asm, from: Option<Place>, to: Place) {
    match (from, to) {
        (Some(Place::Reg(from)), Place::Reg(to)) => asm.mov(W::B8, to, from),
        (Some(Place::Reg(from)), Place::Cell(to)) => asm.mov(W::B8, cell(to), from),
        (Some(Place::Cell(from)), Place::Reg(to)) => asm.load(W::B8, to, cell(from)),
        (Some(from), to) => {
            push(asm, from);
            pop(asm, to);
        }
        (None, to) => pop(asm, to),
    }
}

fn push(asm: &mut Asm, from: Place) {
    match from {
        Place::Reg(reg) => asm.push(reg),
        Place::Cell(at) => asm.push_mem(cell(at)),
    }
}

fn pop(asm: &mut Asm, to: Place) {
    match to {
        Place::Reg(reg) => asm.pop(reg),
        Place::Cell(at) => asm.pop_mem(cell(at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::code_memory::CodeMemory;

    const REGISTERS: [R; 6] = [R::Ax, R::Cx, R::Dx, R::Si, R::R8, R::R9];

    /// Runs moves over six registers and six cells, and gives what they hold then.
    fn run(memory: &CodeMemory, moves: &[Move]) -> [u64; 12] {
        let mut asm = Asm::new(memory.address(0));
        asm.push(R::Bp);
        asm.mov(W::B8, R::Bp, R::Di);
        for (at, reg) in REGISTERS.into_iter().enumerate() {
            asm.load(W::B8, reg, cell(8 * at as i32));
        }
        write(&mut asm, moves);
        for (at, reg) in REGISTERS.into_iter().enumerate() {
            asm.mov(W::B8, cell(8 * at as i32), reg);
        }
        asm.pop(R::Bp);
        asm.ret();
        memory.write_at(0, &asm.finish());
        let mut state: [u64; 12] = std::array::from_fn(|at| 1000 + at as u64);
        // SAFETY: a whole function lies there, which touches the array that it is given.
        unsafe { std::mem::transmute::<u64, extern "sysv64" fn(*mut u64)>(memory.address(0))(state.as_mut_ptr()) };
        state
    }

    fn place(number: usize) -> Place {
        if number < 6 { Place::Reg(REGISTERS[number]) } else { Place::Cell(8 * number as i32) }
    }

    #[test]
    fn all_moves_take_what_was_there_before() {
        let memory = CodeMemory::new(1 << 16).unwrap();
        let mut seed = 88_172_645_463_325_252u64;
        let mut random = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let mut want: [u64; 12] = std::array::from_fn(|at| 1000 + at as u64);
            let mut moves = Vec::new();
            let few = 1 + random(12);
            for (to, want) in want.iter_mut().enumerate() {
                match random(8) {
                    0 | 1 => {}
                    2 => {
                        let value = [7, u64::MAX, 0x1234_5678_9abc_def0, 0xffff_ffff][random(4)];
                        *want = value;
                        moves.push(Move { from: From::Constant(value), to: place(to) });
                    }
                    _ => {
                        let from = random(few);
                        *want = 1000 + from as u64;
                        moves.push(Move { from: From::Place(place(from)), to: place(to) });
                    }
                }
            }
            assert_eq!(run(&memory, &moves), want, "{moves:?}");
        }
    }
}
