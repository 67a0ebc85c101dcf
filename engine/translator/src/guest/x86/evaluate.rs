//! Runs guest code by lifting each trace and evaluating the IR, instead of calling handlers: what the differential tests
//! compare with the interpreter and the host. It bails wherever it is told to, at random, so that every snapshot is used, and
//! spoils whatever the IR says that nobody looks at.

use super::cpu::{Cpu, is_canonical, seg};
use super::evaluate_float;
use super::fault::Stop;
use super::interp_integer::Int;
use super::lift::region::form_region;
use super::lift::{self, LiftMode};
use super::op::Op;
use super::trace::{TraceRef, copy_code};
use crate::ir::eval::{Guest, Left, evaluate};
use crate::ir::float::FloatOp;
use crate::ir::gather::Gather;
use crate::ir::native::Native;
use crate::ir::region::eval::{RegionLeft, evaluate_region};
use crate::ir::region::{self, Region};
use crate::ir::{self, FlagSet};
use crate::mmu::{Access, PAGE_MASK};

/// How to evaluate. Given to each CPU of a backend made for it.
#[derive(Debug, Clone, Copy)]
pub struct Evaluation {
    /// Where the randomness of forced bails starts.
    pub seed: u64,
    /// How many of 256 chances to bail are taken.
    pub bails: u8,
    /// What is evaluated at once.
    pub unit: EvaluationUnit,
}

/// What is lifted and evaluated at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EvaluationUnit {
    /// A straight run of instructions, after all passes over blocks.
    Block,
    /// What the optimising tier would compile.
    Region {
        /// After how many of its passes, at most [`REGION_PASSES`].
        passes: usize,
    },
}

/// How many passes there are over regions.
pub const REGION_PASSES: usize = region::pass::PIPELINE.len();

/// After how many guest instructions a region's next poll leaves it.
const PATIENCE: u64 = 2000;
/// What tests run is shorter. A triple fault is what they notice.
const ENDLESS: u64 = 200_000;

impl Evaluation {
    fn takes_chance(&mut self) -> bool {
        // An xorshift: any nonzero seed runs through all values.
        self.seed ^= self.seed << 13;
        self.seed ^= self.seed >> 7;
        self.seed ^= self.seed << 17;
        (self.seed >> 32) as u8 >= 255 - self.bails && self.bails != 0
    }
}

impl Cpu {
    /// Evaluates what begins here; what comes after is up to the next poll.
    pub(super) fn evaluate(&mut self, at: TraceRef) -> Option<Stop> {
        if let Some(EvaluationUnit::Region { passes }) = self.evaluation.map(|evaluation| evaluation.unit)
            && let Some(region) = self.region_here(passes)
        {
            return self.evaluate_region(&region, at);
        }
        self.evaluate_trace(at)
    }

    /// The region that begins here.
    fn region_here(&mut self, passes: usize) -> Option<Region> {
        let mode = LiftMode::of(self).passing_vectors_through();
        if !mode.is_flat() {
            return None;
        }
        let linear = self.rip & PAGE_MASK;
        let fetch = self.fetch_page(linear).ok().filter(|fetch| !fetch.page.is_null())?;
        self.mark_page(&fetch);
        let mut bytes = [0; 4096];
        copy_code(fetch.page, 0, &mut bytes);
        let mut region = form_region(self.rip, mode, self.cpuid.instruction_sets(), |page| (page == linear).then_some(&bytes))?;
        region::pass::run(&mut region, region::pass::PIPELINE.get(..passes).unwrap_or(region::pass::PIPELINE));
        Some(region)
    }

    fn evaluate_region(&mut self, region: &Region, at: TraceRef) -> Option<Stop> {
        self.running.count = 0;
        if self.retired.wrapping_sub(self.counted) > ENDLESS {
            return Some(Stop::TripleFault);
        }
        let limit = self.limit.saturating_sub(self.retired).min(PATIENCE);
        let mut evaluated = Evaluated { cpu: self, block: None, at, stop: None };
        match evaluate_region(region, &mut evaluated, limit) {
            RegionLeft::To { pc, retired } => {
                self.retired += retired;
                self.rip = pc;
                None
            }
            RegionLeft::Bailed { pc, retired } => {
                self.retired += retired;
                self.rip = pc;
                match self.find_trace() {
                    Ok(trace) => {
                        let first = self.traces.get(trace).first;
                        self.interpret_one(trace, first)
                    }
                    Err(stop) => self.fetch_failed(stop),
                }
            }
        }
    }

    fn evaluate_trace(&mut self, at: TraceRef) -> Option<Stop> {
        let trace = self.traces.get(at);
        let (first, count) = (trace.first, trace.count);
        let allowed = self.limit.saturating_sub(self.retired).min(count.into()) as usize;
        if allowed == 0 {
            return None;
        }
        // SAFETY: a trace's ops stay where they are until `find_trace` is called; copied, because a store into them patches them.
        let ops: Vec<Op> = (0..allowed).map(|at| unsafe { *first.wrapping_add(at) }).collect();
        let linear = self.spans[usize::from(seg::CS)].base.wrapping_add(self.rip);
        let mut block = lift::lift(&ops, LiftMode::of(self), self.rip, (linear & !PAGE_MASK) as u16);
        ir::pass::run(&mut block);
        if block.replaces_flags() {
            // Nobody may look at them any more, so they might as well be wrong.
            self.flags.set_arithmetic(!self.flags.arithmetic());
        }
        let start = self.rip;
        (self.running.first, self.running.rip, self.running.trace, self.running.count) = (first, start, at, count);
        let mut evaluated = Evaluated { cpu: self, block: Some((&block, &ops)), at, stop: None };
        let left = evaluate(&block, &mut evaluated);
        let stop = evaluated.stop;
        let retired = block.guest.len() as u64;
        match left {
            Left::To(pc) => {
                self.running.count = 0;
                self.retired += retired;
                self.rip = pc;
                None
            }
            Left::Dispatch => {
                self.running.count = 0;
                self.retired += retired;
                None
            }
            Left::Bailed(number) => {
                self.retired += u64::from(number);
                self.rip = start.wrapping_add(block.guest[usize::from(number)].offset.into());
                self.interpret_one(at, first.wrapping_add(number.into()))
            }
            Left::Interpreted(number) => {
                let guest = block.guest[usize::from(number)];
                match stop {
                    Some(stop) => self.stopped(number.into(), start.wrapping_add(guest.offset.into()), stop),
                    None => {
                        self.running.count = 0;
                        self.retired += u64::from(number) + 1;
                        None
                    }
                }
            }
        }
    }
}

/// A CPU whose code is being evaluated.
struct Evaluated<'a> {
    cpu: &'a mut Cpu,
    /// The block and its instructions; regions have no business with the interpreter.
    block: Option<(&'a ir::Block, &'a [Op])>,
    at: TraceRef,
    /// Why an interpreted instruction did not say "go on".
    stop: Option<Stop>,
}

impl Evaluated<'_> {
    fn pointer(&mut self, address: u64, bytes: u8, access: Access) -> Option<*mut u8> {
        let (class, bytes) = (self.cpu.tlb_class, u64::from(bytes));
        let look = |cpu: &Cpu| match access {
            Access::Write => cpu.tlb.write_pointer(class, address, bytes),
            _ => cpu.tlb.read_pointer(class, address, bytes).map(<*const u8>::cast_mut),
        };
        look(self.cpu).or_else(|| {
            self.cpu.probe_slowly(class, seg::DS, address, bytes, access).ok()?;
            look(self.cpu)
        })
    }
}

impl Guest for Evaluated<'_> {
    fn slot(&self, slot: u8) -> u128 {
        match slot {
            0..16 => self.cpu.gpr[usize::from(slot)].into(),
            lift::XMM..lift::SEGMENT_BASE => self.cpu.fpu.xmm[usize::from(slot - lift::XMM)],
            _ => self.cpu.spans[usize::from(slot - lift::SEGMENT_BASE)].base.into(),
        }
    }

    fn set_slot(&mut self, slot: u8, value: u128) {
        match slot {
            0..16 => self.cpu.gpr[usize::from(slot)] = value as u64,
            lift::XMM..lift::SEGMENT_BASE => self.cpu.fpu.xmm[usize::from(slot - lift::XMM)] = value,
            _ => unreachable!("segment bases are not set by lifted code"),
        }
    }

    fn flags(&self) -> FlagSet {
        FlagSet::from_packed(self.cpu.flags.arithmetic())
    }

    fn set_flags(&mut self, flags: FlagSet) {
        self.cpu.flags.set_arithmetic(flags.packed());
    }

    fn load(&mut self, address: u64, bytes: u8, for_write: bool) -> Option<u128> {
        use super::access::Word;
        let from = self.pointer(address, bytes, if for_write { Access::Write } else { Access::Read })?;
        // SAFETY: a TLB entry points into a block that `held_blocks` keeps alive.
        Some(unsafe {
            match bytes {
                1 => u8::load(from).wide(),
                2 => u16::load(from).wide(),
                4 => u32::load(from).wide(),
                8 => u64::load(from).wide(),
                _ => u128::load(from),
            }
        })
    }

    fn store(&mut self, address: u64, bytes: u8, value: u128) -> Option<()> {
        use super::access::Word;
        let to = self.pointer(address, bytes, Access::Write)?;
        // SAFETY: a TLB entry points into a block that `held_blocks` keeps alive.
        unsafe {
            match bytes {
                1 => u8::low(value).store(to),
                2 => u16::low(value).store(to),
                4 => u32::low(value).store(to),
                8 => u64::low(value).store(to),
                _ => value.store(to),
            }
        }
        Some(())
    }

    fn probe(&mut self, address: u64, bytes: u32, for_write: bool) -> bool {
        if bytes > 4096 || (address & !PAGE_MASK) + u64::from(bytes) > 4096 {
            return false;
        }
        // One byte stands for all of its page.
        self.pointer(address, 1, if for_write { Access::Write } else { Access::Read }).is_some()
    }

    fn exchange(&mut self, address: u64, bytes: u8, compute: &dyn Fn(u64) -> u64) -> Option<u64> {
        let at = self.pointer(address, bytes, Access::Write)?;
        // SAFETY: a TLB entry points into a block that `held_blocks` keeps alive.
        Some(unsafe {
            match bytes {
                1 => exchange::<u8>(at, compute),
                2 => exchange::<u16>(at, compute),
                4 => exchange::<u32>(at, compute),
                _ => exchange::<u64>(at, compute),
            }
        })
    }

    fn may_go_to(&self, pc: u64) -> bool {
        if self.cpu.is_64_bit() { is_canonical(pc) } else { pc <= self.cpu.segments[usize::from(seg::CS)].limit.into() }
    }

    fn float(&mut self, op: FloatOp, a: u128, b: u128, immediate: u8) -> u128 {
        evaluate_float::float(self.cpu, op, a, b, immediate)
    }

    fn float_compare(&mut self, a: u128, b: u128, bytes: u8, signals: bool) -> FlagSet {
        evaluate_float::compare(self.cpu, a, b, bytes, signals)
    }

    fn int_to_float(&mut self, a: u128, value: u64, from: u8, to: u8) -> u128 {
        evaluate_float::from_integer(self.cpu, a, value, from, to)
    }

    fn float_to_int(&mut self, value: u128, from: u8, to: u8, truncates: bool) -> u64 {
        evaluate_float::to_integer(self.cpu, value, from, to, truncates)
    }

    fn native(&mut self, native: &Native, operand: u64, has_memory: bool) -> (u64, FlagSet) {
        // The instruction is written with RAX as its general register or address, and the interpreter executes that.
        let op = super::t1::with_accumulator(native, has_memory, self.cpu.cpuid.instruction_sets());
        let (held, flags) = (self.cpu.gpr[0], self.cpu.flags.arithmetic());
        self.cpu.gpr[0] = operand;
        assert!((op.handler)(self.cpu, &op).is_ok(), "{native:?} at {operand:#x} has faulted");
        let result = std::mem::replace(&mut self.cpu.gpr[0], held);
        let left = FlagSet::from_packed(self.cpu.flags.arithmetic());
        self.cpu.flags.set_arithmetic(flags);
        (result, left)
    }

    fn gather(&mut self, gather: &Gather, base: u64) -> Option<()> {
        let op = super::t1::gather_with_accumulator(gather, self.cpu.cpuid.instruction_sets());
        let (held, xmm, ymm_high) = (self.cpu.gpr[0], self.cpu.fpu.xmm, self.cpu.fpu.ymm_high);
        self.cpu.gpr[0] = base;
        let done = (op.handler)(self.cpu, &op);
        self.cpu.gpr[0] = held;
        if done.is_err() {
            (self.cpu.fpu.xmm, self.cpu.fpu.ymm_high) = (xmm, ymm_high);
        }
        done.ok()
    }

    fn interpret(&mut self, number: u16) -> bool {
        let Some((block, ops)) = self.block else { return false };
        let (op, guest) = (&ops[usize::from(number)], block.guest[usize::from(number)]);
        let start = block.pc.wrapping_add(guest.offset.into());
        self.cpu.rip = start.wrapping_add(guest.len.into());
        match (op.handler)(self.cpu, op) {
            Ok(()) => self.cpu.traces.get(self.at).is_fresh(),
            Err(stop) => {
                self.stop = Some(stop);
                false
            }
        }
    }

    fn bails_at_random(&mut self) -> bool {
        self.cpu.evaluation.as_mut().is_some_and(Evaluation::takes_chance)
    }
}

/// # Safety
/// `at` points to as many bytes of guest memory that is kept alive.
unsafe fn exchange<T: Int>(at: *mut u8, compute: &dyn Fn(u64) -> u64) -> u64 {
    loop {
        // SAFETY: the caller vouches for the memory.
        let old = unsafe { T::load(at) };
        // SAFETY: as above.
        if unsafe { T::exchange_if(at, old, T::cut(compute(old.zx()))) } {
            return old.zx();
        }
    }
}
