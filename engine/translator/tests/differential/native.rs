//! Runs cases on the host CPU.
//!
//! A forked child maps the code pages and the data window at their fixed addresses, with nothing mapped around them, and runs
//! batches of cases (asked for and answered over two pipes) with one signal each: the handler files away the registers that the
//! signal frame shows, puts the next case's registers into the frame, and its return from the signal starts that case. Code
//! pages are filled with INT3, so whatever a case does ends in a signal; the frame also tells vector, error code and CR2. A
//! 32-bit case starts with CS = 23h, Linux's flat 32-bit segment, which return from a signal loads as well.

use crate::case::{CODE_BASE, CODE_BYTES, Case, Fault, MODE_32, Outcome, Registers, WINDOW_BASE, WINDOW_BYTES};
use std::{
    mem::size_of,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr, slice,
};

/// Cases in a batch.
pub const BATCH: usize = 256;
/// Where the kernel's image has the upper halves of the YMM registers, as its XSAVE does.
const AVX_AREA: usize = 576;
/// GS base while cases run.
pub const GS_BASE: u64 = 0x40;

/// One case on its way to the child and back, in shared memory.
#[repr(C)]
struct Slot {
    registers: Registers,
    mode: u32,
    trap: u32,
    error: u64,
    cr2: u64,
    code_offset: u32,
    code_bytes: u32,
    code: [u8; 16],
    window: [u8; WINDOW_BYTES],
}

#[repr(C)]
struct Shared {
    count: usize,
    /// Cases finished.
    done: usize,
    slots: [Slot; BATCH],
}

/// What the handler in the child works with.
static mut SHARED: *mut Shared = ptr::null_mut();
static mut RUNNING: bool = false;
/// Where the child hears of a batch, and where it tells that one is done.
static mut PIPES: [i32; 2] = [-1; 2];

core::arch::global_asm!(
    // The case's AC flag must not reach Rust code, which makes unaligned accesses.
    ".globl bellglass_differential_entry",
    "bellglass_differential_entry:",
    "pushfq",
    "and qword ptr [rsp], -0x40001",
    "popfq",
    "cld",
    "jmp {handler}",
    handler = sym handler,
);

unsafe extern "C" {
    fn bellglass_differential_entry();
}

/// Runs cases natively.
pub struct Native {
    shared: *mut Shared,
    child: Option<Child>,
}

struct Child {
    pid: i32,
    /// One byte: run the batch.
    go: OwnedFd,
    /// One byte: the batch is done.
    done: OwnedFd,
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, not yet waited for.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, ptr::null_mut(), 0);
        }
    }
}

fn pipe() -> anyhow::Result<[OwnedFd; 2]> {
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for two descriptors, which are ours alone then.
    unsafe {
        anyhow::ensure!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) == 0, "no pipe: {}", std::io::Error::last_os_error());
        Ok(ends.map(|end| OwnedFd::from_raw_fd(end)))
    }
}

impl Native {
    pub fn new() -> anyhow::Result<Self> {
        // SAFETY: a fresh anonymous mapping.
        let memory = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size_of::<Shared>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        anyhow::ensure!(memory != libc::MAP_FAILED, "no shared memory: {}", std::io::Error::last_os_error());
        Ok(Self { shared: memory.cast(), child: None })
    }

    /// Runs up to [`BATCH`] cases. A case that the child does not survive (it hangs or is killed) gives `None`.
    pub fn run(&mut self, cases: &[Case]) -> anyhow::Result<Vec<Option<Outcome>>> {
        let mut outcomes: Vec<Option<Outcome>> = Vec::with_capacity(cases.len());
        while outcomes.len() < cases.len() {
            let before = outcomes.len();
            self.run_child(&cases[before..], &mut outcomes)?;
            if outcomes.len() < cases.len() {
                outcomes.push(None);
            }
        }
        Ok(outcomes)
    }

    fn start_child(&self) -> anyhow::Result<Child> {
        let [go_read, go_write] = pipe()?;
        let [done_read, done_write] = pipe()?;
        // SAFETY: the child only maps memory, makes system calls and runs the cases; it never returns.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: this is the child, with one thread.
            unsafe { child_main(self.shared, [go_read.as_raw_fd(), done_write.as_raw_fd()]) }
        }
        anyhow::ensure!(pid > 0, "no child process: {}", std::io::Error::last_os_error());
        Ok(Child { pid, go: go_write, done: done_read })
    }

    fn run_child(&mut self, cases: &[Case], outcomes: &mut Vec<Option<Outcome>>) -> anyhow::Result<()> {
        // SAFETY: the child only looks at the mapping while it runs a batch, and it is not running one.
        let shared = unsafe { &mut *self.shared };
        shared.count = cases.len();
        shared.done = 0;
        for (slot, case) in shared.slots.iter_mut().zip(cases) {
            slot.registers = case.registers;
            slot.mode = case.mode;
            slot.code_offset = (case.registers.rip - CODE_BASE) as u32;
            slot.code_bytes = case.code.len() as u32;
            slot.code[..case.code.len()].copy_from_slice(&case.code);
            slot.window.copy_from_slice(&case.window[..]);
        }
        let child = match self.child.take() {
            Some(child) => child,
            None => self.start_child()?,
        };
        // SAFETY: writes one byte from a local.
        let told = unsafe { libc::write(child.go.as_raw_fd(), [1u8].as_ptr().cast(), 1) };
        anyhow::ensure!(told == 1, "the child cannot be reached");
        if finished(&child)? {
            self.child = Some(child);
        }
        // SAFETY: the child waits or is gone (dropped above), the mapping is ours alone again.
        let shared = unsafe { &*self.shared };
        anyhow::ensure!(shared.done > 0 || self.child.is_none(), "the child did nothing");
        for slot in &shared.slots[..shared.done] {
            let mut registers = slot.registers;
            let fault = match slot.trap {
                // The INT3 after the case.
                3 => {
                    registers.rip = registers.rip.wrapping_sub(1);
                    None
                }
                trap => Some(Fault { vector: trap as u8, error: slot.error as u32, address: slot.cr2 }),
            };
            outcomes.push(Some(Outcome { registers, fault, window: Box::new(slot.window) }));
        }
        Ok(())
    }
}

/// Waits for the end of a batch: `false` if the child died of it.
fn finished(child: &Child) -> anyhow::Result<bool> {
    loop {
        let mut poll = libc::pollfd { fd: child.done.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one descriptor, one structure; then one byte into a local.
        unsafe {
            if libc::poll(&mut poll, 1, 200) > 0 && poll.revents & libc::POLLIN != 0 {
                let mut byte = [0u8];
                anyhow::ensure!(libc::read(poll.fd, byte.as_mut_ptr().cast(), 1) == 1, "the child cannot be heard");
                return Ok(true);
            }
            // Other children may hold the pipe's other end open, so its end says nothing.
            let mut info: libc::siginfo_t = core::mem::zeroed();
            let id = child.pid as libc::id_t;
            let waited = libc::waitid(libc::P_PID, id, &mut info, libc::WEXITED | libc::WNOHANG | libc::WNOWAIT);
            if waited == 0 && info.si_pid() == child.pid {
                anyhow::ensure!(info.si_code != libc::CLD_EXITED, "the child could not set itself up: {}", info.si_status());
                return Ok(false);
            }
        }
    }
}

impl Drop for Native {
    fn drop(&mut self) {
        self.child = None;
        // SAFETY: our own mapping, not used after.
        unsafe { libc::munmap(self.shared.cast(), size_of::<Shared>()) };
    }
}

/// # Safety
/// Only in a freshly forked child: takes the whole process over.
unsafe fn child_main(shared: *mut Shared, pipes: [i32; 2]) -> ! {
    // SAFETY: the fixed addresses are free in a position-independent executable (NOREPLACE makes sure); handlers and the
    // alternate stack live as long as the process.
    unsafe {
        for (base, bytes, rights) in [
            (CODE_BASE, CODE_BYTES, libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC),
            (WINDOW_BASE, WINDOW_BYTES, libc::PROT_READ | libc::PROT_WRITE),
        ] {
            let wanted = base as *mut libc::c_void;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            if libc::mmap(wanted, bytes, rights, flags, -1, 0) != wanted {
                libc::_exit(2);
            }
        }
        ptr::write_bytes(CODE_BASE as *mut u8, 0xcc, CODE_BYTES);
        let stack = libc::mmap(
            ptr::null_mut(),
            1 << 16,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        let alternate = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: 1 << 16 };
        if stack == libc::MAP_FAILED || libc::sigaltstack(&alternate, ptr::null_mut()) != 0 {
            libc::_exit(3);
        }
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = bellglass_differential_entry as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            libc::sigaction(signal, &action, ptr::null_mut());
        }
        libc::signal(libc::SIGALRM, libc::SIG_DFL);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        const ARCH_SET_GS: i32 = 0x1001;
        libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, GS_BASE);
        SHARED = shared;
        PIPES = pipes;
        // 32-bit code needs data segments; 64-bit code does not mind them.
        core::arch::asm!("mov ds, {0:e}", "mov es, {0:e}", "int3", in(reg) 0x2b);
        libc::_exit(4)
    }
}

/// Ends a case and starts the next.
extern "C" fn handler(_signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::ucontext_t) {
    // SAFETY: runs only in the child, on one thread; the kernel's frame is valid while the handler runs.
    unsafe {
        let shared = &mut *SHARED;
        let context = &mut (*context).uc_mcontext;
        let image = context.fpregs.cast::<u8>();
        let window = slice::from_raw_parts_mut(WINDOW_BASE as *mut u8, WINDOW_BYTES);
        let code = slice::from_raw_parts_mut(CODE_BASE as *mut u8, CODE_BYTES);
        if RUNNING {
            let slot = &mut shared.slots[shared.done];
            for (value, greg) in slot.registers.gpr.iter_mut().zip(GREGS) {
                *value = context.gregs[greg as usize] as u64;
            }
            slot.registers.rip = context.gregs[libc::REG_RIP as usize] as u64;
            slot.registers.rflags = context.gregs[libc::REG_EFL as usize] as u64;
            ptr::copy_nonoverlapping(image, slot.registers.fx.0.as_mut_ptr(), 512);
            if has_avx() {
                let in_use = image.add(512).cast::<u64>().read_unaligned() & 4 != 0;
                let from = image.add(AVX_AREA).cast::<[u128; 16]>();
                slot.registers.ymm_high = if in_use { from.read_unaligned() } else { [0; 16] };
            }
            slot.trap = context.gregs[libc::REG_TRAPNO as usize] as u32;
            slot.error = context.gregs[libc::REG_ERR as usize] as u64;
            slot.cr2 = context.gregs[libc::REG_CR2 as usize] as u64;
            slot.window.copy_from_slice(window);
            let start = slot.code_offset as usize;
            code[start..(start + slot.code_bytes as usize).min(CODE_BYTES)].fill(0xcc);
            shared.done += 1;
        }
        if !RUNNING || shared.done == shared.count {
            next_batch(RUNNING);
        }
        RUNNING = true;
        let slot = &shared.slots[shared.done];
        window.copy_from_slice(&slot.window);
        let start = slot.code_offset as usize;
        for (place, byte) in code[start..].iter_mut().zip(&slot.code[..slot.code_bytes as usize]) {
            *place = *byte;
        }
        for (value, greg) in slot.registers.gpr.iter().zip(GREGS) {
            context.gregs[greg as usize] = *value as i64;
        }
        context.gregs[libc::REG_RIP as usize] = slot.registers.rip as i64;
        context.gregs[libc::REG_EFL as usize] = slot.registers.rflags as i64;
        // CS, GS, FS, SS from the low word up.
        let segments = context.gregs[libc::REG_CSGSFS as usize] as u64 & 0x0000_ffff_ffff_0000;
        let selector = if slot.mode == MODE_32 { 0x23 } else { 0x33 };
        context.gregs[libc::REG_CSGSFS as usize] = (segments | selector | 0x2b << 48) as i64;
        // The bytes from 464 on belong to the kernel: what follows the image, and how long it is.
        ptr::copy_nonoverlapping(slot.registers.fx.0.as_ptr(), image, 416);
        // XSTATE_BV: x87, SSE and AVX are not in their initial state.
        let header = image.add(512).cast::<u64>();
        header.write_unaligned(header.read_unaligned() | if has_avx() { 7 } else { 3 });
        if has_avx() {
            image.add(AVX_AREA).cast::<[u128; 16]>().write_unaligned(slot.registers.ymm_high);
        }
    }
}

/// Whether the kernel saves YMM registers.
pub fn has_avx() -> bool {
    std::arch::is_x86_feature_detected!("avx")
}

/// Tells that a batch is done (if one was) and waits for the next.
///
/// # Safety
/// Only in the child.
unsafe fn next_batch(had_one: bool) {
    let mut byte = [0u8];
    // SAFETY: one byte from and to a local.
    unsafe {
        libc::alarm(0);
        if had_one && libc::write(PIPES[1], byte.as_ptr().cast(), 1) != 1 {
            libc::_exit(5);
        }
        if libc::read(PIPES[0], byte.as_mut_ptr().cast(), 1) != 1 {
            libc::_exit(6);
        }
        // A case that goes on for ever is ended by this.
        libc::alarm(20);
    }
}

/// The frame's places of RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 … R15.
const GREGS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];
