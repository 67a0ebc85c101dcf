//! Passphrases that come and go: ours, QEMU's, and what a crash leaves of the change.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::header::{AT_SLOTS, SLOT_LENGTH, create_with_rounds};
use super::*;
use crate::fields::put;
use crate::qcow2::tests::qemu::bench;
use crate::sim_file::CrashImages;
use crate::{OpenOptions, SimFile, create as create_disk, open};

/// So little that trying costs next to nothing.
const QUICK: Duration = Duration::ZERO;

fn word(word: &str) -> Passphrase {
    Passphrase::new(word.into())
}

fn add(new: &str, slot: Option<usize>) -> KeyChange {
    KeyChange::Add { current: word("first"), new: word(new), slot, time: QUICK }
}

/// A file that is nothing but a header, which “first” opens.
fn sealed() -> SimFile {
    SimFile::new(create_with_rounds(&word("first"), 1000).unwrap())
}

/// Changes the passphrases in `file`.
fn change_in(file: &Arc<SimFile>, change: &KeyChange, force: bool) -> Result<(), DiskError> {
    let fenced = FencedFile::new(Arc::clone(file) as _);
    change_keys(&fenced, 0, fenced.len()?, change, force)
}

/// Which of these words open a header, and the disk they open it to, as the text that comes out of a sector.
fn opened_by<'a>(content: &[u8], words: &[&'a str]) -> Vec<(&'a str, Vec<u8>)> {
    let fenced = FencedFile::new(Arc::new(SimFile::new(content.to_vec())));
    let header = LuksHeader::read(&fenced, 0, content.len() as u64).unwrap();
    let opened = |passphrase: &&'a str| {
        let cipher = header.unlock(&fenced, 0, &word(passphrase)).ok()?;
        let mut sector = vec![7; SECTOR];
        cipher.decrypt(0, &mut sector);
        Some((*passphrase, sector))
    };
    words.iter().filter_map(opened).collect()
}

fn words<'a>(opened: &[(&'a str, Vec<u8>)]) -> Vec<&'a str> {
    assert!(opened.windows(2).all(|pair| pair[0].1 == pair[1].1), "two passphrases open different disks");
    opened.iter().map(|(word, _)| *word).collect()
}

#[test]
fn passphrases_are_added_and_erased_in_the_slots_that_were_asked_for() {
    let all = ["first", "second", "third", "fourth"];
    let file = Arc::new(sealed());
    let before = opened_by(&file.content(), &all);
    assert_eq!(words(&before), ["first"]);
    change_in(&file, &add("second", None), false).unwrap();
    change_in(&file, &add("third", Some(6)), false).unwrap();
    let opened = opened_by(&file.content(), &all);
    assert_eq!(words(&opened), ["first", "second", "third"]);
    assert_eq!(opened[0], before[0], "the key of the disk itself stays");
    assert!(change_in(&file, &add("fourth", Some(6)), false).is_err(), "the slot is in use");
    change_in(&file, &add("fourth", Some(6)), true).unwrap();
    change_in(&file, &KeyChange::ErasePassphrase(word("first")), false).unwrap();
    assert_eq!(words(&opened_by(&file.content(), &all)), ["second", "fourth"]);
    change_in(&file, &KeyChange::EraseSlot(1), false).unwrap();
    let content = file.content();
    assert_eq!(words(&opened_by(&content, &all)), ["fourth"]);
    assert!(content[AT_SLOTS + SLOT_LENGTH + 4..][..36].iter().all(|byte| *byte == 0), "an erased slot keeps no salt");
    assert!(change_in(&file, &KeyChange::EraseSlot(6), false).is_err(), "the last one stays");
    change_in(&file, &KeyChange::EraseSlot(6), true).unwrap();
    assert!(opened_by(&file.content(), &all).is_empty());
}

#[test]
fn what_cannot_be_done_changes_nothing() {
    let file = Arc::new(sealed());
    let wrong = KeyChange::Add { current: word("wrong"), new: word("x"), slot: None, time: QUICK };
    let before = file.content();
    for (change, expected) in [
        (&wrong, "does not unlock"),
        (&add("x", Some(0)), "in use"),
        (&add("x", Some(8)), "0 to 7"),
        (&KeyChange::EraseSlot(usize::MAX), "0 to 7"),
        (&KeyChange::EraseSlot(3), "free already"),
        (&KeyChange::ErasePassphrase(word("wrong")), "does not unlock"),
        (&KeyChange::ErasePassphrase(word("first")), "is lost"),
    ] {
        let refusal = change_in(&file, change, false).unwrap_err().to_string();
        assert!(refusal.contains(expected), "{refusal}");
        assert!(file.content() == before, "{refusal}");
    }
    for slot in 1..8 {
        change_in(&file, &add("x", Some(slot)), false).unwrap();
    }
    assert!(change_in(&file, &add("y", None), false).unwrap_err().to_string().contains("All eight"));
}

#[test]
fn a_slot_whose_entry_points_at_other_things_is_neither_filled_nor_overwritten() {
    let sectors = |bytes: usize| ((bytes / SECTOR) as u32).to_be_bytes();
    let base = sealed().content();
    // The header itself, the stripes of the first slot, the disk behind the header, and far past the end.
    for place in [0, 4096 + 512, base.len() - 512, usize::MAX / 2 / SECTOR * SECTOR] {
        let mut content = base.clone();
        put(&mut content, AT_SLOTS + SLOT_LENGTH + 40, &sectors(place));
        let file = Arc::new(SimFile::new(content.clone()));
        assert!(change_in(&file, &add("x", Some(1)), true).is_err(), "{place}");
        assert!(file.content() == content, "{place}");
        change_in(&file, &KeyChange::EraseSlot(1), true).unwrap();
        assert_eq!(words(&opened_by(&file.content(), &["first"])), ["first"], "{place}");
    }
}

#[test]
fn a_crash_leaves_the_other_passphrases_and_this_one_whole_or_gone() {
    let two = Arc::new(sealed());
    change_in(&two, &add("second", Some(6)), false).unwrap();
    let two = two.content();
    let changes: [(&[u8], KeyChange); 3] = [
        // Slots 1 and 6: the entry of the latter lies across two sectors.
        (&sealed().content(), add("second", Some(1))),
        (&sealed().content(), add("second", Some(6))),
        (&two, KeyChange::ErasePassphrase(word("second"))),
    ];
    for (number, (base, change)) in changes.iter().enumerate() {
        let file = Arc::new(SimFile::new(base.to_vec()));
        file.start_recording();
        change_in(&file, change, false).unwrap();
        let mut seen = [0; 2];
        CrashImages { seed: 5, pairs: 8, random_sets: 8, ..CrashImages::default() }.visit(base, &file.log(), |at, image| {
            let opened = opened_by(image, &["first", "second"]);
            assert_eq!(words(&opened)[0], "first", "change {number}, crash at {at}");
            seen[opened.len() - 1] += 1;
        });
        assert!(seen.iter().all(|count| *count > 0), "change {number}: {seen:?}");
    }
}

#[test]
fn passphrases_that_qemu_adds_and_erases_are_ours_too_and_the_other_way_round() {
    let Some((folder, _alone)) = bench("key slots") else { return };
    for (format, prefix) in [(Format::Luks, ""), (Format::Qcow2, "encrypt.")] {
        let path = folder.path().join(format.name());
        let passphrase_time = QUICK;
        let options = CreateOptions { passphrase: Some(word("first")), passphrase_time, ..CreateOptions::new(format, 1 << 20) };
        create_disk(&path, &options).unwrap();
        let opens = |passphrase: &str| {
            let options = OpenOptions { format: Some(format), passphrase: Some(word(passphrase)), ..OpenOptions::new(&path) };
            open(&options)
        };
        let qemu = |arguments: &[&str]| {
            let image = format!("driver={format},file.filename={},{prefix}key-secret=first", path.display());
            let objects = ["first", "second", "third"].map(|word| format!("--object=secret,id={word},data={word}"));
            let mut command = Command::new("qemu-img");
            command.arg(arguments[0]).args(objects).args(&arguments[1..]).args(["--image-opts", &image]);
            let output = command.output().unwrap();
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        opens("first").unwrap().change_keys(&add("second", Some(3)), false).unwrap();
        assert!(opens("second").is_ok(), "{format}");
        // QEMU erases what we added: it found it, and it opened the disk.
        let (done, said) = qemu(&["amend", "-o", &format!("{prefix}state=inactive,{prefix}old-secret=second")]);
        assert!(done, "{format}: {said}");
        assert!(matches!(opens("second"), Err(DiskError::WrongPassphrase { .. })), "{format}");
        opens("first").unwrap().change_keys(&add("second", None), false).unwrap();
        opens("first").unwrap().change_keys(&KeyChange::ErasePassphrase(word("second")), false).unwrap();
        let (done, said) = qemu(&["amend", "-o", &format!("{prefix}state=inactive,{prefix}old-secret=second")]);
        assert!(!done && said.contains("No keyslots match"), "{format}: {said}");
        // QEMU adds one, unless the computer is too busy for it to measure its own speed.
        let how = format!("{prefix}state=active,{prefix}new-secret=third,{prefix}keyslot=5,{prefix}iter-time=100");
        let (done, said) = qemu(&["amend", "-o", &how]);
        if done {
            assert!(opens("third").is_ok(), "{format}");
        } else {
            assert!(said.contains("CPU"), "{format}: {said}");
        }
    }
}
