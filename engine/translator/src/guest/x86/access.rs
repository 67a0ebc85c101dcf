//! Memory accesses of instructions: segment check, software TLB, access. The fast path is inline; everything else
//! (exact segment check, page walk, devices, pages that hold code, page crossings, breakpoints) is in `mmu/slow.rs`.

use super::cpu::{Cpu, reg, seg};
use super::fault::{Exec, Stop};
use super::flags::Flags;
use super::interp_integer::Int;
use crate::mmu::{PAGE_MASK, class};

/// A value as it is moved to and from memory: `u8` to `u128`, little endian.
pub(crate) trait Word: Copy + Send + 'static {
    /// Size in bytes.
    const BYTES: u64;
    /// The low bits of `value`.
    fn low(value: u128) -> Self;
    /// Zero-extended.
    fn wide(self) -> u128;
    /// Loads from guest memory. Naturally aligned accesses up to 8 bytes are single-copy atomic.
    ///
    /// # Safety
    /// `from..from + BYTES` is inside a block of guest memory that is kept alive.
    unsafe fn load(from: *const u8) -> Self;
    /// Stores to guest memory; atomic like [`Word::load`].
    ///
    /// # Safety
    /// As for [`Word::load`].
    unsafe fn store(self, to: *mut u8);
}

macro_rules! word {
    ($type:ty, $atomic:ty, $load:literal, $store:literal, $class:ident) => {
        impl Word for $type {
            const BYTES: u64 = size_of::<$type>() as u64;
            #[inline(always)]
            fn low(value: u128) -> Self {
                value as $type
            }
            #[inline(always)]
            fn wide(self) -> u128 {
                u128::from(self)
            }
            #[inline(always)]
            unsafe fn load(from: *const u8) -> Self {
                #[cfg(target_arch = "x86_64")]
                {
                    let value: $type;
                    // SAFETY: the caller says that the bytes are there; a plain x86 load needs no alignment and, unlike a Rust read,
                    // may race with other vCPUs.
                    unsafe { std::arch::asm!($load, out($class) value, in(reg) from, options(nostack, readonly, preserves_flags)) };
                    value
                }
                #[cfg(not(target_arch = "x86_64"))]
                // SAFETY: as above; aligned accesses are atomic, others go byte by byte.
                unsafe {
                    use std::sync::atomic::Ordering;
                    if from.addr() % size_of::<$type>() == 0 {
                        <$type>::from_le((*(from as *const $atomic)).load(Ordering::Relaxed))
                    } else {
                        let mut bytes = [0; size_of::<$type>()];
                        for (at, byte) in bytes.iter_mut().enumerate() {
                            *byte = from.add(at).read_volatile();
                        }
                        <$type>::from_le_bytes(bytes)
                    }
                }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut u8) {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: as for `load`.
                unsafe {
                    std::arch::asm!($store, in(reg) to, in($class) self, options(nostack, preserves_flags));
                }
                #[cfg(not(target_arch = "x86_64"))]
                // SAFETY: as for `load`.
                unsafe {
                    use std::sync::atomic::Ordering;
                    if to.addr() % size_of::<$type>() == 0 {
                        (*(to as *const $atomic)).store(self.to_le(), Ordering::Relaxed);
                    } else {
                        for (at, byte) in self.to_le_bytes().into_iter().enumerate() {
                            to.add(at).write_volatile(byte);
                        }
                    }
                }
            }
        }
    };
}

word!(u8, std::sync::atomic::AtomicU8, "mov {}, byte ptr [{}]", "mov byte ptr [{}], {}", reg_byte);
word!(u16, std::sync::atomic::AtomicU16, "mov {:x}, word ptr [{}]", "mov word ptr [{}], {:x}", reg);
word!(u32, std::sync::atomic::AtomicU32, "mov {:e}, dword ptr [{}]", "mov dword ptr [{}], {:e}", reg);
word!(u64, std::sync::atomic::AtomicU64, "mov {}, qword ptr [{}]", "mov qword ptr [{}], {}", reg);

impl Word for u128 {
    const BYTES: u64 = 16;
    #[inline(always)]
    fn low(value: u128) -> Self {
        value
    }
    #[inline(always)]
    fn wide(self) -> u128 {
        self
    }
    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self {
        // SAFETY: both halves are inside what the caller vouches for.
        unsafe { u128::from(u64::load(from)) | u128::from(u64::load(from.wrapping_add(8))) << 64 }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut u8) {
        // SAFETY: both halves are inside what the caller vouches for.
        unsafe {
            (self as u64).store(to);
            ((self >> 64) as u64).store(to.wrapping_add(8));
        }
    }
}

impl Cpu {
    /// The linear address of `offset` in a segment, checked for `bytes` bytes of reading: the fast part.
    #[inline(always)]
    fn readable(&mut self, segment: u8, offset: u64, bytes: u64) -> Result<u64, Stop> {
        let span = &self.spans[usize::from(segment & 7)];
        if offset.wrapping_add(bytes) <= span.read_end {
            Ok(span.base.wrapping_add(offset) & self.linear_mask)
        } else {
            self.check_segment_slowly(segment, offset, bytes, crate::mmu::Access::Read)
        }
    }

    /// The same for writing.
    #[inline(always)]
    fn writable(&mut self, segment: u8, offset: u64, bytes: u64) -> Result<u64, Stop> {
        let span = &self.spans[usize::from(segment & 7)];
        if offset.wrapping_add(bytes) <= span.write_end {
            Ok(span.base.wrapping_add(offset) & self.linear_mask)
        } else {
            self.check_segment_slowly(segment, offset, bytes, crate::mmu::Access::Write)
        }
    }

    /// Reads memory at `segment:offset` with all checks. `offset` has been cut to the address size.
    #[inline(always)]
    pub fn read<T: Word>(&mut self, segment: u8, offset: u64) -> Result<T, Stop> {
        let linear = self.readable(segment, offset, T::BYTES)?;
        match self.tlb.read_pointer(self.tlb_class, linear, T::BYTES) {
            // SAFETY: a TLB entry points into a block that `held_blocks` keeps alive.
            Some(from) => Ok(unsafe { T::load(from) }),
            None => self.read_slowly(self.tlb_class, segment, linear),
        }
    }

    /// Writes memory at `segment:offset` with all checks.
    #[inline(always)]
    pub fn write<T: Word>(&mut self, segment: u8, offset: u64, value: T) -> Exec {
        let linear = self.writable(segment, offset, T::BYTES)?;
        match self.tlb.write_pointer(self.tlb_class, linear, T::BYTES) {
            Some(to) => {
                // SAFETY: a TLB entry points into a block that `held_blocks` keeps alive.
                unsafe { value.store(to) };
                Ok(())
            }
            None => self.write_slowly(self.tlb_class, segment, linear, value),
        }
    }

    /// Whether a write of `bytes` at `segment:offset` would succeed: all faults that it could raise are raised now (and
    /// accessed and dirty bits set). For instructions with more than one store.
    pub fn probe_write(&mut self, segment: u8, offset: u64, bytes: u64) -> Exec {
        let linear = self.writable(segment, offset, bytes)?;
        if self.tlb.write_pointer(self.tlb_class, linear, bytes).is_some() {
            return Ok(());
        }
        self.probe_slowly(self.tlb_class, segment, linear, bytes, crate::mmu::Access::Write)
    }

    /// Whether a read of `bytes` at `segment:offset` would succeed.
    pub fn probe_read(&mut self, segment: u8, offset: u64, bytes: u64) -> Exec {
        let linear = self.readable(segment, offset, bytes)?;
        if self.tlb.read_pointer(self.tlb_class, linear, bytes).is_some() {
            return Ok(());
        }
        self.probe_slowly(self.tlb_class, segment, linear, bytes, crate::mmu::Access::Read)
    }

    /// Reads, computes (setting flags) and writes back. Not atomic; page faults are those of a write.
    #[inline(always)]
    pub fn modify<T: Word>(&mut self, segment: u8, offset: u64, compute: impl FnOnce(&mut Flags, T) -> T) -> Exec {
        let linear = self.writable(segment, offset, T::BYTES)?;
        match self.tlb.write_pointer(self.tlb_class, linear, T::BYTES) {
            Some(at) => {
                // SAFETY: a TLB entry points into a block that `held_blocks` keeps alive.
                let old = unsafe { T::load(at) };
                let new = compute(&mut self.flags, old);
                // SAFETY: as above.
                unsafe { new.store(at) };
                Ok(())
            }
            None => {
                self.probe_slowly(self.tlb_class, segment, linear, T::BYTES, crate::mmu::Access::Write)?;
                let old = self.read_slowly(self.tlb_class, segment, linear)?;
                let new = compute(&mut self.flags, old);
                self.write_slowly(self.tlb_class, segment, linear, new)
            }
        }
    }

    /// Reads, computes (setting flags) and writes back as one locked operation; gives what was there before. `compute` may run
    /// several times.
    pub(super) fn modify_locked<T: Int>(
        &mut self,
        segment: u8,
        offset: u64,
        compute: impl Fn(&mut Flags, T) -> T,
    ) -> Result<T, Stop> {
        let linear = self.writable(segment, offset, T::BYTES)?;
        let (at, slow) = match self.tlb.write_pointer(self.tlb_class, linear, T::BYTES) {
            Some(at) => (at, None),
            None => match self.locked_slowly(self.tlb_class, segment, linear, T::BYTES)? {
                Some((at, page)) => (at, Some(page)),
                None => {
                    // A device, ROM or two pages: the bus is locked.
                    let (fabric, shared) = (self.fabric.clone(), self.shared.clone());
                    return fabric.alone(&shared, || {
                        self.after_quiet();
                        let old = self.read_slowly(self.tlb_class, segment, linear)?;
                        let mut flags = self.flags;
                        let new = compute(&mut flags, old);
                        self.write_slowly(self.tlb_class, segment, linear, new)?;
                        self.flags = flags;
                        Ok(old)
                    });
                }
            },
        };
        loop {
            // SAFETY: the address comes from the TLB or from a physical page, both in held blocks.
            let old = unsafe { T::load(at) };
            let mut flags = self.flags;
            let new = compute(&mut flags, old);
            // SAFETY: as above.
            if unsafe { T::exchange_if(at, old, new) } {
                self.flags = flags;
                if let Some(page) = slow {
                    self.note_physical_write(&page, linear & !PAGE_MASK, T::BYTES);
                }
                return Ok(old);
            }
        }
    }

    /// CMPXCHG16B: stores `new` if `expected` is there; gives what was there. The address is aligned.
    pub(super) fn compare_exchange_wide(&mut self, segment: u8, offset: u64, expected: u128, new: u128) -> Result<u128, Stop> {
        let linear = self.writable(segment, offset, 16)?;
        let (at, slow) = match self.tlb.write_pointer(self.tlb_class, linear, 16) {
            Some(at) => (at, None),
            None => match self.locked_slowly(self.tlb_class, segment, linear, 16)? {
                Some((at, page)) => (at, Some(page)),
                None => {
                    let old: u128 = self.read_slowly(self.tlb_class, segment, linear)?;
                    self.write_slowly(self.tlb_class, segment, linear, if old == expected { new } else { old })?;
                    return Ok(old);
                }
            },
        };
        // SAFETY: the address comes from the TLB or from a physical page, both in held blocks, and is 16-byte aligned.
        let old = unsafe { exchange_wide(at, expected, new) };
        if let Some(page) = slow {
            self.note_physical_write(&page, linear & !PAGE_MASK, 16);
        }
        Ok(old)
    }

    /// Where a run of bytes within one page can be read, if nothing about it needs the slow path.
    pub(super) fn run_read_pointer(&self, segment: u8, offset: u64, bytes: u64) -> Option<*const u8> {
        let span = &self.spans[usize::from(segment & 7)];
        if offset.wrapping_add(bytes) > span.read_end {
            return None;
        }
        self.tlb.read_pointer(self.tlb_class, span.base.wrapping_add(offset) & self.linear_mask, bytes)
    }

    /// The same for writing.
    pub(super) fn run_write_pointer(&self, segment: u8, offset: u64, bytes: u64) -> Option<*mut u8> {
        let span = &self.spans[usize::from(segment & 7)];
        if offset.wrapping_add(bytes) > span.write_end {
            return None;
        }
        self.tlb.write_pointer(self.tlb_class, span.base.wrapping_add(offset) & self.linear_mask, bytes)
    }

    /// Reads at a linear address as the supervisor, whatever the CPL: descriptor tables, TSS, interrupt stacks' tables.
    pub fn read_system<T: Word>(&mut self, linear: u64) -> Result<T, Stop> {
        let linear = linear & self.system_mask();
        match self.tlb.read_pointer(class::SUPERVISOR, linear, T::BYTES) {
            // SAFETY: a TLB entry points into a block that `held_blocks` keeps alive.
            Some(from) => Ok(unsafe { T::load(from) }),
            None => self.read_slowly(class::SUPERVISOR, seg::DS, linear),
        }
    }

    /// Writes at a linear address as the supervisor, whatever the CPL.
    pub fn write_system<T: Word>(&mut self, linear: u64, value: T) -> Exec {
        let linear = linear & self.system_mask();
        match self.tlb.write_pointer(class::SUPERVISOR, linear, T::BYTES) {
            Some(to) => {
                // SAFETY: a TLB entry points into a block that `held_blocks` keeps alive.
                unsafe { value.store(to) };
                Ok(())
            }
            None => self.write_slowly(class::SUPERVISOR, seg::DS, linear, value),
        }
    }

    /// Whether a supervisor write of `bytes` at a linear address would succeed.
    pub fn probe_system_write(&mut self, linear: u64, bytes: u64) -> Exec {
        let linear = linear & self.system_mask();
        self.probe_slowly(class::SUPERVISOR, seg::DS, linear, bytes, crate::mmu::Access::Write)
    }

    /// Linear addresses of tables have 64 bits in long mode, even while compatibility code runs.
    fn system_mask(&self) -> u64 {
        if self.is_long() { u64::MAX } else { 0xffff_ffff }
    }

    // ---- The stack ---------------------------------------------------------------------------------------------

    /// The stack pointer, cut to the stack's size.
    #[inline(always)]
    pub fn sp(&self) -> u64 {
        self.gpr[usize::from(reg::SP)] & self.stack_mask
    }

    /// Sets the stack pointer as a register of the stack's size: one of 16 bits keeps what is above, one of 32 loses it.
    #[inline(always)]
    pub fn set_sp(&mut self, value: u64) {
        let whole = &mut self.gpr[usize::from(reg::SP)];
        let kept = if self.stack_mask == 0xffff { *whole & !0xffff } else { 0 };
        *whole = kept | value & self.stack_mask;
    }

    /// Pushes.
    #[inline(always)]
    pub fn push<T: Word>(&mut self, value: T) -> Exec {
        let to = self.sp().wrapping_sub(T::BYTES) & self.stack_mask;
        self.write(seg::SS, to, value)?;
        self.set_sp(to);
        Ok(())
    }

    /// Pops.
    #[inline(always)]
    pub fn pop<T: Word>(&mut self) -> Result<T, Stop> {
        let value = self.peek(0)?;
        self.set_sp(self.sp().wrapping_add(T::BYTES));
        Ok(value)
    }

    /// Reads `above` bytes above the top of the stack and pops nothing.
    #[inline(always)]
    pub fn peek<T: Word>(&mut self, above: u64) -> Result<T, Stop> {
        let from = self.sp().wrapping_add(above) & self.stack_mask;
        self.read(seg::SS, from)
    }

    /// Pushes 2, 4 or 8 bytes.
    pub fn push_sized(&mut self, bytes: u8, value: u64) -> Exec {
        match bytes {
            2 => self.push(value as u16),
            4 => self.push(value as u32),
            _ => self.push(value),
        }
    }

    /// Reads 2, 4 or 8 bytes at `above` bytes above the top of the stack.
    pub fn peek_sized(&mut self, bytes: u8, above: u64) -> Result<u64, Stop> {
        Ok(match bytes {
            2 => u64::from(self.peek::<u16>(above)?),
            4 => u64::from(self.peek::<u32>(above)?),
            _ => self.peek::<u64>(above)?,
        })
    }
}

/// The page of the last byte of an access; it differs from the first byte's when the access crosses.
#[inline(always)]
pub(crate) fn last_page(linear: u64, bytes: u64) -> u64 {
    linear.wrapping_add(bytes - 1) & PAGE_MASK
}

/// Stores `new` at `at` if `expected` is there, as one locked operation; gives what was there.
///
/// # Safety
/// `at..at + 16` is inside a block of guest memory that is kept alive, and 16-byte aligned.
unsafe fn exchange_wide(at: *mut u8, expected: u128, new: u128) -> u128 {
    #[cfg(target_arch = "x86_64")]
    {
        let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
        // SAFETY: the caller vouches for the memory. RBX belongs to the compiler, so it is swapped in and out.
        unsafe {
            std::arch::asm!(
                "xchg {new_low}, rbx",
                "lock cmpxchg16b xmmword ptr [{at}]",
                "mov rbx, {new_low}",
                new_low = inout(reg) new as u64 => _,
                at = in(reg) at,
                in("rcx") (new >> 64) as u64,
                inout("rax") low,
                inout("rdx") high,
                options(nostack)
            );
        }
        u128::from(low) | u128::from(high) << 64
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        // Not atomic against plain accesses of other vCPUs on these hosts, but against other CMPXCHG16B.
        static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _one = ONE_AT_A_TIME.lock().unwrap_or_else(|poison| poison.into_inner());
        // SAFETY: the caller vouches for the memory.
        unsafe {
            let old = u128::load(at);
            if old == expected {
                new.store(at);
            }
            old
        }
    }
}
