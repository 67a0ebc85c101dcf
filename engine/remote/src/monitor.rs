//! The human monitor: lines in, text out, at the prompt `(qemu) `. A command is a row of [`COMMANDS`]; what it prints follows
//! QEMU's own monitor closely enough for scripts that read it.

use std::fmt::Write as _;
use std::time::Duration;

use engine_base::reply;
use engine_cpu::x86::{Segment, X86State};
use engine_cpu::{CpuState, print as print_statistics};
use engine_input::{Button, InputEvent, KeyCode};
use engine_session::{
    AddressSpace, BoardDescription, Command, DriveInfo, Force, MOST_MEMORY_READ, MachineDriveKind as DriveKind, MemoryRegionInfo,
    Output, PauseReason, RunState, Session, StreamUser,
};
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

use crate::screendump;

const PROMPT: &str = "(qemu) ";
/// A line longer than this is not a command.
const MOST_LINE: usize = 4096;
/// As many instructions as `x/i` prints at once.
const MOST_INSTRUCTIONS: usize = 1000;
const LONGEST_INSTRUCTION: usize = 15;
/// How long a command waits for the machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A row of the command table.
struct CommandRow {
    names: &'static [&'static str],
    arguments: &'static str,
    help: &'static str,
    run: fn(&mut Commands, &str) -> Result<String, String>,
}

const COMMANDS: &[CommandRow] = &[
    CommandRow { names: &["help", "?"], arguments: "[cmd]", help: "show the help", run: |c, word| Ok(c.help(word)) },
    CommandRow {
        names: &["info"],
        arguments: "[subcommand]",
        help: "show various information about the system state",
        run: Commands::info,
    },
    CommandRow { names: &["stop", "s"], arguments: "", help: "stop emulation", run: |c, _| c.tell(Command::Pause) },
    CommandRow { names: &["cont", "c"], arguments: "", help: "resume emulation", run: |c, _| c.resume() },
    CommandRow { names: &["system_reset"], arguments: "", help: "reset the system", run: |c, _| c.tell(Command::Reset) },
    CommandRow {
        names: &["system_powerdown"],
        arguments: "",
        help: "send system power down event",
        run: |c, _| c.tell(Command::PowerButton),
    },
    CommandRow {
        names: &["quit", "q"],
        arguments: "",
        help: "quit the emulator",
        run: |c, _| {
            c.session.send(Command::Quit);
            Ok(String::new())
        },
    },
    CommandRow {
        names: &["screendump"],
        arguments: "filename [-f format]",
        help: "save screen into PPM or PNG image 'filename'",
        run: Commands::screendump,
    },
    CommandRow {
        names: &["sendkey"],
        arguments: "keys [hold_ms]",
        help: "send keys to the VM (e.g. 'sendkey ctrl-alt-f1')",
        run: Commands::send_key,
    },
    CommandRow { names: &["mouse_move"], arguments: "dx dy [dz]", help: "send mouse move events", run: Commands::mouse_move },
    CommandRow {
        names: &["mouse_button"],
        arguments: "state",
        help: "change mouse button state (1=L, 2=M, 4=R)",
        run: Commands::mouse_button,
    },
    CommandRow { names: &["change"], arguments: "device filename", help: "change a removable medium", run: Commands::change },
    CommandRow {
        names: &["eject"],
        arguments: "[-f] device",
        help: "eject a removable medium (use -f to force it)",
        run: Commands::eject,
    },
    CommandRow {
        names: &["profile"],
        arguments: "[filename]",
        help: "show the hottest guest code so far, or write it to 'filename' (needs -accel tcg,profile=FILE)",
        run: Commands::profile,
    },
    CommandRow { names: &["cpu"], arguments: "index", help: "set the default CPU", run: Commands::choose_cpu },
    CommandRow {
        names: &["x"],
        arguments: "/fmt addr",
        help: "virtual memory dump starting at 'addr'",
        run: |c, arguments| c.dump(arguments, AddressSpace::Linear { cpu: c.cpu }),
    },
    CommandRow {
        names: &["xp"],
        arguments: "/fmt addr",
        help: "physical memory dump starting at 'addr'",
        run: |c, arguments| c.dump(arguments, AddressSpace::Physical),
    },
];

const INFO: &[(&str, &str, fn(&mut Commands) -> Result<String, String>)] = &[
    ("block", "show info of the block devices", |c| Ok(block(&c.board()?.drives))),
    ("cpus", "show infos for each CPU", Commands::cpus),
    ("jit", "show what the translator has done", |c| Ok(print_statistics(&c.ask(|reply| Command::ReadStatistics { reply })?))),
    ("kvm", "show KVM information", |c| Ok(format!("kvm support: disabled (the {} runs the guest)\n", c.session.backend()))),
    ("mtree", "show memory tree", |c| Ok(tree(&c.board()?))),
    ("pci", "show PCI info", |c| Ok(pci(&c.board()?))),
    ("registers", "show the cpu registers", Commands::registers),
    ("status", "show the current VM status", |c| Ok(format!("VM status: {}\n", status(&c.session)))),
    ("version", "show the version", |_| Ok(format!("Bellglass {}\n", env!("CARGO_PKG_VERSION")))),
];

/// The monitor on one stream.
pub struct Monitor {
    output: Output,
    line: Vec<u8>,
    last: u8,
    commands: Commands,
}

impl Monitor {
    /// A monitor for `session` that prints to `output`.
    pub fn new(session: Session, output: Output) -> Self {
        Self { output, line: Vec::new(), last: 0, commands: Commands::new(session) }
    }

    fn finish_line(&mut self) {
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
        self.output.send(b"\r\n");
        let text = self.commands.run(&line);
        self.output.send(text.replace('\n', "\r\n").as_bytes());
        self.output.send(PROMPT.as_bytes());
    }
}

impl StreamUser for Monitor {
    fn connected(&mut self) {
        self.line.clear();
        let greeting = format!("Bellglass {} monitor - type 'help' for more information\r\n{PROMPT}", env!("CARGO_PKG_VERSION"));
        self.output.send(greeting.as_bytes());
    }

    fn input(&mut self, bytes: &[u8]) -> usize {
        for &byte in bytes {
            match byte {
                b'\n' if self.last == b'\r' => {}
                b'\r' | b'\n' => self.finish_line(),
                8 | 0x7f if self.line.pop().is_some() => self.output.send(b"\x08 \x08"),
                0x15 => self.line.clear(), // Ctrl-U
                b' '..=0x7e if self.line.len() < MOST_LINE => {
                    self.line.push(byte);
                    self.output.send(&[byte]);
                }
                _ => {}
            }
            self.last = byte;
        }
        bytes.len()
    }
}

/// The commands themselves, without a terminal: QMP's `human-monitor-command` uses them too.
pub(crate) struct Commands {
    session: Session,
    cpu: usize,
    buttons: u32,
}

impl Commands {
    pub fn new(session: Session) -> Self {
        Self { session, cpu: 0, buttons: 0 }
    }

    /// Carries out one line; the text to print.
    pub fn run(&mut self, line: &str) -> String {
        let line = line.trim();
        if line.is_empty() {
            return String::new();
        }
        // `x/8xw addr` has its format glued to the name.
        let end = line.find([' ', '/']).unwrap_or(line.len());
        let (name, arguments) = (&line[..end], line[end..].trim());
        match COMMANDS.iter().find(|row| row.names.contains(&name)) {
            Some(row) => (row.run)(self, arguments).unwrap_or_else(|error| format!("Error: {error}\n")),
            None => format!("unknown command: '{name}'\n"),
        }
    }

    /// Tells the machine, and waits until it has done so: the next command sees the result.
    fn tell(&mut self, command: Command) -> Result<String, String> {
        self.session.send(command);
        self.ask(|reply| Command::Settle { reply })?;
        Ok(String::new())
    }

    fn resume(&mut self) -> Result<String, String> {
        if self.session.state() == RunState::Paused && self.session.pause_reason() == PauseReason::GuestOff {
            return Err("Resetting the Virtual Machine is required".to_owned());
        }
        self.tell(Command::Resume)
    }

    fn ask<T>(&self, question: impl FnOnce(engine_base::Reply<T>) -> Command) -> Result<T, String> {
        let (answer, asked) = reply();
        self.session.send(question(answer));
        asked.wait_for(PATIENCE).ok_or_else(|| "the machine does not answer; it may have ended".to_owned())
    }

    fn board(&self) -> Result<BoardDescription, String> {
        self.ask(|reply| Command::DescribeBoard { reply })
    }

    fn help(&self, word: &str) -> String {
        let mut text = String::new();
        for row in COMMANDS.iter().filter(|row| word.is_empty() || row.names.contains(&word)) {
            let names = row.names.join("|");
            let gap = if row.arguments.is_empty() { "" } else { " " };
            writeln!(text, "{names}{gap}{} -- {}", row.arguments, row.help).ok();
        }
        text
    }

    fn info(&mut self, what: &str) -> Result<String, String> {
        let word = what.split_whitespace().next().unwrap_or_default();
        match INFO.iter().find(|(name, ..)| *name == word) {
            Some((.., run)) => run(self),
            None if !word.is_empty() => Err(format!("unknown command: 'info {word}'")),
            None => Ok(INFO.iter().map(|(name, help, _)| format!("info {name} -- {help}\n")).collect()),
        }
    }

    fn cpus(&mut self) -> Result<String, String> {
        let board = self.board()?;
        let line = |cpu| format!("{} CPU #{cpu}: thread vm-cpu{cpu}\n", if cpu == self.cpu { '*' } else { ' ' });
        let lines: String = (0..board.cpus).map(line).collect();
        Ok(format!("{lines}instructions retired: {}\n", board.retired_instructions))
    }

    fn choose_cpu(&mut self, arguments: &str) -> Result<String, String> {
        let cpus = self.board()?.cpus;
        self.cpu = arguments.parse().ok().filter(|cpu| *cpu < cpus).ok_or("invalid CPU index")?;
        Ok(String::new())
    }

    fn registers(&mut self) -> Result<String, String> {
        let cpu = self.cpu;
        let CpuState::X86(state) = *self.ask(|reply| Command::ReadCpu { cpu, reply })??;
        Ok(registers(&state))
    }

    fn screendump(&mut self, arguments: &str) -> Result<String, String> {
        let mut words = arguments.split_whitespace().peekable();
        let (mut file, mut png) = (None, false);
        while let Some(word) = words.next() {
            match word {
                "-f" => png = words.next() == Some("png"),
                word => file = Some(word.to_owned()),
            }
        }
        let file = file.ok_or("screendump: filename expected")?;
        let picture = self.ask(|reply| Command::TakePicture { reply })?;
        screendump::write(&picture, file.as_ref(), png)?;
        Ok(String::new())
    }

    fn profile(&mut self, arguments: &str) -> Result<String, String> {
        let profile = self.ask(|reply| Command::TakeProfile { reply })?;
        let profile = profile.ok_or("No profile is being taken. Start the machine with -accel tcg,profile=FILE.")?;
        if arguments.is_empty() {
            return Ok(profile);
        }
        std::fs::write(arguments, profile).map_err(|error| format!("The profile could not be written ({error}): {arguments}"))?;
        Ok(String::new())
    }

    fn send_key(&mut self, arguments: &str) -> Result<String, String> {
        let mut words = arguments.split_whitespace();
        let names = words.next().ok_or("sendkey: keys expected")?;
        let hold = words.next().map_or(Ok(100), str::parse).map_err(|_| "sendkey: hold time must be milliseconds")?;
        let keys = names.split('-').map(key).collect::<Result<Vec<_>, _>>()?;
        send_keys(&self.session, &keys, Duration::from_millis(hold));
        Ok(String::new())
    }

    fn mouse_move(&mut self, arguments: &str) -> Result<String, String> {
        let numbers: Vec<i32> = arguments
            .split_whitespace()
            .map(|word| word.parse().map_err(|_| format!("'{word}' is not a number")))
            .collect::<Result<_, _>>()?;
        let [dx, dy, rest @ ..] = &numbers[..] else { return Err("mouse_move: dx dy expected".to_owned()) };
        self.session.send(Command::Input(InputEvent::PointerMoved { dx: *dx, dy: *dy }));
        if let Some(dz) = rest.first().filter(|dz| **dz != 0) {
            self.session.send(Command::Input(InputEvent::Wheel { notches: *dz }));
        }
        Ok(String::new())
    }

    fn mouse_button(&mut self, arguments: &str) -> Result<String, String> {
        let state: u32 = arguments.parse().map_err(|_| "mouse_button: state expected")?;
        for (bit, button) in [(1, Button::Left), (2, Button::Middle), (4, Button::Right)] {
            if (state ^ self.buttons) & bit != 0 {
                self.session.send(Command::Input(InputEvent::Button { button, pressed: state & bit != 0 }));
            }
        }
        self.buttons = state;
        Ok(String::new())
    }

    fn change(&mut self, arguments: &str) -> Result<String, String> {
        let (drive, rest) = arguments.split_once(char::is_whitespace).ok_or("change: device and filename expected")?;
        let path = rest.trim();
        self.ask(|reply| Command::InsertMedium { drive: drive.to_owned(), path: path.into(), reply })??;
        Ok(String::new())
    }

    fn eject(&mut self, arguments: &str) -> Result<String, String> {
        let force = if arguments.split_whitespace().any(|word| word == "-f") { Force::OverrideLock } else { Force::RespectLock };
        let drive = arguments.split_whitespace().find(|word| *word != "-f").ok_or("eject: device expected")?;
        self.ask(|reply| Command::EjectMedium { drive: drive.to_owned(), force, reply })??;
        Ok(String::new())
    }

    fn dump(&mut self, arguments: &str, space: AddressSpace) -> Result<String, String> {
        let (format, address) = match arguments.strip_prefix('/') {
            Some(rest) => rest.split_once(char::is_whitespace).ok_or("an address is expected after the format")?,
            None => ("", arguments),
        };
        let format = DumpFormat::parse(format)?;
        let address = self.address(address.trim())?;
        let len = format.count.checked_mul(format.bytes).filter(|len| *len <= MOST_MEMORY_READ).ok_or("too much to print")?;
        if format.style == 'i' {
            return self.disassemble(address, format.count, space);
        }
        let bytes = self.ask(|reply| Command::ReadMemory { space, address, len, reply })??;
        Ok(format.print(address, &bytes))
    }

    /// `x/8i`: instructions, in the mode that the chosen CPU is in.
    fn disassemble(&self, address: u64, count: usize, space: AddressSpace) -> Result<String, String> {
        let cpu = self.cpu;
        let CpuState::X86(state) = *self.ask(|reply| Command::ReadCpu { cpu, reply })??;
        let wanted = count.min(MOST_INSTRUCTIONS) * LONGEST_INSTRUCTION;
        let read = |len| self.ask(|reply| Command::ReadMemory { space, address, len, reply })?;
        // The last page may end before the longest instruction would.
        let to_page_end = 4096 - (address & 0xfff) as usize;
        let bytes = read(wanted).or_else(|_| read(wanted.min(to_page_end)))?;
        Ok(disassembly(&bytes, address, code_bits(&state), count.min(MOST_INSTRUCTIONS)))
    }

    /// A number, or `$rip` and such.
    fn address(&self, text: &str) -> Result<u64, String> {
        if let Some(name) = text.strip_prefix('$') {
            let cpu = self.cpu;
            let CpuState::X86(state) = *self.ask(|reply| Command::ReadCpu { cpu, reply })??;
            let names =
                ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
            if let Some(index) = names.iter().position(|known| *known == name) {
                return Ok(state.gpr[index]);
            }
            return match name {
                "rip" | "eip" | "pc" => Ok(state.rip.wrapping_add(state.segments[1].base)),
                _ => Err(format!("unknown register '{name}'")),
            };
        }
        let parsed = match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => text.parse(),
        };
        parsed.map_err(|_| format!("'{text}' is not an address"))
    }
}

/// A key by QEMU's name, or its number.
pub(crate) fn key(name: &str) -> Result<KeyCode, String> {
    engine_input::key_by_name(name).ok_or_else(|| format!("invalid parameter: {name}"))
}

/// Presses keys in order, holds them, and lets them go in reverse order.
pub(crate) fn send_keys(session: &Session, keys: &[KeyCode], hold: Duration) {
    for code in keys {
        session.send(Command::Input(InputEvent::Key { code: *code, pressed: true }));
    }
    std::thread::sleep(hold.min(Duration::from_secs(10)));
    for code in keys.iter().rev() {
        session.send(Command::Input(InputEvent::Key { code: *code, pressed: false }));
    }
}

fn status(session: &Session) -> &'static str {
    match (session.state(), session.pause_reason()) {
        (RunState::Starting, _) | (RunState::Paused, PauseReason::NotStarted) => "paused (prelaunch)",
        (RunState::Running | RunState::ShuttingDown, _) => "running",
        (RunState::Paused, PauseReason::Asked) => "paused",
        (RunState::Paused, PauseReason::GuestOff) | (RunState::Ended, _) => "paused (shutdown)",
        (RunState::Paused, PauseReason::HostDisk) => "paused (io-error)",
        (RunState::Failed, _) => "paused (internal-error)",
    }
}

fn block(drives: &[DriveInfo]) -> String {
    let mut text = String::new();
    for drive in drives {
        let medium = match &drive.medium {
            Some(file) => {
                let format = drive.format.as_deref().unwrap_or("raw");
                format!("{file} ({format}{})", if drive.read_only { ", read-only" } else { "" })
            }
            None => "[not inserted]".to_owned(),
        };
        writeln!(text, "{}: {medium}", drive.name).ok();
        if drive.kind != DriveKind::Disk {
            let lock = if drive.locked { "locked" } else { "not locked" };
            let tray = if drive.tray_open { "open" } else { "closed" };
            writeln!(text, "    Removable device: {lock}, tray {tray}").ok();
        }
        writeln!(text, "    Size: {} bytes\n", drive.len).ok();
    }
    text
}

fn tree(board: &BoardDescription) -> String {
    let lines = |regions: &[MemoryRegionInfo]| -> String {
        regions
            .iter()
            .map(|region| format!("  {:016x}-{:016x} ({}): {}\n", region.first, region.last, region.kind, region.name))
            .collect()
    };
    format!("address-space: memory\n{}\naddress-space: I/O\n{}", lines(&board.memory), lines(&board.ports))
}

fn pci(board: &BoardDescription) -> String {
    let line = |f: &engine_session::PciFunctionInfo| {
        format!(
            "  Bus  0, device {:3}, function {}:\n    Class {:04x}: PCI device {:04x}:{:04x}\n      id \"{}\"\n",
            f.device,
            f.function,
            f.class >> 8,
            f.vendor,
            f.id,
            f.name
        )
    };
    board.pci.iter().map(line).collect()
}

fn registers(state: &X86State) -> String {
    let mut text = String::new();
    let long = state.msr.efer & 0x400 != 0;
    let names = ["AX", "BX", "CX", "DX", "SI", "DI", "BP", "SP"];
    let order = [0, 3, 1, 2, 6, 7, 5, 4];
    for (position, (name, index)) in names.iter().zip(order).enumerate() {
        let end = if position % 4 == 3 { '\n' } else { ' ' };
        if long {
            write!(text, "R{name}={:016x}{end}", state.gpr[index]).ok();
        } else {
            write!(text, "E{name}={:08x}{end}", state.gpr[index] as u32).ok();
        }
    }
    if long {
        for index in 8..16 {
            let end = if index % 4 == 3 { '\n' } else { ' ' };
            write!(text, "R{index:<2}={:016x}{end}", state.gpr[index]).ok();
        }
    }
    let flags: String = [(11, 'O'), (10, 'D'), (7, 'S'), (6, 'Z'), (4, 'A'), (2, 'P'), (0, 'C')]
        .into_iter()
        .map(|(bit, letter)| if state.rflags >> bit & 1 != 0 { letter } else { '-' })
        .collect();
    let cs = &state.segments[1];
    let privilege = if state.cr0 & 1 == 0 { 0 } else { cs.selector & 3 };
    let halted = u8::from(state.activity != engine_cpu::x86::Activity::Running);
    if long {
        writeln!(text, "RIP={:016x} RFL={:08x} [{flags}] CPL={privilege} HLT={halted}", state.rip, state.rflags).ok();
    } else {
        writeln!(text, "EIP={:08x} EFL={:08x} [{flags}] CPL={privilege} HLT={halted}", state.rip as u32, state.rflags).ok();
    }
    let segment =
        |name: &str, s: &Segment| format!("{name} ={:04x} {:016x} {:08x} {:04x}\n", s.selector, s.base, s.limit, s.attributes);
    for (name, s) in ["ES", "CS", "SS", "DS", "FS", "GS"].iter().zip(&state.segments) {
        text += &segment(name, s);
    }
    text += &segment("LDT", &state.ldtr);
    text += &segment("TR", &state.tr);
    writeln!(text, "GDT=     {:016x} {:08x}", state.gdtr.base, state.gdtr.limit).ok();
    writeln!(text, "IDT=     {:016x} {:08x}", state.idtr.base, state.idtr.limit).ok();
    writeln!(text, "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x}", state.cr0, state.cr2, state.cr3, state.cr4).ok();
    let dr = state.dr;
    writeln!(text, "DR0={:016x} DR1={:016x} DR2={:016x} DR3={:016x}", dr[0], dr[1], dr[2], dr[3]).ok();
    writeln!(text, "DR6={:016x} DR7={:016x}", state.dr6, state.dr7).ok();
    writeln!(text, "EFER={:016x}", state.msr.efer).ok();
    writeln!(
        text,
        "FCW={:04x} FSW={:04x} FTW={:02x} MXCSR={:08x}",
        state.fpu.control, state.fpu.status, state.fpu.tags, state.fpu.mxcsr
    )
    .ok();
    let has_ymm = state.xcr0 & 4 != 0;
    for (index, (xmm, high)) in state.fpu.xmm.iter().zip(&state.fpu.ymm_high).enumerate() {
        if has_ymm {
            writeln!(text, "YMM{index:02}={high:032x}{xmm:032x}").ok();
        } else {
            writeln!(text, "XMM{index:02}={xmm:032x}").ok();
        }
    }
    text
}

/// How wide the code is that a CPU runs: 16, 32 or 64 bits (code segment's D and L bits, SDM volume 3, 3.4.5).
fn code_bits(state: &X86State) -> u32 {
    let long = state.msr.efer & 0x400 != 0;
    let attributes = state.segments[1].attributes;
    match (state.cr0 & 1 != 0, long && attributes >> 13 & 1 != 0, attributes >> 14 & 1 != 0) {
        (true, true, _) => 64,
        (true, false, true) => 32,
        _ => 16,
    }
}

fn disassembly(bytes: &[u8], address: u64, bits: u32, count: usize) -> String {
    let mut text = String::new();
    let mut decoder = Decoder::with_ip(bits, bytes, address, DecoderOptions::NONE);
    let mut formatter = NasmFormatter::new();
    formatter.options_mut().set_uppercase_hex(false);
    for _ in 0..count {
        if !decoder.can_decode() {
            break;
        }
        let instruction = decoder.decode();
        let from = (instruction.ip() - address) as usize;
        let code: String = bytes[from..from + instruction.len()].iter().map(|byte| format!("{byte:02x} ")).collect();
        let mut words = String::new();
        if instruction.is_invalid() {
            words.push_str("(bad)");
        } else {
            formatter.format(&instruction, &mut words);
        }
        writeln!(text, "0x{:08x}:  {code:<33} {words}", instruction.ip()).ok();
    }
    text
}

/// `/8xw`: how many, how shown, how wide.
struct DumpFormat {
    count: usize,
    style: char,
    bytes: usize,
}

impl DumpFormat {
    fn parse(text: &str) -> Result<Self, String> {
        let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let count = if digits == 0 { 1 } else { text[..digits].parse().map_err(|_| "the count is too large")? };
        let mut format = Self { count, style: 'x', bytes: 4 };
        for letter in text[digits..].chars() {
            match letter {
                'x' | 'd' | 'u' | 'o' | 'c' | 'i' => format.style = letter,
                'b' => format.bytes = 1,
                'h' => format.bytes = 2,
                'w' => format.bytes = 4,
                'g' => format.bytes = 8,
                other => return Err(format!("the format letter '{other}' is not known; possible are x d u o c i and b h w g")),
            }
        }
        if format.style == 'c' {
            format.bytes = 1;
        }
        Ok(format)
    }

    fn print(&self, address: u64, bytes: &[u8]) -> String {
        let per_line = match (self.style, self.bytes) {
            ('c', _) => 8,
            (_, 8) => 2,
            (_, 4) => 4,
            _ => 8,
        };
        let mut text = String::new();
        for (line, chunk) in bytes.chunks(per_line * self.bytes).enumerate() {
            write!(text, "{:016x}:", address.wrapping_add((line * per_line * self.bytes) as u64)).ok();
            for item in chunk.chunks(self.bytes) {
                let value = item.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
                let shift = 64 - 8 * self.bytes as u32;
                match self.style {
                    'x' => write!(text, " 0x{value:0width$x}", width = 2 * self.bytes),
                    'o' => write!(text, " 0{value:o}"),
                    'u' => write!(text, " {value}"),
                    'd' => write!(text, " {}", (value << shift) as i64 >> shift),
                    _ => write!(text, " '{}'", (value as u8 as char).escape_default()),
                }
                .ok();
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_display::Screen;
    use engine_session::link;

    #[test]
    fn commands_reach_the_machine() {
        let (session, engine) = link(Screen::new());
        let mut commands = Commands::new(session);
        assert_eq!(commands.run("info status"), "VM status: paused (prelaunch)\n");
        let machine = std::thread::spawn(move || {
            assert!(matches!(engine.commands().recv(), Ok(Command::Pause)));
            engine.set_pause_reason(PauseReason::Asked);
            engine.set_state(RunState::Paused);
            let Ok(Command::Settle { reply }) = engine.commands().recv() else { panic!("a barrier must follow") };
            reply.send(());
        });
        assert_eq!(commands.run("stop"), "");
        assert_eq!(commands.run("info status"), "VM status: paused\n");
        machine.join().unwrap();
        assert!(commands.run("stpo").contains("unknown command"));
    }

    #[test]
    fn code_is_disassembled_in_the_width_of_the_cpu() {
        let code = [0xea, 0x5b, 0xe0, 0x00, 0xf0, 0x48, 0x89, 0xc3, 0xff, 0xff];
        let real = disassembly(&code, 0xf_fff0, 16, 2);
        assert_eq!(real.lines().next().unwrap(), "0x000ffff0:  ea 5b e0 00 f0                    jmp 0f000h:0e05bh");
        assert!(disassembly(&code[5..], 0, 64, 3).contains("mov rbx,rax"));
        assert!(disassembly(&code[8..], 0, 64, 3).contains("(bad)"));
        let mut state = X86State::after_reset(0);
        assert_eq!(code_bits(&state), 16);
        (state.cr0, state.msr.efer, state.segments[1].attributes) = (0x8000_0001, 0x500, 0xa09b);
        assert_eq!(code_bits(&state), 64);
    }

    #[test]
    fn memory_is_printed_as_asked() {
        let format = DumpFormat::parse("2xh").unwrap();
        assert_eq!(format.print(0x10, &[0x34, 0x12, 0xff, 0xff]), "0000000000000010: 0x1234 0xffff\n");
        let format = DumpFormat::parse("2dh").unwrap();
        assert_eq!(format.print(0x10, &[0x34, 0x12, 0xff, 0xff]), "0000000000000010: 4660 -1\n");
        assert!(DumpFormat::parse("4q").is_err());
    }
}
