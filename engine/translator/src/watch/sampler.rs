//! Where a vCPU's thread spends its time: a timer that runs on the thread's own processor time interrupts it, and the handler notes
//! where it was (`timer.rs`). A thread that sleeps is never interrupted. Hosts without such timers know nothing of it.
//!
//! The handler runs between any two host instructions, so all that it touches are atomics, and fields of the CPU that it reads
//! as plain words. It neither allocates nor locks.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod timer;

use super::code_log::WatchOptions;
use crate::run::code_memory::PARTS;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU64, Ordering};

/// Places that a profile can tell apart, for one vCPU.
const SPOTS: usize = 1 << 17;
/// Slots of [`SPOTS`] that are tried for one sample.
const TRIES: usize = 32;

/// Where a sample was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Place {
    /// The interpreter and everything around it.
    Interpreter = 0,
    /// The interpreter, called by translated code, and the way from block to block.
    CalledByCode = 1,
    /// Translating.
    Translating = 2,
    /// A device.
    Device = 3,
    /// Code of tier 1.
    Tier1 = 4,
    /// Code of tier 2.
    Tier2 = 5,
}

pub(crate) const PLACES: [Place; 6] =
    [Place::Interpreter, Place::CalledByCode, Place::Translating, Place::Device, Place::Tier1, Place::Tier2];

/// A place that a profile tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Spot {
    /// Host code: which memory for code (by its number), and the distance from its start.
    Code { tier: Place, space: u32, offset: u32 },
    /// An offset in CS of guest code, for which Rust code was at work; the mode is [`Watched::mode`]'s.
    Guest { place: Place, mode: u8, rip: u64 },
}

/// Sign extension of what a spot keeps of an address.
const ADDRESS_BITS: u32 = 48;

impl Spot {
    /// As a number that is not zero: four bits of place, then 28 bits of space and 32 of offset, or four of mode and 48 of address.
    fn pack(self) -> u64 {
        match self {
            Spot::Code { tier, space, offset } => {
                (tier as u64 + 1) << 60 | u64::from(space & 0xfff_ffff) << 32 | u64::from(offset)
            }
            Spot::Guest { place, mode, rip } => {
                (place as u64 + 1) << 60 | u64::from(mode & 15) << 48 | rip & ((1 << ADDRESS_BITS) - 1)
            }
        }
    }

    fn unpack(packed: u64) -> Option<Self> {
        let place = *PLACES.get((packed >> 60).checked_sub(1)? as usize)?;
        Some(match place {
            Place::Tier1 | Place::Tier2 => {
                Spot::Code { tier: place, space: (packed >> 32) as u32 & 0xfff_ffff, offset: packed as u32 }
            }
            _ => {
                let rip = ((packed << (64 - ADDRESS_BITS)) as i64 >> (64 - ADDRESS_BITS)) as u64;
                Spot::Guest { place, mode: (packed >> ADDRESS_BITS) as u8 & 15, rip }
            }
        })
    }
}

/// Words of a CPU that the handler reads while the CPU's thread is interrupted.
#[derive(Clone, Copy)]
pub(crate) struct Watched {
    /// RIP; behind the instruction that is being interpreted.
    pub rip: *const u64,
    /// The mode: code size and user code (see `Cpu::mode_changed`).
    pub mode: *const u8,
}

/// Where the memory for code is, and where the first of its [`PARTS`] begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CodePlaces {
    pub start: u64,
    pub first: u64,
    pub part_bytes: u64,
}

/// The same for the handler, and what the parts hold: tier 1's code from their starts, tier 2's up to their ends.
#[derive(Default)]
struct Code {
    start: AtomicU64,
    first: AtomicU64,
    part_bytes: AtomicU64,
    parts: [CodePart; PARTS],
}

#[derive(Default)]
struct CodePart {
    /// Where tier 2's code begins.
    tier2: AtomicU64,
    space: AtomicU64,
}

/// One vCPU's samples.
pub(crate) struct Sampler {
    /// What the thread does when it is not in translated code.
    doing: AtomicU8,
    code: Code,
    samples: [AtomicU64; PLACES.len()],
    /// Whether a timer runs.
    armed: AtomicBool,
    rip: AtomicPtr<u64>,
    mode: AtomicPtr<u8>,
    /// For a profile: spots and how often each was met, in an open hash table that only grows.
    spots: Option<Box<[(AtomicU64, AtomicU64)]>>,
    /// Samples for which no slot was left.
    lost: AtomicU64,
}

impl Sampler {
    /// Nothing sampled yet. For a profile it keeps [`Spot`]s too.
    pub fn new(options: WatchOptions) -> Self {
        Self {
            doing: AtomicU8::new(Place::Interpreter as u8),
            code: Code::default(),
            samples: Default::default(),
            armed: AtomicBool::new(false),
            rip: AtomicPtr::default(),
            mode: AtomicPtr::default(),
            spots: options.profile.then(|| (0..SPOTS).map(|_| Default::default()).collect()),
            lost: AtomicU64::new(0),
        }
    }

    /// The thread does something else now; returns what it did before. Its own thread.
    #[inline(always)]
    pub fn begin(&self, place: Place) -> u8 {
        let before = self.doing.load(Ordering::Relaxed);
        self.doing.store(place as u8, Ordering::Relaxed);
        before
    }

    /// The thread does again what it did before. Its own thread.
    #[inline(always)]
    pub fn end(&self, before: u8) {
        self.doing.store(before, Ordering::Relaxed);
    }

    /// Says whose code a part holds from now on, and from where on it is tier 2's. Its own thread.
    pub fn set_code(&self, places: CodePlaces, part: usize, tier2: u64, space: u32) {
        let Some(code) = self.code.parts.get(part) else { return };
        code.tier2.store(tier2, Ordering::Relaxed);
        code.space.store(space.into(), Ordering::Relaxed);
        self.code.start.store(places.start, Ordering::Relaxed);
        self.code.first.store(places.first, Ordering::Relaxed);
        self.code.part_bytes.store(places.part_bytes, Ordering::Relaxed);
    }

    /// Whose code lies at a host address: its tier, its space, and the distance from the memory's start.
    fn code_at(&self, host: u64) -> Option<(Place, u32, u32)> {
        let Code { start, first, part_bytes, parts } = &self.code;
        let [start, first, part_bytes] = [start, first, part_bytes].map(|word| word.load(Ordering::Relaxed));
        let offset = host.checked_sub(start).filter(|_| start != 0)?;
        let Some(in_parts) = host.checked_sub(first) else { return Some((Place::Tier1, 0, offset as u32)) };
        let part = parts.get(usize::try_from(in_parts.checked_div(part_bytes)?).ok()?)?;
        let tier = if host < part.tier2.load(Ordering::Relaxed) { Place::Tier1 } else { Place::Tier2 };
        Some((tier, part.space.load(Ordering::Relaxed) as u32, offset as u32))
    }

    /// Samples taken at a place.
    pub fn at(&self, place: Place) -> u64 {
        self.samples[place as usize].load(Ordering::Relaxed)
    }

    /// All spots with their samples. Empty without a profile.
    pub fn spots(&self) -> Vec<(Spot, u64)> {
        let slots = self.spots.iter().flatten();
        slots
            .filter_map(|(spot, count)| Some((Spot::unpack(spot.load(Ordering::Relaxed))?, count.load(Ordering::Relaxed))))
            .collect()
    }

    /// Samples of a profile that found no room.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// A sample, with the host's instruction pointer. In the signal handler.
    fn take(&self, host: u64) {
        let code = self.code_at(host);
        let doing = PLACES[usize::from(self.doing.load(Ordering::Relaxed)) % PLACES.len()];
        let place = code.map_or(doing, |(tier, ..)| tier);
        let samples = &self.samples[place as usize];
        samples.store(samples.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let Some(spots) = &self.spots else { return };
        let spot = match code {
            Some((tier, space, offset)) => Spot::Code { tier, space, offset },
            None => {
                let (rip, mode) = (self.rip.load(Ordering::Relaxed), self.mode.load(Ordering::Relaxed));
                if rip.is_null() || mode.is_null() {
                    return;
                }
                // SAFETY: whoever started the timer keeps both pointers good while it runs, and it is this thread that changes the words.
                let (rip, mode) = unsafe { (rip.read_volatile(), mode.read_volatile()) };
                Spot::Guest { place, mode, rip }
            }
        };
        let packed = spot.pack();
        let first = (packed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;
        for slot in first..first + TRIES {
            let (spot, count) = &spots[slot % SPOTS];
            let there = spot.load(Ordering::Relaxed);
            if there == 0 {
                spot.store(packed, Ordering::Relaxed);
            }
            if there == 0 || there == packed {
                count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                return;
            }
        }
        self.lost.store(self.lost.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spots_survive_packing() {
        let spots = [
            Spot::Code { tier: Place::Tier1, space: 3, offset: 0xffff_fff0 },
            Spot::Code { tier: Place::Tier2, space: 0, offset: 0 },
            Spot::Guest { place: Place::Interpreter, mode: 6, rip: 0xffff_ffff_8100_0000 },
            Spot::Guest { place: Place::CalledByCode, mode: 0, rip: 0x7fff_ffff_f000 },
        ];
        for spot in spots {
            assert_eq!(Spot::unpack(spot.pack()), Some(spot));
        }
        assert_eq!(Spot::unpack(0), None);
    }

    #[test]
    fn a_busy_thread_is_sampled_where_it_says_it_is() {
        let sampler = Sampler::new(WatchOptions { profile: true, perf_map: false });
        let (rip, mode) = (0x1234u64, 2u8);
        // SAFETY: all of them outlive the sampling, which ends in this function.
        let sampling = unsafe { sampler.sample(Watched { rip: &raw const rip, mode: &raw const mode }) };
        let before = sampler.begin(Place::Device);
        let mut turns = 0u64;
        while sampler.at(Place::Device) < 5 && turns < 50_000_000_000 {
            turns += 1;
        }
        sampler.end(before);
        drop(sampling.expect("this host has timers"));
        assert!(sampler.at(Place::Device) >= 5, "no samples in {turns} turns");
        let met: u64 = sampler
            .spots()
            .into_iter()
            .filter(|(spot, _)| *spot == Spot::Guest { place: Place::Device, mode: 2, rip: 0x1234 })
            .map(|(_, count)| count)
            .sum();
        assert_eq!(met + sampler.lost(), sampler.at(Place::Device));
    }
}
