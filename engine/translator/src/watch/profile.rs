//! The hottest guest code as text: samples by place, then the pieces of code with the most of them, guest and host instructions
//! side by side. Without symbols: guest addresses are what a disassembly or a System.map of the guest is searched for.

use super::code_log::Placed;
use super::sampler::{PLACES, Place, Spot};
use crate::shared::Fabric;
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use std::collections::HashMap;
use std::fmt::Write as _;

/// Pieces and addresses that are listed.
const LISTED: usize = 200;
/// Pieces of them whose instructions are shown.
const SHOWN: usize = 40;

/// A line of the list.
struct Hot<'a> {
    samples: u64,
    rip: u64,
    bits: u32,
    user: bool,
    place: Place,
    /// For translated code: the piece, and the samples of its host instructions by distance from its start.
    piece: Option<(&'a Placed, Vec<(u32, u64)>)>,
}

/// The profile of a machine's CPUs so far. `None`: nobody asked for one.
pub(crate) fn text(fabric: &Fabric) -> Option<String> {
    let pieces = fabric.translations.log.pieces()?;
    let (mut spots, mut places, mut lost) = (HashMap::<Spot, u64>::new(), [0u64; PLACES.len()], 0);
    fabric.for_each(|cpu| {
        lost += cpu.sampler.lost();
        for (place, count) in PLACES.into_iter().zip(&mut places) {
            *count += cpu.sampler.at(place);
        }
        for (spot, count) in cpu.sampler.spots() {
            *spots.entry(spot).or_default() += count;
        }
    });
    Some(print(&spots, &pieces, &places, lost))
}

fn print(spots: &HashMap<Spot, u64>, pieces: &[Placed], places: &[u64; PLACES.len()], lost: u64) -> String {
    let total: u64 = places.iter().sum();
    let share = |count: u64| 100.0 * count as f64 / total.max(1) as f64;
    let mut text = format!("{total} samples of the CPUs' processor time");
    if lost != 0 {
        write!(text, "; {lost} of them had no room below").ok();
    }
    text.push('\n');
    for (place, count) in PLACES.into_iter().zip(places) {
        writeln!(text, "{:6.2} %  {}", share(*count), place.title()).ok();
    }
    let (hot, stubs) = hottest(spots, pieces);
    writeln!(text, "{:6.2} %  of it in stubs, or in code that is not remembered", share(stubs)).ok();
    text.push_str("\nHottest guest code\n");
    for hot in hot.iter().take(LISTED) {
        let who = if hot.user { "user" } else { "kernel" };
        write!(text, "{:6.2} %  {:016x}  {}-bit {who}  {}", share(hot.samples), hot.rip, hot.bits, hot.place.title()).ok();
        if let Some((piece, _)) = &hot.piece {
            write!(text, ", {} bytes of guest code, {} of host code", piece.guest.len(), piece.host.len()).ok();
        }
        text.push('\n');
    }
    for hot in hot.iter().filter(|hot| hot.piece.is_some()).take(SHOWN) {
        let Some((piece, samples)) = &hot.piece else { continue };
        writeln!(text, "\n{:016x}  {:.2} %", hot.rip, share(hot.samples)).ok();
        disassemble(&mut text, piece.bits, piece.rip, &piece.guest, |_| String::new());
        text.push_str("  as host code, with the samples of each instruction:\n");
        disassemble(&mut text, 64, piece.address, &piece.host, |range| {
            let within = |at: &&(u32, u64)| range.contains(&(piece.address + u64::from(at.0)));
            match samples.iter().filter(within).map(|(_, count)| *count).sum::<u64>() {
                0 => String::new(),
                count => count.to_string(),
            }
        });
    }
    text
}

/// What the samples fell on, hottest first, and samples in translated code that fell on no remembered piece.
fn hottest<'a>(spots: &HashMap<Spot, u64>, pieces: &'a [Placed]) -> (Vec<Hot<'a>>, u64) {
    let mut by_piece = HashMap::<usize, Vec<(u32, u64)>>::new();
    let mut found = Vec::new();
    let mut stubs = 0;
    for (spot, &samples) in spots {
        match *spot {
            Spot::Code { tier, space, offset } => {
                let key = (tier as u8, space, offset);
                let at = pieces.partition_point(|piece| (piece.tier as u8, piece.space, piece.offset) <= key).wrapping_sub(1);
                let inside = |piece: &&Placed| {
                    (piece.tier, piece.space) == (tier, space) && offset - piece.offset < piece.host.len() as u32
                };
                match pieces.get(at).filter(inside) {
                    Some(piece) => by_piece.entry(at).or_default().push((offset - piece.offset, samples)),
                    None => stubs += samples,
                }
            }
            Spot::Guest { place, mode, rip } => {
                let bits = [16, 32, 64][usize::from(mode & 3).min(2)];
                found.push(Hot { samples, rip, bits, user: mode & 4 != 0, place, piece: None });
            }
        }
    }
    for (at, samples) in by_piece {
        let piece = &pieces[at];
        found.push(Hot {
            samples: samples.iter().map(|(_, count)| count).sum(),
            rip: piece.rip,
            bits: piece.bits,
            user: piece.user,
            place: piece.tier,
            piece: Some((piece, samples)),
        });
    }
    found.sort_by_key(|hot| (std::cmp::Reverse(hot.samples), hot.rip));
    (found, stubs)
}

/// One line an instruction: what `margin` says of its addresses, address, bytes, text.
fn disassemble(text: &mut String, bits: u32, rip: u64, code: &[u8], margin: impl Fn(std::ops::Range<u64>) -> String) {
    let mut decoder = Decoder::with_ip(bits, code, rip, DecoderOptions::NONE);
    let mut formatter = NasmFormatter::new();
    let mut line = String::new();
    while decoder.can_decode() {
        let at = decoder.position();
        let instruction = decoder.decode();
        let bytes = &code[at..decoder.position()];
        line.clear();
        formatter.format(&instruction, &mut line);
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let margin = margin(instruction.ip()..instruction.ip() + bytes.len() as u64);
        writeln!(text, "{margin:>8}  {:016x}  {:30}  {line}", instruction.ip(), hex.join(" ")).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_code_comes_first_with_its_instructions() {
        let piece = |offset: u32, rip: u64, guest: &[u8]| Placed {
            tier: Place::Tier1,
            space: 1,
            offset,
            address: 0x1000 + u64::from(offset),
            host: [0x90, 0x48, 0x89, 0xd8, 0xc3].into(),
            rip,
            bits: 64,
            user: true,
            guest: guest.into(),
        };
        let pieces = [piece(16, 0x40_0000, &[0x48, 0x89, 0xc3]), piece(32, 0x40_1000, &[0xc3])];
        let code = |offset| Spot::Code { tier: Place::Tier1, space: 1, offset };
        let guest = Spot::Guest { place: Place::Interpreter, mode: 0, rip: 0x7c00 };
        let spots = HashMap::from([(code(17), 6), (code(32), 3), (code(2), 1), (guest, 2)]);
        let text = print(&spots, &pieces, &[2, 0, 0, 0, 10, 0], 0);
        assert!(text.starts_with("12 samples"), "{text}");
        let hottest: Vec<&str> = text.lines().skip_while(|line| *line != "Hottest guest code").skip(1).take(3).collect();
        assert!(hottest[0].starts_with(" 50.00 %  0000000000400000  64-bit user  tier 1"), "{text}");
        assert!(hottest[1].starts_with(" 25.00 %  0000000000401000"), "{text}");
        assert!(hottest[2].starts_with(" 16.67 %  0000000000007c00  16-bit kernel  interpreter"), "{text}");
        assert!(text.contains("8.33 %  of it in stubs"), "{text}");
        let counted = text.lines().find(|line| line.contains("0000000000001011")).unwrap();
        assert!(counted.trim_start().starts_with('6') && counted.ends_with("mov rax,rbx"), "{text}");
    }
}
