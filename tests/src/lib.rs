//! What no crate can test alone. `tests/architecture.rs` keeps the shape of the house; real guests are booted by
//! `tests/media/boot`, which drives Bellglass and QEMU alike, so that both are measured in one run.
