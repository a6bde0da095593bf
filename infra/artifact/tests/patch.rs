//! Patches: what they make is right whatever the trees are, they are small where chunks are not, and no lie gets through.

mod common;

use std::{
    collections::HashSet,
    fs,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use common::{Memory, contents, noise, publish_tree};
use longshore_artifact::{
    ArtifactRoot, Error, Index, Installed, MadePatch, Manifest, Need, PackRead, PatchRoot, ReadError, apply, assemble,
    assemble_patched, load_installed, make_patch, patched_manifest, save_manifest,
};
use longshore_schemas::{ArtifactId, PackId};
use proptest::prelude::*;

/// Two published trees, the first of them installed, and the patch between them.
struct World {
    dir: tempfile::TempDir,
    memory: Arc<Memory>,
    root: ArtifactRoot,
    index: Index,
    base: Installed,
    made: MadePatch,
}

impl World {
    /// Each tree as paths with what is there.
    fn new(old: &[(&str, Vec<u8>)], new: &[(&str, Vec<u8>)]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let memory = Arc::new(Memory::default());
        let publish = |name: &str, files: &[(&str, Vec<u8>)], base: Option<&Index>| {
            let tree = dir.path().join(name);
            for (path, bytes) in files {
                let path = tree.join(path);
                fs::create_dir_all(path.parent().expect("below")).expect("made");
                fs::write(path, bytes).expect("written");
            }
            publish_tree(&tree, base, &memory).root
        };
        let old = memory.index(&publish("old", old, None));
        let root = publish("new", new, Some(&old));
        let index = memory.index(&root);
        let releases = dir.path().join("releases");
        fs::create_dir(&releases).expect("made");
        let release = releases.join(old.manifest.id().to_string());
        assemble(&old, &Need::compute(&old, &[]), &[], &*memory, &release).expect("assembled");
        save_manifest(&releases, &old.manifest).expect("saved");
        let base = load_installed(&releases, &old.manifest.id()).expect("there");
        let made = make_patch(&index, &old, &*memory, |pack, bytes| {
            memory.0.lock().expect("not poisoned").insert(pack, bytes);
            Ok(())
        })
        .expect("made");
        Self { dir, memory, root, index, base, made }
    }

    fn apply(&self, root: &PatchRoot) -> Result<longshore_artifact::Patched, Error> {
        apply(root, &self.index.manifest, &self.base, &*self.memory, &self.dir.path().join("scratch"))
    }

    /// Installs the new tree as a machine does, from the patch's packs and those that it leaves; says how many bytes these are.
    fn install(&self) -> u64 {
        let manifest = patched_manifest(&self.made.root, &self.base.manifest, &*self.memory).expect("right");
        assert_eq!(manifest.as_ref().map(Manifest::id), Some(self.root.artifact));
        let patched = self.apply(&self.made.root).expect("applied");
        let installed = [self.base.clone()];
        let need = Need::compute_patched(&self.index, &installed, Some(&patched));
        // Nothing but what is needed is at hand.
        let packs = Only(need.packs.iter().map(|pack| pack.pack).collect(), &self.memory);
        let target = self.dir.path().join("target");
        let assembled =
            assemble_patched(&self.index, &need, &installed, Some(&patched), &packs, &target).expect("assembled");
        assert_eq!(assembled.damaged_chunks, 0);
        assert_eq!(contents(&target), contents(&self.dir.path().join("new")));
        if need.packs.is_empty() {
            let manifest = manifest.expect("looked at above");
            let without = Index::without_layout(&self.root, manifest).expect("the same artifact");
            let need = Need::compute_patched(&without, &installed, Some(&patched));
            let again = self.dir.path().join("again");
            assemble_patched(&without, &need, &installed, Some(&patched), &packs, &again).expect("assembled");
            assert_eq!(contents(&again), contents(&target));
        }
        fs::remove_dir_all(target).expect("removed");
        assert!(!self.dir.path().join("scratch").exists(), "nothing is left behind");
        self.made.patch_bytes + need.pack_bytes
    }

    /// The artifact's packs that the base has not.
    fn missing_bytes(&self) -> u64 {
        Need::compute(&self.index, std::slice::from_ref(&self.base)).pack_bytes
    }
}

struct Only<'a>(HashSet<PackId>, &'a Memory);

impl PackRead for Only<'_> {
    fn read_at(&self, pack: &longshore_artifact::PackRef, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        if !self.0.contains(&pack.pack) {
            return Err(ReadError::Missing);
        }
        self.1.read_at(pack, offset, buffer)
    }
}

/// As a linker does: code whose addresses all grow once something was inserted, one each 24 bytes or so.
fn program(inserted: usize) -> Vec<u8> {
    let mut bytes = noise(1, 3_000_000);
    for (number, address) in (0..bytes.len() - 4).step_by(24).enumerate() {
        let value = (number * 16 + if number > 100 { inserted } else { 0 }) as u32;
        bytes[address..address + 4].copy_from_slice(&value.to_le_bytes());
    }
    let new = noise(2, inserted);
    bytes.splice(50_000..50_000, new);
    bytes
}

#[test]
fn a_relinked_program_is_a_small_patch() {
    let world = World::new(&[("bin/run", program(0))], &[("bin/run", program(100))]);
    assert!(world.missing_bytes() > 2_000_000, "chunks do badly");
    let patched = world.install();
    assert!(patched < 100_000, "{patched} bytes");
}

#[test]
fn a_renamed_and_changed_file_is_found_among_many() {
    let noise = |seed| noise(seed, 2_000_000);
    let old: Vec<_> = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
        .iter()
        .zip(0..)
        .map(|(path, seed)| (*path, noise(seed)))
        .collect();
    let mut changed = noise(4);
    changed.iter_mut().step_by(5000).for_each(|byte| *byte ^= 1);
    // All others are gone too, so what is gone is more than a window holds.
    let world = World::new(&old, &[("moved/elsewhere", changed)]);
    let patched = world.install();
    assert!(patched < 10_000, "{patched} bytes");
}

#[test]
fn what_has_nothing_in_common_is_left_to_its_packs() {
    let world = World::new(&[("a", noise(1, 900_000))], &[("a", noise(2, 900_000)), ("b", noise(1, 900_000))]);
    assert!(world.made.root.groups.is_empty(), "{:?}", world.made);
    let patched = world.install();
    assert!(patched < world.missing_bytes() + 1000, "{patched} bytes");
}

#[test]
fn equal_artifacts_need_nothing_but_the_manifest() {
    let tree = [("a", noise(1, 100_000))];
    let world = World::new(&tree, &tree);
    assert!(world.install() < 200);
}

/// What a file becomes.
#[derive(Debug, Clone)]
struct Edit {
    at: prop::sample::Index,
    removed: usize,
    inserted: Vec<u8>,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let inserted = prop_oneof![Just(vec![0; 5000]), prop::collection::vec(any::<u8>(), 0..300)];
    let edit = (any::<prop::sample::Index>(), 0_usize..40_000, inserted);
    let edit = edit.prop_map(|(at, removed, inserted)| Edit { at, removed, inserted });
    prop::collection::vec(edit, 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn any_two_trees(length in 0_usize..600_000, seeds in any::<[u8; 2]>(), edits in edits(), text in any::<bool>()) {
        let bytes = |seed: u8| if text {
            noise(seed.into(), length / 8).iter().flat_map(|byte| format!("line {byte:03}\n").into_bytes()).collect()
        } else {
            noise(seed.into(), length)
        };
        let mut changed = bytes(seeds[0]);
        for Edit { at, removed, inserted } in edits {
            let at = at.index(changed.len() + 1);
            let end = changed.len().min(at + removed);
            changed.splice(at..end, inserted);
        }
        let old = [("same", noise(9, 50_000)), ("x/file", bytes(seeds[0])), ("y", Vec::new())];
        let new = [("another", bytes(seeds[1])), ("copy", changed.clone()), ("file", changed), ("same", noise(9, 50_000))];
        let world = World::new(&old, &new);
        prop_assert!(world.install() <= world.missing_bytes() + 400, "{:?}", world.made);
    }
}

/// A patch of several sections and commands, to be damaged.
fn victim() -> World {
    let mut changed = program(0);
    changed.truncate(400_000);
    let old = changed.clone();
    changed.iter_mut().step_by(700).for_each(|byte| *byte ^= 0x55);
    changed.splice(10_000..30_000, noise(3, 7000));
    World::new(&[("a", old)], &[("a", changed)])
}

#[test]
fn a_flipped_byte_is_an_error_or_harmless() {
    let world = victim();
    let pack = world.made.root.packs[0].pack;
    let whole = world.memory.0.lock().expect("not poisoned")[&pack].clone();
    let mut errors = 0;
    for position in (0..whole.len()).step_by(whole.len() / 300 + 1) {
        let mut bad = whole.to_vec();
        bad[position] ^= 0x21;
        world.memory.0.lock().expect("not poisoned").insert(pack, Bytes::from(bad));
        match patched_manifest(&world.made.root, &world.base.manifest, &*world.memory) {
            Ok(manifest) => assert_eq!(manifest.as_ref(), Some(&world.index.manifest)),
            Err(error) => assert!(matches!(error, Error::Malformed { .. } | Error::WrongManifest { .. }), "{error}"),
        }
        match world.apply(&world.made.root) {
            Ok(patched) => assert!(patched.bytes() > 0),
            Err(error) => {
                assert!(matches!(error, Error::Malformed { what: "patch", .. }), "{error}");
                errors += 1;
            }
        }
    }
    assert!(errors > 100, "{errors} errors");
}

#[test]
fn a_damaged_base_is_an_error_and_the_packs_still_do() {
    let world = victim();
    fs::write(world.base.dir.join("a"), noise(8, 400_000)).expect("damaged");
    let error = world.apply(&world.made.root).expect_err("damaged");
    assert!(error.to_string().contains("came out wrong"), "{error}");
    fs::write(world.base.dir.join("a"), b"short").expect("damaged");
    let error = world.apply(&world.made.root).expect_err("damaged");
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
    let target = world.dir.path().join("target");
    let need = Need::compute(&world.index, &[]);
    assemble(&world.index, &need, &[], &*world.memory, &target).expect("assembled");
    assert_eq!(contents(&target), contents(&world.dir.path().join("new")));
}

#[test]
fn wrong_roots_of_patches_are_refused() {
    let world = victim();
    let good = &world.made.root;
    let (artifact, base) = (good.artifact, good.base);
    assert_eq!(&PatchRoot::from_json(&artifact, &base, &good.to_json()).expect("right"), good);
    PatchRoot::from_json(&base, &artifact, &good.to_json()).expect_err("the other way round");
    PatchRoot::from_json(&artifact, &base, b"{}").expect_err("incomplete");
    let changes: [fn(&mut PatchRoot); 9] = [
        |root| root.base = ArtifactId::of(b"other"),
        |root| root.groups[0].bytes += 1,
        |root| root.groups[0].bytes = u64::MAX,
        |root| root.groups[0].chunks = 0,
        |root| root.groups[0].chunks = u32::MAX,
        |root| root.groups.clear(),
        |root| root.manifest = None,
        |root| root.packs.clear(),
        |root| root.packs[0].bytes = 1 << 40,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        PatchRoot::from_json(&artifact, &base, &bad.to_json()).expect_err(&format!("change {number}"));
        world.apply(&bad).expect_err(&format!("change {number}"));
    }
    // These are within the limits, and still not this artifact's.
    let changes: [fn(&mut PatchRoot); 2] = [|root| root.groups[0].chunks += 1, |root| root.groups[0].skipped += 1];
    for (number, change) in changes.into_iter().enumerate() {
        let mut bad = good.clone();
        change(&mut bad);
        world.apply(&bad).expect_err(&format!("change {number}"));
    }
}

#[test]
fn a_sink_that_fails_ends_the_making() {
    let world = victim();
    let puts = Mutex::new(0);
    let old = world.memory.index(&publish_tree(&world.dir.path().join("old"), None, &world.memory).root);
    let error = make_patch(&world.index, &old, &*world.memory, |_, _| {
        *puts.lock().expect("not poisoned") += 1;
        Err("no space".into())
    })
    .expect_err("full");
    assert!(matches!(&error, Error::Sink { source, .. } if source.to_string() == "no space"), "{error}");
    assert_eq!(*puts.lock().expect("not poisoned"), 1);
}
