//! The wizard by its labels, as a person or a screen reader finds them.

use std::path::Path;
use std::time::Duration;

use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;
use engine_config::Host;
use engine_session::library::{Library, MachineFolder};

use super::iso_facts::tests::iso;
use super::{Outcome, Then, Wizard};

const HOST: Host = Host { memory_mib: 16_384, available_mib: 12_000, cpus: 8 };

struct Page {
    wizard: Wizard,
    outcome: Option<Outcome>,
}

fn page(folder: &Path) -> Harness<'static, Page> {
    let library = Library::at(folder.join("machines"), folder.join("run"));
    let page = Page { wizard: Wizard::new(library, HOST), outcome: None };
    Harness::builder().with_size([900.0, 720.0]).build_ui_state(
        |ui, page: &mut Page| {
            if page.outcome.is_none() {
                match page.wizard.page_ui(ui) {
                    Outcome::Open => {}
                    done => page.outcome = Some(done),
                }
            }
        },
        page,
    )
}

/// Runs until the threads behind the page have had their say.
fn settle(harness: &mut Harness<'_, Page>, until: impl Fn(&Harness<'_, Page>) -> bool) {
    for _ in 0..500 {
        harness.run_steps(2);
        if until(harness) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came to that");
}

fn enter(harness: &mut Harness<'_, Page>, field: &str, text: &str) {
    harness.get_by_label(field).focus();
    harness.run_steps(1);
    harness.get_by_label(field).type_text(text);
    harness.run_steps(2);
}

fn created(harness: Harness<'_, Page>) -> (MachineFolder, Then) {
    match harness.into_state().outcome {
        Some(Outcome::Created(folder, then)) => (folder, then),
        _ => panic!("nothing was created"),
    }
}

#[test]
fn an_iso_becomes_a_machine_that_starts_with_two_clicks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("debian-12.5.0-amd64-netinst.iso");
    std::fs::write(&path, iso("Debian 12.5.0 amd64 n", 20, 20)).unwrap();
    let mut harness = page(folder.path());
    enter(&mut harness, "ISO file", path.to_str().unwrap());
    settle(&mut harness, |harness| harness.state().wizard.facts().is_some());
    assert_eq!(harness.state().wizard.name, "Debian 12.5.0");
    harness.get_by_label("Create and start").click();
    settle(&mut harness, |harness| harness.state().outcome.is_some());
    let (machine_folder, then) = created(harness);
    let machine = machine_folder.load().unwrap();
    assert_eq!(then, Then::Start);
    assert_eq!((machine.name.as_str(), machine.cpus, machine.memory_mib), ("Debian 12.5.0", 2, 2048));
    assert_eq!(machine.cdroms[0].medium.as_deref(), Some(path.canonicalize().unwrap().as_path()));
    assert!(machine_folder.path().join(&machine.disks[0].file).is_file());
}

#[test]
fn what_is_wrong_is_told_beside_the_field_and_nothing_can_be_created() {
    let folder = tempfile::tempdir().unwrap();
    let mut harness = page(folder.path());
    enter(&mut harness, "ISO file", folder.path().to_str().unwrap());
    settle(&mut harness, |harness| harness.query_by_label("The ISO cannot be used").is_some());
    harness.state_mut().wizard.iso.clear();
    enter(&mut harness, "Name", "a/b");
    settle(&mut harness, |harness| harness.query_by_label("The name cannot be used").is_some());
    harness.state_mut().wizard.name = "big".into();
    harness.state_mut().wizard.memory_mib = 10 << 20;
    // Beside the field, and beside the buttons that it keeps from working.
    settle(&mut harness, |harness| {
        harness.query_all_by_label_contains("10.0 TiB of memory is more than this computer has").count() == 2
    });
    harness.get_by_label("Create and start").click();
    harness.run_steps(3);
    assert!(harness.state().outcome.is_none() && harness.state().wizard.creating.is_none());
    assert!(!folder.path().join("machines").exists());
}

#[test]
fn a_dropped_file_is_the_iso() {
    #[derive(Debug)]
    struct Dropped(std::path::PathBuf);
    impl egui::DroppedFile for Dropped {
        fn path(&self) -> &Path {
            &self.0
        }
        fn bytes(&self) -> Result<Vec<u8>, String> {
            Err("only its path counts".into())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("my disc.iso");
    std::fs::write(&path, iso("X", 20, 20)).unwrap();
    let mut harness = page(folder.path());
    harness.input_mut().dropped_files.push(std::sync::Arc::new(Dropped(path.clone())));
    settle(&mut harness, |harness| harness.state().wizard.facts().is_some());
    assert_eq!(harness.state().wizard.name, "my disc");
}

#[test]
fn escape_leaves_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let mut harness = page(folder.path());
    harness.key_press(egui::Key::Escape);
    harness.run_steps(2);
    assert!(matches!(harness.state().outcome, Some(Outcome::Cancelled)));
}

#[test]
fn the_same_machine_can_be_made_in_a_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let mut wizard = Wizard::new(Library::at(folder.path().join("machines"), folder.path().join("run")), HOST);
    wizard.name = "Ann's Debian".into();
    wizard.iso = "/isos/debian 12.iso".into();
    let commands = wizard.as_commands();
    let made = r"bellglass create 'Ann'\''s Debian' --iso '/isos/debian 12.iso' --cpus 2 --memory 2048M --disk 20G";
    assert_eq!(commands, format!(r"{made} && bellglass run 'Ann'\''s Debian'"));
}
