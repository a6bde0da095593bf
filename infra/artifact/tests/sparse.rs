//! Holes are not read, make no difference to the artifact, and are holes again.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::Path,
    sync::Arc,
};

use common::{Memory, noise, publish_tree};
use longshore_artifact::{Installed, Need, assemble, verify, written_bytes};
use proptest::prelude::*;

const MIB: u64 = 1024 * 1024;

/// A file of this length that has these bytes at these places, and is a hole elsewhere.
fn sparse(path: &Path, bytes: u64, data: &[(u64, Vec<u8>)]) {
    let file = File::create(path).expect("created");
    file.set_len(bytes).expect("there is room");
    for (at, data) in data {
        file.write_all_at(data, *at).expect("written");
    }
    file.sync_all().expect("written");
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("there").blocks() * 512
}

#[test]
fn a_file_of_eight_gibibytes_with_three_of_data_anywhere_takes_no_time_and_no_room() {
    let dir = tempfile::tempdir().expect("a folder");
    let source = dir.path().join("image");
    let data =
        [(0, noise(1, 1_000_000)), (3 * 1024 * MIB + 777, noise(2, 1_500_000)), (8 * 1024 * MIB - 9, vec![9; 9])];
    sparse(&source, 8 * 1024 * MIB, &data);
    fs::set_permissions(&source, fs::Permissions::from_mode(0o444)).expect("set");
    assert!(allocated(&source) < 4 * MIB, "the file system of {source:?} has no holes");
    let memory = Arc::new(Memory::default());
    let root = publish_tree(&source, None, &memory).root;
    assert_eq!(root.size_bytes, 8 * 1024 * MIB);
    assert!(root.all_packs().iter().map(|pack| pack.bytes).sum::<u64>() < 4 * MIB, "{:?}", root.all_packs());

    let index = memory.index(&root);
    assert!(written_bytes(&index.manifest) < 4 * MIB, "{}", written_bytes(&index.manifest));
    let target = dir.path().join("target");
    let assembled = assemble(&index, &Need::compute(&index, &[]), &[], &*memory, &target).expect("assembled");
    assert_eq!(assembled.fetched_bytes, 8 * 1024 * MIB);
    let image = target.join("image");
    assert_eq!(fs::metadata(&image).expect("there").len(), 8 * 1024 * MIB);
    assert!(allocated(&image) < 4 * MIB, "{} bytes are allocated", allocated(&image));
    let file = File::open(&image).expect("there");
    for (at, data) in data {
        let mut found = vec![0; data.len()];
        file.read_exact_at(&mut found, at).expect("read");
        assert!(found == data, "the bytes at {at} are others");
    }

    // Looking at it takes no time either, and the next release has it without any pack.
    verify(&target, &index.manifest).expect("the same");
    let installed = [Installed { dir: target, manifest: index.manifest.clone() }];
    let (need, next) = (Need::compute(&index, &installed), dir.path().join("next"));
    let assembled = assemble(&index, &need, &installed, &Memory::default(), &next).expect("assembled");
    assert_eq!(assembled.reused_bytes, 8 * 1024 * MIB);
    assert_eq!(assembled.reflinked_bytes + assembled.linked_bytes, 8 * 1024 * MIB);
    assert!(allocated(&next.join("image")) < 4 * MIB);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Whether zeros are holes is nowhere to be seen: not in the artifact, and not in what is assembled.
    #[test]
    fn holes_are_zeros(
        runs in prop::collection::vec((any::<bool>(), prop_oneof![1..200_000_u64, 900_000..3_000_000_u64]), 1..8),
    ) {
        let dir = tempfile::tempdir().expect("a folder");
        let (holes, zeros) = (dir.path().join("holes"), dir.path().join("zeros"));
        let mut whole = Vec::new();
        let mut data = Vec::new();
        for (number, (is_data, bytes)) in (0..).zip(runs) {
            let run = if is_data { noise(number, bytes as usize) } else { vec![0; bytes as usize] };
            if is_data {
                data.push((whole.len() as u64, run.clone()));
            }
            whole.extend(run);
        }
        for folder in [&holes, &zeros] {
            fs::create_dir(folder).expect("made");
        }
        sparse(&holes.join("file"), whole.len() as u64, &data);
        fs::write(zeros.join("file"), &whole).expect("written");
        let memory = Arc::new(Memory::default());
        let roots = [&holes, &zeros].map(|source| publish_tree(source, None, &memory).root);
        prop_assert_eq!(&roots[0], &roots[1]);
        let index = memory.index(&roots[0]);
        let target = dir.path().join("target");
        assemble(&index, &Need::compute(&index, &[]), &[], &*memory, &target).expect("assembled");
        prop_assert!(fs::read(target.join("file")).expect("there") == whole);
    }
}
