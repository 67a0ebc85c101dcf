//! A boot ROM: an option ROM with a bootstrap entry that asks fw_cfg's DMA interface (port 514h, big-endian descriptors)
//! to put each part of a kernel where it belongs, then jumps to it. The few dozen instructions are written as bytes with
//! their assembly beside them.
//! See: Plug and Play BIOS Specification 1.0A (option ROM and expansion header).

/// One transfer: fw_cfg item `key` to physical address `to`.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// The item.
    pub key: u16,
    /// Its length in bytes.
    pub len: u32,
    /// Where it goes.
    pub to: u64,
}

/// fw_cfg DMA control bits: select the item in the high half, then read.
const SELECT_AND_READ: u32 = 0x08 | 0x02;
/// Offset of the PnP expansion header, 32 bytes; the option ROM header before it points here.
const PNP: usize = 0x20;
/// Offset of the code in the ROM; it jumps over what lies between.
const CODE: usize = 0x40;
/// The ROM itself may be write-protected when it runs, but fw_cfg writes into its descriptors: so they, and what comes
/// behind them, are copied to this address in low memory first, which is free while the BIOS boots.
pub const LOW: u16 = 0x6000;

/// Where in low memory the `low` bytes given to [`boot_rom`] lie.
pub const fn low_address(loads: usize) -> u16 {
    LOW + 16 * loads as u16
}

/// Builds a ROM that is a boot entry called `title`: it carries out `loads`, then runs `finish` (16-bit code; DS is 0, and
/// `low` lies at [`low_address`]).
pub fn boot_rom(title: &str, loads: &[Load], low: &[u8], finish: &[u8]) -> Vec<u8> {
    let mut table = Vec::new();
    for load in loads {
        table.extend((u32::from(load.key) << 16 | SELECT_AND_READ).to_be_bytes());
        table.extend(load.len.to_be_bytes());
        table.extend(load.to.to_be_bytes());
    }
    table.extend(low);

    let mut code = vec![0xfa]; //                               cli
    code.push(0xfc); //                                         cld
    code.extend([0x0e, 0x1f]); //                               push cs ; pop ds
    code.extend([0x31, 0xc0]); //                               xor ax, ax
    code.extend([0x8e, 0xc0]); //                               mov es, ax
    code.extend([0xbe, 0, 0]); //                               mov si, table
    let table_operand = code.len() - 2;
    code.push(0xbf); //                                         mov di, LOW
    code.extend(LOW.to_le_bytes());
    code.push(0xb9); //                                         mov cx, its length
    code.extend((table.len() as u16).to_le_bytes());
    code.extend([0xf3, 0xa4]); //                               rep movsb
    code.extend([0x8e, 0xd8]); //                               mov ds, ax
    code.extend([0x66, 0xbe]); //                               mov esi, LOW
    code.extend(u32::from(LOW).to_le_bytes());
    code.push(0xb9); //                                         mov cx, number of loads
    code.extend((loads.len() as u16).to_le_bytes());
    let next = code.len();
    code.extend([0xba, 0x14, 0x05]); //                         mov dx, 514h
    code.extend([0x66, 0x31, 0xc0]); //                         xor eax, eax
    code.extend([0x66, 0xef]); //                               out dx, eax     ; high half of the descriptor's address
    code.extend([0xba, 0x18, 0x05]); //                         mov dx, 518h
    code.extend([0x66, 0x89, 0xf0]); //                         mov eax, esi
    code.extend([0x66, 0x0f, 0xc8]); //                         bswap eax
    code.extend([0x66, 0xef]); //                               out dx, eax     ; low half: the transfer starts
    let wait = code.len();
    code.extend([0xf3, 0x90]); //                               pause
    code.extend([0x66, 0x8b, 0x04]); //                         mov eax, [si]   ; the control word
    code.extend([0x66, 0xa9, 0xff, 0xff, 0xff, 0xfe]); //       test eax, all but the error bit (big endian)
    code.extend([0x75, jump_back(code.len() + 2, wait)]); //    jnz wait
    code.extend([0x83, 0xc6, 0x10]); //                         add si, 16
    code.extend([0xe2, jump_back(code.len() + 2, next)]); //    loop next
    code.extend(finish);
    let table_at = (CODE + code.len()) as u16;
    code[table_operand..table_operand + 2].copy_from_slice(&table_at.to_le_bytes());
    let title_at = table_at + table.len() as u16;

    let mut rom = vec![0; CODE];
    rom.extend(code);
    rom.extend(table);
    rom.extend(title.bytes());
    rom.push(0);
    rom.resize(rom.len().next_multiple_of(512), 0);
    rom[0..2].copy_from_slice(&[0x55, 0xaa]);
    rom[2] = (rom.len() / 512) as u8;
    rom[3] = 0xcb; // retf: nothing to initialise
    rom[0x1a..0x1c].copy_from_slice(&(PNP as u16).to_le_bytes());
    rom[PNP..PNP + 4].copy_from_slice(b"$PnP");
    rom[PNP + 4] = 1; // revision
    rom[PNP + 5] = 2; // length in 16-byte units
    rom[PNP + 0x10..PNP + 0x12].copy_from_slice(&title_at.to_le_bytes()); // product name
    rom[PNP + 0x1a..PNP + 0x1c].copy_from_slice(&(CODE as u16).to_le_bytes()); // bootstrap entry vector
    let header_sum = sum(&rom[PNP..CODE]);
    rom[PNP + 9] = 0_u8.wrapping_sub(header_sum);
    let rom_sum = sum(&rom);
    rom[5] = 0_u8.wrapping_sub(rom_sum);
    rom
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn jump_back(after: usize, to: usize) -> u8 {
    (to as isize - after as isize) as i8 as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_sizes_are_those_of_an_option_rom() {
        let rom = boot_rom("Test", &[Load { key: 8, len: 4, to: 0x10000 }], &[1, 2, 3], &[0xf4]);
        assert_eq!(usize::from(rom[2]) * 512, rom.len());
        assert_eq!(sum(&rom), 0);
        assert_eq!(sum(&rom[PNP..CODE]), 0);
    }
}
