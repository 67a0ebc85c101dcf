//! What `-o` can say of a new file, format by format: one row an option, which parses it and prints it.

use std::time::Duration;

use engine_disk::{Backing, Compression, CreateOptions, Format, NewDataFile, Preallocation, VmdkAdapter, VmdkKind};

use crate::cli::qemu::nearest;
use crate::cli::secrets::Secrets;

use super::source::{format_by_name, key_values};
use super::units::parse_size;
use super::{Failure, say};

/// An option of a format.
struct FormatOption {
    name: &'static str,
    /// What its value looks like, as QEMU's lists say it.
    value: &'static str,
    /// What it means.
    meaning: &'static str,
    set: fn(&mut NewFile, &str) -> Option<()>,
    /// Its value for the line that says what is made; `None` where that line is silent.
    show: fn(&NewFile) -> Option<String>,
}

/// A file that is to be made, as far as the command line has said.
#[derive(Clone, Debug)]
pub struct NewFile {
    /// What the engine needs; its size is 0 until one was given.
    pub options: CreateOptions,
    /// The size that was given.
    pub size: Option<u64>,
    /// The base image's name.
    pub backing: Option<String>,
    /// Its format's word.
    pub backing_format: Option<String>,
    /// The name of the file that is to hold the data.
    pub data_file: Option<String>,
    /// Whether that file must read as the disk does.
    pub data_file_raw: Option<bool>,
    /// The secret that will unlock it, by its name.
    pub key_secret: Option<String>,
    /// Whether `encrypt.format` was given.
    is_encrypted: bool,
    preallocation_is_given: bool,
    compat_is_given: bool,
    subformat_is_given: bool,
    adapter_is_given: bool,
    block_state_is_given: bool,
    /// Whether a VMDK is to be for VMware's hardware version 6.
    is_compat6: bool,
    /// The version of VMware's hardware that was given.
    hardware_version: Option<u32>,
}

const SIZE: FormatOption = FormatOption {
    name: "size",
    value: "<size>",
    meaning: "Virtual disk size",
    set: |file, text| {
        file.size = Some(parse_size(text)?);
        Some(())
    },
    show: |file| file.size.map(|size| size.to_string()),
};

const PREALLOCATION: FormatOption = FormatOption {
    name: "preallocation",
    value: "<str>",
    meaning: "Preallocation mode (allowed values: off, metadata, falloc, full)",
    set: |file, text| {
        file.options.preallocation = preallocation(text)?;
        file.preallocation_is_given = true;
        Some(())
    },
    show: |file| file.preallocation_is_given.then(|| preallocation_word(file.options.preallocation).into()),
};

const BACKING_FILE: FormatOption = FormatOption {
    name: "backing_file",
    value: "<str>",
    meaning: "File name of a base image",
    set: |file, text| {
        file.backing = Some(text.to_owned());
        Some(())
    },
    show: |file| file.backing.clone(),
};

const BACKING_FORMAT: FormatOption = FormatOption {
    name: "backing_fmt",
    value: "<str>",
    meaning: "Image format of the base image",
    set: |file, text| {
        file.backing_format = Some(text.to_owned());
        Some(())
    },
    show: |file| file.backing_format.clone(),
};

/// An option of encryption that has one value here, which QEMU takes by itself.
const fn usual(
    name: &'static str,
    value: &'static str,
    meaning: &'static str,
    set: fn(&mut NewFile, &str) -> Option<()>,
) -> FormatOption {
    FormatOption { name, value, meaning, set, show: |_| None }
}

fn only(text: &str, usual: &str) -> Option<()> {
    (text == usual).then_some(())
}

fn set_iter_time(file: &mut NewFile, text: &str) -> Option<()> {
    file.options.passphrase_time = Duration::from_millis(text.parse().ok()?);
    Some(())
}

const ITER_TIME: &str = "Time to spend in PBKDF in milliseconds";
const CIPHER_ALG: &str = "Name of encryption cipher algorithm (aes-256)";
const CIPHER_MODE: &str = "Name of encryption cipher mode (xts)";
const HASH_ALG: &str = "Name of encryption hash algorithm (sha256)";
const IVGEN_ALG: &str = "Name of IV generator algorithm (plain64)";
const IVGEN_HASH_ALG: &str = "Name of IV generator hash algorithm (plain64 has none)";

/// What can be asked of the file itself, whatever its format. These are hints to some file systems, and change nothing here.
const OF_ANY_FILE: &[FormatOption] = &[
    usual("nocow", "<bool (on/off)>", "Turn off copy-on-write (a hint, not followed here)", |_, text| switch(text).map(drop)),
    usual("extent_size_hint", "<size>", "Extent size hint for the file (not followed here)", |_, text| {
        parse_size(text).map(drop)
    }),
];

/// In QEMU these formats hand it to the file, which is empty at that time: it has no effect there either.
const PREALLOCATION_OF_FILE: FormatOption = usual(
    "preallocation",
    "<str>",
    "Preallocation mode of the file (off, falloc, full; without effect: the file is empty then)",
    |_, text| preallocation(text).filter(|mode| *mode != Preallocation::Metadata).map(drop),
);

const RAW: &[FormatOption] = &[SIZE, PREALLOCATION];

/// In the order in which QEMU says them when a file is made.
const QCOW2: &[FormatOption] = &[
    FormatOption {
        name: "encrypt.format",
        value: "<str>",
        meaning: "Encrypt the image, format choices: 'luks'",
        set: |file, text| {
            file.is_encrypted = text == "luks";
            file.is_encrypted.then_some(())
        },
        show: |file| file.is_encrypted.then(|| "luks".into()),
    },
    FormatOption {
        name: "encrypt.key-secret",
        value: "<str>",
        meaning: "ID of the secret that unlocks the image",
        set: |file, text| {
            file.key_secret = Some(text.to_owned());
            Some(())
        },
        show: |file| file.key_secret.clone(),
    },
    usual("encrypt.iter-time", "<num>", ITER_TIME, set_iter_time),
    usual("encrypt.cipher-alg", "<str>", CIPHER_ALG, |_, text| only(text, "aes-256")),
    usual("encrypt.cipher-mode", "<str>", CIPHER_MODE, |_, text| only(text, "xts")),
    usual("encrypt.hash-alg", "<str>", HASH_ALG, |_, text| only(text, "sha256")),
    usual("encrypt.ivgen-alg", "<str>", IVGEN_ALG, |_, text| only(text, "plain64")),
    usual("encrypt.ivgen-hash-alg", "<str>", IVGEN_HASH_ALG, |_, _| Some(())),
    usual("encryption", "<bool (on/off)>", "QEMU's old encryption, which is not made here (off)", |_, text| only(text, "off")),
    FormatOption {
        name: "cluster_size",
        value: "<size>",
        meaning: "qcow2 cluster size",
        set: |file, text| {
            file.options.qcow2.cluster_size = parse_size(text)?;
            Some(())
        },
        show: |file| Some(file.options.qcow2.cluster_size.to_string()),
    },
    PREALLOCATION,
    FormatOption {
        name: "extended_l2",
        value: "<bool (on/off)>",
        meaning: "Extended L2 tables",
        set: |file, text| {
            file.options.qcow2.extended_l2 = switch(text)?;
            Some(())
        },
        show: |file| Some(switch_word(file.options.qcow2.extended_l2).into()),
    },
    FormatOption {
        name: "compression_type",
        value: "<str>",
        meaning: "Compression method used for image cluster compression",
        set: |file, text| {
            file.options.qcow2.compression = match text {
                "zlib" => Compression::Deflate,
                "zstd" => Compression::Zstd,
                _ => return None,
            };
            Some(())
        },
        show: |file| Some(if file.options.qcow2.compression == Compression::Zstd { "zstd" } else { "zlib" }.into()),
    },
    SIZE,
    FormatOption {
        name: "compat",
        value: "<str>",
        meaning: "Compatibility level (v2 [0.10] or v3 [1.1])",
        set: |file, text| {
            file.options.qcow2.version = match text {
                "0.10" | "v2" => 2,
                "1.1" | "v3" => 3,
                _ => return None,
            };
            file.compat_is_given = true;
            Some(())
        },
        show: |file| file.compat_is_given.then(|| if file.options.qcow2.version == 2 { "0.10" } else { "1.1" }.into()),
    },
    BACKING_FILE,
    BACKING_FORMAT,
    FormatOption {
        name: "data_file",
        value: "<str>",
        meaning: "File name of an external data file",
        set: |file, text| {
            file.data_file = Some(text.to_owned());
            Some(())
        },
        show: |file| file.data_file.clone(),
    },
    FormatOption {
        name: "data_file_raw",
        value: "<bool (on/off)>",
        meaning: "The external data file must stay valid as a raw image",
        set: |file, text| {
            file.data_file_raw = Some(switch(text)?);
            Some(())
        },
        show: |file| file.data_file_raw.map(|raw| switch_word(raw).into()),
    },
    FormatOption {
        name: "lazy_refcounts",
        value: "<bool (on/off)>",
        meaning: "Postpone refcount updates",
        set: |file, text| {
            file.options.qcow2.lazy_refcounts = switch(text)?;
            Some(())
        },
        show: |file| Some(switch_word(file.options.qcow2.lazy_refcounts).into()),
    },
    FormatOption {
        name: "refcount_bits",
        value: "<num>",
        meaning: "Width of a reference count entry in bits",
        set: |file, text| {
            file.options.qcow2.refcount_bits = text.parse().ok()?;
            Some(())
        },
        show: |file| Some(file.options.qcow2.refcount_bits.to_string()),
    },
];

/// QEMU makes no differencing disks of these three formats; we do.
const VDI: &[FormatOption] = &[
    SIZE,
    BACKING_FILE,
    BACKING_FORMAT,
    FormatOption {
        name: "static",
        value: "<bool (on/off)>",
        meaning: "VDI static (pre-allocated) image",
        set: |file, text| {
            file.options.preallocation = match text {
                "on" => Preallocation::Metadata,
                "off" => Preallocation::Off,
                _ => return None,
            };
            Some(())
        },
        show: |file| Some(if file.options.preallocation == Preallocation::Off { "off" } else { "on" }.into()),
    },
    PREALLOCATION_OF_FILE,
];

/// VHD and VHDX: growing, or as large as the disk from the start.
const DYNAMIC_OR_FIXED: FormatOption = FormatOption {
    name: "subformat",
    value: "<str>",
    meaning: "Type of virtual hard disk format. Supported formats are {dynamic (default) | fixed}",
    set: |file, text| {
        file.options.preallocation = match text {
            "fixed" => Preallocation::Metadata,
            "dynamic" => Preallocation::Off,
            _ => return None,
        };
        file.subformat_is_given = true;
        Some(())
    },
    show: |file| {
        let word = if file.options.preallocation == Preallocation::Off { "dynamic" } else { "fixed" };
        file.subformat_is_given.then(|| word.into())
    },
};

const VHD: &[FormatOption] = &[
    SIZE,
    BACKING_FILE,
    BACKING_FORMAT,
    DYNAMIC_OR_FIXED,
    FormatOption {
        name: "force_size",
        value: "<bool (on/off)>",
        meaning: "Make the disk exactly as large as asked for (always done here)",
        set: |_, text| ["on", "off"].contains(&text).then_some(()),
        show: |_| None,
    },
    PREALLOCATION_OF_FILE,
];

const LUKS: &[FormatOption] = &[
    SIZE,
    FormatOption {
        name: "key-secret",
        value: "<str>",
        meaning: "ID of the secret that unlocks the image",
        set: |file, text| {
            file.key_secret = Some(text.to_owned());
            Some(())
        },
        show: |file| file.key_secret.clone(),
    },
    usual("iter-time", "<num>", ITER_TIME, set_iter_time),
    usual("cipher-alg", "<str>", CIPHER_ALG, |_, text| only(text, "aes-256")),
    usual("cipher-mode", "<str>", CIPHER_MODE, |_, text| only(text, "xts")),
    usual("hash-alg", "<str>", HASH_ALG, |_, text| only(text, "sha256")),
    usual("ivgen-alg", "<str>", IVGEN_ALG, |_, text| only(text, "plain64")),
    usual("ivgen-hash-alg", "<str>", IVGEN_HASH_ALG, |_, _| Some(())),
    PREALLOCATION,
];

const VHDX: &[FormatOption] = &[
    SIZE,
    BACKING_FILE,
    BACKING_FORMAT,
    FormatOption {
        name: "log_size",
        value: "<size>",
        meaning: "Log size; min 1MB",
        set: |file, text| {
            file.options.vhdx.log_size = parse_size(text)?;
            Some(())
        },
        show: |file| Some(file.options.vhdx.log_size.to_string()),
    },
    FormatOption {
        name: "block_size",
        value: "<size>",
        meaning: "Block size, a power of two; min 1MB, max 256MB. 0 means what suits the image size",
        set: |file, text| {
            file.options.vhdx.block_size = Some(parse_size(text)?).filter(|size| *size > 0);
            Some(())
        },
        show: |file| Some(file.options.vhdx.block_size.unwrap_or(0).to_string()),
    },
    FormatOption {
        name: "block_state_zero",
        value: "<bool (on/off)>",
        meaning: "Call blocks that were never written zeros instead of not present (off here, on in QEMU)",
        set: |file, text| {
            file.options.vhdx.absent_is_zero = switch(text)?;
            file.block_state_is_given = true;
            Some(())
        },
        show: |file| file.block_state_is_given.then(|| switch_word(file.options.vhdx.absent_is_zero).into()),
    },
    DYNAMIC_OR_FIXED,
    PREALLOCATION_OF_FILE,
];

const VMDK: &[FormatOption] = &[
    SIZE,
    BACKING_FILE,
    BACKING_FORMAT,
    FormatOption {
        name: "adapter_type",
        value: "<str>",
        meaning: "Virtual adapter type: ide (default), lsilogic, buslogic or legacyESX",
        set: |file, text| {
            file.options.vmdk.adapter = VmdkAdapter::ALL.into_iter().find(|adapter| adapter.name() == text)?;
            file.adapter_is_given = true;
            Some(())
        },
        show: |file| file.adapter_is_given.then(|| file.options.vmdk.adapter.name().into()),
    },
    FormatOption {
        name: "compat6",
        value: "<bool (on/off)>",
        meaning: "VMDK version 6 image",
        set: |file, text| {
            file.is_compat6 = switch(text)?;
            Some(())
        },
        show: |file| Some(switch_word(file.is_compat6).into()),
    },
    FormatOption {
        name: "hwversion",
        value: "<str>",
        meaning: "Version of VMware's virtual hardware, a number (4 if undefined)",
        set: |file, text| {
            file.hardware_version = if text == "undefined" { None } else { Some(text.parse().ok()?) };
            Some(())
        },
        show: |file| Some(file.hardware_version.map_or("undefined".into(), |version: u32| version.to_string())),
    },
    FormatOption {
        name: "toolsversion",
        value: "<str>",
        meaning: "Version of VMware's tools in the guest, a number",
        set: |file, text| {
            file.options.vmdk.tools_version = Some(text.parse().ok()?);
            Some(())
        },
        show: |file| file.options.vmdk.tools_version.map(|version| version.to_string()),
    },
    FormatOption {
        name: "subformat",
        value: "<str>",
        meaning: "monolithicSparse (default), monolithicFlat, twoGbMaxExtentSparse, twoGbMaxExtentFlat or streamOptimized",
        set: |file, text| {
            file.options.vmdk.kind = VmdkKind::ALL.into_iter().find(|kind| kind.name() == text)?;
            file.subformat_is_given = true;
            Some(())
        },
        show: |file| file.subformat_is_given.then(|| file.options.vmdk.kind.name().into()),
    },
    FormatOption {
        name: "zeroed_grain",
        value: "<bool (on/off)>",
        meaning: "Tell grains of zeros without storing them",
        set: |file, text| {
            file.options.vmdk.has_zero_grains = switch(text)?;
            Some(())
        },
        show: |file| file.options.vmdk.has_zero_grains.then(|| "on".into()),
    },
    PREALLOCATION_OF_FILE,
];

fn options_of(format: Format) -> &'static [FormatOption] {
    match format {
        Format::Qcow2 => QCOW2,
        Format::Vdi => VDI,
        Format::Vhd => VHD,
        Format::Vhdx => VHDX,
        Format::Vmdk => VMDK,
        Format::Luks => LUKS,
        _ => RAW,
    }
}

impl NewFile {
    /// A file of `format` with nothing said yet.
    pub fn new(format: Format) -> Self {
        let options = CreateOptions::new(format, 0);
        Self {
            options,
            size: None,
            backing: None,
            backing_format: None,
            data_file: None,
            data_file_raw: None,
            key_secret: None,
            is_encrypted: false,
            preallocation_is_given: false,
            compat_is_given: false,
            subformat_is_given: false,
            adapter_is_given: false,
            block_state_is_given: false,
            is_compat6: false,
            hardware_version: None,
        }
    }

    /// Takes one `-o` argument. `name` is the file's, for messages.
    pub fn take(&mut self, text: &str, name: &str) -> Result<(), Failure> {
        key_values(text).iter().try_for_each(|(key, value)| self.set(key, value, name))
    }

    /// Sets one option.
    pub fn set(&mut self, key: &str, value: &str, name: &str) -> Result<(), Failure> {
        let known = options_of(self.options.format).iter().chain(OF_ANY_FILE);
        let Some(option) = known.clone().find(|option| option.name == key) else {
            let names: Vec<&str> = known.map(|option| option.name).collect();
            let near = nearest(key, &names).map(|near| format!("; did you mean '{near}'?")).unwrap_or_default();
            return Err(Failure::new(format!("{name}: Invalid parameter '{key}'{near}")));
        };
        (option.set)(self, value).ok_or_else(|| {
            Failure::new(format!("{name}: Invalid value '{value}' for '{key}' ({}: {})", option.value, option.meaning))
        })
    }

    /// The line that says what is being made.
    pub fn announce(&self, name: &str) -> Result<(), Failure> {
        say!("Formatting '{name}', fmt={}", self.options.format.name());
        for option in options_of(self.options.format) {
            if let Some(value) = (option.show)(self) {
                say!(" {}={value}", option.name);
            }
        }
        say!("\n");
        Ok(())
    }

    /// What the engine needs; the size is rounded up to whole sectors.
    pub fn finished(&self, size: u64, secrets: &Secrets) -> Result<CreateOptions, Failure> {
        let backing = match (&self.backing, &self.backing_format) {
            (Some(name), Some(format)) => {
                Some(Backing { name: name.clone(), format: format_by_name(format, "Unknown backing file format")? })
            }
            (Some(_), None) => return Err(Failure::new("Backing file specified without backing format")),
            (None, _) => None,
        };
        let data_file = match (&self.data_file, self.data_file_raw) {
            (None, Some(true)) => return Err(Failure::new("data-file-raw requires data-file")),
            (name, raw) => name.clone().map(|name| NewDataFile { name, raw: raw == Some(true) }),
        };
        let size = size.checked_next_multiple_of(512).filter(|size| *size <= i64::MAX as u64);
        let size = size.ok_or_else(|| Failure::new("Image size must be less than 8 EiB!"))?;
        let passphrase = self.key_secret.as_ref().map(|id| secrets.get(id)).transpose()?;
        let needs_passphrase = self.is_encrypted || self.options.format == Format::Luks;
        if needs_passphrase && passphrase.is_none() {
            let prefix = if self.is_encrypted { "encrypt." } else { "" };
            return Err(Failure::new(format!("Parameter '{prefix}key-secret' is required for cipher")));
        }
        if !needs_passphrase && passphrase.is_some() {
            return Err(Failure::new("Parameter 'encrypt.format' is required with 'encrypt.key-secret'"));
        }
        let mut vmdk = self.options.vmdk;
        vmdk.hardware_version = match (self.is_compat6, self.hardware_version) {
            (true, Some(_)) => return Err(Failure::new("compat6 cannot be enabled with hwversion set")),
            (true, None) => 6,
            (false, given) => given.unwrap_or(vmdk.hardware_version),
        };
        Ok(CreateOptions { size, backing, data_file, passphrase, vmdk, ..self.options.clone() })
    }
}

/// A switch as QEMU writes it.
fn switch(text: &str) -> Option<bool> {
    match text {
        "on" => Some(true),
        "off" => Some(false),
        _ => None,
    }
}

fn switch_word(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
}

/// Whether `-o` asks for the list of options.
pub fn asks_for_help(text: &str) -> bool {
    text.split(',').any(|word| word == "help" || word == "?")
}

/// Prints the options of a format.
pub fn list(format: Format) -> Result<(), Failure> {
    say!("Supported {} options:\n", format.name());
    let mut options: Vec<&FormatOption> = options_of(format).iter().chain(OF_ANY_FILE).collect();
    options.sort_by_key(|option| option.name);
    for FormatOption { name, value, meaning, .. } in options {
        say!("  {:<22} - {meaning}\n", format!("{name}={value}"));
    }
    Ok(())
}

/// A preallocation mode by its word.
pub fn preallocation(text: &str) -> Option<Preallocation> {
    [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full]
        .into_iter()
        .find(|mode| preallocation_word(*mode) == text)
}

fn preallocation_word(mode: Preallocation) -> &'static str {
    match mode {
        Preallocation::Off => "off",
        Preallocation::Metadata => "metadata",
        Preallocation::Falloc => "falloc",
        Preallocation::Full => "full",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the engine is asked for by these words.
    fn wanted(format: Format, words: &str) -> Result<CreateOptions, String> {
        let mut file = NewFile::new(format);
        file.take(words, "x").and_then(|()| file.finished(1 << 20, &Secrets::default())).map_err(|failure| failure.message)
    }

    #[test]
    fn what_only_vmware_and_hyper_v_know_is_asked_for_in_qemus_words() {
        let vmdk = wanted(Format::Vmdk, "adapter_type=lsilogic,subformat=streamOptimized,compat6,toolsversion=7").unwrap().vmdk;
        assert_eq!((vmdk.adapter, vmdk.kind), (VmdkAdapter::LsiLogic, VmdkKind::StreamOptimized));
        assert_eq!((vmdk.hardware_version, vmdk.tools_version), (6, Some(7)));
        assert_eq!(wanted(Format::Vmdk, "hwversion=undefined").unwrap().vmdk.hardware_version, 4);
        assert!(wanted(Format::Vmdk, "compat6=on,hwversion=7").unwrap_err().contains("compat6"));
        assert!(wanted(Format::Vmdk, "adapter_type=nvme").unwrap_err().contains("lsilogic"));
        let vhdx = wanted(Format::Vhdx, "block_size=2M,log_size=4M,block_state_zero=on").unwrap().vhdx;
        assert_eq!((vhdx.block_size, vhdx.log_size, vhdx.absent_is_zero), (Some(2 << 20), 4 << 20, true));
        assert_eq!(wanted(Format::Vhdx, "block_size=0").unwrap().vhdx.block_size, None);
        // QEMU hands this to the empty file; it makes no fixed disk.
        assert_eq!(wanted(Format::Vdi, "preallocation=full").unwrap().preallocation, Preallocation::Off);
        assert!(wanted(Format::Vdi, "preallocation=metadata").is_err());
    }
}
