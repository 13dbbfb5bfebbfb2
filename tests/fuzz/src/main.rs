//! libFuzzer over the target that `RINGWEIR_FUZZ_TARGET` names; see `tests/fuzz/run`.
#![no_main]

use std::sync::OnceLock;

use ringweir_fuzz::{TARGETS, Target};

fn chosen() -> &'static Target {
    static CHOSEN: OnceLock<&Target> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let name = std::env::var("RINGWEIR_FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| panic!("RINGWEIR_FUZZ_TARGET={name} is no target"))
    })
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| (chosen().run)(data));
