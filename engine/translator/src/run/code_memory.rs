//! Memory for translated code: shared memory mapped twice, once to write and once to execute, so that no address is ever both
//! (W^X). It has no name of its own, because only of memory without one does `perf` ask its map who lies there.
//!
//! Writers hold the lock of whoever owns the memory; executing threads see what was written, because x86 hosts keep their instruction
//! caches coherent with stores through any mapping of the same physical memory.

use rustix::mm::{MapFlags, MprotectFlags, MremapFlags, ProtFlags};
use std::io;
use std::ptr::NonNull;

/// Parts that the memory for code is divided into; see `t1/spaces.rs`.
pub(crate) const PARTS: usize = 8;

/// A piece of memory for code. Unmapped when dropped: whoever may still execute in it keeps it alive.
pub(crate) struct CodeMemory {
    write: Mapping,
    execute: Mapping,
    len: usize,
}

/// A mapping of our own.
struct Mapping {
    at: NonNull<u8>,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped with this length by `CodeMemory::new`; nobody executes in it any more, or they would keep it alive.
        let _ = unsafe { rustix::mm::munmap(self.at.as_ptr().cast(), self.len) };
    }
}

// SAFETY: the mappings belong to this value and to no thread; all access through it is by raw pointers under the owner's rules.
unsafe impl Send for CodeMemory {}
// SAFETY: as above; `write_at` and `patch` say what their callers must see to.
unsafe impl Sync for CodeMemory {}

impl CodeMemory {
    /// Maps `len` bytes (a multiple of the page size). The host commits them as they are used.
    ///
    /// # Errors
    /// What the host says when it refuses memory, or memory to execute.
    pub fn new(len: usize) -> io::Result<Self> {
        let nowhere = || io::Error::other("a mapping at address 0");
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the host chooses touches nothing of ours.
        let write = unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, MapFlags::SHARED) }?;
        let write = Mapping { at: NonNull::new(write.cast()).ok_or_else(nowhere)?, len };
        // SAFETY: an old size of 0 leaves shared memory where it is, and maps it once more elsewhere. See: mremap(2).
        let execute = unsafe { rustix::mm::mremap(write.at.as_ptr().cast(), 0, len, MremapFlags::MAYMOVE) }?;
        let execute = Mapping { at: NonNull::new(execute.cast()).ok_or_else(nowhere)?, len };
        // SAFETY: the mapping made just now, of which nobody else knows.
        unsafe { rustix::mm::mprotect(execute.at.as_ptr().cast(), len, MprotectFlags::READ | MprotectFlags::EXEC) }?;
        Ok(Self { write, execute, len })
    }

    /// The address at which the byte `offset` is executed.
    pub fn address(&self, offset: usize) -> u64 {
        debug_assert!(offset <= self.len);
        self.execute.at.as_ptr() as u64 + offset as u64
    }

    /// Writes code that nobody executes yet.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn write_at(&self, offset: usize, code: &[u8]) {
        assert!(offset <= self.len && code.len() <= self.len - offset, "code beyond its memory");
        // SAFETY: within the mapping, and no thread executes or reads these bytes yet, says the caller.
        unsafe { self.write.at.as_ptr().add(offset).copy_from_nonoverlapping(code.as_ptr(), code.len()) }
    }

    /// Four bytes of code.
    ///
    /// # Panics
    /// When they are not in this memory.
    pub fn read(&self, offset: usize) -> [u8; 4] {
        assert!(offset + 4 <= self.len, "code beyond its memory");
        // SAFETY: within the mapping; whoever writes there holds the lock that the caller holds.
        unsafe { self.write.at.as_ptr().add(offset).cast::<[u8; 4]>().read_unaligned() }
    }

    /// Replaces up to 8 bytes inside one aligned 8-byte word in one store, while other threads may execute there: they see all
    /// of it or nothing.
    ///
    /// # Panics
    /// When the bytes are not inside one word of this memory.
    pub fn patch(&self, offset: usize, bytes: &[u8]) {
        let word = offset & !7;
        assert!(word + 8 <= self.len && offset + bytes.len() <= word + 8, "a patch across words");
        // SAFETY: the word is inside the mapping and aligned.
        let cell = unsafe { std::sync::atomic::AtomicU64::from_ptr(self.write.at.as_ptr().add(word).cast()) };
        let mut value = cell.load(std::sync::atomic::Ordering::Relaxed).to_le_bytes();
        value[offset - word..][..bytes.len()].copy_from_slice(bytes);
        cell.store(u64::from_le_bytes(value), std::sync::atomic::Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_on_one_side_runs_on_the_other() {
        let memory = CodeMemory::new(1 << 16).expect("memory for code");
        // mov eax, 42; ret
        memory.write_at(64, &[0xb8, 42, 0, 0, 0, 0xc3]);
        // SAFETY: a whole function without arguments lies there.
        let run = unsafe { std::mem::transmute::<u64, extern "sysv64" fn() -> u32>(memory.address(64)) };
        assert_eq!(run(), 42);
        memory.patch(65, &7u32.to_le_bytes());
        assert_eq!(run(), 7);
    }
}
