//! Why KVM does not run the machine although it was asked for. What the person can change about this computer is said
//! first; when nothing of it stands in the way, the reason is ours.

use std::fs::File;
use std::io::ErrorKind;

/// What was found out about this computer.
struct Findings {
    /// `/proc/cpuinfo`.
    cpuinfo: String,
    /// How opening `/dev/kvm` went.
    device: Result<(), ErrorKind>,
}

/// A sentence for the note on standard error.
pub fn why_not() -> String {
    let device = File::options().read(true).write(true).open("/dev/kvm").map(drop).map_err(|error| error.kind());
    let findings = Findings { cpuinfo: std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), device };
    format!("KVM is not used: {} The software CPU runs the machine instead.", reason(&findings))
}

fn reason(findings: &Findings) -> &'static str {
    if !cfg!(target_arch = "x86_64") {
        return "this computer's processor is of another kind than the machine's.";
    }
    let flags = findings.cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |name| flags.split_whitespace().any(|flag| flag == name);
    match findings.device {
        Ok(()) => "this computer offers it, but this version of Bellglass cannot use it yet.",
        Err(ErrorKind::PermissionDenied) => {
            "you may not open /dev/kvm (your account would have to be in the group kvm), and this version of Bellglass cannot use it yet."
        }
        Err(ErrorKind::NotFound) if has("hypervisor") && !has("vmx") && !has("svm") => {
            "this computer is itself a virtual machine that was not given hardware virtualization (no vmx or svm, no /dev/kvm)."
        }
        Err(ErrorKind::NotFound) if !has("vmx") && !has("svm") => {
            "this computer's processor has no hardware virtualization, or it is switched off in the firmware's settings (no vmx or svm, no /dev/kvm)."
        }
        Err(ErrorKind::NotFound) => {
            "the processor has hardware virtualization, but there is no /dev/kvm (the kernel module kvm_intel or kvm_amd is not loaded)."
        }
        Err(_) => "/dev/kvm could not be opened; another program may hold the processor's virtualization.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_named_is_the_one_found() {
        let found =
            |flags: &str, device| reason(&Findings { cpuinfo: format!("processor : 0\nflags\t\t: fpu {flags} sse\n"), device });
        assert!(found("vmx", Ok(())).contains("this version of Bellglass"));
        assert!(found("svm", Err(ErrorKind::PermissionDenied)).contains("group kvm"));
        assert!(found("hypervisor", Err(ErrorKind::NotFound)).contains("itself a virtual machine"));
        assert!(found("", Err(ErrorKind::NotFound)).contains("firmware's settings"));
        assert!(found("vmx", Err(ErrorKind::NotFound)).contains("not loaded"));
        assert!(found("vmx", Err(ErrorKind::ResourceBusy)).contains("another program"));
    }
}
