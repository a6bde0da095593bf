//! Parts of an artifact: what lies below a path, ranges of a file's bytes, and what changed between two trees.

mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    sync::Arc,
};

use common::{Memory, contents, noise, publish_tree};
use longshore_artifact::{Change, Changes, Entry, Error, Index, Need, PackRead, Stretches, assemble};
use proptest::prelude::*;

const LARGE: usize = 3_000_000;

/// Noise, a long hole, text, and files beside them.
fn make(dir: &Path) {
    fs::create_dir_all(dir.join("bin/empty")).expect("made");
    let mut large = noise(1, LARGE / 3);
    large.resize(2 * LARGE / 3, 0);
    large.resize(LARGE, b'x');
    fs::write(dir.join("bin/large"), large).expect("written");
    fs::write(dir.join("bin/small"), "small").expect("written");
    fs::set_permissions(dir.join("bin/small"), fs::Permissions::from_mode(0o755)).expect("set");
    symlink("../lib/one", dir.join("bin/link")).expect("linked");
    fs::create_dir_all(dir.join("lib")).expect("made");
    fs::write(dir.join("lib/one"), noise(2, 500_000)).expect("written");
    fs::write(dir.join("lib-two"), "").expect("written");
}

struct Published {
    folder: tempfile::TempDir,
    memory: Arc<Memory>,
    index: Arc<Index>,
}

fn published() -> Published {
    let folder = tempfile::tempdir().expect("a folder");
    make(&folder.path().join("tree"));
    let memory = Arc::new(Memory::default());
    let published = publish_tree(&folder.path().join("tree"), None, &memory);
    let index = Arc::new(memory.index(&published.root));
    Published { folder, memory, index }
}

/// The bytes of a range, as a download makes them.
fn read(of: &Published, path: &str, begin: u64, end: u64) -> Result<Vec<u8>, Error> {
    let Some(Entry::File(file)) = of.index.manifest.find(path) else { panic!("{path} is a file") };
    let (stretches, first) = Stretches::new(of.index.clone(), file, &(begin..end));
    let mut bytes = Vec::new();
    for stretch in stretches {
        assert!(stretch.bytes <= 1024 * 1024 + 256 * 1024, "{} bytes at once", stretch.bytes);
        let mut stored = vec![0; usize::try_from(stretch.bytes).expect("small")];
        of.memory.read_at(&stretch.pack, stretch.offset, &mut stored).expect("there");
        bytes.extend(of.index.unpack(&stretch, &stored)?.concat());
    }
    let skip = usize::try_from(begin - first).expect("small");
    Ok(bytes[skip..skip + usize::try_from(end - begin).expect("small")].to_vec())
}

#[test]
fn any_range_of_a_file_is_what_the_file_has_there() {
    let of = published();
    let whole = fs::read(of.folder.path().join("tree/bin/large")).expect("readable");
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(40));
    let ranges = (0..LARGE, 0..LARGE).prop_map(|(a, b)| (a.min(b), a.max(b) + 1));
    let checked = runner.run(&ranges, |(begin, end)| {
        let bytes = read(&of, "bin/large", begin as u64, end as u64).expect("sound");
        prop_assert!(bytes == whole[begin..end], "{begin}..{end}");
        Ok(())
    });
    checked.expect("every range is right");
    assert_eq!(read(&of, "bin/large", 0, LARGE as u64).expect("sound"), whole);
    assert!(read(&of, "lib-two", 0, 0).expect("sound").is_empty());
}

#[test]
fn a_hole_is_read_once() {
    let of = published();
    let Some(Entry::File(file)) = of.index.manifest.find("bin/large") else { panic!("a file") };
    let third = LARGE as u64 / 3;
    let (stretches, _) = Stretches::new(of.index.clone(), file, &(third + 300_000..2 * third - 300_000));
    let stored: u64 = stretches.map(|stretch| stretch.bytes).sum();
    assert!(stored < 1_000, "{stored} bytes for a hole of {third}");
}

#[test]
fn wrong_bytes_are_an_error_that_names_the_pack() {
    let of = published();
    let mut packs = of.memory.0.lock().expect("not poisoned");
    for bytes in packs.values_mut() {
        let mut wrong = bytes.to_vec();
        wrong.iter_mut().for_each(|byte| *byte ^= 1);
        *bytes = wrong.into();
    }
    drop(packs);
    let error = read(&of, "lib/one", 0, 1).expect_err("damaged");
    assert!(matches!(error, Error::WrongChunk { .. }), "{error}");
    for (pack, chunks) in of.index.layout.packs().iter().zip(of.index.chunks_by_pack()) {
        let bytes = of.memory.0.lock().expect("not poisoned")[&pack.pack].clone();
        of.index.check_pack(&chunks, &bytes).expect_err("damaged");
        of.index.check_pack(&chunks, &bytes[..1]).expect_err("short");
    }
}

#[test]
fn every_chunk_is_in_one_pack_and_checked() {
    let of = published();
    let packs = of.index.chunks_by_pack();
    assert_eq!(packs.iter().map(Vec::len).sum::<usize>(), of.index.manifest.chunks().len());
    for (pack, chunks) in of.index.layout.packs().iter().zip(packs) {
        let bytes = of.memory.0.lock().expect("not poisoned")[&pack.pack].clone();
        of.index.check_pack(&chunks, &bytes).expect("sound");
    }
}

#[test]
fn a_part_is_what_lies_below_its_path() {
    let of = published();
    let paths = |under: &str| of.index.manifest.under(under).iter().map(Entry::path).collect::<Vec<_>>();
    assert_eq!(paths("bin"), ["bin/empty", "bin/large", "bin/link", "bin/small"]);
    assert_eq!(paths("lib"), ["lib/one"]);
    assert_eq!(paths("lib-two"), ["lib-two"]);
    assert_eq!(paths("").len(), 6);
    for nothing in ["li", "lib/", "/lib", "lib/one/x", "z"] {
        assert!(paths(nothing).is_empty(), "{nothing}");
        assert!(of.index.part(nothing).expect("sound").is_none(), "{nothing}");
    }
    for (path, entries) in [("bin", 4), ("bin/small", 1), ("bin/link", 1), ("lib-two", 1), ("", 6)] {
        let part = of.index.part(path).expect("sound").expect("something");
        let target = of.folder.path().join(format!("part-{entries}-{}", path.replace('/', "-")));
        assemble(&part, &Need::compute(&part, &[]), &[], &*of.memory, &target).expect("assembled");
        let mut expected = contents(&of.folder.path().join("tree"));
        expected.retain(|name, _| path.is_empty() || name == path || name.starts_with(&format!("{path}/")));
        assert_eq!(contents(&target), expected, "{path}");
        assert_eq!(part.root.files, entries, "{path}");
    }
    let whole = of.index.part("").expect("sound").expect("something");
    assert_eq!(whole.root.artifact, of.index.root.artifact, "all of it is the same artifact");
    let small = of.index.part("bin/small").expect("sound").expect("something");
    assert_eq!((small.layout.packs().len(), small.root.size_bytes), (1, 5));
}

#[test]
fn changes_are_told_in_order() {
    let of = published();
    let tree = of.folder.path().join("tree");
    fs::set_permissions(tree.join("bin/small"), fs::Permissions::from_mode(0o700)).expect("set");
    fs::remove_file(tree.join("bin/link")).expect("removed");
    symlink("../lib/two", tree.join("bin/link")).expect("linked");
    fs::write(tree.join("lib/one"), noise(3, 500_000)).expect("written");
    fs::remove_file(tree.join("lib-two")).expect("removed");
    fs::write(tree.join("aa"), "new").expect("written");
    let after = of.memory.index(&publish_tree(&tree, None, &of.memory).root);
    let told = |from, to| -> Vec<String> {
        let kind = |change: &Change<'_>| match change {
            Change::Added(_) => '+',
            Change::Removed(_) => '-',
            Change::Changed(..) => 'M',
            Change::Mode(..) => 'm',
        };
        Changes::new(from, to).map(|change| format!("{} {}", kind(&change), change.path())).collect()
    };
    let (before, after) = (&of.index.manifest, &after.manifest);
    assert_eq!(told(before, after), ["+ aa", "M bin/link", "m bin/small", "- lib-two", "M lib/one"]);
    assert_eq!(told(after, before), ["- aa", "M bin/link", "m bin/small", "+ lib-two", "M lib/one"]);
    assert!(told(before, before).is_empty());
}
