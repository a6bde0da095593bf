//! A fixed tree has a fixed name, for ever: a change of cutting, hashing or the manifest's bytes would make every
//! artifact new, and nothing uploaded or installed before would be found again.

mod common;

use std::{fs, os::unix::fs::PermissionsExt, sync::Arc};

use common::{Memory, noise, publish_tree};

const NAME: &str = "e2a224f34ddf584b220755e0a2ad576be520373656f56fb04f276b4bd843ab11";
const FIRST_CHUNKS_BYTES: [u32; 6] = [72462, 95088, 75692, 106727, 69827, 28337];

#[test]
fn the_name_of_a_fixed_tree_never_changes() {
    let dir = tempfile::tempdir().expect("temporary directory");
    fs::create_dir_all(dir.path().join("lib/empty")).expect("made");
    fs::write(dir.path().join("lib/noise"), noise(42, 5_000_001)).expect("written");
    fs::write(dir.path().join("run"), "#!/bin/sh\n").expect("written");
    std::os::unix::fs::symlink("lib/noise", dir.path().join("link")).expect("linked");
    for (path, mode) in [("lib/noise", 0o644), ("run", 0o755)] {
        fs::set_permissions(dir.path().join(path), fs::Permissions::from_mode(mode)).expect("set");
    }
    let memory = Arc::new(Memory::default());
    let root = publish_tree(dir.path(), None, &memory).root;
    let index = memory.index(&root);
    let lengths: Vec<u32> = index.manifest.chunks().iter().take(6).map(|chunk| chunk.bytes).collect();
    assert_eq!((root.artifact.to_string().as_str(), &lengths[..]), (NAME, &FIRST_CHUNKS_BYTES[..]));
}
