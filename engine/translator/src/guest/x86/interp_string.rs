//! String instructions: MOVS, STOS, LODS, SCAS, CMPS, INS, OUTS, alone and repeated.
//!
//! A repeated instruction works through at most [`BUDGET`] elements and then asks to be run again, so that interrupts get
//! their turn. RCX, RSI and RDI are committed element by element: a fault leaves them at the element that failed. MOVS and STOS move
//! whole runs within a page when both pages are in the TLB.

use super::access::Word;
use super::cpu::{Cpu, reg, seg};
use super::fault::{Exec, Stop};
use super::flags::bit;
use super::interp_alu::{Binary, Cmp};
use super::interp_integer::{Int, by_size};
use super::op::{Handler, Op, OpFlags};
use super::system;
use engine_memory::PAGE_BYTES;
use iced_x86::{Code, Instruction};

/// Most elements between two polls, one by one.
const BUDGET: u64 = 4096;
/// So many bytes of a run count as one element.
const RUN_BYTES: u64 = 256;
/// Most port accesses between two polls.
const PORT_BUDGET: u64 = 512;

/// The handler of an instruction of this file.
pub(super) fn handler(instruction: &Instruction) -> Option<Handler> {
    macro_rules! forms {
        ($bytes:expr, $operation:ident) => {
            if instruction.has_rep_prefix() || instruction.has_repne_prefix() {
                by_size!($bytes, repeat, $operation)
            } else {
                by_size!($bytes, once, $operation)
            }
        };
    }
    Some(match instruction.code() {
        Code::Movsb_m8_m8 => forms!(1, Move),
        Code::Movsw_m16_m16 => forms!(2, Move),
        Code::Movsd_m32_m32 => forms!(4, Move),
        Code::Movsq_m64_m64 => forms!(8, Move),
        Code::Stosb_m8_AL => forms!(1, Store),
        Code::Stosw_m16_AX => forms!(2, Store),
        Code::Stosd_m32_EAX => forms!(4, Store),
        Code::Stosq_m64_RAX => forms!(8, Store),
        Code::Lodsb_AL_m8 => forms!(1, Load),
        Code::Lodsw_AX_m16 => forms!(2, Load),
        Code::Lodsd_EAX_m32 => forms!(4, Load),
        Code::Lodsq_RAX_m64 => forms!(8, Load),
        Code::Scasb_AL_m8 => forms!(1, Scan),
        Code::Scasw_AX_m16 => forms!(2, Scan),
        Code::Scasd_EAX_m32 => forms!(4, Scan),
        Code::Scasq_RAX_m64 => forms!(8, Scan),
        Code::Cmpsb_m8_m8 => forms!(1, Compare),
        Code::Cmpsw_m16_m16 => forms!(2, Compare),
        Code::Cmpsd_m32_m32 => forms!(4, Compare),
        Code::Cmpsq_m64_m64 => forms!(8, Compare),
        Code::Insb_m8_DX => forms!(1, Input),
        Code::Insw_m16_DX => forms!(2, Input),
        Code::Insd_m32_DX => forms!(4, Input),
        Code::Outsb_DX_m8 => forms!(1, Output),
        Code::Outsw_DX_m16 => forms!(2, Output),
        Code::Outsd_DX_m32 => forms!(4, Output),
        _ => return None,
    })
}

/// One string operation.
trait Operation: 'static {
    /// Whether REPE and REPNE look at ZF.
    const TESTS: bool = false;
    const USES_SOURCE: bool;
    const USES_DESTINATION: bool;
    const BUDGET: u64 = BUDGET;
    /// What is checked even if there is nothing to do.
    fn permit<T: Int>(_cpu: &mut Cpu) -> Exec {
        Ok(())
    }
    /// One element at the given offsets; moves no pointers.
    fn element<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64) -> Exec;
    /// Up to `count` elements at once, beginning with those at the given offsets; gives how many were done: 0 when it has to go
    /// element by element.
    fn run<T: Int>(_cpu: &mut Cpu, _op: &Op, _source: u64, _destination: u64, _count: u64, _way: Way) -> u64 {
        0
    }
}

/// Which way a string instruction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Way {
    fn of(cpu: &Cpu) -> Self {
        if cpu.flags.has(bit::DF) { Self::Down } else { Self::Up }
    }

    /// Where the element `count` elements on lies.
    fn step<T: Int>(self, count: u64) -> u64 {
        let bytes = count * T::BYTES;
        if self == Self::Up { bytes } else { bytes.wrapping_neg() }
    }
}

/// Adds to an address register in the address size.
#[inline(always)]
fn advance(cpu: &mut Cpu, op: &Op, register: u8, by: u64) {
    let whole = &mut cpu.gpr[usize::from(register)];
    let mask = op.address_mask();
    let new = whole.wrapping_add(by) & mask;
    // 16-bit addresses leave the rest of the register alone, 32-bit ones clear it.
    *whole = if op.address_shift == 48 { *whole & !mask | new } else { new };
}

#[inline(always)]
fn one<O: Operation, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let mask = op.address_mask();
    let (source, destination) = (cpu.gpr[usize::from(reg::SI)] & mask, cpu.gpr[usize::from(reg::DI)] & mask);
    O::element::<T>(cpu, op, source, destination)?;
    let step = Way::of(cpu).step::<T>(1);
    if O::USES_SOURCE {
        advance(cpu, op, reg::SI, step);
    }
    if O::USES_DESTINATION {
        advance(cpu, op, reg::DI, step);
    }
    Ok(())
}

fn once<O: Operation, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    one::<O, T>(cpu, op)
}

fn repeat<O: Operation, T: Int>(cpu: &mut Cpu, op: &Op) -> Exec {
    let mask = op.address_mask();
    let mut left = cpu.gpr[usize::from(reg::CX)] & mask;
    if left == 0 {
        return O::permit::<T>(cpu);
    }
    // Under single step and breakpoints each element is an instruction.
    let mut budget = if cpu.is_watched() { 1 } else { O::BUDGET };
    let way = Way::of(cpu);
    while budget > 0 {
        let (source, destination) = (cpu.gpr[usize::from(reg::SI)] & mask, cpu.gpr[usize::from(reg::DI)] & mask);
        let mut done = if budget > 1 { O::run::<T>(cpu, op, source, destination, left, way) } else { 0 };
        if done > 0 {
            let step = way.step::<T>(done);
            if O::USES_SOURCE {
                advance(cpu, op, reg::SI, step);
            }
            if O::USES_DESTINATION {
                advance(cpu, op, reg::DI, step);
            }
        } else {
            one::<O, T>(cpu, op)?;
            done = 1;
        }
        advance(cpu, op, reg::CX, done.wrapping_neg());
        left -= done;
        budget -= (1 + done * T::BYTES / RUN_BYTES).min(budget);
        if O::TESTS && cpu.flags.zf() == op.flags.contains(OpFlags::REPNE) {
            return Ok(());
        }
        if left == 0 {
            return Ok(());
        }
    }
    Err(Stop::Again)
}

struct Move;
impl Operation for Move {
    const USES_SOURCE: bool = true;
    const USES_DESTINATION: bool = true;

    fn element<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64) -> Exec {
        let value = cpu.read::<T>(op.segment, source)?;
        cpu.write(seg::ES, destination, value)
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64, count: u64, way: Way) -> u64 {
        let count = count.min(cpu.elements_in_page::<T>(op.segment, source, way)).min(cpu.elements_in_page::<T>(
            seg::ES,
            destination,
            way,
        ));
        let Some(from) = readable::<T>(cpu, op, op.segment, source, count, way) else { return 0 };
        let Some(to) = writable::<T>(cpu, op, destination, count, way) else { return 0 };
        // SAFETY: both runs are inside pages that the TLB holds.
        unsafe { copy::<T>(from, to, count, way) };
        count
    }
}

struct Store;
impl Operation for Store {
    const USES_SOURCE: bool = false;
    const USES_DESTINATION: bool = true;

    fn element<T: Int>(cpu: &mut Cpu, _: &Op, _: u64, destination: u64) -> Exec {
        let value = T::get(cpu, reg::AX);
        cpu.write(seg::ES, destination, value)
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, _: u64, destination: u64, count: u64, way: Way) -> u64 {
        let count = count.min(cpu.elements_in_page::<T>(seg::ES, destination, way));
        let Some(to) = writable::<T>(cpu, op, destination, count, way) else { return 0 };
        let value = T::get(cpu, reg::AX);
        // SAFETY: the run is inside a page that the TLB holds.
        unsafe { fill::<T>(to, value, count) };
        count
    }
}

struct Load;
impl Operation for Load {
    const USES_SOURCE: bool = true;
    const USES_DESTINATION: bool = false;

    fn element<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, _: u64) -> Exec {
        cpu.read::<T>(op.segment, source)?.set(cpu, reg::AX);
        Ok(())
    }
}

struct Scan;
impl Operation for Scan {
    const TESTS: bool = true;
    const USES_SOURCE: bool = false;
    const USES_DESTINATION: bool = true;

    fn element<T: Int>(cpu: &mut Cpu, _: &Op, _: u64, destination: u64) -> Exec {
        let value = cpu.read::<T>(seg::ES, destination)?;
        let accumulator = T::get(cpu, reg::AX);
        Cmp::run(&mut cpu.flags, accumulator, value);
        Ok(())
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, _: u64, destination: u64, count: u64, way: Way) -> u64 {
        if way == Way::Down {
            return 0;
        }
        let count = count.min(cpu.elements_in_page::<T>(seg::ES, destination, way));
        let Some(run) = readable::<T>(cpu, op, seg::ES, destination, count, way) else { return 0 };
        let accumulator = T::get(cpu, reg::AX);
        // SAFETY: the run is inside a page that the TLB holds, and so are its elements.
        let (done, last) = unsafe {
            let everywhere = accumulator.zx().wrapping_mul(u64::MAX / T::MASK);
            let done = elements_until::<T>(
                op,
                count,
                |at| everywhere ^ u64::load(run.wrapping_add(at)),
                |at| accumulator.zx() ^ T::load(run.wrapping_add(at)).zx(),
            );
            (done, T::load(run.wrapping_add(((done - 1) * T::BYTES) as usize)))
        };
        Cmp::run(&mut cpu.flags, accumulator, last);
        done
    }
}

struct Compare;
impl Operation for Compare {
    const TESTS: bool = true;
    const USES_SOURCE: bool = true;
    const USES_DESTINATION: bool = true;

    fn element<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64) -> Exec {
        // The destination goes first on the CPUs at hand: seen when both pages are missing.
        let b = cpu.read::<T>(seg::ES, destination)?;
        let a = cpu.read::<T>(op.segment, source)?;
        Cmp::run(&mut cpu.flags, a, b);
        Ok(())
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, destination: u64, count: u64, way: Way) -> u64 {
        if way == Way::Down {
            return 0;
        }
        let count = count.min(cpu.elements_in_page::<T>(op.segment, source, way)).min(cpu.elements_in_page::<T>(
            seg::ES,
            destination,
            way,
        ));
        let Some(a) = readable::<T>(cpu, op, op.segment, source, count, way) else { return 0 };
        let Some(b) = readable::<T>(cpu, op, seg::ES, destination, count, way) else { return 0 };
        // SAFETY: the runs are inside pages that the TLB holds, and so are their elements.
        let (done, last) = unsafe {
            let done = elements_until::<T>(
                op,
                count,
                |at| u64::load(a.wrapping_add(at)) ^ u64::load(b.wrapping_add(at)),
                |at| T::load(a.wrapping_add(at)).zx() ^ T::load(b.wrapping_add(at)).zx(),
            );
            let at = ((done - 1) * T::BYTES) as usize;
            (done, (T::load(a.wrapping_add(at)), T::load(b.wrapping_add(at))))
        };
        Cmp::run(&mut cpu.flags, last.0, last.1);
        done
    }
}

struct Input;
impl Operation for Input {
    const USES_SOURCE: bool = false;
    const USES_DESTINATION: bool = true;
    const BUDGET: u64 = PORT_BUDGET;

    fn permit<T: Int>(cpu: &mut Cpu) -> Exec {
        let port = cpu.reg16(reg::DX);
        system::check_port(cpu, port, T::BYTES as u8)
    }

    fn element<T: Int>(cpu: &mut Cpu, _: &Op, _: u64, destination: u64) -> Exec {
        let port = cpu.reg16(reg::DX);
        system::check_port(cpu, port, T::BYTES as u8)?;
        // What a port gives is gone once read, so the store must not fault.
        cpu.probe_write(seg::ES, destination, T::BYTES)?;
        cpu.sync_clock();
        let value = cpu.io().port_read(port, T::BYTES as u8);
        cpu.after_io();
        cpu.write(seg::ES, destination, T::cut(u64::from(value)))
    }

    fn run<T: Int>(cpu: &mut Cpu, op: &Op, _: u64, destination: u64, count: u64, way: Way) -> u64 {
        // A counting clock looks at its timers after each access.
        if way == Way::Down || cpu.counts {
            return 0;
        }
        let count = count.min(cpu.elements_in_page::<T>(seg::ES, destination, way));
        let port = cpu.reg16(reg::DX);
        if writable::<T>(cpu, op, destination, count, way).is_none() || Self::permit::<T>(cpu).is_err() {
            return 0;
        }
        let mut values = [0; PAGE_BYTES as usize];
        let values = &mut values[..(count * T::BYTES) as usize];
        cpu.io().port_read_run(port, T::BYTES as u8, values);
        cpu.after_io();
        match writable::<T>(cpu, op, destination, count, way) {
            // SAFETY: the run is inside a page that the TLB holds, and as long as the values.
            Some(to) => unsafe { copy_upwards(values.as_ptr(), to, values.len() as u64) },
            // The device has changed what answers where. Page tables are what they were: nothing faults.
            None => {
                for (at, value) in (0..).step_by(T::BYTES as usize).zip(values.chunks_exact(T::BYTES as usize)) {
                    let value = value.iter().rev().fold(0, |whole, byte| whole << 8 | u64::from(*byte));
                    let _ = cpu.write(seg::ES, destination + at, T::cut(value));
                }
            }
        }
        count
    }
}

struct Output;
impl Operation for Output {
    const USES_SOURCE: bool = true;
    const USES_DESTINATION: bool = false;
    const BUDGET: u64 = PORT_BUDGET;

    fn permit<T: Int>(cpu: &mut Cpu) -> Exec {
        let port = cpu.reg16(reg::DX);
        system::check_port(cpu, port, T::BYTES as u8)
    }

    fn element<T: Int>(cpu: &mut Cpu, op: &Op, source: u64, _: u64) -> Exec {
        let port = cpu.reg16(reg::DX);
        system::check_port(cpu, port, T::BYTES as u8)?;
        let value = cpu.read::<T>(op.segment, source)?;
        cpu.sync_clock();
        cpu.io().port_write(port, T::BYTES as u8, value.zx() as u32);
        cpu.after_io();
        Ok(())
    }
}

impl Cpu {
    /// How many elements, the one at `segment:offset` included, lie whole in its page.
    fn elements_in_page<T: Int>(&self, segment: u8, offset: u64, way: Way) -> u64 {
        let inside = self.spans[usize::from(segment & 7)].base.wrapping_add(offset) & 0xfff;
        match way {
            Way::Up => (0x1000 - inside) / T::BYTES,
            Way::Down if inside + T::BYTES > 0x1000 => 0,
            Way::Down => inside / T::BYTES + 1,
        }
    }
}

/// The lowest offset of a run whose first element is at `offset`, and its bytes. Nothing where it wraps around the address size
/// or is not worth it.
fn extent<T: Int>(op: &Op, offset: u64, count: u64, way: Way) -> Option<(u64, u64)> {
    if count < 2 {
        return None;
    }
    let bytes = count * T::BYTES;
    let low = match way {
        Way::Up => offset,
        Way::Down => offset.checked_sub(bytes - T::BYTES)?,
    };
    (low.checked_add(bytes - 1)? <= op.address_mask()).then_some((low, bytes))
}

/// The lowest byte of a run within a page that can be read without more ado.
fn readable<T: Int>(cpu: &Cpu, op: &Op, segment: u8, offset: u64, count: u64, way: Way) -> Option<*const u8> {
    let (low, bytes) = extent::<T>(op, offset, count, way)?;
    cpu.run_read_pointer(segment, low, bytes)
}

/// The same of one that can be written, in ES.
fn writable<T: Int>(cpu: &Cpu, op: &Op, offset: u64, count: u64, way: Way) -> Option<*mut u8> {
    let (low, bytes) = extent::<T>(op, offset, count, way)?;
    cpu.run_write_pointer(seg::ES, low, bytes)
}

/// How many of `count` elements REPE or REPNE goes through: all, or as many as it takes to find what ends it. `word` and
/// `element` give the difference to what is looked for, of eight bytes or of one element at a distance in bytes.
#[inline(always)]
fn elements_until<T: Int>(op: &Op, count: u64, word: impl Fn(usize) -> u64, element: impl Fn(usize) -> u64) -> u64 {
    let equal_ends = op.flags.contains(OpFlags::REPNE);
    // The lowest and the highest bit of each element of a word.
    let lowest = u64::MAX / T::MASK;
    let highest = lowest << (T::BITS - 1);
    let per_word = 8 / T::BYTES;
    let mut done = 0;
    while done + per_word <= count {
        let difference = word((done * T::BYTES) as usize);
        // Elements that are zero borrow; so may those above them, but the first is right.
        let found = if equal_ends { difference.wrapping_sub(lowest) & !difference & highest } else { difference };
        if found != 0 {
            return done + u64::from(found.trailing_zeros() / T::BITS) + 1;
        }
        done += per_word;
    }
    while done < count {
        let equal = element((done * T::BYTES) as usize) == 0;
        done += 1;
        if equal == equal_ends {
            break;
        }
    }
    done
}

/// Fills a run as STOS does.
///
/// # Safety
/// The run of `count` elements is inside a block of guest memory that is kept alive.
unsafe fn fill<T: Int>(to: *mut u8, value: T, count: u64) {
    #[cfg(target_arch = "x86_64")]
    {
        // All bytes alike: what hosts are fastest at, and nearly all fills are of zeros.
        let bytes = value.zx().to_le_bytes();
        if bytes[..T::BYTES as usize].iter().all(|byte| *byte == bytes[0]) {
            // SAFETY: the caller vouches for the memory; DF is clear in Rust code.
            unsafe {
                std::arch::asm!(
                    "rep stosb",
                    inout("rcx") count * T::BYTES => _,
                    inout("rdi") to => _,
                    in("al") bytes[0],
                    options(nostack, preserves_flags)
                );
            }
            return;
        }
    }
    for at in 0..count {
        // SAFETY: the caller vouches for the memory.
        unsafe { value.store(to.wrapping_add((at * T::BYTES) as usize)) };
    }
}

/// Copies a run as MOVS does, from its lowest byte on or from its highest.
///
/// # Safety
/// Both runs of `count` elements are inside blocks of guest memory that are kept alive.
unsafe fn copy<T: Int>(from: *const u8, to: *mut u8, count: u64, way: Way) {
    let bytes = count * T::BYTES;
    let (above, below) = ((to as u64).wrapping_sub(from as u64), (from as u64).wrapping_sub(to as u64));
    let overtakes = match way {
        Way::Up => above != 0 && above < bytes,
        Way::Down => below != 0 && below < bytes,
    };
    let apart = above >= bytes && below >= bytes;
    // SAFETY: the caller vouches for the memory.
    unsafe {
        if overtakes {
            // What has been stored is loaded again: element by element, in the right order.
            for number in 0..count {
                let at = (T::BYTES * if way == Way::Up { number } else { count - 1 - number }) as usize;
                T::load(from.wrapping_add(at)).store(to.wrapping_add(at));
            }
        } else if way == Way::Up || apart {
            copy_upwards(from, to, bytes);
        } else {
            copy_downwards(from, to, bytes as usize);
        }
    }
}

/// Copies to where it does not matter, or must be, that the last bytes go first.
///
/// # Safety
/// As for [`copy`].
unsafe fn copy_downwards(from: *const u8, to: *mut u8, bytes: usize) {
    let mut left = bytes;
    while left >= 32 {
        left -= 32;
        // SAFETY: the caller vouches for the memory.
        unsafe {
            let (low, high) = (u128::load(from.wrapping_add(left)), u128::load(from.wrapping_add(left + 16)));
            low.store(to.wrapping_add(left));
            high.store(to.wrapping_add(left + 16));
        }
    }
    while left > 0 {
        left -= 1;
        // SAFETY: as above.
        unsafe { u8::load(from.wrapping_add(left)).store(to.wrapping_add(left)) };
    }
}

/// Copies to where it does not matter, or must be, that the first bytes go first.
///
/// # Safety
/// As for [`copy`].
unsafe fn copy_upwards(from: *const u8, to: *mut u8, bytes: u64) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller vouches for the memory; DF is clear in Rust code.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") bytes => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for at in 0..bytes as usize {
        // SAFETY: as above.
        unsafe { to.wrapping_add(at).write_volatile(from.wrapping_add(at).read_volatile()) };
    }
}
