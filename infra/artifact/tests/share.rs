//! Files that an installed release has are shared with it, and are still verified, and still a release's own in all that matters.

mod common;

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{Memory, contents, noise, publish_tree};
use longshore_artifact::{
    Assembled, Error, Index, Installed, Need, assemble, load_installed, remove_installed, save_manifest, verify,
};
use tempfile::TempDir;

fn write(path: &Path, bytes: &[u8], mode: u32) {
    fs::create_dir_all(path.parent().expect("below")).expect("made");
    let _ = fs::remove_file(path);
    fs::write(path, bytes).expect("written");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
}

/// Into the file that is there, whoever shares it, as somebody does whom permissions do not stop.
fn overwrite(path: &Path, bytes: &[u8]) {
    let mode = fs::metadata(path).expect("there").permissions();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("set");
    fs::write(path, bytes).expect("written");
    fs::set_permissions(path, mode).expect("set");
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).expect("there").ino()
}

fn can_reflink(dir: &Path) -> bool {
    let (from, to) = (dir.join("from"), dir.join("to"));
    fs::write(&from, "bytes").expect("written");
    let cloned =
        File::create(&to).is_ok_and(|to| rustix::fs::ioctl_ficlone(to, File::open(&from).expect("there")).is_ok());
    [from, to].iter().for_each(|path| fs::remove_file(path).expect("removed"));
    cloned
}

/// Releases of two artifacts: of the second one only what is not in the first is at hand.
struct World {
    dir: TempDir,
    packs: Arc<Memory>,
    old: Installed,
    new: Index,
    reflinks: bool,
}

const FIXED: usize = 700_000;
const MOVED: usize = 150_000;
const SMALL: usize = 1_000;

impl World {
    fn new() -> Self {
        Self::in_folders(tempfile::tempdir().expect("temporary directory"), None)
    }

    /// With the older release elsewhere.
    fn in_folders(dir: TempDir, elsewhere: Option<&Path>) -> Self {
        let (source, packs) = (dir.path().join("source"), Arc::new(Memory::default()));
        write(&source.join("bin/program"), &noise(1, 300_000), 0o755);
        write(&source.join("data/fixed"), &noise(2, FIXED), 0o444);
        write(&source.join("data/moved"), &noise(3, MOVED), 0o555);
        write(&source.join("data/mode"), &noise(4, SMALL), 0o444);
        write(&source.join("data/empty"), b"", 0o444);
        write(&source.join("version"), b"old", 0o444);
        symlink("data/fixed", source.join("link")).expect("linked");
        let first = packs.index(&publish_tree(&source, None, &packs).root);
        let releases = elsewhere.map_or_else(|| dir.path().join("releases"), Path::to_owned);
        fs::create_dir_all(&releases).expect("made");
        let release = releases.join(first.manifest.id().to_string());
        assemble(&first, &Need::compute(&first, &[]), &[], &*packs, &release).expect("assembled");
        save_manifest(&releases, &first.manifest).expect("saved");
        let old = load_installed(&releases, &first.manifest.id()).expect("installed");

        fs::rename(source.join("data/moved"), source.join("data/renamed")).expect("moved");
        fs::set_permissions(source.join("data/mode"), fs::Permissions::from_mode(0o555)).expect("set");
        write(&source.join("version"), b"new", 0o444);
        let new = packs.index(&publish_tree(&source, Some(&first), &packs).root);
        let reflinks = can_reflink(dir.path()) && elsewhere.is_none();
        Self { dir, packs, old, new, reflinks }
    }

    fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    /// The second release, of the first one and of these packs.
    fn assemble_of(&self, packs: &Memory) -> Result<(PathBuf, Assembled), Error> {
        let target = self.dir.path().join("target");
        let installed = std::slice::from_ref(&self.old);
        let assembled = assemble(&self.new, &Need::compute(&self.new, installed), installed, packs, &target)?;
        assert_eq!(contents(&target), contents(&self.source()));
        verify(&target, &self.new.manifest).expect("as its manifest says");
        Ok((target, assembled))
    }

    fn assemble(&self) -> (PathBuf, Assembled) {
        self.assemble_of(&self.packs).expect("assembled")
    }

    /// Only the packs that the second release needs.
    fn fewer_packs(&self) -> Memory {
        let need = Need::compute(&self.new, std::slice::from_ref(&self.old));
        let packs = self.packs.0.lock().expect("not poisoned");
        let few: HashMap<_, _> = need.packs.iter().map(|pack| (pack.pack, packs[&pack.pack].clone())).collect();
        Memory(few.into())
    }
}

#[test]
fn what_did_not_change_is_shared_and_outlives_the_older_release() {
    let world = World::new();
    let (target, assembled) = world.assemble();
    let total = world.new.manifest.size_bytes();
    assert_eq!((assembled.fetched_bytes, assembled.reused_bytes), (3, total - 3));
    let same = |one: &str, other: &str| inode(&world.old.dir.join(one)) == inode(&target.join(other));
    if world.reflinks {
        assert_eq!((assembled.reflinked_bytes, assembled.linked_bytes), (total - 3 - SMALL as u64, 0));
        assert!(!same("data/fixed", "data/fixed") && !same("data/moved", "data/renamed"));
    } else {
        assert_eq!((assembled.reflinked_bytes, assembled.linked_bytes), (0, (FIXED + MOVED) as u64));
        assert!(same("data/fixed", "data/fixed") && same("data/moved", "data/renamed"));
    }
    // What somebody may write to, or has another mode, is nobody else's.
    for path in ["bin/program", "data/mode", "data/empty", "link"] {
        assert!(!same(path, path), "{path}");
    }

    overwrite(&world.old.dir.join("bin/program"), b"evil");
    remove_installed(&world.dir.path().join("releases"), &world.old.manifest.id()).expect("removed");
    assert_eq!(contents(&target), contents(&world.source()));
    assert_eq!(fs::metadata(target.join("data/fixed")).expect("there").nlink(), 1);
}

#[test]
fn a_file_that_was_damaged_in_the_older_release_is_not_shared() {
    let world = World::new();
    let right = noise(2, FIXED);
    let mut wrong = right.clone();
    wrong[FIXED - 1] ^= 1;
    let fixed = world.old.dir.join("data/fixed");
    let damages: [(&str, &dyn Fn()); 4] = [
        ("a bit", &|| overwrite(&fixed, &wrong)),
        ("its end", &|| overwrite(&fixed, &[&right[..], b"x"].concat())),
        ("its mode", &|| write(&fixed, &right, 0o4444)),
        ("its kind", &|| {
            write(&world.dir.path().join("apart"), &right, 0o444);
            fs::remove_file(&fixed).expect("removed");
            symlink(world.dir.path().join("apart"), &fixed).expect("linked");
        }),
    ];
    for (what, damage) in damages {
        damage();
        let (target, assembled) = world.assemble();
        assert_eq!(assembled.linked_bytes, if world.reflinks { 0 } else { MOVED as u64 }, "{what}");
        assert_ne!(inode(&fixed), inode(&target.join("data/fixed")), "{what}");
        assert_eq!(assembled.damaged_chunks, u64::from(what == "a bit"), "{what}");
        assert_eq!(assembled.fetched_bytes + assembled.reused_bytes, world.new.manifest.size_bytes(), "{what}");
        fs::remove_dir_all(&target).expect("removed");
        write(&fixed, &right, 0o444);
    }
}

#[test]
fn a_damaged_file_of_which_no_pack_is_at_hand_is_named() {
    let world = World::new();
    let mut wrong = noise(2, FIXED);
    wrong[0] ^= 1;
    let few = world.fewer_packs();
    let (target, _) = world.assemble_of(&few).expect("all else is installed");
    fs::remove_dir_all(&target).expect("removed");
    overwrite(&world.old.dir.join("data/fixed"), &wrong);
    let error = world.assemble_of(&few).expect_err("nowhere to be had");
    assert!(matches!(&error, Error::DamagedInstalled { path, .. } if path.ends_with("data/fixed")), "{error}");
    assert!(!target.exists() && !world.dir.path().join(".target.partial").exists());
    // So its packs are fetched.
    world.assemble();
}

#[test]
fn a_release_on_another_file_system_is_copied() {
    let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
    let here = tempfile::tempdir().expect("temporary directory");
    let device = |dir: &TempDir| fs::metadata(dir.path()).expect("there").dev();
    if device(&memory) == device(&here) {
        return;
    }
    let world = World::in_folders(here, Some(memory.path()));
    let (_, assembled) = world.assemble();
    assert_eq!((assembled.reflinked_bytes, assembled.linked_bytes), (0, 0));
    assert_eq!(assembled.reused_bytes, world.new.manifest.size_bytes() - 3);
}

#[test]
fn a_file_that_has_all_names_that_it_may_have_is_copied() {
    let world = World::new();
    let (fixed, names) = (world.old.dir.join("data/fixed"), world.dir.path().join("names"));
    fs::create_dir(&names).expect("made");
    // Ext4 allows 65,000; others so many that nobody comes near.
    if world.reflinks || (0..70_000).all(|name| fs::hard_link(&fixed, names.join(name.to_string())).is_ok()) {
        return;
    }
    let (_, assembled) = world.assemble();
    assert_eq!(assembled.linked_bytes, MOVED as u64);
    assert_eq!(assembled.reused_bytes, world.new.manifest.size_bytes() - 3);
}
