//! A manifest is compressed by an earlier one's: what has not changed in it is neither uploaded nor fetched again.

mod common;

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use common::{Memory, contents, run};
use longshore_artifact::{ArtifactRoot, Bases, Error, Index, Need, PackRef, Published, assemble, publish};
use longshore_schemas::PackId;

const FILES: usize = 1200;

/// The packs of its manifest and layout.
fn index_packs(root: &ArtifactRoot, memory: &Memory) -> HashMap<PackId, Bytes> {
    let packs = memory.0.lock().expect("not poisoned");
    Index::packs(root).map(|pack| (pack.pack, packs[&pack.pack].clone())).collect()
}

fn release(tree: &Path, base: Option<&ArtifactRoot>, memory: &Arc<Memory>) -> Published {
    let mut bases = Bases::default();
    if let Some(root) = base {
        bases.add(root, &index_packs(root, memory)).expect("sound");
    }
    run(publish(tree, bases, memory.clone())).expect("published")
}

fn write(tree: &Path, files: impl Iterator<Item = usize>, version: &str) {
    for number in files {
        let folder = tree.join(format!("lib/{}", number % 40));
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join(format!("module-{number}.js")), format!("{version} {number}")).expect("written");
    }
}

/// What is uploaded of manifest and layout.
fn index_bytes(published: &Published) -> u64 {
    let own: BTreeSet<&PackRef> = Index::packs(&published.root).collect();
    published.new_packs.iter().filter(|pack| own.contains(pack)).map(|pack| pack.bytes).sum()
}

#[test]
fn a_manifest_moves_only_what_has_changed_in_it() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let tree = dir.path().join("tree");
    let memory = Arc::new(Memory::default());
    write(&tree, 0..FILES, "first");
    let first = release(&tree, None, &memory);
    assert_eq!(first.root.manifest_key, 0);
    assert!(!String::from_utf8(first.root.to_json()).expect("JSON").contains("manifest_key"), "as it always was");

    // Each of the next releases has the first one's manifest as its key.
    let mut last = first.clone();
    for version in ["second", "third"] {
        write(&tree, 700..720, version);
        last = release(&tree, Some(&last.root), &memory);
        assert_eq!(last.root.manifest_key, 1);
        assert_eq!(last.root.manifest[0], first.root.manifest[0]);
        assert!(last.root.all_packs().contains(&first.root.manifest[0]), "it is kept as long as it is needed");
        assert!(index_bytes(&last) * 4 < index_bytes(&first), "{} and {}", index_bytes(&last), index_bytes(&first));
    }
    // Nothing is left of the first: the key saves little, so the release after that has none.
    write(&tree, 0..FILES, "other");
    let other = release(&tree, Some(&last.root), &memory);
    let again = release(&tree, Some(&other.root), &memory);
    assert_eq!((other.root.manifest_key, again.root.manifest_key), (1, 0));
    assert_eq!(other.root.artifact, again.root.artifact, "the name is that of the manifest, however it travels");

    let index = memory.index(&other.root);
    assert_eq!(Index::decode(&other.root, &index_packs(&other.root, &memory)).expect("sound").manifest, index.manifest);
    let target = dir.path().join("target");
    assemble(&index, &Need::compute(&index, &[]), &[], &*memory, &target).expect("assembled");
    assert_eq!(contents(&target), contents(&tree));
}

#[test]
fn a_wrong_key_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let memory = Arc::new(Memory::default());
    write(dir.path(), 0..FILES, "first");
    let first = release(dir.path(), None, &memory);
    write(dir.path(), 0..9, "second");
    let second = release(dir.path(), Some(&first.root), &memory).root;
    memory.index(&second);
    let changes: [fn(&mut ArtifactRoot); 5] = [
        |root| root.manifest_key = 0,
        |root| root.manifest_key = 2,
        |root| root.manifest_key = u32::MAX,
        |root| root.manifest.swap(0, 1),
        |root| root.manifest[0] = root.layout[0],
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut bad = second.clone();
        change(&mut bad);
        let error = Index::load(&bad, &*memory).expect_err(&format!("change {number}"));
        assert!(matches!(error, Error::Malformed { .. } | Error::WrongManifest { .. }), "{number}: {error}");
    }
    // A key that would take more memory than one may.
    let zeros = zstd::encode_all(&vec![0; 20 << 20][..], 1).expect("memory");
    let pack = PackRef { pack: PackId::of(&zeros), bytes: zeros.len() as u64 };
    memory.0.lock().expect("not poisoned").insert(pack.pack, zeros.into());
    let mut bad = second;
    bad.manifest[0] = pack;
    let error = Index::load(&bad, &*memory).expect_err("too large");
    assert!(error.to_string().contains("compressed by more than"), "{error}");
}
