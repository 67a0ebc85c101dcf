//! The manager by its labels, over a library in a temporary folder and with a script in place of the real program.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;
use engine_config::{Host, Machine};
use engine_disk::Format;
use engine_session::library::{Library, NewMachine};

use super::Manager;

const HOST: Host = Host { memory_mib: 16_384, available_mib: 12_000, cpus: 8 };

fn library(folder: &Path) -> Library {
    Library::at(folder.join("machines"), folder.join("run"))
}

fn manager(folder: &Path, script: &str) -> Harness<'static, Manager> {
    let program: PathBuf = folder.join("program");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let library = library(folder);
    Harness::builder()
        .with_size([1080.0, 700.0])
        .build_eframe(move |cc| Manager::with(cc, library, program, HOST).unwrap_or_else(|error| panic!("{error}")))
}

fn settle(harness: &mut Harness<'_, Manager>, until: impl Fn(&Harness<'_, Manager>) -> bool) {
    for _ in 0..500 {
        harness.run_steps(2);
        if until(harness) {
            return;
        }
        harness.state().scanner.look_again();
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came to that");
}

#[test]
fn without_machines_the_first_page_offers_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let mut harness = manager(folder.path(), "exit 0");
    settle(&mut harness, |harness| harness.query_by_label("No machines yet").is_some());
    harness.get_by_label("Try a live Linux");
    harness.get_by_label("New from ISO…").click();
    harness.run_steps(2);
    harness.get_by_label("New machine");
}

#[test]
fn a_machine_that_does_not_start_shows_what_it_said() {
    let folder = tempfile::tempdir().unwrap();
    library(folder.path()).create(NewMachine { machine: Machine::new("Debian 12"), disk_bytes: None }).unwrap();
    let mut harness = manager(folder.path(), "echo 'bellglass: The ISO is gone. Choose it again.' >&2; exit 1");
    settle(&mut harness, |harness| harness.query_by_label("Start").is_some());
    harness.get_by_label("Debian 12, Off");
    harness.get_by_label("Start").click();
    settle(&mut harness, |harness| harness.query_by_label("The ISO is gone.").is_some());
    harness.get_by_label("Choose it again.");
    harness.get_by_label("Dismiss").click();
    harness.run_steps(2);
    assert!(harness.query_by_label("The ISO is gone.").is_none());
}

#[test]
fn a_running_machine_offers_other_actions_and_cannot_be_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let made = library(folder.path()).create(NewMachine { machine: Machine::new("x"), disk_bytes: None }).unwrap();
    let lock = made.lock().unwrap();
    let mut harness = manager(folder.path(), "exit 0");
    settle(&mut harness, |harness| harness.query_by_label("x, Busy").is_some());
    harness.get_by_label("Power off…");
    assert!(harness.query_by_label("Delete…").is_none());
    drop(lock);
    settle(&mut harness, |harness| harness.query_by_label("Delete…").is_some());
}

#[test]
fn deleting_asks_first_and_names_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let made = library(folder.path()).create(NewMachine { machine: Machine::new("x"), disk_bytes: None }).unwrap();
    let mut harness = manager(folder.path(), "exit 0");
    settle(&mut harness, |harness| harness.query_by_label("Delete…").is_some());
    harness.get_by_label("Delete…").click();
    settle(&mut harness, |harness| harness.query_by_label_contains("machine.ron").is_some());
    harness.get_by_label("Cancel").click();
    harness.run_steps(3);
    assert!(harness.query_by_label_contains("machine.ron").is_none());
    assert!(made.settings_path().is_file());
}

#[test]
fn a_damaged_machine_is_listed_with_the_reason_and_cannot_start() {
    let folder = tempfile::tempdir().unwrap();
    let made = library(folder.path()).create(NewMachine { machine: Machine::new("x"), disk_bytes: None }).unwrap();
    std::fs::write(made.settings_path(), "(version: 1").unwrap();
    let mut harness = manager(folder.path(), "exit 0");
    settle(&mut harness, |harness| harness.query_by_label("x, Damaged").is_some());
    harness.get_by_label("This machine cannot be used.");
    assert!(harness.state().available(super::UiCommand::Start).is_err());
}

#[test]
fn settings_are_saved_as_they_are_entered_and_can_be_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let made = library(folder.path()).create(NewMachine { machine: Machine::new("x"), disk_bytes: None }).unwrap();
    let mut harness = manager(folder.path(), "exit 0");
    settle(&mut harness, |harness| harness.query_by_label("Settings").is_some());
    harness.get_by_label("Settings").click();
    settle(&mut harness, |harness| harness.query_by_label("Settings of x").is_some());
    harness.get_by_label("Add a CD drive").click();
    settle(&mut harness, |_| made.load().unwrap().cdroms.len() == 2);
    settle(&mut harness, |harness| harness.query_by_label("Changes are saved as you make them.").is_some());
    harness.get_by_label("Undo").click();
    settle(&mut harness, |_| made.load().unwrap().cdroms.len() == 1);
    harness.get_by_label("Done").click();
    settle(&mut harness, |harness| harness.query_by_label("x, Off").is_some());
}

#[test]
fn a_setting_that_cannot_be_is_told_and_not_saved() {
    let folder = tempfile::tempdir().unwrap();
    let made = library(folder.path()).create(NewMachine { machine: Machine::new("x"), disk_bytes: None }).unwrap();
    let mut harness = manager(folder.path(), "exit 0");
    settle(&mut harness, |harness| harness.query_by_label("Settings").is_some());
    harness.get_by_label("Settings").click();
    settle(&mut harness, |harness| harness.query_by_label("Settings of x").is_some());
    harness.get_by_label("CD drive").focus();
    harness.run_steps(2);
    harness.get_by_label("CD drive").type_text("/nowhere/at/all.iso");
    harness.run_steps(2);
    harness.get_by_label("Done").click();
    settle(&mut harness, |harness| harness.query_by_label("This was not saved.").is_some());
    assert_eq!(made.load().unwrap().cdroms[0].medium, None);
    harness.get_by_label("Done").click();
    settle(&mut harness, |harness| harness.query_by_label("x, Off").is_some());
}

#[test]
fn a_machine_with_an_encrypted_disk_asks_for_its_passphrase_and_starts_with_the_right_one_only() {
    let folder = tempfile::tempdir().unwrap();
    let made = library(folder.path()).create(NewMachine { machine: Machine::new("Vault"), disk_bytes: None }).unwrap();
    let passphrase = Some(engine_disk::Passphrase::new(b"open sesame".to_vec()));
    let passphrase_time = Duration::ZERO;
    let disk =
        engine_disk::CreateOptions { passphrase, passphrase_time, ..engine_disk::CreateOptions::new(Format::Qcow2, 1 << 20) };
    engine_disk::create(&made.path().join("disk.qcow2"), &disk).unwrap();
    let mut machine = made.load().unwrap();
    machine.disks.push(engine_config::Disk { file: "disk.qcow2".into(), format: "qcow2".into() });
    made.save(&machine).unwrap();
    let mut harness = manager(folder.path(), "read said; echo \"bellglass: it said $said\" >&2; exit 1");
    settle(&mut harness, |harness| harness.query_by_label("Vault, Off").is_some());
    harness.get_by_label("Start").click();
    settle(&mut harness, |harness| harness.query_by_label("Unlock Vault").is_some());
    harness.get_by_label("Passphrase").type_text("open");
    harness.run_steps(2);
    harness.get_by_label("Unlock and start").click();
    settle(&mut harness, |harness| harness.query_by_label_contains("does not unlock the disk").is_some());
    assert!(harness.query_by_label_contains("it said").is_none(), "nothing was started");
    harness.get_by_label("Passphrase").type_text(" sesame");
    harness.run_steps(2);
    harness.key_press(egui::Key::Enter);
    settle(&mut harness, |harness| harness.query_by_label_contains("it said open sesame").is_some());
    assert!(harness.query_by_label("Unlock Vault").is_none());
}

#[test]
fn disks_are_added_and_removed_in_the_settings_and_no_file_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let made = library(folder.path()).create(NewMachine { machine: Machine::new("x"), disk_bytes: None }).unwrap();
    let disks = || made.load().unwrap().disks.iter().map(|disk| disk.file.display().to_string()).collect::<Vec<_>>();
    let mut harness = manager(folder.path(), "exit 0");
    settle(&mut harness, |harness| harness.query_by_label("Settings").is_some());
    harness.get_by_label("Settings").click();
    settle(&mut harness, |harness| harness.query_by_label("Settings of x").is_some());
    harness.get_by_label("Add a new disk").click();
    harness.run_steps(3);
    harness.get_by_label("Add this disk").click();
    settle(&mut harness, |_| disks() == ["disks/disk 1.qcow2"]);
    settle(&mut harness, |harness| harness.query_by_label("Changes are saved as you make them.").is_some());
    harness.get_by_label("Remove").click();
    settle(&mut harness, |_| disks().is_empty());
    settle(&mut harness, |harness| harness.query_by_label("Changes are saved as you make them.").is_some());
    let file = made.path().join("disks/disk 1.qcow2");
    assert!(file.is_file(), "the file stays");
    harness.get_by_label("Add an existing disk").click();
    harness.run_steps(3);
    harness.get_by_label("Disk image").focus();
    harness.run_steps(2);
    harness.get_by_label("Disk image").type_text(&file.display().to_string());
    harness.run_steps(2);
    harness.get_by_label("Add this disk").click();
    settle(&mut harness, |_| disks() == ["disks/disk 1.qcow2"]);
}
