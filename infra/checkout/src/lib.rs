//! Files of the checkout that tests and benchmarks need while they run.
//!
//! Clones share a target folder, which outlives each of them: a path that was compiled in may be that of a clone that is gone. So the
//! checkout is looked for when it is needed. (A package's own tests need only relative paths: `cargo test` starts them in its folder.)

use std::path::PathBuf;

/// What is at this path of the checkout in which, or in a folder of which, the program was started.
pub fn path(relative: &str) -> PathBuf {
    let working = std::env::current_dir().unwrap_or_default();
    let root = working.ancestors().find(|folder| folder.join("Cargo.lock").exists());
    root.unwrap_or(&working).join(relative)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_file_is_found_from_its_package() {
        assert!(path("infra/checkout/src/lib.rs").is_file());
    }
}
