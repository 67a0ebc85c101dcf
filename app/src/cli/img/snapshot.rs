//! `snapshot`: the snapshots inside an image.

use std::time::{SystemTime, UNIX_EPOCH};

use engine_disk::{NewSnapshot, SnapshotInfo};
use serde_json::{Value, json};

use super::info::one_file;
use super::options::{Known, Options};
use super::source::{How, Source};
use super::units::short_size;
use super::{Failure, say};

pub const SYNOPSIS: &str =
    "[--object secret,id=…] [--image-opts] [-U] [-q] [-f fmt] [-l | -a snapshot | -c snapshot | -d snapshot] filename";

pub fn run(arguments: &[String]) -> Result<u8, Failure> {
    let known = Known { short: "la:c:d:qUf:", long: &["object=", "image-opts", "force-share"] };
    let options = Options::parse(arguments, &known)?;
    let actions: Vec<(&str, &str)> = options.in_order().filter(|(name, _)| ["l", "a", "c", "d"].contains(name)).collect();
    if actions.len() > 1 {
        return Err(Failure::usage("Cannot mix '-l', '-a', '-c', '-d'"));
    }
    let source = Source::named(one_file(&options)?, options.value("f"), options.has("image-opts"))?;
    let (action, name) = actions.first().copied().unwrap_or(("l", ""));
    if action == "l" {
        let image = source.open(&How::reading().asked_by(&options)?)?;
        let snapshots = image.snapshots();
        if !snapshots.is_empty() {
            say!("Snapshot list:\n{}", table(&snapshots));
        }
        return Ok(0);
    }
    let image = source.open(&How::writing().asked_by(&options)?)?;
    match action {
        "c" => {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let taken = (u32::try_from(since.as_secs()).unwrap_or(u32::MAX), since.subsec_nanos());
            let snapshot = NewSnapshot { name: name.to_owned(), taken, ..NewSnapshot::default() };
            image.create_snapshot(&snapshot).map_err(|error| could_not("create", name, error))?;
        }
        "a" => image.apply_snapshot(name).map_err(|error| could_not("apply", name, error))?,
        _ => image.delete_snapshot(name).map_err(|error| could_not("delete", name, error))?,
    }
    Ok(0)
}

fn could_not(doing: &str, name: &str, error: engine_disk::DiskError) -> Failure {
    Failure::new(format!("Could not {doing} snapshot '{name}': {error}"))
}

/// The list as a table for people.
pub fn table(snapshots: &[SnapshotInfo]) -> String {
    let mut text = format!("{:<10}{:<17}{:>8}{:>20}{:>13}{:>11}\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT");
    for snapshot in snapshots {
        let millis = snapshot.vm_clock_nanos / 1_000_000;
        let seconds = millis / 1000;
        let clock = format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, millis % 1000);
        let instructions = snapshot.instructions.map(|count| count.to_string()).unwrap_or_default();
        let (id, name) = (&snapshot.id, &snapshot.name);
        let size = short_size(snapshot.vm_state_size);
        let date = date_text(snapshot.taken.0);
        text += &format!("{id:<9} {name:<16} {size:>8} {date:>19} {clock:>12} {instructions:>10}\n");
    }
    text
}

/// Seconds since 1970 as a date of the place where we are.
fn date_text(seconds: u32) -> String {
    let date = chrono::DateTime::from_timestamp(seconds.into(), 0).unwrap_or_default();
    date.with_timezone(&chrono::Local).format("%Y-%m-%d %H:%M:%S").to_string()
}

/// One snapshot for programs.
pub fn json(snapshot: &SnapshotInfo) -> Value {
    let mut value = json!({
        "id": snapshot.id,
        "name": snapshot.name,
        "vm-state-size": snapshot.vm_state_size,
        "date-sec": snapshot.taken.0,
        "date-nsec": snapshot.taken.1,
        "vm-clock-sec": snapshot.vm_clock_nanos / 1_000_000_000,
        "vm-clock-nsec": snapshot.vm_clock_nanos % 1_000_000_000,
    });
    if let (Some(count), Some(object)) = (snapshot.instructions, value.as_object_mut()) {
        object.insert("icount".into(), json!(count));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_a_row_as_qemu_prints_it() {
        let snapshot = SnapshotInfo { id: "1".into(), name: "foo".into(), instructions: Some(0), ..SnapshotInfo::default() };
        let text = table(&[snapshot]);
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT"));
        let row = lines.next().unwrap();
        assert!(row.starts_with("1         foo                   0 B "), "{row}");
        assert!(row.ends_with(" 00:00:00.000          0"), "{row}");
    }
}
