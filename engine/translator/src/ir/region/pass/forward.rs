//! Loads of what the region has just stored get the value itself.
//!
//! A CPU sees its own stores before others do, for as long as it likes, so this is what any memory model here allows. Nothing
//! may come between that might have stored to the same place: other stores count as such unless they are relative to the same
//! value and elsewhere. Two places less than a page apart are two places, whatever pages they are mapped to. (Loads do not
//! serve other loads: those are seen in order.)

use super::super::super::native::{Native, Shape};
use super::super::super::ops::{Effects, Op, Ty};
use super::super::super::{Inst, Val};
use super::super::{BlockId, Region, To, ssa};
use super::probes::root_of;

/// Most stores that are remembered.
const MOST: usize = 32;
/// How far apart two places may be that are compared.
const PAGE: u64 = 4096;

/// What has been stored.
#[derive(Clone, Copy)]
struct Stored {
    root: Val,
    distance: u64,
    bytes: u64,
    value: Val,
}

/// The pass.
pub(super) fn run(region: &mut Region) {
    let incoming = ssa::incoming(region);
    let mut alias = vec![Val::NONE; region.insts.len()];
    // What each block leaves to one that nothing else leads to.
    let mut left: Vec<Vec<Stored>> = vec![Vec::new(); region.blocks.len()];
    for block in 0..region.blocks.len() {
        let mut stored = match incoming[block][..] {
            [(from, _)] if (from as usize) < block => left[from as usize].clone(),
            _ => Vec::new(),
        };
        let body = std::mem::take(&mut region.blocks[block].body);
        let mut kept = Vec::with_capacity(body.len());
        for value in body {
            if !forwarded(region, &mut stored, &mut alias, value, &mut kept) {
                kept.push(value);
            }
        }
        region.blocks[block].body = kept;
        let goes_on = region.blocks[block].end.edges().any(|edge| matches!(edge.to, To::Block(to) if to > block as BlockId));
        if goes_on {
            left[block] = stored;
        }
    }
    alias.resize(region.insts.len(), Val::NONE);
    ssa::substitute(region, alias);
}

/// Whether an instruction is a load that another value stands for. Keeps book of stores.
fn forwarded(region: &mut Region, stored: &mut Vec<Stored>, alias: &mut [Val], value: Val, kept: &mut Vec<Val>) -> bool {
    let inst = *region.def(value);
    match inst.op {
        Op::StoreVia => {
            let (root, distance) = root_of(region, inst.args[0]);
            let new =
                Stored { root, distance: distance.wrapping_add(inst.imm), bytes: inst.ty.bytes().into(), value: inst.args[2] };
            stored.retain(|old| old.root == root && is_elsewhere(old, &new));
            if stored.len() == MOST {
                stored.remove(0);
            }
            stored.push(new);
            false
        }
        Op::LoadVia => {
            let access = inst.access();
            let (root, distance) = root_of(region, inst.args[0]);
            let distance = distance.wrapping_add(inst.imm);
            let bytes = u64::from(access.bytes);
            let same = stored.iter().find(|old| old.root == root && old.distance == distance && old.bytes >= bytes);
            let Some(&Stored { value: held, bytes: held_bytes, .. }) = same else { return false };
            if inst.ty == Ty::V128 || held_bytes == 16 {
                let whole = held_bytes == bytes && inst.ty == Ty::V128;
                if whole {
                    alias[value.index()] = held;
                }
                return whole;
            }
            let (from, mut part) = (Ty::of_bytes(access.bytes), held);
            if held_bytes > bytes {
                part = region.add(Inst { args: [held, Val::NONE, Val::NONE], ..Inst::new(Op::Truncate, from) });
                kept.push(part);
            }
            if from == inst.ty {
                alias[value.index()] = part;
                return true;
            }
            let op = if access.signed { Op::SignExtend } else { Op::ZeroExtend };
            region.insts[value.index()] = Inst { args: [part, Val::NONE, Val::NONE], ..Inst::new(op, inst.ty) };
            false
        }
        Op::NativeStore => {
            let native = Native::of(&inst);
            let (root, distance) = root_of(region, inst.args[0]);
            let distance = distance.wrapping_add(i64::from(native.displacement) as u64);
            let memory = Shape::of(native.code, true).and_then(|shape| shape.memory);
            let bytes = memory.map_or(PAGE, |memory| memory.bytes.into());
            let new = Stored { root, distance, bytes, value: Val::NONE };
            stored.retain(|old| old.root == root && is_elsewhere(old, &new));
            false
        }
        op if op.info().effects.intersects(Effects::WRITE_MEMORY) => {
            stored.clear();
            false
        }
        _ => false,
    }
}

/// Whether two places relative to one value have no byte in common, in memory too.
fn is_elsewhere(old: &Stored, new: &Stored) -> bool {
    let up = new.distance.wrapping_sub(old.distance);
    let down = old.distance.wrapping_sub(new.distance);
    up >= old.bytes && up <= PAGE - new.bytes || down >= new.bytes && down <= PAGE - old.bytes
}
