//! From QEMU's options to a [`Plan`]. Options may come in any order; what depends on others is decided at the end.

use super::chardev::{Chardev, Lead, chardev, lead};
use super::drives::{Drives, ide};
use super::key_values::{KeyValues, nearest, size};
use super::kvm;
use crate::cli::secrets::Secrets;
use anyhow::{Context, Result, bail};
use engine_base::ClockMode;
use engine_bus::Options;
use engine_cpu::{CpuModel, Topology};
use engine_session::{
    BootDevice, DirectKernel, Display, DriveSlot, ImageSource, InterruptKey, MachineDriveKind as DriveKind, OnReset, OnShutdown,
    Part, Policy, Spec, StartAs, StreamTarget,
};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Everything a command line asks for.
pub struct Plan {
    /// The computer, without its character ports.
    pub spec: Spec,
    /// What happens at its turning points.
    pub policy: Policy,
    /// Where serial ports lead, from the first.
    pub serials: Vec<Lead>,
    /// Where port E9h leads.
    pub debug_port: Option<Lead>,
    /// Human monitors.
    pub monitors: Vec<Lead>,
    /// QMP servers.
    pub qmps: Vec<Lead>,
    /// What Ctrl-C does where the terminal is one of these streams.
    pub interrupt_key: InterruptKey,
    /// Whether a window is wanted.
    pub window: Window,
    /// Where to write the process id.
    pub pid_file: Option<PathBuf>,
    /// Things worth a line on standard error.
    pub notes: Vec<String>,
}

/// Whether there is to be a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Window {
    /// As a person expects.
    Wanted,
    /// `-display none`, `-nographic`.
    None,
}

/// What the command line asks for beside a machine.
pub enum Request {
    /// Run a machine.
    Run(Box<Plan>),
    /// Print this and be done.
    Print(String),
}

/// Most translated code, in MiB: jumps reach everywhere in it.
const MOST_CODE: u64 = 1024;

/// Options with an argument, for messages and for knowing when to take one.
const WITH_ARGUMENT: &[&str] = &[
    "-M",
    "-machine",
    "-m",
    "-smp",
    "-cpu",
    "-name",
    "-cdrom",
    "-hda",
    "-hdb",
    "-hdc",
    "-hdd",
    "-fda",
    "-fdb",
    "-drive",
    "-blockdev",
    "-boot",
    "-kernel",
    "-initrd",
    "-append",
    "-serial",
    "-chardev",
    "-debugcon",
    "-device",
    "-display",
    "-vga",
    "-monitor",
    "-mon",
    "-qmp",
    "-accel",
    "-pidfile",
    "-bios",
    "-icount",
    "-nic",
    "-net",
    "-usbdevice",
    "-L",
    "-object",
];
const WITHOUT_ARGUMENT: &[&str] = &[
    "-nodefaults",
    "-nographic",
    "-no-reboot",
    "-no-shutdown",
    "-S",
    "-snapshot",
    "-usb",
    "-enable-kvm",
    "-perfmap",
    "-h",
    "-help",
    "-version",
];

/// Parses everything after the program's name.
///
/// # Errors
/// With a sentence that names the option.
pub fn parse(arguments: &[String]) -> Result<Request> {
    let mut options = Vec::new();
    let mut rest = arguments.iter();
    while let Some(word) = rest.next() {
        let Some(name) = word.strip_prefix('-') else {
            // A lone file name is the first hard disk, as in QEMU.
            options.push(("-hda".to_owned(), word.clone()));
            continue;
        };
        let name = format!("-{}", name.strip_prefix('-').unwrap_or(name));
        if WITH_ARGUMENT.contains(&name.as_str()) {
            let value = rest.next().with_context(|| format!("{name} needs an argument."))?;
            options.push((name, value.clone()));
        } else if WITHOUT_ARGUMENT.contains(&name.as_str()) {
            options.push((name, String::new()));
        } else {
            let known = [WITH_ARGUMENT, WITHOUT_ARGUMENT].concat();
            match nearest(&name, &known) {
                Some(near) => bail!("The option {name} is not known. Did you mean {near}?"),
                None => bail!("The option {name} is not known. “-help” lists those that are."),
            }
        }
    }
    Builder::default().build(options)
}

#[derive(Default)]
struct Builder {
    spec: Spec,
    drives: Drives,
    chardevs: BTreeMap<String, Chardev>,
    serials: Vec<Lead>,
    debug_port: Option<Lead>,
    monitors: Vec<Lead>,
    qmps: Vec<Lead>,
    display: Option<Window>,
    no_graphic: bool,
    no_defaults: bool,
    snapshot: bool,
    policy: Policy,
    pid_file: Option<PathBuf>,
    notes: Vec<String>,
    kernel: DirectKernel,
    accelerators: Vec<String>,
}

impl Builder {
    fn build(mut self, options: Vec<(String, String)>) -> Result<Request> {
        // -chardev may come after what uses it.
        for (_, value) in options.iter().filter(|(name, _)| name == "-chardev") {
            let chardev = chardev(value)?;
            if let Some(Chardev { id, .. }) = self.chardevs.insert(chardev.id.clone(), chardev) {
                bail!("-chardev: the id {id} is used twice.");
            }
        }
        let objects = options.iter().filter(|(name, _)| name == "-object").map(|(_, value)| value.as_str());
        self.drives = Drives::with_secrets(Secrets::of(objects).context("-object")?);
        for (name, value) in &options {
            match name.as_str() {
                "-h" | "-help" => return Ok(Request::Print(help())),
                "-version" => return Ok(Request::Print(version())),
                "-cpu" if value == "help" => return Ok(Request::Print(cpu_help())),
                "-M" | "-machine" if value == "help" => {
                    return Ok(Request::Print(
                        "Supported machines are:\npc                   Standard PC (i440FX + PIIX) (default)\n".into(),
                    ));
                }
                "-device" if value == "help" => return Ok(Request::Print(device_help())),
                _ => self.option(name, value)?,
            }
        }
        self.finish().map(|plan| Request::Run(Box::new(plan)))
    }

    fn option(&mut self, name: &str, value: &str) -> Result<()> {
        match name {
            "-M" | "-machine" => self.machine(value)?,
            "-m" => self.memory(value)?,
            "-smp" => self.spec.cpu.topology = topology(value)?,
            "-cpu" => self.cpu(value)?,
            "-name" => {
                let mut values = KeyValues::parse(name, value, "guest")?;
                self.spec.name = values.need("guest")?;
                values.take("debug-threads");
                values.finish(&["guest"])?;
            }
            "-hda" | "-hdb" | "-hdc" | "-hdd" => {
                let index = name.as_bytes()[3] - b'a';
                self.drives.add(Some(ide(index)), DriveKind::Disk, Some(ImageSource::new(value)));
            }
            "-cdrom" => self.drives.add(Some(ide(2)), DriveKind::Cdrom, Some(ImageSource::new(value))),
            "-fda" | "-fdb" => {
                let unit = name.as_bytes()[3] - b'a';
                self.drives.add(Some(DriveSlot::Floppy(unit)), DriveKind::Floppy, Some(ImageSource::new(value)));
            }
            "-drive" => self.drives.drive_option(value)?,
            "-blockdev" => self.drives.blockdev_option(value)?,
            "-boot" => self.boot(value)?,
            "-kernel" => self.kernel.kernel = value.into(),
            "-initrd" => self.kernel.initrd = Some(value.into()),
            "-append" => value.clone_into(&mut self.kernel.command_line),
            "-bios" => self.spec.bios = Some(value.to_owned()),
            "-serial" => self.serials.push(lead(name, value, &self.chardevs)?),
            "-debugcon" => self.debug_port = Some(lead(name, value, &self.chardevs)?),
            "-monitor" => self.monitors.push(lead(name, value, &self.chardevs)?),
            "-mon" => self.mon(value)?,
            "-qmp" => self.qmps.push(lead(name, value, &self.chardevs)?),
            "-device" => self.device(value)?,
            "-display" => {
                let kind = value.split(',').next().unwrap_or(value);
                self.display = Some(match kind {
                    "none" => Window::None,
                    "gtk" | "sdl" | "default" => Window::Wanted,
                    _ => bail!("-display {value}: possible are gtk (our window) and none."),
                });
            }
            "-vga" => {
                self.spec.display = match value {
                    "std" => Display::StandardVga,
                    "none" => Display::None,
                    _ => bail!("-vga {value}: possible are std and none."),
                }
            }
            "-accel" => {
                let mut values = KeyValues::parse(name, value, "accel")?;
                let list = values.take("accel").unwrap_or_default();
                self.accelerators.extend(list.split(':').map(str::to_owned));
                if let Some(on) = values.take_switch("translator")? {
                    self.spec.translator = on;
                }
                if let Some(on) = values.take_switch("tier2")? {
                    self.spec.tier2 = if on { Spec::default().tier2 } else { None };
                }
                if let Some(threshold) = values.take_number("tier2-threshold")? {
                    self.spec.tier2 = Some(threshold.min(1 << 30) as u32);
                }
                if let Some(seed) = values.take_number("chaos")? {
                    self.spec.chaos = Some(seed);
                }
                self.spec.profile = values.take("profile").map(PathBuf::from).or(self.spec.profile.take());
                if let Some(mebibytes) = values.take_number("tb-size")? {
                    if mebibytes > MOST_CODE {
                        bail!("-accel tb-size={mebibytes}: at most {MOST_CODE} MiB of translated code are possible.");
                    }
                    // 0 is QEMU's word for the default.
                    self.spec.code_bytes = (mebibytes != 0).then_some((mebibytes << 20) as usize);
                }
                if values.take("thread").is_some_and(|thread| thread != "multi") {
                    self.notes.push(format!("-accel {value}: each CPU has a thread of its own all the same."));
                }
                values.finish(&["translator", "tier2", "tier2-threshold", "chaos", "profile", "tb-size", "thread"])?;
            }
            "-perfmap" => self.spec.perf_map = true,
            "-enable-kvm" => self.accelerators.push("kvm".to_owned()),
            "-icount" => {
                let mut values = KeyValues::parse(name, value, "shift")?;
                let shift = values.take_number("shift")?.unwrap_or(0);
                values.take("sleep");
                values.finish(&["shift"])?;
                if shift > 10 {
                    bail!("-icount shift={shift}: at most 10 is possible.");
                }
                self.spec.clock = ClockMode::Counted { picos_per_instruction: 1000 << shift };
            }
            "-nic" | "-net" if value == "none" => {}
            "-nic" | "-net" => bail!("{name} {value}: networking is not there yet; only “none” is possible."),
            "-usbdevice" if value != "tablet" => bail!("-usbdevice {value}: possible is tablet."),
            "-pidfile" => self.pid_file = Some(value.into()),
            "-nodefaults" => self.no_defaults = true,
            "-nographic" => self.no_graphic = true,
            "-no-reboot" => self.policy.on_reset = OnReset::End,
            "-no-shutdown" => self.policy.on_shutdown = OnShutdown::Stay,
            "-S" => self.policy.start = StartAs::Paused,
            "-snapshot" => self.snapshot = true,
            "-L" => self
                .notes
                .push(format!("-L {value}: firmware is looked for in BELLGLASS_FIRMWARE and the system's folders only.")),
            // The board has its USB controller and tablet always; -chardev and -object were read before.
            "-usb" | "-usbdevice" | "-chardev" | "-object" => {}
            other => bail!("The option {other} is not known."),
        }
        Ok(())
    }

    /// `-mon chardev=ID,mode=readline|control`.
    fn mon(&mut self, value: &str) -> Result<()> {
        let mut values = KeyValues::parse("-mon", value, "chardev")?;
        let lead = lead("-mon", &format!("chardev:{}", values.need("chardev")?), &self.chardevs)?;
        match values.take("mode").as_deref() {
            None | Some("readline") => self.monitors.push(lead),
            Some("control") => self.qmps.push(lead),
            Some(mode) => bail!("-mon mode={mode}: possible are readline and control."),
        }
        values.finish(&["chardev", "mode"])
    }

    fn machine(&mut self, value: &str) -> Result<()> {
        let mut values = KeyValues::parse("-machine", value, "type")?;
        if let Some(kind) = values.take("type")
            && kind != "pc"
            && !kind.starts_with("pc-i440fx")
        {
            bail!("-machine {kind}: this machine is not there yet. Possible is pc.");
        }
        if let Some(list) = values.take("accel") {
            self.accelerators.extend(list.split(':').map(str::to_owned));
        }
        if values.take_switch("usb")? == Some(false) {
            bail!("-machine usb=off: the board's USB controller cannot be left out.");
        }
        values.finish(&["type", "accel", "usb"])
    }

    fn memory(&mut self, value: &str) -> Result<()> {
        let mut values = KeyValues::parse("-m", value, "size")?;
        let bytes = size("-m", &values.need("size")?, 1 << 20)?;
        values.finish(&["size"])?;
        if bytes < 1 << 20 {
            bail!("-m {value}: a machine needs at least 1 MiB of memory.");
        }
        self.spec.memory_bytes = bytes.next_multiple_of(1 << 20);
        Ok(())
    }

    fn cpu(&mut self, value: &str) -> Result<()> {
        let mut words = value.split(',');
        let name = words.next().unwrap_or_default().to_owned();
        let mut features = Vec::new();
        for word in words {
            let feature = match (word.strip_prefix('+'), word.strip_prefix('-'), word.split_once('=')) {
                (Some(on), ..) => (on.to_lowercase(), true),
                (_, Some(off), _) => (off.to_lowercase(), false),
                (.., Some((name, "on"))) => (name.to_lowercase(), true),
                (.., Some((name, "off"))) => (name.to_lowercase(), false),
                // Microsoft's interface is asked for by bare names.
                (.., None) if word.starts_with("hv-") || word.starts_with("hv_") => (word.to_lowercase(), true),
                (.., Some(("hv-spinlocks" | "hv_spinlocks" | "hv-vendor-id" | "hv_vendor_id", _))) => (word.to_owned(), true),
                _ => bail!("-cpu {value}: “{word}” must be +flag, -flag, flag=on or flag=off."),
            };
            features.push(feature);
        }
        self.spec.cpu = CpuModel { name, features, topology: self.spec.cpu.topology };
        Ok(())
    }

    fn boot(&mut self, value: &str) -> Result<()> {
        let mut values = KeyValues::parse("-boot", value, "order")?;
        let order = values.take("once").or_else(|| values.take("order"));
        values.take("order");
        if let Some(order) = order {
            let device = |letter| match letter {
                'a' | 'b' => Ok(BootDevice::Floppy),
                'c' => Ok(BootDevice::Disk),
                'd' => Ok(BootDevice::Cdrom),
                'n' => Ok(BootDevice::Network),
                other => bail!(
                    "-boot {value}: “{other}” is no boot device. Possible are a (floppy), c (disk), d (CD-ROM), n (network)."
                ),
            };
            self.spec.boot_order = order.chars().map(device).collect::<Result<_>>()?;
        }
        let wait = values.take_number("splash-time")?;
        if values.take_switch("menu")?.unwrap_or(false) {
            self.spec.boot_menu_millis = Some(wait.unwrap_or(2500).min(0xffff) as u16);
        }
        values.take_switch("strict")?;
        values.finish(&["order", "once", "menu", "splash-time", "strict"])
    }

    fn device(&mut self, value: &str) -> Result<()> {
        let mut values = KeyValues::parse("-device", value, "driver")?;
        let driver = values.need("driver")?;
        values.take("id");
        match driver.as_str() {
            // The board has one always.
            "usb-tablet" | "piix3-usb-uhci" => values.finish(&[]),
            "isa-serial" => {
                let id = values.need("chardev")?;
                self.serials.push(lead("-device isa-serial", &format!("chardev:{id}"), &self.chardevs)?);
                values.finish(&["chardev"])
            }
            "isa-debugcon" => {
                if let Some(id) = values.take("chardev") {
                    self.debug_port = Some(lead("-device isa-debugcon", &format!("chardev:{id}"), &self.chardevs)?);
                }
                self.part(driver, values)
            }
            "isa-debug-exit" => self.part(driver, values),
            "ide-hd" | "ide-cd" | "floppy" => {
                self.drives.device_option(driver, values);
                Ok(())
            }
            other => {
                let known = ["floppy", "ide-cd", "ide-hd", "isa-debug-exit", "isa-debugcon", "isa-serial", "usb-tablet"];
                match nearest(other, &known) {
                    Some(near) => bail!("-device {other}: there is no such device yet. Did you mean {near}?"),
                    None => bail!("-device {other}: there is no such device yet. Possible are: {}.", known.join(", ")),
                }
            }
        }
    }

    /// A part from the registry, with the options that its model declares.
    fn part(&mut self, model: String, values: KeyValues) -> Result<()> {
        let known: Vec<&str> = engine_session::device_options(&model).unwrap_or_default().iter().map(|(name, _)| *name).collect();
        let options = values.only(&known)?;
        self.spec.parts.push(Part { model, options: Options(options) });
        Ok(())
    }

    fn finish(mut self) -> Result<Plan> {
        self.choose_accelerator()?;
        let (drives, notes) = std::mem::take(&mut self.drives).place(self.snapshot, self.no_defaults)?;
        self.spec.drives = drives;
        self.notes.extend(notes);
        if self.kernel != DirectKernel::default() {
            if self.kernel.kernel.as_os_str().is_empty() {
                bail!("-initrd and -append need -kernel.");
            }
            self.spec.kernel = Some(std::mem::take(&mut self.kernel));
        }
        let window = match self.display {
            Some(window) => window,
            None if self.no_graphic => Window::None,
            None => Window::Wanted,
        };
        if !self.no_defaults && self.serials.is_empty() {
            self.serials.push(match (self.no_graphic, self.monitors.is_empty()) {
                (false, _) => Lead::Stream(StreamTarget::Null),
                (true, true) => Lead::Shared(StreamTarget::Stdio),
                (true, false) => Lead::Stream(StreamTarget::Stdio),
            });
        }
        self.join_multiplexed()?;
        self.spec.serial_console = self.no_graphic && self.spec.display == Display::None;
        let terminals = self.serials.iter().chain(&self.debug_port).chain(&self.monitors).chain(&self.qmps);
        let terminals: Vec<_> = terminals.filter(|lead| lead.target() == Some(&StreamTarget::Stdio)).collect();
        let is_sent = terminals.iter().any(|lead| matches!(lead, Lead::Shared(_)))
            || self.chardevs.values().any(|chardev| chardev.target == StreamTarget::Stdio && !chardev.signal);
        let interrupt_key = if is_sent { InterruptKey::IsSent } else { InterruptKey::EndsProgram };
        if terminals.len() > 1 {
            bail!("Only one of -serial, -monitor, -qmp and -debugcon can have the terminal (stdio). Use mon:stdio to share it.");
        }
        if self.serials.len() > 4 {
            bail!("A PC has at most four serial ports.");
        }
        if self.debug_port.is_some() && !self.spec.parts.iter().any(|part| part.model == "isa-debugcon") {
            self.spec.parts.push(Part { model: "isa-debugcon".to_owned(), options: Options::default() });
        }
        Ok(Plan {
            spec: self.spec,
            policy: self.policy,
            serials: self.serials,
            debug_port: self.debug_port,
            monitors: self.monitors,
            qmps: self.qmps,
            interrupt_key,
            window,
            pid_file: self.pid_file,
            notes: self.notes,
        })
    }

    /// A serial port and a monitor on one `-chardev` with `mux=on` become one shared stream.
    fn join_multiplexed(&mut self) -> Result<()> {
        let mut joined = Vec::new();
        for serial in self.serials.iter_mut().chain(&mut self.debug_port) {
            let Lead::Multiplexed { id, target } = serial else { continue };
            let same = |lead: &Lead| matches!(lead, Lead::Multiplexed { id: other, .. } if other == id);
            if joined.contains(id) {
                bail!("-chardev id={id}: with mux=on, one serial port and one monitor may share it, not more.");
            }
            joined.push(id.clone());
            *serial = match self.monitors.iter().position(same) {
                Some(monitor) => {
                    self.monitors.remove(monitor);
                    Lead::Shared(target.clone())
                }
                None => Lead::Stream(target.clone()),
            };
        }
        for monitor in self.monitors.iter_mut().chain(&mut self.qmps) {
            let Lead::Multiplexed { id, target } = monitor else { continue };
            if joined.contains(id) {
                bail!("-chardev id={id}: with mux=on, one serial port and one monitor may share it, not more.");
            }
            joined.push(id.clone());
            *monitor = Lead::Stream(target.clone());
        }
        Ok(())
    }

    fn choose_accelerator(&mut self) -> Result<()> {
        for name in &self.accelerators {
            match name.as_str() {
                "tcg" => return Ok(()),
                "kvm" => self.notes.push(kvm::why_not()),
                other => bail!("-accel {other}: possible are tcg and kvm."),
            }
        }
        Ok(())
    }
}

fn topology(value: &str) -> Result<Topology> {
    let mut values = KeyValues::parse("-smp", value, "cpus")?;
    let cpus = values.take_number("cpus")?;
    let (sockets, cores, threads) =
        (values.take_number("sockets")?, values.take_number("cores")?, values.take_number("threads")?);
    let most = values.take_number("maxcpus")?;
    values.finish(&["cpus", "sockets", "cores", "threads", "maxcpus"])?;
    let threads = threads.unwrap_or(1);
    let (sockets, cores) = match (sockets, cores, cpus) {
        (Some(sockets), Some(cores), _) => (sockets, cores),
        (None, Some(cores), Some(cpus)) => (cpus / (cores * threads).max(1), cores),
        (None, Some(cores), None) => (1, cores),
        // As in QEMU since 6.2: more cores rather than more sockets.
        (Some(sockets), None, cpus) => (sockets, cpus.unwrap_or(sockets * threads) / (sockets * threads).max(1)),
        (None, None, cpus) => (1, cpus.unwrap_or(1) / threads.max(1)),
    };
    let total = sockets.checked_mul(cores).and_then(|n| n.checked_mul(threads)).unwrap_or(0);
    if total == 0 || total > 64 || cpus.is_some_and(|cpus| cpus != total) {
        bail!("-smp {value}: sockets × cores × threads must give the number of CPUs, from 1 to 64.");
    }
    if most.is_some_and(|most| most != total) {
        bail!("-smp {value}: CPUs cannot be added while the machine runs, so maxcpus must be {total}.");
    }
    Ok(Topology { sockets: sockets as u32, cores: cores as u32, threads: threads as u32 })
}

fn version() -> String {
    format!("Bellglass {} (takes QEMU's command line)\n", env!("CARGO_PKG_VERSION"))
}

fn help() -> String {
    let list = |names: &[&str]| names.join(" ");
    format!(
        "usage: bellglass qemu-system-x86_64 [options] [disk image]\n\nOptions with an argument, as in QEMU:\n  {}\n\nOptions without:\n  {}\n\n-cpu help, -machine help and -device help list what there is.\n\n-accel tcg,translator=off interprets all guest code. -accel tcg,tier2=off does not compile hot loops once more, better;\n-accel tcg,tier2-threshold=N does so after N rounds (8192). -accel tcg,tb-size=N keeps N MiB of translated code (128). -accel tcg,profile=FILE writes the hottest guest code to FILE at the end.\n-perfmap lets “perf” name translated code, by /tmp/perf-PID.map. “info jit” in the monitor shows what the translator does.\n",
        list(WITH_ARGUMENT),
        list(WITHOUT_ARGUMENT)
    )
}

fn cpu_help() -> String {
    "Available CPUs:\n  qemu64               the default: x86-64-v3 with AES and SHA, as far as the host has them\n  max, host            everything that the software CPU does exactly\n  Nehalem Westmere SandyBridge IvyBridge Haswell Broadwell Skylake-Client Icelake-Client\n                       the features of that family\n\n+flag and -flag switch single features.\n".to_owned()
}

fn device_help() -> String {
    let lines: Vec<String> =
        engine_session::device_models().map(|(id, title)| format!("name \"{id}\", desc \"{title}\"")).collect();
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_session::SocketRole;

    fn plan(line: &str) -> Plan {
        match parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).unwrap() {
            Request::Run(plan) => *plan,
            Request::Print(text) => panic!("{text}"),
        }
    }

    fn refusal(line: &str) -> String {
        parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).err().unwrap().to_string()
    }

    #[test]
    fn a_typical_line_becomes_a_machine() {
        let plan = plan("-M pc -m 512 -smp 2 -cdrom a.iso -hda b.qcow2 -boot d -nographic -no-reboot");
        assert_eq!(plan.spec.memory_bytes, 512 << 20);
        assert_eq!(plan.spec.cpu.topology.cpus(), 2);
        assert_eq!(plan.spec.boot_order, [BootDevice::Cdrom]);
        assert_eq!(plan.spec.drives.len(), 2);
        assert_eq!((&plan.serials[..], plan.interrupt_key), (&[Lead::Shared(StreamTarget::Stdio)][..], InterruptKey::IsSent));
        assert_eq!((plan.window, plan.policy.on_reset), (Window::None, OnReset::End));
    }

    #[test]
    fn a_serial_port_and_a_monitor_share_a_multiplexed_stream() {
        let socket = StreamTarget::Unix { path: "/s".into(), role: SocketRole::Listen };
        for line in [
            "-display none -chardev socket,id=c,path=/s,server=on,wait=off,mux=on -serial chardev:c -mon chardev=c,mode=readline",
            "-display none -mon c -serial chardev:c -chardev socket,id=c,path=/s,server=on,wait=off,mux=on",
            "-display none -serial mon:unix:/s,server,nowait",
        ] {
            let plan = plan(line);
            assert_eq!((plan.serials, plan.monitors), (vec![Lead::Shared(socket.clone())], vec![]), "{line}");
        }
        let alone = plan("-display none -chardev stdio,id=c,mux=on -mon c -mon chardev=q,mode=control -chardev null,id=q");
        assert_eq!(alone.monitors, [Lead::Stream(StreamTarget::Stdio)]);
        assert_eq!((alone.qmps.len(), alone.interrupt_key), (1, InterruptKey::IsSent));
        let many = "-chardev null,id=c,mux=on -serial chardev:c -serial chardev:c";
        assert!(refusal(many).contains("id=c"));
        assert!(refusal("-nographic -monitor stdio").contains("mon:stdio"));
        assert_eq!(plan("-nographic -monitor none").serials, [Lead::Stream(StreamTarget::Stdio)]);
    }

    #[test]
    fn unknown_options_name_the_nearest() {
        assert!(refusal("-cdrm a.iso").contains("-cdrom"));
        assert!(refusal("-device isa-debug-exti").contains("isa-debug-exit"));
    }

    #[test]
    fn one_place_is_not_given_twice() {
        assert!(refusal("-hdc a -cdrom b").contains("ide1-0"));
        assert!(refusal("-serial stdio -monitor stdio").contains("mon:stdio"));
    }

    #[test]
    fn every_option_that_scripts_use_is_taken() {
        let plan = plan(
            "-M pc -m 1G -smp cpus=4,cores=2,threads=2 -cpu qemu64,+sse4.2 -name guest=box,debug-threads=on -cdrom a.iso -hda a -hdb b \
             -hdd d -fda f.img -boot order=dc,menu=on,splash-time=100 -kernel k -initrd i -append quiet -chardev null,id=n \
             -chardev file,id=f,path=/l -serial chardev:n -serial file:/s -serial unix:/u,server,nowait -serial none \
             -debugcon chardev:f -device isa-debug-exit,iobase=0xf4,iosize=4 -nodefaults -display none -vga std \
             -monitor unix:/m,server,nowait -qmp unix:/q,server=on,wait=off -accel tcg -no-reboot -no-shutdown -S -snapshot \
             -pidfile /p -usb -device usb-tablet -enable-kvm",
        );
        assert_eq!((plan.spec.name.as_str(), plan.spec.cpu.topology.cpus()), ("box", 4));
        assert_eq!(plan.spec.drives.len(), 5);
        assert!(plan.spec.drives.iter().filter_map(|drive| drive.source.as_ref()).all(|source| source.snapshot));
        assert_eq!(plan.spec.boot_order, [BootDevice::Cdrom, BootDevice::Disk]);
        assert_eq!(plan.spec.boot_menu_millis, Some(100));
        assert_eq!(plan.spec.kernel.as_ref().unwrap().command_line, "quiet");
        assert_eq!((plan.serials.len(), plan.monitors.len(), plan.qmps.len()), (4, 1, 1));
        assert_eq!(plan.serials[3], Lead::Absent);
        assert_eq!(plan.debug_port, Some(Lead::Stream(StreamTarget::File("/l".into()))));
        assert_eq!(plan.pid_file, Some("/p".into()));
        assert_eq!(plan.policy, Policy { on_reset: OnReset::End, on_shutdown: OnShutdown::Stay, start: StartAs::Paused });
        // tcg was asked for first, so there is nothing to be said about KVM.
        assert_eq!(plan.notes, Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_option_s_name() {
        for (line, named) in [
            ("-m", "-m needs"),
            ("-m 1Q", "-m 1Q"),
            ("-m 0", "at least 1 MiB"),
            ("-smp 65", "-smp 65"),
            ("-M q35x", "q35x"),
            ("-vga qxl", "possible are"),
            ("-display vnc=:1", "-display"),
            ("-drive fil=x", "file"),
            ("-drive file=x,if=virtio", "if=virtio"),
            ("-drive file=x,format=zip", "format=zip"),
            ("-drive file=x,index=9", "place 9"),
            ("-boot x", "“x”"),
            ("-serial floppy:x", "-serial"),
            ("-serial chardev:x", "id=x"),
            ("-chardev socket,path=/x", "id=…"),
            ("-append quiet", "-kernel"),
            ("-accel whpx", "whpx"),
            ("-cpu qemu64,sse", "“sse”"),
            ("-nic user", "networking"),
            ("-monitr stdio", "-monitor"),
            ("-device isa-debug-exit,iobas=1", "“iobase”"),
        ] {
            let refusal = refusal(line);
            assert!(refusal.contains(named), "{line}: {refusal}");
        }
    }

    #[test]
    fn the_translator_is_a_property_of_the_accelerator() {
        assert!(plan("-accel tcg,thread=multi,translator=on").spec.translator);
        assert!(!plan("-accel tcg,translator=off").spec.translator);
        assert_eq!(plan("-accel tcg").spec.tier2, Some(8192));
        assert_eq!(plan("-accel tcg,tier2=off -accel tcg,tier2=on").spec.tier2, Some(8192));
        assert_eq!(plan("-accel tcg,tier2-threshold=5").spec.tier2, Some(5));
        assert_eq!(plan("-accel tcg,tier2=off").spec.tier2, None);
        assert_eq!(plan("-accel tcg,chaos=7").spec.chaos, Some(7));
        assert_eq!(plan("-accel tcg,tb-size=16").spec.code_bytes, Some(16 << 20));
        assert_eq!(plan("-accel tcg,tb-size=0").spec.code_bytes, None);
        assert!(plan("-accel tcg,thread=single").notes[0].contains("thread of its own"));
        for (line, named) in [("tb-size=4096", "1024 MiB"), ("split-wx=on", "split-wx")] {
            let refusal = refusal(&format!("-accel tcg,{line}"));
            assert!(refusal.contains(named), "{refusal}");
        }
        let watched = plan("-accel tcg,profile=hot.txt -perfmap").spec;
        assert_eq!((watched.profile, watched.perf_map), (Some("hot.txt".into()), true));
    }

    #[test]
    fn hypervisors_interfaces_are_asked_for_as_in_qemu() {
        let features = plan("-cpu max,kvm=off,hv-relaxed,hv_time,hv-vapic=on,hv-vendor-id=Me").spec.cpu.features;
        let wanted = [("kvm", false), ("hv-relaxed", true), ("hv_time", true), ("hv-vapic", true), ("hv-vendor-id=Me", true)];
        assert_eq!(features, wanted.map(|(name, on)| (name.to_owned(), on)));
    }

    #[test]
    fn kvm_is_answered_with_a_reason() {
        let plan = plan("-accel kvm:tcg");
        assert!(plan.notes[0].starts_with("KVM is not used: "), "{:?}", plan.notes);
    }

    #[test]
    fn lists_are_printed_and_nothing_is_run() {
        for (line, named) in
            [("-device help", "isa-debug-exit"), ("-M help", "pc"), ("-cpu help", "qemu64"), ("-version", "Bellglass")]
        {
            let request = parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).unwrap();
            assert!(matches!(request, Request::Print(text) if text.contains(named)), "{line}");
        }
    }

    #[test]
    fn topologies_must_multiply_up() {
        assert_eq!(topology("cpus=4,sockets=1,cores=2,threads=2").unwrap().threads, 2);
        assert!(topology("0").is_err());
        assert!(topology("5,sockets=2,cores=2").is_err());
    }
}
