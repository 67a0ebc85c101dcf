//! Which footer counts: the copy at the start may be damaged, or be what a guest has written there.

use super::*;
use crate::open::Chain;
use crate::sim_file::{CrashImages, SimFile};

const SIZE: u64 = 160 << 10;

/// A disk with one block stored, and noise where its copy of the footer should be.
fn without_copy() -> Vec<u8> {
    let file = Arc::new(SimFile::new(Vec::new()));
    create_small(&*file, SIZE);
    open_file(&file, Access::ReadWrite).unwrap().write_at(0, &[1; 512]).unwrap();
    let mut content = file.content();
    content[..8].fill(0xa5);
    content
}

fn open_file(file: &Arc<SimFile>, access: Access) -> Result<Arc<dyn DiskImage>, DiskError> {
    open(Opening::of(Arc::clone(file) as _, access, &Chain::default()))
}

#[test]
fn the_copy_is_made_again_before_the_footer_at_the_end_moves_on() {
    let content = without_copy();
    let file = Arc::new(SimFile::new(content.clone()));
    drop(open_file(&file, Access::ReadOnly).unwrap());
    assert!(file.content() == content, "looking changes nothing");
    file.start_recording();
    let disk = open_file(&file, Access::ReadWrite).unwrap();
    disk.write_at(SIZE - 512, &[2; 512]).unwrap();
    drop(disk);
    let crashed = Arc::new(SimFile::new(Vec::new()));
    let crashes = CrashImages { seed: 1, pairs: 50, random_sets: 50, ..CrashImages::default() };
    crashes.visit_on(&crashed, &content, &file.log(), |crashed_at| {
        let disk = open_file(&crashed, Access::ReadWrite).unwrap_or_else(|error| panic!("crash at {crashed_at}: {error}"));
        let mut found = [0; 512];
        disk.read_at(0, &mut found).unwrap();
        assert_eq!(found, [1; 512], "crash at {crashed_at}");
    });
}

#[test]
fn a_block_that_runs_into_the_only_footer_is_not_written_to() {
    let mut content = without_copy();
    // The footer moves up into the block's last sector.
    let footer = content[content.len() - FOOTER_LENGTH..].to_vec();
    content.truncate(content.len() - 2 * FOOTER_LENGTH);
    content.extend(footer);
    let file = Arc::new(SimFile::new(content));
    assert!(matches!(open_file(&file, Access::ReadWrite), Err(DiskError::Damaged { .. })));
    open_file(&file, Access::ReadOnly).unwrap();
}

#[test]
fn a_fixed_disk_stays_one_whatever_a_guest_writes_to_its_first_sectors() {
    for kind in [FIXED, DYNAMIC, DIFFERENCING] {
        let file = Arc::new(SimFile::new(Vec::new()));
        let preallocation = crate::Preallocation::Full;
        let options = crate::CreateOptions { preallocation, ..crate::CreateOptions::new(Format::Vhd, SIZE) };
        create::create(&*file, &options).unwrap();
        // The beginning of a larger disk, with all that such a one needs.
        let other = Arc::new(SimFile::new(Vec::new()));
        create_small(&*other, 2 * SIZE);
        let mut content = other.content();
        let mut footer = Footer { kind, ..Footer::new(2 * SIZE, kind) };
        footer.header_offset = FOOTER_LENGTH as u64;
        footer.seal();
        content[..FOOTER_LENGTH].copy_from_slice(&footer.bytes);
        content.truncate(SIZE as usize);
        let disk = open_file(&file, Access::ReadWrite).unwrap();
        disk.write_at(0, &content).unwrap();
        drop(disk);
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let disk = open_file(&file, access).unwrap();
            let mut found = vec![0; content.len()];
            disk.read_at(0, &mut found).unwrap();
            assert!(disk.len() == SIZE && found == content && disk.info().cluster_size.is_none(), "kind {kind}");
        }
    }
}

#[test]
fn a_copy_that_tells_of_a_fixed_disk_is_no_copy() {
    // The disk's own content would lie over it, and the first write to its beginning would leave a file that nobody opens.
    let file = Arc::new(SimFile::new(Vec::new()));
    create_small(&*file, SIZE);
    let mut content = file.content();
    let mut footer = Footer::new(4096, FIXED);
    footer.seal();
    content[..FOOTER_LENGTH].copy_from_slice(&footer.bytes);
    // One byte more, so that no footer ends the file.
    content.push(0);
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let file = Arc::new(SimFile::new(content.clone()));
        assert!(matches!(open_file(&file, access), Err(DiskError::WrongFormat { .. })));
        assert!(file.content() == content);
    }
}
