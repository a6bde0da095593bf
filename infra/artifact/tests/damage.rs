//! Whatever is damaged, there is an error or the right bytes, never wrong ones.

mod common;

use std::{fs, os::unix::net::UnixListener, path::Path, sync::Arc};

use bytes::Bytes;
use common::{Memory, contents, noise, publish_tree, run};
use longshore_artifact::{
    ArtifactRoot, Bases, DirPacks, Error, Index, Installed, Need, PackSink, SinkError, assemble, load_installed,
    publish, remove_installed, save_manifest, save_pack, verify,
};
use longshore_schemas::{ArtifactId, PackId};
use proptest::prelude::*;

fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("data")).expect("made");
    fs::write(dir.join("data/noise"), noise(7, 700_000)).expect("written");
    fs::write(dir.join("data/text"), "all work and no play\n".repeat(30_000)).expect("written");
    fs::write(dir.join("program"), b"#!/bin/sh\n").expect("written");
}

fn flip(memory: &Memory, pack: PackId, position: usize) {
    let mut packs = memory.0.lock().expect("not poisoned");
    let mut bytes = packs[&pack].to_vec();
    let position = position % bytes.len();
    bytes[position] ^= 0x10;
    packs.insert(pack, Bytes::from(bytes));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_in_any_pack_is_an_error(which in any::<prop::sample::Index>(), position in any::<usize>()) {
        let dir = tempfile::tempdir().expect("temporary directory");
        let source = dir.path().join("source");
        sample(&source);
        let memory = Arc::new(Memory::default());
        let root = publish_tree(&source, None, &memory).root;
        let packs = root.all_packs();
        flip(&memory, which.get(&packs).pack, position);
        let target = dir.path().join("target");
        let result = Index::load(&root, &*memory)
            .and_then(|index| assemble(&index, &Need::compute(&index, &[]), &[], &*memory, &target));
        // A bit of a compressed chunk that its decoder ignores may be flipped: then the bytes are right.
        match result {
            Ok(_) => prop_assert_eq!(contents(&target), contents(&source)),
            Err(_) => {
                prop_assert!(!target.exists());
                prop_assert_eq!(fs::read_dir(dir.path()).expect("readable").count(), 1, "nothing is left behind");
            }
        }
    }
}

#[test]
fn wrong_roots_are_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    sample(&dir.path().join("source"));
    let memory = Arc::new(Memory::default());
    let root = publish_tree(&dir.path().join("source"), None, &memory).root;
    let id = root.artifact;
    assert_eq!(ArtifactRoot::from_json(&id, &root.to_json()).expect("valid"), root);
    ArtifactRoot::from_json(&ArtifactId::of(b"other"), &root.to_json()).expect_err("another artifact's");
    ArtifactRoot::from_json(&id, b"{}").expect_err("incomplete");
    let changes: [fn(&mut ArtifactRoot); 6] = [
        |root| root.artifact = ArtifactId::of(b"other"),
        |root| root.chunks += 1,
        |root| root.files = 0,
        |root| root.packs.truncate(root.packs.len() - 1),
        |root| std::mem::swap(&mut root.manifest, &mut root.layout),
        |root| root.packs[0].bytes = u64::MAX,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut bad = root.clone();
        change(&mut bad);
        Index::load(&bad, &*memory).expect_err(&format!("change {number}"));
    }
}

#[test]
fn a_damaged_release_falls_back_to_the_pack_or_says_which() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (source, releases) = (dir.path().join("source"), dir.path().join("releases"));
    sample(&source);
    fs::create_dir(&releases).expect("made");
    let memory = Arc::new(Memory::default());
    let index = memory.index(&publish_tree(&source, None, &memory).root);
    let id = index.manifest.id();
    let release = releases.join(id.to_string());
    assemble(&index, &Need::compute(&index, &[]), &[], &*memory, &release).expect("assembled");
    save_manifest(&releases, &index.manifest).expect("saved");
    let installed = [load_installed(&releases, &id).expect("there")];
    assert_eq!(installed[0].manifest, index.manifest);

    fs::write(release.join("data/noise"), noise(8, 700_000)).expect("damaged");
    verify(&release, &index.manifest).expect_err("damaged");
    let need = Need::compute(&index, &installed);
    let target = dir.path().join("target");
    let error = assemble(&index, &need, &installed, &Memory::default(), &target).expect_err("no pack");
    assert!(matches!(&error, Error::DamagedInstalled { path, .. } if path.ends_with("data/noise")), "{error}");
    let assembled = assemble(&index, &need, &installed, &*memory, &target).expect("from the packs");
    assert!(assembled.damaged_chunks > 0 && assembled.reused_bytes > 0, "{assembled:?}");
    assert_eq!(contents(&target), contents(&source));
    let again = assemble(&index, &need, &installed, &*memory, &target).expect_err("exists");
    assert!(matches!(again, Error::TargetExists { .. }), "{again}");

    remove_installed(&releases, &id).expect("removed");
    remove_installed(&releases, &id).expect("removed already");
    assert_eq!(fs::read_dir(&releases).expect("readable").count(), 0);
    load_installed(&releases, &id).expect_err("gone");
}

#[test]
fn packs_are_kept_verified_and_read_from_a_directory() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (source, kept) = (dir.path().join("source"), dir.path().join("packs"));
    sample(&source);
    fs::create_dir(&kept).expect("made");
    let memory = Arc::new(Memory::default());
    let root = publish_tree(&source, None, &memory).root;
    for (pack, bytes) in memory.0.lock().expect("not poisoned").iter() {
        save_pack(&kept, pack, &bytes[1..]).expect_err("damaged");
        save_pack(&kept, pack, bytes).expect("kept");
    }
    let packs = DirPacks::new(&kept);
    let index = Index::load(&root, &packs).expect("valid");
    let target = dir.path().join("target");
    assemble(&index, &Need::compute(&index, &[]), &[], &packs, &target).expect("assembled");
    assert_eq!(contents(&target), contents(&source));
    fs::remove_file(packs.path(&root.packs[0].pack)).expect("removed");
    let error = Index::load(&root, &packs).and_then(|index| {
        assemble(&index, &Need::compute(&index, &[]), &[], &DirPacks::new(&kept), &dir.path().join("other"))
    });
    assert!(matches!(error, Err(Error::Read { pack, .. }) if pack == root.packs[0].pack));
}

/// Makes a tree at this path.
type Make = fn(&Path);

#[test]
fn what_cannot_be_published_is_named() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let cases: [(&str, Make); 6] = [
        ("does not exist", |_| {}),
        ("holds no file", |tree| fs::create_dir(tree).expect("made")),
        ("bad-socket", |tree| {
            fs::create_dir(tree).expect("made");
            UnixListener::bind(tree.join("bad-socket")).expect("bound");
        }),
        ("bad-link", |tree| {
            fs::create_dir(tree).expect("made");
            std::os::unix::fs::symlink("../outside", tree.join("bad-link")).expect("linked");
        }),
        ("absolute", |tree| {
            fs::create_dir(tree).expect("made");
            std::os::unix::fs::symlink("/etc/passwd", tree.join("bad-link")).expect("linked");
        }),
        ("not UTF-8", |tree| {
            fs::create_dir(tree).expect("made");
            let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(b"bad-\xff");
            fs::write(tree.join(name), b"").expect("written");
        }),
    ];
    for (number, (part, make)) in cases.into_iter().enumerate() {
        let tree = dir.path().join(number.to_string());
        make(&tree);
        let error = run(publish(&tree, Bases::default(), Arc::new(Memory::default()))).expect_err(part);
        assert!(error.to_string().contains(part), "{error}");
    }
}

struct Full;

#[async_trait::async_trait]
impl PackSink for Full {
    async fn put(&self, _: PackId, _: Bytes) -> Result<(), SinkError> {
        Err("no space".into())
    }
}

#[test]
fn a_failing_sink_ends_the_publishing_with_its_reason() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let source = dir.path().join("file");
    fs::write(&source, noise(3, 40_000_000)).expect("written");
    let error = run(publish(&source, Bases::default(), Arc::new(Full))).expect_err("full");
    assert!(matches!(&error, Error::Sink { source, .. } if source.to_string() == "no space"), "{error}");
}

/// Changes the published file as soon as the first pack arrives, while most of it is still to be read.
struct Meddler(std::path::PathBuf);

#[async_trait::async_trait]
impl PackSink for Meddler {
    async fn put(&self, _: PackId, _: Bytes) -> Result<(), SinkError> {
        use std::io::Write;
        fs::OpenOptions::new().append(true).open(&self.0)?.write_all(b"more")?;
        Ok(())
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_noticed() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let source = dir.path().join("file");
    fs::write(&source, noise(4, 120_000_000)).expect("written");
    let error = run(publish(&source, Bases::default(), Arc::new(Meddler(source.clone())))).expect_err("changed");
    assert!(matches!(&error, Error::Changed { path } if path.ends_with("file")), "{error}");
}

#[test]
fn a_link_to_the_output_is_followed_and_installed_manifests_are_checked() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let (file, link) = (dir.path().join("file"), dir.path().join("link"));
    fs::write(&file, b"bytes").expect("written");
    std::os::unix::fs::symlink(&file, &link).expect("linked");
    let memory = Arc::new(Memory::default());
    let index = memory.index(&publish_tree(&link, None, &memory).root);
    assert_eq!(index.manifest.files().next().map(|file| &*file.path), Some("link"));
    save_manifest(dir.path(), &index.manifest).expect("saved");
    let other = ArtifactId::of(b"other");
    let wrong = longshore_artifact::manifest_path(dir.path(), &other);
    fs::copy(longshore_artifact::manifest_path(dir.path(), &index.manifest.id()), wrong).expect("copied");
    let error = load_installed(dir.path(), &other).map(|Installed { dir, .. }| dir).expect_err("another's");
    assert!(matches!(error, Error::WrongManifest { .. }), "{error}");
}
