//! Patches, as a lying publisher, bucket or peer could send them, up to the tree on disk.
//!
//! Whatever comes, it is refused or it is right.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use longshore_artifact::{
    Bases, Index, Installed, Need, PackRead, PackRef, PackSink, PatchGroup, PatchRoot, ReadError, SinkError, apply,
    assemble, assemble_patched, make_patch, patched_manifest, publish, verify,
};
use longshore_schemas::PackId;

use super::files::scratch;
use crate::{Random, Subject, kind_of};

/// An installed base, an artifact, and the true patch between them. The input:
///
/// ```text
/// how u8 · missing chunks that are skipped u8 · chunks that are made u8 · a frame
/// ```
///
/// Bits of `how`: 1, the frame is a manifest and not a group; 2, it is compressed already, otherwise this does it.
struct Patches {
    folder: tempfile::TempDir,
    index: Index,
    base: Installed,
    /// Manifest and group, compressed.
    frames: [Vec<u8>; 2],
    chunks: u8,
}

const MANIFEST: u8 = 1;
const COMPRESSED: u8 = 2;

#[derive(Default)]
struct Memory(Mutex<HashMap<PackId, Bytes>>);

#[async_trait::async_trait]
impl PackSink for Memory {
    async fn put(&self, pack: PackId, bytes: Bytes) -> Result<(), SinkError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(pack, bytes);
        Ok(())
    }
}

impl PackRead for Memory {
    fn read_at(&self, pack: &PackRef, offset: u64, buffer: &mut [u8]) -> Result<(), ReadError> {
        let packs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = packs.get(&pack.pack).ok_or(ReadError::Missing)?;
        let from = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)?.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }
}

pub(super) fn start() -> Box<dyn Subject> {
    let folder = scratch();
    let memory = Arc::new(Memory::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let publish = |name: &str, bytes: &[u8], bases: Bases| {
        let tree = folder.path().join(name);
        fs::create_dir(&tree).expect("made");
        fs::write(tree.join("file"), bytes).expect("written");
        let published = runtime.block_on(publish(&tree, bases, memory.clone())).expect("published");
        Index::load(&published.root, &*memory).expect("just published")
    };
    let mut bytes = Random::new(5).bytes(150_000);
    let base = publish("old", &bytes, Bases::default());
    bytes.iter_mut().step_by(900).for_each(|byte| *byte = byte.wrapping_add(3));
    bytes.splice(70_000..80_000, Random::new(6).bytes(500));
    let index = publish("new", &bytes, Bases::from(&base));
    let installed = Installed { dir: folder.path().join("base"), manifest: base.manifest.clone() };
    assemble(&base, &Need::compute(&base, &[]), &[], &*memory, &installed.dir).expect("assembled");
    let mut packs = Vec::new();
    let made = make_patch(&index, &base, &*memory, |_, bytes| {
        packs.extend_from_slice(&bytes);
        Ok(())
    })
    .expect("made");
    let group = packs.split_off(usize::try_from(made.root.manifest.expect("it is small")).expect("small"));
    let chunks = u8::try_from(made.root.groups[0].chunks).expect("few");
    for name in ["old", "new"] {
        fs::remove_dir_all(folder.path().join(name)).expect("removed");
    }
    Box::new(Patches { folder, index, base: installed, frames: [packs, group], chunks })
}

impl Subject for Patches {
    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let Some(([how, skipped, chunks], frame)) = input.split_first_chunk::<3>() else {
            return Ok("no parts".to_owned());
        };
        let frame = match how & COMPRESSED {
            0 => Bytes::from(zstd::encode_all(frame, 1).map_err(|error| error.to_string())?),
            _ => Bytes::copy_from_slice(frame),
        };
        let bytes = frame.len() as u64;
        let pack = PackRef { pack: PackId::of(&frame), bytes };
        let group = PatchGroup { skipped: (*skipped).into(), chunks: (*chunks).into(), bytes };
        let is_manifest = how & MANIFEST > 0;
        let root = PatchRoot {
            artifact: self.index.manifest.id(),
            base: self.base.manifest.id(),
            manifest: is_manifest.then_some(bytes),
            groups: if is_manifest { vec![] } else { vec![group] },
            packs: vec![pack],
        };
        let packs = Memory(Mutex::new(HashMap::from([(pack.pack, frame)])));
        let root = match PatchRoot::from_json(&root.artifact, &root.base, &root.to_json()) {
            Ok(root) => root,
            Err(error) => return Ok(kind_of(&error)),
        };
        if !is_manifest {
            return self.install(&root, &packs);
        }
        match patched_manifest(&root, &self.base.manifest, &packs) {
            Ok(Some(manifest)) if manifest == self.index.manifest => Ok("the manifest".to_owned()),
            Ok(_) => Err("another manifest was believed".to_owned()),
            Err(error) => Ok(kind_of(&error)),
        }
    }

    fn generate(&mut self, random: &mut Random) -> Vec<u8> {
        let how = random.below(4) as u8;
        let frame = &self.frames[usize::from(how & MANIFEST == 0)];
        // A manifest's frame cannot be read without what it was compressed by.
        let plain = how & (COMPRESSED | MANIFEST) == 0;
        let frame = if plain { zstd::decode_all(&frame[..]).expect("just made") } else { frame.clone() };
        let how = if plain { how } else { how | COMPRESSED };
        [&[how, 0, self.chunks][..], &frame].concat()
    }
}

impl Patches {
    fn install(&self, root: &PatchRoot, packs: &Memory) -> Result<String, String> {
        let applied = apply(root, &self.index.manifest, &self.base, packs, &self.folder.path().join("scratch"));
        let outcome = match applied {
            Ok(patched) => {
                let installed = std::slice::from_ref(&self.base);
                let need = Need::compute_patched(&self.index, installed, Some(&patched));
                let target = self.folder.path().join("target");
                let made = assemble_patched(&self.index, &need, installed, Some(&patched), packs, &target);
                match made {
                    Ok(_) => self.check(&target)?,
                    Err(error) if need.packs.is_empty() => return Err(format!("it was applied, but {error}")),
                    Err(_) => "a part of it".to_owned(),
                }
            }
            Err(error) => kind_of(&error),
        };
        let left = fs::read_dir(self.folder.path()).map_err(|error| error.to_string())?.count();
        if left == 1 { Ok(outcome) } else { Err(format!("{left} things lie where only the base should")) }
    }

    fn check(&self, target: &Path) -> Result<String, String> {
        verify(target, &self.index.manifest).map_err(|error| format!("what was installed is wrong: {error}"))?;
        fs::remove_dir_all(target).map_err(|error| error.to_string())?;
        Ok("installed".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_true_patch_is_applied() {
        let mut random = Random::new(4);
        let mut subject = start();
        let outcomes: std::collections::BTreeSet<_> = (0..40)
            .map(|_| {
                let input = subject.generate(&mut random);
                subject.run(&input).expect("right")
            })
            .collect();
        assert_eq!(outcomes.into_iter().collect::<Vec<_>>(), ["installed", "the manifest"]);
    }
}
