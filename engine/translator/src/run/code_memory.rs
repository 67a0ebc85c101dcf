//! Memory for translated code: one anonymous file mapped twice, once to write and once to execute, so that no address is ever both (W^X).
//!
//! Writers hold the lock of whoever owns the memory; executing threads see what was written, because x86 hosts keep their instruction
//! caches coherent with stores through any mapping of the same physical memory.

use rustix::mm::{MapFlags, ProtFlags};
use std::io;
use std::ptr::NonNull;

/// A piece of memory for code. Unmapped when dropped: whoever may still execute in it keeps it alive.
pub(crate) struct CodeMemory {
    write: NonNull<u8>,
    execute: NonNull<u8>,
    len: usize,
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
        let file = rustix::fs::memfd_create("translated-code", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        let map = |protection| {
            // SAFETY: a new mapping at an address that the host chooses touches nothing of ours.
            let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, &file, 0) }?;
            NonNull::new(at.cast::<u8>()).ok_or_else(|| io::Error::other("a mapping at address 0"))
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?;
        match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(execute) => Ok(Self { write, execute, len }),
            Err(error) => {
                // SAFETY: mapped above, and nobody else knows of it.
                let _ = unsafe { rustix::mm::munmap(write.as_ptr().cast(), len) };
                Err(error)
            }
        }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The address at which the byte `offset` is executed.
    pub fn address(&self, offset: usize) -> u64 {
        debug_assert!(offset <= self.len);
        self.execute.as_ptr() as u64 + offset as u64
    }

    /// Writes code that nobody executes yet.
    ///
    /// # Panics
    /// When it does not fit.
    pub fn write_at(&self, offset: usize, code: &[u8]) {
        assert!(offset <= self.len && code.len() <= self.len - offset, "code beyond its memory");
        // SAFETY: within the mapping, and no thread executes or reads these bytes yet, says the caller.
        unsafe { self.write.as_ptr().add(offset).copy_from_nonoverlapping(code.as_ptr(), code.len()) }
    }

    /// Replaces up to 8 bytes inside one aligned 8-byte word in one store, while other threads may execute there: they see all of it or nothing.
    ///
    /// # Panics
    /// When the bytes are not inside one word of this memory.
    pub fn patch(&self, offset: usize, bytes: &[u8]) {
        let word = offset & !7;
        assert!(word + 8 <= self.len && offset + bytes.len() <= word + 8, "a patch across words");
        // SAFETY: the word is inside the mapping and aligned.
        let cell = unsafe { std::sync::atomic::AtomicU64::from_ptr(self.write.as_ptr().add(word).cast()) };
        let mut value = cell.load(std::sync::atomic::Ordering::Relaxed).to_le_bytes();
        value[offset - word..][..bytes.len()].copy_from_slice(bytes);
        cell.store(u64::from_le_bytes(value), std::sync::atomic::Ordering::Release);
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        for at in [self.write, self.execute] {
            // SAFETY: mapped in `new` with this length; nobody executes in it any more, or they would keep it alive.
            let _ = unsafe { rustix::mm::munmap(at.as_ptr().cast(), self.len) };
        }
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
