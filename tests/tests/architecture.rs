//! The house's plan, kept by a test: which crate may use which. An arrow that points up fails here; so does a crate that
//! nobody drew. The same table is drawn in `engine/README.md`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every crate of ours and what it may use of ours, from the bottom up.
const MAY_USE: &[(&str, &[&str])] = &[
    ("engine_base", &[]),
    ("engine_input", &[]),
    ("engine_memory", &["engine_base"]),
    ("engine_display", &["engine_base"]),
    ("engine_disk", &["engine_base"]),
    ("engine_config", &["engine_base"]),
    ("engine_cpu", &["engine_base", "engine_memory"]),
    ("engine_bus", &["engine_base", "engine_disk", "engine_display", "engine_input", "engine_memory"]),
    ("engine_translator", &["engine_base", "engine_cpu", "engine_memory"]),
    ("engine_devices", &["engine_base", "engine_bus", "engine_disk", "engine_display", "engine_input", "engine_memory"]),
    ("engine_firmware", &["engine_bus"]),
    (
        "engine_machine",
        &[
            "engine_base",
            "engine_bus",
            "engine_cpu",
            "engine_devices",
            "engine_disk",
            "engine_display",
            "engine_firmware",
            "engine_input",
            "engine_memory",
            "engine_translator",
        ],
    ),
    (
        "engine_session",
        &[
            "engine_base",
            "engine_bus",
            "engine_config",
            "engine_cpu",
            "engine_disk",
            "engine_display",
            "engine_input",
            "engine_machine",
        ],
    ),
    ("engine_remote", &["engine_base", "engine_cpu", "engine_display", "engine_input", "engine_session"]),
    ("ui_assets", &[]),
    (
        "bellglass",
        &[
            "engine_base",
            "engine_bus",
            "engine_config",
            "engine_cpu",
            "engine_disk",
            "engine_display",
            "engine_input",
            "engine_remote",
            "engine_session",
            "ui_assets",
        ],
    ),
    ("bellglass_tests", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Name and [dependencies] of ours, of a Cargo.toml. Dev-dependencies may point anywhere.
fn manifest(path: &Path) -> (String, Vec<String>) {
    let text = std::fs::read_to_string(path).unwrap();
    let name = text.lines().find_map(|line| line.strip_prefix("name = ")).unwrap().trim_matches('"').to_owned();
    let mut section = "";
    let mut uses = Vec::new();
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
        }
        let key = line.split([' ', '.', '=']).next().unwrap_or_default();
        let ours = MAY_USE.iter().any(|(known, _)| *known == key);
        if section == "[dependencies]" && ours {
            uses.push(key.to_owned());
        }
    }
    (name, uses)
}

fn manifests() -> BTreeMap<String, Vec<String>> {
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(root().join("engine")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.extend(["app", "ui-assets", "tests"].map(|folder| root().join(folder)));
    folders.iter().map(|folder| folder.join("Cargo.toml")).filter(|path| path.exists()).map(|path| manifest(&path)).collect()
}

#[test]
fn no_arrow_points_up() {
    let allowed: BTreeMap<_, _> = MAY_USE.iter().copied().collect();
    for (name, uses) in manifests() {
        let may_use = allowed.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not in the plan: draw it there first"));
        for used in uses {
            assert!(may_use.contains(&used.as_str()), "{name} uses {used}, which the plan does not allow");
        }
    }
}

#[test]
fn the_plan_itself_has_no_circle() {
    for (position, (name, uses)) in MAY_USE.iter().enumerate() {
        for used in *uses {
            let below = MAY_USE.iter().position(|(other, _)| other == used);
            assert!(below.is_some_and(|below| below < position), "{name} is drawn below {used}");
        }
    }
}

#[test]
fn every_crate_in_the_plan_exists_and_is_in_the_map() {
    let manifests = manifests();
    let map = std::fs::read_to_string(root().join("engine/README.md")).unwrap();
    for (name, _) in MAY_USE {
        assert!(manifests.contains_key(*name), "{name} is drawn, but not there");
        if let Some(folder) = name.strip_prefix("engine_") {
            assert!(map.contains(&format!("`{folder}`")), "engine/README.md does not mention {folder}");
        }
    }
}

#[test]
fn unsafe_stays_in_its_rooms() {
    const ROOMS: [&str; 2] = ["memory", "translator"];
    for entry in std::fs::read_dir(root().join("engine")).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let Ok(lib) = std::fs::read_to_string(folder.join("src/lib.rs")) else { continue };
        let forbidden = lib.contains("#![forbid(unsafe_code)]");
        assert!(forbidden || ROOMS.contains(&name.as_str()), "engine/{name}/src/lib.rs does not forbid unsafe code");
    }
}
