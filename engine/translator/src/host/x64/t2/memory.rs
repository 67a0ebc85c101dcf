//! Memory by probes, and what may bail.

use super::moves::cell;
use super::registers::{Source, bit, width_of};
use super::streams::Part;
use super::{Cold, ColdKind, Emitter, Frame, Refused, Ways};
use crate::host::x64::asm::{Alu, Cond, Label, Mem, R, Rm, W};
use crate::ir::region::{PROBE_RAISED, PROBE_WRITE, Span};
use crate::ir::{Inst, NO_SNAPSHOT, Op, Val};

/// Bits of an address that count, its highest one repeated above them.
const CANONICAL_BITS: u8 = 48;
/// Where no page is, nor near it.
const NO_PAGE: u64 = 1 << 62;

/// What is looked up for an access: the bytes around an address.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub address: R,
    pub span: Span,
    pub writes: bool,
    /// What the table does not have may be entered there. (Not a right to write that nobody may use yet.)
    pub refills: bool,
    /// The stream that is told of the page.
    pub stream: Option<usize>,
}

impl Look {
    fn of_probe(inst: &Inst, address: R, stream: Option<usize>) -> Self {
        let writes = inst.aux & PROBE_WRITE != 0;
        Self { address, span: Span::unpack(inst.imm), writes, refills: inst.aux & PROBE_RAISED == 0, stream }
    }
}

/// An access of a stream that has left its page.
#[derive(Clone, Copy)]
pub(super) struct LeftPage {
    look: Look,
    addend: R,
    bail: Label,
    back: Label,
}

/// A page that the table does not have; `entry` is its place in there, and becomes the addend.
#[derive(Clone, Copy)]
pub(super) struct Missed {
    look: Look,
    entry: R,
    page: R,
    bail: Label,
    back: Label,
}

impl<W_: Ways> Emitter<'_, W_> {
    /// Writes what `write_inst` does not know.
    pub(super) fn write_memory(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        match inst.op {
            Op::Probe => self.probe(value, inst),
            Op::LoadVia | Op::Load => self.load_from(value, inst),
            Op::StoreVia | Op::Store => self.store_to(inst),
            Op::Fence => {
                self.asm.fence(6);
                Ok(())
            }
            Op::BailIf => {
                let condition = self.truth(inst.args[0])?;
                let label = self.bail(inst)?;
                self.asm.jcc(condition, label);
                Ok(())
            }
            Op::CheckPc => self.check_pc(inst),
            Op::CheckAligned => self.check_aligned(inst),
            Op::Poll => self.poll(inst),
            op => Err(Refused::Operation(op)),
        }
    }

    /// A way out of the way, taken with everything as it is now.
    pub(super) fn cold(&mut self, kind: ColdKind) -> Label {
        let label = self.asm.label();
        self.cold.push(Cold { label, state: self.state.clone(), host_flags: self.host_flags, block: self.block as u32, kind });
        label
    }

    /// Where an instruction bails to.
    pub(super) fn bail(&mut self, inst: &Inst) -> Result<Label, Refused> {
        if inst.snapshot == NO_SNAPSHOT {
            return Err(Refused::Operation(inst.op));
        }
        Ok(self.cold(ColdKind::Bail(inst.snapshot)))
    }

    fn poll(&mut self, inst: &Inst) -> Result<(), Refused> {
        // What counts at a block's start leaves the sign.
        if self.position != 0 || self.plan.retired.at_start(self.block as u32) == 0 {
            self.asm.alu_imm(Alu::Cmp, W::B8, cell(self.frame.countdown), 0);
        }
        self.host_flags = Val::NONE;
        let back = self.asm.label();
        let label = self.cold(ColdKind::Poll(inst.snapshot, back));
        self.asm.jcc(Cond::S, label);
        self.asm.bind(back);
        Ok(())
    }

    /// Out of the way: counts down from the start again, and goes back if the vCPU is not wanted.
    pub(super) fn write_look(&mut self, back: Label) {
        let Frame { countdown, retired, interval, attention, .. } = *self.frame;
        for count in [countdown, retired] {
            self.asm.alu_imm(Alu::Add, W::B8, cell(count), interval);
        }
        self.asm.push(R::Ax);
        self.asm.load(W::B8, R::Ax, cell(attention));
        self.asm.alu_imm(Alu::Cmp, W::B4, Mem::at(R::Ax, 0), 0);
        self.asm.pop(R::Ax);
        self.asm.jcc(Cond::E, back);
    }

    pub(super) fn check_pc(&mut self, inst: &Inst) -> Result<(), Refused> {
        let target = self.read(inst.args[0])?;
        let test = self.allocate(None)?;
        self.asm.mov(W::B8, test, target);
        self.asm.shift_imm(4, W::B8, test, 64 - CANONICAL_BITS);
        self.asm.shift_imm(7, W::B8, test, 64 - CANONICAL_BITS);
        self.asm.alu(Alu::Cmp, W::B8, test, target);
        self.host_flags = Val::NONE;
        let label = self.bail(inst)?;
        self.asm.jcc(Cond::NE, label);
        Ok(())
    }

    // ---- Probes ------------------------------------------------------------------------------------------------

    fn probe(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let address = self.read(inst.args[0])?;
        let hint = self.hint(value);
        let addend = match self.plan.stream_part(value) {
            Some(Part::Asks(stream)) => self.ask_stream(inst, Look::of_probe(inst, address, Some(stream)), stream, hint)?,
            Some(Part::Tells(stream)) => self.find_addend(inst, Look::of_probe(inst, address, Some(stream)), hint)?,
            None => self.find_addend(inst, Look::of_probe(inst, address, None), hint)?,
        };
        self.define(addend, value)
    }

    // ---- Streams -----------------------------------------------------------------------------------------------

    /// The cell with the address of the page that a stream has met last; the page's addend is in the next.
    fn stream_cell(&self, stream: usize) -> Mem {
        cell(self.frame.cells + 8 * (super::leave::SCRATCH_CELLS + 2 * stream) as i32)
    }

    /// At the region's entry no stream has met a page. RAX is free there.
    pub(super) fn forget_streams(&mut self) {
        if self.plan.streams.count != 0 {
            self.asm.set(R::Ax, NO_PAGE);
        }
        for stream in 0..self.plan.streams.count {
            let page = self.stream_cell(stream);
            self.asm.mov(W::B8, page, R::Ax);
        }
    }

    /// A register with the addend of a stream's page, in which the bytes around an address lie.
    fn ask_stream(&mut self, inst: &Inst, look: Look, stream: usize, hint: Option<R>) -> Result<R, Refused> {
        let Look { address, span, .. } = look;
        let addend = self.allocate(hint)?;
        let page = self.stream_cell(stream);
        match span.low {
            0 => self.asm.mov(W::B8, addend, address),
            low => self.asm.lea(W::B8, addend, Mem::at(address, low)),
        }
        self.asm.alu_load(Alu::Sub, W::B8, addend, page);
        self.asm.alu_imm(Alu::Cmp, W::B8, addend, 4096 - (span.high - span.low));
        self.host_flags = Val::NONE;
        let bail = self.bail(inst)?;
        let back = self.asm.label();
        let left = self.cold(ColdKind::Left(LeftPage { look, addend, bail, back }));
        self.asm.jcc(Cond::A, left);
        self.asm.load(W::B8, addend, Mem { disp: page.disp + 8, ..page });
        self.asm.bind(back);
        Ok(addend)
    }

    /// Out of the way: asks the TLB, and tells the stream.
    pub(super) fn write_left(&mut self, left: &LeftPage) {
        let LeftPage { look, addend, bail, back } = *left;
        // One of three is neither.
        let is_spare = |register: &R| *register != look.address && *register != addend;
        let page = [R::Ax, R::Dx].into_iter().find(is_spare).unwrap_or(R::Cx);
        self.asm.push(page);
        self.look_up(&look, addend, page);
        let (found, entered) = (self.asm.label(), self.asm.label());
        self.asm.jcc(Cond::E, found);
        if look.refills {
            self.refill(&look, addend, page);
            self.asm.jcc(Cond::E, entered);
        }
        self.asm.pop(page);
        self.asm.jmp(bail);
        self.asm.bind(found);
        self.take_entry(&look, addend);
        self.asm.bind(entered);
        self.tell_stream(&look, addend, page);
        self.asm.pop(page);
        self.asm.jmp(back);
    }

    /// Tells the stream, if there is one, of a page and its addend.
    fn tell_stream(&mut self, look: &Look, addend: R, page: R) {
        if let Some(stream) = look.stream {
            let cell = self.stream_cell(stream);
            self.asm.mov(W::B8, cell, page);
            self.asm.mov(W::B8, Mem { disp: cell.disp + 8, ..cell }, addend);
        }
    }

    // ---- The TLB -----------------------------------------------------------------------------------------------

    /// Looks for the page in which the bytes around an address lie. The host says "equal" if the table has it; then `entry` is
    /// the entry's distance in it and `page` the page's address.
    pub(super) fn look_up(&mut self, look: &Look, entry: R, page: R) {
        let Look { address, span, writes, .. } = *look;
        let table = self.frame.tables[usize::from(writes)];
        if span.low == 0 && self.frame.bmi2 {
            self.asm.rorx(entry, address, 8);
        } else {
            self.asm.lea(W::B4, entry, Mem::at(address, span.low));
            self.asm.shift_imm(5, W::B4, entry, 8);
        }
        self.asm.alu_imm(Alu::And, W::B4, entry, 0x3ff0);
        match span.high - 1 {
            0 => self.asm.mov(W::B8, page, address),
            last => self.asm.lea(W::B8, page, Mem::at(address, last)),
        }
        self.asm.alu_imm(Alu::And, W::B8, page, -4096);
        self.asm.alu_load(Alu::Cmp, W::B8, page, Mem { base: R::Bp, index: Some((entry, 0)), disp: table });
    }

    /// `entry`, which [`Emitter::look_up`] has found, becomes the page's addend.
    pub(super) fn take_entry(&mut self, look: &Look, entry: R) {
        let table = self.frame.tables[usize::from(look.writes)];
        self.asm.load(W::B8, entry, Mem { base: R::Bp, index: Some((entry, 0)), disp: table + 8 });
    }

    /// Out of the way: has what [`Emitter::look_up`] has not found entered into the table. The host says "equal" if that was
    /// possible; then `entry` is the addend.
    fn refill(&mut self, look: &Look, entry: R, page: R) {
        self.asm.push(entry);
        self.asm.push(page);
        self.asm.call_to(self.frame.refills[usize::from(look.writes)]);
        self.asm.pop(page);
        self.asm.pop(entry);
    }

    pub(super) fn write_missed(&mut self, missed: &Missed) {
        let Missed { look, entry, page, bail, back } = *missed;
        self.refill(&look, entry, page);
        self.asm.jcc(Cond::NE, bail);
        self.asm.jmp(back);
    }

    /// A register with the addend of the page in which the bytes around an address lie.
    fn find_addend(&mut self, inst: &Inst, look: Look, hint: Option<R>) -> Result<R, Refused> {
        let entry = self.allocate(hint)?;
        let page = self.allocate(None)?;
        self.look_up(&look, entry, page);
        self.host_flags = Val::NONE;
        let bail = self.bail(inst)?;
        let back = self.asm.label();
        let missed = if look.refills { self.cold(ColdKind::Missed(Missed { look, entry, page, bail, back })) } else { bail };
        self.asm.jcc(Cond::NE, missed);
        self.take_entry(&look, entry);
        self.asm.bind(back);
        self.tell_stream(&look, entry, page);
        self.busy &= !bit(page);
        Ok(entry)
    }

    /// A host address for an access that brings its own probe.
    fn probed_memory(&mut self, inst: &Inst) -> Result<Mem, Refused> {
        let access = inst.access();
        let disp = i32::try_from(inst.imm as i64).map_err(|_| Refused::Operation(inst.op))?;
        let high = disp.checked_add(access.bytes.into()).ok_or(Refused::Operation(inst.op))?;
        let address = self.read(inst.args[0])?;
        if access.aligned {
            self.bail_unless_aligned(inst, address, disp, access.bytes)?;
        }
        let writes = inst.op == Op::Store || access.for_write;
        let look = Look { address, span: Span { low: disp, high }, writes, refills: true, stream: None };
        let addend = self.find_addend(inst, look, None)?;
        Ok(Mem { base: addend, index: Some((address, 0)), disp })
    }

    fn check_aligned(&mut self, inst: &Inst) -> Result<(), Refused> {
        let disp = i32::try_from(inst.imm as i64).map_err(|_| Refused::Operation(inst.op))?;
        let address = self.read(inst.args[0])?;
        self.bail_unless_aligned(inst, address, disp, inst.aux)
    }

    fn bail_unless_aligned(&mut self, inst: &Inst, address: R, disp: i32, bytes: u8) -> Result<(), Refused> {
        let mask = i32::from(bytes) - 1;
        if disp & mask == 0 {
            self.asm.test_imm(W::B1, address, mask);
        } else {
            let low = self.allocate(None)?;
            self.asm.lea(W::B4, low, Mem::at(address, disp));
            self.asm.test_imm(W::B1, low, mask);
            self.busy &= !bit(low);
        }
        self.host_flags = Val::NONE;
        let label = self.bail(inst)?;
        self.asm.jcc(Cond::NE, label);
        Ok(())
    }

    /// `[address + addend + imm]`. Keeps the host's flags.
    pub(super) fn host_memory(&mut self, address: Val, addend: Val, imm: u64) -> Result<Mem, Refused> {
        let index = self.read(address)?;
        let base = self.read(addend)?;
        if let Ok(disp) = i32::try_from(imm as i64) {
            return Ok(Mem { base, index: Some((index, 0)), disp });
        }
        let sum = self.allocate(None)?;
        self.asm.set(sum, imm);
        self.asm.lea(W::B8, sum, Mem::sum(sum, index));
        Ok(Mem::sum(base, sum))
    }

    fn load_from(&mut self, value: Val, inst: &Inst) -> Result<(), Refused> {
        let access = inst.access();
        let [address, addend, _] = inst.args;
        let to_w = width_of(inst.ty).ok_or(Refused::Width(inst.op, inst.ty))?;
        let from_w = W::of(access.bytes.into()).ok_or(Refused::Width(inst.op, inst.ty))?;
        if from_w.bytes() > to_w.bytes() {
            return Err(Refused::Width(inst.op, inst.ty));
        }
        let (from, to) = if inst.op == Op::Load {
            let from = self.probed_memory(inst)?;
            // The addend is nobody's: the result may take its place.
            (from, from.base)
        } else {
            let from = self.host_memory(address, addend, inst.imm)?;
            (from, self.result_register(value, &[address, addend])?)
        };
        match from_w {
            W::B8 => self.asm.load(W::B8, to, from),
            W::B4 if access.signed && to_w == W::B8 => self.asm.movsx(W::B8, W::B4, to, from),
            W::B4 => self.asm.load(W::B4, to, from),
            _ if access.signed => self.asm.movsx(if to_w == W::B8 { W::B8 } else { W::B4 }, from_w, to, from),
            _ => self.asm.movzx(from_w, to, from),
        }
        self.define(to, value)
    }

    fn store_to(&mut self, inst: &Inst) -> Result<(), Refused> {
        let [address, second, third] = inst.args;
        let value = if inst.op == Op::Store { second } else { third };
        let w = width_of(inst.ty).ok_or(Refused::Width(inst.op, inst.ty))?;
        let from = match self.immediate(value, w) {
            Some(value) => Source::Imm(value),
            None => Source::Rm(Rm::Reg(self.read(value)?)),
        };
        let to = if inst.op == Op::Store { self.probed_memory(inst)? } else { self.host_memory(address, second, inst.imm)? };
        match from {
            Source::Imm(value) => self.asm.mov_imm(w, to, value),
            Source::Rm(Rm::Reg(from)) => self.asm.mov(w, to, from),
            Source::Rm(_) => return Err(Refused::Operation(inst.op)),
        }
        Ok(())
    }

    /// A register for a result that is written after all operands have been read: one of theirs if it dies.
    pub(super) fn result_register(&mut self, value: Val, operands: &[Val]) -> Result<R, Refused> {
        let hint = self.hint(value);
        if let Some(hint) = hint
            && !self.state.value_in(hint).is_some()
            && self.busy & bit(hint) == 0
        {
            return self.allocate(Some(hint));
        }
        for operand in operands {
            if self.dies(*operand)
                && let Some(register) = self.state.register_of(self.plan.root(*operand))
            {
                self.state.put(register, Val::NONE);
                return Ok(register);
            }
        }
        self.allocate(hint)
    }
}
