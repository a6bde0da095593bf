//! Random trees come back as they were, whatever the order in which they were made, and share what they share.

mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::Arc,
};

use common::{Memory, contents, noise, publish_tree};
use longshore_artifact::{CHUNK_BYTES_MAX, Installed, Need, PACK_BYTES_MAX, assemble, verify};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Thing {
    File { seed: u64, length: usize, compressible: bool, mode: u32 },
    Link,
    Directory,
}

fn thing() -> impl Strategy<Value = Thing> {
    let length = prop_oneof![Just(0), 1..2000_usize, 10_000..900_000_usize];
    prop_oneof![
        6 => (0..4_u64, length, any::<bool>(), prop_oneof![Just(0o644), Just(0o755), Just(0o600)])
            .prop_map(|(seed, length, compressible, mode)| Thing::File { seed, length, compressible, mode }),
        1 => Just(Thing::Link),
        1 => Just(Thing::Directory),
    ]
}

/// Names in folders; the letters sort before and after the slash.
fn tree() -> impl Strategy<Value = Vec<(String, Thing)>> {
    let path = "(d[ab.]/){0,2}f[a-c.-]{1,3}";
    prop::collection::btree_map(path, thing(), 1..12).prop_map(|tree| tree.into_iter().collect())
}

fn make(dir: &Path, things: &[(String, Thing)]) {
    for (path, thing) in things {
        let full = dir.join(path);
        fs::create_dir_all(full.parent().expect("below")).expect("made");
        match thing {
            Thing::File { seed, length, compressible, mode } => {
                let bytes = if *compressible { vec![b'x'; *length] } else { noise(*seed, *length) };
                fs::write(&full, bytes).expect("written");
                fs::set_permissions(&full, fs::Permissions::from_mode(*mode)).expect("set");
            }
            Thing::Link => symlink("target that does not exist", &full).expect("linked"),
            Thing::Directory => fs::create_dir(&full).expect("made"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn trees_round_trip(things in tree()) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (source, again) = (dir.path().join("source"), dir.path().join("again"));
        make(&source, &things);
        let memory = Arc::new(Memory::default());
        let published = publish_tree(&source, None, &memory);

        let reversed: Vec<_> = things.iter().rev().cloned().collect();
        make(&again, &reversed);
        prop_assert_eq!(&publish_tree(&again, None, &memory), &published, "the order of making does not matter");

        let index = memory.index(&published.root);
        let need = Need::compute(&index, &[]);
        prop_assert_eq!(&need.packs, &published.root.packs);
        let target = dir.path().join("target");
        assemble(&index, &need, &[], &*memory, &target).expect("assembled");
        prop_assert_eq!(contents(&target), contents(&source));
        verify(&target, &index.manifest).expect("the same");
        for pack in published.root.all_packs() {
            prop_assert!(pack.bytes <= PACK_BYTES_MAX as u64);
        }

        let unchanged = publish_tree(&source, Some(&index), &memory);
        prop_assert_eq!(unchanged.new_chunks, 0);
        prop_assert_eq!(unchanged.root.artifact, published.root.artifact);

        let installed = [Installed { dir: target, manifest: index.manifest.clone() }];
        let need = Need::compute(&index, &installed);
        prop_assert!(need.packs.is_empty());
        let copy = dir.path().join("copy");
        assemble(&index, &need, &installed, &Memory::default(), &copy).expect("assembled from what is installed");
        prop_assert_eq!(contents(&copy), contents(&source));
    }

    #[test]
    fn an_insertion_changes_the_chunks_around_it_only(at in 0..3_000_000_usize, length in 1..2000_usize) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        let mut bytes = noise(1, 3_000_000);
        fs::write(&old, &bytes).expect("written");
        bytes.splice(at..at, noise(2, length));
        fs::write(&new, &bytes).expect("written");
        let memory = Arc::new(Memory::default());
        let first = publish_tree(&old, None, &memory);
        let second = publish_tree(&new, Some(&memory.index(&first.root)), &memory);
        let new_bytes = second.root.size_bytes - second.reused_bytes;
        prop_assert!(new_bytes <= (length + 3 * CHUNK_BYTES_MAX) as u64, "{new_bytes} new bytes in {} chunks", second.new_chunks);
        prop_assert!(second.new_chunks <= 5, "{} new chunks", second.new_chunks);
    }
}
