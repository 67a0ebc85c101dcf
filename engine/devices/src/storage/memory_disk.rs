//! A disk in memory for the tests of controllers: it remembers what was flushed and discarded.

use engine_bus::{DriveRules, Medium};
use engine_disk::{DiskError, DiskImage, Extent, ExtentKind, Format};
use std::sync::{Arc, Mutex};

pub struct MemoryDisk {
    pub bytes: Mutex<Vec<u8>>,
    pub flushes: Mutex<u32>,
    pub discards: Mutex<Vec<(u64, u64)>>,
    fails: bool,
}

impl MemoryDisk {
    pub fn new(len: usize) -> Arc<Self> {
        // Each 512-byte sector is filled with its own number.
        let bytes = (0..len).map(|at| (at / 512) as u8).collect();
        Arc::new(Self { bytes: Mutex::new(bytes), flushes: Mutex::default(), discards: Mutex::default(), fails: false })
    }

    pub fn broken(len: usize) -> Arc<Self> {
        Arc::new(Self { bytes: Mutex::new(vec![0; len]), flushes: Mutex::default(), discards: Mutex::default(), fails: true })
    }
}

impl DiskImage for MemoryDisk {
    fn len(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        if self.fails {
            return Err(DiskError::NotFound { path: "broken".into() });
        }
        buffer.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..buffer.len()]);
        Ok(())
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn flush(&self) -> Result<(), DiskError> {
        *self.flushes.lock().unwrap() += 1;
        Ok(())
    }
    fn discard(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        self.discards.lock().unwrap().push((offset, length));
        Ok(())
    }
    fn write_zeroes(&self, _offset: u64, _length: u64) -> Result<(), DiskError> {
        Ok(())
    }
    fn read_only(&self) -> bool {
        false
    }
    fn format(&self) -> Format {
        Format::Raw
    }
    fn extent_at(&self, _offset: u64) -> Result<Extent, DiskError> {
        Ok(Extent::new(ExtentKind::Data, self.len()))
    }
}

pub fn medium(image: Arc<MemoryDisk>) -> Option<Medium> {
    Some(Medium { image, read_only: false, title: "test".into(), rules: DriveRules::default() })
}
