//! Direct boot of multiboot (version 1) kernels: a 32-bit ELF or the header's own load addresses, with modules. The image
//! is laid out here, loaded through fw_cfg by our boot ROM, and entered in protected mode.
//! See: Multiboot Specification 0.6.96.

use crate::e820::RamLayout;
use crate::images::{FirmwareError, read_capped};
use crate::linux::{DirectKernel, KernelBoot, unusable};
use crate::rom_code::{Load, boot_rom, low_address};
use engine_bus::FirmwareFile;

const MAGIC: u32 = 0x1bad_b002;
const LOADED: u32 = 0x2bad_b002;
/// The header lies in the first 8 KiB, four-byte aligned.
const SEARCHED: usize = 8192;
const KERNEL_KEY: u16 = 0x11;
const EXTRAS_KEY: u16 = 0x12;
const MOST_MODULE: u64 = 1 << 30;

struct Image {
    base: u32,
    bytes: Vec<u8>,
    entry: u32,
}

pub(crate) fn prepare(boot: &DirectKernel, file: &[u8], ram: RamLayout) -> Result<KernelBoot, FirmwareError> {
    let bad = |reason: &str| unusable(&boot.kernel, reason);
    let dword = |at: usize| file.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let header = (0..file.len().min(SEARCHED).saturating_sub(11))
        .step_by(4)
        .find(|at| {
            let sum = [0, 4, 8].iter().fold(0_u32, |sum, i| sum.wrapping_add(dword(at + i).unwrap_or(0)));
            dword(*at) == Some(MAGIC) && sum == 0
        })
        .ok_or_else(|| bad("it is neither a Linux kernel (bzImage) nor a multiboot kernel"))?;
    let flags = dword(header + 4).unwrap_or(0);
    if flags & 0xfff8 != 0 {
        return Err(bad("the multiboot kernel requires features that are not there"));
    }
    let most = ram.below_4g.saturating_sub(2 << 20);
    let image = if flags & 0x1_0000 != 0 { by_header(file, header) } else { by_elf(file, most) };
    let image = image.ok_or_else(|| bad("the multiboot kernel's load addresses make no sense"))?;
    if u64::from(image.base) + image.bytes.len() as u64 > most {
        return Err(bad("the kernel does not fit into the machine's memory; give it more"));
    }

    // Behind the kernel: the information structure, the memory map, strings, then each module on a page of its own.
    let extras_base = (image.base + image.bytes.len() as u32).next_multiple_of(4096);
    let extras = Extras::build(boot, ram, extras_base, most)?;
    let loads = [
        Load { key: KERNEL_KEY, len: image.bytes.len() as u32, to: u64::from(image.base) },
        Load { key: EXTRAS_KEY, len: extras.len() as u32, to: u64::from(extras_base) },
    ];
    let (low, finish) = enter(low_address(loads.len()), image.entry, extras_base);
    let files =
        vec![FirmwareFile::Item { key: KERNEL_KEY, bytes: image.bytes }, FirmwareFile::Item { key: EXTRAS_KEY, bytes: extras }];
    Ok(KernelBoot { rom: boot_rom("Multiboot kernel (direct boot)", &loads, &low, &finish), files })
}

/// The header says where the file goes (its "a.out kludge").
fn by_header(file: &[u8], header: usize) -> Option<Image> {
    let dword = |at: usize| file.get(at..at + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    let (header_at, load, load_end, bss_end, entry) =
        (dword(header + 12)?, dword(header + 16)?, dword(header + 20)?, dword(header + 24)?, dword(header + 28)?);
    let start = header.checked_sub(header_at.checked_sub(load)? as usize)?;
    let len = if load_end == 0 { file.len() - start } else { load_end.checked_sub(load)? as usize };
    let mut bytes = file.get(start..start.checked_add(len)?)?.to_vec();
    if bss_end != 0 {
        let size = bss_end.checked_sub(load)? as usize;
        if size < bytes.len() || size > 1 << 30 {
            return None;
        }
        bytes.resize(size, 0);
    }
    Some(Image { base: load, bytes, entry })
}

/// An ELF file's loadable segments, flattened from the lowest to the highest physical address. 64-bit files are entered in
/// 32-bit mode too, as boot loaders do.
fn by_elf(file: &[u8], most: u64) -> Option<Image> {
    if file.get(..4)? != b"\x7fELF" || file.get(5)? != &1 {
        return None;
    }
    let wide = *file.get(4)? == 2;
    let number = |at: usize, bytes: usize| {
        Some(file.get(at..at.checked_add(bytes)?)?.iter().rev().fold(0_u64, |v, b| v << 8 | u64::from(*b)))
    };
    let word = if wide { 8 } else { 4 };
    let entry = number(24, word)?;
    let table = number(24 + word, word)? as usize;
    let (size_at, count_at) = if wide { (54, 56) } else { (42, 44) };
    let (entry_size, count) = (number(size_at, 2)? as usize, number(count_at, 2)? as usize);
    let mut segments = Vec::new();
    for index in 0..count {
        let at = table.checked_add(index * entry_size)?;
        if number(at, 4)? != 1 {
            continue;
        }
        let (offset_at, address_at, file_size_at, size_at) = if wide { (8, 24, 32, 40) } else { (4, 12, 16, 20) };
        let (offset, address) = (number(at + offset_at, word)?, number(at + address_at, word)?);
        let (file_size, size) = (number(at + file_size_at, word)?, number(at + size_at, word)?);
        let fits = size >= file_size && address.checked_add(size)? <= most;
        let data = file.get(offset as usize..(offset.checked_add(file_size)?) as usize).filter(|_| fits)?;
        segments.push((address, size, data));
    }
    let base = segments.iter().map(|segment| segment.0).min()?;
    let end = segments.iter().map(|segment| segment.0 + segment.1).max()?;
    let mut bytes = vec![0; (end - base) as usize];
    for (address, _, data) in segments {
        let at = (address - base) as usize;
        bytes[at..at + data.len()].copy_from_slice(data);
    }
    Some(Image { base: u32::try_from(base).ok()?, bytes, entry: u32::try_from(entry).ok()? })
}

/// What lies behind the kernel: information structure first (120 bytes), then what it points to.
struct Extras;

impl Extras {
    fn build(boot: &DirectKernel, ram: RamLayout, base: u32, most: u64) -> Result<Vec<u8>, FirmwareError> {
        let mut modules = Vec::new();
        let list = boot.initrd.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        // `-initrd "file1 arguments,file2"` is how multiboot modules are named.
        for item in list.split(',').filter(|item| !item.is_empty()) {
            let file = item.split(' ').next().unwrap_or(item);
            modules.push((item.to_owned(), read_capped(file.as_ref(), MOST_MODULE, "Choose another module")?));
        }
        let memory_map = memory_map(ram);
        let mut extras = vec![0; 120];
        let append = |extras: &mut Vec<u8>, bytes: &[u8]| {
            let at = base + extras.len() as u32;
            extras.extend(bytes);
            at
        };
        let map_at = append(&mut extras, &memory_map);
        let command = [boot.kernel.to_string_lossy().as_bytes(), b" ", boot.command_line.as_bytes(), &[0]].concat();
        let command_at = append(&mut extras, &command);
        let loader_at = append(&mut extras, b"Bellglass\0");
        let names: Vec<u32> = modules.iter().map(|(name, _)| append(&mut extras, &[name.as_bytes(), &[0]].concat())).collect();
        extras.resize(extras.len().next_multiple_of(16), 0);
        let list_at = base + extras.len() as u32;
        let list_offset = extras.len();
        extras.resize(list_offset + 16 * modules.len(), 0);
        for (index, (_, bytes)) in modules.iter().enumerate() {
            extras.resize(extras.len().next_multiple_of(4096), 0);
            let start = base + extras.len() as u32;
            if u64::from(start) + bytes.len() as u64 > most {
                return Err(unusable(&boot.kernel, "the modules do not fit into the machine's memory; give it more"));
            }
            extras.extend(bytes);
            let entry = [start, start + bytes.len() as u32, names[index], 0];
            let at = list_offset + 16 * index;
            extras[at..at + 16].copy_from_slice(&entry.map(u32::to_le_bytes).concat());
        }
        let upper_kib = (ram.below_4g.saturating_sub(1 << 20) / 1024) as u32;
        // flags: memory sizes, boot device, command line, modules, memory map, loader name
        let flags = 1 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9;
        let fields = [(0, flags), (4, 639), (8, upper_kib), (16, command_at), (20, modules.len() as u32), (24, list_at)];
        let more = [(44, memory_map.len() as u32), (48, map_at), (64, loader_at)];
        for (at, value) in fields.into_iter().chain(more) {
            extras[at..at + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        Ok(extras)
    }
}

/// Entries of 24 bytes: size of the rest, base, length, type.
fn memory_map(ram: RamLayout) -> Vec<u8> {
    let low = [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0xf_0000, 0x1_0000, 2)];
    let main = [(0x10_0000, ram.below_4g.saturating_sub(0x10_0000 + (1 << 18)), 1), (0xfffc_0000, 0x4_0000, 2)];
    let high = (ram.above_4g > 0).then_some((1 << 32, ram.above_4g, 1));
    let entry = |(base, len, kind): (u64, u64, u32)| {
        [&20_u32.to_le_bytes()[..], &base.to_le_bytes(), &len.to_le_bytes(), &kind.to_le_bytes()].concat()
    };
    low.into_iter().chain(main).chain(high).flat_map(entry).collect()
}

/// Code that enters protected mode with flat segments and jumps to `entry` with the multiboot registers. Returns what lies in
/// low memory at `low` (GDT, its pointer, 32-bit code) and the 16-bit code.
fn enter(low: u16, entry: u32, information: u32) -> (Vec<u8>, Vec<u8>) {
    let gdt = [0_u64, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
    let mut bytes: Vec<u8> = gdt.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    let pointer = u32::from(low) + bytes.len() as u32;
    bytes.extend(23_u16.to_le_bytes());
    bytes.extend(u32::from(low).to_le_bytes());
    let code = u32::from(low) + bytes.len() as u32;
    bytes.extend([0x66, 0xb8, 0x10, 0x00]); //                       mov ax, 10h
    bytes.extend([0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xe0]); //           mov ds, es, fs
    bytes.extend([0x8e, 0xe8, 0x8e, 0xd0]); //                       mov gs, ss
    bytes.push(0xb8); //                                             mov eax, magic
    bytes.extend(LOADED.to_le_bytes());
    bytes.push(0xbb); //                                             mov ebx, information
    bytes.extend(information.to_le_bytes());
    bytes.push(0xb9); //                                             mov ecx, entry
    bytes.extend(entry.to_le_bytes());
    bytes.extend([0xff, 0xe1]); //                                   jmp ecx

    let mut finish = vec![0x0f, 0x01, 0x16]; //                      lgdt [pointer]
    finish.extend((pointer as u16).to_le_bytes());
    finish.extend([0x0f, 0x20, 0xc0]); //                            mov eax, cr0
    finish.extend([0x0c, 0x01]); //                                  or al, 1
    finish.extend([0x0f, 0x22, 0xc0]); //                            mov cr0, eax
    finish.extend([0x66, 0xea]); //                                  jmp 8:code
    finish.extend(code.to_le_bytes());
    finish.extend([0x08, 0x00]);
    (bytes, finish)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_with_addresses_is_loaded_where_it_says() {
        let mut file = vec![0_u8; 256];
        let flags = 0x1_0000_u32;
        let fields =
            [MAGIC, flags, 0_u32.wrapping_sub(MAGIC.wrapping_add(flags)), 0x10_0010, 0x10_0000, 0x10_0080, 0x10_0200, 0x10_0040];
        file[16..48].copy_from_slice(&fields.map(u32::to_le_bytes).concat());
        let image = by_header(&file, 16).unwrap();
        assert_eq!((image.base, image.bytes.len(), image.entry), (0x10_0000, 0x200, 0x10_0040));
    }

    #[test]
    fn garbage_is_refused() {
        let boot = DirectKernel::default();
        let error = prepare(&boot, &[0; 4096], RamLayout::of(64 << 20)).unwrap_err();
        assert!(error.to_string().contains("neither a Linux kernel"), "{error}");
        assert!(by_elf(b"\x7fELF\x01\x01\x01", 1 << 20).is_none());
    }
}
