//! A machine's window by its labels, over the test picture; the picture itself is compared pixel by pixel.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use egui_kittest::Harness;
use egui_kittest::kittest::Queryable as _;
use engine_session::{EndReason, RunState, Session};

use super::{GuestInput, Shown, VmWindow, test_session};

fn window(width: u32, height: u32) -> (Harness<'static, VmWindow>, Session) {
    let session = test_session(width, height).unwrap();
    for _ in 0..500 {
        if session.state() == RunState::Running {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let shown = Shown { session: session.clone(), title: "Test".into(), folder: None };
    let input = Rc::new(RefCell::new(GuestInput::new(session.clone())));
    let harness = Harness::builder().with_size([900.0, 700.0]).wgpu().build_eframe(move |cc| VmWindow::new(cc, shown, input));
    (harness, session)
}

fn settle(harness: &mut Harness<'_, VmWindow>, until: impl Fn(&Harness<'_, VmWindow>) -> bool) {
    for _ in 0..500 {
        harness.run_steps(2);
        if until(harness) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("it never came to that");
}

#[test]
fn pause_resume_and_power_off_by_their_buttons() {
    let (mut harness, session) = window(640, 480);
    harness.run_steps(2);
    harness.get_by_label("Pause").click();
    settle(&mut harness, |harness| harness.query_by_label("Resume").is_some());
    assert_eq!(session.state(), RunState::Paused);
    harness.get_by_label("Resume").click();
    settle(&mut harness, |harness| harness.query_by_label("Pause").is_some());
    harness.get_by_label("Power").click();
    harness.run_steps(3);
    harness.get_by_label_contains("Power off…").click();
    harness.run_steps(3);
    harness.get_by_label("Power off").click();
    settle(&mut harness, |harness| harness.state().ended.is_some());
    assert_eq!(harness.state().ended, Some(EndReason::PoweredOff));
}

#[test]
fn a_medium_that_is_not_there_is_told_and_the_machine_goes_on() {
    let (mut harness, session) = window(640, 480);
    harness.state_mut().insert_medium("/nowhere/at/all.iso".into());
    settle(&mut harness, |harness| harness.query_by_label("The CD was not inserted.").is_some());
    harness.get_by_label("There is no such file: /nowhere/at/all.iso");
    assert_eq!(session.state(), RunState::Running);
}

#[test]
fn a_failure_that_was_made_good_is_not_shown_any_longer() {
    let (mut harness, _session) = window(640, 480);
    let folder = tempfile::tempdir().unwrap();
    let iso = folder.path().join("real.iso");
    std::fs::write(&iso, [0; 2048]).unwrap();
    harness.state_mut().insert_medium("/nowhere/at/all.iso".into());
    harness.state_mut().insert_medium("/nowhere/else.iso".into());
    settle(&mut harness, |harness| harness.query_by_label("There is no such file: /nowhere/else.iso").is_some());
    harness.get_by_label("The CD was not inserted.");
    harness.state_mut().insert_medium(iso);
    settle(&mut harness, |harness| harness.query_by_label("The CD was not inserted.").is_none());
}

#[test]
fn the_guests_picture_is_shown_pixel_by_pixel() {
    let (mut harness, session) = window(320, 200);
    harness.state_mut().scale = super::ScaleMode::Exact;
    harness.run_steps(3);
    let placement = harness.state().placement.unwrap();
    assert_eq!(placement.scale(), 1.0);
    let image = harness.render().unwrap();
    let picture = session.screen().picture();
    for (x, y) in [(0, 0), (1, 1), (160, 100), (319, 0), (318, 198), (0, 199), (25, 25), (200, 120)] {
        let [_, red, green, blue] = picture.pixels[(y * picture.width + x) as usize].to_be_bytes();
        let shown = image.get_pixel((placement.picture.left as u32) + x, (placement.picture.top as u32) + y);
        assert_eq!(shown.0, [red, green, blue, 255], "at {x}, {y}");
    }
}

#[test]
fn what_a_device_draws_later_appears() {
    let (mut harness, session) = window(320, 200);
    harness.state_mut().scale = super::ScaleMode::Integer;
    harness.run_steps(3);
    session.screen().draw(|picture, damage| {
        picture.pixels[100 * 320 + 160] = 0x00ff_0080;
        damage.add(engine_display::Rect { left: 160, top: 100, right: 161, bottom: 101 });
    });
    harness.run_steps(2);
    let placement = harness.state().placement.unwrap();
    let scale = placement.scale();
    assert_eq!(scale, 2.0);
    let image = harness.render().unwrap();
    // All four display pixels of the guest's one, and none beside it.
    let (left, top) = (placement.picture.left as u32 + 320, placement.picture.top as u32 + 200);
    for (x, y) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
        assert_eq!(image.get_pixel(left + x, top + y).0, [255, 0, 128, 255]);
    }
    assert_ne!(image.get_pixel(left - 1, top).0, [255, 0, 128, 255]);
    assert_ne!(image.get_pixel(left + 2, top).0, [255, 0, 128, 255]);
}

#[test]
fn chords_work_and_a_dialog_keeps_the_keyboard_from_the_guest() {
    let (mut harness, _session) = window(640, 480);
    harness.run_steps(2);
    harness.state_mut().carry_out(&egui::Context::default(), super::UiCommand::TypeText);
    harness.run_steps(3);
    harness.get_by_label("Type text");
    assert_eq!(harness.state().input.borrow().keyboard(), super::guest_input::Keyboard::Window);
    harness.get_by_label("Text").type_text("ls");
    harness.run_steps(2);
    harness.get_by_label("Type").click();
    settle(&mut harness, |harness| harness.state().dialog.is_none());
    harness.run_steps(3);
    assert_eq!(harness.state().input.borrow().keyboard(), super::guest_input::Keyboard::Guest);
}

#[test]
fn the_insert_question_opens_in_its_field_and_enter_inserts() {
    let (mut harness, _session) = window(640, 480);
    harness.run_steps(2);
    harness.state_mut().carry_out(&egui::Context::default(), super::UiCommand::InsertMedium);
    harness.run_steps(3);
    harness.get_by_label("ISO file").type_text("/nowhere/at/all.iso");
    harness.run_steps(2);
    harness.key_press(egui::Key::Enter);
    settle(&mut harness, |harness| harness.query_by_label("There is no such file: /nowhere/at/all.iso").is_some());
    assert!(harness.state().dialog.is_none());
}
