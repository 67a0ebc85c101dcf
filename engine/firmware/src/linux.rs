//! Direct kernel boot of a Linux bzImage: kernel, initial RAM disk and command line go through fw_cfg, and a boot ROM of
//! ours enters the kernel's 16-bit setup code, so that the BIOS is there for it as on a real boot.
//! See: Linux `Documentation/arch/x86/boot.rst` (the boot protocol's fields and addresses).

use crate::e820::RamLayout;
use crate::images::{FirmwareError, read_capped};
use crate::rom_code::{Load, boot_rom};
use engine_bus::FirmwareFile;
use std::path::{Path, PathBuf};

/// fw_cfg items that carry a kernel.
mod key {
    pub const KERNEL_DATA: u16 = 0x11;
    pub const INITRD_DATA: u16 = 0x12;
    pub const COMMAND_LINE: u16 = 0x15;
    pub const SETUP_DATA: u16 = 0x18;
}

const SETUP_ADDRESS: u32 = 0x1_0000;
const COMMAND_LINE_ADDRESS: u32 = 0x2_0000;
const KERNEL_ADDRESS: u32 = 0x10_0000;
/// Kept free below the top of low RAM, where the BIOS puts its tables.
const TOP_RESERVED: u64 = 1 << 20;
const MOST_KERNEL: u64 = 512 << 20;
const MOST_INITRD: u64 = 2 << 30;
const ADVICE: &str = "Choose a Linux kernel (vmlinuz) and its initrd";

/// What to boot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DirectKernel {
    /// `-kernel`.
    pub kernel: PathBuf,
    /// `-initrd`.
    pub initrd: Option<PathBuf>,
    /// `-append`.
    pub command_line: String,
}

/// A boot ROM and the fw_cfg items it loads.
#[derive(Debug)]
pub struct KernelBoot {
    /// The option ROM, to be offered as `genroms/<name>`.
    pub rom: Vec<u8>,
    /// What it loads.
    pub files: Vec<FirmwareFile>,
}

/// Whether these bytes begin a bzImage.
pub(crate) fn is_bzimage(image: &[u8]) -> bool {
    image.get(0x202..0x206) == Some(b"HdrS")
}

/// Prepares the boot of a kernel file: bzImage, or multiboot ELF.
///
/// # Errors
/// When a file cannot be read, is no kernel, or does not fit into memory.
pub fn prepare(boot: &DirectKernel, ram: RamLayout) -> Result<KernelBoot, FirmwareError> {
    let image = read_capped(&boot.kernel, MOST_KERNEL, ADVICE)?;
    if is_bzimage(&image) {
        let initrd = boot.initrd.as_deref().map(|path| read_capped(path, MOST_INITRD, ADVICE)).transpose()?;
        return bzimage(boot, image, initrd, ram);
    }
    crate::multiboot::prepare(boot, &image, ram)
}

pub(crate) fn unusable(path: &Path, reason: impl Into<String>) -> FirmwareError {
    FirmwareError::Unusable { path: path.to_owned(), reason: reason.into(), advice: ADVICE }
}

fn bzimage(
    boot: &DirectKernel,
    mut image: Vec<u8>,
    initrd: Option<Vec<u8>>,
    ram: RamLayout,
) -> Result<KernelBoot, FirmwareError> {
    let bad = |reason: &str| unusable(&boot.kernel, reason);
    let field =
        |at: usize, bytes: usize| image.get(at..at + bytes).map(|b| b.iter().rev().fold(0_u64, |v, b| v << 8 | u64::from(*b)));
    let protocol = field(0x206, 2).unwrap_or(0);
    let loaded_high = field(0x211, 1).unwrap_or(0) & 1 != 0;
    if protocol < 0x202 || !loaded_high {
        return Err(bad("the kernel is too old (boot protocol before 2.02, or a zImage)"));
    }
    let setup_sectors = match field(0x1f1, 1) {
        Some(0) => 4,
        Some(sectors) => sectors,
        None => return Err(bad("the file is cut off")),
    };
    let setup_len = (setup_sectors as usize + 1) * 512;
    if image.len() <= setup_len {
        return Err(bad("the file is cut off"));
    }
    let command_line_limit = if protocol >= 0x206 { field(0x238, 4).unwrap_or(255) } else { 255 };
    if boot.command_line.len() as u64 > command_line_limit || boot.command_line.len() > 0xf000 {
        return Err(bad("the kernel's command line is too long for it"));
    }
    let initrd_max = if protocol >= 0x203 { field(0x22c, 4).unwrap_or(0x37ff_ffff) } else { 0x37ff_ffff };
    let kernel_len = image.len() - setup_len;
    let kernel_end = u64::from(KERNEL_ADDRESS) + kernel_len as u64;
    let mut initrd_at = 0;
    if let Some(initrd) = &initrd {
        let top = ram.below_4g.saturating_sub(TOP_RESERVED).min(initrd_max + 1);
        initrd_at = top.saturating_sub(initrd.len() as u64) & !0xfff;
        // The kernel unpacks itself upwards from where it is loaded: it needs its init_size besides.
        let unpacked = if protocol >= 0x20a { field(0x260, 4).unwrap_or(0) } else { 0 };
        if initrd_at < kernel_end.max(u64::from(KERNEL_ADDRESS) + unpacked) {
            return Err(bad("the kernel and its initrd do not fit into the machine's memory; give it more"));
        }
    } else if kernel_end > ram.below_4g.saturating_sub(TOP_RESERVED) {
        return Err(bad("the kernel does not fit into the machine's memory; give it more"));
    }

    let kernel = image.split_off(setup_len);
    let mut setup = image;
    let mut put = |at: usize, bytes: &[u8]| setup[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x210, &[0xff]); // type_of_loader: one without a number of its own
    put(0x211, &[(loaded_high as u8) | 0x80]); // loadflags: loaded high, heap usable
    put(0x224, &((COMMAND_LINE_ADDRESS - SETUP_ADDRESS - 0x200) as u16).to_le_bytes()); // heap_end_ptr
    put(0x228, &COMMAND_LINE_ADDRESS.to_le_bytes());
    if let Some(mode) = video_mode(&boot.command_line) {
        put(0x1fa, &mode.to_le_bytes());
    }
    if let Some(initrd) = &initrd {
        put(0x218, &(initrd_at as u32).to_le_bytes());
        put(0x21c, &(initrd.len() as u32).to_le_bytes());
    }
    let command_line = [boot.command_line.as_bytes(), &[0]].concat();

    let mut parts = vec![
        (key::SETUP_DATA, setup, u64::from(SETUP_ADDRESS)),
        (key::COMMAND_LINE, command_line, u64::from(COMMAND_LINE_ADDRESS)),
        (key::KERNEL_DATA, kernel, u64::from(KERNEL_ADDRESS)),
    ];
    parts.extend(initrd.map(|initrd| (key::INITRD_DATA, initrd, initrd_at)));
    let loads: Vec<Load> = parts.iter().map(|(key, bytes, to)| Load { key: *key, len: bytes.len() as u32, to: *to }).collect();
    let files = parts.into_iter().map(|(key, bytes, _)| FirmwareFile::Item { key, bytes }).collect();
    Ok(KernelBoot { rom: boot_rom("Linux kernel (direct boot)", &loads, &[], &enter_setup()), files })
}

/// 16-bit code that enters the kernel's setup at its segment + 20h:0, with all data segments and a stack in its segment.
fn enter_setup() -> Vec<u8> {
    let segment = (SETUP_ADDRESS >> 4) as u16;
    let mut code = vec![0xb8]; //                    mov ax, segment
    code.extend(segment.to_le_bytes());
    code.extend([0x8e, 0xd8, 0x8e, 0xc0]); //        mov ds, ax ; mov es, ax
    code.extend([0x8e, 0xe0, 0x8e, 0xe8]); //        mov fs, ax ; mov gs, ax
    code.extend([0x8e, 0xd0]); //                    mov ss, ax
    code.extend([0x66, 0xbc]); //                    mov esp, just below the command line
    code.extend((COMMAND_LINE_ADDRESS - SETUP_ADDRESS - 16).to_le_bytes());
    code.extend([0xea, 0, 0]); //                    jmp segment+20h:0
    code.extend((segment + 0x20).to_le_bytes());
    code
}

/// `vga=` on the command line, which the boot loader has to act on.
fn video_mode(command_line: &str) -> Option<u16> {
    let value = command_line.split_whitespace().filter_map(|word| word.strip_prefix("vga=")).next_back()?;
    match value {
        "normal" => Some(0xffff),
        "ext" => Some(0xfffe),
        "ask" => Some(0xfffd),
        hex if hex.starts_with("0x") => u16::from_str_radix(&hex[2..], 16).ok(),
        decimal => decimal.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_kernel() -> Vec<u8> {
        let mut image = vec![0; 3 * 512 + 1000];
        image[0x1f1] = 2;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x211] = 1;
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        image[0x238..0x23c].copy_from_slice(&2047_u32.to_le_bytes());
        image
    }

    #[test]
    fn the_initrd_goes_below_the_top_of_memory() {
        let boot = DirectKernel { command_line: "vga=ask quiet".into(), ..DirectKernel::default() };
        let ready = bzimage(&boot, fake_kernel(), Some(vec![7; 5000]), RamLayout::of(64 << 20)).unwrap();
        let FirmwareFile::Item { bytes: setup, .. } = &ready.files[0] else { panic!("an item") };
        assert_eq!(setup.len(), 3 * 512);
        let initrd = u32::from_le_bytes(setup[0x218..0x21c].try_into().unwrap());
        assert_eq!(initrd, (63 << 20) - 8192);
        assert_eq!(setup[0x1fa..0x1fc], 0xfffd_u16.to_le_bytes());
    }

    #[test]
    fn what_does_not_fit_is_refused_with_advice() {
        let error = bzimage(&DirectKernel::default(), fake_kernel(), Some(vec![0; 4 << 20]), RamLayout::of(4 << 20)).unwrap_err();
        assert!(error.to_string().contains("give it more"), "{error}");
    }
}
