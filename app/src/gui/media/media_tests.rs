//! The page by its labels and its operations with the real program, over a library in a temporary folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;
use engine_config::Machine;
use engine_disk::{CreateOptions, Format, OpenOptions};
use engine_session::library::{Library, NewMachine};

use super::Media;

/// A script in place of the program: it writes down what it was told and makes the last file it was told of.
fn page(folder: &Path, script: &str) -> Harness<'static, Media> {
    use std::os::unix::fs::PermissionsExt as _;
    let program: PathBuf = folder.join("program");
    std::fs::write(&program, format!("#!/bin/sh\necho \"$@\" >> {}/told\n{script}\n", folder.display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let media = Media::new(library(folder), program);
    Harness::builder().with_size([1080.0, 700.0]).build_ui_state(
        |ui, media| {
            media.hear();
            media.page_ui(ui);
        },
        media,
    )
}

fn library(folder: &Path) -> Library {
    Library::at(folder.join("machines"), folder.join("run"))
}

fn settle(harness: &mut Harness<'_, Media>, until: impl Fn(&Harness<'_, Media>) -> bool) {
    for _ in 0..500 {
        harness.run_steps(2);
        if until(harness) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came to that");
}

fn with_disk(folder: &Path) -> PathBuf {
    let made = library(folder).create(NewMachine { machine: Machine::new("x"), disk_bytes: Some(1 << 20) }).unwrap();
    made.path().join("disks/system.qcow2")
}

#[test]
fn a_disk_that_a_machine_uses_is_not_deleted_and_the_reason_is_told() {
    let folder = tempfile::tempdir().unwrap();
    with_disk(folder.path());
    let mut harness = page(folder.path(), "exit 0");
    settle(&mut harness, |harness| harness.query_by_label("system.qcow2, fine").is_some());
    harness.get_by_label("system.qcow2, fine").click();
    harness.run_steps(2);
    harness.get_by_label("Delete…").click();
    harness.run_steps(2);
    assert!(harness.query_by_label_contains("it is in a drive of x").is_some());
    assert!(harness.query_by_label("Move to trash").is_none());
    harness.get_by_label("Keep it").click();
    harness.run_steps(2);
    assert!(harness.query_by_label("Keep it").is_none());
    assert!(harness.state().available(super::MediaCommand::Check).is_ok());
}

#[test]
fn a_check_is_a_job_and_what_it_finds_can_be_repaired() {
    let folder = tempfile::tempdir().unwrap();
    with_disk(folder.path());
    let report = r#"case "$*" in *-r*) echo '{"leaks-fixed": 3}';; *) echo '{"leaks": 3}'; exit 3;; esac"#;
    let mut harness = page(folder.path(), report);
    settle(&mut harness, |harness| harness.query_by_label("system.qcow2, fine").is_some());
    harness.get_by_label("system.qcow2, fine").click();
    harness.run_steps(2);
    harness.get_by_label("Check").click();
    settle(&mut harness, |harness| harness.query_by_label_contains("3 clusters are set aside").is_some());
    harness.get_by_label("Give the space back").click();
    settle(&mut harness, |harness| harness.query_by_label_contains("all errors were repaired").is_some());
    let told = std::fs::read_to_string(folder.path().join("told")).unwrap();
    assert!(told.lines().last().unwrap().contains("-r leaks"), "{told}");
}

#[test]
fn a_copy_takes_its_name_only_when_it_has_been_compared() {
    let folder = tempfile::tempdir().unwrap();
    let disk = with_disk(folder.path());
    let differs =
        r#"case "$2" in convert) for last; do :; done; echo x > "$last"; echo '    (50.00/100%)';; compare) exit 1;; esac"#;
    let mut harness = page(folder.path(), differs);
    settle(&mut harness, |harness| harness.query_by_label("system.qcow2, fine").is_some());
    harness.get_by_label("system.qcow2, fine").click();
    harness.run_steps(2);
    harness.get_by_label("Convert…").click();
    harness.run_steps(2);
    harness.get_by_label("Convert").click();
    settle(&mut harness, |harness| harness.query_by_label_contains("differs from the original").is_some());
    let left: Vec<_> = std::fs::read_dir(disk.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["system.qcow2"]);
}

#[test]
fn a_job_that_is_stopped_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let disk = with_disk(folder.path());
    let slow = r#"for last; do :; done; echo x > "$last"; echo '    (1.00/100%)'; exec sleep 600"#;
    let mut harness = page(folder.path(), slow);
    settle(&mut harness, |harness| harness.query_by_label("system.qcow2, fine").is_some());
    harness.get_by_label("system.qcow2, fine").click();
    harness.run_steps(2);
    harness.get_by_label("Compact").click();
    let copy = disk.with_file_name("system.qcow2.unfinished");
    settle(&mut harness, |harness| copy.exists() && harness.query_by_label("Stop").is_some());
    harness.get_by_label("Stop").click();
    settle(&mut harness, |harness| harness.state().jobs() == 0);
    assert!(!copy.exists());
    assert!(engine_disk::open(&OpenOptions { format: Some(Format::Qcow2), ..OpenOptions::read_only(&disk) }).is_ok());
}

#[test]
fn of_two_files_that_hold_the_same_the_person_chooses_one() {
    let folder = tempfile::tempdir().unwrap();
    let disk = with_disk(folder.path());
    std::fs::OpenOptions::new().append(true).open(&disk).unwrap();
    let disk_full = folder.path().join("full.qcow2");
    engine_disk::create(&disk_full, &CreateOptions::new(Format::Qcow2, 1 << 20)).unwrap();
    let smaller = format!(r#"case "$2" in convert) for last; do :; done; head -c 4096 {} > "$last";; esac"#, disk_full.display());
    let mut harness = page(folder.path(), &smaller);
    settle(&mut harness, |harness| harness.query_by_label("system.qcow2, fine").is_some());
    harness.get_by_label("system.qcow2, fine").click();
    harness.run_steps(2);
    harness.get_by_label("Compact").click();
    settle(&mut harness, |harness| harness.query_by_label("Keep the smaller one").is_some());
    let before = std::fs::metadata(&disk).unwrap().len();
    harness.get_by_label("Keep the smaller one").click();
    settle(&mut harness, |harness| harness.query_by_label_contains("less.").is_some());
    assert!(std::fs::metadata(&disk).unwrap().len() < before);
    assert!(!disk.with_file_name("system.qcow2.unfinished").exists());
}

#[test]
fn a_missing_disk_is_found_again_and_its_machine_and_overlays_name_the_new_place() {
    let folder = tempfile::tempdir().unwrap();
    let disk = with_disk(folder.path());
    let (moved, overlay) = (folder.path().join("moved.qcow2"), disk.with_file_name("over.qcow2"));
    let backing = Some(engine_disk::Backing { name: "system.qcow2".into(), format: Format::Qcow2 });
    engine_disk::create(&overlay, &CreateOptions { backing, ..CreateOptions::new(Format::Qcow2, 1 << 20) }).unwrap();
    std::fs::rename(&disk, &moved).unwrap();
    let mut harness = page(folder.path(), "exit 0");
    settle(&mut harness, |harness| harness.query_by_label("system.qcow2, missing").is_some());
    harness.get_by_label("system.qcow2, missing").click();
    harness.run_steps(2);
    harness.get_by_label("Locate…").click();
    harness.run_steps(2);
    assert!(harness.query_by_label_contains("the machine x").is_some());
    assert!(harness.query_by_label("  •  over.qcow2").is_some());
    if let Some(super::Question::Locate { path, .. }) = &mut harness.state_mut().question {
        *path = moved.display().to_string();
    }
    harness.run_steps(2);
    harness.get_by_label("Use this file").click();
    settle(&mut harness, |harness| harness.query_by_label_contains("is used from now on").is_some());
    let told = std::fs::read_to_string(folder.path().join("told")).unwrap();
    let expected = format!("img rebase -u -f qcow2 -F qcow2 -b {} {}", moved.display(), overlay.display());
    assert_eq!(told.trim(), expected);
    let machine = library(folder.path()).find("x").unwrap().load().unwrap();
    assert_eq!(machine.disks[0].file, moved);
}

#[test]
fn an_encrypted_image_asks_for_its_passphrase_and_no_command_line_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let library = library(folder.path());
    std::fs::create_dir_all(library.root()).unwrap();
    let passphrase = Some(engine_disk::Passphrase::new(b"open".to_vec()));
    let path = library.root().join("a.qcow2");
    engine_disk::create(&path, &CreateOptions { passphrase, ..CreateOptions::new(Format::Qcow2, 1 << 20) }).unwrap();
    let mut harness = page(folder.path(), &format!("cat >> {}/heard", folder.path().display()));
    settle(&mut harness, |harness| harness.query_by_label("a.qcow2, encrypted, locked").is_some());
    harness.get_by_label("a.qcow2, encrypted, locked").click();
    harness.run_steps(2);
    harness.get_by_label("Resize…").click();
    harness.run_steps(2);
    harness.get_by_label("+ 1 GiB").click();
    harness.run_steps(2);
    harness.get_by_label("Change the size").click();
    harness.run_steps(2);
    assert_eq!(harness.state().jobs(), 0, "not without the passphrase");
    if let Some(super::Question::Resize { passphrase, .. }) = &mut harness.state_mut().question {
        passphrase.0 = "open".to_owned();
    }
    harness.run_steps(2);
    harness.get_by_label("Change the size").click();
    settle(&mut harness, |harness| harness.query_by_label_contains("has its new size").is_some());
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let told = read("told");
    assert!(told.contains("secret,id=key,file=/dev/stdin") && !told.contains("open"), "{told}");
    assert_eq!(read("heard"), "open");
}
