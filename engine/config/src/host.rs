//! What the computer we run on can give to a machine.

use rustix::fs::statvfs;
use std::path::Path;

/// The host's resources. Tests make their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// RAM in MiB.
    pub memory_mib: u64,
    /// RAM in MiB that could be given away now without pushing others out.
    pub available_mib: u64,
    /// Processors.
    pub cpus: u32,
}

impl Host {
    /// This computer. Where the kernel does not say, the figures are those of a small one.
    pub fn this_computer() -> Self {
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory_mib = meminfo_mib(&meminfo, "MemTotal:").unwrap_or(2048);
        Self {
            memory_mib,
            available_mib: meminfo_mib(&meminfo, "MemAvailable:").unwrap_or(memory_mib / 2),
            cpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        }
    }

    /// Bytes that may still be written where `path` is, or, if it does not exist yet, will be.
    pub fn free_bytes(path: &Path) -> Option<u64> {
        let existing = path.ancestors().find(|ancestor| ancestor.exists())?;
        let fs = statvfs(existing).ok()?;
        Some(fs.f_bavail.saturating_mul(fs.f_frsize))
    }
}

fn meminfo_mib(meminfo: &str, field: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(field))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read_by_field() {
        let text = "MemTotal:       24585216 kB\nMemFree: 1 kB\nMemAvailable:   20480000 kB\n";
        assert_eq!(meminfo_mib(text, "MemTotal:"), Some(24_009));
        assert_eq!(meminfo_mib(text, "MemAvailable:"), Some(20_000));
        assert_eq!(meminfo_mib(text, "SwapTotal:"), None);
    }

    #[test]
    fn free_space_of_a_folder_to_be_made_is_that_of_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let free = Host::free_bytes(&folder.path().join("not/yet/there")).unwrap();
        assert!(free > 0);
    }
}
