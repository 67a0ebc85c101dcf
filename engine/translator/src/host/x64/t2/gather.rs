//! Gathers: each element is looked up in the TLB. Where one is not found the vector registers get back what they were, and the
//! instruction bails; a block enters the page, so the next time it is there.

use super::memory::Look;
use super::{ColdKind, Emitter, Refused, Ways};
use crate::host::x64::asm::{Asm, Cond, Label, Mem, R, W, X};
use crate::host::x64::gather::{Elements, Wanted, Writer};
use crate::ir::gather::Gather;
use crate::ir::region::Span;
use crate::ir::{Inst, Val};

/// What is needed to find a gather's elements.
#[derive(Clone, Copy)]
struct Places {
    base: Option<R>,
    scale: u8,
    displacement: i32,
    /// Bytes of an index and of an element.
    index: u8,
    element: u8,
    /// Registers to work with.
    address: R,
    entry: R,
    page: R,
    undo: Label,
}

/// A gather of which not all elements are wanted.
pub(super) struct Rest {
    writer: Writer,
    places: Places,
    done: Label,
}

struct Looking<'e, 'a, W_: Ways> {
    emitter: &'e mut Emitter<'a, W_>,
    places: Places,
}

impl<W_: Ways> Elements for Looking<'_, '_, W_> {
    fn asm(&mut self) -> &mut Asm {
        &mut self.emitter.asm
    }

    fn find(&mut self, index: Mem) -> Mem {
        let Places { base, scale, displacement: disp, address, entry, page, .. } = self.places;
        let asm = &mut self.emitter.asm;
        match self.places.index {
            8 => asm.load(W::B8, address, index),
            _ => asm.movsx(W::B8, W::B4, address, index),
        }
        match base {
            Some(base) => asm.lea(W::B8, address, Mem { base, index: Some((address, scale)), disp }),
            None => asm.lea_scaled(W::B8, address, address, scale, disp),
        }
        let span = Span { low: 0, high: self.places.element.into() };
        let look = Look { address, span, writes: false, refills: false, stream: None };
        self.emitter.look_up(&look, entry, page);
        self.emitter.asm.jcc(Cond::NE, self.places.undo);
        self.emitter.take_entry(&look, entry);
        Mem::sum(entry, address)
    }
}

impl<W_: Ways> Emitter<'_, W_> {
    pub(super) fn gather(&mut self, inst: &Inst) -> Result<(), Refused> {
        let gather = Gather::of(inst);
        let writer = Writer::new(&gather, self.frame.gather).ok_or(Refused::Operation(inst.op))?;
        let base = if inst.args[0].is_some() { Some(self.read(inst.args[0])?) } else { None };
        let (address, entry, page) = (self.allocate(None)?, self.allocate(None)?, self.allocate(None)?);
        self.host_flags = Val::NONE;
        let bail = self.bail(inst)?;
        let undo = self.cold(ColdKind::Undo { registers: writer.undo(), bail });
        let places = Places {
            base,
            scale: gather.scale,
            displacement: gather.displacement,
            index: writer.form.index,
            element: writer.form.element,
            address,
            entry,
            page,
            undo,
        };
        let done = self.asm.label();
        let some = self.cold(ColdKind::Gather(Rest { writer, places, done }));
        writer.keep(&mut self.asm);
        writer.ask(&mut self.asm, address, some);
        writer.elements(&mut Looking { emitter: self, places }, Wanted::All);
        self.asm.bind(done);
        writer.end(&mut self.asm);
        Ok(())
    }

    /// Out of the way: loads the elements that are wanted.
    pub(super) fn write_rest(&mut self, rest: &Rest) {
        let &Rest { writer, places, done } = rest;
        writer.elements(&mut Looking { emitter: self, places }, Wanted::Masked);
        self.asm.jmp(done);
    }

    /// Out of the way: vector registers become what they were, and the instruction bails.
    pub(super) fn write_undo(&mut self, registers: &[(X, Mem); 2], bail: Label) {
        for (register, kept) in *registers {
            self.asm.load_vector(register, kept);
        }
        self.asm.jmp(bail);
    }
}
