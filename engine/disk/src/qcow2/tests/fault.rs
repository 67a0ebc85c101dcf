//! The host fails at every single operation in turn. After each failure nothing may be lost or doubled, a second
//! attempt must succeed, and the image must be sound when opened again.

use super::bitmaps::{trusted_marks, unmarked_change};
use super::*;
use crate::sim_file::Fault;

/// What a run of the workload saw.
pub(super) struct Outcome {
    pub(super) failed: bool,
    pub(super) fenced: bool,
}

/// A fixed mixture that allocates tables, blocks and data, overwrites, zeroes, discards and flushes.
/// Each step is tried again after a failure. `bytes` follows what the disk must hold.
pub(super) fn workload(disk: &dyn DiskImage, bytes: &mut [u8]) -> Outcome {
    let mut outcome = Outcome { failed: false, fenced: false };
    let steps: [(u8, u64, usize); 14] = [
        (1, 0, 700),
        (2, 40_000, 9_000),
        (0xff, 0, 0),
        (3, 300, 2_000),
        (0, 41_000, 3_000),
        (0xfe, 42_000, 4_000),
        (4, 90_000, 30_000),
        (0xff, 0, 0),
        (5, 40_500, 5_000),
        (6, 0, 512),
        (0xfe, 0, 20_000),
        (0xff, 0, 0),
        (7, 60_000, 20_000),
        (0xff, 0, 0),
    ];
    for (what, offset, length) in steps {
        let range = offset as usize..offset as usize + length;
        let attempt = || match what {
            0xff => disk.flush(),
            0xfe => disk.discard(offset, length as u64),
            0 => disk.write_zeroes(offset, length as u64),
            byte => disk.write_at(offset, &vec![byte; length]),
        };
        let old = bytes[range.clone()].to_vec();
        let mut result = attempt();
        for _ in 0..2 {
            let Err(error) = result else { break };
            outcome.failed = true;
            if matches!(error, DiskError::Fenced { .. }) {
                outcome.fenced = true;
                return outcome;
            }
            // Until it is tried again, every byte of the range is old or new, and all others are untouched.
            let mut seen = bytes.to_vec();
            disk.read_at(0, &mut seen).unwrap();
            for (at, (seen, known)) in seen.iter().zip(bytes.iter()).enumerate() {
                let may_be_new = range.contains(&at) && (*seen == what || (what == 0xfe && *seen == 0));
                assert!(seen == known || may_be_new, "byte {at} became {seen:#x} instead of {known:#x}");
            }
            result = attempt();
        }
        if let Err(error) = result {
            assert!(matches!(error, DiskError::Fenced { .. }), "a second attempt failed: {error}");
            outcome.fenced = true;
            return outcome;
        }
        match what {
            0xff => {}
            0xfe => {
                // The planned fault may strike this read instead; it strikes once.
                let now = &mut bytes[range.clone()];
                disk.read_at(offset, now).or_else(|_| disk.read_at(offset, now)).unwrap();
                assert!(bytes[range].iter().zip(&old).all(|(now, old)| *now == 0 || now == old));
            }
            byte => bytes[range].fill(byte),
        }
    }
    outcome
}

#[test]
fn a_fault_at_every_operation_loses_nothing() {
    let small = Qcow2Options { cluster_size: 512, ..Qcow2Options::default() };
    let kinds = [
        small,
        Qcow2Options { refcount_bits: 64, ..small },
        Qcow2Options { version: 2, cluster_size: 4096, ..small },
        Qcow2Options { extended_l2: true, cluster_size: 16384, ..small },
    ];
    let size = 128 << 10;
    let (mut faults, mut trusted) = (0, 0);
    for (kind, errno, with_base) in
        kinds.into_iter().flat_map(|kind| [(kind, EIO, false), (kind, ENOSPC, true), (kind, ENOSPC, false)])
    {
        let base: Option<Vec<u8>> = with_base.then(|| vec![0x77; size as usize - 5000]);
        for at in 0.. {
            let file = Arc::new(SimFile::new(empty(kind, size)));
            let mut bytes = base.clone().unwrap_or_default();
            bytes.resize(size as usize, 0);
            let before = bytes.clone();
            let disk = open_sim(&file, Access::ReadWrite, base.as_deref()).unwrap();
            if kind.version == 3 {
                disk.bitmaps().unwrap().add("kept", Some(512)).unwrap();
            }
            file.fail(Some(Fault { at, persists: false, errno }));
            let outcome = workload(&disk, &mut bytes);
            let reached = file.operations() > at;
            file.fail(None);
            if !outcome.fenced {
                assert!(read_all(&disk) == bytes, "{kind:?}, fault at {at}");
            }
            drop(disk);
            let report = check(Arc::clone(&file) as Arc<dyn BlockFile>).unwrap();
            assert_eq!(report.errors, 0, "{kind:?}, fault {errno} at {at}: {:?}", report.details);
            // A bitmap that looks sound tells of every change, whatever failed.
            let disk = open_sim(&file, Access::ReadOnly, base.as_deref()).unwrap();
            let marks = trusted_marks(&disk, "kept");
            trusted += u64::from(marks.is_some());
            let forgotten = marks.and_then(|marks| unmarked_change(&marks, &read_all(&disk), &before));
            assert_eq!(forgotten, None, "{kind:?}, fault {errno} at {at}");
            drop(disk);
            if !outcome.fenced {
                assert_eq!(report.leaks, 0, "{kind:?}, fault {errno} at {at}");
                let disk = open_sim(&file, Access::ReadWrite, base.as_deref()).unwrap();
                assert!(read_all(&disk) == bytes, "{kind:?}, fault at {at}, opened again");
            }
            // Whatever happened, the disk can be filled to the brim afterwards without touching what it holds.
            let disk = open_sim(&file, Access::ReadWrite, base.as_deref()).unwrap();
            disk.write_at(0, &vec![0x33; size as usize]).unwrap();
            disk.flush().unwrap();
            assert!(read_all(&disk).iter().all(|byte| *byte == 0x33));
            drop(disk);
            assert_eq!(check(file).unwrap().errors, 0);
            if !reached {
                break;
            }
            // A failed read in the background or a failed punch is allowed to go unnoticed; nothing else is.
            faults += u64::from(outcome.failed);
        }
    }
    println!("{faults} faults, nothing lost; {trusted} bitmaps up to date afterwards");
    assert!(trusted > faults / 2, "{trusted}");
    assert!(faults > 300, "only {faults} operations were reached");
}

#[test]
fn a_full_host_stops_writes_and_they_go_on_when_there_is_space_again() {
    let kind = Qcow2Options { cluster_size: 4096, ..Qcow2Options::default() };
    let file = Arc::new(SimFile::new(empty(kind, 1 << 20)));
    let disk = open_sim(&file, Access::ReadWrite, None).unwrap();
    disk.write_at(0, &[1; 8192]).unwrap();
    file.fail(Some(Fault { at: 0, persists: true, errno: ENOSPC }));
    let error = disk.write_at(100_000, &[2; 8192]).unwrap_err();
    assert!(error.is_no_space(), "{error}");
    file.fail(None);
    disk.write_at(100_000, &[2; 8192]).unwrap();
    disk.flush().unwrap();
    drop(disk);
    assert_clean(file.content(), &"full");
}
